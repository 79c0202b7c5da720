/*
 * echo.c: sends back what it receives (RFC 862). The smallest machine there is: for measuring, and
 * for seeing what a machine looks like.
 */
#include <becket-protocols.h>

#include "core/os/os.h"
#include "core/protocol/run.h"

static size_t echo_receive(bk_machine *m, const char *data, size_t n) {
    int r = bk_machine_send(m, data, n, BK_COPY, NULL);
    if (r < 0)
        bk_machine_abort(m, r);
    return n;
}

static void echo_free(bk_machine *m) {
    bk_dealloc(m->os, m);
}

static const bk_machine_ops echo_ops = {
    .size = sizeof(bk_machine_ops),
    .name = "echo",
    .receive = echo_receive,
    .free = echo_free,
};

int bk_echo_new(bk_os *os, bk_machine **ret_machine) {
    if (os == NULL || ret_machine == NULL)
        return -EINVAL;
    bk_machine *m = bk_alloc_zero(os, sizeof *m);
    if (m == NULL)
        return -ENOMEM;
    m->ops = &echo_ops;
    m->os = os;
    *ret_machine = m;
    return 0;
}

static int echo_make(void *context, bk_os *os, bk_machine **ret_machine) {
    (void)context;
    return bk_echo_new(os, ret_machine);
}

static const bk_machine_factory echo_factory = {
    .protocol = BK_MACHINE_PROTOCOL("echo"),
    .make = echo_make,
};

const bk_protocol *bk_echo_protocol(void) {
    return &echo_factory.protocol;
}
