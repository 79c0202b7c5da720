/*
 * drive.h: what the files behind bk_serve_with() share: what is to be served, one loop's share of
 * it, and the drivers, which run shares in threads or processes. For core/serve only.
 */
#ifndef BK_DRIVE_H
#define BK_DRIVE_H

#include "core/serve/serve.h"

/* ---- What is to be served (serve.c) ---- */

typedef struct bk_plan {
    bk_os *os;
    const bk_protocol *protocol; /* NULL: setup() has them */
    const char **endpoints;
    int count;
    bk_serve_options options;
    int workers; /* what follows the colon in the driver's name */
} bk_plan;

/* A line for the operator. */
void bk_plan_say(const bk_plan *plan, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* What is wrong with an endpoint, and where in it. */
void bk_plan_say_error(const bk_plan *plan, const char *endpoint, const bk_error *error);

/* A supervisor, if there is one, hears that the server serves, and that its loop lives; that it
   reads certificates again, which is done when the call that follows has returned; and that it
   ends. */
void bk_plan_tell_ready(const bk_plan *plan, bk_loop *loop);
void bk_plan_tell_reload(const bk_plan *plan, void (*reload)(void *arg), void *arg);
void bk_plan_tell_stopping(const bk_plan *plan);

/* How long connections have to come to their end, in nanoseconds. */
int64_t bk_plan_drain(const bk_plan *plan);

/* ---- One loop's share of it (share.c) ---- */

typedef struct bk_share {
    const bk_plan *plan;
    bk_gate *gate;
    bk_loop *loop;
    const bk_protocol *protocol;
    bk_listener **listeners; /* one for each endpoint; NULL: another share's, or closed */
    bool alone;              /* at most one connection at a time */
    bool owner;              /* its sockets are other shares' too, and to be closed after theirs */
    int open;                /* listeners that may still bring somebody */
    int connections;
    bool stopping, cut;
    int64_t end; /* when what is left is cut */
    bk_timer deadline;
    bk_fn over, deaf; /* optional: nobody can come any more; it does not listen any more */
    void *arg;
    bk_post stop, reload; /* for other threads: bk_loop_post_kept() */
} bk_share;

/* A loop, set up; and behind a gate, whose reference it takes over (NULL: no gate). All else but
   posts is for the loop's thread. */
int bk_share_open(bk_share *s, const bk_plan *plan, bk_gate *gate);
/* Listen at an endpoint: on those sockets, or on its own, which is told. */
int bk_share_listen(bk_share *s, int endpoint, const int *sockets, int count);
/* … or on those another share has for it, if there are any. */
int bk_share_listen_with(bk_share *s, int endpoint, const bk_share *owner);
int bk_share_listen_all(bk_share *s);
/* Serve until bk_share_stop(), and then until the end. Negative: the loop failed. */
int bk_share_run(bk_share *s);
/* Begin the end; a second time: cut what is left. A bk_share * as the argument, as of the others.
 */
void bk_share_stop(void *share);
void bk_share_reload(void *share);
void bk_share_close_listeners(void *share);
void bk_share_close(bk_share *s);

int bk_plan_gate(const bk_plan *plan, bk_gate **ret_gate);

/* ---- Drivers (drivers.c, forks.c) ---- */

typedef struct bk_driver {
    const char *name;
    bool counts;                     /* ":N" may follow */
    int (*run)(const bk_plan *plan); /* returns an exit status */
} bk_driver;

extern const bk_driver bk_driver_loop, bk_driver_loops, bk_driver_threads, bk_driver_forks;

/* The driver of that name; the text of the error does not say whose name it is. */
int bk_driver_find(const char *name, const bk_driver **ret_driver, int *ret_workers,
                   bk_error *error);

/* What every process of a server catches; a failure is told. */
int bk_drive_signals(const bk_plan *plan, bk_loop *loop, bk_fn on_end, bk_fn on_reload, void *arg);

#endif
