/*
 * openssl.c: the engine over OpenSSL 3. Ciphertext reaches it, and leaves it, by a BIO of ours that
 * reads from what step() was given and writes to what is sent: nothing is copied but by the library
 * itself. Called through the engine's table, and by the Python extension for an SSL object that
 * Python's ssl module made.
 */
#include "core/error.h"
#include "core/tls/libssl.h"
#include "core/tls/tls.h"

#include <stdio.h>

typedef struct openssl_context {
    bk_os *os;
    SSL_CTX *ctx;
    bool server;
    unsigned alpn_size;
    unsigned char alpn[]; /* each name after its length, RFC 7301 3.1 */
} openssl_context;

typedef struct openssl_tls {
    bk_tls base;
    bk_os *os;
    SSL *ssl;
    bk_span in;      /* what the library may read */
    bk_tls_out *out; /* where it writes; NULL: nobody called */
    bk_openssl_host host;
    bool adopted; /* the SSL object is somebody else's */
    bool opened, ended, no_memory;
} openssl_tls;

bk_libssl bk_ssl;

/* ---- The BIO ---- */

static int bio_read(BIO *bio, char *room, size_t n, size_t *ret_n) {
    openssl_tls *self = bk_ssl.BIO_get_data(bio);
    bk_ssl.BIO_clear_flags(bio, BK_BIO_FLAGS_RETRY);
    if (self == NULL || self->in.size == 0) {
        bk_ssl.BIO_set_flags(bio, BK_BIO_FLAGS_RETRY_READ);
        return 0;
    }
    if (n > self->in.size)
        n = self->in.size;
    memcpy(room, self->in.base, n);
    self->in.base = (const char *)self->in.base + n;
    self->in.size -= n;
    *ret_n = n;
    return 1;
}

static int bio_write(BIO *bio, const char *data, size_t n, size_t *ret_n) {
    openssl_tls *self = bk_ssl.BIO_get_data(bio);
    bk_ssl.BIO_clear_flags(bio, BK_BIO_FLAGS_RETRY);
    if (self == NULL || self->out == NULL)
        return 0;
    if (bk_tls_send(self->out, data, n) < 0) {
        self->no_memory = true;
        return 0;
    }
    *ret_n = n;
    return 1;
}

static long bio_ctrl(BIO *bio, int what, long number, void *arg) {
    (void)number, (void)arg;
    if (what == BK_BIO_CTRL_FLUSH || what == BK_BIO_CTRL_DUP)
        return 1;
    openssl_tls *self = what == BK_BIO_CTRL_PENDING ? bk_ssl.BIO_get_data(bio) : NULL;
    return self != NULL ? (long)self->in.size : 0;
}

/* SSL_get_error() wants an empty queue of errors before each call, and emptying it for each message
   costs more than all that we do; so we learn of close_notify by ourselves. */
static void told(const SSL *ssl, int what, int value) {
    openssl_tls *self = bk_ssl.BIO_get_data(bk_ssl.SSL_get_rbio(ssl));
    if (what == BK_SSL_CB_READ_ALERT && (value & 0xff) == BK_SSL_AD_CLOSE_NOTIFY && self != NULL)
        self->ended = true;
}

static int put_bio(openssl_tls *self) {
    BIO *bio = bk_ssl.BIO_new(bk_ssl.method);
    if (bio == NULL)
        return -ENOMEM;
    bk_ssl.BIO_set_data(bio, self);
    bk_ssl.BIO_set_init(bio, 1);
    bk_ssl.SSL_set_bio(self->ssl, bio, bio);
    bk_ssl.SSL_set_info_callback(self->ssl, told);
    return 0;
}

/* ---- The library ---- */

static int find_functions(bk_os *os, void *library, bk_libssl *ret_functions, bk_error *error) {
    static const char *const names[] = {
#define BK_NAME(result, name, arguments) #name,
        BK_LIBSSL(BK_NAME)
#undef BK_NAME
    };
    void *found[sizeof names / sizeof names[0]];
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        found[i] = os->symbol(os, library, names[i]);
        if (found[i] == NULL)
            return bk_error_set(error, BK_ETLS_ENGINE, 0,
                                "this OpenSSL has no %s; version 3 is needed", names[i]);
    }
    memcpy(ret_functions, found, sizeof found);
    return 0;
}

