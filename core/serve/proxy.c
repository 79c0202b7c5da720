/*
 * proxy.c: the PROXY protocol as a transport that holds a transport. A server's reads a header when
 * it opens, and is then the connection of whom that tells of; a client's sends one. After that they
 * pass everything on. Made by core/serve, for endpoints whose options ask for it.
 *
 * There are very many of them: what only opening needs is freed when that is over, addresses of
 * IPv4 lie in the transport itself, and longer ones in as much memory as they take.
 */
#include "core/serve/serve.h"
#include "core/stream/stream.h"

typedef struct opening {
    bk_timer timer;
    int failed; /* why, once it has; that is told again */
    bool inner_open, sends, required;
    size_t used, room; /* of bytes */
    size_t sent;       /* … and of those that are used */
    uint8_t *bytes;    /* first, or memory for a longer header */
    uint8_t first[BK_PROXY_FIRST_BYTES];
} opening;

typedef struct proxy {
    bk_transport base;
    bk_loop *loop;
    bk_transport *inner;
    union {
        opening *opening; /* until it is open */
        uint8_t *kept;    /* then: addresses that are not IPv4's, and what is held; or NULL */
    };
    bool open : 1, relayed : 1;
    uint8_t family;   /* of the addresses that were told; AF_UNSPEC: none were */
    uint16_t held;    /* bytes that were read with the header, and follow it */
    uint8_t ipv4[12]; /* the addresses */
} proxy;

_Static_assert(BK_PROXY_FIRST_BYTES <= UINT16_MAX, "what is held can be counted");
_Static_assert((int)BK_PROXY_SENT_BYTES <= BK_PROXY_FIRST_BYTES, "what is sent has room");

static proxy *self_of(bk_transport *t) {
    return (proxy *)t;
}

static int query_inner(bk_transport *inner, int what, void *ret_value, size_t *size) {
    return BK_HAS(inner->ops, query) ? inner->ops->query(inner, what, ret_value, size) : -ENOTSUP;
}

/* ---- What is kept ---- */

/* How much of what is kept are addresses. */
static size_t wide_size(int family) {
    return family == AF_INET ? 0 : bk_proxy_addresses_size(family);
}

static void free_opening(proxy *self) {
    opening *o = self->opening;
    bk_timer_stop(self->loop, &o->timer);
    if (o->bytes != o->first)
        bk_dealloc(self->loop->os, o->bytes);
    bk_dealloc(self->loop->os, o);
}

/* Opening is over: keep these addresses, and what was read behind them. */
static int keep(proxy *self, const bk_proxy_header *header, const uint8_t *data, size_t n) {
    size_t wide = wide_size(header->family);
    uint8_t *kept = wide + n > 0 ? bk_alloc(self->loop->os, wide + n) : NULL;
    if (wide + n > 0 && kept == NULL)
        return -ENOMEM;
    if (wide > 0)
        memcpy(kept, header->addresses, wide);
    else if (header->family == AF_INET)
        memcpy(self->ipv4, header->addresses, sizeof self->ipv4);
    if (n > 0)
        memcpy(kept + wide, data, n);
    self->family = header->family;
    self->relayed = header->relayed;
    self->held = (uint16_t)n;
    free_opening(self);
    self->kept = kept;
    self->open = true;
    return 0;
}

/* The first that is read. It is seldom more than one room takes. */
static size_t take_held(proxy *self, void *room, size_t n) {
    bk_os *os = self->loop->os;
    size_t wide = wide_size(self->family);
    uint8_t *from = self->kept + wide;
    if (n > self->held)
        n = self->held;
    memcpy(room, from, n);
    self->held -= (uint16_t)n;
    memmove(from, from + n, self->held);
    if (self->held == 0) {
        uint8_t *kept = os->resize(os, self->kept, wide);
        if (kept != NULL || wide == 0) /* else it stays too large */
            self->kept = kept;
    }
    return n;
}

/* ---- Opening: a header is read ---- */

/* A header that is longer than what was read first; beyond it nothing more is read. */
static int grow(opening *o, bk_os *os) {
    size_t room = bk_proxy_header_length(o->bytes, o->used);
    uint8_t *bytes = bk_alloc(os, room);
    if (bytes == NULL)
        return -ENOMEM;
    memcpy(bytes, o->bytes, o->used);
    o->bytes = bytes;
    o->room = room;
    return 0;
}

static ssize_t read_more(proxy *self) {
    opening *o = self->opening;
    int code = o->used < o->room ? 0 : grow(o, self->loop->os);
    if (code < 0)
        return code;
    ssize_t n;
    do
        n = self->inner->ops->read(self->inner, o->bytes + o->used, o->room - o->used);
    while (n == -EINTR);
    o->used += n > 0 ? (size_t)n : 0;
    return n;
}

