/*
 * drivers.c: which drivers there are, and those that run in one process: loop, loops:N, threads:N.
 * A share each; the first is run by the thread that called, and gets the signals. Called by
 * serve.c; forks:N has a file of its own.
 */
#include "core/serve/drive.h"

#include <signal.h>
#include <stdio.h>

enum { WORKERS_MAX = 10000 };

typedef struct crew {
    const bk_plan *plan;
    bk_share *shares;   /* [plan->workers] */
    bk_thread *threads; /* … of all but the first */
    int opened, started;
    bool ending;
    atomic_int running;   /* shares whose threads have not ended */
    atomic_int listening; /* shares that still listen, beside the first */
    atomic_bool failed;
    bk_post deaf, stop; /* to the first share: from all the others; from one that failed */
} crew;

/* ---- Signals, in the first share's thread ---- */

static void end(void *arg) {
    crew *c = arg;
    if (!c->ending)
        bk_plan_tell_stopping(c->plan);
    c->ending = true;
    for (int i = 1; i < c->started; i++)
        bk_loop_post_kept(c->shares[i].loop, &c->shares[i].stop);
    bk_share_stop(&c->shares[0]);
}

static void reload_all(void *arg) {
    crew *c = arg;
    for (int i = 1; i < c->started; i++)
        bk_loop_post_kept(c->shares[i].loop, &c->shares[i].reload);
    bk_share_reload(&c->shares[0]);
}

static void reload(void *arg) {
    const crew *c = arg;
    bk_plan_tell_reload(c->plan, reload_all, arg);
}

int bk_drive_signals(const bk_plan *plan, bk_loop *loop, bk_fn on_end, bk_fn on_reload, void *arg) {
    int code = bk_signal_set(loop, SIGINT, on_end, arg);
    if (code >= 0)
        code = bk_signal_set(loop, SIGTERM, on_end, arg);
    if (code >= 0)
        code = bk_signal_set(loop, SIGHUP, on_reload, arg);
    if (code < 0)
        bk_plan_say(plan, code, "cannot catch signals: %s", bk_strerror(code));
    return code;
}

/* ---- Opening: all in one thread ---- */

/* A share but the first has stopped listening; when all have, the sockets can be closed. */
static void one_is_deaf(void *arg) {
    crew *c = arg;
    if (atomic_fetch_sub(&c->listening, 1) == 1)
        bk_loop_post_kept(c->shares[0].loop, &c->deaf);
}

static int listen_beside(bk_share *s, const bk_share *first) {
    int code = 0;
    for (int i = 0; i < s->plan->count && code >= 0; i++)
        code = bk_share_listen_with(s, i, first);
    return code;
}

static int open_share(crew *c, bk_gate *gate, bool alone) {
    bk_share *s = &c->shares[c->opened], *first = &c->shares[0];
    int code = bk_share_open(s, c->plan, bk_gate_ref(gate));
    c->opened++;
    s->alone = alone;
    s->arg = c;
    if (code >= 0 && s == first)
        code = bk_drive_signals(c->plan, s->loop, end, reload, c);
    if (code >= 0 && s != first) {
        s->deaf = one_is_deaf;
        return listen_beside(s, first);
    }
    s->owner = c->plan->workers > 1;
    s->over = end;
    return code < 0 ? code : bk_share_listen_all(s);
}

static int open_all(crew *c, bool alone) {
    bk_os *os = c->plan->os;
    size_t n = (size_t)c->plan->workers;
    bk_gate *gate;
    c->shares = bk_alloc_zero(os, n * sizeof *c->shares);
    c->threads = bk_alloc_zero(os, n * sizeof *c->threads);
    int code = c->shares == NULL || c->threads == NULL ? -ENOMEM : bk_plan_gate(c->plan, &gate);
    if (code < 0) {
        bk_plan_say(c->plan, code, "cannot serve: %s", bk_strerror(code));
        return code;
    }
    while (code >= 0 && c->opened < c->plan->workers)
        code = open_share(c, gate, alone);
    bk_gate_unref(gate);
    return code;
}

/* ---- Running ---- */

static void run_share(crew *c, bk_share *s) {
    int code = bk_share_run(s);
    if (code < 0)
        bk_plan_say(c->plan, code, "%s", bk_strerror(code));
    if (code < 0 || s->cut)
        atomic_store(&c->failed, true);
}

