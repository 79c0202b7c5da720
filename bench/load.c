/* The load generator: many connections to an echo server, from one thread over epoll. bench/run.py runs it, pinned to
 * a core of its own; anyone can run it by hand (--help).
 *
 * The load is a closed loop: a connection sends one message, waits until all of it has come back, and sends the next.
 * What comes back is compared with what was sent, byte for byte; each message starts elsewhere in a random pattern, so
 * that an echo of another message, or of another connection's, is noticed.
 *
 * With a tls: endpoint the same goes through TLS 1.3, in one cipher suite for all servers and without verifying
 * anything, the handshakes being done before the measured window; in the mode `connect` they are what is measured,
 * none of them resuming a session. A message is sealed into memory, and sent in as few calls as a plain one.
 *
 * With a udp: endpoint each connection is a connected socket, a message is one datagram, and one that is lost is a
 * failure: no more are on their way than the server's socket has room for.
 *
 * With --proxy every connection begins with a PROXY v2 header, which goes out with the first message, as from a proxy
 * that has a request already.
 *
 * The result is one line of JSON on stdout. With --server-pid it holds the CPU time that process used during the
 * measured window, read here rather than by the runner, so that time and messages cover exactly the same window.
 */
#include "endpoint.h"

#include <dirent.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>

#ifdef BENCH_TLS
#include <openssl/err.h>
#include <openssl/ssl.h>
#endif

enum {
    OPENING_AT_ONCE = 64,   /* connections being opened at one time; well below any server's backlog */
    EVENTS = 256,
    PRIMING = 16,           /* connections that come and go before the load */
    SHIFTS = 4096,          /* how many places of the pattern a message may start at */
    SUB = 64,               /* histogram buckets in each power of two: 1.6 % wide */
    BUCKETS = 60 * SUB,
    RECORD = 16 * 1024,     /* the most plaintext in a TLS record */
    STALL_S = 20,           /* no progress at all for so long is a failure */
};

typedef enum mode { MODE_ECHO, MODE_CONNECT, MODE_IDLE, MODE_ACTIVE } mode;
typedef enum phase { CLOSED, CONNECTING, SHAKING, ECHOING, ENDING, PARKED } phase;

typedef struct connection {
    int fd;
    phase phase;
    unsigned events;        /* what epoll watches now */
    unsigned shift;         /* where in the pattern the current message starts */
    size_t sent, got;
    int64_t began;          /* ns */
    struct ssl_st *tls;     /* NULL: plain */
    unsigned char *sealed;  /* TLS: ciphertext to be sent */
    size_t sealed_room, sealed_size, sealed_sent;
} connection;

typedef struct cpu_time {
    int64_t total_ns;       /* precise */
    int64_t user_ns, system_ns;   /* sampled by the kernel's tick, and cut to 10 ms: used only as proportions */
} cpu_time;

static struct {
    mode mode;
    endpoint target;
    long connections, idle, size;
    double seconds, warmup;
    long server_pid;
    bool silent, proxy;
} options = {.connections = 50, .idle = 0, .size = 1024, .seconds = 2, .warmup = 0.5};

static struct {
    int epoll;
    connection *all;
    long count;             /* of all */
    long parked;
    bool opening;           /* before the load starts: a connection echoes one message and is parked */
    unsigned char *pattern, *room;
    size_t room_size, room_taken;   /* TLS: ciphertext that was received and not yet opened */
    unsigned source;        /* counter behind the source addresses */
    int64_t now;
    uint64_t messages, errors;
    uint64_t histogram[BUCKETS];
    char complaint[160];    /* the first error, in words */
} run;

static void die(const char *format, const char *detail) {
    fprintf(stderr, "bench-load: ");
    fprintf(stderr, format, detail);
    fputc('\n', stderr);
    exit(1);
}

