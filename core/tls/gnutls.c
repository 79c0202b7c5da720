/*
 * gnutls.c: the engine over GnuTLS 3.6 and later. Ciphertext reaches it, and leaves it, by the
 * functions that GnuTLS pulls from and pushes to: they read what step() was given and write to what
 * is sent. The library is found when the program runs. Called through the engine's table.
 */
#include "core/error.h"
#include "core/tls/tls.h"

#include <gnutls/gnutls.h>
#include <gnutls/x509.h>

#include <stdio.h>

/* ---- The library ---- */

#define FUNCTIONS(X)                                                                               \
    X(alert_get)                                                                                   \
    X(alert_get_name)                                                                              \
    X(alert_send)                                                                                  \
    X(alert_send_appropriate)                                                                      \
    X(alpn_get_selected_protocol)                                                                  \
    X(alpn_set_protocols)                                                                          \
    X(bye)                                                                                         \
    X(certificate_allocate_credentials)                                                            \
    X(certificate_free_credentials)                                                                \
    X(certificate_get_peers)                                                                       \
    X(certificate_server_set_request)                                                              \
    X(certificate_set_verify_function)                                                             \
    X(certificate_set_x509_key)                                                                    \
    X(certificate_set_x509_system_trust)                                                           \
    X(certificate_set_x509_trust_mem)                                                              \
    X(certificate_verification_status_print)                                                       \
    X(certificate_verify_peers)                                                                    \
    X(check_version)                                                                               \
    X(cipher_get)                                                                                  \
    X(cipher_get_key_size)                                                                         \
    X(cipher_get_name)                                                                             \
    X(credentials_set)                                                                             \
    X(deinit)                                                                                      \
    X(error_is_fatal)                                                                              \
    X(ext_raw_parse)                                                                               \
    X(free)                                                                                        \
    X(handshake)                                                                                   \
    X(handshake_set_hook_function)                                                                 \
    X(init)                                                                                        \
    X(packet_deinit)                                                                               \
    X(packet_get)                                                                                  \
    X(priority_deinit)                                                                             \
    X(priority_init)                                                                               \
    X(priority_set)                                                                                \
    X(protocol_get_version)                                                                        \
    X(record_recv_packet)                                                                          \
    X(record_send)                                                                                 \
    X(server_name_get)                                                                             \
    X(server_name_set)                                                                             \
    X(session_get_data2)                                                                           \
    X(session_get_id2)                                                                             \
    X(session_get_ptr)                                                                             \
    X(session_is_resumed)                                                                          \
    X(session_key_update)                                                                          \
    X(session_set_data)                                                                            \
    X(session_set_ptr)                                                                             \
    X(session_ticket_enable_server)                                                                \
    X(session_ticket_key_generate)                                                                 \
    X(strerror)                                                                                    \
    X(transport_set_errno)                                                                         \
    X(transport_set_ptr)                                                                           \
    X(transport_set_pull_function)                                                                 \
    X(transport_set_pull_timeout_function)                                                         \
    X(transport_set_vec_push_function)                                                             \
    X(x509_crt_deinit)                                                                             \
    X(x509_crt_get_subject_alt_name)                                                               \
    X(x509_crt_import)                                                                             \
    X(x509_crt_init)                                                                               \
    X(x509_crt_list_import2)                                                                       \
    X(x509_privkey_deinit)                                                                         \
    X(x509_privkey_import2)                                                                        \
    X(x509_privkey_init)

#define NAME(function) "gnutls_" #function,
#define MEMBER(function) __typeof__(&gnutls_##function) function;

static const char *const function_names[] = {FUNCTIONS(NAME)};

typedef struct library {
    FUNCTIONS(MEMBER)
    char version[32];
} library;

static library lib;

static int find_functions(bk_os *os, library *ret_found, bk_error *error) {
    static const char *const names[] = {"libgnutls.so.30", "libgnutls.30.dylib", "libgnutls-30.dll",
                                        NULL};
    void *found[sizeof function_names / sizeof function_names[0]];
    void *file = BK_HAS(os, library) && BK_HAS(os, symbol) ? os->library(os, names, 0) : NULL;
    if (file == NULL)
        return bk_error_set(error, BK_ETLS_ENGINE, 0, "GnuTLS (%s) is not here", names[0]);
    for (size_t i = 0; i < sizeof found / sizeof found[0]; i++) {
        found[i] = os->symbol(os, file, function_names[i]);
        if (found[i] == NULL)
            return bk_error_set(error, BK_ETLS_ENGINE, 0,
                                "this GnuTLS has no %s; version 3.6.3 is needed",
                                function_names[i]);
    }
    memcpy(ret_found, found, sizeof found);
    (void)snprintf(ret_found->version, sizeof ret_found->version, "GnuTLS %s",
                   ret_found->check_version(NULL));
    return 0;
}

