/*
 * error.c: the one vocabulary of results, and the version. Called by everybody.
 */
#define _GNU_SOURCE
#include "core/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const char *bk_version(void) {
    return BK_VERSION;
}

static const struct {
    int code;
    const char *text;
} texts[] = {
    {0, "success"},
    {BK_ETRUNCATED, "the stream ended where its protocol does not allow it"},
    {BK_EENDPOINT, "the endpoint cannot be parsed"},
    {BK_ESCHEME, "no such scheme of endpoints"},
    {BK_EOPTION, "the endpoint has an option that its scheme does not know, or a bad value"},
    {BK_ENAME, "the host name cannot be resolved"},
    {BK_ENOTIFIER, "no such notifier on this system"},
    {BK_ELIMIT, "a limit was reached"},
    {BK_EPROXY, "a PROXY header is missing or malformed"},
    {BK_EPROCESS, "the process failed"},
    {BK_ETLS, "TLS failed"},
    {BK_ETLS_ENGINE, "no such TLS engine here"},
    {BK_ETLS_CONFIG, "a certificate, a key or a setting of TLS cannot be used"},
    {BK_ETLS_PROTOCOL, "what the peer sent is not TLS, or breaks its rules"},
    {BK_ETLS_RECORD, "a TLS record was damaged"},
    {BK_ETLS_VERSION, "no version of TLS in common with the peer"},
    {BK_ETLS_CIPHER, "no cipher, group or signature in common with the peer"},
    {BK_ETLS_ALPN, "no application protocol in common with the peer"},
    {BK_ETLS_NAME, "the server has no certificate for the name asked for"},
    {BK_ETLS_UNTRUSTED, "the peer's certificate is not to be trusted"},
    {BK_ETLS_WRONG_NAME, "the peer's certificate is for another name"},
    {BK_ETLS_NO_CERTIFICATE, "the peer showed no certificate"},
    {BK_ETLS_ALERT, "the peer refused to go on, by an alert"},
    {BK_ETLS_RENEGOTIATION, "the peer wanted to renegotiate, which is refused"},
};

#if defined(__GLIBC__) && (__GLIBC__ > 2 || (__GLIBC__ == 2 && __GLIBC_MINOR__ >= 32))
/* Unlike strerror, these are static and in no language. */
static const char *system_text(int number) {
    return strerrordesc_np(number);
}
#else
static const char *system_text(int number) {
    return strerror(number);
}
#endif

const char *bk_strerror(int code) {
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        if (texts[i].code == code)
            return texts[i].text;
    const char *text = code < 0 && code > -4000 ? system_text(-code) : NULL;
    return text != NULL ? text : "unknown error";
}

/* ---- Errors told to a person ---- */

/* A text that was cut must not end within a UTF-8 character. */
static void trim_utf8(char *text) {
    size_t n = strlen(text), start = n;
    while (start > 0 && n - start < 3 && ((unsigned char)text[start - 1] & 0xc0) == 0x80)
        start--;
    if (start > 0 && (unsigned char)text[start - 1] >= 0xc0)
        text[start - 1] = '\0';
}

int bk_error_set_va(bk_error *error, int code, size_t position, const char *format, va_list args) {
    if (error == NULL)
        return code;
    int n = vsnprintf(error->text, sizeof error->text, format, args);
    if (n >= (int)sizeof error->text)
        trim_utf8(error->text);
    for (char *p = error->text; *p != '\0'; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7f)
            *p = '?';
    error->code = code;
    error->position = position;
    return code;
}

int bk_error_set(bk_error *error, int code, size_t position, const char *format, ...) {
    va_list args;
    va_start(args, format);
    (void)bk_error_set_va(error, code, position, format, args);
    va_end(args);
    return code;
}

void bk_list_add(char *list, size_t room, const char *name) {
    size_t n = strlen(list);
    snprintf(list + n, room - n, "%s%.40s", n > 0 ? ", " : "", name);
}
