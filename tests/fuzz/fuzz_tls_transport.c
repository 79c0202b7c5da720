/*
 * fuzz_tls_transport.c: the TLS transport, and the stream on it, between an engine, an inner
 * transport and a protocol that all do as the input says. There is no operating system below: the
 * notifier, the clock and the files are made up here, so that an input always does the same.
 *
 * The engine and the inner transport keep to their contracts, however oddly, and the input says
 * whether the engine is one that does not: then nothing may crash, hang or leak, and that is all.
 * Else every byte is followed: up from the inner transport through each engine to the protocol, and
 * down again. Level 0 is the inner transport, level k the engine that was started k-th.
 */
#include "core/tls/tls.h"
#include "tests/fuzz/fuzz.h"

#include <errno.h>
#include <stdlib.h>

enum {
    LEVELS = 4,    /* TLS within TLS within TLS */
    INNER_FD = 10, /* no descriptors: nothing is ever asked of the system */
    WAKE_FD = 11,
    FILE_FD = 12,
    HELLOS = 4,
    IDLE_TURNS = 40,        /* in a row, in which there was something to do and nothing was done */
    CALLS_PER_TURN = 20000, /* of the engine and the inner transport */
    MOST_AT_ONCE = 300 * 1000,
    PATTERN_PERIOD = 65521,  /* a prime, so that no size is in step with it */
    MOST_BYTES = 400 * 1000, /* in each direction: more is slow, and says no more */
};

/* ---- The world ---- */

typedef struct inner {
    bk_transport base;
    bk_transport_ops ops;
    bool there, has_fd, woken, open;
    unsigned opens_left;
    size_t avail, capacity; /* bytes that the peer has sent, and that it would take */
    bool eof;
    int read_error, write_error;
} inner;

typedef struct engine {
    bk_tls base;
    int level;
    bool opened, end_seen, told_end, ended, failed, inside;
    size_t handshake_left; /* bytes it wants before it is open */
    fuzz_fifo held;        /* plaintext that found no room */
    struct engine *next;
} engine;

typedef struct world {
    fuzz_os os;
    fuzz_input in;
    bk_loop *loop;
    bk_stream *s;
    int64_t now;
    inner inner;
    engine *engines[LEVELS]; /* by level */
    int top;                 /* the level that the protocol is on */
    bool rude;               /* the engines break their contract */
    bool opened, upgrading, closed, ended, in_callback;
    int why;
    bool half_open, with_room;
    bk_room room;
    fuzz_fifo up[LEVELS], down[LEVELS];
    bool alerted[LEVELS];  /* … by the transport itself */
    uint64_t must[LEVELS]; /* so much of down[] is what a protocol said, and must not be lost */
    uint64_t made, written, releases_due;
    bk_tls_hello *hellos[HELLOS];
    int hello_count;
    bk_tls_context *context; /* what is chosen */
    uint8_t hello[80];
    size_t hello_bytes;
    unsigned armed[WAKE_FD + 1];
    uint64_t tags[WAKE_FD + 1];
    int told;       /* how many events the notifier told of in this turn */
    uint64_t moves; /* something happened */
    unsigned calls;
} world;

static world w;

static uint8_t room_bytes[65536], written_bytes[140000], pattern[PATTERN_PERIOD + MOST_AT_ONCE];

static void moved(void) {
    w.moves++;
}

static void called(void) {
    FUZZ_CHECK(++w.calls < CALLS_PER_TURN);
}

/* Bytes that differ from their neighbours, and from those that were made a while ago. Copied, as a
   loop would be most of what the fuzzer watches. */
static void make_bytes(void *to, size_t n) {
    FUZZ_CHECK(n <= MOST_AT_ONCE);
    if (n > 0)
        memcpy(to, pattern + w.made % PATTERN_PERIOD, n);
    w.made += n;
}

/* A server that has no engine yet refuses a hello by an alert of its own, behind all else. */
static void expect_alert(int level, const void *data, size_t n) {
    static const uint8_t alert[] = {21, 3, 3, 0, 2, 2};
    fuzz_fifo *down = &w.down[level];
    if (level + 1 != w.top || w.engines[w.top] != NULL || w.alerted[level])
        return;
    const uint8_t *tail = (const uint8_t *)data + fuzz_fifo_left(down);
    if (n != fuzz_fifo_left(down) + sizeof alert + 1 || memcmp(tail, alert, sizeof alert) != 0)
        return;
    fuzz_fifo_put(down, tail, sizeof alert + 1);
    w.alerted[level] = true;
}

/* ---- The inner transport ---- */

static bool inner_readable(void) {
    return w.inner.avail > 0 || w.inner.eof || w.inner.read_error < 0 || w.inner.opens_left > 0;
}

static bool inner_writable(void) {
    return w.inner.capacity > 0 || w.inner.write_error < 0 || w.inner.opens_left > 0;
}

static void inner_enter(bk_transport *t) {
    called();
    FUZZ_CHECK(w.inner.there && t == &w.inner.base);
}

