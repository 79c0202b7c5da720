/*
 * wire.c: what a connection of Twisted's has in C: what is received goes straight to the protocol's
 * dataReceived(), what is written to a stream of the core's. becket.twisted.tcp and .unix derive
 * their transports from this type and from Twisted's own, in this order; whatever is not here
 * (connecting, addresses, the end) is Twisted's, over the methods replaced here.
 *
 * The stream holds a reference to its transport until it is detached, or has come to its end. The
 * socket stays the transport's: Twisted closes it.
 */
#include "becket_py.h"

#include <structmember.h>
#include <sys/socket.h>

/* As long as Twisted's: what is beyond is told to a producer that streams. */
enum { BUFFER_BYTES = 64 * 1024 };

/* Pieces of writeSequence() that are shorter, on average, are joined. */
enum { JOIN_BYTES = 512 };

/* The state that Twisted's transports have in attributes of the same names. */
typedef struct WireObject {
    PyObject_HEAD LoopObject *loop; /* NULL: not attached yet */
    bk_stream *stream;              /* NULL: not yet, or not any more */
    PyObject *protocol, *producer;
    PyObject *seal;   /* takes what is received without a call of Python's, while it is protocol */
    PyObject *system; /* what is logged meanwhile is said to come from here: {"system": …} */
    PyObject *contexts; /* … the list that says so, of twisted.python.context */
    int fd;
    int connected, disconnected, disconnecting;
    int write_disconnecting, write_disconnected;
    int streaming, producer_paused, tls;
    int buffer_bytes; /* 0: BUFFER_BYTES */
    bool asking;      /* all_sent() is to be called as soon as that is so */
} WireObject;

/* ---- Calling Python ---- */

static int enter(WireObject *w) {
    return w->contexts == NULL ? 0 : PyList_Append(w->contexts, w->system);
}

/* The list keeps its room, for the next time. */
static void leave(WireObject *w) {
    Py_ssize_t n = w->contexts == NULL ? 0 : PyList_GET_SIZE(w->contexts);
    if (n == 0)
        return;
#ifndef BK_FREE_THREADING
    PyObject *last = PyList_GET_ITEM(w->contexts, n - 1);
    Py_SET_SIZE(w->contexts, n - 1);
    Py_DECREF(last);
#else
    PyObject *type, *value, *tb;
    PyErr_Fetch(&type, &value, &tb);
    (void)PyList_SetSlice(w->contexts, n - 1, n, NULL);
    PyErr_Restore(type, value, tb);
#endif
}

/* The exception that is set is logged, and ends the connection: _raised(exception). */
static void fail(WireObject *w) {
    PyObject *type, *value, *tb;
    PyErr_Fetch(&type, &value, &tb);
    PyErr_NormalizeException(&type, &value, &tb);
    if (tb != NULL)
        (void)PyException_SetTraceback(value, tb);
    PyObject *result = PyObject_CallMethodOneArg((PyObject *)w, w->loop->state->str__raised, value);
    if (result == NULL)
        PyErr_WriteUnraisable((PyObject *)w);
    Py_XDECREF(result);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(tb);
}

/* Call object.method(arg) (arg NULL: without) as the loop calls: nobody is there for what it raises
   but the log. */
