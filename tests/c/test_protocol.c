/*
 * test_protocol.c: machines and those who run them: when a machine is given what came, in memory,
 * on streams, under TLS and on a blocking descriptor; and the echo and line protocols, in every
 * cutting.
 */
#include <becket-smtp.h>

#include "core/os/os.h"
#include "core/limits.h"
#include "core/tls/tls.h"
#include "tests/c/check.h"
#include "tests/c/faults.h"

#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

/* ---- A runner in memory ---- */

typedef struct rig {
    char out[65536];
    size_t size;
    int closed, why, paused, resumed;
    int released;
    size_t block_at;      /* blocks the machine once that much was sent; 0: never */
    int secure, tls_code; /* what the runner says of TLS, and to start_tls */
} rig;

static rig now;
static faults world;

static int rig_send(bk_machine *m, const void *data, size_t n, bk_release release, void *arg) {
    rig *r = m->runner_state;
    CHECK(!r->closed);
    CHECK(r->size + n < sizeof r->out);
    memcpy(r->out + r->size, data, n);
    r->out[r->size += n] = '\0';
    if (release != BK_COPY)
        release(arg);
    if (r->block_at != 0 && r->size >= r->block_at)
        bk_machine_block(m, 1);
    return 0;
}

static void rig_close(bk_machine *m, int why) {
    rig *r = m->runner_state;
    r->closed++;
    r->why = why;
}

static void rig_pause(bk_machine *m) {
    ((rig *)m->runner_state)->paused++;
}

static void rig_resume(bk_machine *m) {
    ((rig *)m->runner_state)->resumed++;
}

/* Sends the last words and "T", for all to see. */
static int rig_start_tls(bk_machine *m, const void *last, size_t n) {
    rig *r = m->runner_state;
    CHECK_INT(r->secure, 0);
    if (r->tls_code < 0)
        return r->tls_code;
    r->secure = 1;
    (void)rig_send(m, n > 0 ? last : "", n, BK_COPY, NULL);
    return rig_send(m, "T", 1, BK_COPY, NULL);
}

static int rig_secure(bk_machine *m) {
    return ((rig *)m->runner_state)->secure;
}

static const bk_runner_ops rig_ops = {
    .size = sizeof(bk_runner_ops),
    .send = rig_send,
    .close = rig_close,
    .pause = rig_pause,
    .resume = rig_resume,
    .start_tls = rig_start_tls,
    .secure = rig_secure,
};

/* A table of an author who knew no more than send and close. */
static const bk_runner_ops old_ops = {
    .size = offsetof(bk_runner_ops, pause),
    .send = rig_send,
    .close = rig_close,
    .pause = rig_pause,
    .resume = rig_resume,
};

/* ---- A machine that does what its bytes say ---- */

/* w: wait; s: send "s"; c: close; a: abort; g: wait and go at once; t: start TLS; others: are sent
   back. */
typedef struct puppet {
    bk_machine machine;
    int started, ended, freed, start_code, goes_on, tls_code;
    bool one_by_one, tls_at_once;
} puppet;

static int puppet_start(bk_machine *m) {
    ((puppet *)m)->started++;
    if (((puppet *)m)->tls_at_once)
        CHECK_INT(bk_machine_start_tls(m, NULL, 0), 0);
    return ((puppet *)m)->start_code;
}

static size_t puppet_receive(bk_machine *m, const char *data, size_t n) {
    size_t used = 0;
    while (used < n && bk_machine_ready(m)) {
        char c = data[used++];
        if (c == 'w' || c == 'g')
            bk_machine_wait(m);
        if (c == 'g')
            bk_machine_go(m);
        if (c == 'c')
            bk_machine_close(m);
        else if (c == 'a')
            bk_machine_abort(m, -EPROTO);
        else if (c == 't')
            ((puppet *)m)->tls_code = bk_machine_start_tls(m, NULL, 0);
        else
            CHECK_INT(bk_machine_send(m, &c, 1, BK_COPY, NULL), 0);
        if (((puppet *)m)->one_by_one)
            break;
    }
    return used;
}

static int puppet_ended(bk_machine *m) {
    ((puppet *)m)->ended++;
    return ((puppet *)m)->goes_on;
}

static void puppet_free(bk_machine *m) {
    ((puppet *)m)->freed++;
}

static const bk_machine_ops puppet_ops = {
    .size = sizeof(bk_machine_ops),
    .name = "puppet",
    .start = puppet_start,
    .receive = puppet_receive,
    .ended = puppet_ended,
    .free = puppet_free,
};

static puppet puppet_new(void) {
    now = (rig){0};
    return (puppet){.machine = {.ops = &puppet_ops, .os = bk_os_default()}};
}

static void starts_once(void) {
    puppet p = puppet_new();
    CHECK_INT(bk_machine_start(&p.machine, NULL, &now), -EINVAL);
    CHECK_INT(bk_machine_start(NULL, &rig_ops, &now), -EINVAL);
    CHECK_INT(bk_machine_start(&p.machine, &rig_ops, &now), 0);
    CHECK_INT(bk_machine_start(&p.machine, &rig_ops, &now), -EINVAL);
    CHECK_INT(p.started, 1);
    CHECK(bk_machine_wants(&p.machine));
    bk_machine_free(&p.machine);
    CHECK_INT(p.freed, 1);
    p = puppet_new();
    p.start_code = -EACCES;
    CHECK_INT(bk_machine_start(&p.machine, &rig_ops, &now), -EACCES);
    CHECK(!bk_machine_wants(&p.machine));
    CHECK_INT(bk_machine_feed(&p.machine, "x", 1), 0);
    CHECK_INT(now.size, 0);
    CHECK_INT(now.closed, 0); /* the runner knows */
    bk_machine_free(&p.machine);
    bk_machine_free(NULL);
}

static void gives_nothing_while_it_waits(void) {
    for (int one_by_one = 0; one_by_one < 2; one_by_one++) {
        puppet p = puppet_new();
        p.one_by_one = one_by_one;
        bk_machine *m = &p.machine;
        CHECK_INT(bk_machine_start(m, &rig_ops, &now), 0);
        CHECK_INT(bk_machine_feed(m, "1w23", 4), 0);
        CHECK_STR(now.out, "1w");
        CHECK_INT(now.paused, 1);
        CHECK(!bk_machine_wants(m));
        CHECK_INT(bk_machine_feed(m, "4w5", 3), 0); /* from a runner that cannot pause */
        CHECK_STR(now.out, "1w");
        bk_machine_end(m);
        CHECK_INT(p.ended, 0);
        bk_machine_go(m);
        CHECK_STR(now.out, "1w234w");
        CHECK_INT(bk_machine_feed(m, "6", 1), 0);
        CHECK_INT(p.ended, 0);
        bk_machine_go(m);
        CHECK_STR(now.out, "1w234w56");
        CHECK_INT(p.ended, 1);
        CHECK_INT(now.closed, 1);
        CHECK_INT(now.why, 0);
        CHECK_INT(now.paused, 1);
        bk_machine_free(m);
    }
}

