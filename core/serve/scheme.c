/*
 * scheme.c: which schemes a loop knows: those built in, and those that others add. Called by
 * bk_listen() and bk_connect() to find who understands an endpoint.
 */
#include "core/serve/serve.h"

#include <stdio.h>

static const bk_scheme *const built_in[] = {&bk_scheme_tcp, &bk_scheme_unix, &bk_scheme_stdio,
                                            &bk_scheme_fd};

enum { BUILT_IN = sizeof built_in / sizeof built_in[0] };

/* All of them by number, NULL after the last. */
static const bk_scheme *scheme_at(const bk_loop *loop, uint32_t i) {
    if (i < BUILT_IN)
        return built_in[i];
    i -= BUILT_IN;
    return i < loop->scheme_count ? loop->schemes[i] : NULL;
}

static const bk_scheme *scheme_find(const bk_loop *loop, const char *name) {
    const bk_scheme *scheme;
    for (uint32_t i = 0; (scheme = scheme_at(loop, i)) != NULL; i++)
        if (strcmp(scheme->name, name) == 0)
            return scheme;
    return NULL;
}

/* The parser knows names in this form only: any other could never be asked for. */
static bool is_scheme_name(const char *name) {
    static const char letters[] = "abcdefghijklmnopqrstuvwxyz";
    if (*name == '\0' || strchr(letters, *name) == NULL)
        return false;
    for (; *name != '\0'; name++)
        if (strchr(letters, *name) == NULL && strchr("0123456789+-.", *name) == NULL)
            return false;
    return true;
}

int bk_scheme_add(bk_loop *loop, const bk_scheme *scheme) {
    if (loop == NULL || scheme == NULL || scheme->size < offsetof(bk_scheme, options))
        return -EINVAL;
    if (scheme->name == NULL || !is_scheme_name(scheme->name))
        return -EINVAL;
    if (scheme_find(loop, scheme->name) != NULL)
        return -EEXIST;
    size_t bytes = (loop->scheme_count + 1) * sizeof(const bk_scheme *);
    const bk_scheme **schemes = loop->os->resize(loop->os, loop->schemes, bytes);
    if (schemes == NULL)
        return -ENOMEM;
    loop->schemes = schemes;
    schemes[loop->scheme_count++] = scheme;
    return 0;
}

/* ---- Opening an endpoint ---- */

/* Add a name to a list in words; what does not fit is left out. */
static void list_add(char *list, size_t room, const char *name) {
    size_t n = strlen(list);
    snprintf(list + n, room - n, "%s%.40s", n > 0 ? ", " : "", name);
}

static int unknown_scheme(const bk_loop *loop, const bk_endpoint *endpoint, bk_error *error) {
    char known[160] = "";
    const bk_scheme *scheme;
    for (uint32_t i = 0; (scheme = scheme_at(loop, i)) != NULL; i++)
        list_add(known, sizeof known, scheme->name);
    return bk_error_set(error, BK_ESCHEME, 0, "there is no scheme %.40s; there are %s",
                        endpoint->scheme, known);
}

static bool has_option(const bk_scheme *scheme, const char *key) {
    if (!BK_HAS(scheme, options))
        return false;
    for (const char *const *option = scheme->options; *option != NULL; option++)
        if (strcmp(*option, key) == 0)
            return true;
    return false;
}

static int unknown_option(const bk_scheme *scheme, const char *key, size_t position,
                          bk_error *error) {
    char known[140] = "";
    for (const char *const *o = BK_HAS(scheme, options) ? scheme->options : NULL; o && *o; o++)
        list_add(known, sizeof known, *o);
    if (known[0] == '\0')
        return bk_error_set(error, BK_EOPTION, position, "%.20s has no options", scheme->name);
    return bk_error_set(error, BK_EOPTION, position, "%.20s has no option %.40s; it has %s",
                        scheme->name, key, known);
}

static int check(const bk_loop *loop, const bk_endpoint *endpoint, const bk_scheme **ret_scheme,
                 bk_error *error) {
    const bk_scheme *scheme = scheme_find(loop, endpoint->scheme);
    if (scheme == NULL)
        return unknown_scheme(loop, endpoint, error);
    for (int i = 0; i < endpoint->option_count; i++)
        if (!has_option(scheme, endpoint->options[i].key))
            return unknown_option(scheme, endpoint->options[i].key, endpoint->options[i].position,
                                  error);
    *ret_scheme = scheme;
    return 0;
}

int bk_scheme_open(bk_loop *loop, const char *text, bk_endpoint *ret_endpoint,
                   const bk_scheme **ret_scheme, bk_error *error) {
    bk_endpoint endpoint;
    int code = bk_endpoint_parse(loop->os, text, &endpoint, error);
    if (code < 0)
        return code;
    code = check(loop, &endpoint, ret_scheme, error);
    if (code < 0)
        bk_endpoint_clear(loop->os, &endpoint);
    else
        *ret_endpoint = endpoint;
    return code;
}
