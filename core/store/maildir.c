/*
 * maildir.c: stores messages in a Maildir (cr.yp.to/proto/maildir.html): for mail servers, through
 * smtp_maildir.c, and for programs with messages of their own.
 *
 * A message is written to tmp/, synced, renamed into new/, and new/ is synced; only then it is told
 * as stored. What fails on the way is undone. rename, not link and unlink: names are unique (time,
 * process, counter, 64 random bits), and one step leaves one thing less to undo.
 */
#include <becket-smtp.h>

#include "core/os/os.h"
#include "core/protocol/limits.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>

#ifndef O_DIRECTORY
#define O_DIRECTORY 0
#endif

struct bk_maildir {
    bk_os *os;
    atomic_uint users; /* the owner, and deliveries under way */
    atomic_uint counter;
    char host[BK_MAILDIR_HOST_MAX + 1]; /* as it is in names */
    char path[];
};

enum { MAILDIR_PATH = BK_MAILDIR_PATH_MAX + sizeof "/new/" + BK_MAILDIR_NAME };

/* ---- Opening ---- */

/* "/" and ":" have a meaning in names; these, and all that is not plain, become "\057". */
static void host_escape(const char *host, char ret_text[BK_MAILDIR_HOST_MAX + 1]) {
    size_t used = 0;
    for (; *host != '\0' && used + 4 <= BK_MAILDIR_HOST_MAX; host++) {
        unsigned char c = (unsigned char)*host;
        bool plain = (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z') || c == '.' ||
                     c == '-' || c == '_';
        if (plain)
            ret_text[used++] = (char)c;
        else
            used += (size_t)snprintf(ret_text + used, 5, "\\%03o", c);
    }
    ret_text[used] = '\0';
}

static int folder_open(bk_os *os, const char *path) {
    int fd;
    do
        fd = os->open(os, path, O_RDONLY | O_DIRECTORY, 0);
    while (fd == -EINTR);
    return fd;
}

/* mkdir, and what is there already must be a folder. */
static int folder_make(bk_os *os, const char *path) {
    int r = os->mkdir(os, path, 0700);
    if (r < 0 && r != -EEXIST)
        return r;
    int fd = folder_open(os, path);
    bk_close_fd(os, fd);
    return fd < 0 ? fd : 0;
}

static int folders_make(bk_maildir *d) {
    static const char *const parts[] = {"", "/tmp", "/new", "/cur"};
    char path[MAILDIR_PATH];
    int r = 0;
    for (size_t i = 0; i < sizeof parts / sizeof *parts && r >= 0; i++) {
        snprintf(path, sizeof path, "%s%s", d->path, parts[i]);
        r = folder_make(d->os, path);
    }
    return r;
}

static void maildir_release(bk_maildir *d) {
    if (atomic_fetch_sub(&d->users, 1) == 1)
        bk_dealloc(d->os, d);
}

int bk_maildir_open(bk_os *os, const char *path, const char *hostname, bk_maildir **ret_maildir) {
    if (os == NULL || path == NULL || *path == '\0' || ret_maildir == NULL)
        return -EINVAL;
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/')
        n--;
    if (n > BK_MAILDIR_PATH_MAX)
        return -ENAMETOOLONG;
    bk_maildir *d = bk_alloc_zero(os, sizeof *d + n + 1);
    if (d == NULL)
        return -ENOMEM;
    d->os = os;
    memcpy(d->path, path, n);
    atomic_init(&d->users, 1);
    atomic_init(&d->counter, 0);
    host_escape(hostname != NULL && *hostname != '\0' ? hostname : "localhost", d->host);
    int r = folders_make(d);
    if (r < 0) {
        maildir_release(d);
        return r;
    }
    *ret_maildir = d;
    return 0;
}

void bk_maildir_close(bk_maildir *maildir) {
    if (maildir != NULL)
        maildir_release(maildir);
}

/* ---- Delivery ---- */

/* One message on its way: its name, and where it is in the file system. */
typedef struct delivery {
    bk_maildir *maildir;
    char name[BK_MAILDIR_NAME];
    char tmp[MAILDIR_PATH], new[MAILDIR_PATH];
    int fd;
    bool renamed;
} delivery;

static int delivery_name(delivery *v) {
    bk_maildir *d = v->maildir;
    uint64_t chance;
    int r = d->os->random(d->os, &chance, sizeof chance);
    if (r < 0)
        return r;
    int64_t wall = d->os->wall(d->os);
    snprintf(v->name, sizeof v->name, "%lld.M%06dP%dQ%uR%016llx.%s", (long long)(wall / BK_SECOND),
             (int)(wall % BK_SECOND / 1000), d->os->getpid(d->os), atomic_fetch_add(&d->counter, 1),
             (unsigned long long)chance, d->host);
    snprintf(v->tmp, sizeof v->tmp, "%s/tmp/%s", d->path, v->name);
    snprintf(v->new, sizeof v->new, "%s/new/%s", d->path, v->name);
    return 0;
}

/* A file in tmp/ that nobody else has. */
static int delivery_create(delivery *v) {
    bk_os *os = v->maildir->os;
    int r = -EEXIST;
    for (int i = 0; i < BK_MAILDIR_TRIES && (r == -EEXIST || r == -EINTR); i++) {
        r = delivery_name(v);
        if (r >= 0)
            r = os->open(os, v->tmp, O_WRONLY | O_CREAT | O_EXCL, 0600);
    }
    v->fd = r;
    return r < 0 ? r : 0;
}

/* Drop the first n bytes of what is still to be written. */
static void parts_skip(struct iovec **v, int *count, size_t n) {
    while (*count > 0 && n >= (*v)->iov_len) {
        n -= (*v)->iov_len;
        ++*v;
        --*count;
    }
    if (n > 0) {
        (*v)->iov_base = (char *)(*v)->iov_base + n;
        (*v)->iov_len -= n;
    }
}

static int delivery_write(delivery *v, const struct iovec *parts, int count) {
    struct iovec copy[BK_IOV_MAX], *left = copy;
    bk_os *os = v->maildir->os;
    if (count > 0)
        memcpy(copy, parts, (size_t)count * sizeof *parts);
    parts_skip(&left, &count, 0);
    while (count > 0) {
        ssize_t n = os->write(os, v->fd, left, count);
        if (n == -EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? (int)n : -EIO;
        parts_skip(&left, &count, (size_t)n);
    }
    return 0;
}

static int sync_fd(bk_os *os, int fd) {
    int r;
    do
        r = os->fsync(os, fd);
    while (r == -EINTR);
    return r;
}

/* All of it is on disk, under its name in tmp/. A close that fails (NFS) may mean that it is not;
   after one that was interrupted the descriptor is gone, and the data was synced. */
static int delivery_finish(delivery *v) {
    bk_os *os = v->maildir->os;
    int r = sync_fd(os, v->fd), fd = v->fd;
    if (r < 0)
        return r;
    v->fd = -1;
    r = os->close(os, fd);
    return r == -EINTR ? 0 : r;
}

/* Into new/, for good: the folder is opened first, so that what can fail fails before. */
static int delivery_publish(delivery *v) {
    char folder[MAILDIR_PATH];
    bk_os *os = v->maildir->os;
    snprintf(folder, sizeof folder, "%s/new", v->maildir->path);
    int fd = folder_open(os, folder);
    if (fd < 0)
        return fd;
    v->renamed = true; /* a rename that fails may have happened all the same (NFS) */
    int r = os->rename(os, v->tmp, v->new);
    if (r >= 0) {
        r = sync_fd(os, fd);
        if (r == -EINVAL) /* a file system that has no sync of folders */
            r = 0;
    }
    bk_close_fd(os, fd);
    return r;
}

static void delivery_undo(delivery *v) {
    bk_os *os = v->maildir->os;
    bk_close_fd(os, v->fd);
    (void)os->unlink(os, v->tmp);
    if (v->renamed)
        (void)os->unlink(os, v->new);
}

int bk_maildir_deliver(bk_maildir *maildir, const struct iovec *parts, int count,
                       char ret_name[BK_MAILDIR_NAME]) {
    if (maildir == NULL || count < 0 || count > BK_IOV_MAX || (parts == NULL && count > 0))
        return -EINVAL;
    delivery v;
    v.maildir = maildir;
    v.renamed = false;
    int r = delivery_create(&v);
    if (r < 0)
        return r;
    r = delivery_write(&v, parts, count);
    if (r >= 0)
        r = delivery_finish(&v);
    if (r >= 0)
        r = delivery_publish(&v);
    if (r < 0)
        delivery_undo(&v);
    else if (ret_name != NULL)
        memcpy(ret_name, v.name, sizeof v.name);
    return r < 0 ? r : 0;
}

/* ---- Delivery by a worker ---- */

typedef struct delivery_work {
    bk_work work;
    bk_maildir *maildir;
    bk_maildir_done done;
    void *arg;
    int code, count;
    char name[BK_MAILDIR_NAME];
    struct iovec parts[];
} delivery_work;

static void delivery_run(bk_work *work) {
    delivery_work *w = (delivery_work *)work;
    w->code = bk_maildir_deliver(w->maildir, w->parts, w->count, w->name);
}

static void delivery_done(bk_work *work) {
    delivery_work *w = (delivery_work *)work;
    bk_os *os = w->maildir->os;
    if (w->done != NULL)
        w->done(w->arg, w->code, w->code < 0 ? NULL : w->name);
    maildir_release(w->maildir);
    bk_dealloc(os, w);
}

int bk_maildir_deliver_soon(bk_maildir *maildir, bk_loop *loop, const struct iovec *parts,
                            int count, bk_maildir_done done, void *arg) {
    if (maildir == NULL || loop == NULL || count < 0 || count > BK_IOV_MAX ||
        (parts == NULL && count > 0))
        return -EINVAL;
    bk_os *os = maildir->os;
    delivery_work *w = bk_alloc_zero(os, sizeof *w + (size_t)count * sizeof *parts);
    if (w == NULL)
        return -ENOMEM;
    w->work.run = delivery_run;
    w->work.done = delivery_done;
    w->maildir = maildir;
    w->done = done;
    w->arg = arg;
    w->count = count;
    if (count > 0)
        memcpy(w->parts, parts, (size_t)count * sizeof *parts);
    atomic_fetch_add(&maildir->users, 1);
    int r = bk_work_start(loop, &w->work);
    if (r < 0) {
        maildir_release(maildir);
        bk_dealloc(os, w);
    }
    return r;
}
