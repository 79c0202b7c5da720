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

/* Over a limit. */
static void turned_away(bk_stream *s, const bk_protocol *protocol, int why) {
    const ListenerObject *self = protocol->context;
    (void)why;
    served_refuse(s, self->refusal);
}

/* ---- Life ---- */

/* The arguments; sockets are at most so many. */
enum { SOCKETS = 64 };

typedef struct Wanted {
    PyObject *loop, *where, *factory, *server, *tls, *gate, *sockets, *refusal, *ended;
    int fds[SOCKETS];
    int count, shared;
} Wanted;

static int parse_sockets(Wanted *w) {
    Py_ssize_t n = PySequence_Length(w->sockets);
    if (n < 0)
        return -1;
    if (n > SOCKETS) {
        PyErr_Format(PyExc_ValueError, "sockets: at most %d, got %zd", SOCKETS, n);
        return -1;
    }
    for (w->count = 0; w->count < n; w->count++) {
        PyObject *item = PySequence_GetItem(w->sockets, w->count);
        w->fds[w->count] = item == NULL ? -1 : PyObject_AsFileDescriptor(item);
        Py_XDECREF(item);
        if (w->fds[w->count] < 0)
            return -1;
    }
    return 0;
}

static int parse(PyObject *args, PyObject *kwargs, const module_state *state, Wanted *w) {
    static char *names[] = {"loop",    "where",   "factory", "server", "tls", "gate",
                            "sockets", "refusal", "ended",   "shared", NULL};
    *w = (Wanted){
        .server = Py_None, .tls = Py_None, .gate = Py_None, .refusal = Py_None, .ended = Py_None};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!OO|OO$OOOOp:Listener", names,
                                     state->loop_type, &w->loop, &w->where, &w->factory, &w->server,
                                     &w->tls, &w->gate, &w->sockets, &w->refusal, &w->ended,
                                     &w->shared) ||
        loop_check_open((LoopObject *)w->loop) < 0 || (w->sockets != NULL && parse_sockets(w) < 0))
        return -1;
    if (w->gate != Py_None && Py_TYPE(w->gate) != state->gate_type) {
        PyErr_Format(PyExc_TypeError, "gate: a Gate is needed, not %R", Py_TYPE(w->gate));
        return -1;
    }
    if (w->refusal != Py_None && !PyBytes_Check(w->refusal)) {
        PyErr_Format(PyExc_TypeError, "refusal: bytes are needed, not %R", Py_TYPE(w->refusal));
        return -1;
    }
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

/* The one connection that ever comes, as of stdio:, is no more. */
static void over(void *arg) {
    ListenerObject *self = arg;
    if (self->ended == NULL || self->loop->ending)
        return;
    PyObject *result = PyObject_CallNoArgs(self->ended);
    if (result == NULL)
        loop_report(self->loop, "Exception in the ended callback", NULL, NULL, NULL);
    Py_XDECREF(result);
}

/* What has the connections: the table here, or what the core serves by itself. */
static const bk_protocol *table_of(ListenerObject *self, const module_state *state) {
    const PyTypeObject *type = Py_TYPE(self->factory);
    bool served = type == state->hand_type || type == state->echo_type ||
                  type == state->smtp_type || type == state->smtp_server_type;
    return served ? ((ServedObject *)self->factory)->protocol : &self->protocol;
}

/* Connections in their handshake refer to this object: it stays as long as the loop. */
static int listen_at(ListenerObject *self, const Wanted *w) {
    const module_state *state = self->loop->state;
    const char *endpoint = PyUnicode_AsUTF8(w->where);
    bk_listen_options options = {.size = sizeof options,
                                 .gate = w->gate == Py_None ? NULL : gate_core(w->gate),
                                 .sockets = w->fds,
                                 .socket_count = w->count,
                                 .shared = w->shared};
    bk_error error = {0, 0, ""};
    if (endpoint == NULL || loop_keep(self->loop, (PyObject *)self) < 0 ||
        (w->gate != Py_None && loop_keep(self->loop, w->gate) < 0))
        return -1;
    int code = bk_listen_with(self->loop->core, endpoint, table_of(self, state), &options, &error,
                              &self->core);
    if (code < 0) {
        (void)endpoint_raise(self->loop->state, endpoint, &error);
        return -1;
    }
    self->core->ended = over;
    self->core->ended_arg = self;
    return 0;
}

static int start(ListenerObject *self, const Wanted *w) {
    if (PyUnicode_Check(w->where))
        return listen_at(self, w);
    int fd = PyObject_AsFileDescriptor(w->where);
    int code = fd < 0 ? -1 : listen_on(self, fd);
    if (code < 0 && fd >= 0)
        loop_raise(code);
    return code;
}

/* Listener(loop, where, factory, server=None, tls=None, *, gate=None, sockets=(), refusal=None,
   ended=None, shared=False): where is an endpoint; or a listening socket's descriptor, which stays
   the caller's. tls: None, or (sslcontext, handshake_timeout, shutdown_timeout). */
