/*
 * datagram.c: an asyncio.DatagramTransport over a bk_datagram of the core, which calls the
 * asyncio.DatagramProtocol from its callbacks. Made by the loop's create_datagram_endpoint().
 *
 * The bk_datagram holds a reference to its transport until it is closed; then the transport lets go
 * of its protocol, so that no cycle is left to the collector.
 */
#include "becket_py.h"

#include <structmember.h>

/* Before 3.13, asyncio neither sends empty datagrams nor counts headers. */
enum { SENDS_EMPTY = PY_VERSION_HEX >= 0x030D0000 };

/* ---- Calling the protocol ---- */

/* Whether the protocol is still to hear of anything but the end. */
static bool is_silent(const DatagramObject *t) {
    return t->protocol == NULL || t->loop->ending;
}

/* args has n arguments behind two places that are free. What is raised is reported: as in asyncio,
   the transport goes on. */
static void tell(DatagramObject *t, PyObject *method, PyObject **args, size_t n,
                 const char *complaint) {
    PyObject *protocol = Py_NewRef(t->protocol);
    args[1] = protocol;
    if (context_call(t->context, &t->calling, method, args, n + 1, NULL) < 0)
        loop_report(t->loop, complaint, (PyObject *)t, protocol, NULL);
    Py_DECREF(protocol);
}

/* The exception that is set is reported, and connection_lost() will get it: asyncio's
   _fatal_error(). */
static void fail(DatagramObject *t, const char *message) {
    exception_keep(&t->error);
    loop_report(t->loop, message, (PyObject *)t, t->protocol, NULL);
    t->closing = true;
    bk_datagram_abort(t->core);
}

static void tell_error(DatagramObject *t, PyObject *e) {
    PyObject *args[3] = {NULL, NULL, e};
    if (!is_silent(t))
        tell(t, t->loop->state->str_error_received, args, 1, "protocol.error_received() failed");
}

static void received(bk_datagram *d, const void *data, size_t n, const struct sockaddr *from,
                     unsigned from_size) {
    DatagramObject *t = bk_datagram_user(d);
    if (is_silent(t))
        return;
    PyObject *address = address_known(t->loop, from, from_size);
    PyObject *bytes = address == NULL ? NULL : transport_bytes(t->loop, data, n);
    PyObject *args[4] = {NULL, NULL, bytes, address};
    if (bytes != NULL)
        tell(t, t->loop->state->str_datagram_received, args, 2,
             "protocol.datagram_received() failed");
    else
        fail(t, "Fatal read error on datagram transport");
    Py_XDECREF(bytes);
    Py_XDECREF(address);
}

static void failed(bk_datagram *d, int code) {
    DatagramObject *t = bk_datagram_user(d);
    PyObject *e = PyObject_CallFunction(PyExc_OSError, "is", -code, strerror(-code));
    if (e == NULL)
        fail(t, "Fatal write error on datagram transport");
    else
        tell_error(t, e);
    Py_XDECREF(e);
}

static void blocked(bk_datagram *d) {
    DatagramObject *t = bk_datagram_user(d);
    PyObject *args[2] = {NULL, NULL};
    if (!is_silent(t))
        tell(t, t->loop->state->str_pause_writing, args, 0, "protocol.pause_writing() failed");
}

static void writable(bk_datagram *d) {
    DatagramObject *t = bk_datagram_user(d);
    PyObject *args[2] = {NULL, NULL};
    if (!is_silent(t))
        tell(t, t->loop->state->str_resume_writing, args, 0, "protocol.resume_writing() failed");
}

static void tell_lost(DatagramObject *t, int why) {
    PyObject *e = t->error != NULL                ? Py_NewRef(t->error)
                  : why == 0 || why == -ECANCELED ? Py_NewRef(Py_None)
                                                  : exception_of(why);
    if (e == NULL) {
        PyErr_Clear();
        e = Py_NewRef(Py_None);
    }
    PyObject *args[3] = {NULL, NULL, e};
    if (t->protocol != NULL)
        tell(t, t->loop->state->str_connection_lost, args, 1, "Exception in connection_lost()");
    Py_DECREF(e);
}

