/*
 * tls.c: TLS under an asyncio transport. The engine is made in Python, by EventLoop._new_engine(),
 * and is an ssl.SSLObject, whose SSL * the core's OpenSSL engine works on, or an object with the
 * methods of becket.tls.Engine. Called by the loop, by listeners and by Transport.
 */
#include "becket_py.h"

#include "core/error.h"
#include "core/tls/libssl.h"

/* ---- ssl.SSLObject ---- */

/* What ssl's C half begins with, in all versions we know: the context is checked for each object,
   so that a version that differs is noticed. */
typedef struct ssl_object_head {
    PyObject_HEAD PyObject *socket;
    SSL *ssl;
    PyObject *context;
} ssl_object_head;

/* The SSL * of an ssl.SSLObject; NULL, without an exception, where it cannot be had. */
static SSL *ssl_of(PyObject *object) {
    PyObject *inner = PyObject_GetAttrString(object, "_sslobj");
    PyObject *context = inner != NULL ? PyObject_GetAttrString(inner, "context") : NULL;
    SSL *ssl = NULL;
    if (context != NULL && Py_TYPE(inner)->tp_basicsize >= (Py_ssize_t)sizeof(ssl_object_head)) {
        const ssl_object_head *head = (const ssl_object_head *)(void *)inner;
        if (head->context == context && head->socket == NULL)
            ssl = head->ssl;
    }
    PyErr_Clear();
    Py_XDECREF(context);
    Py_XDECREF(inner); /* the object keeps it */
    return ssl;
}

/* The exception that is set becomes the transport's, and a code of the core's. */
static int take_error(TlsState *tls, bk_tls_out *out) {
    TransportObject *t = tls->transport;
    if (t != NULL && loop_take_fatal(t->loop))
        return bk_tls_fail(out, -ECANCELED, "the program ends");
    PyObject *type, *value, *tb;
    PyErr_Fetch(&type, &value, &tb);
    PyErr_NormalizeException(&type, &value, &tb);
    if (tb != NULL && value != NULL)
        (void)PyException_SetTraceback(value, tb);
    PyObject *code = PyObject_CallOneArg(tls->module->tls_error_code, value);
    PyObject *text = value != NULL ? PyObject_Str(value) : NULL;
    const char *words = text != NULL ? PyUnicode_AsUTF8(text) : NULL;
    long number = code != NULL ? PyLong_AsLong(code) : BK_ETLS;
    if (PyErr_Occurred() || number >= 0)
        number = BK_ETLS;
    PyErr_Clear();
    (void)bk_tls_fail(out, (int)number, "%s", words != NULL ? words : "an exception");
    if (t != NULL && t->error == NULL)
        t->error = Py_XNewRef(value);
    if (t != NULL && value != NULL && !PyErr_GivenExceptionMatches(value, PyExc_OSError)) {
        PyErr_SetObject((PyObject *)Py_TYPE(value), value); /* a fault of the engine's */
        loop_report(t->loop, "Fatal error on SSL protocol", (PyObject *)t, t->protocol, NULL);
    }
    Py_XDECREF(code);
    Py_XDECREF(text);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(tb);
    return (int)number;
}

/* By Python's own method: so its callbacks' exceptions are raised, and its errors are its own. */
static int ssl_handshake(void *arg, bk_tls_out *out) {
    TlsState *tls = arg;
    PyObject *result = PyObject_CallMethodNoArgs(tls->engine, tls->module->str_do_handshake);
    if (result != NULL) {
        Py_DECREF(result);
        return 0;
    }
    if (!PyErr_ExceptionMatches(tls->module->ssl_want_read))
        return take_error(tls, out);
    PyErr_Clear();
    return -EAGAIN;
}

/* _can_adopt(ssl_object): whether the core can work on it: it has found the very library that made
   it, and knows what the object looks like inside. */
