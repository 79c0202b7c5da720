/*
 * smtp_client.c: the core's SMTP client on an EventLoop: one connection, and the messages that are
 * queued on it. Made by python/becket/smtp/client.py. No Python runs but for what became of a
 * message, and of the connection.
 */
#include "becket_py.h"

#include "core/protocol/run.h"

#include <becket-smtp.h>

typedef struct SmtpClientObject {
    PyObject_HEAD LoopObject *loop;
    bk_machine_factory factory; /* whose protocol the stream has; its context is this object */
    bk_stream *stream;          /* NULL: not any more */
    bk_machine *fresh;          /* made, and not yet on the stream */
    bk_smtp_client *client;     /* NULL: not any more */
    PyObject *ready, *closed, *context;
    bk_smtp_message *open; /* the one that goes step by step, and is not finished; or NULL */
    PyObject *texts;       /* what config refers to */
    PyObject *error;       /* the exception for what broke the stream */
    int stream_why;
} SmtpClientObject;

/* ---- What Python is told ---- */

/* Takes args over; NULL: making them failed. */
static void tell(SmtpClientObject *self, PyObject *callable, PyObject *args, const char *what) {
    PyObject *result = NULL;
    if (callable == NULL || callable == Py_None || self->loop->ending) {
        PyErr_Clear();
        Py_XDECREF(args);
        return;
    }
    if (args != NULL && PyContext_Enter(self->context) == 0) {
        PyObject *type, *value, *tb;
        result = PyObject_CallObject(callable, args);
        PyErr_Fetch(&type, &value, &tb);
        (void)PyContext_Exit(self->context);
        PyErr_Restore(type, value, tb);
    }
    if (result == NULL)
        loop_report(self->loop, what, NULL, NULL, NULL);
    Py_XDECREF(result);
    Py_XDECREF(args);
}

static PyObject *reply_text(const char *reply) {
    if (reply == NULL)
        return Py_NewRef(Py_None);
    return PyUnicode_DecodeUTF8(reply, (Py_ssize_t)strlen(reply), "replace");
}

static void heard_ready(void *context, bk_smtp_client *client) {
    SmtpClientObject *self = context;
    (void)client;
    tell(self, self->ready, PyTuple_New(0), "Exception in the ready callback");
}

static void heard_closed(void *context, bk_smtp_client *client, int why, const char *reply) {
    SmtpClientObject *self = context;
    (void)client;
    self->client = NULL;
    PyObject *error = self->error != NULL && why == self->stream_why ? self->error : Py_None;
    PyObject *text = reply_text(reply);
    PyObject *args = text == NULL ? NULL : Py_BuildValue("iNO", why, text, error);
    tell(self, self->closed, args, "Exception in the closed callback");
}

/* answered(reply), of a message that goes step by step. */
static void heard_answered(void *arg, bk_smtp_client *client, const char *reply) {
    PyObject *told = arg; /* (this, callback, answered) */
    (void)client;
    PyObject *text = reply_text(reply);
    PyObject *args = text == NULL ? NULL : Py_BuildValue("(N)", text);
    tell((SmtpClientObject *)PyTuple_GET_ITEM(told, 0), PyTuple_GET_ITEM(told, 2), args,
         "Exception in the callback of a command");
}

/* callback(decided, replies), whose reference was the message's. */
static void heard_sent(void *arg, bk_smtp_client *client, const bk_smtp_message *message,
                       const bk_smtp_result *result) {
    PyObject *told = arg; /* (this, callback, …) */
    SmtpClientObject *self = (SmtpClientObject *)PyTuple_GET_ITEM(told, 0);
    (void)client;
    if (message == self->open)
        self->open = NULL;
    PyObject *list = PyList_New((Py_ssize_t)result->reply_count);
    for (size_t i = 0; list != NULL && i < result->reply_count; i++) {
        PyObject *text = reply_text(result->replies[i]);
        if (text == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, (Py_ssize_t)i, text);
    }
    PyObject *args = list == NULL ? NULL : Py_BuildValue("zN", result->decided, list);
    tell(self, PyTuple_GET_ITEM(told, 1), args, "Exception in the callback of a message");
    Py_DECREF(told);
}

/* ---- The stream ---- */

static int make(void *context, bk_os *os, bk_machine **ret_machine) {
    SmtpClientObject *self = context;
    (void)os;
    *ret_machine = self->fresh;
    self->fresh = NULL;
    return *ret_machine != NULL ? 0 : -ECANCELED;
}

static SmtpClientObject *client_of(const bk_stream *s) {
    return ((const bk_machine_factory *)(const void *)bk_stream_protocol(s))->context;
}

