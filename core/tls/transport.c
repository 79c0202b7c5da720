/*
 * transport.c: any engine as a transport, over any transport. It carries ciphertext between the two
 * and plaintext to the stream, and keeps the rules that make TLS a transport like any other; they
 * are in docs/design.md. Made by core/serve for tls:// endpoints, by bk_stream_start_tls() in
 * mid-stream, and by the Python extension.
 *
 * Sealed bytes lie in memory of the loop, which is passed around; a connection has memory of its
 * own only for what an engine or the kernel would not take.
 */
#include "core/tls/tls.h"

#include "core/error.h"

#include <stdarg.h>

typedef struct tls_transport {
    bk_transport base;
    bk_loop *loop;
    bk_transport *inner;
    bk_tls *engine;          /* NULL: the context is still to be chosen */
    bk_tls_context *context; /* NULL: somebody else made the engine */
    bk_tls_context *chosen;  /* what the engine was made of, and refers to */
    bk_tls_manners manners;
    bk_tls_hello *hello; /* waits for its context */
    char *server_name;   /* a client's; of a server that chooses by name, what it was asked for */
    char *words;         /* why the engine failed */
    bk_timer timer;      /* of the handshake, or of the peer's close_notify */
    bk_tls_out out;      /* sealed, on its way */
    char *in;            /* sealed, and not yet taken by the engine */
    size_t in_from, in_used;
    size_t answers;   /* bytes on their way out that the peer, not our side, made us send */
    int failed;       /* told by the next read or write */
    int send_failed;  /* … by the next write: what comes from the peer can still be read */
    int lost;         /* … by the next flush: it was not answers alone that could not be sent */
    int state;        /* what step() returned last */
    bool for_answers; /* what is written are answers of TLS that lies above */
    bool inner_open, started, ended, lingers, drained, read_eof;
} tls_transport;

static const bk_transport_ops tls_ops;

static tls_transport *self_of(bk_transport *t) {
    return (tls_transport *)t;
}

static bool is_opening(const tls_transport *self) {
    return self->engine == NULL || self->state & BK_TLS_OPENING;
}

/* ---- Memory that is passed around ---- */

static char *take_scratch(bk_loop *loop, void **kept, size_t n) {
    char *scratch = *kept != NULL ? *kept : bk_alloc(loop->os, n);
    *kept = NULL; /* TLS within TLS finds none here, and gets another */
    return scratch;
}

static void give_scratch(bk_loop *loop, void **kept, char *scratch) {
    if (*kept == NULL)
        *kept = scratch;
    else
        bk_dealloc(loop->os, scratch);
}

/* ---- What is sealed and goes out ---- */

/* What the engine sends from here on has memory to go to. */
static int open_out(tls_transport *self) {
    bk_tls_out *out = &self->out;
    if (out->bytes != NULL)
        return 0;
    out->bytes = take_scratch(self->loop, &self->loop->cipher_out, BK_TLS_OUT_BYTES);
    out->room = BK_TLS_OUT_BYTES;
    out->from = out->used = 0;
    return out->bytes != NULL ? 0 : -ENOMEM;
}

int bk_tls_send(bk_tls_out *out, const void *data, size_t n) {
    if (out->room - out->used < n) {
        size_t room = 2 * (out->used + n);
        char *bytes = out->os->resize(out->os, out->bytes, room);
        if (bytes == NULL)
            return -ENOMEM;
        out->bytes = bytes;
        out->room = room;
    }
    memcpy(out->bytes + out->used, data, n);
    out->used += n;
    return 0;
}

static int send_sealed(tls_transport *self) {
    bk_tls_out *out = &self->out;
    bk_transport *inner = self->inner;
    if (self->send_failed < 0) /* nothing may follow a gap */
        return out->from < out->used ? self->send_failed : 0;
    if (inner->ops == &tls_ops)
        self_of(inner)->for_answers = out->used - out->from <= self->answers;
    while (out->from < out->used) {
        struct iovec v = {out->bytes + out->from, out->used - out->from};
        ssize_t n = inner->ops->write(inner, &v, 1);
        if (n <= 0 && n != -EINTR)
            return n == 0 ? -EAGAIN : (int)n;
        out->from += n > 0 ? (size_t)n : 0;
    }
    int code = BK_HAS(inner->ops, flush) ? inner->ops->flush(inner) : 0;
    if (code < 0 && code != -EAGAIN) /* it was handed over, and did not arrive */
        self->lost = code;
    return code;
}

