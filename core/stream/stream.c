/*
 * stream.c: a stream is one transport, one outgoing queue, one protocol, and the flow control
 * between them. It never asks what its transport is. Called by owners of streams, by the loop's
 * watches when a descriptor is ready, and by the turn in loop.c.
 *
 * A stream is freed in one place only, finish(), which the ready queue calls, so every other
 * function may call the protocol and go on to use the stream after it; it only has to look whether
 * it is closed now.
 */
#include "core/stream/stream.h"

#define CALL(s, function, ...)                                                                     \
    (BK_HAS((s)->protocol, function) ? (s)->protocol->function(__VA_ARGS__) : 0)
#define TELL(s, function)                                                                          \
    do {                                                                                           \
        if (BK_HAS((s)->protocol, function))                                                       \
            (s)->protocol->function(s);                                                            \
    } while (0)

static void stream_ready(void *arg, unsigned events);

static uint32_t second_of(const bk_loop *loop) {
    return (uint32_t)(bk_loop_now(loop) / BK_SECOND);
}

static void note_progress(bk_stream *s) {
    if (s->flags & BK_STREAM_TIMED)
        s->active = second_of(s->loop);
}

static void note_sent(bk_stream *s, size_t n) {
    note_progress(s);
    if (s->visit == NULL)
        return;
    s->visit->bytes_out += n;
    if (s->flags & BK_STREAM_TIMED)
        s->visit->sent = s->active;
}

/* ---- What the stream waits for ---- */

enum { NOT_YET = BK_STREAM_CONNECTING | BK_STREAM_OPENING };

static bool wants_to_read(const bk_stream *s) {
    return !(s->flags &
             (BK_STREAM_PAUSED | BK_STREAM_EOF | BK_STREAM_CLOSING | BK_STREAM_CLOSED | NOT_YET));
}

static void schedule(bk_stream *s) {
    if (s->flags & (BK_STREAM_AWAKE | BK_STREAM_CLOSED))
        return;
    s->flags |= BK_STREAM_AWAKE;
    s->next_awake = s->loop->awake;
    s->loop->awake = s;
}

static void watch(bk_stream *s, unsigned want) {
    unsigned changed = want ^ s->watched;
    s->watched = (uint8_t)want;
    for (unsigned direction = BK_READ; direction <= BK_WRITE; direction <<= 1) {
        int fd = changed & direction ? s->transport->ops->fd(s->transport, direction) : -1;
        if (fd < 0)
            continue;
        bk_watch_fn fn = want & direction ? stream_ready : NULL;
        int code = bk_watch_set(s->loop, fd, direction, fn, s);
        if (code < 0)
            bk_stream_fail(s, code);
    }
}

/* Bring what is watched in line with what the stream is up to. Costs nothing when that is so. */
static void update(bk_stream *s) {
    if (s->flags & (BK_STREAM_CLOSED | BK_STREAM_CONNECTING))
        return;
    bk_transport *t = s->transport;
    unsigned want = (wants_to_read(s) ? BK_READ : 0) | (s->flags & BK_STREAM_BUSY ? BK_WRITE : 0);
    if ((want & BK_READ) && (s->flags & BK_STREAM_SELF) && (s->flags & BK_STREAM_MORE))
        schedule(s);
    if (BK_HAS(t->ops, wants))
        want = t->ops->wants(t, want);
    if (want & BK_NOW)
        schedule(s);
    want &= BK_READ | BK_WRITE;
    if (want != s->watched)
        watch(s, want);
}

static void forget_fds(bk_stream *s) {
    bk_transport *t = s->transport;
    int read_fd = t->ops->fd(t, BK_READ), write_fd = t->ops->fd(t, BK_WRITE);
    if (read_fd >= 0)
        bk_watch_forget(s->loop, read_fd);
    if (write_fd >= 0 && write_fd != read_fd)
        bk_watch_forget(s->loop, write_fd);
    s->watched = 0;
}

/* ---- The end ---- */

static void finish(void *arg);

