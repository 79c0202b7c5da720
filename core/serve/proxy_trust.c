/*
 * proxy_trust.c: whose PROXY headers are believed: a list of networks, and whether those peers are
 * in it that have no IP address. Whoever is believed can make a connection look as if it came from
 * anywhere. Called by proxy.c, and for the options of endpoints.
 */
#include "core/serve/serve.h"

#include <stdio.h>
#include <stdlib.h>

/* Others on this machine could say what they like in any other way too. */
static const char DEFAULT[] = "127.0.0.0/8,::1,unix";

enum { ENTRY_BYTES = INET6_ADDRSTRLEN + sizeof "/128" };

/* One entry, while it is read. */
typedef struct entry {
    char text[ENTRY_BYTES]; /* without the prefix length */
    const char *length;     /* the prefix length, in text; NULL: none */
    size_t position, length_position;
    uint8_t ip[16];
    int bits, most; /* of the text's own family */
} entry;

static void map_ipv4(const void *ipv4, uint8_t ret_ip[16]) {
    memset(ret_ip, 0, 10);
    memset(ret_ip + 10, 0xff, 2);
    memcpy(ret_ip + 12, ipv4, 4);
}

bool bk_proxy_is_ipv4(const uint8_t ip[16]) {
    static const uint8_t prefix[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
    return memcmp(ip, prefix, sizeof prefix) == 0;
}

bool bk_proxy_ip(const struct sockaddr *address, unsigned size, uint8_t ret_ip[16],
                 uint8_t ret_port[2]) {
    int family = size < sizeof address->sa_family ? AF_UNSPEC : address->sa_family;
    if (family == AF_INET && size >= sizeof(struct sockaddr_in)) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)(const void *)address;
        map_ipv4(&in->sin_addr, ret_ip);
        memcpy(ret_port, &in->sin_port, 2);
        return true;
    }
    if (family == AF_INET6 && size >= sizeof(struct sockaddr_in6)) {
        const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)(const void *)address;
        memcpy(ret_ip, &in6->sin6_addr, 16);
        memcpy(ret_port, &in6->sin6_port, 2);
        return true;
    }
    return false;
}

/* ---- Reading the list ---- */

static int parse_ip(entry *e, bk_error *error) {
    uint8_t ipv4[4];
    if (inet_pton(AF_INET, e->text, ipv4) == 1) {
        map_ipv4(ipv4, e->ip);
        e->most = 32;
    } else if (inet_pton(AF_INET6, e->text, e->ip) == 1) {
        e->most = 128;
    } else {
        return bk_error_set(error, BK_EOPTION, e->position,
                            "\"%s\" is not an IPv4 or IPv6 address, nor the word unix", e->text);
    }
    e->bits = e->most;
    return 0;
}

static int parse_length(entry *e, bk_error *error) {
    size_t n = e->length == NULL ? 0 : strspn(e->length, "0123456789");
    if (e->length == NULL)
        return 0;
    bool good = n > 0 && n <= 3 && e->length[n] == '\0' && (n == 1 || e->length[0] != '0');
    e->bits = good ? atoi(e->length) : -1;
    if (good && e->bits <= e->most)
        return 0;
    return bk_error_set(error, BK_EOPTION, e->length_position,
                        "the prefix length of %s must be a number from 0 to %d", e->text, e->most);
}

/* Bits beyond the prefix say that somebody meant a host, or another network. */
static int check_network(entry *e, bk_error *error) {
    uint8_t ip[16];
    char text[INET6_ADDRSTRLEN];
    int bits = 128 - e->most + e->bits;
    for (int i = 0; i < 16; i++) {
        int left = bits - 8 * i;
        ip[i] = left >= 8 ? e->ip[i] : left <= 0 ? 0 : e->ip[i] & (uint8_t)(0xff << (8 - left));
    }
    if (memcmp(ip, e->ip, sizeof ip) == 0)
        return 0;
    (void)inet_ntop(e->most == 32 ? AF_INET : AF_INET6, e->most == 32 ? ip + 12 : ip, text,
                    sizeof text);
    return bk_error_set(error, BK_EOPTION, e->position,
                        "%s/%d is an address in a network: the network is %s/%d", e->text, e->bits,
                        text, e->bits);
}

static int parse_network(entry *e, const char *at, size_t n, bk_error *error) {
    snprintf(e->text, sizeof e->text, "%.*s", (int)(n < sizeof e->text ? n : sizeof e->text), at);
    char *slash = strchr(e->text, '/');
    if (slash != NULL) {
        *slash = '\0';
        e->length = slash + 1;
        e->length_position = e->position + (size_t)(e->length - e->text);
    }
    int code = parse_ip(e, error);
    if (code == 0)
        code = parse_length(e, error);
    return code < 0 ? code : check_network(e, error);
}

static int parse_entry(const char *at, size_t n, size_t position, bk_proxy_trust *trust,
                       bk_error *error) {
    entry e = {.position = position};
    if (n == strlen("unix") && memcmp(at, "unix", n) == 0) {
        trust->local = true;
        return 0;
    }
    if (n == 0)
        return bk_error_set(error, BK_EOPTION, position, "an address is missing");
    int code = parse_network(&e, at, n, error);
    if (code < 0)
        return code;
    if (trust->count == BK_PROXY_NETWORKS)
        return bk_error_set(error, BK_ELIMIT, position, "there are more than %d networks",
                            BK_PROXY_NETWORKS);
    memcpy(trust->networks[trust->count].address, e.ip, sizeof e.ip);
    trust->networks[trust->count++].bits = (uint8_t)(128 - e.most + e.bits);
    return 0;
}

int bk_proxy_trust_parse(const char *text, bk_proxy_trust *ret_trust, bk_error *error) {
    bk_proxy_trust trust = {0};
    if (text == NULL)
        text = DEFAULT;
    for (const char *at = text;; at++) {
        size_t n = strcspn(at, ",");
        int code = parse_entry(at, n, (size_t)(at - text), &trust, error);
        if (code < 0)
            return code;
        at += n;
        if (*at == '\0')
            break;
    }
    *ret_trust = trust;
    return 0;
}

/* ---- Looking somebody up ---- */

/* A network of IPv6 that happens to hold ::ffff:0:0/96 says nothing of IPv4. */
static bool is_in(const uint8_t ip[16], const uint8_t network[16], int bits) {
    int whole = bits / 8, rest = bits % 8;
    if (bits < 96 && bk_proxy_is_ipv4(ip))
        return false;
    return memcmp(ip, network, (size_t)whole) == 0 &&
           (rest == 0 || ((ip[whole] ^ network[whole]) >> (8 - rest)) == 0);
}

bool bk_proxy_trusts(const bk_proxy_trust *trust, const struct sockaddr *peer, unsigned size) {
    uint8_t ip[16], port[2];
    if (!bk_proxy_ip(peer, size, ip, port))
        return trust->local;
    for (int i = 0; i < trust->count; i++)
        if (is_in(ip, trust->networks[i].address, trust->networks[i].bits))
            return true;
    return false;
}
