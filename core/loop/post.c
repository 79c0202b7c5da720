/*
 * post.c: what comes to a loop from elsewhere: calls from other threads, and the wake that ends a
 * wait. A wake writes to a descriptor only when the loop may be waiting, and once. Called by other
 * threads and signal handlers, and by the turn in loop.c.
 */
#include "core/loop/loop.h"

static void woken(void *arg, unsigned events) {
    bk_loop *loop = arg;
    char room[64];
    (void)events;
    while (loop->os->read(loop->os, loop->wake_fds[0], room, sizeof room) == (ssize_t)sizeof room)
        ;
}

static void close_fds(bk_loop *loop) {
    bk_watch_forget(loop, loop->wake_fds[0]);
    bk_close_fd(loop->os, loop->wake_fds[0]);
    if (loop->wake_fds[1] != loop->wake_fds[0])
        bk_close_fd(loop->os, loop->wake_fds[1]);
    loop->wake_fds[0] = loop->wake_fds[1] = -1;
}

static int open_fds(bk_loop *loop) {
    int code = loop->os->wake_open(loop->os, loop->wake_fds);
    if (code < 0)
        return code;
    code = bk_watch_set(loop, loop->wake_fds[0], BK_READ, woken, loop);
    if (code >= 0)
        code = bk_watch_apply(loop, loop->wake_fds[0]);
    if (code < 0)
        close_fds(loop);
    return code;
}

int bk_posts_open(bk_loop *loop) {
    loop->lock = bk_lock_new(loop->os);
    if (loop->lock == NULL)
        return -ENOMEM;
    loop->posts_end = &loop->posts;
    int code = open_fds(loop);
    if (code < 0)
        bk_lock_free(loop->os, loop->lock);
    return code;
}

/* The child shares the parent's wake descriptor until it has one of its own; and a thread that is
   the parent's may have held the lock. */
int bk_posts_forked(bk_loop *loop) {
    bk_lock *lock = bk_lock_new(loop->os);
    if (lock == NULL)
        return -ENOMEM;
    bk_lock_abandon(loop->os, loop->lock);
    loop->lock = lock;
    close_fds(loop);
    return open_fds(loop);
}

void bk_loop_wake(bk_loop *loop) {
    static const uint64_t one = 1;
    if (loop == NULL)
        return;
    atomic_store(&loop->posted, true);
    if (!atomic_exchange(&loop->waiting, false))
        return;
    const struct iovec v = {(void *)&one, sizeof one};
    int before = errno;
    while (loop->os->write(loop->os, loop->wake_fds[1], &v, 1) == -EINTR)
        ; /* (-EAGAIN: is readable already) */
    errno = before;
}

static void append(bk_loop *loop, bk_post *post, bool kept) {
    bk_lock_take(loop->lock);
    if (!post->queued) {
        post->queued = true;
        post->kept = kept;
        post->next = NULL;
        *loop->posts_end = post;
        loop->posts_end = &post->next;
    }
    bk_lock_drop(loop->lock);
    bk_loop_wake(loop);
}

int bk_loop_post(bk_loop *loop, bk_fn fn, void *arg) {
    if (loop == NULL || fn == NULL)
        return -EINVAL;
    bk_post *post = bk_alloc(loop->os, sizeof *post);
    if (post == NULL)
        return -ENOMEM;
    *post = (bk_post){.call = {fn, arg}};
    append(loop, post, false);
    return 0;
}

void bk_loop_post_kept(bk_loop *loop, bk_post *post) {
    append(loop, post, true);
}

static void release(bk_loop *loop, bk_post *post) {
    bk_lock_take(loop->lock); /* one that is kept may be posted again, by anybody, from here on */
    bool kept = post->kept;
    post->queued = false;
    bk_lock_drop(loop->lock);
    if (!kept)
        bk_dealloc(loop->os, post);
}

static void put_back(bk_loop *loop, bk_post *rest) {
    bk_post **end = &rest->next;
    while (*end != NULL)
        end = &(*end)->next;
    bk_lock_take(loop->lock);
    *end = loop->posts;
    if (loop->posts == NULL)
        loop->posts_end = end;
    loop->posts = rest;
    bk_lock_drop(loop->lock);
    atomic_store(&loop->posted, true);
}

void bk_posts_take(bk_loop *loop) {
    atomic_store(&loop->posted, false); /* before looking: what comes later sets it again */
    bk_lock_take(loop->lock);
    bk_post *post = loop->posts;
    loop->posts = NULL;
    loop->posts_end = &loop->posts;
    bk_lock_drop(loop->lock);
    while (post != NULL && !loop->broken) {
        bk_post *next = post->next;
        bk_call call = post->call;
        release(loop, post);
        post = next;
        call.fn(call.arg);
        bk_loop_settle(loop);
    }
    if (post != NULL)
        put_back(loop, post);
    if (!loop->broken)
        bk_workers_take(loop);
    if (!loop->broken)
        bk_signals_fire(loop);
    if (loop->broken)
        atomic_store(&loop->posted, true); /* the rest in the next turn */
}

/* Those that have this function are called now, in their order; the others wait on. */
void bk_posts_call(bk_loop *loop, bk_fn fn) {
    bk_post *taken = NULL, **end = &taken, **link = &loop->posts;
    bk_lock_take(loop->lock);
    while (*link != NULL) {
        bk_post *post = *link;
        if (post->call.fn != fn) {
            link = &post->next;
            continue;
        }
        *link = post->next;
        post->next = NULL;
        *end = post;
        end = &post->next;
    }
    loop->posts_end = link;
    bk_lock_drop(loop->lock);
    while (taken != NULL) {
        bk_call call = taken->call;
        bk_post *next = taken->next;
        release(loop, taken);
        taken = next;
        call.fn(call.arg);
    }
}

/* Calls that nobody will make any more: the loop is going. */
void bk_posts_close(bk_loop *loop) {
    while (loop->posts != NULL) {
        bk_post *post = loop->posts;
        loop->posts = post->next;
        release(loop, post);
    }
    close_fds(loop);
    bk_lock_free(loop->os, loop->lock);
}
