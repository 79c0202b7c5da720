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

/* One endpoint's TLS. Lives until its listener is closed and no work of it is under way. */
typedef struct tls_cover {
    bk_front front;
    bk_loop *loop;
    bk_tls_context *context;
    bool later; /* starttls */
    char *server_name;

    /* Of a listener. */
    bk_listener *listener; /* NULL: closed */
    void (*close)(void *arg);
    void *arg;
    bk_endpoint endpoint;
    tls_options options;
    bk_timer timer;
    bk_work work;
    bool working, forced, again; /* again: once more when it is done, forced */
    uint64_t seen;               /* a digest of the files */
    bk_tls_context *fresh;       /* what work() made */
    bk_error error;
} tls_cover;

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

static int cover_stream(const tls_cover *c, bk_stream *s, bk_transport **ret_transport) {
    bk_transport *inner = bk_stream_transport(s);
    if (c->later)
        return bk_tls_offer(c->loop, inner, c->context, c->server_name, ret_transport);
    return bk_tls_transport(c->loop, inner, c->context, c->server_name, ret_transport);
}

static void free_client(tls_cover *c) {
    bk_os *os = c->loop->os;
    bk_tls_context_unref(c->context);
    bk_dealloc(os, c->server_name);
    bk_dealloc(os, c);
}

/* Of a stream that came to nothing, while its cover goes its own way. */
static const bk_protocol nobody = {.size = sizeof nobody, .name = "nobody"};

static int server_opened(bk_stream *s) {
    const tls_cover *c = (const tls_cover *)(const void *)s->protocol;
    bk_transport *t;
    int code = cover_stream(c, s, &t);
    if (code < 0) {
        s->protocol = &nobody;
        return code;
    }
    bk_stream_reopen(s, t, c->front.protocol);
    return 0;
}

static int client_opened(bk_stream *s) {
    tls_cover *c = (tls_cover *)(uintptr_t)s->protocol;
    const bk_protocol *protocol = c->front.protocol;
    bk_transport *t;
    int code = cover_stream(c, s, &t);
    if (code < 0)
        return code; /* client_closed() follows */
    free_client(c);
    bk_stream_reopen(s, t, protocol);
    return 0;
}

/* The connection never came to be: whoever it was for is told. */
static void client_closed(bk_stream *s, int why) {
    tls_cover *c = (tls_cover *)(uintptr_t)s->protocol;
    s->protocol = c->front.protocol;
    free_client(c);
    if (BK_HAS(s->protocol, closed))
        s->protocol->closed(s, why);
}

