/*
 * certificate.c: makes up a certificate for development: cert=dev. It signs itself, for localhost
 * and its addresses, so that no client that verifies will take it. Called by context.c, for any
 * engine; it is OpenSSL that makes it.
 */
#include "core/error.h"
#include "core/tls/libssl.h"
#include "core/tls/tls.h"

enum { VALID_SECONDS = 30 * 24 * 3600 };

static int add_extension(X509 *certificate, int nid, const char *value) {
    X509_EXTENSION *e = bk_ssl.X509V3_EXT_conf_nid(NULL, NULL, nid, value);
    int done = e != NULL && bk_ssl.X509_add_ext(certificate, e, -1) == 1;
    bk_ssl.X509_EXTENSION_free(e);
    return done;
}

static int fill_in(X509 *certificate, EVP_PKEY *key, uint64_t serial) {
    static const unsigned char name[] = "localhost";
    X509_NAME *subject = bk_ssl.X509_get_subject_name(certificate);
    return bk_ssl.X509_set_version(certificate, 2) == 1 &&
           bk_ssl.ASN1_INTEGER_set_uint64(bk_ssl.X509_get_serialNumber(certificate), serial) == 1 &&
           bk_ssl.X509_gmtime_adj(bk_ssl.X509_getm_notBefore(certificate), -3600) != NULL &&
           bk_ssl.X509_gmtime_adj(bk_ssl.X509_getm_notAfter(certificate), VALID_SECONDS) != NULL &&
           bk_ssl.X509_NAME_add_entry_by_txt(subject, "CN", BK_MBSTRING_UTF8, name, -1, -1, 0) ==
               1 &&
           bk_ssl.X509_set_issuer_name(certificate, subject) == 1 &&
           bk_ssl.X509_set_pubkey(certificate, key) == 1 &&
           add_extension(certificate, BK_NID_SUBJECT_ALT_NAME,
                         "DNS:localhost,IP:127.0.0.1,IP:::1") &&
           add_extension(certificate, BK_NID_BASIC_CONSTRAINTS, "CA:FALSE") &&
           bk_ssl.X509_sign(certificate, key, bk_ssl.EVP_sha256()) > 0;
}

/* What was written to a BIO in memory. */
static int take_text(bk_os *os, BIO *bio, bk_span *ret_text) {
    char *data = NULL;
    long n = bk_ssl.BIO_ctrl(bio, BK_BIO_CTRL_INFO, 0, &data);
    char *text = n > 0 ? bk_alloc(os, (size_t)n + 1) : NULL;
    if (text == NULL)
        return -ENOMEM;
    memcpy(text, data, (size_t)n);
    text[n] = '\0';
    *ret_text = (bk_span){text, (size_t)n};
    return 0;
}

static int write_texts(bk_os *os, X509 *certificate, EVP_PKEY *key, bk_span *ret_certificate,
                       bk_span *ret_key) {
    BIO *first = bk_ssl.BIO_new(bk_ssl.BIO_s_mem()), *second = bk_ssl.BIO_new(bk_ssl.BIO_s_mem());
    int code = -ENOMEM;
    if (first != NULL && second != NULL && bk_ssl.PEM_write_bio_X509(first, certificate) == 1 &&
        bk_ssl.PEM_write_bio_PrivateKey(second, key, NULL, NULL, 0, NULL, NULL) == 1)
        code = take_text(os, first, ret_certificate);
    if (code == 0)
        code = take_text(os, second, ret_key);
    bk_ssl.BIO_free(first);
    bk_ssl.BIO_free(second);
    return code;
}

int bk_tls_make_certificate(bk_os *os, bk_span *ret_certificate, bk_span *ret_key,
                            bk_error *error) {
    uint64_t serial = 0;
    int code = bk_tls_engine_openssl.open(os, error);
    if (code == 0)
        code = os->random(os, &serial, sizeof serial);
    if (code < 0)
        return code;
    EVP_PKEY *key = bk_ssl.EVP_PKEY_Q_keygen(NULL, NULL, "EC", "P-256");
    X509 *certificate = bk_ssl.X509_new();
    if (key == NULL || certificate == NULL || !fill_in(certificate, key, serial >> 1))
        code = bk_error_set(error, BK_ETLS_CONFIG, 0, "cert: no certificate could be made up");
    else if (write_texts(os, certificate, key, ret_certificate, ret_key) < 0)
        code = bk_error_set(error, -ENOMEM, 0, "%s", bk_strerror(-ENOMEM));
    bk_ssl.X509_free(certificate);
    bk_ssl.EVP_PKEY_free(key);
    bk_ssl.ERR_clear_error();
    return code;
}
