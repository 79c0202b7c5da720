/*
 * relay.c: two streams joined: what one receives, the other sends, until both directions are over.
 * Called by proxies, and where a connection is to be had as a descriptor: bk_stream_relay().
 *
 * Nothing is copied unless it has to wait: what was received is sent by reference.
 */
#include "core/stream/stream.h"

/* The other one; NULL: it is gone, and this one is closing. */
static bk_stream *relay_peer(const bk_stream *s) {
    return bk_stream_user(s);
}

static void relay_received(bk_stream *s, const void *data, size_t n) {
    bk_stream *peer = relay_peer(s);
    if (peer != NULL && bk_stream_write(peer, data, n, BK_COPY, NULL) == -ENOMEM)
        bk_stream_fail(s, -ENOMEM);
}

/* The end is passed on; one that cannot half-close is closed. */
static int relay_ended(bk_stream *s) {
    bk_stream *peer = relay_peer(s);
    if (peer == NULL)
        return 0;
    if (peer->flags & BK_STREAM_EOF || bk_stream_end(peer) == -ENOTSUP) {
        bk_stream_close(peer);
        return 0;
    }
    return 1;
}

static void relay_blocked(bk_stream *s) {
    bk_stream_pause(relay_peer(s));
}

static void relay_writable(bk_stream *s) {
    bk_stream_resume(relay_peer(s));
}

/* An end that came before it could be passed on. */
static void pass_on_end(bk_stream *s) {
    if (s != NULL && s->flags & BK_STREAM_EOF && relay_ended(s) == 0)
        bk_stream_close(s);
}

/* Until a stream is open, nobody hears of how much is queued for it: its peer was paused. */
static int relay_opened(bk_stream *s) {
    relay_writable(s);
    pass_on_end(relay_peer(s));
    return 0;
}

static void relay_closed(bk_stream *s, int why) {
    bk_stream *peer = relay_peer(s);
    if (peer == NULL)
        return;
    bk_stream_set_user(peer, NULL);
    if (why == 0)
        bk_stream_close(peer);
    else
        bk_stream_abort(peer);
}

static const bk_protocol relay = {
    .size = sizeof relay,
    .name = "relay",
    .opened = relay_opened,
    .received = relay_received,
    .ended = relay_ended,
    .blocked = relay_blocked,
    .writable = relay_writable,
    .closed = relay_closed,
};

/* What one has queued when they are joined holds the other back. */
static void take_up(bk_stream *s) {
    if (s->flags & BK_STREAM_BLOCKED || !(s->flags & BK_STREAM_OPENED))
        relay_blocked(s);
    else
        relay_opened(s);
}

int bk_stream_relay(bk_stream *a, bk_stream *b) {
    const uint32_t over = BK_STREAM_ENDING | BK_STREAM_CLOSING | BK_STREAM_CLOSED;
    if (a == NULL || b == NULL || a == b || a->loop != b->loop)
        return -EINVAL;
    if ((a->flags | b->flags) & over)
        return -EPIPE;
    bk_stream_set_user(a, b);
    bk_stream_set_user(b, a);
    bk_stream_set_protocol(a, &relay);
    bk_stream_set_protocol(b, &relay);
    take_up(a);
    take_up(b);
    return 0;
}
