/*
 * accept.c: accepting connections from one or several listening sockets, in batches, and giving
 * each a stream and the protocol. When descriptors or memory run out it rests, for otherwise a
 * level-triggered notifier would turn the loop in circles; it says so once, and once more when it
 * is over. Called by the schemes that listen on sockets, and by bk_listen_fd().
 */
#include "core/serve/serve.h"

typedef struct door {
    bk_acceptor *acceptor;
    int fd;
    bool unblocked; /* was blocking before, and is to be so again for whom it is given back to */
    bool own;       /* made here: nobody else has it, unless the acceptor is shared */
} door;

struct bk_acceptor {
    bk_loop *loop;
    const bk_protocol *protocol;
    bk_timer rest;
    int trouble;     /* why it rested last; 0: all is well */
    unsigned pauses; /* BK_PAUSE_…: who wants none accepted */
    bool shared;     /* its sockets are others' too */
    bool busy;       /* within accept_ready: a protocol may close the listener there */
    bool freed;      /* … and has */
    int count;
    door doors[];
};

int bk_acceptor_new(bk_loop *loop, const bk_protocol *protocol, int room,
                    bk_acceptor **ret_acceptor) {
    bk_acceptor *a = bk_alloc_zero(loop->os, sizeof *a + (size_t)room * sizeof a->doors[0]);
    if (a == NULL)
        return -ENOMEM;
    a->loop = loop;
    a->protocol = protocol;
    *ret_acceptor = a;
    return 0;
}

void bk_acceptor_add(bk_acceptor *a, int fd) {
    a->doors[a->count++] = (door){.acceptor = a, .fd = fd, .own = true};
}

int bk_acceptor_adopt(bk_acceptor *a, int fd, bool borrowed) {
    int was = a->loop->os->set_nonblocking(a->loop->os, fd, 1);
    if (was < 0)
        return was;
    a->doors[a->count++] = (door){.acceptor = a, .fd = fd, .unblocked = was == 0 && !borrowed};
    return 0;
}

void bk_acceptor_drop(bk_acceptor *a) {
    for (int i = 0; i < a->count; i++) {
        bk_watch_forget(a->loop, a->doors[i].fd);
        if (a->doors[i].unblocked)
            (void)a->loop->os->set_nonblocking(a->loop->os, a->doors[i].fd, 0);
    }
    a->count = 0;
}

void bk_acceptor_free(void *arg) {
    bk_acceptor *a = arg;
    bk_timer_stop(a->loop, &a->rest);
    for (int i = 0; i < a->count; i++) {
        bk_watch_forget(a->loop, a->doors[i].fd);
        bk_close_fd(a->loop->os, a->doors[i].fd);
    }
    a->count = 0;
    a->freed = true;
    if (!a->busy)
        bk_dealloc(a->loop->os, a);
}

/* ---- Resting ---- */

static void accept_ready(void *arg, unsigned events);
static void rest_over(void *arg);

/* Without memory for a timer there is no rest: rather busy than deaf. */
static void rest(bk_acceptor *a, int code) {
    int64_t when = bk_loop_now(a->loop) + BK_ACCEPT_REST_MS * BK_MILLISECOND;
    if (bk_timer_start(a->loop, &a->rest, when, rest_over, a) == 0)
        for (int i = 0; i < a->count; i++)
            (void)bk_watch_set(a->loop, a->doors[i].fd, BK_READ, NULL, NULL);
    bool told = a->trouble != 0;
    a->trouble = code;
    if (!told) /* last: who is told may close the listener */
        bk_loop_log(a->loop, code, "cannot accept connections: %s; trying again every %d ms",
                    bk_strerror(code), BK_ACCEPT_REST_MS);
}

static int watch_doors(bk_acceptor *a) {
    int code = 0;
    for (int i = 0; i < a->count && code >= 0; i++)
        code = bk_watch_set(a->loop, a->doors[i].fd, BK_READ, accept_ready, &a->doors[i]);
    return code;
}

static void rest_over(void *arg) {
    bk_acceptor *a = arg;
    int code = a->pauses != 0 ? 0 : watch_doors(a);
    if (code < 0)
        rest(a, code);
}

int bk_acceptor_pause(bk_acceptor *a, unsigned who, bool on) {
    bool before = a->pauses != 0;
    a->pauses = on ? a->pauses | who : a->pauses & ~who;
    if (before == (a->pauses != 0))
        return 0;
    if (before)
        return a->rest.place != 0 ? 0 : watch_doors(a);
    for (int i = 0; i < a->count; i++)
        (void)bk_watch_set(a->loop, a->doors[i].fd, BK_READ, NULL, NULL);
    return 0;
}

void bk_acceptor_share(bk_acceptor *a) {
    a->shared = true;
}

