/*
 * posix.c: the operating system's table for POSIX systems, and locks. Nothing else in the core
 * includes a system's headers to call it. What only Linux has is under __linux__; the rest is
 * POSIX.1-2008. Called by all of the core through bk_loop.os.
 */
#define _GNU_SOURCE
#include "core/limits.h"
#include "core/os/os.h"

#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#if defined(__linux__)
#include <linux/filter.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/utsname.h>
#include <sys/vfs.h>
#endif

#define RESULT(call)                                                                               \
    do {                                                                                           \
        int result_ = (int)(call);                                                                 \
        return result_ < 0 ? -errno : result_;                                                     \
    } while (0)

#define RESULT_SIZE(call)                                                                          \
    do {                                                                                           \
        ssize_t result_ = (call);                                                                  \
        return result_ < 0 ? -errno : result_;                                                     \
    } while (0)

/* ---- Memory, time, chance ---- */

static void *posix_resize(bk_os *os, void *old, size_t n) {
    (void)os;
    if (n == 0) {
        free(old);
        return NULL;
    }
    return realloc(old, n);
}

static int64_t read_clock(clockid_t id) {
    struct timespec t;
    clock_gettime(id, &t);
    return t.tv_sec * BK_SECOND + t.tv_nsec;
}

static int64_t posix_clock(bk_os *os) {
    (void)os;
    return read_clock(CLOCK_MONOTONIC);
}

static int64_t posix_wall(bk_os *os) {
    (void)os;
    return read_clock(CLOCK_REALTIME);
}

static int posix_random(bk_os *os, void *room, size_t n) {
    (void)os;
#if defined(__linux__)
    ssize_t got = getrandom(room, n, 0);
    return got < 0 ? -errno : (size_t)got == n ? 0 : -EIO;
#else
    arc4random_buf(room, n);
    return 0;
#endif
}

/* ---- Descriptors ---- */

static ssize_t posix_read(bk_os *os, int fd, void *room, size_t n) {
    (void)os;
    RESULT_SIZE(read(fd, room, n));
}

static ssize_t posix_write(bk_os *os, int fd, const struct iovec *v, int n) {
    (void)os;
    RESULT_SIZE(n == 1 ? write(fd, v->iov_base, v->iov_len) : writev(fd, v, n));
}

#if !defined(MSG_NOSIGNAL)
#define MSG_NOSIGNAL 0 /* there, SO_NOSIGPIPE is set when the socket is made */
#endif

/* A socket may block for somebody else who waits in it: we do not. */
static ssize_t posix_recv(bk_os *os, int fd, void *room, size_t n) {
    (void)os;
    RESULT_SIZE(recv(fd, room, n, MSG_DONTWAIT));
}

static ssize_t posix_send(bk_os *os, int fd, const struct iovec *v, int n) {
    (void)os;
    if (n == 1)
        RESULT_SIZE(send(fd, v->iov_base, v->iov_len, MSG_NOSIGNAL | MSG_DONTWAIT));
    struct msghdr message = {.msg_iov = (struct iovec *)v, .msg_iovlen = (size_t)n};
    RESULT_SIZE(sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT));
}

static int posix_close(bk_os *os, int fd) {
    (void)os;
    RESULT(close(fd));
}

static int posix_fd_kind(bk_os *os, int fd) {
    struct stat info;
    (void)os;
    if (fstat(fd, &info) < 0)
        return -errno;
    if (S_ISSOCK(info.st_mode))
        return BK_FD_SOCKET;
    if (S_ISFIFO(info.st_mode))
        return BK_FD_PIPE;
    if (S_ISREG(info.st_mode) || S_ISDIR(info.st_mode) || S_ISBLK(info.st_mode))
        return BK_FD_FILE;
    return isatty(fd) ? BK_FD_TTY : BK_FD_OTHER;
}

static int posix_set_nonblocking(bk_os *os, int fd, int on) {
    (void)os;
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0)
        return -errno;
    int was = (flags & O_NONBLOCK) != 0;
    if (was != (on != 0) && fcntl(fd, F_SETFL, flags ^ O_NONBLOCK) < 0)
        return -errno;
    return was;
}

