/*
 * smtp_hooks.c: what the core's SMTP server asks is put to a handler in Python, and its answers are
 * given to the core. Called by the core, and by the types in smtp_handler.c.
 *
 * Commands, data and replies are the core's; Python is called only for what the handler has a
 * method for. A coroutine makes its first step at once, and answers later if it has to wait.
 */
#include "smtp_handler.h"

static void settle(SmtpConnectionObject *c, PyObject *result);

static const module_state *state_of(const SmtpConnectionObject *c) {
    return c->rules->state;
}

/* ---- Calling Python ---- */

static bool is_ending(const SmtpConnectionObject *c) {
    return c->ours != NULL && c->ours->ending;
}

/* In the connection's context. */
static PyObject *call(SmtpConnectionObject *c, PyObject *callable, PyObject *const *args,
                      size_t n) {
    bool enter = c->context != NULL && !c->calling;
    if (enter && PyContext_Enter(c->context) < 0)
        return NULL;
    bool before = c->calling;
    c->calling = true;
    PyObject *result = PyObject_Vectorcall(callable, args, n, NULL);
    c->calling = before;
    if (!enter)
        return result;
    PyObject *type, *value, *tb;
    PyErr_Fetch(&type, &value, &tb);
    if (PyContext_Exit(c->context) < 0)
        Py_CLEAR(result);
    if (type != NULL)
        PyErr_Restore(type, value, tb);
    return result;
}

PyObject *handler_call(SmtpConnectionObject *c, const char *name, const char *format, ...) {
    va_list list;
    va_start(list, format);
    PyObject *args = Py_VaBuildValue(format, list);
    va_end(list);
    PyObject *method = args == NULL ? NULL : PyObject_GetAttrString((PyObject *)c, name);
    PyObject *result = NULL;
    if (method != NULL)
        result = call(c, method, &PyTuple_GET_ITEM(args, 0), (size_t)PyTuple_GET_SIZE(args));
    Py_XDECREF(method);
    Py_XDECREF(args);
    return result;
}

static PyObject *text_of(const char *text) {
    return PyUnicode_DecodeUTF8(text, (Py_ssize_t)strlen(text), "surrogateescape");
}

/* ---- The connection of a session ---- */

static PyObject *stream_peer(bk_stream *s) {
    struct sockaddr_storage address;
    size_t size = sizeof address;
    if (bk_stream_query(s, BK_QUERY_PEER, &address, &size) < 0)
        return Py_NewRef(Py_None);
    return address_to_python(&address, size);
}

/* A copy of the pattern, with what a subclass or its maker gave that. */
static SmtpConnectionObject *connection_new(SmtpServerObject *server, bk_smtp_session *s) {
    const SmtpConnectionObject *pattern = (SmtpConnectionObject *)server->pattern;
    PyTypeObject *type = Py_TYPE(server->pattern);
    SmtpConnectionObject *c = (SmtpConnectionObject *)type->tp_alloc(type, 0);
    if (c == NULL)
        return NULL;
    c->rules = (SmtpRulesObject *)Py_NewRef((PyObject *)pattern->rules);
    c->loop = Py_NewRef((PyObject *)server->loop);
    c->ours = server->loop;
    c->context = PyContext_Copy(server->context);
    c->dict = pattern->dict == NULL ? PyDict_New() : PyDict_Copy(pattern->dict);
    if (c->context == NULL || c->dict == NULL) {
        Py_DECREF((PyObject *)c);
        return NULL;
    }
    c->core = s;
    bk_smtp_set_user(s, c); /* takes the reference over */
    return c;
}

/* NULL, answered for: there is none. */
static SmtpConnectionObject *connection_of(void *context, bk_smtp_session *s) {
    SmtpConnectionObject *c = bk_smtp_user(s);
    if (c == NULL && !((SmtpServerObject *)context)->loop->ending)
        c = connection_new(context, s);
    if (c != NULL)
        return c;
    PyErr_Clear();
    bk_smtp_answer(s, "451 4.3.0 local error");
    return NULL;
}

