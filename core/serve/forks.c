/*
 * forks.c: the driver forks:N. A parent opens what is listened at and accepts nothing; N workers
 * with a loop each accept from its sockets. It restarts those that die, passes signals on, and sees
 * to the end. Called by serve.c.
 *
 * A worker leaves alone what its parent had: it makes a loop of its own, and ends by exiting. A
 * pair of sockets is between the two: by it the worker tells when it serves, and when all it had to
 * listen at is over; and either learns that the other is gone.
 */
#include "core/serve/drive.h"

#include <signal.h>
#include <stdio.h>

enum {
    QUICK_MS = 1000, /* a worker that dies sooner is restarted later and later, … */
    FIRST_MS = 100,  /* … after so long, and twice as long each time, … */
    LONGEST_MS = 10000,
    HOPELESS = 5,     /* … or never again after so many, when nobody has ever served */
    NAME_BYTES = 400, /* of where it listens, for a line that tells it */
    LAST_WORDS_S = 2, /* beyond the drain, for workers to say what they cut */
    SERVES = '+',     /* what a worker tells */
    OVER = '.',
};

/* Who opens an endpoint. */
typedef enum whose { SHARED, EACH, FIRST } whose;

typedef struct forks forks;

typedef struct place {
    forks *forks;
    int pid;  /* 0: nobody is there */
    int line; /* what it tells; -1: no more */
    int64_t began;
    int quick; /* deaths in a row */
    bk_timer again;
} place;

struct forks {
    const bk_plan *plan;
    bk_share share; /* the parent's: it listens, and serves nobody */
    whose *whose;   /* [plan->count] */
    place *places;  /* [plan->workers] */
    bool ending, failed, served;
    bk_timer deadline;
};

static void end(void *arg);

/* ---- A worker ---- */

/* The signals are its own from here on; until now they were held back. SIGINT comes to all that a
   terminal runs: the parent passes it on. */
static void no_matter(void *arg) {
    (void)arg;
}

static int take_signals(forks *f, bk_share *s) {
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGCHLD};
    for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++)
        (void)bk_signal_set(f->share.loop, signals[i], NULL, NULL);
    int code = bk_drive_signals(f->plan, s->loop, bk_share_stop, bk_share_reload, s);
    if (code >= 0)
        code = bk_signal_set(s->loop, SIGINT, no_matter, NULL);
    (void)f->plan->os->hold_signals(f->plan->os, 0);
    return code;
}

static int listen_as_worker(forks *f, bk_share *s, bool first) {
    int code = 0;
    for (int i = 0; i < f->plan->count && code >= 0; i++) {
        if (f->whose[i] == SHARED)
            code = bk_share_listen_with(s, i, &f->share);
        else if (f->whose[i] == EACH || first)
            code = bk_share_listen(s, i, NULL, 0);
    }
    return code;
}

static void tell(bk_os *os, int line, char what) {
    const struct iovec v = {&what, 1};
    while (os->send(os, line, &v, 1) == -EINTR)
        ;
}

typedef struct worker {
    forks *forks;
    bk_share share;
    int line;
} worker;

/* Its listeners gave the sockets back; as long as any of us has them, connections come in there. */
static void worker_deaf(void *arg) {
    const worker *w = arg;
    const bk_share *parent = &w->forks->share;
    for (int i = 0; i < parent->plan->count; i++) {
        int sockets[BK_SOCKETS];
        int count = bk_listener_sockets(parent->listeners[i], sockets, BK_SOCKETS);
        for (int k = 0; k < count && k < BK_SOCKETS; k++)
            bk_close_fd(parent->plan->os, sockets[k]);
    }
}

static void worker_over(void *arg) {
    worker *w = arg;
    tell(w->share.plan->os, w->line, OVER);
    bk_share_stop(&w->share);
}

/* Its parent has been killed: nobody would ever end it, or start another. */
static void orphaned(void *arg, unsigned events) {
    worker *w = arg;
    (void)events;
    bk_watch_forget(w->share.loop, w->line);
    if (!w->share.stopping)
        bk_share_stop(&w->share);
}

