/*
 * loop.h: the loop's own structure, for the parts in core/loop and core/stream, and for the Python
 * extension, which is linked with the core. What the functions do is told in becket.h.
 */
#ifndef BK_LOOP_H
#define BK_LOOP_H

#include "core/limits.h"
#include "core/os/os.h"

#include <stdatomic.h>

/* What one descriptor wants, and what the notifier was last told. Indexed by descriptor. */
typedef struct bk_watch {
    bk_watch_fn fn[2]; /* [0] reads, [1] writes */
    void *arg[2];
    uint32_t generation; /* moves on when the fd is forgotten; part of the tag */
    uint8_t armed;       /* what the notifier knows */
    uint8_t changed;     /* listed in loop->changes */
} bk_watch;

typedef struct bk_call {
    bk_fn fn;
    void *arg;
} bk_call;

typedef struct bk_post {
    struct bk_post *next;
    bk_call call;
    /* Under the loop's lock: */
    bool kept;   /* its memory is its owner's, and not freed */
    bool queued; /* it waits to be taken */
} bk_post;

typedef struct bk_timer_entry {
    int64_t when;
    uint64_t order;
    bk_timer *timer; /* NULL: stopped */
} bk_timer_entry;

/* How the loop serves the layers above it, which it does not know: one puts its table into
   loop->layers when it first has something on the loop. */
typedef struct bk_layer {
    void (*settle)(bk_loop *loop); /* a callback returned, and something is to be sent */
    void (*turn)(bk_loop *loop);   /* once a turn; may be NULL */
    void (*turned)(bk_loop *loop); /* the same, at its end */
    void (*close)(bk_loop *loop);  /* the loop is being freed: end all that is left */
} bk_layer;

enum { BK_LAYER_LISTENERS, BK_LAYER_DATAGRAMS, BK_LAYER_STREAMS, BK_LAYER_CHILDREN, BK_LAYERS };

typedef struct bk_chunk bk_chunk;
typedef struct bk_block bk_block;
typedef struct bk_pool bk_pool;
typedef struct bk_child bk_child;
typedef struct bk_packet bk_packet;

struct bk_loop {
    bk_os *os;
    bk_notifier notifier;
    bk_loop_options options;
    int64_t now; /* of this turn, once it is known: bk_loop_now() */
    bool now_known;
    uint32_t fruitless; /* polls in a row that found nothing */
    int64_t polled;     /* when that was last, if they are many */

    /* The ready queue: a ring whose capacity is a power of two. */
    bk_call *ring;
    uint32_t ring_head, ring_count, ring_mask;

    bool turning;     /* within a turn */
    bool running;     /* within bk_loop_run */
    uint32_t calling; /* calls of streams' owners under way, in a turn or not */
    bool stopping;    /* bk_loop_run ends after this turn */
    bool broken;      /* the turn itself ends after this callback; what is left stays queued */

    /* Descriptors (watch.c). */
    bk_watch *watches;
    uint32_t watch_count;
    int *changes; /* room for all watches, twice: noting a change cannot fail */
    uint32_t change_count;

    /* Timers (timer.c): a 4-ary heap. */
    bk_timer_entry *timers;
    uint32_t timer_count, timer_room, timer_stopped;
    uint64_t timer_order;
    int64_t firing;        /* the time up to which this turn fires timers; 0: it fires none */
    uint64_t firing_order; /* … of those that were started before it */

    /* From other threads (post.c). */
    bk_lock *lock;
    bk_post *posts, **posts_end;
    atomic_bool posted;  /* something came from elsewhere, or somebody wants a turn */
    atomic_bool waiting; /* not in the midst of a turn: a wake must write to end the wait */
    int wake_fds[2];
    atomic_uint_fast64_t signals; /* delivered and not yet told: a bit each (signal.c) */
    bk_call *signal_calls;        /* [BK_SIGNALS], once one is set */

    const bk_layer *layers[BK_LAYERS]; /* NULL: has nothing here */

    /* Streams (core/stream). */
    bk_stream *streams;  /* all of them */
    bk_stream *dirty;    /* to be sent when the callback returns */
    bk_stream *gathered; /* … when all callbacks of the turn have returned */
    bk_stream *awake;    /* to be looked at in the next turn, ready or not */
    bk_stream *closing;  /* whose closed() is due, and which the ready queue had no room for */
    bool receiving;      /* what lies in scratch is being handed to received() */
    bk_timer sweep;      /* coarse time-outs */
    uint32_t timed_streams;
    void *scratch;
    bk_chunk *free_chunks;
    uint32_t free_chunk_count;
    bk_block *free_blocks;
    uint32_t free_block_count;

    /* Datagrams (core/datagram). */
    bk_datagram *datagrams; /* all of them */
    bk_datagram *unsent;    /* to be sent when the callback returns */
    bk_datagram *due;       /* to be looked at in the next turn, ready or not */
    struct bk_datagram_room *datagram_room;
    bk_packet *free_packets;
    uint32_t free_packet_count;

    /* Who else belongs to this loop. */
    bk_pool *pool;          /* worker.c */
    bk_listener *listeners; /* core/serve */
    bk_child *children;     /* … process.c */
    bk_timer watchdog;      /* … supervisor.c */
    int64_t watchdog_every;
    const bk_scheme **schemes;
    uint32_t scheme_count;
    const struct bk_tls_engine **tls_engines; /* core/tls */
    uint32_t tls_engine_count;
    void *cipher_in, *cipher_out; /* scratch memory for sealed bytes, while nobody uses it */

    bk_ready ready[BK_EVENTS_PER_WAIT];
};

/* Take the first call off the ready queue, which must not be empty. */
static inline bk_call bk_loop_next(bk_loop *loop) {
    bk_call call = loop->ring[loop->ring_head];
    loop->ring_head = (loop->ring_head + 1) & loop->ring_mask;
    loop->ring_count--;
    return call;
}

/* The turn ends after the callback it is in, and so does the run: an exception is on its way. */
static inline void bk_loop_break(bk_loop *loop) {
    loop->broken = true;
    loop->stopping = true;
}

/* The parts of a turn, in the order in which loop.c calls them; each is in the file of its name. */
bool bk_watches_apply(bk_loop *loop);
void bk_watches_dispatch(bk_loop *loop, int count);
void bk_watches_close(bk_loop *loop);

/* As bk_loop_post(), which needs memory: post is the caller's, zeroed but for its call, and must
   outlive the loop. What waits already is not queued twice. From any thread. */
void bk_loop_post_kept(bk_loop *loop, bk_post *post);

int bk_posts_open(bk_loop *loop);
void bk_posts_take(bk_loop *loop);
void bk_posts_call(bk_loop *loop, bk_fn fn); /* those with this function, at once */
int bk_posts_forked(bk_loop *loop);
void bk_posts_close(bk_loop *loop);

int64_t bk_timers_next(bk_loop *loop);
void bk_timers_begin(bk_loop *loop);
void bk_timers_fire(bk_loop *loop);
void bk_timers_close(bk_loop *loop);

void bk_signals_fire(bk_loop *loop);
void bk_signals_close(bk_loop *loop);

void bk_workers_take(bk_loop *loop);
int bk_workers_forked(bk_loop *loop);
void bk_workers_close(bk_loop *loop);

/* After each callback: what it wrote is sent. */
static inline void bk_loop_settle(bk_loop *loop) {
    if (loop->unsent != NULL)
        loop->layers[BK_LAYER_DATAGRAMS]->settle(loop);
    if (loop->dirty != NULL)
        loop->layers[BK_LAYER_STREAMS]->settle(loop);
}

void bk_loop_log(bk_loop *loop, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
