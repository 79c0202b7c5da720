/*
 * run.c: runs machines on streams: one adaptor for all of them. Called by streams as their
 * protocol, and by machines as their runner. The stream's user value is the machine; the machine's
 * runner state is the stream.
 */
#include "core/protocol/run.h"

#include "core/os/os.h"
#include "core/tls/tls.h"

#include <stdio.h>
#if defined(_WIN32)
#include <winsock2.h>
#include <ws2tcpip.h>
#else
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#endif

static int run_send(bk_machine *m, const void *data, size_t n, bk_release release, void *arg) {
    return bk_stream_write(m->runner_state, data, n, release, arg);
}

static void run_close(bk_machine *m, int why) {
    if (why == 0)
        bk_stream_close(m->runner_state);
    else
        bk_stream_abort(m->runner_state);
}

static void run_pause(bk_machine *m) {
    bk_stream_pause(m->runner_state);
}

static void run_resume(bk_machine *m) {
    bk_stream_resume(m->runner_state);
}

static void run_timeout(bk_machine *m, unsigned seconds) {
    bk_stream_set_timeout(m->runner_state, seconds);
}

static void run_peer(bk_machine *m, char *ret_text, size_t room) {
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
        struct sockaddr_storage room;
    } peer = {.any.sa_family = AF_UNSPEC};
    size_t size = sizeof peer;
    char text[INET6_ADDRSTRLEN] = "";
    if (bk_stream_query(m->runner_state, BK_QUERY_PEER, &peer, &size) < 0)
        return;
    if (peer.any.sa_family == AF_INET && inet_ntop(AF_INET, &peer.v4.sin_addr, text, sizeof text))
        snprintf(ret_text, room, "%s", text);
    else if (peer.any.sa_family == AF_INET6 &&
             inet_ntop(AF_INET6, &peer.v6.sin6_addr, text, sizeof text))
        snprintf(ret_text, room, "IPv6:%s", text);
}

static int run_start_tls(bk_machine *m, const void *last, size_t n) {
    return bk_stream_start_tls_after(m->runner_state, last, n);
}

static int run_secure(bk_machine *m) {
    int on = 0;
    size_t size = sizeof on;
    int r = bk_stream_query(m->runner_state, BK_QUERY_TLS, &on, &size);
    return r < 0 ? r : on;
}

static const bk_runner_ops run_ops = {
    .size = sizeof(bk_runner_ops),
    .send = run_send,
    .close = run_close,
    .pause = run_pause,
    .resume = run_resume,
    .timeout = run_timeout,
    .peer = run_peer,
    .start_tls = run_start_tls,
    .secure = run_secure,
};

/* The protocol is the factory's first member. Only the counter of users is written to, and only
   in those that were allocated. */
static bk_machine_factory *run_factory(const bk_protocol *protocol) {
    return (bk_machine_factory *)(uintptr_t)protocol;
}

static void run_release(bk_machine_factory *f) {
    if (f->os == NULL || atomic_fetch_sub(&f->users, 1) != 1)
        return;
    if (f->release != NULL)
        f->release(f->context);
    bk_dealloc(f->os, f);
}

int bk_run_opened(bk_stream *s) {
    bk_machine_factory *f = run_factory(bk_stream_protocol(s));
    bk_machine *m = NULL;
    int r = f->make(f->context, bk_loop_os(bk_stream_loop(s)), &m);
    if (r < 0)
        return r;
    if (f->os != NULL)
        atomic_fetch_add(&f->users, 1);
    bk_stream_set_user(s, m);
    return bk_machine_start(m, &run_ops, s);
}

void bk_run_refused(bk_stream *s, const bk_protocol *protocol, int why) {
    bk_machine_factory *f = run_factory(protocol);
    bk_machine *m = NULL;
    if (f->make(f->context, bk_loop_os(bk_stream_loop(s)), &m) < 0)
        return;
    bk_machine_refuse(m, &run_ops, s, why);
    bk_machine_free(m);
}

void bk_run_received(bk_stream *s, const void *data, size_t n) {
    bk_machine *m = bk_stream_user(s);
    int r = bk_machine_feed(m, data, n);
    if (r < 0)
        bk_machine_abort(m, r);
}

int bk_run_ended(bk_stream *s) {
    bk_machine_end(bk_stream_user(s)); /* the machine closes, at once or when it has its answer */
    return 1;
}

void bk_run_blocked(bk_stream *s) {
    bk_machine_block(bk_stream_user(s), 1);
}

void bk_run_writable(bk_stream *s) {
    bk_machine_block(bk_stream_user(s), 0);
}

void bk_run_timed_out(bk_stream *s) {
    bk_machine_time_out(bk_stream_user(s));
}

void bk_run_closed(bk_stream *s, int why) {
    bk_machine *m = bk_stream_user(s);
    if (m == NULL) /* opened() was never called, or made none */
        return;
    bk_stream_set_user(s, NULL);
    m->why = why;
    bk_machine_free(m);
    run_release(run_factory(bk_stream_protocol(s)));
}

int bk_machine_protocol_new(bk_os *os, const char *name, bk_machine_maker make, void *context,
                            bk_release release, bk_protocol **ret_protocol) {
    if (os == NULL || name == NULL || make == NULL || ret_protocol == NULL)
        return -EINVAL;
    bk_machine_factory *f = bk_alloc_zero(os, sizeof *f);
    if (f == NULL)
        return -ENOMEM;
    f->protocol = (bk_protocol)BK_MACHINE_PROTOCOL(name);
    f->make = make;
    f->context = context;
    f->release = release;
    f->os = os;
    atomic_init(&f->users, 1);
    *ret_protocol = &f->protocol;
    return 0;
}

void bk_machine_protocol_free(bk_protocol *protocol) {
    if (protocol != NULL)
        run_release(run_factory(protocol));
}
