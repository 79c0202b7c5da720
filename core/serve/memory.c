/*
 * memory.c: the scheme memory, "memory:name", a meeting place inside the process: who connects
 * makes a pair of sockets and hands one end to the listener's loop, which may run in another
 * thread. Called through bk_scheme_memory.
 *
 * Who listens under which name is, next to signals, the one other state of the process in the core.
 * A lock of the process guards it, and what waits at each place. What is posted to a listener's
 * loop names the loop alone: the place may be gone when the call comes, and takes its visitors with
 * it.
 */
#include "core/serve/serve.h"

typedef struct memory_visitor {
    struct memory_visitor *next;
    int fd;
} memory_visitor;

typedef struct memory_place {
    struct memory_place *next, **link; /* in places */
    bk_loop *loop;
    const bk_protocol *protocol;
    memory_visitor *first, **last; /* in the order in which they came; of the loop's memory */
    char name[];
} memory_place;

static memory_place *places;

static memory_place *memory_find(const char *name) {
    memory_place *place = places;
    while (place != NULL && strcmp(place->name, name) != 0)
        place = place->next;
    return place;
}

static int memory_check(const bk_endpoint *endpoint, bk_error *error) {
    if (endpoint->host == NULL && *endpoint->path != '\0')
        return 0;
    return bk_error_set(error, BK_EENDPOINT, endpoint->rest,
                        "%.20s: is followed by a name, as in %.20s:upstream", endpoint->scheme,
                        endpoint->scheme);
}

/* ---- Listening ---- */

static memory_visitor *memory_take_visitor(memory_place *place) {
    memory_visitor *visitor = place->first;
    if (visitor != NULL && (place->first = visitor->next) == NULL)
        place->last = &place->first;
    return visitor;
}

/* Posted once for each visitor, and lets one in: at whichever of the loop's places. */
static void memory_welcome(void *arg) {
    static const struct sockaddr peer = {.sa_family = AF_UNIX};
    bk_loop *loop = arg;
    const bk_protocol *protocol = NULL;
    memory_visitor *visitor = NULL;
    bk_lock_take(bk_lock_of_process());
    for (memory_place *p = places; p != NULL && visitor == NULL; p = p->next)
        if (p->loop == loop && (visitor = memory_take_visitor(p)) != NULL)
            protocol = p->protocol;
    bk_lock_drop(bk_lock_of_process());
    if (visitor == NULL) /* it came to a place that was closed meanwhile */
        return;
    int fd = visitor->fd;
    bk_dealloc(loop->os, visitor);
    bk_welcome(loop, fd, &peer, sizeof peer, protocol);
}

static void memory_close(void *arg) {
    memory_place *place = arg;
    bk_os *os = place->loop->os;
    bk_lock_take(bk_lock_of_process());
    *place->link = place->next;
    if (place->next != NULL)
        place->next->link = place->link;
    bk_lock_drop(bk_lock_of_process());
    for (memory_visitor *visitor; (visitor = memory_take_visitor(place)) != NULL;) {
        bk_close_fd(os, visitor->fd);
        bk_dealloc(os, visitor);
    }
    bk_dealloc(os, place);
}

/* False: the name is taken. */
static bool memory_register(memory_place *place) {
    bk_lock_take(bk_lock_of_process());
    bool is_free = memory_find(place->name) == NULL;
    if (is_free) {
        place->next = places;
        place->link = &places;
        if (places != NULL)
            places->link = &place->next;
        places = place;
    }
    bk_lock_drop(bk_lock_of_process());
    return is_free;
}

static int memory_name(memory_place *place, bk_listener **ret_listener) {
    bk_os *os = place->loop->os;
    char *name = bk_endpoint_format(os, "memory", place->name);
    if (name == NULL)
        return -ENOMEM;
    int code = bk_listener_new(place->loop, name, memory_close, place, ret_listener);
    bk_dealloc(os, name);
    return code;
}

static int memory_listen(bk_loop *loop, const bk_endpoint *endpoint, const bk_protocol *protocol,
                         bk_error *error, bk_listener **ret_listener) {
    int code = memory_check(endpoint, error);
    if (code < 0)
        return code;
    size_t n = strlen(endpoint->path) + 1;
    memory_place *place = bk_alloc(loop->os, sizeof *place + n);
    if (place == NULL)
        return -ENOMEM;
    *place = (memory_place){.loop = loop, .protocol = protocol, .last = &place->first};
    memcpy(place->name, endpoint->path, n);
    if (!memory_register(place)) {
        bk_dealloc(loop->os, place);
        return bk_error_set(error, -EADDRINUSE, endpoint->rest,
                            "another listener of this process has the name %.100s", endpoint->path);
    }
    code = memory_name(place, ret_listener);
    if (code < 0)
        memory_close(place);
    return code;
}

/* ---- Connecting ---- */

/* The other loop cannot go while the lock is held: its listeners are closed before it. */
static int memory_visit(memory_place *place, int fd) {
    bk_os *os = place->loop->os;
    memory_visitor *visitor = bk_alloc(os, sizeof *visitor);
    int code = visitor == NULL ? -ENOMEM : bk_loop_post(place->loop, memory_welcome, place->loop);
    if (code < 0) {
        bk_dealloc(os, visitor);
        return code;
    }
    *visitor = (memory_visitor){.fd = fd};
    *place->last = visitor;
    place->last = &visitor->next;
    return 0;
}

/* Our end of a connection to whoever has the name. */
static int memory_meet(bk_os *os, const char *name) {
    int fds[2], code = os->socketpair(os, fds);
    if (code < 0)
        return code;
    bk_lock_take(bk_lock_of_process());
    memory_place *place = memory_find(name);
    code = place == NULL ? -ECONNREFUSED : memory_visit(place, fds[1]);
    bk_lock_drop(bk_lock_of_process());
    if (code >= 0)
        return fds[0];
    bk_close_fd(os, fds[0]);
    bk_close_fd(os, fds[1]);
    return code;
}

static int memory_connect(bk_loop *loop, const bk_endpoint *endpoint, const bk_protocol *protocol,
                          void *user, bk_error *error, bk_stream **ret_stream) {
    bk_transport *transport;
    int code = memory_check(endpoint, error);
    if (code < 0)
        return code;
    int fd = memory_meet(loop->os, endpoint->path);
    if (fd < 0)
        return bk_connect_failed(loop, fd, protocol, user, ret_stream);
    code = bk_socket_transport(loop, fd, &transport);
    if (code < 0) {
        bk_close_fd(loop->os, fd);
        return code;
    }
    return bk_connect_transport(loop, transport, protocol, user, ret_stream);
}

const bk_scheme bk_scheme_memory = {
    .size = sizeof(bk_scheme),
    .name = "memory",
    .listen = memory_listen,
    .connect = memory_connect,
};
