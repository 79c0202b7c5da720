/*
 * users.h: the users of a file, between users.c, which reads it, and smtp_users.c, which lets them
 * log in.
 */
#ifndef BK_USERS_H
#define BK_USERS_H

#include <becket-smtp.h>

#include "core/os/os.h"

#include <stdatomic.h>

typedef struct bk_user_table bk_user_table;
typedef struct bk_users_lane bk_users_lane;

struct bk_users {
    bk_os *os;
    atomic_uint references; /* the owner, and checks under way */
    bk_lock *lock;          /* for what follows */
    bk_user_table *table;
    bk_users_lane *lanes;
    char path[];
};

void bk_users_release(bk_users *u);
/* Whether there is such a user; if not, the secret is one that nobody knows the password of, and
   that is not to be told from others. */
bool bk_users_look_up(bk_users *users, const char *name, bk_secret *ret_secret);
void bk_users_lanes_free(bk_users *u);

#endif
