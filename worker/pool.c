#include "worker/pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

struct helper {
    struct esp_pool *pool;
    uint32_t number;
    pthread_t thread;
};

struct esp_pool {
    uint32_t n_thread; /* with the caller's */
    struct helper helper[ESP_POOL_MAX];
    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t begun; /* a run began, or stop */
    pthread_cond_t ended; /* the last helper is done with a run */
    bool stop;
    uint64_t n_run;  /* counts runs: a helper takes part in each once */
    uint32_t n_busy; /* helpers in the present one */
    uint32_t n_item;
    esp_pool_fn fn;
    void *arg;
    atomic_uint next; /* the item that is claimed next; beyond n_item: none is left */
    uint32_t failed;  /* the lowest item that failed */
    esp_status st;
    struct esp_err why;
};

uint32_t esp_pool_cores(void)
{
    cpu_set_t set;
    int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;

    return n < 1 ? 1 : n > ESP_POOL_MAX ? ESP_POOL_MAX : (uint32_t)n;
}

/* Claims items until none is left. */
static void work(struct esp_pool *p, uint32_t thread)
{
    for (uint32_t item; (item = atomic_fetch_add(&p->next, 1)) < p->n_item;) {
        struct esp_err err = {0};
        esp_status st = p->fn(p->arg, item, thread, &err);

        if (!st)
            continue;
        pthread_mutex_lock(&p->lock);
        if (!p->st || item < p->failed) {
            p->failed = item;
            p->st = st;
            p->why = err;
        }
        atomic_store(&p->next, p->n_item);
        pthread_mutex_unlock(&p->lock);
        return;
    }
}

static void *helper_main(void *arg)
{
    const struct helper *h = arg;
    struct esp_pool *p = h->pool;
    uint64_t seen = 0;

    pthread_mutex_lock(&p->lock);
    for (;;) {
        while (!p->stop && p->n_run == seen)
            pthread_cond_wait(&p->begun, &p->lock);
        if (p->stop)
            break;
        seen = p->n_run;
        pthread_mutex_unlock(&p->lock);
        work(p, h->number);
        pthread_mutex_lock(&p->lock);
        if (--p->n_busy == 0)
            pthread_cond_signal(&p->ended);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

esp_status esp_pool_create(struct esp_pool **out, uint32_t n_thread, struct esp_err *err)
{
    struct esp_pool *p = calloc(1, sizeof *p);

    *out = p;
    if (!p)
        return esp_fail(err, ESP_E_NOMEM, "threads for packing: out of memory");
    /* None of these can fail with these arguments on Linux; a thread can. */
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->begun, NULL);
    pthread_cond_init(&p->ended, NULL);
    for (p->n_thread = 1; p->n_thread < n_thread && p->n_thread < ESP_POOL_MAX; p->n_thread++) {
        struct helper *h = &p->helper[p->n_thread];

        h->pool = p;
        h->number = p->n_thread;
        if (pthread_create(&h->thread, NULL, helper_main, h) != 0)
            break;
    }
    return ESP_OK;
}

void esp_pool_destroy(struct esp_pool **pool)
{
    struct esp_pool *p = *pool;

    *pool = NULL;
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    pthread_cond_broadcast(&p->begun);
    pthread_mutex_unlock(&p->lock);
    for (uint32_t i = 1; i < p->n_thread; i++)
        pthread_join(p->helper[i].thread, NULL);
    pthread_cond_destroy(&p->ended);
    pthread_cond_destroy(&p->begun);
    pthread_mutex_destroy(&p->lock);
    free(p);
}

uint32_t esp_pool_threads(const struct esp_pool *p)
{
    return p->n_thread;
}

esp_status esp_pool_run(struct esp_pool *p, esp_pool_fn fn, void *arg, uint32_t n_item, struct esp_err *err)
{
    esp_status st;

    pthread_mutex_lock(&p->lock);
    p->fn = fn;
    p->arg = arg;
    p->n_item = n_item;
    p->st = ESP_OK;
    atomic_store(&p->next, 0);
    if (n_item > 1) {
        p->n_busy = p->n_thread - 1;
        p->n_run++;
        pthread_cond_broadcast(&p->begun);
    }
    pthread_mutex_unlock(&p->lock);
    work(p, 0);
    pthread_mutex_lock(&p->lock);
    while (p->n_busy >
           0) /* a helper that wakes up late finds nothing left, but must not find another run's items */
        pthread_cond_wait(&p->ended, &p->lock);
    st = p->st;
    if (st)
        (void)esp_fail(err, st, "%s", p->why.text);
    pthread_mutex_unlock(&p->lock);
    return st;
}
