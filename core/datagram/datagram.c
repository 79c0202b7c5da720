/*
 * datagram.c: a socket of datagrams: receiving several at once, sending several at once, and the
 * flow control between the socket and a protocol. Called by owners of a bk_datagram, by the loop's
 * watches when its socket is ready, and by the turn in loop.c.
 *
 * A bk_datagram is freed in one place only, finish(), which the ready queue calls, so every other
 * function may call the protocol and go on to use it; it only has to look whether it is closed now.
 */
#include "core/datagram/datagram.h"

#define TELL(d, function, ...)                                                                     \
    do {                                                                                           \
        if (BK_HAS((d)->protocol, function))                                                       \
            (d)->protocol->function(__VA_ARGS__);                                                  \
    } while (0)

/* What datagrams are received into; one per loop. Each begins elsewhere in its page, or all would
   share the same few lines of the processor's cache. */
enum { STAGGER = 320, SLOT = BK_UDP_BYTES + STAGGER };

typedef struct bk_datagram_room {
    bk_message messages[BK_DATAGRAMS_PER_CALL];
    struct sockaddr_storage addresses[BK_DATAGRAMS_PER_CALL];
    char bytes[BK_DATAGRAMS_PER_CALL * SLOT];
} bk_datagram_room;

static void datagram_ready(void *arg, unsigned events);

/* ---- What it waits for ---- */

static bool wants_to_receive(const bk_datagram *d) {
    return !(d->flags & (BK_DATAGRAM_PAUSED | BK_DATAGRAM_CLOSING | BK_DATAGRAM_CLOSED));
}

/* Have it looked at in the next turn. */
static void schedule(bk_datagram *d) {
    if (d->flags & BK_DATAGRAM_DUE)
        return;
    d->flags |= BK_DATAGRAM_DUE;
    d->next_due = d->loop->due;
    d->loop->due = d;
}

/* Bring what is watched in line with what it is up to. Costs nothing when that is so. */
static int watch(bk_datagram *d) {
    bool writes = d->flags & BK_DATAGRAM_BUSY && d->rest.place == 0;
    unsigned want = (wants_to_receive(d) ? BK_READ : 0) | (writes ? BK_WRITE : 0);
    unsigned changed = d->flags & BK_DATAGRAM_CLOSED ? 0 : want ^ d->watched;
    for (unsigned direction = BK_READ; direction <= BK_WRITE; direction <<= 1) {
        if (!(changed & direction))
            continue;
        bk_watch_fn fn = want & direction ? datagram_ready : NULL;
        int code = bk_watch_set(d->loop, d->fd, direction, fn, d);
        if (code < 0)
            return code;
        d->watched ^= (uint8_t)direction;
    }
    return 0;
}

static void fail(bk_datagram *d, int why);

static void update(bk_datagram *d) {
    int code = watch(d);
    if (code < 0)
        fail(d, code);
}

/* Somebody may have closed the descriptor, and another one have its number now: no more is
   forgotten than is ours. */
static void forget_fd(bk_datagram *d) {
    bk_loop *loop = d->loop;
    if (d->fd < 0 || (uint32_t)d->fd >= loop->watch_count)
        return;
    bk_watch *w = &loop->watches[d->fd];
    for (int slot = 0; slot < 2; slot++)
        if (w->fn[slot] == datagram_ready && w->arg[slot] == d)
            (void)bk_watch_set(loop, d->fd, slot ? BK_WRITE : BK_READ, NULL, NULL);
    if (w->fn[0] == NULL && w->fn[1] == NULL)
        bk_watch_forget(loop, d->fd);
    d->watched = 0;
}

/* ---- The end ---- */

static void unlist(bk_datagram *d) {
    bk_datagram **unsent = &d->loop->unsent, **due = &d->loop->due;
    while (d->flags & BK_DATAGRAM_UNSENT && *unsent != d)
        unsent = &(*unsent)->next_unsent;
    if (d->flags & BK_DATAGRAM_UNSENT)
        *unsent = d->next_unsent;
    while (d->flags & BK_DATAGRAM_DUE && *due != d)
        due = &(*due)->next_due;
    if (d->flags & BK_DATAGRAM_DUE)
        *due = d->next_due;
}

