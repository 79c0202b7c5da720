/*
 * test_smtp.c: the SMTP machine, run in memory: what each script gets for an answer and what comes
 * of its messages, in every cutting of the script, with answers of the store at once and late, with
 * TLS begun in mid-session, and without memory.
 */
#include <becket-smtp.h>

#include "core/os/os.h"
#include "core/protocol/limits.h"
#include "core/protocol/smtp_path.h"
#include "tests/c/check.h"
#include "tests/c/faults.h"

/* ---- The rig: a runner in memory, and a store in memory ---- */

enum { OUT_ROOM = 1 << 16 };

/* When the store answers: within the hook, after each piece, when the script is over. */
typedef enum answering { AT_ONCE, SOON, AT_LAST, ANSWERINGS } answering;

typedef struct rig {
    char out[OUT_ROOM];
    size_t out_size;
    char stored[OUT_ROOM]; /* "sender|recipient,recipient|data|" for each message */
    size_t stored_size;
    answering when;
    const char *answer; /* the store's; NULL: accepted */
    bk_smtp_session *owed;
    bool closed, refuses;
    int why;
    unsigned timeout;
    const char *peer;
    bool secure; /* TLS was started */
    bool fills;  /* the queue is full after each reply */
} rig;

/* What the runner says of TLS. */
static enum { NO_TLS, OFFERED, FROM_THE_START, FAILS } tls;

static rig now;
static bk_os fixed; /* the system's, with a time that stands still */
static int64_t wall = 1709251198;
static faults world;

static void append(char *room, size_t *used, const void *data, size_t n) {
    if (n > OUT_ROOM - 1 - *used)
        n = OUT_ROOM - 1 - *used;
    if (n > 0)
        memcpy(room + *used, data, n);
    *used += n;
    room[*used] = '\0';
}

static int rig_send(bk_machine *m, const void *data, size_t n, bk_release release, void *arg) {
    rig *r = m->runner_state;
    CHECK(!r->closed);
    if (!r->refuses)
        append(r->out, &r->out_size, data, n);
    if (release != BK_COPY)
        release(arg);
    if (r->fills)
        bk_machine_block(m, 1);
    return r->refuses ? -ENOMEM : 0;
}

static void rig_close(bk_machine *m, int why) {
    rig *r = m->runner_state;
    CHECK(!r->closed);
    r->closed = true;
    r->why = why;
}

static void rig_timeout(bk_machine *m, unsigned seconds) {
    ((rig *)m->runner_state)->timeout = seconds;
}

static void rig_peer(bk_machine *m, char *ret_text, size_t room) {
    snprintf(ret_text, room, "%s", ((rig *)m->runner_state)->peer);
}

#define SEALED "<TLS>\n" /* in the output: what follows is sealed */

static int rig_start_tls(bk_machine *m, const void *last, size_t n) {
    rig *r = m->runner_state;
    CHECK(!r->closed && !r->secure);
    if (tls == FAILS)
        return -ENOMEM;
    r->secure = !r->refuses;
    if (rig_send(m, last, n, BK_COPY, NULL) < 0)
        return -ENOMEM;
    append(r->out, &r->out_size, SEALED, sizeof SEALED - 1);
    return 0;
}

static int rig_secure(bk_machine *m) {
    return tls == NO_TLS ? -ENOTSUP : tls == FROM_THE_START || ((rig *)m->runner_state)->secure;
}

static const bk_runner_ops rig_ops = {
    .size = sizeof(bk_runner_ops),
    .send = rig_send,
    .close = rig_close,
    .timeout = rig_timeout,
    .peer = rig_peer,
    .start_tls = rig_start_tls,
    .secure = rig_secure,
};

static const bk_runner_ops *runner = &rig_ops;

static void answer_owed(void) {
    bk_smtp_session *s = now.owed;
    now.owed = NULL;
    if (s != NULL)
        bk_smtp_answer(s, now.answer);
}

static void keep(void *context, bk_smtp_session *session, bk_smtp_message *m) {
    (void)context;
    CHECK(now.owed == NULL);
    append(now.stored, &now.stored_size, m->sender, strlen(m->sender));
    for (size_t i = 0; i < m->recipient_count; i++) {
        append(now.stored, &now.stored_size, i ? "," : "|", 1);
        append(now.stored, &now.stored_size, m->recipients[i].address,
               strlen(m->recipients[i].address));
    }
    append(now.stored, &now.stored_size, "|", 1);
    append(now.stored, &now.stored_size, m->data, m->size);
    append(now.stored, &now.stored_size, "|", 1);
    bk_smtp_message_free(m);
    now.owed = session;
    if (now.when == AT_ONCE)
        answer_owed();
}

static void judge_mail(void *context, bk_smtp_session *session, const bk_smtp_message *envelope) {
    (void)context;
    bool spam = strncmp(envelope->sender, "spam@", 5) == 0;
    bool bye = strncmp(envelope->sender, "bye@", 4) == 0;
    bk_smtp_answer(session, spam ? "550 5.7.1 no thank you" : bye ? "421 go away" : NULL);
}

static void judge_rcpt(void *context, bk_smtp_session *session, const bk_smtp_message *envelope,
                       const bk_smtp_recipient *recipient) {
    (void)context, (void)envelope;
    static const struct {
        const char *name, *reply;
    } replies[] = {
        {"nobody@", "550 5.1.1 no such mailbox"},
        {"plain@", "550 no such mailbox"},
        {"later@", "450 4.2.1 try later"},
        {"moved@", "251 2.1.5 will forward"},
        {"evil@", "250 2.1.5 a\r\nb"},
        {"junk@", "nonsense"},
        {"go@", "354 go ahead"},
        {"odd@", "250 2.1234.5 odd"},
        {"empty@", ""},
    };
    const char *reply = NULL;
    for (int i = 0; i < COUNT(replies); i++)
        if (strncmp(recipient->address, replies[i].name, strlen(replies[i].name)) == 0)
            reply = replies[i].reply;
    bk_smtp_answer(session, reply);
}

static bk_smtp_config config;

static void setup(void) {
    tls = NO_TLS;
    config = (bk_smtp_config){.size = sizeof config,
                              .hostname = "mx.test",
                              .software = "t",
                              .flags = BK_SMTP_NO_TRACE,
                              .max_message = 100,
                              .max_recipients = 3,
                              .max_errors = 50,
                              .mail = judge_mail,
                              .rcpt = judge_rcpt,
                              .message = keep};
}

static void rig_reset(answering when, const char *answer) {
    now = (rig){.when = when, .answer = answer, .peer = ""};
}

/* How much of the script is said in plain; 0: it does not come to TLS. */
static size_t plain_size;

/* Whether TLS begins where the script has it begin: a client waits until it may. What is said in
   plain after that is no handshake, and the end of the connection. */
static bool goes_on(size_t at) {
    if (at == plain_size && at > 0) {
        answer_owed();
        return now.secure;
    }
    return at > plain_size || !now.secure;
}

/* Feed a script in pieces, the cuts of which are given by a function of the position. */
static void run_pieces(bk_os *os, const char *script, size_t n, size_t cut, size_t step) {
    bk_machine *m;
    int r = bk_smtp_new(&config, os, &m);
    if (r < 0)
        return;
    r = bk_machine_start(m, runner, &now);
    size_t at = 0;
    while (r == 0 && at < n && goes_on(at)) {
        size_t end = at < plain_size ? plain_size : n;
        size_t size = step ? step : at < cut ? cut - at : n - at;
        size = size < end - at ? size : end - at;
        char *piece = malloc(size); /* so that reading past its end is seen */
        memcpy(piece, script + at, size);
        r = bk_machine_feed(m, piece, size);
        free(piece);
        at += size;
        if (now.when == SOON)
            answer_owed();
    }
    if (r == 0)
        bk_machine_end(m);
    while (r == 0 && now.owed != NULL)
        answer_owed();
    CHECK(r < 0 || now.closed);
    bk_machine_free(m);
    answer_owed();
}

static char want_out[OUT_ROOM], want_stored[OUT_ROOM];

