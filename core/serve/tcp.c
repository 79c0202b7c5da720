/*
 * tcp.c: the scheme tcp, "tcp://host:port". A name that stands for several addresses is listened at
 * on all of them, on the same port; connecting tries them in turn. Called through bk_scheme_tcp.
 */
#include "core/serve/serve.h"

#include <stdio.h>

static const char *const tcp_options[] = {"backlog", "reuse_port", NULL};

enum { TCP_PORT_TRIES = 16 }; /* for a port that is free on all addresses */

static int tcp_check(const bk_endpoint *endpoint, bk_error *error) {
    const char *scheme = endpoint->scheme; /* tls, where that is in front */
    size_t end = bk_endpoint_authority_end(endpoint);
    if (endpoint->host == NULL)
        return bk_error_set(error, BK_EENDPOINT, endpoint->rest,
                            "%.20s: is followed by //, as in %.20s://127.0.0.1:7000", scheme,
                            scheme);
    if (endpoint->port < 0)
        return bk_error_set(error, BK_EENDPOINT, end, "a port is missing: %.20s://host:port",
                            scheme);
    if (*endpoint->path != '\0' && strcmp(endpoint->path, "/") != 0)
        return bk_error_set(error, BK_EENDPOINT, end, "%.20s has no path: %.20s://host:port",
                            scheme, scheme);
    return 0;
}

/* ---- Listening ---- */

typedef struct tcp_plan {
    bk_loop *loop;
    struct addrinfo *list;
    long backlog, reuse_port;
    int count; /* addresses in the list */
    int port;  /* 0: any, until the first address has got one */
} tcp_plan;

/* Resolvers give an address twice where /etc/hosts does. */
static bool tcp_is_repeated(const tcp_plan *plan, const struct addrinfo *address) {
    for (const struct addrinfo *a = plan->list; a != address; a = a->ai_next)
        if (a->ai_addrlen == address->ai_addrlen &&
            memcmp(a->ai_addr, address->ai_addr, a->ai_addrlen) == 0)
            return true;
    return false;
}

static void tcp_set_port(struct sockaddr *address, int port) {
    if (address->sa_family == AF_INET)
        ((struct sockaddr_in *)(void *)address)->sin_port = htons((uint16_t)port);
    else if (address->sa_family == AF_INET6)
        ((struct sockaddr_in6 *)(void *)address)->sin6_port = htons((uint16_t)port);
}

static int tcp_get_port(bk_os *os, int fd) {
    union {
        struct sockaddr any;
        struct sockaddr_in in;
        struct sockaddr_in6 in6;
    } address;
    unsigned size = sizeof address;
    int code = os->getsockname(os, fd, &address.any, &size);
    if (code < 0)
        return code;
    return ntohs(address.any.sa_family == AF_INET6 ? address.in6.sin6_port : address.in.sin_port);
}

