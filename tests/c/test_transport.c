/*
 * test_transport.c: every kind of transport through tests/conformance, with a look at what it
 * leaves behind; and what is true of one kind alone.
 */
#include "tests/c/check.h"
#include "tests/c/support.h"

#include "core/stream/stream.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static void conforms(const char *kind) {
    CHECK_INT(support_conforms(support_transport, support_joint(kind), NULL), 0);
}

static void tcp(void) {
    conforms("tcp");
}

static void tight_tcp(void) {
    conforms("tight tcp");
}

static void local(void) {
    conforms("unix");
}

static void tight_local(void) {
    conforms("tight unix");
}

static void passing(void) {
    conforms("passing");
}

static void pipes(void) {
    conforms("pipes");
}

static void adopted(void) {
    conforms("adopted");
}

static void memory(void) {
    conforms("memory");
}

static void tight_memory(void) {
    conforms("tight memory");
}

static void one_way(void) {
    conforms("one way");
}

/* A stream must not be able to tell notifiers apart either. */
static void over_each_notifier(void) {
    for (const bk_notifier_ops *const *all = bk_notifiers() + 1; *all != NULL; all++) {
        CHECK_INT(support_conforms(support_transport, support_joint("tight tcp"), (*all)->name), 0);
        CHECK_INT(support_conforms(support_transport, support_joint("pipes"), (*all)->name), 0);
    }
}

/* ---- What the streams of one loop have in common ---- */

static struct {
    int closed, why;
} seen;

static void note_closed(bk_stream *s, int why) {
    (void)s;
    seen.closed++;
    seen.why = why;
}

static int keep(bk_stream *s) {
    (void)s;
    return 1;
}

static const bk_protocol quiet_protocol = {
    .size = sizeof(bk_protocol), .name = "quiet", .ended = keep, .closed = note_closed};

static bk_loop *new_loop(void) {
    bk_loop_options options = {.size = sizeof options, .os = faults_os(support_faults())};
    bk_loop *loop = NULL;
    CHECK_INT(bk_loop_new(&options, &loop), 0);
    memset(&seen, 0, sizeof seen);
    return loop;
}

static void free_loop(bk_loop *loop) {
    CHECK_INT(bk_loop_free(loop), 0);
    CHECK_INT(faults_leaks(support_faults(), NULL), 0);
    faults_forget(support_faults());
}

static void pass_seconds(bk_loop *loop, double seconds) {
    faults_pass_time(support_faults(), (int64_t)(seconds * 1e9));
    for (int i = 0; i < 3; i++)
        CHECK_INT(bk_loop_turn(loop, 0), 0);
}

/* On a clock of our own: not before its time, at most a second late, and progress counts. */
static void silence_times_out(void) {
    bk_loop *loop = new_loop();
    bk_transport *pair[2];
    bk_stream *s = NULL, *other = NULL;
    CHECK_INT(bk_memory_transport(loop, 0, pair), 0);
    CHECK_INT(bk_stream_new(loop, pair[0], &quiet_protocol, NULL, &s), 0);
    CHECK_INT(bk_stream_new(loop, pair[1], &quiet_protocol, NULL, &other), 0);
    bk_stream_set_timeout(s, 5);
    for (int i = 0; i < 5; i++) {
        pass_seconds(loop, 3.5);
        CHECK_INT(seen.closed, 0);
        CHECK_INT(bk_stream_write(i % 2 ? s : other, "x", 1, BK_COPY, NULL), 0); /* either way */
        pass_seconds(loop, 0);
    }
    pass_seconds(loop, 4.5);
    CHECK_INT(seen.closed, 0);
    pass_seconds(loop, 2.1);
    CHECK_INT(seen.closed, 1); /* the other one stays: its peer has ended, no more */
    CHECK_INT(seen.why, -ETIMEDOUT);
    free_loop(loop);
}

