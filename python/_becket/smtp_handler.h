/*
 * smtp_handler.h: what a handler of mail in Python is to the extension. smtp_handler.c has the
 * types, smtp_hooks.c answers the core's questions by calling the handler.
 */
#ifndef BECKET_PY_SMTP_HANDLER_H
#define BECKET_PY_SMTP_HANDLER_H

#include "becket_py.h"

#include "core/protocol/smtp_session.h"
#include "smtp.h"

/* What is called on the way of every message; all else goes through methods of becket.smtp.SMTP. */
enum { HOOK_DATA, HOOK_MAIL, HOOK_RCPT, HOOKS };

/* Those methods, as far as there is anything for them to do. */
enum {
    ASKS_HELO = 1,
    ASKS_AUTH = 2,
    ASKS_VRFY = 4,
    ASKS_COMMAND = 8,
    ASKS_COUNT = 16,
    ASKS_CONNECT = 32,
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

/* ---- smtp_hooks.c ---- */

/* auth: AUTH is offered. */
void handler_set_hooks(bk_smtp_config *config, bool auth);
/* Call a method of becket.smtp.SMTP. */
PyObject *handler_call(SmtpConnectionObject *c, const char *name, const char *format, ...);
/* Borrowed. What was learnt before STARTTLS is forgotten (RFC 3207, 4.2). */
PyObject *handler_session(SmtpConnectionObject *c);
/* Borrowed. m: what has been accepted of it without a word to the handler; NULL: nothing. */
PyObject *handler_envelope(SmtpConnectionObject *c, const bk_smtp_message *m);
/* Give the asyncio transport what has gathered for it. */
void handler_flush(SmtpConnectionObject *c);
/* The session may go on at once, and ask again. */
void handler_answer(SmtpConnectionObject *c, const char *reply, const char *const *each);
/* A str or bytes; NULL with an exception: it is none. */
const char *handler_reply(PyObject *value);
/* A task has its answer; or the client is gone, and nobody waits. */
PyObject *handler_done(SmtpConnectionObject *c, PyObject *task);

#endif
