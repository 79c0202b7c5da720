/*
 * proxy_header.c: the bytes of PROXY headers, of both versions: reading and making them, as
 * HAProxy's proxy-protocol.txt has it. Nothing in here knows of transports. Called by proxy.c.
 */
#include "core/serve/serve.h"

#include <stdio.h>

enum {
    TEXT_MOST = 107, /* a line of version 1, with its CRLF */
    HEAD = 16,       /* of version 2 */
    VERSION_2 = 2,
    COMMAND_LOCAL = 0,
    COMMAND_PROXY = 1,
    FAMILY_INET = 1,
    FAMILY_INET6 = 2,
    FAMILY_UNIX = 3,
    STREAM = 1,
    TLV_HEAD = 3,
    TLV_CRC32C = 3,
    PATH_BYTES = BK_PROXY_ADDRESS_BYTES / 2,
};

static const uint8_t SIGNATURE_1[] = {'P', 'R', 'O', 'X', 'Y', ' '};
static const uint8_t SIGNATURE_2[] = {0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d,
                                      0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a};

/* 1: it begins so; 0: it does as far as it goes; -1: it does not. */
static int begins(const uint8_t *data, size_t n, const uint8_t *signature, size_t size) {
    if (memcmp(data, signature, n < size ? n : size) != 0)
        return -1;
    return n >= size;
}

static size_t number(const uint8_t *two) {
    return (size_t)two[0] << 8 | two[1];
}

/* ---- Addresses ---- */

size_t bk_proxy_addresses_size(int family) {
    return family == AF_INET    ? 2 * 4 + 2 * 2
           : family == AF_INET6 ? 2 * 16 + 2 * 2
           : family == AF_UNIX  ? 2 * PATH_BYTES
                                : 0;
}

static unsigned unix_address(const uint8_t *path, struct sockaddr_un *ret_address) {
    size_t n = PATH_BYTES;
    _Static_assert(sizeof ret_address->sun_path >= PATH_BYTES, "the path fits");
    while (n > 0 && path[n - 1] == 0)
        n--;
    ret_address->sun_family = AF_UNIX;
    memcpy(ret_address->sun_path, path, n);
    if (n > 0 && path[0] != 0 && n < PATH_BYTES) /* a file's; others need not end with 0 */
        n++;
    return (unsigned)(offsetof(struct sockaddr_un, sun_path) + n);
}

unsigned bk_proxy_address(int family, const uint8_t *addresses, bool source,
                          struct sockaddr_storage *ret_address) {
    size_t size = family == AF_INET ? 4 : family == AF_INET6 ? 16 : PATH_BYTES;
    const uint8_t *address = addresses + (source ? 0 : size);
    const uint8_t *port = addresses + 2 * size + (source ? 0 : 2);
    memset(ret_address, 0, sizeof *ret_address);
    if (family == AF_INET) {
        struct sockaddr_in *in = (struct sockaddr_in *)ret_address;
        in->sin_family = AF_INET;
        memcpy(&in->sin_addr, address, size);
        memcpy(&in->sin_port, port, 2);
        return sizeof *in;
    }
    if (family == AF_INET6) {
        struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)ret_address;
        in6->sin6_family = AF_INET6;
        memcpy(&in6->sin6_addr, address, size);
        memcpy(&in6->sin6_port, port, 2);
        return sizeof *in6;
    }
    return unix_address(address, (struct sockaddr_un *)ret_address);
}

/* ---- Version 1: a line ---- */

static bool parse_port(const char *text, uint8_t ret_port[2]) {
    size_t n = strlen(text);
    unsigned port = 0;
    if (n == 0 || n > 5 || (n > 1 && text[0] == '0'))
        return false;
    for (; *text != '\0'; text++) {
        if (*text < '0' || *text > '9')
            return false;
        port = port * 10 + (unsigned)(*text - '0');
    }
    ret_port[0] = (uint8_t)(port >> 8);
    ret_port[1] = (uint8_t)port;
    return port <= 65535;
}

/* Source, destination, and their ports, one space between two of them. */
static bool parse_fields(char *text, int family, uint8_t *ret_addresses) {
    size_t size = family == AF_INET ? 4 : 16;
    for (int i = 0; i < 4; i++) {
        char *end = strchr(text, i < 3 ? ' ' : '\0');
        if (end == NULL)
            return false;
        *end = '\0';
        bool good = i < 2 ? inet_pton(family, text, ret_addresses + (size_t)i * size) == 1
                          : parse_port(text, ret_addresses + 2 * size + 2 * (size_t)(i - 2));
        if (!good)
            return false;
        text = end + 1;
    }
    return true;
}

