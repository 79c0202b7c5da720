/*
 * smtp_message.h: making an SMTP message, for smtp.c and for tests. Taking one over is told in
 * becket-protocols.h.
 */
#ifndef BK_SMTP_MESSAGE_H
#define BK_SMTP_MESSAGE_H

#include <becket-protocols.h>

#include "core/os/os.h"

/* A copy, ended by NUL, of n bytes; NULL when there is no memory. */
char *bk_smtp_text_new(bk_os *os, const char *text, size_t n);

int bk_smtp_message_new(bk_os *os, const char *sender, size_t n, bk_smtp_message **ret_message);
/* Make sure that recipients[recipient_count] is there. */
int bk_smtp_message_reserve(bk_smtp_message *message);
int bk_smtp_message_add(bk_smtp_message *message, const char *data, size_t n);
void bk_smtp_message_drop_data(bk_smtp_message *message);
/* The Received: header (RFC 5321, 4.4), the first of the data; protocol: what it came with. */
int bk_smtp_message_trace(bk_smtp_message *message, const char *helo, const char *peer,
                          const char *hostname, const char *protocol);

#endif
