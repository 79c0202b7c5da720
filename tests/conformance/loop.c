/*
 * loop.c: the suite for the loop itself, over an operating system's table and over a notifier: the
 * ready queue, timers, what comes from other threads and from signals, workers, driving by another
 * loop, fork. For authors of either; called by tests/c/test_loop.c and test_faults.c.
 */
#include "tests/conformance/case.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* What a case works with; callbacks find it as their argument, or through `self`. */
typedef struct rig {
    bk_conform_case *c;
    bk_loop *loop;
    int count; /* calls so far */
    int most;  /* calls wanted */
    bool wrong;
    atomic_int thread_code; /* of what another thread did */
} rig;

static int rig_open(rig *r) {
    return conform_loop(r->c, r->c->subject, &r->loop);
}

static void rig_close(rig *r) {
    conform_loop_free(r->c, r->loop);
}

static void count_one(void *arg) {
    ((rig *)arg)->count++;
}

static bool until_count(rig *r, int count) {
    while (r->count < count)
        if (!conform_turn(r->c, r->loop))
            return false;
    return true;
}

/* ---- The ready queue ---- */

typedef struct numbered {
    rig *r;
    int number;
} numbered;

static void in_order(void *arg) {
    numbered *n = arg;
    MUST(n->r->c, n->number == n->r->count);
    n->r->count++;
}

/* Enough to make the ring grow several times, from different places in it. */
static void ready_order(bk_conform_case *c) {
    enum { MANY = 700 };
    static numbered calls[MANY];
    rig r = {.c = c};
    TRY(c, rig_open(&r));
    for (int round = 1; round <= 7; round++) {
        int many = round * 100;
        r.count = 0;
        for (int i = 0; i < many; i++) {
            calls[i] = (numbered){&r, i};
            TRY(c, bk_loop_soon(r.loop, in_order, &calls[i]));
        }
        EXPECT(c, bk_loop_deadline(r.loop) == 0);
        TRY(c, bk_loop_turn(r.loop, -1)); /* does not wait: there is work */
        EXPECT(c, r.count == many);
    }
    EXPECT(c, bk_loop_deadline(r.loop) == -1);
out:
    rig_close(&r);
}

static void again(void *arg) {
    rig *r = arg;
    r->count++;
    if (r->count < r->most && FAILED(r->c, bk_loop_soon(r->loop, again, r)))
        r->wrong = true;
}

/* What is queued in a turn is called in the next one: nobody keeps a turn from ending. */
static void soon_within_soon(bk_conform_case *c) {
    rig r = {.c = c, .most = 5};
    TRY(c, rig_open(&r));
    TRY(c, bk_loop_soon(r.loop, again, &r));
    for (int i = 1; i <= 5 && !r.wrong; i++) {
        TRY(c, bk_loop_turn(r.loop, 0));
        EXPECT(c, r.count == i);
    }
    TRY(c, bk_loop_turn(r.loop, 0));
    EXPECT(c, r.count == 5);
out:
    rig_close(&r);
}

static void queue_many(void *arg) {
    rig *r = arg;
    for (int i = 0; i < 300; i++) /* the ring grows, and moves, while it is being called */
        if (FAILED(r->c, bk_loop_soon(r->loop, count_one, r)))
            return;
}

static void grows_while_called(bk_conform_case *c) {
    rig r = {.c = c};
    TRY(c, rig_open(&r));
    for (int i = 0; i < 3; i++)
        TRY(c, bk_loop_soon(r.loop, i == 1 ? queue_many : count_one, &r));
    TRY(c, bk_loop_turn(r.loop, 0));
    EXPECT(c, r.count == 2);
    TRY(c, bk_loop_turn(r.loop, 0));
    EXPECT(c, r.count == 302);
out:
    rig_close(&r);
}

/* ---- Timers ---- */

enum { TIMERS = 40 };

typedef struct timed {
    bk_timer timer;
    rig *r;
    int number;
    struct timed *other;
} timed;