/* Several threads may find the same functions at once; one of them writes them down. */
static int engine_open(bk_os *os, bk_error *error) {
    static atomic_int state; /* 1: being written; 2: written */
    library found;
    int expected = 0;
    if (atomic_load(&state) == 2)
        return 0;
    int code = find_functions(os, &found, error);
    if (code < 0)
        return code;
    if (atomic_compare_exchange_strong(&state, &expected, 1)) {
        lib = found;
        atomic_store(&state, 2);
    }
    while (atomic_load(&state) != 2)
        continue;
    return 0;
}

static const char *engine_version(void) {
    return lib.version;
}

/* ---- What contexts and connections are ---- */

/* GnuTLS copies no more of either. */
enum { ALPN_NAMES = 8, ALPN_NAME_BYTES = 31 };

typedef struct engine_context {
    bk_os *os;
    bool server, no_tickets;
    int verify, minimum, maximum;
    gnutls_certificate_credentials_t credentials;
    gnutls_priority_t priority;
    gnutls_datum_t ticket_key; /* others are derived from it, and change with time */
    unsigned alpn_count;
    gnutls_datum_t alpn[ALPN_NAMES];
    unsigned char alpn_names[ALPN_NAMES][ALPN_NAME_BYTES];
} engine_context;

typedef struct engine_tls {
    bk_tls base;
    engine_context *context;
    gnutls_session_t session;
    bk_span in;             /* what the library may pull */
    bk_tls_out *out;        /* where it pushes; NULL: nobody called */
    gnutls_packet_t packet; /* plaintext that found no room, … */
    size_t packet_from;     /* … from here on */
    unsigned verified;      /* what is wrong with the peer's certificate, GNUTLS_CERT_… */
    bool opened, ended;     /* the handshake is over; close_notify has come */
    bool is_address;        /* of name */
    uint8_t heard, head[2]; /* of the first bytes that came: how many, and what they were */
    uint8_t last[7];        /* … and the last */
    bool ticket, no_memory; /* a session can be kept; bk_tls_send had none */
    char name[];            /* whom to ask for and verify; "": nobody */
} engine_tls;

/* ---- What the library pulls from and pushes to ---- */

/* The library reads no further than the record it is at: a record of 7 bytes is an alert in plain,
   which clients send that do not like a certificate, and libraries then fail to unseal. */
static void remember(engine_tls *self, const unsigned char *from, size_t n) {
    const size_t room = sizeof self->last, fresh = n < room ? n : room;
    memmove(self->last, self->last + fresh, room - fresh);
    memcpy(self->last + room - fresh, from + n - fresh, fresh);
}

static bool was_plain_alert(const engine_tls *self) {
    static const uint8_t head[] = {21, 3, 3, 0, 2};
    return memcmp(self->last, head, sizeof head) == 0;
}

static ssize_t pull(gnutls_transport_ptr_t arg, void *room, size_t n) {
    engine_tls *self = arg;
    if (self->in.size == 0) {
        lib.transport_set_errno(self->session, EAGAIN);
        return -1;
    }
    const unsigned char *from = self->in.base;
    if (n > self->in.size)
        n = self->in.size;
    for (size_t i = 0; i < n && self->heard < sizeof self->head; i++)
        self->head[self->heard++] = from[i];
    remember(self, from, n);
    memcpy(room, from, n);
    self->in = (bk_span){from + n, self->in.size - n};
    return (ssize_t)n;
}

static int pull_timeout(gnutls_transport_ptr_t arg, unsigned ms) {
    (void)ms;
    return ((engine_tls *)arg)->in.size > 0;
}

static ssize_t push(gnutls_transport_ptr_t arg, const giovec_t *v, int count) {
    engine_tls *self = arg;
    ssize_t n = 0;
    for (int i = 0; i < count && !self->no_memory; i++) {
        self->no_memory =
            self->out == NULL || bk_tls_send(self->out, v[i].iov_base, v[i].iov_len) < 0;
        n += (ssize_t)v[i].iov_len;
    }
    if (!self->no_memory)
        return n;
    lib.transport_set_errno(self->session, ENOMEM);
    return -1;
}

/* ---- Errors ---- */

static int code_of_alert(gnutls_alert_description_t alert) {
    switch (alert) {
    case GNUTLS_A_PROTOCOL_VERSION:
        return BK_ETLS_VERSION;
    case GNUTLS_A_HANDSHAKE_FAILURE:
    case GNUTLS_A_INSUFFICIENT_SECURITY:
        return BK_ETLS_CIPHER;
    case GNUTLS_A_NO_APPLICATION_PROTOCOL:
        return BK_ETLS_ALPN;
    case GNUTLS_A_UNRECOGNIZED_NAME:
        return BK_ETLS_NAME;
    default:
        return BK_ETLS_ALERT;
    }
}

/* All TLS begins with a handshake's record, or an alert's, of a version 3 (RFC 8446 5.1). */
static bool is_tls(const engine_tls *self) {
    return self->heard == 2 && (self->head[0] == 21 || self->head[0] == 22) && self->head[1] == 3;
}

