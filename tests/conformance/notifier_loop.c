/*
 * notifier_loop.c: the suite for a notifier under a loop: that the loop folds changes, calls for no
 * descriptor that nothing happened to, and tells no event to whom it was not meant for. Called
 * through bk_conform_notifier_loop(), and by tests/c/test_notifier.c.
 */
#include "tests/conformance/case.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* ---- A notifier that counts, around the one under test ---- */

/* Set before a loop is made: its table has no room for an argument. One loop at a time. */
static struct {
    const bk_notifier_ops *ops;
    int fd; /* the descriptor that is counted; -1: each */
    int arms, disarms;
} counted;

static int counting_open(bk_notifier *n) {
    bk_notifier *inner = n->os->resize(n->os, NULL, sizeof *inner);
    if (inner == NULL)
        return -ENOMEM;
    *inner = (bk_notifier){.ops = counted.ops, .os = n->os};
    int code = inner->ops->open(inner);
    if (code < 0)
        n->os->resize(n->os, inner, 0);
    else
        n->state = inner;
    return code;
}

static void counting_close(bk_notifier *n) {
    bk_notifier *inner = n->state;
    inner->ops->close(inner);
    n->os->resize(n->os, inner, 0);
}

static int counting_forked(bk_notifier *n) {
    bk_notifier *inner = n->state;
    return inner->ops->forked(inner);
}

static int counting_arm(bk_notifier *n, int fd, unsigned events, uint64_t tag) {
    bk_notifier *inner = n->state;
    counted.arms += counted.fd < 0 || counted.fd == fd;
    return inner->ops->arm(inner, fd, events, tag);
}

static int counting_disarm(bk_notifier *n, int fd) {
    bk_notifier *inner = n->state;
    counted.disarms += counted.fd < 0 || counted.fd == fd;
    return inner->ops->disarm(inner, fd);
}

static int counting_wait(bk_notifier *n, int64_t timeout_ns, bk_ready *ret_ready, int room) {
    bk_notifier *inner = n->state;
    return inner->ops->wait(inner, timeout_ns, ret_ready, room);
}

static const bk_notifier_ops counting = {
    .size = sizeof counting,
    .name = "counting",
    .traits = BK_ANY_FD,
    .open = counting_open,
    .close = counting_close,
    .forked = counting_forked,
    .arm = counting_arm,
    .disarm = counting_disarm,
    .wait = counting_wait,
};

/* ---- What a case works with ---- */

enum { RIG_ENDS = 8 };

typedef struct rig rig;

/* One watched descriptor, and the other end of it. */
typedef struct end {
    rig *r;
    int fd, far;
    int calls;                   /* how often its function was called */
    unsigned events;             /* last */
    void (*then)(struct end *e); /* what it does when called */
    struct end *other;
} end;

struct rig {
    bk_conform_case *c;
    bk_loop *loop;
    end ends[RIG_ENDS];
    int count;
    bool stale; /* an old function was called for a new descriptor, or the reverse */
};

static int rig_open(rig *r) {
    counted.ops = r->c->subject;
    counted.fd = -1;
    return conform_loop(r->c, &counting, &r->loop);
}

static void end_close(end *e) {
    if (e->fd >= 0)
        bk_watch_forget(e->r->loop, e->fd);
    conform_close(e->r->c, &e->fd);
    conform_close(e->r->c, &e->far);
}

static void rig_close(rig *r) {
    for (int i = 0; i < r->count; i++)
        end_close(&r->ends[i]);
    conform_loop_free(r->c, r->loop);
}

/* A socket pair: both ends can be read and written. */
static int rig_end(rig *r, end **ret_end) {
    int fds[2], code = r->c->scaffold->socketpair(r->c->scaffold, fds);
    if (code < 0)
        return code;
    end *e = &r->ends[r->count++];
    *e = (end){.r = r, .fd = fds[0], .far = fds[1]};
    *ret_end = e;
    return 0;
}

