/*
 * test_smtp_client.c: the SMTP client as a machine, in memory: dialogues with a server that is a
 * script, in every cutting and with a queue that is full after each word; without memory; and with
 * our own server, machine to machine, with each extension on and off.
 */
#include <becket-smtp.h>

#include "core/os/os.h"
#include "core/protocol/base64.h"
#include "core/protocol/limits.h"
#include "core/protocol/scram.h"
#include "core/protocol/smtp_client.h"
#include "tests/c/check.h"
#include "tests/c/faults.h"

enum { ROOM = 1 << 17 };

/* ---- The rig: a runner in memory, which keeps what was said and what was told ---- */

typedef struct rig {
    char out[ROOM], told[ROOM];
    size_t out_size, told_size;
    bk_smtp_client *client;
    bool closed, secure, fills, full;
    unsigned timeout;
    int why;
    size_t held; /* what was given by reference, and not released: at most so much at once */
} rig;

static enum { NO_TLS, OFFERED, FROM_THE_START, FAILS } tls;
static rig now;
static bk_os fixed; /* the system's, with chance that is none */
static faults world;
static bk_smtp_client_config config;

static void append(char *room, size_t *used, const void *data, size_t n) {
    if (n > ROOM - 1 - *used)
        n = ROOM - 1 - *used;
    if (n > 0)
        memcpy(room + *used, data, n);
    *used += n;
    room[*used] = '\0';
}

static void tell(const char *text) {
    append(now.told, &now.told_size, text, strlen(text));
}

