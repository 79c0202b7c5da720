/*
 * test_maildir.c: the Maildir store: what lies where, byte by byte; what is left when any call to
 * the system fails; delivery in the loop's workers; and SMTP into a Maildir, over a stream.
 */
#include <becket-smtp.h>

#include "core/os/os.h"
#include "core/protocol/limits.h"
#include "tests/c/check.h"
#include "tests/c/faults.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static faults world;
static char base[256], dir[300];

/* ---- A folder to work in ---- */

static void path_of(char *ret_path, size_t room, const char *part, const char *name) {
    snprintf(ret_path, room, "%s/%s/%s", dir, part, name);
}

/* How many files are in a part of the Maildir, and the name of one; -1: there is no such folder. */
static int files_in(const char *part, char *ret_name) {
    char path[1024];
    path_of(path, sizeof path, part, "");
    DIR *d = opendir(path);
    struct dirent *e;
    int n = 0;
    if (d == NULL)
        return -1;
    while ((e = readdir(d)) != NULL)
        if (e->d_name[0] != '.') {
            n++;
            if (ret_name != NULL)
                snprintf(ret_name, BK_MAILDIR_NAME, "%s", e->d_name);
        }
    closedir(d);
    return n;
}

static void empty_part(const char *part) {
    char name[BK_MAILDIR_NAME], path[1024];
    while (files_in(part, name) > 0) {
        path_of(path, sizeof path, part, name);
        if (unlink(path) < 0)
            return;
    }
    path_of(path, sizeof path, part, "");
    rmdir(path);
}

static void remove_all(void) {
    empty_part("tmp");
    empty_part("new");
    empty_part("cur");
    rmdir(dir);
}

static void setup(void) {
    snprintf(base, sizeof base, "%s/becket-maildir-XXXXXX",
             getenv("TMPDIR") != NULL ? getenv("TMPDIR") : "/tmp");
    CHECK(mkdtemp(base) != NULL);
    snprintf(dir, sizeof dir, "%s/box", base);
    faults_open(&world, NULL);
}

static void teardown(void) {
    remove_all();
    CHECK_INT(rmdir(base), 0);
    CHECK_INT(faults_leaks(&world, NULL), 0);
    faults_close(&world);
}

/* The contents of a file in new/, ended by NUL; NULL when there is none of that name. */
static char *contents(const char *name) {
    char path[1024];
    path_of(path, sizeof path, "new", name);
    FILE *f = fopen(path, "rb");
    if (f == NULL)
        return NULL;
    char *text = calloc(1, 1 << 20);
    size_t n = fread(text, 1, (1 << 20) - 1, f);
    text[n] = '\0';
    fclose(f);
    return text;
}

static struct iovec part(const char *text) {
    return (struct iovec){(void *)(uintptr_t)text, strlen(text)};
}

/* ---- The synchronous side ---- */

static void makes_its_folders(void) {
    bk_maildir *d = NULL;
    struct stat st;
    setup();
    CHECK_INT(bk_maildir_open(faults_os(&world), dir, NULL, &d), 0);
    CHECK_INT(files_in("tmp", NULL), 0);
    CHECK_INT(files_in("new", NULL), 0);
    CHECK_INT(files_in("cur", NULL), 0);
    CHECK_INT(stat(dir, &st), 0);
    CHECK_INT(st.st_mode & 0777, 0700);
    bk_maildir_close(d);
    CHECK_INT(bk_maildir_open(faults_os(&world), dir, NULL, &d), 0); /* they are there */
    bk_maildir_close(d);
    char slashed[400];
    snprintf(slashed, sizeof slashed, "%s///", dir);
    CHECK_INT(bk_maildir_open(faults_os(&world), slashed, NULL, &d), 0);
    bk_maildir_close(d);
    bk_maildir_close(NULL);
    teardown();
}

static void refuses_what_is_no_folder(void) {
    bk_maildir *d = NULL;
    setup();
    bk_os *os = faults_os(&world);
    FILE *f = fopen(dir, "w");
    fclose(f);
    CHECK_INT(bk_maildir_open(os, dir, NULL, &d), -ENOTDIR);
    unlink(dir);
    char path[BK_MAILDIR_PATH_MAX + 100];
    snprintf(path, sizeof path, "%s/no/such", base);
    CHECK_INT(bk_maildir_open(os, path, NULL, &d), -ENOENT);
    memset(path, 'x', sizeof path);
    path[sizeof path - 1] = '\0';
    CHECK_INT(bk_maildir_open(os, path, NULL, &d), -ENAMETOOLONG);
    CHECK_INT(bk_maildir_open(os, "", NULL, &d), -EINVAL);
    CHECK_INT(bk_maildir_open(os, NULL, NULL, &d), -EINVAL);
    CHECK_INT(bk_maildir_open(NULL, dir, NULL, &d), -EINVAL);
    CHECK_INT(bk_maildir_open(os, dir, NULL, NULL), -EINVAL);
    CHECK(d == NULL);
    teardown();
}