static void close_with(bk_stream *s, int why) {
    bk_loop *loop = s->loop;
    s->flags |= BK_STREAM_CLOSED | BK_STREAM_CLOSING;
    s->why = why;
    if (s->watched != 0)
        watch(s, 0);
    if (s->flags & BK_STREAM_DIRTY)
        return; /* flush_dirty finds it closed, and comes here again */
    /* The end keeps its place among the calls: what was to be called before it, will be. Without
       memory it comes all the same, if in no order. */
    if (bk_loop_soon(loop, finish, s) < 0) {
        s->next_due = loop->closing;
        loop->closing = s;
    }
}

void bk_stream_fail(bk_stream *s, int why) {
    if (s->flags & BK_STREAM_CLOSED)
        return;
    close_with(s, why);
    s->flags &= (uint32_t)~BK_STREAM_BORROWS;
    s->loop->calling++;
    bk_queue_drop(s, s->queued);
    s->loop->calling--;
}

static void unlist_awake(bk_stream *s) {
    bk_stream **link = &s->loop->awake;
    while (*link != s)
        link = &(*link)->next_awake;
    *link = s->next_awake;
}

/* The last call of all; of the ready queue. */
static void finish(void *arg) {
    bk_stream *s = arg;
    bk_loop *loop = s->loop;
    if (s->flags & BK_STREAM_AWAKE)
        unlist_awake(s);
    bk_stream_set_timeout(s, 0);
    if (BK_HAS(s->protocol, closed))
        s->protocol->closed(s, s->why);
    bk_visit *visit = s->visit;
    bk_stream_set_visit(s, NULL);
    if (visit != NULL)
        visit->closed(visit, s, s->why);
    *s->link = s->next;
    if (s->next != NULL)
        s->next->link = s->link;
    forget_fds(s);
    s->transport->ops->close(s->transport);
    bk_dealloc(loop->os, s);
}

/* ---- Sending ---- */

static void send_queue(bk_stream *s) {
    while (s->head != NULL && !(s->flags & BK_STREAM_BUSY)) {
        bk_transport *t = s->transport; /* a release may have put another in its place */
        struct iovec v[BK_IOV_MAX];
        size_t bytes;
        int n = bk_queue_gather(s, v, BK_IOV_MAX, &bytes);
        ssize_t sent = t->ops->write(t, v, n);
        if (sent == -EINTR)
            continue;
        if (sent < 0 && sent != -EAGAIN) {
            bk_stream_fail(s, (int)sent);
            return;
        }
        if (sent < (ssize_t)bytes)
            s->flags |= BK_STREAM_BUSY;
        if (sent > 0) {
            note_sent(s, (size_t)sent);
            bk_queue_drop(s, (size_t)sent);
        }
    }
}

/* Let the transport move on what it holds back; then, when all is sent, end or close. */
static int send_rest(bk_stream *s) {
    bk_transport *t = s->transport;
    bool holds = BK_HAS(t->ops, flush);
    int code = holds ? t->ops->flush(t) : 0;
    if (code < 0 || s->head != NULL)
        return code;
    bool end = s->flags & BK_STREAM_ENDING || (holds && s->flags & BK_STREAM_CLOSING);
    if (end && !(s->flags & BK_STREAM_ENDED)) {
        code = BK_HAS(t->ops, end) ? t->ops->end(t) : -ENOTSUP;
        if (code < 0 && code != -ENOTSUP) /* not supported: it is over, and nobody hears of it */
            return code;
        s->flags |= BK_STREAM_ENDED;
        code = holds ? t->ops->flush(t) : 0;
    }
    if (code >= 0 && s->flags & BK_STREAM_CLOSING)
        close_with(s, 0);
    return code;
}

static void mark_dirty(bk_stream *s) {
    if (s->flags & (BK_STREAM_DIRTY | BK_STREAM_CLOSED))
        return;
    bool gathers = s->flags & BK_STREAM_GATHERS && s->loop->turning;
    bk_stream **list = gathers ? &s->loop->gathered : &s->loop->dirty;
    s->flags |= BK_STREAM_DIRTY;
    s->next_due = *list;
    *list = s;
}

static void tell_writable(bk_stream *s) {
    if (!(s->flags & BK_STREAM_BLOCKED) || s->queued > s->low || s->flags & BK_STREAM_CLOSED)
        return;
    s->flags &= (uint32_t)~BK_STREAM_BLOCKED;
    TELL(s, writable);
}

/* `telling`: it is the loop that calls, and not the stream's owner, who would hear of it from
   within what he is about. */
