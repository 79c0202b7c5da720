/*
 * test_datagram.c: sockets of datagrams: many in one call, both ways; what fails; a socket that is
 * full; pausing and closing at any point; once more with each call to the operating system failing
 * in turn.
 */
#include "check.h"
#include "support.h"

#include "core/datagram/datagram.h"

#include <netinet/in.h>
#include <sys/un.h>
#include <unistd.h>

enum { MOST = 400 };

typedef struct end {
    bk_datagram *d; /* NULL: closed */
    struct sockaddr_in at;
    int got, wrong, failed, last_failure, blocked, writable, closed, why;
    int sizes[MOST];
    int pause_at, close_at; /* after so many */
    bool echoes;
} end;

static bk_loop *loop;
static end ends[2];

/* ---- A table that counts ---- */

static struct counting_os {
    bk_os os;
    int sends, receives, most;
    int full; /* so many calls find no room */
} counting;

static int count_send(bk_os *os, int fd, const bk_message *messages, int n) {
    (void)os;
    counting.sends++;
    if (counting.full > 0 && counting.full-- > 0)
        return -EAGAIN;
    return bk_os_default()->send_many(bk_os_default(), fd, messages, n);
}

static int count_receive(bk_os *os, int fd, bk_message *messages, int n) {
    (void)os;
    counting.receives++;
    int got = bk_os_default()->recv_many(bk_os_default(), fd, messages, n);
    counting.most = got > counting.most ? got : counting.most;
    return got;
}

static bk_os *count(void) {
    counting = (struct counting_os){.os = *bk_os_default()};
    counting.os.send_many = count_send;
    counting.os.recv_many = count_receive;
    return &counting.os;
}

/* ---- The protocol ---- */

static unsigned char byte_of(int size) {
    return (unsigned char)(size * 7 + 1);
}

static void received(bk_datagram *d, const void *data, size_t n, const struct sockaddr *from,
                     unsigned from_size) {
    end *e = bk_datagram_user(d);
    const unsigned char *bytes = data;
    for (size_t i = 0; i < n; i++)
        e->wrong += bytes[i] != byte_of((int)n);
    if (e->got < MOST)
        e->sizes[e->got] = (int)n;
    e->got++;
    if (e->echoes)
        (void)bk_datagram_send(d, data, n, BK_COPY, NULL, from, from_size);
    if (e->got == e->pause_at)
        bk_datagram_pause(d);
    if (e->got == e->close_at)
        bk_datagram_close(d);
}

static void failed(bk_datagram *d, int code) {
    end *e = bk_datagram_user(d);
    e->failed++;
    e->last_failure = code;
}

static void blocked(bk_datagram *d) {
    ((end *)bk_datagram_user(d))->blocked++;
}

static void writable(bk_datagram *d) {
    ((end *)bk_datagram_user(d))->writable++;
}

static void closed(bk_datagram *d, int why) {
    end *e = bk_datagram_user(d);
    e->closed++;
    e->why = why;
    e->d = NULL;
}

static const bk_datagram_protocol table = {.size = sizeof table,
                                           .name = "test",
                                           .received = received,
                                           .failed = failed,
                                           .blocked = blocked,
                                           .writable = writable,
                                           .closed = closed};

/* ---- Making and using them ---- */

static int udp_socket(bk_os *os, struct sockaddr_in *ret_at) {
    unsigned size = sizeof *ret_at;
    *ret_at = (struct sockaddr_in){.sin_family = AF_INET};
    ret_at->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = os->socket(os, AF_INET, SOCK_DGRAM, 0);
    if (fd < 0)
        return fd;
    int code = os->bind(os, fd, (struct sockaddr *)ret_at, size);
    if (code >= 0)
        code = os->getsockname(os, fd, (struct sockaddr *)ret_at, &size);
    if (code >= 0)
        return fd;
    bk_close_fd(os, fd);
    return code;
}

static int open_end(end *e) {
    bk_os *os = bk_loop_os(loop);
    int fd = udp_socket(os, &e->at);
    int code = fd < 0 ? fd : bk_datagram_open(loop, fd, &table, e, &e->d);
    if (code < 0 && fd >= 0)
        bk_close_fd(os, fd);
    return code;
}

static int open_loop(bk_os *os) {
    bk_loop_options options = {.size = sizeof options, .os = os};
    memset(ends, 0, sizeof ends);
    return bk_loop_new(&options, &loop);
}

