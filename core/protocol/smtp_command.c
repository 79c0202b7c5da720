/*
 * smtp_command.c: the lines a client sends, and the commands in them (RFC 5321, RFC 2033). For
 * smtp_server.c; those about the envelope, messages and AUTH are in files of their own.
 *
 * Only CRLF ends a command: one with a CR or LF on its own is refused.
 */
#include "core/protocol/sasl.h"
#include "core/protocol/smtp_session.h"

#include <stdio.h>

void bk_smtp_hang_up(bk_smtp_session *s, const char *why) {
    char text[BK_SMTP_REPLY_MAX];
    snprintf(text, sizeof text, "421 4.7.0 %.255s %s", s->config.hostname, why);
    bk_smtp_reply(s, text);
}

void bk_smtp_greet(bk_smtp_session *s) {
    char text[BK_SMTP_REPLY_MAX];
    snprintf(text, sizeof text, "220 %.255s %s %.100s", s->config.hostname,
             s->config.flags & BK_SMTP_LMTP ? "LMTP" : "ESMTP", s->config.software);
    bk_smtp_reply(s, text);
}

/* ---- The transaction ---- */

void bk_smtp_reset(bk_smtp_session *s) {
    bool told = s->message != NULL && s->config.reset != NULL;
    bk_smtp_message_free(s->message);
    s->message = NULL;
    bk_dealloc(s->machine.os, s->refused);
    s->refused = NULL;
    s->refusal = NULL;
    s->complete = s->chunked = false;
    s->taken = 0;
    s->mode = BK_SMTP_COMMANDS;
    if (told)
        s->config.reset(s->config.context, s);
}

/* ---- HELO, EHLO, LHLO ---- */

static void keyword(bk_smtp_session *s, const char *text) {
    size_t used = strlen(s->keywords);
    snprintf(s->keywords + used, sizeof s->keywords - used, "\n%s", text);
}

/* RFC 3207, 4.2: what is offered is not the same under TLS. */
static void list_keywords(bk_smtp_session *s) {
    char size[64];
    snprintf(s->keywords, sizeof s->keywords, "%.255s", s->config.hostname);
    if (!s->extended)
        return;
    snprintf(size, sizeof size, "SIZE %zu", s->config.max_message);
    keyword(s, "PIPELINING");
    keyword(s, size);
    keyword(s, "8BITMIME");
    if (bk_machine_secure(&s->machine) == 0)
        keyword(s, "STARTTLS");
    if (bk_smtp_secure(s))
        keyword(s, "REQUIRETLS");
    if (bk_smtp_auth_offered(s))
        keyword(s, "AUTH " BK_SASL_MECHANISMS);
    if (!(s->config.flags & BK_SMTP_NO_UTF8))
        keyword(s, "SMTPUTF8");
    keyword(s, "CHUNKING");
    keyword(s, "BINARYMIME");
    keyword(s, "DSN");
    keyword(s, "ENHANCEDSTATUSCODES");
}

void bk_smtp_helo_reply(bk_smtp_session *s) {
    char text[sizeof s->keywords + 4] = "250 ";
    memcpy(text + 4, s->keywords, strlen(s->keywords) + 1);
    (void)bk_smtp_relay(s, text, true);
}

static void smtp_greeted(bk_smtp_session *s, const char *arg, size_t n, bool extended) {
    if (!bk_smtp_host_valid(arg, n)) {
        bk_smtp_reply(s, "501 5.5.4 a host name or [address] is required");
        return;
    }
    bk_smtp_reset(s); /* 4.1.4: as RSET */
    memcpy(s->name, arg, n);
    s->name[n] = '\0';
    s->greeted = true;
    s->extended = extended;
    list_keywords(s);
    if (s->config.helo != NULL)
        bk_smtp_ask(s, BK_SMTP_ASK_HELO);
    else
        bk_smtp_helo_reply(s);
}

static void smtp_unknown(bk_smtp_session *s, const char *arg, size_t n) {
    (void)arg, (void)n;
    bk_smtp_reply(s, "500 5.5.2 command is not known");
}

static void smtp_helo(bk_smtp_session *s, const char *arg, size_t n) {
    if (s->config.flags & BK_SMTP_LMTP) /* RFC 2033, 4.1 */
        smtp_unknown(s, arg, n);
    else
        smtp_greeted(s, arg, n, false);
}

static void smtp_ehlo(bk_smtp_session *s, const char *arg, size_t n) {
    if (s->config.flags & BK_SMTP_LMTP)
        smtp_unknown(s, arg, n);
    else
        smtp_greeted(s, arg, n, true);
}

