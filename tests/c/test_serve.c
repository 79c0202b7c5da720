/*
 * test_serve.c: endpoints for real: every scheme served and connected to, names, addresses and
 * ports, what is left in the file system, running out of descriptors, giving up, and bk_serve().
 */
#include "check.h"
#include "core/serve/serve.h"

#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* ---- A loop, and what happened on it ---- */

static bk_loop *loop;
static struct {
    int opened, ended, closed, why; /* of clients */
    int served, gone;               /* of servers */
    size_t received;
    int wrong; /* bytes that are not those that were sent */
    int logs, log_code;
    char log[240];
} seen;

static void on_log(void *arg, int code, const char *text) {
    (void)arg;
    seen.logs++;
    seen.log_code = code;
    snprintf(seen.log, sizeof seen.log, "%s", text);
}

static void start(void) {
    memset(&seen, 0, sizeof seen);
    bk_loop_options options = {.size = sizeof options, .log = on_log};
    CHECK_INT(bk_loop_new(&options, &loop), 0);
}

static void finish(void) {
    CHECK_INT(bk_loop_free(loop), 0);
}

static int64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* Turn the loop until *counter is at least n; false after ten seconds. */
static bool run_until(const int *counter, int n) {
    int64_t end = now_ms() + 10000;
    while (*counter < n && now_ms() < end)
        CHECK_INT(bk_loop_turn(loop, 20 * BK_MILLISECOND), 0);
    CHECK(*counter >= n);
    return *counter >= n;
}

static void turns(int n) {
    while (n-- > 0)
        bk_loop_turn(loop, BK_MILLISECOND);
}

/* ---- Protocols: an echo server, and a client that checks what comes back ---- */

static int echo_opened(bk_stream *s) {
    (void)s;
    seen.served++;
    return 0;
}

static void echo_received(bk_stream *s, const void *data, size_t n) {
    bk_stream_write(s, data, n, BK_COPY, NULL);
}

static void echo_closed(bk_stream *s, int why) {
    (void)s, (void)why;
    seen.gone++;
}

static const bk_protocol echo = {.size = sizeof echo,
                                 .name = "echo",
                                 .opened = echo_opened,
                                 .received = echo_received,
                                 .closed = echo_closed};

enum { CONTENT = 5000 };

typedef struct client {
    unsigned number;
    size_t got;
} client;

static unsigned char content(unsigned number, size_t at) {
    return (unsigned char)(number * 31 + at * 7 + (at >> 8));
}

static int client_opened(bk_stream *s) {
    client *c = bk_stream_user(s);
    unsigned char bytes[CONTENT];
    seen.opened++;
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = content(c->number, i);
    return bk_stream_write(s, bytes, sizeof bytes, BK_COPY, NULL);
}

static void client_received(bk_stream *s, const void *data, size_t n) {
    client *c = bk_stream_user(s);
    const unsigned char *p = data;
    seen.received += n;
    for (size_t i = 0; i < n; i++)
        seen.wrong += p[i] != content(c->number, c->got++);
    if (c->got == CONTENT)
        bk_stream_end(s); /* the server answers by ending, too */
}

static int client_ended(bk_stream *s) {
    (void)s;
    seen.ended++;
    return 0;
}

static void client_closed(bk_stream *s, int why) {
    (void)s;
    seen.closed++;
    seen.why = why;
}

static const bk_protocol asking = {.size = sizeof asking,
                                   .name = "asking",
                                   .opened = client_opened,
                                   .received = client_received,
                                   .ended = client_ended,
                                   .closed = client_closed};

static bk_listener *listen_at(const char *endpoint) {
    bk_error error = {0};
    bk_listener *listener = NULL;
    int code = bk_listen(loop, endpoint, &echo, &error, &listener);
    if (code < 0)
        printf("# %s: %s\n", endpoint, error.text);
    CHECK_INT(code, 0);
    return listener;
}

/* One client at the endpoint, there and back. */
static void ask(const char *endpoint) {
    client c = {.number = 9};
    bk_error error = {0};
    int closed = seen.closed;
    size_t received = seen.received;
    int code = bk_connect(loop, endpoint, &asking, &c, &error, NULL);
    if (code < 0)
        printf("# %s: %s\n", endpoint, error.text);
    CHECK_INT(code, 0);
    if (code < 0 || !run_until(&seen.closed, closed + 1))
        return;
    if (seen.why != 0)
        printf("# %s: %s\n", endpoint, bk_strerror(seen.why));
    CHECK_INT(seen.why, 0);
    CHECK_INT(seen.received - received, CONTENT);
    CHECK_INT(seen.wrong, 0);
}

static int listen_error(const char *endpoint, bk_error *ret_error) {
    bk_listener *listener = NULL;
    memset(ret_error, 0, sizeof *ret_error);
    int code = bk_listen(loop, endpoint, &echo, ret_error, &listener);
    CHECK(code < 0 && listener == NULL);
    CHECK_INT(ret_error->code, code);
    return code;
}

static int connect_error(const char *endpoint, bk_error *ret_error) {
    bk_stream *stream = NULL;
    memset(ret_error, 0, sizeof *ret_error);
    int code = bk_connect(loop, endpoint, &asking, NULL, ret_error, &stream);
    CHECK(code < 0 && stream == NULL);
    CHECK_INT(ret_error->code, code);
    return code;
}

static int port_of(const bk_listener *listener) {
    const char *colon = strrchr(bk_listener_name(listener), ':');
    return colon == NULL ? -1 : atoi(colon + 1);
}

/* ---- TCP ---- */

