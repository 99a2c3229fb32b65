/* Pieces of work and queues of them, and bytes that several messages share. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "worker/runner_state.h"
#include "worker/verify.h"

/* ---- shared bytes ---- */

struct esp_shared {
    atomic_uint n_ref;
    void *data;
};

struct esp_shared *esp_shared_create(void *data)
{
    struct esp_shared *s = malloc(sizeof *s);

    if (s) {
        atomic_init(&s->n_ref, 1);
        s->data = data;
    }
    return s;
}

void *esp_shared_data(struct esp_shared *shared)
{
    return shared->data;
}

void esp_shared_ref(struct esp_shared *shared)
{
    atomic_fetch_add(&shared->n_ref, 1);
}

void esp_shared_unref(struct esp_shared *shared)
{
    if (shared && atomic_fetch_sub(&shared->n_ref, 1) == 1) {
        free(shared->data);
        free(shared);
    }
}

/* ---- work ---- */

struct esp_work *esp_work_create(struct esp_msg *msg)
{
    struct esp_work *work = calloc(1, sizeof *work);

    if (work) {
        work->msg = *msg;
        memset(msg, 0, sizeof *msg);
    }
    return work;
}

void esp_work_destroy(struct esp_work **work)
{
    if (!*work)
        return;
    esp_msg_finish(&(*work)->msg);
    esp_stage_out_finish(&(*work)->out);
    esp_verify_destroy(&(*work)->verify);
    esp_stage_kv_finish(&(*work)->kv);
    esp_shelf_destroy(&(*work)->shelf);
    free((*work)->times);
    free(*work);
    *work = NULL;
}

void esp_queue_init(struct esp_queue *q)
{
    q->first = NULL;
    q->end = &q->first;
}

void esp_queue_put(struct esp_queue *q, struct esp_work *work)
{
    work->next = NULL;
    *q->end = work;
    q->end = &work->next;
}

struct esp_work *esp_queue_get(struct esp_queue *q)
{
    struct esp_work *work = q->first;

    if (work) {
        q->first = work->next;
        if (!q->first)
            q->end = &q->first;
        work->next = NULL;
    }
    return work;
}

void esp_queue_clear(struct esp_queue *q)
{
    struct esp_work *work;

    while ((work = esp_queue_get(q)))
        esp_work_destroy(&work);
}
