/*
 * test_endpoint.c: the parser of endpoints: what it makes of good ones, where and how it refuses
 * bad ones, and that nothing at all makes it crash or leak.
 */
#include "check.h"
#include "core/os/os.h"
#include "core/serve/serve.h"

#include <stdint.h>

static const struct {
    const char *text, *scheme, *host;
    int port;
    const char *path, *options; /* options: "key=value;key=value;" */
} good[] = {
    {"tcp://127.0.0.1:7000", "tcp", "127.0.0.1", 7000, "", ""},
    {"TCP://Host.Example:0", "tcp", "Host.Example", 0, "", ""},
    {"tcp://[::1]:65535", "tcp", "::1", 65535, "", ""},
    {"tcp://[fe80::1%25eth0]:80", "tcp", "fe80::1%eth0", 80, "", ""},
    {"tcp://[::ffff:127.0.0.1]", "tcp", "::ffff:127.0.0.1", -1, "", ""},
    {"tcp://:7000", "tcp", "", 7000, "", ""},
    {"tcp://*:7000", "tcp", "*", 7000, "", ""},
    {"tcp://host", "tcp", "host", -1, "", ""},
    {"tcp://host:00080/", "tcp", "host", 80, "/", ""},
    {"tcp://h:1?backlog=100&reuse_port=1", "tcp", "h", 1, "", "backlog=100;reuse_port=1;"},
    {"tcp://ho%73t:1", "tcp", "host", 1, "", ""},
    {"unix:echo.sock", "unix", NULL, -1, "echo.sock", ""},
    {"unix:/run/my%20server?mode=600", "unix", NULL, -1, "/run/my server", "mode=600;"},
    {"unix:///run/x", "unix", "", -1, "/run/x", ""},
    {"unix:a b#c:d@e[f]", "unix", NULL, -1, "a b#c:d@e[f]", ""},
    {"unix:%3F%25%0a", "unix", NULL, -1, "?%\n", ""},
    {"unix:\xc3\xa9", "unix", NULL, -1, "\xc3\xa9", ""},
    {"unix:", "unix", NULL, -1, "", ""},
    {"stdio:", "stdio", NULL, -1, "", ""},
    {"fd:3", "fd", NULL, -1, "3", ""},
    {"x25+tls-1.0:12/34//56", "x25+tls-1.0", NULL, -1, "12/34//56", ""},
    {"quic://h:1/a/b?k=", "quic", "h", 1, "/a/b", "k=;"},
    {"s:?a=b=c?d&e.f-g_h=%26", "s", NULL, -1, "", "a=b=c?d;e.f-g_h=&;"},
    {"s:?%61=1", "s", NULL, -1, "", "a=1;"},
    {"s:?a=1&b=2&c=3&d=4&e=5&f=6&g=7&h=8&i=9&j=0&k=1&l=2&m=3&n=4&o=5&p=6", "s", NULL, -1, "",
     "a=1;b=2;c=3;d=4;e=5;f=6;g=7;h=8;i=9;j=0;k=1;l=2;m=3;n=4;o=5;p=6;"},
};