static void tcp(void) {
    start();
    bk_listener *l = listen_at("tcp://127.0.0.1:0");
    CHECK(strncmp(bk_listener_name(l), "tcp://127.0.0.1:", 16) == 0);
    CHECK(port_of(l) > 0);
    ask(bk_listener_name(l));
    CHECK_INT(seen.opened, 1);
    CHECK_INT(seen.ended, 1);
    CHECK_INT(seen.served, 1);
    run_until(&seen.gone, 1);
    char same[64];
    bk_error error;
    snprintf(same, sizeof same, "%s", bk_listener_name(l));
    CHECK_INT(listen_error(same, &error), -EADDRINUSE);
    CHECK_STR(error.text, "cannot listen: Address already in use");
    bk_listener_close(l);
    l = listen_at(same); /* SO_REUSEADDR: in spite of connections that linger */
    bk_listener_close(l);
    finish();
}

static bool has_ipv6(void) {
    struct sockaddr_in6 loopback = {.sin6_family = AF_INET6, .sin6_addr = in6addr_loopback};
    int fd = socket(AF_INET6, SOCK_STREAM, 0);
    bool has = fd >= 0 && bind(fd, (struct sockaddr *)&loopback, sizeof loopback) == 0;
    if (fd >= 0)
        close(fd);
    return has;
}

static void tcp_ipv6(void) {
    if (!has_ipv6()) {
        check_skip("no IPv6 here");
        return;
    }
    start();
    bk_listener *l = listen_at("tcp://[::1]:0");
    CHECK(strncmp(bk_listener_name(l), "tcp://[::1]:", 12) == 0);
    ask(bk_listener_name(l));
    finish();
}

/* All addresses of a name have the same port, and each is reached on its own. */
static void tcp_names(void) {
    static const char *const hosts[] = {"localhost", "*", ""};
    start();
    for (int i = 0; i < COUNT(hosts); i++) {
        char endpoint[64];
        snprintf(endpoint, sizeof endpoint, "tcp://%s:0", hosts[i]);
        bk_listener *l = listen_at(endpoint);
        if (l == NULL)
            continue;
        snprintf(endpoint, sizeof endpoint, "tcp://127.0.0.1:%d", port_of(l));
        ask(endpoint);
        snprintf(endpoint, sizeof endpoint, "tcp://[::1]:%d", port_of(l));
        if (has_ipv6() && *hosts[i] != 'l')
            ask(endpoint);
        snprintf(endpoint, sizeof endpoint, "tcp://localhost:%d", port_of(l));
        ask(endpoint);
        if (i > 0)
            snprintf(endpoint, sizeof endpoint, "tcp://*:%d", port_of(l));
        CHECK_STR(bk_listener_name(l), endpoint);
        bk_listener_close(l);
    }
    finish();
}

static void tcp_options(void) {
    start();
    bk_listener *first = listen_at("tcp://127.0.0.1:0?reuse_port=1&backlog=5");
    char endpoint[64];
    snprintf(endpoint, sizeof endpoint, "%s?reuse_port=1", bk_listener_name(first));
    bk_listener *second = listen_at(endpoint);
    ask(bk_listener_name(second));
    finish();
}

/* ---- UNIX ---- */

static char folder[64];

static char *in_folder(const char *name) {
    static char path[4][128];
    static int at;
    char *p = path[at++ & 3];
    snprintf(p, sizeof path[0], "%s/%s", folder, name);
    return p;
}

static char *unix_at(const char *name) {
    static char text[4][160];
    static int at;
    char *p = text[at++ & 3];
    snprintf(p, sizeof text[0], "unix:%s", in_folder(name));
    return p;
}

static void make_file(const char *path) {
    int fd = open(path, O_CREAT | O_WRONLY, 0600);
    CHECK(fd >= 0);
    close(fd);
}

/* A listening socket made without us; closed, it leaves a stale file. */
static int raw_unix(const char *path, int backlog) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    CHECK(bind(fd, (struct sockaddr *)&address, sizeof address) == 0);
    CHECK(listen(fd, backlog) == 0);
    return fd;
}

static void unix_socket(void) {
    struct stat info;
    start();
    bk_listener *l = listen_at(strcat(unix_at("a b.sock"), "?mode=600"));
    CHECK_STR(bk_listener_name(l), unix_at("a b.sock"));
    CHECK(stat(in_folder("a b.sock"), &info) == 0 && (info.st_mode & 0777) == 0600);
    ask(bk_listener_name(l));
    bk_listener_close(l);
    CHECK(stat(in_folder("a b.sock"), &info) < 0);
    listen_at(unix_at("b.sock"));
    finish(); /* the loop's end closes its listeners */
    CHECK(stat(in_folder("b.sock"), &info) < 0);
}

static void unix_stale_and_live(void) {
    bk_error error;
    start();
    char *path = in_folder("stale");
    close(raw_unix(path, 5));
    bk_listener *l = listen_at(unix_at("stale"));
    ask(unix_at("stale"));
    CHECK_INT(listen_error(unix_at("stale"), &error), -EADDRINUSE);
    CHECK(strstr(error.text, "another server listens at ") == error.text);
    ask(unix_at("stale"));
    /* A live one whose backlog is full is no less alive. */
    int full = raw_unix(in_folder("full"), 0), fds[8];
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, in_folder("full"));
    for (int i = 0; i < COUNT(fds); i++) {
        fds[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
        (void)!connect(fds[i], (struct sockaddr *)&address, sizeof address);
    }
    CHECK_INT(listen_error(unix_at("full"), &error), -EADDRINUSE);
    for (int i = 0; i < COUNT(fds); i++)
        close(fds[i]);
    close(full);
    bk_listener_close(l);
    finish();
}

