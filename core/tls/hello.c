/*
 * hello.c: reads the name that a client asks for out of its first bytes, before any engine sees
 * them: so choosing a certificate by name works, and may take time, with every engine alike. Called
 * by transport.c. RFC 8446 4.1.2 and 5.1, RFC 6066 3.
 */
#include "core/tls/tls.h"

enum {
    RECORD_HEAD = 5,
    MESSAGE_HEAD = 4,
    HANDSHAKE = 22,
    CLIENT_HELLO = 1,
    SERVER_NAME = 0,
    HOST_NAME = 0,
};

/* What is left to read; every take checks, and one that fails leaves `broken`. */
typedef struct cursor {
    const uint8_t *at;
    size_t left;
    bool broken;
} cursor;

static uint32_t take_number(cursor *c, int bytes) {
    uint32_t n = 0;
    if (c->left < (size_t)bytes) {
        c->broken = true;
        return 0;
    }
    for (int i = 0; i < bytes; i++)
        n = n << 8 | *c->at++;
    c->left -= (size_t)bytes;
    return n;
}

static cursor take(cursor *c, size_t n) {
    if (c->left < n) {
        c->broken = true;
        n = 0;
    }
    cursor part = {c->at, n, c->broken};
    c->at += n;
    c->left -= n;
    return part;
}

/* A vector: its length in so many bytes, then what it holds. */
static cursor take_vector(cursor *c, int bytes) {
    return take(c, take_number(c, bytes));
}

/* ---- The message ---- */

static int name_of(cursor list, char ret_name[BK_TLS_NAME_BYTES]) {
    cursor names = take_vector(&list, 2);
    while (names.left > 0 && !names.broken) {
        uint32_t kind = take_number(&names, 1);
        cursor name = take_vector(&names, 2);
        if (kind != HOST_NAME || names.broken)
            continue;
        if (name.left >= BK_TLS_NAME_BYTES || memchr(name.at, '\0', name.left) != NULL)
            return BK_ETLS_PROTOCOL;
        for (size_t i = 0; i < name.left; i++) {
            uint8_t c = name.at[i];
            ret_name[i] = (char)(c >= 'A' && c <= 'Z' ? c + ('a' - 'A') : c);
        }
        ret_name[name.left] = '\0';
        return 1;
    }
    return names.broken ? BK_ETLS_PROTOCOL : 1;
}

static int parse_hello(cursor hello, char ret_name[BK_TLS_NAME_BYTES]) {
    ret_name[0] = '\0';
    (void)take(&hello, 2 + 32);   /* version, random */
    (void)take_vector(&hello, 1); /* session */
    (void)take_vector(&hello, 2); /* ciphers */
    (void)take_vector(&hello, 1); /* compression */
    if (hello.left == 0)          /* without extensions, as long ago */
        return hello.broken ? BK_ETLS_PROTOCOL : 1;
    cursor extensions = take_vector(&hello, 2);
    while (extensions.left > 0 && !extensions.broken) {
        uint32_t kind = take_number(&extensions, 2);
        cursor body = take_vector(&extensions, 2);
        if (kind == SERVER_NAME && !extensions.broken)
            return name_of(body, ret_name);
    }
    return hello.broken || extensions.broken ? BK_ETLS_PROTOCOL : 1;
}

/* ---- The records that carry it ---- */

/* How long the message is that begins here, with its head; 0: not known yet. */
static size_t message_size(const uint8_t *message, size_t n) {
    cursor head = {message, n, false};
    if (n < MESSAGE_HEAD)
        return 0;
    (void)take_number(&head, 1);
    return MESSAGE_HEAD + (size_t)take_number(&head, 3);
}

/* Joins what the records hold of the first message into room, which is as large as all of them.
   What follows the message is not looked at: early data may. */
static int join(cursor records, uint8_t *room, size_t *ret_n) {
    size_t n = 0;
    while (records.left >= RECORD_HEAD && (n < MESSAGE_HEAD || n < message_size(room, n))) {
        uint32_t kind = take_number(&records, 1);
        uint32_t version = take_number(&records, 2);
        uint32_t size = take_number(&records, 2);
        if (kind != HANDSHAKE || version >> 8 != 3 || size == 0)
            return BK_ETLS_PROTOCOL;
        size_t part = size < records.left ? size : records.left;
        memcpy(room + n, take(&records, part).at, part);
        n += part;
    }
    *ret_n = n;
    return 0;
}

int bk_hello_find_name(bk_os *os, const void *data, size_t n, char ret_name[BK_TLS_NAME_BYTES]) {
    const uint8_t *first = data;
    if (n > 0 && first[0] != HANDSHAKE)
        return BK_ETLS_PROTOCOL;
    if (n < RECORD_HEAD + MESSAGE_HEAD)
        return 0;
    uint8_t *joined = bk_alloc(os, n);
    if (joined == NULL)
        return -ENOMEM;
    size_t got, size;
    int code = join((cursor){data, n, false}, joined, &got);
    if (code == 0 && (size = message_size(joined, got)) > 0) {
        cursor message = {joined + MESSAGE_HEAD, size - MESSAGE_HEAD, false};
        if (joined[0] != CLIENT_HELLO || size > BK_TLS_HELLO_BYTES)
            code = BK_ETLS_PROTOCOL;
        else if (got >= size)
            code = parse_hello(message, ret_name);
    }
    bk_dealloc(os, joined);
    return code;
}

/* ---- Choosing ---- */

const char *bk_tls_hello_name(const bk_tls_hello *hello) {
    return hello == NULL ? "" : hello->name;
}

void bk_tls_choose(bk_tls_hello *hello, bk_tls_context *context) {
    if (hello == NULL || hello->answered)
        return;
    if (hello->transport == NULL) { /* nobody is there any more */
        bk_dealloc(hello->os, hello);
        return;
    }
    hello->answered = true;
    hello->context = context != NULL && context->server ? bk_tls_context_ref(context) : NULL;
    bk_transport_wake(hello->transport);
}