static const struct {
    const char *text;
    size_t position;
    const char *error;
} bad[] = {
    {"", 0, "an endpoint is missing here, such as tcp://127.0.0.1:7000"},
    {"127.0.0.1:80", 0, "an endpoint begins with its scheme, as in tcp://127.0.0.1:7000"},
    {"//host", 0, "an endpoint begins with its scheme, as in tcp://127.0.0.1:7000"},
    {":", 0, "an endpoint begins with its scheme, as in tcp://127.0.0.1:7000"},
    {"echo", 4, "a scheme is followed by a colon, as in tcp://127.0.0.1:7000"},
    {"tc p:", 2, "a scheme is letters and digits up to a colon, as in tcp://127.0.0.1:7000"},
    {"tcp//h:1", 3, "a scheme is letters and digits up to a colon, as in tcp://127.0.0.1:7000"},
    {"tcp://127.0.0.1:99999", 16, "port 99999 is out of range: 0 to 65535"},
    {"tcp://h:65536/", 8, "port 65536 is out of range: 0 to 65535"},
    {"tcp://h:99999999999999999999999999", 8,
     "port 99999999999999999999 is out of range: 0 to 65535"},
    {"tcp://h:", 8, "a port is missing after the colon: 0 to 65535"},
    {"tcp://h:?a=1", 8, "a port is missing after the colon: 0 to 65535"},
    {"tcp://h:http", 8, "a port is a number: 0 to 65535"},
    {"tcp://h:80x", 10, "a port is a number: 0 to 65535"},
    {"tcp://h:-1", 8, "a port is a number: 0 to 65535"},
    {"tcp://::1", 6, "an IPv6 address is put in brackets, as in [::1]:7000"},
    {"tcp://fe80::1:80/", 6, "an IPv6 address is put in brackets, as in [::1]:7000"},
    {"tcp://host:80:90", 13, "one colon is enough, before the port"},
    {"tcp://[::1", 6, "this bracket is not closed; an IPv6 address is written [::1]"},
    {"tcp://[::1/]", 6, "this bracket is not closed; an IPv6 address is written [::1]"},
    {"tcp://[]:1", 7, "brackets are for an IPv6 address, as in [::1]"},
    {"tcp://[127.0.0.1]:1", 7, "brackets are for an IPv6 address, as in [::1]"},
    {"tcp://[::1%25]:1", 7, "brackets are for an IPv6 address, as in [::1]"},
    {"tcp://[::12345]:1", 7, "brackets are for an IPv6 address, as in [::1]"},
    {"tcp://[::1]80", 11, "a bracket is followed by a colon and a port, as in [::1]:7000"},
    {"tcp://h]:1", 7, "brackets are for an IPv6 address, as in [::1]:7000"},
    {"tcp://a[b", 7, "brackets are for an IPv6 address, as in [::1]:7000"},
    {"unix:a%", 6, "% is followed by two hexadecimal digits; a % itself is %25"},
    {"unix:a%4", 6, "% is followed by two hexadecimal digits; a % itself is %25"},
    {"unix:a%g0", 6, "% is followed by two hexadecimal digits; a % itself is %25"},
    {"tcp://[fe80::1%eth0]:80", 14, "% is followed by two hexadecimal digits; a % itself is %25"},
    {"unix:a%00b", 6, "a NUL byte cannot be part of an endpoint"},
    {"tcp://%00:1", 6, "a NUL byte cannot be part of an endpoint"},
    {"unix:a?k=%00", 9, "a NUL byte cannot be part of an endpoint"},
    {"unix:a\nb", 6, "a control character is written %0A"},
    {"unix:a\x7f", 6, "a control character is written %7F"},
    {"tcp://h\t:1", 7, "a control character is written %09"},
    {"unix:a?", 7, "an option is missing here: key=value"},
    {"unix:a?=1", 7, "an option is missing here: key=value"},
    {"unix:a?k=1&", 11, "an option is missing here: key=value"},
    {"unix:a?k=1&&l=2", 11, "an option is missing here: key=value"},
    {"unix:a?mode", 11, "option mode has no value: mode=value"},
    {"unix:a?mode&x=1", 11, "option mode has no value: mode=value"},
    {"unix:a?m de=1", 8, "the name of an option is letters, digits, _, - and ."},
    {"unix:a?m%20=1", 8, "the name of an option is letters, digits, _, - and ."},
    {"unix:a?mode=1&mode=1", 14, "option mode is given twice"},
    {"unix:a?mode=1&m%6fde=1", 14, "option mode is given twice"},
    {"s:?a=1&b=2&c=3&d=4&e=5&f=6&g=7&h=8&i=9&j=0&k=1&l=2&m=3&n=4&o=5&p=6"
     "&q=7&r=8&s=9&t=0&u=1&v=2&w=3&x=4&y=5",
     99, "there are more than 24 options"},
};

