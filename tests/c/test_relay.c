/*
 * test_relay.c: two streams joined by bk_stream_relay(), over transports of every kind: both
 * directions, a side that is slow, and every way in which either can end; once more with each call
 * to the operating system failing in turn.
 */
#include "check.h"
#include "support.h"

#include "core/stream/stream.h"

#include <becket-tls.h>

#include <signal.h>

/* See test_tls.c. */
const char *__lsan_default_options(void);
const char *__lsan_default_options(void) {
    return "use_tls=0";
}

/* ---- Kinds of transports ---- */

static bk_tls_context *contexts[2]; /* client, server */

static int open_contexts(bk_loop *loop) {
    for (int server = 0; server < 2; server++) {
        bk_tls_config config = {.size = sizeof config,
                                .server = server,
                                .development = server,
                                .verify = BK_TLS_VERIFY_NONE};
        int code = bk_tls_context_new(loop, &config, NULL, &contexts[server]);
        if (code < 0)
            return code;
    }
    return 0;
}

static void close_contexts(void) {
    for (int server = 0; server < 2; server++) {
        bk_tls_context_unref(contexts[server]);
        contexts[server] = NULL;
    }
}

static int make_tls(bk_loop *loop, void *arg, bk_transport *ret_pair[2]) {
    const bk_conform_joint *inner = support_joint(arg);
    bk_transport *pair[2];
    int code = contexts[1] == NULL ? open_contexts(loop) : 0;
    if (code >= 0)
        code = inner->make(loop, inner->arg, pair);
    if (code < 0)
        return code;
    for (int i = 0; i < 2 && code >= 0; i++)
        code = bk_tls_transport(loop, pair[i], contexts[i], NULL, &pair[i]);
    for (int i = 0; i < 2; i++)
        if (code < 0)
            pair[i]->ops->close(pair[i]);
        else
            ret_pair[i] = pair[i];
    return code < 0 ? code : 0;
}

static char tls_memory_inside[] = "memory", tls_tcp_inside[] = "tcp";
static const bk_conform_joint tls_memory = {"tls over memory", 0, make_tls, tls_memory_inside},
                              tls_tcp = {"tls over tcp", 0, make_tls, tls_tcp_inside};

/* ---- Two ends, and the relay between them:  [0] - near(0) = near(1) - [1] ---- */

typedef struct end {
    bk_stream *stream; /* NULL: closed */
    size_t sent, got, wrong, goal;
    int ended, closed, why, blocked;
    bool stays; /* goes on after the other's end */
} end;

static bk_loop *loop;
static end ends[2];
static bk_stream *near[2];
static size_t most_queued;
static bool walking;

static unsigned char content(const end *from, size_t at) {
    return (unsigned char)((from == ends ? 7 : 11) * at + (at >> 8));
}

/* Send up to the goal, as far as the stream does not call a halt. */
static void pump(end *e) {
    unsigned char bytes[5000];
    while (e->stream != NULL && !e->blocked && e->sent < e->goal) {
        size_t n = e->goal - e->sent < sizeof bytes ? e->goal - e->sent : sizeof bytes;
        for (size_t i = 0; i < n; i++)
            bytes[i] = content(e, e->sent + i);
        if (bk_stream_write(e->stream, bytes, n, BK_COPY, NULL) < 0)
            return;
        e->sent += n;
    }
}

static void end_received(bk_stream *s, const void *data, size_t n) {
    end *e = bk_stream_user(s);
    const unsigned char *p = data;
    for (size_t i = 0; i < n; i++)
        e->wrong += p[i] != content(e == ends ? ends + 1 : ends, e->got++);
}

static int end_ended(bk_stream *s) {
    end *e = bk_stream_user(s);
    e->ended++;
    return e->stays;
}

static void end_blocked(bk_stream *s) {
    ((end *)bk_stream_user(s))->blocked = 1;
}

static void end_writable(bk_stream *s) {
    end *e = bk_stream_user(s);
    e->blocked = 0;
    pump(e);
}

static void end_closed(bk_stream *s, int why) {
    end *e = bk_stream_user(s);
    e->stream = NULL;
    e->closed++;
    e->why = why;
}

