/*
 * maildir.c: stores messages in a Maildir (cr.yp.to/proto/maildir.html): for mail servers, through
 * smtp_maildir.c, and for programs with messages of their own.
 *
 * A message is written to tmp/, synced, renamed into new/, and new/ is synced; only then it is told
 * as stored. What fails on the way is undone. rename, not link and unlink: names are unique (time,
 * process, counter, 64 random bits), and one step leaves one thing less to undo.
 *
 * Messages that arrive together are stored in groups: a loop's writers, each a work of its pool,
 * take what waits, and what arrives meanwhile waits for the next that is free. All of a group are
 * written before anything is synced. Then one call syncs them, where the system has one that can be
 * relied on: syncing file after file flushes the disk's cache for each, which is what takes the
 * time. That call also waits for what other programs have written to the file system; so a few
 * messages are synced file by file. new/ is synced once for all.
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

typedef struct delivery delivery;
typedef struct lane lane;

struct bk_maildir {
    bk_os *os;
    bk_lock *lock; /* for the lanes */
    lane *lanes;
    atomic_uint users; /* the owner, and writers at work: whatever waits, waits for one */
    atomic_uint counter;
    char host[BK_MAILDIR_HOST_MAX + 1]; /* as it is in names */
    char path[];
};

enum { MAILDIR_PATH = BK_MAILDIR_PATH_MAX + sizeof "/new/" + BK_MAILDIR_NAME };

/* One message on its way, and where it is in the file system. */
struct delivery {
    delivery *next;
    bk_maildir_done done;
    void *arg;
    const struct iovec *parts;
    int count;
    int code; /* why it failed; 0 until it does */
    int fd;
    bool created, renamed;
    char name[BK_MAILDIR_NAME];
};

/* Deliveries in the order in which they came. */
typedef struct queue {
    delivery *first, **end;
    unsigned count;
} queue;

/* Takes what waits in its lane, and stores it in one go. */
typedef struct writer {
    bk_work work;
    lane *lane;
    bool busy;
    queue group;
} writer;

/* What one loop wants stored. It stays as long as the Maildir. */
struct lane {
    lane *next;
    bk_maildir *maildir;
    bk_loop *loop;
    queue waiting;
    writer writers[BK_MAILDIR_WRITERS];
};

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
    if (atomic_fetch_sub(&d->users, 1) != 1)
        return;
    while (d->lanes != NULL) {
        lane *first = d->lanes;
        d->lanes = first->next;
        bk_dealloc(d->os, first);
    }
    if (d->lock != NULL)
        bk_lock_free(d->os, d->lock);
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
    d->lock = bk_lock_new(os);
    int r = d->lock == NULL ? -ENOMEM : folders_make(d);
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

/* ---- What was left over ---- */

typedef struct cleaning {
    bk_maildir *maildir;
    int64_t before;
} cleaning;

/* Whoever still writes to it, or is about to, has touched it since. */
static void clean_one(void *arg, const char *name) {
    const cleaning *c = arg;
    bk_os *os = c->maildir->os;
    char path[MAILDIR_PATH];
    bk_file_info info = {.modified = INT64_MAX};
    int n = snprintf(path, sizeof path, "%s/tmp/%s", c->maildir->path, name);
    if (n < 0 || (size_t)n >= sizeof path || os->file_info(os, path, &info) < 0)
        return;
    if (!info.is_directory && info.modified < c->before)
        (void)os->unlink(os, path);
}

int bk_maildir_clean(bk_maildir *maildir) {
    if (maildir == NULL)
        return -EINVAL;
    bk_os *os = maildir->os;
    char path[MAILDIR_PATH];
    cleaning c = {maildir, os->wall(os) - BK_MAILDIR_STALE_H * 3600 * BK_SECOND};
    snprintf(path, sizeof path, "%s/tmp", maildir->path);
    return BK_HAS(os, list) ? os->list(os, path, clean_one, &c) : -ENOTSUP;
}

/* ---- Writing a group ---- */

static void path_of(const bk_maildir *d, const char *folder, const delivery *v,
                    char ret_path[MAILDIR_PATH]) {
    snprintf(ret_path, MAILDIR_PATH, "%s/%s/%s", d->path, folder, v->name);
}

static int delivery_name(bk_maildir *d, delivery *v) {
    uint64_t chance;
    int r = d->os->random(d->os, &chance, sizeof chance);
    if (r < 0)
        return r;
    int64_t wall = d->os->wall(d->os);
    snprintf(v->name, sizeof v->name, "%lld.M%06dP%dQ%uR%016llx.%s", (long long)(wall / BK_SECOND),
             (int)(wall % BK_SECOND / 1000), d->os->getpid(d->os), atomic_fetch_add(&d->counter, 1),
             (unsigned long long)chance, d->host);
    return 0;
}

