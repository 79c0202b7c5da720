/*
 * test_process.c: commands as endpoints: what goes through them, how they end, how they are ended,
 * and that none is left behind. On every notifier, and once more with every call failing in turn.
 */
#include "check.h"
#include "core/serve/serve.h"
#include "scheme_support.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

/* Children of ours that run, or that nobody has reaped. */
static bool has_children(void) {
    siginfo_t info;
    return waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) == 0;
}

static void check_childless(void) {
    CHECK(!has_children());
    while (waitpid(-1, NULL, 0) > 0)
        ;
}

/* Turns the loop until the last child has been reaped, for at most so long. */
static bool reaped_within(int64_t ms) {
    int64_t end = now_ms() + ms;
    while (has_children() && now_ms() < end)
        (void)bk_loop_turn(loop, 10 * BK_MILLISECOND);
    return !has_children();
}

/* A client that only listens, and stays until it is closed. */
static int hearing_opened(bk_stream *s) {
    (void)s;
    seen.opened++;
    seen.said_size = 0;
    seen.said[0] = '\0';
    return 0;
}

static int hearing_ended(bk_stream *s) {
    (void)s;
    seen.ended++;
    return 1;
}

static const bk_protocol hearing = {.size = sizeof hearing,
                                    .opened = hearing_opened,
                                    .received = asking_received,
                                    .ended = hearing_ended,
                                    .closed = asking_closed};

static const bk_protocol hearing_out = {.size = sizeof hearing_out,
                                        .opened = hearing_opened,
                                        .received = asking_received,
                                        .closed = asking_closed};

static bk_stream *hear(const char *endpoint, const bk_protocol *protocol) {
    bk_stream *s = NULL;
    bk_error error = {0};
    int code = bk_connect(loop, endpoint, protocol, NULL, &error, &s);
    if (code < 0)
        printf("# %s: %s\n", endpoint, error.text);
    CHECK_INT(code, 0);
    return s;
}

static void hear_line(void) {
    int64_t end = now_ms() + 10000;
    while (strchr(seen.said, '\n') == NULL && now_ms() < end)
        (void)bk_loop_turn(loop, 20 * BK_MILLISECOND);
    CHECK(strchr(seen.said, '\n') != NULL);
}

/* What a command says, to its end, and how that was. */
static void heard(const char *endpoint, const char *text, int why) {
    int closed = seen.closed;
    hear(endpoint, &hearing_out);
    run_until(&seen.closed, closed + 1);
    CHECK_STR(seen.said, text);
    CHECK_INT(seen.why, why);
}

/* ---- What goes through, and how it ends ---- */

ON_EACH_NOTIFIER(there_and_back) {
    char name[32];
    size_t size = sizeof name;
    ask("process:cat");
    ask("process:cat %7C cat;");
    CHECK(reaped_within(5000));
    heard("process:echo 100%25 '%3F'", "100% ?\n", 0);
    heard("process:exit 0", "", 0);
    int opened = seen.opened;
    bk_stream *s = hear("process:cat", &hearing);
    run_until(&seen.opened, opened + 1);
    CHECK_INT(bk_stream_query(s, BK_QUERY_NAME, name, &size), 0);
    CHECK_STR(name, "process");
    bk_stream_abort(s);
}

ON_EACH_NOTIFIER(failures) {
    heard("process:echo no; exit 3", "no\n", BK_EPROCESS);
    heard("process:kill -9 $$", "", BK_EPROCESS);
    heard("process:no-such-command 2>/dev/null", "", BK_EPROCESS);
    CHECK_STR(bk_strerror(seen.why), "the process failed");
    /* Who writes to it learns the same, not that a pipe is broken. */
    CHECK_INT(bk_connect(loop, "process:false", &asking, NULL, NULL, NULL), 0);
    run_until(&seen.closed, 4);
    CHECK_INT(seen.why, BK_EPROCESS);
    CHECK(reaped_within(5000));
}