#if !defined(__linux__)
/* On failure the descriptor is closed. */
static int make_quiet(int fd) {
    if (fcntl(fd, F_SETFD, FD_CLOEXEC) < 0 || fcntl(fd, F_SETFL, O_NONBLOCK) < 0) {
        int code = -errno;
        close(fd);
        return code;
    }
#if defined(SO_NOSIGPIPE)
    int on = 1;
    (void)setsockopt(fd, SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof on);
#endif
    return fd;
}

static int make_pair_quiet(int fds[2]) {
    int code = make_quiet(fds[0]);
    if (code < 0) {
        close(fds[1]);
        return code;
    }
    code = make_quiet(fds[1]);
    if (code < 0)
        close(fds[0]);
    return code < 0 ? code : 0;
}
#endif

static int posix_pipe(bk_os *os, int ret_fds[2]) {
    (void)os;
#if defined(__linux__)
    RESULT(pipe2(ret_fds, O_CLOEXEC | O_NONBLOCK));
#else
    return pipe(ret_fds) < 0 ? -errno : make_pair_quiet(ret_fds);
#endif
}

static int posix_wake_open(bk_os *os, int ret_fds[2]) {
#if defined(__linux__)
    (void)os;
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fd < 0)
        return -errno;
    ret_fds[0] = ret_fds[1] = fd;
    return 0;
#else
    return posix_pipe(os, ret_fds);
#endif
}

/* ---- Sockets ---- */

static int posix_socket(bk_os *os, int family, int type, int protocol) {
    (void)os;
#if defined(__linux__)
    RESULT(socket(family, type | SOCK_CLOEXEC | SOCK_NONBLOCK, protocol));
#else
    int fd = socket(family, type, protocol);
    return fd < 0 ? -errno : make_quiet(fd);
#endif
}

static int posix_socketpair(bk_os *os, int ret_fds[2]) {
    (void)os;
#if defined(__linux__)
    RESULT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ret_fds));
#else
    return socketpair(AF_UNIX, SOCK_STREAM, 0, ret_fds) < 0 ? -errno : make_pair_quiet(ret_fds);
#endif
}

static int posix_bind(bk_os *os, int fd, const struct sockaddr *address, unsigned size) {
    (void)os;
    RESULT(bind(fd, address, size));
}

static int posix_listen(bk_os *os, int fd, int backlog) {
    (void)os;
    RESULT(listen(fd, backlog));
}

static int posix_accept(bk_os *os, int fd, struct sockaddr *ret_address, unsigned *size) {
    (void)os;
#if defined(__linux__)
    RESULT(accept4(fd, ret_address, size, SOCK_CLOEXEC | SOCK_NONBLOCK));
#else
    int got = accept(fd, ret_address, size);
    return got < 0 ? -errno : make_quiet(got);
#endif
}

static int posix_connect(bk_os *os, int fd, const struct sockaddr *address, unsigned size) {
    (void)os;
    RESULT(connect(fd, address, size));
}

static int posix_shutdown(bk_os *os, int fd, int how) {
    (void)os;
    RESULT(shutdown(fd, how));
}

static int posix_getsockname(bk_os *os, int fd, struct sockaddr *ret_address, unsigned *size) {
    (void)os;
    RESULT(getsockname(fd, ret_address, size));
}

static int posix_getpeername(bk_os *os, int fd, struct sockaddr *ret_address, unsigned *size) {
    (void)os;
    RESULT(getpeername(fd, ret_address, size));
}

static int posix_getsockopt(bk_os *os, int fd, int level, int name, void *ret_value,
                            unsigned *size) {
    (void)os;
    RESULT(getsockopt(fd, level, name, ret_value, size));
}

static int posix_setsockopt(bk_os *os, int fd, int level, int name, const void *value,
                            unsigned size) {
    (void)os;
    RESULT(setsockopt(fd, level, name, value, size));
}

