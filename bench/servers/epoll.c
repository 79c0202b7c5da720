/* The floor: an echo server on bare epoll, with no abstraction at all. bench/run.py compares everything with it.
 *
 * It is right, not only short: what the kernel refuses is kept and sent later, and a connection is not read while
 * something is kept for it.
 */
#include "../endpoint.h"

#include <sys/epoll.h>

typedef struct connection {
    int fd;
    char *kept;
    size_t kept_size, kept_sent;
} connection;

static int poller;
static char room[BENCH_ROOM];

static void connection_close(connection *c) {
    close(c->fd);
    free(c->kept);
    free(c);
}

static int connection_watch(connection *c, int how, unsigned events) {
    struct epoll_event e = {.events = events, .data.ptr = c};
    return epoll_ctl(poller, how, c->fd, &e);
}

static void accept_all(int listener) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return;
        connection *c = calloc(1, sizeof *c);
        if (!c) {
            close(fd);
            return;
        }
        c->fd = fd;
        endpoint_nodelay(fd);
        if (connection_watch(c, EPOLL_CTL_ADD, EPOLLIN) < 0)
            connection_close(c);
    }
}

/* Returns -1 when the connection is over. */
static int keep(connection *c, const char *data, size_t n) {
    c->kept = malloc(n);
    if (!c->kept)
        return -1;
    memcpy(c->kept, data, n);
    c->kept_size = n;
    c->kept_sent = 0;
    return connection_watch(c, EPOLL_CTL_MOD, EPOLLOUT);
}

static int echo(connection *c) {
    ssize_t n = read(c->fd, room, sizeof room);
    if (n <= 0)
        return n < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -1;
    ssize_t sent = write(c->fd, room, (size_t)n);
    if (sent < 0 && errno != EAGAIN && errno != EINTR)
        return -1;
    if (sent < 0)
        sent = 0;
    return sent == n ? 0 : keep(c, room + sent, (size_t)(n - sent));
}

static int send_kept(connection *c) {
    ssize_t n = write(c->fd, c->kept + c->kept_sent, c->kept_size - c->kept_sent);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -1;
    c->kept_sent += (size_t)n;
    if (c->kept_sent < c->kept_size)
        return 0;
    free(c->kept);
    c->kept = NULL;
    return connection_watch(c, EPOLL_CTL_MOD, EPOLLIN);
}

int main(int argc, char **argv) {
    int listener = endpoint_listen(argc, argv, "epoll");
    struct epoll_event events[256], e = {.events = EPOLLIN, .data.ptr = NULL};
    poller = epoll_create1(EPOLL_CLOEXEC);
    if (poller < 0 || epoll_ctl(poller, EPOLL_CTL_ADD, listener, &e) < 0) {
        perror("epoll");
        return 1;
    }
    endpoint_ready();
    for (;;) {
        int n = epoll_wait(poller, events, 256, -1);
        for (int i = 0; i < n; i++) {
            connection *c = events[i].data.ptr;
            if (!c)
                accept_all(listener);
            else if ((c->kept ? send_kept(c) : echo(c)) < 0)
                connection_close(c);
        }
    }
}
