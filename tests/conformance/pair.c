/*
 * pair.c: two streams whose protocols check what is promised to every protocol. See pair.h.
 */
#include "tests/conformance/pair.h"

#include <stdlib.h>

/* ---- Bytes ---- */

unsigned char pair_pattern(int index, uint64_t position) {
    return (unsigned char)(position * 7 + (position >> 8) * 13 + (position >> 16) * 29 +
                           (unsigned)index * 101 + 1);
}

struct parcel {
    parcel *next;
    side *x;
    char *data;
    size_t size;
    int released;
};

static void release_parcel(void *arg) {
    parcel *q = arg;
    side *x = q->x;
    MUST(x->c, q->released++ == 0);
    if (q->released > 1)
        return;
    memset(q->data, 0xdd, q->size);
    free(q->data);
    x->held -= q->size;
    if (x->on_release != NULL)
        x->on_release(x);
}

static parcel *parcel_new(side *x, size_t n) {
    parcel *q = malloc(sizeof *q);
    *q = (parcel){.next = x->parcels, .x = x, .data = malloc(n + 1), .size = n};
    for (size_t i = 0; i < n; i++)
        q->data[i] = (char)pair_pattern(x->index, x->sent + i);
    x->parcels = q;
    x->held += n;
    if (x->held > x->held_most)
        x->held_most = x->held;
    return q;
}

static void parcels_close(side *x) {
    while (x->parcels != NULL) {
        parcel *q = x->parcels;
        x->parcels = q->next;
        MUST(x->c, q->released == 1);
        if (q->released == 0)
            free(q->data);
        free(q);
    }
}

static int send_once(side *x, size_t n, pair_mode mode) {
    bool copy = mode == PAIR_COPY || (mode == PAIR_MIX && x->sent % 3 == 0);
    parcel *q = parcel_new(x, n);
    int code;
    x->sent += n; /* at once: the write may call back, and more be written from there */
    if (copy) {
        code = bk_stream_write(x->s, q->data, n, BK_COPY, NULL);
        release_parcel(q); /* it has been copied, or we shall see */
    } else {
        code = bk_stream_write(x->s, q->data, n, release_parcel, q);
        MUST(x->c, code >= 0 || q->released == 1);
    }
    if (code < 0)
        x->sent -= n;
    return code;
}

/* "Nothing was queued": the same bytes may be written once more, and nobody sees a difference. */
bool side_send(side *x, size_t n, pair_mode mode) {
    int code = send_once(x, n, mode);
    if (!FAILED(x->c, code))
        return true;
    if (code == -ENOMEM)
        (void)send_once(x, n, mode);
    return false;
}

void side_pump(side *x) {
    while (x->sent < x->goal && !x->stopped && x->s != NULL && !x->closing) {
        uint64_t left = x->goal - x->sent;
        size_t piece = x->piece != 0 ? x->piece : 1 + (size_t)(x->sent * 37 % 70001);
        if (!side_send(x, left < piece ? (size_t)left : piece, x->mode))
            return;
        bool told = x->stopped || bk_stream_queued(x->s) <= x->high;
        MUST(x->c, told); /* or we would write for ever */
        if (!told)
            x->goal = x->sent;
    }
}

/* ---- What the case does to a side ---- */

void side_pause(side *x) {
    x->paused = true;
    bk_stream_pause(x->s);
}

void side_resume(side *x) {
    x->paused = false;
    bk_stream_resume(x->s);
}

void side_close(side *x) {
    int closed = x->closed; /* it may be over before it was open */
    x->closing = true;
    bk_stream_close(x->s);
    MUST(x->c, x->closed == closed); /* never from within this call */
}

void side_abort(side *x) {
    int closed = x->closed;
    x->closing = x->aborted = true;
    bk_stream_abort(x->s);
    MUST(x->c, x->closed == closed);
}

/* ---- The protocol ---- */

/* Only blocked() may come while another callback is at work. */
static side *enter(bk_stream *s, bool within) {
    side *x = bk_stream_user(s);
    MUST(x->c, x->s == s);
    MUST(x->c, x->opened == 1);
    MUST(x->c, x->closed == 0);
    MUST(x->c, !x->aborted);
    MUST(x->c, within || x->depth == 0);
    x->depth++;
    return x;
}