static void stores_what_it_is_given(void) {
    bk_maildir *d = NULL;
    char name[BK_MAILDIR_NAME] = "", found[BK_MAILDIR_NAME];
    struct stat st;
    setup();
    CHECK_INT(bk_maildir_open(faults_os(&world), dir, "a/b:c d", &d), 0);
    struct iovec parts[] = {part("Return-Path: <>\r\n"), part(""), part("x\r\n\r\nhello\r\n")};
    CHECK_INT(bk_maildir_deliver(d, parts, COUNT(parts), name), 0);
    CHECK_INT(files_in("new", found), 1);
    CHECK_STR(found, name);
    CHECK_INT(files_in("tmp", NULL), 0);
    CHECK(strstr(name, ".a\\057b\\072c\\040d") != NULL);
    CHECK(strchr(name, '/') == NULL && strchr(name, ':') == NULL);
    char *text = contents(name), path[1024];
    CHECK_STR(text, "Return-Path: <>\r\nx\r\n\r\nhello\r\n");
    free(text);
    path_of(path, sizeof path, "new", name);
    CHECK_INT(stat(path, &st), 0);
    CHECK_INT(st.st_mode & 0777, 0600);
    CHECK_INT(parts[0].iov_len, 17); /* the caller's parts are as they were */
    CHECK_INT(bk_maildir_deliver(d, parts, -1, name), -EINVAL);
    CHECK_INT(bk_maildir_deliver(d, parts, BK_IOV_MAX + 1, name), -EINVAL);
    CHECK_INT(bk_maildir_deliver(d, NULL, 1, name), -EINVAL);
    CHECK_INT(bk_maildir_deliver(d, NULL, 0, NULL), 0); /* an empty one */
    CHECK_INT(files_in("new", NULL), 2);
    bk_maildir_close(d);
    teardown();
}

static void gives_each_a_name(void) {
    bk_maildir *d = NULL;
    char host[600], name[BK_MAILDIR_NAME];
    setup();
    memset(host, '/', sizeof host);
    host[sizeof host - 1] = '\0';
    CHECK_INT(bk_maildir_open(faults_os(&world), dir, host, &d), 0);
    struct iovec one = part("x");
    for (int i = 0; i < 200; i++)
        CHECK_INT(bk_maildir_deliver(d, &one, 1, name), 0);
    CHECK_INT(files_in("new", NULL), 200);
    CHECK(strlen(name) < 255);
    bk_maildir_close(d);
    teardown();
}

/* A store in which the n-th call of some kind goes wrong. */
static void deliver_with(faults_kind kind, bool may_succeed) {
    static char big[100000];
    memset(big, 'y', sizeof big - 1);
    struct iovec parts[] = {part("header\r\n"), part(big)};
    for (long n = 1;; n++) {
        bk_maildir *d = NULL;
        char name[BK_MAILDIR_NAME], found[BK_MAILDIR_NAME];
        remove_all();
        CHECK_INT(bk_maildir_open(faults_quiet(&world), dir, NULL, &d), 0);
        bk_maildir_close(d);
        faults_arm(&world, kind, n);
        int r = bk_maildir_open(faults_os(&world), dir, NULL, &d);
        if (r >= 0) {
            r = bk_maildir_deliver(d, parts, COUNT(parts), name);
            bk_maildir_close(d);
        }
        long calls = faults_disarm(&world);
        bool undo_failed = faults_fired(&world) > 0 && strcmp(faults_struck(&world), "unlink") == 0;
        CHECK(r == 0 || !may_succeed);
        CHECK_INT(files_in("new", found), r == 0 ? 1 : 0);
        CHECK(files_in("tmp", NULL) == 0 || undo_failed);
        CHECK_INT(faults_leaks(&world, NULL), 0);
        if (r == 0) {
            char *text = contents(name);
            CHECK(text != NULL && strlen(text) == 8 + sizeof big - 1);
            free(text);
        }
        if (calls < n)
            break;
        if (kind == FAULTS_ERROR && strcmp(faults_struck(&world), "close") != 0 &&
            strcmp(faults_struck(&world), "mkdir") != 0)
            CHECK(r < 0);
    }
}

static void undoes_what_fails(void) {
    setup();
    deliver_with(FAULTS_ERROR, false);
    teardown();
}

