/*
 * test_users.c: what is kept of passwords, the file of users, and logging in by SMTP with it:
 * right, wrong, unknown, more at once than can be checked, and when any call to the system fails.
 */
#include <becket-smtp.h>

#include "core/os/os.h"
#include "core/protocol/base64.h"
#include "core/protocol/limits.h"
#include "core/protocol/scram.h"
#include "core/store/users.h"
#include "tests/c/check.h"
#include "tests/c/faults.h"

#include <unistd.h>

/* RFC 7677, 3: the user's password is "pencil". */
#define EXAMPLE                                                                                    \
    "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY="     \
    ":wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="

static faults world;
static char path[300];

static void setup(void) {
    snprintf(path, sizeof path, "%s/becket-users-XXXXXX",
             getenv("TMPDIR") != NULL ? getenv("TMPDIR") : "/tmp");
    int fd = mkstemp(path);
    CHECK(fd >= 0);
    close(fd);
    faults_open(&world, NULL);
}

static void teardown(void) {
    CHECK_INT(unlink(path), 0);
    CHECK_INT(faults_leaks(&world, NULL), 0);
    faults_close(&world);
}

static void file_of(const char *text, size_t n) {
    FILE *f = fopen(path, "wb");
    CHECK(f != NULL);
    CHECK_INT(fwrite(text, 1, n, f), n);
    fclose(f);
}

/* ---- Secrets ---- */

static void reads_the_example_of_the_rfc(void) {
    static const char exchange[] =
        "n=user,r=rOprNGfwEbeRWgbNEkqO,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
        "s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)"
        "hNlF$k0";
    unsigned char proof[48], key[32], mac[32];
    bk_secret s;
    char text[BK_SECRET_TEXT];
    CHECK_INT(bk_secret_parse(EXAMPLE, &s), 0);
    CHECK_INT(s.iterations, 4096);
    CHECK_INT(s.salt_size, 16);
    bk_secret_format(&s, text);
    CHECK_STR(text, EXAMPLE);
    CHECK_INT(bk_secret_verify(&s, "pencil"), 1);
    CHECK_INT(bk_secret_verify(&s, "pencil "), 0);
    CHECK_INT(bk_secret_verify(&s, "Pencil"), 0);
    CHECK_INT(bk_secret_verify(&s, ""), 0);
    /* The proof in the RFC is the stored key's, the signature the server key's. */
    const char *p = "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
    CHECK_INT(bk_base64_decode(p, strlen(p), proof), 32);
    bk_hmac_sha256(s.stored_key, 32, exchange, sizeof exchange - 1, mac);
    for (int i = 0; i < 32; i++)
        key[i] = proof[i] ^ mac[i];
    bk_sha256_of(key, 32, mac);
    CHECK(memcmp(mac, s.stored_key, 32) == 0);
    const char *v = "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";
    CHECK_INT(bk_base64_decode(v, strlen(v), proof), 32);
    bk_hmac_sha256(s.server_key, 32, exchange, sizeof exchange - 1, mac);
    CHECK(memcmp(mac, proof, 32) == 0);
}