static void timer_in_order(void *arg) {
    timed *t = arg;
    MUST(t->r->c, t->number == t->r->count);
    MUST(t->r->c, bk_loop_now(t->r->loop) >= t->timer.when);
    t->r->count++;
}

/* By time; where times are equal, by start. Started in a shuffled order. */
static void timer_order(bk_conform_case *c) {
    timed all[TIMERS];
    rig r = {.c = c};
    TRY(c, rig_open(&r));
    TRY(c, bk_loop_turn(r.loop, 0)); /* a new loop may have things of its own to do */
    EXPECT(c, bk_loop_deadline(r.loop) == -1);
    int64_t base = bk_loop_now(r.loop);
    memset(all, 0, sizeof all);
    for (int i = 0; i < TIMERS; i++) {
        int n = i * 17 % TIMERS; /* pairs of equal times: even numbers first */
        n = n % 2 == 1 && all[n - 1].r == NULL ? n - 1 : n % 2 == 0 && all[n].r != NULL ? n + 1 : n;
        all[n].r = &r;
        all[n].number = n;
        TRY(c,
            bk_timer_start(r.loop, &all[n].timer, base + n / 2 * 50000, timer_in_order, &all[n]));
    }
    EXPECT(c, bk_loop_deadline(r.loop) >= 0);
    until_count(&r, TIMERS);
    EXPECT(c, bk_loop_deadline(r.loop) == -1);
out:
    rig_close(&r);
}

static void timer_busy(bk_conform_case *c) {
    rig r = {.c = c};
    bk_timer t = {0};
    TRY(c, rig_open(&r));
    int64_t now = bk_loop_now(r.loop);
    TRY(c, bk_timer_start(r.loop, &t, now, count_one, &r));
    EXPECT(c, bk_timer_start(r.loop, &t, now + 1, count_one, &r) == -EBUSY);
    bk_timer_stop(r.loop, &t);
    bk_timer_stop(r.loop, &t); /* not running is not an error */
    TRY(c, bk_loop_turn(r.loop, 0));
    EXPECT(c, r.count == 0);
    TRY(c, bk_timer_start(r.loop, &t, now, count_one, &r));
    TRY(c, bk_loop_turn(r.loop, 0));
    EXPECT(c, r.count == 1);
    TRY(c, bk_loop_turn(r.loop, 0));
    EXPECT(c, r.count == 1);                              /* once */
    TRY(c, bk_timer_start(r.loop, &t, 0, count_one, &r)); /* long past */
    TRY(c, bk_loop_turn(r.loop, 0));
    EXPECT(c, r.count == 2);
out:
    rig_close(&r);
}

static void stop_other(void *arg) {
    timed *t = arg;
    t->r->count++;
    bk_timer_stop(t->r->loop, &t->other->timer);
    memset(&t->other->timer, 0xee, sizeof t->other->timer); /* its memory is ours again */
}

/* Both are due: whichever comes first stops the other, which must not be called. */
static void timer_stops_timer(bk_conform_case *c) {
    rig r = {.c = c};
    timed a = {.r = &r}, b = {.r = &r, .other = &a};
    a.other = &b;
    TRY(c, rig_open(&r));
    TRY(c, bk_timer_start(r.loop, &a.timer, 1, stop_other, &a));
    TRY(c, bk_timer_start(r.loop, &b.timer, 1, stop_other, &b));
    TRY(c, bk_loop_turn(r.loop, 0));
    TRY(c, bk_loop_turn(r.loop, 0));
    EXPECT(c, r.count == 1);
    EXPECT(c, bk_loop_deadline(r.loop) == -1);
out:
    rig_close(&r);
}

static void restart(void *arg) {
    timed *t = arg;
    rig *r = t->r;
    r->count++;
    if (r->count < r->most)
        r->wrong |=
            FAILED(r->c, bk_timer_start(r->loop, &t->timer, bk_loop_now(r->loop), restart, t));
}