static void goes_on_after_interruptions(void) {
    setup();
    deliver_with(FAULTS_INTERRUPTED, true);
    teardown();
}

static void finishes_short_writes(void) {
    setup();
    deliver_with(FAULTS_SHORT, true);
    teardown();
}

static void survives_without_memory(void) {
    setup();
    deliver_with(FAULTS_NO_MEMORY, false);
    teardown();
}

/* Undoing that fails too, and calls that fail in ways of their own. */
typedef struct broken_os {
    bk_os os;
    const char *what;
    int code, unlinked;
    bool rename_happens;
} broken_os;

static int broken_fsync(bk_os *os, int fd) {
    broken_os *b = (broken_os *)os;
    struct stat st;
    bool folder = fstat(fd, &st) == 0 && S_ISDIR(st.st_mode);
    if (strcmp(b->what, folder ? "fsync folder" : "fsync file") == 0)
        return b->code;
    return bk_os_default()->fsync(bk_os_default(), fd);
}

static ssize_t broken_write(bk_os *os, int fd, const struct iovec *v, int n) {
    broken_os *b = (broken_os *)os;
    return strcmp(b->what, "write") == 0 ? b->code : bk_os_default()->write(os, fd, v, n);
}

static int broken_rename(bk_os *os, const char *from, const char *to) {
    broken_os *b = (broken_os *)os;
    if (strcmp(b->what, "rename") != 0)
        return bk_os_default()->rename(os, from, to);
    if (b->rename_happens)
        (void)bk_os_default()->rename(os, from, to);
    return b->code;
}

static int broken_open(bk_os *os, const char *path, int flags, unsigned mode) {
    broken_os *b = (broken_os *)os;
    if (strcmp(b->what, "open") == 0 && mode != 0)
        return b->code;
    return bk_os_default()->open(os, path, flags, mode);
}

static void fails_with(const char *what, int code, bool rename_happens, int expected) {
    broken_os b = {*bk_os_default(), "", code, 0, rename_happens};
    b.os.fsync = broken_fsync;
    b.os.write = broken_write;
    b.os.rename = broken_rename;
    b.os.open = broken_open;
    bk_maildir *d = NULL;
    char name[BK_MAILDIR_NAME];
    struct iovec one = part("x");
    remove_all();
    CHECK_INT(bk_maildir_open(&b.os, dir, NULL, &d), 0);
    b.what = what;
    CHECK_INT(bk_maildir_deliver(d, &one, 1, name), expected);
    CHECK_INT(files_in("new", NULL), expected == 0);
    CHECK_INT(files_in("tmp", NULL), 0);
    bk_maildir_close(d);
}

static void tells_what_failed(void) {
    setup();
    fails_with("write", -ENOSPC, false, -ENOSPC);
    fails_with("write", 0, false, -EIO); /* nothing written, no error: it would go on for ever */
    fails_with("fsync file", -EIO, false, -EIO);
    fails_with("fsync folder", -EIO, false, -EIO);
    fails_with("fsync folder", -EINVAL, false, 0); /* it cannot be synced there */
    fails_with("rename", -EINVAL, false, -EINVAL);
    fails_with("rename", -EIO, true, -EIO);
    fails_with("open", -EEXIST, false, -EEXIST); /* for every name: it gives up */
    fails_with("open", -EMFILE, false, -EMFILE);
    teardown();
}

/* ---- By a worker ---- */

typedef struct outcome {
    int calls, code;
    char name[BK_MAILDIR_NAME];
    bk_loop *loop;
} outcome;

static void delivered(void *arg, int code, const char *name) {
    outcome *o = arg;
    o->calls++;
    o->code = code;
    if (name != NULL)
        snprintf(o->name, sizeof o->name, "%s", name);
    bk_loop_stop(o->loop);
}

static bk_loop *loop_over(bk_os *os) {
    bk_loop_options options = {.size = sizeof options, .os = os};
    bk_loop *loop = NULL;
    CHECK_INT(bk_loop_new(&options, &loop), 0);
    return loop;
}

static void delivers_in_a_worker(void) {
    bk_maildir *d = NULL;
    setup();
    bk_os *os = faults_os(&world);
    outcome o = {.loop = loop_over(os)};
    struct iovec one = part("hello\r\n");
    CHECK_INT(bk_maildir_open(os, dir, NULL, &d), 0);
    CHECK_INT(bk_maildir_deliver_soon(d, o.loop, &one, 1, delivered, &o), 0);
    bk_maildir_close(d); /* the delivery goes on */
    CHECK_INT(o.calls, 0);
    CHECK_INT(bk_loop_run(o.loop), 0);
    CHECK_INT(o.calls, 1);
    CHECK_INT(o.code, 0);
    char *text = contents(o.name);
    CHECK_STR(text, "hello\r\n");
    free(text);
    CHECK_INT(bk_loop_free(o.loop), 0);
    teardown();
}