static void open_both(bk_os *os) {
    CHECK_INT(open_loop(os), 0);
    for (int i = 0; i < 2; i++)
        CHECK_INT(open_end(&ends[i]), 0);
}

/* Two UNIX sockets, each the other's peer. */
static void open_pair(bk_os *os) {
    int fds[2];
    CHECK_INT(open_loop(os), 0);
    CHECK_INT(socketpair(AF_UNIX, SOCK_DGRAM, 0, fds), 0);
    for (int i = 0; i < 2; i++)
        CHECK_INT(bk_datagram_open(loop, fds[i], &table, &ends[i], &ends[i].d), 0);
}

static int send_sized(end *from, const end *to, int n) {
    static unsigned char bytes[300 * 1024];
    memset(bytes, byte_of(n), (size_t)n);
    const struct sockaddr *at = to == NULL ? NULL : (const struct sockaddr *)&to->at;
    return bk_datagram_send(from->d, bytes, (size_t)n, BK_COPY, NULL, at,
                            to == NULL ? 0 : sizeof to->at);
}

/* Of these sizes, all in one callback. */
static int batch_from, batch_to;

static void send_batch(void *arg) {
    (void)arg;
    for (int i = batch_from; i < batch_to; i++)
        CHECK_INT(send_sized(&ends[0], &ends[1], i), 0);
}

static void send_in_callback(int from, int to) {
    batch_from = from;
    batch_to = to;
    CHECK_INT(bk_loop_soon(loop, send_batch, NULL), 0);
}

static void timed_out(void *arg) {
    *(bool *)arg = true;
}

/* Turns until *what is `least`, or half a minute has passed. */
static void turn_until(const int *what, int least) {
    bool over = false;
    bk_timer timer = {0};
    CHECK_INT(bk_timer_start(loop, &timer, bk_loop_now(loop) + 30 * BK_SECOND, timed_out, &over),
              0);
    while (*what < least && !over)
        CHECK_INT(bk_loop_turn(loop, -1), 0);
    CHECK(!over);
    bk_timer_stop(loop, &timer);
}

static void turns(int n) {
    while (n-- > 0)
        CHECK_INT(bk_loop_turn(loop, 0), 0);
}

/* ---- Tests ---- */

static void moves_datagrams_whole(void) {
    const int sizes[] = {0, 1, 64, 1200, 0, 9000, 65507, 3};
    open_both(NULL);
    for (int i = 0; i < COUNT(sizes); i++)
        CHECK_INT(send_sized(&ends[0], &ends[1], sizes[i]), 0);
    turn_until(&ends[1].got, COUNT(sizes));
    for (int i = 0; i < COUNT(sizes); i++)
        CHECK_INT(ends[1].sizes[i], sizes[i]);
    CHECK_INT(ends[1].wrong, 0);
    CHECK_INT(ends[0].failed + ends[1].failed, 0);
    CHECK_INT(bk_loop_free(loop), 0);
    CHECK_INT(ends[0].why, -ECANCELED);
    CHECK_INT(ends[1].closed, 1);
}

static void many_are_one_call(void) {
    open_both(count());
    send_in_callback(0, 64);
    ends[1].echoes = true;
    turn_until(&ends[0].got, 64);
    CHECK_INT(counting.sends, 4); /* 64 go in 2, and come back in 2 */
    send_in_callback(9000, 9003); /* large ones go alone */
    turn_until(&ends[0].got, 67);
    CHECK_INT(counting.sends, 4 + 6);
    CHECK_INT(send_sized(&ends[0], &ends[1], 5), 0); /* in no callback: at once */
    CHECK_INT(counting.sends, 11);
    CHECK_INT(counting.most, BK_DATAGRAMS_PER_CALL);
    CHECK_INT(ends[0].wrong, 0);
    CHECK_INT(bk_loop_free(loop), 0);
}

/* A flood at one socket: in each turn others have theirs. */
static void a_flood_has_its_bound(void) {
    open_both(NULL);
    for (int i = 0; i < 100; i++)
        CHECK_INT(send_sized(&ends[0], &ends[1], 10), 0);
    bk_datagram_flush(ends[0].d);
    for (int before = 0; before < 100; before = ends[1].got) {
        turns(1);
        CHECK(ends[1].got - before <= BK_DATAGRAMS_PER_CALL);
        CHECK(ends[1].got > before || before == 0);
    }
    CHECK_INT(bk_loop_free(loop), 0);
}

