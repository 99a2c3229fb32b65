#include "coordinator/prepare.h"

#include <errno.h>
#include <pthread.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "picture/image.h"
#include "coordinator/resize.h"

struct queue { /* first in, first out */
    struct esp_prepare_job *first, **last;
};

struct esp_prepare {
    const struct esp_config *config;
    const struct esp_tokenizer *token;
    int fd;
    bool started, have_lock, have_cond;
    pthread_t thread;
    pthread_mutex_t lock; /* guards everything below */
    pthread_cond_t come;  /* todo has grown, or stop was set */
    struct queue todo, done;
    struct esp_prepare_job *running;
    bool stop;
};

void esp_prepare_job_destroy(struct esp_prepare_job **job)
{
    struct esp_prepare_job *j = *job;

    if (!j)
        return;
    esp_msg_finish(&j->request);
    free(j->prefix);
    free(j->suffix);
    free(j->pixels);
    free(j->hash);
    free(j);
    *job = NULL;
}

static void push(struct queue *q, struct esp_prepare_job *job)
{
    job->next = NULL;
    *q->last = job;
    q->last = &job->next;
}

static struct esp_prepare_job *pop(struct queue *q)
{
    struct esp_prepare_job *job = q->first;

    if (job) {
        q->first = job->next;
        if (!q->first)
            q->last = &q->first;
        job->next = NULL;
    }
    return job;
}

static esp_status prepare_images(struct esp_prepare_job *job, const struct esp_config *config,
                                 struct esp_err *err)
{
    const struct esp_msg_request *r = &job->request.request;
    const size_t side = config->vision.image_size;
    size_t n_pixel, n_bytes; /* of one picture */

    if (r->n_images == 0)
        return ESP_OK;
    if (!esp_mul(&n_pixel, 3 * side, side) || !esp_mul(&n_bytes, n_pixel, sizeof(float)))
        return esp_fail(err, ESP_E_LIMIT, "pictures of %zu pixels a side", side);
    job->pixels = calloc(r->n_images, n_bytes);
    job->hash = calloc(r->n_images, sizeof *job->hash);
    if (!job->pixels || !job->hash)
        return esp_fail(err, ESP_E_NOMEM, "%u pictures of %zu x %zu", r->n_images, side, side);
    for (uint32_t i = 0; i < r->n_images; i++) {
        const char *name =
            r->image_names && r->image_names[i] && r->image_names[i][0] ? r->image_names[i] : NULL;
        float *pixels = job->pixels + i * n_pixel;
        struct esp_image image;
        esp_status st;

        if (atomic_load(&job->dropped))
            return esp_fail(err, ESP_E_CANCELLED, "cancelled");
        st = esp_image_decode(&image, job->request.blob[i].data, job->request.blob[i].n_bytes, NULL, err);

        if (!st)
            st = esp_image_preprocess(pixels, &image, config, err);
        esp_image_finish(&image);
        if (st) {
            if (name)
                esp_err_prefix(err, "%s: ", name);
            else
                esp_err_prefix(err, "image %u: ", i + 1);
            return st;
        }
        crypto_generichash(job->hash[i], sizeof job->hash[i], (const unsigned char *)pixels, n_bytes, NULL,
                           0);
    }
    return ESP_OK;
}

static esp_status ids_check(const uint32_t *ids, size_t n, uint32_t vocab, struct esp_err *err)
{
    for (size_t i = 0; i < n; i++)
        if (ids[i] >= vocab)
            return esp_fail(err, ESP_E_FORMAT,
                            "tokenizer.model: id %u, but the model's vocabulary has %u rows", ids[i], vocab);
    return ESP_OK;
}

static esp_status prepare_text(struct esp_prepare_job *job, const struct esp_config *config,
                               const struct esp_tokenizer *token, struct esp_err *err)
{
    const struct esp_msg_request *r = &job->request.request;
    const char *suffix = r->suffix ? r->suffix : "";
    uint32_t *text = NULL;
    size_t n_text = 0, n_suffix = 0, n_rows, n_prefix;
    esp_status st = esp_prompt_ids(token, &text, &n_text, config->bos, r->prompt, strlen(r->prompt), err);

    if (!st)
        st = ids_check(text, n_text, config->text.vocab, err);
    if (!st && suffix[0]) {
        st = esp_tokenizer_encode(token, &job->suffix, &n_suffix, suffix, strlen(suffix), err);
        if (!st)
            st = ids_check(job->suffix, n_suffix, config->text.vocab, err);
    }
    if (st)
        goto done;
    if (!esp_mul(&n_rows, r->n_images, config->vision.n_token) || !esp_add(&n_prefix, n_rows, n_text) ||
        n_prefix > ESP_MAX_ROWS || n_suffix > ESP_MAX_ROWS) {
        st = esp_fail(err, ESP_E_LIMIT, "a prompt of more than %d tokens", ESP_MAX_ROWS);
        goto done;
    }
    job->prefix = malloc((n_prefix ? n_prefix : 1) * sizeof *job->prefix);
    if (!job->prefix) {
        st = esp_fail(err, ESP_E_NOMEM, "a prompt of %zu tokens", n_prefix);
        goto done;
    }
    for (size_t i = 0; i < n_rows; i++)
        job->prefix[i] = config->image_token;
    memcpy(job->prefix + n_rows, text, n_text * sizeof *text);
    job->n_image_rows = (uint32_t)n_rows;
    job->n_prefix = (uint32_t)n_prefix;
    job->n_suffix = (uint32_t)n_suffix;
done:
    free(text);
    return st;
}

