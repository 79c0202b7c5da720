/* Receives mail, and prints who it is from, whom for, and how large it is.
 *
 *     mail_receive                              at tcp://127.0.0.1:8025
 *     mail_receive tcp://:25 unix:mail.sock     at up to three endpoints of yours
 *
 * Nothing is kept: a real one would store the message, and answer when that is done. */
#include <becket-smtp.h>

#include <stdio.h>
#include <string.h>

/* Asked for each recipient; NULL accepts. */
static void rcpt(void *context, bk_smtp_session *s, const bk_smtp_message *envelope,
                 const bk_smtp_recipient *recipient) {
    (void)context, (void)envelope;
    int unknown = strncmp(recipient->address, "nobody@", 7) == 0;
    bk_smtp_answer(s, unknown ? "550 5.1.1 there is nobody of that name" : NULL);
}

static void message(void *context, bk_smtp_session *s, bk_smtp_message *m) {
    (void)context;
    printf("from <%s> to", m->sender);
    for (size_t i = 0; i < m->recipient_count; i++)
        printf(" <%s>", m->recipients[i].address);
    printf(", %zu bytes\n", m->size);
    fflush(stdout);
    bk_smtp_message_free(m);
    bk_smtp_answer(s, NULL);
}

int main(int argc, char **argv) {
    const bk_smtp_config config = {.size = sizeof config, .rcpt = rcpt, .message = message};
    const char *at[4] = {"tcp://127.0.0.1:8025", NULL};
    bk_protocol *smtp;
    for (int i = 1; i < argc && i < 4; i++)
        at[i - 1] = argv[i];
    if (bk_smtp_protocol_new(&config, bk_os_default(), &smtp) < 0)
        return 1;
    int status = bk_serve(smtp, at[0], at[1], at[2], NULL);
    bk_machine_protocol_free(smtp);
    return status;
}
