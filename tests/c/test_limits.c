/*
 * test_limits.c: what a server allows its connections: gates, their limits, times and counts, what
 * those hear who are refused, and listeners that are paused or share their sockets. All of it once
 * more with each call to the operating system failing in turn.
 */
#include "check.h"
#include "support.h"

#include "core/serve/serve.h"

#include <becket-smtp.h>
#include <becket-tls.h>

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <unistd.h>

/* See test_tls.c. */
const char *__lsan_default_options(void);
const char *__lsan_default_options(void) {
    return "use_tls=0";
}

/* ---- The operating system: the injector's, whose accept() may tell of peers that are not ---- */

static faults_view view;
static const char *lies[8]; /* addresses of the next peers; NULL: the truth */
static int lied;

static void lie(const char *text, struct sockaddr *ret_address, unsigned *size) {
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(7)};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(7)};
    if (inet_pton(AF_INET, text, &v4.sin_addr) == 1) {
        memcpy(ret_address, &v4, sizeof v4);
        *size = sizeof v4;
    } else {
        CHECK_INT(inet_pton(AF_INET6, text, &v6.sin6_addr), 1);
        memcpy(ret_address, &v6, sizeof v6);
        *size = sizeof v6;
    }
}

static int lying_accept(bk_os *os, int fd, struct sockaddr *ret_address, unsigned *size) {
    int result = faults_os(view.owner)->accept(os, fd, ret_address, size);
    if (result >= 0 && lied < COUNT(lies) && lies[lied] != NULL)
        lie(lies[lied++], ret_address, size);
    return result;
}

static bool cannot_refuse; /* as of a system that has no such call */

static bk_os *table(void) {
    faults *f = support_faults();
    view = *(faults_view *)faults_os(f);
    view.os.accept = lying_accept;
    if (cannot_refuse)
        view.os.refuse = NULL;
    return &view.os;
}

/* ---- A server, and what happened to it ---- */

static bk_loop *loop;
static bk_gate *gate;
static bk_listener *listener;
static bool walking; /* calls fail: only what must hold whatever happens is looked at */

static struct {
    int opened, received, closed, why, refused, refused_why, left, left_refused, left_why;
    int peer_family;
    uint64_t bytes_in, bytes_out;
    int64_t lasted, began;
    char listener[128];
    int log_code;
    bk_stream *last;
} seen;

static void on_log(void *arg, int code, const char *text) {
    (void)arg, (void)text;
    seen.log_code = code;
}

static void on_leave(void *arg, const bk_visitor *v) {
    CHECK(arg == &seen);
    seen.left++;
    seen.left_refused += v->stream == NULL;
    seen.left_why = v->why;
    seen.peer_family = v->peer_size == 0 ? -1 : v->peer->sa_family;
    seen.bytes_in = v->bytes_in;
    seen.bytes_out = v->bytes_out;
    seen.lasted = v->lasted;
    seen.began = v->began;
    snprintf(seen.listener, sizeof seen.listener, "%s", v->listener);
}

static int host_opened(bk_stream *s) {
    seen.opened++;
    seen.last = s;
    return 0;
}

static void host_received(bk_stream *s, const void *data, size_t n) {
    seen.received++;
    bk_stream_write(s, data, n, BK_COPY, NULL);
}

static void host_closed(bk_stream *s, int why) {
    (void)s;
    seen.closed++;
    seen.why = why;
}

static const bk_protocol host;

static void host_refused(bk_stream *s, const bk_protocol *protocol, int why) {
    CHECK(protocol == &host);
    seen.refused++;
    seen.refused_why = why;
    bk_stream_write(s, "full\n", 5, BK_STATIC, NULL);
}

static const bk_protocol host = {.size = sizeof host,
                                 .name = "host",
                                 .opened = host_opened,
                                 .received = host_received,
                                 .closed = host_closed,
                                 .refused = host_refused};

static int new_loop(bk_loop **ret_loop) {
    bk_loop_options options = {.size = sizeof options, .log = on_log, .os = table()};
    return bk_loop_new(&options, ret_loop);
}

static int open_at(const char *endpoint, const bk_protocol *protocol) {
    bk_listen_options options = {.size = sizeof options, .gate = gate};
    bk_error error = {0};
    int code = bk_listen_with(loop, endpoint, protocol, &options, &error, &listener);
    if (code < 0 && !walking)
        printf("# %s: %s\n", endpoint, error.text);
    return code;
}

static int open_server(const char *endpoint, const bk_protocol *protocol, bk_limits limits) {
    memset(&seen, 0, sizeof seen);
    memset(lies, 0, sizeof lies);
    lied = 0;
    loop = NULL;
    gate = NULL;
    listener = NULL;
    limits.size = sizeof limits;
    int code = new_loop(&loop);
    if (code == 0)
        code = bk_gate_new(bk_loop_os(loop), &limits, on_leave, &seen, &gate);
    return code == 0 ? open_at(endpoint, protocol) : code;
}

static void start(const char *endpoint, const bk_protocol *protocol, bk_limits limits) {
    CHECK_INT(open_server(endpoint, protocol, limits), 0);
}

static bk_gate_stats stats(void) {
    bk_gate_stats s = {.size = sizeof s};
    bk_gate_stats_of(gate, &s);
    return s;
}

