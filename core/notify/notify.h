/*
 * notify.h: the notifiers, one file each, with the same functions in the same order: open, close,
 * forked, arm, disarm, wait, fd. For core/notify; others find them through bk_notifiers().
 */
#ifndef BK_NOTIFY_H
#define BK_NOTIFY_H

#include "core/limits.h"
#include "core/os/os.h"

extern const bk_notifier_ops bk_notifier_epoll;
extern const bk_notifier_ops bk_notifier_poll;
extern const bk_notifier_ops bk_notifier_select;

#endif