static int64_t clock_ns(clockid_t id) {
    struct timespec t;
    if (clock_gettime(id, &t) < 0)
        return 0;
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* ---- the histogram --------------------------------------------------------------------------------------------- */

static unsigned bucket_of(int64_t ns) {
    uint64_t v = ns > 0 ? (uint64_t)ns : 0;
    if (v < SUB)
        return (unsigned)v;
    unsigned exponent = 63u - (unsigned)__builtin_clzll(v);   /* >= 6 */
    unsigned bucket = (exponent - 5) * SUB + (unsigned)((v >> (exponent - 6)) & (SUB - 1));
    return bucket < BUCKETS ? bucket : BUCKETS - 1;
}

static double bucket_middle_us(unsigned bucket) {
    if (bucket < SUB)
        return bucket / 1e3;
    unsigned shift = bucket / SUB - 1;
    uint64_t low = (uint64_t)(SUB + bucket % SUB) << shift;
    return ((double)low + (double)((uint64_t)1 << shift) / 2) / 1e3;
}

static double percentile_us(double share) {
    uint64_t wanted = (uint64_t)(share * (double)run.messages), seen = 0;
    for (unsigned i = 0; i < BUCKETS; i++) {
        seen += run.histogram[i];
        if (seen > wanted)
            return bucket_middle_us(i);
    }
    return 0;
}

/* ---- TLS ------------------------------------------------------------------------------------------------------- */

#ifdef BENCH_TLS

static SSL_CTX *tls_context;
static BIO_METHOD *tls_method;

static void tls_die(const char *what) {
    const char *why = ERR_reason_error_string(ERR_peek_last_error());
    fprintf(stderr, "bench-load: %s: %s\n", what, why ? why : "it does not say why");
    exit(1);
}

/* OpenSSL takes ciphertext from the room, which is shared, and leaves it with the connection. */
static int tls_bio_read(BIO *bio, char *to, int n) {
    size_t most = run.room_size - run.room_taken;
    if (most == 0) {
        BIO_set_retry_read(bio);
        return -1;
    }
    if ((size_t)n > most)
        n = (int)most;
    memcpy(to, run.room + run.room_taken, (size_t)n);
    run.room_taken += (size_t)n;
    return n;
}

static int tls_bio_write(BIO *bio, const char *from, int n) {
    connection *c = BIO_get_data(bio);
    size_t size = c->sealed_size + (size_t)n;
    if (size > c->sealed_room) {
        size_t room = size > 2 * c->sealed_room ? size : 2 * c->sealed_room;
        unsigned char *more = realloc(c->sealed, room);
        if (!more)
            return -1;
        c->sealed = more;
        c->sealed_room = room;
    }
    memcpy(c->sealed + c->sealed_size, from, (size_t)n);
    c->sealed_size = size;
    return n;
}

static long tls_bio_control(BIO *bio, int command, long number, void *pointer) {
    (void)bio, (void)number, (void)pointer;
    return command == BIO_CTRL_FLUSH;
}

/* One version, suite and group, so that all servers do the same work. */
static void tls_prepare(void) {
    tls_context = SSL_CTX_new(TLS_client_method());
    tls_method = BIO_meth_new(BIO_TYPE_SOURCE_SINK | BIO_get_new_index(), "load");
    if (!tls_context || !tls_method || !SSL_CTX_set_min_proto_version(tls_context, TLS1_3_VERSION)
            || !SSL_CTX_set_ciphersuites(tls_context, "TLS_AES_128_GCM_SHA256")
            || !SSL_CTX_set1_groups_list(tls_context, "X25519") || !BIO_meth_set_read(tls_method, tls_bio_read)
            || !BIO_meth_set_write(tls_method, tls_bio_write) || !BIO_meth_set_ctrl(tls_method, tls_bio_control))
        tls_die("TLS cannot be prepared");
    SSL_CTX_set_session_cache_mode(tls_context, SSL_SESS_CACHE_OFF);
    if (options.idle)
        SSL_CTX_set_mode(tls_context, SSL_MODE_RELEASE_BUFFERS);
}

static void tls_new(connection *c) {
    BIO *bio = BIO_new(tls_method);
    c->tls = SSL_new(tls_context);
    if (!bio || !c->tls)
        tls_die("a connection's TLS");
    BIO_set_data(bio, c);
    BIO_set_init(bio, 1);
    SSL_set_bio(c->tls, bio, bio);
    SSL_set_connect_state(c->tls);
}

static void tls_free(connection *c) {
    SSL_free(c->tls);
    free(c->sealed);
    c->tls = NULL;
    c->sealed = NULL;
    c->sealed_room = c->sealed_size = c->sealed_sent = 0;
}

static int tls_handshake(connection *c) {
    return SSL_do_handshake(c->tls);
}

/* Plaintext of the next record; 0 or negative: none, and tls_broken() says whether there ever will be. */
static int tls_open(connection *c, unsigned char *to) {
    return SSL_read(c->tls, to, RECORD);
}

static const char *tls_broken(connection *c, int result) {
    int why = SSL_get_error(c->tls, result);
    if (why == SSL_ERROR_WANT_READ)
        return NULL;
    if (why == SSL_ERROR_ZERO_RETURN)
        return "the server ended a connection";
    const char *words = ERR_reason_error_string(ERR_peek_error());
    return words ? words : "TLS";
}

static void tls_seal(connection *c, const unsigned char *data, size_t n) {
    size_t sealed;
    if (!SSL_write_ex(c->tls, data, n, &sealed) || sealed != n)
        tls_die("a message cannot be sealed");
}

static void tls_end(connection *c) {
    SSL_shutdown(c->tls);
}

static const char *tls_version(void) {
    return OpenSSL_version(OPENSSL_VERSION);
}

#else

static void tls_prepare(void) { die("%s", "it was built without OpenSSL"); }
static void tls_new(connection *c) { (void)c; }
static void tls_free(connection *c) { (void)c; }
static int tls_handshake(connection *c) { return (void)c, -1; }
static int tls_open(connection *c, unsigned char *to) { return (void)c, (void)to, -1; }
static const char *tls_broken(connection *c, int result) { return (void)c, (void)result, "there is no TLS"; }
static void tls_seal(connection *c, const unsigned char *data, size_t n) { (void)c, (void)data, (void)n; }
static void tls_end(connection *c) { (void)c; }
static const char *tls_version(void) { return "no TLS"; }

#endif

/* ---- connections ----------------------------------------------------------------------------------------------- */

static void connection_watch(connection *c, unsigned events) {
    if (c->events == events)
        return;
    struct epoll_event e = {.events = events, .data.ptr = c};
    if (epoll_ctl(run.epoll, c->events ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, c->fd, &e) < 0)
        die("epoll_ctl: %s", strerror(errno));
    c->events = events;
}

static void connection_close(connection *c, bool abort) {
    if (c->phase == CLOSED)
        return;
    if (abort) {   /* a reset leaves no TIME_WAIT behind; only outside the measured window */
        struct linger none = {.l_onoff = 1};
        (void)setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &none, sizeof none);
    }
    close(c->fd);
    if (c->tls)
        tls_free(c);
    c->phase = CLOSED;
    c->events = 0;
}

