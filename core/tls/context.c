/*
 * context.c: what TLS connections share: the engine's context, made from files, the names that have
 * a context of their own, and the sessions clients may resume. Called by programs, by the schemes
 * of core/serve, by transport.c, and by the engines.
 */
#include "core/tls/tls.h"

#include "core/error.h"

#include <fcntl.h>
#include <stdlib.h>

#if defined(_WIN32)
#include <ws2tcpip.h>
#else
#include <arpa/inet.h>
#endif

/* ---- Engines ---- */

static const bk_tls_engine *const built_in[] = {
    &bk_tls_engine_openssl,
#if defined(BK_HAVE_GNUTLS)
    &bk_tls_engine_gnutls,
#endif
#if defined(BK_HAVE_MBEDTLS)
    &bk_tls_engine_mbedtls,
#endif
    NULL,
};

const bk_tls_engine *const *bk_tls_engines(void) {
    return built_in;
}

/* All of them by number, NULL after the last. */
static const bk_tls_engine *engine_at(const bk_loop *loop, uint32_t i) {
    const uint32_t count = sizeof built_in / sizeof built_in[0] - 1;
    if (i < count)
        return built_in[i];
    return i - count < loop->tls_engine_count ? loop->tls_engines[i - count] : NULL;
}

static const bk_tls_engine *engine_named(const bk_loop *loop, const char *name) {
    const bk_tls_engine *engine;
    for (uint32_t i = 0; (engine = engine_at(loop, i)) != NULL; i++)
        if (strcmp(engine->name, name) == 0)
            return engine;
    return NULL;
}

int bk_tls_engine_add(bk_loop *loop, const bk_tls_engine *engine) {
    if (loop == NULL || engine == NULL || engine->size < sizeof *engine || engine->name == NULL)
        return -EINVAL;
    if (engine_named(loop, engine->name) != NULL)
        return -EEXIST;
    size_t bytes = (loop->tls_engine_count + 1) * sizeof(const bk_tls_engine *);
    const bk_tls_engine **engines = loop->os->resize(loop->os, loop->tls_engines, bytes);
    if (engines == NULL)
        return -ENOMEM;
    loop->tls_engines = engines;
    engines[loop->tls_engine_count++] = engine;
    return 0;
}

static int unknown_engine(const bk_loop *loop, const char *what, const char *name,
                          bk_error *error) {
    char known[120] = "";
    const bk_tls_engine *engine;
    for (uint32_t i = 0; (engine = engine_at(loop, i)) != NULL; i++)
        bk_list_add(known, sizeof known, engine->name);
    return bk_error_set(error, BK_ETLS_ENGINE, 0, "%s: %s%.40s; there are %s", what,
                        *name != '\0' ? "there is no " : "it is empty", name, known);
}

static int open_engine(const bk_tls_engine *engine, bk_os *os, bk_error *error) {
    bk_error why = {0, 0, ""};
    int code = engine->open(os, &why);
    return code < 0 ? bk_error_set(error, code, 0, "engine: %s: %s", engine->name, why.text) : 0;
}

/* A variable that is empty is as good as none. */
static const char *engine_of_environment(void) {
    const char *name = getenv("BECKET_TLS");
    return name != NULL && *name != '\0' ? name : NULL;
}

/* By name, or the first whose library is here. */
static int find_engine(bk_loop *loop, const char *name, const bk_tls_engine **ret_engine,
                       bk_error *error) {
    const bk_tls_engine *engine;
    const char *what = name != NULL ? "engine" : "BECKET_TLS";
    if (name == NULL)
        name = engine_of_environment();
    if (name != NULL) {
        engine = engine_named(loop, name);
        *ret_engine = engine;
        if (engine == NULL)
            return unknown_engine(loop, what, name, error);
        return open_engine(engine, loop->os, error);
    }
    int code = BK_ETLS_ENGINE;
    for (uint32_t i = 0; code < 0 && (engine = engine_at(loop, i)) != NULL; i++) {
        code = open_engine(engine, loop->os, error);
        *ret_engine = engine;
    }
    return code;
}

/* ---- Files ---- */

/* Keys are not to be found in memory that was freed. */
void bk_tls_forget(bk_os *os, bk_span *text) {
    volatile char *p = (volatile char *)(uintptr_t)text->base;
    for (size_t i = 0; i < text->size; i++)
        p[i] = 0;
    bk_dealloc(os, (void *)(uintptr_t)text->base);
    *text = (bk_span){NULL, 0};
}

