/*
 * smtp_response.c: reads the replies of a server (RFC 5321, 4.2) out of what arrives, for
 * smtp_client.c. The server may be hostile: lines end in CRLF, codes are codes, all lines of a
 * reply have the same one, and there is a limit to everything. What is not to be printed becomes
 * "?".
 */
#include "core/protocol/smtp_response.h"

/* A code is three digits, of which the first is a class that SMTP has and the second a category. */
static bool code_valid(const char *line) {
    return line[0] >= '2' && line[0] <= '5' && line[1] >= '0' && line[1] <= '5' && line[2] >= '0' &&
           line[2] <= '9';
}

static void make_printable(char *text, size_t n) {
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)text[i] < 32 || text[i] == 127)
            text[i] = '?';
}

/* A line without its CRLF; 1: it is the last. */
static int line_parse(bk_os *os, bk_smtp_response *r, char *line, size_t n) {
    bool last = n == 3 || (n > 3 && line[3] == ' ');
    if (n < 3 || !code_valid(line) || (!last && line[3] != '-') || memchr(line, '\r', n) != NULL)
        return -EPROTO;
    if (r->lines > 0 && memcmp(line, r->text.data, 3) != 0)
        return -EPROTO;
    size_t at = n > 3 ? 4 : 3;
    make_printable(line + at, n - at);
    if (++r->lines > BK_SMTP_RESPONSE_LINES_MAX ||
        r->text.used + 4 + (n - at) > BK_SMTP_RESPONSE_MAX)
        return -EPROTO;
    int code = r->lines == 1 ? bk_buffer_add(os, &r->text, line, 3) : 0;
    if (code == 0)
        code = bk_buffer_add(os, &r->text, r->lines == 1 ? " " : "\n", 1);
    if (code == 0)
        code = bk_buffer_add(os, &r->text, line + at, n - at);
    if (code == 0 && last)
        code = bk_buffer_add(os, &r->text, "", 1);
    return code < 0 ? code : last;
}

static void begin_anew(bk_smtp_response *r) {
    r->text.used = 0;
    r->lines = 0;
    r->complete = false;
}

int bk_smtp_response_take(bk_os *os, bk_smtp_response *r, const char *data, size_t n,
                          size_t *ret_used) {
    size_t used = 0;
    if (r->complete)
        begin_anew(r);
    while (used < n && !r->complete) {
        const char *from = data + used, *end = memchr(from, '\n', n - used);
        size_t size = end != NULL ? (size_t)(end - from) + 1 : n - used;
        if (r->line.used + size > BK_SMTP_RESPONSE_LINE_MAX)
            return -EPROTO;
        int code = bk_buffer_add(os, &r->line, from, size);
        if (code < 0)
            return code;
        used += size;
        if (end == NULL)
            break;
        if (r->line.used < 2 || r->line.data[r->line.used - 2] != '\r')
            return -EPROTO;
        code = line_parse(os, r, r->line.data, r->line.used - 2);
        if (code < 0)
            return code;
        r->line.used = 0;
        r->complete = code == 1;
    }
    *ret_used = used;
    return r->complete;
}

void bk_smtp_response_clear(bk_os *os, bk_smtp_response *r) {
    bk_buffer_clear(os, &r->line);
    bk_buffer_clear(os, &r->text);
    begin_anew(r);
}