static void makes_secrets(void) {
    bk_os *os = bk_os_default();
    bk_secret a, b, c;
    char text[BK_SECRET_TEXT], long_one[BK_SECRET_PASSWORD_MAX + 2];
    CHECK_INT(bk_secret_make(os, "g\xc3\xa4ste buch", 4096, &a), 0);
    CHECK_INT(bk_secret_make(os, "g\xc3\xa4ste buch", 4096, &b), 0);
    CHECK(memcmp(a.salt, b.salt, a.salt_size) != 0);
    CHECK(memcmp(a.stored_key, b.stored_key, sizeof a.stored_key) != 0);
    CHECK_INT(bk_secret_verify(&a, "g\xc3\xa4ste buch"), 1);
    CHECK_INT(bk_secret_verify(&a, "ga\xcc\x88ste buch"), 0); /* not normalised */
    bk_secret_format(&a, text);
    CHECK_INT(bk_secret_parse(text, &c), 0);
    CHECK(memcmp(&a, &c, sizeof a) == 0);
    CHECK_INT(bk_secret_make(os, "x", 0, &a), 0);
    CHECK_INT(a.iterations, BK_SECRET_ITERATIONS);
    memset(long_one, 'x', sizeof long_one);
    long_one[sizeof long_one - 1] = '\0';
    const char *const bad[] = {"", "a\tb", "a\n", "\x7f", long_one};
    for (int i = 0; i < COUNT(bad); i++)
        CHECK_INT(bk_secret_make(os, bad[i], 4096, &a), -EINVAL);
    CHECK_INT(bk_secret_verify(&a, long_one), 0);
    CHECK_INT(bk_secret_make(os, "x", 4095, &a), -EINVAL);
    CHECK_INT(bk_secret_make(os, "x", 10000001, &a), -EINVAL);
    CHECK_INT(bk_secret_make(NULL, "x", 0, &a), -EINVAL);
    CHECK_INT(bk_secret_make(os, NULL, 0, &a), -EINVAL);
    CHECK_INT(bk_secret_make(os, "x", 0, NULL), -EINVAL);
    CHECK_INT(bk_secret_verify(NULL, "x"), 0);
    CHECK_INT(bk_secret_verify(&a, NULL), 0);
}

#define KEYS                                                                                       \
    "$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
#define SALT "W22ZaJ0SNY7soEsUEjb6gQ=="

static void refuses_what_is_no_secret(void) {
    static const char *const bad[] = {
        "",
        "pencil",
        "SCRAM-SHA-1$4096:" SALT KEYS,
        "SCRAM-SHA-256",
        "SCRAM-SHA-256$",
        "SCRAM-SHA-256$4096",
        "SCRAM-SHA-256$4096:",
        "SCRAM-SHA-256$:" SALT KEYS,
        "SCRAM-SHA-256$04096:" SALT KEYS,
        "SCRAM-SHA-256$+4096:" SALT KEYS,
        "SCRAM-SHA-256$ 4096:" SALT KEYS,
        "SCRAM-SHA-256$4095:" SALT KEYS,
        "SCRAM-SHA-256$10000001:" SALT KEYS,
        "SCRAM-SHA-256$99999999999999999999999:" SALT KEYS,
        "SCRAM-SHA-256$4096:" KEYS,
        "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ=" KEYS,
        "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ" KEYS,
        "SCRAM-SHA-256$4096:W22ZaJ0S NY7soEsUEjb6gQ==" KEYS,
        "SCRAM-SHA-256$4096:" SALT "$" KEYS,
        "SCRAM-SHA-256$4096:" SALT "$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=",
        "SCRAM-SHA-256$4096:" SALT "$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:",
        "SCRAM-SHA-256$4096:" SALT "$WG5d:WG5d",
        EXAMPLE " ",
        EXAMPLE "\r",
        EXAMPLE "\n",
        " " EXAMPLE,
        EXAMPLE ":",
    };
    bk_secret s;
    for (int i = 0; i < COUNT(bad); i++) {
        CHECK_INT(bk_secret_parse(bad[i], &s), -EINVAL);
        if (check_failures != 0)
            printf("# ... %s\n", bad[i]);
    }
    char text[1000] = "SCRAM-SHA-256$4096:";
    memset(text + strlen(text), 'A', 88); /* 66 bytes of salt */
    strcat(text, KEYS);
    CHECK_INT(bk_secret_parse(text, &s), -EINVAL);
    memset(text + 19, 'A', sizeof text - 20);
    CHECK_INT(bk_secret_parse(text, &s), -EINVAL);
    CHECK_INT(bk_secret_parse(NULL, &s), -EINVAL);
    CHECK_INT(bk_secret_parse(EXAMPLE, NULL), -EINVAL);
}

/* ---- The file ---- */

static int open_with(const char *text, size_t n, bk_users **ret_users, unsigned *ret_line) {
    file_of(text, n);
    return bk_users_open(faults_os(&world), path, ret_users, ret_line);
}