static int load_library(bk_os *os, bk_error *error) {
    static const char *const names[] = {"libssl.so.3", "libssl.3.dylib", "libssl-3-x64.dll",
                                        "libssl-3.dll", NULL};
    if (!BK_HAS(os, library) || !BK_HAS(os, symbol))
        return bk_error_set(error, BK_ETLS_ENGINE, 0, "this bk_os loads no libraries");
    void *library = os->library(os, names, 1);
    if (library == NULL)
        library = os->library(os, names, 0);
    if (library == NULL)
        return bk_error_set(error, BK_ETLS_ENGINE, 0, "OpenSSL 3 (libssl.so.3) is not here");
    int code = find_functions(os, library, &bk_ssl, error);
    if (code < 0)
        return code;
    bk_ssl.method =
        bk_ssl.BIO_meth_new(bk_ssl.BIO_get_new_index() | BK_BIO_TYPE_SOURCE_SINK, "becket");
    if (bk_ssl.method == NULL)
        return bk_error_set(error, -ENOMEM, 0, "%s", bk_strerror(-ENOMEM));
    bk_ssl.BIO_meth_set_read_ex(bk_ssl.method, bio_read);
    bk_ssl.BIO_meth_set_write_ex(bk_ssl.method, bio_write);
    bk_ssl.BIO_meth_set_ctrl(bk_ssl.method, bio_ctrl);
    return 0;
}

static int openssl_open(bk_os *os, bk_error *error) {
    static atomic_int state; /* 0: not loaded; 1: somebody is about it; 2: loaded */
    int expected = 0;
    while (!atomic_compare_exchange_weak(&state, &expected, 1)) {
        if (expected == 2)
            return 0;
        expected = 0;
    }
    int code = load_library(os, error);
    atomic_store(&state, code == 0 ? 2 : 0);
    return code;
}

static const char *openssl_version(void) {
    return bk_ssl.OpenSSL_version(0);
}

/* ---- Errors ---- */

/* SSL_R_…; 1000 and more: an alert of that number, from the peer. */
static int code_of_reason(int reason) {
    switch (reason) {
    case 101:       /* NO_SUITABLE_KEY_SHARE */
    case 118:       /* NO_SUITABLE_SIGNATURE_ALGORITHM */
    case 181:       /* NO_CIPHERS_AVAILABLE */
    case 193:       /* NO_SHARED_CIPHER */
    case 295:       /* NO_SUITABLE_GROUPS */
    case 376:       /* NO_SHARED_SIGNATURE_ALGORITHMS */
    case 410:       /* NO_SHARED_GROUPS */
    case 1000 + 40: /* handshake failure */
        return BK_ETLS_CIPHER;
    case 191: /* NO_PROTOCOLS_AVAILABLE */
    case 252: /* UNKNOWN_PROTOCOL */
    case 258: /* UNSUPPORTED_PROTOCOL */
    case 396: /* VERSION_TOO_LOW */
    case 1000 + 70:
        return BK_ETLS_VERSION;
    case 235: /* NO_APPLICATION_PROTOCOL */
    case 1000 + 120:
        return BK_ETLS_ALPN;
    case 134: /* CERTIFICATE_VERIFY_FAILED */
        return BK_ETLS_UNTRUSTED;
    case 199: /* PEER_DID_NOT_RETURN_A_CERTIFICATE */
        return BK_ETLS_NO_CERTIFICATE;
    case 147: /* DECRYPTION_FAILED */
    case 281: /* DECRYPTION_FAILED_OR_BAD_RECORD_MAC */
        return BK_ETLS_RECORD;
    case 339: /* NO_RENEGOTIATION */
    case 1000 + 100:
        return BK_ETLS_RENEGOTIATION;
    case 1000 + 112:
        return BK_ETLS_NAME;
    case 1000 + 71: /* insufficient security */
        return BK_ETLS_CIPHER;
    default:
        return reason > 1000 && reason < 1256 ? BK_ETLS_ALERT : BK_ETLS_PROTOCOL;
    }
}