static void stream_closed(bk_stream *s, int why) {
    SmtpClientObject *self = client_of(s);
    self->stream = NULL;
    self->stream_why = why;
    if (why < 0 && !self->loop->ending) {
        self->error = stream_exception(self->loop->state, s, why);
        if (self->error == NULL)
            PyErr_Clear();
    }
    if (self->fresh != NULL) { /* it never connected */
        bk_machine *m = self->fresh;
        self->fresh = NULL;
        m->why = why;
        bk_machine_free(m);
    } else {
        bk_run_closed(s, why);
    }
    Py_DECREF((PyObject *)self);
}

/* What the collector is to visit, of a stream that is one of ours; or NULL. */
PyObject *smtp_client_of(const bk_stream *s) {
    return bk_stream_protocol(s)->closed == stream_closed ? (PyObject *)client_of(s) : NULL;
}

/* ---- Making one ---- */

static int tls_flags(const char *tls, unsigned *flags) {
    if (strcmp(tls, "required") == 0)
        *flags |= BK_SMTP_TLS_REQUIRED;
    else if (strcmp(tls, "never") == 0)
        *flags |= BK_SMTP_TLS_NEVER;
    else if (strcmp(tls, "opportunistic") != 0) {
        PyErr_Format(PyExc_ValueError, "tls: '%s' is none of 'opportunistic', 'required', 'never'",
                     tls);
        return -1;
    }
    return 0;
}

static int make_client(SmtpClientObject *self, bk_smtp_client_config *config) {
    config->size = sizeof *config;
    config->context = self;
    config->ready = heard_ready;
    config->closed = heard_closed;
    int code = bk_smtp_client_new(config, bk_loop_os(self->loop->core), &self->fresh);
    if (code == -EINVAL)
        PyErr_SetString(PyExc_ValueError,
                        (config->user == NULL) != (config->password == NULL)
                            ? "user and password go together"
                        : config->mechanism != NULL
                            ? "mechanism is none of 'PLAIN', 'LOGIN', 'SCRAM-SHA-256', or hostname "
                              "is no host name"
                            : "hostname is no host name, nor an address in brackets");
    else if (code < 0)
        loop_raise(code);
    if (code < 0)
        return -1;
    self->client = bk_smtp_client_of(self->fresh);
    return 0;
}

static int begin_connecting(SmtpClientObject *self, const char *endpoint) {
    bk_error error = {0, 0, ""};
    self->factory = (bk_machine_factory){
        .protocol = BK_MACHINE_PROTOCOL("smtp client"), .make = make, .context = self};
    self->factory.protocol.closed = stream_closed;
    int code = bk_connect(self->loop->core, endpoint, &self->factory.protocol, NULL, &error,
                          &self->stream);
    if (code < 0) {
        (void)endpoint_raise(self->loop->state, endpoint, &error);
        return -1;
    }
    Py_INCREF((PyObject *)self); /* the stream's */
    return 0;
}

static PyObject *client_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {
        "loop",     "endpoint",      "hostname",  "lmtp",    "make_whole", "tls",    "user",
        "password", "auth_in_clear", "mechanism", "timeout", "ready",      "closed", NULL};
    module_state *state = state_of_type(type);
    PyObject *loop, *text, *ready = Py_None, *closed = Py_None;
    bk_smtp_client_config config = {0};
    const char *tls = "opportunistic";
    int lmtp = 0, whole = 0, clear = 0;
    if (state == NULL ||
        !PyArg_ParseTupleAndKeywords(args, kwargs, "O!O|$zppszzpzIOO:SmtpClient", names,
                                     state->loop_type, &loop, &text, &config.hostname, &lmtp,
                                     &whole, &tls, &config.user, &config.password, &clear,
                                     &config.mechanism, &config.timeout, &ready, &closed))
        return NULL;
    const char *endpoint = endpoint_text(text);
    config.flags = (lmtp ? BK_SMTP_LMTP : 0) | (whole ? BK_SMTP_MAKE_WHOLE : 0) |
                   (clear ? BK_SMTP_AUTH_IN_CLEAR : 0);
    if (endpoint == NULL || loop_check_open((LoopObject *)loop) < 0 ||
        tls_flags(tls, &config.flags) < 0)
        return NULL;
    SmtpClientObject *self = (SmtpClientObject *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->loop = (LoopObject *)Py_NewRef(loop);
    self->ready = Py_NewRef(ready);
    self->closed = Py_NewRef(closed);
    self->context = PyContext_CopyCurrent();
    self->texts = kwargs != NULL ? PyDict_Copy(kwargs) : PyDict_New();
    if (self->context == NULL || self->texts == NULL || make_client(self, &config) < 0 ||
        begin_connecting(self, endpoint) < 0)
        Py_CLEAR(self);
    return (PyObject *)self;
}