/* The last call of all; of the ready queue. */
static void finish(void *arg) {
    bk_datagram *d = arg;
    bk_loop *loop = d->loop;
    unlist(d);
    TELL(d, closed, d, d->why);
    *d->link = d->next;
    if (d->next != NULL)
        d->next->link = d->link;
    forget_fd(d);
    bk_close_fd(loop->os, d->fd);
    bk_dealloc(loop->os, d);
}

static void free_packets(bk_datagram *d, bk_packet *packet) {
    while (packet != NULL) {
        bk_packet *next = packet->next;
        bk_packet_free(d->loop, packet);
        packet = next;
    }
}

/* The end keeps its place among the calls. Without memory for that it comes all the same. */
static void close_with(bk_datagram *d, int why) {
    bk_timer_stop(d->loop, &d->rest);
    d->why = why;
    d->flags |= BK_DATAGRAM_CLOSING | BK_DATAGRAM_CLOSED;
    forget_fd(d);
    if (bk_loop_soon(d->loop, finish, d) < 0) {
        d->flags |= BK_DATAGRAM_ENDED;
        schedule(d);
    }
    if (d->held.count > 0)
        free_packets(d, bk_packets_take(&d->held, d->held.count));
}

static void drop(bk_datagram *d, uint32_t n) {
    bk_packet *first = bk_packets_take(&d->outgoing, n);
    for (const bk_packet *p = first; p != NULL; p = p->next)
        d->queued -= p->size + d->header;
    free_packets(d, first); /* all is in order: what is released may send, or abort */
}

static void fail(bk_datagram *d, int why) {
    if (d->flags & BK_DATAGRAM_CLOSED)
        return;
    close_with(d, why);
    d->loop->calling++;
    if (d->outgoing.count > 0)
        drop(d, d->outgoing.count);
    d->loop->calling--;
}

/* ---- Sending ---- */

static void mark_unsent(bk_datagram *d) {
    if (d->flags & (BK_DATAGRAM_UNSENT | BK_DATAGRAM_CLOSED))
        return;
    d->flags |= BK_DATAGRAM_UNSENT;
    d->next_unsent = d->loop->unsent;
    d->loop->unsent = d;
}

static void tell_failed(bk_datagram *d, int code) {
    TELL(d, failed, d, code);
}

/* What is there now, and not what failed() sends: or it could go on for ever. */
static void send_queue(bk_datagram *d) {
    bk_os *os = d->loop->os;
    uint32_t left = d->outgoing.count;
    while (left > 0 && d->outgoing.count > 0 && !(d->flags & BK_DATAGRAM_BUSY)) {
        bk_message messages[BK_DATAGRAMS_PER_CALL];
        uint32_t room = left < BK_DATAGRAMS_PER_CALL ? left : BK_DATAGRAMS_PER_CALL;
        int n = bk_packets_gather(&d->outgoing, messages, room);
        int sent = os->send_many(os, d->fd, messages, n);
        if (sent == -EINTR)
            continue;
        if (sent == -EAGAIN || sent == 0) {
            d->flags |= BK_DATAGRAM_BUSY;
            return;
        }
        uint32_t gone = sent < 0 ? 1 : (uint32_t)sent;
        left -= gone;
        drop(d, gone);
        if (sent < 0 && !(d->flags & BK_DATAGRAM_CLOSED))
            tell_failed(d, sent);
    }
}

static void tell_writable(bk_datagram *d) {
    const int not_now = BK_DATAGRAM_CLOSED | BK_DATAGRAM_SENDING;
    if (!(d->flags & BK_DATAGRAM_BLOCKED) || d->queued > d->low || d->flags & not_now)
        return;
    d->flags &= (uint32_t)~BK_DATAGRAM_BLOCKED;
    TELL(d, writable, d);
}

static void tell_blocked(bk_datagram *d) {
    const int not_now = BK_DATAGRAM_BLOCKED | BK_DATAGRAM_CLOSED | BK_DATAGRAM_SENDING;
    if (d->flags & not_now || d->queued <= d->high)
        return;
    d->flags |= BK_DATAGRAM_BLOCKED;
    d->loop->calling++;
    TELL(d, blocked, d);
    d->loop->calling--;
}

/* Send what there is, unless the socket is known to be full. `telling`: it is the loop that calls,
   and not the owner, who would hear of writable() from within what he is about. */
