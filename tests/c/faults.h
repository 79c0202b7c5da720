/*
 * faults.h: an operating system that fails on demand, and watches what is not given back. Embeds
 * another table and passes calls on to it; used by tests/c, and by whoever tests a part of theirs.
 *
 *     static faults f;
 *     faults_open(&f, NULL);
 *     for (long n = 1;; n++) {
 *         faults_arm(&f, FAULTS_NO_MEMORY, n);
 *         exercise(faults_os(&f));
 *         if (faults_disarm(&f) < n)
 *             break;                                  // it made no n-th call
 *         CHECK_INT(faults_leaks(&f, NULL), 0);
 *     }
 *     faults_close(&f);
 */
#ifndef FAULTS_H
#define FAULTS_H

#include <becket.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

/* What the armed call does; each counts the calls it could strike, and no others. */
typedef enum faults_kind {
    FAULTS_NONE,
    FAULTS_ERROR,       /* fails, with an errno that this function has in real life */
    FAULTS_SHORT,       /* moves one byte where there were more to move */
    FAULTS_INTERRUPTED, /* -EINTR, where a signal can cause that */
    FAULTS_NO_MEMORY,   /* resize returns NULL, though something was asked for */
    FAULTS_AGAIN,       /* -EAGAIN, though it was ready */
    FAULTS_KINDS
} faults_kind;

enum { FAULTS_FDS = 1 << 16 };

/* What has not been given back, and what was misused. */
typedef struct faults_report {
    long blocks, threads, descriptors;
    size_t bytes;
    int first_descriptor;    /* -1: none */
    const char *opened_by;   /* the function that made it */
    long stale;              /* calls with a descriptor that was closed already */
    const char *first_stale; /* the function */
} faults_report;

struct faults;
typedef struct faults_view {
    bk_os os;
    struct faults *owner;
    bool quiet;
} faults_view;

struct faults_block;

typedef struct faults {
    faults_view loud, quiet;
    bk_os *inner;
    atomic_int kind;
    atomic_long at, calls, fired; /* at 0: about every second call */
    _Atomic(const char *) struck; /* the function that last failed so */
    atomic_llong skew;            /* added to the clock */

    pthread_mutex_t lock; /* for blocks; the rest is atomic, as signal handlers write */
    struct faults_block *blocks;
    atomic_long block_count, thread_count, stale;
    atomic_size_t bytes, bytes_peak;
    _Atomic(const char *) first_stale;
    _Atomic(const char *) fds[FAULTS_FDS]; /* what made it; NULL: not open, or not by us */
} faults;

/* inner NULL: bk_os_default(). The struct is large: make it static. */
void faults_open(faults *f, bk_os *inner);
void faults_close(faults *f);

/* The table that fails; and one that shares its book-keeping but is neither counted nor failed, for
   what a test does on its own behalf. */
bk_os *faults_os(faults *f);
bk_os *faults_quiet(faults *f);

/* Make the n-th call that the kind applies to fail, once; n == 0: about every second one, in a
   pattern that is always the same. Counting starts here. */
void faults_arm(faults *f, faults_kind kind, long n);
/* No more of it; returns how many calls the kind applied to. */
long faults_disarm(faults *f);
/* How many calls have failed since faults_arm(), and the last of them. */
long faults_fired(const faults *f);
const char *faults_struck(const faults *f);
const char *faults_kind_name(faults_kind kind);

/* Move the clock on, without waiting. */
void faults_pass_time(faults *f, int64_t ns);

/* How many things are wrong: 0 is what you want. ret_report may be NULL. */
int faults_leaks(faults *f, faults_report *ret_report);
/* Start the book-keeping anew, after a leak was told. The memory stays allocated. */
void faults_forget(faults *f);

#endif
