/*
 * endpoint.c: the one parser of endpoints, "scheme://host:port/path?key=value". It knows no scheme;
 * every error says where it is, to the byte, and what would be right. Called by scheme.c for
 * bk_listen() and bk_connect(), and by whoever wants to look at an endpoint.
 *
 * endpoint->memory holds the text as it was given, then, each ended by NUL, its decoded parts.
 */
#include "core/serve/serve.h"

#include <stdio.h>
#include <stdlib.h>

#define EXAMPLE "tcp://127.0.0.1:7000"

typedef struct parser {
    const char *text; /* all of it */
    size_t at;        /* the byte looked at */
    char *out;        /* where the next decoded byte goes */
    bk_endpoint *endpoint;
    bk_error *error;
} parser;

#define FAIL(p, position, ...) bk_error_set((p)->error, BK_EENDPOINT, position, __VA_ARGS__)

/* ---- Characters: the C library's own depend on the locale ---- */

static bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

static bool is_letter(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static int hex_value(char c) {
    if (is_digit(c))
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* ---- Pieces of text ---- */

/* One byte, decoded, or an error. */
static int parse_byte(parser *p) {
    const char *at = p->text + p->at;
    unsigned char c = (unsigned char)*at;
    if (c < 0x20 || c == 0x7f)
        return FAIL(p, p->at, "a control character is written %%%02X", c);
    if (c != '%') {
        p->at++;
        return c;
    }
    int high = hex_value(at[1]), low = high < 0 ? -1 : hex_value(at[2]);
    if (low < 0)
        return FAIL(p, p->at, "%% is followed by two hexadecimal digits; a %% itself is %%25");
    if (high == 0 && low == 0)
        return FAIL(p, p->at, "a NUL byte cannot be part of an endpoint");
    p->at += 3;
    return high * 16 + low;
}

static bool at_end(const parser *p, const char *stops) {
    char c = p->text[p->at];
    return c == '\0' || strchr(stops, c) != NULL;
}

/* Everything up to one of stops, decoded. */
static int parse_until(parser *p, const char *stops, const char **ret_text) {
    char *from = p->out;
    while (!at_end(p, stops)) {
        int byte = parse_byte(p);
        if (byte < 0)
            return byte;
        *p->out++ = (char)byte;
    }
    *p->out++ = '\0';
    *ret_text = from;
    return 0;
}

static int parse_scheme(parser *p) {
    const char *from = p->out;
    if (p->text[0] == '\0')
        return FAIL(p, 0, "an endpoint is missing here, such as " EXAMPLE);
    if (!is_letter(p->text[0]))
        return FAIL(p, 0, "an endpoint begins with its scheme, as in " EXAMPLE);
    for (char c; (c = p->text[p->at]) != ':'; p->at++) {
        if (c == '\0')
            return FAIL(p, p->at, "a scheme is followed by a colon, as in " EXAMPLE);
        if (!is_letter(c) && !is_digit(c) && strchr("+-.", c) == NULL)
            return FAIL(p, p->at, "a scheme is letters and digits up to a colon, as in " EXAMPLE);
        *p->out++ = c >= 'A' && c <= 'Z' ? (char)(c | 0x20) : c;
    }
    *p->out++ = '\0';
    p->endpoint->scheme = from;
    p->endpoint->rest = ++p->at;
    return 0;
}

/* ---- The authority: //host:port ---- */

/* inet_pton() knows no zones (%eth0). */
static bool is_ipv6(const char *text) {
    struct in6_addr address;
    char bare[INET6_ADDRSTRLEN];
    size_t n = strcspn(text, "%");
    if (n >= sizeof bare || (text[n] == '%' && text[n + 1] == '\0'))
        return false;
    memcpy(bare, text, n);
    bare[n] = '\0';
    return inet_pton(AF_INET6, bare, &address) == 1;
}

static int parse_brackets(parser *p) {
    size_t open = p->at++;
    int code = parse_until(p, "]/?", &p->endpoint->host);
    if (code < 0)
        return code;
    if (p->text[p->at] != ']')
        return FAIL(p, open, "this bracket is not closed; an IPv6 address is written [::1]");
    if (!is_ipv6(p->endpoint->host))
        return FAIL(p, open + 1, "brackets are for an IPv6 address, as in [::1]");
    p->at++;
    if (!at_end(p, ":/?"))
        return FAIL(p, p->at, "a bracket is followed by a colon and a port, as in [::1]:7000");
    return 0;
}

static int parse_host(parser *p) {
    size_t start = p->at, n = strcspn(p->text + start, "/?");
    const char *text = p->text + start;
    const char *first = memchr(text, ':', n);
    size_t before = first == NULL ? n : (size_t)(first - text);
    const char *second = first == NULL ? NULL : memchr(first + 1, ':', n - before - 1);
    if (second != NULL && strspn(text, "0123456789abcdefABCDEF:.") == n)
        return FAIL(p, start, "an IPv6 address is put in brackets, as in [::1]:7000");
    if (second != NULL)
        return FAIL(p, start + (size_t)(second - text), "one colon is enough, before the port");
    size_t bracket = strcspn(text, "[]");
    if (bracket < before)
        return FAIL(p, start + bracket, "brackets are for an IPv6 address, as in [::1]:7000");
    return parse_until(p, ":/?", &p->endpoint->host);
}

static int parse_port(parser *p) {
    size_t start = ++p->at;
    int port = 0;
    if (at_end(p, "/?"))
        return FAIL(p, start, "a port is missing after the colon: 0 to 65535");
    for (; !at_end(p, "/?"); p->at++) {
        if (!is_digit(p->text[p->at]))
            return FAIL(p, p->at, "a port is a number: 0 to 65535");
        if (port <= 65535)
            port = port * 10 + (p->text[p->at] - '0');
    }
    if (port > 65535)
        return FAIL(p, start, "port %.*s is out of range: 0 to 65535",
                    p->at - start > 20 ? 20 : (int)(p->at - start), p->text + start);
    p->endpoint->port = port;
    return 0;
}

static int parse_authority(parser *p) {
    if (strncmp(p->text + p->at, "//", 2) != 0)
        return 0;
    p->at += 2;
    int code = p->text[p->at] == '[' ? parse_brackets(p) : parse_host(p);
    return code >= 0 && p->text[p->at] == ':' ? parse_port(p) : code;
}

/* ---- Options: ?key=value&key=value ---- */

static int parse_key(parser *p, const char **ret_key) {
    char *from = p->out;
    size_t start = p->at;
    while (!at_end(p, "=&")) {
        size_t here = p->at;
        int byte = parse_byte(p);
        if (byte < 0)
            return byte;
        if (!is_letter((char)byte) && !is_digit((char)byte) && strchr("_-.", byte) == NULL)
            return FAIL(p, here, "the name of an option is letters, digits, _, - and .");
        *p->out++ = (char)byte;
    }
    *p->out++ = '\0';
    if (*from == '\0')
        return FAIL(p, start, "an option is missing here: key=value");
    *ret_key = from;
    return 0;
}

static int parse_option(parser *p) {
    bk_endpoint *e = p->endpoint;
    size_t start = ++p->at;
    const char *key = NULL, *value = NULL;
    int code = parse_key(p, &key);
    if (code < 0)
        return code;
    if (bk_endpoint_option(e, key) != NULL)
        return FAIL(p, start, "option %.60s is given twice", key);
    if (e->option_count == BK_ENDPOINT_OPTIONS)
        return FAIL(p, start, "there are more than %d options", BK_ENDPOINT_OPTIONS);
    if (p->text[p->at] != '=')
        return FAIL(p, p->at, "option %.60s has no value: %.60s=value", key, key);
    p->at++;
    code = parse_until(p, "&", &value);
    if (code < 0)
        return code;
    e->options[e->option_count].key = key;
    e->options[e->option_count].value = value;
    e->options[e->option_count++].position = start;
    return 0;
}

static int parse_all(parser *p) {
    int code = parse_scheme(p);
    if (code >= 0)
        code = parse_authority(p);
    if (code >= 0)
        code = parse_until(p, "?", &p->endpoint->path);
    while (code >= 0 && p->text[p->at] != '\0')
        code = parse_option(p);
    return code;
}

/* ---- The public functions ---- */

int bk_endpoint_parse(bk_os *os, const char *text, bk_endpoint *ret_endpoint, bk_error *ret_error) {
    if (os == NULL || text == NULL || ret_endpoint == NULL)
        return bk_error_set(ret_error, -EINVAL, 0, "%s", bk_strerror(-EINVAL));
    /* Decoding never lengthens, and where a part gets its NUL the text has a delimiter; for the
       path it is the text's own NUL. */
    size_t n = strlen(text) + 1;
    char *memory = bk_alloc(os, 2 * n);
    if (memory == NULL)
        return bk_error_set(ret_error, -ENOMEM, 0, "%s", bk_strerror(-ENOMEM));
    memcpy(memory, text, n);
    bk_endpoint endpoint = {.memory = memory, .port = -1};
    parser p = {.text = memory, .out = memory + n, .endpoint = &endpoint, .error = ret_error};
    int code = parse_all(&p);
    if (code < 0) {
        bk_dealloc(os, memory);
        return code;
    }
    *ret_endpoint = endpoint;
    return 0;
}

void bk_endpoint_clear(bk_os *os, bk_endpoint *endpoint) {
    if (os == NULL || endpoint == NULL)
        return;
    bk_dealloc(os, endpoint->memory);
    *endpoint = (bk_endpoint){.port = -1};
}

const char *bk_endpoint_option(const bk_endpoint *endpoint, const char *key) {
    if (endpoint == NULL || key == NULL)
        return NULL;
    for (int i = 0; i < endpoint->option_count; i++)
        if (strcmp(endpoint->options[i].key, key) == 0)
            return endpoint->options[i].value;
    return NULL;
}

/* ---- For the schemes ---- */

size_t bk_endpoint_position(const bk_endpoint *endpoint, const char *key) {
    for (int i = 0; i < endpoint->option_count; i++)
        if (strcmp(endpoint->options[i].key, key) == 0)
            return endpoint->options[i].position;
    return 0;
}

int bk_endpoint_number(const bk_endpoint *endpoint, const char *key, int base, long low, long high,
                       long *ret_number, bk_error *error) {
    const char *value = bk_endpoint_option(endpoint, key);
    if (value == NULL)
        return 0;
    char *end;
    errno = 0;
    long number = strtol(value, &end, base);
    if (hex_value(*value) >= 0 && *end == '\0' && errno == 0 && number >= low && number <= high) {
        *ret_number = number;
        return 0;
    }
    size_t position = bk_endpoint_position(endpoint, key);
    position += strcspn(endpoint->memory + position, "=") + 1;
    if (base == 8)
        return bk_error_set(error, BK_EOPTION, position, "%s is an octal number: %lo to %lo", key,
                            (unsigned long)low, (unsigned long)high);
    return bk_error_set(error, BK_EOPTION, position, "%s is a number: %ld to %ld", key, low, high);
}

size_t bk_endpoint_authority_end(const bk_endpoint *endpoint) {
    size_t at = endpoint->rest;
    if (strncmp(endpoint->memory + at, "//", 2) == 0)
        at += 2;
    return at + strcspn(endpoint->memory + at, "/?");
}

char *bk_endpoint_encode(const char *text, char *room) {
    static const char digits[] = "0123456789ABCDEF";
    for (const char *from = text; *text != '\0'; text++) {
        unsigned char c = (unsigned char)*text;
        bool slashes = text == from && c == '/' && text[1] == '/'; /* not an authority */
        if (c < 0x20 || c == 0x7f || slashes || strchr("%?[]", c) != NULL) {
            *room++ = '%';
            *room++ = digits[c >> 4];
            *room++ = digits[c & 15];
        } else {
            *room++ = (char)c;
        }
    }
    *room = '\0';
    return room;
}

char *bk_endpoint_format(bk_os *os, const char *scheme, const char *path) {
    char *text = bk_alloc(os, strlen(scheme) + sizeof ":" + 3 * strlen(path));
    if (text != NULL)
        bk_endpoint_encode(path, stpcpy(stpcpy(text, scheme), ":"));
    return text;
}
