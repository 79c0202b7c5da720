/*
 * test_systemd.c: what a supervisor gives us and is told: sockets that it has opened, and signs of
 * life. On every notifier, and once more with every call failing in turn.
 */
#include "check.h"
#include "core/serve/serve.h"
#include "scheme_support.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- Descriptors 3 to 6, which nobody else gets ---- */

enum { FIRST = 3, GIVEN = 4 };

static int nothing = -1;

static void clear_environment(void) {
    static const char *const names[] = {"LISTEN_PID",    "LISTEN_FDS",    "LISTEN_FDNAMES",
                                        "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"};
    for (int i = 0; i < COUNT(names); i++)
        unsetenv(names[i]);
}

static void reserve(void) {
    if (nothing < 0)
        nothing = fcntl(open("/dev/null", O_RDWR), F_DUPFD_CLOEXEC, 100);
    for (int i = 0; i < GIVEN; i++)
        CHECK(dup2(nothing, FIRST + i) == FIRST + i);
    clear_environment();
}

static void pass(const char *key, long long number) {
    char text[32];
    snprintf(text, sizeof text, "%lld", number);
    setenv(key, text, 1);
}

/* What systemd says of so many sockets. */
static void announce(int count, const char *names) {
    pass("LISTEN_PID", getpid());
    pass("LISTEN_FDS", count);
    if (names != NULL)
        setenv("LISTEN_FDNAMES", names, 1);
    else
        unsetenv("LISTEN_FDNAMES");
}

static char *endpoint_of(int number) {
    static char text[GIVEN][64];
    snprintf(text[number], sizeof text[0], "unix:@becket-%d-given-%d", (int)getpid(), number);
    return text[number];
}

static void name_address(struct sockaddr_un *address, socklen_t *size, const char *name) {
    *address = (struct sockaddr_un){.sun_family = AF_UNIX};
    memcpy(address->sun_path, name, strlen(name));
    *size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(name));
    if (*name == '@')
        address->sun_path[0] = '\0';
}

static int raw_socket(int type, const char *name) {
    struct sockaddr_un address;
    socklen_t size;
    int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
    name_address(&address, &size, name);
    CHECK_INT(bind(fd, (struct sockaddr *)&address, size), 0);
    return fd;
}

/* A listening socket at FIRST + number, that blocks and is inherited, as systemd's. */
static void give(int number) {
    int fd = raw_socket(SOCK_STREAM, endpoint_of(number) + 5);
    CHECK_INT(listen(fd, 5), 0);
    CHECK(dup2(fd, FIRST + number) >= 0);
    close(fd);
}

static void give_three(const char *names) {
    for (int i = 0; i < 3; i++)
        give(i);
    announce(3, names);
}

static bool is_nonblocking(int fd) {
    return fcntl(fd, F_GETFL) & O_NONBLOCK;
}

static bool is_answered(int number) {
    int closed = seen.closed, answered = seen.answered;
    CHECK_INT(bk_connect(loop, endpoint_of(number), &asking, NULL, NULL, NULL), 0);
    for (int i = 0; i < 20 && seen.closed == closed; i++)
        (void)bk_loop_turn(loop, 5 * BK_MILLISECOND);
    return seen.answered > answered;
}

/* ---- Sockets ---- */

ON_EACH_NOTIFIER(one_socket) {
    give_three("web:mail:other");
    bk_listener *l = listen_at("systemd:mail");
    CHECK_STR(bk_listener_name(l), endpoint_of(1));
    CHECK(is_nonblocking(FIRST + 1) && fcntl(FIRST + 1, F_GETFD) == FD_CLOEXEC);
    CHECK(!is_nonblocking(FIRST) && fcntl(FIRST, F_GETFD) == 0);
    CHECK(is_answered(1));
    CHECK(!is_answered(0));
    bk_listener_close(l);
    CHECK(fcntl(FIRST + 1, F_GETFD) < 0);
}