/* The socket object closes the descriptor, as in asyncio: it may have been taken from it, or be
   closed already, and its number be somebody else's. The collector may have had it first. */
static void close_socket(DatagramObject *t) {
    if (t->socket == NULL)
        return;
    PyObject *result = PyObject_CallMethodNoArgs(t->socket, t->loop->state->str_close);
    if (result == NULL)
        PyErr_WriteUnraisable(t->socket);
    Py_XDECREF(result);
    Py_CLEAR(t->socket);
}

static void closed(bk_datagram *d, int why) {
    DatagramObject *t = bk_datagram_user(d);
    if (!t->loop->ending)
        tell_lost(t, why);
    else if (!t->closing)
        warn_unclosed((PyObject *)t);
    t->closing = true;
    t->core = NULL;
    if (t->fd < t->loop->transport_room && t->loop->transports[t->fd] == (PyObject *)t)
        (void)loop_owns_fd(t->loop, t->fd, NULL);
    bk_datagram_disown(d);
    close_socket(t);
    Py_CLEAR(t->protocol);
    Py_CLEAR(t->error);
    Py_DECREF((PyObject *)t); /* the core's */
}

static const bk_datagram_protocol table = {.size = sizeof table,
                                           .name = "asyncio.DatagramProtocol",
                                           .received = received,
                                           .failed = failed,
                                           .blocked = blocked,
                                           .writable = writable,
                                           .closed = closed};

/* ---- Life ---- */

bool datagram_is_ours(const bk_datagram *d) {
    return bk_datagram_protocol_of(d) == &table;
}

static int family_of(PyObject *socket) {
    PyObject *family = PyObject_GetAttrString(socket, "family");
    int number = family == NULL ? -1 : (int)PyLong_AsLong(family);
    Py_XDECREF(family);
    return number;
}

static DatagramObject *new_transport(LoopObject *loop, PyObject *protocol, PyObject *address,
                                     PyObject *extra) {
    PyTypeObject *type = loop->state->datagram_type;
    PyObject *context = PyContext_CopyCurrent();
    DatagramObject *t = context == NULL ? NULL : (DatagramObject *)type->tp_alloc(type, 0);
    if (t == NULL) {
        Py_XDECREF(context);
        return NULL;
    }
    t->context = context;
    t->loop = (LoopObject *)Py_NewRef((PyObject *)loop);
    t->protocol = Py_NewRef(protocol);
    t->extra = Py_NewRef(extra);
    t->address = Py_NewRef(address);
    return t;
}

/* _new_datagram_transport(socket, protocol, address, extra) -> DatagramTransport, not yet started.
   address: the one that all goes to, or None. extra: what get_extra_info() knows; its "peername" is
   None where the socket has no peer, and empty where that has no name. */
PyObject *loop_new_datagram_transport(LoopObject *loop, PyObject *args) {
    PyObject *socket, *protocol, *address, *extra;
    if (!PyArg_ParseTuple(args, "OOOO!:_new_datagram_transport", &socket, &protocol, &address,
                          &PyDict_Type, &extra) ||
        loop_check_open(loop) < 0)
        return NULL;
    int fd = PyObject_AsFileDescriptor(socket), family = fd < 0 ? -1 : family_of(socket);
    if (family < 0 || loop_check_open(loop) < 0)
        return NULL;
    DatagramObject *t = new_transport(loop, protocol, address, extra);
    if (t == NULL)
        return NULL;
    t->fd = fd;
    t->family = family;
    PyObject *peername = PyDict_GetItemString(extra, "peername");
    t->connected = peername != NULL && peername != Py_None;
    t->has_peername = t->connected && PyObject_IsTrue(peername) > 0;
    int code = bk_datagram_open(loop->core, fd, &table, t, &t->core);
    if (code < 0) {
        Py_DECREF((PyObject *)t);
        loop_raise(code);
        return NULL;
    }
    t->core->header = SENDS_EMPTY ? BK_DATAGRAM_HEADER : 0;
    t->socket = Py_NewRef(socket);
    Py_INCREF((PyObject *)t); /* the core's */
    bk_datagram_pause(t->core);
    if (loop_owns_fd(loop, fd, (PyObject *)t))
        return (PyObject *)t;
    t->closing = true;
    bk_datagram_abort(t->core);
    Py_DECREF((PyObject *)t);
    return PyErr_NoMemory();
}

