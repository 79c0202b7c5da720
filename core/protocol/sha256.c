/*
 * sha256.c: SHA-256 (FIPS 180-4), HMAC (RFC 2104) and PBKDF2 (RFC 8018). For scram.c and for what
 * is kept of passwords.
 */
#include "core/protocol/sha256.h"

#include <string.h>

static const uint32_t constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t turn(uint32_t x, unsigned n) {
    return x >> n | x << (32 - n);
}

static void expand(const unsigned char *block, uint32_t w[64]) {
    for (int i = 0; i < 16; i++, block += 4)
        w[i] = (uint32_t)block[0] << 24 | (uint32_t)block[1] << 16 | (uint32_t)block[2] << 8 |
               block[3];
    for (int i = 16; i < 64; i++) {
        uint32_t a = w[i - 15], b = w[i - 2];
        w[i] = w[i - 16] + (turn(a, 7) ^ turn(a, 18) ^ a >> 3) + w[i - 7] +
               (turn(b, 17) ^ turn(b, 19) ^ b >> 10);
    }
}

/* A round; instead of moving the eight variables on, the next one is called with them turned. */
#define ROUND(a, b, c, d, e, f, g, h, i)                                                           \
    do {                                                                                           \
        uint32_t one = h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + (g ^ (e & (f ^ g))) +        \
                       constants[i] + w[i];                                                        \
        uint32_t two = (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) | (c & (a | b)));       \
        d += one;                                                                                  \
        h = one + two;                                                                             \
    } while (0)

static void compress(uint32_t state[8], const unsigned char *block) {
    uint32_t w[64];
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
    uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
    expand(block, w);
    for (int i = 0; i < 64; i += 8) {
        ROUND(a, b, c, d, e, f, g, h, i);
        ROUND(h, a, b, c, d, e, f, g, i + 1);
        ROUND(g, h, a, b, c, d, e, f, i + 2);
        ROUND(f, g, h, a, b, c, d, e, i + 3);
        ROUND(e, f, g, h, a, b, c, d, i + 4);
        ROUND(d, e, f, g, h, a, b, c, i + 5);
        ROUND(c, d, e, f, g, h, a, b, i + 6);
        ROUND(b, c, d, e, f, g, h, a, i + 7);
    }
    state[0] += a, state[1] += b, state[2] += c, state[3] += d;
    state[4] += e, state[5] += f, state[6] += g, state[7] += h;
}

void bk_sha256_init(bk_sha256 *h) {
    static const uint32_t start[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    memcpy(h->state, start, sizeof start);
    h->size = 0;
}

void bk_sha256_add(bk_sha256 *h, const void *data, size_t n) {
    const unsigned char *at = data;
    while (n > 0) {
        size_t used = h->size % BK_SHA256_BLOCK, some = BK_SHA256_BLOCK - used;
        some = some < n ? some : n;
        memcpy(h->block + used, at, some);
        h->size += some;
        at += some;
        n -= some;
        if (used + some == BK_SHA256_BLOCK)
            compress(h->state, h->block);
    }
}

void bk_sha256_end(bk_sha256 *h, unsigned char ret_hash[BK_SHA256_SIZE]) {
    static const unsigned char pad[BK_SHA256_BLOCK] = {0x80};
    uint64_t bits = h->size * 8;
    unsigned char length[8];
    size_t used = h->size % BK_SHA256_BLOCK;
    for (int i = 0; i < 8; i++)
        length[i] = (unsigned char)(bits >> (56 - 8 * i));
    bk_sha256_add(h, pad, (used < 56 ? 56 : 120) - used);
    bk_sha256_add(h, length, sizeof length);
    for (int i = 0; i < BK_SHA256_SIZE; i++)
        ret_hash[i] = (unsigned char)(h->state[i / 4] >> (24 - i % 4 * 8));
}

void bk_sha256_of(const void *data, size_t n, unsigned char ret_hash[BK_SHA256_SIZE]) {
    bk_sha256 h;
    bk_sha256_init(&h);
    bk_sha256_add(&h, data, n);
    bk_sha256_end(&h, ret_hash);
}

/* ---- HMAC ---- */

/* The two hashes with the key in them: what PBKDF2 would else compute again each time. */
typedef struct hmac {
    bk_sha256 inner, outer;
} hmac;

static void hmac_init(hmac *m, const void *key, size_t n) {
    unsigned char short_key[BK_SHA256_SIZE], pad[BK_SHA256_BLOCK] = {0};
    if (n > sizeof pad) {
        bk_sha256_of(key, n, short_key);
        key = short_key;
        n = sizeof short_key;
    }
    if (n > 0)
        memcpy(pad, key, n);
    for (size_t i = 0; i < sizeof pad; i++)
        pad[i] ^= 0x36;
    bk_sha256_init(&m->inner);
    bk_sha256_add(&m->inner, pad, sizeof pad);
    for (size_t i = 0; i < sizeof pad; i++)
        pad[i] ^= 0x36 ^ 0x5c;
    bk_sha256_init(&m->outer);
    bk_sha256_add(&m->outer, pad, sizeof pad);
    bk_wipe(short_key, sizeof short_key);
    bk_wipe(pad, sizeof pad);
}

static void hmac_of(const hmac *m, const void *data, size_t n, const void *more, size_t more_size,
                    unsigned char ret_mac[BK_SHA256_SIZE]) {
    hmac copy = *m;
    bk_sha256_add(&copy.inner, data, n);
    bk_sha256_add(&copy.inner, more, more_size);
    bk_sha256_end(&copy.inner, ret_mac);
    bk_sha256_add(&copy.outer, ret_mac, BK_SHA256_SIZE);
    bk_sha256_end(&copy.outer, ret_mac);
}

void bk_hmac_sha256(const void *key, size_t key_size, const void *data, size_t n,
                    unsigned char ret_mac[BK_SHA256_SIZE]) {
    hmac m;
    hmac_init(&m, key, key_size);
    hmac_of(&m, data, n, NULL, 0, ret_mac);
    bk_wipe(&m, sizeof m);
}

void bk_pbkdf2_sha256(const void *password, size_t n, const void *salt, size_t salt_size,
                      unsigned iterations, unsigned char ret_key[BK_SHA256_SIZE]) {
    static const unsigned char first[4] = {0, 0, 0, 1};
    unsigned char u[BK_SHA256_SIZE];
    hmac m;
    hmac_init(&m, password, n);
    hmac_of(&m, salt, salt_size, first, sizeof first, u);
    memcpy(ret_key, u, sizeof u);
    for (unsigned i = 1; i < iterations; i++) {
        hmac_of(&m, u, sizeof u, NULL, 0, u);
        for (size_t k = 0; k < sizeof u; k++)
            ret_key[k] ^= u[k];
    }
    bk_wipe(&m, sizeof m);
    bk_wipe(u, sizeof u);
}

/* ---- Secrets ---- */

bool bk_same_secret(const void *a, const void *b, size_t n) {
    const unsigned char *x = a, *y = b;
    unsigned char differ = 0;
    for (size_t i = 0; i < n; i++)
        differ |= x[i] ^ y[i];
    return differ == 0;
}

/* By a pointer that is volatile: else a compiler may leave it out. */
void bk_wipe(void *data, size_t n) {
    volatile unsigned char *at = data;
    while (n-- > 0)
        *at++ = 0;
}
