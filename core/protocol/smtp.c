/*
 * smtp.c: receiving mail (RFC 5321) as a machine: commands and data in, replies out, each whole
 * message to a hook that may answer later. For bk_smtp_maildir_new() and for programs with a store
 * of their own.
 *
 * Where lines and messages end is decided here once: by CRLF, and by CRLF.CRLF. A CR or LF on its
 * own ends nothing, and gets the command or message that has it refused; nobody behind this server
 * can find a second message in the first ("SMTP smuggling").
 */
#include <becket-protocols.h>

#include "core/protocol/buffer.h"
#include "core/protocol/smtp.h"
#include "core/protocol/smtp_message.h"
#include "core/protocol/smtp_path.h"

#include <stdarg.h>
#include <stdio.h>

/* Where in the data we are. Only a true CRLF leads to DATA_START. */
typedef enum data_state {
    DATA_START, /* of a line */
    DATA_TEXT,
    DATA_CR,     /* after a CR in a line */
    DATA_DOT,    /* after a dot that begins a line */
    DATA_DOT_CR, /* after that and a CR */
} data_state;

struct bk_smtp_session {
    bk_machine machine;
    bk_smtp_config config;    /* checked, with its defaults filled in */
    bk_smtp_message *message; /* from MAIL on */
    unsigned errors, idle;
    unsigned crowded; /* recipients refused because there were too many */

    /* The command that is arriving. */
    bk_buffer line; /* what came of it in earlier pieces */
    size_t length;  /* of its text so far */
    char first[5];  /* the first bytes of that, which tell how long it may be */
    bool cr;        /* the last byte was a CR */
    bool skipping;  /* refused already; the rest does not matter */
    bool followed;  /* more has arrived than the command that is being run */

    bool helo, esmtp; /* greeted; by EHLO */
    bool in_data;
    data_state data;
    bool bare;      /* the data has a CR or LF on its own */
    bool too_big;   /* … is more than max_message */
    bool no_memory; /* … could not be kept */

    bool answer_due; /* the message hook owes one */
    bool gone;       /* … and the connection will not see it */
    char peer[BK_SMTP_PEER_MAX];
    char name[BK_SMTP_DOMAIN_MAX + 1]; /* from HELO or EHLO */
};

/* ---- Replies ---- */

static void smtp_send(bk_smtp_session *s, const char *text, size_t n) {
    int r = bk_machine_send(&s->machine, text, n, BK_COPY, NULL);
    if (r < 0)
        bk_machine_abort(&s->machine, r); /* its replies would no longer fit its commands */
}

static void smtp_hang_up(bk_smtp_session *s, const char *why) {
    char text[BK_SMTP_REPLY_MAX];
    int n = snprintf(text, sizeof text, "421 4.7.0 %.255s %s\r\n", s->config.hostname, why);
    smtp_send(s, text, (size_t)n);
    bk_machine_close(&s->machine);
}

/* One line. Refusals are counted; the last one allowed is told as the end of the connection. */
static void smtp_reply(bk_smtp_session *s, const char *line) {
    char text[BK_SMTP_REPLY_MAX];
    if (line[0] == '5' && ++s->errors >= s->config.max_errors) {
        smtp_hang_up(s, "too many errors");
        return;
    }
    int n = snprintf(text, sizeof text, "%.*s\r\n", (int)sizeof text - 3, line);
    smtp_send(s, text, (size_t)n);
}

/* One to three digits and then `end`; returns what follows, NULL when it is not so. */
static const char *status_part(const char *text, char end) {
    size_t digits = strspn(text, "0123456789");
    return digits >= 1 && digits <= 3 && text[digits] == end ? text + digits + 1 : NULL;
}

/* "250 2.1.0 …": whether there is an enhanced status code (RFC 2034, RFC 3463). */
static bool has_enhanced(const char *line) {
    if (line[4] != line[0] || line[5] != '.')
        return false;
    const char *detail = status_part(line + 6, '.');
    return detail != NULL && status_part(detail, ' ') != NULL;
}

static bool reply_valid(const char *line) {
    return (line[0] == '2' || line[0] == '4' || line[0] == '5') && line[1] >= '0' &&
           line[1] <= '5' && line[2] >= '0' && line[2] <= '9' && line[3] == ' ';
}

