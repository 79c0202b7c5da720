/*
 * smtp_data.c: messages, from DATA or BDAT (RFC 3030) to the hook that takes them over. For
 * smtp_server.c.
 *
 * Where a message ends is decided here once: by CRLF.CRLF, or by counting. A CR or LF on its own
 * ends nothing, and gets the message refused; nobody behind this server can find a second message
 * in the first ("SMTP smuggling").
 */
#include "core/protocol/smtp_session.h"

#include "core/protocol/smtp_message.h"

#include <stdio.h>

/* ---- Keeping it ---- */

/* From here on it is skipped; of what was kept nothing is needed. */
static void data_refuse(bk_smtp_session *s, const char *reply) {
    if (s->refusal != NULL)
        return;
    s->refusal = reply;
    if (s->message != NULL)
        bk_smtp_message_drop_data(s->message);
}

/* The same with a hook's words. */
void bk_smtp_data_refuse(bk_smtp_session *s, const char *reply) {
    s->refused = bk_smtp_text_new(s->machine.os, reply, strlen(reply));
    data_refuse(s, s->refused != NULL ? s->refused : "451 4.3.0 out of memory");
}

/* Data that begins as a folded line would go on with the trace header (RFC 5322, 2.2.3): an empty
   line, which is the server's as the header is, makes it text. */
static int data_first(bk_smtp_message *message, char first) {
    if (message->trace_size == 0 || (first != ' ' && first != '\t'))
        return 0;
    int r = bk_smtp_message_add(message, "\r\n", 2);
    message->trace_size = message->size;
    return r;
}

static void data_keep(bk_smtp_session *s, const char *data, size_t n) {
    if (s->refusal != NULL || n == 0)
        return;
    if (n > s->config.max_message - s->taken)
        data_refuse(s, "552 5.3.4 message is too big");
    else if ((s->taken == 0 && data_first(s->message, data[0]) < 0) ||
             bk_smtp_message_add(s->message, data, n) < 0)
        data_refuse(s, BK_SMTP_NO_SPACE);
    else
        s->taken += n;
}

/* RFC 3848 and RFC 6531, 4.3. HELO has no word for TLS. */
static void trace_protocol(const bk_smtp_session *s, char ret_word[16]) {
    const char *word = s->config.flags & BK_SMTP_LMTP ? "LMTP" : "ESMTP";
    if (s->message->utf8)
        word = s->config.flags & BK_SMTP_LMTP ? "UTF8LMTP" : "UTF8SMTP";
    if (s->extended)
        snprintf(ret_word, 16, "%s%s%s", word, bk_smtp_secure(s) ? "S" : "",
                 bk_smtp_login_name(s) != NULL ? "A" : "");
    else
        snprintf(ret_word, 16, "SMTP");
}

static int data_trace(bk_smtp_session *s) {
    char protocol[16];
    if (s->config.flags & BK_SMTP_NO_TRACE)
        return 0;
    trace_protocol(s, protocol);
    int r = bk_smtp_message_trace(s->message, s->name, s->peer, s->config.hostname, protocol);
    if (r < 0)
        bk_smtp_message_drop_data(s->message);
    return r;
}

/* ---- The end ---- */

static void data_finish(bk_smtp_session *s) {
    s->mode = BK_SMTP_COMMANDS;
    s->recipient_count = s->message->recipient_count;
    if (s->refusal != NULL) {
        const char *const replies[] = {s->refusal};
        bk_smtp_data_answered(s, replies, 1);
        return;
    }
    s->messages++;
    bk_smtp_ask(s, BK_SMTP_ASK_MESSAGE);
}

/* The end of a chunk that is not the message's. RFC 3030, 2: after a refusal there is nothing left
   to add to. */
static void chunk_finish(bk_smtp_session *s) {
    s->mode = BK_SMTP_COMMANDS;
    (void)bk_smtp_relay(s, s->refusal != NULL ? s->refusal : "250 2.0.0 chunk received", false);
    if (s->refusal != NULL)
        bk_smtp_reset(s);
}

/* What came has been taken, by the chunk hook too. */
static void data_go_on(bk_smtp_session *s) {
    if (s->complete)
        data_finish(s);
    else if (s->mode == BK_SMTP_BDAT && s->chunk_left == 0)
        chunk_finish(s);
}

/* A piece has come, perhaps the last. */
static void data_piece(bk_smtp_session *s) {
    const bk_smtp_message *m = s->message;
    if (s->config.chunk != NULL && s->refusal == NULL && m->size > m->trace_size)
        bk_smtp_ask(s, BK_SMTP_ASK_CHUNK);
    else
        data_go_on(s);
}

void bk_smtp_data_taken(bk_smtp_session *s, const char *reply) {
    s->message->size = s->message->trace_size;
    if (reply != NULL && reply[0] != '2')
        bk_smtp_data_refuse(s, reply);
    data_go_on(s);
}