/* Reasons that all of its parts share, and that are its own trouble, are marked by these bits. */
static bool is_own_trouble(unsigned long error) {
    return (error & 0x7fffff) >> 18 != 0;
}

/* X509_V_ERR_HOSTNAME_MISMATCH, _EMAIL_, _IP_ADDRESS_ */
static bool is_wrong_name(long result) {
    return result >= 62 && result <= 64;
}

/* What is uppermost in the library's queue, as a failure of ours. */
static int fail(openssl_tls *self, bk_tls_out *out) {
    unsigned long error = bk_ssl.ERR_peek_last_error();
    const char *words = error != 0 ? bk_ssl.ERR_reason_error_string(error) : NULL;
    if (self->no_memory)
        return bk_tls_fail(out, -ENOMEM, "%s", bk_strerror(-ENOMEM));
    if (words == NULL)
        words = "the connection cannot go on";
    int code = BK_ETLS;
    if (is_own_trouble(error) && (error & 0x3ffff) == 256) /* ERR_R_MALLOC_FAILURE */
        code = -ENOMEM;
    else if ((error >> 23 & 0xff) == BK_ERR_LIB_SSL && !is_own_trouble(error))
        code = code_of_reason((int)(error & 0x7fffff));
    if (code == BK_ETLS_CIPHER && self->opened) /* an alert that has that meaning before only */
        code = BK_ETLS_ALERT;
    if (code == BK_ETLS_UNTRUSTED) {
        long result = bk_ssl.SSL_get_verify_result(self->ssl);
        code = is_wrong_name(result) ? BK_ETLS_WRONG_NAME : code;
        (void)bk_tls_fail(out, code, "%s: %s", words, bk_ssl.X509_verify_cert_error_string(result));
    } else {
        (void)bk_tls_fail(out, code, "%s", words);
    }
    bk_ssl.ERR_clear_error();
    return code;
}

static int fail_config(bk_error *error, const char *what) {
    unsigned long last = bk_ssl.ERR_peek_last_error();
    const char *words = last != 0 ? bk_ssl.ERR_reason_error_string(last) : NULL;
    int code = bk_error_set(error, BK_ETLS_CONFIG, 0, "%s: %s", what,
                            words != NULL ? words : "it cannot be used");
    bk_ssl.ERR_clear_error();
    return code;
}

/* ---- Contexts ---- */

/* Reading certificates went on to the end of the text: that there is no further one is an error. */
static bool is_at_end(void) {
    unsigned long error = bk_ssl.ERR_peek_last_error();
    return (error >> 23 & 0xff) == BK_ERR_LIB_PEM && (error & 0x7fffff) == BK_PEM_NO_START_LINE;
}

/* Nobody is there who could be asked. */
static int no_password(char *room, int size, int writing, void *arg) {
    (void)room, (void)size, (void)writing;
    *(bool *)arg = true;
    return -1;
}

static int use_chain(SSL_CTX *ctx, bk_span pem, bk_error *error) {
    bool encrypted = false;
    BIO *bio = bk_ssl.BIO_new_mem_buf(pem.base, (int)pem.size);
    X509 *leaf = bio == NULL ? NULL : bk_ssl.PEM_read_bio_X509(bio, NULL, no_password, &encrypted),
         *next;
    int code = 0;
    if (leaf == NULL || bk_ssl.SSL_CTX_use_certificate(ctx, leaf) != 1)
        code = fail_config(error, "cert: no certificate in PEM was found");
    while (code == 0 && (next = bk_ssl.PEM_read_bio_X509(bio, NULL, no_password, &encrypted)))
        if (bk_ssl.SSL_CTX_ctrl(ctx, BK_SSL_CTRL_CHAIN_CERT, 0, next) != 1) {
            bk_ssl.X509_free(next);
            code = fail_config(error, "cert: the chain");
        }
    if (code == 0 && !is_at_end())
        code = fail_config(error, "cert: a certificate of the chain is damaged");
    bk_ssl.ERR_clear_error(); /* the end of the file was one */
    bk_ssl.X509_free(leaf);
    bk_ssl.BIO_free(bio);
    return code;
}