/* A reply that a hook made: whatever it is, one proper line goes out. Returns its first digit. */
static char smtp_relay(bk_smtp_session *s, const char *line) {
    char text[BK_SMTP_REPLY_MAX];
    if (!reply_valid(line))
        line = "451 4.3.0 local error";
    if (has_enhanced(line))
        snprintf(text, sizeof text - 2, "%s", line);
    else
        snprintf(text, sizeof text - 2, "%.4s%c.0.0 %s", line, line[0], line + 4);
    for (char *c = text; *c != '\0'; c++)
        if (*c < 32 || *c > 126)
            *c = '?';
    smtp_reply(s, text);
    if (strncmp(line, "421", 3) == 0)
        bk_machine_close(&s->machine);
    return line[0];
}

/* ---- The transaction ---- */

static void smtp_reset(bk_smtp_session *s) {
    bk_smtp_message_free(s->message);
    s->message = NULL;
    s->in_data = s->bare = s->too_big = s->no_memory = false;
}

static void smtp_greeted(bk_smtp_session *s, const char *arg, size_t n, bool esmtp) {
    char text[BK_SMTP_REPLY_MAX];
    if (!bk_smtp_host_valid(arg, n)) {
        smtp_reply(s, "501 5.5.4 a host name or [address] is required");
        return;
    }
    memcpy(s->name, arg, n);
    s->name[n] = '\0';
    s->helo = true;
    s->esmtp = esmtp;
    smtp_reset(s); /* 4.1.4: as RSET */
    const char *format = esmtp ? "250-%s\r\n250-PIPELINING\r\n250-SIZE %zu\r\n250-8BITMIME\r\n%s"
                                 "250 ENHANCEDSTATUSCODES\r\n"
                               : "250 %s\r\n";
    const char *tls = bk_machine_secure(&s->machine) == 0 ? "250-STARTTLS\r\n" : "";
    int size = snprintf(text, sizeof text, format, s->config.hostname, s->config.max_message, tls);
    smtp_send(s, text, (size_t)size);
}

static void smtp_helo(bk_smtp_session *s, const char *arg, size_t n) {
    smtp_greeted(s, arg, n, false);
}

static void smtp_ehlo(bk_smtp_session *s, const char *arg, size_t n) {
    smtp_greeted(s, arg, n, true);
}

/* SIZE=digits (RFC 1870, 4). NULL, or the reply that refuses it. */
static const char *mail_size(bk_smtp_session *s, const bk_smtp_param *p, uint64_t *ret_size) {
    uint64_t size = 0;
    if (p->value == NULL || p->value_size > BK_SMTP_SIZE_DIGITS)
        return "501 5.5.4 SIZE= needs a number";
    for (size_t i = 0; i < p->value_size; i++) {
        if (p->value[i] < '0' || p->value[i] > '9')
            return "501 5.5.4 SIZE= needs a number";
        uint64_t digit = (uint64_t)(p->value[i] - '0');
        size = size > (UINT64_MAX - digit) / 10 ? UINT64_MAX : size * 10 + digit;
    }
    if (size > s->config.max_message)
        return "552 5.3.4 message is too big";
    *ret_size = size;
    return NULL;
}

/* BODY=7BIT or 8BITMIME (RFC 6152, 3). */
static const char *mail_body(const bk_smtp_param *p, int *ret_eight_bit) {
    *ret_eight_bit = p->value != NULL && bk_smtp_is(p->value, p->value_size, "8BITMIME");
    if (*ret_eight_bit || (p->value != NULL && bk_smtp_is(p->value, p->value_size, "7BIT")))
        return NULL;
    return "501 5.5.4 BODY= is 7BIT or 8BITMIME";
}

/* One parameter; `seen` are those that came before it. */
static const char *mail_param(bk_smtp_session *s, const bk_smtp_param *p, unsigned *seen,
                              bk_smtp_message *envelope) {
    enum { SIZE = 1, BODY = 2 };
    unsigned which = bk_smtp_is(p->key, p->key_size, "SIZE")   ? SIZE
                     : bk_smtp_is(p->key, p->key_size, "BODY") ? BODY
                                                               : 0;
    if (which == 0 || !s->esmtp)
        return "555 5.5.4 parameter is not implemented";
    if (*seen & which)
        return "501 5.5.4 parameter is repeated";
    *seen |= which;
    return which == SIZE ? mail_size(s, p, &envelope->declared)
                         : mail_body(p, &envelope->eight_bit);
}

