/*
 * epoll.c: the notifier over Linux's epoll(7). The kernel keeps what is armed; we keep it too, in a
 * byte and a tag per descriptor, because after fork the child must build an epoll of its own.
 * Called through bk_notifier_epoll.
 */
#include "core/notify/notify.h"

#include <sys/epoll.h>

typedef struct armed {
    uint64_t tag;
    unsigned events; /* 0: not armed */
} armed;

typedef struct state {
    int epoll;
    armed *fds; /* by descriptor */
    int count;
} state;

static int epoll_open(bk_notifier *n) {
    state *s = bk_alloc_zero(n->os, sizeof *s);
    if (s == NULL)
        return -ENOMEM;
    s->epoll = n->os->epoll_create(n->os);
    if (s->epoll < 0) {
        int code = s->epoll;
        bk_dealloc(n->os, s);
        return code;
    }
    n->state = s;
    return 0;
}

static void epoll_close(bk_notifier *n) {
    state *s = n->state;
    bk_close_fd(n->os, s->epoll);
    bk_dealloc(n->os, s->fds);
    bk_dealloc(n->os, s);
}

static int control(bk_notifier *n, int op, int fd) {
    state *s = n->state;
    struct epoll_event event = {.data.u64 = s->fds[fd].tag};
    if (s->fds[fd].events & BK_READ)
        event.events |= EPOLLIN | EPOLLRDHUP;
    if (s->fds[fd].events & BK_WRITE)
        event.events |= EPOLLOUT;
    return n->os->epoll_ctl(n->os, s->epoll, op, fd, &event);
}

static int epoll_forked(bk_notifier *n) {
    state *s = n->state;
    int fresh = n->os->epoll_create(n->os);
    if (fresh < 0)
        return fresh;
    bk_close_fd(n->os, s->epoll);
    s->epoll = fresh;
    for (int fd = 0; fd < s->count; fd++) {
        int code = s->fds[fd].events ? control(n, EPOLL_CTL_ADD, fd) : 0;
        if (code == -EBADF) /* closed behind our back */
            s->fds[fd].events = 0;
        else if (code < 0)
            return code;
    }
    return 0;
}

static int make_room(bk_notifier *n, int fd) {
    state *s = n->state;
    if (fd >= 0 && fd < s->count)
        return 0;
    if (fd < 0 || fd >= BK_FD_MAX)
        return fd < 0 ? -EBADF : -EMFILE;
    int count = s->count ? s->count : 64;
    while (count <= fd)
        count += count / 4; /* by little: the rest is memory for connections that are not there */
    armed *fds = n->os->resize(n->os, s->fds, (size_t)count * sizeof *fds);
    if (fds == NULL)
        return -ENOMEM;
    memset(fds + s->count, 0, (size_t)(count - s->count) * sizeof *fds);
    s->fds = fds;
    s->count = count;
    return 0;
}

/* A descriptor that was closed behind our back, or came back, is put right here (ENOENT, EEXIST).
 */
static int epoll_arm(bk_notifier *n, int fd, unsigned events, uint64_t tag) {
    state *s = n->state;
    int code = make_room(n, fd);
    if (code < 0)
        return code;
    armed before = s->fds[fd];
    s->fds[fd] = (armed){tag, events};
    code = control(n, before.events ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd);
    if (code == -ENOENT)
        code = control(n, EPOLL_CTL_ADD, fd);
    else if (code == -EEXIST)
        code = control(n, EPOLL_CTL_MOD, fd);
    if (code < 0)
        s->fds[fd] = before;
    return code;
}

static int epoll_disarm(bk_notifier *n, int fd) {
    state *s = n->state;
    if (fd < 0 || fd >= s->count || !s->fds[fd].events)
        return 0;
    s->fds[fd].events = 0;
    int code = control(n, EPOLL_CTL_DEL, fd);
    return code == -ENOENT || code == -EBADF ? 0 : code;
}

static int epoll_wait_(bk_notifier *n, int64_t timeout_ns, bk_ready *ret_ready, int room) {
    state *s = n->state;
    struct epoll_event events[BK_EVENTS_PER_WAIT];
    if (room > BK_EVENTS_PER_WAIT)
        room = BK_EVENTS_PER_WAIT;
    int count = n->os->epoll_wait(n->os, s->epoll, events, room, timeout_ns);
    for (int i = 0; i < count; i++) {
        unsigned e = events[i].events;
        ret_ready[i].tag = events[i].data.u64;
        ret_ready[i].events = (e & (EPOLLIN | EPOLLRDHUP) ? BK_READ : 0) |
                              (e & EPOLLOUT ? BK_WRITE : 0) |
                              (e & (EPOLLERR | EPOLLHUP) ? BK_HANGUP : 0);
    }
    return count;
}

static int epoll_fd(bk_notifier *n) {
    return ((state *)n->state)->epoll;
}

const bk_notifier_ops bk_notifier_epoll = {
    .size = sizeof(bk_notifier_ops),
    .name = "epoll",
    .traits = BK_ANY_FD | BK_ACTIVE_COST | BK_POLLABLE,
    .open = epoll_open,
    .close = epoll_close,
    .forked = epoll_forked,
    .arm = epoll_arm,
    .disarm = epoll_disarm,
    .wait = epoll_wait_,
    .fd = epoll_fd,
};
