/*
 * becket.h: the public face of becket, one networking core for every kind of server and client.
 *
 * For C programs, and for whoever brings a part: a notifier, a transport, a scheme of endpoints.
 * It is meant to be read from the top: results, the operating system, notifiers, the loop,
 * transports, streams and protocols, datagrams, endpoints and serving. Ready-made protocols are in
 * becket-protocols.h, mail is in becket-smtp.h.
 *
 *     static void received(bk_stream *s, const void *data, size_t n) {
 *         bk_stream_write(s, data, n, BK_COPY, NULL);
 *     }
 *     static const bk_protocol echo = {.size = sizeof echo, .name = "echo", .received = received};
 *     int main(void) { return bk_serve(&echo, "tcp://127.0.0.1:7000", "unix:echo.sock", NULL); }
 *
 * Conventions
 *   - Functions are bk_noun_verb. Those that can fail return 0 or a positive number for success and
 *     a negative code for failure: -errno, or one of BK_E… below. bk_strerror() explains any.
 *   - What a function returns through a pointer is named ret_…, and is written only on success.
 *   - Arguments are checked: a NULL that must not be one, or a value out of range, is -EINVAL.
 *   - A loop, and all that belongs to it, is used from one thread: the one that runs it. The
 *     exceptions are bk_loop_post() and bk_loop_wake(); the latter also from signal handlers.
 *   - Times are int64_t nanoseconds on the monotonic clock, unless a name says otherwise.
 *   - Tables of functions begin with their own size, so that a part built against an older header
 *     goes on working: a function beyond a table's size counts as NULL.
 */
#ifndef BECKET_H
#define BECKET_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#if defined(_WIN32)
struct iovec {
    void *iov_base;
    size_t iov_len;
};
#else
#include <sys/uio.h>
#endif

#if defined(_WIN32)
#define BK_API __declspec(dllexport)
#elif defined(__GNUC__)
#define BK_API __attribute__((visibility("default")))
#else
#define BK_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define BK_VERSION "0.1.0"

typedef struct bk_os bk_os;
typedef struct bk_loop bk_loop;
typedef struct bk_notifier bk_notifier;
typedef struct bk_transport bk_transport;
typedef struct bk_stream bk_stream;
typedef struct bk_protocol bk_protocol;
typedef struct bk_datagram bk_datagram;
typedef struct bk_datagram_protocol bk_datagram_protocol;
typedef struct bk_listener bk_listener;
typedef struct bk_endpoint bk_endpoint;
typedef struct bk_scheme bk_scheme;
typedef struct bk_limits bk_limits;
typedef struct bk_gate bk_gate;
typedef struct bk_timer bk_timer;
typedef struct bk_work bk_work;

typedef void (*bk_fn)(void *arg);

/* The version of the library that runs, as "major.minor.patch". Thread-safe. */
BK_API const char *bk_version(void);

/* ---- Results --------------------------------------------------------------------------------- */

/* Codes that have no errno; all others are negative errno values. */
enum {
    BK_ETRUNCATED = -4001, /* the stream ended where its protocol says it may not */
    BK_EENDPOINT = -4002,  /* an endpoint that cannot be parsed */
    BK_ESCHEME = -4003,    /* an endpoint whose scheme nobody has registered */
    BK_EOPTION = -4004,    /* an option that the scheme does not have, or a bad value for one */
    BK_ENAME = -4005,      /* a host name that cannot be resolved */
    BK_ENOTIFIER = -4006,  /* a notifier of that name does not exist here */
    BK_ELIMIT = -4007,     /* a limit of limits.h was reached */
    BK_EPROXY = -4008,     /* a PROXY header that is missing or malformed */
    BK_EPROCESS = -4009,   /* a command ended with a status other than 0, or by a signal */
    /* TLS, whatever the engine; its own words are in bk_error, or BK_QUERY_TLS_WORDS. */
    BK_ETLS = -4020,            /* it failed in a way that has no code below */
    BK_ETLS_ENGINE = -4021,     /* an engine that does not exist, or whose library is not here */
    BK_ETLS_CONFIG = -4022,     /* a certificate, key or setting that cannot be used */
    BK_ETLS_PROTOCOL = -4023,   /* what the peer sent is not TLS, or breaks its rules */
    BK_ETLS_RECORD = -4024,     /* a record was damaged, or sealed with another key */
    BK_ETLS_VERSION = -4025,    /* no version of the protocol in common */
    BK_ETLS_CIPHER = -4026,     /* no cipher, group or signature in common */
    BK_ETLS_ALPN = -4027,       /* no application protocol in common */
    BK_ETLS_NAME = -4028,       /* the server has no certificate for the name asked for */
    BK_ETLS_UNTRUSTED = -4029,  /* the peer's certificate is not to be trusted */
    BK_ETLS_WRONG_NAME = -4030, /* … is good, but somebody else's */
    BK_ETLS_NO_CERTIFICATE = -4031, /* the peer showed none, and must */
    BK_ETLS_ALERT = -4032,          /* the peer gave up, and said so by an alert of another kind */
    BK_ETLS_RENEGOTIATION = -4033,  /* the peer wanted to renegotiate, which is refused */
};

/* A sentence for a code, never NULL; the text is static. Thread-safe. */
BK_API const char *bk_strerror(int code);

/* An error told to a person: where it is in what they wrote, and what would be right. */
typedef struct bk_error {
    int code;
    size_t position; /* bytes into the text that was parsed; 0 when there is none */
    char text[240];  /* a sentence without a full stop */
} bk_error;

/* ---- The operating system -------------------------------------------------------------------- */

struct sockaddr;
struct addrinfo;
struct pollfd;
struct epoll_event;

/* What a descriptor is, as far as a transport must know. */
enum { BK_FD_SOCKET = 1, BK_FD_PIPE, BK_FD_TTY, BK_FD_FILE, BK_FD_OTHER };

/* The kind and size of something in the file system. */
typedef struct bk_file_info {
    int is_socket, is_directory;
    int64_t bytes;
    int64_t device, inode; /* together they tell whether it is still the same one */
    int64_t modified;      /* since 1970-01-01 UTC, in nanoseconds */
} bk_file_info;

typedef struct bk_thread {
    uintptr_t id;
} bk_thread;