/* A timer may start itself from its own callback; due at once, it still lets the turn end. */
static void timer_starts_itself(bk_conform_case *c) {
    rig r = {.c = c, .most = 4};
    timed t = {.r = &r};
    TRY(c, rig_open(&r));
    TRY(c, bk_timer_start(r.loop, &t.timer, 1, restart, &t));
    for (int i = 1; i <= 4 && !r.wrong; i++) {
        TRY(c, bk_loop_turn(r.loop, 0));
        EXPECT(c, r.count == i);
    }
out:
    rig_close(&r);
}

/* A turn waits for the timer and no longer; and not less than it was told. */
static void timer_ends_the_wait(bk_conform_case *c) {
    rig r = {.c = c};
    bk_timer t = {0};
    TRY(c, rig_open(&r));
    for (int i = 0; i < 3; i++) {
        int64_t when = conform_clock() + 1500000;
        TRY(c, bk_timer_start(r.loop, &t, when, count_one, &r));
        if (!until_count(&r, i + 1))
            break;
        MUST(c, conform_clock() >= when);
    }
out:
    bk_timer_stop(r.loop, &t);
    rig_close(&r);
}

static void turn_times_out(bk_conform_case *c) {
    rig r = {.c = c};
    TRY(c, rig_open(&r));
    TRY(c, bk_loop_turn(r.loop, 0));
    conform_idle(c, r.loop);
out:
    rig_close(&r);
}

/* ---- Stopping, and calling the loop from within ---- */

static void stop_it(void *arg) {
    rig *r = arg;
    if (++r->count == r->most)
        bk_loop_stop(r->loop);
    else
        r->wrong |= FAILED(r->c, bk_loop_soon(r->loop, stop_it, r));
    if (r->wrong)
        bk_loop_stop(r->loop);
}

static void run_and_stop(bk_conform_case *c) {
    rig r = {.c = c, .most = 3};
    TRY(c, rig_open(&r));
    for (int i = 0; i < 2; i++) { /* a loop that was stopped can be run again */
        r.count = 0;
        TRY(c, bk_loop_soon(r.loop, stop_it, &r));
        TRY(c, bk_loop_run(r.loop));
        EXPECT(c, r.count == 3);
    }
    bk_loop_stop(r.loop); /* before a run: one turn, which waits for nothing */
    TRY(c, bk_loop_soon(r.loop, count_one, &r));
    TRY(c, bk_loop_run(r.loop));
    EXPECT(c, r.count == 4);
out:
    rig_close(&r);
}

static void call_the_loop(void *arg) {
    rig *r = arg;
    MUST(r->c, bk_loop_turn(r->loop, 0) == -EBUSY);
    MUST(r->c, bk_loop_run(r->loop) == -EBUSY);
    MUST(r->c, bk_loop_free(r->loop) == -EBUSY);
    r->count++;
}

static void call_from_a_watch(void *arg, unsigned events) {
    (void)events;
    call_the_loop(arg);
}

/* From every kind of callback. */
static void not_from_within(bk_conform_case *c) {
    rig r = {.c = c};
    bk_timer t = {0};
    int p[2] = {-1, -1};
    TRY(c, rig_open(&r));
    TRY(c, bk_loop_soon(r.loop, call_the_loop, &r));
    if (!until_count(&r, 1))
        goto out;
    TRY(c, bk_timer_start(r.loop, &t, 1, call_the_loop, &r));
    if (!until_count(&r, 2))
        goto out;
    TRY(c, bk_loop_post(r.loop, call_the_loop, &r));
    if (!until_count(&r, 3))
        goto out;
    TRY(c, c->scaffold->socketpair(c->scaffold, p));
    TRY(c, bk_watch_set(r.loop, p[0], BK_WRITE, call_from_a_watch, &r));
    (void)until_count(&r, 4);
out:
    if (r.loop != NULL)
        bk_watch_forget(r.loop, p[0]);
    conform_close(c, &p[0]);
    conform_close(c, &p[1]);
    rig_close(&r);
}

/* What was never called does not leak, and its owner's timer is the owner's. */
static void freed_with_work(bk_conform_case *c) {
    rig r = {.c = c};
    bk_timer t = {0};
    TRY(c, rig_open(&r));
    TRY(c, bk_loop_soon(r.loop, count_one, &r));
    TRY(c, bk_loop_post(r.loop, count_one, &r));
    TRY(c, bk_timer_start(r.loop, &t, INT64_MAX, count_one, &r));
out:
    rig_close(&r);
    EXPECT(c, r.count <= 2);
}

