/*
 * handle.c: asyncio's Handle and TimerHandle: a callback with its arguments and its context. Made
 * by the loop's call_… methods, run by the core's ready queue, timers and watches.
 */
#include "becket_py.h"

#include <math.h>
#include <structmember.h>

/* Threads would take them from each other. */
#ifdef BK_FREE_THREADING
enum { HANDLES_KEPT = 0 };
#else
enum { HANDLES_KEPT = 1024 };
#endif

/* ---- Life ---- */

static HandleObject *alloc_handle(module_state *state) {
    HandleObject *h = state->free_handles;
    if (h == NULL)
        return PyObject_GC_New(HandleObject, state->handle_type);
    state->free_handles = (HandleObject *)h->loop;
    state->free_handle_count--;
    return (HandleObject *)PyObject_Init((PyObject *)h, state->handle_type);
}

static int fill(HandleObject *h, LoopObject *loop, PyObject *callback, PyObject *const *args,
                Py_ssize_t n, PyObject *context) {
    h->weakrefs = NULL;
    h->args = h->traceback = h->name = NULL;
    h->one_arg = n == 1;
    h->cancelled = false;
    h->loop = (LoopObject *)Py_NewRef((PyObject *)loop);
    h->callback = Py_NewRef(callback);
    h->context =
        context != NULL && context != Py_None ? Py_NewRef(context) : PyContext_CopyCurrent();
    if (h->context == NULL)
        return -1;
    if (n == 1) {
        h->args = Py_NewRef(args[0]);
    } else if (n > 1) {
        h->args = PyTuple_New(n);
        if (h->args == NULL)
            return -1;
        for (Py_ssize_t i = 0; i < n; i++)
            PyTuple_SET_ITEM(h->args, i, Py_NewRef(args[i]));
    }
    if (loop->debug) {
        h->traceback = PyObject_CallNoArgs(loop->state->extract_stack);
        return h->traceback == NULL ? -1 : 0;
    }
    return 0;
}

HandleObject *handle_new(LoopObject *loop, PyObject *callback, PyObject *const *args, Py_ssize_t n,
                         PyObject *context) {
    HandleObject *h = alloc_handle(loop->state);
    if (h == NULL)
        return NULL;
    /* The collector need not know of a handle that only the ready queue holds: see loop_traverse().
       Should somebody keep it, handle_run() tells the collector. */
    if (fill(h, loop, callback, args, n, context) < 0)
        Py_CLEAR(h);
#ifdef BK_FREE_THREADING
    if (h != NULL) /* that is cheap there, and who holds it is not always known */
        PyObject_GC_Track(h);
#endif
    return h;
}

TimerHandleObject *timer_handle_new(LoopObject *loop, double when, PyObject *callback,
                                    PyObject *const *args, Py_ssize_t n, PyObject *context) {
    TimerHandleObject *h = PyObject_GC_New(TimerHandleObject, loop->state->timer_handle_type);
    if (h == NULL)
        return NULL;
    h->when = when;
    h->timer = (bk_timer){0};
    int code = fill(&h->base, loop, callback, args, n, context);
    PyObject_GC_Track(h);
    if (code < 0)
        Py_CLEAR(h);
    return h;
}

static int handle_clear(HandleObject *h) {
    Py_CLEAR(h->callback);
    Py_CLEAR(h->args);
    Py_CLEAR(h->context);
    Py_CLEAR(h->traceback);
    Py_CLEAR(h->name);
    return 0; /* not the loop: methods need it, and a loop clears itself of its handles */
}

int handle_traverse(HandleObject *h, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(h));
    Py_VISIT(h->callback);
    Py_VISIT(h->args);
    Py_VISIT(h->context);
    Py_VISIT(h->traceback);
    Py_VISIT((PyObject *)h->loop);
    return 0;
}

static void handle_dealloc(HandleObject *h) {
    PyTypeObject *type = Py_TYPE(h);
    module_state *state = h->loop != NULL ? h->loop->state : NULL;
    PyObject_GC_UnTrack(h);
    if (h->weakrefs != NULL)
        PyObject_ClearWeakRefs((PyObject *)h);
    /* The loop last, and not before the module's state was used: it may be what keeps it. */
    LoopObject *loop = h->loop;
    h->loop = NULL;
    handle_clear(h);
    if (state != NULL && type == state->handle_type && state->free_handle_count < HANDLES_KEPT) {
        h->loop = (LoopObject *)state->free_handles;
        state->free_handles = h;
        state->free_handle_count++;
    } else {
        type->tp_free(h);
    }
    Py_XDECREF((PyObject *)loop);
    Py_DECREF(type);
}

