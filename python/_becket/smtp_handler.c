/*
 * smtp_handler.c: the types that give mail to a handler in Python with aiosmtpd's interface; what
 * they do when the core asks is in smtp_hooks.c. Made by python/becket/smtp/server.py.
 *
 * SmtpConnection is the base of becket.smtp.SMTP: one for each client, and what handlers get as
 * `server`. It is either made for a session of an SmtpServer, which a listener serves, when
 * something first has to be told (a copy of the server's pattern); or it is an asyncio.Protocol,
 * and runs a session of its own on whatever transport it is given.
 */
#include "smtp_handler.h"

#include <structmember.h>

/* ---- Rules ---- */

/* SmtpRules(settings, data, mail, rcpt, asks, decode_data, utf8) */
static PyObject *rules_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs)) {
    PyObject *settings, *hooks[HOOKS], *users = NULL, *accept = NULL;
    unsigned asks;
    int decode_data, utf8;
    if (!PyArg_ParseTuple(args, "O!OOOIpp|OO:SmtpRules", &PyDict_Type, &settings, &hooks[0],
                          &hooks[1], &hooks[2], &asks, &decode_data, &utf8, &users, &accept))
        return NULL;
    SmtpRulesObject *self = (SmtpRulesObject *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->settings = PyDict_Copy(settings);
    for (int i = 0; i < HOOKS; i++)
        self->hooks[i] = hooks[i] == Py_None ? NULL : Py_NewRef(hooks[i]);
    self->asks = asks;
    self->state = state_of_type(type);
    self->decode_data = decode_data;
    self->utf8 = utf8;
    self->config = (bk_smtp_config){.size = sizeof(bk_smtp_config)};
    handler_set_hooks(&self->config, asks & ASKS_AUTH);
    if (self->settings == NULL || smtp_settings(self->settings, &self->config) < 0 ||
        smtp_policy_set(state_of_type(type), &self->policy, users, accept) < 0)
        Py_CLEAR(self);
    return (PyObject *)self;
}

static int rules_traverse(SmtpRulesObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->settings);
    for (int i = 0; i < HOOKS; i++)
        Py_VISIT(self->hooks[i]);
    return 0;
}

static int rules_clear(SmtpRulesObject *self) {
    for (int i = 0; i < HOOKS; i++)
        Py_CLEAR(self->hooks[i]);
    return 0;
}

