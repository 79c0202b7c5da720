/*
 * serve.h: what the files of core/serve share: errors told to a person, the schemes built in, what
 * accepts for a listener, and what connects for a stream. Also for the Python extension, which is
 * linked with the core. What the public functions do is told in becket.h.
 */
#ifndef BK_SERVE_H
#define BK_SERVE_H

#include "core/error.h"
#include "core/loop/loop.h"

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

/* What can stand in front of any scheme, "tls+unix:path", and puts a transport of its own on each
   of that scheme's streams. By itself it stands in front of tcp. The functions are a scheme's. */
typedef struct bk_cover bk_cover;
struct bk_cover {
    const char *name;
    const char *const *options;
    int (*listen)(bk_loop *loop, const bk_cover *cover, const bk_scheme *scheme,
                  const bk_endpoint *endpoint, const bk_protocol *protocol, bk_error *error,
                  bk_listener **ret_listener);
    int (*connect)(bk_loop *loop, const bk_cover *cover, const bk_scheme *scheme,
                   const bk_endpoint *endpoint, const bk_protocol *protocol, void *user,
                   bk_error *error, bk_stream **ret_stream);
};

extern const bk_cover bk_cover_tls, bk_cover_starttls;

/* Parse text and find its scheme, and its cover (NULL: none), whose options it keeps to. On success
   ret_endpoint is to be cleared by the caller. */
int bk_scheme_open(bk_loop *loop, const char *text, bk_endpoint *ret_endpoint,
                   const bk_scheme **ret_scheme, const bk_cover **ret_cover, bk_error *error);

/* ---- Listeners (listener.c) ---- */

struct bk_listener {
    bk_loop *loop;
    bk_listener *next, **link; /* in loop->listeners */
    void (*close)(void *arg);
    void (*reload)(void *arg); /* NULL: there is nothing to read again */
    void *arg;
    char *name;
    bk_fn ended; /* told when all that could ever come in here has come and gone: bk_serve() */
    void *ended_arg;
    bool over; /* … and that has happened */
};

int bk_listener_rename(bk_listener *listener, const char *name);

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

typedef struct bk_acceptor bk_acceptor;

/* Accepts on up to `room` listening sockets. */
int bk_acceptor_new(bk_loop *loop, const bk_protocol *protocol, int room,
                    bk_acceptor **ret_acceptor);
/* The socket is the acceptor's from then on. */
void bk_acceptor_add(bk_acceptor *a, int fd);
/* The same for one that somebody else made, and that may block. */
int bk_acceptor_adopt(bk_acceptor *a, int fd);
/* Give back the sockets, as they were, to whoever added them. */
void bk_acceptor_drop(bk_acceptor *a);
/* Watch them. */
int bk_acceptor_start(bk_acceptor *a);
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

#endif