static ssize_t inner_read(bk_transport *t, void *room, size_t n) {
    uint8_t *to = room;
    inner_enter(t);
    FUZZ_CHECK(w.inner.open && n > 0);
    unsigned how = fuzz_below(&w.in, 16);
    if (how == 1)
        moved();
    if (how == 1)
        return -EINTR;
    if (how == 2) { /* not now, though there is some */
        w.inner.woken = true;
        return -EAGAIN;
    }
    if (w.inner.avail == 0) {
        if (w.inner.read_error == 0 && !w.inner.eof)
            return -EAGAIN;
        moved();
        return w.inner.read_error;
    }
    n = n < w.inner.avail ? n : w.inner.avail;
    if (how == 3)
        n = 1 + fuzz_byte(&w.in) % n;
    make_bytes(room, n);
    for (size_t i = 0; i < n && w.up[0].put + i < w.hello_bytes; i++)
        to[i] = w.hello[w.up[0].put + i];
    fuzz_fifo_put(&w.up[0], room, n);
    w.inner.avail -= n;
    fuzz_say("inner: read %zu", n);
    moved();
    return (ssize_t)n;
}

static ssize_t inner_write(bk_transport *t, const struct iovec *v, int n) {
    ssize_t sent = 0;
    inner_enter(t);
    FUZZ_CHECK(w.inner.open && n > 0 && n <= BK_IOV_MAX);
    unsigned how = fuzz_below(&w.in, 16);
    if (how == 1 || w.inner.write_error < 0)
        moved();
    if (how == 1)
        return -EINTR;
    if (w.inner.write_error < 0)
        return w.inner.write_error;
    size_t most = w.inner.capacity;
    if (how == 2 && most > 1)
        most = 1 + fuzz_byte(&w.in) % most;
    if (how == 3)
        most = 0;
    w.inner.woken |= most < w.inner.capacity;
    if (n == 1)
        expect_alert(0, v[0].iov_base, v[0].iov_len);
    for (int i = 0; i < n && most > 0; i++) {
        size_t part = v[i].iov_len < most ? v[i].iov_len : most;
        fuzz_fifo_take(&w.down[0], v[i].iov_base, part);
        most -= part;
        sent += (ssize_t)part;
    }
    w.inner.capacity -= (size_t)sent;
    fuzz_say("inner: wrote %zd", sent);
    if (sent > 0)
        moved();
    return sent > 0 || v[0].iov_len == 0 ? sent : -EAGAIN;
}

static int inner_flush(bk_transport *t) {
    inner_enter(t);
    FUZZ_CHECK(w.inner.open);
    return 0;
}

static unsigned inner_wants(bk_transport *t, unsigned directions) {
    inner_enter(t);
    return w.inner.opens_left > 0 ? BK_WRITE : directions;
}

static int inner_end(bk_transport *t) {
    inner_enter(t);
    moved();
    return fuzz_below(&w.in, 4) == 1 ? -ENOTSUP : 0;
}

static void inner_close(bk_transport *t) {
    inner_enter(t);
    w.inner.there = false;
}

static int inner_fd(bk_transport *t, unsigned direction) {
    (void)direction;
    FUZZ_CHECK(w.inner.there && t == &w.inner.base);
    return w.inner.has_fd ? INNER_FD : -1;
}

static int inner_query(bk_transport *t, int what, void *ret_value, size_t *size) {
    inner_enter(t);
    (void)what, (void)ret_value, (void)size;
    return -ENOTSUP;
}

static int inner_open(bk_transport *t) {
    inner_enter(t);
    moved();
    if (w.inner.opens_left > 0 && --w.inner.opens_left > 0) {
        w.inner.woken = true;
        return -EAGAIN;
    }
    if (fuzz_below(&w.in, 16) == 1)
        return -ECONNREFUSED;
    w.inner.open = true;
    return 0;
}

static void inner_wake(void) {
    w.inner.woken = false;
    if (w.inner.there && !w.inner.has_fd)
        bk_transport_wake(&w.inner.base);
}

static void inner_make(unsigned traits) {
    w.inner.ops = (bk_transport_ops){
        .size = sizeof(bk_transport_ops),
        .name = "fuzz",
        .read = inner_read,
        .write = inner_write,
        .flush = traits & 1 ? inner_flush : NULL,
        .wants = traits & (2 | 4) ? inner_wants : NULL,
        .end = inner_end,
        .close = inner_close,
        .fd = inner_fd,
        .query = inner_query,
        .open = traits & 4 ? inner_open : NULL,
    };
    w.inner.base.ops = &w.inner.ops;
    w.inner.opens_left = traits & 4 ? fuzz_below(&w.in, 4) : 0;
    w.inner.open = !(traits & 4);
    w.inner.has_fd = traits & 8;
    w.inner.capacity = traits & 16 ? 0 : SIZE_MAX / 2;
    w.inner.there = true;
}

/* ---- The engine ---- */

static int engine_leave(engine *e, int code) {
    fuzz_say("engine %d returns %d", e->level, code);
    e->inside = false;
    return code;
}

static int engine_fail(engine *e, bk_tls_out *out) {
    static const int codes[] = {BK_ETLS, BK_ETLS_RECORD, BK_ETLS_PROTOCOL, -ENOMEM};
    int code = codes[fuzz_below(&w.in, 4)];
    moved();
    e->failed = true;
    fuzz_say("engine %d fails: %d", e->level, code);
    return engine_leave(e, bk_tls_fail(out, code, "%s", "as it was told"));
}

