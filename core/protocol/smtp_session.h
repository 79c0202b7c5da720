/*
 * smtp_session.h: what the parts of the SMTP server share, and who does what: smtp_server.c is
 * the machine, smtp_command.c takes lines and runs commands, smtp_auth.c AUTH, smtp_envelope.c MAIL
 * and RCPT, smtp_data.c messages, smtp_ask.c asks the program's hooks and takes their answers,
 * smtp_reply.c makes replies.
 */
#ifndef BK_SMTP_SESSION_H
#define BK_SMTP_SESSION_H

#include <becket-smtp.h>

#include "core/os/os.h"
#include "core/protocol/buffer.h"
#include "core/protocol/smtp_path.h"

/* What is arriving. */
typedef enum bk_smtp_mode {
    BK_SMTP_COMMANDS,
    BK_SMTP_DATA, /* a message that ends by a dot */
    BK_SMTP_BDAT, /* a chunk that is counted */
    BK_SMTP_AUTH, /* a line of an exchange */
} bk_smtp_mode;

/* The hook that owes an answer. */
typedef enum bk_smtp_question {
    BK_SMTP_ASK_NOTHING,
    BK_SMTP_ASK_CONNECT,
    BK_SMTP_ASK_HELO,
    BK_SMTP_ASK_AUTH,
    BK_SMTP_ASK_MAIL,
    BK_SMTP_ASK_RCPT,
    BK_SMTP_ASK_DATA,
    BK_SMTP_ASK_CHUNK,
    BK_SMTP_ASK_MESSAGE,
    BK_SMTP_ASK_VRFY,
    BK_SMTP_ASK_COMMAND,
} bk_smtp_question;

/* Where in the data we are. Only a true CRLF leads to DATA_START. */
typedef enum bk_smtp_place {
    BK_SMTP_AT_START, /* of a line */
    BK_SMTP_IN_TEXT,
    BK_SMTP_AFTER_CR,     /* in a line */
    BK_SMTP_AFTER_DOT,    /* that begins a line */
    BK_SMTP_AFTER_DOT_CR, /* after that and a CR */
} bk_smtp_place;

/* The command that is arriving. */
typedef struct bk_smtp_line {
    bk_buffer kept; /* what came of it in earlier pieces */
    size_t length;  /* of its text so far */
    char first[5];  /* the first bytes of that, which tell how long it may be */
    bool cr;        /* the last byte was a CR */
    bool skipping;  /* refused already; the rest does not matter */
} bk_smtp_line;

struct bk_smtp_session {
    bk_machine machine;
    bk_smtp_config config; /* checked, with its defaults filled in */
    void *user;
    bk_smtp_message *message; /* from MAIL on */
    bk_smtp_line line;
    bk_smtp_mode mode;
    bool followed; /* more has arrived than the command that is being run */

    bool denied;                    /* the greeting was a refusal: there is nothing but QUIT */
    bool greeted, extended;         /* HELO; or EHLO or LHLO */
    unsigned errors, idle, crowded; /* crowded: recipients refused because there were too many */
    unsigned messages;

    /* The message that is arriving. */
    bk_smtp_place place;
    size_t taken;        /* bytes of it, without the trace header */
    const char *refusal; /* it is not kept any more, and gets this at its end */
    char *refused;       /* … in memory of ours: the words of a hook */
    bool complete;       /* its end has come */
    bool chunked;        /* it comes by BDAT */
    bool chunk_last;
    uint64_t chunk_left;    /* of the chunk */
    size_t recipient_count; /* of the message that was handed over */

    bk_smtp_question asked;
    bool asking;          /* within the hook */
    bool gone;            /* the connection is, and an answer is owed */
    bool visited;         /* the connect hook was asked: the disconnect hook is to be told */
    bool recipient_asked; /* about the place after the last recipient */
    char *verify;         /* what VRFY asks for */
    char *command;        /* what the command hook is asked about: verb, NUL, argument */
    bool prompted;        /* the next line is the answer to a prompt, for that hook */
    struct bk_sasl *sasl; /* an exchange is under way */
    char *login;          /* who has logged in; NULL: nobody */
    int64_t deadline;     /* of the session; 0: none */

