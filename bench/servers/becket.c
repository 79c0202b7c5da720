/* An echo server on becket's C interface, for the benchmark: what its user would write, with the flow control that the
 * other servers have too (a connection is not read while more than the high-water mark is kept for it).
 */
#include "../endpoint.h"

#include <becket.h>

static void received(bk_stream *s, const void *data, size_t n) {
    if (bk_stream_write(s, data, n, BK_COPY, NULL) < 0)
        bk_stream_abort(s);
}

static const bk_protocol echo = {
    .size = sizeof echo,
    .name = "echo",
    .received = received,
    .blocked = bk_stream_pause,
    .writable = bk_stream_resume,
};

/* TLS is asked for in becket's own words, which name the files; its backlog is the same by default. */
static int listen_tls(bk_loop *loop, const endpoint *at) {
    char text[2 * PATH_MAX + 100];
    bk_error error = {.text = ""};
    snprintf(text, sizeof text, "tls://%s:%d?cert=%s&key=%s", at->host, at->port, at->pem, at->pem);
    int r = bk_listen(loop, text, &echo, &error, NULL);
    if (r < 0) {
        fprintf(stderr, "becket: %s\n", error.text);
        exit(1);
    }
    return r;
}

int main(int argc, char **argv) {
    char version[32];
    snprintf(version, sizeof version, "becket %s", bk_version());
    endpoint at = endpoint_argument(argc, argv, version);
    bk_loop *loop;
    int r = bk_loop_new(NULL, &loop);
    if (r >= 0)
        r = at.pem ? listen_tls(loop, &at) : bk_listen_fd(loop, endpoint_bind(&at), &echo, NULL);
    if (r < 0) {
        fprintf(stderr, "becket: %s\n", bk_strerror(r));
        return 1;
    }
    endpoint_ready();
    return bk_loop_run(loop) < 0;
}
