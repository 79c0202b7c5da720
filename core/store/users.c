/*
 * users.c: a file of users and what is kept of their passwords, a line "name:secret" each. Called
 * by smtp_users.c, and by programs that log in by other means than SMTP.
 *
 * The file is read whole, and strictly: one that is wrong anywhere is refused, with the number of
 * the line, and what was read before stays. Looking up is a search in a sorted table.
 */
#include "core/store/users.h"

#include "core/protocol/limits.h"
#include "core/protocol/scram.h"
#include "core/protocol/smtp_path.h"

#include <fcntl.h>
#include <stdlib.h>

typedef struct user {
    const char *name; /* in the text of its table */
    unsigned line;
    bk_secret secret;
} user;

struct bk_user_table {
    char *text;
    size_t count;
    unsigned char decoy[BK_SHA256_SIZE];
    user users[];
};

static void table_free(bk_os *os, bk_user_table *t) {
    if (t == NULL)
        return;
    bk_dealloc(os, t->text);
    bk_dealloc(os, t);
}

/* ---- The file ---- */

static int read_all(bk_os *os, int fd, char *room, size_t *ret_size) {
    size_t used = 0;
    while (used <= BK_USERS_FILE_MAX) {
        ssize_t n = os->read(os, fd, room + used, BK_USERS_FILE_MAX + 1 - used);
        if (n == -EINTR)
            continue;
        if (n <= 0) {
            *ret_size = used;
            return (int)n;
        }
        used += (size_t)n;
    }
    return -EFBIG;
}

/* Its text, with a NUL at its end. */
static int file_read(bk_os *os, const char *path, char **ret_text, size_t *ret_size) {
    int fd;
    do
        fd = os->open(os, path, O_RDONLY, 0);
    while (fd == -EINTR);
    if (fd < 0)
        return fd;
    size_t n = 0;
    char *text = bk_alloc(os, BK_USERS_FILE_MAX + 2), *fitted;
    int r = text == NULL ? -ENOMEM : read_all(os, fd, text, &n);
    bk_close_fd(os, fd);
    if (r < 0) {
        bk_dealloc(os, text);
        return r;
    }
    text[n] = '\0';
    fitted = os->resize(os, text, n + 1);
    *ret_text = fitted != NULL ? fitted : text;
    *ret_size = n;
    return 0;
}

/* ---- Lines ---- */

static bool name_valid(const char *name, size_t n) {
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)name[i] <= ' ' || name[i] == 0x7f)
            return false;
    return n > 0 && n <= BK_USERS_NAME_MAX && bk_utf8_valid(name, n);
}

/* A line, which is ended by NUL: 1: a user; 0: a comment, or nothing. */
static int line_parse(char *line, size_t n, user *ret_user) {
    if (n == 0 || *line == '#')
        return memchr(line, '\0', n) != NULL ? -EINVAL : 0;
    char *colon = memchr(line, ':', n);
    if (colon == NULL || memchr(line, '\0', n) != NULL || !name_valid(line, (size_t)(colon - line)))
        return -EINVAL;
    *colon = '\0';
    ret_user->name = line;
    int r = bk_secret_parse(colon + 1, &ret_user->secret);
    return r < 0 ? r : 1;
}

static size_t lines_in(const char *text, size_t n) {
    size_t lines = 1;
    for (const char *at = text; (at = memchr(at, '\n', n - (size_t)(at - text))) != NULL; at++)
        lines++;
    return lines;
}

static int by_name(const void *a, const void *b) {
    const user *left = a, *right = b;
    int order = strcmp(left->name, right->name);
    return order != 0 ? order : left->line < right->line ? -1 : left->line > right->line;
}

/* Sorted, and each name once: of two the later line is told. */
static int table_sort(bk_user_table *t, unsigned *ret_line) {
    qsort(t->users, t->count, sizeof *t->users, by_name);
    for (size_t i = 1; i < t->count; i++)
        if (strcmp(t->users[i - 1].name, t->users[i].name) == 0) {
            *ret_line = t->users[i].line;
            return -EEXIST;
        }
    return 0;
}

/* What decoys are made of is known to nobody who has not the file, and the same after a restart:
   or else they would be found out. */
static void table_decoy(bk_user_table *t) {
    bk_sha256 h;
    bk_sha256_init(&h);
    bk_sha256_add(&h, "decoy", 5);
    if (t->count > 0)
        bk_sha256_add(&h, t->users[0].secret.server_key, sizeof t->users[0].secret.server_key);
    bk_sha256_end(&h, t->decoy);
}

