/*
 * seal.c: the data of TLS under Twisted, in C: what is received is opened, and what is written
 * sealed, by OpenSSL's functions as pyOpenSSL has them, on the very connection that pyOpenSSL made.
 * becket.twisted.tls derives its protocol from this type and from Twisted's own, in this order:
 * handshakes, closing and errors are Twisted's, and until the handshake is over all of it is.
 *
 * Where the transport is a Wire, the two know each other, and bytes pass between them without a
 * call of Python's.
 */
#include "becket_py.h"

#include <structmember.h>

enum {
    RECORD_BYTES = 16 * 1024, /* the most that a record of TLS carries */
    WANTS_READ = 2,           /* SSL_ERROR_WANT_READ */
};

/* OpenSSL's, by address: pyOpenSSL brings a library of its own, which nothing else can find. */
typedef struct seal_functions {
    int (*SSL_read)(void *ssl, void *room, int n);
    int (*SSL_write)(void *ssl, const void *data, int n);
    int (*SSL_get_error)(const void *ssl, int result);
    int (*BIO_read)(void *bio, void *room, int n);
    int (*BIO_write)(void *bio, const void *data, int n);
    long (*BIO_get_mem_data)(void *bio, char **ret_data);
    int (*SSL_pending)(const void *ssl);
    unsigned long (*ERR_peek_error)(void);
    void (*ERR_clear_error)(void);
} seal_functions;

/* The state that Twisted's protocol has in attributes of the same names. */
typedef struct SealObject {
    PyObject_HEAD module_state *state;
    PyObject *connection; /* keeps what is below; NULL: Twisted does the work */
    void *ssl, *into, *from;
    seal_functions f;
    PyObject *wire; /* the transport, where that is one, or is below a way past its TLS */
    int past;       /* … which is so */
    PyObject *wrapped, *transport, *producer, *unsent;
    int lost, aborted, disconnecting;
} SealObject;

