/*
 * fd.c: the transport over one or two descriptors of any kind: pipes, terminals, files, adopted
 * sockets, standard input and output. Called through bk_fd_transport().
 *
 * A side is a direction of it. Descriptors that a notifier cannot watch (regular files, /dev/null)
 * never make one wait, and neither does a side that is not there: they are BK_NOW.
 */
#include "core/stream/stream.h"

#if defined(_WIN32)
#include <winsock2.h>
#define SHUT_WR SD_SEND
#else
#include <sys/socket.h>
#endif

typedef struct side {
    int fd; /* -1: not there, or not any more */
    bool is_socket, is_now;
    bool unblocked; /* was blocking before, and is to be so again */
} side;

typedef struct fd_transport {
    bk_transport base;
    bk_loop *loop;
    side in, out;
    bool own;
} fd_transport;

/* ---- Moving bytes ---- */

static ssize_t fd_read(bk_transport *t, void *room, size_t n) {
    fd_transport *self = (fd_transport *)t;
    bk_os *os = self->loop->os;
    if (self->in.fd < 0)
        return 0;
    return self->in.is_socket ? os->recv(os, self->in.fd, room, n)
                              : os->read(os, self->in.fd, room, n);
}

static ssize_t fd_write(bk_transport *t, const struct iovec *v, int n) {
    fd_transport *self = (fd_transport *)t;
    bk_os *os = self->loop->os;
    if (self->out.fd < 0)
        return -EPIPE;
    return self->out.is_socket ? os->send(os, self->out.fd, v, n)
                               : os->write(os, self->out.fd, v, n);
}

static unsigned fd_wants(bk_transport *t, unsigned directions) {
    fd_transport *self = (fd_transport *)t;
    unsigned now = (self->in.is_now ? BK_READ : 0) | (self->out.is_now ? BK_WRITE : 0);
    return (directions & ~now) | (directions & now ? BK_NOW : 0);
}

/* ---- Letting go ---- */

/* A stream that is closed by its owner may find its descriptors as they were. */
static void let_go(fd_transport *self, side *s) {
    bk_os *os = self->loop->os;
    if (s->fd < 0)
        return;
    bk_watch_forget(self->loop, s->fd);
    if (self->own)
        bk_close_fd(os, s->fd);
    else if (s->unblocked)
        (void)os->set_nonblocking(os, s->fd, 0);
    *s = (side){.fd = -1, .is_now = true};
}

static int fd_end(bk_transport *t) {
    fd_transport *self = (fd_transport *)t;
    bk_os *os = self->loop->os;
    bool is_one = self->in.fd == self->out.fd;
    if (self->out.fd < 0)
        return 0;
    int code = -ENOTSUP;
    if (self->out.is_socket)
        code = os->shutdown(os, self->out.fd, SHUT_WR);
    if (code == -ENOTCONN)
        code = 0;
    if (is_one || !self->own)
        return code;
    let_go(self, &self->out);
    return 0;
}

static void fd_close(bk_transport *t) {
    fd_transport *self = (fd_transport *)t;
    if (self->out.fd == self->in.fd)
        self->out.fd = -1;
    let_go(self, &self->out);
    let_go(self, &self->in);
    bk_dealloc(self->loop->os, self);
}

void bk_fd_transport_disown(bk_transport *t) {
    fd_transport *self = (fd_transport *)t;
    side *sides[] = {&self->in, &self->out};
    for (int i = 0; i < 2; i++) {
        bk_watch_forget(self->loop, sides[i]->fd);
        *sides[i] = (side){.fd = -1, .is_now = true};
    }
}

static int fd_fd(bk_transport *t, unsigned direction) {
    fd_transport *self = (fd_transport *)t;
    const side *s = direction == BK_WRITE ? &self->out : &self->in;
    return s->is_now ? -1 : s->fd;
}

/* ---- Questions ---- */

static int fd_query(bk_transport *t, int what, void *ret_value, size_t *size) {
    fd_transport *self = (fd_transport *)t;
    bk_os *os = self->loop->os;
    const side *in = &self->in;
    switch (what) {
    case BK_QUERY_FD:
        return in->fd < 0 ? -ENOTSUP : bk_query_answer(ret_value, size, &in->fd, sizeof in->fd);
    case BK_QUERY_NAME:
        return bk_query_answer(ret_value, size, "fd", sizeof "fd");
    case BK_QUERY_PEER:
        return in->is_socket ? bk_query_name(os, os->getpeername, in->fd, ret_value, size)
                             : -ENOTSUP;
    case BK_QUERY_LOCAL:
        return in->is_socket ? bk_query_name(os, os->getsockname, in->fd, ret_value, size)
                             : -ENOTSUP;
    default:
        return -ENOTSUP;
    }
}

static const bk_transport_ops fd_ops = {
    .size = sizeof(bk_transport_ops),
    .name = "fd",
    .read = fd_read,
    .write = fd_write,
    .wants = fd_wants,
    .end = fd_end,
    .close = fd_close,
    .fd = fd_fd,
    .query = fd_query,
};

/* ---- Making one ---- */

static void ignore_ready(void *arg, unsigned events) {
    (void)arg, (void)events;
}

/* Of devices, some can be watched and some cannot: ask the notifier. */
static bool is_unwatchable(bk_loop *loop, int fd) {
    int code = bk_watch_set(loop, fd, BK_READ, ignore_ready, NULL);
    if (code >= 0)
        code = bk_watch_apply(loop, fd);
    bk_watch_forget(loop, fd);
    return code == -EPERM;
}

static int open_side(bk_loop *loop, int fd, side *ret_side) {
    bk_os *os = loop->os;
    int kind = fd < 0 ? BK_FD_FILE : os->fd_kind(os, fd);
    if (kind < 0)
        return kind;
    side s = {.fd = fd < 0 ? -1 : fd, .is_socket = kind == BK_FD_SOCKET};
    s.is_now = kind == BK_FD_FILE || (kind == BK_FD_OTHER && is_unwatchable(loop, fd));
    if (!s.is_now) {
        int was = os->set_nonblocking(os, fd, 1);
        if (was < 0)
            return was;
        s.unblocked = was == 0;
    }
    *ret_side = s;
    return 0;
}

int bk_fd_transport(bk_loop *loop, int read_fd, int write_fd, int own,
                    bk_transport **ret_transport) {
    if (loop == NULL || ret_transport == NULL)
        return -EINVAL;
    bk_os *os = loop->os;
    fd_transport *self = bk_alloc_zero(os, sizeof *self);
    if (self == NULL)
        return -ENOMEM;
    *self = (fd_transport){.base.ops = &fd_ops, .loop = loop, .own = own != 0};
    int code = open_side(loop, read_fd, &self->in);
    if (code >= 0 && write_fd != read_fd) {
        code = open_side(loop, write_fd, &self->out);
        if (code < 0 && self->in.unblocked)
            (void)os->set_nonblocking(os, read_fd, 0);
    } else {
        self->out = self->in;
    }
    if (code < 0) {
        bk_dealloc(os, self);
        return code;
    }
    *ret_transport = &self->base;
    return 0;
}
