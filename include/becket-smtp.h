/*
 * becket-smtp.h: mail. Receiving it and sending it (SMTP and LMTP), storing it, and checking
 * passwords.
 *
 * For C programs that receive or send mail. The conventions are those of becket.h. It is meant to
 * be read from the top: replies, messages, the server, logging in, the client, the Maildir store.
 *
 *     bk_smtp_config config = {.size = sizeof config, .hostname = "mx.example.org"};
 *     bk_protocol *smtp;
 *     if (bk_smtp_maildir_new(loop, &config, "Maildir", NULL, NULL, &smtp) == 0)
 *         bk_listen(loop, "tcp://:25", smtp, NULL, NULL);
 *
 * Both sides are machines (becket-protocols.h): they know nothing of what carries them.
 */
#ifndef BECKET_SMTP_H
#define BECKET_SMTP_H

#include <becket-protocols.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Replies ---------------------------------------------------------------------------------
 *
 * A reply is a text without its line ends, "550 5.1.1 no such mailbox": a code (2xx, 4xx or 5xx),
 * an enhanced status code (RFC 2034, RFC 3463; the server adds one where it is missing), a text.
 * One of several lines has the code once, and '\n' between the lines: "250 2.0.0 one\ntwo". What is
 * given to the server and is no such text becomes 451. 421 closes the connection.
 */

/* ---- Messages -------------------------------------------------------------------------------- */

typedef enum bk_smtp_body { BK_SMTP_7BIT, BK_SMTP_8BITMIME, BK_SMTP_BINARYMIME } bk_smtp_body;

enum { /* NOTIFY= (RFC 3461, 4.1) */
       BK_SMTP_NOTIFY_NEVER = 1,
       BK_SMTP_NOTIFY_SUCCESS = 2,
       BK_SMTP_NOTIFY_FAILURE = 4,
       BK_SMTP_NOTIFY_DELAY = 8,
};

typedef enum bk_smtp_return {
    BK_SMTP_RETURN_ANY,
    BK_SMTP_RETURN_FULL,
    BK_SMTP_RETURN_HDRS
} bk_smtp_return;

typedef struct bk_smtp_recipient {
    char *address;   /* without < > */
    unsigned notify; /* BK_SMTP_NOTIFY_…; 0: not said */
    char *original;  /* ORCPT=, decoded: "rfc822;user@example.org"; NULL: not said */
    char *options;   /* all parameters as they were sent, "" when there were none */
} bk_smtp_recipient;

/* A message with its envelope. Received ones are the hook's that they are given to; ones to send
   are made by the functions below, and the client's from bk_smtp_client_send() on. Each text is a
   block of os's memory, which goes with the message. */
typedef struct bk_smtp_message {
    bk_os *os;
    char *sender; /* without < >; empty: a notification, which nobody will answer */
    bk_smtp_recipient *recipients;
    size_t recipient_count;
    uint64_t declared; /* by SIZE=, bytes; 0: it was not */
    bk_smtp_body body;
    int utf8;           /* SMTPUTF8 (RFC 6531) */
    int require_tls;    /* REQUIRETLS (RFC 8689) */
    bk_smtp_return ret; /* RET= (RFC 3461, 4.3) */
    char *envelope_id;  /* ENVID=, decoded; NULL: not said */
    char *submitter;    /* AUTH= (RFC 4954, 5), decoded; NULL: not said */
    char *options;      /* all parameters of MAIL as they were sent */
    char *data;         /* lines end in CRLF (but with BINARYMIME), dots are unstuffed */
    size_t size;        /* of data */
    size_t trace_size;  /* how much of it, at its start, is the Received: header added here, with an
                           empty line behind it where what follows would be more of the header */
    size_t room;
} bk_smtp_message;

/* 0; -EINVAL for an address with CR, LF, NUL, a space outside quotes, < or >, or that is too long
   (RFC 5321, 4.5.3.1); -ENOMEM. Text that is not ASCII makes the message one with SMTPUTF8. */
