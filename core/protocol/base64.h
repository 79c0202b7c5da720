/*
 * base64.h: base64 (RFC 4648, 4), for the exchanges of SASL and for what is kept of passwords.
 */
#ifndef BK_BASE64_H
#define BK_BASE64_H

#include <stddef.h>
#include <sys/types.h>

/* Room for n bytes as text, with its NUL. */
#define BK_BASE64_ROOM(n) (((n) + 2) / 3 * 4 + 1)

/* Returns the length of the text. */
size_t bk_base64_encode(const void *data, size_t n, char *ret_text);
/* Strict: whole quanta, padded, no bits left over, nothing else in it. ret_data: room for n / 4
 * 3. Returns how many bytes they are; -EINVAL. */
ssize_t bk_base64_decode(const char *text, size_t n, void *ret_data);

#endif
