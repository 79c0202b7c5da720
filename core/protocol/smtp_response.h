/*
 * smtp_response.h: replies as they arrive (RFC 5321, 4.2), for smtp_client.c.
 */
#ifndef BK_SMTP_RESPONSE_H
#define BK_SMTP_RESPONSE_H

#include "core/protocol/buffer.h"

/* Zeroed before the first. */
typedef struct bk_smtp_response {
    bk_buffer line; /* what has come of one */
    bk_buffer text; /* "250 one\ntwo", ended by NUL when it is complete */
    unsigned lines;
    bool complete;
} bk_smtp_response;

/* Takes up to the end of a reply, or all there is. 1: it is complete, and is there until the next
   call; 0: there is more to come; -EPROTO: this is no reply, or too much of one; -ENOMEM. */
int bk_smtp_response_take(bk_os *os, bk_smtp_response *r, const char *data, size_t n,
                          size_t *ret_used);
void bk_smtp_response_clear(bk_os *os, bk_smtp_response *r);

#endif