static void called(void *arg, unsigned events) {
    end *e = arg;
    e->calls++;
    e->events = events;
    if (events & BK_HANGUP) /* what could not be armed is told so */
        conform_told(e->r->c);
    if (e->fd < 0)
        e->r->stale = true;
    if (e->then != NULL)
        e->then(e);
}

static int watch(end *e, unsigned direction, bool on) {
    return bk_watch_set(e->r->loop, e->fd, direction, on ? called : NULL, e);
}

static void read_all(end *e) {
    (void)conform_drain(e->r->c, e->fd);
}

static void count_for(end *e) {
    counted.fd = e == NULL ? -1 : e->fd;
    counted.arms = counted.disarms = 0;
}

static int turns(rig *r, int count) {
    for (int i = 0; i < count; i++) {
        int code = bk_loop_turn(r->loop, 0);
        if (code < 0)
            return code;
    }
    return 0;
}

/* Turn until the end was called so often. */
static bool until_called(end *e, int calls) {
    while (e->calls < calls)
        if (!conform_turn(e->r->c, e->r->loop))
            return false;
    return true;
}

/* ---- Folding ---- */

/* A fault may make the loop try again; then the counts tell nothing. */
static void expect_calls(rig *r, int arms, int disarms) {
    EXPECT(r->c, counted.arms == arms);
    EXPECT(r->c, counted.disarms == disarms);
}

static void set_and_unset(bk_conform_case *c) {
    rig r = {.c = c};
    end *e;
    TRY(c, rig_open(&r));
    TRY(c, rig_end(&r, &e));
    TRY(c, turns(&r, 1));
    count_for(e);
    TRY(c, watch(e, BK_READ, true));
    TRY(c, watch(e, BK_WRITE, true));
    TRY(c, watch(e, BK_WRITE, false));
    TRY(c, watch(e, BK_READ, false));
    TRY(c, turns(&r, 2));
    expect_calls(&r, 0, 0); /* nothing has changed in the end */
    TRY(c, watch(e, BK_READ, true));
    TRY(c, watch(e, BK_WRITE, true));
    TRY(c, turns(&r, 2));
    expect_calls(&r, 1, 0); /* both in one */
    TRY(c, watch(e, BK_READ, false));
    TRY(c, watch(e, BK_READ, true));
    TRY(c, turns(&r, 2));
    expect_calls(&r, 1, 0);
    TRY(c, watch(e, BK_WRITE, false));
    TRY(c, watch(e, BK_READ, false));
    TRY(c, turns(&r, 2));
    expect_calls(&r, 1, 1);
    TRY(c, watch(e, BK_READ, false)); /* once more is no change */
    TRY(c, turns(&r, 2));
    expect_calls(&r, 1, 1);
out:
    rig_close(&r);
}

static void toggle(end *e) {
    read_all(e);
    for (int i = 0; i < 5; i++) {
        MUST(e->r->c, watch(e, BK_WRITE, true) == 0);
        MUST(e->r->c, watch(e, BK_READ, false) == 0);
        MUST(e->r->c, watch(e, BK_READ, true) == 0);
        MUST(e->r->c, watch(e, BK_WRITE, false) == 0);
    }
}

static void changes_in_a_callback(bk_conform_case *c) {
    rig r = {.c = c};
    end *e;
    TRY(c, rig_open(&r));
    TRY(c, rig_end(&r, &e));
    e->then = toggle;
    TRY(c, watch(e, BK_READ, true));
    TRY(c, turns(&r, 1));
    TRY(c, conform_put(c, e->far, "x"));
    count_for(e);
    if (!until_called(e, 1))
        goto out;
    TRY(c, turns(&r, 2));
    expect_calls(&r, 0, 0);
out:
    rig_close(&r);
}

