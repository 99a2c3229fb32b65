/* Why a thread and not a transaction now and then in the loop: a commit takes as long as the disk likes, and
 * heartbeats do not wait. */
#include "coordinator/journal.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "coordinator/journal_store.h"

enum item_kind { ITEM_ADD, ITEM_PROGRESS, ITEM_FORGET, ITEM_LOAD };

/* Something to do; afterwards, if there is anything to tell of it, the event. */
struct item {
    struct item *next;
    enum item_kind kind;
    uint64_t session;
    struct esp_peer owner;
    struct esp_msg request; /* of ADD; from LOAD */
    uint8_t *bytes;         /* of PROGRESS; from LOAD */
    size_t n_bytes, n_queued;
    esp_status st;
    struct esp_err err;
};

struct items { /* first in, first out */
    struct item *first, **last;
};

struct esp_journal {
    struct esp_journal_store
        *store; /* the thread's, once it has started; its list of what was left is the owner's */
    int fd;
    bool started, have_lock, have_cond;
    pthread_t thread;
    pthread_mutex_t lock; /* guards everything below */
    pthread_cond_t come;  /* todo has grown, or stop was set */
    struct items todo, done;
    size_t n_queued; /* bytes of requests in todo and with the thread */
    bool writing, stop;
};

/* ---- items ---- */

static void item_destroy(struct item *item)
{
    esp_msg_finish(&item->request);
    free(item->bytes);
    free(item);
}

static void push(struct items *q, struct item *item)
{
    item->next = NULL;
    *q->last = item;
    q->last = &item->next;
}

static struct item *pop(struct items *q)
{
    struct item *item = q->first;

    if (item) {
        q->first = item->next;
        if (!q->first)
            q->last = &q->first;
        item->next = NULL;
    }
    return item;
}

/* ---- the thread ---- */

static esp_status run(struct esp_journal *j, struct item *item, struct esp_err *err)
{
    switch (item->kind) {
    case ITEM_ADD:
        return esp_journal_store_add(j->store, item->session, &item->owner, &item->request, err);
    case ITEM_PROGRESS:
        return esp_journal_store_progress(j->store, item->session, item->bytes, item->n_bytes, err);
    case ITEM_FORGET:
        return esp_journal_store_forget(j->store, item->session, err);
    case ITEM_LOAD:
        break;
    }
    esp_msg_finish(&item->request); /* of an attempt before */
    free(item->bytes);
    return esp_journal_store_read(j->store, &item->request, &item->bytes, &item->n_bytes, item->session, err);
}

/* One transaction for all; if that fails, one for each, so that one session's failure is nobody else's. */
static void run_batch(struct esp_journal *j, struct item *first)
{
    esp_status st = esp_journal_store_begin(j->store, NULL);

    for (struct item *i = first; !st && i; i = i->next)
        st = run(j, i, NULL);
    if (!st)
        st = esp_journal_store_commit(j->store, NULL);
    if (!st)
        return;
    esp_journal_store_roll_back(j->store);
    for (struct item *i = first; i; i = i->next) {
        i->st = esp_journal_store_begin(j->store, &i->err);
        if (!i->st)
            i->st = run(j, i, &i->err);
        if (!i->st)
            i->st = esp_journal_store_commit(j->store, &i->err);
        if (i->st)
            esp_journal_store_roll_back(j->store);
    }
}