static void connection_fail(connection *c, const char *what, int error) {
    run.errors++;
    if (!run.complaint[0])
        snprintf(run.complaint, sizeof run.complaint, "%s%s%s", what, error ? ": " : "", error ? strerror(error) : "");
    connection_close(c, true);
}

/* Each (source, destination, port) has about 28,000 ephemeral ports, and a closed connection holds one for a minute.
 * All of 127.0.0.0/8 is this machine, so connections take their sources from 4,064 addresses in turn. */
static void source_bind(int fd) {
    unsigned n = run.source++;
    int on = 1;
    struct sockaddr_in from = {.sin_family = AF_INET};
    from.sin_addr.s_addr = htonl(0x7f000000u | (1 + n % 16) << 8 | (1 + n / 16 % 254));
    (void)setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&from, sizeof from) < 0)
        die("bind to a 127.x.x.x address: %s", strerror(errno));
}

/* Sends what the kernel takes; false when the connection failed. */
static bool bytes_send(connection *c, const unsigned char *data, size_t size, size_t *sent) {
    while (*sent < size) {
        ssize_t n = send(c->fd, data + *sent, size - *sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            break;
        if (n < 0) {
            connection_fail(c, "send", errno);
            return false;
        }
        *sent += (size_t)n;
    }
    connection_watch(c, EPOLLIN | (*sent < size ? EPOLLOUT : 0));
    return true;
}

static void sealed_send(connection *c) {
    if (!bytes_send(c, c->sealed, c->sealed_size, &c->sealed_sent) || c->sealed_sent < c->sealed_size)
        return;
    c->sealed_size = c->sealed_sent = 0;
    if (c->phase == ENDING && shutdown(c->fd, SHUT_WR) < 0)
        connection_fail(c, "shutdown", errno);
}

static void message_send(connection *c) {
    if (c->tls)
        sealed_send(c);
    else
        (void)bytes_send(c, run.pattern + c->shift, (size_t)options.size, &c->sent);
}

static void message_begin(connection *c) {
    c->phase = ECHOING;
    c->shift = (c->shift + 1021) % SHIFTS;
    c->sent = c->got = 0;
    if (c->tls) {
        tls_seal(c, run.pattern + c->shift, (size_t)options.size);
        c->sent = (size_t)options.size;
    }
    message_send(c);
}

/* A header of the PROXY protocol, version 2: from a client in 127.0.0.0/8 to the server. MSG_MORE holds it back until the
 * first message comes behind it. */
static void header_send(connection *c) {
    static const unsigned char header[] = "\r\n\r\n\0\r\nQUIT\n" "\x21\x11\0\x0c" "\x7f\1\1\1" "\x7f\0\0\1" "\xc0\1" "\0\x50";
    const size_t size = sizeof header - 1;
    if (send(c->fd, header, size, MSG_NOSIGNAL | MSG_MORE) != (ssize_t)size)
        connection_fail(c, "send a PROXY header", errno);
}

/* As far as it goes with what is in the room. */
static void connection_shake(connection *c) {
    int r = tls_handshake(c);
    const char *why = r == 1 ? NULL : tls_broken(c, r);
    if (why)
        connection_fail(c, why, 0);
    else if (r == 1)
        message_begin(c);   /* with the end of the handshake, in one segment */
    else
        sealed_send(c);
}

/* Whether a connection is one of those that never say a word. */
static bool is_silent(const connection *c) {
    return options.silent && c - run.all >= options.connections;
}

static void connection_park(connection *c) {
    c->phase = PARKED;
    run.parked++;
}

static void connection_opened(connection *c) {
    if (is_silent(c)) {
        connection_watch(c, EPOLLIN);
        connection_park(c);
        return;
    }
    if (options.proxy)
        header_send(c);
    if (c->phase == CLOSED)
        return;
    if (!options.target.pem) {
        message_begin(c);
        return;
    }
    tls_new(c);
    c->phase = SHAKING;
    run.room_size = run.room_taken = 0;
    connection_shake(c);
}

static void connection_open(connection *c) {
    c->fd = socket(options.target.address.any.sa_family, options.target.type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0)
        die("socket: %s (raise the limit on open files: ulimit -n)", strerror(errno));
    c->phase = CONNECTING;
    c->events = 0;
    c->shift = (unsigned)(c - run.all) * 61 % SHIFTS;
    c->began = run.now;
    if (endpoint_is_tcp(&options.target))
        endpoint_nodelay(c->fd);
    if (options.target.address.any.sa_family == AF_INET)
        source_bind(c->fd);
    if (connect(c->fd, &options.target.address.any, options.target.size) == 0)
        connection_opened(c);
    else if (errno == EINPROGRESS)
        connection_watch(c, EPOLLOUT);
    else if (errno == EAGAIN) {   /* a UNIX listener whose backlog is full: nothing will tell, so try again later */
        close(c->fd);
        c->phase = CLOSED;
    } else
        connection_fail(c, "connect", errno);
}

static void measured(connection *c) {
    int64_t now = clock_ns(CLOCK_MONOTONIC);
    run.histogram[bucket_of(now - c->began)]++;
    run.messages++;
    c->began = run.now = now;
}

/* The whole message has come back: what now depends on the mode. */
static void message_done(connection *c) {
    if (run.opening) {
        connection_park(c);
    } else if (options.mode == MODE_CONNECT) {
        c->phase = ENDING;   /* our half ends, and the server is to end its own */
        if (c->tls) {
            tls_end(c);
            sealed_send(c);
        } else if (shutdown(c->fd, SHUT_WR) < 0)
            connection_fail(c, "shutdown", errno);
    } else {
        measured(c);
        message_begin(c);
    }
}

static void message_take(connection *c, const unsigned char *data, size_t n) {
    if (c->phase != ECHOING || c->got + n > c->sent) {
        connection_fail(c, "more came back than was sent", 0);
    } else if (memcmp(data, run.pattern + c->shift + c->got, n) != 0) {
        connection_fail(c, "what came back is not what was sent", 0);
    } else {
        c->got += n;
        if (c->got == (size_t)options.size)
            message_done(c);
    }
}

static void sealed_take(connection *c, size_t n) {
    static unsigned char plain[RECORD];
    run.room_size = n;
    run.room_taken = 0;
    if (c->phase == SHAKING)
        connection_shake(c);
    while (c->phase != CLOSED && run.room_taken < run.room_size) {
        int got = tls_open(c, plain);
        const char *why = got > 0 ? NULL : tls_broken(c, got);
        if (got > 0)
            message_take(c, plain, (size_t)got);
        else if (why && c->phase == ENDING)
            return;   /* its close_notify, and nothing after that matters */
        else if (why)
            connection_fail(c, why, 0);
    }
}

static void message_receive(connection *c) {
    ssize_t n = recv(c->fd, run.room, BENCH_ROOM, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n < 0) {
        connection_fail(c, "receive", errno);
    } else if (c->phase == ENDING && n == 0) {
        measured(c);
        connection_close(c, false);
        connection_open(c);
    } else if (n == 0) {
        connection_fail(c, "the server closed a connection", 0);
    } else if (c->tls) {
        sealed_take(c, (size_t)n);
    } else {
        message_take(c, run.room, (size_t)n);
    }
}

static void connection_event(connection *c, unsigned events) {
    if (c->phase == CONNECTING) {
        int error = 0;
        socklen_t n = sizeof error;
        (void)getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &n);
        if (error)
            connection_fail(c, "connect", error);
        else
            connection_opened(c);
        return;
    }
    if (events & EPOLLOUT)
        message_send(c);
    if (c->phase != CLOSED && (events & (EPOLLIN | EPOLLERR | EPOLLHUP)))
        message_receive(c);
}

