/*
 * transport.c: an asyncio.Transport over a core stream. The stream's callbacks call the
 * asyncio.Protocol; the transport's methods go to the stream. Made by the loop for a socket, and by
 * a listener for a connection that came in.
 *
 * The stream holds a reference to its transport until it is closed; then the transport lets go of
 * its protocol, so that no cycle is left to the collector.
 */
#include "becket_py.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <structmember.h>
#include <sys/socket.h>
#include <sys/un.h>

enum {
    SMALL_READ = 480,     /* to this size, Python's own allocator is quick */
    BIG_READ = 32 * 1024, /* after a read of this size, the next goes straight into bytes */
    SPARE_BYTES = 256 * 1024,
    TLS_ANSWER_BYTES = 64 * 1024, /* a certificate is the longest */
};

static const bk_protocol transport_big, transport_buffered, transport_copied, transport_reader,
    transport_connection;

/* After start_tls() the connection is the new transport's; the old one passes on what it is asked,
   and so never again sends in plain. */
static TransportObject *current(TransportObject *t) {
    while (t->above != NULL)
        t = t->above;
    return t;
}

/* ---- Calling the protocol ---- */

/* Call a method in a context; args is the object and its arguments, n in all, behind a place that
   is free. *calling: whether it is such a call that we are within, in the context already. */