/* Whatever happened: nobody is left, and each that came was told of once. */
static void finish(void) {
    CHECK_INT(bk_loop_free(loop), 0);
    bk_gate_stats s = stats();
    if (gate != NULL) {
        CHECK_INT(s.connections, 0);
        CHECK_INT(s.handshakes, 0);
        CHECK_INT(s.accepted, s.closed);
        CHECK_INT(seen.left, s.accepted + s.refused);
        CHECK_INT(seen.left_refused, s.refused);
    }
    bk_gate_unref(gate);
    CHECK_INT(faults_leaks(support_faults(), NULL), 0);
}

static void turns(int n) {
    while (n-- > 0)
        (void)bk_loop_turn(loop, BK_MILLISECOND);
}

/* Turn until *counter is at least n; while walking only a little. */
static void until(const int *counter, int n) {
    int64_t end = bk_os_default()->clock(bk_os_default()) + 10 * BK_SECOND;
    if (walking)
        turns(5);
    while (!walking && *counter < n && bk_os_default()->clock(bk_os_default()) < end)
        CHECK_INT(bk_loop_turn(loop, 20 * BK_MILLISECOND), 0);
    CHECK(walking || *counter >= n);
}

/* Seconds go by, without our waiting for them. */
static void pass(int seconds) {
    while (seconds-- > 0) {
        faults_pass_time(support_faults(), BK_SECOND);
        turns(2);
    }
}

/* ---- Clients, without us ---- */

static int port(void) {
    const char *colon = strrchr(bk_listener_name(listener), ':');
    return colon == NULL ? -1 : atoi(colon + 1);
}

static int dial_soon(void) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port())};
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    CHECK(connect(fd, (struct sockaddr *)&a, sizeof a) == 0 || errno == EINPROGRESS);
    return fd;
}

static bool is_connected(int fd, int timeout_ms) {
    struct pollfd p = {fd, POLLOUT, 0};
    return poll(&p, 1, timeout_ms) == 1 && p.revents == POLLOUT;
}

static int dial(void) {
    int fd = dial_soon();
    CHECK(is_connected(fd, 10000));
    return fd;
}

/* What comes until the end; NULL: the connection broke, or did not end. */
static const char *hear(int fd) {
    static char room[512];
    size_t n = 0;
    ssize_t got = -1;
    for (int tries = walking ? 3 : 2000; tries > 0 && n < sizeof room - 1; tries--) {
        got = recv(fd, room + n, sizeof room - 1 - n, 0);
        if (got == 0 || (got < 0 && errno != EAGAIN))
            break;
        n += got > 0 ? (size_t)got : 0;
        turns(1);
    }
    room[n] = '\0';
    return got == 0 ? room : NULL;
}

/* Whether it is open, and silent. */
static bool is_open(int fd) {
    char c;
    return recv(fd, &c, 1, MSG_PEEK) < 0 && errno == EAGAIN;
}

static void say(int fd, const char *text) {
    CHECK(send(fd, text, strlen(text), MSG_NOSIGNAL) == (ssize_t)strlen(text) || walking);
}

static void hang_up(int *fds, int n) {
    while (n-- > 0) {
        close(fds[n]);
        fds[n] = -1;
    }
}

/* ---- How many ---- */

static const char *tcp = "tcp://127.0.0.1:0";

static void max_connections(void) {
    int fds[3];
    start(tcp, &host, (bk_limits){.max_connections = 2});
    for (int i = 0; i < 3; i++)
        fds[i] = dial();
    until(&seen.refused, 1);
    CHECK_STR(hear(fds[2]), "full\n");
    CHECK_INT(seen.refused_why, BK_ELIMIT);
    CHECK(is_open(fds[0]) && is_open(fds[1]));
    CHECK_INT(seen.opened, 2);
    CHECK_INT(stats().connections, 2);
    CHECK_INT(stats().refused, 1);
    close(fds[2]);
    until(&seen.left_refused, 1);
    CHECK_INT(seen.left_why, BK_ELIMIT);
    CHECK_INT(seen.peer_family, AF_INET);
    close(fds[0]);
    until(&seen.closed, 1);
    fds[0] = dial(); /* there is room again */
    until(&seen.opened, 3);
    hang_up(fds, 2);
    until(&seen.closed, 3);
    CHECK_INT(stats().accepted, 3);
    CHECK_INT(seen.refused, 1);
    finish();
}

/* Words reach whoever has sent something already, which nobody will read. */
static void lingering(void) {
    static char much[100 * 1024];
    start(tcp, &host, (bk_limits){.max_connections = 1});
    int first = dial();
    until(&seen.opened, 1);
    int fd = dial();
    memset(much, 'x', sizeof much);
    size_t sent = 0;
    while (sent < sizeof much) {
        ssize_t n = send(fd, much + sent, sizeof much - sent, MSG_NOSIGNAL);
        if (n < 0 && errno != EAGAIN)
            break;
        sent += n > 0 ? (size_t)n : 0;
        turns(1);
    }
    CHECK_INT(sent, sizeof much);
    CHECK_STR(hear(fd), "full\n");
    close(fd);
    until(&seen.left_refused, 1);
    CHECK_INT(seen.bytes_in, sizeof much);
    CHECK_INT(seen.bytes_out, 5);
    close(first);
    finish();
}