/* Twice the room; by hand, so that no copy of a key is left behind. */
static int grow(bk_os *os, char **text, size_t *room) {
    char *more = bk_alloc(os, 2 * *room);
    if (more == NULL)
        return -ENOMEM;
    memcpy(more, *text, *room);
    bk_span old = {*text, *room};
    bk_tls_forget(os, &old);
    *text = more;
    *room *= 2;
    return 1;
}

/* The whole of a file and a NUL. */
static int read_open(bk_os *os, int fd, bk_span *ret_text) {
    size_t room = 8192, n = 0;
    char *text = bk_alloc(os, room);
    int code = text == NULL ? -ENOMEM : 1;
    while (code > 0) {
        ssize_t got = os->read(os, fd, text + n, room - n - 1);
        if (got == -EINTR)
            continue;
        n += got > 0 ? (size_t)got : 0;
        code = got <= 0 ? (int)got : n > BK_TLS_FILE_BYTES ? -EFBIG : 1;
        if (code > 0 && n + 1 == room)
            code = grow(os, &text, &room);
    }
    bk_span whole = {text, n};
    if (code < 0) {
        bk_tls_forget(os, &whole);
        return code;
    }
    text[n] = '\0';
    *ret_text = whole;
    return 0;
}

int bk_tls_read_file(bk_os *os, const char *what, const char *path, bk_span *ret_text,
                     bk_error *error) {
    if (path == NULL)
        return 0;
    int fd;
    do
        fd = os->open(os, path, O_RDONLY, 0);
    while (fd == -EINTR);
    int code = fd < 0 ? fd : read_open(os, fd, ret_text);
    bk_close_fd(os, fd);
    if (code == 0 && ret_text->size == 0) {
        bk_dealloc(os, (void *)(uintptr_t)ret_text->base);
        *ret_text = (bk_span){NULL, 0};
        return bk_error_set(error, BK_ETLS_CONFIG, 0, "%s: %.140s: the file is empty", what, path);
    }
    if (code < 0)
        return bk_error_set(error, code, 0, "%s: %.140s: %s", what, path, bk_strerror(code));
    return 0;
}

/* ---- From the user's words to the engine's ---- */

/* "h2,http/1.1" to a list ended by NULL, in one block. */
static int split_alpn(bk_os *os, const char *text, const char ***ret_list, bk_error *error) {
    size_t n = strlen(text), count = 1;
    for (const char *p = text; (p = strchr(p, ',')) != NULL; p++)
        count++;
    const char **list = bk_alloc(os, (count + 1) * sizeof *list + n + 1);
    if (list == NULL)
        return bk_error_set(error, -ENOMEM, 0, "%s", bk_strerror(-ENOMEM));
    char *copy = memcpy(list + count + 1, text, n + 1);
    for (size_t i = 0; i < count; i++) {
        size_t size = strcspn(copy, ",");
        if (size == 0 || size > 255) {
            bk_dealloc(os, list);
            return bk_error_set(error, BK_ETLS_CONFIG, 0,
                                "alpn: %.80s: names of 1 to 255 bytes, with commas between", text);
        }
        list[i] = copy;
        copy[size] = '\0';
        copy += size + 1;
    }
    list[count] = NULL;
    *ret_list = list;
    return 0;
}

static int check(const bk_tls_config *c, bk_error *error) {
    if (c->server && c->certificate == NULL && !c->development)
        return bk_error_set(error, BK_ETLS_CONFIG, 0, "cert: a server needs a certificate");
    if (c->key != NULL && c->certificate == NULL)
        return bk_error_set(error, BK_ETLS_CONFIG, 0, "key: it is of no use without cert");
    for (int i = 0; i < 2; i++) {
        int version = i == 0 ? c->minimum : c->maximum;
        if (version != 0 && version != BK_TLS_1_2 && version != BK_TLS_1_3)
            return bk_error_set(error, BK_ETLS_CONFIG, 0, "%s: 0x%04x is no version; 1.2 or 1.3",
                                i == 0 ? "min" : "max", (unsigned)version);
    }
    if (c->maximum != 0 && c->maximum < c->minimum)
        return bk_error_set(error, BK_ETLS_CONFIG, 0, "max: it is below min");
    if (c->verify < BK_TLS_VERIFY_DEFAULT || c->verify > BK_TLS_VERIFY_REQUIRED)
        return bk_error_set(error, BK_ETLS_CONFIG, 0, "verify: %d is none of BK_TLS_VERIFY_…",
                            c->verify);
    return 0;
}

