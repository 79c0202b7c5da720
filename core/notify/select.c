/*
 * select.c: the notifier over select(2), the oldest call: descriptors below FD_SETSIZE, and a wait
 * costs the highest of them. Called through bk_notifier_select.
 */
#include "core/notify/notify.h"

#include <sys/select.h>

typedef struct state {
    fd_set reads, writes;
    int highest; /* -1: none */
    int next;    /* where the next wait begins to look, so that a small room starves nobody */
    uint64_t tags[FD_SETSIZE];
} state;

static int select_open(bk_notifier *n) {
    state *s = bk_alloc_zero(n->os, sizeof *s);
    if (s == NULL)
        return -ENOMEM;
    FD_ZERO(&s->reads);
    FD_ZERO(&s->writes);
    s->highest = -1;
    n->state = s;
    return 0;
}

static void select_close(bk_notifier *n) {
    bk_dealloc(n->os, n->state);
}

static int select_forked(bk_notifier *n) {
    (void)n; /* all of it is memory */
    return 0;
}

static int select_arm(bk_notifier *n, int fd, unsigned events, uint64_t tag) {
    state *s = n->state;
    if (fd < 0 || fd >= FD_SETSIZE)
        return fd < 0 ? -EBADF : -EMFILE; /* FD_SET beyond it writes past the set */
    FD_CLR(fd, &s->reads);
    FD_CLR(fd, &s->writes);
    if (events & BK_READ)
        FD_SET(fd, &s->reads);
    if (events & BK_WRITE)
        FD_SET(fd, &s->writes);
    s->tags[fd] = tag;
    if (fd > s->highest)
        s->highest = fd;
    return 0;
}

static int select_disarm(bk_notifier *n, int fd) {
    state *s = n->state;
    if (fd < 0 || fd > s->highest)
        return 0;
    FD_CLR(fd, &s->reads);
    FD_CLR(fd, &s->writes);
    while (s->highest >= 0 && !FD_ISSET(s->highest, &s->reads) && !FD_ISSET(s->highest, &s->writes))
        s->highest--;
    return 0;
}

static int select_wait(bk_notifier *n, int64_t timeout_ns, bk_ready *ret_ready, int room) {
    state *s = n->state;
    fd_set reads = s->reads, writes = s->writes;
    int count = s->highest + 1;
    int left = n->os->select(n->os, count, &reads, &writes, NULL, timeout_ns);
    if (left <= 0)
        return left;
    int found = 0, looked = 0, fd = s->next < count ? s->next : 0;
    for (; looked < count && found < room; looked++) {
        unsigned events =
            (FD_ISSET(fd, &reads) ? BK_READ : 0) | (FD_ISSET(fd, &writes) ? BK_WRITE : 0);
        if (events != 0)
            ret_ready[found++] = (bk_ready){.tag = s->tags[fd], .events = events};
        fd = fd + 1 < count ? fd + 1 : 0;
    }
    s->next = fd;
    return found;
}

const bk_notifier_ops bk_notifier_select = {
    .size = sizeof(bk_notifier_ops),
    .name = "select",
    .traits = BK_ANY_FD | BK_FILES,
    .open = select_open,
    .close = select_close,
    .forked = select_forked,
    .arm = select_arm,
    .disarm = select_disarm,
    .wait = select_wait,
};