/* _start(waiter): connection_made(), then receiving, then the waiter, a future, is woken. */
static PyObject *datagram_start(DatagramObject *t, PyObject *waiter) {
    PyObject *args[3] = {NULL, NULL, (PyObject *)t};
    if (!is_silent(t))
        tell(t, t->loop->state->str_connection_made, args, 1, "Exception in connection_made()");
    t->started = true;
    if (!t->closing && !t->paused)
        bk_datagram_resume(t->core);
    if (waiter != Py_None)
        loop_set_waiter(t->loop, waiter);
    Py_RETURN_NONE;
}

static int datagram_traverse(DatagramObject *t, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(t));
    Py_VISIT(t->extra);
    Py_VISIT(t->dict);
    Py_VISIT((PyObject *)t->loop);
    Py_VISIT(t->protocol);
    Py_VISIT(t->context);
    Py_VISIT(t->socket);
    Py_VISIT(t->address);
    Py_VISIT(t->error);
    return 0;
}

static int datagram_clear(DatagramObject *t) {
    Py_CLEAR(t->extra);
    Py_CLEAR(t->dict);
    Py_CLEAR(t->protocol);
    Py_CLEAR(t->context);
    Py_CLEAR(t->socket);
    Py_CLEAR(t->address);
    Py_CLEAR(t->error);
    return 0;
}

static void datagram_dealloc(DatagramObject *t) {
    PyTypeObject *type = Py_TYPE(t);
    PyObject_GC_UnTrack(t);
    if (t->weakrefs != NULL)
        PyObject_ClearWeakRefs((PyObject *)t);
    datagram_clear(t);
    LoopObject *loop = t->loop;
    t->loop = NULL;
    type->tp_free(t);
    Py_XDECREF((PyObject *)loop);
    Py_DECREF(type);
}

/* ---- Sending ---- */

/* Whether asyncio has it that its connection is lost. */
static bool is_lost(const DatagramObject *t) {
    return t->core == NULL || t->core->flags & BK_DATAGRAM_CLOSED;
}

static int count_lost(DatagramObject *t) {
    if (t->lost_writes < LOST_WRITES_LOGGED) {
        t->lost_writes++;
        return 0;
    }
    PyObject *result = PyObject_CallMethod(t->loop->state->logger, "warning", "s",
                                           "socket.send() raised exception.");
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* What is immutable is sent by reference. */
static int send_core(DatagramObject *t, PyObject *data, const struct sockaddr_storage *to,
                     unsigned to_size) {
    const struct sockaddr *address = to_size > 0 ? (const struct sockaddr *)to : NULL;
    if (PyBytes_CheckExact(data))
        return bk_datagram_send(t->core, PyBytes_AS_STRING(data), (size_t)PyBytes_GET_SIZE(data),
                                object_release, Py_NewRef(data), address, to_size);
    Py_buffer view;
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0) {
        fail(t, "Fatal write error on datagram transport");
        return 0;
    }
    int code =
        bk_datagram_send(t->core, view.buf, (size_t)view.len, BK_COPY, NULL, address, to_size);
    PyBuffer_Release(&view);
    return code;
}

/* The socket is full, so that what goes to a name must be queued: to what the name stands for. */
static int queue_resolved(DatagramObject *t, PyObject *data, PyObject *address) {
    struct sockaddr_storage to;
    PyObject *plain =
        PyObject_CallMethod((PyObject *)t->loop, "_plain_address", "iO", t->family, address);
    unsigned size =
        plain == NULL || t->core == NULL ? 0 : address_from_python(t->loop, t->family, plain, &to);
    Py_XDECREF(plain);
    PyErr_Clear();
    return size == 0 ? -EAGAIN : send_core(t, data, &to, size);
}

