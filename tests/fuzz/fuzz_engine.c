/*
 * fuzz_engine.c: the engines over real libraries, those that are here, without transports.
 *
 * In the first mode the input is what an engine is given as ciphertext, by a peer who knows no key:
 * nothing may come of it but an end. In the second an engine of each side shakes hands with the
 * other, in memory, and the input says what they send and how the wires between them cut, damage,
 * drop, repeat, exchange and make up bytes. What comes out is always what the peer sealed, in its
 * order and from its beginning, and nothing before the handshake is over; and where the wires only
 * cut, all of it.
 *
 * The libraries' chance is not ours to rule: an input does not always do the same.
 * BECKET_TEST_CERTIFICATES is a folder that tests/certificates.sh has filled.
 */
#include "core/tls/tls.h"
#include "tests/fuzz/fuzz.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

enum {
    CLIENT,
    SERVER,
    ENGINES = 8,
    STEPS = 10000,      /* of one engine for what came at once */
    SMALL_STEPS = 5000, /* … in room as small as it may be: a record is more than 10000 bytes */
    RECORD_HEAD = 5,
    RECORD_MOST = 16384 + 2048,
};

/* ---- Contexts, which all runs share ---- */

enum { PLAIN, ONLY_1_2, ONLY_1_3, WITH_ALL, NO_TICKETS, VARIANTS };

static fuzz_os os;
static bk_loop *loop;
static int engine_count;
static const bk_tls_engine *engines[ENGINES];
static bk_tls_context *contexts[ENGINES][VARIANTS][2]; /* NULL: the engine has no such version */

static const char *path(const char *folder, const char *name) {
    static char rooms[4][400];
    static int turn;
    char *room = rooms[turn++ % 4];
    (void)snprintf(room, sizeof rooms[0], "%s/%s", folder, name);
    return room;
}

static bk_tls_context *make_context(const char *folder, int engine, int variant, int side) {
    static const char *const names[2][2] = {{"client.crt", "client.key"},
                                            {"server.crt", "server.key"}};
    bk_tls_context *context = NULL;
    bk_error error = {0, 0, ""};
    bool certified = side == SERVER || variant == WITH_ALL;
    bk_tls_config config = {
        .size = sizeof config,
        .engine = engines[engine]->name,
        .server = side == SERVER,
        .certificate = certified ? path(folder, names[side][0]) : NULL,
        .key = certified ? path(folder, names[side][1]) : NULL,
        .ca = path(folder, "ca.crt"),
        .verify = variant == WITH_ALL ? BK_TLS_VERIFY_REQUIRED : BK_TLS_VERIFY_DEFAULT,
        .alpn = variant == WITH_ALL ? "h2,http/1.1" : NULL,
        .minimum = variant == ONLY_1_3 ? BK_TLS_1_3 : 0,
        .maximum = variant == ONLY_1_2 ? BK_TLS_1_2 : 0,
        .no_tickets = variant == NO_TICKETS,
    };
    int code = bk_tls_context_new(loop, &config, &error, &context);
    if (code == 0 || variant == ONLY_1_3)
        return context;
    (void)fprintf(stderr, "%s: %s\n", config.engine, error.text);
    exit(1);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    const char *folder = getenv("BECKET_TEST_CERTIFICATES");
    bk_error error;
    (void)argc, (void)argv;
    if (folder == NULL) {
        (void)fputs("BECKET_TEST_CERTIFICATES is not set\n", stderr);
        exit(1);
    }
    fuzz_os_open(&os);
    bk_loop_options options = {.size = sizeof options, .os = &os.os};
    FUZZ_CHECK(bk_loop_new(&options, &loop) == 0);
    for (const bk_tls_engine *const *engine = bk_tls_engines(); *engine != NULL; engine++) {
        if (engine_count == ENGINES || (*engine)->open(&os.os, &error) < 0)
            continue;
        engines[engine_count++] = *engine;
        for (int i = 0; i < 2 * VARIANTS; i++)
            contexts[engine_count - 1][i / 2][i % 2] =
                make_context(folder, engine_count - 1, i / 2, i % 2);
        (void)fprintf(stderr, "%s\n", (*engine)->version());
    }
    if (engine_count == 0) {
        (void)fputs("No TLS engine is here\n", stderr);
        exit(1);
    }
    return 0;
}

