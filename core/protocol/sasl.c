/*
 * sasl.c: SASL mechanisms, as told in sasl.h. Names and passwords are UTF-8 without NUL, and are
 * compared as they came.
 */
#include "core/protocol/sasl.h"

#include "core/os/os.h"
#include "core/protocol/smtp_path.h"

struct bk_sasl_mechanism {
    const char *name;
    bool server_first;
    bk_sasl_result (*take)(bk_sasl *s, const char *message, size_t n);
};

static bk_sasl_result challenge(bk_sasl *s, const char *text, size_t n) {
    s->challenge = text;
    s->challenge_size = n;
    s->step++;
    return BK_SASL_CONTINUE;
}

static bool text_take(const char *text, size_t n, char ret_text[BK_SASL_MESSAGE_MAX]) {
    if (n >= BK_SASL_MESSAGE_MAX || memchr(text, '\0', n) != NULL || !bk_utf8_valid(text, n))
        return false;
    memcpy(ret_text, text, n);
    ret_text[n] = '\0';
    return true;
}

/* ---- PLAIN: authorize NUL user NUL password ---- */

static bk_sasl_result plain_take(bk_sasl *s, const char *message, size_t n) {
    const char *user = memchr(message, '\0', n), *end = message + n;
    const char *password = user != NULL ? memchr(user + 1, '\0', (size_t)(end - user - 1)) : NULL;
    if (password == NULL || password == user + 1 || password + 1 == end ||
        !text_take(message, (size_t)(user - message), s->authorize) ||
        !text_take(user + 1, (size_t)(password - user - 1), s->user) ||
        !text_take(password + 1, (size_t)(end - password - 1), s->password))
        return BK_SASL_BROKEN;
    s->login.password = s->password;
    return BK_SASL_ASK;
}

/* ---- LOGIN: no standard, but what all clients do ---- */

static bk_sasl_result login_take(bk_sasl *s, const char *message, size_t n) {
    if (s->step == 0 && message == NULL)
        return challenge(s, "Username:", 9);
    if (*s->user == '\0') {
        if (n == 0 || !text_take(message, n, s->user))
            return BK_SASL_BROKEN;
        return challenge(s, "Password:", 9);
    }
    if (n == 0 || !text_take(message, n, s->password))
        return BK_SASL_BROKEN;
    s->login.password = s->password;
    return BK_SASL_ASK;
}

/* ---- SCRAM-SHA-256 ---- */

static bk_sasl_result scram_first(bk_sasl *s, const char *message, size_t n) {
    if (bk_scram_begin(&s->scram, message, n, s->user, s->authorize) < 0 ||
        !bk_utf8_valid(s->user, strlen(s->user)) ||
        !bk_utf8_valid(s->authorize, strlen(s->authorize)))
        return BK_SASL_BROKEN;
    s->step = 1;
    return BK_SASL_ASK;
}

static bk_sasl_result scram_final(bk_sasl *s, const char *message, size_t n) {
    int r = bk_scram_finish(&s->scram, message, n, s->last);
    if (r < 0)
        return r == -EACCES ? BK_SASL_DENIED : BK_SASL_BROKEN;
    return challenge(s, s->last, strlen(s->last));
}

/* RFC 4954, 4: a success brings no data, so our last word is a challenge, answered by nothing. */
static bk_sasl_result scram_take(bk_sasl *s, const char *message, size_t n) {
    if (s->step == 0)
        return scram_first(s, message, n);
    if (s->step == 2)
        return scram_final(s, message, n);
    return n == 0 ? BK_SASL_DONE : BK_SASL_BROKEN;
}

bk_sasl_result bk_sasl_secret(bk_sasl *s, const bk_secret *secret,
                              const unsigned char decoy[BK_SHA256_SIZE]) {
    if (s->login.password != NULL || s->step != 1)
        return BK_SASL_FAILED;
    if (bk_scram_challenge(&s->scram, s->os, secret, s->user, decoy) < 0)
        return BK_SASL_FAILED;
    return challenge(s, s->scram.challenge, s->scram.challenge_size);
}

/* ---- All of them ---- */

static const struct bk_sasl_mechanism mechanisms[] = {
    {"SCRAM-SHA-256", false, scram_take},
    {"PLAIN", false, plain_take},
    {"LOGIN", true, login_take},
};

bool bk_sasl_begin(bk_sasl *s, bk_os *os, const char *mechanism, size_t n) {
    memset(s, 0, sizeof *s);
    s->os = os;
    for (size_t i = 0; i < sizeof mechanisms / sizeof *mechanisms; i++)
        if (bk_smtp_is(mechanism, n, mechanisms[i].name))
            s->mechanism = &mechanisms[i];
    if (s->mechanism == NULL)
        return false;
    s->login = (bk_smtp_login){
        .mechanism = s->mechanism->name, .user = s->user, .authorize = s->authorize};
    return true;
}

bk_sasl_result bk_sasl_take(bk_sasl *s, const char *message, size_t n) {
    if (message == NULL && !s->mechanism->server_first) {
        s->challenge_size = 0;
        s->challenge = "";
        return BK_SASL_CONTINUE;
    }
    if (n >= BK_SASL_MESSAGE_MAX)
        return BK_SASL_BROKEN;
    return s->mechanism->take(s, message, n);
}

void bk_sasl_clear(bk_sasl *s) {
    bk_wipe(s, sizeof *s);
}
