/*
 * systemd.c: the scheme systemd, "systemd:name", the sockets that a supervisor opened for us, as
 * sd_listen_fds(3) has it: descriptors from 3 on, whose number and names are in the environment.
 * "systemd:" is all of them. They are ours then, so each is taken once. Called through
 * bk_scheme_systemd.
 */
#include "core/serve/serve.h"

enum { SYSTEMD_FIRST = 3 };

/* What the environment says, and which of it the endpoint means. */
typedef struct systemd_sockets {
    const char *names; /* of all, with colons between them; NULL: they have none */
    int total;
    int count;
    int fds[BK_SYSTEMD_FDS];
} systemd_sockets;

/* A number from the environment, from 1 on. */
static int systemd_number(bk_os *os, const char *key, int64_t high, int64_t *ret_number,
                          bk_error *error) {
    const char *text = bk_environment(os, key);
    if (text == NULL)
        return bk_error_set(error, -ENOENT, 0,
                            "no supervisor has passed sockets: %s is not in the environment", key);
    int64_t number = bk_parse_number(text, high);
    if (number <= 0)
        return bk_error_set(error, -EINVAL, 0, "%s is \"%.40s\", and not a number from 1 to %lld",
                            key, text, (long long)high);
    *ret_number = number;
    return 0;
}

static int systemd_count_names(const char *names) {
    int count = 1;
    for (; *names != '\0'; names++)
        count += *names == ':';
    return count;
}

static int systemd_read(bk_os *os, systemd_sockets *s, bk_error *error) {
    int64_t pid = 0, total = 0;
    int code = systemd_number(os, "LISTEN_PID", INT32_MAX, &pid, error);
    if (code >= 0)
        code = systemd_number(os, "LISTEN_FDS", BK_SYSTEMD_FDS, &total, error);
    if (code < 0)
        return code;
    if (pid != os->getpid(os))
        return bk_error_set(error, -ENOENT, 0,
                            "the sockets are another process's: LISTEN_PID is %lld, and we are %d",
                            (long long)pid, os->getpid(os));
    s->total = (int)total;
    s->names = bk_environment(os, "LISTEN_FDNAMES");
    if (s->names != NULL && systemd_count_names(s->names) != s->total)
        return bk_error_set(error, -EINVAL, 0, "LISTEN_FDNAMES has %d names, for %d sockets",
                            systemd_count_names(s->names), s->total);
    return 0;
}

/* Call take(…) with each name and its descriptor. */
static void systemd_each(const systemd_sockets *s,
                         void (*take)(void *arg, const char *name, size_t n, int fd), void *arg) {
    const char *name = s->names != NULL ? s->names : "";
    for (int i = 0; i < s->total; i++) {
        size_t n = strcspn(name, ":");
        take(arg, name, n, SYSTEMD_FIRST + i);
        name += name[n] == ':' ? n + 1 : 0;
    }
}

typedef struct systemd_wanted {
    systemd_sockets *sockets;
    const char *name; /* "": all */
    char known[160];
} systemd_wanted;

static void systemd_take(void *arg, const char *name, size_t n, int fd) {
    systemd_wanted *w = arg;
    char text[41];
    size_t length = n < sizeof text ? n : sizeof text - 1;
    memcpy(text, name, length);
    text[length] = '\0';
    bk_list_add(w->known, sizeof w->known, text);
    if (*w->name == '\0' || (strlen(w->name) == n && memcmp(w->name, name, n) == 0))
        w->sockets->fds[w->sockets->count++] = fd;
}

static int systemd_check(bk_os *os, const bk_endpoint *endpoint, systemd_sockets *s,
                         bk_error *error) {
    systemd_wanted wanted = {.sockets = s, .name = endpoint->path};
    if (endpoint->host != NULL)
        return bk_error_set(error, BK_EENDPOINT, endpoint->rest,
                            "%.20s: is followed by the name of a socket, or by nothing: all",
                            endpoint->scheme);
    int code = systemd_read(os, s, error);
    if (code < 0)
        return code;
    systemd_each(s, systemd_take, &wanted);
    if (s->count > 0)
        return 0;
    if (s->names == NULL)
        return bk_error_set(error, -ENOENT, endpoint->rest,
                            "the sockets have no names (LISTEN_FDNAMES); %.20s: takes them all",
                            endpoint->scheme);
    return bk_error_set(error, -ENOENT, endpoint->rest, "there is no socket %.40s; there are %s",
                        endpoint->path, wanted.known);
}

/* ---- Listening ---- */

static bool systemd_is_taken(const bk_loop *loop, int fd) {
    return (uint32_t)fd < loop->watch_count && loop->watches[fd].fn[0] != NULL;
}

/* Several must all listen: one listener accepts on them. */
static int systemd_adopt(bk_loop *loop, const systemd_sockets *s, bk_error *error) {
    bk_os *os = loop->os;
    for (int i = 0; i < s->count; i++) {
        int fd = s->fds[i], code = os->fd_kind(os, fd);
        if (code >= 0 && systemd_is_taken(loop, fd))
            code = -EBUSY;
        if (code >= 0)
            code = bk_close_on_exec(os, fd);
        if (code < 0)
            return bk_error_set(error, code, 0, "descriptor %d cannot be used: %s", fd,
                                bk_strerror(code));
        if (s->count > 1 && !bk_fd_is_listening(os, fd))
            return bk_error_set(error, -EINVAL, 0,
                                "descriptor %d does not listen: it is taken by a name of its own",
                                fd);
    }
    return 0;
}

static int systemd_listen_at(bk_loop *loop, const char *name, const systemd_sockets *s,
                             const bk_protocol *protocol, bk_error *error,
                             bk_listener **ret_listener) {
    bk_transport *transport;
    if (s->count > 1)
        return bk_listen_fds(loop, s->fds, s->count, name, protocol, ret_listener);
    if (bk_fd_is_listening(loop->os, s->fds[0]))
        return bk_listen_fd(loop, s->fds[0], protocol, ret_listener);
    int code = bk_fd_open(loop, s->fds[0], error, &transport);
    return code < 0 ? code : bk_listen_once(loop, name, transport, protocol, ret_listener);
}

static int systemd_listen(bk_loop *loop, const bk_endpoint *endpoint, const bk_protocol *protocol,
                          bk_error *error, bk_listener **ret_listener) {
    systemd_sockets s = {0};
    int code = systemd_check(loop->os, endpoint, &s, error);
    if (code >= 0)
        code = systemd_adopt(loop, &s, error);
    if (code < 0)
        return code;
    char *name = bk_endpoint_format(loop->os, "systemd", endpoint->path);
    if (name == NULL)
        return -ENOMEM;
    code = systemd_listen_at(loop, name, &s, protocol, error, ret_listener);
    bk_dealloc(loop->os, name);
    return code;
}

const bk_scheme bk_scheme_systemd = {
    .size = sizeof(bk_scheme),
    .name = "systemd",
    .listen = systemd_listen,
};
