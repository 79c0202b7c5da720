/*
 * error.c: the one vocabulary of results, and the version. Called by everybody.
 */
#define _GNU_SOURCE
#include <becket.h>
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
