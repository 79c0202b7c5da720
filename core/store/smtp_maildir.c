/*
 * smtp_maildir.c: mail that comes in by SMTP, stored in a Maildir: the message hook of the one is
 * answered when the other is done. For `becket serve smtp` and for programs that want just that.
 *
 * As the last to deliver, this adds Return-Path: (RFC 5321, 4.4); Received: is added by smtp.c.
 */
#include "core/protocol/smtp.h"

#include "core/os/os.h"
#include "core/protocol/limits.h"

#include <stdatomic.h>
#include <stdio.h>

typedef struct mail_store {
    bk_work cleaning;
    bk_os *os;
    bk_loop *loop;
    bk_maildir *maildir;
    bk_smtp_stored stored;
    void *arg;
    bk_smtp_config config; /* the program's: its hooks, and their context */
    atomic_uint users;     /* the protocol, and messages under way */
} mail_store;

/* A message on its way to the disk. */
typedef struct mail_job {
    mail_store *store;
    bk_smtp_session *session;
    bk_smtp_message *message;
    char return_path[BK_SMTP_PATH_MAX + sizeof "Return-Path: <>\r\n"];
} mail_job;

static void store_release(void *arg) {
    mail_store *store = arg;
    if (atomic_fetch_sub(&store->users, 1) != 1)
        return;
    bk_maildir_close(store->maildir);
    bk_dealloc(store->os, store);
}

/* ---- The program's hooks, with their own context ---- */

static void store_connect(void *context, bk_smtp_session *s) {
    const bk_smtp_config *c = &((mail_store *)context)->config;
    c->connect(c->context, s);
}

static void store_helo(void *context, bk_smtp_session *s) {
    const bk_smtp_config *c = &((mail_store *)context)->config;
    c->helo(c->context, s);
}

static void store_auth(void *context, bk_smtp_session *s, const bk_smtp_login *login) {
    const bk_smtp_config *c = &((mail_store *)context)->config;
    c->auth(c->context, s, login);
}

static void store_mail(void *context, bk_smtp_session *s, const bk_smtp_message *envelope) {
    const bk_smtp_config *c = &((mail_store *)context)->config;
    c->mail(c->context, s, envelope);
}

static void store_rcpt(void *context, bk_smtp_session *s, const bk_smtp_message *envelope,
                       const bk_smtp_recipient *recipient) {
    const bk_smtp_config *c = &((mail_store *)context)->config;
    c->rcpt(c->context, s, envelope, recipient);
}

static void store_data(void *context, bk_smtp_session *s, const bk_smtp_message *envelope) {
    const bk_smtp_config *c = &((mail_store *)context)->config;
    c->data(c->context, s, envelope);
}

static void store_vrfy(void *context, bk_smtp_session *s, const char *address) {
    const bk_smtp_config *c = &((mail_store *)context)->config;
    c->vrfy(c->context, s, address);
}

static void store_reset(void *context, bk_smtp_session *s) {
    const bk_smtp_config *c = &((mail_store *)context)->config;
    c->reset(c->context, s);
}

static void store_disconnect(void *context, bk_smtp_session *s) {
    const bk_smtp_config *c = &((mail_store *)context)->config;
    c->disconnect(c->context, s);
}

/* ---- Storing ---- */

/* The end of a job, whatever it came to. The session is answered last: it may go on at once. */
static void job_end(void *arg, int code, const char *name) {
    mail_job *job = arg;
    mail_store *store = job->store;
    bk_smtp_session *session = job->session;
    const char *reply = NULL;
    if (code == -ENOSPC || code == -EDQUOT || code == -ENOMEM)
        reply = "452 4.3.1 insufficient system storage";
    else if (code < 0)
        reply = "451 4.3.0 message cannot be stored now";
    else if (store->stored != NULL)
        store->stored(store->arg, name, job->message);
    bk_smtp_message_free(job->message);
    bk_dealloc(store->os, job);
    bk_smtp_answer(session, reply);
    store_release(store);
}