static void unix_not_ours(void) {
    struct stat info;
    bk_error error;
    start();
    make_file(in_folder("file"));
    CHECK_INT(listen_error(unix_at("file"), &error), -EADDRINUSE);
    CHECK(strstr(error.text, "is not a socket") != NULL);
    CHECK(stat(in_folder("file"), &info) == 0);
    CHECK(symlink("nowhere", in_folder("link")) == 0);
    CHECK_INT(listen_error(unix_at("link"), &error), -EADDRINUSE);
    CHECK(lstat(in_folder("link"), &info) == 0);
    /* Whoever has taken the place in the meantime keeps it. */
    bk_listener *l = listen_at(unix_at("taken"));
    CHECK(unlink(in_folder("taken")) == 0);
    int fd = raw_unix(in_folder("taken"), 5);
    bk_listener_close(l);
    CHECK(stat(in_folder("taken"), &info) == 0);
    close(fd);
    CHECK_INT(listen_error("unix:", &error), BK_EENDPOINT);
    CHECK_INT(error.position, 5);
    CHECK_INT(listen_error("unix://host/path", &error), BK_EENDPOINT);
    CHECK_INT(error.position, 7);
    CHECK_INT(listen_error("unix:x?mode=8", &error), BK_EOPTION);
    CHECK_INT(error.position, 12);
    CHECK_STR(error.text, "mode is an octal number: 0 to 777");
    finish();
}

static void unix_too_long(void) {
    char text[256] = "unix:///";
    bk_error error;
    start();
    memset(text + 8, 'x', 120);
    CHECK_INT(listen_error(text, &error), BK_EENDPOINT);
    CHECK_INT(error.position, 7);
    CHECK_STR(error.text, "this path of 121 bytes is too long for a UNIX socket: at most 107");
    CHECK_INT(connect_error(text, &error), BK_EENDPOINT);
    finish();
}

/* ---- Accepting ---- */

static int raw_tcp(int port, int *ret_port, bool nonblocking) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    socklen_t size = sizeof a;
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | (nonblocking ? SOCK_NONBLOCK : 0), 0);
    if (ret_port != NULL) {
        CHECK(bind(fd, (struct sockaddr *)&a, sizeof a) == 0);
        CHECK(getsockname(fd, (struct sockaddr *)&a, &size) == 0);
        *ret_port = ntohs(a.sin_port);
    } else {
        (void)!connect(fd, (struct sockaddr *)&a, sizeof a);
    }
    return fd;
}

static void batches(void) {
    enum { MANY = 150 };
    int fds[MANY];
    start();
    bk_listener *l = listen_at("tcp://127.0.0.1:0");
    for (int i = 0; i < MANY; i++)
        fds[i] = raw_tcp(port_of(l), NULL, false);
    bk_loop_turn(loop, BK_SECOND);
    CHECK_INT(seen.served, BK_ACCEPTS_PER_EVENT);
    bk_loop_turn(loop, BK_SECOND);
    CHECK_INT(seen.served, 2 * BK_ACCEPTS_PER_EVENT);
    run_until(&seen.served, MANY);
    for (int i = 0; i < MANY; i++)
        close(fds[i]);
    run_until(&seen.gone, MANY);
    finish();
}

/* Lets the process have so many descriptors more than it has now; returns the limit it had. */
static rlim_t limit_descriptors(int more) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    rlim_t before = limit.rlim_cur;
    int next = open("/dev/null", O_RDONLY);
    close(next);
    limit.rlim_cur = (rlim_t)(next + more);
    setrlimit(RLIMIT_NOFILE, &limit);
    return before;
}

static void restore_descriptors(rlim_t before) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = before;
    setrlimit(RLIMIT_NOFILE, &limit);
}

/* Without descriptors a listener rests, says so once, and recovers. */
static void no_descriptors(void) {
    enum { MANY = 12 };
    int fds[MANY];
    start();
    bk_listener *l = listen_at("tcp://127.0.0.1:0");
    for (int i = 0; i < MANY; i++)
        fds[i] = raw_tcp(port_of(l), NULL, false);
    rlim_t before = limit_descriptors(4);
    int64_t from = now_ms();
    while (now_ms() < from + 3 * BK_ACCEPT_REST_MS)
        bk_loop_turn(loop, 10 * BK_MILLISECOND);
    CHECK_INT(seen.served, 4);
    CHECK_INT(seen.logs, 1);
    CHECK_INT(seen.log_code, -EMFILE);
    CHECK_STR(seen.log, "cannot accept connections: Too many open files; "
                        "trying again every 100 ms");
    int turned = 0; /* it rests: nothing turns the loop meanwhile */
    for (from = now_ms(); now_ms() < from + 150; turned++)
        bk_loop_turn(loop, 50 * BK_MILLISECOND);
    CHECK(turned <= 8);
    restore_descriptors(before);
    run_until(&seen.served, MANY);
    CHECK_INT(seen.logs, 2);
    CHECK_INT(seen.log_code, 0);
    CHECK_STR(seen.log, "connections are accepted again");
    for (int i = 0; i < MANY; i++)
        close(fds[i]);
    finish();
}

static bk_listener *to_close;

static int closing_opened(bk_stream *s) {
    (void)s;
    seen.served++;
    bk_listener_close(to_close);
    return 0;
}

/* A protocol may close the very listener that is just accepting for it. */
static void closed_while_accepting(void) {
    static const bk_protocol closing = {.size = sizeof closing, .opened = closing_opened};
    int fds[3];
    start();
    CHECK_INT(bk_listen(loop, "tcp://127.0.0.1:0", &closing, NULL, &to_close), 0);
    for (int i = 0; i < COUNT(fds); i++)
        fds[i] = raw_tcp(port_of(to_close), NULL, false);
    run_until(&seen.served, 1);
    turns(3);
    CHECK_INT(seen.served, 1);
    for (int i = 0; i < COUNT(fds); i++)
        close(fds[i]);
    finish();
}

/* ---- Connecting ---- */

static void refused(void) {
    int port, fd;
    char endpoint[64];
    start();
    fd = raw_tcp(0, &port, false); /* bound, and nobody listens */
    for (int i = 0; i < 2; i++) {
        snprintf(endpoint, sizeof endpoint, "tcp://%s:%d", i ? "localhost" : "127.0.0.1", port);
        CHECK_INT(bk_connect(loop, endpoint, &asking, NULL, NULL, NULL), 0);
        CHECK_INT(seen.closed, i);
        run_until(&seen.closed, i + 1);
        CHECK_INT(seen.why, -ECONNREFUSED);
    }
    CHECK_INT(bk_connect(loop, unix_at("absent"), &asking, NULL, NULL, NULL), 0);
    run_until(&seen.closed, 3);
    CHECK_INT(seen.why, -ENOENT);
    CHECK_INT(bk_connect(loop, "tcp://no..body:80", &asking, NULL, NULL, NULL), 0);
    run_until(&seen.closed, 4);
    CHECK_INT(seen.why, BK_ENAME);
    CHECK_INT(seen.opened, 0);
    close(fd);
    finish();
}