static void pauses_only_when_it_must(void) {
    puppet p = puppet_new();
    bk_machine *m = &p.machine;
    CHECK_INT(bk_machine_start(m, &rig_ops, &now), 0);
    CHECK_INT(bk_machine_feed(m, "gggxg", 5), 0); /* the answers are there at once */
    CHECK_STR(now.out, "gggxg");
    CHECK_INT(now.paused, 0);
    CHECK_INT(bk_machine_feed(m, "w", 1), 0);
    bk_machine_go(m);
    CHECK_INT(now.paused, 1);
    CHECK_INT(now.resumed, 1);
    CHECK(m->held == NULL); /* an idle one holds no buffer */
    bk_machine_free(m);
}

static void stops_when_it_is_blocked(void) {
    puppet p = puppet_new();
    bk_machine *m = &p.machine;
    now.block_at = 3;
    CHECK_INT(bk_machine_start(m, &rig_ops, &now), 0);
    CHECK_INT(bk_machine_feed(m, "12345w7", 7), 0);
    CHECK_STR(now.out, "123");
    CHECK_INT(now.paused, 1);
    now.block_at = 0;
    bk_machine_block(m, 0);
    CHECK_STR(now.out, "12345w");
    CHECK_INT(now.resumed, 0);
    bk_machine_block(m, 1);
    bk_machine_go(m);
    CHECK_STR(now.out, "12345w"); /* one of two reasons is left */
    bk_machine_end(m);
    bk_machine_block(m, 0);
    CHECK_STR(now.out, "12345w7");
    CHECK_INT(now.closed, 1);
    bk_machine_free(m);
}

static void forgets_what_follows_a_close(void) {
    static const char *const scripts[] = {"1c2", "1a2", "1wc2", "1wa2"};
    for (int i = 0; i < COUNT(scripts); i++) {
        puppet p = puppet_new();
        bk_machine *m = &p.machine;
        CHECK_INT(bk_machine_start(m, &rig_ops, &now), 0);
        CHECK_INT(bk_machine_feed(m, scripts[i], strlen(scripts[i])), 0);
        bk_machine_go(m);
        CHECK_STR(now.out, i < 2 ? "1" : "1w");
        CHECK_INT(now.closed, 1);
        CHECK_INT(now.why, i % 2 ? -EPROTO : 0);
        CHECK(m->held == NULL);
        CHECK_INT(bk_machine_feed(m, "x", 1), 0);
        bk_machine_end(m);
        bk_machine_close(m);
        bk_machine_abort(m, -EIO);
        CHECK_INT(now.closed, 1);
        CHECK_INT(p.ended, 0);
        CHECK_INT(bk_machine_send(m, "x", 1, BK_COPY, NULL), -EPIPE);
        bk_machine_free(m);
    }
}

static void count_release(void *arg) {
    ++*(int *)arg;
}

static void releases_what_it_cannot_send(void) {
    puppet p = puppet_new();
    int released = 0;
    CHECK_INT(bk_machine_send(&p.machine, "x", 1, count_release, &released), -EPIPE);
    CHECK_INT(released, 1);
    CHECK_INT(bk_machine_start(&p.machine, &rig_ops, &now), 0);
    CHECK_INT(bk_machine_send(&p.machine, "x", 1, count_release, &released), 0);
    CHECK_INT(released, 2);
    bk_machine_close(&p.machine);
    CHECK_INT(bk_machine_send(&p.machine, "x", 1, count_release, &released), -EPIPE);
    CHECK_INT(released, 3);
    bk_machine_free(&p.machine);
}

static void may_go_on_after_the_end(void) {
    puppet p = puppet_new();
    p.goes_on = 1;
    CHECK_INT(bk_machine_start(&p.machine, &rig_ops, &now), 0);
    bk_machine_end(&p.machine);
    CHECK_INT(p.ended, 1);
    CHECK_INT(now.closed, 0);
    CHECK_INT(bk_machine_send(&p.machine, "x", 1, BK_COPY, NULL), 0);
    bk_machine_go(&p.machine);
    CHECK_INT(p.ended, 1);
    bk_machine_close(&p.machine);
    CHECK_INT(now.closed, 1);
    bk_machine_free(&p.machine);
}

/* A machine may have last words when its time is over; nobody hears them after the end. */
static void puppet_timed_out(bk_machine *m) {
    CHECK_INT(bk_machine_send(m, "late", 4, BK_COPY, NULL), 0);
}

static void says_last_words(void) {
    bk_machine_ops speaks = puppet_ops;
    puppet p = puppet_new();
    bk_machine_time_out(NULL);
    bk_machine_time_out(&p.machine); /* not started */
    CHECK_INT(bk_machine_start(&p.machine, &rig_ops, &now), 0);
    bk_machine_time_out(&p.machine); /* has none */
    CHECK_STR(now.out, "");
    bk_machine_free(&p.machine);
    speaks.timed_out = puppet_timed_out;
    p = puppet_new();
    p.machine.ops = &speaks;
    CHECK_INT(bk_machine_start(&p.machine, &rig_ops, &now), 0);
    CHECK_INT(bk_machine_feed(&p.machine, "1w2", 3), 0); /* waiting is no hindrance */
    bk_machine_time_out(&p.machine);
    CHECK_STR(now.out, "1wlate");
    CHECK_INT(now.closed, 0);
    bk_machine_close(&p.machine);
    bk_machine_time_out(&p.machine);
    CHECK_STR(now.out, "1wlate");
    bk_machine_free(&p.machine);
}

static void runs_on_older_tables(void) {
    puppet p = puppet_new();
    char peer[8] = "x";
    CHECK_INT(bk_machine_start(&p.machine, &old_ops, &now), 0);
    CHECK_INT(bk_machine_feed(&p.machine, "1w2", 3), 0);
    bk_machine_timeout(&p.machine, 3);
    bk_machine_peer(&p.machine, peer, sizeof peer);
    CHECK_STR(peer, "");
    bk_machine_go(&p.machine);
    CHECK_STR(now.out, "1w2");
    CHECK_INT(now.paused + now.resumed, 0);
    bk_machine_free(&p.machine);
    static const bk_machine_ops few = {.size = offsetof(bk_machine_ops, free) + sizeof(void *),
                                       .receive = puppet_receive,
                                       .free = puppet_free};
    p = puppet_new();
    p.machine.ops = &few;
    CHECK_INT(bk_machine_start(&p.machine, &rig_ops, &now), 0);
    bk_machine_end(&p.machine);
    CHECK_INT(now.closed, 1);
    bk_machine_free(&p.machine);
}

/* ---- TLS in mid-session ---- */