ON_EACH_NOTIFIER(several_sockets) {
    give_three("a b:mail:a b");
    bk_listener *l = listen_at("systemd:a%20b");
    CHECK_STR(bk_listener_name(l), "systemd:a b");
    CHECK(is_answered(0) && is_answered(2) && !is_answered(1));
    bk_error error;
    CHECK_INT(listen_error("systemd:a%20b", &error), -EBUSY);
    CHECK_STR(error.text, "descriptor 3 cannot be used: Device or resource busy");
    bk_listener_close(l);
    CHECK(fcntl(FIRST, F_GETFD) < 0 && fcntl(FIRST + 2, F_GETFD) < 0);
    CHECK_INT(listen_error("systemd:a%20b", &error), -EBADF);
}

ON_EACH_NOTIFIER(all_sockets) {
    give_three(NULL);
    bk_listener *l = listen_at("systemd:");
    CHECK_STR(bk_listener_name(l), "systemd:");
    for (int i = 0; i < 3; i++) {
        CHECK(is_answered(i));
        CHECK(is_nonblocking(FIRST + i) && fcntl(FIRST + i, F_GETFD) == FD_CLOEXEC);
    }
}

/* Accept=yes: the connection itself. */
ON_EACH_NOTIFIER(connected_socket) {
    int pair[2];
    char endpoint[32];
    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    CHECK(dup2(pair[0], FIRST) >= 0);
    close(pair[0]);
    announce(1, "connection");
    bk_listener *l = listen_at("systemd:");
    CHECK_STR(bk_listener_name(l), "systemd:");
    snprintf(endpoint, sizeof endpoint, "fd:%d", pair[1]);
    ask(endpoint);
    run_until(&seen.gone, 1);
    CHECK_INT(seen.served, 1);
}

/* A failure leaves sockets as they were, for whoever tries otherwise. */
static int spoil_second(bk_os *os, int fd, int on) {
    (void)os;
    return fd == FIRST + 1 ? -EPERM : bk_os_default()->set_nonblocking(bk_os_default(), fd, on);
}

static void given_back(void) {
    bk_os os = *bk_os_default();
    bk_error error;
    os.set_nonblocking = spoil_second;
    CHECK_INT(open_loop(NULL, &os), 0);
    give_three("a:a:a");
    CHECK_INT(listen_error("systemd:a", &error), -EPERM);
    for (int i = 0; i < 3; i++)
        CHECK(fcntl(FIRST + i, F_GETFD) >= 0 && !is_nonblocking(FIRST + i));
    CHECK_INT(bk_loop_free(loop), 0);
}

typedef struct surroundings {
    const char *pid, *fds, *names; /* pid "ours": it is */
    const char *endpoint;
    int code;
    size_t position;
    const char *text;
} surroundings;

#define MISSING "no supervisor has passed sockets: "