static const char *mail_params(bk_smtp_session *s, const char *text, size_t n,
                               bk_smtp_message *envelope) {
    const char *refusal = NULL;
    unsigned seen = 0;
    while (n > 0 && refusal == NULL) {
        bk_smtp_param p;
        if (text[0] != ' ' || !bk_smtp_param_parse(text + 1, n - 1, &p))
            return "501 5.5.4 parameters cannot be read";
        refusal = mail_param(s, &p, &seen, envelope);
        text += 1 + p.used;
        n -= 1 + p.used;
    }
    return refusal;
}

/* "FROM:<…>" or "TO:<…>"; what follows the path is left to the caller. */
static const char *smtp_path(const char *arg, size_t n, const char *word, bk_smtp_path *ret_path) {
    bool mail = word[0] == 'F';
    size_t size = strlen(word);
    if (n < size || !bk_smtp_is(arg, size, word))
        return mail ? "501 5.5.4 MAIL FROM:<address> is the syntax"
                    : "501 5.5.4 RCPT TO:<address> is the syntax";
    switch (bk_smtp_path_parse(arg + size, n - size, ret_path)) {
    case BK_SMTP_FINE:
        ret_path->used += size;
        return NULL;
    case BK_SMTP_TOO_LONG:
        return mail ? "501 5.1.7 path is too long" : "501 5.1.3 path is too long";
    case BK_SMTP_NOT_ASCII:
        return "553 5.6.7 addresses beyond ASCII are not supported";
    case BK_SMTP_SYNTAX:
        break;
    }
    return mail ? "501 5.1.7 address cannot be read" : "501 5.1.3 address cannot be read";
}

static const char *const no_space = "452 4.3.1 insufficient system storage";

static void smtp_mail(bk_smtp_session *s, const char *arg, size_t n) {
    bk_smtp_path path;
    bk_smtp_message *message;
    const char *refusal = smtp_path(arg, n, "FROM:", &path);
    if (refusal == NULL && path.size > 0 && !path.has_domain)
        refusal = "501 5.1.7 address needs a domain";
    if (!s->helo)
        refusal = "503 5.5.1 HELO or EHLO first";
    else if (s->message != NULL)
        refusal = "503 5.5.1 there is a sender already";
    if (refusal != NULL) {
        smtp_reply(s, refusal);
        return;
    }
    if (bk_smtp_message_new(s->machine.os, path.mailbox, path.size, &message) < 0) {
        smtp_reply(s, no_space);
        return;
    }
    refusal = mail_params(s, arg + path.used, n - path.used, message);
    const char *reply = NULL;
    if (refusal == NULL && s->config.mail != NULL)
        reply = s->config.mail(s->config.context, s, message);
    if (refusal != NULL)
        smtp_reply(s, refusal);
    else if (smtp_relay(s, reply != NULL ? reply : "250 2.1.0 sender ok") == '2')
        s->message = message;
    if (s->message != message)
        bk_smtp_message_free(message);
}

static const char *rcpt_refusal(bk_smtp_session *s, const char *arg, size_t n,
                                bk_smtp_path *ret_path) {
    if (s->message == NULL)
        return "503 5.5.1 MAIL first";
    const char *refusal = smtp_path(arg, n, "TO:", ret_path);
    if (refusal != NULL)
        return refusal;
    /* 4.5.1: postmaster must be accepted without a domain. */
    if (!ret_path->has_domain && !bk_smtp_is(ret_path->mailbox, ret_path->size, "POSTMASTER"))
        return "501 5.1.3 address needs a domain";
    if (ret_path->used < n)
        return arg[ret_path->used] == ' ' ? "555 5.5.4 parameter is not implemented"
                                          : "501 5.1.3 address cannot be read";
    return s->message->recipient_count >= s->config.max_recipients ? "452 4.5.3 too many recipients"
                                                                   : NULL;
}

/* A client with a long list hears this often, and sends the rest anew; but not for ever. */
static bool is_crowded(bk_smtp_session *s) {
    return s->message->recipient_count >= s->config.max_recipients &&
           ++s->crowded / BK_SMTP_CROWD_FACTOR > s->config.max_recipients;
}