void handles_free(module_state *state) {
    while (state->free_handles != NULL) {
        HandleObject *h = state->free_handles;
        state->free_handles = (HandleObject *)h->loop;
        PyObject_GC_Del(h);
    }
    state->free_handle_count = 0;
}

/* ---- Running ---- */

/* It may be cancelled meanwhile, by itself or by the thread that call_soon_threadsafe() gave it to,
   and lets go of them then. */
static PyObject *call(HandleObject *h) {
    PyObject *callback, *args, *result;
    Py_BEGIN_CRITICAL_SECTION(h);
    callback = Py_XNewRef(h->callback);
    args = Py_XNewRef(h->args);
    Py_END_CRITICAL_SECTION();
    if (callback == NULL)
        result = Py_NewRef(Py_None);
    else if (args == NULL)
        result = PyObject_CallNoArgs(callback);
    else if (h->one_arg)
        result = PyObject_CallOneArg(callback, args);
    else
        result = PyObject_Call(callback, args, NULL);
    Py_XDECREF(callback);
    Py_XDECREF(args);
    return result;
}

/* The words for people are made in Python. */
static PyObject *describe(HandleObject *h, const char *function) {
    PyObject *module = PyImport_ImportModule("becket._repr");
    PyObject *text = module == NULL ? NULL : PyObject_CallMethod(module, function, "O", h);
    Py_XDECREF(module);
    return text;
}

static void report(HandleObject *h) {
    if (loop_take_fatal(h->loop))
        return;
    PyObject *type, *value, *tb;
    PyErr_Fetch(&type, &value, &tb);
    PyObject *text = describe(h, "failure_message");
    const char *message = text != NULL ? PyUnicode_AsUTF8(text) : NULL;
    if (message == NULL)
        PyErr_Clear();
    PyErr_Restore(type, value, tb);
    loop_report(h->loop, message != NULL ? message : "Exception in callback", NULL, NULL,
                (PyObject *)h);
    Py_XDECREF(text);
}

static void call_in_context(HandleObject *h) {
    if (PyContext_Enter(h->context) < 0) {
        report(h);
        return;
    }
    PyObject *result = call(h), *type, *value, *tb;
    PyErr_Fetch(&type, &value, &tb);
    if (PyContext_Exit(h->context) < 0)
        PyErr_WriteUnraisable((PyObject *)h);
    PyErr_Restore(type, value, tb);
    if (result == NULL)
        report(h); /* out of the context: asyncio calls the exception handler in it */
    else
        Py_DECREF(result);
}

/* asyncio's exception handler tells where it was made. */
static void set_current(LoopObject *loop, PyObject *handle) {
    if (PyObject_SetAttr((PyObject *)loop, loop->state->str__current_handle, handle) < 0)
        PyErr_WriteUnraisable((PyObject *)loop);
}

/* In debug mode: as above, and the loop's Python side hears of slow callbacks. */
static void call_timed(HandleObject *h) {
    LoopObject *loop = (LoopObject *)Py_NewRef((PyObject *)h->loop);
    bk_os *os = loop->core != NULL ? loop->core->os : bk_os_default();
    int64_t from = os->clock(os);
    set_current(loop, (PyObject *)h);
    call_in_context(h);
    set_current(loop, Py_None);
    double seconds = (double)(os->clock(os) - from) / 1e9;
    if (loop->debug && loop->error == NULL) {
        PyObject *result =
            PyObject_CallMethod((PyObject *)loop, "_slow_callback", "Od", (PyObject *)h, seconds);
        if (result == NULL)
            PyErr_WriteUnraisable((PyObject *)h);
        Py_XDECREF(result);
    }
    Py_DECREF((PyObject *)loop);
}

void handle_call(HandleObject *h) {
    if (h->cancelled)
        return;
    if (h->loop->debug)
        call_timed(h);
    else
        call_in_context(h);
}

/* The queue's reference goes; should somebody else have one, the collector is told. */
void handle_drop(HandleObject *h) {
    if (Py_REFCNT(h) > 1 && !PyObject_GC_IsTracked((PyObject *)h))
        PyObject_GC_Track(h);
    Py_DECREF((PyObject *)h);
}

