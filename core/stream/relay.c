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
    .received = relay_received,
    .ended = relay_ended,
    .blocked = relay_blocked,
    .writable = relay_writable,
    .closed = relay_closed,
};

int bk_stream_relay(bk_stream *a, bk_stream *b) {
    if (a == NULL || b == NULL || a == b || a->loop != b->loop)
        return -EINVAL;
    if ((a->flags | b->flags) & BK_STREAM_CLOSED)
        return -EPIPE;
    bk_stream_set_user(a, b);
    bk_stream_set_user(b, a);
    bk_stream_set_protocol(a, &relay);
    bk_stream_set_protocol(b, &relay);
    for (int i = 0; i < 2; i++, a = b)
        if (a->queued > a->high)
            relay_blocked(a);
        else
            relay_writable(a);
    return 0;
}
