/*
 * reads.c: reading from an asyncio.StreamReader, and draining a StreamWriter, without a coroutine
 * of Python's for each message. Readers and protocols that streams.c has recognised are given these
 * classes, which derive from asyncio's. Their read(), readexactly(), readuntil() and readline()
 * take what is there, or wait for it; all else (the end, a limit, an exception, somebody who waits
 * already) is left to asyncio's own method, so that results and errors are those of the Python at
 * hand. Called by programs that read.
 */
#include "becket_py.h"

/* As OWN_… in becket_py.h; and a line of `async for`, which has no own. */
enum { SOME, EXACTLY, UNTIL, LINE, NEXT };

/* What read() and its kind return, a coroutine to all who look: it is awaited once. */
typedef struct ReadObject {
    PyObject_HEAD module_state *state;
    PyObject *reader;
    PyObject *fields;        /* its dictionary */
    PyObject *separator;     /* until: bytes; NULL: a newline */
    Py_ssize_t count;        /* some: at most so many; exactly: so many */
    Py_ssize_t searched;     /* where no separator begins */
    PyObject *future;        /* what is waited for, … */
    PyObject *waiting;       /* … and the iterator over it */
    TransportObject *feeder; /* … and who knows that we wait */
    PyObject *buffer;        /* the reader's, … */
    PyObject *result;        /* … and what came while it was empty, and did not go through it */
    PyObject *own;           /* asyncio's coroutine, once the rest is left to it */
    uint8_t kind;
    bool started, waited, over;
} ReadObject;

static const char *const read_names[] = {"read", "readexactly", "readuntil", "readline",
                                         "__anext__"};

/* ---- What is there ---- */

typedef enum { FAILED = -1, TAKEN, WAIT, LEAVE } outcome;

/* A borrowed reference, or NULL: it is not there, or, with an exception, the dictionary is broken.
   The reader's attributes are all in its dictionary, where looking takes half the time. */
static PyObject *field(const ReadObject *self, PyObject *name) {
    return PyDict_GetItemWithError(self->fields, name);
}

/* Whether one that asyncio has said to be true or false is; -1: it is neither. */
static int is_true(const ReadObject *self, PyObject *name) {
    PyObject *value = field(self, name);
    return value == Py_True ? 1 : value == Py_False ? 0 : -1;
}

static Py_ssize_t limit_of(const ReadObject *self) {
    PyObject *limit = field(self, self->state->str__limit);
    if (limit == NULL || !PyLong_CheckExact(limit))
        return -1;
    int beyond;
    long long n = PyLong_AsLongLongAndOverflow(limit, &beyond);
    return beyond > 0 || n > PY_SSIZE_T_MAX ? PY_SSIZE_T_MAX : (Py_ssize_t)n;
}

static const char *find(const char *at, const char *end, const char *separator, Py_ssize_t size) {
    const char *last = end - size; /* where it can begin */
    while (at <= last && (at = memchr(at, separator[0], (size_t)(last - at) + 1)) != NULL) {
        if (memcmp(at, separator, (size_t)size) == 0)
            return at;
        at++;
    }
    return NULL;
}

/* Where the separator ends in the first n bytes. */
static outcome find_end(ReadObject *self, const char *data, Py_ssize_t n, Py_ssize_t *ret_end) {
    const char *separator = self->separator ? PyBytes_AS_STRING(self->separator) : "\n";
    Py_ssize_t size = self->separator ? PyBytes_GET_SIZE(self->separator) : 1;
    if (n - self->searched < size)
        return WAIT;
    const char *found = find(data + self->searched, data + n, separator, size);
    self->searched = found != NULL ? found - data : n + 1 - size;
    *ret_end = self->searched + size;
    bool over = self->searched > limit_of(self);
    return over ? LEAVE : found != NULL ? TAKEN : WAIT;
}

/* How much of the buffer is the answer. */
static outcome measure(ReadObject *self, PyObject *buffer, Py_ssize_t *ret_size) {
    Py_ssize_t n = PyByteArray_GET_SIZE(buffer);
    if (self->kind >= UNTIL)
        return find_end(self, PyByteArray_AS_STRING(buffer), n, ret_size);
    *ret_size = n < self->count ? n : self->count;
    return *ret_size == 0 || (self->kind == EXACTLY && n < self->count) ? WAIT : TAKEN;
}

