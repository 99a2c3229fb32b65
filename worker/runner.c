#include "worker/runner_state.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "worker/verify.h"

#define PROGRESS_NS UINT64_C(100000000) /* between two Loading messages */

static bool places(const struct esp_work *work)
{
    return (work->msg.kind == ESP_MSG_PLACE && !work->msg.place.warm) || work->msg.kind == ESP_MSG_MANIFEST;
}

static uint64_t frame_bytes(const struct esp_work *work)
{
    return work->msg.n_blobs > 0 ? work->msg.blob[0].n_bytes : 0;
}

void esp_runner_hand_back(struct esp_runner *r, struct esp_work *work, bool ran)
{
    uint64_t one = 1;

    pthread_mutex_lock(&r->lock);
    if (ran) {
        r->n_works--;
        r->n_bytes -= frame_bytes(work);
    }
    esp_queue_put(&r->done, work);
    if (write(r->fd, &one, sizeof one) != (ssize_t)sizeof one) {
        /* Only a counter about to overflow refuses, and then the descriptor is readable already. */
    }
    pthread_mutex_unlock(&r->lock);
}

void esp_runner_set_aside(struct esp_runner *r)
{
    pthread_mutex_lock(&r->lock);
    r->n_works--;
    pthread_mutex_unlock(&r->lock);
}

void esp_runner_tell_loading(struct esp_runner *r, const struct esp_work *place, uint64_t done_bytes,
                             uint64_t total_bytes)
{
    uint64_t now = esp_now_ns();
    struct esp_msg msg = {.kind = ESP_MSG_LOADING};
    struct esp_work *work;

    if (now - r->progress_ns < PROGRESS_NS)
        return;
    r->progress_ns = now;
    msg.loading.epoch = place->msg.place.epoch;
    msg.loading.done_bytes = done_bytes < total_bytes ? done_bytes : total_bytes;
    msg.loading.total_bytes = total_bytes;
    work = esp_work_create(&msg);
    if (!work)
        return; /* progress can be missed */
    work->generation = place->generation;
    esp_runner_hand_back(r, work, false);
}

/* ---- the thread ---- */

/* Sleeps, with the lock, until something may have changed. */
static void wait_for_work(struct esp_runner *r)
{
    struct timespec at = {.tv_sec = (time_t)(r->warm_after_ns / 1000000000u),
                          .tv_nsec = (long)(r->warm_after_ns % 1000000000u)};

    if (r->warm)
        pthread_cond_timedwait(&r->wake, &r->lock, &at);
    else
        pthread_cond_wait(&r->wake, &r->lock);
}

/* What others may know of the stage, as it is now. */
static void tell_info(struct esp_runner *r)
{
    struct esp_stage_info_out info = {0};

    if (r->stage && !r->dead)
        esp_stage_info(r->stage, &info);
    pthread_mutex_lock(&r->lock);
    r->info = info;
    pthread_mutex_unlock(&r->lock);
}

/* A release before the KV is whole would have it differ from what comes: it waits. */
static bool hold(struct esp_runner *r, struct esp_work *work)
{
    if (work->msg.kind != ESP_MSG_RELEASE || r->intake.n_left == 0)
        return false;
    esp_runner_set_aside(r);
    esp_queue_put(&r->held, work);
    return true;
}

static void let_go(struct esp_runner *r)
{
    struct esp_work *work;

    while (r->intake.n_left == 0 && (work = esp_queue_get(&r->held))) {
        if (r->stage && !r->dead)
            esp_stage_release(r->stage, &work->msg.release);
        tell_info(r);
        esp_runner_hand_back(r, work, false);
    }
}

static void run_encode(struct esp_runner *r, struct esp_work *work)
{
    const struct esp_msg_encode *m = &work->msg.encode;

    if (m->payload == ESP_PAYLOAD_FEATURES) {
        work->status = esp_stage_store(r->stage, m, work->msg.blob[0].data, &work->err);
        work->stored = true;
        return;
    }
    work->status = esp_stage_encode(r->stage, m, work->msg.blob[0].data, &work->out, &work->err);
    if (!work->status && work->store_here && work->out.payload == ESP_PAYLOAD_FEATURES) {
        struct esp_msg_encode kept = *m;

        kept.payload = ESP_PAYLOAD_FEATURES;
        kept.rows = work->out.n_rows;
        kept.width = work->out.width;
        work->status = esp_stage_store(r->stage, &kept, work->out.rows, &work->err);
        work->stored = true;
    }
}

