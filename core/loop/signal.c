/*
 * signal.c: signals delivered as calls on a loop. A process has one disposition per signal, so this
 * is the one place of the core with state of the process: which loop has which signal. The handler
 * sets a bit and wakes the loop, no more. Called through bk_signal_set(), and by bk_posts_take().
 */
#include "core/loop/loop.h"

static _Atomic(bk_loop *) owners[BK_SIGNALS];
static atomic_int handling; /* handlers under way, in any thread */

static void handle(int signum) {
    atomic_fetch_add(&handling, 1);
    bk_loop *loop = atomic_load(&owners[signum]);
    if (loop != NULL) {
        atomic_fetch_or(&loop->signals, UINT64_C(1) << (signum - 1));
        bk_loop_wake(loop);
    }
    atomic_fetch_sub(&handling, 1);
}

static int give_back(bk_loop *loop, int signum) {
    if (atomic_load(&owners[signum]) != loop)
        return 0;
    int code = loop->os->signal_catch(loop->os, signum, NULL);
    atomic_store(&owners[signum], NULL);
    while (atomic_load(&handling) > 0)
        ; /* a few instructions of another thread, which may still have the loop in hand */
    loop->signal_calls[signum] = (bk_call){NULL, NULL};
    return code;
}

int bk_signal_set(bk_loop *loop, int signum, bk_fn fn, void *arg) {
    if (loop == NULL || signum <= 0 || signum >= BK_SIGNALS)
        return -EINVAL;
    if (fn == NULL)
        return give_back(loop, signum);
    if (loop->signal_calls == NULL) {
        loop->signal_calls = bk_alloc_zero(loop->os, BK_SIGNALS * sizeof *loop->signal_calls);
        if (loop->signal_calls == NULL)
            return -ENOMEM;
    }
    bk_loop *owner = NULL;
    if (!atomic_compare_exchange_strong(&owners[signum], &owner, loop) && owner != loop)
        return -EBUSY;
    int code = owner == loop ? 0 : loop->os->signal_catch(loop->os, signum, handle);
    if (code < 0)
        atomic_store(&owners[signum], NULL);
    else
        loop->signal_calls[signum] = (bk_call){fn, arg};
    return code;
}

void bk_signals_fire(bk_loop *loop) {
    uint64_t due = atomic_exchange(&loop->signals, 0);
    for (int signum = 1; due != 0 && signum < BK_SIGNALS; signum++, due >>= 1) {
        if (!(due & 1))
            continue;
        bk_call call = loop->signal_calls[signum];
        if (call.fn != NULL)
            call.fn(call.arg);
        bk_loop_settle(loop);
        if (loop->broken) {
            atomic_fetch_or(&loop->signals, (due & ~UINT64_C(1)) << (signum - 1));
            return;
        }
    }
}

void bk_signals_close(bk_loop *loop) {
    for (int signum = 1; loop->signal_calls != NULL && signum < BK_SIGNALS; signum++)
        (void)give_back(loop, signum);
    bk_dealloc(loop->os, loop->signal_calls);
    loop->signal_calls = NULL;
}
