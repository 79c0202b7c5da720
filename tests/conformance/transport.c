/*
 * transport.c: the suite for a transport: by itself, as a blocking driver would use it, and under
 * streams, which must not be able to tell it from any other. Called by its author through
 * bk_conform_transport(), and by tests/c/test_transport.c.
 */
#include "tests/conformance/pair.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>

static unsigned traits_of(const bk_conform_case *c) {
    return ((const bk_conform_joint *)c->subject)->traits;
}

/* ---- By itself, without a stream ---- */

typedef struct bare {
    bk_conform_case *c;
    bk_loop *loop;
    bk_transport *ends[2];
} bare;

#define HAS(t, function)                                                                           \
    ((t)->ops->size > offsetof(bk_transport_ops, function) && (t)->ops->function != NULL)

/* What it holds back, the peer waits for. */
static int move_on(bk_transport *t) {
    int code = t != NULL && HAS(t, flush) ? t->ops->flush(t) : 0;
    return code == -EAGAIN || code == -EINTR ? 0 : code;
}

/* Those that have to open do so by turns: the one may wait for what the other says. */
static int open_ends(bare *b) {
    bool open[2] = {!HAS(b->ends[0], open), !HAS(b->ends[1], open)};
    while (!open[0] || !open[1])
        for (int i = 0; i < 2; i++) {
            int code = open[i] ? 0 : b->ends[i]->ops->open(b->ends[i]);
            open[i] = code == 0;
            if (open[i])
                code = move_on(b->ends[i]);
            if (code < 0 && code != -EAGAIN && code != -EINTR)
                return code;
            if (conform_hangs(b->c))
                return -ETIMEDOUT;
        }
    return 0;
}

static int bare_open(bare *b) {
    const bk_conform_joint *joint = b->c->subject;
    int code = conform_loop(b->c, NULL, &b->loop);
    if (code >= 0)
        code = joint->make(b->loop, joint->arg, b->ends);
    return code < 0 ? code : open_ends(b);
}

static void bare_close(bare *b) {
    for (int i = 0; i < 2; i++)
        if (b->ends[i] != NULL)
            b->ends[i]->ops->close(b->ends[i]);
    conform_loop_free(b->c, b->loop);
}

/* Not before time: a short while for what is on its way, or a guard against what never comes. */
static void await(bk_transport *t, unsigned direction) {
    struct pollfd p = {.fd = t->ops->fd(t, direction)};
    p.events = direction == BK_READ ? POLLIN : POLLOUT;
    if (p.fd >= 0)
        (void)poll(&p, 1, 100);
}

/* The result once it is something else than "not now". */
static ssize_t read_some(bare *b, int i, void *room, size_t n) {
    bk_transport *t = b->ends[i];
    for (;;) {
        int moved = move_on(b->ends[!i]);
        if (moved < 0)
            return moved;
        ssize_t got = t->ops->read(t, room, n);
        if ((got != -EAGAIN && got != -EINTR) || conform_hangs(b->c))
            return got;
        await(t, BK_READ);
    }
}

static ssize_t write_some(bare *b, int i, const void *data, size_t n) {
    bk_transport *t = b->ends[i];
    struct iovec v = {(void *)data, n};
    for (;;) {
        ssize_t sent = t->ops->write(t, &v, 1);
        if ((sent != -EAGAIN && sent != -EINTR) || conform_hangs(b->c))
            return sent;
        await(t, BK_WRITE);
    }
}

static int end_it(bare *b, int i) {
    bk_transport *t = b->ends[i];
    int code;
    while ((code = t->ops->end(t)) == -EAGAIN && !conform_hangs(b->c))
        await(t, BK_WRITE);
    return code;
}

static void bare_bytes(bk_conform_case *c) {
    bare b = {.c = c};
    char room[8];
    TRY(c, bare_open(&b));
    for (int i = 0; i < 2; i++) {
        EXPECT(c, b.ends[i]->ops->name != NULL);
        EXPECT(c, b.ends[i]->ops->size >= offsetof(bk_transport_ops, query));
        ssize_t got = b.ends[i]->ops->read(b.ends[i], room, sizeof room);
        if (got != -EAGAIN && got != -EINTR)
            TRY(c, got);
        EXPECT(c, got < 0); /* nothing has been sent, and it does not wait */
    }
    for (int i = 0; i < 2; i++) {
        ssize_t sent = 0, got = 0;
        while (sent < 5) {
            ssize_t part = write_some(&b, i, "hello" + sent, 5 - (size_t)sent);
            TRY(c, part);
            sent += part;
        }
        while (got < 5) {
            ssize_t part = read_some(&b, !i, room + got, 5 - (size_t)got);
            TRY(c, part);
            EXPECT(c, part > 0);
            if (part == 0)
                goto out;
            got += part;
        }
        EXPECT(c, memcmp(room, "hello", 5) == 0);
    }
out:
    bare_close(&b);
}

/* Empty pieces and many pieces: accepted are bytes, in order, and no more than were given. */
static void bare_pieces(bk_conform_case *c) {
    enum { BYTES = BK_IOV_MAX / 2 };
    bare b = {.c = c};
    struct iovec v[BK_IOV_MAX];
    char bytes[BYTES], room[BYTES * 2];
    int first = 0;
    size_t got = 0;
    for (int i = 0; i < BK_IOV_MAX; i++) {
        bytes[i / 2] = (char)('A' + i / 2);
        v[i] = (struct iovec){&bytes[i / 2], i % 2 == 1 ? 1 : 0};
    }
    TRY(c, bare_open(&b));
    while (first < BYTES) { /* `first` counts bytes: an empty and a full piece each */
        bk_transport *t = b.ends[0];
        ssize_t sent = t->ops->write(t, v + first * 2, BK_IOV_MAX - first * 2);
        if (sent == -EAGAIN || sent == -EINTR) {
            sent = 0;
        } else {
            TRY(c, sent);
        }
        MUST(c, sent <= BYTES - first);
        first += (int)sent;
        while (got < (size_t)first) {
            ssize_t part = read_some(&b, 1, room + got, sizeof room - got);
            TRY(c, part);
            EXPECT(c, part > 0);
            if (part == 0)
                goto out;
            got += (size_t)part;
            MUST(c, got <= (size_t)first);
        }
    }
    EXPECT(c, memcmp(room, bytes, BYTES) == 0);
out:
    bare_close(&b);
}

