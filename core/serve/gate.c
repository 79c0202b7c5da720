/*
 * gate.c: a server's limits. A gate counts connections, of all listeners that stand behind it, in
 * whatever loops; a listener's front asks it for each stream, and gives those that may come in a
 * visit, which core/stream fills in. Called by bk_listen_with() for listeners that have a gate.
 *
 * What several loops share is under the gate's lock: two short sections for each connection.
 */
#include "core/serve/serve.h"

#include <stdatomic.h>

enum {
    GATE_BUCKETS = 1024,
    GATE_BURST = 10, /* a tenth of a second's connections may come at once */
};

/* Connections from one IPv4 address, or one /64 of IPv6, which is as much as one host. */
typedef struct address {
    struct address *next, **link;
    uint64_t high, low;
    unsigned count;
} address;

struct bk_gate {
    bk_os *os;
    atomic_uint refs;
    bk_lock *lock;
    bk_limits limits;
    void (*leave)(void *arg, const bk_visitor *visitor);
    void *arg;
    bk_gate_stats stats;
    bool shut;
    int64_t due; /* when the next connection may come, by the rate */
    uint64_t seed;
    address **buckets; /* [GATE_BUCKETS], where addresses are counted */
};

/* ---- Life ---- */

static int open_gate(bk_gate *g, const bk_limits *limits) {
    memcpy(&g->limits, limits, limits->size < sizeof *limits ? limits->size : sizeof *limits);
    g->lock = bk_lock_new(g->os);
    if (g->lock == NULL)
        return -ENOMEM;
    if (g->limits.max_per_address == 0)
        return 0;
    g->buckets = bk_alloc_zero(g->os, GATE_BUCKETS * sizeof(address *));
    if (g->buckets == NULL)
        return -ENOMEM;
    return g->os->random(g->os, &g->seed, sizeof g->seed);
}

static void free_gate(bk_gate *g) {
    bk_lock_free(g->os, g->lock);
    bk_dealloc(g->os, g->buckets);
    bk_dealloc(g->os, g);
}

int bk_gate_new(bk_os *os, const bk_limits *limits,
                void (*leave)(void *arg, const bk_visitor *visitor), void *arg,
                bk_gate **ret_gate) {
    if (os == NULL || limits == NULL || limits->size < sizeof limits->size || ret_gate == NULL)
        return -EINVAL;
    bk_gate *g = bk_alloc_zero(os, sizeof *g);
    if (g == NULL)
        return -ENOMEM;
    g->os = os;
    g->leave = leave;
    g->arg = arg;
    atomic_init(&g->refs, 1);
    int code = open_gate(g, limits);
    if (code < 0) {
        free_gate(g);
        return code;
    }
    *ret_gate = g;
    return 0;
}

bk_gate *bk_gate_ref(bk_gate *gate) {
    if (gate != NULL)
        atomic_fetch_add(&gate->refs, 1);
    return gate;
}

void bk_gate_unref(bk_gate *gate) {
    if (gate != NULL && atomic_fetch_sub(&gate->refs, 1) == 1)
        free_gate(gate);
}

void bk_gate_stats_of(bk_gate *gate, bk_gate_stats *ret_stats) {
    if (gate == NULL || ret_stats == NULL || ret_stats->size > sizeof gate->stats)
        return;
    size_t size = ret_stats->size;
    bk_lock_take(gate->lock);
    memcpy(ret_stats, &gate->stats, size);
    bk_lock_drop(gate->lock);
    ret_stats->size = size;
}

void bk_gate_shut(bk_gate *gate) {
    if (gate == NULL)
        return;
    bk_lock_take(gate->lock);
    gate->shut = true;
    bk_lock_drop(gate->lock);
}

/* ---- Addresses ---- */

/* Whether it is an IP address. */
static bool read_address(const struct sockaddr *peer, size_t size, uint64_t *ret_high,
                         uint64_t *ret_low) {
    unsigned char bytes[16] = {0};
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
    static const unsigned char mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
    if (size >= sizeof v6 && peer->sa_family == AF_INET6) {
        memcpy(&v6, peer, sizeof v6);
        memcpy(bytes, &v6.sin6_addr, memcmp(&v6.sin6_addr, mapped, 12) == 0 ? 16 : 8);
    } else if (size >= sizeof v4 && peer->sa_family == AF_INET) {
        memcpy(&v4, peer, sizeof v4);
        memcpy(bytes, mapped, sizeof mapped);
        memcpy(bytes + 12, &v4.sin_addr, 4);
    } else {
        return false;
    }
    memcpy(ret_high, bytes, 8);
    memcpy(ret_low, bytes + 8, 8);
    return true;
}

