/*
 * py_transport.c: transports that are written in Python: a core transport whose functions call the
 * methods of a becket.transports.Transport. Made by py_scheme.c for what a Scheme accepts, or
 * connects to.
 *
 * Bytes are copied on the way: a read's memory is the protocol's, and a write's may be anybody's,
 * and neither may be left in the hands of an author who could keep it.
 */
#include "becket_py.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>

/* What one call moves: so much, and no more, is copied again when it was refused. */
enum { MOST = 64 * 1024 };

/* Which of the optional methods a class has; as becket.transports counts them. */
enum { HAS_END = 1, HAS_FLUSH = 2, HAS_WANTS = 4, HAS_OPEN = 8, HAS_FILENO = 16, HAS_QUERY = 32 };

typedef struct py_transport {
    bk_transport base;
    bk_transport_ops ops; /* its own: without the functions that its class lacks */
    LoopObject *loop;     /* outlives it, and has the reference to the object */
    PyObject *object;
    long has;
    int fds[2]; /* for reading and writing, once it has told them */
    int broken; /* a code: what went wrong where no result could tell it */
} py_transport;

/* becket.transports.Transport begins so. */
typedef struct TransportHeadObject {
    PyObject_HEAD py_transport *core; /* NULL: not in use */
    bool used;
} TransportHeadObject;

/* ---- Exceptions as codes ---- */