/* It is full at last, says so, and goes on when the peer has read. */
static void bare_full(bk_conform_case *c) {
    static char data[65536], room[65536];
    bare b = {.c = c};
    uint64_t sent = 0, got = 0;
    TRY(c, bare_open(&b));
    for (int refused = 0; refused < 3;) {
        struct iovec v = {data, sizeof data};
        for (size_t i = 0; i < sizeof data; i++)
            data[i] = (char)pair_pattern(0, sent + i);
        ssize_t n = b.ends[0]->ops->write(b.ends[0], &v, 1);
        if (n != -EAGAIN && n != -EINTR)
            TRY(c, n);
        EXPECT(c, sent < UINT64_C(1) << 30); /* nothing holds so much */
        if (sent >= UINT64_C(1) << 30)
            goto out;
        refused += n < 0;
        sent += n > 0 ? (uint64_t)n : 0;
    }
    while (got < sent) {
        ssize_t n = read_some(&b, 1, room, sizeof room);
        TRY(c, n);
        EXPECT(c, n > 0);
        for (ssize_t i = 0; i < n; i++)
            if ((unsigned char)room[i] != pair_pattern(0, got + (uint64_t)i))
                n = -1;
        MUST(c, n >= 0);
        if (n <= 0)
            goto out;
        got += (uint64_t)n;
    }
    TRY(c, write_some(&b, 0, data, 1));
out:
    bare_close(&b);
}

/* Each direction ends on its own; its end is told again to who asks again. */
static void bare_ends(bk_conform_case *c) {
    bare b = {.c = c};
    char room[8];
    TRY(c, bare_open(&b));
    if (traits_of(c) & BK_CONFORM_NO_HALF_CLOSE) {
        EXPECT(c, b.ends[0]->ops->end == NULL); /* so that it is known before anything is queued */
        goto out;
    }
    TRY(c, write_some(&b, 0, "x", 1));
    TRY(c, end_it(&b, 0));
    ssize_t code = read_some(&b, 1, room, sizeof room);
    TRY(c, code);
    EXPECT(c, code == 1); /* what was sent before comes before */
    for (int i = 0; i < 3; i++) {
        code = read_some(&b, 1, room, sizeof room);
        TRY(c, code);
        EXPECT(c, code == 0);
    }
    TRY(c, write_some(&b, 1, "y", 1));
    code = read_some(&b, 0, room, sizeof room);
    TRY(c, code);
    EXPECT(c, code == 1);
    code = write_some(&b, 0, "z", 1);
    if (code != -EPIPE)
        TRY(c, code);
    EXPECT(c, code == -EPIPE);
    TRY(c, end_it(&b, 1));
    code = read_some(&b, 0, room, sizeof room);
    TRY(c, code);
    EXPECT(c, code == 0);
out:
    bare_close(&b);
}

static void bare_peer_gone(bk_conform_case *c) {
    bare b = {.c = c};
    char room[8];
    TRY(c, bare_open(&b));
    b.ends[1]->ops->close(b.ends[1]);
    b.ends[1] = NULL;
    ssize_t code = read_some(&b, 0, room, sizeof room);
    bool truncates = traits_of(c) & BK_CONFORM_TRUNCATES;
    if (code != -ECONNRESET && !(truncates && code == BK_ETRUNCATED))
        TRY(c, code);
    EXPECT(c, !truncates || code < 0);
    EXPECT(c, code <= 0);
    code = truncates ? code : 0;
    for (int i = 0; i < 100 && code >= 0; i++) { /* the first may still be taken */
        code = write_some(&b, 0, "x", 1);
        if (code >= 0)
            (void)poll(NULL, 0, 1);
    }
    if (truncates && code == BK_ETRUNCATED)
        goto out;
    if (code != -EPIPE && code != -ECONNRESET)
        TRY(c, code);
    EXPECT(c, code == -EPIPE || code == -ECONNRESET);
out:
    bare_close(&b);
}

static void queries(bk_conform_case *c) {
    bare b = {.c = c};
    char text[64];
    size_t size = sizeof text;
    TRY(c, bare_open(&b));
    bk_transport *t = b.ends[0];
    if (t->ops->size <= offsetof(bk_transport_ops, query) || t->ops->query == NULL) {
        conform_skip(c, "answers no questions");
        goto out;
    }
    TRY(c, t->ops->query(t, BK_QUERY_NAME, text, &size));
    EXPECT(c, size > 1 && size <= sizeof text && text[size - 1] == '\0');
    EXPECT(c, strlen(text) == size - 1);
    size = 1;
    EXPECT(c, t->ops->query(t, BK_QUERY_NAME, text, &size) == -ENOSPC);
    size = sizeof text;
    EXPECT(c, t->ops->query(t, 1 << 20, text, &size) == -ENOTSUP);
    EXPECT(c, size == sizeof text); /* written only on success */
    int fd = -1;
    size = sizeof fd;
    int code = t->ops->query(t, BK_QUERY_FD, &fd, &size);
    EXPECT(c, code == -ENOTSUP || (code == 0 && size == sizeof fd && fd >= 0));
out:
    bare_close(&b);
}

/* ---- Opening, and bytes both ways ---- */

static int send_thousand(side *x) {
    (void)side_send(x, 1000, PAIR_MIX);
    return 0;
}

static void opening(bk_conform_case *c) {
    pair p;
    pair_init(&p, c);
    p.sides[0].on_opened = p.sides[1].on_opened = send_thousand;
    TRY(c, pair_open(&p));
    for (int i = 0; i < 2; i++) {
        side *x = &p.sides[i];
        EXPECT(c, x->opened == 1 && (x->waits || x->received == 0) && x->ended == 0);
        EXPECT(c, bk_stream_user(x->s) == x && bk_stream_loop(x->s) == p.loop);
        EXPECT(c, bk_stream_protocol(x->s) == &pair_plain);
        EXPECT(c, bk_stream_transport(x->s) != NULL && bk_stream_transport(x->s)->stream == x->s);
    }
    pair_finish(&p);
out:
    pair_close(&p);
}

