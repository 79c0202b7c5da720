/*
 * serve.h: what the files of core/serve share: errors told to a person, the schemes built in, what
 * accepts for a listener, and what connects for a stream. Also for the Python extension, which is
 * linked with the core. What the public functions do is told in becket.h.
 */
#ifndef BK_SERVE_H
#define BK_SERVE_H

#include "core/error.h"
#include "core/loop/loop.h"
#include "core/stream/stream.h"

#if defined(_WIN32)
#include <winsock2.h>
#include <ws2tcpip.h>
#include <afunix.h>
#else
#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/un.h>
#endif

/* ---- Endpoints (endpoint.c) ---- */

/* The number an option has; ret_number keeps what it was when the option is not there. */
int bk_endpoint_number(const bk_endpoint *endpoint, const char *key, int base, long low, long high,
                       long *ret_number, bk_error *error);

/* Where in the text the authority ends: where a port would stand. */
size_t bk_endpoint_authority_end(const bk_endpoint *endpoint);

/* Undo bk_endpoint_parse's decoding: text with all but plain characters percent-encoded, into room,
   of which it needs at most 3 * strlen(text) + 1 bytes. Returns the end. */
char *bk_endpoint_encode(const char *text, char *room);

/* ---- Schemes (scheme.c) ---- */

extern const bk_scheme bk_scheme_tcp, bk_scheme_unix, bk_scheme_stdio, bk_scheme_fd;

/* What each stream of a listener goes through before the protocol has it. One file a front: gate.c,
   tls.c. A listener owns its fronts, and its streams meet them in the order of its list. */
typedef struct bk_listener_front bk_listener_front;
struct bk_listener_front {
    bk_front front;          /* base.opened() takes a stream; front.protocol has it next */
    bk_listener_front *next; /* of the same listener */
    bk_listener *listener;   /* once there is one */
    int (*listening)(bk_listener_front *f); /* optional: the listener is there: name it */
    void (*reload)(bk_listener_front *f);   /* optional: read files again */
    void (*stop)(bk_listener_front *f);     /* optional: no more streams will come */
    void (*free)(bk_listener_front *f);     /* … and the last that held the listener is gone */
};

/* The same for one connection of a client. It frees itself when it has passed the stream on, or
   when the connection came to nothing. */
typedef struct bk_client_front bk_client_front;
struct bk_client_front {
    bk_front front;
    void (*free)(bk_client_front *f); /* connecting was never begun */
};

/* What can stand in front of any scheme, "tls+unix:path", and puts a transport of its own on each
   of that scheme's streams. By itself it stands in front of tcp. */
typedef struct bk_cover bk_cover;
struct bk_cover {
    const char *name;
    const char *const *options;
    int (*listen)(bk_loop *loop, const bk_cover *cover, const bk_endpoint *endpoint,
                  const bk_protocol *protocol, bk_error *error, bk_listener_front **ret_front);
    int (*connect)(bk_loop *loop, const bk_cover *cover, const bk_endpoint *endpoint,
                   const bk_protocol *protocol, bk_error *error, bk_client_front **ret_front);
};

extern const bk_cover bk_cover_tls, bk_cover_starttls;

/* Parse text and find its scheme, and its cover (NULL: none), whose options it keeps to. On success
   ret_endpoint is to be cleared by the caller. */
int bk_scheme_open(bk_loop *loop, const char *text, bk_endpoint *ret_endpoint,
                   const bk_scheme **ret_scheme, const bk_cover **ret_cover, bk_error *error);

/* ---- Limits (gate.c) ---- */

int bk_gate_front(bk_loop *loop, bk_gate *gate, bool handshakes, const bk_protocol *protocol,
                  bk_error *error, bk_listener_front **ret_front);

/* ---- Listeners (listener.c) ---- */

typedef struct bk_acceptor bk_acceptor;

struct bk_listener {
    bk_loop *loop;
    bk_listener *next, **link; /* in loop->listeners */
    void (*close)(void *arg);
    void *arg;
    char *name;
    bk_acceptor *acceptor; /* NULL: it is not sockets that are listened at */
    bk_listener_front *fronts;
    uint32_t users; /* who holds it, beside its owner */
    bool closed;
    void (*crowd)(void *arg, int change); /* told of each that a gate lets in (1), and of its end */
    void *crowd_arg;
    bk_fn ended; /* told when all that could ever come in here has come and gone: bk_serve() */
    void *ended_arg;
    bool over; /* … and that has happened */
};

int bk_listener_rename(bk_listener *listener, const char *name);

/* It, its name and its fronts stay while somebody holds it, closed or not. */
void bk_listener_hold(bk_listener *listener);
void bk_listener_drop(bk_listener *listener);

/* For listeners that bring one stream, as stdio does: that stream is no more. */
void bk_listener_end(bk_listener *listener);

/* One stream, over a transport that is there already; made when the loop next runs. The transport
   is the caller's again when this fails. */
int bk_listen_once(bk_loop *loop, const char *name, bk_transport *transport,
                   const bk_protocol *protocol, bk_listener **ret_listener);

/* ---- Accepting (accept.c) ---- */

/* Accepts on up to `room` listening sockets. */
int bk_acceptor_new(bk_loop *loop, const bk_protocol *protocol, int room,
                    bk_acceptor **ret_acceptor);
/* The socket is the acceptor's from then on. */
void bk_acceptor_add(bk_acceptor *a, int fd);
/* Give back the sockets to whoever added them. */
void bk_acceptor_drop(bk_acceptor *a);
/* Watch them. */
int bk_acceptor_start(bk_acceptor *a);
/* Watch them no more for now, or go on, when nobody wants a pause any longer. */
enum { BK_PAUSE_OWNER = 1, BK_PAUSE_RATE = 2, BK_PAUSE_FULL = 4 };
int bk_acceptor_pause(bk_acceptor *a, unsigned who, bool on);
int bk_acceptor_sockets(const bk_acceptor *a, int *ret_sockets, int room);
/* The listener of an acceptor that has started; both, or neither, are closed from then on. */
int bk_acceptor_listener(bk_acceptor *a, const char *name, void (*close)(void *arg), void *arg,
                         bk_listener **ret_listener);
/* Closes the sockets; a bk_acceptor * as the argument, for bk_listener_new(). */
void bk_acceptor_free(void *arg);

/* ---- Connecting (connect.c) ---- */

/* Each makes a stream that connects: to a name, to an address, or over what is there already (the
   transport is the caller's again when this fails). opened() never comes from within the call. */
int bk_connect_name(bk_loop *loop, const char *host, int port, const bk_protocol *protocol,
                    void *user, bk_stream **ret_stream);
int bk_connect_address(bk_loop *loop, const struct sockaddr *address, unsigned size,
                       const bk_protocol *protocol, void *user, bk_stream **ret_stream);
int bk_connect_transport(bk_loop *loop, bk_transport *transport, const bk_protocol *protocol,
                         void *user, bk_stream **ret_stream);

#endif