/* ---- Messages ---- */

static const char *text_of(PyObject *object, const char *what) {
    Py_ssize_t n = 0;
    const char *text = PyUnicode_Check(object) ? PyUnicode_AsUTF8AndSize(object, &n) : NULL;
    if (text == NULL) {
        if (!PyErr_Occurred())
            PyErr_Format(PyExc_TypeError, "%s: a str is needed, not %R", what, Py_TYPE(object));
        return NULL;
    }
    if (strlen(text) == (size_t)n)
        return text;
    PyErr_Format(PyExc_ValueError, "%s: %R has a NUL in it", what, object);
    return NULL;
}

static int address_error(int code, const char *what, PyObject *address) {
    if (code == -ENOMEM)
        PyErr_NoMemory();
    else
        PyErr_Format(PyExc_ValueError,
                     "%s: %R is no address that SMTP could carry; it is like 'user@example.org'",
                     what, address);
    return -1;
}

static int copy_option(bk_smtp_message *m, char **place, const char *text) {
    size_t n = text != NULL ? strlen(text) : 0;
    if (text == NULL)
        return 0;
    *place = m->os->resize(m->os, NULL, n + 1);
    if (*place == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    memcpy(*place, text, n + 1);
    return 0;
}

/* A str, or (str, notify, orcpt): see send(). What it refers to is the object's. */
static int parse_recipient(PyObject *object, bk_smtp_recipient *ret_recipient) {
    PyObject *address = object;
    unsigned notify = 0;
    const char *original = NULL;
    if (PyTuple_Check(object) &&
        !PyArg_ParseTuple(object, "OIz:recipient", &address, &notify, &original))
        return -1;
    const char *text = text_of(address, "recipients");
    if (text == NULL)
        return -1;
    *ret_recipient = (bk_smtp_recipient){.address = (char *)(uintptr_t)text,
                                         .notify = notify,
                                         .original = (char *)(uintptr_t)original};
    return 0;
}

static int add_recipient(bk_smtp_message *m, PyObject *object) {
    bk_smtp_recipient given;
    if (parse_recipient(object, &given) < 0)
        return -1;
    int code = bk_smtp_message_to(m, given.address);
    if (code < 0)
        return address_error(code, "recipients", object);
    bk_smtp_recipient *r = &m->recipients[m->recipient_count - 1];
    r->notify = given.notify;
    return copy_option(m, &r->original, given.original);
}

static int add_recipients(bk_smtp_message *m, PyObject *recipients) {
    PyObject *list = PySequence_Fast(recipients, "recipients: a sequence is needed");
    int code = list == NULL ? -1 : 0;
    for (Py_ssize_t i = 0; code == 0 && i < PySequence_Fast_GET_SIZE(list); i++)
        code = add_recipient(m, PySequence_Fast_GET_ITEM(list, i));
    if (code == 0 && m->recipient_count == 0) {
        PyErr_SetString(PyExc_ValueError, "recipients: there is none");
        code = -1;
    }
    Py_XDECREF(list);
    return code;
}

static int add_data(bk_smtp_message *m, PyObject *data) {
    Py_buffer view;
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0)
        return -1;
    int code = bk_smtp_message_add(m, view.buf, (size_t)view.len);
    PyBuffer_Release(&view);
    return code < 0 ? loop_raise(code) : 0;
}

static int data_error(int code) {
    if (code != -EINVAL)
        return loop_raise(code);
    PyErr_SetString(PyExc_ValueError,
                    "data: a CR or LF stands alone; lines end in CRLF, or give make_whole");
    return -1;
}

/* What send() and begin() say of a message beside its sender. */
typedef struct parameters {
    int body, utf8, require_tls, ret;
    const char *envelope_id, *submitter;
} parameters;

static bk_smtp_message *new_message(SmtpClientObject *self, PyObject *sender,
                                    const parameters *given) {
    bk_smtp_message *m;
    const char *text = text_of(sender, "sender");
    if (text == NULL || loop_check_open(self->loop) < 0)
        return NULL;
    int code = bk_smtp_message_new(bk_loop_os(self->loop->core), text, &m);
    if (code < 0) {
        (void)address_error(code, "sender", sender);
        return NULL;
    }
    m->body = (bk_smtp_body)given->body;
    m->utf8 |= given->utf8;
    m->require_tls = given->require_tls;
    m->ret = (bk_smtp_return)given->ret;
    if (copy_option(m, &m->envelope_id, given->envelope_id) == 0 &&
        copy_option(m, &m->submitter, given->submitter) == 0)
        return m;
    bk_smtp_message_free(m);
    return NULL;
}

