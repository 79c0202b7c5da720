/*
 * fuzz_smtp.c: the SMTP server. Whatever a client sends: where the input was cut makes no
 * difference, nor whether hooks answer at once; each command has one reply; and the messages that
 * the hook saw are those that a strict reader of both streams finds (tests/c/smtp_reference.h).
 *
 * The first byte of an input says how the server is set up, the second how the input is cut; the
 * rest is what the client sends.
 */
#include "tests/c/smtp_reference.h"
#include "tests/fuzz/fuzz.h"

static served now;

static void run(bk_os *os, unsigned how, bool later, const uint8_t *data, size_t n, size_t piece) {
    unsigned flags =
        (how & 1 ? BK_SMTP_LMTP : 0) | (how & 2 ? BK_SMTP_MAKE_WHOLE : 0) | BK_SMTP_AUTH_IN_CLEAR;
    bk_smtp_config config = served_config(&now, flags, how & 4);
    bk_machine *m;
    now = (served){.later = later};
    if (bk_smtp_new(&config, os, &m) < 0)
        return;
    (void)bk_machine_start(m, &served_ops, &now);
    served_pay(&now);
    for (size_t at = 0; at < n; at += piece)
        served_feed(&now, m, (const char *)data + at, piece < n - at ? piece : n - at);
    if (!now.closed)
        bk_machine_end(m);
    served_pay(&now);
    bk_machine_free(m);
    FUZZ_CHECK(now.connects == 1 && now.disconnects == 1);
}

static void compare(unsigned how, const uint8_t *data, size_t n) {
    reference r = {.in = (const char *)data,
                   .in_end = (const char *)data + n,
                   .out = now.said.bytes,
                   .out_end = now.said.bytes + now.said.size,
                   .lmtp = how & 1,
                   .whole = how & 2,
                   .closed = now.closed};
    reference_read(&r);
    fuzz_say("said:\n%sread: %s", now.said.bytes, r.wrong != NULL ? r.wrong : "fine");
    FUZZ_CHECK(r.wrong == NULL);
    FUZZ_CHECK(text_same(&r.messages, &now.messages));
    text_clear(&r.message);
    text_clear(&r.messages);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    static fuzz_os os;
    if (n < 2)
        return 0;
    unsigned how = data[0];
    size_t piece = 1 + data[1];
    data += 2;
    n -= 2;
    fuzz_os_open(&os);
    run(&os.os, how, false, data, n, n > 0 ? n : 1);
    compare(how, data, n);
    text said = now.said, messages = now.messages;
    text_clear(&now.chunks);
    for (int later = 0; later < 2; later++) {
        run(&os.os, how, later, data, n, later ? piece : 1);
        FUZZ_CHECK(text_same(&said, &now.said) && text_same(&messages, &now.messages));
        served_clear(&now);
    }
    text_clear(&said);
    text_clear(&messages);
    for (unsigned nth = 1; nth <= 12; nth++) { /* each allocation fails */
        os.fail_in = nth;
        run(&os.os, how, how & 8, data, n, piece);
        os.fail_in = 0;
        served_clear(&now);
    }
    FUZZ_CHECK(os.blocks == 0);
    return 0;
}