static const SmtpRulesObject *rules_of(void *context, bk_smtp_session *s) {
    const SmtpConnectionObject *c = bk_smtp_user(s);
    return c != NULL ? c->rules
                     : ((SmtpConnectionObject *)((SmtpServerObject *)context)->pattern)->rules;
}

/* ---- Session and envelope ---- */

static int tls_text(bk_stream *s, int what, char *text, size_t room) {
    size_t size = room - 1;
    int code = bk_stream_query(s, what, text, &size);
    text[code < 0 ? 0 : size] = '\0';
    return code;
}

static PyObject *stream_tls(bk_stream *s) {
    char version[32], cipher[64], name[256];
    int bits = 0;
    size_t size = sizeof bits;
    tls_text(s, BK_QUERY_TLS_VERSION, version, sizeof version);
    tls_text(s, BK_QUERY_TLS_CIPHER, cipher, sizeof cipher);
    tls_text(s, BK_QUERY_TLS_NAME, name, sizeof name);
    if (bk_stream_query(s, BK_QUERY_TLS_BITS, &bits, &size) < 0)
        bits = 0;
    return Py_BuildValue("{s:s,s:(ssi),s:s}", "version", version, "cipher", cipher, version, bits,
                         "server_hostname", name);
}

/* Who a PROXY header says it is, if there was one. */
static int session_proxy(SmtpConnectionObject *c, SmtpSessionObject *session, bk_stream *s) {
    struct sockaddr_storage proxy, local;
    size_t size = sizeof proxy, local_size = sizeof local;
    if (bk_stream_query(s, BK_QUERY_PROXY_PEER, &proxy, &size) < 0)
        return 0;
    if (bk_stream_query(s, BK_QUERY_LOCAL, &local, &local_size) < 0)
        local_size = 0;
    session->proxy_data =
        PyObject_CallMethod((PyObject *)c, "_proxy", "ONN", session->peer,
                            address_to_python(&local, local_size), address_to_python(&proxy, size));
    return session->proxy_data == NULL ? -1 : 0;
}

/* From within a hook, too, whose context is entered: nothing here is called in that. */
static int session_describe(SmtpConnectionObject *c, SmtpSessionObject *session) {
    bk_stream *stream =
        c->machine != NULL || c->gone ? NULL : bk_smtp_machine(c->core)->runner_state;
    const char *name = bk_smtp_helo(c->core);
    session->loop = Py_NewRef(c->loop);
    session->extended_smtp = (char)bk_smtp_extended(c->core);
    if (c->machine != NULL && c->transport != NULL)
        session->peer = PyObject_CallMethod(c->transport, "get_extra_info", "s", "peername");
    else
        session->peer = stream == NULL ? Py_NewRef(Py_None) : stream_peer(stream);
    if (session->peer == NULL || (stream != NULL && session_proxy(c, session, stream) < 0))
        return -1;
    if (c->secure && c->machine != NULL)
        session->ssl = PyObject_CallMethod((PyObject *)c, "_tls_info", NULL);
    else if (c->secure && stream != NULL)
        session->ssl = stream_tls(stream);
    if (c->secure && session->ssl == NULL && PyErr_Occurred())
        return -1;
    /* Where the handler has a hook for EHLO, it is for that to say. */
    if (name[0] != '\0' && !(c->rules->asks & ASKS_HELO))
        session->host_name = text_of(name);
    return PyErr_Occurred() ? -1 : 0;
}

PyObject *handler_session(SmtpConnectionObject *c) {
    bool secure = c->core != NULL && bk_smtp_secure(c->core);
    if (c->session != NULL && (secure == c->secure || c->gone))
        return c->session;
    PyTypeObject *type = state_of(c)->smtp_session_type;
    SmtpSessionObject *session = (SmtpSessionObject *)type->tp_alloc(type, 0);
    c->secure = secure;
    if (session != NULL && c->core != NULL && session_describe(c, session) < 0)
        Py_CLEAR(session);
    if (session == NULL)
        return NULL;
    Py_XSETREF(c->session, (PyObject *)session);
    return c->session;
}

