/*
 * offer.c: a transport that passes everything on to the one it holds, and remembers with which
 * context TLS may be started on it: what a starttls:// endpoint gives its streams. Made by
 * core/serve; taken up by bk_stream_start_tls(), when the protocol asks for it.
 */
#include "core/tls/tls.h"

typedef struct offer {
    bk_transport base;
    bk_os *os;
    bk_transport *inner;
    bk_tls_context *context;
    char server_name[]; /* of a client: whom to verify; "": nobody */
} offer;

static ssize_t offer_read(bk_transport *t, void *room, size_t n) {
    bk_transport *inner = ((offer *)t)->inner;
    return inner->ops->read(inner, room, n);
}

static ssize_t offer_write(bk_transport *t, const struct iovec *v, int n) {
    bk_transport *inner = ((offer *)t)->inner;
    return inner->ops->write(inner, v, n);
}

static int offer_flush(bk_transport *t) {
    bk_transport *inner = ((offer *)t)->inner;
    return BK_HAS(inner->ops, flush) ? inner->ops->flush(inner) : 0;
}

static unsigned offer_wants(bk_transport *t, unsigned directions) {
    bk_transport *inner = ((offer *)t)->inner;
    inner->stream = t->stream;
    return BK_HAS(inner->ops, wants) ? inner->ops->wants(inner, directions) : directions;
}

static int offer_end(bk_transport *t) {
    bk_transport *inner = ((offer *)t)->inner;
    return BK_HAS(inner->ops, end) ? inner->ops->end(inner) : -ENOTSUP;
}

static void offer_close(bk_transport *t) {
    offer *self = (offer *)t;
    self->inner->ops->close(self->inner);
    bk_tls_context_unref(self->context);
    bk_dealloc(self->os, self);
}

static int offer_fd(bk_transport *t, unsigned direction) {
    bk_transport *inner = ((offer *)t)->inner;
    return inner->ops->fd(inner, direction);
}

static int offer_query(bk_transport *t, int what, void *ret_value, size_t *size) {
    bk_transport *inner = ((offer *)t)->inner;
    const int not_yet = 0;
    if (what == BK_QUERY_TLS)
        return bk_query_answer(ret_value, size, &not_yet, sizeof not_yet);
    return BK_HAS(inner->ops, query) ? inner->ops->query(inner, what, ret_value, size) : -ENOTSUP;
}

static const bk_transport_ops offer_ops = {
    .size = sizeof(bk_transport_ops),
    .name = "starttls",
    .read = offer_read,
    .write = offer_write,
    .flush = offer_flush,
    .wants = offer_wants,
    .end = offer_end,
    .close = offer_close,
    .fd = offer_fd,
    .query = offer_query,
};

int bk_tls_offer(bk_loop *loop, bk_transport *inner, bk_tls_context *context,
                 const char *server_name, bk_transport **ret_transport) {
    size_t n = server_name != NULL ? strlen(server_name) : 0;
    offer *self = bk_alloc_zero(loop->os, sizeof *self + n + 1);
    if (self == NULL)
        return -ENOMEM;
    if (n > 0)
        memcpy(self->server_name, server_name, n);
    self->base.ops = &offer_ops;
    self->os = loop->os;
    self->inner = inner;
    self->context = bk_tls_context_ref(context);
    *ret_transport = &self->base;
    return 0;
}

int bk_tls_offer_context(bk_transport *t, bk_tls_context **ret_context,
                         const char **ret_server_name) {
    offer *self = (offer *)t;
    if (t->ops != &offer_ops)
        return -ENOTSUP;
    *ret_context = self->context;
    *ret_server_name = *self->server_name != '\0' ? self->server_name : NULL;
    return 0;
}

bk_transport *bk_tls_offer_inner(const bk_transport *t) {
    return t->ops == &offer_ops ? ((const offer *)(const void *)t)->inner : NULL;
}