BK_API int bk_smtp_message_new(bk_os *os, const char *sender, bk_smtp_message **ret_message);
BK_API int bk_smtp_message_to(bk_smtp_message *message, const char *recipient);
/* Appends to data. */
BK_API int bk_smtp_message_add(bk_smtp_message *message, const void *data, size_t n);
BK_API void bk_smtp_message_free(bk_smtp_message *message); /* NULL is not an error */

/* ---- The server ------------------------------------------------------------------------------ */

/*
 * Receiving mail by RFC 5321, with PIPELINING, SIZE, 8BITMIME, ENHANCEDSTATUSCODES, SMTPUTF8,
 * CHUNKING, BINARYMIME, DSN; with STARTTLS (RFC 3207) and REQUIRETLS (RFC 8689) where the runner
 * has TLS, AUTH (RFC 4954) where there is an auth hook; or LMTP (RFC 2033). It is strict where
 * laxness would let two servers disagree on where a message ends: only CRLF ends a command, only
 * CRLF.CRLF a message; a CR or LF on its own gets the command, or the message, refused, in BDAT
 * too unless BODY=BINARYMIME.
 */
typedef struct bk_smtp_session bk_smtp_session;

enum {
    BK_SMTP_NO_TRACE = 1,       /* add no Received: (and Maildir no Return-Path:): data as sent */
    BK_SMTP_LMTP = 2,           /* LMTP: LHLO, and an answer for each recipient */
    BK_SMTP_MAKE_WHOLE = 4,     /* server: a CR or LF that stands alone in data becomes CRLF, and
                                   never ends a message; client: the same to what it is given */
    BK_SMTP_AUTH_IN_CLEAR = 8,  /* passwords without TLS */
    BK_SMTP_AUTH_REQUIRED = 16, /* no mail before AUTH: 530 (RFC 4954, 6) */
    BK_SMTP_TLS_REQUIRED = 32,  /* server: no mail before STARTTLS: 530 (RFC 3207, 4); client:
                                   nothing without it */
    BK_SMTP_TLS_NEVER = 64,     /* client: no STARTTLS, though the server offers it */
    BK_SMTP_NO_UTF8 = 128,      /* server: no SMTPUTF8 */
};

typedef struct bk_smtp_login {
    const char *mechanism; /* "PLAIN", "LOGIN", "SCRAM-SHA-256" */
    const char *user;      /* who logs in; UTF-8, no NUL */
    const char *authorize; /* as whom; "" as himself */
    const char *password;  /* NULL: SCRAM, answered by bk_smtp_answer_secret() */
} bk_smtp_login;

/*
 * Hooks are asked one at a time, and each is answered exactly once by bk_smtp_answer(), from within
 * it or later, whatever became of the connection; until then the client waits. A hook that is NULL
 * accepts. Answers: NULL for what the hook's comment says, else the reply; what hooks are given is
 * good until they have answered.
 */
