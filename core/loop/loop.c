/*
 * loop.c: the loop's life and its turn. A turn waits for descriptors, takes what other threads
 * brought, calls the ready queue once through, tells who is ready, and fires timers: asyncio's
 * order, in which what was queued earlier goes before what has only become ready. Called by whoever
 * runs a loop: bk_serve(), the Python extension, a program of its own.
 */
#include "core/loop/loop.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

void bk_loop_log(bk_loop *loop, int code, const char *format, ...) {
    char text[240];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (loop->options.log != NULL)
        loop->options.log(loop->options.arg, code, text);
    else
        fprintf(stderr, "becket: %s\n", text);
}

/* ---- Life ---- */

static int choose_notifier(const bk_loop_options *options, const bk_notifier_ops **ret_ops) {
    if (options->notifier_ops != NULL) {
        *ret_ops = options->notifier_ops;
        return 0;
    }
    const char *name = options->notifier != NULL ? options->notifier : getenv("BECKET_NOTIFIER");
    const bk_notifier_ops *const *all = bk_notifiers();
    if (name == NULL || *name == '\0') {
        *ret_ops = all[0];
        return 0;
    }
    for (; *all != NULL; all++)
        if (strcmp((*all)->name, name) == 0) {
            *ret_ops = *all;
            return 0;
        }
    return BK_ENOTIFIER;
}

static int open_parts(bk_loop *loop) {
    int code = loop->notifier.ops->open(&loop->notifier);
    if (code < 0)
        return code;
    code = bk_posts_open(loop);
    if (code < 0) {
        bk_watches_close(loop);
        loop->notifier.ops->close(&loop->notifier);
    }
    return code;
}

int bk_loop_new(const bk_loop_options *options, bk_loop **ret_loop) {
    bk_loop_options o = {.size = sizeof o};
    const bk_notifier_ops *ops;
    if (ret_loop == NULL || (options != NULL && options->size == 0))
        return -EINVAL;
    if (options != NULL)
        memcpy(&o, options, options->size < sizeof o ? options->size : sizeof o);
    int code = choose_notifier(&o, &ops);
    if (code < 0)
        return code;
    bk_os *os = o.os != NULL ? o.os : bk_os_default();
    bk_loop *loop = bk_alloc_zero(os, sizeof *loop);
    if (loop == NULL)
        return -ENOMEM;
    loop->os = os;
    loop->options = o;
    loop->notifier = (bk_notifier){.ops = ops, .os = os};
    atomic_store(&loop->waiting, true);
    code = open_parts(loop);
    if (code < 0) {
        bk_dealloc(os, loop);
        return code;
    }
    *ret_loop = loop;
    return 0;
}

/* Within a callback; of a stream also outside a turn, as within bk_stream_new(). */
static bool is_busy(const bk_loop *loop) {
    return loop->turning || loop->calling > 0;
}

static void close_layers(bk_loop *loop) {
    for (int i = 0; i < BK_LAYERS; i++)
        if (loop->layers[i] != NULL)
            loop->layers[i]->close(loop);
}

/* Workers end first, because what they finish may still use streams; then those who make streams,
   then datagrams and streams, then the processes that they talked to. Their callbacks may start
   things anew, so it is done until nothing is left. */
static void end_all(bk_loop *loop) {
    loop->turning = true;
    do {
        loop->broken = false; /* there is no next turn to leave anything to */
        bk_workers_close(loop);
        close_layers(loop);
    } while (loop->pool != NULL || loop->listeners != NULL || loop->streams != NULL ||
             loop->datagrams != NULL);
}

/* Once a turn, and at its end. */
static void turn_layers(bk_loop *loop, bool end) {
    for (int i = 0; i < BK_LAYERS && !loop->broken; i++) {
        const bk_layer *layer = loop->layers[i];
        if (layer != NULL && (end ? layer->turned : layer->turn) != NULL)
            (end ? layer->turned : layer->turn)(loop);
    }
}