/* It may not stay for that, however busy it is. */
static void lingering_ends(void) {
    int fds[2];
    start(tcp, &host, (bk_limits){.max_connections = 1});
    for (int i = 0; i < 2; i++)
        fds[i] = dial();
    until(&seen.refused, 1);
    for (int i = 0; i < 5 && seen.left == 0; i++) {
        (void)!send(fds[1], "x", 1, MSG_NOSIGNAL);
        pass(1);
    }
    CHECK_INT(seen.left_refused, 1);
    CHECK(is_open(fds[0]));
    hang_up(fds, 2);
    finish();
}

static void per_address(const char *const *peers, int count, int allowed) {
    int fds[8];
    start(tcp, &host, (bk_limits){.max_per_address = 2});
    for (int i = 0; i < count; i++)
        lies[i] = peers[i];
    for (int i = 0; i < count; i++)
        fds[i] = dial();
    for (int i = 0; i < 50 && seen.opened + seen.refused < count; i++)
        turns(1);
    CHECK_INT(seen.opened, allowed);
    CHECK_INT(seen.refused, count - allowed);
    hang_up(fds, count);
    until(&seen.left, count);
    lied = COUNT(lies); /* all were forgotten: there is room for two again */
    for (int i = 0; i < 3; i++)
        fds[i] = dial();
    until(&seen.opened, allowed + 2);
    until(&seen.refused, count - allowed + 1);
    hang_up(fds, 3);
    finish();
}

static void per_ipv4(void) {
    static const char *const peers[] = {"10.0.0.1", "10.0.0.1", "10.0.0.2", "10.0.0.1"};
    per_address(peers, 4, 3);
}

static void per_ipv6_network(void) {
    static const char *const same[] = {"2001:db8:1:2::1", "2001:db8:1:2:ffff::7", "2001:db8:1:2::3",
                                       "2001:db8:1:3::1"};
    per_address(same, 4, 3);
}

/* ::ffff:10.0.0.1 is 10.0.0.1, and no network of 2^64. */
static void per_mapped(void) {
    static const char *const mapped[] = {"10.0.0.1", "::ffff:10.0.0.1", "::ffff:10.0.0.1",
                                         "::ffff:10.0.0.2", "::1"};
    per_address(mapped, 5, 4);
}

static char folder[64];

static void per_address_unix(void) {
    char endpoint[128];
    int fds[4];
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    snprintf(endpoint, sizeof endpoint, "unix:%s/s", folder);
    snprintf(a.sun_path, sizeof a.sun_path, "%s/s", folder);
    start(endpoint, &host, (bk_limits){.max_per_address = 1});
    for (int i = 0; i < 4; i++) {
        fds[i] = socket(AF_UNIX, SOCK_STREAM, 0);
        CHECK(connect(fds[i], (struct sockaddr *)&a, sizeof a) == 0);
    }
    until(&seen.opened, 4);
    CHECK_INT(seen.refused, 0);
    hang_up(fds, 4);
    until(&seen.left, 4);
    CHECK_STR(seen.listener, endpoint);
    finish();
}

/* ---- Handshakes ---- */

static const bk_tls_engine *engine(void) {
    bk_error error;
    const bk_tls_engine *const *e = bk_tls_engines();
    while (*e != NULL && (*e)->open(bk_os_default(), &error) != 0)
        e++;
    return *e;
}

static int client_result, client_closed_count;

static int client_opened(bk_stream *s) {
    client_result = 1;
    return bk_stream_write(s, "hello", 5, BK_STATIC, NULL);
}

static void client_closed(bk_stream *s, int why) {
    (void)s;
    client_result = why;
    client_closed_count++;
}

static const bk_protocol client = {
    .size = sizeof client, .opened = client_opened, .closed = client_closed};

static const char *tls_address(void) {
    static char text[128];
    snprintf(text, sizeof text, "tls://127.0.0.1:%d?verify=none", port());
    return text;
}

static void max_pending_handshakes(void) {
    int fds[3];
    bk_stream *s;
    if (engine() == NULL) {
        check_skip("no TLS engine is here");
        return;
    }
    start("tls://127.0.0.1:0?cert=dev", &host, (bk_limits){.max_pending_handshakes = 2});
    for (int i = 0; i < 3; i++)
        fds[i] = dial();
    until(&seen.left_refused, 1);
    CHECK_STR(hear(fds[2]), ""); /* without a word, which would be no TLS */
    CHECK_INT(seen.refused, 0);
    CHECK_INT(stats().handshakes, 2);
    hang_up(fds + 1, 2);
    until(&seen.closed, 1); /* one that came to nothing makes room, and so does one that is open */
    CHECK_INT(stats().handshakes, 1);
    for (int i = 0; i < 2; i++) {
        seen.received = 0;
        client_result = 0;
        CHECK_INT(bk_connect(loop, tls_address(), &client, NULL, NULL, &s), 0);
        until(&seen.received, 1);
        CHECK_INT(client_result, 1);
    }
    CHECK_INT(stats().handshakes, 1);
    CHECK_INT(stats().connections, 3);
    close(fds[0]);
    finish();
}

/* The limit is of handshakes alone: no endpoint without them has it. */
static void no_handshakes(void) {
    int fds[3];
    start(tcp, &host, (bk_limits){.max_pending_handshakes = 1});
    for (int i = 0; i < 3; i++)
        fds[i] = dial();
    until(&seen.opened, 3);
    CHECK_INT(stats().handshakes, 0);
    hang_up(fds, 3);
    finish();
}

