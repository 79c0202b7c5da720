/* The load of the mail cells, where smtp-source of Postfix cannot be it: it has no TLS. So many connections send messages
 * of 1 KiB one after the other, each waiting for every reply, until there have been enough; then it says how many seconds
 * that took. It runs on becket's own streams, plain and TLS alike, on a core of its own.
 */
#include "endpoint.h"

#include <becket.h>

#include <time.h>

static const char *steps[] = {
    "EHLO load\r\n", "MAIL FROM:<a@b.example>\r\n", "RCPT TO:<c@d.example>\r\n", "DATA\r\n", NULL /* the message */
};

enum { STEPS = sizeof steps / sizeof *steps, GREETED = 1 };

typedef struct sender {
    int step;       /* what is said when the reply has come */
    char line[4];   /* the first bytes of the line that is arriving */
    size_t length;
} sender;

static char message[1100];
static long left, answered;
static bk_loop *loop;

static void give_up(const char *why) {
    fprintf(stderr, "mail-load: %s\n", why);
    exit(1);
}

static void replied(bk_stream *s, sender *self) {
    if (self->line[0] != '2' && self->line[0] != '3')
        give_up("the server refused something");
    if (self->step == STEPS) { /* a message was taken */
        self->step = GREETED;
        if (--answered == 0)
            bk_loop_stop(loop);
    }
    if (self->step == GREETED && left-- <= 0)
        return;
    const char *words = steps[self->step] != NULL ? steps[self->step] : message;
    self->step++;
    if (bk_stream_write(s, words, strlen(words), BK_STATIC, NULL) < 0)
        give_up("cannot write");
}

static void received(bk_stream *s, const void *data, size_t n) {
    sender *self = bk_stream_user(s);
    const char *at = data;
    for (size_t i = 0; i < n; i++) {
        if (self->length < sizeof self->line)
            self->line[self->length] = at[i];
        self->length++;
        if (at[i] != '\n')
            continue;
        self->length = 0;
        if (self->line[3] == ' ')
            replied(s, self);
    }
}

static void closed(bk_stream *s, int why) {
    (void)s;
    if (answered > 0)
        give_up(bk_strerror(why));
}

static const bk_protocol sending = {.size = sizeof sending, .name = "send", .received = received, .closed = closed};

static void make_message(void) {
    strcpy(message, "From: <a@b.example>\r\nTo: <c@d.example>\r\nSubject: load\r\n\r\n");
    while (strlen(message) < 1024)
        strcat(message, "XXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX\r\n");
    strcat(message, ".\r\n");
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

int main(int argc, char **argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: %s tcp:HOST:PORT|tls:HOST:PORT CONNECTIONS MESSAGES\n", argv[0]);
        return 2;
    }
    endpoint at;
    if (endpoint_parse(argv[1], &at) < 0)
        return 2;
    long count = atol(argv[2]);
    left = answered = atol(argv[3]);
    char text[100];
    bk_error error = {.text = ""};
    snprintf(text, sizeof text, "%s://%s:%d%s", at.pem ? "tls" : "tcp", at.host, at.port, at.pem ? "?verify=none" : "");
    make_message();
    if (count < 1 || left < count || bk_loop_new(NULL, &loop) < 0)
        give_up("at least one connection, and a message for each");
    double start = now();
    for (long i = 0; i < count; i++) {
        sender *self = calloc(1, sizeof *self);
        if (bk_connect(loop, text, &sending, self, &error, NULL) < 0)
            give_up(error.text);
    }
    if (bk_loop_run(loop) < 0)
        give_up("the loop failed");
    printf("%.6f\n", now() - start);
    return 0;
}
