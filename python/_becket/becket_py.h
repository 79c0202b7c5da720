/*
 * becket_py.h: what the files of the extension share: the module's state, and the objects. The
 * extension makes Python objects over the core's handles; what can be slow is in python/becket.
 * All functions here need the GIL, but for the wait inside a turn, which releases it; where Python
 * has none, docs/threads.md tells what takes its place.
 */
#ifndef BECKET_PY_H
#define BECKET_PY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "core/datagram/datagram.h"
#include "core/stream/stream.h"
#include "core/tls/tls.h"

#include "threads.h"

/* Names that are looked up on every message or call, interned once. (clang-format would lay the
   list out anew each time.) */
/* clang-format off */
#define BK_NAMES(X)                                                                                \
    X(data_received) X(buffer_updated) X(get_buffer) X(eof_received) X(connection_made)            \
    X(connection_lost) X(pause_writing) X(resume_writing) X(call_exception_handler) X(_attach)     \
    X(_detach) X(_stopping) X(_waiter) X(_buffer) X(_paused) X(_limit) X(_stream_reader_wr)        \
    X(pause_reading) X(cancelled) X(set_result) X(done) X(detach) X(fileno) X(close)               \
    X(_transport) X(context) X(loop) X(do_handshake) X(take) X(receive) X(handshake) X(read)       \
    X(write) X(end) X(_new_engine) X(_loop) X(_eof) X(_exception) X(_maybe_resume_transport)       \
    X(create_future) X(throw) X(_connection_lost) X(set_exception) X(flush) X(wants)          \
    X(open) X(query) X(datagram_received) X(error_received) X(_current_handle) X(seconds)         \
    X(dataReceived) X(pauseProducing) X(resumeProducing) X(writeSequence) X(_raised) X(_ended)     \
    X(_broken) X(_all_sent) X(_fds_came) X(result) X(_done) X(add_done_callback) X(debug)

/* Types that derive from object alone, each with a name_spec and, in the module's state, a
   name_type. */
#define BK_TYPES(X)                                                                                \
    X(loop) X(handle) X(listener) X(connection) X(connector) X(gate) X(hand) X(away) X(echo)       \
    X(transport_head) X(accept) X(tls_context) X(read) X(done) X(delayed) X(timers) X(wire)        \
    X(seal) X(smtp) X(smtp_session) X(smtp_envelope) X(smtp_rules) X(smtp_connection)              \
    X(smtp_server) X(smtp_client) X(smtp_users)
/* clang-format on */

/* Methods of asyncio's streams that ours take the place of. */
enum {
    OWN_READ,
    OWN_READEXACTLY,
    OWN_READUNTIL,
    OWN_READLINE,
    OWN_FEED,
    OWN_RECEIVED,
    OWN_DRAIN,
    OWN
};

typedef struct module_state {
#define BK_TYPE_FIELD(name) PyTypeObject *name##_type;
    BK_TYPES(BK_TYPE_FIELD)
#undef BK_TYPE_FIELD
    PyTypeObject *timer_handle_type, *transport_type, *datagram_type;
    PyObject *incomplete_read, *limit_overrun;      /* of asyncio */
    PyTypeObject *our_reader, *our_reader_protocol; /* derived from asyncio's */
    PyObject *own[OWN], *done, *task_names;
    PyObject *future_type, *task_type, *buffered_protocol, *reader_protocol, *reader_type;
    PyObject *transport_socket, *socket_type, *extract_stack, *base_loop, *create_task;
    PyObject *logger, *gaierror, *sendfile_modes, *handle_class, *timer_handle_class;
    PyObject *ssl_object, *ssl_want_read, *openssl_version;         /* of ssl */
    PyObject *tls_error_code, *tls_exception_of, *tls_core_context; /* of becket.tls */
#define BK_NAME_FIELD(name) PyObject *str_##name;
    BK_NAMES(BK_NAME_FIELD)
#undef BK_NAME_FIELD
    struct HandleObject *free_handles; /* kept for reuse, linked through their loop field */
    int free_handle_count;
} module_state;

