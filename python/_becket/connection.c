/*
 * connection.c: a connection for blocking code, over any transport: what comes in is kept until it
 * is asked for, and whoever waits turns the loop (drive.c), or where there is nothing but a socket,
 * waits in that. The other half is python/becket/connection.py, which derives from this class. No
 * Python runs for a message.
 *
 * It is the protocol of its transport, which calls it as the table transport_connection says.
 *
 * Several threads may use it. What they call holds the lock of its loop (LOCKED, below); so does
 * what a turn calls, as it is one of them that turns.
 */
#include "becket_py.h"

#include <structmember.h>

#include <sys/socket.h>

enum {
    FIRST_ROOM = 8 * 1024,  /* for what is read, until much comes at once */
    READ_AHEAD = 64 * 1024, /* more than this is not read before somebody asks for it */
    BIG_PIECE = 16 * 1024,  /* from this size on, memory is handed over, not copied */
    LINE_LIMIT = 64 * 1024, /* asyncio's */
};

/* How long close() waits for what is queued, where there is no time-out. */
#define LINGER_NS (INT64_C(10) * 1000 * 1000 * 1000)

/* ---- What comes in ---- */

static Py_ssize_t unread(const ConnectionObject *c) {
    return c->used - c->from;
}

static char *input(const ConnectionObject *c) {
    return PyBytes_AS_STRING(c->input) + c->from;
}

/* Memory that was lent for a read is moved here only, by the next read. */
static int make_room(ConnectionObject *c) {
    if (c->input == NULL) {
        c->room = c->reads_much ? READ_AHEAD : FIRST_ROOM;
        c->from = c->used = 0;
        c->input = PyBytes_FromStringAndSize(NULL, c->room);
        return c->input == NULL ? -1 : 0;
    }
    if (c->from > 0 && (c->from >= unread(c) || c->used == c->room)) { /* amortised: few bytes */
        memmove(PyBytes_AS_STRING(c->input), input(c), (size_t)unread(c));
        c->used -= c->from;
        c->from = 0;
    }
    if (c->used < c->room)
        return 0;
    PyObject *larger = PyBytes_FromStringAndSize(NULL, c->room * 2);
    if (larger == NULL)
        return -1;
    memcpy(PyBytes_AS_STRING(larger), PyBytes_AS_STRING(c->input), (size_t)c->used);
    Py_SETREF(c->input, larger);
    c->room *= 2;
    return 0;
}

static ConnectionObject *connection_of(bk_stream *s) {
    TransportObject *t = bk_stream_user(s);
    return t->loop->ending ? NULL : (ConnectionObject *)t->protocol;
}

int connection_room(bk_stream *s, bk_room *ret_room) {
    ConnectionObject *c = connection_of(s);
    if (c == NULL)
        return -ECANCELED;
    if (make_room(c) < 0) {
        PyErr_Clear();
        return -ENOMEM;
    }
    *ret_room = (bk_room){PyBytes_AS_STRING(c->input) + c->used, (size_t)(c->room - c->used)};
    return 0;
}

void connection_received(bk_stream *s, const void *data, size_t n) {
    ConnectionObject *c = connection_of(s);
    (void)data;
    if (c == NULL)
        return;
    c->used += (Py_ssize_t)n;
    c->arrived += n;
    if (c->used == c->room)
        c->reads_much = true;
    if (unread(c) >= c->limit) {
        c->paused = true;
        bk_stream_pause(s);
    }
}

/* Our direction goes on, as a socket's does. */
int connection_ended(bk_stream *s) {
    ConnectionObject *c = connection_of(s);
    if (c != NULL)
        c->eof = true;
    return 1;
}

/* The first n bytes. */
static PyObject *take(ConnectionObject *c, Py_ssize_t n) {
    Py_ssize_t size = unread(c);
    bool whole = n >= size && c->from == 0 && size >= BIG_PIECE;
    if (whole && (c->loop->inside == 0 || c->loop->turner == 0) && c->receiver == 0) {
        /* nobody reads into it */
        PyObject *bytes = c->input;
        c->input = NULL;
        c->from = c->used = c->room = 0;
        return _PyBytes_Resize(&bytes, size) < 0 ? NULL : bytes;
    }
    if (n > size)
        n = size;
    PyObject *bytes = PyBytes_FromStringAndSize(n > 0 ? input(c) : NULL, n);
    if (bytes != NULL)
        c->from += n;
    return bytes;
}

/* ---- Errors ---- */

static int raise_os(int number) {
    return loop_raise(-number);
}

static int check_open(ConnectionObject *c) {
    if (c->closed)
        return raise_os(EBADF);
    if (c->transport != NULL || c->lost)
        return 0;
    return raise_os(ENOTCONN);
}

/* Why the connection was lost, each time anew. */
static int raise_lost(ConnectionObject *c) {
    if (c->error == NULL)
        return raise_os(EPIPE);
    (void)PyException_SetTraceback(c->error, Py_None);
    PyErr_SetObject((PyObject *)Py_TYPE(c->error), c->error);
    return -1;
}

/* ---- Using the loop ---- */

/* Another thread has closed the connection and, with it, the loop, while this one waited for it:
   the exception that is set says so. */
static bool lost_its_loop(const ConnectionObject *c) {
    return c->closed && (c->loop->core == NULL || c->loop->ending) &&
           PyErr_ExceptionMatches(PyExc_RuntimeError);
}

/* What came of drive_enter() or drive_turn(): that is an error of the connection's. */
static int of_loop(ConnectionObject *c, int code) {
    if (code == 0 || !lost_its_loop(c))
        return code;
    PyErr_Clear();
    return raise_os(EBADF);
}

static int enter(ConnectionObject *c, unsigned long *ret_before) {
    return of_loop(c, drive_enter(c->loop, ret_before));
}

