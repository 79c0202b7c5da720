/*
 * fuzz_proxy.c: PROXY headers, and the transport that reads them. Whatever comes: the answer is one
 * of those told, no byte beyond the input is read, where the input was cut makes no difference, and
 * each byte that is no header's comes out behind it, once and in order. A header that is understood
 * is made anew, and then means the same.
 *
 * The first byte of an input says how it comes; the rest is what the peer sends.
 */
#include "core/serve/serve.h"
#include "tests/fuzz/fuzz.h"

#include <errno.h>
#include <stdlib.h>

/* ---- The bytes of a header ---- */

/* In memory of just that size, so that a byte too far is found out. */
static int parse(const uint8_t *data, size_t n, bk_proxy_header *ret_header) {
    uint8_t *copy = malloc(n > 0 ? n : 1);
    FUZZ_CHECK(copy != NULL);
    if (n > 0)
        memcpy(copy, data, n);
    int code = bk_proxy_header_parse(copy, n, ret_header);
    size_t length = bk_proxy_header_length(copy, n);
    free(copy);
    FUZZ_CHECK(code == 1 || code == 0 || code == -ENOMSG || code == BK_EPROXY || code == BK_ELIMIT);
    FUZZ_CHECK((length > 0) == (code != -ENOMSG && (code != 0 || length > 0)));
    FUZZ_CHECK(code != 0 || length == 0 || length > n || n < 16);
    FUZZ_CHECK(code != 1 || (ret_header->size <= n && ret_header->size <= BK_PROXY_HEADER_BYTES));
    return code;
}

static void check_cuts(const uint8_t *data, size_t n, int code, const bk_proxy_header *header) {
    size_t step = n < 300 ? 1 : n / 150;
    for (size_t cut = 0; cut < n; cut += step) {
        bk_proxy_header part;
        int early = parse(data, cut, &part);
        FUZZ_CHECK(early == 0 || early == code);
        FUZZ_CHECK(early != 1 || part.size == header->size);
        FUZZ_CHECK(code != 1 || (early == 1) == (cut >= header->size));
    }
}

static void check_remade(const bk_proxy_header *header) {
    struct sockaddr_storage from, to;
    uint8_t room[BK_PROXY_SENT_BYTES];
    bk_proxy_header again;
    if (header->family == AF_UNSPEC)
        return;
    unsigned from_size = bk_proxy_address(header->family, header->addresses, true, &from);
    unsigned to_size = bk_proxy_address(header->family, header->addresses, false, &to);
    for (int version = header->family == AF_UNIX ? 2 : 1; version <= 2; version++) {
        size_t n = bk_proxy_header_make(version, (struct sockaddr *)&from, from_size,
                                        (struct sockaddr *)&to, to_size, room);
        FUZZ_CHECK(n <= sizeof room && parse(room, n, &again) == 1 && again.size == n);
        size_t size = bk_proxy_addresses_size(header->family);
        if (again.family == header->family) /* else IPv4 within IPv6 */
            FUZZ_CHECK(memcmp(again.addresses, header->addresses, size) == 0);
        else
            FUZZ_CHECK(header->family == AF_INET6 && again.family == AF_INET);
    }
}

/* ---- The transport ---- */

typedef struct inner {
    bk_transport base;
    const uint8_t *data;
    size_t left, piece;
    bool ready, closed; /* ready: a piece may be read before it says -EAGAIN again */
} inner;

static ssize_t inner_read(bk_transport *t, void *room, size_t n) {
    inner *self = (inner *)t;
    FUZZ_CHECK(n > 0);
    if (!self->ready)
        return -EAGAIN;
    if (self->left == 0)
        return 0;
    n = n < self->piece ? n : self->piece;
    n = n < self->left ? n : self->left;
    memcpy(room, self->data, n);
    self->data += n;
    self->left -= n;
    self->ready = false;
    return (ssize_t)n;
}

static ssize_t inner_write(bk_transport *t, const struct iovec *v, int n) {
    (void)t, (void)v, (void)n;
    FUZZ_CHECK(!"who reads a header writes nothing");
    return -EPIPE;
}

static void inner_close(bk_transport *t) {
    ((inner *)t)->closed = true;
}

static int inner_fd(bk_transport *t, unsigned direction) {
    (void)t, (void)direction;
    return -1;
}

static const bk_transport_ops inner_ops = {
    .size = sizeof(bk_transport_ops),
    .name = "inner",
    .read = inner_read,
    .write = inner_write,
    .close = inner_close,
    .fd = inner_fd,
};

static int open_all(bk_transport *t, inner *in) {
    int code;
    do {
        in->ready = true;
        code = t->ops->open(t);
    } while (code == -EAGAIN);
    FUZZ_CHECK(code <= 0);
    return code;
}

static void read_all(bk_transport *t, inner *in, const uint8_t *data, size_t n, size_t piece) {
    uint8_t room[300];
    ssize_t got;
    do {
        in->ready = true;
        got = t->ops->read(t, room, piece);
        FUZZ_CHECK(got >= 0 && (size_t)got <= n && (size_t)got <= piece);
        FUZZ_CHECK(memcmp(room, data, (size_t)got) == 0);
        data += got;
        n -= (size_t)got;
    } while (got > 0);
    FUZZ_CHECK(n == 0);
}

static void run(bk_loop *loop, unsigned how, const uint8_t *data, size_t n) {
    bk_proxy_header header = {.size = 0};
    const bk_proxy_trust trust = {.local = true};
    bool required = how & 1;
    int code = parse(data, n, &header);
    size_t skip = code == 1 ? header.size : 0;
    inner in = {{&inner_ops, NULL}, data, n, 1 + (how >> 1) % 50, false, false};
    bk_transport *t;
    if (how & 0x80)
        in.piece = SIZE_MAX;
    if (bk_proxy_read(loop, &in.base, &trust, required, &t) < 0)
        return;
    int opened = open_all(t, &in);
    bool sure = bk_proxy_header_length(data, n) > 0;
    if (opened == -ENOMEM)
        ;
    else if (code == 0)
        FUZZ_CHECK(opened == (sure || required ? BK_ETRUNCATED : 0));
    else if (code == -ENOMSG)
        FUZZ_CHECK(opened == (required ? BK_EPROXY : 0));
    else
        FUZZ_CHECK(opened == (code == 1 ? 0 : code));
    if (opened == 0)
        read_all(t, &in, data + skip, n - skip, 1 + how % 300);
    t->ops->close(t);
    FUZZ_CHECK(in.closed);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    static fuzz_os os;
    bk_proxy_header header;
    bk_loop *loop;
    if (n == 0)
        return 0;
    unsigned how = data[0];
    int code = parse(++data, --n, &header);
    check_cuts(data, n, code, &header);
    if (code == 1)
        check_remade(&header);
    fuzz_os_open(&os);
    bk_loop_options options = {.size = sizeof options, .notifier = "poll", .os = &os.os};
    FUZZ_CHECK(bk_loop_new(&options, &loop) == 0);
    run(loop, how, data, n);
    for (unsigned nth = 1; nth <= 5; nth++) { /* each allocation fails */
        os.fail_in = nth;
        run(loop, how, data, n);
        os.fail_in = 0;
    }
    FUZZ_CHECK(bk_loop_free(loop) == 0);
    FUZZ_CHECK(os.blocks == 0);
    return 0;
}