/* Give up at each stage: at once, while the name is resolved, while the connection is made. */
static void given_up(void) {
    int port, pending[4], listening = raw_tcp(0, &port, false);
    char endpoint[64];
    bk_stream *s;
    start();
    CHECK(listen(listening, 0) == 0); /* takes one or two, and then lets all others wait */
    for (int i = 0; i < COUNT(pending); i++)
        pending[i] = raw_tcp(port, NULL, true);
    snprintf(endpoint, sizeof endpoint, "tcp://127.0.0.1:%d", port);
    for (int wait = 0; wait < 4; wait++) {
        CHECK_INT(bk_connect(loop, endpoint, &asking, NULL, NULL, &s), 0);
        turns(wait);
        bk_stream_close(s);
        bk_stream_abort(s);
        CHECK_INT(seen.closed, wait);
        run_until(&seen.closed, wait + 1);
        CHECK_INT(seen.why, -ECANCELED);
    }
    for (int wait = 0; wait < 2; wait++) {
        CHECK_INT(bk_connect(loop, "tcp://localhost:1", &asking, NULL, NULL, &s), 0);
        bk_stream_abort(s);
        run_until(&seen.closed, 5 + wait);
        CHECK_INT(seen.why, -ECANCELED);
    }
    CHECK_INT(bk_connect(loop, endpoint, &asking, NULL, NULL, &s), 0);
    bk_stream_set_timeout(s, 1);
    run_until(&seen.closed, 7);
    CHECK_INT(seen.why, -ETIMEDOUT);
    CHECK_INT(bk_connect(loop, "tcp://localhost:1", &asking, NULL, NULL, NULL), 0);
    CHECK_INT(bk_connect(loop, endpoint, &asking, NULL, NULL, NULL), 0);
    turns(1);
    finish(); /* with two under way */
    CHECK_INT(seen.closed, 9);
    CHECK_INT(seen.opened, 0);
    for (int i = 0; i < COUNT(pending); i++)
        close(pending[i]);
    close(listening);
}