/* LMTP: a reply for each recipient (RFC 2033, 4.2). */
static bool answer_each(bk_smtp_session *s, const char *const *replies, size_t count) {
    bool taken = false;
    for (size_t i = 0; i < s->recipient_count; i++) {
        const char *reply = replies[count > 1 ? i : 0];
        reply = reply != NULL ? reply : "250 2.0.0 message accepted";
        taken |= bk_smtp_relay(s, reply, false) == '2';
    }
    return taken;
}

/* "Try again later" comes before "never": who comes again for all of them loses none. */
static int reply_badness(const char *reply) {
    char class = bk_smtp_reply_class(reply);
    return class == '4' ? 10 : class - '0';
}

static bool answer_worst(bk_smtp_session *s, const char *const *replies, size_t count) {
    const char *worst = "250 2.0.0 message accepted";
    for (size_t i = 0; i < count; i++)
        if (replies[i] != NULL && (i == 0 || reply_badness(replies[i]) > reply_badness(worst)))
            worst = replies[i];
    return bk_smtp_relay(s, worst, false) == '2';
}

void bk_smtp_data_answered(bk_smtp_session *s, const char *const *replies, size_t count) {
    bool taken = (s->config.flags & BK_SMTP_LMTP ? answer_each : answer_worst)(s, replies, count);
    if (taken)
        s->errors = s->idle = s->crowded = 0;
    bk_smtp_reset(s);
}

/* ---- DATA ---- */

static const char *data_refusal(bk_smtp_session *s, size_t n) {
    if (n > 0)
        return "501 5.5.4 DATA takes no argument";
    if (s->message == NULL)
        return "503 5.5.1 MAIL first";
    if (s->chunked)
        return "503 5.5.1 BDAT has begun the message";
    if (s->message->body == BK_SMTP_BINARYMIME)
        return "503 5.5.1 BINARYMIME needs BDAT";
    if (s->message->recipient_count == 0) /* RFC 2920, 3.1; RFC 2033, 4.2 */
        return s->config.flags & BK_SMTP_LMTP ? "503 5.5.1 no valid recipients"
                                              : "554 5.5.1 no valid recipients";
    return NULL;
}

void bk_smtp_data(bk_smtp_session *s, const char *arg, size_t n) {
    (void)arg;
    const char *refusal = data_refusal(s, n);
    if (refusal != NULL)
        bk_smtp_reply(s, refusal);
    else if (s->config.data != NULL)
        bk_smtp_ask(s, BK_SMTP_ASK_DATA);
    else
        bk_smtp_data_begin(s);
}

static void chunk_end(bk_smtp_session *s);

void bk_smtp_data_begin(bk_smtp_session *s) {
    bool traced = data_trace(s) == 0;
    s->place = BK_SMTP_AT_START;
    if (s->mode == BK_SMTP_BDAT) {
        if (!traced)
            data_refuse(s, BK_SMTP_NO_SPACE);
        if (s->chunk_left == 0)
            chunk_end(s);
    } else if (!traced) {
        bk_smtp_reply(s, BK_SMTP_NO_SPACE);
    } else {
        bk_smtp_reply(s, "354 end data with <CR><LF>.<CR><LF>");
        s->mode = BK_SMTP_DATA;
    }
}

/* ---- The bytes ---- */

/* Where the next CR or LF is. `from` never goes back, so what each search found is good until it
   has been passed: no byte is searched twice for the same. */
typedef struct data_ends {
    const char *cr, *lf;
} data_ends;

static const char *data_find(data_ends *ends, const char *from, const char *end) {
    if (ends->lf == NULL || ends->lf < from) {
        ends->lf = memchr(from, '\n', (size_t)(end - from));
        ends->lf = ends->lf != NULL ? ends->lf : end;
    }
    if (ends->cr == NULL || ends->cr < from) {
        ends->cr = memchr(from, '\r', (size_t)(end - from));
        ends->cr = ends->cr != NULL ? ends->cr : end;
    }
    return ends->cr < ends->lf ? ends->cr : ends->lf;
}

/* Before c stands, or c is, a CR or LF on its own. What is between `from` and c is to be kept, and
   has not been yet; returns where that begins now. */
static const char *data_bare(bk_smtp_session *s, const char *from, const char *c) {
    if (!(s->config.flags & BK_SMTP_MAKE_WHOLE)) { /* told before all else: whatever the pieces */
        data_refuse(s, NULL);
        s->refusal = "554 5.6.0 message has a CR or LF that stands alone";
        return from;
    }
    if (s->place == BK_SMTP_AFTER_DOT_CR) { /* a CR that is never kept */
        data_keep(s, "\r\n", 2);
        return c;
    }
    data_keep(s, from, (size_t)(c - from));
    data_keep(s, s->place == BK_SMTP_AFTER_CR ? "\n" : "\r", 1);
    return c;
}