/* Ciphertext for the peer. */
static bool engine_send(engine *e, bk_tls_out *out, size_t n) {
    static uint8_t bytes[MOST_AT_ONCE];
    make_bytes(bytes, n);
    if (bk_tls_send(out, bytes, n) < 0)
        return false;
    fuzz_fifo_put(&w.down[e->level - 1], bytes, n);
    fuzz_say("engine %d sends %zu", e->level, n);
    moved();
    return true;
}

static engine *engine_enter(bk_tls *tls) {
    engine *e = (engine *)tls;
    called();
    FUZZ_CHECK(w.engines[e->level] == e);
    FUZZ_CHECK(!e->inside);
    FUZZ_CHECK(!e->failed || w.rude);
    e->inside = true;
    return e;
}

static void engine_take(engine *e, bk_span *in, size_t n) {
    if (n == 0)
        return;
    fuzz_fifo_take(&w.up[e->level - 1], in->base, n);
    in->base = (const char *)in->base + n;
    in->size -= n;
    fuzz_say("engine %d takes %zu, leaves %zu", e->level, n, in->size);
    moved();
}

/* Plaintext that is held goes where there is room. */
static void engine_give(engine *e, bk_room *room) {
    size_t n = fuzz_fifo_left(&e->held);
    n = n < room->size ? n : room->size;
    if (n == 0)
        return;
    memcpy(room->base, fuzz_fifo_first(&e->held), n);
    fuzz_fifo_take(&e->held, room->base, n);
    fuzz_fifo_put(&w.up[e->level], room->base, n);
    room->base = (char *)room->base + n;
    room->size -= n;
    fuzz_say("engine %d gives %zu", e->level, n);
    moved();
}

static void engine_make_plain(engine *e, size_t n) {
    static uint8_t bytes[MOST_AT_ONCE];
    n = n < sizeof bytes ? n : sizeof bytes;
    make_bytes(bytes, n);
    fuzz_fifo_put(&e->held, bytes, n);
}

/* 0: it has opened; BK_TLS_OPENING; or negative. */
static int engine_shake(engine *e, bk_span *in, bk_tls_out *out) {
    size_t n = in->size < e->handshake_left ? in->size : e->handshake_left;
    engine_take(e, in, n);
    e->handshake_left -= n;
    unsigned how = fuzz_below(&w.in, 12);
    if ((how == 1 || how == 2) && !engine_send(e, out, fuzz_size(&w.in)))
        return engine_fail(e, out);
    if (how == 2 || how == 3)
        e->handshake_left += fuzz_size(&w.in);
    if (how == 4)
        return engine_fail(e, out);
    n = in->size < e->handshake_left ? in->size : e->handshake_left;
    engine_take(e, in, n);
    e->handshake_left -= n;
    if (e->handshake_left > 0)
        return engine_leave(e, BK_TLS_OPENING);
    e->opened = true;
    moved();
    if (how == 5)
        bk_tls_keep_session(out, "session", 7);
    return 0;
}

/* One piece of what the peer sent; negative: it failed. */
static int engine_piece(engine *e, bk_span *in, bk_tls_out *out) {
    size_t n = in->size;
    unsigned how = fuzz_below(&w.in, 16);
    if (how & 1) {
        size_t most = fuzz_size(&w.in);
        n = most < n ? most : n;
    }
    engine_take(e, in, n);
    switch (how >> 1) {
    case 1: /* nothing comes of it */
        break;
    case 2:
        engine_make_plain(e, n + fuzz_size(&w.in));
        break;
    case 3: /* an answer */
        if (!engine_send(e, out, fuzz_size(&w.in)))
            return engine_fail(e, out);
        break;
    case 4:
        engine_make_plain(e, fuzz_byte(&w.in));
        e->end_seen = true;
        break;
    case 5:
        if (fuzz_byte(&w.in) & 1)
            (void)engine_send(e, out, 7); /* an alert */
        return engine_fail(e, out);
    case 6:
        bk_tls_keep_session(out, "session", 7);
        break;
    default:
        engine_make_plain(e, n);
    }
    return 0;
}

/* Nearly any result, and any part taken. */
static int engine_step_rudely(engine *e, bk_span *in, bk_room *room, bk_tls_out *out) {
    unsigned how = fuzz_byte(&w.in);
    size_t n = how & 8 ? in->size : how & 16 ? in->size / 2 : 0;
    engine_take(e, in, n);
    if (how & 32) {
        engine_make_plain(e, n + 1);
        engine_give(e, room);
    }
    if (how & 64)
        (void)engine_send(e, out, how);
    if (how == 255)
        return engine_fail(e, out);
    if (e->opened) /* one that opens again would be too much */
        how &= ~(unsigned)BK_TLS_OPENING;
    if (!(how & BK_TLS_OPENING))
        e->opened = true;
    return engine_leave(e, (int)(how & 7));
}