static void smtp_rcpt(bk_smtp_session *s, const char *arg, size_t n) {
    bk_smtp_path path;
    const char *reply = rcpt_refusal(s, arg, n, &path);
    if (s->message != NULL && is_crowded(s)) {
        smtp_hang_up(s, "too many recipients");
        return;
    }
    if (reply != NULL) {
        smtp_reply(s, reply);
        return;
    }
    bk_smtp_message *message = s->message;
    char *recipient = bk_smtp_text_new(s->machine.os, path.mailbox, path.size);
    if (recipient == NULL || bk_smtp_message_reserve(message) < 0) {
        bk_dealloc(s->machine.os, recipient);
        smtp_reply(s, no_space);
        return;
    }
    if (s->config.rcpt != NULL)
        reply = s->config.rcpt(s->config.context, s, message, recipient);
    if (smtp_relay(s, reply != NULL ? reply : "250 2.1.5 recipient ok") == '2')
        message->recipients[message->recipient_count++] = recipient;
    else
        bk_dealloc(s->machine.os, recipient);
}

/* RFC 3848 has a word for ESMTP over TLS, and none for what begins with HELO. */
static const char *trace_protocol(bk_smtp_session *s) {
    if (!s->esmtp)
        return "SMTP";
    return bk_machine_secure(&s->machine) > 0 ? "ESMTPS" : "ESMTP";
}

static void smtp_data(bk_smtp_session *s, const char *arg, size_t n) {
    (void)arg;
    if (n > 0) {
        smtp_reply(s, "501 5.5.4 DATA takes no argument");
    } else if (s->message == NULL) {
        smtp_reply(s, "503 5.5.1 MAIL first");
    } else if (s->message->recipient_count == 0) {
        smtp_reply(s, "554 5.5.1 no valid recipients"); /* RFC 2920, 3.1 */
    } else if (!(s->config.flags & BK_SMTP_NO_TRACE) &&
               bk_smtp_message_trace(s->message, s->name, s->peer, s->config.hostname,
                                     trace_protocol(s)) < 0) {
        bk_smtp_message_drop_data(s->message);
        smtp_reply(s, no_space);
    } else {
        smtp_reply(s, "354 end data with <CR><LF>.<CR><LF>");
        s->in_data = true;
        s->data = DATA_START;
    }
}

static void smtp_rset(bk_smtp_session *s, const char *arg, size_t n) {
    (void)arg;
    if (n > 0) {
        smtp_reply(s, "501 5.5.4 RSET takes no argument");
        return;
    }
    smtp_reset(s);
    smtp_reply(s, "250 2.0.0 ok");
}

static void smtp_noop(bk_smtp_session *s, const char *arg, size_t n) {
    (void)arg, (void)n; /* 4.1.1.9: what is given is ignored */
    smtp_reply(s, "250 2.0.0 ok");
}

static void smtp_quit(bk_smtp_session *s, const char *arg, size_t n) {
    (void)arg;
    if (n > 0) {
        smtp_reply(s, "501 5.5.4 QUIT takes no argument");
        return;
    }
    smtp_reply(s, "221 2.0.0 bye");
    bk_machine_close(&s->machine);
}

static void smtp_vrfy(bk_smtp_session *s, const char *arg, size_t n) {
    (void)arg;
    if (n == 0)
        smtp_reply(s, "501 5.5.4 VRFY needs an address");
    else
        smtp_reply(s, "252 2.5.0 cannot verify, send mail and see"); /* 7.3: it would tell spies */
}

static void smtp_help(bk_smtp_session *s, const char *arg, size_t n) {
    (void)arg;
    if (n > 0)
        smtp_reply(s, "504 5.5.4 no help on that");
    else
        smtp_reply(s, "214 2.0.0 HELO EHLO MAIL RCPT DATA RSET NOOP QUIT VRFY HELP: RFC 5321");
}

static void smtp_lacks(bk_smtp_session *s, const char *arg, size_t n) {
    (void)arg, (void)n;
    smtp_reply(s, "502 5.5.1 command is not implemented");
}

/* ---- STARTTLS (RFC 3207) ---- */

/* 4.2: what was learnt in plain may be anybody's. The counters are about the connection, and stay:
   nobody gets new tries by it. */
