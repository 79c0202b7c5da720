/*
 * loop.c: the C half of becket.EventLoop: scheduling, watching descriptors, running. The other half
 * is python/becket/loop.py, which derives from this class.
 */
#include "becket_py.h"

#include <math.h>
#include <structmember.h>

/* ---- Errors ---- */

/* Codes with an errno become the OSError that Python gives for it; ours keep their words. */
PyObject *exception_of(int code) {
    if (code == -ENOMEM)
        return PyObject_CallNoArgs(PyExc_MemoryError);
    int number = code > -4000 ? -code : code == BK_ENAME ? EHOSTUNREACH : EINVAL;
    const char *text = code > -4000 ? strerror(number) : bk_strerror(code);
    return PyObject_CallFunction(PyExc_OSError, "is", number, text);
}

int loop_raise(int code) {
    PyObject *e = exception_of(code);
    if (e != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(e), e);
        Py_DECREF(e);
    }
    return -1;
}

static void set_forked_error(void) {
    PyErr_SetString(PyExc_RuntimeError,
                    "This event loop is of the process that forked this one, and shares its "
                    "descriptors with it: make a new loop here");
}

int loop_check_open(LoopObject *loop) {
    if (loop->core != NULL && !loop->ending && !loop->is_parents)
        return 0;
    if (loop->is_parents)
        set_forked_error();
    else
        PyErr_SetString(PyExc_RuntimeError, "Event loop is closed");
    return -1;
}

/* The exception that is set ends the run, and what is ready stays queued. The first one counts. */
static void end_run(LoopObject *loop) {
    PyObject *type, *value, *tb;
    PyErr_Fetch(&type, &value, &tb);
    PyErr_NormalizeException(&type, &value, &tb);
    if (tb != NULL)
        PyException_SetTraceback(value, tb);
    Py_XDECREF(type);
    Py_XDECREF(tb);
    if (loop->error == NULL)
        loop->error = value;
    else
        Py_DECREF(value);
    if (loop->core != NULL)
        bk_loop_break(loop->core);
}

/* A callback that raises SystemExit or KeyboardInterrupt ends the run, as in asyncio. */
bool loop_take_fatal(LoopObject *loop) {
    if (!PyErr_ExceptionMatches(PyExc_SystemExit) &&
        !PyErr_ExceptionMatches(PyExc_KeyboardInterrupt))
        return false;
    end_run(loop);
    return true;
}

static int add_to(PyObject *dict, const char *key, PyObject *value) {
    return value == NULL ? 0 : PyDict_SetItemString(dict, key, value);
}

/* The exception that is set goes to loop.call_exception_handler(). */
void loop_report(LoopObject *loop, const char *message, PyObject *transport, PyObject *protocol,
                 PyObject *handle) {
    if (loop_take_fatal(loop))
        return;
    PyObject *type, *value, *tb;
    PyErr_Fetch(&type, &value, &tb);
    PyErr_NormalizeException(&type, &value, &tb);
    if (tb != NULL)
        PyException_SetTraceback(value, tb);
    PyObject *text = PyUnicode_FromString(message), *context = PyDict_New(), *result = NULL;
    PyObject *traceback = handle != NULL ? ((HandleObject *)handle)->traceback : NULL;
    if (text != NULL && context != NULL && add_to(context, "message", text) == 0 &&
        add_to(context, "exception", value) == 0 && add_to(context, "transport", transport) == 0 &&
        add_to(context, "protocol", protocol) == 0 && add_to(context, "handle", handle) == 0 &&
        add_to(context, "source_traceback", traceback) == 0)
        result = PyObject_CallMethodOneArg((PyObject *)loop,
                                           loop->state->str_call_exception_handler, context);
    if (result == NULL && !loop_take_fatal(loop))
        PyErr_WriteUnraisable((PyObject *)loop);
    Py_XDECREF(result);
    Py_XDECREF(context);
    Py_XDECREF(text);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(tb);
}

/* ---- The core's hooks ---- */

static void before_wait(void *arg) {
    LoopObject *self = arg;
    if (self->turner != 0)
        drive_before_wait(self);
    self->thread = PyEval_SaveThread();
}

static void after_wait(void *arg) {
    LoopObject *self = arg;
    PyEval_RestoreThread(self->thread);
    self->thread = NULL;
    if (self->turner != 0)
        drive_after_wait(self);
    /* Handlers of signals run here. What they raise comes out of the run, as out of any call. */
    if (PyErr_CheckSignals() < 0)
        end_run(self);
}

static const bk_loop_hooks hooks = {
    .size = sizeof hooks,
    .before_wait = before_wait,
    .after_wait = after_wait,
    .unknown_scheme = scheme_unknown,
};

static void log_line(void *arg, int code, const char *text) {
    LoopObject *self = arg;
    (void)code;
    PyObject *result = PyObject_CallMethod(self->state->logger, "warning", "ss", "%s", text);
    if (result == NULL)
        PyErr_WriteUnraisable((PyObject *)self);
    Py_XDECREF(result);
}

/* ---- Calls from other threads ---- */

int loop_post(LoopObject *loop, bk_fn fn, PyObject *arg) {
    int code;
    Py_BEGIN_CRITICAL_SECTION(loop); /* it is not closed meanwhile: end_core() */
    code = loop_check_open(loop);
    if (code == 0 && (code = bk_loop_post(loop->core, fn, arg)) < 0)
        (void)loop_raise(code);
    Py_END_CRITICAL_SECTION();
    return code < 0 ? -1 : 0;
}

#ifdef BK_FREE_THREADING
/* call_soon_threadsafe(), on the loop's thread. Where there is no memory to queue it, it is called
   out of turn. */
static void queue_posted(void *arg) {
    HandleObject *h = arg;
    if (h->loop->ending)
        handle_drop(h);
    else if (bk_loop_soon(h->loop->core, handle_run, h) < 0)
        handle_run(h);
}

/* What other threads have brought is in the queue. */
static void take_posted(bk_loop *core) {
    if (atomic_load(&core->posted))
        bk_posts_call(core, queue_posted);
}