/* ---- Waiting ---- */

typedef struct deadline {
    int64_t at;
    bool began;
} deadline;

/* How much of the time there was is left; < 0: no end of it. */
static int time_left(ConnectionObject *c, int64_t timeout_ns, deadline *d, int64_t *ret_ns) {
    *ret_ns = -1;
    if (timeout_ns < 0)
        return 0;
    if (timeout_ns == 0 && d->began)
        return raise_os(EAGAIN);
    bk_os *os = c->loop->core != NULL ? c->loop->core->os : bk_os_default();
    int64_t now = timeout_ns > 0 ? os->clock(os) : 0;
    if (!d->began)
        d->at = now < INT64_MAX - timeout_ns ? now + timeout_ns : INT64_MAX;
    else if (now >= d->at) {
        PyErr_SetString(PyExc_TimeoutError, "timed out");
        return -1;
    }
    d->began = true;
    *ret_ns = d->at - now;
    return 0;
}

static int turn_within(ConnectionObject *c, int64_t timeout_ns, deadline *d) {
    int64_t left;
    return time_left(c, timeout_ns, d, &left) < 0 ? -1 : of_loop(c, drive_turn(c->loop, left));
}

static int turn(ConnectionObject *c, deadline *d) {
    return turn_within(c, c->timeout_ns, d);
}

/* Let up to `limit` bytes be read ahead. */
static int resume(ConnectionObject *c, Py_ssize_t limit) {
    unsigned long before;
    c->limit = limit > READ_AHEAD ? limit : READ_AHEAD;
    if (!c->paused || unread(c) >= c->limit || c->receiver != 0)
        return 0;
    if (enter(c, &before) < 0)
        return -1;
    c->paused = false;
    if (c->transport != NULL && c->transport->stream != NULL)
        bk_stream_resume(c->transport->stream);
    drive_leave(c->loop, before);
    return 0;
}

/* ---- Waiting in the socket ---- */

static bk_stream *stream_of(const ConnectionObject *c) {
    return c->transport != NULL ? c->transport->stream : NULL;
}

/* The stream of a socket in which nothing is under way, and nobody turns the loop; or NULL. */
static bk_stream *resting_socket(const ConnectionObject *c) {
    const uint32_t busy = BK_STREAM_CONNECTING | BK_STREAM_OPENING | BK_STREAM_BUSY |
                          BK_STREAM_CLOSING | BK_STREAM_CLOSED;
    bk_stream *s = stream_of(c);
    bool rests = s != NULL && s->head == NULL && !(s->flags & busy) && c->loop->inside == 0 &&
                 c->loop->turner == 0 && !c->loop->core->turning;
    return rests && bk_is_socket_transport(s->transport) ? s : NULL;
}

/* Whether there is nothing to wait for but the bytes of a socket, which one call then both waits
   for and receives. */
static bool may_block(const ConnectionObject *c) {
    const bk_stream *s = resting_socket(c);
    return s != NULL && c->timeout_ns < 0 && !(s->flags & (BK_STREAM_TIMED | BK_STREAM_EOF)) &&
           drive_is_quiet(c->loop, s);
}

/* The loop is not to read what this thread waits for; the socket, which blocks for nobody else, is
   to block. */
static int prepare_socket(ConnectionObject *c, bk_stream *s, int fd) {
    bk_os *os = c->loop->core->os;
    int code = c->blocks ? 0 : os->set_nonblocking(os, fd, 0);
    if (code < 0)
        return loop_raise(code);
    c->blocks = true;
    if (!c->paused)
        bk_stream_pause(s);
    c->paused = true;
    return make_room(c);
}

/* Other threads may use the connection meanwhile, and end it: stop_receiver(). Whoever has just
   come has often spoken already: then no other thread need have its turn. */
static ssize_t read_socket(ConnectionObject *c, int fd, char *room, size_t size) {
    ssize_t n = -1;
    int number = EAGAIN;
    if (c->arrived == 0) {
        n = recv(fd, room, size, MSG_DONTWAIT);
        number = errno;
    }
    if (n < 0 && number == EAGAIN) {
        Py_BEGIN_ALLOW_THREADS n = recv(fd, room, size, 0);
        number = errno;
        Py_END_ALLOW_THREADS
    }
    return n < 0 ? -number : n;
}

static int receive(ConnectionObject *c) {
    bk_stream *s = stream_of(c);
    int fd = s->transport->ops->fd(s->transport, BK_READ);
    unsigned long before;
    if (prepare_socket(c, s, fd) < 0)
        return -1;
    char *room = PyBytes_AS_STRING(c->input) + c->used;
    c->receiver = PyThread_get_thread_ident();
    ssize_t n = read_socket(c, fd, room, (size_t)(c->room - c->used));
    int code = n == -EINTR ? PyErr_CheckSignals() : 0;
    drive_await(c->loop); /* nobody else receives before this is told */
    c->receiver = 0;
    s = stream_of(c);
    if (code < 0 || c->closed || s == NULL) {
        drive_tell(c->loop);
        return code;
    }
    if (enter(c, &before) < 0)
        return -1;
    bk_stream_feed(s, room, n);
    drive_leave(c->loop, before);
    return 0;
}

/* Nothing more is to come, but by what the receiver finds the connection to be. */
static void stop_receiver(ConnectionObject *c) {
    if (c->receiver != 0 && c->transport != NULL)
        (void)shutdown(c->transport->fd, SHUT_RD);
}

static int wait_for_input(ConnectionObject *c, Py_ssize_t limit, deadline *d) {
    int64_t left;
    if (c->receiver == PyThread_get_thread_ident())
        return drive_refuse();
    if (c->receiver != 0)
        return time_left(c, c->timeout_ns, d, &left) < 0 ? -1 : drive_wait(c->loop, left, true);
    if (may_block(c))
        return receive(c);
    return resume(c, limit) < 0 ? -1 : turn(c, d);
}

