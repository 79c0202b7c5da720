/*
 * mbedtls.c: the engine over mbed TLS 2.28 and 3. Ciphertext reaches it, and leaves it, by the
 * functions that mbed TLS receives and sends by: they read what step() was given and write to what
 * is sent. The library is found when the program runs; as its structures are ours to allocate, it
 * must be of the version that this file was compiled for. Called through the engine's table.
 */
#include "core/error.h"
#include "core/tls/tls.h"

#include <mbedtls/version.h>

#include <mbedtls/ctr_drbg.h>
#include <mbedtls/entropy.h>
#include <mbedtls/error.h>
#include <mbedtls/pk.h>
#include <mbedtls/ssl.h>
#include <mbedtls/ssl_ticket.h>
#include <mbedtls/x509_crt.h>

#include <stdio.h>

#if MBEDTLS_VERSION_NUMBER >= 0x03000000
#define WITH_RANDOM(context) , lib.ctr_drbg_random, &(context)->random
#else
#define WITH_RANDOM(context)
#define MBEDTLS_PRIVATE(member) member
#endif

#if defined(MBEDTLS_SSL_PROTO_TLS1_3)
#include <psa/crypto.h>
#define FUNCTIONS_1_3(X) X(psa, crypto_init)
enum { VERSION_BEST = BK_TLS_1_3 };
#else
#define FUNCTIONS_1_3(X)
enum { VERSION_BEST = BK_TLS_1_2 };
#endif

/* ---- The library ---- */

#define FUNCTIONS(X)                                                                               \
    X(mbedtls, cipher_info_from_type)                                                              \
    X(mbedtls, ctr_drbg_free)                                                                      \
    X(mbedtls, ctr_drbg_init)                                                                      \
    X(mbedtls, ctr_drbg_random)                                                                    \
    X(mbedtls, ctr_drbg_seed)                                                                      \
    X(mbedtls, entropy_free)                                                                       \
    X(mbedtls, entropy_func)                                                                       \
    X(mbedtls, entropy_init)                                                                       \
    X(mbedtls, pk_check_pair)                                                                      \
    X(mbedtls, pk_free)                                                                            \
    X(mbedtls, pk_init)                                                                            \
    X(mbedtls, pk_parse_key)                                                                       \
    X(mbedtls, ssl_ciphersuite_from_id)                                                            \
    X(mbedtls, ssl_close_notify)                                                                   \
    X(mbedtls, ssl_conf_alpn_protocols)                                                            \
    X(mbedtls, ssl_conf_authmode)                                                                  \
    X(mbedtls, ssl_conf_ca_chain)                                                                  \
    X(mbedtls, ssl_conf_own_cert)                                                                  \
    X(mbedtls, ssl_conf_rng)                                                                       \
    X(mbedtls, ssl_conf_session_tickets)                                                           \
    X(mbedtls, ssl_conf_session_tickets_cb)                                                        \
    X(mbedtls, ssl_conf_sni)                                                                       \
    X(mbedtls, ssl_config_defaults)                                                                \
    X(mbedtls, ssl_config_free)                                                                    \
    X(mbedtls, ssl_config_init)                                                                    \
    X(mbedtls, ssl_free)                                                                           \
    X(mbedtls, ssl_get_alpn_protocol)                                                              \
    X(mbedtls, ssl_get_bytes_avail)                                                                \
    X(mbedtls, ssl_get_ciphersuite)                                                                \
    X(mbedtls, ssl_get_ciphersuite_id)                                                             \
    X(mbedtls, ssl_get_peer_cert)                                                                  \
    X(mbedtls, ssl_get_session)                                                                    \
    X(mbedtls, ssl_get_verify_result)                                                              \
    X(mbedtls, ssl_get_version)                                                                    \
    X(mbedtls, ssl_handshake_step)                                                                 \
    X(mbedtls, ssl_init)                                                                           \
    X(mbedtls, ssl_read)                                                                           \
    X(mbedtls, ssl_send_alert_message)                                                             \
    X(mbedtls, ssl_session_free)                                                                   \
    X(mbedtls, ssl_session_init)                                                                   \
    X(mbedtls, ssl_session_load)                                                                   \
    X(mbedtls, ssl_session_save)                                                                   \
    X(mbedtls, ssl_set_bio)                                                                        \
    X(mbedtls, ssl_set_hostname)                                                                   \
    X(mbedtls, ssl_set_session)                                                                    \
    X(mbedtls, ssl_set_verify)                                                                     \
    X(mbedtls, ssl_setup)                                                                          \
    X(mbedtls, ssl_ticket_free)                                                                    \
    X(mbedtls, ssl_ticket_init)                                                                    \
    X(mbedtls, ssl_ticket_parse)                                                                   \
    X(mbedtls, ssl_ticket_setup)                                                                   \
    X(mbedtls, ssl_ticket_write)                                                                   \
    X(mbedtls, ssl_write)                                                                          \
    X(mbedtls, strerror)                                                                           \
    X(mbedtls, version_check_feature)                                                              \
    X(mbedtls, version_get_number)                                                                 \
    X(mbedtls, version_get_string_full)                                                            \
    X(mbedtls, x509_crt_free)                                                                      \
    X(mbedtls, x509_crt_init)                                                                      \
    X(mbedtls, x509_crt_parse)                                                                     \
    X(mbedtls, x509_crt_parse_file)                                                                \
    X(mbedtls, x509_crt_parse_path)                                                                \
    X(mbedtls, x509_crt_verify_info)                                                               \
    FUNCTIONS_VERSIONS(X)                                                                          \
    FUNCTIONS_SIGNAL(X)                                                                            \
    FUNCTIONS_1_3(X)

/* These are inline from 3.2 on. */
#if MBEDTLS_VERSION_NUMBER >= 0x03020000
#define FUNCTIONS_VERSIONS(X)
#else
#define FUNCTIONS_VERSIONS(X)                                                                      \
    X(mbedtls, ssl_conf_max_version)                                                               \
    X(mbedtls, ssl_conf_min_version)
#endif

/* From 3.6.1 on one has to ask to be told of tickets. */
#if defined(MBEDTLS_SSL_TLS1_3_SIGNAL_NEW_SESSION_TICKETS_ENABLED)
#define FUNCTIONS_SIGNAL(X) X(mbedtls, ssl_conf_tls13_enable_signal_new_session_tickets)
#else
#define FUNCTIONS_SIGNAL(X)
#endif