static const surroundings hostile[] = {
    {NULL, "3", "a:b:c", "systemd:a", -ENOENT, 0, MISSING "LISTEN_PID is not in the environment"},
    {"ours", NULL, NULL, "systemd:", -ENOENT, 0, MISSING "LISTEN_FDS is not in the environment"},
    {"1", "3", NULL, "systemd:", -ENOENT, 0,
     "the sockets are another process's: LISTEN_PID is 1, "},
    {"", "3", NULL, "systemd:", -EINVAL, 0, "LISTEN_PID is \"\", and not a number from 1 to "},
    {"-1", "3", NULL, "systemd:", -EINVAL, 0, "LISTEN_PID is \"-1\", and not a number from 1 to "},
    {"4294967297", "3", NULL, "systemd:", -EINVAL, 0, "LISTEN_PID is \"4294967297\", and not"},
    {"ours", "0", NULL, "systemd:", -EINVAL, 0,
     "LISTEN_FDS is \"0\", and not a number from 1 to 1024"},
    {"ours", " 1", NULL, "systemd:", -EINVAL, 0, "LISTEN_FDS is \" 1\", and not"},
    {"ours", "1\n\033[2J", NULL, "systemd:", -EINVAL, 0, "LISTEN_FDS is \"1??[2J\", and not"},
    {"ours", "1025", NULL, "systemd:", -EINVAL, 0, "LISTEN_FDS is \"1025\", and not"},
    {"ours", "99999999999999999999999", NULL, "systemd:", -EINVAL, 0, "LISTEN_FDS is \"999999"},
    {"ours", "3", "a:b", "systemd:a", -EINVAL, 0, "LISTEN_FDNAMES has 2 names, for 3 sockets"},
    {"ours", "3", "", "systemd:a", -EINVAL, 0, "LISTEN_FDNAMES has 1 names, for 3 sockets"},
    {"ours", "3", "a:b:", "systemd:ab", -ENOENT, 8, "there is no socket ab; there are a, b"},
    {"ours", "3", NULL, "systemd:a", -ENOENT, 8,
     "the sockets have no names (LISTEN_FDNAMES); systemd: takes them all"},
    {"ours", "3", NULL, "systemd://a", BK_EENDPOINT, 8,
     "systemd: is followed by the name of a socket, or by nothing: all"},
    {"ours", "4", NULL, "systemd:", -EINVAL, 0,
     "descriptor 6 does not listen: it is taken by a name of its own"},
    {"ours", "1024", NULL, "systemd:", -EINVAL, 0, "descriptor 6 does not listen"},
    {"ours", "3", NULL, "systemd:?a=1", BK_EOPTION, 9,
     "systemd has no option a; it has proxy, proxy_from, proxy_for"},
};

ON_EACH_NOTIFIER(hostile_surroundings) {
    give_three(NULL);
    for (int i = 0; i < COUNT(hostile); i++) {
        const surroundings *h = &hostile[i];
        bk_error error;
        clear_environment();
        if (h->names != NULL)
            setenv("LISTEN_FDNAMES", h->names, 1);
        if (h->fds != NULL)
            setenv("LISTEN_FDS", h->fds, 1);
        if (h->pid != NULL && strcmp(h->pid, "ours") == 0)
            pass("LISTEN_PID", getpid());
        else if (h->pid != NULL)
            setenv("LISTEN_PID", h->pid, 1);
        CHECK_INT(listen_error(h->endpoint, &error), h->code);
        CHECK_INT(error.position, h->position);
        if (strncmp(error.text, h->text, strlen(h->text)) != 0)
            CHECK_STR(error.text, h->text);
    }
    bk_error error;
    CHECK_INT(connect_error("systemd:", &error), -ENOTSUP);
    CHECK_STR(error.text, "systemd is for servers, not for clients");
}

static void older_system(void) {
    bk_os os = *bk_os_default();
    bk_error error;
    os.size = offsetof(bk_os, spawn);
    CHECK_INT(open_loop(NULL, &os), 0);
    give_three(NULL);
    CHECK_INT(listen_error("systemd:", &error), -ENOENT);
    setenv("NOTIFY_SOCKET", "/nowhere", 1);
    CHECK_INT(bk_supervisor_tell(&os, "READY=1"), 0);
    CHECK_INT(bk_loop_free(loop), 0);
}

/* ---- Telling ---- */

static char *notify_name(void) {
    static char name[64];
    snprintf(name, sizeof name, "@becket-%d-notify", (int)getpid());
    return name;
}

static int open_notify(const char *name) {
    int fd = raw_socket(SOCK_DGRAM, name);
    setenv("NOTIFY_SOCKET", name, 1);
    return fd;
}

/* The next that was told, waiting for it if need be; NULL: none within ten seconds. */
static const char *told(int fd) {
    static char room[512];
    struct pollfd p = {.fd = fd, .events = POLLIN};
    ssize_t n = poll(&p, 1, 10000) == 1 ? recv(fd, room, sizeof room - 1, 0) : -1;
    room[n < 0 ? 0 : n] = '\0';
    return n < 0 ? NULL : room;
}