/* EAI_… codes become BK_ENAME, but for those that have an errno of their own. */
static int posix_resolve(bk_os *os, const char *host, const char *service,
                         const struct addrinfo *hints, struct addrinfo **ret_list) {
    (void)os;
    int code = getaddrinfo(host, service, hints, ret_list);
    if (code == 0)
        return 0;
    return code == EAI_MEMORY ? -ENOMEM : code == EAI_SYSTEM ? -errno : BK_ENAME;
}

static void posix_resolve_free(bk_os *os, struct addrinfo *list) {
    (void)os;
    freeaddrinfo(list);
}

/* ---- Readiness ---- */

/* Whole milliseconds, rounded up: a wait must not end early. */
static int to_milliseconds(int64_t ns) {
    if (ns <= 0)
        return ns < 0 ? -1 : 0;
    int64_t ms = (ns - 1) / BK_MILLISECOND + 1;
    return ms > INT32_MAX ? INT32_MAX : (int)ms;
}

static int posix_poll(bk_os *os, struct pollfd *fds, unsigned n, int64_t timeout_ns) {
    (void)os;
    RESULT(poll(fds, n, to_milliseconds(timeout_ns)));
}

/* Some systems refuse more than 100,000,000 seconds; to wake once a day costs nothing. */
#define SELECT_MAX_US (INT64_C(86400) * 1000000)

static int posix_select(bk_os *os, int n, void *reads, void *writes, void *excepts,
                        int64_t timeout_ns) {
    (void)os;
    struct timeval t, *timeout = NULL;
    if (timeout_ns >= 0) {
        int64_t us = timeout_ns / 1000 + (timeout_ns % 1000 != 0);
        if (us > SELECT_MAX_US)
            us = SELECT_MAX_US;
        t = (struct timeval){.tv_sec = us / 1000000, .tv_usec = us % 1000000};
        timeout = &t;
    }
    RESULT(select(n, reads, writes, excepts, timeout));
}

#if defined(__linux__)
static int posix_epoll_create(bk_os *os) {
    (void)os;
    RESULT(epoll_create1(EPOLL_CLOEXEC));
}

static int posix_epoll_ctl(bk_os *os, int epoll, int op, int fd, struct epoll_event *event) {
    (void)os;
    RESULT(epoll_ctl(epoll, op, fd, event));
}

static int posix_epoll_wait(bk_os *os, int epoll, struct epoll_event *ret_events, int room,
                            int64_t timeout_ns) {
    (void)os;
    RESULT(epoll_wait(epoll, ret_events, room, to_milliseconds(timeout_ns)));
}
#endif

/* ---- Files ---- */

static int posix_open(bk_os *os, const char *path, int flags, unsigned mode) {
    (void)os;
    RESULT(open(path, flags | O_CLOEXEC, (mode_t)mode));
}

static int posix_fsync(bk_os *os, int fd) {
    (void)os;
    RESULT(fsync(fd));
}

static int posix_rename(bk_os *os, const char *from, const char *to) {
    (void)os;
    RESULT(rename(from, to));
}

static int posix_link(bk_os *os, const char *from, const char *to) {
    (void)os;
    RESULT(link(from, to));
}

static int posix_unlink(bk_os *os, const char *path) {
    (void)os;
    RESULT(unlink(path));
}

static int posix_mkdir(bk_os *os, const char *path, unsigned mode) {
    (void)os;
    RESULT(mkdir(path, (mode_t)mode));
}

static int posix_chmod(bk_os *os, const char *path, unsigned mode) {
    (void)os;
    RESULT(chmod(path, (mode_t)mode));
}

static int posix_file_info(bk_os *os, const char *path, bk_file_info *ret_info) {
    (void)os;
    struct stat info;
    if (lstat(path, &info) < 0)
        return -errno;
    *ret_info = (bk_file_info){.is_socket = S_ISSOCK(info.st_mode),
                               .is_directory = S_ISDIR(info.st_mode),
                               .bytes = info.st_size,
                               .device = (int64_t)info.st_dev,
                               .inode = (int64_t)info.st_ino,
                               .modified = (int64_t)info.st_mtime * BK_SECOND};
    return 0;
}