static int drop_front(PyObject *buffer, Py_ssize_t n) {
    if (n == PyByteArray_GET_SIZE(buffer))
        return PyByteArray_Resize(buffer, 0);
    return PySequence_DelSlice(buffer, 0, n);
}

/* StreamReader._maybe_resume_transport() */
static int resume_transport(ReadObject *self) {
    if (is_true(self, self->state->str__paused) == 0)
        return 0;
    PyObject *result =
        PyObject_CallMethodNoArgs(self->reader, self->state->str__maybe_resume_transport);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

static outcome take_from(ReadObject *self, PyObject *buffer, PyObject **ret_result) {
    Py_ssize_t n = 0;
    outcome what = measure(self, buffer, &n);
    if (what == WAIT) /* unless there will be no more */
        return is_true(self, self->state->str__eof) == 0 ? WAIT : LEAVE;
    if (what != TAKEN)
        return what;
    PyObject *data = PyBytes_FromStringAndSize(PyByteArray_AS_STRING(buffer), n);
    if (data == NULL || drop_front(buffer, n) < 0 || resume_transport(self) < 0) {
        Py_XDECREF(data);
        return FAILED;
    }
    *ret_result = data;
    return TAKEN;
}

static outcome take(ReadObject *self, PyObject **ret_result) {
    /* One that is set while we wait reaches us through the future. */
    if (!self->waited && field(self, self->state->str__exception) != Py_None)
        return LEAVE;
    PyObject *buffer = field(self, self->state->str__buffer);
    if (buffer == NULL || !PyByteArray_CheckExact(buffer))
        return LEAVE;
    Py_XSETREF(self->buffer, Py_NewRef(buffer));
    return take_from(self, buffer, ret_result);
}

/* ---- Waiting for more: StreamReader._wait_for_data() ---- */

static int set_future(ReadObject *self, PyObject *loop) {
    module_state *state = self->state;
    self->future = PyObject_CallMethodNoArgs(loop, state->str_create_future);
    if (self->future == NULL)
        return -1;
    const PyAsyncMethods *async = Py_TYPE(self->future)->tp_as_async;
    if (async == NULL || async->am_await == NULL) {
        PyErr_SetString(PyExc_TypeError, "create_future() returned what cannot be awaited");
        return -1;
    }
    self->waiting = async->am_await(self->future);
    return self->waiting == NULL ? -1
                                 : PyDict_SetItem(self->fields, state->str__waiter, self->future);
}

/* Its transport may hand us what it receives. */
static void meet_feeder(ReadObject *self) {
    PyObject *transport = field(self, self->state->str__transport);
    if (transport == NULL || Py_TYPE(transport) != self->state->transport_type)
        return;
    self->feeder = (TransportObject *)Py_NewRef(transport);
    self->feeder->reading = (PyObject *)self;
}

static void stop_waiting(ReadObject *self) {
    PyObject *type, *value, *tb;
    PyErr_Fetch(&type, &value, &tb);
    if (self->feeder != NULL && self->feeder->reading == (PyObject *)self)
        self->feeder->reading = NULL;
    Py_CLEAR(self->feeder);
    if (self->result != NULL) /* it was not awaited to its end: others are to have it */
        (void)PySequence_SetSlice(self->buffer, 0, 0, self->result);
    Py_CLEAR(self->result);
    if (self->future != NULL && field(self, self->state->str__waiter) == self->future)
        (void)PyDict_SetItem(self->fields, self->state->str__waiter, Py_None);
    PyErr_Clear();
    Py_CLEAR(self->waiting);
    Py_CLEAR(self->future);
    PyErr_Restore(type, value, tb);
}

/* Somebody else waits, or the transport is to be resumed first: then it is asyncio's. */
static outcome begin_waiting(ReadObject *self) {
    PyObject *loop = field(self, self->state->str__loop);
    if (loop == NULL || field(self, self->state->str__waiter) != Py_None ||
        is_true(self, self->state->str__paused) != 0)
        return LEAVE;
    Py_INCREF(loop);
    int code = set_future(self, loop);
    Py_DECREF(loop);
    if (code < 0)
        stop_waiting(self);
    else
        meet_feeder(self);
    self->waited = code == 0;
    return code < 0 ? FAILED : WAIT;
}

/* Whether all of it, and no more, is the answer. */
static bool fits(ReadObject *self, const char *data, Py_ssize_t n) {
    Py_ssize_t size = 0;
    if (self->kind == SOME || self->kind == EXACTLY)
        return self->kind == SOME ? n <= self->count : n == self->count;
    self->searched = 0;
    bool whole = find_end(self, data, n, &size) == TAKEN && size == n;
    self->searched = 0;
    return whole;
}

/* What a transport has received, for whom waits for it: 1: it took it, and will be woken. */
int read_offer(TransportObject *t, PyObject *reader, const char *data, size_t n) {
    ReadObject *self = (ReadObject *)t->reading;
    module_state *state = t->loop->state;
    if (self == NULL || self->reader != reader || self->result != NULL ||
        field(self, state->str__waiter) != self->future || PyByteArray_GET_SIZE(self->buffer) > 0 ||
        !fits(self, data, (Py_ssize_t)n))
        return PyErr_Occurred() ? -1 : 0;
    self->result = transport_bytes(t->loop, data, n);
    if (self->result == NULL || reader_wake(state, self->fields) < 0)
        return -1;
    return 1;
}

/* ---- As a coroutine ---- */

/* `async for` ends with the first line that is empty. */
static PySendResult end_with(ReadObject *self, PySendResult result, PyObject **ret_result) {
    if (result != PYGEN_NEXT)
        self->over = true;
    if (result != PYGEN_RETURN || self->kind != NEXT || PyObject_Size(*ret_result) != 0)
        return result;
    Py_CLEAR(*ret_result);
    PyErr_SetNone(PyExc_StopAsyncIteration);
    return PYGEN_ERROR;
}

/* The rest is asyncio's. */
static PySendResult leave(ReadObject *self, PyObject **ret_result) {
    PyErr_Clear(); /* what kept us from it, asyncio will meet too */
    PyObject *args[3] = {NULL, self->reader, NULL};
    size_t n = 1;
    if (self->kind == UNTIL && self->separator != NULL)
        args[++n] = Py_NewRef(self->separator);
    else if (self->kind < UNTIL && (args[++n] = PyLong_FromSsize_t(self->count)) == NULL)
        return end_with(self, PYGEN_ERROR, ret_result);
    int kind = self->kind == NEXT ? LINE : self->kind;
    self->own = PyObject_Vectorcall(self->state->own[kind], args + 1,
                                    n | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    Py_XDECREF(args[2]);
    if (self->own == NULL)
        return end_with(self, PYGEN_ERROR, ret_result);
    return end_with(self, PyIter_Send(self->own, Py_None, ret_result), ret_result);
}

static PySendResult advance(ReadObject *self, PyObject **ret_result) {
    for (;;) {
        outcome what = take(self, ret_result);
        if (what == WAIT)
            what = begin_waiting(self);
        if (what == TAKEN || what == FAILED)
            return end_with(self, what == TAKEN ? PYGEN_RETURN : PYGEN_ERROR, ret_result);
        if (what == LEAVE)
            return leave(self, ret_result);
        PySendResult result = PyIter_Send(self->waiting, Py_None, ret_result);
        if (result == PYGEN_NEXT)
            return result;
        stop_waiting(self);
        if (result == PYGEN_ERROR)
            return end_with(self, result, ret_result);
        Py_DECREF(*ret_result);
    }
}

static PySendResult read_am_send(ReadObject *self, PyObject *arg, PyObject **ret_result) {
    *ret_result = NULL;
    if (self->over) {
        PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited coroutine");
        return PYGEN_ERROR;
    }
    self->started = true;
    if (self->own != NULL)
        return end_with(self, PyIter_Send(self->own, arg, ret_result), ret_result);
    if (self->waiting != NULL) {
        PySendResult result = PyIter_Send(self->waiting, arg, ret_result);
        if (result == PYGEN_NEXT)
            return result;
        PyObject *handed = result == PYGEN_RETURN ? self->result : NULL;
        if (handed != NULL) { /* and the reader knows already that nobody waits */
            self->result = NULL;
            Py_CLEAR(self->future);
        }
        stop_waiting(self);
        if (result == PYGEN_ERROR)
            return end_with(self, result, ret_result);
        Py_SETREF(*ret_result, handed);
        if (handed != NULL)
            return end_with(self, PYGEN_RETURN, ret_result);
    }
    return advance(self, ret_result);
}

/* A result of am_send as what a method returns. */
static PyObject *as_iterator_does(PySendResult result, PyObject *value) {
    if (result != PYGEN_RETURN)
        return value;
    PyErr_SetObject(PyExc_StopIteration, value == Py_None ? NULL : value);
    Py_DECREF(value);
    return NULL;
}

static PyObject *read_send(ReadObject *self, PyObject *arg) {
    PyObject *value;
    PySendResult result = read_am_send(self, arg, &value);
    return as_iterator_does(result, value);
}

static PyObject *read_iternext(ReadObject *self) {
    return read_send(self, Py_None);
}

static PyObject *raise_thrown(PyObject *args) {
    PyObject *type, *value = NULL, *tb = NULL;
    if (!PyArg_UnpackTuple(args, "throw", 1, 3, &type, &value, &tb))
        return NULL;
    if (PyExceptionInstance_Check(type))
        PyErr_SetObject((PyObject *)Py_TYPE(type), type);
    else if (PyExceptionClass_Check(type))
        PyErr_SetObject(type, value);
    else
        PyErr_SetString(PyExc_TypeError, "exceptions must be classes or instances deriving from "
                                         "BaseException");
    return NULL;
}

static PyObject *read_throw(ReadObject *self, PyObject *args) {
    PyObject *to = self->over ? NULL : self->own != NULL ? self->own : self->waiting;
    PyObject *throw = to == NULL ? NULL : PyObject_GetAttr(to, self->state->str_throw);
    if (to != NULL && throw == NULL)
        return NULL;
    self->started = true;
    PyObject *result = throw == NULL ? raise_thrown(args) : PyObject_CallObject(throw, args);
    Py_XDECREF(throw);
    if (result == NULL)
        self->over = true;
    if (result == NULL && self->waiting != NULL)
        stop_waiting(self);
    return result;
}

static PyObject *read_close(ReadObject *self, PyObject *Py_UNUSED(ignored)) {
    bool over = self->over;
    self->started = self->over = true;
    if (self->waiting != NULL)
        stop_waiting(self);
    if (over || self->own == NULL)
        Py_RETURN_NONE;
    return PyObject_CallMethodNoArgs(self->own, self->state->str_close);
}

static PyObject *read_name(ReadObject *self, void *Py_UNUSED(closure)) {
    return PyUnicode_FromFormat("StreamReader.%s", read_names[self->kind]);
}

/* ---- Its life ---- */

static void read_finalize(ReadObject *self) {
    PyObject *type, *value, *tb;
    PyErr_Fetch(&type, &value, &tb);
    if (self->waiting != NULL)
        stop_waiting(self);
    if (!self->started &&
        PyErr_WarnFormat(PyExc_RuntimeWarning, 1, "coroutine 'StreamReader.%s' was never awaited",
                         read_names[self->kind]) < 0)
        PyErr_WriteUnraisable((PyObject *)self);
    PyErr_Restore(type, value, tb);
}

static int read_traverse(ReadObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->reader);
    Py_VISIT(self->fields);
    Py_VISIT(self->future);
    Py_VISIT(self->waiting);
    Py_VISIT((PyObject *)self->feeder);
    Py_VISIT(self->own);
    return 0;
}

static int read_clear(ReadObject *self) {
    self->over = true;
    if (self->feeder != NULL && self->feeder->reading == (PyObject *)self)
        self->feeder->reading = NULL;
    Py_CLEAR(self->feeder);
    Py_CLEAR(self->buffer);
    Py_CLEAR(self->result);
    Py_CLEAR(self->reader);
    Py_CLEAR(self->fields);
    Py_CLEAR(self->separator);
    Py_CLEAR(self->future);
    Py_CLEAR(self->waiting);
    Py_CLEAR(self->own);
    return 0;
}

static void read_dealloc(ReadObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    bool quiet = self->started && self->waiting == NULL;
    if (!quiet && PyObject_CallFinalizerFromDealloc((PyObject *)self) < 0)
        return; /* it lives again */
    PyObject_GC_UnTrack(self);
    (void)read_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *read_await(PyObject *self) {
    return Py_NewRef(self);
}

static PyMethodDef read_methods[] = {
    {"send", (PyCFunction)read_send, METH_O, "Go on, as a coroutine does."},
    {"throw", (PyCFunction)read_throw, METH_VARARGS, "Raise an exception where it waits."},
    {"close", (PyCFunction)read_close, METH_NOARGS, "Give it up."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef read_getset[] = {
    {"__name__", (getter)read_name, NULL, NULL, NULL},
    {"__qualname__", (getter)read_name, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot read_slots[] = {
    {Py_tp_doc, "What a StreamReader's read() and its kind return, to be awaited."},
    {Py_tp_dealloc, read_dealloc},
    {Py_tp_finalize, read_finalize},
    {Py_tp_traverse, read_traverse},
    {Py_tp_clear, read_clear},
    {Py_tp_methods, read_methods},
    {Py_tp_getset, read_getset},
    {Py_tp_iternext, read_iternext},
    {Py_am_await, read_await},
    {Py_am_send, read_am_send},
    {0, NULL},
};

PyType_Spec read_spec = {
    .name = "becket._becket.Read",
    .basicsize = sizeof(ReadObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = read_slots,
};

/* ---- The reader ---- */

/* The arguments as asyncio's own method is to have them. */
static PyObject *call_own(module_state *state, int kind, PyObject *reader, PyObject *const *args,
                          Py_ssize_t n, PyObject *names) {
    PyObject *all[8] = {reader};
    Py_ssize_t count = n + (names == NULL ? 0 : PyTuple_GET_SIZE(names));
    if (count >= (Py_ssize_t)(sizeof all / sizeof all[0]))
        return PyErr_Format(PyExc_TypeError, "%s() got %zd arguments", read_names[kind], count);
    for (Py_ssize_t i = 0; i < count; i++)
        all[i + 1] = args[i];
    return PyObject_Vectorcall(state->own[kind], all, (size_t)n + 1, names);
}

static PyObject *make_read(PyObject *reader, PyTypeObject *type, int kind, PyObject *separator,
                           Py_ssize_t count) {
    module_state *state = PyType_GetModuleState(type);
    PyObject *fields = PyObject_GenericGetDict(reader, NULL);
    ReadObject *self = fields == NULL ? NULL : PyObject_GC_New(ReadObject, state->read_type);
    if (self == NULL) {
        Py_XDECREF(fields);
        return NULL;
    }
    memset(&self->state, 0, sizeof *self - offsetof(ReadObject, state));
    self->state = state;
    self->reader = Py_NewRef(reader);
    self->fields = fields;
    self->separator = Py_XNewRef(separator);
    self->count = count;
    self->kind = (uint8_t)kind;
    PyObject_GC_Track(self);
    return (PyObject *)self;
}

/* read(n) and readexactly(n) */
static PyObject *count_read(PyObject *reader, PyTypeObject *type, int kind, PyObject *const *args,
                            Py_ssize_t n, PyObject *names) {
    Py_ssize_t count =
        n == 1 && names == NULL && PyLong_CheckExact(args[0]) ? PyLong_AsSsize_t(args[0]) : 0;
    PyErr_Clear();
    if (count <= 0)
        return call_own(PyType_GetModuleState(type), kind, reader, args, n, names);
    return make_read(reader, type, kind, NULL, count);
}

static PyObject *reader_read(PyObject *self, PyTypeObject *type, PyObject *const *args,
                             Py_ssize_t n, PyObject *names) {
    return count_read(self, type, SOME, args, n, names);
}

static PyObject *reader_readexactly(PyObject *self, PyTypeObject *type, PyObject *const *args,
                                    Py_ssize_t n, PyObject *names) {
    return count_read(self, type, EXACTLY, args, n, names);
}

static PyObject *reader_readuntil(PyObject *self, PyTypeObject *type, PyObject *const *args,
                                  Py_ssize_t n, PyObject *names) {
    PyObject *separator = n > 0 ? args[0] : NULL;
    bool plain = names == NULL && n <= 1 &&
                 (n == 0 || (PyBytes_CheckExact(separator) && PyBytes_GET_SIZE(separator) > 0));
    if (!plain)
        return call_own(PyType_GetModuleState(type), UNTIL, self, args, n, names);
    return make_read(self, type, UNTIL, separator, 0);
}

static PyObject *reader_readline(PyObject *self, PyTypeObject *type, PyObject *const *args,
                                 Py_ssize_t n, PyObject *names) {
    if (n > 0 || names != NULL)
        return call_own(PyType_GetModuleState(type), LINE, self, args, n, names);
    return make_read(self, type, LINE, NULL, 0);
}

/* StreamReader.__anext__() */
static PyObject *reader_anext(PyObject *self) {
    return make_read(self, Py_TYPE(self), NEXT, NULL, 0); /* nobody derives from it */
}

#define READS(name)                                                                                \
    {#name, (PyCFunction)(void (*)(void))reader_##name,                                            \
     METH_METHOD | METH_FASTCALL | METH_KEYWORDS, "As asyncio.StreamReader." #name "()."}

static PyMethodDef reader_methods[] = {
    READS(read), READS(readexactly), READS(readuntil), READS(readline), {NULL, NULL, 0, NULL},
};

static PyType_Slot reader_slots[] = {
    {Py_tp_doc, "An asyncio.StreamReader that a becket.EventLoop fills."},
    {Py_tp_methods, reader_methods},
    {Py_am_anext, reader_anext},
    {0, NULL},
};

PyType_Spec reader_spec = {
    .name = "becket._becket.StreamReader",
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = reader_slots,
};

/* ---- The protocol ---- */

/* Nothing to wait for. One will do for all. */
static PySendResult done_am_send(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(arg),
                                 PyObject **ret_result) {
    *ret_result = Py_NewRef(Py_None);
    return PYGEN_RETURN;
}

static PyObject *done_iternext(PyObject *Py_UNUSED(self)) {
    return NULL; /* StopIteration, of None */
}

static int done_traverse(PyObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    return 0;
}

static void done_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyType_Slot done_slots[] = {
    {Py_tp_doc, "Something to await that is done."},
    {Py_tp_dealloc, done_dealloc},
    {Py_tp_traverse, done_traverse},
    {Py_tp_iternext, done_iternext},
    {Py_am_await, read_await},
    {Py_am_send, done_am_send},
    {0, NULL},
};

PyType_Spec done_spec = {
    .name = "becket._becket.Done",
    .basicsize = sizeof(PyObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = done_slots,
};

/* What StreamWriter.drain() awaits: FlowControlMixin._drain_helper(). */
static PyObject *protocol_drain_helper(PyObject *self, PyTypeObject *type,
                                       PyObject *const *Py_UNUSED(args), Py_ssize_t n,
                                       PyObject *Py_UNUSED(names)) {
    module_state *state = PyType_GetModuleState(type);
    if (n != 0)
        return PyErr_Format(PyExc_TypeError, "_drain_helper() takes no arguments");
    PyObject *lost = PyObject_GetAttr(self, state->str__connection_lost);
    PyObject *paused = lost == NULL ? NULL : PyObject_GetAttr(self, state->str__paused);
    bool clear = lost == Py_False && paused == Py_False;
    Py_XDECREF(lost);
    Py_XDECREF(paused);
    if (paused == NULL)
        return NULL;
    return clear ? Py_NewRef(state->done) : PyObject_CallOneArg(state->own[OWN_DRAIN], self);
}

static PyMethodDef protocol_methods[] = {
    {"_drain_helper", (PyCFunction)(void (*)(void))protocol_drain_helper,
     METH_METHOD | METH_FASTCALL | METH_KEYWORDS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot protocol_slots[] = {
    {Py_tp_doc, "An asyncio.StreamReaderProtocol on a becket.EventLoop."},
    {Py_tp_methods, protocol_methods},
    {0, NULL},
};

PyType_Spec reader_protocol_spec = {
    .name = "becket._becket.StreamReaderProtocol",
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = protocol_slots,
};
