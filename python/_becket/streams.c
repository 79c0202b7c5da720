/*
 * streams.c: filling an asyncio.StreamReader without a call of Python per message. It does what
 * StreamReaderProtocol.data_received() and StreamReader.feed_data() do, for those two classes
 * themselves; a class derived from either is called as usual. Called by transport.c.
 */
#include "becket_py.h"

/* Attributes of a reader are looked up in its dictionary, where all of them are: in half the time.
 */

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

/* asyncio's own method, as OWN_… numbers them: a new reference. */
PyObject *reader_own_method(module_state *state, int which) {
    static const char *const names[OWN] = {
        [OWN_READ] = "read",           [OWN_READEXACTLY] = "readexactly",
        [OWN_READUNTIL] = "readuntil", [OWN_READLINE] = "readline",
        [OWN_FEED] = "feed_data",      [OWN_RECEIVED] = "data_received",
        [OWN_DRAIN] = "_drain_helper",
    };
    return PyObject_GetAttrString(
        which < OWN_RECEIVED ? state->reader_type : state->reader_protocol, names[which]);
}

/* Whether asyncio's classes are as we found them: somebody who replaces a method of theirs wants it
   called. */
static bool are_as_found(module_state *state) {
    bool same = true;
    for (int i = 0; i < OWN && same; i++) {
        PyObject *method = reader_own_method(state, i);
        same = method == state->own[i];
        Py_XDECREF(method);
    }
    PyErr_Clear();
    return same;
}

/* Makes an object of asyncio's class one of ours, which derives from it. */
static bool is_or_becomes(PyObject *object, PyObject *theirs, PyTypeObject *ours) {
    PyTypeObject *type = Py_TYPE(object);
    if ((PyObject *)type != theirs)
        return type == ours;
    return PyObject_SetAttrString(object, "__class__", (PyObject *)ours) == 0;
}

/* Sets t->reader, and answers whether the protocol is one we know. The protocol refers to its
   reader weakly, so that an abandoned reader can go; so do we. */
bool reader_recognise(TransportObject *t) {
    module_state *state = t->loop->state;
    PyTypeObject *type = Py_TYPE(t->protocol);
    if ((PyObject *)type != state->reader_protocol && type != state->our_reader_protocol)
        return false;
    PyObject *weak = PyObject_GetAttr(t->protocol, state->str__stream_reader_wr);
    PyObject *reader = weak != NULL && PyWeakref_CheckRef(weak) ? target_of(weak) : NULL;
    bool known = reader != NULL && are_as_found(state) &&
                 is_or_becomes(reader, state->reader_type, state->our_reader) &&
                 is_or_becomes(t->protocol, state->reader_protocol, state->our_reader_protocol);
    PyErr_Clear();
    Py_XDECREF(reader);
    if (known)
        Py_XSETREF(t->reader, weak);
    else
        Py_XDECREF(weak);
    return known;
}

static int extend(PyObject *buffer, const char *data, size_t n) {
    if (buffer == NULL || !PyByteArray_CheckExact(buffer)) {
        PyErr_SetString(PyExc_TypeError, "StreamReader._buffer is not a bytearray");
        return -1;
    }
    Py_ssize_t size = PyByteArray_GET_SIZE(buffer);
    int code = PyByteArray_Resize(buffer, size + (Py_ssize_t)n);
    if (code == 0)
        memcpy(PyByteArray_AS_STRING(buffer) + size, data, n);
    return code;
}

static bool is_cancelled(module_state *state, PyObject *future) {
    PyObject *type, *value, *tb;
    PyErr_Fetch(&type, &value, &tb);
    PyObject *result = PyObject_CallMethodNoArgs(future, state->str_cancelled);
    PyErr_Clear();
    PyErr_Restore(type, value, tb);
    Py_XDECREF(result);
    return result == Py_True;
}

/* StreamReader._wakeup_waiter() */
int reader_wake(module_state *state, PyObject *fields) {
    PyObject *waiter = PyDict_GetItemWithError(fields, state->str__waiter);
    if (waiter == NULL || waiter == Py_None)
        return PyErr_Occurred() ? -1 : 0;
    Py_INCREF(waiter);
    int code = PyDict_SetItem(fields, state->str__waiter, Py_None);
    PyObject *result =
        code < 0 ? NULL : PyObject_CallMethodOneArg(waiter, state->str_set_result, Py_None);
    if (result == NULL && code == 0 && is_cancelled(state, waiter))
        PyErr_Clear();
    else if (result == NULL)
        code = -1;
    Py_XDECREF(result);
    Py_DECREF(waiter);
    return code;
}

/* The reader holds more than twice its limit: it wants no more until some of it was taken. */
static int pause_full(TransportObject *t, PyObject *fields, Py_ssize_t size) {
    module_state *state = t->loop->state;
    PyObject *limit = PyDict_GetItemWithError(fields, state->str__limit);
    double most = limit == NULL ? -1 : 2 * PyFloat_AsDouble(limit);
    if (PyErr_Occurred() || limit == NULL || (double)size <= most)
        return PyErr_Occurred() ? -1 : 0;
    PyObject *transport = PyDict_GetItemWithError(fields, state->str__transport);
    if (transport == NULL || transport == Py_None || t->paused)
        return PyErr_Occurred() ? -1 : 0;
    Py_INCREF(transport);
    PyObject *result = PyObject_CallMethodNoArgs(transport, state->str_pause_reading);
    int code = result == NULL ? -1 : PyDict_SetItem(fields, state->str__paused, Py_True);
    Py_XDECREF(result);
    Py_DECREF(transport);
    return code;
}

static int feed(TransportObject *t, PyObject *fields, const char *data, size_t n) {
    PyObject *buffer = PyDict_GetItemWithError(fields, t->loop->state->str__buffer);
    Py_XINCREF(buffer);
    int code = extend(buffer, data, n);
    if (code == 0)
        code = reader_wake(t->loop->state, fields);
    if (code == 0)
        code = pause_full(t, fields, PyByteArray_GET_SIZE(buffer));
    Py_XDECREF(buffer);
    return code;
}

/* Wakes what waits, whose callbacks carry their own contexts; so this needs none. */
int reader_feed(TransportObject *t, const char *data, size_t n) {
    PyObject *reader = t->reader != NULL ? target_of(t->reader) : NULL;
    if (reader == NULL)
        return 0; /* nobody will read it: asyncio drops it too */
    int code = read_offer(t, reader, data, n);
    PyObject *fields = code == 0 ? PyObject_GenericGetDict(reader, NULL) : NULL;
    if (code == 0)
        code = fields == NULL ? -1 : feed(t, fields, data, n);
    Py_XDECREF(fields);
    Py_DECREF(reader);
    return code < 0 ? -1 : 0;
}
