/*
 * local_python.c: the scheme of local.c for Python: an extension whose `scheme` an entry point of
 * the group becket.transports may name. docs/write-a-transport.md says how it is built.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define BK_CORE core
#include <becket-python.h>

static const bk_core_api *core;

#define LOCAL_SCHEME_ONLY
#include "local.c"

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "local_python", .m_size = -1};

PyMODINIT_FUNC PyInit_local_python(void) {
    core = PyCapsule_Import(BK_CORE_CAPSULE, 0);
    if (core == NULL)
        return NULL;
    if (core->size < sizeof *core) {
        PyErr_SetString(PyExc_ImportError, "local_python needs a newer becket");
        return NULL;
    }
    PyObject *made = PyModule_Create(&module);
    PyObject *scheme = PyCapsule_New((void *)(uintptr_t)&local_scheme, BK_SCHEME_CAPSULE, NULL);
    int code = made == NULL || scheme == NULL ? -1 : PyModule_AddObjectRef(made, "scheme", scheme);
    Py_XDECREF(scheme);
    if (code < 0)
        Py_CLEAR(made);
    return made;
}
