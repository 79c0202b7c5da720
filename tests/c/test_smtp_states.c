/*
 * test_smtp_states.c: the SMTP server, every command in every state: the code of its reply and the
 * state it leads to, against tables written from the standards; whole dialogues in every cutting,
 * with hooks that answer at once and late; and every way known to smuggle a message, against a
 * strict reader of its own (smtp_reference.h).
 */
#include "core/os/os.h"
#include "core/protocol/base64.h"
#include "core/protocol/scram.h"
#include "tests/c/check.h"
#include "tests/c/faults.h"
#include "tests/c/smtp_reference.h"

/* ---- Running a script ---- */

static served now;
static bk_smtp_config config;
static bool offers_tls, later, chunks;

static bk_machine *begin(bk_os *os) {
    bk_machine *m = NULL;
    now = (served){.later = later, .tls = offers_tls};
    config.chunk = chunks ? served_chunk : NULL;
    if (bk_smtp_new(&config, os, &m) == 0 && bk_machine_start(m, &served_ops, &now) == 0)
        served_pay(&now);
    return m;
}

static void finish(bk_machine *m) {
    if (!now.closed)
        bk_machine_end(m);
    served_pay(&now);
    bk_machine_free(m);
    CHECK_INT(now.connects, 1);
    CHECK_INT(now.disconnects, 1);
}

static void setup(unsigned flags) {
    offers_tls = later = chunks = false;
    config = served_config(&now, flags, false);
}

/* The codes of all replies but the greeting's, "250 503 ". */
static const char *codes(void) {
    static char out[4096];
    size_t used = 0;
    out[0] = '\0';
    for (const char *at = now.said.bytes; at != NULL && *at != '\0';) {
        const char *end = strchr(at, '\n');
        if (at != now.said.bytes && at[3] == ' ' && used < sizeof out - 8)
            used += (size_t)snprintf(out + used, sizeof out - used, "%.3s ", at);
        at = end != NULL ? end + 1 : NULL;
    }
    return out;
}

static const char *codes_of(const char *script) {
    bk_machine *m = begin(bk_os_default());
    served_feed(&now, m, script, strlen(script));
    finish(m);
    const char *out = codes();
    return out;
}

/* ---- Every command in every state ---- */

typedef enum state { FRESH, HELO, EHLO, MAIL, RCPT, CHUNK, OVER, STATES } state;

static const char *const ways[STATES] = {
    [FRESH] = "",
    [HELO] = "HELO c\r\n",
    [EHLO] = "EHLO c\r\n",
    [MAIL] = "EHLO c\r\nMAIL FROM:<a@b.c>\r\n",
    [RCPT] = "EHLO c\r\nMAIL FROM:<a@b.c>\r\nRCPT TO:<d@e.f>\r\n",
    [CHUNK] = "EHLO c\r\nMAIL FROM:<a@b.c>\r\nRCPT TO:<d@e.f>\r\nBDAT 3\r\nabc",
};

/* What tells the states apart: the codes of these, in order. */
static const char probe[] =
    "MAIL FROM:<x@y.z> SIZE=1\r\nDATA\r\n.\r\nRSET\r\nMAIL FROM:<x@y.z>\r\n";
static const char *const signatures[STATES] = {
    [FRESH] = "503 503 500 250 503 ",
    [HELO] = "555 503 500 250 250 ",
    [EHLO] = "250 554 500 250 250 ",
    [MAIL] = "503 554 500 250 250 ",
    [RCPT] = "503 354 250 250 250 ",
    [CHUNK] = "503 503 500 250 250 ",
    [OVER] = "",
};

static state state_of(const char *signature) {
    int i = 0;
    while (i < STATES && strcmp(signatures[i], signature) != 0)
        i++;
    return (state)i;
}

/* A code and the state that follows, for each state. */
typedef struct row {
    const char *command;
    struct {
        int code;
        state next;
    } in[OVER];
} row;

#define SAME(code)                                                                                 \
    {                                                                                              \
        {code, FRESH}, {code, HELO}, {code, EHLO}, {code, MAIL}, {code, RCPT}, {                   \
            code, CHUNK                                                                            \
        }                                                                                          \
    }
#define ALL(code, next)                                                                            \
    {                                                                                              \
        {code, next}, {code, next}, {code, next}, {code, next}, {code, next}, {                    \
            code, next                                                                             \
        }                                                                                          \
    }

/* RFC 5321 4.1.4, 4.3.2 and the RFCs of the extensions. */
static const row rows[] = {
    {"HELO x\r\n", ALL(250, HELO)},
    {"EHLO x\r\n", ALL(250, EHLO)},
    {"EHLO\r\n", SAME(501)},
    {"LHLO x\r\n", SAME(500)},
    {"MAIL FROM:<a@b.c>\r\n",
     {{503, FRESH}, {250, MAIL}, {250, MAIL}, {503, MAIL}, {503, RCPT}, {503, CHUNK}}},
    {"MAIL FROM:<a@b.c> BODY=8BITMIME\r\n",
     {{503, FRESH}, {555, HELO}, {250, MAIL}, {503, MAIL}, {503, RCPT}, {503, CHUNK}}},
    {"MAIL FROM:<a\r\n",
     {{503, FRESH}, {501, HELO}, {501, EHLO}, {503, MAIL}, {503, RCPT}, {503, CHUNK}}},
    {"MAIL FROM:<spam@b.c>\r\n",
     {{503, FRESH}, {550, HELO}, {550, EHLO}, {503, MAIL}, {503, RCPT}, {503, CHUNK}}},
    {"RCPT TO:<d@e.f>\r\n",
     {{503, FRESH}, {503, HELO}, {503, EHLO}, {250, RCPT}, {250, RCPT}, {503, CHUNK}}},
    {"RCPT TO:<nobody@e.f>\r\n",
     {{503, FRESH}, {503, HELO}, {503, EHLO}, {550, MAIL}, {550, RCPT}, {503, CHUNK}}},
    {"RCPT TO:<x\r\n",
     {{503, FRESH}, {503, HELO}, {503, EHLO}, {501, MAIL}, {501, RCPT}, {503, CHUNK}}},
    {"DATA\r\n.\r\n",
     {{503, FRESH}, {503, HELO}, {503, EHLO}, {554, MAIL}, {354, EHLO}, {503, CHUNK}}},
    {"DATA x\r\n", SAME(501)},
    {"BDAT 0\r\n",
     {{503, FRESH}, {503, HELO}, {503, EHLO}, {503, EHLO}, {250, CHUNK}, {250, CHUNK}}},
    {"BDAT 3\r\nRS\n",
     {{503, FRESH}, {503, HELO}, {503, EHLO}, {503, EHLO}, {554, EHLO}, {554, EHLO}}},
    {"BDAT 6 LAST\r\nQUIT\r\n",
     {{503, FRESH}, {503, HELO}, {503, EHLO}, {503, EHLO}, {250, EHLO}, {250, EHLO}}},
    {"BDAT x\r\n", ALL(501, OVER)},
    {"BDAT 1 FIRST\r\n", ALL(501, OVER)},
    {"BDAT\r\n", ALL(501, OVER)},
    {"RSET\r\n", {{250, FRESH}, {250, HELO}, {250, EHLO}, {250, EHLO}, {250, EHLO}, {250, EHLO}}},
    {"RSET x\r\n", SAME(501)},
    {"NOOP\r\n", SAME(250)},
    {"NOOP x\r\n", SAME(250)},
    {"QUIT\r\n", ALL(221, OVER)},
    {"QUIT x\r\n", SAME(501)},
    {"VRFY x\r\n", SAME(252)},
    {"VRFY\r\n", SAME(501)},
    {"EXPN x\r\n", SAME(502)},
    {"HELP\r\n", SAME(214)},
    {"HELP x\r\n", SAME(504)},
    {"TURN\r\n", SAME(502)},
    {"STARTTLS\r\n", SAME(502)},
    {"AUTH PLAIN\r\n*\r\n",
     {{503, FRESH}, {503, HELO}, {538, EHLO}, {538, MAIL}, {538, RCPT}, {538, CHUNK}}},
    {"XYZZY\r\n", SAME(500)},
    {"\r\n", SAME(500)},
    {"NOOP\n\r\n", SAME(500)},
    {"NOOP x\ry\r\n", SAME(500)},
    {"NOOP \r\r\n", SAME(500)},
};