/* What is between the signature and the CRLF. */
static int parse_line(const char *line, size_t n, bk_proxy_header *ret_header) {
    char text[TEXT_MOST];
    uint8_t addresses[2 * 16 + 2 * 2];
    if (n >= 7 && memcmp(line, "UNKNOWN", 7) == 0 && (n == 7 || line[7] == ' ')) {
        ret_header->family = AF_UNSPEC; /* and whatever else it says is to be ignored */
        return 1;
    }
    if (n < 5 || memchr(line, '\0', n) != NULL)
        return BK_EPROXY;
    int family = memcmp(line, "TCP4 ", 5) == 0   ? AF_INET
                 : memcmp(line, "TCP6 ", 5) == 0 ? AF_INET6
                                                 : AF_UNSPEC;
    memcpy(text, line + 5, n - 5);
    text[n - 5] = '\0';
    if (family == AF_UNSPEC || !parse_fields(text, family, addresses))
        return BK_EPROXY;
    ret_header->family = (uint8_t)family;
    memcpy(ret_header->addresses, addresses, bk_proxy_addresses_size(family));
    return 1;
}

static int parse_text(const uint8_t *data, size_t n, bk_proxy_header *ret_header) {
    size_t most = n < TEXT_MOST ? n : TEXT_MOST;
    const uint8_t *cr = memchr(data, '\r', most), *lf = memchr(data, '\n', most);
    if (lf != NULL && lf - 1 != cr)
        return BK_EPROXY;
    if (lf == NULL)
        return most == TEXT_MOST || (cr != NULL && cr + 1 != data + most) ? BK_EPROXY : 0;
    const char *line = (const char *)data + sizeof SIGNATURE_1;
    int code = parse_line(line, (size_t)((const char *)cr - line), ret_header);
    if (code > 0) {
        ret_header->size = (size_t)(lf + 1 - data);
        ret_header->relayed = true;
    }
    return code;
}

/* ---- Version 2: binary ---- */

/* CRC-32C by four bits at a time: few bytes have to be checked, and few proxies send it. The four
   bytes at `hole` count as 0. */
static uint32_t crc32c(const uint8_t *data, size_t n, size_t hole) {
    static const uint32_t table[16] = {0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1,
                                       0x417b1dbc, 0x5125dad3, 0x61c69362, 0x7198540d,
                                       0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9,
                                       0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75};
    uint32_t crc = UINT32_MAX;
    for (size_t i = 0; i < n; i++) {
        crc ^= i - hole < 4 ? 0 : data[i];
        crc = crc >> 4 ^ table[crc & 15];
        crc = crc >> 4 ^ table[crc & 15];
    }
    return ~crc;
}

static int check_tlvs(const uint8_t *data, size_t at, size_t size) {
    while (at < size) {
        size_t value = at + TLV_HEAD;
        size_t n = value <= size ? number(data + at + 1) : 0;
        if (value > size || n > size - value)
            return BK_EPROXY;
        if (data[at] == TLV_CRC32C) {
            uint32_t told =
                n != 4 ? 0
                       : (uint32_t)number(data + value) << 16 | (uint32_t)number(data + value + 2);
            if (n != 4 || told != crc32c(data, size, value))
                return BK_EPROXY;
        }
        at = value + n;
    }
    return 1;
}

/* Whose addresses it has; AF_UNSPEC also where it says so of the protocol alone. What is reserved,
   and datagrams that come on a stream, are refused. */
static int family_of(uint8_t byte) {
    static const uint8_t families[] = {AF_UNSPEC, AF_INET, AF_INET6, AF_UNIX};
    if (byte >> 4 > FAMILY_UNIX || (byte & 15) > STREAM)
        return BK_EPROXY;
    return (byte & 15) == STREAM ? families[byte >> 4] : AF_UNSPEC;
}

static int parse_binary(const uint8_t *data, size_t n, bk_proxy_header *ret_header) {
    int command = n > 12 ? data[12] & 15 : COMMAND_LOCAL, family = AF_UNSPEC;
    if (n > 12 && (data[12] >> 4 != VERSION_2 || command > COMMAND_PROXY))
        return BK_EPROXY;
    if (n > 13 && command == COMMAND_PROXY)
        family = family_of(data[13]);
    if (family < 0)
        return family;
    if (n < HEAD)
        return 0;
    size_t size = bk_proxy_header_length(data, n), addresses = bk_proxy_addresses_size(family);
    if (size < HEAD + addresses)
        return BK_EPROXY;
    if (size > BK_PROXY_HEADER_BYTES)
        return BK_ELIMIT;
    if (n < size)
        return 0;
    int code = family == AF_UNSPEC ? 1 : check_tlvs(data, HEAD + addresses, size);
    if (code < 0)
        return code;
    ret_header->size = size;
    ret_header->relayed = command == COMMAND_PROXY;
    ret_header->family = (uint8_t)family;
    memcpy(ret_header->addresses, data + HEAD, addresses);
    return 1;
}