int bk_loop_free(bk_loop *loop) {
    if (loop == NULL)
        return 0;
    if (is_busy(loop))
        return -EBUSY;
    bk_os *os = loop->os;
    end_all(loop);
    bk_signals_close(loop);
    bk_posts_close(loop);
    bk_timers_close(loop);
    bk_watches_close(loop);
    loop->notifier.ops->close(&loop->notifier);
    bk_dealloc(os, loop->schemes);
    bk_dealloc(os, loop->tls_engines);
    bk_dealloc(os, loop->cipher_in);
    bk_dealloc(os, loop->cipher_out);
    bk_dealloc(os, loop->scratch);
    bk_dealloc(os, loop->ring);
    bk_dealloc(os, loop);
    return 0;
}

int bk_loop_forked(bk_loop *loop) {
    if (loop == NULL)
        return -EINVAL;
    int code = loop->notifier.ops->forked(&loop->notifier);
    if (code >= 0)
        code = bk_posts_forked(loop);
    return code < 0 ? code : bk_workers_forked(loop);
}

/* ---- The ready queue ---- */

static int grow_ring(bk_loop *loop) {
    uint32_t old = loop->ring == NULL ? 0 : loop->ring_mask + 1, room = old ? old * 2 : 64;
    bk_call *ring = bk_alloc(loop->os, room * sizeof *ring);
    if (ring == NULL)
        return -ENOMEM;
    for (uint32_t i = 0; i < loop->ring_count; i++)
        ring[i] = loop->ring[(loop->ring_head + i) & loop->ring_mask];
    bk_dealloc(loop->os, loop->ring);
    loop->ring = ring;
    loop->ring_head = 0;
    loop->ring_mask = room - 1;
    return 0;
}

int bk_loop_soon(bk_loop *loop, bk_fn fn, void *arg) {
    if (loop == NULL || fn == NULL)
        return -EINVAL;
    if (loop->ring == NULL || loop->ring_count > loop->ring_mask) {
        int code = grow_ring(loop);
        if (code < 0)
            return code;
    }
    loop->ring[(loop->ring_head + loop->ring_count++) & loop->ring_mask] = (bk_call){fn, arg};
    return 0;
}

/* What is queued while this runs waits for the next turn, or a callback that queues itself would
   keep everybody else waiting. */
static void call_ready(bk_loop *loop) {
    for (uint32_t left = loop->ring_count; left > 0 && !loop->broken; left--) {
        bk_call call = bk_loop_next(loop);
        call.fn(call.arg);
        bk_loop_settle(loop);
    }
}

/* ---- The turn ---- */

static bool has_work(const bk_loop *loop) {
    return loop->ring_count > 0 || loop->closing != NULL || loop->awake != NULL ||
           loop->unsent != NULL || loop->gathered != NULL || loop->due != NULL ||
           atomic_load_explicit(&loop->posted, memory_order_seq_cst);
}

/* How long a wait may last, which the caller allows to last timeout_ns. */
static int64_t wait_time(bk_loop *loop, int64_t timeout_ns) {
    if (timeout_ns == 0 || (loop->running && loop->stopping) || has_work(loop))
        return 0;
    int64_t when = bk_timers_next(loop), left = 0;
    if (when >= 0) {
        int64_t now = loop->os->clock(loop->os);
        left = when > now ? when - now : 0;
        timeout_ns = timeout_ns < 0 || left < timeout_ns ? left : timeout_ns;
    }
    /* From here on a wake writes; what came before it is seen now. */
    atomic_store(&loop->waiting, true);
    return has_work(loop) ? 0 : timeout_ns;
}

/* Whether this turn need not ask for descriptors: it has better to do, nothing came of it many
   times, and the last is not long ago. */
static bool need_not_poll(bk_loop *loop) {
    if (loop->ring_count == 0 || loop->fruitless < BK_FRUITLESS_POLLS || loop->stopping)
        return false;
    loop->now_known = false;
    if (bk_loop_now(loop) - loop->polled < BK_POLL_EVERY_US * INT64_C(1000))
        return true;
    loop->polled = loop->now;
    return false;
}

