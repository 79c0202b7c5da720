/* A client of thousands: keeps many connections open at once, reads lines from all of them, and
 * merges the lines on standard output.
 *
 *     aggregator -n 10000 -c 200 tcp://127.0.0.1:7000 | sort | uniq -c
 *
 * At most so many connections are being made at a time, or servers would refuse them. One that ends
 * is made again, after a pause that doubles with each failure and is a little different for each.
 * When standard output is slow, nothing more is read; so memory stays what it is. */
#define _GNU_SOURCE /* memrchr */

#include <becket.h>

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum {
    LINE_BYTES = 64 * 1024, /* a longer line is an error of the server */
    PAUSE_MS = 100,         /* before the first reconnection, doubled for each one after it … */
    PAUSE_DOUBLINGS = 8,    /* … up to 25.6 seconds */
};

static const int64_t SECOND = 1000000000;

typedef struct connection connection;

struct connection {
    const char *endpoint;
    bk_stream *stream;  /* NULL: there is none */
    connection *next;   /* in waiting */
    bk_timer pause;     /* before it is made again */
    unsigned connected; /* opened() was called for the stream */
    unsigned failures;  /* in a row */
    unsigned have;      /* bytes of a line whose end has not come: 0 most of the time */
    char *line;         /* … for which alone there is memory */
};

static struct {
    long connections, connecting_most, seconds, lines_most, failures_most;
    int quiet;
} options = {1, 100, 0, 0, 0, 0};

static struct {
    bk_loop *loop;
    bk_stream *out;               /* standard output; NULL: closed */
    connection *all;              /* `count` of them */
    connection *waiting, **after; /* a queue of those that are to be connected */
    long count, connecting, open, most_open, given_up;
    long long lines, bytes, reconnects;
    int full;     /* standard output takes no more at present */
    int stopping; /* what is queued for standard output is still written */
    int why;      /* the last failure of a connection */
    int status;   /* of exit */
} all;

/* ---- The end ---- */

static void stop(void *arg) {
    (void)arg;
    if (all.stopping || all.out == NULL) { /* asked for twice: what is queued is dropped */
        bk_loop_stop(all.loop);
        return;
    }
    all.stopping = 1;
    for (long i = 0; i < all.count; i++) {
        bk_timer_stop(all.loop, &all.all[i].pause);
        bk_stream_abort(all.all[i].stream);
    }
    bk_stream_close(all.out); /* and its closed() stops the loop */
}

static void summarise(int64_t began) {
    double seconds = (double)(bk_loop_now(all.loop) - began) / (double)SECOND;
    fprintf(stderr,
            "aggregator: %lld lines, %lld bytes in %.1f s; %ld connections, at most %ld open at "
            "once; %lld made again, %ld given up\n",
            all.lines, all.bytes, seconds, all.count, all.most_open, all.reconnects, all.given_up);
    if (all.why != 0)
        fprintf(stderr, "aggregator: the last failure: %s\n", bk_strerror(all.why));
}

/* ---- Standard output ---- */

static int out_ended(bk_stream *s) {
    (void)s;
    return 1; /* there is nothing to be read from it: go on writing */
}

static void out_blocked(bk_stream *s) {
    (void)s;
    all.full = 1; /* each connection pauses when it next receives something */
}

static void out_writable(bk_stream *s) {
    (void)s;
    all.full = 0;
    for (long i = 0; i < all.count; i++)
        bk_stream_resume(all.all[i].stream);
}

static void out_closed(bk_stream *s, int why) {
    (void)s;
    all.out = NULL;
    if (why < 0 && !all.stopping) {
        fprintf(stderr, "aggregator: standard output: %s\n", bk_strerror(why));
        all.status = 1;
    }
    bk_loop_stop(all.loop);
}

static const bk_protocol out = {.size = sizeof out,
                                .name = "output",
                                .ended = out_ended,
                                .blocked = out_blocked,
                                .writable = out_writable,
                                .closed = out_closed};

static int open_output(void) {
    bk_transport *transport;
    int code = bk_fd_transport(all.loop, -1, STDOUT_FILENO, 0, &transport);
    if (code < 0)
        return code;
    code = bk_stream_new(all.loop, transport, &out, NULL, &all.out);
    if (code < 0)
        transport->ops->close(transport);
    return code;
}