/* Wait for more than there is: 1; 0: the end. What could not be had in time may still come. */
static int more(ConnectionObject *c, Py_ssize_t limit, deadline *d) {
    uint64_t before = c->arrived;
    c->limit = limit > READ_AHEAD ? limit : READ_AHEAD;
    while (c->arrived == before && !c->eof && !c->lost) {
        if (wait_for_input(c, limit, d) < 0 || check_open(c) < 0)
            return -1;
    }
    if (c->arrived != before)
        return 1;
    return c->lost && c->error != NULL && !c->eof ? raise_lost(c) : 0;
}

/* ---- Receiving ---- */

static int count_of(PyObject *const *args, Py_ssize_t n, Py_ssize_t fallback, const char *method,
                    Py_ssize_t *ret_count) {
    if (n > 1) {
        PyErr_Format(PyExc_TypeError, "%s() takes at most one argument", method);
        return -1;
    }
    *ret_count = n == 0 ? fallback : PyNumber_AsSsize_t(args[0], PyExc_OverflowError);
    return *ret_count == -1 && PyErr_Occurred() ? -1 : 0;
}

/* Wait until there is something, or the end. */
static int something(ConnectionObject *c) {
    deadline d = {0, false};
    if (check_open(c) < 0)
        return -1;
    int code = 1;
    while (unread(c) == 0 && code > 0) /* another thread may take it first */
        code = more(c, READ_AHEAD, &d);
    return code < 0 ? -1 : 0;
}

static PyObject *connection_recv(ConnectionObject *c, PyObject *const *args, Py_ssize_t n) {
    Py_ssize_t count;
    if (count_of(args, n, READ_AHEAD, "recv", &count) < 0)
        return NULL;
    if (count < 0)
        return PyErr_Format(PyExc_ValueError, "bufsize: %zd is negative", count);
    if (count > 0 ? something(c) < 0 : check_open(c) < 0)
        return NULL;
    return take(c, count);
}

static PyObject *connection_recv_into(ConnectionObject *c, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"buffer", "nbytes", NULL};
    Py_buffer view;
    Py_ssize_t count = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "w*|n:recv_into", names, &view, &count))
        return NULL;
    PyObject *result = NULL;
    if (count < 0 || count > view.len) {
        PyErr_Format(PyExc_ValueError, "nbytes: %zd is not within the buffer's %zd bytes", count,
                     view.len);
    } else {
        count = count == 0 ? view.len : count;
        if (count > 0 ? something(c) == 0 : check_open(c) == 0) {
            Py_ssize_t size = unread(c) < count ? unread(c) : count;
            if (size > 0)
                memcpy(view.buf, input(c), (size_t)size);
            c->from += size;
            result = PyLong_FromSsize_t(size);
        }
    }
    PyBuffer_Release(&view);
    return result;
}

/* Where what ends a piece begins, among what has come; -1: not yet. Nothing before `searched` has
   to be looked at. */
static Py_ssize_t find(const ConnectionObject *c, const char *mark, Py_ssize_t n,
                       Py_ssize_t *searched) {
    Py_ssize_t size = unread(c);
    if (size < n)
        return -1;
    if (*searched > size) /* another thread took some */
        *searched = 0;
    const char *from = input(c);
    const char *at = from + *searched, *last = from + size - n;
    while (at <= last && (at = memchr(at, mark[0], (size_t)(last - at + 1))) != NULL) {
        if (memcmp(at, mark, (size_t)n) == 0)
            return at - from;
        at++;
    }
    *searched = size - n + 1;
    return -1;
}

/* A line of at most limit bytes (< 0: of any length), b"" at the end. */
static PyObject *read_line(ConnectionObject *c, Py_ssize_t limit) {
    deadline d = {0, false};
    Py_ssize_t searched = 0;
    Py_ssize_t most = limit < 0 ? PY_SSIZE_T_MAX : limit;
    if (check_open(c) < 0)
        return NULL;
    for (;;) {
        Py_ssize_t at = find(c, "\n", 1, &searched);
        if (at >= 0)
            return take(c, at < most ? at + 1 : most);
        if (unread(c) >= most)
            return take(c, most);
        int code = more(c, most, &d);
        if (code <= 0)
            return code < 0 ? NULL : take(c, unread(c));
    }
}

static PyObject *connection_readline(ConnectionObject *c, PyObject *const *args, Py_ssize_t n) {
    Py_ssize_t limit;
    if (n == 1 && args[0] == Py_None)
        n = 0;
    if (count_of(args, n, LINE_LIMIT, "readline", &limit) < 0)
        return NULL;
    return read_line(c, limit);
}

static PyObject *overrun(ConnectionObject *c, const char *message, Py_ssize_t consumed) {
    PyObject *type = c->loop->state->limit_overrun;
    PyObject *e = PyObject_CallFunction(type, "sn", message, consumed);
    if (e != NULL)
        PyErr_SetObject(type, e);
    Py_XDECREF(e);
    return NULL;
}

/* The end came first: what there is goes with the exception, as asyncio has it. */
static PyObject *incomplete(ConnectionObject *c, PyObject *expected) {
    PyObject *type = c->loop->state->incomplete_read;
    PyObject *partial = take(c, unread(c));
    PyObject *e =
        partial == NULL ? NULL : PyObject_CallFunctionObjArgs(type, partial, expected, NULL);
    if (e != NULL)
        PyErr_SetObject(type, e);
    Py_XDECREF(e);
    Py_XDECREF(partial);
    return NULL;
}