static int code_of(const engine_tls *self, int error) {
    switch (error) {
    case GNUTLS_E_MEMORY_ERROR:
        return -ENOMEM;
    case GNUTLS_E_UNSUPPORTED_VERSION_PACKET:
        return is_tls(self) ? BK_ETLS_VERSION : BK_ETLS_PROTOCOL;
    case GNUTLS_E_NO_CIPHER_SUITES:
    case GNUTLS_E_UNKNOWN_CIPHER_SUITE:
    case GNUTLS_E_UNKNOWN_CIPHER_TYPE:
    case GNUTLS_E_NO_COMMON_KEY_SHARE:
    case GNUTLS_E_UNSUPPORTED_SIGNATURE_ALGORITHM:
    case GNUTLS_E_ECC_NO_SUPPORTED_CURVES:
    case GNUTLS_E_ECC_UNSUPPORTED_CURVE:
    case GNUTLS_E_DH_PRIME_UNACCEPTABLE:
    case GNUTLS_E_INSUFFICIENT_CREDENTIALS:
        return BK_ETLS_CIPHER;
    case GNUTLS_E_NO_APPLICATION_PROTOCOL:
        return BK_ETLS_ALPN;
    case GNUTLS_E_UNRECOGNIZED_NAME:
        return BK_ETLS_NAME;
    case GNUTLS_E_DECRYPTION_FAILED:
        return BK_ETLS_RECORD;
    case GNUTLS_E_NO_CERTIFICATE_FOUND:
    case GNUTLS_E_CERTIFICATE_REQUIRED:
        return BK_ETLS_NO_CERTIFICATE;
    case GNUTLS_E_CERTIFICATE_ERROR:
    case GNUTLS_E_CERTIFICATE_VERIFICATION_ERROR:
        return BK_ETLS_UNTRUSTED;
    case GNUTLS_E_REHANDSHAKE:
    case GNUTLS_E_UNSAFE_RENEGOTIATION_DENIED:
        return BK_ETLS_RENEGOTIATION;
    case GNUTLS_E_UNEXPECTED_PACKET:
    case GNUTLS_E_UNEXPECTED_HANDSHAKE_PACKET:
    case GNUTLS_E_UNEXPECTED_PACKET_LENGTH:
    case GNUTLS_E_UNEXPECTED_EXTENSIONS_LENGTH:
    case GNUTLS_E_RECORD_OVERFLOW:
    case GNUTLS_E_RECEIVED_ILLEGAL_PARAMETER:
    case GNUTLS_E_RECEIVED_ILLEGAL_EXTENSION:
    case GNUTLS_E_RECEIVED_DISALLOWED_NAME:
    case GNUTLS_E_ILLEGAL_PARAMETER:
    case GNUTLS_E_MISSING_EXTENSION:
    case GNUTLS_E_ERROR_IN_FINISHED_PACKET:
    case GNUTLS_E_HANDSHAKE_TOO_LARGE:
    case GNUTLS_E_TOO_MANY_EMPTY_PACKETS:
    case GNUTLS_E_TOO_MANY_HANDSHAKE_PACKETS:
    case GNUTLS_E_SAFE_RENEGOTIATION_FAILED:
    case GNUTLS_E_PK_SIG_VERIFY_FAILED: /* a handshake that was damaged on its way */
    case GNUTLS_E_PK_INVALID_PUBKEY:
        return BK_ETLS_PROTOCOL;
    default:
        return BK_ETLS;
    }
}

/* What the library says ends in a full stop, or in one and a space. */
static int without_stop(const char *text) {
    size_t n = strlen(text);
    while (n > 0 && (text[n - 1] == '.' || text[n - 1] == ' '))
        n--;
    return (int)n;
}

static int fail_alert(engine_tls *self, gnutls_alert_description_t alert) {
    const char *name = lib.alert_get_name(alert);
    return bk_tls_fail(self->out, code_of_alert(alert), "the peer sent an alert: %s (%d)",
                       name != NULL ? name : "of no known name", (int)alert);
}

static int fail_verify(engine_tls *self) {
    const unsigned wrong = self->verified;
    const unsigned stranger = GNUTLS_CERT_SIGNER_NOT_FOUND | GNUTLS_CERT_SIGNER_NOT_CA;
    gnutls_alert_description_t alert = wrong & stranger              ? GNUTLS_A_UNKNOWN_CA
                                       : wrong & GNUTLS_CERT_EXPIRED ? GNUTLS_A_CERTIFICATE_EXPIRED
                                       : wrong & GNUTLS_CERT_REVOKED ? GNUTLS_A_CERTIFICATE_REVOKED
                                                                     : GNUTLS_A_BAD_CERTIFICATE;
    const bool only_name = (wrong & ~(unsigned)GNUTLS_CERT_INVALID) == GNUTLS_CERT_UNEXPECTED_OWNER;
    const char *text = "the certificate is not good";
    gnutls_datum_t words = {NULL, 0};
    (void)lib.alert_send(self->session, GNUTLS_AL_FATAL, alert);
    if (lib.certificate_verification_status_print(wrong, GNUTLS_CRT_X509, &words, 0) >= 0)
        text = (const char *)words.data;
    int code = bk_tls_fail(self->out, only_name ? BK_ETLS_WRONG_NAME : BK_ETLS_UNTRUSTED, "%.*s",
                           without_stop(text), text);
    (*lib.free)(words.data);
    return code;
}