static bool same(const char *how, size_t cut, int when) {
    if (strcmp(now.out, want_out) == 0 && strcmp(now.stored, want_stored) == 0)
        return true;
    printf("# cut %s at %zu, answering %d: got\n%s# not\n%s# stored\n%s# not\n%s\n", how, cut, when,
           now.out, want_out, now.stored, want_stored);
    check_failures++;
    return false;
}

/* Whether a script of n bytes comes to the same in every cutting. */
static void all_cuts(const char *script, size_t n, const char *answer) {
    for (int when = 0; when < ANSWERINGS; when++) {
        rig_reset((answering)when, answer);
        run_pieces(&fixed, script, n, 0, 1);
        if (!same("bytewise", 0, when))
            return;
        for (size_t cut = 0; cut <= n; cut += n > 4000 ? 97 : 1) {
            rig_reset((answering)when, answer);
            run_pieces(&fixed, script, n, cut, 0);
            if (!same("once", cut, when))
                return;
        }
    }
}

/* The script, with what is answered after the greeting and what is stored. */
static void expect_n(const char *script, size_t n, const char *answer, const char *out,
                     const char *stored, int line) {
    int before = check_failures;
    snprintf(want_out, sizeof want_out, "220 mx.test ESMTP t\r\n%s", out);
    snprintf(want_stored, sizeof want_stored, "%s", stored);
    all_cuts(script, n, answer);
    if (check_failures != before)
        printf("# … in the script of line %d\n", line);
}

#define EXPECT(script, out) expect_n(script, sizeof(script) - 1, NULL, out, "", __LINE__)
#define STORES(script, out, stored)                                                                \
    expect_n(script, sizeof(script) - 1, NULL, out, stored, __LINE__)

#define HI "EHLO c\r\n"
#define HI_OK "250-mx.test\r\n250-PIPELINING\r\n250-SIZE 100\r\n250-8BITMIME\r\n" HI_END
#define HI_END                                                                                     \
    "250-SMTPUTF8\r\n250-CHUNKING\r\n250-BINARYMIME\r\n250-DSN\r\n250 ENHANCEDSTATUSCODES\r\n"
#define HI_SEALED                                                                                  \
    "250-mx.test\r\n250-PIPELINING\r\n250-SIZE 100\r\n250-8BITMIME\r\n250-REQUIRETLS\r\n" HI_END
#define FROM "MAIL FROM:<a@b.c>\r\n"
#define FROM_OK "250 2.1.0 sender ok\r\n"
#define TO "RCPT TO:<d@e.f>\r\n"
#define TO_OK "250 2.1.5 recipient ok\r\n"
#define GO "354 end data with <CR><LF>.<CR><LF>\r\n"
#define ENVELOPE HI FROM TO "DATA\r\n"
#define ENVELOPE_OK HI_OK FROM_OK TO_OK GO
#define TAKEN "250 2.0.0 message accepted\r\n"
#define OK "250 2.0.0 ok\r\n"
#define BYE "221 2.0.0 bye\r\n"
#define BARE "500 5.5.2 lines end in CRLF, no CR or LF may stand alone\r\n"

/* ---- Commands ---- */

static void greets(void) {
    setup();
    EXPECT("", "");
    EXPECT("QUIT\r\n", BYE);
    EXPECT("QUIT\r\nNOOP\r\n", BYE);
    EXPECT("HELO c\r\n", "250 mx.test\r\n");
    EXPECT("ehlo [1.2.3.4]\r\n", HI_OK);
    EXPECT("EHLO [IPv6:::1]\r\nHelo my_pc.local\r\n", HI_OK "250 mx.test\r\n");
#define NO_HOST "501 5.5.4 a host name or [address] is required\r\n"
    EXPECT("EHLO\r\nHELO\r\nEHLO \r\n", NO_HOST NO_HOST NO_HOST);
    EXPECT("EHLO a b\r\nEHLO -a\r\nEHLO a..b\r\nEHLO a-.b\r\nEHLO [\r\nEHLO a\tb\r\n",
           NO_HOST NO_HOST NO_HOST NO_HOST NO_HOST NO_HOST);
    EXPECT("EHLO caf\303\251.fr\r\n", NO_HOST);
    EXPECT(HI FROM HI TO, HI_OK FROM_OK HI_OK "503 5.5.1 MAIL first\r\n");
    CHECK_INT(now.timeout, 300);
}

/* Each command in each state: not greeted, greeted, with a sender, with a recipient. */
static void has_an_order(void) {
    setup();
    EXPECT(FROM, "503 5.5.1 HELO or EHLO first\r\n");
    EXPECT(TO, "503 5.5.1 MAIL first\r\n");
    EXPECT("DATA\r\n", "503 5.5.1 MAIL first\r\n");
    EXPECT("RSET\r\nNOOP\r\n", OK OK);
    EXPECT(HI TO "DATA\r\n", HI_OK "503 5.5.1 MAIL first\r\n503 5.5.1 MAIL first\r\n");
    EXPECT(HI FROM FROM, HI_OK FROM_OK "503 5.5.1 there is a sender already\r\n");
    EXPECT(HI FROM "DATA\r\n", HI_OK FROM_OK "554 5.5.1 no valid recipients\r\n");
    EXPECT(HI FROM TO FROM, HI_OK FROM_OK TO_OK "503 5.5.1 there is a sender already\r\n");
    EXPECT(HI FROM "RSET\r\n" TO, HI_OK FROM_OK OK "503 5.5.1 MAIL first\r\n");
    EXPECT(HI FROM TO "RSET\r\nDATA\r\n", HI_OK FROM_OK TO_OK OK "503 5.5.1 MAIL first\r\n");
    EXPECT(HI FROM TO "NOOP\r\nQUIT\r\n", HI_OK FROM_OK TO_OK OK BYE);
    EXPECT(HI "RSET\r\n" FROM TO "VRFY x\r\nHELP\r\n", HI_OK OK FROM_OK TO_OK
           "252 2.5.0 cannot verify, send mail and see\r\n"
           "214 2.0.0 HELO EHLO MAIL RCPT DATA BDAT RSET NOOP QUIT VRFY HELP: RFC 5321\r\n");
    STORES(ENVELOPE ".\r\n" TO FROM, ENVELOPE_OK TAKEN "503 5.5.1 MAIL first\r\n" FROM_OK,
           "a@b.c|d@e.f||");
}

static void knows_its_commands(void) {
    setup();
#define UNKNOWN "500 5.5.2 command is not known\r\n"
#define LACKS "502 5.5.1 command is not implemented\r\n"
    EXPECT("\r\n \r\nX\r\nMAILFROM\r\nNOO\r\nNOOPS\r\nNO\303\226P\r\n",
           UNKNOWN UNKNOWN UNKNOWN UNKNOWN UNKNOWN UNKNOWN UNKNOWN);
    EXPECT("EXPN x\r\nSTARTTLS\r\nAUTH PLAIN\r\nETRN x\r\nTURN\r\nSEND\r\nSOML\r\n"
           "SAML\r\n",
           LACKS LACKS LACKS LACKS LACKS LACKS LACKS LACKS);
    EXPECT("noop\r\nNoOp with text\r\nNOOP  \r\n", OK OK OK);
    EXPECT("RSET x\r\nQUIT x\r\nVRFY\r\nHELP x\r\n",
           "501 5.5.4 RSET takes no argument\r\n501 5.5.4 QUIT takes no argument\r\n"
           "501 5.5.4 VRFY needs an address\r\n504 5.5.4 no help on that\r\n");
    EXPECT(HI FROM TO "DATA x\r\n", HI_OK FROM_OK TO_OK "501 5.5.4 DATA takes no argument\r\n");
    EXPECT("RSET  \r\n", OK);
}

