/*
 * engine.c: the suite for a TLS engine, which is run as a server, as a client, or as both. It meets
 * its peer through becket's own TLS transport, as everywhere, on wires that the cases hold in their
 * hands (link.h). Called by its author through bk_conform_engine(), and by tests/c/test_tls.c.
 *
 * Every case is run under each version of TLS that both engines have (in haste: the best of them);
 * those of the second list at the end, which are about versions or about none, once.
 */
#include "tests/conformance/link.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static const bk_conform_engines *engines_of(const bk_conform_case *c) {
    return ((const link_subject *)c->subject)->engines;
}

static int version_of(const bk_conform_case *c) {
    return ((const link_subject *)c->subject)->version;
}

/* ---- Questions ---- */

/* A number; negative: no answer. */
static int ask(side *x, int what) {
    int number = 0;
    size_t size = sizeof number;
    int code = bk_stream_query(x->s, what, &number, &size);
    return code < 0 ? code : number;
}

/* A text, in memory that the next call uses again; never NULL. */
static const char *ask_text(side *x, int what) {
    static char rooms[2][256];
    static int turn;
    char *room = rooms[turn++ % 2];
    size_t size = sizeof rooms[0];
    room[0] = '\0';
    int code = bk_stream_query(x->s, what, room, &size);
    EXPECT(x->c, code < 0 || (size > 0 && room[size - 1] == '\0'));
    return room;
}

/* How many bytes the peer's certificate has; negative: no answer. */
static int ask_certificate(side *x, unsigned char *room, size_t size) {
    int code = bk_stream_query(x->s, BK_QUERY_TLS_CERT, room, &size);
    return code < 0 ? code : (int)size;
}

static bool speaks(side *x, int version) {
    return strcmp(ask_text(x, BK_QUERY_TLS_VERSION),
                  version == BK_TLS_1_3 ? "TLSv1.3" : "TLSv1.2") == 0;
}

static int base64_digit(char digit) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *found = digit != '\0' ? strchr(digits, digit) : NULL;
    return found != NULL ? (int)(found - digits) : -1;
}

/* The first certificate of a file, as DER; 0: there is none. */
static size_t read_certificate(const char *path, unsigned char *room, size_t size) {
    static const char head[] = "-----BEGIN CERTIFICATE-----";
    char text[8192];
    FILE *file = fopen(path, "r");
    size_t n = file != NULL ? fread(text, 1, sizeof text - 1, file) : 0, used = 0;
    unsigned bits = 0, count = 0;
    if (file != NULL)
        (void)fclose(file);
    text[n] = '\0';
    const char *at = strstr(text, head);
    for (at = at != NULL ? at + strlen(head) : ""; *at != '\0' && *at != '-' && used < size; at++) {
        int digit = base64_digit(*at);
        if (digit < 0)
            continue;
        bits = bits << 6 | (unsigned)digit;
        count += 6;
        if (count >= 8)
            room[used++] = (unsigned char)(bits >> (count -= 8));
    }
    return used;
}

static bool shows(side *x, tls_link *l, const char *name) {
    unsigned char shown[4096], wanted[4096];
    int n = ask_certificate(x, shown, sizeof shown);
    size_t m = read_certificate(link_path(l, name), wanted, sizeof wanted);
    return n > 0 && (size_t)n == m && memcmp(shown, wanted, m) == 0;
}

static void answers(bk_conform_case *c) {
    tls_link l;
    link_init(&l, c);
    l.configs[CLIENT].certificate = link_path(&l, "client.crt");
    l.configs[CLIENT].key = link_path(&l, "client.key");
    l.configs[CLIENT].alpn = l.configs[SERVER].alpn = "h2";
    l.configs[SERVER].verify = BK_TLS_VERIFY_REQUIRED;
    l.configs[SERVER].ca = link_path(&l, "ca.crt");
    TRY(c, link_open(&l));
    OPENED(&l);
    for (int i = 0; i < 2; i++) {
        side *x = &l.p.sides[i];
        const char *engine = (i == CLIENT ? engines_of(c)->client : engines_of(c)->server)->name;
        EXPECT(c, ask(x, BK_QUERY_TLS) == 1);
        EXPECT(c, strcmp(ask_text(x, BK_QUERY_TLS_ENGINE), engine) == 0);
        EXPECT(c, version_of(c) == 0 || speaks(x, version_of(c)));
        EXPECT(c, ask_text(x, BK_QUERY_TLS_CIPHER)[0] != '\0');
        EXPECT(c, ask(x, BK_QUERY_TLS_BITS) == 128 || ask(x, BK_QUERY_TLS_BITS) == 256);
        EXPECT(c, strcmp(ask_text(x, BK_QUERY_TLS_ALPN), "h2") == 0);
        EXPECT(c, strcmp(ask_text(x, BK_QUERY_TLS_NAME), "localhost") == 0);
        EXPECT(c, ask(x, BK_QUERY_TLS_RESUMED) == 0);
        EXPECT(c, ask(x, BK_QUERY_TLS_VERIFIED) == 1);
        EXPECT(c, strcmp(ask_text(x, BK_QUERY_TLS_WORDS), "") == 0);
        EXPECT(c, strcmp(ask_text(x, BK_QUERY_NAME), "tls") == 0);
        EXPECT(c, ask(x, 1 << 20) == -ENOTSUP);
    }
    EXPECT(c, ask(l.client, BK_QUERY_TLS_BITS) == ask(l.server, BK_QUERY_TLS_BITS));
    EXPECT(c, strcmp(ask_text(l.client, BK_QUERY_TLS_VERSION),
                     ask_text(l.server, BK_QUERY_TLS_VERSION)) == 0);
    EXPECT(c, shows(l.client, &l, "server.crt"));
    EXPECT(c, shows(l.server, &l, "client.crt"));
    link_finish(&l);
out:
    link_close(&l);
}

/* Exactly the room that is needed will do; a byte less will not, and leaves all as it was. */
static void answers_need_room(bk_conform_case *c) {
    static const int numbers[] = {BK_QUERY_TLS, BK_QUERY_TLS_BITS, BK_QUERY_TLS_RESUMED,
                                  BK_QUERY_TLS_VERIFIED};
    tls_link l;
    link_init(&l, c);
    TRY(c, link_open(&l));
    OPENED(&l);
    EXPECT(c, ask(l.server, BK_QUERY_TLS_VERIFIED) == 0); /* it asked for no certificate */
    for (int what = BK_QUERY_TLS; what <= BK_QUERY_TLS_VERIFIED; what++) {
        unsigned char room[4096] = {0}, again[4096] = {0};
        size_t n = sizeof room;
        TRY(c, bk_stream_query(l.client->s, what, room, &n));
        size_t size = n;
        TRY(c, bk_stream_query(l.client->s, what, again, &size));
        EXPECT(c, size == n && memcmp(room, again, n) == 0);
        for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
            EXPECT(c, what != numbers[i] || n == sizeof(int));
        if (n == 0)
            continue;
        memset(again, 0xaa, sizeof again);
        size = n - 1;
        EXPECT(c, bk_stream_query(l.client->s, what, again, &size) == -ENOSPC);
        EXPECT(c, size == n - 1 && again[n - 1] == 0xaa);
        size = 0;
        EXPECT(c, bk_stream_query(l.client->s, what, again, &size) == -ENOSPC);
    }
    link_finish(&l);
out:
    link_close(&l);
}

/* Before the handshake is over, nothing is known; and nothing is made up. */
static void answers_come_late(bk_conform_case *c) {
    tls_link l;
    link_init(&l, c);
    TRY(c, link_contexts(&l));
    TRY(c, link_join(&l));
    l.wires[SERVER].stop = 0;
    SETTLE(&l);
    for (int i = 0; i < 2; i++) {
        for (int what = BK_QUERY_TLS_ENGINE; what < BK_QUERY_TLS_WORDS; what++) {
            char room[4096];
            size_t size = sizeof room;
            int code = bk_stream_query(l.p.sides[i].s, what, room, &size);
            EXPECT(c, code == -ENOTSUP || l.p.sides[i].opened == 1);
        }
        EXPECT(c, strcmp(ask_text(&l.p.sides[i], BK_QUERY_TLS_WORDS), "") == 0);
        EXPECT(c,
               ask(&l.p.sides[i], BK_QUERY_TLS_VERIFIED) == -ENOTSUP || l.p.sides[i].opened == 1);
    }
    l.wires[SERVER].stop = SIZE_MAX;
    OPENED(&l);
    link_finish(&l);
out:
    link_close(&l);
}

/* ---- Bytes both ways ---- */

static void handshake(bk_conform_case *c) {
    tls_link l;
    link_init(&l, c);
    TRY(c, link_open(&l));
    OPENED(&l);
    EXPECT(c, l.client->received == 0 && l.server->received == 0);
    EXPECT(c, bk_stream_queued(l.client->s) == 0 && bk_stream_queued(l.server->s) == 0);
    SETTLE(&l);
    conform_idle(c, l.p.loop);
    for (int i = 0; i < 2; i++)
        if (!side_send(&l.p.sides[i], 1000, PAIR_MIX))
            goto out;
    link_finish(&l);
out:
    link_close(&l);
}

/* Nothing that was said in plain is to be found on the wires. */
static void nothing_in_plain(bk_conform_case *c) {
    tls_link l;
    link_init(&l, c);
    TRY(c, link_open(&l));
    for (int i = 0; i < 2; i++)
        if (!side_send(&l.p.sides[i], 100, PAIR_REFER))
            goto out;
    AWAIT(&l, l.client->got == 100 && l.server->got == 100);
    for (int i = 0; i < 2; i++) {
        unsigned char plain[8];
        const wire *w = &l.wires[i];
        for (size_t j = 0; j < sizeof plain; j++)
            plain[j] = pair_pattern(i, j);
        for (size_t at = 0; at + sizeof plain <= w->used; at++)
            MUST(c, memcmp(w->bytes + at, plain, sizeof plain) != 0);
    }
    link_finish(&l);
out:
    link_close(&l);
}