static int table_fill(bk_user_table *t, size_t size, unsigned *ret_line) {
    char *line = t->text, *end = t->text + size;
    for (unsigned number = 1; line < end; number++) {
        char *stop = memchr(line, '\n', (size_t)(end - line));
        if (stop == NULL)
            stop = end;
        *stop = '\0';
        int r = line_parse(line, (size_t)(stop - line), &t->users[t->count]);
        if (r < 0) {
            *ret_line = number;
            return r;
        }
        if (r > 0)
            t->users[t->count++].line = number;
        line = stop + 1;
    }
    int r = table_sort(t, ret_line);
    if (r >= 0)
        table_decoy(t);
    return r;
}

static int table_read(bk_os *os, const char *path, bk_user_table **ret_table, unsigned *ret_line) {
    char *text = NULL;
    size_t size = 0;
    int r = file_read(os, path, &text, &size);
    if (r < 0)
        return r;
    size_t lines = lines_in(text, size);
    bk_user_table *t = bk_alloc_zero(os, sizeof *t + lines * sizeof *t->users);
    if (t == NULL) {
        bk_dealloc(os, text);
        return -ENOMEM;
    }
    t->text = text;
    r = table_fill(t, size, ret_line);
    if (r < 0)
        table_free(os, t);
    else
        *ret_table = t;
    return r;
}

/* ---- Users ---- */

int bk_users_open(bk_os *os, const char *path, bk_users **ret_users, unsigned *ret_line) {
    unsigned line = 0;
    if (os == NULL || path == NULL || *path == '\0' || ret_users == NULL)
        return -EINVAL;
    size_t n = strlen(path) + 1;
    bk_users *u = bk_alloc_zero(os, sizeof *u + n);
    if (u == NULL)
        return -ENOMEM;
    u->os = os;
    memcpy(u->path, path, n);
    atomic_init(&u->references, 1);
    u->lock = bk_lock_new(os);
    int r = u->lock == NULL ? -ENOMEM : table_read(os, path, &u->table, &line);
    if (ret_line != NULL)
        *ret_line = line;
    if (r < 0)
        bk_users_release(u);
    else
        *ret_users = u;
    return r;
}

int bk_users_reload(bk_users *users, unsigned *ret_line) {
    bk_user_table *table = NULL;
    unsigned line = 0;
    if (users == NULL)
        return -EINVAL;
    int r = table_read(users->os, users->path, &table, &line);
    if (ret_line != NULL)
        *ret_line = line;
    if (r < 0)
        return r;
    bk_lock_take(users->lock);
    bk_user_table *old = users->table;
    users->table = table;
    bk_lock_drop(users->lock);
    table_free(users->os, old);
    return 0;
}

void bk_users_release(bk_users *u) {
    if (atomic_fetch_sub(&u->references, 1) != 1)
        return;
    table_free(u->os, u->table);
    bk_users_lanes_free(u);
    if (u->lock != NULL)
        bk_lock_free(u->os, u->lock);
    bk_dealloc(u->os, u);
}

void bk_users_close(bk_users *users) {
    if (users != NULL)
        bk_users_release(users);
}

static int user_order(const void *name, const void *entry) {
    return strcmp(name, ((const user *)entry)->name);
}

/* A secret that is always the same for a name, and looks like those of the file. */
static void decoy_make(const bk_user_table *t, const char *name, bk_secret *ret_secret) {
    unsigned char salt[BK_SHA256_SIZE];
    *ret_secret = (bk_secret){.iterations = BK_SECRET_ITERATIONS, .salt_size = BK_SCRAM_SALT};
    if (t->count > 0) {
        ret_secret->iterations = t->users[0].secret.iterations;
        ret_secret->salt_size = t->users[0].secret.salt_size;
    }
    bk_hmac_sha256(t->decoy, sizeof t->decoy, name, strlen(name), salt);
    for (size_t used = 0; used < ret_secret->salt_size; used += sizeof salt) {
        size_t left = ret_secret->salt_size - used;
        memcpy(ret_secret->salt + used, salt, left < sizeof salt ? left : sizeof salt);
        bk_hmac_sha256(t->decoy, sizeof t->decoy, salt, sizeof salt, salt);
    }
}

bool bk_users_look_up(bk_users *users, const char *name, bk_secret *ret_secret) {
    bk_lock_take(users->lock);
    const bk_user_table *t = users->table;
    const user *found =
        t->count > 0 ? bsearch(name, t->users, t->count, sizeof *t->users, user_order) : NULL;
    if (found != NULL)
        *ret_secret = found->secret;
    else
        decoy_make(t, name, ret_secret);
    bk_lock_drop(users->lock);
    return found != NULL;
}

int bk_users_find(bk_users *users, const char *name, bk_secret *ret_secret) {
    bk_secret secret;
    if (users == NULL || name == NULL || ret_secret == NULL)
        return -EINVAL;
    if (!bk_users_look_up(users, name, &secret))
        return -ENOENT;
    *ret_secret = secret;
    return 0;
}