static int engine_step(bk_tls *tls, bk_span *in, bk_room *room, bk_tls_out *out) {
    engine *e = engine_enter(tls);
    FUZZ_CHECK(fuzz_fifo_begins(&w.up[e->level - 1], in->base, in->size));
    if (w.rude && w.in.left > 0)
        return engine_step_rudely(e, in, room, out);
    if (!e->opened) {
        int code = engine_shake(e, in, out);
        if (code != 0)
            return code;
        if (fuzz_byte(&w.in) & 1) /* the handshake has just ended: it may leave what follows */
            return engine_leave(e, 0);
    }
    for (;;) {
        engine_give(e, room);
        if (fuzz_fifo_left(&e->held) > 0)
            return engine_leave(e, BK_TLS_PENDING);
        if (e->end_seen) {
            e->told_end = true;
            return engine_leave(e, BK_TLS_ENDED);
        }
        if (in->size == 0 || (room->size == 0 && fuzz_byte(&w.in) & 1))
            return engine_leave(e, 0);
        if (engine_piece(e, in, out) < 0)
            return BK_ETLS;
    }
}

static int engine_seal(bk_tls *tls, bk_span plain, bk_tls_out *out) {
    engine *e = engine_enter(tls);
    FUZZ_CHECK(plain.size > 0);
    FUZZ_CHECK(w.rude || (e->opened && !e->ended));
    unsigned how = fuzz_below(&w.in, 32);
    size_t more = how == 2 ? fuzz_size(&w.in) : 5;
    if (how == 1)
        return engine_fail(e, out);
    expect_alert(e->level, plain.base, plain.size);
    /* Not what an engine above has said by itself: good-byes, answers. */
    bool matters = w.down[e->level].taken < w.must[e->level];
    fuzz_fifo_take(&w.down[e->level], plain.base, plain.size);
    if (!engine_send(e, out, plain.size) || !engine_send(e, out, more))
        return engine_fail(e, out);
    if (matters)
        w.must[e->level - 1] = w.down[e->level - 1].put;
    return engine_leave(e, 0);
}

static int engine_end(bk_tls *tls, bk_tls_out *out) {
    engine *e = engine_enter(tls);
    FUZZ_CHECK(!e->ended);
    FUZZ_CHECK(w.rude || e->opened);
    e->ended = true;
    if (fuzz_below(&w.in, 8) == 1 || !engine_send(e, out, 7))
        return engine_fail(e, out);
    return engine_leave(e, 0);
}

static void engine_close(bk_tls *tls) {
    engine *e = (engine *)tls;
    FUZZ_CHECK(w.engines[e->level] == e && !e->inside);
    w.engines[e->level] = NULL;
    fuzz_fifo_free(&e->held);
    free(e);
}

static int engine_query(bk_tls *tls, int what, void *ret_value, size_t *size) {
    engine *e = (engine *)tls;
    FUZZ_CHECK(w.engines[e->level] == e && !e->inside);
    if (what == BK_QUERY_TLS_NAME && fuzz_byte(&w.in) & 1)
        return bk_query_answer(ret_value, size, "Site.test", 10);
    return what == BK_QUERY_TLS_ENGINE ? bk_query_answer(ret_value, size, "fuzz", 5) : -ENOTSUP;
}

static int engine_rekey(bk_tls *tls, bk_tls_out *out) {
    engine *e = engine_enter(tls);
    FUZZ_CHECK(w.rude || (e->opened && !e->ended));
    unsigned how = fuzz_below(&w.in, 4);
    if (how == 1)
        return engine_leave(e, -ENOTSUP);
    if (how == 2 || !engine_send(e, out, how == 3 ? fuzz_size(&w.in) : 7))
        return engine_fail(e, out);
    return engine_leave(e, 0);
}

static const bk_tls_ops engine_ops = {
    .size = sizeof(bk_tls_ops),
    .name = "fuzz",
    .step = engine_step,
    .seal = engine_seal,
    .end = engine_end,
    .close = engine_close,
    .query = engine_query,
    .rekey = engine_rekey,
};

static bk_tls *engine_make(int level) {
    engine *e = calloc(1, sizeof *e);
    FUZZ_CHECK(e != NULL && level < LEVELS && w.engines[level] == NULL);
    e->base.ops = &engine_ops;
    e->level = level;
    e->handshake_left = fuzz_byte(&w.in);
    w.engines[level] = e;
    return &e->base;
}

/* ---- … as an engine of contexts ---- */

static int maker_open(bk_os *os, bk_error *error) {
    (void)os, (void)error;
    return 0;
}

static const char *maker_version(void) {
    return "fuzz 1";
}

static int maker_context_new(const bk_tls_settings *settings, bk_error *error, void **ret_context) {
    (void)settings, (void)error;
    *ret_context = &w;
    return 0;
}

static void maker_context_free(void *context) {
    FUZZ_CHECK(context == &w);
}

static int maker_connection_new(void *context, const char *server_name, bk_span session,
                                bk_tls **ret_tls) {
    (void)context, (void)server_name;
    FUZZ_CHECK(session.size == 0 || (session.size == 7 && memcmp(session.base, "session", 7) == 0));
    called();
    moved();
    if (fuzz_below(&w.in, 16) == 1)
        return -EINVAL;
    *ret_tls = engine_make(w.top);
    return 0;
}

