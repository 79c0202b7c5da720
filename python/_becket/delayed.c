/*
 * delayed.c: calls that are due later, as Twisted has them: an IDelayedCall that is a timer of the
 * core's, and calls that other threads bring. Made by becket.twisted.reactor; what is rarely asked
 * for (a repr(), a log of what was raised) is done there, or in Twisted.
 */
#include "becket_py.h"

#include <math.h>
#include <structmember.h>

/* Twisted goes by the wall clock, and the core by one that nobody sets. A call is not made early by
   the former, unless it was set back by more than this. */
enum { NS_PER_S = 1000000000 };

typedef struct DelayedCallObject DelayedCallObject;

/* What a reactor has of time. */
typedef struct TimersObject {
    PyObject_HEAD LoopObject *loop;
    PyObject *reactor; /* its __dict__, where a test may have put another seconds() */
    PyObject *seconds; /* the reactor's own */
    PyObject *report;  /* report(call, exception) */
    PyObject *twisted; /* Twisted's DelayedCall: its `debug` is the switch of ours, too */
    DelayedCallObject *brought, *brought_last; /* by threads, in order */
    bool hurried;                              /* run_until_current() is on its way */
} TimersObject;

struct DelayedCallObject {
    PyObject_HEAD TimersObject *timers;
    PyObject *dict, *weakrefs;
    PyObject *creator, *repr;   /* with DelayedCall.debug: who made it; its repr() at the end */
    PyObject *func, *args, *kw; /* NULL: called, or cancelled */
    PyObject *seconds;          /* NULL: the wall clock itself */
    double time, delayed; /* seconds since the epoch; and what is to be added when it is due */
    int cancelled, called;
    bk_timer timer;
    DelayedCallObject *next; /* of those brought by threads */
};

static double wall_seconds(void) {
    bk_os *os = bk_os_default();
    return (double)os->wall(os) / NS_PER_S;
}

static int now_of(const DelayedCallObject *c, double *ret_now) {
    if (c->seconds == NULL) {
        *ret_now = wall_seconds();
        return 0;
    }
    PyObject *now = PyObject_CallNoArgs(c->seconds);
    *ret_now = now == NULL ? -1.0 : PyFloat_AsDouble(now);
    Py_XDECREF(now);
    return *ret_now == -1.0 && PyErr_Occurred() ? -1 : 0;
}

/* ---- Being due ---- */

static void drop_call(DelayedCallObject *c) {
    Py_CLEAR(c->func);
    Py_CLEAR(c->args);
    Py_CLEAR(c->kw);
}

static void report(DelayedCallObject *c) {
    PyObject *type, *value, *tb;
    PyErr_Fetch(&type, &value, &tb);
    PyErr_NormalizeException(&type, &value, &tb);
    if (tb != NULL)
        (void)PyException_SetTraceback(value, tb);
    PyObject *result = PyObject_CallFunctionObjArgs(c->timers->report, (PyObject *)c, value, NULL);
    if (result == NULL)
        PyErr_WriteUnraisable((PyObject *)c);
    Py_XDECREF(result);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(tb);
}

static void call(DelayedCallObject *c) {
    c->called = 1;
    PyObject *result = PyObject_Call(c->func, c->args, c->kw);
    if (result == NULL)
        report(c);
    Py_XDECREF(result);
    drop_call(c);
}

static void due(void *arg);

static DelayedCallObject *take_brought(TimersObject *timers) {
    DelayedCallObject *c = timers->brought;
    timers->brought = c->next;
    if (c->next == NULL)
        timers->brought_last = NULL;
    return c;
}

/* What threads have brought so far; what it brings itself waits. Returns whether all was called. */
static bool call_brought(TimersObject *timers) {
    const DelayedCallObject *last = timers->brought_last;
    bool more = last != NULL;
    /* One of them may have called others of them, by iterate(). */
    while (more && timers->brought != NULL) {
        if (timers->loop->core->broken || timers->loop->ending)
            return false;
        DelayedCallObject *c = take_brought(timers);
        more = c != last;
        call(c);
        Py_DECREF((PyObject *)c);
    }
    return true;
}

