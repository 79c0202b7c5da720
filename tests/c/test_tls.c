/*
 * test_tls.c: every TLS engine that is here, as a server for every one as a client, through
 * tests/conformance; TLS as a transport like any other; the names in client hellos; and what takes
 * a peer that breaks rules on purpose.
 */
#include "tests/c/check.h"
#include "tests/c/support.h"

#include "core/serve/serve.h"
#include "core/tls/libssl.h"
#include "core/tls/tls.h"

#include <errno.h>

/* The leak finder of gcc 12 takes the thread-local memory of libraries that were loaded late for
   what it is not, and crashes. Called by it alone. */
const char *__lsan_default_options(void);
const char *__lsan_default_options(void) {
    return "use_tls=0";
}

static const char *certificates(void) {
    return getenv("BECKET_TEST_CERTIFICATES");
}

/* ---- Engines ---- */

/* Whether its library is here. BECKET_TEST_ENGINES=openssl,gnutls: these only. */
static bool is_here(const bk_tls_engine *engine) {
    bk_error error = {0, 0, ""};
    const char *only = getenv("BECKET_TEST_ENGINES");
    if (only != NULL && strstr(only, engine->name) == NULL)
        return false;
    return engine->open(bk_os_default(), &error) == 0;
}

static int run_engines(const void *engines, bk_os *os, bk_conform_report *report) {
    return bk_conform_engine(engines, os, report);
}

static void engines(void) {
    for (const bk_tls_engine *const *server = bk_tls_engines(); *server != NULL; server++)
        for (const bk_tls_engine *const *client = bk_tls_engines(); *client != NULL; client++) {
            bk_conform_engines both = {*server, *client, certificates()};
            if (!is_here(*server) || !is_here(*client))
                continue;
            int failed = support_conforms(run_engines, &both, NULL);
            printf("# %s serves %s: %d cases failed\n", (*server)->name, (*client)->name, failed);
            CHECK_INT(failed, 0);
        }
}

/* ---- TLS as a transport like any other ---- */

typedef struct tls_joint {
    const bk_tls_engine *engine; /* of both */
    const bk_conform_joint *inner;
    int allow_truncation;
} tls_joint;

static int make_context(bk_loop *loop, const tls_joint *joint, int server,
                        bk_tls_context **ret_context) {
    char certificate[320], ca[320];
    snprintf(certificate, sizeof certificate, "%s/server.pem", certificates());
    snprintf(ca, sizeof ca, "%s/ca.crt", certificates());
    bk_tls_config config = {
        .size = sizeof config,
        .engine = joint->engine->name,
        .server = server,
        .certificate = server ? certificate : NULL,
        .ca = server ? NULL : ca,
        .allow_truncation = joint->allow_truncation,
    };
    return bk_tls_context_new(loop, &config, NULL, ret_context);
}

static int cover(bk_loop *loop, const tls_joint *joint, int server, bk_transport **t) {
    bk_tls_context *context = NULL;
    int code = make_context(loop, joint, server, &context);
    if (code >= 0)
        code = bk_tls_transport(loop, *t, context, server ? NULL : "localhost", t);
    bk_tls_context_unref(context);
    return code;
}

static int make_tls(bk_loop *loop, void *arg, bk_transport *ret_pair[2]) {
    const tls_joint *joint = arg;
    bk_transport *pair[2];
    int code = joint->inner->make(loop, joint->inner->arg, pair);
    if (code < 0)
        return code;
    for (int i = 0; i < 2 && code >= 0; i++)
        code = cover(loop, joint, i, &pair[i]);
    for (int i = 0; i < 2; i++)
        if (code < 0)
            pair[i]->ops->close(pair[i]);
        else
            ret_pair[i] = pair[i];
    return code < 0 ? code : 0;
}

static const bk_tls_engine *any_engine(void) {
    const bk_tls_engine *const *engine = bk_tls_engines();
    while (*engine != NULL && !is_here(*engine))
        engine++;
    return *engine;
}