static int use_key(SSL_CTX *ctx, bk_span pem, bk_error *error) {
    bool encrypted = false;
    BIO *bio = bk_ssl.BIO_new_mem_buf(pem.base, (int)pem.size);
    EVP_PKEY *key =
        bio == NULL ? NULL : bk_ssl.PEM_read_bio_PrivateKey(bio, NULL, no_password, &encrypted);
    int code = 0;
    if (encrypted)
        code = fail_config(error, "key: it is encrypted; store it without a password");
    else if (key == NULL)
        code = fail_config(error, "key: no private key in PEM was found");
    else if (bk_ssl.SSL_CTX_use_PrivateKey(ctx, key) != 1 ||
             bk_ssl.SSL_CTX_check_private_key(ctx) != 1)
        code = fail_config(error, "key: it does not fit the certificate");
    bk_ssl.ERR_clear_error();
    bk_ssl.EVP_PKEY_free(key);
    bk_ssl.BIO_free(bio);
    return code;
}

static int use_ca(SSL_CTX *ctx, bk_span pem, bk_error *error) {
    bool encrypted = false;
    int count = 0, code = 0;
    X509 *ca;
    if (pem.size == 0)
        return bk_ssl.SSL_CTX_set_default_verify_paths(ctx) == 1
                   ? 0
                   : fail_config(error, "ca: the system's certificates");
    BIO *bio = bk_ssl.BIO_new_mem_buf(pem.base, (int)pem.size);
    while (bio != NULL && code == 0 &&
           (ca = bk_ssl.PEM_read_bio_X509(bio, NULL, no_password, &encrypted)) != NULL) {
        count++;
        if (bk_ssl.X509_STORE_add_cert(bk_ssl.SSL_CTX_get_cert_store(ctx), ca) != 1)
            code = fail_config(error, "ca: a certificate in it");
        bk_ssl.X509_free(ca);
    }
    if (code == 0 && !is_at_end())
        code = fail_config(error, "ca: a certificate in it is damaged");
    if (code == 0 && count == 0)
        code = fail_config(error, "ca: no certificate in PEM was found");
    bk_ssl.ERR_clear_error();
    bk_ssl.BIO_free(bio);
    return code;
}

/* The server's order decides; without a name in common the client is refused. */
static int select_alpn(SSL *ssl, const unsigned char **ret_name, unsigned char *ret_size,
                       const unsigned char *offered, unsigned size, void *arg) {
    const openssl_context *self = arg;
    (void)ssl;
    for (unsigned i = 0; i < self->alpn_size; i += self->alpn[i] + 1u)
        for (unsigned j = 0; j < size; j += offered[j] + 1u)
            if (self->alpn[i] == offered[j] && offered[j] < size - j &&
                memcmp(self->alpn + i + 1, offered + j + 1, offered[j]) == 0) {
                *ret_name = offered + j + 1;
                *ret_size = offered[j];
                return BK_SSL_TLSEXT_ERR_OK;
            }
    return BK_SSL_TLSEXT_ERR_ALERT_FATAL;
}

static int use_alpn(openssl_context *self, const bk_tls_settings *s, bk_error *error) {
    if (self->alpn_size == 0)
        return 0;
    if (s->server)
        bk_ssl.SSL_CTX_set_alpn_select_cb(self->ctx, select_alpn, self);
    else if (bk_ssl.SSL_CTX_set_alpn_protos(self->ctx, self->alpn, self->alpn_size) != 0)
        return fail_config(error, "alpn");
    return 0;
}