static const bk_protocol ending = {.size = sizeof ending,
                                   .received = end_received,
                                   .ended = end_ended,
                                   .blocked = end_blocked,
                                   .writable = end_writable,
                                   .closed = end_closed};

static const bk_protocol idle = {.size = sizeof idle};

static int join(const bk_conform_joint *joints[2]) {
    for (int i = 0; i < 2; i++) {
        bk_transport *pair[2];
        int code = joints[i]->make(loop, joints[i]->arg, pair);
        if (code < 0)
            return code;
        code = bk_stream_new(loop, pair[0], &ending, &ends[i], &ends[i].stream);
        if (code < 0)
            pair[0]->ops->close(pair[0]);
        int other = bk_stream_new(loop, pair[1], &idle, NULL, &near[i]);
        if (other < 0)
            pair[1]->ops->close(pair[1]);
        if (code < 0 || other < 0)
            return code < 0 ? code : other;
    }
    return 0;
}

static int open_both(const bk_conform_joint *first, const bk_conform_joint *second) {
    bk_loop_options options = {.size = sizeof options, .os = faults_os(support_faults())};
    memset(ends, 0, sizeof ends);
    most_queued = 0;
    loop = NULL;
    int code = bk_loop_new(&options, &loop);
    return code < 0 ? code : join((const bk_conform_joint *[2]){first, second});
}

static void start(const bk_conform_joint *first, const bk_conform_joint *second) {
    CHECK_INT(open_both(first, second), 0);
    CHECK_INT(bk_stream_relay(near[0], near[1]), 0);
}

static void finish(void) {
    close_contexts();
    CHECK_INT(bk_loop_free(loop), 0);
    CHECK_INT(faults_leaks(support_faults(), NULL), 0);
    CHECK_INT(ends[0].wrong + ends[1].wrong, 0);
}

static int64_t now(void) {
    return bk_os_default()->clock(bk_os_default());
}

static void turn(void) {
    int code = bk_loop_turn(loop, BK_MILLISECOND);
    CHECK(code == 0 || walking);
    for (bk_stream *s = loop->streams; s != NULL; s = s->next)
        if (s->queued > most_queued)
            most_queued = s->queued;
}

#define UNTIL(so)                                                                                  \
    do {                                                                                           \
        int64_t end_ = now() + 20 * BK_SECOND;                                                     \
        for (int turns_ = 0; !(so) && (walking ? turns_ < 20 : now() < end_); turns_++)            \
            turn();                                                                                \
        CHECK(walking || (so));                                                                    \
    } while (0)

static void until_open(void) {
    UNTIL(near[0]->flags & near[1]->flags & ends[0].stream->flags & ends[1].stream->flags &
          BK_STREAM_OPENED);
}

static void both_closed(int why) {
    UNTIL(ends[0].closed && ends[1].closed && loop->streams == NULL);
    if (walking)
        return;
    CHECK_INT(ends[0].why, why);
    CHECK_INT(ends[1].why, why);
}

/* ---- Cases, each over any two kinds ---- */

enum { MUCH = 3 << 20, NARROW = 1 };

static const bk_conform_joint *kinds[] = {NULL, NULL, NULL, NULL, NULL, &tls_memory, &tls_tcp};

/* As much as there is room for, in both directions at once; then each end in its turn. */
static void both_ways(const bk_conform_joint *first, const bk_conform_joint *second) {
    start(first, second);
    bool narrow = first == kinds[NARROW] || second == kinds[NARROW]; /* ten bytes at a time */
    size_t much = narrow ? 20000 : MUCH;
    for (int i = 0; i < 2; i++) {
        ends[i].goal = much;
        ends[i].stays = true;
        pump(&ends[i]);
    }
    UNTIL(ends[0].got == much && ends[1].got == much);
    bk_stream_end(ends[0].stream);
    UNTIL(ends[1].ended);
    CHECK(ends[1].stream != NULL && ends[0].stream != NULL && ends[0].ended == 0);
    ends[1].goal += 1000; /* the other direction goes on */
    pump(&ends[1]);
    UNTIL(ends[0].got == much + 1000);
    bk_stream_close(ends[1].stream);
    UNTIL(ends[0].ended);
    bk_stream_close(ends[0].stream);
    both_closed(0);
    finish();
}

