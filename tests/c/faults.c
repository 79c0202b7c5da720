/*
 * faults.c: the operating system that fails on demand. See faults.h.
 *
 * Memory always moves when it is resized and is filled with rubbish when it is new, so that stale
 * pointers and forgotten initialisations show, above all under AddressSanitizer.
 */
#include "tests/c/faults.h"

#include "core/os/os.h"

#include <stdalign.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

#if defined(__linux__)
#include <sys/epoll.h>
#endif

struct faults_block {
    alignas(max_align_t) struct faults_block *next, **link;
    size_t size;
};

static const char MADE_BY_WAKE_OPEN[] = "wake_open", MADE_BY_OPEN[] = "open";

static faults *owner(bk_os *os) {
    return ((faults_view *)os)->owner;
}

static bk_os *inner(bk_os *os) {
    return owner(os)->inner;
}

/* ---- Striking -------------------------------------------------------------------------------- */

static bool every_second(long call) {
    uint64_t x = (uint64_t)call * UINT64_C(0x9e3779b97f4a7c15);
    return (x >> 40) & 1;
}

/* Whether this call is to fail in the way that is armed: `kinds` are those that apply to it. */
static faults_kind strike(bk_os *os, unsigned kinds, const char *function) {
    faults_view *view = (faults_view *)os;
    faults *f = view->owner;
    int kind = atomic_load(&f->kind);
    if (view->quiet || kind == FAULTS_NONE || !(kinds & (1u << kind)))
        return FAULTS_NONE;
    long call = atomic_fetch_add(&f->calls, 1) + 1, at = atomic_load(&f->at);
    if (at != 0 ? call != at : !every_second(call))
        return FAULTS_NONE;
    atomic_store(&f->struck, function);
    atomic_fetch_add(&f->fired, 1);
    return (faults_kind)kind;
}

#define ON(kind) (1u << FAULTS_##kind)

static bool fails(bk_os *os, const char *function) {
    return strike(os, ON(ERROR), function) != FAULTS_NONE;
}

/* ---- Book-keeping of descriptors ------------------------------------------------------------- */

static const char *maker(bk_os *os, int fd) {
    return fd >= 0 && fd < FAULTS_FDS ? atomic_load(&owner(os)->fds[fd]) : NULL;
}

static int opened(bk_os *os, int fd, const char *function) {
    if (fd >= 0 && fd < FAULTS_FDS)
        atomic_store(&owner(os)->fds[fd], function);
    return fd;
}

/* Only a descriptor that is not open makes -EBADF, as we never inject that. */
static ssize_t seen(bk_os *os, int fd, ssize_t result, const char *function) {
    faults *f = owner(os);
    if (result == -EBADF && fd >= 0) {
        const char *none = NULL;
        atomic_fetch_add(&f->stale, 1);
        atomic_compare_exchange_strong(&f->first_stale, &none, function);
    }
    return result;
}

/* ---- Memory ---------------------------------------------------------------------------------- */

static void block_link(faults *f, struct faults_block *b, size_t n) {
    b->size = n;
    pthread_mutex_lock(&f->lock);
    b->next = f->blocks;
    b->link = &f->blocks;
    if (b->next != NULL)
        b->next->link = &b->next;
    f->blocks = b;
    pthread_mutex_unlock(&f->lock);
    atomic_fetch_add(&f->block_count, 1);
    size_t bytes = atomic_fetch_add(&f->bytes, n) + n;
    if (bytes > atomic_load(&f->bytes_peak))
        atomic_store(&f->bytes_peak, bytes);
}

static void block_unlink(faults *f, struct faults_block *b) {
    pthread_mutex_lock(&f->lock);
    *b->link = b->next;
    if (b->next != NULL)
        b->next->link = b->link;
    pthread_mutex_unlock(&f->lock);
    atomic_fetch_sub(&f->block_count, 1);
    atomic_fetch_sub(&f->bytes, b->size);
}

