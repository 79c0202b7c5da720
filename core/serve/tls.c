/*
 * tls.c: TLS in front of any scheme: tls://host:port, tls+unix:path, tls+stdio:, …; and
 * starttls://host:port, where the connection begins in plain and the protocol starts TLS. The
 * inner scheme is given a protocol of ours that puts TLS on each of its streams and then steps
 * aside. Called by bk_listen() and bk_connect() through the table at the end.
 *
 * Certificates are read again when they have changed, and when bk_listener_reload() says so.
 */
#include "core/serve/serve.h"
#include "core/tls/tls.h"

#include <stdio.h>

/* What the options of an endpoint say; the texts are in its memory. */
typedef struct tls_options {
    bk_tls_config config;
    const char *name; /* clients: whom to verify */
    long reload;      /* seconds */
} tls_options;

/* What puts TLS on streams: of one listener, or of one connection of a client. */
typedef struct tls_front {
    bk_loop *loop;
    bk_tls_context *context;
    bool later; /* starttls */
    char *server_name;
} tls_front;

typedef struct tls_client {
    bk_client_front base;
    tls_front tls;
} tls_client;

typedef struct tls_listener {
    bk_listener_front base;
    tls_front tls;
    const char *prefix; /* of the listener's name */
    bk_endpoint endpoint;
    tls_options options;
    bk_timer timer;
    bk_work work;
    bool working, forced, again; /* again: once more when it is done, forced */
    uint64_t seen;               /* a digest of the files */
    bk_tls_context *fresh;       /* what work() made */
    bk_error error;
} tls_listener;

/* ---- Options ---- */

static const char *const tls_keys[] = {"cert",       "key",    "ca",     "verify",  "alpn",
                                       "engine",     "min",    "max",    "name",    "handshake",
                                       "truncation", "linger", "reload", "tickets", NULL};

typedef struct word {
    const char *text;
    int value;
} word;

/* The value of an option that is one of a few words; ret_value keeps what it was without it. */
static int read_word(const bk_endpoint *e, const char *key, const word *words, int *ret_value,
                     bk_error *error) {
    char known[80] = "";
    for (int i = 0; i < e->option_count; i++) {
        if (strcmp(e->options[i].key, key) != 0)
            continue;
        for (const word *w = words; w->text != NULL; w++) {
            bk_list_add(known, sizeof known, w->text);
            if (strcmp(w->text, e->options[i].value) == 0) {
                *ret_value = w->value;
                return 0;
            }
        }
        return bk_error_set(error, BK_EOPTION, e->options[i].position,
                            "%.20s=%.60s is not possible; it is one of %s", key,
                            e->options[i].value, known);
    }
    return 0;
}

static int read_words(const bk_endpoint *e, bk_tls_config *c, bk_error *error) {
    static const word verify[] = {{"none", BK_TLS_VERIFY_NONE},
                                  {"optional", BK_TLS_VERIFY_OPTIONAL},
                                  {"required", BK_TLS_VERIFY_REQUIRED},
                                  {NULL, 0}};
    static const word versions[] = {{"1.2", BK_TLS_1_2}, {"1.3", BK_TLS_1_3}, {NULL, 0}};
    static const word truncation[] = {{"refuse", 0}, {"allow", 1}, {NULL, 0}};
    static const word tickets[] = {{"on", 0}, {"off", 1}, {NULL, 0}};
    int code = read_word(e, "verify", verify, &c->verify, error);
    if (code == 0)
        code = read_word(e, "min", versions, &c->minimum, error);
    if (code == 0)
        code = read_word(e, "max", versions, &c->maximum, error);
    if (code == 0)
        code = read_word(e, "truncation", truncation, &c->allow_truncation, error);
    return code == 0 ? read_word(e, "tickets", tickets, &c->no_tickets, error) : code;
}

/* The value of an option that is any text but an empty one, which further on would be taken for an
   option that was not given; NULL: it was not. */
static int read_text(const bk_endpoint *e, const char *key, const char *right,
                     const char **ret_text, bk_error *error) {
    *ret_text = bk_endpoint_option(e, key);
    for (int i = 0; *ret_text != NULL && **ret_text == '\0' && i < e->option_count; i++)
        if (strcmp(e->options[i].key, key) == 0)
            return bk_error_set(error, BK_EOPTION, e->options[i].position,
                                "%.20s= is not possible; it is %s", key, right);
    return 0;
}

static int read_texts(const bk_endpoint *e, tls_options *o, bk_error *error) {
    bk_tls_config *c = &o->config;
    c->engine = bk_endpoint_option(e, "engine"); /* the context tells which there are */
    int code = read_text(e, "cert", "a PEM file or, for servers, dev", &c->certificate, error);
    if (code == 0)
        code = read_text(e, "key", "a PEM file", &c->key, error);
    if (code == 0)
        code = read_text(e, "ca", "a PEM file", &c->ca, error);
    if (code == 0)
        code = read_text(e, "alpn", "names of protocols, as in h2,http/1.1", &c->alpn, error);
    return code == 0 ? read_text(e, "name", "a host or an IP address", &o->name, error) : code;
}