/* What a library is built with and the size of its structures depends on. */
#define FEATURES(X)                                                                                \
    X(MBEDTLS_ECP_RESTARTABLE)                                                                     \
    X(MBEDTLS_HAVE_TIME)                                                                           \
    X(MBEDTLS_SSL_ALPN)                                                                            \
    X(MBEDTLS_SSL_ASYNC_PRIVATE)                                                                   \
    X(MBEDTLS_SSL_CBC_RECORD_SPLITTING)                                                            \
    X(MBEDTLS_SSL_DTLS_CONNECTION_ID)                                                              \
    X(MBEDTLS_SSL_EARLY_DATA)                                                                      \
    X(MBEDTLS_SSL_ENCRYPT_THEN_MAC)                                                                \
    X(MBEDTLS_SSL_EXPORT_KEYS)                                                                     \
    X(MBEDTLS_SSL_EXTENDED_MASTER_SECRET)                                                          \
    X(MBEDTLS_SSL_KEEP_PEER_CERTIFICATE)                                                           \
    X(MBEDTLS_SSL_MAX_FRAGMENT_LENGTH)                                                             \
    X(MBEDTLS_SSL_PROTO_DTLS)                                                                      \
    X(MBEDTLS_SSL_PROTO_TLS1_3)                                                                    \
    X(MBEDTLS_SSL_RENEGOTIATION)                                                                   \
    X(MBEDTLS_SSL_SERVER_NAME_INDICATION)                                                          \
    X(MBEDTLS_SSL_SESSION_TICKETS)                                                                 \
    X(MBEDTLS_SSL_VARIABLE_BUFFER_LENGTH)                                                          \
    X(MBEDTLS_THREADING_C)                                                                         \
    X(MBEDTLS_USE_PSA_CRYPTO)                                                                      \
    X(MBEDTLS_X509_TRUSTED_CERTIFICATE_CALLBACK)

#define NAME(prefix, function) #prefix "_" #function,
#define MEMBER(prefix, function) __typeof__(&prefix##_##function) function;
#define TEXT(...) #__VA_ARGS__
#define FEATURE(name) {#name, TEXT(name)},

static const char *const function_names[] = {FUNCTIONS(NAME)};

/* A feature that we were compiled with is a macro, and expands to something else. */
static const struct {
    const char *name, *expanded;
} features[] = {FEATURES(FEATURE)};

typedef struct library {
    FUNCTIONS(MEMBER)
    char version[32];
} library;

static library lib;

/* By the numbers of their interfaces; those of our version first. The second and the third are
   asked where a library does not pass on what it depends on. */
static const char *const files[3][12] = {
    {
#if MBEDTLS_VERSION_NUMBER < 0x03000000
        "libmbedtls.so.14", "libmbedtls.14.dylib",
#elif MBEDTLS_VERSION_NUMBER >= 0x03060000
        "libmbedtls.so.21", "libmbedtls.21.dylib",
#elif MBEDTLS_VERSION_NUMBER >= 0x03050000
        "libmbedtls.so.20", "libmbedtls.20.dylib",
#elif MBEDTLS_VERSION_NUMBER >= 0x03030000
        "libmbedtls.so.19", "libmbedtls.19.dylib",
#endif
        "libmbedtls.so.21", "libmbedtls.so.20", "libmbedtls.so.19", "libmbedtls.so.14",
        "libmbedtls.dylib", "libmbedtls.dll", NULL},
    {
#if MBEDTLS_VERSION_NUMBER < 0x03000000
        "libmbedx509.so.1", "libmbedx509.1.dylib",
#elif MBEDTLS_VERSION_NUMBER >= 0x03060000
        "libmbedx509.so.7", "libmbedx509.7.dylib",
#elif MBEDTLS_VERSION_NUMBER >= 0x03050000
        "libmbedx509.so.6", "libmbedx509.6.dylib",
#endif
        "libmbedx509.dylib", "libmbedx509.dll", NULL},
    {
#if MBEDTLS_VERSION_NUMBER < 0x03000000
        "libmbedcrypto.so.7", "libmbedcrypto.7.dylib",
#elif MBEDTLS_VERSION_NUMBER >= 0x03060000
        "libmbedcrypto.so.16", "libmbedcrypto.16.dylib",
#elif MBEDTLS_VERSION_NUMBER >= 0x03050000
        "libmbedcrypto.so.15", "libmbedcrypto.15.dylib",
#endif
        "libmbedcrypto.dylib", "libmbedcrypto.dll", NULL},
};

static void *find_function(bk_os *os, void *loaded[3], const char *name) {
    void *found = NULL;
    for (int i = 0; i < 3 && found == NULL; i++) {
        if (loaded[i] == NULL)
            loaded[i] = os->library(os, files[i], 0);
        if (loaded[i] != NULL)
            found = os->symbol(os, loaded[i], name);
    }
    return found;
}

static int check_library(library *found, bk_error *error) {
    char name[18] = "";
    found->version_get_string_full(name);
    (void)snprintf(found->version, sizeof found->version, "%s", name);
    if (found->version_get_number() >> 16 != MBEDTLS_VERSION_NUMBER >> 16)
        return bk_error_set(error, BK_ETLS_ENGINE, 0,
                            "here is %s, but becket was compiled for mbed TLS %d.%d",
                            found->version, MBEDTLS_VERSION_MAJOR, MBEDTLS_VERSION_MINOR);
    for (size_t i = 0; i < sizeof features / sizeof features[0]; i++) {
        bool ours = strcmp(features[i].name, features[i].expanded) != 0;
        int theirs = found->version_check_feature(features[i].name);
        if (theirs == -2) /* it does not know */
            break;
        if (ours != (theirs == 0))
            return bk_error_set(error, BK_ETLS_ENGINE, 0,
                                "this %s was built %s %s, unlike the one becket was compiled for",
                                found->version, ours ? "without" : "with", features[i].name);
    }
    return 0;
}

