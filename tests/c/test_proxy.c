/*
 * test_proxy.c: the PROXY protocol: headers of both versions, whole, cut, damaged and hostile; who
 * is believed; and the transports that read and send them, by themselves, under streams, through
 * tests/conformance, and with every call failing.
 */
#include "tests/c/check.h"
#include "tests/c/support.h"

#include "core/serve/serve.h"
#include "core/stream/stream.h"

#include <errno.h>
#include <poll.h>

#define SIGNATURE "\r\n\r\n\0\r\nQUIT\n"
#define PAYLOAD "EHLO client.example\r\n"

/* ---- Headers ---- */

typedef struct sample {
    const char *name;
    unsigned char bytes[BK_PROXY_HEADER_BYTES];
    size_t size;
    int family; /* AF_UNSPEC: it tells no addresses */
    bool relayed;
    const char *source, *destination; /* as text_of() has them */
} sample;

enum { SAMPLES = 32 };
static sample samples[SAMPLES];
static int sample_count;

/* In words, "192.0.2.1:25", "[::1]:25", "unix:path"; '@' for bytes that are 0. */
static const char *text_of(const struct sockaddr_storage *address, size_t size) {
    static char texts[2][200];
    static int turn;
    char *text = texts[turn++ % 2], ip[INET6_ADDRSTRLEN];
    if (address->ss_family == AF_INET && size == sizeof(struct sockaddr_in)) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)address;
        inet_ntop(AF_INET, &in->sin_addr, ip, sizeof ip);
        snprintf(text, sizeof texts[0], "%s:%d", ip, ntohs(in->sin_port));
    } else if (address->ss_family == AF_INET6 && size == sizeof(struct sockaddr_in6)) {
        const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)address;
        inet_ntop(AF_INET6, &in6->sin6_addr, ip, sizeof ip);
        snprintf(text, sizeof texts[0], "[%s]:%d", ip, ntohs(in6->sin6_port));
    } else if (address->ss_family == AF_UNIX && size >= offsetof(struct sockaddr_un, sun_path)) {
        const char *path = ((const struct sockaddr_un *)address)->sun_path;
        size_t n = size - offsetof(struct sockaddr_un, sun_path);
        snprintf(text, sizeof texts[0], "unix:");
        for (size_t i = 0; i < n; i++)
            text[5 + i] = path[i] != '\0' ? path[i] : '@';
        text[5 + n] = '\0';
    } else {
        snprintf(text, sizeof texts[0], "%zu bytes of family %d", size, address->ss_family);
    }
    return text;
}

static sample *new_sample(const char *name, int family, bool relayed, const char *source,
                          const char *destination) {
    sample *s = &samples[sample_count++];
    s->name = name;
    s->family = family;
    s->relayed = relayed;
    s->source = source;
    s->destination = destination;
    return s;
}

static void add(sample *s, const void *data, size_t n) {
    memcpy(s->bytes + s->size, data, n);
    s->size += n;
    if (s->size > 16 && s->bytes[0] == '\r') { /* the length of version 2 */
        s->bytes[14] = (unsigned char)((s->size - 16) >> 8);
        s->bytes[15] = (unsigned char)(s->size - 16);
    }
}

static void add_line(int family, const char *source, const char *destination, const char *line) {
    add(new_sample(line, family, true, source, destination), line, strlen(line));
}

static sample *add_binary(const char *name, int command, int kind, int family, const char *source,
                          const char *destination) {
    sample *s = new_sample(name, family, command & 1, source, destination);
    const unsigned char rest[] = {(unsigned char)command, (unsigned char)kind, 0, 0};
    add(s, SIGNATURE, 12);
    add(s, rest, sizeof rest);
    return s;
}

static const char INET[] = "\xc0\x00\x02\x01\xc6\x33\x64\x02\x00\x19\xff\xff";
static const char INET6[] = "\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\1"
                            "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\1"
                            "\x00\x19\xff\xff";

static sample *add_inet(const char *name) {
    sample *s = add_binary(name, 0x21, 0x11, AF_INET, "192.0.2.1:25", "198.51.100.2:65535");
    add(s, INET, 12);
    return s;
}

