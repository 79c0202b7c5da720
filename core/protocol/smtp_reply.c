/*
 * smtp_reply.c: replies (RFC 5321, 4.2) with their enhanced status codes (RFC 2034, RFC 3463): our
 * own, and those of hooks, of which nothing but a proper reply gets out. For the other parts of the
 * server.
 */
#include "core/protocol/smtp_session.h"

void bk_smtp_send(bk_smtp_session *s, const char *text, size_t n) {
    int r = bk_machine_send(&s->machine, text, n, BK_COPY, NULL);
    if (r < 0)
        bk_machine_abort(&s->machine, r); /* its replies would no longer fit its commands */
}

/* Whether this refusal is the last one. */
static bool reply_counts(bk_smtp_session *s, char class) {
    if (class != '5' || ++s->errors < s->config.max_errors)
        return false;
    bk_smtp_hang_up(s, "too many errors");
    return true;
}

void bk_smtp_reply(bk_smtp_session *s, const char *line) {
    char text[BK_SMTP_REPLY_MAX];
    size_t n = strnlen(line, sizeof text - 2);
    if (reply_counts(s, line[0]))
        return;
    memcpy(text, line, n);
    memcpy(text + n, "\r\n", 2);
    bk_smtp_send(s, text, n + 2);
    if (strncmp(line, "421", 3) == 0)
        bk_machine_close(&s->machine);
}

/* One to three digits and then `end`; returns what follows, NULL when it is not so. */
static const char *status_part(const char *text, char end) {
    size_t digits = strspn(text, "0123456789");
    return digits >= 1 && digits <= 3 && text[digits] == end ? text + digits + 1 : NULL;
}

/* Bytes of the enhanced status code in "250 2.1.0 …", with the space behind it; 0: there is none.
 */
static size_t enhanced_size(const char *text) {
    if (text[4] != text[0] || text[5] != '.')
        return 0;
    const char *end = status_part(text + 6, '.');
    end = end != NULL ? status_part(end, ' ') : NULL;
    return end != NULL ? (size_t)(end - text) - 4 : 0;
}

/* Whether a text is a reply (becket-smtp.h). */
static bool reply_valid(const char *text) {
    return (text[0] == '2' || text[0] == '4' || text[0] == '5') && text[1] >= '0' &&
           text[1] <= '5' && text[2] >= '0' && text[2] <= '9' && text[3] == ' ';
}

char bk_smtp_reply_class(const char *text) {
    return reply_valid(text) ? text[0] : '4';
}

/* "250", then "-" or " ", then the status, then the line: what is too long for it is cut, and what
   has no place in it becomes a question mark. */
static void relay_line(bk_smtp_session *s, const char *code, bool last, const char *status,
                       size_t status_size, const char *line, size_t n) {
    char text[BK_SMTP_REPLY_MAX];
    size_t at = 4 + status_size;
    memcpy(text, code, 3);
    text[3] = last ? ' ' : '-';
    memcpy(text + 4, status, status_size);
    n = n < sizeof text - 2 - at ? n : sizeof text - 2 - at;
    for (size_t i = 0; i < n; i++)
        text[at + i] = line[i];
    at += n;
    for (size_t i = 4; i < at; i++)
        if (text[i] < 32 || text[i] > 126)
            text[i] = '?';
    memcpy(text + at, "\r\n", 2);
    bk_smtp_send(s, text, at + 2);
}

char bk_smtp_relay(bk_smtp_session *s, const char *text, bool plain) {
    char generic[] = "2.0.0 ";
    if (!reply_valid(text))
        text = "451 4.3.0 local error";
    if (reply_counts(s, text[0]))
        return text[0];
    size_t own = plain ? 0 : enhanced_size(text), status_size = own;
    const char *status = text + 4, *line = text + 4 + own;
    generic[0] = text[0];
    if (own == 0 && !plain) {
        status = generic;
        status_size = sizeof generic - 1;
    }
    for (bool last = false; !last;) {
        size_t n = strcspn(line, "\n");
        last = line[n] == '\0';
        relay_line(s, text, last, status, status_size, line,
                   n > 0 && line[n - 1] == '\r' ? n - 1 : n);
        line += n + 1;
    }
    if (strncmp(text, "421", 3) == 0)
        bk_machine_close(&s->machine);
    return text[0];
}