static void reads_users(void) {
    static const char text[] = "# who may send\n\nzoe:" EXAMPLE "\n#\nuser:" EXAMPLE
                               "\nj\xc3\xb6rg@example.org:" EXAMPLE; /* without a line end */
    bk_users *u = NULL;
    bk_secret s;
    unsigned line = 7;
    setup();
    CHECK_INT(open_with(text, sizeof text - 1, &u, &line), 0);
    CHECK_INT(line, 0);
    const char *const there[] = {"zoe", "user", "j\xc3\xb6rg@example.org"};
    for (int i = 0; i < COUNT(there); i++) {
        CHECK_INT(bk_users_find(u, there[i], &s), 0);
        CHECK_INT(bk_secret_verify(&s, "pencil"), 1);
    }
    const char *const not_there[] = {"", "us", "users", "User", "#", "# who may send", "zoe:"};
    for (int i = 0; i < COUNT(not_there); i++)
        CHECK_INT(bk_users_find(u, not_there[i], &s), -ENOENT);
    CHECK_INT(bk_users_find(NULL, "zoe", &s), -EINVAL);
    CHECK_INT(bk_users_find(u, NULL, &s), -EINVAL);
    CHECK_INT(bk_users_find(u, "zoe", NULL), -EINVAL);
    bk_users_close(u);
    bk_users_close(NULL);
    CHECK_INT(open_with("", 0, &u, NULL), 0); /* nobody */
    CHECK_INT(bk_users_find(u, "zoe", &s), -ENOENT);
    bk_users_close(u);
    teardown();
}

static void is_wrong_at(const char *text, size_t n, int code, unsigned at) {
    bk_users *u = NULL;
    unsigned line = 0;
    CHECK_INT(open_with(text, n, &u, &line), code);
    CHECK_INT(line, at);
    CHECK(u == NULL);
}

#define WRONG(text, code, line) is_wrong_at(text, sizeof(text) - 1, code, line)

static void says_which_line_is_wrong(void) {
    setup();
    WRONG("user", -EINVAL, 1);
    WRONG("user:", -EINVAL, 1);
    WRONG("user:pencil\n", -EINVAL, 1);
    WRONG(":" EXAMPLE "\n", -EINVAL, 1);
    WRONG("a:" EXAMPLE "\n\n# x\nb c:" EXAMPLE "\n", -EINVAL, 4);
    WRONG("a:" EXAMPLE "\n \n", -EINVAL, 2);
    WRONG("a:" EXAMPLE "\r\n", -EINVAL, 1);
    WRONG(" a:" EXAMPLE "\n", -EINVAL, 1);
    WRONG("a\t:" EXAMPLE "\n", -EINVAL, 1);
    WRONG("a: " EXAMPLE "\n", -EINVAL, 1);
    WRONG("a:" EXAMPLE " # x\n", -EINVAL, 1);
    WRONG("j\xf6rg:" EXAMPLE "\n", -EINVAL, 1);   /* Latin-1 */
    WRONG("j\xc0\xaf:" EXAMPLE "\n", -EINVAL, 1); /* "/", two bytes long */
    WRONG("a\0b:" EXAMPLE "\n", -EINVAL, 1);      /* NUL */
    WRONG("a:" EXAMPLE "\0\n", -EINVAL, 1);       /* … */
    WRONG("a:" EXAMPLE "\n#\0\n", -EINVAL, 2);    /* … */
    WRONG("a:" EXAMPLE "\nb:" EXAMPLE "\na:" EXAMPLE "\n", -EEXIST, 3);
    char name[BK_USERS_NAME_MAX + sizeof EXAMPLE + 10];
    memset(name, 'n', sizeof name);
    strcpy(name + BK_USERS_NAME_MAX, ":" EXAMPLE);
    bk_users *u = NULL;
    CHECK_INT(open_with(name, strlen(name), &u, NULL), 0);
    bk_users_close(u);
    strcpy(name + BK_USERS_NAME_MAX, "n:" EXAMPLE);
    is_wrong_at(name, strlen(name), -EINVAL, 1);
    teardown();
}