ON_EACH_NOTIFIER(errors) {
    bk_error error;
    CHECK_INT(connect_error("process:", &error), BK_EENDPOINT);
    CHECK_INT(error.position, 8);
    CHECK_STR(error.text, "process: is followed by a command, as in process:cat");
    CHECK_INT(listen_error("process://bin/cat", &error), BK_EENDPOINT);
    CHECK_INT(listen_error("process:ls ?.c", &error), BK_EENDPOINT);
    CHECK_INT(listen_error("process:cat?a=1", &error), BK_EOPTION);
    CHECK_STR(error.text, "process has no option a; it has proxy, proxy_from, proxy_for");
    CHECK(!has_children());
}

/* A server's one client: it greets, is answered, and says by its status whether that was right. */
ON_EACH_NOTIFIER(served) {
    bk_listener *l = listen_at("process:echo hi 100%25; read x && test \"$x\" = 'hi 100%25'");
    CHECK_STR(bk_listener_name(l), "process:echo hi 100%25; read x && test \"$x\" = 'hi 100%25'");
    CHECK_INT(seen.served, 0);
    run_until(&seen.gone, 1);
    CHECK_INT(seen.gone_why, 0);
    CHECK_INT(seen.served, 1);
    listen_at("process:echo hi; read x && test \"$x\" = other");
    run_until(&seen.gone, 2);
    CHECK_INT(seen.gone_why, BK_EPROCESS);
    bk_listener_close(listen_at("process:cat")); /* before it had a stream */
    CHECK_INT(seen.served, 2);
    CHECK(reaped_within(5000));
}

/* ---- Ends ---- */

/* That it has no output any more does not mean that it has ended. */
ON_EACH_NOTIFIER(lives_without_output) {
    bk_stream *s = hear("process:echo up; exec >&-; read x; exit 1", &hearing);
    run_until(&seen.ended, 1);
    CHECK_STR(seen.said, "up\n");
    CHECK(has_children());
    CHECK_INT(seen.closed, 0);
    bk_stream_close(s);
    run_until(&seen.closed, 1);
    CHECK_INT(seen.why, 0);
    CHECK(reaped_within(5000));
}

/* Nor has one that will hear no more: what it says goes on coming. */
ON_EACH_NOTIFIER(lives_without_input) {
    bk_stream *s = hear("process:exec <&-; echo deaf; sleep 0.1; echo done", &hearing);
    hear_line();
    CHECK_INT(bk_stream_write(s, "x", 1, BK_STATIC, NULL), 0);
    run_until(&seen.closed, 1);
    CHECK(seen.why == -EPIPE);
    CHECK_STR(seen.said, "deaf\ndone\n");
    CHECK(reaped_within(5000));
}

ON_EACH_NOTIFIER(told_to_end) {
    bk_stream *s = hear("process:echo up; exec sleep 1000", &hearing);
    hear_line();
    bk_stream_close(s);
    run_until(&seen.closed, 1);
    CHECK_INT(seen.why, 0);
    CHECK(reaped_within(4000));
}

ON_EACH_NOTIFIER(killed_at_last) {
    bk_stream *s = hear("process:trap '' TERM; echo up; while :; do sleep 0.05; done", &hearing);
    hear_line();
    bk_stream_abort(s);
    run_until(&seen.closed, 1);
    faults_pass_time(support_faults(), BK_PROCESS_END_MS * BK_MILLISECOND);
    CHECK(!reaped_within(3 * BK_PROCESS_REAP_MS));
    faults_pass_time(support_faults(), BK_PROCESS_TERM_MS * BK_MILLISECOND);
    CHECK(reaped_within(4000));
}