static void pump(tls_link *l, uint64_t goal, size_t piece) {
    for (int i = 0; i < 2; i++) {
        side *x = &l->p.sides[i];
        x->goal = goal;
        x->piece = piece;
        x->mode = PAIR_MIX;
        side_pump(x);
    }
}

static void pump_both(bk_conform_case *c, uint64_t goal, size_t piece, size_t most, size_t tight) {
    tls_link l;
    link_init(&l, c);
    l.capacity = tight;
    TRY(c, link_open(&l));
    for (int i = 0; i < 2; i++) {
        l.wires[i].most = most;
        l.wires[i].held = tight != 0 ? tight : SIZE_MAX;
    }
    OPENED(&l);
    pump(&l, goal, piece);
    AWAIT(&l, l.client->got == goal && l.server->got == goal);
    link_finish(&l);
out:
    link_close(&l);
}

static void sizes(bk_conform_case *c) {
    static const size_t pieces[] = {1, 512, 16 * 1024, 17 * 1024, 1024 * 1024};
    for (size_t i = 0; i < (c->quick ? 3 : 5) && c->failed == 0 && !conform_excused(c); i++)
        pump_both(c, pieces[i], pieces[i], 0, 0);
}

static void pieces_of_all_sizes(bk_conform_case *c) {
    pump_both(c, c->quick ? 100 * 1000 : 4 * 1024 * 1024, 0, 0, 0);
}

static void byte_by_byte(bk_conform_case *c) {
    pump_both(c, c->quick ? 20 : 1000, c->quick ? 0 : 300, 1, 0);
}

static void seven_bytes_at_a_time(bk_conform_case *c) {
    pump_both(c, c->quick ? 100 : 50 * 1000, 0, 7, 0);
}

/* Wires that hold less than a record: whoever sends has to wait, in the midst of it. */
static void tight_wires(bk_conform_case *c) {
    pump_both(c, c->quick ? 60 * 1000 : 1024 * 1024, 0, 0, 700);
}

static void tightest_wires(bk_conform_case *c) {
    pump_both(c, c->quick ? 1000 : 20 * 1000, 0, 0, 1);
}

/* One way, as fast as it will go, while the other way stands still and then catches up. */
static void one_way_stands_still(bk_conform_case *c) {
    const uint64_t goal = c->quick ? 400 * 1000 : 1024 * 1024;
    tls_link l;
    link_init(&l, c);
    l.capacity = 5000;
    TRY(c, link_open(&l));
    OPENED(&l);
    SETTLE(&l);
    l.wires[SERVER].held = 5000;
    l.wires[SERVER].stop = l.wires[SERVER].moved;
    pump(&l, goal, 0);
    AWAIT(&l, l.server->got == goal);
    EXPECT(c, l.client->got == 0 && l.server->blocked == 1);
    SETTLE(&l);
    conform_idle(c, l.p.loop);
    l.wires[SERVER].stop = SIZE_MAX;
    AWAIT(&l, l.client->got == goal);
    link_finish(&l);
out:
    link_close(&l);
}

/* Each flight of the handshake, and then of the messages, comes as a whole. */
static void all_at_once(bk_conform_case *c) {
    tls_link l;
    link_init(&l, c);
    TRY(c, link_open(&l));
    for (int flight = 0; flight < 10 && l.server->opened == 0; flight++) {
        SETTLE(&l);
        for (int i = 0; i < 2; i++)
            l.wires[i].stop = l.wires[i].used;
    }
    SETTLE(&l);
    EXPECT(c, l.client->opened == 1 && l.server->opened == 1);
    for (int message = 0; message < 10; message++) {
        for (int i = 0; i < 2; i++) {
            if (!side_send(&l.p.sides[i], 3000, PAIR_MIX))
                goto out;
            bk_stream_flush(l.p.sides[i].s); /* a record of its own */
        }
    }
    SETTLE(&l);
    EXPECT(c, l.client->got == 0 && l.server->got == 0);
    l.wires[CLIENT].stop = l.wires[SERVER].stop = SIZE_MAX;
    link_finish(&l);
out:
    link_close(&l);
}

/* ---- Splits ---- */

enum { SPLITS = 4 };

/* The handshake again and again, with one direction in two parts that are cut at every place: in
   this case at every fourth, and fewer where both engines have been through it with themselves. */
static void split_handshake(bk_conform_case *c, int which, size_t first) {
    const size_t few = engines_of(c)->server == engines_of(c)->client ? 1 : 13;
    tls_link l;
    size_t n = first + 1;
    link_init(&l, c);
    l.configs[CLIENT].no_tickets = 1; /* or they would become shorter */
    TRY(c, link_contexts(&l));
    for (size_t at = first; at < n; at += c->quick ? 600 : SPLITS * few) {
        TRY(c, at == first ? link_join(&l) : link_join_again(&l));
        l.wires[which].stop = at;
        SETTLE(&l);
        EXPECT(c, l.server->opened == 0 || at > 0);
        l.wires[which].stop = SIZE_MAX;
        OPENED(&l);
        SETTLE(&l);
        n = l.wires[which].used;
        if (!side_send(l.client, 10, PAIR_REFER) || !side_send(l.server, 10, PAIR_REFER))
            goto out;
        link_finish(&l);
        if (l.client->closed != 1 || l.server->closed != 1)
            goto out;
    }
out:
    link_close(&l);
}

#define SPLIT(n)                                                                                   \
    static void hello_split_##n(bk_conform_case *c) {                                              \
        split_handshake(c, CLIENT, n);                                                             \
    }                                                                                              \
    static void answer_split_##n(bk_conform_case *c) {                                             \
        split_handshake(c, SERVER, n);                                                             \
    }

SPLIT(0)
SPLIT(1)
SPLIT(2)
SPLIT(3)

/* One message, cut in two at every place. */
static void message_split_everywhere(bk_conform_case *c) {
    tls_link l;
    link_init(&l, c);
    TRY(c, link_open(&l));
    OPENED(&l);
    SETTLE(&l);
    for (int i = 0; i < 2; i++) {
        side *x = &l.p.sides[i];
        wire *w = &l.wires[i];
        size_t n = 100;
        for (size_t at = 0; at < n; at += c->quick ? 29 : 1) {
            size_t before = w->moved;
            w->stop = before + at;
            if (!side_send(x, 50, PAIR_REFER))
                goto out;
            SETTLE(&l);
            n = w->used - before;
            EXPECT(c, x->peer->got == x->sent - 50 && n > 50); /* not before all of it is there */
            w->stop = SIZE_MAX;
            AWAIT(&l, x->peer->got == x->sent);
            SETTLE(&l);
        }
    }
    link_finish(&l);
out:
    link_close(&l);
}

/* ---- The rules that make TLS a transport like any other ---- */

/* Tickets, and parts of records, are progress without plaintext: neither data nor the end. */
static void tickets_are_no_data(bk_conform_case *c) {
    tls_link l;
    link_init(&l, c);
    TRY(c, link_open(&l));
    l.wires[SERVER].most = 1;
    OPENED(&l);
    SETTLE(&l);
    EXPECT(c, l.client->received == 0 && l.client->ended == 0 && l.client->closed == 0);
    l.wires[SERVER].stop = l.wires[SERVER].moved;
    if (!side_send(l.server, 500, PAIR_REFER))
        goto out;
    SETTLE(&l);
    l.wires[SERVER].stop = l.wires[SERVER].used - 1; /* all but the last byte of the record */
    SETTLE(&l);
    EXPECT(c, l.client->received == 0 && l.client->ended == 0 && l.client->closed == 0);
    conform_idle(c, l.p.loop);
    l.wires[SERVER].stop = SIZE_MAX;
    AWAIT(&l, l.client->got == 500);
    link_finish(&l);
out:
    link_close(&l);
}

/* All records of one delivery are looked at; no more of them will come to remind anybody. */
static void many_records_at_once(bk_conform_case *c) {
    tls_link l;
    link_init(&l, c);
    TRY(c, link_open(&l));
    OPENED(&l);
    SETTLE(&l);
    l.wires[CLIENT].stop = l.wires[CLIENT].moved;
    for (int i = 0; i < 200; i++) {
        if (!side_send(l.client, 1 + (size_t)i % 50, PAIR_MIX))
            goto out;
        bk_stream_flush(l.client->s);
    }
    SETTLE(&l);
    EXPECT(c, l.wires[CLIENT].used - l.wires[CLIENT].moved > l.client->sent + 200 * 16);
    l.wires[CLIENT].stop = SIZE_MAX;
    AWAIT(&l, l.server->got == l.client->sent);
    link_finish(&l);
out:
    link_close(&l);
}

static bool cannot(bk_conform_case *c, const bk_tls_engine *engine, const char *what) {
    if (!c->quick)
        printf("# %s/%s: %s cannot: %s\n", c->suite, c->entry->name, engine->name, what);
    conform_skip(c, what);
    return true;
}

/* 1: it did; 0: it cannot, and that is as it should be, or has been told; negative: failed. */
static int rekey(side *x) {
    const bk_conform_engines *engines = engines_of(x->c);
    int code = bk_stream_rekey(x->s);
    if (speaks(x, BK_TLS_1_2))
        EXPECT(x->c, code == -ENOTSUP);
    else if (code == -ENOTSUP)
        (void)cannot(x->c, x->index == CLIENT ? engines->client : engines->server, "rekey");
    return code == -ENOTSUP ? 0 : code < 0 ? code : 1;
}

/* Each side in turn gets another key and asks for one. It is answered when the peer next sends;
   requests do not cross, as GnuTLS does not bear that, and are few, as many look like an attack. */
