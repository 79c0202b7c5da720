/*
 * connect.c: connecting, for streams that are there before their connection is. Until then such a
 * stream's transport is a connector: it resolves the name in a worker, tries the addresses in turn,
 * and hands over to the transport that comes of it. Closing the stream closes the connector, which
 * is how the attempt is given up. Called by clients through bk_connect(), and by the schemes.
 */
#include "core/serve/serve.h"

#include <stdio.h>

enum {
    /* A UNIX socket whose backlog is full refuses to wait: ask again, this often, for a second. */
    CONNECT_AGAIN_MS = 10,
    CONNECT_AGAIN_TRIES = 100,
};

typedef struct connector connector;

/* A name being resolved; it outlives a connector that gave up. */
typedef struct lookup {
    bk_work work;
    connector *connector; /* NULL: gave up */
    bk_os *os;
    int code;
    struct addrinfo *list;
    char service[8];
    char host[];
} lookup;

struct connector {
    bk_transport base;
    bk_loop *loop;
    bk_timer timer;              /* to begin, and to ask again */
    lookup *lookup;              /* under way */
    struct addrinfo *list;       /* what it brought */
    const struct addrinfo *next; /* to be tried */
    struct addrinfo given;       /* the one address, when no name was */
    struct sockaddr_storage address;
    bk_transport *ready; /* what is connected already */
    int fd;              /* being connected, or -1 */
    int tries;
    int why; /* the most telling failure */
};

/* ---- The connector as a transport: it moves nothing ---- */

static ssize_t connector_read(bk_transport *t, void *room, size_t n) {
    (void)t, (void)room, (void)n;
    return -EAGAIN;
}

static ssize_t connector_write(bk_transport *t, const struct iovec *v, int n) {
    (void)t, (void)v, (void)n;
    return -EAGAIN;
}

static int connector_end(bk_transport *t) {
    (void)t;
    return -EAGAIN;
}

static void drop_fd(connector *c) {
    bk_watch_forget(c->loop, c->fd);
    bk_close_fd(c->loop->os, c->fd);
    c->fd = -1;
}

static void connector_close(bk_transport *t) {
    connector *c = (connector *)t;
    bk_os *os = c->loop->os;
    bk_timer_stop(c->loop, &c->timer);
    drop_fd(c);
    if (c->lookup != NULL)
        c->lookup->connector = NULL;
    if (c->list != NULL)
        os->resolve_free(os, c->list);
    if (c->ready != NULL)
        c->ready->ops->close(c->ready);
    bk_dealloc(os, c);
}

static int connector_fd(bk_transport *t, unsigned direction) {
    (void)t, (void)direction;
    return -1;
}

static const bk_transport_ops connector_ops = {
    .size = sizeof(bk_transport_ops),
    .name = "connecting",
    .read = connector_read,
    .write = connector_write,
    .end = connector_end,
    .close = connector_close,
    .fd = connector_fd,
};

/* ---- Outcomes ---- */

/* The stream was closed, and the connector soon will be. */
static bool gave_up(const connector *c) {
    return c->base.stream->flags & BK_STREAM_CLOSED;
}

static void hand_over(connector *c, bk_transport *transport) {
    c->ready = NULL;
    bk_stream_connected(c->base.stream, transport);
    connector_close(&c->base);
}

/* That this machine cannot reach a kind of address says less than what an address answered. */
static bool says_little(int code) {
    return code == -EAFNOSUPPORT || code == -EADDRNOTAVAIL || code == -ENETUNREACH;
}

static void try_next(connector *c);

static void failed(connector *c, int code) {
    if (c->why == 0 || !says_little(code))
        c->why = code;
    drop_fd(c);
    c->next = c->next->ai_next;
    c->tries = 0;
}

static bool succeeded(connector *c) {
    bk_transport *transport;
    (void)bk_watch_set(c->loop, c->fd, BK_WRITE, NULL, NULL);
    int code = bk_socket_transport(c->loop, c->fd, &transport);
    if (code < 0) {
        failed(c, code);
        return false;
    }
    c->fd = -1;
    hand_over(c, transport);
    return true;
}

/* ---- One address after the other ---- */