/* ---- the run --------------------------------------------------------------------------------------------------- */

static void turn(int timeout_ms) {
    struct epoll_event events[EVENTS];
    int n = epoll_wait(run.epoll, events, EVENTS, timeout_ms);
    if (n < 0 && errno != EINTR)
        die("epoll_wait: %s", strerror(errno));
    run.now = clock_ns(CLOCK_MONOTONIC);
    for (int i = 0; i < n; i++)
        connection_event(events[i].data.ptr, events[i].events);
}

/* Opens all connections, a few at a time, and lets each echo one message: so the server is known to have accepted it,
 * and an idle connection is one that has been used; unless it is a silent one. */
static void open_all(void) {
    long cursor = 0, parked = 0;
    int64_t progress = run.now;
    run.opening = true;
    while (run.parked < run.count) {
        for (; cursor < run.count && cursor - run.parked < OPENING_AT_ONCE; cursor++) {
            connection_open(&run.all[cursor]);
            if (run.all[cursor].phase == CLOSED)
                break;
        }
        turn(10);
        if (run.errors)
            die("while opening connections: %s", run.complaint);
        if (run.parked != parked)
            progress = run.now;
        parked = run.parked;
        if (run.now - progress > (int64_t)STALL_S * 1000000000)
            die("while opening connections: %s", "the server does not answer");
    }
    run.opening = false;
}

