/*
 * pair.h: two streams over two transports that are joined, each with a protocol that checks what
 * becket.h promises to every protocol, whatever a case makes it do. For transport.c and engine.c.
 *
 * What a side sends is a pattern that depends on the position, so that each byte that arrives tells
 * whether it is the right one; memory handed over by reference is freed when it is released, so
 * that whoever uses it longer is found out under AddressSanitizer.
 */
#ifndef BK_CONFORM_PAIR_H
#define BK_CONFORM_PAIR_H

#include "tests/conformance/case.h"

typedef struct pair pair;
typedef struct side side;
typedef struct parcel parcel;

/* How bytes are handed over. */
typedef enum pair_mode { PAIR_COPY, PAIR_REFER, PAIR_MIX } pair_mode;

struct side {
    bk_conform_case *c;
    pair *p;
    side *peer;
    int index;
    bk_stream *s; /* NULL: there is none yet, or no more */

    /* What the case wants; all may be NULL. */
    int (*on_opened)(side *x);
    int (*on_room)(side *x, bk_room *ret_room);
    void (*on_received)(side *x, const char *data, size_t n);
    int (*on_ended)(side *x);
    void (*on_blocked)(side *x);
    void (*on_writable)(side *x);
    void (*on_release)(side *x);
    int (*on_upgraded)(side *x);
    void (*on_closed)(side *x, bk_stream *s);
    const bk_protocol *protocol; /* NULL: one of pair_protocols */
    bool keep;                   /* what ended() returns: go on writing */
    bool may_break;              /* closed(why < 0) is no failure of the case */
    bool unchecked;              /* what it receives is no pattern: on_received() takes all of it */
    int pattern;                 /* of what it receives: the index of who sent it first */

    /* What it is to send: see pair_pump(). */
    uint64_t goal;
    size_t piece;
    pair_mode mode;
    bool stopped; /* by blocked() */

    /* What has happened. */
    bool waits; /* its transport has to open first: opened() comes later, or never */
    int made, upgraded, opened, received, ended, blocked, writable, closed, why;
    int depth;    /* of callbacks */
    bool paused;  /* the case has paused it: nothing may be received */
    bool closing; /* the case has closed it: nothing may be received any more */
    bool aborted; /* … nothing at all but closed() */
    uint64_t sent, got;
    size_t low, high;       /* water marks */
    size_t held, held_most; /* bytes referred to and not released */
    parcel *parcels;
    int step; /* for the case's own use */
};

/* What a transport in between has seen: calls, and how many of them moved less than they might. */
typedef struct filter_counts {
    long reads, writes, refused;
} filter_counts;

struct pair {
    bk_conform_case *c;
    bk_loop *loop;
    side sides[2];
    bk_transport *transports[2]; /* not yet owned by a stream */
    /* A transport that holds the one under test, on each side. */
    bool filtered;
    size_t most; /* bytes that one of its calls moves; 0: any number */
    filter_counts counts[2];
};

/* room: whether it has that function; deaf: whether it lacks ended(). */
extern const bk_protocol pair_plain, pair_roomy, pair_deaf;

/* A pair that is not there yet: for the case to say what it wants. */
void pair_init(pair *p, bk_conform_case *c);
int pair_open(pair *p);
/* Give it a stream over a transport, which is set to NULL then. */
int side_open(side *x, bk_loop *loop, bk_transport **transport);
/* Whatever state it is in. Checks that nothing is missing: closed(), releases. */
void pair_close(pair *p);
/* Its two halves, for several pairs on a loop: before the loop is freed, and after. */
void pair_abort(pair *p);
void pair_check(pair *p);

/* One turn of a case that waits for something; false: it is over. */
bool pair_turn(pair *p);
#define UNTIL(p, what)                                                                             \
    do {                                                                                           \
        while (!(what))                                                                            \
            if (!pair_turn(p))                                                                     \
                goto out;                                                                          \
    } while (0)
/* Until all that was sent has come, both ways; then close both, in good order. */
void pair_finish(pair *p);

/* Send the next n bytes of the pattern. False: it failed, and somebody was told. */
bool side_send(side *x, size_t n, pair_mode mode);
/* Send up to the goal, in pieces, stopping when blocked; writable() goes on with it. */
void side_pump(side *x);
void side_pause(side *x);
void side_resume(side *x);
void side_close(side *x);
void side_abort(side *x);

unsigned char pair_pattern(int index, uint64_t position);

/* A transport that holds another: counts, moves no more than `most` bytes at a time, and mixes
   `key` into each. counts may be NULL. Owns inner when it succeeds. */
int filter_new(bk_transport *inner, size_t most, unsigned char key, filter_counts *counts,
               bk_transport **ret_transport);

#endif