static void smtp_lhlo(bk_smtp_session *s, const char *arg, size_t n) {
    if (s->config.flags & BK_SMTP_LMTP)
        smtp_greeted(s, arg, n, true);
    else
        smtp_unknown(s, arg, n);
}

/* ---- Commands of few words ---- */

static void smtp_rset(bk_smtp_session *s, const char *arg, size_t n) {
    (void)arg;
    if (n > 0) {
        bk_smtp_reply(s, "501 5.5.4 RSET takes no argument");
        return;
    }
    bk_smtp_reset(s);
    bk_smtp_reply(s, "250 2.0.0 ok");
}

static void smtp_noop(bk_smtp_session *s, const char *arg, size_t n) {
    (void)arg, (void)n; /* 4.1.1.9: what is given is ignored */
    bk_smtp_reply(s, "250 2.0.0 ok");
}

static void smtp_quit(bk_smtp_session *s, const char *arg, size_t n) {
    (void)arg;
    if (n > 0) {
        bk_smtp_reply(s, "501 5.5.4 QUIT takes no argument");
        return;
    }
    bk_smtp_reply(s, "221 2.0.0 bye");
    bk_machine_close(&s->machine);
}

static void smtp_help(bk_smtp_session *s, const char *arg, size_t n) {
    (void)arg;
    if (n > 0)
        bk_smtp_reply(s, "504 5.5.4 no help on that");
    else
        bk_smtp_reply(s, "214 2.0.0 HELO EHLO MAIL RCPT DATA BDAT RSET NOOP QUIT VRFY HELP: "
                         "RFC 5321");
}

static void smtp_lacks(bk_smtp_session *s, const char *arg, size_t n) {
    (void)arg, (void)n;
    bk_smtp_reply(s, "502 5.5.1 command is not implemented");
}

/* ---- STARTTLS (RFC 3207) ---- */

/* 4.2: what was learnt in plain may be anybody's. The counters are about the connection, and stay:
   nobody gets new tries by it. */
static void smtp_forget(bk_smtp_session *s) {
    bk_smtp_reset(s);
    bk_dealloc(s->machine.os, s->login);
    s->login = NULL;
    s->greeted = s->extended = false;
    s->name[0] = s->keywords[0] = '\0';
}

/* 220 cannot be taken back: it goes out only when TLS can be started. */
static void starttls_begin(bk_smtp_session *s) {
    static const char ready[] = "220 2.0.0 Ready to start TLS\r\n";
    if (bk_machine_start_tls(&s->machine, ready, sizeof ready - 1) == 0)
        smtp_forget(s);
    else
        bk_smtp_reply(s, "454 4.7.0 TLS is not available due to temporary reason");
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
        bk_smtp_reply(s, "503 5.5.1 TLS is there already");
    } else if (n > 0) {
        bk_smtp_reply(s, "501 5.5.4 STARTTLS takes no argument");
    } else if (s->followed) {
        bk_smtp_reply(s, "554 5.5.0 Nothing may follow STARTTLS");
        bk_machine_close(&s->machine);
    } else {
        starttls_begin(s);
    }
}

/* ---- Commands ---- */

enum {
    COMMAND_IDLE = 1,  /* brings no mail nearer */
    COMMAND_PLAIN = 2, /* may come before STARTTLS where that is required */
    COMMAND_ANY = 4,   /* … before AUTH, where that is */
    COMMAND_ASKED = 8, /* the command hook is for it */
};

typedef struct smtp_command {
    const char *name;
    void (*run)(bk_smtp_session *s, const char *arg, size_t n);
    unsigned flags;
} smtp_command;

static const smtp_command commands[] = {
    {"MAIL", bk_smtp_mail, 0},
    {"RCPT", bk_smtp_rcpt, 0},
    {"DATA", bk_smtp_data, 0},
    {"BDAT", bk_smtp_bdat, 0},
    {"QUIT", smtp_quit, COMMAND_PLAIN | COMMAND_ANY | COMMAND_ASKED},
    {"HELO", smtp_helo, COMMAND_IDLE | COMMAND_ANY},
    {"EHLO", smtp_ehlo, COMMAND_IDLE | COMMAND_PLAIN | COMMAND_ANY},
    {"LHLO", smtp_lhlo, COMMAND_IDLE | COMMAND_PLAIN | COMMAND_ANY},
    {"RSET", smtp_rset, COMMAND_IDLE | COMMAND_ANY | COMMAND_ASKED},
    {"NOOP", smtp_noop, COMMAND_IDLE | COMMAND_PLAIN | COMMAND_ANY | COMMAND_ASKED},
    {"STARTTLS", smtp_starttls, COMMAND_IDLE | COMMAND_PLAIN | COMMAND_ANY},
    {"AUTH", bk_smtp_auth, COMMAND_IDLE | COMMAND_ANY | COMMAND_ASKED},
    {"VRFY", bk_smtp_vrfy, COMMAND_IDLE},
    {"HELP", smtp_help, COMMAND_IDLE | COMMAND_ANY | COMMAND_ASKED},
    {"EXPN", smtp_lacks, COMMAND_IDLE},
    {"ETRN", smtp_lacks, COMMAND_IDLE},
    {"TURN", smtp_lacks, COMMAND_IDLE},
    {"SEND", smtp_lacks, COMMAND_IDLE},
    {"SOML", smtp_lacks, COMMAND_IDLE},
    {"SAML", smtp_lacks, COMMAND_IDLE},
};

