/* An echo server on UDP, on the loopback interface, until it is interrupted:  echo_udp [port] */
#include <becket.h>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

/* What came in one call goes out in one call. */
static void received(bk_datagram *d, const void *data, size_t n, const struct sockaddr *from,
                     unsigned from_size) {
    bk_datagram_send(d, data, n, BK_COPY, NULL, from, from_size);
}

/* Receive no faster than the answers leave; what is too much is dropped by the system. */
static void blocked(bk_datagram *d) {
    bk_datagram_pause(d);
}

static void writable(bk_datagram *d) {
    bk_datagram_resume(d);
}

static const bk_datagram_protocol echo = {.size = sizeof echo,
                                          .name = "echo",
                                          .received = received,
                                          .blocked = blocked,
                                          .writable = writable};

static void stop(void *loop) {
    bk_loop_stop(loop);
}

/* Returns a code, as the library's functions do. */
static int serve(bk_loop *loop, int port) {
    bk_os *os = bk_loop_os(loop);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    unsigned size = sizeof at;
    int fd = os->socket(os, AF_INET, SOCK_DGRAM, 0);
    if (fd < 0)
        return fd;
    int code = os->bind(os, fd, (struct sockaddr *)&at, size);
    if (code >= 0)
        code = os->getsockname(os, fd, (struct sockaddr *)&at, &size);
    if (code >= 0)
        code = bk_datagram_open(loop, fd, &echo, NULL, NULL);
    if (code < 0) {
        os->close(os, fd);
        return code;
    }
    printf("echoing at 127.0.0.1:%d\n", ntohs(at.sin_port));
    fflush(stdout);
    (void)bk_signal_set(loop, SIGINT, stop, loop);
    (void)bk_signal_set(loop, SIGTERM, stop, loop);
    return bk_loop_run(loop);
}

int main(int argc, char **argv) {
    bk_loop *loop;
    int code = bk_loop_new(NULL, &loop);
    if (code >= 0) {
        code = serve(loop, argc > 1 ? atoi(argv[1]) : 7000);
        bk_loop_free(loop);
    }
    if (code < 0)
        fprintf(stderr, "echo_udp: %s\n", bk_strerror(code));
    return code < 0;
}