/* One command after another: what the first of its replies is, and where that leads. */
static void tries(const row *r, state from, int code, state next) {
    size_t way = strlen(codes_of(ways[from]));
    char script[1024], got[512];
    served_clear(&now);
    snprintf(script, sizeof script, "%s%s", ways[from], r->command);
    snprintf(got, sizeof got, "%s", codes_of(script) + way);
    size_t said = strlen(got);
    served_clear(&now);
    if (atoi(got) != code) {
        printf("# %.*s in state %d: %.3s, not %d\n", (int)strcspn(r->command, "\r\n"), r->command,
               from, got, code);
        check_failures++;
    }
    snprintf(script, sizeof script, "%s%s%s", ways[from], r->command, probe);
    state found = state_of(codes_of(script) + way + said);
    served_clear(&now);
    if (found != next) {
        printf("# %.*s in state %d: leads to %d, not %d\n", (int)strcspn(r->command, "\r\n"),
               r->command, from, found, next);
        check_failures++;
    }
}

static void every_command_in_every_state(void) {
    for (int when = 0; when < 2; when++) {
        setup(0);
        later = when;
        for (int i = 0; i < STATES - 1; i++) {
            char script[512];
            snprintf(script, sizeof script, "%s%s", ways[i], probe);
            size_t way = strlen(codes_of(ways[i]));
            served_clear(&now);
            CHECK_INT(state_of(codes_of(script) + way), i);
            served_clear(&now);
        }
        for (int i = 0; i < COUNT(rows); i++)
            for (int from = 0; from < OVER; from++)
                tries(&rows[i], (state)from, rows[i].in[from].code, rows[i].in[from].next);
    }
}

#define CODES(script, want)                                                                        \
    do {                                                                                           \
        CHECK_STR(codes_of(script), want);                                                         \
        served_clear(&now);                                                                        \
    } while (0)

/* RFC 3207, 4 and RFC 4954, 6: what may be said before. */
static void waits_for_what_is_required(void) {
    static const struct {
        const char *command;
        int tls, auth;
    } first[] = {
        {"EHLO c\r\n", 250, 250},        {"HELO c\r\n", 530, 250},   {"NOOP\r\n", 250, 250},
        {"QUIT\r\n", 221, 221},          {"RSET\r\n", 530, 250},     {"MAIL FROM:<>\r\n", 530, 530},
        {"RCPT TO:<a@b>\r\n", 530, 530}, {"DATA\r\n", 530, 530},     {"VRFY x\r\n", 530, 530},
        {"EXPN x\r\n", 530, 530},        {"BDAT 2\r\nxx", 503, 503}, {"HELP\r\n", 530, 214},
        {"AUTH PLAIN\r\n", 530, 503},    {"STARTTLS\r\n", 502, 502}};
    for (int i = 0; i < COUNT(first); i++) {
        setup(BK_SMTP_TLS_REQUIRED);
        CHECK_INT(atoi(codes_of(first[i].command)), first[i].tls);
        served_clear(&now);
        setup(BK_SMTP_AUTH_REQUIRED | BK_SMTP_AUTH_IN_CLEAR);
        CHECK_INT(atoi(codes_of(first[i].command)), first[i].auth);
        served_clear(&now);
    }
    CODES("EHLO c\r\nAUTH PLAIN AHUAc2VjcmV0\r\nMAIL FROM:<>\r\n", "250 235 250 ");
}

/* ---- LMTP (RFC 2033) ---- */

static void speaks_lmtp(void) {
    setup(BK_SMTP_LMTP);
    CODES("HELO c\r\nEHLO c\r\nLHLO c\r\n", "500 500 250 ");
#define TWO "LHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<a@b>\r\nRCPT TO:<nobody@b>\r\nRCPT TO:<c@d>\r\n"
    CODES(TWO "DATA\r\nx\r\n.\r\nQUIT\r\n", "250 250 250 550 250 354 250 250 221 ");
    CODES(TWO "DATA\r\nx\n\r\n.\r\nQUIT\r\n", "250 250 250 550 250 354 554 554 221 ");
    CODES(TWO "BDAT 1\r\nxBDAT 1 LAST\r\nyQUIT\r\n", "250 250 250 550 250 250 250 250 221 ");
    CODES(TWO "BDAT 1\r\n\nBDAT 1 LAST\r\nyQUIT\r\n", "250 250 250 550 250 554 503 221 ");
    CODES("LHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<nobody@b>\r\nDATA\r\n", "250 250 550 503 ");
    CODES("LHLO c\r\nMAIL FROM:<nodata@b>\r\nRCPT TO:<c@d>\r\nBDAT 1 LAST\r\nxNOOP\r\n",
          "250 250 250 554 250 ");
}

static const char *each[3];

static void answer_each(void *context, bk_smtp_session *s, bk_smtp_message *message) {
    (void)context;
    bk_smtp_message_free(message);
    bk_smtp_answer_each(s, each);
}