extern struct PyModuleDef becket_module;

enum { LOST_WRITES_LOGGED = 5 }; /* asyncio's LOG_THRESHOLD_FOR_CONNLOST_WRITES */

typedef struct address_book address_book;

typedef struct LoopObject {
    PyObject_HEAD PyObject *weakrefs;
    module_state *state;
    BK_SHARED(bk_loop *) core; /* NULL: closed */
    PyThreadState *thread;     /* while the GIL is released */
    PyObject *error;           /* what a callback raised that ends the run */
    PyObject *spare;           /* bytes to read much into */
    PyObject *last;        /* bytes that were delivered, to be filled again if nobody kept them */
    size_t last_room;      /* … which have memory for so many */
    PyObject *kept;        /* by their addresses: objects that the core refers to */
    PyObject *files;       /* by descriptor: what is watched, where that is no number */
    PyObject *keyword;     /* {"loop": this one} */
    PyObject *lent;        /* what a BufferedProtocol lent for one read, … */
    Py_buffer lent_view;   /* … and its memory, where that must be held; obj NULL: not */
    PyObject **transports; /* by descriptor, borrowed */
    int transport_room;
    address_book *addresses; /* those that datagrams came from */
    /* Where blocking code turns it (drive.c): by their idents, 0: nobody. */
    unsigned long turner, inside;
    struct drive_waiter *waiters;
    bool reads_much; /* memory for that has been seen to */
    bool has_task_factory;
    bool keeps_next;           /* what is next queued by call_soon() goes to … */
    struct HandleObject *next; /* … this place: see loop_start_task() */
    BK_SHARED(bool) debug, ending;
    bool is_parents; /* this process is a child, forked when the loop was there */
    bool runs_all;   /* _run_once() is to make all turns of a run */
} LoopObject;

typedef struct HandleObject {
    PyObject_HEAD PyObject *weakrefs;
    LoopObject *loop;
    PyObject *callback;
    PyObject *args; /* a tuple; or the one argument; NULL: none */
    PyObject *context;
    PyObject *traceback;
    PyObject *name; /* of a cancelled one, in debug mode */
    bool one_arg;
    BK_SHARED(bool) cancelled;
} HandleObject;

typedef struct TimerHandleObject {
    HandleObject base;
    double when;
    bk_timer timer;
} TimerHandleObject;

/* What ssl=, start_tls() and their like ask for. */
typedef struct TlsSpec {
    PyObject *context, *server_hostname;
    PyObject *handshake_timeout, *shutdown_timeout; /* seconds */
    int server_side;
} TlsSpec;

/* TLS on a transport. */
typedef struct TlsState {
    module_state *module;
    PyObject *engine; /* an ssl.SSLObject, or in the way of becket.tls.Engine */
    PyObject *waiter; /* a future for the handshake, until it is over */
    TlsSpec spec;
    struct TransportObject *transport; /* whose it is, borrowed */
    bool open;
} TlsState;

typedef struct TransportObject {
    PyObject_HEAD PyObject *extra; /* asyncio.BaseTransport's slot */
    PyObject *dict, *weakrefs;
    bk_stream *stream; /* NULL: not any more */
    LoopObject *loop;
    PyObject *protocol, *context, *server;
    PyObject *socket;  /* socket.socket, once somebody asked, or if it came with one; or the pipe */
    PyObject *reader;  /* weak reference to the StreamReader that is filled from here */
    PyObject *reading; /* who waits in it for more: borrowed, and taken back (reads.c) */
    PyObject *error;   /* the exception for connection_lost() */
    TlsState *tls;     /* NULL: plain */
    struct TransportObject *above; /* start_tls() made it: the connection is there now */
    struct TransportObject *below; /* … of this one, until the connection is lost */
    int fd;
    uint8_t lost_writes;
    bool closing, eof, paused, started;
    bool calling; /* within a call of its protocol, in its context */
    bool is_pipe, writes_only;
    bool sending_file; /* and nothing else until that is done */
} TransportObject;