static void asks_for_tls(void) {
    puppet p = puppet_new();
    bk_machine *m = &p.machine;
    CHECK_INT(bk_machine_start_tls(NULL, NULL, 0), -EINVAL);
    CHECK_INT(bk_machine_secure(NULL), -EINVAL);
    CHECK_INT(bk_machine_start_tls(m, NULL, 0), -EPIPE);
    CHECK_INT(bk_machine_secure(m), -ENOTSUP);
    CHECK_INT(bk_machine_start(m, &rig_ops, &now), 0);
    now.secure = -EPERM;
    CHECK_INT(bk_machine_secure(m), -EPERM);
    CHECK_INT(bk_machine_start_tls(m, NULL, 0), -EPERM);
    CHECK_INT(bk_machine_start_tls(m, NULL, 1), -EINVAL);
    now.secure = 0;
    CHECK_INT(bk_machine_secure(m), 0);
    CHECK_INT(bk_machine_start_tls(m, "now", 3), 0);
    CHECK_INT(bk_machine_secure(m), 1);
    CHECK_INT(bk_machine_start_tls(m, "now", 3), -EALREADY);
    CHECK_STR(now.out, "nowT");
    bk_machine_free(m);
    for (int aborted = 0; aborted < 2; aborted++) {
        p = puppet_new();
        CHECK_INT(bk_machine_start(m, &rig_ops, &now), 0);
        CHECK_INT(bk_machine_feed(m, aborted ? "at" : "ct", 2), 0);
        CHECK_INT(bk_machine_start_tls(m, NULL, 0), -EPIPE);
        CHECK_STR(now.out, "");
        bk_machine_free(m);
    }
    bk_runner_ops some = rig_ops;
    some.size = offsetof(bk_runner_ops, start_tls);
    for (int i = 0; i < 3; i++) {
        p = puppet_new();
        CHECK_INT(bk_machine_start(m, &some, &now), 0);
        CHECK_INT(bk_machine_secure(m), -ENOTSUP);
        CHECK_INT(bk_machine_start_tls(m, NULL, 0), -ENOTSUP);
        CHECK_STR(now.out, "");
        bk_machine_free(m);
        some.size = i == 0 ? offsetof(bk_runner_ops, secure) : sizeof some;
        some.start_tls = i == 0 ? rig_start_tls : NULL;
    }
}

/* Pieces, with a space between them; '-': go; '+': TLS is started by somebody outside; '.': the
   end. */
static void expect_tls(const char *script, const char *out, int line) {
    for (int one_by_one = 0; one_by_one < 2; one_by_one++) {
        puppet p = puppet_new();
        p.one_by_one = one_by_one;
        bk_machine *m = &p.machine;
        CHECK_INT(bk_machine_start(m, &rig_ops, &now), 0);
        for (const char *at = script; *at != '\0'; at += *at == ' ') {
            size_t n = strcspn(at, " -+.");
            char *piece = malloc(n + 1); /* so that reading past its end is seen */
            memcpy(piece, at, n);
            if (n > 0)
                CHECK_INT(bk_machine_feed(m, piece, n), 0);
            free(piece);
            at += n;
            for (; *at != '\0' && *at != ' '; at++)
                if (*at == '-')
                    bk_machine_go(m);
                else if (*at == '+')
                    CHECK_INT(bk_machine_start_tls(m, NULL, 0), 0);
                else
                    bk_machine_end(m);
        }
        if (strcmp(now.out, out) != 0)
            printf("# in line %d\n", line);
        CHECK_STR(now.out, out);
        CHECK(m->held == NULL || !bk_machine_ready(m));
        CHECK_INT(now.closed, strchr(script, '.') != NULL);
        CHECK_INT(p.ended, strchr(script, '.') != NULL);
        bk_machine_free(m);
    }
}

#define TLS(script, out) expect_tls(script, out, __LINE__)

/* Nothing received before TLS is taken for something said under it. */
static void drops_what_came_before_tls(void) {
    TLS("1t", "1T");
    TLS("1t 2", "1T2");
    TLS("1t2", "1T");
    TLS("1t2 3", "1T3");
    TLS("t1t2 3", "T3");
    TLS("1 t2w3 4", "1T4");
    TLS("1w2t3 4- 5", "1w2T5");
    TLS("1w2 t 3- 5", "1w2T5");
    TLS("1w2w3t4-- 5", "1w2w3T5");
    TLS("gtg2 3", "gT3");
    TLS("1w2+ 3 4- 5", "1wT345");
    TLS("1w2+- 5", "1wT5");
    TLS("1+ 5", "1T5");
    TLS("1w2t3.-", "1w2T");
    TLS("1w2+.-", "1wT");
    TLS("1w2.+-", "1wT");
    TLS("1t2.", "1T");
    TLS("1t2 3.", "1T3");
}

/* When it cannot be started, nothing has happened. */
static void goes_on_without_tls(void) {
    for (int one_by_one = 0; one_by_one < 2; one_by_one++) {
        puppet p = puppet_new();
        bk_machine *m = &p.machine;
        p.one_by_one = one_by_one;
        now.tls_code = -ENOMEM;
        CHECK_INT(bk_machine_start(m, &rig_ops, &now), 0);
        CHECK_INT(bk_machine_feed(m, "1t2w3t4", 7), 0);
        CHECK_INT(p.tls_code, -ENOMEM);
        CHECK_INT(bk_machine_start_tls(m, "now", 3), -ENOMEM);
        bk_machine_go(m);
        CHECK_STR(now.out, "12w34");
        bk_machine_free(m);
    }
}

static void starts_tls_when_it_starts(void) {
    puppet p = puppet_new();
    p.tls_at_once = true;
    CHECK_INT(bk_machine_start(&p.machine, &rig_ops, &now), 0);
    CHECK(bk_machine_ready(&p.machine) && bk_machine_wants(&p.machine));
    CHECK_INT(bk_machine_feed(&p.machine, "12", 2), 0);
    CHECK_STR(now.out, "T12");
    bk_machine_free(&p.machine);
}

/* ---- Lines ---- */

static bk_line_config lines;
static int opened, closed;

static void run_lines(bk_os *os, const char *script, size_t n, size_t cut, size_t step) {
    bk_machine *m;
    now = (rig){0};
    if (bk_line_new(&lines, os, &m) < 0)
        return;
    CHECK_INT(bk_machine_start(m, &rig_ops, &now), 0);
    for (size_t at = 0; at < n;) {
        size_t size = step ? step : at < cut ? cut - at : n - at;
        size = size < n - at ? size : n - at;
        char *piece = malloc(size); /* so that reading past its end is seen */
        memcpy(piece, script + at, size);
        CHECK(bk_machine_feed(m, piece, size) >= 0 || now.closed || os != bk_os_default());
        free(piece);
        at += size;
    }
    bk_machine_end(m);
    CHECK_INT(now.closed, 1);
    bk_machine_free(m);
}

static void expect_lines(const char *script, size_t n, const char *out, int line) {
    for (size_t cut = 0; cut <= n + 1; cut++) {
        run_lines(bk_os_default(), script, n, cut, cut > n);
        if (strcmp(now.out, out) != 0) {
            printf("# line %d, cut at %zu: \"%s\", not \"%s\"\n", line, cut, now.out, out);
            check_failures++;
            return;
        }
    }
}