static void *f_resize(bk_os *os, void *old, size_t n) {
    faults *f = owner(os);
    struct faults_block *from = old == NULL ? NULL : (struct faults_block *)old - 1, *to = NULL;
    size_t had = from == NULL ? 0 : from->size;
    if (n > had && strike(os, ON(NO_MEMORY), "resize"))
        return NULL;
    if (n != 0) {
        if (n > SIZE_MAX - sizeof *to)
            return NULL;
        to = f->inner->resize(f->inner, NULL, sizeof *to + n);
        if (to == NULL)
            return NULL;
        if (had != 0)
            memcpy(to + 1, old, had < n ? had : n);
        if (n > had)
            memset((char *)(to + 1) + had, 0xa5, n - had);
        block_link(f, to, n);
    }
    if (from != NULL) {
        block_unlink(f, from);
        f->inner->resize(f->inner, from, 0);
    }
    return to == NULL ? NULL : to + 1;
}

/* ---- Time and chance ------------------------------------------------------------------------- */

static int64_t f_clock(bk_os *os) {
    return inner(os)->clock(inner(os)) + atomic_load(&owner(os)->skew);
}

static int64_t f_wall(bk_os *os) {
    return inner(os)->wall(inner(os));
}

static int f_random(bk_os *os, void *room, size_t n) {
    return fails(os, "random") ? -EIO : inner(os)->random(inner(os), room, n);
}

/* ---- Descriptors ----------------------------------------------------------------------------- */

/* What may go wrong when bytes are moved. A wake descriptor holds 8 bytes or a full pipe: it is
   never broken, and never without room unless it is readable. A file is never "not ready". */
static unsigned moving(bk_os *os, int fd, size_t n) {
    const char *by = maker(os, fd);
    if (by == MADE_BY_WAKE_OPEN)
        return ON(INTERRUPTED);
    unsigned kinds = ON(ERROR) | ON(INTERRUPTED);
    if (n > 1)
        kinds |= ON(SHORT);
    if (by != MADE_BY_OPEN)
        kinds |= ON(AGAIN);
    return kinds;
}

static size_t total(const struct iovec *v, int n) {
    size_t bytes = 0;
    for (int i = 0; i < n; i++)
        bytes += v[i].iov_len;
    return bytes;
}

/* The result of a struck call that moves bytes; 1: make it, for one byte. */
static int moved(faults_kind kind, int error) {
    switch (kind) {
    case FAULTS_SHORT:
        return 1;
    case FAULTS_INTERRUPTED:
        return -EINTR;
    case FAULTS_AGAIN:
        return -EAGAIN;
    default:
        return -error;
    }
}

static struct iovec first_byte(const struct iovec *v) {
    while (v->iov_len == 0)
        v++;
    return (struct iovec){v->iov_base, 1};
}

static ssize_t f_read(bk_os *os, int fd, void *room, size_t n) {
    faults_kind kind = strike(os, moving(os, fd, n), "read");
    if (kind != FAULTS_NONE) {
        int result = moved(kind, EIO);
        if (result < 0)
            return result;
        n = 1;
    }
    return seen(os, fd, inner(os)->read(inner(os), fd, room, n), "read");
}

static ssize_t f_write(bk_os *os, int fd, const struct iovec *v, int n) {
    faults_kind kind = strike(os, moving(os, fd, total(v, n)), "write");
    struct iovec one;
    if (kind != FAULTS_NONE) {
        int result = moved(kind, maker(os, fd) == MADE_BY_OPEN ? ENOSPC : EPIPE);
        if (result < 0)
            return result;
        one = first_byte(v);
        v = &one;
        n = 1;
    }
    return seen(os, fd, inner(os)->write(inner(os), fd, v, n), "write");
}

static ssize_t f_recv(bk_os *os, int fd, void *room, size_t n) {
    faults_kind kind = strike(os, moving(os, fd, n), "recv");
    if (kind != FAULTS_NONE) {
        int result = moved(kind, ECONNRESET);
        if (result < 0)
            return result;
        n = 1;
    }
    return seen(os, fd, inner(os)->recv(inner(os), fd, room, n), "recv");
}