/* A file in tmp/ that nobody else has. */
static int delivery_create(bk_maildir *d, delivery *v) {
    char path[MAILDIR_PATH];
    int r = -EEXIST;
    for (int i = 0; i < BK_MAILDIR_TRIES && (r == -EEXIST || r == -EINTR); i++) {
        r = delivery_name(d, v);
        if (r < 0)
            return r;
        path_of(d, "tmp", v, path);
        r = d->os->open(d->os, path, O_WRONLY | O_CREAT | O_EXCL, 0600);
    }
    v->created = r >= 0;
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

static int delivery_write(bk_maildir *d, delivery *v) {
    struct iovec copy[BK_IOV_MAX], *left = copy;
    int count = v->count;
    if (count > 0)
        memcpy(copy, v->parts, (size_t)count * sizeof *copy);
    parts_skip(&left, &count, 0);
    while (count > 0) {
        ssize_t n = d->os->write(d->os, v->fd, left, count);
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

/* A close that fails (NFS) may mean that what was written is not on disk; after one that was
   interrupted the descriptor is gone, and the data was synced. */
static int delivery_close(bk_maildir *d, delivery *v) {
    int fd = v->fd;
    v->fd = -1;
    int r = d->os->close(d->os, fd);
    return r == -EINTR ? 0 : r;
}

/* All of it is on disk, under its name in tmp/. */
static int delivery_finish(bk_maildir *d, delivery *v) {
    int r = sync_fd(d->os, v->fd);
    return r < 0 ? r : delivery_close(d, v);
}

static int delivery_rename(bk_maildir *d, delivery *v) {
    char from[MAILDIR_PATH], to[MAILDIR_PATH];
    path_of(d, "tmp", v, from);
    path_of(d, "new", v, to);
    v->renamed = true; /* a rename that fails may have happened all the same (NFS) */
    return d->os->rename(d->os, from, to);
}

static void delivery_undo(bk_maildir *d, delivery *v) {
    char path[MAILDIR_PATH];
    bk_close_fd(d->os, v->fd);
    path_of(d, "tmp", v, path);
    if (v->created)
        (void)d->os->unlink(d->os, path);
    path_of(d, "new", v, path);
    if (v->renamed)
        (void)d->os->unlink(d->os, path);
}

/* One step for each that has come so far; one that fails fails alone. Returns how many are left. */
static unsigned group_step(bk_maildir *d, delivery *first, int (*step)(bk_maildir *, delivery *)) {
    unsigned left = 0;
    for (delivery *v = first; v != NULL; v = v->next) {
        int r = v->code < 0 ? v->code : step(d, v);
        v->code = r < 0 ? r : 0;
        left += r >= 0;
    }
    return left;
}

static void group_fail(delivery *first, int code) {
    for (delivery *v = first; v != NULL; v = v->next)
        if (v->code >= 0)
            v->code = code;
}

/* Into new/, for good. The folder is opened first, so that what can fail fails before; and for each
   group, so that it is the one that the messages are in, whatever an administrator has moved. */
static void group_publish(bk_maildir *d, delivery *first) {
    char path[MAILDIR_PATH];
    snprintf(path, sizeof path, "%s/new", d->path);
    int r = folder_open(d->os, path), fd = r;
    if (r >= 0 && group_step(d, first, delivery_rename) > 0)
        r = sync_fd(d->os, fd);
    if (r < 0 && !(r == -EINVAL && fd >= 0)) /* -EINVAL: it has no sync of folders */
        group_fail(first, r);
    bk_close_fd(d->os, fd);
}

/* Whether all were synced by one call. It would fail for a file of somebody else's too: then each
   is asked for by itself. */
static bool group_sync(bk_maildir *d, const delivery *first, unsigned count) {
    if (count < BK_MAILDIR_TOGETHER || !BK_HAS(d->os, sync_all))
        return false;
    while (first->code < 0) /* the first that was opened saw what became of all others */
        first = first->next;
    return d->os->sync_all(d->os, first->fd) >= 0;
}

static void group_store(bk_maildir *d, delivery *first) {
    group_step(d, first, delivery_create);
    unsigned count = group_step(d, first, delivery_write);
    bool synced = group_sync(d, first, count);
    if (group_step(d, first, synced ? delivery_close : delivery_finish) > 0)
        group_publish(d, first);
    for (delivery *v = first; v != NULL; v = v->next)
        if (v->code < 0)
            delivery_undo(d, v);
}

int bk_maildir_deliver(bk_maildir *maildir, const struct iovec *parts, int count,
                       char ret_name[BK_MAILDIR_NAME]) {
    if (maildir == NULL || count < 0 || count > BK_IOV_MAX || (parts == NULL && count > 0))
        return -EINVAL;
    delivery v = {.parts = parts, .count = count, .fd = -1};
    group_store(maildir, &v);
    if (v.code >= 0 && ret_name != NULL)
        memcpy(ret_name, v.name, sizeof v.name);
    return v.code;
}

/* ---- Delivery by a loop's writers ---- */

static void queue_add(queue *q, delivery *v) {
    if (q->count++ == 0)
        q->end = &q->first;
    v->next = NULL;
    *q->end = v;
    q->end = &v->next;
}

static delivery *queue_take(queue *q) {
    delivery *v = q->first;
    if (v != NULL) {
        q->first = v->next;
        q->count--;
    }
    return v;
}

static void group_tell(bk_maildir *d, queue *group) {
    delivery *v;
    while ((v = queue_take(group)) != NULL) {
        if (v->done != NULL)
            v->done(v->arg, v->code, v->code < 0 ? NULL : v->name);
        bk_dealloc(d->os, v);
    }
}

static void writer_run(bk_work *work) {
    writer *w = (writer *)work;
    lane *l = w->lane;
    bk_maildir *d = l->maildir;
    bk_lock_take(d->lock);
    while (l->waiting.count > 0 && w->group.count < BK_MAILDIR_GROUP)
        queue_add(&w->group, queue_take(&l->waiting));
    bk_lock_drop(d->lock);
    group_store(d, w->group.first);
}

/* Goes on with what has come meanwhile, and tells of what was stored while that is written. Where
   not even a thread can be had, all that waits has failed. */
static void writer_done(bk_work *work) {
    writer *w = (writer *)work;
    lane *l = w->lane;
    bk_maildir *d = l->maildir;
    queue told = w->group, failed = {0};
    w->group = (queue){0};
    bk_lock_take(d->lock);
    w->busy = l->waiting.count > 0;
    int r = w->busy ? bk_work_start(l->loop, &w->work) : 0;
    if (r < 0) {
        w->busy = false;
        failed = l->waiting;
        l->waiting = (queue){0};
    }
    if (w->busy)
        atomic_fetch_add(&d->users, 1);
    bk_lock_drop(d->lock);
    group_fail(failed.first, r);
    group_tell(d, &told);
    group_tell(d, &failed);
    maildir_release(d);
}

/* The loop's lane, made when it is first needed; NULL: there is no memory. */
static lane *lane_of(bk_maildir *d, bk_loop *loop) {
    lane *l = d->lanes;
    while (l != NULL && l->loop != loop)
        l = l->next;
    if (l != NULL || (l = bk_alloc_zero(d->os, sizeof *l)) == NULL)
        return l;
    l->maildir = d;
    l->loop = loop;
    for (int i = 0; i < BK_MAILDIR_WRITERS; i++) {
        l->writers[i].work.run = writer_run;
        l->writers[i].work.done = writer_done;
        l->writers[i].lane = l;
    }
    l->next = d->lanes;
    return d->lanes = l;
}

/* Under the lock, which a writer that is started waits for. When all are at work, the first that
   has done what it does goes on with this. */
static int lane_add(lane *l, delivery *v) {
    for (int i = 0; i < BK_MAILDIR_WRITERS; i++) {
        writer *w = &l->writers[i];
        int r;
        if (w->busy)
            continue;
        if ((r = bk_work_start(l->loop, &w->work)) < 0)
            return r;
        w->busy = true;
        atomic_fetch_add(&l->maildir->users, 1);
        break;
    }
    queue_add(&l->waiting, v);
    return 0;
}

int bk_maildir_deliver_soon(bk_maildir *maildir, bk_loop *loop, const struct iovec *parts,
                            int count, bk_maildir_done done, void *arg) {
    if (maildir == NULL || loop == NULL || count < 0 || count > BK_IOV_MAX ||
        (parts == NULL && count > 0))
        return -EINVAL;
    size_t bytes = (size_t)count * sizeof *parts;
    delivery *v = bk_alloc_zero(maildir->os, sizeof *v + bytes);
    if (v == NULL)
        return -ENOMEM;
    *v = (delivery){.done = done, .arg = arg, .count = count, .fd = -1};
    if (count > 0)
        v->parts = memcpy(v + 1, parts, bytes);
    bk_lock_take(maildir->lock);
    lane *l = lane_of(maildir, loop);
    int r = l == NULL ? -ENOMEM : lane_add(l, v);
    bk_lock_drop(maildir->lock);
    if (r < 0)
        bk_dealloc(maildir->os, v);
    return r;
}
