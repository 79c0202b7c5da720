/*
 * serve.c: a whole server in one call, for main(): what is to be served, and the driver that does
 * it, until SIGINT or SIGTERM. Called by programs; see examples/echo.c.
 */
#include "core/serve/drive.h"

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

enum { LINE_BYTES = 512 };

/* ---- Telling ---- */

static void write_line(bk_os *os, char *line, int n) {
    n = n < 0 ? 0 : n < LINE_BYTES - 1 ? n : LINE_BYTES - 2;
    line[n] = '\n';
    const struct iovec v = {line, (size_t)n + 1};
    (void)os->write(os, 2, &v, 1);
}

__attribute__((format(printf, 2, 3))) static void say(bk_os *os, const char *format, ...) {
    char line[LINE_BYTES];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(line, sizeof line - 1, format, args);
    va_end(args);
    write_line(os, line, n);
}

void bk_plan_say(const bk_plan *plan, int code, const char *format, ...) {
    char text[LINE_BYTES];
    va_list args;
    va_start(args, format);
    (void)vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (plan->options.log != NULL)
        plan->options.log(plan->options.arg, code, text);
    else
        say(plan->os, "becket: %s", text);
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

void bk_plan_say_error(const bk_plan *plan, const char *endpoint, const bk_error *error) {
    bool in_text = error->position > 0 || error->code == BK_EENDPOINT ||
                   error->code == BK_ESCHEME || error->code == BK_EOPTION;
    if (plan->options.log != NULL || !in_text) {
        bk_plan_say(plan, error->code, "%s: %s", endpoint, error->text);
        return;
    }
    say(plan->os, "becket: %s", error->text);
    say_where(plan->os, endpoint, error->position);
}

/* ---- What is to be served ---- */

int64_t bk_plan_drain(const bk_plan *plan) {
    int seconds = plan->options.drain;
    return (seconds == 0 ? BK_DRAIN_S : seconds < 0 ? 0 : seconds) * BK_SECOND;
}

/* A table of an older header's size is filled up with nothing. */
static int take_options(const bk_serve_options *from, bk_plan *plan) {
    plan->options = (bk_serve_options){.size = sizeof plan->options};
    if (from != NULL)
        memcpy(&plan->options, from, from->size < sizeof *from ? from->size : sizeof *from);
    if (plan->options.os != NULL)
        plan->os = plan->options.os;
    if (from == NULL || from->size >= sizeof from->size)
        return 0;
    plan->options = (bk_serve_options){.size = sizeof plan->options};
    return -EINVAL;
}

static int take_endpoints(bk_plan *plan, const char *first, va_list more) {
    va_list again;
    va_copy(again, more);
    plan->count = 1;
    while (va_arg(again, const char *) != NULL)
        plan->count++;
    va_end(again);
    plan->endpoints = bk_alloc(plan->os, (size_t)plan->count * sizeof *plan->endpoints);
    if (plan->endpoints == NULL)
        return -ENOMEM;
    plan->endpoints[0] = first;
    for (int i = 1; i < plan->count; i++)
        plan->endpoints[i] = va_arg(more, const char *);
    return 0;
}

static int take_driver(bk_plan *plan, const bk_driver **ret_driver) {
    const char *name = plan->options.driver, *who = "driver";
    bk_error error;
    if (name == NULL) {
        name = getenv("BECKET_DRIVER");
        who = "BECKET_DRIVER";
    }
    if (name == NULL || *name == '\0')
        name = "loop";
    int code = bk_driver_find(name, ret_driver, &plan->workers, &error);
    if (code < 0)
        bk_plan_say(plan, code, "%s: %s", who, error.text);
    return code;
}

/* ---- The supervisor ---- */

static void tell(const bk_plan *plan, const char *state) {
    int code = bk_supervisor_tell(plan->os, state);
    if (code < 0)
        bk_plan_say(plan, code, "the supervisor cannot be told: %s", bk_strerror(code));
}

void bk_plan_tell_ready(const bk_plan *plan, bk_loop *loop) {
    int code = bk_supervisor_watch(loop);
    if (code < 0)
        bk_plan_say(plan, code, "there is no watchdog: %s", bk_strerror(code));
    tell(plan, "READY=1");
}

void bk_plan_tell_reload(const bk_plan *plan, void (*reload)(void *arg), void *arg) {
    char state[64];
    snprintf(state, sizeof state, "RELOADING=1\nMONOTONIC_USEC=%lld",
             (long long)(plan->os->clock(plan->os) / 1000));
    tell(plan, state);
    reload(arg);
    tell(plan, "READY=1");
}

void bk_plan_tell_stopping(const bk_plan *plan) {
    tell(plan, "STOPPING=1");
}

/* ---- Serving ---- */

/* Caught, not ignored: what is ignored stays so in the programs that a protocol may start. */
static void ignore(int signum) {
    (void)signum;
}

static int run(bk_plan *plan) {
    const bk_driver *driver;
    const bk_limits *limits = plan->options.limits;
    if (take_driver(plan, &driver) < 0)
        return 1;
    if (limits != NULL && limits->size < sizeof limits->size) {
        bk_plan_say(plan, -EINVAL, "limits: their size is not set");
        return 1;
    }
    int code = plan->os->signal_catch(plan->os, SIGPIPE, ignore);
    if (code < 0) {
        bk_plan_say(plan, code, "cannot serve: %s", bk_strerror(code));
        return 1;
    }
    int status = driver->run(plan);
    (void)plan->os->signal_catch(plan->os, SIGPIPE, NULL);
    return status;
}

static int serve(const bk_serve_options *options, const bk_protocol *protocol, const char *endpoint,
                 va_list more) {
    bk_plan plan = {.os = bk_os_default(), .protocol = protocol};
    int code = take_options(options, &plan);
    if (endpoint == NULL || (protocol == NULL && plan.options.setup == NULL))
        code = -EINVAL;
    if (code == 0)
        code = take_endpoints(&plan, endpoint, more);
    if (code < 0) {
        bk_plan_say(&plan, code, "cannot serve: %s", bk_strerror(code));
        return 1;
    }
    int status = run(&plan);
    bk_dealloc(plan.os, plan.endpoints);
    return status;
}

int bk_serve_with(const bk_serve_options *options, const bk_protocol *protocol,
                  const char *endpoint, ...) {
    va_list more;
    va_start(more, endpoint);
    int status = serve(options, protocol, endpoint, more);
    va_end(more);
    return status;
}

int bk_serve(const bk_protocol *protocol, const char *endpoint, ...) {
    va_list more;
    va_start(more, endpoint);
    int status = serve(NULL, protocol, endpoint, more);
    va_end(more);
    return status;
}