static bk_tls_context *choose(unsigned engine, unsigned variant, int side) {
    bk_tls_context *context = contexts[engine % (unsigned)engine_count][variant % VARIANTS][side];
    return context != NULL ? context : contexts[engine % (unsigned)engine_count][PLAIN][side];
}

/* What the contexts keep for the next connection, which is no leak. */
static long sessions(void) {
    long count = 0;
    for (int i = 0; i < engine_count * VARIANTS; i++) {
        const bk_tls_context *context = contexts[i / VARIANTS][i % VARIANTS][CLIENT];
        const bk_tls_session *s = context != NULL ? context->sessions : NULL;
        for (; s != NULL; s = s->next)
            count++;
    }
    return count;
}

/* ---- One side ---- */

typedef struct peer {
    int side;
    bk_tls_context *context;
    bk_tls *tls;
    bk_tls_out out;
    bk_error error;
    fuzz_fifo wire;   /* sent, and on its way to the other */
    fuzz_fifo in;     /* come, and not yet taken */
    fuzz_fifo said;   /* sealed, and not yet come out at the other */
    unsigned rekeyed; /* how often */
    bool opened, ended, heard_end, failed;
    struct peer *other;
} peer;

/* Where the wires do no more than cut; else whatever comes of it. */
static bool intact;

static void open_peer(peer *x, int side, bk_tls_context *context, const char *name,
                      bk_span session) {
    memset(x, 0, sizeof *x);
    x->side = side;
    x->context = context;
    x->out = (bk_tls_out){.os = &os.os, .context = context};
    x->out.name = side == CLIENT ? name : NULL;
    int code = context->engine->connection_new(context->state, x->out.name, session, &x->tls);
    FUZZ_CHECK(code == 0);
}

/* All that an engine sends is whole records. */
static void check_records(const peer *x, const uint8_t *at, size_t n) {
    while (n > 0) {
        FUZZ_CHECK(n >= RECORD_HEAD);
        size_t size = (size_t)at[3] << 8 | at[4];
        FUZZ_CHECK(at[0] >= 20 && at[0] <= 23);
        /* mbed TLS refuses a version that it does not know in a record of that version. */
        FUZZ_CHECK(at[1] == 3 || (at[0] == 21 && !x->opened));
        FUZZ_CHECK(size <= RECORD_MOST && size <= n - RECORD_HEAD);
        at += RECORD_HEAD + size;
        n -= RECORD_HEAD + size;
    }
}

static void take_out(peer *x) {
    FUZZ_CHECK(x->out.from == 0);
    if (x->out.used > 0)
        check_records(x, (const uint8_t *)x->out.bytes, x->out.used);
    fuzz_fifo_put(&x->wire, x->out.bytes, x->out.used);
    x->out.used = 0;
}

static int check(peer *x, int code) {
    fuzz_say("%s of %s: %d %s", x->side == CLIENT ? "client" : "server", x->tls->ops->name, code,
             code < 0 ? x->error.text : "");
    take_out(x);
    if (code >= 0 || code == -ENOTSUP)
        return code;
    FUZZ_CHECK(!intact);
    FUZZ_CHECK(x->error.code == code && x->error.text[0] != '\0');
    x->failed = true;
    return code;
}

/* In memory of just that size, so that a byte too far is found out. */
static void *copy(const void *data, size_t n) {
    void *p = malloc(n > 0 ? n : 1);
    FUZZ_CHECK(p != NULL);
    if (n > 0)
        memcpy(p, data, n);
    return p;
}