static int read_options(const bk_endpoint *e, int server, tls_options *o, bk_error *error) {
    bk_tls_config *c = &o->config;
    long handshake = 0, linger = 0;
    *o = (tls_options){.config = {.size = sizeof *c, .server = server}, .reload = BK_TLS_RELOAD_S};
    int code = read_texts(e, o, error);
    if (code == 0)
        code = read_words(e, c, error);
    if (code == 0)
        code = bk_endpoint_number(e, "handshake", 10, 1, 86400, &handshake, error);
    if (code == 0)
        code = bk_endpoint_number(e, "linger", 10, 0, 86400, &linger, error);
    if (code == 0)
        code = bk_endpoint_number(e, "reload", 10, 0, 86400, &o->reload, error);
    c->handshake_ns = handshake * BK_SECOND;
    c->linger_ns = linger * BK_SECOND;
    c->development = c->certificate != NULL && strcmp(c->certificate, "dev") == 0;
    if (c->development)
        c->certificate = NULL;
    if (code == 0 && c->development && !server)
        code = bk_error_set(error, BK_EOPTION, 0, "cert=dev is for servers; nobody trusts it");
    return code;
}

/* "cert: …", or "certificate: …", is about the option cert: show where it is. */
static int place_error(const bk_endpoint *e, int code, bk_error *error) {
    size_t n = strcspn(error->text, ": ");
    for (int i = 0; code < 0 && i < e->option_count; i++) {
        size_t key = strlen(e->options[i].key);
        if (error->text[n] == ':' && key <= n && strncmp(e->options[i].key, error->text, key) == 0)
            error->position = e->options[i].position;
    }
    return code;
}

/* ---- Putting TLS on a stream ---- */

static int cover_stream(const tls_front *f, bk_stream *s, bk_transport **ret_transport) {
    bk_transport *inner = bk_stream_transport(s);
    if (f->later)
        return bk_tls_offer(f->loop, inner, f->context, f->server_name, ret_transport);
    return bk_tls_transport(f->loop, inner, f->context, f->server_name, ret_transport);
}

/* Of a stream that came to nothing, while its front goes its own way. */
static const bk_protocol nobody = {.size = sizeof nobody, .name = "nobody"};

static int server_opened(bk_stream *s) {
    const tls_listener *l = (const tls_listener *)(const void *)s->protocol;
    bk_transport *t;
    int code = cover_stream(&l->tls, s, &t);
    if (code < 0) {
        s->protocol = &nobody;
        return code;
    }
    bk_stream_reopen(s, t, l->base.front.protocol);
    return 0;
}

/* Before TLS is started, the protocol may speak. */
static void server_refused(bk_stream *s, const bk_protocol *front, int why) {
    const bk_protocol *protocol = ((const bk_front *)(const void *)front)->protocol;
    if (BK_HAS(protocol, refused))
        protocol->refused(s, protocol, why);
}

static void free_client(bk_client_front *base) {
    tls_client *c = (tls_client *)base;
    bk_os *os = c->tls.loop->os;
    bk_tls_context_unref(c->tls.context);
    bk_dealloc(os, c->tls.server_name);
    bk_dealloc(os, c);
}

static int client_opened(bk_stream *s) {
    const tls_client *c = (const tls_client *)(const void *)s->protocol;
    bk_transport *t;
    int code = cover_stream(&c->tls, s, &t);
    if (code == 0)
        bk_client_front_done(s, t);
    return code; /* on failure its closed() follows */
}

/* ---- Reloading ---- */

static uint64_t digest_file(bk_os *os, const char *path, uint64_t digest) {
    bk_span text = {NULL, 0};
    if (path == NULL || bk_tls_read_file(os, "", path, &text, NULL) < 0)
        return digest * 31;
    digest = bk_tls_digest(digest, text.base, text.size);
    bk_tls_forget(os, &text);
    return digest;
}

static uint64_t digest_files(bk_os *os, const bk_tls_config *config) {
    uint64_t digest = digest_file(os, config->certificate, BK_TLS_DIGEST);
    return digest_file(os, config->ca, digest_file(os, config->key, digest));
}

static void reload_work(bk_work *work) {
    tls_listener *l = (tls_listener *)((char *)work - offsetof(tls_listener, work));
    uint64_t digest = digest_files(l->tls.loop->os, &l->options.config);
    l->error.code = 0;
    if (digest == l->seen && !l->forced)
        return;
    int code = bk_tls_context_renew(l->tls.context, &l->options.config, &l->error, &l->fresh);
    if (code == 0 || code == BK_ETLS_CONFIG) /* else it may go better the next time */
        l->seen = digest;
}

