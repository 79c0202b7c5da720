/*
 * test_loop.c: the loop over each built-in notifier (tests/conformance/loop.c), and what a suite
 * for others does not ask: how notifiers are chosen, arguments, timers against a model, posts of
 * many threads, memory.
 */
#include "core/loop/loop.h"
#include "tests/c/check.h"
#include "tests/c/support.h"

#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <unistd.h>

static bk_loop *new_loop(void) {
    bk_loop_options options = {.size = sizeof options, .os = faults_os(support_faults())};
    bk_loop *loop = NULL;
    CHECK_INT(bk_loop_new(&options, &loop), 0);
    return loop;
}

static void free_loop(bk_loop *loop) {
    faults_report r;
    CHECK_INT(bk_loop_free(loop), 0);
    CHECK_INT(faults_leaks(support_faults(), &r), 0);
    faults_forget(support_faults());
}

static void over(const char *notifier) {
    const bk_notifier_ops *ops = support_notifier_named(notifier);
    if (ops == NULL)
        check_skip("this system does not have it");
    else
        CHECK_INT(support_conforms(support_loop, ops, NULL), 0);
}

static void over_epoll(void) {
    over("epoll");
}

static void over_poll(void) {
    over("poll");
}

static void over_select(void) {
    over("select");
}

/* ---- Which notifier ---- */

static void expect_notifier(const char *option, const char *environment, const char *want) {
    bk_loop_options options = {.size = sizeof options, .notifier = option};
    bk_loop *loop = NULL;
    if (environment != NULL)
        setenv("BECKET_NOTIFIER", environment, 1);
    else
        unsetenv("BECKET_NOTIFIER");
    int code = bk_loop_new(&options, &loop);
    unsetenv("BECKET_NOTIFIER");
    if (want == NULL) {
        CHECK_INT(code, BK_ENOTIFIER);
        CHECK(loop == NULL);
        return;
    }
    CHECK_INT(code, 0);
    if (code == 0) {
        CHECK_STR(bk_loop_notifier(loop), want);
        CHECK_INT(bk_loop_free(loop), 0);
    }
}

static void notifier_is_chosen(void) {
    const char *best = bk_notifiers()[0]->name;
    expect_notifier(NULL, NULL, best);
    expect_notifier(NULL, "", best);
    expect_notifier("poll", NULL, "poll");
    expect_notifier("select", NULL, "select");
    expect_notifier(NULL, "select", "select");
    expect_notifier("poll", "select", "poll"); /* who says it in the program means it */
    expect_notifier("poll", "nonsense", "poll");
    expect_notifier("nonsense", NULL, NULL);
    expect_notifier(NULL, "nonsense", NULL);
    expect_notifier(NULL, "pol", NULL);
}

static void own_notifier_goes_first(void) {
    bk_notifier_ops own = *support_notifier_named("poll");
    own.name = "own";
    bk_loop_options options = {.size = sizeof options, .notifier = "select", .notifier_ops = &own};
    bk_loop *loop = NULL;
    setenv("BECKET_NOTIFIER", "select", 1);
    CHECK_INT(bk_loop_new(&options, &loop), 0);
    unsetenv("BECKET_NOTIFIER");
    CHECK_STR(bk_loop_notifier(loop), "own");
    CHECK_INT(bk_loop_free(loop), 0);
}

/* Options of an older header: what lies beyond their size is not looked at. */
static void older_options(void) {
    bk_loop_options options;
    bk_loop *loop = NULL;
    memset(&options, 0xee, sizeof options);
    options.size = offsetof(bk_loop_options, notifier_ops);
    options.notifier = "poll";
    CHECK_INT(bk_loop_new(&options, &loop), 0);
    CHECK_STR(bk_loop_notifier(loop), "poll");
    CHECK(bk_loop_os(loop) == bk_os_default());
    CHECK_INT(bk_loop_free(loop), 0);
    CHECK_INT(bk_loop_new(NULL, &loop), 0);
    CHECK_INT(bk_loop_free(loop), 0);
}

/* ---- Arguments ---- */

static void nothing(void *arg) {
    (void)arg;
}

static void nothing_ready(void *arg, unsigned events) {
    (void)arg, (void)events;
}

static void no_work(bk_work *work) {
    (void)work;
}

