/*
 * fuzz_endpoint.c: the parser of endpoints. Whatever is written: what it returns is whole, and an
 * error says where in the text it is.
 */
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>
#include <string.h>

static fuzz_os os;

static void check_texts(const bk_endpoint *e, size_t n) {
    FUZZ_CHECK(e->scheme != NULL && *e->scheme != '\0');
    FUZZ_CHECK(e->port >= -1 && e->port <= 65535);
    FUZZ_CHECK(e->rest > strlen(e->scheme) && e->rest <= n);
    FUZZ_CHECK(e->host == NULL || strlen(e->host) <= n);
    FUZZ_CHECK(e->path == NULL || strlen(e->path) <= n);
    FUZZ_CHECK(e->option_count >= 0 && e->option_count <= BK_ENDPOINT_OPTIONS);
    for (int i = 0; i < e->option_count; i++) {
        FUZZ_CHECK(strlen(e->options[i].key) + strlen(e->options[i].value) <= n);
        FUZZ_CHECK(e->options[i].position <= n);
        FUZZ_CHECK(bk_endpoint_option(e, e->options[i].key) != NULL);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    bk_endpoint e;
    bk_error error = {0, 0, ""};
    char *text = malloc(n + 1);
    FUZZ_CHECK(text != NULL);
    if (n > 0)
        memcpy(text, data, n);
    text[n] = '\0';
    n = strlen(text);
    fuzz_os_open(&os);
    int code = bk_endpoint_parse(&os.os, text, &e, &error);
    if (code == 0) {
        check_texts(&e, n);
        bk_endpoint_clear(&os.os, &e);
    } else {
        FUZZ_CHECK(code < 0 && error.code == code && error.position <= n);
        FUZZ_CHECK(memchr(error.text, '\0', sizeof error.text) != NULL && error.text[0] != '\0');
    }
    FUZZ_CHECK(os.blocks == 0);
    free(text);
    return 0;
}