PyObject *tls_can_adopt(PyObject *module, PyObject *object) {
    module_state *state = PyModule_GetState(module);
    bk_error error;
    if (bk_tls_engine_openssl.open(bk_os_default(), &error) < 0)
        Py_RETURN_FALSE;
    const char *version = PyUnicode_AsUTF8(state->openssl_version);
    if (version == NULL)
        return NULL;
    SSL *ssl = strcmp(version, bk_tls_engine_openssl.version()) == 0 ? ssl_of(object) : NULL;
    if (ssl == NULL)
        Py_RETURN_FALSE;
    /* Two copies of one version would each have methods of their own. */
    const SSL_METHOD *method = bk_ssl.SSL_get_ssl_method(ssl);
    return PyBool_FromLong(method == bk_ssl.TLS_method() || method == bk_ssl.TLS_server_method() ||
                           method == bk_ssl.TLS_client_method());
}

/* ---- Engines in Python ---- */

typedef struct py_tls {
    bk_tls base;
    TlsState *tls; /* whose engine it is, and who gets its exceptions */
    bool owned;    /* … made with this engine, for a stream of the core's */
    bool opened, ended;
} py_tls;

static int send_taken(py_tls *self, bk_tls_out *out) {
    PyObject *bytes = PyObject_CallMethodNoArgs(self->tls->engine, self->tls->module->str_take);
    char *data;
    Py_ssize_t n;
    int code = bytes == NULL || PyBytes_AsStringAndSize(bytes, &data, &n) < 0 ? -1 : 0;
    if (code == 0)
        code = n > 0 ? bk_tls_send(out, data, (size_t)n) : 0;
    else
        code = take_error(self->tls, out);
    Py_XDECREF(bytes);
    return code;
}

/* After each call: what the engine has to send is sent, the alert after an exception too. */
static int finish_call(py_tls *self, PyObject *result, bk_tls_out *out) {
    int code = result == NULL ? take_error(self->tls, out) : 0;
    bk_error *listener = out->error;
    if (code < 0)
        out->error = NULL; /* the first error is the one to tell */
    int sent = send_taken(self, out);
    out->error = listener;
    return code < 0 ? code : sent;
}

static int py_receive(py_tls *self, bk_span *in, bk_tls_out *out) {
    if (in->size == 0)
        return 0;
    PyObject *data = PyBytes_FromStringAndSize(in->base, (Py_ssize_t)in->size);
    PyObject *result =
        data == NULL
            ? NULL
            : PyObject_CallMethodOneArg(self->tls->engine, self->tls->module->str_receive, data);
    *in = (bk_span){(const char *)in->base + in->size, 0};
    int code = finish_call(self, result, out);
    Py_XDECREF(data);
    Py_XDECREF(result);
    return code;
}

static int py_handshake(py_tls *self, bk_tls_out *out) {
    PyObject *result =
        PyObject_CallMethodNoArgs(self->tls->engine, self->tls->module->str_handshake);
    int done = result == NULL ? -1 : PyObject_IsTrue(result);
    int code = finish_call(self, done < 0 ? NULL : result, out);
    self->opened = code == 0 && done > 0;
    Py_XDECREF(result);
    return code;
}

/* 1: something was read; 0: nothing, or the end. */
static int py_read(py_tls *self, bk_room *room, bk_tls_out *out) {
    PyObject *size = PyLong_FromSize_t(room->size);
    PyObject *result = size == NULL ? NULL
                                    : PyObject_CallMethodOneArg(self->tls->engine,
                                                                self->tls->module->str_read, size);
    char *data = NULL;
    Py_ssize_t n = 0;
    if (result != NULL && result != Py_None && PyBytes_AsStringAndSize(result, &data, &n) < 0)
        Py_CLEAR(result);
    if (result != NULL && (size_t)n > room->size) {
        PyErr_SetString(PyExc_ValueError, "read() returned more bytes than it was asked for");
        Py_CLEAR(result);
    }
    int code = finish_call(self, result, out);
    if (code == 0 && result != Py_None && n == 0)
        self->ended = true;
    if (code == 0 && n > 0) {
        memcpy(room->base, data, (size_t)n);
        room->base = (char *)room->base + n;
        room->size -= (size_t)n;
        code = 1;
    }
    Py_XDECREF(size);
    Py_XDECREF(result);
    return code;
}

