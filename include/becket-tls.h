/*
 * becket-tls.h: TLS for C programs, and for whoever brings an engine of their own.
 *
 * TLS is a transport that holds a transport. What it seals and opens with is an engine: OpenSSL,
 * GnuTLS, mbedTLS, or yours. An engine is handed ciphertext and hands ciphertext back; it owns no
 * socket and never waits. Endpoints (tls://host:port?cert=site.pem) need nothing of this page.
 *
 *     bk_tls_config config = {.size = sizeof config, .server = 1, .certificate = "site.pem"};
 *     bk_tls_context *context;
 *     bk_error error;
 *     int code = bk_tls_context_new(loop, &config, &error, &context);
 *     …
 *     bk_stream_start_tls(stream, context, NULL);     // in mid-stream, after 220 Ready
 *
 * The conventions are those of becket.h.
 */
#ifndef BECKET_TLS_H
#define BECKET_TLS_H

#include <becket.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct bk_tls bk_tls;
typedef struct bk_tls_ops bk_tls_ops;
typedef struct bk_tls_out bk_tls_out;
typedef struct bk_tls_hello bk_tls_hello;
typedef struct bk_tls_engine bk_tls_engine;
typedef struct bk_tls_context bk_tls_context;

typedef struct bk_span {
    const void *base;
    size_t size;
} bk_span;

/* Versions of the protocol, as it writes them itself. */
enum { BK_TLS_1_2 = 0x0303, BK_TLS_1_3 = 0x0304 };

/* Whether the peer must show a certificate that a trusted authority signed. */
enum {
    BK_TLS_VERIFY_DEFAULT, /* clients: REQUIRED, and for the name they connect to; servers: NONE */
    BK_TLS_VERIFY_NONE,
    BK_TLS_VERIFY_OPTIONAL, /* servers: a client need not show one, but it must be good then */
    BK_TLS_VERIFY_REQUIRED,
};

/* ---- Contexts: what connections share -------------------------------------------------------- */

/* Zero it, but for `size`, and set what you need. Nothing is referred to after the call. */
typedef struct bk_tls_config {
    size_t size;
    const char *engine;      /* by name; NULL: BECKET_TLS, or the first that is there */
    int server;              /* 1: for servers; 0: for clients */
    const char *certificate; /* file, PEM: the chain, leaf first; servers need one */
    const char *key;         /* file, PEM, not encrypted; NULL: it is in the certificate's file */
    const char *ca;          /* file, PEM: whom to trust; NULL: those the system trusts */
    int verify;              /* BK_TLS_VERIFY_… */
    const char *alpn;        /* RFC 7301, in order of preference, the server's first:
                                "h2,http/1.1"; NULL: none. A peer with others only is refused */
    int minimum, maximum;    /* BK_TLS_1_…; 0: 1.2, and the best the engine has */
    int development;         /* servers: a certificate is made up, and nobody trusts it */
    int no_tickets;          /* servers: sessions cannot be resumed; clients: they never try */
    int allow_truncation;    /* an end without close_notify is an end like any other */
    int64_t handshake_ns;    /* a handshake that takes longer fails with -ETIMEDOUT; 0: 60 s */
    int64_t linger_ns;       /* when closing, wait this long for the peer's close_notify, and
                                fail with -ETIMEDOUT; 0: do not wait */
    /* Optional; servers. Choose the context for the name the client asked for, in the end by
       bk_tls_choose(), at once or later. Names of bk_tls_context_add() come first. */
    void (*choose)(void *arg, bk_tls_hello *hello);
    void *arg;
} bk_tls_config;

/* Reads the files, which blocks: do it before you run, or in a worker. A missing file, a key that
   does not fit, an engine that is not there: a negative code, and ret_error (may be NULL) says
   which. The context is yours, by one reference. It may be used on any loop with the same bk_os,
   one thread at a time. */
BK_API int bk_tls_context_new(bk_loop *loop, const bk_tls_config *config, bk_error *ret_error,
                              bk_tls_context **ret_context);
BK_API bk_tls_context *bk_tls_context_ref(bk_tls_context *context); /* returns it. Thread-safe. */
BK_API void bk_tls_context_unref(bk_tls_context *context);          /* NULL is fine. Thread-safe. */

