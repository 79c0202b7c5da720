/*
 * libssl.h: what we call of OpenSSL 3, found in the library when the program runs: so nothing of
 * OpenSSL is needed to build, and under Python the library is the one that its ssl module uses. For
 * openssl.c and certificate.c. tests/c/test_libssl.c holds it against OpenSSL's own headers.
 */
#ifndef BK_LIBSSL_H
#define BK_LIBSSL_H

#include <becket.h>

typedef struct ssl_st SSL;
typedef struct ssl_ctx_st SSL_CTX;
typedef struct ssl_method_st SSL_METHOD;
typedef struct ssl_session_st SSL_SESSION;
typedef struct ssl_cipher_st SSL_CIPHER;
typedef struct bio_st BIO;
typedef struct bio_method_st BIO_METHOD;
typedef struct x509_st X509;
typedef struct X509_name_st X509_NAME;
typedef struct X509_extension_st X509_EXTENSION;
typedef struct x509_store_st X509_STORE;
typedef struct x509_store_ctx_st X509_STORE_CTX;
typedef struct X509_VERIFY_PARAM_st X509_VERIFY_PARAM;
typedef struct evp_pkey_st EVP_PKEY;
typedef struct evp_md_st EVP_MD;
typedef struct evp_cipher_st EVP_CIPHER;
typedef struct asn1_string_st ASN1_INTEGER;
typedef struct asn1_string_st ASN1_TIME;
typedef struct ossl_lib_ctx_st OSSL_LIB_CTX;
typedef struct v3_ext_ctx X509V3_CTX;
struct lhash_st_CONF_VALUE;

typedef int bk_ssl_password(char *room, int size, int writing, void *arg);
typedef void bk_ssl_told(const SSL *ssl, int what, int value);
typedef int bk_ssl_verified(int good, X509_STORE_CTX *store);
typedef int bk_ssl_alpn(SSL *ssl, const unsigned char **ret_name, unsigned char *ret_size,
                        const unsigned char *offered, unsigned size, void *arg);