static void bounds_commands(void) {
    setup();
    char script[4096], out[1024];
    static const struct {
        const char *verb;
        size_t max;
        const char *fits;
    } verbs[] = {
        {"NOOP ", BK_SMTP_LINE_MAX, OK},
        {"XXXX ", BK_SMTP_LINE_MAX, UNKNOWN},
        {"MAIL ", BK_SMTP_PATH_LINE_MAX, "501 5.5.4 MAIL FROM:<address> is the syntax\r\n"},
        {"rcpt ", BK_SMTP_PATH_LINE_MAX, "503 5.5.1 MAIL first\r\n"},
    };
    for (int i = 0; i < COUNT(verbs); i++)
        for (size_t over = 0; over < 3; over++) {
            size_t n = verbs[i].max + over;
            bool mail = verbs[i].verb[0] == 'M';
            memset(script, 'x', sizeof script);
            size_t hi =
                (size_t)snprintf(script, sizeof script, "%s%s", mail ? HI : "", verbs[i].verb);
            memset(script + hi, 'x', n);
            size_t end = n + (mail ? sizeof HI - 1 : 0);
            memcpy(script + end - 2, "\r\nQUIT\r\n", 8);
            snprintf(out, sizeof out, "%s%s%s", mail ? HI_OK : "",
                     over ? "500 5.5.2 line is too long\r\n" : verbs[i].fits, BYE);
            expect_n(script, end + 6, NULL, out, "", __LINE__);
        }
}

/* However much comes without an end, it is neither kept nor scanned again. */
static void drops_endless_commands(void) {
    setup();
    faults_open(&world, &fixed);
    rig_reset(AT_ONCE, NULL);
    bk_machine *m;
    CHECK_INT(bk_smtp_new(&config, faults_os(&world), &m), 0);
    CHECK_INT(bk_machine_start(m, &rig_ops, &now), 0);
    static char much[65536];
    memset(much, 'x', sizeof much);
    for (int i = 0; i < 100; i++)
        CHECK_INT(bk_machine_feed(m, much, sizeof much), 0);
    CHECK_STR(now.out, "220 mx.test ESMTP t\r\n500 5.5.2 line is too long\r\n");
    faults_report report;
    faults_leaks(&world, &report);
    CHECK(report.bytes < 2000);
    CHECK_INT(bk_machine_feed(m, "\r\nQUIT\r\n", 8), 0);
    CHECK_STR(now.out, "220 mx.test ESMTP t\r\n500 5.5.2 line is too long\r\n" BYE);
    bk_machine_free(m);
    CHECK_INT(faults_leaks(&world, NULL), 0);
    faults_close(&world);
}

static void needs_true_line_ends(void) {
    setup();
    EXPECT("NOOP\nNOOP\r\nNOOP\r\n", BARE OK);
    EXPECT("NOOP\rNOOP\r\nNOOP\r\n", BARE OK);
    EXPECT("NOOP\r\r\nNOOP\r\n", BARE OK);
    EXPECT("\nNOOP\r\n\rNOOP\r\n\n\r\n\r\r\nNOOP\r\n", BARE BARE BARE BARE OK);
    EXPECT("NOOP\n", BARE);
    EXPECT("NOOP\r", "");
    EXPECT("NO\0OP\r\nNOOP\r\n", "500 5.5.2 NUL is not allowed\r\n" OK);
    EXPECT(HI "MAIL FROM:<a@b.c>\nRCPT TO:<d@e.f>\r\n" TO, HI_OK BARE "503 5.5.1 MAIL first\r\n");
}

/* ---- Addresses and parameters ---- */

#define BAD_FROM "501 5.1.7 address cannot be read\r\n"
#define BAD_TO "501 5.1.3 address cannot be read\r\n"

static void reads_senders(void) {
    setup();
    EXPECT(HI "MAIL FROM:<>\r\n", HI_OK FROM_OK);
    EXPECT(HI "mail from:<A@b>\r\n", HI_OK FROM_OK);
    EXPECT(HI "MAIL FROM:<@x.y,@z:a@b>\r\n", HI_OK FROM_OK);
    EXPECT(HI "MAIL FROM:<\"a \\\"> b\"@[1.2.3.4]>\r\n", HI_OK FROM_OK);
    EXPECT(HI "MAIL\r\nMAIL FROM\r\nMAIL FROM :<a@b>\r\nMAIL TO:<a@b>\r\n",
           HI_OK "501 5.5.4 MAIL FROM:<address> is the syntax\r\n"
                 "501 5.5.4 MAIL FROM:<address> is the syntax\r\n"
                 "501 5.5.4 MAIL FROM:<address> is the syntax\r\n"
                 "501 5.5.4 MAIL FROM:<address> is the syntax\r\n");
    EXPECT(HI "MAIL FROM:a@b\r\nMAIL FROM: <a@b>\r\nMAIL FROM:<a@b\r\nMAIL FROM:<a@>\r\n",
           HI_OK BAD_FROM BAD_FROM BAD_FROM BAD_FROM);
    EXPECT(HI "MAIL FROM:<@b>\r\nMAIL FROM:<a..b@c>\r\nMAIL FROM:<a@b@c>\r\nMAIL FROM:<<a@b>>\r\n",
           HI_OK BAD_FROM BAD_FROM BAD_FROM BAD_FROM);
    EXPECT(HI "MAIL FROM:<a b@c>\r\nMAIL FROM:<a@[]>\r\nMAIL FROM:<\"a@b>\r\nMAIL FROM:\r\n",
           HI_OK BAD_FROM BAD_FROM BAD_FROM BAD_FROM);
    EXPECT(HI "MAIL FROM:<a\t@c>\r\nMAIL FROM:<\"a\t\"@c>\r\nMAIL FROM:<a@b\177>\r\n",
           HI_OK BAD_FROM BAD_FROM BAD_FROM);
    EXPECT(HI "MAIL FROM:<@x,a@b>\r\nMAIL FROM:<@x:>\r\nMAIL FROM:<\r\nMAIL FROM:<a@b_c>\r\n",
           HI_OK BAD_FROM BAD_FROM BAD_FROM BAD_FROM);
    EXPECT(HI "MAIL FROM:<a@b->\r\nMAIL FROM:<a@-b>\r\nMAIL FROM:<a@b.>\r\nMAIL FROM:<a.@b>\r\n",
           HI_OK BAD_FROM BAD_FROM BAD_FROM BAD_FROM);
    EXPECT(HI "MAIL FROM:<a>\r\nMAIL FROM:<postmaster>\r\n",
           HI_OK "501 5.1.7 address needs a domain\r\n501 5.1.7 address needs a domain\r\n");
    EXPECT(HI "MAIL FROM:<\303\244@b>\r\nMAIL FROM:<a@b\303\244>\r\n",
           HI_OK "553 5.6.7 an address beyond ASCII needs SMTPUTF8\r\n"
                 "553 5.6.7 an address beyond ASCII needs SMTPUTF8\r\n");
    EXPECT(HI "MAIL FROM:<spam@b>\r\n" TO,
           HI_OK "550 5.7.1 no thank you\r\n503 5.5.1 MAIL first\r\n");
    EXPECT(HI "MAIL FROM:<bye@b>\r\nNOOP\r\n", HI_OK "421 4.0.0 go away\r\n");
}

static void reads_recipients(void) {
    setup();
    EXPECT(HI FROM "RCPT TO:<postmaster>\r\nrcpt to:<PostMaster>\r\n", HI_OK FROM_OK TO_OK TO_OK);
    EXPECT(HI FROM "RCPT TO:<>\r\nRCPT TO:<x>\r\n",
           HI_OK FROM_OK "501 5.1.3 address needs a domain\r\n"
                         "501 5.1.3 address needs a domain\r\n");
    EXPECT(HI FROM "RCPT\r\nRCPT FROM:<a@b>\r\n",
           HI_OK FROM_OK "501 5.5.4 RCPT TO:<address> is the syntax\r\n"
                         "501 5.5.4 RCPT TO:<address> is the syntax\r\n");
    EXPECT(HI FROM "RCPT TO:d@e\r\nRCPT TO:<d@e>x\r\n", HI_OK FROM_OK BAD_TO BAD_TO);
    EXPECT(HI FROM "RCPT TO:<d@e> SIZE=1\r\n",
           HI_OK FROM_OK "555 5.5.4 parameter is not implemented\r\n");
    EXPECT(HI FROM "RCPT TO:<nobody@e>\r\nRCPT TO:<plain@e>\r\nRCPT TO:<later@e>\r\nDATA\r\n",
           HI_OK FROM_OK "550 5.1.1 no such mailbox\r\n550 5.0.0 no such mailbox\r\n"
                         "450 4.2.1 try later\r\n554 5.5.1 no valid recipients\r\n");
    EXPECT(HI FROM "RCPT TO:<moved@e>\r\nRCPT TO:<evil@e>\r\nRCPT TO:<odd@e>\r\n", HI_OK FROM_OK
           "251 2.1.5 will forward\r\n250-2.1.5 a\r\n250 2.1.5 b\r\n250 2.0.0 2.1234.5 odd\r\n");
    EXPECT(HI FROM "RCPT TO:<junk@e>\r\nRCPT TO:<go@e>\r\nRCPT TO:<empty@e>\r\n",
           HI_OK FROM_OK "451 4.3.0 local error\r\n451 4.3.0 local error\r\n"
                         "451 4.3.0 local error\r\n");
    EXPECT(HI FROM TO TO TO TO,
           HI_OK FROM_OK TO_OK TO_OK TO_OK "452 4.5.3 too many recipients\r\n");
    STORES(HI FROM TO "RCPT TO:<nobody@e>\r\nRCPT TO:<@x:\"q q\"@e>\r\nDATA\r\nx\r\n.\r\n",
           HI_OK FROM_OK TO_OK "550 5.1.1 no such mailbox\r\n" TO_OK GO TAKEN,
           "a@b.c|d@e.f,\"q q\"@e|x\r\n|");
}