/* ---- How fast ---- */

static void accept_rate(void) {
    enum { MANY = 6 };
    int fds[MANY];
    start(tcp, &host, (bk_limits){.accept_rate = 2});
    for (int i = 0; i < MANY; i++)
        fds[i] = dial();
    turns(10);
    int first = seen.opened;
    CHECK(first >= 1 && first <= 2); /* the others wait in the backlog: nobody is refused */
    for (int i = 0; i < 2; i++) {
        faults_pass_time(support_faults(), BK_SECOND / 2);
        turns(3);
    }
    CHECK(seen.opened >= first + 1 && seen.opened <= first + 3);
    pass(4);
    CHECK_INT(seen.opened, MANY);
    CHECK_INT(seen.refused, 0);
    hang_up(fds, MANY);
    finish();
}

/* What the rate has paused, its owner may pause too; neither ends what the other wants. */
static void two_pauses(void) {
    int fds[4];
    start(tcp, &host, (bk_limits){.accept_rate = 1});
    for (int i = 0; i < 4; i++)
        fds[i] = dial();
    turns(5);
    int first = seen.opened;
    CHECK_INT(bk_listener_pause(listener, 1), 0);
    CHECK_INT(bk_listener_pause(listener, 1), 0);
    pass(5);
    CHECK_INT(seen.opened, first);
    CHECK_INT(bk_listener_pause(listener, 0), 0);
    turns(3);
    first = seen.opened;
    CHECK(first < 4); /* paused by the rate again */
    CHECK_INT(bk_listener_pause(listener, 1), 0);
    CHECK_INT(bk_listener_pause(listener, 0), 0);
    turns(3);
    CHECK_INT(seen.opened, first);
    pass(5);
    CHECK_INT(seen.opened, 4);
    hang_up(fds, 4);
    finish();
}

static void paused(void) {
    int fds[2];
    start(tcp, &host, (bk_limits){.max_connections = 1});
    CHECK_INT(bk_listener_pause(listener, 1), 0);
    for (int i = 0; i < 2; i++)
        fds[i] = dial();
    turns(5);
    CHECK_INT(stats().accepted, 0);
    CHECK_INT(bk_listener_pause(listener, 0), 0);
    until(&seen.refused, 1);
    CHECK_INT(seen.opened, 1);
    hang_up(fds, 2);
    CHECK_INT(bk_listener_pause(NULL, 1), -EINVAL);
    int pair[2], room[2];
    char endpoint[32];
    bk_listener *once;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    snprintf(endpoint, sizeof endpoint, "fd:%d", pair[0]);
    CHECK_INT(bk_listen(loop, endpoint, &host, NULL, &once), 0);
    CHECK_INT(bk_listener_pause(once, 1), -ENOTSUP);
    CHECK_INT(bk_listener_sockets(once, room, 2), 0);
    CHECK_INT(bk_listener_sockets(listener, room, 2), 1);
    CHECK_INT(bk_listener_sockets(listener, NULL, 0), 1);
    CHECK_INT(bk_listener_sockets(listener, NULL, 1), -EINVAL);
    CHECK_INT(bk_listener_sockets(listener, room, -1), -EINVAL);
    CHECK_INT(bk_listener_sockets(NULL, room, 1), -EINVAL);
    finish();
    close(pair[1]);
}

/* ---- How long ---- */

/* A connection that has said `text` (NULL: nothing) is there after so many seconds, and gone, with
   -ETIMEDOUT, after so many more. */
static void times(bk_limits limits, const char *text, int stays, int more) {
    start(tcp, &host, limits);
    int fd = dial();
    until(&seen.opened, 1);
    if (text != NULL) {
        say(fd, text);
        until(&seen.received, 1);
    }
    pass(stays);
    CHECK_INT(seen.closed, 0);
    pass(more);
    CHECK_INT(seen.closed, 1);
    CHECK_INT(seen.why, -ETIMEDOUT);
    CHECK_INT(seen.left, 1);
    CHECK_INT(seen.left_why, -ETIMEDOUT);
    CHECK_INT(stats().failed, 1);
    CHECK(seen.lasted >= (int64_t)stays * BK_SECOND && seen.began > 0);
    close(fd);
    finish();
}

static void first_byte_time(void) {
    times((bk_limits){.first_byte = 3}, NULL, 3, 3);
    start(tcp, &host, (bk_limits){.first_byte = 3});
    int fd = dial();
    until(&seen.opened, 1);
    say(fd, "x");
    until(&seen.received, 1);
    pass(10); /* who has spoken may be silent for ever */
    CHECK_INT(seen.closed, 0);
    close(fd);
    finish();
}

static void idle_time(void) {
    times((bk_limits){.idle = 3}, "hello", 3, 3);
    start(tcp, &host, (bk_limits){.idle = 3});
    int fd = dial();
    until(&seen.opened, 1);
    for (int i = 0; i < 5; i++) {
        say(fd, "x");
        pass(2);
    }
    CHECK_INT(seen.closed, 0);
    close(fd);
    finish();
}