typedef struct DatagramObject {
    PyObject_HEAD PyObject *extra; /* asyncio.BaseTransport's slot */
    PyObject *dict, *weakrefs;
    bk_datagram *core; /* NULL: not any more */
    LoopObject *loop;
    PyObject *protocol, *context;
    PyObject *socket;  /* socket.socket, whose descriptor it is; NULL: closed */
    PyObject *address; /* the one that all goes to; None: each goes to its own, or to the peer */
    PyObject *error;   /* the exception for connection_lost() */
    int fd, family;
    uint8_t lost_writes;
    bool closing, paused, started;
    bool connected, has_peername;
    bool calling; /* within a call of its protocol, in its context */
} DatagramObject;

/* What the core serves by itself: types that begin so. */
#define SERVED_HEAD                                                                                \
    PyObject_HEAD LoopObject *loop;                                                                \
    const bk_protocol *protocol

typedef struct ServedObject {
    SERVED_HEAD;
} ServedObject;

typedef struct ListenerObject {
    PyObject_HEAD LoopObject *loop;
    bk_listener *core;
    PyObject *factory, *server, *context;
    PyObject *refusal;    /* bytes for those whom a limit keeps out; NULL: none */
    PyObject *ended;      /* called when no more can come; NULL: nobody asks */
    TlsSpec tls;          /* its context NULL: plain */
    bk_protocol protocol; /* its context is this object */
} ListenerObject;

/* A connection being made. */
typedef struct ConnectorObject {
    PyObject_HEAD LoopObject *loop;
    bk_stream *stream; /* NULL: not any more */
    PyObject *factory, *context;
    PyObject *waiter; /* a future for the transport; NULL: it knows, or nobody waits */
} ConnectorObject;

/* A connection for blocking code. */
typedef struct ConnectionObject {
    PyObject_HEAD LoopObject *loop;
    TransportObject *transport; /* NULL: not yet, or not any more */
    PyObject *error;            /* why it was lost; NULL: in good order */
    PyObject *input;            /* bytes to read into, of which [from, used) waits to be taken */
    Py_ssize_t from, used, room;
    Py_ssize_t limit;       /* no more than this is read ahead */
    uint64_t arrived;       /* all bytes that ever came */
    int64_t timeout_ns;     /* < 0: for ever */
    unsigned long receiver; /* the thread that waits in the socket itself; 0: none */
    bool reads_much, paused, blocks;
    bool eof, ended; /* the peer's direction is over, or ours */
    bool lost, closed;
} ConnectionObject;

/* module.c */
module_state *state_of_type(PyTypeObject *type);

/* For the core, which was given a reference. */
static inline void object_release(void *arg) {
    Py_DECREF((PyObject *)arg);
}

/* errors.c */
PyObject *endpoint_raise(module_state *state, const char *endpoint, const bk_error *error);
PyObject *stream_exception(module_state *state, bk_stream *s, int why);
void exception_keep(PyObject **kept); /* the one that is set, if none is there; it stays set */
void warn_unclosed(PyObject *transport);

/* endpoint.c */
const char *endpoint_text(PyObject *arg);
PyObject *endpoint_parse(PyObject *module, PyObject *arg);

/* handle.c */
extern PyType_Spec handle_spec, timer_handle_spec;
HandleObject *handle_new(LoopObject *loop, PyObject *callback, PyObject *const *args, Py_ssize_t n,
                         PyObject *context);
TimerHandleObject *timer_handle_new(LoopObject *loop, double when, PyObject *callback,
                                    PyObject *const *args, Py_ssize_t n, PyObject *context);
