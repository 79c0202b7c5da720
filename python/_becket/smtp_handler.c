/*
 * smtp_handler.c: mail given to a handler in Python with aiosmtpd's interface. Commands, data and
 * replies are the core's; Python is called only for what the handler has a method for. Made by
 * python/becket/smtp/server.py.
 *
 * SmtpConnection is the base of becket.smtp.SMTP: one for each client, and what handlers get as
 * `server`. It is either made for a session of an SmtpServer, which a listener serves, when
 * something first has to be told (a copy of the server's pattern); or it is an asyncio.Protocol,
 * and runs a session of its own on whatever transport it is given.
 */
#include "becket_py.h"

#include "core/protocol/smtp_session.h"
#include "smtp.h"

#include <structmember.h>

/* What is called on the way of every message; all else goes through methods of becket.smtp.SMTP. */
enum { HOOK_DATA, HOOK_MAIL, HOOK_RCPT, HOOKS };

/* Those methods, as far as there is anything for them to do. */
enum {
    ASKS_HELO = 1,
    ASKS_AUTH = 2,
    ASKS_VRFY = 4,
    ASKS_COMMAND = 8,
    ASKS_COUNT = 16,
};

typedef enum smtp_question {
    QUESTION_NONE,
    QUESTION_MESSAGE,
    QUESTION_OTHER,
} smtp_question;

/* What a handler wants, and the settings: found out once. */
typedef struct SmtpRulesObject {
    PyObject_HEAD PyObject *settings; /* has the texts of config */
    PyObject *hooks[HOOKS];           /* bound methods; NULL: it has none */
    bk_smtp_config config;
    smtp_policy policy;
    unsigned asks;
    int decode_data, utf8;
    const module_state *state;
} SmtpRulesObject;

typedef struct SmtpServerObject {
    SERVED_HEAD;
    PyObject *pattern; /* an SmtpConnection */
    PyObject *context;
} SmtpServerObject;

typedef struct SmtpConnectionObject {
    PyObject_HEAD PyObject *dict, *weakrefs;
    SmtpRulesObject *rules;
    PyObject *loop, *context; /* context NULL: the one we are in */
    PyObject *session, *envelope;
    PyObject *task;         /* will give the answer */
    LoopObject *ours;       /* the loop, if it is one of ours: borrowed */
    bk_smtp_session *core;  /* NULL: not any more */
    bk_machine *machine;    /* on the asyncio transport; NULL: the core has it on a stream */
    PyObject *transport;    /* of asyncio */
    bk_buffer out;          /* for it */
    smtp_question question; /* that the handler owes an answer to */
    bool failing;           /* … and it was to describe its exception */
    bool gone, secure, calling, gathering;
    bool in_task;   /* within a task's call: no other may be stepped */
    unsigned moved; /* goes on with every byte, for the time-out */
} SmtpConnectionObject;

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

/* A method of becket.smtp.SMTP. */
static PyObject *call_own(SmtpConnectionObject *c, const char *name, const char *format, ...) {
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
        call_own(c, "_proxy", "(ONN)", session->peer, address_to_python(&local, local_size),
                 address_to_python(&proxy, size));
    return session->proxy_data == NULL ? -1 : 0;
}

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
        session->ssl = call_own(c, "_tls_info", "()");
    else if (c->secure && stream != NULL)
        session->ssl = stream_tls(stream);
    if (c->secure && session->ssl == NULL && PyErr_Occurred())
        return -1;
    /* Where the handler has a hook for EHLO, it is for that to say. */
    if (name[0] != '\0' && !(c->rules->asks & ASKS_HELO))
        session->host_name = text_of(name);
    return PyErr_Occurred() ? -1 : 0;
}

