/*
 * smtp_reference.h: the SMTP server in memory, and an independent strict reader of what it was sent
 * and what it said, which tells what messages there were: for the tests of its states and for its
 * fuzz target.
 *
 * The reader trusts the server in what it refuses, and in nothing else: where a command ends (at
 * the first CRLF), where a message ends (at the first CRLF.CRLF, or where BDAT's count does), what
 * is in it, and that each command got one reply, it finds out by itself, from the whole of both
 * streams.
 */
#ifndef SMTP_REFERENCE_H
#define SMTP_REFERENCE_H

#include <becket-smtp.h>

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Texts that grow ---- */

typedef struct text {
    char *bytes;
    size_t size;
} text;

static inline void text_add(text *t, const void *bytes, size_t n) {
    t->bytes = realloc(t->bytes, t->size + n + 1);
    if (n > 0)
        memcpy(t->bytes + t->size, bytes, n);
    t->bytes[t->size += n] = '\0';
}

static inline void text_clear(text *t) {
    free(t->bytes);
    *t = (text){NULL, 0};
}

static inline bool text_same(const text *a, const text *b) {
    return a->size == b->size && (a->size == 0 || memcmp(a->bytes, b->bytes, a->size) == 0);
}

/* ---- The server ---- */

typedef struct served {
    text said, messages; /* each message: its bytes, then "<end>" */
    bool closed, secure, tls, later;
    bk_smtp_session *owed; /* an answer, with `later` */
    const char *reply;     /* … which is this */
    text chunks;
    int connects, disconnects, resets;
} served;

static inline int served_send(bk_machine *m, const void *data, size_t n, bk_release release,
                              void *arg) {
    text_add(&((served *)m->runner_state)->said, data, n);
    if (release != BK_COPY)
        release(arg);
    return 0;
}

static inline void served_close(bk_machine *m, int why) {
    (void)why;
    ((served *)m->runner_state)->closed = true;
}

static inline int served_start_tls(bk_machine *m, const void *last, size_t n) {
    ((served *)m->runner_state)->secure = true;
    return served_send(m, last, n, BK_COPY, NULL);
}

static inline int served_secure(bk_machine *m) {
    const served *s = m->runner_state;
    return s->tls ? s->secure : -ENOTSUP;
}

static const bk_runner_ops served_ops = {
    .size = sizeof(bk_runner_ops),
    .send = served_send,
    .close = served_close,
    .start_tls = served_start_tls,
    .secure = served_secure,
};

/* Every hook answers so: now, or when the piece that asked has been taken. */
static inline void served_answer(served *s, bk_smtp_session *session, const char *reply) {
    if (!s->later) {
        bk_smtp_answer(session, reply);
        return;
    }
    s->owed = session;
    s->reply = reply;
}

static inline void served_pay(served *s) {
    while (s->owed != NULL) {
        bk_smtp_session *session = s->owed;
        s->owed = NULL;
        bk_smtp_answer(session, s->reply);
    }
}

static inline void served_connect(void *context, bk_smtp_session *session) {
    ((served *)context)->connects++;
    served_answer(context, session, NULL);
}

static inline void served_helo(void *context, bk_smtp_session *session) {
    served_answer(context, session, NULL);
}

static inline void served_auth(void *context, bk_smtp_session *session,
                               const bk_smtp_login *login) {
    bool fine = login->password != NULL && strcmp(login->password, "secret") == 0;
    served_answer(context, session, fine ? NULL : "535 5.7.8 no");
}

static inline void served_mail(void *context, bk_smtp_session *session,
                               const bk_smtp_message *envelope) {
    served_answer(context, session, strncmp(envelope->sender, "spam@", 5) == 0 ? "550 no" : NULL);
}

static inline void served_rcpt(void *context, bk_smtp_session *session,
                               const bk_smtp_message *envelope,
                               const bk_smtp_recipient *recipient) {
    (void)envelope;
    served_answer(context, session,
                  strncmp(recipient->address, "nobody@", 7) == 0 ? "550 5.1.1 no" : NULL);
}

static inline void served_data(void *context, bk_smtp_session *session,
                               const bk_smtp_message *envelope) {
    served_answer(context, session,
                  strncmp(envelope->sender, "nodata@", 7) == 0 ? "554 5.7.1 no" : NULL);
}

static inline void served_chunk(void *context, bk_smtp_session *session, const char *data,
                                size_t n) {
    served *s = context;
    text_add(&s->chunks, data, n);
    served_answer(s, session, NULL);
}

static inline void served_message(void *context, bk_smtp_session *session,
                                  bk_smtp_message *message) {
    served *s = context;
    text_add(&s->messages, s->chunks.bytes, s->chunks.size);
    text_clear(&s->chunks);
    text_add(&s->messages, message->data, message->size);
    text_add(&s->messages, "<end>", 5);
    bk_smtp_message_free(message);
    served_answer(s, session, NULL);
}

