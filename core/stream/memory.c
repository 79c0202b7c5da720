/*
 * memory.c: two transports joined in memory, for tests, for protocols that talk to each other in
 * one process, and under simulators. Called through bk_memory_transport().
 *
 * Each direction is a ring that exists only while it holds bytes, and grows up to its limit.
 */
#include "core/stream/stream.h"

enum { RING_LEAST = 1024 };

typedef struct ring {
    char *bytes;
    size_t room, from, count; /* of bytes; count of them, beginning at from */
    bool refused;             /* the writer waits for room */
    bool ended;               /* nothing more will be written */
} ring;

typedef struct memory_pair memory_pair;

typedef struct memory_transport {
    bk_transport base;
    memory_pair *pair;
    struct memory_transport *peer;
    ring in; /* what the peer has sent */
    bool closed;
} memory_transport;

/* Freed when both ends are closed. */
struct memory_pair {
    bk_os *os;
    size_t capacity;
    memory_transport ends[2];
};

/* ---- The ring ---- */

static size_t least(size_t a, size_t b) {
    return a < b ? a : b;
}

static void ring_copy_out(const ring *r, char *to, size_t n) {
    size_t first = least(n, r->room - r->from);
    memcpy(to, r->bytes + r->from, first);
    memcpy(to + first, r->bytes, n - first);
}

static void ring_copy_in(ring *r, const char *data, size_t n) {
    size_t at = (r->from + r->count) % r->room, first = least(n, r->room - at);
    memcpy(r->bytes + at, data, first);
    memcpy(r->bytes, data + first, n - first);
    r->count += n;
}

static void ring_empty(bk_os *os, ring *r) {
    bk_dealloc(os, r->bytes);
    r->bytes = NULL;
    r->room = r->from = r->count = 0;
}

/* Room for n bytes in all, n being no more than the capacity. */
static int ring_grow(const memory_pair *pair, ring *r, size_t n) {
    size_t room = r->room > 0 ? r->room : RING_LEAST;
    if (n <= r->room)
        return 0;
    while (room < n)
        room *= 2;
    room = least(room, pair->capacity);
    char *bytes = bk_alloc(pair->os, room);
    if (bytes == NULL)
        return -ENOMEM;
    if (r->count > 0)
        ring_copy_out(r, bytes, r->count);
    bk_dealloc(pair->os, r->bytes);
    r->bytes = bytes;
    r->room = room;
    r->from = 0;
    return 0;
}

/* ---- The transport ---- */

static ssize_t memory_read(bk_transport *t, void *room, size_t n) {
    memory_transport *self = (memory_transport *)t;
    ring *r = &self->in;
    if (r->count == 0)
        return r->ended ? 0 : -EAGAIN;
    n = least(n, r->count);
    ring_copy_out(r, room, n);
    r->from = (r->from + n) % r->room;
    r->count -= n;
    if (r->count == 0)
        ring_empty(self->pair->os, r);
    if (r->refused) {
        r->refused = false;
        bk_transport_wake(&self->peer->base);
    }
    return (ssize_t)n;
}

static ssize_t memory_write(bk_transport *t, const struct iovec *v, int n) {
    memory_transport *self = (memory_transport *)t;
    ring *r = &self->peer->in;
    size_t total = 0, left;
    if (self->peer->closed || r->ended)
        return -EPIPE;
    for (int i = 0; i < n; i++)
        total += v[i].iov_len;
    left = least(total, self->pair->capacity - r->count);
    r->refused = left < total;
    if (left == 0)
        return total == 0 ? 0 : -EAGAIN;
    int code = ring_grow(self->pair, r, r->count + left);
    if (code < 0)
        return code;
    ssize_t sent = (ssize_t)left;
    for (; left > 0; v++) {
        size_t part = least(left, v->iov_len);
        ring_copy_in(r, v->iov_base, part);
        left -= part;
    }
    bk_transport_wake(&self->peer->base);
    return sent;
}

static int memory_end(bk_transport *t) {
    memory_transport *self = (memory_transport *)t;
    self->peer->in.ended = true;
    if (!self->peer->closed)
        bk_transport_wake(&self->peer->base);
    return 0;
}

static void memory_close(bk_transport *t) {
    memory_transport *self = (memory_transport *)t;
    memory_pair *pair = self->pair;
    bk_os *os = pair->os;
    ring_empty(os, &self->in);
    self->closed = true;
    self->base.stream = NULL;
    if (self->peer->closed)
        bk_dealloc(os, pair);
    else
        memory_end(t);
}

static int memory_fd(bk_transport *t, unsigned direction) {
    (void)t, (void)direction;
    return -1;
}

static int memory_query(bk_transport *t, int what, void *ret_value, size_t *size) {
    (void)t;
    if (what != BK_QUERY_NAME)
        return -ENOTSUP;
    if (*size < sizeof "memory")
        return -ENOSPC;
    memcpy(ret_value, "memory", sizeof "memory");
    *size = sizeof "memory";
    return 0;
}

static const bk_transport_ops memory_ops = {
    .size = sizeof(bk_transport_ops),
    .name = "memory",
    .read = memory_read,
    .write = memory_write,
    .end = memory_end,
    .close = memory_close,
    .fd = memory_fd,
    .query = memory_query,
};

/* ---- Making two ---- */

int bk_memory_transport(bk_loop *loop, size_t capacity, bk_transport *ret_pair[2]) {
    if (loop == NULL || ret_pair == NULL || capacity > SIZE_MAX / 4)
        return -EINVAL;
    memory_pair *pair = bk_alloc_zero(loop->os, sizeof *pair);
    if (pair == NULL)
        return -ENOMEM;
    pair->os = loop->os;
    pair->capacity = capacity > 0 ? capacity : BK_MEMORY_BYTES;
    for (int i = 0; i < 2; i++) {
        pair->ends[i].base.ops = &memory_ops;
        pair->ends[i].pair = pair;
        pair->ends[i].peer = &pair->ends[1 - i];
        ret_pair[i] = &pair->ends[i].base;
    }
    return 0;
}