static ssize_t f_send(bk_os *os, int fd, const struct iovec *v, int n) {
    faults_kind kind = strike(os, moving(os, fd, total(v, n)), "send");
    struct iovec one;
    if (kind != FAULTS_NONE) {
        int result = moved(kind, ENOBUFS);
        if (result < 0)
            return result;
        one = first_byte(v);
        v = &one;
        n = 1;
    }
    return seen(os, fd, inner(os)->send(inner(os), fd, v, n), "send");
}

/* A close that fails has closed all the same: who tries again closes somebody else's. */
static int f_close(bk_os *os, int fd) {
    bool failing = fails(os, "close");
    opened(os, fd, NULL);
    int result = (int)seen(os, fd, inner(os)->close(inner(os), fd), "close");
    return failing && result == 0 ? -EIO : result;
}

static int f_fd_kind(bk_os *os, int fd) {
    if (fails(os, "fd_kind"))
        return -EIO;
    return inner(os)->fd_kind(inner(os), fd); /* a question: -EBADF is an answer */
}

static int f_set_nonblocking(bk_os *os, int fd, int on) {
    if (fails(os, "set_nonblocking"))
        return -EPERM;
    return (int)seen(os, fd, inner(os)->set_nonblocking(inner(os), fd, on), "set_nonblocking");
}

static int opened_two(bk_os *os, int result, const int fds[2], const char *function) {
    if (result >= 0) {
        opened(os, fds[0], function);
        opened(os, fds[1], function);
    }
    return result;
}

static int f_pipe(bk_os *os, int ret_fds[2]) {
    if (fails(os, "pipe"))
        return -EMFILE;
    return opened_two(os, inner(os)->pipe(inner(os), ret_fds), ret_fds, "pipe");
}

static int f_wake_open(bk_os *os, int ret_fds[2]) {
    if (fails(os, "wake_open"))
        return -EMFILE;
    return opened_two(os, inner(os)->wake_open(inner(os), ret_fds), ret_fds, MADE_BY_WAKE_OPEN);
}

/* ---- Sockets --------------------------------------------------------------------------------- */

static int f_socket(bk_os *os, int family, int type, int protocol) {
    if (fails(os, "socket"))
        return -EMFILE;
    return opened(os, inner(os)->socket(inner(os), family, type, protocol), "socket");
}

static int f_socketpair(bk_os *os, int ret_fds[2]) {
    if (fails(os, "socketpair"))
        return -EMFILE;
    return opened_two(os, inner(os)->socketpair(inner(os), ret_fds), ret_fds, "socketpair");
}

static int f_bind(bk_os *os, int fd, const struct sockaddr *address, unsigned size) {
    if (fails(os, "bind"))
        return -EADDRINUSE;
    return (int)seen(os, fd, inner(os)->bind(inner(os), fd, address, size), "bind");
}

static int f_listen(bk_os *os, int fd, int backlog) {
    if (fails(os, "listen"))
        return -EADDRINUSE;
    return (int)seen(os, fd, inner(os)->listen(inner(os), fd, backlog), "listen");
}

static int f_accept(bk_os *os, int fd, struct sockaddr *ret_address, unsigned *size) {
    faults_kind kind = strike(os, ON(ERROR) | ON(INTERRUPTED) | ON(AGAIN), "accept");
    if (kind != FAULTS_NONE)
        return moved(kind, EMFILE);
    int result = inner(os)->accept(inner(os), fd, ret_address, size);
    return opened(os, (int)seen(os, fd, result, "accept"), "accept");
}

static int f_connect(bk_os *os, int fd, const struct sockaddr *address, unsigned size) {
    if (fails(os, "connect"))
        return -ECONNREFUSED;
    return (int)seen(os, fd, inner(os)->connect(inner(os), fd, address, size), "connect");
}

static int f_shutdown(bk_os *os, int fd, int how) {
    if (fails(os, "shutdown"))
        return -ENOBUFS; /* (-ENOTCONN says that there is nothing left to shut down) */
    return (int)seen(os, fd, inner(os)->shutdown(inner(os), fd, how), "shutdown");
}

static int f_getsockname(bk_os *os, int fd, struct sockaddr *ret_address, unsigned *size) {
    if (fails(os, "getsockname"))
        return -ENOBUFS;
    return (int)seen(os, fd, inner(os)->getsockname(inner(os), fd, ret_address, size),
                     "getsockname");
}