static int rig_send(bk_machine *m, const void *data, size_t n, bk_release release, void *arg) {
    rig *r = m->runner_state;
    CHECK(!r->closed);
    append(r->out, &r->out_size, data, n);
    if (release != BK_COPY)
        release(arg);
    if (r->fills) {
        r->full = true;
        bk_machine_block(m, 1);
    }
    return 0;
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

static int rig_start_tls(bk_machine *m, const void *last, size_t n) {
    rig *r = m->runner_state;
    CHECK(!r->closed && !r->secure && last == NULL && n == 0);
    if (tls == FAILS)
        return -ENOMEM;
    r->secure = true;
    append(r->out, &r->out_size, "<TLS>\r\n", 7);
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
    .start_tls = rig_start_tls,
    .secure = rig_secure,
};

/* ---- What the client tells ---- */

static void heard_ready(void *context, bk_smtp_client *client) {
    (void)context;
    CHECK(client == now.client);
    tell("ready\n");
}

static const char *name_of(int why) {
    static const struct {
        int why;
        const char *name;
    } names[] = {{0, "well"},
                 {BK_ETRUNCATED, "truncated"},
                 {-ECONNREFUSED, "refused"},
                 {-ECONNRESET, "reset"},
                 {-EACCES, "login"},
                 {-EPROTONOSUPPORT, "no TLS"},
                 {-ENOTSUP, "no AUTH"},
                 {-EPERM, "in clear"},
                 {-EPROTO, "nonsense"},
                 {-ENOMEM, "memory"}};
    for (int i = 0; i < COUNT(names); i++)
        if (names[i].why == why)
            return names[i].name;
    return bk_strerror(why);
}

static void heard_closed(void *context, bk_smtp_client *client, int why, const char *reply) {
    char text[1024];
    (void)context;
    CHECK(client == now.client);
    snprintf(text, sizeof text, "closed %s%s%.900s\n", name_of(why), reply != NULL ? ": " : "",
             reply != NULL ? reply : "");
    tell(text);
}

static bool tells_stage;
static bk_smtp_message *open_message; /* step by step: until it is told of */

static void heard_sent(void *arg, bk_smtp_client *client, const bk_smtp_message *message,
                       const bk_smtp_result *result) {
    int accepted = 0;
    CHECK(client == now.client && arg == &now && result->size == sizeof *result);
    if (message == open_message)
        open_message = NULL;
    CHECK_INT(result->reply_count, message->recipient_count);
    tell(message->sender);
    if (tells_stage) {
        tell(" ");
        tell(result->decided != NULL ? result->decided : "-");
    }
    for (size_t i = 0; i < result->reply_count; i++) {
        tell(i == 0 ? ": " : " | ");
        tell(result->replies[i]);
        accepted += result->replies[i][0] == '2';
    }
    CHECK_INT(result->accepted, accepted);
    tell("\n");
}

static int no_chance(bk_os *os, void *room, size_t n) {
    (void)os;
    memset(room, 0, n);
    return 0;
}

static void setup(void) {
    tls = NO_TLS;
    fixed = *bk_os_default();
    fixed.random = no_chance;
    config = (bk_smtp_client_config){
        .size = sizeof config, .hostname = "c", .ready = heard_ready, .closed = heard_closed};
}

/* ---- Messages: "sender|to,to|data" ---- */

static bk_smtp_message *message_of(bk_os *os, const char *spec) {
    char text[4096];
    bk_smtp_message *m = NULL;
    snprintf(text, sizeof text, "%s", spec);
    char *to = strchr(text, '|'), *data = strchr(to + 1, '|');
    *to++ = '\0';
    *data++ = '\0';
    if (bk_smtp_message_new(os, text, &m) < 0)
        return NULL;
    int r = 0;
    for (char *next; to != NULL && r == 0; to = next) {
        next = strchr(to, ',');
        if (next != NULL)
            *next++ = '\0';
        r = bk_smtp_message_to(m, to);
    }
    if (r == 0)
        r = bk_smtp_message_add(m, data, strlen(data));
    if (r == 0)
        return m;
    bk_smtp_message_free(m);
    return NULL;
}

/* What a case has of its messages beside addresses and data. */
static void (*dress)(bk_smtp_message *m, int number);

static int queue_of(bk_os *os, const char *const *specs) {
    int queued = 0;
    for (int i = 0; specs[i] != NULL; i++) {
        bk_smtp_message *m = message_of(os, specs[i]);
        if (m != NULL && dress != NULL)
            dress(m, i);
        if (m != NULL && bk_smtp_client_send(now.client, m, heard_sent, &now) < 0)
            bk_smtp_message_free(m);
        else
            queued += m != NULL;
    }
    return queued;
}

/* ---- Dialogues: lines of the server's ("S…"), of the client's ("C…"), and of its program's: quit
   ("Q"), a message step by step (begin, recipient, finish, drop: "B…", "R…", "F…", "D"); the
   server's end ("E") ---- */

static void drain(bk_machine *m) {
    for (int i = 0; now.full && !now.closed && i < 100000; i++) {
        now.full = false;
        bk_machine_block(m, 0);
    }
}

static bool trouble; /* memory may run out: what is said may differ */

/* What an answer leads to at once, from within it; NULL: nothing. */
static void (*answered_hook)(void);

static void heard_answered(void *arg, bk_smtp_client *client, const char *reply) {
    CHECK(client == now.client && arg == &now);
    tell("> ");
    tell(reply);
    tell("\n");
    if (answered_hook != NULL)
        answered_hook();
}

static void begin_one(bk_os *os, const char *sender) {
    bk_smtp_message *m = NULL;
    CHECK(open_message == NULL || trouble);
    if (open_message != NULL || bk_smtp_message_new(os, sender, &m) < 0)
        return;
    if (dress != NULL)
        dress(m, 0);
    open_message = m;
    if (bk_smtp_client_begin(now.client, m, heard_answered, heard_sent, &now) < 0) {
        bk_smtp_message_free(m);
        open_message = NULL;
    }
}

static void tell_failure(const char *what, int r) {
    if (r == 0)
        return;
    tell(what);
    tell(r == -EINVAL ? " invalid\n" : r == -EPIPE ? " too late\n" : " memory\n");
}

/* "address" or "address original": for who is told of failures. */
static void add_one(const char *text) {
    char address[200];
    snprintf(address, sizeof address, "%s", text);
    char *space = strchr(address, ' ');
    bk_smtp_recipient r = {.address = address, .notify = space ? BK_SMTP_NOTIFY_NEVER : 0};
    if (space != NULL) {
        *space = '\0';
        r.original = space + 1;
    }
    tell_failure("recipient", bk_smtp_client_recipient(now.client, &r));
}

static void finish_one(const char *data) {
    if (open_message != NULL && bk_smtp_message_add(open_message, data, strlen(data)) < 0)
        return;
    int r = bk_smtp_client_finish(now.client);
    tell_failure("finish", r);
    if (r == 0)
        open_message = NULL;
}

static void drop_it(void) {
    open_message = NULL;
    bk_smtp_client_drop(now.client);
}

static const char *program_block(bk_machine *m, bk_os *os, const char *at) {
    for (; *at != '\0' && strchr("QEBRFD", *at) != NULL; at += strcspn(at, "\n") + 1) {
        char text[200];
        snprintf(text, sizeof text, "%.*s", (int)strcspn(at + 1, "\n"), at + 1);
        if (*at == 'Q')
            bk_smtp_client_quit(now.client);
        else if (*at == 'E')
            bk_machine_end(m);
        else if (*at == 'B')
            begin_one(os, text);
        else if (*at == 'R')
            add_one(text);
        else if (*at == 'F')
            finish_one(text);
        else
            drop_it();
        drain(m);
    }
    return at;
}

/* What the server says in one go, up to where it waits. Returns what follows. */
static const char *server_block(const char *at, char *ret_block) {
    size_t used = 0;
    while (*at == 'S') {
        size_t n = strcspn(++at, "\n");
        memcpy(ret_block + used, at, n);
        used += n;
        memcpy(ret_block + used, "\r\n", 3);
        used += 2;
        at += n + 1;
    }
    ret_block[used] = '\0';
    return at;
}

static const char *client_block(const char *at, char *ret_block) {
    size_t used = 0;
    while (*at == 'C') {
        size_t n = strcspn(++at, "\n");
        memcpy(ret_block + used, at, n);
        used += n;
        memcpy(ret_block + used, "\r\n", 3);
        used += 2;
        at += n + 1;
    }
    ret_block[used] = '\0';
    return at;
}

/* The pieces end at `cut`, counted over all that the server says; or all are of one byte. */
static void feed_block(bk_machine *m, const char *block, size_t *said, size_t cut, bool bytewise) {
    size_t n = strlen(block), at = 0;
    bool plain = !now.secure;
    while (at < n && !now.closed) {
        size_t size = bytewise ? 1 : cut > *said && cut < *said + n - at ? cut - *said : n - at;
        char *piece = malloc(size); /* so that reading past its end is seen */
        memcpy(piece, block + at, size);
        CHECK_INT(bk_machine_feed(m, piece, size), 0);
        free(piece);
        drain(m);
        at += size;
        *said += size;
        if (plain && now.secure) /* the rest came in plain: TLS finds that it is no handshake */
            break;
    }
}

static void run_dialogue(bk_os *os, const char *const *specs, const char *dialogue, size_t cut,
                         bool bytewise) {
    static char block[ROOM], want[ROOM];
    bk_machine *m;
    size_t said = 0, heard = 0;
    bool fills = now.fills;
    now = (rig){.fills = fills};
    if (bk_smtp_client_new(&config, os, &m) < 0)
        return;
    now.client = bk_smtp_client_of(m);
    CHECK(now.client != NULL && bk_smtp_client_machine(now.client) == m);
    queue_of(os, specs);
    open_message = NULL;
    int r = bk_machine_start(m, &rig_ops, &now);
    for (const char *at = dialogue; *at != '\0' && r == 0;) {
        at = program_block(m, os, at);
        at = server_block(at, block);
        feed_block(m, block, &said, cut, bytewise);
        at = client_block(at, want);
        if (!trouble && strcmp(now.out + heard, want) != 0) {
            CHECK_STR(now.out + heard, want);
            break;
        }
        heard = now.out_size;
    }
    bk_machine_free(m);
}

static char want_told[ROOM];

static bool as_told(const char *how, size_t cut) {
    if (strcmp(now.told, want_told) == 0 && !check_failures)
        return true;
    printf("# %s, cut at %zu: told\n%s# not\n%s", how, cut, now.told, want_told);
    check_failures++;
    return false;
}

/* Each allocation fails, one after the other: each message is told of, or was not taken. */
static void without_memory(const char *const *specs, const char *dialogue) {
    trouble = true;
    for (long n = 1;; n++) {
        faults_open(&world, &fixed);
        faults_arm(&world, FAULTS_NO_MEMORY, n);
        run_dialogue(faults_os(&world), specs, dialogue, 0, false);
        long calls = faults_disarm(&world);
        CHECK_INT(faults_leaks(&world, NULL), 0);
        faults_close(&world);
        if (calls < n)
            break;
    }
    trouble = false;
}

static void expect_at(const char *const *specs, const char *dialogue, const char *told, int line) {
    size_t size = 0;
    int before = check_failures;
    check_failures = 0;
    snprintf(want_told, sizeof want_told, "%s", told);
    for (const char *at = dialogue; *at != '\0'; at++)
        size += 2;
    for (int fills = 0; fills < 2; fills++) {
        now.fills = fills;
        run_dialogue(&fixed, specs, dialogue, 0, true);
        bool same = as_told(fills ? "bytewise, full" : "bytewise", 0);
        for (size_t cut = 0; same && cut < size; cut++) {
            now.fills = fills;
            run_dialogue(&fixed, specs, dialogue, cut, false);
            same = as_told(fills ? "once, full" : "once", cut);
        }
    }
    now.fills = false;
    without_memory(specs, dialogue);
    if (check_failures)
        printf("# … in the dialogue of line %d\n", line);
    check_failures += before;
}

static const char *const none[] = {NULL};
static const char *const one[] = {"a@b|d@e|x\r\n", NULL};
static const char *const two[] = {"a@b|d@e|x\r\n", "f@g|h@i|y\r\n", NULL};
static const char *const three[] = {"a@b|d@e,n@e,m@e|x\r\n", NULL};

#define EXPECT(specs, dialogue, told) expect_at(specs, dialogue, told, __LINE__)

#define HI "S220 mx\nCEHLO c\n"
#define PLAIN HI "S250 mx\n"
#define PIPE HI "S250-mx\nS250 PIPELINING\n"
#define GROUP "CMAIL FROM:<a@b>\nCRCPT TO:<d@e>\nCDATA\n"
#define GROUP_OK "S250 s\nS250 r\nS354 go\n"
#define BODY "Cx\nC.\n"
#define LOST "451 4.4.2 the connection was lost"
#define ENDED(reply) "451 4.4.2 the connection ended: " reply
#define CUT "closed truncated\n"

/* ---- Greeting ---- */

static void greets(void) {
    setup();
    EXPECT(none, PLAIN, "ready\n" CUT);
    EXPECT(none, "", CUT);
    EXPECT(none, "E\n", CUT);
    EXPECT(none, PLAIN "E\n", "ready\n" CUT);
    EXPECT(none, "S220-mx\nS220-is here\nS220\nCEHLO c\nS250\n", "ready\n" CUT);
    EXPECT(none, "S554 go away\n", "closed refused: 554 go away\n");
    EXPECT(none, "S421-not\nS421 now\n", "closed refused: 421 not\nnow\n");
    EXPECT(one, "S450 not now\n", "a@b: " ENDED("450 not now") "\nclosed refused: 450 not now\n");
    EXPECT(none, "S354 what\n", "closed nonsense: 354 what\n");
    EXPECT(none, HI "S421 bye\n", "closed refused: 421 bye\n");
    EXPECT(none, HI "S450 no\n", "closed refused: 450 no\n");
    EXPECT(none, HI "S334 no\n", "closed nonsense: 334 no\n");
    EXPECT(none, HI "S502 what\nCHELO c\nS250 mx\n", "ready\n" CUT);
    EXPECT(none, HI "S550 what\nCHELO c\nS550 no\n", "closed refused: 550 no\n");
    EXPECT(none, HI "S502 what\nCHELO c\nS354 no\n", "closed nonsense: 354 no\n");
    EXPECT(none, "S220 mx\nCEHLO c\nQ\nS250 mx\nCQUIT\nS221 bye\n", "ready\nclosed well\n");
    EXPECT(none, PLAIN "Q\nCQUIT\nS221 bye\n", "ready\nclosed well\n");
    EXPECT(none, PLAIN "Q\nCQUIT\nE\n", "ready\nclosed well\n");
    EXPECT(none, PLAIN "Q\nCQUIT\nS421 bye\n", "ready\nclosed well\n");
    EXPECT(none, PLAIN "Q\nCQUIT\nSnonsense\n", "ready\nclosed well\n");
    config.flags = BK_SMTP_LMTP;
    EXPECT(none, "S220 mx\nCLHLO c\nS250 mx\n", "ready\n" CUT);
    EXPECT(none, "S220 mx\nCLHLO c\nS500 what\n", "closed refused: 500 what\n");
}

/* What is no reply, or was not asked for, ends the connection. */
static void trusts_no_server(void) {
    setup();
    static const char *const nonsense[] = {"",
                                           " ",
                                           "22",
                                           "220x",
                                           "120 mx",
                                           "620 mx",
                                           "260 mx",
                                           "2x0 mx",
                                           "22x mx",
                                           "hello",
                                           "220_mx",
                                           "\303\266\303\244\303\274",
                                           "220-a\n221 b",
                                           "220-a\n22",
                                           "220 a\rb",
                                           "220 a\r"};
    for (int i = 0; i < COUNT(nonsense); i++) {
        char dialogue[100] = "S";
        for (const char *c = nonsense[i]; *c != '\0'; c++)
            strncat(dialogue, *c == '\n' ? "\nS" : (char[2]){*c, '\0'}, 3);
        strcat(dialogue, "\n");
        EXPECT(none, dialogue, "closed nonsense\n");
    }
    EXPECT(none, "S220 mx\nS220 mx\nCEHLO c\n",
           "ready\n" CUT); /* out of step, but nobody can tell */
    EXPECT(none, PLAIN "S250 more\n", "ready\nclosed nonsense: 250 more\n");
    EXPECT(none, PLAIN "S421 idle\n", "ready\nclosed reset: 421 idle\n");
    EXPECT(none, "S550 a\001b\tc\177\n", "closed refused: 550 a?b?c?\n");
    EXPECT(none, "S550 \303\244\n", "closed refused: 550 \303\244\n");
}

static void bounds_replies(void) {
    setup();
    static char dialogue[40000];
    static const struct {
        int lines, size;
        const char *told;
    } cases[] = {{1, 2044, "truncated"}, {1, 2045, "nonsense"},  {128, 50, "truncated"},
                 {129, 50, "nonsense"},  {8, 2000, "truncated"}, {9, 2000, "nonsense"}};
    for (int i = 0; i < COUNT(cases); i++) {
        size_t n = 0;
        bk_machine *m;
        for (int line = 1; line <= cases[i].lines; line++) {
            n += (size_t)snprintf(dialogue + n, 8, "220%c", line < cases[i].lines ? '-' : ' ');
            memset(dialogue + n, 'x', (size_t)cases[i].size - 2);
            n += (size_t)cases[i].size - 2;
            memcpy(dialogue + n, "\r\n", 2);
            n += 2;
        }
        now = (rig){0};
        CHECK_INT(bk_smtp_client_new(&config, &fixed, &m), 0);
        now.client = bk_smtp_client_of(m);
        CHECK_INT(bk_machine_start(m, &rig_ops, &now), 0);
        for (size_t at = 0; at < n; at++)
            CHECK_INT(bk_machine_feed(m, dialogue + at, 1), 0);
        bk_machine_free(m);
        char want[64];
        snprintf(want, sizeof want, "closed %s\n", cases[i].told);
        CHECK_STR(now.told, want);
    }
}

/* ---- Messages ---- */

static void sends(void) {
    setup();
    EXPECT(one,
           PLAIN "CMAIL FROM:<a@b>\nS250 s\nCRCPT TO:<d@e>\nS250 r\nCDATA\nS354 go\n" BODY
                 "S250 2.0.0 taken\nQ\nCQUIT\nS221 bye\n",
           "ready\na@b: 250 2.0.0 taken\nclosed well\n");
    EXPECT(one, PIPE GROUP GROUP_OK BODY "S250 taken\n", "ready\na@b: 250 taken\n" CUT);
    EXPECT(two,
           PIPE GROUP GROUP_OK BODY "CMAIL FROM:<f@g>\nCRCPT TO:<h@i>\nCDATA\nS250 1\nS250 s\n"
                                    "S251 r\nS354 go\nCy\nC.\nQ\nS250-2\nS250 and out\nCQUIT\n",
           "ready\na@b: 250 1\nf@g: 250 2\nand out\nclosed well\n");
    EXPECT(two,
           PLAIN "CMAIL FROM:<a@b>\nS250 s\nCRCPT TO:<d@e>\nS250 r\nCDATA\nS354 go\n" BODY
                 "S250 1\nCMAIL FROM:<f@g>\nS250 s\nCRCPT TO:<h@i>\nS250 r\nCDATA\nS354 go\n"
                 "Cy\nC.\nS250 2\n",
           "ready\na@b: 250 1\nf@g: 250 2\n" CUT);
    static const char *const notice[] = {"|d@e|.\r\n..x\r\nno end.", NULL};
    EXPECT(notice,
           PIPE "CMAIL FROM:<>\nCRCPT TO:<d@e>\nCDATA\n" GROUP_OK "C..\nC...x\nCno end.\nC.\n"
                "S250 taken\n",
           "ready\n: 250 taken\n" CUT);
    static const char *const empty[] = {"a@b|d@e|", NULL};
    EXPECT(empty, PIPE GROUP GROUP_OK "C.\nS250 taken\n", "ready\na@b: 250 taken\n" CUT);
}

/* Each kind of reply at each stage. */
static void hears_refusals(void) {
    setup();
    /* MAIL */
    EXPECT(one, PLAIN "CMAIL FROM:<a@b>\nS550 no\n", "ready\na@b: 550 no\n" CUT);
    EXPECT(one, PLAIN "CMAIL FROM:<a@b>\nS452 full\n", "ready\na@b: 452 full\n" CUT);
    EXPECT(one, PLAIN "CMAIL FROM:<a@b>\nS354 go\n",
           "ready\na@b: " ENDED("354 go") "\nclosed nonsense: 354 go\n");
    EXPECT(one, PLAIN "CMAIL FROM:<a@b>\nS421 bye\n",
           "ready\na@b: " ENDED("421 bye") "\nclosed reset: 421 bye\n");
    EXPECT(three,
           PIPE "CMAIL FROM:<a@b>\nCRCPT TO:<d@e>\nCRCPT TO:<n@e>\nCRCPT TO:<m@e>\nCDATA\n"
                "S550 no\nS503 1\nS503 2\nS503 3\nS503 4\n",
           "ready\na@b: 550 no | 550 no | 550 no\n" CUT);
    /* RCPT */
    EXPECT(one, PLAIN "CMAIL FROM:<a@b>\nS250 s\nCRCPT TO:<d@e>\nS550 no\n",
           "ready\na@b: 550 no\n" CUT);
    EXPECT(one, PLAIN "CMAIL FROM:<a@b>\nS250 s\nCRCPT TO:<d@e>\nS354 no\n",
           "ready\na@b: " ENDED("354 no") "\nclosed nonsense: 354 no\n");
    EXPECT(three,
           PIPE "CMAIL FROM:<a@b>\nCRCPT TO:<d@e>\nCRCPT TO:<n@e>\nCRCPT TO:<m@e>\nCDATA\n"
                "S250 s\nS250 1\nS550 2\nS450 3\nS354 go\n" BODY "S250 taken\n",
           "ready\na@b: 250 taken | 550 2 | 450 3\n" CUT);
    EXPECT(
        three,
        PIPE "CMAIL FROM:<a@b>\nCRCPT TO:<d@e>\nCRCPT TO:<n@e>\nCRCPT TO:<m@e>\nCDATA\n"
             "S250 s\nS250 1\nS550 2\nS421 bye\n",
        "ready\na@b: " ENDED("421 bye") " | 550 2 | " ENDED("421 bye") "\nclosed reset: 421 bye\n");
    /* DATA */
    EXPECT(three,
           PIPE "CMAIL FROM:<a@b>\nCRCPT TO:<d@e>\nCRCPT TO:<n@e>\nCRCPT TO:<m@e>\nCDATA\n"
                "S250 s\nS250 1\nS550 2\nS250 3\nS451 full\n",
           "ready\na@b: 451 full | 550 2 | 451 full\n" CUT);
    EXPECT(one, PIPE GROUP "S250 s\nS550 r\nS554 nobody\n", "ready\na@b: 550 r\n" CUT);
    EXPECT(one, PIPE GROUP "S250 s\nS550 r\nS354 go\nC.\nS554 nothing\n",
           "ready\na@b: 550 r\n" CUT);
    EXPECT(one, PIPE GROUP "S250 s\nS550 r\nS354 go\nC.\nS250 how nice\n",
           "ready\na@b: 550 r\n" CUT);
    EXPECT(one, PIPE GROUP "S550 s\nS550 r\nS354 go\nC.\nS554 no\n", "ready\na@b: 550 s\n" CUT);
    EXPECT(one, PIPE GROUP "S250 s\nS250 r\nS250 odd\n",
           "ready\na@b: " ENDED("250 odd") "\nclosed nonsense: 250 odd\n");
    /* The end of the data */
    EXPECT(one, PIPE GROUP GROUP_OK BODY "S554 spam\n", "ready\na@b: 554 spam\n" CUT);
    EXPECT(one, PIPE GROUP GROUP_OK BODY "S452 full\n", "ready\na@b: 452 full\n" CUT);
    EXPECT(one, PIPE GROUP GROUP_OK BODY "S354 more\n",
           "ready\na@b: " ENDED("354 more") "\nclosed nonsense: 354 more\n");
    EXPECT(one, PIPE GROUP GROUP_OK BODY "S421 bye\n",
           "ready\na@b: " ENDED("421 bye") "\nclosed reset: 421 bye\n");
    EXPECT(two, PIPE GROUP GROUP_OK BODY "CMAIL FROM:<f@g>\nCRCPT TO:<h@i>\nCDATA\nE\n",
           "ready\na@b: " LOST "\nf@g: " LOST "\n" CUT);
}

static void tells_what_decided(void) {
    setup();
    tells_stage = true;
    EXPECT(one, PIPE GROUP "S550 s\nS503 r\nS503 d\n", "ready\na@b MAIL: 550 s\n" CUT);
    EXPECT(one, PIPE GROUP "S250 s\nS550 r\nS503 d\n", "ready\na@b RCPT: 550 r\n" CUT);
    EXPECT(one, PIPE GROUP "S250 s\nS250 r\nS451 d\n", "ready\na@b DATA: 451 d\n" CUT);
    EXPECT(one, PIPE GROUP GROUP_OK BODY "S554 e\n", "ready\na@b DATA: 554 e\n" CUT);
    EXPECT(one, PIPE GROUP GROUP_OK BODY "S250 e\n", "ready\na@b DATA: 250 e\n" CUT);
    EXPECT(one, PIPE GROUP GROUP_OK BODY, "ready\na@b -: " LOST "\n" CUT);
    EXPECT(one, "", "a@b -: " LOST "\n" CUT);
    tells_stage = false;
}

/* A transaction that came to nothing is cleared away before the next, and the queue goes on. */
static void goes_on_after_refusals(void) {
    setup();
#define SECOND_OK "S250 s\nS250 r\nS354 go\nCy\nC.\nS250 taken\n"
    EXPECT(two,
           PIPE GROUP "S250 s\nS250 r\nS451 full\nCRSET\nCMAIL FROM:<f@g>\nCRCPT TO:<h@i>\n"
                      "CDATA\nS250 ok\n" SECOND_OK,
           "ready\na@b: 451 full\nf@g: 250 taken\n" CUT);
    EXPECT(two,
           PIPE GROUP "S250 s\nS550 r\nS554 no\nCRSET\nCMAIL FROM:<f@g>\nCRCPT TO:<h@i>\n"
                      "CDATA\nS250 ok\n" SECOND_OK,
           "ready\na@b: 550 r\nf@g: 250 taken\n" CUT);
    EXPECT(two,
           PIPE GROUP
           "S550 s\nS503 r\nS503 no\nCMAIL FROM:<f@g>\nCRCPT TO:<h@i>\nCDATA\n" SECOND_OK,
           "ready\na@b: 550 s\nf@g: 250 taken\n" CUT);
    EXPECT(two,
           PIPE GROUP "S250 s\nS550 r\nS354 go\nC.\nCMAIL FROM:<f@g>\nCRCPT TO:<h@i>\nCDATA\n"
                      "S554 nothing\n" SECOND_OK,
           "ready\na@b: 550 r\nf@g: 250 taken\n" CUT);
    EXPECT(two,
           PIPE GROUP "S250 s\nS250 r\nS451 full\nCRSET\nCMAIL FROM:<f@g>\nCRCPT TO:<h@i>\n"
                      "CDATA\nS500 what\n",
           "ready\na@b: 451 full\nf@g: " ENDED("500 what") "\nclosed nonsense: 500 what\n");
    EXPECT(two,
           PLAIN "CMAIL FROM:<a@b>\nS250 s\nCRCPT TO:<d@e>\nS550 no\nCRSET\nCMAIL FROM:<f@g>\n",
           "ready\na@b: 550 no\nf@g: " LOST "\n" CUT);
}

static void waits_as_told(void) {
    setup();
    static const struct {
        const char *dialogue;
        unsigned seconds;
    } cases[] = {{"", 300},
                 {HI, 300},
                 {PLAIN "CMAIL FROM:<a@b>\n", 300},
                 {PLAIN "CMAIL FROM:<a@b>\nS250 s\nCRCPT TO:<d@e>\n", 300},
                 {PLAIN "CMAIL FROM:<a@b>\nS250 s\nCRCPT TO:<d@e>\nS250 r\nCDATA\n", 120},
                 {PIPE GROUP GROUP_OK BODY, 600},
                 {PIPE GROUP GROUP_OK BODY "S250 taken\n", 0},
                 {PIPE GROUP GROUP_OK BODY "S250 taken\nBf@g\nCMAIL FROM:<f@g>\n", 300},
                 {PIPE GROUP GROUP_OK BODY "S250 taken\nBf@g\nCMAIL FROM:<f@g>\nS250 s\n", 0}};
    for (int i = 0; i < COUNT(cases); i++)
        for (unsigned own = 0; own < 2; own++) {
            config.timeout = own * 7;
            run_dialogue(&fixed, one, cases[i].dialogue, 0, false);
            CHECK_INT(now.timeout, own && cases[i].seconds ? 7 : cases[i].seconds);
        }
    /* While data is being sent: with a queue that stays full. */
    bk_machine *m;
    config.timeout = 0;
    now = (rig){0};
    CHECK_INT(bk_smtp_client_new(&config, &fixed, &m), 0);
    now.client = bk_smtp_client_of(m);
    queue_of(&fixed, one);
    CHECK_INT(bk_machine_start(m, &rig_ops, &now), 0);
    const char *said = "220 mx\r\n250-mx\r\n250 PIPELINING\r\n250 s\r\n250 r\r\n";
    CHECK_INT(bk_machine_feed(m, said, strlen(said)), 0);
    bk_machine_block(m, 1);
    CHECK_INT(bk_machine_feed(m, "354 go\r\n", 8), 0);
    CHECK_INT(now.timeout, 180);
    CHECK_INT(bk_machine_feed(m, "552 too big\r\n", 13), 0); /* early: heard all the same */
    CHECK(now.closed);
    bk_machine_free(m);
    CHECK_STR(now.told, "ready\na@b: 552 too big\nclosed nonsense: 552 too big\n");
}

/* ---- What the server offers ---- */

static void declare_all(bk_smtp_message *m, int number) {
    (void)number;
    m->ret = BK_SMTP_RETURN_HDRS;
    m->envelope_id = bk_smtp_text_new(m->os, "a+b=c", 5);
    m->submitter = bk_smtp_text_new(m->os, "", 0);
    m->recipients[0].notify = BK_SMTP_NOTIFY_SUCCESS | BK_SMTP_NOTIFY_DELAY;
    m->recipients[0].original = bk_smtp_text_new(m->os, "rfc822;x+y@z", 12);
    if (m->recipient_count > 1)
        m->recipients[1].notify = BK_SMTP_NOTIFY_NEVER;
}

static void makes_binary(bk_smtp_message *m, int number) {
    (void)number;
    m->body = BK_SMTP_BINARYMIME;
}

static void demands_tls(bk_smtp_message *m, int number) {
    (void)number;
    m->require_tls = 1;
}

static void uses_what_is_offered(void) {
    setup();
    static const char *const message[] = {"a@b|d@e,f@g|x\r\n", NULL};
    dress = declare_all;
    EXPECT(message, PLAIN "CMAIL FROM:<a@b>\n", "ready\na@b: " LOST " | " LOST "\n" CUT);
    EXPECT(message,
           HI "S250-mx\nS250-SIZE\nS250-DSN\nS250 AUTH PLAIN\n"
              "CMAIL FROM:<a@b> SIZE=3 RET=HDRS ENVID=a+2Bb+3Dc AUTH=<>\nS250 s\n"
              "CRCPT TO:<d@e> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;x+2By@z\nS250 r\n"
              "CRCPT TO:<f@g> NOTIFY=NEVER\n",
           "ready\na@b: " LOST " | " LOST "\n" CUT);
    dress = NULL;
}

/* Data that is no text: the rig's lines do not fit, so it is told whole. */
static void sends_chunks(void) {
    setup();
    bk_machine *m;
    static const char *const binary[] = {"a@b|d@e,f@g|.a\nb\rc", "h@i|j@k|", NULL};
    dress = makes_binary;
    now = (rig){0};
    CHECK_INT(bk_smtp_client_new(&config, &fixed, &m), 0);
    now.client = bk_smtp_client_of(m);
    queue_of(&fixed, binary);
    CHECK_INT(bk_machine_start(m, &rig_ops, &now), 0);
    static const char said[] = "220 mx\r\n250-mx\r\n250-PIPELINING\r\n250-CHUNKING\r\n"
                               "250 BINARYMIME\r\n250 s\r\n250 r\r\n550 no\r\n250 taken\r\n"
                               "250 s\r\n250 r\r\n250 2\r\n";
    CHECK_INT(bk_machine_feed(m, said, sizeof said - 1), 0);
    bk_machine_free(m);
    dress = NULL;
    CHECK_STR(now.out,
              "EHLO c\r\nMAIL FROM:<a@b> BODY=BINARYMIME\r\nRCPT TO:<d@e>\r\nRCPT TO:<f@g>\r\n"
              "BDAT 6 LAST\r\n.a\nb\rcMAIL FROM:<h@i> BODY=BINARYMIME\r\nRCPT TO:<j@k>\r\n"
              "BDAT 0 LAST\r\n");
    CHECK_STR(now.told, "ready\na@b: 250 taken | 550 no\nh@i: 250 2\n" CUT);
}

static void refuses_what_would_be_spoilt(void) {
    setup();
    static const char *const big[] = {"a@b|d@e|12345\r\n", "f@g|h@i|1\r\n", NULL};
    EXPECT(big, HI "S250-mx\nS250 SIZE 6\nCMAIL FROM:<f@g> SIZE=3\n",
           "ready\na@b: 552 5.3.4 the message is bigger than the server takes (SIZE)\nf@g: " LOST
           "\n" CUT);
    EXPECT(big, HI "S250-mx\nS250 SIZE 0\nCMAIL FROM:<a@b> SIZE=7\n",
           "ready\na@b: " LOST "\nf@g: " LOST "\n" CUT);
    static const char *const eight[] = {"a@b|d@e|\303\244", NULL};
    EXPECT(eight, PLAIN,
           "ready\na@b: 554 5.6.3 the server does not take messages of 8 bits (8BITMIME)\n" CUT);
    EXPECT(eight, HI "S250-mx\nS250 8BITMIME\nCMAIL FROM:<a@b> BODY=8BITMIME\n",
           "ready\na@b: " LOST "\n" CUT);
    static const char *const utf8[] = {"\303\266@b|d@e|x", NULL};
#define NO_UTF8 "553 5.6.7 the server does not take addresses beyond ASCII (SMTPUTF8)\n"
    EXPECT(utf8, PLAIN, "ready\n\303\266@b: " NO_UTF8 CUT);
    EXPECT(utf8, HI "S250-mx\nS250-smtputf8\nS250 8bitmime\nCMAIL FROM:<\303\266@b> SMTPUTF8\n",
           "ready\n\303\266@b: " LOST "\n" CUT);
    dress = makes_binary;
    EXPECT(one, HI "S250-mx\nS250 BINARYMIME\n",
           "ready\na@b: 554 5.6.3 the server does not take binary messages (BINARYMIME)\n" CUT);
    dress = demands_tls;
#define NO_PROMISE "550 5.7.30 the server does not promise TLS all the way (REQUIRETLS)\n"
    EXPECT(one, PLAIN, "ready\na@b: " NO_PROMISE CUT);
    EXPECT(one, HI "S250-mx\nS250 REQUIRETLS\n", "ready\na@b: " NO_PROMISE CUT);
    tls = FROM_THE_START;
    EXPECT(one, PLAIN, "ready\na@b: " NO_PROMISE CUT);
    EXPECT(one, HI "S250-mx\nS250 REQUIRETLS\nCMAIL FROM:<a@b> REQUIRETLS\n",
           "ready\na@b: " LOST "\n" CUT);
    dress = NULL;
}

/* ---- Step by step ---- */

#define BEGUN PLAIN "Ba@b\nCMAIL FROM:<a@b>\nS250 s\n"
#define RCPT_D "Rd@e\nCRCPT TO:<d@e>\n"
#define TO_D BEGUN RCPT_D "S250 r\n"
#define GOES_ON "Bf@g\nCMAIL FROM:<f@g>\nS250 t\n"
#define WENT_ON "> 250 t\nf@g\n"

static void goes_step_by_step(void) {
    setup();
    EXPECT(none, TO_D "Rn@e\nCRCPT TO:<n@e>\nS550 no\nFx\nCDATA\nS354 go\nCx\nC.\nS250 taken\n",
           "ready\n> 250 s\n> 250 r\n> 550 no\na@b: 250 taken | 550 no\n" CUT);
    EXPECT(none,
           PLAIN "Ba@b\nRd@e\nRn@e\nFx\nCMAIL FROM:<a@b>\nS250 s\nCRCPT TO:<d@e>\nS250 1\n"
                 "CRCPT TO:<n@e>\nS450 2\nCDATA\nS354 go\nCx\nC.\nS250 taken\n",
           "ready\n> 250 s\n> 250 1\n> 450 2\na@b: 250 taken | 450 2\n" CUT);
    EXPECT(none,
           PIPE "Ba@b\nRd@e\nRn@e\nCMAIL FROM:<a@b>\nCRCPT TO:<d@e>\nCRCPT TO:<n@e>\n"
                "S250 s\nS250 1\nFx\nCDATA\nS550 2\nS354 go\nCx\nC.\nS250 taken\n",
           "ready\n> 250 s\n> 250 1\n> 550 2\na@b: 250 taken | 550 2\n" CUT);
    /* Begun, and even finished, before the server is there. */
    EXPECT(none,
           "Ba@b\nRd@e\nFx\nS220 mx\nCEHLO c\nS250-mx\nS250 PIPELINING\n" GROUP GROUP_OK BODY
           "S250 taken\n",
           "ready\n> 250 s\n> 250 r\na@b: 250 taken\n" CUT);
    EXPECT(none, "Ba@b\nRd@e\nD\n" PLAIN, "ready\na@b: 451 4.3.0 the message was given up\n" CUT);
    /* Another waits for it, and it for another. */
    EXPECT(one,
           PIPE GROUP "Bf@g\n" GROUP_OK BODY "CMAIL FROM:<f@g>\nS250 taken\nS250 s\nD\nCRSET\n"
                      "S250 ok\n",
           "ready\na@b: 250 taken\n> 250 s\nf@g\n" CUT);
    EXPECT(none, TO_D "Q\nFx\nCDATA\nS354 go\nCx\nC.\nS250 taken\nCQUIT\nS221 bye\n",
           "ready\n> 250 s\n> 250 r\na@b: 250 taken\nclosed well\n");
    config.flags = BK_SMTP_LMTP;
    EXPECT(none,
           "S220 mx\nCLHLO c\nS250 mx\nBa@b\nCMAIL FROM:<a@b>\nS250 s\n" RCPT_D
           "S250 r\nRn@e\nCRCPT TO:<n@e>\nS550 no\nRm@e\nCRCPT TO:<m@e>\nS250 r\nFx\nCDATA\n"
           "S354 go\nCx\nC.\nS250 1\nS452 2\n",
           "ready\n> 250 s\n> 250 r\n> 550 no\n> 250 r\na@b: 250 1 | 550 no | 452 2\n" CUT);
}

/* Each kind of reply at each step; and what is left is no obstacle. */
static void hears_refusals_step_by_step(void) {
    setup();
    tells_stage = true;
#define MAIL_A PLAIN "Ba@b\nCMAIL FROM:<a@b>\n"
    EXPECT(none, MAIL_A "S550 no\nRd@e\nD\nBf@g\nCMAIL FROM:<f@g>\n",
           "ready\n> 550 no\nrecipient too late\na@b MAIL\nf@g -\n" CUT);
    EXPECT(none, MAIL_A "S452 full\nD\n", "ready\n> 452 full\na@b MAIL\n" CUT);
    EXPECT(none, MAIL_A "S354 go\n", "ready\na@b -\nclosed nonsense: 354 go\n");
    EXPECT(none, MAIL_A "S421 bye\n", "ready\na@b -\nclosed reset: 421 bye\n");
    EXPECT(none, MAIL_A "E\n", "ready\na@b -\n" CUT);
    EXPECT(none, BEGUN "S250 stray\n", "ready\n> 250 s\na@b -\nclosed nonsense: 250 stray\n");
    EXPECT(none, BEGUN "S421 bye\n", "ready\n> 250 s\na@b -\nclosed reset: 421 bye\n");
    EXPECT(none, BEGUN RCPT_D "S354 no\n",
           "ready\n> 250 s\na@b -: " ENDED("354 no") "\nclosed nonsense: 354 no\n");
    EXPECT(none, BEGUN RCPT_D "S421 no\n",
           "ready\n> 250 s\na@b -: " ENDED("421 no") "\nclosed reset: 421 no\n");
    EXPECT(none, BEGUN RCPT_D "E\n", "ready\n> 250 s\na@b -: " LOST "\n" CUT);
    EXPECT(none, TO_D "E\n", "ready\n> 250 s\n> 250 r\na@b -: " LOST "\n" CUT);
    /* Nobody is left: nothing is sent. */
    EXPECT(none, BEGUN RCPT_D "S550 no\nFx\n", "ready\n> 250 s\n> 550 no\na@b RCPT: 550 no\n" CUT);
    EXPECT(none,
           TO_D "Fx\nCDATA\nS451 full\nBf@g\nCRSET\nCMAIL FROM:<f@g>\n"
                "S250 ok\nS250 t\n",
           "ready\n> 250 s\n> 250 r\na@b DATA: 451 full\n> 250 t\nf@g -\n" CUT);
    EXPECT(none, TO_D "Fx\nCDATA\nS250 odd\n",
           "ready\n> 250 s\n> 250 r\na@b -: " ENDED("250 odd") "\nclosed nonsense: 250 odd\n");
    EXPECT(none, TO_D "Fx\nCDATA\nS354 go\n" BODY "S554 spam\n",
           "ready\n> 250 s\n> 250 r\na@b DATA: 554 spam\n" CUT);
    EXPECT(none, TO_D "Fx\nCDATA\nS354 go\n" BODY "E\n",
           "ready\n> 250 s\n> 250 r\na@b -: " LOST "\n" CUT);
    tells_stage = false;
}

static void drops_what_was_begun(void) {
    setup();
#define UP "451 4.3.0 the message was given up"
    EXPECT(none, TO_D "D\nCRSET\nS250 ok\n" GOES_ON,
           "ready\n> 250 s\n> 250 r\na@b: " UP "\n> 250 t\nf@g\n" CUT);
    EXPECT(none, BEGUN "D\nCRSET\nS500 what\n", "ready\n> 250 s\na@b\nclosed nonsense: 500 what\n");
    EXPECT(none, BEGUN "D\nCRSET\nE\n", "ready\n> 250 s\na@b\n" CUT);
    /* With an answer due: it is waited for, and nobody's. */
    EXPECT(none, MAIL_A "D\nS250 s\nCRSET\nS250 ok\n", "ready\na@b\n" CUT);
    EXPECT(none, MAIL_A "D\nS550 s\n" GOES_ON, "ready\na@b\n" WENT_ON CUT);
    EXPECT(none, BEGUN RCPT_D "D\nS250 r\nCRSET\nS250 ok\n" GOES_ON,
           "ready\n> 250 s\na@b: " UP "\n" WENT_ON CUT);
    EXPECT(none,
           PIPE "Ba@b\nRd@e\nCMAIL FROM:<a@b>\nCRCPT TO:<d@e>\nD\nBf@g\nS250 s\nS550 r\n"
                "CRSET\nCMAIL FROM:<f@g>\n",
           "ready\na@b: " UP "\nf@g\n" CUT);
}

/* What is not offered is refused before MAIL, or before the data. */
static void refuses_step_by_step(void) {
    setup();
    dress = demands_tls;
    EXPECT(none, PLAIN "Ba@b\nD\n", "ready\n> " NO_PROMISE "a@b\n" CUT);
    EXPECT(none, PLAIN "Ba@b\nRd@e\nFx\n",
           "ready\n> " NO_PROMISE "recipient too late\nfinish invalid\na@b\n" CUT);
    dress = NULL;
#define NO_8BIT "554 5.6.3 the server does not take messages of 8 bits (8BITMIME)\n"
    EXPECT(none, TO_D "F\303\244\nCRSET\nS250 ok\n" GOES_ON,
           "ready\n> 250 s\n> 250 r\na@b: " NO_8BIT WENT_ON CUT);
    EXPECT(none,
           HI "S250-mx\nS250 SIZE 3\nBa@b\nCMAIL FROM:<a@b>\nS250 s\n" RCPT_D
              "S250 r\nFlong\nCRSET\nS250 ok\n",
           "ready\n> 250 s\n> 250 r\n"
           "a@b: 552 5.3.4 the message is bigger than the server takes (SIZE)\n" CUT);
    EXPECT(none, BEGUN "F\nR\nR<x\nR\303\266@b\n",
           "ready\n> 250 s\nfinish invalid\nrecipient invalid\nrecipient invalid\n"
           "recipient invalid\na@b\n" CUT);
    EXPECT(none, TO_D "Fa\rb\nD\nCRSET\nS250 ok\n",
           "ready\n> 250 s\n> 250 r\nfinish invalid\na@b: " UP "\n" CUT);
    EXPECT(none, PLAIN "Rd@e\nFx\nD\n", "ready\nrecipient too late\nfinish too late\n" CUT);
    EXPECT(none,
           HI "S250-mx\nS250 DSN\nBa@b\nCMAIL FROM:<a@b>\nS250 s\nRd@e rfc822;x+y\n"
              "CRCPT TO:<d@e> NOTIFY=NEVER ORCPT=rfc822;x+2By\nS250 r\nRd@e a_b;c\n"
              "CRCPT TO:<d@e> NOTIFY=NEVER\n",
           "ready\n> 250 s\n> 250 r\na@b: " LOST " | " LOST "\n" CUT);
}

static void declares_size(bk_smtp_message *m, int number) {
    (void)number;
    m->declared = 10;
}

static void declares_what_is_to_come(void) {
    setup();
    dress = declares_size;
    EXPECT(none, HI "S250-mx\nS250 SIZE 10\nBa@b\nCMAIL FROM:<a@b> SIZE=10\n", "ready\na@b\n" CUT);
    EXPECT(none, HI "S250-mx\nS250 SIZE 9\nBa@b\nD\n",
           "ready\n> 552 5.3.4 the message is bigger than the server takes (SIZE)\na@b\n" CUT);
    dress = NULL;
    EXPECT(none, HI "S250-mx\nS250 SIZE 9\nBa@b\nCMAIL FROM:<a@b>\n", "ready\na@b\n" CUT);
}

/* From within the answers: the next step, or the end. */
static void next_step(void) {
    if (open_message != NULL && open_message->recipient_count == 0)
        add_one("d@e");
    else if (open_message != NULL)
        finish_one("x");
}

static void goes_on_from_within(void) {
    setup();
    answered_hook = next_step;
    EXPECT(none, MAIL_A "S250 s\nCRCPT TO:<d@e>\nS250 r\nCDATA\nS354 go\n" BODY "S250 taken\n",
           "ready\n> 250 s\n> 250 r\na@b: 250 taken\n" CUT);
    answered_hook = drop_it;
    EXPECT(none, MAIL_A "S250 s\nCRSET\nS250 ok\n", "ready\n> 250 s\na@b\n" CUT);
    EXPECT(none, MAIL_A "S550 s\n", "ready\n> 550 s\na@b\n" CUT);
    dress = demands_tls;
    EXPECT(none, PLAIN "Ba@b\n", "ready\n> " NO_PROMISE "a@b\n" CUT);
    EXPECT(none, "Ba@b\n" PLAIN, "ready\n> " NO_PROMISE "a@b\n" CUT);
    dress = NULL;
    answered_hook = NULL;
}

static void reads_offers(void) {
    setup();
    bk_machine *m;
    const char *value = "?";
    now = (rig){0};
    CHECK_INT(bk_smtp_client_new(&config, &fixed, &m), 0);
    bk_smtp_client *c = now.client = bk_smtp_client_of(m);
    CHECK_INT(bk_machine_start(m, &rig_ops, &now), 0);
    CHECK_INT(bk_smtp_client_offers(c, "SIZE", NULL), 0);
    static const char said[] = "220 mx\r\n250-HELP\r\n250-size 10 x\r\n250-8BITMIME\r\n250-X-\r\n"
                               "250-AUTH=LOGIN\r\n250-\r\n250--X\r\n250-Y\tz\r\n250 DSN \r\n";
    CHECK_INT(bk_machine_feed(m, said, sizeof said - 1), 0);
    CHECK_INT(bk_smtp_client_offers(c, "SIZE", &value), 1);
    CHECK_STR(value, "10 x");
    CHECK_INT(bk_smtp_client_offers(c, "8bitmime", &value), 1);
    CHECK_STR(value, "");
    CHECK_INT(bk_smtp_client_offers(c, "dsn", &value), 1);
    CHECK_STR(value, "");
    CHECK_INT(bk_smtp_client_offers(c, "X-", NULL), 1);
    static const char *const none_of_them[] = {"HELP", "AUTH", "-X",    "Y",
                                               "",     "SIZ",  "SIZES", "D3N"};
    for (int i = 0; i < COUNT(none_of_them); i++)
        CHECK_INT(bk_smtp_client_offers(c, none_of_them[i], NULL), 0);
    CHECK_INT(bk_smtp_client_offers(NULL, "SIZE", NULL), 0);
    CHECK_INT(bk_smtp_client_offers(c, NULL, NULL), 0);
    bk_machine_free(m);
}

/* ---- TLS ---- */

#define OFFERS_TLS HI "S250-mx\nS250 STARTTLS\nCSTARTTLS\n"

static void starts_tls(void) {
    setup();
    tls = OFFERED;
    EXPECT(none, OFFERS_TLS "S220 go\nC<TLS>\nCEHLO c\nS250 mx\n", "ready\n" CUT);
    /* What was said in plain after 220, and what was offered before it, is nothing. */
    EXPECT(one,
           OFFERS_TLS "S220 go\nS250-mx\nS250 SIZE 1\nC<TLS>\nCEHLO c\nS250 mx\n"
                      "CMAIL FROM:<a@b>\n",
           "ready\na@b: " LOST "\n" CUT);
    EXPECT(one,
           HI "S250-mx\nS250-SIZE\nS250-PIPELINING\nS250 STARTTLS\nCSTARTTLS\nS220 go\nC<TLS>\n"
              "CEHLO c\nS250 mx\nCMAIL FROM:<a@b>\n",
           "ready\na@b: " LOST "\n" CUT);
    EXPECT(none, OFFERS_TLS "S220 go\nC<TLS>\nCEHLO c\nS250-mx\nS250 STARTTLS\n", "ready\n" CUT);
    EXPECT(one, OFFERS_TLS "S454 not now\nCMAIL FROM:<a@b>\n", "ready\na@b: " LOST "\n" CUT);
    EXPECT(none, OFFERS_TLS "S554 never\n", "ready\n" CUT);
    EXPECT(none, OFFERS_TLS "S334 what\n", "closed nonsense: 334 what\n");
    EXPECT(none, OFFERS_TLS "S421 bye\n", "closed refused: 421 bye\n");
    EXPECT(none, PLAIN, "ready\n" CUT);
    config.flags = BK_SMTP_TLS_REQUIRED;
    EXPECT(one, OFFERS_TLS "S454 not now\n",
           "a@b: " ENDED("454 not now") "\nclosed no TLS: 454 not now\n");
    EXPECT(one, PLAIN, "a@b: " LOST "\nclosed no TLS\n");
    EXPECT(one, HI "S502 what\nCHELO c\nS250 mx\n", "a@b: " LOST "\nclosed no TLS\n");
    config.flags = BK_SMTP_TLS_NEVER;
    EXPECT(none, HI "S250-mx\nS250 STARTTLS\n", "ready\n" CUT);
    config.flags = 0;
    tls = FAILS;
    EXPECT(none, OFFERS_TLS "S220 go\n", "closed memory\n");
    tls = FROM_THE_START;
    config.flags = BK_SMTP_TLS_REQUIRED;
    EXPECT(none, HI "S250-mx\nS250 STARTTLS\n", "ready\n" CUT);
    tls = NO_TLS;
    EXPECT(one, "", "a@b: " LOST "\nclosed no TLS\n");
    config.flags = 0;
    EXPECT(none, HI "S250-mx\nS250 STARTTLS\n", "ready\n" CUT);
}

/* ---- AUTH ---- */

#define OFFERS_AUTH(list) HI "S250-mx\nS250 AUTH " list "\n"

static void logs_in(void) {
    setup();
    tls = FROM_THE_START;
    config.user = "user";
    config.password = "pencil";
    EXPECT(none, OFFERS_AUTH("LOGIN PLAIN") "CAUTH PLAIN AHVzZXIAcGVuY2ls\nS235 hello\n",
           "ready\n" CUT);
    EXPECT(none, OFFERS_AUTH("LOGIN PLAIN") "CAUTH PLAIN AHVzZXIAcGVuY2ls\nS535 5.7.8 no\n",
           "closed login: 535 5.7.8 no\n");
    EXPECT(one, OFFERS_AUTH("LOGIN PLAIN") "CAUTH PLAIN AHVzZXIAcGVuY2ls\nS454 later\n",
           "a@b: " ENDED("454 later") "\nclosed login: 454 later\n");
    EXPECT(none, OFFERS_AUTH("PLAIN") "CAUTH PLAIN AHVzZXIAcGVuY2ls\nS334 \nC*\nS501 well\n",
           "closed nonsense: 501 well\n");
    EXPECT(none,
           OFFERS_AUTH("login") "CAUTH LOGIN\nS334 VXNlcm5hbWU6\nCdXNlcg==\n"
                                "S334 UGFzc3dvcmQ6\nCcGVuY2ls\nS235 hello\n",
           "ready\n" CUT);
    EXPECT(none,
           OFFERS_AUTH("login") "CAUTH LOGIN\nS334 Username:\nCdXNlcg==\nS334 \nCcGVuY2ls\n"
                                "S334 more\nC*\nS501 well\n",
           "closed nonsense: 501 well\n");
    EXPECT(none, OFFERS_AUTH("GSSAPI XPLAIN"), "closed no AUTH\n");
    EXPECT(none, PLAIN, "closed no AUTH\n");
    config.mechanism = "login";
    EXPECT(none, OFFERS_AUTH("PLAIN"), "closed no AUTH\n");
    EXPECT(none, OFFERS_AUTH("PLAIN LOGIN") "CAUTH LOGIN\n", CUT);
    config.mechanism = NULL;
    tls = NO_TLS;
    EXPECT(none, OFFERS_AUTH("PLAIN"), "closed in clear\n");
    config.flags = BK_SMTP_AUTH_IN_CLEAR;
    EXPECT(none, OFFERS_AUTH("PLAIN") "CAUTH PLAIN AHVzZXIAcGVuY2ls\nS235 hello\n", "ready\n" CUT);
}

/* A command that is too long for a line goes without its first message. */
static void logs_in_with_long_names(void) {
    setup();
    static char user[401], dialogue[2000], text[1000], raw[1000] = "";
    memset(user, 'u', 400);
    tls = FROM_THE_START;
    config.user = user;
    config.password = "pencil";
    memcpy(raw + 1, user, 400);
    memcpy(raw + 402, "pencil", 6);
    (void)bk_base64_encode(raw, 408, text);
    snprintf(dialogue, sizeof dialogue, "%sCAUTH PLAIN\nS334 \nC%s\nS235 hello\n",
             OFFERS_AUTH("PLAIN"), text);
    EXPECT(none, dialogue, "ready\n" CUT);
}

/* What is right was worked out with Python's hashlib. */
#define SCRAM OFFERS_AUTH("PLAIN SCRAM-SHA-256") "CAUTH SCRAM-SHA-256 " SCRAM_FIRST "\n"
#define SCRAM_FIRST "biwsbj11cz0yQ2U9M0RyLHI9QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFB"
#define SCRAM_CHALLENGE                                                                            \
    "cj1BQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUElaHZZRHBXVWEyUmFUQ0FmdXhGSWxqKWhObEYkazAscz1X"             \
    "MjJaYUowU05ZN3NvRXNVRWpiNmdRPT0saT0z"
#define SCRAM_PROOF                                                                                \
    "Yz1iaXdzLHI9QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBJWh2WURwV1VhMlJhVENBZnV4RklsailoTmxG"             \
    "JGswLHA9dVB5TldpQ1BYQS9tTjZ6dnRoRFJlc3RMaUVzbUkyaWZjMnBqeWRvN0o3OD0="

static void logs_in_by_scram(void) {
    setup();
    tls = FROM_THE_START;
    config.user = "us,e=r";
    config.password = "pencil";
#define SCRAM_MIDDLE SCRAM "S334 " SCRAM_CHALLENGE "\nC" SCRAM_PROOF "\n"
    EXPECT(none,
           SCRAM_MIDDLE
           "S334 dj1TWGpIZ08wYlBhSHFlMkliSGpiK3psMmVDTm5GQnU5YTNCTUtEWDlUWmlVPQ==\nC\nS235 hello\n",
           "ready\n" CUT);
    EXPECT(none, SCRAM_MIDDLE "S535 wrong\n", "closed login: 535 wrong\n");
    /* A server that does not know the password is not the right one. */
    EXPECT(none,
           SCRAM_MIDDLE
           "S334 dj1TWGpIZ08wYVBhSHFlMkliSGpiK3psMmVDTm5GQnU5YTNCTUtEWDlUWmlVPQ==\nC*\nS501 well\n",
           "closed nonsense: 501 well\n");
    EXPECT(
        none,
        SCRAM_MIDDLE
        "S334 dj1TWGpIZ08wYVBhSHFlMkliSGpiK3psMmVDTm5GQnU5YTNCTUtEWDlUWmlVPQ==\nC*\nS235 come in\n",
        "closed nonsense: 235 come in\n");
    EXPECT(none, SCRAM_MIDDLE "S334 \nC*\n", CUT);
    EXPECT(none, SCRAM_MIDDLE "S235 come in\n", "closed nonsense\n");
    EXPECT(none, SCRAM "S235 come in\n", "closed nonsense\n");
    EXPECT(none, SCRAM "S334 ?\nC*\nS501 well\n", "closed nonsense: 501 well\n");
    EXPECT(none, SCRAM "S334 \nC*\n", CUT);
}

static void bounds_what_scram_asks_for(void) {
    setup();
    tls = FROM_THE_START;
    config.user = "us,e=r";
    config.password = "pencil";
    static const char *const challenges[] = {
        "cj1CQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUElaHZZRHBXVWEyUmFUQ0FmdXhGSWxqKWhObEYkazAscz1X"
        "MjJaYUowU05ZN3NvRXNVRWpiNmdRPT0saT00MDk2",
        "cj1BQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUEscz1XMjJaYUowU05ZN3NvRXNVRWpiNmdRPT0saT00MDk2",
        "cj1BQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUElaHZZRHBXVWEyUmFUQ0FmdXhGSWxqKWhObEYkazAscz1X"
        "MjJaYUowU05ZN3NvRXNVRWpiNmdRPT0saT0w",
        "cj1BQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUElaHZZRHBXVWEyUmFUQ0FmdXhGSWxqKWhObEYkazAscz1X"
        "MjJaYUowU05ZN3NvRXNVRWpiNmdRPT0saT0xMDAwMDE=",
        "cj1BQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUElaHZZRHBXVWEyUmFUQ0FmdXhGSWxqKWhObEYkazAscz1X"
        "MjJaYUowU05ZN3NvRXNVRWpiNmdRPT0saT05OTk5OTk5OTk5OTk5OTk5OTk5OQ==",
        "cj1BQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUElaHZZRHBXVWEyUmFUQ0FmdXhGSWxqKWhObEYkazAscz0s"
        "aT00MDk2",
        "cj1BQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUElaHZZRHBXVWEyUmFUQ0FmdXhGSWxqKWhObEYkazAscz14"
        "LGk9NDA5Ng==",
        "bT14LHI9QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBJWh2WURwV1VhMlJhVENBZnV4RklsailoTmxGJGsw"
        "LHM9VzIyWmFKMFNOWTdzb0VzVUVqYjZnUT09LGk9NDA5Ng==",
        "cj1BQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUElaHZZRHBXVWEyUmFUQ0FmdXhGSWxqKWhObEYkazAscz1X"
        "MjJaYUowU05ZN3NvRXNVRWpiNmdRPT0=",
        "cj1BQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUElaHZZRHBXVWEyUmFUQ0FmdXhGSWxqKWhObEYkazAscz1B"
        "QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFB"
        "QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFB"
        "QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFB"
        "QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFB"
        "QUFBQUFBQUFBQUFBQUFBQUFBQSxpPTQwOTY=",
        "cj1BQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUElaHZZRHBXVWEyUmFUQ0FmdXhGSWxqKWhObEYkazAscz1X"
        "MjJaYUowU05ZN3NvRXNVRWpiNmdRPT0saT0tMQ==",
    };
    for (int i = 0; i < COUNT(challenges); i++) {
        char dialogue[2000];
        snprintf(dialogue, sizeof dialogue, "%sS334 %s\nC*\nS501 well\n", SCRAM, challenges[i]);
        EXPECT(none, dialogue, "closed nonsense: 501 well\n");
    }
}

/* ---- LMTP ---- */

static void speaks_lmtp(void) {
    setup();
    config.flags = BK_SMTP_LMTP;
#define LHLO "S220 mx\nCLHLO c\nS250-mx\nS250 PIPELINING\n"
#define LMTP_GROUP LHLO "CMAIL FROM:<a@b>\nCRCPT TO:<d@e>\nCRCPT TO:<n@e>\nCRCPT TO:<m@e>\nCDATA\n"
    EXPECT(three, LMTP_GROUP "S250 s\nS250 1\nS550 2\nS250 3\nS354 go\n" BODY "S250 a\nS452 c\n",
           "ready\na@b: 250 a | 550 2 | 452 c\n" CUT);
    EXPECT(three, LMTP_GROUP "S250 s\nS250 1\nS550 2\nS250 3\nS354 go\n" BODY "S250 a\nE\n",
           "ready\na@b: 250 a | 550 2 | " LOST "\n" CUT);
    EXPECT(three, LMTP_GROUP "S250 s\nS550 1\nS550 2\nS550 3\nS503 nobody\n",
           "ready\na@b: 550 1 | 550 2 | 550 3\n" CUT);
    EXPECT(three, LMTP_GROUP "S250 s\nS550 1\nS550 2\nS550 3\nS354 go\n",
           "ready\na@b: 550 1 | 550 2 | 550 3\nclosed nonsense\n");
    EXPECT(three,
           LMTP_GROUP "S250 s\nS250 1\nS250 2\nS250 3\nS354 go\n" BODY
                      "S250 a\nS250 b\nS250 c\nS250 d\n",
           "ready\na@b: 250 a | 250 b | 250 c\nclosed nonsense: 250 d\n");
}

/* ---- Data ---- */

static int try_data(unsigned flags, bk_smtp_body body, const char *data, size_t n) {
    bk_machine *m;
    bk_smtp_message *message = message_of(&fixed, "a@b|d@e|");
    config.flags = flags;
    message->body = body;
    CHECK_INT(bk_smtp_message_add(message, data, n), 0);
    now = (rig){0};
    CHECK_INT(bk_smtp_client_new(&config, &fixed, &m), 0);
    now.client = bk_smtp_client_of(m);
    int r = bk_smtp_client_send(now.client, message, heard_sent, &now);
    if (r < 0)
        bk_smtp_message_free(message);
    CHECK_INT(bk_machine_start(m, &rig_ops, &now), 0);
    static const char said[] = "220 mx\r\n250-mx\r\n250 PIPELINING\r\n250 s\r\n250 r\r\n354 go\r\n";
    if (r == 0)
        CHECK_INT(bk_machine_feed(m, said, sizeof said - 1), 0);
    bk_machine_free(m);
    return r;
}

static void lets_no_lone_cr_or_lf_out(void) {
    setup();
    static const struct {
        const char *data, *whole;
    } cases[] = {{"a\nb", "a\r\nb\r\n"},
                 {"a\rb", "a\r\nb\r\n"},
                 {"\n", "\r\n"},
                 {"\r", "\r\n"},
                 {"a\r\r\n", "a\r\n\r\n"},
                 {"a\n\r\n", "a\r\n\r\n"},
                 {"a\n\r", "a\r\n\r\n"},
                 {"a\r\nb\n", "a\r\nb\r\n"},
                 {"a\n.\nb", "a\r\n..\r\nb\r\n"},
                 {"a\r.\rb", "a\r\n..\r\nb\r\n"},
                 {"a\r\n.\n", "a\r\n..\r\n"},
                 {"a\r\n.\rMAIL FROM:<x@y>\r\n", "a\r\n..\r\nMAIL FROM:<x@y>\r\n"}};
    static const char before[] = "EHLO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<d@e>\r\nDATA\r\n";
    for (int i = 0; i < COUNT(cases); i++) {
        char want[200];
        CHECK_INT(try_data(0, BK_SMTP_7BIT, cases[i].data, strlen(cases[i].data)), -EINVAL);
        CHECK_INT(try_data(BK_SMTP_MAKE_WHOLE, 0, cases[i].data, strlen(cases[i].data)), 0);
        snprintf(want, sizeof want, "%s%s.\r\n", before, cases[i].whole);
        CHECK_STR(now.out, want);
    }
    CHECK_INT(try_data(0, BK_SMTP_BINARYMIME, "a\nb", 3), 0);
}

/* Large ones in pieces, with dots where pieces begin and end. */
static void sends_large_messages(void) {
    setup();
    enum { SIZE = 50000 };
    static char data[2 * SIZE], want[ROOM];
    for (int round = 0; round < 4; round++) {
        size_t n = 0, w;
        while (n < SIZE)
            for (int i = 0; i < (round == 0 ? 1 : round == 1 ? 60 : 3000) && n < SIZE; i++) {
                memcpy(data + n, i == 0 ? "\r\n." : "abc", 3);
                n += 3;
            }
        w = (size_t)snprintf(want, sizeof want,
                             "EHLO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<d@e>\r\nDATA\r\n");
        for (size_t i = 0; i < n; i++) {
            want[w++] = data[i];
            if (data[i] == '.')
                want[w++] = '.';
        }
        memcpy(want + w, "\r\n.\r\n", 6);
        CHECK_INT(try_data(0, BK_SMTP_7BIT, data, n), 0);
        CHECK(strcmp(now.out, want) == 0);
    }
}

/* ---- Arguments ---- */

static void checks_arguments(void) {
    setup();
    bk_machine *m;
    bk_smtp_client_config bad = config;
    CHECK_INT(bk_smtp_client_new(NULL, &fixed, &m), -EINVAL);
    CHECK_INT(bk_smtp_client_new(&config, NULL, &m), -EINVAL);
    CHECK_INT(bk_smtp_client_new(&config, &fixed, NULL), -EINVAL);
    bad.hostname = "a b";
    CHECK_INT(bk_smtp_client_new(&bad, &fixed, &m), -EINVAL);
    bad = config;
    bad.flags = BK_SMTP_TLS_REQUIRED | BK_SMTP_TLS_NEVER;
    CHECK_INT(bk_smtp_client_new(&bad, &fixed, &m), -EINVAL);
    bad = config;
    bad.user = "x";
    CHECK_INT(bk_smtp_client_new(&bad, &fixed, &m), -EINVAL);
    bad.password = "y";
    bad.mechanism = "CRAM-MD5";
    CHECK_INT(bk_smtp_client_new(&bad, &fixed, &m), -EINVAL);
    bad.size = 1;
    CHECK_INT(bk_smtp_client_new(&bad, &fixed, &m), -EINVAL);

    bk_smtp_message *message = message_of(&fixed, "a@b|d@e|x"), *nobody;
    CHECK_INT(bk_smtp_message_new(&fixed, "a@b", &nobody), 0);
    now = (rig){0};
    CHECK_INT(bk_smtp_client_new(&config, &fixed, &m), 0);
    now.client = bk_smtp_client_of(m);
    CHECK_INT(bk_smtp_client_send(NULL, message, NULL, NULL), -EINVAL);
    CHECK_INT(bk_smtp_client_send(now.client, NULL, NULL, NULL), -EINVAL);
    CHECK_INT(bk_smtp_client_send(now.client, nobody, NULL, NULL), -EINVAL);
    bk_smtp_recipient to = {.address = "d@e"};
    CHECK_INT(bk_smtp_client_begin(NULL, nobody, NULL, NULL, NULL), -EINVAL);
    CHECK_INT(bk_smtp_client_begin(now.client, NULL, NULL, NULL, NULL), -EINVAL);
    CHECK_INT(bk_smtp_client_recipient(NULL, &to), -EINVAL);
    CHECK_INT(bk_smtp_client_recipient(now.client, NULL), -EINVAL);
    CHECK_INT(bk_smtp_client_finish(NULL), -EINVAL);
    bk_smtp_client_drop(NULL);
    CHECK_INT(bk_smtp_client_begin(now.client, nobody, NULL, NULL, NULL), 0);
    CHECK_INT(bk_smtp_client_begin(now.client, message, NULL, NULL, NULL), -EBUSY);
    bk_smtp_client_quit(NULL);
    bk_smtp_client_quit(now.client);
    CHECK_INT(bk_smtp_client_begin(now.client, message, NULL, NULL, NULL), -EPIPE);
    CHECK_INT(bk_smtp_client_send(now.client, message, NULL, NULL), -EPIPE);
    CHECK(bk_smtp_client_of(NULL) == NULL && bk_smtp_client_machine(NULL) == NULL);
    bk_machine_free(m);
    bk_smtp_message_free(message);
    bk_machine *echo;
    CHECK_INT(bk_echo_new(&fixed, &echo), 0);
    CHECK(bk_smtp_client_of(echo) == NULL);
    bk_machine_free(echo);
}

/* ---- With our own server, machine to machine ---- */

/* Each side has what was sent to it and not yet fed. */
typedef struct side {
    bk_machine *m;
    struct side *other;
    char in[ROOM];
    size_t in_size;
    bool closed, secure;
} side;

static side ours, theirs;
static char stored[ROOM];
static size_t stored_size;
static bk_smtp_config server_config;
static const char *offered; /* the reply to EHLO; NULL: all that the server has */

static int side_send(bk_machine *m, const void *data, size_t n, bk_release release, void *arg) {
    side *other = ((side *)m->runner_state)->other;
    CHECK(other->in_size + n < ROOM);
    append(other->in, &other->in_size, data, n);
    if (release != BK_COPY)
        release(arg);
    return 0;
}

static void side_close(bk_machine *m, int why) {
    (void)why;
    ((side *)m->runner_state)->closed = true;
}

static int side_start_tls(bk_machine *m, const void *last, size_t n) {
    if (n > 0)
        (void)side_send(m, last, n, BK_COPY, NULL);
    ((side *)m->runner_state)->secure = true;
    return 0;
}

static int side_secure(bk_machine *m) {
    return tls == NO_TLS ? -ENOTSUP : tls == FROM_THE_START || ((side *)m->runner_state)->secure;
}

static const bk_runner_ops side_ops = {
    .size = sizeof(bk_runner_ops),
    .send = side_send,
    .close = side_close,
    .start_tls = side_start_tls,
    .secure = side_secure,
};

static bool side_run(side *s, size_t step) {
    size_t n = s->in_size < step ? s->in_size : step;
    if (n == 0 || s->closed)
        return false;
    char *piece = malloc(n);
    memcpy(piece, s->in, n);
    memmove(s->in, s->in + n, s->in_size - n);
    s->in_size -= n;
    CHECK_INT(bk_machine_feed(s->m, piece, n), 0);
    free(piece);
    return true;
}

static void server_helo(void *context, bk_smtp_session *s) {
    (void)context;
    bk_smtp_answer(s, offered);
}

static void server_rcpt(void *context, bk_smtp_session *s, const bk_smtp_message *envelope,
                        const bk_smtp_recipient *recipient) {
    (void)context, (void)envelope;
    bk_smtp_answer(s, recipient->address[0] == 'n' ? "550 5.1.1 nobody" : NULL);
}

static void server_message(void *context, bk_smtp_session *s, bk_smtp_message *m) {
    char text[600];
    (void)context;
    snprintf(text, sizeof text, "%s%s%s%s|", m->sender,
             m->body == BK_SMTP_BINARYMIME ? " binary"
             : m->body == BK_SMTP_8BITMIME ? " 8bit"
                                           : "",
             m->utf8 ? " utf8" : "", m->require_tls ? " tls" : "");
    append(stored, &stored_size, text, strlen(text));
    for (size_t i = 0; i < m->recipient_count; i++) {
        const bk_smtp_recipient *r = &m->recipients[i];
        snprintf(text, sizeof text, "%s%s%s%s", i ? "," : "", r->address,
                 r->notify ? " notify" : "", r->original ? " original" : "");
        append(stored, &stored_size, text, strlen(text));
    }
    snprintf(text, sizeof text, "|%s|", m->envelope_id != NULL ? m->envelope_id : "");
    append(stored, &stored_size, text, strlen(text));
    append(stored, &stored_size, m->data, m->size);
    append(stored, &stored_size, "\n", 1);
    bk_smtp_message_free(m);
    bk_smtp_answer(s, "250 2.0.0 kept");
}

static void server_setup(void) {
    setup();
    offered = NULL;
    server_config = (bk_smtp_config){.size = sizeof server_config,
                                     .hostname = "mx",
                                     .software = "t",
                                     .flags = BK_SMTP_NO_TRACE,
                                     .helo = server_helo,
                                     .rcpt = server_rcpt,
                                     .message = server_message};
}

/* What both hear when what each says comes to the other in pieces of so many bytes. */
static void converse(const char *const *specs, size_t step) {
    now = (rig){0};
    ours = (side){.other = &theirs};
    theirs = (side){.other = &ours};
    stored_size = 0;
    stored[0] = '\0';
    CHECK_INT(bk_smtp_client_new(&config, &fixed, &ours.m), 0);
    CHECK_INT(bk_smtp_new(&server_config, &fixed, &theirs.m), 0);
    now.client = bk_smtp_client_of(ours.m);
    queue_of(&fixed, specs);
    bk_smtp_client_quit(now.client);
    CHECK_INT(bk_machine_start(theirs.m, &side_ops, &theirs), 0);
    int r = bk_machine_start(ours.m, &side_ops, &ours);
    while (r == 0 && (side_run(&ours, step) | side_run(&theirs, step))) {
    }
    bk_machine_free(ours.m);
    bk_machine_free(theirs.m);
}

static void expect_talk(const char *const *specs, const char *told, const char *kept, int line) {
    static const size_t steps[] = {1, 7, 100, ROOM};
    for (int i = 0; i < COUNT(steps); i++) {
        converse(specs, steps[i]);
        if (strcmp(now.told, told) == 0 && strcmp(stored, kept) == 0)
            continue;
        printf("# talk of line %d in steps of %zu: told\n%s# not\n%s# kept\n%s# not\n%s", line,
               steps[i], now.told, told, stored, kept);
        check_failures++;
        return;
    }
}

#define TALK(specs, told, kept) expect_talk(specs, told, kept, __LINE__)

static void dress_fully(bk_smtp_message *m, int number) {
    declare_all(m, number);
    m->body = number == 1 ? BK_SMTP_BINARYMIME : BK_SMTP_7BIT;
    m->require_tls = number == 2;
}

/* All extensions; then with each of them not offered. */
static void talks_to_our_server(void) {
    static const char *const specs[] = {
        "a@b|d@e,n@e|x\r\n.\r\n", "f@g|h@i|\377\n.\r",
        "j@k|n@l,m@n|z",          "\303\266@b|\303\244@e|\303\274\r\n",
        "o@p|n@q|x\r\n",          NULL};
#define KEPT "250 2.0.0 kept"
#define NOBODY "550 5.1.1 nobody"
#define REST "\303\266@b: " KEPT "\no@p: " NOBODY "\nclosed well\n"
    server_setup();
    dress = dress_fully;
    tls = OFFERED;
    TALK(specs,
         "ready\na@b: " KEPT " | " NOBODY "\nf@g: " KEPT "\nj@k: " NOBODY " | " KEPT "\n" REST,
         "a@b|d@e notify original|a+b=c|x\r\n.\r\n\n"
         "f@g binary|h@i notify original|a+b=c|\377\n.\r\n"
         "j@k tls|m@n notify|a+b=c|z\r\n\n"
         "\303\266@b 8bit utf8|\303\244@e notify original|a+b=c|\303\274\r\n\n");
    tls = NO_TLS;
    TALK(specs,
         "ready\na@b: " KEPT " | " NOBODY "\nf@g: " KEPT
         "\nj@k: 550 5.7.30 the server does not promise TLS all the way (REQUIRETLS)"
         " | 550 5.7.30 the server does not promise TLS all the way (REQUIRETLS)\n" REST,
         "a@b|d@e notify original|a+b=c|x\r\n.\r\n\n"
         "f@g binary|h@i notify original|a+b=c|\377\n.\r\n"
         "\303\266@b 8bit utf8|\303\244@e notify original|a+b=c|\303\274\r\n\n");
    dress = NULL;
}

static void talks_to_less(void) {
    static const char *const keywords[] = {"PIPELINING", "SIZE 1000", "8BITMIME", "SMTPUTF8",
                                           "CHUNKING",   "DSN",       NULL};
    static const char *const specs[] = {"a@b|d@e,n@e|x\r\n.\r\n", "f@g|h@i|y", "n@k|n@l|z", NULL};
    char reply[400];
    server_setup();
    for (int without = 0; without <= COUNT(keywords); without++) {
        strcpy(reply, "250 mx");
        for (int i = 0; keywords[i] != NULL && without < COUNT(keywords); i++)
            if (i != without)
                strcat(strcat(reply, "\n"), keywords[i]);
        offered = reply;
        TALK(specs,
             "ready\na@b: " KEPT " | " NOBODY "\nf@g: " KEPT "\nn@k: " NOBODY "\nclosed well\n",
             "a@b|d@e||x\r\n.\r\n\nf@g|h@i||y\r\n\n");
    }
}

static void talks_lmtp(void) {
    server_setup();
    config.flags = server_config.flags = BK_SMTP_LMTP;
    server_config.flags |= BK_SMTP_NO_TRACE;
    static const char *const specs[] = {"a@b|d@e,n@e,g@e|x\r\n", "f@g|h@i|y", "n@k|n@l|z", NULL};
    TALK(specs,
         "ready\na@b: " KEPT " | " NOBODY " | " KEPT "\nf@g: " KEPT "\nn@k: " NOBODY
         "\nclosed well\n",
         "a@b|d@e,g@e||x\r\n\nf@g|h@i||y\r\n\n");
}

static void server_auth(void *context, bk_smtp_session *s, const bk_smtp_login *login) {
    static bk_secret secret = {.iterations = 3, .salt_size = 4, .salt = "salt"};
    (void)context;
    bool known = strcmp(login->user, "us,e=r \303\244") == 0;
    bk_scram_derive("pen,cil=", &secret);
    if (login->password == NULL)
        bk_smtp_answer_secret(s, known ? &secret : NULL);
    else
        bk_smtp_answer(s,
                       known && strcmp(login->password, "pen,cil=") == 0 ? NULL : "535 5.7.8 no");
}

static void logs_in_to_our_server(void) {
    static const char *const mechanisms[] = {"PLAIN", "LOGIN", "SCRAM-SHA-256", NULL};
    server_setup();
    server_config.auth = server_auth;
    server_config.flags |= BK_SMTP_AUTH_REQUIRED;
    config.user = "us,e=r \303\244";
    for (tls = OFFERED; tls <= FROM_THE_START; tls++)
        for (int i = 0; i < COUNT(mechanisms); i++) {
            config.mechanism = mechanisms[i];
            config.password = "pen,cil=";
            TALK(one, "ready\na@b: " KEPT "\nclosed well\n", "a@b|d@e||x\r\n\n");
            config.password = "pencil";
            converse(one, ROOM);
            CHECK(strstr(now.told, "closed login: 535 5.7.8") != NULL);
            CHECK_STR(stored, "");
        }
}

/* ---- On streams ---- */

static bk_loop *loop;
static bool over;

static void stream_ready(void *context, bk_smtp_client *client) {
    bk_os *os = context;
    now.client = client;
    tell("ready\n");
    bk_smtp_message *m = message_of(os, "a@b|d@e|x\n");
    if (m != NULL && bk_smtp_client_send(client, m, heard_sent, &now) < 0)
        bk_smtp_message_free(m);
    bk_smtp_client_quit(client);
}

static void stream_over(void *context, bk_smtp_client *client, int why, const char *reply) {
    (void)context;
    now.client = client;
    heard_closed(NULL, client, why, reply);
    if (client == NULL)
        tell("never connected\n");
    over = true;
}

static void hear_nothing(void *arg, int code, const char *text) {
    (void)arg, (void)code, (void)text;
}

/* A client of our server, through a memory: endpoint; or of nobody. */
static void over_streams(bk_os *os, const char *endpoint) {
    bk_smtp_client_config client = {.size = sizeof client,
                                    .flags = BK_SMTP_MAKE_WHOLE,
                                    .context = os,
                                    .ready = stream_ready,
                                    .closed = stream_over};
    bk_loop_options options = {.size = sizeof options, .os = os, .log = hear_nothing};
    bk_protocol *server_side = NULL, *client_side = NULL;
    server_setup();
    now = (rig){0};
    over = false;
    stored_size = 0;
    if (bk_loop_new(&options, &loop) < 0)
        return;
    bool begun = bk_smtp_protocol_new(&server_config, os, &server_side) == 0 &&
                 bk_smtp_client_protocol_new(&client, os, &client_side) == 0 &&
                 bk_listen(loop, "memory:mail", server_side, NULL, NULL) == 0 &&
                 bk_connect(loop, endpoint, client_side, NULL, NULL, NULL) == 0;
    for (int i = 0; begun && !over && i < 1000; i++)
        (void)bk_loop_turn(loop, 10 * BK_MILLISECOND);
    CHECK(!begun || over);
    CHECK_INT(bk_loop_free(loop), 0);
    bk_machine_protocol_free(client_side);
    bk_machine_protocol_free(server_side);
}

static void runs_on_streams(void) {
    over_streams(&fixed, "memory:mail");
    CHECK_STR(now.told, "ready\na@b: " KEPT "\nclosed well\n");
    CHECK_STR(stored, "a@b|d@e||x\r\n\n");
    over_streams(&fixed, "memory:nobody");
    CHECK(strncmp(now.told, "closed ", 7) == 0 && strstr(now.told, "never connected") != NULL);
}

static void runs_on_streams_that_fail(void) {
    static const faults_kind kinds[] = {FAULTS_NO_MEMORY, FAULTS_ERROR};
    for (int i = 0; i < COUNT(kinds); i++)
        for (long n = 1;; n++) {
            faults_open(&world, &fixed);
            faults_arm(&world, kinds[i], n);
            over_streams(faults_os(&world), "memory:mail");
            long calls = faults_disarm(&world);
            CHECK_INT(faults_leaks(&world, NULL), 0);
            faults_close(&world);
            if (calls < n)
                break;
        }
}

static void checks_its_protocol(void) {
    bk_protocol *p;
    bk_smtp_client_config bad = config;
    CHECK_INT(bk_smtp_client_protocol_new(NULL, &fixed, &p), -EINVAL);
    CHECK_INT(bk_smtp_client_protocol_new(&config, NULL, &p), -EINVAL);
    CHECK_INT(bk_smtp_client_protocol_new(&config, &fixed, NULL), -EINVAL);
    bad.hostname = "";
    CHECK_INT(bk_smtp_client_protocol_new(&bad, &fixed, &p), -EINVAL);
}

int main(int argc, char **argv) {
    static const check_case cases[] = {
        CASE(greets),
        CASE(trusts_no_server),
        CASE(bounds_replies),
        CASE(sends),
        CASE(hears_refusals),
        CASE(goes_on_after_refusals),
        CASE(goes_step_by_step),
        CASE(hears_refusals_step_by_step),
        CASE(drops_what_was_begun),
        CASE(refuses_step_by_step),
        CASE(declares_what_is_to_come),
        CASE(goes_on_from_within),
        CASE(waits_as_told),
        CASE(tells_what_decided),
        CASE(uses_what_is_offered),
        CASE(sends_chunks),
        CASE(refuses_what_would_be_spoilt),
        CASE(reads_offers),
        CASE(starts_tls),
        CASE(logs_in),
        CASE(logs_in_with_long_names),
        CASE(logs_in_by_scram),
        CASE(bounds_what_scram_asks_for),
        CASE(speaks_lmtp),
        CASE(lets_no_lone_cr_or_lf_out),
        CASE(sends_large_messages),
        CASE(checks_arguments),
        CASE(talks_to_our_server),
        CASE(talks_to_less),
        CASE(runs_on_streams),
        CASE(runs_on_streams_that_fail),
        CASE(checks_its_protocol),
        CASE(talks_lmtp),
        CASE(logs_in_to_our_server),
    };
    return check_main(argc, argv, cases, COUNT(cases));
}