static void flush(bk_datagram *d, bool telling) {
    if (d->flags & (BK_DATAGRAM_CLOSED | BK_DATAGRAM_BUSY | BK_DATAGRAM_SENDING))
        return;
    d->loop->calling++;
    d->flags |= BK_DATAGRAM_SENDING;
    send_queue(d);
    d->flags &= (uint32_t)~BK_DATAGRAM_SENDING;
    if (telling)
        tell_writable(d);
    bool more = d->outgoing.count > 0 && !(d->flags & BK_DATAGRAM_BUSY);
    if (more || (d->flags & BK_DATAGRAM_BLOCKED && d->queued <= d->low))
        mark_unsent(d);
    if (d->outgoing.count == 0 && d->flags & BK_DATAGRAM_CLOSING &&
        !(d->flags & BK_DATAGRAM_CLOSED))
        close_with(d, 0);
    update(d);
    d->loop->calling--;
}

/* Each once: what is sent meanwhile waits for the next callback, or turn. */
static void flush_unsent(bk_loop *loop) {
    bk_datagram *d = loop->unsent;
    loop->unsent = NULL;
    while (d != NULL) {
        bk_datagram *next = d->next_unsent;
        d->flags &= (uint32_t)~BK_DATAGRAM_UNSENT;
        flush(d, true);
        tell_blocked(d);
        d = next;
    }
}

/* Whether something is about to return that more may be sent in. Not between turns; and not while
   the loop waits, if its host lets another thread in meanwhile. */
static bool in_callback(const bk_loop *loop) {
    return !atomic_load_explicit(&loop->waiting, memory_order_relaxed);
}

int bk_datagram_send(bk_datagram *d, const void *data, size_t n, bk_release release, void *arg,
                     const struct sockaddr *to, unsigned to_size) {
    bk_message m = {.data = (void *)(uintptr_t)data,
                    .size = n,
                    .address = (struct sockaddr *)(uintptr_t)to,
                    .address_size = to == NULL ? 0 : to_size};
    bool valid =
        d != NULL && (data != NULL || n == 0) && to_size <= sizeof(struct sockaddr_storage);
    int code = !valid ? -EINVAL : d->flags & BK_DATAGRAM_CLOSING ? -EPIPE : 0;
    bk_packet *packet = code == 0 ? bk_packet_new(d->loop, &m, release, arg) : NULL;
    if (packet == NULL) {
        if (release != BK_COPY)
            release(arg);
        return code < 0 ? code : -ENOMEM;
    }
    bk_packets_add(&d->outgoing, packet);
    d->queued += n + d->header;
    if (d->queued > d->high || n >= BK_BLOCK_BYTES || !in_callback(d->loop)) {
        flush(d, false);
        tell_blocked(d);
    }
    if (d->outgoing.count > 0)
        mark_unsent(d);
    return 0;
}

void bk_datagram_flush(bk_datagram *d) {
    if (d != NULL)
        flush(d, false);
}

/* ---- Receiving ---- */

static void deliver(bk_datagram *d, const void *data, size_t n, void *address, unsigned size) {
    TELL(d, received, d, data, n, size > 0 ? address : NULL, size);
}

/* What cannot be told now is told in a later turn. */
static void hold(bk_datagram *d, const bk_message *m) {
    bk_packet *packet = bk_packet_new(d->loop, m, BK_COPY, NULL);
    if (packet == NULL) {
        tell_failed(d, -ENOMEM);
        return;
    }
    bk_packets_add(&d->held, packet);
    schedule(d);
}

static void deliver_held(bk_datagram *d) {
    while (d->held.count > 0 && wants_to_receive(d) && !d->loop->broken) {
        bk_packet *p = bk_packets_take(&d->held, 1);
        deliver(d, p->data, p->size, p->bytes, p->address_size);
        bk_packet_free(d->loop, p);
    }
    if (d->held.count > 0 && wants_to_receive(d))
        schedule(d);
}

static int find_room(bk_datagram *d, bk_datagram_room **ret_room) {
    bk_loop *loop = d->loop;
    size_t slot = d->longest + STAGGER;
    int count = (int)(sizeof loop->datagram_room->bytes / slot);
    if (loop->datagram_room == NULL)
        loop->datagram_room = bk_alloc(loop->os, sizeof *loop->datagram_room);
    bk_datagram_room *room = loop->datagram_room;
    if (room == NULL)
        return -ENOMEM;
    for (int i = 0; i < count; i++)
        room->messages[i] = (bk_message){.data = room->bytes + (size_t)i * slot,
                                         .size = d->longest,
                                         .address = (struct sockaddr *)&room->addresses[i],
                                         .address_size = sizeof room->addresses[i]};
    *ret_room = room;
    return count;
}

