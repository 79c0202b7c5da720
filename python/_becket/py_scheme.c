/*
 * py_scheme.c: schemes that others bring: written in Python, a becket.transports.Scheme, or in C,
 * a capsule with a bk_scheme. Called by the core when an endpoint has such a scheme; what is said
 * to a Scheme, and what its exceptions mean, is in python/becket/loop.py.
 */
#include "becket_py.h"

#include "core/serve/serve.h"

#include <becket-python.h>

/* What a Scheme is given to bring connections by, as long as somebody listens. */
typedef struct AcceptObject {
    PyObject_HEAD LoopObject *loop;
    const bk_protocol *protocol; /* NULL: nobody listens any more */
    PyObject *listener;          /* what Scheme.listen() returned */
} AcceptObject;

/* ---- The endpoint, and what was wrong with it ---- */

static PyObject *text_to_python(const char *text) {
    if (text == NULL)
        Py_RETURN_NONE;
    return PyUnicode_DecodeUTF8(text, (Py_ssize_t)strlen(text), "surrogateescape");
}

static PyObject *options_to_python(const bk_endpoint *endpoint) {
    PyObject *list = PyList_New(0);
    for (int i = 0; list != NULL && i < endpoint->option_count; i++) {
        PyObject *item = Py_BuildValue("(NNn)", text_to_python(endpoint->options[i].key),
                                       text_to_python(endpoint->options[i].value),
                                       (Py_ssize_t)endpoint->options[i].position);
        if (item == NULL || PyList_Append(list, item) < 0)
            Py_CLEAR(list);
        Py_XDECREF(item);
    }
    return list;
}

/* (scheme, host, port, path, [(key, value, position)], text, rest) */
static PyObject *endpoint_to_python(const bk_endpoint *e) {
    return Py_BuildValue("(NNiNNNn)", text_to_python(e->scheme), text_to_python(e->host), e->port,
                         text_to_python(e->path), options_to_python(e), text_to_python(e->memory),
                         (Py_ssize_t)e->rest);
}

/* The exception that is set is none of the scheme's, whose own were made (code, position, words).
   Either way it becomes an error of the core's. */
static int fail(LoopObject *loop, PyObject *result, bk_error *error) {
    int code = -EIO;
    Py_ssize_t position = 0;
    const char *words = "the scheme failed";
    if (result != NULL && PyTuple_Check(result) &&
        PyArg_ParseTuple(result, "ins", &code, &position, &words))
        return bk_error_set(error, code < 0 ? code : -EIO, (size_t)position, "%s", words);
    loop_report(loop, "Exception in a scheme", NULL, NULL, NULL);
    return bk_error_set(error, -EIO, 0, "%s", words);
}

static LoopObject *loop_of(const bk_loop *core) {
    return core->options.arg;
}

/* ---- Listening ---- */

static void close_listening(void *arg) {
    AcceptObject *self = arg;
    PyObject *type, *value, *tb;
    PyErr_Fetch(&type, &value, &tb);
    self->protocol = NULL;
    PyObject *result = PyObject_CallMethodNoArgs(self->listener, self->loop->state->str_close);
    if (result == NULL)
        PyErr_WriteUnraisable(self->listener);
    Py_XDECREF(result);
    Py_CLEAR(self->listener);
    loop_let_go(self->loop, (PyObject *)self);
    PyErr_Restore(type, value, tb);
}

