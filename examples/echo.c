/* An echo server on TCP, on a UNIX socket and on standard input and output at once; or, given
   arguments, at up to three endpoints of yours:  echo tcp://127.0.0.1:7000 stdio: */
#include <becket.h>

static void received(bk_stream *s, const void *data, size_t n) {
    bk_stream_write(s, data, n, BK_COPY, NULL);
}

/* Echo no faster than the other side reads. */
static void blocked(bk_stream *s) {
    bk_stream_pause(s);
}

static void writable(bk_stream *s) {
    bk_stream_resume(s);
}

static const bk_protocol echo = {.size = sizeof echo,
                                 .name = "echo",
                                 .received = received,
                                 .blocked = blocked,
                                 .writable = writable};

int main(int argc, char **argv) {
    if (argc > 1) /* argv ends with a NULL, and so does the list */
        return bk_serve(&echo, argv[1], argv[2], argc > 2 ? argv[3] : NULL, NULL);
    return bk_serve(&echo, "tcp://127.0.0.1:7000", "unix:echo.sock", "stdio:", NULL);
}