static void *thread_main(void *arg)
{
    struct esp_journal *j = arg;
    const uint64_t one = 1;

    pthread_mutex_lock(&j->lock);
    for (;;) {
        struct items batch = j->todo;
        struct item *item;
        bool forgot = false;

        if (!batch.first) {
            if (j->stop)
                break;
            pthread_cond_wait(&j->come, &j->lock);
            continue;
        }
        j->todo = (struct items){.last = &j->todo.first};
        j->writing = true;
        pthread_mutex_unlock(&j->lock);
        run_batch(j, batch.first);
        for (item = batch.first; item; item = item->next)
            forgot |= item->kind == ITEM_FORGET;
        if (forgot)
            esp_journal_store_shrink(j->store);
        pthread_mutex_lock(&j->lock);
        while ((item = pop(&batch))) {
            j->n_queued -= item->n_queued;
            if (item->kind == ITEM_ADD)
                esp_msg_finish(&item->request);
            if (item->kind == ITEM_LOAD || item->kind == ITEM_ADD || (item->st && item->kind != ITEM_FORGET))
                push(&j->done, item);
            else
                item_destroy(item);
        }
        j->writing = false;
        while (write(j->fd, &one, sizeof one) < 0 && errno == EINTR)
            continue; /* otherwise it cannot fail: the counter never comes near its end */
    }
    pthread_mutex_unlock(&j->lock);
    return NULL;
}

static esp_status start(struct esp_journal *j, struct esp_err *err)
{
    int rc = pthread_mutex_init(&j->lock, NULL);

    j->have_lock = rc == 0;
    if (!rc) {
        rc = pthread_cond_init(&j->come, NULL);
        j->have_cond = rc == 0;
    }
    if (!rc) {
        rc = pthread_create(&j->thread, NULL, thread_main, j);
        j->started = rc == 0;
    }
    return rc ? esp_fail(err, ESP_E_NOMEM, "the journal's thread: %s", strerror(rc)) : ESP_OK;
}

esp_status esp_journal_open(struct esp_journal **out, const char *path,
                            const uint8_t model[ESP_JOURNAL_MODEL_BYTES], uint64_t max_bytes,
                            struct esp_err *err)
{
    struct esp_journal *j = calloc(1, sizeof *j);
    esp_status st;

    *out = NULL;
    if (!j) {
        st = esp_fail(err, ESP_E_NOMEM, "the journal");
        goto done;
    }
    j->todo.last = &j->todo.first;
    j->done.last = &j->done.first;
    j->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (j->fd < 0) {
        st = esp_fail(err, ESP_E_IO, "eventfd: %s", strerror(errno));
        goto done;
    }
    st = esp_journal_store_open(&j->store, path, model, max_bytes, err);
    if (!st)
        st = start(j, err);
    if (st)
        goto done;
    *out = j;
    j = NULL;
done:
    esp_journal_close(&j);
    return st;
}

void esp_journal_close(struct esp_journal **journal)
{
    struct esp_journal *j = *journal;
    struct item *item;

    if (!j)
        return;
    if (j->started) {
        pthread_mutex_lock(&j->lock);
        j->stop = true;
        pthread_cond_signal(&j->come);
        pthread_mutex_unlock(&j->lock);
        pthread_join(j->thread, NULL);
    }
    while ((item = pop(&j->todo)))
        item_destroy(item);
    while ((item = pop(&j->done)))
        item_destroy(item);
    esp_journal_store_close(&j->store);
    if (j->have_cond)
        pthread_cond_destroy(&j->come);
    if (j->have_lock)
        pthread_mutex_destroy(&j->lock);
    if (j->fd >= 0)
        close(j->fd);
    free(j);
    *journal = NULL;
}

/* ---- what the owner says ---- */

const struct esp_journal_left *esp_journal_left(const struct esp_journal *j, uint32_t i)
{
    return esp_journal_store_left(j->store, i);
}

void esp_journal_dropped(const struct esp_journal *j, uint32_t *n_other, uint32_t *n_bad)
{
    esp_journal_store_dropped(j->store, n_other, n_bad);
}

void esp_journal_forget_left(struct esp_journal *j)
{
    esp_journal_store_forget_left(j->store);
}

int esp_journal_fd(const struct esp_journal *j)
{
    return j->fd;
}

bool esp_journal_busy(const struct esp_journal *journal)
{
    struct esp_journal *j = (struct esp_journal *)journal; /* a lock is no change that anyone sees */
    bool busy;

    pthread_mutex_lock(&j->lock);
    busy = j->writing || j->todo.first;
    pthread_mutex_unlock(&j->lock);
    return busy;
}