static int new_cover(bk_loop *loop, const bk_protocol *protocol, bool later, bk_error *error,
                     tls_cover **ret_cover) {
    tls_cover *c = bk_alloc_zero(loop->os, sizeof *c);
    if (c == NULL)
        return bk_error_set(error, -ENOMEM, 0, "%s", bk_strerror(-ENOMEM));
    c->front.base = (bk_protocol){.size = sizeof(bk_protocol), .name = bk_front_name};
    c->front.protocol = protocol;
    c->loop = loop;
    c->later = later;
    *ret_cover = c;
    return 0;
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

static void free_listening(tls_cover *c) {
    bk_os *os = c->loop->os;
    bk_tls_context_unref(c->context);
    bk_tls_context_unref(c->fresh);
    bk_endpoint_clear(os, &c->endpoint);
    bk_dealloc(os, c);
}

static void reload_work(bk_work *work) {
    tls_cover *c = (tls_cover *)((char *)work - offsetof(tls_cover, work));
    uint64_t digest = digest_files(c->loop->os, &c->options.config);
    c->error.code = 0;
    if (digest == c->seen && !c->forced)
        return;
    int code = bk_tls_context_renew(c->context, &c->options.config, &c->error, &c->fresh);
    if (code == 0 || code == BK_ETLS_CONFIG) /* else it may go better the next time */
        c->seen = digest;
}

static void start_reload(tls_cover *c, bool forced);

static void watch_files(void *arg) {
    start_reload(arg, false);
}

static void start_watching(tls_cover *c) {
    if (c->options.reload > 0 && !c->options.config.development)
        (void)bk_timer_start(c->loop, &c->timer,
                             bk_loop_now(c->loop) + c->options.reload * BK_SECOND, watch_files, c);
}

static void reload_done(bk_work *work) {
    tls_cover *c = (tls_cover *)((char *)work - offsetof(tls_cover, work));
    c->working = false;
    if (c->listener == NULL) {
        free_listening(c);
        return;
    }
    if (c->fresh != NULL) {
        bk_tls_context_unref(c->context);
        c->context = c->fresh;
        c->fresh = NULL;
        bk_loop_log(c->loop, 0, "%s: the certificate was read again", c->listener->name);
    } else if (c->error.code < 0) {
        bk_loop_log(c->loop, c->error.code, "%s: the old certificate stays: %s", c->listener->name,
                    c->error.text);
    }
    if (c->again)
        start_reload(c, true);
    else
        start_watching(c);
}

static void start_reload(tls_cover *c, bool forced) {
    bk_timer_stop(c->loop, &c->timer);
    if (c->working) {
        c->again |= forced;
        return;
    }
    c->forced = forced;
    c->again = false;
    c->work = (bk_work){.run = reload_work, .done = reload_done};
    c->working = bk_work_start(c->loop, &c->work) == 0;
    if (!c->working)
        start_watching(c);
}

static void reload_listener(void *arg) {
    tls_cover *c = arg;
    if (!c->options.config.development)
        start_reload(c, true);
}

/* ---- Listening ---- */

static void close_listener(void *arg) {
    tls_cover *c = arg;
    c->close(c->arg);
    c->listener = NULL;
    bk_timer_stop(c->loop, &c->timer);
    if (!c->working)
        free_listening(c);
}

/* From here on the listener's close() is ours, and its name tells of TLS. */
static int take_listener(tls_cover *c, const char *prefix, bk_listener *listener) {
    char name[640];
    bool tcp = strncmp(listener->name, "tcp:", 4) == 0;
    int n = snprintf(name, sizeof name, "%s%s", prefix, tcp ? "" : "+");
    snprintf(name + n, sizeof name - (size_t)n, "%s", listener->name + (tcp ? 3 : 0));
    int code = bk_listener_rename(listener, name);
    if (code < 0)
        return code;
    c->listener = listener;
    c->close = listener->close;
    c->arg = listener->arg;
    listener->close = close_listener;
    listener->reload = reload_listener;
    listener->arg = c;
    start_watching(c);
    return 0;
}

/* The options point into the endpoint; so a cover has one of its own. */
static int copy_endpoint(tls_cover *c, const bk_endpoint *endpoint, bk_error *error) {
    return bk_endpoint_parse(c->loop->os, endpoint->memory, &c->endpoint, error);
}

static int listen_covered(tls_cover *c, const char *prefix, const bk_scheme *scheme,
                          const bk_endpoint *endpoint, bk_error *error,
                          bk_listener **ret_listener) {
    int code = copy_endpoint(c, endpoint, error);
    if (code == 0)
        code = read_options(&c->endpoint, 1, &c->options, error);
    if (code == 0) {
        c->seen = digest_files(c->loop->os, &c->options.config);
        code = bk_tls_context_new(c->loop, &c->options.config, error, &c->context);
    }
    if (code < 0)
        return place_error(endpoint, code, error);
    c->front.base.opened = server_opened;
    code = scheme->listen(c->loop, endpoint, &c->front.base, error, ret_listener);
    if (code < 0)
        return code;
    code = take_listener(c, prefix, *ret_listener);
    if (code < 0)
        bk_listener_close(*ret_listener);
    else if (c->options.config.development)
        bk_loop_log(c->loop, 0, "%s: a certificate for development, which no client trusts",
                    (*ret_listener)->name);
    return code;
}

static int tls_listen(bk_loop *loop, const bk_cover *cover, const bk_scheme *scheme,
                      const bk_endpoint *endpoint, const bk_protocol *protocol, bk_error *error,
                      bk_listener **ret_listener) {
    tls_cover *c = NULL;
    int code = new_cover(loop, protocol, cover == &bk_cover_starttls, error, &c);
    if (code < 0)
        return code;
    code = listen_covered(c, cover->name, scheme, endpoint, error, ret_listener);
    if (code < 0)
        free_listening(c);
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
static int set_server_name(tls_cover *c, const bk_endpoint *e, const tls_options *o,
                           bk_error *error) {
    const char *name = o->name != NULL ? o->name : e->host;
    if (*name == '\0' && o->config.verify != BK_TLS_VERIFY_NONE)
        return bk_error_set(error, BK_EOPTION, 0,
                            "whom to verify is not known: name=HOST, or verify=none");
    if (*name == '\0')
        return 0;
    size_t n = strlen(name) + 1;
    c->server_name = bk_alloc(c->loop->os, n);
    if (c->server_name == NULL)
        return bk_error_set(error, -ENOMEM, 0, "%s", bk_strerror(-ENOMEM));
    memcpy(c->server_name, name, n);
    return 0;
}

static int tls_connect(bk_loop *loop, const bk_cover *cover, const bk_scheme *scheme,
                       const bk_endpoint *endpoint, const bk_protocol *protocol, void *user,
                       bk_error *error, bk_stream **ret_stream) {
    tls_cover *c = NULL;
    tls_options options;
    int code = read_options(endpoint, 0, &options, error);
    if (code == 0)
        code = new_cover(loop, protocol, cover == &bk_cover_starttls, error, &c);
    if (code < 0)
        return code;
    c->front.base.opened = client_opened;
    c->front.base.closed = client_closed;
    code = set_server_name(c, endpoint, &options, error);
    if (code == 0)
        code = client_context(loop, endpoint, &options, error, &c->context);
    if (code == 0)
        code = scheme->connect(loop, endpoint, &c->front.base, user, error, ret_stream);
    if (code < 0)
        free_client(c);
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
