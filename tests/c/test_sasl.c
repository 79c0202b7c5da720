/*
 * test_sasl.c: what passwords are checked by, held against the examples of the standards: SHA-256
 * (FIPS 180-4), HMAC (RFC 4231), PBKDF2 (RFC 7914, 11), base64 (RFC 4648, 10), SCRAM-SHA-256 (RFC
 * 7677, 3), and the mechanisms with what is wrong with their messages.
 */
#include "core/os/os.h"
#include "core/protocol/base64.h"
#include "core/protocol/limits.h"
#include "core/protocol/sasl.h"
#include "tests/c/check.h"

static const char *hex(const unsigned char hash[BK_SHA256_SIZE]) {
    static char text[2 * BK_SHA256_SIZE + 1];
    for (int i = 0; i < BK_SHA256_SIZE; i++)
        snprintf(text + 2 * i, 3, "%02x", hash[i]);
    return text;
}

static void hashes(void) {
    static const struct {
        const char *text, *hash;
    } known[] = {
        {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
        {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
        {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
         "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
        {"abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqr"
         "lmnopqrsmnopqrstnopqrstu",
         "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1"},
    };
    unsigned char hash[BK_SHA256_SIZE];
    for (int i = 0; i < COUNT(known); i++) {
        bk_sha256_of(known[i].text, strlen(known[i].text), hash);
        CHECK_STR(hex(hash), known[i].hash);
    }
    bk_sha256 h;
    char piece[1000];
    memset(piece, 'a', sizeof piece);
    bk_sha256_init(&h);
    for (int i = 0; i < 1000; i++)
        bk_sha256_add(&h, piece, sizeof piece);
    bk_sha256_end(&h, hash);
    CHECK_STR(hex(hash), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    for (size_t cut = 0; cut <= 112; cut++) { /* in every two pieces */
        bk_sha256_init(&h);
        bk_sha256_add(&h, known[3].text, cut);
        bk_sha256_add(&h, known[3].text + cut, 112 - cut);
        bk_sha256_end(&h, hash);
        CHECK_STR(hex(hash), known[3].hash);
    }
}

/* RFC 4231, 4: test cases 1, 2, 3, 6 and 7. */
static void authenticates(void) {
    unsigned char key[131], data[50], mac[BK_SHA256_SIZE];
    static const char large[] = "Test Using Larger Than Block-Size Key - Hash Key First";
    static const char larger[] =
        "This is a test using a larger than block-size key and a larger than block-size data. The "
        "key needs to be hashed before being used by the HMAC algorithm.";
    memset(key, 0x0b, sizeof key);
    bk_hmac_sha256(key, 20, "Hi There", 8, mac);
    CHECK_STR(hex(mac), "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
    bk_hmac_sha256("Jefe", 4, "what do ya want for nothing?", 28, mac);
    CHECK_STR(hex(mac), "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    memset(key, 0xaa, sizeof key);
    memset(data, 0xdd, sizeof data);
    bk_hmac_sha256(key, 20, data, sizeof data, mac);
    CHECK_STR(hex(mac), "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe");
    bk_hmac_sha256(key, sizeof key, large, sizeof large - 1, mac);
    CHECK_STR(hex(mac), "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
    bk_hmac_sha256(key, sizeof key, larger, sizeof larger - 1, mac);
    CHECK_STR(hex(mac), "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2");
}

static void stretches(void) {
    unsigned char key[BK_SHA256_SIZE];
    bk_pbkdf2_sha256("passwd", 6, "salt", 4, 1, key);
    CHECK_STR(hex(key), "55ac046e56e3089fec1691c22544b605f94185216dde0465e68b9d57c20dacbc");
    bk_pbkdf2_sha256("Password", 8, "NaCl", 4, 80000, key);
    CHECK_STR(hex(key), "4ddcd8f60b98be21830cee5ef22701f9641a4418d04c0414aeff08876b34ab56");
}

static void compares(void) {
    char secret[] = "secret";
    CHECK(bk_same_secret("abc", "abc", 3) && !bk_same_secret("abc", "abd", 3));
    CHECK(!bk_same_secret("bbc", "abc", 3) && bk_same_secret("a", "b", 0));
    bk_wipe(secret, 3);
    CHECK(memcmp(secret, "\0\0\0ret", 6) == 0);
}

/* ---- base64 ---- */

static void codes(void) {
    static const char *const known[] = {"",         "Zg==",     "Zm8=",    "Zm9v",
                                        "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"};
    char text[64];
    unsigned char back[64];
    for (size_t n = 0; n < 7; n++) {
        CHECK_INT(bk_base64_encode("foobar", n, text), strlen(known[n]));
        CHECK_STR(text, known[n]);
        CHECK_INT(bk_base64_decode(text, strlen(text), back), n);
        CHECK(memcmp(back, "foobar", n) == 0);
    }
    static const unsigned char all[] = {0xfb, 0xff, 0xbf};
    bk_base64_encode(all, 3, text);
    CHECK_STR(text, "+/+/");
    static const char *const wrong[] = {
        "Z",    "Zg",     "Zg=",  "Zh==",     "Zm9=",       "Z===", "====", "Zg==Zg==",
        "Zm9 ", "Zm9v\n", "Zm-v", "Zm9v====", "\303\244==", "Z=8=", "=m8=", "Zm8=Zm8="};
    for (int i = 0; i < COUNT(wrong); i++)
        CHECK_INT(bk_base64_decode(wrong[i], strlen(wrong[i]), back), -EINVAL);
}

/* ---- SCRAM ---- */

#define FIRST "n,,n=user,r=rOprNGfwEbeRWgbNEkqO"
#define NONCE "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
#define FINAL "c=biws,r=" NONCE ",p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="

static bk_secret pencil(void) {
    bk_secret secret = {.iterations = 4096};
    secret.salt_size = (size_t)bk_base64_decode("W22ZaJ0SNY7soEsUEjb6gQ==", 24, secret.salt);
    bk_scram_derive("pencil", &secret);
    return secret;
}

static int exchange(const char *first, const char *final, size_t n, char *ret_text) {
    static bk_scram s;
    static const unsigned char decoy[BK_SHA256_SIZE];
    char user[BK_SCRAM_MESSAGE_MAX], authorize[BK_SCRAM_MESSAGE_MAX];
    bk_secret secret = pencil();
    CHECK_INT(bk_scram_begin(&s, first, strlen(first), user, authorize), 0);
    CHECK_STR(user, "user");
    CHECK_INT(bk_scram_challenge(&s, bk_os_default(), &secret, user, decoy), 0);
    s.challenge_size = (size_t)snprintf(s.challenge, sizeof s.challenge, "%s",
                                        "r=" NONCE ",s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096");
    return bk_scram_finish(&s, final, n, ret_text);
}

/* The example of RFC 7677; each byte of the client's last message that is not so is refused. */
static void knows_a_password(void) {
    char text[64], final[] = FINAL;
    CHECK_INT(exchange(FIRST, final, sizeof final - 1, text), 0);
    CHECK_STR(text, "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    for (size_t i = 0; i < sizeof final - 1; i++) {
        final[i] ^= 1;
        CHECK(exchange(FIRST, final, sizeof final - 1, text) < 0);
        final[i] ^= 1;
        CHECK(exchange(FIRST, final, i, text) < 0);
    }
    /* "y": the client thinks that we have no channel binding, and is right. */
    CHECK_INT(exchange("y,,n=user,r=rOprNGfwEbeRWgbNEkqO", FINAL, sizeof FINAL - 1, text), -EINVAL);
    /* Extensions are part of what is signed. */
    static const char more[] =
        "c=biws,r=" NONCE ",x=1,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
    CHECK_INT(exchange(FIRST, more, sizeof more - 1, text), -EACCES);
}

static void reads_names(void) {
    static bk_scram s;
    static const struct {
        const char *message, *user, *authorize;
    } good[] = {{"n,,n=a,r=x", "a", ""},
                {"y,a=b,n=a,r=x", "a", "b"},
                {"n,a=b=2Cc,n=a=3Db,r=x,e=1", "a=b", "b,c"}};
    static const char *const bad[] = {"",
                                      "n",
                                      "n,",
                                      "n,,",
                                      "p=tls-unique,,n=a,r=x",
                                      "n,,n=a",
                                      "n,,n=a,",
                                      "n,,n=a,r=",
                                      "n,,n=,r=x",
                                      "n,,m=1,n=a,r=x",
                                      "n,b,n=a,r=x",
                                      "n,,n=a=2c,r=x",
                                      "n,,n=a=,r=x",
                                      "n,,n=a=3C,r=x",
                                      "n,,n=a=2D,r=x",
                                      "n,,r=x",
                                      "n,a=,r=x",
                                      "n,,n=a,r=\x7f",
                                      "n,,n=a,r=a b"};
    char user[BK_SCRAM_MESSAGE_MAX], authorize[BK_SCRAM_MESSAGE_MAX];
    for (int i = 0; i < COUNT(good); i++) {
        CHECK_INT(bk_scram_begin(&s, good[i].message, strlen(good[i].message), user, authorize), 0);
        CHECK_STR(user, good[i].user);
        CHECK_STR(authorize, good[i].authorize);
    }
    for (int i = 0; i < COUNT(bad); i++)
        CHECK_INT(bk_scram_begin(&s, bad[i], strlen(bad[i]), user, authorize), -EINVAL);
    CHECK_INT(bk_scram_begin(&s, "n,,n=a\0b,r=x", 12, user, authorize), -EINVAL);
    CHECK_INT(bk_scram_begin(&s, "n,,n=a,r=x\0", 11, user, authorize), -EINVAL);
    char much[2000];
    memset(much, 'x', sizeof much);
    memcpy(much, "n,,n=a,r=", 9);
    CHECK_INT(bk_scram_begin(&s, much, BK_SCRAM_MESSAGE_MAX, user, authorize), -EINVAL);
    CHECK_INT(bk_scram_begin(&s, much, BK_SCRAM_MESSAGE_MAX - 1, user, authorize), 0);
}

/* Who is not there has a salt of his own, always the same, and is refused like a wrong password. */
static void knows_nobody(void) {
    static const unsigned char key[BK_SHA256_SIZE] = {1}, other_key[BK_SHA256_SIZE] = {2};
    static bk_scram s;
    char user[BK_SCRAM_MESSAGE_MAX], authorize[BK_SCRAM_MESSAGE_MAX], salts[4][100], text[64];
    static const char *const names[] = {"a", "a", "b", "a"};
    for (int i = 0; i < 4; i++) {
        char first[64];
        int n = snprintf(first, sizeof first, "n,,n=%s,r=x", names[i]);
        CHECK_INT(bk_scram_begin(&s, first, (size_t)n, user, authorize), 0);
        CHECK_INT(bk_scram_challenge(&s, bk_os_default(), NULL, user, i < 3 ? key : other_key), 0);
        snprintf(salts[i], sizeof salts[i], "%s", strstr(s.challenge, ",s="));
    }
    CHECK_STR(salts[1], salts[0]);
    CHECK(strcmp(salts[2], salts[0]) != 0 && strcmp(salts[3], salts[0]) != 0);
    char iterations[32];
    snprintf(iterations, sizeof iterations, "==,i=%d", BK_SECRET_ITERATIONS);
    CHECK(strstr(salts[0], iterations) != NULL);
    char final[256];
    int n =
        snprintf(final, sizeof final, "c=biws,%.*s,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
                 (int)strcspn(s.challenge, ","), s.challenge);
    CHECK_INT(bk_scram_finish(&s, final, (size_t)n, text), -EACCES);
}

/* ---- Mechanisms ---- */

static bk_sasl sasl;

static bk_sasl_result plain(const char *message, size_t n) {
    CHECK(bk_sasl_begin(&sasl, bk_os_default(), "plain", 5));
    CHECK_INT(bk_sasl_take(&sasl, NULL, 0), BK_SASL_CONTINUE);
    CHECK_INT(sasl.challenge_size, 0);
    return bk_sasl_take(&sasl, message, n);
}

#define PLAIN(text) plain(text, sizeof(text) - 1)

static void takes_plain(void) {
    CHECK_INT(PLAIN("\0user\0pass word"), BK_SASL_ASK);
    CHECK_STR(sasl.login.user, "user");
    CHECK_STR(sasl.login.authorize, "");
    CHECK_STR(sasl.login.password, "pass word");
    CHECK_STR(sasl.login.mechanism, "PLAIN");
    CHECK_INT(PLAIN("boss\0us\303\244r\0p"), BK_SASL_ASK);
    CHECK_STR(sasl.login.authorize, "boss");
    CHECK_INT(PLAIN(""), BK_SASL_BROKEN);
    CHECK_INT(PLAIN("user"), BK_SASL_BROKEN);
    CHECK_INT(PLAIN("\0user"), BK_SASL_BROKEN);
    CHECK_INT(PLAIN("\0user\0"), BK_SASL_BROKEN);
    CHECK_INT(PLAIN("\0\0pass"), BK_SASL_BROKEN);
    CHECK_INT(PLAIN("\0user\0pass\0"), BK_SASL_BROKEN);
    CHECK_INT(PLAIN("\0us\377er\0pass"), BK_SASL_BROKEN);
    CHECK_INT(PLAIN("\0user\0p\355\240\200"), BK_SASL_BROKEN); /* a surrogate */
    char much[2000] = "";
    memset(much + 1, 'x', sizeof much - 1);
    much[5] = '\0';
    CHECK_INT(plain(much, BK_SASL_MESSAGE_MAX), BK_SASL_BROKEN);
    CHECK_INT(plain(much, BK_SASL_MESSAGE_MAX - 1), BK_SASL_ASK);
    CHECK_INT(bk_sasl_secret(&sasl, NULL, NULL), BK_SASL_FAILED);
    bk_sasl_clear(&sasl);
    CHECK_STR(sasl.password, "");
}

static void takes_login(void) {
    for (int with = 0; with < 2; with++) {
        CHECK(bk_sasl_begin(&sasl, bk_os_default(), "LOGIN", 5));
        if (!with) {
            CHECK_INT(bk_sasl_take(&sasl, NULL, 0), BK_SASL_CONTINUE);
            CHECK_STR(sasl.challenge, "Username:");
        }
        CHECK_INT(bk_sasl_take(&sasl, "user", 4), BK_SASL_CONTINUE);
        CHECK_STR(sasl.challenge, "Password:");
        CHECK_INT(bk_sasl_take(&sasl, "pass", 4), BK_SASL_ASK);
        CHECK_STR(sasl.login.user, "user");
        CHECK_STR(sasl.login.password, "pass");
    }
    CHECK(bk_sasl_begin(&sasl, bk_os_default(), "LOGIN", 5));
    CHECK_INT(bk_sasl_take(&sasl, "", 0), BK_SASL_BROKEN);
    CHECK_INT(bk_sasl_take(&sasl, "a\0b", 3), BK_SASL_BROKEN);
    CHECK_INT(bk_sasl_take(&sasl, "user", 4), BK_SASL_CONTINUE);
    CHECK_INT(bk_sasl_take(&sasl, "", 0), BK_SASL_BROKEN);
}

static void takes_scram(void) {
    static const unsigned char decoy[BK_SHA256_SIZE] = {0};
    bk_secret secret = pencil();
    CHECK(bk_sasl_begin(&sasl, bk_os_default(), "SCRAM-SHA-256", 13));
    CHECK_INT(bk_sasl_take(&sasl, "n,,x", 4), BK_SASL_BROKEN);
    CHECK_INT(bk_sasl_take(&sasl, "n,,n=\377,r=x", 10), BK_SASL_BROKEN);
    CHECK_INT(bk_sasl_take(&sasl, FIRST, sizeof FIRST - 1), BK_SASL_ASK);
    CHECK(sasl.login.password == NULL);
    CHECK_INT(bk_sasl_secret(&sasl, &secret, decoy), BK_SASL_CONTINUE);
    CHECK(strncmp(sasl.challenge, "r=rOprNGfwEbeRWgbNEkqO", 22) == 0);
    sasl.scram.challenge_size =
        (size_t)snprintf(sasl.scram.challenge, sizeof sasl.scram.challenge, "%s",
                         "r=" NONCE ",s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096");
    CHECK_INT(bk_sasl_take(&sasl, "x", 1), BK_SASL_BROKEN);
    CHECK_INT(bk_sasl_take(&sasl, FINAL, sizeof FINAL - 1), BK_SASL_CONTINUE);
    CHECK_STR(sasl.challenge, "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    CHECK_INT(bk_sasl_take(&sasl, "x", 1), BK_SASL_BROKEN);
    CHECK_INT(bk_sasl_take(&sasl, "", 0), BK_SASL_DONE);
    CHECK(!bk_sasl_begin(&sasl, bk_os_default(), "SCRAM-SHA-1", 11));
    CHECK(!bk_sasl_begin(&sasl, bk_os_default(), "", 0));
}

static int no_chance(bk_os *os, void *room, size_t n) {
    (void)os, (void)room, (void)n;
    return -EIO;
}

static void needs_chance(void) {
    bk_os os = *bk_os_default();
    os.random = no_chance;
    static const unsigned char decoy[BK_SHA256_SIZE] = {0};
    CHECK(bk_sasl_begin(&sasl, &os, "SCRAM-SHA-256", 13));
    CHECK_INT(bk_sasl_take(&sasl, FIRST, sizeof FIRST - 1), BK_SASL_ASK);
    CHECK_INT(bk_sasl_secret(&sasl, NULL, decoy), BK_SASL_FAILED);
}

int main(int argc, char **argv) {
    static const check_case cases[] = {
        CASE(hashes),      CASE(authenticates),    CASE(stretches),   CASE(compares),
        CASE(codes),       CASE(knows_a_password), CASE(reads_names), CASE(knows_nobody),
        CASE(takes_plain), CASE(takes_login),      CASE(takes_scram), CASE(needs_chance),
    };
    return check_main(argc, argv, cases, COUNT(cases));
}