/* One of several datagrams that are moved by one call. */
typedef struct bk_message {
    void *data;
    size_t size;              /* of what is to be sent; or the room, and then what came */
    struct sockaddr *address; /* the other side's; NULL: that of a connected socket, or not asked */
    unsigned address_size;    /* of it; or the room, and then what it is: 0: there is none */
} bk_message;

/*
 * Everything the core asks of the outside world goes through this table: the loop holds one, and
 * bk_os_default() is the system's own. A test replaces entries to make calls fail. A table of your
 * own embeds bk_os as its first member and finds itself by the pointer each function gets.
 *
 * All return negative errno values, never -1. Descriptors that are made here are close-on-exec and
 * non-blocking, pipes and sockets alike; files are blocking. A function that may be called by
 * several threads at once (all of them) must allow it.
 */
struct bk_os {
    size_t size;
    const char *name;

    /* Memory: like realloc; n == 0 frees and returns NULL; NULL when there is none. */
    void *(*resize)(bk_os *os, void *old, size_t n);

    /* Time and chance. */
    int64_t (*clock)(bk_os *os);                    /* monotonic */
    int64_t (*wall)(bk_os *os);                     /* since 1970-01-01 UTC */
    int (*random)(bk_os *os, void *room, size_t n); /* for names, not for keys */

    /* Descriptors. send never raises SIGPIPE; write may, where the program has not ignored it. recv
       and send do not wait, even on a socket that was made to block. */
    ssize_t (*read)(bk_os *os, int fd, void *room, size_t n);
    ssize_t (*write)(bk_os *os, int fd, const struct iovec *v, int n);
    ssize_t (*recv)(bk_os *os, int fd, void *room, size_t n);
    ssize_t (*send)(bk_os *os, int fd, const struct iovec *v, int n);
    int (*close)(bk_os *os, int fd);
    int (*fd_kind)(bk_os *os, int fd);                 /* one of BK_FD_… */
    int (*set_nonblocking)(bk_os *os, int fd, int on); /* returns what it was: 0 or 1 */
    int (*pipe)(bk_os *os, int ret_fds[2]);
    int (*wake_open)(bk_os *os, int ret_fds[2]); /* what is written to [1] makes [0] readable */

    /* Sockets. */
    int (*socket)(bk_os *os, int family, int type, int protocol);
    int (*socketpair)(bk_os *os, int ret_fds[2]); /* UNIX, stream */
    int (*bind)(bk_os *os, int fd, const struct sockaddr *address, unsigned size);
    int (*listen)(bk_os *os, int fd, int backlog);
    int (*accept)(bk_os *os, int fd, struct sockaddr *ret_address, unsigned *size);
    int (*connect)(bk_os *os, int fd, const struct sockaddr *address, unsigned size);
    int (*shutdown)(bk_os *os, int fd, int how);
    int (*getsockname)(bk_os *os, int fd, struct sockaddr *ret_address, unsigned *size);
    int (*getpeername)(bk_os *os, int fd, struct sockaddr *ret_address, unsigned *size);
    int (*getsockopt)(bk_os *os, int fd, int level, int name, void *ret_value, unsigned *size);
    int (*setsockopt)(bk_os *os, int fd, int level, int name, const void *value, unsigned size);
    int (*resolve)(bk_os *os, const char *host, const char *service, const struct addrinfo *hints,
                   struct addrinfo **ret_list); /* blocks */
    void (*resolve_free)(bk_os *os, struct addrinfo *list);

    /* Readiness; those a system lacks are NULL. Time-outs: < 0 waits for ever. */
    int (*poll)(bk_os *os, struct pollfd *fds, unsigned n, int64_t timeout_ns);
    int (*select)(bk_os *os, int n, void *reads, void *writes, void *excepts, int64_t timeout_ns);
    int (*epoll_create)(bk_os *os);
    int (*epoll_ctl)(bk_os *os, int epoll, int op, int fd, struct epoll_event *event);
    int (*epoll_wait)(bk_os *os, int epoll, struct epoll_event *ret_events, int room,
                      int64_t timeout_ns);

    /* Files: blocking, for the workers. */
    int (*open)(bk_os *os, const char *path, int flags, unsigned mode);
    int (*fsync)(bk_os *os, int fd);
    int (*rename)(bk_os *os, const char *from, const char *to);
    int (*link)(bk_os *os, const char *from, const char *to);
    int (*unlink)(bk_os *os, const char *path);
    int (*mkdir)(bk_os *os, const char *path, unsigned mode);
    int (*chmod)(bk_os *os, const char *path, unsigned mode);
    int (*file_info)(bk_os *os, const char *path, bk_file_info *ret_info); /* of a link, itself */

    /* Threads and signals. */
    int (*thread_start)(bk_os *os, bk_fn fn, void *arg, bk_thread *ret_thread);
    int (*thread_join)(bk_os *os, bk_thread thread);
    int (*signal_catch)(bk_os *os, int signum, void (*handler)(int)); /* NULL: as it was before */
    int (*getpid)(bk_os *os);

    /* Processes; NULL where a system has none of them. */
    int (*fork)(bk_os *os); /* 0 in the child; what stdio holds back is written before */
    /* 1: it has ended, and its number means nothing any more; the status is that of its exit, or
       the signal that ended it, negated. 0: it runs; not with `wait`, which blocks. */
    int (*waitpid)(bk_os *os, int pid, int wait, int *ret_status);
    int (*kill)(bk_os *os, int pid, int signum); /* pid < 0: the process group of that number */
    void (*exit)(bk_os *os, int status);    /* of a child: at once, without what atexit() has */
    int (*hold_signals)(bk_os *os, int on); /* this thread gets none (1), or as before (0) */

    /* Libraries. The first of names (ended by NULL) that can be had, or with loaded_only that is in
       the process already; NULL: none. They stay for as long as the process. */
    void *(*library)(bk_os *os, const char *const *names, int loaded_only);
    void *(*symbol)(bk_os *os, void *library,
                    const char *name); /* NULL: it has none of that name */

    /* Programs, and what we were started with; those a system lacks are NULL. */
    /* Run argv[0] (a path; argv is ended by NULL) in a process group of its own, with these two
       descriptors for its standard input and output; the rest is as ours, but that no signal is
       blocked, nor SIGPIPE ignored. Returns its number. */
    int (*spawn)(bk_os *os, const char *const *argv, int stdin_fd, int stdout_fd);
    const char *(*environment)(bk_os *os, const char *name); /* NULL: it has none of that name */
    int (*close_on_exec)(bk_os *os, int fd);                 /* for one that others have opened */

