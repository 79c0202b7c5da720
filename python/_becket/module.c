/*
 * module.c: the extension module becket._becket: its types, and what it looks up in asyncio once.
 * Multi-phase initialisation, heap types, no static state: each interpreter has a module of its
 * own.
 */
#include "becket_py.h"

module_state *state_of_type(PyTypeObject *type) {
    PyObject *module = PyType_GetModuleByDef(type, &becket_module);
    return module == NULL ? NULL : PyModule_GetState(module);
}

static PyObject *import_from(const char *module_name, const char *name) {
    PyObject *module = PyImport_ImportModule(module_name);
    if (module == NULL)
        return NULL;
    PyObject *object = PyObject_GetAttrString(module, name);
    Py_DECREF(module);
    return object;
}

static int import_all(module_state *state) {
    const struct {
        PyObject **place;
        const char *module, *name;
    } wanted[] = {
        {&state->future_type, "asyncio", "Future"},
        {&state->task_type, "asyncio", "Task"},
        {&state->buffered_protocol, "asyncio", "BufferedProtocol"},
        {&state->reader_protocol, "asyncio", "StreamReaderProtocol"},
        {&state->reader_type, "asyncio", "StreamReader"},
        {&state->transport_socket, "asyncio.trsock", "TransportSocket"},
        {&state->socket_type, "socket", "socket"},
        {&state->sendfile_modes, "asyncio.constants", "_SendfileMode"},
        {&state->handle_class, "asyncio", "Handle"},
        {&state->timer_handle_class, "asyncio", "TimerHandle"},
        {&state->extract_stack, "becket._repr", "extract_stack"},
        {&state->base_loop, "asyncio", "BaseEventLoop"},
        {&state->logger, "asyncio.log", "logger"},
        {&state->incomplete_read, "asyncio", "IncompleteReadError"},
        {&state->limit_overrun, "asyncio", "LimitOverrunError"},
        {&state->gaierror, "socket", "gaierror"},
        {&state->ssl_object, "ssl", "SSLObject"},
        {&state->ssl_want_read, "ssl", "SSLWantReadError"},
        {&state->openssl_version, "ssl", "OPENSSL_VERSION"},
        {&state->tls_error_code, "becket.tls", "error_code"},
        {&state->tls_exception_of, "becket.tls", "exception_of"},
        {&state->tls_core_context, "becket.tls", "core_context"},
    };
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        *wanted[i].place = import_from(wanted[i].module, wanted[i].name);
        if (*wanted[i].place == NULL)
            return -1;
    }
    for (int i = 0; i < OWN; i++)
        if ((state->own[i] = reader_own_method(state, i)) == NULL)
            return -1;
    state->create_task = PyObject_GetAttrString(state->base_loop, "create_task");
    return state->create_task == NULL ? -1 : 0;
}