static inline void served_vrfy(void *context, bk_smtp_session *session, const char *address) {
    (void)address;
    served_answer(context, session, NULL);
}

static inline void served_reset(void *context, bk_smtp_session *session) {
    (void)session;
    ((served *)context)->resets++;
    text_clear(&((served *)context)->chunks);
}

static inline void served_disconnect(void *context, bk_smtp_session *session) {
    (void)session;
    ((served *)context)->disconnects++;
}

static inline bk_smtp_config served_config(served *s, unsigned flags, bool chunks) {
    return (bk_smtp_config){.size = sizeof(bk_smtp_config),
                            .hostname = "mx.test",
                            .flags = flags | BK_SMTP_NO_TRACE,
                            .max_message = 5000,
                            .max_recipients = 5,
                            .max_errors = 1000,
                            .max_idle = 1000,
                            .context = s,
                            .connect = served_connect,
                            .helo = served_helo,
                            .auth = served_auth,
                            .mail = served_mail,
                            .rcpt = served_rcpt,
                            .data = served_data,
                            .chunk = chunks ? served_chunk : NULL,
                            .message = served_message,
                            .vrfy = served_vrfy,
                            .reset = served_reset,
                            .disconnect = served_disconnect};
}

/* A piece, in memory of just its size, so that reading past its end is seen. Nothing is fed to one
   that has closed. */
static inline void served_feed(served *s, bk_machine *m, const char *data, size_t n) {
    char *piece = malloc(n > 0 ? n : 1);
    memcpy(piece, data, n);
    if (!s->closed && n > 0)
        (void)bk_machine_feed(m, piece, n);
    free(piece);
    served_pay(s);
}

static inline void served_clear(served *s) {
    text_clear(&s->said);
    text_clear(&s->messages);
    text_clear(&s->chunks);
}

/* ---- The reader ---- */

typedef struct reference {
    const char *in, *in_end, *out, *out_end;
    bool lmtp, whole;  /* BK_SMTP_LMTP, BK_SMTP_MAKE_WHOLE */
    bool closed;       /* by the server */
    bool binary;       /* BODY=BINARYMIME */
    int recipients;    /* accepted */
    text message;      /* of chunks so far */
    text messages;     /* as served.messages */
    const char *wrong; /* what does not hold */
} reference;

/* The next reply's code; 0: there is none. */
static inline int reference_reply(reference *r) {
    int code = 0;
    for (bool last = false; !last && code >= 0;) {
        const char *end = memchr(r->out, '\n', (size_t)(r->out_end - r->out));
        if (end == NULL)
            return 0;
        if (end - r->out < 5 || end[-1] != '\r')
            r->wrong = "a line of a reply that is none";
        code = atoi(r->out);
        last = r->out[3] != '-';
        r->out = end + 1;
    }
    return code;
}

/* The first of `mark` at or after `from`. */
static inline const char *reference_find(const reference *r, const char *from, const char *mark) {
    size_t n = strlen(mark);
    for (; r->in_end - from >= (ptrdiff_t)n; from++)
        if (memcmp(from, mark, n) == 0)
            return from;
    return NULL;
}

/* Make whole, unless told otherwise; returns whether a CR or LF stood alone. */
static inline bool reference_lines(const char *at, const char *end, text *ret_text) {
    bool bare = false;
    for (; at < end; at++) {
        if (*at == '\r' && at + 1 < end && at[1] == '\n') {
            text_add(ret_text, "\r\n", 2);
            at++;
        } else if (*at == '\r' || *at == '\n') {
            bare = true;
            text_add(ret_text, "\r\n", 2);
        } else {
            text_add(ret_text, at, 1);
        }
    }
    return bare;
}

/* The replies to a message, one or one for each recipient; returns whether one is 2xx. */
static inline bool reference_replies(reference *r) {
    bool taken = false;
    for (int i = 0; i < (r->lmtp ? r->recipients : 1); i++) {
        int code = reference_reply(r);
        if (code == 0)
            r->wrong = "a message without a reply";
        taken |= code / 100 == 2;
    }
    return taken;
}

static inline void reference_message(reference *r, const text *t, bool bare) {
    bool taken = reference_replies(r);
    if (taken && bare && !r->whole)
        r->wrong = "a message with a bare CR or LF was accepted";
    if (taken) {
        text_add(&r->messages, t->bytes, t->size);
        text_add(&r->messages, "<end>", 5);
    }
    r->recipients = 0;
}

/* What follows 354: up to the first CRLF.CRLF, of which the first CRLF may be DATA's own. False:
   its end has not come. */
