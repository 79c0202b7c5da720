/*
 * worker.c: a small pool of threads per loop for what blocks: resolvers and disks. Threads are
 * started as they are needed and end with the loop. Called through bk_work_start(), and by
 * bk_posts_take() for what is done.
 */
#include "core/loop/loop.h"

struct bk_pool {
    bk_lock *lock;
    bk_work *todo, **todo_end;
    bk_work *done, **done_end;
    bool ending;
    int idle, waiting; /* threads without work; works no thread has taken yet */
    int count;
    bk_thread threads[BK_WORKERS];
};

static void append(bk_work ***end, bk_work *work) {
    work->next = NULL;
    **end = work;
    *end = &work->next;
}

static bk_work *take_todo(bk_pool *pool) {
    while (pool->todo == NULL && !pool->ending) {
        pool->idle++;
        bk_lock_wait(pool->lock);
        pool->idle--;
    }
    bk_work *work = pool->todo;
    if (work != NULL) {
        pool->todo = work->next;
        pool->waiting--;
        if (pool->todo == NULL)
            pool->todo_end = &pool->todo;
    }
    return work;
}

static void worker_main(void *arg) {
    bk_loop *loop = arg;
    bk_pool *pool = loop->pool;
    bk_work *work;
    bk_lock_take(pool->lock);
    while ((work = take_todo(pool)) != NULL) {
        bk_lock_drop(pool->lock);
        work->run(work);
        bk_lock_take(pool->lock);
        append(&pool->done_end, work);
        bk_loop_wake(loop);
    }
    bk_lock_drop(pool->lock);
}

static int open_pool(bk_loop *loop) {
    if (loop->pool != NULL)
        return 0;
    bk_pool *pool = bk_alloc_zero(loop->os, sizeof *pool);
    if (pool == NULL)
        return -ENOMEM;
    pool->lock = bk_lock_new(loop->os);
    if (pool->lock == NULL) {
        bk_dealloc(loop->os, pool);
        return -ENOMEM;
    }
    pool->todo_end = &pool->todo;
    pool->done_end = &pool->done;
    loop->pool = pool;
    return 0;
}

/* One more thread, when all are busy. A pool that has one can do without another. */
static int ensure_thread(bk_loop *loop) {
    bk_pool *pool = loop->pool;
    if (pool->idle > pool->waiting || pool->count == BK_WORKERS)
        return 0;
    int code = loop->os->thread_start(loop->os, worker_main, loop, &pool->threads[pool->count]);
    if (code >= 0)
        pool->count++;
    return pool->count > 0 ? 0 : code;
}

int bk_work_start(bk_loop *loop, bk_work *work) {
    if (loop == NULL || work == NULL || work->run == NULL || work->done == NULL)
        return -EINVAL;
    int code = open_pool(loop);
    if (code < 0)
        return code;
    bk_pool *pool = loop->pool;
    bk_lock_take(pool->lock);
    code = ensure_thread(loop);
    if (code >= 0) {
        work->loop = loop;
        append(&pool->todo_end, work);
        pool->waiting++;
        bk_lock_signal(pool->lock);
    }
    bk_lock_drop(pool->lock);
    return code;
}

static void put_back(bk_pool *pool, bk_work *rest) {
    bk_work **end = &rest->next;
    while (*end != NULL)
        end = &(*end)->next;
    bk_lock_take(pool->lock);
    *end = pool->done;
    if (pool->done == NULL)
        pool->done_end = end;
    pool->done = rest;
    bk_lock_drop(pool->lock);
}

void bk_workers_take(bk_loop *loop) {
    bk_pool *pool = loop->pool;
    if (pool == NULL)
        return;
    bk_lock_take(pool->lock);
    bk_work *work = pool->done;
    pool->done = NULL;
    pool->done_end = &pool->done;
    bk_lock_drop(pool->lock);
    while (work != NULL && !loop->broken) {
        bk_work *next = work->next;
        work->done(work);
        bk_loop_settle(loop);
        work = next;
    }
    if (work != NULL)
        put_back(pool, work);
}

/* In the child of a fork no thread of the pool is left. What no thread had taken yet is done here;
   what was under way is the parent's. */
int bk_workers_forked(bk_loop *loop) {
    bk_pool *pool = loop->pool;
    if (pool == NULL)
        return 0;
    bk_lock *lock = bk_lock_new(loop->os);
    if (lock == NULL)
        return -ENOMEM;
    bk_lock_abandon(loop->os, pool->lock);
    pool->lock = lock;
    pool->count = pool->idle = 0;
    return pool->todo != NULL ? ensure_thread(loop) : 0;
}

/* What was started is finished, and told: its owner frees its memory then. */
void bk_workers_close(bk_loop *loop) {
    bk_pool *pool = loop->pool;
    if (pool == NULL)
        return;
    bk_lock_take(pool->lock);
    pool->ending = true;
    bk_lock_broadcast(pool->lock);
    bk_lock_drop(pool->lock);
    /* What is still being worked on may need what the host holds. */
    const bk_loop_hooks *hooks = loop->options.hooks;
    if (hooks != NULL && BK_HAS(hooks, before_wait))
        hooks->before_wait(loop->options.arg);
    for (int i = 0; i < pool->count; i++)
        (void)loop->os->thread_join(loop->os, pool->threads[i]);
    if (hooks != NULL && BK_HAS(hooks, after_wait))
        hooks->after_wait(loop->options.arg);
    /* What a done() starts now gets a pool of its own, which is closed in its turn. */
    loop->pool = NULL;
    while (pool->done != NULL) {
        bk_work *work = pool->done;
        pool->done = work->next;
        work->done(work);
    }
    bk_lock_free(loop->os, pool->lock);
    bk_dealloc(loop->os, pool);
}
