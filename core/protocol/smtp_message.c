/*
 * smtp_message.c: a message with its envelope, as smtp.c gathers it and a store or a program takes
 * it over: the recipients, the growing data, the Received: header before it.
 */
#include "core/protocol/smtp_message.h"

#include "core/protocol/limits.h"
#include "core/protocol/smtp_path.h"

#include <stdio.h>

char *bk_smtp_text_new(bk_os *os, const char *text, size_t n) {
    char *copy = bk_alloc(os, n + 1);
    if (copy == NULL)
        return NULL;
    memcpy(copy, text, n);
    copy[n] = '\0';
    return copy;
}

int bk_smtp_message_from(bk_os *os, const char *sender, size_t n, bk_smtp_message **ret_message) {
    bk_smtp_message *message = bk_alloc_zero(os, sizeof *message);
    if (message == NULL)
        return -ENOMEM;
    message->os = os;
    message->sender = bk_smtp_text_new(os, sender, n);
    message->options = bk_smtp_text_new(os, "", 0);
    if (message->sender == NULL || message->options == NULL) {
        bk_smtp_message_free(message);
        return -ENOMEM;
    }
    *ret_message = message;
    return 0;
}

/* An address without its brackets; ret_utf8: it is beyond ASCII. */
static int address_check(const char *address, int *ret_utf8) {
    char path[BK_SMTP_PATH_MAX + 1];
    bk_smtp_path parsed;
    size_t n = address != NULL ? strlen(address) : sizeof path;
    if (n + 2 > BK_SMTP_PATH_MAX)
        return -EINVAL;
    path[0] = '<';
    memcpy(path + 1, address, n);
    path[n + 1] = '>';
    if (bk_smtp_path_parse(path, n + 2, &parsed) != BK_SMTP_FINE || parsed.size != n ||
        parsed.used != n + 2)
        return -EINVAL;
    *ret_utf8 |= parsed.utf8;
    return 0;
}

int bk_smtp_message_new(bk_os *os, const char *sender, bk_smtp_message **ret_message) {
    int utf8 = 0;
    if (os == NULL || ret_message == NULL || address_check(sender, &utf8) < 0)
        return -EINVAL;
    int r = bk_smtp_message_from(os, sender, strlen(sender), ret_message);
    if (r == 0)
        (*ret_message)->utf8 = utf8;
    return r;
}

int bk_smtp_message_to(bk_smtp_message *message, const char *recipient) {
    int utf8 = 0;
    bk_smtp_recipient *place;
    if (message == NULL || address_check(recipient, &utf8) < 0 || *recipient == '\0')
        return -EINVAL;
    int r = bk_smtp_recipient_place(message, recipient, strlen(recipient), "", 0, &place);
    if (r < 0)
        return r;
    message->recipient_count++;
    message->utf8 |= utf8;
    return 0;
}

void bk_smtp_recipient_clear(bk_os *os, bk_smtp_recipient *recipient) {
    bk_dealloc(os, recipient->address);
    bk_dealloc(os, recipient->original);
    bk_dealloc(os, recipient->options);
    *recipient = (bk_smtp_recipient){0};
}

void bk_smtp_message_free(bk_smtp_message *message) {
    if (message == NULL)
        return;
    bk_os *os = message->os;
    for (size_t i = 0; i < message->recipient_count; i++)
        bk_smtp_recipient_clear(os, &message->recipients[i]);
    bk_dealloc(os, message->recipients);
    bk_dealloc(os, message->sender);
    bk_dealloc(os, message->envelope_id);
    bk_dealloc(os, message->submitter);
    bk_dealloc(os, message->options);
    bk_dealloc(os, message->data);
    bk_dealloc(os, message);
}

/* Room for one more; grown in steps of a power of two. */
static int recipients_reserve(bk_smtp_message *message) {
    size_t count = message->recipient_count;
    if (message->recipients != NULL && (count < 4 || (count & (count - 1)) != 0))
        return 0;
    size_t room = count < 4 ? 4 : count * 2;
    bk_smtp_recipient *recipients =
        message->os->resize(message->os, message->recipients, room * sizeof *recipients);
    if (recipients == NULL)
        return -ENOMEM;
    message->recipients = recipients;
    return 0;
}