static void what_cannot_be_sent_is_told(void) {
    struct sockaddr_in gone;
    open_both(NULL);
    CHECK_INT(send_sized(&ends[0], &ends[1], 65508), 0);
    CHECK_INT(ends[0].last_failure, -EMSGSIZE); /* at once, as it is large */
    CHECK_INT(send_sized(&ends[0], NULL, 5), 0);
    CHECK_INT(send_sized(&ends[0], &ends[1], 6), 0); /* goes all the same */
    turn_until(&ends[1].got, 1);
    CHECK_INT(ends[0].failed, 2);
    CHECK_INT(ends[0].last_failure, -EDESTADDRREQ);
    CHECK_INT(ends[1].sizes[0], 6);
    /* Of a connected socket: nobody is there. Each second one hears it of the one before. */
    int fd = udp_socket(bk_os_default(), &gone);
    close(fd);
    fd = bk_datagram_fd(ends[0].d);
    CHECK_INT(connect(fd, (struct sockaddr *)&gone, sizeof gone), 0);
    ends[0].failed = 0;
    for (int i = 0; i < 4; i++)
        CHECK_INT(send_sized(&ends[0], NULL, 1), 0);
    turns(1);
    CHECK_INT(ends[0].failed, 2);
    CHECK_INT(ends[0].last_failure, -ECONNREFUSED);
    CHECK_INT(send_sized(&ends[0], NULL, 1), 0);
    turn_until(&ends[0].failed, 3); /* without another being sent */
    CHECK_INT(ends[0].closed, 0);
    CHECK_INT(bk_loop_free(loop), 0);
}

static void send_again(bk_datagram *d, int code) {
    failed(d, code);
    CHECK_INT(send_sized(bk_datagram_user(d), NULL, 5000), 0);
    CHECK_INT(send_sized(bk_datagram_user(d), NULL, 5), 0);
}

/* Whoever sends anew what failed, for ever, keeps nobody waiting. */
static void failing_for_ever_is_no_hindrance(void) {
    bk_datagram_protocol stubborn = table;
    stubborn.failed = send_again;
    CHECK_INT(open_loop(NULL), 0);
    int fd = udp_socket(bk_os_default(), &ends[0].at);
    CHECK_INT(bk_datagram_open(loop, fd, &stubborn, &ends[0], &ends[0].d), 0);
    CHECK_INT(send_sized(&ends[0], NULL, 5), 0);
    turns(3);
    CHECK(ends[0].failed > 0 && ends[0].failed < 100);
    bk_datagram_abort(ends[0].d);
    turn_until(&ends[0].closed, 1);
    CHECK_INT(bk_loop_free(loop), 0);
}

static int fill(end *from) {
    int n = 0;
    while (from->blocked == 0 && n++ < 10000)
        CHECK_INT(send_sized(from, NULL, 1000), 0);
    return n;
}

static void a_full_socket_is_waited_for(void) {
    open_pair(NULL);
    CHECK_INT(bk_datagram_set_water(ends[0].d, 2000, 8000), 0);
    bk_datagram_pause(ends[1].d);
    int sent = fill(&ends[0]);
    CHECK_INT(ends[0].blocked, 1);
    CHECK(bk_datagram_queued(ends[0].d) > 8000);
    CHECK_INT(bk_datagram_queued(ends[0].d) % 1008, 0); /* with a header each */
    turns(2);
    CHECK_INT(ends[0].writable, 0);
    bk_datagram_resume(ends[1].d);
    turn_until(&ends[1].got, sent);
    CHECK_INT(ends[0].writable, 1);
    CHECK_INT(bk_datagram_queued(ends[0].d), 0);
    CHECK_INT(ends[1].wrong, 0);
    CHECK_INT(bk_loop_free(loop), 0);
}

static void close_sends_what_is_queued(void) {
    open_pair(NULL);
    CHECK_INT(bk_datagram_set_water(ends[0].d, 0, 4000), 0);
    bk_datagram_pause(ends[1].d);
    int sent = fill(&ends[0]);
    bk_datagram_close(ends[0].d);
    CHECK_INT(send_sized(&ends[0], NULL, 1), -EPIPE);
    turns(2);
    CHECK_INT(ends[0].closed, 0);
    bk_datagram_resume(ends[1].d);
    turn_until(&ends[1].got, sent);
    turn_until(&ends[0].closed, 1);
    CHECK_INT(ends[0].why, 0);
    CHECK_INT(bk_loop_free(loop), 0);
}