static int keep_session(SSL *ssl, SSL_SESSION *session) {
    openssl_tls *self = bk_ssl.BIO_get_data(bk_ssl.SSL_get_rbio(ssl));
    int n = bk_ssl.i2d_SSL_SESSION(session, NULL);
    unsigned char *bytes = n > 0 ? bk_alloc(self->os, (size_t)n) : NULL, *end = bytes;
    if (bytes != NULL && self->out != NULL)
        bk_tls_keep_session(self->out, bytes, (size_t)bk_ssl.i2d_SSL_SESSION(session, &end));
    bk_dealloc(self->os, bytes);
    return 0; /* the session stays the library's */
}

static void set_sessions(SSL_CTX *ctx, const bk_tls_settings *s) {
    static const unsigned char ours[] = "becket";
    if (s->no_tickets) {
        (void)bk_ssl.SSL_CTX_set_options(ctx, BK_SSL_OP_NO_TICKET);
        (void)bk_ssl.SSL_CTX_set_num_tickets(ctx, 0);
        (void)bk_ssl.SSL_CTX_ctrl(ctx, BK_SSL_CTRL_SESS_CACHE_MODE, BK_SSL_SESS_CACHE_OFF, NULL);
    } else if (s->server) {
        /* Tickets hold what is needed: the server keeps nothing. */
        (void)bk_ssl.SSL_CTX_ctrl(ctx, BK_SSL_CTRL_SESS_CACHE_MODE, BK_SSL_SESS_CACHE_OFF, NULL);
        (void)bk_ssl.SSL_CTX_set_session_id_context(ctx, ours, sizeof ours - 1);
    } else {
        (void)bk_ssl.SSL_CTX_ctrl(ctx, BK_SSL_CTRL_SESS_CACHE_MODE, BK_SSL_SESS_CACHE_CLIENT, NULL);
        bk_ssl.SSL_CTX_sess_set_new_cb(ctx, keep_session);
    }
}

static int configure(openssl_context *self, const bk_tls_settings *s, bk_error *error) {
    SSL_CTX *ctx = self->ctx;
    int code = s->certificate.size > 0 ? use_chain(ctx, s->certificate, error) : 0;
    if (code == 0 && s->key.size > 0)
        code = use_key(ctx, s->key, error);
    if (code == 0 && s->verify != BK_TLS_VERIFY_NONE)
        code = use_ca(ctx, s->ca, error);
    if (code == 0)
        code = use_alpn(self, s, error);
    if (code < 0)
        return code;
    if (bk_ssl.SSL_CTX_ctrl(ctx, BK_SSL_CTRL_MIN_PROTO_VERSION, s->minimum, NULL) != 1 ||
        bk_ssl.SSL_CTX_ctrl(ctx, BK_SSL_CTRL_MAX_PROTO_VERSION, s->maximum, NULL) != 1)
        return fail_config(error, "min, max");
    int verify = s->verify == BK_TLS_VERIFY_NONE ? 0 : BK_SSL_VERIFY_PEER;
    if (s->verify == BK_TLS_VERIFY_REQUIRED)
        verify |= BK_SSL_VERIFY_FAIL_IF_NO_PEER_CERT;
    bk_ssl.SSL_CTX_set_verify(ctx, verify, NULL);
    (void)bk_ssl.SSL_CTX_set_options(ctx, BK_SSL_OP_NO_RENEGOTIATION);
    (void)bk_ssl.SSL_CTX_ctrl(ctx, BK_SSL_CTRL_MODE, BK_SSL_MODE, NULL);
    (void)bk_ssl.SSL_CTX_ctrl(ctx, BK_SSL_CTRL_READ_AHEAD, 1, NULL);
    set_sessions(ctx, s);
    return 0;
}

static void openssl_context_free(void *context) {
    openssl_context *self = context;
    bk_ssl.SSL_CTX_free(self->ctx);
    bk_dealloc(self->os, self);
}

