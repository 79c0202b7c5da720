/*
 * line.c: cuts what arrives into lines and calls a hook for each. For text protocols without a
 * machine of their own: a program serves one with bk_line_protocol_new().
 *
 * A line that lies whole in what arrived is handed over where it is; one in pieces is gathered, up
 * to the limit and no further. Each byte is looked at once.
 */
#include <becket-protocols.h>

#include "core/protocol/buffer.h"

typedef struct line_machine {
    bk_machine machine;
    bk_line_config config;
    bk_buffer part; /* of a line whose end has not arrived */
    bool skipping;  /* the rest of a line that is too long */
} line_machine;

static void line_too_long(line_machine *l) {
    static const char text[] = "error: line too long\r\n";
    bk_buffer_clear(l->machine.os, &l->part);
    l->skipping = true;
    if (l->config.too_long != NULL)
        l->config.too_long(l->config.context, &l->machine);
    else
        bk_machine_send(&l->machine, text, sizeof text - 1, BK_STATIC, NULL);
}

static void line_echo(line_machine *l, const char *text, size_t n) {
    int r = bk_machine_send(&l->machine, text, n, BK_COPY, NULL);
    if (r == 0)
        r = bk_machine_send(&l->machine, "\r\n", 2, BK_STATIC, NULL);
    if (r < 0)
        bk_machine_abort(&l->machine, r);
}

/* A whole line, without its LF. */
static void line_take(line_machine *l, const char *text, size_t n, bool ended) {
    if (ended && n > 0 && text[n - 1] == '\r')
        n--;
    if (n > l->config.max_line)
        line_too_long(l);
    else if (l->config.line != NULL)
        l->config.line(l->config.context, &l->machine, text, n);
    else
        line_echo(l, text, n);
}

/* A piece of a line that goes on: one more than the limit may be the CR of its end. */
static void line_keep(line_machine *l, const char *data, size_t n) {
    size_t max = l->config.max_line, total = l->part.used + n;
    if (total > max + 1 || (total == max + 1 && data[n - 1] != '\r')) {
        line_too_long(l);
        return;
    }
    int r = bk_buffer_add(l->machine.os, &l->part, data, n);
    if (r < 0)
        bk_machine_abort(&l->machine, r);
}

/* The piece that brings the end of a line. */
static void line_complete(line_machine *l, const char *data, size_t n) {
    if (l->skipping) {
        l->skipping = false;
        return;
    }
    if (l->part.used == 0) {
        line_take(l, data, n, true);
        l->skipping = false;
        return;
    }
    if (n > 0)
        line_keep(l, data, n);
    bk_buffer part = l->part; /* the hook may close */
    l->part = (bk_buffer){0};
    if (part.used > 0 && bk_machine_ready(&l->machine))
        line_take(l, part.data, part.used, true);
    l->skipping = false;
    bk_buffer_clear(l->machine.os, &part);
}

static size_t line_receive(bk_machine *m, const char *data, size_t n) {
    line_machine *l = (line_machine *)m;
    size_t used = 0;
    while (used < n && bk_machine_ready(m)) {
        const char *from = data + used, *end = memchr(from, '\n', n - used);
        size_t size = end != NULL ? (size_t)(end - from) : n - used;
        if (end != NULL)
            line_complete(l, from, size);
        else if (!l->skipping)
            line_keep(l, from, size);
        used += size + (end != NULL);
    }
    return used;
}

static int line_start(bk_machine *m) {
    line_machine *l = (line_machine *)m;
    if (l->config.opened != NULL)
        l->config.opened(l->config.context, m);
    return 0;
}

static int line_ended(bk_machine *m) {
    line_machine *l = (line_machine *)m;
    bk_buffer part = l->part;
    l->part = (bk_buffer){0};
    if (part.used > 0)
        line_take(l, part.data, part.used, false);
    bk_buffer_clear(m->os, &part);
    return 0;
}

static void line_free(bk_machine *m) {
    line_machine *l = (line_machine *)m;
    if (l->config.closed != NULL)
        l->config.closed(l->config.context, m);
    bk_buffer_clear(m->os, &l->part);
    bk_dealloc(m->os, l);
}

static const bk_machine_ops line_ops = {
    .size = sizeof(bk_machine_ops),
    .name = "line",
    .start = line_start,
    .receive = line_receive,
    .ended = line_ended,
    .free = line_free,
};

static int line_config(const bk_line_config *config, bk_line_config *ret_config) {
    if (config == NULL || config->size < sizeof config->size)
        return -EINVAL;
    size_t size = config->size < sizeof *config ? config->size : sizeof *config;
    *ret_config = (bk_line_config){0};
    memcpy(ret_config, config, size);
    if (ret_config->max_line == 0)
        ret_config->max_line = BK_LINE_MAX;
    return ret_config->max_line < SIZE_MAX / 4 ? 0 : -EINVAL;
}

int bk_line_new(const bk_line_config *config, bk_os *os, bk_machine **ret_machine) {
    bk_line_config checked;
    int r = line_config(config, &checked);
    if (r < 0)
        return r;
    if (os == NULL || ret_machine == NULL)
        return -EINVAL;
    line_machine *l = bk_alloc_zero(os, sizeof *l);
    if (l == NULL)
        return -ENOMEM;
    l->machine.ops = &line_ops;
    l->machine.os = os;
    l->config = checked;
    *ret_machine = &l->machine;
    return 0;
}

/* What the protocol keeps: the configuration, and whom to give its memory back to. */
typedef struct line_context {
    bk_os *os;
    bk_line_config config;
} line_context;

static int line_make(void *context, bk_os *os, bk_machine **ret_machine) {
    return bk_line_new(&((line_context *)context)->config, os, ret_machine);
}

static void line_release(void *context) {
    bk_dealloc(((line_context *)context)->os, context);
}

int bk_line_protocol_new(const bk_line_config *config, bk_os *os, bk_protocol **ret_protocol) {
    bk_line_config checked;
    int r = line_config(config, &checked);
    if (r < 0)
        return r;
    if (os == NULL || ret_protocol == NULL)
        return -EINVAL;
    line_context *c = bk_alloc(os, sizeof *c);
    if (c == NULL)
        return -ENOMEM;
    checked.size = sizeof checked;
    *c = (line_context){os, checked};
    r = bk_machine_protocol_new(os, "line", line_make, c, line_release, ret_protocol);
    if (r < 0)
        line_release(c);
    return r;
}