static int f_getpeername(bk_os *os, int fd, struct sockaddr *ret_address, unsigned *size) {
    if (fails(os, "getpeername"))
        return -ENOTCONN;
    return (int)seen(os, fd, inner(os)->getpeername(inner(os), fd, ret_address, size),
                     "getpeername");
}

static int f_getsockopt(bk_os *os, int fd, int level, int name, void *ret_value, unsigned *size) {
    if (fails(os, "getsockopt"))
        return -ENOBUFS;
    return (int)seen(os, fd, inner(os)->getsockopt(inner(os), fd, level, name, ret_value, size),
                     "getsockopt");
}

static int f_setsockopt(bk_os *os, int fd, int level, int name, const void *value, unsigned size) {
    if (fails(os, "setsockopt"))
        return -ENOPROTOOPT;
    return (int)seen(os, fd, inner(os)->setsockopt(inner(os), fd, level, name, value, size),
                     "setsockopt");
}

static int f_resolve(bk_os *os, const char *host, const char *service, const struct addrinfo *hints,
                     struct addrinfo **ret_list) {
    if (fails(os, "resolve"))
        return BK_ENAME;
    return inner(os)->resolve(inner(os), host, service, hints, ret_list);
}

static void f_resolve_free(bk_os *os, struct addrinfo *list) {
    inner(os)->resolve_free(inner(os), list);
}

/* ---- Readiness ------------------------------------------------------------------------------- */

static faults_kind strike_wait(bk_os *os, const char *function) {
    return strike(os, ON(ERROR) | ON(INTERRUPTED), function);
}

static int f_poll(bk_os *os, struct pollfd *fds, unsigned n, int64_t timeout_ns) {
    faults_kind kind = strike_wait(os, "poll");
    if (kind != FAULTS_NONE)
        return moved(kind, ENOMEM);
    return inner(os)->poll(inner(os), fds, n, timeout_ns);
}

static int f_select(bk_os *os, int n, void *reads, void *writes, void *excepts,
                    int64_t timeout_ns) {
    faults_kind kind = strike_wait(os, "select");
    if (kind != FAULTS_NONE)
        return moved(kind, ENOMEM);
    return inner(os)->select(inner(os), n, reads, writes, excepts, timeout_ns);
}

static int f_epoll_create(bk_os *os) {
    if (fails(os, "epoll_create"))
        return -EMFILE;
    return opened(os, inner(os)->epoll_create(inner(os)), "epoll_create");
}

/* Of removing, only a wrong descriptor can keep a kernel; adding takes memory. */
static int f_epoll_ctl(bk_os *os, int epoll, int op, int fd, struct epoll_event *event) {
#if defined(__linux__)
    if (op == EPOLL_CTL_ADD && fails(os, "epoll_ctl"))
        return -ENOSPC;
#endif
    return (int)seen(os, fd, inner(os)->epoll_ctl(inner(os), epoll, op, fd, event), "epoll_ctl");
}

static int f_epoll_wait(bk_os *os, int epoll, struct epoll_event *ret_events, int room,
                        int64_t timeout_ns) {
    faults_kind kind = strike_wait(os, "epoll_wait");
    if (kind != FAULTS_NONE)
        return moved(kind, ENOMEM);
    int result = inner(os)->epoll_wait(inner(os), epoll, ret_events, room, timeout_ns);
    return (int)seen(os, epoll, result, "epoll_wait");
}

/* ---- Files ----------------------------------------------------------------------------------- */

static int f_open(bk_os *os, const char *path, int flags, unsigned mode) {
    faults_kind kind = strike(os, ON(ERROR) | ON(INTERRUPTED), "open");
    if (kind != FAULTS_NONE)
        return moved(kind, EACCES);
    return opened(os, inner(os)->open(inner(os), path, flags, mode), MADE_BY_OPEN);
}

static int f_fsync(bk_os *os, int fd) {
    faults_kind kind = strike(os, ON(ERROR) | ON(INTERRUPTED), "fsync");
    if (kind != FAULTS_NONE)
        return moved(kind, ENOSPC);
    return (int)seen(os, fd, inner(os)->fsync(inner(os), fd), "fsync");
}