static long files_of_server(void) {
    char path[64];
    long count = -2;   /* . and .. */
    snprintf(path, sizeof path, "/proc/%ld/fd", options.server_pid);
    DIR *files = opendir(path);
    if (!files)
        die("cannot read %s", path);
    while (readdir(files))
        count++;
    closedir(files);
    return count;
}

/* A silent connection may still be in the backlog: waits until the server has as many files open as there are
 * connections. */
static void accepted_all(void) {
    int64_t end = clock_ns(CLOCK_MONOTONIC) + (int64_t)STALL_S * 1000000000;
    while (files_of_server() < run.count) {
        if (clock_ns(CLOCK_MONOTONIC) > end)
            die("%s", "the server has not accepted all silent connections");
        nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
    }
    run.now = clock_ns(CLOCK_MONOTONIC);
}

/* A server that runs has seen connections come and go, so before the load a few do. It matters: the first end of a
 * connection frees a whole receive buffer, from which glibc's malloc learns to keep blocks of that size; until then each
 * read of many Python libraries costs an mmap and a munmap, three times the work of the echo itself. */
static void prime(void) {
    long all = run.count;
    run.count = all < PRIMING ? all : PRIMING;
    open_all();
    for (long i = 0; i < run.count; i++)
        connection_close(&run.all[i], false);
    nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
    run.count = all;
    run.parked = 0;
    run.now = clock_ns(CLOCK_MONOTONIC);
}