static void bad_arguments(void) {
    bk_loop *loop = new_loop();
    bk_loop_options none = {.size = 0};
    bk_timer timer = {0};
    bk_work no_run = {.done = no_work}, no_done = {.run = no_work};
    CHECK_INT(bk_loop_new(&none, &loop), -EINVAL);
    CHECK_INT(bk_loop_new(NULL, NULL), -EINVAL);
    CHECK_INT(bk_loop_run(NULL), -EINVAL);
    CHECK_INT(bk_loop_turn(NULL, 0), -EINVAL);
    CHECK_INT(bk_loop_fd(NULL), -EINVAL);
    CHECK_INT(bk_loop_forked(NULL), -EINVAL);
    CHECK_INT(bk_loop_soon(NULL, nothing, NULL), -EINVAL);
    CHECK_INT(bk_loop_soon(loop, NULL, NULL), -EINVAL);
    CHECK_INT(bk_loop_post(NULL, nothing, NULL), -EINVAL);
    CHECK_INT(bk_loop_post(loop, NULL, NULL), -EINVAL);
    CHECK_INT(bk_timer_start(NULL, &timer, 0, nothing, NULL), -EINVAL);
    CHECK_INT(bk_timer_start(loop, NULL, 0, nothing, NULL), -EINVAL);
    CHECK_INT(bk_timer_start(loop, &timer, 0, NULL, NULL), -EINVAL);
    CHECK_INT(bk_timer_start(loop, &timer, -1, nothing, NULL), -EINVAL);
    CHECK_INT(bk_watch_set(NULL, 0, BK_READ, nothing_ready, NULL), -EINVAL);
    CHECK_INT(bk_watch_set(loop, 0, 0, nothing_ready, NULL), -EINVAL);
    CHECK_INT(bk_watch_set(loop, 0, BK_READ | BK_WRITE, nothing_ready, NULL), -EINVAL);
    CHECK_INT(bk_watch_set(loop, 0, BK_HANGUP, nothing_ready, NULL), -EINVAL);
    CHECK(bk_watch_set(loop, -1, BK_READ, nothing_ready, NULL) < 0);
    CHECK(bk_watch_set(loop, INT32_MAX, BK_READ, nothing_ready, NULL) < 0);
    CHECK_INT(bk_watch_apply(NULL, 0), -EINVAL);
    CHECK(bk_watch_apply(loop, -1) < 0);
    CHECK_INT(bk_signal_set(NULL, SIGUSR1, nothing, NULL), -EINVAL);
    CHECK_INT(bk_signal_set(loop, 0, nothing, NULL), -EINVAL);
    CHECK_INT(bk_signal_set(loop, -1, nothing, NULL), -EINVAL);
    CHECK_INT(bk_signal_set(loop, 1000, nothing, NULL), -EINVAL);
    CHECK_INT(bk_signal_set(loop, SIGKILL, nothing, NULL), -EINVAL); /* the system says so */
    CHECK_INT(bk_work_start(NULL, &no_run), -EINVAL);
    CHECK_INT(bk_work_start(loop, NULL), -EINVAL);
    CHECK_INT(bk_work_start(loop, &no_run), -EINVAL);
    CHECK_INT(bk_work_start(loop, &no_done), -EINVAL);
    free_loop(loop);
}

/* Those without a result take a NULL, and what they do not know, without harm. */
static void harmless(void) {
    bk_loop *loop = new_loop();
    bk_timer timer = {0};
    bk_loop_stop(NULL);
    bk_loop_wake(NULL);
    bk_timer_stop(NULL, &timer);
    bk_timer_stop(loop, NULL);
    bk_watch_forget(NULL, 0);
    bk_watch_forget(loop, -1);
    bk_watch_forget(loop, 100000);
    CHECK_INT(bk_watch_set(loop, 100000, BK_READ, NULL, NULL), 0);
    CHECK_INT(bk_signal_set(loop, SIGUSR1, NULL, NULL), 0); /* was never ours */
    CHECK_INT(bk_loop_turn(loop, 0), 0);
    free_loop(loop);
}

/* ---- Timers, on a clock of our own ---- */

enum { MODEL_TIMERS = 300, MODEL_STEPS = 30000 };

static uint32_t chance_state;

static uint32_t chance(uint32_t below) {
    chance_state = chance_state * 1664525u + 1013904223u;
    return (chance_state >> 8) % below;
}

static struct {
    bk_loop *loop;
    bk_timer timers[MODEL_TIMERS];
    /* The model: what runs, until when, started how late. */
    struct {
        bool runs;
        int64_t when;
        uint64_t order;
    } model[MODEL_TIMERS];
    uint64_t order;
    int64_t last_when;
    uint64_t last_order;
    int fired;
} m;

static int model_index(void *arg) {
    return (int)((bk_timer *)arg - m.timers);
}

static void model_change(int64_t now);