static void put(const char *text, size_t n) {
    if (!options.quiet && n > 0)
        bk_stream_write(all.out, text, n, BK_COPY, NULL);
}

/* ---- Lines ---- */

/* Keep the beginning of a line until the rest comes. */
static int keep(connection *c, const char *text, size_t n) {
    if (n == 0)
        return 0;
    if (c->have + n > LINE_BYTES)
        return -EMSGSIZE;
    char *more = realloc(c->line, c->have + n);
    if (more == NULL)
        return -ENOMEM;
    memcpy(more + c->have, text, n);
    c->line = more;
    c->have += (unsigned)n;
    return 0;
}

static void forget(connection *c) {
    free(c->line);
    c->line = NULL;
    c->have = 0;
}

static void count_lines(connection *c, const char *text, size_t n) {
    const char *end = text + n;
    while (text < end && (text = memchr(text, '\n', (size_t)(end - text))) != NULL) {
        all.lines++;
        text++;
    }
    c->failures = 0; /* only who sends a line has recovered */
    if (options.lines_most > 0 && all.lines >= options.lines_most && !all.stopping)
        stop(NULL);
}

/* Only whole lines are written, so that those of two connections never mix. */
static void received(bk_stream *s, const void *data, size_t n) {
    connection *c = bk_stream_user(s);
    const char *text = data, *last = memrchr(text, '\n', n);
    size_t whole = last == NULL ? 0 : (size_t)(last - text) + 1;
    all.bytes += (long long)n;
    if (whole > 0) {
        put(c->line, c->have);
        put(text, whole);
        forget(c);
        count_lines(c, text, whole);
    }
    int code = keep(c, text + whole, n - whole);
    if (code < 0) {
        fprintf(stderr, "aggregator: %s: a line of more than %d bytes\n", c->endpoint, LINE_BYTES);
        bk_stream_abort(s);
    } else if (all.full) {
        bk_stream_pause(s);
    }
}

/* ---- Connections ---- */

static void connect_more(void);

static void wait_for_turn(connection *c) {
    c->next = NULL;
    *all.after = c;
    all.after = &c->next;
    connect_more();
}

static void on_pause_over(void *arg) {
    all.reconnects++;
    wait_for_turn(arg);
}

/* Somewhere between half of the time and all of it: servers that come back are not to be met by
   everybody at once. */
static int64_t pause_of(const connection *c) {
    unsigned doublings = c->failures < PAUSE_DOUBLINGS ? c->failures : PAUSE_DOUBLINGS;
    int64_t time = ((int64_t)PAUSE_MS * 1000000) << doublings;
    uint32_t chance = 0;
    bk_os *os = bk_loop_os(all.loop);
    (void)os->random(os, &chance, sizeof chance);
    return time / 2 + time / 2 * (int64_t)(chance >> 16) / 65536;
}

static void again(connection *c) {
    c->failures++;
    if (options.failures_most > 0 && c->failures >= (unsigned long)options.failures_most) {
        if (++all.given_up == all.count)
            stop(NULL);
        return;
    }
    int64_t when = bk_loop_now(all.loop) + pause_of(c);
    if (bk_timer_start(all.loop, &c->pause, when, on_pause_over, c) < 0)
        all.given_up++;
}

static int opened(bk_stream *s) {
    connection *c = bk_stream_user(s);
    c->connected = 1;
    all.connecting--;
    if (++all.open > all.most_open)
        all.most_open = all.open;
    connect_more();
    return 0;
}

static void closed(bk_stream *s, int why) {
    connection *c = bk_stream_user(s);
    all.open -= c->connected != 0;
    all.connecting -= c->connected == 0;
    c->connected = 0;
    c->stream = NULL;
    forget(c); /* what is no whole line is not for others to read */
    if (all.stopping)
        return;
    if (why < 0)
        all.why = why;
    again(c);
    connect_more();
}

static const bk_protocol lines = {.size = sizeof lines,
                                  .name = "lines",
                                  .opened = opened,
                                  .received = received,
                                  .closed = closed};

static void connect_more(void) {
    while (all.waiting != NULL && all.connecting < options.connecting_most && !all.stopping) {
        connection *c = all.waiting;
        bk_error error;
        all.waiting = c->next;
        if (all.waiting == NULL)
            all.after = &all.waiting;
        int code = bk_connect(all.loop, c->endpoint, &lines, c, &error, &c->stream);
        if (code >= 0) {
            all.connecting++;
            continue;
        }
        fprintf(stderr, "aggregator: %s: %s\n", c->endpoint, error.text);
        all.status = 1; /* the endpoint is wrong, not the server: it will not get better */
        stop(NULL);
    }
}