/* One that does not read holds the other back, and little waits in between. */
static void slow(const bk_conform_joint *first, const bk_conform_joint *second) {
    if (first == kinds[NARROW] || second == kinds[NARROW])
        return;
    start(first, second);
    until_open();
    bk_stream_pause(ends[1].stream);
    ends[0].goal = 64 << 20;
    pump(&ends[0]);
    for (int i = 0; i < 300; i++)
        turn();
    CHECK(ends[0].blocked);
    CHECK(ends[0].sent < 48 << 20); /* the kernel's own memory is in it */
    CHECK(most_queued <= BK_WATER_HIGH + BK_SCRATCH_BYTES + BK_TLS_SEAL_BYTES);
    ends[0].goal = ends[0].sent;
    size_t got = ends[1].got;
    bk_stream_resume(ends[1].stream);
    UNTIL(ends[1].got == ends[0].goal);
    CHECK(ends[1].got > got);
    bk_stream_close(ends[0].stream);
    both_closed(0);
    finish();
}

/* Whoever closes first: the other gets all, and is closed too. */
static void closes(const bk_conform_joint *first, const bk_conform_joint *second) {
    for (int i = 0; i < 2; i++) {
        start(first, second);
        until_open();
        ends[i].goal = 20000;
        pump(&ends[i]);
        bk_stream_close(ends[i].stream);
        both_closed(0);
        CHECK_INT(ends[!i].got, 20000);
        finish();
    }
}

/* A connection that broke is not carried on as one that ended: both are gone. */
static void breaks(const bk_conform_joint *first, const bk_conform_joint *second) {
    for (int i = 0; i < 2; i++) {
        start(first, second);
        until_open();
        ends[0].goal = ends[1].goal = 1000;
        pump(&ends[0]);
        pump(&ends[1]);
        UNTIL(ends[0].got == 1000 && ends[1].got == 1000);
        bk_stream_abort(near[i]);
        UNTIL(ends[0].closed && ends[1].closed && loop->streams == NULL);
        finish();
    }
}

static void over_all(void (*run)(const bk_conform_joint *, const bk_conform_joint *)) {
    static const char *const names[] = {"memory", "tight memory", "tcp", "tight tcp", "unix"};
    for (int i = 0; i < COUNT(names); i++)
        kinds[i] = support_joint(names[i]);
    for (int i = 0; i < COUNT(kinds); i++) {
        int before = check_failures;
        run(kinds[i], kinds[i]);
        run(kinds[i], kinds[(i + 2) % COUNT(kinds)]);
        if (check_failures > before)
            printf("# … over %s and %s\n", kinds[i]->name, kinds[(i + 2) % COUNT(kinds)]->name);
    }
}

static void relays_both_ways(void) {
    over_all(both_ways);
}

static void slow_side(void) {
    over_all(slow);
}

static void one_closes(void) {
    over_all(closes);
}

static void one_breaks(void) {
    over_all(breaks);
}

/* ---- Cases of their own ---- */

/* Where an end cannot be passed on, both are closed, after what was sent. */
static void no_half_close(void) {
    const bk_conform_joint *one_way = support_joint("one way"), *memory = support_joint("memory");
    start(memory, one_way);
    ends[0].stays = ends[1].stays = true;
    ends[0].goal = 5000;
    pump(&ends[0]);
    bk_stream_end(ends[0].stream);
    UNTIL(ends[1].ended);
    CHECK_INT(ends[1].got, 5000);
    UNTIL(ends[0].ended);
    bk_stream_close(ends[0].stream);
    bk_stream_close(ends[1].stream);
    both_closed(0);
    finish();
}

/* A reset of one side is the other's end, and nothing hangs on. */
static void reset(void) {
    const bk_conform_joint *tcp = support_joint("tcp");
    start(tcp, tcp);
    ends[0].goal = ends[1].goal = 1000;
    pump(&ends[0]);
    UNTIL(ends[1].got == 1000);
    bk_stream_pause(ends[1].stream);
    ends[0].goal = 2000;
    pump(&ends[0]);
    for (int i = 0; i < 5; i++)
        turn();
    bk_stream_abort(ends[1].stream); /* over unread bytes: a reset */
    UNTIL(ends[0].closed && ends[1].closed && loop->streams == NULL);
    finish();
}