static int refuse(side *x) {
    (void)x;
    return -EACCES;
}

static void opened_refuses(bk_conform_case *c) {
    pair p;
    pair_init(&p, c);
    p.sides[0].on_opened = refuse;
    p.sides[0].may_break = p.sides[1].may_break = true;
    TRY(c, pair_open(&p));
    UNTIL(&p, p.sides[0].closed == 1 && p.sides[1].closed == 1);
    EXPECT(c, p.sides[0].why == -EACCES);
    EXPECT(c, p.sides[0].received == 0 && p.sides[0].ended == 0);
out:
    pair_close(&p);
}

/* Both ways at once, in pieces of all sizes. */
static void pump_both(bk_conform_case *c, uint64_t goal, size_t piece, size_t most, bool alarms) {
    pair p;
    pair_init(&p, c);
    p.filtered = most != 0;
    p.most = most;
    if (alarms)
        conform_alarms(NULL);
    TRY(c, pair_open(&p));
    for (int i = 0; i < 2; i++) {
        p.sides[i].goal = goal;
        p.sides[i].piece = piece;
        p.sides[i].mode = PAIR_MIX;
        side_pump(&p.sides[i]);
    }
    UNTIL(&p, p.sides[0].got == goal && p.sides[1].got == goal);
    pair_finish(&p);
out:
    if (alarms)
        conform_alarms_end();
    pair_close(&p);
}

static void large(bk_conform_case *c) {
    pump_both(c, c->quick ? 200 * 1000 : 8 * 1024 * 1024, 0, 0, false);
}

static void one_byte_at_a_time(bk_conform_case *c) {
    pump_both(c, c->quick ? 60 : 2000, 1, 1, false);
}

static void seven_bytes_at_a_time(bk_conform_case *c) {
    pump_both(c, c->quick ? 500 : 70000, 0, 7, false);
}

/* Signals that interrupt whatever can be interrupted. */
static void under_signals(bk_conform_case *c) {
    pump_both(c, 1024 * 1024, 0, 0, true);
}

/* ---- Endings ---- */

static void half_close(bk_conform_case *c, int from) {
    pair p;
    pair_init(&p, c);
    side *x = &p.sides[from], *y = x->peer;
    x->keep = y->keep = true;
    TRY(c, pair_open(&p));
    if (!side_send(x, 1000, PAIR_REFER))
        goto out;
    int code = bk_stream_end(x->s);
    if (traits_of(c) & BK_CONFORM_NO_HALF_CLOSE) {
        EXPECT(c, code == -ENOTSUP);
        pair_finish(&p); /* nothing has happened */
        goto out;
    }
    TRY(c, code);
    TRY(c, bk_stream_end(x->s)); /* repeating it is not an error */
    EXPECT(c, bk_stream_write(x->s, "x", 1, BK_COPY, NULL) == -EPIPE);
    UNTIL(&p, y->ended == 1);
    EXPECT(c, y->got == 1000); /* the end comes after what was sent */
    conform_idle(c, p.loop);
    y->goal = 100 * 1000;
    side_pump(y);
    UNTIL(&p, x->got == y->goal);
    EXPECT(c, x->ended == 0);
    TRY(c, bk_stream_end(y->s));
    UNTIL(&p, x->ended == 1 || x->closed == 1);
    if (x->s != NULL) /* both directions are over: whether that closes is for the case to say */
        side_close(x);
    if (y->s != NULL)
        side_close(y);
    UNTIL(&p, x->closed == 1 && y->closed == 1);
    EXPECT(c, x->why == 0 && y->why == 0);
out:
    pair_close(&p);
}

static void half_close_of_the_first(bk_conform_case *c) {
    half_close(c, 0);
}

static void half_close_of_the_second(bk_conform_case *c) {
    half_close(c, 1);
}

/* A protocol without ended(): closed after what is queued has been sent. */
static void without_ended(bk_conform_case *c) {
    pair p;
    pair_init(&p, c);
    side *x = &p.sides[0], *y = &p.sides[1];
    if (traits_of(c) & BK_CONFORM_NO_HALF_CLOSE) {
        conform_skip(c, "cannot half-close");
        return;
    }
    y->protocol = &pair_deaf;
    TRY(c, pair_open(&p));
    y->goal = 300 * 1000;
    y->piece = y->goal; /* all of it is queued before the end comes */
    side_pump(y);
    TRY(c, bk_stream_end(x->s));
    UNTIL(&p, x->closed == 1 && y->closed == 1);
    EXPECT(c, x->got == y->goal && x->why == 0 && y->why == 0);
out:
    pair_close(&p);
}

static void close_sends_the_rest(bk_conform_case *c) {
    pair p;
    pair_init(&p, c);
    side *x = &p.sides[0], *y = &p.sides[1];
    TRY(c, pair_open(&p));
    side_pause(y);
    x->goal = 300 * 1000;
    x->piece = x->goal;
    side_pump(x);
    side_close(x);
    bk_stream_close(x->s); /* once more is no error */
    EXPECT(c, bk_stream_write(x->s, "x", 1, BK_COPY, NULL) == -EPIPE);
    for (int i = 0; i < 5; i++)
        TRY(c, bk_loop_turn(p.loop, 0));
    side_resume(y);
    UNTIL(&p, x->closed == 1 && y->closed == 1);
    EXPECT(c, y->got == x->goal && y->ended == 1);
    EXPECT(c, x->why == 0 && y->why == 0);
out:
    pair_close(&p);
}

/* More than fits is on its way when the peer goes: that has to be told. */
static void gone_with_data_queued(bk_conform_case *c) {
    pair p;
    pair_init(&p, c);
    side *x = &p.sides[0], *y = &p.sides[1];
    x->may_break = true;
    x->keep = true;
    TRY(c, pair_open(&p));
    side_pause(y);
    x->goal = UINT64_MAX;
    x->piece = 50000;
    side_pump(x);
    UNTIL(&p, x->blocked == 1);
    x->goal = 0;
    side_abort(y);
    UNTIL(&p, x->closed == 1 && y->closed == 1);
    EXPECT(c, x->why == -EPIPE || x->why == -ECONNRESET ||
                  (x->why == BK_ETRUNCATED && traits_of(c) & BK_CONFORM_TRUNCATES));
    EXPECT(c, y->why == -ECANCELED);
    EXPECT(c, x->held == 0); /* what could not be sent has been released */
out:
    pair_close(&p);
}

