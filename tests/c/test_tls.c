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

int main(int argc, char **argv) {
    static const check_case cases[] = {
        CASE(engines),
    };
    if (certificates() == NULL) {
        printf("1..0 # SKIP no certificates: BECKET_TEST_CERTIFICATES names no folder of them\n");
        return 0;
    }
    return check_main(argc, argv, cases, COUNT(cases));
}
