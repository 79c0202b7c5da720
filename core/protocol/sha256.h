/*
 * sha256.h: SHA-256, and HMAC and PBKDF2 on it, for passwords (core/protocol/scram.c, core/store).
 */
#ifndef BK_SHA256_H
#define BK_SHA256_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { BK_SHA256_SIZE = 32, BK_SHA256_BLOCK = 64 };

typedef struct bk_sha256 {
    uint32_t state[8];
    uint64_t size;
    unsigned char block[BK_SHA256_BLOCK];
} bk_sha256;

void bk_sha256_init(bk_sha256 *h);
void bk_sha256_add(bk_sha256 *h, const void *data, size_t n);
void bk_sha256_end(bk_sha256 *h, unsigned char ret_hash[BK_SHA256_SIZE]);
void bk_sha256_of(const void *data, size_t n, unsigned char ret_hash[BK_SHA256_SIZE]);

/* RFC 2104. */
void bk_hmac_sha256(const void *key, size_t key_size, const void *data, size_t n,
                    unsigned char ret_mac[BK_SHA256_SIZE]);

/* RFC 8018, 5.2, for a key of one block; the Hi() of RFC 5802. Takes time: iterations >= 1. */
void bk_pbkdf2_sha256(const void *password, size_t n, const void *salt, size_t salt_size,
                      unsigned iterations, unsigned char ret_key[BK_SHA256_SIZE]);

/* Whether they are the same, in time that does not depend on where they differ. */
bool bk_same_secret(const void *a, const void *b, size_t n);
/* Overwrite what is not to be found in memory later. */
void bk_wipe(void *data, size_t n);

#endif
