/*
 * smtp_types.c: what a Python mail server's handlers are given: the session and the envelope, with
 * the attributes that aiosmtpd's have. Made by smtp_handler.c when a handler is called, and by
 * programs.
 */
#include "becket_py.h"

#include "smtp.h"

#include <structmember.h>

/* ---- Session ---- */

static int session_init(SmtpSessionObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"loop", NULL};
    PyObject *loop = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O:Session", names, &loop))
        return -1;
    Py_XSETREF(self->loop, Py_NewRef(loop));
    return 0;
}

#define SESSION_OBJECTS(X)                                                                         \
    X(dict) X(peer) X(ssl) X(host_name) X(loop) X(proxy_data) X(auth_data) X(login_data)           \
    X(authenticated)

static int session_traverse(SmtpSessionObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
#define SESSION_VISIT(field) Py_VISIT(self->field);
    SESSION_OBJECTS(SESSION_VISIT)
    return 0;
}

static int session_clear(SmtpSessionObject *self) {
#define SESSION_CLEAR(field) Py_CLEAR(self->field);
    SESSION_OBJECTS(SESSION_CLEAR)
    return 0;
}

static void session_dealloc(SmtpSessionObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (self->weakrefs != NULL)
        PyObject_ClearWeakRefs((PyObject *)self);
    session_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

#define SESSION_MEMBER(name, doc)                                                                  \
    { #name, T_OBJECT, offsetof(SmtpSessionObject, name), 0, doc }

static PyMemberDef session_members[] = {
    SESSION_MEMBER(peer, "The client's address, as sockets have it."),
    SESSION_MEMBER(ssl, "What TLS was agreed on, a dict; None: there is none."),
    SESSION_MEMBER(host_name, "What the client calls itself; None: it has not said."),
    SESSION_MEMBER(loop, "The event loop."),
    SESSION_MEMBER(proxy_data, "What a PROXY header told; None: there was none."),
    SESSION_MEMBER(auth_data, "What the authenticator gave for whoever has logged in."),
    SESSION_MEMBER(login_data, "The name of whoever has logged in."),
    SESSION_MEMBER(authenticated, "True: the client has logged in."),
    {"extended_smtp", T_BOOL, offsetof(SmtpSessionObject, extended_smtp), 0,
     "Whether it said EHLO or LHLO."},
    {"__dictoffset__", T_PYSSIZET, offsetof(SmtpSessionObject, dict), READONLY, NULL},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(SmtpSessionObject, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef session_getset[] = {
    {"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot session_slots[] = {
    {Py_tp_doc, "Session(loop=None): what is known of a client. It may be given other attributes."},
    {Py_tp_init, session_init},
    {Py_tp_dealloc, session_dealloc},
    {Py_tp_traverse, session_traverse},
    {Py_tp_clear, session_clear},
    {Py_tp_members, session_members},
    {Py_tp_getset, session_getset},
    {0, NULL},
};

PyType_Spec smtp_session_spec = {
    .name = "becket._becket.Session",
    .basicsize = sizeof(SmtpSessionObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .slots = session_slots,
};

/* ---- Envelope ---- */

static int envelope_init(PyObject *Py_UNUSED(self), PyObject *args, PyObject *kwargs) {
    static char *names[] = {NULL};
    return PyArg_ParseTupleAndKeywords(args, kwargs, ":Envelope", names) ? 0 : -1;
}

/* A list is made when somebody asks for it. */
PyObject *smtp_list(PyObject **place) {
    if (*place == NULL)
        *place = PyList_New(0);
    return *place;
}

static PyObject **list_place(PyObject *self, void *closure) {
    return (PyObject **)((char *)self + (uintptr_t)closure);
}

static PyObject *list_get(PyObject *self, void *closure) {
    return Py_XNewRef(smtp_list(list_place(self, closure)));
}

static int list_set(PyObject *self, PyObject *value, void *closure) {
    Py_XSETREF(*list_place(self, closure), Py_XNewRef(value));
    return 0;
}

#define ENVELOPE_OBJECTS(X)                                                                        \
    X(dict) X(mail_from) X(mail_options) X(content) X(original_content) X(rcpt_tos) X(rcpt_options)

static int envelope_traverse(SmtpEnvelopeObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
#define ENVELOPE_VISIT(field) Py_VISIT(self->field);
    ENVELOPE_OBJECTS(ENVELOPE_VISIT)
    return 0;
}

static int envelope_clear(SmtpEnvelopeObject *self) {
#define ENVELOPE_CLEAR(field) Py_CLEAR(self->field);
    ENVELOPE_OBJECTS(ENVELOPE_CLEAR)
    return 0;
}

static void envelope_dealloc(SmtpEnvelopeObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (self->weakrefs != NULL)
        PyObject_ClearWeakRefs((PyObject *)self);
    envelope_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

#define ENVELOPE_MEMBER(name, doc)                                                                 \
    { #name, T_OBJECT, offsetof(SmtpEnvelopeObject, name), 0, doc }

static PyMemberDef envelope_members[] = {
    ENVELOPE_MEMBER(mail_from, "The sender; \"<>\" for a notification; None: not yet said."),
    ENVELOPE_MEMBER(content, "The message: bytes, or with decode_data a str."),
    ENVELOPE_MEMBER(original_content, "The message, bytes."),
    {"smtp_utf8", T_BOOL, offsetof(SmtpEnvelopeObject, smtp_utf8), 0,
     "Whether MAIL said SMTPUTF8."},
    {"__dictoffset__", T_PYSSIZET, offsetof(SmtpEnvelopeObject, dict), READONLY, NULL},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(SmtpEnvelopeObject, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

#define ENVELOPE_LIST(name, doc)                                                                   \
    { #name, list_get, list_set, doc, (void *)offsetof(SmtpEnvelopeObject, name) }

static PyGetSetDef envelope_getset[] = {
    ENVELOPE_LIST(mail_options, "The parameters of MAIL."),
    ENVELOPE_LIST(rcpt_tos, "The recipients."),
    ENVELOPE_LIST(rcpt_options, "The parameters of RCPT, of all recipients."),
    {"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot envelope_slots[] = {
    {Py_tp_doc, "Envelope(): a message that arrives. It may be given other attributes."},
    {Py_tp_init, envelope_init},
    {Py_tp_dealloc, envelope_dealloc},
    {Py_tp_traverse, envelope_traverse},
    {Py_tp_clear, envelope_clear},
    {Py_tp_members, envelope_members},
    {Py_tp_getset, envelope_getset},
    {0, NULL},
};

PyType_Spec smtp_envelope_spec = {
    .name = "becket._becket.Envelope",
    .basicsize = sizeof(SmtpEnvelopeObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .slots = envelope_slots,
};

/* ---- Settings ---- */

typedef struct setting {
    const char *name;
    size_t place;
    enum { SETTING_TEXT, SETTING_SIZE, SETTING_NUMBER } kind;
} setting;

static const setting settings[] = {
    {"hostname", offsetof(bk_smtp_config, hostname), SETTING_TEXT},
    {"software", offsetof(bk_smtp_config, software), SETTING_TEXT},
    {"flags", offsetof(bk_smtp_config, flags), SETTING_NUMBER},
    {"max_message", offsetof(bk_smtp_config, max_message), SETTING_SIZE},
    {"max_recipients", offsetof(bk_smtp_config, max_recipients), SETTING_NUMBER},
    {"max_errors", offsetof(bk_smtp_config, max_errors), SETTING_NUMBER},
    {"max_idle", offsetof(bk_smtp_config, max_idle), SETTING_NUMBER},
    {"max_messages", offsetof(bk_smtp_config, max_messages), SETTING_NUMBER},
    {"timeout", offsetof(bk_smtp_config, timeout), SETTING_NUMBER},
    {"max_session", offsetof(bk_smtp_config, max_session), SETTING_NUMBER},
};

static int take_number(const setting *s, PyObject *value, void *place) {
    unsigned long long most = s->kind == SETTING_SIZE ? SIZE_MAX / 4 : UINT32_MAX / 2;
    unsigned long long number = PyLong_Check(value) ? PyLong_AsUnsignedLongLong(value) : 0;
    bool wrong = number > most || !PyLong_Check(value);
    if (PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_OverflowError))
            return -1;
        PyErr_Clear();
        wrong = true;
    }
    if (wrong) {
        PyErr_Format(PyLong_Check(value) ? PyExc_ValueError : PyExc_TypeError,
                     "%s: a number from 0 to %llu is needed, not %R", s->name, most, value);
        return -1;
    }
    if (s->kind == SETTING_SIZE)
        *(size_t *)place = (size_t)number;
    else
        *(unsigned *)place = (unsigned)number;
    return 0;
}

static int take_setting(const setting *s, PyObject *value, bk_smtp_config *config) {
    void *place = (char *)config + s->place;
    if (value == Py_None)
        return 0;
    if (s->kind != SETTING_TEXT)
        return take_number(s, value, place);
    Py_ssize_t n;
    const char *text = PyUnicode_Check(value) ? PyUnicode_AsUTF8AndSize(value, &n) : NULL;
    if (text == NULL || strlen(text) != (size_t)n) {
        if (!PyErr_Occurred())
            PyErr_Format(PyExc_TypeError, "%s: a str is needed, not %R", s->name, value);
        return -1;
    }
    *(const char **)place = text;
    return 0;
}

/* The texts are those of dict's values. TypeError and ValueError name the setting. */
int smtp_settings(PyObject *dict, bk_smtp_config *config) {
    PyObject *key, *value;
    Py_ssize_t position = 0;
    while (PyDict_Next(dict, &position, &key, &value)) {
        size_t i = 0;
        while (i < sizeof settings / sizeof *settings &&
               PyUnicode_CompareWithASCIIString(key, settings[i].name) != 0)
            i++;
        if (i == sizeof settings / sizeof *settings) {
            PyErr_Format(PyExc_TypeError, "%S: there is no such setting", key);
            return -1;
        }
        if (take_setting(&settings[i], value, config) < 0)
            return -1;
    }
    return 0;
}

/* ---- Users ---- */

static PyObject *users_failed(PyObject *path, int code, unsigned line) {
    if (line > 0)
        return PyErr_Format(PyExc_ValueError, "%S, line %u: %s", path, line,
                            code == -EEXIST ? "there was such a user before"
                                            : "name:SCRAM-SHA-256$... is needed; `becket passwd` "
                                              "makes one");
    PyObject *e = PyObject_CallFunction(PyExc_OSError, "isO", -code, bk_strerror(code), path);
    if (e != NULL)
        PyErr_SetObject((PyObject *)Py_TYPE(e), e);
    Py_XDECREF(e);
    return NULL;
}

/* Users(path) */
static PyObject *users_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs)) {
    PyObject *path, *bytes;
    unsigned line = 0;
    if (!PyArg_ParseTuple(args, "O:SmtpUsers", &path) || !PyUnicode_FSConverter(path, &bytes))
        return NULL;
    SmtpUsersObject *self = (SmtpUsersObject *)type->tp_alloc(type, 0);
    int code = self == NULL ? 0
                            : bk_users_open(bk_os_default(), PyBytes_AS_STRING(bytes),
                                            &self->users, &line);
    Py_DECREF(bytes);
    if (self == NULL || code >= 0)
        return (PyObject *)self;
    Py_DECREF((PyObject *)self);
    return users_failed(path, code, line);
}

static PyObject *users_reload(SmtpUsersObject *self, PyObject *Py_UNUSED(ignored)) {
    unsigned line = 0;
    int code = bk_users_reload(self->users, &line);
    PyObject *name = code < 0 ? PyUnicode_FromString("the file of users") : NULL;
    if (code >= 0)
        Py_RETURN_NONE;
    if (name != NULL)
        (void)users_failed(name, code, line);
    Py_XDECREF(name);
    return NULL;
}

static void users_dealloc(SmtpUsersObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    bk_users_close(self->users);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef users_methods[] = {
    {"reload", (PyCFunction)users_reload, METH_NOARGS,
     "reload()\n\nRead the file again; when it is wrong, what was read before stays."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot users_slots[] = {
    {Py_tp_doc, "SmtpUsers(path): users and what is kept of their passwords. ValueError names the "
                "line that is wrong."},
    {Py_tp_new, users_new},
    {Py_tp_dealloc, users_dealloc},
    {Py_tp_methods, users_methods},
    {0, NULL},
};

PyType_Spec smtp_users_spec = {
    .name = "becket._becket.SmtpUsers",
    .basicsize = sizeof(SmtpUsersObject),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = users_slots,
};

/* ---- Who may do what ---- */

int smtp_policy_set(module_state *state, smtp_policy *policy, PyObject *users, PyObject *accept) {
    if (users != NULL && users != Py_None && Py_TYPE(users) != state->smtp_users_type) {
        PyErr_Format(PyExc_TypeError, "users: SmtpUsers are needed, not %R", users);
        return -1;
    }
    if (accept != NULL && accept != Py_None) {
        if ((accept = PySequence_Tuple(accept)) == NULL)
            return -1;
        policy->accept = accept;
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(accept); i++)
            if (!PyUnicode_Check(PyTuple_GET_ITEM(accept, i)) ||
                PyUnicode_AsUTF8(PyTuple_GET_ITEM(accept, i)) == NULL) {
                PyErr_Clear();
                PyErr_Format(PyExc_TypeError, "accept: a domain is needed, not %R",
                             PyTuple_GET_ITEM(accept, i));
                return -1;
            }
    }
    if (users != NULL && users != Py_None)
        policy->users = Py_NewRef(users);
    return 0;
}

void smtp_policy_clear(smtp_policy *policy) {
    Py_CLEAR(policy->users);
    Py_CLEAR(policy->accept);
}

void smtp_policy_auth(const smtp_policy *policy, LoopObject *loop, bk_smtp_session *s,
                      const bk_smtp_login *login) {
    if (loop == NULL || loop->ending)
        bk_smtp_answer(s, "454 4.7.0 Temporary authentication failure");
    else
        bk_users_auth(((SmtpUsersObject *)policy->users)->users, loop->core, s, login);
}

const char *smtp_policy_refusal(const smtp_policy *policy, const bk_smtp_session *s,
                                const bk_smtp_recipient *recipient) {
    const char *at = strrchr(recipient->address, '@');
    if (policy->accept == NULL || bk_smtp_login_name(s) != NULL)
        return NULL;
    if (at == NULL) /* postmaster is everywhere (RFC 5321, 4.5.1) */
        return NULL;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(policy->accept); i++)
        if (PyOS_stricmp(PyUnicode_AsUTF8(PyTuple_GET_ITEM(policy->accept, i)), at + 1) == 0)
            return NULL;
    return "550 5.7.1 no mail is taken for that domain here";
}

/* ---- Passwords, for `becket passwd` ---- */

PyObject *smtp_make_secret(PyObject *Py_UNUSED(module), PyObject *password) {
    char text[BK_SECRET_TEXT];
    bk_secret secret;
    const char *plain = PyUnicode_Check(password) ? PyUnicode_AsUTF8(password) : NULL;
    if (plain == NULL)
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_TypeError, "password: a str is needed");
    int code;
    Py_BEGIN_ALLOW_THREADS
    code = bk_secret_make(bk_os_default(), plain, 0, &secret);
    Py_END_ALLOW_THREADS
    if (code == -EINVAL)
        return PyErr_Format(PyExc_ValueError, "a password has 1 to 1024 bytes, and no control "
                                              "character");
    if (code < 0) {
        loop_raise(code);
        return NULL;
    }
    bk_secret_format(&secret, text);
    return PyUnicode_FromString(text);
}

PyObject *smtp_verify_secret(PyObject *Py_UNUSED(module), PyObject *args) {
    const char *text, *password;
    bk_secret secret;
    if (!PyArg_ParseTuple(args, "ss:_verify_secret", &text, &password))
        return NULL;
    if (bk_secret_parse(text, &secret) < 0)
        return PyErr_Format(PyExc_ValueError, "that is no SCRAM-SHA-256$...");
    int good;
    Py_BEGIN_ALLOW_THREADS
    good = bk_secret_verify(&secret, password);
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(good);
}