#define LINES(script, out) expect_lines(script, sizeof(script) - 1, out, __LINE__)
#define LONG "error: line too long\r\n"

static void cuts_lines(void) {
    lines = (bk_line_config){.size = sizeof lines, .max_line = 4};
    LINES("", "");
    LINES("a\nb\r\n", "a\r\nb\r\n");
    LINES("\n\r\n", "\r\n\r\n");
    LINES("a\n\nb", "a\r\n\r\nb\r\n");
    LINES("a\rb\r\n\r\r\n", "a\rb\r\n\r\r\n");
    LINES("a\r", "a\r\r\n");
    LINES("1234\n1234\r\n1234", "1234\r\n1234\r\n1234\r\n");
    LINES("12345\na\n", LONG "a\r\n");
    LINES("12345\r\na\n", LONG "a\r\n");
    LINES("1234\rx\na\n", LONG "a\r\n");
    LINES("1234\r\r\na\n", LONG "a\r\n");
    LINES("12345", LONG);
    LINES("1234\r", LONG);
    LINES("1234567890123\n\n", LONG "\r\n");
    LINES("123456\n123456\nab\n1234567", LONG LONG "ab\r\n" LONG);
}

static void hook_line(void *context, bk_machine *m, const char *text, size_t n) {
    char reply[64];
    int size = snprintf(reply, sizeof reply, "%s%zu%.*s;", (char *)context, n, (int)n, text);
    bk_machine_send(m, reply, (size_t)size, BK_COPY, NULL);
    if (n == 1 && text[0] == 'q')
        bk_machine_close(m);
    if (n == 1 && text[0] == 'w') {
        bk_machine_wait(m);
        bk_machine_go(m);
    }
}

static void hook_long(void *context, bk_machine *m) {
    (void)context;
    bk_machine_send(m, "long;", 5, BK_COPY, NULL);
}

static void hook_opened(void *context, bk_machine *m) {
    (void)context;
    bk_machine_send(m, "hi;", 3, BK_STATIC, NULL);
    opened++;
}

static void hook_closed(void *context, bk_machine *m) {
    (void)context, (void)m;
    closed++;
}

static bk_line_config hooked(void) {
    static char context[] = ">";
    return (bk_line_config){.size = sizeof(bk_line_config),
                            .max_line = 5,
                            .context = context,
                            .line = hook_line,
                            .too_long = hook_long,
                            .opened = hook_opened,
                            .closed = hook_closed};
}

static void calls_hooks(void) {
    lines = hooked();
    opened = closed = 0;
    LINES("ab\nw\nc\n", "hi;>2ab;>1w;>1c;");
    LINES("ab\nq\nc\n", "hi;>2ab;>1q;");
    LINES("abcdefgh\r\nab", "hi;long;>2ab;");
    CHECK(opened > 0);
    CHECK_INT(opened, closed);
}

static bk_machine *sleeper;

static void line_sleeps(void *context, bk_machine *m, const char *text, size_t n) {
    (void)context;
    bk_machine_send(m, text, n, BK_COPY, NULL);
    bk_machine_wait(m);
    sleeper = m;
}

/* A hook may wait at any line, the last without an end too. */
static void waits_between_lines(void) {
    bk_machine *m;
    lines = (bk_line_config){.size = sizeof lines, .line = line_sleeps};
    now = (rig){0};
    CHECK_INT(bk_line_new(&lines, bk_os_default(), &m), 0);
    CHECK_INT(bk_machine_start(m, &rig_ops, &now), 0);
    CHECK_INT(bk_machine_feed(m, "a\nb\nc", 5), 0);
    bk_machine_end(m);
    CHECK_STR(now.out, "a");
    bk_machine_go(sleeper);
    CHECK_STR(now.out, "ab");
    bk_machine_go(sleeper);
    CHECK_STR(now.out, "abc");
    CHECK_INT(now.closed, 0);
    bk_machine_go(sleeper);
    CHECK_STR(now.out, "abc");
    CHECK_INT(now.closed, 1);
    bk_machine_free(m);
}

static void lines_without_memory(void) {
    static const char script[] = "a line\nanother one\r\nthis is longer than the limit is\nx";
    lines = (bk_line_config){.size = sizeof lines, .max_line = 20};
    faults_open(&world, NULL);
    for (size_t step = 1; step < 9; step++)
        for (long n = 1;; n++) {
            faults_arm(&world, FAULTS_NO_MEMORY, n);
            run_lines(faults_os(&world), script, sizeof script - 1, 0, step);
            CHECK_INT(faults_leaks(&world, NULL), 0);
            if (faults_disarm(&world) < n)
                break;
        }
    CHECK_STR(now.out, "a line\r\nanother one\r\n" LONG "x\r\n");
    faults_close(&world);
}

static void bounds_what_it_gathers(void) {
    static char much[65536];
    faults_report report;
    bk_machine *m;
    memset(much, 'x', sizeof much);
    faults_open(&world, NULL);
    lines = (bk_line_config){.size = sizeof lines, .max_line = 1000};
    now = (rig){0};
    CHECK_INT(bk_line_new(&lines, faults_os(&world), &m), 0);
    CHECK_INT(bk_machine_start(m, &rig_ops, &now), 0);
    for (int i = 0; i < 100; i++)
        CHECK_INT(bk_machine_feed(m, much, i % 2 ? sizeof much : 900), 0);
    CHECK_STR(now.out, LONG);
    faults_leaks(&world, &report);
    CHECK(report.bytes < 4096);
    CHECK_INT(bk_machine_feed(m, "\nab\n", 4), 0);
    CHECK_STR(now.out, LONG "ab\r\n");
    bk_machine_free(m);
    CHECK_INT(faults_leaks(&world, NULL), 0);
    faults_close(&world);
}

static void checks_arguments(void) {
    bk_machine *m = NULL;
    bk_protocol *p = NULL;
    bk_os *os = bk_os_default();
    lines = (bk_line_config){.size = sizeof lines};
    CHECK_INT(bk_line_new(NULL, os, &m), -EINVAL);
    CHECK_INT(bk_line_new(&lines, NULL, &m), -EINVAL);
    CHECK_INT(bk_line_new(&lines, os, NULL), -EINVAL);
    CHECK_INT(bk_line_protocol_new(&lines, os, NULL), -EINVAL);
    lines.max_line = SIZE_MAX;
    CHECK_INT(bk_line_new(&lines, os, &m), -EINVAL);
    lines = (bk_line_config){0};
    CHECK_INT(bk_line_new(&lines, os, &m), -EINVAL);
    CHECK_INT(bk_echo_new(NULL, &m), -EINVAL);
    CHECK_INT(bk_echo_new(os, NULL), -EINVAL);
    CHECK_INT(bk_machine_protocol_new(os, "x", NULL, NULL, NULL, &p), -EINVAL);
    CHECK(m == NULL && p == NULL);
}

