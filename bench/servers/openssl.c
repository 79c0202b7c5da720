/* The floor of TLS: an echo server on bare epoll and OpenSSL, with no abstraction at all. bench/run.py compares
 * everything with it.
 *
 * It does what is cheapest. OpenSSL is given a BIO that is two pieces of memory, the same for all connections: one
 * read() brings up to 256 KiB of ciphertext, each record is opened and sealed again while it is in the cache, and one
 * write() sends them all. (With SSL_set_fd() a message of 100 KiB costs seven writes, and seven reads or, without
 * read_ahead, fourteen, for no less user CPU.) Connections keep no buffers (SSL_MODE_RELEASE_BUFFERS), as in Python's
 * ssl: that costs 0.1 us at 1 KiB, and saves 0.5 us at 10 KiB, as all connections use the same memory in turn. No
 * sessions are cached: tickets hold all that is needed, and two are sent, OpenSSL's default and Python's.
 *
 * It is right, not only short: what the kernel refuses is kept and sent later, a connection is not read while
 * something is kept for it, and close_notify is answered.
 */
#include "../endpoint.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stdbool.h>
#include <sys/epoll.h>

enum {
    RECORD = 16 * 1024,              /* the most plaintext that one record holds */
    SEALED_ROOM = 2 * BENCH_ROOM,    /* what one read brought, sealed again, and a handshake's answer */
};

typedef struct connection {
    int fd;
    bool ending;   /* to be closed when all is sent */
    SSL *ssl;
    char *kept;
    size_t kept_size, kept_sent;
} connection;

static int poller;
static SSL_CTX *context;
static BIO_METHOD *method;
static char room[BENCH_ROOM], sealed[SEALED_ROOM], plain[RECORD];
static size_t room_size, room_taken, sealed_size;   /* of the connection that is served just now */

/* ---- the BIO --------------------------------------------------------------------------------------------------- */

static int bio_read(BIO *bio, char *to, int n) {
    size_t most = room_size - room_taken;
    if (most == 0) {
        BIO_set_retry_read(bio);
        return -1;
    }
    if ((size_t)n > most)
        n = (int)most;
    memcpy(to, room + room_taken, (size_t)n);
    room_taken += (size_t)n;
    return n;
}

static int bio_write(BIO *bio, const char *from, int n) {
    (void)bio;
    if ((size_t)n > sizeof sealed - sealed_size)
        return -1;
    memcpy(sealed + sealed_size, from, (size_t)n);
    sealed_size += (size_t)n;
    return n;
}

static long bio_control(BIO *bio, int command, long number, void *pointer) {
    (void)bio, (void)number, (void)pointer;
    return command == BIO_CTRL_FLUSH;
}

static bool bio_prepare(void) {
    method = BIO_meth_new(BIO_TYPE_SOURCE_SINK | BIO_get_new_index(), "room");
    return method && BIO_meth_set_read(method, bio_read) && BIO_meth_set_write(method, bio_write)
        && BIO_meth_set_ctrl(method, bio_control);
}

/* ---- connections ----------------------------------------------------------------------------------------------- */

static void connection_close(connection *c) {
    SSL_free(c->ssl);
    close(c->fd);
    free(c->kept);
    free(c);
}

static int connection_watch(connection *c, int how, unsigned events) {
    struct epoll_event e = {.events = events, .data.ptr = c};
    return epoll_ctl(poller, how, c->fd, &e);
}

static int connection_start(connection *c) {
    c->ssl = SSL_new(context);
    BIO *bio = c->ssl ? BIO_new(method) : NULL;
    if (!bio)
        return -1;
    BIO_set_init(bio, 1);
    SSL_set_bio(c->ssl, bio, bio);
    SSL_set_accept_state(c->ssl);
    endpoint_nodelay(c->fd);
    return connection_watch(c, EPOLL_CTL_ADD, EPOLLIN);
}

