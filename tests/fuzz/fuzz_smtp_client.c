/*
 * fuzz_smtp_client.c: the SMTP client, and a server that may say anything. Whatever it says: each
 * message is told of once, with a reply for each recipient, the end is told once, where the input
 * was cut makes no difference, nothing that was said in plain outlives STARTTLS, and only whole
 * lines and whole messages go out.
 *
 * The first byte of an input says how the client is made, the second how the input is cut; the rest
 * is what the server says.
 */
#include "core/os/os.h"
#include "core/protocol/smtp_client.h"
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>

enum { OUT_ROOM = 1 << 16, MESSAGES = 3 };

typedef struct fuzz_run {
    char out[OUT_ROOM];
    size_t out_size;
    unsigned how;
    int told, queued, closed_told, why, steps;
    char classes[32]; /* of the replies */
    size_t class_count;
    bool closed, secure, full;
} fuzz_run;

static int run_send(bk_machine *m, const void *data, size_t n, bk_release release, void *arg) {
    fuzz_run *r = m->runner_state;
    FUZZ_CHECK(!r->closed);
    if (n <= OUT_ROOM - r->out_size) {
        memcpy(r->out + r->out_size, data, n);
        r->out_size += n;
    }
    if (release != BK_COPY)
        release(arg);
    if (r->how & 0x40) {
        r->full = true;
        bk_machine_block(m, 1);
    }
    return 0;
}

static void run_close(bk_machine *m, int why) {
    (void)why;
    ((fuzz_run *)m->runner_state)->closed = true;
}

static int run_start_tls(bk_machine *m, const void *last, size_t n) {
    fuzz_run *r = m->runner_state;
    FUZZ_CHECK(!r->secure && last == NULL && n == 0);
    r->secure = true;
    return 0;
}

static int run_secure(bk_machine *m) {
    return ((fuzz_run *)m->runner_state)->secure;
}

static const bk_runner_ops runner = {
    .size = sizeof(bk_runner_ops),
    .send = run_send,
    .close = run_close,
    .start_tls = run_start_tls,
    .secure = run_secure,
};

static void heard_sent(void *arg, bk_smtp_client *client, const bk_smtp_message *message,
                       const bk_smtp_result *result) {
    fuzz_run *r = arg;
    (void)client;
    FUZZ_CHECK(result->reply_count == message->recipient_count && !r->closed_told);
    for (size_t i = 0; i < result->reply_count; i++) {
        char class = result->replies[i][0];
        FUZZ_CHECK(class == '2' || class == '4' || class == '5');
        FUZZ_CHECK(r->class_count < sizeof r->classes);
        r->classes[r->class_count++] = class;
    }
    r->told++;
}

static void heard_closed(void *context, bk_smtp_client *client, int why, const char *reply) {
    fuzz_run *r = context;
    (void)client, (void)reply;
    FUZZ_CHECK(why <= 0);
    r->why = why;
    r->closed_told++;
}

/* Step by step: a recipient, the data; or the end, when something was refused. */
static void heard_answered(void *arg, bk_smtp_client *client, const char *reply) {
    static const bk_smtp_recipient to = {.address = (char *)(uintptr_t)"f@g"};
    fuzz_run *r = arg;
    FUZZ_CHECK(!r->closed_told && r->steps < 2);
    int code = reply[0] != '2'  ? -ECANCELED
               : r->steps++ > 0 ? bk_smtp_client_finish(client)
                                : bk_smtp_client_recipient(client, &to);
    if (code < 0)
        bk_smtp_client_drop(client);
}

static int send_one(fuzz_run *r, bk_smtp_client *client, bk_smtp_message *m, int number) {
    if (number == 1 && r->how & 0x80)
        return bk_smtp_client_begin(client, m, heard_answered, heard_sent, r);
    int code = bk_smtp_message_to(m, "d@e");
    if (code == 0 && number != 1)
        code = bk_smtp_message_to(m, "f@g");
    return code < 0 ? code : bk_smtp_client_send(client, m, heard_sent, r);
}