    /* Datagrams, several in one call, which does not wait; NULL where a system has none. Both
       return how many were moved: 1 at least, or what kept the first from it. What does not fit
       into its room is cut. What keeps a later one from being sent is found when it is the first;
       but a peer's word that it took none of the earlier is told once, and may be lost so. */
    int (*recv_many)(bk_os *os, int fd, bk_message *messages, int n);
    int (*send_many)(bk_os *os, int fd, const bk_message *messages, int n);

    /* As recv, of a UNIX socket, through which descriptors may come with the bytes; NULL where a
       system has none. *count is the room in ret_fds, and then how many there are: the caller's,
       close-on-exec. What does not fit is closed. */
    ssize_t (*recv_fds)(bk_os *os, int fd, void *room, size_t n, int *ret_fds, int *count);
    /* Files again; those a system lacks are NULL. list: call each(arg, name) for all that is in a
       folder, but "." and "..". sync_all: all that was written to the file system that fd is on is
       on disk; fails if any of it could not be written since fd was opened, -ENOTSUP where that
       would not be told. */
    int (*list)(bk_os *os, const char *path, void (*each)(void *arg, const char *name), void *arg);
    int (*sync_all)(bk_os *os, int fd);

    /* Of a listening socket that is to be closed: nobody new comes into its backlog, and who is in
       it stays. The others try again, as if nothing had arrived. NULL where a system has no such
       thing. */
    int (*refuse)(bk_os *os, int fd);
};

/* The table of the system this library was built for. Static; never to be changed. Thread-safe. */
BK_API bk_os *bk_os_default(void);

/* ---- Notifiers: what is ready? --------------------------------------------------------------- */

/* Directions of interest, and what may come back beside them. */
enum {
    BK_READ = 1,
    BK_WRITE = 2,
    BK_HANGUP = 4, /* error or hang-up: whoever waits in either direction is to try and find out */
    BK_NOW = 8,    /* (of transports) need not wait: ready already */
};

/* What a notifier can do. */
enum {
    BK_ANY_FD = 1,      /* watches pipes and terminals too, not sockets alone */
    BK_FILES = 2,       /* accepts regular files, which are always ready; others refuse: -EPERM */
    BK_ACTIVE_COST = 4, /* a wait costs what the ready descriptors cost, not the watched ones */
    BK_POLLABLE = 8,    /* has a descriptor of its own that another notifier can watch */
};

typedef struct bk_ready {
    uint64_t tag;
    unsigned events;
} bk_ready;

/*
 * A notifier tells which descriptors are ready: level-triggered, and for one thread. The loop does
 * the rest: it folds the changes of a turn into one arm or disarm per descriptor, calls neither
 * for descriptors nothing happened to, and recognises events that have become stale by their tag.
 * tests/conformance/ has a suite to run over an implementation.
 */
typedef struct bk_notifier_ops {
    size_t size;
    const char *name;
    unsigned traits;
    int (*open)(bk_notifier *n); /* sets n->state; nothing is left behind when it fails */
    void (*close)(bk_notifier *n);
    int (*forked)(bk_notifier *n); /* in the child after fork: must no longer share with the parent;
                                      all that was armed stays armed */
    /* Watch fd for events (BK_READ, BK_WRITE, or both); replaces what was armed for it, tag too.
       -EPERM: a kind of descriptor it cannot watch; -EMFILE: a number it has no room for. */
    int (*arm)(bk_notifier *n, int fd, unsigned events, uint64_t tag);
    /* Forget fd, before it is closed. Not armed is not an error. */
    int (*disarm)(bk_notifier *n, int fd);
    /* Wait until something is ready or timeout_ns has passed (0: do not wait; < 0: for ever) and
       return how many of ret_ready[room] were filled: 0 after a time-out. -EINTR: a signal came.
       Rounded up to the notifier's precision: never early. */
    int (*wait)(bk_notifier *n, int64_t timeout_ns, bk_ready *ret_ready, int room);
    int (*fd)(bk_notifier *n); /* with BK_POLLABLE: readable when something is ready */
} bk_notifier_ops;

struct bk_notifier {
    const bk_notifier_ops *ops;
    bk_os *os;
    void *state;
};

/* The notifiers built in, best first, ended by NULL. Static. Thread-safe. */
BK_API const bk_notifier_ops *const *bk_notifiers(void);

/* ---- The loop -------------------------------------------------------------------------------- */

/* What the loop has to tell its operator: accept running out of descriptors, for one. */
typedef void (*bk_log_fn)(void *arg, int code, const char *text);

/* Called around what the loop does, for a host that has a lock or signals of its own. */
typedef struct bk_loop_hooks {
    size_t size;
    void (*before_wait)(void *arg); /* the wait that follows may block */
    void (*after_wait)(void *arg);  /* the wait is over */
    void (*interrupted)(void *arg); /* a signal ended the wait */
    /* An endpoint has a scheme that nobody has registered; this may do so now. 1: look again; 0:
       there is none; negative: what error (never NULL) says. */
    int (*unknown_scheme)(void *arg, const char *name, bk_error *error);
} bk_loop_hooks;

typedef struct bk_loop_options {
    size_t size;
    const char *notifier;                /* by name; NULL: BECKET_NOTIFIER, or the best there is */
    const bk_notifier_ops *notifier_ops; /* your own; goes before the name */
    bk_os *os;                           /* NULL: bk_os_default() */
    bk_log_fn log;                       /* NULL: one line to standard error */
    const bk_loop_hooks *hooks;
    void *arg; /* for log and hooks */
} bk_loop_options;

/* A new loop; options may be NULL. BK_ENOTIFIER when the notifier's name is not known. */
BK_API int bk_loop_new(const bk_loop_options *options, bk_loop **ret_loop);

/* Ends all that still belongs to the loop, then frees it: works are finished and told; listeners
   are closed, and their handles are no more; streams are closed with -ECANCELED. Calls that are
   still queued are dropped. -EBUSY from within a callback of its own or of its streams. */
BK_API int bk_loop_free(bk_loop *loop);

/* Turn until bk_loop_stop(). Returns 0, or the code of a wait that failed. */
BK_API int bk_loop_run(bk_loop *loop);