static void hand_over(struct esp_journal *j, struct item *item)
{
    pthread_mutex_lock(&j->lock);
    push(&j->todo, item);
    j->n_queued += item->n_queued;
    pthread_cond_signal(&j->come);
    pthread_mutex_unlock(&j->lock);
}

static struct item *item_create(enum item_kind kind, uint64_t session)
{
    struct item *item = calloc(1, sizeof *item);

    if (item) {
        item->kind = kind;
        item->session = session;
    }
    return item;
}

esp_status esp_journal_add(struct esp_journal *j, uint64_t session, const struct esp_peer *owner,
                           struct esp_msg *request, struct esp_err *err)
{
    struct item *item = item_create(ITEM_ADD, session);
    size_t n = sizeof *item, n_queued;

    if (!item) {
        esp_msg_finish(request);
        return esp_fail(err, ESP_E_NOMEM, "the journal's queue");
    }
    for (uint32_t i = 0; i < request->n_blobs; i++)
        n += request->blob[i].n_bytes; /* each at most ESP_MAX_IMAGE_FILE */
    item->owner = *owner;
    item->request = *request;
    memset(request, 0, sizeof *request);
    item->n_queued = n;
    pthread_mutex_lock(&j->lock);
    n_queued = j->n_queued;
    pthread_mutex_unlock(&j->lock);
    if (n >
        ESP_JOURNAL_MAX_QUEUED - (n_queued < ESP_JOURNAL_MAX_QUEUED ? n_queued : ESP_JOURNAL_MAX_QUEUED)) {
        item_destroy(item);
        return esp_fail(err, ESP_E_LIMIT, "the disk is slow: %zu MiB wait to be written", n_queued >> 20);
    }
    hand_over(j, item);
    return ESP_OK;
}

esp_status esp_journal_progress(struct esp_journal *j, uint64_t session, uint8_t *record, size_t n_bytes,
                                struct esp_err *err)
{
    struct item *item = item_create(ITEM_PROGRESS, session);

    if (!item) {
        free(record);
        return esp_fail(err, ESP_E_NOMEM, "the journal's queue");
    }
    item->bytes = record;
    item->n_bytes = n_bytes;
    hand_over(j, item);
    return ESP_OK;
}

void esp_journal_forget(struct esp_journal *j, uint64_t session)
{
    struct item *item = item_create(ITEM_FORGET, session);

    if (item)
        hand_over(j, item);
}

esp_status esp_journal_load(struct esp_journal *j, uint64_t session, struct esp_err *err)
{
    struct item *item = item_create(ITEM_LOAD, session);

    if (!item)
        return esp_fail(err, ESP_E_NOMEM, "the journal's queue");
    hand_over(j, item);
    return ESP_OK;
}

bool esp_journal_take(struct esp_journal *j, struct esp_journal_event *event)
{
    struct item *item;
    uint64_t n;

    pthread_mutex_lock(&j->lock);
    item = pop(&j->done);
    if (!j->done.first)
        (void)!read(j->fd, &n, sizeof n); /* nonblocking; empty is fine */
    pthread_mutex_unlock(&j->lock);
    if (!item)
        return false;
    *event = (struct esp_journal_event){.session = item->session,
                                        .what = item->kind == ITEM_LOAD ? ESP_JOURNAL_LOADED
                                                : item->st              ? ESP_JOURNAL_LOST
                                                                        : ESP_JOURNAL_WRITTEN,
                                        .st = item->st,
                                        .err = item->err};
    if (item->kind == ITEM_LOAD && !item->st) {
        event->request = item->request;
        event->records = item->bytes;
        event->n_records = item->n_bytes;
        memset(&item->request, 0, sizeof item->request);
        item->bytes = NULL;
    }
    item_destroy(item);
    return true;
}