static int posix_list(bk_os *os, const char *path, void (*each)(void *arg, const char *name),
                      void *arg) {
    (void)os;
    DIR *dir = opendir(path);
    if (dir == NULL)
        return -errno;
    struct dirent *entry;
    while (errno = 0, (entry = readdir(dir)) != NULL)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            each(arg, entry->d_name);
    int code = -errno;
    closedir(dir);
    return code;
}

#if defined(__linux__)
/* Where syncfs() is known to mean it: it has told of failures since Linux 5.8, and network's and
   user space's file systems need not have passed it on. */
static int posix_sync_all(bk_os *os, int fd) {
    (void)os;
    static const unsigned long known[] = {0xef53 /* ext4 */, 0x58465342 /* XFS */,
                                          0x9123683e /* Btrfs */};
    struct utsname system;
    struct statfs info;
    int major, minor;
    if (uname(&system) < 0 || sscanf(system.release, "%d.%d", &major, &minor) != 2 || major < 5 ||
        (major == 5 && minor < 8) || fstatfs(fd, &info) < 0)
        return -ENOTSUP;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if ((unsigned long)info.f_type == known[i])
            RESULT(syncfs(fd));
    return -ENOTSUP;
}
#endif

/* ---- Threads and signals ---- */

typedef struct start {
    bk_os *os;
    bk_fn fn;
    void *arg;
} start;

static void *thread_main(void *arg) {
    start s = *(start *)arg;
    bk_dealloc(s.os, arg);
    s.fn(s.arg);
    return NULL;
}

/* Signals are for the program's own threads: a worker would swallow those meant to end a wait. */
static int posix_thread_start(bk_os *os, bk_fn fn, void *arg, bk_thread *ret_thread) {
    start *s = bk_alloc(os, sizeof *s);
    if (s == NULL)
        return -ENOMEM;
    *s = (start){os, fn, arg};
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_t thread;
    int code = pthread_create(&thread, NULL, thread_main, s);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (code != 0) {
        bk_dealloc(os, s);
        return -code;
    }
    ret_thread->id = (uintptr_t)thread;
    return 0;
}

static int posix_thread_join(bk_os *os, bk_thread thread) {
    (void)os;
    return -pthread_join((pthread_t)thread.id, NULL);
}

/* What a signal did before we caught it, to be put back: the one state of a process, not a loop. */
static struct sigaction earlier[BK_SIGNALS];
static volatile sig_atomic_t caught[BK_SIGNALS];

static int posix_signal_catch(bk_os *os, int signum, void (*handler)(int)) {
    (void)os;
    if (signum <= 0 || signum >= BK_SIGNALS)
        return -EINVAL;
    if (handler == NULL) {
        if (!caught[signum])
            return 0;
        caught[signum] = 0;
        RESULT(sigaction(signum, &earlier[signum], NULL));
    }
    struct sigaction action = {.sa_handler = handler, .sa_flags = 0}, before;
    sigemptyset(&action.sa_mask);
    if (sigaction(signum, &action, &before) < 0)
        return -errno;
    if (!caught[signum])
        earlier[signum] = before;
    caught[signum] = 1;
    return 0;
}

static int posix_getpid(bk_os *os) {
    (void)os;
    return (int)getpid();
}

/* ---- Processes ---- */

static int posix_fork(bk_os *os) {
    (void)os;
    fflush(NULL); /* or it would be written twice */
    RESULT(fork());
}

static int posix_waitpid(bk_os *os, int pid, int wait, int *ret_status) {
    (void)os;
    int status;
    pid_t got = waitpid(pid, &status, wait ? 0 : WNOHANG);
    if (got <= 0)
        return got < 0 ? -errno : 0;
    *ret_status = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
    return 1;
}

static int posix_kill(bk_os *os, int pid, int signum) {
    (void)os;
    if (pid >= -1 && pid <= 1) /* which would mean others */
        return -EINVAL;
    RESULT(kill(pid, signum));
}

