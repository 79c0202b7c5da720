/*
 * smtp_client.h: what the parts of the SMTP client share: smtp_client.c greets, starts TLS and
 * answers to programs; smtp_login.c logs in; smtp_mail.c sends messages; smtp_outgoing.c has one of
 * them, and its data.
 */
#ifndef BK_SMTP_CLIENT_H
#define BK_SMTP_CLIENT_H

#include "core/protocol/scram_client.h"
#include "core/protocol/smtp_message.h"
#include "core/protocol/smtp_path.h"
#include "core/protocol/smtp_response.h"

/* What of a message is to be sent next. */
typedef enum bk_smtp_stage {
    BK_SMTP_SEND_MAIL,
    BK_SMTP_SEND_RCPT,
    BK_SMTP_SEND_DATA,
    BK_SMTP_AWAIT_DATA, /* nothing: DATA ends a group (RFC 2920, 3.1) */
    BK_SMTP_SEND_BODY,
    BK_SMTP_SENT,
} bk_smtp_stage;

/* What its next reply is to. */
typedef enum bk_smtp_due {
    BK_SMTP_DUE_RSET,
    BK_SMTP_DUE_MAIL,
    BK_SMTP_DUE_RCPT,
    BK_SMTP_DUE_DATA,
    BK_SMTP_DUE_END
} bk_smtp_due;

/* A message in the queue. What was given to the runner by reference holds it too. */
typedef struct bk_smtp_outgoing {
    struct bk_smtp_outgoing *next;
    bk_smtp_message *message;
    bk_smtp_answered answered; /* step by step: may be NULL */
    bk_smtp_sent sent;
    void *arg;
    unsigned refs;
    bool dots;      /* a line of it begins with one */
    bool eight_bit; /* it has bytes that are not ASCII */

    bk_smtp_stage stage;
    size_t rcpt; /* the next to be sent */
    size_t at;   /* of the data: what has been sent */

    bk_smtp_due due;
    size_t due_rcpt;      /* whose reply is next; with LMTP, of the data's too */
    size_t pending;       /* replies that are yet to come */
    size_t accepted;      /* recipients that the server took */
    bool sender_taken;    /* MAIL was */
    bool refused;         /* MAIL was not, or what it needs is not offered: the rest is pointless */
    bool dropped;         /* … or it was given up: the server is told at once */
    char *final;          /* the reply for all who have none of their own; NULL: not yet, or no
                             memory: then a text of ours that means the same */
    const char *decided;  /* see bk_smtp_result */
    const char **replies; /* one for each recipient; NULL: not yet. Ours, or `final`, or static */
} bk_smtp_outgoing;

int bk_smtp_outgoing_new(bk_os *os, bk_smtp_message *message, bk_smtp_outgoing **ret_outgoing);
/* Data is checked, and made whole if told so. -EINVAL, -ENOMEM. */
int bk_smtp_outgoing_check(bk_smtp_outgoing *o, bool make_whole);
/* One more; -EINVAL, -ENOMEM. */
int bk_smtp_outgoing_to(bk_smtp_outgoing *o, const bk_smtp_recipient *recipient);
void bk_smtp_outgoing_unref(bk_smtp_outgoing *o);
/* The message stays. */
void bk_smtp_outgoing_drop(bk_smtp_outgoing *o);
/* What SIZE= says (RFC 1870, 5). */
size_t bk_smtp_outgoing_size(const bk_smtp_outgoing *o);
/* Give the runner a piece of the data, dots doubled; 1: that was the last, and the end has been
   sent. */
int bk_smtp_outgoing_send(bk_smtp_outgoing *o, bk_machine *m);
/* A reply is one recipient's; or of all who have none. */
void bk_smtp_outgoing_reply(bk_smtp_outgoing *o, size_t recipient, const char *reply);
/* Whether each has one. */
bool bk_smtp_outgoing_known(const bk_smtp_outgoing *o);
void bk_smtp_outgoing_reply_all(bk_smtp_outgoing *o, const char *reply);

typedef enum bk_smtp_phase {
    BK_SMTP_GREETING,
    BK_SMTP_EHLO,
    BK_SMTP_HELO,
    BK_SMTP_STARTTLS,
    BK_SMTP_LOGIN,
    BK_SMTP_READY,
    BK_SMTP_QUIT,
} bk_smtp_phase;

struct bk_smtp_client {
    bk_machine machine;
    bk_smtp_client_config config;
    bk_smtp_phase phase;
    bk_smtp_response response;
    bk_buffer offers; /* "SIZE\0value\0…", of the last EHLO */
    bk_buffer out;    /* commands that go together */
    bool pipelining;
    bool tls_refused; /* STARTTLS was tried */
    bool full;        /* the runner has enough */
    bool pumping;
    bool quitting; /* QUIT when the queue is empty */
    bool over;     /* the end was decided here: why, and for what reply */
    int why;
    char *last;

    bk_smtp_outgoing *first, **end; /* the queue, in the order of the replies */
    bk_smtp_outgoing *current;      /* what is being sent: the first, or the one behind it */
    bk_smtp_outgoing *open;         /* the one that is sent step by step, and not finished */
    size_t pending;                 /* replies that are yet to come, to all of them */
    bool dirty;                     /* the server has a transaction that came to nothing */

    bool cancelled; /* logging in: we gave up, and said so */
    bool verified;  /* … the server has shown that it knows the password */
    unsigned step;
    const char *mechanism;
    bk_scram_client scram;
};

/* ---- smtp_client.c ---- */

/* The end, by our decision. reply may be NULL. */
void bk_smtp_client_end(bk_smtp_client *c, int why, const char *reply);
/* Add to what goes together, and send it. */
void bk_smtp_client_say(bk_smtp_client *c, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
void bk_smtp_client_flush(bk_smtp_client *c);
/* All of it is there: mail may be sent. */
void bk_smtp_client_be_ready(bk_smtp_client *c);

/* ---- smtp_login.c ---- */

void bk_smtp_login_begin(bk_smtp_client *c);
void bk_smtp_login_reply(bk_smtp_client *c, const char *reply);

/* ---- smtp_mail.c ---- */

/* Send what may be sent. */
void bk_smtp_mail_pump(bk_smtp_client *c);
void bk_smtp_mail_reply(bk_smtp_client *c, const char *reply);
/* The one that is open is complete, or given up. */
void bk_smtp_mail_finish(bk_smtp_client *c);
void bk_smtp_mail_drop(bk_smtp_client *c);
/* Seconds to wait for what is expected next; 0: nothing is. */
unsigned bk_smtp_mail_timeout(const bk_smtp_client *c);
/* Nobody will answer: tell those who wait. */
void bk_smtp_mail_lost(bk_smtp_client *c);

#endif