static void rekeyed(bk_conform_case *c) {
    tls_link l;
    link_init(&l, c);
    TRY(c, link_open(&l));
    OPENED(&l);
    SETTLE(&l);
    for (int i = 0; i < 6; i++) {
        side *x = &l.p.sides[i % 2], *y = x->peer;
        const wire *w = &l.wires[i % 2];
        if (i >= 2 && !side_send(x, 30 * 1000, PAIR_MIX)) /* or in the midst of nothing */
            goto out;
        size_t before = w->used;
        int code = rekey(x), received = y->received;
        TRY(c, code);
        AWAIT(&l, code == 0 || w->used > before); /* at once, though nothing more is written */
        if (i < 2) {
            SETTLE(&l);
            EXPECT(c, y->received == received && x->ended == 0 && y->ended == 0);
        }
        if (!side_send(x, 300, PAIR_MIX) || !side_send(y, 300, PAIR_MIX))
            goto out;
        AWAIT(&l, x->got == y->sent && y->got == x->sent);
    }
    link_finish(&l);
out:
    link_close(&l);
}

static void start_tls(side *x) {
    tls_link *l = (tls_link *)((char *)x->p - offsetof(tls_link, p));
    const char *name = x->index == CLIENT ? l->name : NULL;
    (void)FAILED(x->c, bk_stream_start_tls(x->s, l->contexts[x->index], name));
    l->plain[x->index] = false;
}

/* What is written during the handshake is queued, counts as queued, and comes after it. */
static void written_in_the_handshake(bk_conform_case *c, size_t n) {
    tls_link l;
    link_init(&l, c);
    l.plain[CLIENT] = l.plain[SERVER] = true;
    TRY(c, link_open(&l));
    for (int i = 0; i < 2; i++) {
        side *x = &l.p.sides[i];
        l.wires[i].stop = 0;
        start_tls(x);
        EXPECT(c, bk_stream_start_tls(x->s, l.contexts[i], NULL) == -EALREADY);
        x->goal = n;
        x->piece = 1000;
        x->mode = PAIR_MIX;
        side_pump(x);
        EXPECT(c, bk_stream_queued(x->s) == x->sent && x->sent > 0);
        EXPECT(c, (x->blocked == 1) == (n > x->high));
    }
    for (int flight = 0; flight < 4; flight++) {
        SETTLE(&l);
        for (int i = 0; i < 2; i++) {
            side *x = &l.p.sides[i];
            if (x->upgraded == 0)
                EXPECT(c, bk_stream_queued(x->s) == x->sent && x->got == 0);
            l.wires[i].stop = l.wires[i].used;
        }
    }
    l.wires[CLIENT].stop = l.wires[SERVER].stop = SIZE_MAX;
    AWAIT(&l, l.client->upgraded == 1 && l.server->upgraded == 1);
    AWAIT(&l, l.client->got == n && l.server->got == n);
    link_finish(&l);
out:
    link_close(&l);
}

static void little_written_in_the_handshake(bk_conform_case *c) {
    written_in_the_handshake(c, 1000);
}

static void much_written_in_the_handshake(bk_conform_case *c) {
    written_in_the_handshake(c, 300 * 1000);
}

/* An end without close_notify, behind a whole record or within one. */
static void cut_off(bk_conform_case *c, int which, size_t part, bool allowed) {
    tls_link l;
    link_init(&l, c);
    side *x = &l.p.sides[which], *y = x->peer;
    wire *w = &l.wires[which];
    x->may_break = true;
    y->may_break = !allowed;
    l.configs[!which].allow_truncation = allowed;
    TRY(c, link_open(&l));
    OPENED(&l);
    if (!side_send(x, 100, PAIR_REFER))
        goto out;
    AWAIT(&l, y->got == 100);
    SETTLE(&l);
    w->stop = w->moved + part;
    if (!side_send(x, 100, PAIR_REFER))
        goto out;
    SETTLE(&l);
    wire_cut(w);
    AWAIT(&l, y->closed == 1);
    EXPECT(c, y->why == (allowed ? 0 : BK_ETRUNCATED));
    EXPECT(c, y->ended == allowed && y->got == 100);
    EXPECT(c, (l.words[!which][0] == '\0') == allowed);
out:
    link_close(&l);
}

static void truncation(bk_conform_case *c) {
    for (int i = 0; i < 2 && c->failed == 0 && !conform_excused(c); i++) {
        cut_off(c, i, 0, false);
        cut_off(c, i, 20, false);
    }
}

static void truncation_allowed(bk_conform_case *c) {
    for (int i = 0; i < 2 && c->failed == 0 && !conform_excused(c); i++)
        cut_off(c, i, 0, true);
}

/* A side that is aborted says no good-bye, and that is told. */
static void aborted(bk_conform_case *c) {
    for (int i = 0; i < 2 && c->failed == 0 && !conform_excused(c); i++) {
        tls_link l;
        link_init(&l, c);
        side *x = &l.p.sides[i], *y = x->peer;
        y->may_break = true;
        TRY(c, link_open(&l));
        OPENED(&l);
        side_abort(x);
        AWAIT(&l, x->closed == 1 && y->closed == 1);
        EXPECT(c, y->why == BK_ETRUNCATED && y->ended == 0);
    out:
        link_close(&l);
    }
}

/* Each direction ends on its own: who has heard the peer's good-bye may go on writing. */
static void ends_one_by_one(bk_conform_case *c) {
    for (int i = 0; i < 2 && c->failed == 0 && !conform_excused(c); i++) {
        tls_link l;
        link_init(&l, c);
        side *x = &l.p.sides[i], *y = x->peer;
        x->keep = y->keep = true;
        TRY(c, link_open(&l));
        OPENED(&l);
        if (!side_send(x, 1000, PAIR_REFER))
            goto out;
        TRY(c, bk_stream_end(x->s));
        AWAIT(&l, y->ended == 1);
        EXPECT(c, y->got == 1000 && x->ended == 0);
        SETTLE(&l);
        conform_idle(c, l.p.loop);
        EXPECT(c, x->closed == 0 && y->closed == 0);
        y->goal = 100 * 1000;
        side_pump(y);
        AWAIT(&l, x->got == y->goal);
        EXPECT(c, x->ended == 0);
        TRY(c, bk_stream_end(y->s));
        AWAIT(&l, x->ended == 1 || x->closed == 1);
        EXPECT(c, x->ended == 1);
        if (x->s != NULL)
            side_close(x);
        if (y->s != NULL)
            side_close(y);
        AWAIT(&l, x->closed == 1 && y->closed == 1);
        EXPECT(c, x->why == 0 && y->why == 0);
    out:
        link_close(&l);
    }
}

/* ---- Starting in mid-stream ---- */

enum { LINE = 20 };

static void on_line(side *x, const char *data, size_t n) {
    (void)data, (void)n;
    if (x->step != 0 || x->got < LINE)
        return;
    x->step = 1;
    if (x->index == SERVER)
        (void)side_send(x, LINE, PAIR_MIX); /* goes out in plain: it was written before */
    start_tls(x);
    (void)side_send(x, 1000, PAIR_MIX);
}

static void started_in_mid_stream(bk_conform_case *c) {
    tls_link l;
    link_init(&l, c);
    l.plain[CLIENT] = l.plain[SERVER] = true;
    l.client->on_received = l.server->on_received = on_line;
    TRY(c, link_open(&l));
    EXPECT(c, bk_stream_start_tls(l.client->s, NULL, NULL) == -ENOTSUP); /* nobody offers it */
    EXPECT(c, bk_stream_start_tls(NULL, l.contexts[CLIENT], NULL) == -EINVAL);
    EXPECT(c, bk_stream_rekey(l.client->s) == -ENOTSUP && bk_stream_rekey(NULL) == -EINVAL);
    EXPECT(c, ask(l.client, BK_QUERY_TLS) == -ENOTSUP);
    EXPECT(c, ask(l.client, BK_QUERY_TLS_BITS) == -ENOTSUP);
    if (!side_send(l.client, LINE, PAIR_COPY))
        goto out;
    AWAIT(&l, l.client->upgraded == 1 && l.server->upgraded == 1);
    EXPECT(c, ask(l.client, BK_QUERY_TLS) == 1 && l.client->opened == 1);
    for (size_t i = 0; i < LINE && l.wires[SERVER].used >= LINE; i++)
        EXPECT(c, l.wires[SERVER].bytes[i] == pair_pattern(SERVER, i));
    link_finish(&l);
out:
    link_close(&l);
}

/* The protocol drops what came with the line, as it must. */
static void on_line_with_more(side *x, const char *data, size_t n) {
    (void)data;
    if (x->step != 0)
        return;
    MUST(x->c, n >= LINE);
    x->step = 1;
    x->unchecked = false;
    x->got = LINE;
    on_line((x->step = 0, x), NULL, 0);
}

static int room_for_line(side *x, bk_room *ret_room) {
    static char room[4096];
    *ret_room = (bk_room){room, x->step == 0 ? LINE : sizeof room};
    return 0;
}

static const char injected[] = "DELETE everything; this was said in plain\r\n";

/* Somebody in the middle adds plaintext to the line after which TLS starts. What was read with the
   line is the protocol's to drop; what was not goes to the engine, which knows it for no TLS. */
static void inject(bk_conform_case *c, int which, bool read_with_line) {
    tls_link l;
    link_init(&l, c);
    side *x = &l.p.sides[which], *y = x->peer; /* y is the victim */
    wire *w = &l.wires[which];
    l.plain[CLIENT] = l.plain[SERVER] = true;
    x->on_received = on_line;
    y->on_received = on_line_with_more;
    y->unchecked = true;
    x->may_break = y->may_break = !read_with_line;
    if (!read_with_line) {
        y->protocol = &pair_roomy;
        y->on_room = room_for_line;
    }
    TRY(c, link_open(&l));
    w->stop = 0;
    if (!side_send(l.client, LINE, PAIR_COPY))
        goto out;
    AWAIT(&l, w->used >= LINE);
    w->used = LINE; /* should there be more: nothing is expected */
    wire_inject(w, injected, sizeof injected - 1);
    w->stop = SIZE_MAX;
    if (read_with_line) {
        AWAIT(&l, x->upgraded == 1 && y->upgraded == 1);
        link_finish(&l);
    } else {
        AWAIT(&l, y->closed == 1);
        EXPECT(c, y->why == BK_ETLS_PROTOCOL && y->upgraded == 0 && y->got == LINE);
    }
out:
    link_close(&l);
}

