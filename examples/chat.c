/* A chat for thousands: each line that somebody sends goes to everybody, him too.
 *
 *     chat                                      at tcp://127.0.0.1:7000
 *     chat tcp://:7000 unix:chat.sock           at up to three endpoints of yours
 *
 * A line is one piece of memory for all: each queue refers to it, and the last to send it frees it.
 * Whoever is too far behind with reading is dropped, or his queue would grow for ever. */
#include <becket.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

enum {
    LINE_BYTES = 1024,         /* of a line, the newline included */
    BEHIND_BYTES = 256 * 1024, /* queued for one who does not read: he is dropped beyond that */
};

typedef struct client client;

struct client {
    bk_stream *stream;
    client *next, **link; /* in everybody */
    const char *dropped;  /* why we ended it; NULL: we did not */
    unsigned number;
    unsigned have;         /* bytes of a line whose end has not come */
    char line[LINE_BYTES]; /* … and these are they */
};

static client *everybody;
static unsigned counter;

/* ---- One message for all ---- */

typedef struct message {
    unsigned users; /* queues that refer to it, and whoever is still adding it to some */
    size_t size;
    char text[];
} message;

static void release(void *arg) {
    message *m = arg;
    if (--m->users == 0)
        free(m);
}

static message *compose(const client *from, const char *line, size_t n) {
    char name[16];
    size_t named = (size_t)snprintf(name, sizeof name, "%u: ", from->number);
    message *m = malloc(sizeof *m + named + n);
    if (m == NULL)
        return NULL;
    m->users = 1;
    m->size = named + n;
    memcpy(m->text, name, named);
    memcpy(m->text + named, line, n);
    return m;
}

/* Nobody leaves the list in here: closed() is never called from within a write. */
static void broadcast(const client *from, const char *line, size_t n) {
    message *m = compose(from, line, n);
    if (m == NULL) {
        fprintf(stderr, "chat: a line of %u is lost: no memory\n", from->number);
        return;
    }
    for (client *c = everybody; c != NULL; c = c->next) {
        m->users++; /* released by the write, whatever comes of it */
        (void)bk_stream_write(c->stream, m->text, m->size, release, m);
    }
    release(m);
}

/* ---- Clients ---- */

static void drop(client *c, const char *reason) {
    c->dropped = reason;
    bk_stream_abort(c->stream);
}

static int opened(bk_stream *s) {
    client *c = calloc(1, sizeof *c);
    if (c == NULL)
        return -ENOMEM; /* closed() finds no user */
    c->stream = s;
    c->number = ++counter;
    c->next = everybody;
    c->link = &everybody;
    if (c->next != NULL)
        c->next->link = &c->next;
    everybody = c;
    bk_stream_set_user(s, c);
    return bk_stream_set_water(s, 0, BEHIND_BYTES);
}

static void received(bk_stream *s, const void *data, size_t n) {
    client *c = bk_stream_user(s);
    const char *p = data, *end = p + n;
    while (p < end && c->dropped == NULL) {
        const char *newline = memchr(p, '\n', (size_t)(end - p));
        size_t piece = (size_t)((newline != NULL ? newline + 1 : end) - p);
        if (c->have + piece > LINE_BYTES) {
            drop(c, "it sent a line of more than 1024 bytes");
            return;
        }
        memcpy(c->line + c->have, p, piece);
        c->have += (unsigned)piece;
        p += piece;
        if (newline != NULL) {
            broadcast(c, c->line, c->have);
            c->have = 0;
        }
    }
}

/* More than BEHIND_BYTES are queued, and its socket takes no more. */
static void blocked(bk_stream *s) {
    drop(bk_stream_user(s), "it does not read: 256 KiB are waiting for it");
}

static void closed(bk_stream *s, int why) {
    client *c = bk_stream_user(s);
    if (c == NULL)
        return;
    if (why < 0)
        fprintf(stderr, "chat: %u was dropped: %s\n", c->number,
                c->dropped != NULL ? c->dropped : bk_strerror(why));
    *c->link = c->next;
    if (c->next != NULL)
        c->next->link = c->link;
    free(c);
}

static const bk_protocol chat = {.size = sizeof chat,
                                 .name = "chat",
                                 .opened = opened,
                                 .received = received,
                                 .blocked = blocked,
                                 .closed = closed};

/* A descriptor for each client: as many as we may have. */
static void raise_limit(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &limit);
    }
}

int main(int argc, char **argv) {
    if (argc > 4 || (argc > 1 && argv[1][0] == '-')) {
        fprintf(stderr,
                "usage: chat [ENDPOINT [ENDPOINT [ENDPOINT]]]\n"
                "Sends each line that a client sends to all clients.\n"
                "  chat tcp://:7000                    and then, elsewhere: nc HOST 7000\n"
                "  chat 'tls://:7001?cert=site.pem'    openssl s_client -connect HOST:7001\n"
                "  chat 'unix:chat.sock?mode=600'      nc -U chat.sock\n"
                "Without an endpoint it is at tcp://127.0.0.1:7000.\n");
        return 2;
    }
    raise_limit();
    if (argc > 1) /* argv ends with a NULL, and so does the list */
        return bk_serve(&chat, argv[1], argv[2], argc > 2 ? argv[3] : NULL, NULL);
    return bk_serve(&chat, "tcp://127.0.0.1:7000", NULL);
}