/* Until there is something to read, without reading it. */
static void await_arrival(side *x) {
    bk_transport *t = bk_stream_transport(x->s);
    struct pollfd p = {.fd = t->ops->fd(t, BK_READ), .events = POLLIN};
    if (p.fd >= 0)
        (void)poll(&p, 1, (int)(conform_patience(x->c) / CONFORM_MS));
}

/* The peer goes with our data unread: a reset, where the kind has that; else an end. */
static void gone_with_data_unread(bk_conform_case *c) {
    pair p;
    pair_init(&p, c);
    side *x = &p.sides[0], *y = &p.sides[1];
    TRY(c, pair_open(&p));
    side_pause(y);
    if (!side_send(x, 5, PAIR_REFER))
        goto out;
    while (bk_stream_queued(x->s) > 0 && !conform_hangs(c))
        TRY(c, bk_loop_turn(p.loop, 0)); /* no callback is to come: it must not wait for one */
    if (x->s == NULL || y->s == NULL)
        goto out;
    await_arrival(y);
    x->may_break = true;
    side_abort(y);
    UNTIL(&p, x->closed == 1 && y->closed == 1);
    if (traits_of(c) & BK_CONFORM_NO_RESET && traits_of(c) & BK_CONFORM_TRUNCATES)
        EXPECT(c, x->why == BK_ETRUNCATED && x->ended == 0);
    else if (traits_of(c) & BK_CONFORM_NO_RESET)
        EXPECT(c, x->why == 0 && x->ended == 1);
    else
        EXPECT(c, x->why == -ECONNRESET || x->why == -EPIPE);
out:
    pair_close(&p);
}

static void ends_in_every_order(bk_conform_case *c) {
    for (int order = 0; order < 4 && c->failed == 0 && !conform_excused(c); order++) {
        pair p;
        pair_init(&p, c);
        side *x = &p.sides[0];
        x->may_break = p.sides[1].may_break = true;
        TRY(c, pair_open(&p));
        if (!side_send(x, 100, PAIR_REFER))
            goto out;
        if (order % 2 == 0)
            (void)bk_stream_end(x->s);
        side_close(x);
        (void)bk_stream_end(x->s);
        side_close(x);
        if (order >= 2)
            side_abort(x);
        side_close(x);
        UNTIL(&p, x->closed == 1 && p.sides[1].closed == 1);
        EXPECT(c, x->why == (order >= 2 ? -ECANCELED : 0));
    out:
        pair_close(&p);
    }
}

/* ---- Closing within each callback ---- */

typedef enum moment { OPENED, RECEIVED, ENDED, BLOCKED, WRITABLE } moment;

static void close_now(side *x) {
    side_close(x);
    EXPECT(x->c, bk_stream_write(x->s, "x", 1, BK_COPY, NULL) == -EPIPE);
}

static void abort_now(side *x) {
    side_abort(x);
    EXPECT(x->c, bk_stream_queued(x->s) == 0);
    EXPECT(x->c, bk_stream_write(x->s, "x", 1, BK_COPY, NULL) == -EPIPE);
}

static int close_now_int(side *x) {
    close_now(x);
    return 0;
}

static int abort_now_int(side *x) {
    abort_now(x);
    return 0;
}

static void close_now_data(side *x, const char *data, size_t n) {
    (void)data, (void)n;
    close_now(x);
}

static void abort_now_data(side *x, const char *data, size_t n) {
    (void)data, (void)n;
    abort_now(x);
}

static void let_peer_read(side *x) {
    if (x->peer->s != NULL && x->peer->paused)
        side_resume(x->peer);
}

/* Who is closed while it waits for the peer to read: the peer must go on, or it will wait on. */
static void close_blocked(side *x) {
    close_now(x);
    let_peer_read(x);
}

static void abort_blocked(side *x) {
    abort_now(x);
    let_peer_read(x);
}

static void prepare(side *x, moment when, bool aborts) {
    switch (when) {
    case OPENED:
        x->on_opened = aborts ? abort_now_int : close_now_int;
        break;
    case RECEIVED:
        x->on_received = aborts ? abort_now_data : close_now_data;
        break;
    case ENDED:
        x->on_ended = aborts ? abort_now_int : close_now_int;
        break;
    case BLOCKED:
        x->on_blocked = aborts ? abort_blocked : close_blocked;
        break;
    case WRITABLE:
        x->on_blocked = let_peer_read;
        x->on_writable = aborts ? abort_now : close_now;
        break;
    }
}

/* Make it happen. */
static void provoke(side *x, moment when) {
    side *y = x->peer;
    if (when == RECEIVED)
        (void)side_send(y, 10, PAIR_REFER);
    if (when == ENDED)
        (void)FAILED(x->c, bk_stream_end(y->s));
    if (when == BLOCKED || when == WRITABLE) {
        side_pause(y);
        x->goal = UINT64_MAX;
        x->piece = 30000;
        x->mode = PAIR_MIX;
        side_pump(x);
    }
}

static void close_within(bk_conform_case *c, moment when, bool aborts) {
    pair p;
    pair_init(&p, c);
    side *x = &p.sides[0], *y = &p.sides[1];
    if (when == ENDED && traits_of(c) & BK_CONFORM_NO_HALF_CLOSE) {
        conform_skip(c, "cannot half-close");
        return;
    }
    y->may_break = true;
    prepare(x, when, aborts);
    TRY(c, pair_open(&p));
    if (x->s != NULL && y->s != NULL)
        provoke(x, when);
    UNTIL(&p, x->closed == 1 && y->closed == 1);
    EXPECT(c, x->why == (aborts ? -ECANCELED : 0));
    if (!aborts) /* all that was queued has arrived */
        EXPECT(c, y->got == x->sent);
    if (!aborts && when != RECEIVED) /* (there, unread bytes may make it a reset) */
        EXPECT(c, y->why == 0);
    EXPECT(c, x->received == (when == RECEIVED) && x->ended == (when == ENDED));
out:
    pair_close(&p);
}