static cpu_time cpu_of_server(void) {
    cpu_time t = {0};
    char path[64], text[1024];
    clockid_t id;
    if (!options.server_pid)
        return t;
    if (clock_getcpuclockid((pid_t)options.server_pid, &id) != 0)
        die("%s", "the server process is gone");
    t.total_ns = clock_ns(id);
    snprintf(path, sizeof path, "/proc/%ld/stat", options.server_pid);
    FILE *f = fopen(path, "r");
    size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
    if (f)
        fclose(f);
    text[n] = 0;
    char *after_name = strrchr(text, ')');   /* the name itself may hold anything */
    unsigned long user, system;
    if (!after_name || sscanf(after_name + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system) != 2)
        die("cannot read %s", path);
    int64_t tick = 1000000000 / sysconf(_SC_CLK_TCK);
    t.user_ns = (int64_t)user * tick;
    t.system_ns = (int64_t)system * tick;
    return t;
}

static void report(int64_t wall_ns, cpu_time from, cpu_time to, int64_t own_ns) {
    double seconds = (double)wall_ns / 1e9, count = run.messages ? (double)run.messages : 1;
    double total = (double)(to.total_ns - from.total_ns);
    double user = (double)(to.user_ns - from.user_ns), system = (double)(to.system_ns - from.system_ns);
    double share = user + system > 0 ? user / (user + system) : 0;
    printf("{\"messages\": %" PRIu64 ", \"seconds\": %.6f, \"rate\": %.1f, \"p50_us\": %.2f, \"p99_us\": %.2f, "
           "\"cpu_us\": %.4f, \"user_us\": %.4f, \"system_us\": %.4f, \"server_busy\": %.4f, \"load_busy\": %.4f, "
           "\"errors\": %" PRIu64 ", \"complaint\": \"%s\"}\n",
           run.messages, seconds, (double)run.messages / seconds, percentile_us(0.5), percentile_us(0.99),
           total / count / 1e3, total * share / count / 1e3, total * (1 - share) / count / 1e3, total / (double)wall_ns,
           (double)own_ns / (double)wall_ns, run.errors, run.complaint);
    fflush(stdout);
}

static void turns_until(int64_t end) {
    while (run.now < end && !run.errors) {
        turn((int)((end - run.now) / 1000000) + 1);
        if (options.mode != MODE_CONNECT)
            continue;
        for (long i = 0; i < run.count; i++)   /* those a full UNIX backlog refused */
            if (run.all[i].phase == CLOSED)
                connection_open(&run.all[i]);
    }
}