static AcceptObject *accept_new(LoopObject *loop, const bk_protocol *protocol) {
    PyTypeObject *type = loop->state->accept_type;
    AcceptObject *self = (AcceptObject *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->loop = (LoopObject *)Py_NewRef((PyObject *)loop);
    self->protocol = protocol;
    if (loop_keep(loop, (PyObject *)self) < 0)
        Py_CLEAR(self);
    else
        Py_DECREF((PyObject *)self); /* the loop has it */
    return self;
}

static int make_listener(AcceptObject *self, bk_listener **ret_listener) {
    PyObject *name = PyObject_GetAttrString(self->listener, "name");
    const char *text = name != NULL ? PyUnicode_AsUTF8(name) : NULL;
    int code = -EIO;
    if (text != NULL)
        code = bk_listener_new(self->loop->core, text, close_listening, self, ret_listener);
    Py_XDECREF(name);
    return code;
}

static int scheme_listen(bk_loop *core, const bk_endpoint *endpoint, const bk_protocol *protocol,
                         bk_error *error, bk_listener **ret_listener) {
    LoopObject *loop = loop_of(core);
    AcceptObject *self = accept_new(loop, protocol);
    PyObject *text = self != NULL ? endpoint_to_python(endpoint) : NULL;
    PyObject *result = text != NULL ? PyObject_CallMethod((PyObject *)loop, "_listen_scheme", "OO",
                                                          text, (PyObject *)self)
                                    : NULL;
    Py_XDECREF(text);
    if (result == NULL || PyTuple_Check(result)) {
        int code = fail(loop, result, error);
        Py_XDECREF(result);
        if (self != NULL) {
            self->protocol = NULL;
            loop_let_go(loop, (PyObject *)self);
        }
        return code;
    }
    self->listener = result;
    int code = make_listener(self, ret_listener);
    if (PyErr_Occurred())
        (void)fail(loop, NULL, error);
    if (code < 0)
        close_listening(self);
    return code;
}

/* accept(transport): gives a connection to the protocol. */
static PyObject *accept_call(AcceptObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"transport", NULL};
    PyObject *object;
    bk_transport *transport;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:accept", names, &object))
        return NULL;
    if (self->protocol == NULL)
        return PyErr_Format(PyExc_RuntimeError, "nobody listens any more");
    if (loop_check_open(self->loop) < 0 || py_transport_new(self->loop, object, &transport) < 0)
        return NULL;
    int code = bk_stream_new(self->loop->core, transport, self->protocol, NULL, NULL);
    if (code < 0) {
        transport->ops->close(transport);
        loop_raise(code);
        return NULL;
    }
    Py_RETURN_NONE;
}

/* ---- Connecting ---- */

static int scheme_connect(bk_loop *core, const bk_endpoint *endpoint, const bk_protocol *protocol,
                          void *user, bk_error *error, bk_stream **ret_stream) {
    LoopObject *loop = loop_of(core);
    bk_transport *transport = NULL;
    PyObject *text = endpoint_to_python(endpoint);
    PyObject *result =
        text != NULL ? PyObject_CallMethod((PyObject *)loop, "_connect_scheme", "(O)", text) : NULL;
    int code = 0;
    if (result == NULL || PyTuple_Check(result) || py_transport_new(loop, result, &transport) < 0)
        code = fail(loop, PyErr_Occurred() ? NULL : result, error);
    if (code == 0) /* which owns the transport, whatever comes of it */
        code = bk_connect_transport(core, transport, protocol, user, ret_stream);
    Py_XDECREF(result);
    Py_XDECREF(text);
    return code;
}

/* ---- Knowing schemes ---- */

/* A hook of the loop: endpoints may name what other packages bring. */
int scheme_unknown(void *arg, const char *name, bk_error *error) {
    LoopObject *loop = arg;
    PyObject *found = PyObject_CallMethod((PyObject *)loop, "_find_scheme", "s", name);
    int code = found == Py_True;
    if (found == NULL || (!PyBool_Check(found)))
        code = fail(loop, found, error);
    Py_XDECREF(found);
    return code;
}

/* A table for a Scheme, in memory of its own; the texts are in it. */
typedef struct py_scheme {
    bk_scheme base;
    const char *keys[BK_ENDPOINT_OPTIONS + 1];
    PyObject *name, *options; /* whose memory the table refers to */
} py_scheme;

static void free_scheme(PyObject *capsule) {
    py_scheme *self = PyCapsule_GetPointer(capsule, "becket.py_scheme");
    Py_XDECREF(self->name);
    Py_XDECREF(self->options);
    PyMem_Free(self);
}

/* The texts must outlive the loop's core, and do: the capsule is kept as long. */
static int fill_scheme(py_scheme *self, PyObject *name, PyObject *options, int listens,
                       int connects) {
    Py_ssize_t n = PyTuple_GET_SIZE(options);
    if (n > BK_ENDPOINT_OPTIONS) {
        PyErr_Format(PyExc_ValueError, "scheme %U has more than %d options", name,
                     BK_ENDPOINT_OPTIONS);
        return -1;
    }
    for (Py_ssize_t i = 0; i < n; i++)
        if ((self->keys[i] = PyUnicode_AsUTF8(PyTuple_GET_ITEM(options, i))) == NULL)
            return -1;
    self->name = Py_NewRef(name);
    self->options = Py_NewRef(options);
    self->base = (bk_scheme){.size = sizeof(bk_scheme),
                             .name = PyUnicode_AsUTF8(name),
                             .options = self->keys,
                             .listen = listens ? scheme_listen : NULL,
                             .connect = connects ? scheme_connect : NULL};
    return self->base.name == NULL ? -1 : 0;
}