static bk_conform_joint joint_over(tls_joint *arg, const char *name) {
    unsigned traits = arg->inner->traits & BK_CONFORM_NO_RESET;
    traits |= arg->allow_truncation ? 0 : BK_CONFORM_TRUNCATES;
    return (bk_conform_joint){name, traits, make_tls, arg};
}

/* Less than a record, but more than a server's tickets: a blocking driver of one side alone would
   wait for ever on what nobody reads. */
static int make_narrow(bk_loop *loop, void *arg, bk_transport *ret_pair[2]) {
    (void)arg;
    return bk_memory_transport(loop, 2000, ret_pair);
}

static const bk_conform_joint narrow = {"narrow memory", BK_CONFORM_NO_RESET, make_narrow, NULL};

static void conforms_over(const bk_tls_engine *engine, const char *inner, int allow_truncation) {
    char name[80];
    const bk_conform_joint *joint_inside =
        strcmp(inner, narrow.name) == 0 ? &narrow : support_joint(inner);
    tls_joint arg = {engine, joint_inside, allow_truncation};
    if (engine == NULL) {
        check_skip("no engine is here");
        return;
    }
    snprintf(name, sizeof name, "tls (%s) over %s%s", engine->name, inner,
             allow_truncation ? ", truncation allowed" : "");
    bk_conform_joint joint = joint_over(&arg, name);
    CHECK_INT(support_conforms(support_transport, &joint, NULL), 0);
}

static void over_memory(void) {
    for (const bk_tls_engine *const *engine = bk_tls_engines(); *engine != NULL; engine++)
        if (is_here(*engine)) {
            conforms_over(*engine, "memory", 0);
            conforms_over(*engine, "memory", 1);
        }
}

static void over_narrow_memory(void) {
    for (const bk_tls_engine *const *engine = bk_tls_engines(); *engine != NULL; engine++)
        if (is_here(*engine))
            conforms_over(*engine, narrow.name, 0);
}

static void over_tcp(void) {
    conforms_over(any_engine(), "tcp", 0);
    conforms_over(any_engine(), "tight tcp", 0);
    conforms_over(any_engine(), "tcp", 1);
}

static void over_unix(void) {
    conforms_over(any_engine(), "unix", 0);
    conforms_over(any_engine(), "tight unix", 0);
}

static void over_pipes(void) {
    conforms_over(any_engine(), "pipes", 0);
    conforms_over(any_engine(), "adopted", 0);
}

static void over_what_cannot_half_close(void) {
    conforms_over(any_engine(), "one way", 0);
}

static void over_tls(void) {
    tls_joint inside = {any_engine(), support_joint("memory"), 0};
    bk_conform_joint inner = joint_over(&inside, "tls");
    tls_joint outside = {any_engine(), &inner, 0};
    bk_conform_joint joint = joint_over(&outside, "tls over tls");
    CHECK_INT(support_conforms(support_transport, &joint, NULL), 0);
}

/* Behind a proxy that only relays: the header comes before, and may come with, the hello. */
static int make_relayed(bk_loop *loop, void *arg, bk_transport *ret_pair[2]) {
    const bk_conform_joint *inner = arg;
    bk_proxy_trust trust;
    bk_transport *pair[2];
    int code = inner->make(loop, inner->arg, pair);
    if (code < 0)
        return code;
    code = bk_proxy_trust_parse(NULL, &trust, NULL);
    if (code == 0)
        code = bk_proxy_send(loop, pair[0], 2, NULL, 0, NULL, 0, &pair[0]);
    if (code == 0)
        code = bk_proxy_read(loop, pair[1], &trust, true, &pair[1]);
    for (int i = 0; i < 2; i++)
        if (code < 0)
            pair[i]->ops->close(pair[i]);
        else
            ret_pair[i] = pair[i];
    return code;
}

static void over_proxy(void) {
    bk_conform_joint relayed = {"PROXY", 0, make_relayed, (void *)support_joint("tcp")};
    tls_joint inside = {any_engine(), &relayed, 0};
    bk_conform_joint joint = joint_over(&inside, "tls over PROXY over tcp");
    CHECK_INT(support_conforms(support_transport, &joint, NULL), 0);
    relayed.traits = BK_CONFORM_NO_RESET;
    relayed.arg = (void *)&narrow;
    joint = joint_over(&inside, "tls over PROXY over narrow memory");
    CHECK_INT(support_conforms(support_transport, &joint, NULL), 0);
}

