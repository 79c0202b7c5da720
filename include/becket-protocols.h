/*
 * becket-protocols.h: protocols that are ready to use, and how to write one without a socket in it.
 *
 * For C programs that serve lines, for authors of protocols, and for whoever runs protocols on
 * something other than becket's streams. The conventions are those of becket.h. It is meant to be
 * read from the top: machines, running them, echo, lines. Mail is in becket-smtp.h.
 */
#ifndef BECKET_PROTOCOLS_H
#define BECKET_PROTOCOLS_H

#include <becket.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Machines: bytes in, bytes out ----------------------------------------------------------- */

typedef struct bk_machine bk_machine;

/*
 * A machine is a protocol that knows no socket, no stream and no loop. It is given what arrives, in
 * pieces of any size, and says what is to be sent. What it does must not depend on where the pieces
 * were cut. An answer it has to wait for does not block: it calls bk_machine_wait(), and
 * bk_machine_go() when it has the answer; meanwhile nothing is received.
 *
 * An implementation embeds bk_machine as its first member, zeroed but for `ops` and `os`.
 */
typedef struct bk_machine_ops {
    size_t size;
    const char *name;
    /* Optional. It is connected: greet. A negative result ends it with that code. */
    int (*start)(bk_machine *m);
    /* Take some of what arrived, and return how much: at least one byte, and all of it as long as
       bk_machine_ready(). The rest is given again when it is ready. The bytes are the runner's. */
    size_t (*receive)(bk_machine *m, const char *data, size_t n);
    /* Optional. The peer will send no more, and all it sent has been taken. Return 1 to go on
       sending; 0, or NULL here: close after what was sent. After 0 from a machine that now waits,
       this is called again when it goes on. */
    int (*ended)(bk_machine *m);
    /* The connection is gone, in whatever way; nothing is called after this. A machine that still
       expects an answer keeps what it needs to let that answer come to nothing. */
    void (*free)(bk_machine *m);
    /* Optional. In place of all but free: the server has no room for one more (BK_ELIMIT), or is
       ending (-ESHUTDOWN). Send what there is to say; nobody hears of a peer without an answer. */
    void (*refuse)(bk_machine *m, int why);
    /* Optional. More is queued than the runner likes (1), or no more (0): when to stop and go on
       sending what nobody asked for just now. A machine that has this is given what arrives
       meanwhile, too. Called from within bk_machine_send(), among others. */
    void (*blocked)(bk_machine *m, int on);
    /* Optional. The time of bk_machine_timeout(), or a limit of the server's, is over, and the
       connection is closed after this: send last words, no more. */
    void (*timed_out)(bk_machine *m);
} bk_machine_ops;

/* What whoever runs a machine does for it. Functions yet to come go at the end: one that a table
   lacks is NULL, and the machine then does not offer what would need it. */
typedef struct bk_runner_ops {
    size_t size;
    /* As bk_stream_write(): queue bytes, by copy, or by reference until release(arg). */
    int (*send)(bk_machine *m, const void *data, size_t n, bk_release release, void *arg);
    /* why 0: close after all that was sent; else at once. bk_machine_free() follows, later. */
    void (*close)(bk_machine *m, int why);
    /* Optional. Stop and go on reading. One that goes on regardless only costs memory. */
    void (*pause)(bk_machine *m);
    void (*resume)(bk_machine *m);
    /* Optional. Close with -ETIMEDOUT when nothing has moved for that many seconds. */
    void (*timeout)(bk_machine *m, unsigned seconds);
    /* Optional. The peer's IP address, as RFC 5321 writes it within [ ]; empty: it has none. */
    void (*peer)(bk_machine *m, char *ret_text, size_t room);
    /* Optional, both. start_tls: what was sent before goes out in plain first, and then the n bytes
       of last, which tell the peer of it. What has arrived by then in plain, and is not fed yet,
       must never be: it may be given to TLS, or dropped. 0; negative: not possible, and nothing was
       begun, nor last sent. A handshake that fails later is the end of the connection. */
    int (*start_tls)(bk_machine *m, const void *last, size_t n);
    /* 1: what is said is sealed by TLS; 0: it is not, but start_tls is offered; negative:
       neither. */
    int (*secure)(bk_machine *m);
} bk_runner_ops;

/* The head of every machine. All but `ops` and `os` is for the functions below. */
struct bk_machine {
    const bk_machine_ops *ops;
    bk_os *os;
    const bk_runner_ops *runner;
    void *runner_state;
    unsigned flags;
    char *held; /* arrived while it was not ready */
    size_t held_used, held_size;
    int why; /* for free: why the connection is gone, if the runner knows; else 0 */
};

/* For machines. send: 0; -EPIPE after close; -ENOMEM. */
BK_API int bk_machine_send(bk_machine *m, const void *data, size_t n, bk_release release,
                           void *arg);
