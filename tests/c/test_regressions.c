/*
 * test_regressions.c: what was wrong once in the core, a test for each. Most are about calls made
 * where nobody expects them: from a release function, outside a turn, after an exception has broken
 * a turn off, in the child of a fork.
 */
#include <becket-smtp.h>

#include "core/loop/loop.h"
#include "tests/c/check.h"
#include "tests/c/support.h"
#include "tests/conformance/case.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdalign.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static bk_loop *new_loop_with(bk_os *os, const char *notifier) {
    bk_loop_options options = {.size = sizeof options, .notifier = notifier, .os = os};
    bk_loop *loop = NULL;
    CHECK_INT(bk_loop_new(&options, &loop), 0);
    return loop;
}

static bk_loop *new_loop(void) {
    return new_loop_with(faults_os(support_faults()), NULL);
}

/* Nothing may be left, nor may a descriptor have been used after it was closed. */
static void free_loop(bk_loop *loop) {
    CHECK_INT(bk_loop_free(loop), 0);
    CHECK_INT(faults_leaks(support_faults(), NULL), 0);
    faults_forget(support_faults());
}

static void turns(bk_loop *loop, int count) {
    for (int i = 0; i < count; i++)
        CHECK_INT(bk_loop_turn(loop, 0), 0);
}

static void break_off(void *loop) {
    bk_loop_break(loop);
}

static struct {
    int closed, why;
} seen;

static void note_closed(bk_stream *s, int why) {
    (void)s;
    seen.closed++;
    seen.why = why;
}

static const bk_protocol quiet = {.size = sizeof quiet, .name = "quiet", .closed = note_closed};

/* A stream over one end of memory; the other end is the caller's. */
static bk_stream *new_stream(bk_loop *loop, size_t capacity, const bk_protocol *protocol,
                             bk_transport **ret_other) {
    bk_transport *pair[2];
    bk_stream *s = NULL;
    CHECK_INT(bk_memory_transport(loop, capacity, pair), 0);
    CHECK_INT(bk_stream_new(loop, pair[0], protocol, NULL, &s), 0);
    *ret_other = pair[1];
    return s;
}

/* ---- A transport that takes everything, or as little as a test wants ---- */

typedef struct sink {
    bk_transport base;
    bool one_piece; /* takes no more than that at once */
    int held;       /* what flush() says */
    char got[64];   /* the first of it */
    size_t used;
} sink;

static ssize_t sink_read(bk_transport *t, void *room, size_t n) {
    (void)t, (void)room, (void)n;
    return -EAGAIN;
}

static ssize_t sink_write(bk_transport *t, const struct iovec *v, int n) {
    sink *self = (sink *)t;
    size_t sent = 0;
    for (int i = 0; i < (self->one_piece ? 1 : n); i++) {
        size_t left = sizeof self->got - 1 - self->used, size = v[i].iov_len;
        memcpy(self->got + self->used, v[i].iov_base, size < left ? size : left);
        self->used += size < left ? size : left;
        sent += size;
    }
    return (ssize_t)sent;
}

static int sink_flush(bk_transport *t) {
    return ((sink *)t)->held;
}

static void sink_close(bk_transport *t) {
    (void)t;
}

static int sink_fd(bk_transport *t, unsigned direction) {
    (void)t, (void)direction;
    return -1;
}

static const bk_transport_ops sink_ops = {.size = sizeof sink_ops,
                                          .name = "sink",
                                          .read = sink_read,
                                          .write = sink_write,
                                          .close = sink_close,
                                          .fd = sink_fd};

/* It has a flush, and no end. */
static const bk_transport_ops flushing_ops = {.size = sizeof flushing_ops,
                                              .name = "flushing",
                                              .read = sink_read,
                                              .write = sink_write,
                                              .flush = sink_flush,
                                              .close = sink_close,
                                              .fd = sink_fd};

/* ---- Memory with a fence behind each block ---- */

enum { FENCE = 512, FENCE_BYTE = 0xa5 };

typedef struct fenced_block {
    alignas(max_align_t) size_t size;
} fenced_block;

static void *fenced_resize(bk_os *os, void *old, size_t n) {
    fenced_block *block = old == NULL ? NULL : (fenced_block *)old - 1;
    (void)os;
    for (size_t i = 0; block != NULL && i < FENCE; i++)
        if (((unsigned char *)old)[block->size + i] != FENCE_BYTE) {
            CHECK(!"the fence stands");
            break;
        }
    if (n == 0) {
        free(block);
        return NULL;
    }
    block = realloc(block, sizeof *block + n + FENCE);
    if (block == NULL)
        return NULL;
    block->size = n;
    memset((char *)(block + 1) + n, FENCE_BYTE, FENCE);
    return block + 1;
}