static const bk_tls_engine maker = {
    .size = sizeof(bk_tls_engine),
    .name = "fuzz",
    .open = maker_open,
    .version = maker_version,
    .context_new = maker_context_new,
    .context_free = maker_context_free,
    .connection_new = maker_connection_new,
};

static void answer(bk_tls_hello *hello, unsigned how) {
    moved();
    FUZZ_CHECK(bk_tls_hello_name(hello) != NULL);
    bk_tls_choose(hello, how & 1 ? NULL : w.context);
}

static void on_choose(void *arg, bk_tls_hello *hello) {
    (void)arg;
    unsigned how = fuzz_below(&w.in, 4);
    moved();
    if (how < 2 || w.hello_count == HELLOS)
        answer(hello, how);
    else
        w.hellos[w.hello_count++] = hello;
}

static bk_tls_context *make_context(unsigned how) {
    static const int64_t times[] = {0, BK_MILLISECOND, 5 * BK_SECOND, 500 * BK_SECOND};
    bk_tls_context *context = NULL;
    bk_tls_config config = {
        .size = sizeof config,
        .engine = maker.name,
        .server = how & 1,
        .certificate = how & 1 ? "a file" : NULL,
        .verify = BK_TLS_VERIFY_NONE,
        .allow_truncation = how >> 1 & 1,
        .choose = how & 4 ? on_choose : NULL,
        .handshake_ns = times[how >> 3 & 3],
        .linger_ns = times[how >> 5 & 3],
    };
    int code = bk_tls_context_new(w.loop, &config, NULL, &context);
    FUZZ_CHECK(code == 0 || code == -ENOMEM);
    return code == 0 ? context : NULL;
}

/* ---- The protocol ---- */

static void act(bk_stream *s);

static void release(void *arg) {
    FUZZ_CHECK(arg == &w && w.releases_due > 0);
    w.releases_due--;
}

static void write_some(bk_stream *s, const void *data, size_t n, unsigned how) {
    if (w.written > MOST_BYTES)
        return;
    bk_release releases[] = {BK_COPY, BK_COPY, BK_STATIC, release};
    bk_release way = releases[how & 3];
    int level = w.top;
    fuzz_fifo *down = &w.down[level];
    uint64_t before = down->put, must = w.must[level];
    w.releases_due += way == release;
    w.written += n;
    fuzz_fifo_put(down, data, n);
    w.must[level] = down->put;
    if (bk_stream_write(s, data, n, way, &w) >= 0)
        return;
    /* It was not queued; without memory for the rest, some of it may have gone. */
    size_t back = (size_t)(down->put - before);
    back = back < fuzz_fifo_left(down) ? back : fuzz_fifo_left(down);
    down->used -= back;
    down->put -= back;
    w.must[level] = must < down->taken ? down->taken : must;
}

static void write_fresh(bk_stream *s, size_t n, unsigned how) {
    /* What is referred to stays as it is: only what is copied may be made anew. */
    static uint8_t copied[sizeof written_bytes];
    n = n < sizeof copied ? n : sizeof copied;
    if ((how & 3) >= 2) {
        write_some(s, written_bytes, n, how);
        return;
    }
    make_bytes(copied, n);
    write_some(s, copied, n, how);
    memset(copied, 0xee, n);
}

static void start_over(bk_stream *s, const uint8_t *fed, size_t n) {
    static const bk_tls_manners manners = {.handshake_ns = 60 * BK_SECOND};
    bk_transport *inside = bk_stream_transport(s), *t = NULL;
    bk_tls *tls = engine_make(w.top + 1);
    int code = bk_tls_transport_over(w.loop, inside, tls, &manners, &t);
    if (code < 0) {
        tls->ops->close(tls);
        return;
    }
    code = bk_tls_transport_feed(t, fed, n);
    if (code == 0 && n > 0) { /* given back, to be read by the engine */
        w.up[w.top].from -= n;
        w.up[w.top].taken -= n;
    }
    if (code == 0)
        code = bk_tls_transport_start(t, s);
    if (code < 0) {
        if (n > 0 && w.up[w.top].from + n <= w.up[w.top].used)
            w.up[w.top].from += n;
        bk_tls_transport_abandon(t);
        return;
    }
    w.top++;
    w.upgrading = true;
}

static void start_tls(bk_stream *s) {
    bk_tls_context *context = make_context(fuzz_byte(&w.in));
    if (context != NULL && bk_stream_start_tls(s, context, "localhost") == 0) {
        w.top++;
        w.upgrading = true;
    }
    bk_tls_context_unref(context);
}

/* Whether TLS may be started: not while a handshake is under way, which start_tls() finds out. */
static bool may_start(void) {
    return w.top + 1 < LEVELS && w.opened && !w.upgrading;
}

static void ask(bk_stream *s) {
    char room[256];
    for (int what = BK_QUERY_TLS; what <= BK_QUERY_TLS_WORDS; what++) {
        size_t size = sizeof room;
        (void)bk_stream_query(s, what, room, &size);
    }
}