/* With SMTP there is one answer: the worst. */
static void answers_for_each_recipient(void) {
    setup(BK_SMTP_LMTP);
    config.message = answer_each;
#define THREE                                                                                      \
    " c\r\nMAIL FROM:<>\r\nRCPT TO:<a@b>\r\nRCPT TO:<b@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n.\r\n"
#define EACH(one, two, three, lmtp, smtp)                                                          \
    each[0] = one, each[1] = two, each[2] = three;                                                 \
    config.flags = BK_SMTP_LMTP;                                                                   \
    CODES("LHLO" THREE, "250 250 250 250 250 354 " lmtp);                                          \
    config.flags = BK_SMTP_NO_TRACE;                                                               \
    CODES("EHLO" THREE, "250 250 250 250 250 354 " smtp)
    EACH("250 2.1.5 one", "450 4.2.1 two", NULL, "250 450 250 ", "450 ");
    EACH("550 5.1.1 one", "450 4.2.1 two", NULL, "550 450 250 ", "450 ");
    EACH("450 4.2.1 one", "550 5.1.1 two", "250 three", "450 550 250 ", "450 ");
    EACH(NULL, "550 5.1.1 two", NULL, "250 550 250 ", "550 ");
    EACH(NULL, NULL, NULL, "250 250 250 ", "250 ");
    EACH("550 5.1.1 one", "rubbish", NULL, "550 451 250 ", "451 ");
}

/* ---- Whole dialogues, in every cutting ---- */

#define HI "EHLO c\r\n"
#define FROM "MAIL FROM:<a@b.c>\r\n"
#define TO "RCPT TO:<d@e.f>\r\n"
#define DATA "DATA\r\n"

/* Fed so; what was said, and what messages there were. */
static void run_cut(const char *script, size_t n, size_t cut, bool bytewise) {
    bk_machine *m = begin(bk_os_default());
    if (bytewise)
        for (size_t i = 0; i < n; i++)
            served_feed(&now, m, script + i, 1);
    else {
        served_feed(&now, m, script, cut);
        served_feed(&now, m, script + cut, n - cut);
    }
    finish(m);
}

/* Whether the strict reader found the same messages. */
static void compare(const char *script, size_t n, int line) {
    reference r = {.in = script,
                   .in_end = script + n,
                   .out = now.said.bytes,
                   .out_end = now.said.bytes + now.said.size,
                   .lmtp = config.flags & BK_SMTP_LMTP,
                   .whole = config.flags & BK_SMTP_MAKE_WHOLE,
                   .closed = now.closed};
    reference_read(&r);
    if (r.wrong != NULL || !text_same(&r.messages, &now.messages)) {
        printf("# line %d: %s\n# said\n%s# stored %s\n# read %s\n", line,
               r.wrong != NULL ? r.wrong : "other messages", now.said.bytes,
               now.messages.bytes != NULL ? now.messages.bytes : "none",
               r.messages.bytes != NULL ? r.messages.bytes : "none");
        check_failures++;
    }
    text_clear(&r.message);
    text_clear(&r.messages);
}

static void dialogue(const char *script, size_t n, const char *want_codes, const char *messages,
                     int line) {
    for (int how = 0; how < 4; how++) {
        text said = {NULL, 0};
        later = how & 1;
        chunks = how & 2;
        run_cut(script, n, n, false);
        CHECK_STR(codes(), want_codes);
        if (messages != NULL)
            CHECK_STR(now.messages.bytes != NULL ? now.messages.bytes : "", messages);
        compare(script, n, line);
        text_add(&said, now.said.bytes, now.said.size);
        served_clear(&now);
        for (size_t cut = 0; cut <= n; cut++) {
            run_cut(script, n, cut, cut == n);
            bool same = text_same(&now.said, &said);
            if (!same)
                printf("# line %d: cut at %zu, otherwise said:\n%s", line, cut, now.said.bytes);
            CHECK(same);
            if (messages != NULL)
                CHECK_STR(now.messages.bytes != NULL ? now.messages.bytes : "", messages);
            compare(script, n, line);
            served_clear(&now);
            if (!same)
                cut = n;
        }
        text_clear(&said);
    }
}

#define DIALOGUE(script, codes, messages)                                                          \
    dialogue(script, sizeof(script) - 1, codes, messages, __LINE__)

static void holds_in_every_cutting(void) {
    setup(BK_SMTP_AUTH_IN_CLEAR);
    DIALOGUE(HI FROM TO DATA "x\r\n..y\r\n.\r\nQUIT\r\n", "250 250 250 354 250 221 ",
             "x\r\n.y\r\n<end>");
    DIALOGUE(HI FROM TO "BDAT 3\r\nx\r\nBDAT 5\r\n.\r\ny\r"
                        "BDAT 2 LAST\r\n\n.QUIT\r\n",
             "250 250 250 250 250 250 221 ", "x\r\n.\r\ny\r\n.\r\n<end>");
    DIALOGUE(HI FROM TO "BDAT 0 LAST\r\n" FROM TO "bdat 7 last\r\n.\r\n.\r\nx" FROM,
             "250 250 250 250 250 250 250 250 ", "<end>.\r\n.\r\nx\r\n<end>");
    DIALOGUE(HI "MAIL FROM:<> BODY=BINARYMIME\r\n" TO DATA "BDAT 4 LAST\r\na\n\0\rRSET\r\n",
             "250 250 250 503 250 250 ", NULL);
    DIALOGUE(HI FROM TO "BDAT 4\r\nx\ny\rBDAT 1 LAST\r\nzQUIT\r\n", "250 250 250 554 503 221 ", "");
    DIALOGUE(HI FROM TO "BDAT 2 LAST\r\nx\rQUIT\r\n", "250 250 250 554 221 ", "");
    DIALOGUE(HI FROM TO "BDAT 5001\r\n", "250 250 250 ", "");
    DIALOGUE(HI FROM TO "BDAT 1\r\nx" DATA TO FROM "RSET\r\nBDAT 4 LAST\r\nQUITQUIT\r\n",
             "250 250 250 250 503 503 503 250 503 221 ", "");
    DIALOGUE("BDAT 12 LAST\r\nNOOP\r\nNOOP\r\nNOOP\r\n", "503 250 ", "");
    DIALOGUE(HI "BDAT 18446744073709551616\r\nNOOP\r\n", "250 501 ", "");
    DIALOGUE(HI "MAIL FROM:<nodata@b>\r\n" TO DATA "NOOP\r\n", "250 250 250 554 250 ", "");
    DIALOGUE(HI "MAIL FROM:<nodata@b>\r\n" TO "BDAT 6\r\nNOOP\r\nBDAT 1 LAST\r\nxNOOP\r\n",
             "250 250 250 554 503 250 ", "");
    DIALOGUE(HI "AUTH PLAIN\r\nAHUAc2VjcmV0\r\nAUTH PLAIN\r\n" FROM "VRFY x\r\n",
             "250 334 235 503 250 252 ", "");
    DIALOGUE(HI "AUTH LOGIN dQ==\r\n*\r\nAUTH LOGIN\r\ndQ==\r\nc2VjcmV0\r\nNOOP\r\n",
             "250 334 501 334 334 235 250 ", "");
}