/* Borrowed. What was learnt before STARTTLS is forgotten (RFC 3207, 4.2). */
static PyObject *session_of(SmtpConnectionObject *c) {
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

/* Borrowed. m: what has been accepted of it without a word to the handler; NULL: nothing. */
static PyObject *envelope_of(SmtpConnectionObject *c, const bk_smtp_message *m) {
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

static void flush(SmtpConnectionObject *c) {
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

/* The session may go on at once, and ask again. */
static void answer(SmtpConnectionObject *c, const char *reply, const char *const *each) {
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
    flush(c);
    Py_DECREF((PyObject *)c);
}

/* A str or bytes; NULL with an exception: it is none. */
static const char *reply_of(PyObject *value) {
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
        if (item != Py_None && (replies[i] = reply_of(item)) == NULL)
            code = -1;
    }
    if (code == 0)
        answer(c, NULL, replies);
    PyMem_Free((void *)replies);
    Py_XDECREF(list);
    return code;
}

/* What a handler gave, which is no awaitable. */
static int answer_value(SmtpConnectionObject *c, PyObject *value) {
    if (value == Py_None) {
        answer(c, c->failing ? "451 4.3.0 local error" : NULL, NULL);
        return 0;
    }
    if (c->question == QUESTION_MESSAGE && c->envelope != NULL &&
        (PyList_Check(value) || PyTuple_Check(value) || PyDict_Check(value)))
        return answer_each(c, value);
    const char *reply = reply_of(value);
    if (reply == NULL)
        return -1;
    answer(c, reply, NULL);
    return 0;
}

/* An exception is set. The handler may describe it; one that cannot even do that is reported. */
static void fail(SmtpConnectionObject *c) {
    if (c->ours != NULL && loop_take_fatal(c->ours)) {
        answer(c, "421 4.3.0 local error", NULL);
        return;
    }
    PyObject *type, *value, *tb;
    PyErr_Fetch(&type, &value, &tb);
    PyErr_NormalizeException(&type, &value, &tb);
    if (tb != NULL)
        PyException_SetTraceback(value, tb);
    bool again = c->failing;
    c->failing = true;
    PyObject *result = again || c->gone ? NULL : call_own(c, "_failed", "(O)", value);
    if (result == NULL && PyErr_Occurred())
        PyErr_WriteUnraisable((PyObject *)c);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(tb);
    if (result != NULL)
        settle(c, result);
    else
        answer(c, "451 4.3.0 local error", NULL);
}

/* ---- Handlers that take time ---- */

/* The answer is there; or the client is gone, and nobody waits. */
static PyObject *connection_done(SmtpConnectionObject *c, PyObject *task) {
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
    PyObject *session = session_of(c), *envelope = envelope_of(c, m);
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
    PyObject *result = call_own(c, "_count", "(s)", verb);
    if (result == Py_None) {
        Py_DECREF(result);
        return false;
    }
    c->question = QUESTION_OTHER;
    settle(c, result);
    return true;
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
        settle(c, call_own(c, "_helo", "(OO&s)", extended ? Py_True : Py_False, text_of,
                           bk_smtp_helo(s), bk_smtp_keywords(s)));
        return;
    }
    if (c != NULL) {
        Py_CLEAR(c->envelope);
        SmtpSessionObject *session = (SmtpSessionObject *)session_of(c);
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
    settle(c, call_own(c, "_auth", "(syyy)", login->mechanism, login->user, login->password,
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
    SmtpEnvelopeObject *e = (SmtpEnvelopeObject *)envelope_of(c, NULL);
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
    SmtpEnvelopeObject *e = (SmtpEnvelopeObject *)envelope_of(c, m);
    int code = e == NULL ? -1 : take_content(c->rules, e, m, &refusal);
    PyObject *result = NULL;
    if (code == 0 && refusal == NULL)
        result = call_hook(c, HOOK_DATA, m, NULL, NULL);
    bk_smtp_message_free(m);
    if (refusal != NULL)
        answer(c, refusal, NULL);
    else
        settle(c, result);
}

static void hook_vrfy(void *context, bk_smtp_session *s, const char *address) {
    if (is_over(context, s, "VRFY"))
        return;
    if (!(rules_of(context, s)->asks & ASKS_VRFY)) {
        bk_smtp_answer(s, NULL);
        return;
    }
    SmtpConnectionObject *c = connection_of(context, s);
    if (c == NULL)
        return;
    c->question = QUESTION_OTHER;
    settle(c, call_own(c, "_verify", "(O&)", text_of, address));
}

/* Verb "": a line that challenge_auth() waits for, in a task that answers when it is done. */
static void hook_command(void *context, bk_smtp_session *s, const char *verb, const char *arg) {
    if (verb[0] != '\0' && is_over(context, s, verb))
        return;
    SmtpConnectionObject *c = bk_smtp_user(s);
    if (!(rules_of(context, s)->asks & ASKS_COMMAND)) {
        bk_smtp_answer(s, NULL);
        return;
    }
    if ((c = connection_of(context, s)) == NULL)
        return;
    c->question = QUESTION_OTHER;
    PyObject *result =
        call_own(c, verb[0] == '\0' ? "_line" : "_command", "(O&O&)", text_of, verb, text_of, arg);
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

static void set_hooks(bk_smtp_config *config) {
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
    set_hooks(&self->config);
    if (asks & ASKS_AUTH)
        self->config.auth = hook_auth;
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
        flush(c);
    return code;
}

static void machine_close(bk_machine *m, int why) {
    SmtpConnectionObject *c = m->runner_state;
    bool gathering = c->gathering;
    c->gathering = false;
    if (why == 0)
        flush(c);
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
    PyObject *result = call_own(c, "_set_timeout", "(I)", seconds);
    if (result == NULL)
        PyErr_WriteUnraisable((PyObject *)c);
    Py_XDECREF(result);
}

/* 1: under TLS, 0: it is offered; else negative. */
static int machine_secure(bk_machine *m) {
    SmtpConnectionObject *c = m->runner_state;
    PyObject *result = call_own(c, "_is_secure", "()");
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
    flush(c);
    c->gathering = gathering;
    PyObject *result = call_own(c, "_start_tls", "()");
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
    flush(c);
    Py_DECREF((PyObject *)c);
    Py_RETURN_NONE;
}

/* Last words; whoever calls closes. */
static PyObject *connection_time_out(SmtpConnectionObject *c, PyObject *Py_UNUSED(ignored)) {
    if (c->machine == NULL || c->gone)
        Py_RETURN_NONE;
    bk_machine_time_out(c->machine);
    flush(c);
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
    const char *text = reply_of(status);
    if (text == NULL)
        return NULL;
    if (c->core != NULL && !c->gone) {
        bk_machine *m = bk_smtp_machine(c->core);
        (void)bk_machine_send(m, text, strlen(text), BK_COPY, NULL);
        (void)bk_machine_send(m, "\r\n", 2, BK_COPY, NULL);
    }
    return Py_NewRef(state_of(c)->done);
}

/* _answer(reply): to what is asked, while a task goes on. */
static PyObject *connection_answer(SmtpConnectionObject *c, PyObject *reply) {
    const char *text = reply_of(reply);
    if (text == NULL)
        return NULL;
    bool before = c->in_task;
    c->in_task = true;
    if (c->question != QUESTION_NONE)
        answer(c, text, NULL);
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
    return Py_XNewRef(session_of(c));
}

static PyObject *get_envelope(SmtpConnectionObject *c, void *Py_UNUSED(closure)) {
    if (c->core == NULL && c->envelope == NULL)
        Py_RETURN_NONE;
    return Py_XNewRef(envelope_of(c, NULL));
}

static int set_envelope(SmtpConnectionObject *c, PyObject *value, void *Py_UNUSED(closure)) {
    if (value != NULL && !PyObject_TypeCheck(value, state_of(c)->smtp_envelope_type)) {
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
    {"_done", (PyCFunction)connection_done, METH_O, NULL},
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