/* ---- Descriptors that cannot be watched ---- */

enum { TABLE = 64 }; /* descriptors that the loop's tables have room for at first */

typedef struct crowd {
    bk_loop *loop;
    int first, count; /* the descriptors it has filled the table with */
    int told;
    bool breaks;
} crowd;

static void crowd_told(void *arg, unsigned events) {
    crowd *c = arg;
    (void)events;
    c->told++;
    if (c->breaks) {
        bk_loop_break(c->loop);
        CHECK_INT(bk_watch_set(c->loop, c->first, BK_READ, NULL, NULL), 0);
    }
}

static void crowd_open(crowd *c, bk_os *os, int first) {
    *c = (crowd){.loop = new_loop_with(os, "epoll"), .first = first};
    CHECK_INT(bk_watch_set(c->loop, first, BK_READ, crowd_told, c), 0);
}

static void crowd_fill(crowd *c, int fd, int ret_fds[TABLE]) {
    while ((ret_fds[c->count] = dup(fd)) < TABLE && ret_fds[c->count] >= 0)
        CHECK_INT(bk_watch_set(c->loop, ret_fds[c->count++], BK_READ, crowd_told, c), 0);
    close(ret_fds[c->count]);
}

static void crowd_close(crowd *c, const int fds[TABLE]) {
    CHECK_INT(bk_loop_free(c->loop), 0);
    for (int i = 0; i < c->count; i++)
        close(fds[i]);
    close(c->first);
}

static bool has_epoll(void) {
    if (support_notifier_named("epoll") == NULL)
        check_skip("this system does not have epoll");
    return support_notifier_named("epoll") != NULL;
}

static int regular_file(void) {
    char path[] = "/tmp/becket-XXXXXX";
    int fd = mkstemp(path);
    CHECK(fd >= 0);
    unlink(path);
    return fd;
}

/* Each is listed anew while the list is gone through, which wrote beyond its end. */
static void many_that_cannot_be_watched(void) {
    bk_os os = *bk_os_default();
    int file, fds[TABLE];
    crowd c;
    os.resize = fenced_resize;
    if (!has_epoll())
        return;
    file = regular_file();
    crowd_open(&c, &os, file);
    crowd_fill(&c, file, fds);
    CHECK(c.count > TABLE / 2);
    turns(c.loop, 3);
    CHECK(c.told >= 3 * (c.count + 1));
    CHECK_INT(c.told % (c.count + 1), 0);
    CHECK(c.loop->change_count <= c.loop->watch_count);
    crowd_close(&c, fds);
}

/* A break in the midst of the list: what was not dealt with is, in the next turn. */
static void a_break_among_changes(void) {
    bk_os os = *bk_os_default();
    int ends[2], fds[TABLE];
    crowd c;
    os.resize = fenced_resize;
    if (!has_epoll())
        return;
    CHECK_INT(pipe(ends), 0);
    crowd_open(&c, &os, regular_file());
    crowd_fill(&c, ends[0], fds);
    CHECK(c.count > TABLE / 2);
    c.breaks = true;
    turns(c.loop, 1);
    CHECK_INT(c.told, 1);
    CHECK(c.loop->change_count <= c.loop->watch_count);
    c.breaks = false;
    CHECK_INT(write(ends[1], "x", 1), 1);
    turns(c.loop, 1);
    CHECK_INT(c.told, 1 + c.count);
    crowd_close(&c, fds);
    close(ends[0]);
    close(ends[1]);
}

/* ---- After a break ---- */

/* It went round for ever: whatever it was to end, the break kept it from. */
static void free_after_a_break(void) {
    bk_loop *loop = new_loop();
    bk_transport *pair[2];
    memset(&seen, 0, sizeof seen);
    CHECK_INT(bk_memory_transport(loop, 0, pair), 0);
    for (int i = 0; i < 2; i++)
        CHECK_INT(bk_stream_new(loop, pair[i], &quiet, NULL, NULL), 0);
    CHECK_INT(bk_loop_soon(loop, break_off, loop), 0);
    CHECK_INT(bk_loop_run(loop), 0);
    CHECK_INT(seen.closed, 0);
    free_loop(loop);
    CHECK_INT(seen.closed, 2);
    CHECK_INT(seen.why, -ECANCELED);
}

static atomic_int works_run;
static int works_done, signals_told;

static void work_run(bk_work *work) {
    (void)work;
    atomic_fetch_add(&works_run, 1);
}