void handle_run(void *arg) {
    HandleObject *h = arg;
    handle_call(h);
    handle_drop(h);
}

/* A cancelled handle keeps nothing alive but its own description, and that in debug mode only. */
void handle_cancel(HandleObject *h) {
    if (h->cancelled)
        return;
    h->cancelled = true;
    if (h->loop->debug && h->name == NULL) {
        h->name = PyObject_Repr((PyObject *)h);
        if (h->name == NULL)
            PyErr_Clear();
    }
    PyObject *callback, *args;
    Py_BEGIN_CRITICAL_SECTION(h);
    callback = h->callback;
    args = h->args;
    h->callback = h->args = NULL;
    Py_END_CRITICAL_SECTION();
    Py_XDECREF(callback);
    Py_XDECREF(args);
}

/* ---- Python methods ---- */

static PyObject *handle_cancel_method(HandleObject *h, PyObject *Py_UNUSED(ignored)) {
    handle_cancel(h);
    Py_RETURN_NONE;
}

static PyObject *timer_handle_cancel_method(TimerHandleObject *h, PyObject *Py_UNUSED(ignored)) {
    handle_cancel(&h->base);
    if (h->timer.place != 0 && h->base.loop->core != NULL) {
        bk_timer_stop(h->base.loop->core, &h->timer);
        Py_DECREF((PyObject *)h); /* the heap's */
    }
    Py_RETURN_NONE;
}

static PyObject *handle_cancelled_method(HandleObject *h, PyObject *Py_UNUSED(ignored)) {
    return PyBool_FromLong(h->cancelled);
}

static PyObject *handle_get_context(HandleObject *h, PyObject *Py_UNUSED(ignored)) {
    return Py_NewRef(h->context != NULL ? h->context : Py_None);
}

static PyObject *handle_run_method(HandleObject *h, PyObject *Py_UNUSED(ignored)) {
    handle_call(h);
    Py_RETURN_NONE;
}

static PyObject *timer_handle_when(TimerHandleObject *h, PyObject *Py_UNUSED(ignored)) {
    return PyFloat_FromDouble(h->when);
}

/* As asyncio's: <Handle cb() at file:line created at file:line>. */
static PyObject *handle_repr(HandleObject *h) {
    return h->name != NULL ? Py_NewRef(h->name) : describe(h, "handle_repr");
}

static PyObject *handle_get_args(HandleObject *h, void *Py_UNUSED(closure)) {
    if (h->callback == NULL)
        Py_RETURN_NONE;
    if (h->args == NULL)
        return PyTuple_New(0);
    return h->one_arg ? PyTuple_Pack(1, h->args) : Py_NewRef(h->args);
}

/* So that isinstance(handle, asyncio.Handle) holds, and asyncio.TimerHandle for a timer's. */
static PyObject *handle_get_class(HandleObject *h, void *Py_UNUSED(closure)) {
    module_state *state = h->loop->state;
    return Py_NewRef(Py_TYPE(h) == state->timer_handle_type ? state->timer_handle_class
                                                            : state->handle_class);
}

static PyObject *handle_get_scheduled(TimerHandleObject *h, void *Py_UNUSED(closure)) {
    return PyBool_FromLong(h->timer.place != 0);
}

static int equal_args(HandleObject *a, HandleObject *b) {
    PyObject *x = handle_get_args(a, NULL), *y = handle_get_args(b, NULL);
    int equal = x == NULL || y == NULL ? -1 : PyObject_RichCompareBool(x, y, Py_EQ);
    Py_XDECREF(x);
    Py_XDECREF(y);
    return equal;
}

/* As asyncio's: two are equal that call the same at the same time. */
static int timer_handle_equal(TimerHandleObject *a, TimerHandleObject *b) {
    HandleObject *x = &a->base, *y = &b->base;
    if (a == b)
        return 1;
    if (a->when != b->when || x->cancelled != y->cancelled ||
        (x->callback == NULL) != (y->callback == NULL))
        return 0;
    int equal = x->callback == NULL ? 1 : PyObject_RichCompareBool(x->callback, y->callback, Py_EQ);
    return equal <= 0 ? equal : equal_args(x, y);
}