/* Clients that ask for that name (or, for "*.site.test", for any one label in its place) get the
   other context's certificate. Adds a reference to `other`, whose own names are not looked at. */
BK_API int bk_tls_context_add(bk_tls_context *context, const char *name, bk_tls_context *other);

/* For `choose`: the name a client asked for, in lower case; "" when it named none. It must be
   answered exactly once, whatever became of the connection; with NULL: it is refused
   (unrecognized_name). Adds a reference to context. The loop's thread only. */
BK_API const char *bk_tls_hello_name(const bk_tls_hello *hello);
BK_API void bk_tls_choose(bk_tls_hello *hello, bk_tls_context *context);

/* ---- TLS on transports and streams ----------------------------------------------------------- */

/* A transport that seals what goes through another, which is then its own. server_name: for
   clients, whom to ask for and whom to verify (a name or an IP address); NULL: nobody. Adds a
   reference to context. On failure the other transport is still the caller's. */
BK_API int bk_tls_transport(bk_loop *loop, bk_transport *inner, bk_tls_context *context,
                            const char *server_name, bk_transport **ret_transport);

/* Start TLS in mid-stream. What was written before goes out in plain first; what is written
   meanwhile waits for the handshake, and counts as queued; the protocol's upgraded() tells when it
   is over, or closed() that it failed. The context NULL: the one the endpoint offers (starttls://),
   -ENOTSUP when it offers none. -EALREADY: a handshake is under way. What the peer sent before it
   heard of TLS must not be taken for something said under it: drop it before you call this. */
BK_API int bk_stream_start_tls(bk_stream *s, bk_tls_context *context, const char *server_name);

/* Change the key we send with, and ask the peer to change theirs (RFC 8446 4.6.3). -ENOTSUP without
   TLS, before TLS 1.3, and with engines that cannot. */
BK_API int bk_stream_rekey(bk_stream *s);

/* Questions for bk_stream_query(). -ENOTSUP without TLS and, but for the first and the last, before
   its handshake is over. */
enum {
    BK_QUERY_TLS = 100,    /* int: 1: this is TLS; 0: not yet, but start_tls is offered */
    BK_QUERY_TLS_ENGINE,   /* char[]: its name, "openssl" */
    BK_QUERY_TLS_VERSION,  /* char[]: "TLSv1.3" */
    BK_QUERY_TLS_CIPHER,   /* char[]: as the engine names it */
    BK_QUERY_TLS_BITS,     /* int: of the cipher's key */
    BK_QUERY_TLS_ALPN,     /* char[]: what was agreed on; "": nothing */
    BK_QUERY_TLS_NAME,     /* char[]: the name the client asked for; "": none */
    BK_QUERY_TLS_CERT,     /* bytes: the peer's certificate, DER; none shown: 0 of them */
    BK_QUERY_TLS_RESUMED,  /* int: whether an earlier session was resumed */
    BK_QUERY_TLS_WORDS,    /* char[]: what broke it, in the engine's own words; "": nothing */
    BK_QUERY_TLS_VERIFIED, /* int: whether a certificate that the peer shows is verified */
};

/* ---- Engines: how are bytes sealed? ---------------------------------------------------------- */

/* What step() returns. */
enum {
    BK_TLS_OPENING = 1, /* the handshake is not over */
    BK_TLS_ENDED = 2,   /* the peer's close_notify has come; what follows it is not looked at */
    BK_TLS_PENDING = 4, /* it holds plaintext that it found no room for; never with ENDED */
};

/*
 * One connection's engine. None of its functions waits, and none calls the transport; they are
 * called one at a time. tests/conformance/ has a suite to run over an implementation.
 * `out` is where ciphertext goes (bk_tls_send), and where failures are told (bk_tls_fail): after
 * one, the only calls that follow are query and close. An alert that tells the peer is sent first.
 */
