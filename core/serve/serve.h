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

/* Decimal digits and nothing else, up to high; -EINVAL. */
static inline int64_t bk_parse_number(const char *text, int64_t high) {
    int64_t number = 0;
    if (*text == '\0')
        return -EINVAL;
    for (; *text != '\0'; text++) {
        int digit = *text - '0';
        if (digit < 0 || digit > 9 || number > (high - digit) / 10)
            return -EINVAL;
        number = number * 10 + digit;
    }
    return number;
}

/* Where in the text an option begins; 0: it is not there. */
size_t bk_endpoint_position(const bk_endpoint *endpoint, const char *key);

/* Where in the text the authority ends: where a port would stand. */
size_t bk_endpoint_authority_end(const bk_endpoint *endpoint);

/* Undo bk_endpoint_parse's decoding: text with all but plain characters percent-encoded, into room,
   of which it needs at most 3 * strlen(text) + 1 bytes. Returns the end. */
char *bk_endpoint_encode(const char *text, char *room);

/* "scheme:path", encoded, in memory that is the caller's; NULL: there is none. */
char *bk_endpoint_format(bk_os *os, const char *scheme, const char *path);

/* ---- Schemes (scheme.c) ---- */

extern const bk_scheme bk_scheme_tcp, bk_scheme_unix, bk_scheme_stdio, bk_scheme_fd,
    bk_scheme_memory, bk_scheme_process, bk_scheme_systemd;

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
    void (*free)(bk_client_front *f);
};

/* (connect.c) From its opened(): the stream gets that transport, and whoever is next has it. And
   its closed(): the connection never came to be, and whoever it was for is told. */
void bk_client_front_done(bk_stream *s, bk_transport *transport);
void bk_client_front_closed(bk_stream *s, int why);

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
/* As bk_listen_fd(), over several sockets; name NULL: that of the first. */
int bk_listen_fds(bk_loop *loop, const int *fds, int count, const char *name,
                  const bk_protocol *protocol, bk_listener **ret_listener);

/* For listeners that bring one stream, as stdio does: that stream is no more. */
void bk_listener_end(bk_listener *listener);

/* One stream, over a transport that is there already; made when the loop next runs. The transport
   is closed when this fails. */
int bk_listen_once(bk_loop *loop, const char *name, bk_transport *transport,
                   const bk_protocol *protocol, bk_listener **ret_listener);

/* ---- Descriptors that others have opened (fd.c) ---- */

bool bk_fd_is_listening(bk_os *os, int fd);
/* A transport over a connected socket, a pipe, or whatever it is. */
int bk_fd_open(bk_loop *loop, int fd, bk_error *error, bk_transport **ret_transport);

/* ---- Accepting (accept.c) ---- */

/* Accepts on up to `room` listening sockets. */
int bk_acceptor_new(bk_loop *loop, const bk_protocol *protocol, int room,
                    bk_acceptor **ret_acceptor);
/* The socket is the acceptor's from then on. */
void bk_acceptor_add(bk_acceptor *a, int fd);
/* The same for one that somebody else made, and that may block. */
int bk_acceptor_adopt(bk_acceptor *a, int fd, bool borrowed);
/* Give back the sockets, as they were, to whoever added them. */
void bk_acceptor_drop(bk_acceptor *a);
/* Watch them. */
int bk_acceptor_start(bk_acceptor *a);
/* Watch them no more for now, or go on, when nobody wants a pause any longer. */
enum { BK_PAUSE_OWNER = 1, BK_PAUSE_RATE = 2, BK_PAUSE_FULL = 4 };
int bk_acceptor_pause(bk_acceptor *a, unsigned who, bool on);
/* Accept what waits there, even while it is paused. */
void bk_acceptor_drain(bk_acceptor *a);
/* Others accept from the same sockets. */
void bk_acceptor_share(bk_acceptor *a);
int bk_acceptor_sockets(const bk_acceptor *a, int *ret_sockets, int room);
/* The listener of an acceptor that has started; both, or neither, are closed from then on. */
int bk_acceptor_listener(bk_acceptor *a, const char *name, void (*close)(void *arg), void *arg,
                         bk_listener **ret_listener);
/* Closes the sockets; a bk_acceptor * as the argument, for bk_listener_new(). */
void bk_acceptor_free(void *arg);

/* A connected socket gets a stream and the protocol, or is closed, which the log is told of. */
void bk_welcome(bk_loop *loop, int fd, const struct sockaddr *peer, unsigned size,
                const bk_protocol *protocol);

/* ---- Connecting (connect.c) ---- */

/* Each makes a stream that connects: to a name, to an address, or over what is there already (a
   transport, which is closed when this fails). opened() never comes from within the call. */
int bk_connect_name(bk_loop *loop, const char *host, int port, const bk_protocol *protocol,
                    void *user, bk_stream **ret_stream);
int bk_connect_address(bk_loop *loop, const struct sockaddr *address, unsigned size,
                       const bk_protocol *protocol, void *user, bk_stream **ret_stream);
int bk_connect_transport(bk_loop *loop, bk_transport *transport, const bk_protocol *protocol,
                         void *user, bk_stream **ret_stream);