/* ---- On a blocking descriptor ---- */

typedef struct blocking {
    int fd;
    bool closed;
} blocking;

static int blocking_send(bk_machine *m, const void *data, size_t n, bk_release release, void *arg) {
    blocking *b = m->runner_state;
    const char *p = data;
    int r = 0;
    while (n > 0 && r == 0) {
        ssize_t k = write(b->fd, p, n);
        r = k < 0 ? -errno : 0;
        p += k > 0 ? k : 0;
        n -= k > 0 ? (size_t)k : 0;
    }
    if (release != BK_COPY)
        release(arg);
    return r;
}

static void blocking_close(bk_machine *m, int why) {
    (void)why;
    ((blocking *)m->runner_state)->closed = true;
}

static void *blocking_main(void *arg) {
    static const bk_runner_ops ops = {
        .size = sizeof(bk_runner_ops), .send = blocking_send, .close = blocking_close};
    blocking b = {*(int *)arg, false};
    char room[7];
    bk_machine *m;
    bk_line_config c = {.size = sizeof c};
    if (bk_line_new(&c, bk_os_default(), &m) < 0)
        return NULL;
    bk_machine_start(m, &ops, &b);
    while (!b.closed) {
        ssize_t n = read(b.fd, room, sizeof room);
        if (n > 0)
            bk_machine_feed(m, room, (size_t)n);
        else
            bk_machine_end(m);
    }
    bk_machine_free(m);
    close(b.fd);
    return NULL;
}

static void runs_on_a_blocking_descriptor(void) {
    static const char script[] = "hello\nworld, a longer line\r\nand a last";
    int fds[2];
    pthread_t thread;
    char got[256];
    size_t size = 0;
    ssize_t n;
    CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    CHECK_INT(pthread_create(&thread, NULL, blocking_main, &fds[1]), 0);
    CHECK_INT(write(fds[0], script, sizeof script - 1), (long)sizeof script - 1);
    CHECK_INT(shutdown(fds[0], SHUT_WR), 0);
    while ((n = read(fds[0], got + size, sizeof got - 1 - size)) > 0)
        size += (size_t)n;
    got[size] = '\0';
    CHECK_STR(got, "hello\r\nworld, a longer line\r\nand a last\r\n");
    pthread_join(thread, NULL);
    close(fds[0]);
}

/* ---- On streams ---- */

typedef struct peer {
    bk_loop *loop;
    bk_stream *stream;
    char got[65536];
    size_t size, total;
    int closed, why;
    bool counts; /* only */
} peer;

static void peer_received(bk_stream *s, const void *data, size_t n) {
    peer *p = bk_stream_user(s);
    p->total += n;
    if (p->counts)
        return;
    CHECK(p->size + n < sizeof p->got);
    memcpy(p->got + p->size, data, n);
    p->got[p->size += n] = '\0';
}

static int peer_ended(bk_stream *s) {
    (void)s;
    return 0;
}

static void peer_closed(bk_stream *s, int why) {
    peer *p = bk_stream_user(s);
    p->closed++;
    p->why = why;
    p->stream = NULL;
}

static const bk_protocol peer_protocol = {.size = sizeof(bk_protocol),
                                          .name = "peer",
                                          .received = peer_received,
                                          .ended = peer_ended,
                                          .closed = peer_closed};

static bk_tls_context *offered; /* what the end that runs the protocol may start TLS with */

static int offer(bk_loop *loop, bk_transport **t) {
    return offered == NULL ? 0 : bk_tls_offer(loop, *t, offered, NULL, t);
}

/* One end runs the protocol, the other is the peer; ret_served may be NULL. */
static int join(peer *p, const bk_protocol *served, size_t capacity, bk_stream **ret_served) {
    bk_transport *pair[2];
    int r = bk_memory_transport(p->loop, capacity, pair);
    if (r < 0)
        return r;
    r = bk_stream_new(p->loop, pair[0], &peer_protocol, p, &p->stream);
    if (r < 0)
        pair[0]->ops->close(pair[0]);
    int r2 = offer(p->loop, &pair[1]);
    if (r2 >= 0)
        r2 = bk_stream_new(p->loop, pair[1], served, NULL, ret_served);
    if (r2 < 0)
        pair[1]->ops->close(pair[1]);
    return r < 0 ? r : r2;
}

static void turn(bk_loop *loop, int times) {
    while (times-- > 0)
        CHECK_INT(bk_loop_turn(loop, 0), 0);
}

static peer pal;

static void pal_open(bk_os *os) {
    bk_loop_options options = {.size = sizeof options, .os = os};
    pal = (peer){0};
    CHECK_INT(bk_loop_new(&options, &pal.loop), 0);
}

static void echoes_on_a_stream(void) {
    pal_open(NULL);
    CHECK_INT(join(&pal, bk_echo_protocol(), 0, NULL), 0);
    CHECK_INT(bk_stream_write(pal.stream, "hello", 5, BK_COPY, NULL), 0);
    turn(pal.loop, 10);
    CHECK_STR(pal.got, "hello");
    CHECK_INT(bk_stream_end(pal.stream), 0);
    turn(pal.loop, 10);
    CHECK_INT(pal.closed, 1);
    CHECK_INT(pal.why, 0);
    CHECK_INT(bk_loop_free(pal.loop), 0);
}

static int timed_opened(bk_stream *s) {
    bk_stream_set_timeout(s, 5);
    return 0;
}

static const char *last_words;
static int timed_closed;

static void timed_out(bk_stream *s) {
    if (last_words == NULL)
        bk_stream_close(s);
    else
        CHECK_INT(bk_stream_write(s, last_words, strlen(last_words), BK_COPY, NULL), 0);
}

static void note_timed_closed(bk_stream *s, int why) {
    (void)s;
    timed_closed = why;
}

/* A stream whose time is over speaks once more, unless its peer has stopped reading. */
static void last_words_on_a_stream(void) {
    static const bk_protocol timed = {.size = sizeof timed,
                                      .opened = timed_opened,
                                      .timed_out = timed_out,
                                      .closed = note_timed_closed};
    static const struct {
        const char *words, *before, *got;
        int why;
    } cases[] = {{"bye", "", "bye", -ETIMEDOUT},
                 {"much more than fits", "", "much", -ETIMEDOUT},
                 {"bye", "too much to be sent", "too ", -ETIMEDOUT},
                 {NULL, "", "", 0}};
    for (int i = 0; i < COUNT(cases); i++) {
        bk_stream *s;
        faults_open(&world, NULL);
        pal_open(faults_os(&world));
        CHECK_INT(join(&pal, &timed, 4, &s), 0);
        last_words = cases[i].words;
        bk_stream_pause(pal.stream);
        CHECK_INT(bk_stream_write(s, cases[i].before, strlen(cases[i].before), BK_COPY, NULL), 0);
        turn(pal.loop, 3);
        faults_pass_time(&world, 8 * BK_SECOND);
        timed_closed = 1;
        turn(pal.loop, 3);
        CHECK_INT(timed_closed, cases[i].why);
        bk_stream_resume(pal.stream);
        turn(pal.loop, 5);
        CHECK_STR(pal.got, cases[i].got);
        CHECK_INT(bk_loop_free(pal.loop), 0);
        CHECK_INT(faults_leaks(&world, NULL), 0);
        faults_close(&world);
    }
}