static bool keeps_case(const char *word, size_t n) {
    static const char *const words[] = {"ENVID=", "ORCPT=", "AUTH="};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (n >= strlen(words[i]) &&
            PyOS_strnicmp(word, words[i], (Py_ssize_t)strlen(words[i])) == 0)
            return true;
    return false;
}

/* As aiosmtpd gives it: in capitals; but what may be a name of somebody's stays as it is. */
static PyObject *option_new(const char *word, size_t n) {
    const char *equals = memchr(word, '=', n);
    size_t upper = keeps_case(word, n) && equals != NULL ? (size_t)(equals - word) : n;
    PyObject *text = PyBytes_FromStringAndSize(word, (Py_ssize_t)n);
    if (text == NULL)
        return NULL;
    char *bytes = PyBytes_AS_STRING(text);
    for (size_t i = 0; i < upper; i++)
        bytes[i] = (char)Py_TOUPPER(bytes[i]);
    PyObject *option = PyUnicode_DecodeUTF8(bytes, (Py_ssize_t)n, "surrogateescape");
    Py_DECREF(text);
    return option;
}

static int list_add(PyObject *list, PyObject *item) {
    int code = list == NULL || item == NULL ? -1 : PyList_Append(list, item);
    Py_XDECREF(item);
    return code;
}

static int options_add(PyObject **place, const char *options) {
    while (options != NULL && *options != '\0') {
        size_t n = strcspn(options, " ");
        if (n > 0 && list_add(smtp_list(place), option_new(options, n)) < 0)
            return -1;
        options += n + (options[n] == ' ');
    }
    return 0;
}

static PyObject *sender_of(const bk_smtp_message *m) {
    return text_of(m->sender[0] != '\0' ? m->sender : "<>");
}

static int envelope_add(SmtpEnvelopeObject *e, const bk_smtp_recipient *recipient) {
    if (list_add(smtp_list(&e->rcpt_tos), text_of(recipient->address)) < 0)
        return -1;
    return options_add(&e->rcpt_options, recipient->options);
}

static int envelope_describe(SmtpEnvelopeObject *e, const bk_smtp_message *m) {
    Py_XSETREF(e->mail_from, sender_of(m));
    e->smtp_utf8 = m->utf8 != 0;
    if (e->mail_from == NULL || options_add(&e->mail_options, m->options) < 0)
        return -1;
    for (size_t i = 0; i < m->recipient_count; i++)
        if (envelope_add(e, &m->recipients[i]) < 0)
            return -1;
    return 0;
}

PyObject *handler_envelope(SmtpConnectionObject *c, const bk_smtp_message *m) {
    if (c->envelope != NULL)
        return c->envelope;
    if (m == NULL && c->core != NULL && !c->gone && c->rules->hooks[HOOK_MAIL] == NULL)
        m = c->core->message;
    PyTypeObject *type = state_of(c)->smtp_envelope_type;
    SmtpEnvelopeObject *e = (SmtpEnvelopeObject *)type->tp_alloc(type, 0);
    if (e != NULL && m != NULL && envelope_describe(e, m) < 0)
        Py_CLEAR(e);
    c->envelope = (PyObject *)e;
    return c->envelope;
}

/* ---- Answers ---- */

void handler_flush(SmtpConnectionObject *c) {
    if (c->gathering || c->out.used == 0 || c->transport == NULL)
        return;
    PyObject *data = PyBytes_FromStringAndSize(c->out.data, (Py_ssize_t)c->out.used);
    c->out.used = 0;
    c->moved++;
    PyObject *result = data == NULL ? NULL : PyObject_CallMethod(c->transport, "write", "O", data);
    if (result == NULL)
        PyErr_WriteUnraisable((PyObject *)c);
    Py_XDECREF(result);
    Py_XDECREF(data);
}

void handler_answer(SmtpConnectionObject *c, const char *reply, const char *const *each) {
    bk_smtp_session *s = c->core;
    bool gathering = c->gathering;
    if (c->question == QUESTION_MESSAGE)
        Py_CLEAR(c->envelope);
    c->question = QUESTION_NONE;
    c->failing = false;
    if (s == NULL)
        return;
    if (c->gone)
        c->core = NULL;
    Py_INCREF((PyObject *)c);
    c->gathering = true;
    if (each != NULL)
        bk_smtp_answer_each(s, each);
    else
        bk_smtp_answer(s, reply);
    c->gathering = gathering;
    handler_flush(c);
    Py_DECREF((PyObject *)c);
}

