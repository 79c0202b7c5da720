/*
 * buffer.h: bytes that accumulate, for lines that arrive in pieces and for messages. Growth doubles
 * the room, so that a byte is moved a constant number of times, whatever the pieces.
 */
#ifndef BK_BUFFER_H
#define BK_BUFFER_H

#include "core/os/os.h"
#include "core/protocol/limits.h"

typedef struct bk_buffer {
    char *data;
    size_t used, room;
} bk_buffer;

static inline int bk_buffer_reserve(bk_os *os, bk_buffer *b, size_t more) {
    if (more <= b->room - b->used)
        return 0;
    if (more > SIZE_MAX / 2 - b->used)
        return -ENOMEM;
    size_t room = b->room < BK_BUFFER_START ? (size_t)BK_BUFFER_START : b->room;
    while (room - b->used < more)
        room *= 2;
    char *data = os->resize(os, b->data, room);
    if (data == NULL)
        return -ENOMEM;
    b->data = data;
    b->room = room;
    return 0;
}

static inline int bk_buffer_add(bk_os *os, bk_buffer *b, const char *data, size_t n) {
    if (n == 0)
        return 0;
    int r = bk_buffer_reserve(os, b, n);
    if (r < 0)
        return r;
    memcpy(b->data + b->used, data, n);
    b->used += n;
    return 0;
}

static inline void bk_buffer_clear(bk_os *os, bk_buffer *b) {
    bk_dealloc(os, b->data);
    *b = (bk_buffer){0};
}

#endif
