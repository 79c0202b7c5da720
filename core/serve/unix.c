/*
 * unix.c: the scheme unix, "unix:path". The socket's file is ours from bind to close: one that a
 * server left behind when it died is replaced, one that a living server listens at never, and
 * nothing but a socket is ever removed. "unix:@name" is a Linux abstract socket, which has no file:
 * its name goes with its last descriptor. Called through bk_scheme_unix.
 */
#include "core/serve/serve.h"

static const char *const unix_options[] = {"backlog", "mode", NULL};

typedef struct unix_place {
    struct sockaddr_un address;
    unsigned size; /* of the address: that of an abstract one tells where its name ends */
    bool is_abstract;
} unix_place;

/* The name's first byte, @, stands for a NUL. */
static int unix_check_abstract(const bk_endpoint *endpoint, unix_place *ret_place,
                               bk_error *error) {
#if defined(__linux__)
    unix_place place = {.address.sun_family = AF_UNIX, .is_abstract = true};
    size_t n = strlen(endpoint->path), most = sizeof place.address.sun_path;
    if (n == 1)
        return bk_error_set(error, BK_EENDPOINT, endpoint->rest + 1,
                            "a name is missing: %.20s:@name", endpoint->scheme);
    if (n > most)
        return bk_error_set(error, BK_EENDPOINT, endpoint->rest + 1,
                            "this name of %zu bytes is too long for a UNIX socket: at most %zu",
                            n - 1, most - 1);
    memcpy(place.address.sun_path + 1, endpoint->path + 1, n - 1);
    place.size = (unsigned)(offsetof(struct sockaddr_un, sun_path) + n);
    *ret_place = place;
    return 0;
#else
    (void)ret_place;
    return bk_error_set(error, -ENOTSUP, endpoint->rest,
                        "only Linux has abstract sockets; a path that begins with @ is written "
                        "%.20s:./@name",
                        endpoint->scheme);
#endif
}

static int unix_check(const bk_endpoint *endpoint, unix_place *ret_place, bk_error *error) {
    unix_place place = {.address.sun_family = AF_UNIX, .size = sizeof place.address};
    size_t n = strlen(endpoint->path), most = sizeof place.address.sun_path - 1;
    size_t at = endpoint->host == NULL ? endpoint->rest : bk_endpoint_authority_end(endpoint);
    const char *scheme = endpoint->scheme; /* tls+unix, where that is in front */
    if (endpoint->host != NULL && (*endpoint->host != '\0' || endpoint->port >= 0))
        return bk_error_set(error, BK_EENDPOINT, endpoint->rest + 2,
                            "%.20s has no host: %.20s:path or %.20s:///path", scheme, scheme,
                            scheme);
    if (n == 0)
        return bk_error_set(error, BK_EENDPOINT, at, "a path is missing: %.20s:path", scheme);
    if (*endpoint->path == '@')
        return unix_check_abstract(endpoint, ret_place, error);
    if (n > most)
        return bk_error_set(error, BK_EENDPOINT, at,
                            "this path of %zu bytes is too long for a UNIX socket: at most %zu", n,
                            most);
    memcpy(place.address.sun_path, endpoint->path, n);
    *ret_place = place;
    return 0;
}

/* ---- Listening ---- */

typedef struct unix_listener {
    bk_loop *loop;
    bk_acceptor *acceptor;
    unix_place place;
    long backlog, mode; /* mode -1: as it comes */
    bk_file_info file;  /* which one we made */
    int process;        /* who made it: not a child's to remove */
} unix_listener;

static bool unix_is_same(const bk_file_info *a, const bk_file_info *b) {
    return a->is_socket && b->is_socket && a->device == b->device && a->inode == b->inode;
}

/* 0 when nobody listens there any more. */
static int unix_probe(bk_os *os, const struct sockaddr_un *address) {
    int fd = os->socket(os, AF_UNIX, SOCK_STREAM, 0);
    if (fd < 0)
        return fd;
    int code = os->connect(os, fd, (const struct sockaddr *)address, sizeof *address);
    bk_close_fd(os, fd);
    if (code == -ECONNREFUSED || code == -ENOENT)
        return 0;
    /* Connected, its backlog is full, or it is a socket of another type. */
    bool alive = code >= 0 || code == -EAGAIN || code == -EINPROGRESS || code == -EPROTOTYPE;
    return alive ? -EADDRINUSE : code;
}

/* Something is at the path already: remove it, if it is a socket that a dead server left. */
static int unix_make_way(bk_os *os, const struct sockaddr_un *address, bk_error *error) {
    bk_file_info found, now;
    const char *path = address->sun_path;
    int code = os->file_info(os, path, &found);
    if (code < 0)
        return code == -ENOENT ? 0 : code;
    if (!found.is_socket)
        return bk_error_set(error, -EADDRINUSE, 0, "%.108s exists and is not a socket; it is kept",
                            path);
    code = unix_probe(os, address);
    if (code == -EADDRINUSE)
        return bk_error_set(error, code, 0, "another server listens at %.108s", path);
    if (code < 0)
        return code;
    code = os->file_info(os, path, &now); /* another server may have been faster */
    if (code == -ENOENT)
        return 0;
    if (code >= 0 && !unix_is_same(&found, &now))
        return bk_error_set(error, -EADDRINUSE, 0, "another server listens at %.108s", path);
    return code < 0 ? code : os->unlink(os, path);
}