static int serve_as_worker(worker *w, bool first) {
    bk_share *s = &w->share;
    int code = take_signals(w->forks, s);
    if (code >= 0)
        code = bk_watch_set(s->loop, w->line, BK_READ, orphaned, w);
    if (code >= 0)
        code = listen_as_worker(w->forks, s, first);
    if (code < 0)
        return code;
    tell(s->plan->os, w->line, SERVES);
    code = bk_share_run(s);
    if (code < 0)
        bk_plan_say(s->plan, code, "%s", bk_strerror(code));
    return code;
}

/* Returns the status it exits with. */
static int work(forks *f, int number, int line) {
    worker w = {.forks = f, .line = line};
    bk_os *os = f->plan->os;
    bk_gate *gate = NULL;
    int code = bk_plan_gate(f->plan, &gate);
    if (code >= 0)
        code = bk_share_open(&w.share, f->plan, gate);
    if (code < 0)
        return 1;
    w.share.over = worker_over;
    w.share.deaf = worker_deaf;
    w.share.arg = &w;
    code = serve_as_worker(&w, number == 0);
    bool good = code >= 0 && !w.share.cut;
    (void)os->hold_signals(os, 1); /* they would no longer be caught, and end us in their own way */
    bk_share_close(&w.share);
    return good ? 0 : 1;
}

/* ---- Starting workers ---- */

static void heard(void *arg, unsigned events);

static void hang_up(place *p) {
    bk_loop *loop = p->forks->share.loop;
    if (p->line < 0)
        return;
    bk_watch_forget(loop, p->line);
    bk_close_fd(loop->os, p->line);
    p->line = -1;
}

/* Whether there may be more to come. */
static bool hear(place *p) {
    forks *f = p->forks;
    char what;
    ssize_t n = p->line < 0 ? 0 : f->plan->os->recv(f->plan->os, p->line, &what, 1);
    if (n == 1 && what == SERVES)
        f->served = true;
    if (n == 1 && what == OVER && !f->ending)
        end(f);
    return n == 1 || n == -EINTR;
}

static void heard(void *arg, unsigned events) {
    place *p = arg;
    while (hear(p))
        ;
    if (events & BK_HANGUP)
        hang_up(p);
}

/* The lines that the parent has: as long as any of us had them, nobody would learn of its end. */
static void close_lines(const forks *f) {
    for (int i = 0; i < f->plan->workers; i++)
        if (f->places[i].line >= 0)
            bk_close_fd(f->plan->os, f->places[i].line);
}

/* In the parent, returns the worker's number, or what went wrong; in the worker, never. */
static int start_worker(forks *f, place *p, const int line[2]) {
    bk_os *os = f->plan->os;
    (void)os->hold_signals(os, 1);
    int pid = os->fork(os);
    if (pid == 0) {
        bk_close_fd(os, line[0]);
        close_lines(f);
        os->exit(os, work(f, (int)(p - f->places), line[1]));
    }
    (void)os->hold_signals(os, 0);
    bk_close_fd(os, line[1]);
    if (pid < 0)
        bk_close_fd(os, line[0]);
    return pid;
}

static void died(place *p, const char *how, int number);

static void fill(void *arg) {
    place *p = arg;
    forks *f = p->forks;
    bk_loop *loop = f->share.loop;
    int line[2];
    if (f->ending)
        return;
    p->began = f->plan->os->clock(f->plan->os);
    int code = f->plan->os->socketpair(f->plan->os, line);
    if (code >= 0)
        code = start_worker(f, p, line);
    if (code < 0) {
        bk_plan_say(f->plan, code, "cannot start a worker: %s", bk_strerror(code));
        died(p, NULL, 0);
        return;
    }
    p->pid = code;
    p->line = line[0];
    if (bk_watch_set(loop, p->line, BK_READ, heard, p) < 0)
        hang_up(p); /* it ends, then, and another is tried */
}

/* ---- Burying them ---- */

static int64_t delay_of(const place *p) {
    int64_t ms = FIRST_MS;
    for (int i = 1; i < p->quick && ms < LONGEST_MS; i++)
        ms *= 2;
    return p->quick == 0 ? 0 : (ms < LONGEST_MS ? ms : LONGEST_MS) * BK_MILLISECOND;
}

