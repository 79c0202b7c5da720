/* Three echo servers on libevent, for the benchmark. Built plainly it uses an event for each connection and reads and
 * writes itself, which is the fastest way; built with -DBENCH_BUFFEREVENT it uses bufferevents, libevent's counterpart
 * of the streams that libuv and becket offer, and moves the bytes from one evbuffer to the other without copying them.
 * With -DBENCH_TLS in addition those are bufferevents over OpenSSL, and TLS is all it does.
 */
#include "../endpoint.h"

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>

#ifdef BENCH_TLS
#include <event2/bufferevent_ssl.h>
#include <openssl/ssl.h>

static SSL_CTX *context;
#endif

static struct event_base *base;

#ifdef BENCH_BUFFEREVENT

#ifdef BENCH_TLS

static void on_event(struct bufferevent *b, short what, void *argument) {
    (void)argument;
    if (what & BEV_EVENT_CONNECTED)   /* the handshake is over */
        return;
    if (what & BEV_EVENT_EOF)
        SSL_shutdown(bufferevent_openssl_get_ssl(b));
    bufferevent_free(b);
}

static struct bufferevent *connection_new(evutil_socket_t fd) {
    SSL *ssl = SSL_new(context);
    struct bufferevent *b = !ssl ? NULL
        : bufferevent_openssl_socket_new(base, fd, ssl, BUFFEREVENT_SSL_ACCEPTING, BEV_OPT_CLOSE_ON_FREE);
    if (!b)
        SSL_free(ssl);
    return b;
}

/* Listens, with what connections share. */
static int start(int argc, char **argv, const char *version) {
    endpoint at = endpoint_argument(argc, argv, version);
    context = SSL_CTX_new(TLS_server_method());
    if (!at.pem || !context || SSL_CTX_use_certificate_chain_file(context, at.pem) != 1
            || SSL_CTX_use_PrivateKey_file(context, at.pem, SSL_FILETYPE_PEM) != 1) {
        fputs("libevent: no certificate and key\n", stderr);
        exit(1);
    }
    SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS);
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
    return endpoint_bind(&at);
}

#else

static void on_event(struct bufferevent *b, short what, void *argument) {
    (void)what, (void)argument;   /* the end, or an error */
    bufferevent_free(b);
}

static struct bufferevent *connection_new(evutil_socket_t fd) {
    return bufferevent_socket_new(base, fd, BEV_OPT_CLOSE_ON_FREE);
}

#endif

static void on_read(struct bufferevent *b, void *argument) {
    (void)argument;
    evbuffer_add_buffer(bufferevent_get_output(b), bufferevent_get_input(b));
}

static void connection_open(evutil_socket_t fd) {
    struct bufferevent *b = connection_new(fd);
    if (!b) {
        close(fd);
        return;
    }
    bufferevent_set_max_single_read(b, BENCH_ROOM);   /* not 16 KiB; 2.1 still reads 4 KiB at a time */
    bufferevent_set_max_single_write(b, BENCH_ROOM);
    bufferevent_setcb(b, on_read, NULL, on_event, NULL);
    bufferevent_enable(b, EV_READ | EV_WRITE);
}

#else

typedef struct connection {
    struct event *reading, *writing;
    char *kept;
    size_t kept_size, kept_sent;
} connection;

static char room[BENCH_ROOM];

static void connection_close(connection *c, evutil_socket_t fd) {
    if (c->reading)
        event_free(c->reading);
    if (c->writing)
        event_free(c->writing);
    close(fd);
    free(c->kept);
    free(c);
}

/* While something is kept for a connection it is not read. */
static int keep(connection *c, const char *data, size_t n) {
    c->kept = malloc(n);
    if (!c->kept)
        return -1;
    memcpy(c->kept, data, n);
    c->kept_size = n;
    c->kept_sent = 0;
    return event_del(c->reading) < 0 || event_add(c->writing, NULL) < 0 ? -1 : 0;
}

static int echo(connection *c, evutil_socket_t fd) {
    ssize_t n = read(fd, room, sizeof room);
    if (n <= 0)
        return n < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -1;
    ssize_t sent = write(fd, room, (size_t)n);
    if (sent < 0 && errno != EAGAIN && errno != EINTR)
        return -1;
    if (sent < 0)
        sent = 0;
    return sent == n ? 0 : keep(c, room + sent, (size_t)(n - sent));
}

static int send_kept(connection *c, evutil_socket_t fd) {
    ssize_t n = write(fd, c->kept + c->kept_sent, c->kept_size - c->kept_sent);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -1;
    c->kept_sent += (size_t)n;
    if (c->kept_sent < c->kept_size)
        return 0;
    free(c->kept);
    c->kept = NULL;
    return event_del(c->writing) < 0 || event_add(c->reading, NULL) < 0 ? -1 : 0;
}

static void on_ready(evutil_socket_t fd, short what, void *argument) {
    connection *c = argument;
    if ((what & EV_WRITE ? send_kept(c, fd) : echo(c, fd)) < 0)
        connection_close(c, fd);
}

static void connection_open(evutil_socket_t fd) {
    connection *c = calloc(1, sizeof *c);
    if (!c) {
        close(fd);
        return;
    }
    c->reading = event_new(base, fd, EV_READ | EV_PERSIST, on_ready, c);
    c->writing = event_new(base, fd, EV_WRITE | EV_PERSIST, on_ready, c);
    if (!c->reading || !c->writing || event_add(c->reading, NULL) < 0)
        connection_close(c, fd);
}

#endif

#ifndef BENCH_TLS
static int start(int argc, char **argv, const char *version) {
    return endpoint_listen(argc, argv, version);
}
#endif

static void on_accept(evutil_socket_t listener, short what, void *argument) {
    (void)what, (void)argument;
    for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0;) {
        endpoint_nodelay(fd);
        connection_open(fd);
    }
}

int main(int argc, char **argv) {
    char version[32];
    snprintf(version, sizeof version, "libevent %s", event_get_version());
    int fd = start(argc, argv, version);
    base = event_base_new();
    struct event *accepting = base ? event_new(base, fd, EV_READ | EV_PERSIST, on_accept, NULL) : NULL;
    if (!accepting || event_add(accepting, NULL) < 0) {
        fputs("libevent: cannot start\n", stderr);
        return 1;
    }
    endpoint_ready();
    return event_base_dispatch(base);
}