static inline bool reference_data(reference *r) {
    const char *begin = r->in, *end = reference_find(r, begin - 2, "\r\n.\r\n");
    text raw = {NULL, 0}, t = {NULL, 0};
    if (end == NULL)
        return false;
    text_add(&raw, "", 0);
    for (const char *at = begin; at < end + 2; at++) /* without the first dot of a line */
        if (*at != '.' || memcmp(at - 2, "\r\n", 2) != 0)
            text_add(&raw, at, 1);
    bool bare = reference_lines(raw.bytes, raw.bytes + raw.size, &t);
    r->in = end + 5;
    reference_message(r, &t, bare);
    text_clear(&raw);
    text_clear(&t);
    return true;
}

/* "BDAT n" or "BDAT n LAST": so many bytes, whatever they are. False: they have not all come. */
static inline bool reference_bdat(reference *r, const char *line, size_t n) {
    char copy[600] = "";
    while (n > 0 && line[n - 1] == ' ')
        n--;
    memcpy(copy, line, n);
    char *rest = copy + 5;
    unsigned long long size = strtoull(copy + 5, &rest, 10);
    bool last = *rest == ' ';
    if (size > (unsigned long long)(r->in_end - r->in))
        return false;
    if (r->out == r->out_end && r->closed)
        return false;
    text_add(&r->message, r->in, (size_t)size);
    r->in += size;
    /* Out of order, it has one reply, whatever the recipients. */
    const char *peek = r->out;
    int code = reference_reply(r);
    if (code == 0)
        r->wrong = "a chunk without a reply";
    if (last && code != 503) {
        text t = {NULL, 0};
        text_add(&t, "", 0);
        bool bare = reference_lines(r->message.bytes, r->message.bytes + r->message.size, &t);
        if (t.size > 0 && (t.size < 2 || memcmp(t.bytes + t.size - 2, "\r\n", 2) != 0))
            text_add(&t, "\r\n", 2);
        r->out = peek;
        reference_message(r, r->binary ? &r->message : &t, bare && !r->binary);
        text_clear(&t);
    }
    if (last || code / 100 != 2)
        text_clear(&r->message);
    if (code / 100 != 2)
        r->recipients = 0;
    return true;
}

static inline bool reference_is(const char *line, size_t n, const char *word) {
    size_t size = strlen(word);
    if (n < size)
        return false;
    for (size_t i = 0; i < size; i++)
        if ((line[i] >= 'a' && line[i] <= 'z' ? line[i] - 32 : line[i]) != word[i])
            return false;
    return n == size || line[size] == ' ' || word[size - 1] == ' ';
}

static inline bool reference_refused(const char *line, size_t n) {
    return memchr(line, '\r', n) || memchr(line, '\n', n) || memchr(line, '\0', n) || n > 12286;
}

static inline void reference_envelope(reference *r, const char *line, size_t n, int code) {
    if (reference_is(line, n, "MAIL") && code == 250) {
        const char *end = line + n, *at = end;
        while (at[-1] != '>') /* behind it are parameters */
            at--;
        for (r->binary = false; at + 16 <= end; at++)
            r->binary |= reference_is(at, (size_t)(end - at), " BODY=BINARYMIME");
        r->recipients = 0;
        text_clear(&r->message);
    } else if (reference_is(line, n, "RCPT") && code / 100 == 2) {
        r->recipients++;
    } else if ((reference_is(line, n, "RSET") || reference_is(line, n, "EHLO") ||
                reference_is(line, n, "HELO") || reference_is(line, n, "LHLO")) &&
               code == 250) {
        r->recipients = 0;
        text_clear(&r->message);
    }
}

/* Reads all of it, up to where the server closed, or the input ends in the middle of something. */
static inline void reference_read(reference *r) {
    bool exchange = false; /* the next line is no command */
    if (reference_reply(r) != 220)
        r->wrong = "no greeting";
    while (r->wrong == NULL) {
        const char *line = r->in, *end = reference_find(r, line, "\r\n");
        size_t n = end != NULL ? (size_t)(end - line) : 0;
        if (end == NULL)
            break;
        r->in = end + 2;
        bool refused = reference_refused(line, n), bdat = reference_is(line, n, "BDAT ");
        if (r->out == r->out_end && r->closed)
            break;
        bool counted = r->out_end - r->out < 3 || memcmp(r->out, "501", 3) != 0;
        if (bdat && !refused && !exchange && n < 510 && line[5] >= '0' && line[5] <= '9' &&
            counted) {
            if (!reference_bdat(r, line, n))
                break;
            continue;
        }
        int code = reference_reply(r);
        if (code == 0)
            r->wrong = "a command without a reply";
        if (code == 0 || code == 421)
            break;
        exchange = code == 334;
        if (refused && code != 500)
            r->wrong = "a command that is no line was run";
        reference_envelope(r, line, n, code);
        if (code == 354 && !reference_data(r))
            break;
    }
    if (r->wrong == NULL && r->out != r->out_end && reference_reply(r) / 100 != 5)
        r->wrong = "more replies than commands";
}

#endif