static void no_time_out_when_off(void) {
    bk_loop *loop = new_loop();
    bk_transport *pair[2];
    bk_stream *s = NULL;
    CHECK_INT(bk_memory_transport(loop, 0, pair), 0);
    CHECK_INT(bk_stream_new(loop, pair[0], &quiet_protocol, NULL, &s), 0);
    bk_stream_set_timeout(s, 2);
    bk_stream_set_timeout(s, 0);
    pass_seconds(loop, 100);
    CHECK_INT(seen.closed, 0);
    CHECK_INT(bk_loop_deadline(loop), -1); /* and no timer goes on for nobody */
    bk_stream_set_timeout(s, 2);
    pass_seconds(loop, 4);
    CHECK_INT(seen.closed, 1);
    CHECK_INT(seen.why, -ETIMEDOUT);
    pair[1]->ops->close(pair[1]);
    free_loop(loop);
}

/* ---- Descriptors that are somebody else's ---- */

static bool is_nonblocking(int fd) {
    return fcntl(fd, F_GETFL) & O_NONBLOCK;
}

/* Standard input and output: left open, and in the mode in which they were found. */
static void borrowed_descriptors(void) {
    bk_loop *loop = new_loop();
    bk_transport *t = NULL;
    int in[2], out[2];
    CHECK(pipe(in) == 0 && pipe(out) == 0);
    fcntl(out[1], F_SETFL, O_NONBLOCK); /* one this way, one that way */
    CHECK_INT(bk_fd_transport(loop, in[0], out[1], 0, &t), 0);
    CHECK(is_nonblocking(in[0]) && is_nonblocking(out[1]));
    t->ops->close(t);
    CHECK(!is_nonblocking(in[0]) && is_nonblocking(out[1]));
    CHECK(fcntl(in[0], F_GETFD) >= 0 && fcntl(out[1], F_GETFD) >= 0);
    bk_stream *s = NULL;
    CHECK_INT(bk_fd_transport(loop, in[0], out[1], 0, &t), 0);
    CHECK_INT(bk_stream_new(loop, t, &quiet_protocol, NULL, &s), 0);
    CHECK_INT(bk_loop_turn(loop, 0), 0);
    free_loop(loop);
    CHECK_INT(seen.closed, 1);
    CHECK(!is_nonblocking(in[0]) && is_nonblocking(out[1]));
    for (int i = 0; i < 2; i++) {
        close(in[i]);
        close(out[i]);
    }
}

/* ---- A socket that an owner reads and writes by itself ---- */

static size_t fed;

static void note_fed(bk_stream *s, const void *data, size_t n) {
    (void)s, (void)data;
    fed += n;
}

static const bk_protocol fed_protocol = {.size = sizeof(bk_protocol),
                                         .name = "fed",
                                         .received = note_fed,
                                         .ended = keep,
                                         .closed = note_closed};

/* It may block; the transport over it does not. */
static void blocks_for_others(void) {
    static char much[1 << 20];
    bk_loop *loop = new_loop();
    bk_os *os = faults_quiet(support_faults());
    bk_transport *t = NULL;
    struct iovec v[2] = {{much, sizeof much}, {much, sizeof much}};
    ssize_t n = 1;
    int p[2];
    CHECK_INT(os->socketpair(os, p), 0);
    CHECK_INT(bk_socket_transport(loop, p[0], &t), 0);
    CHECK_INT(os->set_nonblocking(os, p[0], 0), 1);
    CHECK_INT(t->ops->read(t, much, sizeof much), -EAGAIN);
    for (int i = 1; n > 0; i = 3 - i)
        n = t->ops->write(t, v, i);
    CHECK_INT(n, -EAGAIN);
    t->ops->close(t);
    os->close(os, p[1]);
    free_loop(loop);
}

/* What it tells the stream is what the stream would have found. */
static void read_and_sent_elsewhere(void) {
    static const int ends[] = {0, -ECONNRESET};
    for (int i = 0; i < 2; i++) {
        bk_loop *loop = new_loop();
        bk_transport *pair[2];
        bk_stream *s = NULL;
        fed = 0;
        CHECK_INT(bk_memory_transport(loop, 0, pair), 0);
        CHECK_INT(bk_stream_new_paused(loop, pair[0], &fed_protocol, NULL, &s), 0);
        bk_stream_feed(s, "four", 4);
        bk_stream_feed(s, NULL, -EAGAIN);
        bk_stream_sent(s, -EAGAIN);
        bk_stream_sent(s, 4);
        CHECK_INT(fed, 4);
        bk_stream_feed(s, NULL, ends[i]);
        bk_stream_feed(s, "late", 4);
        CHECK_INT(fed, 4);
        bk_stream_sent(s, -EPIPE); /* the first reason counts */
        CHECK_INT(bk_loop_turn(loop, 0), 0);
        CHECK_INT(seen.closed, 1);
        CHECK_INT(seen.why, ends[i] < 0 ? ends[i] : -EPIPE);
        pair[1]->ops->close(pair[1]);
        free_loop(loop);
    }
}