static void total_time(void) {
    start(tcp, &host, (bk_limits){.total = 4});
    int fd = dial();
    until(&seen.opened, 1);
    for (int i = 0; i < 4; i++) {
        say(fd, "x");
        pass(1);
    }
    CHECK_INT(seen.closed, 0);
    for (int i = 0; i < 3; i++) { /* however busy it is */
        (void)!send(fd, "x", 1, MSG_NOSIGNAL);
        pass(1);
    }
    CHECK_INT(seen.why, -ETIMEDOUT);
    close(fd);
    finish();
}

/* While the peer does not read: what it sends does not help it. */
static void write_time(void) {
    static char much[8 << 20];
    start(tcp, &host, (bk_limits){.write = 3});
    int fd = dial();
    until(&seen.opened, 1);
    pass(10); /* nothing is to be sent */
    CHECK_INT(seen.closed, 0);
    bk_stream_write(seen.last, much, sizeof much, BK_STATIC, NULL);
    for (int i = 0; i < 3; i++) {
        say(fd, "x");
        pass(1);
    }
    CHECK_INT(seen.closed, 0);
    for (int i = 0; i < 3; i++) {
        (void)!send(fd, "x", 1, MSG_NOSIGNAL);
        pass(1);
    }
    CHECK_INT(seen.closed, 1);
    CHECK_INT(seen.why, -ETIMEDOUT);
    close(fd);
    finish();
}

/* A handshake has the time for its first byte, too. */
static void time_of_handshake(void) {
    if (engine() == NULL) {
        check_skip("no TLS engine is here");
        return;
    }
    start("tls://127.0.0.1:0?cert=dev", &host, (bk_limits){.first_byte = 2});
    int fd = dial();
    for (int i = 0; i < 100 && stats().handshakes == 0; i++)
        turns(1);
    CHECK_INT(stats().handshakes, 1);
    pass(5);
    CHECK_INT(seen.why, -ETIMEDOUT);
    CHECK_INT(stats().handshakes, 0);
    close(fd);
    finish();
}

/* ---- What is told ---- */

static void counted(void) {
    start(tcp, &host, (bk_limits){0});
    int fd = dial();
    until(&seen.opened, 1);
    say(fd, "hello");
    until(&seen.received, 1);
    char echoed[5];
    for (int i = 0; i < 100 && is_open(fd); i++)
        turns(1);
    CHECK_INT(recv(fd, echoed, sizeof echoed, 0), 5);
    close(fd);
    until(&seen.left, 1);
    CHECK_INT(seen.left_why, 0);
    CHECK_INT(seen.bytes_in, 5);
    CHECK_INT(seen.bytes_out, 5);
    CHECK_INT(seen.peer_family, AF_INET);
    CHECK_STR(seen.listener, bk_listener_name(listener));
    bk_gate_stats s = stats();
    CHECK(s.accepted == 1 && s.closed == 1 && s.failed == 0 && s.refused == 0);
    CHECK(s.bytes_in == 5 && s.bytes_out == 5 && s.connections == 0);
    /* An older header's table is filled as far as it goes. */
    struct {
        bk_gate_stats stats;
    } old = {.stats = {.size = offsetof(bk_gate_stats, refused), .refused = 77}};
    bk_gate_stats_of(gate, &old.stats);
    CHECK(old.stats.accepted == 1 && old.stats.refused == 77);
    CHECK_INT(old.stats.size, offsetof(bk_gate_stats, refused));
    bk_gate_stats_of(NULL, &old.stats);
    bk_gate_stats_of(gate, NULL);
    finish();
}

static void shut(void) {
    int fds[2];
    start(tcp, &host, (bk_limits){0});
    fds[0] = dial();
    until(&seen.opened, 1);
    bk_gate_shut(gate);
    bk_gate_shut(NULL);
    fds[1] = dial();
    until(&seen.refused, 1);
    CHECK_INT(seen.refused_why, -ESHUTDOWN);
    CHECK_STR(hear(fds[1]), "full\n");
    say(fds[0], "x"); /* those who are in go on */
    until(&seen.received, 1);
    hang_up(fds, 2);
    finish();
}

static void wrong_arguments(void) {
    bk_limits limits = {.size = sizeof limits};
    bk_listen_options options = {.size = 0};
    start(tcp, &host, limits);
    bk_os *os = bk_loop_os(loop);
    bk_gate *g;
    CHECK_INT(bk_gate_new(NULL, &limits, NULL, NULL, &g), -EINVAL);
    CHECK_INT(bk_gate_new(os, NULL, NULL, NULL, &g), -EINVAL);
    CHECK_INT(bk_gate_new(os, &limits, NULL, NULL, NULL), -EINVAL);
    limits.size = 1;
    CHECK_INT(bk_gate_new(os, &limits, NULL, NULL, &g), -EINVAL);
    CHECK(bk_gate_ref(NULL) == NULL);
    bk_gate_unref(NULL);
    CHECK_INT(bk_listen_with(loop, tcp, &host, &options, NULL, NULL), -EINVAL);
    options = (bk_listen_options){.size = sizeof options, .socket_count = 1};
    CHECK_INT(bk_listen_with(loop, tcp, &host, &options, NULL, NULL), -EINVAL);
    options.socket_count = -1;
    CHECK_INT(bk_listen_with(loop, tcp, &host, &options, NULL, NULL), -EINVAL);
    finish();
}

/* ---- SMTP ---- */