static void refuses_what_is_no_file(void) {
    bk_users *u = NULL;
    unsigned line = 7;
    setup();
    bk_os *os = faults_os(&world);
    CHECK_INT(bk_users_open(os, "/no/such/file", &u, &line), -ENOENT);
    CHECK_INT(line, 0);
    CHECK_INT(bk_users_open(os, "/", &u, &line), -EISDIR);
    CHECK_INT(bk_users_open(os, "/dev/zero", &u, &line), -EFBIG);
    CHECK_INT(bk_users_open(os, "", &u, NULL), -EINVAL);
    CHECK_INT(bk_users_open(os, NULL, &u, NULL), -EINVAL);
    CHECK_INT(bk_users_open(NULL, path, &u, NULL), -EINVAL);
    CHECK_INT(bk_users_open(os, path, NULL, NULL), -EINVAL);
    CHECK_INT(bk_users_reload(NULL, NULL), -EINVAL);
    CHECK(u == NULL);
    teardown();
}

static void reads_them_again(void) {
    static const char before[] = "a:" EXAMPLE "\n", after[] = "b:" EXAMPLE "\n";
    bk_users *u = NULL;
    bk_secret s;
    unsigned line = 0;
    setup();
    CHECK_INT(open_with(before, sizeof before - 1, &u, NULL), 0);
    file_of(after, sizeof after - 1);
    CHECK_INT(bk_users_find(u, "b", &s), -ENOENT);
    CHECK_INT(bk_users_reload(u, &line), 0);
    CHECK_INT(bk_users_find(u, "b", &s), 0);
    CHECK_INT(bk_users_find(u, "a", &s), -ENOENT);
    file_of("c:" EXAMPLE "\nwrong\n", strlen("c:" EXAMPLE "\nwrong\n"));
    CHECK_INT(bk_users_reload(u, &line), -EINVAL);
    CHECK_INT(line, 2);
    CHECK_INT(bk_users_find(u, "b", &s), 0); /* what was read before stays */
    CHECK_INT(bk_users_find(u, "c", &s), -ENOENT);
    bk_users_close(u);
    teardown();
}

static void decoys_look_like_secrets(void) {
    static const char text[] = "a:SCRAM-SHA-256$5000:" SALT KEYS "\n";
    bk_users *u = NULL, *again = NULL;
    bk_secret one, same, other;
    setup();
    CHECK_INT(open_with(text, sizeof text - 1, &u, NULL), 0);
    CHECK_INT(open_with(text, sizeof text - 1, &again, NULL), 0);
    CHECK(!bk_users_look_up(u, "x", &one));
    CHECK(!bk_users_look_up(again, "x", &same)); /* after a restart, too */
    CHECK(!bk_users_look_up(u, "y", &other));
    CHECK_INT(one.iterations, 5000);
    CHECK_INT(one.salt_size, 16);
    CHECK(memcmp(one.salt, same.salt, 16) == 0);
    CHECK(memcmp(one.salt, other.salt, 16) != 0);
    bk_users_close(u);
    bk_users_close(again);
    teardown();
}

static void open_faults(faults_kind kind, bool may_succeed) {
    static const char text[] = "a:" EXAMPLE "\nb:" EXAMPLE "\n";
    setup();
    file_of(text, sizeof text - 1);
    for (long n = 1; check_failures == 0; n++) {
        bk_users *u = NULL;
        bk_secret s;
        faults_arm(&world, kind, n);
        int r = bk_users_open(faults_os(&world), path, &u, NULL);
        int again = r < 0 ? r : bk_users_reload(u, NULL);
        long calls = faults_disarm(&world);
        CHECK((u != NULL) == (r >= 0));
        CHECK(again >= 0 || !may_succeed);
        if (u != NULL) /* as it is, or as it was */
            CHECK_INT(bk_users_find(u, "b", &s), 0);
        bk_users_close(u);
        CHECK_INT(faults_leaks(&world, NULL), 0);
        if (calls < n)
            break;
    }
    teardown();
}