/* Tell the peer, unless it was the peer who told us, and the caller. */
static int fail(engine_tls *self, int error) {
    const char *text = lib.strerror(error);
    if (self->no_memory)
        return bk_tls_fail(self->out, -ENOMEM, "%s", bk_strerror(-ENOMEM));
    if (error == GNUTLS_E_FATAL_ALERT_RECEIVED || error == GNUTLS_E_SESSION_EOF)
        return fail_alert(self, lib.alert_get(self->session));
    if (error == GNUTLS_E_DECRYPTION_FAILED && was_plain_alert(self))
        return fail_alert(self, (gnutls_alert_description_t)self->last[6]);
    if (self->verified != 0)
        return fail_verify(self);
    if (error == GNUTLS_E_REHANDSHAKE)
        (void)lib.alert_send(self->session, GNUTLS_AL_FATAL, GNUTLS_A_NO_RENEGOTIATION);
    else if (error == GNUTLS_E_NO_CERTIFICATE_FOUND) /* it would say "decode error" */
        (void)lib.alert_send(self->session, GNUTLS_AL_FATAL, GNUTLS_A_HANDSHAKE_FAILURE);
    else
        (void)lib.alert_send_appropriate(self->session, error);
    return bk_tls_fail(self->out, code_of(self, error), "%.*s", without_stop(text), text);
}

static int fail_config(bk_error *error, const char *what, int code) {
    if (code == GNUTLS_E_MEMORY_ERROR)
        return bk_error_set(error, -ENOMEM, 0, "%s", bk_strerror(-ENOMEM));
    return bk_error_set(error, BK_ETLS_CONFIG, 0, "%s: %.*s", what,
                        without_stop(lib.strerror(code)), lib.strerror(code));
}

/* ---- Contexts ---- */

static gnutls_datum_t datum_of(bk_span text) {
    return (gnutls_datum_t){(unsigned char *)(uintptr_t)text.base, (unsigned)text.size};
}

static bool has_host_name(gnutls_x509_crt_t certificate) {
    int kind = 0;
    for (unsigned i = 0; kind >= 0 && kind != GNUTLS_SAN_DNSNAME; i++) {
        char name[256]; /* no less than GnuTLS has, which sees no further than a longer one */
        size_t size = sizeof name;
        kind = lib.x509_crt_get_subject_alt_name(certificate, i, name, &size, NULL);
    }
    return kind == GNUTLS_SAN_DNSNAME;
}

/* Where a certificate has no name of a host, GnuTLS takes its subject's, against RFC 9525 2. */
static int refuse_subject(engine_tls *self) {
    unsigned count = 0;
    const gnutls_datum_t *chain = lib.certificate_get_peers(self->session, &count);
    gnutls_x509_crt_t leaf;
    int code = chain != NULL ? lib.x509_crt_init(&leaf) : GNUTLS_E_NO_CERTIFICATE_FOUND;
    if (code < 0)
        return code;
    code = lib.x509_crt_import(leaf, chain, GNUTLS_X509_FMT_DER);
    if (code >= 0 && !has_host_name(leaf))
        self->verified = GNUTLS_CERT_INVALID | GNUTLS_CERT_UNEXPECTED_OWNER;
    lib.x509_crt_deinit(leaf);
    return code;
}

/* Called by GnuTLS when the peer's certificate is there. */
static int verify(gnutls_session_t session) {
    engine_tls *self = lib.session_get_ptr(session);
    const bool server = self->context->server;
    unsigned count = 0, n = 0;
    gnutls_typed_vdata_st whom[2];
    /* A client that shows none, and must, has been refused. */
    if (server && lib.certificate_get_peers(session, &count) == NULL)
        return 0;
    const char *purpose = server ? GNUTLS_KP_TLS_WWW_CLIENT : GNUTLS_KP_TLS_WWW_SERVER;
    whom[n++] =
        (gnutls_typed_vdata_st){GNUTLS_DT_KEY_PURPOSE_OID, (unsigned char *)(uintptr_t)purpose, 0};
    if (*self->name != '\0')
        whom[n++] = (gnutls_typed_vdata_st){GNUTLS_DT_DNS_HOSTNAME, (unsigned char *)self->name, 0};
    int code = lib.certificate_verify_peers(session, whom, n, &self->verified);
    if (code >= 0 && self->verified == 0 && *self->name != '\0' && !self->is_address)
        code = refuse_subject(self);
    if (code < 0)
        return code;
    return self->verified == 0 ? 0 : GNUTLS_E_CERTIFICATE_ERROR;
}

