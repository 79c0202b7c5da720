/*
 * poll.c: the notifier over POSIX poll(2): everywhere, any descriptor, any number; a wait costs
 * what is watched. Called through bk_notifier_poll.
 */
#include "core/notify/notify.h"

#include <poll.h>

typedef struct state {
    struct pollfd *fds; /* dense: what is armed, in no order */
    uint64_t *tags;     /* beside fds */
    int *places;        /* by descriptor: 1 + its place in fds; 0: not armed */
    int count, room, place_count;
    int next; /* where the next wait begins to look, so that a small room starves nobody */
} state;

static int poll_open(bk_notifier *n) {
    n->state = bk_alloc_zero(n->os, sizeof(state));
    return n->state == NULL ? -ENOMEM : 0;
}

static void poll_close(bk_notifier *n) {
    state *s = n->state;
    bk_dealloc(n->os, s->fds);
    bk_dealloc(n->os, s->tags);
    bk_dealloc(n->os, s->places);
    bk_dealloc(n->os, s);
}

static int poll_forked(bk_notifier *n) {
    (void)n; /* all of it is memory */
    return 0;
}

static int grow_places(bk_notifier *n, int fd) {
    state *s = n->state;
    if (fd >= 0 && fd < s->place_count)
        return 0;
    if (fd < 0 || fd >= BK_FD_MAX)
        return fd < 0 ? -EBADF : -EMFILE;
    int count = s->place_count ? s->place_count : 64;
    while (count <= fd)
        count *= 2;
    int *places = n->os->resize(n->os, s->places, (size_t)count * sizeof *places);
    if (places == NULL)
        return -ENOMEM;
    memset(places + s->place_count, 0, (size_t)(count - s->place_count) * sizeof *places);
    s->places = places;
    s->place_count = count;
    return 0;
}

static int grow_fds(bk_notifier *n) {
    state *s = n->state;
    if (s->count < s->room)
        return 0;
    int room = s->room ? s->room * 2 : 64;
    struct pollfd *fds = n->os->resize(n->os, s->fds, (size_t)room * sizeof *fds);
    if (fds == NULL)
        return -ENOMEM;
    s->fds = fds;
    uint64_t *tags = n->os->resize(n->os, s->tags, (size_t)room * sizeof *tags);
    if (tags == NULL)
        return -ENOMEM;
    s->tags = tags;
    s->room = room;
    return 0;
}

static int poll_arm(bk_notifier *n, int fd, unsigned events, uint64_t tag) {
    state *s = n->state;
    int code = grow_places(n, fd);
    if (code < 0)
        return code;
    if (s->places[fd] == 0) {
        code = grow_fds(n);
        if (code < 0)
            return code;
        s->places[fd] = ++s->count;
    }
    int i = s->places[fd] - 1;
    short wanted = (short)((events & BK_READ ? POLLIN : 0) | (events & BK_WRITE ? POLLOUT : 0));
    s->fds[i] = (struct pollfd){.fd = fd, .events = wanted};
    s->tags[i] = tag;
    return 0;
}

static int poll_disarm(bk_notifier *n, int fd) {
    state *s = n->state;
    if (fd < 0 || fd >= s->place_count || s->places[fd] == 0)
        return 0;
    int hole = s->places[fd] - 1, last = --s->count;
    s->fds[hole] = s->fds[last];
    s->tags[hole] = s->tags[last];
    s->places[s->fds[hole].fd] = hole + 1;
    s->places[fd] = 0;
    return 0;
}

static int poll_wait(bk_notifier *n, int64_t timeout_ns, bk_ready *ret_ready, int room) {
    state *s = n->state;
    int left = n->os->poll(n->os, s->fds, (unsigned)s->count, timeout_ns);
    if (left <= 0)
        return left;
    int found = 0, looked = 0, i = s->next < s->count ? s->next : 0;
    for (; looked < s->count && left > 0 && found < room; looked++) {
        unsigned e = (unsigned)s->fds[i].revents;
        if (e != 0) {
            ret_ready[found].tag = s->tags[i];
            ret_ready[found].events = (e & POLLIN ? BK_READ : 0) | (e & POLLOUT ? BK_WRITE : 0) |
                                      (e & (POLLERR | POLLHUP | POLLNVAL) ? BK_HANGUP : 0);
            found++;
            left--;
        }
        i = i + 1 < s->count ? i + 1 : 0;
    }
    s->next = i;
    return found;
}

const bk_notifier_ops bk_notifier_poll = {
    .size = sizeof(bk_notifier_ops),
    .name = "poll",
    .traits = BK_ANY_FD | BK_FILES,
    .open = poll_open,
    .close = poll_close,
    .forked = poll_forked,
    .arm = poll_arm,
    .disarm = poll_disarm,
    .wait = poll_wait,
};