/* Send it, and let go of the memory; what was refused is kept in as much as it needs. */
static int close_out(tls_transport *self) {
    bk_tls_out *out = &self->out;
    if (out->bytes == NULL && !BK_HAS(self->inner->ops, flush))
        return 0;
    int code = send_sealed(self);
    size_t left = out->used - out->from;
    if (code < 0 && code != -EAGAIN) {
        bk_transport *inner = self->inner;
        if (left > self->answers || (inner->ops == &tls_ops && self_of(inner)->lost < 0))
            self->lost = code;
        self->send_failed = code;
        left = 0;
    }
    if (out->bytes == NULL || (left > 0 && out->room <= 2 * left))
        return code;
    char *kept = left > 0 ? bk_alloc(self->loop->os, left) : NULL;
    if (left > 0 && kept == NULL)
        return code; /* then in more */
    if (left > 0)
        memcpy(kept, out->bytes + out->from, left);
    if (out->room == BK_TLS_OUT_BYTES)
        give_scratch(self->loop, &self->loop->cipher_out, out->bytes);
    else
        bk_dealloc(self->loop->os, out->bytes);
    if (left == 0)
        self->answers = 0;
    out->bytes = kept;
    out->from = 0;
    out->used = out->room = left;
    return code;
}

static bool holds_out(const tls_transport *self) {
    return self->out.from < self->out.used;
}

/* A peer that makes us answer and does not listen is not read from either. What we write is no
   reason: each direction goes on by itself. */
static bool holds_answers(const tls_transport *self) {
    return self->answers > BK_TLS_OUT_BYTES;
}

/* ---- Failing ---- */

int bk_tls_fail(bk_tls_out *out, int code, const char *format, ...) {
    va_list args;
    va_start(args, format);
    (void)bk_error_set_va(out->error, code, 0, format, args);
    va_end(args);
    return code;
}

static void keep_words(tls_transport *self, const char *text) {
    size_t n = strlen(text) + 1;
    bk_dealloc(self->loop->os, self->words);
    self->words = bk_alloc(self->loop->os, n);
    if (self->words != NULL)
        memcpy(self->words, text, n);
}

static int fail(tls_transport *self, int code, const char *words) {
    self->failed = code;
    if (words != NULL && *words != '\0')
        keep_words(self, words);
    return code;
}

void bk_tls_keep_session(bk_tls_out *out, const void *data, size_t n) {
    if (out->context != NULL && out->name != NULL)
        bk_tls_context_keep(out->context, out->name, data, n);
}

/* ---- The engine's turn ---- */

/* Step until nothing moves. One that has failed says why in its own words. */
static int step(tls_transport *self, bk_span *in, bk_room *room) {
    bk_error error = {0, 0, ""};
    bool moved = true;
    self->out.error = &error;
    while (moved && !(self->state & BK_TLS_ENDED)) {
        size_t in_before = in->size, room_before = room->size, out_before = self->out.used;
        int before = self->state;
        int state = self->engine->ops->step(self->engine, in, room, &self->out);
        self->started = true;
        if (state < 0) {
            self->out.error = NULL;
            return fail(self, state, error.text);
        }
        self->state = state;
        self->answers += self->out.used - out_before;
        moved = in->size != in_before || room->size != room_before ||
                self->out.used != out_before || state != before;
        bool more = in->size > 0 || state & BK_TLS_PENDING;
        if (!more || (room->size == 0 && !(before & BK_TLS_OPENING)))
            break;
    }
    self->out.error = NULL;
    /* Whatever is left now has no reason to be: it would be handed over for ever. */
    bool stuck = in->size > 0 || self->state & BK_TLS_PENDING;
    bool excused = self->state & BK_TLS_ENDED || (room->size == 0 && !is_opening(self));
    if (is_opening(self) && self->state & (BK_TLS_ENDED | BK_TLS_PENDING))
        return fail(self, BK_ETLS_PROTOCOL, "the connection ended within the handshake");
    if (!moved && stuck && !excused)
        return fail(self, BK_ETLS, "the engine does not take what the peer sent");
    return 0;
}

/* What the engine left of `in`, which is in memory of the loop's, is kept until the next time. */
static int keep_in(tls_transport *self, const bk_span *in) {
    if (self->in != NULL && in->size > 0) {
        self->in_from = self->in_used - in->size;
        return 0;
    }
    bk_dealloc(self->loop->os, self->in);
    self->in = NULL;
    self->in_from = self->in_used = 0;
    if (in->size == 0 || self->failed < 0 || self->state & BK_TLS_ENDED)
        return 0;
    self->in = bk_alloc(self->loop->os, in->size);
    if (self->in == NULL)
        return fail(self, -ENOMEM, NULL);
    memcpy(self->in, in->base, in->size);
    self->in_used = in->size;
    return 0;
}