static int visit_posted(bk_loop *core, visitproc visit, void *arg) {
    int code = 0;
    bk_lock_take(core->lock); /* no Python runs under it: whoever has it does not keep it */
    for (const bk_post *post = core->posts; post != NULL && code == 0; post = post->next)
        if (post->call.fn == queue_posted)
            code = visit(post->call.arg, arg);
    bk_lock_drop(core->lock);
    return code;
}
#else
static void take_posted(bk_loop *core) {
    (void)core;
}

static int visit_posted(bk_loop *core, visitproc visit, void *arg) {
    (void)core, (void)visit, (void)arg;
    return 0;
}
#endif

/* ---- Life ---- */

static PyObject *loop_new(PyTypeObject *type, PyObject *Py_UNUSED(args),
                          PyObject *Py_UNUSED(kwargs)) {
    module_state *state = state_of_type(type);
    if (state == NULL)
        return NULL;
    LoopObject *self = (LoopObject *)type->tp_alloc(type, 0);
    if (self != NULL)
        self->state = state;
    return (PyObject *)self;
}

static int loop_init(LoopObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"notifier", NULL};
    const char *notifier = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|z:Loop", names, &notifier))
        return -1;
    if (self->core != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "this loop was initialised before");
        return -1;
    }
    bk_loop_options options = {.size = sizeof options,
                               .notifier = notifier,
                               .hooks = &hooks,
                               .log = log_line,
                               .arg = self};
    bk_loop *core;
    int code = bk_loop_new(&options, &core);
    if (code >= 0)
        self->core = core;
    if (code == BK_ENOTIFIER) {
        char known[120] = "";
        for (const bk_notifier_ops *const *all = bk_notifiers(); *all != NULL; all++) {
            strncat(known, known[0] ? ", " : "", sizeof known - strlen(known) - 1);
            strncat(known, (*all)->name, sizeof known - strlen(known) - 1);
        }
        const char *source = notifier != NULL ? "notifier" : "BECKET_NOTIFIER";
        const char *name = notifier != NULL ? notifier : getenv("BECKET_NOTIFIER");
        PyErr_Format(PyExc_ValueError, "%s: there is no notifier '%s' here; there are: %s", source,
                     name != NULL ? name : "", known);
        return -1;
    }
    return code < 0 ? loop_raise(code) : 0;
}

static bk_timer *next_handle_timer(bk_loop *core) {
    for (uint32_t i = core->timer_count; i-- > 0;) {
        bk_timer *timer = core->timers[i].timer;
        if (timer != NULL && (timer->fn == handle_run || delayed_is_ours(timer->fn)))
            return timer;
    }
    return NULL;
}

/* What the queues of the core own of ours is given back, uncalled. */
static void drop_handles(LoopObject *self) {
    bk_loop *core = self->core;
    /* Each is out of the queue before it goes: what goes with it may run Python, the collector too.
       The core's own calls stay. */
    for (uint32_t i = 0; i < core->ring_count; i++) {
        bk_call *call = &core->ring[(core->ring_head + i) & core->ring_mask];
        bk_fn fn = call->fn;
        bool delayed = delayed_is_ours(fn), wire = wire_call_is_ours(fn);
        if (fn != handle_run && !delayed && !wire)
            continue;
        call->fn = bk_release_static;
        if (delayed)
            delayed_drop(fn, call->arg);
        else if (wire)
            Py_DECREF((PyObject *)call->arg);
        else
            handle_drop(call->arg);
    }
    for (bk_timer *timer; (timer = next_handle_timer(core)) != NULL;) {
        PyObject *handle = timer->arg;
        bk_timer_stop(core, timer);
        Py_DECREF(handle);
    }
}

static void watch_run(void *arg, unsigned events);

static void drop_watches(LoopObject *self) {
    for (uint32_t fd = 0; fd < self->core->watch_count; fd++)
        for (int slot = 0; slot < 2; slot++) {
            bk_watch *w = &self->core->watches[fd];
            PyObject *handle = w->fn[slot] == watch_run ? w->arg[slot] : NULL;
            if (handle == NULL)
                continue;
            (void)bk_watch_set(self->core, (int)fd, slot ? BK_WRITE : BK_READ, NULL, NULL);
            Py_DECREF(handle);
        }
}

static void end_core(LoopObject *self) {
    bool again;
    Py_BEGIN_CRITICAL_SECTION(self);
    again = self->core == NULL || self->ending;
    self->ending = true; /* from here on nobody posts */
    Py_END_CRITICAL_SECTION();
    if (again)
        return;
    bk_posts_call(self->core, away_come_back); /* which give back what they own */
    take_posted(self->core);
    drop_handles(self);
    drop_watches(self);
    bk_loop *core = self->core;
    (void)bk_loop_free(core);
    self->core = NULL;
    PyMem_Free(self->transports);
    self->transports = NULL;
    self->transport_room = 0;
    addresses_free(self);
    Py_CLEAR(self->kept);
    Py_CLEAR(self->files);
}