/* All that is known to be taken for an end by some, in DATA and in chunks. */
static const char *const ends[] = {
    "\n.\n",      "\n.\r\n",    "\r\n.\n",     "\r.\r",         "\r.\r\n",      "\r\n.\r",
    "\n.\r",      "\r.\n",      "\r\r\n.\n",   "\n\r\n.\n",     "\r\n.\r\r\n",  "\r\n.\n\r\n",
    "\n\n.\n\n",  "\r\r.\r\r",  "\r\n\n.\r\n", "\r\n\r.\r\n",   "\r\n.\r.\r\n", "\n\r.\n\r",
    "\r\n..\r\n", "\r\n. \r\n", "\n..\n",      "\r\n.\0\r\n",   "\n",           "\r",
    "\r\r\n",     "\n\r\n",     "\r\n \n.\n",  "\r\n.\r\r\n\n",
};

static void is_not_smuggled_through(void) {
    static const unsigned ways_of[] = {0, BK_SMTP_MAKE_WHOLE, BK_SMTP_LMTP,
                                       BK_SMTP_LMTP | BK_SMTP_MAKE_WHOLE};
    for (int k = 0; k < COUNT(ways_of); k++)
        for (int i = 0; i < COUNT(ends); i++)
            for (int counted = 0; counted < 2; counted++) {
                char script[600], body[300];
                const char *hi = ways_of[k] & BK_SMTP_LMTP ? "LHLO c\r\n" : HI;
                setup(ways_of[k]);
                int size = snprintf(body, sizeof body,
                                    "x%sMAIL FROM:<evil@x.y>\r\n" TO DATA "worse", ends[i]);
                int n = counted
                            ? snprintf(script, sizeof script,
                                       "%s" FROM TO "BDAT %d LAST\r\n%sNOOP\r\n", hi, size, body)
                            : snprintf(script, sizeof script,
                                       "%s" FROM TO DATA "%s\r\n.\r\nNOOP\r\n", hi, body);
                bool fine = ways_of[k] & BK_SMTP_MAKE_WHOLE || i == 18 || i == 19;
                /* "\r\n.\0": the text ends at its NUL */
                fine |= strcmp(ends[i], "\r\n.") == 0;
                dialogue(script, (size_t)n,
                         counted ? (fine ? "250 250 250 250 250 " : "250 250 250 554 250 ")
                                 : (fine ? "250 250 250 354 250 250 " : "250 250 250 354 554 250 "),
                         NULL, __LINE__);
            }
}

/* What stood alone is whole, in one message. */
static void makes_whole(void) {
    setup(BK_SMTP_MAKE_WHOLE);
    DIALOGUE(HI FROM TO DATA "a\nb\rc\n.\nd\r.\re\r\n.\nf\r\n.\rg\r\n.\r\n", "250 250 250 354 250 ",
             "a\r\nb\r\nc\r\n.\r\nd\r\n.\r\ne\r\n\r\nf\r\n\r\ng\r\n<end>");
    DIALOGUE(HI FROM TO "BDAT 7 LAST\r\na\n\r\r\n.\r", "250 250 250 250 ",
             "a\r\n\r\n\r\n.\r\n<end>");
    DIALOGUE("NO\nOP\r\nNOOP\r\n", "500 250 ", "");
}

/* ---- Limits ---- */

static void ends_a_long_session(void) {
    setup(0);
    config.max_messages = 2;
#define ONE FROM TO DATA ".\r\n"
    CODES(HI ONE ONE FROM "NOOP\r\n", "250 250 250 354 250 250 250 354 250 421 ");
    static faults world;
    faults_open(&world, NULL);
    setup(0);
    config.max_session = 60;
    bk_machine *m = begin(faults_os(&world));
    served_feed(&now, m, "NOOP\r\n", 6);
    faults_pass_time(&world, 59 * BK_SECOND);
    served_feed(&now, m, "NOOP\r\n", 6);
    faults_pass_time(&world, 2 * BK_SECOND);
    served_feed(&now, m, "NOOP\r\n", 6);
    CHECK(now.closed);
    finish(m);
    CHECK_STR(codes(), "250 250 421 ");
    served_clear(&now);
    CHECK_INT(faults_leaks(&world, NULL), 0);
    faults_close(&world);
}

static void bounds_each_part(void) {
    char script[16000], x[13000];
    memset(x, 'x', sizeof x);
    setup(BK_SMTP_AUTH_IN_CLEAR);
    snprintf(script, sizeof script, "NOOP %.505s\r\nNOOP %.506s\r\n", x, x);
    CODES(script, "250 500 ");
    snprintf(script, sizeof script, HI "AUTH PLAIN %.1300s\r\nAUTH PLAIN\r\n%.12286s\r\nNOOP\r\n",
             x, x);
    CODES(script, "250 501 334 501 250 ");
    snprintf(script, sizeof script, HI "AUTH PLAIN\r\n%.12287s\r\nNOOP\r\n", x);
    CODES(script, "250 334 500 250 ");
    snprintf(script, sizeof script, HI FROM TO "BDAT 4998\r\n%.4998sBDAT 2 LAST\r\n%.2s", x, x);
    CODES(script, "250 250 250 250 552 "); /* with the CRLF that it lacks */
    snprintf(script, sizeof script, HI FROM TO "BDAT 4998\r\n%.4998sBDAT 2 LAST\r\n\r\n", x);
    CODES(script, "250 250 250 250 250 ");
    snprintf(script, sizeof script, HI FROM TO "BDAT 5001\r\n%.5001sBDAT 2 LAST\r\n\r\n", x);
    CODES(script, "250 250 250 552 503 ");
    CODES(HI FROM TO TO TO TO TO TO, "250 250 250 250 250 250 250 452 ");
    config.max_errors = 3;
    CODES("X\r\nX\r\nX\r\nNOOP\r\n", "500 500 421 ");
    config.max_idle = 2;
    CODES("NOOP\r\nNOOP\r\nNOOP\r\nNOOP\r\n", "250 250 421 ");
}

