/*
 * smtp.c: the core's SMTP server with its Maildir store, on an EventLoop. Made by `becket serve
 * smtp` (python/becket/served.py). No Python runs for a message but the one call that tells of it.
 */
#include "becket_py.h"

#include "smtp.h"

typedef struct SmtpObject {
    SERVED_HEAD; /* protocol is of bk_smtp_maildir_new() */
    bk_listener **listeners;
    Py_ssize_t listener_count;
    PyObject *stored;
    smtp_policy policy;
} SmtpObject;

static void check_login(void *context, bk_smtp_session *s, const bk_smtp_login *login) {
    const SmtpObject *self = context;
    smtp_policy_auth(&self->policy, self->loop, s, login);
}

static void check_recipient(void *context, bk_smtp_session *s, const bk_smtp_message *envelope,
                            const bk_smtp_recipient *recipient) {
    const SmtpObject *self = context;
    (void)envelope;
    bk_smtp_answer(s, smtp_policy_refusal(&self->policy, s, recipient));
}

static PyObject *recipients_of(const bk_smtp_message *message) {
    PyObject *list = PyList_New((Py_ssize_t)message->recipient_count);
    for (size_t i = 0; list != NULL && i < message->recipient_count; i++) {
        const char *address = message->recipients[i].address;
        PyObject *text = PyUnicode_DecodeUTF8(address, (Py_ssize_t)strlen(address), NULL);
        if (text == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, (Py_ssize_t)i, text);
    }
    return list;
}

static void stored(void *arg, const char *name, const bk_smtp_message *message) {
    SmtpObject *self = arg;
    if (self->stored == NULL || self->stored == Py_None || self->loop->ending)
        return;
    PyObject *recipients = recipients_of(message);
    PyObject *result =
        recipients == NULL
            ? NULL
            : PyObject_CallFunction(self->stored, "ssOn", name, message->sender, recipients,
                                    (Py_ssize_t)(message->size - message->trace_size));
    if (result == NULL)
        loop_report(self->loop, "Exception in the stored callback", NULL, NULL, NULL);
    Py_XDECREF(recipients);
    Py_XDECREF(result);
}

static int open_protocol(SmtpObject *self, const bk_smtp_config *config, const char *path) {
    bk_protocol *protocol;
    int code = bk_smtp_maildir_new(self->loop->core, config, path, stored, self, &protocol);
    if (code >= 0)
        self->protocol = protocol;
    if (code == -EINVAL) {
        PyErr_Format(PyExc_ValueError, "hostname: '%s' is no host name",
                     config->hostname != NULL ? config->hostname : "");
        return -1;
    }
    if (code < 0) {
        PyObject *e = PyObject_CallFunction(PyExc_OSError, "iss", -code, bk_strerror(code), path);
        if (e != NULL)
            PyErr_SetObject((PyObject *)Py_TYPE(e), e);
        Py_XDECREF(e);
        return -1;
    }
    return 0;
}

/* Connections refer to this object as long as the loop lives. */
static int start(SmtpObject *self, PyObject *settings, const char *path) {
    bk_smtp_config config = {.size = sizeof config,
                             .context = self,
                             .auth = self->policy.users != NULL ? check_login : NULL,
                             .rcpt = self->policy.accept != NULL ? check_recipient : NULL};
    if (smtp_settings(settings, &config) < 0 || open_protocol(self, &config, path) < 0)
        return -1;
    return loop_keep(self->loop, (PyObject *)self);
}

/* kwargs without name, whose value is *ret_value, borrowed from kwargs. */
static int take_keyword(PyObject *rest, PyObject *kwargs, const char *name, PyObject **ret_value) {
    *ret_value = kwargs == NULL ? NULL : PyDict_GetItemString(kwargs, name);
    return *ret_value == NULL ? 0 : PyDict_DelItemString(rest, name);
}

typedef struct Wanted {
    PyObject *loop, *path, *hostname, *settings; /* path and settings are ours */
    PyObject *stored, *users, *accept;
} Wanted;

static int parse(PyObject *args, PyObject *kwargs, const module_state *state, Wanted *w) {
    *w = (Wanted){.hostname = Py_None};
    if (!PyArg_ParseTuple(args, "O!O&|O:Smtp", state->loop_type, &w->loop, PyUnicode_FSConverter,
                          &w->path, &w->hostname))
        return -1;
    w->settings = kwargs == NULL ? PyDict_New() : PyDict_Copy(kwargs);
    if (w->settings == NULL || take_keyword(w->settings, kwargs, "stored", &w->stored) < 0 ||
        take_keyword(w->settings, kwargs, "users", &w->users) < 0 ||
        take_keyword(w->settings, kwargs, "accept", &w->accept) < 0)
        return -1;
    return w->hostname == Py_None ? 0 : PyDict_SetItemString(w->settings, "hostname", w->hostname);
}