static int py_step(bk_tls *base, bk_span *in, bk_room *room, bk_tls_out *out) {
    py_tls *self = (py_tls *)base;
    int code = py_receive(self, in, out);
    if (code == 0 && !self->opened)
        code = py_handshake(self, out);
    if (code < 0)
        return code;
    if (!self->opened)
        return BK_TLS_OPENING;
    while (room->size > 0 && !self->ended && (code = py_read(self, room, out)) > 0)
        ;
    if (code < 0)
        return code;
    if (self->ended)
        return BK_TLS_ENDED;
    return room->size == 0 ? BK_TLS_PENDING : 0; /* it may hold more: ask again */
}

static int py_seal(bk_tls *base, bk_span plain, bk_tls_out *out) {
    py_tls *self = (py_tls *)base;
    PyObject *data = PyBytes_FromStringAndSize(plain.base, (Py_ssize_t)plain.size);
    PyObject *result = data == NULL ? NULL
                                    : PyObject_CallMethodOneArg(self->tls->engine,
                                                                self->tls->module->str_write, data);
    int code = finish_call(self, result, out);
    Py_XDECREF(data);
    Py_XDECREF(result);
    return code;
}

static int py_end(bk_tls *base, bk_tls_out *out) {
    py_tls *self = (py_tls *)base;
    PyObject *result = PyObject_CallMethodNoArgs(self->tls->engine, self->tls->module->str_end);
    int code = finish_call(self, result, out);
    Py_XDECREF(result);
    return code;
}

static void py_close(bk_tls *base) {
    py_tls *self = (py_tls *)base;
    PyObject *result = PyObject_CallMethodNoArgs(self->tls->engine, self->tls->module->str_close);
    if (result == NULL)
        PyErr_WriteUnraisable(self->tls->engine);
    Py_XDECREF(result);
    if (self->owned)
        tls_state_free(self->tls);
    PyMem_Free(self);
}

/* query("…") of the engine; None where it has no answer. */
static PyObject *ask(TlsState *tls, const char *what) {
    return PyObject_CallMethod(tls->engine, "query", "s", what);
}

static int answer_text(PyObject *text, void *ret_value, size_t *size) {
    const char *utf8 = text == Py_None ? "" : PyUnicode_AsUTF8(text);
    return utf8 == NULL ? -ENOTSUP : bk_query_answer(ret_value, size, utf8, strlen(utf8) + 1);
}

static int answer_bytes(PyObject *bytes, void *ret_value, size_t *size) {
    char *data = "";
    Py_ssize_t n = 0;
    if (bytes != Py_None && PyBytes_AsStringAndSize(bytes, &data, &n) < 0)
        return -ENOTSUP;
    return bk_query_answer(ret_value, size, data, (size_t)n);
}

static int answer_cipher(PyObject *cipher, int what, void *ret_value, size_t *size) {
    if (!PyTuple_Check(cipher) || PyTuple_GET_SIZE(cipher) != 3)
        return -ENOTSUP;
    if (what == BK_QUERY_TLS_CIPHER)
        return answer_text(PyTuple_GET_ITEM(cipher, 0), ret_value, size);
    int bits = (int)PyLong_AsLong(PyTuple_GET_ITEM(cipher, 2));
    return bk_query_answer(ret_value, size, &bits, sizeof bits);
}

static int answer(PyObject *found, int what, void *ret_value, size_t *size) {
    switch (what) {
    case BK_QUERY_TLS_CIPHER:
    case BK_QUERY_TLS_BITS:
        return answer_cipher(found, what, ret_value, size);
    case BK_QUERY_TLS_CERT:
        return answer_bytes(found, ret_value, size);
    case BK_QUERY_TLS_RESUMED: {
        int yes = PyObject_IsTrue(found);
        return bk_query_answer(ret_value, size, &yes, sizeof yes);
    }
    default:
        return answer_text(found, ret_value, size);
    }
}