/* ---- Parameters ---- */

static bk_smtp_message seen;
static bk_smtp_recipient seen_to;
static char seen_texts[6][600];

static void copy(int i, const char *from) {
    snprintf(seen_texts[i], sizeof seen_texts[i], "%s", from != NULL ? from : "(none)");
}

static void look_mail(void *context, bk_smtp_session *s, const bk_smtp_message *envelope) {
    (void)context;
    seen = *envelope;
    copy(0, envelope->sender);
    copy(1, envelope->envelope_id);
    copy(2, envelope->submitter);
    copy(3, envelope->options);
    bk_smtp_answer(s, NULL);
}

static void look_rcpt(void *context, bk_smtp_session *s, const bk_smtp_message *envelope,
                      const bk_smtp_recipient *recipient) {
    (void)context, (void)envelope;
    seen_to = *recipient;
    copy(4, recipient->original);
    copy(5, recipient->options);
    bk_smtp_answer(s, NULL);
}

static void reads_parameters(void) {
    setup(BK_SMTP_AUTH_IN_CLEAR);
    config.mail = look_mail;
    config.rcpt = look_rcpt;
    CODES(HI "MAIL FROM:<a@b> RET=hdrs ENVID=QQ+2B1+3D AUTH=c+40d BODY=BINARYMIME SIZE=7\r\n"
             "RCPT TO:<d@e> NOTIFY=success,Delay ORCPT=rfc822;d+2B1@e\r\n",
          "250 250 250 ");
    CHECK_STR(seen_texts[0], "a@b");
    CHECK_STR(seen_texts[1], "QQ+1=");
    CHECK_STR(seen_texts[2], "<>"); /* nobody has logged in */
    CHECK_STR(seen_texts[3], "RET=hdrs ENVID=QQ+2B1+3D AUTH=c+40d BODY=BINARYMIME SIZE=7");
    CHECK_STR(seen_texts[4], "rfc822;d+1@e");
    CHECK_STR(seen_texts[5], "NOTIFY=success,Delay ORCPT=rfc822;d+2B1@e");
    CHECK_INT(seen.ret, BK_SMTP_RETURN_HDRS);
    CHECK_INT(seen.body, BK_SMTP_BINARYMIME);
    CHECK_INT(seen.declared, 7);
    CHECK_INT(seen_to.notify, BK_SMTP_NOTIFY_SUCCESS | BK_SMTP_NOTIFY_DELAY);
    CODES(HI "AUTH PLAIN AHUAc2VjcmV0\r\nMAIL FROM:<> AUTH=c+40d RET=FULL\r\nRCPT TO:<d@e> "
             "NOTIFY=NEVER\r\n",
          "250 235 250 250 ");
    CHECK_STR(seen_texts[2], "c@d");
    CHECK_INT(seen.ret, BK_SMTP_RETURN_FULL);
    CHECK_INT(seen_to.notify, BK_SMTP_NOTIFY_NEVER);
    CHECK_STR(seen_texts[4], "(none)");
    CODES(HI "MAIL FROM:<a@b> AUTH=<>\r\n", "250 250 ");
}

static void refuses_parameters(void) {
    static const struct {
        const char *mail;
        int code;
    } mails[] = {{"RET", 501},
                 {"RET=ALL", 501},
                 {"ENVID=", 501},
                 {"ENVID=+4", 501},
                 {"ENVID=+4g", 501},
                 {"ENVID=+0A", 501},
                 {"ENVID=+7F", 501},
                 {"ENVID=a ENVID=b", 501},
                 {"SMTPUTF8=1", 501},
                 {"REQUIRETLS", 555},
                 {"NOTIFY=NEVER", 555},
                 {"AUTH", 501},
                 {"ENVID=\303\244", 501},
                 {"ENVID=\303\244 SMTPUTF8", 250},
                 {"BODY=x", 501}},
      rcpts[] = {{"NOTIFY", 501},
                 {"NOTIFY=", 501},
                 {"NOTIFY=NEVER,DELAY", 501},
                 {"NOTIFY=x", 501},
                 {"NOTIFY=DELAY,", 501},
                 {"NOTIFY=,DELAY", 501},
                 {"ORCPT=a", 501},
                 {"ORCPT=;a", 501},
                 {"ORCPT=a;", 501},
                 {"ORCPT=a+41;b", 501},
                 {"ORCPT=a;+00", 501},
                 {"RET=FULL", 555},
                 {"NOTIFY=DELAY NOTIFY=DELAY", 501},
                 {"X=1", 555},
                 {"NOTIFY=DELAY", 250},
                 {"ORCPT=utf-8;\303\244", 501}};
    char script[300], want[40];
    setup(0);
    for (int i = 0; i < COUNT(mails); i++) {
        snprintf(script, sizeof script, HI "MAIL FROM:<a@b> %s\r\n", mails[i].mail);
        snprintf(want, sizeof want, "250 %d ", mails[i].code);
        if (strstr(mails[i].mail, "AUTH") != NULL)
            config.flags |= BK_SMTP_AUTH_IN_CLEAR;
        CODES(script, want);
    }
    for (int i = 0; i < COUNT(rcpts); i++) {
        snprintf(script, sizeof script, HI FROM "RCPT TO:<a@b> %s\r\n", rcpts[i].mail);
        snprintf(want, sizeof want, "250 250 %d ", rcpts[i].code);
        CODES(script, want);
    }
}

/* RFC 6531: what is beyond ASCII, and how it is said. */
static void reads_utf8(void) {
    static const struct {
        const char *address;
        int code;
    } tried[] = {{"\303\244@b", 250},
                 {"a@b\303\274cher.de", 250},
                 {"\346\227\245\346\234\254@\344\276\213.jp", 250},
                 {"\"\303\244 b\"@c", 250},
                 {"\360\237\230\200@b", 250},
                 {"\303@b", 501},
                 {"\300\200@b", 501},
                 {"\355\240\200@b", 501},
                 {"\364\220\200\200@b", 501},
                 {"\302\205@b", 501},
                 {"\302\240@b", 501},
                 {"a@b\343\200\202c", 501},
                 {"a@\357\274\216b", 501},
                 {"a\342\200\256@b", 501},
                 {"\"\\\303\244\"@b", 501},
                 {"\377@b", 501}};
    char script[300];
    for (int i = 0; i < COUNT(tried); i++) {
        setup(0);
        snprintf(script, sizeof script, HI "MAIL FROM:<%s> SMTPUTF8\r\n", tried[i].address);
        CODES(script, tried[i].code == 250 ? "250 250 " : "250 501 ");
        snprintf(script, sizeof script, HI FROM "RCPT TO:<%s>\r\n", tried[i].address);
        CODES(script, tried[i].code == 250 ? "250 250 553 " : "250 250 501 ");
        snprintf(script, sizeof script, HI "MAIL FROM:<> SMTPUTF8\r\nRCPT TO:<%s>\r\n",
                 tried[i].address);
        CODES(script, tried[i].code == 250 ? "250 250 250 " : "250 250 501 ");
    }
    CODES("HELO c\r\nMAIL FROM:<\303\244@b>\r\nMAIL FROM:<a@b> SMTPUTF8\r\n", "250 553 555 ");
}