static int queue(SmtpClientObject *self, bk_smtp_message *m, PyObject *callback) {
    PyObject *told = PyTuple_Pack(2, (PyObject *)self, callback);
    if (told == NULL)
        return -1;
    int code =
        self->client == NULL ? -EPIPE : bk_smtp_client_send(self->client, m, heard_sent, told);
    if (code == 0)
        return 0;
    Py_DECREF(told);
    return data_error(code);
}

static PyObject *client_send(SmtpClientObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"sender",      "recipients", "data",        "callback",  "body", "utf8",
                            "require_tls", "ret",        "envelope_id", "submitter", NULL};
    PyObject *sender, *recipients, *data, *callback = Py_None;
    parameters p = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO|$Oippizz:send", names, &sender, &recipients,
                                     &data, &callback, &p.body, &p.utf8, &p.require_tls, &p.ret,
                                     &p.envelope_id, &p.submitter))
        return NULL;
    bk_smtp_message *m = new_message(self, sender, &p);
    if (m == NULL)
        return NULL;
    if (add_recipients(m, recipients) == 0 && add_data(m, data) == 0 &&
        queue(self, m, callback) == 0)
        Py_RETURN_NONE;
    bk_smtp_message_free(m);
    return NULL;
}

/* ---- A message step by step ---- */

static int begin(SmtpClientObject *self, bk_smtp_message *m, PyObject *answered,
                 PyObject *callback) {
    PyObject *told = PyTuple_Pack(3, (PyObject *)self, callback, answered);
    if (told == NULL)
        return -1;
    if (self->open == NULL)
        self->open = m; /* MAIL may be refused from within */
    int code = self->client == NULL
                   ? -EPIPE
                   : bk_smtp_client_begin(self->client, m, heard_answered, heard_sent, told);
    if (code == 0)
        return 0;
    if (self->open == m)
        self->open = NULL;
    Py_DECREF(told);
    return loop_raise(code);
}

static PyObject *client_begin(SmtpClientObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"sender",      "answered", "callback",    "size",      "body", "utf8",
                            "require_tls", "ret",      "envelope_id", "submitter", NULL};
    PyObject *sender, *answered, *callback;
    unsigned long long size = 0;
    parameters p = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO|$Kippizz:begin", names, &sender, &answered,
                                     &callback, &size, &p.body, &p.utf8, &p.require_tls, &p.ret,
                                     &p.envelope_id, &p.submitter))
        return NULL;
    bk_smtp_message *m = new_message(self, sender, &p);
    if (m == NULL)
        return NULL;
    m->declared = size;
    if (begin(self, m, answered, callback) == 0)
        Py_RETURN_NONE;
    bk_smtp_message_free(m);
    return NULL;
}

