/*
 * notifier.c: the suite for a notifier by itself: what becket.h says of bk_notifier_ops, case by
 * case. Called by its author through bk_conform_notifier(), and by tests/c/test_notifier.c.
 */
#include "tests/conformance/case.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <unistd.h>

enum { RIG_FDS = 64, RIG_ROOM = 64 };

/* A tag has 64 bits, and a notifier keeps each. */
#define TAG(number) (UINT64_C(0xfedcba9800000000) + (number))

/* One notifier, the descriptors of a case, and what the last wait brought. */
typedef struct rig {
    bk_conform_case *c;
    bk_notifier n;
    bool open;
    int fds[RIG_FDS];
    int fd_count;
    bk_ready ready[RIG_ROOM];
    int count;
} rig;

static int rig_open(rig *r) {
    r->n = (bk_notifier){.ops = r->c->subject, .os = r->c->os};
    int code = r->n.ops->open(&r->n);
    r->open = code >= 0;
    return code;
}

static void rig_close(rig *r) {
    for (int i = 0; i < r->fd_count; i++) {
        if (r->open && r->fds[i] >= 0)
            (void)r->n.ops->disarm(&r->n, r->fds[i]);
        conform_close(r->c, &r->fds[i]);
    }
    if (r->open)
        r->n.ops->close(&r->n);
    r->open = false;
}

static int rig_keep(rig *r, const int fds[2]) {
    r->fds[r->fd_count++] = fds[0];
    r->fds[r->fd_count++] = fds[1];
    return 0;
}

/* Two descriptors that belong to the rig: [1] is written, [0] is read; the second kind both. */
static int rig_pipe(rig *r, int ret_fds[2]) {
    bk_os *os = r->c->scaffold;
    bool any = r->n.ops->traits & BK_ANY_FD;
    int code = any ? os->pipe(os, ret_fds) : os->socketpair(os, ret_fds);
    return code < 0 ? code : rig_keep(r, ret_fds);
}

static int rig_pair(rig *r, int ret_fds[2]) {
    int code = r->c->scaffold->socketpair(r->c->scaffold, ret_fds);
    return code < 0 ? code : rig_keep(r, ret_fds);
}

/* Close one before its time; it must be disarmed. */
static void rig_drop(rig *r, int fd) {
    for (int i = 0; i < r->fd_count; i++)
        if (r->fds[i] == fd)
            conform_close(r->c, &r->fds[i]);
}

static int arm(rig *r, int fd, unsigned events, uint64_t tag) {
    return r->n.ops->arm(&r->n, fd, events, tag);
}

static int disarm(rig *r, int fd) {
    return r->n.ops->disarm(&r->n, fd);
}

/* Wait on, if a signal comes in between: those of this suite, and injected ones. */
static int rig_wait(rig *r, int64_t timeout, int room) {
    int64_t until = conform_clock() + timeout;
    for (;;) {
        r->count = r->n.ops->wait(&r->n, timeout, r->ready, room);
        if (r->count != -EINTR)
            break;
        int64_t left = until - conform_clock();
        timeout = timeout <= 0 || left > 0 ? (timeout > 0 ? left : timeout) : 0;
    }
    MUST(r->c, r->count <= room);
    return r->count;
}

/* What a wait brought for a tag: 0 for nothing, and it must come once at most. */
static unsigned events_of(rig *r, uint64_t tag) {
    unsigned events = 0;
    for (int i = 0; i < r->count; i++) {
        if (r->ready[i].tag != tag)
            continue;
        MUST(r->c, events == 0);
        MUST(r->c, r->ready[i].events != 0);
        events = r->ready[i].events;
    }
    return events;
}

/* One wait brings nothing but this. `may` are the events that are allowed beside those. */
static void expect_only(rig *r, uint64_t tag, unsigned events, unsigned may) {
    if (FAILED(r->c, rig_wait(r, conform_patience(r->c), RIG_ROOM)))
        return;
    unsigned got = events_of(r, tag);
    EXPECT(r->c, r->count == 1);
    EXPECT(r->c, (got & events) == events);
    EXPECT(r->c, (got & ~(events | may)) == 0);
}

