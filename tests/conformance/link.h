/*
 * link.h: a TLS client and a TLS server, each a side of a pair (pair.h), and between them two wires
 * on which nothing moves but by the hand of the case: byte by byte, cut, corrupted, held back. For
 * engine.c.
 *
 * All of it is in memory and on one loop. So when nothing moves, nothing ever will, and a case that
 * waits for something has failed at once, without any limit of time.
 */
#ifndef BK_CONFORM_LINK_H
#define BK_CONFORM_LINK_H

#include "tests/conformance/pair.h"

#include <becket-tls.h>

enum { CLIENT, SERVER };

/* What the cases of a run are about: c->subject. */
typedef struct link_subject {
    const bk_conform_engines *engines;
    int version; /* the one to be spoken; 0: the best that both have */
} link_subject;

/* What one side sends, on its way to the other. */
typedef struct wire {
    bk_transport *from, *to; /* the other ends of the sides' transports */
    unsigned char *bytes;    /* all that was ever sent; the case may change what has not moved */
    size_t used, room, moved;
    bool ended; /* the sender will send no more */
    bool told;  /* … and the receiver knows */
    bool gone;  /* the receiver takes no more */
    /* What the case wants. */
    size_t most; /* bytes that move at a time; 0: any number */
    size_t stop; /* how many may move in all */
    size_t held; /* how many may be on their way; beyond, the sender has to wait */
} wire;

typedef struct tls_link tls_link;
struct tls_link {
    bk_conform_case *c;
    pair p;
    side *client, *server;
    wire wires[2]; /* by who sends */
    bk_tls_config configs[2];
    bk_tls_context *contexts[2];
    const char *name; /* whom the client asks for */
    size_t capacity;  /* of the transports */
    bool plain[2];    /* without TLS: the case starts it in mid-stream, or never does */
    tls_link *also;   /* another on the same loop: it is closed together with this one */
    bk_error error;   /* of the contexts */
    int refused;      /* whose context failed */
    char words[2][240];
    bool stuck;
    char paths[8][320];
    int path_count;
};

/* With settings that are good, for the case to change. */
void link_init(tls_link *l, bk_conform_case *c);
/* A file in the folder of certificates; good until the link is closed. */
const char *link_path(tls_link *l, const char *name);
/* A loop, contexts and two streams; or only the first, or the first two. */
int link_open(tls_link *l);
int link_loop(tls_link *l);
int link_contexts(tls_link *l);
int link_join(tls_link *l);
/* After both streams have closed: two others, of the same contexts. */
int link_join_again(tls_link *l);
void link_close(tls_link *l);

/* Move what may move, and let the loop make one turn. False: the case is over, or nothing moves. */
bool link_turn(tls_link *l);
/* Until nothing moves. */
bool link_settle(tls_link *l);
void link_stuck(tls_link *l, const char *file, int line, const char *what);
#define AWAIT(l, what)                                                                             \
    do {                                                                                           \
        while (!(what))                                                                            \
            if (!link_turn(l)) {                                                                   \
                link_stuck(l, __FILE__, __LINE__, #what);                                          \
                goto out;                                                                          \
            }                                                                                      \
    } while (0)
#define SETTLE(l)                                                                                  \
    do {                                                                                           \
        if (!link_settle(l))                                                                       \
            goto out;                                                                              \
    } while (0)

/* Bytes that nobody sent, behind all that has been. */
void wire_inject(wire *w, const void *data, size_t n);
/* What has not moved never will: the end. */
void wire_cut(wire *w);

/* Until both have opened. False: they have not, and the case is over. */
bool link_opened(tls_link *l);
#define OPENED(l)                                                                                  \
    do {                                                                                           \
        if (!link_opened(l))                                                                       \
            goto out;                                                                              \
    } while (0)
/* Until all that was sent has come, both ways; then the client closes, and the server after it. */
void link_finish(tls_link *l);

#endif