/* What has come is no header, and, the input being over, may not become one. */
static int take_as_data(proxy *self, int refusal) {
    const opening *o = self->opening;
    const bk_proxy_header none = {.family = AF_UNSPEC};
    return o->required ? refusal : keep(self, &none, o->bytes, o->used);
}

static int receive_header(proxy *self) {
    opening *o = self->opening;
    bk_proxy_header header;
    for (;;) {
        ssize_t n = read_more(self);
        if (n < 0)
            return (int)n;
        if (n == 0 && bk_proxy_header_length(o->bytes, o->used) > 0)
            return BK_ETRUNCATED;
        if (n == 0)
            return take_as_data(self, BK_ETRUNCATED);
        int code = bk_proxy_header_parse(o->bytes, o->used, &header);
        if (code == -ENOMSG)
            return take_as_data(self, BK_EPROXY);
        if (code < 0)
            return code;
        if (code > 0)
            return keep(self, &header, o->bytes + header.size, o->used - header.size);
    }
}

/* ---- Opening: a header is sent ---- */

static int send_header(proxy *self) {
    opening *o = self->opening;
    bk_transport *inner = self->inner;
    const bk_proxy_header none = {.family = AF_UNSPEC};
    while (o->sent < o->used) {
        struct iovec v = {o->bytes + o->sent, o->used - o->sent};
        ssize_t n = inner->ops->write(inner, &v, 1);
        if (n <= 0 && n != -EINTR)
            return n == 0 ? -EAGAIN : (int)n;
        o->sent += n > 0 ? (size_t)n : 0;
    }
    return keep(self, &none, NULL, 0);
}

/* ---- Opening ---- */

static void out_of_time(void *arg) {
    proxy *self = arg;
    self->opening->failed = -ETIMEDOUT;
    bk_transport_wake(&self->base);
}

/* What has come at once needs no timer. */
static int start_timer(proxy *self) {
    bk_timer *timer = &self->opening->timer;
    int64_t when = bk_loop_now(self->loop) + BK_PROXY_HEADER_MS * BK_MILLISECOND;
    return timer->place != 0 ? 0 : bk_timer_start(self->loop, timer, when, out_of_time, self);
}

/* What lies below may have a handshake of its own, with a time limit of its own. */
static int open_inner(proxy *self) {
    opening *o = self->opening;
    bk_transport *inner = self->inner;
    int code = o->inner_open ? 0 : inner->ops->open(inner);
    o->inner_open = code == 0;
    return code;
}

static int proxy_open(bk_transport *t) {
    proxy *self = self_of(t);
    self->inner->stream = t->stream;
    if (self->open)
        return 0;
    int code = self->opening->failed;
    if (code == 0)
        code = open_inner(self);
    if (code < 0)
        return code;
    code = self->opening->sends ? send_header(self) : receive_header(self);
    if (code == -EAGAIN) {
        int started = start_timer(self);
        code = started < 0 ? started : code;
    }
    if (code < 0 && code != -EAGAIN)
        self->opening->failed = code;
    return code;
}

/* ---- The rest of a transport ---- */

static ssize_t proxy_read(bk_transport *t, void *room, size_t n) {
    proxy *self = self_of(t);
    if (self->held > 0)
        return (ssize_t)take_held(self, room, n);
    return self->inner->ops->read(self->inner, room, n);
}

static ssize_t proxy_write(bk_transport *t, const struct iovec *v, int n) {
    bk_transport *inner = self_of(t)->inner;
    return inner->ops->write(inner, v, n);
}

static int proxy_flush(bk_transport *t) {
    bk_transport *inner = self_of(t)->inner;
    return inner->ops->flush(inner);
}

static unsigned proxy_wants(bk_transport *t, unsigned directions) {
    proxy *self = self_of(t);
    bk_transport *inner = self->inner;
    unsigned now = 0;
    inner->stream = t->stream;
    if (!self->open) {
        const opening *o = self->opening;
        directions = !o->inner_open ? 0 : o->sends ? BK_WRITE : BK_READ;
    } else if (self->held > 0 && directions & BK_READ) {
        directions &= ~(unsigned)BK_READ;
        now = BK_NOW;
    }
    if (BK_HAS(inner->ops, wants))
        directions = inner->ops->wants(inner, directions);
    return directions | now;
}

static int proxy_end(bk_transport *t) {
    bk_transport *inner = self_of(t)->inner;
    return BK_HAS(inner->ops, end) ? inner->ops->end(inner) : -ENOTSUP;
}

static void proxy_close(bk_transport *t) {
    proxy *self = self_of(t);
    bk_os *os = self->loop->os;
    self->inner->ops->close(self->inner);
    if (self->open)
        bk_dealloc(os, self->kept);
    else
        free_opening(self);
    bk_dealloc(os, self);
}