int bk_acceptor_sockets(const bk_acceptor *a, int *ret_sockets, int room) {
    for (int i = 0; i < a->count && i < room; i++)
        ret_sockets[i] = a->doors[i].fd;
    return a->count;
}

static void recover(bk_acceptor *a) {
    bool rested = a->trouble != 0;
    a->trouble = 0;
    if (rested)
        bk_loop_log(a->loop, 0, "connections are accepted again");
}

/* ---- Accepting ---- */

/* Failures of the one connection that was to be accepted, not of accepting: accept(2). */
static bool is_passing(int code) {
    static const int passing[] = {ECONNABORTED, EPROTO,    EINTR,        EPERM,      ENETDOWN,
                                  ENOPROTOOPT,  EHOSTDOWN, EHOSTUNREACH, ENETUNREACH};
    for (size_t i = 0; i < sizeof passing / sizeof passing[0]; i++)
        if (code == -passing[i])
            return true;
    return false;
}

void bk_welcome(bk_loop *loop, int fd, const struct sockaddr *peer, unsigned size,
                const bk_protocol *protocol) {
    bk_transport *transport;
    int code = bk_socket_transport_accepted(loop, fd, peer, size, &transport);
    if (code < 0) {
        bk_close_fd(loop->os, fd);
    } else {
        code = bk_stream_new(loop, transport, protocol, NULL, NULL);
        if (code < 0)
            transport->ops->close(transport);
    }
    if (code < 0)
        bk_loop_log(loop, code, "a connection was accepted and closed: %s", bk_strerror(code));
    bk_loop_settle(loop);
}

/* One connection; false: that was the last for now. */
static bool accept_one(bk_acceptor *a, int listening) {
    struct sockaddr_storage peer = {.ss_family = AF_UNIX};
    unsigned size = sizeof peer;
    int fd = a->loop->os->accept(a->loop->os, listening, (struct sockaddr *)&peer, &size);
    if (fd == -EAGAIN) {
        recover(a);
        return false;
    }
    if (fd >= 0) {
        recover(a);
        bk_welcome(a->loop, fd, (struct sockaddr *)&peer, size, a->protocol);
    } else if (!is_passing(fd)) {
        rest(a, fd);
        return false;
    }
    return true;
}

/* At most so many; false: the acceptor is no more. */
static bool accept_some(bk_acceptor *a, int fd, int most, bool heed_pause) {
    a->busy = true;
    for (int i = 0; i < most && !a->freed && !a->loop->broken && !(heed_pause && a->pauses); i++)
        if (!accept_one(a, fd))
            break;
    a->busy = false;
    if (!a->freed)
        return true;
    bk_dealloc(a->loop->os, a);
    return false;
}

static void accept_ready(void *arg, unsigned events) {
    const door *d = arg;
    (void)events;
    int most = d->acceptor->shared ? BK_ACCEPTS_SHARED : BK_ACCEPTS_PER_EVENT;
    (void)accept_some(d->acceptor, d->fd, most, true);
}

/* First nobody new is let in, or he would be cut off between the last accept() and the end. */
void bk_acceptor_drain(bk_acceptor *a) {
    bk_os *os = a->loop->os;
    for (int i = 0; i < a->count; i++)
        if (a->doors[i].own && !a->shared && BK_HAS(os, refuse))
            (void)os->refuse(os, a->doors[i].fd);
    for (int i = 0; i < a->count; i++)
        if (!accept_some(a, a->doors[i].fd, BK_ACCEPTS_AT_END, false))
            return;
}

/* What is accepted inherits this: a small answer must not wait for an acknowledgement. */
static void set_nodelay(bk_os *os, int fd) {
    struct sockaddr_storage local = {.ss_family = AF_UNIX};
    unsigned size = sizeof local;
    int on = 1;
    if (os->getsockname(os, fd, (struct sockaddr *)&local, &size) >= 0 &&
        (local.ss_family == AF_INET || local.ss_family == AF_INET6))
        (void)os->setsockopt(os, fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

int bk_acceptor_start(bk_acceptor *a) {
    for (int i = 0; i < a->count; i++) {
        int fd = a->doors[i].fd;
        set_nodelay(a->loop->os, fd);
        int code = bk_watch_set(a->loop, fd, BK_READ, accept_ready, &a->doors[i]);
        if (code >= 0)
            code = bk_watch_apply(a->loop, fd); /* select may have no room for it: say so now */
        if (code < 0)
            return code;
    }
    return 0;
}

int bk_acceptor_listener(bk_acceptor *a, const char *name, void (*close)(void *arg), void *arg,
                         bk_listener **ret_listener) {
    bk_listener *listener;
    int code = bk_listener_new(a->loop, name, close, arg, &listener);
    if (code < 0)
        return code;
    listener->acceptor = a;
    *ret_listener = listener;
    return 0;
}
