/*
 * conformance.h: suites that tell whether a part does what becket.h says it does. For the author of
 * a notifier, of a transport, of a TLS engine, or of an operating system's table: link your part,
 * becket and the files of this folder, and call
 *
 *     int main(void) {
 *         return bk_conform_notifier(&my_notifier, NULL, NULL) != 0;
 *     }
 *
 * A suite is a list of cases; each makes all it needs, and is told about when it is over. Nothing
 * in here is part of the library, and nothing in here needs more of it than becket.h and, for
 * engines, becket-tls.h.
 */
#ifndef BK_CONFORMANCE_H
#define BK_CONFORMANCE_H

#include <becket.h>

#include <stdbool.h>

typedef struct bk_conform_case bk_conform_case;

typedef enum bk_conform_verdict {
    BK_CONFORM_PASSED,
    BK_CONFORM_SKIPPED, /* does not apply here */
    BK_CONFORM_EXCUSED, /* an injected fault was answered with a clear error */
    BK_CONFORM_FAILED,
} bk_conform_verdict;

/* How to run a suite, and what came of it. All zero is good; NULL in its place too. */
typedef struct bk_conform_report {
    const char *only;     /* the cases whose name contains this; NULL: all */
    bool quick;           /* small amounts, for suites that are run over and over */
    bool loud;            /* a line for each case, not for the failed ones alone */
    const char *notifier; /* for the loops of suites that do not take one; NULL: the default */
    bk_os *scaffold;      /* for what a suite does on its own behalf; NULL: the part's own table */
    /* NULL, or called for each case in place of bk_conform_run(), which it calls as often as it
       likes: to count, to inject faults, to look for leaks. */
    void (*around)(void *arg, bk_conform_case *c);
    /* NULL, or how many faults have been injected so far. A case that went wrong after one is
       excused if somebody was told: a negative result, a closed(why < 0), a line in the log. */
    long (*faults)(void *arg);
    /* The faults are such that nobody may notice them: no case is excused. */
    bool invisible;
    void *arg;

    /* Filled in by the suites; added to, so that one report serves several. */
    int passed, skipped, excused, failed;
} bk_conform_report;

/* Run a case and say what went wrong; for report->around. */
bk_conform_verdict bk_conform_run(bk_conform_case *c);
const char *bk_conform_name(const bk_conform_case *c);
/* It would make a walk through all faults too long, and meets no calls that others do not. */
bool bk_conform_long(const bk_conform_case *c);

/*
 * The suites. Each returns how many cases failed. os NULL: bk_os_default(). report may be NULL.
 */

/* A notifier by itself. */
int bk_conform_notifier(const bk_notifier_ops *ops, bk_os *os, bk_conform_report *report);
/* A notifier under a loop: what the loop makes of it. */
int bk_conform_notifier_loop(const bk_notifier_ops *ops, bk_os *os, bk_conform_report *report);
/* The loop itself over an operating system's table, and over a notifier (NULL: the default). */
int bk_conform_loop(const bk_notifier_ops *ops, bk_os *os, bk_conform_report *report);

/* What does not hold for a kind of transport. */
enum {
    BK_CONFORM_NO_HALF_CLOSE = 1, /* it lacks end(): bk_stream_end() is -ENOTSUP */
    BK_CONFORM_NO_RESET = 2,      /* a peer gone with data unread looks like one that ended */
    BK_CONFORM_TRUNCATES = 4,     /* a peer gone without an end is BK_ETRUNCATED: TLS */
};

/* A kind of transport: how to make two that are joined. */
typedef struct bk_conform_joint {
    const char *name;
    unsigned traits;
    /* On failure nothing is left behind. */
    int (*make)(bk_loop *loop, void *arg, bk_transport *ret_pair[2]);
    void *arg;
} bk_conform_joint;

int bk_conform_transport(const bk_conform_joint *joint, bk_os *os, bk_conform_report *report);

/* A TLS engine as a server, and one (the same, or another) as its client. What either of them has
   no name for, such as TLS 1.3, is printed as what it cannot do, and counted as skipped. */
typedef struct bk_conform_engines {
    const struct bk_tls_engine *server, *client;
    const char *certificates; /* a folder that tests/certificates.sh has filled */
} bk_conform_engines;

int bk_conform_engine(const bk_conform_engines *engines, bk_os *os, bk_conform_report *report);

#endif