static void accept_all(int listener) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return;
        connection *c = calloc(1, sizeof *c);
        if (!c) {
            close(fd);
            return;
        }
        c->fd = fd;
        if (connection_start(c) < 0)
            connection_close(c);
    }
}

/* Sends what was sealed; returns -1 when the connection is over. */
static int send_sealed(connection *c) {
    if (sealed_size == 0)
        return c->ending ? -1 : 0;
    ssize_t sent = write(c->fd, sealed, sealed_size);
    if (sent < 0 && errno != EAGAIN && errno != EINTR)
        return -1;
    if (sent < 0)
        sent = 0;
    size_t rest = sealed_size - (size_t)sent;
    if (rest == 0)
        return c->ending ? -1 : 0;
    c->kept = malloc(rest);
    if (!c->kept)
        return -1;
    memcpy(c->kept, sealed + sent, rest);
    c->kept_size = rest;
    c->kept_sent = 0;
    return connection_watch(c, EPOLL_CTL_MOD, EPOLLOUT);
}

static int send_kept(connection *c) {
    ssize_t n = write(c->fd, c->kept + c->kept_sent, c->kept_size - c->kept_sent);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -1;
    c->kept_sent += (size_t)n;
    if (c->kept_sent < c->kept_size)
        return 0;
    free(c->kept);
    c->kept = NULL;
    return c->ending ? -1 : connection_watch(c, EPOLL_CTL_MOD, EPOLLIN);
}

static int echo(connection *c) {
    ssize_t n = read(c->fd, room, sizeof room);
    if (n <= 0)
        return n < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -1;
    room_size = (size_t)n;
    room_taken = sealed_size = 0;
    while (room_taken < room_size && !c->ending) {   /* SSL_read() performs the handshake too */
        int got = SSL_read(c->ssl, plain, sizeof plain);
        if (got > 0) {
            if (SSL_write(c->ssl, plain, got) != got)
                return -1;
            continue;
        }
        int why = SSL_get_error(c->ssl, got);
        if (why != SSL_ERROR_WANT_READ) {   /* its end; or an error, of which an alert may tell the peer */
            if (why == SSL_ERROR_ZERO_RETURN)
                SSL_shutdown(c->ssl);
            ERR_clear_error();
            c->ending = true;
        }
    }
    return send_sealed(c);
}

static SSL_CTX *context_new(const char *pem) {
    SSL_CTX *ret = SSL_CTX_new(TLS_server_method());
    if (!ret || SSL_CTX_use_certificate_chain_file(ret, pem) != 1
            || SSL_CTX_use_PrivateKey_file(ret, pem, SSL_FILETYPE_PEM) != 1) {
        ERR_print_errors_fp(stderr);
        exit(1);
    }
    SSL_CTX_set_mode(ret, SSL_MODE_RELEASE_BUFFERS);
    SSL_CTX_set_session_cache_mode(ret, SSL_SESS_CACHE_OFF);
    return ret;
}

int main(int argc, char **argv) {
    endpoint at = endpoint_argument(argc, argv, OpenSSL_version(OPENSSL_VERSION_STRING));
    if (!at.pem || !*at.pem) {
        fputs("openssl: it has TLS only: tls:HOST:PORT?PEM\n", stderr);
        return 2;
    }
    int listener = endpoint_bind(&at);
    context = context_new(at.pem);
    struct epoll_event events[256], e = {.events = EPOLLIN, .data.ptr = NULL};
    poller = epoll_create1(EPOLL_CLOEXEC);
    if (!bio_prepare() || poller < 0 || epoll_ctl(poller, EPOLL_CTL_ADD, listener, &e) < 0) {
        perror("openssl");
        return 1;
    }
    endpoint_ready();
    for (;;) {
        int n = epoll_wait(poller, events, 256, -1);
        for (int i = 0; i < n; i++) {
            connection *c = events[i].data.ptr;
            if (!c)
                accept_all(listener);
            else if ((c->kept ? send_kept(c) : echo(c)) < 0)
                connection_close(c);
        }
    }
}