static void smtp_forget(bk_smtp_session *s) {
    smtp_reset(s);
    s->helo = s->esmtp = false;
    s->name[0] = '\0';
}

/* 220 cannot be taken back: whoever hears it says nothing more in plain, and listens to nothing. So
   when TLS cannot be started after it, that is the end, and not a reply (454) out of step. */
static void starttls_begin(bk_smtp_session *s) {
    smtp_reply(s, "220 2.0.0 Ready to start TLS");
    int r = bk_machine_start_tls(&s->machine);
    if (r == 0)
        smtp_forget(s);
    else
        bk_machine_abort(&s->machine, r);
}

/*
 * 4: it is the last command of a group. What follows it in plain may have been slipped in by
 * somebody between us and the client (6), to be taken for what the client says under TLS: so the
 * connection is refused. What has not arrived yet, or not that far, TLS finds to be no handshake.
 */
static void smtp_starttls(bk_smtp_session *s, const char *arg, size_t n) {
    int secure = bk_machine_secure(&s->machine);
    if (secure < 0) {
        smtp_lacks(s, arg, n);
    } else if (secure > 0) {
        smtp_reply(s, "503 5.5.1 TLS is there already");
    } else if (n > 0) {
        smtp_reply(s, "501 5.5.4 STARTTLS takes no argument");
    } else if (s->followed) {
        smtp_reply(s, "554 5.5.0 Nothing may follow STARTTLS");
        bk_machine_close(&s->machine);
    } else {
        starttls_begin(s);
    }
}

/* ---- Commands ---- */

typedef struct smtp_command {
    const char *name;
    void (*run)(bk_smtp_session *s, const char *arg, size_t n);
    bool idle; /* brings no mail nearer */
} smtp_command;

static const smtp_command commands[] = {
    {"HELO", smtp_helo, true},         {"EHLO", smtp_ehlo, true},  {"MAIL", smtp_mail, false},
    {"RCPT", smtp_rcpt, false},        {"DATA", smtp_data, false}, {"RSET", smtp_rset, true},
    {"NOOP", smtp_noop, true},         {"QUIT", smtp_quit, false}, {"VRFY", smtp_vrfy, true},
    {"HELP", smtp_help, true},         {"EXPN", smtp_lacks, true}, {"AUTH", smtp_lacks, true},
    {"STARTTLS", smtp_starttls, true}, {"BDAT", smtp_lacks, true}, {"ETRN", smtp_lacks, true},
    {"TURN", smtp_lacks, true},        {"SEND", smtp_lacks, true}, {"SOML", smtp_lacks, true},
    {"SAML", smtp_lacks, true},
};

/* A whole command, without its CRLF; there is no CR, LF or NUL in it. */
static void smtp_command_run(bk_smtp_session *s, const char *text, size_t n) {
    const char *space = memchr(text, ' ', n);
    size_t size = space != NULL ? (size_t)(space - text) : n;
    const smtp_command *command = NULL;
    for (size_t i = 0; i < sizeof commands / sizeof *commands && command == NULL; i++)
        if (bk_smtp_is(text, size, commands[i].name))
            command = &commands[i];
    if ((command == NULL || command->idle) && ++s->idle > s->config.max_idle) {
        smtp_hang_up(s, "too many commands without mail");
        return;
    }
    if (command == NULL) {
        smtp_reply(s, "500 5.5.2 command is not known");
        return;
    }
    while (n > size && text[n - 1] == ' ') /* 4.1.1: trailing white space is tolerated */
        n--;
    size_t at = n > size ? size + 1 : n;
    command->run(s, text + at, n - at);
}

/* The bytes of text that this command may have: longer with MAIL and RCPT, for their parameters. */
static size_t command_max(const bk_smtp_session *s) {
    bool path = bk_smtp_is(s->first, 5, "MAIL ") || bk_smtp_is(s->first, 5, "RCPT ");
    return (path ? BK_SMTP_PATH_LINE_MAX : BK_SMTP_LINE_MAX) - 2;
}