/* A peer that sends and does not read: what is queued for it stays bounded, then all arrives. */
static void holds_back_a_peer_that_does_not_read(void) {
    static char much[4 << 20];
    bk_stream *served;
    pal_open(NULL);
    pal.counts = true;
    memset(much, 'x', sizeof much);
    CHECK_INT(join(&pal, bk_echo_protocol(), 4096, &served), 0);
    bk_stream_pause(pal.stream);
    CHECK_INT(bk_stream_write(pal.stream, much, sizeof much, BK_STATIC, NULL), 0);
    turn(pal.loop, 1000);
    CHECK(bk_stream_queued(served) < BK_WATER_HIGH + BK_SCRATCH_BYTES);
    CHECK(bk_stream_queued(pal.stream) > sizeof much / 2);
    bk_stream_resume(pal.stream);
    bk_stream_end(pal.stream);
    for (int i = 0; i < 100000 && !pal.closed; i++)
        turn(pal.loop, 1);
    CHECK_INT(pal.total, sizeof much);
    CHECK_INT(pal.closed, 1);
    CHECK_INT(bk_loop_free(pal.loop), 0);
}

static void serves_lines_on_a_stream(void) {
    bk_protocol *p;
    faults_open(&world, NULL);
    pal_open(faults_os(&world));
    lines = hooked();
    opened = closed = 0;
    CHECK_INT(bk_line_protocol_new(&lines, faults_os(&world), &p), 0);
    CHECK_INT(join(&pal, p, 0, NULL), 0);
    bk_machine_protocol_free(p); /* the connection goes on */
    CHECK_INT(bk_stream_write(pal.stream, "ab\nw\nq\nno\n", 10, BK_COPY, NULL), 0);
    turn(pal.loop, 20);
    CHECK_STR(pal.got, "hi;>2ab;>1w;>1q;");
    CHECK_INT(pal.closed, 1);
    CHECK_INT(closed, 1);
    CHECK_INT(bk_loop_free(pal.loop), 0);
    CHECK_INT(faults_leaks(&world, NULL), 0);
    faults_close(&world);
}

/* A machine that waits pauses its stream, and goes on with what was kept. */
static void waits_on_a_stream(void) {
    bk_protocol *p;
    pal_open(NULL);
    lines = (bk_line_config){.size = sizeof lines, .line = line_sleeps};
    CHECK_INT(bk_line_protocol_new(&lines, bk_os_default(), &p), 0);
    CHECK_INT(join(&pal, p, 0, NULL), 0);
    CHECK_INT(bk_stream_write(pal.stream, "a\nb\n", 4, BK_COPY, NULL), 0);
    turn(pal.loop, 10);
    CHECK_INT(bk_stream_write(pal.stream, "c\nd", 3, BK_COPY, NULL), 0);
    CHECK_INT(bk_stream_end(pal.stream), 0);
    turn(pal.loop, 10);
    CHECK_STR(pal.got, "a");
    static const char *const then[] = {"ab", "abc", "abcd"};
    for (int i = 0; i < COUNT(then); i++) {
        bk_machine_go(sleeper);
        turn(pal.loop, 10);
        CHECK_STR(pal.got, then[i]);
        CHECK_INT(pal.closed, 0);
    }
    bk_machine_go(sleeper);
    turn(pal.loop, 10);
    CHECK_INT(pal.closed, 1);
    bk_machine_protocol_free(p);
    CHECK_INT(bk_loop_free(pal.loop), 0);
}

static bk_smtp_session *owed;

static void owe(void *context, bk_smtp_session *session, bk_smtp_message *message) {
    (void)context;
    bk_smtp_message_free(message);
    owed = session;
}

/* An answer that comes when the connection, the protocol and the loop are gone. */
static void drops_an_answer_that_is_too_late(void) {
    static const char script[] =
        "HELO c\r\nMAIL FROM:<>\r\nRCPT TO:<postmaster>\r\nDATA\r\n.\r\nNOOP\r\n";
    bk_smtp_config config = {.size = sizeof config, .message = owe};
    bk_protocol *p;
    faults_open(&world, NULL);
    bk_os *os = faults_os(&world);
    pal_open(os);
    owed = NULL;
    CHECK_INT(bk_smtp_protocol_new(&config, os, &p), 0);
    CHECK_INT(join(&pal, p, 0, NULL), 0);
    CHECK_INT(bk_stream_write(pal.stream, script, sizeof script - 1, BK_STATIC, NULL), 0);
    turn(pal.loop, 10);
    CHECK(owed != NULL);
    CHECK(strstr(pal.got, "354 ") != NULL && strstr(pal.got, "250 2.0.0") == NULL);
    bk_stream_abort(pal.stream);
    turn(pal.loop, 10);
    CHECK_INT(bk_loop_free(pal.loop), 0);
    bk_machine_protocol_free(p);
    bk_smtp_answer(owed, NULL);
    CHECK_INT(faults_leaks(&world, NULL), 0);
    faults_close(&world);
}

static int released;

static void count_context(void *context) {
    (void)context;
    released++;
}

static int refuse(void *context, bk_os *os, bk_machine **ret_machine) {
    (void)context, (void)os, (void)ret_machine;
    return -EACCES;
}

static int make_echo(void *context, bk_os *os, bk_machine **ret_machine) {
    (void)context;
    return bk_echo_new(os, ret_machine);
}

static void frees_a_protocol_after_its_last_connection(void) {
    bk_protocol *p;
    pal_open(NULL);
    released = 0;
    CHECK_INT(bk_machine_protocol_new(bk_os_default(), "x", make_echo, NULL, count_context, &p), 0);
    CHECK_INT(join(&pal, p, 0, NULL), 0);
    bk_machine_protocol_free(p);
    CHECK_INT(released, 0);
    bk_stream_abort(pal.stream);
    turn(pal.loop, 10);
    CHECK_INT(released, 1);
    CHECK_INT(bk_machine_protocol_new(bk_os_default(), "x", refuse, NULL, count_context, &p), 0);
    pal.closed = 0;
    (void)join(&pal, p, 0, NULL);
    turn(pal.loop, 10);
    CHECK_INT(pal.closed, 1);
    bk_machine_protocol_free(p);
    CHECK_INT(released, 2);
    CHECK_INT(bk_loop_free(pal.loop), 0);
}