static int tcp_set_options(const tcp_plan *plan, int fd, int family) {
    bk_os *os = plan->loop->os;
    int on = 1, code = 0;
#if !defined(_WIN32) /* where it means that others may take the port from us */
    code = os->setsockopt(os, fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
#endif
    if (code >= 0 && family == AF_INET6)
        code = os->setsockopt(os, fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
#if defined(SO_REUSEPORT)
    if (code >= 0 && plan->reuse_port)
        code = os->setsockopt(os, fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
#else
    if (code >= 0 && plan->reuse_port)
        code = -ENOTSUP;
#endif
    return code;
}

/* Bind and listen; all addresses after the first take the port that one got. */
static int tcp_occupy(tcp_plan *plan, int fd, const struct addrinfo *address) {
    bk_os *os = plan->loop->os;
    int code = tcp_set_options(plan, fd, address->ai_family);
    if (code >= 0)
        code = os->bind(os, fd, address->ai_addr, address->ai_addrlen);
    if (code >= 0)
        code = os->listen(os, fd, (int)plan->backlog);
    if (code >= 0 && plan->port == 0) {
        code = tcp_get_port(os, fd);
        if (code > 0)
            plan->port = code;
        tcp_set_port(address->ai_addr, plan->port);
    }
    return code;
}

/* An address of a family that this machine does not have is no reason to fail where another has
   been found. */
static bool tcp_is_absent(int code) {
    return code == -EAFNOSUPPORT || code == -EADDRNOTAVAIL;
}

static int tcp_occupy_all(tcp_plan *plan, bk_acceptor *acceptor) {
    bk_os *os = plan->loop->os;
    int found = 0, absent = -EADDRNOTAVAIL;
    for (const struct addrinfo *a = plan->list; a != NULL; a = a->ai_next) {
        tcp_set_port(a->ai_addr, plan->port);
        if (tcp_is_repeated(plan, a))
            continue;
        int fd = os->socket(os, a->ai_family, SOCK_STREAM, 0);
        int code = fd < 0 ? fd : tcp_occupy(plan, fd, a);
        if (code >= 0) {
            bk_acceptor_add(acceptor, fd);
            found++;
            continue;
        }
        bk_close_fd(os, fd);
        if (!tcp_is_absent(code))
            return code;
        absent = code;
    }
    return found > 0 ? 0 : absent;
}

static int tcp_open(tcp_plan *plan, const bk_protocol *protocol, bk_acceptor **ret_acceptor) {
    bool any = plan->port == 0;
    for (int tries = 1;; tries++) {
        bk_acceptor *acceptor;
        int code = bk_acceptor_new(plan->loop, protocol, plan->count, &acceptor);
        if (code < 0)
            return code;
        code = tcp_occupy_all(plan, acceptor);
        if (code >= 0)
            code = bk_acceptor_start(acceptor);
        if (code >= 0) {
            *ret_acceptor = acceptor;
            return 0;
        }
        bk_acceptor_free(acceptor);
        if (!any || code != -EADDRINUSE || tries == TCP_PORT_TRIES)
            return code;
        plan->port = 0;
    }
}

static int tcp_resolve(tcp_plan *plan, const bk_endpoint *endpoint, bk_error *error) {
    bk_os *os = plan->loop->os;
    const char *host = endpoint->host;
    char service[8];
    struct addrinfo hints = {.ai_family = AF_UNSPEC,
                             .ai_socktype = SOCK_STREAM,
                             .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    snprintf(service, sizeof service, "%d", endpoint->port);
    if (*host == '\0' || strcmp(host, "*") == 0)
        host = NULL;
    int code = os->resolve(os, host, service, &hints, &plan->list);
    if (code == BK_ENAME)
        return bk_error_set(error, code, endpoint->rest + 2, "no address is known for %.150s",
                            endpoint->host);
    for (const struct addrinfo *a = code < 0 ? NULL : plan->list; a != NULL; a = a->ai_next)
        plan->count++;
    return code;
}

static int tcp_name(const tcp_plan *plan, const char *host, bk_acceptor *acceptor,
                    bk_listener **ret_listener) {
    bk_os *os = plan->loop->os;
    bool brackets = strchr(host, ':') != NULL;
    char *name = bk_alloc(os, 3 * strlen(host) + 32), *end;
    if (name == NULL)
        return -ENOMEM;
    end = stpcpy(name, brackets ? "tcp://[" : "tcp://");
    end = bk_endpoint_encode(*host != '\0' ? host : "*", end);
    snprintf(end, 16, "%s:%d", brackets ? "]" : "", plan->port);
    int code = bk_acceptor_listener(acceptor, name, bk_acceptor_free, acceptor, ret_listener);
    bk_dealloc(os, name);
    return code;
}

static int tcp_listen(bk_loop *loop, const bk_endpoint *endpoint, const bk_protocol *protocol,
                      bk_error *error, bk_listener **ret_listener) {
    tcp_plan plan = {.loop = loop, .backlog = BK_BACKLOG, .port = endpoint->port};
    bk_acceptor *acceptor;
    int code = tcp_check(endpoint, error);
    if (code >= 0)
        code = bk_endpoint_number(endpoint, "backlog", 10, 1, 65535, &plan.backlog, error);
    if (code >= 0)
        code = bk_endpoint_number(endpoint, "reuse_port", 10, 0, 1, &plan.reuse_port, error);
    if (code >= 0)
        code = tcp_resolve(&plan, endpoint, error);
    if (code < 0)
        return code;
    code = tcp_open(&plan, protocol, &acceptor);
    loop->os->resolve_free(loop->os, plan.list);
    if (code < 0)
        return code;
    code = tcp_name(&plan, endpoint->host, acceptor, ret_listener);
    if (code < 0)
        bk_acceptor_free(acceptor);
    return code;
}

/* ---- Connecting ---- */

static int tcp_connect(bk_loop *loop, const bk_endpoint *endpoint, const bk_protocol *protocol,
                       void *user, bk_error *error, bk_stream **ret_stream) {
    int code = tcp_check(endpoint, error);
    if (code < 0)
        return code;
    if (*endpoint->host == '\0' || strcmp(endpoint->host, "*") == 0)
        return bk_error_set(error, BK_EENDPOINT, endpoint->rest + 2,
                            "a host to connect to is missing: %.20s://host:port", endpoint->scheme);
    if (endpoint->port == 0)
        return bk_error_set(error, BK_EENDPOINT, bk_endpoint_authority_end(endpoint) - 1,
                            "port 0 is for servers; connect to 1 to 65535");
    return bk_connect_name(loop, endpoint->host, endpoint->port, protocol, user, ret_stream);
}

const bk_scheme bk_scheme_tcp = {
    .size = sizeof(bk_scheme),
    .name = "tcp",
    .options = tcp_options,
    .listen = tcp_listen,
    .connect = tcp_connect,
};