static int openssl_context_new(const bk_tls_settings *s, bk_error *error, void **ret_context) {
    size_t size = 0;
    for (const char *const *name = s->alpn; name != NULL && *name != NULL; name++)
        size += 1 + strlen(*name);
    openssl_context *self = bk_alloc_zero(s->os, sizeof *self + size);
    if (self == NULL)
        return bk_error_set(error, -ENOMEM, 0, "%s", bk_strerror(-ENOMEM));
    self->os = s->os;
    self->server = s->server;
    for (const char *const *name = s->alpn; name != NULL && *name != NULL; name++) {
        size_t n = strlen(*name);
        self->alpn[self->alpn_size] = (unsigned char)n;
        memcpy(self->alpn + self->alpn_size + 1, *name, n);
        self->alpn_size += (unsigned)n + 1;
    }
    bk_ssl.ERR_clear_error();
    self->ctx = bk_ssl.SSL_CTX_new(bk_ssl.TLS_method());
    int code = self->ctx == NULL ? fail_config(error, "OpenSSL") : configure(self, s, error);
    if (code < 0) {
        openssl_context_free(self);
        return code;
    }
    *ret_context = self;
    return 0;
}

/* ---- Connections ---- */

static const bk_tls_ops openssl_ops;

static void openssl_close(bk_tls *tls);

static int make(bk_os *os, SSL *ssl, bool adopted, openssl_tls **ret_self) {
    openssl_tls *self = bk_alloc_zero(os, sizeof *self);
    if (self == NULL)
        return -ENOMEM;
    self->base.ops = &openssl_ops;
    self->os = os;
    self->ssl = ssl;
    self->adopted = adopted;
    if (put_bio(self) < 0) {
        bk_dealloc(os, self);
        return -ENOMEM;
    }
    *ret_self = self;
    return 0;
}

/* Whom to verify, and, unless it is an IP address, whom to ask for. The names of a certificate's
   subject are none of a host's (RFC 9525 2). */
static int set_name(SSL *ssl, const char *name) {
    X509_VERIFY_PARAM *param = bk_ssl.SSL_get0_param(ssl);
    if (bk_ssl.X509_VERIFY_PARAM_set1_ip_asc(param, name) == 1)
        return 0;
    bk_ssl.ERR_clear_error();
    bk_ssl.X509_VERIFY_PARAM_set_hostflags(param, BK_X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS |
                                                      BK_X509_CHECK_FLAG_NEVER_CHECK_SUBJECT);
    if (bk_ssl.SSL_set1_host(ssl, name) != 1 ||
        bk_ssl.SSL_ctrl(ssl, BK_SSL_CTRL_TLSEXT_HOSTNAME, 0, (void *)(uintptr_t)name) != 1) {
        bk_ssl.ERR_clear_error();
        return -EINVAL;
    }
    return 0;
}

static void set_session(SSL *ssl, bk_span session) {
    const unsigned char *bytes = session.base;
    SSL_SESSION *s =
        session.size > 0 ? bk_ssl.d2i_SSL_SESSION(NULL, &bytes, (long)session.size) : NULL;
    if (s != NULL)
        (void)bk_ssl.SSL_set_session(ssl, s);
    bk_ssl.SSL_SESSION_free(s);
    bk_ssl.ERR_clear_error();
}

static int openssl_connection_new(void *context, const char *server_name, bk_span session,
                                  bk_tls **ret_tls) {
    openssl_context *c = context;
    openssl_tls *self;
    SSL *ssl = bk_ssl.SSL_new(c->ctx);
    int code = ssl == NULL ? -ENOMEM : make(c->os, ssl, false, &self);
    if (code < 0) {
        bk_ssl.SSL_free(ssl);
        bk_ssl.ERR_clear_error();
        return code;
    }
    if (c->server)
        bk_ssl.SSL_set_accept_state(ssl);
    else
        bk_ssl.SSL_set_connect_state(ssl);
    if (server_name != NULL)
        code = set_name(ssl, server_name);
    if (code < 0) {
        openssl_close(&self->base);
        return code;
    }
    set_session(ssl, session);
    *ret_tls = &self->base;
    return 0;
}