/* By the definition, bit by bit. */
static uint32_t crc32c(const unsigned char *data, size_t n) {
    uint32_t crc = UINT32_MAX;
    for (size_t i = 0; i < n; i++) {
        crc ^= data[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc & 1 ? crc >> 1 ^ 0x82f63b78 : crc >> 1;
    }
    return ~crc;
}

static void add_checksum(sample *s) {
    add(s, "\3\0\4\0\0\0\0", 7);
    uint32_t crc = crc32c(s->bytes, s->size);
    for (int i = 0; i < 4; i++)
        s->bytes[s->size - 4 + (size_t)i] = (unsigned char)(crc >> (24 - 8 * i));
}

static void add_unix(const char *name, const char *source, size_t n, const char *as) {
    char addresses[216] = {0};
    sample *s = add_binary(name, 0x21, 0x31, AF_UNIX, as, "unix:/run/becket@");
    memcpy(addresses, source, n);
    memcpy(addresses + 108, "/run/becket", 11);
    add(s, addresses, sizeof addresses);
}

static void make_lines(void) {
#define LONG6 "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
    add_line(AF_INET, "192.0.2.1:25", "198.51.100.2:65535",
             "PROXY TCP4 192.0.2.1 198.51.100.2 25 65535\r\n");
    add_line(AF_INET, "255.255.255.255:65535", "255.255.255.255:65535",
             "PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n");
    add_line(AF_INET, "0.0.0.0:0", "0.0.0.0:0", "PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n");
    add_line(AF_INET6, "[2001:db8::1]:25", "[::1]:65535",
             "PROXY TCP6 2001:db8::1 ::1 25 65535\r\n");
    add_line(AF_INET6, "[2001:db8::a]:25", "[::1]:65535",
             "PROXY TCP6 2001:0DB8:0::A 0:0:0:0:0:0:0:1 25 65535\r\n");
    add_line(AF_INET6, "[::ffff:192.0.2.1]:25", "[::1]:65535",
             "PROXY TCP6 ::ffff:192.0.2.1 ::1 25 65535\r\n");
    add_line(AF_INET6, "[" LONG6 "]:65535", "[" LONG6 "]:65535",
             "PROXY TCP6 " LONG6 " " LONG6 " 65535 65535\r\n");
    add_line(AF_INET6, "[::]:0", "[::]:0", "PROXY TCP6 :: :: 0 0\r\n");
    add_line(AF_UNSPEC, NULL, NULL, "PROXY UNKNOWN\r\n");
    add_line(AF_UNSPEC, NULL, NULL, "PROXY UNKNOWN whatever, really\r\n");
    add_line(AF_UNSPEC, NULL, NULL, "PROXY UNKNOWN " LONG6 " " LONG6 " 65535 65535\r\n");
}

static void make_binaries(void) {
    char longest[BK_PROXY_HEADER_BYTES] = {4};
    add_inet("IPv4");
    add(add_binary("IPv6", 0x21, 0x21, AF_INET6, "[2001:db8::1]:25", "[::1]:65535"), INET6, 36);
    add_unix("UNIX", "/tmp/client", 11, "unix:/tmp/client@");
    add_unix("UNIX, abstract", "\0abc", 4, "unix:@abc");
    add_unix("UNIX, without a name", "", 0, "unix:");
    memset(longest + 200, 'x', 108);
    add_unix(
        "UNIX, as long as can be", longest + 200, 108,
        "unix:xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
        "xxxxxxxxxxxxxxxxxxxxxxx");
    add_binary("LOCAL", 0x20, 0x00, AF_UNSPEC, NULL, NULL);
    add(add_binary("LOCAL, with what is to be ignored", 0x20, 0xff, AF_UNSPEC, NULL, NULL), INET,
        12);
    add_binary("UNSPEC", 0x21, 0x00, AF_UNSPEC, NULL, NULL);
    add(add_binary("UNSPEC, with what is to be ignored", 0x21, 0x01, AF_UNSPEC, NULL, NULL), "xyz",
        3);
    add(add_binary("IPv4 for no protocol", 0x21, 0x10, AF_UNSPEC, NULL, NULL), INET, 12);
    add(add_inet("an empty TLV"), "\4\0\0", 3);
    add(add_inet("TLVs"), "\1\0\2h2\2\0\4mail\x20\0\5\1\0\0\0\0\xe0\0\1x", 5 + 7 + 8 + 4);
    add_checksum(add_inet("a checksum"));
    sample *s = add_inet("a checksum before another TLV");
    add_checksum(s);
    add(s, "\4\0\1x", 4);
    memset(s->bytes + 31, 0, 4);
    uint32_t crc = crc32c(s->bytes, s->size);
    for (int i = 0; i < 4; i++)
        s->bytes[31 + i] = (unsigned char)(crc >> (24 - 8 * i));
    s = add_inet("as long as can be");
    size_t left = sizeof longest - s->size;
    longest[1] = (char)((left - 3) >> 8);
    longest[2] = (char)(left - 3);
    add(s, longest, left);
}

static size_t signature_of(const sample *s) {
    return s->bytes[0] == 'P' ? 6 : 12;
}

/* The i-th of them; NULL: there are no more. */
static const sample *get_sample(int i) {
    if (sample_count == 0) {
        make_lines();
        make_binaries();
    }
    return i < sample_count ? &samples[i] : NULL;
}

#define EACH_SAMPLE(s)                                                                             \
    const sample *s = get_sample(0);                                                               \
    s != NULL;                                                                                     \
    s = get_sample((int)(s - samples) + 1)

/* ---- Reading headers ---- */

static void check_address(const sample *s, const bk_proxy_header *h, bool source) {
    struct sockaddr_storage address;
    unsigned size = bk_proxy_address(h->family, h->addresses, source, &address);
    CHECK_STR(text_of(&address, size), source ? s->source : s->destination);
}

/* Whole, with or without something behind them; and cut anywhere, in memory that is no larger. */
static void good_headers(void) {
    unsigned char bytes[BK_PROXY_HEADER_BYTES + sizeof PAYLOAD];
    CHECK_INT(crc32c((const unsigned char *)"123456789", 9), 0xe3069283);
    for (EACH_SAMPLE(s)) {
        bk_proxy_header h;
        memcpy(bytes, s->bytes, s->size);
        memcpy(bytes + s->size, PAYLOAD, sizeof PAYLOAD);
        for (size_t more = 0; more < sizeof PAYLOAD; more += sizeof PAYLOAD - 1) {
            CHECK_INT(bk_proxy_header_parse(bytes, s->size + more, &h), 1);
            CHECK_INT(h.size, s->size);
            CHECK_INT(h.relayed, s->relayed);
            CHECK_INT(h.family, s->family);
        }
        if (s->family != AF_UNSPEC) {
            check_address(s, &h, true);
            check_address(s, &h, false);
        }
        for (size_t n = 0; n < s->size; n++) {
            unsigned char *cut = malloc(n + 1);
            memcpy(cut, s->bytes, n);
            int code = bk_proxy_header_parse(cut, n, &h);
            if (code != 0)
                printf("# %s, of which %zu bytes\n", s->name, n);
            CHECK_INT(code, 0);
            free(cut);
        }
        if (check_failures > 0)
            printf("# %s\n", s->name);
    }
}

#define CUT(text) text, sizeof(text) - 1

static const struct {
    const char *bytes;
    size_t size;
    int code;
} bad[] = {
    {CUT("GET / HTTP/1.1\r\n"), -ENOMSG},
    {CUT("PROXY\r\n"), -ENOMSG},
    {CUT("PROXY\tTCP4 1.2.3.4 1.2.3.4 1 2\r\n"), -ENOMSG},
    {CUT("proxy TCP4 1.2.3.4 1.2.3.4 1 2\r\n"), -ENOMSG},
    {CUT("\r\n\r\n\0\r\nQUIX\n"), -ENOMSG},
    {CUT("\r\n\r\nQUIT\r\n"), -ENOMSG},
    {CUT("PROXY \r\n"), BK_EPROXY},
    {CUT("PROXY TCP4\r\n"), BK_EPROXY},
    {CUT("PROXY TCP4 \r\n"), BK_EPROXY},
    {CUT("PROXY TCP5 1.2.3.4 1.2.3.4 1 2\r\n"), BK_EPROXY},
    {CUT("PROXY tcp4 1.2.3.4 1.2.3.4 1 2\r\n"), BK_EPROXY},
    {CUT("PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n"), BK_EPROXY},
    {CUT("PROXY UNKNOWNS\r\n"), BK_EPROXY},
    {CUT("PROXY UNKNOW\r\n"), BK_EPROXY},
    {CUT("PROXY  TCP4 1.2.3.4 1.2.3.4 1 2\r\n"), BK_EPROXY},
    {CUT("PROXY TCP4  1.2.3.4 1.2.3.4 1 2\r\n"), BK_EPROXY},
    {CUT("PROXY TCP4 1.2.3.4  1.2.3.4 1 2\r\n"), BK_EPROXY},
    {CUT("PROXY TCP4 1.2.3.4 1.2.3.4  1 2\r\n"), BK_EPROXY},
    {CUT("PROXY TCP4 1.2.3.4 1.2.3.4 1  2\r\n"), BK_EPROXY},
    {CUT("PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n"), BK_EPROXY},
    {CUT("PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n"), BK_EPROXY},
    {CUT("PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n"), BK_EPROXY},
    {CUT("PROXY TCP4 1.2.3.4 1.2.3.4\r\n"), BK_EPROXY},
    {CUT("PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n"), BK_EPROXY},
    {CUT("PROXY TCP4 1.2.3.4 1.2.3.4 1 2\rx"), BK_EPROXY},
    {CUT("PROXY TCP4 1.2.3.4 1.2.3.4\r 1 2\r\n"), BK_EPROXY},
    {CUT("PROXY TCP4 1.2.3.4 1.2.3.4 1 2\0\r\n"), BK_EPROXY},
    {CUT("PROXY TCP4 1.2.3.4\0 1.2.3.4 1 2\r\n"), BK_EPROXY},
    {CUT("PROXY TCP4 1.2.3.04 1.2.3.4 1 2\r\n"), BK_EPROXY},
    {CUT("PROXY TCP4 1.2.3 1.2.3.4 1 2\r\n"), BK_EPROXY},
    {CUT("PROXY TCP4 1.2.3.256 1.2.3.4 1 2\r\n"), BK_EPROXY},
    {CUT("PROXY TCP4 1.2.3.4.5 1.2.3.4 1 2\r\n"), BK_EPROXY},
    {CUT("PROXY TCP4 0x1.2.3.4 1.2.3.4 1 2\r\n"), BK_EPROXY},
    {CUT("PROXY TCP4 ::1 ::1 1 2\r\n"), BK_EPROXY},
    {CUT("PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n"), BK_EPROXY},
    {CUT("PROXY TCP6 [::1] ::1 1 2\r\n"), BK_EPROXY},
    {CUT("PROXY TCP6 fe80::1%lo ::1 1 2\r\n"), BK_EPROXY},
    {CUT("PROXY TCP6 ::1::2 ::1 1 2\r\n"), BK_EPROXY},
    {CUT("PROXY TCP6 00000::1 ::1 1 2\r\n"), BK_EPROXY},
    {CUT("PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n"), BK_EPROXY},
    {CUT("PROXY TCP4 1.2.3.4 1.2.3.4 00 2\r\n"), BK_EPROXY},
    {CUT("PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n"), BK_EPROXY},
    {CUT("PROXY TCP4 1.2.3.4 1.2.3.4 -1 2\r\n"), BK_EPROXY},
    {CUT("PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n"), BK_EPROXY},
    {CUT("PROXY TCP4 1.2.3.4 1.2.3.4 1 4294967297\r\n"), BK_EPROXY},
    {CUT("PROXY UNKNOWN " LONG6 " " LONG6 " 65535 65535x\r\n"), BK_EPROXY}, /* 108 bytes */
    {CUT("PROXY UNKNOWN " LONG6 " " LONG6 " 65535 65535xxx"), BK_EPROXY},
    {CUT(SIGNATURE "\x21\x11\x00\x0b"), BK_EPROXY}, /* shorter than its addresses */
    {CUT(SIGNATURE "\x21\x21\x00\x23"), BK_EPROXY},
    {CUT(SIGNATURE "\x21\x31\x00\xd7"), BK_EPROXY},
    {CUT(SIGNATURE "\x21\x11\x00\x00"), BK_EPROXY},
    {CUT(SIGNATURE "\x21\x11\x0f\xf1"), BK_ELIMIT},
    {CUT(SIGNATURE "\x20\x00\xff\xff"), BK_ELIMIT},
};

/* A part of a TLV; one that reaches beyond the header; a checksum of another length. */
static const struct {
    const char *bytes;
    size_t size;
} bad_tlvs[] = {
    {CUT("\4")},
    {CUT("\4\0")},
    {CUT("\4\0\1")},
    {CUT("\4\xff\xff")},
    {CUT("\4\0\0\4\0\1")},
    {CUT("\3\0\0")},
    {CUT("\3\0\3\0\0\0")},
    {CUT("\3\0\5\0\0\0\0\0")},
    {CUT("\3\0\4\0\0\0\0")},
};

static void bad_headers(void) {
    bk_proxy_header h;
    for (int i = 0; i < COUNT(bad); i++) {
        int code = bk_proxy_header_parse(bad[i].bytes, bad[i].size, &h);
        if (code != bad[i].code)
            printf("# %.*s: %d\n", (int)bad[i].size, bad[i].bytes, code);
        CHECK_INT(code, bad[i].code);
        for (size_t n = 0; n < bad[i].size; n++) { /* as soon as it is sure, and no other way */
            code = bk_proxy_header_parse(bad[i].bytes, n, &h);
            CHECK(code == 0 || code == bad[i].code);
        }
    }
    for (int i = 0; i < COUNT(bad_tlvs); i++) {
        sample *s = add_inet("bad TLVs");
        add(s, bad_tlvs[i].bytes, bad_tlvs[i].size);
        CHECK_INT(bk_proxy_header_parse(s->bytes, s->size, &h), BK_EPROXY);
        memset(s, 0, sizeof *s);
        sample_count--;
    }
}

/* One byte of each header is any other. In version 1 there is one way only to write what IPv4 has
   to say: what is accepted is what would be sent. */
static void check_damaged(const sample *s, const unsigned char *bytes, size_t at) {
    bk_proxy_header h;
    size_t signature = signature_of(s);
    int code = bk_proxy_header_parse(bytes, s->size, &h);
    if (at < signature) {
        CHECK_INT(code, -ENOMSG);
    } else if (signature == 12 && at == 12) {
        bool known = bytes[12] == 0x20 || (bytes[12] == 0x21 && bytes[13] != 0xff);
        CHECK_INT(code == 1, known);
    } else if (signature == 12 && at == 13 && s->relayed) {
        bool known = bytes[13] >> 4 <= 3 && (bytes[13] & 15) <= 1;
        CHECK(known ? code == 1 || code == BK_EPROXY : code == BK_EPROXY);
        CHECK(code != 1 || (bytes[13] & 1) || h.family == AF_UNSPEC);
    } else if (code == 1 && signature == 6 && h.family == AF_INET) {
        struct sockaddr_storage from, to;
        uint8_t room[BK_PROXY_SENT_BYTES];
        unsigned from_size = bk_proxy_address(AF_INET, h.addresses, true, &from);
        unsigned to_size = bk_proxy_address(AF_INET, h.addresses, false, &to);
        size_t n = bk_proxy_header_make(1, (struct sockaddr *)&from, from_size,
                                        (struct sockaddr *)&to, to_size, room);
        CHECK(n == h.size && memcmp(room, bytes, n) == 0);
    }
    CHECK(code == 1 || code == 0 || code == -ENOMSG || code == BK_EPROXY || code == BK_ELIMIT);
    CHECK(code != 1 || h.size <= s->size);
}

static void damaged_headers(void) {
    unsigned char bytes[BK_PROXY_HEADER_BYTES];
    for (EACH_SAMPLE(s)) {
        memcpy(bytes, s->bytes, s->size);
        for (size_t at = 0; at < s->size && at < 256; at++) {
            for (int value = 0; value < 256; value++) {
                bytes[at] = (unsigned char)value;
                if (value != s->bytes[at])
                    check_damaged(s, bytes, at);
            }
            bytes[at] = s->bytes[at];
        }
        if (check_failures > 0)
            printf("# %s\n", s->name);
    }
}

/* No byte of a header that has one may change, but for the checksum's own type. */
static void checksums(void) {
    bk_proxy_header h;
    for (EACH_SAMPLE(s)) {
        if (strncmp(s->name, "a checksum", 10) != 0)
            continue;
        unsigned char bytes[64];
        memcpy(bytes, s->bytes, s->size);
        for (size_t at = 16; at < s->size; at++) {
            bytes[at] ^= 0x40;
            CHECK_INT(bk_proxy_header_parse(bytes, s->size, &h), at == 28 ? 1 : BK_EPROXY);
            bytes[at] ^= 0x40;
        }
    }
}

/* ---- Making headers ---- */

static unsigned address_of(const char *text, int port, struct sockaddr_storage *ret_address) {
    memset(ret_address, 0, sizeof *ret_address);
    struct sockaddr_in *in = (struct sockaddr_in *)ret_address;
    struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)ret_address;
    struct sockaddr_un *un = (struct sockaddr_un *)ret_address;
    if (text == NULL)
        return 0;
    if (inet_pton(AF_INET, text, &in->sin_addr) == 1) {
        in->sin_family = AF_INET;
        in->sin_port = htons((uint16_t)port);
        return sizeof *in;
    }
    if (inet_pton(AF_INET6, text, &in6->sin6_addr) == 1) {
        in6->sin6_family = AF_INET6;
        in6->sin6_port = htons((uint16_t)port);
        return sizeof *in6;
    }
    un->sun_family = AF_UNIX;
    memcpy(un->sun_path, text, strlen(text));
    return (unsigned)(offsetof(struct sockaddr_un, sun_path) + strlen(text) + (*text != '\0'));
}