/* ---- The trace ---- */

static void traces_how_it_came(void) {
    static const struct {
        const char *hi, *params, *with;
        unsigned flags;
        bool tls, auth;
    } ways_of[] = {
        {"HELO", "", "SMTP", 0, false, false},
        {"EHLO", "", "ESMTP", 0, false, false},
        {"EHLO", "", "ESMTPS", 0, true, false},
        {"EHLO", "", "ESMTPA", BK_SMTP_AUTH_IN_CLEAR, false, true},
        {"EHLO", "", "ESMTPSA", 0, true, true},
        {"EHLO", " SMTPUTF8", "UTF8SMTP", 0, false, false},
        {"EHLO", " SMTPUTF8", "UTF8SMTPSA", 0, true, true},
        {"LHLO", "", "LMTP", BK_SMTP_LMTP, false, false},
        {"LHLO", "", "LMTPSA", BK_SMTP_LMTP, true, true},
        {"LHLO", " SMTPUTF8", "UTF8LMTPS", BK_SMTP_LMTP, true, false},
    };
    for (int i = 0; i < COUNT(ways_of); i++) {
        char script[300], want[100];
        setup(ways_of[i].flags);
        config.flags &= (unsigned)~BK_SMTP_NO_TRACE;
        snprintf(script, sizeof script, "%s c\r\n%sMAIL FROM:<a@b>%s\r\n" TO DATA "x\r\n.\r\n",
                 ways_of[i].hi, ways_of[i].auth ? "AUTH PLAIN AHUAc2VjcmV0\r\n" : "",
                 ways_of[i].params);
        bk_machine *m = begin(bk_os_default());
        now.tls = now.secure = ways_of[i].tls;
        served_feed(&now, m, script, strlen(script));
        finish(m);
        snprintf(want, sizeof want, "Received: from c\r\n\tby mx.test with %s; ", ways_of[i].with);
        CHECK(now.messages.bytes != NULL && strncmp(now.messages.bytes, want, strlen(want)) == 0);
        served_clear(&now);
    }
}

/* ---- AUTH ---- */

static bk_secret secret;

static void answer_secret(void *context, bk_smtp_session *s, const bk_smtp_login *login) {
    (void)context;
    CHECK(login->password == NULL);
    bk_smtp_answer_secret(s, strcmp(login->user, "user") == 0 ? &secret : NULL);
}

/* The client's side of SCRAM, as far as its proof. */
static void scram_final(const char *user, const char *challenge, char *ret_line) {
    char plain[512], auth[1024], final[512];
    unsigned char salted[32], key[32], stored[32], signature[32];
    ssize_t n = bk_base64_decode(challenge, strcspn(challenge, "\r"), plain);
    plain[n] = '\0';
    int nonce = (int)strcspn(plain, ",");
    bk_pbkdf2_sha256("pencil", 6, secret.salt, secret.salt_size, secret.iterations, salted);
    bk_scram_client_key(salted, key);
    bk_sha256_of(key, 32, stored);
    int size = snprintf(auth, sizeof auth, "n=%s,r=abc,%s,c=biws,%.*s", user, plain, nonce, plain);
    bk_hmac_sha256(stored, 32, auth, (size_t)size, signature);
    for (int i = 0; i < 32; i++)
        key[i] ^= signature[i];
    size = snprintf(final, sizeof final, "c=biws,%.*s,p=", nonce, plain);
    size += (int)bk_base64_encode(key, 32, final + size);
    size = (int)bk_base64_encode(final, (size_t)size, ret_line);
    memcpy(ret_line + size, "\r\n", 3);
}

static void logs_in_by_scram(void) {
    static const char *const users[] = {"user", "nobody"};
    secret = (bk_secret){.iterations = 4096, .salt_size = 16, .salt = "0123456789abcdef"};
    bk_scram_derive("pencil", &secret);
    for (int i = 0; i < 2; i++) {
        char line[1024], first[64];
        setup(BK_SMTP_AUTH_IN_CLEAR);
        config.auth = answer_secret;
        bk_machine *m = begin(bk_os_default());
        int n = snprintf(first, sizeof first, "n,,n=%s,r=abc", users[i]);
        n = snprintf(line, sizeof line, HI "AUTH SCRAM-SHA-256 ") +
            (int)bk_base64_encode(first, (size_t)n, line + sizeof HI "AUTH SCRAM-SHA-256 " - 1);
        memcpy(line + n, "\r\n", 3);
        served_feed(&now, m, line, strlen(line));
        const char *challenge = strstr(now.said.bytes, "\r\n334 ");
        CHECK(challenge != NULL);
        scram_final(users[i], challenge + 6, line);
        served_feed(&now, m, line, strlen(line));
        if (i == 0)
            served_feed(&now, m, "\r\n", 2);
        CHECK(i > 0 || strcmp(bk_smtp_login_name((bk_smtp_session *)m), "user") == 0);
        finish(m);
        CHECK_STR(codes(), i == 0 ? "250 334 334 235 " : "250 334 535 ");
        served_clear(&now);
    }
}

static void refuses_to_log_in(void) {
    setup(0);
    CODES(HI "AUTH PLAIN AHUAc2VjcmV0\r\n", "250 538 ");
    CHECK_STR(codes_of(HI), "250 ");
    CHECK(strstr(now.said.bytes, "AUTH") == NULL);
    served_clear(&now);
    setup(BK_SMTP_AUTH_IN_CLEAR);
    (void)codes_of(HI);
    CHECK(strstr(now.said.bytes, "250-AUTH SCRAM-SHA-256 PLAIN LOGIN\r\n") != NULL);
    served_clear(&now);
    CODES(HI "AUTH\r\nAUTH X\r\nAUTH PLAIN =\r\nAUTH PLAIN x\r\n", "250 501 504 501 501 ");
    CODES(HI "AUTH PLAIN AHUAd3Jvbmc=\r\n", "250 535 ");
    CODES(HI "AUTH PLAIN\r\n\r\nAUTH PLAIN\r\n \r\n", "250 334 501 334 501 ");
    CODES(HI "AUTH PLAIN\r\nNO\nOP\r\nNOOP\r\n", "250 334 500 250 ");
    CODES(HI FROM "AUTH PLAIN AHUAc2VjcmV0\r\n", "250 250 503 ");
    config.auth = NULL;
    CODES(HI "AUTH PLAIN\r\n", "250 502 ");
}

