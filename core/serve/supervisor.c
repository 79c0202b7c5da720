/*
 * supervisor.c: what a service tells its supervisor: that it is ready, reloads or ends, and that it
 * is alive, as sd_notify(3) and sd_watchdog_enabled(3) have it. Called by bk_serve(), by programs
 * that serve by themselves, and by the Python extension.
 */
#include "core/serve/serve.h"

enum { WATCHDOG_LEAST_MS = 10 }; /* between two signs of life, whatever we are asked for */

/* ---- Telling ---- */

/* A path, or @ and the name of an abstract socket. */
static int find_address(const char *path, struct sockaddr_un *ret_address, unsigned *ret_size) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t n = strlen(path);
    if (*path != '/' && *path != '@')
        return -EAFNOSUPPORT;
    if (n >= sizeof address.sun_path)
        return -ENAMETOOLONG;
    memcpy(address.sun_path, path, n);
    if (*path == '@')
        address.sun_path[0] = '\0';
    *ret_address = address;
    *ret_size = (unsigned)(offsetof(struct sockaddr_un, sun_path) + n);
    return 0;
}

static int send_state(bk_os *os, int fd, const char *state) {
    const struct iovec v = {(void *)(uintptr_t)state, strlen(state)};
    ssize_t sent;
    while ((sent = os->send(os, fd, &v, 1)) == -EINTR)
        ;
    return sent < 0 ? (int)sent : 1;
}

int bk_supervisor_tell(bk_os *os, const char *state) {
    struct sockaddr_un address;
    unsigned size;
    if (os == NULL || state == NULL || *state == '\0')
        return -EINVAL;
    const char *path = bk_environment(os, "NOTIFY_SOCKET");
    if (path == NULL || *path == '\0')
        return 0;
    int code = find_address(path, &address, &size);
    if (code < 0)
        return code;
    int fd = os->socket(os, AF_UNIX, SOCK_DGRAM, 0);
    if (fd < 0)
        return fd;
    code = os->connect(os, fd, (const struct sockaddr *)&address, size);
    if (code >= 0)
        code = send_state(os, fd, state);
    bk_close_fd(os, fd);
    return code;
}

/* ---- The watchdog ---- */

static void live(void *arg) {
    bk_loop *loop = arg;
    int code = bk_supervisor_tell(loop->os, "WATCHDOG=1");
    if (code < 0)
        bk_loop_log(loop, code, "the supervisor cannot be told that we live: %s",
                    bk_strerror(code));
    code =
        bk_timer_start(loop, &loop->watchdog, bk_loop_now(loop) + loop->watchdog_every, live, loop);
    if (code < 0)
        bk_loop_log(loop, code, "the supervisor's watchdog will bark: %s", bk_strerror(code));
}

int bk_supervisor_watch(bk_loop *loop) {
    if (loop == NULL)
        return -EINVAL;
    bk_os *os = loop->os;
    const char *limit = bk_environment(os, "WATCHDOG_USEC");
    const char *process = bk_environment(os, "WATCHDOG_PID");
    const char *path = bk_environment(os, "NOTIFY_SOCKET");
    if (limit == NULL || path == NULL || *path == '\0')
        return 0;
    int64_t us = bk_parse_number(limit, INT64_MAX / 1000);
    int64_t pid = process == NULL ? os->getpid(os) : bk_parse_number(process, INT32_MAX);
    if (us <= 0 || pid <= 0)
        return -EINVAL;
    if (pid != os->getpid(os))
        return 0;
    if (loop->watchdog.place != 0)
        return 1;
    int64_t least = WATCHDOG_LEAST_MS * BK_MILLISECOND, half = us * 1000 / 2;
    loop->watchdog_every = half > least ? half : least;
    int code = bk_timer_start(loop, &loop->watchdog, bk_loop_now(loop), live, loop);
    return code < 0 ? code : 1;
}
