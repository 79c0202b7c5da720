/*
 * scheme.c: which schemes a loop knows: those built in, and those that others add. Called by
 * bk_listen() and bk_connect() to find who understands an endpoint.
 */
#include "core/serve/serve.h"

static const bk_scheme *const built_in[] = {
    &bk_scheme_tcp,    &bk_scheme_unix,    &bk_scheme_stdio,  &bk_scheme_fd,
    &bk_scheme_memory, &bk_scheme_process, &bk_scheme_systemd};

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

static const bk_cover *const covers[] = {&bk_cover_tls, &bk_cover_starttls, NULL};

static int unknown_scheme(const bk_loop *loop, const bk_endpoint *endpoint, bk_error *error) {
    char known[160] = "";
    const bk_scheme *scheme;
    for (uint32_t i = 0; (scheme = scheme_at(loop, i)) != NULL; i++)
        bk_list_add(known, sizeof known, scheme->name);
    for (const bk_cover *const *cover = covers; *cover != NULL; cover++)
        bk_list_add(known, sizeof known, (*cover)->name);
    return bk_error_set(error, BK_ESCHEME, 0, "there is no scheme %.40s; there are %s",
                        endpoint->scheme, known);
}

/* The host may know where to find it. */
static int ask_host(bk_loop *loop, const char *name, const bk_scheme **ret_scheme,
                    bk_error *error) {
    const bk_loop_hooks *hooks = loop->options.hooks;
    if (hooks == NULL || !BK_HAS(hooks, unknown_scheme))
        return 0;
    int code = hooks->unknown_scheme(loop->options.arg, name, error);
    if (code > 0)
        *ret_scheme = scheme_find(loop, name);
    return code;
}

/* The word is a scheme's name, or a cover's and, after a plus sign, that of the scheme below. */
static int find_by_word(bk_loop *loop, const bk_endpoint *endpoint, const bk_scheme **ret_scheme,
                        const bk_cover **ret_cover, bk_error *error) {
    const char *word = endpoint->scheme, *name = word;
    *ret_cover = NULL;
    *ret_scheme = scheme_find(loop, word);
    for (const bk_cover *const *cover = covers; *ret_scheme == NULL && *cover != NULL; cover++) {
        size_t n = strlen((*cover)->name);
        if (strncmp(word, (*cover)->name, n) != 0 || (word[n] != '\0' && word[n] != '+'))
            continue;
        *ret_cover = *cover;
        name = word[n] == '\0' ? bk_scheme_tcp.name : word + n + 1;
        *ret_scheme = scheme_find(loop, name);
    }
    int code = *ret_scheme == NULL ? ask_host(loop, name, ret_scheme, error) : 0;
    if (code < 0)
        return code;
    return *ret_scheme == NULL ? unknown_scheme(loop, endpoint, error) : 0;
}

static bool has_key(const char *const *keys, const char *key) {
    for (; keys != NULL && *keys != NULL; keys++)
        if (strcmp(*keys, key) == 0)
            return true;
    return false;
}

static int unknown_option(const bk_endpoint *endpoint, const char *const *keys,
                          const bk_cover *cover, int i, bk_error *error) {
    char known[240] = "";
    size_t position = endpoint->options[i].position;
    for (; keys != NULL && *keys != NULL; keys++)
        bk_list_add(known, sizeof known, *keys);
    for (keys = cover != NULL ? cover->options : NULL; keys != NULL && *keys != NULL; keys++)
        bk_list_add(known, sizeof known, *keys);
    for (keys = bk_proxy_keys; *keys != NULL; keys++)
        bk_list_add(known, sizeof known, *keys);
    return bk_error_set(error, BK_EOPTION, position, "%.20s has no option %.40s; it has %s",
                        endpoint->scheme, endpoint->options[i].key, known);
}

static int check(bk_loop *loop, const bk_endpoint *endpoint, const bk_scheme **ret_scheme,
                 const bk_cover **ret_cover, bk_error *error) {
    int code = find_by_word(loop, endpoint, ret_scheme, ret_cover, error);
    if (code < 0)
        return code;
    const bk_cover *cover = *ret_cover;
    const char *const *keys = BK_HAS(*ret_scheme, options) ? (*ret_scheme)->options : NULL;
    for (int i = 0; i < endpoint->option_count; i++) {
        const char *key = endpoint->options[i].key;
        if (!has_key(keys, key) && !has_key(bk_proxy_keys, key) &&
            (cover == NULL || !has_key(cover->options, key)))
            return unknown_option(endpoint, keys, cover, i, error);
    }
    return 0;
}

int bk_scheme_open(bk_loop *loop, const char *text, bk_endpoint *ret_endpoint,
                   const bk_scheme **ret_scheme, const bk_cover **ret_cover, bk_error *error) {
    bk_endpoint endpoint;
    int code = bk_endpoint_parse(loop->os, text, &endpoint, error);
    if (code < 0)
        return code;
    code = check(loop, &endpoint, ret_scheme, ret_cover, error);
    if (code < 0)
        bk_endpoint_clear(loop->os, &endpoint);
    else
        *ret_endpoint = endpoint;
    return code;
}