static void work_done(bk_work *work) {
    (void)work;
    works_done++;
}

static void work_done_breaks(bk_work *work) {
    works_done++;
    bk_loop_break(work->loop);
}

static void signal_breaks(void *loop) {
    signals_told++;
    bk_loop_break(loop);
}

/* Start some, and wait until their threads are through with them. */
static void run_works(bk_loop *loop, bk_work *works, int count, void (*done)(bk_work *)) {
    atomic_store(&works_run, 0);
    works_done = 0;
    for (int i = 0; i < count; i++) {
        works[i] = (bk_work){.run = work_run, .done = done};
        CHECK_INT(bk_work_start(loop, &works[i]), 0);
    }
    while (atomic_load(&works_run) < count)
        sched_yield();
    usleep(10000); /* not needed, but it finds more: all of them are handed back by now */
}

static void works_after_a_break(void) {
    bk_loop *loop = new_loop();
    bk_work works[3];
    run_works(loop, works, 3, work_done_breaks);
    for (int before = 0; works_done < 3; before = works_done) {
        CHECK_INT(bk_loop_turn(loop, BK_SECOND), 0);
        CHECK(works_done - before <= 1);
    }
    CHECK_INT(works_done, 3);
    free_loop(loop);
}

static void works_and_signals_after_a_broken_post(void) {
    bk_loop *loop = new_loop();
    bk_work work;
    signals_told = 0;
    CHECK_INT(bk_signal_set(loop, SIGUSR1, signal_breaks, loop), 0);
    CHECK_INT(bk_signal_set(loop, SIGUSR2, signal_breaks, loop), 0);
    run_works(loop, &work, 1, work_done);
    CHECK_INT(bk_loop_post(loop, break_off, loop), 0);
    raise(SIGUSR1);
    raise(SIGUSR2);
    turns(loop, 1);
    CHECK_INT(works_done, 0);
    CHECK_INT(signals_told, 0);
    CHECK_INT(bk_loop_deadline(loop), 0);
    while (works_done == 0 || signals_told == 0)
        CHECK_INT(bk_loop_turn(loop, BK_SECOND), 0);
    CHECK_INT(signals_told, 1); /* the first breaks in its turn */
    CHECK_INT(bk_loop_deadline(loop), 0);
    turns(loop, 1);
    CHECK_INT(signals_told, 2);
    free_loop(loop);
}

/* ---- Transports that are unlike the built-in ones, or change ---- */

static void flush_without_end(void) {
    sink t = {.base = {.ops = &flushing_ops}};
    bk_loop *loop = new_loop();
    bk_stream *s;
    memset(&seen, 0, sizeof seen);
    CHECK_INT(bk_stream_new(loop, &t.base, &quiet, NULL, &s), 0);
    CHECK_INT(bk_stream_end(s), -ENOTSUP);
    CHECK_INT(bk_stream_write(s, "last", 4, BK_STATIC, NULL), 0);
    bk_stream_close(s);
    turns(loop, 2);
    CHECK_INT(seen.closed, 1);
    CHECK_INT(seen.why, 0);
    CHECK_STR(t.got, "last");
    free_loop(loop);
}

static struct {
    bk_stream *stream;
    bk_transport *next;
    int calls;
} swap;

static void release_swaps(void *arg) {
    (void)arg;
    if (swap.calls++ == 0)
        bk_stream_set_transport(swap.stream, swap.next);
}

/* Else what is to be sealed goes out in the clear, or through memory that is no more. */
static void release_puts_in_another_transport(void) {
    sink plain = {.base = {.ops = &sink_ops}, .one_piece = true}, sealed = plain;
    bk_loop *loop = new_loop();
    memset(&swap, 0, sizeof swap);
    CHECK_INT(bk_stream_new(loop, &plain.base, &quiet, NULL, &swap.stream), 0);
    swap.next = &sealed.base;
    CHECK_INT(bk_stream_write(swap.stream, "plain", 5, release_swaps, NULL), 0);
    CHECK_INT(bk_stream_write(swap.stream, "secret", 6, BK_STATIC, NULL), 0);
    CHECK_INT(bk_stream_write(swap.stream, ", too", 5, BK_STATIC, NULL), 0);
    for (int i = 0; i < 4; i++) {
        turns(loop, 1);
        bk_transport_wake(&sealed.base);
    }
    CHECK_INT(swap.calls, 1);
    CHECK_STR(plain.got, "plain");
    CHECK_STR(sealed.got, "secret, too");
    free_loop(loop);
}