static void bounds_paths(void) {
    setup();
    char script[1024], x[400];
    memset(x, 'x', sizeof x);
#define TRY(expected, ...)                                                                         \
    do {                                                                                           \
        int size = snprintf(script, sizeof script, HI __VA_ARGS__);                                \
        expect_n(script, (size_t)size, NULL, HI_OK expected, "", __LINE__);                        \
    } while (0)
    TRY(FROM_OK, "MAIL FROM:<%.64s@b>\r\n", x);
    TRY("501 5.1.7 path is too long\r\n", "MAIL FROM:<%.65s@b>\r\n", x);
    TRY(FROM_OK, "MAIL FROM:<a@%.63s>\r\n", x);
    TRY(BAD_FROM, "MAIL FROM:<a@%.64s>\r\n", x);
    TRY(FROM_OK, "MAIL FROM:<%.61s@%.63s.%.63s.%.63s>\r\n", x, x, x, x);
    TRY("501 5.1.7 path is too long\r\n", "MAIL FROM:<%.63s@%.63s.%.63s.%.63s>\r\n", x, x, x, x);
    TRY("501 5.1.7 path is too long\r\n", "MAIL FROM:<%.300s>\r\n", x);
    TRY(FROM_OK "501 5.1.3 path is too long\r\n", FROM "RCPT TO:<%.65s@b>\r\n", x);
    TRY(FROM_OK "501 5.1.3 path is too long\r\n", FROM "RCPT TO:<%.300s@b>\r\n", x);
}

static void reads_parameters(void) {
    setup();
#define NO_PARAM "555 5.5.4 parameter is not implemented\r\n"
#define NO_NUMBER "501 5.5.4 SIZE= needs a number\r\n"
#define NO_BODY "501 5.5.4 BODY= is 7BIT, 8BITMIME or BINARYMIME\r\n"
#define NO_READ "501 5.5.4 parameters cannot be read\r\n"
#define TWICE "501 5.5.4 parameter is repeated\r\n"
#define TOO_BIG "552 5.3.4 message is too big\r\n"
    EXPECT(HI "MAIL FROM:<a@b> SIZE=100 BODY=8BITMIME\r\n", HI_OK FROM_OK);
    EXPECT(HI "MAIL FROM:<a@b> body=7bit size=0\r\n", HI_OK FROM_OK);
    EXPECT(HI "MAIL FROM:<> SIZE=101\r\nMAIL FROM:<> SIZE=99999999999999999999\r\n",
           HI_OK TOO_BIG TOO_BIG);
    EXPECT(HI "MAIL FROM:<> SIZE\r\nMAIL FROM:<> SIZE=x\r\nMAIL FROM:<> SIZE=-1\r\n",
           HI_OK NO_NUMBER NO_NUMBER NO_NUMBER);
    EXPECT(HI "MAIL FROM:<> SIZE=000000000000000000001\r\n", HI_OK NO_NUMBER);
    EXPECT(HI "MAIL FROM:<> BODY\r\nMAIL FROM:<> BODY=9BIT\r\n", HI_OK NO_BODY NO_BODY);
    EXPECT(HI "MAIL FROM:<> SIZE=\r\nMAIL FROM:<>SIZE=1\r\nMAIL FROM:<>  SIZE=1\r\n"
              "MAIL FROM:<> =1\r\nMAIL FROM:<> SIZE=1=2\r\nMAIL FROM:<> SIZE=\377\r\n",
           HI_OK NO_READ NO_READ NO_READ NO_READ NO_READ NO_READ);
    EXPECT(HI "MAIL FROM:<> SIZE=1 SIZE=1\r\nMAIL FROM:<> BODY=7BIT BODY=7BIT\r\n",
           HI_OK TWICE TWICE);
    EXPECT(HI "MAIL FROM:<> X\r\nMAIL FROM:<> SIZE=1 AUTH=<>\r\n", HI_OK NO_PARAM NO_PARAM);
    EXPECT("HELO c\r\nMAIL FROM:<> SIZE=1\r\nMAIL FROM:<>\r\n", "250 mx.test\r\n" NO_PARAM FROM_OK);
}

/* ---- Data ---- */

static void takes_messages(void) {
    setup();
    STORES(ENVELOPE "Subject: x\r\n\r\nhello\r\n.\r\nQUIT\r\n", ENVELOPE_OK TAKEN BYE,
           "a@b.c|d@e.f|Subject: x\r\n\r\nhello\r\n|");
    STORES(ENVELOPE "..\r\n.x\r\n...y\r\n.\r\n", ENVELOPE_OK TAKEN,
           "a@b.c|d@e.f|.\r\nx\r\n..y\r\n|");
    STORES(ENVELOPE "a.\r\n..\r\n \r\n\r\n.\r\n", ENVELOPE_OK TAKEN,
           "a@b.c|d@e.f|a.\r\n.\r\n \r\n\r\n|");
    STORES(ENVELOPE ".\r\n", ENVELOPE_OK TAKEN, "a@b.c|d@e.f||");
    STORES(ENVELOPE "\303\244\377\t\177\r\n.\r\n", ENVELOPE_OK TAKEN,
           "a@b.c|d@e.f|\303\244\377\t\177\r\n|");
    STORES(ENVELOPE "1\r\n.\r\n" FROM TO "DATA\r\n2\r\n.\r\nNOOP\r\n" FROM TO
                    "DATA\r\n3\r\n.\r\nQUIT\r\n",
           ENVELOPE_OK TAKEN FROM_OK TO_OK GO TAKEN OK FROM_OK TO_OK GO TAKEN BYE,
           "a@b.c|d@e.f|1\r\n|a@b.c|d@e.f|2\r\n|a@b.c|d@e.f|3\r\n|");
    STORES("HELO c\r\nMAIL FROM:<>\r\n" TO "DATA\r\nx\r\n.\r\n",
           "250 mx.test\r\n" FROM_OK TO_OK GO TAKEN, "|d@e.f|x\r\n|");
}

static void keeps_only_whole_messages(void) {
    setup();
    EXPECT(ENVELOPE, ENVELOPE_OK);
    EXPECT(ENVELOPE "x\r\n", ENVELOPE_OK);
    EXPECT(ENVELOPE "x\r\n.", ENVELOPE_OK);
    EXPECT(ENVELOPE "x\r\n.\r", ENVELOPE_OK);
    EXPECT(ENVELOPE "QUIT\r\nRSET\r\n", ENVELOPE_OK);
}

/* Whatever looks like the end of a message to somebody else: it is none, and the message it is in
   is refused when its true end has come. What would be smuggled is never run as a command. */