/* Anything that an owner may do. */
static void act(bk_stream *s) {
    unsigned what = fuzz_below(&w.in, 24);
    if (w.closed || s == NULL)
        return;
    if (what != 0)
        moved();
    fuzz_say("protocol: act %u", what);
    switch (what) {
    case 1:
    case 2:
    case 3:
    case 4:
        write_fresh(s, fuzz_size(&w.in), what);
        break;
    case 5:
        bk_stream_pause(s);
        break;
    case 6:
        bk_stream_resume(s);
        break;
    case 7:
        (void)bk_stream_end(s);
        break;
    case 8:
        bk_stream_close(s);
        break;
    case 9:
        bk_stream_abort(s);
        break;
    case 10:
    case 11:
        if (w.top + 1 < LEVELS && w.opened)
            start_tls(s);
        break;
    case 12:
        if (may_start())
            start_over(s, NULL, 0);
        break;
    case 13:
        (void)bk_stream_rekey(s);
        break;
    case 14:
        bk_stream_flush(s);
        break;
    case 15:
        (void)bk_stream_set_water(s, fuzz_byte(&w.in), 255 + fuzz_size(&w.in));
        break;
    case 16:
        ask(s);
        break;
    case 17:
        bk_stream_set_timeout(s, fuzz_below(&w.in, 3) * 100);
        break;
    case 18:
        w.os.fail_in = fuzz_byte(&w.in);
        break;
    case 19:
        act(s);
        act(s);
        break;
    default:
        break;
    }
}

static void enter(bk_stream *s) {
    FUZZ_CHECK(!w.closed);
    FUZZ_CHECK(w.s == NULL || w.s == s);
    w.s = s;
    moved();
}

static int result(void) {
    return fuzz_below(&w.in, 32) == 1 ? -EPERM : 0;
}

static int opened(bk_stream *s) {
    enter(s);
    FUZZ_CHECK(!w.opened);
    FUZZ_CHECK(w.rude || w.top == 0 || w.engines[w.top]->opened);
    w.opened = true;
    fuzz_say("opened()");
    act(s);
    return result();
}

static int upgraded(bk_stream *s) {
    enter(s);
    FUZZ_CHECK(w.opened && w.upgrading);
    FUZZ_CHECK(w.rude || w.engines[w.top]->opened);
    w.upgrading = false;
    fuzz_say("upgraded()");
    act(s);
    return result();
}

static int give_room(bk_stream *s, bk_room *ret_room) {
    static const size_t sizes[] = {65536, 1, 10, 1000, 16384, 0};
    unsigned how = fuzz_below(&w.in, 8);
    enter(s);
    if (how == 7)
        act(s);
    if (how == 6)
        return -EPERM;
    w.room = (bk_room){room_bytes, sizes[how % 6]};
    *ret_room = w.room;
    return 0;
}

static void received(bk_stream *s, const void *data, size_t n) {
    enter(s);
    fuzz_say("received(%zu)", n);
    FUZZ_CHECK(n > 0 && w.opened && !w.ended);
    FUZZ_CHECK(!w.with_room || (data == room_bytes && n <= w.room.size));
    FUZZ_CHECK(w.rude || w.top == 0 || (w.engines[w.top] != NULL && w.engines[w.top]->opened));
    FUZZ_CHECK(!w.upgrading);
    fuzz_fifo_take(&w.up[w.top], data, n);
    unsigned how = fuzz_below(&w.in, 8);
    if (how == 1)
        write_some(s, data, n, 0); /* from memory that is the loop's */
    if (how == 2 && may_start()) {
        size_t fed = fuzz_byte(&w.in) % (n + 1);
        start_over(s, (const uint8_t *)data + n - fed, fed);
    }
    act(s);
}

static int ended(bk_stream *s) {
    enter(s);
    fuzz_say("ended()");
    FUZZ_CHECK(!w.ended && w.opened && !w.upgrading);
    /* All that came is delivered before the end is. */
    FUZZ_CHECK(fuzz_fifo_left(&w.up[w.top]) == 0);
    w.ended = true;
    act(s);
    return w.half_open;
}

static void blocked(bk_stream *s) {
    enter(s);
    act(s);
}

static void writable(bk_stream *s) {
    enter(s);
    act(s);
}

/* Whether what the protocol said has gone, all the way. */
static bool all_said(void) {
    for (int level = 0; level <= w.top; level++)
        if (w.down[level].taken < w.must[level])
            return false;
    return true;
}

static void closed(bk_stream *s, int why) {
    enter(s);
    fuzz_say("closed(%d)", why);
    FUZZ_CHECK(why <= 0);
    FUZZ_CHECK(why < 0 || w.rude || all_said());
    w.closed = true;
    w.why = why;
    w.s = NULL;
}

static const bk_protocol protocols[] = {
    {
        .size = sizeof(bk_protocol),
        .name = "fuzz",
        .opened = opened,
        .received = received,
        .ended = ended,
        .blocked = blocked,
        .writable = writable,
        .closed = closed,
        .upgraded = upgraded,
    },
    {
        .size = sizeof(bk_protocol),
        .name = "fuzz",
        .opened = opened,
        .room = give_room,
        .received = received,
        .ended = ended,
        .blocked = blocked,
        .writable = writable,
        .closed = closed,
        .upgraded = upgraded,
    },
};

/* ---- The notifier, and the system ---- */