void esp_prepare_run(struct esp_prepare_job *job, const struct esp_config *config,
                     const struct esp_tokenizer *token)
{
    if (atomic_load(&job->dropped)) {
        job->st = esp_fail(&job->err, ESP_E_CANCELLED, "cancelled");
        return;
    }
    job->st = prepare_text(job, config, token, &job->err); /* the cheap half first: it may refuse */
    if (!job->st)
        job->st = prepare_images(job, config, &job->err);
}

static void *thread_main(void *arg)
{
    struct esp_prepare *p = arg;

    pthread_mutex_lock(&p->lock);
    while (!p->stop) {
        struct esp_prepare_job *job = pop(&p->todo);
        const uint64_t one = 1;

        if (!job) {
            pthread_cond_wait(&p->come, &p->lock);
            continue;
        }
        p->running = job;
        pthread_mutex_unlock(&p->lock);
        esp_prepare_run(job, p->config, p->token);
        pthread_mutex_lock(&p->lock);
        p->running = NULL;
        push(&p->done, job);
        while (write(p->fd, &one, sizeof one) < 0 && errno == EINTR)
            continue; /* otherwise it cannot fail: the counter never comes near its end */
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

esp_status esp_prepare_create(struct esp_prepare **out, const struct esp_config *config,
                              const struct esp_tokenizer *token, struct esp_err *err)
{
    struct esp_prepare *p = NULL;
    esp_status st = ESP_OK;
    int rc;

    *out = NULL;
    if (sodium_init() < 0) {
        st = esp_fail(err, ESP_E_INTERNAL, "libsodium does not start");
        goto done;
    }
    p = calloc(1, sizeof *p);
    if (!p) {
        st = esp_fail(err, ESP_E_NOMEM, "the preparation thread");
        goto done;
    }
    p->config = config;
    p->token = token;
    p->todo.last = &p->todo.first;
    p->done.last = &p->done.first;
    p->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (p->fd < 0) {
        st = esp_fail(err, ESP_E_IO, "eventfd: %s", strerror(errno));
        goto done;
    }
    rc = pthread_mutex_init(&p->lock, NULL);
    p->have_lock = rc == 0;
    if (!rc) {
        rc = pthread_cond_init(&p->come, NULL);
        p->have_cond = rc == 0;
    }
    if (!rc) {
        rc = pthread_create(&p->thread, NULL, thread_main, p);
        p->started = rc == 0;
    }
    if (rc) {
        st = esp_fail(err, ESP_E_NOMEM, "the preparation thread: %s", strerror(rc));
        goto done;
    }
    *out = p;
    p = NULL;
done:
    esp_prepare_destroy(&p);
    return st;
}

void esp_prepare_destroy(struct esp_prepare **p)
{
    struct esp_prepare *q = *p;
    struct esp_prepare_job *job;

    if (!q)
        return;
    if (q->started) {
        pthread_mutex_lock(&q->lock);
        q->stop = true;
        if (q->running)
            atomic_store(&q->running->dropped, true);
        pthread_cond_signal(&q->come);
        pthread_mutex_unlock(&q->lock);
        pthread_join(q->thread, NULL);
    }
    while ((job = pop(&q->todo)))
        esp_prepare_job_destroy(&job);
    while ((job = pop(&q->done)))
        esp_prepare_job_destroy(&job);
    if (q->have_cond)
        pthread_cond_destroy(&q->come);
    if (q->have_lock)
        pthread_mutex_destroy(&q->lock);
    if (q->fd >= 0)
        close(q->fd);
    free(q);
    *p = NULL;
}

int esp_prepare_fd(const struct esp_prepare *p)
{
    return p->fd;
}

void esp_prepare_submit(struct esp_prepare *p, struct esp_prepare_job **job)
{
    pthread_mutex_lock(&p->lock);
    push(&p->todo, *job);
    pthread_cond_signal(&p->come);
    pthread_mutex_unlock(&p->lock);
    *job = NULL;
}

void esp_prepare_drop(struct esp_prepare *p, uint64_t session)
{
    pthread_mutex_lock(&p->lock);
    if (p->running && p->running->session == session)
        atomic_store(&p->running->dropped, true);
    for (struct esp_prepare_job *job = p->todo.first; job; job = job->next)
        if (job->session == session)
            atomic_store(&job->dropped, true);
    pthread_mutex_unlock(&p->lock);
}

struct esp_prepare_job *esp_prepare_take(struct esp_prepare *p)
{
    struct esp_prepare_job *job;
    uint64_t n;

    pthread_mutex_lock(&p->lock);
    job = pop(&p->done);
    if (!p->done.first)
        (void)!read(p->fd, &n, sizeof n); /* nonblocking; empty is fine */
    pthread_mutex_unlock(&p->lock);
    return job;
}