    char peer[BK_SMTP_PEER_MAX];
    char name[BK_SMTP_DOMAIN_MAX + 1]; /* from HELO or EHLO */
    char keywords[BK_SMTP_KEYWORDS_MAX];
    unsigned char decoy[32]; /* key for what users who do not exist are told */
};

/* ---- smtp_server.c ---- */

void bk_smtp_session_free(bk_smtp_session *s);

/* ---- smtp_command.c ---- */

/* Take up to the end of a command, or all there is. */
size_t bk_smtp_line_receive(bk_smtp_session *s, const char *data, size_t n);
/* End the transaction; reset() is told. */
void bk_smtp_reset(bk_smtp_session *s);
/* The greeting, and the reply to HELO and the like, when nobody has another. */
void bk_smtp_greet(bk_smtp_session *s);
void bk_smtp_helo_reply(bk_smtp_session *s);
/* What the command hook said. */
void bk_smtp_command_answered(bk_smtp_session *s, const char *reply);
/* "421 …", and the end of the connection. */
void bk_smtp_hang_up(bk_smtp_session *s, const char *why);

/* ---- smtp_envelope.c ---- */

void bk_smtp_mail(bk_smtp_session *s, const char *arg, size_t n);
void bk_smtp_rcpt(bk_smtp_session *s, const char *arg, size_t n);
void bk_smtp_vrfy(bk_smtp_session *s, const char *arg, size_t n);

/* ---- smtp_data.c ---- */

void bk_smtp_data(bk_smtp_session *s, const char *arg, size_t n);
void bk_smtp_bdat(bk_smtp_session *s, const char *arg, size_t n);
/* Take up to the end of the message, or all there is. */
size_t bk_smtp_data_receive(bk_smtp_session *s, const char *data, size_t n);
/* The data hook has accepted, or refused what a chunk begins; what the chunk hook said; what became
   of a message, to which there are as many replies as recipients, or one for all. */
void bk_smtp_data_begin(bk_smtp_session *s);
void bk_smtp_data_refuse(bk_smtp_session *s, const char *reply);
void bk_smtp_data_taken(bk_smtp_session *s, const char *reply);
void bk_smtp_data_answered(bk_smtp_session *s, const char *const *replies, size_t count);

/* ---- smtp_auth.c ---- */

void bk_smtp_auth(bk_smtp_session *s, const char *arg, size_t n);
bool bk_smtp_auth_offered(const bk_smtp_session *s);
/* The next line of an exchange; the end of it, whatever it came to; what the hook said. */
void bk_smtp_auth_line(bk_smtp_session *s, const char *text, size_t n);
void bk_smtp_auth_end(bk_smtp_session *s);
void bk_smtp_auth_answered(bk_smtp_session *s, const char *reply);
void bk_smtp_auth_secret(bk_smtp_session *s, const bk_secret *secret);

/* ---- smtp_ask.c ---- */

/* Ask a hook, which must be there; it may have been answered when this returns. */
void bk_smtp_ask(bk_smtp_session *s, bk_smtp_question question);

/* ---- smtp_reply.c ---- */

/* Bytes that are a reply, whole lines. */
void bk_smtp_send(bk_smtp_session *s, const char *text, size_t n);

/* A text of our own: one line that is a reply. Refusals are counted; the last one allowed is told
   as the end of the connection. */
void bk_smtp_reply(bk_smtp_session *s, const char *line);
/* One that a hook made: whatever it is, a proper reply goes out. Returns its first digit. plain: it
   gets no enhanced status code. */
char bk_smtp_relay(bk_smtp_session *s, const char *text, bool plain);
/* The first digit of what would go out. */
char bk_smtp_reply_class(const char *text);

#define BK_SMTP_NO_SPACE "452 4.3.1 insufficient system storage"
#define BK_SMTP_LOGGED_IN "235 2.7.0 Authentication succeeded"

#endif