static void posix_exit(bk_os *os, int status) {
    (void)os;
    fflush(NULL);
    _exit(status);
}

static _Thread_local sigset_t before_hold;

static int posix_hold_signals(bk_os *os, int on) {
    sigset_t all;
    (void)os;
    sigfillset(&all);
    return -(on ? pthread_sigmask(SIG_SETMASK, &all, &before_hold)
                : pthread_sigmask(SIG_SETMASK, &before_hold, NULL));
}

/* ---- Locks ---- */

struct bk_lock {
    pthread_mutex_t mutex;
    pthread_cond_t condition;
};

bk_lock *bk_lock_new(bk_os *os) {
    bk_lock *lock = bk_alloc(os, sizeof *lock);
    if (lock == NULL)
        return NULL;
    pthread_mutex_init(&lock->mutex, NULL);
    pthread_cond_init(&lock->condition, NULL);
    return lock;
}

void bk_lock_free(bk_os *os, bk_lock *lock) {
    if (lock == NULL)
        return;
    pthread_cond_destroy(&lock->condition);
    pthread_mutex_destroy(&lock->mutex);
    bk_dealloc(os, lock);
}

/* To destroy one that is held is not allowed; its memory alone goes. */
void bk_lock_abandon(bk_os *os, bk_lock *lock) {
    bk_dealloc(os, lock);
}

void bk_lock_take(bk_lock *lock) {
    pthread_mutex_lock(&lock->mutex);
}

void bk_lock_drop(bk_lock *lock) {
    pthread_mutex_unlock(&lock->mutex);
}

void bk_lock_wait(bk_lock *lock) {
    pthread_cond_wait(&lock->condition, &lock->mutex);
}

void bk_lock_signal(bk_lock *lock) {
    pthread_cond_signal(&lock->condition);
}

void bk_lock_broadcast(bk_lock *lock) {
    pthread_cond_broadcast(&lock->condition);
}

static bk_lock lock_of_process = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER};

static void take_for_fork(void) {
    bk_lock_take(&lock_of_process);
}

static void drop_after_fork(void) {
    bk_lock_drop(&lock_of_process);
}

static void guard_forks(void) {
    (void)pthread_atfork(take_for_fork, drop_after_fork, drop_after_fork);
}

bk_lock *bk_lock_of_process(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, guard_forks);
    return &lock_of_process;
}

/* ---- Libraries ---- */

static void *posix_library(bk_os *os, const char *const *names, int loaded_only) {
    (void)os;
    void *library = NULL;
    for (; *names != NULL && library == NULL; names++)
        library = dlopen(*names, RTLD_NOW | RTLD_LOCAL | (loaded_only ? RTLD_NOLOAD : 0));
    return library;
}

static void *posix_symbol(bk_os *os, void *library, const char *name) {
    (void)os;
    return dlsym(library, name);
}

/* ---- Programs ---- */

static int spawn_with(posix_spawn_file_actions_t *actions, posix_spawnattr_t *attributes,
                      const char *const *argv, int in, int out) {
    extern char **environ;
    sigset_t none, defaults;
    pid_t pid;
    sigemptyset(&none);
    sigemptyset(&defaults);
    sigaddset(&defaults, SIGPIPE);
    sigaddset(&defaults, SIGXFSZ); /* Python ignores both */
    int code = posix_spawnattr_setsigmask(attributes, &none);
    if (code == 0)
        code = posix_spawnattr_setsigdefault(attributes, &defaults);
    if (code == 0)
        code = posix_spawnattr_setflags(attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF |
                                                        POSIX_SPAWN_SETPGROUP);
    if (code == 0)
        code = posix_spawn_file_actions_adddup2(actions, in, 0);
    if (code == 0)
        code = posix_spawn_file_actions_adddup2(actions, out, 1);
    if (code == 0)
        code = posix_spawn(&pid, argv[0], actions, attributes, (char *const *)argv, environ);
    return code == 0 ? (int)pid : -code;
}