static void start_reload(tls_listener *l, bool forced);

static void watch_files(void *arg) {
    start_reload(arg, false);
}

static void start_watching(tls_listener *l) {
    if (l->options.reload > 0 && !l->options.config.development)
        (void)bk_timer_start(l->tls.loop, &l->timer,
                             bk_loop_now(l->tls.loop) + l->options.reload * BK_SECOND, watch_files,
                             l);
}

static void reload_done(bk_work *work) {
    tls_listener *l = (tls_listener *)((char *)work - offsetof(tls_listener, work));
    l->working = false;
    bk_listener *listener = l->base.listener;
    if (listener->closed) {
        bk_listener_drop(listener);
        return;
    }
    if (l->fresh != NULL) {
        bk_tls_context_unref(l->tls.context);
        l->tls.context = l->fresh;
        l->fresh = NULL;
        bk_loop_log(l->tls.loop, 0, "%s: the certificate was read again", l->base.listener->name);
    } else if (l->error.code < 0) {
        bk_loop_log(l->tls.loop, l->error.code, "%s: the old certificate stays: %s",
                    l->base.listener->name, l->error.text);
    }
    if (l->again)
        start_reload(l, true);
    else
        start_watching(l);
    bk_listener_drop(listener);
}

static void start_reload(tls_listener *l, bool forced) {
    bk_timer_stop(l->tls.loop, &l->timer);
    if (l->working) {
        l->again |= forced;
        return;
    }
    l->forced = forced;
    l->again = false;
    l->work = (bk_work){.run = reload_work, .done = reload_done};
    l->working = bk_work_start(l->tls.loop, &l->work) == 0;
    if (l->working)
        bk_listener_hold(l->base.listener);
    else
        start_watching(l);
}

static void reload_listener(bk_listener_front *f) {
    tls_listener *l = (tls_listener *)f;
    if (!l->options.config.development)
        start_reload(l, true);
}

/* ---- Listening ---- */

/* The listener's name tells of TLS. */
static int tls_listening(bk_listener_front *f) {
    tls_listener *l = (tls_listener *)f;
    const char *below = f->listener->name;
    char name[640];
    bool tcp = strncmp(below, "tcp:", 4) == 0;
    int n = snprintf(name, sizeof name, "%s%s", l->prefix, tcp ? "" : "+");
    snprintf(name + n, sizeof name - (size_t)n, "%s", below + (tcp ? 3 : 0));
    int code = bk_listener_rename(f->listener, name);
    if (code < 0)
        return code;
    start_watching(l);
    if (l->options.config.development)
        bk_loop_log(l->tls.loop, 0, "%s: a certificate for development, which no client trusts",
                    f->listener->name);
    return 0;
}

static void tls_stop(bk_listener_front *f) {
    tls_listener *l = (tls_listener *)f;
    bk_timer_stop(l->tls.loop, &l->timer);
}

static void tls_free(bk_listener_front *f) {
    tls_listener *l = (tls_listener *)f;
    bk_os *os = l->tls.loop->os;
    bk_tls_context_unref(l->tls.context);
    bk_tls_context_unref(l->fresh);
    bk_endpoint_clear(os, &l->endpoint);
    bk_dealloc(os, l);
}

/* The options point into the endpoint; so a front has one of its own. */
static int configure(tls_listener *l, const bk_endpoint *endpoint, bk_error *error) {
    bk_loop *loop = l->tls.loop;
    int code = bk_endpoint_parse(loop->os, endpoint->memory, &l->endpoint, error);
    if (code == 0)
        code = read_options(&l->endpoint, 1, &l->options, error);
    if (code == 0) {
        l->seen = digest_files(loop->os, &l->options.config);
        code = bk_tls_context_new(loop, &l->options.config, error, &l->tls.context);
    }
    return place_error(endpoint, code, error);
}

static int tls_listen(bk_loop *loop, const bk_cover *cover, const bk_endpoint *endpoint,
                      const bk_protocol *protocol, bk_error *error, bk_listener_front **ret_front) {
    tls_listener *l = bk_alloc_zero(loop->os, sizeof *l);
    if (l == NULL)
        return bk_error_set(error, -ENOMEM, 0, "%s", bk_strerror(-ENOMEM));
    l->base = (bk_listener_front){
        .front = {{.size = sizeof(bk_protocol), .name = bk_front_name, .opened = server_opened},
                  protocol},
        .listening = tls_listening,
        .reload = reload_listener,
        .stop = tls_stop,
        .free = tls_free};
    l->tls = (tls_front){.loop = loop, .later = cover == &bk_cover_starttls};
    if (l->tls.later)
        l->base.front.base.refused = server_refused;
    l->prefix = cover->name;
    int code = configure(l, endpoint, error);
    if (code < 0)
        tls_free(&l->base);
    else
        *ret_front = &l->base;
    return code;
}