/* X(result, name, arguments) */
#define BK_LIBSSL(X)                                                                               \
    X(const SSL_METHOD *, TLS_method, (void))                                                      \
    X(const SSL_METHOD *, TLS_server_method, (void))                                               \
    X(const SSL_METHOD *, TLS_client_method, (void))                                               \
    X(const SSL_METHOD *, SSL_get_ssl_method, (const SSL *))                                       \
    X(SSL_CTX *, SSL_CTX_new, (const SSL_METHOD *))                                                \
    X(void, SSL_CTX_free, (SSL_CTX *))                                                             \
    X(long, SSL_CTX_ctrl, (SSL_CTX *, int, long, void *))                                          \
    X(uint64_t, SSL_CTX_set_options, (SSL_CTX *, uint64_t))                                        \
    X(int, SSL_CTX_use_certificate, (SSL_CTX *, X509 *))                                           \
    X(int, SSL_CTX_use_PrivateKey, (SSL_CTX *, EVP_PKEY *))                                        \
    X(int, SSL_CTX_check_private_key, (const SSL_CTX *))                                           \
    X(X509_STORE *, SSL_CTX_get_cert_store, (const SSL_CTX *))                                     \
    X(int, SSL_CTX_set_default_verify_paths, (SSL_CTX *))                                          \
    X(void, SSL_CTX_set_verify, (SSL_CTX *, int, bk_ssl_verified *))                               \
    X(int, SSL_CTX_set_alpn_protos, (SSL_CTX *, const unsigned char *, unsigned))                  \
    X(void, SSL_CTX_set_alpn_select_cb, (SSL_CTX *, bk_ssl_alpn *, void *))                        \
    X(int, SSL_CTX_set_session_id_context, (SSL_CTX *, const unsigned char *, unsigned))           \
    X(int, SSL_CTX_set_num_tickets, (SSL_CTX *, size_t))                                           \
    X(void, SSL_CTX_sess_set_new_cb, (SSL_CTX *, int (*)(SSL *, SSL_SESSION *)))                   \
    X(SSL *, SSL_new, (SSL_CTX *))                                                                 \
    X(void, SSL_free, (SSL *))                                                                     \
    X(long, SSL_ctrl, (SSL *, int, long, void *))                                                  \
    X(uint64_t, SSL_set_options, (SSL *, uint64_t))                                                \
    X(void, SSL_set_bio, (SSL *, BIO *, BIO *))                                                    \
    X(BIO *, SSL_get_rbio, (const SSL *))                                                          \
    X(void, SSL_set_accept_state, (SSL *))                                                         \
    X(void, SSL_set_connect_state, (SSL *))                                                        \
    X(int, SSL_do_handshake, (SSL *))                                                              \
    X(int, SSL_read_ex, (SSL *, void *, size_t, size_t *))                                         \
    X(int, SSL_write_ex, (SSL *, const void *, size_t, size_t *))                                  \
    X(int, SSL_has_pending, (const SSL *))                                                         \
    X(int, SSL_get_error, (const SSL *, int))                                                      \
    X(int, SSL_want, (const SSL *))                                                                \
    X(void, SSL_set_info_callback, (SSL *, bk_ssl_told *))                                         \
    X(int, SSL_shutdown, (SSL *))                                                                  \
    X(int, SSL_key_update, (SSL *, int))                                                           \
    X(int, SSL_set1_host, (SSL *, const char *))                                                   \
    X(X509_VERIFY_PARAM *, SSL_get0_param, (SSL *))                                                \
    X(long, SSL_get_verify_result, (const SSL *))                                                  \
    X(int, SSL_version, (const SSL *))                                                             \
    X(const char *, SSL_get_version, (const SSL *))                                                \
    X(const SSL_CIPHER *, SSL_get_current_cipher, (const SSL *))                                   \
    X(const char *, SSL_CIPHER_get_name, (const SSL_CIPHER *))                                     \
    X(int, SSL_CIPHER_get_bits, (const SSL_CIPHER *, int *))                                       \
    X(void, SSL_get0_alpn_selected, (const SSL *, const unsigned char **, unsigned *))             \
    X(const char *, SSL_get_servername, (const SSL *, int))                                        \
    X(X509 *, SSL_get1_peer_certificate, (const SSL *))                                            \
    X(int, SSL_session_reused, (const SSL *))                                                      \
    X(int, SSL_set_session, (SSL *, SSL_SESSION *))                                                \
    X(void, SSL_SESSION_free, (SSL_SESSION *))                                                     \
    X(int, i2d_SSL_SESSION, (const SSL_SESSION *, unsigned char **))                               \
    X(SSL_SESSION *, d2i_SSL_SESSION, (SSL_SESSION **, const unsigned char **, long))              \
    X(const char *, OpenSSL_version, (int))                                                        \
    X(BIO *, BIO_new_mem_buf, (const void *, int))                                                 \
    X(BIO *, BIO_new, (const BIO_METHOD *))                                                        \
    X(int, BIO_free, (BIO *))                                                                      \
    X(long, BIO_ctrl, (BIO *, int, long, void *))                                                  \
    X(const BIO_METHOD *, BIO_s_mem, (void))                                                       \
    X(BIO_METHOD *, BIO_meth_new, (int, const char *))                                             \
    X(int, BIO_get_new_index, (void))                                                              \
    X(int, BIO_meth_set_write_ex, (BIO_METHOD *, int (*)(BIO *, const char *, size_t, size_t *)))  \
    X(int, BIO_meth_set_read_ex, (BIO_METHOD *, int (*)(BIO *, char *, size_t, size_t *)))         \
    X(int, BIO_meth_set_ctrl, (BIO_METHOD *, long (*)(BIO *, int, long, void *)))                  \
    X(void, BIO_set_data, (BIO *, void *))                                                         \
    X(void *, BIO_get_data, (BIO *))                                                               \
    X(void, BIO_set_init, (BIO *, int))                                                            \
    X(void, BIO_set_flags, (BIO *, int))                                                           \
    X(void, BIO_clear_flags, (BIO *, int))                                                         \
    X(X509 *, PEM_read_bio_X509, (BIO *, X509 **, bk_ssl_password *, void *))                      \
    X(EVP_PKEY *, PEM_read_bio_PrivateKey, (BIO *, EVP_PKEY **, bk_ssl_password *, void *))        \
    X(int, PEM_write_bio_X509, (BIO *, const X509 *))                                              \
    X(int, PEM_write_bio_PrivateKey,                                                               \
      (BIO *, const EVP_PKEY *, const EVP_CIPHER *, const unsigned char *, int, bk_ssl_password *, \
       void *))                                                                                    \
    X(void, X509_free, (X509 *))                                                                   \
    X(int, i2d_X509, (const X509 *, unsigned char **))                                             \
    X(int, X509_STORE_add_cert, (X509_STORE *, X509 *))                                            \
    X(const char *, X509_verify_cert_error_string, (long))                                         \
    X(int, X509_VERIFY_PARAM_set1_ip_asc, (X509_VERIFY_PARAM *, const char *))                     \
    X(void, X509_VERIFY_PARAM_set_hostflags, (X509_VERIFY_PARAM *, unsigned))                      \
    X(void, EVP_PKEY_free, (EVP_PKEY *))                                                           \
    X(unsigned long, ERR_peek_last_error, (void))                                                  \
    X(unsigned long, ERR_peek_error, (void))                                                       \
    X(void, ERR_clear_error, (void))                                                               \
    X(const char *, ERR_reason_error_string, (unsigned long))                                      \
    X(void, ERR_error_string_n, (unsigned long, char *, size_t))                                   \
    /* What makes a certificate (certificate.c). */                                                \
    X(EVP_PKEY *, EVP_PKEY_Q_keygen, (OSSL_LIB_CTX *, const char *, const char *, ...))            \
    X(const EVP_MD *, EVP_sha256, (void))                                                          \
    X(X509 *, X509_new, (void))                                                                    \
    X(int, X509_set_version, (X509 *, long))                                                       \
    X(ASN1_INTEGER *, X509_get_serialNumber, (X509 *))                                             \
    X(int, ASN1_INTEGER_set_uint64, (ASN1_INTEGER *, uint64_t))                                    \
    X(ASN1_TIME *, X509_getm_notBefore, (const X509 *))                                            \
    X(ASN1_TIME *, X509_getm_notAfter, (const X509 *))                                             \
    X(ASN1_TIME *, X509_gmtime_adj, (ASN1_TIME *, long))                                           \
    X(X509_NAME *, X509_get_subject_name, (const X509 *))                                          \
    X(int, X509_NAME_add_entry_by_txt,                                                             \
      (X509_NAME *, const char *, int, const unsigned char *, int, int, int))                      \
    X(int, X509_set_issuer_name, (X509 *, const X509_NAME *))                                      \
    X(int, X509_set_pubkey, (X509 *, EVP_PKEY *))                                                  \
    X(X509_EXTENSION *, X509V3_EXT_conf_nid,                                                       \
      (struct lhash_st_CONF_VALUE *, X509V3_CTX *, int, const char *))                             \
    X(int, X509_add_ext, (X509 *, X509_EXTENSION *, int))                                          \
    X(void, X509_EXTENSION_free, (X509_EXTENSION *))                                               \
    X(int, X509_sign, (X509 *, EVP_PKEY *, const EVP_MD *))