static int spawn_from(const char *const *argv, int in, int out) {
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    int code = -posix_spawn_file_actions_init(&actions);
    if (code < 0)
        return code;
    code = -posix_spawnattr_init(&attributes);
    if (code >= 0) {
        code = spawn_with(&actions, &attributes, argv, in, out);
        posix_spawnattr_destroy(&attributes);
    }
    posix_spawn_file_actions_destroy(&actions);
    return code;
}

/* Its output may have got the number of our standard input, if that is closed: out of the way. */
static int posix_spawn_program(bk_os *os, const char *const *argv, int stdin_fd, int stdout_fd) {
    (void)os;
    if (stdout_fd != 0)
        return spawn_from(argv, stdin_fd, stdout_fd);
    int moved = fcntl(stdout_fd, F_DUPFD_CLOEXEC, 3);
    if (moved < 0)
        return -errno;
    int code = spawn_from(argv, stdin_fd, moved);
    close(moved);
    return code;
}

static const char *posix_environment(bk_os *os, const char *name) {
    (void)os;
    return getenv(name);
}

static int posix_close_on_exec(bk_os *os, int fd) {
    (void)os;
    RESULT(fcntl(fd, F_SETFD, FD_CLOEXEC));
}

/* ---- Datagrams ---- */

enum { MESSAGES = BK_DATAGRAMS_PER_CALL };

static struct msghdr header_of(const bk_message *m, struct iovec *v) {
    *v = (struct iovec){m->data, m->size};
    return (struct msghdr){.msg_name = m->address_size > 0 ? m->address : NULL,
                           .msg_namelen = m->address_size,
                           .msg_iov = v,
                           .msg_iovlen = 1};
}

#if defined(__linux__)
static int posix_recv_many(bk_os *os, int fd, bk_message *messages, int n) {
    struct mmsghdr headers[MESSAGES];
    struct iovec v[MESSAGES];
    (void)os;
    n = n < MESSAGES ? n : MESSAGES;
    for (int i = 0; i < n; i++)
        headers[i].msg_hdr = header_of(&messages[i], &v[i]);
    int got = recvmmsg(fd, headers, (unsigned)n, MSG_DONTWAIT, NULL);
    for (int i = 0; i < got; i++) {
        messages[i].size = headers[i].msg_len;
        messages[i].address_size = headers[i].msg_hdr.msg_namelen;
    }
    return got < 0 ? -errno : got;
}

static int posix_send_many(bk_os *os, int fd, const bk_message *messages, int n) {
    struct mmsghdr headers[MESSAGES];
    struct iovec v[MESSAGES];
    (void)os;
    n = n < MESSAGES ? n : MESSAGES;
    for (int i = 0; i < n; i++)
        headers[i].msg_hdr = header_of(&messages[i], &v[i]);
    RESULT(sendmmsg(fd, headers, (unsigned)n, MSG_NOSIGNAL | MSG_DONTWAIT));
}
#else
static int posix_recv_many(bk_os *os, int fd, bk_message *messages, int n) {
    (void)os;
    for (int i = 0; i < n; i++) {
        struct iovec v;
        struct msghdr header = header_of(&messages[i], &v);
        ssize_t got = recvmsg(fd, &header, MSG_DONTWAIT);
        if (got < 0)
            return i > 0 ? i : -errno;
        messages[i].size = (size_t)got;
        messages[i].address_size = header.msg_namelen;
    }
    return n;
}