/* An address that is not plain goes to socket.sendto(), which resolves it or says what is wrong
   with it, in its own words; NULL: to the peer. So does what is sent after close(). 0, or -1 with
   an exception that is not for the transport to deal with. */
static int send_by_socket(DatagramObject *t, PyObject *data, PyObject *address) {
    bk_datagram_flush(t->core);
    PyObject *result = address == NULL
                           ? PyObject_CallMethod(t->socket, "send", "O", data)
                           : PyObject_CallMethod(t->socket, "sendto", "OO", data, address);
    Py_XDECREF(result);
    if (result != NULL)
        return 0;
    if (PyErr_ExceptionMatches(PyExc_SystemExit) || PyErr_ExceptionMatches(PyExc_KeyboardInterrupt))
        return -1;
    if (!PyErr_ExceptionMatches(PyExc_OSError)) {
        fail(t, "Fatal write error on datagram transport");
        return 0;
    }
    PyObject *type, *value, *tb;
    bool full = PyErr_ExceptionMatches(PyExc_BlockingIOError);
    PyErr_Fetch(&type, &value, &tb);
    PyErr_NormalizeException(&type, &value, &tb);
    if (!full || address == NULL || queue_resolved(t, data, address) < 0)
        tell_error(t, value);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(tb);
    return 0;
}

/* 1: there is something to send; 0: nothing that this version sends; -1 with an exception. */
static int check_data(PyObject *data) {
    if (PyBytes_Check(data) || PyByteArray_Check(data) || PyMemoryView_Check(data))
        return SENDS_EMPTY ? 1 : PyObject_IsTrue(data);
    PyObject *name = PyType_GetName(Py_TYPE(data));
    if (name != NULL)
        PyErr_Format(PyExc_TypeError, "data argument must be a bytes-like object, not %R", name);
    Py_XDECREF(name);
    return -1;
}

/* Where the endpoint was made with a remote address, all goes there. */
static int check_address(DatagramObject *t, PyObject **address) {
    if (t->address == Py_None)
        return 0;
    int same = *address == Py_None ? 1 : PyObject_RichCompareBool(*address, t->address, Py_EQ);
    if (same == 0)
        PyErr_Format(PyExc_ValueError, "Invalid address: must be None or %S", t->address);
    *address = t->address;
    return same > 0 ? 0 : -1;
}

static int send_to(DatagramObject *t, PyObject *data, PyObject *address) {
    struct sockaddr_storage to;
    unsigned size = 0;
    if (is_lost(t) && (t->address != Py_None || t->socket == NULL))
        return count_lost(t);
    bool to_peer = t->has_peername || (t->connected && address == Py_None);
    if (!to_peer && address != Py_None)
        size = address_from_python(t->loop, t->family, address, &to);
    if (t->closing || (!to_peer && size == 0))
        return send_by_socket(t, data, to_peer ? NULL : address);
    return send_core(t, data, &to, size) == -ENOMEM ? loop_raise(-ENOMEM) : 0;
}

static int name_argument(PyObject *name) {
    if (PyUnicode_CompareWithASCIIString(name, "data") == 0)
        return 0;
    if (PyUnicode_CompareWithASCIIString(name, "addr") == 0)
        return 1;
    PyErr_Format(PyExc_TypeError, "sendto() got an unexpected keyword argument '%U'", name);
    return -1;
}