/* The stream's side of a machine, where any allocation may fail. */
static void streams_without_memory(void) {
    faults_open(&world, NULL);
    for (long n = 1;; n++) {
        bk_loop_options options = {.size = sizeof options, .os = faults_os(&world)};
        bk_protocol *p = NULL;
        pal = (peer){0};
        lines = (bk_line_config){.size = sizeof lines};
        CHECK_INT(bk_loop_new(&options, &pal.loop), 0);
        faults_arm(&world, FAULTS_NO_MEMORY, n);
        int r = bk_line_protocol_new(&lines, faults_os(&world), &p);
        if (r >= 0)
            r = join(&pal, p, 0, NULL);
        for (int i = 0; r >= 0 && i < 6 && pal.stream != NULL; i++) {
            (void)bk_stream_write(pal.stream, "hello\nwor", 9, BK_COPY, NULL);
            turn(pal.loop, 3);
        }
        long calls = faults_disarm(&world);
        CHECK_INT(bk_loop_free(pal.loop), 0);
        bk_machine_protocol_free(p);
        CHECK_INT(faults_leaks(&world, NULL), 0);
        if (calls < n)
            break;
    }
    CHECK(strstr(pal.got, "hello\r\nworhello\r\n") == pal.got);
    faults_close(&world);
}

/* ---- Under TLS ---- */

enum { TURNS = 400 }; /* enough for a handshake through a pipe of 16 bytes */

static bk_tls_context *trusting; /* the peer's */
static char mail[4096];
static bool late; /* the store answers when the test says so */

static void take_mail(void *context, bk_smtp_session *session, bk_smtp_message *message) {
    (void)context;
    snprintf(mail, sizeof mail, "%.*s", (int)message->size, message->data);
    bk_smtp_message_free(message);
    owed = session;
    if (!late)
        bk_smtp_answer(session, NULL);
}

/* RFC 5321, 3.8: the server says why it goes; without memory it goes all the same. */
static void smtp_times_out_on_a_stream(void) {
    static const bk_smtp_config config = {.size = sizeof config, .message = take_mail};
    static const char words[] = "421 4.4.2 localhost timeout, closing the connection\r\n";
    bk_protocol *p;
    for (int fails = 0; fails < 2; fails++) {
        faults_open(&world, NULL);
        pal_open(faults_os(&world));
        CHECK_INT(bk_smtp_protocol_new(&config, faults_os(&world), &p), 0);
        CHECK_INT(join(&pal, p, 0, NULL), 0);
        CHECK_INT(bk_stream_write(pal.stream, "NOOP\r\n", 6, BK_COPY, NULL), 0);
        turn(pal.loop, 5);
        pal.size = 0;
        faults_pass_time(&world, 299 * BK_SECOND);
        turn(pal.loop, 3);
        CHECK_INT(pal.closed, 0);
        faults_pass_time(&world, 3 * BK_SECOND);
        if (fails)
            faults_arm(&world, FAULTS_NO_MEMORY, 1);
        turn(pal.loop, 5);
        faults_disarm(&world);
        CHECK_INT(pal.closed, 1);
        pal.got[pal.size] = '\0';
        CHECK_STR(pal.got, fails ? "" : words);
        CHECK_INT(bk_loop_free(pal.loop), 0);
        bk_machine_protocol_free(p);
        CHECK_INT(faults_leaks(&world, NULL), 0);
        faults_close(&world);
    }
}

static int make_contexts(bk_loop *loop) {
    bk_tls_config config = {.size = sizeof config, .server = 1, .development = 1};
    int r = bk_tls_context_new(loop, &config, NULL, &offered);
    config = (bk_tls_config){.size = sizeof config, .verify = BK_TLS_VERIFY_NONE};
    return r < 0 ? r : bk_tls_context_new(loop, &config, NULL, &trusting);
}

static void drop_contexts(void) {
    bk_tls_context_unref(offered);
    bk_tls_context_unref(trusting);
    offered = trusting = NULL;
}

/* Mail over memory, with TLS offered. False: there is no engine here. */
static bool mail_open(size_t capacity) {
    static const bk_smtp_config config = {.size = sizeof config, .message = take_mail};
    bk_protocol *p;
    faults_open(&world, NULL);
    pal_open(faults_os(&world));
    late = false;
    mail[0] = '\0';
    if (make_contexts(pal.loop) < 0) {
        drop_contexts();
        CHECK_INT(bk_loop_free(pal.loop), 0);
        faults_close(&world);
        check_skip("no TLS engine is here");
        return false;
    }
    CHECK_INT(bk_smtp_protocol_new(&config, faults_os(&world), &p), 0);
    CHECK_INT(join(&pal, p, capacity, NULL), 0);
    bk_machine_protocol_free(p);
    turn(pal.loop, TURNS);
    return true;
}

static void mail_close(void) {
    drop_contexts();
    CHECK_INT(bk_loop_free(pal.loop), 0);
    CHECK_INT(faults_leaks(&world, NULL), 0);
    faults_close(&world);
}

/* Everything that is answered to this. */
static const char *said(const char *text) {
    pal.got[pal.size = 0] = '\0';
    (void)bk_stream_write(pal.stream, text, strlen(text), BK_COPY, NULL);
    for (int i = 0; i < TURNS && pal.stream != NULL; i++)
        turn(pal.loop, 1);
    return pal.got;
}

#define READY "220 2.0.0 Ready to start TLS\r\n"
#define GREETING "250-localhost\r\n250-PIPELINING\r\n250-SIZE 26214400\r\n250-8BITMIME\r\n"
#define GREETING_END                                                                               \
    "250-SMTPUTF8\r\n250-CHUNKING\r\n250-BINARYMIME\r\n250-DSN\r\n250 ENHANCEDSTATUSCODES\r\n"
#define ENVELOPE "MAIL FROM:<a@b.c>\r\nRCPT TO:<d@e.f>\r\nDATA\r\n"

static void offers_no_tls_of_its_own(void) {
    static const bk_smtp_config config = {.size = sizeof config, .message = take_mail};
    bk_protocol *p;
    pal_open(NULL);
    CHECK_INT(bk_smtp_protocol_new(&config, bk_os_default(), &p), 0);
    CHECK_INT(join(&pal, p, 0, NULL), 0);
    bk_machine_protocol_free(p);
    turn(pal.loop, 20);
    CHECK_STR(said("EHLO c\r\n"), GREETING GREETING_END);
    CHECK_STR(said("STARTTLS\r\n"), "502 5.5.1 command is not implemented\r\n");
    CHECK_INT(bk_loop_free(pal.loop), 0);
}