/* The next line; one that is too long stays where it is. */
static PyObject *connection_iternext(ConnectionObject *c) {
    deadline d = {0, false};
    Py_ssize_t searched = 0, at;
    if (check_open(c) < 0)
        return NULL;
    while ((at = find(c, "\n", 1, &searched)) < 0) {
        if (unread(c) > LINE_LIMIT)
            return overrun(c, "a line is longer than the limit", searched);
        int code = more(c, LINE_LIMIT + 1, &d);
        if (code < 0 || (code == 0 && unread(c) == 0))
            return NULL;
        if (code == 0)
            return take(c, unread(c));
    }
    if (at > LINE_LIMIT)
        return overrun(c, "a line is longer than the limit", at);
    return take(c, at + 1);
}

static PyObject *connection_readexactly(ConnectionObject *c, PyObject *arg) {
    deadline d = {0, false};
    Py_ssize_t count = PyNumber_AsSsize_t(arg, PyExc_OverflowError);
    if ((count == -1 && PyErr_Occurred()) || check_open(c) < 0)
        return NULL;
    if (count < 0)
        return PyErr_Format(PyExc_ValueError, "n: %zd is negative", count);
    while (unread(c) < count) {
        int code = more(c, count, &d);
        if (code < 0)
            return NULL;
        if (code == 0)
            return incomplete(c, arg);
    }
    return take(c, count);
}

/* Up to the mark and with it. */
static PyObject *read_until(ConnectionObject *c, const char *mark, Py_ssize_t n, Py_ssize_t limit) {
    deadline d = {0, false};
    Py_ssize_t searched = 0, at;
    while ((at = find(c, mark, n, &searched)) < 0) {
        if (searched > limit)
            return overrun(c, "Separator is not found, and chunk exceed the limit", searched);
        int code = more(c, limit + n, &d);
        if (code < 0)
            return NULL;
        if (code == 0)
            return incomplete(c, Py_None);
    }
    if (at > limit)
        return overrun(c, "Separator is found, but chunk is longer than limit", at);
    return take(c, at + n);
}

static PyObject *connection_readuntil(ConnectionObject *c, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"separator", "limit", NULL};
    Py_buffer mark = {.obj = NULL, .buf = "\n", .len = 1};
    Py_ssize_t limit = LINE_LIMIT;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|y*$n:readuntil", names, &mark, &limit))
        return NULL;
    PyObject *result = NULL;
    if (mark.len == 0)
        PyErr_SetString(PyExc_ValueError, "separator: it should be at least one byte");
    else if (limit < 0 || limit > PY_SSIZE_T_MAX / 4 || mark.len > limit + 1)
        PyErr_Format(PyExc_ValueError, "limit: %zd is out of range", limit);
    else if (check_open(c) == 0)
        result = read_until(c, mark.buf, mark.len, limit);
    if (mark.obj != NULL)
        PyBuffer_Release(&mark);
    return result;
}

/* ---- Sending ---- */

/* Whether the kernel has all. */
static bool is_sent(const ConnectionObject *c) {
    const bk_stream *s = stream_of(c);
    return s != NULL && s->head == NULL && !(s->flags & (BK_STREAM_BUSY | BK_STREAM_CLOSED));
}

/* What was written just now will not be sent; wait_sent() finds out why. */
static bool is_broken(const ConnectionObject *c) {
    const bk_stream *s = stream_of(c);
    return s == NULL || s->flags & BK_STREAM_CLOSED;
}

static int wait_sent(ConnectionObject *c, deadline *d) {
    while (!is_sent(c)) {
        if (c->lost)
            return raise_lost(c);
        if (resume(c, c->limit) < 0 || turn(c, d) < 0 || check_open(c) < 0)
            return -1;
    }
    return 0;
}

/* What a socket takes at once, within the core: other threads may run meanwhile, but not write in
   between. For little, they need not: giving the GIL away and getting it back costs more than the
   kernel takes. Returns how much that is. */
static Py_ssize_t send_now(bk_stream *s, const void *data, Py_ssize_t n) {
    int fd = s->transport->ops->fd(s->transport, BK_WRITE);
    PyThreadState *others = n >= BIG_PIECE ? PyEval_SaveThread() : NULL;
    ssize_t sent = send(fd, data, (size_t)n, MSG_DONTWAIT | MSG_NOSIGNAL);
    int number = errno;
    if (others != NULL)
        PyEval_RestoreThread(others);
    bk_stream_sent(s, sent < 0 ? -number : sent);
    return sent < 0 ? 0 : sent;
}

/* Queue bytes, and send what the kernel takes. */
static int write_bytes(ConnectionObject *c, const void *data, Py_ssize_t n, PyObject *owner) {
    unsigned long before;
    bk_stream *resting = resting_socket(c);
    if (enter(c, &before) < 0)
        return -1;
    Py_ssize_t sent = resting != NULL ? send_now(resting, data, n) : 0;
    bk_stream *s = stream_of(c);
    int code = 0;
    if (s == NULL)
        code = -EPIPE;
    else if (sent < n)
        code = bk_stream_write(s, (const char *)data + sent, (size_t)(n - sent),
                               owner != NULL ? object_release : BK_COPY, Py_XNewRef(owner));
    if (code >= 0 && sent < n)
        bk_stream_flush(s);
    bool broken = s != NULL && s->flags & BK_STREAM_CLOSED;
    drive_leave(c->loop, before);
    if (code < 0 && !(code == -EPIPE && broken))
        return loop_raise(code);
    return 0; /* why it broke, wait_sent() tells */
}

/* What can change is sent or copied before we return. */
static int write_object(ConnectionObject *c, PyObject *data, Py_ssize_t *ret_size) {
    Py_buffer view;
    if (PyBytes_CheckExact(data)) {
        *ret_size = PyBytes_GET_SIZE(data);
        return *ret_size == 0 ? 0 : write_bytes(c, PyBytes_AS_STRING(data), *ret_size, data);
    }
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0)
        return -1;
    int code = view.len == 0 ? 0 : write_bytes(c, view.buf, view.len, NULL);
    *ret_size = view.len;
    PyBuffer_Release(&view);
    return code;
}