/* A UNIX socket whose backlog is full is asked again. */
static void unix_full_backlog(void) {
    client c = {.number = 1};
    int listening = raw_unix(in_folder("busy"), 0), first[2];
    start();
    for (int i = 0; i < COUNT(first); i++) {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        strcpy(address.sun_path, in_folder("busy"));
        first[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
        (void)!connect(first[i], (struct sockaddr *)&address, sizeof address);
    }
    CHECK_INT(bk_connect(loop, unix_at("busy"), &asking, &c, NULL, NULL), 0);
    turns(30);
    CHECK_INT(seen.opened, 0);
    CHECK_INT(seen.closed, 0);
    close(accept(listening, NULL, NULL));
    run_until(&seen.opened, 1);
    for (int i = 0; i < COUNT(first); i++)
        close(first[i]);
    close(listening);
    finish();
}

static void many(const char *endpoint) {
    enum { MANY = 200 };
    static client clients[MANY];
    start();
    bk_listener *l = listen_at(endpoint);
    for (unsigned i = 0; i < MANY; i++) {
        clients[i] = (client){.number = i};
        CHECK_INT(bk_connect(loop, bk_listener_name(l), &asking, &clients[i], NULL, NULL), 0);
    }
    run_until(&seen.closed, MANY);
    run_until(&seen.gone, MANY);
    CHECK_INT(seen.opened, MANY);
    CHECK_INT(seen.served, MANY);
    CHECK_INT(seen.received, MANY * CONTENT);
    CHECK_INT(seen.wrong, 0);
    CHECK_INT(seen.why, 0);
    finish();
}

static void two_hundred(void) {
    many("tcp://127.0.0.1:0");
    many(unix_at("many"));
}

/* ---- Schemes and options ---- */

static void unknown(void) {
    bk_error error;
    start();
    CHECK_INT(listen_error("gopher://x:70", &error), BK_ESCHEME);
    CHECK_INT(error.position, 0);
    CHECK_STR(error.text, "there is no scheme gopher; there are tcp, unix, stdio, fd, memory, "
                          "process, systemd, tls, starttls");
    CHECK_INT(connect_error("gopher://x:70", &error), BK_ESCHEME);
    CHECK_INT(listen_error("tcp://x:70?a=1", &error), BK_EOPTION);
    CHECK_INT(error.position, 11);
    CHECK_STR(error.text,
              "tcp has no option a; it has backlog, reuse_port, proxy, proxy_from, proxy_for");
    CHECK_INT(listen_error("stdio:?a=1", &error), BK_EOPTION);
    CHECK_STR(error.text, "stdio has no option a; it has proxy, proxy_from, proxy_for");
    CHECK_INT(listen_error("tcp://127.0.0.1:0?backlog=0", &error), BK_EOPTION);
    CHECK_INT(error.position, 26);
    CHECK_STR(error.text, "backlog is a number: 1 to 65535");
    CHECK_INT(listen_error("tcp://127.0.0.1", &error), BK_EENDPOINT);
    CHECK_INT(error.position, 15);
    CHECK_INT(listen_error("tcp://127.0.0.1:1/x", &error), BK_EENDPOINT);
    CHECK_INT(error.position, 17);
    CHECK_INT(listen_error("tcp:127.0.0.1:1", &error), BK_EENDPOINT);
    CHECK_INT(error.position, 4);
    CHECK_STR(error.text, "tcp: is followed by //, as in tcp://127.0.0.1:7000");
    CHECK_INT(connect_error("tcp://:80", &error), BK_EENDPOINT);
    CHECK_STR(error.text, "a host to connect to is missing: tcp://host:port");
    CHECK_INT(connect_error("tcp://h:0", &error), BK_EENDPOINT);
    CHECK_INT(error.position, 8);
    /* A name that no resolver has to be asked about. */
    CHECK_INT(listen_error("tcp://no..body:80", &error), BK_ENAME);
    CHECK_INT(error.position, 6);
    CHECK_STR(error.text, "no address is known for no..body");
    CHECK_INT(listen_error("stdio:x", &error), BK_EENDPOINT);
    CHECK_INT(bk_listen(NULL, "tcp://x:1", &echo, NULL, NULL), -EINVAL);
    CHECK_INT(bk_listen(loop, NULL, &echo, NULL, NULL), -EINVAL);
    CHECK_INT(bk_listen(loop, "tcp://x:1", NULL, NULL, NULL), -EINVAL);
    CHECK_INT(bk_connect(loop, NULL, &asking, NULL, NULL, NULL), -EINVAL);
    CHECK_INT(bk_listen_fd(loop, -1, &echo, NULL), -EBADF);
    CHECK_INT(bk_listen_fd(loop, 0, NULL, NULL), -EINVAL);
    finish();
}

/* A scheme of somebody else's: a meeting place in memory, with one server. */
static const bk_protocol *meeting;
static int left;

static void meet_leave(void *arg) {
    (void)arg;
    left++;
}

static int meet_listen(bk_loop *l, const bk_endpoint *endpoint, const bk_protocol *protocol,
                       bk_error *error, bk_listener **ret_listener) {
    (void)endpoint, (void)error;
    meeting = protocol;
    return bk_listener_new(l, "meet:here", meet_leave, NULL, ret_listener);
}

static int meet_connect(bk_loop *l, const bk_endpoint *endpoint, const bk_protocol *protocol,
                        void *user, bk_error *error, bk_stream **ret_stream) {
    bk_transport *pair[2];
    if (strcmp(endpoint->path, "here") != 0)
        return bk_error_set(error, -ENOENT, endpoint->rest, "nobody is at %s", endpoint->path);
    int code = bk_memory_transport(l, 100, pair);
    if (code < 0)
        return code;
    CHECK_INT(bk_stream_new(l, pair[0], meeting, NULL, NULL), 0);
    return bk_stream_new(l, pair[1], protocol, user, ret_stream);
}

static void third_party(void) {
    static const char *const options[] = {"when", NULL};
    static const bk_scheme meet = {.size = sizeof meet,
                                   .name = "meet",
                                   .options = options,
                                   .listen = meet_listen,
                                   .connect = meet_connect};
    static const bk_scheme nothing = {.size = offsetof(bk_scheme, listen), .name = "nothing"};
    static const bk_scheme builtin = {.size = sizeof builtin, .name = "tcp"};
    static const bk_scheme misnamed = {.size = sizeof misnamed, .name = "Not OK"};
    bk_error error;
    start();
    CHECK_INT(bk_scheme_add(loop, &meet), 0);
    CHECK_INT(bk_scheme_add(loop, &meet), -EEXIST);
    CHECK_INT(bk_scheme_add(loop, &builtin), -EEXIST);
    CHECK_INT(bk_scheme_add(loop, &misnamed), -EINVAL);
    CHECK_INT(bk_scheme_add(loop, NULL), -EINVAL);
    CHECK_INT(bk_scheme_add(loop, &nothing), 0);
    bk_listener *l = listen_at("meet:here?when=now");
    CHECK_STR(bk_listener_name(l), "meet:here");
    ask("meet:here");
    CHECK_INT(connect_error("meet:there", &error), -ENOENT);
    CHECK_STR(error.text, "nobody is at there");
    CHECK_INT(error.position, 5);
    CHECK_INT(listen_error("nothing:", &error), -ENOTSUP);
    CHECK_INT(connect_error("nothing:", &error), -ENOTSUP);
    CHECK_INT(listen_error("meet:here?a=1", &error), BK_EOPTION);
    CHECK_STR(error.text, "meet has no option a; it has when, proxy, proxy_from, proxy_for");
    CHECK_INT(listen_error("met:", &error), BK_ESCHEME);
    CHECK_STR(error.text, "there is no scheme met; there are tcp, unix, stdio, fd, memory, "
                          "process, systemd, meet, nothing, tls, "
                          "starttls");
    left = 0;
    finish();
    CHECK_INT(left, 1);
}

static int asked; /* how often the host was */
static char asked_for[32];

static int host_knows(void *arg, const char *name, bk_error *error) {
    static const bk_scheme meet = {
        .size = sizeof meet, .name = "meet", .listen = meet_listen, .connect = meet_connect};
    (void)arg;
    asked++;
    snprintf(asked_for, sizeof asked_for, "%s", name);
    if (strcmp(name, "broken") == 0)
        return bk_error_set(error, -ENOENT, 3, "its library is not here");
    return strcmp(name, "meet") == 0 && bk_scheme_add(loop, &meet) == 0;
}

static void schemes_of_the_host(void) {
    static const bk_loop_hooks hooks = {.size = sizeof hooks, .unknown_scheme = host_knows};
    static const bk_loop_hooks older = {.size = offsetof(bk_loop_hooks, unknown_scheme),
                                        .unknown_scheme = host_knows};
    bk_loop_options options = {.size = sizeof options, .log = on_log, .hooks = &hooks};
    bk_error error;
    memset(&seen, 0, sizeof seen);
    CHECK_INT(bk_loop_new(&options, &loop), 0);
    (void)listen_at("tcp://127.0.0.1:0");
    CHECK_INT(asked, 0); /* those that are known are not asked for */
    CHECK_INT(listen_error("tls+met:here?cert=dev", &error), BK_ESCHEME);
    CHECK_STR(asked_for, "met");
    CHECK(strncmp(error.text, "there is no scheme tls+met; there are tcp", 41) == 0);
    CHECK_INT(connect_error("broken:here", &error), -ENOENT);
    CHECK_STR(error.text, "its library is not here");
    CHECK_INT(error.position, 3);
    asked = 0;
    CHECK_STR(bk_listener_name(listen_at("meet:here")), "meet:here");
    ask("meet:here");
    CHECK_INT(asked, 1);
    finish();
    options.hooks = &older;
    CHECK_INT(bk_loop_new(&options, &loop), 0);
    CHECK_INT(listen_error("meet:here", &error), BK_ESCHEME);
    CHECK_INT(asked, 1);
    finish();
}

/* ---- Descriptors ---- */

static void fd_listening(void) {
    int port, fd = raw_tcp(0, &port, false);
    char endpoint[32];
    bk_listener *l;
    start();
    CHECK_INT(bk_listen_fd(loop, fd, &echo, &l), -EINVAL); /* does not listen yet */
    CHECK(listen(fd, 5) == 0);
    snprintf(endpoint, sizeof endpoint, "fd:%d", fd);
    l = listen_at(endpoint);
    CHECK_INT(port_of(l), port);
    ask(bk_listener_name(l));
    bk_listener_close(l);
    CHECK(fcntl(fd, F_GETFD) < 0);
    int local = raw_unix(in_folder("given"), 5);
    CHECK_INT(bk_listen_fd(loop, local, &echo, &l), 0);
    CHECK_STR(bk_listener_name(l), unix_at("given"));
    ask(bk_listener_name(l));
    finish();
    CHECK(fcntl(local, F_GETFD) < 0);
}

static void fd_connected(void) {
    int pair[2];
    char endpoint[32];
    client c = {.number = 3};
    start();
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    snprintf(endpoint, sizeof endpoint, "fd:%d", pair[0]);
    bk_listener *l = listen_at(endpoint);
    CHECK_STR(bk_listener_name(l), endpoint);
    CHECK_INT(seen.served, 0); /* not from within bk_listen() */
    snprintf(endpoint, sizeof endpoint, "fd:%d", pair[1]);
    CHECK_INT(bk_connect(loop, endpoint, &asking, &c, NULL, NULL), 0);
    CHECK_INT(seen.opened, 0); /* nor from within bk_connect() */
    run_until(&seen.closed, 1);
    CHECK_INT(seen.why, 0);
    CHECK_INT(seen.received, CONTENT);
    run_until(&seen.gone, 1);
    CHECK(fcntl(pair[0], F_GETFD) < 0 && fcntl(pair[1], F_GETFD) < 0);
    /* Closed, or ended with the loop, before anything could begin. */
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    snprintf(endpoint, sizeof endpoint, "fd:%d", pair[0]);
    bk_listener_close(listen_at(endpoint));
    snprintf(endpoint, sizeof endpoint, "fd:%d", pair[1]);
    CHECK_INT(bk_connect(loop, endpoint, &asking, &c, NULL, NULL), 0);
    finish();
    CHECK_INT(seen.closed, 2);
    CHECK(fcntl(pair[0], F_GETFD) < 0 && fcntl(pair[1], F_GETFD) < 0);
}

static int talk_opened(bk_stream *s) {
    seen.opened++;
    return bk_stream_write(s, "hello", 5, BK_STATIC, NULL);
}

static int talk_ended(bk_stream *s) {
    (void)s;
    seen.ended++;
    return 1;
}

static void talk_received(bk_stream *s, const void *data, size_t n) {
    (void)s, (void)data;
    seen.received += n;
}

static const bk_protocol talking = {.size = sizeof talking,
                                    .opened = talk_opened,
                                    .received = talk_received,
                                    .ended = talk_ended,
                                    .closed = client_closed};

/* The writing end of a pipe has nothing to read, and is not broken for that. */
static void fd_pipe(void) {
    int fds[2];
    char endpoint[32], room[16];
    bk_stream *s;
    bk_error error;
    start();
    CHECK(pipe(fds) == 0);
    snprintf(endpoint, sizeof endpoint, "fd:%d", fds[1]);
    CHECK_INT(bk_connect(loop, endpoint, &talking, NULL, NULL, &s), 0);
    run_until(&seen.ended, 1);
    CHECK_INT(seen.closed, 0);
    CHECK_INT(read(fds[0], room, sizeof room), 5);
    bk_stream_end(s);
    turns(2);
    CHECK_INT(read(fds[0], room, sizeof room), 0);
    bk_stream_close(s);
    run_until(&seen.closed, 1);
    CHECK_INT(seen.why, 0);
    CHECK(fcntl(fds[1], F_GETFD) < 0);
    close(fds[0]);
    CHECK_INT(listen_error("fd:", &error), BK_EENDPOINT);
    CHECK_INT(listen_error("fd:3x", &error), BK_EENDPOINT);
    CHECK_INT(listen_error("fd://3", &error), BK_EENDPOINT);
    CHECK_INT(listen_error("fd:999999999999999", &error), -EBADF);
    snprintf(endpoint, sizeof endpoint, "fd:%d", fds[1]);
    CHECK_INT(listen_error(endpoint, &error), -EBADF);
    int lonely = socket(AF_INET, SOCK_STREAM, 0);
    snprintf(endpoint, sizeof endpoint, "fd:%d", lonely);
    CHECK_INT(listen_error(endpoint, &error), -ENOTCONN);
    close(lonely);
    finish();
}

static bool is_nonblocking(int fd) {
    return fcntl(fd, F_GETFL) & O_NONBLOCK;
}

/* Borrowed descriptors stay open, and block again afterwards. */
static void fd_borrowed(void) {
    int in[2], out[2], both[2];
    bk_transport *t;
    start();
    CHECK(pipe(in) == 0 && pipe(out) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, both) == 0);
    CHECK_INT(bk_fd_transport(loop, in[0], out[1], 0, &t), 0);
    CHECK(is_nonblocking(in[0]) && is_nonblocking(out[1]));
    CHECK_INT(t->ops->end(t), -ENOTSUP); /* not ours to close */
    t->ops->close(t);
    CHECK(!is_nonblocking(in[0]) && !is_nonblocking(out[1]));
    int twin = dup(both[0]); /* shares its mode */
    CHECK_INT(bk_fd_transport(loop, both[0], twin, 0, &t), 0);
    t->ops->close(t);
    CHECK(fcntl(both[0], F_GETFD) >= 0 && !is_nonblocking(both[0]));
    CHECK_INT(bk_fd_transport(loop, both[0], both[0], 0, &t), 0);
    CHECK_INT(t->ops->end(t), 0);
    t->ops->close(t);
    CHECK(!is_nonblocking(both[0]));
    CHECK_INT(bk_fd_transport(loop, in[0], 9999, 1, &t), -EBADF);
    CHECK(fcntl(in[0], F_GETFD) >= 0 && !is_nonblocking(in[0]));
    int all[] = {in[0], in[1], out[0], out[1], both[0], both[1], twin};
    for (int i = 0; i < COUNT(all); i++)
        close(all[i]);
    finish();
}