static void send_all(bk_stream *s, bool telling) {
    s->flags |= BK_STREAM_SENDING;
    send_queue(s);
    s->flags &= (uint32_t)~BK_STREAM_SENDING;
    if (telling)
        tell_writable(s); /* before it may be closed */
    else if (s->flags & BK_STREAM_BLOCKED && s->queued <= s->low)
        mark_dirty(s);
    if (s->flags & (BK_STREAM_BUSY | BK_STREAM_CLOSED | NOT_YET)) /* writable() may start TLS */
        return;
    int code = send_rest(s);
    if (code == -EAGAIN)
        s->flags |= BK_STREAM_BUSY;
    else if (code < 0)
        bk_stream_fail(s, code);
}

static void tell_blocked(bk_stream *s) {
    const int not_now = BK_STREAM_BLOCKED | BK_STREAM_CLOSED | BK_STREAM_SENDING;
    if (s->flags & not_now || !(s->flags & BK_STREAM_OPENED) || s->queued <= s->high)
        return;
    s->flags |= BK_STREAM_BLOCKED;
    s->loop->calling++;
    TELL(s, blocked);
    s->loop->calling--;
}

/* Send what there is, unless the transport is known to be full. */
static void flush(bk_stream *s, bool telling) {
    if (s->flags & (BK_STREAM_CLOSED | NOT_YET | BK_STREAM_BUSY | BK_STREAM_SENDING))
        return;
    s->loop->calling++;
    send_all(s, telling);
    update(s);
    s->loop->calling--;
}

static void own_borrowed(bk_stream *s) {
    if (!(s->flags & BK_STREAM_BORROWS))
        return;
    s->flags &= (uint32_t)~BK_STREAM_BORROWS;
    int code = bk_queue_own(s);
    if (code < 0)
        bk_stream_fail(s, code);
}

static void flush_dirty(bk_loop *loop) {
    bk_stream *s;
    while ((s = loop->dirty) != NULL) {
        loop->dirty = s->next_due;
        s->flags &= (uint32_t)~BK_STREAM_DIRTY;
        if (s->flags & BK_STREAM_CLOSED) {
            close_with(s, s->why);
            continue;
        }
        flush(s, true);
        own_borrowed(s);
        tell_blocked(s);
    }
}

/* The first that wrote is the first to be sent. What is written meanwhile waits for the next turn.
 */
static void flush_gathered(bk_loop *loop) {
    bk_stream *s = loop->gathered;
    loop->gathered = NULL;
    while (s != NULL) {
        bk_stream *next = s->next_due;
        s->next_due = loop->dirty;
        loop->dirty = s;
        s = next;
    }
    bk_loop_settle(loop);
}

/* Whether data lies in what is just being handed to received(). */
static bool is_received(const bk_loop *loop, const void *data, size_t n) {
    uintptr_t p = (uintptr_t)data, from = (uintptr_t)loop->scratch;
    return loop->receiving && p >= from && p < from + BK_SCRATCH_BYTES &&
           n <= from + BK_SCRATCH_BYTES - p;
}

static int enqueue(bk_stream *s, const void *data, size_t n, bk_release release, void *arg) {
    if (release != BK_COPY)
        return bk_queue_add(s, data, n, release, arg);
    if (!(s->flags & BK_STREAM_GATHERS) && is_received(s->loop, data, n)) {
        s->flags |= BK_STREAM_BORROWS;
        return bk_queue_add(s, data, n, bk_release_borrowed, NULL);
    }
    bool idle = !(s->flags & (BK_STREAM_BUSY | NOT_YET | BK_STREAM_SENDING));
    if (n < BK_BLOCK_BYTES || !idle)
        return bk_queue_copy(s, data, n);
    /* Much at once is sent at once, and only what was refused is copied. */
    int code = bk_queue_add(s, data, n, bk_release_borrowed, NULL);
    if (code < 0)
        return code;
    flush(s, false);
    code = s->flags & BK_STREAM_CLOSED ? 0 : bk_queue_own(s);
    if (code < 0)
        bk_stream_fail(s, code);
    return code;
}

