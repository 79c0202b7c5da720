/*
 * smtp_path.c: the grammar of paths, hosts and parameters in SMTP (RFC 5321, 4.1.2 and 4.1.3), for
 * smtp.c. Strict: what an address may be is what the standard says, for what is let through here
 * ends in headers, in file names and in the logs of others.
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

/* Bytes of a domain at the start of text; 0: there is none. */
static size_t domain_size(const char *text, size_t n, bool underscores) {
    size_t i = 0, label = 0;
    for (; i < n; i++) {
        unsigned char c = (unsigned char)text[i];
        if (is_alnum(c) || (c == '_' && underscores) || (c == '-' && label > 0))
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
    return (text[0] == '[' ? literal_size(text, n) : domain_size(text, n, true)) == n;
}

static size_t dot_string_size(const char *text, size_t n) {
    size_t i = 0;
    while (i < n &&
           (is_atext((unsigned char)text[i]) || (text[i] == '.' && i > 0 && text[i - 1] != '.')))
        i++;
    return i > 0 && text[i - 1] != '.' ? i : 0;
}

static size_t quoted_string_size(const char *text, size_t n) {
    size_t i = 1;
    while (i < n && text[i] != '"') {
        if (text[i] == '\\')
            i++;
        if (i >= n || text[i] < 32 || text[i] > 126)
            return 0;
        i++;
    }
    return i < n ? i + 1 : 0;
}

/* Source routes are to be accepted and ignored (RFC 5321, appendix C): "@a,@b:". */
static bool skip_route(const char *text, size_t n, size_t *at) {
    size_t i = *at;
    while (i < n && text[i] == '@') {
        size_t size = domain_size(text + i + 1, n - i - 1, false);
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
static bk_smtp_fault path_fault(const char *text, size_t n) {
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)text[i] > 127)
            return BK_SMTP_NOT_ASCII;
    return n > BK_SMTP_PATH_MAX ? BK_SMTP_TOO_LONG : BK_SMTP_SYNTAX;
}

static bk_smtp_fault mailbox_parse(const char *text, size_t n, size_t at, bk_smtp_path *ret_path) {
    const char *mailbox = text + at;
    size_t left = n - at, domain = 0;
    size_t local =
        mailbox[0] == '"' ? quoted_string_size(mailbox, left) : dot_string_size(mailbox, left);
    size_t size = local;
    if (local == 0)
        return path_fault(text, n);
    if (size < left && mailbox[size] == '@') {
        const char *host = mailbox + ++size;
        domain = size < left && host[0] == '[' ? literal_size(host, left - size)
                                               : domain_size(host, left - size, false);
        if (domain == 0)
            return path_fault(text, n);
        size += domain;
    }
    if (size >= left || mailbox[size] != '>')
        return path_fault(text, n);
    if (local > BK_SMTP_LOCAL_MAX || domain > BK_SMTP_DOMAIN_MAX ||
        at + size + 1 > BK_SMTP_PATH_MAX)
        return BK_SMTP_TOO_LONG;
    *ret_path = (bk_smtp_path){mailbox, size, at + size + 1, domain > 0};
    return BK_SMTP_FINE;
}

bk_smtp_fault bk_smtp_path_parse(const char *text, size_t n, bk_smtp_path *ret_path) {
    size_t at = 1;
    if (n < 2 || text[0] != '<')
        return path_fault(text, n);
    if (text[1] == '>') {
        *ret_path = (bk_smtp_path){text + 1, 0, 2, false};
        return BK_SMTP_FINE;
    }
    if (!skip_route(text, n, &at) || at >= n)
        return path_fault(text, n);
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
        while (i < n && text[i] > 32 && text[i] < 127 && text[i] != '=')
            i++;
        p.value_size = i - (size_t)(p.value - text);
    }
    p.used = i;
    if (p.key_size == 0 || (p.value != NULL && p.value_size == 0) || (i < n && text[i] != ' '))
        return false;
    *ret_param = p;
    return true;
}
