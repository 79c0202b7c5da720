/*
 * errors.c: what the core says went wrong, as the exceptions that Python's users catch: of
 * endpoints, with a mark under what is wrong in them, and of streams, with the words of their TLS
 * engine. Called by whoever has an endpoint (smtp.c, connector.c), and by transports.
 */
#include "becket_py.h"

#include <netdb.h>

/* A ValueError that shows the endpoint, with a mark under what is wrong in it. */
static PyObject *point_at(const char *endpoint, const bk_error *error) {
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
    return NULL;
}

static PyObject *raise(PyObject *e) {
    if (e != NULL)
        PyErr_SetObject((PyObject *)Py_TYPE(e), e);
    Py_XDECREF(e);
    return NULL;
}

/* Why nothing could be had at an endpoint. A name that nobody knows today is not a wrong argument,
   nor is a certificate that is not there. Returns NULL. */
PyObject *endpoint_raise(module_state *state, const char *endpoint, const bk_error *error) {
    if (error->code == -ENOMEM)
        return PyErr_NoMemory();
    if (error->code == BK_ENAME)
        return raise(PyObject_CallFunction(state->gaierror, "is", EAI_NONAME, error->text));
    if (error->code <= -4000)
        return point_at(endpoint, error);
    return raise(PyObject_CallFunction(PyExc_OSError, "is", -error->code, error->text));
}

/* The exception for what broke a stream, in the words of its TLS engine where one did. */
PyObject *stream_exception(module_state *state, bk_stream *s, int why) {
    char words[256] = "";
    size_t size = sizeof words;
    if (why == BK_ENAME)
        return PyObject_CallFunction(state->gaierror, "is", EAI_NONAME, bk_strerror(why));
    if (why != BK_ETRUNCATED && (why > BK_ETLS || why < BK_ETLS_RENEGOTIATION))
        return exception_of(why);
    (void)bk_stream_query(s, BK_QUERY_TLS_WORDS, words, &size);
    return PyObject_CallFunction(state->tls_exception_of, "is", why,
                                 *words != '\0' ? words : bk_strerror(why));
}

void exception_keep(PyObject **kept) {
    PyObject *type, *value, *tb;
    PyErr_Fetch(&type, &value, &tb);
    PyErr_NormalizeException(&type, &value, &tb);
    if (*kept == NULL && value != NULL && PyExceptionInstance_Check(value))
        *kept = Py_NewRef(value);
    PyErr_Restore(type, value, tb);
}

/* Its loop was closed before it. */
void warn_unclosed(PyObject *transport) {
    if (PyErr_ResourceWarning(transport, 1, "unclosed transport %R", transport) < 0)
        PyErr_WriteUnraisable(transport);
}
