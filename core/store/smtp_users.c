/*
 * smtp_users.c: users of a file log in by SMTP: the auth hook's whole answer. For programs with a
 * server, and for the Python extension.
 *
 * A password in clear is checked by a worker, a few at a time: the others are for the disk. So many
 * more wait as a crowd of honest clients would be; beyond that they are told to come again. Whether
 * there is such a user shows neither in the answer nor in the time it takes.
 */
#include "core/store/users.h"

#include "core/protocol/limits.h"
#include "core/protocol/sha256.h"

/* A password to be checked. Its texts are the session's, until that is answered. */
typedef struct check {
    bk_work work;
    struct check *next;
    bk_users *users;
    bk_users_lane *lane;
    bk_smtp_session *session;
    const char *password;
    bk_secret secret;
    bool known, right;
} check;

/* The checks of one loop, and touched in its thread alone. It stays as long as the users. */
struct bk_users_lane {
    bk_users_lane *next;
    bk_loop *loop;
    unsigned running, waiting;
    check *first, **end;
};

void bk_users_lanes_free(bk_users *u) {
    while (u->lanes != NULL) {
        bk_users_lane *first = u->lanes;
        u->lanes = first->next;
        bk_dealloc(u->os, first);
    }
}

/* The loop's lane, made when it is first needed; NULL: there is no memory. */
static bk_users_lane *lane_of(bk_users *u, bk_loop *loop) {
    bk_lock_take(u->lock);
    bk_users_lane *l = u->lanes;
    while (l != NULL && l->loop != loop)
        l = l->next;
    if (l == NULL && (l = bk_alloc_zero(u->os, sizeof *l)) != NULL) {
        l->loop = loop;
        l->next = u->lanes;
        u->lanes = l;
    }
    bk_lock_drop(u->lock);
    return l;
}

static void check_run(bk_work *work) {
    check *c = (check *)work;
    c->right = bk_secret_verify(&c->secret, c->password) && c->known;
}

static void check_end(check *c, const char *reply) {
    bk_users *users = c->users;
    bk_smtp_session *session = c->session;
    bk_wipe(&c->secret, sizeof c->secret);
    bk_dealloc(users->os, c);
    bk_smtp_answer(session, reply);
    bk_users_release(users);
}

static const char refused[] = "535 5.7.8 authentication credentials invalid";
static const char busy[] = "454 4.7.0 too many logins at once; try again later";

static void lane_go_on(bk_users_lane *l);

static void check_done(bk_work *work) {
    check *c = (check *)work;
    c->lane->running--;
    lane_go_on(c->lane);
    check_end(c, c->right ? NULL : refused);
}

/* Start those that wait, as far as that is allowed. */
static void lane_go_on(bk_users_lane *l) {
    while (l->first != NULL && l->running < BK_USERS_CHECKS) {
        check *c = l->first;
        l->first = c->next;
        l->waiting--;
        l->running++;
        if (bk_work_start(l->loop, &c->work) < 0) {
            l->running--;
            check_end(c, busy);
        }
    }
}

static void lane_add(bk_users_lane *l, check *c) {
    if (l->waiting++ == 0)
        l->end = &l->first;
    *l->end = c;
    l->end = &c->next;
}

static void check_password(bk_users *users, bk_loop *loop, bk_smtp_session *s,
                           const bk_smtp_login *login) {
    bk_users_lane *l = lane_of(users, loop);
    check *c =
        l != NULL && l->waiting < BK_USERS_WAITING ? bk_alloc_zero(users->os, sizeof *c) : NULL;
    if (c == NULL) {
        bk_smtp_answer(s, busy);
        return;
    }
    c->work.run = check_run;
    c->work.done = check_done;
    c->users = users;
    c->lane = l;
    c->session = s;
    c->password = login->password;
    c->known = bk_users_look_up(users, login->user, &c->secret);
    atomic_fetch_add(&users->references, 1);
    lane_add(l, c);
    /* One that fails here frees the users no earlier than their owner, who has called. */
    lane_go_on(l);
}

void bk_users_auth(bk_users *users, bk_loop *loop, bk_smtp_session *s, const bk_smtp_login *login) {
    bk_secret secret;
    if (users == NULL || loop == NULL || s == NULL || login == NULL)
        return;
    /* Each is himself, and nobody else. */
    if (*login->authorize != '\0' && strcmp(login->authorize, login->user) != 0)
        bk_smtp_answer(s, refused);
    else if (login->password != NULL)
        check_password(users, loop, s, login);
    else {
        (void)bk_users_look_up(users, login->user, &secret); /* a decoy goes through all of it */
        bk_smtp_answer_secret(s, &secret);
        bk_wipe(&secret, sizeof secret);
    }
}
