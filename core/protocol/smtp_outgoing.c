/*
 * smtp_outgoing.c: a message that the client has been given: its data, checked when it is queued
 * and sent without being copied, and the replies for its recipients. For smtp_mail.c.
 *
 * A CR or LF that stands alone never gets out, but as BINARYMIME: servers that disagree on what it
 * means would find different messages ("SMTP smuggling").
 */
#include "core/protocol/smtp_client.h"

/* ---- Checking ---- */

static bool has_eight_bit(const char *data, size_t n) {
    const uint64_t high = UINT64_C(0x8080808080808080);
    size_t i = 0;
    uint64_t word, seen = 0;
    for (; i + sizeof word <= n; i += sizeof word) {
        memcpy(&word, data + i, sizeof word);
        seen |= word;
    }
    for (; i < n; i++)
        seen |= (unsigned char)data[i];
    return (seen & high) != 0;
}

/* Whether all CR and LF are CRLF; and whether a line begins with a dot. */
static bool lines_valid(const char *data, size_t n, bool *ret_dots) {
    const char *at = data, *end = data + n;
    *ret_dots = false;
    while (at < end) {
        const char *lf = memchr(at, '\n', (size_t)(end - at));
        size_t text =
            lf != NULL && lf > at && lf[-1] == '\r' ? (size_t)(lf - at) - 1 : (size_t)(end - at);
        if ((lf != NULL && at + text == end) || memchr(at, '\r', text) != NULL)
            return false;
        *ret_dots |= *at == '.';
        at = lf != NULL ? lf + 1 : end;
    }
    return true;
}

/* The same with CRLF for each CR or LF that stands alone. */
static int make_whole(bk_smtp_message *m) {
    bk_buffer whole = {NULL, 0, 0};
    int r = bk_buffer_reserve(m->os, &whole, m->size + 1);
    for (size_t i = 0; i < m->size && r == 0; i++) {
        char c = m->data[i];
        bool pair = c == '\r' && i + 1 < m->size && m->data[i + 1] == '\n';
        if (c == '\r' || c == '\n')
            r = bk_buffer_add(m->os, &whole, "\r\n", 2);
        else
            r = bk_buffer_add(m->os, &whole, &c, 1);
        i += pair;
    }
    if (r < 0) {
        bk_buffer_clear(m->os, &whole);
        return r;
    }
    bk_dealloc(m->os, m->data);
    m->data = whole.data;
    m->size = whole.used;
    m->room = whole.room;
    return 0;
}

int bk_smtp_outgoing_check(bk_smtp_outgoing *o, bool whole) {
    bk_smtp_message *m = o->message;
    if (m->size == 0)
        return 0;
    o->eight_bit = has_eight_bit(m->data, m->size);
    if (m->body == BK_SMTP_BINARYMIME || lines_valid(m->data, m->size, &o->dots))
        return 0;
    if (!whole)
        return -EINVAL;
    int r = make_whole(m);
    if (r == 0)
        (void)lines_valid(m->data, m->size, &o->dots);
    return r;
}

/* ---- Life ---- */

/* Room for the replies of so many. */
static int reserve_replies(bk_smtp_outgoing *o, size_t count) {
    bk_os *os = o->message->os;
    const char **replies = (const char **)(void *)os->resize(os, (void *)(uintptr_t)o->replies,
                                                             count * sizeof *replies);
    if (replies == NULL)
        return -ENOMEM;
    o->replies = replies;
    return 0;
}

int bk_smtp_outgoing_new(bk_os *os, bk_smtp_message *message, bk_smtp_outgoing **ret_outgoing) {
    size_t count = message->recipient_count;
    bk_smtp_outgoing *o = bk_alloc_zero(os, sizeof *o);
    if (o == NULL)
        return -ENOMEM;
    o->refs = 1;
    o->message = message;
    if (count > 0 && reserve_replies(o, count) < 0) {
        bk_dealloc(os, o);
        return -ENOMEM;
    }
    for (size_t i = 0; i < count; i++)
        o->replies[i] = NULL;
    *ret_outgoing = o;
    return 0;
}

int bk_smtp_outgoing_to(bk_smtp_outgoing *o, const bk_smtp_recipient *recipient) {
    bk_smtp_message *m = o->message;
    const char *original = recipient->original;
    int utf8 = m->utf8;
    int r = reserve_replies(o, m->recipient_count + 1);
    if (r == 0)
        r = bk_smtp_message_to(m, recipient->address);
    if (r < 0)
        return r;
    bk_smtp_recipient *place = &m->recipients[--m->recipient_count];
    place->notify = recipient->notify;
    if (original != NULL)
        place->original = bk_smtp_text_new(m->os, original, strlen(original));
    if (m->utf8 == utf8 && (original == NULL || place->original != NULL)) {
        o->replies[m->recipient_count++] = NULL;
        return 0;
    }
    r = m->utf8 == utf8 ? -ENOMEM : -EINVAL;
    m->utf8 = utf8;
    bk_smtp_recipient_clear(m->os, place);
    return r;
}

