/*
 * fuzz.c: what the fuzz targets share, as told in fuzz.h.
 */
#include "tests/fuzz/fuzz.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

_Noreturn void fuzz_broken(const char *file, int line, const char *what) {
    fprintf(stderr, "%s:%d: this does not hold: %s\n", file, line, what);
    abort();
}

void fuzz_say(const char *format, ...) {
    static int loud = -1;
    va_list args;
    if (loud < 0)
        loud = getenv("FUZZ_TRACE") != NULL;
    if (!loud)
        return;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
}

unsigned fuzz_byte(fuzz_input *in) {
    if (in->left == 0)
        return 0;
    in->left--;
    in->taken++;
    return *in->at++;
}

unsigned fuzz_below(fuzz_input *in, unsigned limit) {
    return fuzz_byte(in) % limit;
}

size_t fuzz_size(fuzz_input *in) {
    static const size_t sizes[] = {255,   1000,  4095,  4096,  5000,  16383,
                                   16384, 16385, 40000, 65536, 70000, 140000};
    const size_t count = sizeof sizes / sizeof sizes[0];
    unsigned pick = fuzz_byte(in);
    return pick < 256 - count ? pick : sizes[pick - (256 - count)];
}

static void *resize(bk_os *base, void *old, size_t n) {
    fuzz_os *os = (fuzz_os *)base;
    if (n == 0) {
        os->blocks -= old != NULL;
        free(old);
        return NULL;
    }
    if (os->fail_in > 0 && --os->fail_in == 0)
        return NULL;
    void *p = realloc(old, n);
    os->blocks += old == NULL && p != NULL;
    return p;
}

void fuzz_os_open(fuzz_os *os) {
    memset(os, 0, sizeof *os);
    os->os = *bk_os_default();
    os->os.resize = resize;
}

void fuzz_fifo_put(fuzz_fifo *f, const void *data, size_t n) {
    if (f->from == f->used)
        f->from = f->used = 0;
    if (f->room - f->used < n) {
        f->room = 2 * (f->used + n);
        f->bytes = realloc(f->bytes, f->room);
        FUZZ_CHECK(f->bytes != NULL);
    }
    if (n > 0)
        memcpy(f->bytes + f->used, data, n);
    f->used += n;
    f->put += n;
}

bool fuzz_fifo_begins(const fuzz_fifo *f, const void *data, size_t n) {
    return n <= fuzz_fifo_left(f) && (n == 0 || memcmp(fuzz_fifo_first(f), data, n) == 0);
}

void fuzz_fifo_take(fuzz_fifo *f, const void *data, size_t n) {
    FUZZ_CHECK(n <= fuzz_fifo_left(f));
    FUZZ_CHECK(fuzz_fifo_begins(f, data, n));
    f->from += n;
    f->taken += n;
}

uint8_t *fuzz_fifo_first(const fuzz_fifo *f) {
    return f->bytes == NULL ? NULL : f->bytes + f->from;
}

size_t fuzz_fifo_left(const fuzz_fifo *f) {
    return f->used - f->from;
}

void fuzz_fifo_free(fuzz_fifo *f) {
    free(f->bytes);
    *f = (fuzz_fifo){NULL, 0, 0, 0, 0, 0};
}