/* ---- An allocator that counts, and that fails on demand ---- */

typedef struct counting_os {
    bk_os os;
    int live, fail;
} counting_os;

static void *counting_resize(bk_os *os, void *old, size_t n) {
    counting_os *self = (counting_os *)os;
    if (n > 0 && self->fail)
        return NULL;
    self->live += (n > 0) - (old != NULL);
    return bk_os_default()->resize(bk_os_default(), old, n);
}

static counting_os counting(void) {
    counting_os c = {.os = *bk_os_default()};
    c.os.resize = counting_resize;
    return c;
}

/* ---- Tests ---- */

static void check_endpoint(const bk_endpoint *e, int i) {
    char options[256] = "";
    CHECK_STR(e->scheme, good[i].scheme);
    CHECK(good[i].host != NULL || e->host == NULL);
    if (good[i].host != NULL)
        CHECK_STR(e->host, good[i].host);
    CHECK_INT(e->port, good[i].port);
    CHECK_STR(e->path, good[i].path);
    CHECK_INT(e->rest, strlen(good[i].scheme) + 1);
    for (int o = 0; o < e->option_count; o++) {
        size_t n = strlen(options);
        snprintf(options + n, sizeof options - n, "%s=%s;", e->options[o].key, e->options[o].value);
        CHECK_STR(bk_endpoint_option(e, e->options[o].key), e->options[o].value);
        CHECK(strchr("?&", good[i].text[e->options[o].position - 1]) != NULL);
    }
    CHECK_STR(options, good[i].options);
    CHECK(bk_endpoint_option(e, "absent") == NULL);
}

static void good_ones(void) {
    counting_os c = counting();
    for (int i = 0; i < COUNT(good); i++) {
        bk_endpoint e;
        bk_error error = {.code = 77};
        int code = bk_endpoint_parse(&c.os, good[i].text, &e, &error);
        if (code < 0)
            printf("# %s: %s at %zu\n", good[i].text, error.text, error.position);
        CHECK_INT(code, 0);
        CHECK_INT(error.code, 77);
        if (code < 0)
            continue;
        check_endpoint(&e, i);
        bk_endpoint_clear(&c.os, &e);
        CHECK(e.memory == NULL && e.option_count == 0);
    }
    CHECK_INT(c.live, 0);
}

static void bad_ones(void) {
    counting_os c = counting();
    for (int i = 0; i < COUNT(bad); i++) {
        bk_endpoint e = {.port = 77};
        bk_error error = {0};
        CHECK_INT(bk_endpoint_parse(&c.os, bad[i].text, &e, &error), BK_EENDPOINT);
        CHECK_INT(error.code, BK_EENDPOINT);
        if (error.position != bad[i].position)
            printf("# %s: %s\n", bad[i].text, error.text);
        CHECK_INT(error.position, bad[i].position);
        CHECK_STR(error.text, bad[i].error);
        CHECK_INT(e.port, 77);
        CHECK_INT(bk_endpoint_parse(&c.os, bad[i].text, &e, NULL), BK_EENDPOINT);
    }
    CHECK_INT(c.live, 0);
}

static void arguments(void) {
    bk_os *os = bk_os_default();
    bk_endpoint e = {.port = 77};
    bk_error error = {0};
    CHECK_INT(bk_endpoint_parse(NULL, "s:", &e, NULL), -EINVAL);
    CHECK_INT(bk_endpoint_parse(os, NULL, &e, &error), -EINVAL);
    CHECK_INT(error.code, -EINVAL);
    CHECK_INT(bk_endpoint_parse(os, "s:", NULL, NULL), -EINVAL);
    CHECK(bk_endpoint_option(NULL, "a") == NULL);
    bk_endpoint_clear(os, NULL);
    counting_os c = counting();
    c.fail = 1;
    CHECK_INT(bk_endpoint_parse(&c.os, "s:", &e, &error), -ENOMEM);
    CHECK_INT(error.code, -ENOMEM);
    CHECK_INT(e.port, 77);
}