/* What is wrong with the next byte of a command; NULL: nothing. */
static const char *command_fault(bk_smtp_session *s, char c) {
    if (s->cr || c == '\n')
        return "500 5.5.2 lines end in CRLF, no CR or LF may stand alone";
    if (c == '\r')
        return NULL;
    if (c == '\0')
        return "500 5.5.2 NUL is not allowed";
    if (s->length < sizeof s->first)
        s->first[s->length] = c;
    s->length++;
    if (s->length >= BK_SMTP_LINE_MAX - 1 && s->length > command_max(s))
        return "500 5.5.2 line is too long";
    return NULL;
}

/* A fault is told once and at once, so that whoever sends no CRLF at all hears why. */
static void command_refuse(bk_smtp_session *s, const char *reply) {
    s->skipping = true;
    bk_buffer_clear(s->machine.os, &s->line);
    smtp_reply(s, reply);
}

static void command_keep(bk_smtp_session *s, const char *data, size_t n) {
    if (!s->skipping && bk_buffer_add(s->machine.os, &s->line, data, n) < 0)
        command_refuse(s, "451 4.3.0 out of memory");
}

/* The CRLF of a command is there; data ends with it, and earlier pieces are in s->line. */
static void command_end(bk_smtp_session *s, const char *data, size_t n) {
    if (s->line.used > 0)
        command_keep(s, data, n);
    bool refused = s->skipping;
    bk_buffer line = s->line;
    s->line = (bk_buffer){0};
    s->length = 0;
    s->cr = s->skipping = false;
    if (!refused && line.used > 0)
        smtp_command_run(s, line.data, line.used - 2);
    else if (!refused)
        smtp_command_run(s, data, n - 2);
    bk_buffer_clear(s->machine.os, &line);
}

/* Take up to the end of a command, or all there is. Each byte is looked at once. */
static size_t command_receive(bk_smtp_session *s, const char *data, size_t n) {
    for (size_t i = 0; i < n; i++) {
        char c = data[i];
        if (c == '\n' && s->cr) {
            s->followed = i + 1 < n;
            command_end(s, data, i + 1);
            return i + 1;
        }
        const char *fault = s->skipping ? NULL : command_fault(s, c);
        s->cr = c == '\r';
        if (fault != NULL) {
            command_refuse(s, fault);
            return i + 1;
        }
    }
    command_keep(s, data, n);
    return n;
}

/* ---- Data ---- */

static void data_keep(bk_smtp_session *s, const char *data, size_t n) {
    bk_smtp_message *m = s->message;
    if (s->bare || s->too_big || s->no_memory)
        return;
    if (n > s->config.max_message - (m->size - m->trace_size))
        s->too_big = true;
    else if (bk_smtp_message_add(m, data, n) < 0)
        s->no_memory = true;
    if (s->too_big || s->no_memory)
        bk_smtp_message_drop_data(m);
}

static void data_bare(bk_smtp_session *s) {
    s->bare = true;
    bk_smtp_message_drop_data(s->message);
}

/* CRLF.CRLF has come: hand the message over, or tell why not. */
static void data_end(bk_smtp_session *s) {
    const char *refusal = s->bare        ? "554 5.6.0 message has a CR or LF that stands alone"
                          : s->too_big   ? "552 5.3.4 message is too big"
                          : s->no_memory ? no_space
                                         : NULL;
    bk_smtp_message *message = s->message;
    s->message = NULL;
    smtp_reset(s);
    if (refusal != NULL) {
        bk_smtp_message_free(message);
        smtp_reply(s, refusal);
        return;
    }
    s->answer_due = true;
    /* While we owe the answer, silence is not the client's: a message that is stored must not be
       sent again because nobody could say so. */
    bk_machine_timeout(&s->machine, 0);
    bk_machine_wait(&s->machine);
    s->config.message(s->config.context, s, message);
}

/* The state that follows c; DATA_START from DATA_DOT_CR is the end of the message. */
static data_state data_next(bk_smtp_session *s, char c) {
    bool after_cr = s->data == DATA_CR || s->data == DATA_DOT_CR;
    if (after_cr && c == '\n')
        return DATA_START;
    if (after_cr || c == '\n')
        data_bare(s);
    if (c == '\r')
        return s->data == DATA_DOT ? DATA_DOT_CR : DATA_CR;
    return s->data == DATA_START && c == '.' ? DATA_DOT : DATA_TEXT;
}

/* Where the next CR or LF is. `from` never goes back, so what each search found is good until it
   has been passed: no byte is searched twice for the same. */
typedef struct data_ends {
    const char *cr, *lf;
} data_ends;