/* ---- Either version ---- */

int bk_proxy_header_parse(const void *data, size_t n, bk_proxy_header *ret_header) {
    int text = begins(data, n, SIGNATURE_1, sizeof SIGNATURE_1);
    int binary = begins(data, n, SIGNATURE_2, sizeof SIGNATURE_2);
    if (text > 0)
        return parse_text(data, n, ret_header);
    if (binary > 0)
        return parse_binary(data, n, ret_header);
    return text == 0 || binary == 0 ? 0 : -ENOMSG;
}

size_t bk_proxy_header_length(const void *data, size_t n) {
    if (begins(data, n, SIGNATURE_1, sizeof SIGNATURE_1) > 0)
        return TEXT_MOST;
    if (begins(data, n, SIGNATURE_2, sizeof SIGNATURE_2) <= 0)
        return 0;
    return n < HEAD ? (size_t)HEAD : HEAD + number((const uint8_t *)data + HEAD - 2);
}

/* ---- Making one ---- */

static bool copy_path(const struct sockaddr *address, unsigned size, uint8_t ret_path[PATH_BYTES]) {
    size_t head = offsetof(struct sockaddr_un, sun_path), n = size > head ? size - head : 0;
    if (size < sizeof address->sa_family || address->sa_family != AF_UNIX)
        return false;
    memset(ret_path, 0, PATH_BYTES);
    memcpy(ret_path, (const char *)address + head, n < PATH_BYTES ? n : (size_t)PATH_BYTES);
    return true;
}

/* Both in the layout of version 2, whose family is returned. IPv4 that IPv6 carries is IPv4, unless
   the other is not. */
static int lay_out(const struct sockaddr *source, unsigned source_size,
                   const struct sockaddr *destination, unsigned destination_size,
                   uint8_t ret_addresses[BK_PROXY_ADDRESS_BYTES]) {
    uint8_t from[16], to[16], ports[4];
    if (bk_proxy_ip(source, source_size, from, ports) &&
        bk_proxy_ip(destination, destination_size, to, ports + 2)) {
        int family = bk_proxy_is_ipv4(from) && bk_proxy_is_ipv4(to) ? AF_INET : AF_INET6;
        size_t skip = family == AF_INET ? 12 : 0, size = 16 - skip;
        memcpy(ret_addresses, from + skip, size);
        memcpy(ret_addresses + size, to + skip, size);
        memcpy(ret_addresses + 2 * size, ports, sizeof ports);
        return family;
    }
    bool local = copy_path(source, source_size, ret_addresses) &&
                 copy_path(destination, destination_size, ret_addresses + PATH_BYTES);
    return local ? AF_UNIX : AF_UNSPEC;
}

static size_t make_text(int family, const uint8_t *addresses, char room[BK_PROXY_SENT_BYTES]) {
    char from[INET6_ADDRSTRLEN], to[INET6_ADDRSTRLEN];
    size_t size = family == AF_INET ? 4 : 16;
    const uint8_t *ports = addresses + 2 * size;
    if (family != AF_INET && family != AF_INET6)
        return (size_t)snprintf(room, BK_PROXY_SENT_BYTES, "PROXY UNKNOWN\r\n");
    (void)inet_ntop(family, addresses, from, sizeof from);
    (void)inet_ntop(family, addresses + size, to, sizeof to);
    return (size_t)snprintf(room, BK_PROXY_SENT_BYTES, "PROXY TCP%c %s %s %zu %zu\r\n",
                            family == AF_INET ? '4' : '6', from, to, number(ports),
                            number(ports + 2));
}

static size_t make_binary(int family, const uint8_t *addresses, uint8_t *room) {
    size_t size = bk_proxy_addresses_size(family);
    int words = family == AF_INET ? FAMILY_INET : family == AF_INET6 ? FAMILY_INET6 : FAMILY_UNIX;
    memcpy(room, SIGNATURE_2, sizeof SIGNATURE_2);
    room[12] = VERSION_2 << 4 | (family == AF_UNSPEC ? COMMAND_LOCAL : COMMAND_PROXY);
    room[13] = family == AF_UNSPEC ? 0 : (uint8_t)(words << 4 | STREAM);
    room[14] = 0;
    room[15] = (uint8_t)size;
    memcpy(room + HEAD, addresses, size);
    return HEAD + size;
}

size_t bk_proxy_header_make(int version, const struct sockaddr *source, unsigned source_size,
                            const struct sockaddr *destination, unsigned destination_size,
                            uint8_t room[BK_PROXY_SENT_BYTES]) {
    uint8_t addresses[BK_PROXY_ADDRESS_BYTES];
    int family = lay_out(source, source_size, destination, destination_size, addresses);
    return version == 1 ? make_text(family, addresses, (char *)room)
                        : make_binary(family, addresses, room);
}
