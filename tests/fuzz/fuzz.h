/*
 * fuzz.h: what the fuzz targets share: an input that is read byte by byte, memory that is counted,
 * and a check that ends the program, by which a fuzzer knows that it found something. A target is a
 * file fuzz_NAME.c with LLVMFuzzerTestOneInput(); `make fuzz` runs them all.
 */
#ifndef FUZZ_H
#define FUZZ_H

#include <becket.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

/* What must hold whatever the input; also where NDEBUG is defined. */
#define FUZZ_CHECK(what)                                                                           \
    do {                                                                                           \
        if (!(what))                                                                               \
            fuzz_broken(__FILE__, __LINE__, #what);                                                \
    } while (0)
_Noreturn void fuzz_broken(const char *file, int line, const char *what);

/* What goes on, for whoever looks into a finding; printed where FUZZ_TRACE is in the
   environment. */
void fuzz_say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* ---- The input ---- */

typedef struct fuzz_input {
    const uint8_t *at;
    size_t left;
    uint64_t taken;
} fuzz_input;

/* When the input is over there are zeros for ever: zero must be what a harmless peer does. */
unsigned fuzz_byte(fuzz_input *in);
/* A number below limit. */
unsigned fuzz_below(fuzz_input *in, unsigned limit);
/* A size: most are small, some are beyond every buffer. Never 0, unless the input is over. */
size_t fuzz_size(fuzz_input *in);

/* ---- Memory that is counted ---- */

typedef struct fuzz_os {
    bk_os os;
    long blocks;      /* not given back */
    unsigned fail_in; /* so many allocations from now on one fails; 0: none does */
} fuzz_os;

/* The system's own table, but for memory; over it a target lays what else it wants. */
void fuzz_os_open(fuzz_os *os);

/* ---- Bytes on their way ---- */

/* What was put in is what is to come out, in that order. */
typedef struct fuzz_fifo {
    uint8_t *bytes;
    size_t from, used, room;
    uint64_t put, taken; /* in all */
} fuzz_fifo;

void fuzz_fifo_put(fuzz_fifo *f, const void *data, size_t n);
/* Whether these are the next ones; and take them, which must be so. */
bool fuzz_fifo_begins(const fuzz_fifo *f, const void *data, size_t n);
void fuzz_fifo_take(fuzz_fifo *f, const void *data, size_t n);
uint8_t *fuzz_fifo_first(const fuzz_fifo *f); /* of those that are left; NULL: none ever came */
size_t fuzz_fifo_left(const fuzz_fifo *f);
void fuzz_fifo_free(fuzz_fifo *f);

#endif
