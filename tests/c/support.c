/*
 * support.c: running the suites over the fault injector, and making pairs of transports. See
 * support.h.
 */
#include "tests/c/support.h"

#include "core/stream/stream.h"

#include "tests/conformance/case.h"

#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static faults injector;
static pthread_once_t injector_once = PTHREAD_ONCE_INIT;

static void open_injector(void) {
    faults_open(&injector, NULL);
}

faults *support_faults(void) {
    pthread_once(&injector_once, open_injector);
    return &injector;
}

/* ---- Suites ---- */

int support_notifier(const void *ops, bk_os *os, bk_conform_report *report) {
    return bk_conform_notifier(ops, os, report);
}

int support_notifier_loop(const void *ops, bk_os *os, bk_conform_report *report) {
    return bk_conform_notifier_loop(ops, os, report);
}

int support_loop(const void *ops, bk_os *os, bk_conform_report *report) {
    return bk_conform_loop(ops, os, report);
}

int support_transport(const void *joint, bk_os *os, bk_conform_report *report) {
    return bk_conform_transport(joint, os, report);
}

static long fired(void *arg) {
    return faults_fired(arg);
}

/* Whether anything was left behind; says what, and forgets it, so that each case stands alone. */
static int tell_leaks(faults *f, const char *name) {
    faults_report r;
    int count = faults_leaks(f, &r);
    if (count == 0)
        return 0;
    printf("# %s leaves %ld blocks of %zu bytes, %ld threads, %ld descriptors", name, r.blocks,
           r.bytes, r.threads, r.descriptors);
    if (r.descriptors > 0)
        printf(" (%d, of %s)", r.first_descriptor, r.opened_by);
    if (r.stale > 0)
        printf("; %ld calls with a closed descriptor (%s)", r.stale, r.first_stale);
    printf("\n");
    faults_forget(f);
    return 1;
}

static void run_once(void *arg, bk_conform_case *c) {
    faults *f = arg;
    bk_conform_run(c);
    if (tell_leaks(f, bk_conform_name(c)) != 0)
        c->report->failed++;
}

int support_conforms(support_suite suite, const void *subject, const char *notifier) {
    faults *f = support_faults();
    bk_conform_report report = {.around = run_once, .arg = f, .scaffold = faults_quiet(f)};
    report.notifier = notifier;
    report.loud = getenv("BECKET_TEST_LOUD") != NULL;
    report.only = getenv("BECKET_TEST_ONLY");
    faults_disarm(f);
    suite(subject, faults_os(f), &report);
    return report.failed;
}

/* ---- Walking through the faults ---- */

typedef struct walk_state {
    support_walk *walk;
    faults *f;
} walk_state;

static long walk_fired(void *arg) {
    return fired(((walk_state *)arg)->f);
}

static bool is_error(faults_kind kind) {
    return kind == FAULTS_ERROR || kind == FAULTS_NO_MEMORY;
}

/* One run of a case with the n-th call failing; returns how many calls there were. */
static long walk_step(walk_state *s, bk_conform_case *c, long n) {
    const char *kind = faults_kind_name(s->walk->kind);
    char name[160];
    int before = c->report->failed;
    snprintf(name, sizeof name, "%s/%s, %s %ld", c->suite, bk_conform_name(c), kind, n);
    support_guard(60, name);
    faults_arm(s->f, s->walk->kind, n);
    bk_conform_run(c);
    long calls = faults_disarm(s->f);
    if (tell_leaks(s->f, name) != 0)
        c->report->failed++;
    if (c->report->failed > before)
        printf("# … %s: %s (of %ld calls)\n", name, faults_struck(s->f), calls);
    s->walk->runs++;
    return calls;
}

/* Each call in turn; where that would be more runs than allowed, the first half of them one by one,
   and the rest spread over the calls that are left. */
static void walk_case(void *arg, bk_conform_case *c) {
    walk_state *s = arg;
    support_walk *w = s->walk;
    int failed = c->report->failed;
    if (bk_conform_long(c))
        return;
    long calls = walk_step(s, c, LONG_MAX), head = calls <= w->most ? calls : w->most / 2;
    long step = calls <= w->most ? 1 : (calls - head) / (w->most - head) + 1;
    for (long n = 1; n <= calls && c->report->failed - failed < 3; n += n < head ? 1 : step) {
        (void)walk_step(s, c, n);
        w->sampled += n > head;
    }
    w->skipped += step == 1 ? 0 : calls - head - (calls - head) / step;
    if (!is_error(w->kind))
        (void)walk_step(s, c, 0); /* about every second call */
    support_guard(0, "");
}

