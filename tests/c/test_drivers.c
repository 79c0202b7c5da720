/*
 * test_drivers.c: the drivers of bk_serve_with() from inside: their names, what setup() and the log
 * are told, wrong arguments, and each driver with each call to the operating system failing in
 * turn. From outside they are tested in tests/python/test_c_drivers.py.
 */
#include "check.h"
#include "support.h"

#include "core/serve/drive.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- Names ---- */

static void names(void) {
    static const struct {
        const char *text;
        const bk_driver *driver;
        int workers;
    } good[] = {
        {"loop", &bk_driver_loop, 1},           {"loops:1", &bk_driver_loops, 1},
        {"loops", &bk_driver_loops, 1},         {"loops:10000", &bk_driver_loops, 10000},
        {"threads:12", &bk_driver_threads, 12}, {"forks:3", &bk_driver_forks, 3},
        {"forks:03", &bk_driver_forks, 3},
    };
    static const char *const bad[] = {
        "",         "loo",      "loop:",       "loop:1",
        "loops:",   "loops:0",  "loops:-1",    "loops:+1",
        "loops:1x", "loops: 1", "loops:10001", "loops:99999999999999999999",
        "Loops:1",  "forks :2", "threads:2:2", "process:2"};
    for (int i = 0; i < COUNT(good); i++) {
        const bk_driver *driver = NULL;
        int workers = 0;
        CHECK_INT(bk_driver_find(good[i].text, &driver, &workers, NULL), 0);
        CHECK(driver == good[i].driver);
        CHECK_INT(workers, good[i].workers);
    }
    for (int i = 0; i < COUNT(bad); i++) {
        const bk_driver *driver = NULL;
        int workers = 77;
        bk_error error = {0};
        CHECK_INT(bk_driver_find(bad[i], &driver, &workers, &error), -EINVAL);
        CHECK(driver == NULL && workers == 77);
        CHECK(strstr(error.text, "is none of loop, loops:N, threads:N, forks:N") != NULL);
    }
}

/* ---- A server of this process ---- */

static struct {
    pthread_mutex_t lock;
    int setups, logs, last_code, serving;
    pid_t parent;
    char text[2000];
    bool ends;   /* by a signal, as soon as it runs */
    int failing; /* the setup that does; 0: none */
} seen = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void on_log(void *arg, int code, const char *text) {
    CHECK(arg == &seen);
    pthread_mutex_lock(&seen.lock);
    seen.logs++;
    seen.last_code = code;
    strncat(seen.text, text, sizeof seen.text - strlen(seen.text) - 2);
    strcat(seen.text, "\n");
    pthread_mutex_unlock(&seen.lock);
}

static void received(bk_stream *s, const void *data, size_t n) {
    bk_stream_write(s, data, n, BK_COPY, NULL);
}

static const bk_protocol echo = {.size = sizeof echo, .name = "echo", .received = received};

static void end(void *arg) {
    (void)arg;
    raise(SIGTERM);
}

/* In a worker, nothing fails. */
static int set_up(void *arg, bk_loop *loop, const bk_protocol **ret_protocol) {
    CHECK(arg == &seen);
    if (getpid() != seen.parent) {
        faults_disarm(support_faults());
        *ret_protocol = &echo;
        return 0;
    }
    if (++seen.setups == seen.failing)
        return -EPERM;
    CHECK(*ret_protocol == NULL);
    *ret_protocol = &echo;
    return seen.setups == 1 && seen.ends ? bk_loop_soon(loop, end, NULL) : 0;
}

static bk_serve_options options_of(const char *driver) {
    seen.setups = seen.logs = seen.last_code = seen.failing = 0;
    seen.text[0] = '\0';
    seen.parent = getpid();
    seen.ends = true;
    return (bk_serve_options){.size = sizeof(bk_serve_options),
                              .driver = driver,
                              .setup = set_up,
                              .log = on_log,
                              .arg = &seen,
                              .drain = -1,
                              .os = faults_os(support_faults())};
}

static const char *const drivers[] = {"loop", "loops:3", "threads:2", "forks:2"};
static const int loops[] = {1, 3, 2, 1}; /* of this process */

/* It begins, it ends; what it makes it gives back, signals too. */
static void begins_and_ends(void) {
    for (int i = 0; i < COUNT(drivers); i++) {
        bk_serve_options options = options_of(drivers[i]);
        struct sigaction after;
        CHECK_INT(bk_serve_with(&options, NULL, "tcp://127.0.0.1:0", NULL), 0);
        CHECK_INT(seen.setups, loops[i]);
        CHECK(strncmp(seen.text, "listening at tcp://127.0.0.1:", 29) == 0);
        CHECK_INT(seen.logs, 1);
        CHECK_INT(faults_leaks(support_faults(), NULL), 0);
        CHECK(sigaction(SIGTERM, NULL, &after) == 0 && after.sa_handler == SIG_DFL);
        CHECK(waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD);
    }
}

