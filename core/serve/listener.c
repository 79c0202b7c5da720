/*
 * listener.c: the handle of an endpoint that is listened at, whatever its scheme; and the listener
 * that brings a single stream, over something that is connected already. Called by servers, by the
 * schemes, and by the loop when it ends.
 */
#include "core/serve/serve.h"

#include <stdio.h>

/* ---- The handle ---- */

static void free_fronts(bk_listener_front *fronts) {
    while (fronts != NULL) {
        bk_listener_front *next = fronts->next;
        fronts->free(fronts);
        fronts = next;
    }
}

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

static void release(bk_listener *l) {
    bk_os *os = l->loop->os;
    if (!l->closed || l->users > 0)
        return;
    free_fronts(l->fronts);
    bk_dealloc(os, l->name);
    bk_dealloc(os, l);
}

void bk_listener_hold(bk_listener *listener) {
    listener->users++;
}

void bk_listener_drop(bk_listener *listener) {
    listener->users--;
    release(listener);
}

/* Those whose transport has not opened yet, and which the fronts would have next: they are nobody's
   when those are gone. */
static void drop_unopened(bk_listener *l) {
    static const bk_protocol nobody = {.size = sizeof nobody, .name = "nobody"};
    for (bk_listener_front *f = l->fronts; f != NULL; f = f->next)
        for (bk_stream *s = l->loop->streams; s != NULL; s = s->next)
            if (s->protocol == &f->front.base && s->visit == NULL) {
                s->protocol = &nobody;
                bk_stream_fail(s, -ECANCELED);
            }
}

void bk_listener_close(bk_listener *listener) {
    if (listener == NULL)
        return;
    drop_unopened(listener);
    *listener->link = listener->next;
    if (listener->next != NULL)
        listener->next->link = listener->link;
    listener->acceptor = NULL;
    listener->close(listener->arg);
    for (bk_listener_front *f = listener->fronts; f != NULL; f = f->next)
        if (f->stop != NULL)
            f->stop(f);
    listener->closed = true;
    release(listener);
}

void bk_listener_reload(bk_listener *listener) {
    for (bk_listener_front *f = listener == NULL ? NULL : listener->fronts; f != NULL; f = f->next)
        if (f->reload != NULL)
            f->reload(f);
}

int bk_listener_pause(bk_listener *listener, int on) {
    if (listener == NULL)
        return -EINVAL;
    return listener->acceptor == NULL
               ? -ENOTSUP
               : bk_acceptor_pause(listener->acceptor, BK_PAUSE_OWNER, on != 0);
}

void bk_listener_drain(bk_listener *listener) {
    if (listener != NULL && listener->acceptor != NULL)
        bk_acceptor_drain(listener->acceptor);
}