int bk_openssl_adopt(bk_os *os, void *ssl, const bk_openssl_host *host, bk_tls **ret_tls) {
    openssl_tls *self;
    int code = make(os, ssl, true, &self);
    if (code < 0)
        return code;
    self->host = *host;
    (void)bk_ssl.SSL_set_options(ssl, BK_SSL_OP_NO_RENEGOTIATION);
    (void)bk_ssl.SSL_ctrl(ssl, BK_SSL_CTRL_MODE, BK_SSL_MODE, NULL);
    (void)bk_ssl.SSL_ctrl(ssl, BK_SSL_CTRL_READ_AHEAD, 1, NULL);
    *ret_tls = &self->base;
    return 0;
}

/* ---- Stepping ---- */

static int handshake(openssl_tls *self) {
    if (self->host.handshake != NULL) {
        int code = self->host.handshake(self->host.arg, self->out);
        return code == -EAGAIN && self->ended ? -ECONNRESET : code;
    }
    bk_ssl.ERR_clear_error();
    int r = bk_ssl.SSL_do_handshake(self->ssl);
    if (r == 1) {
        bk_ssl.ERR_clear_error(); /* others in this thread look at it */
        return 0;
    }
    if (self->ended)
        return bk_tls_fail(self->out, BK_ETLS_ALERT, "the peer ended it within the handshake");
    bool waits = bk_ssl.SSL_get_error(self->ssl, r) == BK_SSL_ERROR_WANT_READ;
    return waits ? -EAGAIN : fail(self, self->out);
}

/* It reads ahead: a record is one call of the BIO, and others that came with it lie in the library,
   the last of them perhaps in part. */
static bool holds(const openssl_tls *self) {
    return self->in.size > 0 || bk_ssl.SSL_has_pending(self->ssl);
}

/* 0, or BK_TLS_PENDING when the room is full before all was read. */
static int read_plain(openssl_tls *self, bk_room *room) {
    while (!self->ended && holds(self)) {
        size_t n = 0;
        if (room->size == 0)
            return BK_TLS_PENDING;
        if (bk_ssl.SSL_read_ex(self->ssl, room->base, room->size, &n) != 1) {
            bool waits = self->in.size == 0 && bk_ssl.SSL_want(self->ssl) == BK_SSL_READING;
            return self->ended || waits ? 0 : fail(self, self->out);
        }
        room->base = (char *)room->base + n;
        room->size -= n;
    }
    return 0;
}

static int openssl_step(bk_tls *tls, bk_span *in, bk_room *room, bk_tls_out *out) {
    openssl_tls *self = (openssl_tls *)tls;
    int code = 0;
    self->in = *in;
    self->out = out;
    if (!self->opened) {
        code = handshake(self);
        self->opened = code == 0;
    }
    if (self->opened)
        code = read_plain(self, room);
    *in = self->in;
    self->in = (bk_span){NULL, 0};
    self->out = NULL;
    if (code == -EAGAIN)
        return BK_TLS_OPENING;
    return code >= 0 && self->ended ? BK_TLS_ENDED : code;
}

static int openssl_seal(bk_tls *tls, bk_span plain, bk_tls_out *out) {
    openssl_tls *self = (openssl_tls *)tls;
    const char *at = plain.base;
    int code = 0;
    self->out = out;
    while (plain.size > 0 && code == 0) {
        size_t n = 0;
        if (bk_ssl.SSL_write_ex(self->ssl, at, plain.size, &n) != 1)
            code = fail(self, out);
        at += n;
        plain.size -= n;
    }
    self->out = NULL;
    return code;
}

static int openssl_end(bk_tls *tls, bk_tls_out *out) {
    openssl_tls *self = (openssl_tls *)tls;
    self->out = out;
    int code = bk_ssl.SSL_shutdown(self->ssl) < 0 ? fail(self, out) : 0;
    self->out = NULL;
    return code;
}

static void openssl_close(bk_tls *tls) {
    openssl_tls *self = (openssl_tls *)tls;
    BIO *bio = bk_ssl.SSL_get_rbio(self->ssl);
    if (bio != NULL)
        bk_ssl.BIO_set_data(bio, NULL); /* one that was adopted may outlive us */
    bk_ssl.SSL_set_info_callback(self->ssl, NULL);
    if (!self->adopted)
        bk_ssl.SSL_free(self->ssl);
    bk_dealloc(self->os, self);
}

