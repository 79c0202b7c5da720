/*
 * sasl.h: the server's side of SASL (RFC 4422): PLAIN (RFC 4616), LOGIN, SCRAM-SHA-256. It knows
 * neither how messages are written down nor who the users are; for smtp_auth.c.
 */
#ifndef BK_SASL_H
#define BK_SASL_H

#include "core/protocol/scram.h"

enum { BK_SASL_MESSAGE_MAX = BK_SCRAM_MESSAGE_MAX };

typedef enum bk_sasl_result {
    BK_SASL_CONTINUE, /* challenge is to be sent */
    BK_SASL_ASK,      /* login is to be decided on */
    BK_SASL_DONE,     /* it is him */
    BK_SASL_BROKEN,   /* not a message of this mechanism */
    BK_SASL_DENIED,   /* … and it is wrong */
    BK_SASL_FAILED,   /* we cannot tell now */
} bk_sasl_result;

typedef struct bk_sasl {
    bk_os *os;
    const struct bk_sasl_mechanism *mechanism;
    unsigned step;
    bk_smtp_login login; /* its texts are the three below */
    char user[BK_SASL_MESSAGE_MAX], authorize[BK_SASL_MESSAGE_MAX], password[BK_SASL_MESSAGE_MAX];
    const char *challenge;
    size_t challenge_size;
    char last[64];
    bk_scram scram;
} bk_sasl;

#define BK_SASL_MECHANISMS "SCRAM-SHA-256 PLAIN LOGIN"

/* false: there is no such mechanism. */
bool bk_sasl_begin(bk_sasl *s, bk_os *os, const char *mechanism, size_t n);
/* The next message of the client; NULL: it has sent none with its request, and is to be asked. */
bk_sasl_result bk_sasl_take(bk_sasl *s, const char *message, size_t n);
/* After ASK, with SCRAM: what is kept of the password; NULL: there is no such user. */
bk_sasl_result bk_sasl_secret(bk_sasl *s, const bk_secret *secret,
                              const unsigned char decoy[BK_SHA256_SIZE]);
/* Nothing of a password stays in memory. */
void bk_sasl_clear(bk_sasl *s);

#endif