static PyObject *loop_check_closed(LoopObject *self, PyObject *Py_UNUSED(ignored)) {
    if (loop_check_open(self) < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* Whether it may be closed: another thread that uses the core is waited for, not one that runs it.
 */
static bool is_idle(LoopObject *self) {
    bool idle;
    Py_BEGIN_CRITICAL_SECTION(self);
    idle = self->inside != PyThread_get_thread_ident();
    if (idle)
        drive_await(self);
    bk_loop *core = self->core;
    idle = idle && (core == NULL || !core->turning);
    Py_END_CRITICAL_SECTION();
    return idle;
}

static PyObject *loop_close_core(LoopObject *self, PyObject *Py_UNUSED(ignored)) {
    if (self->is_parents)
        Py_RETURN_NONE;
    if (!is_idle(self)) {
        PyErr_SetString(PyExc_RuntimeError, "Cannot close a running event loop");
        return NULL;
    }
    end_core(self);
    Py_CLEAR(self->spare);
    Py_CLEAR(self->last);
    Py_CLEAR(self->keyword);
    Py_RETURN_NONE;
}

/* _visits(end) -> int: how many connections a server has here; for one that ends, those that never
   said anything are closed (1), or all that are left are cut (2). */
static PyObject *loop_visits(LoopObject *self, PyObject *arg) {
    enum { COUNT, CLOSE_SILENT, CUT };
    long end = PyLong_AsLong(arg), count = 0;
    if (end == -1 && PyErr_Occurred())
        return NULL;
    for (bk_stream *s = self->core == NULL ? NULL : self->core->streams; s != NULL; s = s->next) {
        const bk_visit *v = s->visit;
        if (v == NULL || s->flags & BK_STREAM_CLOSED)
            continue;
        count++;
        bool silent = !v->away && v->bytes_in == 0 && v->bytes_out == 0 && s->queued == 0;
        if (end == CUT)
            bk_stream_fail(s, -ECANCELED);
        else if (end == CLOSE_SILENT && v->away)
            away_end_silent(s);
        else if (end == CLOSE_SILENT && silent)
            bk_stream_close(s);
    }
    return PyLong_FromLong(count);
}

static int loop_traverse(LoopObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->error);
    Py_VISIT(self->lent);
    Py_VISIT(self->kept);
    Py_VISIT(self->files);
    Py_VISIT(self->keyword);
    if (self->core == NULL)
        return 0;
    bk_loop *core = self->core;
    for (uint32_t i = 0; i < core->ring_count; i++) {
        bk_call *call = &core->ring[(core->ring_head + i) & core->ring_mask];
        if (delayed_is_ours(call->fn) || wire_call_is_ours(call->fn))
            Py_VISIT((PyObject *)call->arg);
        if (call->fn != handle_run)
            continue;
        /* One that only the queue holds, and the collector does not know, is a part of us. */
        HandleObject *h = call->arg;
        int code = Py_REFCNT(h) == 1 && !PyObject_GC_IsTracked((PyObject *)h)
                       ? handle_traverse(h, visit, arg)
                       : visit((PyObject *)h, arg);
        if (code != 0)
            return code;
    }
    int posted = visit_posted(core, visit, arg);
    if (posted != 0)
        return posted;
    for (uint32_t i = 0; i < core->timer_count; i++) {
        const bk_timer *timer = core->timers[i].timer;
        if (timer != NULL && (timer->fn == handle_run || delayed_is_ours(timer->fn)))
            Py_VISIT((PyObject *)timer->arg);
    }
    for (uint32_t fd = 0; fd < core->watch_count; fd++)
        for (int slot = 0; slot < 2; slot++)
            if (core->watches[fd].fn[slot] == watch_run)
                Py_VISIT((PyObject *)core->watches[fd].arg[slot]);
    for (const bk_stream *s = core->streams; s != NULL; s = s->next)
        if (transport_is_ours(s) || wire_is_ours(s) || connector_of(s) != NULL)
            Py_VISIT((PyObject *)s->user);
        else if (smtp_client_of(s) != NULL)
            Py_VISIT(smtp_client_of(s));
    for (const bk_datagram *d = core->datagrams; d != NULL; d = d->next)
        if (datagram_is_ours(d))
            Py_VISIT((PyObject *)d->user);
    return 0;
}

static int loop_clear(LoopObject *self) {
    end_core(self);
    Py_CLEAR(self->error);
    Py_CLEAR(self->keyword);
    loop_return_lent(self);
    return 0;
}

static void loop_dealloc(LoopObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (self->weakrefs != NULL)
        PyObject_ClearWeakRefs((PyObject *)self);
    end_core(self);
    Py_CLEAR(self->error);
    loop_return_lent(self);
    Py_CLEAR(self->spare);
    Py_CLEAR(self->last);
    Py_CLEAR(self->keyword);
    type->tp_free(self);
    Py_DECREF(type);
}

/* ---- Scheduling ---- */

/* One of METH_FASTCALL | METH_KEYWORDS functions that take (…, *args, context=None). */
static int find_context(PyObject *const *args, Py_ssize_t n, PyObject *names,
                        const PyObject *str_context, PyObject **ret_context) {
    *ret_context = NULL;
    Py_ssize_t count = names == NULL ? 0 : PyTuple_GET_SIZE(names);
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *name = PyTuple_GET_ITEM(names, i);
        if (name != str_context && PyUnicode_CompareWithASCIIString(name, "context") != 0) {
            PyErr_Format(PyExc_TypeError, "unexpected keyword argument '%U': only 'context'", name);
            return -1;
        }
        *ret_context = args[n + i];
    }
    PyObject *context = *ret_context;
    if (context != NULL && context != Py_None && !PyContext_CheckExact(context)) {
        PyErr_Format(PyExc_TypeError, "context must be a contextvars.Context or None, not %.100s",
                     Py_TYPE(context)->tp_name);
        return -1;
    }
    return 0;
}

static int need_args(const char *function, Py_ssize_t n, Py_ssize_t least, const char *names) {
    if (n >= least)
        return 0;
    PyErr_Format(PyExc_TypeError, "%s() needs %s", function, names);
    return -1;
}