static const char *data_find(data_ends *ends, const char *from, const char *end) {
    if (ends->lf == NULL || ends->lf < from) {
        ends->lf = memchr(from, '\n', (size_t)(end - from));
        ends->lf = ends->lf != NULL ? ends->lf : end;
    }
    if (ends->cr == NULL || ends->cr < from) {
        ends->cr = memchr(from, '\r', (size_t)(end - from));
        ends->cr = ends->cr != NULL ? ends->cr : end;
    }
    return ends->cr < ends->lf ? ends->cr : ends->lf;
}

/* Take up to the end of the message, or all there is. What is between `from` and `at` is to be kept
   and has not been yet: all but the first dot of a line (4.5.2) is. */
static size_t data_receive(bk_smtp_session *s, const char *data, size_t n) {
    const char *from = data, *at = data, *end = data + n;
    data_ends ends = {NULL, NULL};
    while (at < end) {
        data_state was = s->data;
        if (was == DATA_TEXT && (at = data_find(&ends, at, end)) == end)
            break;
        s->data = data_next(s, *at++);
        if (s->data == DATA_DOT) {
            data_keep(s, from, (size_t)(at - from) - 1);
            from = at;
        } else if (s->data == DATA_START && was == DATA_DOT_CR) {
            data_end(s);
            return (size_t)(at - data);
        }
    }
    /* The CR after a dot is the end's, or else the message is refused: never kept. */
    data_keep(s, from, (size_t)(end - from) - (s->data == DATA_DOT_CR));
    return n;
}

/* ---- The machine ---- */

static int smtp_start(bk_machine *m) {
    bk_smtp_session *s = (bk_smtp_session *)m;
    char text[BK_SMTP_REPLY_MAX];
    bk_machine_timeout(m, s->config.timeout);
    bk_machine_peer(m, s->peer, sizeof s->peer);
    int n = snprintf(text, sizeof text, "220 %.255s ESMTP %.100s\r\n", s->config.hostname,
                     s->config.software);
    return bk_machine_send(m, text, (size_t)n, BK_COPY, NULL);
}

/* RFC 5321, 3.8: 421 in place of the greeting. */
static void smtp_refuse(bk_machine *m, int why) {
    const bk_smtp_session *s = (bk_smtp_session *)m;
    char text[BK_SMTP_REPLY_MAX];
    int n =
        snprintf(text, sizeof text, "421 4.3.2 %.255s %s\r\n", s->config.hostname,
                 why == -ESHUTDOWN ? "is shutting down" : "has too many connections, try later");
    (void)bk_machine_send(m, text, (size_t)n, BK_COPY, NULL);
}

static size_t smtp_receive(bk_machine *m, const char *data, size_t n) {
    bk_smtp_session *s = (bk_smtp_session *)m;
    size_t used = 0;
    while (used < n && bk_machine_ready(m))
        used += (s->in_data ? data_receive : command_receive)(s, data + used, n - used);
    return used;
}

static void smtp_free(bk_machine *m) {
    bk_smtp_session *s = (bk_smtp_session *)m;
    smtp_reset(s);
    bk_buffer_clear(m->os, &s->line);
    s->gone = true;
    if (!s->answer_due)
        bk_dealloc(m->os, s);
}

void bk_smtp_answer(bk_smtp_session *s, const char *reply) {
    if (s == NULL || !s->answer_due)
        return;
    s->answer_due = false;
    if (s->gone) {
        bk_dealloc(s->machine.os, s);
        return;
    }
    if (smtp_relay(s, reply != NULL ? reply : "250 2.0.0 message accepted") == '2')
        s->errors = s->idle = s->crowded = 0;
    bk_machine_timeout(&s->machine, s->config.timeout);
    bk_machine_go(&s->machine);
}

static const bk_machine_ops smtp_ops = {
    .size = sizeof(bk_machine_ops),
    .name = "smtp",
    .start = smtp_start,
    .receive = smtp_receive,
    .free = smtp_free,
    .refuse = smtp_refuse,
};

const char *bk_smtp_peer(const bk_smtp_session *s) {
    return s == NULL ? "" : s->peer;
}

const char *bk_smtp_helo(const bk_smtp_session *s) {
    return s == NULL ? "" : s->name;
}