/* ---- With every call failing in turn ---- */

/* Handshakes take their time: fewer runs than test_faults.c makes, spread over all calls.
   BECKET_TEST_FAULTS=n makes n of each case and kind. */
enum { ERROR_RUNS = 2, WHOLE_RUNS = 1 };

static void walk(support_suite suite, const void *subject) {
    const char *text = getenv("BECKET_TEST_FAULTS");
    for (int kind = FAULTS_NONE + 1; kind < FAULTS_KINDS; kind++) {
        bool error = kind == FAULTS_ERROR || kind == FAULTS_NO_MEMORY;
        support_walk w = {.kind = (faults_kind)kind, .most = error ? ERROR_RUNS : WHOLE_RUNS};
        if (text != NULL)
            w.most = strtol(text, NULL, 10);
        CHECK_INT(support_walks(suite, subject, NULL, &w), 0);
        printf("# %s: %ld runs, %ld of them sampled, %ld calls left out, %ld ended with an error\n",
               faults_kind_name(w.kind), w.runs, w.sampled, w.skipped, w.excused);
    }
}

static void engines_walked(void) {
    for (const bk_tls_engine *const *engine = bk_tls_engines(); *engine != NULL; engine++) {
        bk_conform_engines both = {*engine, *engine, certificates()};
        if (is_here(*engine))
            walk(run_engines, &both);
    }
}

static void transport_walked(void) {
    for (const bk_tls_engine *const *engine = bk_tls_engines(); *engine != NULL; engine++) {
        tls_joint arg = {*engine, support_joint("tight unix"), 0};
        bk_conform_joint joint = joint_over(&arg, "tls over unix");
        if (is_here(*engine))
            walk(support_transport, &joint);
    }
}

/* ---- The names in client hellos ---- */

/* One end of a pair in memory, under a TLS client that never gets an answer: what it says first. */
static size_t capture_hello(const bk_tls_engine *engine, const char *name, unsigned char *room,
                            size_t size) {
    bk_loop *loop = NULL;
    bk_transport *ends[2] = {NULL, NULL};
    bk_stream *s = NULL;
    static const bk_protocol nothing = {.size = sizeof nothing, .name = "nothing"};
    bk_tls_config config = {.size = sizeof config,
                            .engine = engine->name,
                            .verify = BK_TLS_VERIFY_NONE,
                            .alpn = "h2,http/1.1"};
    bk_tls_context *context = NULL;
    CHECK_INT(bk_loop_new(NULL, &loop), 0);
    CHECK_INT(bk_tls_context_new(loop, &config, NULL, &context), 0);
    CHECK_INT(bk_memory_transport(loop, 0, ends), 0);
    CHECK_INT(bk_tls_transport(loop, ends[0], context, name, &ends[0]), 0);
    CHECK_INT(bk_stream_new(loop, ends[0], &nothing, NULL, &s), 0);
    CHECK_INT(bk_loop_turn(loop, 0), 0);
    ssize_t n = ends[1]->ops->read(ends[1], room, size);
    ends[1]->ops->close(ends[1]);
    bk_tls_context_unref(context);
    CHECK_INT(bk_loop_free(loop), 0);
    CHECK(n > 0);
    return n > 0 ? (size_t)n : 0;
}

/* In memory of just that size, so that a byte too far is found out. */
static int find_name(const unsigned char *bytes, size_t n, char ret_name[BK_TLS_NAME_BYTES]) {
    unsigned char *copy = malloc(n > 0 ? n : 1);
    memcpy(copy, bytes, n);
    int code = bk_hello_find_name(faults_os(support_faults()), copy, n, ret_name);
    free(copy);
    return code;
}

