/* A mail server on becket's C interface, for the benchmark: it takes every message and drops it, as Postfix's smtp-sink
 * does; or stores it in the Maildir that BENCH_MAILDIR names.
 */
#include "../endpoint.h"

#include <becket-smtp.h>

static void drop(void *context, bk_smtp_session *s, bk_smtp_message *message) {
    (void)context;
    bk_smtp_message_free(message);
    bk_smtp_answer(s, NULL);
}

/* TLS is asked for in becket's own words, which name the files; its backlog is the same by default. */
static int listen_tls(bk_loop *loop, const endpoint *at, const bk_protocol *smtp) {
    char text[2 * PATH_MAX + 100];
    bk_error error = {.text = ""};
    snprintf(text, sizeof text, "tls://%s:%d?cert=%s&key=%s", at->host, at->port, at->pem, at->pem);
    int r = bk_listen(loop, text, smtp, &error, NULL);
    if (r < 0) {
        fprintf(stderr, "becket: %s\n", error.text);
        exit(1);
    }
    return r;
}

static int protocol_new(bk_loop *loop, bk_protocol **ret_protocol) {
    const char *maildir = getenv("BENCH_MAILDIR");
    bk_smtp_config config = {.size = sizeof config, .message = maildir ? NULL : drop};
    if (maildir)
        return bk_smtp_maildir_new(loop, &config, maildir, NULL, NULL, ret_protocol);
    return bk_smtp_protocol_new(&config, bk_loop_os(loop), ret_protocol);
}

int main(int argc, char **argv) {
    char version[32];
    snprintf(version, sizeof version, "becket %s", bk_version());
    endpoint at = endpoint_argument(argc, argv, version);
    bk_protocol *smtp;
    bk_loop *loop;
    int r = bk_loop_new(NULL, &loop);
    if (r >= 0)
        r = protocol_new(loop, &smtp);
    if (r >= 0)
        r = at.pem ? listen_tls(loop, &at, smtp) : bk_listen_fd(loop, endpoint_bind(&at), smtp, NULL);
    if (r < 0) {
        fprintf(stderr, "becket: %s\n", bk_strerror(r));
        return 1;
    }
    endpoint_ready();
    return bk_loop_run(loop) < 0;
}