/* One whose flush() never comes to an end is replaced: the close goes on with the new one. */
static void another_transport_while_closing(void) {
    sink stuck = {.base = {.ops = &flushing_ops}, .held = -EAGAIN}, next = stuck;
    bk_loop *loop = new_loop();
    bk_stream *s;
    next.held = 0;
    memset(&seen, 0, sizeof seen);
    CHECK_INT(bk_stream_new(loop, &stuck.base, &quiet, NULL, &s), 0);
    bk_stream_close(s);
    turns(loop, 2);
    CHECK_INT(seen.closed, 0);
    bk_stream_set_transport(s, &next.base);
    turns(loop, 2);
    CHECK_INT(seen.closed, 1);
    CHECK_INT(seen.why, 0);
    free_loop(loop);
}

/* ---- writable() is not called from within what the owner is about ---- */

static char much[128 * 1024];

static struct {
    bool inside;
    int blocked, writable;
    sink way_out;
} nesting;

/* All at once there is room for what was queued. */
static void make_room(bk_stream *s) {
    nesting.inside = true;
    nesting.way_out.base.ops = &sink_ops;
    bk_stream_set_transport(s, &nesting.way_out.base);
    bk_stream_flush(s);
    CHECK_INT(bk_stream_queued(s), 0);
    nesting.inside = false;
}

static int opened_makes_room(bk_stream *s) {
    CHECK_INT(bk_stream_write(s, much, sizeof much, BK_COPY, NULL), 0);
    CHECK_INT(nesting.blocked, 1);
    make_room(s);
    return 0;
}

static void received_makes_room(bk_stream *s, const void *data, size_t n) {
    (void)data, (void)n;
    make_room(s);
}

static void note_blocked(bk_stream *s) {
    (void)s;
    nesting.blocked++;
}

static void note_writable(bk_stream *s) {
    (void)s;
    CHECK(!nesting.inside);
    nesting.writable++;
}

static const bk_protocol in_opened = {.size = sizeof in_opened,
                                      .opened = opened_makes_room,
                                      .blocked = note_blocked,
                                      .writable = note_writable};

static const bk_protocol in_received = {.size = sizeof in_received,
                                        .received = received_makes_room,
                                        .blocked = note_blocked,
                                        .writable = note_writable};

static void writable_not_within_opened(void) {
    bk_loop *loop = new_loop();
    bk_transport *pair[2];
    memset(&nesting, 0, sizeof nesting);
    CHECK_INT(bk_memory_transport(loop, 1000, pair), 0);
    CHECK_INT(bk_stream_new(loop, pair[0], &in_opened, NULL, NULL), 0);
    CHECK_INT(nesting.writable, 0);
    turns(loop, 2);
    CHECK_INT(nesting.writable, 1);
    pair[0]->ops->close(pair[0]); /* nothing closes one that was replaced */
    pair[1]->ops->close(pair[1]);
    free_loop(loop);
}

static void writable_not_within_received(void) {
    bk_loop *loop = new_loop();
    bk_transport *near, *far;
    memset(&nesting, 0, sizeof nesting);
    bk_stream *s = new_stream(loop, 1000, &in_received, &far);
    near = bk_stream_transport(s);
    CHECK_INT(bk_stream_write(s, much, sizeof much, BK_COPY, NULL), 0);
    CHECK_INT(nesting.blocked, 1);
    struct iovec x = {"x", 1};
    CHECK_INT(far->ops->write(far, &x, 1), 1);
    turns(loop, 3);
    CHECK_INT(nesting.writable, 1);
    near->ops->close(near);
    far->ops->close(far);
    free_loop(loop);
}

/* ---- Callbacks outside a turn ---- */

static int refusals;

/* The loop may go neither away nor on while a stream of its is within a call. */
static void expect_busy(bk_loop *loop) {
    CHECK_INT(bk_loop_free(loop), -EBUSY);
    CHECK_INT(bk_loop_turn(loop, 0), -EBUSY);
    CHECK_INT(bk_loop_run(loop), -EBUSY);
    refusals++;
}

static int opened_tries(bk_stream *s) {
    expect_busy(bk_stream_loop(s));
    return 0;
}

static void blocked_tries(bk_stream *s) {
    bk_stream_abort(s); /* a turn would free it, and the write goes on with it */
    expect_busy(bk_stream_loop(s));
}

static void release_tries(void *loop) {
    expect_busy(loop);
}

static const bk_protocol trying = {
    .size = sizeof trying, .opened = opened_tries, .blocked = blocked_tries};