typedef struct bk_smtp_config {
    size_t size;
    const char *hostname; /* NULL: "localhost" */
    const char *software; /* in the greeting; NULL: "becket" */
    unsigned flags;
    /* Limits; 0: the default. */
    size_t max_message;      /* bytes; 25 MiB */
    unsigned max_recipients; /* of one message; 100 */
    unsigned max_errors;     /* refusals until the connection is closed; 20 */
    unsigned max_idle;       /* commands that bring no mail, until it is closed; 100 */
    unsigned max_messages;   /* of one session; no limit */
    unsigned timeout;        /* seconds; 300 */
    unsigned max_session;    /* seconds that a session may last; no limit */
    void *context;
    /* A client is here, and is not greeted yet. NULL: "220 …"; 421 or 521: it is sent away; 554:
       nothing but QUIT is taken from it (RFC 5321, 3.1). */
    void (*connect)(void *context, bk_smtp_session *s);
    /* HELO, EHLO or LHLO; see bk_smtp_helo(). NULL: the usual reply; 250 with text of one's own
       replaces it, line by line (bk_smtp_keywords() has the usual lines). */
    void (*helo)(void *context, bk_smtp_session *s);
    /* NULL here: AUTH is not offered. NULL: 235. With SCRAM the answer is bk_smtp_answer_secret(),
       or a refusal: nobody knows yet who it is. The login name is `user`; that he may act as
       `authorize` is the hook's to say. */
    void (*auth)(void *context, bk_smtp_session *s, const bk_smtp_login *login);
    /* NULL: 250. The envelope holds what has been accepted up to now, and this sender. */
    void (*mail)(void *context, bk_smtp_session *s, const bk_smtp_message *envelope);
    void (*rcpt)(void *context, bk_smtp_session *s, const bk_smtp_message *envelope,
                 const bk_smtp_recipient *recipient);
    /* DATA, or the first BDAT. NULL: 354, or going on. */
    void (*data)(void *context, bk_smtp_session *s, const bk_smtp_message *envelope);
    /* A piece of data; with this hook the message itself gets none but the trace header. NULL: go
       on; a refusal is told at the end of the message, in place of the message hook. */
    void (*chunk)(void *context, bk_smtp_session *s, const char *data, size_t n);
    /* Required. A message is complete, and the hook's from now on: bk_smtp_message_free(). NULL:
       "250 2.0.0 message accepted". 2xx only when it is safe. LMTP: the answer is for each
       recipient, or bk_smtp_answer_each(). */
    void (*message)(void *context, bk_smtp_session *s, bk_smtp_message *message);
    /* NULL here: 252. */
    void (*vrfy)(void *context, bk_smtp_session *s, const char *address);
    /* Told, not asked. reset: the transaction is over without a message. disconnect: once for each
       connect; an answer that is still owed must be given all the same. */
    void (*reset)(void *context, bk_smtp_session *s);
    void (*disconnect)(void *context, bk_smtp_session *s);
    /* A command that no hook above is for: RSET, NOOP, QUIT, HELP, AUTH when there is no auth hook,
       and all that are not known; verb in capitals. NULL: the usual reply. "334 …" asks the client
       for a line, with which this is called again, verb "". */
    void (*command)(void *context, bk_smtp_session *s, const char *verb, const char *arg);
} bk_smtp_config;

/* In the thread that runs the session. reply is copied. When the connection has gone meanwhile,
   this only frees the session. */
BK_API void bk_smtp_answer(bk_smtp_session *s, const char *reply);
/* message, with LMTP: one reply for each recipient, in order. With SMTP the worst of them is sent;
   4xx is worse than 5xx, as the client then comes again for those who were to be asked later. */
BK_API void bk_smtp_answer_each(bk_smtp_session *s, const char *const *replies);
/* auth, with SCRAM: what is kept of the password; NULL: there is no such user (the exchange goes on
   as if there were one, and fails). */
typedef struct bk_secret bk_secret;
BK_API void bk_smtp_answer_secret(bk_smtp_session *s, const bk_secret *secret);

/* The program's own of each session. */
BK_API void bk_smtp_set_user(bk_smtp_session *s, void *user);
BK_API void *bk_smtp_user(const bk_smtp_session *s);
/* The peer's address ("" when it has none), the name it gave ("" before it did), who logged in
   (NULL before), whether it is under TLS, whether it said EHLO or LHLO, the lines of the reply to
   that. */
BK_API const char *bk_smtp_peer(const bk_smtp_session *s);
BK_API const char *bk_smtp_helo(const bk_smtp_session *s);
BK_API const char *bk_smtp_login_name(const bk_smtp_session *s);
BK_API int bk_smtp_secure(const bk_smtp_session *s);
BK_API int bk_smtp_extended(const bk_smtp_session *s);
BK_API const char *bk_smtp_keywords(const bk_smtp_session *s);
BK_API bk_machine *bk_smtp_machine(bk_smtp_session *s);

