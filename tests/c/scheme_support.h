/*
 * scheme_support.h: what the tests of single schemes share: a loop on each notifier over the fault
 * injector, which tells what was not given back; an echo server and a client that asks it; and the
 * walk through all calls that can fail. For tests/c/test_schemes.c and its like.
 */
#ifndef SCHEME_SUPPORT_H
#define SCHEME_SUPPORT_H

#include "check.h"
#include "core/os/os.h"
#include "support.h"

#include <time.h>

static bk_loop *loop;
static struct {
    int opened, ended, closed, why; /* of clients */
    int answered;                   /* … those who heard what they had said */
    int served, gone, gone_why;     /* of servers */
    int logs, log_code;
    char log[240];
    char said[4096]; /* to the last client */
    size_t said_size;
} seen;

/* ---- A loop on each notifier ---- */

static inline void on_log(void *arg, int code, const char *text) {
    (void)arg;
    seen.logs++;
    seen.log_code = code;
    snprintf(seen.log, sizeof seen.log, "%s", text);
}

static void (*before_loop)(void); /* for what must be there first */

static inline int open_loop(const char *notifier, bk_os *os) {
    bk_loop_options options = {.size = sizeof options, .notifier = notifier, .os = os};
    options.log = on_log;
    memset(&seen, 0, sizeof seen);
    if (before_loop != NULL)
        before_loop();
    return bk_loop_new(&options, &loop);
}

static inline void check_leaks(const char *what) {
    faults_report r;
    int leaks = faults_leaks(support_faults(), &r);
    if (leaks != 0)
        printf("# %s: %ld blocks, %ld descriptors (%d of %s), %ld stale (%s)\n", what, r.blocks,
               r.descriptors, r.first_descriptor, r.opened_by, r.stale, r.first_stale);
    CHECK_INT(leaks, 0);
    if (leaks != 0)
        faults_forget(support_faults());
}

static inline void on_each_notifier(void (*body)(void)) {
    for (const bk_notifier_ops *const *all = bk_notifiers(); *all != NULL; all++) {
        int before = check_failures;
        CHECK_INT(open_loop((*all)->name, faults_quiet(support_faults())), 0);
        body();
        CHECK_INT(bk_loop_free(loop), 0);
        check_leaks((*all)->name);
        if (check_failures > before)
            printf("# … over %s\n", (*all)->name);
    }
}