static void injected_with_the_line(bk_conform_case *c) {
    inject(c, CLIENT, true);
}

static void injected_behind_the_line(bk_conform_case *c) {
    inject(c, CLIENT, false);
}

/* ---- The reader's pace ---- */

static char one_byte[1];

static int room_of_one(side *x, bk_room *ret_room) {
    (void)x;
    *ret_room = (bk_room){one_byte, 1};
    return 0;
}

static void room_of_one_byte(bk_conform_case *c) {
    const uint64_t goal = c->quick ? 300 : 40 * 1000;
    tls_link l;
    link_init(&l, c);
    for (int i = 0; i < 2; i++) {
        l.p.sides[i].protocol = &pair_roomy;
        l.p.sides[i].on_room = room_of_one;
    }
    TRY(c, link_open(&l));
    OPENED(&l);
    pump(&l, goal, goal);
    AWAIT(&l, l.client->got == goal && l.server->got == goal);
    EXPECT(c, l.client->received == (int)goal);
    link_finish(&l);
out:
    link_close(&l);
}

static void pause_now(side *x, const char *data, size_t n) {
    (void)data, (void)n;
    side_pause(x);
}

/* Paused after each piece: nothing is lost, nothing comes meanwhile, and nobody spins. */
static void pause_often(bk_conform_case *c, bool one, uint64_t goal) {
    tls_link l;
    link_init(&l, c);
    side *x = l.client, *y = l.server;
    y->on_received = pause_now;
    y->protocol = one ? &pair_roomy : NULL;
    y->on_room = room_of_one;
    TRY(c, link_open(&l));
    OPENED(&l);
    side_pause(y);
    x->goal = goal;
    x->mode = PAIR_MIX;
    side_pump(x);
    SETTLE(&l);
    EXPECT(c, y->received == 0);
    while (y->got < goal) {
        int before = y->received;
        side_resume(y);
        AWAIT(&l, y->received > before);
        if (before < 3) {
            SETTLE(&l);
            conform_idle(c, l.p.loop);
        }
        EXPECT(c, y->received == before + 1);
    }
    if (y->paused)
        side_resume(y);
    link_finish(&l);
out:
    link_close(&l);
}

static void pauses(bk_conform_case *c) {
    pause_often(c, false, c->quick ? 100 * 1000 : 1000 * 1000);
}

static void pauses_within_records(bk_conform_case *c) {
    pause_often(c, true, c->quick ? 100 : 2000);
}

/* The end is there, with data before it, while the reader is paused. */
static void paused_at_the_end(bk_conform_case *c) {
    tls_link l;
    link_init(&l, c);
    side *x = l.client, *y = l.server;
    TRY(c, link_open(&l));
    OPENED(&l);
    side_pause(y);
    if (!side_send(x, 40 * 1000, PAIR_REFER))
        goto out;
    side_close(x);
    AWAIT(&l, x->closed == 1);
    SETTLE(&l);
    conform_idle(c, l.p.loop);
    EXPECT(c, y->received == 0 && y->ended == 0 && y->closed == 0 && x->why == 0);
    side_resume(y);
    AWAIT(&l, y->closed == 1);
    EXPECT(c, y->got == 40 * 1000 && y->ended == 1 && y->why == 0);
out:
    link_close(&l);
}

/* ---- Closing ---- */

static void closed_by_the_server(bk_conform_case *c) {
    tls_link l;
    link_init(&l, c);
    TRY(c, link_open(&l));
    OPENED(&l);
    if (!side_send(l.server, 100 * 1000, PAIR_REFER))
        goto out;
    side_close(l.server);
    AWAIT(&l, l.client->closed == 1 && l.server->closed == 1);
    EXPECT(c, l.client->why == 0 && l.server->why == 0);
    EXPECT(c, l.client->got == 100 * 1000 && l.client->ended == 1);
out:
    link_close(&l);
}

static void closed_by_both(bk_conform_case *c) {
    tls_link l;
    link_init(&l, c);
    TRY(c, link_open(&l));
    OPENED(&l);
    SETTLE(&l);
    side_close(l.server);
    side_close(l.client);
    AWAIT(&l, l.client->closed == 1 && l.server->closed == 1);
    EXPECT(c, l.client->why == 0 && l.server->why == 0);
out:
    link_close(&l);
}

/* With linger_ns, the good-bye of the peer is waited for, and data before it is dropped. */
static void lingers(bk_conform_case *c) {
    tls_link l;
    link_init(&l, c);
    side *x = l.client, *y = l.server;
    l.configs[CLIENT].linger_ns = 20 * 1000 * CONFORM_MS;
    TRY(c, link_open(&l));
    OPENED(&l);
    SETTLE(&l);
    l.wires[SERVER].stop = l.wires[SERVER].moved;
    if (!side_send(y, 5000, PAIR_REFER))
        goto out;
    SETTLE(&l);
    side_close(x);
    AWAIT(&l, y->closed == 1);
    SETTLE(&l);
    conform_idle(c, l.p.loop);
    EXPECT(c, y->why == 0 && x->closed == 0);
    l.wires[SERVER].stop = SIZE_MAX;
    AWAIT(&l, x->closed == 1);
    EXPECT(c, x->why == 0 && x->received == 0);
out:
    link_close(&l);
}

static void lingers_not_for_ever(bk_conform_case *c) {
    tls_link l;
    link_init(&l, c);
    side *x = l.client, *y = l.server;
    l.configs[CLIENT].linger_ns = CONFORM_MS;
    x->may_break = y->may_break = true;
    y->keep = true;
    TRY(c, link_open(&l));
    OPENED(&l);
    side_close(x);
    AWAIT(&l, x->closed == 1 && y->ended == 1);
    EXPECT(c, x->why == 0 || x->why == -ETIMEDOUT);
out:
    link_close(&l);
}

/* In the midst of the handshake one of them goes. */
static void abandoned(bk_conform_case *c) {
    for (size_t at = 0; at < 3000; at += c->quick ? 900 : 150)
        for (int i = 0; i < 4 && c->failed == 0 && !conform_excused(c); i++) {
            tls_link l;
            link_init(&l, c);
            side *x = &l.p.sides[i % 2], *y = x->peer;
            y->may_break = true;
            TRY(c, link_open(&l));
            l.wires[SERVER].stop = at;
            SETTLE(&l);
            if (x->opened == 1 || y->opened == 1)
                goto out; /* at once: the loop is freed with all that is going on */
            if (i < 2)
                side_close(x);
            else
                side_abort(x);
            l.wires[SERVER].stop = SIZE_MAX;
            AWAIT(&l, x->closed == 1 && y->closed == 1);
            EXPECT(c, x->why == -ECANCELED && y->why < 0);
        out:
            link_close(&l);
        }
}

static void contexts_go_first(bk_conform_case *c) {
    tls_link l;
    link_init(&l, c);
    TRY(c, link_open(&l));
    for (int i = 0; i < 2; i++) {
        MUST(c, bk_tls_context_ref(l.contexts[i]) == l.contexts[i]);
        bk_tls_context_unref(l.contexts[i]);
        bk_tls_context_unref(l.contexts[i]);
        l.contexts[i] = NULL;
    }
    OPENED(&l);
    if (!side_send(l.client, 1000, PAIR_REFER))
        goto out;
    link_finish(&l);
out:
    link_close(&l);
}

/* ---- Who is who ---- */

/* Both close; each with the one code or the other. The words of who refused are not empty. */
static void fails(tls_link *l, int refuser, int why, int why_too, int peer_why, int peer_why_too) {
    bk_conform_case *c = l->c;
    side *x = &l->p.sides[refuser], *y = x->peer;
    x->may_break = y->may_break = true;
    TRY(c, link_open(l));
    AWAIT(l, x->closed == 1 && y->closed == 1);
    bool so = x->why == why || x->why == why_too;
    bool peer_so = y->why == peer_why || y->why == peer_why_too;
    if ((!so || !peer_so) && !conform_excused(c))
        printf("# %s/%s: %d (%s), and the peer %d (%s)\n", c->suite, c->entry->name, x->why,
               l->words[refuser], y->why, l->words[!refuser]);
    EXPECT(c, so && peer_so);
    EXPECT(c, x->received == 0 && y->received == 0 && x->opened == 0);
    EXPECT(c, l->words[refuser][0] != '\0' && l->words[!refuser][0] != '\0');
out:;
}

static void use(tls_link *l, int i, const char *certificate, const char *key) {
    l->configs[i].certificate = link_path(l, certificate);
    l->configs[i].key = key != NULL ? link_path(l, key) : NULL;
}

static void refuse_server(bk_conform_case *c, const char *certificate, const char *key,
                          const char *name, int why) {
    tls_link l;
    link_init(&l, c);
    use(&l, SERVER, certificate, key);
    l.name = name;
    fails(&l, CLIENT, why, why, BK_ETLS_ALERT, BK_ETLS_ALERT);
    link_close(&l);
}

static void server_expired(bk_conform_case *c) {
    refuse_server(c, "expired.crt", "expired.key", "localhost", BK_ETLS_UNTRUSTED);
}

static void server_is_a_stranger(bk_conform_case *c) {
    refuse_server(c, "stranger.crt", "stranger.key", "localhost", BK_ETLS_UNTRUSTED);
}

static void server_has_another_name(bk_conform_case *c) {
    refuse_server(c, "other.crt", "other.key", "localhost", BK_ETLS_WRONG_NAME);
}

static void server_has_another_address(bk_conform_case *c) {
    refuse_server(c, "server.crt", "server.key", "127.0.0.2", BK_ETLS_WRONG_NAME);
}

/* It is a name of the certificate's that is looked for, not of its subject's (RFC 9525 2). */
static void server_has_no_name(bk_conform_case *c) {
    refuse_server(c, "unnamed.crt", "unnamed.key", "localhost", BK_ETLS_WRONG_NAME);
}