static int py_query(bk_tls *base, int what, void *ret_value, size_t *size) {
    static const char *const names[] = {
        [BK_QUERY_TLS_VERSION - BK_QUERY_TLS] = "version",
        [BK_QUERY_TLS_CIPHER - BK_QUERY_TLS] = "cipher",
        [BK_QUERY_TLS_BITS - BK_QUERY_TLS] = "cipher",
        [BK_QUERY_TLS_ALPN - BK_QUERY_TLS] = "alpn",
        [BK_QUERY_TLS_NAME - BK_QUERY_TLS] = "server_name",
        [BK_QUERY_TLS_CERT - BK_QUERY_TLS] = "peercert_der",
        [BK_QUERY_TLS_RESUMED - BK_QUERY_TLS] = "resumed",
    };
    py_tls *self = (py_tls *)base;
    if (what < BK_QUERY_TLS || what > BK_QUERY_TLS_RESUMED)
        return -ENOTSUP;
    const char *name = names[what - BK_QUERY_TLS];
    PyObject *found = what == BK_QUERY_TLS_ENGINE
                          ? PyObject_GetAttrString(self->tls->engine, "name")
                      : name != NULL ? ask(self->tls, name)
                                     : NULL;
    int code = found == NULL ? -ENOTSUP : answer(found, what, ret_value, size);
    PyErr_Clear();
    Py_XDECREF(found);
    return code;
}

static const bk_tls_ops py_ops = {
    .size = sizeof(bk_tls_ops),
    .name = "python",
    .step = py_step,
    .seal = py_seal,
    .end = py_end,
    .close = py_close,
    .query = py_query,
};

static int py_engine_new(TlsState *tls, bool owned, bk_tls **ret_engine) {
    py_tls *self = PyMem_Calloc(1, sizeof *self);
    if (self == NULL)
        return -ENOMEM;
    self->base.ops = &py_ops;
    self->tls = tls;
    self->owned = owned;
    *ret_engine = &self->base;
    return 0;
}

/* ---- Under a transport ---- */

int tls_state_traverse(const TlsState *tls, visitproc visit, void *arg) {
    if (tls == NULL)
        return 0;
    Py_VISIT(tls->engine);
    Py_VISIT(tls->waiter);
    Py_VISIT(tls->spec.context);
    Py_VISIT(tls->spec.server_hostname);
    return 0;
}

void tls_spec_ref(const TlsSpec *spec) {
    Py_XINCREF(spec->context);
    Py_XINCREF(spec->server_hostname);
    Py_XINCREF(spec->handshake_timeout);
    Py_XINCREF(spec->shutdown_timeout);
}

void tls_spec_clear(TlsSpec *spec) {
    Py_CLEAR(spec->context);
    Py_CLEAR(spec->server_hostname);
    Py_CLEAR(spec->handshake_timeout);
    Py_CLEAR(spec->shutdown_timeout);
}

void tls_state_free(TlsState *tls) {
    if (tls == NULL)
        return;
    Py_CLEAR(tls->waiter);
    Py_CLEAR(tls->engine);
    tls_spec_clear(&tls->spec);
    PyMem_Free(tls);
}

static int core_engine(TransportObject *t, TlsState *tls, bk_tls **ret_engine) {
    module_state *state = t->loop->state;
    const bk_openssl_host host = {ssl_handshake, tls};
    if (PyObject_TypeCheck(tls->engine, (PyTypeObject *)state->ssl_object))
        return bk_openssl_adopt(t->loop->core->os, ssl_of(tls->engine), &host, ret_engine);
    return py_engine_new(tls, false, ret_engine);
}

static int64_t nanoseconds(PyObject *seconds) {
    double n = PyFloat_AsDouble(seconds) * 1e9;
    return n < 9e18 ? (int64_t)n : INT64_MAX / 2;
}

static int make_transport(TransportObject *t, TlsState *tls, bk_transport **ret_transport) {
    const bk_tls_manners manners = {
        .handshake_ns = nanoseconds(tls->spec.handshake_timeout),
        .linger_ns = nanoseconds(tls->spec.shutdown_timeout),
        .allow_truncation = true, /* as asyncio */
    };
    bk_loop *loop = t->loop->core;
    bk_transport *inner = bk_stream_transport(t->stream);
    bk_tls *engine;
    int code;
    if (Py_IS_TYPE(tls->engine, tls->module->tls_context_type)) {
        /* A str without NUL, in ASCII: EventLoop._new_engine() has seen to that. */
        PyObject *name = tls->spec.server_hostname;
        code = bk_tls_transport(loop, inner, tls_context_core(tls->engine),
                                name != Py_None ? PyUnicode_AsUTF8(name) : NULL, ret_transport);
        if (code == 0 && tls->spec.context != tls->engine) /* else the endpoint has said how */
            bk_tls_transport_set_manners(*ret_transport, &manners);
        return code;
    }
    code = core_engine(t, tls, &engine);
    if (code < 0)
        return code;
    code = bk_tls_transport_over(loop, inner, engine, &manners, ret_transport);
    if (code < 0)
        engine->ops->close(engine);
    return code;
}