#define CLOSE_WITHIN(name, when)                                                                   \
    static void close_in_##name(bk_conform_case *c) {                                              \
        close_within(c, when, false);                                                              \
    }                                                                                              \
    static void abort_in_##name(bk_conform_case *c) {                                              \
        close_within(c, when, true);                                                               \
    }

CLOSE_WITHIN(opened, OPENED)
CLOSE_WITHIN(received, RECEIVED)
CLOSE_WITHIN(ended, ENDED)
CLOSE_WITHIN(blocked, BLOCKED)
CLOSE_WITHIN(writable, WRITABLE)

/* ---- Writing ---- */

static void count_release(void *arg) {
    ++*(int *)arg;
}

/* Refused is released too, once, and at once: nobody else is going to do it. */
static void writes_refused(bk_conform_case *c) {
    pair p;
    int count = 0;
    pair_init(&p, c);
    p.sides[1].keep = true;
    p.sides[1].may_break = true;
    TRY(c, pair_open(&p));
    bk_stream *s = p.sides[0].s;
    EXPECT(c, bk_stream_write(NULL, "x", 1, count_release, &count) == -EINVAL);
    EXPECT(c, count == 1);
    EXPECT(c, bk_stream_write(s, NULL, 1, count_release, &count) == -EINVAL);
    EXPECT(c, count == 2);
    if (bk_stream_end(s) == 0) {
        EXPECT(c, bk_stream_write(s, "x", 1, count_release, &count) == -EPIPE);
        EXPECT(c, count == 3);
        EXPECT(c, bk_stream_write(s, "", 0, count_release, &count) == -EPIPE);
        EXPECT(c, count == 4);
    }
    count = 0;
    side_close(&p.sides[0]);
    EXPECT(c, bk_stream_write(s, "x", 1, count_release, &count) == -EPIPE);
    side_abort(&p.sides[0]);
    EXPECT(c, bk_stream_write(s, "x", 1, count_release, &count) == -EPIPE);
    EXPECT(c, count == 2);
    EXPECT(c, bk_stream_write(s, "x", 1, BK_STATIC, NULL) == -EPIPE);
out:
    pair_close(&p);
}

static void writes_of_nothing(bk_conform_case *c) {
    pair p;
    int count = 0;
    pair_init(&p, c);
    TRY(c, pair_open(&p));
    bk_stream *s = p.sides[0].s;
    for (int i = 1; i <= 3; i++) {
        TRY(c, bk_stream_write(s, "x", 0, count_release, &count));
        TRY(c, bk_stream_write(s, NULL, 0, BK_COPY, NULL));
        EXPECT(c, bk_stream_queued(s) == (i > 1 ? 10 : 0));
        if (i == 1 && !side_send(&p.sides[0], 10, PAIR_REFER))
            goto out;
    }
    UNTIL(&p, p.sides[1].got == 10);
    EXPECT(c, count == 3);
    pair_finish(&p);
out:
    pair_close(&p);
}

enum { SMALL_WRITES = 200 };

static int write_small_copies(side *x) {
    for (int i = 0; i < SMALL_WRITES; i++)
        if (!side_send(x, 10, PAIR_COPY))
            break;
    return 0;
}

static int write_small_references(side *x) {
    for (int i = 0; i < SMALL_WRITES; i++)
        if (!side_send(x, 10, PAIR_REFER))
            break;
    return 0;
}

/* What a callback writes is sent in one gathering call, or as few as hold that many pieces. */
static void coalesces(bk_conform_case *c, int (*write)(side *x), long most) {
    pair p;
    pair_init(&p, c);
    p.filtered = true;
    p.sides[0].on_opened = write;
    TRY(c, pair_open(&p));
    UNTIL(&p, p.sides[1].got == SMALL_WRITES * 10);
    EXPECT(c, p.counts[0].writes <= most + p.counts[0].refused);
    pair_finish(&p);
out:
    pair_close(&p);
}

static void copies_coalesce(bk_conform_case *c) {
    coalesces(c, write_small_copies, 1);
}

static void references_coalesce(bk_conform_case *c) {
    coalesces(c, write_small_references, (SMALL_WRITES + BK_IOV_MAX - 1) / BK_IOV_MAX);
}

static void write_soon(void *arg) {
    pair *p = arg;
    (void)side_send(&p->sides[0], 10, PAIR_REFER);
    EXPECT(p->c, p->counts[0].writes == 0); /* it waits for more from this callback */
}

static void written_by_now(void *arg) {
    pair *p = arg;
    EXPECT(p->c, p->counts[0].writes > 0); /* but not for the turn to end */
    p->sides[0].step = 1;
}

static void a_lone_write_waits_for_nothing(bk_conform_case *c) {
    pair p;
    pair_init(&p, c);
    p.filtered = true;
    TRY(c, pair_open(&p));
    TRY(c, bk_loop_soon(p.loop, write_soon, &p));
    TRY(c, bk_loop_soon(p.loop, written_by_now, &p));
    UNTIL(&p, p.sides[0].step == 1);
    pair_finish(&p);
out:
    pair_close(&p);
}

/* Between turns, for those who drive the loop from outside: it is work, and it is done next. */
static void written_between_turns(bk_conform_case *c) {
    pair p;
    pair_init(&p, c);
    p.filtered = true;
    TRY(c, pair_open(&p));
    for (int i = 0; i < 3; i++)
        TRY(c, bk_loop_turn(p.loop, 0));
    if (!side_send(&p.sides[0], 10, PAIR_REFER))
        goto out;
    EXPECT(c, bk_loop_deadline(p.loop) == 0);
    TRY(c, bk_loop_turn(p.loop, 0));
    EXPECT(c, p.counts[0].writes > 0);
    UNTIL(&p, p.sides[1].got == 10);
    long before = p.counts[0].writes;
    if (!side_send(&p.sides[0], 10, PAIR_REFER))
        goto out;
    bk_stream_flush(p.sides[0].s); /* now, and not in the next turn */
    EXPECT(c, p.counts[0].writes > before || p.counts[0].refused > 0);
    pair_finish(&p);
out:
    pair_close(&p);
}