int context_call(PyObject *context, bool *calling, PyObject *method, PyObject **args, size_t n,
                 PyObject **ret_result) {
    bool nested = *calling; /* pause_writing() within data_received() */
    if (!nested && PyContext_Enter(context) < 0)
        return -1;
    *calling = true;
    PyObject *result =
        PyObject_VectorcallMethod(method, args + 1, n | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    *calling = nested;
    if (result == NULL) {
        PyObject *type, *value, *tb;
        PyErr_Fetch(&type, &value, &tb);
        if (!nested)
            (void)PyContext_Exit(context);
        PyErr_Restore(type, value, tb);
        return -1;
    }
    if (!nested && PyContext_Exit(context) < 0) {
        Py_DECREF(result);
        return -1;
    }
    if (ret_result != NULL)
        *ret_result = result;
    else
        Py_DECREF(result);
    return 0;
}

/* Call protocol.method(arg) (arg NULL: without) in the transport's context. */
int transport_call(TransportObject *t, PyObject *method, PyObject *arg, PyObject **ret_result) {
    PyObject *protocol = Py_NewRef(t->protocol); /* set_protocol() may take its place meanwhile */
    PyObject *args[3] = {NULL, protocol, arg};
    int code = context_call(t->context, &t->calling, method, args, arg != NULL ? 2 : 1, ret_result);
    Py_DECREF(protocol);
    return code;
}

/* The exception that is set is reported, and connection_lost() will get it: asyncio's
   _fatal_error(). */
void transport_fail(TransportObject *t, const char *message) {
    exception_keep(&t->error);
    if (PyErr_ExceptionMatches(PyExc_OSError) && !t->loop->debug)
        PyErr_Clear(); /* connections break: that is no news, and connection_lost() gets it */
    else
        loop_report(t->loop, message, (PyObject *)t, t->protocol, NULL);
    t->closing = true;
    if (t->stream != NULL)
        bk_stream_abort(t->stream);
}

/* What is received was not taken: asyncio's TLS has one message for all. */
static void fail_call(TransportObject *t, const char *message) {
    transport_fail(t, t->tls != NULL ? "Fatal error on SSL protocol" : message);
}

/* ---- The stream's callbacks ---- */

/* Whether the end has begun: because somebody asked for it, or because sending failed. */
static bool is_closing(const TransportObject *t) {
    return t->closing || t->stream == NULL ||
           t->stream->flags & (BK_STREAM_CLOSING | BK_STREAM_CLOSED);
}

/* Whether the protocol is still to hear of anything but the end. */
static bool is_silent(TransportObject *t) {
    return t->protocol == NULL || t->loop->ending;
}

#ifndef BK_FREE_THREADING
/* Bytes that only we refer to, with other contents: as _PyBytes_Resize() leaves them. */
static PyObject *refill(PyObject *bytes, const void *data, size_t n) {
    memcpy(PyBytes_AS_STRING(bytes), data, n);
    PyBytes_AS_STRING(bytes)[n] = '\0';
    Py_SET_SIZE(bytes, (Py_ssize_t)n);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
    ((PyBytesObject *)bytes)->ob_shash = -1;
#pragma GCC diagnostic pop
    return Py_NewRef(bytes);
}

/* What the protocol gets. Few keep a message, and blocks of its size are beyond the caches of the
   allocators: so the last one is filled again where nobody has kept it, and it is not much too
   large. */
PyObject *transport_bytes(LoopObject *loop, const void *data, size_t n) {
    PyObject *last = loop->last;
    if (last != NULL && Py_REFCNT(last) == 1 && n <= loop->last_room &&
        n >= loop->last_room / 4 * 3)
        return refill(last, data, n);
    PyObject *bytes = PyBytes_FromStringAndSize(data, (Py_ssize_t)n);
    if (bytes != NULL && n > SMALL_READ) {
        loop->last = Py_NewRef(bytes);
        loop->last_room = n;
        Py_XDECREF(last);
    }
    return bytes;
}
#else
/* Whether nobody has kept it cannot be known. */
PyObject *transport_bytes(LoopObject *loop, const void *data, size_t n) {
    (void)loop;
    return PyBytes_FromStringAndSize(data, (Py_ssize_t)n);
}
#endif

static void received(bk_stream *s, const void *data, size_t n) {
    TransportObject *t = bk_stream_user(s);
    if (is_silent(t))
        return;
    PyObject *bytes = transport_bytes(t->loop, data, n);
    if (n >= BIG_READ && s->protocol == &transport_plain)
        bk_stream_set_protocol(s, &transport_big);
    if (bytes == NULL || transport_call(t, t->loop->state->str_data_received, bytes, NULL) < 0)
        fail_call(t, "Fatal error: protocol.data_received() call failed.");
    Py_XDECREF(bytes);
}

/* Much is read straight into a bytes object, which is then cut to what came. */
static int big_room(bk_stream *s, bk_room *ret_room) {
    LoopObject *loop = ((TransportObject *)bk_stream_user(s))->loop;
    /* glibc maps large blocks, a call each way and all pages anew, until one of that size has been
       freed; ours are cut before they are, so it would never learn. */
    if (!loop->reads_much) {
        loop->reads_much = true;
        PyMem_Free(PyMem_Malloc(2 * SPARE_BYTES));
    }
    if (loop->spare == NULL)
        loop->spare = PyBytes_FromStringAndSize(NULL, SPARE_BYTES);
    if (loop->spare == NULL) {
        PyErr_Clear();
        return -ENOMEM;
    }
    *ret_room = (bk_room){PyBytes_AS_STRING(loop->spare), SPARE_BYTES};
    return 0;
}

static void big_received(bk_stream *s, const void *data, size_t n) {
    TransportObject *t = bk_stream_user(s);
    if (n < BIG_READ) {
        bk_stream_set_protocol(s, &transport_plain);
        received(s, data, n);
        return;
    }
    if (is_silent(t))
        return;
    PyObject *bytes = t->loop->spare;
    t->loop->spare = NULL;
    if (_PyBytes_Resize(&bytes, (Py_ssize_t)n) < 0 ||
        transport_call(t, t->loop->state->str_data_received, bytes, NULL) < 0)
        fail_call(t, "Fatal error: protocol.data_received() call failed.");
    Py_XDECREF(bytes);
}

void loop_return_lent(LoopObject *loop) {
    PyBuffer_Release(&loop->lent_view);
    Py_CLEAR(loop->lent);
}

/* Of a bytearray or a memoryview, memory is good until somebody resizes it, and before the read
   nobody can: it need not stay exported, and a protocol may resize it whenever it is called. What
   other types do when a view is released is their own affair. */
static int lend(LoopObject *loop, PyObject *object, bk_room *ret_room) {
    Py_buffer view;
    if (PyObject_GetBuffer(object, &view, PyBUF_WRITABLE) < 0)
        return -1;
    *ret_room = (bk_room){view.buf, (size_t)view.len};
    if (PyByteArray_CheckExact(object) || PyMemoryView_Check(object))
        PyBuffer_Release(&view);
    else
        loop->lent_view = view;
    loop->lent = Py_NewRef(object);
    if (ret_room->size > 0)
        return 0;
    PyErr_SetString(PyExc_RuntimeError, "get_buffer() returned an empty buffer");
    return -1;
}

static int lend_room(TransportObject *t, bk_room *ret_room) {
    PyObject *hint = PyLong_FromLong(-1), *object = NULL;
    if (hint == NULL)
        return -1;
    loop_return_lent(t->loop);
    int code = transport_call(t, t->loop->state->str_get_buffer, hint, &object);
    Py_DECREF(hint);
    if (code == 0)
        code = lend(t->loop, object, ret_room);
    Py_XDECREF(object);
    return code;
}

static int buffered_room(bk_stream *s, bk_room *ret_room) {
    TransportObject *t = bk_stream_user(s);
    if (is_silent(t))
        return -ECANCELED;
    if (lend_room(t, ret_room) == 0)
        return 0;
    fail_call(t, "Fatal error: protocol.get_buffer() call failed.");
    return -ECANCELED;
}

static void buffered_received(bk_stream *s, const void *data, size_t n) {
    TransportObject *t = bk_stream_user(s);
    (void)data;
    loop_return_lent(t->loop);
    if (is_silent(t))
        return;
    PyObject *count = PyLong_FromSize_t(n);
    if (count == NULL || transport_call(t, t->loop->state->str_buffer_updated, count, NULL) < 0)
        fail_call(t, "Fatal error: protocol.buffer_updated() call failed.");
    Py_XDECREF(count);
}

/* Between lending room and filling it, TLS may run Python, which could take the memory away: so
   what was opened is copied, into room that is asked for when there is something. */
static void copied_received(bk_stream *s, const void *data, size_t n) {
    TransportObject *t = bk_stream_user(s);
    const char *from = data;
    while (n > 0 && !is_silent(t) && t->stream != NULL && s->protocol == &transport_copied) {
        bk_room room;
        if (lend_room(t, &room) < 0) {
            fail_call(t, "Fatal error: protocol.get_buffer() call failed.");
            return;
        }
        size_t part = n < room.size ? n : room.size;
        memcpy(room.base, from, part);
        from += part;
        n -= part;
        buffered_received(s, room.base, part);
    }
    if (n > 0 && !is_silent(t) && !is_closing(t)) /* another protocol goes on */
        s->protocol->received != NULL ? s->protocol->received(s, from, n) : (void)0;
}

static void reader_received(bk_stream *s, const void *data, size_t n) {
    TransportObject *t = bk_stream_user(s);
    if (!is_silent(t) && reader_feed(t, data, n) < 0)
        fail_call(t, "Fatal error: protocol.data_received() call failed.");
}

/* As in asyncio, a protocol that was told to pause is told to go on when what is queued has been
   sent, even if its transport is closing, and may write a last time then: TLS its close_notify. So
   the stream is closed after that. Answers whether it has to wait. */
static bool closes_later(TransportObject *t) {
    return !t->is_pipe && t->tls == NULL && t->stream != NULL &&
           t->stream->flags & BK_STREAM_BLOCKED &&
           !(t->stream->flags & (BK_STREAM_CLOSING | BK_STREAM_CLOSED));
}

static void warn(TransportObject *t, const char *text) {
    PyObject *result = PyObject_CallMethod(t->loop->state->logger, "warning", "s", text);
    if (result == NULL)
        PyErr_WriteUnraisable((PyObject *)t);
    Py_XDECREF(result);
}

static int ended(bk_stream *s) {
    TransportObject *t = bk_stream_user(s);
    PyObject *result = NULL;
    loop_return_lent(t->loop);
    if (is_silent(t))
        return 0;
    if (transport_call(t, t->loop->state->str_eof_received, NULL, &result) < 0) {
        transport_fail(t, t->tls != NULL ? "Error calling eof_received()"
                                         : "Fatal error: protocol.eof_received() call failed.");
        return 0;
    }
    int keep = t->is_pipe ? 0 : PyObject_IsTrue(result); /* a pipe has no other half */
    Py_DECREF(result);
    if (keep > 0 && t->tls != NULL) { /* as asyncio has it */
        keep = 0;
        warn(t, "returning true from eof_received() has no effect when using ssl");
    }
    if (keep <= 0)
        t->closing = true;
    if (keep <= 0 && t->tls != NULL) /* a peer that reads nothing is not waited for for ever */
        bk_tls_transport_limit_end(bk_stream_transport(s));
    if (keep < 0)
        PyErr_Clear();
    return keep > 0 || closes_later(t);
}

static void tell_flow(TransportObject *t, PyObject *method, const char *message) {
    if (!is_silent(t) && transport_call(t, method, NULL, NULL) < 0)
        loop_report(t->loop, message, (PyObject *)t, t->protocol, NULL);
}

static void blocked(bk_stream *s) {
    TransportObject *t = bk_stream_user(s);
    tell_flow(t, t->loop->state->str_pause_writing, "protocol.pause_writing() failed");
}

static void writable(bk_stream *s) {
    TransportObject *t = bk_stream_user(s);
    tell_flow(t, t->loop->state->str_resume_writing, "protocol.resume_writing() failed");
    if (t->closing && t->stream != NULL && !closes_later(t))
        bk_stream_close(s);
}

/* What connection_lost() gets: None for an end in good order, or one that we made. */
static PyObject *reason(TransportObject *t, int why) {
    if (t->error != NULL)
        return Py_NewRef(t->error);
    if (why == 0 || why == -ECANCELED)
        return Py_NewRef(Py_None);
    PyObject *e =
        t->tls != NULL ? tls_exception(t, why) : stream_exception(t->loop->state, t->stream, why);
    if (e == NULL) {
        PyErr_Clear();
        return Py_NewRef(Py_None);
    }
    return e;
}

/* The handshake is over: the connection begins, or goes on. */
static int upgraded(bk_stream *s) {
    TransportObject *t = bk_stream_user(s);
    t->tls->open = true;
    if (is_silent(t))
        return -ECANCELED;
    if (!t->started)
        transport_made(t);
    tls_wake(t, t->error);
    return 0;
}

/* It came to nothing. asyncio tells of that in debug mode only. */
static void handshake_failed(TransportObject *t, PyObject *e) {
    if (t->tls->waiter != NULL) {
        tls_wake(t, e != Py_None ? e : PyExc_ConnectionAbortedError);
        return;
    }
    if (e == Py_None || !t->loop->debug)
        return;
    PyErr_SetObject((PyObject *)Py_TYPE(e), e);
    loop_report(t->loop, "Error on transport creation for incoming connection", (PyObject *)t,
                t->protocol, NULL);
}

/* The socket object must not close the descriptor once more; and if somebody closed it, or took the
   descriptor from it, then the descriptor is no longer ours to close. */
static void part_from_socket(TransportObject *t) {
    if (t->socket == NULL)
        return;
    if (t->is_pipe) {
        bk_fd_transport_disown(bk_stream_transport(t->stream));
        PyObject *result = PyObject_CallMethodNoArgs(t->socket, t->loop->state->str_close);
        if (result == NULL)
            PyErr_WriteUnraisable(t->socket);
        Py_XDECREF(result);
        return;
    }
    PyObject *fd = PyObject_CallMethodNoArgs(t->socket, t->loop->state->str_detach);
    if (fd == NULL || PyLong_AsLong(fd) != t->fd) {
        PyErr_Clear();
        bk_watch_forget(t->loop->core, t->fd);
        bk_socket_transport_disown(bk_tls_transport_innermost(bk_stream_transport(t->stream)));
    }
    Py_XDECREF(fd);
}

/* The server knows the transport that it was given, the first. */
static PyObject *bottom_of(TransportObject *t) {
    while (t->below != NULL)
        t = t->below;
    return (PyObject *)t;
}

/* Each layer refers to those beside it, both ways. */
static void clear_below(TransportObject *t) {
    TransportObject *below = t->below;
    t->below = NULL;
    if (below != NULL)
        clear_below(below);
    Py_XDECREF((PyObject *)below);
}

static void detach_from_server(TransportObject *t) {
    if (t->server == NULL)
        return;
    PyObject *server = t->server, *arg = bottom_of(t);
    t->server = NULL;
    if (t->loop->ending) { /* nobody can be told on a loop that is closed */
        Py_DECREF(server);
        return;
    }
    PyObject *result = PyObject_CallMethodObjArgs(server, t->loop->state->str__detach,
                                                  PY_VERSION_HEX >= 0x030D0000 ? arg : NULL, NULL);
    if (result == NULL)
        PyErr_WriteUnraisable(server);
    Py_XDECREF(result);
    Py_DECREF(server);
}

static PyObject *find_extra(TransportObject *t, const char *name);

/* Who still has the transport may ask it who that was, as asyncio's transports can tell. */
static void remember_names(TransportObject *t) {
    static const char *const names[] = {"peername", "sockname", "pipe"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (t->extra != NULL && PyDict_GetItemString(t->extra, names[i]) != NULL)
            continue;
        PyObject *found = find_extra(t, names[i]);
        if (found != NULL && t->extra == NULL)
            t->extra = PyDict_New();
        if (found != NULL && t->extra != NULL)
            (void)PyDict_SetItemString(t->extra, names[i], found);
        Py_XDECREF(found);
        PyErr_Clear();
    }
}

static void closed(bk_stream *s, int why) {
    TransportObject *t = bk_stream_user(s);
    if (t->stream == NULL) { /* never attached: its maker is dealing with it */
        return;
    }
    bool shaking = t->tls != NULL && !t->tls->open;
    if (t->loop->ending) {
        if (!t->closing)
            warn_unclosed((PyObject *)t);
    } else if (shaking && !t->started) {
        PyObject *e = reason(t, why);
        handshake_failed(t, e);
        Py_DECREF(e);
    } else if (t->protocol != NULL && t->started) {
        PyObject *e = reason(t, why);
        if (shaking)
            tls_wake(t, e != Py_None ? e : PyExc_ConnectionAbortedError);
        if (transport_call(t, t->loop->state->str_connection_lost, e, NULL) < 0)
            loop_report(t->loop, "Exception in connection_lost()", (PyObject *)t, t->protocol,
                        NULL);
        Py_DECREF(e);
    }
    detach_from_server(t);
    t->closing = true;
    (void)loop_owns_fd(t->loop, t->fd, NULL);
    Py_CLEAR(t->protocol);
    Py_CLEAR(t->reader);
    Py_CLEAR(t->error);
    bk_tls_transport_close_engines(bk_stream_transport(s)); /* ours go with us */
    if (t->tls != NULL)
        Py_CLEAR(t->tls->waiter);
    if (Py_REFCNT(t) > 1)
        remember_names(t);
    part_from_socket(t);
    t->stream = NULL;
    Py_CLEAR(t->socket);
    clear_below(t);
    Py_DECREF((PyObject *)t); /* the stream's */
}

bool transport_is_ours(const bk_stream *s) {
    return s->protocol->closed == closed && s->user != NULL;
}

#define COMMON                                                                                     \
    .size = sizeof(bk_protocol), .ended = ended, .blocked = blocked, .writable = writable,         \
    .closed = closed, .upgraded = upgraded

const bk_protocol transport_plain = {COMMON, .name = "asyncio.Protocol", .received = received};
static const bk_protocol transport_big = {COMMON, .name = "asyncio.Protocol, much",
                                          .room = big_room, .received = big_received};
static const bk_protocol transport_buffered = {COMMON, .name = "asyncio.BufferedProtocol",
                                               .room = buffered_room,
                                               .received = buffered_received};
static const bk_protocol transport_copied = {COMMON, .name = "asyncio.BufferedProtocol, copied",
                                             .received = copied_received};
static const bk_protocol transport_reader = {COMMON, .name = "asyncio.StreamReaderProtocol",
                                             .received = reader_received};
static const bk_protocol transport_connection = {.size = sizeof(bk_protocol),
                                                 .name = "becket.Connection",
                                                 .room = connection_room,
                                                 .received = connection_received,
                                                 .ended = connection_ended,
                                                 .closed = closed,
                                                 .upgraded = upgraded};

/* ---- Life ---- */

/* Which of the tables above fits the protocol. */
int transport_adopt_protocol(TransportObject *t, PyObject *protocol) {
    bool blocking = PyObject_TypeCheck(protocol, t->loop->state->connection_type);
    int buffered = blocking ? 0 : PyObject_IsInstance(protocol, t->loop->state->buffered_protocol);
    if (buffered < 0)
        return -1;
    Py_XSETREF(t->protocol, Py_NewRef(protocol));
    Py_CLEAR(t->reader);
    const bk_protocol *table = blocking              ? &transport_connection
                               : buffered && t->tls  ? &transport_copied
                               : buffered            ? &transport_buffered
                               : reader_recognise(t) ? &transport_reader
                                                     : &transport_plain;
    if (t->stream != NULL)
        bk_stream_set_protocol(t->stream, table);
    return 0;
}

TransportObject *transport_new(LoopObject *loop, PyObject *protocol, PyObject *context,
                               PyObject *server) {
    PyTypeObject *type = loop->state->transport_type;
    TransportObject *t = (TransportObject *)type->tp_alloc(type, 0);
    if (t == NULL)
        return NULL;
    t->fd = -1;
    t->loop = (LoopObject *)Py_NewRef((PyObject *)loop);
    t->context = Py_NewRef(context);
    t->protocol = Py_NewRef(protocol);
    if (server != NULL && server != Py_None)
        t->server = Py_NewRef(server);
    return t;
}

static int attach_to_server(TransportObject *t) {
    if (t->server == NULL)
        return 0;
    PyObject *arg = PY_VERSION_HEX >= 0x030D0000 ? (PyObject *)t : NULL;
    PyObject *result =
        PyObject_CallMethodObjArgs(t->server, t->loop->state->str__attach, arg, NULL);
    if (result == NULL) {
        Py_CLEAR(t->server); /* it was not attached, and must not be detached */
        return -1;
    }
    Py_DECREF(result);
    return 0;
}

/* The stream takes a reference. On failure the stream is aborted, and the exception is set. */
int transport_attach(TransportObject *t, bk_stream *s) {
    size_t size = sizeof t->fd;
    bk_stream_set_user(s, Py_NewRef((PyObject *)t));
    t->stream = s;
    bk_stream_set_protocol(s, &transport_plain); /* whatever fails below, closed() lets go of us */
    bk_stream_pause(s);
    if (t->fd < 0)
        (void)bk_stream_query(s, BK_QUERY_FD, &t->fd, &size);
    int code = loop_owns_fd(t->loop, t->fd, (PyObject *)t) ? 0 : -1;
    if (code < 0)
        PyErr_NoMemory();
    if (code < 0 || transport_adopt_protocol(t, t->protocol) < 0 || attach_to_server(t) < 0) {
        Py_CLEAR(t->server); /* it was not attached, and must not be detached */
        t->closing = true;
        bk_stream_abort(s);
        return -1;
    }
    return 0;
}

/* The connection begins: connection_made(), then reading, unless the protocol paused it. */
void transport_made(TransportObject *t) {
    if (t->stream == NULL || t->started || t->closing)
        return;
    t->started = true;
    if (transport_call(t, t->loop->state->str_connection_made, (PyObject *)t, NULL) < 0) {
        if (t->tls != NULL) {
            transport_fail(t, "Fatal error: protocol.buffer_updated() call failed.");
            return;
        }
        loop_report(t->loop, "Exception in connection_made()", (PyObject *)t, t->protocol, NULL);
        t->closing = true;
        if (t->stream != NULL)
            bk_stream_abort(t->stream);
        return;
    }
    if (t->stream != NULL && !t->paused && !t->closing && !t->writes_only)
        bk_stream_resume(t->stream);
}

/* What we only write to has become readable: its reader has closed it. */
static void reader_gone(void *arg, unsigned events) {
    TransportObject *t = arg;
    (void)events;
    if (t->stream == NULL || t->stream->flags & BK_STREAM_CLOSED)
        return;
    t->closing = true;
    bk_stream_fail(t->stream, t->stream->queued > 0 ? -EPIPE : 0);
}

int transport_watch_reader(TransportObject *t) {
    int code = bk_watch_set(t->loop->core, t->fd, BK_READ, reader_gone, t);
    return code < 0 ? loop_raise(code) : 0;
}

static int transport_traverse(TransportObject *t, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(t));
    Py_VISIT(t->extra);
    Py_VISIT(t->dict);
    Py_VISIT((PyObject *)t->loop);
    Py_VISIT(t->protocol);
    Py_VISIT(t->context);
    Py_VISIT(t->server);
    Py_VISIT(t->socket);
    Py_VISIT(t->reader);
    Py_VISIT(t->error);
    Py_VISIT((PyObject *)t->above);
    Py_VISIT((PyObject *)t->below);
    return tls_state_traverse(t->tls, visit, arg);
}