typedef struct bk_libssl {
#define BK_FIELD(result, name, arguments) result(*name) arguments;
    BK_LIBSSL(BK_FIELD)
#undef BK_FIELD
    BIO_METHOD *method; /* of our BIO */
} bk_libssl;

/* The library, once bk_tls_engine_openssl.open() has found it. */
extern bk_libssl bk_ssl;

/* Constants of the library's own headers, which are macros there. */
enum {
    BK_SSL_ERROR_WANT_READ = 2,
    BK_SSL_READING = 3,
    BK_SSL_CB_READ_ALERT = 0x4004,
    BK_SSL_AD_CLOSE_NOTIFY = 0,
    BK_SSL_CTRL_MODE = 33,
    BK_SSL_CTRL_READ_AHEAD = 41,
    BK_SSL_CTRL_SESS_CACHE_MODE = 44,
    BK_SSL_CTRL_TLSEXT_HOSTNAME = 55,
    BK_SSL_CTRL_CHAIN_CERT = 89,
    BK_SSL_CTRL_MIN_PROTO_VERSION = 123,
    BK_SSL_CTRL_MAX_PROTO_VERSION = 124,
    /* partial writes, buffers that move, retries, buffers released */
    BK_SSL_MODE = 0x1 | 0x2 | 0x4 | 0x10,
    BK_SSL_SESS_CACHE_OFF = 0,
    BK_SSL_SESS_CACHE_CLIENT = 1 | 0x300, /* … which the library itself does not keep */
    BK_SSL_OP_NO_TICKET = 1 << 14,
    BK_SSL_OP_NO_RENEGOTIATION = 1 << 30,
    BK_SSL_VERIFY_PEER = 1,
    BK_SSL_VERIFY_FAIL_IF_NO_PEER_CERT = 2,
    BK_SSL_TLSEXT_ERR_OK = 0,
    BK_SSL_TLSEXT_ERR_ALERT_FATAL = 2,
    BK_SSL_KEY_UPDATE_REQUESTED = 1,
    BK_X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS = 4,
    BK_X509_CHECK_FLAG_NEVER_CHECK_SUBJECT = 0x20,
    BK_BIO_TYPE_SOURCE_SINK = 0x400,
    BK_BIO_CTRL_FLUSH = 11,
    BK_BIO_CTRL_DUP = 12,
    BK_BIO_CTRL_PENDING = 10,
    BK_BIO_CTRL_INFO = 3,
    BK_BIO_FLAGS_RETRY_READ = 0x8 | 0x1,
    BK_BIO_FLAGS_RETRY = 0x8 | 0x7,
    BK_ERR_LIB_SSL = 20,
    BK_ERR_LIB_PEM = 9,
    BK_PEM_NO_START_LINE = 108,
    BK_NID_SUBJECT_ALT_NAME = 85,
    BK_NID_BASIC_CONSTRAINTS = 87,
    BK_MBSTRING_UTF8 = 0x1000,
};

#endif