static int hurry(TimersObject *timers);

/* As ReactorBase.runUntilCurrent(): what threads have brought, then what is due. */
static void run_until_current(void *arg) {
    TimersObject *timers = arg;
    bk_loop *core = timers->loop->core;
    timers->hurried = false;
    if (!timers->loop->ending && call_brought(timers)) {
        bk_timers_begin(core);
        bk_timers_fire(core);
    } else if (!timers->loop->ending && hurry(timers) < 0) {
        PyErr_Clear(); /* with what comes next */
    }
    Py_DECREF((PyObject *)timers);
}

/* What is to be called at once is called before descriptors are looked at again, as in Twisted,
   where a connection has its first callLater(0) ahead of its first data: ClientCreator lives on it.
   The core's own order is asyncio's: descriptors, then what is due. */
static int hurry(TimersObject *timers) {
    if (timers->hurried)
        return 0;
    int code = bk_loop_soon(timers->loop->core, run_until_current, Py_NewRef((PyObject *)timers));
    if (code < 0) {
        Py_DECREF((PyObject *)timers);
        return loop_raise(code);
    }
    timers->hurried = true;
    return 0;
}

/* `seconds` from now, by the core's clock; the heap's reference is there already. */
static int start(DelayedCallObject *c, double seconds) {
    LoopObject *loop = c->timers->loop;
    double ns = ceil(seconds * NS_PER_S);
    int64_t now = loop->core->os->clock(loop->core->os);
    int64_t when = ns >= 9.2e18 - (double)now ? INT64_MAX : ns > 0 ? now + (int64_t)ns : now;
    if (ns <= 0 && hurry(c->timers) < 0)
        return -1;
    int code = bk_timer_start(loop->core, &c->timer, when, due, c);
    return code < 0 ? loop_raise(code) : 0;
}

/* Seconds that are left although the timer has come; 0: none. */
static double rest(DelayedCallObject *c) {
    double left = c->delayed;
    c->time += c->delayed;
    c->delayed = 0;
    if (left > 0)
        return left;
    double early = c->seconds == NULL ? c->time - wall_seconds() : 0;
    return early > 0 && early < 1 ? early : 0;
}

static void due(void *arg) {
    DelayedCallObject *c = arg;
    double left = rest(c);
    if (left > 0 && start(c, left) == 0)
        return;
    PyErr_Clear(); /* without memory it is called early */
    call(c);
    Py_DECREF((PyObject *)c);
}

/* In the loop's thread; the queue's reference is there already. */
static int queue_brought(TimersObject *timers, DelayedCallObject *c) {
    if (hurry(timers) < 0)
        return -1;
    if (timers->brought_last != NULL)
        timers->brought_last->next = c;
    else
        timers->brought = c;
    timers->brought_last = c;
    return 0;
}

/* From any thread. */
#ifdef BK_FREE_THREADING
static void brought(void *arg) {
    DelayedCallObject *c = arg;
    if (c->timers->loop->ending) {
        Py_DECREF((PyObject *)c);
    } else if (queue_brought(c->timers, c) < 0) {
        PyErr_Clear(); /* without memory it is called out of turn */
        call(c);
        Py_DECREF((PyObject *)c);
    }
}

static int bring(TimersObject *timers, DelayedCallObject *c) {
    return loop_post(timers->loop, brought, (PyObject *)c);
}
#else
/* The GIL keeps others from the queue, as it does from the loop's own. */
static int bring(TimersObject *timers, DelayedCallObject *c) {
    if (queue_brought(timers, c) < 0)
        return -1;
    bk_loop_wake(timers->loop->core);
    return 0;
}
#endif

bool delayed_is_ours(bk_fn fn) {
    return fn == due || fn == run_until_current;
}

static void forget_brought(TimersObject *timers) {
    while (timers->brought != NULL)
        Py_DECREF((PyObject *)take_brought(timers));
}

void delayed_drop(bk_fn fn, PyObject *arg) {
    if (fn == run_until_current)
        forget_brought((TimersObject *)arg);
    Py_DECREF(arg);
}