static void callbacks_outside_a_turn(void) {
    bk_loop *loop = new_loop();
    bk_transport *others[3];
    refusals = 0;
    bk_stream *s = new_stream(loop, 1000, &trying, &others[0]);
    CHECK_INT(refusals, 1);
    CHECK_INT(bk_stream_write(s, much, sizeof much, BK_COPY, NULL), 0);
    CHECK_INT(refusals, 2);
    s = new_stream(loop, 0, &quiet, &others[1]);
    CHECK_INT(bk_stream_write(s, "x", 1, release_tries, loop), 0);
    bk_stream_abort(s);
    CHECK_INT(refusals, 3);
    s = new_stream(loop, 0, &quiet, &others[2]);
    CHECK_INT(bk_stream_write(s, "x", 1, release_tries, loop), 0);
    bk_stream_flush(s);
    CHECK_INT(refusals, 4);
    turns(loop, 1);
    for (int i = 0; i < 3; i++)
        others[i]->ops->close(others[i]);
    free_loop(loop);
}

/* ---- A release that writes ---- */

static struct {
    bk_stream *stream;
    long left;
    int depth, deepest;
} chain;

static void write_again(void *arg) {
    (void)arg;
    chain.depth++;
    if (chain.depth > chain.deepest)
        chain.deepest = chain.depth;
    if (chain.left-- > 0 && chain.depth < 1000) /* deep enough to be found wrong, and survive */
        CHECK_INT(bk_stream_write(chain.stream, much, sizeof much, write_again, NULL), 0);
    else
        bk_stream_close(chain.stream);
    chain.depth--;
}

/* More than the high-water mark is sent at once; it was, from within the release, without end. */
static void release_writes_again_and_again(void) {
    sink t = {.base = {.ops = &sink_ops}};
    bk_loop *loop = new_loop();
    memset(&chain, 0, sizeof chain);
    memset(&seen, 0, sizeof seen);
    chain.left = 100000;
    CHECK_INT(bk_stream_new(loop, &t.base, &quiet, NULL, &chain.stream), 0);
    write_again(NULL);
    turns(loop, 3);
    CHECK_INT(seen.closed, 1);
    CHECK_INT(seen.why, 0);
    CHECK_INT(chain.left, -1);
    CHECK(chain.deepest <= 3);
    free_loop(loop);
}

/* ---- The child of a fork ---- */

/* What goes on in the child, whose exit status says whether all was well. */
static void in_child(bk_loop *loop, int (*child)(bk_loop *)) {
    int status = -1;
    fflush(stdout);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        alarm(20); /* it may be stuck in a lock */
        _exit(bk_loop_forked(loop) < 0 ? 100 : child(loop));
    }
    CHECK_INT(waitpid(pid, &status, 0), pid);
    CHECK_INT(status, 0);
}

static atomic_bool released;
static atomic_int held_count;

static void work_held(bk_work *work) {
    (void)work;
    atomic_fetch_add(&held_count, 1);
    while (!atomic_load(&released))
        usleep(1000);
}

static int child_works(bk_loop *loop) {
    bk_work work = {.run = work_run, .done = work_done};
    works_done = 0;
    if (bk_work_start(loop, &work) < 0)
        return 1;
    for (int i = 0; i < 1000 && works_done < 1; i++)
        (void)bk_loop_turn(loop, BK_SECOND / 100);
    return works_done == 1 && bk_loop_free(loop) == 0 ? 0 : 2;
}

/* The threads are the parent's alone; the child thought it had them. */
static void works_in_a_child(void) {
    bk_loop *loop = new_loop_with(NULL, NULL);
    bk_work work;
    run_works(loop, &work, 1, work_done);
    while (works_done == 0)
        CHECK_INT(bk_loop_turn(loop, BK_SECOND), 0);
    in_child(loop, child_works);
    CHECK_INT(bk_loop_free(loop), 0);
}

static int child_finds_work(bk_loop *loop) {
    for (int i = 0; i < 1000 && works_done < 1; i++)
        (void)bk_loop_turn(loop, BK_SECOND / 100);
    return works_done == 1 && bk_loop_free(loop) == 0 && works_done == 1 ? 0 : 2;
}

