/*
 * stream.h: the stream's own structure and its outgoing queue, for core/stream and for the Python
 * extension, which is linked with the core. What the functions do is told in becket.h.
 */
#ifndef BK_STREAM_H
#define BK_STREAM_H

#include "core/loop/loop.h"

#if defined(_WIN32)
#include <winsock2.h>
#else
#include <sys/socket.h>
#endif

/* One piece of what is queued: bytes by reference. */
struct bk_chunk {
    bk_chunk *next;
    const char *data;
    size_t size;
    bk_release release;
    void *arg;
};

/* Memory for copied writes. One chunk lies in it, and grows while there is room. */
struct bk_block {
    bk_block *next;
    bk_loop *loop;
    size_t used, size;
    char bytes[];
};

enum {
    BK_STREAM_CONNECTING = 1 << 0, /* of bk_connect(): not yet opened */
    BK_STREAM_PAUSED = 1 << 1,     /* the protocol does not want to read */
    BK_STREAM_EOF = 1 << 2,        /* the peer's direction is over */
    BK_STREAM_ENDING = 1 << 3,     /* our direction is over once the queue is empty */
    BK_STREAM_ENDED = 1 << 4,      /* … and the transport has been told */
    BK_STREAM_CLOSING = 1 << 5,    /* closed once the queue is empty */
    BK_STREAM_CLOSED = 1 << 6,     /* listed in loop->closing */
    BK_STREAM_BLOCKED = 1 << 7,    /* blocked() was called, writable() not yet */
    BK_STREAM_BUSY = 1 << 8,       /* the transport took less than it was given: wait for it */
    BK_STREAM_DIRTY = 1 << 9,      /* listed in loop->dirty */
    BK_STREAM_AWAKE = 1 << 10,     /* listed in loop->awake */
    BK_STREAM_SELF = 1 << 11,    /* its transport has no descriptor to read: it wakes the stream */
    BK_STREAM_MORE = 1 << 12,    /* … and may hold more to read */
    BK_STREAM_BORROWS = 1 << 13, /* has chunks whose bytes are good for this callback only */
    BK_STREAM_SENDING = 1 << 14, /* within send_queue: what a release writes is sent there */
    BK_STREAM_OPENING = 1 << 15, /* its transport is getting ready to move bytes */
    BK_STREAM_OPENED = 1 << 16,  /* opened() was called */
    BK_STREAM_TIMED = 1 << 17,   /* has a time-out: counted in loop->timed_streams */
    BK_STREAM_GATHERS = 1 << 18, /* listed in loop->gathered instead, within a turn */
};

/* What a server keeps of one connection: how long it may take, what it moved, and who is to be
   told. The stream counts and tells; core/serve/gate.c makes them. */
typedef struct bk_visit bk_visit;
struct bk_visit {
    void (*opened)(bk_visit *v, bk_stream *s); /* the protocol proper is about to hear opened() */
    void (*closed)(bk_visit *v, bk_stream *s, int why); /* … has heard closed(); v is let go */
    const bk_limits *limits;
    bool away;      /* its bytes are moved elsewhere: of the times, only the total counts */
    bool refused;   /* it may read why, and has BK_REFUSAL_S for it, whatever it sends */
    uint32_t began; /* the second it came */
    uint32_t sent;  /* … and the last in which nothing waited to be sent, or something was */
    uint64_t bytes_in, bytes_out;
};

struct bk_stream {
    bk_loop *loop;
    bk_transport *transport;
    const bk_protocol *protocol;
    void *user;
    bk_stream *next, **link; /* in loop->streams */
    bk_stream *next_due;     /* in loop->dirty, or in loop->closing */
    bk_stream *next_awake;   /* in loop->awake */
    bk_chunk *head, **tail;  /* what is queued */
    size_t queued;
    uint32_t low, high;
    uint32_t flags;
    uint8_t watched;  /* the directions that watch.c was asked for */
    uint16_t timeout; /* seconds; 0: none */
    uint32_t active;  /* the second of the last progress */
    int32_t why;      /* for closed() */
    bk_visit *visit;  /* NULL: nobody's visitor */
};

/* For bk_connect(): a stream that is not opened yet, over a transport that is still connecting (its
   close() gives up); and then its way into life, over the transport that has come of it. */
int bk_stream_new_connecting(bk_loop *loop, bk_transport *transport, const bk_protocol *protocol,
                             void *user, bk_stream **ret_stream);