/* End bk_loop_run() when this turn is over; before a run: the run makes one turn. */
BK_API void bk_loop_stop(bk_loop *loop);

/* One turn, for a program that has its own loop: wait at most timeout_ns (< 0: for ever) for
   something to do, and do it. Returns 0; -EBUSY from within a callback. Heeds no bk_loop_stop(). */
BK_API int bk_loop_turn(bk_loop *loop, int64_t timeout_ns);

/* A descriptor that is readable when a turn has something to do, for another loop to watch
   together with bk_loop_deadline(). -ENOTSUP where the notifier has none (poll, select). */
BK_API int bk_loop_fd(const bk_loop *loop);

/* Nanoseconds until the next turn has work without any descriptor: 0: now; -1: never. */
BK_API int64_t bk_loop_deadline(const bk_loop *loop);

/* The time of this turn; it is read once a turn. */
BK_API int64_t bk_loop_now(const bk_loop *loop);

BK_API const char *bk_loop_notifier(const bk_loop *loop);
BK_API bk_os *bk_loop_os(const bk_loop *loop);

/* After fork, in the child, before anything else is done with the loop. Works that a thread had
   begun are the parent's: their done() is not called in the child. */
BK_API int bk_loop_forked(bk_loop *loop);

/* Call fn(arg) in the next turn; calls keep their order. -ENOMEM. */
BK_API int bk_loop_soon(bk_loop *loop, bk_fn fn, void *arg);

/* The same from any thread. The loop must outlive the call. -ENOMEM. */
BK_API int bk_loop_post(bk_loop *loop, bk_fn fn, void *arg);

/* End the wait the loop is in, or the next one. From any thread and from signal handlers. */
BK_API void bk_loop_wake(bk_loop *loop);

/* Timers live where their owner wants; the fields are the loop's. Zero it before the first start.
   They fire in the order of their times, and of their starts where those are equal. */
struct bk_timer {
    int64_t when;
    uint64_t order;
    bk_fn fn;
    void *arg;
    uint32_t place; /* 1 + its place in the heap; 0: not running */
};

/* Call fn(arg) once when bk_loop_now() has reached `when`. -EBUSY when it runs already. */
BK_API int bk_timer_start(bk_loop *loop, bk_timer *timer, int64_t when, bk_fn fn, void *arg);

/* Amortised O(1), and the timer's memory is the owner's again. Not running is not an error. */
BK_API void bk_timer_stop(bk_loop *loop, bk_timer *timer);

typedef void (*bk_watch_fn)(void *arg, unsigned events);

/* Call fn(arg, events) each time fd is ready in that direction (BK_READ or BK_WRITE, one of them),
   as long as it is; fn NULL ends that. Takes effect at the latest when the loop next waits: a
   descriptor that cannot be watched is found then, and fn gets BK_HANGUP. */
BK_API int bk_watch_set(bk_loop *loop, int fd, unsigned direction, bk_watch_fn fn, void *arg);

/* Bring the notifier up to date on fd at once, to learn whether it can be watched at all. */
BK_API int bk_watch_apply(bk_loop *loop, int fd);

/* Forget fd in both directions, at once: always before it is closed. */
BK_API void bk_watch_forget(bk_loop *loop, int fd);

/* Call fn(arg) on the loop when signum was delivered, once or more often since the last call. One
   loop per signal and process: -EBUSY when another has it. fn NULL gives the signal back its
   earlier disposition. */
BK_API int bk_signal_set(bk_loop *loop, int signum, bk_fn fn, void *arg);

/* Work that blocks, done by a small pool of threads. The struct is the owner's and must live until
   done has been called on the loop. */
struct bk_work {
    void (*run)(bk_work *work);  /* in a worker thread */
    void (*done)(bk_work *work); /* on the loop */
    bk_work *next;
    bk_loop *loop;
};

/* -EAGAIN or -ENOMEM when not even one thread could be had; done is not called then. */
BK_API int bk_work_start(bk_loop *loop, bk_work *work);

/* ---- Transports: how do bytes move? ---------------------------------------------------------- */

/* Questions for bk_transport_ops.query and bk_stream_query(). A transport that holds another
   passes on what it does not answer itself. */
enum {
    BK_QUERY_FD = 1, /* int: the descriptor that is read */
    BK_QUERY_PEER,   /* sockaddr of the other side */
    BK_QUERY_LOCAL,  /* sockaddr of this side */
    BK_QUERY_NAME,   /* char[]: the transport's name, "tcp" */
    BK_QUERY_PLAIN,  /* int: a socket that carries the stream's bytes as they are, of which nothing
                        is held back here: another process or thread could go on with it */
    /* sockaddr of the proxy that relayed this, by the PROXY protocol; BK_QUERY_PEER and _LOCAL are
       as it told them. -ENOTSUP: nobody did. */
    BK_QUERY_PROXY_PEER,
};

/*
 * A transport moves bytes and nothing else. None of its functions waits; so it serves the loop and
 * blocking drivers alike. tests/conformance/ has a suite to run over an implementation.
 * Those marked optional may be NULL.
 */
typedef struct bk_transport_ops {
    size_t size;
    const char *name;
    /* > 0: bytes read; 0: the peer's direction is over; -EAGAIN: none now; other: broken. */
    ssize_t (*read)(bk_transport *t, void *room, size_t n);
    /* Bytes accepted, >= 0; -EAGAIN: none now; other: broken. n is never more than BK_IOV_MAX. */
    ssize_t (*write)(bk_transport *t, const struct iovec *v, int n);
    /* Optional. Move on what it holds back: 0: it holds nothing; -EAGAIN: not all; other: broken.
     */
    int (*flush)(bk_transport *t);
    /* Optional; NULL: what the stream waits for is what its descriptors wait for. Else: given what
       the stream would do next (BK_READ, BK_WRITE), what is to be waited for. TLS may need to write
       in order to read, and a file is never "not ready": BK_NOW. */
    unsigned (*wants)(bk_transport *t, unsigned directions);
    /* Optional; NULL: cannot half-close. Our direction is over: FIN, close_notify. -EAGAIN: wait
       for BK_WRITE and call again. -ENOTSUP: not this one, which then says so at once. */
    int (*end)(bk_transport *t);
    /* Let go of everything, t itself too. Never waits, never fails. */
    void (*close)(bk_transport *t);
    /* The descriptor to watch for a direction; -1: the transport calls bk_transport_wake(). */
    int (*fd)(bk_transport *t, unsigned direction);
    /* Optional. Answer BK_QUERY_…: *size is the room in bytes, then the bytes written; -ENOTSUP for
       a question it has no answer to, -ENOSPC when the room is too small. */
    int (*query)(bk_transport *t, int what, void *ret_value, size_t *size);
    /* Optional. Get ready to move bytes: a handshake. 0: ready; -EAGAIN: call again after what
       wants(t, 0) says; other: broken. Until it is ready nothing else but wants, fd, query and
       close is called. */
    int (*open)(bk_transport *t);
} bk_transport_ops;