/* The same hello, its message in records of so many bytes each. */
static size_t fragment(const unsigned char *hello, size_t n, size_t piece, unsigned char *room) {
    size_t used = 0;
    for (size_t at = 5; at < n; at += piece) {
        size_t part = n - at < piece ? n - at : piece;
        const unsigned char head[5] = {22, 3, 1, (unsigned char)(part >> 8), (unsigned char)part};
        memcpy(room + used, head, sizeof head);
        memcpy(room + used + sizeof head, hello + at, part);
        used += sizeof head + part;
    }
    return used;
}

static void finds_name(const unsigned char *hello, size_t n, const char *wanted) {
    static unsigned char pieces[65536];
    char name[BK_TLS_NAME_BYTES] = "untouched";
    for (size_t cut = 0; cut < n; cut++)
        CHECK_INT(find_name(hello, cut, name), 0);
    CHECK_INT(find_name(hello, n, name), 1);
    CHECK_STR(name, wanted);
    for (size_t piece = 1; piece < 300; piece += piece < 10 ? 1 : 37) {
        size_t m = fragment(hello, n, piece, pieces);
        strcpy(name, "untouched");
        CHECK_INT(find_name(pieces, m - 1, name), 0);
        CHECK_INT(find_name(pieces, m, name), 1);
        CHECK_STR(name, wanted);
    }
}

/* Whatever is changed: a result that is one, a name that ends, and no byte beyond what is there. */
static void survives(const unsigned char *hello, size_t n) {
    static unsigned char bytes[16384];
    static const unsigned char values[] = {0, 1, 0x7f, 0x80, 0xff};
    uint32_t chance = 1;
    char name[BK_TLS_NAME_BYTES];
    for (size_t at = 0; at < n; at++)
        for (size_t v = 0; v < 6; v++) {
            memcpy(bytes, hello, n);
            bytes[at] = v < 5 ? values[v] : (unsigned char)(bytes[at] ^ 1);
            memset(name, 'x', sizeof name);
            int code = find_name(bytes, n, name);
            CHECK(code == 0 || code == 1 || code == BK_ETLS_PROTOCOL);
            CHECK(code != 1 || memchr(name, '\0', sizeof name) != NULL);
        }
    for (int i = 0; i < 20000; i++) { /* several at a time, and cut */
        memcpy(bytes, hello, n);
        for (int j = 0; j < 1 + i % 8; j++) {
            chance = chance * 1664525 + 1013904223;
            bytes[(chance >> 8) % n] = (unsigned char)(chance >> 24);
        }
        int code = find_name(bytes, n - (size_t)i % 7 * n / 9, name);
        CHECK(code == 0 || code == 1 || code == BK_ETLS_PROTOCOL);
    }
}

static void hellos(void) {
    static unsigned char hello[16384];
    for (const bk_tls_engine *const *engine = bk_tls_engines(); *engine != NULL; engine++) {
        static const char *const names[][2] = {
            {"localhost", "localhost"},
            {"WWW.Example.test", "www.example.test"},
            {"127.0.0.1", ""},
            {NULL, ""},
        };
        if (!is_here(*engine))
            continue;
        for (int i = 0; i < COUNT(names); i++) {
            size_t n = capture_hello(*engine, names[i][0], hello, sizeof hello);
            finds_name(hello, n, names[i][1]);
            survives(hello, n);
        }
    }
    CHECK_INT(faults_leaks(support_faults(), NULL), 0);
}