/* ---- What is asked of a call ---- */

static PyObject *error_named(const char *name) {
    PyObject *module = PyImport_ImportModule("twisted.internet.error");
    PyObject *type = module != NULL ? PyObject_GetAttrString(module, name) : NULL;
    if (type != NULL)
        PyErr_SetNone(type);
    Py_XDECREF(type);
    Py_XDECREF(module);
    return NULL;
}

static bool is_over(const DelayedCallObject *c) {
    if (c->cancelled)
        (void)error_named("AlreadyCancelled");
    else if (c->called)
        (void)error_named("AlreadyCalled");
    return c->cancelled || c->called;
}

static void stop(DelayedCallObject *c) {
    const LoopObject *loop = c->timers->loop;
    if (c->timer.place == 0 || loop->core == NULL || loop->is_parents)
        return;
    bk_timer_stop(loop->core, &c->timer);
    Py_DECREF((PyObject *)c); /* the heap's: whoever calls has one of his own */
}

static PyObject *delayed_repr(DelayedCallObject *c);

static PyObject *delayed_cancel(DelayedCallObject *c, PyObject *Py_UNUSED(ignored)) {
    if (is_over(c))
        return NULL;
    c->cancelled = 1;
    stop(c);
    if (c->creator != NULL && (c->repr = delayed_repr(c)) == NULL)
        PyErr_Clear();
    drop_call(c);
    Py_RETURN_NONE;
}

/* Due `seconds` from now, which is sooner than it was. */
static int restart(DelayedCallObject *c, double seconds) {
    const LoopObject *loop = c->timers->loop;
    if (loop_check_open(c->timers->loop) < 0)
        return -1;
    if (c->timer.place != 0)
        bk_timer_stop(loop->core, &c->timer);
    else
        Py_INCREF((PyObject *)c);
    if (start(c, seconds) == 0)
        return 0;
    Py_DECREF((PyObject *)c);
    return -1;
}