enum { BK_IOV_MAX = 64 };

/* The head of every transport. The stream that owns it fills in `stream`; a transport that holds
   another fills in its inner one's `stream` with the same. */
struct bk_transport {
    const bk_transport_ops *ops;
    bk_stream *stream;
};

/* For transports whose fd is -1: something changed; the stream will read and write again. Not from
   within the stream's own call of the transport's functions: harmless, but needless. */
BK_API void bk_transport_wake(bk_transport *t);

/* A transport over a connected stream socket (TCP or UNIX, found from the socket), which it then
   owns and makes non-blocking. On failure fd is still the caller's. */
BK_API int bk_socket_transport(bk_loop *loop, int fd, bk_transport **ret_transport);

/* Over one or two descriptors of any kind: pipes, terminals, files, sockets. One that is -1 is not
   there: reading ends at once, writing is -EPIPE. The same number twice is one descriptor. When
   `own` is 0 they are left open at close, and their blocking mode is put back: stdio. */
BK_API int bk_fd_transport(bk_loop *loop, int read_fd, int write_fd, int own,
                           bk_transport **ret_transport);

/* Two transports joined in memory, each holding at most `capacity` bytes (0: 65536) in transit. */
BK_API int bk_memory_transport(bk_loop *loop, size_t capacity, bk_transport *ret_pair[2]);

/* ---- Streams and protocols ------------------------------------------------------------------- */

typedef struct bk_room {
    void *base;
    size_t size;
} bk_room;

/*
 * A protocol is a table of what to do when something happens to a stream. Any of them may be NULL.
 * Every callback may do anything to its stream, closing included; none is called from within
 * another on the same stream, but for blocked(), which bk_stream_write() may call.
 */
struct bk_protocol {
    size_t size;
    const char *name;
    void *context; /* the author's own: bk_stream_protocol(s)->context */
    /* The stream is there, and its transport open. A negative result closes it with that code. */
    int (*opened)(bk_stream *s);
    /* Where to put what is read next; NULL: the loop's scratch memory, valid during received().
       Negative closes the stream with that code; a size of 0 is -ENOBUFS. */
    int (*room)(bk_stream *s, bk_room *ret_room);
    void (*received)(bk_stream *s, const void *data, size_t n); /* n > 0 */
    /* The peer will send no more. Return 1 to go on writing, until bk_stream_close(); 0, or NULL,
       closes after what is queued has been sent. */
    int (*ended)(bk_stream *s);
    void (*blocked)(bk_stream *s);  /* more is queued than the high-water mark: stop writing */
    void (*writable)(bk_stream *s); /* no more is queued than the low-water mark: go on */
    /* Exactly once, last; also when opened() was never called, because connecting, or a handshake,
       of a server's too, came to nothing. 0: ended
       in good order; -ECANCELED: bk_stream_abort(); else what broke it. s is freed after it. */
    void (*closed)(bk_stream *s, int why);
    /* The transport put in place by bk_stream_set_transport() has opened: TLS is there. A negative
       result closes the stream with that code. */
    int (*upgraded)(bk_stream *s);
    /* Instead of all the others, for a connection that a limit keeps out (why: BK_ELIMIT, or
       -ESHUTDOWN when the server is ending): write what the protocol has to say, no more. NULL: it
       is closed without a word, as one is that is to be under TLS. protocol is this table: it is
       not the stream's. */
    void (*refused)(bk_stream *s, const bk_protocol *protocol, int why);
    /* A time-out is over, and s is closed with -ETIMEDOUT after this: write last words, no more.
       They are sent as far as the transport takes them at once. Not called while something is
       queued: nobody would read on. */
    void (*timed_out)(bk_stream *s);
};

/* A new stream over a transport, which is the stream's from then on; opened() is called before this
   returns. On failure the transport is still the caller's, and opened() was not called. */
BK_API int bk_stream_new(bk_loop *loop, bk_transport *transport, const bk_protocol *protocol,
                         void *user, bk_stream **ret_stream);

typedef void (*bk_release)(void *arg);

/* Ways to say how long the bytes given to bk_stream_write() stay good, other than a function to be
   called (once, sooner or later, whatever happens, failure of the write included). */
#define BK_COPY ((bk_release)0)       /* until the call returns: they are copied if need be */
#define BK_STATIC (bk_release_static) /* for ever */
BK_API void bk_release_static(void *arg);

/* Queue n bytes to be sent, in one gathering call with all else that is written, as soon as the
   callback that the loop is in returns. 0; -EPIPE after end or close; -ENOMEM: nothing was queued.
   When more than the high-water mark is queued, it is sent at once, and blocked() is called if the
   transport will not take it. */
BK_API int bk_stream_write(bk_stream *s, const void *data, size_t n, bk_release release, void *arg);

/* Send now what is queued, as far as the transport takes it, not when the callback returns. */
BK_API void bk_stream_flush(bk_stream *s);

/* Our direction is over once what is queued has been sent; reading goes on. -ENOTSUP where the
   transport cannot: found now when nothing is queued; later, it is over without the peer's hearing
   of it. Repeating it is not an error. */
BK_API int bk_stream_end(bk_stream *s);

/* Stop reading, send what is queued, close; closed() follows, never from within this call. */
BK_API void bk_stream_close(bk_stream *s);

/* Drop what is queued, and close with -ECANCELED; closed() follows, never from within this call. */
BK_API void bk_stream_abort(bk_stream *s);

/* Flow control of what is read. Both may be repeated. */
BK_API void bk_stream_pause(bk_stream *s);
BK_API void bk_stream_resume(bk_stream *s);