/* Once an event: however many there are, others have their turn. */
static void receive(bk_datagram *d) {
    bk_os *os = d->loop->os;
    bk_datagram_room *room;
    deliver_held(d);
    if (!wants_to_receive(d) || d->held.count > 0)
        return;
    int n = find_room(d, &room);
    if (n > 0)
        n = os->recv_many(os, d->fd, room->messages, n);
    if (n < 0 && n != -EAGAIN && n != -EINTR)
        tell_failed(d, n);
    for (int i = 0; i < n && !(d->flags & BK_DATAGRAM_CLOSING); i++) {
        bk_message *m = &room->messages[i];
        if (wants_to_receive(d) && !d->loop->broken)
            deliver(d, m->data, m->size, m->address, m->address_size);
        else
            hold(d, m);
    }
}

/* ---- Events ---- */

static void rested(void *arg) {
    update(arg);
}

/* A UNIX socket is writable as far as it knows, while the one it sends to is full: to ask at once
   again would be to ask all the time. */
static void send_more(bk_datagram *d) {
    uint32_t before = d->outgoing.count;
    d->flags &= (uint32_t)~BK_DATAGRAM_BUSY;
    flush(d, true);
    if (!(d->flags & BK_DATAGRAM_BUSY) || d->outgoing.count != before || d->rest.place != 0)
        return;
    int64_t until = bk_loop_now(d->loop) + BK_DATAGRAM_REST_MS * BK_MILLISECOND;
    (void)bk_timer_start(d->loop, &d->rest, until, rested, d); /* (without memory: it asks) */
    update(d);
}

static void datagram_ready(void *arg, unsigned events) {
    bk_datagram *d = arg;
    if (events & (BK_WRITE | BK_HANGUP) && d->flags & BK_DATAGRAM_BUSY)
        send_more(d);
    if (events & (BK_READ | BK_HANGUP))
        receive(d);
    update(d);
    /* A descriptor that the notifier will not watch would never be heard of again. */
    int code = events & BK_HANGUP && d->watched != 0 ? bk_watch_apply(d->loop, d->fd) : 0;
    if (code < 0)
        fail(d, code);
}

static void take_turn(bk_loop *loop) {
    bk_datagram *d = loop->due;
    loop->due = NULL;
    while (d != NULL) {
        bk_datagram *next = d->next_due;
        d->flags &= (uint32_t)~BK_DATAGRAM_DUE;
        if (loop->broken)
            schedule(d);
        else if (d->flags & BK_DATAGRAM_ENDED)
            finish(d);
        else
            deliver_held(d);
        bk_loop_settle(loop);
        d = next;
    }
}

/* ---- Life ---- */

/* The ready queue goes on to what others have in it. */
static void finish_all(bk_loop *loop) {
    for (uint32_t i = 0; i < loop->ring_count; i++) {
        bk_call *call = &loop->ring[(loop->ring_head + i) & loop->ring_mask];
        if (call->fn == finish)
            call->fn = bk_release_static;
    }
    while (loop->datagrams != NULL && loop->datagrams->flags & BK_DATAGRAM_CLOSED)
        finish(loop->datagrams);
}

/* For bk_loop_free(): those that are left are aborted, and told. */
static void close_all(bk_loop *loop) {
    while (loop->datagrams != NULL) {
        for (bk_datagram *d = loop->datagrams; d != NULL; d = d->next)
            fail(d, -ECANCELED);
        bk_loop_settle(loop);
        finish_all(loop);
    }
    bk_packets_free_kept(loop);
    bk_dealloc(loop->os, loop->datagram_room);
    loop->datagram_room = NULL;
}

static const bk_layer layer = {.settle = flush_unsent, .turn = take_turn, .close = close_all};

/* Whether it is a socket of datagrams; and how long those can be. */
static int examine(bk_os *os, int fd, uint32_t *ret_longest) {
    struct sockaddr_storage name;
    unsigned size = sizeof name;
    int type = 0;
    if (!BK_HAS(os, recv_many) || !BK_HAS(os, send_many))
        return -ENOTSUP;
    int code = os->getsockname(os, fd, (struct sockaddr *)&name, &size);
    if (code >= 0) {
        bool udp = name.ss_family == AF_INET || name.ss_family == AF_INET6;
        *ret_longest = udp ? BK_UDP_BYTES : BK_DATAGRAM_BYTES;
        size = sizeof type;
        code = os->getsockopt(os, fd, SOL_SOCKET, SO_TYPE, &type, &size);
    }
    return code < 0 ? code : type == SOCK_DGRAM ? 0 : -EPROTOTYPE;
}