/** The stages passed, this one included. Running out of memory costs the times, not the work. */
static void add_times(struct esp_work *work, const char *name, uint64_t begun_ns, uint64_t ended_ns)
{
    bool encode = work->msg.kind == ESP_MSG_ENCODE;
    const struct esp_stage_time *before = encode ? work->msg.encode.times : work->msg.step.times;
    uint32_t n = encode ? work->msg.encode.n_times : work->msg.step.n_times;
    double compute = work->out.compute_seconds;

    if (n >= ESP_MAX_STAGES)
        return;
    work->times = calloc(n + 1, sizeof *work->times);
    if (!work->times)
        return;
    if (n > 0)
        memcpy(work->times, before, n * sizeof *before);
    if (!(compute >= 0))
        compute = 0;
    if (encode && work->stored && compute == 0) /* storing has no clock of its own */
        compute = 1e-9 * (double)(ended_ns - begun_ns);
    work->times[n] = (struct esp_stage_time){
        .worker = name,
        .queue_seconds = 1e-9 * (double)(begun_ns - work->arrived_ns),
        .compute_seconds = compute,
        .received_bytes = work->msg.n_bytes,
    };
    work->n_times = n + 1;
}

static void run(struct esp_runner *r, struct esp_work *work)
{
    uint64_t begun = esp_now_ns();

    if (work->msg.kind != ESP_MSG_PLACE && work->msg.kind != ESP_MSG_MANIFEST &&
        work->msg.kind != ESP_MSG_MOVE && !work->export && !r->stage) {
        work->status =
            esp_fail(&work->err, ESP_E_INTERNAL, "%s without a stage", esp_msg_name(work->msg.kind));
        return;
    }
    switch (work->msg.kind) {
    case ESP_MSG_PLACE:
        esp_runner_place(r, work);
        break;
    case ESP_MSG_MANIFEST:
        esp_runner_manifest(r, work);
        break;
    case ESP_MSG_ENCODE:
        if (work->export) {
            esp_runner_export(r, work);
            break;
        }
        run_encode(r, work);
        add_times(work, r->name, begun, esp_now_ns());
        break;
    case ESP_MSG_KV_BLOCKS:
        if (work->export)
            esp_runner_export(r, work);
        else
            esp_runner_import(r, work);
        break;
    case ESP_MSG_MOVE:
        esp_stage_destroy(&r->former);
        break;
    case ESP_MSG_STEP:
        if (r->intake.n_left > 0) {
            work->status =
                esp_fail(&work->err, ESP_E_PROTO, "KV of %u layers has not come yet", r->intake.n_left);
            break;
        }
        work->status =
            esp_stage_step(r->stage, &work->msg.step, work->msg.blob[0].data, &work->out, &work->err);
        add_times(work, r->name, begun, esp_now_ns());
        break;
    case ESP_MSG_RELEASE:
        esp_stage_release(r->stage, &work->msg.release);
        break;
    case ESP_MSG_VERIFY:
        work->status = esp_verify_run(work->verify, r->stage, &work->more, &work->err);
        break;
    default:
        work->status = esp_fail(&work->err, ESP_E_INTERNAL, "%s is no work", esp_msg_name(work->msg.kind));
    }
    if (work->status == ESP_E_DEVICE)
        r->dead = true;
    tell_info(r);
}

/* Takes a piece of work and hands it back, at once or, a warm Place, later. */
static void take(struct esp_runner *r, struct esp_work *work)
{
    uint64_t start = esp_now_ns();

    if (hold(r, work))
        return;
    if (work->msg.kind == ESP_MSG_PLACE || work->msg.kind == ESP_MSG_MANIFEST)
        esp_runner_warm_supersede(r);
    if (r->dead) {
        work->status = esp_fail(&work->err, ESP_E_DEVICE, "the device is lost");
    } else if (work->msg.kind == ESP_MSG_PLACE && work->msg.place.warm) {
        esp_runner_warm_begin(r, work);
        return;
    } else {
        run(r, work);
    }
    esp_runner_hand_back(r, work, true);
    let_go(r);
    r->worked_ns += esp_now_ns() - start;
}

static void *thread_main(void *arg)
{
    struct esp_runner *r = arg;

    pthread_mutex_lock(&r->lock);
    while (!r->stop) {
        struct esp_work *work = NULL;
        bool slice = esp_runner_warm_due(r, r->todo.first != NULL);

        if (!slice && !(work = esp_queue_get(&r->todo))) {
            wait_for_work(r);
            continue;
        }
        if (work)
            r->n_places -= places(work);
        pthread_mutex_unlock(&r->lock);
        if (slice)
            esp_runner_warm_slice(r);
        else
            take(r, work);
        pthread_mutex_lock(&r->lock);
    }
    pthread_mutex_unlock(&r->lock);
    esp_runner_warm_supersede(r);
    esp_stage_destroy(&r->former);
    esp_stage_destroy(&r->stage);
    if (r->ck)
        esp_shelf_destroy(&r->shelf);
    pthread_mutex_lock(&r->lock);
    r->ended = true;
    pthread_cond_broadcast(&r->wake);
    pthread_mutex_unlock(&r->lock);
    return NULL;
}