/* splitmix64's mixing; the seed keeps strangers from choosing addresses of one bucket. */
static size_t bucket_of(const bk_gate *g, uint64_t high, uint64_t low) {
    uint64_t x = (high ^ g->seed) * UINT64_C(0x9e3779b97f4a7c15) + low;
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return (size_t)((x ^ (x >> 31)) % GATE_BUCKETS);
}

/* The entry of an address, made when there is none; NULL: no memory. Under the lock. */
static address *find_address(bk_gate *g, uint64_t high, uint64_t low) {
    address **bucket = &g->buckets[bucket_of(g, high, low)], *a;
    for (a = *bucket; a != NULL; a = a->next)
        if (a->high == high && a->low == low)
            return a;
    a = bk_alloc(g->os, sizeof *a);
    if (a == NULL)
        return NULL;
    *a = (address){.next = *bucket, .link = bucket, .high = high, .low = low};
    if (a->next != NULL)
        a->next->link = &a->next;
    *bucket = a;
    return a;
}

static void leave_address(bk_gate *g, address *a) {
    if (a == NULL || (a->count > 0 && --a->count > 0))
        return;
    *a->link = a->next;
    if (a->next != NULL)
        a->next->link = a->link;
    bk_dealloc(g->os, a);
}

/* ---- Visits ---- */

typedef struct gate_front {
    bk_listener_front base;
    bk_loop *loop;
    bk_gate *gate;
    bool handshakes; /* streams open later, behind another front */
    bk_timer rate;   /* the listener is paused until then */
} gate_front;

typedef struct visit {
    bk_visit base;
    gate_front *front;
    address *from; /* NULL: has none, or is not counted */
    int64_t wall, clock;
    bool shaking; /* in its handshake */
} visit;

static void tell_leave(const visit *v, bk_stream *s, int why) {
    const bk_gate *g = v->front->gate;
    struct sockaddr_storage peer;
    size_t size = sizeof peer;
    if (g->leave == NULL)
        return;
    bk_visitor visitor = {.listener = v->front->base.listener->name,
                          .stream = v->base.refused ? NULL : s,
                          .peer = (struct sockaddr *)&peer,
                          .began = v->wall,
                          .lasted = bk_loop_now(v->front->loop) - v->clock,
                          .bytes_in = v->base.bytes_in,
                          .bytes_out = v->base.bytes_out,
                          .why = why};
    if (bk_stream_query(s, BK_QUERY_PEER, &peer, &size) >= 0)
        visitor.peer_size = (unsigned)size;
    g->leave(g->arg, &visitor);
}

static void tell_crowd(const bk_listener *l, int change) {
    if (l->crowd != NULL)
        l->crowd(l->crowd_arg, change);
}

static void visit_opened(bk_visit *base, bk_stream *s) {
    visit *v = (visit *)base;
    bk_gate *g = v->front->gate;
    (void)s;
    if (!v->shaking)
        return;
    v->shaking = false;
    bk_lock_take(g->lock);
    g->stats.handshakes--;
    bk_lock_drop(g->lock);
}

static void visit_closed(bk_visit *base, bk_stream *s, int why) {
    visit *v = (visit *)base;
    gate_front *f = v->front;
    bk_gate *g = f->gate;
    tell_leave(v, s, base->refused ? BK_ELIMIT : why);
    bk_lock_take(g->lock);
    if (v->shaking)
        g->stats.handshakes--;
    if (!base->refused) {
        leave_address(g, v->from);
        g->stats.connections--;
        g->stats.closed++;
        g->stats.failed += why != 0;
        g->stats.bytes_in += base->bytes_in;
        g->stats.bytes_out += base->bytes_out;
    }
    bk_lock_drop(g->lock);
    if (!base->refused)
        tell_crowd(f->base.listener, -1);
    bk_dealloc(f->loop->os, v);
    bk_listener_drop(f->base.listener);
}

/* 0: come in. Under the lock. */
static int admit(gate_front *f, visit *v, const struct sockaddr *peer, size_t size) {
    bk_gate *g = f->gate;
    const bk_limits *limits = &g->limits;
    uint64_t high, low;
    if (g->shut)
        return -ESHUTDOWN;
    if (limits->max_connections != 0 && g->stats.connections >= limits->max_connections)
        return BK_ELIMIT;
    if (f->handshakes && limits->max_pending_handshakes != 0 &&
        g->stats.handshakes >= limits->max_pending_handshakes)
        return BK_ELIMIT;
    if (limits->max_per_address != 0 && read_address(peer, size, &high, &low)) {
        address *a = find_address(g, high, low);
        if (a == NULL)
            return -ENOMEM;
        if (a->count >= limits->max_per_address)
            return BK_ELIMIT;
        a->count++;
        v->from = a;
    }
    v->shaking = f->handshakes;
    g->stats.handshakes += v->shaking;
    g->stats.connections++;
    g->stats.accepted++;
    return 0;
}

