/*
 * smtp_client.c: sending mail (RFC 5321) as a machine: the greeting, EHLO, TLS, and the end; and
 * what programs call. Logging in is smtp_login.c's, the messages are smtp_mail.c's.
 *
 * The server may be hostile. Each reply must be one, and one that was asked for: else the
 * connection ends, for what is said next could be taken for the answer to something else. What was
 * learnt before TLS is forgotten.
 */
#include "core/protocol/smtp_client.h"

#include "core/protocol/run.h"

#include <stdarg.h>
#include <stdio.h>

/* ---- The end ---- */

void bk_smtp_client_end(bk_smtp_client *c, int why, const char *reply) {
    if (c->over)
        return;
    c->over = true;
    c->why = c->phase == BK_SMTP_QUIT ? 0 : why;
    if (reply != NULL)
        c->last = bk_smtp_text_new(c->machine.os, reply, strlen(reply));
    if (why == 0)
        bk_machine_close(&c->machine);
    else
        bk_machine_abort(&c->machine, why);
}

/* ---- Saying something ---- */

void bk_smtp_client_flush(bk_smtp_client *c) {
    if (c->out.used == 0 || c->over)
        return;
    int r = bk_machine_send(&c->machine, c->out.data, c->out.used, BK_COPY, NULL);
    c->out.used = 0;
    if (r < 0)
        bk_smtp_client_end(c, r, NULL);
}

/* A line; longer ones than anything fits into do not occur: what is in it has been checked. */
void bk_smtp_client_say(bk_smtp_client *c, const char *format, ...) {
    va_list args;
    bk_os *os = c->machine.os;
    va_start(args, format);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    int r = n < 0 ? -EINVAL : bk_buffer_reserve(os, &c->out, (size_t)n + 1);
    if (r < 0) {
        bk_smtp_client_end(c, r, NULL);
        return;
    }
    va_start(args, format);
    vsnprintf(c->out.data + c->out.used, (size_t)n + 1, format, args);
    va_end(args);
    c->out.used += (size_t)n;
    if (c->out.used >= BK_SMTP_GROUP)
        bk_smtp_client_flush(c);
}

/* ---- What the server offers ---- */

