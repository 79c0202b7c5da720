/*
 * smtp.h: the SMTP protocol for those in the core who put something behind it (core/store).
 */
#ifndef BK_SMTP_H
#define BK_SMTP_H

#include <becket-smtp.h>

/* bk_smtp_protocol_new(); and release(config->context), when neither the protocol nor one of its
   connections is there any more. When this fails, it is not called. */
int bk_smtp_protocol_over(const bk_smtp_config *config, bk_os *os, bk_release release,
                          bk_protocol **ret_protocol);

#endif