int bk_stream_write(bk_stream *s, const void *data, size_t n, bk_release release, void *arg) {
    int code = s == NULL || (data == NULL && n > 0) ? -EINVAL : 0;
    const int over = BK_STREAM_ENDING | BK_STREAM_CLOSING | BK_STREAM_CLOSED;
    if (code == 0 && s->flags & over)
        code = -EPIPE;
    bool queue = code == 0 && n > 0;
    if (queue)
        code = enqueue(s, data, n, release, arg);
    if (!queue || code < 0) {
        if (release != BK_COPY)
            release(arg);
        return code;
    }
    if (s->queued > s->high) {
        flush(s, false);
        tell_blocked(s);
    }
    if (s->head != NULL)
        mark_dirty(s);
    return 0;
}

void bk_stream_flush(bk_stream *s) {
    if (s != NULL)
        flush(s, false);
}

void bk_stream_sent(bk_stream *s, ssize_t n) {
    if (n > 0)
        note_sent(s, (size_t)n);
    else if (n < 0 && n != -EAGAIN && n != -EINTR)
        bk_stream_fail(s, (int)n);
}

void bk_stream_tell_sent(bk_stream *s) {
    s->low = 0;
    s->flags |= BK_STREAM_BLOCKED;
    if (s->head == NULL)
        mark_dirty(s);
}

/* ---- Receiving ---- */

static int find_room(bk_stream *s, bk_room *ret_room) {
    bk_loop *loop = s->loop;
    if (BK_HAS(s->protocol, room)) {
        int code = s->protocol->room(s, ret_room);
        return code < 0 ? code : ret_room->size == 0 ? -ENOBUFS : 0;
    }
    if (loop->scratch == NULL)
        loop->scratch = bk_alloc(loop->os, BK_SCRATCH_BYTES);
    *ret_room = (bk_room){loop->scratch, BK_SCRATCH_BYTES};
    return loop->scratch == NULL ? -ENOMEM : 0;
}

static void deliver(bk_stream *s, const void *data, size_t n) {
    bk_loop *loop = s->loop;
    note_progress(s);
    if (s->visit != NULL)
        s->visit->bytes_in += n;
    if (!BK_HAS(s->protocol, received))
        return;
    loop->receiving = data == loop->scratch;
    s->protocol->received(s, data, n);
    /* Before scratch is read into again, what refers to it is sent, or copied. */
    bk_loop_settle(loop);
    loop->receiving = false;
}

static void end_of_input(bk_stream *s) {
    s->flags |= BK_STREAM_EOF;
    int go_on = CALL(s, ended, s);
    if (!go_on)
        bk_stream_close(s);
}

/* What a read has brought. */
static void take_read(bk_stream *s, const void *data, ssize_t n) {
    if (n > 0) {
        deliver(s, data, (size_t)n);
        return;
    }
    s->flags &= (uint32_t)~BK_STREAM_MORE;
    if (n == 0)
        end_of_input(s);
    else if (n != -EAGAIN && n != -EINTR)
        bk_stream_fail(s, (int)n);
}

/* Returns whether it is worth reading again at once. */
static bool read_once(bk_stream *s) {
    bk_room room = {NULL, 0};
    int code = find_room(s, &room);
    if (code < 0) {
        bk_stream_fail(s, code);
        return false;
    }
    if (!wants_to_read(s)) /* room() may have done anything */
        return false;
    bk_transport *t = s->transport;
    ssize_t n = t->ops->read(t, room.base, room.size);
    take_read(s, room.base, n);
    return n == -EINTR || (n == (ssize_t)room.size && wants_to_read(s));
}

void bk_stream_feed(bk_stream *s, const void *data, ssize_t n) {
    if (s->flags & (BK_STREAM_EOF | BK_STREAM_CLOSING | BK_STREAM_CLOSED))
        return;
    s->loop->calling++;
    take_read(s, data, n);
    update(s);
    s->loop->calling--;
}

/* ---- Opening ---- */

/* Tell the protocol that the transport moves bytes: the first, or one that took its place. */
static void tell_open(bk_stream *s) {
    bool first = !(s->flags & BK_STREAM_OPENED);
    s->flags |= BK_STREAM_OPENED;
    s->loop->calling++;
    if (first && s->visit != NULL && s->protocol->name != bk_front_name)
        s->visit->opened(s->visit, s);
    int code = first ? CALL(s, opened, s) : CALL(s, upgraded, s);
    s->loop->calling--;
    if (code < 0)
        bk_stream_fail(s, code);
}