static int transport_clear(TransportObject *t) {
    Py_CLEAR(t->extra);
    Py_CLEAR(t->dict);
    Py_CLEAR(t->protocol);
    Py_CLEAR(t->context);
    Py_CLEAR(t->server);
    Py_CLEAR(t->socket);
    Py_CLEAR(t->reader);
    Py_CLEAR(t->error);
    Py_CLEAR(t->above);
    Py_CLEAR(t->below);
    return 0;
}

static void transport_dealloc(TransportObject *t) {
    PyTypeObject *type = Py_TYPE(t);
    PyObject_GC_UnTrack(t);
    if (t->weakrefs != NULL)
        PyObject_ClearWeakRefs((PyObject *)t);
    transport_clear(t);
    tls_state_free(t->tls);
    LoopObject *loop = t->loop;
    t->loop = NULL;
    type->tp_free(t);
    Py_XDECREF((PyObject *)loop);
    Py_DECREF(type);
}

/* ---- What is asked of it ---- */

PyObject *address_to_python(const void *address, size_t size) {
    const struct sockaddr *any = address;
    char text[INET6_ADDRSTRLEN];
    if (size < sizeof any->sa_family)
        return PyUnicode_FromString("");
    if (any->sa_family == AF_INET) {
        const struct sockaddr_in *in = address;
        inet_ntop(AF_INET, &in->sin_addr, text, sizeof text);
        return Py_BuildValue("(si)", text, ntohs(in->sin_port));
    }
    if (any->sa_family == AF_INET6) {
        const struct sockaddr_in6 *in6 = address;
        inet_ntop(AF_INET6, &in6->sin6_addr, text, sizeof text);
        return Py_BuildValue("(siII)", text, ntohs(in6->sin6_port), ntohl(in6->sin6_flowinfo),
                             in6->sin6_scope_id);
    }
    if (any->sa_family == AF_UNIX) {
        const struct sockaddr_un *un = address;
        size_t n = size - offsetof(struct sockaddr_un, sun_path);
        if (size <= offsetof(struct sockaddr_un, sun_path))
            n = 0;
        if (n > 0 && un->sun_path[0] == '\0') /* Linux: abstract */
            return PyBytes_FromStringAndSize(un->sun_path, (Py_ssize_t)n);
        return PyUnicode_DecodeFSDefaultAndSize(un->sun_path, (Py_ssize_t)strnlen(un->sun_path, n));
    }
    Py_RETURN_NONE;
}