/* Another function for the same events is no affair of the notifier's. */
static void another_function(bk_conform_case *c) {
    rig r = {.c = c};
    end *e, *f;
    TRY(c, rig_open(&r));
    TRY(c, rig_end(&r, &e));
    TRY(c, rig_end(&r, &f));
    f->then = read_all;
    TRY(c, watch(e, BK_READ, true));
    TRY(c, turns(&r, 1));
    count_for(e);
    TRY(c, bk_watch_set(r.loop, e->fd, BK_READ, called, f));
    TRY(c, conform_put(c, e->far, "x"));
    if (!until_called(f, 1))
        goto out;
    EXPECT(c, e->calls == 0);
    expect_calls(&r, 0, 0);
out:
    rig_close(&r);
}

/* ---- Who is told ---- */

static void both_are_told(bk_conform_case *c) {
    rig r = {.c = c};
    end *e, *f; /* f stands for the writer of the same descriptor */
    TRY(c, rig_open(&r));
    TRY(c, rig_end(&r, &e));
    TRY(c, rig_end(&r, &f));
    TRY(c, watch(e, BK_READ, true));
    TRY(c, bk_watch_set(r.loop, e->fd, BK_WRITE, called, f));
    if (!until_called(f, 2)) /* again and again, as long as it is */
        goto out;
    EXPECT(c, e->calls == 0 && (f->events & BK_WRITE));
    TRY(c, bk_watch_set(r.loop, e->fd, BK_WRITE, NULL, NULL));
    TRY(c, conform_put(c, e->far, "x"));
    int before = f->calls;
    if (!until_called(e, 2))
        goto out;
    EXPECT(c, f->calls == before && (e->events & BK_READ));
out:
    rig_close(&r);
}

static void hang_up_is_told(bk_conform_case *c) {
    rig r = {.c = c};
    end *e;
    TRY(c, rig_open(&r));
    TRY(c, rig_end(&r, &e));
    TRY(c, watch(e, BK_WRITE, true));
    if (!until_called(e, 1))
        goto out;
    conform_close(c, &e->far);
    if (!until_called(e, e->calls + 2))
        goto out;
    EXPECT(c, e->events & BK_WRITE);
    TRY(c, watch(e, BK_WRITE, false));
    TRY(c, watch(e, BK_READ, true));
    e->events = 0;
    if (!until_called(e, e->calls + 1))
        goto out;
    EXPECT(c, e->events & BK_READ);
out:
    rig_close(&r);
}

static void forget_other(end *e) {
    if (e->other->fd >= 0)
        bk_watch_forget(e->r->loop, e->other->fd);
    conform_close(e->r->c, &e->other->fd);
}

/* Two are ready in one wait; the first to be told closes the other. */
static void forgotten_in_dispatch(bk_conform_case *c) {
    rig r = {.c = c};
    end *e, *f;
    TRY(c, rig_open(&r));
    TRY(c, rig_end(&r, &e));
    TRY(c, rig_end(&r, &f));
    e->other = f;
    f->other = e;
    e->then = f->then = forget_other;
    TRY(c, watch(e, BK_READ, true));
    TRY(c, watch(f, BK_READ, true));
    TRY(c, turns(&r, 1));
    TRY(c, conform_put(c, e->far, "x"));
    TRY(c, conform_put(c, f->far, "x"));
    while (e->calls + f->calls < 2)
        if (!conform_turn(c, r.loop))
            goto out;
    EXPECT(c, e->calls == 0 || f->calls == 0);
out:
    MUST(c, !r.stale);
    rig_close(&r);
}

static void unset_other(end *e) {
    MUST(e->r->c, watch(e->other, BK_READ, false) == 0);
}

static void unset_in_dispatch(bk_conform_case *c) {
    rig r = {.c = c};
    end *e, *f;
    TRY(c, rig_open(&r));
    TRY(c, rig_end(&r, &e));
    TRY(c, rig_end(&r, &f));
    e->other = f;
    f->other = e;
    e->then = f->then = unset_other;
    TRY(c, watch(e, BK_READ, true));
    TRY(c, watch(f, BK_READ, true));
    TRY(c, turns(&r, 1));
    TRY(c, conform_put(c, e->far, "x"));
    TRY(c, conform_put(c, f->far, "x"));
    while (e->calls + f->calls < 3)
        if (!conform_turn(c, r.loop))
            goto out;
    EXPECT(c, e->calls == 0 || f->calls == 0);
out:
    rig_close(&r);
}