static void server_has_no_such_label(bk_conform_case *c) {
    refuse_server(c, "server.crt", "server.key", "www.site.test", BK_ETLS_WRONG_NAME);
}

static void accept_server(bk_conform_case *c, const char *certificate, const char *key,
                          const char *name, int verify, const char *asked) {
    tls_link l;
    link_init(&l, c);
    use(&l, SERVER, certificate, key);
    l.configs[CLIENT].verify = verify;
    l.name = name;
    TRY(c, link_open(&l));
    OPENED(&l);
    EXPECT(c, shows(l.client, &l, certificate));
    EXPECT(c, strcmp(ask_text(l.server, BK_QUERY_TLS_NAME), asked) == 0);
    if (!side_send(l.client, 100, PAIR_REFER))
        goto out;
    link_finish(&l);
out:
    link_close(&l);
}

static void names_of_the_server(bk_conform_case *c) {
    static const char *const names[][2] = {
        {"localhost", "localhost"},
        {"site.test", "site.test"},
        {"127.0.0.1", ""},
        {"::1", ""},
        {NULL, ""},
    };
    for (size_t i = 0; i < 5 && c->failed == 0 && !conform_excused(c); i++)
        accept_server(c, "server.crt", "server.key", names[i][0], BK_TLS_VERIFY_DEFAULT,
                      names[i][1]);
}

static void key_in_the_same_file(bk_conform_case *c) {
    accept_server(c, "server.pem", NULL, "localhost", BK_TLS_VERIFY_DEFAULT, "localhost");
}

static void rsa_server(bk_conform_case *c) {
    accept_server(c, "rsa.crt", "rsa.key", "localhost", BK_TLS_VERIFY_DEFAULT, "localhost");
}

/* Nobody is verified, neither for what they are nor for their name. */
static void unverified_server(bk_conform_case *c) {
    accept_server(c, "stranger.crt", "stranger.key", "elsewhere.test", BK_TLS_VERIFY_NONE,
                  "elsewhere.test");
}

static void set_client(tls_link *l, int verify, const char *certificate, const char *key) {
    l->configs[SERVER].verify = verify;
    l->configs[SERVER].ca = link_path(l, "ca.crt");
    if (certificate != NULL)
        use(l, CLIENT, certificate, key);
}

static void accept_client(bk_conform_case *c, int verify, bool shown) {
    tls_link l;
    link_init(&l, c);
    set_client(&l, verify, shown ? "client.crt" : NULL, "client.key");
    TRY(c, link_open(&l));
    OPENED(&l);
    if (shown && verify != BK_TLS_VERIFY_DEFAULT) {
        EXPECT(c, shows(l.server, &l, "client.crt"));
    } else {
        unsigned char room[1];
        EXPECT(c, ask_certificate(l.server, room, sizeof room) == 0);
    }
    if (!side_send(l.client, 100, PAIR_REFER) || !side_send(l.server, 100, PAIR_REFER))
        goto out;
    link_finish(&l);
out:
    link_close(&l);
}

static void client_required(bk_conform_case *c) {
    accept_client(c, BK_TLS_VERIFY_REQUIRED, true);
}

static void client_optional(bk_conform_case *c) {
    accept_client(c, BK_TLS_VERIFY_OPTIONAL, true);
    if (c->failed == 0 && !conform_excused(c))
        accept_client(c, BK_TLS_VERIFY_OPTIONAL, false);
}

static void client_not_asked(bk_conform_case *c) {
    accept_client(c, BK_TLS_VERIFY_DEFAULT, true);
}

static void client_is_missing(bk_conform_case *c) {
    tls_link l;
    link_init(&l, c);
    set_client(&l, BK_TLS_VERIFY_REQUIRED, NULL, NULL);
    /* The alert of TLS 1.2 is one for handshakes in general. */
    fails(&l, SERVER, BK_ETLS_NO_CERTIFICATE, BK_ETLS_NO_CERTIFICATE, BK_ETLS_ALERT,
          BK_ETLS_CIPHER);
    link_close(&l);
}

static void client_is_a_stranger(bk_conform_case *c) {
    for (int verify = BK_TLS_VERIFY_OPTIONAL; verify <= BK_TLS_VERIFY_REQUIRED; verify++) {
        tls_link l;
        link_init(&l, c);
        set_client(&l, verify, "stranger.crt", "stranger.key");
        fails(&l, SERVER, BK_ETLS_UNTRUSTED, BK_ETLS_UNTRUSTED, BK_ETLS_ALERT, BK_ETLS_ALERT);
        link_close(&l);
        if (c->failed > 0 || conform_excused(c))
            break;
    }
}

/* ---- Agreeing ---- */

static void agree(bk_conform_case *c, const char *server, const char *client, const char *agreed) {
    tls_link l;
    link_init(&l, c);
    l.configs[SERVER].alpn = server;
    l.configs[CLIENT].alpn = client;
    TRY(c, link_open(&l));
    OPENED(&l);
    EXPECT(c, strcmp(ask_text(l.client, BK_QUERY_TLS_ALPN), agreed) == 0);
    EXPECT(c, strcmp(ask_text(l.server, BK_QUERY_TLS_ALPN), agreed) == 0);
    link_finish(&l);
out:
    link_close(&l);
}

static void alpn_agreed(bk_conform_case *c) {
    static const char *const cases[][3] = {
        {"h2", "h2", "h2"},
        {"h2,http/1.1", "spdy/1,http/1.1", "http/1.1"},
        {"h2,http/1.1", "http/1.1,h2", "h2"}, /* the server's order decides */
        {NULL, "h2", ""},
        {"h2", NULL, ""},
    };
    for (size_t i = 0; i < 5 && c->failed == 0 && !conform_excused(c); i++)
        agree(c, cases[i][0], cases[i][1], cases[i][2]);
}

static void alpn_not_agreed(bk_conform_case *c) {
    tls_link l;
    link_init(&l, c);
    l.configs[SERVER].alpn = "h2,http/1.1";
    l.configs[CLIENT].alpn = "h3,http/1.0,h";
    fails(&l, SERVER, BK_ETLS_ALPN, BK_ETLS_ALPN, BK_ETLS_ALPN, BK_ETLS_ALPN);
    link_close(&l);
}

/* ---- A certificate for each name ---- */

static int another_server(tls_link *l, const char *certificate, const char *key,
                          bk_tls_context **ret_context) {
    bk_tls_config config = l->configs[SERVER];
    config.certificate = link_path(l, certificate);
    config.key = link_path(l, key);
    return bk_tls_context_new(l->p.loop, &config, NULL, ret_context);
}

static void by_name(bk_conform_case *c) {
    static const char *const names[][2] = {
        {"other.test", "other.crt"}, {"OTHER.Test", "other.crt"}, {"site.test", "rsa.crt"},
        {"localhost", "server.crt"}, {"a.b.test", "server.crt"},  {"test", "server.crt"},
        {"127.0.0.1", "server.crt"}, {NULL, "server.crt"},
    };
    tls_link l;
    bk_tls_context *other = NULL, *rsa = NULL;
    link_init(&l, c);
    l.configs[CLIENT].verify = BK_TLS_VERIFY_NONE;
    TRY(c, link_contexts(&l));
    TRY(c, another_server(&l, "other.crt", "other.key", &other));
    TRY(c, another_server(&l, "rsa.crt", "rsa.key", &rsa));
    EXPECT(c, bk_tls_context_add(NULL, "x", other) == -EINVAL);
    EXPECT(c, bk_tls_context_add(l.contexts[SERVER], NULL, other) == -EINVAL);
    EXPECT(c, bk_tls_context_add(l.contexts[SERVER], "", other) == -EINVAL);
    EXPECT(c, bk_tls_context_add(l.contexts[SERVER], "x", NULL) == -EINVAL);
    TRY(c, bk_tls_context_add(l.contexts[SERVER], "Site.test", rsa));
    TRY(c, bk_tls_context_add(l.contexts[SERVER], "*.test", other));
    bk_tls_context_unref(other);
    bk_tls_context_unref(rsa);
    other = rsa = NULL;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        l.name = names[i][0];
        TRY(c, i == 0 ? link_join(&l) : link_join_again(&l));
        OPENED(&l);
        EXPECT(c, shows(l.client, &l, names[i][1]));
        if (!side_send(l.client, 100, PAIR_REFER))
            goto out;
        link_finish(&l);
        if (l.client->closed != 1 || l.server->closed != 1)
            goto out;
    }
out:
    bk_tls_context_unref(other);
    bk_tls_context_unref(rsa);
    link_close(&l);
}

/* Somebody who takes time to choose. */
typedef struct chooser {
    bk_conform_case *c;
    bk_tls_context *answer;
    bk_tls_hello *hello;
    bk_timer timer;
    int asked;
    bool at_once;
} chooser;

static void answer_now(void *arg) {
    chooser *who = arg;
    bk_tls_hello *hello = who->hello;
    who->hello = NULL;
    bk_tls_choose(hello, who->answer);
    if (hello != NULL) { /* the connection has its own reference */
        bk_tls_context_unref(who->answer);
        who->answer = NULL;
    }
}

static void on_choose(void *arg, bk_tls_hello *hello) {
    chooser *who = arg;
    MUST(who->c, who->hello == NULL);
    MUST(who->c, strcmp(bk_tls_hello_name(hello), "localhost") == 0);
    who->asked++;
    who->hello = hello;
    if (who->at_once)
        answer_now(who);
}

static void choose_init(tls_link *l, chooser *who, bk_conform_case *c) {
    link_init(l, c);
    *who = (chooser){.c = c};
    l->configs[SERVER].choose = on_choose;
    l->configs[SERVER].arg = who;
    l->name = "LocalHost";
}