/* -EINVAL without a message hook, or with a hostname that is none. The texts in config must outlive
   the machine; the protocol copies them. */
BK_API int bk_smtp_new(const bk_smtp_config *config, bk_os *os, bk_machine **ret_machine);
BK_API int bk_smtp_protocol_new(const bk_smtp_config *config, bk_os *os,
                                bk_protocol **ret_protocol);

/* ---- Passwords ------------------------------------------------------------------------------- */

/*
 * What is kept of a password: RFC 5803's text "SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey",
 * as PostgreSQL and Dovecot write it. Checking a password takes as long as it is meant to (some 100
 * ms): in a worker, never on a loop. Passwords are bytes: those beyond ASCII are not normalised.
 */
struct bk_secret {
    unsigned iterations;
    size_t salt_size;
    unsigned char salt[64], stored_key[32], server_key[32];
};

enum { BK_SECRET_TEXT = 256 }; /* room for it as text */

/* iterations 0: the default. -EINVAL for fewer than 4096 or more than 10 million, and for a
   password that is empty, longer than 1024 bytes, or has a control character in it. Blocks. */
BK_API int bk_secret_make(bk_os *os, const char *password, unsigned iterations,
                          bk_secret *ret_secret);
BK_API int bk_secret_parse(const char *text, bk_secret *ret_secret); /* -EINVAL */
BK_API void bk_secret_format(const bk_secret *secret, char ret_text[BK_SECRET_TEXT]);
/* Blocks. In time that does not depend on what is compared. */
BK_API int bk_secret_verify(const bk_secret *secret, const char *password); /* 1, or 0 */

/*
 * Users and what is kept of their passwords, from a file: a line "name:secret" each, "#" begins a
 * line of comment. Names are UTF-8, without spaces and control characters. A file that is wrong
 * anywhere is refused, and what was read before stays. Thread-safe.
 */
typedef struct bk_users bk_users;
/* -EINVAL: line *ret_line is none; -EEXIST: its name was there before; -EFBIG: more than 16 MiB.
   For other failures *ret_line is 0; it may be NULL. Blocks, as far as reading a file does. */
BK_API int bk_users_open(bk_os *os, const char *path, bk_users **ret_users, unsigned *ret_line);
BK_API int bk_users_reload(bk_users *users, unsigned *ret_line);
/* Checks under way go on. NULL is not an error. */
BK_API void bk_users_close(bk_users *users);
BK_API int bk_users_find(bk_users *users, const char *name, bk_secret *ret_secret); /* -ENOENT */
/* An auth hook's whole answer: SCRAM from the file, other passwords checked in a worker; "454" when
   more log in at once than can be checked. Each may be himself alone. A user who is not there is
   refused after the same time. In the thread of loop, which is the session's. */
BK_API void bk_users_auth(bk_users *users, bk_loop *loop, bk_smtp_session *s,
                          const bk_smtp_login *login);

/* ---- The client ------------------------------------------------------------------------------ */

/*
 * Sending mail: it greets, starts TLS where the server offers it, logs in, and sends the messages
 * it is given one after the other, pipelined where that is allowed, each to all its recipients at
 * once. It uses what the server offers: SIZE, 8BITMIME, SMTPUTF8, CHUNKING for BINARYMIME, DSN,
 * REQUIRETLS; a message that needs what is not offered fails with a 5xx of ours (RFC 6531:
 * 553 5.6.7, RFC 3030: 554 5.6.3, RFC 8689: 550 5.7.30), and others go on.
 */
typedef struct bk_smtp_client bk_smtp_client;