static const smtp_command *command_find(const char *text, size_t n) {
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (bk_smtp_is(text, n, commands[i].name))
            return &commands[i];
    return NULL;
}

/* What must come before this command. NULL: nothing. */
static const char *command_waits(const bk_smtp_session *s, const smtp_command *command) {
    unsigned flags = s->config.flags;
    if (flags & BK_SMTP_TLS_REQUIRED && !(command->flags & COMMAND_PLAIN) && !bk_smtp_secure(s))
        return "530 5.7.0 Must issue a STARTTLS command first";
    if (flags & BK_SMTP_AUTH_REQUIRED && !(command->flags & COMMAND_ANY) &&
        bk_smtp_login_name(s) == NULL)
        return "530 5.7.0 Authentication required";
    return NULL;
}

/* Ask the command hook about a verb, and an argument that is not ended by NUL. */
static void command_ask(bk_smtp_session *s, const char *verb, size_t size, const char *arg,
                        size_t n) {
    char *text = bk_alloc(s->machine.os, size + n + 2);
    if (text == NULL) {
        bk_smtp_reply(s, "451 4.3.0 out of memory");
        return;
    }
    for (size_t i = 0; i < size; i++)
        text[i] = (char)(verb[i] >= 'a' && verb[i] <= 'z' ? verb[i] - 'a' + 'A' : verb[i]);
    text[size] = '\0';
    memcpy(text + size + 1, arg, n);
    text[size + 1 + n] = '\0';
    s->command = text;
    bk_smtp_ask(s, BK_SMTP_ASK_COMMAND);
}

/* The command is run as if nobody had been asked. After a prompt there is no usual. */
static void command_usual(bk_smtp_session *s, const char *verb) {
    const smtp_command *command = command_find(verb, strlen(verb));
    const char *arg = verb + strlen(verb) + 1;
    if (verb[0] == '\0')
        bk_smtp_reply(s, "501 5.5.2 no line was wanted");
    else
        (command != NULL ? command->run : smtp_unknown)(s, arg, strlen(arg));
}

void bk_smtp_command_answered(bk_smtp_session *s, const char *reply) {
    char *verb = s->command;
    s->command = NULL;
    if (reply == NULL) {
        command_usual(s, verb);
    } else if (strncmp(reply, "334 ", 4) == 0) {
        bk_smtp_reply(s, reply);
        s->prompted = true;
        s->mode = BK_SMTP_AUTH; /* its lines may be as long */
    } else {
        if (bk_smtp_is(verb, strlen(verb), "RSET"))
            bk_smtp_reset(s);
        (void)bk_smtp_relay(s, reply, false);
        if (bk_smtp_is(verb, strlen(verb), "QUIT"))
            bk_machine_close(&s->machine);
    }
    bk_dealloc(s->machine.os, verb);
}

static bool command_asks(const bk_smtp_session *s, const smtp_command *command) {
    if (s->config.command == NULL || (command != NULL && !(command->flags & COMMAND_ASKED)))
        return false;
    return command == NULL || command->run != bk_smtp_auth || s->config.auth == NULL;
}

static void command_call(bk_smtp_session *s, const smtp_command *command, const char *arg,
                         size_t n) {
    const char *refusal = command_waits(s, command);
    while (n > 0 && arg[n - 1] == ' ') /* 4.1.1: trailing white space is tolerated */
        n--;
    if (command->run == bk_smtp_bdat) /* bytes follow it, refused or not */
        bk_smtp_bdat(s, arg, n);
    else if (refusal != NULL)
        bk_smtp_reply(s, refusal);
    else if (command_asks(s, command))
        command_ask(s, command->name, strlen(command->name), arg, n);
    else
        command->run(s, arg, n);
}

