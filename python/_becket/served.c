/*
 * served.c: what a listener can serve beside asyncio protocols. Echo is the core's own. Hand gives
 * each connection to a thread, as a socket: it keeps the connection on the loop until there is work
 * for a thread, and keeps an eye on it afterwards. Made by python/becket/drivers.py.
 *
 * A plain socket is duplicated, and the loop's stream rests until the thread is done with it. What
 * is no plain socket (TLS, a pipe, a transport of a third party) is relayed to one end of a pair of
 * sockets: it stays the loop's work, and whoever is slow there holds no thread.
 */
#include "becket_py.h"

#include "core/serve/serve.h"
#include "core/tls/tls.h"

#include <becket-protocols.h>

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

typedef struct HandObject {
    SERVED_HEAD;
    PyObject *hand, *back;
    PyObject *refusal; /* bytes for those whom a limit keeps out; NULL: none */
    bk_protocol table;
    bool at_once; /* not only when the first byte is there */
} HandObject;

/* A connection that a thread has: the user value of the stream that rests, whose visit goes on in
   the thread's own stream. */
typedef struct AwayObject {
    PyObject_HEAD LoopObject *loop;
    PyObject *back;    /* called on the loop when the thread is done; NULL: nobody asks */
    bk_stream *stream; /* NULL: closed; the loop's thread alone looks */
    bk_visit visit;    /* of the thread's stream: what it moves is counted, and timed, there */
    bk_limits limits;
    bk_tls_context *offer; /* of a starttls endpoint; NULL: none */
    int fd;                /* the thread's */
    bool spoke;            /* before it went away */
    BK_SHARED(bool) failed;
} AwayObject;

/* A limit keeps it out: what it hears of that, if anything. */
void served_refuse(bk_stream *s, PyObject *refusal) {
    if (refusal != NULL)
        (void)bk_stream_write(s, PyBytes_AS_STRING(refusal), (size_t)PyBytes_GET_SIZE(refusal),
                              BK_COPY, NULL);
}

/* ---- A connection that is away ---- */

/* The thread may be waiting for it. The lock: once it has left, that may be another socket. */
static void shut_down(AwayObject *away, int how) {
    Py_BEGIN_CRITICAL_SECTION(away);
    if (away->fd >= 0)
        (void)shutdown(away->fd, how);
    Py_END_CRITICAL_SECTION();
}

static void away_closed(bk_stream *s, int why) {
    AwayObject *away = bk_stream_user(s);
    if (why < 0)
        shut_down(away, SHUT_RDWR);
    away->stream = NULL;
    Py_DECREF((PyObject *)away);
}

static const bk_protocol away_protocol = {
    .size = sizeof(bk_protocol), .name = "away", .closed = away_closed};

/* For a server that ends: one that never said anything, and was told nothing, hears no more. */
void away_end_silent(bk_stream *s) {
    AwayObject *away = bk_stream_user(s);
    if (away->visit.bytes_in == 0 && away->visit.bytes_out == 0 && !away->spoke)
        shut_down(away, SHUT_RD);
}

/* On the loop: the thread is done. */
void away_come_back(void *arg) {
    AwayObject *away = arg;
    bk_stream *s = away->stream;
    if (s != NULL && !away->loop->ending) {
        if (s->visit != NULL) {
            s->visit->bytes_in += away->visit.bytes_in;
            s->visit->bytes_out += away->visit.bytes_out;
        }
        if (away->failed)
            bk_stream_fail(s, -ECONNABORTED);
        else
            bk_stream_close(s);
    }
    bool ask = away->back != NULL && !away->loop->ending;
    PyObject *result = ask ? PyObject_CallNoArgs(away->back) : NULL;
    if (result == NULL && ask)
        loop_report(away->loop, "Nobody could be told of a thread that is free", NULL, NULL, NULL);
    Py_XDECREF(result);
    Py_DECREF((PyObject *)away);
}