/* A file is always ready, a pipe is not: only the file is BK_NOW. */
static void fd_mixed(void) {
    int out[2], file;
    char room[16];
    bk_transport *t;
    bk_stream *s;
    start();
    file = open(in_folder("mixed"), O_CREAT | O_RDWR, 0600);
    CHECK(write(file, "0123456789", 10) == 10 && lseek(file, 0, SEEK_SET) == 0);
    CHECK(pipe(out) == 0);
    CHECK_INT(bk_fd_transport(loop, file, out[1], 1, &t), 0);
    CHECK_INT(t->ops->wants(t, 0), 0);
    CHECK_INT(t->ops->wants(t, BK_READ), BK_NOW);
    CHECK_INT(t->ops->wants(t, BK_WRITE), BK_WRITE);
    CHECK_INT(t->ops->wants(t, BK_READ | BK_WRITE), BK_WRITE | BK_NOW);
    CHECK_INT(bk_stream_new(loop, t, &talking, NULL, &s), 0);
    run_until(&seen.ended, 1);
    CHECK_INT(seen.received, 10);
    CHECK_INT(read(out[0], room, sizeof room), 5);
    bk_stream_end(s);
    turns(1);
    CHECK_INT(read(out[0], room, sizeof room), 0);
    bk_stream_abort(s);
    run_until(&seen.closed, 1);
    CHECK_INT(bk_fd_transport(loop, -1, -1, 1, &t), 0);
    CHECK_INT(t->ops->read(t, room, 1), 0);
    CHECK_INT(t->ops->write(t, &(struct iovec){room, 1}, 1), -EPIPE);
    t->ops->close(t);
    close(out[0]);
    finish();
}