static size_t file_got;

static void count_file(bk_stream *s, const void *data, size_t n) {
    (void)s, (void)data;
    file_got += n;
}

/* A regular file is never "not ready", and no notifier may be asked. */
static void regular_file(void) {
    static const bk_protocol reader = {.size = sizeof(bk_protocol),
                                       .name = "reader",
                                       .received = count_file,
                                       .closed = note_closed};
    for (const bk_notifier_ops *const *all = bk_notifiers(); *all != NULL; all++) {
        bk_loop_options options = {.size = sizeof options, .notifier_ops = *all};
        bk_loop *loop = NULL;
        bk_transport *t = NULL;
        bk_stream *s = NULL;
        FILE *from = tmpfile(), *to = tmpfile();
        char text[5000] = {1};
        fwrite(text, 1, sizeof text, from);
        rewind(from);
        file_got = 0;
        memset(&seen, 0, sizeof seen);
        CHECK_INT(bk_loop_new(&options, &loop), 0);
        CHECK_INT(bk_fd_transport(loop, fileno(from), fileno(to), 0, &t), 0);
        CHECK_INT(bk_stream_new(loop, t, &reader, NULL, &s), 0);
        CHECK_INT(bk_stream_write(s, text, 3000, BK_COPY, NULL), 0);
        for (int i = 0; i < 100 && seen.closed == 0; i++)
            CHECK_INT(bk_loop_turn(loop, INT64_C(1000000000)), 0);
        CHECK_INT(seen.closed, 1);
        CHECK_INT(seen.why, 0);
        CHECK_INT(file_got, sizeof text);
        CHECK_INT(lseek(fileno(to), 0, SEEK_END), 3000);
        CHECK_INT(bk_loop_free(loop), 0);
        fclose(from);
        fclose(to);
    }
}

/* One descriptor for both directions that is no socket, as a terminal is: it says so at once, and
   the stream goes on. */
static void cannot_half_close(void) {
    char path[] = "/tmp/becket-fifo-XXXXXX";
    bk_loop *loop = new_loop();
    bk_transport *t = NULL;
    bk_stream *s = NULL;
    CHECK(mkdtemp(path) != NULL);
    char fifo[64];
    snprintf(fifo, sizeof fifo, "%s/fifo", path);
    CHECK_INT(mkfifo(fifo, 0600), 0);
    int fd = open(fifo, O_RDWR | O_NONBLOCK);
    unlink(fifo);
    rmdir(path);
    CHECK_INT(bk_fd_transport(loop, fd, fd, 0, &t), 0);
    CHECK_INT(bk_stream_new(loop, t, &quiet_protocol, NULL, &s), 0);
    CHECK_INT(bk_stream_end(s), -ENOTSUP);
    for (int i = 0; i < 3; i++)
        CHECK_INT(bk_loop_turn(loop, 0), 0);
    CHECK_INT(seen.closed, 0);
    free_loop(loop);
    close(fd);
}

/* One that is -1 is not there: reading ends at once, writing is -EPIPE. */
static void missing_directions(void) {
    bk_loop *loop = new_loop();
    bk_transport *t = NULL, *two[2];
    char room[4];
    int p[2];
    struct iovec v = {"x", 1};
    CHECK(pipe(p) == 0);
    CHECK_INT(bk_fd_transport(loop, -1, p[1], 0, &t), 0);
    CHECK_INT(t->ops->read(t, room, 4), 0);
    CHECK_INT(t->ops->write(t, &v, 1), 1);
    t->ops->close(t);
    CHECK_INT(bk_fd_transport(loop, p[0], -1, 0, &t), 0);
    CHECK_INT(t->ops->read(t, room, 4), 1);
    CHECK_INT(t->ops->write(t, &v, 1), -EPIPE);
    t->ops->close(t);
    CHECK_INT(bk_fd_transport(NULL, p[0], p[1], 0, &t), -EINVAL);
    CHECK_INT(bk_fd_transport(loop, p[0], p[1], 0, NULL), -EINVAL);
    close(p[0]);
    close(p[1]);
    CHECK_INT(bk_fd_transport(loop, p[0], p[1], 0, &t), -EBADF);
    CHECK_INT(bk_socket_transport(loop, p[0], &t), -EBADF);
    CHECK_INT(bk_socket_transport(NULL, p[0], &t), -EINVAL);
    CHECK_INT(bk_socket_transport(loop, p[0], NULL), -EINVAL);
    CHECK_INT(bk_memory_transport(NULL, 0, two), -EINVAL);
    CHECK_INT(bk_memory_transport(loop, 0, NULL), -EINVAL);
    CHECK_INT(bk_loop_free(loop), 0);
    faults_forget(support_faults());
}