static void rules_dealloc(SmtpRulesObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    rules_clear(self);
    smtp_policy_clear(&self->policy);
    Py_CLEAR(self->settings);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyType_Slot rules_slots[] = {
    {Py_tp_doc, "SmtpRules(settings, data, mail, rcpt, asks, decode_data, utf8): what a handler "
                "wants to be asked."},
    {Py_tp_new, rules_new},
    {Py_tp_dealloc, rules_dealloc},
    {Py_tp_traverse, rules_traverse},
    {Py_tp_clear, rules_clear},
    {0, NULL},
};

PyType_Spec smtp_rules_spec = {
    .name = "becket._becket.SmtpRules",
    .basicsize = sizeof(SmtpRulesObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = rules_slots,
};

/* ---- On an asyncio transport ---- */

static void transport_do(SmtpConnectionObject *c, const char *method) {
    PyObject *result =
        c->transport == NULL ? NULL : PyObject_CallMethod(c->transport, method, NULL);
    if (result == NULL && PyErr_Occurred())
        PyErr_WriteUnraisable((PyObject *)c);
    Py_XDECREF(result);
}

static int machine_send(bk_machine *m, const void *data, size_t n, bk_release release, void *arg) {
    SmtpConnectionObject *c = m->runner_state;
    int code = bk_buffer_add(m->os, &c->out, data, n);
    if (release != BK_COPY)
        release(arg);
    if (code == 0)
        handler_flush(c);
    return code;
}

static void machine_close(bk_machine *m, int why) {
    SmtpConnectionObject *c = m->runner_state;
    bool gathering = c->gathering;
    c->gathering = false;
    if (why == 0)
        handler_flush(c);
    c->gathering = gathering;
    transport_do(c, why == 0 ? "close" : "abort");
}

static void machine_pause(bk_machine *m) {
    transport_do(m->runner_state, "pause_reading");
}

static void machine_resume(bk_machine *m) {
    transport_do(m->runner_state, "resume_reading");
}

static void machine_timeout(bk_machine *m, unsigned seconds) {
    SmtpConnectionObject *c = m->runner_state;
    PyObject *result = handler_call(c, "_set_timeout", "(I)", seconds);
    if (result == NULL)
        PyErr_WriteUnraisable((PyObject *)c);
    Py_XDECREF(result);
}

/* 1: under TLS, 0: it is offered; else negative. */
static int machine_secure(bk_machine *m) {
    SmtpConnectionObject *c = m->runner_state;
    PyObject *result = handler_call(c, "_is_secure", "()");
    long answer = result == NULL ? -1 : PyLong_AsLong(result);
    Py_XDECREF(result);
    if (PyErr_Occurred())
        PyErr_WriteUnraisable((PyObject *)c);
    return answer < 0 ? -ENOTSUP : (int)answer;
}

static int machine_start_tls(bk_machine *m, const void *last, size_t n) {
    SmtpConnectionObject *c = m->runner_state;
    bool gathering = c->gathering;
    int code = bk_buffer_add(m->os, &c->out, last, n);
    if (code < 0)
        return code;
    c->gathering = false;
    handler_flush(c);
    c->gathering = gathering;
    PyObject *result = handler_call(c, "_start_tls", "()");
    if (result == NULL)
        PyErr_WriteUnraisable((PyObject *)c);
    Py_XDECREF(result);
    return result == NULL ? -ECANCELED : 0;
}

static const bk_runner_ops machine_ops = {
    .size = sizeof(bk_runner_ops),
    .send = machine_send,
    .close = machine_close,
    .pause = machine_pause,
    .resume = machine_resume,
    .timeout = machine_timeout,
    .start_tls = machine_start_tls,
    .secure = machine_secure,
};

static PyObject *connection_made(SmtpConnectionObject *c, PyObject *transport) {
    if (c->rules == NULL || c->machine != NULL)
        return PyErr_Format(PyExc_RuntimeError, "it has a connection already, or none of its own");
    bk_smtp_config config = c->rules->config;
    bk_machine *machine;
    config.context = c;
    int code = bk_smtp_new(&config, bk_os_default(), &machine);
    if (code < 0) {
        loop_raise(code);
        return NULL;
    }
    c->machine = machine;
    c->core = (bk_smtp_session *)machine; /* which begins with it */
    Py_XSETREF(c->transport, Py_NewRef(transport));
    bk_smtp_set_user(c->core, c);
    (void)bk_machine_start(machine, &machine_ops, c);
    Py_RETURN_NONE;
}

static PyObject *connection_data_received(SmtpConnectionObject *c, PyObject *data) {
    Py_buffer view;
    if (c->machine == NULL || PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0) {
        if (c->machine == NULL)
            Py_RETURN_NONE;
        return NULL;
    }
    Py_INCREF((PyObject *)c);
    c->moved++;
    c->gathering = true;
    int code = bk_machine_feed(c->machine, view.buf, (size_t)view.len);
    c->gathering = false;
    PyBuffer_Release(&view);
    if (code < 0)
        bk_machine_abort(c->machine, code);
    handler_flush(c);
    Py_DECREF((PyObject *)c);
    Py_RETURN_NONE;
}

/* Last words; whoever calls closes. */
static PyObject *connection_time_out(SmtpConnectionObject *c, PyObject *Py_UNUSED(ignored)) {
    if (c->machine == NULL || c->gone)
        Py_RETURN_NONE;
    bk_machine_time_out(c->machine);
    handler_flush(c);
    Py_RETURN_NONE;
}

/* True: we go on sending; TLS cannot, and asyncio says so to those who would. */
static PyObject *connection_eof_received(SmtpConnectionObject *c, PyObject *Py_UNUSED(ignored)) {
    if (c->machine == NULL)
        Py_RETURN_NONE;
    bool secure = bk_machine_secure(c->machine) > 0;
    bk_machine_end(c->machine);
    if (secure)
        Py_RETURN_NONE;
    Py_RETURN_TRUE;
}

static void machine_end(SmtpConnectionObject *c) {
    bk_machine *machine = c->machine;
    if (machine == NULL || c->gone)
        return;
    bk_machine_free(machine);
    bk_buffer_clear(bk_os_default(), &c->out);
    Py_CLEAR(c->transport);
}

static PyObject *connection_lost(SmtpConnectionObject *c, PyObject *Py_UNUSED(why)) {
    Py_INCREF((PyObject *)c);
    if (c->machine != NULL)
        bk_machine_timeout(c->machine, 0);
    machine_end(c);
    Py_DECREF((PyObject *)c);
    Py_RETURN_NONE;
}

static PyObject *connection_pause(SmtpConnectionObject *c, PyObject *Py_UNUSED(ignored)) {
    if (!c->gone)
        bk_machine_block(c->machine, 1);
    Py_RETURN_NONE;
}

static PyObject *connection_resume(SmtpConnectionObject *c, PyObject *Py_UNUSED(ignored)) {
    if (!c->gone)
        bk_machine_block(c->machine, 0);
    Py_RETURN_NONE;
}

/* ---- What handlers may do with it ---- */

/* push(status): a line to the client, at once. */
static PyObject *connection_push(SmtpConnectionObject *c, PyObject *status) {
    const char *text = handler_reply(status);
    if (text == NULL)
        return NULL;
    if (c->core != NULL && !c->gone) {
        bk_machine *m = bk_smtp_machine(c->core);
        (void)bk_machine_send(m, text, strlen(text), BK_COPY, NULL);
        (void)bk_machine_send(m, "\r\n", 2, BK_COPY, NULL);
    }
    return Py_NewRef(c->rules->state->done);
}

/* _answer(reply): to what is asked, while a task goes on. */
static PyObject *connection_answer(SmtpConnectionObject *c, PyObject *reply) {
    const char *text = handler_reply(reply);
    if (text == NULL)
        return NULL;
    bool before = c->in_task;
    c->in_task = true;
    if (c->question != QUESTION_NONE)
        handler_answer(c, text, NULL);
    c->in_task = before;
    Py_RETURN_NONE;
}

/* _set_rules(rules, loop) */
static PyObject *connection_set_rules(SmtpConnectionObject *c, PyObject *args) {
    const module_state *state =
        PyModule_GetState(PyType_GetModuleByDef(Py_TYPE((PyObject *)c), &becket_module));
    PyObject *rules, *loop;
    if (!PyArg_ParseTuple(args, "O!O:_set_rules", state->smtp_rules_type, &rules, &loop))
        return NULL;
    Py_XSETREF(c->rules, (SmtpRulesObject *)Py_NewRef(rules));
    Py_XSETREF(c->loop, Py_NewRef(loop));
    if (PyObject_TypeCheck(loop, state->loop_type))
        c->ours = (LoopObject *)loop;
    Py_RETURN_NONE;
}

static PyObject *get_session(SmtpConnectionObject *c, void *Py_UNUSED(closure)) {
    if (c->core == NULL && c->session == NULL)
        Py_RETURN_NONE;
    return Py_XNewRef(handler_session(c));
}

static PyObject *get_envelope(SmtpConnectionObject *c, void *Py_UNUSED(closure)) {
    if (c->core == NULL && c->envelope == NULL)
        Py_RETURN_NONE;
    return Py_XNewRef(handler_envelope(c, NULL));
}

static int set_envelope(SmtpConnectionObject *c, PyObject *value, void *Py_UNUSED(closure)) {
    if (value != NULL && !PyObject_TypeCheck(value, c->rules->state->smtp_envelope_type)) {
        PyErr_Format(PyExc_TypeError, "envelope: an Envelope is needed, not %R", value);
        return -1;
    }
    Py_XSETREF(c->envelope, Py_XNewRef(value));
    return 0;
}

static int connection_traverse(SmtpConnectionObject *c, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(c));
    Py_VISIT(c->dict);
    Py_VISIT((PyObject *)c->rules);
    Py_VISIT(c->loop);
    Py_VISIT(c->context);
    Py_VISIT(c->session);
    Py_VISIT(c->envelope);
    Py_VISIT(c->task);
    Py_VISIT(c->transport);
    return 0;
}

static int connection_clear(SmtpConnectionObject *c) {
    Py_CLEAR(c->dict);
    Py_CLEAR(c->context);
    Py_CLEAR(c->session);
    Py_CLEAR(c->envelope);
    Py_CLEAR(c->task);
    Py_CLEAR(c->transport);
    return 0;
}

/* A session that is gone and waits for an answer is freed by it. */
static void connection_dealloc(SmtpConnectionObject *c) {
    PyTypeObject *type = Py_TYPE(c);
    PyObject_GC_UnTrack(c);
    if (c->weakrefs != NULL)
        PyObject_ClearWeakRefs((PyObject *)c);
    c->ours = NULL;
    Py_CLEAR(c->transport);
    if (c->machine != NULL && !c->gone) {
        bk_smtp_set_user(c->core, NULL);
        c->machine->runner = NULL;
        bk_machine_free(c->machine);
        c->gone = true;
    }
    if (c->core != NULL && c->gone && c->question != QUESTION_NONE)
        bk_smtp_answer(c->core, NULL);
    bk_buffer_clear(bk_os_default(), &c->out);
    connection_clear(c);
    Py_CLEAR(c->rules);
    Py_CLEAR(c->loop);
    type->tp_free(c);
    Py_DECREF(type);
}

static PyMethodDef connection_methods[] = {
    {"connection_made", (PyCFunction)connection_made, METH_O, "As asyncio.Protocol's."},
    {"data_received", (PyCFunction)connection_data_received, METH_O, "As asyncio.Protocol's."},
    {"eof_received", (PyCFunction)connection_eof_received, METH_NOARGS, "As asyncio.Protocol's."},
    {"connection_lost", (PyCFunction)connection_lost, METH_O, "As asyncio.Protocol's."},
    {"pause_writing", (PyCFunction)connection_pause, METH_NOARGS, "As asyncio.Protocol's."},
    {"resume_writing", (PyCFunction)connection_resume, METH_NOARGS, "As asyncio.Protocol's."},
    {"push", (PyCFunction)connection_push, METH_O,
     "push(status) -> awaitable\n\nSend a line to the client, a str or bytes without its end."},
    {"_answer", (PyCFunction)connection_answer, METH_O, NULL},
    {"_done", (PyCFunction)handler_done, METH_O, NULL},
    {"_time_out", (PyCFunction)connection_time_out, METH_NOARGS, NULL},
    {"_set_rules", (PyCFunction)connection_set_rules, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef smtp_connection_members[] = {
    {"loop", T_OBJECT, offsetof(SmtpConnectionObject, loop), READONLY, "The event loop."},
    {"transport", T_OBJECT, offsetof(SmtpConnectionObject, transport), 0,
     "The asyncio transport; None: it is on a stream of the core's, or gone."},
    {"_moved", T_UINT, offsetof(SmtpConnectionObject, moved), READONLY, NULL},
    {"_handler_coroutine", T_OBJECT, offsetof(SmtpConnectionObject, task), READONLY, NULL},
    {"__dictoffset__", T_PYSSIZET, offsetof(SmtpConnectionObject, dict), READONLY, NULL},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(SmtpConnectionObject, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef smtp_connection_getset[] = {
    {"session", (getter)get_session, NULL, "The Session.", NULL},
    {"envelope", (getter)get_envelope, (setter)set_envelope, "The Envelope that arrives.", NULL},
    {"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot smtp_connection_slots[] = {
    {Py_tp_doc, "The base of becket.smtp.SMTP: a client's connection, in C."},
    {Py_tp_dealloc, connection_dealloc},
    {Py_tp_traverse, connection_traverse},
    {Py_tp_clear, connection_clear},
    {Py_tp_methods, connection_methods},
    {Py_tp_members, smtp_connection_members},
    {Py_tp_getset, smtp_connection_getset},
    {0, NULL},
};

PyType_Spec smtp_connection_spec = {
    .name = "becket._becket.SmtpConnection",
    .basicsize = sizeof(SmtpConnectionObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .slots = smtp_connection_slots,
};

/* ---- At endpoints ---- */

static int server_open(SmtpServerObject *self) {
    bk_smtp_config config = ((SmtpConnectionObject *)self->pattern)->rules->config;
    bk_protocol *protocol;
    config.context = self;
    int code = bk_smtp_protocol_new(&config, bk_loop_os(self->loop->core), &protocol);
    if (code == 0)
        self->protocol = protocol;
    if (code == -EINVAL)
        PyErr_Format(PyExc_ValueError, "hostname or ident: '%s' or '%s' cannot be said in SMTP",
                     config.hostname != NULL ? config.hostname : "",
                     config.software != NULL ? config.software : "");
    else if (code < 0)
        loop_raise(code);
    return code < 0 ? -1 : 0;
}

/* SmtpServer(loop, pattern) */
static PyObject *server_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs)) {
    module_state *state = state_of_type(type);
    PyObject *loop, *pattern;
    if (state == NULL ||
        !PyArg_ParseTuple(args, "O!O!:SmtpServer", state->loop_type, &loop,
                          state->smtp_connection_type, &pattern) ||
        loop_check_open((LoopObject *)loop) < 0)
        return NULL;
    if (((SmtpConnectionObject *)pattern)->rules == NULL)
        return PyErr_Format(PyExc_ValueError, "pattern: SMTP.__init__() was not called");
    SmtpServerObject *self = (SmtpServerObject *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->loop = (LoopObject *)Py_NewRef(loop);
    self->pattern = Py_NewRef(pattern);
    self->context = PyContext_CopyCurrent();
    /* Connections refer to this object as long as the loop lives. */
    if (self->context == NULL || server_open(self) < 0 ||
        loop_keep(self->loop, (PyObject *)self) < 0)
        Py_CLEAR(self);
    return (PyObject *)self;
}

static int server_traverse(SmtpServerObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT((PyObject *)self->loop);
    Py_VISIT(self->pattern);
    Py_VISIT(self->context);
    return 0;
}

static void server_dealloc(SmtpServerObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    bk_machine_protocol_free((bk_protocol *)(uintptr_t)self->protocol);
    Py_CLEAR(self->pattern);
    Py_CLEAR(self->context);
    Py_CLEAR(self->loop);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyType_Slot server_slots[] = {
    {Py_tp_doc, "SmtpServer(loop, pattern): mail for a handler, at endpoints; each client gets a "
                "copy of the pattern, a becket.smtp.SMTP."},
    {Py_tp_new, server_new},
    {Py_tp_dealloc, server_dealloc},
    {Py_tp_traverse, server_traverse},
    {0, NULL},
};

PyType_Spec smtp_server_spec = {
    .name = "becket._becket.SmtpServer",
    .basicsize = sizeof(SmtpServerObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = server_slots,
};