/* The load itself: a warm-up, then the measured window. */
static void measure(void) {
    for (long i = 0; i < options.connections; i++) {
        run.all[i].began = run.now;
        if (options.mode == MODE_CONNECT)
            connection_open(&run.all[i]);
        else
            message_begin(&run.all[i]);
    }
    turns_until(run.now + (int64_t)(options.warmup * 1e9));
    memset(run.histogram, 0, sizeof run.histogram);
    run.messages = 0;
    cpu_time before = cpu_of_server();
    int64_t own = clock_ns(CLOCK_PROCESS_CPUTIME_ID), start = run.now = clock_ns(CLOCK_MONOTONIC);
    turns_until(start + (int64_t)(options.seconds * 1e9));
    cpu_time after = cpu_of_server();
    int64_t end = clock_ns(CLOCK_MONOTONIC);
    if (!run.messages && !run.errors) {
        run.errors = 1;
        snprintf(run.complaint, sizeof run.complaint, options.mode == MODE_CONNECT
            ? "the server closed none of the connections that had ended" : "the server sent nothing back");
    }
    report(end - start, before, after, clock_ns(CLOCK_PROCESS_CPUTIME_ID) - own);
}

/* Keeps the connections until stdin says a line or ends; one that the server closes meanwhile is an error. */
static void hold(void) {
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = NULL}, got;
    if (epoll_ctl(run.epoll, EPOLL_CTL_ADD, STDIN_FILENO, &e) < 0)
        die("stdin must be a pipe or a terminal: %s", strerror(errno));
    printf("{\"holding\": %ld}\n", run.count);
    fflush(stdout);
    for (;;) {
        int n = epoll_wait(run.epoll, &got, 1, -1);
        if (n < 0 && errno != EINTR)
            die("epoll_wait: %s", strerror(errno));
        if (n == 1 && !got.data.ptr)
            return;
        if (n == 1)
            connection_event(got.data.ptr, got.events);
        if (run.errors)
            die("while holding: %s", run.complaint);
    }
}

/* ---- arguments ------------------------------------------------------------------------------------------------- */

static void usage(FILE *to) {
    fputs("usage: bench-load MODE ENDPOINT [options]\n"
          "Drives an echo server and prints one line of JSON.\n\n"
          "MODE\n"
          "  echo      every connection sends a message, waits for its echo, sends the next; --idle others are held\n"
          "  connect   a new connection for each message, closed after its echo; --connections are in flight\n"
          "  idle      opens --idle connections and holds them until stdin says a line or ends\n"
          "  active    echo on ONE connection, while --idle others are held\n"
          "ENDPOINT    tcp:HOST:PORT, udp:… or tls:… (loopback only), or unix:PATH\n\n"
          "  --connections N   (50)\n"
          "  --idle N          (0)\n"
          "  --silent          the idle ones have not said a word; otherwise each has echoed a message\n"
          "  --proxy           connections begin with a PROXY v2 header\n"
          "  --size BYTES      of a message (1024)\n"
          "  --seconds S       of the measured window (2)\n"
          "  --warmup S        before it (0.5)\n"
          "  --server-pid PID  reports the CPU time of this process in the window\n"
          "  --version         says which TLS it has\n", to);
}

static long number(const char *name, const char *text, long low, long high) {
    char *end;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (errno || end == text || *end || value < low || value > high) {
        fprintf(stderr, "bench-load: --%s is a whole number from %ld to %ld, not \"%s\"\n", name, low, high, text);
        exit(2);
    }
    return value;
}

static double duration(const char *name, const char *text, double low) {
    char *end;
    errno = 0;
    double value = strtod(text, &end);
    if (errno || end == text || *end || !(value >= low && value <= 3600)) {
        fprintf(stderr, "bench-load: --%s is a number of seconds from %g to 3600, not \"%s\"\n", name, low, text);
        exit(2);
    }
    return value;
}