static int check_sending(ConnectionObject *c) {
    if (check_open(c) < 0)
        return -1;
    if (c->lost)
        return raise_lost(c);
    return c->ended ? raise_os(EPIPE) : 0;
}

/* Where sending may not block, what is accepted is what would be waited for. */
static PyObject *connection_sendall(ConnectionObject *c, PyObject *data) {
    deadline d = {0, false};
    Py_ssize_t size;
    if (check_sending(c) < 0)
        return NULL;
    if (c->timeout_ns == 0 && wait_sent(c, &d) < 0)
        return NULL;
    if (write_object(c, data, &size) < 0)
        return NULL;
    if ((c->timeout_ns != 0 || is_broken(c)) && !is_sent(c) && wait_sent(c, &d) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *connection_send(ConnectionObject *c, PyObject *data) {
    deadline d = {0, false};
    Py_ssize_t size;
    if (check_sending(c) < 0 || (!is_sent(c) && wait_sent(c, &d) < 0) ||
        write_object(c, data, &size) < 0)
        return NULL;
    if (is_broken(c) && wait_sent(c, &d) < 0)
        return NULL;
    return PyLong_FromSsize_t(size);
}

static PyObject *connection_end(ConnectionObject *c, PyObject *Py_UNUSED(ignored)) {
    unsigned long before;
    deadline d = {0, false};
    if (check_sending(c) < 0) {
        if (!c->ended || c->closed)
            return NULL;
        PyErr_Clear(); /* repeating it is not an error */
        Py_RETURN_NONE;
    }
    if (enter(c, &before) < 0)
        return NULL;
    bk_stream *s = stream_of(c);
    int code = s == NULL ? -EPIPE : bk_stream_end(s);
    if (code >= 0)
        bk_stream_flush(s);
    drive_leave(c->loop, before);
    if (code < 0) {
        loop_raise(code);
        return NULL;
    }
    c->ended = true;
    if (c->timeout_ns != 0 && !is_sent(c) && wait_sent(c, &d) < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* _end_input(): nothing more is received. */
static PyObject *connection_end_input(ConnectionObject *c, PyObject *Py_UNUSED(ignored)) {
    unsigned long before;
    if (check_open(c) < 0 || enter(c, &before) < 0)
        return NULL;
    c->eof = true;
    c->from = c->used;
    c->paused = false;
    stop_receiver(c);
    if (stream_of(c) != NULL)
        bk_stream_pause(stream_of(c));
    drive_leave(c->loop, before);
    Py_RETURN_NONE;
}

/* ---- The end ---- */

/* Begin the end, in good order or not; 1: another thread has brought it about. */
static int begin_close(ConnectionObject *c, bool abort) {
    unsigned long before;
    if (drive_enter(c->loop, &before) < 0) {
        if (!lost_its_loop(c))
            return -1;
        PyErr_Clear();
        return 1;
    }
    bk_stream *s = stream_of(c);
    if (s != NULL)
        c->transport->closing = true;
    if (s != NULL && abort)
        bk_stream_abort(s);
    else if (s != NULL)
        bk_stream_close(s);
    drive_leave(c->loop, before);
    return 0;
}

/* What was given up is gone with the next turn. */
static int give_up(ConnectionObject *c) {
    int code = begin_close(c, true);
    while (code == 0 && !c->lost && stream_of(c) != NULL)
        code = drive_turn(c->loop, 0);
    return code < 0 ? -1 : 0;
}

static void give_up_quietly(ConnectionObject *c) {
    PyObject *type, *value, *tb;
    PyErr_Fetch(&type, &value, &tb);
    if (give_up(c) < 0)
        PyErr_WriteUnraisable((PyObject *)c);
    PyErr_Restore(type, value, tb);
}

/* How long the end may take; a time-out of 0 is no reason to lose what was accepted. */
static int patience(const ConnectionObject *c, PyObject *const *args, Py_ssize_t n,
                    int64_t *ret_ns) {
    double seconds = n > 0 ? PyFloat_AsDouble(args[0]) : 0;
    if (seconds == -1.0 && PyErr_Occurred())
        return -1;
    *ret_ns = c->timeout_ns > 0 ? c->timeout_ns : LINGER_NS;
    if (n > 0)
        *ret_ns = seconds > 0 && seconds < 1e9 ? (int64_t)(seconds * 1e9) : 0;
    return 0;
}

/* _close(seconds): send what is queued, as far as it goes within the time, and be gone. False: that
   was begun before. */
static PyObject *connection_close(ConnectionObject *c, PyObject *const *args, Py_ssize_t n) {
    deadline d = {0, false};
    int64_t limit;
    if (patience(c, args, n, &limit) < 0)
        return NULL;
    bool again = c->closed;
    c->closed = true;
    if (again || c->transport == NULL || c->loop->core == NULL)
        return PyBool_FromLong(!again);
    int code = begin_close(c, false);
    while (code == 0 && !c->lost)
        code = turn_within(c, limit, &d);
    if (code < 0 && (PyErr_ExceptionMatches(PyExc_TimeoutError) ||
                     PyErr_ExceptionMatches(PyExc_BlockingIOError))) {
        PyErr_Clear();
        code = give_up(c);
    } else if (code < 0) {
        give_up_quietly(c);
    }
    return code < 0 ? NULL : Py_NewRef(Py_True);
}

/* _abort(): what is queued is lost. */
static PyObject *connection_abort(ConnectionObject *c, PyObject *Py_UNUSED(ignored)) {
    c->closed = true;
    if (c->transport != NULL && c->loop->core != NULL && give_up(c) < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* ---- As a protocol ---- */

static PyObject *connection_made(ConnectionObject *c, PyObject *transport) {
    if (!Py_IS_TYPE(transport, c->loop->state->transport_type))
        return PyErr_Format(PyExc_TypeError, "transport: one of becket's is needed");
    Py_XSETREF(c->transport, (TransportObject *)Py_NewRef(transport));
    Py_RETURN_NONE;
}

/* A send that failed says nothing of what the peer had sent before: a socket would still give it.
 */
static void read_rest(ConnectionObject *c) {
    bk_stream *s = stream_of(c);
    bk_transport *t = s != NULL ? bk_stream_transport(s) : NULL;
    if (t == NULL || !bk_is_socket_transport(t) || c->eof || c->closed || c->receiver != 0)
        return;
    bk_room room;
    ssize_t n = 1;
    while (n > 0 && unread(c) < c->limit && connection_room(s, &room) == 0)
        if ((n = t->ops->read(t, room.base, room.size)) > 0) {
            c->used += n;
            c->arrived += (uint64_t)n;
        }
}

static PyObject *connection_lost(ConnectionObject *c, PyObject *e) {
    c->lost = true;
    stop_receiver(c);
    if (e != Py_None)
        Py_XSETREF(c->error, Py_NewRef(e));
    if (c->error != NULL)
        read_rest(c);
    Py_CLEAR(c->transport);
    Py_RETURN_NONE;
}

/* ---- Life ---- */

/* On a loop that blocking code turns. */
static ConnectionObject *make(PyTypeObject *type, LoopObject *loop) {
    ConnectionObject *c = (ConnectionObject *)type->tp_alloc(type, 0);
    if (c == NULL)
        return NULL;
    c->loop = (LoopObject *)Py_NewRef((PyObject *)loop);
    c->timeout_ns = -1;
    c->limit = READ_AHEAD;
    return c;
}

/* Connection(loop): not connected yet. */
static PyObject *connection_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs)) {
    module_state *state = state_of_type(type);
    PyObject *loop;
    if (state == NULL || !PyArg_ParseTuple(args, "O!:Connection", state->loop_type, &loop))
        return NULL;
    return (PyObject *)make(type, (LoopObject *)loop);
}

static int put_initial(ConnectionObject *c, const char *data, Py_ssize_t n) {
    if (n == 0)
        return 0;
    c->room = n > FIRST_ROOM ? n : FIRST_ROOM;
    c->input = PyBytes_FromStringAndSize(NULL, c->room);
    if (c->input == NULL)
        return -1;
    memcpy(PyBytes_AS_STRING(c->input), data, (size_t)n);
    c->used = n;
    return 0;
}

/* On failure the descriptor is still the caller's. */
static int attach(ConnectionObject *c, int fd, PyObject *extra) {
    LoopObject *loop = c->loop;
    PyObject *context = PyContext_CopyCurrent();
    TransportObject *t = context != NULL ? transport_new(loop, (PyObject *)c, context, NULL) : NULL;
    Py_XDECREF(context);
    if (t == NULL)
        return -1;
    if (extra != Py_None && PyDict_GET_SIZE(extra) > 0 && (t->extra = PyDict_Copy(extra)) == NULL) {
        Py_DECREF((PyObject *)t);
        return -1;
    }
    bk_transport *transport;
    bk_stream *s;
    int code = bk_socket_transport(loop->core, fd, &transport);
    if (code >= 0) {
        code = bk_stream_new_paused(loop->core, transport, &transport_plain, t, &s);
        if (code < 0) {
            bk_socket_transport_disown(transport);
            transport->ops->close(transport);
        }
    }
    if (code < 0)
        loop_raise(code);
    else if ((code = transport_attach(t, s)) == 0) {
        t->started = true;
        c->transport = (TransportObject *)Py_NewRef((PyObject *)t);
        c->paused = true; /* until somebody asks */
    }
    Py_DECREF((PyObject *)t); /* the stream has its own */
    return code < 0 ? -1 : 0;
}

static int adopt(ConnectionObject *c, int fd, PyObject *extra) {
    unsigned long before;
    if (drive_enter(c->loop, &before) < 0)
        return -1;
    int code = attach(c, fd, extra);
    drive_leave(c->loop, before);
    return code;
}

/* _adopt(loop, fd, initial=b"", extra=None): over a connected socket, which is the connection's
   from then on; initial was received already. */
static PyObject *connection_adopt(PyTypeObject *type, PyObject *args) {
    module_state *state = state_of_type(type);
    PyObject *loop, *extra = Py_None;
    const char *data = "";
    Py_ssize_t n = 0;
    int fd;
    if (state == NULL ||
        !PyArg_ParseTuple(args, "O!i|y#O:_adopt", state->loop_type, &loop, &fd, &data, &n, &extra))
        return NULL;
    if (extra != Py_None && !PyDict_Check(extra))
        return PyErr_Format(PyExc_TypeError, "extra: a dict or None is needed, not %R",
                            Py_TYPE(extra));
    if (loop_check_open((LoopObject *)loop) < 0)
        return NULL;
    ConnectionObject *c = make(type, (LoopObject *)loop);
    int code = -1;
    if (c != NULL && put_initial(c, data, n) == 0) {
        Py_BEGIN_CRITICAL_SECTION(loop);
        code = adopt(c, fd, extra);
        Py_END_CRITICAL_SECTION();
    }
    if (code < 0)
        Py_CLEAR(c);
    return (PyObject *)c;
}

/* _follow(away): what it moves is counted and timed there. */
static PyObject *connection_follow(ConnectionObject *c, PyObject *away) {
    if (c->transport == NULL)
        Py_RETURN_NONE;
    return PyObject_CallMethod(away, "follow", "O", (PyObject *)c->transport);
}

static int connection_traverse(ConnectionObject *c, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(c));
    Py_VISIT((PyObject *)c->loop);
    Py_VISIT((PyObject *)c->transport);
    Py_VISIT(c->error);
    return 0;
}

static int connection_clear(ConnectionObject *c) {
    Py_CLEAR(c->transport);
    Py_CLEAR(c->error);
    return 0;
}

static void connection_dealloc(ConnectionObject *c) {
    PyTypeObject *type = Py_TYPE(c);
    PyObject_GC_UnTrack(c);
    connection_clear(c);
    Py_CLEAR(c->input);
    Py_CLEAR(c->loop);
    type->tp_free(c);
    Py_DECREF(type);
}

/* ---- The rest ---- */

/* _begin_tls(spec, waiter): what was received and not taken goes into TLS. */
static PyObject *connection_begin_tls(ConnectionObject *c, PyObject *args) {
    PyObject *spec, *waiter;
    unsigned long before;
    if (!PyArg_ParseTuple(args, "OO:_begin_tls", &spec, &waiter) || check_sending(c) < 0)
        return NULL;
    if (c->receiver != 0)
        return PyErr_Format(PyExc_RuntimeError, "starttls() while another thread receives");
    if (enter(c, &before) < 0)
        return NULL;
    PyObject *held = PyBytes_FromStringAndSize(unread(c) > 0 ? input(c) : NULL, unread(c));
    PyObject *upgraded = held == NULL || c->transport == NULL
                             ? NULL
                             : PyObject_CallMethod((PyObject *)c->transport, "_start_tls", "OOOO",
                                                   spec, (PyObject *)c, waiter, held);
    if (upgraded != NULL) {
        c->from = c->used;
        c->paused = false;
        Py_XSETREF(c->transport, (TransportObject *)Py_NewRef(upgraded));
    } else if (!PyErr_Occurred()) {
        raise_os(ENOTCONN);
    }
    drive_leave(c->loop, before);
    Py_XDECREF(held);
    if (upgraded == NULL)
        return NULL;
    Py_DECREF(upgraded);
    Py_RETURN_NONE;
}

/* _wait(future): turn the loop until it is done, within the time-out. */
static PyObject *connection_wait(ConnectionObject *c, PyObject *future) {
    deadline d = {0, false};
    for (;;) {
        PyObject *done = PyObject_CallMethodNoArgs(future, c->loop->state->str_done);
        int yes = done == NULL ? -1 : PyObject_IsTrue(done);
        Py_XDECREF(done);
        if (yes < 0)
            return NULL;
        if (yes)
            return PyObject_CallMethod(future, "result", NULL);
        if (turn(c, &d) < 0)
            return NULL;
    }
}

static PyObject *connection_settimeout(ConnectionObject *c, PyObject *arg) {
    if (arg == Py_None) {
        c->timeout_ns = -1;
        Py_RETURN_NONE;
    }
    double seconds = PyFloat_AsDouble(arg);
    if (seconds == -1.0 && PyErr_Occurred())
        return NULL;
    if (!(seconds >= 0))
        return PyErr_Format(PyExc_ValueError, "timeout: %R is not 0 or more seconds", arg);
    double ns = seconds * 1e9;
    c->timeout_ns = ns >= 9.2e18 ? INT64_MAX : (int64_t)ns + ((double)(int64_t)ns < ns);
    Py_RETURN_NONE;
}

static PyObject *connection_gettimeout(ConnectionObject *c, PyObject *Py_UNUSED(ignored)) {
    if (c->timeout_ns < 0)
        Py_RETURN_NONE;
    return PyFloat_FromDouble((double)c->timeout_ns / 1e9);
}

static PyObject *connection_fileno(ConnectionObject *c, PyObject *Py_UNUSED(ignored)) {
    return PyLong_FromLong(c->transport != NULL && !c->closed ? c->transport->fd : -1);
}

/* Of one that is lost, its transport knows what it has remembered. */
static PyObject *connection_get_extra_info(ConnectionObject *c, PyObject *args) {
    PyObject *name, *fallback = Py_None;
    unsigned long before;
    if (!PyArg_ParseTuple(args, "U|O:get_extra_info", &name, &fallback))
        return NULL;
    if (c->transport == NULL)
        return Py_NewRef(fallback);
    int inside = stream_of(c) != NULL ? drive_enter(c->loop, &before) : -1;
    if (PyErr_Occurred()) {
        if (!lost_its_loop(c))
            return NULL;
        PyErr_Clear();
    }
    PyObject *found =
        c->transport == NULL
            ? Py_NewRef(fallback)
            : PyObject_CallMethod((PyObject *)c->transport, "get_extra_info", "OO", name, fallback);
    if (inside == 0)
        drive_leave(c->loop, before);
    return found;
}

static PyObject *connection_transport(ConnectionObject *c, void *Py_UNUSED(closure)) {
    return Py_NewRef(c->transport != NULL ? (PyObject *)c->transport : Py_None);
}

static PyObject *connection_closed(ConnectionObject *c, void *Py_UNUSED(closure)) {
    return PyBool_FromLong(c->closed);
}

/* ---- What threads may call ---- */

/* locked_…(): the same, with the loop's lock. The GIL is as good: then they are no more than that.
 */
#define LOCKED(name, parameters, arguments)                                                        \
    static PyObject *locked_##name parameters {                                                    \
        PyObject *result;                                                                          \
        Py_BEGIN_CRITICAL_SECTION(c->loop);                                                        \
        result = connection_##name arguments;                                                      \
        Py_END_CRITICAL_SECTION();                                                                 \
        return result;                                                                             \
    }
#define LOCKED_NONE(name) LOCKED(name, (ConnectionObject * c, PyObject * none), (c, none))
#define LOCKED_ONE(name) LOCKED(name, (ConnectionObject * c, PyObject * arg), (c, arg))
#define LOCKED_FAST(name)                                                                          \
    LOCKED(name, (ConnectionObject * c, PyObject *const *args, Py_ssize_t n), (c, args, n))
#define LOCKED_KEYWORDS(name)                                                                      \
    LOCKED(name, (ConnectionObject * c, PyObject * args, PyObject * kwargs), (c, args, kwargs))
#define LOCKED_GETTER(name) LOCKED(name, (ConnectionObject * c, void *closure), (c, closure))

LOCKED_FAST(recv)
LOCKED_KEYWORDS(recv_into)
LOCKED_FAST(readline)
LOCKED_ONE(readexactly)
LOCKED_KEYWORDS(readuntil)
LOCKED(iternext, (ConnectionObject * c), (c))
LOCKED_ONE(send)
LOCKED_ONE(sendall)
LOCKED_NONE(end)
LOCKED_NONE(end_input)
LOCKED_FAST(close)
LOCKED_ONE(follow)
LOCKED_NONE(abort)
LOCKED_ONE(begin_tls)
LOCKED_ONE(wait)
LOCKED_ONE(settimeout)
LOCKED_NONE(gettimeout)
LOCKED_NONE(fileno)
LOCKED_ONE(get_extra_info)
LOCKED_GETTER(transport)
LOCKED_GETTER(closed)

#define FAST(function) ((PyCFunction)(void (*)(void))(function))

static PyMethodDef connection_methods[] = {
    {"recv", FAST(locked_recv), METH_FASTCALL,
     "recv(bufsize=65536) -> bytes\n\nWhat has come, at most bufsize bytes; waits for some. b'': "
     "the end."},
    {"recv_into", FAST(locked_recv_into), METH_VARARGS | METH_KEYWORDS,
     "recv_into(buffer, nbytes=0) -> int\n\nAs recv(), into a buffer."},
    {"readline", FAST(locked_readline), METH_FASTCALL,
     "readline(limit=65536) -> bytes\n\nA line with its end; at most limit bytes of it (-1: all)."},
    {"readexactly", (PyCFunction)locked_readexactly, METH_O,
     "readexactly(n) -> bytes\n\nn bytes; asyncio.IncompleteReadError when the end comes first."},
    {"readuntil", FAST(locked_readuntil), METH_VARARGS | METH_KEYWORDS,
     "readuntil(separator=b'\\n', *, limit=65536) -> bytes\n\n"
     "All up to the separator, and it; asyncio.IncompleteReadError when the end comes first, "
     "asyncio.LimitOverrunError when more than limit bytes come before it."},
    {"send", (PyCFunction)locked_send, METH_O,
     "send(data) -> int\n\nTake all of data, which is sent as the kernel takes it, once what was "
     "taken before has been sent."},
    {"sendall", (PyCFunction)locked_sendall, METH_O,
     "sendall(data)\n\nSend data; returns when the kernel has all of it."},
    {"end", (PyCFunction)locked_end, METH_NOARGS,
     "end()\n\nOur direction is over once all is sent; the other goes on."},
    {"_end_input", (PyCFunction)locked_end_input, METH_NOARGS, NULL},
    {"_close", FAST(locked_close), METH_FASTCALL, NULL},
    {"_follow", (PyCFunction)locked_follow, METH_O, NULL},
    {"_abort", (PyCFunction)locked_abort, METH_NOARGS, NULL},
    {"_adopt", (PyCFunction)connection_adopt, METH_VARARGS | METH_CLASS,
     "_adopt(loop, fd, initial=b'', extra=None)\n\nOver a connected socket, which is its own then; "
     "initial was received from it already."},
    {"_begin_tls", (PyCFunction)locked_begin_tls, METH_VARARGS, NULL},
    {"_wait", (PyCFunction)locked_wait, METH_O, NULL},
    {"settimeout", (PyCFunction)locked_settimeout, METH_O,
     "settimeout(seconds)\n\nHow long a call may wait: TimeoutError. None: for ever; 0: not at "
     "all: "
     "BlockingIOError."},
    {"gettimeout", (PyCFunction)locked_gettimeout, METH_NOARGS,
     "gettimeout() -> float or None\n\nWhat settimeout() was given last."},
    {"fileno", (PyCFunction)locked_fileno, METH_NOARGS,
     "fileno() -> int\n\nThe descriptor that is read; -1: there is none."},
    {"get_extra_info", (PyCFunction)locked_get_extra_info, METH_VARARGS,
     "get_extra_info(name, default=None)\n\n"
     "As asyncio's transports': 'peername', 'socket', 'cipher', 'peercert', …"},
    {"connection_made", (PyCFunction)connection_made, METH_O, NULL},
    {"connection_lost", (PyCFunction)connection_lost, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef connection_members[] = {
    {"_loop", T_OBJECT, offsetof(ConnectionObject, loop), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef connection_getset[] = {
    {"_transport", (getter)locked_transport, NULL, NULL, NULL},
    {"_closed", (getter)locked_closed, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot connection_slots[] = {
    {Py_tp_doc, "The C half of becket.Connection."},
    {Py_tp_new, connection_new},
    {Py_tp_dealloc, connection_dealloc},
    {Py_tp_traverse, connection_traverse},
    {Py_tp_clear, connection_clear},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, locked_iternext},
    {Py_tp_methods, connection_methods},
    {Py_tp_members, connection_members},
    {Py_tp_getset, connection_getset},
    {0, NULL},
};

PyType_Spec connection_spec = {
    .name = "becket._becket.Connection",
    .basicsize = sizeof(ConnectionObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .slots = connection_slots,
};