/* Sealed bytes for room for n plain ones: what was kept, or else what the inner transport has. */
static ssize_t fill(tls_transport *self, char *scratch, size_t n, bk_span *ret_in) {
    bk_transport *inner = self->inner;
    *ret_in = (bk_span){NULL, 0};
    if (self->in != NULL)
        *ret_in = (bk_span){self->in + self->in_from, self->in_used - self->in_from};
    if (self->in != NULL || self->state & BK_TLS_PENDING)
        return 1;
    /* Enough for the room, and for a whole record; but hardly more, as that would be kept. */
    size_t most = n + n / 64 + BK_TLS_RECORD_BYTES + 1024;
    ssize_t got;
    do
        got = inner->ops->read(inner, scratch, most < BK_TLS_IN_BYTES ? most : BK_TLS_IN_BYTES);
    while (got == -EINTR);
    *ret_in = (bk_span){scratch, got > 0 ? (size_t)got : 0};
    return got;
}

/* Move on in what came from the peer: 1: something moved; 0: the peer's bytes are over; -EAGAIN or
   broken. */
static int advance(tls_transport *self, bk_room *room) {
    bk_span in;
    char *scratch = take_scratch(self->loop, &self->loop->cipher_in, BK_TLS_IN_BYTES);
    if (scratch == NULL)
        return -ENOMEM;
    ssize_t got = fill(self, scratch, room->size, &in);
    int code = got > 0 ? open_out(self) : (int)got;
    if (got > 0 && code == 0)
        code = step(self, &in, room);
    if (got > 0) {
        int kept = keep_in(self, &in);
        code = code < 0 ? code : kept < 0 ? kept : 1;
    }
    give_scratch(self->loop, &self->loop->cipher_in, scratch);
    return code;
}

/* ---- Opening ---- */

static void forget_hello(tls_transport *self) {
    bk_tls_hello *hello = self->hello;
    self->hello = NULL;
    if (hello == NULL)
        return;
    if (!hello->answered) {
        hello->transport = NULL; /* bk_tls_choose() frees it */
        return;
    }
    bk_tls_context_unref(hello->context);
    bk_dealloc(self->loop->os, hello);
}

static int make_engine(tls_transport *self, bk_tls_context *context) {
    bk_span session = {NULL, 0};
    const char *name = context->server ? NULL : self->server_name;
    if (name != NULL)
        session = bk_tls_context_session(self->context, self->server_name);
    int code = context->engine->connection_new(context->state, name, session, &self->engine);
    if (code < 0)
        return fail(self, code, "the engine could not be made");
    self->chosen = bk_tls_context_ref(context);
    self->state = BK_TLS_OPENING;
    return 0;
}

/* Before there is an engine, an alert is ours to send: RFC 8446 6. */
enum { DECODE_ERROR = 50, UNRECOGNIZED_NAME = 112 };

static int refuse(tls_transport *self, char alert, int code, const char *words) {
    const char record[] = {21, 3, 3, 0, 2, 2, alert};
    if (open_out(self) == 0)
        (void)bk_tls_send(&self->out, record, sizeof record);
    return fail(self, code, words);
}

/* The context for the name asked for; -EAGAIN: whoever chooses has not done so yet. */
static int choose(tls_transport *self, const char *name) {
    size_t n = strlen(name) + 1;
    self->server_name = bk_alloc(self->loop->os, n); /* to compare with what the engine heard */
    if (self->server_name == NULL)
        return -ENOMEM;
    memcpy(self->server_name, name, n);
    bk_tls_context *context = bk_tls_context_find(self->context, name);
    if (context != NULL || self->context->choose == NULL)
        return make_engine(self, context != NULL ? context : self->context);
    bk_tls_hello *hello = bk_alloc_zero(self->loop->os, sizeof *hello);
    if (hello == NULL)
        return -ENOMEM;
    hello->os = self->loop->os;
    hello->transport = &self->base;
    memcpy(hello->name, name, n);
    self->hello = hello;
    self->context->choose(self->context->arg, hello);
    return 0;
}

static int take_answer(tls_transport *self) {
    if (!self->hello->answered)
        return -EAGAIN;
    bk_tls_context *context = self->hello->context;
    int code = context != NULL ? make_engine(self, context)
                               : refuse(self, UNRECOGNIZED_NAME, BK_ETLS_NAME,
                                        "no certificate was chosen for the name asked for");
    forget_hello(self);
    return code;
}

/* Where certificates are chosen by name, nobody may be served without having been asked: what we
   cannot read is refused, even if an engine could. */