static void finishes_when_the_loop_ends(void) {
    bk_maildir *d = NULL;
    setup();
    bk_os *os = faults_os(&world);
    outcome o = {.loop = loop_over(os)};
    struct iovec one = part("hello\r\n");
    CHECK_INT(bk_maildir_open(os, dir, NULL, &d), 0);
    CHECK_INT(bk_maildir_deliver_soon(d, o.loop, &one, 1, delivered, &o), 0);
    CHECK_INT(bk_maildir_deliver_soon(d, o.loop, &one, 1, NULL, NULL), 0);
    CHECK_INT(bk_maildir_deliver_soon(d, NULL, &one, 1, delivered, &o), -EINVAL);
    bk_maildir_close(d);
    CHECK_INT(bk_loop_free(o.loop), 0);
    CHECK_INT(o.calls, 1);
    CHECK_INT(files_in("new", NULL), 2);
    teardown();
}

/* ---- In groups ---- */

enum { MANY = 40 };

typedef struct crowd {
    bk_loop *loop;
    int told, stored, failed;
    char names[MANY][BK_MAILDIR_NAME], texts[MANY][20];
    struct iovec parts[MANY];
} crowd;

typedef struct counting_os {
    bk_os os;
    atomic_int opens, folder_syncs, file_syncs, group_syncs;
    int fails_at;   /* the open that makes a file, from 1 on */
    int group_code; /* of sync_all */
} counting_os;

static int counting_open(bk_os *os, const char *path, int flags, unsigned mode) {
    counting_os *c = (counting_os *)os;
    if (mode != 0 && atomic_fetch_add(&c->opens, 1) + 1 == c->fails_at)
        return -EMFILE;
    return bk_os_default()->open(bk_os_default(), path, flags, mode);
}

static int counting_fsync(bk_os *os, int fd) {
    counting_os *c = (counting_os *)os;
    struct stat st;
    bool folder = fstat(fd, &st) == 0 && S_ISDIR(st.st_mode);
    atomic_fetch_add(folder ? &c->folder_syncs : &c->file_syncs, 1);
    return bk_os_default()->fsync(bk_os_default(), fd);
}

static int counting_sync_all(bk_os *os, int fd) {
    counting_os *c = (counting_os *)os;
    (void)fd;
    atomic_fetch_add(&c->group_syncs, 1);
    return c->group_code;
}

static counting_os counts(void) {
    counting_os c = {.os = *bk_os_default()};
    c.os.open = counting_open;
    c.os.fsync = counting_fsync;
    c.os.sync_all = counting_sync_all;
    return c;
}

static void one_told(void *arg, int code, const char *name) {
    crowd *c = arg;
    c->told++;
    if (code < 0)
        c->failed++;
    else
        snprintf(c->names[c->stored++], BK_MAILDIR_NAME, "%s", name);
    CHECK((code < 0) == (name == NULL));
}

/* All are given to the Maildir in one turn of the loop. */
static int deliver_many(crowd *c, bk_maildir *d, int n) {
    int started = 0;
    for (int i = 0; i < n; i++) {
        snprintf(c->texts[i], sizeof c->texts[i], "message %d\r\n", i);
        c->parts[i] = part(c->texts[i]);
        started += bk_maildir_deliver_soon(d, c->loop, &c->parts[i], 1, one_told, c) == 0;
    }
    return started;
}

static void deliver_all(counting_os *os, crowd *c, int n) {
    bk_maildir *d = NULL;
    c->loop = loop_over(&os->os);
    CHECK_INT(bk_maildir_open(&os->os, dir, NULL, &d), 0);
    CHECK_INT(deliver_many(c, d, n), n);
    bk_maildir_close(d);
    while (c->told < n)
        CHECK_INT(bk_loop_turn(c->loop, BK_SECOND), 0);
    CHECK_INT(bk_loop_free(c->loop), 0);
    CHECK_INT(c->told, n);
    CHECK_INT(files_in("new", NULL), c->stored);
    CHECK_INT(files_in("tmp", NULL), 0);
}

