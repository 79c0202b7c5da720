/*
 * datagram.h: the structure of a bk_datagram, and of what it has still to send, for core/datagram
 * and for the Python extension, which is linked with the core. What the functions do is told in
 * becket.h.
 */
#ifndef BK_DATAGRAM_H
#define BK_DATAGRAM_H

#include "core/loop/loop.h"

#include <stdalign.h>

#if defined(_WIN32)
#include <winsock2.h>
#else
#include <sys/socket.h>
#endif

/* One datagram that waits: its bytes by reference, or copied behind the address. */
struct bk_packet {
    bk_packet *next;
    const char *data;
    size_t size;
    bk_release release;
    void *arg;
    unsigned room, address_size;
    alignas(void *) char bytes[]; /* [room] */
};

/* A queue of them. */
typedef struct bk_packets {
    bk_packet *head, **tail;
    uint32_t count;
} bk_packets;

enum {
    BK_DATAGRAM_PAUSED = 1 << 0,  /* its owner does not want to receive */
    BK_DATAGRAM_CLOSING = 1 << 1, /* closed once the queue is empty */
    BK_DATAGRAM_CLOSED = 1 << 2,  /* closed() is due */
    BK_DATAGRAM_BLOCKED = 1 << 3, /* blocked() was called, writable() not yet */
    BK_DATAGRAM_BUSY = 1 << 4,    /* the socket took less than it was given: wait for it */
    BK_DATAGRAM_UNSENT = 1 << 5,  /* listed in loop->unsent */
    BK_DATAGRAM_DUE = 1 << 6,     /* listed in loop->due */
    BK_DATAGRAM_SENDING = 1 << 7, /* within send_queue: what failed() sends waits its turn */
    BK_DATAGRAM_ENDED = 1 << 8,   /* closed, and the ready queue had no room for its end */
};

struct bk_datagram {
    bk_loop *loop;
    const bk_datagram_protocol *protocol;
    void *user;
    bk_datagram *next, **link; /* in loop->datagrams */
    bk_datagram *next_unsent, *next_due;
    bk_packets outgoing;
    bk_packets held; /* received, and not told: it was paused, or the turn ended, meanwhile */
    bk_timer rest;
    size_t queued;
    uint32_t low, high;
    uint32_t header; /* what a datagram counts beside its bytes */
    uint32_t flags;
    int fd;
    int32_t why;      /* for closed() */
    uint32_t longest; /* the room for one that comes */
    uint8_t watched;  /* the directions that watch.c was asked for */
};

/* From closed(): the descriptor is its owner's again, watched no more, and not closed. */
void bk_datagram_disown(bk_datagram *d);

/* The queue (packet.c). A packet of which the bytes are copied needs no release. */
bk_packet *bk_packet_new(bk_loop *loop, const bk_message *m, bk_release release, void *arg);
void bk_packet_free(bk_loop *loop, bk_packet *packet);
void bk_packets_init(bk_packets *queue);
void bk_packets_add(bk_packets *queue, bk_packet *packet);
bk_packet *bk_packets_take(bk_packets *queue, uint32_t n);
int bk_packets_gather(const bk_packets *queue, bk_message *ret_messages, uint32_t room);
void bk_packets_free_kept(bk_loop *loop);

#endif
