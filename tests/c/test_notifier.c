/*
 * test_notifier.c: the built-in notifiers, by themselves and under a loop: tests/conformance over
 * each, with a look at what they leave behind; and what is true of ours alone.
 */
#include "tests/c/check.h"
#include "tests/c/support.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <unistd.h>

static void conforms(const char *name) {
    const bk_notifier_ops *ops = support_notifier_named(name);
    if (ops == NULL) {
        check_skip("this system does not have it");
        return;
    }
    CHECK_INT(support_conforms(support_notifier, ops, NULL), 0);
    CHECK_INT(support_conforms(support_notifier_loop, ops, NULL), 0);
}

static void epoll_conforms(void) {
    conforms("epoll");
}

static void poll_conforms(void) {
    conforms("poll");
}

static void select_conforms(void) {
    conforms("select");
}

/* What each promises of itself, which decides who is told that a file is ready, and when. */
static void traits_are_told(void) {
    static const struct {
        const char *name;
        unsigned traits;
    } all[] = {
        {"epoll", BK_ANY_FD | BK_ACTIVE_COST | BK_POLLABLE},
        {"poll", BK_ANY_FD | BK_FILES},
        {"select", BK_ANY_FD | BK_FILES},
    };
    for (int i = 0; i < COUNT(all); i++) {
        const bk_notifier_ops *ops = support_notifier_named(all[i].name);
        if (ops != NULL)
            CHECK_INT(ops->traits, all[i].traits);
    }
}

/* select(2) ends at FD_SETSIZE, sharply; the others go on to the limit of the process. */
static void room_for_numbers(void) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    const int numbers[] = {FD_SETSIZE - 1, FD_SETSIZE, FD_SETSIZE + 63, FD_SETSIZE * 3};
    for (const bk_notifier_ops *const *all = bk_notifiers(); *all != NULL; all++) {
        bk_notifier n = {*all, bk_os_default(), NULL};
        CHECK_INT(n.ops->open(&n), 0);
        for (int i = 0; i < COUNT(numbers); i++) {
            int fd = dup2(STDIN_FILENO, numbers[i]);
            if (fd < 0)
                continue;
            bool beyond = strcmp((*all)->name, "select") == 0 && fd >= FD_SETSIZE;
            int code = n.ops->arm(&n, fd, BK_READ, 1);
            CHECK(beyond ? code == -EMFILE : code == 0 || code == -EPERM);
            CHECK_INT(n.ops->disarm(&n, fd), 0);
            close(fd);
        }
        n.ops->close(&n);
    }
}

int main(int argc, char **argv) {
    static const check_case cases[] = {
        CASE(epoll_conforms),  CASE(poll_conforms),    CASE(select_conforms),
        CASE(traits_are_told), CASE(room_for_numbers),
    };
    return check_main(argc, argv, cases, COUNT(cases));
}