/* By hand: what no engine would send. */
static void odd_hellos(void) {
    unsigned char bytes[600] = {22, 3, 1, 0, 0, 1, 0, 0, 0, 3, 3};
    char name[BK_TLS_NAME_BYTES];
    CHECK_INT(find_name(bytes, 0, name), 0);
    CHECK_INT(find_name((const unsigned char *)"GET / HTTP/1.1\r\n\r\n", 18, name),
              BK_ETLS_PROTOCOL);
    CHECK_INT(find_name((const unsigned char *)"G", 1, name), BK_ETLS_PROTOCOL);
    CHECK_INT(find_name(bytes, 11, name), BK_ETLS_PROTOCOL); /* an empty record */
    /* Version and random, no session, one cipher, one compression, and no extensions at all. */
    size_t body = 2 + 32 + 1 + 2 + 2 + 2;
    unsigned char *hello = bytes + 9;
    memset(hello, 0, 100);
    hello[36] = 2;
    hello[39] = 1;
    bytes[4] = (unsigned char)(body + 4);
    bytes[8] = (unsigned char)body;
    CHECK_INT(find_name(bytes, 9 + body, name), 1);
    CHECK_STR(name, "");
    /* A name of the greatest length, and one more; and one with a NUL in it. */
    for (size_t length = 253; length <= 257; length++)
        for (int nul = 0; nul < 2; nul++) {
            unsigned char *at = hello + body;
            const unsigned char rest[] = {(unsigned char)((length + 9) >> 8),
                                          (unsigned char)(length + 9),
                                          0,
                                          0,
                                          (unsigned char)((length + 5) >> 8),
                                          (unsigned char)(length + 5),
                                          (unsigned char)((length + 3) >> 8),
                                          (unsigned char)(length + 3),
                                          0,
                                          (unsigned char)(length >> 8),
                                          (unsigned char)length};
            size_t all = body + sizeof rest + length;
            memcpy(at, rest, sizeof rest);
            memset(at + sizeof rest, 'A', length);
            if (nul)
                at[sizeof rest + 5] = '\0';
            bytes[3] = (unsigned char)((all + 4) >> 8);
            bytes[4] = (unsigned char)(all + 4);
            bytes[7] = (unsigned char)(all >> 8);
            bytes[8] = (unsigned char)all;
            int code = find_name(bytes, 9 + all, name);
            CHECK_INT(code, length < BK_TLS_NAME_BYTES && !nul ? 1 : BK_ETLS_PROTOCOL);
            if (code == 1)
                CHECK(strlen(name) == length && name[0] == 'a');
        }
    /* A message longer than any hello, of which no more is to be waited for. */
    bytes[6] = 0x7f;
    CHECK_INT(find_name(bytes, 100, name), BK_ETLS_PROTOCOL);
}

static void hellos_without_memory(void) {
    unsigned char bytes[64] = {22, 3, 1, 0, 59, 1, 0, 0, 55};
    char name[BK_TLS_NAME_BYTES];
    faults_arm(support_faults(), FAULTS_NO_MEMORY, 1);
    CHECK_INT(find_name(bytes, sizeof bytes, name), -ENOMEM);
    faults_disarm(support_faults());
    CHECK_INT(faults_leaks(support_faults(), NULL), 0);
}

/* ---- Certificates that are read again ---- */

static int told, told_code;

static void on_log(void *arg, int code, const char *text) {
    (void)arg, (void)text;
    told++;
    told_code = code;
}

/* A worker makes the new context: it takes the engine that the endpoint has, and looks neither at
   the loop's list of them nor at the environment, either of which may be changing. */
static void reload_keeps_the_engine(void) {
    static const bk_protocol nothing = {.size = sizeof nothing, .name = "nothing"};
    const bk_loop_options options = {.size = sizeof options, .log = on_log};
    char endpoint[400];
    bk_loop *loop = NULL;
    bk_listener *listener = NULL;
    if (any_engine() == NULL) {
        check_skip("no engine is here");
        return;
    }
    snprintf(endpoint, sizeof endpoint, "tls://127.0.0.1:0?reload=0&cert=%s/server.pem",
             certificates());
    CHECK_INT(bk_loop_new(&options, &loop), 0);
    CHECK(setenv("BECKET_TLS", any_engine()->name, 1) == 0);
    CHECK_INT(bk_listen(loop, endpoint, &nothing, NULL, &listener), 0);
    CHECK(setenv("BECKET_TLS", "none", 1) == 0);
    told = told_code = 0;
    bk_listener_reload(listener);
    for (int i = 0; i < 1000 && told == 0; i++)
        CHECK_INT(bk_loop_turn(loop, 10 * BK_MILLISECOND), 0);
    CHECK_INT(told, 1);
    CHECK_INT(told_code, 0);
    CHECK(unsetenv("BECKET_TLS") == 0);
    CHECK_INT(bk_loop_free(loop), 0);
}

/* ---- A peer that asks to renegotiate: OpenSSL, by itself ---- */

