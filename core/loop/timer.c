/*
 * timer.c: timers, in a 4-ary heap of (time, order of start). A stopped timer leaves a gap in the
 * heap, which is closed when it comes to the top, or when the gaps are half of it: stopping costs
 * O(1), amortised, and the timer's own memory is free at once. Called by owners of timers, and by
 * the turn in loop.c.
 */
#include "core/loop/loop.h"

static bool before(const bk_timer_entry *a, const bk_timer_entry *b) {
    return a->when < b->when || (a->when == b->when && a->order < b->order);
}

static void put(bk_loop *loop, uint32_t place, bk_timer_entry entry) {
    loop->timers[place] = entry;
    if (entry.timer != NULL)
        entry.timer->place = place + 1;
}

static void sift_up(bk_loop *loop, uint32_t place, bk_timer_entry entry) {
    while (place > 0) {
        uint32_t parent = (place - 1) / 4;
        if (!before(&entry, &loop->timers[parent]))
            break;
        put(loop, place, loop->timers[parent]);
        place = parent;
    }
    put(loop, place, entry);
}

static void sift_down(bk_loop *loop, uint32_t place, bk_timer_entry entry) {
    for (;;) {
        uint32_t child = place * 4 + 1, end = child + 4, least = child;
        if (child >= loop->timer_count)
            break;
        if (end > loop->timer_count)
            end = loop->timer_count;
        for (uint32_t i = child + 1; i < end; i++)
            if (before(&loop->timers[i], &loop->timers[least]))
                least = i;
        if (!before(&loop->timers[least], &entry))
            break;
        put(loop, place, loop->timers[least]);
        place = least;
    }
    put(loop, place, entry);
}

static bk_timer *take_first(bk_loop *loop) {
    bk_timer *first = loop->timers[0].timer;
    bk_timer_entry last = loop->timers[--loop->timer_count];
    if (loop->timer_count > 0)
        sift_down(loop, 0, last);
    if (first != NULL)
        first->place = 0;
    else
        loop->timer_stopped--;
    return first;
}

static void close_gaps(bk_loop *loop) {
    uint32_t kept = 0;
    for (uint32_t i = 0; i < loop->timer_count; i++)
        if (loop->timers[i].timer != NULL)
            put(loop, kept++, loop->timers[i]);
    loop->timer_count = kept;
    loop->timer_stopped = 0;
    for (uint32_t i = kept > 1 ? (kept - 2) / 4 + 1 : 0; i-- > 0;)
        sift_down(loop, i, loop->timers[i]);
}

int bk_timer_start(bk_loop *loop, bk_timer *timer, int64_t when, bk_fn fn, void *arg) {
    if (loop == NULL || timer == NULL || fn == NULL || when < 0)
        return -EINVAL;
    if (timer->place != 0)
        return -EBUSY;
    if (loop->timer_count == loop->timer_room) {
        uint32_t room = loop->timer_room ? loop->timer_room * 2 : 32;
        bk_timer_entry *timers = loop->os->resize(loop->os, loop->timers, room * sizeof *timers);
        if (timers == NULL)
            return -ENOMEM;
        loop->timers = timers;
        loop->timer_room = room;
    }
    timer->when = when;
    timer->order = loop->timer_order++;
    timer->fn = fn;
    timer->arg = arg;
    /* One that starts itself anew in the past must not come before those that are due. */
    int64_t due = when > loop->firing ? when : loop->firing;
    sift_up(loop, loop->timer_count++, (bk_timer_entry){due, timer->order, timer});
    return 0;
}

void bk_timer_stop(bk_loop *loop, bk_timer *timer) {
    if (loop == NULL || timer == NULL || timer->place == 0)
        return;
    loop->timers[timer->place - 1].timer = NULL;
    timer->place = 0;
    loop->timer_stopped++;
    /* Most are stopped soon after they were started, and stand last. */
    while (loop->timer_count > 0 && loop->timers[loop->timer_count - 1].timer == NULL) {
        loop->timer_count--;
        loop->timer_stopped--;
    }
    if (loop->timer_stopped > 32 && loop->timer_stopped > loop->timer_count / 2)
        close_gaps(loop);
}

int64_t bk_timers_next(bk_loop *loop) {
    while (loop->timer_count > 0 && loop->timers[0].timer == NULL)
        take_first(loop);
    return loop->timer_count > 0 ? loop->timers[0].when : -1;
}

void bk_timers_begin(bk_loop *loop) {
    loop->now_known = false;
    loop->firing = loop->timer_count > 0 ? bk_loop_now(loop) : 0;
    loop->firing_order = loop->timer_order;
}

/* Those started since bk_timers_begin() wait for the next, even if their time has come. */
void bk_timers_fire(bk_loop *loop) {
    while (!loop->broken && loop->firing > 0 && loop->timer_count > 0) {
        const bk_timer_entry *first = &loop->timers[0];
        bool due = first->when <= loop->firing && first->order < loop->firing_order;
        if (first->timer != NULL && !due)
            break;
        bk_timer *timer = take_first(loop);
        if (timer == NULL)
            continue;
        timer->fn(timer->arg);
        bk_loop_settle(loop);
    }
    loop->firing = 0;
}

void bk_timers_close(bk_loop *loop) {
    for (uint32_t i = 0; i < loop->timer_count; i++)
        if (loop->timers[i].timer != NULL)
            loop->timers[i].timer->place = 0;
    bk_dealloc(loop->os, loop->timers);
    loop->timers = NULL;
    loop->timer_count = loop->timer_room = 0;
}