static int proxy_fd(bk_transport *t, unsigned direction) {
    bk_transport *inner = self_of(t)->inner;
    return inner->ops->fd(inner, direction);
}

static int proxy_query(bk_transport *t, int what, void *ret_value, size_t *size) {
    proxy *self = self_of(t);
    if (self->family != AF_UNSPEC && (what == BK_QUERY_PEER || what == BK_QUERY_LOCAL)) {
        struct sockaddr_storage address;
        const uint8_t *addresses = self->family == AF_INET ? self->ipv4 : self->kept;
        unsigned n = bk_proxy_address(self->family, addresses, what == BK_QUERY_PEER, &address);
        return bk_query_answer(ret_value, size, &address, n);
    }
    if (what == BK_QUERY_PLAIN && (!self->open || self->held > 0))
        return -ENOTSUP;
    if (what == BK_QUERY_PROXY_PEER && self->relayed)
        what = BK_QUERY_PEER;
    return query_inner(self->inner, what, ret_value, size);
}

/* One that has nothing to flush is closed with fewer calls. */
#define OPS(flush_or_null)                                                                         \
    {                                                                                              \
        .size = sizeof(bk_transport_ops),                                                          \
        .name = "proxy",                                                                           \
        .read = proxy_read,                                                                        \
        .write = proxy_write,                                                                      \
        .flush = flush_or_null,                                                                    \
        .wants = proxy_wants,                                                                      \
        .end = proxy_end,                                                                          \
        .close = proxy_close,                                                                      \
        .fd = proxy_fd,                                                                            \
        .query = proxy_query,                                                                      \
        .open = proxy_open,                                                                        \
    }

static const bk_transport_ops proxy_ops[] = {OPS(NULL), OPS(proxy_flush)};

/* ---- Making them ---- */

static proxy *make(bk_loop *loop, bk_transport *inner) {
    proxy *self = bk_alloc_zero(loop->os, sizeof *self);
    opening *o = bk_alloc(loop->os, sizeof *o);
    if (self == NULL || o == NULL) {
        bk_dealloc(loop->os, self);
        bk_dealloc(loop->os, o);
        return NULL;
    }
    memset(o, 0, offsetof(opening, first));
    o->inner_open = !BK_HAS(inner->ops, open);
    o->bytes = o->first;
    o->room = sizeof o->first;
    self->base.ops = &proxy_ops[BK_HAS(inner->ops, flush)];
    self->loop = loop;
    self->inner = inner;
    self->opening = o;
    return self;
}

/* -ENOTSUP: it has none. Any other failure says nothing of who the peer is: nobody is believed. */
static int ask(bk_transport *inner, int what, struct sockaddr_storage *ret_address,
               unsigned *ret_size) {
    size_t size = sizeof *ret_address;
    int code = query_inner(inner, what, ret_address, &size);
    if (code < 0 && code != -ENOTSUP)
        return code;
    *ret_size = code < 0 ? 0 : (unsigned)size;
    return 0;
}

int bk_proxy_read(bk_loop *loop, bk_transport *inner, const bk_proxy_trust *trust, bool required,
                  bk_transport **ret_transport) {
    struct sockaddr_storage peer;
    unsigned size;
    int code = ask(inner, BK_QUERY_PEER, &peer, &size);
    if (code < 0)
        return code;
    bool trusted = bk_proxy_trusts(trust, (struct sockaddr *)&peer, size);
    if (!trusted && !required) {
        *ret_transport = inner;
        return 0;
    }
    proxy *self = make(loop, inner);
    if (self == NULL)
        return -ENOMEM;
    self->opening->required = required;
    self->opening->failed = trusted ? 0 : -EACCES;
    *ret_transport = &self->base;
    return 0;
}

int bk_proxy_send(bk_loop *loop, bk_transport *inner, int version, const struct sockaddr *source,
                  unsigned source_size, const struct sockaddr *destination,
                  unsigned destination_size, bk_transport **ret_transport) {
    struct sockaddr_storage own, peer;
    int code = version == 1 || version == 2 ? 0 : -EINVAL;
    if (code == 0 && source == NULL) {
        code = ask(inner, BK_QUERY_LOCAL, &own, &source_size);
        source = (struct sockaddr *)&own;
    }
    if (code == 0 && destination == NULL) {
        code = ask(inner, BK_QUERY_PEER, &peer, &destination_size);
        destination = (struct sockaddr *)&peer;
    }
    if (code < 0)
        return code;
    proxy *self = make(loop, inner);
    if (self == NULL)
        return -ENOMEM;
    opening *o = self->opening;
    o->sends = true;
    o->used =
        bk_proxy_header_make(version, source, source_size, destination, destination_size, o->bytes);
    *ret_transport = &self->base;
    return 0;
}