static void thread_main(void *arg) {
    bk_share *s = arg;
    crew *c = s->arg;
    run_share(c, s);
    if (!s->stopping) { /* its loop failed: what it has is lost, and the server with it */
        bk_share_stop(s);
        bk_loop_post_kept(c->shares[0].loop, &c->stop);
    }
    atomic_fetch_sub(&c->running, 1);
    bk_loop_wake(c->shares[0].loop);
}

static int start_threads(crew *c) {
    int code = 0;
    atomic_store(&c->listening, c->plan->workers - 1);
    c->started = 1;
    while (code >= 0 && c->started < c->plan->workers) {
        atomic_fetch_add(&c->running, 1);
        code = c->plan->os->thread_start(c->plan->os, thread_main, &c->shares[c->started],
                                         &c->threads[c->started]);
        if (code >= 0)
            c->started++;
        else
            atomic_fetch_sub(&c->running, 1);
    }
    if (code < 0) {
        bk_plan_say(c->plan, code, "cannot start a thread: %s", bk_strerror(code));
        atomic_store(&c->failed, true);
    }
    return code;
}

/* The first loop goes on when its own share is over: it gets the signals for the others. */
static void run_all(crew *c) {
    if (start_threads(c) < 0)
        end(c);
    else
        bk_plan_tell_ready(c->plan, c->shares[0].loop);
    run_share(c, &c->shares[0]);
    if (!c->shares[0].stopping)
        end(c);
    while (atomic_load(&c->running) > 0 && bk_loop_turn(c->shares[0].loop, -1) >= 0)
        ;
    for (int i = 1; i < c->started; i++)
        (void)c->plan->os->thread_join(c->plan->os, c->threads[i]);
}

/* The first, whose sockets the others have, is the last. */
static void close_all(crew *c) {
    bk_os *os = c->plan->os;
    while (c->opened > 0)
        bk_share_close(&c->shares[--c->opened]);
    bk_dealloc(os, c->shares);
    bk_dealloc(os, c->threads);
}

static void first_closes(void *arg) {
    crew *c = arg;
    bk_share_close_listeners(&c->shares[0]);
}

static int drive(const bk_plan *plan, bool alone) {
    crew c = {.plan = plan};
    c.deaf.call = (bk_call){first_closes, &c};
    c.stop.call = (bk_call){end, &c};
    int code = open_all(&c, alone);
    if (code >= 0)
        run_all(&c);
    close_all(&c);
    return code < 0 || atomic_load(&c.failed);
}

static int run_loops(const bk_plan *plan) {
    return drive(plan, false);
}

static int run_threads(const bk_plan *plan) {
    return drive(plan, true);
}

/* ---- Names ---- */

const bk_driver bk_driver_loop = {.name = "loop", .run = run_loops};
const bk_driver bk_driver_loops = {.name = "loops", .counts = true, .run = run_loops};
const bk_driver bk_driver_threads = {.name = "threads", .counts = true, .run = run_threads};

static int read_count(const char *text) {
    int n = 0;
    for (; *text >= '0' && *text <= '9' && n <= WORKERS_MAX; text++)
        n = 10 * n + (*text - '0');
    return *text == '\0' && n <= WORKERS_MAX ? n : 0;
}

int bk_driver_find(const char *name, const bk_driver **ret_driver, int *ret_workers,
                   bk_error *error) {
    static const bk_driver *const all[] = {&bk_driver_loop, &bk_driver_loops, &bk_driver_threads,
                                           &bk_driver_forks};
    size_t n = strcspn(name, ":");
    bool colon = name[n] == ':';
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        if (strlen(all[i]->name) != n || strncmp(all[i]->name, name, n) != 0)
            continue;
        int workers = colon ? read_count(name + n + 1) : 1;
        if (workers == 0 || (colon && !all[i]->counts))
            break;
        *ret_driver = all[i];
        *ret_workers = workers;
        return 0;
    }
    return bk_error_set(error, -EINVAL, 0,
                        "%.40s is none of loop, loops:N, threads:N, forks:N, with N from 1 to %d",
                        name, WORKERS_MAX);
}