/* What is told where there is no memory for the server's own words: the class is what counts. */
static const char *const plain_replies[] = {"250 2.0.0 ok", "451 4.3.0 refused for now",
                                            "550 5.0.0 refused"};

static bool is_plain(const char *reply) {
    return reply == plain_replies[0] || reply == plain_replies[1] || reply == plain_replies[2];
}

static const char *plain_reply(const char *reply) {
    return plain_replies[reply[0] == '2' ? 0 : reply[0] == '4' ? 1 : 2];
}

void bk_smtp_outgoing_drop(bk_smtp_outgoing *o) {
    bk_os *os = o->message->os;
    for (size_t i = 0; o->replies != NULL && i < o->message->recipient_count; i++)
        if (o->replies[i] != o->final && !is_plain(o->replies[i]))
            bk_dealloc(os, (char *)(uintptr_t)o->replies[i]);
    bk_dealloc(os, (void *)(uintptr_t)o->replies);
    bk_dealloc(os, o->final);
    bk_dealloc(os, o);
}

void bk_smtp_outgoing_unref(bk_smtp_outgoing *o) {
    if (--o->refs > 0)
        return;
    bk_smtp_message *message = o->message;
    bk_smtp_outgoing_drop(o);
    bk_smtp_message_free(message);
}

/* ---- Replies ---- */

void bk_smtp_outgoing_reply(bk_smtp_outgoing *o, size_t recipient, const char *reply) {
    char *copy = bk_smtp_text_new(o->message->os, reply, strlen(reply));
    o->replies[recipient] = copy != NULL ? copy : plain_reply(reply);
}

bool bk_smtp_outgoing_known(const bk_smtp_outgoing *o) {
    for (size_t i = 0; i < o->message->recipient_count; i++)
        if (o->replies[i] == NULL)
            return false;
    return true;
}

void bk_smtp_outgoing_reply_all(bk_smtp_outgoing *o, const char *reply) {
    if (o->final == NULL)
        o->final = bk_smtp_text_new(o->message->os, reply, strlen(reply));
    for (size_t i = 0; i < o->message->recipient_count; i++)
        if (o->replies[i] == NULL)
            o->replies[i] = o->final != NULL ? o->final : plain_reply(reply);
}

/* ---- Sending ---- */

static bool lacks_end(const bk_smtp_message *m) {
    return m->body != BK_SMTP_BINARYMIME && m->size > 0 && m->data[m->size - 1] != '\n';
}

size_t bk_smtp_outgoing_size(const bk_smtp_outgoing *o) {
    return o->message->size + (lacks_end(o->message) ? 2 : 0);
}

static void release(void *arg) {
    bk_smtp_outgoing_unref(arg);
}

/* The piece that begins at `at`: up to a dot that is to be doubled, or as much as may go at once.
 */
static size_t piece_size(const bk_smtp_outgoing *o) {
    const bk_smtp_message *m = o->message;
    size_t n = m->size - o->at < BK_SMTP_PIECE ? m->size - o->at : BK_SMTP_PIECE;
    const char *from = m->data + o->at, *end = from + n;
    if (!o->dots || m->body == BK_SMTP_BINARYMIME)
        return n;
    for (const char *dot = from + 1; dot < end; dot++) {
        dot = memchr(dot, '.', (size_t)(end - dot));
        if (dot == NULL)
            break;
        if (dot[-1] == '\n')
            return (size_t)(dot - from);
    }
    return n;
}

static bool begins_with_dot(const bk_smtp_outgoing *o) {
    const char *data = o->message->data;
    return o->dots && data[o->at] == '.' && (o->at == 0 || data[o->at - 1] == '\n');
}

static int send_piece(bk_smtp_outgoing *o, bk_machine *m) {
    const char *data = o->message->data + o->at;
    size_t n = piece_size(o);
    int r = begins_with_dot(o) ? bk_machine_send(m, ".", 1, BK_STATIC, NULL) : 0;
    if (r < 0)
        return r;
    o->at += n;
    if (n < BK_SMTP_PIECE_COPIED)
        return bk_machine_send(m, data, n, BK_COPY, NULL);
    o->refs++;
    return bk_machine_send(m, data, n, release, o);
}

int bk_smtp_outgoing_send(bk_smtp_outgoing *o, bk_machine *m) {
    static const char end[] = "\r\n.\r\n";
    if (o->at < o->message->size) {
        int r = send_piece(o, m);
        if (r < 0 || o->at < o->message->size)
            return r;
    }
    if (o->message->body == BK_SMTP_BINARYMIME)
        return 1;
    size_t skip = lacks_end(o->message) ? 0 : 2;
    int r = bk_machine_send(m, end + skip, sizeof end - 1 - skip, BK_STATIC, NULL);
    return r < 0 ? r : 1;
}