static void is_not_fooled_by_ends(void) {
    setup();
    static const char *const ends[] = {
        "\n.\n",     "\r.\r",     "\n.\r\n",     "\r\n.\n",     "\r\n.\r",      "\r.\r\n",
        "\r\r\n.\n", "\n\r\n.\n", "\r\n.\r\r\n", "\r\n.\n\r\n", "\n\n.\n\n",    "\r\r.\r\r",
        "\n.\r",     "\r.\n",     "\r\n\n.\r\n", "\r\n\r.\r\n", "\r\n.\r.\r\n", "\n",
        "\r",        "\r\r\n",    "\n\r\n",
    };
    for (int i = 0; i < COUNT(ends); i++) {
        char script[512];
        int n = snprintf(script, sizeof script,
                         ENVELOPE "x%sMAIL FROM:<evil@x.y>\r\n" TO "DATA\r\nworse\r\n.\r\nNOOP\r\n",
                         ends[i]);
        expect_n(script, (size_t)n, NULL,
                 ENVELOPE_OK "554 5.6.0 message has a CR or LF that stands alone\r\n" OK, "",
                 __LINE__);
    }
    /* At the very beginning of the data, too. */
    EXPECT(ENVELOPE ".\n.\r\nNOOP\r\n.\r\nNOOP\r\n",
           ENVELOPE_OK "554 5.6.0 message has a CR or LF that stands alone\r\n" OK);
    EXPECT(ENVELOPE "\n.\r\nNOOP\r\n.\r\nNOOP\r\n",
           ENVELOPE_OK "554 5.6.0 message has a CR or LF that stands alone\r\n" OK);
    /* The dot is the first of a line, and alone on it. */
    STORES(ENVELOPE "x.\r\n. \r\n.\r\n", ENVELOPE_OK TAKEN, "a@b.c|d@e.f|x.\r\n \r\n|");
}

static void bounds_messages(void) {
    setup();
    char script[512], x[200];
    memset(x, 'x', sizeof x);
    int n = snprintf(script, sizeof script, ENVELOPE "%.97s\r\n.\r\n", x);
    char stored[256];
    snprintf(stored, sizeof stored, "a@b.c|d@e.f|%.97s\r\n|", x);
    expect_n(script, (size_t)n, NULL, ENVELOPE_OK TAKEN, stored, __LINE__);
    n = snprintf(script, sizeof script, ENVELOPE "..%.95s\r\n..\r\n.\r\n", x); /* 101 */
    expect_n(script, (size_t)n, NULL, ENVELOPE_OK TOO_BIG, "", __LINE__);
    n = snprintf(script, sizeof script, ENVELOPE "..%.94s\r\n..\r\n.\r\n", x); /* 100 */
    snprintf(stored, sizeof stored, "a@b.c|d@e.f|.%.94s\r\n.\r\n|", x);
    expect_n(script, (size_t)n, NULL, ENVELOPE_OK TAKEN, stored, __LINE__);
    n = snprintf(script, sizeof script, ENVELOPE "%.199s\r\nQUIT\r\n.\r\n" FROM, x);
    expect_n(script, (size_t)n, NULL, ENVELOPE_OK TOO_BIG FROM_OK, "", __LINE__);
    n = snprintf(script, sizeof script, ENVELOPE "%.199s\r\n\n\r\n.\r\n", x);
    expect_n(script, (size_t)n, NULL,
             ENVELOPE_OK "554 5.6.0 message has a CR or LF that stands alone\r\n", "", __LINE__);
}

/* Lines may be longer than the 1000 bytes of RFC 5321. */
static void takes_long_lines(void) {
    setup();
    config.max_message = 100000;
    size_t n = sizeof ENVELOPE - 1;
    static char script[8192], stored[8192];
    memset(script, 'x', 5000);
    memcpy(script, ENVELOPE, n);
    memcpy(script + n + 3000, "\r\n.\r\n", 5);
    size_t head = (size_t)snprintf(stored, sizeof stored, "a@b.c|d@e.f|");
    memset(stored + head, 'x', 3000);
    memcpy(stored + head + 3000, "\r\n|", 4);
    expect_n(script, n + 3005, NULL,
             "250-mx.test\r\n250-PIPELINING\r\n250-SIZE 100000\r\n250-8BITMIME\r\n" HI_END FROM_OK
                 TO_OK GO TAKEN,
             stored, __LINE__);
}

static void tells_the_stores_answer(void) {
    setup();
#define STORE(reply, out)                                                                          \
    expect_n(ENVELOPE ".\r\nNOOP\r\n", sizeof ENVELOPE ".\r\nNOOP\r\n" - 1, reply,                 \
             ENVELOPE_OK out, "a@b.c|d@e.f||", __LINE__)
    STORE("250 2.0.0 queued as 7", "250 2.0.0 queued as 7\r\n" OK);
    STORE("250 fine", "250 2.0.0 fine\r\n" OK);
    STORE("451 4.3.0 disk", "451 4.3.0 disk\r\n" OK);
    STORE("452 4.3.1 full", "452 4.3.1 full\r\n" OK);
    STORE("554 5.7.1 spam", "554 5.7.1 spam\r\n" OK);
    STORE("421 4.3.2 going down", "421 4.3.2 going down\r\n");
    STORE("rubbish", "451 4.3.0 local error\r\n" OK);
    STORE("250", "451 4.3.0 local error\r\n" OK);
}

static void traces(void) {
    setup();
    config.flags = 0;
#define RUN(script) run_pieces(&fixed, script, sizeof(script) - 1, 0, 0)
    rig_reset(AT_ONCE, NULL);
    now.peer = "192.0.2.7";
    RUN(ENVELOPE "x\r\n.\r\n");
    CHECK_STR(now.stored, "a@b.c|d@e.f|Received: from c ([192.0.2.7])\r\n\tby mx.test with ESMTP; "
                          "Thu, 29 Feb 2024 23:59:58 +0000\r\nx\r\n|");
    rig_reset(AT_ONCE, NULL);
    RUN("HELO c\r\n" FROM TO "DATA\r\n.\r\n");
    CHECK_STR(now.stored, "a@b.c|d@e.f|Received: from c\r\n\tby mx.test with SMTP; "
                          "Thu, 29 Feb 2024 23:59:58 +0000\r\n|");
}

/* What begins as a folded line is no more of the server's header. */
static void keeps_its_trace_apart(void) {
    static const struct {
        const char *script, *data;
    } mails[] = {{ENVELOPE " x\r\n.\r\n", "\r\n x\r\n|"},
                 {ENVELOPE "\tx\r\n.\r\n", "\r\n\tx\r\n|"},
                 {ENVELOPE ". x\r\n.\r\n", "\r\n x\r\n|"},
                 {ENVELOPE "\r\n x\r\n.\r\n", "\r\n x\r\n|"},
                 {ENVELOPE "x\r\n x\r\n.\r\n", "x\r\n x\r\n|"},
                 {HI FROM TO "BDAT 0\r\nBDAT 1\r\n BDAT 4 LAST\r\n x\r\n", "\r\n  x\r\n|"}};
    setup();
    config.flags = 0;
    for (int i = 0; i < COUNT(mails); i++)
        for (size_t piece = 0; piece < 4; piece++) {
            rig_reset(AT_ONCE, NULL);
            run_pieces(&fixed, mails[i].script, strlen(mails[i].script), 0, piece);
            const char *data = strstr(now.stored, "+0000\r\n");
            CHECK(data != NULL);
            CHECK_STR(data + 7, mails[i].data);
        }
    config.flags = BK_SMTP_NO_TRACE;
    rig_reset(AT_ONCE, NULL);
    RUN(ENVELOPE " x\r\n.\r\n");
    CHECK_STR(now.stored, "a@b.c|d@e.f| x\r\n|");
}

static void tells_the_date(void) {
    static const struct {
        int64_t seconds;
        const char *date;
    } dates[] = {{0, "; Thu, 1 Jan 1970 00:00:00 +0000\r\n"},
                 {951782400, "; Tue, 29 Feb 2000 00:00:00 +0000\r\n"},
                 {1709251200, "; Fri, 1 Mar 2024 00:00:00 +0000\r\n"},
                 {1735689599, "; Tue, 31 Dec 2024 23:59:59 +0000\r\n"},
                 {4107542400, "; Mon, 1 Mar 2100 00:00:00 +0000\r\n"}};
    int64_t before = wall;
    setup();
    config.flags = 0;
    for (int i = 0; i < COUNT(dates); i++) {
        wall = dates[i].seconds;
        rig_reset(AT_ONCE, NULL);
        RUN(ENVELOPE ".\r\n");
        CHECK(strstr(now.stored, dates[i].date) != NULL);
    }
    wall = before;
}

/* ---- STARTTLS ---- */