static int use_key(engine_context *self, const bk_tls_settings *s, gnutls_x509_crt_t *chain,
                   unsigned count, bk_error *error) {
    const gnutls_datum_t text = datum_of(s->key);
    gnutls_x509_privkey_t key;
    int code = lib.x509_privkey_init(&key);
    if (code < 0)
        return fail_config(error, "key", code);
    code = lib.x509_privkey_import2(key, &text, GNUTLS_X509_FMT_PEM, NULL, 0);
    if (code == GNUTLS_E_DECRYPTION_FAILED)
        code = bk_error_set(error, BK_ETLS_CONFIG, 0, "key: it is encrypted");
    else if (code < 0)
        code = fail_config(error, "key", code);
    else if ((code = lib.certificate_set_x509_key(self->credentials, chain, (int)count, key)) < 0)
        code = code == GNUTLS_E_CERTIFICATE_KEY_MISMATCH
                   ? bk_error_set(error, BK_ETLS_CONFIG, 0, "key: it is not the certificate's")
                   : fail_config(error, "cert", code);
    lib.x509_privkey_deinit(key);
    return code < 0 ? code : 0;
}

static int use_certificate(engine_context *self, const bk_tls_settings *s, bk_error *error) {
    const gnutls_datum_t text = datum_of(s->certificate);
    gnutls_x509_crt_t *chain = NULL;
    unsigned count = 0;
    if (s->certificate.size == 0 && s->key.size == 0 && !s->server)
        return 0;
    if (s->certificate.size == 0 || s->key.size == 0)
        return bk_error_set(error, BK_ETLS_CONFIG, 0, "%s: it is empty, or there is none",
                            s->certificate.size == 0 ? "cert" : "key");
    int code = lib.x509_crt_list_import2(&chain, &count, &text, GNUTLS_X509_FMT_PEM, 0);
    if (code < 0)
        return fail_config(error, "cert", code);
    code = use_key(self, s, chain, count, error);
    for (unsigned i = 0; i < count; i++)
        lib.x509_crt_deinit(chain[i]);
    (*lib.free)(chain);
    return code;
}

static int use_authorities(engine_context *self, const bk_tls_settings *s, bk_error *error) {
    const gnutls_datum_t text = datum_of(s->ca);
    int code;
    if (s->ca.size > 0) {
        code = lib.certificate_set_x509_trust_mem(self->credentials, &text, GNUTLS_X509_FMT_PEM);
        if (code == 0)
            return bk_error_set(error, BK_ETLS_CONFIG, 0, "ca: there is no certificate in it");
    } else if (s->verify != BK_TLS_VERIFY_NONE) {
        code = lib.certificate_set_x509_system_trust(self->credentials);
        if (code == 0)
            return bk_error_set(error, BK_ETLS_CONFIG, 0,
                                "ca: no authority is trusted by this system");
    } else {
        return 0;
    }
    return code < 0 ? fail_config(error, "ca", code) : 0;
}

static int use_alpn(engine_context *self, const bk_tls_settings *s, bk_error *error) {
    for (const char *const *name = s->alpn; name != NULL && *name != NULL; name++) {
        size_t n = strlen(*name);
        if (self->alpn_count == ALPN_NAMES || n > ALPN_NAME_BYTES)
            return bk_error_set(error, BK_ETLS_CONFIG, 0,
                                "alpn: GnuTLS takes %d names of up to %d bytes", ALPN_NAMES,
                                ALPN_NAME_BYTES);
        unsigned char *copy = self->alpn_names[self->alpn_count];
        memcpy(copy, *name, n);
        self->alpn[self->alpn_count++] = (gnutls_datum_t){copy, (unsigned)n};
    }
    return 0;
}

static int use_versions(engine_context *self, const bk_tls_settings *s, bk_error *error) {
    char text[96];
    self->minimum = s->minimum;
    self->maximum = s->maximum != 0 ? s->maximum : BK_TLS_1_3;
    (void)snprintf(text, sizeof text, "NORMAL:-VERS-ALL%s%s:%%SERVER_PRECEDENCE",
                   self->maximum >= BK_TLS_1_3 ? ":+VERS-TLS1.3" : "",
                   self->minimum <= BK_TLS_1_2 ? ":+VERS-TLS1.2" : "");
    int code = lib.priority_init(&self->priority, text, NULL);
    return code < 0 ? fail_config(error, "min, max", code) : 0;
}

static int configure(engine_context *self, const bk_tls_settings *s, bk_error *error) {
    int code = lib.certificate_allocate_credentials(&self->credentials);
    if (code < 0)
        return fail_config(error, "GnuTLS", code);
    code = use_certificate(self, s, error);
    if (code == 0)
        code = use_authorities(self, s, error);
    if (code == 0)
        code = use_alpn(self, s, error);
    if (code == 0)
        code = use_versions(self, s, error);
    if (code < 0)
        return code;
    if (s->verify != BK_TLS_VERIFY_NONE)
        lib.certificate_set_verify_function(self->credentials, verify);
    if (s->server && !s->no_tickets)
        code = lib.session_ticket_key_generate(&self->ticket_key);
    return code < 0 ? fail_config(error, "GnuTLS", code) : 0;
}

static void engine_context_free(void *context) {
    engine_context *self = context;
    volatile unsigned char *secret = self->ticket_key.data;
    for (unsigned i = 0; i < self->ticket_key.size; i++)
        secret[i] = 0;
    (*lib.free)(self->ticket_key.data);
    if (self->priority != NULL)
        lib.priority_deinit(self->priority);
    if (self->credentials != NULL)
        lib.certificate_free_credentials(self->credentials);
    bk_dealloc(self->os, self);
}