static int load(bk_os *os, const bk_tls_config *c, bk_tls_settings *s, bk_error *error) {
    const char **alpn = NULL;
    int code = check(c, error);
    if (code == 0)
        code = bk_tls_read_file(os, "cert", c->certificate, &s->certificate, error);
    if (code == 0)
        code =
            bk_tls_read_file(os, "key", c->key != NULL ? c->key : c->certificate, &s->key, error);
    if (code == 0 && c->development)
        code = bk_tls_make_certificate(os, &s->certificate, &s->key, error);
    if (code == 0)
        code = bk_tls_read_file(os, "ca", c->ca, &s->ca, error);
    if (code == 0 && c->alpn != NULL)
        code = split_alpn(os, c->alpn, &alpn, error);
    s->alpn = alpn;
    s->server = c->server;
    s->verify = c->verify != BK_TLS_VERIFY_DEFAULT ? c->verify
                : c->server                        ? BK_TLS_VERIFY_NONE
                                                   : BK_TLS_VERIFY_REQUIRED;
    s->minimum = c->minimum != 0 ? c->minimum : BK_TLS_1_2;
    s->maximum = c->maximum;
    s->no_tickets = c->no_tickets;
    return code;
}

static void unload(bk_tls_settings *s) {
    bk_tls_forget(s->os, &s->certificate); /* the key may be in there */
    bk_tls_forget(s->os, &s->key);
    bk_tls_forget(s->os, &s->ca);
    bk_dealloc(s->os, (void *)(uintptr_t)s->alpn);
}

static int make_state(bk_tls_context *context, const bk_tls_config *config, bk_error *error) {
    bk_tls_settings settings = {
        .size = sizeof settings, .engine = context->engine, .os = context->os};
    int code = load(context->os, config, &settings, error);
    if (code == 0)
        code = context->engine->context_new(&settings, error, &context->state);
    unload(&settings);
    return code;
}

/* ---- Contexts ---- */

/* A config of an older header is shorter: what it lacks is zero. */
static int whole_config(const bk_tls_config *from, bk_tls_config *ret_config) {
    if (from == NULL || from->size < offsetof(bk_tls_config, certificate))
        return -EINVAL;
    size_t n = from->size < sizeof *from ? from->size : sizeof *from;
    memset(ret_config, 0, sizeof *ret_config);
    memcpy(ret_config, from, n);
    return 0;
}

static int make_context(bk_os *os, const bk_tls_engine *engine, const bk_tls_config *c,
                        bk_error *error, bk_tls_context **ret_context) {
    bk_tls_context *context = bk_alloc_zero(os, sizeof *context);
    if (context == NULL)
        return bk_error_set(error, -ENOMEM, 0, "%s", bk_strerror(-ENOMEM));
    context->os = os;
    context->engine = engine;
    atomic_init(&context->references, 1);
    context->server = c->server;
    context->no_tickets = c->no_tickets;
    context->verifies =
        c->verify > BK_TLS_VERIFY_NONE || (c->verify == BK_TLS_VERIFY_DEFAULT && !c->server);
    context->choose = c->choose;
    context->arg = c->arg;
    context->manners = (bk_tls_manners){
        .handshake_ns =
            c->handshake_ns > 0 ? c->handshake_ns : BK_TLS_HANDSHAKE_MS * BK_MILLISECOND,
        .linger_ns = c->linger_ns,
        .allow_truncation = c->allow_truncation,
    };
    int code = make_state(context, c, error);
    if (code < 0) {
        bk_dealloc(os, context);
        return code;
    }
    *ret_context = context;
    return 0;
}

int bk_tls_context_new(bk_loop *loop, const bk_tls_config *config, bk_error *ret_error,
                       bk_tls_context **ret_context) {
    bk_error error = {0, 0, ""};
    bk_tls_config c;
    const bk_tls_engine *engine = NULL;
    int code = loop == NULL || ret_context == NULL ? -EINVAL : whole_config(config, &c);
    if (code < 0)
        bk_error_set(&error, code, 0, "%s", bk_strerror(code));
    else
        code = find_engine(loop, c.engine, &engine, &error);
    if (code == 0)
        code = make_context(loop->os, engine, &c, &error, ret_context);
    if (code < 0 && ret_error != NULL)
        *ret_error = error;
    return code;
}