static void reads_when_calls_fail(void) {
    open_faults(FAULTS_ERROR, false);
    open_faults(FAULTS_NO_MEMORY, false);
}

static void reads_in_pieces(void) {
    open_faults(FAULTS_SHORT, true);
    open_faults(FAULTS_INTERRUPTED, true);
}

/* ---- Logging in ---- */

enum { CLIENTS = BK_USERS_WAITING + 10 };

typedef struct service {
    bk_loop *loop;
    bk_users *users;
    bk_protocol *smtp;
    int left; /* clients that are not closed yet */
} service;

typedef struct client {
    service *service;
    const char *script, *password; /* password: by SCRAM */
    char got[2048], bare[100];
    size_t size;
    int step;
} client;

static void on_auth(void *context, bk_smtp_session *s, const bk_smtp_login *login) {
    service *v = context;
    bk_users_auth(v->users, v->loop, s, login);
}

static void on_message(void *context, bk_smtp_session *s, bk_smtp_message *message) {
    (void)context;
    bk_smtp_message_free(message);
    bk_smtp_answer(s, NULL);
}

static void say(bk_stream *s, const char *text) {
    (void)bk_stream_write(s, text, strlen(text), BK_COPY, NULL);
}

static int client_opened(bk_stream *s) {
    client *c = bk_stream_user(s);
    return bk_stream_write(s, c->script, strlen(c->script), BK_STATIC, NULL);
}

/* The answer to "r=…,s=…,i=…", which is in base64. */
static void scram_final(const client *c, const char *text, char *ret_line) {
    char challenge[512], message[2048], proof[BK_BASE64_ROOM(32)], final[600];
    unsigned char salted[32], key[32], stored[32], mac[32];
    ssize_t n = bk_base64_decode(text, strcspn(text, "\r"), challenge);
    CHECK(n > 0 && n < (ssize_t)sizeof challenge);
    challenge[n > 0 ? n : 0] = '\0';
    const char *salt = strstr(challenge, ",s="), *i = strstr(challenge, ",i=");
    CHECK(salt != NULL && i != NULL);
    if (salt == NULL || i == NULL)
        return;
    unsigned char raw[64];
    ssize_t size = bk_base64_decode(salt + 3, (size_t)(i - salt - 3), raw);
    bk_pbkdf2_sha256(c->password, strlen(c->password), raw, (size_t)size,
                     (unsigned)strtoul(i + 3, NULL, 10), salted);
    bk_scram_client_key(salted, key);
    bk_sha256_of(key, 32, stored);
    snprintf(final, sizeof final, "c=biws,%.*s", (int)(salt - challenge), challenge);
    snprintf(message, sizeof message, "%s,%s,%s", c->bare, challenge, final);
    bk_hmac_sha256(stored, 32, message, strlen(message), mac);
    for (int k = 0; k < 32; k++)
        key[k] ^= mac[k];
    bk_base64_encode(key, 32, proof);
    snprintf(message, sizeof message, "%s,p=%s", final, proof);
    size_t used = bk_base64_encode(message, strlen(message), ret_line);
    strcpy(ret_line + used, "\r\n");
}

static void client_received(bk_stream *s, const void *data, size_t n) {
    client *c = bk_stream_user(s);
    if (n > sizeof c->got - 1 - c->size)
        n = sizeof c->got - 1 - c->size;
    memcpy(c->got + c->size, data, n);
    c->got[c->size += n] = '\0';
    const char *challenge = strstr(c->got, "334 ");
    char line[3000] = "";
    if (c->password == NULL || challenge == NULL || c->got[c->size - 1] != '\n')
        return;
    if (c->step++ == 0)
        scram_final(c, challenge + 4, line);
    else if (c->step == 2)
        strcpy(line, "\r\nQUIT\r\n"); /* to the server's signature, or to the refusal */
    say(s, line);
}

static void client_closed(bk_stream *s, int why) {
    client *c = bk_stream_user(s);
    (void)why;
    c->service->left--;
}

static const bk_protocol client_protocol = {
    .size = sizeof(bk_protocol),
    .name = "client",
    .opened = client_opened,
    .received = client_received,
    .closed = client_closed,
};

