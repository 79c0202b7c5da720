/*
 * test_local.c: the transport of examples/local.c meets its contract, and its scheme does what
 * docs/write-a-transport.md says: as its author would test them.
 */
int local_main(int argc, char **argv);
#define main local_main
#include "examples/local.c"
#undef main

#include "tests/c/check.h"
#include "tests/conformance/conformance.h"

#include <unistd.h>

static int make_pair(bk_loop *loop, void *arg, bk_transport *ret_pair[2]) {
    bk_os *os = bk_loop_os(loop);
    int fds[2];
    (void)arg;
    int code = os->socketpair(os, fds);
    if (code < 0)
        return code;
    code = local_new(loop, fds[0], &ret_pair[0]);
    if (code >= 0 && (code = local_new(loop, fds[1], &ret_pair[1])) < 0)
        free(ret_pair[0]);
    if (code < 0) {
        (void)os->close(os, fds[0]);
        (void)os->close(os, fds[1]);
    }
    return code;
}

static void conforms(void) {
    const bk_conform_joint joint = {.name = "local", .make = make_pair};
    CHECK_INT(bk_conform_transport(&joint, NULL, NULL), 0);
}

static int closed;
static char text[16];

static void client_received(bk_stream *s, const void *data, size_t n) {
    memcpy(text, data, n < sizeof text ? n : sizeof text - 1);
    bk_stream_close(s);
}

static void client_closed(bk_stream *s, int why) {
    (void)s;
    CHECK_INT(why, 0);
    closed++;
}

static void serves(void) {
    static const bk_protocol client = {.size = sizeof client,
                                       .name = "client",
                                       .received = client_received,
                                       .closed = client_closed};
    bk_loop *loop;
    bk_error error;
    bk_listener *l;
    bk_stream *s;
    char endpoint[64];
    snprintf(endpoint, sizeof endpoint, "local:test-%d", (int)getpid());
    CHECK_INT(bk_loop_new(NULL, &loop), 0);
    CHECK_INT(bk_scheme_add(loop, &local_scheme), 0);
    CHECK_INT(bk_connect(loop, endpoint, &client, NULL, &error, NULL), -ECONNREFUSED);
    CHECK_INT(bk_listen(loop, "local:", &echo, &error, NULL), BK_EENDPOINT);
    CHECK_INT(error.position, 6);
    CHECK_INT(bk_listen(loop, endpoint, &echo, &error, &l), 0);
    CHECK_INT(bk_listen(loop, endpoint, &echo, &error, NULL), -EADDRINUSE);
    CHECK_STR(bk_listener_name(l), endpoint);
    CHECK_INT(bk_connect(loop, endpoint, &client, NULL, &error, &s), 0);
    CHECK_INT(bk_stream_write(s, "hello", 5, BK_STATIC, NULL), 0);
    for (int i = 0; i < 1000 && closed == 0; i++)
        CHECK_INT(bk_loop_turn(loop, 10 * 1000 * 1000), 0);
    CHECK_INT(closed, 1);
    CHECK_STR(text, "hello");
    CHECK_INT(bk_loop_free(loop), 0);
}

int main(int argc, char **argv) {
    (void)local_main; /* for programs */
    static const check_case cases[] = {CASE(conforms), CASE(serves)};
    return check_main(argc, argv, cases, COUNT(cases));
}