static int find_functions(bk_os *os, library *ret_found, bk_error *error) {
    void *found[sizeof function_names / sizeof function_names[0]], *loaded[3] = {NULL};
    if (BK_HAS(os, library) && BK_HAS(os, symbol))
        loaded[0] = os->library(os, files[0], 0);
    if (loaded[0] == NULL)
        return bk_error_set(error, BK_ETLS_ENGINE, 0, "mbed TLS (%s) is not here", files[0][0]);
    for (size_t i = 0; i < sizeof found / sizeof found[0]; i++) {
        found[i] = find_function(os, loaded, function_names[i]);
        if (found[i] == NULL)
            return bk_error_set(error, BK_ETLS_ENGINE, 0,
                                "this mbed TLS has no %s; version %d.%d is needed",
                                function_names[i], MBEDTLS_VERSION_MAJOR, MBEDTLS_VERSION_MINOR);
    }
    memcpy(ret_found, found, sizeof found);
    return check_library(ret_found, error);
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

enum { TICKET_SECONDS = 24 * 60 * 60, NAME_BYTES = 255 };

typedef struct engine_context {
    bk_os *os;
    bool server, no_tickets;
    int verify;
    mbedtls_entropy_context entropy;
    mbedtls_ctr_drbg_context random;
    mbedtls_ssl_config config;
    mbedtls_x509_crt chain, authorities;
    mbedtls_pk_context key;
    mbedtls_ssl_ticket_context tickets; /* its keys change by themselves */
    const char *alpn[];                 /* ended by NULL; the names follow */
} engine_context;

typedef struct engine_tls {
    bk_tls base;
    engine_context *context;
    mbedtls_ssl_context ssl;
    bk_span in;         /* what the library may receive */
    bk_tls_out *out;    /* where it sends; NULL: nobody called */
    char *name;         /* whom to ask for and verify, or who was asked for; NULL: nobody */
    size_t address;     /* the bytes of name as an IP address; 0: it is none */
    uint8_t bytes[16];  /* … and what they are */
    uint8_t alert;      /* what was sent in plain */
    uint8_t last[7];    /* the bytes that came last */
    bool spoken;        /* something was sent in this call */
    bool opened, ended; /* the handshake is over; close_notify has come */
    bool certified;     /* the server sent a certificate: nothing was resumed */
    bool no_memory;     /* bk_tls_send had none */
} engine_tls;

/* ---- What the library receives from and sends to ---- */

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

static int pull(void *arg, unsigned char *room, size_t n) {
    engine_tls *self = arg;
    if (self->in.size == 0)
        return MBEDTLS_ERR_SSL_WANT_READ;
    const unsigned char *from = self->in.base;
    if (n > self->in.size)
        n = self->in.size;
    remember(self, from, n);
    memcpy(room, from, n);
    self->in = (bk_span){from + n, self->in.size - n};
    return (int)n;
}

static int push(void *arg, const unsigned char *data, size_t n) {
    engine_tls *self = arg;
    if (self->out == NULL || bk_tls_send(self->out, data, n) < 0) {
        self->no_memory = true;
        return MBEDTLS_ERR_SSL_ALLOC_FAILED;
    }
    self->spoken = true;
    if (n == 7 && data[0] == MBEDTLS_SSL_MSG_ALERT && data[5] == MBEDTLS_SSL_ALERT_LEVEL_FATAL)
        self->alert = data[6];
    return (int)n;
}

/* ---- Errors ---- */

static const struct {
    uint8_t number;
    const char *name;
} alerts[] = {
    {0, "close notify"},
    {10, "unexpected message"},
    {20, "bad record mac"},
    {22, "record overflow"},
    {40, "handshake failure"},
    {42, "bad certificate"},
    {43, "unsupported certificate"},
    {44, "certificate revoked"},
    {45, "certificate expired"},
    {46, "certificate unknown"},
    {47, "illegal parameter"},
    {48, "unknown ca"},
    {49, "access denied"},
    {50, "decode error"},
    {51, "decrypt error"},
    {70, "protocol version"},
    {71, "insufficient security"},
    {80, "internal error"},
    {86, "inappropriate fallback"},
    {90, "user canceled"},
    {100, "no renegotiation"},
    {109, "missing extension"},
    {110, "unsupported extension"},
    {112, "unrecognized name"},
    {116, "certificate required"},
    {120, "no application protocol"},
};

static int code_of_alert(int alert) {
    switch (alert) {
    case MBEDTLS_SSL_ALERT_MSG_PROTOCOL_VERSION:
        return BK_ETLS_VERSION;
    case MBEDTLS_SSL_ALERT_MSG_HANDSHAKE_FAILURE:
    case MBEDTLS_SSL_ALERT_MSG_INSUFFICIENT_SECURITY:
        return BK_ETLS_CIPHER;
    case MBEDTLS_SSL_ALERT_MSG_NO_APPLICATION_PROTOCOL:
        return BK_ETLS_ALPN;
    case MBEDTLS_SSL_ALERT_MSG_UNRECOGNIZED_NAME:
        return BK_ETLS_NAME;
    default:
        return BK_ETLS_ALERT;
    }
}

/* Codes that have another meaning, or none, in another version. */
#if MBEDTLS_VERSION_NUMBER >= 0x03000000
static int code_of_version(int error) {
    switch (error) {
    case MBEDTLS_ERR_SSL_BAD_PROTOCOL_VERSION:
        return BK_ETLS_VERSION;
    case MBEDTLS_ERR_SSL_HANDSHAKE_FAILURE:
        return BK_ETLS_CIPHER;
    case MBEDTLS_ERR_SSL_NO_APPLICATION_PROTOCOL:
        return BK_ETLS_ALPN;
    case MBEDTLS_ERR_SSL_UNRECOGNIZED_NAME:
        return BK_ETLS_NAME;
    case MBEDTLS_ERR_SSL_BAD_CERTIFICATE:
        return BK_ETLS_UNTRUSTED;
    case MBEDTLS_ERR_SSL_DECODE_ERROR:
    case MBEDTLS_ERR_SSL_ILLEGAL_PARAMETER:
    case MBEDTLS_ERR_SSL_UNSUPPORTED_EXTENSION:
        return BK_ETLS_PROTOCOL;
    default:
        return BK_ETLS;
    }
}
#else
static int code_of_version(int error) {
    switch (error) {
    case MBEDTLS_ERR_SSL_BAD_HS_PROTOCOL_VERSION:
        return BK_ETLS_VERSION;
    case MBEDTLS_ERR_SSL_NO_CIPHER_CHOSEN:
    case MBEDTLS_ERR_SSL_NO_USABLE_CIPHERSUITE:
        return BK_ETLS_CIPHER;
    case MBEDTLS_ERR_SSL_CERTIFICATE_REQUIRED:
        return BK_ETLS_NO_CERTIFICATE;
    case MBEDTLS_ERR_SSL_PEER_VERIFY_FAILED:
    case MBEDTLS_ERR_SSL_BAD_HS_CERTIFICATE:
        return BK_ETLS_UNTRUSTED;
    default: /* -0x7900 … -0x7E80: this or that message is bad */
        return error <= MBEDTLS_ERR_SSL_BAD_HS_CLIENT_HELLO &&
                       error >= MBEDTLS_ERR_SSL_BAD_HS_FINISHED
                   ? BK_ETLS_PROTOCOL
                   : BK_ETLS;
    }
}
#endif

/* What was told the peer often says more than the library's code. */
static int code_of(const engine_tls *self, int error) {
    switch (error) {
    case MBEDTLS_ERR_SSL_ALLOC_FAILED:
        return -ENOMEM;
    case MBEDTLS_ERR_SSL_INVALID_MAC:
        return BK_ETLS_RECORD;
    case MBEDTLS_ERR_SSL_NO_CLIENT_CERTIFICATE:
        return BK_ETLS_NO_CERTIFICATE;
    case MBEDTLS_ERR_X509_CERT_VERIFY_FAILED:
        return BK_ETLS_UNTRUSTED;
    case MBEDTLS_ERR_SSL_BAD_INPUT_DATA: /* a record that is too long */
    case MBEDTLS_ERR_SSL_INVALID_RECORD:
    case MBEDTLS_ERR_SSL_UNEXPECTED_MESSAGE:
    case MBEDTLS_ERR_SSL_UNEXPECTED_RECORD:
        return BK_ETLS_PROTOCOL;
    default:
        break;
    }
    int told = self->alert != 0 ? code_of_alert(self->alert) : BK_ETLS_ALERT;
    if (told != BK_ETLS_ALERT) /* after the handshake an alert means nothing more precise */
        return self->opened ? BK_ETLS_ALERT : told;
    const int module = -error & 0xff80;       /* the lower bits: why it was not content */
    if (module >= 0x2080 && module <= 0x3000) /* X.509 */
        return BK_ETLS_UNTRUSTED;
    if (module >= 0x3880 && module <= 0x4f80) /* PK, RSA, ECP: a handshake that was damaged */
        return BK_ETLS_PROTOCOL;
    return code_of_version(error);
}

/* For what the library says nothing about to the peer. */
static unsigned char alert_for(int code) {
    switch (code) {
    case BK_ETLS_RECORD:
        return MBEDTLS_SSL_ALERT_MSG_BAD_RECORD_MAC;
    case BK_ETLS_PROTOCOL:
        return MBEDTLS_SSL_ALERT_MSG_UNEXPECTED_MESSAGE;
    case BK_ETLS_VERSION:
        return MBEDTLS_SSL_ALERT_MSG_PROTOCOL_VERSION;
    case BK_ETLS_ALPN:
        return MBEDTLS_SSL_ALERT_MSG_NO_APPLICATION_PROTOCOL;
    case BK_ETLS_CIPHER:
    case BK_ETLS_NO_CERTIFICATE:
        return MBEDTLS_SSL_ALERT_MSG_HANDSHAKE_FAILURE;
    case BK_ETLS_UNTRUSTED:
    case BK_ETLS_WRONG_NAME:
        return MBEDTLS_SSL_ALERT_MSG_BAD_CERT;
    default:
        return MBEDTLS_SSL_ALERT_MSG_INTERNAL_ERROR;
    }
}

/* A server that has not read its hello has no version yet, and would write 0. */
static void tell_peer(engine_tls *self, unsigned char alert) {
    const unsigned char record[] = {MBEDTLS_SSL_MSG_ALERT,         3,    3, 0, 2,
                                    MBEDTLS_SSL_ALERT_LEVEL_FATAL, alert};
    if (self->spoken)
        return;
    if (self->context->server && self->ssl.MBEDTLS_PRIVATE(state) <= MBEDTLS_SSL_CLIENT_HELLO)
        (void)push(self, record, sizeof record);
    else
        (void)lib.ssl_send_alert_message(&self->ssl, MBEDTLS_SSL_ALERT_LEVEL_FATAL, alert);
}

static int fail_alert(engine_tls *self, int alert) {
    const char *name = "of no known name";
    for (size_t i = 0; i < sizeof alerts / sizeof alerts[0]; i++)
        if (alerts[i].number == alert)
            name = alerts[i].name;
    return bk_tls_fail(self->out, self->opened ? BK_ETLS_ALERT : code_of_alert(alert),
                       "the peer sent an alert: %s (%d)", name, alert);
}

/* The library's words are lines; ours is one. */
static int fail_verify(engine_tls *self, uint32_t wrong) {
    const int code =
        wrong == MBEDTLS_X509_BADCERT_CN_MISMATCH ? BK_ETLS_WRONG_NAME : BK_ETLS_UNTRUSTED;
    char words[400] = "", *end;
    tell_peer(self, wrong & MBEDTLS_X509_BADCERT_EXPIRED       ? MBEDTLS_SSL_ALERT_MSG_CERT_EXPIRED
                    : wrong & MBEDTLS_X509_BADCERT_NOT_TRUSTED ? MBEDTLS_SSL_ALERT_MSG_UNKNOWN_CA
                                                               : MBEDTLS_SSL_ALERT_MSG_BAD_CERT);
    if (lib.x509_crt_verify_info(words, sizeof words, " ", wrong) < 0)
        (void)snprintf(words, sizeof words, " The certificate is not good");
    for (end = words + strlen(words); end > words && end[-1] == '\n'; end--)
        end[-1] = '\0';
    while ((end = strchr(words, '\n')) != NULL)
        *end = ';';
    return bk_tls_fail(self->out, code, "%s", *words == ' ' ? words + 1 : words);
}

/* Tell the peer, unless it was the peer who told us, and the caller. */
static int fail(engine_tls *self, int error) {
    char words[160] = "";
    if (self->no_memory)
        return bk_tls_fail(self->out, -ENOMEM, "%s", bk_strerror(-ENOMEM));
    if (error == MBEDTLS_ERR_SSL_PEER_CLOSE_NOTIFY)
        return fail_alert(self, 0);
    if (error == MBEDTLS_ERR_SSL_FATAL_ALERT_MESSAGE)
        return fail_alert(self, self->ssl.MBEDTLS_PRIVATE(in_msg)[1]);
    if (error == MBEDTLS_ERR_SSL_INVALID_MAC && was_plain_alert(self))
        return fail_alert(self, self->last[6]);
    int code = code_of(self, error);
    uint32_t wrong = lib.ssl_get_verify_result(&self->ssl);
    if (code == BK_ETLS_UNTRUSTED && wrong != 0 && wrong != UINT32_MAX)
        return fail_verify(self, wrong);
    tell_peer(self, alert_for(code));
    lib.strerror(error, words, sizeof words);
    return bk_tls_fail(self->out, code, "%s", words);
}

static int fail_config(bk_error *error, const char *what, int code) {
    char words[160] = "";
    lib.strerror(code, words, sizeof words);
    return bk_error_set(error, BK_ETLS_CONFIG, 0, "%s: %s", what, words);
}

/* ---- Contexts ---- */

/* PEM is given with the NUL that follows it. */
static int parse_chain(mbedtls_x509_crt *chain, bk_span text) {
    return lib.x509_crt_parse(chain, text.base, text.size + 1);
}

static int use_certificate(engine_context *self, const bk_tls_settings *s, bk_error *error) {
    if (s->certificate.size == 0 && s->key.size == 0 && !s->server)
        return 0;
    if (s->certificate.size == 0 || s->key.size == 0)
        return bk_error_set(error, BK_ETLS_CONFIG, 0, "%s: it is empty, or there is none",
                            s->certificate.size == 0 ? "cert" : "key");
    int code = parse_chain(&self->chain, s->certificate);
    if (code > 0)
        return bk_error_set(error, BK_ETLS_CONFIG, 0, "cert: %d of its certificates cannot be read",
                            code);
    if (code < 0)
        return fail_config(error, "cert", code);
    code = lib.pk_parse_key(&self->key, s->key.base, s->key.size + 1, NULL, 0 WITH_RANDOM(self));
    if (code == MBEDTLS_ERR_PK_PASSWORD_REQUIRED)
        return bk_error_set(error, BK_ETLS_CONFIG, 0, "key: it is encrypted");
    if (code < 0)
        return fail_config(error, "key", code);
    if (lib.pk_check_pair(&self->chain.pk, &self->key WITH_RANDOM(self)) != 0)
        return bk_error_set(error, BK_ETLS_CONFIG, 0, "key: it is not the certificate's");
    code = lib.ssl_conf_own_cert(&self->config, &self->chain, &self->key);
    return code < 0 ? fail_config(error, "cert", code) : 0;
}

/* mbed TLS knows no system's authorities: they are where distributions have them. What it cannot
   read of them it leaves out. */
static bool trust_system(mbedtls_x509_crt *authorities) {
    static const char *const bundles[] = {
        "/etc/ssl/certs/ca-certificates.crt", /* Debian, Arch, Gentoo */
        "/etc/pki/tls/certs/ca-bundle.crt",   /* Fedora, Red Hat */
        "/etc/ssl/ca-bundle.pem",             /* SUSE */
        "/etc/ssl/cert.pem",                  /* Alpine, BSDs, macOS */
        "/usr/local/share/certs/ca-root-nss.crt",
    };
    for (size_t i = 0; i < sizeof bundles / sizeof bundles[0]; i++)
        if (lib.x509_crt_parse_file(authorities, bundles[i]) >= 0)
            return true;
    return lib.x509_crt_parse_path(authorities, "/etc/ssl/certs") >= 0 && authorities->version > 0;
}

static int use_authorities(engine_context *self, const bk_tls_settings *s, bk_error *error) {
    if (s->ca.size > 0) {
        int code = parse_chain(&self->authorities, s->ca);
        if (code != 0) /* positive: so many could not be read */
            return fail_config(error, "ca", code < 0 ? code : MBEDTLS_ERR_X509_INVALID_FORMAT);
    } else if (s->verify == BK_TLS_VERIFY_NONE) {
        return 0;
    } else if (!trust_system(&self->authorities)) {
        return bk_error_set(error, BK_ETLS_CONFIG, 0,
                            "ca: no authorities are where systems have them, such as %s",
                            "/etc/ssl/certs/ca-certificates.crt");
    }
    lib.ssl_conf_ca_chain(&self->config, &self->authorities, NULL);
    return 0;
}

static int use_alpn(engine_context *self, const bk_tls_settings *s, bk_error *error) {
    size_t count = 0;
    while (s->alpn != NULL && s->alpn[count] != NULL)
        count++;
    char *copy = (char *)(self->alpn + count + 1);
    for (size_t i = 0; i < count; i++) {
        size_t n = strlen(s->alpn[i]) + 1;
        self->alpn[i] = memcpy(copy, s->alpn[i], n);
        copy += n;
    }
    int code = count == 0 ? 0 : lib.ssl_conf_alpn_protocols(&self->config, self->alpn);
    return code < 0 ? fail_config(error, "alpn", code) : 0;
}

static int use_versions(engine_context *self, const bk_tls_settings *s, bk_error *error) {
    int minimum = s->minimum != 0 ? s->minimum : BK_TLS_1_2;
    int maximum = s->maximum != 0 && s->maximum < VERSION_BEST ? s->maximum : VERSION_BEST;
    if (minimum > maximum)
        return bk_error_set(error, BK_ETLS_CONFIG, 0, "min: %s has no TLS 1.3", lib.version);
#if MBEDTLS_VERSION_NUMBER >= 0x03020000
    mbedtls_ssl_conf_min_tls_version(&self->config, (mbedtls_ssl_protocol_version)minimum);
    mbedtls_ssl_conf_max_tls_version(&self->config, (mbedtls_ssl_protocol_version)maximum);
#else
    lib.ssl_conf_min_version(&self->config, minimum >> 8, minimum & 0xff);
    lib.ssl_conf_max_version(&self->config, maximum >> 8, maximum & 0xff);
#endif
    return 0;
}

/* The name a client asks for, which the library does not keep. */
static int on_name(void *arg, mbedtls_ssl_context *ssl, const unsigned char *name, size_t n) {
    engine_tls *self = (engine_tls *)(void *)((char *)ssl - offsetof(engine_tls, ssl));
    bk_os *os = ((engine_context *)arg)->os;
    bk_dealloc(os, self->name);
    self->name = n <= NAME_BYTES ? bk_alloc(os, n + 1) : NULL;
    if (self->name == NULL)
        return -1;
    memcpy(self->name, name, n);
    self->name[n] = '\0';
    return 0;
}

/* A session of TLS 1.3 does not hold the peer's certificate: where clients show theirs, one who
   resumed would be nobody. */
static bool forgets_clients(const engine_context *self) {
    return (int)VERSION_BEST >= (int)BK_TLS_1_3 && self->verify != BK_TLS_VERIFY_NONE;
}

static int use_tickets(engine_context *self, bk_error *error) {
    if (!self->server) {
        lib.ssl_conf_session_tickets(&self->config, self->no_tickets
                                                        ? MBEDTLS_SSL_SESSION_TICKETS_DISABLED
                                                        : MBEDTLS_SSL_SESSION_TICKETS_ENABLED);
#if defined(MBEDTLS_SSL_TLS1_3_SIGNAL_NEW_SESSION_TICKETS_ENABLED)
        if (!self->no_tickets)
            lib.ssl_conf_tls13_enable_signal_new_session_tickets(
                &self->config, MBEDTLS_SSL_TLS1_3_SIGNAL_NEW_SESSION_TICKETS_ENABLED);
#endif
    } else if (!self->no_tickets && !forgets_clients(self)) {
        int code = lib.ssl_ticket_setup(&self->tickets, lib.ctr_drbg_random, &self->random,
                                        MBEDTLS_CIPHER_AES_256_GCM, TICKET_SECONDS);
        if (code < 0)
            return fail_config(error, "mbed TLS", code);
        lib.ssl_conf_session_tickets_cb(&self->config, lib.ssl_ticket_write, lib.ssl_ticket_parse,
                                        &self->tickets);
    }
    return 0;
}

/* A client's OPTIONAL would have mbed TLS accept anybody. */
static int authmode(const bk_tls_settings *s) {
    if (s->verify == BK_TLS_VERIFY_NONE)
        return MBEDTLS_SSL_VERIFY_NONE;
    return s->server && s->verify == BK_TLS_VERIFY_OPTIONAL ? MBEDTLS_SSL_VERIFY_OPTIONAL
                                                            : MBEDTLS_SSL_VERIFY_REQUIRED;
}

static int start(engine_context *self, const bk_tls_settings *s, bk_error *error) {
    static const unsigned char personal[] = "becket";
    int code = 0;
#if defined(MBEDTLS_SSL_PROTO_TLS1_3)
    if (lib.crypto_init() != PSA_SUCCESS)
        return bk_error_set(error, BK_ETLS_CONFIG, 0, "mbed TLS: its cryptography does not start");
#endif
    code = lib.ctr_drbg_seed(&self->random, lib.entropy_func, &self->entropy, personal,
                             sizeof personal - 1);
    if (code == 0)
        code = lib.ssl_config_defaults(&self->config,
                                       s->server ? MBEDTLS_SSL_IS_SERVER : MBEDTLS_SSL_IS_CLIENT,
                                       MBEDTLS_SSL_TRANSPORT_STREAM, MBEDTLS_SSL_PRESET_DEFAULT);
    return code < 0 ? fail_config(error, "mbed TLS", code) : 0;
}

static int configure(engine_context *self, const bk_tls_settings *s, bk_error *error) {
    int code = start(self, s, error);
    if (code == 0)
        code = use_certificate(self, s, error);
    if (code == 0)
        code = use_authorities(self, s, error);
    if (code == 0)
        code = use_alpn(self, s, error);
    if (code == 0)
        code = use_versions(self, s, error);
    if (code == 0)
        code = use_tickets(self, error);
    lib.ssl_conf_rng(&self->config, lib.ctr_drbg_random, &self->random);
    lib.ssl_conf_authmode(&self->config, authmode(s));
    if (s->server)
        lib.ssl_conf_sni(&self->config, on_name, self);
    return code;
}

static void engine_context_free(void *context) {
    engine_context *self = context;
    lib.ssl_ticket_free(&self->tickets);
    lib.pk_free(&self->key);
    lib.x509_crt_free(&self->authorities);
    lib.x509_crt_free(&self->chain);
    lib.ssl_config_free(&self->config);
    lib.ctr_drbg_free(&self->random);
    lib.entropy_free(&self->entropy);
    bk_dealloc(self->os, self);
}

static int engine_context_new(const bk_tls_settings *s, bk_error *error, void **ret_context) {
    size_t size = sizeof(char *);
    for (const char *const *name = s->alpn; name != NULL && *name != NULL; name++)
        size += sizeof(char *) + strlen(*name) + 1;
    engine_context *self = bk_alloc_zero(s->os, sizeof *self + size);
    if (self == NULL)
        return bk_error_set(error, -ENOMEM, 0, "%s", bk_strerror(-ENOMEM));
    self->os = s->os;
    self->server = s->server;
    self->verify = s->verify;
    self->no_tickets = s->no_tickets;
    lib.entropy_init(&self->entropy);
    lib.ctr_drbg_init(&self->random);
    lib.ssl_config_init(&self->config);
    lib.x509_crt_init(&self->chain);
    lib.x509_crt_init(&self->authorities);
    lib.pk_init(&self->key);
    lib.ssl_ticket_init(&self->tickets);
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

/* Kinds of names (RFC 5280 4.2.1.6): iPAddress, dNSName. */
enum {
    TAG_ADDRESS = MBEDTLS_ASN1_CONTEXT_SPECIFIC | 7,
    TAG_HOST = MBEDTLS_ASN1_CONTEXT_SPECIFIC | 2,
};

static bool may_be(const engine_tls *self, const mbedtls_x509_buf *name) {
    if (self->address == 0)
        return name->tag == TAG_HOST;
    return name->tag == TAG_ADDRESS && name->len == self->address &&
           memcmp(name->p, self->bytes, self->address) == 0;
}

/* The library compares names, but where there are none, the subject's, against RFC 9525 2; and it
   does not, before 3.5, compare addresses, for which it would also ask. */
static int verify_name(void *arg, mbedtls_x509_crt *certificate, int depth, uint32_t *flags) {
    if (depth != 0)
        return 0;
    const mbedtls_x509_sequence *name = &certificate->subject_alt_names;
    for (; name != NULL; name = name->next)
        if (may_be(arg, &name->buf))
            return 0;
    *flags |= MBEDTLS_X509_BADCERT_CN_MISMATCH;
    return 0;
}

static int set_name(engine_tls *self, const char *name) {
    size_t n = name == NULL ? 0 : strlen(name);
    if (n == 0) /* from 3.6.3 on it must be said that there is none */
        return lib.ssl_set_hostname(&self->ssl, NULL);
    self->name = bk_alloc(self->context->os, n + 1);
    if (self->name == NULL)
        return MBEDTLS_ERR_SSL_ALLOC_FAILED;
    memcpy(self->name, name, n);
    self->name[n] = '\0';
    self->address = bk_tls_address(self->name, self->bytes);
    lib.ssl_set_verify(&self->ssl, verify_name, self);
    return lib.ssl_set_hostname(&self->ssl, self->address > 0 ? NULL : self->name);
}

/* mbed TLS breaks on a session that is not whole, so one is kept with its digest before it. */
static void set_session(engine_tls *self, bk_span kept) {
    mbedtls_ssl_session session;
    uint64_t sum;
    if (kept.size <= sizeof sum || self->context->no_tickets)
        return;
    const unsigned char *data = (const unsigned char *)kept.base + sizeof sum;
    memcpy(&sum, kept.base, sizeof sum);
    if (sum != bk_tls_digest(BK_TLS_DIGEST, data, kept.size - sizeof sum))
        return;
    lib.ssl_session_init(&session);
    if (lib.ssl_session_load(&session, data, kept.size - sizeof sum) == 0)
        (void)lib.ssl_set_session(&self->ssl, &session);
    lib.ssl_session_free(&session);
}

static int engine_connection_new(void *context, const char *server_name, bk_span session,
                                 bk_tls **ret_tls) {
    engine_context *c = context;
    engine_tls *self = bk_alloc_zero(c->os, sizeof *self);
    if (self == NULL)
        return -ENOMEM;
    self->base.ops = &engine_ops;
    self->context = c;
    lib.ssl_init(&self->ssl);
    int code = lib.ssl_setup(&self->ssl, &c->config);
    if (code == 0 && !c->server)
        code = set_name(self, server_name);
    if (code < 0) {
        engine_close(&self->base);
        return code == MBEDTLS_ERR_SSL_ALLOC_FAILED ? -ENOMEM : -EINVAL;
    }
    lib.ssl_set_bio(&self->ssl, self, push, pull, NULL);
    if (!c->server)
        set_session(self, session);
    *ret_tls = &self->base;
    return 0;
}

/* ---- Stepping ---- */

static void save_session(engine_tls *self, const mbedtls_ssl_session *session) {
    bk_os *os = self->context->os;
    size_t n = 0;
    (void)lib.ssl_session_save(session, NULL, 0, &n);
    uint64_t sum;
    unsigned char *bytes = n > 0 ? bk_alloc(os, sizeof sum + n) : NULL;
    if (bytes != NULL && lib.ssl_session_save(session, bytes + sizeof sum, n, &n) == 0) {
        sum = bk_tls_digest(BK_TLS_DIGEST, bytes + sizeof sum, n);
        memcpy(bytes, &sum, sizeof sum);
        bk_tls_keep_session(self->out, bytes, sizeof sum + n);
    }
    bk_dealloc(os, bytes);
}

static void keep_session(engine_tls *self) {
    mbedtls_ssl_session session;
    if (self->context->server || self->context->no_tickets)
        return;
    lib.ssl_session_init(&session);
    if (lib.ssl_get_session(&self->ssl, &session) == 0)
        save_session(self, &session);
    lib.ssl_session_free(&session);
}

static bool is_newer(const engine_tls *self) {
    return strcmp(lib.ssl_get_version(&self->ssl), "TLSv1.3") == 0;
}

/* OPTIONAL lets a server go on whatever the certificate: a bad one is refused as soon as it came,
   before our Finished says that all is well. */
static int check_peer(engine_tls *self) {
    if (!self->context->server || self->context->verify != BK_TLS_VERIFY_OPTIONAL)
        return 0;
    uint32_t wrong = lib.ssl_get_verify_result(&self->ssl);
    if (wrong == UINT32_MAX || wrong & MBEDTLS_X509_BADCERT_MISSING)
        return 0;
    wrong &= ~(uint32_t)MBEDTLS_X509_BADCERT_SKIP_VERIFY;
    return wrong == 0 ? 0 : fail_verify(self, wrong);
}

/* 0: it is over; BK_TLS_OPENING: it is not. */
static int handshake(engine_tls *self) {
    while (self->ssl.MBEDTLS_PRIVATE(state) != MBEDTLS_SSL_HANDSHAKE_OVER) {
        size_t before = self->in.size;
        self->spoken = false;
        int code = lib.ssl_handshake_step(&self->ssl);
        self->certified |= self->ssl.MBEDTLS_PRIVATE(state) == MBEDTLS_SSL_SERVER_CERTIFICATE;
        if (code != 0 && code != MBEDTLS_ERR_SSL_WANT_READ)
            return fail(self, code);
        if (code != 0 && self->in.size == before)
            return BK_TLS_OPENING;
        self->spoken = false;
        if (code == 0 && (code = check_peer(self)) < 0)
            return code;
    }
    self->opened = true;
    if (!is_newer(self))
        keep_session(self); /* after 1.2 tickets come by themselves */
    return 0;
}

static bool is_fatal(int code) {
#if defined(MBEDTLS_ERR_SSL_RECEIVED_NEW_SESSION_TICKET)
    if (code == MBEDTLS_ERR_SSL_RECEIVED_NEW_SESSION_TICKET)
        return false;
#endif
    return code < 0 && code != MBEDTLS_ERR_SSL_WANT_READ;
}

static int read_plain(engine_tls *self, bk_room *room) {
    for (;;) {
        unsigned char none;
        if (self->ended)
            return BK_TLS_ENDED;
        if (room->size == 0 && lib.ssl_get_bytes_avail(&self->ssl) > 0)
            return BK_TLS_PENDING;
        size_t before = self->in.size;
        self->spoken = false;
        int n = lib.ssl_read(&self->ssl, room->size > 0 ? room->base : &none, room->size);
        self->ended = n == MBEDTLS_ERR_SSL_PEER_CLOSE_NOTIFY;
        if (!self->ended && is_fatal(n))
            return fail(self, n);
        if (n > 0) {
            room->base = (char *)room->base + n;
            room->size -= (size_t)n;
        } else if (n == MBEDTLS_ERR_SSL_WANT_READ || n == 0) {
            if (self->in.size == before)
                return 0;
        } else if (!self->ended) {
            keep_session(self);
        }
    }
}

static int engine_step(bk_tls *tls, bk_span *in, bk_room *room, bk_tls_out *out) {
    engine_tls *self = (engine_tls *)tls;
    self->in = *in;
    self->out = out;
    int code = self->opened ? 0 : handshake(self);
    if (code == 0)
        code = read_plain(self, room);
    *in = self->in;
    self->in = (bk_span){NULL, 0};
    self->out = NULL;
    return code;
}

static int engine_seal(bk_tls *tls, bk_span plain, bk_tls_out *out) {
    engine_tls *self = (engine_tls *)tls;
    const unsigned char *at = plain.base;
    int code = 0;
    self->out = out;
    while (plain.size > 0 && code == 0) {
        self->spoken = false;
        int n = lib.ssl_write(&self->ssl, at, plain.size);
        if (n <= 0) {
            code = fail(self, n < 0 ? n : MBEDTLS_ERR_SSL_INTERNAL_ERROR);
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
    self->spoken = false;
    int code = lib.ssl_close_notify(&self->ssl);
    if (code < 0)
        code = fail(self, code);
    self->out = NULL;
    return code;
}

static void engine_close(bk_tls *tls) {
    engine_tls *self = (engine_tls *)tls;
    bk_os *os = self->context->os;
    lib.ssl_free(&self->ssl);
    bk_dealloc(os, self->name);
    bk_dealloc(os, self);
}

/* ---- Questions ---- */

static int answer_text(const char *text, void *ret_value, size_t *size) {
    return bk_query_answer(ret_value, size, text, strlen(text) + 1);
}

static int answer_number(int number, void *ret_value, size_t *size) {
    return bk_query_answer(ret_value, size, &number, sizeof number);
}

static int query_bits(const engine_tls *self, void *ret_value, size_t *size) {
    const char *name = lib.ssl_get_ciphersuite(&self->ssl);
    const mbedtls_ssl_ciphersuite_t *suite =
        lib.ssl_ciphersuite_from_id(lib.ssl_get_ciphersuite_id(name));
    const mbedtls_cipher_info_t *cipher =
        suite == NULL ? NULL : lib.cipher_info_from_type(suite->MBEDTLS_PRIVATE(cipher));
    if (cipher == NULL)
        return -ENOTSUP;
#if MBEDTLS_VERSION_NUMBER >= 0x03000000
    return answer_number((int)mbedtls_cipher_info_get_key_bitlen(cipher), ret_value, size);
#else
    return answer_number((int)cipher->key_bitlen, ret_value, size);
#endif
}

static int query_alpn(const engine_tls *self, void *ret_value, size_t *size) {
    const char *name = lib.ssl_get_alpn_protocol(&self->ssl);
    return answer_text(name != NULL ? name : "", ret_value, size);
}

static int query_name(const engine_tls *self, void *ret_value, size_t *size) {
    bool asked = self->name != NULL && self->address == 0;
    return answer_text(asked ? self->name : "", ret_value, size);
}

static int query_certificate(const engine_tls *self, void *ret_value, size_t *size) {
    const mbedtls_x509_crt *peer = lib.ssl_get_peer_cert(&self->ssl);
    if (peer == NULL)
        return bk_query_answer(ret_value, size, "", 0);
    return bk_query_answer(ret_value, size, peer->raw.p, peer->raw.len);
}

static int engine_query(bk_tls *tls, int what, void *ret_value, size_t *size) {
    const engine_tls *self = (const engine_tls *)tls;
    if (!self->opened)
        return -ENOTSUP;
    switch (what) {
    case BK_QUERY_TLS_ENGINE:
        return answer_text(engine_ops.name, ret_value, size);
    case BK_QUERY_TLS_VERSION:
        return answer_text(lib.ssl_get_version(&self->ssl), ret_value, size);
    case BK_QUERY_TLS_CIPHER:
        return answer_text(lib.ssl_get_ciphersuite(&self->ssl), ret_value, size);
    case BK_QUERY_TLS_BITS:
        return query_bits(self, ret_value, size);
    case BK_QUERY_TLS_ALPN:
        return query_alpn(self, ret_value, size);
    case BK_QUERY_TLS_NAME:
        return query_name(self, ret_value, size);
    case BK_QUERY_TLS_CERT:
        return query_certificate(self, ret_value, size);
    case BK_QUERY_TLS_RESUMED:
        return answer_number(!self->certified, ret_value, size);
    default:
        return -ENOTSUP;
    }
}

/* mbed TLS has no key updates, not even with TLS 1.3. */
static int engine_rekey(bk_tls *tls, bk_tls_out *out) {
    (void)tls, (void)out;
    return -ENOTSUP;
}

static const bk_tls_ops engine_ops = {
    .size = sizeof(bk_tls_ops),
    .name = "mbedtls",
    .step = engine_step,
    .seal = engine_seal,
    .end = engine_end,
    .close = engine_close,
    .query = engine_query,
    .rekey = engine_rekey,
};

const bk_tls_engine bk_tls_engine_mbedtls = {
    .size = sizeof(bk_tls_engine),
    .name = "mbedtls",
    .open = engine_open,
    .version = engine_version,
    .context_new = engine_context_new,
    .context_free = engine_context_free,
    .connection_new = engine_connection_new,
};