int support_walks(support_suite suite, const void *subject, const char *notifier,
                  support_walk *walk) {
    walk_state state = {walk, support_faults()};
    bk_conform_report report = {.around = walk_case, .arg = &state, .faults = walk_fired};
    report.scaffold = faults_quiet(state.f);
    report.notifier = notifier;
    report.quick = true;
    report.invisible = !is_error(walk->kind);
    report.only = getenv("BECKET_TEST_ONLY");
    suite(subject, faults_os(state.f), &report);
    walk->excused += report.excused;
    return report.failed;
}

/* ---- Parts ---- */

const bk_notifier_ops *support_notifier_named(const char *name) {
    for (const bk_notifier_ops *const *all = bk_notifiers(); *all != NULL; all++)
        if (strcmp((*all)->name, name) == 0)
            return *all;
    return NULL;
}

static bk_os *quiet(void) {
    return faults_quiet(support_faults());
}

static void close_both(bk_os *os, const int fds[2]) {
    if (fds[0] >= 0)
        (void)os->close(os, fds[0]);
    if (fds[1] >= 0 && fds[1] != fds[0])
        (void)os->close(os, fds[1]);
}

/* The second transport failed: its descriptors are still ours, and the first is to go. */
static int give_up(bk_transport *first, const int rest[2], int code) {
    first->ops->close(first);
    close_both(quiet(), rest);
    return code;
}

static int join_sockets(bk_loop *loop, int fds[2], bk_transport *ret_pair[2]) {
    bk_transport *pair[2];
    int code = bk_socket_transport(loop, fds[0], &pair[0]);
    if (code < 0) {
        close_both(quiet(), fds);
        return code;
    }
    code = bk_socket_transport(loop, fds[1], &pair[1]);
    if (code < 0)
        return give_up(pair[0], (int[2]){fds[1], -1}, code);
    ret_pair[0] = pair[0];
    ret_pair[1] = pair[1];
    return 0;
}

/* A small buffer makes for many partial writes, and fills quickly. That of the receiver stays as it
   is: TCP with a tiny window waits for its timers. */
static void tighten(const int fds[2], const int *bytes) {
    for (int i = 0; i < 2 && bytes != NULL; i++)
        (void)quiet()->setsockopt(quiet(), fds[i], SOL_SOCKET, SO_SNDBUF, bytes, sizeof *bytes);
}

static int make_tcp(bk_loop *loop, void *arg, bk_transport *ret_pair[2]) {
    int fds[2], code = conform_tcp(quiet(), fds);
    if (code < 0)
        return code;
    tighten(fds, arg);
    return join_sockets(loop, fds, ret_pair);
}

static int make_unix(bk_loop *loop, void *arg, bk_transport *ret_pair[2]) {
    int fds[2], code = quiet()->socketpair(quiet(), fds);
    if (code < 0)
        return code;
    tighten(fds, arg);
    return join_sockets(loop, fds, ret_pair);
}

static void no_fds_come(bk_transport *t, const int *fds, int n) {
    (void)t;
    for (int i = 0; i < n; i++)
        (void)quiet()->close(quiet(), fds[i]);
}

/* A UNIX socket through which descriptors may come. */
static int make_passing(bk_loop *loop, void *arg, bk_transport *ret_pair[2]) {
    bk_transport *first;
    int fds[2], code = quiet()->socketpair(quiet(), fds);
    (void)arg;
    if (code < 0)
        return code;
    code = bk_passing_transport(loop, fds[0], no_fds_come, &first);
    if (code < 0) {
        close_both(quiet(), fds);
        return code;
    }
    code = bk_passing_transport(loop, fds[1], no_fds_come, &ret_pair[1]);
    if (code < 0)
        return give_up(first, (int[2]){fds[1], -1}, code);
    ret_pair[0] = first;
    return 0;
}

/* fds: what [0] reads, what [0] writes, what [1] reads, what [1] writes. */
static int join_fds(bk_loop *loop, int fds[4], bk_transport *ret_pair[2]) {
    bk_transport *pair[2];
    int code = bk_fd_transport(loop, fds[0], fds[1], 1, &pair[0]);
    if (code < 0) {
        close_both(quiet(), fds);
        close_both(quiet(), fds + 2);
        return code;
    }
    code = bk_fd_transport(loop, fds[2], fds[3], 1, &pair[1]);
    if (code < 0)
        return give_up(pair[0], fds + 2, code);
    ret_pair[0] = pair[0];
    ret_pair[1] = pair[1];
    return 0;
}

