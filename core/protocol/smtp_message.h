/*
 * smtp_message.h: making an SMTP message, for the server, the client and tests, beside what
 * becket-smtp.h has for programs.
 */
#ifndef BK_SMTP_MESSAGE_H
#define BK_SMTP_MESSAGE_H

#include <becket-smtp.h>

#include "core/os/os.h"

/* A copy, ended by NUL, of n bytes; NULL when there is no memory. */
char *bk_smtp_text_new(bk_os *os, const char *text, size_t n);

/* A message from an address that has been checked. */
int bk_smtp_message_from(bk_os *os, const char *sender, size_t n, bk_smtp_message **ret_message);
/* The place after the last recipient, filled with an address that has been checked, and the text of
   its parameters. It counts when recipient_count does; until then it is the caller's to clear. */
int bk_smtp_recipient_place(bk_smtp_message *message, const char *address, size_t n,
                            const char *options, size_t options_size,
                            bk_smtp_recipient **ret_recipient);
void bk_smtp_recipient_clear(bk_os *os, bk_smtp_recipient *recipient);
/* All data behind the trace header; and the header, too. */
void bk_smtp_message_drop_data(bk_smtp_message *message);

/* The Received: header (RFC 5321, 4.4), the first of the data; protocol: what it came with. */
int bk_smtp_message_trace(bk_smtp_message *message, const char *helo, const char *peer,
                          const char *hostname, const char *protocol);

#endif
