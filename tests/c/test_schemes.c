/*
 * test_schemes.c: the schemes of endpoints that meet no network: abstract UNIX sockets and meeting
 * places in memory. Each on every notifier, and once more with every call failing in turn.
 */
#include "check.h"
#include "core/serve/serve.h"
#include "scheme_support.h"

#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

/* ---- unix:@name ---- */

static char *abstract(const char *name) {
    static char text[80];
    snprintf(text, sizeof text, "unix:@becket-%d-%s", (int)getpid(), name);
    return text;
}

ON_EACH_NOTIFIER(abstract_socket) {
    bk_error error;
    bk_listener *l = listen_at(abstract("a%20b"));
    CHECK_STR(bk_listener_name(l), abstract("a b"));
    ask(abstract("a b"));
    CHECK(access(abstract("a b") + 5, F_OK) < 0); /* it is no file */
    CHECK_INT(listen_error(abstract("a b"), &error), -EADDRINUSE);
    CHECK(strstr(error.text, "another server has the name @becket-") == error.text);
    CHECK(strstr(error.text, "-a b") != NULL);
    /* One name is not the beginning of another. */
    CHECK_INT(bk_connect(loop, abstract("a "), &asking, NULL, NULL, NULL), 0);
    run_until(&seen.closed, seen.closed + 1);
    CHECK_INT(seen.why, -ECONNREFUSED);
    bk_listener_close(l);
    l = listen_at(abstract("a b"));
    ask(abstract("a b"));
}

ON_EACH_NOTIFIER(abstract_errors) {
    char text[160] = "unix:@";
    bk_error error;
    CHECK_INT(listen_error("unix:@", &error), BK_EENDPOINT);
    CHECK_INT(error.position, 6);
    CHECK_STR(error.text, "a name is missing: unix:@name");
    CHECK_INT(listen_error("unix:@x?backlog=5&mode=600", &error), BK_EOPTION);
    CHECK_INT(error.position, 18);
    CHECK_STR(error.text, "mode is for a socket that has a file, and unix:@name has none");
    memset(text + 6, 'x', 107);
    bk_listener *l = listen_at(text); /* the longest there is */
    CHECK_STR(bk_listener_name(l), text);
    ask(text);
    text[6 + 107] = 'x';
    CHECK_INT(listen_error(text, &error), BK_EENDPOINT);
    CHECK_INT(error.position, 6);
    CHECK_STR(error.text, "this name of 108 bytes is too long for a UNIX socket: at most 107");
    CHECK_INT(connect_error(text, &error), BK_EENDPOINT);
}

static int raw_listening(const char *name, size_t size) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    memcpy(address.sun_path, name, size);
    CHECK_INT(bind(fd, (struct sockaddr *)&address,
                   (socklen_t)(offsetof(struct sockaddr_un, sun_path) + size)),
              0);
    CHECK_INT(listen(fd, 5), 0);
    return fd;
}

/* The name of an adopted socket leads to it, if it can be written; one in a file whose name begins
   with @ is not taken for an abstract one. */
ON_EACH_NOTIFIER(abstract_adopted) {
    char text[128], folder[] = "/tmp/becket-schemes-XXXXXX", before[512];
    CHECK(mkdtemp(folder) != NULL && getcwd(before, sizeof before) != NULL && chdir(folder) == 0);
    bk_listener *l;
    snprintf(text, sizeof text, "%c%s", 0, abstract("adopted") + 6);
    int fd = raw_listening(text, 1 + strlen(text + 1));
    CHECK_INT(bk_listen_fd(loop, fd, &echo, &l), 0);
    CHECK_STR(bk_listener_name(l), abstract("adopted"));
    ask(bk_listener_name(l));
    fd = raw_listening("\0becket\0\0", 9);
    CHECK_INT(bk_listen_fd(loop, fd, &echo, &l), 0);
    snprintf(text, sizeof text, "fd:%d", fd);
    CHECK_STR(bk_listener_name(l), text);
    fd = raw_listening("@file", 5);
    CHECK_INT(bk_listen_fd(loop, fd, &echo, &l), 0);
    CHECK_STR(bk_listener_name(l), "unix:./@file");
    ask(bk_listener_name(l));
    CHECK_INT(unlink("@file"), 0);
    l = listen_at("unix:./@file");
    CHECK_STR(bk_listener_name(l), "unix:./@file");
    ask("unix:./@file");
    bk_listener_close(l);
    CHECK(access("@file", F_OK) < 0);
    CHECK(chdir(before) == 0 && rmdir(folder) == 0);
}