static void no_log(void *arg, int code, const char *text) {
    (void)arg, (void)code, (void)text;
}

static int service_open(service *v, bk_os *os) {
    static const char text[] = "user:" EXAMPLE "\n";
    bk_loop_options options = {.size = sizeof options, .os = os, .log = no_log};
    bk_smtp_config config = {
        .size = sizeof config,
        .flags = BK_SMTP_AUTH_IN_CLEAR,
        .context = v,
        .auth = on_auth,
        .message = on_message,
    };
    *v = (service){.left = 0};
    file_of(text, sizeof text - 1);
    int r = bk_loop_new(&options, &v->loop);
    if (r >= 0)
        r = bk_users_open(os, path, &v->users, NULL);
    return r < 0 ? r : bk_smtp_protocol_new(&config, os, &v->smtp);
}

/* The users go first: checks under way keep what they need. */
static void service_close(service *v) {
    bk_users_close(v->users);
    bk_machine_protocol_free(v->smtp);
    if (v->loop != NULL)
        CHECK_INT(bk_loop_free(v->loop), 0);
}

static int client_connect(service *v, client *c) {
    bk_transport *pair[2];
    c->service = v;
    int r = bk_memory_transport(v->loop, 0, pair);
    if (r < 0)
        return r;
    r = bk_stream_new(v->loop, pair[0], v->smtp, NULL, NULL);
    if (r < 0)
        pair[0]->ops->close(pair[0]);
    int r2 = bk_stream_new(v->loop, pair[1], &client_protocol, c, NULL);
    if (r2 < 0)
        pair[1]->ops->close(pair[1]);
    else
        v->left++;
    return r2;
}

/* PLAIN: "", user, password, each ended by NUL but the last; in base64. */
static void plain(char *ret_script, const char *authorize, const char *user, const char *password) {
    char message[300], text[BK_BASE64_ROOM(sizeof message)];
    int n = snprintf(message, sizeof message, "%s%c%s%c%s", authorize, 0, user, 0, password);
    bk_base64_encode(message, (size_t)n, text);
    sprintf(ret_script, "EHLO c\r\nAUTH PLAIN %s\r\nQUIT\r\n", text);
}

static void logs_in(const char *authorize, const char *user, const char *password,
                    const char *reply) {
    service v;
    client c = {0};
    char script[600];
    setup();
    plain(script, authorize, user, password);
    c.script = script;
    CHECK_INT(service_open(&v, faults_os(&world)), 0);
    CHECK_INT(client_connect(&v, &c), 0);
    while (v.left > 0)
        CHECK_INT(bk_loop_turn(v.loop, BK_SECOND), 0);
    service_close(&v);
    CHECK(strstr(c.got, reply) != NULL);
    CHECK(strstr(c.got, "\r\n221 ") != NULL);
    teardown();
}

static void logs_in_with_a_password(void) {
    logs_in("", "user", "pencil", "\r\n235 ");
    logs_in("user", "user", "pencil", "\r\n235 ");
    logs_in("", "user", "pencils", "\r\n535 5.7.8 ");
    logs_in("", "nobody", "pencil", "\r\n535 5.7.8 ");
    logs_in("nobody", "user", "pencil", "\r\n535 5.7.8 "); /* as somebody else */
}

static void logs_in_by_scram(const char *user, const char *password, const char *reply) {
    service v;
    client c = {.password = password};
    char script[400], message[200], text[BK_BASE64_ROOM(sizeof message)];
    setup();
    snprintf(c.bare, sizeof c.bare, "n=%s,r=ofTheClient", user);
    int n = snprintf(message, sizeof message, "n,,%s", c.bare);
    bk_base64_encode(message, (size_t)n, text);
    snprintf(script, sizeof script, "EHLO c\r\nAUTH SCRAM-SHA-256 %s\r\n", text);
    c.script = script;
    CHECK_INT(service_open(&v, faults_os(&world)), 0);
    CHECK_INT(client_connect(&v, &c), 0);
    while (v.left > 0)
        CHECK_INT(bk_loop_turn(v.loop, BK_SECOND), 0);
    service_close(&v);
    CHECK(strstr(c.got, reply) != NULL);
    if (check_failures != 0)
        printf("# got %s\n", c.got);
    teardown();
}