static void called_wrongly(void *arg, unsigned events) {
    rig *r = arg;
    if (events & BK_HANGUP)
        conform_told(r->c);
    r->stale = true;
}

/* Close the other, whose event is on its way, and give its number to a quiet descriptor. */
static void reuse_other(end *e) {
    rig *r = e->r;
    end *f = e->other, *fresh;
    if (e->calls + f->calls > 1)
        return;
    int number = f->fd;
    bk_watch_forget(r->loop, number);
    conform_close(r->c, &f->fd);
    if (FAILED(r->c, rig_end(r, &fresh)))
        return;
    EXPECT(r->c, fresh->fd == number);
    (void)FAILED(r->c, bk_watch_set(r->loop, fresh->fd, BK_READ, called_wrongly, r));
}

static void reused_in_one_turn(bk_conform_case *c) {
    rig r = {.c = c};
    end *e, *f;
    TRY(c, rig_open(&r));
    TRY(c, rig_end(&r, &e));
    TRY(c, rig_end(&r, &f));
    e->other = f;
    f->other = e;
    e->then = f->then = reuse_other;
    TRY(c, watch(e, BK_READ, true));
    TRY(c, watch(f, BK_READ, true));
    TRY(c, turns(&r, 1));
    TRY(c, conform_put(c, e->far, "x"));
    TRY(c, conform_put(c, f->far, "x"));
    while (e->calls + f->calls < 3)
        if (!conform_turn(c, r.loop))
            goto out;
    EXPECT(c, e->calls == 0 || f->calls == 0);
    EXPECT(c, !r.stale);
out:
    rig_close(&r);
}

/* What is set, forgotten and set again before the loop has seen it once. */
static void forgotten_before_armed(bk_conform_case *c) {
    rig r = {.c = c};
    end *e;
    TRY(c, rig_open(&r));
    TRY(c, rig_end(&r, &e));
    TRY(c, conform_put(c, e->far, "x"));
    TRY(c, watch(e, BK_READ, true));
    bk_watch_forget(r.loop, e->fd);
    bk_watch_forget(r.loop, e->fd);
    TRY(c, turns(&r, 2));
    EXPECT(c, e->calls == 0);
    TRY(c, watch(e, BK_READ, true));
    bk_watch_forget(r.loop, e->fd);
    TRY(c, watch(e, BK_READ, true));
    if (until_called(e, 1))
        EXPECT(c, e->events & BK_READ);
out:
    rig_close(&r);
}

/* ---- What cannot be watched ---- */

static int open_file(bk_conform_case *c, end *e) {
    char path[] = "/tmp/becket-conform-XXXXXX";
    int fd = mkstemp(path);
    if (fd < 0)
        return -errno;
    close(fd);
    fd = c->scaffold->open(c->scaffold, path, O_RDWR, 0600);
    unlink(path);
    if (fd < 0)
        return fd;
    conform_close(c, &e->fd);
    e->fd = fd;
    return 0;
}

static void stop_watching(end *e) {
    MUST(e->r->c, watch(e, BK_READ, false) == 0);
}

static void unwatchable(bk_conform_case *c) {
    rig r = {.c = c};
    end *e;
    TRY(c, rig_open(&r));
    TRY(c, rig_end(&r, &e));
    TRY(c, open_file(c, e));
    e->then = stop_watching;
    TRY(c, watch(e, BK_READ, true));
    if (!until_called(e, 1)) /* by BK_FILES: it is ready; else: it is told that it will never be */
        goto out;
    bool files = ((const bk_notifier_ops *)c->subject)->traits & BK_FILES;
    EXPECT(c, e->events & BK_READ);
    EXPECT(c, files || (e->events & BK_HANGUP));
    TRY(c, watch(e, BK_READ, true));
    int code = bk_watch_apply(r.loop, e->fd);
    if (files || code != -EPERM)
        TRY(c, code);
    EXPECT(c, files || code == -EPERM);
out:
    rig_close(&r);
}