/* ---- memory:name ---- */

ON_EACH_NOTIFIER(memory_meeting) {
    bk_error error;
    bk_listener *l = listen_at("memory:a%25b");
    CHECK_STR(bk_listener_name(l), "memory:a%25b");
    ask("memory:a%25b");
    CHECK_INT(listen_error("memory:a%25b", &error), -EADDRINUSE);
    CHECK_INT(error.position, 7);
    CHECK_STR(error.text, "another listener of this process has the name a%b");
    bk_listener *other = listen_at("memory:other");
    ask("memory:other");
    ask("memory:a%25b");
    bk_listener_close(l);
    ask("memory:other");
    l = listen_at("memory:a%25b");
    ask("memory:a%25b");
    bk_listener_close(other);
    ask("memory:a%25b");
}

ON_EACH_NOTIFIER(memory_nobody) {
    bk_error error;
    int closed = seen.closed;
    CHECK_INT(bk_connect(loop, "memory:nobody", &asking, NULL, NULL, NULL), 0);
    CHECK_INT(seen.closed, closed); /* not from within bk_connect() */
    run_until(&seen.closed, closed + 1);
    CHECK_INT(seen.why, -ECONNREFUSED);
    CHECK_INT(seen.opened, 0);
    CHECK_INT(listen_error("memory:", &error), BK_EENDPOINT);
    CHECK_INT(error.position, 7);
    CHECK_STR(error.text, "memory: is followed by a name, as in memory:upstream");
    CHECK_INT(connect_error("memory://name", &error), BK_EENDPOINT);
    CHECK_INT(connect_error("memory:name?a=1", &error), BK_EOPTION);
    CHECK_STR(error.text, "memory has no option a; it has proxy, proxy_from, proxy_for");
}

/* Who was on the way to a listener that is closed meanwhile is closed too; others come in. */
ON_EACH_NOTIFIER(memory_closed_meanwhile) {
    bk_listener *l = listen_at("memory:brief");
    listen_at("memory:lasting");
    CHECK_INT(bk_connect(loop, "memory:brief", &asking, NULL, NULL, NULL), 0);
    CHECK_INT(bk_connect(loop, "memory:brief", &asking, NULL, NULL, NULL), 0);
    bk_listener_close(l);
    CHECK_INT(bk_connect(loop, "memory:lasting", &asking, NULL, NULL, NULL), 0);
    run_until(&seen.closed, 3);
    CHECK_INT(seen.opened, 3);
    CHECK_INT(seen.served, 1);
    CHECK_INT(seen.answered, 1);
    listen_at("memory:brief");
    CHECK_INT(bk_connect(loop, "memory:brief", &asking, NULL, NULL, NULL), 0);
    /* … and here it is the loop that goes */
}

/* What comes before the listener's loop has turned waits, in its order. */
ON_EACH_NOTIFIER(memory_many) {
    enum { MANY = 100 };
    listen_at("memory:many");
    for (int i = 0; i < MANY; i++)
        CHECK_INT(bk_connect(loop, "memory:many", &asking, NULL, NULL, NULL), 0);
    run_until(&seen.closed, MANY);
    run_until(&seen.gone, MANY);
    CHECK_INT(seen.served, MANY);
    CHECK_INT(seen.answered, MANY);
    CHECK_INT(seen.why, 0);
}

/* ---- memory:name, between threads ---- */

typedef struct shop {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bk_loop *loop; /* once it listens */
    bool closing;  /* its listener, again and again, and opens it anew */
    bool over;
    bk_listener *listener;
} shop;

static void shop_received(bk_stream *s, const void *data, size_t n) {
    bk_stream_write(s, data, n, BK_COPY, NULL);
}