/* What was queued before counts: the other side waits for it, and is let go again. */
static void queued_before(void) {
    static char much[4 << 20];
    const bk_conform_joint *tcp = support_joint("tight tcp");
    for (size_t i = 0; i < sizeof much; i++)
        much[i] = (char)content(&ends[0], i);
    CHECK_INT(open_both(tcp, tcp), 0);
    bk_stream_pause(ends[1].stream);
    CHECK_INT(bk_stream_write(near[1], much, sizeof much, BK_STATIC, NULL), 0);
    turn();
    CHECK(near[1]->flags & BK_STREAM_BLOCKED);
    CHECK_INT(bk_stream_relay(near[0], near[1]), 0);
    CHECK(near[0]->flags & BK_STREAM_PAUSED && !(near[1]->flags & BK_STREAM_PAUSED));
    ends[0].sent = sizeof much;
    ends[0].goal = sizeof much + 1000;
    pump(&ends[0]);
    bk_stream_resume(ends[1].stream);
    UNTIL(ends[1].got == sizeof much + 1000);
    bk_stream_close(ends[1].stream);
    both_closed(0);
    finish();
}

/* One that is still in its handshake makes the other wait, not fill up memory. */
static void not_yet_open(void) {
    const bk_conform_joint *memory = support_joint("memory");
    start(memory, &tls_tcp);
    CHECK(near[0]->flags & BK_STREAM_PAUSED);
    ends[0].goal = MUCH;
    pump(&ends[0]);
    UNTIL(ends[1].got == MUCH);
    CHECK(most_queued <= 2 * BK_WATER_HIGH + BK_SCRATCH_BYTES);
    bk_stream_close(ends[0].stream);
    both_closed(0);
    finish();
}

static int ended_and_stays(bk_stream *s) {
    *(int *)bk_stream_user(s) = 1;
    return 1;
}

/* An end that came before the two were joined is passed on; at once, or when the other opens. */
static void ended_before(void) {
    static const bk_protocol waiting = {.size = sizeof waiting, .ended = ended_and_stays};
    const bk_conform_joint *memory = support_joint("memory");
    const bk_conform_joint *others[] = {memory, &tls_memory};
    for (int i = 0; i < 2; i++) {
        int has_ended = 0;
        CHECK_INT(open_both(memory, others[i]), 0);
        bk_stream_set_protocol(near[0], &waiting);
        bk_stream_set_user(near[0], &has_ended);
        ends[0].stays = ends[1].stays = true;
        bk_stream_end(ends[0].stream);
        if (i == 1)
            bk_stream_pause(near[1]);
        while (!has_ended)
            turn();
        bk_stream_resume(near[1]);
        CHECK_INT(bk_stream_relay(near[0], near[1]), 0);
        UNTIL(ends[1].ended);
        ends[1].goal = 500;
        pump(&ends[1]);
        UNTIL(ends[0].got == 500);
        bk_stream_close(ends[1].stream);
        bk_stream_close(ends[0].stream);
        both_closed(0);
        finish();
    }
}

static void joining(bk_stream *s, const void *data, size_t n) {
    CHECK_INT(bk_stream_relay(near[0], near[1]), 0);
    bk_stream_write(s == near[0] ? near[1] : near[0], data, n, BK_COPY, NULL);
}

static void closing(bk_stream *s, const void *data, size_t n) {
    end_received(s, data, n);
    bk_stream_close(s);
    bk_stream_abort(near[0]);
}

/* Joined, and closed, from within callbacks of the very streams. */
static void within_callbacks(void) {
    static const bk_protocol join_first = {.size = sizeof join_first, .received = joining};
    static bk_protocol close_then;
    const bk_conform_joint *memory = support_joint("memory");
    close_then = ending;
    close_then.received = closing;
    CHECK_INT(open_both(memory, memory), 0);
    bk_stream_set_protocol(near[0], &join_first);
    bk_stream_set_protocol(ends[1].stream, &close_then);
    ends[0].goal = 100;
    pump(&ends[0]);
    UNTIL(ends[0].closed && ends[1].closed && loop->streams == NULL);
    CHECK_INT(ends[1].got, 100);
    finish();
}

