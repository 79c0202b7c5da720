/*
 * check.h: the tests in C, each a function in a table, reported in TAP for meson. A failed CHECK
 * says where and what, and goes on; the test counts as failed. Used by every tests/c/test_*.c:
 *
 *     static void adds(void) { CHECK(1 + 1 == 2); CHECK_INT(1 + 1, 2); CHECK_STR("a", "a"); }
 *     int main(int argc, char **argv) { static const check_case cases[] = {CASE(adds)};
 *                                       return check_main(argc, argv, cases, COUNT(cases)); }
 *
 * An argument runs only the tests whose name contains it; one that begins with a ! those whose name
 * does not contain what follows.
 */
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct check_case {
    const char *name;
    void (*run)(void);
} check_case;

#define CASE(function) {#function, function}
#define COUNT(array) ((int)(sizeof(array) / sizeof((array)[0])))

static int check_failures;
static const char *check_skipped;

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            check_failures++;                                                                      \
            printf("# %s:%d: not so: %s\n", __FILE__, __LINE__, #condition);                       \
        }                                                                                          \
    } while (0)

#define CHECK_INT(got, want)                                                                       \
    do {                                                                                           \
        long long check_got = (long long)(got), check_want = (long long)(want);                    \
        if (check_got != check_want) {                                                             \
            check_failures++;                                                                      \
            printf("# %s:%d: %s is %lld, not %lld\n", __FILE__, __LINE__, #got, check_got,         \
                   check_want);                                                                    \
        }                                                                                          \
    } while (0)

#define CHECK_STR(got, want)                                                                       \
    do {                                                                                           \
        const char *check_got = (got), *check_want = (want);                                       \
        if (check_got == NULL || strcmp(check_got, check_want) != 0) {                             \
            check_failures++;                                                                      \
            printf("# %s:%d: %s is \"%s\", not \"%s\"\n", __FILE__, __LINE__, #got,                \
                   check_got ? check_got : "(null)", check_want);                                  \
        }                                                                                          \
    } while (0)

/* For what this system cannot do: a skipped test is counted, and says why. */
static inline void check_skip(const char *why) {
    check_skipped = why;
}

static inline int check_wants(const char *name, const char *filter) {
    return filter[0] == '!' ? strstr(name, filter + 1) == NULL : strstr(name, filter) != NULL;
}

static inline int check_main(int argc, char **argv, const check_case *cases, int count) {
    int number = 0, failed = 0;
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int i = 0; i < count; i++) {
        if (argc > 1 && !check_wants(cases[i].name, argv[1]))
            continue;
        check_failures = 0;
        check_skipped = NULL;
        cases[i].run();
        printf("%s %d - %s", check_failures ? "not ok" : "ok", ++number, cases[i].name);
        if (check_skipped != NULL)
            printf(" # SKIP %s", check_skipped);
        printf("\n");
        failed += check_failures != 0;
    }
    printf("1..%d\n", number);
    return failed != 0;
}

#endif
