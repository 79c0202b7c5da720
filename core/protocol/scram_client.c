/*
 * scram_client.c: proves to a server that we know a password without telling it, and has the server
 * prove that it does (SCRAM-SHA-256: RFC 5802, RFC 7677), without channel binding. For
 * smtp_login.c.
 *
 * What the server says is bounded: how often it may have us hash, above all.
 */
#include "core/protocol/scram_client.h"

#include "core/protocol/base64.h"
#include "core/protocol/scram.h"

/* A user's name, in which "," and "=" have another meaning. */
static int add_name(bk_os *os, bk_buffer *b, const char *name) {
    int r = 0;
    for (; *name != '\0' && r == 0; name++) {
        if (*name == ',' || *name == '=')
            r = bk_buffer_add(os, b, *name == ',' ? "=2C" : "=3D", 3);
        else
            r = bk_buffer_add(os, b, name, 1);
    }
    return r;
}

static int add_text(bk_os *os, bk_buffer *b, const char *text) {
    return bk_buffer_add(os, b, text, strlen(text));
}

int bk_scram_client_first(bk_os *os, bk_scram_client *s, const char *user, bk_buffer *ret_message) {
    unsigned char chance[BK_SCRAM_NONCE / 4 * 3];
    int r = os->random(os, chance, sizeof chance);
    if (r < 0)
        return r;
    (void)bk_base64_encode(chance, sizeof chance, s->nonce);
    bk_buffer_clear(os, &s->bare);
    r = add_text(os, &s->bare, "n=");
    if (r == 0)
        r = add_name(os, &s->bare, user);
    if (r == 0)
        r = add_text(os, &s->bare, ",r=");
    if (r == 0)
        r = add_text(os, &s->bare, s->nonce);
    if (r == 0)
        r = add_text(os, ret_message, "n,,");
    return r == 0 ? bk_buffer_add(os, ret_message, s->bare.data, s->bare.used) : r;
}

/* What the server's first message says: "r=nonce,s=salt,i=iterations". */
typedef struct challenge {
    const char *nonce;
    size_t nonce_size;
    unsigned char salt[BK_SCRAM_SALT_MAX];
    size_t salt_size;
    unsigned iterations;
} challenge;

/* "k=value" at the start of text, up to a comma; moves on behind that. */
static bool take_value(const char **text, size_t *n, char key, const char **ret_value,
                       size_t *ret_size) {
    if (*n < 3 || (*text)[0] != key || (*text)[1] != '=')
        return false;
    const char *value = *text + 2, *comma = memchr(value, ',', *n - 2);
    size_t size = comma != NULL ? (size_t)(comma - value) : *n - 2;
    *ret_value = value;
    *ret_size = size;
    size_t used = 2 + size + (comma != NULL);
    *text += used;
    *n -= used;
    return size > 0;
}

static bool read_number(const char *text, size_t n, unsigned *ret_number) {
    unsigned number = 0;
    for (size_t i = 0; i < n; i++) {
        if (text[i] < '0' || text[i] > '9' || number > BK_SCRAM_ITERATIONS_MAX)
            return false;
        number = number * 10 + (unsigned)(text[i] - '0');
    }
    *ret_number = number;
    return number > 0 && number <= BK_SCRAM_ITERATIONS_MAX;
}

static bool read_challenge(const bk_scram_client *s, const char *text, size_t n,
                           challenge *ret_challenge) {
    const char *salt, *count;
    size_t salt_size, count_size;
    challenge c;
    if (!take_value(&text, &n, 'r', &c.nonce, &c.nonce_size) ||
        !take_value(&text, &n, 's', &salt, &salt_size) ||
        !take_value(&text, &n, 'i', &count, &count_size))
        return false;
    if (c.nonce_size <= BK_SCRAM_NONCE || memcmp(c.nonce, s->nonce, BK_SCRAM_NONCE) != 0 ||
        salt_size > BK_SCRAM_SALT_MAX / 3 * 4 || !read_number(count, count_size, &c.iterations))
        return false;
    ssize_t size = bk_base64_decode(salt, salt_size, c.salt);
    if (size <= 0)
        return false;
    c.salt_size = (size_t)size;
    *ret_challenge = c;
    return true;
}

/* What both sides sign: the messages of both, but the proof. `ours` is the start of our last. */
static int add_signed(bk_os *os, const bk_scram_client *s, const char *server, size_t n,
                      const bk_buffer *ours, size_t ours_at, bk_buffer *ret_signed) {
    int r = bk_buffer_add(os, ret_signed, s->bare.data, s->bare.used);
    if (r == 0)
        r = add_text(os, ret_signed, ",");
    if (r == 0)
        r = bk_buffer_add(os, ret_signed, server, n);
    if (r == 0)
        r = add_text(os, ret_signed, ",");
    return r == 0 ? bk_buffer_add(os, ret_signed, ours->data + ours_at, ours->used - ours_at) : r;
}

static void make_proof(bk_scram_client *s, const char *password, const challenge *c,
                       const bk_buffer *text, unsigned char ret_proof[BK_SHA256_SIZE]) {
    unsigned char salted[BK_SHA256_SIZE], key[BK_SHA256_SIZE], stored[BK_SHA256_SIZE];
    bk_pbkdf2_sha256(password, strlen(password), c->salt, c->salt_size, c->iterations, salted);
    bk_scram_server_key(salted, key);
    bk_hmac_sha256(key, sizeof key, text->data, text->used, s->server_signature);
    bk_scram_client_key(salted, key);
    bk_sha256_of(key, sizeof key, stored);
    bk_hmac_sha256(stored, sizeof stored, text->data, text->used, ret_proof);
    for (size_t i = 0; i < sizeof key; i++)
        ret_proof[i] ^= key[i];
    bk_wipe(salted, sizeof salted);
    bk_wipe(key, sizeof key);
}

int bk_scram_client_final(bk_os *os, bk_scram_client *s, const char *password, const char *server,
                          size_t n, bk_buffer *ret_message) {
    challenge c;
    bk_buffer text = {NULL, 0, 0};
    unsigned char proof[BK_SHA256_SIZE];
    char proof_text[BK_BASE64_ROOM(BK_SHA256_SIZE)];
    size_t at = ret_message->used;
    if (!read_challenge(s, server, n, &c))
        return -EPROTO;
    int r = add_text(os, ret_message, "c=biws,r="); /* "n,,": no channel binding */
    if (r == 0)
        r = bk_buffer_add(os, ret_message, c.nonce, c.nonce_size);
    if (r == 0)
        r = add_signed(os, s, server, n, ret_message, at, &text);
    if (r == 0) {
        make_proof(s, password, &c, &text, proof);
        (void)bk_base64_encode(proof, sizeof proof, proof_text);
        r = add_text(os, ret_message, ",p=");
    }
    bk_buffer_clear(os, &text);
    return r == 0 ? add_text(os, ret_message, proof_text) : r;
}

bool bk_scram_client_verify(const bk_scram_client *s, const char *server, size_t n) {
    char right[BK_BASE64_ROOM(BK_SHA256_SIZE)];
    const char *value;
    size_t size, length = bk_base64_encode(s->server_signature, BK_SHA256_SIZE, right);
    return take_value(&server, &n, 'v', &value, &size) && size == length &&
           bk_same_secret(value, right, size);
}

void bk_scram_client_clear(bk_os *os, bk_scram_client *s) {
    bk_buffer_clear(os, &s->bare);
    bk_wipe(s->server_signature, sizeof s->server_signature);
}