static const bk_protocol shop_echo = {.size = sizeof shop_echo, .received = shop_received};

static void shop_stop(void *arg) {
    shop *s = arg;
    s->over = true;
    bk_loop_stop(s->loop);
}

static void shop_reopen(void *arg) {
    shop *s = arg;
    bk_listener_close(s->listener);
    s->listener = NULL;
    (void)bk_listen(s->loop, "memory:shop", &shop_echo, NULL, &s->listener);
    if (!s->over)
        (void)bk_loop_soon(s->loop, shop_reopen, s);
}

static void *shop_main(void *arg) {
    shop *s = arg;
    bk_loop *own;
    bk_loop_options options = {.size = sizeof options, .os = faults_quiet(support_faults())};
    CHECK_INT(bk_loop_new(&options, &own), 0);
    CHECK_INT(bk_listen(own, "memory:shop", &shop_echo, NULL, &s->listener), 0);
    pthread_mutex_lock(&s->lock);
    s->loop = own;
    pthread_cond_signal(&s->changed);
    pthread_mutex_unlock(&s->lock);
    if (s->closing)
        CHECK_INT(bk_loop_soon(own, shop_reopen, s), 0);
    CHECK_INT(bk_loop_run(own), 0);
    pthread_mutex_lock(&s->lock); /* the loop must outlive the call of who posted the end to it */
    pthread_mutex_unlock(&s->lock);
    CHECK_INT(bk_loop_free(own), 0);
    return NULL;
}

static void shop_open(shop *s, bool closing) {
    *s = (shop){.closing = closing};
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->changed, NULL);
    CHECK_INT(pthread_create(&s->thread, NULL, shop_main, s), 0);
    pthread_mutex_lock(&s->lock);
    while (s->loop == NULL)
        pthread_cond_wait(&s->changed, &s->lock);
    pthread_mutex_unlock(&s->lock);
}

static void shop_close(shop *s) {
    pthread_mutex_lock(&s->lock);
    CHECK_INT(bk_loop_post(s->loop, shop_stop, s), 0);
    pthread_mutex_unlock(&s->lock);
    CHECK_INT(pthread_join(s->thread, NULL), 0);
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->lock);
}

ON_EACH_NOTIFIER(memory_threads) {
    shop s;
    bk_error error;
    shop_open(&s, false);
    for (int i = 0; i < 50; i++)
        ask("memory:shop");
    CHECK_INT(listen_error("memory:shop", &error), -EADDRINUSE);
    for (int i = 0; i < 20; i++) /* on the way when it closes */
        CHECK_INT(bk_connect(loop, "memory:shop", &asking, NULL, NULL, NULL), 0);
    shop_close(&s);
    run_until(&seen.closed, 70);
    CHECK_INT(bk_connect(loop, "memory:shop", &asking, NULL, NULL, NULL), 0);
    run_until(&seen.closed, 71);
    CHECK_INT(seen.why, -ECONNREFUSED);
}

/* A listener that comes and goes: each connection is answered, refused or ended, none is lost. */
ON_EACH_NOTIFIER(memory_threads_racing) {
    enum { MANY = 300 };
    shop s;
    shop_open(&s, true);
    for (int i = 1; i <= MANY; i++) {
        CHECK_INT(bk_connect(loop, "memory:shop", &asking, NULL, NULL, NULL), 0);
        if (i % 10 == 0)
            run_until(&seen.closed, i);
    }
    run_until(&seen.closed, MANY);
    shop_close(&s);
}

/* ---- */

static void abstract_faults(void) {
    walk(abstract("faults"), abstract("faults"));
}

static void memory_faults(void) {
    walk("memory:faults", "memory:faults");
}

int main(int argc, char **argv) {
    static const check_case cases[] = {
        CASE(abstract_socket), CASE(abstract_errors), CASE(abstract_adopted),
        CASE(memory_meeting),  CASE(memory_nobody),   CASE(memory_closed_meanwhile),
        CASE(memory_many),     CASE(memory_threads),  CASE(memory_threads_racing),
        CASE(abstract_faults), CASE(memory_faults),
    };
    return check_main(argc, argv, cases, COUNT(cases));
}
