/*
 * smtp_server.c: receiving mail (RFC 5321, RFC 2033) as a machine: bytes in, replies out, each
 * whole message to a hook that may answer later. For bk_smtp_maildir_new() and for programs with a
 * store of their own. What its parts are is told in smtp_session.h.
 */
#include "core/protocol/smtp.h"
#include "core/protocol/smtp_message.h"
#include "core/protocol/smtp_session.h"

#include <stdio.h>

/* ---- The machine ---- */

static int smtp_start(bk_machine *m) {
    bk_smtp_session *s = (bk_smtp_session *)m;
    bk_machine_timeout(m, s->config.timeout);
    bk_machine_peer(m, s->peer, sizeof s->peer);
    s->visited = true;
    if (s->config.max_session > 0)
        s->deadline = m->os->clock(m->os) + s->config.max_session * BK_SECOND;
    if (s->config.connect != NULL)
        bk_smtp_ask(s, BK_SMTP_ASK_CONNECT);
    else
        bk_smtp_greet(s);
    return 0;
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

/* RFC 5321, 3.8: 421 in place of whatever would have been said. */
static void smtp_timed_out(bk_machine *m) {
    const bk_smtp_session *s = (bk_smtp_session *)m;
    char text[BK_SMTP_REPLY_MAX];
    int n = snprintf(text, sizeof text, "421 4.4.2 %.255s timeout, closing the connection\r\n",
                     s->config.hostname);
    (void)bk_machine_send(m, text, (size_t)n, BK_COPY, NULL);
}

static size_t smtp_receive(bk_machine *m, const char *data, size_t n) {
    bk_smtp_session *s = (bk_smtp_session *)m;
    size_t used = 0;
    if (s->deadline != 0 && m->os->clock(m->os) >= s->deadline) {
        bk_smtp_hang_up(s, "the session has lasted too long");
        return n;
    }
    while (used < n && bk_machine_ready(m))
        used += (s->mode == BK_SMTP_DATA || s->mode == BK_SMTP_BDAT
                     ? bk_smtp_data_receive
                     : bk_smtp_line_receive)(s, data + used, n - used);
    return used;
}

/* A hook that has not answered has what it was given until it has. */
static void smtp_free(bk_machine *m) {
    bk_smtp_session *s = (bk_smtp_session *)m;
    bool owed = s->asked != BK_SMTP_ASK_NOTHING;
    s->gone = true;
    if (s->message != NULL && s->asked != BK_SMTP_ASK_MAIL && s->config.reset != NULL)
        s->config.reset(s->config.context, s);
    if (s->visited && s->config.disconnect != NULL)
        s->config.disconnect(s->config.context, s);
    if (!owed)
        bk_smtp_session_free(s);
}

void bk_smtp_session_free(bk_smtp_session *s) {
    bk_os *os = s->machine.os;
    bk_smtp_message *m = s->message;
    if (m != NULL && s->recipient_asked)
        bk_smtp_recipient_clear(os, &m->recipients[m->recipient_count]);
    bk_smtp_message_free(m);
    bk_smtp_auth_end(s);
    bk_buffer_clear(os, &s->line.kept);
    bk_dealloc(os, s->refused);
    bk_dealloc(os, s->verify);
    bk_dealloc(os, s->command);
    bk_dealloc(os, s->login);
    bk_dealloc(os, s);
}

static const bk_machine_ops smtp_ops = {
    .size = sizeof(bk_machine_ops),
    .name = "smtp",
    .start = smtp_start,
    .receive = smtp_receive,
    .free = smtp_free,
    .refuse = smtp_refuse,
    .timed_out = smtp_timed_out,
};

/* ---- What hooks may ask of a session ---- */

void bk_smtp_set_user(bk_smtp_session *s, void *user) {
    if (s != NULL)
        s->user = user;
}

void *bk_smtp_user(const bk_smtp_session *s) {
    return s == NULL ? NULL : s->user;
}

const char *bk_smtp_peer(const bk_smtp_session *s) {
    return s == NULL ? "" : s->peer;
}

const char *bk_smtp_helo(const bk_smtp_session *s) {
    return s == NULL ? "" : s->name;
}

const char *bk_smtp_login_name(const bk_smtp_session *s) {
    return s == NULL ? NULL : s->login;
}

int bk_smtp_secure(const bk_smtp_session *s) {
    return s != NULL && !s->gone && bk_machine_secure((bk_machine *)(uintptr_t)&s->machine) > 0;
}

int bk_smtp_extended(const bk_smtp_session *s) {
    return s != NULL && s->extended;
}

const char *bk_smtp_keywords(const bk_smtp_session *s) {
    return s == NULL ? "" : s->keywords;
}

bk_machine *bk_smtp_machine(bk_smtp_session *s) {
    return s == NULL ? NULL : &s->machine;
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

/* The key of decoys is the same for all sessions, or else they would be found out. */
static int decoy_make(const bk_smtp_config *config, bk_os *os, unsigned char ret_key[32]) {
    memset(ret_key, 0, 32);
    return config->auth != NULL ? os->random(os, ret_key, 32) : 0;
}

static int session_new(const bk_smtp_config *checked, const unsigned char decoy[32], bk_os *os,
                       bk_machine **ret_machine) {
    bk_smtp_session *s = bk_alloc_zero(os, sizeof *s);
    if (s == NULL)
        return -ENOMEM;
    s->machine.ops = &smtp_ops;
    s->machine.os = os;
    s->config = *checked;
    memcpy(s->decoy, decoy, sizeof s->decoy);
    *ret_machine = &s->machine;
    return 0;
}

int bk_smtp_new(const bk_smtp_config *config, bk_os *os, bk_machine **ret_machine) {
    bk_smtp_config checked;
    unsigned char decoy[32];
    int r = smtp_config(config, &checked);
    if (r == 0 && (os == NULL || ret_machine == NULL))
        r = -EINVAL;
    if (r == 0)
        r = decoy_make(&checked, os, decoy);
    return r < 0 ? r : session_new(&checked, decoy, os, ret_machine);
}

/* What the protocol keeps: the configuration with texts of its own. */
typedef struct smtp_context {
    bk_os *os;
    bk_smtp_config config;
    char *hostname, *software;
    unsigned char decoy[32];
    bk_release release; /* of config.context */
} smtp_context;

static int smtp_make(void *context, bk_os *os, bk_machine **ret_machine) {
    const smtp_context *c = context;
    return session_new(&c->config, c->decoy, os, ret_machine);
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
    r = c->hostname == NULL || c->software == NULL ? -ENOMEM : decoy_make(&checked, os, c->decoy);
    if (r < 0) {
        smtp_release(c);
        return r;
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