static int f_rename(bk_os *os, const char *from, const char *to) {
    return fails(os, "rename") ? -EIO : inner(os)->rename(inner(os), from, to);
}

static int f_link(bk_os *os, const char *from, const char *to) {
    return fails(os, "link") ? -EIO : inner(os)->link(inner(os), from, to);
}

static int f_unlink(bk_os *os, const char *path) {
    return fails(os, "unlink") ? -EIO : inner(os)->unlink(inner(os), path);
}

static int f_mkdir(bk_os *os, const char *path, unsigned mode) {
    return fails(os, "mkdir") ? -EACCES : inner(os)->mkdir(inner(os), path, mode);
}

static int f_chmod(bk_os *os, const char *path, unsigned mode) {
    return fails(os, "chmod") ? -EPERM : inner(os)->chmod(inner(os), path, mode);
}

static int f_file_info(bk_os *os, const char *path, bk_file_info *ret_info) {
    return fails(os, "file_info") ? -EACCES : inner(os)->file_info(inner(os), path, ret_info);
}

static int f_list(bk_os *os, const char *path, void (*each)(void *arg, const char *name),
                  void *arg) {
    return fails(os, "list") ? -EACCES : inner(os)->list(inner(os), path, each, arg);
}

static int f_sync_all(bk_os *os, int fd) {
    faults_kind kind = strike(os, ON(ERROR) | ON(INTERRUPTED), "sync_all");
    if (kind != FAULTS_NONE)
        return moved(kind, EIO);
    return (int)seen(os, fd, inner(os)->sync_all(inner(os), fd), "sync_all");
}

static int f_refuse(bk_os *os, int fd) {
    return fails(os, "refuse") ? -ENOMEM : inner(os)->refuse(inner(os), fd);
}

/* ---- Threads and signals --------------------------------------------------------------------- */

static int f_thread_start(bk_os *os, bk_fn fn, void *arg, bk_thread *ret_thread) {
    if (fails(os, "thread_start"))
        return -EAGAIN;
    int result = inner(os)->thread_start(inner(os), fn, arg, ret_thread);
    if (result >= 0)
        atomic_fetch_add(&owner(os)->thread_count, 1);
    return result;
}

/* Nothing can be done about a join that fails, and none does. */
static int f_thread_join(bk_os *os, bk_thread thread) {
    atomic_fetch_sub(&owner(os)->thread_count, 1);
    return inner(os)->thread_join(inner(os), thread);
}

static int f_signal_catch(bk_os *os, int signum, void (*handler)(int)) {
    if (handler != NULL && fails(os, "signal_catch"))
        return -EINVAL;
    return inner(os)->signal_catch(inner(os), signum, handler);
}

static int f_getpid(bk_os *os) {
    return inner(os)->getpid(inner(os));
}

/* A child has the injector's books as they were; it is expected to exit. */
static int f_fork(bk_os *os) {
    return fails(os, "fork") ? -EAGAIN : inner(os)->fork(inner(os));
}

static void f_exit(bk_os *os, int status) {
    inner(os)->exit(inner(os), status);
}

static int f_hold_signals(bk_os *os, int on) {
    return inner(os)->hold_signals(inner(os), on);
}

static void *f_library(bk_os *os, const char *const *names, int loaded_only) {
    return fails(os, "library") ? NULL : inner(os)->library(inner(os), names, loaded_only);
}

static void *f_symbol(bk_os *os, void *library, const char *name) {
    return inner(os)->symbol(inner(os), library, name);
}

/* ---- Programs -------------------------------------------------------------------------------- */

static int f_spawn(bk_os *os, const char *const *argv, int stdin_fd, int stdout_fd) {
    return fails(os, "spawn") ? -EAGAIN : inner(os)->spawn(inner(os), argv, stdin_fd, stdout_fd);
}

/* It cannot fail otherwise: whose child it is does not change. */
static int f_waitpid(bk_os *os, int pid, int wait, int *ret_status) {
    if (strike(os, ON(INTERRUPTED), "waitpid") != FAULTS_NONE)
        return -EINTR;
    return inner(os)->waitpid(inner(os), pid, wait, ret_status);
}

