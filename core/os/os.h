/*
 * os.h: what the core uses of the operating system beside the table in becket.h: allocation in the
 * terms of C, and locks, which cannot fail and so are not in the table. For core/ only.
 */
#ifndef BK_OS_H
#define BK_OS_H

#include <becket.h>
#include <errno.h>
#include <stdbool.h>
#include <string.h>

#define BK_SECOND INT64_C(1000000000)
#define BK_MILLISECOND INT64_C(1000000)

/* A copy of an operating system's table reaches only as far as its author's header did. */
#define BK_HAS(table, function)                                                                    \
    ((table)->size > offsetof(__typeof__(*(table)), function) && (table)->function != NULL)

static inline void *bk_alloc(bk_os *os, size_t n) {
    return os->resize(os, NULL, n);
}

static inline void *bk_alloc_zero(bk_os *os, size_t n) {
    void *p = os->resize(os, NULL, n);
    if (p != NULL)
        memset(p, 0, n);
    return p;
}

static inline void bk_dealloc(bk_os *os, void *p) {
    if (p != NULL)
        os->resize(os, p, 0);
}

/* close that forgets the result: of an fd that is going away nothing more can be learnt. */
static inline void bk_close_fd(bk_os *os, int fd) {
    if (fd >= 0)
        (void)os->close(os, fd);
}

/* Of a table from before there was an environment: there is none. */
static inline const char *bk_environment(bk_os *os, const char *name) {
    return BK_HAS(os, environment) ? os->environment(os, name) : NULL;
}

static inline int bk_close_on_exec(bk_os *os, int fd) {
    return BK_HAS(os, close_on_exec) ? os->close_on_exec(os, fd) : 0;
}

/* Locks and conditions, between a loop, its workers and those who post to it. */
typedef struct bk_lock bk_lock;
bk_lock *bk_lock_new(bk_os *os);
void bk_lock_free(bk_os *os, bk_lock *lock);
void bk_lock_abandon(bk_os *os, bk_lock *lock); /* after fork: whoever held it is not here */
void bk_lock_take(bk_lock *lock);
void bk_lock_drop(bk_lock *lock);
/* The one lock of the process, for what its loops share; a fork waits until it is free. */
bk_lock *bk_lock_of_process(void);
/* Each lock has one condition; waiting drops the lock and takes it again. */
void bk_lock_wait(bk_lock *lock);
void bk_lock_signal(bk_lock *lock);
void bk_lock_broadcast(bk_lock *lock);

#endif