/* ---- Releases that do something ---- */

static void write_more(side *x) {
    if (x->step++ == 0)
        (void)side_send(x, 100000, PAIR_REFER); /* more than the high-water mark: sent at once */
}

static void close_once(side *x) {
    if (x->step++ == 0)
        side_close(x);
}

static void abort_once(side *x) {
    if (x->step++ == 0)
        side_abort(x);
}

/* The first of several is released while the others are still to be dropped. */
static void release_does(bk_conform_case *c, void (*what)(side *x), bool all_arrives) {
    pair p;
    pair_init(&p, c);
    side *x = &p.sides[0], *y = &p.sides[1];
    x->on_release = what;
    x->may_break = y->may_break = !all_arrives;
    TRY(c, pair_open(&p));
    for (int i = 0; i < 4; i++)
        if (!side_send(x, 1000, PAIR_REFER))
            goto out;
    UNTIL(&p, x->step > 0);
    x->on_release = NULL;
    if (all_arrives) {
        UNTIL(&p, y->got == x->sent);
    } else {
        UNTIL(&p, x->closed == 1 && y->closed == 1);
    }
out:
    x->on_release = NULL;
    pair_close(&p);
}

static void release_writes(bk_conform_case *c) {
    release_does(c, write_more, true);
}

static void release_closes(bk_conform_case *c) {
    release_does(c, close_once, true);
}

static void release_aborts(bk_conform_case *c) {
    release_does(c, abort_once, false);
}

/* ---- Flow control ---- */

static void peer_stops_reading(bk_conform_case *c) {
    pair p;
    pair_init(&p, c);
    side *x = &p.sides[0], *y = &p.sides[1];
    TRY(c, pair_open(&p));
    side_pause(y);
    x->goal = UINT64_MAX;
    x->piece = 10000;
    x->mode = PAIR_REFER;
    side_pump(x);
    UNTIL(&p, x->blocked == 1);
    x->goal = x->sent + 200 * 1000;
    EXPECT(c, y->received == 0);
    conform_idle(c, p.loop); /* neither side may spin over it */
    if (x->writable == 0)    /* (else the buffers below have grown) */
        EXPECT(c, bk_stream_queued(x->s) > x->low);
    side_resume(y);
    UNTIL(&p, y->got == x->goal);
    EXPECT(c, x->writable >= 1);
    MUST(c, x->held_most <= x->high + 2 * x->piece); /* no more than that was ever held */
    pair_finish(&p);
out:
    pair_close(&p);
}

static void water_marks(bk_conform_case *c) {
    pair p;
    pair_init(&p, c);
    side *x = &p.sides[0], *y = &p.sides[1];
    TRY(c, pair_open(&p));
    EXPECT(c, bk_stream_set_water(x->s, 2, 1) == -EINVAL);
    EXPECT(c, bk_stream_set_water(NULL, 1, 2) == -EINVAL);
    TRY(c, bk_stream_set_water(x->s, 100, 1000));
    x->low = 100;
    x->high = 1000;
    side_pause(y);
    x->goal = UINT64_MAX;
    x->piece = 700;
    side_pump(x);
    UNTIL(&p, x->blocked == 1);
    MUST(c, bk_stream_queued(x->s) <= 1000 + x->piece);
    TRY(c, bk_stream_set_water(x->s, 0, 0)); /* told of every byte */
    x->low = x->high = 0;
    x->goal = x->sent + 10000;
    side_resume(y);
    UNTIL(&p, y->got == x->goal);
    UNTIL(&p, x->writable == x->blocked);
    pair_finish(&p);
out:
    pair_close(&p);
}

static void pause_now(side *x, const char *data, size_t n) {
    (void)data, (void)n;
    side_pause(x);
}

static void pauses(bk_conform_case *c) {
    pair p;
    pair_init(&p, c);
    side *x = &p.sides[0], *y = &p.sides[1];
    y->on_received = pause_now;
    TRY(c, pair_open(&p));
    x->goal = c->quick ? 20 * 1000 : 1000 * 1000;
    x->mode = PAIR_MIX;
    side_pump(x);
    while (y->got < x->goal) {
        int before = y->received;
        UNTIL(&p, y->received > before);
        EXPECT(c, y->received == before + 1); /* one, and then no more */
        if (y->received < 3)
            conform_idle(c, p.loop);
        bk_stream_pause(y->s); /* again */
        side_resume(y);
        bk_stream_resume(y->s);
    }
    pair_finish(&p);
out:
    pair_close(&p);
}

static int pause_at_once(side *x) {
    side_pause(x);
    return 0;
}

static void paused_from_the_start(bk_conform_case *c) {
    pair p;
    pair_init(&p, c);
    side *x = &p.sides[0], *y = &p.sides[1];
    y->on_opened = pause_at_once;
    TRY(c, pair_open(&p));
    if (!side_send(x, 100, PAIR_COPY))
        goto out;
    conform_idle(c, p.loop);
    EXPECT(c, y->received == 0 && bk_stream_queued(x->s) < 100);
    side_resume(y);
    side_pause(y); /* changed its mind at once */
    conform_idle(c, p.loop);
    EXPECT(c, y->received == 0);
    side_resume(y);
    UNTIL(&p, y->got == 100);
    pair_finish(&p);
out:
    pair_close(&p);
}

/* ---- Room ---- */

static char own_room[64];

static int little_room(side *x, bk_room *ret_room) {
    size_t sizes[] = {1, 7, 2, sizeof own_room};
    memset(own_room, 0, sizeof own_room);
    x->step = (int)sizes[x->received % 4];
    *ret_room = (bk_room){own_room, (size_t)x->step};
    return 0;
}

static void is_in_own_room(side *x, const char *data, size_t n) {
    MUST(x->c, data == own_room);
    MUST(x->c, n <= (size_t)x->step);
}