/* Told once; the context that is chosen is another than the one that was asked. */
static void choose(bk_conform_case *c, bool at_once) {
    tls_link l;
    chooser who;
    choose_init(&l, &who, c);
    who.at_once = at_once;
    TRY(c, link_contexts(&l));
    TRY(c, another_server(&l, "rsa.crt", "rsa.key", &who.answer));
    TRY(c, link_join(&l));
    if (!side_send(l.client, 100, PAIR_REFER) || !side_send(l.server, 100, PAIR_REFER))
        goto out;
    AWAIT(&l, who.asked == 1);
    if (!at_once) {
        SETTLE(&l);
        conform_idle(c, l.p.loop);
        EXPECT(c, l.client->opened == 0 && l.server->opened == 0);
        TRY(c, bk_timer_start(l.p.loop, &who.timer, bk_loop_now(l.p.loop) + CONFORM_MS, answer_now,
                              &who));
    }
    OPENED(&l);
    EXPECT(c, shows(l.client, &l, "rsa.crt"));
    EXPECT(c, who.asked == 1);
    link_finish(&l);
out:
    if (l.p.loop != NULL)
        bk_timer_stop(l.p.loop, &who.timer);
    answer_now(&who);
    bk_tls_context_unref(who.answer);
    link_close(&l);
}

static void chosen_at_once(bk_conform_case *c) {
    choose(c, true);
}

static void chosen_later(bk_conform_case *c) {
    choose(c, false);
}

static void chosen_nobody(bk_conform_case *c) {
    for (int i = 0; i < 2 && c->failed == 0 && !conform_excused(c); i++) {
        tls_link l;
        chooser who;
        choose_init(&l, &who, c);
        who.at_once = i == 0;
        l.client->may_break = l.server->may_break = true;
        TRY(c, link_open(&l));
        AWAIT(&l, who.asked == 1);
        SETTLE(&l);
        answer_now(&who);
        AWAIT(&l, l.client->closed == 1 && l.server->closed == 1);
        EXPECT(c, l.client->why == BK_ETLS_NAME && l.server->why == BK_ETLS_NAME);
        EXPECT(c, l.words[SERVER][0] != '\0' && l.client->opened + l.server->opened == 0);
    out:
        answer_now(&who);
        link_close(&l);
    }
}

/* The connection goes before the answer comes, which is then nobody's; or never comes in time. */
static void chosen_too_late(bk_conform_case *c) {
    for (int i = 0; i < 3 && c->failed == 0 && !conform_excused(c); i++) {
        tls_link l;
        chooser who;
        choose_init(&l, &who, c);
        if (i == 2)
            l.configs[SERVER].handshake_ns = 1; /* over, before it is there */
        l.client->may_break = l.server->may_break = true;
        TRY(c, link_contexts(&l));
        TRY(c, another_server(&l, "rsa.crt", "rsa.key", &who.answer));
        TRY(c, link_join(&l));
        AWAIT(&l, who.asked == 1 || l.server->closed == 1);
        if (i < 2 && l.server->s != NULL)
            side_abort(l.server);
        AWAIT(&l, l.client->closed == 1 && l.server->closed == 1);
        EXPECT(c, l.server->why == (i < 2 ? -ECANCELED : -ETIMEDOUT));
        EXPECT(c, l.client->why < 0);
    out:
        if (i == 1) { /* after the loop has gone, too */
            link_close(&l);
            answer_now(&who);
        } else {
            answer_now(&who);
            link_close(&l);
        }
        bk_tls_context_unref(who.answer);
    }
}

/* ---- Those who do not speak, or not TLS ---- */

/* They are on the same loop as another connection, which they do not touch. */
static void say_little(bk_conform_case *c, int which, size_t stop) {
    tls_link l, other;
    link_init(&l, c);
    link_init(&other, c);
    side *x = &l.p.sides[which], *y = x->peer; /* y waits */
    l.configs[!which].handshake_ns = CONFORM_MS;
    x->may_break = y->may_break = true;
    TRY(c, link_open(&l));
    l.wires[which].stop = stop;
    other.p.loop = l.p.loop;
    l.also = &other;
    TRY(c, link_open(&other));
    AWAIT(&l, other.client->opened == 1 && other.server->opened == 1);
    if (!side_send(other.client, 3000, PAIR_REFER) || !side_send(other.server, 3000, PAIR_REFER))
        goto out;
    AWAIT(&l, other.client->got == 3000 && other.server->got == 3000);
    AWAIT(&l, y->closed == 1);
    EXPECT(c, y->why == -ETIMEDOUT && y->opened == 0 && l.words[!which][0] != '\0');
    AWAIT(&l, x->closed == 1);
    EXPECT(c, other.client->closed == 0 && other.server->closed == 0);
    side_close(other.client);
    AWAIT(&l, other.client->closed == 1 && other.server->closed == 1);
    EXPECT(c, other.client->why == 0 && other.server->why == 0);
out:
    link_close(&l);
    if (l.also == NULL)
        link_close(&other);
}

static void silent_client(bk_conform_case *c) {
    say_little(c, CLIENT, 0);
}

static void slow_client(bk_conform_case *c) {
    say_little(c, CLIENT, 60);
}

static void silent_server(bk_conform_case *c) {
    say_little(c, SERVER, 0);
}

static void slow_server(bk_conform_case *c) {
    say_little(c, SERVER, 60);
}

/* Bytes in place of what the side `which` would say. */
static void talk_nonsense(bk_conform_case *c, int which, const void *data, size_t n, int why) {
    tls_link l;
    link_init(&l, c);
    side *x = &l.p.sides[which], *y = x->peer; /* y is told */
    l.plain[which] = true;
    x->unchecked = true;
    x->may_break = y->may_break = true;
    TRY(c, link_open(&l));
    TRY(c, bk_stream_write(x->s, data, n, BK_COPY, NULL));
    AWAIT(&l, y->closed == 1);
    if (y->why != why && !conform_excused(c))
        printf("# %s/%s: %d (%s) for \"%.20s\"\n", c->suite, c->entry->name, y->why,
               l.words[!which], (const char *)data);
    EXPECT(c, y->why == why && y->opened == 0 && y->received == 0);
    EXPECT(c, l.words[!which][0] != '\0');
out:
    link_close(&l);
}

static void plain_http(bk_conform_case *c) {
    static const char get[] = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    static const char post[] = "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc";
    static const char *const answers[] = {"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
                                          "220 mail.site.test ESMTP\r\n"};
    talk_nonsense(c, CLIENT, get, sizeof get - 1, BK_ETLS_PROTOCOL);
    if (c->failed == 0 && !conform_excused(c))
        talk_nonsense(c, CLIENT, post, sizeof post - 1, BK_ETLS_PROTOCOL);
    for (int i = 0; i < 2 && c->failed == 0 && !conform_excused(c); i++)
        talk_nonsense(c, SERVER, answers[i], strlen(answers[i]), BK_ETLS_PROTOCOL);
}

static void garbage(bk_conform_case *c) {
    for (int kind = 0; kind < 6 && c->failed == 0 && !conform_excused(c); kind++) {
        static const unsigned char heads[][9] = {
            {0x17, 3, 3, 0, 20},              /* data, before there is a key */
            {0x16, 3, 1, 0, 40, 7},           /* a message that does not exist */
            {0x16, 3, 1, 0, 40, 1, 0, 0, 36}, /* a hello with nothing sensible in it */
            {0x16, 3, 1, 0xff, 0xff},         /* a record that is too long */
        };
        unsigned char bytes[600];
        memset(bytes, kind == 4 ? 0 : 0xff, sizeof bytes);
        if (kind < 4)
            memcpy(bytes, heads[kind], sizeof heads[0]);
        if (kind == 5)
            for (size_t i = 0; i < sizeof bytes; i++)
                bytes[i] = pair_pattern(0, i);
        talk_nonsense(c, CLIENT, bytes, sizeof bytes, BK_ETLS_PROTOCOL);
    }
}

/* A record is damaged on its way: the receiver knows, and tells the peer. */
static void corrupted_record(bk_conform_case *c) {
    for (int i = 0; i < 10 && c->failed == 0 && !conform_excused(c); i++) {
        static const size_t places[] = {0, 3, 5, 30, SIZE_MAX};
        tls_link l;
        link_init(&l, c);
        side *x = &l.p.sides[i % 2], *y = x->peer;
        wire *w = &l.wires[i % 2];
        x->may_break = y->may_break = true;
        TRY(c, link_open(&l));
        OPENED(&l);
        SETTLE(&l);
        w->stop = w->moved;
        if (!side_send(x, 50, PAIR_REFER))
            goto out;
        SETTLE(&l);
        size_t n = w->used - w->moved, place = places[i / 2] < n ? places[i / 2] : n - 1;
        w->bytes[w->moved + place] ^= 0x80;
        w->stop = SIZE_MAX;
        AWAIT(&l, x->closed == 1 && y->closed == 1);
        bool so = y->why == BK_ETLS_RECORD || y->why == BK_ETLS_PROTOCOL;
        bool peer_so = x->why == BK_ETLS_ALERT;
        if ((!so || !peer_so) && !conform_excused(c))
            printf("# %s/%s: byte %zu: %d (%s), and the peer %d (%s)\n", c->suite, c->entry->name,
                   place, y->why, l.words[y->index], x->why, l.words[x->index]);
        EXPECT(c, so && peer_so);
        EXPECT(c, l.words[0][0] != '\0' && l.words[1][0] != '\0');
        MUST(c, y->got == 0);
    out:
        link_close(&l);
    }
}

static bool is_honest(int why) {
    return why == 0 || (why <= BK_ETLS && why >= BK_ETLS_RENEGOTIATION) || why == BK_ETRUNCATED ||
           why == -ECONNRESET;
}