#define START "STARTTLS\r\n"
#define READY "220 2.0.0 Ready to start TLS\r\n"
#define HI_TLS                                                                                     \
    "250-mx.test\r\n250-PIPELINING\r\n250-SIZE 100\r\n250-8BITMIME\r\n250-STARTTLS\r\n" HI_END
#define NOT_GREETED "503 5.5.1 HELO or EHLO first\r\n"
#define NO_SENDER "503 5.5.1 MAIL first\r\n"
#define SECURE_YET "503 5.5.1 TLS is there already\r\n"
#define FOLLOWED "554 5.5.0 Nothing may follow STARTTLS\r\n"

/* As expect_n(), with TLS begun after the first n bytes. */
static void expect_sealed(const char *script, size_t n, size_t size, const char *out,
                          const char *stored, int line) {
    plain_size = n;
    expect_n(script, size, NULL, out, stored, line);
    plain_size = 0;
}

#define SEALS(plain, sealed, out, stored)                                                          \
    expect_sealed(plain sealed, sizeof(plain) - 1, sizeof(plain sealed) - 1, out, stored, __LINE__)

static void starts_tls(void) {
    setup();
    tls = OFFERED;
    EXPECT(HI, HI_TLS);
    EXPECT("HELO c\r\n", "250 mx.test\r\n");
    SEALS(HI START, "", HI_TLS READY SEALED, "");
    SEALS(HI "starttls  \r\n", HI "QUIT\r\n", HI_TLS READY SEALED HI_SEALED BYE, "");
    SEALS(START, HI FROM, READY SEALED HI_SEALED FROM_OK, ""); /* it is not asked to greet before */
    SEALS(HI "NOOP\r\n" FROM START, HI FROM TO "DATA\r\nx\r\n.\r\nQUIT\r\n",
          HI_TLS OK FROM_OK READY SEALED HI_SEALED FROM_OK TO_OK GO TAKEN BYE,
          "a@b.c|d@e.f|x\r\n|");
    SEALS(HI FROM TO "DATA\r\n1\r\n.\r\n" START, HI FROM TO "DATA\r\n2\r\n.\r\n",
          HI_TLS FROM_OK TO_OK GO TAKEN READY SEALED HI_SEALED FROM_OK TO_OK GO TAKEN,
          "a@b.c|d@e.f|1\r\n|a@b.c|d@e.f|2\r\n|");
    /* In a message it is text. */
    STORES(HI FROM TO "DATA\r\n" START ".\r\n", HI_TLS FROM_OK TO_OK GO TAKEN,
           "a@b.c|d@e.f|" START "|");
    CHECK(!now.secure);
}

/* RFC 3207, 4.2: under TLS everything begins anew. */
static void forgets_what_was_said_in_plain(void) {
    setup();
    tls = OFFERED;
    SEALS(HI START, FROM, HI_TLS READY SEALED NOT_GREETED, "");
    SEALS("HELO c\r\n" START, FROM, "250 mx.test\r\n" READY SEALED NOT_GREETED, "");
    SEALS(HI FROM START, TO FROM, HI_TLS FROM_OK READY SEALED NO_SENDER NOT_GREETED, "");
    SEALS(HI FROM TO START, "DATA\r\n" HI TO "DATA\r\n",
          HI_TLS FROM_OK TO_OK READY SEALED NO_SENDER HI_SEALED NO_SENDER NO_SENDER, "");
    SEALS(HI FROM START, HI FROM, HI_TLS FROM_OK READY SEALED HI_SEALED FROM_OK, "");
    SEALS(HI START, "HELO c\r\nMAIL FROM:<> SIZE=1\r\n",
          HI_TLS READY SEALED "250 mx.test\r\n" NO_PARAM, "");
    /* But not how often it was refused, nor how long it has been idle. */
    config.max_errors = 3;
    SEALS("X\r\nX\r\n" START, "X\r\n",
          UNKNOWN UNKNOWN READY SEALED "421 4.7.0 mx.test too many errors\r\n", "");
    setup();
    tls = OFFERED;
    config.max_idle = 3;
    SEALS("NOOP\r\nNOOP\r\n" START, "NOOP\r\n",
          OK OK READY SEALED "421 4.7.0 mx.test too many commands without mail\r\n", "");
}

static void refuses_starttls(void) {
    setup();
    EXPECT(HI START "STARTTLS x\r\n", HI_OK LACKS LACKS);
    tls = OFFERED;
    EXPECT(HI "STARTTLS x\r\n" FROM, HI_TLS "501 5.5.4 STARTTLS takes no argument\r\n" FROM_OK);
    EXPECT("STARTTLS\n\r\n", BARE);
    SEALS(HI START, START HI START "STARTTLS x\r\nNOOP\r\n",
          HI_TLS READY SEALED SECURE_YET HI_SEALED SECURE_YET SECURE_YET OK, "");
    tls = FROM_THE_START;
    EXPECT(HI START FROM, HI_SEALED SECURE_YET FROM_OK);
}

/* What was to be taken for something said under TLS; `cut` is where STARTTLS ends. */
static void injects(const char *before, const char *after, size_t n, const char *out, int line) {
    char script[1024];
    size_t cut = strlen(before) + sizeof START - 1, size = cut + n;
    snprintf(script, sizeof script, "%s" START, before);
    memcpy(script + cut, after, n);
    want_stored[0] = '\0';
    plain_size = size + 1; /* none of it is sealed */
    for (int when = 0; when < ANSWERINGS; when++)
        for (size_t at = 0; at <= size + 1; at++) {
            bool bytewise = at > size, together = !bytewise && at != cut;
            rig_reset((answering)when, NULL);
            run_pieces(&fixed, script, size, at, bytewise);
            snprintf(want_out, sizeof want_out, "220 mx.test ESMTP t\r\n%s%s", out,
                     together ? FOLLOWED : READY SEALED);
            CHECK(now.closed || !together);
            if (!same(bytewise ? "bytewise" : "once", at, when)) {
                printf("# … in the injection of line %d\n", line);
                return;
            }
        }
    plain_size = 0;
}

#define INJECTS(before, after, out) injects(before, after, sizeof(after) - 1, out, __LINE__)

/* RFC 3207, 4 and 6. What comes with STARTTLS is the end of the connection; what comes later is for
   TLS, to which it makes no sense. Nowhere is it a command. */
static void takes_nothing_slipped_in(void) {
    setup();
    tls = OFFERED;
    INJECTS("", "NOOP\r\n", "");
    INJECTS(HI, HI FROM TO "DATA\r\nworse\r\n.\r\n", HI_TLS);
    INJECTS(HI FROM TO, "DATA\r\nworse\r\n.\r\n", HI_TLS FROM_OK TO_OK);
    INJECTS(HI, START, HI_TLS);
    INJECTS(HI, "Q", HI_TLS);
    INJECTS(HI, "\r\n", HI_TLS);
    INJECTS(HI, "\n", HI_TLS);
    INJECTS(HI, "\0", HI_TLS);
    INJECTS(HI, "\26\3\1\2\0", HI_TLS); /* a client that does not wait for its answer */
}

/* What is held has been received before TLS, in however many pieces. */
static void takes_nothing_held(void) {
    for (int by_store = 0; by_store < 2; by_store++) {
        bk_machine *m;
        setup();
        tls = OFFERED;
        rig_reset(AT_LAST, NULL);
        CHECK_INT(bk_smtp_new(&config, &fixed, &m), 0);
        CHECK_INT(bk_machine_start(m, &rig_ops, &now), 0);
        CHECK_INT(bk_machine_feed(m, ENVELOPE, sizeof ENVELOPE - 1), 0);
        if (!by_store)
            bk_machine_block(m, 1);
        CHECK_INT(bk_machine_feed(m, ".\r\n", 3), 0);
        CHECK_INT(bk_machine_feed(m, START, sizeof START - 1), 0);
        CHECK_INT(bk_machine_feed(m, "NOOP\r\n", 6), 0);
        bk_machine_block(m, 0);
        answer_owed();
        CHECK_STR(now.out, "220 mx.test ESMTP t\r\n" HI_TLS FROM_OK TO_OK GO TAKEN FOLLOWED);
        CHECK(now.closed && !now.secure);
        CHECK_INT(now.why, 0);
        bk_machine_free(m);
    }
}