/* Send what was sent, then close; receives nothing more. */
BK_API void bk_machine_close(bk_machine *m);
/* Close at once, dropping what has not been sent yet. why < 0. */
BK_API void bk_machine_abort(bk_machine *m, int why);
/* Receive nothing until go. go may be called from within receive, or any time later. */
BK_API void bk_machine_wait(bk_machine *m);
BK_API void bk_machine_go(bk_machine *m);
/* Whether to go on with what was received: neither waiting, nor closed, nor blocked; and TLS was
   not started by it. */
BK_API int bk_machine_ready(const bk_machine *m);
BK_API void bk_machine_timeout(bk_machine *m, unsigned seconds);
BK_API void bk_machine_peer(bk_machine *m, char *ret_text, size_t room);
/* Start TLS; what was sent before goes out in plain, and then last, n bytes: words that are to be
   said only if TLS can be begun ("220 Ready"). Whatever else was received by then is dropped, the
   rest of what receive was given too: it must not be taken for something said under TLS. What is
   received next was. -ENOTSUP: it is not offered; -EALREADY: it is there; -EPIPE after close; or
   why it was not possible: then nothing is dropped, and last is not said. */
BK_API int bk_machine_start_tls(bk_machine *m, const void *last, size_t n);
/* 1: under TLS; 0: not, but it may be started; negative: neither. */
BK_API int bk_machine_secure(bk_machine *m);

/* For runners, in this order. The runner's table and state are the machine's from start on. None
   but free may be called once free has been. */
BK_API int bk_machine_start(bk_machine *m, const bk_runner_ops *runner, void *state);
/* What arrived; what the machine is not ready for is copied and kept. -ENOMEM: it could not be
   kept; -EBUSY from within receive. In both cases the bytes are lost: close. */
BK_API int bk_machine_feed(bk_machine *m, const void *data, size_t n);
/* The peer's direction is over. The machine learns of it when it has taken what was kept. */
BK_API void bk_machine_end(bk_machine *m);
/* More, or no more, is queued than the runner likes: while on, nothing is received. */
BK_API void bk_machine_block(bk_machine *m, int on);
/* Its time is over, and it may say so: send that as far as it goes at once, then close with
   -ETIMEDOUT. */
BK_API void bk_machine_time_out(bk_machine *m);
/* Whether there is any point in reading on: the last that pause or resume said. */
BK_API int bk_machine_wants(const bk_machine *m);
/* The connection is gone. Never from within a call of the machine. */
BK_API void bk_machine_free(bk_machine *m);
/* In place of start, and then free: it is refused. */
BK_API void bk_machine_refuse(bk_machine *m, const bk_runner_ops *runner, void *state, int why);

/* Makes a machine for a new connection; `context` is what bk_machine_protocol_new() was given. */
typedef int (*bk_machine_maker)(void *context, bk_os *os, bk_machine **ret_machine);

/*
 * A protocol for streams that runs a new machine on each, for bk_listen() and bk_connect(). The
 * stream's user value is the machine: give NULL to bk_connect(). Any number of loops may share it.
 * release(context), which may be NULL, is called when it has been freed and the last of its
 * connections is gone, in the thread where that happens; when this fails, it is not called.
 */
BK_API int bk_machine_protocol_new(bk_os *os, const char *name, bk_machine_maker make,
                                   void *context, bk_release release, bk_protocol **ret_protocol);

/* For these protocols and those below made by …_new(): its listeners are closed, and no connecting
   is under way. Connections that are there go on. NULL is not an error. */
BK_API void bk_machine_protocol_free(bk_protocol *protocol);

/* ---- Echo ------------------------------------------------------------------------------------ */

/* Sends back what it receives. */
BK_API int bk_echo_new(bk_os *os, bk_machine **ret_machine);
BK_API const bk_protocol *bk_echo_protocol(void); /* static */

/* ---- Lines ----------------------------------------------------------------------------------- */

/*
 * Lines, ended by LF or CRLF; a CR elsewhere is part of the line, and so is a NUL. What follows the
 * last line end is a line too when the peer ends. Hooks answer by bk_machine_send(), and may
 * wait, go and close.
 */
typedef struct bk_line_config {
    size_t size;
    size_t max_line; /* bytes without the line end; 0: 65536 */
    void *context;
    /* The text is not ended by NUL, and good only during the call. NULL: send each line back. */
    void (*line)(void *context, bk_machine *m, const char *text, size_t n);
    /* A line is too long; the rest of it will be skipped. Called as soon as that is sure. NULL:
       send "error: line too long" CRLF. */
    void (*too_long)(void *context, bk_machine *m);
    void (*opened)(void *context, bk_machine *m); /* optional */
    void (*closed)(void *context, bk_machine *m); /* optional: m is not to be used after it */
} bk_line_config;

/* The configuration is copied. */
BK_API int bk_line_new(const bk_line_config *config, bk_os *os, bk_machine **ret_machine);
BK_API int bk_line_protocol_new(const bk_line_config *config, bk_os *os,
                                bk_protocol **ret_protocol);

#ifdef __cplusplus
}
#endif
#endif
