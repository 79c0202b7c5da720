/*
 * fd.c: the scheme fd, "fd:3", a descriptor that somebody opened for us: a listening socket from a
 * supervisor, a connected one, one end of a pipe. It is ours then. Called through bk_scheme_fd.
 */
#include "core/serve/serve.h"

#include <stdio.h>

static int fd_check(bk_os *os, const bk_endpoint *endpoint, bk_error *error) {
    const char *text = endpoint->path;
    size_t digits = strspn(text, "0123456789");
    if (endpoint->host != NULL || digits == 0 || text[digits] != '\0')
        return bk_error_set(error, BK_EENDPOINT, endpoint->rest,
                            "%.20s: is followed by the number of a descriptor, as in %.20s:3",
                            endpoint->scheme, endpoint->scheme);
    int fd = (int)bk_parse_number(text, BK_FD_MAX - 1);
    int code = fd < 0 ? -EBADF : os->fd_kind(os, fd);
    if (code >= 0)
        code = bk_close_on_exec(os, fd); /* it is ours now, not our children's */
    if (code < 0)
        return bk_error_set(error, code, endpoint->rest, "descriptor %.20s cannot be used: %s",
                            endpoint->path, bk_strerror(code));
    return fd;
}

bool bk_fd_is_listening(bk_os *os, int fd) {
    int listening = 0;
    unsigned size = sizeof listening;
    return os->getsockopt(os, fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) >= 0 && listening;
}

/* A pipe's end and a file may be open in one direction only: asking for no bytes tells. */
static int fd_open_sides(bk_loop *loop, int fd, bk_transport **ret_transport) {
    bk_os *os = loop->os;
    int kind = os->fd_kind(os, fd);
    bool one_way = kind == BK_FD_PIPE || kind == BK_FD_FILE;
    char byte = 0;
    const struct iovec none = {&byte, 0};
    int read_fd = one_way && os->read(os, fd, &byte, 0) == -EBADF ? -1 : fd;
    int write_fd = one_way && os->write(os, fd, &none, 1) == -EBADF ? -1 : fd;
    return bk_fd_transport(loop, read_fd, write_fd, 1, ret_transport);
}

int bk_fd_open(bk_loop *loop, int fd, bk_error *error, bk_transport **ret_transport) {
    bk_os *os = loop->os;
    if (os->fd_kind(os, fd) != BK_FD_SOCKET)
        return fd_open_sides(loop, fd, ret_transport);
    struct sockaddr_storage peer;
    unsigned size = sizeof peer;
    int code = os->getpeername(os, fd, (struct sockaddr *)&peer, &size);
    if (code < 0)
        return bk_error_set(error, code, 0, "descriptor %d is a socket that is not connected", fd);
    return bk_socket_transport(loop, fd, ret_transport);
}

/* ---- Listening ---- */

static int fd_listen(bk_loop *loop, const bk_endpoint *endpoint, const bk_protocol *protocol,
                     bk_error *error, bk_listener **ret_listener) {
    bk_transport *transport;
    char name[24];
    int fd = fd_check(loop->os, endpoint, error);
    if (fd < 0)
        return fd;
    if (bk_fd_is_listening(loop->os, fd))
        return bk_listen_fd(loop, fd, protocol, ret_listener);
    int code = bk_fd_open(loop, fd, error, &transport);
    if (code < 0)
        return code;
    snprintf(name, sizeof name, "fd:%d", fd);
    return bk_listen_once(loop, name, transport, protocol, ret_listener);
}

/* ---- Connecting ---- */

static int fd_connect(bk_loop *loop, const bk_endpoint *endpoint, const bk_protocol *protocol,
                      void *user, bk_error *error, bk_stream **ret_stream) {
    bk_transport *transport;
    int fd = fd_check(loop->os, endpoint, error);
    int code = fd < 0 ? fd : bk_fd_open(loop, fd, error, &transport);
    return code < 0 ? code : bk_connect_transport(loop, transport, protocol, user, ret_stream);
}

const bk_scheme bk_scheme_fd = {
    .size = sizeof(bk_scheme),
    .name = "fd",
    .listen = fd_listen,
    .connect = fd_connect,
};