static void starts_tls_on_a_stream(void) {
    static const size_t capacities[] = {0, 4096, 16};
    for (int i = 0; i < COUNT(capacities); i++) {
        if (!mail_open(capacities[i]))
            return;
        CHECK_STR(said("EHLO c\r\n"), GREETING "250-STARTTLS\r\n" GREETING_END);
        CHECK_STR(said("STARTTLS\r\n"), READY);
        CHECK_INT(bk_stream_start_tls(pal.stream, trusting, "localhost"), 0);
        /* What is said before the handshake is over waits for it. */
        CHECK_STR(said("MAIL FROM:<>\r\n"), "503 5.5.1 HELO or EHLO first\r\n");
        CHECK_STR(said("EHLO c\r\n"), GREETING "250-REQUIRETLS\r\n" GREETING_END);
        CHECK_STR(said("STARTTLS\r\n"), "503 5.5.1 TLS is there already\r\n");
        (void)said(ENVELOPE "x\r\n.\r\n");
        CHECK(strstr(pal.got, "250 2.0.0 message accepted\r\n") != NULL);
        CHECK(strstr(mail, "Received: from c\r\n\tby localhost with ESMTPS; ") == mail);
        CHECK_STR(said("QUIT\r\n"), "221 2.0.0 bye\r\n");
        CHECK_INT(pal.closed, 1);
        CHECK_INT(pal.why, 0);
        mail_close();
    }
}

/* The command was held: what starts TLS is not a callback of the stream, which is paused. */
static void starts_tls_when_it_goes_on(void) {
    if (!mail_open(0))
        return;
    late = true;
    (void)said("EHLO c\r\n" ENVELOPE ".\r\n");
    CHECK_STR(said("STARTTLS\r\n"), "");
    bk_smtp_answer(owed, NULL);
    CHECK_STR(said(""), "250 2.0.0 message accepted\r\n" READY);
    CHECK_INT(bk_stream_start_tls(pal.stream, trusting, NULL), 0);
    CHECK_STR(said("NOOP\r\n"), "250 2.0.0 ok\r\n");
    mail_close();
}

/* With the command, held with it, or after it: nothing said in plain is answered, and the rest of
   the connection is its end. */
static void lets_nothing_into_tls(void) {
    for (int i = 0; i < 4; i++) {
        if (!mail_open(0))
            return;
        late = i == 1;
        if (i == 1) {
            (void)said("EHLO c\r\n" ENVELOPE ".\r\n");
            CHECK_STR(said("STARTTLS\r\n"), "");
            CHECK_STR(said("NOOP\r\n"), "");
            bk_smtp_answer(owed, NULL);
            CHECK_STR(said(""), "250 2.0.0 message accepted\r\n"
                                "554 5.5.0 Nothing may follow STARTTLS\r\n");
        } else if (i == 0) {
            CHECK_STR(said("STARTTLS\r\nNOOP\r\n"), "554 5.5.0 Nothing may follow STARTTLS\r\n");
        } else {
            CHECK_STR(said("STARTTLS\r\n"), READY);
            if (i == 3) { /* slipped in before the client's handshake */
                CHECK_INT(bk_stream_write(pal.stream, "NOOP\r\n", 6, BK_COPY, NULL), 0);
                CHECK_INT(bk_stream_start_tls(pal.stream, trusting, NULL), 0);
            }
            CHECK(strstr(said("NOOP\r\n"), "250") == NULL);
        }
        CHECK_INT(pal.closed, 1);
        mail_close();
    }
}

/* The peer is gone before, or in, the handshake. */
static void ends_without_a_handshake(void) {
    for (int i = 0; i < 4; i++) {
        if (!mail_open(0))
            return;
        late = i == 3;
        if (i == 3)
            (void)said("EHLO c\r\n" ENVELOPE ".\r\n");
        CHECK_INT(bk_stream_write(pal.stream, "STARTTLS\r\n", 10, BK_STATIC, NULL), 0);
        if (i != 1)
            turn(pal.loop, 20);
        if (i < 2 || i == 3)
            CHECK_INT(bk_stream_end(pal.stream), 0);
        else
            bk_stream_abort(pal.stream);
        turn(pal.loop, 20);
        if (i == 3)
            bk_smtp_answer(owed, NULL);
        turn(pal.loop, 20);
        CHECK(strstr(pal.got, i == 2 ? "220 " : READY) != NULL);
        CHECK_INT(pal.closed, 1);
        mail_close();
    }
}

/* What each allocation in turn comes to, through all of it: less than all calls were made. */
static bool without_memory(size_t capacity, long n) {
    if (!mail_open(capacity))
        return false;
    faults_arm(&world, FAULTS_NO_MEMORY, n);
    (void)said("EHLO c\r\n");
    bool ready = strcmp(said("STARTTLS\r\n"), READY) == 0;
    if (ready)
        (void)bk_stream_start_tls(pal.stream, trusting, "localhost");
    (void)said("EHLO c\r\n");
    (void)said(ENVELOPE ".\r\n");
    bool all = faults_disarm(&world) < n;
    CHECK(mail[0] == '\0' || strstr(mail, ready ? " ESMTPS; " : " ESMTP; ") != NULL);
    CHECK(!all || strstr(mail, " ESMTPS; ") != NULL);
    CHECK(pal.closed || (pal.size > 0 && memchr("245", pal.got[0], 3) != NULL));
    mail_close();
    return !all;
}

/* It works, or is refused for now, or the connection ends; and nothing stays behind. */
static void starts_tls_on_a_stream_without_memory(void) {
    for (int capacity = 0; capacity <= 16; capacity += 16)
        for (long n = 1; without_memory((size_t)capacity, n); n++)
            ;
}

int main(int argc, char **argv) {
    static const check_case cases[] = {
        CASE(starts_once),
        CASE(gives_nothing_while_it_waits),
        CASE(pauses_only_when_it_must),
        CASE(stops_when_it_is_blocked),
        CASE(forgets_what_follows_a_close),
        CASE(releases_what_it_cannot_send),
        CASE(may_go_on_after_the_end),
        CASE(says_last_words),
        CASE(runs_on_older_tables),
        CASE(asks_for_tls),
        CASE(drops_what_came_before_tls),
        CASE(goes_on_without_tls),
        CASE(starts_tls_when_it_starts),
        CASE(cuts_lines),
        CASE(calls_hooks),
        CASE(waits_between_lines),
        CASE(lines_without_memory),
        CASE(bounds_what_it_gathers),
        CASE(checks_arguments),
        CASE(runs_on_a_blocking_descriptor),
        CASE(echoes_on_a_stream),
        CASE(last_words_on_a_stream),
        CASE(smtp_times_out_on_a_stream),
        CASE(holds_back_a_peer_that_does_not_read),
        CASE(serves_lines_on_a_stream),
        CASE(waits_on_a_stream),
        CASE(drops_an_answer_that_is_too_late),
        CASE(frees_a_protocol_after_its_last_connection),
        CASE(streams_without_memory),
        CASE(offers_no_tls_of_its_own),
        CASE(starts_tls_on_a_stream),
        CASE(starts_tls_when_it_goes_on),
        CASE(lets_nothing_into_tls),
        CASE(ends_without_a_handshake),
        CASE(starts_tls_on_a_stream_without_memory),
    };
    return check_main(argc, argv, cases, COUNT(cases));
}
