/*
 * stream.h: the stream's own structure and its outgoing queue, for core/stream and for the Python
 * extension, which is linked with the core. What the functions do is told in becket.h.
 */
#ifndef BK_STREAM_H
#define BK_STREAM_H

#include "core/loop/loop.h"

/* One piece of what is queued: bytes by reference. */
struct bk_chunk {
    bk_chunk *next;
    const char *data;
    size_t size;
    bk_release release;
    void *arg;
};

/* Memory for copied writes; the release argument of the chunks that lie in it. */
struct bk_block {
    bk_block *next;
    bk_loop *loop;
    uint32_t users; /* chunks that lie in it, and the stream's tail while it may grow */
    uint32_t used, size;
    char bytes[];
};

enum {
    BK_STREAM_PAUSED = 1 << 0,  /* the protocol does not want to read */
    BK_STREAM_EOF = 1 << 1,     /* the peer's direction is over */
    BK_STREAM_ENDING = 1 << 2,  /* our direction is over once the queue is empty */
    BK_STREAM_ENDED = 1 << 3,   /* … and that has been told to the transport */
    BK_STREAM_CLOSING = 1 << 4, /* closed once the queue is empty */
    BK_STREAM_CLOSED = 1 << 5,  /* listed in loop->closing */
    BK_STREAM_BLOCKED = 1 << 6, /* blocked() was called, writable() not yet */
    BK_STREAM_DIRTY = 1 << 7,   /* listed in loop->dirty */
    BK_STREAM_BUSY = 1 << 8,    /* the transport took less than it was given: wait for it */
    BK_STREAM_SCHEDULED = 1 << 9, /* a run of stream_ready is in the ready queue */
    BK_STREAM_CONNECTING = 1 << 10, /* has no transport yet */
    BK_STREAM_READING = 1 << 11,  /* inside stream_read */
    BK_STREAM_HELD = 1 << 12,     /* what is being received may be sent by reference (scratch) */
};

struct bk_stream {
    bk_loop *loop;
    bk_transport *transport;
    const bk_protocol *protocol;
    void *user;
    bk_stream *next, **link;  /* in loop->streams */
    bk_stream *next_dirty;    /* in loop->dirty, or in loop->closing */
    bk_chunk *head, **tail;   /* what is queued */
    size_t queued;
    uint32_t low, high;
    uint16_t flags;
    uint16_t timeout;         /* seconds; 0: none */
    uint32_t active;          /* the second of the last progress */
    int32_t why;              /* for closed() */
};

/* A stream that waits for its transport, of bk_connect(); then the one or the other. */
int bk_stream_new_connecting(bk_loop *loop, const bk_protocol *protocol, void *user,
                             bk_stream **ret_stream);
void bk_stream_connected(bk_stream *s, bk_transport *transport);
void bk_stream_fail(bk_stream *s, int why);

/* The queue (queue.c). */
int bk_queue_add(bk_stream *s, const void *data, size_t n, bk_release release, void *arg);
int bk_queue_copy(bk_stream *s, const void *data, size_t n);
int bk_queue_gather(const bk_stream *s, struct iovec *v, int room);
void bk_queue_drop(bk_stream *s, size_t n);
void bk_queue_clear(bk_stream *s);
int bk_queue_own(bk_stream *s);
void bk_queue_free_kept(bk_loop *loop);

/* Whether [data, data + n) lies in what the loop is just handing to received(). */
static inline bool bk_loop_holds(const bk_loop *loop, const void *data, size_t n) {
    const char *p = data, *from = loop->scratch;
    return from != NULL && p >= from && p < from + BK_SCRATCH_BYTES &&
           n <= (size_t)(from + BK_SCRATCH_BYTES - p);
}

#endif