/* Once. Returns whether it is worth another call. */
static bool step_once(peer *x, size_t room_size) {
    const size_t n = fuzz_fifo_left(&x->in);
    uint8_t *bytes = copy(fuzz_fifo_first(&x->in), n), *plain = copy("", 0);
    plain = realloc(plain, room_size > 0 ? room_size : 1);
    bk_span in = {n > 0 ? bytes : NULL, n};
    bk_room room = {plain, room_size};
    x->out.error = &x->error;
    size_t out_before = x->out.used;
    bool was_open = x->opened, had_ended = x->heard_end;
    int state = x->tls->ops->step(x->tls, &in, &room, &x->out);
    x->out.error = NULL;
    size_t taken = n - in.size, got = room_size - room.size;
    bool sent = x->out.used != out_before;
    FUZZ_CHECK(in.size <= n && room.size <= room_size);
    FUZZ_CHECK(n == 0 || in.base == bytes + taken);
    FUZZ_CHECK(room.base == plain + got);
    if (state >= 0) {
        FUZZ_CHECK(state < 8 && !(state & BK_TLS_OPENING && state != BK_TLS_OPENING));
        x->opened = !(state & BK_TLS_OPENING);
        x->heard_end = state & BK_TLS_ENDED;
    }
    FUZZ_CHECK(x->opened || !was_open);
    FUZZ_CHECK(got == 0 || x->opened || state < 0); /* it may open, give, and then fail */
    FUZZ_CHECK(x->other != NULL || !x->opened);     /* by one who knows no key */
    FUZZ_CHECK(!x->heard_end || x->other->ended);
    if (got > 0)
        fuzz_fifo_take(&x->other->said, plain, got);
    fuzz_fifo_take(&x->in, bytes, taken);
    free(bytes);
    free(plain);
    bool moved = taken > 0 || got > 0 || sent || was_open != x->opened || had_ended != x->heard_end;
    if (check(x, state) < 0 || x->heard_end)
        return false;
    if (!moved && room_size > 0)
        FUZZ_CHECK(fuzz_fifo_left(&x->in) == 0 && !(state & BK_TLS_PENDING));
    return moved && (fuzz_fifo_left(&x->in) > 0 || state & BK_TLS_PENDING);
}

static void step(peer *x, size_t room_size) {
    int steps = 0;
    if (x->failed || x->heard_end)
        return;
    while (step_once(x, steps < SMALL_STEPS ? room_size : RECORD_MOST))
        FUZZ_CHECK(++steps < STEPS);
}

static void say(peer *x, const void *data, size_t n) {
    if (!x->opened || x->failed || x->ended || n == 0)
        return;
    void *plain = copy(data, n);
    x->out.error = &x->error;
    fuzz_fifo_put(&x->said, plain, n);
    int code = x->tls->ops->seal(x->tls, (bk_span){plain, n}, &x->out);
    x->out.error = NULL;
    free(plain);
    FUZZ_CHECK(x->out.used > n || code < 0);
    (void)check(x, code);
}

static void end(peer *x) {
    if (!x->opened || x->failed || x->ended)
        return;
    x->ended = true;
    x->out.error = &x->error;
    int code = x->tls->ops->end(x->tls, &x->out);
    x->out.error = NULL;
    (void)check(x, code);
}

static void rekey(peer *x) {
    if (!x->opened || x->failed || x->ended || !BK_HAS(x->tls->ops, rekey))
        return;
    /* GnuTLS ends connections on which both ask for other keys at once, or one does so often. */
    x->rekeyed++;
    if (x->other->rekeyed > 0 || x->rekeyed > 4)
        intact = false;
    x->out.error = &x->error;
    int code = x->tls->ops->rekey(x->tls, &x->out);
    x->out.error = NULL;
    (void)check(x, code);
}

static void ask(peer *x) {
    for (int what = BK_QUERY_TLS; what <= BK_QUERY_TLS_WORDS; what++) {
        char *room = malloc(8192);
        size_t n = 8192, none = 0;
        FUZZ_CHECK(room != NULL);
        int code = x->tls->ops->query(x->tls, what, room, &n);
        FUZZ_CHECK(code >= 0 ? n <= 8192 : n == 8192);
        int again = x->tls->ops->query(x->tls, what, room, &none);
        FUZZ_CHECK(code < 0 || n == 0 || again == -ENOSPC);
        free(room);
    }
}

static void close_peer(peer *x) {
    ask(x);
    x->tls->ops->close(x->tls);
    bk_dealloc(&os.os, x->out.bytes);
    fuzz_fifo_free(&x->wire);
    fuzz_fifo_free(&x->in);
    fuzz_fifo_free(&x->said);
}

/* ---- By one who knows no key ---- */

static size_t room_size(fuzz_input *in) {
    static const size_t sizes[] = {0, 20000, 1, 16, 1000, 16384};
    return sizes[fuzz_below(in, 6)];
}

