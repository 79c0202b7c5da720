/*
 * link.c: two TLS streams and the wires between them. See link.h.
 */
#include "tests/conformance/link.h"

#include <stdio.h>
#include <stdlib.h>

/* ---- Wires ---- */

static void wire_reserve(wire *w, size_t n) {
    if (w->room - w->used >= n)
        return;
    w->room = 2 * (w->used + n);
    w->bytes = realloc(w->bytes, w->room);
}

void wire_inject(wire *w, const void *data, size_t n) {
    wire_reserve(w, n);
    memcpy(w->bytes + w->used, data, n);
    w->used += n;
}

void wire_cut(wire *w) {
    w->used = w->moved;
    w->ended = true;
}

/* What the side has sent. What is for nobody is let go of, so that the side is not held up. */
static bool wire_take(wire *w) {
    unsigned char room[16384];
    bool moved = false;
    for (;;) {
        bool drop = w->ended || w->gone;
        if (!drop && w->used - w->moved >= w->held)
            break;
        size_t most = drop ? sizeof room : w->held - (w->used - w->moved);
        ssize_t n = w->from->ops->read(w->from, room, most < sizeof room ? most : sizeof room);
        if (n <= 0) {
            moved |= n == 0 && !w->ended;
            w->ended |= n == 0;
            break;
        }
        moved = true;
        if (drop)
            continue;
        wire_reserve(w, (size_t)n);
        memcpy(w->bytes + w->used, room, (size_t)n);
        w->used += (size_t)n;
    }
    return moved;
}

static bool wire_give(tls_link *l, wire *w) {
    size_t end = w->used < w->stop ? w->used : w->stop;
    size_t n = end > w->moved ? end - w->moved : 0;
    if (w->most != 0 && n > w->most)
        n = w->most;
    if (n > 0 && !w->gone) {
        struct iovec v = {w->bytes + w->moved, n};
        ssize_t sent = w->to->ops->write(w->to, &v, 1);
        if (sent == -EPIPE)
            w->gone = true;
        else if (sent != -EAGAIN && FAILED(l->c, sent))
            return false;
        if (sent > 0) {
            w->moved += (size_t)sent;
            return true;
        }
    }
    if (w->ended && !w->told && w->moved >= w->used) {
        w->told = true;
        (void)w->to->ops->end(w->to);
        return true;
    }
    return false;
}

static bool move(tls_link *l) {
    bool moved = false;
    for (int i = 0; i < 2; i++)
        if (l->wires[i].from != NULL) {
            moved |= wire_take(&l->wires[i]);
            moved |= wire_give(l, &l->wires[i]);
        }
    return l->also != NULL && move(l->also) ? true : moved;
}

/* ---- Turning ---- */

bool link_turn(tls_link *l) {
    bk_conform_case *c = l->c;
    if (conform_excused(c) || c->failed > 0 || conform_hangs(c))
        return false;
    bool moved = move(l);
    int64_t left = bk_loop_deadline(l->p.loop);
    if (conform_excused(c))
        return false;
    l->stuck = !moved && (left < 0 || left > conform_patience(c));
    return !l->stuck && !FAILED(c, bk_loop_turn(l->p.loop, moved ? 0 : left));
}

bool link_settle(tls_link *l) {
    bk_conform_case *c = l->c;
    int idle = 0; /* turns that had work to do, and moved nothing */
    while (!conform_excused(c) && c->failed == 0 && !conform_hangs(c)) {
        bool moved = move(l);
        idle = moved ? 0 : idle + 1;
        if (!moved && bk_loop_deadline(l->p.loop) != 0)
            return true;
        MUST(c, idle < 1000 * 1000); /* a room of one byte takes many of them; or it spins */
        if (FAILED(c, bk_loop_turn(l->p.loop, 0)))
            return false;
    }
    return false;
}

void link_stuck(tls_link *l, const char *file, int line, const char *what) {
    char text[200];
    if (!l->stuck)
        return;
    snprintf(text, sizeof text, "nothing moves any more, and not so: %s", what);
    conform_must(l->c, false, file, line, text);
}

bool link_opened(tls_link *l) {
    AWAIT(l, l->client->opened == 1 && l->server->opened == 1);
    return true;
out:
    return false;
}

void link_finish(tls_link *l) {
    side *x = l->client, *y = l->server;
    AWAIT(l, x->got == y->sent && y->got == x->sent);
    side_close(x);
    AWAIT(l, x->closed == 1 && y->closed == 1);
    EXPECT(l->c, x->why == 0 && y->why == 0);
    EXPECT(l->c, y->ended == 1);
out:;
}

/* ---- Life ---- */

const char *link_path(tls_link *l, const char *name) {
    const link_subject *subject = l->c->subject;
    char *path = l->paths[l->path_count++ % 8];
    snprintf(path, sizeof l->paths[0], "%s/%s", subject->engines->certificates, name);
    return path;
}