int bk_smtp_recipient_place(bk_smtp_message *message, const char *address, size_t n,
                            const char *options, size_t options_size,
                            bk_smtp_recipient **ret_recipient) {
    int r = recipients_reserve(message);
    if (r < 0)
        return r;
    bk_smtp_recipient *place = &message->recipients[message->recipient_count];
    *place = (bk_smtp_recipient){.address = bk_smtp_text_new(message->os, address, n),
                                 .options = bk_smtp_text_new(message->os, options, options_size)};
    if (place->address == NULL || place->options == NULL) {
        bk_smtp_recipient_clear(message->os, place);
        return -ENOMEM;
    }
    *ret_recipient = place;
    return 0;
}

/* Room for so many bytes of data more. */
static int message_reserve(bk_smtp_message *message, size_t more) {
    if (more <= message->room - message->size)
        return 0;
    size_t room = message->room < BK_BUFFER_START ? (size_t)BK_BUFFER_START : message->room;
    while (room - message->size < more) {
        if (room > SIZE_MAX / 2)
            return -ENOMEM;
        room *= 2;
    }
    char *grown = message->os->resize(message->os, message->data, room);
    if (grown == NULL)
        return -ENOMEM;
    message->data = grown;
    message->room = room;
    return 0;
}

int bk_smtp_message_add(bk_smtp_message *message, const void *data, size_t n) {
    if (message == NULL || (data == NULL && n > 0))
        return -EINVAL;
    int r = message_reserve(message, n);
    if (r < 0)
        return r;
    if (n > 0)
        memcpy(message->data + message->size, data, n);
    message->size += n;
    return 0;
}

void bk_smtp_message_drop_data(bk_smtp_message *message) {
    bk_dealloc(message->os, message->data);
    message->data = NULL;
    message->size = message->room = message->trace_size = 0;
}

/* RFC 5322, 3.3, in UTC. The calendar by Euclidean affine functions: years begin in March, so that
   the leap day is the last of its year. */
static void date_format(int64_t wall_ns, char *ret_text, size_t room) {
    static const char months[] = "MarAprMayJunJulAugSepOctNovDecJanFeb";
    static const char days[] = "ThuFriSatSunMonTueWed";
    int64_t seconds = wall_ns > 0 ? wall_ns / BK_SECOND : 0;
    int64_t day = seconds / 86400, left = seconds % 86400;
    int64_t shifted = day + 719468; /* from 0000-03-01 */
    int64_t era = shifted / 146097, of_era = shifted % 146097;
    int64_t year = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
    int64_t of_year = of_era - (365 * year + year / 4 - year / 100);
    int64_t month = (5 * of_year + 2) / 153;
    int64_t of_month = of_year - (153 * month + 2) / 5 + 1;
    snprintf(ret_text, room, "%.3s, %d %.3s %lld %02d:%02d:%02d +0000", days + 3 * (day % 7),
             (int)of_month, months + 3 * month, (long long)(year + era * 400 + (month >= 10)),
             (int)(left / 3600), (int)(left / 60 % 60), (int)(left % 60));
}

int bk_smtp_message_trace(bk_smtp_message *message, const char *helo, const char *peer,
                          const char *hostname, const char *protocol) {
    char text[BK_SMTP_TRACE_MAX], date[48];
    date_format(message->os->wall(message->os), date, sizeof date);
    int n = snprintf(text, sizeof text, "Received: from %s%s%s%s\r\n\tby %s with %s; %s\r\n", helo,
                     *peer ? " ([" : "", peer, *peer ? "])" : "", hostname, protocol, date);
    if (n < 0 || (size_t)n >= sizeof text)
        return -EINVAL;
    int r = bk_smtp_message_add(message, text, (size_t)n);
    if (r == 0)
        message->trace_size = (size_t)n;
    return r;
}