const char *handler_reply(PyObject *value) {
    Py_ssize_t n;
    if (PyUnicode_Check(value))
        return PyUnicode_AsUTF8AndSize(value, &n);
    if (PyBytes_Check(value))
        return PyBytes_AS_STRING(value);
    PyErr_Format(PyExc_TypeError, "a reply is a str such as '250 OK', not %R", value);
    return NULL;
}

/* LMTP: a list with a reply for each recipient, or a dict by recipient. */
static PyObject *replies_of(SmtpConnectionObject *c, PyObject *value) {
    if (PyList_Check(value) || PyTuple_Check(value))
        return PySequence_List(value);
    PyObject *recipients = smtp_list(&((SmtpEnvelopeObject *)c->envelope)->rcpt_tos);
    PyObject *list = recipients == NULL ? NULL : PyList_New(0);
    for (Py_ssize_t i = 0; list != NULL && i < PyList_GET_SIZE(recipients); i++) {
        PyObject *reply = PyDict_GetItemWithError(value, PyList_GET_ITEM(recipients, i));
        if (PyErr_Occurred() || PyList_Append(list, reply != NULL ? reply : Py_None) < 0)
            Py_CLEAR(list);
    }
    return list;
}

static int answer_each(SmtpConnectionObject *c, PyObject *value) {
    enum { MOST = 65536 };
    PyObject *list = replies_of(c, value);
    Py_ssize_t n = list == NULL ? 0 : PyList_GET_SIZE(list);
    PyObject *recipients = smtp_list(&((SmtpEnvelopeObject *)c->envelope)->rcpt_tos);
    if (list != NULL && (recipients == NULL || n != PyList_GET_SIZE(recipients) || n > MOST)) {
        PyErr_Format(PyExc_ValueError, "%zd replies were given, and there are %zd recipients", n,
                     recipients == NULL ? 0 : PyList_GET_SIZE(recipients));
        Py_CLEAR(list);
    }
    const char **replies = list == NULL ? NULL : PyMem_Calloc((size_t)n + 1, sizeof *replies);
    int code = replies == NULL ? -1 : 0;
    for (Py_ssize_t i = 0; code == 0 && i < n; i++) {
        PyObject *item = PyList_GET_ITEM(list, i);
        if (item != Py_None && (replies[i] = handler_reply(item)) == NULL)
            code = -1;
    }
    if (code == 0)
        handler_answer(c, NULL, replies);
    PyMem_Free((void *)replies);
    Py_XDECREF(list);
    return code;
}

/* What a handler gave, which is no awaitable. */
static int answer_value(SmtpConnectionObject *c, PyObject *value) {
    if (value == Py_None) {
        handler_answer(c, c->failing ? "451 4.3.0 local error" : NULL, NULL);
        return 0;
    }
    if (c->question == QUESTION_MESSAGE && c->envelope != NULL &&
        (PyList_Check(value) || PyTuple_Check(value) || PyDict_Check(value)))
        return answer_each(c, value);
    const char *reply = handler_reply(value);
    if (reply == NULL)
        return -1;
    handler_answer(c, reply, NULL);
    return 0;
}

/* An exception is set. The handler may describe it; one that cannot even do that is reported. */
static void fail(SmtpConnectionObject *c) {
    if (c->ours != NULL && loop_take_fatal(c->ours)) {
        handler_answer(c, "421 4.3.0 local error", NULL);
        return;
    }
    PyObject *type, *value, *tb;
    PyErr_Fetch(&type, &value, &tb);
    PyErr_NormalizeException(&type, &value, &tb);
    if (tb != NULL)
        PyException_SetTraceback(value, tb);
    bool again = c->failing;
    c->failing = true;
    PyObject *result = again || c->gone ? NULL : handler_call(c, "_failed", "(O)", value);
    if (result == NULL && PyErr_Occurred())
        PyErr_WriteUnraisable((PyObject *)c);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(tb);
    if (result != NULL)
        settle(c, result);
    else
        handler_answer(c, "451 4.3.0 local error", NULL);
}