static void model_fired(void *arg) {
    int i = model_index(arg);
    CHECK(m.model[i].runs);
    CHECK(m.model[i].when <= bk_loop_now(m.loop));
    CHECK(m.model[i].when > m.last_when ||
          (m.model[i].when == m.last_when && m.model[i].order > m.last_order));
    m.last_when = m.model[i].when;
    m.last_order = m.model[i].order;
    m.model[i].runs = false;
    m.fired++;
    if (chance(3) == 0) /* in the midst of firing */
        model_change(bk_loop_now(m.loop) + 1);
}

/* Start one or stop one, on both sides; many have equal times. */
static void model_change(int64_t now) {
    int i = (int)chance(MODEL_TIMERS);
    if (m.model[i].runs) {
        if (chance(4) != 0)
            CHECK_INT(bk_timer_start(m.loop, &m.timers[i], now, model_fired, &m.timers[i]), -EBUSY);
        bk_timer_stop(m.loop, &m.timers[i]);
        m.model[i].runs = false;
        return;
    }
    int64_t when = now + chance(50) * 1000;
    CHECK_INT(bk_timer_start(m.loop, &m.timers[i], when, model_fired, &m.timers[i]), 0);
    m.model[i].runs = true;
    m.model[i].when = when;
    m.model[i].order = m.order++;
}

/* Nearly all at once, which leaves more gaps than timers. */
static void model_stop_most(void) {
    for (int i = 0; i < MODEL_TIMERS; i++)
        if (m.model[i].runs && chance(5) != 0) {
            bk_timer_stop(m.loop, &m.timers[i]);
            m.model[i].runs = false;
        }
}

/* Everything that was due before the turn began has fired in it. */
static void model_turn(void) {
    m.last_when = -1;
    m.last_order = 0;
    CHECK_INT(bk_loop_turn(m.loop, 0), 0);
    for (int i = 0; i < MODEL_TIMERS; i++)
        if (m.model[i].runs)
            CHECK(m.model[i].when > bk_loop_now(m.loop));
}

static void timers_follow_the_model(void) {
    memset(&m, 0, sizeof m);
    chance_state = 20040607;
    m.loop = new_loop();
    for (int step = 0; step < MODEL_STEPS && check_failures == 0; step++) {
        model_change(bk_loop_now(m.loop) + 1);
        if (chance(700) == 0)
            model_stop_most();
        if (chance(20) == 0) {
            faults_pass_time(support_faults(), chance(30000));
            model_turn();
        }
    }
    CHECK(m.fired > MODEL_STEPS / 20);
    faults_pass_time(support_faults(), INT64_C(1000000000));
    model_turn();
    free_loop(m.loop);
}

/* Time-outs of connections that live on: nearly every timer is stopped, and few ever fire. */
static void stopped_timers_cost_no_memory(void) {
    enum { LIVE = 100, STEPS = 200000 };
    static bk_timer timers[LIVE];
    memset(timers, 0, sizeof timers);
    bk_loop *loop = new_loop();
    int64_t base = bk_loop_now(loop) + INT64_C(3600000000000);
    size_t peak = 0;
    for (int i = 0; i < STEPS; i++) {
        bk_timer *t = &timers[i % LIVE];
        bk_timer_stop(loop, t);
        CHECK_INT(bk_timer_start(loop, t, base + i, nothing, NULL), 0);
        if (i == 10 * LIVE)
            peak = atomic_load(&support_faults()->bytes);
    }
    CHECK(atomic_load(&support_faults()->bytes) <= peak * 2);
    for (int i = 0; i < LIVE; i++)
        bk_timer_stop(loop, &timers[i]);
    CHECK_INT(bk_loop_turn(loop, 0), 0);
    CHECK_INT(bk_loop_deadline(loop), -1);
    free_loop(loop);
}

/* ---- Memory of the rest ---- */

static void no_watches_leak(void) {
    bk_loop *loop = new_loop();
    bk_os *os = faults_quiet(support_faults());
    size_t before = 0;
    for (int i = 0; i < 5000; i++) {
        int p[2];
        CHECK_INT(os->socketpair(os, p), 0);
        CHECK_INT(bk_watch_set(loop, p[0], BK_READ, nothing_ready, NULL), 0);
        CHECK_INT(bk_loop_turn(loop, 0), 0);
        bk_watch_forget(loop, p[0]);
        os->close(os, p[0]);
        os->close(os, p[1]);
        if (i == 10)
            before = atomic_load(&support_faults()->bytes);
    }
    CHECK_INT(atomic_load(&support_faults()->bytes), before);
    free_loop(loop);
}