static void open_transport(bk_stream *s) {
    int code = s->transport->ops->open(s->transport);
    if (code == -EAGAIN || code == -EINTR || s->flags & BK_STREAM_CLOSED)
        return;
    if (code < 0) {
        bk_stream_fail(s, code);
        return;
    }
    s->flags &= (uint32_t)~BK_STREAM_OPENING;
    s->flags |= BK_STREAM_MORE;
    tell_open(s);
    if (!(s->flags & NOT_YET)) /* what waited for this */
        mark_dirty(s);
}

/* ---- Events ---- */

/* What reading made the transport send, and was refused, is waited for as anything else. */
static void flush_transport(bk_stream *s) {
    bk_transport *t = s->transport;
    if (!BK_HAS(t->ops, flush) || s->flags & (BK_STREAM_BUSY | BK_STREAM_CLOSED | NOT_YET))
        return;
    int code = t->ops->flush(t);
    if (code == -EAGAIN)
        s->flags |= BK_STREAM_BUSY;
    else if (code < 0)
        bk_stream_fail(s, code);
}

static void stream_ready(void *arg, unsigned events) {
    bk_stream *s = arg;
    bool any = BK_HAS(s->transport->ops, wants); /* then either may wait for either */
    if (events & BK_READ)
        s->flags |= BK_STREAM_MORE;
    if (s->flags & BK_STREAM_OPENING)
        open_transport(s);
    if ((any || events & (BK_WRITE | BK_HANGUP)) && s->flags & BK_STREAM_BUSY) {
        s->flags &= (uint32_t)~BK_STREAM_BUSY;
        send_all(s, true);
    }
    int reads = BK_READS_PER_EVENT;
    if (any || events & (BK_READ | BK_HANGUP))
        while (wants_to_read(s) && reads-- > 0 && read_once(s))
            ;
    flush_transport(s);
    update(s);
    /* A descriptor that the notifier will not watch would never be heard of again. */
    if (events & BK_HANGUP && !(s->flags & BK_STREAM_CLOSED)) {
        int fd = s->transport->ops->fd(s->transport, BK_READ);
        int code = fd < 0 ? 0 : bk_watch_apply(s->loop, fd);
        if (code >= 0 && (fd = s->transport->ops->fd(s->transport, BK_WRITE)) >= 0)
            code = bk_watch_apply(s->loop, fd);
        if (code < 0)
            bk_stream_fail(s, code);
    }
}

void bk_transport_wake(bk_transport *t) {
    if (t == NULL || t->stream == NULL)
        return;
    t->stream->flags |= BK_STREAM_MORE;
    schedule(t->stream);
}

/* Those the ready queue had no room for. */
static void finish_closing(bk_loop *loop) {
    while (loop->closing != NULL && !loop->broken) {
        bk_stream *s = loop->closing;
        loop->closing = s->next_due;
        finish(s);
        bk_loop_settle(loop);
    }
}

static void take_turn(bk_loop *loop) {
    finish_closing(loop);
    bk_stream *s = loop->awake;
    loop->awake = NULL;
    while (s != NULL) {
        bk_stream *next = s->next_awake;
        s->flags &= (uint32_t)~BK_STREAM_AWAKE;
        if (loop->broken)
            schedule(s);
        else if (!(s->flags & (BK_STREAM_CLOSED | BK_STREAM_CONNECTING)))
            stream_ready(s, BK_READ | BK_WRITE);
        bk_loop_settle(loop);
        s = next;
    }
}

/* ---- Time-outs ---- */

/* Past a limit that the server set. */
static bool overstayed(bk_stream *s, uint32_t now) {
    bk_visit *v = s->visit;
    const bk_limits *limits = v->limits;
    if (v->refused)
        return now - v->began > BK_REFUSAL_S;
    if (limits->total != 0 && now - v->began > limits->total)
        return true;
    if (v->away)
        return false;
    if (s->head == NULL && !(s->flags & BK_STREAM_BUSY))
        v->sent = now;
    return (limits->first_byte != 0 && v->bytes_in == 0 && now - v->began > limits->first_byte) ||
           (limits->idle != 0 && now - s->active > limits->idle) ||
           (limits->write != 0 && now - v->sent > limits->write);
}