void handle_run(void *arg);        /* of the ready queue, or a timer: takes over the reference */
void handle_call(HandleObject *h); /* keeps it */
void handle_drop(HandleObject *h); /* of the ready queue: the reference, uncalled */
void handle_cancel(HandleObject *h);
int handle_traverse(HandleObject *h, visitproc visit, void *arg);
void handles_free(module_state *state);

/* loop.c */
extern PyType_Spec loop_spec;
int loop_check_open(LoopObject *loop);
int loop_raise(int code);               /* sets the exception for a code; returns -1 */
PyObject *exception_of(int code);       /* a new exception, or NULL with one set */
bool loop_take_fatal(LoopObject *loop); /* SystemExit and KeyboardInterrupt end the run */
void loop_report(LoopObject *loop, const char *message, PyObject *transport, PyObject *protocol,
                 PyObject *handle); /* the exception that is set, to the handler */
void loop_return_lent(LoopObject *loop);
/* A task that has made its first step when this returns. Never from within a task. context may be
   NULL: a copy of the current one. */
PyObject *loop_start_task(LoopObject *loop, PyObject *coroutine, PyObject *context);
/* fn(arg) on the loop's thread, from any; it takes the reference over. A loop that is closed makes
   the calls that are due, with `ending` set. -1 with an exception; RuntimeError: it is closed. */
int loop_post(LoopObject *loop, bk_fn fn, PyObject *arg);
/* Alive until the loop is closed, or lets it go. */
int loop_keep(LoopObject *loop, PyObject *object);
void loop_let_go(LoopObject *loop, PyObject *object);
bool loop_owns_fd(LoopObject *loop, int fd, PyObject *transport);
void loop_set_waiter(LoopObject *loop, PyObject *waiter);

/* transport.c */
extern PyType_Spec transport_spec;
extern const bk_protocol transport_plain;
TransportObject *transport_new(LoopObject *loop, PyObject *protocol, PyObject *context,
                               PyObject *server);
int transport_attach(TransportObject *t, bk_stream *s);
int transport_adopt_protocol(TransportObject *t, PyObject *protocol);
int context_call(PyObject *context, bool *calling, PyObject *method, PyObject **args, size_t n,
                 PyObject **ret_result);
int transport_call(TransportObject *t, PyObject *method, PyObject *arg, PyObject **ret_result);
PyObject *transport_bytes(LoopObject *loop, const void *data, size_t n); /* for one protocol */
void transport_fail(TransportObject *t, const char *message);
void transport_made(TransportObject *t);
bool transport_is_ours(const bk_stream *s);
int transport_watch_reader(TransportObject *t);
PyObject *address_to_python(const void *address, size_t size);
int transport_parse_water(PyObject *args, PyObject *kwargs, Py_ssize_t most, size_t *ret_low,
                          size_t *ret_high);

/* address.c */
PyObject *address_known(LoopObject *loop, const struct sockaddr *address, unsigned size);
unsigned address_from_python(LoopObject *loop, int family, PyObject *address,
                             struct sockaddr_storage *ret);
void addresses_free(LoopObject *loop);

/* delayed.c */
extern PyType_Spec delayed_spec, timers_spec;
bool delayed_is_ours(bk_fn fn);
void delayed_drop(bk_fn fn, PyObject *arg); /* a call of it, uncalled */

/* wire.c */
extern PyType_Spec wire_spec;
bool wire_is_ours(const bk_stream *s);
bool wire_call_is_ours(bk_fn fn);
PyObject *loop_wires(LoopObject *loop, PyObject *ignored);
void wire_tie(PyObject *wire, PyObject *seal);
int wire_send(PyObject *wire, PyObject *bytes, bool past);
PyObject *wire_bytes(PyObject *wire, const void *data, size_t n);

/* seal.c */
extern PyType_Spec seal_spec;
int seal_receive(PyObject *seal, const void *data, size_t n);

/* datagram.c */
extern PyType_Spec datagram_spec;
PyObject *loop_new_datagram_transport(LoopObject *loop, PyObject *args);
bool datagram_is_ours(const bk_datagram *d);