/* Water marks for what is queued, in bytes; low <= high, else -EINVAL. Default 16 and 64 KiB. */
BK_API int bk_stream_set_water(bk_stream *s, size_t low, size_t high);

/* Bytes that are queued and not yet taken by the transport. */
BK_API size_t bk_stream_queued(const bk_stream *s);

/* Close with -ETIMEDOUT when nothing was read or sent for that many seconds (0: never; at most
   65535); coarse: up to a second late. It costs no timer. */
BK_API void bk_stream_set_timeout(bk_stream *s, unsigned seconds);

/* Answer a BK_QUERY_…; see bk_transport_ops.query. */
BK_API int bk_stream_query(bk_stream *s, int what, void *ret_value, size_t *size);

BK_API bk_loop *bk_stream_loop(const bk_stream *s);
BK_API void *bk_stream_user(const bk_stream *s);
BK_API void bk_stream_set_user(bk_stream *s, void *user);
BK_API const bk_protocol *bk_stream_protocol(const bk_stream *s);
BK_API void bk_stream_set_protocol(bk_stream *s, const bk_protocol *protocol);

/* Join two streams of one loop: from here on, what one receives the other sends, with flow control
   and the end of each direction passed on; when one is gone, so is the other. Both get protocols of
   the core, and their user values are lost. Either may still be connecting; what has come to its
   end already is passed on. -EPIPE when our direction of one is over, or it is closing. */
BK_API int bk_stream_relay(bk_stream *a, bk_stream *b);

/* The transport; and putting another in its place in mid-stream, most often one that holds the old
   one: that is how TLS starts. What was queued before goes through the new one, unless it was
   flushed. If it has to open, reading and sending wait for that, and upgraded() follows. Nothing is
   closed by this. */
BK_API bk_transport *bk_stream_transport(const bk_stream *s);
BK_API void bk_stream_set_transport(bk_stream *s, bk_transport *transport);

/* ---- Datagrams ------------------------------------------------------------------------------- */

/*
 * A bk_datagram is to datagrams what a stream is to bytes: a socket (UDP, or UNIX), what it has
 * still to send, and a protocol. Any function of the table may be NULL; every callback may do
 * anything to its bk_datagram, closing included. None is called from within another, but for
 * failed() and blocked(), which bk_datagram_send() and bk_datagram_flush() may call.
 */
struct bk_datagram_protocol {
    size_t size;
    const char *name;
    void *context; /* the author's own: bk_datagram_protocol_of(d)->context */
    /* A datagram has come; n may be 0, and what is beyond 256 KiB is cut off. from_size 0: its
       sender has no address. Both are good during the call. */
    void (*received)(bk_datagram *d, const void *data, size_t n, const struct sockaddr *from,
                     unsigned from_size);
    /* One that was sent could not be (-EMSGSIZE, -ENETUNREACH, …), a peer did not take one
       (-ECONNREFUSED), or one that came was lost here (-ENOMEM). The socket goes on. */
    void (*failed)(bk_datagram *d, int code);
    void (*blocked)(bk_datagram *d);  /* more is queued than the high-water mark: stop sending */
    void (*writable)(bk_datagram *d); /* no more is queued than the low-water mark: go on */
    /* Exactly once, last. 0: bk_datagram_close(); -ECANCELED: bk_datagram_abort(), or the loop is
       freed; else what broke it. d is freed after it. */
    void (*closed)(bk_datagram *d, int why);
};

/* Send and receive datagrams over a socket, which is the bk_datagram's from then on, and made
   non-blocking. On failure fd is still the caller's: -EPROTOTYPE: not a socket of datagrams;
   -ENOTSUP: the loop's bk_os cannot send them. */
BK_API int bk_datagram_open(bk_loop *loop, int fd, const bk_datagram_protocol *protocol, void *user,
                            bk_datagram **ret_datagram);

/* Queue a datagram of n bytes, which may be 0, to be sent in one call with all that are sent in the
   callback that the loop is in, when it returns. release, arg: as bk_stream_write(). to NULL: to
   the peer of a connected socket. 0; -EPIPE after close; -EINVAL, -ENOMEM: nothing was queued. One
   of 4 KiB or more, one that is beyond the high-water mark, and one that is sent outside of any
   callback, are sent at once. */
BK_API int bk_datagram_send(bk_datagram *d, const void *data, size_t n, bk_release release,
                            void *arg, const struct sockaddr *to, unsigned to_size);

/* Send now what is queued, as far as the socket takes it, not when the callback returns. */
BK_API void bk_datagram_flush(bk_datagram *d);

/* Receive no more, send what is queued, close; closed() follows, never from within this call. */
BK_API void bk_datagram_close(bk_datagram *d);

/* Drop what is queued, and close with -ECANCELED; closed() follows, never from within this call. */
BK_API void bk_datagram_abort(bk_datagram *d);

/* Receive none for now: they wait in the socket, or are lost there when it is full. */
BK_API void bk_datagram_pause(bk_datagram *d);
BK_API void bk_datagram_resume(bk_datagram *d);

/* Bytes queued at which blocked() and writable() are called; 64 KiB and 16 KiB until then. Each
   datagram counts 8 bytes more than it has. -EINVAL when low > high. */
BK_API int bk_datagram_set_water(bk_datagram *d, size_t low, size_t high);
BK_API size_t bk_datagram_queued(const bk_datagram *d);

BK_API int bk_datagram_fd(const bk_datagram *d);
BK_API bk_loop *bk_datagram_loop(const bk_datagram *d);
BK_API void *bk_datagram_user(const bk_datagram *d);
BK_API void bk_datagram_set_user(bk_datagram *d, void *user);
BK_API const bk_datagram_protocol *bk_datagram_protocol_of(const bk_datagram *d);

/* ---- Endpoints and serving ------------------------------------------------------------------- */