static void alone(fuzz_input *in) {
    unsigned engine = fuzz_byte(in), variant = fuzz_byte(in), how = fuzz_byte(in);
    const int side = how & 1;
    size_t piece = how & 2 ? 1 + fuzz_byte(in) : in->left, room = room_size(in);
    peer x;
    intact = false;
    open_peer(&x, side, choose(engine, variant, side), "localhost", (bk_span){NULL, 0});
    step(&x, room);
    while (in->left > 0 && !x.failed) {
        size_t n = piece < in->left ? piece : in->left;
        fuzz_fifo_put(&x.in, in->at, n);
        in->at += n;
        in->left -= n;
        step(&x, room);
    }
    close_peer(&x);
}

/* ---- The two of them ---- */

static void deliver(peer *x, size_t n, size_t room) {
    size_t left = fuzz_fifo_left(&x->wire);
    n = n < left ? n : left;
    if (n == 0 || x->other->failed || x->other->heard_end)
        return;
    fuzz_say("%zu of %zu to the %s", n, left, x->side == CLIENT ? "server" : "client");
    fuzz_fifo_put(&x->other->in, fuzz_fifo_first(&x->wire), n);
    x->wire.from += n;
    x->wire.taken += n;
    step(x->other, room);
}

/* The first record on a wire, with its head; 0: it is not there as a whole. */
static size_t first_record(const peer *x, size_t from) {
    size_t left = fuzz_fifo_left(&x->wire);
    if (left < from + RECORD_HEAD)
        return 0;
    const uint8_t *at = fuzz_fifo_first(&x->wire) + from;
    size_t size = RECORD_HEAD + ((size_t)at[3] << 8 | at[4]);
    return size <= left - from ? size : 0;
}

static void insert(peer *x, const uint8_t *data, size_t n) {
    size_t left = fuzz_fifo_left(&x->wire);
    uint8_t *rest = copy(fuzz_fifo_first(&x->wire), left);
    x->wire.from = x->wire.used = 0;
    fuzz_fifo_put(&x->wire, data, n);
    fuzz_fifo_put(&x->wire, rest, left);
    free(rest);
}

/* Exchange the first two records, or repeat the first. */
static void shuffle(peer *x, bool repeat) {
    size_t n = first_record(x, 0), m = n > 0 && !repeat ? first_record(x, n) : n;
    if (n == 0 || m == 0)
        return;
    uint8_t *second = copy(fuzz_fifo_first(&x->wire) + (repeat ? 0 : n), m);
    if (!repeat)
        memmove(fuzz_fifo_first(&x->wire) + m, fuzz_fifo_first(&x->wire), n);
    if (!repeat)
        memcpy(fuzz_fifo_first(&x->wire), second, m);
    else
        insert(x, second, m);
    intact = false;
    free(second);
}

static void damage(peer *x, fuzz_input *in, unsigned how) {
    static const uint8_t alert[] = {21, 3, 3, 0, 2, 1, 0};
    uint8_t made[64];
    size_t left = fuzz_fifo_left(&x->wire), n = 0, at = fuzz_byte(in);
    if (left == 0 && how < 3)
        return;
    at = at < 200 ? at % (left > 0 ? left : 1) : (at - 199) * (left / 60) % (left > 0 ? left : 1);
    intact = false;
    switch (how) {
    case 0:
        fuzz_fifo_first(&x->wire)[at] ^= (uint8_t)(1 + fuzz_below(in, 255));
        break;
    case 1: /* one byte of a head, or just behind it */
        fuzz_fifo_first(&x->wire)[at % (left < 12 ? left : 12)] = (uint8_t)fuzz_byte(in);
        break;
    case 2: /* what lies on the wire is lost */
        n = 1 + at < left ? 1 + at : left;
        if (fuzz_byte(in) & 1 && first_record(x, 0) > 0)
            n = first_record(x, 0);
        x->wire.from += n;
        break;
    case 3:
        for (; n < sizeof made && n < at % sizeof made; n++)
            made[n] = (uint8_t)fuzz_byte(in);
        insert(x, made, n);
        break;
    case 4:
        memcpy(made, alert, sizeof alert);
        made[5] = (uint8_t)fuzz_byte(in);
        made[6] = (uint8_t)fuzz_byte(in);
        insert(x, made, sizeof alert);
        break;
    default:
        shuffle(x, how == 5);
    }
}