/* ---- Descriptors that come with the bytes ---- */

static int came[BK_PASSED_FDS], came_count;
static size_t read_when_they_came;

static void note_fds(bk_transport *t, const int *fds, int n) {
    (void)t;
    memcpy(came + came_count, fds, (size_t)n * sizeof *fds);
    came_count += n;
    read_when_they_came = fed;
}

static void send_fd(int to, int fd, const char *text) {
    union {
        struct cmsghdr head;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct iovec v = {(void *)(uintptr_t)text, strlen(text)};
    struct msghdr header = {
        .msg_iov = &v, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    struct cmsghdr *c = CMSG_FIRSTHDR(&header);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(c), &fd, sizeof fd);
    CHECK_INT(sendmsg(to, &header, 0), (long)strlen(text));
}

/* They are told of before the bytes, are the owner's, and not for programs that it starts. */
static void descriptors_that_come(void) {
    bk_loop *loop = new_loop();
    bk_transport *t = NULL;
    bk_stream *s = NULL;
    int p[2], q[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, p) == 0 && pipe(q) == 0);
    fed = 0;
    CHECK_INT(bk_passing_transport(loop, p[0], note_fds, &t), 0);
    CHECK(bk_is_passing_transport(t));
    CHECK_INT(bk_stream_new(loop, t, &fed_protocol, NULL, &s), 0);
    send_fd(p[1], q[0], "one");
    while (fed == 0)
        CHECK_INT(bk_loop_turn(loop, -1), 0);
    CHECK_INT(came_count, 1);
    CHECK_INT((long)read_when_they_came, 0);
    CHECK_INT((long)fed, 3);
    CHECK(fcntl(came[0], F_GETFD) & FD_CLOEXEC);
    char got[5];
    CHECK_INT(write(q[1], "piped", 5), 5);
    CHECK_INT(read(came[0], got, sizeof got), 5);
    close(came[0]);
    bk_passing_transport_disown(t);
    bk_watch_forget(loop, p[0]);
    free_loop(loop);
    for (int i = 0; i < 2; i++) {
        CHECK(close(p[i]) == 0);
        close(q[i]);
    }
}

static void descriptors_where_none_can_come(void) {
    bk_os old = *bk_os_default();
    bk_transport *t = NULL;
    bk_loop *loop;
    old.size = offsetof(bk_os, recv_fds); /* of an older header */
    bk_loop_options options = {.size = sizeof options, .os = &old};
    CHECK_INT(bk_loop_new(&options, &loop), 0);
    CHECK_INT(bk_passing_transport(loop, 0, note_fds, &t), -ENOTSUP);
    CHECK_INT(bk_loop_free(loop), 0);
}

/* ---- What is sent when all callbacks of a turn have returned ---- */

static bk_stream *near_end;
static bk_transport *far_end;
static size_t arrived_by_then;

/* How much is there; it is taken. */
static size_t arrived(void) {
    char room[64];
    ssize_t n = far_end->ops->read(far_end, room, sizeof room);
    return n > 0 ? (size_t)n : 0;
}

static void write_one(void *arg) {
    (void)arg;
    CHECK_INT(bk_stream_write(near_end, "x", 1, BK_COPY, NULL), 0);
}

static void look(void *arg) {
    (void)arg;
    arrived_by_then = arrived();
}

static void break_off(void *arg) {
    bk_loop_break(arg);
}

static void close_near(void *arg) {
    (void)arg;
    bk_stream_close(near_end);
}