static int f_kill(bk_os *os, int pid, int signum) {
    return fails(os, "kill") ? -EPERM : inner(os)->kill(inner(os), pid, signum);
}

static const char *f_environment(bk_os *os, const char *name) {
    return inner(os)->environment(inner(os), name);
}

static int f_close_on_exec(bk_os *os, int fd) {
    if (fails(os, "close_on_exec"))
        return -EPERM;
    return (int)seen(os, fd, inner(os)->close_on_exec(inner(os), fd), "close_on_exec");
}

/* ---- Datagrams ------------------------------------------------------------------------------- */

/* A datagram moves whole or not at all; one call may move fewer of them. */
static unsigned moving_many(int n) {
    return ON(ERROR) | ON(INTERRUPTED) | ON(AGAIN) | (n > 1 ? ON(SHORT) : 0);
}

static int f_recv_many(bk_os *os, int fd, bk_message *messages, int n) {
    faults_kind kind = strike(os, moving_many(n), "recv_many");
    int result = kind == FAULTS_NONE ? n : moved(kind, ECONNREFUSED);
    if (result > 0)
        result = inner(os)->recv_many(inner(os), fd, messages, result);
    return (int)seen(os, fd, result, "recv_many");
}

static int f_send_many(bk_os *os, int fd, const bk_message *messages, int n) {
    faults_kind kind = strike(os, moving_many(n), "send_many");
    int result = kind == FAULTS_NONE ? n : moved(kind, ENETUNREACH);
    if (result > 0)
        result = inner(os)->send_many(inner(os), fd, messages, result);
    return (int)seen(os, fd, result, "send_many");
}

static ssize_t f_recv_fds(bk_os *os, int fd, void *room, size_t n, int *ret_fds, int *count) {
    faults_kind kind = strike(os, moving(os, fd, n), "recv_fds");
    if (kind != FAULTS_NONE) {
        int result = moved(kind, ECONNRESET);
        if (result < 0)
            return result;
        n = 1;
    }
    return seen(os, fd, inner(os)->recv_fds(inner(os), fd, room, n, ret_fds, count), "recv_fds");
}

/* ---- The table ------------------------------------------------------------------------------- */

static const bk_os TABLE = {
    .size = sizeof(bk_os),
    .name = "faults",
    .resize = f_resize,
    .clock = f_clock,
    .wall = f_wall,
    .random = f_random,
    .read = f_read,
    .write = f_write,
    .recv = f_recv,
    .send = f_send,
    .close = f_close,
    .fd_kind = f_fd_kind,
    .set_nonblocking = f_set_nonblocking,
    .pipe = f_pipe,
    .wake_open = f_wake_open,
    .socket = f_socket,
    .socketpair = f_socketpair,
    .bind = f_bind,
    .listen = f_listen,
    .accept = f_accept,
    .connect = f_connect,
    .shutdown = f_shutdown,
    .getsockname = f_getsockname,
    .getpeername = f_getpeername,
    .getsockopt = f_getsockopt,
    .setsockopt = f_setsockopt,
    .resolve = f_resolve,
    .resolve_free = f_resolve_free,
    .poll = f_poll,
    .select = f_select,
    .epoll_create = f_epoll_create,
    .epoll_ctl = f_epoll_ctl,
    .epoll_wait = f_epoll_wait,
    .open = f_open,
    .fsync = f_fsync,
    .rename = f_rename,
    .link = f_link,
    .unlink = f_unlink,
    .mkdir = f_mkdir,
    .chmod = f_chmod,
    .file_info = f_file_info,
    .thread_start = f_thread_start,
    .thread_join = f_thread_join,
    .signal_catch = f_signal_catch,
    .getpid = f_getpid,
    .fork = f_fork,
    .waitpid = f_waitpid,
    .kill = f_kill,
    .exit = f_exit,
    .hold_signals = f_hold_signals,
    .library = f_library,
    .symbol = f_symbol,
    .spawn = f_spawn,
    .environment = f_environment,
    .close_on_exec = f_close_on_exec,
    .recv_many = f_recv_many,
    .send_many = f_send_many,
    .recv_fds = f_recv_fds,
    .list = f_list,
    .sync_all = f_sync_all,
    .refuse = f_refuse,
};

