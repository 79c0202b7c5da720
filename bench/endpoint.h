/* Endpoints of the benchmark programs: the text "tcp:HOST:PORT", "unix:PATH", "tls:HOST:PORT?PEM" or, for the load
 * generator, "udp:HOST:PORT", and a socket that listens on one. PEM, for servers only, is the file that holds the certificate and its key.
 *
 * The load generator and every C server include this file, so that all of them read the same text and listen in the
 * same way (same backlog, same options). Only loopback addresses are accepted: a benchmark is no business of a network.
 */
#ifndef BENCH_ENDPOINT_H
#define BENCH_ENDPOINT_H

#include <arpa/inet.h>
#include <errno.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum {
    BENCH_BACKLOG = 1024,     /* the Python servers use the same */
    BENCH_ROOM = 256 * 1024,  /* what one read may bring; asyncio and uvloop use the same */
};

typedef struct endpoint {
    union {
        struct sockaddr any;
        struct sockaddr_in in;
        struct sockaddr_un un;
    } address;
    socklen_t size;
    int type;          /* SOCK_STREAM or SOCK_DGRAM */
    const char *pem;   /* TLS: the certificate's file, "" for clients; else NULL */
    char host[INET_ADDRSTRLEN];
    int port;
} endpoint;

static inline int endpoint_is_tcp(const endpoint *e) {
    return e->address.any.sa_family == AF_INET && e->type == SOCK_STREAM;
}

static inline int endpoint_parse_unix(const char *path, endpoint *ret) {
    size_t n = strlen(path);
    if (n == 0 || n >= sizeof ret->address.un.sun_path) {
        fprintf(stderr, "a UNIX path has 1 to %zu bytes: \"%s\"\n", sizeof ret->address.un.sun_path - 1, path);
        return -1;
    }
    ret->address.un.sun_family = AF_UNIX;
    memcpy(ret->address.un.sun_path, path, n + 1);
    ret->size = sizeof ret->address.un;
    return 0;
}

static inline int endpoint_parse_tcp(const char *text, endpoint *ret) {
    const char *colon = strchr(text, ':');
    if (!colon || (size_t)(colon - text) >= sizeof ret->host) {
        fprintf(stderr, "a TCP endpoint is tcp:HOST:PORT, HOST being an IPv4 address\n");
        return -1;
    }
    memcpy(ret->host, text, (size_t)(colon - text));
    char *end;
    errno = 0;
    long port = strtol(colon + 1, &end, 10);
    if (errno || end == colon + 1 || (*end && !(ret->pem && *end == '?')) || port < 1 || port > 65535) {
        fprintf(stderr, "a port is a number from 1 to 65535, not \"%s\"\n", colon + 1);
        return -1;
    }
    if (*end)
        ret->pem = end + 1;
    ret->port = (int)port;
    ret->address.in.sin_family = AF_INET;
    ret->address.in.sin_port = htons((uint16_t)port);
    ret->size = sizeof ret->address.in;
    if (inet_pton(AF_INET, ret->host, &ret->address.in.sin_addr) != 1
            || ntohl(ret->address.in.sin_addr.s_addr) >> 24 != 127) {
        fprintf(stderr, "only loopback addresses (127.x.x.x) are used, not \"%s\"\n", ret->host);
        return -1;
    }
    return 0;
}

/* Returns 0, or -1 after saying on stderr what is wrong with the text, of which ret keeps a part. */
static inline int endpoint_parse(const char *text, endpoint *ret) {
    memset(ret, 0, sizeof *ret);
    ret->type = SOCK_STREAM;
    if (strncmp(text, "udp:", 4) == 0) {
        ret->type = SOCK_DGRAM;
        return endpoint_parse_tcp(text + 4, ret);
    }
    if (strncmp(text, "unix:", 5) == 0)
        return endpoint_parse_unix(text + 5, ret);
    if (strncmp(text, "tls:", 4) == 0)
        ret->pem = "";
    if (ret->pem || strncmp(text, "tcp:", 4) == 0)
        return endpoint_parse_tcp(text + 4, ret);
    fprintf(stderr, "an endpoint is tcp:HOST:PORT, udp:HOST:PORT, unix:PATH or tls:HOST:PORT, not \"%s\"\n", text);
    return -1;
}

/* What every C server does first: checks its only argument. Exits with a message where it is wrong. */
static inline endpoint endpoint_argument(int argc, char **argv, const char *version) {
    if (argc == 2 && strcmp(argv[1], "--version") == 0) {
        puts(version);
        exit(0);
    }
    if (argc != 2) {
        fprintf(stderr, "usage: %s tcp:HOST:PORT | unix:PATH | tls:HOST:PORT?PEM | --version\n"
                        "An echo server for the benchmark; it says \"ready\" and runs until it is killed.\n", argv[0]);
        exit(2);
    }
    endpoint e;
    if (endpoint_parse(argv[1], &e) < 0)
        exit(2);
    signal(SIGPIPE, SIG_IGN);
    return e;
}

/* Listens there; exits with a message where it cannot. */
static inline int endpoint_bind(const endpoint *e) {
    int on = 1, fd = socket(e->address.any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0 || (endpoint_is_tcp(e) && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0)
            || bind(fd, &e->address.any, e->size) < 0 || listen(fd, BENCH_BACKLOG) < 0) {
        fprintf(stderr, "cannot listen: %s\n", strerror(errno));
        exit(1);
    }
    return fd;
}

/* Both, for a server that has no TLS. */
static inline int endpoint_listen(int argc, char **argv, const char *version) {
    endpoint e = endpoint_argument(argc, argv, version);
    if (e.pem || e.type != SOCK_STREAM) {
        fprintf(stderr, "%s has no TLS, and no UDP\n", argv[0]);
        exit(2);
    }
    return endpoint_bind(&e);
}

static inline void endpoint_ready(void) {
    puts("ready");
    fflush(stdout);
}

/* A small answer must not wait for the peer's delayed acknowledgement; on a UNIX socket this fails and does not matter. */
static inline void endpoint_nodelay(int fd) {
    int on = 1;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

#endif