static PyObject *timer_handle_compare(PyObject *a, PyObject *b, int op) {
    PyTypeObject *type = Py_TYPE(a);
    if (Py_TYPE(b) != type)
        Py_RETURN_NOTIMPLEMENTED;
    double x = ((TimerHandleObject *)a)->when, y = ((TimerHandleObject *)b)->when;
    if (op == Py_LT || op == Py_GT)
        return PyBool_FromLong(op == Py_LT ? x < y : x > y);
    int equal = timer_handle_equal((TimerHandleObject *)a, (TimerHandleObject *)b);
    if (equal < 0)
        return NULL;
    if (op == Py_EQ || op == Py_NE)
        return PyBool_FromLong(equal == (op == Py_EQ));
    return PyBool_FromLong(equal || (op == Py_LE ? x < y : x > y));
}

static Py_hash_t timer_handle_hash(TimerHandleObject *h) {
    PyObject *when = PyFloat_FromDouble(h->when);
    Py_hash_t hash = when == NULL ? -1 : PyObject_Hash(when);
    Py_XDECREF(when);
    return hash;
}

static PyMethodDef handle_methods[] = {
    {"cancel", (PyCFunction)handle_cancel_method, METH_NOARGS,
     "cancel()\n\nCancel the callback. Cancelling twice does nothing."},
    {"cancelled", (PyCFunction)handle_cancelled_method, METH_NOARGS,
     "cancelled() -> bool\n\nWhether the callback was cancelled."},
    {"get_context", (PyCFunction)handle_get_context, METH_NOARGS,
     "get_context() -> contextvars.Context\n\nThe context the callback runs in."},
    {"_run", (PyCFunction)handle_run_method, METH_NOARGS, "_run()\n\nCall the callback now."},
    {NULL, NULL, 0, NULL},
};

static PyMethodDef timer_handle_methods[] = {
    {"cancel", (PyCFunction)timer_handle_cancel_method, METH_NOARGS,
     "cancel()\n\nCancel the callback. Cancelling twice does nothing."},
    {"when", (PyCFunction)timer_handle_when, METH_NOARGS,
     "when() -> float\n\nThe time, in seconds of loop.time(), at which the callback is due."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef handle_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(HandleObject, weakrefs), READONLY, NULL},
    {"_callback", T_OBJECT, offsetof(HandleObject, callback), READONLY, NULL},
    {"_context", T_OBJECT, offsetof(HandleObject, context), READONLY, NULL},
    {"_source_traceback", T_OBJECT, offsetof(HandleObject, traceback), 0, NULL},
    {"_loop", T_OBJECT, offsetof(HandleObject, loop), READONLY, NULL},
    {"_cancelled", T_BOOL, offsetof(HandleObject, cancelled), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyMemberDef timer_handle_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(HandleObject, weakrefs), READONLY, NULL},
    {"_when", T_DOUBLE, offsetof(TimerHandleObject, when), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef handle_getset[] = {
    {"_args", (getter)handle_get_args, NULL, NULL, NULL},
    {"__class__", (getter)handle_get_class, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyGetSetDef timer_handle_getset[] = {
    {"_scheduled", (getter)handle_get_scheduled, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot handle_slots[] = {
    {Py_tp_doc, "A callback that waits for its turn; made by loop.call_soon()."},
    {Py_tp_dealloc, handle_dealloc},
    {Py_tp_traverse, handle_traverse},
    {Py_tp_clear, handle_clear},
    {Py_tp_repr, handle_repr},
    {Py_tp_methods, handle_methods},
    {Py_tp_members, handle_members},
    {Py_tp_getset, handle_getset},
    {0, NULL},
};

PyType_Spec handle_spec = {
    .name = "becket._becket.Handle",
    .basicsize = sizeof(HandleObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = handle_slots,
};

static PyType_Slot timer_handle_slots[] = {
    {Py_tp_doc, "A callback that waits for its time; made by loop.call_later() and call_at()."},
    {Py_tp_dealloc, handle_dealloc},
    {Py_tp_traverse, handle_traverse},
    {Py_tp_clear, handle_clear},
    {Py_tp_methods, timer_handle_methods},
    {Py_tp_members, timer_handle_members},
    {Py_tp_getset, timer_handle_getset},
    {Py_tp_richcompare, timer_handle_compare},
    {Py_tp_hash, timer_handle_hash},
    {0, NULL},
};

PyType_Spec timer_handle_spec = {
    .name = "becket._becket.TimerHandle",
    .basicsize = sizeof(TimerHandleObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = timer_handle_slots,
};