static void abort_drops_what_is_queued(void) {
    open_pair(NULL);
    CHECK_INT(bk_datagram_set_water(ends[0].d, 0, 4000), 0);
    bk_datagram_pause(ends[1].d);
    int sent = fill(&ends[0]);
    bk_datagram_abort(ends[0].d);
    bk_datagram_abort(ends[0].d);
    CHECK_INT(ends[0].closed, 0); /* not from within the call */
    turns(1);
    CHECK_INT(ends[0].closed, 1);
    CHECK_INT(ends[0].why, -ECANCELED);
    bk_datagram_resume(ends[1].d);
    turns(100);
    CHECK(ends[1].got < sent);
    CHECK_INT(bk_loop_free(loop), 0);
}

static void pausing_in_a_batch_holds_the_rest(void) {
    open_both(NULL);
    for (int i = 0; i < 10; i++)
        CHECK_INT(send_sized(&ends[0], &ends[1], i), 0);
    ends[1].pause_at = 3;
    turn_until(&ends[1].got, 3);
    turns(3);
    CHECK_INT(ends[1].got, 3);
    CHECK_INT(send_sized(&ends[0], &ends[1], 10), 0);
    ends[1].pause_at = 5;
    bk_datagram_resume(ends[1].d);
    turn_until(&ends[1].got, 5);
    turns(3);
    CHECK_INT(ends[1].got, 5);
    bk_datagram_resume(ends[1].d);
    turn_until(&ends[1].got, 11);
    for (int i = 0; i < 11; i++)
        CHECK_INT(ends[1].sizes[i], i);
    CHECK_INT(bk_loop_free(loop), 0);
}

static void closing_in_a_batch_ends_it(void) {
    open_both(NULL);
    for (int i = 0; i < 10; i++)
        CHECK_INT(send_sized(&ends[0], &ends[1], i), 0);
    ends[1].close_at = 3;
    ends[1].echoes = true;
    turn_until(&ends[1].closed, 1);
    CHECK_INT(ends[1].got, 3);
    CHECK_INT(ends[1].why, 0);
    turn_until(&ends[0].got, 3); /* what it sent before has been sent */
    CHECK_INT(bk_loop_free(loop), 0);
}

static void end_of_turn(bk_datagram *d, const void *data, size_t n, const struct sockaddr *from,
                        unsigned from_size) {
    received(d, data, n, from, from_size);
    bk_loop_break(loop);
}

/* An exception on its way ends the turn: what was received by then is told in the next ones. */
static void a_turn_that_breaks_loses_nothing(void) {
    bk_datagram_protocol breaking = table;
    breaking.received = end_of_turn;
    open_both(NULL);
    bk_datagram_abort(ends[1].d);
    turn_until(&ends[1].closed, 1);
    int fd = udp_socket(bk_os_default(), &ends[1].at);
    CHECK_INT(bk_datagram_open(loop, fd, &breaking, &ends[1], &ends[1].d), 0);
    for (int i = 0; i < 5; i++)
        CHECK_INT(send_sized(&ends[0], &ends[1], i), 0);
    for (int i = 1; i <= 5; i++) {
        turn_until(&ends[1].got, i);
        CHECK_INT(ends[1].got, i);
    }
    for (int i = 0; i < 5; i++)
        CHECK_INT(ends[1].sizes[i], i);
    CHECK_INT(bk_loop_free(loop), 0);
}

/* asyncio's limit: no more than 256 KiB of a datagram are taken. */
static void what_is_too_long_is_cut(void) {
    int room = 212992;
    open_pair(NULL);
    CHECK_INT(setsockopt(bk_datagram_fd(ends[0].d), SOL_SOCKET, SO_SNDBUF, &room, sizeof room), 0);
    CHECK_INT(send_sized(&ends[0], NULL, BK_DATAGRAM_BYTES + 1000), 0);
    turn_until(&ends[1].got, 1);
    CHECK_INT(ends[1].sizes[0], BK_DATAGRAM_BYTES);
    CHECK_INT(bk_loop_free(loop), 0);
}