static int refuse_hello(tls_transport *self, const char *words) {
    return refuse(self, DECODE_ERROR, BK_ETLS_PROTOCOL, words);
}

/* Gather what the client sends until its name is known. */
static int read_hello(tls_transport *self) {
    char name[BK_TLS_NAME_BYTES] = "";
    bk_os *os = self->loop->os;
    for (;;) {
        int code = bk_hello_find_name(os, self->in, self->in_used, name);
        if (code == -ENOMEM)
            return code;
        if (code < 0)
            return refuse_hello(self, "what the client sent is no client hello");
        if (code > 0)
            return choose(self, name);
        char *in = os->resize(os, self->in, self->in_used + BK_TLS_RECORD_BYTES);
        if (in == NULL)
            return -ENOMEM;
        self->in = in;
        ssize_t n = self->inner->ops->read(self->inner, in + self->in_used, BK_TLS_RECORD_BYTES);
        if (n == -EINTR)
            continue;
        if (n <= 0)
            return n == 0 ? -ECONNRESET : (int)n;
        self->in_used += (size_t)n;
        if (self->in_used > BK_TLS_HELLO_BYTES)
            return refuse_hello(self, "the client hello is too long");
    }
}

static int find_engine(tls_transport *self) {
    if (self->engine != NULL)
        return 0;
    bool by_name = self->context->names != NULL || self->context->choose != NULL;
    if (!by_name || !self->context->server)
        return make_engine(self, self->context);
    int code = self->hello != NULL ? 0 : read_hello(self);
    return code == 0 && self->hello != NULL ? take_answer(self) : code;
}

static void out_of_time(void *arg) {
    tls_transport *self = arg;
    (void)fail(self, -ETIMEDOUT,
               is_opening(self) ? "the handshake took too long"
                                : "the peer sent no close_notify in time");
    if (self->base.stream != NULL)
        bk_stream_fail(self->base.stream, self->failed);
}

static int start_timer(tls_transport *self, int64_t ns) {
    bk_loop *loop = self->loop;
    int64_t now = bk_loop_now(loop);
    bk_timer_stop(loop, &self->timer);
    return bk_timer_start(loop, &self->timer, ns < INT64_MAX - now ? now + ns : INT64_MAX,
                          out_of_time, self);
}

static int handshake(tls_transport *self) {
    bk_room none = {NULL, 0};
    int code = find_engine(self);
    if (code == 0 && !self->started) { /* a client begins */
        bk_span nothing = {NULL, 0};
        code = open_out(self);
        if (code == 0)
            code = step(self, &nothing, &none);
    }
    while (code >= 0 && self->state & BK_TLS_OPENING) {
        code = advance(self, &none);
        if (code == 0) {
            self->read_eof = true;
            code = -ECONNRESET;
        }
    }
    return code;
}

/* Of a server that chose by name: whether the engine was asked for the same one. A second hello,
   after a retry (RFC 8446 4.1.4), must not ask for another. */
static int check_name(tls_transport *self) {
    char name[BK_TLS_NAME_BYTES];
    size_t size = sizeof name;
    const bk_tls_ops *ops = self->engine->ops;
    if (self->context == NULL || !self->context->server || self->server_name == NULL)
        return 0;
    if (!BK_HAS(ops, query) || ops->query(self->engine, BK_QUERY_TLS_NAME, name, &size) < 0)
        return 0;
    for (char *c = name; *c != '\0'; c++)
        *c = (char)(*c >= 'A' && *c <= 'Z' ? *c + ('a' - 'A') : *c);
    if (*name == '\0' || strcmp(name, self->server_name) == 0) /* "": resumed, and not told */
        return 0;
    return fail(self, BK_ETLS_PROTOCOL, "the client asked for one name, and then for another");
}

static bool is_gone(int code) {
    return code == -EPIPE || code == -ECONNRESET;
}

/* What lies below may have a handshake of its own. */
static int open_inner(tls_transport *self) {
    bk_transport *inner = self->inner;
    int code = self->inner_open || !BK_HAS(inner->ops, open) ? 0 : inner->ops->open(inner);
    self->inner_open = code == 0;
    return code;
}

static int tls_open(bk_transport *t) {
    tls_transport *self = self_of(t);
    self->inner->stream = t->stream;
    if (self->failed < 0)
        return self->failed;
    int code = self->timer.place != 0 ? 0 : start_timer(self, self->manners.handshake_ns);
    if (code == 0)
        code = open_inner(self);
    if (code < 0)
        return code;
    code = handshake(self);
    if (code >= 0)
        code = check_name(self);
    int sent = close_out(self); /* an alert too */
    if (code == -EAGAIN && sent < 0)
        code = sent;
    if (code >= 0 && sent < 0 && !is_gone(sent) && sent != -EAGAIN)
        code = sent; /* the peer may wait for what was lost */
    if (code < 0)
        return code;
    bk_timer_stop(self->loop, &self->timer);
    return 0;
}