static int intern_names(module_state *state) {
#define BK_INTERN(name)                                                                            \
    if ((state->str_##name = PyUnicode_InternFromString(#name)) == NULL)                           \
        return -1;
    BK_NAMES(BK_INTERN)
#undef BK_INTERN
    return 0;
}

static PyTypeObject *add_type(PyObject *module, PyType_Spec *spec, PyObject *bases) {
    PyTypeObject *type = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, bases);
    if (type != NULL && PyModule_AddType(module, type) < 0)
        Py_CLEAR(type);
    return type;
}

/* One that nothing here refers to. */
static int add_plain(PyObject *module, PyType_Spec *spec) {
    PyTypeObject *type = add_type(module, spec, NULL);
    Py_XDECREF((PyObject *)type);
    return type == NULL ? -1 : 0;
}

/* asyncio's start_tls() asks a transport for this. */
static int mark_compatible(PyObject *type) {
    return PyObject_SetAttrString(type, "_start_tls_compatible", Py_True);
}

/* Our transports are asyncio's: they begin with the one slot that those have. */
static PyTypeObject *derive(PyObject *module, PyType_Spec *spec, PyObject *bases) {
    PyTypeObject *first = (PyTypeObject *)PyTuple_GetItem(bases, 0);
    if (first != NULL && first->tp_basicsize == offsetof(TransportObject, dict))
        return add_type(module, spec, bases);
    PyErr_Format(PyExc_ImportError,
                 "asyncio.Transport of this Python has instances of %zd bytes, not %zd: this "
                 "version of becket does not know it",
                 first != NULL ? first->tp_basicsize : 0,
                 (Py_ssize_t)offsetof(TransportObject, dict));
    return NULL;
}

static int add_transport_types(PyObject *module, module_state *state) {
    PyObject *stream = import_from("asyncio", "Transport");
    PyObject *datagram = stream == NULL ? NULL : import_from("asyncio", "DatagramTransport");
    PyObject *one = datagram == NULL ? NULL : PyTuple_Pack(1, stream);
    PyObject *both = one == NULL ? NULL : PyTuple_Pack(2, stream, datagram); /* as asyncio's are */
    int code = -1;
    if (both != NULL) {
        state->transport_type = derive(module, &transport_spec, one);
        state->datagram_type =
            state->transport_type == NULL ? NULL : derive(module, &datagram_spec, both);
        code =
            state->datagram_type == NULL ? -1 : mark_compatible((PyObject *)state->transport_type);
    }
    Py_XDECREF(both);
    Py_XDECREF(one);
    Py_XDECREF(datagram);
    Py_XDECREF(stream);
    return code;
}

static int add_types(PyObject *module, module_state *state) {
    state->loop_type = add_type(module, &loop_spec, NULL);
    state->handle_type = add_type(module, &handle_spec, NULL);
    state->timer_handle_type =
        state->handle_type == NULL
            ? NULL
            : add_type(module, &timer_handle_spec, (PyObject *)state->handle_type);
    if (add_transport_types(module, state) < 0)
        return -1;
    state->listener_type = add_type(module, &listener_spec, NULL);
    state->connection_type = add_type(module, &connection_spec, NULL);
    state->connector_type = add_type(module, &connector_spec, NULL);
    state->smtp_type = add_type(module, &smtp_spec, NULL);
    state->delayed_type = add_type(module, &delayed_spec, NULL);
    state->gate_type = add_type(module, &gate_spec, NULL);
    state->hand_type = add_type(module, &hand_spec, NULL);
    state->away_type = add_type(module, &away_spec, NULL);
    state->echo_type = add_type(module, &echo_spec, NULL);
    state->tls_context_type = add_type(module, &tls_context_spec, NULL);
    state->transport_head_type = add_type(module, &transport_head_spec, NULL);
    state->accept_type = add_type(module, &accept_spec, NULL);
    state->read_type = add_type(module, &read_spec, NULL);
    state->done_type = add_type(module, &done_spec, NULL);
    state->our_reader = add_type(module, &reader_spec, state->reader_type);
    state->our_reader_protocol = add_type(module, &reader_protocol_spec, state->reader_protocol);
    if (state->done_type != NULL)
        state->done = state->done_type->tp_alloc(state->done_type, 0);
    return state->loop_type && state->handle_type && state->timer_handle_type &&
                   state->transport_type && state->listener_type && state->smtp_type &&
                   state->connector_type && state->connection_type && state->tls_context_type &&
                   state->transport_head_type && state->accept_type && state->read_type &&
                   state->our_reader && state->our_reader_protocol && state->done &&
                   state->gate_type && state->hand_type && state->away_type && state->echo_type &&
                   state->delayed_type && add_plain(module, &timers_spec) == 0 &&
                   add_plain(module, &wire_spec) == 0 && add_plain(module, &seal_spec) == 0
               ? 0
               : -1;
}

static int add_notifiers(PyObject *module) {
    PyObject *names = PyList_New(0);
    if (names == NULL)
        return -1;
    for (const bk_notifier_ops *const *all = bk_notifiers(); *all != NULL; all++) {
        PyObject *name = PyUnicode_FromString((*all)->name);
        int code = name == NULL ? -1 : PyList_Append(names, name);
        Py_XDECREF(name);
        if (code < 0) {
            Py_DECREF(names);
            return -1;
        }
    }
    PyObject *tuple = PyList_AsTuple(names);
    Py_DECREF(names);
    int code = tuple == NULL ? -1 : PyModule_AddObjectRef(module, "notifiers", tuple);
    Py_XDECREF(tuple);
    return code;
}

static int module_exec(PyObject *module) {
    module_state *state = PyModule_GetState(module);
    if (intern_names(state) < 0 || import_all(state) < 0 || add_types(module, state) < 0 ||
        add_notifiers(module) < 0 || add_core_api(module) < 0)
        return -1;
    return PyModule_AddStringConstant(module, "__version__", bk_version());
}

/* All that the module's state refers to, but for names and methods. (clang-format would lay the
   list out anew each time.) */
/* clang-format off */
#define BK_OBJECTS(X)                                                                              \
    X(loop_type) X(handle_type) X(timer_handle_type) X(transport_type) X(listener_type)            \
    X(transport_head_type) X(accept_type) X(smtp_type) X(tls_context_type) X(future_type) X(task_type) X(buffered_protocol)              \
    X(reader_protocol) X(reader_type) X(transport_socket) X(socket_type) X(extract_stack)          \
    X(create_task) X(base_loop) X(logger) X(ssl_object) X(ssl_want_read) X(openssl_version)        \
    X(tls_error_code) X(tls_exception_of) X(tls_core_context) X(read_type) X(done_type)            \
    X(our_reader) X(our_reader_protocol) X(done) X(gaierror) X(connector_type)                     \
    X(connection_type) X(incomplete_read) X(limit_overrun) X(gate_type) X(hand_type) X(away_type)  \
    X(echo_type) X(datagram_type) X(delayed_type) X(sendfile_modes) X(handle_class) X(timer_handle_class)
/* clang-format on */

static int module_traverse(PyObject *module, visitproc visit, void *arg) {
    module_state *state = PyModule_GetState(module);
#define BK_VISIT(field) Py_VISIT(state->field);
    BK_OBJECTS(BK_VISIT)
#undef BK_VISIT
    for (int i = 0; i < OWN; i++)
        Py_VISIT(state->own[i]);
    return 0;
}

static int module_clear(PyObject *module) {
    module_state *state = PyModule_GetState(module);
    handles_free(state);
#define BK_FORGET(field) Py_CLEAR(state->field);
    BK_OBJECTS(BK_FORGET)
#undef BK_FORGET
#define BK_FORGET(name) Py_CLEAR(state->str_##name);
    BK_NAMES(BK_FORGET)
#undef BK_FORGET
    for (int i = 0; i < OWN; i++)
        Py_CLEAR(state->own[i]);
    return 0;
}

static void module_free(void *module) {
    (void)module_clear(module);
}

/* True: it was told; False: there is no supervisor. */
static PyObject *supervisor_tell(PyObject *Py_UNUSED(module), PyObject *arg) {
    Py_ssize_t n = 0;
    const char *state = PyUnicode_Check(arg) ? PyUnicode_AsUTF8AndSize(arg, &n) : NULL;
    if (state == NULL) {
        if (!PyErr_Occurred())
            PyErr_Format(PyExc_TypeError, "state: a str is needed, not %R", Py_TYPE(arg));
        return NULL;
    }
    if (n == 0 || strlen(state) != (size_t)n)
        return PyErr_Format(PyExc_ValueError, "state: %R is not like 'READY=1'", arg);
    int code = bk_supervisor_tell(bk_os_default(), state);
    if (code < 0) {
        loop_raise(code);
        return NULL;
    }
    return PyBool_FromLong(code);
}

static PyMethodDef module_methods[] = {
    {"_can_adopt", tls_can_adopt, METH_O, NULL},
    {"_tls_engines", tls_core_engines, METH_NOARGS, NULL},
    {"_supervisor_tell", supervisor_tell, METH_O, NULL},
    {"_parse_endpoint", endpoint_parse, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

PyModuleDef becket_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "becket._becket",
    .m_doc = "Python objects over the handles of becket's core.",
    .m_size = sizeof(module_state),
    .m_methods = module_methods,
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__becket(void) {
    return PyModuleDef_Init(&becket_module);
}
