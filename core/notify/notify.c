/*
 * notify.c: which notifiers there are on this system, best first. Called by bk_loop_new().
 */
#include "core/notify/notify.h"

static const bk_notifier_ops *const built_in[] = {
#if defined(__linux__)
    &bk_notifier_epoll,
#endif
    &bk_notifier_poll,
    &bk_notifier_select,
    NULL,
};

const bk_notifier_ops *const *bk_notifiers(void) {
    return built_in;
}