/* What libssl.h has no use for. */
#define RAW(X)                                                                                     \
    X(int, SSL_renegotiate, (SSL *))                                                               \
    X(int, SSL_renegotiate_pending, (const SSL *))                                                 \
    X(int, SSL_CTX_use_certificate_chain_file, (SSL_CTX *, const char *))                          \
    X(int, SSL_CTX_use_PrivateKey_file, (SSL_CTX *, const char *, int))                            \
    X(int, BIO_read, (BIO *, void *, int))                                                         \
    X(int, BIO_write, (BIO *, const void *, int))

typedef struct raw_functions {
#define FIELD(result, name, arguments) result(*name) arguments;
    RAW(FIELD)
#undef FIELD
} raw_functions;

static bool find_raw(raw_functions *ret_functions) {
    static const char *const names[] = {
#define NAME(result, name, arguments) #name,
        RAW(NAME)
#undef NAME
    };
    static const char *const libraries[] = {"libssl.so.3", NULL};
    void *found[COUNT(names)];
    bk_os *os = bk_os_default();
    bk_error error;
    if (bk_tls_engine_openssl.open(os, &error) < 0)
        return false;
    void *library = os->library(os, libraries, 1);
    for (int i = 0; i < COUNT(names) && library != NULL; i++)
        if ((found[i] = os->symbol(os, library, names[i])) == NULL)
            library = NULL;
    if (library != NULL)
        memcpy(ret_functions, found, sizeof found);
    return library != NULL;
}

/* OpenSSL in memory, joined by hand to one of our streams. */
typedef struct raw_peer {
    raw_functions raw;
    SSL_CTX *ctx;
    SSL *ssl;
    BIO *in, *out;
    bk_loop *loop;
    bk_transport *wire; /* the other end of our stream's */
    bk_stream *s;
    int opened, closed, why;
    size_t got;
} raw_peer;

static int raw_opened(bk_stream *s) {
    ((raw_peer *)bk_stream_user(s))->opened++;
    return 0;
}

static void raw_received(bk_stream *s, const void *data, size_t n) {
    (void)data;
    ((raw_peer *)bk_stream_user(s))->got += n;
}

static void raw_closed(bk_stream *s, int why) {
    raw_peer *p = bk_stream_user(s);
    p->closed++;
    p->why = why;
}

static const bk_protocol raw_protocol = {.size = sizeof(bk_protocol),
                                         .name = "raw",
                                         .opened = raw_opened,
                                         .received = raw_received,
                                         .closed = raw_closed};

/* Until nothing moves; OpenSSL does what it has to in between. */
static void raw_exchange(raw_peer *p) {
    char room[4096];
    for (int quiet = 0; quiet < 3; quiet++) {
        size_t n = 0;
        int sent;
        ssize_t came;
        if (bk_ssl.SSL_do_handshake(p->ssl) == 1)
            (void)bk_ssl.SSL_read_ex(p->ssl, room, sizeof room, &n);
        bk_ssl.ERR_clear_error();
        while ((sent = p->raw.BIO_read(p->out, room, sizeof room)) > 0) {
            struct iovec v = {room, (size_t)sent};
            (void)p->wire->ops->write(p->wire, &v, 1);
            quiet = 0;
        }
        CHECK_INT(bk_loop_turn(p->loop, 0), 0);
        while ((came = p->wire->ops->read(p->wire, room, sizeof room)) > 0) {
            CHECK_INT(p->raw.BIO_write(p->in, room, (int)came), came);
            quiet = 0;
        }
    }
}