static void expect_nothing(rig *r) {
    if (!FAILED(r->c, rig_wait(r, 0, RIG_ROOM)))
        EXPECT(r->c, r->count == 0);
}

/* ---- The table ---- */

static void table(bk_conform_case *c) {
    const bk_notifier_ops *ops = c->subject;
    EXPECT(c, ops->size >= offsetof(bk_notifier_ops, fd));
    EXPECT(c, ops->name != NULL && *ops->name != '\0');
    EXPECT(c, ops->open != NULL && ops->close != NULL && ops->forked != NULL);
    EXPECT(c, ops->arm != NULL && ops->disarm != NULL && ops->wait != NULL);
    if (ops->traits & BK_POLLABLE)
        EXPECT(c, ops->size >= sizeof *ops && ops->fd != NULL);
}

static void nothing_armed(bk_conform_case *c) {
    rig r = {.c = c};
    TRY(c, rig_open(&r));
    expect_nothing(&r);
out:
    rig_close(&r);
}

/* Two at a time keep their states apart. */
static void two_notifiers(bk_conform_case *c) {
    rig a = {.c = c}, b = {.c = c};
    int p[2];
    TRY(c, rig_open(&a));
    TRY(c, rig_open(&b));
    TRY(c, rig_pipe(&a, p));
    TRY(c, arm(&a, p[0], BK_READ, TAG(1)));
    TRY(c, conform_put(c, p[1], "x"));
    expect_nothing(&b);
    expect_only(&a, TAG(1), BK_READ, 0);
out:
    rig_close(&b);
    rig_close(&a);
}

/* ---- Arming ---- */

static void readable(bk_conform_case *c) {
    rig r = {.c = c};
    int p[2];
    TRY(c, rig_open(&r));
    TRY(c, rig_pipe(&r, p));
    TRY(c, arm(&r, p[0], BK_READ, TAG(1)));
    expect_nothing(&r);
    TRY(c, conform_put(c, p[1], "x"));
    expect_only(&r, TAG(1), BK_READ, 0);
out:
    rig_close(&r);
}

static void level_triggered(bk_conform_case *c) {
    rig r = {.c = c};
    int p[2];
    TRY(c, rig_open(&r));
    TRY(c, rig_pipe(&r, p));
    TRY(c, conform_put(c, p[1], "xy")); /* before it is armed: that counts too */
    TRY(c, arm(&r, p[0], BK_READ, TAG(1)));
    for (int i = 0; i < 3; i++)
        expect_only(&r, TAG(1), BK_READ, 0);
    char one;
    EXPECT(c, c->scaffold->read(c->scaffold, p[0], &one, 1) == 1);
    expect_only(&r, TAG(1), BK_READ, 0); /* the other byte */
    TRY(c, conform_drain(c, p[0]));
    expect_nothing(&r);
    TRY(c, conform_put(c, p[1], "z"));
    expect_only(&r, TAG(1), BK_READ, 0);
out:
    rig_close(&r);
}

static void writable(bk_conform_case *c) {
    static char full[65536];
    rig r = {.c = c};
    int p[2];
    struct iovec v = {full, sizeof full};
    ssize_t sent;
    TRY(c, rig_open(&r));
    TRY(c, rig_pair(&r, p));
    TRY(c, arm(&r, p[0], BK_WRITE, TAG(1)));
    for (int i = 0; i < 3; i++)
        expect_only(&r, TAG(1), BK_WRITE, 0);
    while ((sent = c->scaffold->send(c->scaffold, p[0], &v, 1)) > 0)
        ;
    EXPECT(c, sent == -EAGAIN);
    expect_nothing(&r);
    TRY(c, conform_drain(c, p[1]));
    expect_only(&r, TAG(1), BK_WRITE, 0);
out:
    rig_close(&r);
}

