/*
 * endpoint.c: the exceptions for endpoints that cannot be listened at, or connected to. Called by
 * all that take an endpoint.
 */
#include "becket_py.h"

/* A ValueError that shows the endpoint, with a mark under what is wrong in it. */
static void point_at(const char *endpoint, const bk_error *error) {
    Py_ssize_t n = (Py_ssize_t)strnlen(endpoint, error->position);
    PyObject *before = PyUnicode_DecodeUTF8(endpoint, n, "replace");
    PyObject *text = PyUnicode_DecodeUTF8(error->text, (Py_ssize_t)strlen(error->text), "replace");
    PyObject *space = before == NULL || text == NULL ? NULL : PyUnicode_FromString(" ");
    PyObject *indent =
        space == NULL ? NULL : PySequence_Repeat(space, PyUnicode_GET_LENGTH(before));
    if (indent != NULL)
        PyErr_Format(PyExc_ValueError, "%U\n  %s\n  %U^", text, endpoint, indent);
    Py_XDECREF(indent);
    Py_XDECREF(space);
    Py_XDECREF(text);
    Py_XDECREF(before);
}

int endpoint_raise(const char *endpoint, const bk_error *error) {
    int code = error->code;
    if (code == -ENOMEM) {
        PyErr_NoMemory();
        return -1;
    }
    /* A name that nobody knows today is not a wrong argument. */
    if (code <= -4000 && code != BK_ENAME) {
        point_at(endpoint, error);
        return -1;
    }
    int number = code == BK_ENAME ? EHOSTUNREACH : -code;
    PyObject *e = PyObject_CallFunction(PyExc_OSError, "is", number, error->text);
    if (e != NULL)
        PyErr_SetObject((PyObject *)Py_TYPE(e), e);
    Py_XDECREF(e);
    return -1;
}