static void stores_many_together(void) {
    counting_os os = counts();
    crowd c = {0};
    bool seen[MANY] = {false};
    setup();
    deliver_all(&os, &c, MANY);
    CHECK_INT(c.stored, MANY);
    for (int i = 0; i < c.stored; i++) {
        char *text = contents(c.names[i]);
        int number = -1;
        CHECK(text != NULL && sscanf(text, "message %d\r\n", &number) == 1);
        CHECK(number >= 0 && number < MANY && !seen[number]);
        seen[number] = true;
        free(text);
    }
    /* Two writers may have begun with fewer than there were to come. */
    CHECK(atomic_load(&os.folder_syncs) <= MANY / 2);
    CHECK(atomic_load(&os.group_syncs) > 0);
    CHECK(atomic_load(&os.file_syncs) < MANY / 2);
    teardown();
}

static void one_fails_alone(void) {
    for (int at = 1; at <= MANY; at += 13) {
        counting_os os = counts();
        crowd c = {0};
        os.fails_at = at;
        setup();
        deliver_all(&os, &c, MANY);
        CHECK_INT(c.failed, 1);
        CHECK_INT(c.stored, MANY - 1);
        teardown();
    }
}

static void syncs_one_by_one_where_it_must(void) {
    counting_os os = counts();
    crowd c = {0};
    os.group_code = -EIO;
    setup();
    deliver_all(&os, &c, MANY);
    CHECK_INT(c.stored, MANY);
    CHECK(atomic_load(&os.group_syncs) > 0);
    CHECK_INT(atomic_load(&os.file_syncs), MANY);
    teardown();
    counting_os old = counts();
    crowd c2 = {0};
    old.os.size = offsetof(bk_os, sync_all); /* made before there was such a call */
    setup();
    deliver_all(&old, &c2, MANY);
    CHECK_INT(c2.stored, MANY);
    CHECK_INT(atomic_load(&old.group_syncs), 0);
    CHECK_INT(atomic_load(&old.file_syncs), MANY);
    teardown();
}

/* A group on its way when some call fails: each is stored and told as stored, or neither. */
static void group_with(faults_kind kind) {
    enum { N = 9 };
    setup();
    for (long n = 1; check_failures == 0; n++) {
        bk_maildir *d = NULL;
        crowd c = {0};
        remove_all();
        CHECK_INT(bk_maildir_open(faults_quiet(&world), dir, NULL, &d), 0);
        bk_maildir_close(d);
        CHECK_INT(bk_maildir_open(faults_os(&world), dir, NULL, &d), 0);
        c.loop = loop_over(faults_os(&world));
        faults_arm(&world, kind, n);
        int started = deliver_many(&c, d, N);
        bk_maildir_close(d);
        CHECK_INT(bk_loop_free(c.loop), 0);
        long calls = faults_disarm(&world);
        CHECK_INT(c.told, started);
        CHECK_INT(files_in("new", NULL), c.stored);
        CHECK_INT(faults_leaks(&world, NULL), 0);
        if (check_failures != 0)
            printf("# ... when call %ld failed, a %s\n", n, faults_struck(&world));
        if (calls < n) {
            CHECK_INT(c.stored, N);
            break;
        }
    }
    teardown();
}

static void groups_survive_errors(void) {
    group_with(FAULTS_ERROR);
}

static void groups_survive_interruptions(void) {
    group_with(FAULTS_INTERRUPTED);
}

static void groups_survive_without_memory(void) {
    group_with(FAULTS_NO_MEMORY);
}

typedef struct chain {
    crowd crowd;
    bk_maildir *maildir;
    int left;
} chain;

/* done() delivers the next, and the last closes the Maildir. */
static void next_in_chain(void *arg, int code, const char *name) {
    chain *c = arg;
    CHECK_INT(code, 0);
    CHECK(name != NULL);
    c->crowd.told++;
    if (--c->left > 0)
        CHECK_INT(bk_maildir_deliver_soon(c->maildir, c->crowd.loop, NULL, 0, next_in_chain, c), 0);
    else
        bk_maildir_close(c->maildir);
}

static void delivers_from_within_done(void) {
    chain c = {.left = 10};
    setup();
    bk_os *os = faults_os(&world);
    c.crowd.loop = loop_over(os);
    CHECK_INT(bk_maildir_open(os, dir, NULL, &c.maildir), 0);
    CHECK_INT(bk_maildir_deliver_soon(c.maildir, c.crowd.loop, NULL, 0, next_in_chain, &c), 0);
    CHECK_INT(bk_loop_free(c.crowd.loop), 0); /* which does not end before they have */
    CHECK_INT(c.crowd.told, 10);
    CHECK_INT(files_in("new", NULL), 10);
    teardown();
}

/* ---- What was left over ---- */

static void leave_behind(const char *name, int hours) {
    char path[1024];
    path_of(path, sizeof path, "tmp", name);
    FILE *f = fopen(path, "w");
    CHECK(f != NULL);
    fclose(f);
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    now.tv_sec -= hours * 3600L;
    CHECK_INT(utimensat(AT_FDCWD, path, (struct timespec[]){now, now}, 0), 0);
}