static void own_room_is_used(bk_conform_case *c) {
    pair p;
    pair_init(&p, c);
    side *x = &p.sides[0], *y = &p.sides[1];
    y->protocol = &pair_roomy;
    y->on_room = little_room;
    y->on_received = is_in_own_room;
    TRY(c, pair_open(&p));
    x->goal = c->quick ? 500 : 20000;
    x->mode = PAIR_MIX;
    side_pump(x);
    UNTIL(&p, y->got == x->goal);
    pair_finish(&p);
out:
    pair_close(&p);
}

static int no_room(side *x, bk_room *ret_room) {
    (void)x;
    *ret_room = (bk_room){own_room, 0};
    return 0;
}

static int room_fails(side *x, bk_room *ret_room) {
    (void)x, (void)ret_room;
    return -EMSGSIZE;
}

static int room_closes(side *x, bk_room *ret_room) {
    side_close(x);
    *ret_room = (bk_room){own_room, sizeof own_room};
    return 0;
}

static void room_case(bk_conform_case *c, int (*on_room)(side *, bk_room *), int why) {
    pair p;
    pair_init(&p, c);
    side *x = &p.sides[0], *y = &p.sides[1];
    x->may_break = y->may_break = true;
    y->protocol = &pair_roomy;
    y->on_room = on_room;
    TRY(c, pair_open(&p));
    /* One that opens before its peer may look whether anything has come, and be gone by now. */
    if (y->closed == 0 && !side_send(x, 10, PAIR_REFER))
        goto out;
    UNTIL(&p, x->closed == 1 && y->closed == 1);
    EXPECT(c, y->why == why && y->received == 0);
out:
    pair_close(&p);
}

static void room_of_nothing(bk_conform_case *c) {
    room_case(c, no_room, -ENOBUFS);
}

static void room_refused(bk_conform_case *c) {
    room_case(c, room_fails, -EMSGSIZE);
}

static void closed_in_room(bk_conform_case *c) {
    room_case(c, room_closes, 0);
}

static void change_protocol(side *x, const char *data, size_t n) {
    (void)data, (void)n;
    bool roomy = bk_stream_protocol(x->s) == &pair_roomy;
    bk_stream_set_protocol(x->s, roomy ? &pair_plain : &pair_roomy);
}

static void protocol_changes(bk_conform_case *c) {
    pair p;
    pair_init(&p, c);
    side *x = &p.sides[0], *y = &p.sides[1];
    y->on_room = little_room;
    y->on_received = change_protocol;
    TRY(c, pair_open(&p));
    x->goal = 200 * 1000;
    side_pump(x);
    UNTIL(&p, y->got == x->goal);
    pair_finish(&p);
out:
    pair_close(&p);
}

/* ---- Echo: what is being received is sent, without being copied by the protocol ---- */

static void echo_back(side *x, const char *data, size_t n) {
    size_t half = n / 2;
    int code = bk_stream_write(x->s, data, half, BK_COPY, NULL);
    if (code >= 0)
        code = bk_stream_write(x->s, data + half, n - half, BK_COPY, NULL);
    if (!FAILED(x->c, code))
        x->sent += n;
}

static void stop_receiving(side *x) {
    side_pause(x);
}

static void go_on_receiving(side *x) {
    side_resume(x);
}

static void echo(bk_conform_case *c) {
    pair p;
    pair_init(&p, c);
    side *x = &p.sides[0], *y = &p.sides[1];
    x->pattern = 0; /* its own comes back */
    y->on_received = echo_back;
    y->on_blocked = stop_receiving;
    y->on_writable = go_on_receiving;
    TRY(c, pair_open(&p));
    side_pause(x);
    x->goal = UINT64_MAX;
    x->piece = 30000;
    side_pump(x);
    UNTIL(&p, x->blocked == 1); /* all buffers on both ways are full */
    x->goal = x->sent + 100 * 1000;
    side_resume(x);
    UNTIL(&p, x->got == x->goal);
    pair_finish(&p);
out:
    pair_close(&p);
}

/* ---- Another transport in mid-stream, as TLS will be ---- */

enum { PLAIN_BYTES = 20, MIX_KEY = 0x5a };

static void put_mixed(side *x) {
    bk_transport *t;
    if (FAILED(x->c, filter_new(bk_stream_transport(x->s), 0, MIX_KEY, NULL, &t)))
        return;
    bk_stream_set_transport(x->s, t);
    EXPECT(x->c, bk_stream_transport(x->s) == t);
}

/* The answer in plain bytes, and from there on mixed: when the plain ones are all with the old
   transport, which water marks of 0 tell. */
static void switch_when_sent(side *x) {
    if (x->step == 1 && bk_stream_queued(x->s) == 0) {
        x->step = 2;
        put_mixed(x);
        (void)side_send(x, 30000, PAIR_MIX);
    }
}

static void server_starts(side *x, const char *data, size_t n) {
    (void)data, (void)n;
    if (x->step != 0 || x->got < PLAIN_BYTES)
        return;
    x->step = 1;
    (void)FAILED(x->c, bk_stream_set_water(x->s, 0, 0));
    x->low = x->high = 0;
    if (side_send(x, PLAIN_BYTES, PAIR_REFER))
        bk_stream_flush(x->s);
    switch_when_sent(x);
}

/* The client says nothing more in plain bytes, so the server may switch as it likes. */
static int little_by_little(side *x, bk_room *ret_room) {
    uint64_t left = PLAIN_BYTES - x->got; /* never beyond what is in plain bytes */
    *ret_room = (bk_room){own_room, x->step == 0 ? (size_t)left : sizeof own_room};
    return 0;
}

static void client_starts(side *x, const char *data, size_t n) {
    (void)data, (void)n;
    if (x->step != 0 || x->got < PLAIN_BYTES)
        return;
    x->step = 1;
    (void)side_send(x, 5000, PAIR_REFER); /* queued before the change: goes through the new one */
    put_mixed(x);
    (void)side_send(x, 25000, PAIR_MIX);
}