static void queue(fuzz_run *r, bk_os *os, bk_smtp_client *client, int number) {
    static const char *const data[] = {".x\r\n..\r\n", "\xff\xff", ""};
    bk_smtp_message *m;
    if (bk_smtp_message_new(os, number == 1 ? "" : "a@b", &m) < 0)
        return;
    int code = bk_smtp_message_add(m, data[number], strlen(data[number]));
    if (number == 2 && r->how & 0x20)
        m->body = BK_SMTP_BINARYMIME;
    if (code == 0)
        code = send_one(r, client, m, number);
    if (code < 0)
        bk_smtp_message_free(m);
    else
        r->queued++;
}

static void feed(fuzz_run *r, bk_machine *m, const uint8_t *data, size_t n, size_t step) {
    while (n > 0 && !r->closed) {
        size_t size = n < step ? n : step;
        uint8_t *copy = malloc(size);
        FUZZ_CHECK(copy != NULL);
        memcpy(copy, data, size);
        bool plain = !r->secure;
        if (bk_machine_feed(m, copy, size) < 0)
            bk_machine_abort(m, -ENOMEM);
        free(copy);
        data += size;
        n -= size;
        for (int i = 0; r->full && !r->closed && i < 1000; i++) {
            r->full = false;
            bk_machine_block(m, 0);
        }
        if (plain && r->secure) /* else it would depend on the cut what came in plain */
            while (n > 0 && *data != '\n') {
                data++;
                n--;
            }
    }
}

static void run(fuzz_run *r, bk_os *os, unsigned how, const uint8_t *data, size_t n, size_t step) {
    static const unsigned flags[] = {0, BK_SMTP_LMTP, BK_SMTP_TLS_REQUIRED, BK_SMTP_TLS_NEVER};
    bk_smtp_client_config config = {.size = sizeof config,
                                    .context = r,
                                    .flags = flags[how & 3] | BK_SMTP_AUTH_IN_CLEAR,
                                    .user = how & 4 ? "u" : NULL,
                                    .password = how & 4 ? "p" : NULL,
                                    .closed = heard_closed};
    bk_machine *m;
    *r = (fuzz_run){.how = how};
    if (bk_smtp_client_new(&config, os, &m) < 0)
        return;
    for (int i = 0; i < MESSAGES; i++)
        queue(r, os, bk_smtp_client_of(m), i);
    if (how & 8)
        bk_smtp_client_quit(bk_smtp_client_of(m));
    if (bk_machine_start(m, &runner, r) == 0)
        feed(r, m, data, n, step);
    if (how & 0x10)
        bk_machine_end(m);
    bk_machine_free(m);
    FUZZ_CHECK(r->closed_told == 1 && r->told == r->queued);
}

/* Else two runs would not say the same. */
static int no_chance(bk_os *os, void *room, size_t n) {
    (void)os;
    memset(room, 0, n);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    static fuzz_os os;
    static fuzz_run whole, pieces;
    if (n < 2)
        return 0;
    unsigned how = data[0];
    size_t step = 1 + data[1] % 40;
    data += 2;
    n -= 2;
    fuzz_os_open(&os);
    os.os.random = no_chance;
    run(&pieces, &os.os, how, data, n, 1);
    FUZZ_CHECK(pieces.queued == MESSAGES);
    /* TLS drops what came with the last line in plain; and where the queue is full, it depends on
       the cut which replies came before their commands. */
    if (!pieces.secure && !(how & 0x40)) {
        run(&whole, &os.os, how, data, n, step);
        FUZZ_CHECK(whole.out_size == pieces.out_size && whole.why == pieces.why);
        FUZZ_CHECK(memcmp(whole.out, pieces.out, whole.out_size) == 0);
        FUZZ_CHECK(memcmp(whole.classes, pieces.classes, sizeof whole.classes) == 0);
    }
    run(&whole, &os.os, how ^ 0x40, data, n, n > 0 ? n : 1);
    for (unsigned nth = 1; nth <= 40; nth += 3) {
        os.fail_in = nth;
        run(&whole, &os.os, how, data, n, step);
        os.fail_in = 0;
    }
    FUZZ_CHECK(os.blocks == 0);
    return 0;
}