static void tell(WireObject *w, PyObject *object, PyObject *method, PyObject *arg) {
    PyObject *args[3] = {NULL, Py_NewRef(object), arg};
    PyObject *result = NULL;
    Py_INCREF((PyObject *)w);
    if (enter(w) == 0) {
        result = PyObject_VectorcallMethod(
            method, args + 1, (arg != NULL ? 2 : 1) | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
        leave(w);
    }
    if (result == NULL)
        fail(w);
    Py_XDECREF(result);
    Py_DECREF(args[1]);
    Py_DECREF((PyObject *)w);
}

/* ---- The stream's callbacks ---- */

/* To TLS, which is in C. */
static void received_sealed(WireObject *w, const void *data, size_t n) {
    PyObject *seal = Py_NewRef(w->seal);
    Py_INCREF((PyObject *)w);
    int code = enter(w);
    if (code == 0) {
        code = seal_receive(seal, data, n);
        leave(w);
    }
    if (code < 0)
        fail(w);
    Py_DECREF((PyObject *)w);
    Py_DECREF(seal);
}

static void received(bk_stream *s, const void *data, size_t n) {
    WireObject *w = bk_stream_user(s);
    if (w == NULL || w->protocol == NULL || w->loop->ending)
        return;
    if (w->protocol == w->seal) {
        received_sealed(w, data, n);
        return;
    }
    PyObject *bytes = transport_bytes(w->loop, data, n);
    if (bytes == NULL)
        fail(w);
    else
        tell(w, w->protocol, w->loop->state->str_dataReceived, bytes);
    Py_XDECREF(bytes);
}

/* Twisted says what becomes of it: the connection goes on, or is closed by it. */
static int ended(bk_stream *s) {
    WireObject *w = bk_stream_user(s);
    if (w == NULL || w->loop->ending)
        return 0;
    tell(w, (PyObject *)w, w->loop->state->str__ended, NULL);
    return 1;
}

/* All is sent: what waited for that has its turn, as in FileDescriptor.doWrite(). */
static void all_sent(WireObject *w) {
    const module_state *state = w->loop->state;
    if (w->producer != NULL && w->producer != Py_None && (!w->streaming || w->producer_paused)) {
        w->producer_paused = 0;
        tell(w, w->producer, state->str_resumeProducing, NULL);
    } else if (w->disconnecting || w->write_disconnecting) {
        tell(w, (PyObject *)w, state->str__all_sent, NULL);
    }
}

static void writable(bk_stream *s) {
    WireObject *w = bk_stream_user(s);
    if (w != NULL && !w->loop->ending)
        all_sent(w);
}

/* Of the ready queue: what was written before has gone as far as it would. */
static void look_whether_sent(void *arg) {
    WireObject *w = arg;
    w->asking = false;
    if (w->stream != NULL && !w->loop->ending) {
        if (bk_stream_queued(w->stream) > 0)
            bk_stream_tell_sent(w->stream);
        else
            all_sent(w);
    }
    Py_DECREF((PyObject *)w);
}

static int ask(WireObject *w) {
    if (w->asking || w->stream == NULL || loop_check_open(w->loop) < 0) {
        PyErr_Clear();
        return 0;
    }
    int code = bk_loop_soon(w->loop->core, look_whether_sent, w);
    if (code < 0)
        return loop_raise(code);
    w->asking = true;
    Py_INCREF((PyObject *)w);
    return 0;
}

bool wire_call_is_ours(bk_fn fn) {
    return fn == look_whether_sent;
}

/* Descriptors have come, before the bytes that they came with: _fds_came(bytes), which has them as
   they were sent: ints, one behind the other. */
static void fds_came(bk_transport *t, const int *fds, int n) {
    WireObject *w = bk_stream_user(t->stream);
    PyObject *bytes =
        w == NULL ? NULL
                  : PyBytes_FromStringAndSize((const char *)fds, n * (Py_ssize_t)sizeof *fds);
    if (bytes == NULL) {
        PyErr_Clear();
        for (int i = 0; i < n; i++)
            (void)bk_os_default()->close(bk_os_default(), fds[i]);
        return;
    }
    tell(w, (PyObject *)w, w->loop->state->str__fds_came, bytes);
    Py_DECREF(bytes);
}

static int make_transport(bk_loop *core, int fd, bool passes, bk_transport **ret_transport) {
    struct sockaddr_storage nobody = {0};
    int code = passes ? bk_passing_transport(core, fd, fds_came, ret_transport) : -ENOTSUP;
    if (code != -ENOTSUP)
        return code;
    /* What options it has, and who its peer is, are Twisted's affair. */
    return bk_socket_transport_accepted(core, fd, (const struct sockaddr *)&nobody, 0,
                                        ret_transport);
}

static void disown(bk_transport *t) {
    if (bk_is_passing_transport(t))
        bk_passing_transport_disown(t);
    else
        bk_socket_transport_disown(t);
}

/* The socket is Python's again. */
static void part(WireObject *w) {
    bk_stream *s = w->stream;
    w->stream = NULL;
    bk_stream_set_user(s, NULL);
    bk_watch_forget(w->loop->core, w->fd);
    disown(bk_stream_transport(s));
    (void)loop_owns_fd(w->loop, w->fd, NULL);
}

static void closed(bk_stream *s, int why) {
    WireObject *w = bk_stream_user(s);
    (void)why;
    if (w == NULL)
        return;
    bool ending = w->loop->ending;
    part(w);
    if (!ending)
        tell(w, (PyObject *)w, w->loop->state->str__broken, NULL);
    Py_DECREF((PyObject *)w); /* the stream's */
}

static const bk_protocol wire_events = {.size = sizeof wire_events,
                                        .name = "twisted.Protocol",
                                        .received = received,
                                        .ended = ended,
                                        .writable = writable,
                                        .closed = closed};

bool wire_is_ours(const bk_stream *s) {
    return s->protocol == &wire_events && s->user != NULL;
}

/* ---- Coming and going ---- */

/* The list of twisted.python.context.theContextTracker for this thread. */
static PyObject *find_contexts(void) {
    PyObject *module = PyImport_ImportModule("twisted.python.context");
    PyObject *tracker = module != NULL ? PyObject_GetAttrString(module, "theContextTracker") : NULL;
    PyObject *current =
        tracker != NULL ? PyObject_CallMethod(tracker, "currentContext", NULL) : NULL;
    PyObject *list = current != NULL ? PyObject_GetAttrString(current, "contexts") : NULL;
    if (list != NULL && !PyList_CheckExact(list))
        Py_CLEAR(list);
    PyErr_Clear(); /* without it, the log does not say where a line comes from */
    Py_XDECREF(module);
    Py_XDECREF(tracker);
    Py_XDECREF(current);
    return list;
}

/* _attach(loop, fd, passes): a stream, not yet reading, over the socket, which stays the caller's.
 */
static PyObject *wire_attach(WireObject *w, PyObject *args) {
    PyObject *loop;
    int fd, passes;
    module_state *state = state_of_type(Py_TYPE(w));
    if (state == NULL ||
        !PyArg_ParseTuple(args, "O!ip:_attach", state->loop_type, &loop, &fd, &passes) ||
        loop_check_open((LoopObject *)loop) < 0)
        return NULL;
    bk_loop *core = ((LoopObject *)loop)->core;
    bk_transport *transport;
    bk_stream *s;
    int code = make_transport(core, fd, passes, &transport);
    if (code == 0 && (code = bk_stream_new_paused(core, transport, &wire_events, NULL, &s)) < 0) {
        disown(transport);
        transport->ops->close(transport);
    }
    if (code < 0) {
        loop_raise(code);
        return NULL;
    }
    /* Whether it is full is asked in ask(), and Twisted looks at no more than that. */
    (void)bk_stream_set_water(s, 0, UINT32_MAX);
    bk_stream_gather(s); /* as Twisted does */
    Py_XSETREF(w->loop, (LoopObject *)Py_NewRef(loop));
    Py_XSETREF(w->contexts, find_contexts());
    w->stream = s;
    w->fd = fd;
    bk_stream_set_user(s, Py_NewRef((PyObject *)w));
    (void)loop_owns_fd(w->loop, fd, (PyObject *)w);
    Py_RETURN_NONE;
}

/* _detach(): what is not sent yet is dropped; nothing is heard from the stream any more. */
static PyObject *wire_detach(WireObject *w, PyObject *Py_UNUSED(ignored)) {
    bk_stream *s = w->stream;
    if (s == NULL || w->loop->core == NULL || w->loop->ending || w->loop->is_parents)
        Py_RETURN_NONE;
    part(w);
    bk_stream_abort(s);
    Py_DECREF((PyObject *)w); /* the stream's: whoever calls has one of his own */
    Py_RETURN_NONE;
}

/* _take_unsent() -> [bytes]: what is not sent yet, to be sent by others. */
static PyObject *wire_take_unsent(WireObject *w, PyObject *Py_UNUSED(ignored)) {
    PyObject *list = PyList_New(0);
    const bk_chunk *c = w->stream == NULL ? NULL : w->stream->head;
    for (; list != NULL && c != NULL; c = c->next) {
        PyObject *bytes = PyBytes_FromStringAndSize(c->data, (Py_ssize_t)c->size);
        if (bytes == NULL || PyList_Append(list, bytes) < 0)
            Py_CLEAR(list);
        Py_XDECREF(bytes);
    }
    return list;
}

static PyObject *wire_start_reading(WireObject *w, PyObject *Py_UNUSED(ignored)) {
    if (w->stream == NULL)
        return PyObject_CallMethod((PyObject *)w, "_watch", "s", "addReader");
    bk_stream_resume(w->stream);
    Py_RETURN_NONE;
}

static PyObject *wire_stop_reading(WireObject *w, PyObject *Py_UNUSED(ignored)) {
    if (w->stream == NULL)
        return PyObject_CallMethod((PyObject *)w, "_watch", "s", "removeReader");
    bk_stream_pause(w->stream);
    Py_RETURN_NONE;
}

static PyObject *wire_start_writing(WireObject *w, PyObject *Py_UNUSED(ignored)) {
    if (w->stream == NULL)
        return PyObject_CallMethod((PyObject *)w, "_watch", "s", "addWriter");
    if (ask(w) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *wire_stop_writing(WireObject *w, PyObject *Py_UNUSED(ignored)) {
    if (w->stream == NULL)
        return PyObject_CallMethod((PyObject *)w, "_watch", "s", "removeWriter");
    Py_RETURN_NONE;
}

static PyObject *wire_is_reading(WireObject *w, PyObject *Py_UNUSED(ignored)) {
    const unsigned over = BK_STREAM_PAUSED | BK_STREAM_EOF | BK_STREAM_CLOSED;
    return PyBool_FromLong(w->stream != NULL && !(w->stream->flags & over));
}

static PyObject *wire_is_writing(WireObject *w, PyObject *Py_UNUSED(ignored)) {
    return PyBool_FromLong(w->stream != NULL && (w->asking || w->stream->queued > 0));
}

/* ---- Writing ---- */

static int check_bytes(PyObject *data) {
    if (PyBytes_Check(data))
        return 0;
    PyErr_SetString(PyExc_TypeError, "Data must be bytes");
    return -1;
}

/* A producer is told when more waits than is good, and asked for more when all is sent. */
static int mind_producer(WireObject *w) {
    if (w->producer == NULL || w->producer == Py_None)
        return 0;
    if (ask(w) < 0)
        return -1;
    size_t most = w->buffer_bytes > 0 ? (size_t)w->buffer_bytes : BUFFER_BYTES;
    if (!w->streaming || bk_stream_queued(w->stream) <= most)
        return 0;
    w->producer_paused = 1;
    PyObject *result = PyObject_CallMethodNoArgs(w->producer, w->loop->state->str_pauseProducing);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

static int queue(WireObject *w, PyObject *data) {
    int code = bk_stream_write(w->stream, PyBytes_AS_STRING(data), (size_t)PyBytes_GET_SIZE(data),
                               object_release, Py_NewRef(data));
    return code < 0 && code != -EPIPE ? loop_raise(code) : 0;
}

static bool takes(const WireObject *w) {
    return w->connected && !w->write_disconnected;
}

static PyObject *wire_write_plain(WireObject *w, PyObject *data) {
    if (check_bytes(data) < 0)
        return NULL;
    if (!takes(w) || PyBytes_GET_SIZE(data) == 0)
        Py_RETURN_NONE;
    if (w->stream == NULL)
        return PyObject_CallMethod((PyObject *)w, "_write_slowly", "O", data);
    if (queue(w, data) < 0 || mind_producer(w) < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* Pieces that are small on average, as those of a header are, cost more apart than a copy does. */
static PyObject *join(PyObject *list, size_t total) {
    PyObject *whole = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)total);
    char *at = whole != NULL ? PyBytes_AS_STRING(whole) : NULL;
    for (Py_ssize_t i = 0; whole != NULL && i < PyList_GET_SIZE(list); i++) {
        PyObject *piece = PyList_GET_ITEM(list, i);
        memcpy(at, PyBytes_AS_STRING(piece), (size_t)PyBytes_GET_SIZE(piece));
        at += PyBytes_GET_SIZE(piece);
    }
    return whole;
}

static int queue_all(WireObject *w, PyObject *list) {
    size_t total = 0;
    Py_ssize_t n = PyList_GET_SIZE(list);
    for (Py_ssize_t i = 0; i < n; i++)
        total += (size_t)PyBytes_GET_SIZE(PyList_GET_ITEM(list, i));
    if (n == 0)
        return 0;
    int code = 0;
    if (n > 1 && total / (size_t)n < JOIN_BYTES) {
        PyObject *whole = join(list, total);
        code = whole == NULL ? -1 : queue(w, whole);
        Py_XDECREF(whole);
    } else {
        for (Py_ssize_t i = 0; code == 0 && i < n; i++)
            code = queue(w, PyList_GET_ITEM(list, i));
    }
    return code < 0 ? -1 : mind_producer(w);
}

static int write_slowly(WireObject *w, PyObject *list) {
    PyObject *result = PyObject_CallMethod((PyObject *)w, "_write_sequence_slowly", "O", list);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

static PyObject *wire_write_sequence_plain(WireObject *w, PyObject *pieces) {
    PyObject *list = PySequence_List(pieces); /* a generator can be asked once */
    int code = list == NULL ? -1 : 0;
    for (Py_ssize_t i = 0; code == 0 && i < PyList_GET_SIZE(list); i++)
        code = check_bytes(PyList_GET_ITEM(list, i));
    if (code == 0 && takes(w))
        code = w->stream == NULL ? write_slowly(w, list) : queue_all(w, list);
    Py_XDECREF(list);
    return code < 0 ? NULL : Py_NewRef(Py_None);
}

/* Under TLS, which is a protocol of Twisted's. */
static PyObject *write_above(WireObject *w, PyObject *method, PyObject *data) {
    if (!w->connected || w->protocol == NULL)
        Py_RETURN_NONE;
    PyObject *protocol = Py_NewRef(w->protocol);
    PyObject *result = PyObject_CallMethodOneArg(protocol, method, data);
    Py_DECREF(protocol);
    return result;
}

static PyObject *wire_write(WireObject *w, PyObject *data) {
    return w->tls ? write_above(w, w->loop->state->str_write, data) : wire_write_plain(w, data);
}

static PyObject *wire_write_sequence(WireObject *w, PyObject *pieces) {
    return w->tls ? write_above(w, w->loop->state->str_writeSequence, pieces)
                  : wire_write_sequence_plain(w, pieces);
}

/* ---- For seal.c ---- */

void wire_tie(PyObject *wire, PyObject *seal) {
    Py_XSETREF(((WireObject *)wire)->seal, Py_XNewRef(seal));
}

/* As write(), or past the TLS of the wire, which is then the caller. */
int wire_send(PyObject *wire, PyObject *bytes, bool past) {
    WireObject *w = (WireObject *)wire;
    Py_INCREF(wire);
    PyObject *result = past ? wire_write_plain(w, bytes) : wire_write(w, bytes);
    Py_XDECREF(result);
    Py_DECREF(wire);
    return result == NULL ? -1 : 0;
}

/* For the one protocol that gets them. */
PyObject *wire_bytes(PyObject *wire, const void *data, size_t n) {
    return transport_bytes(((WireObject *)wire)->loop, data, n);
}

/* ---- Life ---- */

static int wire_traverse(WireObject *w, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(w));
    Py_VISIT((PyObject *)w->loop);
    Py_VISIT(w->protocol);
    Py_VISIT(w->seal);
    Py_VISIT(w->producer);
    Py_VISIT(w->system);
    Py_VISIT(w->contexts);
    return 0;
}

static int wire_clear(WireObject *w) {
    Py_CLEAR(w->protocol);
    Py_CLEAR(w->seal);
    Py_CLEAR(w->producer);
    Py_CLEAR(w->system);
    Py_CLEAR(w->contexts);
    return 0;
}

static void wire_dealloc(WireObject *w) {
    PyTypeObject *type = Py_TYPE(w);
    PyObject_GC_UnTrack(w);
    wire_clear(w);
    Py_CLEAR(w->loop);
    type->tp_free(w);
    Py_DECREF(type);
}

static PyMethodDef wire_methods[] = {
    {"_attach", (PyCFunction)wire_attach, METH_VARARGS, NULL},
    {"_detach", (PyCFunction)wire_detach, METH_NOARGS, NULL},
    {"_take_unsent", (PyCFunction)wire_take_unsent, METH_NOARGS, NULL},
    {"_is_reading", (PyCFunction)wire_is_reading, METH_NOARGS, NULL},
    {"_is_writing", (PyCFunction)wire_is_writing, METH_NOARGS, NULL},
    {"_write_plain", (PyCFunction)wire_write_plain, METH_O, NULL},
    {"_write_sequence_plain", (PyCFunction)wire_write_sequence_plain, METH_O, NULL},
    {"startReading", (PyCFunction)wire_start_reading, METH_NOARGS, "startReading()"},
    {"stopReading", (PyCFunction)wire_stop_reading, METH_NOARGS, "stopReading()"},
    {"startWriting", (PyCFunction)wire_start_writing, METH_NOARGS,
     "startWriting()\n\nHave what waits for all to be sent looked at."},
    {"stopWriting", (PyCFunction)wire_stop_writing, METH_NOARGS, "stopWriting()"},
    {"write", (PyCFunction)wire_write, METH_O,
     "write(data)\n\nSend bytes, with all that is written in the same turn, at its end."},
    {"writeSequence", (PyCFunction)wire_write_sequence, METH_O,
     "writeSequence(iovec)\n\nSend each of an iterable of bytes."},
    {NULL, NULL, 0, NULL},
};

static PyObject *wire_get_attached(WireObject *w, void *Py_UNUSED(closure)) {
    return PyBool_FromLong(w->stream != NULL);
}

static PyObject *wire_get_buffer_size(WireObject *w, void *Py_UNUSED(closure)) {
    return PyLong_FromLong(w->buffer_bytes > 0 ? w->buffer_bytes : BUFFER_BYTES);
}

static int wire_set_buffer_size(WireObject *w, PyObject *value, void *Py_UNUSED(closure)) {
    long bytes = value == NULL ? 0 : PyLong_AsLong(value);
    if (bytes == -1 && PyErr_Occurred())
        return -1;
    w->buffer_bytes = bytes > 0 && bytes < INT_MAX ? (int)bytes : 0;
    return 0;
}

static PyGetSetDef wire_getset[] = {
    {"bufferSize", (getter)wire_get_buffer_size, (setter)wire_set_buffer_size,
     "Bytes that may wait to be sent before a producer is paused.", NULL},
    {"_attached", (getter)wire_get_attached, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

/* loop._wires() -> [Wire]: those that are attached to it. */
PyObject *loop_wires(LoopObject *loop, PyObject *Py_UNUSED(ignored)) {
    PyObject *list = PyList_New(0);
    const bk_stream *s = loop->core != NULL && !loop->is_parents ? loop->core->streams : NULL;
    for (; list != NULL && s != NULL; s = s->next)
        if (wire_is_ours(s) && PyList_Append(list, (PyObject *)s->user) < 0)
            Py_CLEAR(list);
    return list;
}

static PyMemberDef wire_members[] = {
    {"protocol", T_OBJECT_EX, offsetof(WireObject, protocol), 0, NULL},
    {"producer", T_OBJECT, offsetof(WireObject, producer), 0, NULL},
    {"_system", T_OBJECT, offsetof(WireObject, system), 0, NULL},
    {"connected", T_INT, offsetof(WireObject, connected), 0, NULL},
    {"disconnected", T_INT, offsetof(WireObject, disconnected), 0, NULL},
    {"disconnecting", T_INT, offsetof(WireObject, disconnecting), 0, NULL},
    {"_writeDisconnecting", T_INT, offsetof(WireObject, write_disconnecting), 0, NULL},
    {"_writeDisconnected", T_INT, offsetof(WireObject, write_disconnected), 0, NULL},
    {"streamingProducer", T_INT, offsetof(WireObject, streaming), 0, NULL},
    {"producerPaused", T_INT, offsetof(WireObject, producer_paused), 0, NULL},
    {"TLS", T_INT, offsetof(WireObject, tls), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot wire_slots[] = {
    {Py_tp_doc, "What a connection of Twisted's has in C."},
    {Py_tp_dealloc, wire_dealloc},
    {Py_tp_traverse, wire_traverse},
    {Py_tp_clear, wire_clear},
    {Py_tp_methods, wire_methods},
    {Py_tp_members, wire_members},
    {Py_tp_getset, wire_getset},
    {0, NULL},
};

PyType_Spec wire_spec = {
    .name = "becket._becket.Wire",
    .basicsize = sizeof(WireObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .slots = wire_slots,
};
