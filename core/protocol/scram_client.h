/*
 * scram_client.h: the client's side of SCRAM-SHA-256 (RFC 5802, RFC 7677), for smtp_login.c.
 */
#ifndef BK_SCRAM_CLIENT_H
#define BK_SCRAM_CLIENT_H

#include "core/protocol/buffer.h"
#include "core/protocol/sha256.h"

enum { BK_SCRAM_NONCE = 24 }; /* characters: 18 bytes of chance */

/* One exchange; zeroed before. */
typedef struct bk_scram_client {
    bk_buffer bare; /* our first message without its header */
    char nonce[BK_SCRAM_NONCE + 1];
    unsigned char server_signature[BK_SHA256_SIZE]; /* the one that a server who knows gives */
} bk_scram_client;

/* The messages that we send; they are added to ret_message. -ENOMEM; -EIO: there is no chance. */
int bk_scram_client_first(bk_os *os, bk_scram_client *s, const char *user, bk_buffer *ret_message);
/* -EPROTO: what the server said is no answer to ours, or asks for too much. Takes time. */
int bk_scram_client_final(bk_os *os, bk_scram_client *s, const char *password, const char *server,
                          size_t n, bk_buffer *ret_message);
/* Whether it is the server that knows the password. */
bool bk_scram_client_verify(const bk_scram_client *s, const char *server, size_t n);
void bk_scram_client_clear(bk_os *os, bk_scram_client *s);

#endif