/* ---- What hooks may say ---- */

static const char *told;

static void tell(void *context, bk_smtp_session *s) {
    served_connect(context, s); /* which has answered: what follows is for nobody */
    bk_smtp_answer(s, told);
}

static void tell_connect(void *context, bk_smtp_session *s) {
    ((served *)context)->connects++;
    CHECK_STR(bk_smtp_helo(s), "");
    bk_smtp_answer(s, told);
}

static void tell_helo(void *context, bk_smtp_session *s) {
    (void)context;
    CHECK_STR(bk_smtp_helo(s), "c");
    bk_smtp_answer(s, told);
}

static void tell_message(void *context, bk_smtp_session *s, bk_smtp_message *message) {
    (void)context;
    bk_smtp_message_free(message);
    bk_smtp_answer(s, told);
}

#define SAYS(script, want)                                                                         \
    do {                                                                                           \
        (void)codes_of(script);                                                                    \
        CHECK_STR(now.said.bytes, want);                                                           \
        served_clear(&now);                                                                        \
    } while (0)

static void greets_as_told(void) {
    setup(0);
    config.connect = tell_connect;
    told = "220 here I am\nat last";
    SAYS("QUIT\r\n", "220-here I am\r\n220 at last\r\n221 2.0.0 bye\r\n");
    told = "554 no mail here";
    SAYS("EHLO c\r\nFOO\r\nBDAT 6 LAST\r\nQUIT\r\n",
         "554 no mail here\r\n503 5.5.1 only QUIT is left\r\n503 5.5.1 only QUIT is left\r\n"
         "503 5.5.1 only QUIT is left\r\n221 2.0.0 bye\r\n");
    CHECK(now.closed);
    told = "521 never";
    SAYS("QUIT\r\n", "521 never\r\n");
    CHECK(now.closed);
    told = "421 later";
    SAYS("QUIT\r\n", "421 later\r\n");
    told = "what?";
    SAYS("QUIT\r\n", "451 4.3.0 local error\r\n");
    told = "250 what?";
    SAYS("", "220 mx.test ESMTP becket\r\n");
    config.connect = tell; /* an answer too many is none */
    SAYS("", "220 mx.test ESMTP becket\r\n");
}

static void says_helo_as_told(void) {
    setup(0);
    config.helo = tell_helo;
    told = "250 me\nSIZE 1\nXFOO";
    SAYS("EHLO c\r\n", "220 mx.test ESMTP becket\r\n250-me\r\n250-SIZE 1\r\n250 XFOO\r\n");
    told = "550 not you";
    SAYS("EHLO c\r\nMAIL FROM:<>\r\n", "220 mx.test ESMTP becket\r\n550 5.0.0 not you\r\n"
                                       "503 5.5.1 HELO or EHLO first\r\n");
    bk_machine *m = begin(bk_os_default());
    told = NULL;
    served_feed(&now, m, "EHLO c\r\n", 8);
    CHECK_STR(bk_smtp_keywords((bk_smtp_session *)m),
              "mx.test\nPIPELINING\nSIZE 5000\n8BITMIME\nSMTPUTF8\nCHUNKING\nBINARYMIME\nDSN\n"
              "ENHANCEDSTATUSCODES");
    CHECK(bk_smtp_extended((bk_smtp_session *)m) && !bk_smtp_secure((bk_smtp_session *)m));
    bk_smtp_set_user((bk_smtp_session *)m, &now);
    CHECK(bk_smtp_user((bk_smtp_session *)m) == &now);
    CHECK(bk_smtp_machine((bk_smtp_session *)m) == m);
    finish(m);
    served_clear(&now);
}

/* Whatever a hook says, whole lines of a reply go out, and each within its 512 bytes. */
static void replies_as_told(void) {
    static const struct {
        const char *told, *said;
    } replies[] = {
        {"250 one\ntwo", "250-2.0.0 one\r\n250 2.0.0 two\r\n"},
        {"250 2.1.5 one\r\ntwo\n", "250-2.1.5 one\r\n250-2.1.5 two\r\n250 2.1.5 \r\n"},
        {"550 5.7.1 no\x01\x7f\xc3\xa4", "550 5.7.1 no????\r\n"},
        {"550 ", "550 5.0.0 \r\n"},
        {"550", "451 4.3.0 local error\r\n"},
        {"354 go", "451 4.3.0 local error\r\n"},
        {"299 x", "451 4.3.0 local error\r\n"},
        {"250-x", "451 4.3.0 local error\r\n"},
        {"\n", "451 4.3.0 local error\r\n"},
        {"250 4.0.0 x", "250 2.0.0 4.0.0 x\r\n"},
    };
    static const char script[] = "HELO c\r\n" FROM TO DATA ".\r\n";
    setup(0);
    config.message = tell_message;
    for (int i = 0; i < COUNT(replies); i++) {
        told = replies[i].told;
        (void)codes_of(script);
        CHECK_STR(strstr(now.said.bytes, "354 ") + 37, replies[i].said);
        served_clear(&now);
    }
    char much[2000] = "250 ";
    memset(much + 4, 'x', sizeof much - 5);
    much[1000] = '\n';
    told = much;
    (void)codes_of(script);
    const char *first = strstr(now.said.bytes, "354 ") + 37;
    CHECK_INT(strcspn(first, "\n"), 511);
    CHECK(strncmp(first + 512, "250 2.0.0 xxx", 13) == 0);
    CHECK_INT(strlen(first), 1024);
    served_clear(&now);
}