/* With the protocol's last words, where the peer may still read them. */
static void time_out(bk_stream *s) {
    bool speaks = s->flags & BK_STREAM_OPENED && s->head == NULL &&
                  !(s->flags & (BK_STREAM_BUSY | BK_STREAM_ENDING | BK_STREAM_CLOSING | NOT_YET));
    if (speaks && BK_HAS(s->protocol, timed_out)) {
        s->loop->calling++;
        s->protocol->timed_out(s);
        s->loop->calling--;
        flush(s, false);
    }
    bk_stream_fail(s, -ETIMEDOUT);
}

static void sweep(void *arg) {
    bk_loop *loop = arg;
    uint32_t now = second_of(loop);
    for (bk_stream *s = loop->streams; s != NULL; s = s->next)
        if ((s->timeout != 0 && now - s->active > s->timeout) ||
            (s->visit != NULL && s->flags & BK_STREAM_TIMED && overstayed(s, now)))
            time_out(s);
    if (loop->timed_streams > 0)
        (void)bk_timer_start(loop, &loop->sweep, bk_loop_now(loop) + BK_SECOND, sweep, loop);
}

static bool has_times(const bk_visit *v) {
    const bk_limits *limits = v == NULL ? NULL : v->limits;
    return limits != NULL && (v->refused || limits->first_byte != 0 || limits->idle != 0 ||
                              limits->write != 0 || limits->total != 0);
}

/* The sweep runs as long as some stream has a time-out. */
static void count_timed(bk_stream *s) {
    bk_loop *loop = s->loop;
    bool was = s->flags & BK_STREAM_TIMED, is = s->timeout != 0 || has_times(s->visit);
    loop->timed_streams += is - was;
    s->flags = is ? s->flags | BK_STREAM_TIMED : s->flags & (uint32_t)~BK_STREAM_TIMED;
    s->active = second_of(loop);
    if (loop->timed_streams > 0 && loop->sweep.place == 0 &&
        bk_timer_start(loop, &loop->sweep, bk_loop_now(loop) + BK_SECOND, sweep, loop) < 0)
        bk_stream_fail(s, -ENOMEM); /* rather than a limit that does not hold */
    else if (loop->timed_streams == 0)
        bk_timer_stop(loop, &loop->sweep);
}

void bk_stream_set_timeout(bk_stream *s, unsigned seconds) {
    if (s == NULL)
        return;
    if (s->flags & BK_STREAM_CLOSED)
        seconds = 0;
    s->timeout = seconds > UINT16_MAX ? UINT16_MAX : (uint16_t)seconds;
    count_timed(s);
}

void bk_stream_set_visit(bk_stream *s, bk_visit *visit) {
    if (visit == s->visit)
        return;
    s->visit = visit;
    count_timed(s);
}

/* ---- Life ---- */

static void close_all(bk_loop *loop);

static const bk_layer layer = {
    .settle = flush_dirty, .turn = take_turn, .turned = flush_gathered, .close = close_all};

static void adopt(bk_stream *s, bk_transport *t) {
    s->transport = t;
    t->stream = s;
    s->watched = 0;
    s->flags &= (uint32_t)~(BK_STREAM_SELF | BK_STREAM_BUSY | BK_STREAM_OPENING);
    s->flags |= BK_STREAM_MORE;
    if (t->ops->fd(t, BK_READ) < 0)
        s->flags |= BK_STREAM_SELF;
    if (BK_HAS(t->ops, open)) {
        s->flags |= BK_STREAM_OPENING;
        schedule(s);
    }
}

static int make(bk_loop *loop, bk_transport *t, const bk_protocol *protocol, void *user,
                bk_stream **ret_stream) {
    if (loop == NULL || t == NULL || protocol == NULL || protocol->size == 0)
        return -EINVAL;
    bk_stream *s = bk_alloc_zero(loop->os, sizeof *s);
    if (s == NULL)
        return -ENOMEM;
    s->loop = loop;
    s->protocol = protocol;
    s->user = user;
    s->tail = &s->head;
    s->low = BK_WATER_LOW;
    s->high = BK_WATER_HIGH;
    s->next = loop->streams;
    s->link = &loop->streams;
    if (s->next != NULL)
        s->next->link = &s->next;
    loop->streams = s;
    loop->layers[BK_LAYER_STREAMS] = &layer;
    adopt(s, t);
    *ret_stream = s;
    return 0;
}

