/*
 * smtp_login.c: logging in (AUTH, RFC 4954) by SCRAM-SHA-256, PLAIN (RFC 4616) or LOGIN, for
 * smtp_client.c.
 *
 * Passwords are for TLS: a server that offers AUTH without it, or somebody between us who took
 * STARTTLS out of what it offers, gets none unless the program said so.
 */
#include "core/protocol/smtp_client.h"

#include "core/protocol/base64.h"

/* Whether a word is in the list that came with AUTH. */
static bool is_offered(const char *list, const char *mechanism) {
    size_t n;
    for (; *list != '\0'; list += n + (list[n] != '\0')) {
        n = strcspn(list, " ");
        if (bk_smtp_is(list, n, mechanism))
            return true;
    }
    return false;
}

static const char *choose(const bk_smtp_client *c) {
    static const char *const best_first[] = {"SCRAM-SHA-256", "PLAIN", "LOGIN", NULL};
    const char *list, *wanted = c->config.mechanism;
    if (!bk_smtp_client_offers(c, "AUTH", &list))
        return NULL;
    for (int i = 0; best_first[i] != NULL; i++)
        if ((wanted == NULL || bk_smtp_is(wanted, strlen(wanted), best_first[i])) &&
            is_offered(list, best_first[i]))
            return best_first[i];
    return NULL;
}

/* ---- What is said ---- */

static int plain_message(bk_smtp_client *c, bk_buffer *b) {
    bk_os *os = c->machine.os;
    int r = bk_buffer_add(os, b, "", 1);
    if (r == 0)
        r = bk_buffer_add(os, b, c->config.user, strlen(c->config.user) + 1);
    return r == 0 ? bk_buffer_add(os, b, c->config.password, strlen(c->config.password)) : r;
}

/* The answer to a challenge; the first also goes with the command. -EPROTO: it is not one. */
static int next_message(bk_smtp_client *c, const char *text, size_t n, bk_buffer *b) {
    bk_os *os = c->machine.os;
    unsigned step = c->step++;
    const char *word = step == 0 ? c->config.user : c->config.password;
    if (c->mechanism[0] == 'P')
        return step == 0 ? plain_message(c, b) : -EPROTO;
    if (c->mechanism[0] == 'L')
        return step < 2 ? bk_buffer_add(os, b, word, strlen(word)) : -EPROTO;
    if (step == 0)
        return bk_scram_client_first(os, &c->scram, c->config.user, b);
    if (step == 1)
        return bk_scram_client_final(os, &c->scram, c->config.password, text, n, b);
    c->verified = step == 2 && bk_scram_client_verify(&c->scram, text, n);
    return c->verified ? 0 : -EPROTO;
}

/* Base64 of it behind `before`, and then CRLF. What it was made of is a password: it is wiped. */
static void say_encoded(bk_smtp_client *c, const char *before, bk_buffer *b) {
    bk_os *os = c->machine.os;
    char *text = bk_alloc(os, BK_BASE64_ROOM(b->used));
    if (text == NULL) {
        bk_smtp_client_end(c, -ENOMEM, NULL);
    } else {
        size_t n = bk_base64_encode(b->data, b->used, text);
        bk_smtp_client_say(c, "%s%s\r\n", before, text);
        bk_wipe(text, n);
    }
    bk_dealloc(os, text);
}

static void forget(bk_smtp_client *c, bk_buffer *b) {
    if (b->data != NULL)
        bk_wipe(b->data, b->room);
    bk_buffer_clear(c->machine.os, b);
}

/* ---- The exchange ---- */

/* RFC 4954, 4: with the first message in the command, where a line has room for it. */
void bk_smtp_login_begin(bk_smtp_client *c) {
    bk_buffer first = {NULL, 0, 0};
    char command[32] = "AUTH ";
    c->mechanism = choose(c);
    if (c->mechanism == NULL ||
        !(c->config.flags & BK_SMTP_AUTH_IN_CLEAR || bk_machine_secure(&c->machine) > 0)) {
        bk_smtp_client_end(c, c->mechanism == NULL ? -ENOTSUP : -EPERM, NULL);
        return;
    }
    strcat(command, c->mechanism);
    c->step = 0;
    int r = c->mechanism[0] == 'L' ? 0 : next_message(c, NULL, 0, &first);
    if (r < 0) {
        bk_smtp_client_end(c, r, NULL);
    } else if (first.used == 0 || sizeof command + BK_BASE64_ROOM(first.used) > BK_SMTP_LINE_MAX) {
        c->step = 0;
        bk_smtp_client_say(c, "%s\r\n", command);
    } else {
        strcat(command, " ");
        say_encoded(c, command, &first);
    }
    forget(c, &first);
}

/* What the server says is wrong: we give up, and it answers that with 501. */
static void cancel(bk_smtp_client *c) {
    c->cancelled = true;
    bk_smtp_client_say(c, "*\r\n");
}

static void challenge(bk_smtp_client *c, const char *reply) {
    bk_os *os = c->machine.os;
    bk_buffer answer = {NULL, 0, 0};
    const char *text = reply + 4;
    size_t size = strlen(text);
    char *decoded = bk_alloc(os, size / 4 * 3 + 1);
    ssize_t n = decoded != NULL ? bk_base64_decode(text, size, decoded) : -ENOMEM;
    if (n < 0 && decoded != NULL && c->mechanism[0] != 'S')
        n = 0; /* what it asks for is known: some ask in plain words */
    int r = n < 0 ? (int)n : next_message(c, decoded, (size_t)n, &answer);
    if (r == -ENOMEM || r == -EIO)
        bk_smtp_client_end(c, r, NULL);
    else if (r < 0)
        cancel(c);
    else
        say_encoded(c, "", &answer);
    forget(c, &answer);
    bk_dealloc(os, decoded);
}

void bk_smtp_login_reply(bk_smtp_client *c, const char *reply) {
    bool scram = c->mechanism[0] == 'S';
    if (c->cancelled)
        bk_smtp_client_end(c, -EPROTO, reply);
    else if (reply[0] == '3')
        challenge(c, reply);
    else if (reply[0] != '2')
        bk_smtp_client_end(c, -EACCES, reply);
    else if (scram && !c->verified) /* it takes us in without proof that it knows us */
        bk_smtp_client_end(c, -EPROTO, NULL);
    else
        bk_smtp_client_be_ready(c);
}