/* ---- Waking, and the price of the idle ---- */

static void *wake_it(void *arg) {
    bk_loop_wake(arg);
    return NULL;
}

static void wake_from_a_thread(bk_conform_case *c) {
    rig r = {.c = c};
    pthread_t thread;
    TRY(c, rig_open(&r));
    for (int i = 0; i < 20; i++) {
        int64_t began = conform_clock(), patience = conform_patience(c);
        TRY(c, -pthread_create(&thread, NULL, wake_it, r.loop));
        int code = bk_loop_turn(r.loop, patience);
        pthread_join(thread, NULL);
        TRY(c, code);
        EXPECT(c, conform_clock() - began < patience);
        TRY(c, turns(&r, 1)); /* it may have come after the turn, for another reason to end it */
        if (conform_excused(c))
            break;
    }
    conform_idle(c, r.loop);
out:
    rig_close(&r);
}

typedef struct crowd {
    bk_conform_case *c;
    int (*fds)[2];
    int count;
} crowd;

static int crowd_open(crowd *d, rig *r, int count) {
    d->fds = calloc((size_t)count, sizeof *d->fds);
    for (; d->count < count; d->count++) {
        int code = d->c->scaffold->socketpair(d->c->scaffold, d->fds[d->count]);
        if (code < 0)
            return code;
        code = bk_watch_set(r->loop, d->fds[d->count][0], BK_READ, called_wrongly, r);
        if (code < 0) {
            d->count++;
            return code;
        }
    }
    return 0;
}

static void crowd_close(crowd *d, bk_loop *loop) {
    for (int i = 0; i < d->count; i++) {
        bk_watch_forget(loop, d->fds[i][0]);
        conform_close(d->c, &d->fds[i][0]);
        conform_close(d->c, &d->fds[i][1]);
    }
    free(d->fds);
}

static void idle_costs_nothing(bk_conform_case *c) {
    rig r = {.c = c};
    crowd d = {.c = c};
    end *e;
    TRY(c, rig_open(&r));
    TRY(c, rig_end(&r, &e));
    e->then = read_all;
    TRY(c, watch(e, BK_READ, true));
    TRY(c, crowd_open(&d, &r, c->quick ? 10 : 400)); /* select(2) has room for no more */
    TRY(c, turns(&r, 2));
    count_for(NULL);
    for (int i = 1; i <= 100; i++) {
        TRY(c, conform_put(c, e->far, "x"));
        if (!until_called(e, i))
            goto out;
    }
    expect_calls(&r, 0, 0);
out:
    if (r.loop != NULL)
        crowd_close(&d, r.loop);
    rig_close(&r);
}

int bk_conform_notifier_loop(const bk_notifier_ops *ops, bk_os *os, bk_conform_report *report) {
    static const conform_entry cases[] = {
        {"set_and_unset", set_and_unset, 0},
        {"changes_in_a_callback", changes_in_a_callback, 0},
        {"another_function", another_function, 0},
        {"both_are_told", both_are_told, 0},
        {"hang_up_is_told", hang_up_is_told, 0},
        {"forgotten_in_dispatch", forgotten_in_dispatch, 0},
        {"unset_in_dispatch", unset_in_dispatch, 0},
        {"reused_in_one_turn", reused_in_one_turn, 0},
        {"forgotten_before_armed", forgotten_before_armed, 0},
        {"unwatchable", unwatchable, 0},
        {"wake_from_a_thread", wake_from_a_thread, 0},
        {"idle_costs_nothing", idle_costs_nothing, 0},
    };
    char suite[64];
    if (ops == NULL)
        return -EINVAL;
    snprintf(suite, sizeof suite, "loop over %s", ops->name);
    return conform_suite(suite, cases, (int)(sizeof cases / sizeof *cases), ops, os, report);
}