static PyObject *datagram_sendto(DatagramObject *t, PyObject *const *args, Py_ssize_t n,
                                 PyObject *names) {
    PyObject *found[2] = {NULL, Py_None};
    Py_ssize_t named = names == NULL ? 0 : PyTuple_GET_SIZE(names);
    for (Py_ssize_t i = 0; i < n + named && i < 2; i++) {
        int at = i < n ? (int)i : name_argument(PyTuple_GET_ITEM(names, i - n));
        if (at < 0)
            return NULL;
        found[at] = args[i];
    }
    if (found[0] == NULL || n + named > 2) {
        PyErr_SetString(PyExc_TypeError, "sendto() takes data, and an address or None");
        return NULL;
    }
    int code = check_data(found[0]);
    if (code > 0)
        code = check_address(t, &found[1]);
    else if (code == 0)
        Py_RETURN_NONE;
    if (code == 0)
        code = send_to(t, found[0], found[1]);
    return code < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *datagram_get_write_buffer_size(DatagramObject *t, PyObject *Py_UNUSED(ignored)) {
    bk_datagram_flush(t->core); /* what waits for the callback's return is not yet refused */
    return PyLong_FromSize_t(bk_datagram_queued(t->core));
}

static PyObject *datagram_get_write_buffer_limits(DatagramObject *t, PyObject *Py_UNUSED(ignored)) {
    unsigned low = t->core != NULL ? t->core->low : 0;
    unsigned high = t->core != NULL ? t->core->high : 0;
    return Py_BuildValue("(II)", low, high);
}

static PyObject *datagram_set_write_buffer_limits(DatagramObject *t, PyObject *args,
                                                  PyObject *kwargs) {
    size_t low, high;
    if (transport_parse_water(args, kwargs, BK_WATER_HIGH, &low, &high) < 0)
        return NULL;
    (void)bk_datagram_set_water(t->core, low, high);
    Py_RETURN_NONE;
}

/* ---- Receiving ---- */

static PyObject *datagram_is_reading(DatagramObject *t, PyObject *Py_UNUSED(ignored)) {
    return PyBool_FromLong(!t->closing && !t->paused);
}

static PyObject *datagram_pause_reading(DatagramObject *t, PyObject *Py_UNUSED(ignored)) {
    if (!t->closing) {
        t->paused = true;
        bk_datagram_pause(t->core);
    }
    Py_RETURN_NONE;
}

static PyObject *datagram_resume_reading(DatagramObject *t, PyObject *Py_UNUSED(ignored)) {
    if (!t->closing)
        t->paused = false;
    if (!t->closing && t->started)
        bk_datagram_resume(t->core);
    Py_RETURN_NONE;
}

/* ---- The end ---- */

/* asyncio sends in sendto(), so what was sent before has gone as far as it would. */
static PyObject *datagram_close(DatagramObject *t, PyObject *Py_UNUSED(ignored)) {
    t->closing = true;
    bk_datagram_flush(t->core);
    bk_datagram_close(t->core);
    Py_RETURN_NONE;
}

static PyObject *datagram_abort(DatagramObject *t, PyObject *Py_UNUSED(ignored)) {
    t->closing = true;
    bk_datagram_flush(t->core);
    bk_datagram_abort(t->core);
    Py_RETURN_NONE;
}

static PyObject *datagram_is_closing(DatagramObject *t, PyObject *Py_UNUSED(ignored)) {
    return PyBool_FromLong(t->closing);
}

static PyObject *datagram_set_protocol(DatagramObject *t, PyObject *protocol) {
    Py_XSETREF(t->protocol, t->core == NULL ? NULL : Py_NewRef(protocol));
    Py_RETURN_NONE;
}

static PyObject *datagram_get_protocol(DatagramObject *t, PyObject *Py_UNUSED(ignored)) {
    return Py_NewRef(t->protocol != NULL ? t->protocol : Py_None);
}

static PyObject *datagram_repr(DatagramObject *t) {
    const char *name = _PyType_Name(Py_TYPE(t));
    if (t->core == NULL)
        return PyUnicode_FromFormat("<%s closed fd=%d>", name, t->fd);
    return PyUnicode_FromFormat("<%s%s fd=%d read=%s write=<%s, bufsize=%zu>>", name,
                                t->closing ? " closing" : "", t->fd,
                                t->core->watched & BK_READ ? "polling" : "idle",
                                t->core->watched & BK_WRITE ? "polling" : "idle", t->core->queued);
}

static PyMethodDef datagram_methods[] = {
    {"sendto", (PyCFunction)(void (*)(void))datagram_sendto, METH_FASTCALL | METH_KEYWORDS,
     "sendto(data, addr=None)\n\nSend bytes-like data to an address, with all that is sent in the "
     "same callback, when it returns; to the remote address where there is one. Does not block."},
    {"get_write_buffer_size", (PyCFunction)datagram_get_write_buffer_size, METH_NOARGS,
     "get_write_buffer_size() -> int\n\nBytes that are queued because the socket is full."},
    {"get_write_buffer_limits", (PyCFunction)datagram_get_write_buffer_limits, METH_NOARGS,
     "get_write_buffer_limits() -> (low, high)\n\nThe water marks, in bytes."},
    {"set_write_buffer_limits", (PyCFunction)(void (*)(void))datagram_set_write_buffer_limits,
     METH_VARARGS | METH_KEYWORDS,
     "set_write_buffer_limits(high=None, low=None)\n\n"
     "Set the water marks, in bytes: pause_writing() above high, resume_writing() at low."},
    {"is_reading", (PyCFunction)datagram_is_reading, METH_NOARGS,
     "is_reading() -> bool\n\nWhether datagrams are being received."},
    {"pause_reading", (PyCFunction)datagram_pause_reading, METH_NOARGS,
     "pause_reading()\n\nCall no datagram_received() until resume_reading()."},
    {"resume_reading", (PyCFunction)datagram_resume_reading, METH_NOARGS,
     "resume_reading()\n\nReceive datagrams again."},
    {"close", (PyCFunction)datagram_close, METH_NOARGS,
     "close()\n\nSend what is queued, then close; connection_lost(None) follows."},
    {"abort", (PyCFunction)datagram_abort, METH_NOARGS,
     "abort()\n\nClose now; what is queued is lost; connection_lost(None) follows."},
    {"is_closing", (PyCFunction)datagram_is_closing, METH_NOARGS,
     "is_closing() -> bool\n\nWhether it is closing, or closed."},
    {"set_protocol", (PyCFunction)datagram_set_protocol, METH_O,
     "set_protocol(protocol)\n\nWhat is received from now on goes to this protocol."},
    {"get_protocol", (PyCFunction)datagram_get_protocol, METH_NOARGS,
     "get_protocol()\n\nThe protocol; None once the transport is closed."},
    {"_start", (PyCFunction)datagram_start, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef datagram_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(DatagramObject, weakrefs), READONLY, NULL},
    {"__dictoffset__", T_PYSSIZET, offsetof(DatagramObject, dict), READONLY, NULL},
    {"_loop", T_OBJECT, offsetof(DatagramObject, loop), READONLY, NULL},
    {"_protocol", T_OBJECT, offsetof(DatagramObject, protocol), READONLY, NULL},
    {"_sock", T_OBJECT, offsetof(DatagramObject, socket), READONLY, NULL},
    {"_address", T_OBJECT, offsetof(DatagramObject, address), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyObject *datagram_get_protocol_paused(DatagramObject *t, void *Py_UNUSED(closure)) {
    return PyBool_FromLong(t->core != NULL && t->core->flags & BK_DATAGRAM_BLOCKED);
}

static PyGetSetDef datagram_getset[] = {
    {"_protocol_paused", (getter)datagram_get_protocol_paused, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot datagram_slots[] = {
    {Py_tp_doc, "An asyncio transport of datagrams, over a socket of the core."},
    {Py_tp_dealloc, datagram_dealloc},
    {Py_tp_traverse, datagram_traverse},
    {Py_tp_clear, datagram_clear},
    {Py_tp_repr, datagram_repr},
    {Py_tp_methods, datagram_methods},
    {Py_tp_members, datagram_members},
    {Py_tp_getset, datagram_getset},
    {0, NULL},
};

PyType_Spec datagram_spec = {
    .name = "becket._becket.DatagramTransport",
    .basicsize = sizeof(DatagramObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = datagram_slots,
};