static void both_directions(bk_conform_case *c) {
    rig r = {.c = c};
    int p[2];
    TRY(c, rig_open(&r));
    TRY(c, rig_pair(&r, p));
    TRY(c, arm(&r, p[0], BK_READ | BK_WRITE, TAG(1)));
    expect_only(&r, TAG(1), BK_WRITE, 0);
    TRY(c, conform_put(c, p[1], "x"));
    expect_only(&r, TAG(1), BK_READ | BK_WRITE, 0);    /* one report for both */
    TRY(c, arm(&r, p[1], BK_READ | BK_WRITE, TAG(2))); /* and the other end too */
    TRY(c, rig_wait(&r, 0, RIG_ROOM));
    EXPECT(c, r.count == 2);
    EXPECT(c, events_of(&r, TAG(1)) == (BK_READ | BK_WRITE));
    EXPECT(c, events_of(&r, TAG(2)) == BK_WRITE);
out:
    rig_close(&r);
}

static void rearming_replaces(bk_conform_case *c) {
    rig r = {.c = c};
    int p[2];
    TRY(c, rig_open(&r));
    TRY(c, rig_pair(&r, p));
    TRY(c, conform_put(c, p[1], "x"));
    TRY(c, arm(&r, p[0], BK_READ, TAG(1)));
    expect_only(&r, TAG(1), BK_READ, 0);
    TRY(c, arm(&r, p[0], BK_READ, TAG(2))); /* the tag alone */
    expect_only(&r, TAG(2), BK_READ, 0);
    TRY(c, arm(&r, p[0], BK_WRITE, TAG(3)));
    expect_only(&r, TAG(3), BK_WRITE, 0); /* readable, but nobody asks */
    TRY(c, arm(&r, p[0], BK_READ | BK_WRITE, TAG(4)));
    expect_only(&r, TAG(4), BK_READ | BK_WRITE, 0);
    TRY(c, conform_drain(c, p[0]));
    TRY(c, arm(&r, p[0], BK_READ, 0)); /* any tag is one */
    expect_nothing(&r);
    TRY(c, conform_put(c, p[1], "x"));
    expect_only(&r, 0, BK_READ, 0);
out:
    rig_close(&r);
}

static void disarming(bk_conform_case *c) {
    rig r = {.c = c};
    int p[2], q[2];
    TRY(c, rig_open(&r));
    TRY(c, rig_pipe(&r, p));
    TRY(c, rig_pipe(&r, q));
    TRY(c, arm(&r, p[0], BK_READ, TAG(1)));
    TRY(c, arm(&r, q[0], BK_READ, TAG(2)));
    TRY(c, conform_put(c, p[1], "x"));
    TRY(c, conform_put(c, q[1], "x"));
    TRY(c, disarm(&r, p[0]));
    expect_only(&r, TAG(2), BK_READ, 0);
    TRY(c, disarm(&r, q[0]));
    expect_nothing(&r);
    TRY(c, arm(&r, p[0], BK_READ, TAG(3)));
    expect_only(&r, TAG(3), BK_READ, 0);
out:
    rig_close(&r);
}