/* tls_context.c */
extern PyType_Spec tls_context_spec;
bk_tls_context *tls_context_core(PyObject *object);
PyObject *tls_context_of(LoopObject *loop, bk_tls_context *core);

/* tls.c */
/* asyncio's water marks over TLS, in bytes: sslproto._set_write_buffer_limits() */
enum { TLS_LOW_WATER = 128 * 1024, TLS_HIGH_WATER = 512 * 1024 };
void tls_spec_ref(const TlsSpec *spec);
void tls_spec_clear(TlsSpec *spec);
int tls_prepare(TransportObject *t, const TlsSpec *spec, PyObject *waiter);
int tls_start(TransportObject *t, const void *data, size_t n);
void tls_wake(TransportObject *t, PyObject *error);
PyObject *tls_exception(TransportObject *t, int why);
int tls_state_traverse(const TlsState *tls, visitproc visit, void *arg);
void tls_state_free(TlsState *tls);
PyObject *tls_can_adopt(PyObject *module, PyObject *object);
PyObject *tls_core_engines(PyObject *module, PyObject *ignored);
PyObject *loop_add_tls_engine(LoopObject *loop, PyObject *type);

/* streams.c */
bool reader_recognise(TransportObject *t);
int reader_feed(TransportObject *t, const char *data, size_t n);
int reader_wake(module_state *state, PyObject *fields);
PyObject *reader_own_method(module_state *state, int which);

/* reads.c */
extern PyType_Spec read_spec, done_spec, reader_spec, reader_protocol_spec;
int read_offer(TransportObject *t, PyObject *reader, const char *data, size_t n);

/* listener.c */
extern PyType_Spec listener_spec;

/* gate.c */
extern PyType_Spec gate_spec;
bk_gate *gate_core(PyObject *object);

/* served.c */
extern PyType_Spec hand_spec, away_spec, echo_spec;
void away_end_silent(bk_stream *s);
void away_come_back(void *arg);
void served_refuse(bk_stream *s, PyObject *refusal); /* bytes; NULL: nothing */

/* connector.c */
extern PyType_Spec connector_spec;
PyObject *connector_of(const bk_stream *s);

/* drive.c */
int drive_enter(LoopObject *loop, unsigned long *ret_before);
void drive_leave(LoopObject *loop, unsigned long before);
int drive_turn(LoopObject *loop, int64_t timeout_ns);
int drive_wait(LoopObject *loop, int64_t timeout_ns, bool heed_signals);
void drive_await(LoopObject *loop);
void drive_tell(LoopObject *loop);
bool drive_is_quiet(const LoopObject *loop, const bk_stream *s);
int drive_refuse(void); /* to wait; sets the exception, returns -1 */
void drive_before_wait(LoopObject *loop);
void drive_after_wait(LoopObject *loop);

/* connection.c */
extern PyType_Spec connection_spec;
int connection_room(bk_stream *s, bk_room *ret_room);
void connection_received(bk_stream *s, const void *data, size_t n);
int connection_ended(bk_stream *s);

/* py_transport.c */
extern PyType_Spec transport_head_spec;
int py_transport_new(LoopObject *loop, PyObject *object, bk_transport **ret_transport);

/* py_scheme.c */
extern PyType_Spec accept_spec;
int scheme_unknown(void *arg, const char *name, bk_error *error);
PyObject *loop_add_scheme(LoopObject *loop, PyObject *args);
int add_core_api(PyObject *module);

/* smtp.c */
extern PyType_Spec smtp_spec;

/* smtp_types.c */
extern PyType_Spec smtp_session_spec, smtp_envelope_spec, smtp_users_spec;

/* smtp_handler.c */
extern PyType_Spec smtp_rules_spec, smtp_connection_spec, smtp_server_spec;

/* smtp_client.c */
extern PyType_Spec smtp_client_spec;
PyObject *smtp_client_of(const bk_stream *s);

#endif