/* What the command has started goes with it. We inherit, and can ask, what it leaves behind. */
ON_EACH_NOTIFIER(whole_group) {
    int status = 0;
    CHECK_INT(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
    bk_stream *s = hear("process:sleep 1000 & echo $!; wait", &hearing);
    hear_line();
    bk_stream_abort(s);
    run_until(&seen.closed, 1);
    pid_t pid = (pid_t)atoi(seen.said);
    CHECK(pid > 1);
    int64_t end = now_ms() + 5000;
    while (waitpid(pid, &status, WNOHANG) != pid && now_ms() < end)
        (void)bk_loop_turn(loop, 10 * BK_MILLISECOND);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
    CHECK(reaped_within(5000));
    CHECK_INT(prctl(PR_SET_CHILD_SUBREAPER, 0), 0);
}

/* The loop's end leaves nobody: neither those that talk, nor those that are on their way out. */
static void loop_ends(void) {
    for (int i = 0; i < 3; i++) {
        CHECK_INT(open_loop(NULL, faults_quiet(support_faults())), 0);
        bk_stream *s =
            hear("process:trap '' TERM; echo up; while :; do sleep 0.05; done", &hearing);
        if (i > 0)
            hear_line();
        if (i > 1)
            bk_stream_abort(s);
        if (i > 1)
            run_until(&seen.closed, 1);
        listen_at("process:cat");
        CHECK(has_children());
        CHECK_INT(bk_loop_free(loop), 0);
        check_childless();
        check_leaks("loop_ends");
    }
}

/* ---- Surroundings ---- */

/* Signals are as in a fresh program, whatever we have made of them. */
static void signals_are_fresh(void) {
    sigset_t some, before;
    sigemptyset(&some);
    sigaddset(&some, SIGUSR1);
    sigaddset(&some, SIGTERM);
    sigprocmask(SIG_BLOCK, &some, &before);
    CHECK_INT(open_loop(NULL, faults_quiet(support_faults())), 0);
    heard("process:sed -n 's/^SigBlk:[^0-9]*//p' /proc/self/status", "0000000000000000\n", 0);
    hear("process:sed -n 's/^SigIgn:[^0-9]*//p' /proc/self/status", &hearing_out);
    run_until(&seen.closed, 2);
    CHECK_INT(strtoull(seen.said, NULL, 16) >> (SIGPIPE - 1) & 1, 0);
    CHECK_INT(bk_loop_free(loop), 0);
    sigprocmask(SIG_SETMASK, &before, NULL);
    check_childless();
}

/* Nothing of ours is open in it but its three. */
static void no_descriptors_inherited(void) {
    CHECK_INT(open_loop(NULL, faults_quiet(support_faults())), 0);
    listen_at("process:cat"); /* whose pipes are no business of others */
    heard("process:for i in 3 4 5 6 7 8 9; do test -e /proc/$$/fd/$i && echo $i; done; exit 0", "",
          0);
    CHECK_INT(bk_loop_free(loop), 0);
    check_childless();
}

/* Where our own standard input and output are closed, pipes get their numbers. */
static void no_standard_descriptors(void) {
    for (int i = 1; i < 4; i++) {
        fflush(stdout);
        pid_t pid = fork();
        if (pid == 0) {
            int err = dup(2);
            if (i & 1)
                close(0);
            if (i & 2)
                close(1);
            check_failures = 0;
            (void)!open_loop(NULL, bk_os_default());
            int code = bk_connect(loop, "process:cat", &asking, NULL, NULL, NULL);
            while (code >= 0 && seen.closed == 0)
                (void)bk_loop_turn(loop, BK_SECOND);
            (void)bk_loop_free(loop);
            (void)err;
            _exit(code >= 0 && seen.answered == 1 && seen.why == 0 ? 0 : 1);
        }
        int status = -1;
        CHECK(waitpid(pid, &status, 0) == pid);
        CHECK_INT(status, 0);
    }
}

/* A child of ours that has the loop too does not end what is the parent's. */
static void forked(void) {
    CHECK_INT(open_loop(NULL, faults_quiet(support_faults())), 0);
    bk_stream *s = hear("process:echo up; cat", &hearing);
    hear_line();
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        int code = bk_loop_forked(loop);
        bk_stream_abort(s);
        (void)bk_loop_turn(loop, 0);
        (void)bk_loop_free(loop);
        _exit(code < 0);
    }
    int status = -1;
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK_INT(status, 0);
    seen.said_size = 0;
    seen.said[0] = '\0';
    CHECK_INT(bk_stream_write(s, "alive\n", 6, BK_STATIC, NULL), 0);
    hear_line();
    CHECK_STR(seen.said, "alive\n");
    CHECK_INT(bk_loop_free(loop), 0);
    check_childless();
}

static int refuse_to_kill(bk_os *os, int pid, int signum) {
    (void)os, (void)pid, (void)signum;
    return -EPERM;
}

