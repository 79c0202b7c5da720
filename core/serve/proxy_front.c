/*
 * proxy_front.c: PROXY headers on the streams of any endpoint: ?proxy=require or accept, with
 * proxy_from=, where a proxy or balancer stands in front of a server; ?proxy=send, with proxy_for=,
 * on the way to one. Called by bk_listen_with() and bk_connect() for endpoints that say so.
 */
#include "core/serve/serve.h"

#include <stdio.h>
#include <stdlib.h>

const char *const bk_proxy_keys[] = {"proxy", "proxy_from", "proxy_for", NULL};

/* The place of an option in the text, for errors. */
static size_t place_of(const bk_endpoint *e, const char *key) {
    for (int i = 0; i < e->option_count; i++)
        if (strcmp(e->options[i].key, key) == 0)
            return e->options[i].position;
    return 0;
}

static int refuse_option(const bk_endpoint *e, const char *key, const char *right,
                         bk_error *error) {
    return bk_error_set(error, BK_EOPTION, place_of(e, key), "%.20s=%.60s is not possible; %s", key,
                        bk_endpoint_option(e, key), right);
}

/* An option that needs another, or belongs to the other side. */
static int refuse_other(const bk_endpoint *e, const char *key, const char *with, bk_error *error) {
    if (bk_endpoint_option(e, key) == NULL)
        return 0;
    return bk_error_set(error, BK_EOPTION, place_of(e, key), "%.20s goes with %s", key, with);
}

/* ---- Listening ---- */

typedef struct proxy_front {
    bk_listener_front base;
    bk_front after; /* of streams whose header is awaited; they hold the listener */
    bk_loop *loop;
    bk_proxy_trust trust;
    bool required;
    int64_t told; /* when it was last said that somebody was turned away; 0: never */
} proxy_front;

static proxy_front *front_after(const bk_stream *s) {
    return (proxy_front *)((char *)(uintptr_t)s->protocol - offsetof(proxy_front, after));
}

static int header_read(bk_stream *s) {
    proxy_front *f = front_after(s);
    bk_listener *listener = f->base.listener;
    int code = bk_stream_pass_on(s, f->base.front.protocol);
    bk_listener_drop(listener);
    return code;
}

/* A balancer that is not set up right shall be heard of; somebody who knocks all day, not often. */
static void header_failed(bk_stream *s, int why) {
    proxy_front *f = front_after(s);
    int64_t now = bk_loop_now(f->loop);
    bool bad = why == BK_EPROXY || why == -EACCES || why == BK_ELIMIT;
    if (bad && (f->told == 0 || now - f->told > BK_PROXY_TELL_S * BK_SECOND)) {
        f->told = now;
        bk_loop_log(f->loop, why, "%s: a connection was refused: %s", f->base.listener->name,
                    why == -EACCES ? "a PROXY header is required, and its address is not among "
                                     "those of proxy_from"
                                   : bk_strerror(why));
    }
    bk_listener_drop(f->base.listener);
}

static int proxy_opened(bk_stream *s) {
    proxy_front *f = (proxy_front *)(uintptr_t)s->protocol;
    bk_transport *inner = bk_stream_transport(s), *t;
    int code = bk_proxy_read(f->loop, inner, &f->trust, f->required, &t);
    if (code < 0)
        return code;
    if (t == inner) /* not one whose header would be believed */
        return bk_stream_pass_on(s, f->base.front.protocol);
    bk_listener_hold(f->base.listener);
    bk_stream_reopen(s, t, &f->after.base);
    return 0;
}

static void proxy_free(bk_listener_front *base) {
    proxy_front *f = (proxy_front *)base;
    bk_dealloc(f->loop->os, f);
}

static int read_server(proxy_front *f, const bk_endpoint *e, bk_error *error) {
    const char *mode = bk_endpoint_option(e, "proxy");
    f->required = strcmp(mode, "require") == 0;
    if (!f->required && strcmp(mode, "accept") != 0)
        return refuse_option(e, "proxy", "it is one of require, accept; clients: send, send-v1",
                             error);
    int code = refuse_other(e, "proxy_for", "proxy=send", error);
    if (code < 0)
        return code;
    code = bk_proxy_trust_parse(bk_endpoint_option(e, "proxy_from"), &f->trust, error);
    if (code < 0)
        error->position = place_of(e, "proxy_from");
    return code;
}

