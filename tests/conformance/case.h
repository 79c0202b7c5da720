/*
 * case.h: what the suites have in common: cases, checks, and a guard against hanging. For the files
 * of this folder only.
 *
 * A case may be run while an operating system fails on purpose. So there are three checks:
 *   TRY(c, call)      a negative result ends the case; it is a failure unless a fault was injected.
 *   EXPECT(c, what)   is excused by a fault that was injected, if somebody was told of an error.
 *   MUST(c, what)     holds whatever happens: bytes in order, callbacks once, no early time-out.
 */
#ifndef BK_CONFORM_CASE_H
#define BK_CONFORM_CASE_H

#include "tests/conformance/conformance.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>

#define CONFORM_MS INT64_C(1000000)

enum {
    CONFORM_LONG = 1, /* see bk_conform_long() */
};

typedef struct conform_entry {
    const char *name;
    void (*run)(bk_conform_case *c);
    unsigned flags;
} conform_entry;

struct bk_conform_case {
    const char *suite;
    const conform_entry *entry;
    const void *subject; /* the part, as its suite knows it */
    bk_os *os, *scaffold;
    bk_conform_report *report;
    bool quick;
    /* Of this run. */
    long faults_before;
    int errors; /* clear errors, after a fault */
    int wrong;  /* of EXPECT, to be excused perhaps */
    int failed; /* for good */
    int64_t began;
    const char *skipped;
    char text[240]; /* the first of the wrong */
};

int conform_suite(const char *suite, const conform_entry *entries, int count, const void *subject,
                  bk_os *os, bk_conform_report *report);

void conform_expect(bk_conform_case *c, bool so, const char *file, int line, const char *what);
void conform_must(bk_conform_case *c, bool so, const char *file, int line, const char *what);
/* A clear error; without a fault to cause it, a failure. Positive results and 0 are none. */
bool conform_failed(bk_conform_case *c, int code, const char *file, int line, const char *what);

#define EXPECT(c, what) conform_expect(c, what, __FILE__, __LINE__, #what)
#define MUST(c, what) conform_must(c, what, __FILE__, __LINE__, #what)
#define FAILED(c, call) conform_failed(c, (int)(call), __FILE__, __LINE__, #call)
#define TRY(c, call)                                                                               \
    do {                                                                                           \
        if (FAILED(c, call))                                                                       \
            goto out;                                                                              \
    } while (0)

/* Somebody was told in another way, which without a fault may have its good reasons: BK_HANGUP. */
void conform_told(bk_conform_case *c);

/* A fault was injected, and somebody was told: what is left of the case proves nothing. */
bool conform_excused(const bk_conform_case *c);
void conform_skip(bk_conform_case *c, const char *why);

/* The real time, not that of the table under test; and whether a case has run for so long that it
   is hanging: generous, and the one upper limit on time in all of this. */
int64_t conform_clock(void);
bool conform_hangs(bk_conform_case *c);
/* The longest wait: shorter than the guard, so that it ends a case by itself. */
int64_t conform_patience(const bk_conform_case *c);

/* A loop over the case's table; what it logs with a negative code is a clear error. */
int conform_loop(bk_conform_case *c, const bk_notifier_ops *ops, bk_loop **ret_loop);
/* Must succeed. */
void conform_loop_free(bk_conform_case *c, bk_loop *loop);
/* One turn that may wait for something to happen. False: the case is over. */
bool conform_turn(bk_conform_case *c, bk_loop *loop);
/* Nothing is going on: a turn that may wait 2 ms does so, or the loop spins. */
void conform_idle(bk_conform_case *c, bk_loop *loop);

/* In the child of a fork: report and end. In the parent: take the report over. */
void conform_child_ends(bk_conform_case *c) __attribute__((noreturn));
void conform_child_wait(bk_conform_case *c, int pid);

/* Without the core's help, on the case's scaffold. */
void conform_close(bk_conform_case *c, int *fd);
int conform_put(bk_conform_case *c, int fd, const char *text);
int conform_drain(bk_conform_case *c, int fd);
/* Two TCP sockets that are connected over the loopback interface, non-blocking. */
int conform_tcp(bk_os *os, int ret_fds[2]);

/* SIGALRM every 2 ms, to a handler that does `fn` or nothing. */
void conform_alarms(void (*fn)(int));
void conform_alarms_end(void);

#endif
