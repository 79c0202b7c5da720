/*
 * machine.c: what all machines have in common: when they are given what arrived, and what happens
 * to the rest meanwhile. Called by machines on one side and by runners (run.c) on the other.
 *
 * Three things stop a machine: it waits, it is blocked by a full queue, it has closed. What arrives
 * then is held; and the end, too, is told only when nothing is held any more. Starting TLS stops it
 * for the rest of what it is being given, which is dropped with all that is held.
 */
#include <becket-protocols.h>

#include "core/os/os.h"

#include <assert.h>

enum {
    MACHINE_WAITING = 1 << 0,
    MACHINE_BLOCKED = 1 << 1,
    MACHINE_CLOSED = 1 << 2,
    MACHINE_DROPS = 1 << 3, /* TLS was started from within start, receive or ended */
    MACHINE_STOPS = MACHINE_WAITING | MACHINE_BLOCKED | MACHINE_CLOSED | MACHINE_DROPS,
    MACHINE_BUSY = 1 << 4,   /* within start, receive or ended */
    MACHINE_END = 1 << 5,    /* the peer's direction is over */
    MACHINE_ENDED = 1 << 6,  /* … and the machine knows */
    MACHINE_PAUSED = 1 << 7, /* what the runner was last told */
};

int bk_machine_ready(const bk_machine *m) {
    if (m == NULL)
        return 0;
    return !(m->flags & MACHINE_STOPS);
}

int bk_machine_wants(const bk_machine *m) {
    if (m == NULL)
        return 0;
    return !(m->flags & (MACHINE_PAUSED | MACHINE_CLOSED | MACHINE_END));
}

static void machine_forget(bk_machine *m) {
    bk_dealloc(m->os, m->held);
    m->held = NULL;
    m->held_used = m->held_size = 0;
}

static void machine_leave(bk_machine *m) {
    m->flags &= ~(unsigned)(MACHINE_BUSY | MACHINE_DROPS);
}

static size_t machine_give(bk_machine *m, const char *data, size_t n) {
    size_t used = 0;
    m->flags |= MACHINE_BUSY;
    while (used < n && bk_machine_ready(m)) {
        size_t taken = m->ops->receive(m, data + used, n - used);
        assert(taken <= n - used && (taken > 0 || !bk_machine_ready(m)));
        used += taken;
    }
    if (m->flags & MACHINE_DROPS)
        used = n;
    machine_leave(m);
    return used;
}

static int machine_hold(bk_machine *m, const char *data, size_t n) {
    size_t left = m->held_size - m->held_used;
    if (n > SIZE_MAX - left)
        return -ENOMEM;
    if (m->held_used > 0)
        memmove(m->held, m->held + m->held_used, left);
    m->held_used = 0;
    m->held_size = left;
    char *held = m->os->resize(m->os, m->held, left + n);
    if (held == NULL)
        return -ENOMEM;
    memcpy(held + left, data, n);
    m->held = held;
    m->held_size = left + n;
    return 0;
}

static void machine_tell_end(bk_machine *m) {
    m->flags |= MACHINE_ENDED | MACHINE_BUSY;
    int goes_on = BK_HAS(m->ops, ended) ? m->ops->ended(m) : 0;
    machine_leave(m);
    /* One that still waits for an answer closes when it has it: it is asked again then. */
    if (goes_on)
        return;
    if (m->flags & MACHINE_WAITING)
        m->flags &= ~(unsigned)MACHINE_ENDED;
    else
        bk_machine_close(m);
}

static void machine_tell_runner(bk_machine *m) {
    bool stop = !bk_machine_ready(m);
    if ((m->flags & MACHINE_CLOSED) || stop == !!(m->flags & MACHINE_PAUSED))
        return;
    m->flags ^= MACHINE_PAUSED;
    if (stop && BK_HAS(m->runner, pause))
        m->runner->pause(m);
    else if (!stop && BK_HAS(m->runner, resume))
        m->runner->resume(m);
}

/* After anything that may have changed what can be done. */
static void machine_settle(bk_machine *m) {
    if (m->flags & MACHINE_BUSY)
        return;
    if (m->held != NULL && bk_machine_ready(m)) {
        m->held_used += machine_give(m, m->held + m->held_used, m->held_size - m->held_used);
        if (m->held_used == m->held_size)
            machine_forget(m);
    }
    if (m->held == NULL && bk_machine_ready(m) && (m->flags & MACHINE_END) &&
        !(m->flags & MACHINE_ENDED))
        machine_tell_end(m);
    if (m->flags & MACHINE_CLOSED)
        machine_forget(m);
    machine_tell_runner(m);
}

int bk_machine_send(bk_machine *m, const void *data, size_t n, bk_release release, void *arg) {
    if (m != NULL && m->runner != NULL && !(m->flags & MACHINE_CLOSED))
        return m->runner->send(m, data, n, release, arg);
    if (release != BK_COPY)
        release(arg);
    return m == NULL ? -EINVAL : -EPIPE;
}

