/*
 * socket.c: the transport over a connected stream socket, TCP or UNIX: they differ in name only.
 * Called by bk_socket_transport() and, for what a listener accepted, by core/serve.
 */
#include "core/stream/stream.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

typedef struct socket_transport {
    bk_transport base;
    bk_os *os;
    int fd;
    /* The peer of a TCP socket, which cannot be asked for any more once it is gone. Of a struct
       sockaddr_in6 that is all but the flow label. */
    uint16_t family;
    uint16_t port;
    uint8_t address[16];
    uint32_t scope;
} socket_transport;

/* There are very many of them: each is only as long as its address. */
static size_t size_for(int family) {
    return family == AF_INET6  ? sizeof(socket_transport)
           : family == AF_INET ? offsetof(socket_transport, address) + sizeof(struct in_addr)
                               : offsetof(socket_transport, port);
}

static ssize_t socket_read(bk_transport *t, void *room, size_t n) {
    socket_transport *self = (socket_transport *)t;
    return self->os->recv(self->os, self->fd, room, n);
}

static ssize_t socket_write(bk_transport *t, const struct iovec *v, int n) {
    socket_transport *self = (socket_transport *)t;
    return self->os->send(self->os, self->fd, v, n);
}

static int socket_end(bk_transport *t) {
    socket_transport *self = (socket_transport *)t;
    int code = self->os->shutdown(self->os, self->fd, SHUT_WR);
    return code == -ENOTCONN ? 0 : code; /* the peer is gone: there is nothing left to end */
}

static void socket_close(bk_transport *t) {
    socket_transport *self = (socket_transport *)t;
    bk_os *os = self->os;
    bk_close_fd(os, self->fd);
    bk_dealloc(os, self);
}

static int socket_fd(bk_transport *t, unsigned direction) {
    (void)direction;
    return ((socket_transport *)t)->fd;
}

static void remember_peer(socket_transport *self, const struct sockaddr *peer) {
    self->family = (uint16_t)peer->sa_family;
    if (peer->sa_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)(const void *)peer;
        self->port = in->sin_port;
        memcpy(self->address, &in->sin_addr, sizeof in->sin_addr);
    } else if (peer->sa_family == AF_INET6) {
        const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)(const void *)peer;
        self->port = in6->sin6_port;
        self->scope = in6->sin6_scope_id;
        memcpy(self->address, &in6->sin6_addr, sizeof in6->sin6_addr);
    }
}

static int query_peer(socket_transport *self, void *ret_value, size_t *size) {
    if (self->family == AF_INET) {
        struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = self->port};
        memcpy(&in.sin_addr, self->address, sizeof in.sin_addr);
        return bk_query_answer(ret_value, size, &in, sizeof in);
    }
    if (self->family == AF_INET6) {
        struct sockaddr_in6 in6 = {
            .sin6_family = AF_INET6, .sin6_port = self->port, .sin6_scope_id = self->scope};
        memcpy(&in6.sin6_addr, self->address, sizeof in6.sin6_addr);
        return bk_query_answer(ret_value, size, &in6, sizeof in6);
    }
    return bk_query_name(self->os, self->os->getpeername, self->fd, ret_value, size);
}

static int socket_query(bk_transport *t, int what, void *ret_value, size_t *size) {
    socket_transport *self = (socket_transport *)t;
    switch (what) {
    case BK_QUERY_FD:
    case BK_QUERY_PLAIN:
        return bk_query_answer(ret_value, size, &self->fd, sizeof self->fd);
    case BK_QUERY_NAME:
        return bk_query_answer(ret_value, size, t->ops->name, strlen(t->ops->name) + 1);
    case BK_QUERY_PEER:
        return query_peer(self, ret_value, size);
    case BK_QUERY_LOCAL:
        return bk_query_name(self->os, self->os->getsockname, self->fd, ret_value, size);
    default:
        return -ENOTSUP;
    }
}

static const bk_transport_ops tcp_ops = {
    .size = sizeof(bk_transport_ops),
    .name = "tcp",
    .read = socket_read,
    .write = socket_write,
    .end = socket_end,
    .close = socket_close,
    .fd = socket_fd,
    .query = socket_query,
};

static const bk_transport_ops unix_ops = {
    .size = sizeof(bk_transport_ops),
    .name = "unix",
    .read = socket_read,
    .write = socket_write,
    .end = socket_end,
    .close = socket_close,
    .fd = socket_fd,
    .query = socket_query,
};

bool bk_is_socket_transport(const bk_transport *t) {
    return t->ops == &tcp_ops || t->ops == &unix_ops;
}

void bk_socket_transport_disown(bk_transport *t) {
    if (bk_is_socket_transport(t))
        ((socket_transport *)t)->fd = -1;
}

int bk_socket_transport_accepted(bk_loop *loop, int fd, const struct sockaddr *peer, unsigned size,
                                 bk_transport **ret_transport) {
    bool local = size < sizeof peer->sa_family || peer->sa_family == AF_UNIX;
    socket_transport *self = bk_alloc_zero(loop->os, size_for(local ? AF_UNIX : peer->sa_family));
    if (self == NULL)
        return -ENOMEM;
    self->base.ops = local ? &unix_ops : &tcp_ops;
    self->os = loop->os;
    self->fd = fd;
    self->family = AF_UNIX;
    if (!local)
        remember_peer(self, peer);
    *ret_transport = &self->base;
    return 0;
}

int bk_socket_transport(bk_loop *loop, int fd, bk_transport **ret_transport) {
    struct sockaddr_storage peer;
    unsigned size = sizeof peer;
    int on = 1;
    if (loop == NULL || ret_transport == NULL)
        return -EINVAL;
    bk_os *os = loop->os;
    int code = os->getpeername(os, fd, (struct sockaddr *)&peer, &size);
    if (code == -ENOTCONN) { /* gone already; the first read will tell */
        size = sizeof peer;
        code = os->getsockname(os, fd, (struct sockaddr *)&peer, &size);
        if (code == 0 && size > sizeof peer.ss_family)
            memset((char *)&peer + sizeof peer.ss_family, 0, size - sizeof peer.ss_family);
    }
    if (code >= 0)
        code = os->set_nonblocking(os, fd, 1);
    if (code < 0)
        return code;
    if (size >= sizeof peer.ss_family && peer.ss_family != AF_UNIX)
        (void)os->setsockopt(os, fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return bk_socket_transport_accepted(loop, fd, (struct sockaddr *)&peer, size, ret_transport);
}