static void no_message(void *context, bk_smtp_session *session, bk_smtp_message *message) {
    (void)context;
    bk_smtp_message_free(message);
    bk_smtp_answer(session, NULL);
}

static const char *smtp_refusal(const char *endpoint) {
    static char text[512];
    bk_protocol *smtp;
    bk_smtp_config config = {
        .size = sizeof config, .hostname = "mx.example", .message = no_message};
    int fds[2];
    CHECK_INT(bk_smtp_protocol_new(&config, bk_os_default(), &smtp), 0);
    start(endpoint, smtp, (bk_limits){.max_connections = 1});
    for (int i = 0; i < 2; i++)
        fds[i] = dial();
    for (int i = 0; i < 200 && stats().refused == 0; i++)
        turns(1);
    const char *heard = hear(fds[1]);
    snprintf(text, sizeof text, "%s", heard == NULL ? "(broken)" : heard);
    hang_up(fds, 2);
    finish();
    bk_machine_protocol_free(smtp);
    return text;
}

static void smtp(void) {
    static const char *const words = "421 4.3.2 mx.example has too many connections, try later\r\n";
    CHECK_STR(smtp_refusal(tcp), words);
    if (engine() == NULL) {
        check_skip("no TLS engine is here");
        return;
    }
    CHECK_STR(smtp_refusal("starttls://127.0.0.1:0?cert=dev"), words);
    CHECK_STR(smtp_refusal("tls://127.0.0.1:0?cert=dev"), "");
}

/* ---- Ends at every stage ---- */

static void close_listener(void) {
    bk_listener_close(listener);
    listener = NULL;
}

/* The listener goes, and its connections go on: one that is open, one being refused. */
static void listener_closed(void) {
    int fds[2];
    start(tcp, &host, (bk_limits){.max_connections = 1, .accept_rate = 1000, .idle = 60});
    fds[0] = dial();
    until(&seen.opened, 1);
    fds[1] = dial();
    until(&seen.refused, 1);
    close_listener();
    CHECK_STR(hear(fds[1]), "full\n");
    say(fds[0], "x");
    until(&seen.received, 1);
    hang_up(fds, 2);
    until(&seen.left, 2);
    finish();
}

/* … one in its handshake, which is carried through. */
static void listener_closed_in_handshake(void) {
    bk_stream *s;
    if (engine() == NULL) {
        check_skip("no TLS engine is here");
        return;
    }
    start("tls://127.0.0.1:0?cert=dev", &host, (bk_limits){.max_pending_handshakes = 1});
    CHECK_INT(bk_connect(loop, tls_address(), &client, NULL, NULL, &s), 0);
    for (int i = 0; i < 200 && stats().handshakes == 0; i++)
        turns(1);
    close_listener();
    until(&seen.received, 1);
    bk_stream_close(s);
    until(&seen.left, 1);
    finish();
}

/* The loop goes: with nobody, with some not accepted yet, after so many turns. */
static void loop_freed(void) {
    static const char *const endpoints[] = {"tcp://127.0.0.1:0", "tls://127.0.0.1:0?cert=dev"};
    for (int e = 0; e < (engine() == NULL ? 1 : 2); e++)
        for (int n = 0; n < 6; n++) {
            int fds[3];
            start(endpoints[e], &host,
                  (bk_limits){.max_connections = 2, .accept_rate = 3, .max_per_address = 9});
            for (int i = 0; i < 3; i++)
                fds[i] = dial();
            if (e == 1)
                CHECK_INT(bk_connect(loop, tls_address(), &client, NULL, NULL, NULL), 0);
            turns(n);
            if (n == 4)
                close_listener();
            finish();
            hang_up(fds, 3);
        }
}

static bk_listener *to_close;

static int closing_opened(bk_stream *s) {
    (void)s;
    bk_listener_close(to_close);
    return -EPERM;
}

static void closing_refused(bk_stream *s, const bk_protocol *protocol, int why) {
    (void)protocol, (void)why;
    bk_listener_close(to_close);
    bk_stream_abort(s);
}

/* Callbacks may close the listener that is just accepting, the stream too. */
static void closed_within_callbacks(void) {
    static const bk_protocol closing = {
        .size = sizeof closing, .opened = closing_opened, .refused = closing_refused};
    for (unsigned limit = 0; limit < 2; limit++) {
        start(tcp, &closing, (bk_limits){.accept_rate = 1, .max_connections = limit});
        int fd = dial();
        if (limit == 1)
            bk_gate_shut(gate);
        to_close = listener;
        until(&seen.left, 1);
        close(fd);
        finish();
    }
}

/* A scheme of somebody else's, whose streams have a transport that opens later than we wait. */
static const bk_protocol *slow_protocol;

static int slow_open(bk_transport *t) {
    (void)t;
    return -EAGAIN;
}

static void slow_leave(void *arg) {
    (void)arg;
}

static int slow_listen(bk_loop *l, const bk_endpoint *endpoint, const bk_protocol *protocol,
                       bk_error *error, bk_listener **ret_listener) {
    (void)endpoint, (void)error;
    slow_protocol = protocol;
    return bk_listener_new(l, "slow:", slow_leave, NULL, ret_listener);
}