/* ---- Configuration ---- */

static bool software_valid(const char *text) {
    for (; *text != '\0'; text++)
        if (*text < 32 || *text > 126)
            return false;
    return true;
}

/* Check it, and fill in the defaults. */
static int smtp_config(const bk_smtp_config *config, bk_smtp_config *ret_config) {
    bk_smtp_config c = {0};
    if (config == NULL || config->size < sizeof config->size)
        return -EINVAL;
    memcpy(&c, config, config->size < sizeof c ? config->size : sizeof c);
    c.size = sizeof c;
    c.hostname = c.hostname != NULL ? c.hostname : "localhost";
    c.software = c.software != NULL ? c.software : "becket";
    c.max_message = c.max_message != 0 ? c.max_message : BK_SMTP_MESSAGE_MAX;
    c.max_recipients = c.max_recipients != 0 ? c.max_recipients : BK_SMTP_RECIPIENTS_MAX;
    c.max_errors = c.max_errors != 0 ? c.max_errors : BK_SMTP_ERRORS_MAX;
    c.max_idle = c.max_idle != 0 ? c.max_idle : BK_SMTP_IDLE_MAX;
    c.timeout = c.timeout != 0 ? c.timeout : BK_SMTP_TIMEOUT;
    if (c.message == NULL || c.max_message > SIZE_MAX / 4 || !software_valid(c.software) ||
        !bk_smtp_host_valid(c.hostname, strlen(c.hostname)))
        return -EINVAL;
    *ret_config = c;
    return 0;
}

int bk_smtp_new(const bk_smtp_config *config, bk_os *os, bk_machine **ret_machine) {
    bk_smtp_config checked;
    int r = smtp_config(config, &checked);
    if (r < 0)
        return r;
    if (os == NULL || ret_machine == NULL)
        return -EINVAL;
    bk_smtp_session *s = bk_alloc_zero(os, sizeof *s);
    if (s == NULL)
        return -ENOMEM;
    s->machine.ops = &smtp_ops;
    s->machine.os = os;
    s->config = checked;
    *ret_machine = &s->machine;
    return 0;
}

/* What the protocol keeps: the configuration with texts of its own. */
typedef struct smtp_context {
    bk_os *os;
    bk_smtp_config config;
    char *hostname, *software;
    bk_release release; /* of config.context */
} smtp_context;

static int smtp_make(void *context, bk_os *os, bk_machine **ret_machine) {
    return bk_smtp_new(&((smtp_context *)context)->config, os, ret_machine);
}

static void smtp_release(void *context) {
    smtp_context *c = context;
    if (c->release != NULL)
        c->release(c->config.context);
    bk_dealloc(c->os, c->hostname);
    bk_dealloc(c->os, c->software);
    bk_dealloc(c->os, c);
}

static int smtp_context_new(const bk_smtp_config *config, bk_os *os, smtp_context **ret_context) {
    bk_smtp_config checked;
    int r = smtp_config(config, &checked);
    if (r < 0)
        return r;
    smtp_context *c = bk_alloc_zero(os, sizeof *c);
    if (c == NULL)
        return -ENOMEM;
    c->os = os;
    c->config = checked;
    c->config.hostname = c->hostname =
        bk_smtp_text_new(os, checked.hostname, strlen(checked.hostname));
    c->config.software = c->software =
        bk_smtp_text_new(os, checked.software, strlen(checked.software));
    if (c->hostname == NULL || c->software == NULL) {
        smtp_release(c);
        return -ENOMEM;
    }
    *ret_context = c;
    return 0;
}

int bk_smtp_protocol_over(const bk_smtp_config *config, bk_os *os, bk_release release,
                          bk_protocol **ret_protocol) {
    smtp_context *c = NULL;
    if (os == NULL || ret_protocol == NULL)
        return -EINVAL;
    int r = smtp_context_new(config, os, &c);
    if (r < 0)
        return r;
    r = bk_machine_protocol_new(os, "smtp", smtp_make, c, smtp_release, ret_protocol);
    if (r < 0)
        smtp_release(c);
    else
        c->release = release;
    return r;
}

int bk_smtp_protocol_new(const bk_smtp_config *config, bk_os *os, bk_protocol **ret_protocol) {
    return bk_smtp_protocol_over(config, os, NULL, ret_protocol);
}