/* ---- Threads ---- */

enum { THREADS = 4, POSTS = 200 };

typedef struct poster {
    rig *r;
    pthread_t thread;
    pthread_t owner;
    int posts, next; /* `next`: what is to come of this thread */
    atomic_int code;
    struct posted {
        struct poster *p;
        int number;
    } items[POSTS];
} poster;

static void posted(void *arg) {
    struct posted *item = arg;
    poster *p = item->p;
    MUST(p->r->c, pthread_equal(pthread_self(), p->owner));
    MUST(p->r->c, item->number == p->next);
    p->next++;
    p->r->count++;
}

static void *post_all(void *arg) {
    poster *p = arg;
    for (int i = 0; i < p->posts && atomic_load(&p->code) == 0; i++) {
        p->items[i] = (struct posted){p, i};
        atomic_store(&p->code, bk_loop_post(p->r->loop, posted, &p->items[i]));
    }
    if (atomic_load(&p->code) < 0)
        bk_loop_wake(p->r->loop); /* to see that */
    return NULL;
}

/* Each thread's calls keep their order, and none is lost, whatever the loop is just at. */
static void post_from_threads(bk_conform_case *c) {
    static poster posters[THREADS];
    rig r = {.c = c};
    int started = 0, posts = c->quick ? 5 : POSTS;
    TRY(c, rig_open(&r));
    for (; started < THREADS; started++) {
        poster *p = &posters[started];
        *p = (poster){.r = &r, .owner = pthread_self(), .posts = posts};
        TRY(c, -pthread_create(&p->thread, NULL, post_all, p));
    }
    while (r.count < THREADS * posts) {
        bool stop = !conform_turn(c, r.loop);
        for (int i = 0; i < THREADS; i++) /* a fault may have struck there */
            stop |= atomic_load(&posters[i].code) < 0;
        if (stop)
            break;
    }
out:
    for (int i = 0; i < started; i++) {
        pthread_join(posters[i].thread, NULL);
        (void)FAILED(c, atomic_load(&posters[i].code));
    }
    if (!conform_excused(c))
        EXPECT(c, r.count == THREADS * posts);
    rig_close(&r);
}

static void post_again(void *arg) {
    rig *r = arg;
    if (++r->count < r->most)
        r->wrong |= FAILED(r->c, bk_loop_post(r->loop, post_again, r));
}

static void post_within_post(bk_conform_case *c) {
    rig r = {.c = c, .most = 50};
    TRY(c, rig_open(&r));
    TRY(c, bk_loop_post(r.loop, post_again, &r));
    while (r.count < 50 && !r.wrong)
        if (!conform_turn(c, r.loop))
            break;
    if (!r.wrong)
        conform_idle(c, r.loop);
out:
    rig_close(&r);
}

/* ---- Wakes and signals ---- */

static bk_loop *signal_loop;

static void wake_handler(int signum) {
    (void)signum;
    bk_loop_wake(signal_loop);
}

/* The wait it comes before, and the wait it comes in. Before: a handler has run already. */
static void wake_from_a_handler(bk_conform_case *c) {
    rig r = {.c = c};
    struct sigaction action = {.sa_handler = wake_handler}, before;
    TRY(c, rig_open(&r));
    signal_loop = r.loop;
    sigaction(SIGUSR2, &action, &before);
    int64_t began = conform_clock();
    raise(SIGUSR2);
    EXPECT(c, bk_loop_deadline(r.loop) == 0);
    int code = bk_loop_turn(r.loop, conform_patience(c));
    sigaction(SIGUSR2, &before, NULL);
    TRY(c, code);
    conform_alarms(wake_handler);
    code = bk_loop_turn(r.loop, conform_patience(c));
    conform_alarms_end();
    TRY(c, code);
    EXPECT(c, conform_clock() - began < conform_patience(c));
    conform_idle(c, r.loop);
out:
    rig_close(&r);
}

