/*
 * scram.c: SCRAM-SHA-256, as told in scram.h. There is no channel binding (SCRAM-SHA-256-PLUS).
 */
#include "core/protocol/scram.h"

#include "core/os/os.h"
#include "core/protocol/base64.h"
#include "core/protocol/limits.h"

#include <stdio.h>

enum { NONCE_BYTES = 18 };

void bk_scram_client_key(const unsigned char salted[BK_SHA256_SIZE],
                         unsigned char ret_key[BK_SHA256_SIZE]) {
    bk_hmac_sha256(salted, BK_SHA256_SIZE, "Client Key", 10, ret_key);
}

void bk_scram_server_key(const unsigned char salted[BK_SHA256_SIZE],
                         unsigned char ret_key[BK_SHA256_SIZE]) {
    bk_hmac_sha256(salted, BK_SHA256_SIZE, "Server Key", 10, ret_key);
}

void bk_scram_derive(const char *password, bk_secret *secret) {
    unsigned char salted[BK_SHA256_SIZE], client[BK_SHA256_SIZE];
    bk_pbkdf2_sha256(password, strlen(password), secret->salt, secret->salt_size,
                     secret->iterations, salted);
    bk_scram_client_key(salted, client);
    bk_sha256_of(client, sizeof client, secret->stored_key);
    bk_scram_server_key(salted, secret->server_key);
    bk_wipe(salted, sizeof salted);
    bk_wipe(client, sizeof client);
}

/* ---- client-first ---- */

/* A name up to the comma, "=2C" and "=3D" decoded. Returns what follows the comma; NULL: it is
   none. */
static const char *name_decode(const char *at, const char *end, char *ret_name) {
    for (; at < end && *at != ','; at++) {
        char c = *at;
        if (c == '=') {
            if (end - at < 3 || at[1] != (at[2] == 'C' ? '2' : '3') ||
                (at[2] != 'C' && at[2] != 'D'))
                return NULL;
            c = at[2] == 'C' ? ',' : '=';
            at += 2;
        }
        if (c == '\0')
            return NULL;
        *ret_name++ = c;
    }
    *ret_name = '\0';
    return at < end ? at + 1 : NULL;
}

/* "n,," or "y,a=name,": returns what follows it. */
static const char *header_parse(const char *at, const char *end, char *ret_authorize) {
    *ret_authorize = '\0';
    if (end - at < 3 || (at[0] != 'n' && at[0] != 'y') || at[1] != ',')
        return NULL;
    at += 2;
    if (*at == ',')
        return at + 1;
    return end - at > 2 && at[0] == 'a' && at[1] == '=' ? name_decode(at + 2, end, ret_authorize)
                                                        : NULL;
}

static bool nonce_valid(const char *at, const char *end) {
    for (const char *c = at; c < end; c++)
        if (*c < 33 || *c > 126 || *c == ',')
            return false;
    return at < end;
}

int bk_scram_begin(bk_scram *s, const char *message, size_t n, char *ret_user,
                   char *ret_authorize) {
    const char *end = message + n, *bare, *at;
    if (n >= BK_SCRAM_MESSAGE_MAX || (bare = header_parse(message, end, ret_authorize)) == NULL ||
        end - bare < 2 || bare[0] != 'n' || bare[1] != '=' ||
        (at = name_decode(bare + 2, end, ret_user)) == NULL || *ret_user == '\0' || end - at < 2 ||
        at[0] != 'r' || at[1] != '=')
        return -EINVAL;
    const char *comma = memchr(at, ',', (size_t)(end - at)); /* extensions, all of them optional */
    if (!nonce_valid(at + 2, comma != NULL ? comma : end) || memchr(at, '\0', (size_t)(end - at)))
        return -EINVAL;
    s->header_size = (size_t)(bare - message);
    s->bare_size = (size_t)(end - bare);
    memcpy(s->header, message, s->header_size);
    memcpy(s->bare, bare, s->bare_size);
    s->bare[s->bare_size] = '\0';
    s->nonce = s->bare + (at + 2 - bare);
    return 0;
}

/* ---- server-first ---- */