/* ---- Reading ---- */

/* Whether a read would find something without the inner transport's help. */
static bool ready_inside(const tls_transport *self) {
    return self->in != NULL || self->failed < 0 || self->state & (BK_TLS_PENDING | BK_TLS_ENDED) ||
           self->read_eof;
}

/* What a read of nothing means. */
static ssize_t end_of_read(tls_transport *self, int code) {
    if (self->failed < 0)
        return self->failed;
    if (self->state & BK_TLS_ENDED)
        return 0;
    if (code != 0)
        return code;
    self->read_eof = true;
    if (self->manners.allow_truncation)
        return 0;
    return fail(self, BK_ETRUNCATED, "the connection ended without a close_notify");
}

static ssize_t tls_read(bk_transport *t, void *room, size_t n) {
    tls_transport *self = self_of(t);
    bk_room left = {room, n};
    int code = 1;
    /* A descriptor tells again that it has more; what has none must be read until it says so. */
    bool told = self->inner->ops->fd(self->inner, BK_READ) >= 0;
    if (is_opening(self))
        return self->failed < 0 ? self->failed : -EAGAIN;
    if (self->read_eof || self->failed < 0 || self->state & BK_TLS_ENDED)
        return end_of_read(self, 0);
    if (holds_answers(self) && close_out(self) == -EAGAIN && holds_answers(self))
        return -EAGAIN;
    do
        code = advance(self, &left);
    while (code > 0 && left.size == n && !(self->state & BK_TLS_ENDED) && (!told || self->in));
    (void)close_out(self); /* what fails is told by the next write: what was said can be read */
    if (left.size < n)
        return (ssize_t)(n - left.size);
    return end_of_read(self, code > 0 ? -EAGAIN : code);
}

/* ---- Writing ---- */

/* Small pieces are joined, up to a record; a large one is sealed where it lies. */
static bk_span next_piece(const struct iovec *v, int n, size_t skip, char *room) {
    const char *first = (const char *)v->iov_base + skip;
    size_t size = v->iov_len - skip, joined = 0;
    if (n == 1 || size >= BK_TLS_RECORD_BYTES)
        return (bk_span){first, size < BK_TLS_SEAL_BYTES ? size : BK_TLS_SEAL_BYTES};
    for (int i = 0; i < n && joined < BK_TLS_RECORD_BYTES; i++) {
        const char *from = i == 0 ? first : v[i].iov_base;
        size_t part = i == 0 ? size : v[i].iov_len;
        if (part > BK_TLS_RECORD_BYTES - joined)
            part = BK_TLS_RECORD_BYTES - joined;
        memcpy(room + joined, from, part);
        joined += part;
    }
    return (bk_span){room, joined};
}

static int seal(tls_transport *self, bk_span plain) {
    bk_error error = {0, 0, ""};
    int code = open_out(self);
    if (code < 0)
        return code;
    size_t before = self->out.used;
    self->out.error = &error;
    code = self->engine->ops->seal(self->engine, plain, &self->out);
    self->out.error = NULL;
    if (self->for_answers)
        self->answers += self->out.used - before;
    return code < 0 ? fail(self, code, error.text) : 0;
}

static int refuses(const tls_transport *self) {
    if (self->failed < 0)
        return self->failed;
    if (self->send_failed < 0)
        return self->send_failed;
    return self->ended ? -EPIPE : is_opening(self) ? -EAGAIN : 0;
}

static ssize_t tls_write(bk_transport *t, const struct iovec *v, int n) {
    tls_transport *self = self_of(t);
    char room[BK_TLS_RECORD_BYTES];
    size_t skip = 0;
    ssize_t taken = 0;
    int code = refuses(self);
    if (code == 0)
        code = close_out(self);
    while (code == 0 && n > 0) {
        if (v->iov_len == skip) {
            v++, n--;
            skip = 0;
            continue;
        }
        bk_span piece = next_piece(v, n, skip, room);
        code = seal(self, piece);
        if (code < 0)
            break;
        taken += (ssize_t)piece.size;
        for (skip += piece.size; n > 0 && skip >= v->iov_len; v++, n--)
            skip -= v->iov_len;
        if (self->out.used - self->out.from >= BK_TLS_SEAL_BYTES || n == 0)
            code = close_out(self);
    }
    if (code < 0 && code != -EAGAIN)
        return code;
    return taken > 0 || code == 0 ? taken : -EAGAIN;
}