static int posix_send_many(bk_os *os, int fd, const bk_message *messages, int n) {
    (void)os;
    for (int i = 0; i < n; i++) {
        struct iovec v;
        struct msghdr header = header_of(&messages[i], &v);
        if (sendmsg(fd, &header, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
            return i > 0 ? i : -errno;
    }
    return n;
}
#endif

/* ---- Descriptors with bytes ---- */

enum { FDS_AT_ONCE = 253 }; /* Linux lets one message have so many */

#if !defined(MSG_CMSG_CLOEXEC)
#define MSG_CMSG_CLOEXEC 0 /* each is marked below */
#endif

static void take_fds(const struct msghdr *header, int *ret_fds, int room, int *count) {
    *count = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(header); c != NULL;
         c = CMSG_NXTHDR((struct msghdr *)(uintptr_t)header, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < n; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
            if (*count == room) {
                close(fd);
                continue;
            }
            if (MSG_CMSG_CLOEXEC == 0)
                (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
            ret_fds[(*count)++] = fd;
        }
    }
}

static ssize_t posix_recv_fds(bk_os *os, int fd, void *room, size_t n, int *ret_fds, int *count) {
    union {
        struct cmsghdr head;
        char bytes[CMSG_SPACE(FDS_AT_ONCE * sizeof(int))];
    } control;
    struct iovec v = {room, n};
    struct msghdr header = {
        .msg_iov = &v, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    (void)os;
    ssize_t got = recvmsg(fd, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (got < 0)
        return -errno;
    take_fds(&header, ret_fds, *count, count);
    return got;
}

#if defined(__linux__)
/* Of what comes in by TCP, whatever begins a connection (SYN without ACK) is dropped. */
static int posix_refuse(bk_os *os, int fd) {
    enum { FLAGS = 13, SYN = 0x02, ACK = 0x10 }; /* RFC 9293, 3.1 */
    static struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_B | BPF_ABS, FLAGS), BPF_STMT(BPF_ALU | BPF_AND | BPF_K, SYN | ACK),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYN, 0, 1), BPF_STMT(BPF_RET | BPF_K, 0),
        BPF_STMT(BPF_RET | BPF_K, UINT32_MAX)};
    struct sock_fprog program = {sizeof code / sizeof *code, code};
    (void)os;
    RESULT(setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program));
}
#endif

static bk_os posix = {
    .size = sizeof(bk_os),
    .name = "posix",
    .resize = posix_resize,
    .clock = posix_clock,
    .wall = posix_wall,
    .random = posix_random,
    .read = posix_read,
    .write = posix_write,
    .recv = posix_recv,
    .send = posix_send,
    .close = posix_close,
    .fd_kind = posix_fd_kind,
    .set_nonblocking = posix_set_nonblocking,
    .pipe = posix_pipe,
    .wake_open = posix_wake_open,
    .socket = posix_socket,
    .socketpair = posix_socketpair,
    .bind = posix_bind,
    .listen = posix_listen,
    .accept = posix_accept,
    .connect = posix_connect,
    .shutdown = posix_shutdown,
    .getsockname = posix_getsockname,
    .getpeername = posix_getpeername,
    .getsockopt = posix_getsockopt,
    .setsockopt = posix_setsockopt,
    .resolve = posix_resolve,
    .resolve_free = posix_resolve_free,
    .poll = posix_poll,
    .select = posix_select,
#if defined(__linux__)
    .epoll_create = posix_epoll_create,
    .epoll_ctl = posix_epoll_ctl,
    .epoll_wait = posix_epoll_wait,
#endif
    .open = posix_open,
    .fsync = posix_fsync,
    .rename = posix_rename,
    .link = posix_link,
    .unlink = posix_unlink,
    .mkdir = posix_mkdir,
    .chmod = posix_chmod,
    .file_info = posix_file_info,
    .thread_start = posix_thread_start,
    .thread_join = posix_thread_join,
    .signal_catch = posix_signal_catch,
    .getpid = posix_getpid,
    .fork = posix_fork,
    .waitpid = posix_waitpid,
    .kill = posix_kill,
    .exit = posix_exit,
    .hold_signals = posix_hold_signals,
    .library = posix_library,
    .symbol = posix_symbol,
    .spawn = posix_spawn_program,
    .environment = posix_environment,
    .close_on_exec = posix_close_on_exec,
    .recv_many = posix_recv_many,
    .send_many = posix_send_many,
    .recv_fds = posix_recv_fds,
    .list = posix_list,
#if defined(__linux__)
    .sync_all = posix_sync_all,
    .refuse = posix_refuse,
#endif
};

bk_os *bk_os_default(void) {
    return &posix;
}