/* In every order of three: a dense table must not lose those it moves. */
static void disarming_in_any_order(bk_conform_case *c) {
    static const int orders[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2},
                                     {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    rig r = {.c = c};
    int p[3][2];
    TRY(c, rig_open(&r));
    for (int i = 0; i < 3; i++) {
        TRY(c, rig_pipe(&r, p[i]));
        TRY(c, conform_put(c, p[i][1], "x"));
    }
    for (int o = 0; o < 6; o++) {
        for (int i = 0; i < 3; i++)
            TRY(c, arm(&r, p[i][0], BK_READ, TAG(i)));
        for (int gone = 0; gone < 3; gone++) {
            TRY(c, rig_wait(&r, 0, RIG_ROOM));
            EXPECT(c, r.count == 3 - gone);
            for (int i = 0; i < 3; i++)
                EXPECT(c, (events_of(&r, TAG(orders[o][i])) != 0) == (i >= gone));
            TRY(c, disarm(&r, p[orders[o][gone]][0]));
        }
    }
out:
    rig_close(&r);
}

static void disarming_the_unknown(bk_conform_case *c) {
    rig r = {.c = c};
    int p[2];
    TRY(c, rig_open(&r));
    TRY(c, rig_pipe(&r, p));
    TRY(c, disarm(&r, p[0]));       /* open, never armed */
    TRY(c, disarm(&r, p[1] + 500)); /* nor ever open */
    TRY(c, arm(&r, p[0], BK_READ, TAG(1)));
    TRY(c, disarm(&r, p[0]));
    TRY(c, disarm(&r, p[0])); /* no longer */
    TRY(c, disarm(&r, p[1] + 500));
    expect_nothing(&r);
out:
    rig_close(&r);
}

/* The number means something else now, and so does its tag. */
static void closed_and_reused(bk_conform_case *c) {
    rig r = {.c = c};
    int p[2], q[2];
    TRY(c, rig_open(&r));
    TRY(c, rig_pair(&r, p));
    TRY(c, conform_put(c, p[1], "x"));
    TRY(c, arm(&r, p[0], BK_READ | BK_WRITE, TAG(1)));
    expect_only(&r, TAG(1), BK_READ | BK_WRITE, 0);
    TRY(c, disarm(&r, p[0]));
    rig_drop(&r, p[0]);
    TRY(c, rig_pair(&r, q)); /* the lowest free number: that one */
    EXPECT(c, q[0] == p[0]);
    expect_nothing(&r);
    TRY(c, arm(&r, q[0], BK_READ, TAG(2)));
    expect_nothing(&r);
    TRY(c, conform_put(c, q[1], "x"));
    expect_only(&r, TAG(2), BK_READ, 0);
out:
    rig_close(&r);
}

/* ---- Endings ---- */

static void hang_up(bk_conform_case *c) {
    rig r = {.c = c};
    int p[2], q[2];
    TRY(c, rig_open(&r));
    TRY(c, rig_pipe(&r, p));
    TRY(c, rig_pair(&r, q));
    TRY(c, arm(&r, p[0], BK_READ, TAG(1)));
    expect_nothing(&r);
    rig_drop(&r, p[1]);
    expect_only(&r, TAG(1), 0, BK_READ | BK_HANGUP); /* events_of() wants one of them */
    EXPECT(c, events_of(&r, TAG(1)) != 0);
    TRY(c, disarm(&r, p[0]));
    TRY(c, arm(&r, q[0], BK_READ, TAG(2)));
    rig_drop(&r, q[1]);
    expect_only(&r, TAG(2), 0, BK_READ | BK_HANGUP);
    EXPECT(c, events_of(&r, TAG(2)) != 0);
out:
    rig_close(&r);
}

/* Whoever only writes has to learn it too: the next write says what it is. */
static void hang_up_of_a_writer(bk_conform_case *c) {
    rig r = {.c = c};
    int p[2], q[2];
    TRY(c, rig_open(&r));
    TRY(c, rig_pipe(&r, p));
    TRY(c, rig_pair(&r, q));
    rig_drop(&r, p[0]);
    TRY(c, arm(&r, p[1], BK_WRITE, TAG(1)));
    expect_only(&r, TAG(1), 0, BK_WRITE | BK_HANGUP);
    EXPECT(c, events_of(&r, TAG(1)) != 0);
    TRY(c, disarm(&r, p[1]));
    rig_drop(&r, q[0]);
    TRY(c, arm(&r, q[1], BK_WRITE, TAG(2)));
    expect_only(&r, TAG(2), 0, BK_WRITE | BK_HANGUP);
    EXPECT(c, events_of(&r, TAG(2)) != 0);
out:
    rig_close(&r);
}

static void half_close(bk_conform_case *c) {
    rig r = {.c = c};
    int p[2];
    TRY(c, rig_open(&r));
    TRY(c, rig_pair(&r, p));
    TRY(c, arm(&r, p[0], BK_READ, TAG(1)));
    TRY(c, c->scaffold->shutdown(c->scaffold, p[1], SHUT_WR));
    expect_only(&r, TAG(1), BK_READ, 0); /* the end is something to read; it is no hang-up */
    TRY(c, arm(&r, p[0], BK_WRITE, TAG(1)));
    expect_only(&r, TAG(1), BK_WRITE, 0);
out:
    rig_close(&r);
}

static void reset(bk_conform_case *c) {
    rig r = {.c = c};
    int p[2];
    struct linger at_once = {.l_onoff = 1, .l_linger = 0};
    TRY(c, rig_open(&r));
    TRY(c, conform_tcp(c->scaffold, p));
    TRY(c, rig_keep(&r, p));
    TRY(c, arm(&r, p[0], BK_READ, TAG(1)));
    TRY(c, c->scaffold->setsockopt(c->scaffold, p[1], SOL_SOCKET, SO_LINGER, &at_once,
                                   sizeof at_once));
    rig_drop(&r, p[1]);
    expect_only(&r, TAG(1), 0, BK_READ | BK_HANGUP);
    EXPECT(c, events_of(&r, TAG(1)) != 0);
out:
    rig_close(&r);
}

/* ---- Kinds of descriptors ---- */

static int open_file(bk_conform_case *c) {
    char path[] = "/tmp/becket-conform-XXXXXX";
    int fd = mkstemp(path);
    if (fd < 0)
        return -errno;
    close(fd);
    fd = c->scaffold->open(c->scaffold, path, O_RDWR, 0600);
    unlink(path);
    return fd;
}

static void regular_file(bk_conform_case *c) {
    rig r = {.c = c};
    int p[2] = {-1, -1};
    TRY(c, rig_open(&r));
    TRY(c, p[0] = open_file(c));
    rig_keep(&r, p);
    if (r.n.ops->traits & BK_FILES) {
        TRY(c, arm(&r, p[0], BK_READ, TAG(1)));
        expect_only(&r, TAG(1), BK_READ, BK_HANGUP);
        TRY(c, arm(&r, p[0], BK_READ | BK_WRITE, TAG(1)));
        expect_only(&r, TAG(1), BK_READ | BK_WRITE, BK_HANGUP);
    } else {
        int code = arm(&r, p[0], BK_READ, TAG(1));
        if (code == -EPERM)
            expect_nothing(&r); /* refused is not armed */
        else if (!FAILED(c, code))
            EXPECT(c, code == -EPERM);
    }
out:
    rig_close(&r);
}

static bool poll_says_readable(int fd) {
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, 0) == 1;
}