static const struct {
    const char *from, *to; /* ports are 25 and 65535; NULL: no address at all */
    const char *line;
    int kind; /* of version 2 */
    const char *from_text, *to_text;
} made[] = {
    {"192.0.2.1", "198.51.100.2", "PROXY TCP4 192.0.2.1 198.51.100.2 25 65535\r\n", 0x11,
     "192.0.2.1:25", "198.51.100.2:65535"},
    {"2001:db8::1", "::1", "PROXY TCP6 2001:db8::1 ::1 25 65535\r\n", 0x21, "[2001:db8::1]:25",
     "[::1]:65535"},
    {"::ffff:192.0.2.1", "198.51.100.2", "PROXY TCP4 192.0.2.1 198.51.100.2 25 65535\r\n", 0x11,
     "192.0.2.1:25", "198.51.100.2:65535"},
    {"192.0.2.1", "::1", "PROXY TCP6 ::ffff:192.0.2.1 ::1 25 65535\r\n", 0x21,
     "[::ffff:192.0.2.1]:25", "[::1]:65535"},
    {"/tmp/a", "/tmp/b", "PROXY UNKNOWN\r\n", 0x31, "unix:/tmp/a@", "unix:/tmp/b@"},
    {"", "/tmp/b", "PROXY UNKNOWN\r\n", 0x31, "unix:", "unix:/tmp/b@"},
    {"192.0.2.1", "/tmp/b", "PROXY UNKNOWN\r\n", 0x00, NULL, NULL},
    {"192.0.2.1", NULL, "PROXY UNKNOWN\r\n", 0x00, NULL, NULL},
    {NULL, NULL, "PROXY UNKNOWN\r\n", 0x00, NULL, NULL},
};

