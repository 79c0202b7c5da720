/*
 * becket-python.h: for schemes and transports in C that come as a Python extension of their own.
 * The core is inside becket's extension, which hides its functions: so they are had through a
 * table.
 *
 *     #define BK_CORE core                      // bk_loop_os() and its like go through it
 *     #include <becket-python.h>
 *     static const bk_core_api *core;
 *     …
 *     core = PyCapsule_Import(BK_CORE_CAPSULE, 0);                              // in PyInit_…
 *     capsule = PyCapsule_New((void *)&my_scheme, BK_SCHEME_CAPSULE, NULL);
 *
 * The capsule is what an entry point of the group becket.transports names, or what is given to
 * EventLoop.add_scheme(). A scheme's functions are called with the GIL held; they and all that they
 * call must not let go of it. They mean what becket.h says.
 */
#ifndef BECKET_PYTHON_H
#define BECKET_PYTHON_H

#include <becket.h>

#define BK_CORE_CAPSULE "becket._becket._core" /* const bk_core_api * */
#define BK_SCHEME_CAPSULE "becket.scheme"      /* const bk_scheme * */

/* Functions yet to come go at the end. */
typedef struct bk_core_api {
    size_t size;
    const char *(*strerror)(int code);
    bk_os *(*loop_os)(const bk_loop *loop);
    int64_t (*loop_now)(const bk_loop *loop);
    int (*loop_soon)(bk_loop *loop, bk_fn fn, void *arg);
    int (*loop_post)(bk_loop *loop, bk_fn fn, void *arg);
    int (*timer_start)(bk_loop *loop, bk_timer *timer, int64_t when, bk_fn fn, void *arg);
    void (*timer_stop)(bk_loop *loop, bk_timer *timer);
    int (*watch_set)(bk_loop *loop, int fd, unsigned direction, bk_watch_fn fn, void *arg);
    int (*watch_apply)(bk_loop *loop, int fd);
    void (*watch_forget)(bk_loop *loop, int fd);
    int (*work_start)(bk_loop *loop, bk_work *work);
    void (*transport_wake)(bk_transport *t);
    int (*socket_transport)(bk_loop *loop, int fd, bk_transport **ret_transport);
    int (*fd_transport)(bk_loop *loop, int read_fd, int write_fd, int own,
                        bk_transport **ret_transport);
    int (*memory_transport)(bk_loop *loop, size_t capacity, bk_transport *ret_pair[2]);
    int (*stream_new)(bk_loop *loop, bk_transport *transport, const bk_protocol *protocol,
                      void *user, bk_stream **ret_stream);
    const char *(*endpoint_option)(const bk_endpoint *endpoint, const char *key);
    int (*listener_new)(bk_loop *loop, const char *name, void (*close)(void *arg), void *arg,
                        bk_listener **ret_listener);
} bk_core_api;

#ifdef BK_CORE
#define bk_strerror(...) BK_CORE->strerror(__VA_ARGS__)
#define bk_loop_os(...) BK_CORE->loop_os(__VA_ARGS__)
#define bk_loop_now(...) BK_CORE->loop_now(__VA_ARGS__)
#define bk_loop_soon(...) BK_CORE->loop_soon(__VA_ARGS__)
#define bk_loop_post(...) BK_CORE->loop_post(__VA_ARGS__)
#define bk_timer_start(...) BK_CORE->timer_start(__VA_ARGS__)
#define bk_timer_stop(...) BK_CORE->timer_stop(__VA_ARGS__)
#define bk_watch_set(...) BK_CORE->watch_set(__VA_ARGS__)
#define bk_watch_apply(...) BK_CORE->watch_apply(__VA_ARGS__)
#define bk_watch_forget(...) BK_CORE->watch_forget(__VA_ARGS__)
#define bk_work_start(...) BK_CORE->work_start(__VA_ARGS__)
#define bk_transport_wake(...) BK_CORE->transport_wake(__VA_ARGS__)
#define bk_socket_transport(...) BK_CORE->socket_transport(__VA_ARGS__)
#define bk_fd_transport(...) BK_CORE->fd_transport(__VA_ARGS__)
#define bk_memory_transport(...) BK_CORE->memory_transport(__VA_ARGS__)
#define bk_stream_new(...) BK_CORE->stream_new(__VA_ARGS__)
#define bk_endpoint_option(...) BK_CORE->endpoint_option(__VA_ARGS__)
#define bk_listener_new(...) BK_CORE->listener_new(__VA_ARGS__)
#endif

#endif