/* One that will hear of that failure. */
int bk_connect_failed(bk_loop *loop, int why, const bk_protocol *protocol, void *user,
                      bk_stream **ret_stream);

/* ---- The PROXY protocol (proxy.c; proxy_header.c and proxy_trust.c serve it) ---- */

/* Endpoints that say proxy= (proxy_front.c): the options, and what they put in front. */
extern const char *const bk_proxy_keys[];
int bk_proxy_listen(bk_loop *loop, const bk_endpoint *endpoint, const bk_protocol *protocol,
                    bk_error *error, bk_listener_front **ret_front);
int bk_proxy_connect(bk_loop *loop, const bk_endpoint *endpoint, const bk_protocol *protocol,
                     bk_error *error, bk_client_front **ret_front);

/* Whose PROXY headers are believed. */
typedef struct bk_proxy_trust {
    bool local; /* of peers without an IP address: UNIX sockets, pipes */
    int count;
    struct {
        uint8_t address[16]; /* IPv4 as ::ffff:a.b.c.d */
        uint8_t bits;
    } networks[BK_PROXY_NETWORKS];
} bk_proxy_trust;

/* "10.0.0.0/8,::1,unix": addresses, networks, and the word for peers without an IP address. NULL:
   this machine. BK_EOPTION, or BK_ELIMIT, with the position in text, in error (may be NULL). */
int bk_proxy_trust_parse(const char *text, bk_proxy_trust *ret_trust, bk_error *error);

/* size 0: a peer without any address. IPv4 peers match IPv4 networks, however they are written. */
bool bk_proxy_trusts(const bk_proxy_trust *trust, const struct sockaddr *peer, unsigned size);

/* Of a server: a transport over inner that reads a PROXY header, version 1 or 2, when it opens, and
   then says the peer to be whom that names. From a peer that is not trusted no byte is looked at.
   Opening fails with
     BK_EPROXY      what should be a header is malformed; or `required`, and it is none
     BK_ELIMIT      a header longer than BK_PROXY_HEADER_BYTES
     BK_ETRUNCATED  the input ended within a header; or `required`, before one
     -ETIMEDOUT     it did not come in BK_PROXY_HEADER_MS
     -EACCES        `required`, and the peer is not trusted
   Not `required`: what does not begin as a header does is data, and so is all that an untrusted
   peer sends: ret_transport is inner itself then. The first bytes are waited for all the same:
   where the server speaks first, a trusted peer must send a header. inner is the caller's again
   when this fails. */
int bk_proxy_read(bk_loop *loop, bk_transport *inner, const bk_proxy_trust *trust, bool required,
                  bk_transport **ret_transport);

/* Of a client: a transport over inner that sends a PROXY header when it opens, version 1 or 2
   (others: -EINVAL). source NULL: this side of inner; destination NULL: inner's peer. What is no
   address the protocol has words for is told as unknown, or as the proxy's own connection. */
int bk_proxy_send(bk_loop *loop, bk_transport *inner, int version, const struct sockaddr *source,
                  unsigned source_size, const struct sockaddr *destination,
                  unsigned destination_size, bk_transport **ret_transport);

enum {
    BK_PROXY_ADDRESS_BYTES = 216, /* the longest pair of addresses: of UNIX sockets */
    BK_PROXY_SENT_BYTES = 16 + BK_PROXY_ADDRESS_BYTES,
};

typedef struct bk_proxy_header {
    size_t size;    /* what is behind it are data */
    bool relayed;   /* for somebody; else it is the proxy's own connection */
    uint8_t family; /* AF_INET, AF_INET6, AF_UNIX; AF_UNSPEC: it tells no addresses */
    uint8_t addresses[BK_PROXY_ADDRESS_BYTES]; /* as version 2 has them */
} bk_proxy_header;

/* 1: a header, whole; 0: it may become one; -ENOMSG: it is none; BK_EPROXY and BK_ELIMIT as above.
   Where the input was cut makes no difference. */
int bk_proxy_header_parse(const void *data, size_t n, bk_proxy_header *ret_header);

/* How long the header is that begins so, as far as can be told: version 1 may turn out shorter, and
   version 2 longer until 16 bytes are there. 0: not even whether it is one. */
size_t bk_proxy_header_length(const void *data, size_t n);

/* A header into room; returns its size. */
size_t bk_proxy_header_make(int version, const struct sockaddr *source, unsigned source_size,
                            const struct sockaddr *destination, unsigned destination_size,
                            uint8_t room[BK_PROXY_SENT_BYTES]);

/* How many bytes the addresses of a family have; and one of them as a sockaddr, whose size is
   returned. */
size_t bk_proxy_addresses_size(int family);
unsigned bk_proxy_address(int family, const uint8_t *addresses, bool source,
                          struct sockaddr_storage *ret_address);

/* An IP address as one of IPv6, IPv4 as ::ffff:a.b.c.d, and its port. False: it is none. */
bool bk_proxy_ip(const struct sockaddr *address, unsigned size, uint8_t ret_ip[16],
                 uint8_t ret_port[2]);
bool bk_proxy_is_ipv4(const uint8_t ip[16]);

#endif