/* The descriptors are armed at once, to learn whether the notifier takes them. */
static void open_stream(bk_stream *s) {
    int code;
    if (!(s->flags & BK_STREAM_OPENING))
        tell_open(s);
    update(s);
    int fd = s->watched == 0 ? -1 : s->transport->ops->fd(s->transport, BK_READ);
    if (fd >= 0 && (code = bk_watch_apply(s->loop, fd)) < 0)
        bk_stream_fail(s, code);
}

int bk_stream_new(bk_loop *loop, bk_transport *transport, const bk_protocol *protocol, void *user,
                  bk_stream **ret_stream) {
    bk_stream *s;
    int code = make(loop, transport, protocol, user, &s);
    if (code < 0)
        return code;
    if (ret_stream != NULL)
        *ret_stream = s;
    open_stream(s);
    return 0;
}

int bk_stream_new_paused(bk_loop *loop, bk_transport *transport, const bk_protocol *protocol,
                         void *user, bk_stream **ret_stream) {
    int code = make(loop, transport, protocol, user, ret_stream);
    if (code == 0) {
        (*ret_stream)->flags |= BK_STREAM_PAUSED;
        open_stream(*ret_stream);
    }
    return code;
}

int bk_stream_new_connecting(bk_loop *loop, bk_transport *transport, const bk_protocol *protocol,
                             void *user, bk_stream **ret_stream) {
    int code = make(loop, transport, protocol, user, ret_stream);
    if (code == 0)
        (*ret_stream)->flags |= BK_STREAM_CONNECTING;
    return code;
}

void bk_stream_connected(bk_stream *s, bk_transport *transport) {
    if (s->flags & BK_STREAM_CLOSED)
        return;
    s->flags &= (uint32_t)~BK_STREAM_CONNECTING;
    adopt(s, transport);
    open_stream(s);
    mark_dirty(s);
}

int bk_stream_end(bk_stream *s) {
    if (s == NULL)
        return -EINVAL;
    if (s->flags & (BK_STREAM_ENDING | BK_STREAM_CLOSING))
        return 0;
    bk_transport *t = s->transport;
    if (!BK_HAS(t->ops, end))
        return -ENOTSUP;
    if (s->head == NULL && !BK_HAS(t->ops, flush) && !(s->flags & NOT_YET)) {
        int code = t->ops->end(t);
        if (code == -ENOTSUP)
            return code;
        if (code < 0 && code != -EAGAIN)
            bk_stream_fail(s, code);
        else if (code >= 0)
            s->flags |= BK_STREAM_ENDED;
    }
    s->flags |= BK_STREAM_ENDING;
    mark_dirty(s);
    return 0;
}

void bk_stream_close(bk_stream *s) {
    if (s == NULL || s->flags & BK_STREAM_CLOSING)
        return;
    if (s->flags & NOT_YET && (s->head == NULL || !(s->flags & BK_STREAM_OPENED))) {
        bk_stream_fail(s, -ECANCELED);
        return;
    }
    s->flags |= BK_STREAM_CLOSING;
    if (s->head == NULL && !BK_HAS(s->transport->ops, flush) &&
        !(s->flags & (BK_STREAM_DIRTY | BK_STREAM_BUSY)))
        close_with(s, 0);
    else
        mark_dirty(s);
    update(s);
}

void bk_stream_abort(bk_stream *s) {
    if (s != NULL)
        bk_stream_fail(s, -ECANCELED);
}

void bk_stream_pause(bk_stream *s) {
    if (s == NULL)
        return;
    s->flags |= BK_STREAM_PAUSED;
    update(s);
}

void bk_stream_resume(bk_stream *s) {
    if (s == NULL)
        return;
    s->flags &= (uint32_t)~BK_STREAM_PAUSED;
    update(s);
}

void bk_stream_gather(bk_stream *s) {
    s->flags |= BK_STREAM_GATHERS;
}

int bk_stream_set_water(bk_stream *s, size_t low, size_t high) {
    if (s == NULL || low > high || high > UINT32_MAX)
        return -EINVAL;
    s->low = (uint32_t)low;
    s->high = (uint32_t)high;
    if (s->queued > s->high)
        mark_dirty(s);
    return 0;
}