/* How it died; NULL: it never came to life, which was told. */
static void died(place *p, const char *how, int number) {
    forks *f = p->forks;
    int64_t now = f->plan->os->clock(f->plan->os), delay;
    p->quick = now - p->began < QUICK_MS * BK_MILLISECOND ? p->quick + 1 : 0;
    delay = delay_of(p);
    if (!f->served && p->quick >= HOPELESS) {
        bk_plan_say(f->plan, -ECHILD,
                    "workers die again and again, and none has served: giving up");
        f->failed = true;
        end(f);
        return;
    }
    if (how != NULL)
        bk_plan_say(f->plan, -ECHILD, "a worker %s %d; another takes its place in %d.%d s", how,
                    number, (int)(delay / BK_SECOND),
                    (int)(delay % BK_SECOND / (100 * BK_MILLISECOND)));
    int64_t when = bk_loop_now(f->share.loop) + delay;
    if (bk_timer_start(f->share.loop, &p->again, when, fill, p) < 0) {
        bk_plan_say(f->plan, -ENOMEM, "no memory to start a worker again: ending");
        f->failed = true;
        end(f);
    }
}

static void stop_when_alone(forks *f) {
    int alive = 0;
    for (int i = 0; i < f->plan->workers; i++)
        alive += f->places[i].pid != 0;
    if (f->ending && alive == 0)
        bk_loop_stop(f->share.loop);
}

static void bury(place *p, int status) {
    forks *f = p->forks;
    const char *how = status < 0 ? "was killed by signal" : "exited with status";
    int number = status < 0 ? -status : status;
    p->pid = 0;
    while (hear(p)) /* its last words may be that all is over */
        ;
    hang_up(p);
    if (!f->ending)
        died(p, how, number);
    else if (status != 0)
        bk_plan_say(f->plan, -ECHILD, "a worker %s %d", how, number);
    f->failed |= f->ending && status != 0;
}

/* Those that are dead; with `wait`, all, as soon as they are. */
static void reap_all(forks *f, int wait) {
    bk_os *os = f->plan->os;
    for (int i = 0; i < f->plan->workers; i++) {
        place *p = &f->places[i];
        int status = 0, code = 0;
        while (p->pid != 0 && (code = os->waitpid(os, p->pid, wait, &status)) == -EINTR)
            ;
        if (code != 0) /* (-ECHILD: somebody else has waited for it) */
            bury(p, code < 0 ? 1 : status);
    }
    stop_when_alone(f);
}

/* SIGCHLD. */
static void reap(void *arg) {
    reap_all(arg, 0);
}

/* ---- Signals, and the end ---- */

static void tell_all(forks *f, int signum) {
    for (int i = 0; i < f->plan->workers; i++)
        if (f->places[i].pid != 0)
            (void)f->plan->os->kill(f->plan->os, f->places[i].pid, signum);
}

static void reload_all(void *arg) {
    tell_all(arg, SIGHUP);
}

static void reload(void *arg) {
    const forks *f = arg;
    bk_plan_tell_reload(f->plan, reload_all, arg);
}

static void too_late(void *arg) {
    forks *f = arg;
    bk_plan_say(f->plan, -ETIMEDOUT, "workers that do not end are killed");
    f->failed = true;
    tell_all(f, SIGKILL);
}

/* Also when it was told to end before: then the workers are to hurry. */
static void end(void *arg) {
    forks *f = arg;
    int64_t wait = bk_plan_drain(f->plan) + LAST_WORDS_S * BK_SECOND;
    if (!f->ending)
        bk_plan_tell_stopping(f->plan);
    tell_all(f, SIGTERM);
    bk_share_close_listeners(&f->share);
    for (int i = 0; i < f->plan->workers; i++)
        bk_timer_stop(f->share.loop, &f->places[i].again);
    if (!f->ending && bk_timer_start(f->share.loop, &f->deadline, bk_loop_now(f->share.loop) + wait,
                                     too_late, f) < 0)
        too_late(f);
    f->ending = true;
    stop_when_alone(f);
}

/* ---- The parent ---- */

static int whose_is(const forks *f, int i, whose *ret_whose, bk_error *error) {
    bk_endpoint e;
    int code = bk_endpoint_parse(f->plan->os, f->plan->endpoints[i], &e, error);
    if (code < 0)
        return code;
    const char *reuse = bk_endpoint_option(&e, "reuse_port");
    bool each = reuse != NULL && strcmp(reuse, "1") == 0;
    bk_endpoint_clear(f->plan->os, &e);
    bool sockets = bk_listener_sockets(f->share.listeners[i], NULL, 0) > 0;
    *ret_whose = each ? EACH : sockets ? SHARED : FIRST;
    return 0;
}