static int call_one(PyObject *object, PyObject *method, PyObject *arg) {
    PyObject *result = PyObject_CallMethodOneArg(object, method, arg);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* Twisted learns, by the method of that name, what OpenSSL had to say. */
static int call_number(SealObject *self, const char *method, int number) {
    PyObject *result = PyObject_CallMethod((PyObject *)self, method, "i", number);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

static int send_bytes(SealObject *self, PyObject *bytes) {
    if (self->wire != NULL)
        return wire_send(self->wire, bytes, self->past);
    PyObject *transport = Py_NewRef(self->transport);
    int code = call_one(transport, self->state->str_write, bytes);
    Py_DECREF(transport);
    return code;
}

static long pending(const SealObject *self, void *bio) {
    char *data;
    return self->f.BIO_get_mem_data(bio, &data);
}

/* What OpenSSL wants sent. */
static int send_sealed(SealObject *self) {
    long n;
    while (self->connection != NULL && (n = pending(self, self->from)) > 0) {
        int part = n < INT_MAX ? (int)n : INT_MAX;
        PyObject *bytes = PyBytes_FromStringAndSize(NULL, part);
        int code = bytes == NULL ? -1 : 0;
        if (code == 0 && self->f.BIO_read(self->from, PyBytes_AS_STRING(bytes), part) != part) {
            PyErr_NoMemory();
            code = -1;
        }
        if (code == 0)
            code = send_bytes(self, bytes);
        Py_XDECREF(bytes);
        if (code < 0)
            return -1;
    }
    return 0;
}

static int deliver(SealObject *self, const char *data, int n) {
    PyObject *bytes = self->wire != NULL ? wire_bytes(self->wire, data, (size_t)n)
                                         : PyBytes_FromStringAndSize(data, n);
    PyObject *protocol = Py_NewRef(self->wrapped);
    int code = bytes == NULL ? -1 : call_one(protocol, self->state->str_dataReceived, bytes);
    Py_XDECREF(bytes);
    Py_DECREF(protocol);
    return code;
}

/* What others left in the thread's queue of errors would be taken for ours. */
static void forget_errors(const SealObject *self) {
    if (self->f.ERR_peek_error() != 0)
        self->f.ERR_clear_error();
}

/* Without reading ahead, which pyOpenSSL cannot switch on, nothing is between these two. */
static bool may_hold_more(const SealObject *self) {
    return pending(self, self->into) > 0 || self->f.SSL_pending(self->ssl) > 0;
}

/* Open what has come, and hand it on. */
static int open_received(SealObject *self) {
    char room[RECORD_BYTES];
    do {
        forget_errors(self);
        int n = self->f.SSL_read(self->ssl, room, sizeof room);
        if (n <= 0 && self->f.SSL_get_error(self->ssl, n) == WANTS_READ)
            break;
        if (n <= 0)
            return call_number(self, "_not_opened", n);
        if (!self->aborted && deliver(self, room, n) < 0)
            return -1;
    } while (!self->lost && self->connection != NULL && may_hold_more(self));
    return send_sealed(self);
}

static bool holds_unsent(const SealObject *self) {
    return self->unsent == NULL || !PyList_Check(self->unsent) || PyList_GET_SIZE(self->unsent) > 0;
}

static bool opens(const SealObject *self) {
    return self->connection != NULL && !self->lost && !holds_unsent(self);
}

static int open_bytes(SealObject *self, const char *data, size_t size) {
    int n = size > 0 && size <= INT_MAX ? self->f.BIO_write(self->into, data, (int)size) : 0;
    if (n == 0)
        return 0;
    if ((size_t)n != size) {
        PyErr_NoMemory();
        return -1;
    }
    Py_INCREF((PyObject *)self);
    int code = open_received(self);
    Py_DECREF((PyObject *)self);
    return code;
}

/* Of the wire: what it has received. */
int seal_receive(PyObject *seal, const void *data, size_t n) {
    SealObject *self = (SealObject *)seal;
    if (opens(self))
        return open_bytes(self, data, n);
    PyObject *result = PyObject_CallMethod(seal, "_receive_slowly", "y#", data, (Py_ssize_t)n);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

static PyObject *seal_data_received(SealObject *self, PyObject *data) {
    if (!opens(self) || !PyBytes_Check(data))
        return PyObject_CallMethod((PyObject *)self, "_receive_slowly", "O", data);
    size_t n = (size_t)PyBytes_GET_SIZE(data);
    return open_bytes(self, PyBytes_AS_STRING(data), n) < 0 ? NULL : Py_NewRef(Py_None);
}

/* A renegotiation, or a new key, may want the peer's words first: the rest is kept by Twisted. */
static int keep_rest(SealObject *self, const char *data, Py_ssize_t n) {
    PyObject *result = PyObject_CallMethod((PyObject *)self, "_bufferedWrite", "y#", data, n);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

static int seal_bytes(SealObject *self, const char *data, Py_ssize_t n) {
    while (n > 0) {
        int part = n < RECORD_BYTES ? (int)n : RECORD_BYTES;
        forget_errors(self);
        int sealed = self->f.SSL_write(self->ssl, data, part);
        if (sealed <= 0 && self->f.SSL_get_error(self->ssl, sealed) == WANTS_READ)
            return keep_rest(self, data, n) < 0 ? -1 : send_sealed(self);
        if (sealed <= 0)
            return call_number(self, "_not_sealed", sealed);
        data += sealed;
        n -= sealed;
    }
    return send_sealed(self);
}

/* _write(data): without asking whether the end has begun: what was written before it still goes. */
static PyObject *seal_write_on(SealObject *self, PyObject *data) {
    if (self->lost)
        Py_RETURN_NONE;
    if (self->connection == NULL || !PyBytes_CheckExact(data))
        return PyObject_CallMethod((PyObject *)self, "_write_slowly", "O", data);
    Py_INCREF((PyObject *)self);
    int code = seal_bytes(self, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data));
    Py_DECREF((PyObject *)self);
    return code < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *seal_write(SealObject *self, PyObject *data) {
    if (self->disconnecting && (self->producer == NULL || self->producer == Py_None))
        Py_RETURN_NONE;
    return seal_write_on(self, data);
}

/* _adopt(connection, ssl, into, from, functions): the handshake is over, and the rest is ours. */
static PyObject *seal_adopt(SealObject *self, PyObject *args) {
    PyObject *connection;
    Py_ssize_t ssl, into, from, f[9];
    module_state *state = state_of_type(Py_TYPE(self));
    if (state == NULL ||
        !PyArg_ParseTuple(args, "Onnn(nnnnnnnnn):_adopt", &connection, &ssl, &into, &from, &f[0],
                          &f[1], &f[2], &f[3], &f[4], &f[5], &f[6], &f[7], &f[8]))
        return NULL;
    _Static_assert(sizeof(seal_functions) == sizeof f, "functions are as large as addresses");
    memcpy(&self->f, f, sizeof f);
    self->state = state;
    self->ssl = (void *)ssl;
    self->into = (void *)into;
    self->from = (void *)from;
    Py_XSETREF(self->connection, Py_NewRef(connection));
    Py_RETURN_NONE;
}

/* _tie(wire, past): the transport is that, or, past, a way past TLS to that. */
static PyObject *seal_tie(SealObject *self, PyObject *args) {
    module_state *state = state_of_type(Py_TYPE(self));
    PyObject *wire;
    int past;
    if (state == NULL || !PyArg_ParseTuple(args, "O!p:_tie", state->wire_type, &wire, &past))
        return NULL;
    self->past = past;
    Py_XSETREF(self->wire, Py_NewRef(wire));
    wire_tie(wire, (PyObject *)self);
    Py_RETURN_NONE;
}

/* _release(): the connection is over. It refers to the protocol, and is large. */
static PyObject *seal_release(SealObject *self, PyObject *Py_UNUSED(ignored)) {
    Py_CLEAR(self->connection);
    if (self->wire != NULL)
        wire_tie(self->wire, NULL);
    Py_CLEAR(self->wire);
    Py_RETURN_NONE;
}

static int seal_traverse(SealObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->connection);
    Py_VISIT(self->wire);
    Py_VISIT(self->wrapped);
    Py_VISIT(self->transport);
    Py_VISIT(self->producer);
    Py_VISIT(self->unsent);
    return 0;
}

static int seal_clear(SealObject *self) {
    Py_CLEAR(self->connection);
    Py_CLEAR(self->wire);
    Py_CLEAR(self->wrapped);
    Py_CLEAR(self->transport);
    Py_CLEAR(self->producer);
    Py_CLEAR(self->unsent);
    return 0;
}

static void seal_dealloc(SealObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    seal_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *seal_get_adopted(SealObject *self, void *Py_UNUSED(closure)) {
    return PyBool_FromLong(self->connection != NULL);
}

static PyMethodDef seal_methods[] = {
    {"_adopt", (PyCFunction)seal_adopt, METH_VARARGS, NULL},
    {"_release", (PyCFunction)seal_release, METH_NOARGS, NULL},
    {"_tie", (PyCFunction)seal_tie, METH_VARARGS, NULL},
    {"_write", (PyCFunction)seal_write_on, METH_O, NULL},
    {"dataReceived", (PyCFunction)seal_data_received, METH_O,
     "dataReceived(data)\n\nOpen what the transport has received, and hand it on."},
    {"write", (PyCFunction)seal_write, METH_O, "write(data)\n\nSeal bytes, and send them."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef seal_members[] = {
    {"wrappedProtocol", T_OBJECT, offsetof(SealObject, wrapped), 0, NULL},
    {"transport", T_OBJECT, offsetof(SealObject, transport), 0, NULL},
    {"_producer", T_OBJECT, offsetof(SealObject, producer), 0, NULL},
    {"_appSendBuffer", T_OBJECT, offsetof(SealObject, unsent), 0, NULL},
    {"_lostTLSConnection", T_INT, offsetof(SealObject, lost), 0, NULL},
    {"_aborted", T_INT, offsetof(SealObject, aborted), 0, NULL},
    {"disconnecting", T_INT, offsetof(SealObject, disconnecting), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef seal_getset[] = {
    {"_adopted", (getter)seal_get_adopted, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot seal_slots[] = {
    {Py_tp_doc, "The data of TLS under Twisted."},
    {Py_tp_dealloc, seal_dealloc},
    {Py_tp_traverse, seal_traverse},
    {Py_tp_clear, seal_clear},
    {Py_tp_methods, seal_methods},
    {Py_tp_members, seal_members},
    {Py_tp_getset, seal_getset},
    {0, NULL},
};

PyType_Spec seal_spec = {
    .name = "becket._becket.Seal",
    .basicsize = sizeof(SealObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .slots = seal_slots,
};
