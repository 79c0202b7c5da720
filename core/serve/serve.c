/*
 * serve.c: a whole server in one call, for main(): a loop, listeners, and an end at SIGINT or
 * SIGTERM. Called by programs; see examples/echo.c.
 */
#include "core/serve/serve.h"

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>

enum { LINE_BYTES = 512 };

typedef struct server {
    bk_loop *loop;
    int open; /* listeners that may still bring somebody */
} server;

/* ---- Telling ---- */

__attribute__((format(printf, 2, 3))) static void say(bk_os *os, const char *format, ...) {
    char line[LINE_BYTES];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(line, sizeof line - 1, format, args);
    va_end(args);
    n = n < 0 ? 0 : n < (int)sizeof line - 1 ? n : (int)sizeof line - 2;
    line[n] = '\n';
    const struct iovec v = {line, (size_t)n + 1};
    (void)os->write(os, 2, &v, 1);
}

/* The endpoint, and under it a caret. A character of UTF-8 takes one column, whatever its bytes;
   and nothing in it gets to control the terminal. */
static void say_where(bk_os *os, const char *endpoint, size_t position) {
    char text[LINE_BYTES / 2], spaces[LINE_BYTES / 2];
    size_t n = strlen(endpoint), columns = 0;
    if (n >= sizeof text || position > n)
        return;
    for (size_t i = 0; i <= n; i++) {
        unsigned char c = (unsigned char)endpoint[i];
        text[i] = (char)(c != '\0' && (c < 0x20 || c == 0x7f) ? '?' : c);
        if (i < position && (c & 0xc0) != 0x80)
            spaces[columns++] = ' ';
    }
    spaces[columns] = '\0';
    say(os, "  %s\n  %s^", text, spaces);
}

static void say_error(bk_os *os, const char *endpoint, const bk_error *error) {
    bool in_text = error->position > 0 || error->code == BK_EENDPOINT ||
                   error->code == BK_ESCHEME || error->code == BK_EOPTION;
    if (in_text) {
        say(os, "becket: %s", error->text);
        say_where(os, endpoint, error->position);
    } else {
        say(os, "becket: %s: %s", endpoint, error->text);
    }
}

/* ---- Serving ---- */

static void stop(void *arg) {
    bk_loop_stop(arg);
}

static void listener_ended(void *arg) {
    server *s = arg;
    if (--s->open == 0)
        bk_loop_stop(s->loop);
}

static void tell_supervisor(bk_os *os, const char *state) {
    int code = bk_supervisor_tell(os, state);
    if (code < 0)
        say(os, "becket: the supervisor cannot be told: %s", bk_strerror(code));
}

/* SIGHUP: certificates have changed. */
static void reload(void *arg) {
    bk_loop *loop = arg;
    char state[64];
    snprintf(state, sizeof state, "RELOADING=1\nMONOTONIC_USEC=%lld",
             (long long)(loop->os->clock(loop->os) / 1000));
    tell_supervisor(loop->os, state);
    for (bk_listener *l = loop->listeners; l != NULL; l = l->next)
        bk_listener_reload(l);
    tell_supervisor(loop->os, "READY=1");
}

static int add_listener(server *s, const char *endpoint, const bk_protocol *protocol) {
    bk_os *os = bk_loop_os(s->loop);
    bk_error error;
    bk_listener *listener;
    int code = bk_listen(s->loop, endpoint, protocol, &error, &listener);
    if (code < 0) {
        say_error(os, endpoint, &error);
        return code;
    }
    listener->ended = listener_ended;
    listener->ended_arg = s;
    s->open++;
    say(os, "becket: listening at %s", bk_listener_name(listener));
    return 0;
}

/* Caught, not ignored: what is ignored stays so in the programs that a protocol may start. */
static void ignore(int signum) {
    (void)signum;
}

/* The supervisor hears when it begins and ends. */
static int run_told(server *s) {
    bk_os *os = bk_loop_os(s->loop);
    int code = bk_supervisor_watch(s->loop);
    if (code < 0)
        say(os, "becket: there is no watchdog: %s", bk_strerror(code));
    tell_supervisor(os, "READY=1");
    code = bk_loop_run(s->loop);
    tell_supervisor(os, "STOPPING=1");
    return code;
}

static int run(server *s) {
    bk_os *os = bk_loop_os(s->loop);
    int code = os->signal_catch(os, SIGPIPE, ignore);
    if (code >= 0)
        code = bk_signal_set(s->loop, SIGINT, stop, s->loop);
    if (code >= 0)
        code = bk_signal_set(s->loop, SIGTERM, stop, s->loop);
    if (code >= 0)
        code = bk_signal_set(s->loop, SIGHUP, reload, s->loop);
    if (code >= 0)
        code = run_told(s);
    if (code < 0)
        say(os, "becket: %s", bk_strerror(code));
    return code;
}

static int serve_all(server *s, const bk_protocol *protocol, const char *endpoint, va_list more) {
    int code = 0;
    for (; endpoint != NULL && code >= 0; endpoint = va_arg(more, const char *))
        code = add_listener(s, endpoint, protocol);
    return code < 0 ? code : run(s);
}

int bk_serve(const bk_protocol *protocol, const char *endpoint, ...) {
    bk_os *os = bk_os_default();
    server s = {0};
    int code = protocol == NULL || endpoint == NULL ? -EINVAL : bk_loop_new(NULL, &s.loop);
    if (code < 0) {
        say(os, "becket: cannot serve: %s", bk_strerror(code));
        return 1;
    }
    va_list more;
    va_start(more, endpoint);
    code = serve_all(&s, protocol, endpoint, more);
    va_end(more);
    (void)bk_loop_free(s.loop);
    (void)os->signal_catch(os, SIGPIPE, NULL);
    return code < 0;
}