static void removes_what_was_left_over(void) {
    bk_maildir *d = NULL;
    char name[BK_MAILDIR_NAME] = "";
    setup();
    CHECK_INT(bk_maildir_open(faults_os(&world), dir, NULL, &d), 0);
    leave_behind("old", 37);
    leave_behind("older", 3700);
    leave_behind("young", 35);
    CHECK_INT(bk_maildir_clean(d), 0);
    CHECK_INT(files_in("tmp", name), 1);
    CHECK_STR(name, "young");
    leave_behind("young", 37);
    faults_arm(&world, FAULTS_ERROR, 2); /* file_info: whose age is not known stays */
    CHECK_INT(bk_maildir_clean(d), 0);
    faults_disarm(&world);
    CHECK_INT(files_in("tmp", NULL), 1);
    faults_arm(&world, FAULTS_ERROR, 1);
    CHECK(bk_maildir_clean(d) < 0);
    faults_disarm(&world);
    CHECK_INT(bk_maildir_clean(NULL), -EINVAL);
    bk_maildir_close(d);
    teardown();
}

static void a_server_removes_what_was_left_over(void) {
    bk_maildir *d = NULL;
    setup();
    CHECK_INT(bk_maildir_open(faults_os(&world), dir, NULL, &d), 0);
    bk_maildir_close(d);
    leave_behind("old", 37);
    bk_loop *loop = loop_over(faults_os(&world));
    bk_protocol *smtp = NULL;
    CHECK_INT(bk_smtp_maildir_new(loop, NULL, dir, NULL, NULL, &smtp), 0);
    bk_machine_protocol_free(smtp);
    CHECK_INT(bk_loop_free(loop), 0); /* its workers finish what they were given */
    CHECK_INT(files_in("tmp", NULL), 0);
    teardown();
}

/* ---- SMTP into a Maildir, over a stream in memory ---- */

typedef struct client {
    bk_loop *loop;
    char got[4096];
    size_t size;
    int closed, stored;
    char name[BK_MAILDIR_NAME], sender[100];
    size_t recipients, message_size;
    bool leaves; /* once it has sent its script */
    const char *script;
} client;

static int client_opened(bk_stream *s) {
    client *c = bk_stream_user(s);
    return bk_stream_write(s, c->script, strlen(c->script), BK_STATIC, NULL);
}

static void client_received(bk_stream *s, const void *data, size_t n) {
    client *c = bk_stream_user(s);
    if (n > sizeof c->got - 1 - c->size)
        n = sizeof c->got - 1 - c->size;
    memcpy(c->got + c->size, data, n);
    c->got[c->size += n] = '\0';
    if (c->leaves && strstr(c->got, "354 ") != NULL)
        bk_stream_abort(s);
}

static void client_closed(bk_stream *s, int why) {
    client *c = bk_stream_user(s);
    (void)why;
    c->closed++;
    bk_loop_stop(c->loop);
}

static const bk_protocol client_protocol = {
    .size = sizeof(bk_protocol),
    .name = "client",
    .opened = client_opened,
    .received = client_received,
    .closed = client_closed,
};

static void was_stored(void *arg, const char *name, const bk_smtp_message *m) {
    client *c = arg;
    c->stored++;
    c->recipients = m->recipient_count;
    c->message_size = m->size;
    snprintf(c->sender, sizeof c->sender, "%s", m->sender);
    snprintf(c->name, sizeof c->name, "%s", name);
}

/* Both ends of a connection on one loop. A failure is memory's, which some tests take away. */
static int connect_both(client *c, const bk_protocol *smtp) {
    bk_transport *pair[2];
    int r = bk_memory_transport(c->loop, 0, pair);
    if (r < 0)
        return r;
    r = bk_stream_new(c->loop, pair[0], smtp, NULL, NULL);
    if (r < 0)
        pair[0]->ops->close(pair[0]);
    int r2 = bk_stream_new(c->loop, pair[1], &client_protocol, c, NULL);
    if (r2 < 0)
        pair[1]->ops->close(pair[1]);
    return r2;
}

static const char script[] = "EHLO c\r\nMAIL FROM:<a@b.c>\r\nRCPT TO:<d@e.f>\r\nRCPT TO:<g@h.i>\r\n"
                             "DATA\r\nSubject: x\r\n\r\n..\r\nhello\r\n.\r\nQUIT\r\n";
static const char body[] = "Subject: x\r\n\r\n.\r\nhello\r\n";