/* Read and drop what comes, until the peer's close_notify: 0; -EAGAIN: it has not come; 1: there
   may be more, but others are to have their turn. */
static int drain(tls_transport *self) {
    char sink[1024];
    int code = 1;
    for (int i = 0; i < BK_TLS_DRAINS && code > 0; i++) {
        bk_room room = {sink, sizeof sink};
        if (self->state & BK_TLS_ENDED || self->failed < 0 || self->read_eof)
            return 0;
        code = advance(self, &room);
    }
    (void)close_out(self);
    return code > 0 || code == -EAGAIN ? code : 0;
}

/* The end, for good. What lies unread when a socket is closed makes the kernel reset the
   connection, and drop what the peer has not read: tickets do, that nobody asked for. */
static int take_leave(tls_transport *self) {
    bk_transport *inner = self->inner;
    if (!self->lingers && !self->drained && self->manners.linger_ns > 0) {
        self->lingers = true;
        int code = self->timer.place != 0 ? 0 : start_timer(self, self->manners.linger_ns);
        if (code < 0)
            return code;
    }
    int code = self->drained ? 0 : drain(self);
    if (code != 0 && self->lingers) {
        if (code > 0)
            bk_transport_wake(&self->base);
        return -EAGAIN;
    }
    self->lingers = false;
    self->drained = true; /* what lies below drops what comes now */
    if (inner->ops != &tls_ops)
        return 0;
    code = inner->ops->end(inner); /* TLS in TLS: each layer says good-bye */
    return code < 0 ? code : inner->ops->flush(inner);
}

static int tls_flush(bk_transport *t) {
    tls_transport *self = self_of(t);
    int code = close_out(self);
    bool leaves = self->ended && t->stream != NULL && t->stream->flags & BK_STREAM_CLOSING;
    if (self->lost < 0)
        return self->lost;
    if (code == 0 && leaves)
        code = take_leave(self);
    /* That answers, and our good-bye, do not arrive is for the next write to tell. */
    return code < 0 && code != -EAGAIN ? self->lost : code;
}

static int tls_end(bk_transport *t) {
    tls_transport *self = self_of(t);
    bk_error error = {0, 0, ""};
    if (self->ended || self->failed < 0)
        return 0;
    if (self->read_eof) { /* without a good-bye, which was allowed: so is ours, as asyncio's */
        self->ended = true;
        return 0;
    }
    int code = open_out(self);
    if (code < 0)
        return code;
    size_t before = self->out.used;
    self->ended = true;
    self->out.error = &error;
    code = self->engine->ops->end(self->engine, &self->out);
    self->out.error = NULL;
    self->answers += self->out.used - before; /* no bytes of the user's */
    return code < 0 ? fail(self, code, error.text) : 0;
}

/* ---- The rest of a transport ---- */

static unsigned tls_wants(bk_transport *t, unsigned directions) {
    tls_transport *self = self_of(t);
    bk_transport *inner = self->inner;
    unsigned want = holds_out(self) ? BK_WRITE : 0, now = 0;
    inner->stream = t->stream;
    bool opening = is_opening(self);
    if (opening && self->hello == NULL)
        want |= BK_READ;
    else if (!opening && directions & BK_READ && ready_inside(self) && !holds_answers(self))
        now = BK_NOW;
    else if (!opening && (directions & BK_READ || self->lingers) && !holds_answers(self))
        want |= BK_READ;
    if (!opening && !self->lingers)
        want |= directions & BK_WRITE;
    if (!self->inner_open && BK_HAS(inner->ops, open))
        want = 0; /* but for what it needs itself */
    if (BK_HAS(inner->ops, wants))
        want = inner->ops->wants(inner, want);
    return want | now;
}

static void tls_close(bk_transport *t) {
    tls_transport *self = self_of(t);
    bk_os *os = self->loop->os;
    bk_timer_stop(self->loop, &self->timer);
    forget_hello(self);
    if (self->engine != NULL)
        self->engine->ops->close(self->engine);
    if (self->inner != NULL)
        self->inner->ops->close(self->inner);
    bk_tls_context_unref(self->chosen);
    bk_tls_context_unref(self->context);
    bk_dealloc(os, self->out.bytes);
    bk_dealloc(os, self->in);
    bk_dealloc(os, self->server_name);
    bk_dealloc(os, self->words);
    bk_dealloc(os, self);
}

