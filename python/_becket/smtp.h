/*
 * smtp.h: what the files for mail share: smtp.c stores it without Python, smtp_handler.c gives it
 * to a handler in Python, smtp_types.c has what that handler is given.
 */
#ifndef BECKET_PY_SMTP_H
#define BECKET_PY_SMTP_H

#include <becket-smtp.h>

typedef struct SmtpSessionObject {
    PyObject_HEAD PyObject *dict, *weakrefs;
    PyObject *peer, *ssl, *host_name, *loop, *proxy_data, *auth_data, *login_data, *authenticated;
    char extended_smtp;
} SmtpSessionObject;

typedef struct SmtpEnvelopeObject {
    PyObject_HEAD PyObject *dict, *weakrefs;
    PyObject *mail_from, *content, *original_content;
    PyObject *mail_options, *rcpt_tos, *rcpt_options; /* lists; NULL: empty */
    char smtp_utf8;
} SmtpEnvelopeObject;

/* A file of users, for servers of any loops. */
typedef struct SmtpUsersObject {
    PyObject_HEAD bk_users *users;
} SmtpUsersObject;

/* Who may log in, and whose mail is taken: as becket.smtp.Server and `becket serve smtp` are told.
   None, or NULL: nobody, and all. */
typedef struct smtp_policy {
    PyObject *users;  /* SmtpUsers */
    PyObject *accept; /* a tuple of domains, str */
} smtp_policy;

/* smtp_types.c */
/* TypeError. The policy has references then. */
int smtp_policy_set(module_state *state, smtp_policy *policy, PyObject *users, PyObject *accept);
void smtp_policy_clear(smtp_policy *policy);
void smtp_policy_auth(const smtp_policy *policy, LoopObject *loop, bk_smtp_session *s,
                      const bk_smtp_login *login);
/* The refusal of a recipient; NULL: there is none. Who has logged in may send to all. */
const char *smtp_policy_refusal(const smtp_policy *policy, const bk_smtp_session *s,
                                const bk_smtp_recipient *recipient);
PyObject *smtp_make_secret(PyObject *module, PyObject *password);
PyObject *smtp_verify_secret(PyObject *module, PyObject *args);
PyObject *smtp_list(PyObject **place); /* borrowed */
int smtp_settings(PyObject *dict, bk_smtp_config *config);

#endif