static PyObject *smtp_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    module_state *state = state_of_type(type);
    SmtpObject *self = NULL;
    Wanted w;
    if (state == NULL)
        return NULL;
    if (parse(args, kwargs, state, &w) == 0 && loop_check_open((LoopObject *)w.loop) == 0)
        self = (SmtpObject *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->loop = (LoopObject *)Py_NewRef(w.loop);
        self->stored = Py_XNewRef(w.stored);
        if (smtp_policy_set(state, &self->policy, w.users, w.accept) < 0 ||
            start(self, w.settings, PyBytes_AS_STRING(w.path)) < 0)
            Py_CLEAR(self);
    }
    Py_XDECREF(w.path);
    Py_XDECREF(w.settings);
    return (PyObject *)self;
}

static int listen_at(SmtpObject *self, const char *endpoint, bk_error *ret_error) {
    size_t count = (size_t)self->listener_count + 1;
    bk_listener **listeners = PyMem_Realloc(self->listeners, count * sizeof(bk_listener *));
    if (listeners == NULL)
        return ret_error->code = -ENOMEM;
    self->listeners = listeners;
    int code = bk_listen(self->loop->core, endpoint, self->protocol, ret_error,
                         &listeners[self->listener_count]);
    if (code >= 0)
        self->listener_count++;
    return code;
}

static PyObject *smtp_listen(SmtpObject *self, PyObject *arg) {
    bk_error error = {0, 0, ""};
    const char *endpoint = endpoint_text(arg);
    if (endpoint == NULL)
        return NULL;
    if (self->protocol == NULL || loop_check_open(self->loop) < 0)
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_RuntimeError, "the server is closed");
    int code = listen_at(self, endpoint, &error);
    if (code >= 0)
        return PyUnicode_FromString(bk_listener_name(self->listeners[self->listener_count - 1]));
    return endpoint_raise(self->loop->state, endpoint, &error);
}

static void end_smtp(SmtpObject *self) {
    bool alive = self->loop != NULL && self->loop->core != NULL && !self->loop->ending;
    for (Py_ssize_t i = 0; alive && i < self->listener_count; i++)
        bk_listener_close(self->listeners[i]);
    self->listener_count = 0;
    PyMem_Free(self->listeners);
    self->listeners = NULL;
    bk_machine_protocol_free((bk_protocol *)(uintptr_t)self->protocol);
    self->protocol = NULL;
}

static PyObject *smtp_close(SmtpObject *self, PyObject *Py_UNUSED(ignored)) {
    end_smtp(self);
    Py_RETURN_NONE;
}

static int smtp_traverse(SmtpObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT((PyObject *)self->loop);
    Py_VISIT(self->stored);
    return 0;
}

static int smtp_clear(SmtpObject *self) {
    Py_CLEAR(self->stored);
    return 0;
}

static void smtp_dealloc(SmtpObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    end_smtp(self);
    smtp_clear(self);
    smtp_policy_clear(&self->policy);
    Py_CLEAR(self->loop);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *smtp_reload(SmtpObject *self, PyObject *Py_UNUSED(ignored)) {
    bool alive = self->loop->core != NULL && !self->loop->ending;
    for (Py_ssize_t i = 0; alive && i < self->listener_count; i++)
        bk_listener_reload(self->listeners[i]);
    Py_RETURN_NONE;
}

static PyMethodDef smtp_methods[] = {
    {"listen", (PyCFunction)smtp_listen, METH_O,
     "listen(endpoint) -> str\n\nReceive mail there too; returns the endpoint with the port it "
     "got. "
     "ValueError for an endpoint that is wrong, OSError for one that cannot be had."},
    {"reload", (PyCFunction)smtp_reload, METH_NOARGS,
     "reload()\n\nRead the certificates of its endpoints again. Connections go on; a certificate "
     "that cannot be used is told of on standard error, and the old one stays."},
    {"close", (PyCFunction)smtp_close, METH_NOARGS,
     "close()\n\nAccept no more connections; those that are there go on."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot smtp_slots[] = {
    {Py_tp_doc, "Smtp(loop, maildir, hostname=None, *, stored=None, users=None, accept=None, "
                "**settings)\n\n"
                "Receives mail into a Maildir. stored(name, sender, recipients, size) is called on "
                "the loop for each message, before it is acknowledged."},
    {Py_tp_new, smtp_new},
    {Py_tp_dealloc, smtp_dealloc},
    {Py_tp_traverse, smtp_traverse},
    {Py_tp_clear, smtp_clear},
    {Py_tp_methods, smtp_methods},
    {0, NULL},
};

PyType_Spec smtp_spec = {
    .name = "becket._becket.Smtp",
    .basicsize = sizeof(SmtpObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = smtp_slots,
};