/* ---- The program ---- */

static int usage(void) {
    fprintf(stderr,
            "usage: aggregator [OPTION...] ENDPOINT...\n"
            "Reads lines from many connections at once, and merges them on standard output.\n"
            "  -n NUMBER   connections to each endpoint (1)\n"
            "  -c NUMBER   that may be in the making at once (100)\n"
            "  -t SECONDS  stop after that time (0: at SIGINT or SIGTERM)\n"
            "  -l NUMBER   stop after that many lines (0: do not)\n"
            "  -r NUMBER   give a connection up after that many failures in a row (0: never)\n"
            "  -q          count the lines, do not print them\n"
            "  aggregator -n 10000 -t 60 -q tcp://127.0.0.1:7000\n"
            "  aggregator tcp://log1:514 'tls://log2:6514?ca=our.pem' unix:/run/log.sock\n"
            "A summary goes to standard error. To one address and port a machine can have some\n"
            "28,000 connections; more need more addresses, or a unix: endpoint.\n");
    return 2;
}

static int number(const char *text, long least, long *ret_value) {
    char *end;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (errno != 0 || *text == '\0' || *end != '\0' || value < least || value > 1000000000)
        return -1;
    *ret_value = value;
    return 0;
}

static int parse_options(int argc, char **argv) {
    int code = 0, option;
    while (code == 0 && (option = getopt(argc, argv, "n:c:t:l:r:q")) != -1) {
        switch (option) {
        case 'n':
            code = number(optarg, 1, &options.connections);
            break;
        case 'c':
            code = number(optarg, 1, &options.connecting_most);
            break;
        case 't':
            code = number(optarg, 0, &options.seconds);
            break;
        case 'l':
            code = number(optarg, 0, &options.lines_most);
            break;
        case 'r':
            code = number(optarg, 0, &options.failures_most);
            break;
        case 'q':
            options.quiet = 1;
            break;
        default:
            return -1;
        }
        if (code < 0)
            fprintf(stderr, "aggregator: -%c: %s is not a number that it takes\n", option, optarg);
    }
    return code < 0 || optind == argc ? -1 : 0;
}

/* A descriptor for each connection: as many as we may have. */
static void raise_limit(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &limit);
    }
}

/* The connections take turns among the endpoints, so that none has to take them all at once. */
static int prepare(char **endpoints, int endpoint_count) {
    all.count = options.connections * endpoint_count;
    all.all = calloc((size_t)all.count, sizeof *all.all);
    all.after = &all.waiting;
    if (all.all == NULL)
        return -ENOMEM;
    for (long i = 0; i < all.count; i++) {
        all.all[i].endpoint = endpoints[i % endpoint_count];
        *all.after = &all.all[i];
        all.after = &all.all[i].next;
    }
    return 0;
}

static int run(void) {
    bk_timer end = {0};
    int code = bk_signal_set(all.loop, SIGINT, stop, NULL);
    if (code >= 0)
        code = bk_signal_set(all.loop, SIGTERM, stop, NULL);
    if (code >= 0)
        code = open_output();
    if (code >= 0 && options.seconds > 0)
        code = bk_timer_start(all.loop, &end, bk_loop_now(all.loop) + options.seconds * SECOND,
                              stop, NULL);
    if (code >= 0) {
        connect_more();
        code = bk_loop_run(all.loop);
    }
    bk_timer_stop(all.loop, &end);
    return code;
}

int main(int argc, char **argv) {
    if (parse_options(argc, argv) < 0)
        return usage();
    raise_limit();
    (void)signal(SIGPIPE, SIG_IGN); /* a reader of ours that has gone is an error of a write */
    int code = bk_loop_new(NULL, &all.loop);
    if (code >= 0)
        code = prepare(argv + optind, argc - optind);
    int64_t began = bk_loop_now(all.loop);
    if (code >= 0)
        code = run();
    if (code >= 0)
        summarise(began);
    else
        fprintf(stderr, "aggregator: %s\n", bk_strerror(code));
    all.stopping = 1;
    (void)bk_loop_free(all.loop);
    free(all.all);
    return code < 0 ? 1 : all.status;
}
