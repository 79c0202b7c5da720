/*
 * drive.c: turning a loop from blocking code, by several threads: one turns it, and waits in it
 * without the GIL; the others may meanwhile use the core, and wait for what the turn brings. Called
 * by connection.c, and by the loop's hooks around its wait.
 *
 * The GIL (where there is none, the loop's lock, which all that is here is called under) keeps
 * threads apart but where Python runs in the midst of a call of the core's: in a TLS engine that is
 * written in Python. So it is noted who is inside.
 */
#include "becket_py.h"

/* A thread that waits for another to do something; lives on that thread's stack. */
typedef struct drive_waiter {
    struct drive_waiter *next;
    PyThread_type_lock lock; /* let go of when that was done */
} drive_waiter;

/* ---- Waiting for other threads ---- */

/* Something was done: whoever waits is to look again. */
void drive_tell(LoopObject *loop) {
    drive_waiter *w = loop->waiters;
    loop->waiters = NULL;
    while (w != NULL) {
        drive_waiter *next = w->next; /* it goes when its thread gets the lock, not before */
        PyThread_release_lock(w->lock);
        w = next;
    }
}

static void unlist(LoopObject *loop, const drive_waiter *w) {
    drive_waiter **link = &loop->waiters;
    while (*link != NULL && *link != w)
        link = &(*link)->next;
    if (*link != NULL)
        *link = w->next;
}

/* Wait until another thread has done something, or time is up. -1: a signal's handler raised. */
int drive_wait(LoopObject *loop, int64_t timeout_ns, bool heed_signals) {
    drive_waiter w = {NULL, PyThread_allocate_lock()};
    if (w.lock == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    PyThread_acquire_lock(w.lock, WAIT_LOCK);
    w.next = loop->waiters;
    loop->waiters = &w;
    PY_TIMEOUT_T us = timeout_ns < 0 ? -1 : (PY_TIMEOUT_T)((timeout_ns + 999) / 1000);
    PyLockStatus status;
    Py_BEGIN_ALLOW_THREADS status = PyThread_acquire_lock_timed(w.lock, us, heed_signals);
    Py_END_ALLOW_THREADS unlist(loop, &w);
    if (status == PY_LOCK_ACQUIRED)
        PyThread_release_lock(w.lock);
    PyThread_free_lock(w.lock);
    return status == PY_LOCK_INTR && PyErr_CheckSignals() < 0 ? -1 : 0;
}

/* Wait until nobody is inside: of one who cannot go back. */
void drive_await(LoopObject *loop) {
    while (loop->inside != 0)
        if (drive_wait(loop, -1, false) < 0)
            PyErr_Clear(); /* no memory: try again, for there is no other way out */
}

/* ---- Using the core ---- */

/* Wait until no other thread is inside; then this one is. ret_before is for drive_leave(). */
int drive_enter(LoopObject *loop, unsigned long *ret_before) {
    unsigned long me = PyThread_get_thread_ident();
    while (loop->inside != 0 && loop->inside != me)
        if (drive_wait(loop, -1, true) < 0)
            return -1;
    if (loop_check_open(loop) < 0)
        return -1;
    *ret_before = loop->inside;
    loop->inside = me;
    return 0;
}

/* What was begun may be work for whoever turns the loop, and waits for something else. */
static bool has_news(const bk_loop *core) {
    return core->change_count > 0 || core->ring_count > 0 || core->awake != NULL ||
           core->closing != NULL;
}

void drive_leave(LoopObject *loop, unsigned long before) {
    unsigned long me = PyThread_get_thread_ident();
    loop->inside = before;
    if (before != 0 || loop->core == NULL) /* whoever called us settles */
        return;
    PyObject *type, *value, *tb; /* engines in Python may run */
    PyErr_Fetch(&type, &value, &tb);
    loop->inside = me;
    bk_loop_settle(loop->core);
    loop->inside = 0;
    PyErr_Restore(type, value, tb);
    if (loop->turner != 0 && loop->turner != me && has_news(loop->core))
        bk_loop_wake(loop->core);
    drive_tell(loop);
}

/* Whether a turn would do nothing but wait for this stream. */
bool drive_is_quiet(const LoopObject *loop, const bk_stream *s) {
    bk_loop *core = loop->core;
    return core->streams == s && s->next == NULL && core->ring_count == 0 && core->awake == NULL &&
           core->closing == NULL && core->dirty == NULL && core->signal_calls == NULL &&
           bk_timers_next(core) < 0 && !atomic_load_explicit(&core->posted, memory_order_relaxed);
}

/* ---- Turning ---- */

/* Of the loop's hooks: others may use the core during the wait. */
void drive_before_wait(LoopObject *loop) {
    loop->inside = 0;
    drive_tell(loop);
}

void drive_after_wait(LoopObject *loop) {
    drive_await(loop);
    loop->inside = loop->turner;
}

static int turn(LoopObject *loop, int64_t timeout_ns) {
    loop->turner = loop->inside = PyThread_get_thread_ident();
    int code = bk_loop_turn(loop->core, timeout_ns);
    loop->turner = loop->inside = 0;
    drive_tell(loop);
    PyObject *e = loop->error;
    if (e != NULL) { /* of a signal's handler, most often */
        loop->error = NULL;
        loop->core->stopping = false;
        PyErr_SetObject((PyObject *)Py_TYPE(e), e);
        Py_DECREF(e);
        return -1;
    }
    return code < 0 ? loop_raise(code) : 0;
}

int drive_refuse(void) {
    PyErr_SetString(PyExc_RuntimeError, "a connection cannot be waited for from within a "
                                        "callback of its own loop");
    return -1;
}

/* One turn of the loop, of at most timeout_ns (< 0: for ever), or what another thread's turn
   brings: after it, look whether it has brought what is waited for. */
int drive_turn(LoopObject *loop, int64_t timeout_ns) {
    unsigned long me = PyThread_get_thread_ident();
    if (loop_check_open(loop) < 0)
        return -1;
    if (loop->inside == me || loop->turner == me || (loop->turner == 0 && loop->core->turning))
        return drive_refuse();
    if (loop->turner == 0 && loop->inside == 0)
        return turn(loop, timeout_ns);
    return drive_wait(loop, timeout_ns, true);
}