static PyObject *add(LoopObject *loop, PyObject *capsule, const bk_scheme *scheme) {
    int code = loop_keep(loop, capsule) < 0 ? -1 : bk_scheme_add(loop->core, scheme);
    if (code == -EEXIST)
        PyErr_Format(PyExc_ValueError, "scheme '%s' exists already", scheme->name);
    else if (code == -EINVAL)
        PyErr_Format(PyExc_ValueError,
                     "scheme '%s': a name is small letters, digits, +, - and ., from a letter on",
                     scheme->name != NULL ? scheme->name : "");
    else if (code < 0 && !PyErr_Occurred())
        loop_raise(code);
    return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
}

/* _add_scheme(name, options, listens, connects): calls of it go to _listen_scheme() and
   _connect_scheme(). _add_scheme(capsule): a bk_scheme, "becket.scheme". */
PyObject *loop_add_scheme(LoopObject *loop, PyObject *args) {
    PyObject *name, *options = NULL;
    int listens = 0, connects = 0;
    if (!PyArg_ParseTuple(args, "O|O!pp:_add_scheme", &name, &PyTuple_Type, &options, &listens,
                          &connects) ||
        loop_check_open(loop) < 0)
        return NULL;
    if (options == NULL) {
        const bk_scheme *scheme = PyCapsule_GetPointer(name, BK_SCHEME_CAPSULE);
        return scheme != NULL ? add(loop, name, scheme) : NULL;
    }
    py_scheme *self = PyMem_Calloc(1, sizeof *self);
    PyObject *capsule =
        self != NULL ? PyCapsule_New(self, "becket.py_scheme", free_scheme) : PyErr_NoMemory();
    if (capsule == NULL) {
        PyMem_Free(self);
        return NULL;
    }
    PyObject *result = NULL;
    if (fill_scheme(self, name, options, listens, connects) == 0)
        result = add(loop, capsule, &self->base);
    Py_DECREF(capsule);
    return result;
}

/* ---- The core's functions, for other extensions ---- */

static const bk_core_api api = {
    .size = sizeof api,
    .strerror = bk_strerror,
    .loop_os = bk_loop_os,
    .loop_now = bk_loop_now,
    .loop_soon = bk_loop_soon,
    .loop_post = bk_loop_post,
    .timer_start = bk_timer_start,
    .timer_stop = bk_timer_stop,
    .watch_set = bk_watch_set,
    .watch_apply = bk_watch_apply,
    .watch_forget = bk_watch_forget,
    .work_start = bk_work_start,
    .transport_wake = bk_transport_wake,
    .socket_transport = bk_socket_transport,
    .fd_transport = bk_fd_transport,
    .memory_transport = bk_memory_transport,
    .stream_new = bk_stream_new,
    .endpoint_option = bk_endpoint_option,
    .listener_new = bk_listener_new,
};

int add_core_api(PyObject *module) {
    PyObject *capsule = PyCapsule_New((void *)(uintptr_t)&api, BK_CORE_CAPSULE, NULL);
    int code = capsule == NULL ? -1 : PyModule_AddObjectRef(module, "_core", capsule);
    Py_XDECREF(capsule);
    return code;
}

/* ---- The type ---- */

static int accept_traverse(AcceptObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT((PyObject *)self->loop);
    Py_VISIT(self->listener);
    return 0;
}

/* The listener is let go of when the core says that nobody listens any more. */
static void accept_dealloc(AcceptObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_CLEAR(self->listener);
    Py_CLEAR(self->loop);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyType_Slot accept_slots[] = {
    {Py_tp_doc, "accept(transport)\n\nGive a connection that has come in to the protocol. "
                "RuntimeError: nobody listens any more; the transport is still the caller's."},
    {Py_tp_call, accept_call},
    {Py_tp_dealloc, accept_dealloc},
    {Py_tp_traverse, accept_traverse},
    {0, NULL},
};

PyType_Spec accept_spec = {
    .name = "becket._becket.Accept",
    .basicsize = sizeof(AcceptObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = accept_slots,
};