static int protocol_opened(bk_stream *s) {
    side *x = bk_stream_user(s);
    MUST(x->c, x->opened == 0);
    x->opened++;
    x->s = s;
    (void)enter(s, false);
    int code = x->on_opened != NULL ? x->on_opened(x) : 0;
    x->depth--;
    return code;
}

static int protocol_room(bk_stream *s, bk_room *ret_room) {
    side *x = enter(s, false);
    int code = x->on_room(x, ret_room);
    x->depth--;
    return code;
}

static void protocol_received(bk_stream *s, const void *data, size_t n) {
    side *x = enter(s, false);
    const unsigned char *bytes = data;
    MUST(x->c, n > 0);
    MUST(x->c, !x->paused);
    MUST(x->c, !x->closing);
    MUST(x->c, x->ended == 0);
    size_t good = 0;
    while (good < n && !x->unchecked && bytes[good] == pair_pattern(x->pattern, x->got + good))
        good++;
    MUST(x->c, good == n || x->unchecked);
    x->received++;
    x->got += x->unchecked ? 0 : n;
    if (x->on_received != NULL)
        x->on_received(x, data, n);
    x->depth--;
}

static int protocol_ended(bk_stream *s) {
    side *x = enter(s, false);
    MUST(x->c, x->ended == 0);
    MUST(x->c, !x->closing);
    x->ended++;
    int keep = x->on_ended != NULL ? x->on_ended(x) : x->keep;
    x->depth--;
    return keep;
}

static void protocol_blocked(bk_stream *s) {
    side *x = enter(s, true);
    MUST(x->c, bk_stream_queued(s) > x->high);
    MUST(x->c, x->blocked == x->writable); /* turn and turn about */
    x->blocked++;
    x->stopped = true;
    if (x->on_blocked != NULL)
        x->on_blocked(x);
    x->depth--;
}

static void protocol_writable(bk_stream *s) {
    side *x = enter(s, false);
    MUST(x->c, bk_stream_queued(s) <= x->low);
    MUST(x->c, x->writable == x->blocked - 1);
    x->writable++;
    x->stopped = false;
    if (x->on_writable != NULL)
        x->on_writable(x);
    side_pump(x);
    x->depth--;
}

static int protocol_upgraded(bk_stream *s) {
    side *x = enter(s, false);
    x->upgraded++;
    int code = x->on_upgraded != NULL ? x->on_upgraded(x) : 0;
    x->depth--;
    return code;
}

static void protocol_closed(bk_stream *s, int why) {
    side *x = bk_stream_user(s);
    MUST(x->c, x->opened == 1 || x->waits);
    MUST(x->c, x->opened == 1 || why < 0); /* it was never there: that has a reason */
    MUST(x->c, x->closed == 0);
    MUST(x->c, x->depth == 0);
    MUST(x->c, why <= 0);
    MUST(x->c, bk_stream_write(s, "x", 1, BK_COPY, NULL) == -EPIPE);
    bk_stream_abort(s); /* too late to mean anything */
    bk_stream_close(s);
    x->closed++;
    x->why = why;
    x->s = NULL;
    if (x->on_closed != NULL)
        x->on_closed(x, s);
    if (why == 0 || why == -ECANCELED)
        return;
    if (x->may_break)
        conform_told(x->c);
    else
        conform_failed(x->c, why, __FILE__, __LINE__, "closed");
}

#define EVERY_PROTOCOL                                                                             \
    .size = sizeof(bk_protocol), .opened = protocol_opened, .received = protocol_received,         \
    .blocked = protocol_blocked, .writable = protocol_writable, .closed = protocol_closed,         \
    .upgraded = protocol_upgraded

const bk_protocol pair_plain = {EVERY_PROTOCOL, .name = "plain", .ended = protocol_ended};
const bk_protocol pair_roomy = {EVERY_PROTOCOL, .name = "roomy", .ended = protocol_ended,
                                .room = protocol_room};
