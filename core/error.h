/*
 * error.h: making errors that are told to a person. For all of core/.
 */
#ifndef BK_ERROR_H
#define BK_ERROR_H

#include <becket.h>

#include <stdarg.h>

/* Fill in error, which may be NULL; returns code. Control characters come out as '?'. */
int bk_error_set(bk_error *error, int code, size_t position, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
int bk_error_set_va(bk_error *error, int code, size_t position, const char *format, va_list args)
    __attribute__((format(printf, 4, 0)));

/* Add a name to a list in words, "epoll, poll"; what does not fit is left out. */
void bk_list_add(char *list, size_t room, const char *name);

#endif
