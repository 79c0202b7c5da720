/*
 * run.h: the protocol for streams that runs machines, for those in core/protocol that have a static
 * one. Others make theirs with bk_machine_protocol_new().
 */
#ifndef BK_RUN_H
#define BK_RUN_H

#include <becket-protocols.h>

#include <stdatomic.h>

typedef struct bk_machine_factory {
    bk_protocol protocol;
    bk_machine_maker make;
    void *context;
    bk_release release;
    bk_os *os;         /* NULL: static, and never freed */
    atomic_uint users; /* its connections, and its owner */
} bk_machine_factory;

int bk_run_opened(bk_stream *s);
void bk_run_received(bk_stream *s, const void *data, size_t n);
int bk_run_ended(bk_stream *s);
void bk_run_blocked(bk_stream *s);
void bk_run_writable(bk_stream *s);
void bk_run_closed(bk_stream *s, int why);
void bk_run_refused(bk_stream *s, const bk_protocol *protocol, int why);
void bk_run_timed_out(bk_stream *s);

#define BK_MACHINE_PROTOCOL(title)                                                                 \
    {.size = sizeof(bk_protocol),                                                                  \
     .name = (title),                                                                              \
     .opened = bk_run_opened,                                                                      \
     .received = bk_run_received,                                                                  \
     .ended = bk_run_ended,                                                                        \
     .blocked = bk_run_blocked,                                                                    \
     .writable = bk_run_writable,                                                                  \
     .closed = bk_run_closed,                                                                      \
     .refused = bk_run_refused,                                                                    \
     .timed_out = bk_run_timed_out}

#endif