const bk_protocol pair_deaf = {EVERY_PROTOCOL, .name = "deaf"};

/* ---- The pair ---- */

void pair_init(pair *p, bk_conform_case *c) {
    memset(p, 0, sizeof *p);
    p->c = c;
    for (int i = 0; i < 2; i++)
        p->sides[i] = (side){.c = c,
                             .p = p,
                             .peer = &p->sides[!i],
                             .index = i,
                             .pattern = !i,
                             .low = 16 * 1024,
                             .high = 64 * 1024};
}

static int put_filter(pair *p, int i) {
    return filter_new(p->transports[i], p->most, 0, &p->counts[i], &p->transports[i]);
}

static bool has_open(const bk_transport *t) {
    return t->ops->size > offsetof(bk_transport_ops, open) && t->ops->open != NULL;
}

int side_open(side *x, bk_loop *loop, bk_transport **transport) {
    bk_stream *s = NULL;
    const bk_protocol *protocol = x->protocol != NULL ? x->protocol : &pair_plain;
    x->waits = has_open(*transport);
    int code = bk_stream_new(loop, *transport, protocol, x, &s);
    if (code < 0) {
        MUST(x->c, x->opened == 0 && x->closed == 0);
        return code;
    }
    x->made = 1;
    x->s = s;
    *transport = NULL;
    MUST(x->c, x->opened == !x->waits); /* before it returned, or not from within */
    MUST(x->c, x->closed == 0);         /* and never closed from within */
    return 0;
}

/* A transport that has to open does so while the loop turns. */
static int await_opened(pair *p) {
    for (int i = 0; i < 2; i++)
        while (p->sides[i].opened == 0 && p->sides[i].closed == 0)
            if (!pair_turn(p))
                return -ECANCELED;
    for (int i = 0; i < 2; i++)
        if (p->sides[i].opened == 0 && !p->sides[i].may_break)
            return p->sides[i].why;
    return 0;
}

int pair_open(pair *p) {
    const bk_conform_joint *joint = p->c->subject;
    int code = conform_loop(p->c, NULL, &p->loop);
    if (code >= 0)
        code = joint->make(p->loop, joint->arg, p->transports);
    for (int i = 0; i < 2 && code >= 0 && p->filtered; i++)
        code = put_filter(p, i);
    for (int i = 0; i < 2 && code >= 0; i++)
        code = side_open(&p->sides[i], p->loop, &p->transports[i]);
    return code < 0 ? code : await_opened(p);
}

void pair_abort(pair *p) {
    for (int i = 0; i < 2; i++) {
        if (p->transports[i] != NULL)
            p->transports[i]->ops->close(p->transports[i]);
        p->transports[i] = NULL;
        if (p->sides[i].s != NULL)
            side_abort(&p->sides[i]);
    }
    for (int i = 0; i < 50 && (p->sides[0].s != NULL || p->sides[1].s != NULL); i++)
        if (bk_loop_turn(p->loop, 0) < 0) /* again: a fault strikes once */
            continue;
}

void pair_check(pair *p) {
    for (int i = 0; i < 2; i++) {
        side *x = &p->sides[i];
        MUST(p->c, x->closed == x->made);
        MUST(p->c, x->opened == x->made || x->waits);
        MUST(p->c, x->depth == 0);
        parcels_close(x);
    }
}

void pair_close(pair *p) {
    pair_abort(p);
    conform_loop_free(p->c, p->loop);
    pair_check(p);
}

bool pair_turn(pair *p) {
    return conform_turn(p->c, p->loop);
}

void pair_finish(pair *p) {
    side *a = &p->sides[0], *b = &p->sides[1];
    UNTIL(p, a->got == b->sent && b->got == a->sent);
    for (int i = 0; i < 2; i++)
        if (p->sides[i].s != NULL)
            side_close(&p->sides[i]);
    UNTIL(p, a->closed == 1 && b->closed == 1);
    EXPECT(p->c, a->why == 0 && b->why == 0);
out:;
}

/* ---- The filter ---- */

enum { FILTER_BYTES = 8192 };