static void own_descriptor(bk_conform_case *c) {
    rig r = {.c = c};
    int p[2];
    if (!(((const bk_notifier_ops *)c->subject)->traits & BK_POLLABLE)) {
        conform_skip(c, "has no descriptor of its own");
        return;
    }
    TRY(c, rig_open(&r));
    TRY(c, rig_pipe(&r, p));
    int fd = r.n.ops->fd(&r.n);
    TRY(c, fd);
    EXPECT(c, !poll_says_readable(fd));
    TRY(c, arm(&r, p[0], BK_READ, TAG(1)));
    EXPECT(c, !poll_says_readable(fd));
    TRY(c, conform_put(c, p[1], "x"));
    EXPECT(c, poll_says_readable(fd));
    expect_only(&r, TAG(1), BK_READ, 0);
    EXPECT(c, poll_says_readable(fd)); /* still unread */
    TRY(c, conform_drain(c, p[0]));
    EXPECT(c, !poll_says_readable(fd));
out:
    rig_close(&r);
}

/* ---- Waiting ---- */

static void never_early(bk_conform_case *c) {
    static const int64_t times[] = {1,       1000,    500000,  999999,  1000000,
                                    1000001, 1500000, 2000001, 3000000, 5999999};
    rig r = {.c = c};
    int p[2];
    TRY(c, rig_open(&r));
    TRY(c, rig_pipe(&r, p));
    TRY(c, arm(&r, p[0], BK_READ, TAG(1)));
    for (size_t i = 0; i < sizeof times / sizeof *times; i++) {
        int64_t began = conform_clock();
        TRY(c, rig_wait(&r, times[i], RIG_ROOM));
        EXPECT(c, r.count == 0);
        MUST(c, conform_clock() - began >= times[i]);
    }
out:
    rig_close(&r);
}