/* As bk_stream_new(), but paused from the first: nothing is watched until it is resumed. */
int bk_stream_new_paused(bk_loop *loop, bk_transport *transport, const bk_protocol *protocol,
                         void *user, bk_stream **ret_stream);
/* What callbacks write is sent when all of the turn have returned, and not each when it does: where
   they take their time, peers need not be woken one by one. */
void bk_stream_gather(bk_stream *s);
void bk_stream_connected(bk_stream *s, bk_transport *transport);

/* Give a stream a visit, or take it away (NULL), to be given to another stream. */
void bk_stream_set_visit(bk_stream *s, bk_visit *visit);

/* A protocol that stands before another, which may be a front too; the last is the one that the
   stream's owner knows of. Its name is bk_front_name. */
typedef struct bk_front {
    bk_protocol base;
    const bk_protocol *protocol;
} bk_front;

extern const char bk_front_name[];

/* From a front's opened(): the stream is the next one's, whose opened() is called now; or when a
   transport has opened that is put in place first. */
int bk_stream_pass_on(bk_stream *s, const bk_protocol *protocol);
/* … or it is refused: it is closed after the protocol's refused(). */
void bk_stream_refuse(bk_stream *s, const bk_protocol *protocol, int why);
void bk_stream_reopen(bk_stream *s, bk_transport *transport, const bk_protocol *protocol);

/* What the owner of a paused stream has read from its descriptor: n as transport->read() returns
   it. */
void bk_stream_feed(bk_stream *s, const void *data, ssize_t n);
/* … or sent, of a stream with nothing queued: n as transport->write() returns it. */
void bk_stream_sent(bk_stream *s, ssize_t n);

/* Close with that code, now; what is queued is dropped. closed() follows. */
void bk_stream_fail(bk_stream *s, int why);

/* Call writable() when all that is queued has been sent, however soon that is: also of a stream
   that was not blocked. */
void bk_stream_tell_sent(bk_stream *s);

/* A transport over a socket that bk_os.accept returned: non-blocking, its options inherited from
   the listening socket. What accept said of the peer spares asking. */
struct sockaddr;
int bk_socket_transport_accepted(bk_loop *loop, int fd, const struct sockaddr *peer, unsigned size,
                                 bk_transport **ret_transport);

/* For a transport's query(): n bytes of an answer. */
static inline int bk_query_answer(void *ret_value, size_t *size, const void *value, size_t n) {
    if (*size < n)
        return -ENOSPC;
    memcpy(ret_value, value, n);
    *size = n;
    return 0;
}

/* A socket's address, by getsockname or getpeername of the operating system's table. */
typedef int (*bk_name_call)(bk_os *os, int fd, struct sockaddr *ret_address, unsigned *size);

static inline int bk_query_name(bk_os *os, bk_name_call call, int fd, void *ret_value,
                                size_t *size) {
    struct sockaddr_storage address;
    unsigned n = sizeof address;
    int code = call(os, fd, (struct sockaddr *)&address, &n);
    if (code < 0)
        return code;
    return bk_query_answer(ret_value, size, &address, n < sizeof address ? n : sizeof address);
}

/* Its close() will not touch the descriptors, whose owner has taken them back. */
bool bk_is_socket_transport(const bk_transport *t);
void bk_socket_transport_disown(bk_transport *t);
void bk_fd_transport_disown(bk_transport *t);

/* A transport over a UNIX socket, which it then owns; what it reads goes to `came` first, if
   descriptors have come with it: they are its to close. -ENOTSUP: they cannot come here. */
enum { BK_PASSED_FDS = 253 }; /* Linux lets one message have so many */
int bk_passing_transport(bk_loop *loop, int fd,
                         void (*came)(bk_transport *t, const int *fds, int n),
                         bk_transport **ret_transport);
bool bk_is_passing_transport(const bk_transport *t);
void bk_passing_transport_disown(bk_transport *t);

/* The queue (queue.c). Bytes that are "borrowed" are good until the callback returns. */
void bk_release_borrowed(void *arg);
int bk_queue_add(bk_stream *s, const void *data, size_t n, bk_release release, void *arg);
int bk_queue_copy(bk_stream *s, const void *data, size_t n);
int bk_queue_gather(const bk_stream *s, struct iovec *ret_v, int room, size_t *ret_bytes);
void bk_queue_drop(bk_stream *s, size_t n);
int bk_queue_own(bk_stream *s);
void bk_queue_free_kept(bk_loop *loop);

#endif