/* A connection cannot be handed on: its other side would not hear of its end while any of us has
   it. Standard input and output are everybody's anyhow. */
static bool is_connection(const bk_listener *l) {
    const char *name = bk_listener_name(l), *plus = strchr(name, '+');
    return strncmp(plus != NULL ? plus + 1 : name, "fd:", 3) == 0;
}

/* Whether workers can be given it. */
static int check_endpoint(forks *f, int i) {
    bk_error error = {0};
    int code = whose_is(f, i, &f->whose[i], &error);
    if (code == 0 && f->whose[i] == FIRST && is_connection(f->share.listeners[i]))
        code = bk_error_set(&error, -ENOTSUP, 0,
                            "this is a connection, which no worker can be given; driver loop "
                            "serves it");
    if (code < 0)
        bk_plan_say_error(f->plan, f->plan->endpoints[i], &error);
    return code;
}

/* No more than its sockets is wanted of a listener that is shared: it accepts nothing, and looks
   after no certificates. */
static void put_aside(bk_listener *l) {
    (void)bk_listener_pause(l, 1);
    for (bk_listener_front *front = l->fronts; front != NULL; front = front->next)
        if (front->stop != NULL)
            front->stop(front);
}

/* The parent listens at what is shared, and has seen that the rest can be listened at. That is told
   when nobody can come to the parent any more. */
static int open_endpoint(forks *f, int i) {
    char name[NAME_BYTES];
    int code = bk_share_listen(&f->share, i, NULL, 0);
    if (code == 0)
        code = check_endpoint(f, i);
    if (code < 0)
        return code;
    bk_listener *l = f->share.listeners[i];
    snprintf(name, sizeof name, "%s", bk_listener_name(l));
    if (f->whose[i] == SHARED) {
        put_aside(l);
    } else {
        bk_listener_close(l);
        f->share.listeners[i] = NULL;
    }
    bk_plan_say(f->plan, 0, "listening at %s", name);
    return 0;
}

static int open_parent(forks *f) {
    bk_os *os = f->plan->os;
    f->whose = bk_alloc_zero(os, (size_t)f->plan->count * sizeof *f->whose);
    f->places = bk_alloc_zero(os, (size_t)f->plan->workers * sizeof *f->places);
    int code = bk_share_open(&f->share, f->plan, NULL);
    if (code < 0)
        return code;
    code = bk_drive_signals(f->plan, f->share.loop, end, reload, f);
    if (code < 0)
        return code;
    code = f->whose == NULL || f->places == NULL ? -ENOMEM
                                                 : bk_signal_set(f->share.loop, SIGCHLD, reap, f);
    if (code < 0)
        bk_plan_say(f->plan, code, "cannot serve: %s", bk_strerror(code));
    for (int i = 0; i < f->plan->count && code >= 0; i++)
        code = open_endpoint(f, i);
    return code;
}

static int run_parent(forks *f) {
    for (int i = 0; i < f->plan->workers; i++)
        f->places[i] = (place){.forks = f, .line = -1};
    for (int i = 0; i < f->plan->workers; i++)
        fill(&f->places[i]);
    if (!f->ending)
        bk_plan_tell_ready(f->plan, f->share.loop);
    int code = bk_loop_run(f->share.loop);
    if (code < 0) { /* that may have been passing; it ends all the same */
        bk_plan_say(f->plan, code, "%s", bk_strerror(code));
        end(f);
        if (bk_loop_run(f->share.loop) < 0) {
            tell_all(f, SIGKILL);
            reap_all(f, 1);
        }
    }
    for (int i = 0; i < f->plan->workers; i++)
        hang_up(&f->places[i]);
    return code;
}

static int run_forks(const bk_plan *plan) {
    forks f = {.plan = plan};
    bk_os *os = plan->os;
    if (!BK_HAS(os, fork) || !BK_HAS(os, hold_signals)) {
        bk_plan_say(plan, -ENOTSUP, "driver forks:N: this system has no fork");
        return 1;
    }
    int code = open_parent(&f);
    if (code >= 0)
        code = run_parent(&f);
    bk_share_close(&f.share);
    bk_dealloc(os, f.whose);
    bk_dealloc(os, f.places);
    return code < 0 || f.failed;
}

const bk_driver bk_driver_forks = {.name = "forks", .counts = true, .run = run_forks};
