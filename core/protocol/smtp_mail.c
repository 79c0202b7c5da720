/*
 * smtp_mail.c: the messages of a client: their commands, grouped where the server allows that (RFC
 * 2920), and what the replies mean for their recipients. Called by smtp_client.c.
 *
 * The first of the queue gets the replies. Only when its data has been sent do the next one's
 * commands follow, right behind it: DATA is the last command of a group, so that no data is sent
 * that the server did not ask for.
 */
#include "core/protocol/smtp_client.h"

#include <stdio.h>

static bool is_lmtp(const bk_smtp_client *c) {
    return c->config.flags & BK_SMTP_LMTP;
}

static bool offers(const bk_smtp_client *c, const char *keyword) {
    return bk_smtp_client_offers(c, keyword, NULL);
}

/* ---- What a message needs ---- */

/* Whether what will be in it is not known yet. */
static bool is_open(const bk_smtp_client *c, const bk_smtp_outgoing *o) {
    return c->open == o;
}

/* Bytes, as far as is known; one that is open may not have said. */
static uint64_t size_of(const bk_smtp_client *c, const bk_smtp_outgoing *o) {
    return is_open(c, o) ? o->message->declared : bk_smtp_outgoing_size(o);
}

/* Whether the size is more than SIZE says that the server takes. */
static bool is_too_big(const bk_smtp_client *c, const bk_smtp_outgoing *o) {
    const char *value;
    uint64_t limit = 0;
    if (!bk_smtp_client_offers(c, "SIZE", &value))
        return false;
    for (; *value >= '0' && *value <= '9'; value++) {
        if (limit > (UINT64_MAX - 9) / 10)
            return false;
        limit = limit * 10 + (uint64_t)(*value - '0');
    }
    return limit > 0 && size_of(c, o) > limit;
}

/* Our own refusal of what the server could not but spoil; NULL: it can have it. */
static const char *mail_refusal(const bk_smtp_client *c, const bk_smtp_outgoing *o) {
    const bk_smtp_message *m = o->message;
    if (m->utf8 && !offers(c, "SMTPUTF8"))
        return "553 5.6.7 the server does not take addresses beyond ASCII (SMTPUTF8)";
    if (m->body == BK_SMTP_BINARYMIME && !(offers(c, "BINARYMIME") && offers(c, "CHUNKING")))
        return "554 5.6.3 the server does not take binary messages (BINARYMIME)";
    if (m->body != BK_SMTP_BINARYMIME && (o->eight_bit || m->body == BK_SMTP_8BITMIME) &&
        !offers(c, "8BITMIME"))
        return "554 5.6.3 the server does not take messages of 8 bits (8BITMIME)";
    if (m->require_tls &&
        !(offers(c, "REQUIRETLS") && bk_machine_secure((bk_machine *)(uintptr_t)&c->machine) > 0))
        return "550 5.7.30 the server does not promise TLS all the way (REQUIRETLS)";
    return is_too_big(c, o) ? "552 5.3.4 the message is bigger than the server takes (SIZE)" : NULL;
}

/* ---- Commands ---- */

/* xtext (RFC 3461, 4). What is beyond ASCII stays as it is: it is there only with SMTPUTF8. */
static void say_xtext(bk_smtp_client *c, const char *text) {
    for (; *text != '\0'; text++) {
        unsigned char byte = (unsigned char)*text;
        bool plain = byte > 32 && byte != 127 && byte != '+' && byte != '=';
        bk_smtp_client_say(c, plain ? "%c" : "+%02X", byte);
    }
}

/* One more reply is to come. */
static void expect(bk_smtp_client *c, bk_smtp_outgoing *o, size_t replies) {
    o->pending += replies;
    c->pending += replies;
}

static void say_mail_dsn(bk_smtp_client *c, const bk_smtp_message *m) {
    if (m->ret != BK_SMTP_RETURN_ANY)
        bk_smtp_client_say(c, " RET=%s", m->ret == BK_SMTP_RETURN_FULL ? "FULL" : "HDRS");
    if (m->envelope_id != NULL) {
        bk_smtp_client_say(c, " ENVID=");
        say_xtext(c, m->envelope_id);
    }
}