static void *put_one(void *arg) {
    struct iovec v = {"x", 1};
    bk_os *os = bk_os_default();
    (void)os->write(os, *(int *)arg, &v, 1);
    return NULL;
}

/* For ever, that is until something comes. */
static void no_time_out(bk_conform_case *c) {
    rig r = {.c = c};
    int p[2];
    pthread_t thread;
    TRY(c, rig_open(&r));
    TRY(c, rig_pipe(&r, p));
    TRY(c, arm(&r, p[0], BK_READ, TAG(1)));
    TRY(c, -pthread_create(&thread, NULL, put_one, &p[1]));
    int count = rig_wait(&r, -1, RIG_ROOM);
    pthread_join(thread, NULL);
    TRY(c, count);
    EXPECT(c, count == 1);
    EXPECT(c, events_of(&r, TAG(1)) == BK_READ);
out:
    rig_close(&r);
}

static void signal_ends_the_wait(bk_conform_case *c) {
    rig r = {.c = c};
    int p[2];
    TRY(c, rig_open(&r));
    TRY(c, rig_pipe(&r, p));
    TRY(c, arm(&r, p[0], BK_READ, TAG(1)));
    conform_alarms(NULL);
    int code = r.n.ops->wait(&r.n, conform_patience(c), r.ready, RIG_ROOM);
    conform_alarms_end();
    if (code != -EINTR)
        TRY(c, code);
    EXPECT(c, code == -EINTR);
    TRY(c, conform_put(c, p[1], "x")); /* and it goes on as before */
    expect_only(&r, TAG(1), BK_READ, 0);
out:
    rig_close(&r);
}

/* More are ready than there is room: the others come later, though the first are ready still. */
static void small_room(bk_conform_case *c) {
    enum { PAIRS = 30, ROOM = 4 };
    rig r = {.c = c};
    int p[PAIRS][2], seen[PAIRS] = {0}, missing = PAIRS;
    TRY(c, rig_open(&r));
    for (int i = 0; i < PAIRS; i++) {
        TRY(c, rig_pipe(&r, p[i]));
        TRY(c, arm(&r, p[i][0], BK_READ, TAG(i)));
        TRY(c, conform_put(c, p[i][1], "x"));
    }
    /* A fair one needs 8 waits; nobody may be left out of four times as many. */
    for (int waits = 0; waits < 32; waits++) {
        TRY(c, rig_wait(&r, 0, ROOM));
        EXPECT(c, r.count == ROOM);
        for (int i = 0; i < r.count; i++) {
            uint64_t which = r.ready[i].tag - TAG(0);
            MUST(c, which < PAIRS);
            if (which < PAIRS && seen[which]++ == 0)
                missing--;
        }
    }
    EXPECT(c, missing == 0);
out:
    rig_close(&r);
}

/* ---- Many ---- */

/* The limit is raised as far as allowed, for good: it is a property of the process. */
static int descriptor_limit(void) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
    getrlimit(RLIMIT_NOFILE, &limit);
    return limit.rlim_cur > 60000 ? 60000 : (int)limit.rlim_cur;
}

typedef struct crowd {
    rig r;
    int count; /* of the pairs */
    int (*fds)[2];
    bool *armed; /* it took [0] */
} crowd;

static int crowd_open(crowd *d, int count) {
    bk_os *os = d->r.c->scaffold;
    d->fds = calloc((size_t)count, sizeof *d->fds);
    d->armed = calloc((size_t)count, sizeof *d->armed);
    for (; d->count < count; d->count++) {
        int code = os->socketpair(os, d->fds[d->count]);
        if (code < 0)
            return code;
    }
    return rig_open(&d->r);
}