/* A whole command, without its CRLF; there is no CR, LF or NUL in it. */
static void command_run(bk_smtp_session *s, const char *text, size_t n) {
    const char *space = memchr(text, ' ', n);
    if (s->prompted) {
        s->prompted = false;
        s->mode = BK_SMTP_COMMANDS;
        command_ask(s, "", 0, text, n);
        return;
    }
    size_t size = space != NULL ? (size_t)(space - text) : n;
    const smtp_command *command = command_find(text, size);
    if (s->denied && (command == NULL || command->run != smtp_quit)) {
        bk_smtp_reply(s, "503 5.5.1 only QUIT is left");
        return;
    }
    if ((command == NULL || command->flags & COMMAND_IDLE) && ++s->idle > s->config.max_idle) {
        bk_smtp_hang_up(s, "too many commands without mail");
        return;
    }
    size_t at = n > size ? size + 1 : n;
    if (command == NULL) {
        if (command_asks(s, NULL))
            command_ask(s, text, size, text + at, n - at);
        else
            smtp_unknown(s, text, n);
        return;
    }
    command_call(s, command, text + at, n - at);
}

/* ---- Lines ---- */

/* The bytes of text that this command may have: longer with MAIL and RCPT, for their parameters,
   and with AUTH. */
static size_t line_max(const bk_smtp_session *s) {
    const char *first = s->line.first;
    if (s->mode == BK_SMTP_AUTH || bk_smtp_is(first, 5, "AUTH "))
        return BK_SMTP_AUTH_LINE_MAX - 2;
    bool path = bk_smtp_is(first, 5, "MAIL ") || bk_smtp_is(first, 5, "RCPT ");
    return (path ? BK_SMTP_PATH_LINE_MAX : BK_SMTP_LINE_MAX) - 2;
}

/* What is wrong with the next byte of a command; NULL: nothing. */
static const char *line_fault(bk_smtp_session *s, char c) {
    bk_smtp_line *line = &s->line;
    if (line->cr || c == '\n')
        return "500 5.5.2 lines end in CRLF, no CR or LF may stand alone";
    if (c == '\r')
        return NULL;
    if (c == '\0')
        return "500 5.5.2 NUL is not allowed";
    if (line->length < sizeof line->first)
        line->first[line->length] = c;
    line->length++;
    if (line->length >= BK_SMTP_LINE_MAX - 1 && line->length > line_max(s))
        return s->mode == BK_SMTP_AUTH ? "500 5.5.6 Authentication exchange line is too long"
                                       : "500 5.5.2 line is too long";
    return NULL;
}

/* A fault is told once and at once, so that whoever sends no CRLF at all hears why. */
static void line_refuse(bk_smtp_session *s, const char *reply) {
    s->line.skipping = true;
    s->prompted = false;
    if (s->mode == BK_SMTP_AUTH)
        bk_smtp_auth_end(s);
    bk_buffer_clear(s->machine.os, &s->line.kept);
    bk_smtp_reply(s, reply);
}

static void line_keep(bk_smtp_session *s, const char *data, size_t n) {
    if (!s->line.skipping && bk_buffer_add(s->machine.os, &s->line.kept, data, n) < 0)
        line_refuse(s, "451 4.3.0 out of memory");
}

/* The CRLF of a command is there; data ends with it, and earlier pieces have been kept. */
static void line_end(bk_smtp_session *s, const char *data, size_t n) {
    if (s->line.kept.used > 0)
        line_keep(s, data, n);
    bk_smtp_line line = s->line;
    s->line = (bk_smtp_line){.length = 0};
    if (line.kept.used > 0) {
        data = line.kept.data;
        n = line.kept.used;
    }
    if (!line.skipping)
        (s->sasl != NULL ? bk_smtp_auth_line : command_run)(s, data, n - 2);
    if (s->config.auth != NULL) /* there may be a password in it */
        bk_wipe(line.kept.data, line.kept.used);
    bk_buffer_clear(s->machine.os, &line.kept);
}

/* Take up to the end of a command, or all there is. Each byte is looked at once. */
size_t bk_smtp_line_receive(bk_smtp_session *s, const char *data, size_t n) {
    bk_smtp_line *line = &s->line;
    for (size_t i = 0; i < n; i++) {
        char c = data[i];
        if (c == '\n' && line->cr) {
            s->followed = i + 1 < n;
            line_end(s, data, i + 1);
            return i + 1;
        }
        const char *fault = line->skipping ? NULL : line_fault(s, c);
        line->cr = c == '\r';
        if (fault != NULL) {
            line_refuse(s, fault);
            return i + 1;
        }
    }
    line_keep(s, data, n);
    return n;
}