/* What no thread had begun is done on both sides; what one had, by the parent alone. */
static void works_under_way_at_a_fork(void) {
    bk_loop *loop = new_loop_with(NULL, NULL);
    bk_work held[BK_WORKERS], waiting = {.run = work_run, .done = work_done};
    works_done = 0;
    atomic_store(&released, false);
    atomic_store(&held_count, 0);
    for (int i = 0; i < BK_WORKERS; i++) {
        held[i] = (bk_work){.run = work_held, .done = work_done};
        CHECK_INT(bk_work_start(loop, &held[i]), 0);
    }
    while (atomic_load(&held_count) < BK_WORKERS)
        sched_yield();
    CHECK_INT(bk_work_start(loop, &waiting), 0);
    in_child(loop, child_finds_work);
    atomic_store(&released, true);
    while (works_done < BK_WORKERS + 1)
        CHECK_INT(bk_loop_turn(loop, BK_SECOND), 0);
    CHECK_INT(bk_loop_free(loop), 0);
}

static void set_true(void *arg) {
    *(bool *)arg = true;
}

static int child_posts(bk_loop *loop) {
    bool called = false;
    if (bk_loop_post(loop, set_true, &called) < 0 || bk_loop_turn(loop, BK_SECOND) < 0)
        return 1;
    return called && bk_loop_free(loop) == 0 ? 0 : 2;
}

/* As if another thread were posting at that very moment: in the child nobody lets go of the lock.
 */
static void fork_while_somebody_posts(void) {
    bk_loop *loop = new_loop_with(NULL, NULL);
    bk_lock *lock = loop->lock;
    bk_lock_take(lock);
    in_child(loop, child_posts);
    bk_lock_drop(lock);
    CHECK_INT(bk_loop_free(loop), 0);
}

/* The n-th call in bk_loop_forked() fails; returns whether there was one. */
static bool forked_failing(faults_kind kind, long n) {
    faults *f = support_faults();
    bk_loop *loop = new_loop();
    int fds[8];
    faults_arm(f, kind, n);
    int code = bk_loop_forked(loop);
    bool struck = faults_disarm(f) >= n;
    CHECK(code >= 0 || struck); /* to close something may fail, which harms nobody */
    for (int i = 0; i < COUNT(fds); i++)
        CHECK((fds[i] = open("/dev/null", O_RDONLY)) >= 0);
    free_loop(loop);
    for (int i = 0; i < COUNT(fds); i++)
        CHECK_INT(close(fds[i]), 0);
    return struck;
}

/* What it had closed was closed once more by bk_loop_free(), and somebody else's by then. */
static void failed_forked(void) {
    static const faults_kind kinds[] = {FAULTS_ERROR, FAULTS_NO_MEMORY};
    for (int i = 0; i < COUNT(kinds); i++)
        for (long n = 1; forked_failing(kinds[i], n); n++)
            ;
}

/* ---- Time ---- */

static void count_call(void *arg) {
    ++*(int *)arg;
}

/* Between turns it stood still, and what was set up then was late before it began. */
static void time_between_turns(void) {
    bk_loop *loop = new_loop();
    bk_transport *other;
    bk_timer timer = {0};
    int fired = 0;
    memset(&seen, 0, sizeof seen);
    turns(loop, 1);
    int64_t before = bk_loop_now(loop);
    faults_pass_time(support_faults(), 100 * BK_SECOND);
    CHECK(bk_loop_now(loop) - before >= 100 * BK_SECOND);
    bk_stream *s = new_stream(loop, 0, &quiet, &other);
    bk_stream_set_timeout(s, 50);
    int64_t when = bk_loop_now(loop) + 50 * BK_SECOND;
    CHECK_INT(bk_timer_start(loop, &timer, when, count_call, &fired), 0);
    turns(loop, 3);
    CHECK_INT(seen.closed, 0);
    CHECK_INT(fired, 0);
    bk_timer_stop(loop, &timer);
    other->ops->close(other);
    free_loop(loop);
}

static struct {
    bk_loop *loop;
    bk_timer timer;
    int fired;
} greedy;

static void start_in_the_past(void *arg) {
    (void)arg;
    greedy.fired++;
    CHECK_INT(bk_timer_start(greedy.loop, &greedy.timer, 0, start_in_the_past, NULL), 0);
}

/* It stood before all that were due, each time anew, and none of those was called. */
static void timer_that_starts_itself_in_the_past(void) {
    bk_timer timers[3] = {{0}};
    int fired = 0;
    memset(&greedy, 0, sizeof greedy);
    greedy.loop = new_loop();
    start_in_the_past(NULL);
    for (int i = 0; i < COUNT(timers); i++)
        CHECK_INT(bk_timer_start(greedy.loop, &timers[i], 1 + i, count_call, &fired), 0);
    turns(greedy.loop, 10);
    CHECK_INT(fired, 3);
    CHECK_INT(greedy.fired, 1 + 10);
    bk_timer_stop(greedy.loop, &greedy.timer);
    free_loop(greedy.loop);
}