static void crowd_close(crowd *d) {
    for (int i = 0; i < d->count; i++) {
        if (d->r.open && d->armed[i])
            (void)disarm(&d->r, d->fds[i][0]);
        conform_close(d->r.c, &d->fds[i][0]);
        conform_close(d->r.c, &d->fds[i][1]);
    }
    free(d->fds);
    free(d->armed);
    rig_close(&d->r);
}

/* What it has no room for it refuses, by number, and never one that select(2) would take. */
static int crowd_arm(crowd *d) {
    int refused_from = INT32_MAX;
    for (int i = 0; i < d->count; i++) {
        int fd = d->fds[i][0], code = arm(&d->r, fd, BK_READ, TAG(i));
        d->armed[i] = code >= 0;
        if (code == -EMFILE && fd >= FD_SETSIZE) {
            refused_from = fd < refused_from ? fd : refused_from;
            continue;
        }
        if (code < 0)
            return code;
        EXPECT(d->r.c, fd < refused_from);
    }
    return 0;
}

/* Make every step-th readable, and collect what is reported until all of those have been. */
static void crowd_check(crowd *d, int first, int step) {
    bk_conform_case *c = d->r.c;
    int due = 0;
    if (conform_excused(c))
        return;
    for (int i = first; i < d->count; i += step) {
        if (FAILED(c, conform_put(c, d->fds[i][1], "x")))
            return;
        due += d->armed[i];
    }
    while (due > 0) {
        if (conform_hangs(c) || FAILED(c, rig_wait(&d->r, conform_patience(c), RIG_ROOM)))
            return;
        for (int k = 0; k < d->r.count; k++) {
            int i = (int)(d->r.ready[k].tag - TAG(0));
            MUST(c, i >= 0 && i < d->count && d->armed[i] && i % step == first);
            if (c->failed > 0 || FAILED(c, conform_drain(c, d->fds[i][0])))
                return;
            due--;
        }
    }
    expect_nothing(&d->r);
}

static void thousands(bk_conform_case *c) {
    crowd d = {.r = {.c = c}};
    int most = (descriptor_limit() - 100) / 2, count = c->quick ? 40 : 3000;
    TRY(c, crowd_open(&d, count < most ? count : most));
    TRY(c, crowd_arm(&d));
    crowd_check(&d, 5, 97);
    crowd_check(&d, 0, 2);
    crowd_check(&d, 0, 1);
    if (conform_excused(c))
        goto out;
    for (int i = 0; i < d.count; i += 2) /* half of them go, and come back */
        if (d.armed[i])
            TRY(c, disarm(&d.r, d.fds[i][0]));
    expect_nothing(&d.r);
    TRY(c, crowd_arm(&d));
    crowd_check(&d, 0, 1);
out:
    crowd_close(&d);
}

/* Numbers around those at which tables end: taken and reported, or refused and forgotten. */
static void high_numbers(bk_conform_case *c) {
    rig r = {.c = c};
    int p[2], top = descriptor_limit() - 1;
    const int numbers[] = {FD_SETSIZE - 1, FD_SETSIZE, FD_SETSIZE + 1, 4095, 4096, top};
    TRY(c, rig_open(&r));
    TRY(c, rig_pipe(&r, p));
    TRY(c, conform_put(c, p[1], "x"));
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        int fd = numbers[i];
        if (fd > top || fcntl(fd, F_GETFD) >= 0 || dup2(p[0], fd) < 0)
            continue;
        int code = arm(&r, fd, BK_READ, TAG(i));
        if (code >= 0)
            expect_only(&r, TAG(i), BK_READ, 0);
        else if (code != -EMFILE || fd < FD_SETSIZE)
            (void)FAILED(c, code);
        if (!FAILED(c, disarm(&r, fd)))
            expect_nothing(&r);
        close(fd);
    }
out:
    rig_close(&r);
}