static int tls_fd(bk_transport *t, unsigned direction) {
    bk_transport *inner = self_of(t)->inner;
    return inner->ops->fd(inner, direction);
}

static int tls_query(bk_transport *t, int what, void *ret_value, size_t *size) {
    tls_transport *self = self_of(t);
    bk_transport *inner = self->inner;
    const int yes = 1;
    if (what == BK_QUERY_TLS)
        return bk_query_answer(ret_value, size, &yes, sizeof yes);
    if (what == BK_QUERY_TLS_WORDS) {
        const char *words = self->words != NULL ? self->words : "";
        return bk_query_answer(ret_value, size, words, strlen(words) + 1);
    }
    if (what == BK_QUERY_NAME)
        return bk_query_answer(ret_value, size, "tls", sizeof "tls");
    if (what == BK_QUERY_PLAIN) /* what the socket carries is sealed */
        return -ENOTSUP;
    bool ours = what > BK_QUERY_TLS && what <= BK_QUERY_TLS_VERIFIED;
    if (ours && is_opening(self))
        return -ENOTSUP;
    if (what == BK_QUERY_TLS_VERIFIED) {
        const int verified = self->chosen != NULL && self->chosen->verifies;
        return self->chosen != NULL ? bk_query_answer(ret_value, size, &verified, sizeof verified)
                                    : -ENOTSUP;
    }
    if (ours)
        return BK_HAS(self->engine->ops, query)
                   ? self->engine->ops->query(self->engine, what, ret_value, size)
                   : -ENOTSUP;
    return BK_HAS(inner->ops, query) ? inner->ops->query(inner, what, ret_value, size) : -ENOTSUP;
}

static const bk_transport_ops tls_ops = {
    .size = sizeof(bk_transport_ops),
    .name = "tls",
    .read = tls_read,
    .write = tls_write,
    .flush = tls_flush,
    .wants = tls_wants,
    .end = tls_end,
    .close = tls_close,
    .fd = tls_fd,
    .query = tls_query,
    .open = tls_open,
};

/* ---- Making them ---- */

static tls_transport *make(bk_loop *loop, bk_transport *inner, const bk_tls_manners *manners) {
    tls_transport *self = bk_alloc_zero(loop->os, sizeof *self);
    if (self == NULL)
        return NULL;
    self->base.ops = &tls_ops;
    self->loop = loop;
    self->inner = inner;
    self->manners = *manners;
    self->out.os = loop->os;
    self->state = BK_TLS_OPENING;
    return self;
}

int bk_tls_transport_over(bk_loop *loop, bk_transport *inner, bk_tls *engine,
                          const bk_tls_manners *manners, bk_transport **ret_transport) {
    tls_transport *self = make(loop, inner, manners);
    if (self == NULL)
        return -ENOMEM;
    self->engine = engine;
    *ret_transport = &self->base;
    return 0;
}

/* The root's dot and the zone of an address are no part of what is asked for and verified. */
static size_t name_size(const char *name) {
    size_t n = strcspn(name, "%");
    return n > 1 && name[n - 1] == '.' ? n - 1 : n;
}

int bk_tls_transport(bk_loop *loop, bk_transport *inner, bk_tls_context *context,
                     const char *server_name, bk_transport **ret_transport) {
    if (loop == NULL || inner == NULL || context == NULL || ret_transport == NULL)
        return -EINVAL;
    tls_transport *self = make(loop, inner, &context->manners);
    if (self == NULL)
        return -ENOMEM;
    size_t n = server_name != NULL && !context->server ? name_size(server_name) : 0;
    self->context = bk_tls_context_ref(context);
    self->server_name = n > 0 ? bk_alloc_zero(loop->os, n + 1) : NULL;
    if (n > 0 && self->server_name == NULL) {
        bk_tls_transport_abandon(&self->base);
        return -ENOMEM;
    }
    if (n > 0)
        memcpy(self->server_name, server_name, n);
    self->out.context = context;
    self->out.name = self->server_name;
    *ret_transport = &self->base;
    return 0;
}

void bk_tls_transport_set_manners(bk_transport *t, const bk_tls_manners *manners) {
    self_of(t)->manners = *manners;
}

bk_tls *bk_tls_transport_engine(bk_transport *t) {
    return t != NULL && t->ops == &tls_ops ? self_of(t)->engine : NULL;
}

void bk_tls_transport_close_engines(bk_transport *t) {
    for (; t->ops == &tls_ops; t = self_of(t)->inner) {
        bk_tls *engine = self_of(t)->engine;
        self_of(t)->engine = NULL;
        if (engine != NULL)
            engine->ops->close(engine);
    }
}