/* For whoever is not there: always the same, and as bk_secret_make() makes them. */
static void decoy_make(bk_scram *s, const char *user, const unsigned char decoy[BK_SHA256_SIZE]) {
    unsigned char salt[BK_SHA256_SIZE];
    bk_hmac_sha256(decoy, BK_SHA256_SIZE, user, strlen(user), salt);
    s->secret = (bk_secret){.iterations = BK_SECRET_ITERATIONS, .salt_size = BK_SCRAM_SALT};
    memcpy(s->secret.salt, salt, BK_SCRAM_SALT);
}

int bk_scram_challenge(bk_scram *s, bk_os *os, const bk_secret *secret, const char *user,
                       const unsigned char decoy[BK_SHA256_SIZE]) {
    unsigned char chance[NONCE_BYTES];
    char nonce[BK_BASE64_ROOM(NONCE_BYTES)], salt[BK_BASE64_ROOM(sizeof s->secret.salt)];
    int r = os->random(os, chance, sizeof chance);
    if (r < 0)
        return r;
    s->known = secret != NULL;
    if (s->known)
        s->secret = *secret;
    else
        decoy_make(s, user, decoy);
    bk_base64_encode(chance, sizeof chance, nonce);
    bk_base64_encode(s->secret.salt, s->secret.salt_size, salt);
    int n = snprintf(s->challenge, sizeof s->challenge, "r=%.*s%s,s=%s,i=%u",
                     (int)strcspn(s->nonce, ","), s->nonce, nonce, salt, s->secret.iterations);
    s->challenge_size = (size_t)n;
    return 0;
}

/* ---- client-final ---- */

/* "c=…,r=…": the header, and both nonces, as they were; returns where ",p=" is. */
static const char *final_parse(const bk_scram *s, const char *at, const char *end) {
    char header[BK_BASE64_ROOM(BK_SCRAM_MESSAGE_MAX)];
    size_t n = bk_base64_encode(s->header, s->header_size, header);
    size_t nonce = strcspn(s->challenge, ","); /* with its "r=" */
    if ((size_t)(end - at) < 2 + n + 1 + nonce + 3 || memcmp(at, "c=", 2) != 0 ||
        memcmp(at + 2, header, n) != 0 || at[2 + n] != ',' ||
        memcmp(at + 3 + n, s->challenge, nonce) != 0 || at[3 + n + nonce] != ',')
        return NULL;
    at += 3 + n + nonce;
    while (end - at > 3 && memcmp(at, ",p=", 3) != 0) { /* extensions again */
        const char *comma = memchr(at + 1, ',', (size_t)(end - at - 1));
        at = comma != NULL ? comma : end;
    }
    return end - at > 3 ? at : NULL;
}

/* Whether H(proof XOR HMAC(StoredKey, AuthMessage)) is StoredKey. */
static bool proof_valid(const bk_scram *s, const char *auth, size_t n,
                        const unsigned char proof[BK_SHA256_SIZE]) {
    unsigned char key[BK_SHA256_SIZE];
    bk_hmac_sha256(s->secret.stored_key, BK_SHA256_SIZE, auth, n, key);
    for (int i = 0; i < BK_SHA256_SIZE; i++)
        key[i] ^= proof[i];
    bk_sha256_of(key, sizeof key, key);
    return bk_same_secret(key, s->secret.stored_key, sizeof key) && s->known;
}

int bk_scram_finish(bk_scram *s, const char *message, size_t n, char ret_text[64]) {
    char auth[4 * BK_SCRAM_MESSAGE_MAX + 3];
    unsigned char proof[BK_SHA256_SIZE + 1], signature[BK_SHA256_SIZE];
    const char *end = message + n, *mark = NULL;
    if (n < BK_SCRAM_MESSAGE_MAX)
        mark = final_parse(s, message, end);
    if (mark == NULL || end - mark - 3 != BK_BASE64_ROOM(BK_SHA256_SIZE) - 1 ||
        bk_base64_decode(mark + 3, (size_t)(end - mark - 3), proof) != BK_SHA256_SIZE)
        return -EINVAL;
    int size = snprintf(auth, sizeof auth, "%s,%s,%.*s", s->bare, s->challenge,
                        (int)(mark - message), message);
    if (!proof_valid(s, auth, (size_t)size, proof))
        return -EACCES;
    bk_hmac_sha256(s->secret.server_key, BK_SHA256_SIZE, auth, (size_t)size, signature);
    memcpy(ret_text, "v=", 2);
    bk_base64_encode(signature, sizeof signature, ret_text + 2);
    return 0;
}