static void wrong(void) {
    const bk_conform_joint *memory = support_joint("memory");
    bk_stream *lonely;
    bk_transport *pair[2];
    bk_loop *other;
    CHECK_INT(open_both(memory, memory), 0);
    CHECK_INT(bk_loop_new(NULL, &other), 0);
    CHECK_INT(bk_memory_transport(other, 0, pair), 0);
    CHECK_INT(bk_stream_new(other, pair[0], &idle, NULL, &lonely), 0);
    CHECK_INT(bk_stream_relay(NULL, near[0]), -EINVAL);
    CHECK_INT(bk_stream_relay(near[0], NULL), -EINVAL);
    CHECK_INT(bk_stream_relay(near[0], near[0]), -EINVAL);
    CHECK_INT(bk_stream_relay(near[0], lonely), -EINVAL);
    bk_stream_end(near[1]);
    CHECK_INT(bk_stream_relay(near[0], near[1]), -EPIPE);
    bk_stream_abort(near[1]);
    CHECK_INT(bk_stream_relay(near[1], near[0]), -EPIPE);
    CHECK(bk_stream_protocol(near[0]) == &idle);
    pair[1]->ops->close(pair[1]);
    CHECK_INT(bk_loop_free(other), 0);
    finish();
}

/* The loop goes, at any moment. */
static void loop_freed(void) {
    for (int n = 0; n < 6; n++) {
        start(support_joint("tcp"), n % 2 ? &tls_memory : support_joint("memory"));
        ends[0].goal = ends[1].goal = MUCH;
        pump(&ends[0]);
        pump(&ends[1]);
        for (int i = 0; i < n; i++)
            turn();
        if (n == 4)
            bk_stream_abort(near[0]);
        finish();
        CHECK(ends[0].closed == 1 && ends[1].closed == 1);
    }
}

/* ---- Once more, with each call failing in turn ---- */

static void carry(const bk_conform_joint *first, const bk_conform_joint *second) {
    if (open_both(first, second) == 0 && bk_stream_relay(near[0], near[1]) == 0) {
        ends[0].goal = ends[1].goal = 200000;
        pump(&ends[0]);
        pump(&ends[1]);
        UNTIL(ends[0].got == 200000 && ends[1].got == 200000);
        if (ends[0].stream != NULL)
            bk_stream_end(ends[0].stream);
        UNTIL(ends[0].closed && ends[1].closed);
    }
    finish();
}

static void walk(const bk_conform_joint *first, const bk_conform_joint *second, long most) {
    faults *f = support_faults();
    walking = true;
    for (int kind = FAULTS_NONE + 1; kind < FAULTS_KINDS; kind++) {
        bool done = false;
        for (long n = 1; !done && n <= most && check_failures < 5; n++) {
            support_guard(60, faults_kind_name((faults_kind)kind));
            int failures = check_failures;
            faults_arm(f, (faults_kind)kind, n);
            carry(first, second);
            done = faults_disarm(f) < n;
            if (check_failures > failures)
                printf("# … %s, %s, %s %ld: %s\n", first->name, second->name,
                       faults_kind_name((faults_kind)kind), n, faults_struck(f));
            faults_forget(f);
        }
    }
    support_guard(0, "");
    walking = false;
}

static void with_faults(void) {
    walk(support_joint("tcp"), support_joint("tight unix"), 300);
    walk(support_joint("memory"), &tls_tcp, 200);
}

int main(int argc, char **argv) {
    static const check_case cases[] = {
        CASE(relays_both_ways), CASE(slow_side),     CASE(one_closes),
        CASE(one_breaks),       CASE(no_half_close), CASE(reset),
        CASE(queued_before),    CASE(not_yet_open),  CASE(ended_before),
        CASE(within_callbacks), CASE(wrong),         CASE(loop_freed),
        CASE(with_faults),
    };
    signal(SIGPIPE, SIG_IGN);
    return check_main(argc, argv, cases, COUNT(cases));
}