static int engine_context_new(const bk_tls_settings *s, bk_error *error, void **ret_context) {
    engine_context *self = bk_alloc_zero(s->os, sizeof *self);
    if (self == NULL)
        return bk_error_set(error, -ENOMEM, 0, "%s", bk_strerror(-ENOMEM));
    self->os = s->os;
    self->server = s->server;
    self->verify = s->verify;
    self->no_tickets = s->no_tickets;
    int code = configure(self, s, error);
    if (code < 0) {
        engine_context_free(self);
        return code;
    }
    *ret_context = self;
    return 0;
}

/* ---- Connections ---- */

static const bk_tls_ops engine_ops;

static void engine_close(bk_tls *tls);

/* Whether a client lists its versions (RFC 8446 4.2.1), and one of them is ours. */
typedef struct offer {
    const engine_context *context;
    bool listed, ours;
} offer;

static void look_at_version(offer *o, int version) {
    if (version >= o->context->minimum && version <= o->context->maximum)
        o->ours = true;
}

static int look_at_extension(void *arg, unsigned type, const unsigned char *data, unsigned n) {
    offer *o = arg;
    if (type != 43)
        return 0;
    o->listed = true;
    for (unsigned i = 1; i + 1 < n; i += 2)
        look_at_version(o, data[i] << 8 | data[i + 1]);
    return 0;
}

/* GnuTLS would look for ciphers of versions that are not ours, and say that it found none. */
static int on_hello(gnutls_session_t session, unsigned type, unsigned when, unsigned incoming,
                    const gnutls_datum_t *message) {
    const engine_tls *self = lib.session_get_ptr(session);
    offer o = {.context = self->context};
    (void)type, (void)when;
    if (!incoming ||
        lib.ext_raw_parse(&o, look_at_extension, message, GNUTLS_EXT_RAW_FLAG_TLS_CLIENT_HELLO) < 0)
        return 0;
    if (!o.listed)
        look_at_version(&o, BK_TLS_1_2);
    return o.ours ? 0 : GNUTLS_E_UNSUPPORTED_VERSION_PACKET;
}

/* GnuTLS has got a ticket. Its session can be had only when this has returned. */
static int on_ticket(gnutls_session_t session, unsigned type, unsigned when, unsigned incoming,
                     const gnutls_datum_t *message) {
    engine_tls *self = lib.session_get_ptr(session);
    (void)type, (void)when, (void)message;
    if (incoming)
        self->ticket = true;
    return 0;
}

/* GnuTLS breaks on a session that is not whole, so one is kept with its digest before it. */
static void set_session(engine_tls *self, bk_span kept) {
    uint64_t sum;
    if (kept.size <= sizeof sum)
        return;
    const char *data = (const char *)kept.base + sizeof sum;
    memcpy(&sum, kept.base, sizeof sum);
    if (sum == bk_tls_digest(BK_TLS_DIGEST, data, kept.size - sizeof sum))
        (void)lib.session_set_data(self->session, data, kept.size - sizeof sum);
}

static int set_up_server(engine_tls *self) {
    const engine_context *c = self->context;
    lib.handshake_set_hook_function(self->session, GNUTLS_HANDSHAKE_CLIENT_HELLO, GNUTLS_HOOK_PRE,
                                    on_hello);
    if (c->verify != BK_TLS_VERIFY_NONE)
        lib.certificate_server_set_request(self->session, c->verify == BK_TLS_VERIFY_REQUIRED
                                                              ? GNUTLS_CERT_REQUIRE
                                                              : GNUTLS_CERT_REQUEST);
    return c->no_tickets ? 0 : lib.session_ticket_enable_server(self->session, &c->ticket_key);
}

static int set_up_client(engine_tls *self, bk_span session) {
    unsigned char address[16];
    if (!self->context->no_tickets) {
        lib.handshake_set_hook_function(self->session, GNUTLS_HANDSHAKE_NEW_SESSION_TICKET,
                                        GNUTLS_HOOK_POST, on_ticket);
        set_session(self, session);
    }
    self->is_address = bk_tls_address(self->name, address) > 0;
    if (*self->name == '\0' || self->is_address)
        return 0;
    return lib.server_name_set(self->session, GNUTLS_NAME_DNS, self->name, strlen(self->name));
}

static int set_up(engine_tls *self, bk_span session) {
    const engine_context *c = self->context;
    unsigned flags = GNUTLS_NONBLOCK | (c->no_tickets ? GNUTLS_NO_TICKETS : 0) |
                     (c->server ? GNUTLS_SERVER : GNUTLS_CLIENT | GNUTLS_FORCE_CLIENT_CERT);
    int code = lib.init(&self->session, flags);
    if (code < 0)
        return code;
    lib.session_set_ptr(self->session, self);
    lib.transport_set_ptr(self->session, self);
    lib.transport_set_pull_function(self->session, pull);
    lib.transport_set_pull_timeout_function(self->session, pull_timeout);
    lib.transport_set_vec_push_function(self->session, push);
    code = lib.priority_set(self->session, c->priority);
    if (code >= 0)
        code = lib.credentials_set(self->session, GNUTLS_CRD_CERTIFICATE, c->credentials);
    if (code >= 0 && c->alpn_count > 0)
        code = lib.alpn_set_protocols(self->session, c->alpn, c->alpn_count,
                                      GNUTLS_ALPN_MANDATORY | GNUTLS_ALPN_SERVER_PRECEDENCE);
    if (code < 0)
        return code;
    return c->server ? set_up_server(self) : set_up_client(self, session);
}

