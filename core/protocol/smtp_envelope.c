/*
 * smtp_envelope.c: MAIL, RCPT and VRFY: paths and parameters become an envelope, and the hooks are
 * asked about it. Parameters are those of RFC 1870 (SIZE), 6152 and 3030 (BODY), 6531 (SMTPUTF8),
 * 3461 (RET, ENVID, NOTIFY, ORCPT), 4954 (AUTH) and 8689 (REQUIRETLS). For smtp_server.c.
 */
#include "core/protocol/smtp_session.h"

#include "core/protocol/smtp_message.h"

/* What a parameter is about; recipient NULL: it is MAIL's. */
typedef struct envelope_part {
    bk_smtp_session *s;
    bk_smtp_message *message;
    bk_smtp_recipient *recipient;
} envelope_part;

/* Each takes a parameter and returns NULL, or the reply that refuses it. */

/* SIZE=digits (RFC 1870, 4). */
static const char *take_size(envelope_part *e, const bk_smtp_param *p) {
    uint64_t size = 0;
    if (p->value == NULL || p->value_size > BK_SMTP_SIZE_DIGITS)
        return "501 5.5.4 SIZE= needs a number";
    for (size_t i = 0; i < p->value_size; i++) {
        if (p->value[i] < '0' || p->value[i] > '9')
            return "501 5.5.4 SIZE= needs a number";
        uint64_t digit = (uint64_t)(p->value[i] - '0');
        size = size > (UINT64_MAX - digit) / 10 ? UINT64_MAX : size * 10 + digit;
    }
    if (size > e->s->config.max_message)
        return "552 5.3.4 message is too big";
    e->message->declared = size;
    return NULL;
}

static bool value_is(const bk_smtp_param *p, const char *word) {
    return p->value != NULL && bk_smtp_is(p->value, p->value_size, word);
}

static const char *take_body(envelope_part *e, const bk_smtp_param *p) {
    if (value_is(p, "7BIT"))
        e->message->body = BK_SMTP_7BIT;
    else if (value_is(p, "8BITMIME"))
        e->message->body = BK_SMTP_8BITMIME;
    else if (value_is(p, "BINARYMIME"))
        e->message->body = BK_SMTP_BINARYMIME;
    else
        return "501 5.5.4 BODY= is 7BIT, 8BITMIME or BINARYMIME";
    return NULL;
}

static const char *take_utf8(envelope_part *e, const bk_smtp_param *p) {
    if (p->value != NULL)
        return "501 5.5.4 SMTPUTF8 takes no value";
    if (e->s->config.flags & BK_SMTP_NO_UTF8)
        return "555 5.6.7 SMTPUTF8 is not offered";
    e->message->utf8 = 1;
    return NULL;
}

static const char *take_require_tls(envelope_part *e, const bk_smtp_param *p) {
    if (p->value != NULL)
        return "501 5.5.4 REQUIRETLS takes no value";
    e->message->require_tls = 1;
    return NULL;
}

static const char *take_ret(envelope_part *e, const bk_smtp_param *p) {
    if (value_is(p, "FULL"))
        e->message->ret = BK_SMTP_RETURN_FULL;
    else if (value_is(p, "HDRS"))
        e->message->ret = BK_SMTP_RETURN_HDRS;
    else
        return "501 5.5.4 RET= is FULL or HDRS";
    return NULL;
}

static const char *take_xtext(bk_os *os, const bk_smtp_param *p, size_t max, const char *refusal,
                              char **ret_text) {
    if (p->value == NULL || p->value_size > max)
        return refusal;
    char *text = bk_alloc(os, p->value_size + 1);
    if (text == NULL)
        return BK_SMTP_NO_SPACE;
    if (!bk_smtp_xtext_decode(p->value, p->value_size, text)) {
        bk_dealloc(os, text);
        return refusal;
    }
    *ret_text = text;
    return NULL;
}

static const char *take_envid(envelope_part *e, const bk_smtp_param *p) {
    return take_xtext(e->message->os, p, BK_SMTP_ENVID_MAX, "501 5.5.4 ENVID= needs xtext",
                      &e->message->envelope_id);
}

/* RFC 4954, 5: of whoever has not logged in nobody's word is taken. */
static const char *take_auth(envelope_part *e, const bk_smtp_param *p) {
    const char *refusal =
        take_xtext(e->message->os, p, BK_SMTP_XTEXT_MAX,
                   "501 5.5.4 AUTH= needs a mailbox as xtext, or <>", &e->message->submitter);
    if (refusal == NULL && bk_smtp_login_name(e->s) == NULL) {
        bk_dealloc(e->message->os, e->message->submitter);
        e->message->submitter = bk_smtp_text_new(e->message->os, "<>", 2);
        refusal = e->message->submitter == NULL ? BK_SMTP_NO_SPACE : NULL;
    }
    return refusal;
}