/* ---- Memory ---- */

static bk_stream *other;

static void last_words(bk_stream *s, int why) {
    static char words[BK_WATER_HIGH + 1];
    (void)s, (void)why;
    seen.closed++;
    if (other != NULL)
        bk_stream_write(other, words, sizeof words, BK_STATIC, NULL);
}

/* Who is written to while it is being closed is not woken from the dead. */
static void memory_last_words(void) {
    static const bk_protocol speaking = {.size = sizeof speaking, .closed = last_words};
    bk_transport *pair[2];
    bk_stream *s;
    start();
    CHECK_INT(bk_memory_transport(loop, 0, pair), 0);
    CHECK_INT(bk_stream_new(loop, pair[0], &echo, NULL, &other), 0);
    CHECK_INT(bk_stream_new(loop, pair[1], &speaking, NULL, &s), 0);
    turns(2);
    bk_stream_abort(s);
    run_until(&seen.closed, 1);
    turns(3);
    other = NULL;
    finish();
}

static void memory_pairs(void) {
    bk_transport *pair[2];
    client c = {.number = 5};
    char room[8];
    start();
    for (size_t capacity = 0; capacity < 3; capacity++) {
        CHECK_INT(bk_memory_transport(loop, capacity, pair), 0);
        c.got = 0;
        CHECK_INT(bk_stream_new(loop, pair[0], &asking, &c, NULL), 0);
        CHECK_INT(bk_stream_new(loop, pair[1], &echo, NULL, NULL), 0);
        run_until(&seen.closed, (int)capacity + 1);
        run_until(&seen.gone, (int)capacity + 1);
        CHECK_INT(seen.why, 0);
        CHECK_INT(seen.wrong, 0);
    }
    CHECK_INT(seen.received, 3 * CONTENT);
    CHECK_INT(bk_memory_transport(loop, 3, pair), 0); /* in no stream */
    struct iovec v[3] = {{"ab", 2}, {"", 0}, {"cd", 2}};
    CHECK_INT(pair[0]->ops->read(pair[0], room, 8), -EAGAIN);
    CHECK_INT(pair[0]->ops->write(pair[0], v, 3), 3);
    CHECK_INT(pair[0]->ops->write(pair[0], v, 3), -EAGAIN);
    CHECK_INT(pair[1]->ops->read(pair[1], room, 2), 2);
    CHECK_INT(pair[0]->ops->write(pair[0], v, 1), 2);
    CHECK_INT(pair[0]->ops->end(pair[0]), 0);
    CHECK_INT(pair[0]->ops->write(pair[0], v, 1), -EPIPE);
    CHECK_INT(pair[1]->ops->read(pair[1], room, 8), 3);
    CHECK(memcmp(room, "cab", 3) == 0);
    CHECK_INT(pair[1]->ops->read(pair[1], room, 8), 0);
    CHECK_INT(pair[1]->ops->write(pair[1], v, 1), 2);
    pair[1]->ops->close(pair[1]);
    CHECK_INT(pair[0]->ops->read(pair[0], room, 8), 2);
    CHECK_INT(pair[0]->ops->read(pair[0], room, 8), 0);
    pair[0]->ops->close(pair[0]);
    finish();
}

/* ---- bk_serve(), in a process of its own ---- */