static void turn_with(bk_loop *loop, bk_fn first, bk_fn second, bk_fn third) {
    bk_fn fns[] = {first, second, third};
    for (int i = 0; i < COUNT(fns) && fns[i] != NULL; i++)
        CHECK_INT(bk_loop_soon(loop, fns[i], loop), 0);
    CHECK_INT(bk_loop_turn(loop, 0), 0);
}

static void gathers_what_is_written(void) {
    for (int gathers = 0; gathers < 2; gathers++) {
        bk_loop *loop = new_loop();
        bk_transport *pair[2];
        CHECK_INT(bk_memory_transport(loop, 100, pair), 0);
        CHECK_INT(bk_stream_new(loop, pair[0], &quiet_protocol, NULL, &near_end), 0);
        far_end = pair[1];
        if (gathers)
            bk_stream_gather(near_end);
        turn_with(loop, write_one, look, write_one);
        CHECK_INT(arrived_by_then, gathers ? 0 : 1);
        CHECK_INT(arrived(), gathers ? 2 : 1);
        turn_with(loop, write_one, break_off, NULL);
        CHECK_INT(arrived(), gathers ? 0 : 1);
        CHECK_INT(bk_loop_deadline(loop) == 0, gathers);
        turn_with(loop, NULL, NULL, NULL);
        CHECK_INT(arrived(), gathers ? 1 : 0);
        write_one(NULL); /* between turns */
        turn_with(loop, look, NULL, NULL);
        CHECK_INT(arrived_by_then, 1);
        if (gathers) {
            turn_with(loop, write_one, close_near, NULL);
            turn_with(loop, NULL, NULL, NULL);
            CHECK_INT(arrived(), 1);
        } else {
            turn_with(loop, write_one, break_off,
                      NULL); /* and the loop goes with what was written */
        }
        far_end->ops->close(far_end);
        free_loop(loop);
    }
}

static void write_back(bk_stream *s, const void *data, size_t n) {
    CHECK_INT(bk_stream_write(s, data, n, BK_COPY, NULL), 0);
}

/* What was received is written where others have received since. */
static void gathers_what_was_received(void) {
    static const bk_protocol echo = {.size = sizeof echo, .received = write_back};
    bk_loop *loop = new_loop();
    bk_transport *pairs[2][2];
    bk_stream *s;
    for (int i = 0; i < 2; i++) {
        CHECK_INT(bk_memory_transport(loop, 100, pairs[i]), 0);
        CHECK_INT(bk_stream_new(loop, pairs[i][0], &echo, NULL, &s), 0);
        bk_stream_gather(s);
    }
    CHECK_INT(bk_loop_turn(loop, 0), 0);
    for (int i = 0; i < 2; i++)
        CHECK_INT(pairs[i][1]->ops->write(pairs[i][1], &(struct iovec){i ? "b" : "a", 1}, 1), 1);
    CHECK_INT(bk_loop_turn(loop, 0), 0);
    CHECK_INT(bk_loop_turn(loop, 0), 0);
    for (int i = 0; i < 2; i++) {
        char c = 0;
        CHECK_INT(pairs[i][1]->ops->read(pairs[i][1], &c, 1), 1);
        CHECK_INT(c, i ? 'b' : 'a');
        pairs[i][1]->ops->close(pairs[i][1]);
    }
    free_loop(loop);
}

int main(int argc, char **argv) {
    static const check_case cases[] = {
        CASE(tcp),
        CASE(tight_tcp),
        CASE(local),
        CASE(tight_local),
        CASE(passing),
        CASE(pipes),
        CASE(adopted),
        CASE(memory),
        CASE(tight_memory),
        CASE(one_way),
        CASE(over_each_notifier),
        CASE(silence_times_out),
        CASE(no_time_out_when_off),
        CASE(borrowed_descriptors),
        CASE(blocks_for_others),
        CASE(read_and_sent_elsewhere),
        CASE(regular_file),
        CASE(cannot_half_close),
        CASE(missing_directions),
        CASE(descriptors_that_come),
        CASE(descriptors_where_none_can_come),
        CASE(gathers_what_is_written),
        CASE(gathers_what_was_received),
    };
    return check_main(argc, argv, cases, COUNT(cases));
}