static int unix_bind(bk_os *os, int fd, const unix_place *place, bk_error *error) {
    const struct sockaddr *address = (const struct sockaddr *)&place->address;
    int code = os->bind(os, fd, address, place->size);
    if (code != -EADDRINUSE)
        return code;
    if (place->is_abstract)
        return bk_error_set(error, code, 0, "another server has the name @%.*s",
                            (int)(place->size - offsetof(struct sockaddr_un, sun_path)) - 1,
                            place->address.sun_path + 1);
    code = unix_make_way(os, &place->address, error);
    return code < 0 ? code : os->bind(os, fd, address, place->size);
}

/* Before the socket is closed: as long as it is there, no other file can have its inode. */
static void unix_remove(unix_listener *l) {
    bk_file_info now;
    bk_os *os = l->loop->os;
    const char *path = l->place.address.sun_path;
    if (!l->place.is_abstract && os->getpid(os) == l->process &&
        os->file_info(os, path, &now) >= 0 && unix_is_same(&l->file, &now))
        (void)os->unlink(os, path);
}

static void unix_close(void *arg) {
    unix_listener *l = arg;
    unix_remove(l);
    bk_acceptor_free(l->acceptor);
    bk_dealloc(l->loop->os, l);
}

/* The mode is set before listening: until then everybody is refused. */
static int unix_occupy(unix_listener *l, int fd) {
    bk_os *os = l->loop->os;
    const char *path = l->place.address.sun_path;
    int code = l->place.is_abstract ? 0 : os->file_info(os, path, &l->file);
    if (code < 0) {
        (void)os->unlink(os, path);
        return code;
    }
    if (l->mode >= 0)
        code = os->chmod(os, path, (unsigned)l->mode);
    if (code >= 0)
        code = os->listen(os, fd, (int)l->backlog);
    if (code >= 0)
        code = bk_acceptor_start(l->acceptor);
    if (code < 0)
        unix_remove(l);
    return code;
}

static int unix_open(unix_listener *l, bk_error *error) {
    bk_os *os = l->loop->os;
    int fd = os->socket(os, AF_UNIX, SOCK_STREAM, 0);
    if (fd < 0)
        return fd;
    bk_acceptor_add(l->acceptor, fd);
    int code = unix_bind(os, fd, &l->place, error);
    return code < 0 ? code : unix_occupy(l, fd);
}

static int unix_start(unix_listener *l, const char *path, bk_error *error,
                      bk_listener **ret_listener) {
    char name[sizeof "unix:" + 3 * sizeof l->place.address];
    int code = unix_open(l, error);
    if (code < 0)
        return code;
    bk_endpoint_encode(path, stpcpy(name, "unix:"));
    code = bk_acceptor_listener(l->acceptor, name, unix_close, l, ret_listener);
    if (code < 0)
        unix_remove(l);
    return code;
}

static int unix_check_options(const bk_endpoint *endpoint, unix_listener *l, bk_error *error) {
    int code = bk_endpoint_number(endpoint, "backlog", 10, 1, 65535, &l->backlog, error);
    if (code >= 0)
        code = bk_endpoint_number(endpoint, "mode", 8, 0, 0777, &l->mode, error);
    if (code >= 0 && l->mode >= 0 && l->place.is_abstract)
        code = bk_error_set(error, BK_EOPTION, bk_endpoint_position(endpoint, "mode"),
                            "mode is for a socket that has a file, and %.20s:@name has none",
                            endpoint->scheme);
    return code;
}

static int unix_listen(bk_loop *loop, const bk_endpoint *endpoint, const bk_protocol *protocol,
                       bk_error *error, bk_listener **ret_listener) {
    unix_listener wanted = {.loop = loop, .backlog = BK_BACKLOG, .mode = -1};
    int code = unix_check(endpoint, &wanted.place, error);
    if (code >= 0)
        code = unix_check_options(endpoint, &wanted, error);
    if (code < 0)
        return code;
    unix_listener *l = bk_alloc(loop->os, sizeof *l);
    if (l == NULL)
        return -ENOMEM;
    *l = wanted;
    l->process = loop->os->getpid(loop->os);
    code = bk_acceptor_new(loop, protocol, 1, &l->acceptor);
    if (code >= 0) {
        code = unix_start(l, endpoint->path, error, ret_listener);
        if (code < 0)
            bk_acceptor_free(l->acceptor);
    }
    if (code < 0)
        bk_dealloc(loop->os, l);
    return code;
}

/* ---- Connecting ---- */

static int unix_connect(bk_loop *loop, const bk_endpoint *endpoint, const bk_protocol *protocol,
                        void *user, bk_error *error, bk_stream **ret_stream) {
    unix_place place;
    int code = unix_check(endpoint, &place, error);
    if (code < 0)
        return code;
    return bk_connect_address(loop, (const struct sockaddr *)&place.address, place.size, protocol,
                              user, ret_stream);
}

const bk_scheme bk_scheme_unix = {
    .size = sizeof(bk_scheme),
    .name = "unix",
    .options = unix_options,
    .listen = unix_listen,
    .connect = unix_connect,
};