static void makes_messages(void) {
    static const char *const wrong[] = {"a b@c",   "a@b>",   "<a@b>", "a\r@b", "a\n@b",
                                        "a@b\r\n", "@x:a@b", "a@",    "a@b c", "\"a@b",
                                        "a@b@c",   "\377@b", "a@b.",  " a@b"};
    char much[400], local[80] = "";
    bk_smtp_message *m = NULL;
    memset(much, 'x', sizeof much - 1);
    much[sizeof much - 1] = '\0';
    snprintf(local, sizeof local, "%.65s@b", much);
    for (int i = 0; i < COUNT(wrong); i++)
        CHECK_INT(bk_smtp_message_new(bk_os_default(), wrong[i], &m), -EINVAL);
    CHECK_INT(bk_smtp_message_new(bk_os_default(), much, &m), -EINVAL);
    CHECK_INT(bk_smtp_message_new(bk_os_default(), local, &m), -EINVAL);
    CHECK_INT(bk_smtp_message_new(NULL, "a@b", &m), -EINVAL);
    CHECK_INT(bk_smtp_message_new(bk_os_default(), NULL, &m), -EINVAL);
    CHECK(m == NULL);
    CHECK_INT(bk_smtp_message_new(bk_os_default(), "", &m), 0);
    CHECK_INT(bk_smtp_message_to(m, ""), -EINVAL);
    CHECK_INT(bk_smtp_message_to(m, "a@b\n"), -EINVAL);
    for (int i = 0; i < 9; i++)
        CHECK_INT(bk_smtp_message_to(m, "\"a b\"@[127.0.0.1]"), 0);
    CHECK_INT(m->recipient_count, 9);
    CHECK_STR(m->recipients[8].address, "\"a b\"@[127.0.0.1]");
    CHECK_STR(m->recipients[8].options, "");
    CHECK_INT(m->utf8, 0);
    CHECK_INT(bk_smtp_message_to(m, "\303\244@b"), 0);
    CHECK_INT(m->utf8, 1);
    CHECK_INT(bk_smtp_message_add(m, NULL, 1), -EINVAL);
    CHECK_INT(bk_smtp_message_add(NULL, "x", 1), -EINVAL);
    CHECK_INT(bk_smtp_message_add(m, "x\r\n", 3), 0);
    CHECK_INT(bk_smtp_message_add(m, much, sizeof much - 1), 0);
    CHECK_INT(m->size, 3 + sizeof much - 1);
    bk_smtp_message_free(m);
    bk_smtp_message_free(NULL);
}

/* ---- Without memory; and when the connection goes ---- */

static const char everything[] = HI
    "AUTH PLAIN AHUAc2VjcmV0\r\nMAIL FROM:<a@b> RET=FULL ENVID=x AUTH=<>\r\n"
    "RCPT TO:<d@e.f> NOTIFY=NEVER ORCPT=a;b\r\nVRFY x\r\nBDAT 5\r\nhello"
    "BDAT 300 LAST\r\n" /* … of the same */
    "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
    "xxxxxx"
    "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
    "xxxxxx"
    "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
    "xxxxxx"
    "MAIL FROM:<nodata@b>\r\n" TO "BDAT 1 LAST\r\nx" FROM TO DATA "again\r\n.\r\n" FROM TO DATA "x";

static void survives_without_memory(void) {
    static faults world;
    faults_open(&world, NULL);
    for (int how = 0; how < 8; how++)
        for (long n = 1;; n++) {
            setup(BK_SMTP_AUTH_IN_CLEAR);
            later = how & 1;
            chunks = how & 2;
            faults_arm(&world, how & 4 ? FAULTS_ERROR : FAULTS_NO_MEMORY, n);
            bk_machine *m = begin(faults_os(&world));
            if (m != NULL) {
                for (size_t i = 0; i < sizeof everything - 1; i += 50) {
                    size_t left = sizeof everything - 1 - i;
                    served_feed(&now, m, everything + i, left < 50 ? left : 50);
                }
                finish(m);
            }
            bool over = faults_disarm(&world) < n;
            if (over)
                CHECK_STR(codes(), "250 235 250 250 252 250 250 250 250 554 250 250 354 250 250 "
                                   "250 354 ");
            served_clear(&now);
            CHECK_INT(faults_leaks(&world, NULL), 0);
            if (over)
                break;
        }
    faults_close(&world);
}

/* Whichever hook it is that has not answered yet: what it was given stays until it has. */
static void goes_while_a_hook_is_asked(void) {
    static faults world;
    faults_open(&world, NULL);
    for (size_t n = 0; n < sizeof everything; n++) {
        setup(BK_SMTP_AUTH_IN_CLEAR);
        later = chunks = true;
        bk_machine *m = NULL;
        now = (served){.later = true};
        config.chunk = served_chunk;
        CHECK_INT(bk_smtp_new(&config, faults_os(&world), &m), 0);
        CHECK_INT(bk_machine_start(m, &served_ops, &now), 0);
        for (size_t i = 0; i < n; i++) {
            served_pay(&now);
            CHECK_INT(bk_machine_feed(m, everything + i, 1), 0);
        }
        bk_machine_free(m);
        CHECK_INT(now.disconnects, 1);
        CHECK((now.owed != NULL) == (faults_leaks(&world, NULL) > 0));
        served_pay(&now);
        CHECK_INT(faults_leaks(&world, NULL), 0);
        served_clear(&now);
    }
    faults_close(&world);
}

/* Each transaction that ends without a message is told. */
static void tells_of_resets(void) {
    static const struct {
        const char *script;
        int resets;
    } ends_so[] = {{HI, 0},
                   {HI FROM, 1},
                   {HI FROM "RSET\r\n", 1},
                   {HI FROM HI, 1},
                   {HI "RSET\r\n", 0},
                   {HI FROM TO DATA ".\r\n", 0},
                   {HI FROM TO DATA "\n\r\n.\r\n", 1},
                   {HI FROM TO "BDAT 1\r\n\n", 1},
                   {HI "MAIL FROM:<spam@b>\r\n", 0},
                   {HI FROM "QUIT\r\n", 1}};
    setup(0);
    for (int i = 0; i < COUNT(ends_so); i++) {
        (void)codes_of(ends_so[i].script);
        CHECK_INT(now.resets, ends_so[i].resets);
        served_clear(&now);
    }
}

int main(int argc, char **argv) {
    static const check_case cases[] = {
        CASE(every_command_in_every_state),
        CASE(waits_for_what_is_required),
        CASE(speaks_lmtp),
        CASE(answers_for_each_recipient),
        CASE(holds_in_every_cutting),
        CASE(is_not_smuggled_through),
        CASE(makes_whole),
        CASE(ends_a_long_session),
        CASE(bounds_each_part),
        CASE(reads_parameters),
        CASE(refuses_parameters),
        CASE(reads_utf8),
        CASE(traces_how_it_came),
        CASE(logs_in_by_scram),
        CASE(refuses_to_log_in),
        CASE(greets_as_told),
        CASE(says_helo_as_told),
        CASE(replies_as_told),
        CASE(makes_messages),
        CASE(survives_without_memory),
        CASE(goes_while_a_hook_is_asked),
        CASE(tells_of_resets),
    };
    return check_main(argc, argv, cases, COUNT(cases));
}