/* The words are the transport's, which goes after this. */
static void keep_words(side *x, bk_stream *s) {
    tls_link *l = (tls_link *)((char *)x->p - offsetof(tls_link, p));
    size_t size = sizeof l->words[0];
    int code = bk_stream_query(s, BK_QUERY_TLS_WORDS, l->words[x->index], &size);
    EXPECT(l->c, code >= 0 || l->plain[x->index]);
    if (x->why < 0 && x->why != -ECANCELED && !x->may_break && !x->c->quick)
        printf("# %s/%s: %s: %s\n", x->c->suite, x->c->entry->name,
               x->index == CLIENT ? "client" : "server", l->words[x->index]);
}

static void reset(tls_link *l) {
    bk_loop *loop = l->p.loop;
    pair_init(&l->p, l->c);
    l->p.loop = loop;
    for (int i = 0; i < 2; i++) {
        l->p.sides[i].on_closed = keep_words;
        l->words[i][0] = '\0';
        free(l->wires[i].bytes);
        l->wires[i] = (wire){.stop = SIZE_MAX, .held = SIZE_MAX};
    }
}

void link_init(tls_link *l, bk_conform_case *c) {
    const link_subject *subject = c->subject;
    memset(l, 0, sizeof *l);
    l->c = c;
    l->client = &l->p.sides[CLIENT];
    l->server = &l->p.sides[SERVER];
    l->name = "localhost";
    reset(l);
    l->configs[CLIENT] = (bk_tls_config){
        .engine = subject->engines->client->name,
        .ca = link_path(l, "ca.crt"),
    };
    l->configs[SERVER] = (bk_tls_config){
        .engine = subject->engines->server->name,
        .server = 1,
        .certificate = link_path(l, "server.crt"),
        .key = link_path(l, "server.key"),
    };
    for (int i = 0; i < 2; i++) {
        l->configs[i].size = sizeof l->configs[i];
        l->configs[i].minimum = l->configs[i].maximum = subject->version;
    }
}

static int know(bk_loop *loop, const bk_tls_engine *engine) {
    for (const bk_tls_engine *const *all = bk_tls_engines(); *all != NULL; all++)
        if (*all == engine)
            return 0;
    return bk_tls_engine_add(loop, engine);
}

int link_loop(tls_link *l) {
    const link_subject *subject = l->c->subject;
    const bk_conform_engines *engines = subject->engines;
    if (l->p.loop != NULL)
        return 0;
    int code = conform_loop(l->c, NULL, &l->p.loop);
    if (code >= 0)
        code = know(l->p.loop, engines->server);
    if (code >= 0 && engines->client != engines->server)
        code = know(l->p.loop, engines->client);
    return code;
}

int link_contexts(tls_link *l) {
    int code = link_loop(l);
    for (int i = 0; i < 2 && code >= 0; i++) {
        if (l->contexts[i] == NULL)
            code = bk_tls_context_new(l->p.loop, &l->configs[i], &l->error, &l->contexts[i]);
        l->refused = i;
    }
    if (code < 0 && l->error.code == code)
        EXPECT(l->c, l->error.text[0] != '\0');
    return code;
}

static int join_side(tls_link *l, int i) {
    bk_transport *ends[2], *t;
    bk_loop *loop = l->p.loop;
    int code = bk_memory_transport(loop, l->capacity, ends);
    if (code < 0)
        return code;
    l->wires[i].from = ends[1];
    l->wires[!i].to = ends[1];
    l->p.transports[i] = ends[0];
    if (l->plain[i])
        return 0;
    code = bk_tls_transport(loop, ends[0], l->contexts[i], i == CLIENT ? l->name : NULL, &t);
    if (code >= 0)
        l->p.transports[i] = t;
    return code;
}

int link_join(tls_link *l) {
    int code = 0;
    for (int i = 0; i < 2 && code >= 0; i++)
        code = join_side(l, i);
    for (int i = 0; i < 2 && code >= 0; i++)
        code = side_open(&l->p.sides[i], l->p.loop, &l->p.transports[i]);
    return code;
}

int link_open(tls_link *l) {
    int code = link_contexts(l);
    return code < 0 ? code : link_join(l);
}

static void close_wires(tls_link *l) {
    for (int i = 0; i < 2; i++) {
        if (l->wires[i].from != NULL)
            l->wires[i].from->ops->close(l->wires[i].from);
        l->wires[i].from = l->wires[i].to = NULL;
    }
}

int link_join_again(tls_link *l) {
    close_wires(l);
    pair_abort(&l->p);
    pair_check(&l->p);
    reset(l);
    return link_join(l);
}

void link_close(tls_link *l) {
    bk_loop *loop = l->p.loop;
    for (tls_link *k = l; k != NULL; k = k->also) {
        pair_abort(&k->p);
        close_wires(k);
    }
    conform_loop_free(l->c, loop);
    for (tls_link *k = l; k != NULL; k = k->also) {
        pair_check(&k->p);
        for (int i = 0; i < 2; i++) {
            bk_tls_context_unref(k->contexts[i]);
            free(k->wires[i].bytes);
        }
    }
}