static bool is_tls_name(const char *name) {
    return strcmp(name, "sslcontext") == 0 || strcmp(name, "ssl_object") == 0 ||
           strcmp(name, "peercert") == 0 || strcmp(name, "cipher") == 0 ||
           strcmp(name, "compression") == 0;
}

/* Whether it is TLS of an endpoint's, which is the core's own. */
static bool is_core_tls(TransportObject *t) {
    int is_tls = 0;
    size_t size = sizeof is_tls;
    return t->tls == NULL && t->stream != NULL &&
           bk_stream_query(t->stream, BK_QUERY_TLS, &is_tls, &size) == 0 && is_tls;
}

/* An endpoint may be anything. */
static bool is_socket(const TransportObject *t) {
    return bk_is_socket_transport(bk_tls_transport_innermost(bk_stream_transport(t->stream)));
}

/* A socket object for the descriptor. It is to know that this does not block: its dup() would make
   it block otherwise, and with it ours. */
static PyObject *new_socket(TransportObject *t) {
    PyObject *names = PyTuple_Pack(1, t->loop->state->str_fileno);
    PyObject *fd = PyLong_FromLong(t->fd), *socket = NULL;
    if (names != NULL && fd != NULL)
        socket = PyObject_Vectorcall(t->loop->state->socket_type, &fd, 0, names);
    Py_XDECREF(names);
    Py_XDECREF(fd);
    PyObject *result =
        socket == NULL ? NULL : PyObject_CallMethod(socket, "setblocking", "O", Py_False);
    if (socket != NULL && result == NULL) { /* the descriptor is not its own */
        PyObject *type, *value, *tb;
        PyErr_Fetch(&type, &value, &tb);
        PyObject *detached = PyObject_CallMethodNoArgs(socket, t->loop->state->str_detach);
        Py_XDECREF(detached);
        Py_CLEAR(socket);
        PyErr_Restore(type, value, tb);
    }
    Py_XDECREF(result);
    return socket;
}

