/*
 * tls_context.c: a context of one of the core's TLS engines, as a Python object: what becket.tls's
 * Context becomes on a loop, and what an endpoint of starttls:// offers. Made by
 * EventLoop._core_context() and by transport.c, used by tls.c.
 */
#include "becket_py.h"

typedef struct TlsContextObject {
    PyObject_HEAD LoopObject *loop;
    bk_tls_context *core;
} TlsContextObject;

bk_tls_context *tls_context_core(PyObject *object) {
    return ((TlsContextObject *)object)->core;
}

static int raise_error(const bk_error *error) {
    if (error->code == -ENOMEM)
        PyErr_NoMemory();
    else if (error->code > -4000) {
        PyObject *e = PyObject_CallFunction(PyExc_OSError, "is", -error->code, error->text);
        if (e != NULL)
            PyErr_SetObject((PyObject *)Py_TYPE(e), e);
        Py_XDECREF(e);
    } else {
        PyErr_SetString(PyExc_ValueError, error->text);
    }
    return -1;
}

static int make(LoopObject *loop, PyObject *args, PyObject *kwargs, bk_tls_context **ret_core) {
    static char *names[] = {"loop",   "engine", "server_side", "certificate", "key",     "ca",
                            "verify", "alpn",   "minimum",     "maximum",     "tickets", NULL};
    bk_tls_config config = {.size = sizeof config};
    int tickets;
    PyObject *ignored;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O$zpzzziziip:TlsContext", names, &ignored,
                                     &config.engine, &config.server, &config.certificate,
                                     &config.key, &config.ca, &config.verify, &config.alpn,
                                     &config.minimum, &config.maximum, &tickets))
        return -1;
    config.no_tickets = !tickets;
    bk_error error = {0, 0, ""};
    if (bk_tls_context_new(loop->core, &config, &error, ret_core) < 0)
        return raise_error(&error);
    return 0;
}

/* TlsContext(loop, *, engine, server_side, …): as bk_tls_config; all must be given. */
static PyObject *tls_context_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    module_state *state = state_of_type(type);
    PyObject *loop = PyTuple_GET_SIZE(args) == 1 ? PyTuple_GET_ITEM(args, 0) : NULL;
    if (state == NULL || loop == NULL || !PyObject_TypeCheck(loop, state->loop_type))
        return PyErr_Format(PyExc_TypeError, "loop: a becket.EventLoop is needed");
    if (loop_check_open((LoopObject *)loop) < 0)
        return NULL;
    TlsContextObject *self = (TlsContextObject *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->loop = (LoopObject *)Py_NewRef(loop); /* an engine in Python is its */
    if (make(self->loop, args, kwargs, &self->core) < 0)
        Py_CLEAR(self);
    return (PyObject *)self;
}

/* A context of the core's that is there already, as an object. */
PyObject *tls_context_of(LoopObject *loop, bk_tls_context *core) {
    PyTypeObject *type = loop->state->tls_context_type;
    TlsContextObject *self = (TlsContextObject *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->loop = (LoopObject *)Py_NewRef((PyObject *)loop);
    self->core = bk_tls_context_ref(core);
    return (PyObject *)self;
}

static int tls_context_traverse(TlsContextObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT((PyObject *)self->loop);
    return 0;
}

static void tls_context_dealloc(TlsContextObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    bk_tls_context_unref(self->core);
    Py_CLEAR(self->loop);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyType_Slot tls_context_slots[] = {
    {Py_tp_doc, "A context of one of the core's TLS engines."},
    {Py_tp_new, tls_context_new},
    {Py_tp_dealloc, tls_context_dealloc},
    {Py_tp_traverse, tls_context_traverse},
    {0, NULL},
};

PyType_Spec tls_context_spec = {
    .name = "becket._becket.TlsContext",
    .basicsize = sizeof(TlsContextObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = tls_context_slots,
};