static int job_start(mail_job *job) {
    const mail_store *store = job->store;
    struct iovec parts[2];
    int count = 0;
    if (!(store->config.flags & BK_SMTP_NO_TRACE)) {
        int n = snprintf(job->return_path, sizeof job->return_path, "Return-Path: <%s>\r\n",
                         job->message->sender);
        parts[count++] = (struct iovec){job->return_path, (size_t)n};
    }
    parts[count++] = (struct iovec){job->message->data, job->message->size};
    return bk_maildir_deliver_soon(store->maildir, store->loop, parts, count, job_end, job);
}

static void store_message(void *context, bk_smtp_session *session, bk_smtp_message *message) {
    mail_store *store = context;
    mail_job *job = bk_alloc(store->os, sizeof *job);
    if (job == NULL) {
        bk_smtp_message_free(message);
        bk_smtp_answer(session, "452 4.3.1 insufficient system storage");
        return;
    }
    job->store = store;
    job->session = session;
    job->message = message;
    atomic_fetch_add(&store->users, 1);
    int r = job_start(job);
    if (r < 0)
        job_end(job, r, NULL);
}

/* ---- Making it ---- */

static void clean_run(bk_work *work) {
    (void)bk_maildir_clean(((mail_store *)work)->maildir);
}

static void clean_done(bk_work *work) {
    store_release(work);
}

/* Nothing depends on it: where it cannot be done now, it is the next time. */
static void store_clean(mail_store *store) {
    store->cleaning.run = clean_run;
    store->cleaning.done = clean_done;
    atomic_fetch_add(&store->users, 1);
    if (bk_work_start(store->loop, &store->cleaning) < 0)
        store_release(store);
}

static bk_smtp_config config_over(mail_store *store) {
    bk_smtp_config c = store->config;
    c.size = sizeof c;
    c.context = store;
    c.connect = c.connect != NULL ? store_connect : NULL;
    c.helo = c.helo != NULL ? store_helo : NULL;
    c.auth = c.auth != NULL ? store_auth : NULL;
    c.mail = c.mail != NULL ? store_mail : NULL;
    c.rcpt = c.rcpt != NULL ? store_rcpt : NULL;
    c.data = c.data != NULL ? store_data : NULL;
    c.message = store_message;
    c.vrfy = c.vrfy != NULL ? store_vrfy : NULL;
    c.reset = c.reset != NULL ? store_reset : NULL;
    c.disconnect = c.disconnect != NULL ? store_disconnect : NULL;
    return c;
}

static int store_new(bk_loop *loop, const bk_smtp_config *config, const char *path,
                     mail_store **ret_store) {
    bk_os *os = bk_loop_os(loop);
    mail_store *store = bk_alloc_zero(os, sizeof *store);
    if (store == NULL)
        return -ENOMEM;
    store->os = os;
    store->loop = loop;
    atomic_init(&store->users, 1);
    if (config != NULL)
        memcpy(&store->config, config,
               config->size < sizeof *config ? config->size : sizeof *config);
    int r = bk_maildir_open(os, path, store->config.hostname, &store->maildir);
    if (r < 0) {
        store_release(store);
        return r;
    }
    *ret_store = store;
    return 0;
}

int bk_smtp_maildir_new(bk_loop *loop, const bk_smtp_config *config, const char *path,
                        bk_smtp_stored stored, void *arg, bk_protocol **ret_protocol) {
    mail_store *store = NULL;
    if (loop == NULL || path == NULL || ret_protocol == NULL ||
        (config != NULL && config->size < sizeof config->size) ||
        (config != NULL && (BK_HAS(config, message) || BK_HAS(config, chunk))))
        return -EINVAL;
    int r = store_new(loop, config, path, &store);
    if (r < 0)
        return r;
    store->stored = stored;
    store->arg = arg;
    bk_smtp_config smtp = config_over(store);
    r = bk_smtp_protocol_over(&smtp, store->os, store_release, ret_protocol);
    if (r < 0)
        store_release(store);
    else
        store_clean(store);
    return r;
}