static bool keyword_char(char c, size_t at) {
    return (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z') || (c == '-' && at > 0);
}

/* "KEYWORD value": kept as two texts. What is no keyword is none of ours. */
static int keep_offer(bk_smtp_client *c, const char *line, size_t n) {
    bk_os *os = c->machine.os;
    size_t key = 0;
    while (key < n && keyword_char(line[key], key))
        key++;
    if (key == 0 || (key < n && line[key] != ' '))
        return 0;
    const char *value = line + key;
    size_t left = n - key;
    while (left > 0 && *value == ' ') {
        value++;
        left--;
    }
    int r = bk_buffer_add(os, &c->offers, line, key);
    if (r == 0)
        r = bk_buffer_add(os, &c->offers, "", 1);
    if (r == 0)
        r = bk_buffer_add(os, &c->offers, value, left);
    return r == 0 ? bk_buffer_add(os, &c->offers, "", 1) : r;
}

/* The lines behind the first of the reply to EHLO. */
static int keep_offers(bk_smtp_client *c, const char *reply) {
    int r = 0;
    c->offers.used = 0;
    for (const char *line = strchr(reply, '\n'); line != NULL && r == 0;) {
        const char *next = strchr(++line, '\n');
        r = keep_offer(c, line, next != NULL ? (size_t)(next - line) : strlen(line));
        line = next;
    }
    if (r < 0)
        c->offers.used = 0; /* the last may be half there */
    return r;
}

int bk_smtp_client_offers(const bk_smtp_client *c, const char *keyword, const char **ret_value) {
    if (c == NULL || keyword == NULL || c->offers.used == 0)
        return 0;
    const char *end = c->offers.data + c->offers.used;
    for (const char *at = c->offers.data; at < end;) {
        const char *value = at + strlen(at) + 1;
        size_t i = 0;
        while (at[i] != '\0' && (at[i] & ~32) == (keyword[i] & ~32) &&
               ((at[i] | 32) >= 'a' || at[i] == keyword[i]))
            i++;
        if (at[i] == '\0' && keyword[i] == '\0') {
            if (ret_value != NULL)
                *ret_value = value;
            return 1;
        }
        at = value + strlen(value) + 1;
    }
    return 0;
}

/* ---- Greeting ---- */

static void say_ehlo(bk_smtp_client *c) {
    c->phase = BK_SMTP_EHLO;
    c->offers.used = 0;
    c->pipelining = false;
    bk_smtp_client_say(c, "%s %s\r\n", c->config.flags & BK_SMTP_LMTP ? "LHLO" : "EHLO",
                       c->config.hostname);
}

static void greeting_reply(bk_smtp_client *c, const char *reply) {
    if (reply[0] == '2')
        say_ehlo(c);
    else if (reply[0] == '3')
        bk_smtp_client_end(c, -EPROTO, reply);
    else
        bk_smtp_client_end(c, -ECONNREFUSED, reply);
}

void bk_smtp_client_be_ready(bk_smtp_client *c) {
    c->phase = BK_SMTP_READY;
    if (c->config.ready != NULL)
        c->config.ready(c->config.context, c);
}

/* TLS if it is to be, then AUTH if it is to be, then mail. */
static void greeted(bk_smtp_client *c) {
    unsigned flags = c->config.flags;
    bool secure = bk_machine_secure(&c->machine) > 0;
    bool offered = bk_smtp_client_offers(c, "STARTTLS", NULL) && !c->tls_refused &&
                   bk_machine_secure(&c->machine) == 0;
    if (!secure && offered && !(flags & BK_SMTP_TLS_NEVER)) {
        c->phase = BK_SMTP_STARTTLS;
        bk_smtp_client_say(c, "STARTTLS\r\n");
    } else if (!secure && flags & BK_SMTP_TLS_REQUIRED) {
        bk_smtp_client_end(c, -EPROTONOSUPPORT, NULL);
    } else if (c->config.user != NULL) {
        c->phase = BK_SMTP_LOGIN;
        bk_smtp_login_begin(c);
    } else {
        bk_smtp_client_be_ready(c);
    }
}

/* RFC 5321, 3.2: who does not know EHLO may know HELO. LMTP has no such past. */
static void ehlo_reply(bk_smtp_client *c, const char *reply) {
    if (reply[0] == '2') {
        int r = keep_offers(c, reply);
        c->pipelining = bk_smtp_client_offers(c, "PIPELINING", NULL);
        if (r < 0)
            bk_smtp_client_end(c, r, NULL);
        else
            greeted(c);
    } else if (reply[0] == '5' && !(c->config.flags & BK_SMTP_LMTP)) {
        c->phase = BK_SMTP_HELO;
        bk_smtp_client_say(c, "HELO %s\r\n", c->config.hostname);
    } else {
        bk_smtp_client_end(c, reply[0] == '3' ? -EPROTO : -ECONNREFUSED, reply);
    }
}

static void helo_reply(bk_smtp_client *c, const char *reply) {
    if (reply[0] == '2')
        greeted(c);
    else
        bk_smtp_client_end(c, reply[0] == '3' ? -EPROTO : -ECONNREFUSED, reply);
}

/* After 220 there is no way back into plain (RFC 3207, 4); what the server had said is forgotten.
 */
static void starttls_reply(bk_smtp_client *c, const char *reply) {
    if (reply[0] == '2') {
        int r = bk_machine_start_tls(&c->machine, NULL, 0);
        if (r < 0)
            bk_smtp_client_end(c, r, NULL);
        else
            say_ehlo(c);
    } else if (reply[0] == '3') {
        bk_smtp_client_end(c, -EPROTO, reply);
    } else if (c->config.flags & BK_SMTP_TLS_REQUIRED) {
        bk_smtp_client_end(c, -EPROTONOSUPPORT, reply);
    } else {
        c->tls_refused = true;
        greeted(c);
    }
}

/* ---- Replies ---- */

static void quit_reply(bk_smtp_client *c) {
    bk_smtp_client_end(c, 0, NULL);
}

/* 421 may be the reply to anything, and to nothing: the server goes (RFC 5321, 3.8). */
static void client_reply(bk_smtp_client *c, const char *reply) {
    if (c->phase == BK_SMTP_QUIT)
        quit_reply(c);
    else if (strncmp(reply, "421", 3) == 0)
        bk_smtp_client_end(c, c->phase < BK_SMTP_READY ? -ECONNREFUSED : -ECONNRESET, reply);
    else if (c->phase == BK_SMTP_GREETING)
        greeting_reply(c, reply);
    else if (c->phase == BK_SMTP_EHLO)
        ehlo_reply(c, reply);
    else if (c->phase == BK_SMTP_HELO)
        helo_reply(c, reply);
    else if (c->phase == BK_SMTP_STARTTLS)
        starttls_reply(c, reply);
    else if (c->phase == BK_SMTP_LOGIN)
        bk_smtp_login_reply(c, reply);
    else
        bk_smtp_mail_reply(c, reply);
}

/* What comes next has this long (RFC 5321, 4.5.3.2). */
static void wait_for_next(bk_smtp_client *c) {
    unsigned seconds = c->phase == BK_SMTP_READY ? bk_smtp_mail_timeout(c) : BK_SMTP_TIMEOUT;
    if (seconds > 0 && c->config.timeout > 0)
        seconds = c->config.timeout;
    bk_machine_timeout(&c->machine, seconds);
}

/* After anything that may have changed what can be said. */
static void go_on(bk_smtp_client *c) {
    if (c->over || c->machine.runner == NULL)
        return;
    if (c->phase == BK_SMTP_READY)
        bk_smtp_mail_pump(c);
    if (!c->over && c->phase == BK_SMTP_READY && c->quitting && c->first == NULL) {
        c->phase = BK_SMTP_QUIT;
        bk_smtp_client_say(c, "QUIT\r\n");
    }
    bk_smtp_client_flush(c);
    if (!c->over)
        wait_for_next(c);
}

/* ---- The machine ---- */

static int client_start(bk_machine *m) {
    bk_smtp_client *c = (bk_smtp_client *)m;
    if (c->config.flags & BK_SMTP_TLS_REQUIRED && bk_machine_secure(m) < 0) {
        c->over = true;
        return c->why = -EPROTONOSUPPORT;
    }
    wait_for_next(c);
    return 0;
}

static size_t client_receive(bk_machine *m, const char *data, size_t n) {
    bk_smtp_client *c = (bk_smtp_client *)m;
    size_t used = 0;
    while (used < n && bk_machine_ready(m)) {
        size_t taken;
        int r = bk_smtp_response_take(m->os, &c->response, data + used, n - used, &taken);
        if (r < 0) {
            bk_smtp_client_end(c, r, NULL);
            return n;
        }
        used += taken;
        if (r == 1) {
            client_reply(c, c->response.text.data);
            go_on(c);
        }
    }
    return used;
}

static void client_blocked(bk_machine *m, int on) {
    bk_smtp_client *c = (bk_smtp_client *)m;
    c->full = on;
    if (!on)
        go_on(c);
}

/* Passwords went through it. */
static void forget_out(bk_smtp_client *c) {
    if (c->out.data != NULL)
        bk_wipe(c->out.data, c->out.room);
    bk_buffer_clear(c->machine.os, &c->out);
}

static int client_why(const bk_smtp_client *c) {
    if (c->over)
        return c->why;
    if (c->phase == BK_SMTP_QUIT) /* who hangs up in place of 221 has heard it */
        return 0;
    return c->machine.why < 0 ? c->machine.why : BK_ETRUNCATED;
}

static void client_free(bk_machine *m) {
    bk_smtp_client *c = (bk_smtp_client *)m;
    int why = client_why(c);
    c->over = true;
    bk_smtp_mail_lost(c);
    if (c->config.closed != NULL)
        c->config.closed(c->config.context, c, why, c->last);
    bk_scram_client_clear(m->os, &c->scram);
    bk_smtp_response_clear(m->os, &c->response);
    bk_buffer_clear(m->os, &c->offers);
    forget_out(c);
    bk_dealloc(m->os, c->last);
    bk_dealloc(m->os, c);
}

static const bk_machine_ops client_ops = {
    .size = sizeof(bk_machine_ops),
    .name = "smtp client",
    .start = client_start,
    .receive = client_receive,
    .free = client_free,
    .blocked = client_blocked,
};

/* ---- For programs ---- */

static int check(const bk_smtp_client *c, bk_smtp_outgoing *o) {
    return bk_smtp_outgoing_check(o, c->config.flags & BK_SMTP_MAKE_WHOLE);
}

static void queue(bk_smtp_client *c, bk_smtp_outgoing *o, bk_smtp_sent sent, void *arg) {
    o->sent = sent;
    o->arg = arg;
    *c->end = o;
    c->end = &o->next;
    if (c->current == NULL)
        c->current = o;
    go_on(c);
}

int bk_smtp_client_send(bk_smtp_client *c, bk_smtp_message *message, bk_smtp_sent sent, void *arg) {
    bk_smtp_outgoing *o;
    if (c == NULL || message == NULL || message->recipient_count == 0)
        return -EINVAL;
    if (c->over || c->quitting)
        return -EPIPE;
    int r = bk_smtp_outgoing_new(c->machine.os, message, &o);
    if (r < 0)
        return r;
    r = check(c, o);
    if (r < 0)
        bk_smtp_outgoing_drop(o);
    else
        queue(c, o, sent, arg);
    return r;
}

int bk_smtp_client_begin(bk_smtp_client *c, bk_smtp_message *message, bk_smtp_answered answered,
                         bk_smtp_sent sent, void *arg) {
    bk_smtp_outgoing *o;
    if (c == NULL || message == NULL)
        return -EINVAL;
    if (c->over || c->quitting)
        return -EPIPE;
    if (c->open != NULL)
        return -EBUSY;
    int r = bk_smtp_outgoing_new(c->machine.os, message, &o);
    if (r < 0)
        return r;
    o->answered = answered;
    c->open = o;
    queue(c, o, sent, arg);
    return 0;
}

int bk_smtp_client_recipient(bk_smtp_client *c, const bk_smtp_recipient *recipient) {
    if (c == NULL || recipient == NULL)
        return -EINVAL;
    if (c->over || c->open == NULL || c->open->refused)
        return -EPIPE;
    int r = bk_smtp_outgoing_to(c->open, recipient);
    if (r == 0)
        go_on(c);
    return r;
}

int bk_smtp_client_finish(bk_smtp_client *c) {
    if (c == NULL)
        return -EINVAL;
    if (c->over || c->open == NULL)
        return -EPIPE;
    int r = c->open->message->recipient_count > 0 ? check(c, c->open) : -EINVAL;
    if (r < 0)
        return r;
    bk_smtp_mail_finish(c);
    go_on(c);
    return 0;
}

void bk_smtp_client_drop(bk_smtp_client *c) {
    if (c == NULL || c->over || c->open == NULL)
        return;
    bk_smtp_mail_drop(c);
    go_on(c);
}

void bk_smtp_client_quit(bk_smtp_client *c) {
    if (c == NULL || c->quitting)
        return;
    c->quitting = true;
    go_on(c);
}

bk_machine *bk_smtp_client_machine(bk_smtp_client *c) {
    return c != NULL ? &c->machine : NULL;
}

bk_smtp_client *bk_smtp_client_of(bk_machine *machine) {
    return machine != NULL && machine->ops == &client_ops ? (bk_smtp_client *)machine : NULL;
}

/* ---- Making one ---- */

static bool mechanism_valid(const char *mechanism) {
    size_t n = mechanism != NULL ? strlen(mechanism) : 0;
    return n == 0 || bk_smtp_is(mechanism, n, "PLAIN") || bk_smtp_is(mechanism, n, "LOGIN") ||
           bk_smtp_is(mechanism, n, "SCRAM-SHA-256");
}

static int client_config(const bk_smtp_client_config *config, bk_smtp_client_config *ret_config) {
    const unsigned both = BK_SMTP_TLS_REQUIRED | BK_SMTP_TLS_NEVER;
    bk_smtp_client_config c = {0};
    if (config == NULL || config->size < sizeof config->size)
        return -EINVAL;
    memcpy(&c, config, config->size < sizeof c ? config->size : sizeof c);
    c.size = sizeof c;
    if (c.hostname == NULL)
        c.hostname = "localhost";
    if (!bk_smtp_host_valid(c.hostname, strlen(c.hostname)) || (c.flags & both) == both ||
        (c.user == NULL) != (c.password == NULL) || !mechanism_valid(c.mechanism))
        return -EINVAL;
    *ret_config = c;
    return 0;
}

int bk_smtp_client_new(const bk_smtp_client_config *config, bk_os *os, bk_machine **ret_machine) {
    bk_smtp_client_config checked;
    int r = client_config(config, &checked);
    if (r < 0 || os == NULL || ret_machine == NULL)
        return -EINVAL;
    bk_smtp_client *c = bk_alloc_zero(os, sizeof *c);
    if (c == NULL)
        return -ENOMEM;
    c->machine.ops = &client_ops;
    c->machine.os = os;
    c->config = checked;
    c->end = &c->first;
    *ret_machine = &c->machine;
    return 0;
}

/* What the protocol keeps: the configuration with its texts. */
typedef struct client_context {
    bk_os *os;
    bk_smtp_client_config config;
    char texts[];
} client_context;

static int client_make(void *context, bk_os *os, bk_machine **ret_machine) {
    return bk_smtp_client_new(&((client_context *)context)->config, os, ret_machine);
}

static void client_release(void *context) {
    bk_dealloc(((client_context *)context)->os, context);
}

/* As machines have it; but one that never connected has no machine that could tell. */
static void client_closed(bk_stream *s, int why) {
    const bk_machine_factory *f = (const bk_machine_factory *)(const void *)bk_stream_protocol(s);
    const bk_smtp_client_config *config = &((client_context *)f->context)->config;
    if (bk_stream_user(s) == NULL && config->closed != NULL)
        config->closed(config->context, NULL, why, NULL);
    bk_run_closed(s, why);
}

static size_t text_size(const char *text) {
    return text != NULL ? strlen(text) + 1 : 0;
}

static const char *copy_text(char **at, const char *text) {
    char *copy = *at;
    if (text == NULL)
        return NULL;
    memcpy(copy, text, text_size(text));
    *at += text_size(text);
    return copy;
}

int bk_smtp_client_protocol_new(const bk_smtp_client_config *config, bk_os *os,
                                bk_protocol **ret_protocol) {
    bk_smtp_client_config checked;
    int r = client_config(config, &checked);
    if (r < 0 || os == NULL || ret_protocol == NULL)
        return -EINVAL;
    client_context *c =
        bk_alloc(os, sizeof *c + text_size(checked.hostname) + text_size(checked.user) +
                         text_size(checked.password) + text_size(checked.mechanism));
    if (c == NULL)
        return -ENOMEM;
    char *at = c->texts;
    c->os = os;
    c->config = checked;
    c->config.hostname = copy_text(&at, checked.hostname);
    c->config.user = copy_text(&at, checked.user);
    c->config.password = copy_text(&at, checked.password);
    c->config.mechanism = copy_text(&at, checked.mechanism);
    r = bk_machine_protocol_new(os, "smtp client", client_make, c, client_release, ret_protocol);
    if (r < 0)
        client_release(c);
    else
        (*ret_protocol)->closed = client_closed;
    return r;
}