static void visit_opened(bk_visit *v, bk_stream *s) {
    (void)v, (void)s;
}

static void visit_closed(bk_visit *v, bk_stream *s, int why) {
    AwayObject *away = (AwayObject *)((char *)v - offsetof(AwayObject, visit));
    if (why < 0)
        away->failed = true;
    (void)s;
    Py_DECREF((PyObject *)away);
}

/* What a starttls endpoint offers, the thread's stream offers too. */
static int offer_tls(const AwayObject *self, TransportObject *t) {
    bk_transport *inner = bk_stream_transport(t->stream), *offer;
    if (self->offer == NULL)
        return 0;
    int code = bk_tls_offer(t->loop->core, inner, self->offer, NULL, &offer);
    if (code < 0)
        return loop_raise(code);
    bk_stream_set_transport(t->stream, offer);
    return 0;
}

/* follow(transport): in the thread, before anything is received. */
static PyObject *away_follow(AwayObject *self, PyObject *arg) {
    TransportObject *t = (TransportObject *)arg;
    if (!PyObject_TypeCheck(arg, self->loop->state->transport_type))
        return PyErr_Format(PyExc_TypeError, "transport: one of becket's is needed, not %R",
                            Py_TYPE(arg));
    if (t->stream == NULL || t->stream->visit != NULL || self->visit.closed != NULL)
        Py_RETURN_NONE;
    uint32_t now = (uint32_t)(bk_loop_now(t->loop->core) / BK_SECOND);
    self->visit.opened = visit_opened;
    self->visit.closed = visit_closed;
    self->visit.limits = &self->limits;
    self->visit.began = self->visit.sent = now;
    Py_INCREF((PyObject *)self);
    bk_stream_set_visit(t->stream, &self->visit);
    if (offer_tls(self, t) < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* leave(): the thread closes its socket next, and its descriptor may be somebody else's then. */
static PyObject *away_leave(AwayObject *self, PyObject *Py_UNUSED(ignored)) {
    Py_BEGIN_CRITICAL_SECTION(self);
    self->fd = -1;
    Py_END_CRITICAL_SECTION();
    Py_RETURN_NONE;
}

/* done(failed): the thread has closed it. */
static PyObject *away_done(AwayObject *self, PyObject *arg) {
    int failed = PyObject_IsTrue(arg);
    if (failed < 0)
        return NULL;
    if (failed)
        self->failed = true;
    Py_INCREF((PyObject *)self);
    if (loop_post(self->loop, away_come_back, (PyObject *)self) == 0)
        Py_RETURN_NONE;
    Py_DECREF((PyObject *)self);
    if (!PyErr_ExceptionMatches(PyExc_RuntimeError))
        return NULL;
    PyErr_Clear(); /* its loop is closed: nobody waits for it */
    Py_RETURN_NONE;
}

static void away_dealloc(AwayObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    bk_tls_context_unref(self->offer);
    Py_CLEAR(self->back);
    Py_CLEAR(self->loop);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef away_methods[] = {
    {"follow", (PyCFunction)away_follow, METH_O,
     "follow(transport)\n\nCount, and time by the server's limits, what this transport moves."},
    {"leave", (PyCFunction)away_leave, METH_NOARGS,
     "leave()\n\nThe thread closes its socket next; nobody else touches it any more."},
    {"done", (PyCFunction)away_done, METH_O, "done(failed)\n\nThe thread has closed its socket."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot away_slots[] = {
    {Py_tp_doc, "A connection that a thread has been given."},
    {Py_tp_dealloc, away_dealloc},
    {Py_tp_methods, away_methods},
    {0, NULL},
};

PyType_Spec away_spec = {
    .name = "becket._becket.Away",
    .basicsize = sizeof(AwayObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = away_slots,
};

/* ---- Handing over ---- */

static PyObject *address_answer(bk_stream *s, int what) {
    struct sockaddr_storage address;
    size_t size = sizeof address;
    if (bk_stream_query(s, what, &address, &size) < 0)
        return Py_NewRef(Py_None);
    return address_to_python(&address, size);
}

/* hand(fd, first bytes, peer, local, away or None) */
static int call_hand(HandObject *self, bk_stream *s, int fd, const void *data, size_t n,
                     PyObject *away) {
    PyObject *peer = address_answer(s, BK_QUERY_PEER), *local = address_answer(s, BK_QUERY_LOCAL);
    PyObject *result = NULL;
    if (peer != NULL && local != NULL)
        result = PyObject_CallFunction(self->hand, "iy#OOO", fd, (const char *)data, (Py_ssize_t)n,
                                       peer, local, away);
    Py_XDECREF(peer);
    Py_XDECREF(local);
    if (result == NULL)
        loop_report(self->loop, "A connection could not be given to a thread", NULL, NULL, NULL);
    int code = result == NULL ? -ECONNABORTED : 0;
    Py_XDECREF(result);
    return code;
}

static int hand_plain(HandObject *self, bk_stream *s, int socket, const void *data, size_t n) {
    bk_tls_context *offer;
    const char *name;
    AwayObject *away =
        (AwayObject *)self->loop->state->away_type->tp_alloc(self->loop->state->away_type, 0);
    int fd = away == NULL ? -1 : fcntl(socket, F_DUPFD_CLOEXEC, 0);
    if (away == NULL || fd < 0) {
        int code = away == NULL ? -ENOMEM : -errno;
        PyErr_Clear();
        Py_XDECREF((PyObject *)away);
        return code;
    }
    away->loop = (LoopObject *)Py_NewRef((PyObject *)self->loop);
    away->back = Py_XNewRef(self->back);
    away->stream = s;
    away->fd = fd;
    if (bk_tls_offer_context(bk_stream_transport(s), &offer, &name) == 0)
        away->offer = bk_tls_context_ref(offer);
    bk_stream_set_user(s, Py_NewRef((PyObject *)away));
    bk_stream_set_protocol(s, &away_protocol);
    if (s->visit != NULL) {
        s->visit->away = true;
        away->limits = *s->visit->limits;
        away->limits.total = 0; /* that is timed here */
    }
    away->spoke = n > 0;
    if (n > 0)
        away->limits.first_byte = 0;
    int code = call_hand(self, s, fd, data, n, (PyObject *)away);
    if (code < 0) {
        (void)close(fd);
        away->fd = -1;
    }
    Py_DECREF((PyObject *)away);
    return code;
}

static int hand_relayed(HandObject *self, bk_stream *s, const void *data, size_t n) {
    static const bk_protocol nobody = {.size = sizeof nobody, .name = "nobody"};
    bk_loop *core = self->loop->core;
    bk_os *os = bk_loop_os(core);
    bk_transport *transport;
    bk_stream *inner;
    int fds[2];
    int code = os->socketpair(os, fds);
    if (code < 0)
        return code;
    code = bk_socket_transport(core, fds[0], &transport);
    if (code < 0) {
        (void)close(fds[0]);
    } else if ((code = bk_stream_new(core, transport, &nobody, NULL, &inner)) < 0) {
        transport->ops->close(transport);
    } else if ((code = bk_stream_relay(s, inner)) < 0 ||
               (code = call_hand(self, s, fds[1], data, n, Py_None)) < 0) {
        bk_stream_abort(inner);
    }
    if (code < 0)
        (void)close(fds[1]);
    return code;
}

static int hand_over(HandObject *self, bk_stream *s, const void *data, size_t n) {
    int socket = -1;
    size_t size = sizeof socket;
    if (self->loop->ending)
        return -ECANCELED;
    bk_stream_pause(s);
    if (bk_stream_query(s, BK_QUERY_PLAIN, &socket, &size) >= 0)
        return hand_plain(self, s, socket, data, n);
    return hand_relayed(self, s, data, n);
}

static HandObject *hand_of(bk_stream *s) {
    return bk_stream_protocol(s)->context;
}

static int hand_opened(bk_stream *s) {
    HandObject *self = hand_of(s);
    return self->at_once ? hand_over(self, s, "", 0) : 0;
}

static void hand_received(bk_stream *s, const void *data, size_t n) {
    HandObject *self = hand_of(s);
    int code = hand_over(self, s, data, n);
    if (code < 0)
        bk_stream_fail(s, code);
}

static void hand_refused(bk_stream *s, const bk_protocol *protocol, int why) {
    const HandObject *self = protocol->context;
    (void)why;
    served_refuse(s, self->refusal);
}

/* Hand(loop, hand, at_once, refusal=None, back=None) */
static PyObject *hand_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs)) {
    module_state *state = state_of_type(type);
    PyObject *loop, *hand, *refusal = NULL, *back = Py_None;
    int at_once;
    if (state == NULL ||
        !PyArg_ParseTuple(args, "O!Op|OO:Hand", state->loop_type, &loop, &hand, &at_once, &refusal,
                          &back) ||
        loop_check_open((LoopObject *)loop) < 0)
        return NULL;
    HandObject *self = (HandObject *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->loop = (LoopObject *)Py_NewRef(loop);
    self->hand = Py_NewRef(hand);
    self->back = back != Py_None ? Py_NewRef(back) : NULL;
    self->at_once = at_once;
    self->refusal = refusal != NULL && PyBytes_Check(refusal) ? Py_NewRef(refusal) : NULL;
    self->table = (bk_protocol){.size = sizeof(bk_protocol),
                                .name = "hand",
                                .context = self,
                                .opened = hand_opened,
                                .received = hand_received,
                                .refused = hand_refused};
    self->protocol = &self->table;
    return (PyObject *)self;
}

static int hand_traverse(HandObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT((PyObject *)self->loop);
    Py_VISIT(self->hand);
    Py_VISIT(self->back);
    return 0;
}

static int hand_clear(HandObject *self) {
    Py_CLEAR(self->hand);
    Py_CLEAR(self->back);
    Py_CLEAR(self->refusal);
    return 0;
}

static void hand_dealloc(HandObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    hand_clear(self);
    Py_CLEAR(self->loop);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyType_Slot hand_slots[] = {
    {Py_tp_doc, "Hand(loop, hand, at_once, refusal=None, back=None): hand(fd, data, peer, local, "
                "away) is called for each connection, when it has opened, or when its first bytes "
                "are there; back(), for one that is not relayed, after away.done()."},
    {Py_tp_new, hand_new},
    {Py_tp_dealloc, hand_dealloc},
    {Py_tp_traverse, hand_traverse},
    {Py_tp_clear, hand_clear},
    {0, NULL},
};

PyType_Spec hand_spec = {
    .name = "becket._becket.Hand",
    .basicsize = sizeof(HandObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = hand_slots,
};

/* ---- Echo ---- */

static PyObject *echo_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs)) {
    module_state *state = state_of_type(type);
    PyObject *loop;
    if (state == NULL || !PyArg_ParseTuple(args, "O!:Echo", state->loop_type, &loop) ||
        loop_check_open((LoopObject *)loop) < 0)
        return NULL;
    ServedObject *self = (ServedObject *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->loop = (LoopObject *)Py_NewRef(loop);
    self->protocol = bk_echo_protocol();
    return (PyObject *)self;
}

static void echo_dealloc(ServedObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    Py_CLEAR(self->loop);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyType_Slot echo_slots[] = {
    {Py_tp_doc, "Echo(loop): the core's protocol that sends back what it receives."},
    {Py_tp_new, echo_new},
    {Py_tp_dealloc, echo_dealloc},
    {0, NULL},
};

PyType_Spec echo_spec = {
    .name = "becket._becket.Echo",
    .basicsize = sizeof(ServedObject),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = echo_slots,
};
