/*
 * connector.c: a connection being made to an endpoint, of any scheme: the core connects, and when
 * it is open, TLS included, a protocol comes from the factory. Made by EventLoop.connect_endpoint()
 * and by becket.connect().
 */
#include "becket_py.h"

#include "core/serve/serve.h"

/* ---- Outcomes ---- */

/* The waiter learns that, once; whoever waited may have given up. */
static void tell(ConnectorObject *self, PyObject *method, PyObject *value) {
    PyObject *waiter = self->waiter;
    self->waiter = NULL;
    if (waiter == NULL || self->loop->ending) {
        Py_XDECREF(waiter);
        return;
    }
    PyObject *done = PyObject_CallMethodNoArgs(waiter, self->loop->state->str_done);
    PyObject *result = done == Py_False ? PyObject_CallMethodOneArg(waiter, method, value) : NULL;
    if (PyErr_Occurred())
        PyErr_WriteUnraisable(waiter);
    Py_XDECREF(result);
    Py_XDECREF(done);
    Py_DECREF(waiter);
}

/* The exception that is set, or was raised by the factory, goes to the waiter; nothing but that. */
static void tell_raised(ConnectorObject *self) {
    if (loop_take_fatal(self->loop))
        return;
    PyObject *type, *value, *tb;
    PyErr_Fetch(&type, &value, &tb);
    PyErr_NormalizeException(&type, &value, &tb);
    if (tb != NULL)
        (void)PyException_SetTraceback(value, tb);
    tell(self, self->loop->state->str_set_exception, value);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(tb);
}

/* The stream has let go of us. */
static void part(ConnectorObject *self) {
    self->stream = NULL;
    Py_DECREF((PyObject *)self);
}

static void failed(bk_stream *s, int why) {
    ConnectorObject *self = bk_stream_user(s);
    if (self == NULL) /* it failed when it was made ours: its waiter knows */
        return;
    if (!self->loop->ending && self->waiter != NULL) {
        PyObject *e = stream_exception(self->loop->state, s, why);
        if (e == NULL)
            tell_raised(self);
        else
            tell(self, self->loop->state->str_set_exception, e);
        Py_XDECREF(e);
    }
    part(self);
}

static const bk_protocol no_protocol = {
    .size = sizeof(bk_protocol), .name = "given up", .closed = failed};

static PyObject *make_protocol(ConnectorObject *self) {
    if (PyContext_Enter(self->context) < 0)
        return NULL;
    PyObject *protocol = PyObject_CallNoArgs(self->factory);
    PyObject *type, *value, *tb;
    PyErr_Fetch(&type, &value, &tb);
    (void)PyContext_Exit(self->context);
    PyErr_Restore(type, value, tb);
    return protocol;
}

/* The stream becomes a transport's, whose protocol hears that it is there before the waiter does.
 */
static int begin(ConnectorObject *self, bk_stream *s) {
    PyObject *protocol = make_protocol(self);
    TransportObject *t =
        protocol != NULL ? transport_new(self->loop, protocol, self->context, NULL) : NULL;
    Py_XDECREF(protocol);
    if (t == NULL)
        return -1;
    if (self->waiter == NULL || s->flags & BK_STREAM_CLOSED) { /* the factory gave it up */
        Py_DECREF((PyObject *)t);
        return -1;
    }
    int code = transport_attach(t, s);
    self->stream = NULL;
    if (code == 0) {
        transport_made(t);
        tell(self, self->loop->state->str_set_result, (PyObject *)t);
    }
    Py_DECREF((PyObject *)t); /* the stream has its own */
    return code;
}

static int opened(bk_stream *s) {
    ConnectorObject *self = bk_stream_user(s);
    if (self->loop->ending)
        return -ECANCELED;
    Py_INCREF((PyObject *)self); /* what is called may give it up */
    if (begin(self, s) < 0) {
        if (PyErr_Occurred())
            tell_raised(self);
        if (self->stream != NULL) { /* else it is a transport's, and ends as that */
            bk_stream_set_protocol(s, &no_protocol);
            Py_DECREF((PyObject *)self);
            return -ECANCELED;
        }
    }
    Py_DECREF((PyObject *)self); /* the stream's, */
    Py_DECREF((PyObject *)self); /* and ours */
    return 0;
}

static const bk_protocol connecting = {
    .size = sizeof(bk_protocol), .name = "connecting", .opened = opened, .closed = failed};

/* What the collector is to visit, of a stream that is not a transport's yet; or NULL. */
PyObject *connector_of(const bk_stream *s) {
    const bk_protocol *protocol = bk_stream_protocol(s);
    return protocol->closed == failed ? bk_stream_user(s) : NULL;
}

/* ---- Life ---- */

/* The state of an attempt that was begun: what is connected goes from stream to transport. */
static int begin_connecting(ConnectorObject *self, const char *endpoint) {
    bk_error error = {0, 0, ""};
    bk_stream *s;
    int code = bk_connect(self->loop->core, endpoint, &connecting, self, &error, &s);
    if (code < 0) {
        (void)endpoint_raise(self->loop->state, endpoint, &error);
        return -1;
    }
    self->stream = s;
    Py_INCREF((PyObject *)self); /* the stream's */
    return 0;
}

/* Connector(loop, endpoint, factory, waiter): the waiter, a future, gets the transport. */
static PyObject *connector_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs)) {
    module_state *state = state_of_type(type);
    PyObject *loop, *text, *factory, *waiter;
    if (state == NULL || !PyArg_ParseTuple(args, "O!OOO:Connector", state->loop_type, &loop, &text,
                                           &factory, &waiter))
        return NULL;
    const char *endpoint = endpoint_text(text);
    if (endpoint == NULL || loop_check_open((LoopObject *)loop) < 0)
        return NULL;
    ConnectorObject *self = (ConnectorObject *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->loop = (LoopObject *)Py_NewRef(loop);
    self->factory = Py_NewRef(factory);
    self->waiter = Py_NewRef(waiter);
    self->context = PyContext_CopyCurrent();
    if (self->context == NULL || begin_connecting(self, endpoint) < 0)
        Py_CLEAR(self);
    return (PyObject *)self;
}

/* Its closed() comes with the next turn, and tells nobody. */
static PyObject *connector_close(ConnectorObject *self, PyObject *Py_UNUSED(ignored)) {
    Py_CLEAR(self->waiter);
    if (self->stream != NULL && !self->loop->ending)
        bk_stream_abort(self->stream);
    Py_RETURN_NONE;
}

static int connector_traverse(ConnectorObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT((PyObject *)self->loop);
    Py_VISIT(self->factory);
    Py_VISIT(self->waiter);
    Py_VISIT(self->context);
    return 0;
}

static int connector_clear(ConnectorObject *self) {
    Py_CLEAR(self->factory);
    Py_CLEAR(self->waiter);
    Py_CLEAR(self->context);
    return 0;
}

static void connector_dealloc(ConnectorObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    connector_clear(self);
    Py_CLEAR(self->loop);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef connector_methods[] = {
    {"close", (PyCFunction)connector_close, METH_NOARGS, "close()\n\nGive it up."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot connector_slots[] = {
    {Py_tp_doc, "Connector(loop, endpoint, factory, waiter): a connection being made."},
    {Py_tp_new, connector_new},
    {Py_tp_dealloc, connector_dealloc},
    {Py_tp_traverse, connector_traverse},
    {Py_tp_clear, connector_clear},
    {Py_tp_methods, connector_methods},
    {0, NULL},
};

PyType_Spec connector_spec = {
    .name = "becket._becket.Connector",
    .basicsize = sizeof(ConnectorObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = connector_slots,
};
