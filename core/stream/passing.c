/*
 * passing.c: the transport over a UNIX socket through which descriptors come with the bytes: its
 * owner is told of them before the bytes are received. Whoever does not want them closes them.
 * Called by python/_becket/wire.c.
 */
#include "core/stream/stream.h"

#include <sys/socket.h>

typedef struct passing_transport {
    bk_transport base;
    bk_os *os;
    int fd;
    void (*came)(bk_transport *t, const int *fds, int n);
} passing_transport;

static ssize_t passing_read(bk_transport *t, void *room, size_t n) {
    passing_transport *self = (passing_transport *)t;
    int fds[BK_PASSED_FDS], count = BK_PASSED_FDS;
    ssize_t got = self->os->recv_fds(self->os, self->fd, room, n, fds, &count);
    if (got > 0 && count > 0)
        self->came(t, fds, count);
    return got;
}

static ssize_t passing_write(bk_transport *t, const struct iovec *v, int n) {
    passing_transport *self = (passing_transport *)t;
    return self->os->send(self->os, self->fd, v, n);
}

static int passing_end(bk_transport *t) {
    passing_transport *self = (passing_transport *)t;
    int code = self->os->shutdown(self->os, self->fd, SHUT_WR);
    return code == -ENOTCONN ? 0 : code;
}

static void passing_close(bk_transport *t) {
    passing_transport *self = (passing_transport *)t;
    bk_os *os = self->os;
    bk_close_fd(os, self->fd);
    bk_dealloc(os, self);
}

static int passing_fd(bk_transport *t, unsigned direction) {
    (void)direction;
    return ((passing_transport *)t)->fd;
}

static int passing_query(bk_transport *t, int what, void *ret_value, size_t *size) {
    passing_transport *self = (passing_transport *)t;
    switch (what) {
    case BK_QUERY_FD:
        return bk_query_answer(ret_value, size, &self->fd, sizeof self->fd);
    case BK_QUERY_NAME:
        return bk_query_answer(ret_value, size, "unix", sizeof "unix");
    case BK_QUERY_PEER:
        return bk_query_name(self->os, self->os->getpeername, self->fd, ret_value, size);
    case BK_QUERY_LOCAL:
        return bk_query_name(self->os, self->os->getsockname, self->fd, ret_value, size);
    default:
        return -ENOTSUP;
    }
}

static const bk_transport_ops passing_ops = {
    .size = sizeof(bk_transport_ops),
    .name = "unix",
    .read = passing_read,
    .write = passing_write,
    .end = passing_end,
    .close = passing_close,
    .fd = passing_fd,
    .query = passing_query,
};

bool bk_is_passing_transport(const bk_transport *t) {
    return t->ops == &passing_ops;
}

void bk_passing_transport_disown(bk_transport *t) {
    ((passing_transport *)t)->fd = -1;
}

int bk_passing_transport(bk_loop *loop, int fd,
                         void (*came)(bk_transport *t, const int *fds, int n),
                         bk_transport **ret_transport) {
    if (!BK_HAS(loop->os, recv_fds))
        return -ENOTSUP;
    passing_transport *self = bk_alloc_zero(loop->os, sizeof *self);
    if (self == NULL)
        return -ENOMEM;
    self->base.ops = &passing_ops;
    self->os = loop->os;
    self->fd = fd;
    self->came = came;
    *ret_transport = &self->base;
    return 0;
}