static void session(client *c, bk_os *os, const bk_smtp_config *config) {
    bk_protocol *smtp = NULL;
    c->script = script;
    c->loop = loop_over(os);
    CHECK_INT(bk_smtp_maildir_new(c->loop, config, dir, was_stored, c, &smtp), 0);
    CHECK_INT(connect_both(c, smtp), 0);
    bk_machine_protocol_free(smtp); /* the connection keeps what it needs */
    CHECK_INT(bk_loop_run(c->loop), 0);
    CHECK_INT(bk_loop_free(c->loop), 0);
    CHECK_INT(c->closed, 1);
}

#define UP_TO_DATA                                                                                 \
    "220 mx.test ESMTP becket\r\n250-mx.test\r\n250-PIPELINING\r\n250-SIZE 26214400\r\n"           \
    "250-8BITMIME\r\n250-SMTPUTF8\r\n250-CHUNKING\r\n250-BINARYMIME\r\n250-DSN\r\n"                \
    "250 ENHANCEDSTATUSCODES\r\n250 2.1.0 sender ok\r\n"                                           \
    "250 2.1.5 recipient ok\r\n250 2.1.5 recipient ok\r\n354 end data with <CR><LF>.<CR><LF>\r\n"

static bk_smtp_config mx(unsigned flags) {
    return (bk_smtp_config){.size = sizeof(bk_smtp_config), .hostname = "mx.test", .flags = flags};
}

static void receives_mail(void) {
    setup();
    bk_smtp_config config = mx(0);
    client c = {0};
    session(&c, faults_os(&world), &config);
    CHECK_STR(c.got, UP_TO_DATA "250 2.0.0 message accepted\r\n221 2.0.0 bye\r\n");
    CHECK_INT(c.stored, 1);
    CHECK_INT(c.recipients, 2);
    CHECK_STR(c.sender, "a@b.c");
    CHECK(strstr(c.name, ".mx.test") != NULL);
    char *text = contents(c.name);
    static const char head[] =
        "Return-Path: <a@b.c>\r\nReceived: from c\r\n\tby mx.test with ESMTP; ";
    CHECK(text != NULL && strncmp(text, head, sizeof head - 1) == 0);
    CHECK(text != NULL && strcmp(text + strlen(text) - (sizeof body - 1), body) == 0);
    free(text);
    teardown();
}

static void receives_mail_as_it_is(void) {
    setup();
    bk_smtp_config config = mx(BK_SMTP_NO_TRACE);
    client c = {0};
    session(&c, faults_os(&world), &config);
    CHECK_INT(c.message_size, sizeof body - 1);
    char *text = contents(c.name);
    CHECK_STR(text, body);
    free(text);
    teardown();
}

static void no_g(void *context, bk_smtp_session *s, const bk_smtp_message *envelope,
                 const bk_smtp_recipient *recipient) {
    (void)envelope;
    CHECK_STR(context, "mine");
    CHECK_STR(bk_smtp_helo(s), "c");
    CHECK_STR(bk_smtp_peer(s), "");
    bk_smtp_answer(s, recipient->address[0] == 'g' ? "550 5.1.1 no such mailbox" : NULL);
}

static void asks_the_programs_hooks(void) {
    static char mine[] = "mine";
    setup();
    bk_smtp_config config = mx(0);
    config.rcpt = no_g;
    config.context = mine;
    client c = {0};
    session(&c, faults_os(&world), &config);
    CHECK(strstr(c.got, "550 5.1.1 no such mailbox\r\n354 ") != NULL);
    CHECK_INT(c.recipients, 1);
    teardown();
}

static void stores_for_one_who_left(void) {
    setup();
    bk_smtp_config config = mx(0);
    client c = {.leaves = true};
    session(&c, faults_os(&world), &config);
    CHECK_INT(files_in("new", NULL), c.stored);
    CHECK_INT(files_in("tmp", NULL), 0);
    teardown();
}

/* What cannot be stored is not acknowledged. */
static void refuses_with(int code, const char *reply) {
    broken_os b = {*bk_os_default(), "fsync file", code, 0, false};
    b.os.fsync = broken_fsync;
    bk_smtp_config config = mx(0);
    client c = {0};
    char want[1024];
    session(&c, &b.os, &config);
    snprintf(want, sizeof want, UP_TO_DATA "%s221 2.0.0 bye\r\n", reply);
    CHECK_STR(c.got, want);
    CHECK_INT(c.stored, 0);
    CHECK_INT(files_in("new", NULL), 0);
    CHECK_INT(files_in("tmp", NULL), 0);
}