static PyObject *make_socket(TransportObject *t) {
    if (t->socket == NULL && t->stream != NULL)
        t->socket = new_socket(t);
    if (t->socket == NULL)
        return NULL;
    return PyObject_CallOneArg(t->loop->state->transport_socket, t->socket);
}

/* What asyncio has ready in the dictionary from the start, we find when it is asked for: NULL
   without an exception where there is no answer. */
static PyObject *find_extra(TransportObject *t, const char *name) {
    char address[128];
    size_t size = sizeof address;
    if (t->tls != NULL && strcmp(name, "sslcontext") == 0)
        return Py_NewRef(t->tls->spec.context);
    if (t->tls != NULL && t->tls->open && is_tls_name(name))
        return PyObject_CallMethod((PyObject *)t->loop, "_tls_info", "OOs", (PyObject *)t,
                                   t->tls->engine, name);
    if (is_tls_name(name) && is_core_tls(t))
        return PyObject_CallMethod((PyObject *)t->loop, "_tls_info", "OOs", (PyObject *)t, Py_None,
                                   name);
    if (is_tls_name(name))
        return NULL;
    if (t->above != NULL)
        return PyObject_CallMethod((PyObject *)current(t), "get_extra_info", "s", name);
    if (t->stream == NULL)
        return NULL;
    if (t->is_pipe)
        return strcmp(name, "pipe") == 0 ? Py_NewRef(t->socket) : NULL;
    if (strcmp(name, "socket") == 0)
        return is_socket(t) ? make_socket(t) : NULL;
    bool peer = strcmp(name, "peername") == 0;
    if (!peer && strcmp(name, "sockname") != 0)
        return NULL;
    int code = bk_stream_query(t->stream, peer ? BK_QUERY_PEER : BK_QUERY_LOCAL, address, &size);
    return code < 0 ? NULL : address_to_python(address, size);
}

static PyObject *transport_get_extra_info(TransportObject *t, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"name", "default", NULL};
    PyObject *name, *fallback = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|O:get_extra_info", names, &name, &fallback))
        return NULL;
    if (t->extra == NULL && (t->extra = PyDict_New()) == NULL)
        return NULL;
    PyObject *known = PyDict_GetItemWithError(t->extra, name);
    if (known != NULL || PyErr_Occurred())
        return Py_XNewRef(known);
    const char *text = PyUnicode_Check(name) ? PyUnicode_AsUTF8(name) : NULL;
    PyObject *found = text != NULL ? find_extra(t, text) : NULL;
    if (found == NULL) {
        if (PyErr_Occurred())
            return NULL;
        return Py_NewRef(fallback);
    }
    if (PyDict_SetItem(t->extra, name, found) < 0)
        Py_CLEAR(found);
    return found;
}