static bk_datagram *make(bk_loop *loop, int fd, const bk_datagram_protocol *protocol, void *user) {
    bk_datagram *d = bk_alloc_zero(loop->os, sizeof *d);
    if (d == NULL)
        return NULL;
    d->loop = loop;
    d->protocol = protocol;
    d->user = user;
    d->fd = fd;
    d->low = BK_WATER_LOW;
    d->high = BK_WATER_HIGH;
    d->header = BK_DATAGRAM_HEADER;
    bk_packets_init(&d->outgoing);
    bk_packets_init(&d->held);
    d->next = loop->datagrams;
    d->link = &loop->datagrams;
    if (d->next != NULL)
        d->next->link = &d->next;
    loop->datagrams = d;
    loop->layers[BK_LAYER_DATAGRAMS] = &layer;
    return d;
}

int bk_datagram_open(bk_loop *loop, int fd, const bk_datagram_protocol *protocol, void *user,
                     bk_datagram **ret_datagram) {
    uint32_t longest;
    if (loop == NULL || protocol == NULL || protocol->size == 0)
        return -EINVAL;
    int code = examine(loop->os, fd, &longest);
    if (code >= 0)
        code = loop->os->set_nonblocking(loop->os, fd, 1);
    if (code < 0)
        return code;
    bk_datagram *d = make(loop, fd, protocol, user);
    if (d == NULL)
        return -ENOMEM;
    d->longest = longest;
    code = watch(d);
    if (code >= 0)
        code = bk_watch_apply(loop, fd); /* to learn whether it can be watched */
    if (code < 0) {
        forget_fd(d);
        loop->datagrams = d->next;
        if (d->next != NULL)
            d->next->link = &loop->datagrams;
        bk_dealloc(loop->os, d);
        return code;
    }
    if (ret_datagram != NULL)
        *ret_datagram = d;
    return 0;
}

void bk_datagram_close(bk_datagram *d) {
    if (d == NULL || d->flags & BK_DATAGRAM_CLOSING)
        return;
    d->flags |= BK_DATAGRAM_CLOSING;
    if (d->outgoing.count > 0 || d->flags & BK_DATAGRAM_SENDING)
        mark_unsent(d);
    else
        close_with(d, 0);
    update(d);
}

void bk_datagram_abort(bk_datagram *d) {
    if (d != NULL)
        fail(d, -ECANCELED);
}

void bk_datagram_disown(bk_datagram *d) {
    forget_fd(d);
    d->fd = -1;
}

void bk_datagram_pause(bk_datagram *d) {
    if (d == NULL)
        return;
    d->flags |= BK_DATAGRAM_PAUSED;
    update(d);
}

void bk_datagram_resume(bk_datagram *d) {
    if (d == NULL)
        return;
    d->flags &= (uint32_t)~BK_DATAGRAM_PAUSED;
    if (d->held.count > 0)
        schedule(d);
    update(d);
}

int bk_datagram_set_water(bk_datagram *d, size_t low, size_t high) {
    if (d == NULL || low > high || high > UINT32_MAX)
        return -EINVAL;
    d->low = (uint32_t)low;
    d->high = (uint32_t)high;
    if (d->queued > d->high) {
        flush(d, false);
        tell_blocked(d);
    }
    return 0;
}

size_t bk_datagram_queued(const bk_datagram *d) {
    return d == NULL ? 0 : d->queued;
}

int bk_datagram_fd(const bk_datagram *d) {
    return d == NULL ? -EINVAL : d->fd;
}

bk_loop *bk_datagram_loop(const bk_datagram *d) {
    return d == NULL ? NULL : d->loop;
}

void *bk_datagram_user(const bk_datagram *d) {
    return d == NULL ? NULL : d->user;
}

void bk_datagram_set_user(bk_datagram *d, void *user) {
    if (d != NULL)
        d->user = user;
}

const bk_datagram_protocol *bk_datagram_protocol_of(const bk_datagram *d) {
    return d == NULL ? NULL : d->protocol;
}