static void earlier_handler(int signum) {
    (void)signum;
}

static bool is_earlier(int signum) {
    struct sigaction now;
    sigaction(signum, NULL, &now);
    return now.sa_handler == earlier_handler;
}

static void signals(bk_conform_case *c) {
    rig r = {.c = c}, other = {.c = c};
    struct sigaction action = {.sa_handler = earlier_handler}, before;
    sigaction(SIGUSR1, &action, &before);
    TRY(c, rig_open(&r));
    TRY(c, rig_open(&other));
    TRY(c, bk_signal_set(r.loop, SIGUSR1, count_one, &r));
    EXPECT(c, !is_earlier(SIGUSR1));
    int code = bk_signal_set(other.loop, SIGUSR1, count_one, &other);
    if (code != -EBUSY)
        TRY(c, code);
    EXPECT(c, code == -EBUSY);
    for (int i = 1; i <= 3; i++) {
        raise(SIGUSR1);
        if (!until_count(&r, i))
            goto out;
        EXPECT(c, r.count == i);
    }
    conform_idle(c, r.loop);
    TRY(c, bk_signal_set(r.loop, SIGUSR1, NULL, NULL));
    EXPECT(c, is_earlier(SIGUSR1));
    raise(SIGUSR1);
    TRY(c, bk_loop_turn(r.loop, 0));
    EXPECT(c, r.count == 3);
    TRY(c, bk_signal_set(other.loop, SIGUSR1, count_one, &other)); /* it is free again */
    raise(SIGUSR1);
    if (until_count(&other, 1))
        EXPECT(c, other.count == 1 && r.count == 3);
out:
    rig_close(&other); /* gives it back too */
    rig_close(&r);
    MUST(c, is_earlier(SIGUSR1));
    sigaction(SIGUSR1, &before, NULL);
}

static void many_signals(bk_conform_case *c) {
    rig a = {.c = c}, b = {.c = c};
    TRY(c, rig_open(&a));
    b.loop = a.loop;
    TRY(c, bk_signal_set(a.loop, SIGUSR1, count_one, &a));
    TRY(c, bk_signal_set(a.loop, SIGUSR2, count_one, &b));
    TRY(c, bk_signal_set(a.loop, SIGUSR2, count_one, &b)); /* again replaces */
    raise(SIGUSR1);
    raise(SIGUSR2);
    if (until_count(&a, 1) && until_count(&b, 1))
        EXPECT(c, a.count == 1 && b.count == 1);
out:
    rig_close(&a);
}

/* ---- Workers ---- */

typedef struct job {
    bk_work work;
    rig *r;
    pthread_t owner;
    atomic_int ran;
    int done;
    struct job *next;
} job;

static void job_run(bk_work *work) {
    job *j = (job *)work;
    MUST(j->r->c, !pthread_equal(pthread_self(), j->owner));
    atomic_fetch_add(&j->ran, 1);
}

static void job_done(bk_work *work) {
    job *j = (job *)work;
    MUST(j->r->c, pthread_equal(pthread_self(), j->owner));
    MUST(j->r->c, atomic_load(&j->ran) == 1);
    j->done++;
    j->r->count++;
    if (j->next != NULL && !FAILED(j->r->c, bk_work_start(j->r->loop, &j->next->work)))
        j->next = NULL;
}

static job job_new(rig *r) {
    return (job){.work = {.run = job_run, .done = job_done}, .r = r, .owner = pthread_self()};
}

/* More than there are threads: each is run once, elsewhere, and then done once, here. */
static void workers(bk_conform_case *c) {
    enum { JOBS = 20 };
    job jobs[JOBS];
    rig r = {.c = c};
    int started = 0;
    TRY(c, rig_open(&r));
    for (; started < JOBS; started++) {
        jobs[started] = job_new(&r);
        TRY(c, bk_work_start(r.loop, &jobs[started].work));
    }
    (void)until_count(&r, JOBS);
out:
    rig_close(&r); /* what was started is finished and told, however the case went */
    for (int i = 0; i < started; i++)
        MUST(c, atomic_load(&jobs[i].ran) == 1 && jobs[i].done == 1);
}