static int engine_connection_new(void *context, const char *server_name, bk_span session,
                                 bk_tls **ret_tls) {
    engine_context *c = context;
    size_t n = c->server || server_name == NULL ? 0 : strlen(server_name);
    engine_tls *self = bk_alloc_zero(c->os, sizeof *self + n + 1);
    if (self == NULL)
        return -ENOMEM;
    self->base.ops = &engine_ops;
    self->context = c;
    if (n > 0)
        memcpy(self->name, server_name, n);
    int code = set_up(self, session);
    if (code < 0) {
        engine_close(&self->base);
        return code == GNUTLS_E_MEMORY_ERROR ? -ENOMEM : -EINVAL;
    }
    *ret_tls = &self->base;
    return 0;
}

/* ---- Stepping ---- */

/* Before TLS 1.3 a session may be resumed by its number as well, if the server gave it one. */
static void look_for_session(engine_tls *self) {
    gnutls_datum_t id = {NULL, 0};
    if (self->context->server || self->context->no_tickets ||
        lib.protocol_get_version(self->session) >= GNUTLS_TLS1_3)
        return;
    if (lib.session_get_id2(self->session, &id) >= 0 && id.size > 0)
        self->ticket = true;
}

static void save_session(engine_tls *self, const gnutls_datum_t *session) {
    bk_os *os = self->context->os;
    const uint64_t sum = bk_tls_digest(BK_TLS_DIGEST, session->data, session->size);
    char *bytes = bk_alloc(os, sizeof sum + session->size);
    if (bytes == NULL)
        return;
    memcpy(bytes, &sum, sizeof sum);
    memcpy(bytes + sizeof sum, session->data, session->size);
    bk_tls_keep_session(self->out, bytes, sizeof sum + session->size);
    bk_dealloc(os, bytes);
}

static void keep_session(engine_tls *self) {
    gnutls_datum_t session = {NULL, 0};
    if (!self->ticket || !self->opened)
        return;
    self->ticket = false;
    if (lib.session_get_data2(self->session, &session) < 0)
        return;
    save_session(self, &session);
    (*lib.free)(session.data);
}

/* 0: it is over; BK_TLS_OPENING: it is not. */
static int handshake(engine_tls *self) {
    for (;;) {
        size_t before = self->in.size;
        int code = lib.handshake(self->session);
        if (code == GNUTLS_E_SUCCESS)
            break;
        if (lib.error_is_fatal(code) || code == GNUTLS_E_SESSION_EOF)
            return fail(self, code);
        if (self->in.size == before)
            return BK_TLS_OPENING;
    }
    self->opened = true;
    look_for_session(self);
    return 0;
}

/* Put what the packet holds into the room. */
static void unpack(engine_tls *self, bk_room *room) {
    gnutls_datum_t data = {NULL, 0};
    if (self->packet == NULL)
        return;
    lib.packet_get(self->packet, &data, NULL);
    size_t n = data.size - self->packet_from;
    if (n > room->size)
        n = room->size;
    if (n > 0)
        memcpy(room->base, data.data + self->packet_from, n);
    self->packet_from += n;
    room->base = (char *)room->base + n;
    room->size -= n;
    if (self->packet_from < data.size)
        return;
    lib.packet_deinit(self->packet);
    self->packet = NULL;
}

static int read_plain(engine_tls *self, bk_room *room) {
    for (;;) {
        unpack(self, room);
        if (self->packet != NULL)
            return BK_TLS_PENDING;
        if (self->ended)
            return BK_TLS_ENDED;
        size_t before = self->in.size;
        ssize_t n = lib.record_recv_packet(self->session, &self->packet);
        if (n < 0)
            self->packet = NULL;
        self->packet_from = 0;
        self->ended = n == 0;
        if (n == GNUTLS_E_REHANDSHAKE || (n < 0 && lib.error_is_fatal((int)n)))
            return fail(self, (int)n);
        if (n < 0 && self->in.size == before)
            return 0;
    }
}

static int engine_step(bk_tls *tls, bk_span *in, bk_room *room, bk_tls_out *out) {
    engine_tls *self = (engine_tls *)tls;
    self->in = *in;
    self->out = out;
    int code = self->opened ? 0 : handshake(self);
    if (code == 0)
        code = read_plain(self, room);
    if (code >= 0)
        keep_session(self);
    *in = self->in;
    self->in = (bk_span){NULL, 0};
    self->out = NULL;
    return code;
}