static int notifier_open(bk_notifier *n) {
    (void)n;
    return 0;
}

static void notifier_close(bk_notifier *n) {
    (void)n;
    FUZZ_CHECK(w.armed[INNER_FD] == 0);
}

static int notifier_arm(bk_notifier *n, int fd, unsigned events, uint64_t tag) {
    (void)n;
    FUZZ_CHECK(fd == INNER_FD || fd == WAKE_FD);
    FUZZ_CHECK(fd == WAKE_FD || w.inner.there);
    w.armed[fd] = events;
    w.tags[fd] = tag;
    return 0;
}

static int notifier_disarm(bk_notifier *n, int fd) {
    (void)n;
    FUZZ_CHECK(fd == INNER_FD || fd == WAKE_FD);
    w.armed[fd] = 0;
    return 0;
}

/* Level-triggered, and true to what the inner transport would answer. */
static int notifier_wait(bk_notifier *n, int64_t timeout_ns, bk_ready *ret_ready, int room) {
    unsigned events = 0;
    (void)n, (void)timeout_ns, (void)room;
    if (inner_readable())
        events |= w.armed[INNER_FD] & BK_READ;
    if (inner_writable())
        events |= w.armed[INNER_FD] & BK_WRITE;
    bool broken = (w.inner.eof || w.inner.read_error < 0) && w.inner.write_error < 0;
    if (w.armed[INNER_FD] != 0 && broken)
        events |= BK_HANGUP;
    w.told = events != 0;
    ret_ready[0] = (bk_ready){w.tags[INNER_FD], events};
    return w.told;
}

static const bk_notifier_ops notifier_ops = {
    .size = sizeof(bk_notifier_ops),
    .name = "fuzz",
    .traits = BK_ANY_FD,
    .open = notifier_open,
    .close = notifier_close,
    .arm = notifier_arm,
    .disarm = notifier_disarm,
    .wait = notifier_wait,
};

static int64_t os_clock(bk_os *os) {
    (void)os;
    return w.now;
}

static int os_wake_open(bk_os *os, int ret_fds[2]) {
    (void)os;
    ret_fds[0] = ret_fds[1] = WAKE_FD;
    return 0;
}

static int os_close(bk_os *os, int fd) {
    (void)os;
    FUZZ_CHECK(fd == WAKE_FD || fd == FILE_FD);
    return 0;
}

static bool file_read;

static int os_open(bk_os *os, const char *path, int flags, unsigned mode) {
    (void)os, (void)path, (void)flags, (void)mode;
    file_read = false;
    return FILE_FD;
}

/* The same certificate in every file. */
static ssize_t os_read(bk_os *os, int fd, void *room, size_t n) {
    (void)os;
    FUZZ_CHECK(fd == FILE_FD && n > 4);
    if (file_read)
        return 0;
    file_read = true;
    memcpy(room, "PEM", 3);
    return 3;
}

static void log_nothing(void *arg, int code, const char *text) {
    (void)arg, (void)code, (void)text;
}

static void os_make(void) {
    fuzz_os_open(&w.os);
    w.os.os.clock = os_clock;
    w.os.os.wake_open = os_wake_open;
    w.os.os.close = os_close;
    w.os.os.open = os_open;
    w.os.os.read = os_read;
}

/* ---- A run ---- */

/* A hello, whole, that asks for site.test: what a server that chooses by name looks for. */
static void make_hello(void) {
    static const uint8_t head[] = {22, 3, 1, 0, 65, 1, 0, 0, 61, 3, 3};
    static const uint8_t tail[] = {0,  0, 2, 0x13, 1,   1,   0,   0,   18,  0,   0,   0,   14, 0,
                                   12, 0, 0, 9,    's', 'i', 't', 'e', '.', 't', 'e', 's', 't'};
    memcpy(w.hello, head, sizeof head);
    memcpy(w.hello + sizeof head + 32, tail, sizeof tail);
    w.hello_bytes = sizeof head + 32 + sizeof tail;
}

/* What the peer, the network and time do. */
static void happen(unsigned what) {
    static const int64_t times[] = {BK_MILLISECOND, BK_SECOND, 100 * BK_SECOND, 1000 * BK_SECOND};
    moved();
    w.inner.woken = true;
    fuzz_say("world: %u", what);
    switch (what) {
    case 1:
    case 2:
    case 3:
        if (!w.inner.eof && w.up[0].put + w.inner.avail < MOST_BYTES)
            w.inner.avail += fuzz_size(&w.in);
        break;
    case 4:
        w.inner.capacity = fuzz_size(&w.in);
        break;
    case 5:
        w.inner.capacity = SIZE_MAX / 2;
        break;
    case 6:
        w.inner.eof = true;
        break;
    case 7:
        w.inner.read_error = -ECONNRESET;
        w.inner.write_error = -EPIPE;
        break;
    case 8:
        w.inner.write_error = -EPIPE;
        break;
    case 9:
        w.now += times[fuzz_below(&w.in, 4)];
        break;
    case 10:
        if (w.hello_count > 0)
            answer(w.hellos[--w.hello_count], fuzz_byte(&w.in));
        break;
    case 11:
    case 12:
        w.inner.woken = false;
        act(w.s);
        break;
    default:
        break;
    }
}