static void work_from_done(bk_conform_case *c) {
    rig r = {.c = c};
    job first = job_new(&r), second = job_new(&r);
    first.next = &second;
    TRY(c, rig_open(&r));
    TRY(c, bk_work_start(r.loop, &first.work));
    (void)until_count(&r, 2);
    if (!conform_excused(c))
        EXPECT(c, second.done == 1);
out:
    rig_close(&r);
    MUST(c, first.done <= 1 && second.done <= 1);
}

/* Freed while work is under way, and while done() starts more of it. */
static void freed_with_workers(bk_conform_case *c) {
    enum { JOBS = 12 };
    job jobs[JOBS], last;
    rig r = {.c = c};
    int started = 0;
    TRY(c, rig_open(&r));
    last = job_new(&r);
    for (; started < JOBS; started++) {
        jobs[started] = job_new(&r);
        jobs[started].next = started == 3 ? &last : NULL;
        TRY(c, bk_work_start(r.loop, &jobs[started].work));
    }
out:
    rig_close(&r);
    for (int i = 0; i < started; i++)
        MUST(c, atomic_load(&jobs[i].ran) == 1 && jobs[i].done == 1);
    if (started > 3 && jobs[3].next == NULL)
        MUST(c, last.done == 1);
}

/* ---- Driven by another loop ---- */

/* What a foreign loop does: watch our descriptor, mind our deadline, let us turn without waiting.
   Without a descriptor to watch it can only ask now and again. */
static bool foreign_turn(rig *r) {
    int fd = bk_loop_fd(r->loop);
    int64_t left = bk_loop_deadline(r->loop);
    struct pollfd p = {.fd = fd, .events = POLLIN};
    if (conform_excused(r->c) || conform_hangs(r->c))
        return false;
    int64_t most = fd >= 0 ? conform_patience(r->c) / CONFORM_MS : 1;
    int64_t ms = left < 0 ? most : (left + CONFORM_MS - 1) / CONFORM_MS;
    int ready = poll(&p, fd >= 0 ? 1 : 0, (int)(ms < most ? ms : most));
    MUST(r->c, !(ready == 0 && fd >= 0 && left < 0)); /* there is something to do: tell us */
    return !FAILED(r->c, bk_loop_turn(r->loop, 0));
}

static void read_it(void *arg, unsigned events) {
    rig *r = arg;
    (void)events;
    r->count++;
    r->wrong = true; /* it was this one that was called */
}

static void *post_one(void *arg) {
    rig *r = arg;
    int code = bk_loop_post(r->loop, count_one, r);
    atomic_store(&r->thread_code, code);
    if (code < 0)
        bk_loop_wake(r->loop); /* to see that */
    return NULL;
}

static void driven_from_outside(bk_conform_case *c) {
    rig r = {.c = c};
    bk_timer t = {0};
    pthread_t thread;
    int p[2] = {-1, -1};
    TRY(c, rig_open(&r));
    EXPECT(c, bk_loop_fd(r.loop) >= 0 || bk_loop_fd(r.loop) == -ENOTSUP);
    TRY(c, bk_loop_soon(r.loop, count_one, &r));
    while (r.count < 1)
        if (!foreign_turn(&r))
            goto out;
    TRY(c, bk_timer_start(r.loop, &t, conform_clock() + CONFORM_MS, count_one, &r));
    while (r.count < 2)
        if (!foreign_turn(&r))
            goto out;
    TRY(c, -pthread_create(&thread, NULL, post_one, &r));
    while (r.count < 3 && atomic_load(&r.thread_code) == 0)
        if (!foreign_turn(&r))
            break;
    pthread_join(thread, NULL);
    TRY(c, atomic_load(&r.thread_code));
    if (r.count < 3)
        goto out;
    /* Set between turns: the foreign loop must not sleep on a notifier that was not told. */
    TRY(c, c->scaffold->socketpair(c->scaffold, p));
    TRY(c, conform_put(c, p[1], "x"));
    TRY(c, bk_watch_set(r.loop, p[0], BK_READ, read_it, &r));
    while (!r.wrong)
        if (!foreign_turn(&r))
            break;
out:
    if (r.loop != NULL) {
        bk_timer_stop(r.loop, &t);
        bk_watch_forget(r.loop, p[0]);
    }
    conform_close(c, &p[0]);
    conform_close(c, &p[1]);
    rig_close(&r);
}