/* What it listens at was one connection, and that is over. */
static void ends_by_itself(void) {
    for (int i = 0; i < 3; i++) {
        char endpoint[32], got[8];
        int pair[2];
        bk_serve_options options = options_of(drivers[i]);
        seen.ends = false;
        CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
        CHECK_INT(write(pair[1], "hello", 5), 5);
        CHECK(shutdown(pair[1], SHUT_WR) == 0);
        snprintf(endpoint, sizeof endpoint, "fd:%d", pair[0]);
        CHECK_INT(bk_serve_with(&options, NULL, endpoint, NULL), 0);
        CHECK_INT(read(pair[1], got, sizeof got), 5);
        close(pair[1]);
        CHECK_INT(faults_leaks(support_faults(), NULL), 0);
    }
}

static void told(const bk_serve_options *options, const char *endpoint, const char *text) {
    CHECK_INT(bk_serve_with(options, NULL, endpoint, NULL), 1);
    CHECK_STR(seen.text, text);
    CHECK_INT(faults_leaks(support_faults(), NULL), 0);
}

static void errors(void) {
    bk_serve_options options = options_of("loop:2");
    told(&options, "stdio:",
         "driver: loop:2 is none of loop, loops:N, threads:N, forks:N, with N from 1 to 10000\n");
    setenv("BECKET_DRIVER", "no", 1);
    options = options_of(NULL);
    told(&options, "stdio:",
         "BECKET_DRIVER: no is none of loop, loops:N, threads:N, forks:N, with N from 1 to "
         "10000\n");
    unsetenv("BECKET_DRIVER");
    for (int i = 0; i < COUNT(drivers); i++) {
        options = options_of(drivers[i]);
        told(&options, "tcp://127.0.0.1", "tcp://127.0.0.1: a port is missing: tcp://host:port\n");
        options = options_of(drivers[i]);
        seen.failing = 1;
        told(&options, "tcp://127.0.0.1:0", "cannot serve: Operation not permitted\n");
        options = options_of(drivers[i]);
        bk_limits limits = {.size = 1};
        options.limits = &limits;
        told(&options, "tcp://127.0.0.1:0", "limits: their size is not set\n");
    }
    options = options_of("loops:3"); /* … of the last loop, when others listen already */
    seen.failing = 3;
    CHECK_INT(bk_serve_with(&options, NULL, "tcp://127.0.0.1:0", NULL), 1);
    CHECK(strstr(seen.text, "cannot serve: Operation not permitted\n") != NULL);
    options = options_of("loop");
    told(&options, NULL, "cannot serve: Invalid argument\n");
    options.setup = NULL;
    seen.text[0] = '\0';
    told(&options, "stdio:", "cannot serve: Invalid argument\n");
}

/* No worker can be given a connection. */
static void forks_of_a_connection(void) {
    char endpoint[32], text[160];
    int pair[2];
    bk_serve_options options = options_of("forks:2");
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    snprintf(endpoint, sizeof endpoint, "fd:%d", pair[0]);
    snprintf(text, sizeof text,
             "%s: this is a connection, which no worker can be given; driver loop serves it\n",
             endpoint);
    told(&options, endpoint, text);
    close(pair[1]);
}

/* ---- Each driver once more, with each call failing in turn ---- */

static void walk(const char *driver, faults_kind kind, long most) {
    faults *f = support_faults();
    long n = 1;
    for (bool done = false; !done && n <= most && check_failures < 5; n++) {
        bk_serve_options options = options_of(driver);
        int failures = check_failures;
        support_guard(60, driver);
        faults_arm(f, kind, n);
        int status = bk_serve_with(&options, NULL, "tcp://127.0.0.1:0", NULL);
        done = faults_disarm(f) < n;
        CHECK(status == 0 || status == 1);
        CHECK(status == 0 || seen.logs > 0); /* somebody was told */
        CHECK_INT(faults_leaks(f, NULL), 0);
        CHECK(waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD);
        if (check_failures > failures)
            printf("# … %s, %s %ld: %s: %s\n", driver, faults_kind_name(kind), n, faults_struck(f),
                   seen.text);
        faults_forget(f);
    }
    support_guard(0, "");
    printf("# %s: %s: %ld runs\n", driver, faults_kind_name(kind), n - 1);
}

static void with_faults(void) {
    for (int i = 0; i < COUNT(drivers); i++) {
        walk(drivers[i], FAULTS_ERROR, 150);
        walk(drivers[i], FAULTS_NO_MEMORY, 150);
        walk(drivers[i], FAULTS_INTERRUPTED, 50);
    }
}

int main(int argc, char **argv) {
    static const check_case cases[] = {
        CASE(names),  CASE(begins_and_ends),       CASE(ends_by_itself),
        CASE(errors), CASE(forks_of_a_connection), CASE(with_faults),
    };
    signal(SIGPIPE, SIG_IGN);
    return check_main(argc, argv, cases, COUNT(cases));
}