typedef struct child {
    pid_t pid;
    int in, out, err; /* our ends */
} child;

static child serve_in_child(const char *first, const char *second) {
    int in[2], out[2], err[2];
    CHECK(pipe(in) == 0 && pipe(out) == 0 && pipe(err) == 0);
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(in[0], 0);
        dup2(out[1], 1);
        dup2(err[1], 2);
        for (int i = 0; i < 2; i++) {
            close(in[i]);
            close(out[i]);
            close(err[i]);
        }
        int status = bk_serve(&echo, first, second, NULL);
        if (is_nonblocking(0) || is_nonblocking(1))
            status = 2;
        _exit(status);
    }
    close(in[0]);
    close(out[1]);
    close(err[1]);
    return (child){pid, in[1], out[0], err[0]};
}

static int exit_status(child *c) {
    int status = -1;
    if (c->in >= 0)
        close(c->in);
    CHECK(waitpid(c->pid, &status, 0) == c->pid);
    close(c->out);
    close(c->err);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* Reads until what was read contains `until`, or to the end. */
static size_t read_until(int fd, char *room, size_t size, const char *until) {
    size_t n = 0;
    ssize_t got;
    room[0] = '\0';
    while ((until == NULL || strstr(room, until) == NULL) && n < size - 1 &&
           (got = read(fd, room + n, size - 1 - n)) > 0) {
        n += (size_t)got;
        room[n] = '\0';
    }
    return n;
}

static void serve_stdio(void) {
    char sent[3000], room[4096];
    child c = serve_in_child("stdio:", NULL);
    for (size_t i = 0; i < sizeof sent; i++)
        sent[i] = (char)('a' + i % 26);
    CHECK_INT(write(c.in, sent, sizeof sent), sizeof sent);
    close(c.in);
    c.in = -1;
    CHECK_INT(read_until(c.out, room, sizeof room, NULL), sizeof sent);
    CHECK(memcmp(room, sent, sizeof sent) == 0);
    CHECK_INT(exit_status(&c), 0);
}

/* It ends at a signal, and not when its standard input does, for there are others to serve. */
static void serve_until_signal(void) {
    static const int signals[] = {SIGTERM, SIGINT};
    for (int i = 0; i < 2; i++) {
        char room[1024];
        struct stat info;
        child c = serve_in_child("tcp://127.0.0.1:0", unix_at("served"));
        read_until(c.err, room, sizeof room, "served\n");
        char *name = strstr(room, "tcp://");
        CHECK(name != NULL && strncmp(room, "becket: listening at tcp://", 27) == 0);
        start();
        if (name != NULL) {
            *strchr(name, '\n') = '\0';
            ask(name);
        }
        ask(unix_at("served"));
        finish();
        kill(c.pid, signals[i]);
        CHECK_INT(exit_status(&c), 0);
        CHECK(stat(in_folder("served"), &info) < 0);
    }
}

static void serve_errors(void) {
    char room[1024];
    child c = serve_in_child("stdio:", "tcp://127.0.0.1:99999");
    read_until(c.err, room, sizeof room, NULL);
    CHECK_INT(exit_status(&c), 1);
    CHECK_STR(room, "becket: listening at stdio:\n"
                    "becket: port 99999 is out of range: 0 to 65535\n"
                    "  tcp://127.0.0.1:99999\n"
                    "                  ^\n");
    c = serve_in_child("unix:/\xc3\xa9\xc3\xa9?x", NULL);
    read_until(c.err, room, sizeof room, NULL);
    CHECK_INT(exit_status(&c), 1);
    CHECK_STR(room, "becket: option x has no value: x=value\n"
                    "  unix:/\xc3\xa9\xc3\xa9?x\n"
                    "            ^\n");
    c = serve_in_child("unix:/no/such/folder/x", NULL);
    read_until(c.err, room, sizeof room, NULL);
    CHECK_INT(exit_status(&c), 1);
    CHECK_STR(room, "becket: unix:/no/such/folder/x: cannot listen: No such file or directory\n");
    c = serve_in_child(NULL, NULL);
    CHECK_INT(exit_status(&c), 1);
}

/* Writing to somebody who is gone must not end the server. */
static void serve_without_sigpipe(void) {
    char room[256];
    child c = serve_in_child("stdio:", unix_at("alive"));
    read_until(c.err, room, sizeof room, "alive\n");
    close(c.out);
    c.out = -1;
    CHECK_INT(write(c.in, "x", 1), 1);
    start();
    turns(20);
    ask(unix_at("alive"));
    finish();
    kill(c.pid, SIGTERM);
    CHECK_INT(exit_status(&c), 0);
}

int main(int argc, char **argv) {
    static const check_case cases[] = {
        CASE(tcp),
        CASE(tcp_ipv6),
        CASE(tcp_names),
        CASE(tcp_options),
        CASE(unix_socket),
        CASE(unix_stale_and_live),
        CASE(unix_not_ours),
        CASE(unix_too_long),
        CASE(batches),
        CASE(no_descriptors),
        CASE(closed_while_accepting),
        CASE(refused),
        CASE(given_up),
        CASE(unix_full_backlog),
        CASE(two_hundred),
        CASE(unknown),
        CASE(third_party),
        CASE(schemes_of_the_host),
        CASE(fd_listening),
        CASE(fd_connected),
        CASE(fd_pipe),
        CASE(fd_borrowed),
        CASE(fd_mixed),
        CASE(memory_pairs),
        CASE(memory_last_words),
        CASE(serve_stdio),
        CASE(serve_until_signal),
        CASE(serve_errors),
        CASE(serve_without_sigpipe),
    };
    signal(SIGPIPE, SIG_IGN);
    strcpy(folder, "/tmp/becket-serve-XXXXXX");
    if (mkdtemp(folder) == NULL)
        return 1;
    int failed = check_main(argc, argv, cases, COUNT(cases));
    char command[128];
    snprintf(command, sizeof command, "rm -r %s", folder);
    return system(command) != 0 || failed;
}