void faults_open(faults *f, bk_os *under) {
    memset(f, 0, sizeof *f);
    f->inner = under != NULL ? under : bk_os_default();
    f->loud = (faults_view){TABLE, f, false};
    if (!BK_HAS(f->inner, poll))
        f->loud.os.poll = NULL;
    if (!BK_HAS(f->inner, select))
        f->loud.os.select = NULL;
    if (!BK_HAS(f->inner, epoll_create)) {
        f->loud.os.epoll_create = NULL;
        f->loud.os.epoll_ctl = NULL;
        f->loud.os.epoll_wait = NULL;
    }
    if (!BK_HAS(f->inner, recv_many) || !BK_HAS(f->inner, send_many))
        f->loud.os.recv_many = NULL;
    if (!BK_HAS(f->inner, recv_fds))
        f->loud.os.recv_fds = NULL;
    if (!BK_HAS(f->inner, sync_all))
        f->loud.os.sync_all = NULL;
    if (!BK_HAS(f->inner, refuse))
        f->loud.os.refuse = NULL;
    f->quiet = f->loud;
    f->quiet.quiet = true;
    pthread_mutex_init(&f->lock, NULL);
}

void faults_close(faults *f) {
    pthread_mutex_destroy(&f->lock);
}

bk_os *faults_os(faults *f) {
    return &f->loud.os;
}

bk_os *faults_quiet(faults *f) {
    return &f->quiet.os;
}

void faults_arm(faults *f, faults_kind kind, long n) {
    atomic_store(&f->kind, FAULTS_NONE);
    atomic_store(&f->at, n);
    atomic_store(&f->calls, 0);
    atomic_store(&f->fired, 0);
    atomic_store(&f->struck, NULL);
    atomic_store(&f->kind, kind);
}

long faults_disarm(faults *f) {
    atomic_store(&f->kind, FAULTS_NONE);
    return atomic_load(&f->calls);
}

long faults_fired(const faults *f) {
    return atomic_load(&f->fired);
}

const char *faults_struck(const faults *f) {
    const char *function = atomic_load(&f->struck);
    return function != NULL ? function : "nothing";
}

const char *faults_kind_name(faults_kind kind) {
    static const char *const names[FAULTS_KINDS] = {"none",        "error",     "short",
                                                    "interrupted", "no memory", "again"};
    return names[kind];
}

void faults_pass_time(faults *f, int64_t ns) {
    atomic_fetch_add(&f->skew, ns);
}

int faults_leaks(faults *f, faults_report *ret_report) {
    faults_report r = {
        .blocks = atomic_load(&f->block_count),
        .bytes = atomic_load(&f->bytes),
        .threads = atomic_load(&f->thread_count),
        .first_descriptor = -1,
        .stale = atomic_load(&f->stale),
        .first_stale = atomic_load(&f->first_stale),
    };
    for (int fd = 0; fd < FAULTS_FDS; fd++) {
        const char *by = atomic_load(&f->fds[fd]);
        if (by != NULL && r.descriptors++ == 0) {
            r.first_descriptor = fd;
            r.opened_by = by;
        }
    }
    if (ret_report != NULL)
        *ret_report = r;
    return (r.blocks != 0) + (r.threads != 0) + (r.descriptors != 0) + (r.stale != 0);
}

void faults_forget(faults *f) {
    pthread_mutex_lock(&f->lock);
    for (struct faults_block *b = f->blocks, *next; b != NULL; b = next) {
        next = b->next; /* each becomes a list of its own: it may be freed yet */
        b->next = NULL;
        b->link = &b->next;
    }
    f->blocks = NULL;
    pthread_mutex_unlock(&f->lock);
    atomic_store(&f->block_count, 0);
    atomic_store(&f->bytes, 0);
    atomic_store(&f->thread_count, 0);
    atomic_store(&f->stale, 0);
    atomic_store(&f->first_stale, NULL);
    for (int fd = 0; fd < FAULTS_FDS; fd++)
        atomic_store(&f->fds[fd], NULL);
}