static void say_mail(bk_smtp_client *c, bk_smtp_outgoing *o) {
    const bk_smtp_message *m = o->message;
    bk_smtp_client_say(c, "MAIL FROM:<%s>", m->sender);
    if (offers(c, "SIZE") && (size_of(c, o) > 0 || !is_open(c, o)))
        bk_smtp_client_say(c, " SIZE=%llu", (unsigned long long)size_of(c, o));
    if (m->body == BK_SMTP_BINARYMIME)
        bk_smtp_client_say(c, " BODY=BINARYMIME");
    else if (o->eight_bit || m->body == BK_SMTP_8BITMIME)
        bk_smtp_client_say(c, " BODY=8BITMIME");
    if (m->utf8)
        bk_smtp_client_say(c, " SMTPUTF8");
    if (m->require_tls)
        bk_smtp_client_say(c, " REQUIRETLS");
    if (offers(c, "DSN"))
        say_mail_dsn(c, m);
    if (m->submitter != NULL && offers(c, "AUTH")) {
        bk_smtp_client_say(c, " AUTH=");
        say_xtext(c, *m->submitter != '\0' ? m->submitter : "<>");
    }
    bk_smtp_client_say(c, "\r\n");
    expect(c, o, 1);
}

static void say_notify(bk_smtp_client *c, unsigned notify) {
    const char *words[3];
    int count = 0;
    if (notify & BK_SMTP_NOTIFY_SUCCESS)
        words[count++] = "SUCCESS";
    if (notify & BK_SMTP_NOTIFY_FAILURE)
        words[count++] = "FAILURE";
    if (notify & BK_SMTP_NOTIFY_DELAY)
        words[count++] = "DELAY";
    bk_smtp_client_say(c, " NOTIFY=%s", count > 0 ? words[0] : "NEVER");
    for (int i = 1; i < count; i++)
        bk_smtp_client_say(c, ",%s", words[i]);
}

#define TYPE_CHARACTERS "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-"

/* ORCPT=type;xtext. A type that is none is not said, nor what else it could bring. */
static void say_original(bk_smtp_client *c, const char *original) {
    const char *text = strchr(original, ';');
    if (text == NULL || text != original + strspn(original, TYPE_CHARACTERS))
        return;
    bk_smtp_client_say(c, " ORCPT=%.*s", (int)(text + 1 - original), original);
    say_xtext(c, text + 1);
}

static void say_rcpt(bk_smtp_client *c, bk_smtp_outgoing *o) {
    const bk_smtp_recipient *r = &o->message->recipients[o->rcpt++];
    if (o->due == BK_SMTP_DUE_DATA) /* all before it were answered */
        o->due = BK_SMTP_DUE_RCPT;
    bk_smtp_client_say(c, "RCPT TO:<%s>", r->address);
    if (r->notify != 0 && offers(c, "DSN"))
        say_notify(c, r->notify);
    if (r->original != NULL && offers(c, "DSN"))
        say_original(c, r->original);
    bk_smtp_client_say(c, "\r\n");
    expect(c, o, 1);
}

/* ---- What is to be sent next ---- */

/* Nothing more of it is: the next one's turn. A transaction that the server still has open and that
   comes to nothing is cleared away before the next. */
static void leave(bk_smtp_client *c, bk_smtp_outgoing *o) {
    o->stage = BK_SMTP_SENT;
    c->current = o->next;
}

static void give_up(bk_smtp_client *c, bk_smtp_outgoing *o) {
    c->dirty = c->dirty || o->sender_taken;
    leave(c, o);
}

/* It comes to nothing. One that is open stays until its owner has said so, too; for one that he
   gave up, nothing is left to the server that it might wait for. Whether something was done. */
static bool abandon(bk_smtp_client *c, bk_smtp_outgoing *o) {
    if (is_open(c, o) || (o->dropped && o->pending > 0))
        return false;
    if (o->dropped && o->sender_taken) {
        bk_smtp_client_say(c, "RSET\r\n");
        o->due = BK_SMTP_DUE_RSET;
        expect(c, o, 1);
        leave(c, o);
    } else {
        give_up(c, o);
    }
    return true;
}

/* Whoever is told may do anything to what is open. */
static void answer(bk_smtp_client *c, bk_smtp_outgoing *o, const char *reply) {
    if (o->answered != NULL && !o->dropped)
        o->answered(o->arg, c, reply);
}

static void begin_mail(bk_smtp_client *c, bk_smtp_outgoing *o) {
    const char *refusal = mail_refusal(c, o);
    if (refusal != NULL) {
        o->stage = BK_SMTP_SEND_RCPT;
        o->refused = true;
        bk_smtp_outgoing_reply_all(o, refusal);
        answer(c, o, refusal);
        return;
    }
    o->due = BK_SMTP_DUE_MAIL;
    if (c->dirty) {
        c->dirty = false;
        o->due = BK_SMTP_DUE_RSET;
        bk_smtp_client_say(c, "RSET\r\n");
        expect(c, o, 1);
    }
    o->stage = BK_SMTP_SEND_RCPT;
    say_mail(c, o);
}

