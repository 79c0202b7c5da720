/*
 * fuzz_hello.c: the name in a client hello, found before any engine has seen it. Whatever comes:
 * the answer is one of those told, no byte beyond the input is read, and where the input was cut
 * makes no difference: what was decided of the first bytes holds when more have come.
 */
#include "core/tls/tls.h"
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>

static fuzz_os os;

/* In memory of just that size, so that a byte too far is found out. */
static int find_name(const uint8_t *data, size_t n, char ret_name[BK_TLS_NAME_BYTES]) {
    uint8_t *copy = malloc(n > 0 ? n : 1);
    FUZZ_CHECK(copy != NULL);
    if (n > 0)
        memcpy(copy, data, n);
    memset(ret_name, 'X', BK_TLS_NAME_BYTES);
    int code = bk_hello_find_name(&os.os, copy, n, ret_name);
    free(copy);
    FUZZ_CHECK(code == 0 || code == 1 || code == BK_ETLS_PROTOCOL);
    FUZZ_CHECK(os.blocks == 0);
    return code;
}

static void check_name(const char name[BK_TLS_NAME_BYTES]) {
    FUZZ_CHECK(memchr(name, '\0', BK_TLS_NAME_BYTES) != NULL);
    for (; *name != '\0'; name++)
        FUZZ_CHECK(*name < 'A' || *name > 'Z');
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    char whole[BK_TLS_NAME_BYTES], part[BK_TLS_NAME_BYTES];
    fuzz_os_open(&os);
    int code = find_name(data, n, whole);
    if (code == 1)
        check_name(whole);
    size_t step = n < 600 ? 1 : n / 300;
    for (size_t cut = 0; cut < n; cut += step) {
        int early = find_name(data, cut, part);
        FUZZ_CHECK(early == 0 || early == code);
        FUZZ_CHECK(early != 1 || strcmp(part, whole) == 0);
    }
    os.fail_in = 1;
    code = bk_hello_find_name(&os.os, data, n, part);
    FUZZ_CHECK(code <= 0 && os.blocks == 0);
    return 0;
}