int bk_listener_sockets(const bk_listener *listener, int *ret_sockets, int room) {
    if (listener == NULL || room < 0 || (ret_sockets == NULL && room > 0))
        return -EINVAL;
    return listener->acceptor == NULL ? 0
                                      : bk_acceptor_sockets(listener->acceptor, ret_sockets, room);
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

static int listen_sockets(bk_loop *loop, const bk_listen_options *o, const bk_protocol *protocol,
                          bk_listener **ret_listener);

/* What is being listened at, and what has been made of it so far. */
typedef struct opening {
    bk_loop *loop;
    bk_endpoint endpoint;
    const bk_scheme *scheme;
    const bk_cover *cover;
    const bk_listen_options *options;
    const bk_protocol *protocol; /* who has a stream first */
    bk_listener_front *fronts;
} opening;

static void put_in_front(opening *o, bk_listener_front *f) {
    f->next = o->fronts;
    o->fronts = f;
    o->protocol = &f->front.base;
}

/* From the protocol outwards. */
static int make_fronts(opening *o, bk_error *error) {
    bk_listener_front *f;
    int code = 0;
    if (o->cover != NULL) {
        code = o->cover->listen(o->loop, o->cover, &o->endpoint, o->protocol, error, &f);
        if (code < 0)
            return code;
        put_in_front(o, f);
    }
    if (o->options->gate != NULL) {
        code = bk_gate_front(o->loop, o->options->gate, o->cover != NULL, o->protocol, error, &f);
        if (code < 0)
            return code;
        put_in_front(o, f);
    }
    if (bk_endpoint_option(&o->endpoint, "proxy") != NULL) {
        code = bk_proxy_listen(o->loop, &o->endpoint, o->protocol, error, &f);
        if (code < 0)
            return code;
        put_in_front(o, f);
    }
    return code;
}

static int open_listener(opening *o, bk_error *error, bk_listener **ret_listener) {
    if (o->options->socket_count > 0)
        return listen_sockets(o->loop, o->options, o->protocol, ret_listener);
    return o->scheme->listen(o->loop, &o->endpoint, o->protocol, error, ret_listener);
}

/* The fronts are the listener's from here on. */
static int give_fronts(opening *o, bk_listener *listener) {
    listener->fronts = o->fronts;
    o->fronts = NULL;
    for (bk_listener_front *f = listener->fronts; f != NULL; f = f->next)
        f->listener = listener;
    for (bk_listener_front *f = listener->fronts; f != NULL; f = f->next) {
        int code = f->listening == NULL ? 0 : f->listening(f);
        if (code < 0)
            return code;
    }
    return 0;
}

static int listen_at(opening *o, bk_error *error, bk_listener **ret_listener) {
    if (!BK_HAS(o->scheme, listen))
        return bk_error_set(error, -ENOTSUP, 0, "%s is for clients, not for servers",
                            o->scheme->name);
    int code = make_fronts(o, error);
    if (code == 0)
        code = open_listener(o, error, ret_listener);
    if (code == 0 && (code = give_fronts(o, *ret_listener)) < 0)
        bk_listener_close(*ret_listener);
    if (code == 0 && o->options->shared && (*ret_listener)->acceptor != NULL)
        bk_acceptor_share((*ret_listener)->acceptor);
    free_fronts(o->fronts);
    return code;
}

static int open_endpoint(bk_loop *loop, const char *text, const bk_protocol *protocol,
                         const bk_listen_options *options, bk_error *error,
                         bk_listener **ret_listener) {
    opening o = {.loop = loop, .options = options, .protocol = protocol};
    int code = bk_scheme_open(loop, text, &o.endpoint, &o.scheme, &o.cover, error);
    if (code < 0)
        return code;
    code = listen_at(&o, error, ret_listener);
    bk_endpoint_clear(loop->os, &o.endpoint);
    return code;
}

/* A table of an older header's size is filled up with nothing. */
static int take_options(const bk_listen_options *from, bk_listen_options *ret_options) {
    *ret_options = (bk_listen_options){.size = sizeof *ret_options};
    if (from == NULL)
        return 0;
    if (from->size < sizeof from->size)
        return -EINVAL;
    memcpy(ret_options, from, from->size < sizeof *from ? from->size : sizeof *from);
    return ret_options->socket_count < 0 ||
                   (ret_options->socket_count > 0 && ret_options->sockets == NULL)
               ? -EINVAL
               : 0;
}

int bk_listen_with(bk_loop *loop, const char *endpoint, const bk_protocol *protocol,
                   const bk_listen_options *options, bk_error *ret_error,
                   bk_listener **ret_listener) {
    bk_error error = {0};
    bk_listener *listener = NULL;
    bk_listen_options all;
    int code = take_options(options, &all);
    if (loop == NULL || endpoint == NULL || protocol == NULL || protocol->size == 0)
        code = -EINVAL;
    if (code == 0)
        code = open_endpoint(loop, endpoint, protocol, &all, &error, &listener);
    if (code < 0 && error.code == 0) /* a scheme that says no more */
        bk_error_set(&error, code, 0, "cannot listen: %s", bk_strerror(code));
    if (code < 0 && ret_error != NULL)
        *ret_error = error;
    if (code >= 0 && ret_listener != NULL)
        *ret_listener = listener;
    return code < 0 ? code : 0;
}

int bk_listen(bk_loop *loop, const char *endpoint, const bk_protocol *protocol, bk_error *ret_error,
              bk_listener **ret_listener) {
    return bk_listen_with(loop, endpoint, protocol, NULL, ret_error, ret_listener);
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

/* What is borrowed stays non-blocking afterwards: other listeners, of other processes too, accept
   from the same sockets. */
static int adopt_all(bk_acceptor *a, const int *fds, int count, bool borrowed) {
    int code = 0;
    for (int i = 0; i < count && code >= 0; i++)
        code = bk_acceptor_adopt(a, fds[i], borrowed);
    return code < 0 ? code : bk_acceptor_start(a);
}

/* The sockets are somebody else's: given back, not closed. */
static void let_go(void *arg) {
    bk_acceptor_drop(arg);
    bk_acceptor_free(arg);
}

/* close: bk_acceptor_free, when the sockets are the listener's from then on; or let_go. */
static int listen_over(bk_loop *loop, const int *fds, int count, const char *name,
                       const bk_protocol *protocol, void (*close)(void *arg),
                       bk_listener **ret_listener) {
    char own[sizeof "unix:" + 3 * sizeof(struct sockaddr_un)];
    bk_acceptor *a;
    int code = bk_acceptor_new(loop, protocol, count, &a);
    if (code < 0)
        return code;
    if (name == NULL) {
        name_socket(loop, fds[0], own, sizeof own);
        name = own;
    }
    code = adopt_all(a, fds, count, close == let_go);
    if (code >= 0)
        code = bk_acceptor_listener(a, name, close, a, ret_listener);
    if (code < 0)
        let_go(a);
    return code;
}

static int listen_sockets(bk_loop *loop, const bk_listen_options *o, const bk_protocol *protocol,
                          bk_listener **ret_listener) {
    return listen_over(loop, o->sockets, o->socket_count, NULL, protocol, let_go, ret_listener);
}

int bk_listen_fds(bk_loop *loop, const int *fds, int count, const char *name,
                  const bk_protocol *protocol, bk_listener **ret_listener) {
    return listen_over(loop, fds, count, name, protocol, bk_acceptor_free, ret_listener);
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