static void headers_made(void) {
    for (int i = 0; i < COUNT(made); i++) {
        struct sockaddr_storage from, to;
        unsigned from_size = address_of(made[i].from, 25, &from);
        unsigned to_size = address_of(made[i].to, 65535, &to);
        uint8_t room[BK_PROXY_SENT_BYTES + 1] = {0};
        bk_proxy_header h;
        size_t n = bk_proxy_header_make(1, (struct sockaddr *)&from, from_size,
                                        (struct sockaddr *)&to, to_size, room);
        CHECK_INT(n, strlen(made[i].line));
        CHECK_STR((char *)room, made[i].line);
        n = bk_proxy_header_make(2, (struct sockaddr *)&from, from_size, (struct sockaddr *)&to,
                                 to_size, room);
        CHECK_INT(bk_proxy_header_parse(room, n, &h), 1);
        CHECK_INT(h.size, n);
        CHECK_INT(room[12], made[i].kind == 0 ? 0x20 : 0x21);
        CHECK_INT(room[13], made[i].kind);
        if (made[i].kind == 0)
            continue;
        from_size = bk_proxy_address(h.family, h.addresses, true, &from);
        CHECK_STR(text_of(&from, from_size), made[i].from_text);
        to_size = bk_proxy_address(h.family, h.addresses, false, &to);
        CHECK_STR(text_of(&to, to_size), made[i].to_text);
    }
}

/* ---- Who is believed ---- */

static const struct {
    const char *list, *peer; /* NULL: the default; no address */
    bool trusted;
} peers[] = {
    {NULL, "127.0.0.1", true},
    {NULL, "127.255.255.255", true},
    {NULL, "128.0.0.1", false},
    {NULL, "126.255.255.255", false},
    {NULL, "::1", true},
    {NULL, "::2", false},
    {NULL, "::ffff:127.0.0.1", true},
    {NULL, "/tmp/socket", true},
    {NULL, "", true},
    {NULL, NULL, true},
    {"10.0.0.0/8", "10.1.2.3", true},
    {"10.0.0.0/8", "::ffff:10.1.2.3", true},
    {"10.0.0.0/8", "11.0.0.0", false},
    {"10.0.0.0/8", "127.0.0.1", false},
    {"10.0.0.0/8", "::1", false},
    {"10.0.0.0/8", NULL, false},
    {"10.0.0.0/8", "/tmp/socket", false},
    {"unix", NULL, true},
    {"unix", "/tmp/socket", true},
    {"unix", "127.0.0.1", false},
    {"10.1.2.3", "10.1.2.3", true},
    {"10.1.2.3", "10.1.2.2", false},
    {"10.1.2.3/32", "10.1.2.3", true},
    {"10.128.0.0/9", "10.128.0.1", true},
    {"10.128.0.0/9", "10.127.255.255", false},
    {"10.1.2.2/31", "10.1.2.3", true},
    {"10.1.2.2/31", "10.1.2.4", false},
    {"0.0.0.0/0", "203.0.113.9", true},
    {"0.0.0.0/0", "2001:db8::1", false},
    {"::/0", "2001:db8::1", true},
    {"::/0", "203.0.113.9", false},
    {"::/0", "::ffff:203.0.113.9", false},
    {"::ffff:10.0.0.0/104", "10.9.9.9", true},
    {"2001:db8::/33", "2001:db8:7fff::1", true},
    {"2001:db8::/33", "2001:db8:8000::1", false},
    {"2001:db8::1", "2001:db8::1", true},
    {"2001:db8::1/128", "2001:db8::2", false},
    {"::1,10.0.0.0/8,unix,192.0.2.1", "192.0.2.1", true},
    {"::1,10.0.0.0/8,unix,192.0.2.1", NULL, true},
    {"::1,10.0.0.0/8,unix,192.0.2.1", "192.0.2.2", false},
};

static void trusted_peers(void) {
    for (int i = 0; i < COUNT(peers); i++) {
        bk_proxy_trust trust;
        struct sockaddr_storage peer;
        unsigned size = address_of(peers[i].peer, 1, &peer);
        CHECK_INT(bk_proxy_trust_parse(peers[i].list, &trust, NULL), 0);
        bool trusted = bk_proxy_trusts(&trust, (struct sockaddr *)&peer, size);
        if (trusted != peers[i].trusted)
            printf("# %s in %s\n", peers[i].peer, peers[i].list);
        CHECK_INT(trusted, peers[i].trusted);
    }
}

static const struct {
    const char *list;
    size_t position;
    const char *text;
} bad_lists[] = {
    {"", 0, "an address is missing"},
    {",", 0, "an address is missing"},
    {"::1,", 4, "an address is missing"},
    {"::1,,unix", 4, "an address is missing"},
    {"localhost", 0, "\"localhost\" is not an IPv4 or IPv6 address, nor the word unix"},
    {"::1,UNIX", 4, "\"UNIX\" is not an IPv4 or IPv6 address, nor the word unix"},
    {"::1, ::2", 4, "\" ::2\" is not an IPv4 or IPv6 address, nor the word unix"},
    {"10.0.0/8", 0, "\"10.0.0\" is not an IPv4 or IPv6 address, nor the word unix"},
    {"/8", 0, "\"\" is not an IPv4 or IPv6 address, nor the word unix"},
    {"[::1]", 0, "\"[::1]\" is not an IPv4 or IPv6 address, nor the word unix"},
    {"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", 0,
     "\"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\" is not an IPv4 or IPv6 address, nor "
     "the "
     "word unix"},
    {"10.0.0.0/", 9, "the prefix length of 10.0.0.0 must be a number from 0 to 32"},
    {"10.0.0.0/33", 9, "the prefix length of 10.0.0.0 must be a number from 0 to 32"},
    {"unix,10.0.0.0/08", 14, "the prefix length of 10.0.0.0 must be a number from 0 to 32"},
    {"10.0.0.0/-1", 9, "the prefix length of 10.0.0.0 must be a number from 0 to 32"},
    {"10.0.0.0/8/8", 9, "the prefix length of 10.0.0.0 must be a number from 0 to 32"},
    {"::/129", 3, "the prefix length of :: must be a number from 0 to 128"},
    {"::/4294967297", 3, "the prefix length of :: must be a number from 0 to 128"},
    {"10.1.2.3/8", 0, "10.1.2.3/8 is an address in a network: the network is 10.0.0.0/8"},
    {"10.129.0.0/9", 0, "10.129.0.0/9 is an address in a network: the network is 10.128.0.0/9"},
    {"::1,2001:db8::1/32", 4,
     "2001:db8::1/32 is an address in a network: the network is 2001:db8::/32"},
    {"127.0.0.1/0", 0, "127.0.0.1/0 is an address in a network: the network is 0.0.0.0/0"},
};