/* ---- Questions ---- */

static int answer_text(const char *text, void *ret_value, size_t *size) {
    return bk_query_answer(ret_value, size, text, strlen(text) + 1);
}

static int answer_number(int number, void *ret_value, size_t *size) {
    return bk_query_answer(ret_value, size, &number, sizeof number);
}

static int query_alpn(openssl_tls *self, void *ret_value, size_t *size) {
    const unsigned char *name = NULL;
    unsigned n = 0;
    char text[256] = "";
    bk_ssl.SSL_get0_alpn_selected(self->ssl, &name, &n);
    if (n > 0 && n < sizeof text)
        memcpy(text, name, n);
    return answer_text(text, ret_value, size);
}

static int query_certificate(openssl_tls *self, void *ret_value, size_t *size) {
    X509 *peer = bk_ssl.SSL_get1_peer_certificate(self->ssl);
    int n = peer == NULL ? 0 : bk_ssl.i2d_X509(peer, NULL), code = n < 0 ? -ENOMEM : 0;
    unsigned char *at = ret_value;
    if (code == 0 && *size < (size_t)n)
        code = -ENOSPC;
    if (code == 0 && n > 0)
        (void)bk_ssl.i2d_X509(peer, &at);
    if (code == 0)
        *size = (size_t)n;
    bk_ssl.X509_free(peer);
    return code;
}

static int openssl_query(bk_tls *tls, int what, void *ret_value, size_t *size) {
    openssl_tls *self = (openssl_tls *)tls;
    const SSL_CIPHER *cipher = bk_ssl.SSL_get_current_cipher(self->ssl);
    const char *name;
    switch (what) {
    case BK_QUERY_TLS_ENGINE:
        return answer_text("openssl", ret_value, size);
    case BK_QUERY_TLS_VERSION:
        return answer_text(bk_ssl.SSL_get_version(self->ssl), ret_value, size);
    case BK_QUERY_TLS_CIPHER:
        return answer_text(bk_ssl.SSL_CIPHER_get_name(cipher), ret_value, size);
    case BK_QUERY_TLS_BITS:
        return answer_number(bk_ssl.SSL_CIPHER_get_bits(cipher, NULL), ret_value, size);
    case BK_QUERY_TLS_ALPN:
        return query_alpn(self, ret_value, size);
    case BK_QUERY_TLS_NAME:
        name = bk_ssl.SSL_get_servername(self->ssl, 0);
        return answer_text(name != NULL ? name : "", ret_value, size);
    case BK_QUERY_TLS_CERT:
        return query_certificate(self, ret_value, size);
    case BK_QUERY_TLS_RESUMED:
        return answer_number(bk_ssl.SSL_session_reused(self->ssl), ret_value, size);
    default:
        return -ENOTSUP;
    }
}

static int openssl_rekey(bk_tls *tls, bk_tls_out *out) {
    openssl_tls *self = (openssl_tls *)tls;
    if (bk_ssl.SSL_version(self->ssl) < BK_TLS_1_3)
        return -ENOTSUP;
    self->out = out;
    int code = 0;
    if (bk_ssl.SSL_key_update(self->ssl, BK_SSL_KEY_UPDATE_REQUESTED) != 1 ||
        bk_ssl.SSL_do_handshake(self->ssl) != 1)
        code = fail(self, out);
    self->out = NULL;
    return code;
}

static const bk_tls_ops openssl_ops = {
    .size = sizeof(bk_tls_ops),
    .name = "openssl",
    .step = openssl_step,
    .seal = openssl_seal,
    .end = openssl_end,
    .close = openssl_close,
    .query = openssl_query,
    .rekey = openssl_rekey,
};

const bk_tls_engine bk_tls_engine_openssl = {
    .size = sizeof(bk_tls_engine),
    .name = "openssl",
    .open = openssl_open,
    .version = openssl_version,
    .context_new = openssl_context_new,
    .context_free = openssl_context_free,
    .connection_new = openssl_connection_new,
};
