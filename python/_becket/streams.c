/*
 * streams.c: filling an asyncio.StreamReader without a call of Python per message. It does what
 * StreamReaderProtocol.data_received() and StreamReader.feed_data() do, for those two classes
 * themselves; a class derived from either is called as usual. Called by transport.c.
 */
#include "becket_py.h"

/* What a weak reference refers to, as a new reference; NULL, without an exception: it is gone. */
static PyObject *target_of(PyObject *weak) {
#if PY_VERSION_HEX >= 0x030D0000
    PyObject *target;
    if (PyWeakref_GetRef(weak, &target) < 0)
        PyErr_Clear();
    return target;
#else
    PyObject *target = PyWeakref_GetObject(weak); /* borrowed */
    return target == Py_None ? NULL : Py_NewRef(target);
#endif
}

/* Sets t->reader, and answers whether the protocol is one we know. The protocol refers to its
   reader weakly, so that an abandoned reader can go; so do we. */
bool reader_recognise(TransportObject *t) {
    module_state *state = t->loop->state;
    if ((PyObject *)Py_TYPE(t->protocol) != state->reader_protocol)
        return false;
    PyObject *weak = PyObject_GetAttr(t->protocol, state->str__stream_reader_wr);
    PyObject *reader = weak != NULL && PyWeakref_CheckRef(weak) ? target_of(weak) : NULL;
    bool known = reader != NULL && (PyObject *)Py_TYPE(reader) == state->reader_type;
    PyErr_Clear();
    Py_XDECREF(reader);
    if (known)
        Py_XSETREF(t->reader, weak);
    else
        Py_XDECREF(weak);
    return known;
}

static int extend(module_state *state, PyObject *reader, const char *data, size_t n,
                  Py_ssize_t *ret_size) {
    PyObject *buffer = PyObject_GetAttr(reader, state->str__buffer);
    if (buffer == NULL)
        return -1;
    int code = -1;
    if (!PyByteArray_CheckExact(buffer)) {
        PyErr_SetString(PyExc_TypeError, "StreamReader._buffer is not a bytearray");
    } else {
        Py_ssize_t size = PyByteArray_GET_SIZE(buffer);
        code = PyByteArray_Resize(buffer, size + (Py_ssize_t)n);
        if (code == 0)
            memcpy(PyByteArray_AS_STRING(buffer) + size, data, n);
        *ret_size = size + (Py_ssize_t)n;
    }
    Py_DECREF(buffer);
    return code;
}

/* StreamReader._wakeup_waiter() */
static int wake_waiter(module_state *state, PyObject *reader) {
    PyObject *waiter = PyObject_GetAttr(reader, state->str__waiter);
    if (waiter == NULL)
        return -1;
    if (waiter == Py_None) {
        Py_DECREF(waiter);
        return 0;
    }
    int code = PyObject_SetAttr(reader, state->str__waiter, Py_None);
    PyObject *cancelled =
        code == 0 ? PyObject_CallMethodNoArgs(waiter, state->str_cancelled) : NULL;
    PyObject *result = NULL;
    if (cancelled == Py_False)
        result = PyObject_CallMethodOneArg(waiter, state->str_set_result, Py_None);
    code = cancelled == NULL || (cancelled == Py_False && result == NULL) ? -1 : 0;
    Py_XDECREF(cancelled);
    Py_XDECREF(result);
    Py_DECREF(waiter);
    return code;
}

/* The reader holds more than twice its limit: it wants no more until some of it was taken. */
static int pause_full(TransportObject *t, PyObject *reader, Py_ssize_t size) {
    module_state *state = t->loop->state;
    PyObject *limit = PyObject_GetAttr(reader, state->str__limit);
    if (limit == NULL)
        return -1;
    double most = 2 * PyFloat_AsDouble(limit);
    Py_DECREF(limit);
    if (PyErr_Occurred() || (double)size <= most)
        return PyErr_Occurred() ? -1 : 0;
    PyObject *transport = PyObject_GetAttr(reader, state->str__transport);
    if (transport == NULL)
        return -1;
    int code = 0;
    if (transport != Py_None && !t->paused) {
        PyObject *result = PyObject_CallMethodNoArgs(transport, state->str_pause_reading);
        code = result == NULL ? -1 : PyObject_SetAttr(reader, state->str__paused, Py_True);
        Py_XDECREF(result);
    }
    Py_DECREF(transport);
    return code;
}

static int feed(TransportObject *t, PyObject *reader, const char *data, size_t n) {
    Py_ssize_t size;
    if (extend(t->loop->state, reader, data, n, &size) < 0 ||
        wake_waiter(t->loop->state, reader) < 0)
        return -1;
    return pause_full(t, reader, size);
}

/* Wakes what waits, whose callbacks carry their own contexts; so this needs none. */
int reader_feed(TransportObject *t, const char *data, size_t n) {
    PyObject *reader = t->reader != NULL ? target_of(t->reader) : NULL;
    if (reader == NULL)
        return 0; /* nobody will read it: asyncio drops it too */
    int code = feed(t, reader, data, n);
    Py_DECREF(reader);
    return code;
}