static void logs_in_with_scram(void) {
    logs_in_by_scram("user", "pencil", "\r\n235 ");
    logs_in_by_scram("user", "pencils", "\r\n535 5.7.8 ");
    logs_in_by_scram("nobody", "pencil", "\r\n535 5.7.8 ");
}

/* More at once than are checked, or may wait: each has an answer. */
static void checks_some_at_once(void) {
    static client clients[CLIENTS];
    service v;
    char script[600];
    int in = 0, busy = 0;
    setup();
    plain(script, "", "user", "pencil");
    CHECK_INT(service_open(&v, faults_os(&world)), 0);
    for (int i = 0; i < CLIENTS; i++) {
        clients[i] = (client){.script = script};
        CHECK_INT(client_connect(&v, &clients[i]), 0);
    }
    while (v.left > 0)
        CHECK_INT(bk_loop_turn(v.loop, BK_SECOND), 0);
    for (int i = 0; i < CLIENTS; i++) {
        in += strstr(clients[i].got, "\r\n235 ") != NULL;
        busy += strstr(clients[i].got, "\r\n454 4.7.0 ") != NULL;
    }
    CHECK_INT(in + busy, CLIENTS);
    CHECK(in >= BK_USERS_WAITING);
    service_close(&v);
    teardown();
}

/* The loop ends, and the users are closed, while passwords are being checked. */
static void ends_while_it_checks(void) {
    static client clients[8];
    service v;
    char script[600];
    setup();
    plain(script, "", "user", "pencil");
    CHECK_INT(service_open(&v, faults_os(&world)), 0);
    for (int i = 0; i < COUNT(clients); i++) {
        clients[i] = (client){.script = script};
        CHECK_INT(client_connect(&v, &clients[i]), 0);
    }
    for (int i = 0; i < 5; i++)
        CHECK_INT(bk_loop_turn(v.loop, 0), 0);
    service_close(&v);
    teardown();
}

static void login_faults(faults_kind kind) {
    char script[600];
    setup();
    plain(script, "", "user", "pencil");
    for (long n = 1; check_failures == 0; n++) {
        service v;
        client c = {.script = script};
        faults_arm(&world, kind, n);
        int r = service_open(&v, faults_os(&world));
        if (r >= 0)
            r = client_connect(&v, &c);
        for (int turns = 0; r >= 0 && v.left > 0 && turns < 1000; turns++)
            (void)bk_loop_turn(v.loop, BK_SECOND);
        service_close(&v);
        long calls = faults_disarm(&world);
        CHECK(strstr(c.got, "535") == NULL); /* what cannot be checked now is not wrong */
        CHECK_INT(faults_leaks(&world, NULL), 0);
        if (check_failures != 0)
            printf("# ... when call %ld failed, a %s\n", n, faults_struck(&world));
        if (calls < n)
            break;
    }
    teardown();
}

static void logs_in_when_calls_fail(void) {
    login_faults(FAULTS_ERROR);
    login_faults(FAULTS_NO_MEMORY);
}

int main(int argc, char **argv) {
    static const check_case cases[] = {
        CASE(reads_the_example_of_the_rfc),
        CASE(makes_secrets),
        CASE(refuses_what_is_no_secret),
        CASE(reads_users),
        CASE(says_which_line_is_wrong),
        CASE(refuses_what_is_no_file),
        CASE(reads_them_again),
        CASE(decoys_look_like_secrets),
        CASE(reads_when_calls_fail),
        CASE(reads_in_pieces),
        CASE(logs_in_with_a_password),
        CASE(logs_in_with_scram),
        CASE(checks_some_at_once),
        CASE(ends_while_it_checks),
        CASE(logs_in_when_calls_fail),
    };
    return check_main(argc, argv, cases, COUNT(cases));
}
