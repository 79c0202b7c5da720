/*
 * process.c: the scheme process, "process:command", the standard input and output of a command as
 * one stream: a filter, a tunnel such as ssh, a server's inetd turned round. /bin/sh runs it, in a
 * process group of its own. Called through bk_scheme_process.
 *
 * A child outlives its transport until it has been reaped, by a timer and never by waiting; when
 * the loop ends, the rest is killed and waited for.
 */
#include "core/serve/serve.h"
#include "core/stream/stream.h"

#include <signal.h>

/* The transport, over the one of two pipes. */
struct bk_child {
    bk_transport base;
    bk_loop *loop;
    bk_child *next, **link; /* in loop->children */
    bk_transport *pipes;    /* NULL: closed; nothing is left but to reap it */
    bk_timer timer;         /* to ask whether it has ended */
    int64_t until;          /* when it has been waited for long enough; 0: nobody waits */
    bool told;              /* to end */
    bool drained;           /* all it had to say was read */
    int pid;                /* 0: it has ended, and was reaped */
    int status;             /* then: as waitpid told */
    int parent;             /* who started it: not a child of that one's to kill */
};

static int process_check(const bk_endpoint *endpoint, bk_error *error) {
    if (endpoint->host == NULL && *endpoint->path != '\0')
        return 0;
    return bk_error_set(error, BK_EENDPOINT, endpoint->rest,
                        "%.20s: is followed by a command, as in %.20s:cat", endpoint->scheme,
                        endpoint->scheme);
}

/* ---- The child ---- */

/* One that cannot be waited for is gone too: somebody else has reaped it. */
static bool process_has_ended(bk_child *c) {
    int status = 0, code = 1;
    if (c->pid != 0)
        code = c->loop->os->waitpid(c->loop->os, c->pid, 0, &status);
    if (code == 0 || code == -EINTR)
        return false;
    if (c->pid != 0)
        c->status = code > 0 ? status : 0;
    c->pid = 0;
    return true;
}

static bool process_is_ours(const bk_child *c) {
    return c->pid != 0 && c->loop->os->getpid(c->loop->os) == c->parent;
}

static void process_free(bk_child *c) {
    *c->link = c->next;
    if (c->next != NULL)
        c->next->link = c->link;
    bk_dealloc(c->loop->os, c);
}

/* Without memory for a timer it is killed at once, and reaped when the loop ends. */
static void process_reap(void *arg) {
    bk_child *c = arg;
    bk_loop *loop = c->loop;
    int64_t now = bk_loop_now(loop);
    if (process_has_ended(c)) {
        process_free(c);
        return;
    }
    int code =
        bk_timer_start(loop, &c->timer, now + BK_PROCESS_REAP_MS * BK_MILLISECOND, process_reap, c);
    if (code < 0 || (c->told && now >= c->until)) {
        (void)loop->os->kill(loop->os, -c->pid, SIGKILL);
    } else if (now >= c->until) {
        (void)loop->os->kill(loop->os, -c->pid, SIGTERM);
        c->told = true;
        c->until = now + BK_PROCESS_TERM_MS * BK_MILLISECOND;
    }
}

/* One that may not be killed (it has become another user's) is not waited for either. */
static void process_kill(bk_child *c) {
    bk_os *os = c->loop->os;
    int status, code = os->kill(os, -c->pid, SIGKILL);
    if (code < 0)
        bk_loop_log(c->loop, code, "process %d cannot be ended: %s", c->pid, bk_strerror(code));
    while (code >= 0 || code == -EINTR)
        if ((code = os->waitpid(os, c->pid, 1, &status)) > 0)
            break;
}

static void close_all(bk_loop *loop) {
    for (bk_child *c; (c = loop->children) != NULL;) {
        bk_timer_stop(loop, &c->timer);
        if (process_is_ours(c) && !process_has_ended(c))
            process_kill(c);
        process_free(c);
    }
}

static const bk_layer layer = {.close = close_all};

/* ---- Its pipes, as a transport ---- */

static void process_wake(void *arg) {
    bk_child *c = arg;
    bk_transport_wake(&c->base);
}

/* -EAGAIN: the stream will ask again; `code` when that was for long enough. */
static int process_wait(bk_child *c, int code) {
    int64_t now = bk_loop_now(c->loop), next = now + BK_PROCESS_ASK_MS * BK_MILLISECOND;
    if (c->until == 0)
        c->until = now + BK_PROCESS_STATUS_MS * BK_MILLISECOND;
    if (now >= c->until)
        return code;
    bool asks =
        c->timer.place != 0 || bk_timer_start(c->loop, &c->timer, next, process_wake, c) >= 0;
    return asks ? -EAGAIN : code;
}

/* By its pipes it is over, in good order or not. Whether it failed is known a little later: that is
   waited for, but not long, for it may live on without them. */
static int process_settle(bk_child *c, int code) {
    if (!process_has_ended(c))
        return process_wait(c, code);
    return c->status == 0 ? code : BK_EPROCESS;
}

static ssize_t process_read(bk_transport *t, void *room, size_t n) {
    bk_child *c = (bk_child *)t;
    ssize_t got = c->pipes->ops->read(c->pipes, room, n);
    if (got != 0 || n == 0)
        return got;
    c->drained = true;
    return process_settle(c, 0);
}

static ssize_t process_write(bk_transport *t, const struct iovec *v, int n) {
    bk_child *c = (bk_child *)t;
    ssize_t sent = c->pipes->ops->write(c->pipes, v, n);
    if (sent != -EPIPE)
        return sent;
    return c->drained ? process_settle(c, -EPIPE) : process_wait(c, -EPIPE); /* its last words */
}