static void starts_tls_with_a_full_queue(void) {
    bk_machine *m;
    setup();
    tls = OFFERED;
    rig_reset(AT_ONCE, NULL);
    CHECK_INT(bk_smtp_new(&config, &fixed, &m), 0);
    CHECK_INT(bk_machine_start(m, &rig_ops, &now), 0);
    CHECK_INT(bk_machine_feed(m, HI, sizeof HI - 1), 0);
    CHECK_STR(bk_smtp_helo((bk_smtp_session *)m), "c");
    now.fills = true;
    CHECK_INT(bk_machine_feed(m, START, sizeof START - 1), 0);
    CHECK(now.secure && !bk_machine_wants(m));
    CHECK_STR(bk_smtp_helo((bk_smtp_session *)m), "");
    CHECK_INT(bk_machine_feed(m, HI FROM, sizeof HI FROM - 1), 0);
    CHECK_STR(now.out, "220 mx.test ESMTP t\r\n" HI_TLS READY SEALED);
    bk_machine_block(m, 0);
    CHECK_STR(now.out, "220 mx.test ESMTP t\r\n" HI_TLS READY SEALED HI_SEALED);
    bk_machine_block(m, 0);
    CHECK_STR(now.out, "220 mx.test ESMTP t\r\n" HI_TLS READY SEALED HI_SEALED FROM_OK);
    bk_machine_free(m);
}

/* 220 is not said in vain: who has heard it cannot be told anything else. */
static void tells_when_tls_cannot_start(void) {
    setup();
    tls = FAILS;
#define NO_TLS_NOW "454 4.7.0 TLS is not available due to temporary reason\r\n"
    EXPECT(HI FROM START, HI_TLS FROM_OK NO_TLS_NOW);
    bk_machine *mail;
    rig_reset(AT_ONCE, NULL);
    CHECK_INT(bk_smtp_new(&config, &fixed, &mail), 0);
    CHECK_INT(bk_machine_start(mail, &rig_ops, &now), 0);
    CHECK_INT(bk_machine_feed(mail, HI FROM START, sizeof HI FROM START - 1), 0);
    CHECK_INT(bk_machine_feed(mail, TO, sizeof TO - 1), 0);
    CHECK_STR(now.out, "220 mx.test ESMTP t\r\n" HI_TLS FROM_OK NO_TLS_NOW TO_OK);
    bk_machine_free(mail);
    setup();
    tls = OFFERED;
    bk_machine *m;
    rig_reset(AT_ONCE, NULL);
    CHECK_INT(bk_smtp_new(&config, &fixed, &m), 0);
    CHECK_INT(bk_machine_start(m, &rig_ops, &now), 0);
    now.refuses = true; /* … and who has not */
    CHECK_INT(bk_machine_feed(m, START, sizeof START - 1), 0);
    CHECK(now.closed && !now.secure);
    CHECK_INT(now.why, -ENOMEM);
    bk_machine_free(m);
}

/* Tables without one or both of the functions. */
static void needs_a_runner_for_tls(void) {
    bk_runner_ops some = rig_ops;
    setup();
    tls = OFFERED;
    runner = &some;
    some.size = offsetof(bk_runner_ops, start_tls);
    EXPECT(HI START, HI_OK LACKS);
    some.size = offsetof(bk_runner_ops, secure);
    EXPECT(HI START, HI_OK LACKS);
    some.size = sizeof some;
    some.start_tls = NULL;
    EXPECT(HI START, HI_OK LACKS);
    tls = FROM_THE_START;
    EXPECT(HI START, HI_SEALED SECURE_YET);
    runner = &rig_ops;
}

static bool traced(const char *script, size_t n, size_t sealed, const char *what) {
    rig_reset(AT_ONCE, NULL);
    plain_size = n - sealed;
    run_pieces(&fixed, script, n, 0, 0);
    plain_size = 0;
    return strstr(now.stored, what) != NULL;
}

/* RFC 3848. */
static void traces_tls(void) {
    static const char mail[] = ENVELOPE ".\r\n", old[] = "HELO c\r\n" FROM TO "DATA\r\n.\r\n";
    static const char upgraded[] = HI START ENVELOPE ".\r\n";
    setup();
    config.flags = 0;
    CHECK(traced(mail, sizeof mail - 1, sizeof mail - 1, " with ESMTP; "));
    tls = OFFERED;
    CHECK(traced(mail, sizeof mail - 1, sizeof mail - 1, " with ESMTP; "));
    CHECK(traced(upgraded, sizeof upgraded - 1, sizeof mail - 1, " with ESMTPS; "));
    tls = FROM_THE_START;
    CHECK(traced(mail, sizeof mail - 1, sizeof mail - 1, " with ESMTPS; "));
    CHECK(traced(old, sizeof old - 1, sizeof old - 1, " with SMTP; "));
}

/* ---- Limits of a session ---- */

static void ends_after_errors(void) {
    setup();
    config.max_errors = 3;
    EXPECT("X\r\nX\r\nX\r\nNOOP\r\n", UNKNOWN UNKNOWN "421 4.7.0 mx.test too many errors\r\n");
    EXPECT("NOOP\n\r\nNOOP\n\r\nNOOP\n\r\nNOOP\r\n",
           BARE BARE "421 4.7.0 mx.test too many errors\r\n");
    STORES(HI "X\r\nX\r\n" FROM TO "DATA\r\n.\r\nX\r\nX\r\n",
           HI_OK UNKNOWN UNKNOWN FROM_OK TO_OK GO TAKEN UNKNOWN UNKNOWN, "a@b.c|d@e.f||");
}

static void ends_after_idle_commands(void) {
    setup();
    config.max_idle = 3;
    EXPECT("NOOP\r\nRSET\r\nVRFY x\r\nNOOP\r\nNOOP\r\n",
           OK OK "252 2.5.0 cannot verify, send mail and see\r\n"
                 "421 4.7.0 mx.test too many commands without mail\r\n");
    STORES(ENVELOPE ".\r\nNOOP\r\nNOOP\r\nNOOP\r\nNOOP\r\n",
           ENVELOPE_OK TAKEN OK OK OK "421 4.7.0 mx.test too many commands without mail\r\n",
           "a@b.c|d@e.f||");
}

/* Of a message that will be refused nothing is kept, however much of it comes. */
static void drops_refused_messages(void) {
    static const char *const starts[] = {"x\n", "x\ry", ".\n", ""};
    static char much[65536];
    static const char end[] = "\r\n.\r\nQUIT\r\n";
    memset(much, 'x', sizeof much);
    for (int i = 0; i < COUNT(starts); i++) {
        faults_report report;
        bk_machine *m;
        setup();
        config.max_message = 1 << 20;
        faults_open(&world, &fixed);
        rig_reset(AT_ONCE, NULL);
        CHECK_INT(bk_smtp_new(&config, faults_os(&world), &m), 0);
        CHECK_INT(bk_machine_start(m, &rig_ops, &now), 0);
        CHECK_INT(bk_machine_feed(m, ENVELOPE, sizeof ENVELOPE - 1), 0);
        CHECK_INT(bk_machine_feed(m, starts[i], strlen(starts[i])), 0);
        for (int k = 0; k < (*starts[i] ? 10 : 20); k++)
            CHECK_INT(bk_machine_feed(m, much, sizeof much), 0);
        faults_leaks(&world, &report);
        CHECK(report.bytes < 4096);
        CHECK_INT(bk_machine_feed(m, end, sizeof end - 1), 0);
        CHECK(strstr(now.out, *starts[i] ? "\r\n554 5.6.0 " : "\r\n552 5.3.4 ") != NULL);
        CHECK(now.closed && now.stored_size == 0);
        bk_machine_free(m);
        CHECK_INT(faults_leaks(&world, NULL), 0);
        faults_close(&world);
    }
}

/* ---- When the connection goes ---- */

