/*
 * base64.c: base64 (RFC 4648, 4), strict: of two texts that mean the same bytes, one is refused.
 */
#include "core/protocol/base64.h"

#include <errno.h>
#include <stdint.h>

static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

size_t bk_base64_encode(const void *data, size_t n, char *ret_text) {
    const unsigned char *at = data;
    char *to = ret_text;
    for (size_t i = 0; i < n; i += 3) {
        uint32_t bits = (uint32_t)at[i] << 16 | (i + 1 < n ? (uint32_t)at[i + 1] << 8 : 0) |
                        (i + 2 < n ? at[i + 2] : 0);
        *to++ = letters[bits >> 18];
        *to++ = letters[bits >> 12 & 63];
        *to++ = i + 1 < n ? letters[bits >> 6 & 63] : '=';
        *to++ = i + 2 < n ? letters[bits & 63] : '=';
    }
    *to = '\0';
    return (size_t)(to - ret_text);
}

static int value_of(char c) {
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* Four letters, the last `padding` of which are "=": 24 bits; -1: they are none. */
static int32_t quantum(const char *text, unsigned padding) {
    int32_t bits = 0;
    for (unsigned i = 0; i < 4; i++) {
        int value = i < 4 - padding ? value_of(text[i]) : text[i] == '=' ? 0 : -1;
        if (value < 0)
            return -1;
        bits = bits << 6 | value;
    }
    return bits & ((1 << 8 * padding) - 1) ? -1 : bits;
}

ssize_t bk_base64_decode(const char *text, size_t n, void *ret_data) {
    unsigned char *to = ret_data;
    if (n % 4 != 0)
        return -EINVAL;
    for (size_t i = 0; i < n; i += 4) {
        unsigned padding = 0;
        if (i + 4 == n)
            padding = text[i + 3] != '=' ? 0 : text[i + 2] != '=' ? 1 : 2;
        int32_t bits = quantum(text + i, padding);
        if (bits < 0)
            return -EINVAL;
        for (unsigned k = 0; k < 3 - padding; k++)
            *to++ = (unsigned char)(bits >> (16 - 8 * k));
    }
    return (ssize_t)(to - (unsigned char *)ret_data);
}