struct bk_tls_ops {
    size_t size;
    const char *name;
    /* Take ciphertext from in and put plaintext into room, moving base and size of both past what
       was taken and put; handshakes, tickets and key updates are dealt with on the way, and their
       answers sent (that to a key update may wait for the next seal(), RFC 8446 4.6.3). It must
       take all of in, unless the room is too small, or the handshake has just ended, or
       close_notify came; the caller repeats it until nothing moves. The first call may come with
       nothing in: a client then sends its hello. The room may be of size 0. */
    int (*step)(bk_tls *tls, bk_span *in, bk_room *room, bk_tls_out *out);
    /* Seal all of plain, of size > 0; never before the handshake is over, nor after end. 0 or
       negative. */
    int (*seal)(bk_tls *tls, bk_span plain, bk_tls_out *out);
    /* Our direction is over: send close_notify. Reading goes on. Once. */
    int (*end)(bk_tls *tls, bk_tls_out *out);
    /* Let go of everything, tls too. */
    void (*close)(bk_tls *tls);
    /* Optional. Answer BK_QUERY_TLS_…, as bk_transport_ops.query does. */
    int (*query)(bk_tls *tls, int what, void *ret_value, size_t *size);
    /* Optional. Change our key, and ask the peer to change theirs (RFC 8446 4.6.3). -ENOTSUP before
       TLS 1.3. */
    int (*rekey)(bk_tls *tls, bk_tls_out *out);
};

/* The head of every connection's engine. */
struct bk_tls {
    const bk_tls_ops *ops;
};

/* For engines. send: ciphertext for the peer; 0, or -ENOMEM. */
BK_API int bk_tls_send(bk_tls_out *out, const void *data, size_t n);
/* Tell why it failed, in the library's own words (without a full stop). Returns code. */
BK_API int bk_tls_fail(bk_tls_out *out, int code, const char *format, ...)
#if defined(__GNUC__)
    __attribute__((format(printf, 3, 4)))
#endif
    ;
/* A client's session, in any form: a later connection to the same name is given it, to resume.
   Without memory it is forgotten. */
BK_API void bk_tls_keep_session(bk_tls_out *out, const void *data, size_t n);

/* What an engine makes a context of: all files have been read, all values checked. Texts are PEM,
   and a NUL follows their last byte. Everything but os is gone after the call. */
typedef struct bk_tls_settings {
    size_t size;
    const bk_tls_engine *engine; /* whose context_new() this is for */
    bk_os *os;
    int server;
    bk_span certificate, key; /* size 0: a client without one */
    bk_span ca;               /* size 0: the authorities that the system trusts */
    int verify;               /* never BK_TLS_VERIFY_DEFAULT */
    const char *const *alpn;  /* ended by NULL; NULL: none */
    int minimum, maximum;     /* maximum 0: the best there is */
    int no_tickets;
} bk_tls_settings;

/* A library, as a maker of contexts, and of connections' engines. */
struct bk_tls_engine {
    size_t size;
    const char *name; /* as in engine=… */
    /* Find the library. 0, or BK_ETLS_ENGINE, and error says what is missing. Called before all
       else, possibly often. Thread-safe. */
    int (*open)(bk_os *os, bk_error *error);
    /* After open: what it calls itself, "OpenSSL 3.0.19 27 Jan 2026". Static. */
    const char *(*version)(void);
    /* BK_ETLS_CONFIG: bad certificate, key, …: error (never NULL) names it. */
    int (*context_new)(const bk_tls_settings *settings, bk_error *error, void **ret_context);
    void (*context_free)(void *context);
    /* For a new connection. Clients: server_name is whom to ask for and to verify, a name without
       its final dot, or an IP address without its zone (which is not to be asked for, RFC 6066 3),
       NULL: nobody; and session is what was kept for that name, of size 0 when nothing was: one
       that is useless is to be ignored. */
    int (*connection_new)(void *context, const char *server_name, bk_span session,
                          bk_tls **ret_tls);
};

/* The engines built in, best first, ended by NULL; whether their libraries are here, open() tells.
   Static. Thread-safe. */
BK_API const bk_tls_engine *const *bk_tls_engines(void);

/* Another engine, for contexts made for this loop. -EEXIST. The table must outlive the loop. Not
   while a worker of yours makes a context. */
BK_API int bk_tls_engine_add(bk_loop *loop, const bk_tls_engine *engine);

#ifdef __cplusplus
}
#endif
#endif
