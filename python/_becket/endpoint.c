/*
 * endpoint.c: endpoints that Python hands over, and what they say by the core's grammar. Called by
 * whoever takes one, and by python/becket/endpoints.py.
 */
#include "becket_py.h"

/* The endpoint as the core takes it, borrowed from `arg`; NULL with an exception. */
const char *endpoint_text(PyObject *arg) {
    if (!PyUnicode_Check(arg)) {
        PyErr_Format(PyExc_TypeError, "endpoint: a str is needed, not %R", Py_TYPE(arg));
        return NULL;
    }
    Py_ssize_t size;
    const char *text = PyUnicode_AsUTF8AndSize(arg, &size);
    if (text == NULL || strlen(text) == (size_t)size)
        return text;
    PyErr_SetString(PyExc_ValueError, "endpoint: it has a NUL in it");
    return NULL;
}

static PyObject *options_of(const bk_endpoint *e) {
    PyObject *options = PyDict_New();
    for (int i = 0; options != NULL && i < e->option_count; i++) {
        PyObject *value = PyUnicode_DecodeFSDefault(e->options[i].value);
        if (value == NULL || PyDict_SetItemString(options, e->options[i].key, value) < 0)
            Py_CLEAR(options);
        Py_XDECREF(value);
    }
    return options;
}

/* _parse_endpoint(text) -> (word before the colon, options) */
PyObject *endpoint_parse(PyObject *module, PyObject *arg) {
    const char *text = endpoint_text(arg);
    bk_os *os = bk_os_default();
    bk_endpoint e;
    bk_error error;
    if (text == NULL)
        return NULL;
    if (bk_endpoint_parse(os, text, &e, &error) < 0)
        return endpoint_raise(PyModule_GetState(module), text, &error);
    PyObject *options = options_of(&e);
    PyObject *result = options == NULL ? NULL : Py_BuildValue("sN", e.scheme, options);
    bk_endpoint_clear(os, &e);
    return result;
}