size_t bk_stream_queued(const bk_stream *s) {
    return s == NULL ? 0 : s->queued;
}

int bk_stream_query(bk_stream *s, int what, void *ret_value, size_t *size) {
    if (s == NULL || ret_value == NULL || size == NULL)
        return -EINVAL;
    bk_transport *t = s->transport;
    return BK_HAS(t->ops, query) ? t->ops->query(t, what, ret_value, size) : -ENOTSUP;
}

bk_loop *bk_stream_loop(const bk_stream *s) {
    return s == NULL ? NULL : s->loop;
}

void *bk_stream_user(const bk_stream *s) {
    return s == NULL ? NULL : s->user;
}

void bk_stream_set_user(bk_stream *s, void *user) {
    if (s != NULL)
        s->user = user;
}

const char bk_front_name[] = "front";

/* Where the protocol that the owner knows of is noted: behind all fronts. */
static const bk_protocol **place_of_protocol(bk_stream *s) {
    const bk_protocol **place = &s->protocol;
    while ((*place)->name == bk_front_name)
        place = &((bk_front *)(uintptr_t)*place)->protocol;
    return place;
}

const bk_protocol *bk_stream_protocol(const bk_stream *s) {
    return s == NULL ? NULL : *place_of_protocol((bk_stream *)(uintptr_t)s);
}

void bk_stream_set_protocol(bk_stream *s, const bk_protocol *protocol) {
    if (s != NULL && protocol != NULL)
        *place_of_protocol(s) = protocol;
}

bk_transport *bk_stream_transport(const bk_stream *s) {
    return s == NULL ? NULL : s->transport;
}

int bk_stream_pass_on(bk_stream *s, const bk_protocol *protocol) {
    s->flags &= (uint32_t)~BK_STREAM_OPENED;
    s->protocol = protocol;
    if (!(s->flags & BK_STREAM_CLOSED))
        tell_open(s);
    return 0;
}

/* Of a stream that was refused: what comes is dropped until the peer has read why. A socket that is
   closed over unread bytes takes back what it has sent. */
static void drop(bk_stream *s, const void *data, size_t n) {
    (void)s, (void)data, (void)n;
}

static const bk_protocol refusal = {.size = sizeof refusal, .name = "refused", .received = drop};

void bk_stream_refuse(bk_stream *s, const bk_protocol *protocol, int why) {
    s->protocol = &refusal;
    if (!BK_HAS(protocol, refused)) {
        bk_stream_close(s);
        return;
    }
    s->loop->calling++;
    protocol->refused(s, protocol, why);
    s->loop->calling--;
    if (s->head == NULL || bk_stream_end(s) < 0)
        bk_stream_close(s);
    else
        count_timed(s);
}

void bk_stream_reopen(bk_stream *s, bk_transport *transport, const bk_protocol *protocol) {
    s->flags &= (uint32_t)~BK_STREAM_OPENED;
    s->protocol = protocol;
    bk_stream_set_transport(s, transport);
    if (!(s->flags & (BK_STREAM_OPENING | BK_STREAM_CLOSED)))
        tell_open(s);
}

void bk_stream_set_transport(bk_stream *s, bk_transport *transport) {
    if (s == NULL || transport == NULL)
        return;
    if (s->watched != 0)
        watch(s, 0);
    adopt(s, transport); /* of a stream that is closed too: it closes what it has */
    if (s->flags & BK_STREAM_CLOSED)
        return;
    if (s->head != NULL || s->flags & (BK_STREAM_CLOSING | BK_STREAM_ENDING))
        mark_dirty(s);
    update(s);
}

/* Of the ready queue nothing else will be called any more. */
static void finish_queued(bk_loop *loop) {
    while (loop->ring_count > 0) {
        bk_call call = bk_loop_next(loop);
        if (call.fn == finish)
            finish(call.arg);
    }
}

/* For bk_loop_free(): those that are left are aborted, and told. */
static void close_all(bk_loop *loop) {
    while (loop->streams != NULL) {
        for (bk_stream *s = loop->streams; s != NULL; s = s->next)
            bk_stream_fail(s, -ECANCELED);
        flush_gathered(loop);
        finish_closing(loop);
        finish_queued(loop);
    }
    bk_queue_free_kept(loop);
}