/* Parse a text that lies at the very end of its memory, so that a sanitizer sees a read beyond. */
static void parse_any(counting_os *c, const char *text, size_t n) {
    char *copy = malloc(n + 1);
    bk_endpoint e;
    bk_error error = {0};
    memcpy(copy, text, n);
    copy[n] = '\0';
    int code = bk_endpoint_parse(&c->os, copy, &e, &error);
    if (code == 0)
        bk_endpoint_clear(&c->os, &e);
    else
        CHECK(code == BK_EENDPOINT && error.position <= strlen(copy) && error.text[0] != '\0');
    free(copy);
}

static void mutations_of(counting_os *c, const char *text) {
    size_t n = strlen(text);
    char changed[256];
    for (size_t i = 0; i <= n; i++)
        parse_any(c, text, i);
    for (size_t i = 0; i < n; i++)
        for (int byte = 0; byte < 256; byte++) {
            memcpy(changed, text, n);
            changed[i] = (char)byte;
            parse_any(c, changed, n);
        }
}

static void mutations(void) {
    counting_os c = counting();
    for (int i = 0; i < COUNT(good); i++)
        mutations_of(&c, good[i].text);
    for (int i = 0; i < COUNT(bad); i++)
        mutations_of(&c, bad[i].text);
    CHECK_INT(c.live, 0);
}

/* Random strings of what the grammar is made of, from a fixed seed. */
static void random_ones(void) {
    static const char *const pieces[] = {
        "tcp", "s",   ":",  "//",    "/", "[",        "]", "::1",  "?", "&", "=", "%",
        "%25", "%00", "80", "65536", "k", "\xc3\xa9", " ", "\x01", "@", "*", "."};
    counting_os c = counting();
    uint32_t seed = 12345;
    for (int round = 0; round < 50000; round++) {
        char text[128] = "";
        for (int i = 0; i < 12; i++) {
            seed = seed * 1664525 + 1013904223;
            strcat(text, pieces[(seed >> 16) % COUNT(pieces)]);
        }
        parse_any(&c, text, strlen(text));
    }
    CHECK_INT(c.live, 0);
}

/* What bk_listener_name() returns is an endpoint that leads to the same place. */
static void encoding(void) {
    static const char *const paths[] = {"plain",    "//two",    "a?b&c=d", "100%",
                                        "\n\t\x7f", "\xc3\xa9", "[x]",     "/"};
    for (int i = 0; i < COUNT(paths); i++) {
        char text[64] = "unix:";
        bk_endpoint e;
        char *end = bk_endpoint_encode(paths[i], text + 5);
        CHECK_INT(*end, 0);
        CHECK_INT(bk_endpoint_parse(bk_os_default(), text, &e, NULL), 0);
        CHECK_STR(e.path, paths[i]);
        bk_endpoint_clear(bk_os_default(), &e);
    }
}

static void errors_are_safe_to_show(void) {
    bk_error error;
    char text[400];
    CHECK_INT(bk_error_set(&error, -EIO, 3, "a\x1b[31mb\x7f"), -EIO);
    CHECK_STR(error.text, "a?[31mb?");
    CHECK_INT(error.position, 3);
    memset(text, 'x', sizeof text);
    memcpy(text + sizeof error.text - 2, "\xc3\xa9", 2); /* is cut in two */
    text[sizeof text - 1] = '\0';
    bk_error_set(&error, -EIO, 0, "%s", text);
    CHECK_INT(strlen(error.text), sizeof error.text - 2);
    CHECK_INT(bk_error_set(NULL, -EIO, 0, "x"), -EIO);
}

int main(int argc, char **argv) {
    static const check_case cases[] = {CASE(good_ones),
                                       CASE(bad_ones),
                                       CASE(arguments),
                                       CASE(mutations),
                                       CASE(random_ones),
                                       CASE(encoding),
                                       CASE(errors_are_safe_to_show)};
    return check_main(argc, argv, cases, COUNT(cases));
}