/* With BDAT the data follows at once, so the recipients must be known. */
static bool begin_data(bk_smtp_client *c, bk_smtp_outgoing *o) {
    bool binary = o->message->body == BK_SMTP_BINARYMIME;
    if (binary && o->pending > 0)
        return false;
    if (o->pending == 0 && o->accepted == 0) {
        give_up(c, o);
        return true;
    }
    if (binary) {
        bk_smtp_client_say(c, "BDAT %zu LAST\r\n", o->message->size);
        o->stage = BK_SMTP_SEND_BODY;
        return true;
    }
    bk_smtp_client_say(c, "DATA\r\n");
    expect(c, o, 1);
    o->stage = BK_SMTP_AWAIT_DATA;
    return true;
}

static bool send_body(bk_smtp_client *c, bk_smtp_outgoing *o) {
    bk_smtp_client_flush(c);
    if (c->full || c->over)
        return false;
    int r = bk_smtp_outgoing_send(o, &c->machine);
    if (r < 0) {
        bk_smtp_client_end(c, r, NULL);
    } else if (r > 0) {
        o->due = BK_SMTP_DUE_END;
        o->due_rcpt = 0;
        expect(c, o, is_lmtp(c) ? o->accepted : 1);
        leave(c, o);
    }
    return true;
}

/* Whether something was done. */
static bool send_next(bk_smtp_client *c, bk_smtp_outgoing *o) {
    if (o == NULL || c->full || c->over)
        return false;
    if (o->stage == BK_SMTP_SEND_BODY)
        return send_body(c, o);
    if (o->stage == BK_SMTP_AWAIT_DATA || (c->pending > 0 && !c->pipelining))
        return false;
    if (o->refused)
        return abandon(c, o);
    if (o->stage == BK_SMTP_SEND_MAIL)
        begin_mail(c, o);
    else if (o->stage == BK_SMTP_SEND_DATA)
        return begin_data(c, o);
    else if (o->rcpt < o->message->recipient_count)
        say_rcpt(c, o);
    else if (is_open(c, o))
        return false;
    else
        o->stage = BK_SMTP_SEND_DATA;
    return true;
}

static void refuse(bk_smtp_outgoing *o, const char *reply) {
    o->refused = o->dropped = true;
    bk_smtp_outgoing_reply_all(o, reply);
}

void bk_smtp_mail_finish(bk_smtp_client *c) {
    bk_smtp_outgoing *o = c->open;
    c->open = NULL;
    if (o->refused || o->stage == BK_SMTP_SEND_MAIL)
        return;
    const char *refusal = mail_refusal(c, o); /* now that the data is there */
    if (refusal != NULL) {
        o->decided = NULL;
        refuse(o, refusal);
    }
}

void bk_smtp_mail_drop(bk_smtp_client *c) {
    bk_smtp_outgoing *o = c->open;
    c->open = NULL;
    refuse(o, "451 4.3.0 the message was given up");
}

/* Tell of those of which all is known. Whoever is told may do anything. */
static void tell_done(bk_smtp_client *c) {
    for (;;) {
        bk_smtp_outgoing *o = c->first;
        if (o == NULL || o->stage != BK_SMTP_SENT || o->pending > 0)
            return;
        c->first = o->next;
        if (c->first == NULL)
            c->end = &c->first;
        bk_smtp_result result = {.size = sizeof result,
                                 .replies = o->replies,
                                 .reply_count = o->message->recipient_count,
                                 .decided = o->decided};
        for (size_t i = 0; i < result.reply_count; i++)
            result.accepted += o->replies[i][0] == '2';
        if (o->sent != NULL)
            o->sent(o->arg, c, o->message, &result);
        bk_smtp_outgoing_unref(o);
    }
}

void bk_smtp_mail_pump(bk_smtp_client *c) {
    if (c->pumping)
        return;
    c->pumping = true;
    do {
        while (send_next(c, c->current)) {
        }
        bk_smtp_client_flush(c);
        tell_done(c);
    } while (!c->over && !c->full && c->current != NULL && c->current->stage == BK_SMTP_SEND_MAIL &&
             (c->pipelining || c->pending == 0));
    c->pumping = false;
}

/* ---- Replies ---- */

static void rset_reply(bk_smtp_client *c, bk_smtp_outgoing *o, const char *reply) {
    o->due = BK_SMTP_DUE_MAIL;
    if (reply[0] != '2') /* the next message would go to the recipients of the last */
        bk_smtp_client_end(c, -EPROTO, reply);
}

static void mail_reply(bk_smtp_client *c, bk_smtp_outgoing *o, const char *reply) {
    o->due = BK_SMTP_DUE_RCPT;
    o->sender_taken = reply[0] == '2';
    o->refused = o->refused || !o->sender_taken;
    o->decided = "MAIL";
    if (o->refused)
        bk_smtp_outgoing_reply_all(o, reply);
    answer(c, o, reply);
}