typedef struct bk_smtp_client_config {
    size_t size;
    const char *hostname; /* for EHLO; NULL: "localhost" */
    unsigned flags;       /* BK_SMTP_LMTP, _MAKE_WHOLE, _TLS_REQUIRED, _TLS_NEVER, _AUTH_IN_CLEAR */
    unsigned timeout;     /* seconds; 0: those of RFC 5321, 4.5.3.2, each command its own */
    const char *user,
        *password;         /* NULL: no AUTH. SCRAM-SHA-256, PLAIN or LOGIN, the best offered */
    const char *mechanism; /* NULL: the best that is offered */
    void *context;
    /* Optional. The server is ready for mail: once, after all of greeting, TLS and AUTH. */
    void (*ready)(void *context, bk_smtp_client *client);
    /* Optional. The connection is gone; client is not to be used after it. why: 0 after quit;
       negative: -ECONNREFUSED, or later -ECONNRESET: the server's own words; -EACCES: AUTH was
       refused; -EPROTONOSUPPORT: TLS is required, and not to be had; -ENOTSUP: no AUTH that is
       known is offered; -EPERM: it would have been in clear; -EPROTO: what the server said is no
       SMTP, or was not asked for; or the stream's. reply: the server's refusal that it ended with,
       or NULL. Messages not yet answered have been told before. client NULL: it never connected. */
    void (*closed)(void *context, bk_smtp_client *client, int why, const char *reply);
} bk_smtp_client_config;

/* What became of a message: a reply for each recipient, in order. Of one whose answer never came,
   "451 4.4.2 …" of ours; of all, when MAIL or DATA was refused, that reply. */
typedef struct bk_smtp_result {
    size_t size;
    int accepted; /* how many recipients have a 2xx */
    const char *const *replies;
    size_t reply_count;
    /* The command that decided, of those to which the server replied: "MAIL", "RCPT" or "DATA"
       (BDAT, too), its data included; NULL: it was not the server: the connection was lost, or the
       server does not offer what the message needs. */
    const char *decided;
} bk_smtp_result;
typedef void (*bk_smtp_sent)(void *arg, bk_smtp_client *client, const bk_smtp_message *message,
                             const bk_smtp_result *result);

/* Queue a message; it is the client's, who frees it after sent(). Before ready, too. 0; -EINVAL: no
   recipient, or a CR or LF that stands alone (without BK_SMTP_MAKE_WHOLE and not BINARYMIME);
   -EPIPE: the connection is gone or ending; on failure the message stays the caller's. */
BK_API int bk_smtp_client_send(bk_smtp_client *client, bk_smtp_message *message, bk_smtp_sent sent,
                               void *arg);
/*
 * A message step by step, for who must know the answers before he goes on, as a relay whose own
 * client waits: begin; a recipient, or several; finish, or drop. One at a time; others wait in the
 * queue meanwhile. answered() is told each reply: MAIL's, then one for each recipient, in order;
 * when MAIL is refused, no more. sent() is told once, last, as for every message: with a reply for
 * each recipient after finish; of no interest after drop; and in place of all answers that are
 * still to come when the connection is lost: then nothing decided.
 */
typedef void (*bk_smtp_answered)(void *arg, bk_smtp_client *client, const char *reply);

/* message has its sender, parameters, and `declared` for SIZE=; what it needs and is not offered is
   refused as MAIL's reply. 0; -EBUSY: one is under way; -EINVAL; -EPIPE; -ENOMEM: on failure it
   stays the caller's. Until finish, data may be added to it. */
BK_API int bk_smtp_client_begin(bk_smtp_client *client, bk_smtp_message *message,
                                bk_smtp_answered answered, bk_smtp_sent sent, void *arg);
/* address, notify and original count, and are copied. -EINVAL: it is no address, or one that needs
   SMTPUTF8, which was not begun with; -EPIPE: nothing is under way, or MAIL was refused. */