/* ---- the owner's side ---- */

esp_status esp_runner_create(struct esp_runner **out, struct esp_shelf *shelf, const char *name,
                             const struct esp_log *log, struct esp_err *err)
{
    struct esp_runner *r = calloc(1, sizeof *r);
    esp_status st = ESP_OK;
    pthread_condattr_t attr;
    int rc;

    *out = NULL;
    if (!r)
        return esp_fail(err, ESP_E_NOMEM, "engine thread: out of memory");
    r->shelf = shelf;
    r->name = name;
    r->log = log;
    esp_queue_init(&r->todo);
    esp_queue_init(&r->done);
    esp_queue_init(&r->held);
    r->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (r->fd < 0) {
        st = esp_fail(err, ESP_E_IO, "eventfd: %s", strerror(errno));
        free(r);
        return st;
    }
    /* None of these can fail with these arguments on Linux; a thread can. */
    pthread_mutex_init(&r->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&r->wake, &attr);
    pthread_condattr_destroy(&attr);
    rc = pthread_create(&r->thread, NULL, thread_main, r);
    if (rc) {
        st = esp_fail(err, ESP_E_IO, "pthread_create: %s", strerror(rc));
        esp_runner_destroy(&r);
        return st;
    }
    *out = r;
    return ESP_OK;
}

bool esp_runner_stop(struct esp_runner *r, int timeout_ms)
{
    uint64_t until = esp_now_ns() + (uint64_t)timeout_ms * 1000000u;
    struct timespec at = {.tv_sec = (time_t)(until / 1000000000u), .tv_nsec = (long)(until % 1000000000u)};
    bool ended;
    int rc = 0;

    pthread_mutex_lock(&r->lock);
    r->stop = true;
    pthread_cond_broadcast(&r->wake);
    while (!r->ended && rc != ETIMEDOUT)
        rc = pthread_cond_timedwait(&r->wake, &r->lock, &at);
    ended = r->ended;
    pthread_mutex_unlock(&r->lock);
    if (ended && !r->joined) {
        pthread_join(r->thread, NULL);
        r->joined = true;
    }
    return ended;
}

void esp_runner_destroy(struct esp_runner **runner)
{
    struct esp_runner *r = *runner;

    if (!r)
        return;
    esp_queue_clear(&r->todo);
    esp_queue_clear(&r->done);
    esp_queue_clear(&r->held);
    pthread_cond_destroy(&r->wake);
    pthread_mutex_destroy(&r->lock);
    close(r->fd);
    free(r);
    *runner = NULL;
}

void esp_runner_push(struct esp_runner *r, struct esp_work *work)
{
    work->arrived_ns = esp_now_ns();
    pthread_mutex_lock(&r->lock);
    esp_queue_put(&r->todo, work);
    r->n_works++;
    r->n_places += places(work);
    r->n_bytes += frame_bytes(work);
    pthread_cond_broadcast(&r->wake);
    pthread_mutex_unlock(&r->lock);
}

void esp_runner_purge(struct esp_runner *r)
{
    struct esp_queue all = {0}, old;
    struct esp_work *work;

    esp_queue_init(&all);
    esp_queue_init(&old);
    pthread_mutex_lock(&r->lock);
    while ((work = esp_queue_get(&r->todo)))
        esp_queue_put(&all, work);
    while ((work = esp_queue_get(&all))) {
        if (work->msg.kind == ESP_MSG_MANIFEST) {
            esp_queue_put(&r->todo, work);
            continue;
        }
        r->n_works--;
        r->n_places -= places(work);
        r->n_bytes -= frame_bytes(work);
        esp_queue_put(&old, work);
    }
    pthread_mutex_unlock(&r->lock);
    esp_queue_clear(&old);
}

void esp_runner_post(struct esp_runner *r, struct esp_work *work)
{
    esp_runner_hand_back(r, work, false);
}

int esp_runner_fd(const struct esp_runner *r)
{
    return r->fd;
}

struct esp_work *esp_runner_take(struct esp_runner *r)
{
    struct esp_work *work;
    uint64_t count;

    pthread_mutex_lock(&r->lock);
    work = esp_queue_get(&r->done);
    if (!work && read(r->fd, &count, sizeof count) < 0) {
        /* Not readable: it was not what woke us. */
    }
    pthread_mutex_unlock(&r->lock);
    return work;
}

void esp_runner_load(struct esp_runner *r, uint32_t *n_works, uint64_t *n_bytes)
{
    pthread_mutex_lock(&r->lock);
    *n_works = r->n_works;
    *n_bytes = r->n_bytes;
    pthread_mutex_unlock(&r->lock);
}

void esp_runner_info(struct esp_runner *r, struct esp_stage_info_out *out)
{
    pthread_mutex_lock(&r->lock);
    *out = r->info;
    pthread_mutex_unlock(&r->lock);
}