/* ---- Always something to do ---- */

typedef struct busy {
    rig r;
    bk_timer timer;
    int fd;
    int told; /* bits: who has had their turn */
} busy;

static void busy_told(busy *b, int who) {
    b->told |= who;
    if (b->told == 7)
        bk_loop_stop(b->r.loop);
}

static void busy_ready(void *arg, unsigned events) {
    busy *b = arg;
    (void)events;
    bk_watch_forget(b->r.loop, b->fd);
    busy_told(b, 1);
}

static void busy_timer(void *arg) {
    busy_told(arg, 2);
}

static void busy_posted(void *arg) {
    busy_told(arg, 4);
}

static void busy_soon(void *arg) {
    busy *b = arg;
    bk_conform_case *c = b->r.c;
    b->r.count++;
    if (b->r.count == 50) /* when it has got used to being busy */
        (void)FAILED(c, bk_loop_post(b->r.loop, busy_posted, b));
    if (b->r.count == 50)
        (void)FAILED(c, conform_put(c, b->r.most, "x"));
    if (conform_excused(c) || conform_hangs(c) || c->failed > 0 ||
        FAILED(c, bk_loop_soon(b->r.loop, busy_soon, b)))
        bk_loop_stop(b->r.loop);
}

/* A ready queue that is never empty keeps nobody else waiting for ever. */
static void busy_starves_nobody(bk_conform_case *c) {
    busy b = {.r = {.c = c}};
    int p[2] = {-1, -1};
    TRY(c, rig_open(&b.r));
    TRY(c, c->scaffold->socketpair(c->scaffold, p));
    b.fd = p[0];
    b.r.most = p[1]; /* `most` holds the descriptor */
    TRY(c, bk_watch_set(b.r.loop, p[0], BK_READ, busy_ready, &b));
    TRY(c, bk_timer_start(b.r.loop, &b.timer, conform_clock() + CONFORM_MS, busy_timer, &b));
    TRY(c, bk_loop_soon(b.r.loop, busy_soon, &b));
    TRY(c, bk_loop_run(b.r.loop));
    EXPECT(c, b.told == 7);
out:
    if (b.r.loop != NULL)
        bk_watch_forget(b.r.loop, p[0]);
    conform_close(c, &p[0]);
    conform_close(c, &p[1]);
    rig_close(&b.r);
}

/* ---- Hooks ---- */

typedef struct hooked {
    int before, after, interrupted;
} hooked;

static void hook_before(void *arg) {
    ((hooked *)arg)->before++;
}

static void hook_after(void *arg) {
    ((hooked *)arg)->after++;
}

static void hook_interrupted(void *arg) {
    ((hooked *)arg)->interrupted++;
}

static void ignore_log(void *arg, int code, const char *text) {
    (void)arg, (void)code, (void)text;
}

/* Around the waits that may block and no others, whatever comes of them. */
static void hooks(bk_conform_case *c) {
    static const bk_loop_hooks table = {.size = sizeof table,
                                        .before_wait = hook_before,
                                        .after_wait = hook_after,
                                        .interrupted = hook_interrupted};
    hooked h = {0};
    rig r = {.c = c};
    bk_loop_options options = {.size = sizeof options,
                               .notifier_ops = c->subject,
                               .os = c->os,
                               .hooks = &table,
                               .arg = &h,
                               .log = ignore_log};
    TRY(c, bk_loop_new(&options, &r.loop));
    TRY(c, bk_loop_turn(r.loop, 0));
    TRY(c, bk_loop_soon(r.loop, count_one, &r));
    TRY(c, bk_loop_turn(r.loop, -1));
    EXPECT(c, h.before == 0 && h.after == 0);
    TRY(c, bk_loop_turn(r.loop, 1000));
    EXPECT(c, h.before == 1 && h.after == 1);
    conform_alarms(NULL);
    int code = 0;
    while (h.interrupted == 0 && code >= 0 && !conform_hangs(c))
        code = bk_loop_turn(r.loop, conform_patience(c));
    conform_alarms_end();
    TRY(c, code);
    EXPECT(c, h.interrupted >= 1);
out:
    MUST(c, h.before == h.after);
    rig_close(&r);
}