/* A stop is for bk_loop_run(): turns on their own went on without ever waiting again. */
static void turns_after_a_stop(void) {
    bk_loop *loop = new_loop();
    bk_os *os = bk_loop_os(loop);
    bk_loop_stop(loop);
    turns(loop, 2);
    CHECK_INT(bk_loop_deadline(loop), -1);
    int64_t before = os->clock(os);
    CHECK_INT(bk_loop_turn(loop, BK_SECOND / 100), 0);
    CHECK(os->clock(os) - before >= BK_SECOND / 100);
    CHECK_INT(bk_loop_run(loop), 0); /* it is still heard: one turn */
    free_loop(loop);
}

static void count_ready(void *arg, unsigned events) {
    CHECK(events & BK_READ);
    ++*(int *)arg;
}

/* Rounded up to microseconds it overflowed, and was refused. */
static void the_longest_wait(void) {
    for (const bk_notifier_ops *const *all = bk_notifiers(); *all != NULL; all++) {
        bk_loop *loop = new_loop_with(NULL, (*all)->name);
        int ends[2], ready = 0;
        CHECK_INT(pipe(ends), 0);
        CHECK_INT(write(ends[1], "x", 1), 1);
        CHECK_INT(bk_watch_set(loop, ends[0], BK_READ, count_ready, &ready), 0);
        CHECK_INT(bk_loop_turn(loop, INT64_MAX), 0);
        CHECK_INT(bk_loop_turn(loop, INT64_MAX - 1), 0);
        CHECK_INT(ready, 2);
        bk_watch_forget(loop, ends[0]);
        CHECK_INT(bk_loop_free(loop), 0);
        close(ends[0]);
        close(ends[1]);
    }
}

static void closed_sets_a_timeout(bk_stream *s, int why) {
    (void)why;
    seen.closed++;
    bk_stream_set_timeout(s, 5);
}

/* It would be counted for ever, and the loop wake each second for nobody. */
static void timeout_set_in_closed(void) {
    static const bk_protocol protocol = {.size = sizeof protocol, .closed = closed_sets_a_timeout};
    bk_loop *loop = new_loop();
    bk_transport *other;
    memset(&seen, 0, sizeof seen);
    bk_stream *s = new_stream(loop, 0, &protocol, &other);
    bk_stream_set_timeout(s, 5);
    CHECK_INT(loop->timed_streams, 1);
    bk_stream_abort(s);
    turns(loop, 2);
    CHECK_INT(seen.closed, 1);
    CHECK_INT(loop->timed_streams, 0);
    CHECK_INT(loop->sweep.place, 0);
    CHECK_INT(bk_loop_deadline(loop), -1);
    other->ops->close(other);
    free_loop(loop);
}

/* ---- Questions ---- */

static void expect_no_space(bk_stream *s, int what) {
    char room[8];
    size_t size = sizeof room;
    memset(room, 'x', sizeof room);
    CHECK_INT(bk_stream_query(s, what, room, &size), -ENOSPC);
    CHECK_INT(size, sizeof room);
    CHECK(memcmp(room, "xxxxxxxx", sizeof room) == 0);
}

/* The kernel cuts an address short, and says how long it would have been. */
static void address_in_too_little_room(void) {
    bk_loop *loop = new_loop();
    bk_os *os = faults_quiet(support_faults());
    int fds[2];
    bk_transport *transports[2];
    CHECK_INT(conform_tcp(os, fds), 0);
    CHECK_INT(bk_socket_transport(loop, fds[0], &transports[0]), 0);
    CHECK_INT(bk_fd_transport(loop, fds[1], fds[1], 1, &transports[1]), 0);
    for (int i = 0; i < 2; i++) {
        struct sockaddr_storage whole;
        size_t size = sizeof whole;
        bk_stream *s;
        CHECK_INT(bk_stream_new(loop, transports[i], &quiet, NULL, &s), 0);
        expect_no_space(s, BK_QUERY_LOCAL);
        expect_no_space(s, BK_QUERY_PEER);
        CHECK_INT(bk_stream_query(s, BK_QUERY_LOCAL, &whole, &size), 0);
        CHECK(size > 8 && size < sizeof whole);
    }
    free_loop(loop);
}

/* ---- Machines ---- */

static struct {
    long crowded; /* replies that begin with 452 */
    char last[64];
    int closed;
} heard;

