/*
 * listener.c: the handle of an endpoint that is listened at, whatever its scheme; and the listener
 * that brings a single stream, over something that is connected already. Called by servers, by the
 * schemes, and by the loop when it ends.
 */
#include "core/serve/serve.h"

#include <stdio.h>

/* ---- The handle ---- */

static void close_all(bk_loop *loop) {
    while (loop->listeners != NULL)
        bk_listener_close(loop->listeners);
}

static const bk_layer layer = {.close = close_all};

int bk_listener_new(bk_loop *loop, const char *name, void (*close)(void *arg), void *arg,
                    bk_listener **ret_listener) {
    if (loop == NULL || name == NULL || close == NULL || ret_listener == NULL)
        return -EINVAL;
    bk_listener *l = bk_alloc(loop->os, sizeof *l);
    if (l == NULL)
        return -ENOMEM;
    *l = (bk_listener){.loop = loop, .close = close, .arg = arg};
    if (bk_listener_rename(l, name) < 0) {
        bk_dealloc(loop->os, l);
        return -ENOMEM;
    }
    l->next = loop->listeners;
    l->link = &loop->listeners;
    if (l->next != NULL)
        l->next->link = &l->next;
    loop->listeners = l;
    loop->layers[BK_LAYER_LISTENERS] = &layer;
    *ret_listener = l;
    return 0;
}

int bk_listener_rename(bk_listener *listener, const char *name) {
    bk_os *os = listener->loop->os;
    size_t n = strlen(name) + 1;
    char *copy = bk_alloc(os, n);
    if (copy == NULL)
        return -ENOMEM;
    memcpy(copy, name, n);
    bk_dealloc(os, listener->name);
    listener->name = copy;
    return 0;
}

void bk_listener_close(bk_listener *listener) {
    if (listener == NULL)
        return;
    *listener->link = listener->next;
    if (listener->next != NULL)
        listener->next->link = listener->link;
    listener->close(listener->arg);
    bk_dealloc(listener->loop->os, listener->name);
    bk_dealloc(listener->loop->os, listener);
}

void bk_listener_reload(bk_listener *listener) {
    if (listener != NULL && listener->reload != NULL)
        listener->reload(listener->arg);
}

const char *bk_listener_name(const bk_listener *listener) {
    return listener == NULL ? NULL : listener->name;
}

void bk_listener_end(bk_listener *listener) {
    listener->over = true;
    if (listener->ended != NULL)
        listener->ended(listener->ended_arg);
}

/* ---- Listening ---- */

static int listen_at(bk_loop *loop, const char *text, const bk_protocol *protocol, bk_error *error,
                     bk_listener **ret_listener) {
    bk_endpoint endpoint;
    const bk_scheme *scheme;
    const bk_cover *cover;
    int code = bk_scheme_open(loop, text, &endpoint, &scheme, &cover, error);
    if (code < 0)
        return code;
    if (!BK_HAS(scheme, listen))
        code = bk_error_set(error, -ENOTSUP, 0, "%s is for clients, not for servers", scheme->name);
    else if (cover != NULL)
        code = cover->listen(loop, cover, scheme, &endpoint, protocol, error, ret_listener);
    else
        code = scheme->listen(loop, &endpoint, protocol, error, ret_listener);
    bk_endpoint_clear(loop->os, &endpoint);
    return code;
}

int bk_listen(bk_loop *loop, const char *endpoint, const bk_protocol *protocol, bk_error *ret_error,
              bk_listener **ret_listener) {
    bk_error error = {0};
    bk_listener *listener = NULL;
    int code = -EINVAL;
    if (loop != NULL && endpoint != NULL && protocol != NULL && protocol->size != 0)
        code = listen_at(loop, endpoint, protocol, &error, &listener);
    if (code < 0 && error.code == 0) /* a scheme that says no more */
        bk_error_set(&error, code, 0, "cannot listen: %s", bk_strerror(code));
    if (code < 0 && ret_error != NULL)
        *ret_error = error;
    if (code >= 0 && ret_listener != NULL)
        *ret_listener = listener;
    return code < 0 ? code : 0;
}

/* ---- A descriptor that listens already ---- */

/* "unix:path", or "unix:@name" of an abstract socket; false: it has no name that can be written. */
static bool name_unix(const struct sockaddr_un *address, unsigned size, char *room) {
    char path[sizeof "./" + sizeof address->sun_path] = "";
    size_t before = offsetof(struct sockaddr_un, sun_path), n = size > before ? size - before : 0;
    if (n > sizeof address->sun_path)
        n = sizeof address->sun_path;
    if (n > 1 && address->sun_path[0] == '\0') {
        if (memchr(address->sun_path + 1, '\0', n - 1) != NULL)
            return false;
        path[0] = '@';
        memcpy(path + 1, address->sun_path + 1, n - 1);
    } else {
        size_t dot = n > 0 && address->sun_path[0] == '@' ? 2 : 0; /* a file, if of such a name */
        memcpy(path, "./", dot);
        memcpy(path + dot, address->sun_path, n); /* it may fill all the room, without a NUL */
    }
    bk_endpoint_encode(path, stpcpy(room, "unix:"));
    return path[0] != '\0';
}