int bk_tls_context_renew(const bk_tls_context *old, const bk_tls_config *config, bk_error *error,
                         bk_tls_context **ret_context) {
    return make_context(old->os, old->engine, config, error, ret_context);
}

bk_tls_context *bk_tls_context_ref(bk_tls_context *context) {
    if (context != NULL)
        atomic_fetch_add(&context->references, 1);
    return context;
}

static void free_session(bk_os *os, bk_tls_session *session) {
    bk_span secret = {session, sizeof *session + session->name_size + session->size};
    bk_tls_forget(os, &secret);
}

void bk_tls_context_unref(bk_tls_context *context) {
    if (context == NULL || atomic_fetch_sub(&context->references, 1) != 1)
        return;
    bk_os *os = context->os;
    for (bk_tls_name *name = context->names, *next; name != NULL; name = next) {
        next = name->next;
        bk_tls_context_unref(name->context);
        bk_dealloc(os, name);
    }
    for (bk_tls_session *session = context->sessions, *next; session != NULL; session = next) {
        next = session->next;
        free_session(os, session);
    }
    context->engine->context_free(context->state);
    bk_dealloc(os, context);
}

/* ---- Names ---- */

size_t bk_tls_address(const char *name, unsigned char ret_address[16]) {
    if (inet_pton(AF_INET, name, ret_address) == 1)
        return 4;
    return inet_pton(AF_INET6, name, ret_address) == 1 ? 16 : 0;
}

int bk_tls_context_add(bk_tls_context *context, const char *name, bk_tls_context *other) {
    if (context == NULL || name == NULL || other == NULL || other == context)
        return -EINVAL;
    if (!context->server || !other->server)
        return -EINVAL;
    size_t n = strlen(name);
    if (n == 0 || n >= BK_TLS_NAME_BYTES)
        return -EINVAL;
    bk_tls_name *entry = bk_alloc(context->os, sizeof *entry + n + 1);
    if (entry == NULL)
        return -ENOMEM;
    for (size_t i = 0; i <= n; i++)
        entry->name[i] = (char)(name[i] >= 'A' && name[i] <= 'Z' ? name[i] + ('a' - 'A') : name[i]);
    entry->context = bk_tls_context_ref(other);
    entry->next = context->names;
    context->names = entry;
    return 0;
}

/* "*" stands for the first label, whole. */
static bool name_fits(const char *pattern, const char *name) {
    if (strncmp(pattern, "*.", 2) != 0)
        return strcmp(pattern, name) == 0;
    const char *rest = strchr(name, '.');
    return rest != NULL && rest != name && strcmp(pattern + 1, rest) == 0;
}

bk_tls_context *bk_tls_context_find(const bk_tls_context *context, const char *name) {
    bk_tls_context *found = NULL;
    for (const bk_tls_name *entry = context->names; entry != NULL; entry = entry->next) {
        if (strcmp(entry->name, name) == 0)
            return entry->context;
        if (found == NULL && name_fits(entry->name, name))
            found = entry->context;
    }
    return found;
}

/* ---- Sessions ---- */

bk_span bk_tls_context_session(const bk_tls_context *context, const char *name) {
    for (const bk_tls_session *s = context->sessions; s != NULL; s = s->next)
        if (strcmp(s->bytes, name) == 0)
            return (bk_span){s->bytes + s->name_size, s->size};
    return (bk_span){NULL, 0};
}

/* The newest comes first; the one of the same name, or the oldest of too many, goes. */
void bk_tls_context_keep(bk_tls_context *context, const char *name, const void *data, size_t n) {
    size_t name_size = strlen(name) + 1;
    bk_tls_session *session = bk_alloc(context->os, sizeof *session + name_size + n);
    if (session == NULL || context->no_tickets) {
        bk_dealloc(context->os, session);
        return;
    }
    session->name_size = name_size;
    session->size = n;
    memcpy(session->bytes, name, name_size);
    memcpy(session->bytes + name_size, data, n);
    bk_tls_session **link = &context->sessions;
    for (unsigned i = 1; *link != NULL; i++) {
        bk_tls_session *old = *link;
        if (strcmp(old->bytes, name) != 0 && i < BK_TLS_SESSIONS) {
            link = &old->next;
            continue;
        }
        *link = old->next;
        free_session(context->os, old);
        break;
    }
    session->next = context->sessions;
    context->sessions = session;
}