static int make_pipes(bk_loop *loop, void *arg, bk_transport *ret_pair[2]) {
    int a[2], b[2], code = quiet()->pipe(quiet(), a);
    (void)arg;
    if (code < 0)
        return code;
    code = quiet()->pipe(quiet(), b);
    if (code < 0) {
        close_both(quiet(), a);
        return code;
    }
    return join_fds(loop, (int[4]){a[0], b[1], b[0], a[1]}, ret_pair);
}

/* One descriptor for both directions, as `fd:N` has it. */
static int make_adopted(bk_loop *loop, void *arg, bk_transport *ret_pair[2]) {
    int fds[2], code = quiet()->socketpair(quiet(), fds);
    (void)arg;
    if (code < 0)
        return code;
    return join_fds(loop, (int[4]){fds[0], fds[0], fds[1], fds[1]}, ret_pair);
}

static int make_memory(bk_loop *loop, void *arg, bk_transport *ret_pair[2]) {
    return bk_memory_transport(loop, *(const size_t *)arg, ret_pair);
}

/* A transport that cannot half-close, as a terminal cannot. */
static int make_one_way(bk_loop *loop, void *arg, bk_transport *ret_pair[2]) {
    static bk_transport_ops ops[2];
    int code = make_memory(loop, arg, ret_pair);
    for (int i = 0; i < 2 && code >= 0; i++) {
        ops[i] = *ret_pair[i]->ops;
        ops[i].end = NULL;
        ret_pair[i]->ops = &ops[i];
    }
    return code;
}

static size_t default_capacity = 0, small_capacity = 10;
static int small_buffer = 16384;

const bk_conform_joint support_joints[] = {
    {"tcp", 0, make_tcp, NULL},
    {"tight tcp", 0, make_tcp, &small_buffer},
    {"unix", 0, make_unix, NULL},
    {"tight unix", 0, make_unix, &small_buffer},
    {"passing", 0, make_passing, NULL},
    {"pipes", BK_CONFORM_NO_RESET, make_pipes, NULL},
    {"adopted", 0, make_adopted, NULL},
    {"memory", BK_CONFORM_NO_RESET, make_memory, &default_capacity},
    {"tight memory", BK_CONFORM_NO_RESET, make_memory, &small_capacity},
    {"one way", BK_CONFORM_NO_RESET | BK_CONFORM_NO_HALF_CLOSE, make_one_way, &default_capacity},
    {NULL, 0, NULL, NULL},
};

const bk_conform_joint *support_joint(const char *name) {
    const bk_conform_joint *joint = support_joints;
    while (strcmp(joint->name, name) != 0)
        joint++;
    return joint;
}

/* ---- The guard ---- */

static struct {
    pthread_mutex_t lock;
    pthread_once_t once;
    time_t until; /* 0: none */
    char text[200];
} guarding = {.lock = PTHREAD_MUTEX_INITIALIZER, .once = PTHREAD_ONCE_INIT};

static time_t seconds_now(void) {
    return (time_t)(conform_clock() / INT64_C(1000000000));
}

static void *guard_main(void *arg) {
    (void)arg;
    for (;;) {
        sleep(1);
        pthread_mutex_lock(&guarding.lock);
        if (guarding.until != 0 && seconds_now() > guarding.until) {
            fprintf(stderr, "Bail out! it hangs: %s\n", guarding.text);
            abort();
        }
        pthread_mutex_unlock(&guarding.lock);
    }
    return NULL;
}

/* It takes no signals: those are for the threads that are waiting for them. */
static void guard_start(void) {
    sigset_t all, before;
    pthread_t thread;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    if (pthread_create(&thread, NULL, guard_main, NULL) == 0)
        pthread_detach(thread);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void support_guard(unsigned seconds, const char *text) {
    pthread_once(&guarding.once, guard_start);
    pthread_mutex_lock(&guarding.lock);
    guarding.until = seconds == 0 ? 0 : seconds_now() + (time_t)seconds;
    snprintf(guarding.text, sizeof guarding.text, "%s", text);
    pthread_mutex_unlock(&guarding.lock);
}