static void raw_open(raw_peer *p, const bk_tls_engine *engine, int we_serve) {
    char certificate[320];
    bk_transport *ends[2];
    bk_tls_context *context = NULL;
    snprintf(certificate, sizeof certificate, "%s/server.pem", certificates());
    bk_tls_config config = {.size = sizeof config,
                            .engine = engine->name,
                            .server = we_serve,
                            .certificate = we_serve ? certificate : NULL,
                            .verify = BK_TLS_VERIFY_NONE};
    p->ctx = bk_ssl.SSL_CTX_new(bk_ssl.TLS_method());
    (void)bk_ssl.SSL_CTX_ctrl(p->ctx, BK_SSL_CTRL_MAX_PROTO_VERSION, BK_TLS_1_2, NULL);
    if (!we_serve) {
        CHECK_INT(p->raw.SSL_CTX_use_certificate_chain_file(p->ctx, certificate), 1);
        CHECK_INT(p->raw.SSL_CTX_use_PrivateKey_file(p->ctx, certificate, 1), 1);
    }
    p->ssl = bk_ssl.SSL_new(p->ctx);
    p->in = bk_ssl.BIO_new(bk_ssl.BIO_s_mem());
    p->out = bk_ssl.BIO_new(bk_ssl.BIO_s_mem());
    bk_ssl.SSL_set_bio(p->ssl, p->in, p->out);
    if (we_serve)
        bk_ssl.SSL_set_connect_state(p->ssl);
    else
        bk_ssl.SSL_set_accept_state(p->ssl);
    CHECK_INT(bk_loop_new(NULL, &p->loop), 0);
    CHECK_INT(bk_tls_context_new(p->loop, &config, NULL, &context), 0);
    CHECK_INT(bk_memory_transport(p->loop, 0, ends), 0);
    p->wire = ends[1];
    CHECK_INT(bk_tls_transport(p->loop, ends[0], context, NULL, &ends[0]), 0);
    CHECK_INT(bk_stream_new(p->loop, ends[0], &raw_protocol, p, &p->s), 0);
    bk_tls_context_unref(context);
}

static void raw_close(raw_peer *p) {
    p->wire->ops->close(p->wire);
    CHECK_INT(bk_loop_free(p->loop), 0);
    bk_ssl.SSL_free(p->ssl);
    bk_ssl.SSL_CTX_free(p->ctx);
}

/* It is refused: by breaking the connection, which is then told, or by not heeding it. */
static void refuse_renegotiation(const bk_tls_engine *engine, int we_serve) {
    raw_peer p = {.closed = 0};
    size_t n = 0;
    CHECK(find_raw(&p.raw));
    raw_open(&p, engine, we_serve);
    raw_exchange(&p);
    CHECK_INT(p.opened, 1);
    CHECK_INT(bk_ssl.SSL_write_ex(p.ssl, "hello", 5, &n), 1);
    raw_exchange(&p);
    CHECK_INT(p.got, 5);
    CHECK_INT(p.raw.SSL_renegotiate(p.ssl), 1);
    raw_exchange(&p);
    CHECK_INT(p.raw.SSL_renegotiate_pending(p.ssl), 1); /* it never came about */
    CHECK_INT(p.got, 5);
    printf("# %s as a %s: %s\n", engine->name, we_serve ? "server" : "client",
           p.closed ? bk_strerror(p.why) : "does not heed it");
    CHECK(p.closed == 0 || p.why == BK_ETLS_RENEGOTIATION || p.why == BK_ETLS_ALERT);
    raw_close(&p);
}

static void renegotiation(void) {
    raw_functions raw;
    if (!find_raw(&raw)) {
        check_skip("OpenSSL is not here");
        return;
    }
    for (const bk_tls_engine *const *engine = bk_tls_engines(); *engine != NULL; engine++)
        for (int we_serve = 0; we_serve < 2 && is_here(*engine); we_serve++)
            refuse_renegotiation(*engine, we_serve);
}

int main(int argc, char **argv) {
    static const check_case cases[] = {
        CASE(engines),
        CASE(over_memory),
        CASE(over_narrow_memory),
        CASE(over_tcp),
        CASE(over_unix),
        CASE(over_pipes),
        CASE(over_what_cannot_half_close),
        CASE(over_tls),
        CASE(over_proxy),
        CASE(engines_walked),
        CASE(transport_walked),
        CASE(reload_keeps_the_engine),
        CASE(renegotiation),
        CASE(hellos),
        CASE(odd_hellos),
        CASE(hellos_without_memory),
    };
    if (certificates() == NULL) {
        printf("1..0 # SKIP no certificates: BECKET_TEST_CERTIFICATES names no folder of them\n");
        return 0;
    }
    return check_main(argc, argv, cases, COUNT(cases));
}
