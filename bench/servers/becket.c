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

int main(int argc, char **argv) {
    char version[32];
    snprintf(version, sizeof version, "becket %s", bk_version());
    int fd = endpoint_listen(argc, argv, version);
    bk_loop *loop;
    int r = bk_loop_new(NULL, &loop);
    if (r >= 0)
        r = bk_listen_fd(loop, fd, &echo, NULL);
    if (r < 0) {
        fprintf(stderr, "becket: %s\n", bk_strerror(r));
        return 1;
    }
    endpoint_ready();
    return bk_loop_run(loop) < 0;
}