static void drops_late_answers(void) {
    setup();
    faults_open(&world, &fixed);
    rig_reset(AT_LAST, NULL);
    bk_machine *m;
    CHECK_INT(bk_smtp_new(&config, faults_os(&world), &m), 0);
    CHECK_INT(bk_machine_start(m, &rig_ops, &now), 0);
    CHECK_INT(bk_machine_feed(m, ENVELOPE ".\r\nNOOP\r\n", sizeof ENVELOPE ".\r\nNOOP\r\n" - 1), 0);
    CHECK(!bk_machine_wants(m));
    CHECK(now.owed != NULL);
    size_t before = now.out_size;
    bk_machine_free(m);
    CHECK(faults_leaks(&world, NULL) > 0); /* the session waits for its answer */
    answer_owed();
    CHECK_INT(now.out_size, before);
    CHECK_INT(faults_leaks(&world, NULL), 0);
    faults_close(&world);
}

static void waits_for_the_answer(void) {
    setup();
    rig_reset(AT_LAST, NULL);
    bk_machine *m;
    CHECK_INT(bk_smtp_new(&config, &fixed, &m), 0);
    CHECK_INT(bk_machine_start(m, &rig_ops, &now), 0);
    CHECK(bk_machine_wants(m));
    CHECK_INT(bk_machine_feed(m, ENVELOPE ".\r\nNOOP\r\n", sizeof ENVELOPE ".\r\nNOOP\r\n" - 1), 0);
    CHECK_INT(bk_machine_feed(m, "QUIT\r\n", 6), 0);
    CHECK_STR(now.out, "220 mx.test ESMTP t\r\n" ENVELOPE_OK);
    CHECK(!bk_machine_wants(m));
    answer_owed();
    CHECK_STR(now.out, "220 mx.test ESMTP t\r\n" ENVELOPE_OK TAKEN OK BYE);
    CHECK(now.closed && now.why == 0);
    bk_machine_free(m);
}

/* A runner whose queue is full is sent no more replies than those of one command. */
static void respects_a_full_queue(void) {
    setup();
    rig_reset(AT_ONCE, NULL);
    bk_machine *m;
    CHECK_INT(bk_smtp_new(&config, &fixed, &m), 0);
    CHECK_INT(bk_machine_start(m, &rig_ops, &now), 0);
    bk_machine_block(m, 1);
    CHECK_INT(bk_machine_feed(m, "NOOP\r\nQUIT\r\n", 12), 0);
    CHECK_STR(now.out, "220 mx.test ESMTP t\r\n");
    bk_machine_block(m, 0);
    CHECK_STR(now.out, "220 mx.test ESMTP t\r\n" OK BYE);
    bk_machine_free(m);
}

static void ends_when_it_cannot_send(void) {
    setup();
    rig_reset(AT_ONCE, NULL);
    bk_machine *m;
    CHECK_INT(bk_smtp_new(&config, &fixed, &m), 0);
    CHECK_INT(bk_machine_start(m, &rig_ops, &now), 0);
    now.refuses = true;
    CHECK_INT(bk_machine_feed(m, "NOOP\r\nNOOP\r\n", 12), 0);
    CHECK(now.closed);
    CHECK_INT(now.why, -ENOMEM);
    bk_machine_free(m);
}

/* ---- Without memory ---- */

static size_t count(const char *text, const char *what) {
    size_t found = 0;
    for (; (text = strstr(text, what)) != NULL; text += strlen(what))
        found++;
    return found;
}

/* Each allocation in turn: nothing is lost, nothing is acknowledged that was not stored. */
static void survives_without_memory(void) {
    static const char script[] =
        ENVELOPE "a message of some length, so that its buffer has to grow\r\n.\r\n" FROM TO TO TO
                 "RCPT TO:<g@h.i>\r\nDATA\r\nsecond\r\n.\r\nNOOP\r\nQUIT\r\n";
    setup();
    config.flags = 0;
    config.max_recipients = 100;
    faults_open(&world, &fixed);
    for (size_t step = 0; step < 8; step++)
        for (int when = 0; when < ANSWERINGS; when++)
            for (long n = 1;; n++) {
                faults_arm(&world, FAULTS_NO_MEMORY, n);
                rig_reset((answering)when, NULL);
                run_pieces(faults_os(&world), script, sizeof script - 1, 0, step);
                CHECK_INT(faults_leaks(&world, NULL), 0);
                if (faults_disarm(&world) < n)
                    break;
                CHECK_INT(count(now.out, TAKEN) <= count(now.stored, "|Received:"), 1);
            }
    CHECK_INT(count(now.out, TAKEN), 2);
    faults_close(&world);
}

/* The same with TLS in the middle: never is something taken for sealed that was not. */
static void starts_tls_without_memory(void) {
    static const char plain[] = HI FROM TO "DATA\r\n1\r\n.\r\n" FROM START;
    static const char script[] = HI FROM TO "DATA\r\n1\r\n.\r\n" FROM START ENVELOPE "2\r\n.\r\n";
    setup();
    tls = OFFERED;
    config.flags = 0;
    plain_size = sizeof plain - 1;
    faults_open(&world, &fixed);
    for (size_t step = 0; step < 8; step++)
        for (int when = 0; when < ANSWERINGS; when++)
            for (long n = 1;; n++) {
                faults_arm(&world, FAULTS_NO_MEMORY, n);
                rig_reset((answering)when, NULL);
                run_pieces(faults_os(&world), script, sizeof script - 1, 0, step);
                CHECK_INT(faults_leaks(&world, NULL), 0);
                if (faults_disarm(&world) < n)
                    break;
                CHECK_INT(count(now.out, SEALED) <= count(now.out, READY), 1);
                CHECK_INT(count(now.stored, " ESMTPS;") <= count(now.out, SEALED), 1);
            }
    CHECK_INT(count(now.out, TAKEN), 2);
    CHECK_INT(count(now.stored, " ESMTPS;"), 1);
    plain_size = 0;
    faults_close(&world);
}

static void checks_its_configuration(void) {
    bk_machine *m = NULL;
    bk_os *os = &fixed;
    setup();
    CHECK_INT(bk_smtp_new(NULL, os, &m), -EINVAL);
    CHECK_INT(bk_smtp_new(&config, NULL, &m), -EINVAL);
    CHECK_INT(bk_smtp_new(&config, os, NULL), -EINVAL);
    config.message = NULL;
    CHECK_INT(bk_smtp_new(&config, os, &m), -EINVAL);
    setup();
    static const char *const bad[] = {"", "a b", "a\r\nb", "-", "[x", "a..b"};
    for (int i = 0; i < COUNT(bad); i++) {
        config.hostname = bad[i];
        CHECK_INT(bk_smtp_new(&config, os, &m), -EINVAL);
    }
    setup();
    config.software = "a\r\n250 ok";
    CHECK_INT(bk_smtp_new(&config, os, &m), -EINVAL);
    CHECK(m == NULL);
}

static int64_t fixed_wall(bk_os *os) {
    (void)os;
    return wall * BK_SECOND;
}

int main(int argc, char **argv) {
    static const check_case cases[] = {
        CASE(greets),
        CASE(has_an_order),
        CASE(knows_its_commands),
        CASE(bounds_commands),
        CASE(drops_endless_commands),
        CASE(needs_true_line_ends),
        CASE(reads_senders),
        CASE(reads_recipients),
        CASE(bounds_paths),
        CASE(reads_parameters),
        CASE(takes_messages),
        CASE(keeps_only_whole_messages),
        CASE(is_not_fooled_by_ends),
        CASE(bounds_messages),
        CASE(takes_long_lines),
        CASE(tells_the_stores_answer),
        CASE(traces),
        CASE(keeps_its_trace_apart),
        CASE(tells_the_date),
        CASE(starts_tls),
        CASE(forgets_what_was_said_in_plain),
        CASE(refuses_starttls),
        CASE(takes_nothing_slipped_in),
        CASE(takes_nothing_held),
        CASE(starts_tls_with_a_full_queue),
        CASE(tells_when_tls_cannot_start),
        CASE(needs_a_runner_for_tls),
        CASE(traces_tls),
        CASE(ends_after_errors),
        CASE(ends_after_idle_commands),
        CASE(drops_refused_messages),
        CASE(drops_late_answers),
        CASE(waits_for_the_answer),
        CASE(respects_a_full_queue),
        CASE(ends_when_it_cannot_send),
        CASE(survives_without_memory),
        CASE(starts_tls_without_memory),
        CASE(checks_its_configuration),
    };
    fixed = *bk_os_default();
    fixed.wall = fixed_wall;
    return check_main(argc, argv, cases, COUNT(cases));
}
