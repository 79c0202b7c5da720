/*
 * smtp_ask.c: the program's hooks: asked one at a time, answered from within or later, and the
 * answer acted on. Called by the other parts of the server, and by programs with their answers.
 */
#include "core/protocol/smtp_session.h"

#include "core/protocol/sasl.h"
#include "core/protocol/smtp_message.h"

/* Who is refused is to say QUIT (RFC 5321, 3.1), and is not waited for after 521 (RFC 7504, 3). */
static void answer_connect(bk_smtp_session *s, const char *reply) {
    if (reply == NULL || (reply[0] == '2' && strncmp(reply, "220 ", 4) != 0)) {
        bk_smtp_greet(s);
        return;
    }
    char class = bk_smtp_relay(s, reply, true);
    s->denied = class == '5' && strncmp(reply, "521", 3) != 0;
    if (class != '2' && !s->denied)
        bk_machine_close(&s->machine);
}

static void answer_helo(bk_smtp_session *s, const char *reply) {
    bool refused = reply != NULL && bk_smtp_reply_class(reply) != '2';
    if (refused)
        s->greeted = s->extended = false;
    if (reply == NULL)
        bk_smtp_helo_reply(s);
    else
        (void)bk_smtp_relay(s, reply, !refused);
}

static void answer_mail(bk_smtp_session *s, const char *reply) {
    if (bk_smtp_relay(s, reply != NULL ? reply : "250 2.1.0 sender ok", false) == '2')
        return;
    bk_smtp_message_free(s->message);
    s->message = NULL;
}

static void answer_rcpt(bk_smtp_session *s, const char *reply) {
    bk_smtp_message *m = s->message;
    s->recipient_asked = false;
    if (bk_smtp_relay(s, reply != NULL ? reply : "250 2.1.5 recipient ok", false) == '2')
        m->recipient_count++;
    else
        bk_smtp_recipient_clear(m->os, &m->recipients[m->recipient_count]);
}

static void answer_data(bk_smtp_session *s, const char *reply) {
    bool refused = reply != NULL && reply[0] != '2';
    if (refused && s->mode == BK_SMTP_COMMANDS) {
        (void)bk_smtp_relay(s, reply, false);
        return;
    }
    if (refused)
        bk_smtp_data_refuse(s, reply);
    bk_smtp_data_begin(s);
}

static void answer_message(bk_smtp_session *s, const char *reply) {
    const char *const replies[] = {reply};
    bk_smtp_data_answered(s, replies, 1);
}

static void answer_vrfy(bk_smtp_session *s, const char *reply) {
    bk_dealloc(s->machine.os, s->verify);
    s->verify = NULL;
    (void)bk_smtp_relay(s, reply != NULL ? reply : "252 2.5.0 cannot verify, send mail and see",
                        false);
}

static void (*const answers[])(bk_smtp_session *s, const char *reply) = {
    [BK_SMTP_ASK_CONNECT] = answer_connect,     [BK_SMTP_ASK_HELO] = answer_helo,
    [BK_SMTP_ASK_AUTH] = bk_smtp_auth_answered, [BK_SMTP_ASK_MAIL] = answer_mail,
    [BK_SMTP_ASK_RCPT] = answer_rcpt,           [BK_SMTP_ASK_DATA] = answer_data,
    [BK_SMTP_ASK_CHUNK] = bk_smtp_data_taken,   [BK_SMTP_ASK_MESSAGE] = answer_message,
    [BK_SMTP_ASK_VRFY] = answer_vrfy,           [BK_SMTP_ASK_COMMAND] = bk_smtp_command_answered,
};

static void call_hook(bk_smtp_session *s, bk_smtp_question question) {
    const bk_smtp_config *c = &s->config;
    bk_smtp_message *m = s->message;
    switch (question) {
    case BK_SMTP_ASK_CONNECT:
        c->connect(c->context, s);
        break;
    case BK_SMTP_ASK_HELO:
        c->helo(c->context, s);
        break;
    case BK_SMTP_ASK_AUTH:
        c->auth(c->context, s, &s->sasl->login);
        break;
    case BK_SMTP_ASK_MAIL:
        c->mail(c->context, s, m);
        break;
    case BK_SMTP_ASK_RCPT:
        s->recipient_asked = true;
        c->rcpt(c->context, s, m, &m->recipients[m->recipient_count]);
        break;
    case BK_SMTP_ASK_DATA:
        c->data(c->context, s, m);
        break;
    case BK_SMTP_ASK_CHUNK:
        c->chunk(c->context, s, m->data + m->trace_size, m->size - m->trace_size);
        break;
    case BK_SMTP_ASK_MESSAGE:
        s->message = NULL; /* the hook's from now on */
        c->message(c->context, s, m);
        break;
    case BK_SMTP_ASK_VRFY:
        c->vrfy(c->context, s, s->verify);
        break;
    case BK_SMTP_ASK_COMMAND:
        c->command(c->context, s, s->command, s->command + strlen(s->command) + 1);
        break;
    case BK_SMTP_ASK_NOTHING:
        break;
    }
}

/* While we owe an answer, silence is not the client's: a message that is stored must not be sent
   again because nobody could say so. */
void bk_smtp_ask(bk_smtp_session *s, bk_smtp_question question) {
    bool within = s->asking;
    s->asked = question;
    s->asking = true;
    call_hook(s, question);
    s->asking = within;
    if (s->asked == BK_SMTP_ASK_NOTHING)
        return;
    bk_machine_timeout(&s->machine, 0);
    bk_machine_wait(&s->machine);
}

/* Whether an answer is wanted now, and of whom. A session that has gone waited for it alone. */
static bk_smtp_question take_question(bk_smtp_session *s) {
    bk_smtp_question asked = s == NULL ? BK_SMTP_ASK_NOTHING : s->asked;
    if (asked == BK_SMTP_ASK_NOTHING)
        return asked;
    s->asked = BK_SMTP_ASK_NOTHING;
    if (!s->gone)
        return asked;
    bk_smtp_session_free(s);
    return BK_SMTP_ASK_NOTHING;
}

/* What an answer led to may have asked again. */
static void go_on(bk_smtp_session *s) {
    if (s->asking || s->asked != BK_SMTP_ASK_NOTHING)
        return;
    bk_machine_timeout(&s->machine, s->config.timeout);
    bk_machine_go(&s->machine);
}

void bk_smtp_answer(bk_smtp_session *s, const char *reply) {
    bk_smtp_question asked = take_question(s);
    if (asked == BK_SMTP_ASK_NOTHING)
        return;
    answers[asked](s, reply);
    go_on(s);
}

void bk_smtp_answer_each(bk_smtp_session *s, const char *const *replies) {
    if (s == NULL || replies == NULL)
        return;
    bk_smtp_question asked = take_question(s);
    if (asked == BK_SMTP_ASK_NOTHING)
        return;
    if (asked == BK_SMTP_ASK_MESSAGE)
        bk_smtp_data_answered(s, replies, s->recipient_count);
    else
        answers[asked](s, replies[0]);
    go_on(s);
}

void bk_smtp_answer_secret(bk_smtp_session *s, const bk_secret *secret) {
    bk_smtp_question asked = take_question(s);
    if (asked == BK_SMTP_ASK_NOTHING)
        return;
    if (asked == BK_SMTP_ASK_AUTH)
        bk_smtp_auth_secret(s, secret);
    else
        answers[asked](s, "451 4.3.0 local error");
    go_on(s);
}