static void rcpt_reply(bk_smtp_client *c, bk_smtp_outgoing *o, const char *reply) {
    size_t i = o->due_rcpt++;
    if (o->due_rcpt == o->message->recipient_count)
        o->due = BK_SMTP_DUE_DATA;
    if (o->refused)
        return;
    o->decided = "RCPT";
    if (reply[0] == '2')
        o->accepted++;
    else
        bk_smtp_outgoing_reply(o, i, reply);
    answer(c, o, reply);
}

/* RFC 2920, 3.1: a server that wants data for nobody gets none. */
static void send_nothing(bk_smtp_client *c, bk_smtp_outgoing *o) {
    if (is_lmtp(c)) { /* nobody knows how many replies that would bring */
        bk_smtp_client_end(c, -EPROTO, NULL);
        return;
    }
    bk_smtp_client_say(c, ".\r\n");
    o->due = BK_SMTP_DUE_END;
    expect(c, o, 1);
    leave(c, o);
}

static void data_reply(bk_smtp_client *c, bk_smtp_outgoing *o, const char *reply) {
    if (reply[0] == '3' && o->accepted == 0) {
        send_nothing(c, o);
    } else if (reply[0] == '3') {
        o->stage = BK_SMTP_SEND_BODY;
    } else {
        if (o->accepted > 0)
            o->decided = "DATA";
        bk_smtp_outgoing_reply_all(o, reply);
        give_up(c, o);
    }
}

/* LMTP (RFC 2033, 4.2): one for each recipient that was accepted, in their order. */
static void end_reply(bk_smtp_client *c, bk_smtp_outgoing *o, const char *reply) {
    if (o->accepted == 0)
        return;
    o->decided = "DATA";
    if (!is_lmtp(c)) {
        bk_smtp_outgoing_reply_all(o, reply);
        return;
    }
    while (o->replies[o->due_rcpt] != NULL)
        o->due_rcpt++;
    bk_smtp_outgoing_reply(o, o->due_rcpt++, reply);
}

/* Nothing was asked. A refusal while data is being sent is of that message; whatever it is, the
   connection is out of step. */
static void stray_reply(bk_smtp_client *c, bk_smtp_outgoing *o, const char *reply) {
    if (o != NULL && o->stage == BK_SMTP_SEND_BODY && reply[0] >= '4') {
        o->decided = "DATA";
        bk_smtp_outgoing_reply_all(o, reply);
    }
    bk_smtp_client_end(c, -EPROTO, reply);
}

void bk_smtp_mail_reply(bk_smtp_client *c, const char *reply) {
    static void (*const replies[])(bk_smtp_client *c, bk_smtp_outgoing *o, const char *reply) = {
        [BK_SMTP_DUE_RSET] = rset_reply, [BK_SMTP_DUE_MAIL] = mail_reply,
        [BK_SMTP_DUE_RCPT] = rcpt_reply, [BK_SMTP_DUE_DATA] = data_reply,
        [BK_SMTP_DUE_END] = end_reply,
    };
    bk_smtp_outgoing *o = c->first;
    if (o == NULL || o->pending == 0) {
        stray_reply(c, o, reply);
        return;
    }
    bool wrong = reply[0] == (o->due == BK_SMTP_DUE_DATA ? '2' : '3');
    if (wrong) {
        bk_smtp_client_end(c, -EPROTO, reply);
        return;
    }
    o->pending--;
    c->pending--;
    replies[o->due](c, o, reply);
}

/* RFC 5321, 4.5.3.2. */
unsigned bk_smtp_mail_timeout(const bk_smtp_client *c) {
    const bk_smtp_outgoing *o = c->first;
    if (o == NULL || (o->pending == 0 && is_open(c, o) && o->stage != BK_SMTP_SEND_MAIL))
        return 0;
    if (o->pending == 0)
        return o->stage == BK_SMTP_SEND_BODY ? 180 : 300;
    return o->due == BK_SMTP_DUE_END ? 600 : o->due == BK_SMTP_DUE_DATA ? 120 : 300;
}

void bk_smtp_mail_lost(bk_smtp_client *c) {
    char text[BK_SMTP_REPLY_MAX];
    snprintf(text, sizeof text, "451 4.4.2 %s%.400s",
             c->last != NULL ? "the connection ended: " : "the connection was lost",
             c->last != NULL ? c->last : "");
    for (bk_smtp_outgoing *o = c->first; o != NULL; o = o->next) {
        if (is_open(c, o) || !bk_smtp_outgoing_known(o))
            o->decided = NULL;
        bk_smtp_outgoing_reply_all(o, text);
        o->stage = BK_SMTP_SENT;
        o->pending = 0;
    }
    c->current = c->open = NULL;
    tell_done(c);
}