/* Pipes that are over are always ready. */
static unsigned process_wants(bk_transport *t, unsigned directions) {
    bk_child *c = (bk_child *)t;
    return c->timer.place != 0 ? 0 : c->pipes->ops->wants(c->pipes, directions);
}

static int process_end(bk_transport *t) {
    bk_child *c = (bk_child *)t;
    return c->pipes->ops->end(c->pipes);
}

/* Most commands end when their input does, having done with it; others are told to. */
static void process_close(bk_transport *t) {
    bk_child *c = (bk_child *)t;
    c->pipes->ops->close(c->pipes);
    c->pipes = NULL;
    bk_timer_stop(c->loop, &c->timer);
    if (!process_is_ours(c)) {
        process_free(c);
        return;
    }
    c->until = bk_loop_now(c->loop) + BK_PROCESS_END_MS * BK_MILLISECOND;
    process_reap(c);
}

static int process_fd(bk_transport *t, unsigned direction) {
    bk_child *c = (bk_child *)t;
    return c->pipes->ops->fd(c->pipes, direction);
}

static int process_query(bk_transport *t, int what, void *ret_value, size_t *size) {
    bk_child *c = (bk_child *)t;
    if (what == BK_QUERY_NAME)
        return bk_query_answer(ret_value, size, "process", sizeof "process");
    return c->pipes->ops->query(c->pipes, what, ret_value, size);
}

static const bk_transport_ops process_ops = {
    .size = sizeof(bk_transport_ops),
    .name = "process",
    .read = process_read,
    .write = process_write,
    .wants = process_wants,
    .end = process_end,
    .close = process_close,
    .fd = process_fd,
    .query = process_query,
};

/* ---- Starting it ---- */

typedef struct process_pipes {
    int in[2], out[2]; /* the command's; of each its own end, which blocks, is the one it uses */
} process_pipes;

static void process_close_pipe(bk_os *os, const int fds[2]) {
    bk_close_fd(os, fds[0]);
    bk_close_fd(os, fds[1]);
}

static int process_open_pipes(bk_os *os, process_pipes *ret_pipes) {
    process_pipes p;
    int code = os->pipe(os, p.in);
    if (code < 0)
        return code;
    code = os->pipe(os, p.out);
    if (code < 0) {
        process_close_pipe(os, p.in);
        return code;
    }
    code = os->set_nonblocking(os, p.in[0], 0);
    if (code >= 0)
        code = os->set_nonblocking(os, p.out[1], 0);
    if (code < 0) {
        process_close_pipe(os, p.in);
        process_close_pipe(os, p.out);
        return code;
    }
    *ret_pipes = p;
    return 0;
}

static int process_start(bk_child *c, const char *command, bk_error *error) {
    bk_os *os = c->loop->os;
    const char *const argv[] = {"/bin/sh", "-c", command, NULL};
    process_pipes p;
    int code = process_open_pipes(os, &p);
    if (code < 0)
        return code;
    code = bk_fd_transport(c->loop, p.out[0], p.in[1], 1, &c->pipes);
    if (code < 0) {
        bk_close_fd(os, p.out[0]);
        bk_close_fd(os, p.in[1]);
    } else if ((c->pid = os->spawn(os, argv, p.in[0], p.out[1])) < 0) {
        code = bk_error_set(error, c->pid, 0, "%s cannot be started: %s", argv[0],
                            bk_strerror(c->pid));
        c->pipes->ops->close(c->pipes);
    }
    bk_close_fd(os, p.in[0]);
    bk_close_fd(os, p.out[1]);
    return code;
}

static int process_open(bk_loop *loop, const bk_endpoint *endpoint, bk_error *error,
                        bk_transport **ret_transport) {
    int code = process_check(endpoint, error);
    if (code < 0)
        return code;
    if (!BK_HAS(loop->os, spawn))
        return -ENOTSUP;
    bk_child *c = bk_alloc_zero(loop->os, sizeof *c);
    if (c == NULL)
        return -ENOMEM;
    c->base.ops = &process_ops;
    c->loop = loop;
    c->parent = loop->os->getpid(loop->os);
    code = process_start(c, endpoint->path, error);
    if (code < 0) {
        bk_dealloc(loop->os, c);
        return code;
    }
    c->next = loop->children;
    c->link = &loop->children;
    if (c->next != NULL)
        c->next->link = &c->next;
    loop->children = c;
    loop->layers[BK_LAYER_CHILDREN] = &layer;
    *ret_transport = &c->base;
    return 0;
}

/* ---- Listening ---- */

static int process_listen(bk_loop *loop, const bk_endpoint *endpoint, const bk_protocol *protocol,
                          bk_error *error, bk_listener **ret_listener) {
    bk_transport *transport;
    char *name = bk_endpoint_format(loop->os, "process", endpoint->path);
    int code = name == NULL ? -ENOMEM : process_open(loop, endpoint, error, &transport);
    if (code >= 0)
        code = bk_listen_once(loop, name, transport, protocol, ret_listener);
    bk_dealloc(loop->os, name);
    return code;
}

/* ---- Connecting ---- */

static int process_connect(bk_loop *loop, const bk_endpoint *endpoint, const bk_protocol *protocol,
                           void *user, bk_error *error, bk_stream **ret_stream) {
    bk_transport *transport;
    int code = process_open(loop, endpoint, error, &transport);
    return code < 0 ? code : bk_connect_transport(loop, transport, protocol, user, ret_stream);
}

const bk_scheme bk_scheme_process = {
    .size = sizeof(bk_scheme),
    .name = "process",
    .listen = process_listen,
    .connect = process_connect,
};