/* (clang-format would join the lines of the list.) */
/* clang-format off */
/*
 * Endpoints are strings, the same for servers and clients:
 *     tcp://host:port?backlog=100   IPv4, [IPv6] or a name; port 0: any; host empty or *: all
 *     unix:path?mode=600            a stale socket file is replaced, a live one never
 *     unix:@name                    a Linux abstract socket: it has no file, and no mode; whoever
 *                                   shares the network namespace may connect. A path that begins
 *                                   with @ is written unix:./@name
 *     memory:name                   a meeting place inside the process, between its loops and
 *                                   threads; who connects where nobody listens: -ECONNREFUSED
 *     stdio:                        standard input and output, one stream
 *     fd:N                          an adopted descriptor: a listening or a connected socket, a pipe
 *     systemd:name                  (servers) the sockets of that name that a supervisor passed, as
 *                                   sd_listen_fds(3) has it; systemd: alone is all of them. Several
 *                                   are one listener; a connected one is one stream, as with fd
 *     process:command               standard input and output of a command, one stream; see below
 *     tls://host:port?cert=site.pem        TLS on tcp
 *     tls+unix:path?…, tls+stdio:?…, …     … on any other scheme
 *     starttls://host:port?…, starttls+…:  plain, until the protocol starts TLS
 * Percent-encoding (RFC 3986) is undone in host, path and options; in a path, ? is written %3F.
 *
 * process: runs the command by /bin/sh, when it is listened at or connected to: never take it from
 * strangers. Its standard error is ours. A command that fails closes its stream with BK_EPROCESS;
 * one that still runs when the stream is closed gets SIGTERM at once, and SIGKILL after five
 * seconds, or when the loop is freed: the whole process group. Who wants it to finish its work ends
 * the stream (bk_stream_end()) and waits for its end. Writing to it may raise SIGPIPE.
 *
 * The options of TLS:
 *     cert, key    PEM files; key: when it is not in cert. cert=dev: made up, for development
 *     ca           PEM file: whom to trust; without it, whom the system trusts
 *     verify       none, optional, required: the peer's certificate. Clients: required
 *     name         (clients) whom to ask for and to verify, when it is not the host
 *     alpn         h2,http/1.1: application protocols, in order of preference
 *     engine       openssl, gnutls, mbedtls; without it BECKET_TLS, or the first there is
 *     min, max     1.2, 1.3: versions
 *     tickets      on, off: whether sessions can be resumed
 *     truncation   refuse, allow: an end without close_notify
 *     handshake    seconds it may take (60);  linger: to wait for close_notify when closing (0)
 *     reload       (servers) look every so many seconds (5; 0: never) whether the files changed
 */
/* clang-format on */
enum { BK_ENDPOINT_OPTIONS = 24 };

struct bk_endpoint {
    char *memory; /* the texts below are in here */
    const char *scheme, *host, *path;
    int port; /* -1: none */
    int option_count;
    struct {
        const char *key, *value;
        size_t position;
    } options[BK_ENDPOINT_OPTIONS];
    size_t rest; /* the position of what follows the scheme */
};

/* Parse text by the grammar above, knowing no scheme. BK_EENDPOINT, with the position, in
   ret_error (may be NULL), the one thing written on failure. */
BK_API int bk_endpoint_parse(bk_os *os, const char *text, bk_endpoint *ret_endpoint,
                             bk_error *ret_error);
BK_API void bk_endpoint_clear(bk_os *os, bk_endpoint *endpoint);
BK_API const char *bk_endpoint_option(const bk_endpoint *endpoint, const char *key); /* or NULL */

/* A scheme: what the word before the colon means. Register it with bk_scheme_add(). */
struct bk_scheme {
    size_t size;
    const char *name;
    const char *const *options; /* the keys it knows, ended by NULL; NULL: none. Those of PROXY
                                   and TLS are known without it. */
    /* Either may be NULL: not for servers, not for clients. Errors go to error (never NULL). */
    int (*listen)(bk_loop *loop, const bk_endpoint *endpoint, const bk_protocol *protocol,
                  bk_error *error, bk_listener **ret_listener);
    int (*connect)(bk_loop *loop, const bk_endpoint *endpoint, const bk_protocol *protocol,
                   void *user, bk_error *error, bk_stream **ret_stream);
};

/* -EEXIST when the loop knows a scheme of that name. The table must outlive the loop. */
BK_API int bk_scheme_add(bk_loop *loop, const bk_scheme *scheme);

/* A scheme's listen() makes its listener with this; close is called once, when it is closed. */
BK_API int bk_listener_new(bk_loop *loop, const char *name, void (*close)(void *arg), void *arg,
                           bk_listener **ret_listener);

/* Give each connection that comes in at an endpoint a stream and the protocol. ret_error may be
   NULL; ret_listener may be NULL: it lives until the loop is freed. A name is resolved in the
   call, which may block: listen before you run. */
BK_API int bk_listen(bk_loop *loop, const char *endpoint, const bk_protocol *protocol,
                     bk_error *ret_error, bk_listener **ret_listener);

/* What a server allows its connections; 0 is no limit. A connection over one of the first four is
   refused; those over the accept rate wait in the backlog. Times are in seconds, coarse, and up to
   two late; a connection that overstays is closed with -ETIMEDOUT. */
struct bk_limits {
    size_t size;
    unsigned max_connections;        /* at once */
    unsigned max_per_address;        /* … from one IPv4 address, or one /64 of IPv6 */
    unsigned max_pending_handshakes; /* … that are not open yet, under TLS or a PROXY header */
    unsigned accept_rate;            /* new ones a second */
    unsigned first_byte;             /* until the first byte was received */
    unsigned idle;                   /* without a byte in either direction */
    unsigned write;                  /* while something is to be sent, and nothing can be */
    unsigned total;                  /* of its life */
};

/* One connection, told when it has come to its end. */
typedef struct bk_visitor {
    const char *listener; /* the endpoint it came in at */
    bk_stream *stream;    /* still to be queried; NULL: it was refused */
    const struct sockaddr *peer;
    unsigned peer_size; /* 0: it has none */
    int64_t began;      /* wall clock, since 1970-01-01 UTC */
    int64_t lasted;     /* nanoseconds */
    uint64_t bytes_in, bytes_out;
    int why; /* as closed(); BK_ELIMIT: refused */
} bk_visitor;

typedef struct bk_gate_stats {
    size_t size;
    uint64_t accepted, refused, closed, failed; /* failed: closed, and not in good order */
    uint64_t bytes_in, bytes_out;               /* of those that are closed */
    unsigned connections, handshakes;           /* now */
} bk_gate_stats;

/*
 * A gate counts a server's connections and holds them to its limits; any number of listeners, of
 * any loops, may stand behind one. Thread-safe, and counted references: listeners and connections
 * hold it too. leave (may be NULL) is called at the end of each connection, in its loop's thread.
 */