static void closed_before_opened(void) {
    static const bk_scheme slow = {.size = sizeof slow, .name = "slow", .listen = slow_listen};
    static bk_transport_ops ops;
    bk_transport *pair[2];
    bk_stream *s;
    start(tcp, &host, (bk_limits){0});
    CHECK_INT(bk_scheme_add(loop, &slow), 0);
    CHECK_INT(open_at("slow:", &host), 0);
    CHECK_INT(bk_memory_transport(loop, 0, pair), 0);
    ops = *pair[0]->ops;
    ops.open = slow_open;
    pair[0]->ops = &ops;
    CHECK_INT(bk_stream_new(loop, pair[0], slow_protocol, NULL, &s), 0);
    turns(2);
    close_listener();
    turns(2);
    CHECK_INT(seen.opened, 0);
    CHECK(loop->streams == NULL);
    pair[1]->ops->close(pair[1]);
    finish();
}

/* ---- Several loops ---- */

typedef struct party {
    pthread_t thread;
    bk_loop *loop;
    bk_listener *listener;
    atomic_int stop;
} party;

static void *party_main(void *arg) {
    party *p = arg;
    while (!atomic_load(&p->stop))
        CHECK_INT(bk_loop_turn(p->loop, BK_SECOND), 0);
    return NULL;
}

static void party_end(party *p) {
    atomic_store(&p->stop, 1);
    bk_loop_wake(p->loop);
    pthread_join(p->thread, NULL);
}

static atomic_int party_opened, party_left, party_refused;

static int party_open(bk_stream *s) {
    atomic_fetch_add(&party_opened, 1);
    return bk_stream_write(s, "!", 1, BK_STATIC, NULL);
}

static void party_leave(void *arg, const bk_visitor *v) {
    (void)arg;
    atomic_fetch_add(v->stream == NULL ? &party_refused : &party_left, 1);
}

/* Two threads, a loop each, on the same sockets and behind the same gate, which counts for both. */
static void two_threads(void) {
    enum { MANY = 60, ALLOWED = 40 };
    static const bk_protocol greeting = {.size = sizeof greeting, .opened = party_open};
    bk_limits limits = {.size = sizeof limits, .max_connections = ALLOWED, .max_per_address = 99};
    party parties[2] = {{.loop = NULL}, {.loop = NULL}};
    int sockets[1], fds[MANY];
    atomic_store(&party_opened, 0);
    atomic_store(&party_left, 0);
    atomic_store(&party_refused, 0);
    CHECK_INT(bk_gate_new(table(), &limits, party_leave, NULL, &gate), 0);
    bk_listen_options options = {.size = sizeof options, .gate = gate};
    for (int i = 0; i < 2; i++) {
        CHECK_INT(new_loop(&parties[i].loop), 0);
        CHECK_INT(
            bk_listen_with(parties[i].loop, tcp, &greeting, &options, NULL, &parties[i].listener),
            0);
        options.socket_count = bk_listener_sockets(parties[0].listener, sockets, 1);
        options.sockets = sockets;
    }
    listener = parties[0].listener;
    CHECK_STR(bk_listener_name(parties[1].listener), bk_listener_name(listener));
    for (int i = 0; i < 2; i++)
        CHECK(pthread_create(&parties[i].thread, NULL, party_main, &parties[i]) == 0);
    for (int i = 0; i < MANY; i++)
        fds[i] = dial();
    for (int i = 0; i < MANY; i++) {
        char c;
        struct pollfd p = {fds[i], POLLIN, 0}; /* a greeting, or the end */
        CHECK(poll(&p, 1, 10000) == 1);
        (void)!read(fds[i], &c, 1);
    }
    CHECK_INT(atomic_load(&party_opened), ALLOWED);
    CHECK_INT(stats().connections, ALLOWED);
    hang_up(fds, MANY);
    while (atomic_load(&party_left) < ALLOWED || atomic_load(&party_refused) < MANY - ALLOWED)
        usleep(1000);
    bk_gate_unref(bk_gate_ref(gate));
    party_end(&parties[1]);
    CHECK_INT(bk_loop_free(parties[1].loop), 0);
    int fd = dial(); /* the sockets are the first loop's, and still listen */
    struct pollfd p = {fd, POLLIN, 0};
    CHECK(poll(&p, 1, 10000) == 1);
    close(fd);
    party_end(&parties[0]);
    CHECK_INT(bk_loop_free(parties[0].loop), 0);
    CHECK_INT(stats().connections, 0);
    bk_gate_unref(gate);
    CHECK_INT(faults_leaks(support_faults(), NULL), 0);
}

/* Whoever shares its sockets takes one at a time; at the end, all that are left. */
static void shared_and_drained(void) {
    enum { MANY = 9 };
    int fds[MANY], sockets[1];
    bk_listener *second;
    start(tcp, &host, (bk_limits){.max_connections = MANY});
    bk_listener_close(listener);
    bk_listen_options options = {.size = sizeof options, .gate = gate, .shared = 1};
    CHECK_INT(bk_listen_with(loop, tcp, &host, &options, NULL, &listener), 0);
    options.socket_count = bk_listener_sockets(listener, sockets, 1);
    options.sockets = sockets;
    CHECK_INT(bk_listener_pause(listener, 1), 0);
    for (int i = 0; i < MANY; i++)
        fds[i] = dial();
    CHECK_INT(bk_listener_pause(listener, 0), 0);
    for (int i = 1; i < 4; i++) {
        CHECK_INT(bk_loop_turn(loop, BK_SECOND), 0);
        CHECK_INT(seen.opened, i);
    }
    CHECK_INT(bk_listener_pause(listener, 1), 0);
    bk_loop *first = loop;
    CHECK_INT(new_loop(&loop), 0);
    CHECK_INT(bk_listen_with(loop, tcp, &host, &options, NULL, &second), 0);
    CHECK_INT(bk_loop_turn(loop, BK_SECOND), 0);
    CHECK_INT(seen.opened, 4);
    bk_listener_drain(second);
    CHECK_INT(seen.opened, MANY);
    bk_listener_drain(NULL);
    CHECK_INT(bk_loop_free(loop), 0);
    loop = first;
    hang_up(fds, MANY);
    finish();
}