static void machine_close(bk_machine *m, int why) {
    if (m == NULL || m->flags & MACHINE_CLOSED)
        return;
    m->flags |= MACHINE_CLOSED;
    if (m->runner != NULL)
        m->runner->close(m, why);
    machine_settle(m);
}

void bk_machine_close(bk_machine *m) {
    machine_close(m, 0);
}

void bk_machine_abort(bk_machine *m, int why) {
    machine_close(m, why < 0 ? why : -ECANCELED);
}

void bk_machine_wait(bk_machine *m) {
    if (m == NULL)
        return;
    m->flags |= MACHINE_WAITING;
    machine_settle(m);
}

void bk_machine_go(bk_machine *m) {
    if (m == NULL)
        return;
    m->flags &= ~(unsigned)MACHINE_WAITING;
    machine_settle(m);
}

void bk_machine_timeout(bk_machine *m, unsigned seconds) {
    if (m != NULL && m->runner != NULL && BK_HAS(m->runner, timeout))
        m->runner->timeout(m, seconds);
}

void bk_machine_peer(bk_machine *m, char *ret_text, size_t room) {
    if (ret_text == NULL || room == 0)
        return;
    ret_text[0] = '\0';
    if (m != NULL && m->runner != NULL && BK_HAS(m->runner, peer))
        m->runner->peer(m, ret_text, room);
}

int bk_machine_start_tls(bk_machine *m, const void *last, size_t n) {
    if (m == NULL || (last == NULL && n > 0))
        return -EINVAL;
    if (m->runner == NULL || m->flags & MACHINE_CLOSED)
        return -EPIPE;
    int r = bk_machine_secure(m);
    if (r != 0)
        return r < 0 ? r : -EALREADY;
    r = m->runner->start_tls(m, last, n);
    if (r < 0)
        return r;
    if (m->flags & MACHINE_BUSY)
        m->flags |= MACHINE_DROPS; /* what is held may be what it is reading */
    else
        machine_forget(m);
    machine_settle(m);
    return 0;
}

int bk_machine_secure(bk_machine *m) {
    if (m == NULL)
        return -EINVAL;
    if (m->runner == NULL || !BK_HAS(m->runner, secure))
        return -ENOTSUP;
    int r = m->runner->secure(m);
    if (r == 0 && !BK_HAS(m->runner, start_tls))
        return -ENOTSUP;
    return r > 0 ? 1 : r;
}

int bk_machine_start(bk_machine *m, const bk_runner_ops *runner, void *state) {
    if (m == NULL || runner == NULL || m->runner != NULL)
        return -EINVAL;
    m->runner = runner;
    m->runner_state = state;
    m->flags |= MACHINE_BUSY;
    int r = BK_HAS(m->ops, start) ? m->ops->start(m) : 0;
    machine_leave(m);
    if (r < 0)
        m->flags |= MACHINE_CLOSED;
    machine_settle(m);
    return r < 0 ? r : 0;
}

void bk_machine_refuse(bk_machine *m, const bk_runner_ops *runner, void *state, int why) {
    if (m == NULL || runner == NULL || m->runner != NULL || !BK_HAS(m->ops, refuse))
        return;
    m->runner = runner;
    m->runner_state = state;
    m->flags |= MACHINE_BUSY;
    m->ops->refuse(m, why);
    machine_leave(m);
}

int bk_machine_feed(bk_machine *m, const void *data, size_t n) {
    if (m == NULL)
        return -EINVAL;
    if (m->flags & MACHINE_BUSY)
        return -EBUSY;
    assert(m->held == NULL || !bk_machine_ready(m)); /* what is held goes first */
    size_t used = machine_give(m, data, n);
    if (m->flags & MACHINE_CLOSED)
        used = n;
    int r = used < n ? machine_hold(m, (const char *)data + used, n - used) : 0;
    machine_settle(m);
    return r;
}

void bk_machine_end(bk_machine *m) {
    if (m == NULL)
        return;
    m->flags |= MACHINE_END;
    machine_settle(m);
}

void bk_machine_block(bk_machine *m, int on) {
    if (m == NULL)
        return;
    if (BK_HAS(m->ops, blocked))
        m->ops->blocked(m, on);
    else if (on)
        m->flags |= MACHINE_BLOCKED;
    else
        m->flags &= ~(unsigned)MACHINE_BLOCKED;
    machine_settle(m);
}

void bk_machine_time_out(bk_machine *m) {
    if (m == NULL || m->runner == NULL || m->flags & MACHINE_CLOSED || !BK_HAS(m->ops, timed_out))
        return;
    m->flags |= MACHINE_BUSY;
    m->ops->timed_out(m);
    machine_leave(m);
}

void bk_machine_free(bk_machine *m) {
    if (m == NULL)
        return;
    assert(!(m->flags & MACHINE_BUSY));
    m->flags |= MACHINE_CLOSED;
    machine_forget(m);
    m->runner = NULL;
    m->ops->free(m);
}
