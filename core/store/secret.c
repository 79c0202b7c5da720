/*
 * secret.c: what is kept of a password, as text and to check with: SCRAM-SHA-256 (RFC 5803), as
 * PostgreSQL and Dovecot write it. From it a password can be checked however it comes, in clear or
 * by SCRAM, and it serves nobody who has stolen it for more than guessing. Called by users.c and by
 * programs.
 *
 * A password is taken as the bytes it is. SASLprep (RFC 4013) leaves ASCII as it is; what is beyond
 * ASCII is not normalised: it must be typed the way it was typed when the secret was made.
 */
#include <becket-smtp.h>

#include "core/os/os.h"
#include "core/protocol/base64.h"
#include "core/protocol/limits.h"
#include "core/protocol/scram.h"

#include <stdio.h>

static const char prefix[] = "SCRAM-SHA-256$";

enum { KEY_TEXT = BK_BASE64_ROOM(BK_SHA256_SIZE) };

/* SASLprep prohibits control characters; an empty password is none. */
static bool password_valid(const char *password) {
    size_t n = strlen(password);
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)password[i] < ' ' || password[i] == 0x7f)
            return false;
    return n > 0 && n <= BK_SECRET_PASSWORD_MAX;
}

int bk_secret_make(bk_os *os, const char *password, unsigned iterations, bk_secret *ret_secret) {
    if (iterations == 0)
        iterations = BK_SECRET_ITERATIONS;
    if (os == NULL || password == NULL || ret_secret == NULL || !password_valid(password) ||
        iterations < BK_SECRET_ITERATIONS_MIN || iterations > BK_SECRET_ITERATIONS_MAX)
        return -EINVAL;
    bk_secret secret = {.iterations = iterations, .salt_size = BK_SCRAM_SALT};
    int r = os->random(os, secret.salt, secret.salt_size);
    if (r < 0)
        return r;
    bk_scram_derive(password, &secret);
    *ret_secret = secret;
    return 0;
}

/* ---- As text ---- */

/* A decimal number without leading zeros. Returns what follows it; NULL: it is none. */
static const char *number_parse(const char *at, unsigned *ret_number) {
    unsigned long number = 0;
    const char *start = at;
    for (; *at >= '0' && *at <= '9' && number <= BK_SECRET_ITERATIONS_MAX; at++)
        number = number * 10 + (unsigned long)(*at - '0');
    if (*start == '0' || at == start || number > BK_SECRET_ITERATIONS_MAX)
        return NULL;
    *ret_number = (unsigned)number;
    return at;
}

/* Base64 up to `end`, of `least` to `most` bytes. Returns what follows the end; NULL: it is none.
 */
static const char *bytes_parse(const char *at, char end, size_t least, size_t most,
                               unsigned char *ret_bytes, size_t *ret_size) {
    unsigned char room[BK_SECRET_TEXT];
    const char *stop = strchr(at, end);
    if (stop == NULL || stop - at > (ptrdiff_t)sizeof room)
        return NULL;
    ssize_t n = bk_base64_decode(at, (size_t)(stop - at), room);
    if (n < (ssize_t)least || n > (ssize_t)most)
        return NULL;
    memcpy(ret_bytes, room, (size_t)n);
    *ret_size = (size_t)n;
    return end == '\0' ? stop : stop + 1;
}

int bk_secret_parse(const char *text, bk_secret *ret_secret) {
    bk_secret s = {.iterations = 0};
    size_t size;
    if (text == NULL || ret_secret == NULL || strncmp(text, prefix, sizeof prefix - 1) != 0)
        return -EINVAL;
    const char *at = number_parse(text + sizeof prefix - 1, &s.iterations);
    if (at == NULL || *at != ':' || s.iterations < BK_SECRET_ITERATIONS_MIN)
        return -EINVAL;
    at = bytes_parse(at + 1, '$', 1, sizeof s.salt, s.salt, &s.salt_size);
    if (at != NULL)
        at = bytes_parse(at, ':', sizeof s.stored_key, sizeof s.stored_key, s.stored_key, &size);
    if (at != NULL)
        at = bytes_parse(at, '\0', sizeof s.server_key, sizeof s.server_key, s.server_key, &size);
    if (at == NULL)
        return -EINVAL;
    *ret_secret = s;
    return 0;
}

void bk_secret_format(const bk_secret *secret, char ret_text[BK_SECRET_TEXT]) {
    char salt[BK_BASE64_ROOM(sizeof secret->salt)], stored[KEY_TEXT], server[KEY_TEXT];
    bk_base64_encode(secret->salt, secret->salt_size, salt);
    bk_base64_encode(secret->stored_key, sizeof secret->stored_key, stored);
    bk_base64_encode(secret->server_key, sizeof secret->server_key, server);
    snprintf(ret_text, BK_SECRET_TEXT, "%s%u:%s$%s:%s", prefix, secret->iterations, salt, stored,
             server);
}

/* ---- Checking ---- */

int bk_secret_verify(const bk_secret *secret, const char *password) {
    if (secret == NULL || password == NULL || secret->salt_size > sizeof secret->salt ||
        strlen(password) > BK_SECRET_PASSWORD_MAX)
        return 0;
    bk_secret tried = *secret;
    bk_scram_derive(password, &tried);
    bool same = bk_same_secret(tried.stored_key, secret->stored_key, sizeof tried.stored_key);
    bk_wipe(&tried, sizeof tried);
    return same;
}
