/* Sends a message from a file.
 *
 *     mail_send tcp://127.0.0.1:8025 me@here.example you@there.example message.eml
 *     mail_send 'starttls://mx.example.org:25?verify=none' '' her@example.org,him@example.org -
 *
 * A line that ends in LF alone goes out with CRLF. What each recipient was answered is printed; the
 * exit status is 0 when all of them were accepted. "-" is standard input. */
#include <becket-smtp.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct letter {
    bk_loop *loop;
    bk_smtp_message *message; /* NULL: the client has it */
    int failed;
} letter;

/* ---- The message ---- */

static int add_recipients(bk_smtp_message *message, char *list) {
    int code = 0;
    for (char *one = strtok(list, ","); one != NULL && code == 0; one = strtok(NULL, ","))
        code = bk_smtp_message_to(message, one);
    return code;
}

static int add_file(bk_smtp_message *message, const char *path) {
    char piece[16384];
    size_t n;
    int code = 0;
    FILE *file = strcmp(path, "-") == 0 ? stdin : fopen(path, "rb");
    if (file == NULL)
        return -errno;
    while (code == 0 && (n = fread(piece, 1, sizeof piece, file)) > 0)
        code = bk_smtp_message_add(message, piece, n);
    if (ferror(file))
        code = -EIO;
    if (file != stdin)
        fclose(file);
    return code;
}

static int compose(letter *l, const char *from, char *to, const char *path) {
    int code = bk_smtp_message_new(bk_os_default(), from, &l->message);
    if (code == 0)
        code = add_recipients(l->message, to);
    return code == 0 ? add_file(l->message, path) : code;
}

/* ---- The client ---- */

static void sent(void *arg, bk_smtp_client *client, const bk_smtp_message *message,
                 const bk_smtp_result *result) {
    letter *l = arg;
    (void)client;
    for (size_t i = 0; i < result->reply_count; i++)
        printf("%s: %s\n", message->recipients[i].address, result->replies[i]);
    l->failed = result->accepted < (int)result->reply_count;
}

static void ready(void *context, bk_smtp_client *client) {
    letter *l = context;
    int code = bk_smtp_client_send(client, l->message, sent, l);
    if (code == 0)
        l->message = NULL;
    else
        fprintf(stderr, "mail_send: %s\n", bk_strerror(code));
    bk_smtp_client_quit(client);
}

static void closed(void *context, bk_smtp_client *client, int why, const char *reply) {
    letter *l = context;
    (void)client;
    if (why < 0) {
        fprintf(stderr, "mail_send: %s\n", reply != NULL ? reply : bk_strerror(why));
        l->failed = 1;
    }
    bk_loop_stop(l->loop);
}

static int deliver(letter *l, const char *endpoint) {
    const bk_smtp_client_config config = {.size = sizeof config,
                                          .flags = BK_SMTP_MAKE_WHOLE,
                                          .context = l,
                                          .ready = ready,
                                          .closed = closed};
    bk_protocol *smtp;
    bk_error error = {0, 0, ""};
    int code = bk_smtp_client_protocol_new(&config, bk_os_default(), &smtp);
    if (code < 0)
        return code;
    code = bk_connect(l->loop, endpoint, smtp, NULL, &error, NULL);
    if (code == 0)
        (void)bk_loop_run(l->loop);
    else
        fprintf(stderr, "mail_send: %s\n", error.text); /* which says more than the code */
    bk_machine_protocol_free(smtp);
    return 0;
}

int main(int argc, char **argv) {
    letter l = {.failed = 1};
    if (argc != 5) {
        fprintf(stderr, "usage: mail_send ENDPOINT FROM TO[,TO…] FILE\n");
        return 2;
    }
    int code = compose(&l, argv[2], argv[3], argv[4]);
    if (code == 0)
        code = bk_loop_new(NULL, &l.loop);
    if (code == 0)
        code = deliver(&l, argv[1]);
    if (code < 0)
        fprintf(stderr, "mail_send: %s\n", bk_strerror(code));
    if (l.loop != NULL)
        bk_loop_free(l.loop);
    bk_smtp_message_free(l.message);
    return code < 0 || l.failed;
}