BK_API int bk_gate_new(bk_os *os, const bk_limits *limits,
                       void (*leave)(void *arg, const bk_visitor *visitor), void *arg,
                       bk_gate **ret_gate);
BK_API bk_gate *bk_gate_ref(bk_gate *gate);
BK_API void bk_gate_unref(bk_gate *gate);
BK_API void bk_gate_stats_of(bk_gate *gate, bk_gate_stats *ret_stats); /* its size is set before */
/* From now on everybody is refused with -ESHUTDOWN. */
BK_API void bk_gate_shut(bk_gate *gate);

typedef struct bk_listen_options {
    size_t size;
    bk_gate *gate; /* NULL: everybody is welcome */
    const int
        *sockets; /* listening sockets to accept from, in place of the endpoint's own: those of
                     another loop's listener at that endpoint. They stay the caller's,
                     must outlive the listener, and are made non-blocking. */
    int socket_count;
    int shared; /* others accept from its sockets too: few are taken at a time, so that the next go
                   to whoever has time for them */
} bk_listen_options;

/* bk_listen() with options, which may be NULL. */
BK_API int bk_listen_with(bk_loop *loop, const char *endpoint, const bk_protocol *protocol,
                          const bk_listen_options *options, bk_error *ret_error,
                          bk_listener **ret_listener);

/* Accept none for now (1): connections wait in the backlog; or go on (0). -ENOTSUP where nothing
   waits: stdio, or a scheme of a third party. */
BK_API int bk_listener_pause(bk_listener *listener, int on);

/* Accept at once all that wait in the backlog, paused or not: closing would reset those, who may
   have sent their requests already. For listeners that are to be closed while clients come: on
   Linux nobody new gets into the backlog of sockets that are the listener's alone, but finds, when
   TCP tries again, what is there then. */
BK_API void bk_listener_drain(bk_listener *listener);

/* Its listening sockets, at most `room`, for bk_listen_options; returns how many there are: 0 where
   there is no socket that others could accept from. They are the listener's. */
BK_API int bk_listener_sockets(const bk_listener *listener, int *ret_sockets, int room);

/* The same over a listening socket that is there already, and then the listener's. */
BK_API int bk_listen_fd(bk_loop *loop, int fd, const bk_protocol *protocol,
                        bk_listener **ret_listener);

/* Accept no more, and free the listener; its connections go on. */
BK_API void bk_listener_close(bk_listener *listener);

/* Read again what its endpoint names: certificates. Connections go on; what cannot be used is told
   to the log, and the old stays. Returns at once. */
BK_API void bk_listener_reload(bk_listener *listener);

/* The endpoint it listens at, with the port it got: "tcp://127.0.0.1:40123". */
BK_API const char *bk_listener_name(const bk_listener *listener);

/* Connect. The stream is there at once and may be closed, not yet written to: opened() is called
   when it is connected, or closed() when that failed. ret_error and ret_stream may be NULL. */
BK_API int bk_connect(bk_loop *loop, const char *endpoint, const bk_protocol *protocol, void *user,
                      bk_error *ret_error, bk_stream **ret_stream);

/* Tell the supervisor that started us, such as systemd, about our state, as sd_notify(3) has it:
   "READY=1", "STATUS=…", several on lines of their own. 1: told; 0: nobody wants to know
   (NOTIFY_SOCKET is not in the environment). It does not wait: -EAGAIN when the supervisor cannot
   keep up; -EAFNOSUPPORT, -ENAMETOOLONG: an address that is not a UNIX socket's. */
BK_API int bk_supervisor_tell(bk_os *os, const char *state);

/* Tell the supervisor that we are alive, twice as often as it asks for (WATCHDOG_USEC), for as long
   as the loop turns: a loop that hangs is found out. 1: it does, now or already; 0: nobody wants to
   know; -EINVAL: what the environment says is not a number. Ends with the loop. */
BK_API int bk_supervisor_watch(bk_loop *loop);

/*
 * How a server runs. The drivers:
 *     loop       one loop, in the thread that calls
 *     loops:N    N threads with a loop each, which accept from the same sockets
 *     threads:N  as loops:N, each with one connection at most: a protocol may block there; what is
 *                beyond N connections waits in the backlog
 *     forks:N    N processes with a loop each, on sockets that their parent has opened. It restarts
 *                what dies: at once, or when that lived less than a second, after 0.1 s, twice as
 *                long each time up to 10 s; after five such deaths with nobody ever served it gives
 *                up. Endpoints with reuse_port=1 are opened by each process. Limits hold for each.
 * Endpoints that are one connection, as stdio: is, belong to the first loop or process alone.
 */
typedef struct bk_serve_options {
    size_t size;
    const char *driver;      /* NULL: BECKET_DRIVER, or loop */
    const bk_limits *limits; /* NULL: none */
    int drain; /* seconds that connections have to come to their end; 0: 30; < 0: none */
    /* Optional. Called once for every loop, before it listens, to register its schemes and engines,
       and to give it a protocol of its own in place of the server's, which ret_protocol is set to.
       Under forks:N in each process, and for the parent's loop, which listens but serves nobody;
       else in the thread that called. A negative result ends the server. */
    int (*setup)(void *arg, bk_loop *loop, const bk_protocol **ret_protocol);
    bk_log_fn log; /* NULL: lines to standard error. Called by any of the threads */
    void *arg;     /* for setup and log */
    bk_os *os;     /* NULL: bk_os_default() */
} bk_serve_options;

/* Serve a protocol at endpoints (a list of strings ended by NULL), on loops of its own and ignoring
   SIGPIPE, until SIGINT or SIGTERM: then it accepts no more, closes those that never said anything,
   and lets the others come to their end until the drain is over, or a second signal comes: what is
   left is cut. Ends, too, when all that it listens at was one connection and that is over. SIGHUP
   has certificates read again. Tells the log, or standard error, where it listens and what went
   wrong; a supervisor is told of all that, and that it lives. For main(): returns an exit status, 0
   when nothing was cut and nothing failed; else 1. Under forks:N the workers never return from it:
   they exit. options may be NULL. */
BK_API int bk_serve_with(const bk_serve_options *options, const bk_protocol *protocol,
                         const char *endpoint, ...);

/* bk_serve_with() without options. */
BK_API int bk_serve(const bk_protocol *protocol, const char *endpoint, ...);

#ifdef __cplusplus
}
#endif
#endif
