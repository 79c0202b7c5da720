/*
 * test_tls.c: every TLS engine that is here, as a server for every one as a client, through
 * tests/conformance; TLS as a transport like any other; the names in client hellos; and what takes
 * a peer that breaks rules on purpose.
 */
#include "tests/c/check.h"
#include "tests/c/support.h"

#include <becket-tls.h>

#include <errno.h>

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

static void conforms_over(const bk_tls_engine *engine, const char *inner, int allow_truncation) {
    char name[80];
    tls_joint arg = {engine, support_joint(inner), allow_truncation};
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

static void over_tight_memory(void) {
    for (const bk_tls_engine *const *engine = bk_tls_engines(); *engine != NULL; engine++)
        if (is_here(*engine))
            conforms_over(*engine, "tight memory", 0);
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

int main(int argc, char **argv) {
    static const check_case cases[] = {
        CASE(engines),
        CASE(over_memory),
        CASE(over_tight_memory),
        CASE(over_tcp),
        CASE(over_unix),
        CASE(over_pipes),
        CASE(over_what_cannot_half_close),
        CASE(over_tls),
    };
    if (certificates() == NULL) {
        printf("1..0 # SKIP no certificates: BECKET_TEST_CERTIFICATES names no folder of them\n");
        return 0;
    }
    return check_main(argc, argv, cases, COUNT(cases));
}
