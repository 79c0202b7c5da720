/*
 * gate.c: a server's limits, and its count of connections: the core's gate as an object. Made by
 * becket.Server (python/becket/server.py), given to listeners of any of its loops.
 */
#include "becket_py.h"

#include <structmember.h>

typedef struct GateObject {
    PyObject_HEAD bk_gate *gate;
    PyObject *leave; /* NULL: nobody is told */
} GateObject;

bk_gate *gate_core(PyObject *object) {
    return ((GateObject *)object)->gate;
}

static PyObject *peer_of(const bk_visitor *v) {
    return v->peer_size > 0 ? address_to_python(v->peer, v->peer_size) : Py_NewRef(Py_None);
}

/* In the connection's loop, whose thread has the GIL. */
static void leave(void *arg, const bk_visitor *v) {
    GateObject *self = arg;
    PyObject *peer = peer_of(v);
    PyObject *result =
        peer == NULL ? NULL
                     : PyObject_CallFunction(self->leave, "sOddKKiz", v->listener, peer,
                                             (double)v->began * 1e-9, (double)v->lasted * 1e-9,
                                             (unsigned long long)v->bytes_in,
                                             (unsigned long long)v->bytes_out, v->why,
                                             v->why == 0 ? NULL : bk_strerror(v->why));
    if (result == NULL)
        PyErr_WriteUnraisable(self->leave);
    Py_XDECREF(result);
    Py_XDECREF(peer);
}

static PyObject *gate_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"leave",
                            "max_connections",
                            "max_per_address",
                            "max_pending_handshakes",
                            "accept_rate",
                            "first_byte",
                            "idle",
                            "write",
                            "total",
                            NULL};
    bk_limits limits = {.size = sizeof limits};
    PyObject *callback = Py_None;
    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "|O$IIIIIIII:Gate", names, &callback, &limits.max_connections,
            &limits.max_per_address, &limits.max_pending_handshakes, &limits.accept_rate,
            &limits.first_byte, &limits.idle, &limits.write, &limits.total))
        return NULL;
    GateObject *self = (GateObject *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->leave = callback == Py_None ? NULL : Py_NewRef(callback);
    int code = bk_gate_new(bk_os_default(), &limits, self->leave == NULL ? NULL : leave, self,
                           &self->gate);
    if (code < 0) {
        loop_raise(code);
        Py_CLEAR(self);
    }
    return (PyObject *)self;
}

static PyObject *gate_stats(GateObject *self, PyObject *Py_UNUSED(ignored)) {
    bk_gate_stats s = {.size = sizeof s};
    bk_gate_stats_of(self->gate, &s);
    return Py_BuildValue(
        "{sKsKsKsKsKsKsIsI}", "accepted", (unsigned long long)s.accepted, "refused",
        (unsigned long long)s.refused, "closed", (unsigned long long)s.closed, "failed",
        (unsigned long long)s.failed, "bytes_in", (unsigned long long)s.bytes_in, "bytes_out",
        (unsigned long long)s.bytes_out, "connections", s.connections, "handshakes", s.handshakes);
}

static PyObject *gate_shut(GateObject *self, PyObject *Py_UNUSED(ignored)) {
    bk_gate_shut(self->gate);
    Py_RETURN_NONE;
}

static int gate_traverse(GateObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->leave);
    return 0;
}

static int gate_clear(GateObject *self) {
    Py_CLEAR(self->leave);
    return 0;
}

static void gate_dealloc(GateObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    bk_gate_unref(self->gate);
    gate_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef gate_methods[] = {
    {"stats", (PyCFunction)gate_stats, METH_NOARGS,
     "stats() -> dict[str, int]\n\naccepted, refused, closed, failed; bytes_in, bytes_out of what "
     "is closed; connections and handshakes of now. Thread-safe."},
    {"shut", (PyCFunction)gate_shut, METH_NOARGS, "shut()\n\nRefuse everybody. Thread-safe."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot gate_slots[] = {
    {Py_tp_doc,
     "Gate(leave=None, *, max_connections=0, max_per_address=0, max_pending_handshakes=0, "
     "accept_rate=0, "
     "first_byte=0, idle=0, write=0, total=0)\n\nLimits; 0: none; times in seconds. "
     "leave(endpoint, "
     "peer, began, seconds, bytes_in, bytes_out, code, why) is called for each connection that has "
     "ended, in its loop's thread."},
    {Py_tp_new, gate_new},
    {Py_tp_dealloc, gate_dealloc},
    {Py_tp_traverse, gate_traverse},
    {Py_tp_clear, gate_clear},
    {Py_tp_methods, gate_methods},
    {0, NULL},
};

PyType_Spec gate_spec = {
    .name = "becket._becket.Gate",
    .basicsize = sizeof(GateObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = gate_slots,
};
