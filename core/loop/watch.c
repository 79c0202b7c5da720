/*
 * watch.c: what each descriptor wants, a read slot and a write slot, and keeping the notifier up to
 * date on it with as few calls as can be: changes made in one turn are folded into one. An event
 * for a descriptor that was forgotten in the meantime is recognised by the generation in its tag.
 * Called by streams and listeners through bk_watch_set(), and by the turn in loop.c.
 */
#include "core/loop/loop.h"

static int make_room(bk_loop *loop, int fd) {
    if ((uint32_t)fd < loop->watch_count)
        return 0;
    if (fd >= BK_FD_MAX)
        return -EMFILE;
    uint32_t count = loop->watch_count ? loop->watch_count : 64;
    while (count <= (uint32_t)fd)
        count += count / 4; /* by little: the rest is memory for connections that are not there */
    /* Twice as many: while bk_watches_apply() goes through them, each may be listed once more. */
    int *changes = loop->os->resize(loop->os, loop->changes, 2 * (size_t)count * sizeof *changes);
    if (changes == NULL)
        return -ENOMEM;
    loop->changes = changes;
    bk_watch *watches = loop->os->resize(loop->os, loop->watches, count * sizeof *watches);
    if (watches == NULL)
        return -ENOMEM;
    memset(watches + loop->watch_count, 0, (count - loop->watch_count) * sizeof *watches);
    loop->watches = watches;
    loop->watch_count = count;
    return 0;
}

static unsigned wanted(const bk_watch *w) {
    return (w->fn[0] != NULL ? BK_READ : 0) | (w->fn[1] != NULL ? BK_WRITE : 0);
}

static void note_change(bk_loop *loop, int fd) {
    bk_watch *w = &loop->watches[fd];
    if (!w->changed && wanted(w) != w->armed) {
        w->changed = 1;
        loop->changes[loop->change_count++] = fd;
    }
}

int bk_watch_set(bk_loop *loop, int fd, unsigned direction, bk_watch_fn fn, void *arg) {
    if (loop == NULL || (direction != BK_READ && direction != BK_WRITE))
        return -EINVAL;
    if (fd < 0)
        return -EBADF;
    if (fn == NULL && (uint32_t)fd >= loop->watch_count)
        return 0;
    int code = make_room(loop, fd);
    if (code < 0)
        return code;
    bk_watch *w = &loop->watches[fd];
    int slot = direction == BK_WRITE;
    w->fn[slot] = fn;
    w->arg[slot] = fn != NULL ? arg : NULL;
    note_change(loop, fd);
    return 0;
}

int bk_watch_apply(bk_loop *loop, int fd) {
    if (loop == NULL)
        return -EINVAL;
    if (fd < 0 || (uint32_t)fd >= loop->watch_count)
        return fd < 0 ? -EBADF : 0;
    bk_watch *w = &loop->watches[fd];
    unsigned want = wanted(w);
    if (want == w->armed)
        return 0;
    uint64_t tag = (uint64_t)w->generation << 32 | (uint32_t)fd;
    int code = want ? loop->notifier.ops->arm(&loop->notifier, fd, want, tag)
                    : loop->notifier.ops->disarm(&loop->notifier, fd);
    if (code >= 0)
        w->armed = (uint8_t)want;
    return code;
}

void bk_watch_forget(bk_loop *loop, int fd) {
    if (loop == NULL || fd < 0 || (uint32_t)fd >= loop->watch_count)
        return;
    bk_watch *w = &loop->watches[fd];
    w->fn[0] = w->fn[1] = NULL;
    w->arg[0] = w->arg[1] = NULL;
    w->generation++;
    if (w->armed)
        (void)loop->notifier.ops->disarm(&loop->notifier, fd);
    w->armed = 0;
}

/* Tell a descriptor's owners. The table may move, and the descriptor be forgotten, at each call. */
static void tell(bk_loop *loop, int fd, uint32_t generation, unsigned events) {
    for (int slot = 0; slot < 2; slot++) {
        bk_watch *w = &loop->watches[fd];
        unsigned direction = slot ? BK_WRITE : BK_READ;
        if (w->generation != generation || !(events & direction) || w->fn[slot] == NULL)
            continue;
        unsigned told = direction | (events & BK_HANGUP);
        if (slot == 0 && w->fn[1] == w->fn[0] && w->arg[1] == w->arg[0]) {
            told |= events & BK_WRITE; /* one owner in both directions is called once */
            events = 0;
        }
        w->fn[slot](w->arg[slot], told);
        bk_loop_settle(loop);
        if (loop->broken)
            return;
    }
}

/* A descriptor that cannot be watched is told so; it stays listed, and is told again next turn,
   until its owner has let go of it. Returns whether anybody was told anything. */
bool bk_watches_apply(bk_loop *loop) {
    uint32_t count = loop->change_count, kept = 0;
    bool told = false;
    for (uint32_t i = 0; i < count; i++) {
        int fd = loop->changes[i];
        loop->watches[fd].changed = 0;
        if (loop->broken || bk_watch_apply(loop, fd) >= 0) {
            if (loop->broken)
                note_change(loop, fd);
            continue;
        }
        tell(loop, fd, loop->watches[fd].generation, BK_READ | BK_WRITE | BK_HANGUP);
        note_change(loop, fd);
        told = true;
    }
    /* What was listed while we went through stands behind what we have dealt with. */
    for (uint32_t i = count; i < loop->change_count; i++)
        loop->changes[kept++] = loop->changes[i];
    loop->change_count = kept;
    return told;
}

/* After `broken` the rest is lost and comes again: events are level-triggered. */
void bk_watches_dispatch(bk_loop *loop, int count) {
    for (int i = 0; i < count && !loop->broken; i++) {
        int fd = (int)(uint32_t)loop->ready[i].tag;
        uint32_t generation = (uint32_t)(loop->ready[i].tag >> 32);
        unsigned events = loop->ready[i].events;
        if ((uint32_t)fd >= loop->watch_count || loop->watches[fd].generation != generation)
            continue;
        if (events & BK_HANGUP)
            events |= BK_READ | BK_WRITE;
        tell(loop, fd, generation, events);
    }
}

void bk_watches_close(bk_loop *loop) {
    bk_dealloc(loop->os, loop->changes);
    bk_dealloc(loop->os, loop->watches);
    loop->changes = NULL;
    loop->watches = NULL;
    loop->watch_count = loop->change_count = 0;
}