static int engine_seal(bk_tls *tls, bk_span plain, bk_tls_out *out) {
    engine_tls *self = (engine_tls *)tls;
    const char *at = plain.base;
    int code = 0;
    self->out = out;
    while (plain.size > 0 && code == 0) {
        ssize_t n = lib.record_send(self->session, at, plain.size);
        if (n <= 0) {
            code = fail(self, n < 0 ? (int)n : GNUTLS_E_INTERNAL_ERROR);
            break;
        }
        at += n;
        plain.size -= (size_t)n;
    }
    self->out = NULL;
    return code;
}

static int engine_end(bk_tls *tls, bk_tls_out *out) {
    engine_tls *self = (engine_tls *)tls;
    self->out = out;
    int code = lib.bye(self->session, GNUTLS_SHUT_WR);
    if (code < 0)
        code = fail(self, code);
    self->out = NULL;
    return code;
}

static void engine_close(bk_tls *tls) {
    engine_tls *self = (engine_tls *)tls;
    if (self->packet != NULL)
        lib.packet_deinit(self->packet);
    if (self->session != NULL)
        lib.deinit(self->session);
    bk_dealloc(self->context->os, self);
}

/* ---- Questions ---- */

static int answer_text(const char *text, void *ret_value, size_t *size) {
    return bk_query_answer(ret_value, size, text, strlen(text) + 1);
}

static int answer_number(int number, void *ret_value, size_t *size) {
    return bk_query_answer(ret_value, size, &number, sizeof number);
}

static int query_version(const engine_tls *self, void *ret_value, size_t *size) {
    bool newer = lib.protocol_get_version(self->session) >= GNUTLS_TLS1_3;
    return answer_text(newer ? "TLSv1.3" : "TLSv1.2", ret_value, size);
}

static int query_alpn(const engine_tls *self, void *ret_value, size_t *size) {
    gnutls_datum_t name = {NULL, 0};
    char text[ALPN_NAME_BYTES + 1] = "";
    if (lib.alpn_get_selected_protocol(self->session, &name) >= 0 && name.size < sizeof text)
        memcpy(text, name.data, name.size);
    return answer_text(text, ret_value, size);
}

static int query_name(const engine_tls *self, void *ret_value, size_t *size) {
    char text[256] = "";
    size_t n = sizeof text - 1;
    unsigned type;
    if (!self->context->server)
        return answer_text(self->is_address ? "" : self->name, ret_value, size);
    if (lib.server_name_get(self->session, text, &n, &type, 0) < 0)
        *text = '\0';
    return answer_text(text, ret_value, size);
}

static int query_certificate(const engine_tls *self, void *ret_value, size_t *size) {
    unsigned count = 0;
    const gnutls_datum_t *chain = lib.certificate_get_peers(self->session, &count);
    if (chain == NULL || count == 0)
        return bk_query_answer(ret_value, size, "", 0);
    return bk_query_answer(ret_value, size, chain[0].data, chain[0].size);
}

static int engine_query(bk_tls *tls, int what, void *ret_value, size_t *size) {
    const engine_tls *self = (const engine_tls *)tls;
    if (!self->opened)
        return -ENOTSUP;
    gnutls_cipher_algorithm_t cipher = lib.cipher_get(self->session);
    switch (what) {
    case BK_QUERY_TLS_ENGINE:
        return answer_text(engine_ops.name, ret_value, size);
    case BK_QUERY_TLS_VERSION:
        return query_version(self, ret_value, size);
    case BK_QUERY_TLS_CIPHER:
        return answer_text(lib.cipher_get_name(cipher), ret_value, size);
    case BK_QUERY_TLS_BITS:
        return answer_number((int)lib.cipher_get_key_size(cipher) * 8, ret_value, size);
    case BK_QUERY_TLS_ALPN:
        return query_alpn(self, ret_value, size);
    case BK_QUERY_TLS_NAME:
        return query_name(self, ret_value, size);
    case BK_QUERY_TLS_CERT:
        return query_certificate(self, ret_value, size);
    case BK_QUERY_TLS_RESUMED:
        return answer_number(lib.session_is_resumed(self->session) != 0, ret_value, size);
    default:
        return -ENOTSUP;
    }
}

static int engine_rekey(bk_tls *tls, bk_tls_out *out) {
    engine_tls *self = (engine_tls *)tls;
    if (!self->opened || lib.protocol_get_version(self->session) < GNUTLS_TLS1_3)
        return -ENOTSUP;
    self->out = out;
    int code = lib.session_key_update(self->session, GNUTLS_KU_PEER);
    if (code < 0)
        code = fail(self, code);
    self->out = NULL;
    return code;
}

static const bk_tls_ops engine_ops = {
    .size = sizeof(bk_tls_ops),
    .name = "gnutls",
    .step = engine_step,
    .seal = engine_seal,
    .end = engine_end,
    .close = engine_close,
    .query = engine_query,
    .rekey = engine_rekey,
};

const bk_tls_engine bk_tls_engine_gnutls = {
    .size = sizeof(bk_tls_engine),
    .name = "gnutls",
    .open = engine_open,
    .version = engine_version,
    .context_new = engine_context_new,
    .context_free = engine_context_free,
    .connection_new = engine_connection_new,
};
