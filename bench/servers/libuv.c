/* An echo server on libuv, for the benchmark: one shared room for reading, uv_try_write at once, and uv_write only for
 * what the kernel refused. That is the fastest way libuv's own documentation offers.
 */
#include "../endpoint.h"

#include <uv.h>

typedef union stream {   /* which of the two depends on the endpoint */
    uv_stream_t any;
    uv_tcp_t tcp;
    uv_pipe_t pipe;
} stream;

typedef struct rest {
    uv_write_t request;
    char bytes[];
} rest;

static char room[BENCH_ROOM];

static void stream_init(uv_loop_t *loop, stream *s, int tcp) {
    if (tcp)
        uv_tcp_init(loop, &s->tcp);
    else
        uv_pipe_init(loop, &s->pipe, 0);
}

static void on_closed(uv_handle_t *handle) {
    free(handle);
}

static void connection_close(uv_stream_t *s) {
    if (!uv_is_closing((uv_handle_t *)s))
        uv_close((uv_handle_t *)s, on_closed);
}

static void on_room(uv_handle_t *handle, size_t suggested, uv_buf_t *ret) {
    (void)handle, (void)suggested;
    *ret = uv_buf_init(room, sizeof room);
}

static void on_read(uv_stream_t *s, ssize_t n, const uv_buf_t *buffer);

static void on_rest_sent(uv_write_t *request, int status) {
    uv_stream_t *s = request->handle;
    free(request);
    if (status < 0)
        connection_close(s);
    else if (!uv_is_closing((uv_handle_t *)s))
        uv_read_start(s, on_room, on_read);
}

/* While something is kept for a connection it is not read. */
static int keep(uv_stream_t *s, const char *data, size_t n) {
    rest *r = malloc(sizeof *r + n);
    if (!r)
        return -1;
    memcpy(r->bytes, data, n);
    uv_buf_t b = uv_buf_init(r->bytes, (unsigned)n);
    uv_read_stop(s);
    if (uv_write(&r->request, s, &b, 1, on_rest_sent) == 0)
        return 0;
    free(r);
    return -1;
}

static void on_read(uv_stream_t *s, ssize_t n, const uv_buf_t *buffer) {
    if (n < 0) {
        connection_close(s);
        return;
    }
    if (n == 0)
        return;
    uv_buf_t b = uv_buf_init(buffer->base, (unsigned)n);
    int sent = uv_try_write(s, &b, 1);
    if (sent == UV_EAGAIN)
        sent = 0;
    if (sent < 0 || (sent < n && keep(s, buffer->base + sent, (size_t)(n - sent)) < 0))
        connection_close(s);
}

static void on_connection(uv_stream_t *listener, int status) {
    stream *s = status == 0 ? malloc(sizeof *s) : NULL;
    if (!s)
        return;
    int tcp = listener->type == UV_TCP;
    stream_init(listener->loop, s, tcp);
    if (tcp)
        uv_tcp_nodelay(&s->tcp, 1);
    if (uv_accept(listener, &s->any) < 0 || uv_read_start(&s->any, on_room, on_read) < 0)
        connection_close(&s->any);
}

int main(int argc, char **argv) {
    char version[32];
    snprintf(version, sizeof version, "libuv %s", uv_version_string());
    int fd = endpoint_listen(argc, argv, version);
    endpoint own = {.size = sizeof own.address};
    uv_loop_t loop;
    stream listener;
    if (getsockname(fd, &own.address.any, &own.size) < 0 || uv_loop_init(&loop) < 0)
        return 1;
    int tcp = endpoint_is_tcp(&own);
    stream_init(&loop, &listener, tcp);
    int r = tcp ? uv_tcp_open(&listener.tcp, fd) : uv_pipe_open(&listener.pipe, fd);
    if (r == 0)
        r = uv_listen(&listener.any, BENCH_BACKLOG, on_connection);
    if (r < 0) {
        fprintf(stderr, "libuv: %s\n", uv_strerror(r));
        return 1;
    }
    endpoint_ready();
    return uv_run(&loop, UV_RUN_DEFAULT);
}
