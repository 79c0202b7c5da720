/*
 * stdio.c: the scheme stdio, "stdio:", standard input and output as one stream: a server under
 * inetd or ssh, a client in a pipeline. Called through bk_scheme_stdio.
 */
#include "core/serve/serve.h"

static int stdio_check(const bk_endpoint *endpoint, bk_error *error) {
    if (endpoint->memory[endpoint->rest] == '\0' || endpoint->memory[endpoint->rest] == '?')
        return 0;
    return bk_error_set(error, BK_EENDPOINT, endpoint->rest,
                        "nothing follows %.20s:", endpoint->scheme);
}

static int stdio_open(bk_loop *loop, const bk_endpoint *endpoint, bk_error *error,
                      bk_transport **ret_transport) {
    int code = stdio_check(endpoint, error);
    return code < 0 ? code : bk_fd_transport(loop, 0, 1, 0, ret_transport);
}

/* ---- Listening ---- */

static int stdio_listen(bk_loop *loop, const bk_endpoint *endpoint, const bk_protocol *protocol,
                        bk_error *error, bk_listener **ret_listener) {
    bk_transport *transport;
    int code = stdio_open(loop, endpoint, error, &transport);
    return code < 0 ? code : bk_listen_once(loop, "stdio:", transport, protocol, ret_listener);
}

/* ---- Connecting ---- */

static int stdio_connect(bk_loop *loop, const bk_endpoint *endpoint, const bk_protocol *protocol,
                         void *user, bk_error *error, bk_stream **ret_stream) {
    bk_transport *transport;
    int code = stdio_open(loop, endpoint, error, &transport);
    return code < 0 ? code : bk_connect_transport(loop, transport, protocol, user, ret_stream);
}

const bk_scheme bk_scheme_stdio = {
    .size = sizeof(bk_scheme),
    .name = "stdio",
    .listen = stdio_listen,
    .connect = stdio_connect,
};