static PyObject *listener_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    module_state *state = state_of_type(type);
    Wanted w;
    TlsSpec tls = {.server_side = 1, .server_hostname = Py_None};
    if (state == NULL || parse(args, kwargs, state, &w) < 0)
        return NULL;
    if (w.tls != Py_None && !PyArg_ParseTuple(w.tls, "OOO", &tls.context, &tls.handshake_timeout,
                                              &tls.shutdown_timeout))
        return NULL;
    ListenerObject *self = (ListenerObject *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->loop = (LoopObject *)Py_NewRef(w.loop);
    self->factory = Py_NewRef(w.factory);
    self->server = Py_NewRef(w.server);
    self->refusal = w.refusal == Py_None ? NULL : Py_NewRef(w.refusal);
    self->ended = w.ended == Py_None ? NULL : Py_NewRef(w.ended);
    self->tls = tls;
    tls_spec_ref(&tls);
    self->protocol = (bk_protocol){.size = sizeof(bk_protocol),
                                   .name = "asyncio",
                                   .context = self,
                                   .opened = opened,
                                   .refused = turned_away};
    self->context = PyContext_CopyCurrent();
    if (self->context == NULL || start(self, &w) < 0)
        Py_CLEAR(self);
    return (PyObject *)self;
}

static void end_listener(ListenerObject *self) {
    bk_listener *core = self->core;
    self->core = NULL;
    const LoopObject *loop = self->loop;
    if (core != NULL && loop->core != NULL && !loop->ending && !loop->is_parents)
        bk_listener_close(core);
}

static PyObject *listener_close(ListenerObject *self, PyObject *Py_UNUSED(ignored)) {
    end_listener(self);
    Py_CLEAR(self->server); /* which refers to us */
    Py_RETURN_NONE;
}

static PyObject *listener_pause(ListenerObject *self, PyObject *on) {
    int truth = PyObject_IsTrue(on);
    int code = truth < 0 || self->core == NULL ? 0 : bk_listener_pause(self->core, truth);
    return truth < 0 ? NULL : PyBool_FromLong(code == 0);
}

static PyObject *listener_drain(ListenerObject *self, PyObject *Py_UNUSED(ignored)) {
    bk_listener_drain(self->core);
    Py_RETURN_NONE;
}

static PyObject *listener_reload(ListenerObject *self, PyObject *Py_UNUSED(ignored)) {
    bk_listener_reload(self->core);
    Py_RETURN_NONE;
}

static PyObject *listener_sockets(ListenerObject *self, PyObject *Py_UNUSED(ignored)) {
    int fds[SOCKETS];
    int n = self->core == NULL ? 0 : bk_listener_sockets(self->core, fds, SOCKETS);
    PyObject *list = PyList_New(0);
    for (int i = 0; list != NULL && i < n && i < SOCKETS; i++) {
        PyObject *fd = PyLong_FromLong(fds[i]);
        if (fd == NULL || PyList_Append(list, fd) < 0)
            Py_CLEAR(list);
        Py_XDECREF(fd);
    }
    return list;
}

static PyObject *listener_name(ListenerObject *self, void *Py_UNUSED(closure)) {
    if (self->core == NULL)
        Py_RETURN_NONE;
    return PyUnicode_FromString(bk_listener_name(self->core));
}

static int listener_traverse(ListenerObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT((PyObject *)self->loop);
    Py_VISIT(self->factory);
    Py_VISIT(self->server);
    Py_VISIT(self->context);
    Py_VISIT(self->ended);
    Py_VISIT(self->tls.context);
    return 0;
}

static int listener_clear(ListenerObject *self) {
    end_listener(self);
    Py_CLEAR(self->factory);
    Py_CLEAR(self->server);
    Py_CLEAR(self->context);
    Py_CLEAR(self->refusal);
    Py_CLEAR(self->ended);
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
    {"pause", (PyCFunction)listener_pause, METH_O,
     "pause(on) -> bool\n\nAccept none for now, or go on; False: this kind cannot."},
    {"drain", (PyCFunction)listener_drain, METH_NOARGS,
     "drain()\n\nAccept all that wait in the backlog: closing would reset them."},
    {"reload", (PyCFunction)listener_reload, METH_NOARGS,
     "reload()\n\nRead the certificates of its endpoint again."},
    {"sockets", (PyCFunction)listener_sockets, METH_NOARGS,
     "sockets() -> list[int]\n\nIts listening descriptors, for other loops' listeners."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef listener_getset[] = {
    {"name", (getter)listener_name, NULL, "The endpoint, with the port it got; None: closed.",
     NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot listener_slots[] = {
    {Py_tp_doc, "Listener(loop, where, factory, server=None, tls=None, *, gate=None, sockets=(), "
                "refusal=None, ended=None, shared=False): accepts connections at an endpoint, or "
                "on a socket."},
    {Py_tp_new, listener_new},
    {Py_tp_dealloc, listener_dealloc},
    {Py_tp_traverse, listener_traverse},
    {Py_tp_clear, listener_clear},
    {Py_tp_methods, listener_methods},
    {Py_tp_getset, listener_getset},
    {0, NULL},
};

PyType_Spec listener_spec = {
    .name = "becket._becket.Listener",
    .basicsize = sizeof(ListenerObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = listener_slots,
};
