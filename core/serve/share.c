/*
 * share.c: one loop's share of a server: its listeners, its connections, and its end. All drivers
 * are made of shares. Called by drivers.c and forks.c.
 *
 * Its listeners stand behind a gate, with limits or without, which tells of each connection.
 */
#include "core/serve/drive.h"

static void crowd(void *arg, int change);

/* ---- Opening ---- */

int bk_plan_gate(const bk_plan *plan, bk_gate **ret_gate) {
    const bk_limits none = {.size = sizeof none};
    const bk_limits *limits = plan->options.limits != NULL ? plan->options.limits : &none;
    return bk_gate_new(plan->os, limits, NULL, NULL, ret_gate);
}

static int make_loop(bk_share *s) {
    const bk_serve_options *o = &s->plan->options;
    const bk_loop_options options = {
        .size = sizeof options, .os = s->plan->os, .log = o->log, .arg = o->arg};
    int code = bk_loop_new(&options, &s->loop);
    s->protocol = s->plan->protocol;
    if (code == 0 && o->setup != NULL)
        code = o->setup(o->arg, s->loop, &s->protocol);
    if (code >= 0 && s->protocol == NULL)
        code = -EINVAL;
    return code < 0 ? code : 0;
}

int bk_share_open(bk_share *s, const bk_plan *plan, bk_gate *gate) {
    *s = (bk_share){.plan = plan, .gate = gate};
    s->stop.call = (bk_call){bk_share_stop, s};
    s->reload.call = (bk_call){bk_share_reload, s};
    s->listeners = bk_alloc_zero(plan->os, (size_t)plan->count * sizeof *s->listeners);
    int code = s->listeners == NULL ? -ENOMEM : make_loop(s);
    if (code < 0)
        bk_plan_say(plan, code, "cannot serve: %s", bk_strerror(code));
    return code;
}

static void listener_ended(void *arg) {
    bk_share *s = arg;
    if (--s->open == 0 && s->over != NULL)
        s->over(s->arg);
}

int bk_share_listen(bk_share *s, int endpoint, const int *sockets, int count) {
    const char *text = s->plan->endpoints[endpoint];
    const bk_listen_options options = {.size = sizeof options,
                                       .gate = s->gate,
                                       .sockets = sockets,
                                       .socket_count = count,
                                       .shared = s->plan->workers > 1};
    bk_error error;
    bk_listener *l;
    int code = bk_listen_with(s->loop, text, s->protocol, &options, &error, &l);
    if (code < 0) {
        bk_plan_say_error(s->plan, text, &error);
        return code;
    }
    l->ended = listener_ended;
    l->ended_arg = s;
    l->crowd = crowd;
    l->crowd_arg = s;
    s->listeners[endpoint] = l;
    s->open++;
    return 0;
}

int bk_share_listen_with(bk_share *s, int endpoint, const bk_share *owner) {
    int sockets[BK_SOCKETS];
    int count = bk_listener_sockets(owner->listeners[endpoint], sockets, BK_SOCKETS);
    if (count > BK_SOCKETS) {
        bk_plan_say(s->plan, BK_ELIMIT, "%s: more than %d addresses cannot be shared",
                    s->plan->endpoints[endpoint], BK_SOCKETS);
        return BK_ELIMIT;
    }
    return count == 0 ? 0 : bk_share_listen(s, endpoint, sockets, count);
}

int bk_share_listen_all(bk_share *s) {
    int code = 0;
    for (int i = 0; i < s->plan->count && code >= 0; i++) {
        code = bk_share_listen(s, i, NULL, 0);
        if (code >= 0)
            bk_plan_say(s->plan, 0, "listening at %s", bk_listener_name(s->listeners[i]));
    }
    return code;
}

/* ---- Serving ---- */

static void pause_all(bk_share *s, bool on) {
    for (int i = 0; i < s->plan->count; i++)
        if (s->listeners[i] != NULL && s->listeners[i]->acceptor != NULL)
            (void)bk_acceptor_pause(s->listeners[i]->acceptor, BK_PAUSE_FULL, on);
}

static void finish_if_over(bk_share *s) {
    if (s->stopping && s->connections == 0)
        bk_loop_stop(s->loop);
}

/* A connection has come, or one is gone. */
static void crowd(void *arg, int change) {
    bk_share *s = arg;
    s->connections += change;
    if (s->alone && !s->stopping)
        pause_all(s, s->connections > 0);
    finish_if_over(s);
}

int bk_share_run(bk_share *s) {
    return bk_loop_run(s->loop);
}

void bk_share_reload(void *share) {
    const bk_share *s = share;
    for (int i = 0; i < s->plan->count; i++)
        bk_listener_reload(s->listeners[i]);
}

/* ---- The end ---- */

void bk_share_close_listeners(void *share) {
    bk_share *s = share;
    for (int i = 0; i < s->plan->count; i++) {
        bk_listener_close(s->listeners[i]);
        s->listeners[i] = NULL;
    }
}

/* What is there already, but never said or was told anything, has nothing to come to the end of. */
static bool is_silent(const bk_stream *s) {
    const bk_visit *v = s->visit;
    return !v->away && v->bytes_in == 0 && v->bytes_out == 0 && s->queued == 0;
}

static void close_silent(const bk_share *share) {
    for (bk_stream *s = share->loop->streams; s != NULL; s = s->next)
        if (s->visit != NULL && !s->visit->refused && is_silent(s))
            bk_stream_close(s);
}

static void drain(bk_share *s) {
    for (int i = 0; i < s->plan->count; i++)
        bk_listener_drain(s->listeners[i]);
}

static void cut(void *arg) {
    bk_share *share = arg;
    int n = 0;
    for (bk_stream *s = share->loop->streams; s != NULL; s = s->next)
        if (s->visit != NULL && !s->visit->refused && !(s->flags & BK_STREAM_CLOSED)) {
            bk_stream_fail(s, -ECANCELED);
            n++;
        }
    share->cut |= n > 0;
    if (n > 0)
        bk_plan_say(share->plan, -ECANCELED, "%d connection%s cut", n, n == 1 ? " was" : "s were");
}

static void await_end(bk_share *s, int64_t when, bk_fn then) {
    if (bk_timer_start(s->loop, &s->deadline, when, then, s) < 0)
        cut(s); /* rather than never */
}

static void last_call(void *arg) {
    bk_share *s = arg;
    close_silent(s);
    await_end(s, s->end, cut);
    finish_if_over(s);
}

void bk_share_stop(void *share) {
    bk_share *s = share;
    bool hurry = s->stopping;
    s->stopping = true;
    if (hurry) {
        cut(s);
        return;
    }
    drain(s);
    if (s->owner)
        pause_all(s, true);
    else
        bk_share_close_listeners(s);
    if (s->deaf != NULL)
        s->deaf(s->arg);
    int64_t now = bk_loop_now(s->loop), whole = bk_plan_drain(s->plan);
    int64_t first = BK_SILENT_MS * BK_MILLISECOND;
    s->end = now + whole;
    await_end(s, now + (first < whole / 2 ? first : whole / 2), last_call);
    finish_if_over(s);
}

/* A stream's closed() and hooks may still use what the share has. */
void bk_share_close(bk_share *s) {
    (void)bk_loop_free(s->loop);
    bk_dealloc(s->plan->os, s->listeners);
    bk_gate_unref(s->gate);
    *s = (bk_share){.plan = s->plan};
}