/* The place behind c; AT_START from AFTER_DOT_CR is the end of the message. */
static bk_smtp_place data_next(const bk_smtp_session *s, char c) {
    bool after_cr = s->place == BK_SMTP_AFTER_CR || s->place == BK_SMTP_AFTER_DOT_CR;
    if (after_cr && c == '\n')
        return BK_SMTP_AT_START;
    if (c == '\r')
        return s->place == BK_SMTP_AFTER_DOT ? BK_SMTP_AFTER_DOT_CR : BK_SMTP_AFTER_CR;
    return s->place == BK_SMTP_AT_START && c == '.' && s->mode == BK_SMTP_DATA ? BK_SMTP_AFTER_DOT
                                                                               : BK_SMTP_IN_TEXT;
}

/* Take up to the end of the message, or all there is; returns how much. What is between `from` and
   `at` is to be kept and has not been yet: all but the first dot of a line (4.5.2) is. */
static size_t data_scan(bk_smtp_session *s, const char *data, size_t n) {
    const char *from = data, *at = data, *end = data + n;
    data_ends ends = {NULL, NULL};
    for (; at < end; at++) {
        bk_smtp_place was = s->place;
        if (was == BK_SMTP_IN_TEXT && (at = data_find(&ends, at, end)) == end)
            break;
        bool after_cr = was == BK_SMTP_AFTER_CR || was == BK_SMTP_AFTER_DOT_CR;
        if (after_cr != (*at == '\n'))
            from = data_bare(s, from, at);
        s->place = data_next(s, *at);
        if (s->place == BK_SMTP_AFTER_DOT) {
            data_keep(s, from, (size_t)(at - from));
            from = at + 1;
        } else if (s->place == BK_SMTP_AT_START && was == BK_SMTP_AFTER_DOT_CR) {
            s->complete = true;
            return (size_t)(at + 1 - data);
        }
    }
    /* The CR after a dot is the end's, or else alone: never kept. */
    data_keep(s, from, (size_t)(end - from) - (s->place == BK_SMTP_AFTER_DOT_CR));
    return n;
}

/* ---- BDAT (RFC 3030) ---- */

/* "size" or "size LAST". */
static bool chunk_parse(const char *arg, size_t n, uint64_t *ret_size, bool *ret_last) {
    uint64_t size = 0;
    size_t i = 0;
    for (; i < n && arg[i] >= '0' && arg[i] <= '9'; i++) {
        uint64_t digit = (uint64_t)(arg[i] - '0');
        if (size > (UINT64_MAX - digit) / 10)
            return false;
        size = size * 10 + digit;
    }
    *ret_size = size;
    *ret_last = n > i;
    return i > 0 && (i == n || (arg[i] == ' ' && bk_smtp_is(arg + i + 1, n - i - 1, "LAST")));
}

static const char *chunk_refusal(const bk_smtp_session *s) {
    if (s->message == NULL)
        return "503 5.5.1 MAIL first";
    return s->message->recipient_count == 0 ? "503 5.5.1 no valid recipients" : NULL;
}

/* Whatever is wrong with it, its bytes come, and are no commands. Where nobody knows how many they
   are, nothing can be read any more. */
void bk_smtp_bdat(bk_smtp_session *s, const char *arg, size_t n) {
    bool last;
    if (!chunk_parse(arg, n, &s->chunk_left, &last)) {
        bk_smtp_reply(s, "501 5.5.4 BDAT size [LAST] is the syntax");
        bk_machine_close(&s->machine);
        return;
    }
    const char *refusal = chunk_refusal(s);
    bool first = !s->chunked && refusal == NULL;
    s->mode = BK_SMTP_BDAT;
    s->chunk_last = last && refusal == NULL;
    if (refusal != NULL)
        data_refuse(s, refusal);
    s->chunked |= first;
    if (first && s->config.data != NULL)
        bk_smtp_ask(s, BK_SMTP_ASK_DATA);
    else if (first)
        bk_smtp_data_begin(s);
    else if (s->chunk_left == 0)
        chunk_end(s);
}

/* A message is whole lines, but with BINARYMIME. */
static void chunk_complete(bk_smtp_session *s) {
    s->complete = true;
    if (s->message->body == BK_SMTP_BINARYMIME || s->taken == 0)
        return;
    if (s->place == BK_SMTP_AFTER_CR)
        (void)data_bare(s, "", "");
    else if (s->place != BK_SMTP_AT_START)
        data_keep(s, "\r\n", 2);
}

static void chunk_end(bk_smtp_session *s) {
    if (s->chunk_last)
        chunk_complete(s);
    data_piece(s);
}

static size_t chunk_receive(bk_smtp_session *s, const char *data, size_t n) {
    n = n < s->chunk_left ? n : (size_t)s->chunk_left;
    s->chunk_left -= n;
    if (s->refusal == NULL && s->message->body == BK_SMTP_BINARYMIME)
        data_keep(s, data, n);
    else if (s->refusal == NULL)
        (void)data_scan(s, data, n);
    if (s->chunk_left == 0)
        chunk_end(s);
    else
        data_piece(s);
    return n;
}

size_t bk_smtp_data_receive(bk_smtp_session *s, const char *data, size_t n) {
    if (s->mode == BK_SMTP_BDAT)
        return chunk_receive(s, data, n);
    n = data_scan(s, data, n);
    data_piece(s);
    return n;
}