/* A test whose body runs once for each notifier, on a loop that is made for it. */
#define ON_EACH_NOTIFIER(name)                                                                     \
    static void name##_body(void);                                                                 \
    static void name(void) {                                                                       \
        on_each_notifier(name##_body);                                                             \
    }                                                                                              \
    static void name##_body(void)

static inline int64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* Turn the loop until *counter is at least n; false after ten seconds. */
static inline bool run_until(const int *counter, int n) {
    int64_t end = now_ms() + 10000;
    while (*counter < n && now_ms() < end)
        (void)bk_loop_turn(loop, 20 * BK_MILLISECOND);
    CHECK(*counter >= n);
    return *counter >= n;
}

/* ---- An echo server, and a client that says a word and ends when it has heard it ---- */

#define WORD "how do you do"

static inline int echo_opened(bk_stream *s) {
    (void)s;
    seen.served++;
    return 0;
}

static inline void echo_received(bk_stream *s, const void *data, size_t n) {
    bk_stream_write(s, data, n, BK_COPY, NULL);
}

static inline void echo_closed(bk_stream *s, int why) {
    (void)s;
    seen.gone++;
    seen.gone_why = why;
}

static const bk_protocol echo = {
    .size = sizeof echo, .opened = echo_opened, .received = echo_received, .closed = echo_closed};

static inline int asking_opened(bk_stream *s) {
    seen.opened++;
    seen.said_size = 0;
    bk_stream_set_user(s, NULL); /* counts what was heard */
    return bk_stream_write(s, WORD, sizeof WORD - 1, BK_STATIC, NULL);
}

static inline void asking_received(bk_stream *s, const void *data, size_t n) {
    size_t heard = (size_t)(uintptr_t)bk_stream_user(s) + n;
    bk_stream_set_user(s, (void *)(uintptr_t)heard);
    if (n < sizeof seen.said - seen.said_size) {
        memcpy(seen.said + seen.said_size, data, n);
        seen.said_size += n;
        seen.said[seen.said_size] = '\0';
    }
    if (heard == sizeof WORD - 1) {
        seen.answered++;
        (void)bk_stream_end(s);
    }
}

static inline int asking_ended(bk_stream *s) {
    (void)s;
    seen.ended++;
    return 0;
}

static inline void asking_closed(bk_stream *s, int why) {
    (void)s;
    seen.closed++;
    seen.why = why;
}

static const bk_protocol asking = {.size = sizeof asking,
                                   .opened = asking_opened,
                                   .received = asking_received,
                                   .ended = asking_ended,
                                   .closed = asking_closed};

static inline bk_listener *listen_at(const char *endpoint) {
    bk_error error = {0};
    bk_listener *listener = NULL;
    int code = bk_listen(loop, endpoint, &echo, &error, &listener);
    if (code < 0)
        printf("# %s: %s\n", endpoint, error.text);
    CHECK_INT(code, 0);
    return listener;
}

/* There and back. */
static inline void ask(const char *endpoint) {
    bk_error error = {0};
    int closed = seen.closed, answered = seen.answered;
    int code = bk_connect(loop, endpoint, &asking, NULL, &error, NULL);
    if (code < 0)
        printf("# %s: %s\n", endpoint, error.text);
    CHECK_INT(code, 0);
    if (code < 0 || !run_until(&seen.closed, closed + 1))
        return;
    CHECK_INT(seen.why, 0);
    CHECK_INT(seen.answered, answered + 1);
    CHECK_STR(seen.said, WORD);
}

static inline int listen_error(const char *endpoint, bk_error *ret_error) {
    memset(ret_error, 0, sizeof *ret_error);
    int code = bk_listen(loop, endpoint, &echo, ret_error, NULL);
    CHECK(code < 0);
    CHECK_INT(ret_error->code, code);
    return code;
}

static inline int connect_error(const char *endpoint, bk_error *ret_error) {
    memset(ret_error, 0, sizeof *ret_error);
    int code = bk_connect(loop, endpoint, &asking, NULL, ret_error, NULL);
    CHECK(code < 0);
    CHECK_INT(ret_error->code, code);
    return code;
}

/* ---- Every call failing in turn ---- */

/* What may not be noticed changes nothing; after an error somebody is told, and nothing is left. */
static inline void walk_step(const char *listened, const char *connected, faults_kind kind,
                             long n) {
    bool invisible = kind != FAULTS_ERROR && kind != FAULTS_NO_MEMORY;
    faults *f = support_faults();
    faults_arm(f, kind, n);
    int code = open_loop(NULL, faults_os(f));
    if (code >= 0) {
        if (listened != NULL)
            code = bk_listen(loop, listened, &echo, NULL, NULL);
        if (code >= 0)
            code = bk_connect(loop, connected, &asking, NULL, NULL, NULL);
        if (code >= 0)
            run_until(&seen.closed, 1);
        bk_loop_free(loop);
    }
    if (invisible)
        CHECK(code >= 0 && seen.answered == 1 && seen.why == 0);
    else if (code >= 0 && seen.answered == 0)
        CHECK(seen.why != 0 || seen.ended == 1);
}

static void (*after_step)(void); /* for what a test has to look at, or to clean up, after each */

static inline void walk(const char *listened, const char *connected) {
    for (int kind = FAULTS_NONE + 1; kind < FAULTS_KINDS; kind++) {
        long n = 0, fired = 1;
        while (fired > 0) { /* there is an n-th call */
            char name[120];
            int before = check_failures;
            snprintf(name, sizeof name, "%s, %s %ld", connected, faults_kind_name(kind), ++n);
            support_guard(60, name);
            walk_step(listened, connected, (faults_kind)kind, n);
            (void)faults_disarm(support_faults());
            fired = faults_fired(support_faults());
            check_leaks(name);
            if (after_step != NULL)
                after_step();
            if (check_failures > before)
                printf("# … %s (%s)\n", name, faults_struck(support_faults()));
        }
        CHECK(n > 1);
        printf("# %s, %s: %ld calls\n", connected, faults_kind_name(kind), n - 1);
        support_guard(0, "");
    }
}

#endif