static void bad_trust(void) {
    for (int i = 0; i < COUNT(bad_lists); i++) {
        bk_proxy_trust trust = {.count = 77};
        bk_error error = {0, 99, ""};
        CHECK_INT(bk_proxy_trust_parse(bad_lists[i].list, &trust, &error), BK_EOPTION);
        CHECK_INT(error.code, BK_EOPTION);
        CHECK_INT(error.position, bad_lists[i].position);
        CHECK_STR(error.text, bad_lists[i].text);
        CHECK_INT(trust.count, 77); /* written only on success */
    }
    char list[(BK_PROXY_NETWORKS + 1) * 4 + 6] = "unix";
    for (int i = 0; i < BK_PROXY_NETWORKS; i++)
        strcat(list, ",::1");
    bk_proxy_trust trust;
    bk_error error;
    CHECK_INT(bk_proxy_trust_parse(list, &trust, &error), 0);
    CHECK_INT(trust.count, BK_PROXY_NETWORKS);
    strcat(list, ",::2");
    CHECK_INT(bk_proxy_trust_parse(list, &trust, &error), BK_ELIMIT);
    CHECK_INT(error.position, strlen(list) - 3);
    CHECK_STR(error.text, "there are more than 64 networks");
}

/* ---- A transport that reads a header, driven by hand ---- */

typedef struct rig {
    bk_loop *loop;
    bk_transport *far; /* what the proxy has */
    bk_transport *inner, *t;
} rig;

static int read_over(bk_loop *loop, bk_transport *inner, const char *list, bool required,
                     bk_transport **ret_transport) {
    bk_proxy_trust trust;
    CHECK_INT(bk_proxy_trust_parse(list, &trust, NULL), 0);
    return bk_proxy_read(loop, inner, &trust, required, ret_transport);
}

static rig rig_over(const char *joint_name, const char *list, bool required) {
    rig r = {NULL, NULL, NULL, NULL};
    const bk_conform_joint *joint = support_joint(joint_name);
    bk_loop_options options = {.size = sizeof options, .os = faults_os(support_faults())};
    bk_transport *pair[2];
    CHECK_INT(bk_loop_new(&options, &r.loop), 0);
    CHECK_INT(joint->make(r.loop, joint->arg, pair), 0);
    r.far = pair[0];
    r.inner = r.t = pair[1];
    CHECK_INT(read_over(r.loop, r.inner, list, required, &r.t), 0);
    return r;
}

static void close_far(rig *r) {
    if (r->far != NULL)
        r->far->ops->close(r->far);
    r->far = NULL;
}

static void rig_close(rig *r) {
    close_far(r);
    if (r->t != NULL)
        r->t->ops->close(r->t);
    CHECK_INT(bk_loop_free(r->loop), 0);
    CHECK_INT(faults_leaks(support_faults(), NULL), 0);
    faults_forget(support_faults());
}

/* The far end is not what is tested: no fault strikes it, where it has a descriptor. */
static void put(rig *r, const void *data, size_t n) {
    bk_os *os = faults_quiet(support_faults());
    struct iovec v = {(void *)data, n};
    int fd = r->far->ops->fd(r->far, BK_WRITE);
    if (n > 0)
        CHECK_INT(fd < 0 ? r->far->ops->write(r->far, &v, 1) : os->send(os, fd, &v, 1), n);
}

static int open_it(rig *r) {
    return BK_HAS(r->t->ops, open) ? r->t->ops->open(r->t) : 0;
}

/* What comes next is this, and no more is there. */
static void expect(rig *r, const void *data, size_t n, size_t piece) {
    unsigned char room[BK_PROXY_HEADER_BYTES + 100];
    size_t got = 0;
    ssize_t part = 0;
    while (got < n && (part = r->t->ops->read(r->t, room + got, piece)) > 0)
        got += (size_t)part;
    CHECK_INT(got, n);
    CHECK(memcmp(room, data, n) == 0);
    CHECK_INT(r->t->ops->read(r->t, room, 1), -EAGAIN);
}

static void expect_address(rig *r, int what, const char *text) {
    struct sockaddr_storage address;
    size_t size = sizeof address;
    CHECK_INT(r->t->ops->query(r->t, what, &address, &size), 0);
    CHECK_STR(text_of(&address, size), text);
    size = 1;
    CHECK_INT(r->t->ops->query(r->t, what, &address, &size), -ENOSPC);
}

/* Those of a header that tells none are the inner transport's. */
static void expect_addresses(rig *r, const sample *s) {
    if (s->family != AF_UNSPEC) {
        expect_address(r, BK_QUERY_PEER, s->source);
        expect_address(r, BK_QUERY_LOCAL, s->destination);
        return;
    }
    for (int what = BK_QUERY_PEER; what <= BK_QUERY_LOCAL; what++) {
        struct sockaddr_storage ours, inner;
        size_t size = sizeof ours, inner_size = sizeof inner;
        int code = r->t->ops->query(r->t, what, &ours, &size);
        CHECK_INT(code, r->inner->ops->query(r->inner, what, &inner, &inner_size));
        CHECK(code < 0 || (size == inner_size && memcmp(&ours, &inner, size) == 0));
    }
}

/* A header cut at one place, with data behind it in the same write. */
static void split_at(const sample *s, const char *joint, size_t at, bool required, size_t piece) {
    unsigned char rest[BK_PROXY_HEADER_BYTES + sizeof PAYLOAD];
    rig r = rig_over(joint, NULL, required);
    put(&r, s->bytes, at);
    if (at > 0 || s->size == 0)
        CHECK_INT(open_it(&r), at < s->size ? -EAGAIN : 0);
    memcpy(rest, s->bytes + at, s->size - at);
    memcpy(rest + s->size - at, PAYLOAD, sizeof PAYLOAD);
    put(&r, rest, s->size - at + sizeof PAYLOAD);
    CHECK_INT(open_it(&r), 0);
    CHECK_INT(open_it(&r), 0); /* and so it stays */
    CHECK_INT(bk_timers_next(r.loop), -1);
    expect_addresses(&r, s);
    expect(&r, PAYLOAD, sizeof PAYLOAD, piece);
    put(&r, PAYLOAD, 3);
    expect(&r, PAYLOAD, 3, 3);
    expect_addresses(&r, s); /* what is kept has become less */
    rig_close(&r);
}

static void split_everywhere(void) {
    for (EACH_SAMPLE(s)) {
        size_t step = s->size < 300 ? 1 : 97;
        for (size_t at = 0; at <= s->size; at += step)
            split_at(s, at % 2 ? "memory" : "unix", at, at % 3 == 0, at % 5 == 0 ? 1 : 4096);
        if (check_failures > 0) {
            printf("# %s\n", s->name);
            return;
        }
    }
}

/* It comes byte by byte, and is ready with its last one, not before. */
static void byte_by_byte(void) {
    for (EACH_SAMPLE(s)) {
        rig r = rig_over("memory", NULL, true);
        for (size_t at = 0; at < s->size && check_failures == 0; at++) {
            CHECK_INT(open_it(&r), -EAGAIN);
            CHECK_INT(r.t->ops->wants(r.t, 0), BK_READ);
            put(&r, s->bytes + at, 1);
        }
        CHECK_INT(open_it(&r), 0);
        CHECK_INT(r.t->ops->wants(r.t, 0), 0);
        expect_addresses(&r, s);
        expect(&r, "", 0, 1);
        rig_close(&r);
    }
}