/* A command that may not be killed is not waited for: it has become somebody else's. */
static void not_ours_to_kill(void) {
    bk_os os = *bk_os_default();
    os.kill = refuse_to_kill;
    CHECK_INT(open_loop(NULL, &os), 0);
    hear("process:echo up; cat; sleep 0.2", &hearing);
    hear_line();
    CHECK_INT(bk_loop_free(loop), 0);
    CHECK_INT(seen.logs, 1);
    CHECK_INT(seen.log_code, -EPERM);
    CHECK(strstr(seen.log, "cannot be ended: Operation not permitted") != NULL);
    CHECK(waitpid(-1, NULL, 0) > 0); /* without its pipes it ends by itself */
}

/* Somebody else in the process may reap what is not theirs. */
ON_EACH_NOTIFIER(reaped_by_others) {
    bk_stream *s = hear("process:echo up; exec >&-; read x; exit 1", &hearing);
    hear_line();
    bk_stream_end(s);
    CHECK(waitpid(-1, NULL, 0) > 0);
    run_until(&seen.ended, 1);
    bk_stream_close(s);
    run_until(&seen.closed, 1);
    CHECK_INT(seen.why, 0);
}

/* A table made before there were programs in it. */
static void older_system(void) {
    bk_os os = *bk_os_default();
    bk_error error;
    os.size = offsetof(bk_os, spawn);
    CHECK_INT(open_loop(NULL, &os), 0);
    CHECK_INT(connect_error("process:cat", &error), -ENOTSUP);
    CHECK_INT(bk_loop_free(loop), 0);
}

/* ---- */

/* Where the one kill failed, it is still ending by itself. */
static void reap_after_step(void) {
    if (strcmp(faults_struck(support_faults()), "kill") == 0)
        while (waitpid(-1, NULL, 0) > 0)
            ;
    check_childless();
}

static void process_faults(void) {
    after_step = reap_after_step;
    walk(NULL, "process:cat");
    walk("process:cat", "process:cat");
    after_step = NULL;
}

/* One that is left while it runs, and takes no hint; it ends at last by itself. */
static void leave(bk_os *os) {
    if (open_loop(NULL, os) < 0)
        return;
    bk_stream *s;
    if (bk_connect(loop, "process:trap '' TERM; cat; sleep 0.5", &hearing, NULL, NULL, &s) >= 0) {
        for (int i = 0; i < 10 && seen.opened == 0 && seen.closed == 0; i++)
            (void)bk_loop_turn(loop, 10 * BK_MILLISECOND);
        if (seen.closed == 0)
            bk_stream_abort(s);
        run_until(&seen.closed, 1);
        faults_pass_time(support_faults(), BK_PROCESS_END_MS * BK_MILLISECOND);
        (void)bk_loop_turn(loop, 2 * BK_PROCESS_REAP_MS * BK_MILLISECOND);
    }
    (void)bk_loop_free(loop);
}

static void leaving_faults(void) {
    faults *f = support_faults();
    int kills = 0;
    for (int kind = FAULTS_NONE + 1; kind < FAULTS_KINDS; kind++) {
        for (long n = 1, fired = 1; fired > 0; n++) {
            faults_arm(f, (faults_kind)kind, n);
            leave(faults_os(f));
            (void)faults_disarm(f);
            fired = faults_fired(f);
            kills += strcmp(faults_struck(f), "kill") == 0;
            reap_after_step();
            check_leaks(faults_struck(f));
        }
    }
    CHECK(kills >= 2); /* the hint, and the end */
}

int main(int argc, char **argv) {
    static const check_case cases[] = {
        CASE(there_and_back),
        CASE(failures),
        CASE(errors),
        CASE(served),
        CASE(lives_without_output),
        CASE(lives_without_input),
        CASE(told_to_end),
        CASE(killed_at_last),
        CASE(whole_group),
        CASE(loop_ends),
        CASE(signals_are_fresh),
        CASE(no_descriptors_inherited),
        CASE(no_standard_descriptors),
        CASE(forked),
        CASE(not_ours_to_kill),
        CASE(reaped_by_others),
        CASE(older_system),
        CASE(process_faults),
        CASE(leaving_faults),
    };
    signal(SIGPIPE, SIG_IGN); /* as whoever writes to pipes does */
    return check_main(argc, argv, cases, COUNT(cases));
}