static void act(peer *x, fuzz_input *in) {
    static uint8_t plain[150000];
    unsigned what = fuzz_byte(in);
    size_t n;
    switch (what & 15) {
    case 0:
    case 1:
        deliver(x, SIZE_MAX, 20000);
        break;
    case 2:
    case 3:
        n = fuzz_size(in);
        deliver(x, n, room_size(in));
        break;
    case 4: /* byte by byte */
        n = room_size(in);
        for (int i = 0; i < 300; i++)
            deliver(x, 1, n);
        break;
    case 5:
    case 6:
        n = fuzz_size(in);
        for (size_t i = 0; i < n; i++)
            plain[i] = (uint8_t)(x->said.put + i * 7);
        say(x, plain, n);
        break;
    case 7:
        rekey(x);
        break;
    case 8:
        end(x);
        break;
    case 9:
        ask(x);
        break;
    default:
        if (what & 0x80)
            deliver(x, fuzz_byte(in), 20000);
        else
            damage(x, in, (what & 15) - 9);
    }
}

static bool at_rest(const peer *x) {
    const peer *y = x->other;
    return y->failed || y->heard_end || fuzz_fifo_left(&x->wire) == 0;
}

static void settle(peer x[2]) {
    for (int i = 0; !at_rest(&x[0]) || !at_rest(&x[1]); i++) {
        FUZZ_CHECK(i < 1000);
        deliver(&x[CLIENT], SIZE_MAX, 20000);
        deliver(&x[SERVER], SIZE_MAX, 20000);
    }
}

/* What is on the wires arrives; where nobody damaged it, that is all there ever was. */
static void finish(peer x[2]) {
    for (int i = 0; i < 2; i++)
        step(&x[i], 20000); /* what it found no room for */
    settle(x);
    for (int i = 0; i < 2; i++)
        FUZZ_CHECK(!intact || (x[i].opened && fuzz_fifo_left(&x[i].said) == 0));
    say(&x[CLIENT], "the last words", 14);
    settle(x);
    for (int i = 0; i < 2; i++)
        end(&x[i]);
    settle(x);
    for (int i = 0; i < 2; i++)
        FUZZ_CHECK(!intact || (x[i].heard_end && fuzz_fifo_left(&x[i].said) == 0));
}

static bool has_1_3(unsigned engine) {
    return contexts[engine % (unsigned)engine_count][ONLY_1_3][CLIENT] != NULL;
}

static void together(fuzz_input *in) {
    static const char *const names[] = {"localhost", NULL, "127.0.0.1", "site.test", "::1"};
    unsigned server = fuzz_byte(in), client = fuzz_byte(in), variant = fuzz_byte(in);
    unsigned how = fuzz_byte(in);
    const char *name = names[how % 5];
    bk_tls_context *c[2] = {choose(client, variant, CLIENT), choose(server, variant, SERVER)};
    bk_span session = {NULL, 0};
    peer x[2];
    intact = true;
    if (variant % VARIANTS == ONLY_1_3) /* then it may be that they have no version in common */
        intact = has_1_3(client) == has_1_3(server);
    if (how & 0x80 && name != NULL) /* of an earlier run */
        session = bk_tls_context_session(c[CLIENT], name);
    if (how & 0x40) { /* made up */
        size_t n = in->left < 100 ? in->left : 100;
        session = (bk_span){in->at, n};
        in->at += n;
        in->left -= n;
        intact = false;
    }
    open_peer(&x[CLIENT], CLIENT, c[CLIENT], name, session);
    open_peer(&x[SERVER], SERVER, c[SERVER], NULL, (bk_span){NULL, 0});
    x[CLIENT].other = &x[SERVER];
    x[SERVER].other = &x[CLIENT];
    step(&x[CLIENT], 0);
    if (how & 0x20) /* straight to where it is interesting */
        settle(x);
    for (unsigned i = 0; in->left > 0 && i < 400; i++)
        act(&x[fuzz_byte(in) & 1], in);
    finish(x);
    for (int i = 0; i < 2; i++)
        close_peer(&x[i]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    fuzz_input in = {data, n, 0};
    long blocks = os.blocks - sessions();
    if (fuzz_byte(&in) & 1)
        together(&in);
    else
        alone(&in);
    FUZZ_CHECK(os.blocks - sessions() == blocks);
    return 0;
}