BK_API int bk_smtp_client_recipient(bk_smtp_client *client, const bk_smtp_recipient *recipient);
/* Send it, to those who were accepted. -EINVAL, as of send; -EPIPE; -ENOMEM: it goes on. */
BK_API int bk_smtp_client_finish(bk_smtp_client *client);
/* Give it up, which the server is told (RSET) when it has answered what it was asked. */
BK_API void bk_smtp_client_drop(bk_smtp_client *client);
/* QUIT when all that is queued has been answered. */
BK_API void bk_smtp_client_quit(bk_smtp_client *client);
/* Whether the server offers it, "SIZE"; its value in ret_value, which may be NULL. */
BK_API int bk_smtp_client_offers(const bk_smtp_client *client, const char *keyword,
                                 const char **ret_value);
BK_API bk_machine *bk_smtp_client_machine(bk_smtp_client *client);

/* The texts in config must outlive the machine; the protocol copies them. The protocol's stream has
   the machine as its user value: bk_connect(loop, endpoint, protocol, NULL, …). */
BK_API int bk_smtp_client_new(const bk_smtp_client_config *config, bk_os *os,
                              bk_machine **ret_machine);
BK_API bk_smtp_client *bk_smtp_client_of(bk_machine *machine);
BK_API int bk_smtp_client_protocol_new(const bk_smtp_client_config *config, bk_os *os,
                                       bk_protocol **ret_protocol);

/* ---- The Maildir store ----------------------------------------------------------------------- */

/*
 * A folder with cur/, new/ and tmp/, each message a file. One is written to tmp/, and moved to new/
 * when it is safely on disk: nothing half-written is ever in new/. Thread-safe.
 */
typedef struct bk_maildir bk_maildir;

enum { BK_MAILDIR_NAME = 256 }; /* room for the name of a file */

/* Makes the folders that are missing, `path` itself too but not what it lies in. hostname becomes
   part of the names of files; NULL: "localhost". */
BK_API int bk_maildir_open(bk_os *os, const char *path, const char *hostname,
                           bk_maildir **ret_maildir);
/* Deliveries under way go on. NULL is not an error. */
BK_API void bk_maildir_close(bk_maildir *maildir);

/* Store the parts, at most BK_IOV_MAX, as one message. Blocks: for threads that may. When it
   returns 0, the message is on disk; on failure nothing is left of it. */
BK_API int bk_maildir_deliver(bk_maildir *maildir, const struct iovec *parts, int count,
                              char ret_name[BK_MAILDIR_NAME]);

/* Remove what a crash, ours or another program's, has left in tmp/ for 36 hours. Blocks. */
BK_API int bk_maildir_clean(bk_maildir *maildir);

typedef void (*bk_maildir_done)(void *arg, int code, const char *name); /* name: NULL on failure */

/* The same in the loop's workers, and then done() on the loop, in whose thread this is called. What
   arrives together is stored together, in groups, so that many messages share what the disk takes
   for one; each fails or not alone. The bytes must stay good, and the loop must live, until then.
   On failure done() is not called. */
BK_API int bk_maildir_deliver_soon(bk_maildir *maildir, bk_loop *loop, const struct iovec *parts,
                                   int count, bk_maildir_done done, void *arg);

/* ---- SMTP into a Maildir --------------------------------------------------------------------- */

/* A message was stored under this name in new/, and will now be acknowledged. */
typedef void (*bk_smtp_stored)(void *arg, const char *name, const bk_smtp_message *message);

/*
 * Receive mail and store it; a message that cannot be stored is refused for now (452 when space has
 * run out, else 451) and the client keeps it. What crashes have left in tmp/ is removed. Unless
 * BK_SMTP_NO_TRACE, a message begins with Return-Path: and Received:. config may be NULL; its
 * message and chunk hooks must be. The others get its context. stored may be NULL. For endpoints of
 * this loop alone, whose workers store. Free it by bk_machine_protocol_free().
 */
BK_API int bk_smtp_maildir_new(bk_loop *loop, const bk_smtp_config *config, const char *path,
                               bk_smtp_stored stored, void *arg, bk_protocol **ret_protocol);

#ifdef __cplusplus
}
#endif
#endif
