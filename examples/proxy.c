/* A proxy from any endpoint to any endpoint: what comes in at the first goes out to the second, and
 * back.
 *
 *     proxy tcp://:7000 unix:/run/app.sock
 *     proxy 'tls://:443?cert=site.pem' tcp://127.0.0.1:8080
 *
 * Each side is read only as fast as the other takes it; the end of each direction is passed on by
 * itself; an error on one side ends the other with an error. Nothing is copied: what is written
 * while it is being received is sent from where it was read, and only what the other side's socket
 * did not take is kept until it does. */
#include <becket.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>

enum { FRONT, BACK }; /* who came to us, and whom we went to for him */

typedef struct link {
    bk_stream *side[2]; /* NULL: closed */
    int ended[2];       /* that side will send no more */
} link;

static const char *target;
static const bk_protocol back;

static int which(const bk_stream *s) {
    return bk_stream_protocol(s) == &back ? BACK : FRONT;
}

static bk_stream *other(const bk_stream *s) {
    const link *l = bk_stream_user(s);
    return l->side[!which(s)];
}

/* ---- Beginning ---- */

/* Read nothing from who came before there is somebody to pass it on to. */
static int front_opened(bk_stream *s) {
    bk_error error;
    link *l = calloc(1, sizeof *l);
    if (l == NULL)
        return -ENOMEM;
    l->side[FRONT] = s;
    bk_stream_set_user(s, l);
    bk_stream_pause(s);
    int code = bk_connect(bk_stream_loop(s), target, &back, l, &error, &l->side[BACK]);
    if (code < 0) {
        fprintf(stderr, "proxy: %s: %s\n", target, error.text);
        bk_stream_set_user(s, NULL); /* all is said: nothing is left for closed() */
        free(l);
    }
    return code;
}

static int back_opened(bk_stream *s) {
    bk_stream_resume(other(s));
    return 0;
}

/* ---- Moving ---- */

static void received(bk_stream *s, const void *data, size_t n) {
    if (other(s) != NULL)
        bk_stream_write(other(s), data, n, BK_COPY, NULL);
}

static void blocked(bk_stream *s) {
    bk_stream_pause(other(s));
}

static void writable(bk_stream *s) {
    bk_stream_resume(other(s));
}

/* ---- Ending ---- */

/* The other side hears the end of this direction, and goes on in its own. */
static int ended(bk_stream *s) {
    link *l = bk_stream_user(s);
    bk_stream *to = other(s);
    l->ended[which(s)] = 1;
    if (to == NULL)
        return 0;
    if (l->ended[FRONT] && l->ended[BACK]) {
        bk_stream_close(to); /* after what is queued for it */
        return 0;            /* and so this one */
    }
    if (bk_stream_end(to) == -ENOTSUP)
        bk_stream_close(to); /* an end of both directions is all that it can be told */
    return 1;
}

/* A socket that is closed with this set resets its connection, so that the peer does not take what
   was cut off for all there is. */
static void fail(bk_stream *s) {
    const struct linger now = {.l_onoff = 1, .l_linger = 0};
    int fd;
    size_t size = sizeof fd;
    if (bk_stream_query(s, BK_QUERY_FD, &fd, &size) >= 0)
        (void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    bk_stream_abort(s);
}

static void closed(bk_stream *s, int why) {
    link *l = bk_stream_user(s);
    if (l == NULL)
        return;
    bk_stream *to = other(s);
    l->side[which(s)] = NULL;
    if (to == NULL)
        free(l);
    else if (why < 0)
        fail(to);
    else
        bk_stream_close(to);
    if (why < 0 && why != -ECANCELED)
        fprintf(stderr, "proxy: %s: %s\n", which(s) == BACK ? target : "who came",
                bk_strerror(why));
}

static const bk_protocol back = {.size = sizeof back,
                                 .name = "back",
                                 .opened = back_opened,
                                 .received = received,
                                 .ended = ended,
                                 .blocked = blocked,
                                 .writable = writable,
                                 .closed = closed};

/* ---- The program ---- */

static int usage(void) {
    fprintf(stderr, "usage: proxy FROM TO\n"
                    "Passes each connection that comes in at the endpoint FROM on to TO.\n"
                    "  proxy tcp://:7000 tcp://10.0.0.5:7000           from port to port\n"
                    "  proxy 'tls://:443?cert=site.pem' unix:app.sock  ends TLS, for a program\n"
                    "                                                  that speaks it not\n"
                    "  proxy unix:plain.sock tls://example.org:443     begins TLS, for one, too\n"
                    "  proxy stdio: tcp://10.0.0.5:22                  as a ProxyCommand of ssh\n");
    return 2;
}

/* Wrong in TO is told now, not to the first who comes. */
static int check_target(void) {
    bk_endpoint parsed;
    bk_error error;
    if (bk_endpoint_parse(bk_os_default(), target, &parsed, &error) < 0) {
        fprintf(stderr, "proxy: %s\n  %s\n  %*s^\n", error.text, target, (int)error.position, "");
        return -1;
    }
    bk_endpoint_clear(bk_os_default(), &parsed);
    return 0;
}

/* Two descriptors for each connection: as many as we may have. */
static void raise_limit(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &limit);
    }
}

int main(int argc, char **argv) {
    if (argc != 3 || argv[1][0] == '-')
        return usage();
    target = argv[2];
    if (check_target() < 0)
        return 2;
    raise_limit();
    bk_protocol front = back;
    front.name = "front";
    front.opened = front_opened;
    return bk_serve(&front, argv[1], NULL);
}
