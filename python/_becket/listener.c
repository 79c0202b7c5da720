/*
 * listener.c: connections that come in, for asyncio servers: the core accepts, in batches and with
 * its patience when descriptors run out; each connection gets a protocol from the factory. Made by
 * EventLoop._start_serving().
 */
#include "becket_py.h"

#include "core/serve/serve.h"

/* ---- Connections ---- */

static void refused(bk_stream *s, int why) {
    (void)s;
    (void)why;
}

/* The table of a stream whose transport could not be made; it is closed at once. */
static const bk_protocol no_protocol = {
    .size = sizeof(bk_protocol), .name = "refused", .closed = refused};

static PyObject *make_protocol(ListenerObject *self, PyObject *context) {
    if (PyContext_Enter(context) < 0)
        return NULL;
    PyObject *factory = Py_NewRef(self->factory);
    PyObject *protocol = PyObject_CallNoArgs(factory);
    Py_DECREF(factory);
    PyObject *type, *value, *tb;
    PyErr_Fetch(&type, &value, &tb);
    (void)PyContext_Exit(context);
    PyErr_Restore(type, value, tb);
    return protocol;
}

/* Each connection has a copy of the context that create_server() was called in, and keeps it. */
static TransportObject *make_transport(ListenerObject *self) {
    PyObject *context = PyContext_Copy(self->context);
    if (context == NULL)
        return NULL;
    PyObject *protocol = make_protocol(self, context);
    TransportObject *t = NULL;
    if (protocol != NULL)
        t = transport_new(self->loop, protocol, context, self->server);
    Py_XDECREF(protocol);
    Py_DECREF(context);
    return t;
}

static int welcome(ListenerObject *self, bk_stream *s) {
    LoopObject *loop = self->loop;
    TransportObject *t = make_transport(self);
    if (t == NULL) {
        bk_stream_set_protocol(s, &no_protocol);
        loop_report(loop, "Error on transport creation for incoming connection", NULL, NULL, NULL);
        return -ECANCELED;
    }
    int code = transport_attach(t, s);
    if (code == 0 && self->tls.context != NULL)
        code = tls_prepare(t, &self->tls, Py_None) < 0 ? -1 : tls_start(t, "", 0);
    else if (code == 0)
        transport_made(t);
    if (code < 0) {
        loop_report(loop, "Error on transport creation for incoming connection", (PyObject *)t,
                    NULL, NULL);
        if (t->stream != NULL)
            bk_stream_abort(t->stream);
    }
    Py_DECREF((PyObject *)t); /* the stream has its own */
    return 0;
}

static int opened(bk_stream *s) {
    ListenerObject *self = bk_stream_protocol(s)->context;
    if (self->loop->ending)
        return -ECANCELED;
    Py_INCREF((PyObject *)self); /* what is called may close the server, and us with it */
    int code = welcome(self, s);
    Py_DECREF((PyObject *)self);
    return code;
}

/* ---- Life ---- */

/* tls: None, or (sslcontext, handshake_timeout, shutdown_timeout) */
static int parse(PyObject *args, LoopObject **ret_loop, int *ret_fd, PyObject **ret_factory,
                 PyObject **ret_server, TlsSpec *ret_tls, PyTypeObject *loop_type) {
    PyObject *loop, *factory, *server = Py_None, *tls = Py_None;
    int fd;
    *ret_tls = (TlsSpec){.server_side = 1, .server_hostname = Py_None};
    if (!PyArg_ParseTuple(args, "O!iO|OO:Listener", loop_type, &loop, &fd, &factory, &server,
                          &tls) ||
        loop_check_open((LoopObject *)loop) < 0)
        return -1;
    if (tls != Py_None &&
        !PyArg_ParseTuple(tls, "OOO", &ret_tls->context, &ret_tls->handshake_timeout,
                          &ret_tls->shutdown_timeout))
        return -1;
    *ret_loop = (LoopObject *)loop;
    *ret_fd = fd;
    *ret_factory = factory;
    *ret_server = server;
    return 0;
}

/* The listening socket is the caller's: it is given back, not closed. */
static void let_go(void *arg) {
    bk_acceptor_drop(arg);
    bk_acceptor_free(arg);
}

static int listen_on(ListenerObject *self, int fd) {
    bk_acceptor *acceptor;
    int code = bk_acceptor_new(self->loop->core, &self->protocol, 1, &acceptor);
    if (code < 0)
        return code;
    bk_acceptor_add(acceptor, fd);
    code = bk_acceptor_start(acceptor);
    if (code >= 0)
        code = bk_acceptor_listener(acceptor, "asyncio", let_go, acceptor, &self->core);
    if (code < 0)
        let_go(acceptor);
    return code;
}

/* Listener(loop, fd, factory, server=None, tls=None): fd is a listening socket, and stays the
   caller's. */
static PyObject *listener_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs)) {
    module_state *state = state_of_type(type);
    LoopObject *loop;
    PyObject *factory, *server;
    TlsSpec tls;
    int fd;
    if (state == NULL || parse(args, &loop, &fd, &factory, &server, &tls, state->loop_type) < 0)
        return NULL;
    ListenerObject *self = (ListenerObject *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->loop = (LoopObject *)Py_NewRef((PyObject *)loop);
    self->factory = Py_NewRef(factory);
    self->server = Py_NewRef(server);
    self->tls = tls;
    tls_spec_ref(&tls);
    self->protocol = (bk_protocol){
        .size = sizeof(bk_protocol), .name = "asyncio", .context = self, .opened = opened};
    self->context = PyContext_CopyCurrent();
    int code = self->context == NULL ? -ENOMEM : listen_on(self, fd);
    if (code < 0) {
        loop_raise(code);
        Py_CLEAR(self);
    }
    return (PyObject *)self;
}

static void end_listener(ListenerObject *self) {
    bk_listener *core = self->core;
    self->core = NULL;
    if (core != NULL && self->loop->core != NULL && !self->loop->ending)
        bk_listener_close(core);
}

static PyObject *listener_close(ListenerObject *self, PyObject *Py_UNUSED(ignored)) {
    end_listener(self);
    Py_CLEAR(self->server); /* which refers to us */
    Py_RETURN_NONE;
}

static int listener_traverse(ListenerObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT((PyObject *)self->loop);
    Py_VISIT(self->factory);
    Py_VISIT(self->server);
    Py_VISIT(self->context);
    Py_VISIT(self->tls.context);
    return 0;
}

static int listener_clear(ListenerObject *self) {
    end_listener(self);
    Py_CLEAR(self->factory);
    Py_CLEAR(self->server);
    Py_CLEAR(self->context);
    Py_CLEAR(self->tls.context);
    return 0;
}

static void listener_dealloc(ListenerObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    listener_clear(self);
    tls_spec_clear(&self->tls);
    Py_CLEAR(self->loop);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef listener_methods[] = {
    {"close", (PyCFunction)listener_close, METH_NOARGS, "close()\n\nAccept no more."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot listener_slots[] = {
    {Py_tp_doc, "Listener(loop, fd, factory, server=None, tls=None): accepts connections on a "
                "socket."},
    {Py_tp_new, listener_new},
    {Py_tp_dealloc, listener_dealloc},
    {Py_tp_traverse, listener_traverse},
    {Py_tp_clear, listener_clear},
    {Py_tp_methods, listener_methods},
    {0, NULL},
};

PyType_Spec listener_spec = {
    .name = "becket._becket.Listener",
    .basicsize = sizeof(ListenerObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = listener_slots,
};