/* A UNIX socket that is not connected is always writable, as far as it knows. */
static void a_slow_receiver_is_not_asked_all_the_time(void) {
    char path[] = "/tmp/bk-datagram-XXXXXX";
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    CHECK(mkdtemp(path) != NULL);
    snprintf(at.sun_path, sizeof at.sun_path, "%s/s", path);
    CHECK_INT(open_loop(count()), 0);
    int receiver = socket(AF_UNIX, SOCK_DGRAM, 0), fd = socket(AF_UNIX, SOCK_DGRAM, 0);
    CHECK_INT(bind(receiver, (struct sockaddr *)&at, sizeof at), 0);
    CHECK_INT(bk_datagram_open(loop, fd, &table, &ends[0], &ends[0].d), 0);
    for (int i = 0; i < 200; i++)
        CHECK_INT(
            bk_datagram_send(ends[0].d, "x", 1, BK_STATIC, NULL, (struct sockaddr *)&at, sizeof at),
            0);
    bool over = false;
    bk_timer timer = {0};
    counting.sends = 0;
    CHECK_INT(
        bk_timer_start(loop, &timer, bk_loop_now(loop) + 100 * BK_MILLISECOND, timed_out, &over),
        0);
    while (!over)
        CHECK_INT(bk_loop_turn(loop, -1), 0);
    CHECK(counting.sends < 120); /* and not thousands */
    CHECK(bk_datagram_queued(ends[0].d) > 0);
    char byte;
    for (int i = 0; i < 200; i++) {
        while (recv(receiver, &byte, 1, MSG_DONTWAIT) < 0)
            CHECK_INT(bk_loop_turn(loop, -1), 0);
    }
    CHECK_INT(bk_datagram_queued(ends[0].d), 0);
    CHECK_INT(bk_loop_free(loop), 0);
    close(receiver);
    unlink(at.sun_path);
    rmdir(path);
}

/* A UNIX socket without a name has no address. */
static void unnamed(bk_datagram *d, const void *data, size_t n, const struct sockaddr *from,
                    unsigned from_size) {
    (void)data, (void)n;
    CHECK(from == NULL);
    CHECK_INT(from_size, 0);
    ((end *)bk_datagram_user(d))->got++;
}

static void a_sender_may_have_no_address(void) {
    bk_datagram_protocol p = {.size = sizeof p, .received = unnamed};
    int fds[2];
    CHECK_INT(open_loop(NULL), 0);
    CHECK_INT(socketpair(AF_UNIX, SOCK_DGRAM, 0, fds), 0);
    for (int i = 0; i < 2; i++)
        CHECK_INT(bk_datagram_open(loop, fds[i], &p, &ends[i], &ends[i].d), 0);
    CHECK_INT(send_sized(&ends[0], NULL, 3), 0);
    turn_until(&ends[1].got, 1);
    CHECK_INT(bk_loop_free(loop), 0);
}

static void count_release(void *arg) {
    ++*(int *)arg;
}

static int send_counted(int *released, unsigned to_size) {
    struct sockaddr *at = to_size > 0 ? (struct sockaddr *)&ends[1].at : NULL;
    return bk_datagram_send(ends[0].d, "abc", 3, count_release, released, at, to_size);
}

static void bytes_by_reference_are_released_once(void) {
    int released = 0;
    open_pair(NULL);
    CHECK_INT(send_counted(&released, 0), 0);
    CHECK_INT(released, 1);
    CHECK_INT(send_counted(&released, 4096), -EINVAL);
    CHECK_INT(released, 2);
    CHECK_INT(bk_datagram_set_water(ends[0].d, 0, 4000), 0);
    bk_datagram_pause(ends[1].d);
    (void)fill(&ends[0]);
    CHECK_INT(send_counted(&released, 0), 0);
    bk_datagram_flush(ends[0].d);
    CHECK_INT(released, 2); /* it waits */
    bk_datagram_abort(ends[0].d);
    CHECK_INT(released, 3);
    CHECK_INT(send_counted(&released, 0), -EPIPE);
    CHECK_INT(released, 4);
    CHECK_INT(bk_loop_free(loop), 0);
    CHECK_INT(released, 4);
}