/* The endpoint at which a listening socket is reached; fd:N for kinds we have no name for. */
static void name_socket(bk_loop *loop, int fd, char *room, size_t size) {
    union {
        struct sockaddr any;
        struct sockaddr_in in;
        struct sockaddr_in6 in6;
        struct sockaddr_un un;
        struct sockaddr_storage all;
    } a;
    unsigned n = sizeof a;
    char text[INET6_ADDRSTRLEN];
    memset(&a, 0, sizeof a);
    if (loop->os->getsockname(loop->os, fd, &a.any, &n) < 0)
        a.any.sa_family = AF_UNSPEC;
    if (a.any.sa_family == AF_INET && inet_ntop(AF_INET, &a.in.sin_addr, text, sizeof text) != NULL)
        snprintf(room, size, "tcp://%s:%d", text, ntohs(a.in.sin_port));
    else if (a.any.sa_family == AF_INET6 &&
             inet_ntop(AF_INET6, &a.in6.sin6_addr, text, sizeof text) != NULL)
        snprintf(room, size, "tcp://[%s]:%d", text, ntohs(a.in6.sin6_port));
    else if (a.any.sa_family != AF_UNIX || !name_unix(&a.un, n, room))
        snprintf(room, size, "fd:%d", fd);
}

static int adopt_all(bk_acceptor *a, const int *fds, int count) {
    int code = 0;
    for (int i = 0; i < count && code >= 0; i++)
        code = bk_acceptor_adopt(a, fds[i]);
    return code < 0 ? code : bk_acceptor_start(a);
}

int bk_listen_fds(bk_loop *loop, const int *fds, int count, const char *name,
                  const bk_protocol *protocol, bk_listener **ret_listener) {
    char own[sizeof "unix:" + 3 * sizeof(struct sockaddr_un)];
    bk_acceptor *a;
    int code = bk_acceptor_new(loop, protocol, count, &a);
    if (code < 0)
        return code;
    if (name == NULL) {
        name_socket(loop, fds[0], own, sizeof own);
        name = own;
    }
    code = adopt_all(a, fds, count);
    if (code >= 0)
        code = bk_listener_new(loop, name, bk_acceptor_free, a, ret_listener);
    if (code < 0) {
        bk_acceptor_drop(a);
        bk_acceptor_free(a);
    }
    return code;
}

int bk_listen_fd(bk_loop *loop, int fd, const bk_protocol *protocol, bk_listener **ret_listener) {
    if (loop == NULL || protocol == NULL || protocol->size == 0)
        return -EINVAL;
    if (fd < 0)
        return -EBADF;
    int listening = 0;
    unsigned size = sizeof listening;
    bk_listener *listener;
    int code = loop->os->getsockopt(loop->os, fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size);
    if (code >= 0 && !listening)
        code = -EINVAL;
    if (code >= 0)
        code = bk_listen_fds(loop, &fd, 1, NULL, protocol, &listener);
    if (code >= 0 && ret_listener != NULL)
        *ret_listener = listener;
    return code < 0 ? code : 0;
}

/* ---- One stream over what is there already: standard input and output, an adopted pipe ---- */

/* It learns of the stream's end by putting a close of its own into the transport's table. Lives
   until both the listener and the transport are closed. */
typedef struct once {
    bk_transport_ops ops; /* the transport's own, but for close; first: found by t->ops */
    const bk_transport_ops *before;
    bk_loop *loop;
    const bk_protocol *protocol;
    bk_transport *transport; /* NULL: closed */
    bk_listener *listener;   /* NULL: closed */
    bk_timer start;
} once;

static void once_release(once *o) {
    if (o->transport == NULL && o->listener == NULL)
        bk_dealloc(o->loop->os, o);
}

static void once_transport_close(bk_transport *t) {
    once *o = (once *)t->ops;
    o->transport = NULL;
    t->ops = o->before;
    t->ops->close(t);
    if (o->listener == NULL) {
        once_release(o);
        return;
    }
    bk_listener_end(o->listener); /* which may close it, and release us */
}

static void once_listener_close(void *arg) {
    once *o = arg;
    o->listener = NULL;
    if (o->start.place != 0) { /* nobody has the transport yet */
        bk_timer_stop(o->loop, &o->start);
        o->transport->ops->close(o->transport);
        return;
    }
    once_release(o);
}

static void once_start(void *arg) {
    once *o = arg;
    int code = bk_stream_new(o->loop, o->transport, o->protocol, NULL, NULL);
    if (code >= 0)
        return;
    bk_loop_log(o->loop, code, "%s: %s", o->listener->name, bk_strerror(code));
    o->transport->ops->close(o->transport);
}

int bk_listen_once(bk_loop *loop, const char *name, bk_transport *transport,
                   const bk_protocol *protocol, bk_listener **ret_listener) {
    once *o = bk_alloc(loop->os, sizeof *o);
    if (o == NULL) {
        transport->ops->close(transport);
        return -ENOMEM;
    }
    *o = (once){.ops = *transport->ops,
                .before = transport->ops,
                .loop = loop,
                .protocol = protocol,
                .transport = transport};
    int code = bk_timer_start(loop, &o->start, bk_loop_now(loop), once_start, o);
    if (code >= 0)
        code = bk_listener_new(loop, name, once_listener_close, o, &o->listener);
    if (code < 0) {
        bk_timer_stop(loop, &o->start);
        bk_dealloc(loop->os, o);
        transport->ops->close(transport);
        return code;
    }
    o->ops.close = once_transport_close;
    transport->ops = &o->ops;
    *ret_listener = o->listener;
    return 0;
}