typedef struct filter {
    bk_transport base;
    bk_transport_ops ops; /* its own: without those functions that inner lacks */
    bk_transport *inner;
    size_t most;
    unsigned char key;
    filter_counts *counts, nobody;
} filter;

static filter *filter_of(bk_transport *t) {
    filter *f = (filter *)t;
    f->inner->stream = t->stream; /* so that it wakes the same one */
    return f;
}

static void mix(const filter *f, unsigned char *bytes, size_t n) {
    for (size_t i = 0; i < n; i++)
        bytes[i] ^= f->key;
}

static ssize_t filter_read(bk_transport *t, void *room, size_t n) {
    filter *f = filter_of(t);
    f->counts->reads++;
    ssize_t got = f->inner->ops->read(f->inner, room, f->most != 0 && n > f->most ? f->most : n);
    if (got > 0)
        mix(f, room, (size_t)got);
    return got;
}

static ssize_t filter_write(bk_transport *t, const struct iovec *v, int n) {
    unsigned char bytes[FILTER_BYTES];
    filter *f = filter_of(t);
    size_t most = f->most != 0 && f->most < sizeof bytes ? f->most : sizeof bytes;
    size_t all = 0, used = 0;
    for (int i = 0; i < n; i++) {
        size_t take = v[i].iov_len < most - used ? v[i].iov_len : most - used;
        memcpy(bytes + used, v[i].iov_base, take);
        used += take;
        all += v[i].iov_len;
    }
    mix(f, bytes, used);
    f->counts->writes++;
    struct iovec one = {bytes, used};
    ssize_t sent = f->inner->ops->write(f->inner, &one, 1);
    f->counts->refused += sent < (ssize_t)all;
    return sent;
}

static int filter_flush(bk_transport *t) {
    filter *f = filter_of(t);
    return f->inner->ops->flush(f->inner);
}

static unsigned filter_wants(bk_transport *t, unsigned directions) {
    filter *f = filter_of(t);
    return f->inner->ops->wants(f->inner, directions);
}

static int filter_end(bk_transport *t) {
    filter *f = filter_of(t);
    return f->inner->ops->end(f->inner);
}

static void filter_close(bk_transport *t) {
    filter *f = filter_of(t);
    f->inner->ops->close(f->inner);
    free(f);
}

static int filter_fd(bk_transport *t, unsigned direction) {
    filter *f = filter_of(t);
    return f->inner->ops->fd(f->inner, direction);
}

static int filter_query(bk_transport *t, int what, void *ret_value, size_t *size) {
    filter *f = filter_of(t);
    return f->inner->ops->query(f->inner, what, ret_value, size);
}

static int filter_open(bk_transport *t) {
    filter *f = filter_of(t);
    return f->inner->ops->open(f->inner);
}

#define INNER_HAS(ops, function)                                                                   \
    ((ops)->size > offsetof(bk_transport_ops, function) && (ops)->function != NULL)

int filter_new(bk_transport *inner, size_t most, unsigned char key, filter_counts *counts,
               bk_transport **ret_transport) {
    filter *f = calloc(1, sizeof *f);
    if (f == NULL)
        return -ENOMEM;
    f->ops = (bk_transport_ops){.size = sizeof f->ops,
                                .name = "filter",
                                .read = filter_read,
                                .write = filter_write,
                                .close = filter_close,
                                .fd = filter_fd};
    f->ops.flush = INNER_HAS(inner->ops, flush) ? filter_flush : NULL;
    f->ops.wants = INNER_HAS(inner->ops, wants) ? filter_wants : NULL;
    f->ops.end = INNER_HAS(inner->ops, end) ? filter_end : NULL;
    f->ops.query = INNER_HAS(inner->ops, query) ? filter_query : NULL;
    /* That of a stream is open already. */
    f->ops.open = INNER_HAS(inner->ops, open) && inner->stream == NULL ? filter_open : NULL;
    f->base.ops = &f->ops;
    f->base.stream = inner->stream;
    f->inner = inner;
    f->most = most;
    f->key = key;
    f->counts = counts != NULL ? counts : &f->nobody;
    *ret_transport = &f->base;
    return 0;
}
