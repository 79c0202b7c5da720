/*
 * smtp_auth.c: AUTH (RFC 4954): the messages of a SASL exchange as lines of base64, and the auth
 * hook, which decides. For smtp_server.c.
 */
#include "core/protocol/smtp_session.h"

#include "core/protocol/base64.h"
#include "core/protocol/sasl.h"
#include "core/protocol/smtp_message.h"

bool bk_smtp_auth_offered(const bk_smtp_session *s) {
    return s->config.auth != NULL && (bk_smtp_secure(s) || s->config.flags & BK_SMTP_AUTH_IN_CLEAR);
}

void bk_smtp_auth_end(bk_smtp_session *s) {
    s->mode = BK_SMTP_COMMANDS;
    if (s->sasl == NULL)
        return;
    bk_sasl_clear(s->sasl);
    bk_dealloc(s->machine.os, s->sasl);
    s->sasl = NULL;
}

static void auth_refuse(bk_smtp_session *s, const char *reply) {
    bk_smtp_auth_end(s);
    (void)bk_smtp_relay(s, reply, false);
}

static void auth_done(bk_smtp_session *s, const char *reply) {
    s->login = bk_smtp_text_new(s->machine.os, s->sasl->user, strlen(s->sasl->user));
    auth_refuse(s, s->login != NULL ? reply : "454 4.7.0 Temporary authentication failure");
}

/* "334 " and the challenge. */
static void auth_challenge(bk_smtp_session *s) {
    const bk_sasl *sasl = s->sasl;
    char text[4 + BK_BASE64_ROOM(sizeof sasl->scram.challenge) + 2] = "334 ";
    size_t n = 4 + bk_base64_encode(sasl->challenge, sasl->challenge_size, text + 4);
    memcpy(text + n, "\r\n", 2);
    s->mode = BK_SMTP_AUTH;
    bk_smtp_send(s, text, n + 2);
}

static void auth_act(bk_smtp_session *s, bk_sasl_result result) {
    switch (result) {
    case BK_SASL_CONTINUE:
        auth_challenge(s);
        break;
    case BK_SASL_ASK:
        bk_smtp_ask(s, BK_SMTP_ASK_AUTH);
        break;
    case BK_SASL_DONE:
        auth_done(s, BK_SMTP_LOGGED_IN);
        break;
    case BK_SASL_BROKEN:
        auth_refuse(s, "501 5.5.2 Cannot decode the response");
        break;
    case BK_SASL_DENIED:
        auth_refuse(s, "535 5.7.8 Authentication credentials invalid");
        break;
    case BK_SASL_FAILED:
        auth_refuse(s, "454 4.7.0 Temporary authentication failure");
        break;
    }
}

static void auth_take(bk_smtp_session *s, const char *text, size_t n) {
    char message[BK_SASL_MESSAGE_MAX / 4 * 3 + 3];
    ssize_t size = n < BK_SASL_MESSAGE_MAX ? bk_base64_decode(text, n, message) : -EINVAL;
    bk_sasl_result result =
        size < 0 ? BK_SASL_BROKEN : bk_sasl_take(s->sasl, message, (size_t)size);
    bk_wipe(message, sizeof message);
    auth_act(s, result);
}

void bk_smtp_auth_line(bk_smtp_session *s, const char *text, size_t n) {
    if (n == 1 && text[0] == '*')
        auth_refuse(s, "501 5.7.0 Authentication cancelled");
    else
        auth_take(s, text, n);
}

/* ---- The command ---- */

static const char *auth_refusal(const bk_smtp_session *s) {
    if (s->config.auth == NULL)
        return "502 5.5.1 command is not implemented";
    if (!s->extended)
        return "503 5.5.1 EHLO first";
    if (!bk_smtp_auth_offered(s))
        return "538 5.7.11 Encryption required for requested authentication mechanism";
    if (s->login != NULL)
        return "503 5.5.1 Already authenticated";
    return s->message != NULL ? "503 5.5.1 Not during a mail transaction" : NULL;
}

static const char *auth_begin(bk_smtp_session *s, const char *mechanism, size_t n) {
    s->sasl = bk_alloc(s->machine.os, sizeof *s->sasl);
    if (s->sasl == NULL)
        return "454 4.7.0 Temporary authentication failure";
    if (bk_sasl_begin(s->sasl, s->machine.os, mechanism, n))
        return NULL;
    bk_smtp_auth_end(s);
    return "504 5.5.4 Unrecognized authentication mechanism";
}

/* "PLAIN", "PLAIN base64" or, for a message without a byte, "PLAIN =". */
void bk_smtp_auth(bk_smtp_session *s, const char *arg, size_t n) {
    const char *refusal = auth_refusal(s);
    const char *space = memchr(arg, ' ', n);
    size_t size = space != NULL ? (size_t)(space - arg) : n;
    if (refusal == NULL && size == 0)
        refusal = "501 5.5.4 AUTH mechanism [response] is the syntax";
    if (refusal == NULL)
        refusal = auth_begin(s, arg, size);
    if (refusal != NULL)
        bk_smtp_reply(s, refusal);
    else if (space == NULL)
        auth_act(s, bk_sasl_take(s->sasl, NULL, 0));
    else if (n - size == 2 && space[1] == '=')
        auth_take(s, "", 0);
    else
        auth_take(s, space + 1, n - size - 1);
}

/* ---- The answers ---- */

/* NULL: it is him; with SCRAM nobody can know that yet. */
void bk_smtp_auth_answered(bk_smtp_session *s, const char *reply) {
    bool accepted = reply == NULL || bk_smtp_reply_class(reply) == '2';
    if (accepted && s->sasl->login.password == NULL)
        auth_act(s, BK_SASL_FAILED);
    else if (accepted)
        auth_done(s, reply != NULL ? reply : BK_SMTP_LOGGED_IN);
    else
        auth_refuse(s, reply);
}

void bk_smtp_auth_secret(bk_smtp_session *s, const bk_secret *secret) {
    auth_act(s, bk_sasl_secret(s->sasl, secret, s->decoy));
}
