/*
 * scram.h: SCRAM-SHA-256 (RFC 5802, RFC 7677): the keys, and the server's side of the exchange. For
 * sasl.c, for the client, and for what is kept of passwords (core/store).
 */
#ifndef BK_SCRAM_H
#define BK_SCRAM_H

#include <becket-smtp.h>

#include "core/protocol/sha256.h"

enum {
    BK_SCRAM_SALT = 16,
    BK_SCRAM_MESSAGE_MAX = 1024, /* names are short, nonces shorter */
};

/* ClientKey and ServerKey of a salted password (RFC 5802, 3). */
void bk_scram_client_key(const unsigned char salted[BK_SHA256_SIZE],
                         unsigned char ret_key[BK_SHA256_SIZE]);
void bk_scram_server_key(const unsigned char salted[BK_SHA256_SIZE],
                         unsigned char ret_key[BK_SHA256_SIZE]);
/* What is kept of a password; secret has its iterations and its salt. Takes time. */
void bk_scram_derive(const char *password, bk_secret *secret);

/* ---- The server's side ---- */

typedef struct bk_scram {
    bool known; /* there is such a user */
    bk_secret secret;
    size_t header_size, bare_size, challenge_size;
    char header[BK_SCRAM_MESSAGE_MAX];        /* "n,," */
    char bare[BK_SCRAM_MESSAGE_MAX];          /* "n=user,r=nonce" */
    char challenge[2 * BK_SCRAM_MESSAGE_MAX]; /* "r=nonce…,s=salt,i=iterations" */
    const char *nonce;                        /* the client's, at the end of bare */
} bk_scram;

/* client-first: who it is, and as whom; both end with NUL, with room for the message. 0; -EINVAL.
 */
int bk_scram_begin(bk_scram *s, const char *message, size_t n, char *ret_user, char *ret_authorize);
/* server-first, in s->challenge. secret NULL: no such user: a decoy is made of the key. */
int bk_scram_challenge(bk_scram *s, bk_os *os, const bk_secret *secret, const char *user,
                       const unsigned char decoy[BK_SHA256_SIZE]);
/* client-final. 0: it is him, and ret_text is server-final; -EINVAL; -EACCES. */
int bk_scram_finish(bk_scram *s, const char *message, size_t n, char ret_text[64]);

#endif