/* The input ends within a header. What may still be data is data, where no header is required. */
static void truncated_everywhere(void) {
    for (EACH_SAMPLE(s)) {
        size_t step = s->size < 300 ? 1 : 97;
        for (size_t at = 0; at < s->size; at += at < 20 ? 1 : step) {
            for (int required = 0; required < 2; required++) {
                rig r = rig_over(at % 2 ? "memory" : "unix", NULL, required);
                bool data = !required && at < signature_of(s);
                char room[16];
                put(&r, s->bytes, at);
                if (at > 0)
                    CHECK_INT(open_it(&r), -EAGAIN);
                CHECK_INT(r.far->ops->end(r.far), 0);
                CHECK_INT(open_it(&r), data ? 0 : BK_ETRUNCATED);
                CHECK_INT(open_it(&r), data ? 0 : BK_ETRUNCATED);
                if (data && at > 0)
                    CHECK_INT(r.t->ops->read(r.t, room, sizeof room), at);
                for (int i = 0; data && i < 2; i++)
                    CHECK_INT(r.t->ops->read(r.t, room, sizeof room), 0);
                rig_close(&r);
            }
        }
    }
}

/* What does not begin as a header does: decided with the byte that says so. */
static void not_a_header(void) {
    static const char *const texts[] = {"GET / HTTP/1.1\r\n", "PROXX",      "PROXYTCP4",
                                        "\r\n\r\nQUIT",       "\r\n\r\n\r", "\x16\x03\x01"};
    for (int i = 0; i < COUNT(texts); i++) {
        const char *text = texts[i];
        bk_proxy_header h;
        size_t sure = 1;
        while (bk_proxy_header_parse(text, sure, &h) == 0)
            sure++;
        for (int required = 0; required < 2; required++) {
            rig r = rig_over("memory", NULL, required);
            for (size_t at = 0; at < sure; at++) {
                CHECK_INT(open_it(&r), -EAGAIN);
                put(&r, text + at, 1);
            }
            CHECK_INT(open_it(&r), required ? BK_EPROXY : 0);
            if (!required) {
                struct sockaddr_storage address;
                size_t size = sizeof address;
                CHECK_INT(r.t->ops->query(r.t, BK_QUERY_PROXY_PEER, &address, &size), -ENOTSUP);
                CHECK_INT(r.t->ops->wants(r.t, BK_READ | BK_WRITE), BK_NOW | BK_WRITE);
                expect(&r, text, sure, 1);
                CHECK_INT(r.t->ops->wants(r.t, BK_READ), BK_READ);
            }
            rig_close(&r);
        }
    }
}

static void malformed(void) {
    for (int i = 0; i < COUNT(bad); i++)
        for (int required = 0; required < 2; required++) {
            rig r = rig_over("unix", NULL, required);
            bool data = bad[i].code == -ENOMSG;
            put(&r, bad[i].bytes, bad[i].size);
            CHECK_INT(open_it(&r), !data ? bad[i].code : required ? BK_EPROXY : 0);
            if (data && !required)
                expect(&r, bad[i].bytes, bad[i].size, 100);
            rig_close(&r);
        }
}

/* Of a peer that is not trusted not a byte is read. */
static void untrusted(void) {
    const sample *s = get_sample(0);
    char room[200];
    rig r = rig_over("unix", "10.0.0.0/8", false);
    CHECK(r.t == r.inner);
    put(&r, s->bytes, s->size);
    CHECK_INT(open_it(&r), 0);
    expect(&r, s->bytes, s->size, 200);
    rig_close(&r);
    r = rig_over("unix", "10.0.0.0/8", true);
    put(&r, s->bytes, s->size);
    CHECK_INT(open_it(&r), -EACCES);
    CHECK_INT(open_it(&r), -EACCES);
    CHECK_INT(r.inner->ops->read(r.inner, room, sizeof room), s->size);
    rig_close(&r);
    r = rig_over("tcp", "10.0.0.0/8,unix", true);
    CHECK_INT(open_it(&r), -EACCES);
    rig_close(&r);
    r = rig_over("tcp", "127.0.0.1", true);
    CHECK_INT(open_it(&r), -EAGAIN);
    rig_close(&r);
    r = rig_over("pipes", "unix", true); /* has no address */
    CHECK_INT(open_it(&r), -EAGAIN);
    rig_close(&r);
}

static int no_answer(bk_transport *t, int what, void *ret_value, size_t *size) {
    (void)t, (void)what, (void)ret_value, (void)size;
    return -ENOTCONN;
}

/* Who cannot be told is nobody: not even one without an address. */
static void unknown_peer(void) {
    static bk_transport_ops ops;
    bk_proxy_trust trust;
    bk_transport *t = NULL;
    rig r = rig_over("unix", "10.0.0.0/8", false);
    ops = *r.inner->ops;
    ops.query = no_answer;
    r.inner->ops = &ops;
    CHECK_INT(bk_proxy_trust_parse("unix", &trust, NULL), 0);
    for (int required = 0; required < 2; required++)
        CHECK_INT(bk_proxy_read(r.loop, r.inner, &trust, required, &t), -ENOTCONN);
    CHECK_INT(bk_proxy_send(r.loop, r.inner, 1, NULL, 0, NULL, 0, &t), -ENOTCONN);
    CHECK(t == NULL);
    rig_close(&r);
}

/* The proxy itself can be asked for as well; but not for its own connections. */
static void who_relayed(void) {
    for (EACH_SAMPLE(s)) {
        struct sockaddr_storage proxy, inner;
        size_t size = sizeof proxy, inner_size = sizeof inner;
        int fd = -1;
        rig r = rig_over("tcp", NULL, true);
        put(&r, s->bytes, s->size);
        struct pollfd p = {.fd = r.t->ops->fd(r.t, BK_READ), .events = POLLIN};
        while (open_it(&r) == -EAGAIN)
            CHECK_INT(poll(&p, 1, 10000), 1);
        CHECK_INT(open_it(&r), 0);
        int code = r.t->ops->query(r.t, BK_QUERY_PROXY_PEER, &proxy, &size);
        CHECK_INT(code, s->relayed ? 0 : -ENOTSUP);
        CHECK_INT(r.inner->ops->query(r.inner, BK_QUERY_PEER, &inner, &inner_size), 0);
        CHECK(code < 0 || (size == inner_size && memcmp(&proxy, &inner, size) == 0));
        size = sizeof fd;
        CHECK_INT(r.t->ops->query(r.t, BK_QUERY_FD, &fd, &size), 0);
        CHECK_INT(fd, p.fd);
        rig_close(&r);
    }
}

/* One proxy behind another: a header each, the outer one first; both may come at once. */
static void two_proxies(void) {
    const sample *first = get_sample(0), *second = get_sample(3);
    rig r = rig_over("unix", NULL, true);
    bk_transport *one = r.t;
    CHECK_INT(read_over(r.loop, one, NULL, true, &r.t), 0);
    CHECK_INT(r.t->ops->wants(r.t, 0), BK_READ);
    CHECK_INT(open_it(&r), -EAGAIN);
    put(&r, first->bytes, first->size);
    put(&r, second->bytes, second->size - 1);
    CHECK_INT(open_it(&r), -EAGAIN);
    expect_address(&r, BK_QUERY_PEER, first->source);
    put(&r, second->bytes + second->size - 1, 1);
    put(&r, PAYLOAD, sizeof PAYLOAD);
    CHECK_INT(open_it(&r), 0);
    expect_addresses(&r, second);
    expect_address(&r, BK_QUERY_PROXY_PEER, first->source);
    expect(&r, PAYLOAD, sizeof PAYLOAD, 5);
    rig_close(&r);
}