static int wait(bk_loop *loop, int64_t timeout_ns) {
    const bk_loop_hooks *hooks = loop->options.hooks;
    if (need_not_poll(loop))
        return 0;
    int64_t time = wait_time(loop, timeout_ns);
    if (time != 0 && hooks != NULL && BK_HAS(hooks, before_wait))
        hooks->before_wait(loop->options.arg);
    int count = loop->notifier.ops->wait(&loop->notifier, time, loop->ready, BK_EVENTS_PER_WAIT);
    if (time != 0 && hooks != NULL && BK_HAS(hooks, after_wait))
        hooks->after_wait(loop->options.arg);
    atomic_store_explicit(&loop->waiting, false, memory_order_relaxed);
    loop->now_known = false;
    loop->fruitless = count > 0 || time != 0 ? 0 : loop->fruitless + 1;
    if (count == -EINTR && hooks != NULL && BK_HAS(hooks, interrupted))
        hooks->interrupted(loop->options.arg);
    return count == -EINTR ? 0 : count;
}

static int turn(bk_loop *loop, int64_t timeout_ns) {
    loop->turning = true;
    loop->broken = false;
    loop->now_known = false;
    bk_loop_settle(loop); /* what was written between turns */
    if (bk_watches_apply(loop))
        timeout_ns = 0;
    int count = loop->broken ? 0 : wait(loop, timeout_ns);
    bk_timers_begin(loop);
    if (!loop->broken && atomic_load_explicit(&loop->posted, memory_order_acquire))
        bk_posts_take(loop);
    turn_layers(loop, false);
    if (!loop->broken)
        call_ready(loop);
    if (!loop->broken && count > 0)
        bk_watches_dispatch(loop, count);
    if (!loop->broken)
        bk_timers_fire(loop);
    turn_layers(loop, true);
    loop->turning = false;
    return count < 0 ? count : 0;
}

int bk_loop_turn(bk_loop *loop, int64_t timeout_ns) {
    if (loop == NULL)
        return -EINVAL;
    if (is_busy(loop))
        return -EBUSY;
    loop->fruitless = 0;
    int code = turn(loop, timeout_ns);
    /* A foreign loop waits on our descriptor next: the notifier must know by then what we want, and
       a wake must reach it. */
    loop->turning = true;
    (void)bk_watches_apply(loop);
    loop->turning = false;
    atomic_store(&loop->waiting, true);
    return code;
}

int bk_loop_run(bk_loop *loop) {
    int code;
    if (loop == NULL)
        return -EINVAL;
    if (is_busy(loop))
        return -EBUSY;
    loop->fruitless = 0;
    loop->running = true;
    do
        code = turn(loop, -1);
    while (code == 0 && !loop->stopping);
    loop->stopping = loop->running = false;
    atomic_store(&loop->waiting, true);
    return code;
}

void bk_loop_stop(bk_loop *loop) {
    if (loop != NULL)
        loop->stopping = true;
}

int bk_loop_fd(const bk_loop *loop) {
    if (loop == NULL)
        return -EINVAL;
    const bk_notifier_ops *ops = loop->notifier.ops;
    if (!(ops->traits & BK_POLLABLE) || !BK_HAS(ops, fd))
        return -ENOTSUP;
    return ops->fd((bk_notifier *)&loop->notifier);
}

int64_t bk_loop_deadline(const bk_loop *loop) {
    if (loop == NULL)
        return -EINVAL;
    if (has_work(loop) || loop->dirty != NULL || loop->change_count > 0)
        return 0;
    int64_t when = bk_timers_next((bk_loop *)loop);
    if (when < 0)
        return -1;
    int64_t now = loop->os->clock(loop->os);
    return when > now ? when - now : 0;
}

/* Most turns have no use for the time, and do not ask for it. */
int64_t bk_loop_now(const bk_loop *loop) {
    if (loop == NULL)
        return -EINVAL;
    bk_loop *l = (bk_loop *)loop;
    if (!l->now_known) {
        l->now = l->os->clock(l->os);
        l->now_known = l->turning; /* between turns time goes on */
    }
    return l->now;
}

const char *bk_loop_notifier(const bk_loop *loop) {
    return loop == NULL ? NULL : loop->notifier.ops->name;
}

bk_os *bk_loop_os(const bk_loop *loop) {
    return loop == NULL ? NULL : loop->os;
}