/* NEVER, or a list of the others (RFC 3461, 4.1). */
static const char *take_notify(envelope_part *e, const bk_smtp_param *p) {
    static const char *const words[] = {"NEVER", "SUCCESS", "FAILURE", "DELAY"};
    unsigned notify = 0;
    for (size_t at = 0; p->value != NULL && at <= p->value_size;) {
        const char *word = p->value + at, *comma = memchr(word, ',', p->value_size - at);
        size_t n = comma != NULL ? (size_t)(comma - word) : p->value_size - at, i = 0;
        while (i < 4 && !bk_smtp_is(word, n, words[i]))
            i++;
        notify |= 1U << i; /* 16: a word that is none of them */
        at += n + 1;
    }
    if (notify == 0 || notify > 15 || (notify & BK_SMTP_NOTIFY_NEVER && notify != 1))
        return "501 5.5.4 NOTIFY= is NEVER, or some of SUCCESS,FAILURE,DELAY";
    e->recipient->notify = notify;
    return NULL;
}

/* addr-type ";" xtext (RFC 3461, 4.2). */
static const char *take_orcpt(envelope_part *e, const bk_smtp_param *p) {
    static const char *const refusal = "501 5.5.4 ORCPT= needs a type, a semicolon and xtext";
    const char *semicolon = p->value != NULL ? memchr(p->value, ';', p->value_size) : NULL;
    if (semicolon == NULL || semicolon == p->value ||
        memchr(p->value, '+', (size_t)(semicolon - p->value)) ||
        semicolon + 1 == p->value + p->value_size)
        return refusal;
    return take_xtext(e->message->os, p, BK_SMTP_XTEXT_MAX, refusal, &e->recipient->original);
}

static bool has_auth(const bk_smtp_session *s) {
    return s->config.auth != NULL;
}

static bool has_tls(const bk_smtp_session *s) {
    return bk_smtp_secure(s);
}

typedef struct param_kind {
    const char *key;
    const char *(*take)(envelope_part *e, const bk_smtp_param *p);
    bool of_recipient;
    bool (*offered)(const bk_smtp_session *s); /* NULL: always */
} param_kind;

static const param_kind kinds[] = {
    {"SIZE", take_size, false, NULL},
    {"BODY", take_body, false, NULL},
    {"SMTPUTF8", take_utf8, false, NULL},
    {"RET", take_ret, false, NULL},
    {"ENVID", take_envid, false, NULL},
    {"AUTH", take_auth, false, has_auth},
    {"NOTIFY", take_notify, true, NULL},
    {"ORCPT", take_orcpt, true, NULL},
    {"REQUIRETLS", take_require_tls, false, has_tls},
};

enum { KINDS = sizeof kinds / sizeof *kinds };

/* One parameter; `seen` are those that came before it. */
static const char *take_param(envelope_part *e, const bk_smtp_param *p, unsigned *seen) {
    size_t i = 0;
    while (i < KINDS && !(kinds[i].of_recipient == (e->recipient != NULL) &&
                          bk_smtp_is(p->key, p->key_size, kinds[i].key)))
        i++;
    if (i == KINDS || !e->s->extended || (kinds[i].offered != NULL && !kinds[i].offered(e->s)))
        return "555 5.5.4 parameter is not implemented";
    if (*seen & 1U << i)
        return "501 5.5.4 parameter is repeated";
    *seen |= 1U << i;
    return kinds[i].take(e, p);
}

/* Parameters, each with a space before it. What is beyond ASCII needs SMTPUTF8, which may come
   behind it. */
static const char *take_params(envelope_part *e, const char *text, size_t n, bool utf8) {
    const char *refusal = NULL;
    unsigned seen = 0;
    bool strange = false;
    while (n > 0 && refusal == NULL) {
        bk_smtp_param p;
        if (text[0] != ' ' || !bk_smtp_param_parse(text + 1, n - 1, &p))
            return "501 5.5.4 parameters cannot be read";
        refusal = take_param(e, &p, &seen);
        strange |= p.utf8;
        text += 1 + p.used;
        n -= 1 + p.used;
    }
    if (refusal != NULL || e->message->utf8)
        return refusal;
    if (utf8)
        return "553 5.6.7 an address beyond ASCII needs SMTPUTF8";
    return strange ? "501 5.5.4 parameters cannot be read" : NULL;
}

/* "FROM:<…>" or "TO:<…>"; what follows the path is left to the caller. */
static const char *take_path(const char *arg, size_t n, const char *word, bk_smtp_path *ret_path) {
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
    case BK_SMTP_SYNTAX:
        break;
    }
    return mail ? "501 5.1.7 address cannot be read" : "501 5.1.3 address cannot be read";
}

/* ---- MAIL ---- */

static const char *mail_refusal(bk_smtp_session *s, const char *arg, size_t n,
                                bk_smtp_path *ret_path) {
    if (!s->greeted)
        return "503 5.5.1 HELO or EHLO first";
    if (s->message != NULL)
        return "503 5.5.1 there is a sender already";
    const char *refusal = take_path(arg, n, "FROM:", ret_path);
    if (refusal == NULL && ret_path->size > 0 && !ret_path->has_domain)
        refusal = "501 5.1.7 address needs a domain";
    return refusal;
}