/* An OSError that was raised by its class alone has no number. */
static int code_of_class(PyObject *e) {
    const struct {
        PyObject *type;
        int number;
    } known[] = {
        {PyExc_BlockingIOError, EAGAIN},
        {PyExc_InterruptedError, EINTR},
        {PyExc_ConnectionResetError, ECONNRESET},
        {PyExc_BrokenPipeError, EPIPE},
        {PyExc_ConnectionRefusedError, ECONNREFUSED},
        {PyExc_TimeoutError, ETIMEDOUT},
        {PyExc_ConnectionAbortedError, ECONNABORTED},
        {PyExc_PermissionError, EACCES},
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (PyErr_GivenExceptionMatches(e, known[i].type))
            return -known[i].number;
    return -EIO;
}

static int code_of_error(PyObject *e) {
    PyObject *number = PyObject_GetAttrString(e, "errno");
    long value = number != NULL && PyLong_Check(number) ? PyLong_AsLong(number) : 0;
    PyErr_Clear();
    Py_XDECREF(number);
    int code = value > 0 && value < 4000 ? (int)-value : code_of_class(e);
    return code == -EINTR ? -EAGAIN : code; /* of all methods: not now */
}

/* The exception that is set, as a code. One that is no OSError is a fault of the author's, and goes
   to the loop's exception handler. */
static int take_exception(py_transport *self, const char *method) {
    char message[64];
    PyObject *type, *value, *tb;
    PyErr_Fetch(&type, &value, &tb);
    PyErr_NormalizeException(&type, &value, &tb);
    int code = PyErr_GivenExceptionMatches(value, PyExc_OSError)       ? code_of_error(value)
               : PyErr_GivenExceptionMatches(value, PyExc_EOFError)    ? BK_ETRUNCATED
               : PyErr_GivenExceptionMatches(value, PyExc_MemoryError) ? -ENOMEM
                                                                       : 0;
    if (code != 0) {
        Py_XDECREF(type);
        Py_XDECREF(value);
        Py_XDECREF(tb);
        return code;
    }
    PyErr_Restore(type, value, tb);
    snprintf(message, sizeof message, "Exception in Transport.%s()", method);
    loop_report(self->loop, message, self->object, NULL, NULL);
    return -ECONNABORTED;
}

/* Where there is no result that could tell it, the next call does. */
static void break_later(py_transport *self, const char *method) {
    self->broken = take_exception(self, method);
    if (self->broken == -EAGAIN)
        self->broken = -EIO;
    bk_transport_wake(&self->base);
}

/* ---- Calling the object ---- */

static PyObject *call(py_transport *self, PyObject *method, PyObject *arg) {
    PyObject *args[] = {NULL, self->object, arg};
    size_t n = (arg != NULL ? 2 : 1) | PY_VECTORCALL_ARGUMENTS_OFFSET;
    return PyObject_VectorcallMethod(method, args + 1, n, NULL);
}

/* Ownership of arg (NULL: an exception is set) is taken. */
static PyObject *call_with(py_transport *self, PyObject *method, PyObject *arg) {
    PyObject *result = arg != NULL ? call(self, method, arg) : NULL;
    Py_XDECREF(arg);
    return result;
}

/* Whether that is done: 0, or -EAGAIN. */
static int ask_done(py_transport *self, PyObject *method, const char *name) {
    if (self->broken < 0)
        return self->broken;
    PyObject *result = call(self, method, NULL);
    int code = result == Py_True ? 0 : -EAGAIN;
    if (result != NULL && !PyBool_Check(result))
        PyErr_Format(PyExc_TypeError, "%s() returned %R: True, when that is done, or False", name,
                     result);
    if (PyErr_Occurred())
        code = take_exception(self, name);
    Py_XDECREF(result);
    return code;
}

/* ---- Reading ---- */

/* Bytes, the end, or an exception. */
static ssize_t take_bytes(PyObject *bytes, void *room, size_t n) {
    Py_buffer view;
    if (PyObject_GetBuffer(bytes, &view, PyBUF_SIMPLE) < 0)
        return -1;
    ssize_t got = view.len;
    if ((size_t)got > n)
        PyErr_Format(PyExc_ValueError, "read() returned %zd bytes and was asked for at most %zu",
                     got, n);
    else
        memcpy(room, view.buf, (size_t)got);
    PyBuffer_Release(&view);
    return got;
}

static ssize_t py_read(bk_transport *t, void *room, size_t n) {
    py_transport *self = (py_transport *)t;
    if (self->broken < 0)
        return self->broken;
    n = n < MOST ? n : MOST;
    PyObject *bytes = call_with(self, self->loop->state->str_read, PyLong_FromSize_t(n));
    ssize_t got = bytes == NULL || bytes == Py_None ? -EAGAIN : take_bytes(bytes, room, n);
    if (PyErr_Occurred())
        got = take_exception(self, "read");
    Py_XDECREF(bytes);
    return got;
}

/* ---- Writing ---- */

/* What is still to be sent: from this byte of the first of n pieces. */
typedef struct pieces {
    const struct iovec *v;
    int n;
    size_t from;
} pieces;

static PyObject *gather(const pieces *p) {
    size_t size = 0, used = 0, from = p->from;
    for (int i = 0; i < p->n && size < MOST; i++)
        size += p->v[i].iov_len;
    size -= p->n > 0 ? from : 0;
    size = size < MOST ? size : MOST;
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    for (int i = 0; bytes != NULL && used < size; i++, from = 0) {
        size_t part = p->v[i].iov_len - from;
        part = part < size - used ? part : size - used;
        memcpy(PyBytes_AS_STRING(bytes) + used, (const char *)p->v[i].iov_base + from, part);
        used += part;
    }
    return bytes;
}

static void advance(pieces *p, size_t n) {
    p->from += n;
    while (p->n > 0 && p->from >= p->v->iov_len) {
        p->from -= p->v->iov_len;
        p->v++;
        p->n--;
    }
}

/* How many of n bytes were accepted; -EAGAIN: none. */
static ssize_t accepted(py_transport *self, PyObject *result, Py_ssize_t n) {
    ssize_t sent = result == Py_None ? -EAGAIN : -1;
    if (result != NULL && result != Py_None && !PyLong_Check(result))
        PyErr_Format(PyExc_TypeError, "write() returned %R: the number of bytes accepted, or None",
                     result);
    else if (result != NULL && result != Py_None)
        sent = PyLong_AsSsize_t(result);
    if (result != NULL && !PyErr_Occurred() && sent != -EAGAIN && (sent < 0 || sent > n))
        PyErr_Format(PyExc_ValueError, "write() returned %zd and was given %zd bytes", sent, n);
    return PyErr_Occurred() ? take_exception(self, "write") : sent == 0 ? -EAGAIN : sent;
}

/* All is offered: one that takes everything need not wake the stream for more. */
static ssize_t py_write(bk_transport *t, const struct iovec *v, int n) {
    py_transport *self = (py_transport *)t;
    pieces p = {v, n, 0};
    ssize_t total = 0, sent = 0, size = 0;
    advance(&p, 0);
    while (self->broken == 0 && p.n > 0 && sent == size) {
        PyObject *bytes = gather(&p);
        size = bytes != NULL ? PyBytes_GET_SIZE(bytes) : 0;
        PyObject *result = call_with(self, self->loop->state->str_write, bytes);
        sent = accepted(self, result, size);
        Py_XDECREF(result);
        if (sent > 0) {
            total += sent;
            advance(&p, (size_t)sent);
        }
    }
    if (self->broken < 0)
        return self->broken;
    return sent < 0 && (sent != -EAGAIN || total == 0) ? sent : total;
}

static int py_flush(bk_transport *t) {
    py_transport *self = (py_transport *)t;
    return ask_done(self, self->loop->state->str_flush, "flush");
}

static unsigned py_wants(bk_transport *t, unsigned directions) {
    py_transport *self = (py_transport *)t;
    if (self->broken < 0)
        return directions != 0 ? BK_NOW : 0;
    PyObject *result =
        call_with(self, self->loop->state->str_wants, PyLong_FromUnsignedLong(directions));
    long wants = result != NULL ? PyLong_AsLong(result) : 0;
    if (!PyErr_Occurred() && wants & ~(BK_READ | BK_WRITE | BK_NOW))
        PyErr_Format(PyExc_ValueError, "wants() returned %R: READ, WRITE and NOW, or 0", result);
    Py_XDECREF(result);
    if (PyErr_Occurred()) {
        break_later(self, "wants");
        wants = BK_NOW;
    }
    return (unsigned)wants;
}

/* ---- The rest of its life ---- */

static int py_end(bk_transport *t) {
    py_transport *self = (py_transport *)t;
    return ask_done(self, self->loop->state->str_end, "end");
}

static void py_close(bk_transport *t) {
    py_transport *self = (py_transport *)t;
    PyObject *type, *value, *tb;
    PyErr_Fetch(&type, &value, &tb); /* the end comes in the midst of anything */
    ((TransportHeadObject *)self->object)->core = NULL;
    PyObject *result = call(self, self->loop->state->str_close, NULL);
    if (result == NULL && self->loop->ending)
        PyErr_WriteUnraisable(self->object);
    else if (result == NULL)
        loop_report(self->loop, "Exception in Transport.close()", self->object, NULL, NULL);
    Py_XDECREF(result);
    loop_let_go(self->loop, self->object);
    PyMem_Free(self);
    PyErr_Restore(type, value, tb);
}

/* Asked until it has one, which stays: a watch is only ended by the number it was begun with. */
static int py_fd(bk_transport *t, unsigned direction) {
    py_transport *self = (py_transport *)t;
    int *known = &self->fds[direction == BK_WRITE];
    if (!(self->has & HAS_FILENO) || self->broken < 0 || *known >= 0)
        return *known;
    PyObject *result =
        call_with(self, self->loop->state->str_fileno, PyLong_FromUnsignedLong(direction));
    long fd = result != NULL ? PyLong_AsLong(result) : -1;
    if (!PyErr_Occurred() && (fd < -1 || fd > INT_MAX))
        PyErr_Format(PyExc_ValueError, "fileno() returned %R: a descriptor, or -1", result);
    Py_XDECREF(result);
    if (!PyErr_Occurred())
        return *known = (int)fd;
    break_later(self, "fileno");
    return -1;
}

static int py_open(bk_transport *t) {
    py_transport *self = (py_transport *)t;
    return ask_done(self, self->loop->state->str_open, "open");
}

/* ---- Questions ---- */

/* (host, port) or (host, port, flow, scope), as Python has them; host is a number. */
static int answer_inet(PyObject *address, void *ret_value, size_t *size) {
    struct sockaddr_in in = {.sin_family = AF_INET};
    struct sockaddr_in6 in6 = {.sin6_family = AF_INET6};
    const char *host;
    unsigned port, flow = 0, scope = 0;
    if (!PyArg_ParseTuple(address, "sI|II", &host, &port, &flow, &scope))
        return -1;
    if (port <= 65535 && inet_pton(AF_INET, host, &in.sin_addr) == 1) {
        in.sin_port = htons((uint16_t)port);
        return bk_query_answer(ret_value, size, &in, sizeof in);
    }
    if (port <= 65535 && inet_pton(AF_INET6, host, &in6.sin6_addr) == 1) {
        in6.sin6_port = htons((uint16_t)port);
        in6.sin6_flowinfo = htonl(flow);
        in6.sin6_scope_id = scope;
        return bk_query_answer(ret_value, size, &in6, sizeof in6);
    }
    PyErr_Format(PyExc_ValueError, "query() returned %R: no IP address and port", address);
    return -1;
}

static int answer_unix(PyObject *path, void *ret_value, size_t *size) {
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    Py_ssize_t n;
    const char *text = PyUnicode_AsUTF8AndSize(path, &n);
    if (text != NULL && (size_t)n < sizeof un.sun_path) {
        memcpy(un.sun_path, text, (size_t)n);
        return bk_query_answer(ret_value, size, &un, sizeof un);
    }
    if (text != NULL)
        PyErr_Format(PyExc_ValueError, "query() returned %R: too long for a UNIX address", path);
    return -1;
}

/* An address, in the form that Python has them in; None: there is none. */
static int answer_address(py_transport *self, const char *what, void *ret_value, size_t *size) {
    PyObject *found = call_with(self, self->loop->state->str_query, PyUnicode_FromString(what));
    int code = -ENOTSUP;
    if (found != NULL && PyTuple_Check(found))
        code = answer_inet(found, ret_value, size);
    else if (found != NULL && PyUnicode_Check(found))
        code = answer_unix(found, ret_value, size);
    else if (found != NULL && found != Py_None)
        PyErr_Format(PyExc_TypeError, "query() returned %R: an address, or None", found);
    if (PyErr_Occurred()) {
        (void)take_exception(self, "query");
        code = -ENOTSUP;
    }
    Py_XDECREF(found);
    return code;
}

static int answer_name(py_transport *self, void *ret_value, size_t *size) {
    PyObject *name = PyObject_GetAttrString(self->object, "name");
    Py_ssize_t n = 0;
    const char *text = name != NULL ? PyUnicode_AsUTF8AndSize(name, &n) : NULL;
    int code = text != NULL ? bk_query_answer(ret_value, size, text, (size_t)n + 1) : -ENOTSUP;
    if (PyErr_Occurred())
        (void)take_exception(self, "name");
    Py_XDECREF(name);
    return code;
}

static int py_query(bk_transport *t, int what, void *ret_value, size_t *size) {
    py_transport *self = (py_transport *)t;
    if (what == BK_QUERY_NAME)
        return answer_name(self, ret_value, size);
    if (what == BK_QUERY_FD) {
        int fd = py_fd(t, BK_READ);
        return fd < 0 ? -ENOTSUP : bk_query_answer(ret_value, size, &fd, sizeof fd);
    }
    if (!(self->has & HAS_QUERY) || (what != BK_QUERY_PEER && what != BK_QUERY_LOCAL))
        return -ENOTSUP;
    return answer_address(self, what == BK_QUERY_PEER ? "peer" : "local", ret_value, size);
}

static void set_ops(py_transport *self) {
    self->ops = (bk_transport_ops){.size = sizeof self->ops,
                                   .name = "python",
                                   .read = py_read,
                                   .write = py_write,
                                   .flush = self->has & HAS_FLUSH ? py_flush : NULL,
                                   .wants = self->has & HAS_WANTS ? py_wants : NULL,
                                   .end = self->has & HAS_END ? py_end : NULL,
                                   .close = py_close,
                                   .fd = py_fd,
                                   .query = py_query,
                                   .open = self->has & HAS_OPEN ? py_open : NULL};
    self->base.ops = &self->ops;
}

/* Only a new one: whose bytes would they be? */
static TransportHeadObject *check(LoopObject *loop, PyObject *object) {
    if (!PyObject_TypeCheck(object, loop->state->transport_head_type)) {
        PyErr_Format(PyExc_TypeError, "a becket.transports.Transport is needed, not %R", object);
        return NULL;
    }
    TransportHeadObject *head = (TransportHeadObject *)object;
    if (!head->used)
        return head;
    PyErr_Format(PyExc_ValueError, "transport %R is in use already", object);
    return NULL;
}

/* A core transport over one in Python; -1 with an exception. */
int py_transport_new(LoopObject *loop, PyObject *object, bk_transport **ret_transport) {
    TransportHeadObject *head = check(loop, object);
    PyObject *has = head != NULL ? PyObject_GetAttrString(object, "_has") : NULL;
    py_transport *self = has != NULL ? PyMem_Calloc(1, sizeof *self) : NULL;
    if (has != NULL && self == NULL)
        PyErr_NoMemory();
    if (self != NULL)
        self->has = PyLong_AsLong(has);
    Py_XDECREF(has);
    if (PyErr_Occurred() || loop_keep(loop, object) < 0) {
        PyMem_Free(self);
        return -1;
    }
    self->loop = loop;
    self->object = object;
    self->fds[0] = self->fds[1] = -1;
    set_ops(self);
    head->core = self;
    head->used = true;
    *ret_transport = &self->base;
    return 0;
}

/* ---- The head of every Transport ---- */

static PyObject *head_wake(TransportHeadObject *self, PyObject *Py_UNUSED(ignored)) {
    if (self->core != NULL)
        bk_transport_wake(&self->core->base);
    Py_RETURN_NONE;
}

static void head_dealloc(TransportHeadObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef head_methods[] = {
    {"wake", (PyCFunction)head_wake, METH_NOARGS,
     "wake()\n\nSomething has changed: the stream will read and write again, and ask whether it is "
     "open. On the loop's thread; does nothing before the transport is in use, and after close()."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot head_slots[] = {
    {Py_tp_doc, "What becket.transports.Transport begins with."},
    {Py_tp_dealloc, head_dealloc},
    {Py_tp_methods, head_methods},
    {0, NULL},
};

PyType_Spec transport_head_spec = {
    .name = "becket._becket.TransportHead",
    .basicsize = sizeof(TransportHeadObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = head_slots,
};
