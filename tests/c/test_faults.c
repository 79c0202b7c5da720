/*
 * test_faults.c: the suites of tests/conformance once more, with every call to the operating system
 * failing in turn. What may not be noticed (an interruption, a short read or write, a spurious "not
 * now") changes nothing; an error or a lack of memory ends each case with somebody told, with
 * nothing left behind, nothing corrupted and nothing hanging.
 *
 * A case that makes more calls than are walked one by one is sampled beyond them; the output says
 * how much. BECKET_TEST_FAULTS=n walks n runs of each case and kind instead.
 */
#include "tests/c/check.h"
#include "tests/c/support.h"

/* Runs that end with an error are short, and those in which nothing may be noticed are not. */
enum { ERROR_RUNS = 300, WHOLE_RUNS = 24 };

static long runs_wanted(faults_kind kind) {
    const char *text = getenv("BECKET_TEST_FAULTS");
    if (text != NULL)
        return strtol(text, NULL, 10);
    return kind == FAULTS_ERROR || kind == FAULTS_NO_MEMORY ? ERROR_RUNS : WHOLE_RUNS;
}

static void walk(support_suite suite, const void *subject, const char *notifier) {
    for (int kind = FAULTS_NONE + 1; kind < FAULTS_KINDS; kind++) {
        support_walk w = {.kind = (faults_kind)kind, .most = runs_wanted((faults_kind)kind)};
        CHECK_INT(support_walks(suite, subject, notifier, &w), 0);
        printf("# %s: %ld runs, %ld of them sampled, %ld calls left out, %ld ended with an error\n",
               faults_kind_name(w.kind), w.runs, w.sampled, w.skipped, w.excused);
    }
}

static void walk_notifier(const char *name) {
    const bk_notifier_ops *ops = support_notifier_named(name);
    if (ops == NULL) {
        check_skip("this system does not have it");
        return;
    }
    walk(support_notifier, ops, NULL);
    walk(support_notifier_loop, ops, NULL);
}

static void epoll_notifier(void) {
    walk_notifier("epoll");
}

static void poll_notifier(void) {
    walk_notifier("poll");
}

static void select_notifier(void) {
    walk_notifier("select");
}

static void loop(void) {
    walk(support_loop, NULL, NULL);
}

static void loop_over_poll(void) {
    walk(support_loop, support_notifier_named("poll"), NULL);
}

static void tcp(void) {
    walk(support_transport, support_joint("tight tcp"), NULL);
}

static void local(void) {
    walk(support_transport, support_joint("tight unix"), NULL);
}

static void pipes(void) {
    walk(support_transport, support_joint("pipes"), NULL);
}

static void passing(void) {
    walk(support_transport, support_joint("passing"), "poll");
}

static void adopted(void) {
    walk(support_transport, support_joint("adopted"), "poll");
}

static void memory(void) {
    walk(support_transport, support_joint("memory"), NULL);
}

/* ---- That the injector itself does what it says ---- */

static void faults_strike(void) {
    faults *f = support_faults();
    bk_os *os = faults_os(f);
    int p[2];
    char room[4];
    struct iovec v = {"abcd", 4};
    faults_arm(f, FAULTS_ERROR, 2);
    CHECK_INT(os->pipe(os, p), 0);
    CHECK_INT(os->write(os, p[1], &v, 1), -32);
    CHECK_INT(os->write(os, p[1], &v, 1), 4);
    CHECK_INT(faults_fired(f), 1);
    CHECK_STR(faults_struck(f), "write");
    CHECK_INT(faults_disarm(f), 3);
    faults_arm(f, FAULTS_SHORT, 1);
    CHECK_INT(os->read(os, p[0], room, sizeof room), 1);
    CHECK_INT(os->read(os, p[0], room, sizeof room), 3);
    faults_arm(f, FAULTS_NO_MEMORY, 1);
    CHECK(os->resize(os, NULL, 10) == NULL);
    void *kept = os->resize(os, NULL, 10);
    CHECK(kept != NULL);
    faults_disarm(f);
    faults_report r;
    CHECK_INT(faults_leaks(f, &r), 2);
    CHECK(r.blocks == 1 && r.bytes == 10 && r.descriptors == 2 && r.stale == 0);
    os->resize(os, kept, 0);
    os->close(os, p[0]);
    os->close(os, p[1]);
    CHECK_INT(faults_leaks(f, &r), 0);
    CHECK(os->close(os, p[0]) < 0);
    CHECK_INT(faults_leaks(f, &r), 1);
    CHECK_STR(r.first_stale, "close");
    faults_forget(f);
}

int main(int argc, char **argv) {
    static const check_case cases[] = {
        CASE(faults_strike), CASE(epoll_notifier), CASE(poll_notifier), CASE(select_notifier),
        CASE(loop),          CASE(loop_over_poll), CASE(memory),        CASE(tcp),
        CASE(local),         CASE(pipes),          CASE(adopted),       CASE(passing),
    };
    return check_main(argc, argv, cases, COUNT(cases));
}