static mode mode_named(const char *text) {
    static const char *const names[] = {"echo", "connect", "idle", "active"};
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(text, names[i]) == 0)
            return (mode)i;
    fprintf(stderr, "bench-load: a mode is echo, connect, idle or active, not \"%s\"\n", text);
    exit(2);
}

static void parse(int argc, char **argv) {
    static const struct option known[] = {
        {"connections", required_argument, NULL, 'c'}, {"idle", required_argument, NULL, 'i'},
        {"size", required_argument, NULL, 'b'},        {"seconds", required_argument, NULL, 's'},
        {"warmup", required_argument, NULL, 'w'},      {"server-pid", required_argument, NULL, 'p'},
        {"silent", no_argument, NULL, 'q'},            {"proxy", no_argument, NULL, 'x'},
        {"help", no_argument, NULL, 'h'},              {"version", no_argument, NULL, 'v'},
        {NULL, 0, NULL, 0},
    };
    for (int o; (o = getopt_long(argc, argv, "h", known, NULL)) != -1;) {
        switch (o) {
        case 'c': options.connections = number("connections", optarg, 1, 100000); break;
        case 'i': options.idle = number("idle", optarg, 0, 1000000); break;
        case 'b': options.size = number("size", optarg, 1, 64 << 20); break;
        case 's': options.seconds = duration("seconds", optarg, 0.01); break;
        case 'w': options.warmup = duration("warmup", optarg, 0); break;
        case 'p': options.server_pid = number("server-pid", optarg, 1, INT_MAX); break;
        case 'q': options.silent = true; break;
        case 'x': options.proxy = true; break;
        case 'h': usage(stdout); exit(0);
        case 'v': puts(tls_version()); exit(0);
        default: usage(stderr); exit(2);
        }
    }
    if (argc - optind != 2) {
        usage(stderr);
        exit(2);
    }
    options.mode = mode_named(argv[optind]);
    if (endpoint_parse(argv[optind + 1], &options.target) < 0)
        exit(2);
    if (options.mode == MODE_ACTIVE)
        options.connections = 1;
    else if (options.mode == MODE_IDLE)
        options.connections = 0;
    if (options.mode == MODE_IDLE && options.idle == 0) {
        fputs("bench-load: idle needs --idle N\n", stderr);
        exit(2);
    }
    if (options.mode == MODE_CONNECT)
        options.idle = 0;
    if (options.target.type == SOCK_DGRAM && (options.mode == MODE_CONNECT || options.proxy)) {
        fputs("bench-load: udp: has no connections to be opened, nor PROXY headers\n", stderr);
        exit(2);
    }
}

static void prepare(void) {
    struct rlimit files;
    run.count = options.connections + options.idle;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &files);
    }
    run.epoll = epoll_create1(EPOLL_CLOEXEC);
    run.all = calloc((size_t)run.count, sizeof *run.all);
    run.pattern = malloc((size_t)options.size + SHIFTS);
    run.room = malloc(BENCH_ROOM);
    if (run.epoll < 0 || !run.all || !run.pattern || !run.room)
        die("%s", "out of memory or of files");
    uint64_t seed = 0x9e3779b97f4a7c15u;
    for (size_t i = 0; i < (size_t)options.size + SHIFTS; i++) {   /* xorshift: the same bytes every time */
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        run.pattern[i] = (unsigned char)(seed >> 32);
    }
    if (options.target.pem)
        tls_prepare();
    run.now = clock_ns(CLOCK_MONOTONIC);
    run.source = (unsigned)(run.now >> 10);   /* another run starts at other sources */
}

int main(int argc, char **argv) {
    parse(argc, argv);
    prepare();
    if (options.mode != MODE_CONNECT) {
        prime();
        open_all();
        if (options.silent && options.server_pid)
            accepted_all();
    }
    if (options.mode == MODE_IDLE)
        hold();
    else
        measure();
    for (long i = 0; i < run.count; i++)
        connection_close(&run.all[i], true);
    return run.errors ? 1 : 0;
}