/* Forgotten within the turn, over and over, without the loop ever coming to look. */
static void changes_do_not_pile_up(void) {
    bk_loop *loop = new_loop();
    size_t before = 0;
    int p[2];
    bk_os *os = faults_quiet(support_faults());
    CHECK_INT(os->socketpair(os, p), 0);
    for (int i = 0; i < 100000; i++) {
        CHECK_INT(bk_watch_set(loop, p[0], BK_READ, nothing_ready, NULL), 0);
        bk_watch_forget(loop, p[0]);
        if (i == 10)
            before = atomic_load(&support_faults()->bytes);
    }
    CHECK_INT(atomic_load(&support_faults()->bytes), before);
    CHECK_INT(bk_loop_turn(loop, 0), 0);
    os->close(os, p[0]);
    os->close(os, p[1]);
    free_loop(loop);
}

/* ---- Posts ---- */

static char said[16];

static void say(void *arg) {
    strncat(said, arg, sizeof said - strlen(said) - 1);
}

static void say_too(void *arg) {
    say(arg);
}

static void posts_of_one_function(void) {
    bk_loop *loop = new_loop();
    *said = '\0';
    CHECK_INT(bk_loop_post(loop, say, "a"), 0);
    CHECK_INT(bk_loop_post(loop, say_too, "1"), 0);
    CHECK_INT(bk_loop_post(loop, say, "b"), 0);
    bk_posts_call(loop, nothing);
    CHECK_STR(said, "");
    bk_posts_call(loop, say);
    CHECK_STR(said, "ab");
    CHECK_INT(bk_loop_post(loop, say_too, "2"), 0);
    CHECK_INT(bk_loop_turn(loop, 0), 0);
    CHECK_STR(said, "ab12");
    CHECK_INT(bk_loop_post(loop, say, "c"), 0);
    bk_posts_call(loop, say);
    CHECK_INT(bk_loop_post(loop, say_too, "3"), 0); /* the end of the list has moved */
    CHECK_INT(bk_loop_turn(loop, 0), 0);
    CHECK_STR(said, "ab12c3");
    free_loop(loop);
}

enum { POSTERS = 4, POSTS = 2000 };

typedef struct posting {
    bk_loop *loop;
    bk_post kept;                   /* all threads post this one */
    int taken, at_once, kept_taken; /* on the loop's thread */
    atomic_int finished;            /* threads */
} posting;

static void count_taken(void *arg) {
    ((posting *)arg)->taken++;
}

static void count_at_once(void *arg) {
    ((posting *)arg)->at_once++;
}

static void count_kept(void *arg) {
    ((posting *)arg)->kept_taken++;
}

static void post_many(void *arg) {
    posting *p = arg;
    for (int i = 0; i < POSTS; i++) {
        CHECK_INT(bk_loop_post(p->loop, i % 2 ? count_taken : count_at_once, p), 0);
        bk_loop_post_kept(p->loop, &p->kept);
    }
    atomic_fetch_add(&p->finished, 1);
    bk_loop_wake(p->loop);
}

/* What is posted is called once, by a loop that would wait for ever for a wake that is lost. */
static void many_threads_post(void) {
    posting p = {.loop = new_loop()};
    bk_os *os = faults_os(support_faults());
    bk_thread threads[POSTERS];
    p.kept.call = (bk_call){count_kept, &p};
    for (int i = 0; i < POSTERS; i++)
        CHECK_INT(os->thread_start(os, post_many, &p, &threads[i]), 0);
    while (atomic_load(&p.finished) < POSTERS || p.taken < POSTERS * POSTS / 2) {
        bk_posts_call(p.loop, count_at_once);
        CHECK_INT(bk_loop_turn(p.loop, -1), 0);
    }
    for (int i = 0; i < POSTERS; i++)
        CHECK_INT(os->thread_join(os, threads[i]), 0);
    CHECK_INT(bk_loop_turn(p.loop, 0), 0);
    CHECK_INT(p.taken, POSTERS * POSTS / 2);
    CHECK_INT(p.at_once, POSTERS * POSTS / 2);
    CHECK(p.kept_taken > 0 && p.kept_taken <= POSTERS * POSTS);
    free_loop(p.loop);
}

int main(int argc, char **argv) {
    static const check_case cases[] = {
        CASE(over_epoll),
        CASE(over_poll),
        CASE(over_select),
        CASE(notifier_is_chosen),
        CASE(own_notifier_goes_first),
        CASE(older_options),
        CASE(bad_arguments),
        CASE(harmless),
        CASE(posts_of_one_function),
        CASE(many_threads_post),
        CASE(timers_follow_the_model),
        CASE(stopped_timers_cost_no_memory),
        CASE(no_watches_leak),
        CASE(changes_do_not_pile_up),
    };
    return check_main(argc, argv, cases, COUNT(cases));
}