void bk_tls_transport_limit_end(bk_transport *t) {
    if (t->ops == &tls_ops && !(self_of(t)->state & BK_TLS_OPENING))
        (void)start_timer(self_of(t), self_of(t)->manners.linger_ns);
}

void bk_tls_transport_abandon(bk_transport *t) {
    self_of(t)->inner = NULL;
    tls_close(t);
}

bk_transport *bk_tls_transport_innermost(bk_transport *t) {
    bk_transport *inner;
    while ((inner = t->ops == &tls_ops ? self_of(t)->inner : bk_tls_offer_inner(t)) != NULL)
        t = inner;
    return t;
}

int bk_tls_transport_feed(bk_transport *t, const void *data, size_t n) {
    tls_transport *self = self_of(t);
    self->in = n > 0 ? bk_alloc(self->loop->os, n) : NULL;
    if (n > 0 && self->in == NULL)
        return -ENOMEM;
    if (n > 0)
        memcpy(self->in, data, n);
    self->in_from = 0;
    self->in_used = n;
    return 0;
}

/* ---- In mid-stream ---- */

int bk_stream_rekey(bk_stream *s) {
    if (s == NULL)
        return -EINVAL;
    bk_tls *engine = bk_tls_transport_engine(s->transport);
    if (engine == NULL || s->flags & (BK_STREAM_OPENING | BK_STREAM_ENDED | BK_STREAM_CLOSED))
        return -ENOTSUP;
    tls_transport *self = self_of(s->transport);
    if (self->failed < 0 || self->ended)
        return self->failed < 0 ? self->failed : -EPIPE;
    bk_error error = {0, 0, ""};
    int code = BK_HAS(engine->ops, rekey) ? open_out(self) : -ENOTSUP;
    if (code < 0)
        return code;
    self->out.error = &error;
    code = engine->ops->rekey(engine, &self->out);
    self->out.error = NULL;
    if (code < 0 && code != -ENOTSUP)
        (void)fail(self, code, error.text);
    bk_transport_wake(&self->base); /* to send it, or to tell that it failed */
    return code;
}

/* What was written before and would not be sent at once goes out ahead of what is sealed. */
static int take_queue(tls_transport *self, bk_stream *s) {
    while (s->head != NULL) {
        struct iovec v[BK_IOV_MAX];
        size_t bytes;
        int n = bk_queue_gather(s, v, BK_IOV_MAX, &bytes), code = open_out(self);
        for (int i = 0; i < n && code == 0; i++)
            code = bk_tls_send(&self->out, v[i].iov_base, v[i].iov_len);
        if (code < 0)
            return code;
        bk_queue_drop(s, bytes);
    }
    return 0;
}

int bk_tls_transport_start(bk_transport *t, bk_stream *s) {
    bk_stream_flush(s);
    if (s->flags & (BK_STREAM_CLOSED | BK_STREAM_CLOSING | BK_STREAM_ENDING))
        return -EPIPE;
    self_of(t)->inner_open = true;
    int code = take_queue(self_of(t), s);
    if (code < 0) { /* a part of it is not in the queue any more */
        bk_stream_fail(s, code);
        return code;
    }
    bk_stream_set_transport(s, t);
    code = close_out(self_of(t));
    if (code < 0 && code != -EAGAIN)
        bk_stream_fail(s, code);
    return 0;
}

/* last goes out in plain, once nothing but a lack of memory is in the way: that ends the stream. */
static int start_tls(bk_stream *s, bk_tls_context *context, const char *server_name,
                     const void *last, size_t n) {
    if (s->flags & (BK_STREAM_OPENING | BK_STREAM_CONNECTING))
        return -EALREADY;
    bk_transport *inner = s->transport, *t;
    if (context == NULL) {
        const char *offered = NULL;
        int code = bk_tls_offer_context(inner, &context, &offered);
        if (code < 0)
            return code;
        server_name = server_name != NULL ? server_name : offered;
    }
    int code = bk_tls_transport(s->loop, inner, context, server_name, &t);
    if (code < 0)
        return code;
    code = bk_stream_write(s, last, n, BK_COPY, NULL);
    if (code == 0)
        code = bk_tls_transport_start(t, s);
    if (code < 0)
        bk_tls_transport_abandon(t);
    return code;
}

int bk_stream_start_tls(bk_stream *s, bk_tls_context *context, const char *server_name) {
    return s == NULL ? -EINVAL : start_tls(s, context, server_name, NULL, 0);
}

int bk_stream_start_tls_after(bk_stream *s, const void *last, size_t n) {
    return start_tls(s, NULL, NULL, last, n);
}