/* ---- Fork ---- */

static void fork_child(rig *r, int p[2]) {
    bk_conform_case *c = r->c;
    int count = r->count;
    TRY(c, bk_loop_forked(r->loop));
    conform_idle(c, r->loop);
    TRY(c, conform_put(c, p[1], "x"));
    if (!until_count(r, count + 1)) /* what was watched before the fork is still */
        goto out;
    bk_watch_forget(r->loop, p[0]);
    TRY(c, bk_loop_post(r->loop, count_one, r));
    if (!until_count(r, r->count + 1))
        goto out;
    conform_idle(c, r->loop);
out:
    conform_child_ends(c);
}

static void read_and_count(void *arg, unsigned events) {
    rig *r = arg;
    (void)events;
    r->count++;
    (void)conform_drain(r->c, r->most); /* `most` holds the descriptor */
}

static void fork_goes_on(bk_conform_case *c) {
    rig r = {.c = c};
    int p[2] = {-1, -1};
    TRY(c, rig_open(&r));
    TRY(c, c->scaffold->socketpair(c->scaffold, p));
    r.most = p[0];
    TRY(c, bk_watch_set(r.loop, p[0], BK_READ, read_and_count, &r));
    TRY(c, bk_loop_turn(r.loop, 0));
    fflush(stdout);
    int pid = fork();
    if (pid == 0)
        fork_child(&r, p);
    conform_child_wait(c, pid);
    if (conform_excused(c))
        goto out;
    TRY(c, conform_put(c, p[1], "x")); /* the child has forgotten it; we have not */
    if (!until_count(&r, 1))
        goto out;
    TRY(c, bk_loop_post(r.loop, count_one, &r));
    (void)until_count(&r, 2);
out:
    if (r.loop != NULL)
        bk_watch_forget(r.loop, p[0]);
    conform_close(c, &p[0]);
    conform_close(c, &p[1]);
    rig_close(&r);
}

int bk_conform_loop(const bk_notifier_ops *ops, bk_os *os, bk_conform_report *report) {
    static const conform_entry cases[] = {
        {"ready_order", ready_order, 0},
        {"soon_within_soon", soon_within_soon, 0},
        {"grows_while_called", grows_while_called, 0},
        {"timer_order", timer_order, 0},
        {"timer_busy", timer_busy, 0},
        {"timer_stops_timer", timer_stops_timer, 0},
        {"timer_starts_itself", timer_starts_itself, 0},
        {"timer_ends_the_wait", timer_ends_the_wait, 0},
        {"turn_times_out", turn_times_out, 0},
        {"run_and_stop", run_and_stop, 0},
        {"not_from_within", not_from_within, 0},
        {"freed_with_work", freed_with_work, 0},
        {"post_from_threads", post_from_threads, 0},
        {"post_within_post", post_within_post, 0},
        {"wake_from_a_handler", wake_from_a_handler, 0},
        {"signals", signals, 0},
        {"many_signals", many_signals, 0},
        {"workers", workers, 0},
        {"work_from_done", work_from_done, 0},
        {"freed_with_workers", freed_with_workers, 0},
        {"driven_from_outside", driven_from_outside, 0},
        {"busy_starves_nobody", busy_starves_nobody, 0},
        {"hooks", hooks, 0},
        {"fork_goes_on", fork_goes_on, 0},
    };
    return conform_suite("loop", cases, (int)(sizeof cases / sizeof *cases), ops, os, report);
}
