/*
 * queue.c: what a stream has still to send: a list of chunks, which refer to the bytes of others or
 * to copies. Freed chunks and blocks are kept by the loop for reuse. Called by stream.c.
 */
#include "core/stream/stream.h"

void bk_release_static(void *arg) {
    (void)arg;
}

/* Never called: what is borrowed is sent or copied before it ends. */
void bk_release_borrowed(void *arg) {
    (void)arg;
}

static bk_chunk *new_chunk(bk_loop *loop) {
    bk_chunk *chunk = loop->free_chunks;
    if (chunk == NULL)
        return bk_alloc(loop->os, sizeof *chunk);
    loop->free_chunks = chunk->next;
    loop->free_chunk_count--;
    return chunk;
}

static void free_chunk(bk_loop *loop, bk_chunk *chunk) {
    if (loop->free_chunk_count >= BK_CHUNKS_KEPT) {
        bk_dealloc(loop->os, chunk);
        return;
    }
    chunk->next = loop->free_chunks;
    loop->free_chunks = chunk;
    loop->free_chunk_count++;
}

static bk_block *new_block(bk_loop *loop, size_t n) {
    bk_block *block = loop->free_blocks;
    size_t size = BK_BLOCK_BYTES - sizeof *block;
    if (n <= size && block != NULL) {
        loop->free_blocks = block->next;
        loop->free_block_count--;
    } else {
        if (n > size)
            size = n;
        block = bk_alloc(loop->os, sizeof *block + size);
        if (block == NULL)
            return NULL;
        block->loop = loop;
        block->size = size;
    }
    block->used = 0;
    return block;
}

static void release_block(void *arg) {
    bk_block *block = arg;
    bk_loop *loop = block->loop;
    if (loop->free_block_count >= BK_BLOCKS_KEPT || sizeof *block + block->size != BK_BLOCK_BYTES) {
        bk_dealloc(loop->os, block);
        return;
    }
    block->next = loop->free_blocks;
    loop->free_blocks = block;
    loop->free_block_count++;
}

static bk_chunk *last_chunk(const bk_stream *s) {
    return s->head == NULL ? NULL : (bk_chunk *)((char *)s->tail - offsetof(bk_chunk, next));
}

/* On failure the bytes are not released: they are still the caller's. */
int bk_queue_add(bk_stream *s, const void *data, size_t n, bk_release release, void *arg) {
    bk_chunk *chunk = new_chunk(s->loop);
    if (chunk == NULL)
        return -ENOMEM;
    *chunk = (bk_chunk){NULL, data, n, release, arg};
    *s->tail = chunk;
    s->tail = &chunk->next;
    s->queued += n;
    return 0;
}

int bk_queue_copy(bk_stream *s, const void *data, size_t n) {
    bk_chunk *last = last_chunk(s);
    bk_block *block = last != NULL && last->release == release_block ? last->arg : NULL;
    if (block != NULL && block->size - block->used >= n) {
        memcpy(block->bytes + block->used, data, n);
        block->used += n;
        last->size += n;
        s->queued += n;
        return 0;
    }
    block = new_block(s->loop, n);
    if (block == NULL)
        return -ENOMEM;
    memcpy(block->bytes, data, n);
    block->used = n;
    int code = bk_queue_add(s, block->bytes, n, release_block, block);
    if (code < 0)
        release_block(block);
    return code;
}

int bk_queue_gather(const bk_stream *s, struct iovec *ret_v, int room, size_t *ret_bytes) {
    int n = 0;
    size_t bytes = 0;
    for (const bk_chunk *chunk = s->head; chunk != NULL && n < room && bytes < BK_SEND_BYTES;
         chunk = chunk->next) {
        ret_v[n++] = (struct iovec){(void *)chunk->data, chunk->size};
        bytes += chunk->size;
    }
    *ret_bytes = bytes;
    return n;
}

/* All is in order before the first release: one may write, abort, or drop what is left. */
void bk_queue_drop(bk_stream *s, size_t n) {
    bk_chunk *sent = s->head, *chunk = s->head, **end = &sent;
    s->queued -= n;
    while (chunk != NULL && n >= chunk->size) {
        n -= chunk->size;
        end = &chunk->next;
        chunk = chunk->next;
    }
    *end = NULL;
    s->head = chunk;
    if (chunk == NULL) {
        s->tail = &s->head;
    } else {
        chunk->data += n;
        chunk->size -= n;
    }
    bk_loop *loop = s->loop;
    while (sent != NULL) {
        bk_chunk *next = sent->next;
        bk_release release = sent->release;
        void *arg = sent->arg;
        free_chunk(loop, sent);
        release(arg);
        sent = next;
    }
}

/* Copy what is only borrowed: what it refers to is about to be used again. */
int bk_queue_own(bk_stream *s) {
    for (bk_chunk *chunk = s->head; chunk != NULL; chunk = chunk->next) {
        if (chunk->release != bk_release_borrowed)
            continue;
        bk_block *block = new_block(s->loop, chunk->size);
        if (block == NULL)
            return -ENOMEM;
        memcpy(block->bytes, chunk->data, chunk->size);
        block->used = chunk->size;
        chunk->data = block->bytes;
        chunk->release = release_block;
        chunk->arg = block;
    }
    return 0;
}

void bk_queue_free_kept(bk_loop *loop) {
    while (loop->free_chunks != NULL) {
        bk_chunk *chunk = loop->free_chunks;
        loop->free_chunks = chunk->next;
        bk_dealloc(loop->os, chunk);
    }
    while (loop->free_blocks != NULL) {
        bk_block *block = loop->free_blocks;
        loop->free_blocks = block->next;
        bk_dealloc(loop->os, block);
    }
    loop->free_chunk_count = loop->free_block_count = 0;
}