static void refuses_what_it_cannot_store(void) {
    setup();
    refuses_with(-EIO, "451 4.3.0 message cannot be stored now\r\n");
    refuses_with(-ENOSPC, "452 4.3.1 insufficient system storage\r\n");
    refuses_with(-EDQUOT, "452 4.3.1 insufficient system storage\r\n");
    teardown();
}

static void no_log(void *arg, int code, const char *text) {
    (void)arg, (void)code, (void)text;
}

/* One session in which the n-th call fails; how far it comes is not said, only what must hold. */
static void session_with(faults_kind kind, long n) {
    client c = {.script = script};
    bk_loop_options options = {.size = sizeof options, .os = faults_os(&world), .log = no_log};
    bk_smtp_config config = mx(0);
    bk_protocol *smtp = NULL;
    faults_arm(&world, kind, n);
    if (bk_loop_new(&options, &c.loop) < 0)
        return;
    int r = bk_smtp_maildir_new(c.loop, &config, dir, was_stored, &c, &smtp);
    if (r >= 0)
        r = connect_both(&c, smtp);
    for (int turns = 0; r >= 0 && !c.closed && turns < 1000; turns++)
        (void)bk_loop_turn(c.loop, BK_SECOND);
    bk_machine_protocol_free(smtp);
    CHECK_INT(bk_loop_free(c.loop), 0);
    bool acknowledged = strstr(c.got, "250 2.0.0 message accepted") != NULL;
    CHECK(!acknowledged || c.stored == 1);
    CHECK_INT(c.stored, files_in("new", NULL) > 0 ? files_in("new", NULL) : 0);
}

static void session_faults(faults_kind kind) {
    setup();
    for (long n = 1; check_failures == 0; n++) {
        remove_all();
        session_with(kind, n);
        if (faults_disarm(&world) < n)
            break;
        CHECK_INT(faults_leaks(&world, NULL), 0);
        if (check_failures != 0)
            printf("# … when call %ld failed, a %s\n", n, faults_struck(&world));
    }
    teardown();
}

static void serves_without_memory(void) {
    session_faults(FAULTS_NO_MEMORY);
}

static void serves_when_calls_fail(void) {
    session_faults(FAULTS_ERROR);
}

static void checks_its_arguments(void) {
    setup();
    bk_protocol *smtp = NULL;
    bk_loop *loop = loop_over(faults_os(&world));
    bk_smtp_config config = mx(0);
    CHECK_INT(bk_smtp_maildir_new(NULL, &config, dir, NULL, NULL, &smtp), -EINVAL);
    CHECK_INT(bk_smtp_maildir_new(loop, &config, NULL, NULL, NULL, &smtp), -EINVAL);
    CHECK_INT(bk_smtp_maildir_new(loop, &config, dir, NULL, NULL, NULL), -EINVAL);
    CHECK_INT(bk_smtp_maildir_new(loop, NULL, "", NULL, NULL, &smtp), -EINVAL);
    config.hostname = "not a host";
    CHECK_INT(bk_smtp_maildir_new(loop, &config, dir, NULL, NULL, &smtp), -EINVAL);
    CHECK(smtp == NULL);
    CHECK_INT(bk_smtp_maildir_new(loop, NULL, dir, NULL, NULL, &smtp), 0);
    bk_machine_protocol_free(smtp);
    bk_machine_protocol_free(NULL);
    CHECK_INT(bk_loop_free(loop), 0);
    teardown();
}

int main(int argc, char **argv) {
    static const check_case cases[] = {
        CASE(makes_its_folders),
        CASE(refuses_what_is_no_folder),
        CASE(stores_what_it_is_given),
        CASE(gives_each_a_name),
        CASE(undoes_what_fails),
        CASE(goes_on_after_interruptions),
        CASE(finishes_short_writes),
        CASE(survives_without_memory),
        CASE(tells_what_failed),
        CASE(delivers_in_a_worker),
        CASE(stores_many_together),
        CASE(one_fails_alone),
        CASE(syncs_one_by_one_where_it_must),
        CASE(groups_survive_errors),
        CASE(groups_survive_interruptions),
        CASE(groups_survive_without_memory),
        CASE(delivers_from_within_done),
        CASE(removes_what_was_left_over),
        CASE(a_server_removes_what_was_left_over),
        CASE(finishes_when_the_loop_ends),
        CASE(receives_mail),
        CASE(receives_mail_as_it_is),
        CASE(asks_the_programs_hooks),
        CASE(stores_for_one_who_left),
        CASE(refuses_what_it_cannot_store),
        CASE(serves_without_memory),
        CASE(serves_when_calls_fail),
        CASE(checks_its_arguments),
    };
    return check_main(argc, argv, cases, COUNT(cases));
}