/* ---- Connecting ---- */

/* Contexts of clients are kept, by what their endpoints say of TLS: reading all that a system
   trusts takes milliseconds. They stand among the listeners, and are closed with the loop. */
typedef struct kept_context {
    bk_tls_context *context;
    bk_os *os;
    char key[];
} kept_context;

static void kept_close(void *arg) {
    kept_context *kept = arg;
    bk_tls_context_unref(kept->context);
    bk_dealloc(kept->os, kept);
}

static size_t write_key(const bk_endpoint *e, char *room, size_t size) {
    size_t n = 0;
    for (int i = 0; i < e->option_count; i++) {
        int more = snprintf(n < size ? room + n : NULL, n < size ? size - n : 0, "%s=%zu:%s&",
                            e->options[i].key, strlen(e->options[i].value), e->options[i].value);
        n += more > 0 ? (size_t)more : 0;
    }
    return n;
}

static int client_context(bk_loop *loop, const bk_endpoint *e, const tls_options *o,
                          bk_error *error, bk_tls_context **ret_context) {
    size_t n = write_key(e, NULL, 0) + 1;
    kept_context *kept = bk_alloc(loop->os, sizeof *kept + n);
    bk_listener *holder;
    if (kept == NULL)
        return bk_error_set(error, -ENOMEM, 0, "%s", bk_strerror(-ENOMEM));
    *kept = (kept_context){.os = loop->os};
    kept->key[0] = '\0';
    (void)write_key(e, kept->key, n);
    int count = 0;
    bk_listener *oldest = NULL;
    for (bk_listener *l = loop->listeners; l != NULL; l = l->next) {
        if (l->close != kept_close)
            continue;
        count++;
        oldest = l; /* the list begins with the newest */
        if (strcmp(((kept_context *)l->arg)->key, kept->key) != 0)
            continue;
        *ret_context = bk_tls_context_ref(((kept_context *)l->arg)->context);
        bk_dealloc(loop->os, kept);
        return 0;
    }
    if (count >= BK_TLS_CONTEXTS)
        bk_listener_close(oldest);
    int code = place_error(e, bk_tls_context_new(loop, &o->config, error, &kept->context), error);
    if (code == 0)
        code = bk_listener_new(loop, "", kept_close, kept, &holder);
    if (code < 0) {
        kept_close(kept);
        return code;
    }
    *ret_context = bk_tls_context_ref(kept->context);
    return 0;
}

/* Whom to verify: the host, unless name= says otherwise. */
static int set_server_name(tls_front *f, const bk_endpoint *e, const tls_options *o,
                           bk_error *error) {
    const char *name = o->name != NULL ? o->name : e->host != NULL ? e->host : "";
    if (*name == '\0' && o->config.verify != BK_TLS_VERIFY_NONE)
        return bk_error_set(error, BK_EOPTION, 0,
                            "whom to verify is not known: name=HOST, or verify=none");
    if (*name == '\0')
        return 0;
    size_t n = strlen(name) + 1;
    f->server_name = bk_alloc(f->loop->os, n);
    if (f->server_name == NULL)
        return bk_error_set(error, -ENOMEM, 0, "%s", bk_strerror(-ENOMEM));
    memcpy(f->server_name, name, n);
    return 0;
}

static int tls_connect(bk_loop *loop, const bk_cover *cover, const bk_endpoint *endpoint,
                       const bk_protocol *protocol, bk_error *error, bk_client_front **ret_front) {
    tls_options options;
    int code = read_options(endpoint, 0, &options, error);
    if (code < 0)
        return code;
    tls_client *c = bk_alloc_zero(loop->os, sizeof *c);
    if (c == NULL)
        return bk_error_set(error, -ENOMEM, 0, "%s", bk_strerror(-ENOMEM));
    c->base = (bk_client_front){.front = {{.size = sizeof(bk_protocol),
                                           .name = bk_front_name,
                                           .opened = client_opened,
                                           .closed = bk_client_front_closed},
                                          protocol},
                                .free = free_client};
    c->tls = (tls_front){.loop = loop, .later = cover == &bk_cover_starttls};
    code = set_server_name(&c->tls, endpoint, &options, error);
    if (code == 0)
        code = client_context(loop, endpoint, &options, error, &c->tls.context);
    if (code < 0)
        free_client(&c->base);
    else
        *ret_front = &c->base;
    return code;
}

const bk_cover bk_cover_tls = {
    .name = "tls",
    .options = tls_keys,
    .listen = tls_listen,
    .connect = tls_connect,
};

const bk_cover bk_cover_starttls = {
    .name = "starttls",
    .options = tls_keys,
    .listen = tls_listen,
    .connect = tls_connect,
};