static void telling(void) {
    bk_os *os = bk_os_default();
    char folder[] = "/tmp/becket-notify-XXXXXX", path[64], text[200];
    clear_environment();
    CHECK_INT(bk_supervisor_tell(os, "READY=1"), 0);
    setenv("NOTIFY_SOCKET", "", 1);
    CHECK_INT(bk_supervisor_tell(os, "READY=1"), 0);
    int fd = open_notify(notify_name());
    CHECK_INT(bk_supervisor_tell(os, "READY=1\nSTATUS=well"), 1);
    CHECK_STR(told(fd), "READY=1\nSTATUS=well");
    close(fd);
    CHECK_INT(bk_supervisor_tell(os, "READY=1"), -ECONNREFUSED);
    CHECK(mkdtemp(folder) != NULL);
    snprintf(path, sizeof path, "%s/notify", folder);
    fd = open_notify(path);
    CHECK_INT(bk_supervisor_tell(os, "STOPPING=1"), 1);
    CHECK_STR(told(fd), "STOPPING=1");
    int code;
    while ((code = bk_supervisor_tell(os, "STATUS=again")) == 1)
        ;
    CHECK_INT(code, -EAGAIN); /* it is full, and nobody waits */
    close(fd);
    CHECK(unlink(path) == 0 && rmdir(folder) == 0);
    CHECK_INT(bk_supervisor_tell(os, "READY=1"), -ENOENT);
    setenv("NOTIFY_SOCKET", "vsock:2:1234", 1);
    CHECK_INT(bk_supervisor_tell(os, "READY=1"), -EAFNOSUPPORT);
    memset(text, 'x', sizeof text - 1);
    text[0] = '/';
    text[sizeof text - 1] = '\0';
    setenv("NOTIFY_SOCKET", text, 1);
    CHECK_INT(bk_supervisor_tell(os, "READY=1"), -ENAMETOOLONG);
    CHECK_INT(bk_supervisor_tell(os, ""), -EINVAL);
    CHECK_INT(bk_supervisor_tell(os, NULL), -EINVAL);
    CHECK_INT(bk_supervisor_tell(NULL, "READY=1"), -EINVAL);
    clear_environment();
}

static void telling_faults(void) {
    static const faults_kind kinds[] = {FAULTS_ERROR, FAULTS_INTERRUPTED, FAULTS_AGAIN};
    faults *f = support_faults();
    int fd = open_notify(notify_name());
    for (int i = 0; i < COUNT(kinds); i++)
        for (long n = 1, fired = 1; fired > 0; n++) {
            faults_arm(f, kinds[i], n);
            int code = bk_supervisor_tell(faults_os(f), "READY=1");
            (void)faults_disarm(f);
            fired = faults_fired(f);
            bool excused = kinds[i] == FAULTS_INTERRUPTED || strcmp(faults_struck(f), "close") == 0;
            CHECK_INT(code > 0, fired == 0 || excused);
            if (code > 0)
                CHECK_STR(told(fd), "READY=1");
            check_leaks("telling");
        }
    close(fd);
    clear_environment();
}

/* ---- The watchdog ---- */

ON_EACH_NOTIFIER(watchdog) {
    int fd = open_notify(notify_name());
    CHECK_INT(bk_supervisor_watch(loop), 0); /* nobody watches */
    pass("WATCHDOG_USEC", 40000);
    pass("WATCHDOG_PID", getpid() + 1);
    CHECK_INT(bk_supervisor_watch(loop), 0); /* … us */
    pass("WATCHDOG_PID", getpid());
    CHECK_INT(bk_supervisor_watch(loop), 1);
    CHECK_INT(bk_supervisor_watch(loop), 1);
    int64_t from = now_ms();
    for (int i = 0; i < 4; i++) {
        char room[32];
        ssize_t n;
        while ((n = recv(fd, room, sizeof room, MSG_DONTWAIT)) < 0)
            (void)bk_loop_turn(loop, BK_SECOND);
        CHECK(n == 10 && memcmp(room, "WATCHDOG=1", 10) == 0);
    }
    CHECK(now_ms() - from >= 3 * 20); /* at once, and then after each half */
    unsetenv("WATCHDOG_PID");
    CHECK_INT(bk_supervisor_watch(loop), 1);
    close(fd);
}