static int check_debug(LoopObject *self, PyObject *callback, const char *method) {
    if (!self->debug)
        return 0;
    PyObject *result = PyObject_CallMethod((PyObject *)self, "_check_call", "Os", callback, method);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

static int queue(LoopObject *self, HandleObject *h) {
    /* Making it may have run the collector, in which other threads have their turn. */
    if (loop_check_open(self) < 0)
        return -1;
    take_posted(self->core);
    int code = bk_loop_soon(self->core, handle_run, h);
    return code < 0 ? loop_raise(code) : 0;
}

/* A handle with two references: for the queue, and for the caller. */
static HandleObject *make_handle(LoopObject *self, PyObject *const *args, Py_ssize_t n,
                                 PyObject *names, const char *method) {
    PyObject *context;
    if (need_args(method, n, 1, "a callback") < 0 || loop_check_open(self) < 0 ||
        find_context(args, n, names, self->state->str_context, &context) < 0 ||
        check_debug(self, args[0], method) < 0)
        return NULL;
    HandleObject *h = handle_new(self, args[0], args + 1, n - 1, context);
    return (HandleObject *)Py_XNewRef((PyObject *)h);
}

/* It was queued, or could not be. */
static PyObject *queued(HandleObject *h, int code) {
    if (code == 0)
        return (PyObject *)h;
    Py_DECREF((PyObject *)h);
    Py_DECREF((PyObject *)h);
    return NULL;
}

static PyObject *loop_call_soon(LoopObject *self, PyObject *const *args, Py_ssize_t n,
                                PyObject *names) {
    HandleObject *h = make_handle(self, args, n, names, "call_soon");
    if (h != NULL && self->keeps_next) {
        self->keeps_next = false;
        self->next = h; /* the queue's reference */
        return (PyObject *)h;
    }
    return h != NULL ? queued(h, queue(self, h)) : NULL;
}

#ifdef BK_FREE_THREADING
/* It is in the ready queue when the loop's own thread next queues or turns: so the order of calls
   holds. */
static int queue_from_anywhere(LoopObject *self, HandleObject *h) {
    return loop_post(self, queue_posted, (PyObject *)h);
}
#else
/* The GIL keeps others from the ready queue, as the loop lets go of it in a wait only; so the order
   of calls holds among all threads. */
static int queue_from_anywhere(LoopObject *self, HandleObject *h) {
    int code = queue(self, h);
    if (code == 0)
        bk_loop_wake(self->core);
    return code;
}
#endif

static PyObject *loop_call_soon_threadsafe(LoopObject *self, PyObject *const *args, Py_ssize_t n,
                                           PyObject *names) {
    HandleObject *h = make_handle(self, args, n, names, "call_soon_threadsafe");
    return h != NULL ? queued(h, queue_from_anywhere(self, h)) : NULL;
}

static double now_seconds(LoopObject *Py_UNUSED(self)) {
    bk_os *os = bk_os_default();
    return (double)os->clock(os) / 1e9;
}

static PyObject *schedule_at(LoopObject *self, double when, PyObject *const *args, Py_ssize_t n,
                             PyObject *context) {
    if (isnan(when)) {
        PyErr_SetString(PyExc_ValueError, "the time of a timer must not be NaN");
        return NULL;
    }
    TimerHandleObject *h = timer_handle_new(self, when, args[0], args + 1, n - 1, context);
    if (h == NULL)
        return NULL;
    if (loop_check_open(self) < 0) {
        Py_DECREF((PyObject *)h);
        return NULL;
    }
    /* Rounded up, so that loop.time() >= when holds when it fires; far future is for ever. */
    double ns = ceil(when * 1e9);
    int64_t core_when = ns >= 9.2e18 ? INT64_MAX : ns <= 0 ? 0 : (int64_t)ns;
    int code = bk_timer_start(self->core, &h->timer, core_when, handle_run, h);
    if (code < 0) {
        Py_DECREF((PyObject *)h);
        loop_raise(code);
        return NULL;
    }
    return Py_NewRef((PyObject *)h); /* one for the heap, one for the caller */
}

static PyObject *call_timed(LoopObject *self, PyObject *const *args, Py_ssize_t n, PyObject *names,
                            bool relative) {
    const char *method = relative ? "call_later" : "call_at";
    PyObject *context;
    if (need_args(method, n, 2, "a time in seconds and a callback") < 0)
        return NULL;
    if (args[0] == Py_None) {
        PyErr_SetString(PyExc_TypeError,
                        relative ? "delay must not be None" : "when cannot be None");
        return NULL;
    }
    double when = PyFloat_AsDouble(args[0]);
    if ((when == -1.0 && PyErr_Occurred()) || loop_check_open(self) < 0 ||
        find_context(args, n, names, self->state->str_context, &context) < 0 ||
        check_debug(self, args[1], method) < 0)
        return NULL;
    return schedule_at(self, relative ? now_seconds(self) + when : when, args + 1, n - 1, context);
}

static PyObject *loop_call_later(LoopObject *self, PyObject *const *args, Py_ssize_t n,
                                 PyObject *names) {
    return call_timed(self, args, n, names, true);
}

static PyObject *loop_call_at(LoopObject *self, PyObject *const *args, Py_ssize_t n,
                              PyObject *names) {
    return call_timed(self, args, n, names, false);
}

static PyObject *loop_time(LoopObject *self, PyObject *Py_UNUSED(ignored)) {
    return PyFloat_FromDouble(now_seconds(self));
}

/* ---- Running ---- */

/* None; or what ended the run is raised: what a callback, a handler of a signal, or the core has.
 */
static PyObject *run_result(LoopObject *self, int code) {
    if (self->error != NULL) {
        PyObject *e = self->error;
        self->error = NULL;
        PyErr_SetObject((PyObject *)Py_TYPE(e), e);
        Py_DECREF(e);
        return NULL;
    }
    if (code < 0) {
        loop_raise(code);
        return NULL;
    }
    Py_RETURN_NONE;
}

/* One turn, for who runs us by hand; its being stopped is in _stopping alone then. */
static PyObject *run_turn(LoopObject *self) {
    int code = bk_loop_turn(self->core, self->core->stopping ? 0 : -1);
    if (self->core != NULL)
        self->core->stopping = false;
    return run_result(self, code);
}

/* Called by asyncio.BaseEventLoop.run_forever(), which goes on until _stopping is set: under our
   run_forever() once, for all turns. */
static PyObject *loop_run_once(LoopObject *self, PyObject *Py_UNUSED(ignored)) {
    if (loop_check_open(self) < 0)
        return NULL;
    if (!self->runs_all)
        return run_turn(self);
    int code = bk_loop_run(self->core);
    if (PyObject_SetAttr((PyObject *)self, self->state->str__stopping, Py_True) < 0)
        return NULL;
    return run_result(self, code);
}

/* _turn(seconds): one turn, for who has a loop of his own: waits at most so long (None: for ever)
   for something to do. Called by becket.asyncore. */
static PyObject *loop_turn(LoopObject *self, PyObject *arg) {
    double seconds = arg == Py_None ? -1.0 : PyFloat_AsDouble(arg);
    if ((seconds == -1.0 && PyErr_Occurred()) || loop_check_open(self) < 0)
        return NULL;
    double ns = ceil(seconds * 1e9);
    int64_t timeout = arg == Py_None || ns >= 9.2e18 ? -1 : ns > 0 ? (int64_t)ns : 0;
    return run_result(self, bk_loop_turn(self->core, timeout));
}

static PyObject *loop_stop(LoopObject *self, PyObject *Py_UNUSED(ignored)) {
    if (self->core != NULL)
        bk_loop_stop(self->core);
    if (PyObject_SetAttr((PyObject *)self, self->state->str__stopping, Py_True) < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* {"loop": self}, for classes that want keywords in a dictionary: making it took a third of the
   time of making a future. It refers to the loop that has it, and so goes when that is closed. */
static PyObject *loop_keyword(LoopObject *self) {
    if (self->keyword != NULL)
        return Py_NewRef(self->keyword);
    PyObject *keyword = PyDict_New();
    if (keyword != NULL && PyDict_SetItem(keyword, self->state->str_loop, (PyObject *)self) < 0)
        Py_CLEAR(keyword);
    if (self->core != NULL)
        self->keyword = Py_XNewRef(keyword);
    return keyword;
}

static PyObject *call_with_loop(LoopObject *self, PyObject *type, PyObject *args) {
    PyObject *keyword = args == NULL ? NULL : loop_keyword(self);
    PyObject *result = keyword == NULL ? NULL : PyObject_Call(type, args, keyword);
    Py_XDECREF(keyword);
    Py_XDECREF(args);
    return result;
}

static PyObject *loop_create_future(LoopObject *self, PyObject *Py_UNUSED(ignored)) {
    return call_with_loop(self, self->state->future_type, PyTuple_New(0));
}

/* The common case, a coroutine and nothing else, is Task(coro, loop=self); for the rest there is
   asyncio.BaseEventLoop.create_task(). */
static PyObject *loop_create_task(LoopObject *self, PyObject *const *args, Py_ssize_t n,
                                  PyObject *names) {
    if (n == 1 && names == NULL && !self->has_task_factory && !self->debug && self->core != NULL)
        return call_with_loop(self, self->state->task_type, PyTuple_Pack(1, args[0]));
    Py_ssize_t count = n + (names == NULL ? 0 : PyTuple_GET_SIZE(names));
    PyObject **call = PyMem_Malloc((size_t)(count + 1) * sizeof(PyObject *));
    if (call == NULL)
        return PyErr_NoMemory();
    call[0] = (PyObject *)self;
    if (count > 0)
        memcpy(call + 1, args, (size_t)count * sizeof(PyObject *));
    PyObject *task = PyObject_Vectorcall(self->state->create_task, call, (size_t)n + 1, names);
    PyMem_Free(call);
    return task;
}

/* The first step is what Task() queues; it is taken from there, and made at once. (Python 3.12 can
   do that by itself.) */
PyObject *loop_start_task(LoopObject *self, PyObject *coroutine, PyObject *context) {
    PyObject *args[] = {NULL, coroutine, (PyObject *)self, context};
    PyObject *names = self->state->task_names;
    bool plain = !self->has_task_factory && !self->debug && context != NULL;
    if (!plain)
        return PyObject_CallMethod((PyObject *)self, "create_task", "O", coroutine);
    self->keeps_next = true;
    PyObject *task = PyObject_Vectorcall(self->state->task_type, args + 1,
                                         1 | PY_VECTORCALL_ARGUMENTS_OFFSET, names);
    HandleObject *h = self->next;
    self->keeps_next = false;
    self->next = NULL;
    if (h != NULL)
        handle_run(h);
    return task;
}

static PyObject *loop_note_task_factory(LoopObject *self, PyObject *arg) {
    self->has_task_factory = arg != Py_None;
    Py_RETURN_NONE;
}

/* ---- Watching descriptors ---- */

static void watch_run(void *arg, unsigned events) {
    HandleObject *h = (HandleObject *)Py_NewRef((PyObject *)arg); /* it may remove itself */
    (void)events;
    handle_call(h);
    Py_DECREF((PyObject *)h);
}

static HandleObject *watched(LoopObject *self, int fd, unsigned direction) {
    if (fd < 0 || (uint32_t)fd >= self->core->watch_count)
        return NULL;
    bk_watch *w = &self->core->watches[fd];
    int slot = direction == BK_WRITE;
    return w->fn[slot] == watch_run ? w->arg[slot] : NULL;
}

static bool is_watched(LoopObject *self, int fd) {
    return watched(self, fd, BK_READ) != NULL || watched(self, fd, BK_WRITE) != NULL;
}

/* The core's own watches, of a transport that is closing, or a listener, are not for others. */
static int check_free(LoopObject *self, int fd, unsigned direction) {
    if ((uint32_t)fd >= self->core->watch_count)
        return 0;
    bk_watch_fn fn = self->core->watches[fd].fn[direction == BK_WRITE];
    if (fn == NULL || fn == watch_run)
        return 0;
    PyErr_Format(PyExc_RuntimeError, "File descriptor %d is used by a transport or a server", fd);
    return -1;
}

/* What is watched stays alive, and is still known by itself when it has been closed without our
   being told: as with selectors, whoever closed it can remove its watches afterwards. */
static int keep_file(LoopObject *self, PyObject *file, int fd) {
    if (PyLong_Check(file))
        return 0;
    if (self->files == NULL && (self->files = PyDict_New()) == NULL)
        return -1;
    PyObject *number = PyLong_FromLong(fd);
    int code = number == NULL || PyDict_SetDefault(self->files, number, file) == NULL ? -1 : 0;
    Py_XDECREF(number);
    return code;
}

static void let_file_go(LoopObject *self, int fd) {
    PyObject *number = self->files == NULL ? NULL : PyLong_FromLong(fd);
    if (number != NULL && PyDict_Contains(self->files, number) == 1)
        (void)PyDict_DelItem(self->files, number);
    if (PyErr_Occurred()) /* no memory: it is let go with the loop */
        PyErr_WriteUnraisable((PyObject *)self);
    Py_XDECREF(number);
}

/* The descriptor of what may be closed by now; -1 with an error: it has none, and had none. */
static int file_descriptor(LoopObject *self, PyObject *file) {
    int fd = PyObject_AsFileDescriptor(file);
    if (fd >= 0 || self->files == NULL || !PyErr_ExceptionMatches(PyExc_ValueError))
        return fd;
    PyObject *number, *kept;
    for (Py_ssize_t at = 0; PyDict_Next(self->files, &at, &number, &kept);)
        if (kept == file) {
            PyErr_Clear();
            return (int)PyLong_AsLong(number);
        }
    return -1;
}

static PyObject *add_watch(LoopObject *self, PyObject *const *args, Py_ssize_t n,
                           unsigned direction) {
    if (need_args("_add_reader", n, 2, "a descriptor and a callback") < 0 ||
        loop_check_open(self) < 0)
        return NULL;
    int fd = PyObject_AsFileDescriptor(args[0]);
    if (fd < 0)
        return NULL;
    HandleObject *h = handle_new(self, args[1], args + 2, n - 2, NULL);
    if (h == NULL)
        return NULL;
    if (!PyObject_GC_IsTracked((PyObject *)h))
        PyObject_GC_Track(h);
    /* Asked again: fileno() may have done anything. */
    if (loop_check_open(self) < 0 || check_free(self, fd, direction) < 0 ||
        keep_file(self, args[0], fd) < 0) {
        Py_DECREF((PyObject *)h);
        return NULL;
    }
    HandleObject *before = watched(self, fd, direction);
    int code = bk_watch_set(self->core, fd, direction, watch_run, h);
    if (code >= 0 && before == NULL)
        code = bk_watch_apply(self->core, fd);
    if (code < 0) {
        (void)bk_watch_set(self->core, fd, direction, NULL, NULL);
        if (!is_watched(self, fd))
            let_file_go(self, fd);
        Py_DECREF((PyObject *)h);
        loop_raise(code);
        return NULL;
    }
    if (before != NULL) {
        handle_cancel(before);
        Py_DECREF((PyObject *)before);
    }
    return Py_NewRef((PyObject *)h); /* one for the watch, one for the caller */
}

static PyObject *remove_watch(LoopObject *self, PyObject *arg, unsigned direction) {
    int fd = file_descriptor(self, arg);
    if (fd < 0)
        return NULL;
    if (self->core == NULL || self->is_parents)
        Py_RETURN_FALSE;
    HandleObject *h = watched(self, fd, direction);
    if (h == NULL)
        Py_RETURN_FALSE;
    (void)bk_watch_set(self->core, fd, direction, NULL, NULL);
    /* The notifier is told at once: whoever removes a watch may close the descriptor next. */
    if (self->core->watches[fd].fn[0] == NULL && self->core->watches[fd].fn[1] == NULL)
        bk_watch_forget(self->core, fd);
    if (!is_watched(self, fd))
        let_file_go(self, fd);
    handle_cancel(h);
    Py_DECREF((PyObject *)h);
    Py_RETURN_TRUE;
}

static PyObject *loop_add_reader(LoopObject *self, PyObject *const *args, Py_ssize_t n) {
    return add_watch(self, args, n, BK_READ);
}

static PyObject *loop_remove_reader(LoopObject *self, PyObject *fd) {
    return remove_watch(self, fd, BK_READ);
}

static PyObject *loop_add_writer(LoopObject *self, PyObject *const *args, Py_ssize_t n) {
    return add_watch(self, args, n, BK_WRITE);
}

static PyObject *loop_remove_writer(LoopObject *self, PyObject *fd) {
    return remove_watch(self, fd, BK_WRITE);
}

/* What is awaited of a descriptor: as selectors.EVENT_READ | EVENT_WRITE, which are BK_READ and
   BK_WRITE. */
static PyObject *loop_watching(LoopObject *self, PyObject *arg) {
    int fd = PyObject_AsFileDescriptor(arg);
    long events = 0;
    if (fd < 0)
        return NULL;
    if (self->core != NULL && (uint32_t)fd < self->core->watch_count)
        for (int slot = 0; slot < 2; slot++)
            if (self->core->watches[fd].fn[slot] != NULL)
                events |= slot ? BK_WRITE : BK_READ;
    return PyLong_FromLong(events);
}

int loop_keep(LoopObject *loop, PyObject *object) {
    PyObject *place = PyLong_FromVoidPtr(object);
    if (loop->kept == NULL)
        loop->kept = PyDict_New();
    int code = loop->kept == NULL || place == NULL ? -1 : PyDict_SetItem(loop->kept, place, object);
    Py_XDECREF(place);
    return code;
}

void loop_let_go(LoopObject *loop, PyObject *object) {
    PyObject *place = PyLong_FromVoidPtr(object);
    if (place == NULL || PyDict_DelItem(loop->kept, place) < 0)
        PyErr_WriteUnraisable((PyObject *)loop);
    Py_XDECREF(place);
}

/* ---- Which transport uses which descriptor ---- */

bool loop_owns_fd(LoopObject *loop, int fd, PyObject *transport) {
    if (fd < 0)
        return true;
    if (fd >= loop->transport_room) {
        if (transport == NULL)
            return true;
        int room = loop->transport_room ? loop->transport_room : 64;
        while (room <= fd)
            room *= 2;
        PyObject **more = PyMem_Realloc(loop->transports, (size_t)room * sizeof *more);
        if (more == NULL)
            return false;
        memset(more + loop->transport_room, 0,
               (size_t)(room - loop->transport_room) * sizeof *more);
        loop->transports = more;
        loop->transport_room = room;
    }
    loop->transports[fd] = transport;
    return true;
}

/* As asyncio's: an fd that a transport uses is not for add_reader() and sock_…(). */
static PyObject *loop_ensure_fd_no_transport(LoopObject *self, PyObject *arg) {
    int fd = file_descriptor(self, arg);
    if (fd < 0) {
        if (PyErr_ExceptionMatches(PyExc_TypeError) || PyErr_ExceptionMatches(PyExc_ValueError)) {
            PyErr_Clear();
            return PyErr_Format(
                PyExc_ValueError,
                PyLong_Check(arg) ? "Invalid file descriptor: %R" : "Invalid file object: %R", arg);
        }
        return NULL;
    }
    PyObject *t = fd < self->transport_room ? self->transports[fd] : NULL;
    PyObject *over = t == NULL ? Py_NewRef(Py_True) : PyObject_CallMethod(t, "is_closing", NULL);
    if (over == Py_False)
        PyErr_Format(PyExc_RuntimeError, "File descriptor %R is used by transport %R", arg, t);
    Py_XDECREF(over);
    return over == Py_True ? Py_NewRef(Py_None) : NULL;
}

/* ---- Transports ---- */

void loop_set_waiter(LoopObject *self, PyObject *waiter) {
    PyObject *cancelled = PyObject_CallMethodNoArgs(waiter, self->state->str_done);
    PyObject *result = NULL;
    if (cancelled == Py_False)
        result = PyObject_CallMethodOneArg(waiter, self->state->str_set_result, Py_None);
    if (PyErr_Occurred())
        PyErr_WriteUnraisable(waiter);
    Py_XDECREF(cancelled);
    Py_XDECREF(result);
}

static PyObject *loop_start_transport(LoopObject *self, PyObject *args) {
    PyObject *transport, *waiter;
    if (!PyArg_ParseTuple(args, "O!O", self->state->transport_type, &transport, &waiter))
        return NULL;
    transport_made((TransportObject *)transport);
    if (waiter != Py_None)
        loop_set_waiter(self, waiter);
    Py_RETURN_NONE;
}

static bk_transport *core_transport(LoopObject *self, int fd) {
    bk_transport *t;
    int code = bk_socket_transport(self->core, fd, &t);
    if (code < 0)
        loop_raise(code);
    return code < 0 ? NULL : t;
}

/* _new_transport(socket, protocol, server=None) -> Transport, not yet started. */
static PyObject *loop_new_transport(LoopObject *self, PyObject *args) {
    PyObject *socket, *protocol, *server = Py_None;
    if (!PyArg_ParseTuple(args, "OO|O:_new_transport", &socket, &protocol, &server) ||
        loop_check_open(self) < 0)
        return NULL;
    int fd = PyObject_AsFileDescriptor(socket);
    if (fd < 0 || loop_check_open(self) < 0)
        return NULL;
    PyObject *context = PyContext_CopyCurrent();
    TransportObject *t = context != NULL ? transport_new(self, protocol, context, server) : NULL;
    Py_XDECREF(context);
    if (t == NULL)
        return NULL;
    t->socket = Py_NewRef(socket);
    bk_transport *core = core_transport(self, fd);
    bk_stream *s;
    int code = core == NULL ? -1 : bk_stream_new_paused(self->core, core, &transport_plain, t, &s);
    if (code < 0 && core != NULL) {
        loop_raise(code);
        bk_socket_transport_disown(core);
        core->ops->close(core);
    }
    if (code < 0 || transport_attach(t, s) < 0) {
        Py_DECREF((PyObject *)t);
        return NULL;
    }
    return (PyObject *)t;
}

static bk_transport *core_pipe(LoopObject *self, int fd, bool writes) {
    int kind = self->core->os->fd_kind(self->core->os, fd);
    bk_transport *t;
    if (kind == BK_FD_FILE) {
        PyErr_SetString(PyExc_ValueError,
                        writes ? "Pipe transport is only for pipes, sockets and character devices"
                               : "Pipe transport is for pipes/sockets only.");
        return NULL;
    }
    int code =
        kind < 0 ? kind : bk_fd_transport(self->core, writes ? -1 : fd, writes ? fd : -1, 0, &t);
    if (code < 0)
        loop_raise(code);
    return code < 0 ? NULL : t;
}

static int open_pipe(LoopObject *self, TransportObject *t) {
    bk_transport *core = core_pipe(self, t->fd, t->writes_only);
    bk_stream *s;
    if (core == NULL)
        return -1;
    int code = bk_stream_new_paused(self->core, core, &transport_plain, t, &s);
    if (code < 0) {
        bk_fd_transport_disown(core);
        core->ops->close(core);
        return loop_raise(code);
    }
    if (transport_attach(t, s) < 0)
        return -1;
    /* As in asyncio: of a terminal nobody tells when it is closed. */
    int kind = self->core->os->fd_kind(self->core->os, t->fd);
    bool tells = kind == BK_FD_PIPE || kind == BK_FD_SOCKET;
    if (!t->writes_only || !tells || transport_watch_reader(t) == 0)
        return 0;
    t->closing = true;
    bk_stream_abort(s);
    return -1;
}

/* _new_pipe_transport(pipe, protocol, writes) -> Transport, not yet started. */
static PyObject *loop_new_pipe_transport(LoopObject *self, PyObject *args) {
    PyObject *pipe, *protocol;
    int writes;
    if (!PyArg_ParseTuple(args, "OOp:_new_pipe_transport", &pipe, &protocol, &writes) ||
        loop_check_open(self) < 0)
        return NULL;
    int fd = PyObject_AsFileDescriptor(pipe);
    PyObject *context = fd < 0 || loop_check_open(self) < 0 ? NULL : PyContext_CopyCurrent();
    TransportObject *t = context != NULL ? transport_new(self, protocol, context, NULL) : NULL;
    Py_XDECREF(context);
    if (t == NULL)
        return NULL;
    t->fd = fd;
    t->socket = Py_NewRef(pipe);
    t->is_pipe = true;
    t->writes_only = writes;
    if (open_pipe(self, t) < 0)
        Py_CLEAR(t);
    return (PyObject *)t;
}

/* ---- The rest ---- */

static PyObject *loop_set_debug_core(LoopObject *self, PyObject *arg) {
    int on = PyObject_IsTrue(arg);
    if (on < 0)
        return NULL;
    self->debug = on;
    Py_RETURN_NONE;
}

/* _forked_away(): in the child of a fork, for a loop that the parent goes on with. It is touched no
   more, nor ever freed: that would tell the parent's peers, and its notifier, of an end. If the
   fork was within a run, that ends with an error when its callback returns. */
static PyObject *loop_forked_away(LoopObject *self, PyObject *Py_UNUSED(ignored)) {
    if (self->core == NULL || self->is_parents)
        Py_RETURN_NONE;
    self->is_parents = true;
    Py_INCREF((PyObject *)self);
    if (self->core->turning) {
        set_forked_error();
        end_run(self);
    }
    Py_RETURN_NONE;
}

/* _forked(): in the child, for a loop that the child takes over. */
static PyObject *loop_forked(LoopObject *self, PyObject *Py_UNUSED(ignored)) {
    if (self->is_parents) {
        self->is_parents = false;
        Py_CLEAR(self->error);
        Py_DECREF((PyObject *)self);
    }
    int code = self->core == NULL ? 0 : bk_loop_forked(self->core);
    if (code < 0) {
        loop_raise(code);
        return NULL;
    }
    Py_RETURN_NONE;
}

/* True: it watches; False: nobody wants to know. */
static PyObject *loop_supervisor_watch(LoopObject *self, PyObject *Py_UNUSED(ignored)) {
    if (loop_check_open(self) < 0)
        return NULL;
    int code = bk_supervisor_watch(self->core);
    if (code < 0) {
        loop_raise(code);
        return NULL;
    }
    return PyBool_FromLong(code);
}

static PyObject *loop_get_notifier(LoopObject *self, void *Py_UNUSED(closure)) {
    const char *name = NULL;
    Py_BEGIN_CRITICAL_SECTION(self);
    if (self->core != NULL && !self->ending)
        name = bk_loop_notifier(self->core); /* static text */
    Py_END_CRITICAL_SECTION();
    return name != NULL ? PyUnicode_FromString(name) : Py_NewRef(Py_None);
}

#define FAST(function) ((PyCFunction)(void (*)(void))(function))

static PyMethodDef loop_methods[] = {
    {"call_soon", FAST(loop_call_soon), METH_FASTCALL | METH_KEYWORDS,
     "call_soon(callback, *args, context=None) -> Handle\n\n"
     "Call callback(*args) in the next turn of the loop."},
    {"call_soon_threadsafe", FAST(loop_call_soon_threadsafe), METH_FASTCALL | METH_KEYWORDS,
     "call_soon_threadsafe(callback, *args, context=None) -> Handle\n\n"
     "Like call_soon(), from any thread."},
    {"call_later", FAST(loop_call_later), METH_FASTCALL | METH_KEYWORDS,
     "call_later(delay, callback, *args, context=None) -> TimerHandle\n\n"
     "Call callback(*args) after delay seconds."},
    {"call_at", FAST(loop_call_at), METH_FASTCALL | METH_KEYWORDS,
     "call_at(when, callback, *args, context=None) -> TimerHandle\n\n"
     "Call callback(*args) when loop.time() has reached `when`."},
    {"time", (PyCFunction)loop_time, METH_NOARGS,
     "time() -> float\n\nThe loop's clock: monotonic, in seconds."},
    {"stop", (PyCFunction)loop_stop, METH_NOARGS,
     "stop()\n\nEnd run_forever() when the callbacks that are ready have been called."},
    {"create_future", (PyCFunction)loop_create_future, METH_NOARGS,
     "create_future() -> asyncio.Future\n\nA future that belongs to this loop."},
    {"create_task", FAST(loop_create_task), METH_FASTCALL | METH_KEYWORDS,
     "create_task(coro, **kwargs) -> asyncio.Task\n\nRun a coroutine as a task of this loop."},
    {"_note_task_factory", (PyCFunction)loop_note_task_factory, METH_O, NULL},
    {"_run_once", (PyCFunction)loop_run_once, METH_NOARGS, NULL},
    {"_turn", (PyCFunction)loop_turn, METH_O, NULL},
    {"_check_closed", (PyCFunction)loop_check_closed, METH_NOARGS, NULL},
    {"_close_core", (PyCFunction)loop_close_core, METH_NOARGS, NULL},
    {"_visits", (PyCFunction)loop_visits, METH_O, NULL},
    {"_set_debug_core", (PyCFunction)loop_set_debug_core, METH_O, NULL},
    {"_forked", (PyCFunction)loop_forked, METH_NOARGS, NULL},
    {"_forked_away", (PyCFunction)loop_forked_away, METH_NOARGS, NULL},
    {"_add_reader", FAST(loop_add_reader), METH_FASTCALL, NULL},
    {"_remove_reader", (PyCFunction)loop_remove_reader, METH_O, NULL},
    {"_add_writer", FAST(loop_add_writer), METH_FASTCALL, NULL},
    {"_remove_writer", (PyCFunction)loop_remove_writer, METH_O, NULL},
    {"_watching", (PyCFunction)loop_watching, METH_O, NULL},
    {"_ensure_fd_no_transport", (PyCFunction)loop_ensure_fd_no_transport, METH_O, NULL},
    {"_new_transport", (PyCFunction)loop_new_transport, METH_VARARGS, NULL},
    {"_new_datagram_transport", (PyCFunction)loop_new_datagram_transport, METH_VARARGS, NULL},
    {"_new_pipe_transport", (PyCFunction)loop_new_pipe_transport, METH_VARARGS, NULL},
    {"_start_transport", (PyCFunction)loop_start_transport, METH_VARARGS, NULL},
    {"_add_tls_engine", (PyCFunction)loop_add_tls_engine, METH_O, NULL},
    {"_supervisor_watch", (PyCFunction)loop_supervisor_watch, METH_NOARGS, NULL},
    {"_add_scheme", (PyCFunction)loop_add_scheme, METH_VARARGS, NULL},
    {"_wires", (PyCFunction)loop_wires, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef loop_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(LoopObject, weakrefs), READONLY, NULL},
    {"_is_parents", T_BOOL, offsetof(LoopObject, is_parents), READONLY, NULL},
    {"_runs_all", T_BOOL, offsetof(LoopObject, runs_all), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef loop_getset[] = {
    {"notifier", (getter)loop_get_notifier, NULL,
     "The name of the notifier in use: 'epoll', 'poll', …; None once the loop is closed.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot loop_slots[] = {
    {Py_tp_doc, "The C half of becket.EventLoop."},
    {Py_tp_new, loop_new},
    {Py_tp_init, loop_init},
    {Py_tp_dealloc, loop_dealloc},
    {Py_tp_traverse, loop_traverse},
    {Py_tp_clear, loop_clear},
    {Py_tp_methods, loop_methods},
    {Py_tp_members, loop_members},
    {Py_tp_getset, loop_getset},
    {0, NULL},
};

PyType_Spec loop_spec = {
    .name = "becket._becket.Loop",
    .basicsize = sizeof(LoopObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .slots = loop_slots,
};