int bk_proxy_listen(bk_loop *loop, const bk_endpoint *endpoint, const bk_protocol *protocol,
                    bk_error *error, bk_listener_front **ret_front) {
    proxy_front *f = bk_alloc_zero(loop->os, sizeof *f);
    if (f == NULL)
        return bk_error_set(error, -ENOMEM, 0, "%s", bk_strerror(-ENOMEM));
    f->base = (bk_listener_front){
        .front = {{.size = sizeof(bk_protocol), .name = bk_front_name, .opened = proxy_opened},
                  protocol},
        .free = proxy_free};
    f->after = (bk_front){{.size = sizeof(bk_protocol),
                           .name = bk_front_name,
                           .opened = header_read,
                           .closed = header_failed},
                          protocol};
    f->loop = loop;
    int code = read_server(f, endpoint, error);
    if (code < 0)
        proxy_free(&f->base);
    else
        *ret_front = &f->base;
    return code;
}

/* ---- Connecting ---- */

typedef struct proxy_client {
    bk_client_front base;
    bk_loop *loop;
    int version;
    unsigned source_size; /* 0: this side of the connection */
    struct sockaddr_storage source;
} proxy_client;

static void free_client(bk_client_front *base) {
    proxy_client *c = (proxy_client *)base;
    bk_dealloc(c->loop->os, c);
}

static int client_opened(bk_stream *s) {
    const proxy_client *c = (const proxy_client *)(const void *)s->protocol;
    const struct sockaddr *source = c->source_size > 0 ? (struct sockaddr *)&c->source : NULL;
    bk_transport *t;
    int code = bk_proxy_send(c->loop, bk_stream_transport(s), c->version, source, c->source_size,
                             NULL, 0, &t);
    if (code == 0)
        bk_client_front_done(s, t);
    return code; /* on failure its closed() follows */
}

/* "192.0.2.1:4000" or "[2001:db8::1]:4000". */
static bool read_source(const char *text, proxy_client *c) {
    char host[INET6_ADDRSTRLEN + 2], *end;
    const char *colon = strrchr(text, ':');
    size_t n = colon == NULL ? 0 : (size_t)(colon - text);
    if (n == 0 || n >= sizeof host || colon[1] < '0' || colon[1] > '9')
        return false;
    long port = strtol(colon + 1, &end, 10);
    if (*end != '\0' || port > 65535)
        return false;
    memcpy(host, text, n);
    host[n] = '\0';
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port)};
    if (inet_pton(AF_INET, host, &v4.sin_addr) == 1) {
        memcpy(&c->source, &v4, c->source_size = sizeof v4);
        return true;
    }
    bool brackets = host[0] == '[' && host[n - 1] == ']';
    host[n - 1] = '\0';
    if (!brackets || inet_pton(AF_INET6, host + 1, &v6.sin6_addr) != 1)
        return false;
    memcpy(&c->source, &v6, c->source_size = sizeof v6);
    return true;
}

static int read_client(proxy_client *c, const bk_endpoint *e, bk_error *error) {
    const char *mode = bk_endpoint_option(e, "proxy");
    const char *source = bk_endpoint_option(e, "proxy_for");
    c->version = strcmp(mode, "send") == 0 ? 2 : strcmp(mode, "send-v1") == 0 ? 1 : 0;
    if (c->version == 0)
        return refuse_option(e, "proxy", "it is one of send, send-v1; servers: require, accept",
                             error);
    if (source != NULL && !read_source(source, c))
        return refuse_option(e, "proxy_for",
                             "it is an IP address and a port, as in 192.0.2.1:4000 or "
                             "[2001:db8::1]:4000",
                             error);
    return refuse_other(e, "proxy_from", "proxy=require or proxy=accept", error);
}

int bk_proxy_connect(bk_loop *loop, const bk_endpoint *endpoint, const bk_protocol *protocol,
                     bk_error *error, bk_client_front **ret_front) {
    proxy_client *c = bk_alloc_zero(loop->os, sizeof *c);
    if (c == NULL)
        return bk_error_set(error, -ENOMEM, 0, "%s", bk_strerror(-ENOMEM));
    c->base = (bk_client_front){.front = {{.size = sizeof(bk_protocol),
                                           .name = bk_front_name,
                                           .opened = client_opened,
                                           .closed = bk_client_front_closed},
                                          protocol},
                                .free = free_client};
    c->loop = loop;
    int code = read_client(c, endpoint, error);
    if (code < 0)
        free_client(&c->base);
    else
        *ret_front = &c->base;
    return code;
}
