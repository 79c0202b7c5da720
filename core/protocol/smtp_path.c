/*
 * smtp_path.c: the grammar of paths, hosts and parameters in SMTP (RFC 5321, 4.1.2 and 4.1.3),
 * also beyond ASCII (RFC 6531). For the server and the client. Strict: what an address may be is
 * what the standard says, for what is let through here ends in headers, in file names and in the
 * logs of others.
 */
#include "core/protocol/smtp_path.h"

static bool is_alnum(unsigned char c) {
    return (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z');
}

static bool is_atext(unsigned char c) {
    return is_alnum(c) || (c != 0 && strchr("!#$%&'*+-/=?^_`{|}~", c) != NULL);
}

bool bk_smtp_is(const char *text, size_t n, const char *word) {
    size_t i = 0;
    for (; i < n && word[i] != '\0'; i++) {
        char c = text[i];
        if (c >= 'a' && c <= 'z')
            c = (char)(c - 32);
        if (c != word[i])
            return false;
    }
    return i == n && word[i] == '\0';
}

/* The code point of a sequence of 2 to 4 bytes; 0: it is none, or longer than it has to be. */
static uint32_t utf8_decode(const unsigned char *text, size_t n, size_t *ret_size) {
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    size_t size = text[0] >= 0xF0 ? 4 : text[0] >= 0xE0 ? 3 : 2;
    if (text[0] < 0xC2 || text[0] > 0xF4 || n < size)
        return 0;
    uint32_t point = text[0] & (0xFFU >> (size + 1));
    for (size_t i = 1; i < size; i++) {
        if ((text[i] & 0xC0) != 0x80)
            return 0;
        point = point << 6 | (text[i] & 0x3FU);
    }
    bool surrogate = point >= 0xD800 && point <= 0xDFFF;
    *ret_size = size;
    return point < least[size] || surrogate || point > 0x10FFFF ? 0 : point;
}

/* Bytes of the character beyond ASCII at the start of text, in UTF-8; 0: it is none, or one that no
   address has: a control character, a space, what looks like a dot. */
static size_t utf8_size(const char *text, size_t n) {
    static const struct {
        uint32_t from, to;
    } never[] = {
        {0x0000, 0x00A0},                   /* nothing; C1; a space */
        {0x1680, 0x1680}, {0x2000, 0x200B}, /* spaces */
        {0x2028, 0x202F}, {0x205F, 0x206F}, /* lines, directions, what is not seen */
        {0x3000, 0x3000}, {0x3002, 0x3002}, {0xFF0E, 0xFF0E}, {0xFF61, 0xFF61}, /* dots */
        {0xFDD0, 0xFDEF}, {0xFEFF, 0xFEFF}, {0xFFF9, 0xFFFF},
    };
    size_t size = 0;
    uint32_t point = n > 0 ? utf8_decode((const unsigned char *)text, n, &size) : 0;
    for (size_t i = 0; i < sizeof never / sizeof *never; i++)
        if (point >= never[i].from && point <= never[i].to)
            return 0;
    return (point & 0xFFFE) == 0xFFFE ? 0 : size;
}

bool bk_utf8_valid(const char *text, size_t n) {
    size_t more = 1;
    for (size_t i = 0; i < n; i += more) {
        more = 1;
        if ((unsigned char)text[i] > 127 &&
            utf8_decode((const unsigned char *)text + i, n - i, &more) == 0)
            return false;
    }
    return true;
}

/* Bytes of a domain at the start of text; 0: there is none. A label counts in characters. */
static size_t domain_size(const char *text, size_t n, bool underscores, bool utf8) {
    size_t i = 0, label = 0;
    for (; i < n; i++) {
        unsigned char c = (unsigned char)text[i];
        size_t more = c > 127 && utf8 ? utf8_size(text + i, n - i) : 0;
        if (more > 0) {
            label++;
            i += more - 1;
        } else if (is_alnum(c) || (c == '_' && underscores) || (c == '-' && label > 0))
            label++;
        else if (c == '.' && label > 0 && text[i - 1] != '-')
            label = 0;
        else
            break;
        if (label > BK_SMTP_LABEL_MAX)
            return 0;
    }
    return label > 0 && text[i - 1] != '-' ? i : 0;
}

/* Bytes of an address literal: "[" dcontent "]". */
static size_t literal_size(const char *text, size_t n) {
    if (n < 3 || text[0] != '[')
        return 0;
    size_t i = 1;
    while (i < n && text[i] > 32 && text[i] < 127 && text[i] != '[' && text[i] != ']' &&
           text[i] != '\\')
        i++;
    return i > 1 && i < n && text[i] == ']' ? i + 1 : 0;
}

bool bk_smtp_host_valid(const char *text, size_t n) {
    if (n == 0 || n > BK_SMTP_DOMAIN_MAX)
        return false;
    return (text[0] == '[' ? literal_size(text, n) : domain_size(text, n, true, false)) == n;
}

static size_t dot_string_size(const char *text, size_t n) {
    size_t i = 0, more = 1;
    for (; i < n && more > 0; i += more) {
        unsigned char c = (unsigned char)text[i];
        if (c > 127)
            more = utf8_size(text + i, n - i);
        else
            more = is_atext(c) || (c == '.' && i > 0 && text[i - 1] != '.');
    }
    return i > 0 && text[i - 1] != '.' ? i : 0;
}

static size_t quoted_string_size(const char *text, size_t n) {
    size_t i = 1;
    while (i < n && text[i] != '"') {
        unsigned char c = (unsigned char)text[i];
        size_t more = c > 127 ? utf8_size(text + i, n - i) : 1;
        if (c == '\\')
            c = ++i < n ? (unsigned char)text[i] : 0;
        if (c < 32 || c == 127 || more == 0 || (more == 1 && c > 127))
            return 0;
        i += more;
    }
    return i < n ? i + 1 : 0;
}

/* Source routes are to be accepted and ignored (RFC 5321, appendix C): "@a,@b:". */
static bool skip_route(const char *text, size_t n, size_t *at) {
    size_t i = *at;
    while (i < n && text[i] == '@') {
        size_t size = domain_size(text + i + 1, n - i - 1, false, true);
        i += 1 + size;
        if (size == 0 || i >= n)
            return false;
        if (text[i] == ':') {
            *at = i + 1;
            return true;
        }
        if (text[i++] != ',')
            return false;
    }
    return i == *at;
}

/* What is wrong with a path that cannot be read. */
static bk_smtp_fault path_fault(size_t n) {
    return n > BK_SMTP_PATH_MAX ? BK_SMTP_TOO_LONG : BK_SMTP_SYNTAX;
}

static bk_smtp_fault mailbox_parse(const char *text, size_t n, size_t at, bk_smtp_path *ret_path) {
    const char *mailbox = text + at;
    size_t left = n - at, domain = 0;
    size_t local =
        mailbox[0] == '"' ? quoted_string_size(mailbox, left) : dot_string_size(mailbox, left);
    size_t size = local;
    if (local == 0)
        return path_fault(n);
    if (size < left && mailbox[size] == '@') {
        const char *host = mailbox + ++size;
        domain = size < left && host[0] == '[' ? literal_size(host, left - size)
                                               : domain_size(host, left - size, false, true);
        if (domain == 0)
            return path_fault(n);
        size += domain;
    }
    if (size >= left || mailbox[size] != '>')
        return path_fault(n);
    if (local > BK_SMTP_LOCAL_MAX || domain > BK_SMTP_DOMAIN_MAX ||
        at + size + 1 > BK_SMTP_PATH_MAX)
        return BK_SMTP_TOO_LONG;
    bool utf8 = false;
    for (size_t i = 0; i < at + size && !utf8; i++)
        utf8 = (unsigned char)text[i] > 127;
    *ret_path = (bk_smtp_path){mailbox, size, at + size + 1, domain > 0, utf8};
    return BK_SMTP_FINE;
}

bk_smtp_fault bk_smtp_path_parse(const char *text, size_t n, bk_smtp_path *ret_path) {
    size_t at = 1;
    if (n < 2 || text[0] != '<')
        return path_fault(n);
    if (text[1] == '>') {
        *ret_path = (bk_smtp_path){text + 1, 0, 2, false, false};
        return BK_SMTP_FINE;
    }
    if (!skip_route(text, n, &at) || at >= n)
        return path_fault(n);
    return mailbox_parse(text, n, at, ret_path);
}

bool bk_smtp_param_parse(const char *text, size_t n, bk_smtp_param *ret_param) {
    bk_smtp_param p = {.key = text};
    size_t i = 0;
    while (i < n && (is_alnum((unsigned char)text[i]) || (text[i] == '-' && i > 0)))
        i++;
    p.key_size = i;
    if (i < n && text[i] == '=') {
        p.value = text + ++i;
        for (size_t more = 1; i < n && more > 0; i += more) {
            unsigned char c = (unsigned char)text[i];
            more = c > 127 ? utf8_size(text + i, n - i) : c > 32 && c != 127 && c != '=';
            p.utf8 |= c > 127;
        }
        p.value_size = i - (size_t)(p.value - text);
    }
    p.used = i;
    if (p.key_size == 0 || (p.value != NULL && p.value_size == 0) || (i < n && text[i] != ' '))
        return false;
    *ret_param = p;
    return true;
}

static int hex_digit(char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

bool bk_smtp_xtext_decode(const char *text, size_t n, char *ret_text) {
    size_t used = 0;
    for (size_t i = 0; i < n; i++) {
        char c = text[i];
        if (c == '+') {
            int high = i + 2 < n ? hex_digit(text[i + 1]) : -1;
            int low = i + 2 < n ? hex_digit(text[i + 2]) : -1;
            if (high < 0 || low < 0)
                return false;
            c = (char)(high * 16 + low);
            i += 2;
        } else if (c == '=') {
            return false;
        }
        if ((unsigned char)c < 32 || c == 127)
            return false;
        ret_text[used++] = c;
    }
    ret_text[used] = '\0';
    return true;
}