/* Nanoseconds to wait before the next is accepted. Under the lock. */
static int64_t pace(bk_gate *g, int64_t now) {
    int64_t each = g->limits.accept_rate == 0 ? 0 : BK_SECOND / g->limits.accept_rate;
    int64_t burst = BK_SECOND / GATE_BURST;
    if (each == 0)
        return 0;
    if (g->due < now - burst)
        g->due = now - burst;
    g->due += each;
    return g->due - now;
}

/* ---- The front ---- */

static void rate_over(void *arg) {
    gate_front *f = arg;
    (void)bk_acceptor_pause(f->base.listener->acceptor, BK_PAUSE_RATE, false);
}

/* Without memory for a timer there is no pause: rather too many than none. */
static void slow_down(gate_front *f, int64_t wait) {
    if (f->rate.place != 0 || f->base.listener->acceptor == NULL)
        return;
    if (bk_timer_start(f->loop, &f->rate, bk_loop_now(f->loop) + wait, rate_over, f) == 0)
        (void)bk_acceptor_pause(f->base.listener->acceptor, BK_PAUSE_RATE, true);
}

static int make_visit(gate_front *f, bk_stream *s, visit **ret_visit) {
    visit *v = bk_alloc_zero(f->loop->os, sizeof *v);
    if (v == NULL)
        return -ENOMEM;
    v->base =
        (bk_visit){.opened = visit_opened, .closed = visit_closed, .limits = &f->gate->limits};
    v->front = f;
    v->clock = bk_loop_now(f->loop);
    v->base.began = v->base.sent = (uint32_t)(v->clock / BK_SECOND);
    if (f->gate->leave != NULL)
        v->wall = f->loop->os->wall(f->loop->os);
    bk_listener_hold(f->base.listener);
    bk_stream_set_visit(s, &v->base);
    *ret_visit = v;
    return 0;
}

/* Whether s may come in; and how long the next is to wait. */
static int ask(gate_front *f, bk_stream *s, visit *v, int64_t *ret_wait) {
    bk_gate *g = f->gate;
    struct sockaddr_storage peer;
    size_t size = sizeof peer;
    if (g->limits.max_per_address == 0 || bk_stream_query(s, BK_QUERY_PEER, &peer, &size) < 0)
        size = 0;
    bk_lock_take(g->lock);
    int code = admit(f, v, (struct sockaddr *)&peer, size);
    *ret_wait = pace(g, v->clock);
    v->base.refused = code < 0;
    g->stats.refused += code < 0;
    bk_lock_drop(g->lock);
    return code;
}

static int gate_opened(bk_stream *s) {
    static const bk_protocol nobody = {.size = sizeof nobody, .name = "nobody"};
    gate_front *f = (gate_front *)(uintptr_t)s->protocol;
    int64_t wait;
    visit *v;
    int code = make_visit(f, s, &v);
    if (code < 0) {
        s->protocol = &nobody; /* it does not hold the listener, nor so the front */
        return code;
    }
    code = ask(f, s, v, &wait);
    if (wait > 0)
        slow_down(f, wait);
    if (code == 0)
        tell_crowd(f->base.listener, 1);
    if (code == 0)
        return bk_stream_pass_on(s, f->base.front.protocol);
    bk_stream_refuse(s, f->base.front.protocol, code == -ESHUTDOWN ? code : BK_ELIMIT);
    return 0;
}

static void gate_stop(bk_listener_front *base) {
    gate_front *f = (gate_front *)base;
    bk_timer_stop(f->loop, &f->rate);
}

static void gate_free(bk_listener_front *base) {
    gate_front *f = (gate_front *)base;
    bk_gate_unref(f->gate);
    bk_dealloc(f->loop->os, f);
}

int bk_gate_front(bk_loop *loop, bk_gate *gate, bool handshakes, const bk_protocol *protocol,
                  bk_error *error, bk_listener_front **ret_front) {
    gate_front *f = bk_alloc_zero(loop->os, sizeof *f);
    if (f == NULL)
        return bk_error_set(error, -ENOMEM, 0, "%s", bk_strerror(-ENOMEM));
    f->base.front.base =
        (bk_protocol){.size = sizeof(bk_protocol), .name = bk_front_name, .opened = gate_opened};
    f->base.front.protocol = protocol;
    f->base.stop = gate_stop;
    f->base.free = gate_free;
    f->loop = loop;
    f->gate = bk_gate_ref(gate);
    f->handshakes = handshakes;
    *ret_front = &f->base;
    return 0;
}