static int hear(bk_machine *m, const void *data, size_t n, bk_release release, void *arg) {
    (void)m;
    heard.crowded += n > 3 && memcmp(data, "452", 3) == 0;
    snprintf(heard.last, sizeof heard.last, "%.*s", (int)n, (const char *)data);
    if (release != BK_COPY)
        release(arg);
    return 0;
}

static void hear_close(bk_machine *m, int why) {
    (void)m, (void)why;
    heard.closed++;
}

static const bk_runner_ops hearing = {.size = sizeof hearing, .send = hear, .close = hear_close};

static void store_nothing(void *context, bk_smtp_session *session, bk_smtp_message *message) {
    (void)context;
    bk_smtp_message_free(message);
    bk_smtp_answer(session, NULL);
}

/* 452 is no error of the client's; but it is not to be had for ever. */
static void flood_of_recipients(void) {
    static const char start[] = "EHLO x\r\nMAIL FROM:<a@b.example>\r\n",
                      rcpt[] = "RCPT TO:<a@b.c>\r\n";
    bk_smtp_config config = {.size = sizeof config, .max_recipients = 3, .message = store_nothing};
    bk_machine *m = NULL;
    long fed = 0;
    memset(&heard, 0, sizeof heard);
    CHECK_INT(bk_smtp_new(&config, bk_os_default(), &m), 0);
    CHECK_INT(bk_machine_start(m, &hearing, NULL), 0);
    CHECK_INT(bk_machine_feed(m, start, sizeof start - 1), 0);
    for (; fed < 10000 && heard.closed == 0; fed++)
        CHECK_INT(bk_machine_feed(m, rcpt, sizeof rcpt - 1), 0);
    CHECK_INT(heard.closed, 1);
    CHECK(fed < 10000);
    CHECK(heard.crowded >= 3); /* a long list, sent by somebody honest */
    CHECK(strncmp(heard.last, "421", 3) == 0);
    bk_machine_free(m);
}

static int released_count;

static void count_release(void *arg) {
    (void)arg;
    released_count++;
}

/* "A NULL that must not be one is -EINVAL", and does nothing where nothing is returned. */
static void machines_that_are_null(void) {
    char text[4] = "abc";
    released_count = 0;
    CHECK_INT(bk_machine_send(NULL, "x", 1, BK_COPY, NULL), -EINVAL);
    CHECK_INT(bk_machine_send(NULL, "x", 1, count_release, NULL), -EINVAL);
    CHECK_INT(released_count, 1);
    CHECK_INT(bk_machine_start(NULL, &hearing, NULL), -EINVAL);
    CHECK_INT(bk_machine_feed(NULL, "x", 1), -EINVAL);
    CHECK_INT(bk_machine_ready(NULL), 0);
    CHECK_INT(bk_machine_wants(NULL), 0);
    bk_machine_close(NULL);
    bk_machine_abort(NULL, -EIO);
    bk_machine_wait(NULL);
    bk_machine_go(NULL);
    bk_machine_timeout(NULL, 1);
    bk_machine_end(NULL);
    bk_machine_block(NULL, 1);
    bk_machine_free(NULL);
    bk_machine_peer(NULL, NULL, 4);
    bk_machine_peer(NULL, text, sizeof text);
    CHECK_STR(text, "");
    bk_machine_protocol_free(NULL);
    CHECK_STR(bk_smtp_peer(NULL), "");
    CHECK_STR(bk_smtp_helo(NULL), "");
}

/* Most of these hung, or would: none may take longer than the guard allows. */
int main(int argc, char **argv) {
    static const check_case cases[] = {
        CASE(many_that_cannot_be_watched),
        CASE(a_break_among_changes),
        CASE(free_after_a_break),
        CASE(works_after_a_break),
        CASE(works_and_signals_after_a_broken_post),
        CASE(flush_without_end),
        CASE(release_puts_in_another_transport),
        CASE(another_transport_while_closing),
        CASE(writable_not_within_opened),
        CASE(writable_not_within_received),
        CASE(callbacks_outside_a_turn),
        CASE(release_writes_again_and_again),
        CASE(works_in_a_child),
        CASE(works_under_way_at_a_fork),
        CASE(fork_while_somebody_posts),
        CASE(failed_forked),
        CASE(time_between_turns),
        CASE(timer_that_starts_itself_in_the_past),
        CASE(turns_after_a_stop),
        CASE(the_longest_wait),
        CASE(timeout_set_in_closed),
        CASE(address_in_too_little_room),
        CASE(flood_of_recipients),
        CASE(machines_that_are_null),
    };
    support_guard(40, "test_regressions");
    int failed = check_main(argc, argv, cases, COUNT(cases));
    support_guard(0, "");
    return failed;
}
