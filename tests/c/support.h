/*
 * support.h: what the tests in C share: the suites of tests/conformance over the fault injector,
 * which tells what they did not give back; and the kinds of transports there are. For tests/c.
 */
#ifndef SUPPORT_H
#define SUPPORT_H

#include "tests/c/faults.h"
#include "tests/conformance/conformance.h"

/* The one injector of the process, opened on first use. */
faults *support_faults(void);

/* A suite as support_… run it: `subject` is its notifier (may be NULL) or its joint. */
typedef int (*support_suite)(const void *subject, bk_os *os, bk_conform_report *report);
int support_notifier(const void *ops, bk_os *os, bk_conform_report *report);
int support_notifier_loop(const void *ops, bk_os *os, bk_conform_report *report);
int support_loop(const void *ops, bk_os *os, bk_conform_report *report);
int support_transport(const void *joint, bk_os *os, bk_conform_report *report);

/* Run a suite with nothing injected. Returns how many cases failed, or leaked. `notifier` is for
   the loops of suites that do not take one; NULL: the default. */
int support_conforms(support_suite suite, const void *subject, const char *notifier);

/* Run each case of a suite again and again, each time with another call failing. */
typedef struct support_walk {
    faults_kind kind;
    long most; /* runs of a case; of one that makes more calls, some are left out */
    /* Filled in, added to: */
    long runs, sampled, skipped, excused;
} support_walk;
int support_walks(support_suite suite, const void *subject, const char *notifier,
                  support_walk *walk);

/* A built-in notifier by name; NULL: not here. */
const bk_notifier_ops *support_notifier_named(const char *name);

/* The kinds of transports there are, ended by one without a name. */
extern const bk_conform_joint support_joints[];
const bk_conform_joint *support_joint(const char *name);

/* Ends the process with a word of explanation when a test takes longer than this many seconds from
   now on; 0: no more of it. The text is told then. */
void support_guard(unsigned seconds, const char *text);

#endif