static void on_writable(void *arg, unsigned events) {
    connector *c = arg;
    int error = 0;
    unsigned size = sizeof error;
    (void)events;
    if (gave_up(c))
        return;
    int code = c->loop->os->getsockopt(c->loop->os, c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (code < 0 || error != 0)
        failed(c, code < 0 ? code : -error);
    else if (succeeded(c))
        return;
    try_next(c);
}

static int watch_fd(connector *c) {
    int code = bk_watch_set(c->loop, c->fd, BK_WRITE, on_writable, c);
    return code < 0 ? code : bk_watch_apply(c->loop, c->fd);
}

static void on_timer(void *arg) {
    connector *c = arg;
    if (!gave_up(c))
        try_next(c);
}

static int ask_again(connector *c) {
    if (c->tries++ == CONNECT_AGAIN_TRIES)
        return -EAGAIN;
    drop_fd(c);
    return bk_timer_start(c->loop, &c->timer,
                          bk_loop_now(c->loop) + CONNECT_AGAIN_MS * BK_MILLISECOND, on_timer, c);
}

/* 1: connected; 0: it is under way. */
static int try_address(connector *c, const struct addrinfo *a) {
    bk_os *os = c->loop->os;
    c->fd = os->socket(os, a->ai_family, SOCK_STREAM, 0);
    if (c->fd < 0)
        return c->fd;
    int code = os->connect(os, c->fd, a->ai_addr, a->ai_addrlen);
    if (code >= 0)
        return 1;
    if (code == -EINPROGRESS || code == -EINTR)
        return watch_fd(c);
    return code == -EAGAIN && a->ai_family == AF_UNIX ? ask_again(c) : code;
}

static void try_next(connector *c) {
    while (c->next != NULL) {
        int code = try_address(c, c->next);
        if (code == 0 || (code > 0 && succeeded(c)))
            return;
        if (code < 0)
            failed(c, code);
    }
    bk_stream_fail(c->base.stream, c->why != 0 ? c->why : BK_ENAME);
}

/* ---- Names ---- */

static int resolve(bk_os *os, const char *host, const char *service, int flags,
                   struct addrinfo **ret_list) {
    struct addrinfo hints = {
        .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = flags | AI_NUMERICSERV};
    return os->resolve(os, host, service, &hints, ret_list);
}

static void lookup_run(bk_work *work) {
    lookup *l = (lookup *)work;
    l->code = resolve(l->os, l->host, l->service, 0, &l->list);
}

static void lookup_done(bk_work *work) {
    lookup *l = (lookup *)work;
    connector *c = l->connector;
    if (c != NULL) {
        c->lookup = NULL;
        c->list = l->list;
        c->next = l->list;
        c->why = l->code;
        if (!gave_up(c))
            try_next(c);
    } else if (l->list != NULL) {
        l->os->resolve_free(l->os, l->list);
    }
    bk_dealloc(l->os, l);
}

static int look_up(connector *c, const char *host, const char *service) {
    size_t n = strlen(host) + 1;
    lookup *l = bk_alloc_zero(c->loop->os, sizeof *l + n);
    if (l == NULL)
        return -ENOMEM;
    l->work = (bk_work){.run = lookup_run, .done = lookup_done};
    l->connector = c;
    l->os = c->loop->os;
    memcpy(l->host, host, n);
    snprintf(l->service, sizeof l->service, "%s", service);
    int code = bk_work_start(c->loop, &l->work);
    if (code < 0)
        bk_dealloc(c->loop->os, l);
    else
        c->lookup = l;
    return code;
}

/* ---- Beginning ---- */

static connector *new_connector(bk_loop *loop) {
    connector *c = bk_alloc_zero(loop->os, sizeof *c);
    if (c == NULL)
        return NULL;
    c->base.ops = &connector_ops;
    c->loop = loop;
    c->fd = -1;
    return c;
}

/* On failure the connector is closed. */
static int begin(connector *c, int code, const bk_protocol *protocol, void *user,
                 bk_stream **ret_stream) {
    if (code >= 0)
        code = bk_stream_new_connecting(c->loop, &c->base, protocol, user, ret_stream);
    if (code < 0)
        connector_close(&c->base);
    return code;
}

static int begin_soon(connector *c, bk_fn fn) {
    return bk_timer_start(c->loop, &c->timer, bk_loop_now(c->loop), fn, c);
}

int bk_connect_name(bk_loop *loop, const char *host, int port, const bk_protocol *protocol,
                    void *user, bk_stream **ret_stream) {
    char service[8];
    connector *c = new_connector(loop);
    if (c == NULL)
        return -ENOMEM;
    snprintf(service, sizeof service, "%d", port & 0xffff);
    int code = resolve(loop->os, host, service, AI_NUMERICHOST, &c->list);
    if (code >= 0) {
        c->next = c->list;
        code = begin_soon(c, on_timer);
    } else if (code == BK_ENAME) {
        c->list = NULL;
        code = look_up(c, host, service);
    }
    return begin(c, code, protocol, user, ret_stream);
}

int bk_connect_address(bk_loop *loop, const struct sockaddr *address, unsigned size,
                       const bk_protocol *protocol, void *user, bk_stream **ret_stream) {
    connector *c = new_connector(loop);
    if (c == NULL)
        return -ENOMEM;
    memcpy(&c->address, address, size);
    c->given = (struct addrinfo){.ai_family = address->sa_family,
                                 .ai_addr = (struct sockaddr *)&c->address,
                                 .ai_addrlen = size};
    c->next = &c->given;
    return begin(c, begin_soon(c, on_timer), protocol, user, ret_stream);
}

static void on_ready(void *arg) {
    connector *c = arg;
    if (!gave_up(c))
        hand_over(c, c->ready);
}

int bk_connect_transport(bk_loop *loop, bk_transport *transport, const bk_protocol *protocol,
                         void *user, bk_stream **ret_stream) {
    connector *c = new_connector(loop);
    if (c == NULL) {
        transport->ops->close(transport);
        return -ENOMEM;
    }
    c->ready = transport;
    return begin(c, begin_soon(c, on_ready), protocol, user, ret_stream);
}

int bk_connect_failed(bk_loop *loop, int why, const bk_protocol *protocol, void *user,
                      bk_stream **ret_stream) {
    connector *c = new_connector(loop);
    if (c == NULL)
        return -ENOMEM;
    c->why = why; /* there is nothing to try */
    return begin(c, begin_soon(c, on_timer), protocol, user, ret_stream);
}

/* ---- The public function ---- */

static const bk_protocol *drop_front(const bk_stream *s) {
    bk_client_front *front = (bk_client_front *)(uintptr_t)s->protocol;
    const bk_protocol *next = front->front.protocol;
    front->free(front);
    return next;
}

void bk_client_front_done(bk_stream *s, bk_transport *transport) {
    bk_stream_reopen(s, transport, drop_front(s));
}

void bk_client_front_closed(bk_stream *s, int why) {
    s->protocol = drop_front(s);
    if (BK_HAS(s->protocol, closed))
        s->protocol->closed(s, why);
}

/* What stands in front is undone from the outermost, which knows what is behind it. */
static void free_fronts(bk_client_front *front, int count) {
    while (count-- > 0) {
        bk_client_front *next = (bk_client_front *)(uintptr_t)front->front.protocol;
        front->free(front);
        front = next;
    }
}

static int connect_to(bk_loop *loop, const bk_endpoint *endpoint, const bk_scheme *scheme,
                      const bk_cover *cover, const bk_protocol *protocol, void *user,
                      bk_error *error, bk_stream **ret_stream) {
    bk_client_front *front = NULL;
    int code = 0, count = 0;
    if (!BK_HAS(scheme, connect))
        return bk_error_set(error, -ENOTSUP, 0, "%s is for servers, not for clients", scheme->name);
    if (cover != NULL) {
        code = cover->connect(loop, cover, endpoint, protocol, error, &front);
        if (code < 0)
            return code;
        protocol = &front->front.base;
        count++;
    }
    if (bk_endpoint_option(endpoint, "proxy") != NULL) {
        bk_client_front *outer = front;
        code = bk_proxy_connect(loop, endpoint, protocol, error, &outer);
        if (code == 0) {
            front = outer;
            protocol = &front->front.base;
            count++;
        }
    }
    if (code == 0)
        code = scheme->connect(loop, endpoint, protocol, user, error, ret_stream);
    if (code < 0)
        free_fronts(front, count);
    return code;
}

static int connect_endpoint(bk_loop *loop, const char *text, const bk_protocol *protocol,
                            void *user, bk_error *error, bk_stream **ret_stream) {
    bk_endpoint endpoint;
    const bk_scheme *scheme;
    const bk_cover *cover;
    int code = bk_scheme_open(loop, text, &endpoint, &scheme, &cover, error);
    if (code < 0)
        return code;
    code = connect_to(loop, &endpoint, scheme, cover, protocol, user, error, ret_stream);
    bk_endpoint_clear(loop->os, &endpoint);
    return code;
}

int bk_connect(bk_loop *loop, const char *endpoint, const bk_protocol *protocol, void *user,
               bk_error *ret_error, bk_stream **ret_stream) {
    bk_error error = {0};
    bk_stream *stream = NULL;
    int code = -EINVAL;
    if (loop != NULL && endpoint != NULL && protocol != NULL && protocol->size != 0)
        code = connect_endpoint(loop, endpoint, protocol, user, &error, &stream);
    if (code < 0 && error.code == 0) /* a scheme that says no more */
        bk_error_set(&error, code, 0, "cannot connect: %s", bk_strerror(code));
    if (code < 0 && ret_error != NULL)
        *ret_error = error;
    if (code >= 0 && ret_stream != NULL)
        *ret_stream = stream;
    return code < 0 ? code : 0;
}