static void another_transport(bk_conform_case *c) {
    pair p;
    pair_init(&p, c);
    side *client = &p.sides[0], *server = &p.sides[1];
    client->protocol = &pair_roomy;
    client->on_room = little_by_little;
    client->on_received = client_starts;
    server->on_received = server_starts;
    server->on_writable = switch_when_sent;
    TRY(c, pair_open(&p));
    if (!side_send(client, PLAIN_BYTES, PAIR_COPY))
        goto out;
    UNTIL(&p, client->got == PLAIN_BYTES + 30000 && server->got == PLAIN_BYTES + 30000);
    pair_finish(&p);
out:
    pair_close(&p);
}

/* ---- The end of the loop ---- */

static void freed_with_streams(bk_conform_case *c) {
    pair p;
    pair_init(&p, c);
    side *x = &p.sides[0], *y = &p.sides[1];
    TRY(c, pair_open(&p));
    side_pause(x);
    side_pause(y);
    x->goal = y->goal = UINT64_MAX;
    x->piece = y->piece = 20000;
    side_pump(x);
    side_pump(y);
    UNTIL(&p, x->blocked == 1 && y->blocked == 1);
    x->goal = y->goal = 0;
    conform_loop_free(c, p.loop);
    p.loop = NULL;
    EXPECT(c, x->closed == 1 && x->why == -ECANCELED);
    EXPECT(c, y->closed == 1 && y->why == -ECANCELED);
out:
    pair_close(&p);
}

static void bad_arguments(bk_conform_case *c) {
    pair p;
    pair_init(&p, c);
    TRY(c, pair_open(&p));
    bk_stream *s = p.sides[0].s, *none = NULL;
    bk_transport *t = bk_stream_transport(s);
    char room[8];
    size_t size = sizeof room;
    EXPECT(c, bk_stream_new(NULL, t, &pair_plain, NULL, &none) == -EINVAL);
    EXPECT(c, bk_stream_new(p.loop, NULL, &pair_plain, NULL, &none) == -EINVAL);
    EXPECT(c, bk_stream_new(p.loop, t, NULL, NULL, &none) == -EINVAL);
    EXPECT(c, bk_stream_end(NULL) == -EINVAL);
    EXPECT(c, bk_stream_query(NULL, BK_QUERY_NAME, room, &size) == -EINVAL);
    EXPECT(c, bk_stream_query(s, BK_QUERY_NAME, NULL, &size) == -EINVAL);
    EXPECT(c, bk_stream_query(s, BK_QUERY_NAME, room, NULL) == -EINVAL);
    EXPECT(c, bk_stream_queued(NULL) == 0 && none == NULL);
    bk_stream_close(NULL);
    bk_stream_abort(NULL);
    bk_stream_pause(NULL);
    bk_stream_resume(NULL);
    bk_stream_flush(NULL);
    bk_stream_set_user(NULL, NULL);
    bk_stream_set_timeout(NULL, 1);
    bk_stream_set_protocol(s, NULL);
    bk_stream_set_transport(s, NULL);
    EXPECT(c, bk_stream_protocol(s) == &pair_plain && bk_stream_transport(s) == t);
    pair_finish(&p);
out:
    pair_close(&p);
}

int bk_conform_transport(const bk_conform_joint *joint, bk_os *os, bk_conform_report *report) {
    static const conform_entry cases[] = {
        {"bare_bytes", bare_bytes, 0},
        {"bare_pieces", bare_pieces, 0},
        {"bare_full", bare_full, 0},
        {"bare_ends", bare_ends, 0},
        {"bare_peer_gone", bare_peer_gone, 0},
        {"queries", queries, 0},
        {"opening", opening, 0},
        {"opened_refuses", opened_refuses, 0},
        {"large", large, 0},
        {"one_byte_at_a_time", one_byte_at_a_time, 0},
        {"seven_bytes_at_a_time", seven_bytes_at_a_time, 0},
        {"under_signals", under_signals, CONFORM_LONG},
        {"half_close_of_the_first", half_close_of_the_first, 0},
        {"half_close_of_the_second", half_close_of_the_second, 0},
        {"without_ended", without_ended, 0},
        {"close_sends_the_rest", close_sends_the_rest, 0},
        {"gone_with_data_queued", gone_with_data_queued, 0},
        {"gone_with_data_unread", gone_with_data_unread, 0},
        {"ends_in_every_order", ends_in_every_order, 0},
        {"close_in_opened", close_in_opened, 0},
        {"close_in_received", close_in_received, 0},
        {"close_in_ended", close_in_ended, 0},
        {"close_in_blocked", close_in_blocked, 0},
        {"close_in_writable", close_in_writable, 0},
        {"abort_in_opened", abort_in_opened, 0},
        {"abort_in_received", abort_in_received, 0},
        {"abort_in_ended", abort_in_ended, 0},
        {"abort_in_blocked", abort_in_blocked, 0},
        {"abort_in_writable", abort_in_writable, 0},
        {"writes_refused", writes_refused, 0},
        {"writes_of_nothing", writes_of_nothing, 0},
        {"copies_coalesce", copies_coalesce, 0},
        {"references_coalesce", references_coalesce, 0},
        {"a_lone_write_waits_for_nothing", a_lone_write_waits_for_nothing, 0},
        {"written_between_turns", written_between_turns, 0},
        {"release_writes", release_writes, 0},
        {"release_closes", release_closes, 0},
        {"release_aborts", release_aborts, 0},
        {"peer_stops_reading", peer_stops_reading, 0},
        {"water_marks", water_marks, 0},
        {"pauses", pauses, 0},
        {"paused_from_the_start", paused_from_the_start, 0},
        {"own_room_is_used", own_room_is_used, 0},
        {"room_of_nothing", room_of_nothing, 0},
        {"room_refused", room_refused, 0},
        {"closed_in_room", closed_in_room, 0},
        {"protocol_changes", protocol_changes, 0},
        {"echo", echo, 0},
        {"another_transport", another_transport, 0},
        {"freed_with_streams", freed_with_streams, 0},
        {"bad_arguments", bad_arguments, 0},
    };
    char suite[64];
    if (joint == NULL || joint->make == NULL)
        return -EINVAL;
    snprintf(suite, sizeof suite, "transport %s", joint->name != NULL ? joint->name : "(no name)");
    return conform_suite(suite, cases, (int)(sizeof cases / sizeof *cases), joint, os, report);
}