/* One byte of the handshake is changed: whatever becomes of it, it ends, or waits for more. */
static void corrupted_handshake(bk_conform_case *c) {
    for (int which = 0; which < 2; which++) {
        tls_link l;
        size_t n = 1;
        link_init(&l, c);
        l.configs[CLIENT].no_tickets = 1;
        TRY(c, link_contexts(&l));
        for (size_t at = 0; at < n; at += c->quick ? 173 : 5) {
            TRY(c, at == 0 ? link_join(&l) : link_join_again(&l));
            wire *w = &l.wires[which];
            l.client->may_break = l.server->may_break = true;
            w->stop = at;
            SETTLE(&l);
            if (w->used > at)
                w->bytes[at] ^= (unsigned char)(1 << at % 8);
            w->stop = SIZE_MAX;
            SETTLE(&l);
            n = w->used > n ? w->used : n;
            EXPECT(c, l.client->closed == 0 || is_honest(l.client->why));
            EXPECT(c, l.server->closed == 0 || is_honest(l.server->why));
            MUST(c, l.client->received == 0 && l.server->received == 0);
        }
    out:
        link_close(&l);
        if (c->failed > 0 || conform_excused(c))
            break;
    }
}

/* ---- Sessions ---- */

static bool greet(tls_link *l, int resumed) {
    bk_conform_case *c = l->c;
    OPENED(l);
    int client = ask(l->client, BK_QUERY_TLS_RESUMED);
    int server = ask(l->server, BK_QUERY_TLS_RESUMED);
    if (client != resumed)
        conform_told(c); /* without memory sessions are forgotten, and nobody is told */
    if (conform_excused(c))
        goto out;
    EXPECT(c, client == resumed && server == resumed);
    if (!side_send(l->client, 100, PAIR_REFER) || !side_send(l->server, 100, PAIR_REFER))
        goto out;
    AWAIT(l, l->client->got == 100 && l->server->got == 100);
    SETTLE(l); /* the tickets, too, have come */
    link_finish(l);
    return c->failed == 0 && l->client->closed == 1 && l->server->closed == 1;
out:
    return false;
}

static void resume(bk_conform_case *c, bool server_keeps, bool client_keeps) {
    tls_link l;
    link_init(&l, c);
    l.configs[SERVER].no_tickets = !server_keeps;
    l.configs[CLIENT].no_tickets = !client_keeps;
    TRY(c, link_open(&l));
    for (int i = 0; i < 3; i++) {
        if (i > 0)
            TRY(c, link_join_again(&l));
        if (!greet(&l, i > 0 && server_keeps && client_keeps))
            goto out;
    }
out:
    link_close(&l);
}

static void sessions_resume(bk_conform_case *c) {
    resume(c, true, true);
}

static void server_without_sessions(bk_conform_case *c) {
    resume(c, false, true);
}

static void client_without_sessions(bk_conform_case *c) {
    resume(c, true, false);
}

/* To another name, or when the server has forgotten its keys, all begins anew. */
static void sessions_of_no_use(bk_conform_case *c) {
    tls_link l;
    link_init(&l, c);
    TRY(c, link_open(&l));
    if (!greet(&l, 0))
        goto out;
    l.name = "site.test";
    TRY(c, link_join_again(&l));
    if (!greet(&l, 0))
        goto out;
    bk_tls_context_unref(l.contexts[SERVER]);
    l.contexts[SERVER] = NULL;
    TRY(c, link_contexts(&l));
    TRY(c, link_join_again(&l));
    (void)greet(&l, 0);
out:
    link_close(&l);
}

/* ---- Versions ---- */

/* False: one of them cannot do this, or it failed. */
static bool open_versions(tls_link *l) {
    const bk_conform_engines *engines = engines_of(l->c);
    int code = link_contexts(l);
    if (code == BK_ETLS_CONFIG && l->error.code == code && !conform_excused(l->c)) {
        const bk_tls_engine *engine = l->refused == CLIENT ? engines->client : engines->server;
        return !cannot(l->c, engine, "TLS 1.3");
    }
    return !FAILED(l->c, code) && !FAILED(l->c, link_join(l));
}

static void best_version(bk_conform_case *c) {
    tls_link l;
    link_init(&l, c);
    l.configs[CLIENT].minimum = l.configs[SERVER].minimum = BK_TLS_1_3;
    int code = link_contexts(&l);
    bool able = code >= 0;
    link_close(&l);
    link_init(&l, c);
    if (code != BK_ETLS_CONFIG)
        TRY(c, code);
    TRY(c, link_open(&l));
    OPENED(&l);
    EXPECT(c, speaks(l.client, able ? BK_TLS_1_3 : BK_TLS_1_2));
    EXPECT(c, speaks(l.server, able ? BK_TLS_1_3 : BK_TLS_1_2));
    link_finish(&l);
out:
    link_close(&l);
}

static void older_version(bk_conform_case *c) {
    for (int i = 0; i < 2 && c->failed == 0 && !conform_excused(c); i++) {
        tls_link l;
        link_init(&l, c);
        l.configs[i].maximum = BK_TLS_1_2;
        TRY(c, link_open(&l));
        OPENED(&l);
        EXPECT(c, speaks(l.client, BK_TLS_1_2) && speaks(l.server, BK_TLS_1_2));
        link_finish(&l);
    out:
        link_close(&l);
    }
}

static void no_version_in_common(bk_conform_case *c) {
    for (int i = 0; i < 2 && c->failed == 0 && !conform_excused(c); i++) {
        tls_link l;
        link_init(&l, c);
        l.configs[i].maximum = BK_TLS_1_2;
        l.configs[!i].minimum = BK_TLS_1_3;
        l.client->may_break = l.server->may_break = true;
        if (!open_versions(&l))
            goto out;
        AWAIT(&l, l.client->closed == 1 && l.server->closed == 1);
        /* The ciphers of TLS 1.3 are others: not to have them in common says the same. */
        EXPECT(c, l.client->why == BK_ETLS_VERSION || l.client->why == BK_ETLS_CIPHER);
        EXPECT(c, l.server->why == BK_ETLS_VERSION || l.server->why == BK_ETLS_CIPHER);
    out:
        link_close(&l);
    }
}

/* ---- Settings that are no good ---- */

/* Its password is nobody's business. */
static const char encrypted_key[] =
    "-----BEGIN ENCRYPTED PRIVATE KEY-----\n"
    "MIHrMFYGCSqGSIb3DQEFDTBJMCgGCSqGSIb3DQEFDDAbBAgXEQQ6J+X08AIBATAM\n"
    "BggqhkiG9w0CCQUAMB0GCWCGSAFlAwQBKgQQC6AXSUbnnGcNk+bFAz6ecASBkOYR\n"
    "uSqzOox6ywkZRRRSNqhvNXCyOu3je5vwTSBx0joQM2W2BwWr+WOJqLdUk/mnnJe0\n"
    "4heqXdWDF3PGeLhwSuAnL6k6E4YAX1InrMznjpvr8FZWpcE7l2cOdKuNhG5B9vYD\n"
    "jcc2iQz/WYzXkfsP3JUOAMS6//IHfSUsnHIqSd7ECOHoz4fs1urZ65N6ZmR92A==\n"
    "-----END ENCRYPTED PRIVATE KEY-----\n";

/* The text begins with the argument that is wrong. */
static void bad_setting(tls_link *l, bool server, bk_tls_config config, int code,
                        const char *word) {
    bk_conform_case *c = l->c;
    const bk_conform_engines *engines = engines_of(c);
    bk_tls_context *context = NULL;
    bk_error error = {0, 0, ""};
    config.size = sizeof config;
    config.server = server;
    config.engine =
        config.engine == NULL ? (server ? engines->server : engines->client)->name : config.engine;
    if (conform_excused(c) || c->failed > 0)
        return;
    int got = bk_tls_context_new(l->p.loop, &config, &error, &context);
    MUST(c, got < 0 || context != NULL);
    MUST(c, got >= 0 || context == NULL);
    bk_tls_context_unref(context);
    if (got != code && got < 0)
        conform_told(c);
    bool so = got == code && error.code == code && strncmp(error.text, word, strlen(word)) == 0;
    if (!so && !conform_excused(c))
        printf("# %s/%s: wanted %d (%s…), got %d (%s)\n", c->suite, c->entry->name, code, word, got,
               error.text);
    EXPECT(c, so);
}

static int write_encrypted_key(char *path) {
    int fd = mkstemp(path);
    ssize_t n = fd < 0 ? -1 : write(fd, encrypted_key, sizeof encrypted_key - 1);
    if (fd >= 0)
        close(fd);
    return n == (ssize_t)sizeof encrypted_key - 1 ? 0 : -EIO;
}

static void bad_settings(bk_conform_case *c) {
    char secret[] = "/tmp/becket-key-XXXXXX", long_name[300];
    tls_link l;
    link_init(&l, c);
    memset(long_name, 'x', sizeof long_name);
    long_name[sizeof long_name - 1] = '\0';
    TRY(c, link_loop(&l));
    MUST(c, write_encrypted_key(secret) == 0);
    const char *cert = link_path(&l, "server.crt"), *key = link_path(&l, "server.key");
    const char *other = link_path(&l, "other.key"), *none = link_path(&l, "nothing.here");
    const char *empty = "/dev/null";
#define BAD(server, code, word, ...)                                                               \
    bad_setting(&l, server, (bk_tls_config){__VA_ARGS__}, code, word)
    BAD(true, BK_ETLS_CONFIG, "cert", .verify = 0);
    BAD(true, BK_ETLS_CONFIG, "key", .certificate = cert, .key = other);
    BAD(true, -ENOENT, "cert", .certificate = none, .key = key);
    BAD(true, -ENOENT, "key", .certificate = cert, .key = none);
    BAD(true, BK_ETLS_CONFIG, "cert", .certificate = empty, .key = key);
    BAD(true, BK_ETLS_CONFIG, "key", .certificate = cert, .key = empty);
    BAD(true, BK_ETLS_CONFIG, "key", .certificate = cert); /* it is not in there */
    BAD(true, BK_ETLS_CONFIG, "cert", .certificate = key, .key = key);
    BAD(true, BK_ETLS_CONFIG, "key", .certificate = cert, .key = cert);
    BAD(true, BK_ETLS_CONFIG, "key", .certificate = cert, .key = secret);
    BAD(true, BK_ETLS_CONFIG, "max", .certificate = cert, .key = key, .minimum = BK_TLS_1_3,
        .maximum = BK_TLS_1_2);
    BAD(true, BK_ETLS_CONFIG, "min", .certificate = cert, .key = key, .minimum = 0x0301);
    BAD(true, BK_ETLS_CONFIG, "max", .certificate = cert, .key = key, .maximum = 3);
    BAD(true, BK_ETLS_CONFIG, "verify", .certificate = cert, .key = key, .verify = 4);
    BAD(true, BK_ETLS_CONFIG, "alpn", .certificate = cert, .key = key, .alpn = "h2,,x");
    BAD(true, -ENOENT, "ca", .certificate = cert, .key = key, .verify = BK_TLS_VERIFY_REQUIRED,
        .ca = none);
    BAD(false, -ENOENT, "ca", .ca = none);
    BAD(false, BK_ETLS_CONFIG, "ca", .ca = empty);
    BAD(false, BK_ETLS_CONFIG, "ca", .ca = key);
    BAD(false, BK_ETLS_CONFIG, "key", .key = key);
    BAD(false, BK_ETLS_CONFIG, "key", .certificate = cert, .key = other);
    BAD(false, BK_ETLS_CONFIG, "alpn", .alpn = "");
    BAD(false, BK_ETLS_CONFIG, "alpn", .alpn = long_name);
    BAD(false, BK_ETLS_ENGINE, "engine", .engine = "nonsense");
    BAD(false, BK_ETLS_ENGINE, "engine", .engine = "");
#undef BAD
out:
    (void)unlink(secret);
    link_close(&l);
}