static int put_under(TransportObject *t, TlsState *tls, const void *data, size_t n) {
    bk_transport *transport;
    int code = make_transport(t, tls, &transport);
    if (code < 0)
        return code;
    code = bk_tls_transport_feed(transport, data, n);
    if (code == 0)
        code = bk_tls_transport_start(transport, t->stream);
    if (code < 0) {
        bk_tls_transport_abandon(transport);
        return code;
    }
    (void)bk_stream_set_water(t->stream, TLS_LOW_WATER, TLS_HIGH_WATER);
    return 0;
}

/* loop._new_engine(sslcontext, server_side, server_hostname) */
static PyObject *new_engine(LoopObject *loop, const TlsSpec *spec) {
    PyObject *args[] = {NULL, (PyObject *)loop, spec->context,
                        spec->server_side ? Py_True : Py_False, spec->server_hostname};
    return PyObject_VectorcallMethod(loop->state->str__new_engine, args + 1,
                                     4 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
}

/* Make a transport's engine, which is put under it by tls_start(). The waiter (None: nobody) learns
   how the handshake went. */
int tls_prepare(TransportObject *t, const TlsSpec *spec, PyObject *waiter) {
    PyObject *engine = new_engine(t->loop, spec);
    if (engine == NULL)
        return -1;
    TlsState *tls = PyMem_Calloc(1, sizeof *tls);
    if (tls == NULL) {
        Py_DECREF(engine);
        PyErr_NoMemory();
        return -1;
    }
    *tls = (TlsState){.module = t->loop->state,
                      .engine = engine,
                      .spec = *spec,
                      .waiter = waiter != Py_None ? Py_NewRef(waiter) : NULL,
                      .transport = t};
    tls_spec_ref(spec);
    t->tls = tls;
    return 0;
}

/* Put TLS under a transport. data is what was read already, and is to go into it. */
int tls_start(TransportObject *t, const void *data, size_t n) {
    if (transport_adopt_protocol(t, t->protocol) < 0) /* over TLS it may be served otherwise */
        return -1;
    int code = put_under(t, t->tls, data, n);
    return code < 0 ? loop_raise(code) : 0;
}

/* The waiter learns how the handshake went: error NULL: well. */
void tls_wake(TransportObject *t, PyObject *error) {
    PyObject *waiter = t->tls->waiter;
    t->tls->waiter = NULL;
    if (waiter == NULL)
        return;
    PyObject *done = PyObject_CallMethodNoArgs(waiter, t->loop->state->str_done);
    PyObject *result = NULL;
    if (done == Py_False && error == NULL)
        result = PyObject_CallMethodOneArg(waiter, t->loop->state->str_set_result, Py_None);
    else if (done == Py_False)
        result = PyObject_CallMethod(waiter, "set_exception", "O", error);
    if (PyErr_Occurred())
        PyErr_WriteUnraisable(waiter);
    Py_XDECREF(done);
    Py_XDECREF(result);
    Py_DECREF(waiter);
}

/* The exception for a code, in the words of the engine: as ssl, or asyncio, would raise it. */
PyObject *tls_exception(TransportObject *t, int why) {
    char words[256] = "";
    size_t size = sizeof words;
    (void)bk_stream_query(t->stream, BK_QUERY_TLS_WORDS, words, &size);
    if (why == -ETIMEDOUT && *words == '\0') /* the kernel's, not ours */
        return exception_of(why);
    if (why == -ETIMEDOUT && t->tls->open)
        return PyObject_CallFunction(PyExc_TimeoutError, "s", "SSL shutdown timed out");
    if (why == -ETIMEDOUT) {
        PyObject *text = PyUnicode_FromFormat(
            "SSL handshake is taking longer than %S seconds: aborting the connection",
            t->tls->spec.handshake_timeout);
        PyObject *e = text != NULL ? PyObject_CallOneArg(PyExc_ConnectionAbortedError, text) : NULL;
        Py_XDECREF(text);
        return e;
    }
    if (why == -ECONNRESET && !t->tls->open)
        return PyObject_CallNoArgs(PyExc_ConnectionResetError);
    if (why > BK_ETLS || why < BK_ETLS_RENEGOTIATION)
        return exception_of(why);
    return PyObject_CallFunction(t->loop->state->tls_exception_of, "is", why,
                                 *words != '\0' ? words : bk_strerror(why));
}

/* ---- Engines in Python, for the core's endpoints ---- */

/* A class derived from becket.tls.Engine, as the core knows engines. Lives as long as its loop. */
typedef struct py_engine {
    bk_tls_engine base;
    module_state *module;
    PyObject *type;
    PyObject *capsule; /* holds this, borrowed */
    char name[];
} py_engine;

typedef struct py_context {
    py_engine *engine;
    PyObject *context;
    bool server;
} py_context;

/* The core may call from a worker, which has no thread state of Python's: certificates are read
   again there. */
static PyGILState_STATE enter(bool *ret_entered) {
    *ret_entered = PyGILState_GetThisThreadState() == NULL;
    return *ret_entered ? PyGILState_Ensure() : PyGILState_UNLOCKED;
}

static void leave(bool entered, PyGILState_STATE state) {
    if (entered)
        PyGILState_Release(state);
}

/* The exception that is set, as words for a person. */
static int fail_config(bk_error *error) {
    PyObject *type, *value, *tb;
    PyErr_Fetch(&type, &value, &tb);
    PyErr_NormalizeException(&type, &value, &tb);
    PyObject *text = value != NULL ? PyObject_Str(value) : NULL;
    const char *words = text != NULL ? PyUnicode_AsUTF8(text) : NULL;
    bool missing = value != NULL && PyErr_GivenExceptionMatches(value, PyExc_ImportError);
    int code = bk_error_set(error, missing ? BK_ETLS_ENGINE : BK_ETLS_CONFIG, 0, "%s",
                            words != NULL ? words : "an exception");
    PyErr_Clear();
    Py_XDECREF(text);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(tb);
    return code;
}

static PyObject *names_to_python(const char *const *names) {
    PyObject *list = PyList_New(0);
    for (; list != NULL && names != NULL && *names != NULL; names++) {
        PyObject *name = PyUnicode_FromString(*names);
        if (name == NULL || PyList_Append(list, name) < 0)
            Py_CLEAR(list);
        Py_XDECREF(name);
    }
    return list;
}

/* becket.tls.core_context(type, …) */
static PyObject *make_context(py_engine *engine, const bk_tls_settings *s) {
    PyObject *alpn = names_to_python(s->alpn);
    if (alpn == NULL)
        return NULL;
    return PyObject_CallFunction(
        engine->module->tls_core_context, "OiNNNiNiii", engine->type, s->server,
        PyBytes_FromStringAndSize(s->certificate.base, (Py_ssize_t)s->certificate.size),
        PyBytes_FromStringAndSize(s->key.base, (Py_ssize_t)s->key.size),
        PyBytes_FromStringAndSize(s->ca.base, (Py_ssize_t)s->ca.size),
        s->verify - BK_TLS_VERIFY_NONE, alpn, s->minimum, s->maximum, !s->no_tickets);
}

static int py_context_new(const bk_tls_settings *settings, bk_error *error, void **ret_context) {
    py_engine *engine = (py_engine *)(uintptr_t)settings->engine;
    bool entered;
    PyGILState_STATE state = enter(&entered);
    py_context *self = PyMem_RawCalloc(1, sizeof *self);
    PyObject *context = self != NULL ? make_context(engine, settings) : PyErr_NoMemory();
    int code = context == NULL ? fail_config(error) : 0;
    if (code == 0) {
        *self = (py_context){engine, context, settings->server};
        Py_INCREF(engine->capsule);
        *ret_context = self;
    } else {
        PyMem_RawFree(self);
    }
    leave(entered, state);
    return code;
}

static void py_context_free(void *context) {
    py_context *self = context;
    bool entered;
    PyGILState_STATE state = enter(&entered);
    Py_DECREF(self->context);
    Py_DECREF(self->engine->capsule);
    leave(entered, state);
    PyMem_RawFree(self);
}

static int py_connection_new(void *context, const char *server_name, bk_span session,
                             bk_tls **ret_tls) {
    py_context *self = context;
    (void)session;
    PyObject *args = PyTuple_Pack(1, self->context);
    PyObject *kwargs = Py_BuildValue("{sOsz}", "server_side", self->server ? Py_True : Py_False,
                                     "server_hostname", server_name);
    PyObject *engine =
        args != NULL && kwargs != NULL ? PyObject_Call(self->engine->type, args, kwargs) : NULL;
    TlsState *tls = engine != NULL ? PyMem_Calloc(1, sizeof *tls) : NULL;
    int code = -EINVAL;
    if (tls != NULL) {
        *tls = (TlsState){.module = self->engine->module, .engine = Py_NewRef(engine)};
        code = py_engine_new(tls, true, ret_tls);
        if (code < 0)
            tls_state_free(tls);
    }
    if (PyErr_Occurred())
        PyErr_WriteUnraisable(self->engine->type);
    Py_XDECREF(args);
    Py_XDECREF(kwargs);
    Py_XDECREF(engine);
    return code;
}

static int py_engine_open(bk_os *os, bk_error *error) {
    (void)os, (void)error;
    return 0; /* its own open() is called when a context is made */
}

static const char *py_engine_version(void) {
    return "an engine in Python";
}

static void free_engine(PyObject *capsule) {
    py_engine *self = PyCapsule_GetPointer(capsule, "becket.tls");
    Py_DECREF(self->type);
    PyMem_RawFree(self);
}

/* _add_tls_engine(type): engine=NAME of endpoints on this loop may mean that class. */
PyObject *loop_add_tls_engine(LoopObject *loop, PyObject *type) {
    if (PyInterpreterState_Get() != PyInterpreterState_Main())
        return PyErr_Format(PyExc_RuntimeError, "endpoints have engines in Python in the main "
                                                "interpreter only");
    PyObject *text = loop_check_open(loop) < 0 ? NULL : PyObject_GetAttrString(type, "name");
    const char *name = text != NULL ? PyUnicode_AsUTF8(text) : NULL;
    py_engine *self = name != NULL ? PyMem_RawCalloc(1, sizeof *self + strlen(name) + 1) : NULL;
    PyObject *capsule = self != NULL ? PyCapsule_New(self, "becket.tls", free_engine) : NULL;
    if (capsule == NULL) {
        PyMem_RawFree(self);
        Py_XDECREF(text);
        return PyErr_Occurred() ? NULL : PyErr_NoMemory();
    }
    strcpy(self->name, name);
    Py_DECREF(text);
    self->module = loop->state;
    self->type = Py_NewRef(type);
    self->capsule = capsule;
    self->base = (bk_tls_engine){.size = sizeof(bk_tls_engine),
                                 .name = self->name,
                                 .open = py_engine_open,
                                 .version = py_engine_version,
                                 .context_new = py_context_new,
                                 .context_free = py_context_free,
                                 .connection_new = py_connection_new};
    int code = loop_keep(loop, capsule) < 0 ? -1 : bk_tls_engine_add(loop->core, &self->base);
    Py_DECREF(capsule);
    if (code == -EEXIST)
        return PyErr_Format(PyExc_ValueError, "TLS engine %R exists already", type);
    if (code < 0)
        return PyErr_Occurred() ? NULL : (loop_raise(code), NULL);
    Py_RETURN_NONE;
}

/* _tls_engines() -> [(name, version or None, what is missing or None)]: those of the core. */
PyObject *tls_core_engines(PyObject *module, PyObject *Py_UNUSED(ignored)) {
    PyObject *list = PyList_New(0);
    (void)module;
    for (const bk_tls_engine *const *e = bk_tls_engines(); list != NULL && *e != NULL; e++) {
        bk_error error = {0, 0, ""};
        bool here = (*e)->open(bk_os_default(), &error) == 0;
        PyObject *item = Py_BuildValue("(szz)", (*e)->name, here ? (*e)->version() : NULL,
                                       here ? NULL : error.text);
        if (item == NULL || PyList_Append(list, item) < 0)
            Py_CLEAR(list);
        Py_XDECREF(item);
    }
    return list;
}
