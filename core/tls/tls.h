/*
 * tls.h: what the files of core/tls share, and what the Python extension, which is linked with the
 * core, uses of them. What the public functions do is told in becket-tls.h.
 */
#ifndef BK_TLS_H
#define BK_TLS_H

#include "core/stream/stream.h"

#include <becket-tls.h>

extern const bk_tls_engine bk_tls_engine_openssl, bk_tls_engine_gnutls, bk_tls_engine_mbedtls;

/* ---- Contexts (context.c) ---- */

typedef struct bk_tls_name {
    struct bk_tls_name *next;
    bk_tls_context *context;
    char name[];
} bk_tls_name;

/* What was kept of a client's connection to a name, for the next one. */
typedef struct bk_tls_session {
    struct bk_tls_session *next;
    size_t name_size, size;
    char bytes[]; /* the name with its NUL, then the session */
} bk_tls_session;

/* How a transport goes about its business, whoever made its engine. */
typedef struct bk_tls_manners {
    int64_t handshake_ns, linger_ns;
    bool allow_truncation;
} bk_tls_manners;

struct bk_tls_context {
    bk_os *os;
    const bk_tls_engine *engine;
    void *state; /* the engine's */
    atomic_uint references;
    bool server, no_tickets, verifies;
    bk_tls_manners manners;
    void (*choose)(void *arg, bk_tls_hello *hello);
    void *arg;
    bk_tls_name *names;
    bk_tls_session *sessions;
};

/* The whole of a file, for bk_tls_forget(), which overwrites it. */
int bk_tls_read_file(bk_os *os, const char *what, const char *path, bk_span *ret_text,
                     bk_error *error);
void bk_tls_forget(bk_os *os, bk_span *text);

/* FNV-1a: whether bytes are still the same, where nobody means to deceive. Begins with, or goes on
   from, `digest`. */
#define BK_TLS_DIGEST UINT64_C(0xcbf29ce484222325)
static inline uint64_t bk_tls_digest(uint64_t digest, const void *data, size_t n) {
    const unsigned char *at = data;
    for (size_t i = 0; i < n; i++)
        digest = (digest ^ at[i]) * UINT64_C(0x100000001b3);
    return digest;
}

/* A certificate that signs itself and its key, as PEM, each for bk_tls_forget() (certificate.c). */
int bk_tls_make_certificate(bk_os *os, bk_span *ret_certificate, bk_span *ret_key, bk_error *error);

/* Engines ask for names, but never for IP addresses (RFC 6066 3). 0: this is none; else how many
   bytes it has. */
size_t bk_tls_address(const char *name, unsigned char ret_address[16]);

/* Another of the same engine, made of files that have changed. For workers: which engines a loop
   has, and what BECKET_TLS says, is only to be asked on the loop's thread. */
int bk_tls_context_renew(const bk_tls_context *old, const bk_tls_config *config, bk_error *error,
                         bk_tls_context **ret_context);

/* The context for a name a client asks for, or NULL. */
bk_tls_context *bk_tls_context_find(const bk_tls_context *context, const char *name);
bk_span bk_tls_context_session(const bk_tls_context *context, const char *name);
void bk_tls_context_keep(bk_tls_context *context, const char *name, const void *data, size_t n);

/* ---- Client hellos (hello.c) ---- */

enum { BK_TLS_NAME_BYTES = 256 };

/* Find the name that a client asks for (RFC 6066 3) in what it sent first: 1, and ret_name, in
   lower case, "" when there is none; 0: more is needed; negative: this is no hello, or there was no
   memory. */
int bk_hello_find_name(bk_os *os, const void *data, size_t n, char ret_name[BK_TLS_NAME_BYTES]);

/* A client's name that waits for its context, between transport.c and whoever chooses. */
struct bk_tls_hello {
    bk_os *os;
    bk_transport *transport; /* NULL: gone */
    bk_tls_context *context; /* the answer */
    bool answered;
    char name[BK_TLS_NAME_BYTES];
};

/* ---- The transport (transport.c) ---- */

/* Where an engine's ciphertext goes on its way to the peer. */
struct bk_tls_out {
    bk_os *os;
    char *bytes;
    size_t from, used, room;
    bk_error *error;         /* why the engine failed; NULL: nobody listens */
    bk_tls_context *context; /* where sessions are kept; NULL: nowhere */
    const char *name;        /* … under this */
};

/* As bk_tls_transport(), over an engine that is there already and is then the transport's. */
int bk_tls_transport_over(bk_loop *loop, bk_transport *inner, bk_tls *engine,
                          const bk_tls_manners *manners, bk_transport **ret_transport);
/* How it goes about its business, if not as its context says; before it opens. */
void bk_tls_transport_set_manners(bk_transport *t, const bk_tls_manners *manners);
/* The engine of a transport of ours; NULL: it is none, or has no engine yet. */
bk_tls *bk_tls_transport_engine(bk_transport *t);
/* Of a stream that is closed: close the engines now, before those who made them let go of them. */
void bk_tls_transport_close_engines(bk_transport *t);
/* The time for the end (linger_ns) begins now, with what is still to be sent. */
void bk_tls_transport_limit_end(bk_transport *t);
/* Close one that was not put in place: what it holds is the stream's. */
void bk_tls_transport_abandon(bk_transport *t);
/* What it holds, if it is ours, through all layers of TLS and offers; else t. */
bk_transport *bk_tls_transport_innermost(bk_transport *t);
/* What was read already and is to go into TLS: ciphertext that came with what went before. */
int bk_tls_transport_feed(bk_transport *t, const void *data, size_t n);
/* Put it in place of the stream's transport, which it holds: what is queued goes first. */
int bk_tls_transport_start(bk_transport *t, bk_stream *s);
/* bk_stream_start_tls() with what the endpoint offers; and n bytes that go out in plain before, if
   TLS can be started. */
int bk_stream_start_tls_after(bk_stream *s, const void *last, size_t n);

/* ---- Offers (offer.c) ---- */

/* A transport that passes everything on, and says that TLS may be started with that context. */
int bk_tls_offer(bk_loop *loop, bk_transport *inner, bk_tls_context *context,
                 const char *server_name, bk_transport **ret_transport);
/* What a transport offers, borrowed from it; -ENOTSUP for any other transport. */
int bk_tls_offer_context(bk_transport *t, bk_tls_context **ret_context,
                         const char **ret_server_name);
/* What an offer holds; NULL: it is none. */
bk_transport *bk_tls_offer_inner(const bk_transport *t);

/* ---- OpenSSL (openssl.c) ---- */

/* An engine over an SSL * that somebody else made and will free, after the engine is closed: our
   BIO is put under it. handshake (may be NULL) goes before SSL_do_handshake(): 0: it is over;
   -EAGAIN; or broken, told by bk_tls_fail(). */
typedef struct bk_openssl_host {
    int (*handshake)(void *arg, bk_tls_out *out);
    void *arg;
} bk_openssl_host;
int bk_openssl_adopt(bk_os *os, void *ssl, const bk_openssl_host *host, bk_tls **ret_tls);

#endif