/* What an idle connection costs: nothing of the header, and no more than its addresses take. */
static void idle_memory(void) {
    faults *f = support_faults();
    size_t before[2], after[2];
    const int which[] = {0, 3};
    for (int i = 0; i < 2; i++) {
        const sample *s = get_sample(which[i]);
        rig r = rig_over("unix", "10.0.0.0/8", false);
        put(&r, s->bytes, s->size);
        put(&r, PAYLOAD, sizeof PAYLOAD);
        before[i] = atomic_load(&f->bytes);
        CHECK_INT(read_over(r.loop, r.inner, NULL, true, &r.t), 0);
        CHECK_INT(open_it(&r), 0);
        expect(&r, PAYLOAD, sizeof PAYLOAD, 100);
        after[i] = atomic_load(&f->bytes);
        rig_close(&r);
    }
    CHECK(after[0] - before[0] <= 56);
    CHECK(after[1] - before[1] <= 56 + 36);
}

/* ---- A transport that sends one ---- */

/* Whatever room there is for it. */
static void sent_in_pieces(void) {
    for (int version = 1; version <= 2; version++)
        for (size_t capacity = 1; capacity < 60; capacity++) {
            struct sockaddr_storage from, to;
            unsigned from_size = address_of("192.0.2.1", 25, &from);
            unsigned to_size = address_of("198.51.100.2", 65535, &to);
            unsigned char room[100];
            size_t got = 0;
            bk_proxy_header h;
            rig r = {NULL, NULL, NULL, NULL};
            bk_transport *pair[2];
            bk_loop_options options = {.size = sizeof options, .os = faults_os(support_faults())};
            CHECK_INT(bk_loop_new(&options, &r.loop), 0);
            CHECK_INT(bk_memory_transport(r.loop, capacity, pair), 0);
            r.far = pair[0];
            CHECK_INT(bk_proxy_send(r.loop, pair[1], version, (struct sockaddr *)&from, from_size,
                                    (struct sockaddr *)&to, to_size, &r.t),
                      0);
            while (open_it(&r) == -EAGAIN) {
                CHECK_INT(r.t->ops->wants(r.t, 0), BK_WRITE);
                ssize_t n = r.far->ops->read(r.far, room + got, sizeof room - got);
                CHECK(n > 0);
                got += n > 0 ? (size_t)n : sizeof room;
            }
            CHECK_INT(open_it(&r), 0);
            CHECK_INT(bk_timers_next(r.loop), -1);
            ssize_t n = r.far->ops->read(r.far, room + got, sizeof room - got);
            got += n > 0 ? (size_t)n : 0;
            CHECK_INT(bk_proxy_header_parse(room, got, &h), 1);
            CHECK(h.size == got && h.family == AF_INET);
            rig_close(&r);
        }
}

/* Who nothing is said of is the connection itself. */
static void sent_of_itself(void) {
    static const char *const joints[] = {"tcp", "unix", "memory"};
    static const int families[] = {AF_INET, AF_UNIX, AF_UNSPEC};
    for (int i = 0; i < 3; i++) {
        rig r = rig_over(joints[i], "10.0.0.0/8", false);
        struct sockaddr_storage own = {0};
        size_t size = sizeof own;
        CHECK_INT(bk_proxy_send(r.loop, r.inner, 3, NULL, 0, NULL, 0, &r.t), -EINVAL);
        CHECK_INT(bk_proxy_send(r.loop, r.inner, 0, NULL, 0, NULL, 0, &r.t), -EINVAL);
        CHECK_INT(bk_proxy_send(r.loop, r.inner, 2, NULL, 0, NULL, 0, &r.t), 0);
        CHECK_INT(open_it(&r), 0);
        (void)r.t->ops->query(r.t, BK_QUERY_LOCAL, &own, &size);
        struct pollfd p = {.fd = r.far->ops->fd(r.far, BK_READ), .events = POLLIN};
        CHECK_INT(p.fd < 0 ? 1 : poll(&p, 1, 10000), 1);
        unsigned char room[300];
        ssize_t n = r.far->ops->read(r.far, room, sizeof room);
        bk_proxy_header h = {0};
        CHECK_INT(bk_proxy_header_parse(room, n > 0 ? (size_t)n : 0, &h), 1);
        CHECK_INT(h.family, families[i]);
        CHECK_INT(h.relayed, families[i] != AF_UNSPEC);
        if (families[i] == AF_INET) {
            struct sockaddr_storage source;
            unsigned told = bk_proxy_address(AF_INET, h.addresses, true, &source);
            CHECK_STR(text_of(&source, told), text_of(&own, size));
        }
        rig_close(&r);
    }
}

static void sent_to_nobody(void) {
    rig r = rig_over("unix", "10.0.0.0/8", false);
    CHECK_INT(bk_proxy_send(r.loop, r.inner, 2, NULL, 0, NULL, 0, &r.t), 0);
    close_far(&r);
    CHECK_INT(open_it(&r), -EPIPE);
    CHECK_INT(open_it(&r), -EPIPE);
    rig_close(&r);
}

/* ---- Under a stream ---- */

static struct {
    int opened, closed, why;
    char text[100];
    size_t got;
} seen;

static int note_opened(bk_stream *s) {
    (void)s;
    seen.opened++;
    return 0;
}

static void note_received(bk_stream *s, const void *data, size_t n) {
    (void)s;
    if (n > sizeof seen.text - 1 - seen.got)
        n = sizeof seen.text - 1 - seen.got;
    memcpy(seen.text + seen.got, data, n);
    seen.got += n;
}

static void note_closed(bk_stream *s, int why) {
    (void)s;
    seen.closed++;
    seen.why = why;
}

static const bk_protocol noting = {.size = sizeof(bk_protocol),
                                   .name = "noting",
                                   .opened = note_opened,
                                   .received = note_received,
                                   .closed = note_closed};

static void start_stream(rig *r, bk_stream **ret_stream) {
    memset(&seen, 0, sizeof seen);
    CHECK_INT(bk_stream_new(r->loop, r->t, &noting, NULL, ret_stream), 0);
    r->t = NULL;
}

static void turn(rig *r, int times) {
    while (times-- > 0)
        CHECK_INT(bk_loop_turn(r->loop, 0), 0);
}

/* On a clock of our own: the time is over when it is, whatever has come by then. */
static void times_out(void) {
    static const char *const joints[] = {"memory", "unix"};
    for (int i = 0; i < 2; i++)
        for (size_t n = 0; n <= 10; n += 5) {
            rig r = rig_over(joints[i], NULL, n != 5);
            bk_stream *s;
            start_stream(&r, &s);
            put(&r, "PROXY TCP4", n);
            turn(&r, 3);
            faults_pass_time(support_faults(), BK_PROXY_HEADER_MS * BK_MILLISECOND - BK_SECOND);
            turn(&r, 3);
            CHECK_INT(seen.closed, 0);
            faults_pass_time(support_faults(), 2 * BK_SECOND);
            turn(&r, 4);
            CHECK_INT(seen.closed, 1);
            CHECK_INT(seen.why, -ETIMEDOUT);
            CHECK_INT(seen.opened, 0);
            rig_close(&r);
        }
}

/* One that is there in time is not timed out later; nor is one that was closed while waiting. */
static void no_time_out(void) {
    rig r = rig_over("memory", NULL, true);
    const sample *header = get_sample(0);
    bk_stream *s;
    start_stream(&r, &s);
    turn(&r, 2);
    put(&r, header->bytes, header->size);
    put(&r, PAYLOAD, strlen(PAYLOAD));
    turn(&r, 2);
    CHECK_INT(seen.opened, 1);
    CHECK_STR(seen.text, PAYLOAD);
    faults_pass_time(support_faults(), 100 * BK_SECOND);
    turn(&r, 3);
    CHECK_INT(seen.closed, 0);
    rig_close(&r);
    r = rig_over("memory", NULL, true);
    start_stream(&r, &s);
    turn(&r, 2);
    bk_stream_abort(s);
    turn(&r, 2);
    CHECK_INT(seen.closed, 1);
    CHECK_INT(bk_loop_deadline(r.loop), -1);
    rig_close(&r);
}