/* Or he would be cut off between the last accept() and close(). */
static void lets_nobody_in_at_the_end(void) {
    bool can = BK_HAS(table(), refuse);
    for (int how = 0; how < 3; how++) { /* its own sockets; shared; where the system cannot */
        cannot_refuse = how == 2;
        start(tcp, &host, (bk_limits){.max_connections = 9});
        if (how == 1) {
            bk_listener_close(listener);
            bk_listen_options options = {.size = sizeof options, .gate = gate, .shared = 1};
            CHECK_INT(bk_listen_with(loop, tcp, &host, &options, NULL, &listener), 0);
        }
        CHECK_INT(bk_listener_pause(listener, 1), 0);
        int fds[2] = {dial(), -1};
        bk_listener_drain(listener);
        CHECK_INT(seen.opened, 1);
        fds[1] = dial_soon();
        bool alone = how == 0 && can;
        CHECK(is_connected(fds[1], alone ? 50 : 10000) == !alone);
        hang_up(fds, 2);
        finish();
    }
    cannot_refuse = false;
}

/* ---- Everything once more, with each call failing in turn ---- */

static void visits(const char *endpoint) {
    int fds[4], n = 0;
    bk_limits all = {.max_connections = 3,
                     .max_per_address = 2,
                     .max_pending_handshakes = 2,
                     .accept_rate = 1000,
                     .first_byte = 2,
                     .idle = 3,
                     .write = 2,
                     .total = 9};
    if (open_server(endpoint, &host, all) == 0) {
        for (; n < 4; n++)
            fds[n] = dial();
        if (*bk_listener_name(listener) == 't' &&
            strncmp(bk_listener_name(listener), "tls", 3) == 0)
            (void)bk_connect(loop, tls_address(), &client, NULL, NULL, NULL);
        else
            say(fds[0], "hello");
        turns(6);
        (void)bk_listener_pause(listener, 1);
        (void)bk_listener_pause(listener, 0);
        pass(2);
        close_listener();
        pass(2);
    }
    finish();
    hang_up(fds, n);
}

static void walk(const char *endpoint, long most) {
    faults *f = support_faults();
    walking = true;
    for (int kind = FAULTS_NONE + 1; kind < FAULTS_KINDS; kind++) {
        long n = 1;
        for (bool done = false; !done && n <= most && check_failures < 5; n++) {
            support_guard(60, faults_kind_name((faults_kind)kind));
            int failures = check_failures;
            faults_arm(f, (faults_kind)kind, n);
            visits(endpoint);
            done = faults_disarm(f) < n;
            if (check_failures > failures)
                printf("# … %s, %s %ld: %s\n", endpoint, faults_kind_name((faults_kind)kind), n,
                       faults_struck(f));
            faults_forget(f);
        }
        printf("# %s: %s: %ld runs\n", endpoint, faults_kind_name((faults_kind)kind), n - 1);
    }
    support_guard(0, "");
    walking = false;
}

static void faults_in_plain(void) {
    walk(tcp, 400);
}

static void faults_in_tls(void) {
    if (engine() == NULL)
        check_skip("no TLS engine is here");
    else
        walk("tls://127.0.0.1:0?cert=dev", 300);
}

int main(int argc, char **argv) {
    static const check_case cases[] = {
        CASE(max_connections),
        CASE(lingering),
        CASE(lingering_ends),
        CASE(per_ipv4),
        CASE(per_ipv6_network),
        CASE(per_mapped),
        CASE(per_address_unix),
        CASE(max_pending_handshakes),
        CASE(no_handshakes),
        CASE(accept_rate),
        CASE(two_pauses),
        CASE(paused),
        CASE(first_byte_time),
        CASE(idle_time),
        CASE(total_time),
        CASE(write_time),
        CASE(time_of_handshake),
        CASE(counted),
        CASE(shut),
        CASE(wrong_arguments),
        CASE(smtp),
        CASE(listener_closed),
        CASE(listener_closed_in_handshake),
        CASE(loop_freed),
        CASE(closed_within_callbacks),
        CASE(closed_before_opened),
        CASE(two_threads),
        CASE(shared_and_drained),
        CASE(lets_nobody_in_at_the_end),
        CASE(faults_in_plain),
        CASE(faults_in_tls),
    };
    signal(SIGPIPE, SIG_IGN);
    strcpy(folder, "/tmp/becket-limits-XXXXXX");
    if (mkdtemp(folder) == NULL)
        return 1;
    int failed = check_main(argc, argv, cases, COUNT(cases));
    return rmdir(folder) != 0 || failed;
}