static PyObject *transport_set_extra(TransportObject *t, PyObject *args) {
    PyObject *name, *value;
    if (!PyArg_ParseTuple(args, "OO:_set_extra", &name, &value) ||
        (t->extra == NULL && (t->extra = PyDict_New()) == NULL) ||
        PyDict_SetItem(t->extra, name, value) < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* ---- Flow of what is read ---- */

static PyObject *transport_is_reading(TransportObject *t, PyObject *Py_UNUSED(ignored)) {
    t = current(t);
    return PyBool_FromLong(t->started && !is_closing(t) && !t->paused);
}

static PyObject *transport_pause_reading(TransportObject *t, PyObject *Py_UNUSED(ignored)) {
    t = current(t);
    if (!is_closing(t) && !t->paused) {
        t->paused = true;
        bk_stream_pause(t->stream);
    }
    Py_RETURN_NONE;
}

static PyObject *transport_resume_reading(TransportObject *t, PyObject *Py_UNUSED(ignored)) {
    t = current(t);
    if (!is_closing(t) && t->paused) {
        t->paused = false;
        if (t->started && !t->writes_only)
            bk_stream_resume(t->stream);
    }
    Py_RETURN_NONE;
}

/* ---- Writing ---- */

/* Whether a write, of nothing even, is an error. */
static bool refuses(const TransportObject *t) {
    return t->eof || t->sending_file;
}

static int refuse(const TransportObject *t, const char *method) {
    const char *format =
        t->eof ? "Cannot call %s() after write_eof()" : "unable to %s; sendfile is in progress";
    PyErr_Format(PyExc_RuntimeError, format, method);
    return -1;
}

/* Whether a write may go to the stream: 1, 0 (lost already), or -1 with an exception. */
static int may_write(TransportObject *t) {
    if (refuses(t))
        return refuse(t, "write");
    if (t->stream != NULL && !(t->stream->flags & (BK_STREAM_CLOSING | BK_STREAM_CLOSED)))
        return 1;
    if (t->lost_writes >= LOST_WRITES_LOGGED)
        warn(t, t->tls != NULL ? "SSL connection is closed" : "socket.send() raised exception.");
    else
        t->lost_writes++;
    return 0;
}

static int write_stream(TransportObject *t, const void *data, Py_ssize_t n, PyObject *owner) {
    int code = bk_stream_write(t->stream, data, (size_t)n, owner != NULL ? object_release : BK_COPY,
                               Py_XNewRef(owner));
    if (code >= 0 && !t->loop->core->turning)
        bk_stream_flush(t->stream); /* no callback is there whose return it could wait for */
    return code < 0 && code != -EPIPE ? loop_raise(code) : 0;
}

/* bytes cannot change and are sent by reference; anything else is sent or copied before we return,
   for its owner may change it. */
static int write_object(TransportObject *t, PyObject *data) {
    Py_buffer view;
    if (PyBytes_CheckExact(data)) {
        Py_ssize_t n = PyBytes_GET_SIZE(data);
        int code = n == 0 && !refuses(t) ? 0 : may_write(t);
        return code <= 0 ? code : write_stream(t, PyBytes_AS_STRING(data), n, data);
    }
    if (!PyBytes_Check(data) && !PyByteArray_Check(data) && !PyMemoryView_Check(data)) {
        const char *format = t->tls != NULL ? "data: expecting a bytes-like instance, got %.100s"
                                            : "data argument must be a bytes-like object, not "
                                              "'%.100s'";
        PyErr_Format(PyExc_TypeError, format, _PyType_Name(Py_TYPE(data)));
        return -1;
    }
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0)
        return -1;
    int code = view.len == 0 && !refuses(t) ? 0 : may_write(t);
    if (code > 0)
        code = write_stream(t, view.buf, view.len, NULL);
    PyBuffer_Release(&view);
    return code;
}

static PyObject *transport_write(TransportObject *t, PyObject *data) {
    t = current(t);
    if (write_object(t, data) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *transport_writelines(TransportObject *t, PyObject *lines) {
    t = current(t);
    if (refuses(t)) { /* of nothing, too; before 3.12, asyncio's was a write() */
        (void)refuse(t, PY_VERSION_HEX >= 0x030C0000 && !t->is_pipe ? "writelines" : "write");
        return NULL;
    }
    PyObject *iterator = PyObject_GetIter(lines), *line;
    if (iterator == NULL)
        return NULL;
    while ((line = PyIter_Next(iterator)) != NULL) {
        int code = write_object(t, line);
        Py_DECREF(line);
        if (code < 0)
            break;
    }
    Py_DECREF(iterator);
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *transport_close(TransportObject *t, PyObject *Py_UNUSED(ignored));

static PyObject *transport_write_eof(TransportObject *t, PyObject *Py_UNUSED(ignored)) {
    t = current(t);
    if (t->tls != NULL) { /* as in asyncio */
        PyErr_SetNone(PyExc_NotImplementedError);
        return NULL;
    }
    if (is_closing(t) || t->eof)
        Py_RETURN_NONE;
    if (t->writes_only) /* a pipe that is written ends by being closed */
        return transport_close(t, NULL);
    int code = bk_stream_end(t->stream);
    if (code < 0) {
        loop_raise(code);
        return NULL;
    }
    t->eof = true;
    Py_RETURN_NONE;
}

static PyObject *transport_can_write_eof(TransportObject *t, PyObject *Py_UNUSED(ignored)) {
    return PyBool_FromLong(t->tls == NULL);
}

static PyObject *transport_get_write_buffer_size(TransportObject *t, PyObject *Py_UNUSED(ignored)) {
    t = current(t);
    if (t->stream == NULL)
        return PyLong_FromLong(0);
    bk_stream_flush(t->stream); /* what waits for the callback's return is not yet refused */
    return PyLong_FromSize_t(bk_stream_queued(t->stream));
}

static PyObject *transport_get_write_buffer_limits(TransportObject *t,
                                                   PyObject *Py_UNUSED(ignored)) {
    t = current(t);
    unsigned low = t->stream != NULL ? t->stream->low : 0;
    unsigned high = t->stream != NULL ? t->stream->high : 0;
    return Py_BuildValue("(II)", low, high);
}

/* set_write_buffer_limits(high=None, low=None), as asyncio has it. */
int transport_parse_water(PyObject *args, PyObject *kwargs, Py_ssize_t most, size_t *ret_low,
                          size_t *ret_high) {
    static char *names[] = {"high", "low", NULL};
    PyObject *high_arg = Py_None, *low_arg = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|OO:set_write_buffer_limits", names, &high_arg,
                                     &low_arg))
        return -1;
    Py_ssize_t low = low_arg == Py_None ? -1 : PyNumber_AsSsize_t(low_arg, PyExc_OverflowError);
    if (low == -1 && PyErr_Occurred())
        return -1;
    Py_ssize_t high = high_arg == Py_None ? (low_arg == Py_None ? most : 4 * low)
                                          : PyNumber_AsSsize_t(high_arg, PyExc_OverflowError);
    if (high == -1 && PyErr_Occurred())
        return -1;
    if (low_arg == Py_None)
        low = high < 0 ? -1 : high / 4;
    if (!(high >= low && low >= 0)) {
        PyErr_Format(PyExc_ValueError, "high (%R) must be >= low (%zd) must be >= 0", high_arg,
                     low);
        return -1;
    }
    if (high > (Py_ssize_t)UINT32_MAX)
        high = UINT32_MAX;
    *ret_low = (size_t)(low < high ? low : high);
    *ret_high = (size_t)high;
    return 0;
}

static PyObject *transport_set_write_buffer_limits(TransportObject *t, PyObject *args,
                                                   PyObject *kwargs) {
    size_t low, high;
    t = current(t);
    if (transport_parse_water(args, kwargs, t->tls != NULL ? TLS_HIGH_WATER : BK_WATER_HIGH, &low,
                              &high) < 0)
        return NULL;
    if (t->stream != NULL)
        (void)bk_stream_set_water(t->stream, low, high);
    Py_RETURN_NONE;
}

/* ---- The end ---- */

static PyObject *transport_close(TransportObject *t, PyObject *Py_UNUSED(ignored)) {
    t = current(t);
    if (t->closing)
        Py_RETURN_NONE;
    t->closing = true;
    if (t->tls != NULL && !t->tls->open &&
        t->stream != NULL) { /* as asyncio: nothing to wait for */
        bk_stream_abort(t->stream);
        Py_RETURN_NONE;
    }
    if (t->tls != NULL && t->stream != NULL)
        bk_tls_transport_limit_end(bk_stream_transport(t->stream));
    if (closes_later(t))
        bk_stream_pause(t->stream);
    else if (t->stream != NULL)
        bk_stream_close(t->stream);
    Py_RETURN_NONE;
}

/* asyncio sends in write(), so what was written before abort() has gone as far as it would. */
static PyObject *transport_abort(TransportObject *t, PyObject *Py_UNUSED(ignored)) {
    t = current(t);
    t->closing = true;
    if (t->stream != NULL) {
        bk_stream_flush(t->stream);
        bk_stream_abort(t->stream);
    }
    Py_RETURN_NONE;
}

/* asyncio.sslproto and others end a transport with an exception by these names. */
static PyObject *transport_force_close(TransportObject *t, PyObject *e) {
    t = current(t);
    if (t->error == NULL && e != Py_None && PyExceptionInstance_Check(e))
        t->error = Py_NewRef(e);
    return transport_abort(t, NULL);
}

/* What is known of the connection below TLS is true above it too. */
static int copy_extra(TransportObject *t, TransportObject *n) {
    static const char *const own[] = {"ssl_object", "sslcontext", "peercert", "cipher",
                                      "compression"};
    n->extra = t->extra != NULL ? PyDict_Copy(t->extra) : NULL;
    if (n->extra == NULL)
        return t->extra != NULL ? -1 : 0;
    for (size_t i = 0; i < sizeof own / sizeof own[0]; i++)
        if (PyDict_DelItemString(n->extra, own[i]) < 0)
            PyErr_Clear();
    return 0;
}

/* _tls_query(what) -> bytes or None: the answer to a BK_QUERY_TLS_…, as the core gives it. */
static PyObject *transport_tls_query(TransportObject *t, PyObject *arg) {
    long what = PyLong_AsLong(arg);
    size_t size = TLS_ANSWER_BYTES;
    if (what == -1 && PyErr_Occurred())
        return NULL;
    char *room = PyMem_Malloc(size);
    if (room == NULL)
        return PyErr_NoMemory();
    int code = t->stream == NULL ? -ENOTSUP : bk_stream_query(t->stream, (int)what, room, &size);
    PyObject *answer =
        code < 0 ? Py_NewRef(Py_None) : PyBytes_FromStringAndSize(room, (Py_ssize_t)size);
    PyMem_Free(room);
    return answer;
}

/* _tls_offer() -> (context, server_side, server_hostname) or None: what a starttls:// endpoint has
   to offer, as _start_tls() takes it. */
static PyObject *transport_tls_offer(TransportObject *t, PyObject *Py_UNUSED(ignored)) {
    t = current(t);
    bk_tls_context *core;
    const char *name;
    if (t->stream == NULL || bk_tls_offer_context(bk_stream_transport(t->stream), &core, &name) < 0)
        Py_RETURN_NONE;
    PyObject *context = tls_context_of(t->loop, core);
    if (context == NULL)
        return NULL;
    return Py_BuildValue("NOz", context, core->server ? Py_True : Py_False, name);
}

/* The connection goes over to a new transport, which lies above. */
static void move_up(TransportObject *t, TransportObject *n) {
    n->stream = t->stream;
    n->fd = t->fd;
    n->server = t->server;
    n->socket = t->socket;
    n->started = true;
    n->below = (TransportObject *)Py_NewRef((PyObject *)t);
    t->above = (TransportObject *)Py_NewRef((PyObject *)n);
    t->stream = NULL;
    t->server = t->socket = NULL;
    bk_stream_set_user(n->stream, Py_NewRef((PyObject *)n));
    (void)loop_owns_fd(n->loop, n->fd, (PyObject *)n); /* its place is there already */
    Py_CLEAR(t->protocol);
    Py_CLEAR(t->reader);
    Py_DECREF((PyObject *)t); /* the stream's */
}

static int parse_tls(PyObject *args, TlsSpec *ret_spec, PyObject **ret_protocol,
                     PyObject **ret_waiter, const char **ret_data, Py_ssize_t *ret_n) {
    return PyArg_ParseTuple(args, "(OpOOO)OOy#:_start_tls", &ret_spec->context,
                            &ret_spec->server_side, &ret_spec->server_hostname,
                            &ret_spec->handshake_timeout, &ret_spec->shutdown_timeout, ret_protocol,
                            ret_waiter, ret_data, ret_n)
               ? 0
               : -1;
}

/* _start_tls(spec, protocol, waiter, data) -> Transport: TLS from now on. spec: sslcontext,
   server_side, server_hostname, handshake_timeout, shutdown_timeout. Before the connection began,
   it is the transport itself (protocol None); later, one that lies above it. data was read
   already, and goes into TLS. The waiter, a future or None, learns how the handshake went. */
static PyObject *transport_start_tls(TransportObject *t, PyObject *args) {
    TlsSpec spec;
    PyObject *protocol, *waiter;
    const char *data;
    Py_ssize_t size;
    if (parse_tls(args, &spec, &protocol, &waiter, &data, &size) < 0)
        return NULL;
    t = current(t);
    const unsigned over = BK_STREAM_CLOSING | BK_STREAM_CLOSED | BK_STREAM_ENDING;
    if (t->stream == NULL || t->stream->flags & over) {
        loop_raise(-EPIPE);
        return NULL;
    }
    if (protocol == Py_None && (t->started || t->tls != NULL)) {
        PyErr_SetString(PyExc_TypeError, "protocol: an asyncio protocol is needed, not None");
        return NULL;
    }
    if (protocol == Py_None) {
        if (tls_prepare(t, &spec, waiter) < 0 || tls_start(t, data, (size_t)size) < 0)
            return NULL;
        return Py_NewRef((PyObject *)t);
    }
    TransportObject *n = transport_new(t->loop, protocol, t->context, NULL);
    if (n == NULL || copy_extra(t, n) < 0 || tls_prepare(n, &spec, waiter) < 0) {
        Py_XDECREF((PyObject *)n);
        return NULL;
    }
    if (t->stream == NULL || t->stream->flags & over) { /* making the engine may do anything */
        Py_DECREF((PyObject *)n);
        loop_raise(-EPIPE);
        return NULL;
    }
    move_up(t, n);
    bk_stream_flush(n->stream);
    if (transport_adopt_protocol(n, protocol) < 0 || tls_start(n, data, (size_t)size) < 0) {
        n->closing = true;
        bk_stream_abort(n->stream);
        Py_DECREF((PyObject *)n);
        return NULL;
    }
    bk_stream_resume(n->stream);
    return (PyObject *)n;
}

static PyObject *transport_is_closing(TransportObject *t, PyObject *Py_UNUSED(ignored)) {
    t = current(t);
    return PyBool_FromLong(is_closing(t));
}

static PyObject *transport_set_protocol(TransportObject *t, PyObject *protocol) {
    if (t->stream == NULL) {
        Py_XSETREF(t->protocol, NULL);
        Py_RETURN_NONE;
    }
    if (transport_adopt_protocol(t, protocol) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *transport_get_protocol(TransportObject *t, PyObject *Py_UNUSED(ignored)) {
    return Py_NewRef(t->protocol != NULL ? t->protocol : Py_None);
}

static PyObject *transport_repr(TransportObject *t) {
    t = current(t);
    const char *state = t->stream == NULL ? "closed" : is_closing(t) ? "closing" : "open";
    const char *reading = !t->started || t->paused || is_closing(t) ? "idle" : "polling";
    unsigned busy = t->stream != NULL && t->stream->flags & BK_STREAM_BUSY;
    size_t queued = t->stream != NULL ? t->stream->queued : 0;
    return PyUnicode_FromFormat("<%s %s fd=%d read=%s write=<%s, bufsize=%zu>>",
                                _PyType_Name(Py_TYPE(t)), state, t->fd, reading,
                                busy ? "polling" : "idle", queued);
}

static PyMethodDef transport_methods[] = {
    {"get_extra_info", (PyCFunction)(void (*)(void))transport_get_extra_info,
     METH_VARARGS | METH_KEYWORDS,
     "get_extra_info(name, default=None)\n\n"
     "'socket', 'peername', 'sockname', or what else the connection knows."},
    {"_set_extra", (PyCFunction)transport_set_extra, METH_VARARGS, NULL},
    {"is_reading", (PyCFunction)transport_is_reading, METH_NOARGS,
     "is_reading() -> bool\n\nWhether data is being received."},
    {"pause_reading", (PyCFunction)transport_pause_reading, METH_NOARGS,
     "pause_reading()\n\nCall no data_received() until resume_reading()."},
    {"resume_reading", (PyCFunction)transport_resume_reading, METH_NOARGS,
     "resume_reading()\n\nReceive data again."},
    {"write", (PyCFunction)transport_write, METH_O,
     "write(data)\n\nSend bytes-like data, with all that is written in the same callback, when it "
     "returns. Does not block."},
    {"writelines", (PyCFunction)transport_writelines, METH_O,
     "writelines(list_of_data)\n\nSend each of an iterable of bytes-like objects."},
    {"write_eof", (PyCFunction)transport_write_eof, METH_NOARGS,
     "write_eof()\n\nEnd our direction once all is sent; data is still received."},
    {"can_write_eof", (PyCFunction)transport_can_write_eof, METH_NOARGS,
     "can_write_eof() -> bool\n\nTrue, but over TLS."},
    {"get_write_buffer_size", (PyCFunction)transport_get_write_buffer_size, METH_NOARGS,
     "get_write_buffer_size() -> int\n\nBytes that are queued because the peer does not read."},
    {"get_write_buffer_limits", (PyCFunction)transport_get_write_buffer_limits, METH_NOARGS,
     "get_write_buffer_limits() -> (low, high)\n\nThe water marks, in bytes."},
    {"set_write_buffer_limits", (PyCFunction)(void (*)(void))transport_set_write_buffer_limits,
     METH_VARARGS | METH_KEYWORDS,
     "set_write_buffer_limits(high=None, low=None)\n\n"
     "Set the water marks, in bytes: pause_writing() above high, resume_writing() at low."},
    {"close", (PyCFunction)transport_close, METH_NOARGS,
     "close()\n\nSend what is queued, then close; connection_lost(None) follows."},
    {"abort", (PyCFunction)transport_abort, METH_NOARGS,
     "abort()\n\nClose now; what is queued is lost; connection_lost(None) follows."},
    {"_force_close", (PyCFunction)transport_force_close, METH_O, NULL},
    {"_start_tls", (PyCFunction)transport_start_tls, METH_VARARGS, NULL},
    {"_tls_offer", (PyCFunction)transport_tls_offer, METH_NOARGS, NULL},
    {"_tls_query", (PyCFunction)transport_tls_query, METH_O, NULL},
    {"is_closing", (PyCFunction)transport_is_closing, METH_NOARGS,
     "is_closing() -> bool\n\nWhether it is closing, or closed."},
    {"set_protocol", (PyCFunction)transport_set_protocol, METH_O,
     "set_protocol(protocol)\n\nWhat is received from now on goes to this protocol."},
    {"get_protocol", (PyCFunction)transport_get_protocol, METH_NOARGS,
     "get_protocol()\n\nThe protocol; None once the connection is lost."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef transport_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(TransportObject, weakrefs), READONLY, NULL},
    {"__dictoffset__", T_PYSSIZET, offsetof(TransportObject, dict), READONLY, NULL},
    {"_loop", T_OBJECT, offsetof(TransportObject, loop), READONLY, NULL},
    {"_protocol", T_OBJECT, offsetof(TransportObject, protocol), READONLY, NULL},
    {"_server", T_OBJECT, offsetof(TransportObject, server), READONLY, NULL},
    {"_sending_file", T_BOOL, offsetof(TransportObject, sending_file), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

/* Whether pause_writing() was called last; for asyncio's sendfile(). */
static PyObject *transport_get_protocol_paused(TransportObject *t, void *Py_UNUSED(closure)) {
    t = current(t);
    return PyBool_FromLong(t->stream != NULL && t->stream->flags & BK_STREAM_BLOCKED);
}

/* What asyncio's sendfile() may try. */
static PyObject *transport_get_sendfile_compatible(TransportObject *t, void *Py_UNUSED(closure)) {
    t = current(t);
    bool native = t->tls == NULL && t->stream != NULL && is_socket(t) && !is_core_tls(t);
    return PyObject_GetAttrString(t->loop->state->sendfile_modes, t->is_pipe ? "UNSUPPORTED"
                                                                  : native   ? "TRY_NATIVE"
                                                                             : "FALLBACK");
}

/* As TLS transports elsewhere have it; programs look whether it is there. */
static PyObject *transport_get_sslcontext(TransportObject *t, void *Py_UNUSED(closure)) {
    if (t->tls != NULL)
        return Py_NewRef(t->tls->spec.context);
    PyErr_SetString(PyExc_AttributeError, "_sslcontext: this transport is without TLS");
    return NULL;
}

static PyGetSetDef transport_getset[] = {
    {"_protocol_paused", (getter)transport_get_protocol_paused, NULL, NULL, NULL},
    {"_sendfile_compatible", (getter)transport_get_sendfile_compatible, NULL, NULL, NULL},
    {"_sslcontext", (getter)transport_get_sslcontext, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot transport_slots[] = {
    {Py_tp_doc, "An asyncio transport over a stream of the core."},
    {Py_tp_dealloc, transport_dealloc},
    {Py_tp_traverse, transport_traverse},
    {Py_tp_clear, transport_clear},
    {Py_tp_repr, transport_repr},
    {Py_tp_methods, transport_methods},
    {Py_tp_members, transport_members},
    {Py_tp_getset, transport_getset},
    {0, NULL},
};

PyType_Spec transport_spec = {
    .name = "becket._becket.Transport",
    .basicsize = sizeof(TransportObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = transport_slots,
};
