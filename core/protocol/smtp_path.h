/*
 * smtp_path.h: the grammar of SMTP's arguments, for the server and the client. Texts are not ended
 * by NUL; nothing is allocated, and no byte is looked at more than a few times.
 */
#ifndef BK_SMTP_PATH_H
#define BK_SMTP_PATH_H

#include "core/os/os.h"
#include "core/protocol/limits.h"

typedef enum bk_smtp_fault {
    BK_SMTP_FINE,
    BK_SMTP_SYNTAX,
    BK_SMTP_TOO_LONG,
} bk_smtp_fault;

typedef struct bk_smtp_path {
    const char *mailbox; /* in the text: without < > and without a source route */
    size_t size;         /* 0: <> */
    size_t used;         /* of the text, with the brackets */
    bool has_domain;
    bool utf8; /* it is beyond ASCII: only with SMTPUTF8 (RFC 6531) */
} bk_smtp_path;

/* "<" [source route] [local-part ["@" domain]] ">" at the start of text (RFC 5321, 4.1.2). */
bk_smtp_fault bk_smtp_path_parse(const char *text, size_t n, bk_smtp_path *ret_path);

/* A domain, or an address in brackets: what HELO and EHLO bring. The first also with "_", which
   real hosts have in their names. */
bool bk_smtp_host_valid(const char *text, size_t n);

/* One ESMTP parameter, KEYWORD[=value], at the start of text. */
typedef struct bk_smtp_param {
    const char *key, *value; /* value NULL: there is no "=" */
    size_t key_size, value_size, used;
    bool utf8; /* value is beyond ASCII */
} bk_smtp_param;
bool bk_smtp_param_parse(const char *text, size_t n, bk_smtp_param *ret_param);

/* Decodes xtext (RFC 3461, 4) into ret_text, where there is room for n + 1. False: it is none, or
   has characters that are not to be printed. */
bool bk_smtp_xtext_decode(const char *text, size_t n, char *ret_text);

bool bk_utf8_valid(const char *text, size_t n);

/* Whether text is `word`, in letters of either case; word is in capitals. */
bool bk_smtp_is(const char *text, size_t n, const char *word);

#endif
