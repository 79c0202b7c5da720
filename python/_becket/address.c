/*
 * address.c: addresses of sockets between the core and Python, for datagrams: each brings one, and
 * most often one that was there before, so a loop keeps the tuples it has made. Called by
 * datagram.c.
 */
#include "becket_py.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/un.h>

/* Each address has one place, and the last that came there is kept. Enough for hundreds of peers.
 */
enum { PLACES_BITS = 10, PLACES = 1 << PLACES_BITS };

typedef struct known_address {
    PyObject *python; /* NULL: the place is free */
    union {
        struct sockaddr any;
        struct sockaddr_in in;
        struct sockaddr_in6 in6;
    } core;
    unsigned size;
} known_address;

struct address_book {
    known_address *last; /* what was told last; NULL: nothing yet */
    known_address places[PLACES];
};

static known_address *place_of(address_book *book, const struct sockaddr *address, unsigned size) {
    uint64_t mixed = 0, part;
    unsigned at = 0;
    for (; at + sizeof part <= size; at += sizeof part) {
        memcpy(&part, (const char *)address + at, sizeof part);
        mixed = (mixed ^ part) * UINT64_C(0x9e3779b97f4a7c15);
    }
    part = 0;
    memcpy(&part, (const char *)address + at, size - at);
    mixed = (mixed ^ part) * UINT64_C(0x9e3779b97f4a7c15);
    return &book->places[mixed >> (64 - PLACES_BITS)];
}

static address_book *book_of(LoopObject *loop) {
    if (loop->addresses == NULL)
        loop->addresses = PyMem_Calloc(1, sizeof *loop->addresses);
    if (loop->addresses == NULL)
        PyErr_NoMemory();
    return loop->addresses;
}

/* As socket.recvfrom() has it; a new reference. */
PyObject *address_known(LoopObject *loop, const struct sockaddr *address, unsigned size) {
    if (size == 0)
        Py_RETURN_NONE;
    if (address->sa_family == AF_UNIX || size > sizeof(struct sockaddr_in6))
        return address_to_python(address, size);
    address_book *book = book_of(loop);
    if (book == NULL)
        return NULL;
    known_address *place = place_of(book, address, size);
    if (place->python == NULL || place->size != size || memcmp(&place->core, address, size) != 0) {
        PyObject *python = address_to_python(address, size);
        if (python == NULL)
            return NULL;
        Py_XSETREF(place->python, python);
        memcpy(&place->core, address, size);
        place->size = size;
    }
    book->last = place;
    return Py_NewRef(place->python);
}

/* A str without a NUL. */
static const char *text_of(PyObject *object) {
    Py_ssize_t n;
    const char *text = PyUnicode_Check(object) ? PyUnicode_AsUTF8AndSize(object, &n) : NULL;
    if (text == NULL)
        PyErr_Clear();
    return text != NULL && strlen(text) == (size_t)n ? text : NULL;
}

/* A number of a tuple, from 0 to most; one that is left out is 0. -1: it is not. */
static long long number_at(PyObject *tuple, Py_ssize_t at, long long most) {
    if (PyTuple_GET_SIZE(tuple) <= at)
        return 0;
    PyObject *item = PyTuple_GET_ITEM(tuple, at);
    int overflow = 0;
    long long n = PyLong_Check(item) ? PyLong_AsLongLongAndOverflow(item, &overflow) : -1;
    return overflow == 0 && n >= 0 && n <= most ? n : -1;
}

static unsigned internet_address(int family, PyObject *address, struct sockaddr_storage *ret) {
    if (!PyTuple_Check(address) || PyTuple_GET_SIZE(address) < 2 ||
        PyTuple_GET_SIZE(address) > (family == AF_INET ? 2 : 4))
        return 0;
    const char *host = text_of(PyTuple_GET_ITEM(address, 0));
    long long port = number_at(address, 1, UINT16_MAX), flow = number_at(address, 2, 0xfffff),
              scope = number_at(address, 3, UINT32_MAX);
    if (host == NULL || port < 0 || flow < 0 || scope < 0)
        return 0;
    if (family == AF_INET) {
        struct sockaddr_in *in = (struct sockaddr_in *)ret;
        *in = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
        return inet_pton(AF_INET, host, &in->sin_addr) == 1 ? sizeof *in : 0;
    }
    struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)ret;
    *in6 = (struct sockaddr_in6){.sin6_family = AF_INET6,
                                 .sin6_port = htons((uint16_t)port),
                                 .sin6_flowinfo = htonl((uint32_t)flow),
                                 .sin6_scope_id = (uint32_t)scope};
    return inet_pton(AF_INET6, host, &in6->sin6_addr) == 1 ? sizeof *in6 : 0;
}

/* Linux's abstract names begin with a NUL, and have none behind them. */
static unsigned local_address(PyObject *address, struct sockaddr_storage *ret) {
    struct sockaddr_un *un = (struct sockaddr_un *)ret;
    PyObject *path = PyUnicode_Check(address) ? PyUnicode_EncodeFSDefault(address)
                     : PyBytes_Check(address) ? Py_NewRef(address)
                                              : NULL;
    size_t n = path != NULL ? (size_t)PyBytes_GET_SIZE(path) : 0;
    unsigned size = 0;
    if (n > 0 && n < sizeof un->sun_path) {
        const char *text = PyBytes_AS_STRING(path);
        un->sun_family = AF_UNIX;
        memcpy(un->sun_path, text, n);
        un->sun_path[n] = '\0';
        size = (unsigned)(offsetof(struct sockaddr_un, sun_path) + n + (text[0] != '\0'));
    }
    PyErr_Clear();
    Py_XDECREF(path);
    return size;
}

/* Its size; 0: it is not one that needs nothing but to be read: a name to be resolved, or wrong. */
unsigned address_from_python(LoopObject *loop, int family, PyObject *address,
                             struct sockaddr_storage *ret) {
    const known_address *last = loop->addresses != NULL ? loop->addresses->last : NULL;
    if (last != NULL && last->python == address && last->core.any.sa_family == family) {
        memcpy(ret, &last->core, last->size); /* who answers has it from us */
        return last->size;
    }
    return family == AF_UNIX ? local_address(address, ret) : internet_address(family, address, ret);
}

void addresses_free(LoopObject *loop) {
    address_book *book = loop->addresses;
    loop->addresses = NULL;
    for (int i = 0; book != NULL && i < PLACES; i++)
        Py_CLEAR(book->places[i].python);
    PyMem_Free(book);
}