/* ---- Handlers that take time ---- */

PyObject *handler_done(SmtpConnectionObject *c, PyObject *task) {
    if (c->task != task)
        Py_RETURN_NONE;
    c->task = NULL;
    PyObject *result = PyObject_CallMethodNoArgs(task, state_of(c)->str_result);
    Py_DECREF(task);
    if (c->question != QUESTION_NONE)
        settle(c, result);
    else
        Py_XDECREF(result);
    PyErr_Clear();
    Py_RETURN_NONE;
}

static PyObject *task_new(SmtpConnectionObject *c, PyObject *awaitable) {
    PyObject *create = PyObject_GetAttrString(c->loop, "create_task");
    PyObject *names = create == NULL ? NULL : Py_BuildValue("(s)", "context");
    PyObject *args[] = {awaitable, c->context};
    bool keyword = c->context != NULL;
    PyObject *task = NULL;
    if (names != NULL)
        task = PyObject_Vectorcall(create, args, 1, keyword ? names : NULL);
    Py_XDECREF(names);
    Py_XDECREF(create);
    return task;
}

/* c->task is to tell when it is done. */
static int follow_task(SmtpConnectionObject *c, const module_state *state) {
    PyObject *done = PyObject_GetAttr((PyObject *)c, state->str__done);
    PyObject *result = done == NULL
                           ? NULL
                           : PyObject_CallMethodOneArg(c->task, state->str_add_done_callback, done);
    Py_XDECREF(done);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* Most have done all in their first step, and need no turn of the loop. */
static int start_task(SmtpConnectionObject *c, PyObject *awaitable) {
    const module_state *state = state_of(c);
    bool at_once = c->ours != NULL && !c->in_task && PyCoro_CheckExact(awaitable);
    PyObject *task =
        at_once ? loop_start_task(c->ours, awaitable, c->context) : task_new(c, awaitable);
    if (task == NULL)
        return -1;
    Py_XSETREF(c->task, task);
    PyObject *done =
        at_once ? PyObject_CallMethodNoArgs(task, state->str_done) : Py_NewRef(Py_False);
    Py_XDECREF(done);
    if (done != Py_True)
        return done == NULL ? -1 : follow_task(c, state);
    c->task = NULL;
    PyObject *result = PyObject_CallMethodNoArgs(task, state->str_result);
    Py_DECREF(task);
    int code = result == NULL ? -1 : answer_value(c, result);
    Py_XDECREF(result);
    return code;
}

static bool is_awaitable(PyObject *value) {
    if (PyCoro_CheckExact(value))
        return true;
    const PyTypeObject *type = Py_TYPE(value);
    return type->tp_as_async != NULL && type->tp_as_async->am_await != NULL;
}

/* What a handler gave, or an exception that is set: its answer, now or later. */
static void settle(SmtpConnectionObject *c, PyObject *result) {
    int code = -1;
    if (result != NULL && is_awaitable(result))
        code = start_task(c, result);
    else if (result != NULL)
        code = answer_value(c, result);
    Py_XDECREF(result);
    if (code < 0)
        fail(c);
}

/* ---- The core's hooks ---- */

/* Whoever has logged in by the file of users, of which the handler was not asked. */
static int take_login(const SmtpConnectionObject *c, SmtpSessionObject *session) {
    const char *name = c->core == NULL ? NULL : bk_smtp_login_name(c->core);
    if (name == NULL || session->authenticated != NULL)
        return 0;
    session->authenticated = Py_NewRef(Py_True);
    session->auth_data = text_of(name);
    session->login_data = Py_XNewRef(session->auth_data);
    return session->auth_data == NULL ? -1 : 0;
}

/* hook(server, session, envelope, …) */
static PyObject *call_hook(SmtpConnectionObject *c, int which, const bk_smtp_message *m,
                           PyObject *third, PyObject *fourth) {
    PyObject *session = handler_session(c), *envelope = handler_envelope(c, m);
    if (session == NULL || envelope == NULL)
        return NULL;
    if (c->rules->policy.users != NULL && take_login(c, (SmtpSessionObject *)session) < 0)
        return NULL;
    PyObject *args[] = {(PyObject *)c, Py_NewRef(session), Py_NewRef(envelope), third, fourth};
    size_t n = third == NULL ? 3 : 5;
    PyObject *result = call(c, c->rules->hooks[which], args, n);
    Py_DECREF(session);
    Py_DECREF(envelope);
    return result;
}

/* Whether the command has been given too often, which was answered then. */
static bool is_over(void *context, bk_smtp_session *s, const char *verb) {
    if (!(rules_of(context, s)->asks & ASKS_COUNT))
        return false;
    SmtpConnectionObject *c = connection_of(context, s);
    if (c == NULL)
        return true;
    PyObject *result = handler_call(c, "_count", "(s)", verb);
    if (result == Py_None) {
        Py_DECREF(result);
        return false;
    }
    c->question = QUESTION_OTHER;
    settle(c, result);
    return true;
}

/* The connection, whose handler is to be asked. NULL, answered for: about this it is not, or there
   is none. */
static SmtpConnectionObject *asked(void *context, bk_smtp_session *s, unsigned about) {
    if (!(rules_of(context, s)->asks & about)) {
        bk_smtp_answer(s, NULL);
        return NULL;
    }
    SmtpConnectionObject *c = connection_of(context, s);
    if (c != NULL)
        c->question = QUESTION_OTHER;
    return c;
}

static void hook_connect(void *context, bk_smtp_session *s) {
    SmtpConnectionObject *c = asked(context, s, ASKS_CONNECT);
    if (c != NULL)
        settle(c, handler_call(c, "_connect", "()"));
}

static void hook_helo(void *context, bk_smtp_session *s) {
    SmtpConnectionObject *c = bk_smtp_user(s);
    bool extended = bk_smtp_extended(s);
    if (is_over(context, s, extended ? "EHLO" : "HELO"))
        return;
    if (rules_of(context, s)->asks & ASKS_HELO) {
        if ((c = connection_of(context, s)) == NULL)
            return;
        Py_CLEAR(c->envelope);
        c->question = QUESTION_OTHER;
        settle(c, handler_call(c, "_helo", "(OO&s)", extended ? Py_True : Py_False, text_of,
                               bk_smtp_helo(s), bk_smtp_keywords(s)));
        return;
    }
    if (c != NULL) {
        Py_CLEAR(c->envelope);
        SmtpSessionObject *session = (SmtpSessionObject *)handler_session(c);
        PyObject *name = session == NULL ? NULL : text_of(bk_smtp_helo(s));
        if (name != NULL) {
            session->extended_smtp = (char)extended;
            Py_XSETREF(session->host_name, name);
        }
        PyErr_Clear();
    }
    bk_smtp_answer(s, NULL);
}

static void hook_auth(void *context, bk_smtp_session *s, const bk_smtp_login *login) {
    SmtpConnectionObject *c = connection_of(context, s);
    if (c == NULL)
        return;
    if (c->rules->policy.users != NULL) {
        smtp_policy_auth(&c->rules->policy, c->ours, s, login);
        return;
    }
    if (login->password == NULL) { /* SCRAM, of which a handler that wants passwords knows none */
        bk_smtp_answer_secret(s, NULL);
        return;
    }
    c->question = QUESTION_OTHER;
    settle(c, handler_call(c, "_auth", "(syyy)", login->mechanism, login->user, login->password,
                           login->authorize));
}

/* With a hook, whether the sender, or the recipient, is taken is for that to say in the envelope.
 */
static const char *envelope_lacks(const SmtpConnectionObject *c, bool recipient) {
    SmtpEnvelopeObject *e = (SmtpEnvelopeObject *)c->envelope;
    if (e == NULL)
        return NULL;
    if (c->rules->hooks[HOOK_MAIL] != NULL && (e->mail_from == NULL || e->mail_from == Py_None))
        return "503 5.5.1 Error: need MAIL command";
    if (recipient && c->rules->hooks[HOOK_RCPT] != NULL &&
        (e->rcpt_tos == NULL || PyObject_Size(e->rcpt_tos) <= 0))
        return "503 5.5.1 Error: need RCPT command";
    return NULL;
}

/* Whether the handler's hook for EHLO has not taken the client's name. */
static bool lacks_name(const SmtpConnectionObject *c) {
    const SmtpSessionObject *session = c == NULL ? NULL : (SmtpSessionObject *)c->session;
    return session != NULL && c->rules->asks & ASKS_HELO &&
           (session->host_name == NULL || PyObject_IsTrue(session->host_name) <= 0);
}

static void hook_mail(void *context, bk_smtp_session *s, const bk_smtp_message *m) {
    SmtpConnectionObject *c = bk_smtp_user(s);
    if (is_over(context, s, "MAIL"))
        return;
    if (lacks_name(c)) {
        bk_smtp_answer(s, "503 5.5.1 Error: send HELO first");
        return;
    }
    if (rules_of(context, s)->hooks[HOOK_MAIL] == NULL) {
        if (c != NULL)
            Py_CLEAR(c->envelope); /* made anew from m when it is needed */
        bk_smtp_answer(s, NULL);
        return;
    }
    if ((c = connection_of(context, s)) == NULL)
        return;
    Py_CLEAR(c->envelope);
    c->question = QUESTION_OTHER;
    SmtpEnvelopeObject *e = (SmtpEnvelopeObject *)handler_envelope(c, NULL);
    PyObject *address = sender_of(m), *options = NULL, *result = NULL;
    if (e != NULL && address != NULL && smtp_list(&options) != NULL &&
        options_add(&options, m->options) == 0) {
        e->smtp_utf8 = m->utf8 != 0;
        result = call_hook(c, HOOK_MAIL, NULL, address, options);
    }
    Py_XDECREF(address);
    Py_XDECREF(options);
    settle(c, result);
}

static void hook_rcpt(void *context, bk_smtp_session *s, const bk_smtp_message *m,
                      const bk_smtp_recipient *recipient) {
    SmtpConnectionObject *c = bk_smtp_user(s);
    const char *lacks = c == NULL ? NULL : envelope_lacks(c, false);
    if (is_over(context, s, "RCPT"))
        return;
    if (lacks == NULL)
        lacks = smtp_policy_refusal(&rules_of(context, s)->policy, s, recipient);
    if (lacks != NULL || rules_of(context, s)->hooks[HOOK_RCPT] == NULL) {
        if (lacks == NULL && c != NULL && c->envelope != NULL &&
            envelope_add((SmtpEnvelopeObject *)c->envelope, recipient) < 0) {
            PyErr_Clear();
            lacks = "452 4.3.1 insufficient system storage";
        }
        bk_smtp_answer(s, lacks);
        return;
    }
    if ((c = connection_of(context, s)) == NULL)
        return;
    c->question = QUESTION_OTHER;
    PyObject *address = text_of(recipient->address), *options = NULL, *result = NULL;
    if (address != NULL && smtp_list(&options) != NULL &&
        options_add(&options, recipient->options) == 0)
        result = call_hook(c, HOOK_RCPT, m, address, options);
    Py_XDECREF(address);
    Py_XDECREF(options);
    settle(c, result);
}

static void hook_data(void *context, bk_smtp_session *s, const bk_smtp_message *m) {
    const SmtpConnectionObject *c = bk_smtp_user(s);
    (void)m;
    if (!is_over(context, s, "DATA"))
        bk_smtp_answer(s, c == NULL ? NULL : envelope_lacks(c, true));
}

/* NULL with an exception; *ret_refusal: it cannot be decoded. */
static int take_content(const SmtpRulesObject *rules, SmtpEnvelopeObject *e,
                        const bk_smtp_message *m, const char **ret_refusal) {
    PyObject *bytes = PyBytes_FromStringAndSize(m->data, (Py_ssize_t)m->size);
    if (bytes == NULL)
        return -1;
    Py_XSETREF(e->original_content, bytes);
    if (!rules->decode_data) {
        Py_XSETREF(e->content, Py_NewRef(bytes));
        return 0;
    }
    PyObject *text = rules->utf8
                         ? PyUnicode_DecodeUTF8(m->data, (Py_ssize_t)m->size, "surrogateescape")
                         : PyUnicode_DecodeASCII(m->data, (Py_ssize_t)m->size, NULL);
    if (text == NULL && PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) {
        PyErr_Clear();
        *ret_refusal = "554 5.6.1 Error: strict ASCII mode";
        return 0;
    }
    Py_XSETREF(e->content, text);
    return text == NULL ? -1 : 0;
}

static void hook_message(void *context, bk_smtp_session *s, bk_smtp_message *m) {
    if (rules_of(context, s)->hooks[HOOK_DATA] == NULL) {
        bk_smtp_message_free(m);
        bk_smtp_answer(s, NULL);
        return;
    }
    SmtpConnectionObject *c = connection_of(context, s);
    if (c == NULL) {
        bk_smtp_message_free(m);
        return;
    }
    c->question = QUESTION_MESSAGE;
    const char *refusal = NULL;
    SmtpEnvelopeObject *e = (SmtpEnvelopeObject *)handler_envelope(c, m);
    int code = e == NULL ? -1 : take_content(c->rules, e, m, &refusal);
    PyObject *result = NULL;
    if (code == 0 && refusal == NULL)
        result = call_hook(c, HOOK_DATA, m, NULL, NULL);
    bk_smtp_message_free(m);
    if (refusal != NULL)
        handler_answer(c, refusal, NULL);
    else
        settle(c, result);
}

static void hook_vrfy(void *context, bk_smtp_session *s, const char *address) {
    if (is_over(context, s, "VRFY"))
        return;
    SmtpConnectionObject *c = asked(context, s, ASKS_VRFY);
    if (c != NULL)
        settle(c, handler_call(c, "_verify", "(O&)", text_of, address));
}

/* Verb "": a line that challenge_auth() waits for, in a task that answers when it is done. */
static void hook_command(void *context, bk_smtp_session *s, const char *verb, const char *arg) {
    if (verb[0] != '\0' && is_over(context, s, verb))
        return;
    SmtpConnectionObject *c = asked(context, s, ASKS_COMMAND);
    if (c == NULL)
        return;
    PyObject *result = handler_call(c, verb[0] == '\0' ? "_line" : "_command", "(O&O&)", text_of,
                                    verb, text_of, arg);
    if (verb[0] == '\0' && c->task != NULL && result != NULL)
        Py_DECREF(result);
    else
        settle(c, result);
}

static void hook_reset(void *context, bk_smtp_session *s) {
    SmtpConnectionObject *c = bk_smtp_user(s);
    (void)context;
    if (c != NULL)
        Py_CLEAR(c->envelope);
}

static void hook_disconnect(void *context, bk_smtp_session *s) {
    SmtpConnectionObject *c = bk_smtp_user(s);
    (void)context;
    if (c == NULL)
        return;
    bk_smtp_set_user(s, NULL);
    c->gone = true;
    if (c->question == QUESTION_NONE)
        c->core = NULL;
    if (c->task != NULL && !is_ending(c)) {
        PyObject *result = PyObject_CallMethod(c->task, "cancel", NULL);
        if (result == NULL)
            PyErr_WriteUnraisable(c->task);
        Py_XDECREF(result);
    }
    if (c->machine == NULL)
        Py_DECREF((PyObject *)c);
}

void handler_set_hooks(bk_smtp_config *config, bool auth) {
    config->auth = auth ? hook_auth : NULL;
    config->connect = hook_connect;
    config->helo = hook_helo;
    config->mail = hook_mail;
    config->rcpt = hook_rcpt;
    config->data = hook_data;
    config->message = hook_message;
    config->vrfy = hook_vrfy;
    config->command = hook_command;
    config->reset = hook_reset;
    config->disconnect = hook_disconnect;
}