/* Returns whether the loop had something to do, and nothing was done. */
static bool turn(void) {
    uint64_t before = w.moves, taken = w.in.taken;
    bool woken = w.inner.woken;
    if (woken)
        inner_wake();
    bool due = bk_loop_deadline(w.loop) == 0;
    w.calls = 0;
    w.told = 0;
    FUZZ_CHECK(bk_loop_turn(w.loop, 0) == 0);
    return (due || w.told > 0) && !woken && w.moves == before && w.in.taken == taken;
}

/* Until nothing is to be done any more. */
static void settle(void) {
    int idle = 0;
    for (int turns = 0; turns < 100000; turns++) {
        bool woken = w.inner.woken;
        idle = turn() ? idle + 1 : 0;
        FUZZ_CHECK(idle < IDLE_TURNS); /* else it spins */
        if (!woken && !w.inner.woken && w.told == 0 && bk_loop_deadline(w.loop) != 0)
            return;
    }
    FUZZ_CHECK(!"it comes to rest");
}

static void answer_all(void) {
    while (w.hello_count > 0)
        answer(w.hellos[--w.hello_count], 0);
}

/* The input is over: everybody is willing now, so it must come to an end by itself. */
static void finish(unsigned how) {
    fuzz_say("the input is over");
    w.in.left = 0;
    w.os.fail_in = 0;
    answer_all();
    w.inner.capacity = SIZE_MAX / 2;
    w.inner.woken = true;
    settle();
    if (how & 1 || w.closed)
        return; /* bk_loop_free() ends it */
    bk_stream_resume(w.s);
    if (how & 2 && !w.inner.eof)
        w.inner.avail += 1000;
    w.inner.woken = true;
    settle();
    answer_all();
    w.inner.eof = true;
    w.inner.woken = true;
    settle();
    if (!w.closed)
        bk_stream_close(w.s);
    settle();
    w.now += 10000 * BK_SECOND; /* linger_ns */
    settle();
    FUZZ_CHECK(w.rude || w.closed);
}

static bk_transport *make_transport(unsigned how) {
    static const bk_tls_manners manners = {.handshake_ns = 60 * BK_SECOND, .linger_ns = BK_SECOND};
    bk_transport *t = &w.inner.base;
    if (how % 3 == 0)
        return t;
    w.top = 1;
    if (how % 3 == 1) {
        FUZZ_CHECK(bk_tls_transport_over(w.loop, t, engine_make(1), &manners, &t) == 0);
        return t;
    }
    bk_tls_context *context = make_context(fuzz_byte(&w.in));
    FUZZ_CHECK(bk_tls_transport(w.loop, t, context, "localhost", &t) == 0);
    bk_tls_context_unref(context);
    return t;
}

static void run(void) {
    unsigned how = fuzz_byte(&w.in), ending = fuzz_byte(&w.in);
    w.rude = how >= 0xf0;
    w.half_open = ending & 4;
    w.with_room = ending & 8;
    inner_make(fuzz_byte(&w.in));
    if (ending & 16)
        make_hello();
    w.context = make_context(ending & 32 ? 1 : 3);
    bk_transport *t = make_transport(how);
    FUZZ_CHECK(bk_stream_new(w.loop, t, &protocols[w.with_room], NULL, &w.s) == 0);
    for (int idle = 0; w.in.left > 0 && !w.closed;) {
        unsigned what = fuzz_below(&w.in, 16);
        if (what != 0)
            happen(what);
        idle = turn() && what == 0 ? idle + 1 : 0;
        FUZZ_CHECK(w.rude || idle < IDLE_TURNS);
    }
    finish(ending);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    for (size_t i = 0; i < PATTERN_PERIOD; i++)
        pattern[i] = (uint8_t)(i * 167 + (i >> 8) * 13);
    for (size_t i = PATTERN_PERIOD; i < sizeof pattern; i++)
        pattern[i] = pattern[i - PATTERN_PERIOD];
    for (size_t i = 0; i < sizeof written_bytes; i++)
        written_bytes[i] = (uint8_t)(i * 31 + (i >> 8) * 7);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    memset(&w, 0, sizeof w);
    w.in = (fuzz_input){data, n, 0};
    w.now = BK_SECOND;
    os_make();
    bk_loop_options options = {
        .size = sizeof options, .notifier_ops = &notifier_ops, .os = &w.os.os, .log = log_nothing};
    FUZZ_CHECK(bk_loop_new(&options, &w.loop) == 0);
    FUZZ_CHECK(bk_tls_engine_add(w.loop, &maker) == 0);
    run();
    w.calls = 0;
    FUZZ_CHECK(bk_loop_free(w.loop) == 0);
    answer_all();
    bk_tls_context_unref(w.context);
    FUZZ_CHECK(w.closed && !w.inner.there && w.releases_due == 0);
    for (int i = 0; i < LEVELS; i++) {
        FUZZ_CHECK(w.engines[i] == NULL);
        fuzz_fifo_free(&w.up[i]);
        fuzz_fifo_free(&w.down[i]);
    }
    FUZZ_CHECK(w.os.blocks == 0);
    return 0;
}