static void arguments_are_checked(void) {
    bk_datagram *d;
    bk_os old = *bk_os_default();
    open_both(NULL);
    CHECK_INT(bk_datagram_open(NULL, 0, &table, NULL, &d), -EINVAL);
    CHECK_INT(bk_datagram_open(loop, 0, NULL, NULL, &d), -EINVAL);
    CHECK_INT(bk_datagram_open(loop, -1, &table, NULL, &d), -EBADF);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK_INT(bk_datagram_open(loop, fd, &table, NULL, &d), -EPROTOTYPE);
    close(fd);
    CHECK_INT(bk_datagram_send(NULL, "", 0, BK_COPY, NULL, NULL, 0), -EINVAL);
    CHECK_INT(bk_datagram_send(ends[0].d, NULL, 1, BK_COPY, NULL, NULL, 0), -EINVAL);
    CHECK_INT(bk_datagram_set_water(ends[0].d, 2, 1), -EINVAL);
    CHECK_INT(bk_datagram_fd(NULL), -EINVAL);
    CHECK(bk_datagram_loop(ends[0].d) == loop);
    CHECK(bk_datagram_protocol_of(ends[0].d) == &table);
    CHECK_INT(bk_loop_free(loop), 0);
    old.size = offsetof(bk_os, recv_many); /* of an older header */
    CHECK_INT(open_loop(&old), 0);
    fd = socket(AF_INET, SOCK_DGRAM, 0);
    CHECK_INT(bk_datagram_open(loop, fd, &table, NULL, &d), -ENOTSUP);
    close(fd);
    CHECK_INT(bk_loop_free(loop), 0);
}

/* ---- Every call fails in turn ---- */

/* What is sent until its echo is back: with UDP anything may be lost, so it is sent again. */
static int talk(bk_os *os, bool invisible) {
    int code = open_loop(os);
    if (code < 0)
        return code;
    for (int i = 0; i < 2 && code >= 0; i++)
        code = open_end(&ends[i]);
    ends[1].echoes = true;
    ends[0].pause_at = 2;
    for (int round = 0; code >= 0 && ends[0].got < 6 && round < 50; round++) {
        for (int i = 0; i < 6 && ends[0].d != NULL && ends[1].d != NULL; i++)
            code = send_sized(&ends[0], &ends[1], i * 1000);
        for (int i = 0; i < 6; i++)
            (void)bk_loop_turn(loop, BK_MILLISECOND);
        bk_datagram_resume(ends[0].d);
    }
    if (invisible && code >= 0) {
        CHECK_INT(ends[0].failed + ends[1].failed, 0);
        CHECK(ends[0].got >= 6);
    }
    CHECK_INT(ends[0].wrong + ends[1].wrong, 0);
    bk_datagram_close(ends[0].d);
    (void)bk_loop_turn(loop, 0);
    (void)bk_loop_turn(loop, 0);
    CHECK_INT(bk_loop_free(loop), 0);
    CHECK(ends[0].d == NULL && ends[1].d == NULL);
    return code;
}

static void any_call_may_fail(void) {
    const faults_kind kinds[] = {FAULTS_ERROR, FAULTS_SHORT, FAULTS_INTERRUPTED, FAULTS_NO_MEMORY,
                                 FAULTS_AGAIN};
    faults *f = support_faults();
    for (int i = 0; i < COUNT(kinds); i++) {
        bool invisible = kinds[i] != FAULTS_ERROR && kinds[i] != FAULTS_NO_MEMORY;
        for (long n = 1;; n++) {
            support_guard(60, faults_kind_name(kinds[i]));
            faults_arm(f, kinds[i], n);
            int code = talk(faults_os(f), invisible);
            faults_report report;
            if (faults_disarm(f) < n)
                break;
            CHECK(code == 0 || !invisible);
            CHECK_INT(faults_leaks(f, &report), 0);
            if (check_failures > 0) {
                printf("# %s %ld: %s\n", faults_kind_name(kinds[i]), n, faults_struck(f));
                return;
            }
        }
    }
    support_guard(0, "");
}

int main(int argc, char **argv) {
    static const check_case cases[] = {
        CASE(moves_datagrams_whole),
        CASE(many_are_one_call),
        CASE(a_flood_has_its_bound),
        CASE(what_cannot_be_sent_is_told),
        CASE(failing_for_ever_is_no_hindrance),
        CASE(a_full_socket_is_waited_for),
        CASE(close_sends_what_is_queued),
        CASE(abort_drops_what_is_queued),
        CASE(pausing_in_a_batch_holds_the_rest),
        CASE(closing_in_a_batch_ends_it),
        CASE(a_turn_that_breaks_loses_nothing),
        CASE(what_is_too_long_is_cut),
        CASE(a_slow_receiver_is_not_asked_all_the_time),
        CASE(a_sender_may_have_no_address),
        CASE(bytes_by_reference_are_released_once),
        CASE(arguments_are_checked),
        CASE(any_call_may_fail),
    };
    return check_main(argc, argv, cases, COUNT(cases));
}