/* Nobody takes what is to be sent. */
static void sending_times_out(void) {
    rig r = rig_over("tight memory", "10.0.0.0/8", false);
    bk_stream *s;
    CHECK_INT(bk_proxy_send(r.loop, r.inner, 1, NULL, 0, NULL, 0, &r.t), 0);
    start_stream(&r, &s);
    turn(&r, 3);
    CHECK_INT(seen.opened, 0);
    faults_pass_time(support_faults(), (BK_PROXY_HEADER_MS + 1) * BK_MILLISECOND);
    turn(&r, 4);
    CHECK_INT(seen.closed, 1);
    CHECK_INT(seen.why, -ETIMEDOUT);
    rig_close(&r);
}

/* A paused stream has what was held when it is resumed, and only then; and does not spin. */
static void held_while_paused(void) {
    rig r = rig_over("unix", NULL, true);
    const sample *header = get_sample(3);
    bk_stream *s;
    put(&r, header->bytes, header->size);
    put(&r, PAYLOAD, strlen(PAYLOAD));
    start_stream(&r, &s);
    bk_stream_pause(s);
    turn(&r, 3);
    CHECK_INT(seen.opened, 1);
    CHECK_INT(seen.got, 0);
    CHECK_INT(bk_loop_deadline(r.loop), -1);
    bk_stream_resume(s);
    turn(&r, 1);
    CHECK_STR(seen.text, PAYLOAD);
    CHECK_INT(bk_loop_deadline(r.loop), -1);
    rig_close(&r);
}

/* ---- As a transport like any other ---- */

typedef struct proxied {
    const bk_conform_joint *inner;
    int version;
    bool required;
} proxied;

static int make_proxied(bk_loop *loop, void *arg, bk_transport *ret_pair[2]) {
    const proxied *p = arg;
    bk_proxy_trust trust;
    bk_transport *pair[2];
    int code = p->inner->make(loop, p->inner->arg, pair);
    if (code < 0)
        return code;
    code = bk_proxy_trust_parse(NULL, &trust, NULL);
    if (code == 0)
        code = bk_proxy_send(loop, pair[0], p->version, NULL, 0, NULL, 0, &pair[0]);
    if (code == 0)
        code = bk_proxy_read(loop, pair[1], &trust, p->required, &pair[1]);
    for (int i = 0; i < 2; i++)
        if (code < 0)
            pair[i]->ops->close(pair[i]);
        else
            ret_pair[i] = pair[i];
    return code;
}

static bk_conform_joint joint_over(proxied *p, const char *inner, int version) {
    static char name[60];
    *p = (proxied){support_joint(inner), version, version == 1};
    snprintf(name, sizeof name, "PROXY %d over %s", version, inner);
    return (bk_conform_joint){name, p->inner->traits & BK_CONFORM_NO_RESET, make_proxied, p};
}

static void conforms_over(const char *inner) {
    for (int version = 1; version <= 2; version++) {
        proxied p;
        bk_conform_joint joint = joint_over(&p, inner, version);
        CHECK_INT(support_conforms(support_transport, &joint, NULL), 0);
    }
}

static void over_memory(void) {
    conforms_over("memory");
    conforms_over("tight memory");
}

static void over_tcp(void) {
    conforms_over("tcp");
    conforms_over("tight tcp");
}

static void over_unix(void) {
    conforms_over("unix");
    conforms_over("tight unix");
}

static void over_pipes(void) {
    conforms_over("pipes");
    conforms_over("adopted");
}

/* ---- With every call failing in turn ---- */

enum { RUNS = 25 };

static void transport_walked(void) {
    static const char *const inners[] = {"tight unix", "adopted"};
    for (int i = 0; i < 2; i++)
        for (int kind = FAULTS_NONE + 1; kind < FAULTS_KINDS; kind++) {
            proxied p;
            bk_conform_joint joint = joint_over(&p, inners[i], 1 + i);
            support_walk w = {.kind = (faults_kind)kind, .most = RUNS};
            CHECK_INT(support_walks(support_transport, &joint, NULL, &w), 0);
            printf("# %s: %ld runs, %ld of them sampled, %ld calls left out, %ld ended with an "
                   "error\n",
                   faults_kind_name(w.kind), w.runs, w.sampled, w.skipped, w.excused);
        }
}

/* A header is read, and what is behind it; in two pieces, so that the timer is started. */
static int read_all(rig *r, const sample *s) {
    char room[sizeof PAYLOAD];
    int code = read_over(r->loop, r->inner, NULL, true, &r->t);
    put(r, s->bytes, s->size / 2);
    if (code == 0 && (code = open_it(r)) == -EAGAIN) {
        put(r, s->bytes + s->size / 2, s->size - s->size / 2);
        put(r, PAYLOAD, sizeof PAYLOAD);
        code = open_it(r);
        for (int i = 0; i < 3 && code == -EAGAIN; i++)
            code = open_it(r);
    }
    for (size_t got = 0; code == 0 && got < sizeof room;) {
        ssize_t n = r->t->ops->read(r->t, room + got, sizeof room - got);
        if (n < 0 && n != -EAGAIN && n != -EINTR)
            code = (int)n;
        got += n > 0 ? (size_t)n : 0;
    }
    CHECK(code < 0 || memcmp(room, PAYLOAD, sizeof room) == 0);
    return code;
}

static void reading_walked(void) {
    faults *f = support_faults();
    for (EACH_SAMPLE(s))
        for (int kind = FAULTS_ERROR; kind < FAULTS_KINDS; kind++)
            for (long n = 1;; n++) {
                rig r = rig_over("unix", "10.0.0.0/8", false);
                faults_arm(f, (faults_kind)kind, n);
                int code = read_all(&r, s);
                long calls = faults_disarm(f), fired = faults_fired(f);
                if (code == 0)
                    expect_addresses(&r, s);
                CHECK(code == 0 || fired > 0);
                CHECK(code == 0 || kind == FAULTS_ERROR || kind == FAULTS_NO_MEMORY);
                CHECK(code == 0 || kind != FAULTS_NO_MEMORY || code == -ENOMEM);
                rig_close(&r);
                if (calls < n || check_failures > 0)
                    break;
            }
}

int main(int argc, char **argv) {
    static const check_case cases[] = {
        CASE(good_headers),      CASE(bad_headers),
        CASE(damaged_headers),   CASE(checksums),
        CASE(headers_made),      CASE(trusted_peers),
        CASE(bad_trust),         CASE(split_everywhere),
        CASE(byte_by_byte),      CASE(truncated_everywhere),
        CASE(not_a_header),      CASE(malformed),
        CASE(untrusted),         CASE(unknown_peer),
        CASE(who_relayed),       CASE(two_proxies),
        CASE(idle_memory),       CASE(sent_in_pieces),
        CASE(sent_of_itself),    CASE(sent_to_nobody),
        CASE(times_out),         CASE(no_time_out),
        CASE(sending_times_out), CASE(held_while_paused),
        CASE(over_memory),       CASE(over_tcp),
        CASE(over_unix),         CASE(over_pipes),
        CASE(transport_walked),  CASE(reading_walked),
    };
    return check_main(argc, argv, cases, COUNT(cases));
}