static PyObject *client_recipient(SmtpClientObject *self, PyObject *object) {
    bk_smtp_recipient given;
    if (parse_recipient(object, &given) < 0 || loop_check_open(self->loop) < 0)
        return NULL;
    int code = self->client == NULL ? -EPIPE : bk_smtp_client_recipient(self->client, &given);
    if (code == -EINVAL)
        (void)address_error(code, "recipients", object);
    else if (code < 0)
        (void)loop_raise(code);
    return code < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *client_finish(SmtpClientObject *self, PyObject *data) {
    if (loop_check_open(self->loop) < 0)
        return NULL;
    if (self->client == NULL || self->open == NULL) {
        (void)loop_raise(-EPIPE);
        return NULL;
    }
    if (self->open->recipient_count == 0)
        return PyErr_Format(PyExc_ValueError, "recipients: there is none");
    if (add_data(self->open, data) < 0)
        return NULL;
    self->open = NULL;
    int code = bk_smtp_client_finish(self->client);
    if (code == 0)
        Py_RETURN_NONE;
    bk_smtp_client_drop(self->client); /* it has data now that nobody knows of */
    (void)data_error(code);
    return NULL;
}

static PyObject *client_drop(SmtpClientObject *self, PyObject *Py_UNUSED(ignored)) {
    self->open = NULL;
    if (self->client != NULL && !self->loop->ending)
        bk_smtp_client_drop(self->client);
    Py_RETURN_NONE;
}

/* ---- The rest ---- */

static PyObject *client_quit(SmtpClientObject *self, PyObject *Py_UNUSED(ignored)) {
    if (self->client != NULL && !self->loop->ending)
        bk_smtp_client_quit(self->client);
    Py_RETURN_NONE;
}

static PyObject *client_abort(SmtpClientObject *self, PyObject *Py_UNUSED(ignored)) {
    if (self->stream != NULL && !self->loop->ending)
        bk_stream_abort(self->stream);
    Py_RETURN_NONE;
}

static PyObject *client_offers(SmtpClientObject *self, PyObject *arg) {
    const char *keyword = text_of(arg, "keyword"), *value = NULL;
    if (keyword == NULL)
        return NULL;
    if (self->client == NULL || !bk_smtp_client_offers(self->client, keyword, &value))
        Py_RETURN_NONE;
    return reply_text(value);
}

static PyObject *client_secure(SmtpClientObject *self, PyObject *Py_UNUSED(ignored)) {
    bool secure = self->client != NULL && self->fresh == NULL &&
                  bk_machine_secure(bk_smtp_client_machine(self->client)) > 0;
    return PyBool_FromLong(secure);
}

static int client_traverse(SmtpClientObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT((PyObject *)self->loop);
    Py_VISIT(self->ready);
    Py_VISIT(self->closed);
    Py_VISIT(self->context);
    Py_VISIT(self->texts);
    Py_VISIT(self->error);
    return 0;
}

static int client_clear(SmtpClientObject *self) {
    Py_CLEAR(self->ready);
    Py_CLEAR(self->closed);
    Py_CLEAR(self->context);
    Py_CLEAR(self->error);
    return 0;
}

/* The stream has a reference: here there is none, or there never was one. */
static void client_dealloc(SmtpClientObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    client_clear(self);
    if (self->fresh != NULL)
        bk_machine_free(self->fresh);
    Py_CLEAR(self->texts);
    Py_CLEAR(self->loop);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef client_methods[] = {
    {"send", (PyCFunction)(void (*)(void))client_send, METH_VARARGS | METH_KEYWORDS,
     "send(sender, recipients, data, *, callback=None, body=0, utf8=False, require_tls=False, "
     "ret=0, envelope_id=None, submitter=None)\n\nQueue a message. Each recipient is an address, "
     "or (address, notify, original). callback(decided, replies) is called with a reply for "
     "each, and with the command that decided: MAIL, RCPT, DATA; None: not the server. "
     "ValueError: an address or the data is not what SMTP carries. BrokenPipeError: the connection "
     "is gone, or ending."},
    {"begin", (PyCFunction)(void (*)(void))client_begin, METH_VARARGS | METH_KEYWORDS,
     "begin(sender, answered, callback, *, size=0, body=0, utf8=False, require_tls=False, ret=0, "
     "envelope_id=None, submitter=None)\n\nBegin a message that goes step by step. "
     "answered(reply) is called with the reply to MAIL, and to each recipient; callback as "
     "send()'s, once and last. OSError: one is under way."},
    {"recipient", (PyCFunction)client_recipient, METH_O,
     "recipient(recipient)\n\nOne more, as send()'s. BrokenPipeError: nothing is under way, or "
     "the sender was refused."},
    {"finish", (PyCFunction)client_finish, METH_O,
     "finish(data)\n\nSend it. ValueError: the data is not what SMTP carries, and it is dropped."},
    {"drop", (PyCFunction)client_drop, METH_NOARGS, "drop()\n\nGive it up."},
    {"quit", (PyCFunction)client_quit, METH_NOARGS,
     "quit()\n\nEnd it when all that is queued has been answered."},
    {"abort", (PyCFunction)client_abort, METH_NOARGS, "abort()\n\nEnd it now."},
    {"offers", (PyCFunction)client_offers, METH_O,
     "offers(keyword) -> str | None\n\nThe value of what the server offers; None: it does not."},
    {"secure", (PyCFunction)client_secure, METH_NOARGS, "secure() -> bool\n\nUnder TLS."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot client_slots[] = {
    {Py_tp_doc,
     "SmtpClient(loop, endpoint, *, hostname=None, lmtp=False, make_whole=False, "
     "tls='opportunistic', user=None, password=None, auth_in_clear=False, mechanism=None, "
     "timeout=0, ready=None, closed=None)\n\nA connection to a mail server. ready() is called when "
     "mail may be sent, closed(why, reply, error) at the end."},
    {Py_tp_new, client_new},
    {Py_tp_dealloc, client_dealloc},
    {Py_tp_traverse, client_traverse},
    {Py_tp_clear, client_clear},
    {Py_tp_methods, client_methods},
    {0, NULL},
};

PyType_Spec smtp_client_spec = {
    .name = "becket._becket.SmtpClient",
    .basicsize = sizeof(SmtpClientObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = client_slots,
};
