/*
 * local.c: a transport and a scheme of one's own, local:name, over abstract UNIX sockets, which
 * have no file; and a server that echoes there. docs/write-a-transport.md goes through it.
 */
#include <becket.h>

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

/* ---- The transport ---- */

typedef struct local {
    bk_transport base; /* first: the core knows it by this */
    bk_os *os;
    int fd;
} local;

static ssize_t local_read(bk_transport *t, void *room, size_t n) {
    local *self = (local *)t;
    return self->os->recv(self->os, self->fd, room, n);
}

static ssize_t local_write(bk_transport *t, const struct iovec *v, int n) {
    local *self = (local *)t;
    return self->os->send(self->os, self->fd, v, n);
}

static int local_end(bk_transport *t) {
    local *self = (local *)t;
    int code = self->os->shutdown(self->os, self->fd, SHUT_WR);
    return code == -ENOTCONN ? 0 : code; /* the peer is gone: reading tells */
}

static void local_close(bk_transport *t) {
    local *self = (local *)t;
    (void)self->os->close(self->os, self->fd);
    free(self);
}

static int local_fd(bk_transport *t, unsigned direction) {
    (void)direction;
    return ((local *)t)->fd;
}

static int local_query(bk_transport *t, int what, void *ret_value, size_t *size) {
    static const char name[] = "local";
    (void)t;
    if (what != BK_QUERY_NAME)
        return -ENOTSUP;
    if (*size < sizeof name)
        return -ENOSPC;
    memcpy(ret_value, name, sizeof name);
    *size = sizeof name;
    return 0;
}

static const bk_transport_ops local_ops = {
    .size = sizeof(bk_transport_ops),
    .name = "local",
    .read = local_read,
    .write = local_write,
    .end = local_end,
    .close = local_close,
    .fd = local_fd,
    .query = local_query,
};

/* The socket is the transport's, unless this fails. */
static int local_new(bk_loop *loop, int fd, bk_transport **ret_transport) {
    local *self = malloc(sizeof *self);
    if (self == NULL)
        return -ENOMEM;
    *self = (local){.base = {.ops = &local_ops}, .os = bk_loop_os(loop), .fd = fd};
    *ret_transport = &self->base;
    return 0;
}

/* ---- The scheme ---- */

static int fail(bk_error *error, int code, size_t position, const char *text) {
    error->code = code;
    error->position = position;
    snprintf(error->text, sizeof error->text, "%s", text);
    return code;
}

static int local_address(const bk_endpoint *endpoint, struct sockaddr_un *ret_address,
                         unsigned *ret_size, bk_error *error) {
    size_t n = strlen(endpoint->path);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (endpoint->host != NULL || n == 0 || n >= sizeof address.sun_path)
        return fail(error, BK_EENDPOINT, endpoint->rest,
                    "a name is needed here, of up to 107 bytes: local:name");
    memcpy(address.sun_path + 1, endpoint->path, n); /* behind a NUL: it has no file */
    *ret_address = address;
    *ret_size = (unsigned)(offsetof(struct sockaddr_un, sun_path) + 1 + n);
    return 0;
}

typedef struct local_listener {
    bk_loop *loop;
    const bk_protocol *protocol;
    int fd;
} local_listener;

static void local_ready(void *arg, unsigned events) {
    local_listener *l = arg;
    bk_transport *transport;
    bk_os *os = bk_loop_os(l->loop);
    (void)events;
    int fd = os->accept(os, l->fd, NULL, NULL);
    if (fd < 0)
        return; /* he has gone again, or there is no room: the loop asks as long as he waits */
    int code = local_new(l->loop, fd, &transport);
    if (code < 0) {
        (void)os->close(os, fd);
        return;
    }
    if (bk_stream_new(l->loop, transport, l->protocol, NULL, NULL) < 0)
        local_close(transport);
}

static void local_leave(void *arg) {
    local_listener *l = arg;
    bk_os *os = bk_loop_os(l->loop);
    bk_watch_forget(l->loop, l->fd);
    (void)os->close(os, l->fd);
    free(l);
}

static int local_listen(bk_loop *loop, const bk_endpoint *endpoint, const bk_protocol *protocol,
                        bk_error *error, bk_listener **ret_listener) {
    struct sockaddr_un address;
    unsigned size;
    char name[128];
    int code = local_address(endpoint, &address, &size, error);
    if (code < 0)
        return code;
    local_listener *l = malloc(sizeof *l);
    bk_os *os = bk_loop_os(loop);
    if (l == NULL)
        return -ENOMEM;
    *l = (local_listener){.loop = loop, .protocol = protocol};
    l->fd = code = os->socket(os, AF_UNIX, SOCK_STREAM, 0);
    if (code < 0) {
        free(l);
        return code;
    }
    code = os->bind(os, l->fd, (struct sockaddr *)&address, size);
    if (code >= 0)
        code = os->listen(os, l->fd, 100);
    if (code >= 0)
        code = bk_watch_set(loop, l->fd, BK_READ, local_ready, l);
    snprintf(name, sizeof name, "local:%s", endpoint->path);
    if (code >= 0)
        code = bk_listener_new(loop, name, local_leave, l, ret_listener);
    if (code < 0)
        local_leave(l);
    return code;
}

static int local_connect(bk_loop *loop, const bk_endpoint *endpoint, const bk_protocol *protocol,
                         void *user, bk_error *error, bk_stream **ret_stream) {
    struct sockaddr_un address;
    bk_transport *transport;
    unsigned size;
    int code = local_address(endpoint, &address, &size, error);
    if (code < 0)
        return code;
    bk_os *os = bk_loop_os(loop);
    int fd = code = os->socket(os, AF_UNIX, SOCK_STREAM, 0);
    if (code >= 0)
        code = os->connect(os, fd, (struct sockaddr *)&address, size); /* never waits, for these */
    if (code >= 0)
        code = local_new(loop, fd, &transport);
    if (code < 0) {
        if (fd >= 0)
            (void)os->close(os, fd);
        return code;
    }
    code = bk_stream_new(loop, transport, protocol, user, ret_stream);
    if (code < 0)
        local_close(transport);
    return code;
}

static const bk_scheme local_scheme = {
    .size = sizeof(bk_scheme),
    .name = "local",
    .listen = local_listen,
    .connect = local_connect,
};

/* ---- A server ---- */

static void received(bk_stream *s, const void *data, size_t n) {
    (void)bk_stream_write(s, data, n, BK_COPY, NULL);
}

static const bk_protocol echo = {.size = sizeof echo, .name = "echo", .received = received};

int main(int argc, char **argv) {
    bk_loop *loop;
    bk_error error;
    const char *endpoint = argc > 1 ? argv[1] : "local:echo";
    int code = bk_loop_new(NULL, &loop);
    if (code >= 0)
        code = bk_scheme_add(loop, &local_scheme);
    if (code >= 0 && (code = bk_listen(loop, endpoint, &echo, &error, NULL)) < 0)
        fprintf(stderr, "%s: %s\n", endpoint, error.text);
    if (code >= 0)
        code = bk_loop_run(loop);
    return code < 0;
}