/* Nobody there any more is told to the log, and it goes on. */
ON_EACH_NOTIFIER(watchdog_alone) {
    close(open_notify(notify_name()));
    pass("WATCHDOG_USEC", 1);
    CHECK_INT(bk_supervisor_watch(loop), 1);
    run_until(&seen.logs, 3);
    CHECK_INT(seen.log_code, -ECONNREFUSED);
    CHECK(strstr(seen.log, "the supervisor cannot be told that we live") == seen.log);
}

ON_EACH_NOTIFIER(watchdog_hostile) {
    static const char *const numbers[] = {"", "0", "-1", "1s", "9223372036854775807", "x"};
    CHECK_INT(bk_supervisor_watch(NULL), -EINVAL);
    pass("WATCHDOG_USEC", 1000000);
    CHECK_INT(bk_supervisor_watch(loop), 0); /* there is nobody to tell */
    setenv("NOTIFY_SOCKET", notify_name(), 1);
    for (int i = 0; i < COUNT(numbers); i++) {
        setenv("WATCHDOG_USEC", numbers[i], 1);
        CHECK_INT(bk_supervisor_watch(loop), -EINVAL);
    }
    pass("WATCHDOG_USEC", INT64_MAX / 1000);
    setenv("WATCHDOG_PID", "me", 1);
    CHECK_INT(bk_supervisor_watch(loop), -EINVAL);
    unsetenv("WATCHDOG_PID");
    CHECK_INT(bk_supervisor_watch(loop), 1);
}

/* ---- bk_serve() ---- */

static pid_t serve_in_child(void) {
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        int quiet = open("/dev/null", O_WRONLY);
        dup2(quiet, 2);
        pass("LISTEN_PID", getpid());
        _exit(bk_serve(&echo, "systemd:web", NULL));
    }
    return pid;
}

static void served(void) {
    int status = -1;
    long long at = -1;
    CHECK_INT(open_loop(NULL, faults_quiet(support_faults())), 0);
    give_three("web:mail:other");
    pass("WATCHDOG_USEC", 3600 * INT64_C(1000000));
    int fd = open_notify(notify_name());
    pid_t pid = serve_in_child();
    CHECK_STR(told(fd), "READY=1");
    CHECK_STR(told(fd), "WATCHDOG=1");
    ask(endpoint_of(0));
    CHECK_INT(kill(pid, SIGHUP), 0);
    const char *text = told(fd);
    CHECK(text != NULL && sscanf(text, "RELOADING=1\nMONOTONIC_USEC=%lld", &at) == 1);
    CHECK(at > 0 && at / 1000 <= now_ms() && at / 1000 > now_ms() - 10000);
    CHECK_STR(told(fd), "READY=1");
    CHECK_INT(kill(pid, SIGTERM), 0);
    CHECK_STR(told(fd), "STOPPING=1");
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK_INT(status, 0);
    close(fd);
    CHECK_INT(bk_loop_free(loop), 0);
    clear_environment();
}

/* ---- */

static void give_anew(void) {
    reserve();
    give_three("web:mail:web");
}

static void systemd_faults(void) {
    before_loop = give_anew;
    walk("systemd:web", endpoint_of(2));
    walk("systemd:mail", endpoint_of(1));
    before_loop = reserve;
    reserve();
}

int main(int argc, char **argv) {
    static const check_case cases[] = {
        CASE(one_socket),       CASE(several_sockets), CASE(all_sockets),
        CASE(connected_socket), CASE(given_back),      CASE(hostile_surroundings),
        CASE(older_system),     CASE(telling),         CASE(telling_faults),
        CASE(watchdog),         CASE(watchdog_alone),  CASE(watchdog_hostile),
        CASE(served),           CASE(systemd_faults),
    };
    before_loop = reserve;
    reserve();
    return check_main(argc, argv, cases, COUNT(cases));
}
