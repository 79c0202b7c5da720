/*
 * case.c: running cases and judging them. See case.h and conformance.h.
 */
#include "tests/conformance/case.h"

#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { GUARD_SECONDS = 30, LONG_GUARD_SECONDS = 300, QUICK_GUARD_SECONDS = 5 };

int64_t conform_clock(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static int64_t guard(const bk_conform_case *c) {
    int seconds = bk_conform_long(c) ? LONG_GUARD_SECONDS : GUARD_SECONDS;
    return (c->quick ? QUICK_GUARD_SECONDS : seconds) * INT64_C(1000000000);
}

int64_t conform_patience(const bk_conform_case *c) {
    return guard(c) / 2;
}

/* ---- Checks ---- */

static bool fault_fired(const bk_conform_case *c) {
    const bk_conform_report *r = c->report;
    return r->faults != NULL && r->faults(r->arg) > c->faults_before;
}

static bool excusable(const bk_conform_case *c) {
    return !c->report->invisible && fault_fired(c);
}

bool conform_excused(const bk_conform_case *c) {
    return c->errors > 0;
}

static void say(const bk_conform_case *c, const char *text) {
    printf("# %s/%s: %s\n", c->suite, c->entry->name, text);
}

static void fail(bk_conform_case *c, const char *text) {
    if (c->failed++ < 5)
        say(c, text);
}

void conform_expect(bk_conform_case *c, bool so, const char *file, int line, const char *what) {
    if (so || c->wrong++ > 0)
        return;
    snprintf(c->text, sizeof c->text, "%s:%d: not so: %s", file, line, what);
}

void conform_must(bk_conform_case *c, bool so, const char *file, int line, const char *what) {
    char text[240];
    if (so)
        return;
    snprintf(text, sizeof text, "%s:%d: must be: %s", file, line, what);
    fail(c, text);
}

bool conform_failed(bk_conform_case *c, int code, const char *file, int line, const char *what) {
    char text[240];
    if (code >= 0)
        return false;
    if (excusable(c)) {
        c->errors++;
        return true;
    }
    snprintf(text, sizeof text, "%s:%d: %s: %s (%d)", file, line, what, bk_strerror(code), code);
    fail(c, text);
    return true;
}

void conform_told(bk_conform_case *c) {
    if (excusable(c))
        c->errors++;
}

void conform_skip(bk_conform_case *c, const char *why) {
    c->skipped = why;
}

bool conform_hangs(bk_conform_case *c) {
    if (conform_clock() - c->began < guard(c))
        return false;
    fail(c, "hangs: what it waits for does not come");
    return true;
}

/* ---- Running ---- */

static bk_conform_verdict judge(bk_conform_case *c) {
    if (c->wrong > 0 && c->errors == 0)
        fail(c, c->text);
    if (c->failed > 0)
        return BK_CONFORM_FAILED;
    if (c->errors > 0)
        return BK_CONFORM_EXCUSED;
    return c->skipped != NULL ? BK_CONFORM_SKIPPED : BK_CONFORM_PASSED;
}

bk_conform_verdict bk_conform_run(bk_conform_case *c) {
    bk_conform_report *r = c->report;
    c->faults_before = r->faults != NULL ? r->faults(r->arg) : 0;
    c->errors = c->wrong = c->failed = 0;
    c->skipped = NULL;
    c->began = conform_clock();
    c->entry->run(c);
    bk_conform_verdict verdict = judge(c);
    switch (verdict) {
    case BK_CONFORM_PASSED:
        r->passed++;
        break;
    case BK_CONFORM_SKIPPED:
        r->skipped++;
        break;
    case BK_CONFORM_EXCUSED:
        r->excused++;
        break;
    case BK_CONFORM_FAILED:
        r->failed++;
        break;
    }
    if (r->loud && verdict != BK_CONFORM_FAILED)
        say(c, c->skipped != NULL ? c->skipped : "good");
    return verdict;
}

const char *bk_conform_name(const bk_conform_case *c) {
    return c->entry->name;
}

bool bk_conform_long(const bk_conform_case *c) {
    return c->entry->flags & CONFORM_LONG;
}

int conform_suite(const char *suite, const conform_entry *entries, int count, const void *subject,
                  bk_os *os, bk_conform_report *report) {
    bk_conform_report nobody = {0};
    bk_conform_report *r = report != NULL ? report : &nobody;
    int before = r->failed;
    /* Writing to what nobody reads raises SIGPIPE in programs that do not ignore it. */
    void (*sigpipe)(int) = signal(SIGPIPE, SIG_IGN);
    for (int i = 0; i < count; i++) {
        if (r->only != NULL && strstr(entries[i].name, r->only) == NULL)
            continue;
        bk_conform_case c = {.suite = suite, .entry = &entries[i], .subject = subject, .report = r};
        c.os = os != NULL ? os : bk_os_default();
        c.scaffold = r->scaffold != NULL ? r->scaffold : c.os;
        c.quick = r->quick;
        if (r->around != NULL)
            r->around(r->arg, &c);
        else
            bk_conform_run(&c);
    }
    signal(SIGPIPE, sigpipe);
    return r->failed - before;
}

/* ---- Loops ---- */

static void logged(void *arg, int code, const char *text) {
    conform_failed(arg, code, "the loop", 0, text);
}

int conform_loop(bk_conform_case *c, const bk_notifier_ops *ops, bk_loop **ret_loop) {
    bk_loop_options options = {
        .size = sizeof options,
        .notifier = c->report->notifier,
        .notifier_ops = ops,
        .os = c->os,
        .log = logged,
        .arg = c,
    };
    return bk_loop_new(&options, ret_loop);
}

void conform_loop_free(bk_conform_case *c, bk_loop *loop) {
    if (loop != NULL)
        MUST(c, bk_loop_free(loop) == 0);
}

bool conform_turn(bk_conform_case *c, bk_loop *loop) {
    int64_t began = conform_clock(), patience = conform_patience(c);
    if (conform_excused(c) || c->failed > 0 || conform_hangs(c))
        return false;
    if (FAILED(c, bk_loop_turn(loop, patience)))
        return false;
    /* It is only called when there is something to come; a turn that begins by doing what should
       have been done before would otherwise hide that it slept on it. */
    MUST(c, conform_clock() - began < patience);
    return true;
}

void conform_idle(bk_conform_case *c, bk_loop *loop) {
    const int64_t time = 2 * CONFORM_MS;
    for (int i = 0; i < 4; i++) /* what was going on comes to its end */
        if (FAILED(c, bk_loop_turn(loop, 0)))
            return;
    /* A signal, real or injected, may end one wait, but not all of them. */
    for (int i = 0; i < 20; i++) {
        int64_t began = conform_clock();
        if (FAILED(c, bk_loop_turn(loop, time)))
            return;
        if (conform_clock() - began >= time)
            return;
    }
    EXPECT(c, !"a loop that has nothing to do waits");
}

/* ---- Forks ---- */

void conform_child_ends(bk_conform_case *c) {
    int verdict = (int)judge(c);
    fflush(stdout);
    _exit(verdict);
}

void conform_child_wait(bk_conform_case *c, int pid) {
    int status = 0;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    int verdict = WIFEXITED(status) ? WEXITSTATUS(status) : BK_CONFORM_FAILED;
    MUST(c, verdict == BK_CONFORM_PASSED || verdict == BK_CONFORM_EXCUSED);
    if (verdict == BK_CONFORM_EXCUSED)
        c->errors++;
}

/* ---- Descriptors ---- */

void conform_close(bk_conform_case *c, int *fd) {
    if (*fd >= 0)
        (void)c->scaffold->close(c->scaffold, *fd);
    *fd = -1;
}

int conform_put(bk_conform_case *c, int fd, const char *text) {
    struct iovec v = {(void *)text, strlen(text)};
    ssize_t sent = c->scaffold->write(c->scaffold, fd, &v, 1);
    return sent < 0 ? (int)sent : 0;
}

int conform_drain(bk_conform_case *c, int fd) {
    char room[4096];
    ssize_t got;
    while ((got = c->scaffold->read(c->scaffold, fd, room, sizeof room)) > 0 || got == -EINTR)
        ;
    return got == -EAGAIN ? 0 : (int)got;
}

/* Connecting to a listening socket on the loopback interface is over at once, or nearly. */
static int accepted(bk_os *os, int listening) {
    for (int i = 0; i < 2000; i++) {
        int fd = os->accept(os, listening, NULL, NULL);
        if (fd != -EAGAIN && fd != -EINTR)
            return fd;
        struct pollfd p = {.fd = listening, .events = POLLIN};
        (void)poll(&p, 1, 1000);
    }
    return -ETIMEDOUT;
}

static int tcp_join(bk_os *os, int listening, int ret_fds[2]) {
    struct sockaddr_in address = {.sin_family = AF_INET};
    unsigned size = sizeof address;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int code = os->bind(os, listening, (struct sockaddr *)&address, sizeof address);
    if (code >= 0)
        code = os->listen(os, listening, 1);
    if (code >= 0)
        code = os->getsockname(os, listening, (struct sockaddr *)&address, &size);
    if (code < 0)
        return code;
    ret_fds[0] = os->socket(os, AF_INET, SOCK_STREAM, 0);
    if (ret_fds[0] < 0)
        return ret_fds[0];
    code = os->connect(os, ret_fds[0], (struct sockaddr *)&address, sizeof address);
    if (code >= 0 || code == -EINPROGRESS)
        code = ret_fds[1] = accepted(os, listening);
    if (code < 0)
        (void)os->close(os, ret_fds[0]);
    return code < 0 ? code : 0;
}

int conform_tcp(bk_os *os, int ret_fds[2]) {
    int listening = os->socket(os, AF_INET, SOCK_STREAM, 0);
    if (listening < 0)
        return listening;
    int code = tcp_join(os, listening, ret_fds);
    (void)os->close(os, listening);
    return code;
}

/* ---- Signals ---- */

static void nothing(int signum) {
    (void)signum;
}

static void every(int milliseconds) {
    struct itimerval t = {{0, milliseconds * 1000}, {0, milliseconds * 1000}};
    setitimer(ITIMER_REAL, &t, NULL);
}

void conform_alarms(void (*fn)(int)) {
    struct sigaction action = {.sa_handler = fn != NULL ? fn : nothing};
    sigemptyset(&action.sa_mask); /* no SA_RESTART: calls are to be interrupted */
    sigaction(SIGALRM, &action, NULL);
    every(2);
}

void conform_alarms_end(void) {
    struct sigaction action = {.sa_handler = SIG_IGN};
    every(0);
    sigaction(SIGALRM, &action, NULL);
    action.sa_handler = SIG_DFL;
    sigaction(SIGALRM, &action, NULL);
}