static const char *mail_make(bk_smtp_session *s, const char *arg, size_t n,
                             const bk_smtp_path *path, bk_smtp_message **ret_message) {
    bk_os *os = s->machine.os;
    bk_smtp_message *m;
    if (bk_smtp_message_from(os, path->mailbox, path->size, &m) < 0)
        return BK_SMTP_NO_SPACE;
    envelope_part part = {s, m, NULL};
    const char *refusal = take_params(&part, arg + path->used, n - path->used, path->utf8);
    if (refusal == NULL && path->used < n) {
        bk_dealloc(os, m->options);
        m->options = bk_smtp_text_new(os, arg + path->used + 1, n - path->used - 1);
        refusal = m->options == NULL ? BK_SMTP_NO_SPACE : NULL;
    }
    if (refusal != NULL)
        bk_smtp_message_free(m);
    else
        *ret_message = m;
    return refusal;
}

void bk_smtp_mail(bk_smtp_session *s, const char *arg, size_t n) {
    bk_smtp_path path;
    if (s->config.max_messages > 0 && s->messages >= s->config.max_messages) {
        bk_smtp_hang_up(s, "too many messages in one session");
        return;
    }
    const char *refusal = mail_refusal(s, arg, n, &path);
    if (refusal == NULL)
        refusal = mail_make(s, arg, n, &path, &s->message);
    if (refusal != NULL)
        bk_smtp_reply(s, refusal);
    else if (s->config.mail != NULL)
        bk_smtp_ask(s, BK_SMTP_ASK_MAIL);
    else
        bk_smtp_reply(s, "250 2.1.0 sender ok");
}

/* ---- RCPT ---- */

static const char *rcpt_refusal(bk_smtp_session *s, const char *arg, size_t n,
                                bk_smtp_path *ret_path) {
    if (s->message == NULL)
        return "503 5.5.1 MAIL first";
    if (s->chunked)
        return "503 5.5.1 the message has begun";
    const char *refusal = take_path(arg, n, "TO:", ret_path);
    if (refusal != NULL)
        return refusal;
    /* 4.5.1: postmaster must be accepted without a domain. */
    if (!ret_path->has_domain && !bk_smtp_is(ret_path->mailbox, ret_path->size, "POSTMASTER"))
        return "501 5.1.3 address needs a domain";
    if (ret_path->used < n && arg[ret_path->used] != ' ')
        return "501 5.1.3 address cannot be read";
    return s->message->recipient_count >= s->config.max_recipients ? "452 4.5.3 too many recipients"
                                                                   : NULL;
}

/* A client with a long list hears this often, and sends the rest anew; but not for ever. */
static bool is_crowded(bk_smtp_session *s) {
    return s->message->recipient_count >= s->config.max_recipients &&
           ++s->crowded / BK_SMTP_CROWD_FACTOR > s->config.max_recipients;
}

static const char *rcpt_make(bk_smtp_session *s, const char *arg, size_t n,
                             const bk_smtp_path *path) {
    bk_smtp_message *m = s->message;
    envelope_part part = {s, m, NULL};
    size_t skip = path->used < n;
    if (bk_smtp_recipient_place(m, path->mailbox, path->size, arg + path->used + skip,
                                n - path->used - skip, &part.recipient) < 0)
        return BK_SMTP_NO_SPACE;
    const char *refusal = take_params(&part, arg + path->used, n - path->used, path->utf8);
    if (refusal != NULL)
        bk_smtp_recipient_clear(m->os, part.recipient);
    return refusal;
}

void bk_smtp_rcpt(bk_smtp_session *s, const char *arg, size_t n) {
    bk_smtp_path path;
    const char *refusal = rcpt_refusal(s, arg, n, &path);
    if (s->message != NULL && is_crowded(s)) {
        bk_smtp_hang_up(s, "too many recipients");
        return;
    }
    if (refusal == NULL)
        refusal = rcpt_make(s, arg, n, &path);
    if (refusal != NULL) {
        bk_smtp_reply(s, refusal);
    } else if (s->config.rcpt != NULL) {
        bk_smtp_ask(s, BK_SMTP_ASK_RCPT);
    } else {
        s->message->recipient_count++;
        bk_smtp_reply(s, "250 2.1.5 recipient ok");
    }
}

/* ---- VRFY ---- */

/* 7.3: by itself it tells spies nothing. */
void bk_smtp_vrfy(bk_smtp_session *s, const char *arg, size_t n) {
    if (n == 0) {
        bk_smtp_reply(s, "501 5.5.4 VRFY needs an address");
    } else if (s->config.vrfy == NULL) {
        bk_smtp_reply(s, "252 2.5.0 cannot verify, send mail and see");
    } else if ((s->verify = bk_smtp_text_new(s->machine.os, arg, n)) == NULL) {
        bk_smtp_reply(s, BK_SMTP_NO_SPACE);
    } else {
        bk_smtp_ask(s, BK_SMTP_ASK_VRFY);
    }
}