static void bad_numbers(bk_conform_case *c) {
    rig r = {.c = c};
    TRY(c, rig_open(&r));
    EXPECT(c, arm(&r, -1, BK_READ, TAG(1)) < 0);
    TRY(c, disarm(&r, -1));
    expect_nothing(&r);
out:
    rig_close(&r);
}

/* ---- Fork ---- */

/* The child: all that was armed is so still, and what it does now is nobody else's affair. */
static void fork_child(rig *r, int p[3][2], int go) {
    bk_conform_case *c = r->c;
    TRY(c, r->n.ops->forked(&r->n));
    struct pollfd wait = {.fd = go, .events = POLLIN};
    while (poll(&wait, 1, -1) < 0) /* until the parent has disarmed [1] */
        ;
    TRY(c, conform_put(c, p[1][1], "x"));
    expect_only(r, TAG(1), BK_READ, 0);
    TRY(c, conform_drain(c, p[1][0]));
    TRY(c, disarm(r, p[0][0]));
    TRY(c, disarm(r, p[1][0]));
    TRY(c, arm(r, p[2][0], BK_READ, TAG(5)));
    TRY(c, conform_put(c, p[2][1], "x"));
    expect_only(r, TAG(5), BK_READ, 0);
out:
    conform_child_ends(c);
}

static void fork_parts_ways(bk_conform_case *c) {
    rig r = {.c = c};
    int p[3][2], go[2];
    TRY(c, rig_open(&r));
    for (int i = 0; i < 3; i++)
        TRY(c, rig_pipe(&r, p[i]));
    TRY(c, rig_pipe(&r, go));
    TRY(c, arm(&r, p[0][0], BK_READ, TAG(0)));
    TRY(c, arm(&r, p[1][0], BK_READ, TAG(1)));
    fflush(stdout);
    int pid = fork();
    if (pid == 0)
        fork_child(&r, p, go[0]);
    int code = disarm(&r, p[1][0]);
    (void)conform_put(c, go[1], "x");
    conform_child_wait(c, pid);
    TRY(c, code);
    expect_nothing(&r); /* [2] is readable, which only the child has armed */
    TRY(c, conform_put(c, p[0][1], "x"));
    expect_only(&r, TAG(0), BK_READ, 0);
out:
    rig_close(&r);
}

int bk_conform_notifier(const bk_notifier_ops *ops, bk_os *os, bk_conform_report *report) {
    static const conform_entry cases[] = {
        {"table", table, 0},
        {"nothing_armed", nothing_armed, 0},
        {"two_notifiers", two_notifiers, 0},
        {"readable", readable, 0},
        {"level_triggered", level_triggered, 0},
        {"writable", writable, 0},
        {"both_directions", both_directions, 0},
        {"rearming_replaces", rearming_replaces, 0},
        {"disarming", disarming, 0},
        {"disarming_in_any_order", disarming_in_any_order, 0},
        {"disarming_the_unknown", disarming_the_unknown, 0},
        {"closed_and_reused", closed_and_reused, 0},
        {"hang_up", hang_up, 0},
        {"hang_up_of_a_writer", hang_up_of_a_writer, 0},
        {"half_close", half_close, 0},
        {"reset", reset, 0},
        {"regular_file", regular_file, 0},
        {"own_descriptor", own_descriptor, 0},
        {"never_early", never_early, CONFORM_LONG},
        {"no_time_out", no_time_out, 0},
        {"signal_ends_the_wait", signal_ends_the_wait, 0},
        {"small_room", small_room, 0},
        {"thousands", thousands, 0},
        {"high_numbers", high_numbers, 0},
        {"bad_numbers", bad_numbers, 0},
        {"fork_parts_ways", fork_parts_ways, 0},
    };
    char suite[64];
    if (ops == NULL)
        return -EINVAL;
    snprintf(suite, sizeof suite, "notifier %s", ops->name != NULL ? ops->name : "(no name)");
    return conform_suite(suite, cases, (int)(sizeof cases / sizeof *cases), ops, os, report);
}