static PyObject *delayed_reset(DelayedCallObject *c, PyObject *arg) {
    double now, seconds = PyFloat_AsDouble(arg);
    if ((seconds == -1.0 && PyErr_Occurred()) || is_over(c) || now_of(c, &now) < 0)
        return NULL;
    if (now + seconds >= c->time) { /* looked at when it is due */
        c->delayed = now + seconds - c->time;
        Py_RETURN_NONE;
    }
    c->delayed = 0;
    c->time = now + seconds;
    if (restart(c, seconds) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *delayed_delay(DelayedCallObject *c, PyObject *arg) {
    double now, seconds = PyFloat_AsDouble(arg);
    if ((seconds == -1.0 && PyErr_Occurred()) || is_over(c) || now_of(c, &now) < 0)
        return NULL;
    c->delayed += seconds;
    if (c->delayed >= 0)
        Py_RETURN_NONE;
    c->time += c->delayed;
    c->delayed = 0;
    if (restart(c, c->time - now) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *delayed_active(DelayedCallObject *c, PyObject *Py_UNUSED(ignored)) {
    return PyBool_FromLong(!c->cancelled && !c->called);
}

static PyObject *delayed_get_time(DelayedCallObject *c, PyObject *Py_UNUSED(ignored)) {
    return PyFloat_FromDouble(c->time + c->delayed);
}

/* Twisted's own, which asks for what is here under the same names. */
static PyObject *delayed_repr(DelayedCallObject *c) {
    PyObject *module = PyImport_ImportModule("twisted.internet.base");
    PyObject *type = module != NULL ? PyObject_GetAttrString(module, "DelayedCall") : NULL;
    PyObject *text =
        type != NULL ? PyObject_CallMethod(type, "__repr__", "O", (PyObject *)c) : NULL;
    Py_XDECREF(type);
    Py_XDECREF(module);
    return text;
}

static PyObject *delayed_get_seconds(DelayedCallObject *c, void *Py_UNUSED(closure)) {
    return Py_NewRef(c->seconds != NULL ? c->seconds : c->timers->seconds);
}

static PyObject *delayed_compare(PyObject *a, PyObject *b, int op) {
    if (Py_TYPE(a) != Py_TYPE(b) || op == Py_EQ || op == Py_NE)
        Py_RETURN_NOTIMPLEMENTED;
    Py_RETURN_RICHCOMPARE(((DelayedCallObject *)a)->time, ((DelayedCallObject *)b)->time, op);
}

static int delayed_traverse(DelayedCallObject *c, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(c));
    Py_VISIT(c->timers);
    Py_VISIT(c->dict);
    Py_VISIT(c->creator);
    Py_VISIT(c->func);
    Py_VISIT(c->args);
    Py_VISIT(c->kw);
    Py_VISIT(c->seconds);
    return 0;
}

static int delayed_clear(DelayedCallObject *c) {
    drop_call(c);
    Py_CLEAR(c->dict);
    Py_CLEAR(c->creator);
    Py_CLEAR(c->repr);
    Py_CLEAR(c->seconds);
    return 0;
}

static void delayed_dealloc(DelayedCallObject *c) {
    PyTypeObject *type = Py_TYPE(c);
    PyObject_GC_UnTrack(c);
    if (c->weakrefs != NULL)
        PyObject_ClearWeakRefs((PyObject *)c);
    delayed_clear(c);
    Py_CLEAR(c->timers);
    type->tp_free(c);
    Py_DECREF(type);
}

static PyMethodDef delayed_methods[] = {
    {"cancel", (PyCFunction)delayed_cancel, METH_NOARGS, "cancel()\n\nDo not call it."},
    {"reset", (PyCFunction)delayed_reset, METH_O,
     "reset(secondsFromNow)\n\nCall it so many seconds from now."},
    {"delay", (PyCFunction)delayed_delay, METH_O,
     "delay(secondsLater)\n\nCall it so many seconds later."},
    {"active", (PyCFunction)delayed_active, METH_NOARGS,
     "active() -> bool\n\nWhether it is still to be called."},
    {"getTime", (PyCFunction)delayed_get_time, METH_NOARGS,
     "getTime() -> float\n\nWhen it will be called, in seconds since the epoch."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef delayed_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(DelayedCallObject, weakrefs), READONLY, NULL},
    {"__dictoffset__", T_PYSSIZET, offsetof(DelayedCallObject, dict), READONLY, NULL},
    {"time", T_DOUBLE, offsetof(DelayedCallObject, time), READONLY, NULL},
    {"delayed_time", T_DOUBLE, offsetof(DelayedCallObject, delayed), READONLY, NULL},
    {"cancelled", T_INT, offsetof(DelayedCallObject, cancelled), READONLY, NULL},
    {"called", T_INT, offsetof(DelayedCallObject, called), READONLY, NULL},
    {"creator", T_OBJECT, offsetof(DelayedCallObject, creator), READONLY, NULL},
    {"_repr", T_OBJECT, offsetof(DelayedCallObject, repr), READONLY, NULL},
    {"func", T_OBJECT_EX, offsetof(DelayedCallObject, func), READONLY, NULL},
    {"args", T_OBJECT_EX, offsetof(DelayedCallObject, args), READONLY, NULL},
    {"kw", T_OBJECT_EX, offsetof(DelayedCallObject, kw), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef delayed_getset[] = {
    {"seconds", (getter)delayed_get_seconds, NULL, "The clock it goes by.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot delayed_slots[] = {
    {Py_tp_doc, "What a reactor's callLater() returns."},
    {Py_tp_dealloc, delayed_dealloc},
    {Py_tp_traverse, delayed_traverse},
    {Py_tp_clear, delayed_clear},
    {Py_tp_repr, delayed_repr},
    {Py_tp_richcompare, delayed_compare},
    {Py_tp_hash, _Py_HashPointer},
    {Py_tp_methods, delayed_methods},
    {Py_tp_members, delayed_members},
    {Py_tp_getset, delayed_getset},
    {0, NULL},
};

PyType_Spec delayed_spec = {
    .name = "becket._becket.DelayedCall",
    .basicsize = sizeof(DelayedCallObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = delayed_slots,
};

/* ---- What is asked of a reactor ---- */

/* Timers(loop, reactor.__dict__, seconds, report, twisted.internet.base.DelayedCall) */
static PyObject *timers_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs)) {
    module_state *state = state_of_type(type);
    PyObject *loop, *reactor, *seconds, *reporter, *twisted;
    if (state == NULL || !PyArg_ParseTuple(args, "O!O!OOO:Timers", state->loop_type, &loop,
                                           &PyDict_Type, &reactor, &seconds, &reporter, &twisted))
        return NULL;
    TimersObject *self = (TimersObject *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->loop = (LoopObject *)Py_NewRef(loop);
    self->reactor = Py_NewRef(reactor);
    self->seconds = Py_NewRef(seconds);
    self->report = Py_NewRef(reporter);
    self->twisted = Py_NewRef(twisted);
    return (PyObject *)self;
}

/* args: what is to be called, and its arguments, n in all; names: of the last of them. */
static int take_arguments(DelayedCallObject *c, PyObject *const *args, Py_ssize_t n,
                          PyObject *names) {
    if (!PyCallable_Check(args[0])) {
        PyErr_Format(PyExc_AssertionError, "%R is not callable", args[0]);
        return -1;
    }
    c->func = Py_NewRef(args[0]);
    c->args = PyTuple_New(n - 1);
    c->kw = c->args != NULL ? PyDict_New() : NULL;
    if (c->kw == NULL)
        return -1;
    for (Py_ssize_t i = 1; i < n; i++)
        PyTuple_SET_ITEM(c->args, i - 1, Py_NewRef(args[i]));
    for (Py_ssize_t i = 0; names != NULL && i < PyTuple_GET_SIZE(names); i++)
        if (PyDict_SetItem(c->kw, PyTuple_GET_ITEM(names, i), args[n + i]) < 0)
            return -1;
    return 0;
}

static DelayedCallObject *make(TimersObject *self, PyObject *const *args, Py_ssize_t n,
                               PyObject *names) {
    PyTypeObject *type = self->loop->state->delayed_type;
    DelayedCallObject *c = (DelayedCallObject *)type->tp_alloc(type, 0);
    if (c == NULL)
        return NULL;
    c->timers = (TimersObject *)Py_NewRef((PyObject *)self);
    if (take_arguments(c, args, n, names) < 0)
        Py_CLEAR(c);
    return c;
}

/* With DelayedCall.debug: the stack of who asks for the call. */
static int note_creator(const TimersObject *self, DelayedCallObject *c) {
    PyObject *debug = PyObject_GetAttr(self->twisted, self->loop->state->str_debug);
    int wanted = debug == NULL ? -1 : PyObject_IsTrue(debug);
    Py_XDECREF(debug);
    if (wanted <= 0)
        return wanted;
    PyObject *module = PyImport_ImportModule("traceback");
    c->creator = module != NULL ? PyObject_CallMethod(module, "format_stack", NULL) : NULL;
    Py_XDECREF(module);
    return c->creator == NULL ? -1 : 0;
}

static PyObject *timers_call_later(TimersObject *self, PyObject *const *args, Py_ssize_t n,
                                   PyObject *names) {
    if (n < 2)
        return PyErr_Format(PyExc_TypeError, "callLater() needs seconds and what to call");
    double now, seconds = PyFloat_AsDouble(args[0]);
    if ((seconds == -1.0 && PyErr_Occurred()) || loop_check_open(self->loop) < 0)
        return NULL;
    if (!(seconds >= 0))
        return PyErr_Format(PyExc_AssertionError, "%R is not greater than or equal to 0 seconds",
                            args[0]);
    DelayedCallObject *c = make(self, args + 1, n - 1, names);
    if (c == NULL)
        return NULL;
    c->seconds = Py_XNewRef(PyDict_GetItem(self->reactor, self->loop->state->str_seconds));
    if (note_creator(self, c) < 0 || now_of(c, &now) < 0 || loop_check_open(self->loop) < 0 ||
        start(c, seconds) < 0) {
        Py_DECREF((PyObject *)c);
        return NULL;
    }
    c->time = now + seconds;
    return Py_NewRef((PyObject *)c); /* one for the heap, one for the caller */
}

static PyObject *timers_call_from_thread(TimersObject *self, PyObject *const *args, Py_ssize_t n,
                                         PyObject *names) {
    if (n < 1)
        return PyErr_Format(PyExc_TypeError, "callFromThread() needs what to call");
    DelayedCallObject *c = loop_check_open(self->loop) < 0 ? NULL : make(self, args, n, names);
    if (c == NULL)
        return NULL;
    if (bring(self, c) < 0) {
        Py_DECREF((PyObject *)c);
        return NULL;
    }
    Py_RETURN_NONE;
}

/* pending() -> [DelayedCall]: those that are still to be called. */
static PyObject *timers_pending(TimersObject *self, PyObject *Py_UNUSED(ignored)) {
    PyObject *list = PyList_New(0);
    const bk_loop *core = self->loop->core;
    for (uint32_t i = 0; list != NULL && core != NULL && i < core->timer_count; i++) {
        const bk_timer *timer = core->timers[i].timer;
        if (timer == NULL || timer->fn != due || ((DelayedCallObject *)timer->arg)->timers != self)
            continue;
        if (PyList_Append(list, (PyObject *)timer->arg) < 0)
            Py_CLEAR(list);
    }
    return list;
}

/* run_due(): call what was brought and what is due now, out of turn: from within a turn no other
   can be made. */
static PyObject *timers_run_due(TimersObject *self, PyObject *Py_UNUSED(ignored)) {
    (void)call_brought(self);
    PyObject *list = timers_pending(self, NULL);
    double now = wall_seconds();
    for (Py_ssize_t i = 0; list != NULL && i < PyList_GET_SIZE(list); i++) {
        DelayedCallObject *c = (DelayedCallObject *)PyList_GET_ITEM(list, i);
        if (c->timer.place == 0 || c->time + c->delayed > now)
            continue;
        stop(c);
        call(c);
    }
    Py_XDECREF(list);
    Py_RETURN_NONE;
}

static int timers_traverse(TimersObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT((PyObject *)self->loop);
    Py_VISIT(self->reactor);
    Py_VISIT(self->seconds);
    Py_VISIT(self->report);
    for (DelayedCallObject *c = self->brought; c != NULL; c = c->next)
        Py_VISIT((PyObject *)c);
    Py_VISIT(self->twisted);
    return 0;
}

/* The loop stays: calls that others still hold refer to it. */
static int timers_clear(TimersObject *self) {
    Py_CLEAR(self->reactor);
    forget_brought(self);
    return 0;
}

static void timers_dealloc(TimersObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    timers_clear(self);
    Py_CLEAR(self->seconds);
    Py_CLEAR(self->report);
    Py_CLEAR(self->twisted);
    Py_CLEAR(self->loop);
    type->tp_free(self);
    Py_DECREF(type);
}

#define FAST(function) ((PyCFunction)(void (*)(void))(function))

static PyMethodDef timers_methods[] = {
    {"call_later", FAST(timers_call_later), METH_FASTCALL | METH_KEYWORDS,
     "call_later(seconds, callable, *args, **kwargs) -> DelayedCall"},
    {"call_from_thread", FAST(timers_call_from_thread), METH_FASTCALL | METH_KEYWORDS,
     "call_from_thread(callable, *args, **kwargs)\n\nOn the loop's thread, from any."},
    {"pending", (PyCFunction)timers_pending, METH_NOARGS, NULL},
    {"run_due", (PyCFunction)timers_run_due, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot timers_slots[] = {
    {Py_tp_doc,
     "Timers(loop, reactor_dict, seconds, report, twisted): what a reactor has of time."},
    {Py_tp_new, timers_new},
    {Py_tp_dealloc, timers_dealloc},
    {Py_tp_traverse, timers_traverse},
    {Py_tp_clear, timers_clear},
    {Py_tp_methods, timers_methods},
    {0, NULL},
};

PyType_Spec timers_spec = {
    .name = "becket._becket.Timers",
    .basicsize = sizeof(TimersObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = timers_slots,
};