static void bad_arguments(bk_conform_case *c) {
    tls_link l;
    bk_tls_context *none = NULL;
    bk_transport *ends[2] = {NULL, NULL}, *t = NULL;
    link_init(&l, c);
    TRY(c, link_contexts(&l));
    bk_loop *loop = l.p.loop;
    EXPECT(c, bk_tls_context_new(NULL, &l.configs[0], NULL, &none) == -EINVAL);
    EXPECT(c, bk_tls_context_new(loop, NULL, NULL, &none) == -EINVAL);
    EXPECT(c, bk_tls_context_new(loop, &l.configs[0], NULL, NULL) == -EINVAL);
    l.configs[0].size = 0;
    EXPECT(c, bk_tls_context_new(loop, &l.configs[0], &l.error, &none) == -EINVAL);
    EXPECT(c, l.error.code == -EINVAL && none == NULL);
    TRY(c, bk_memory_transport(loop, 0, ends));
    EXPECT(c, bk_tls_transport(NULL, ends[0], l.contexts[0], NULL, &t) == -EINVAL);
    EXPECT(c, bk_tls_transport(loop, NULL, l.contexts[0], NULL, &t) == -EINVAL);
    EXPECT(c, bk_tls_transport(loop, ends[0], NULL, NULL, &t) == -EINVAL);
    EXPECT(c, bk_tls_transport(loop, ends[0], l.contexts[0], NULL, NULL) == -EINVAL);
    EXPECT(c, bk_tls_engine_add(NULL, engines_of(c)->server) == -EINVAL);
    EXPECT(c, bk_tls_engine_add(loop, NULL) == -EINVAL);
    EXPECT(c, bk_tls_engine_add(loop, engines_of(c)->server) == -EEXIST);
    EXPECT(c, bk_tls_context_ref(NULL) == NULL);
    EXPECT(c, strcmp(bk_tls_hello_name(NULL), "") == 0);
    bk_tls_context_unref(NULL);
    bk_tls_choose(NULL, NULL);
    EXPECT(c, engines_of(c)->server->version() != NULL);
out:
    for (int i = 0; i < 2; i++)
        if (ends[i] != NULL)
            ends[i]->ops->close(ends[i]);
    link_close(&l);
}

/* ---- The suite ---- */

#define EACH(name, flags) {#name, name, flags}

static const conform_entry each_version[] = {
    EACH(handshake, 0),
    EACH(answers, 0),
    EACH(answers_need_room, 0),
    EACH(answers_come_late, 0),
    EACH(nothing_in_plain, 0),
    EACH(sizes, 0),
    EACH(pieces_of_all_sizes, 0),
    EACH(byte_by_byte, 0),
    EACH(seven_bytes_at_a_time, 0),
    EACH(tight_wires, 0),
    EACH(tightest_wires, 0),
    EACH(one_way_stands_still, 0),
    EACH(all_at_once, 0),
    EACH(hello_split_0, CONFORM_LONG),
    EACH(hello_split_1, CONFORM_LONG),
    EACH(hello_split_2, CONFORM_LONG),
    EACH(hello_split_3, CONFORM_LONG),
    EACH(answer_split_0, CONFORM_LONG),
    EACH(answer_split_1, CONFORM_LONG),
    EACH(answer_split_2, CONFORM_LONG),
    EACH(answer_split_3, CONFORM_LONG),
    EACH(message_split_everywhere, 0),
    EACH(tickets_are_no_data, 0),
    EACH(many_records_at_once, 0),
    EACH(rekeyed, 0),
    EACH(little_written_in_the_handshake, 0),
    EACH(much_written_in_the_handshake, 0),
    EACH(truncation, 0),
    EACH(truncation_allowed, 0),
    EACH(aborted, 0),
    EACH(ends_one_by_one, 0),
    EACH(started_in_mid_stream, 0),
    EACH(injected_with_the_line, 0),
    EACH(injected_behind_the_line, 0),
    EACH(room_of_one_byte, 0),
    EACH(pauses, 0),
    EACH(pauses_within_records, 0),
    EACH(paused_at_the_end, 0),
    EACH(closed_by_the_server, 0),
    EACH(closed_by_both, 0),
    EACH(lingers, 0),
    EACH(lingers_not_for_ever, 0),
    EACH(abandoned, CONFORM_LONG),
    EACH(contexts_go_first, 0),
    EACH(server_expired, 0),
    EACH(server_is_a_stranger, 0),
    EACH(server_has_another_name, 0),
    EACH(server_has_another_address, 0),
    EACH(server_has_no_name, 0),
    EACH(server_has_no_such_label, 0),
    EACH(names_of_the_server, 0),
    EACH(rsa_server, 0),
    EACH(unverified_server, 0),
    EACH(client_required, 0),
    EACH(client_optional, 0),
    EACH(client_not_asked, 0),
    EACH(client_is_missing, 0),
    EACH(client_is_a_stranger, 0),
    EACH(alpn_agreed, 0),
    EACH(alpn_not_agreed, 0),
    EACH(by_name, 0),
    EACH(chosen_at_once, 0),
    EACH(chosen_later, 0),
    EACH(chosen_nobody, 0),
    EACH(chosen_too_late, 0),
    EACH(silent_client, 0),
    EACH(slow_client, 0),
    EACH(silent_server, 0),
    EACH(slow_server, 0),
    EACH(plain_http, 0),
    EACH(garbage, 0),
    EACH(corrupted_record, 0),
    EACH(corrupted_handshake, CONFORM_LONG),
    EACH(sessions_resume, 0),
    EACH(server_without_sessions, 0),
    EACH(client_without_sessions, 0),
    EACH(sessions_of_no_use, 0),
};

static const conform_entry once[] = {
    EACH(best_version, 0),         EACH(older_version, 0), EACH(no_version_in_common, 0),
    EACH(key_in_the_same_file, 0), EACH(bad_settings, 0),  EACH(bad_arguments, 0),
};

/* Whether an engine makes contexts for a version; what it says if not. */
static bool can(const bk_conform_engines *engines, bool server, int version, bk_error *error) {
    char certificate[320], key[320];
    const bk_tls_engine *engine = server ? engines->server : engines->client;
    bk_tls_config config = {.size = sizeof config, .server = server, .engine = engine->name};
    bk_tls_context *context = NULL;
    bk_loop *loop = NULL;
    snprintf(certificate, sizeof certificate, "%s/server.crt", engines->certificates);
    snprintf(key, sizeof key, "%s/server.key", engines->certificates);
    config.certificate = server ? certificate : NULL;
    config.key = server ? key : NULL;
    config.verify = BK_TLS_VERIFY_NONE;
    config.minimum = config.maximum = version;
    int code = bk_loop_new(NULL, &loop);
    if (code >= 0)
        (void)bk_tls_engine_add(loop, engine);
    code = code < 0 ? code : bk_tls_context_new(loop, &config, error, &context);
    bk_tls_context_unref(context);
    (void)bk_loop_free(loop);
    return code != BK_ETLS_CONFIG;
}

int bk_conform_engine(const bk_conform_engines *engines, bk_os *os, bk_conform_report *report) {
    static const int versions[] = {BK_TLS_1_3, BK_TLS_1_2};
    const int each = (int)(sizeof each_version / sizeof *each_version);
    char suite[100];
    int failed = 0;
    if (engines == NULL || engines->server == NULL || engines->client == NULL ||
        engines->certificates == NULL)
        return -EINVAL;
    const char *server = engines->server->name, *client = engines->client->name;
    for (int i = 0; i < 2; i++) {
        link_subject subject = {engines, versions[i]};
        bk_error error = {0, 0, ""};
        snprintf(suite, sizeof suite, "tls 1.%d, %s serves %s", 3 - i, server, client);
        bool server_can = can(engines, true, versions[i], &error);
        if (server_can && can(engines, false, versions[i], &error)) {
            failed += conform_suite(suite, each_version, each, &subject, os, report);
            if (report != NULL && report->quick)
                break;
            continue;
        }
        printf("# %s: %s cannot: %s\n", suite, server_can ? client : server, error.text);
        if (report != NULL)
            report->skipped += each;
    }
    link_subject subject = {engines, 0};
    snprintf(suite, sizeof suite, "tls, %s serves %s", server, client);
    return failed +
           conform_suite(suite, once, (int)(sizeof once / sizeof *once), &subject, os, report);
}
