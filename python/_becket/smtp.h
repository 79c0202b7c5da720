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

/* smtp_types.c */
PyObject *smtp_list(PyObject **place); /* borrowed */
int smtp_settings(PyObject *dict, bk_smtp_config *config);

#endif
