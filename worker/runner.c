#include "worker/runner.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "worker/intake.h"
#include "worker/verify.h"

#define PROGRESS_NS  UINT64_C(100000000) /* between two Loading messages */
#define ASK_AGAIN_NS UINT64_C(20000000)  /* when bytes for a warm placement have not come yet */
#define WORK_A_SLICE 2 /* work that waits gets so much more of the thread's time than slices */
#define SLICE_NS     UINT64_C(50000000) /* a slice should not take longer: a slow disk's are smaller */
#define SLICE_LEAST  (UINT64_C(2) << 20)

uint64_t esp_now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

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

struct queue {
    struct esp_work *first, **end;
};

static void queue_init(struct queue *q)
{
    q->first = NULL;
    q->end = &q->first;
}

static void queue_put(struct queue *q, struct esp_work *work)
{
    work->next = NULL;
    *q->end = work;
    q->end = &work->next;
}

static struct esp_work *queue_get(struct queue *q)
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

static void queue_clear(struct queue *q)
{
    struct esp_work *work;

    while ((work = queue_get(q)))
        esp_work_destroy(&work);
}

/* ---- the thread ---- */

struct esp_runner {
    struct esp_shelf *shelf;   /* the thread's once it runs */
    struct esp_checkpoint *ck; /* the thread's: the shelf's, if a Manifest brought it; else NULL */
    const char *name;
    const struct esp_log *log;
    pthread_t thread;
    bool joined;
    int fd; /* eventfd: readable while `done` is not empty */

    pthread_mutex_t lock; /* guards all below but the stage's part */
    pthread_cond_t wake;  /* work came, stop was set, or the thread ended */
    struct queue todo, done;
    uint32_t n_works; /* in todo, and the one running */
    uint32_t
        n_places; /* in todo, but for warm ones, and Manifests: what is being loaded for an older one is not needed */
    uint64_t n_bytes;
    struct esp_stage_info_out info;
    bool stop, ended;

    /* The thread's own. */
    struct esp_stage *stage;
    struct esp_stage_spec spec; /* of the placement; zeros: a spare, or none */
    struct esp_stage *former;   /* retired: what it leaves is to be moved */
    struct esp_intake intake;   /* KV that is to come */
    struct queue held;          /* releases that came before it */
    bool dead;                  /* the device is: nothing more is run */
    const struct esp_work *loading;
    uint64_t progress_ns; /* of the last Loading */

    struct esp_work *warm;        /* a warm Place that has begun; it runs between other work */
    uint64_t warm_begun_ns;       /* when it began */
    uint64_t warm_after_ns;       /* not before: its bytes have yet to come; 0: now */
    uint64_t slice_bytes;         /* of its next slice */
    uint64_t slice_ns, worked_ns; /* what its last slice took, and other work since */
};

static bool places(const struct esp_work *work)
{
    return (work->msg.kind == ESP_MSG_PLACE && !work->msg.place.warm) || work->msg.kind == ESP_MSG_MANIFEST;
}

static uint64_t frame_bytes(const struct esp_work *work)
{
    return work->msg.n_blobs > 0 ? work->msg.blob[0].n_bytes : 0;
}

/** @param ran  it came out of `todo`: its load goes before its owner can wake up and ask whether there is
 * room */
static void hand_back(struct esp_runner *r, struct esp_work *work, bool ran)
{
    uint64_t one = 1;

    pthread_mutex_lock(&r->lock);
    if (ran) {
        r->n_works--;
        r->n_bytes -= frame_bytes(work);
    }
    queue_put(&r->done, work);
    if (write(r->fd, &one, sizeof one) != (ssize_t)sizeof one) {
        /* Only a counter about to overflow refuses, and then the descriptor is readable already. */
    }
    pthread_mutex_unlock(&r->lock);
}

static void tell_loading(struct esp_runner *r, const struct esp_work *place, uint64_t done_bytes,
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
    hand_back(r, work, false);
}

static bool on_progress(void *arg, uint64_t done_bytes, uint64_t total_bytes)
{
    struct esp_runner *r = arg;
    bool go_on;

    tell_loading(r, r->loading, done_bytes, total_bytes);
    pthread_mutex_lock(&r->lock);
    go_on = !r->stop && r->n_places == 0;
    pthread_mutex_unlock(&r->lock);
    return go_on;
}

static struct esp_stage_spec spec_of(const struct esp_msg_place *p)
{
    return (struct esp_stage_spec){
        .enc_lo = p->enc_lo,
        .enc_hi = p->enc_hi,
        .dec_lo = p->dec_lo,
        .dec_hi = p->dec_hi,
        .patch = p->patch,
        .projector = p->projector,
        .embed = p->embed,
        .head = p->head,
        .max_rows = p->max_rows,
        .kv_tokens = p->kv_tokens,
        .max_seqs = p->max_seqs,
        .max_images = p->max_images,
        .final_softcap = p->final_softcap,
    };
}

static bool same_spec(const struct esp_stage_spec *a, const struct esp_stage_spec *b)
{
    return a->enc_lo == b->enc_lo && a->enc_hi == b->enc_hi && a->dec_lo == b->dec_lo &&
           a->dec_hi == b->dec_hi && a->patch == b->patch && a->projector == b->projector &&
           a->embed == b->embed && a->head == b->head && a->max_rows == b->max_rows &&
           a->kv_tokens == b->kv_tokens && a->max_seqs == b->max_seqs && a->max_images == b->max_images &&
           a->final_softcap == b->final_softcap;
}

static void run_place(struct esp_runner *r, struct esp_work *work)
{
    const struct esp_msg_place *p = &work->msg.place;
    const struct esp_stage_spec spec = spec_of(p);
    uint64_t start = esp_now_ns();
    uint32_t had_lo = 0, had_hi = 0;
    bool as_it_is = false;

    esp_stage_destroy(&r->former);
    queue_clear(&r->held);
    if (work->carry && r->intake.n_left > 0) {
        work->status = esp_fail(&work->err, ESP_E_PROTO, "KV of %u layers of epoch %llu has not come",
                                r->intake.n_left, (unsigned long long)p->carry);
    } else if (work->carry) {
        had_lo = r->spec.dec_lo;
        had_hi = r->spec.dec_hi;
        as_it_is = r->stage && same_spec(&r->spec, &spec);
        if (r->stage && !as_it_is) {
            esp_stage_retire(r->stage);
            r->former = r->stage;
            r->stage = NULL;
        }
    }
    if (!as_it_is) /* first, so that both need not fit into the device's memory at once */
        esp_stage_destroy(&r->stage);
    if (!as_it_is && !work->status && (p->enc_lo < p->enc_hi || p->dec_lo < p->dec_hi)) {
        r->loading = work;
        r->progress_ns = 0;
        work->status = esp_stage_create(&r->stage, r->shelf, &spec, r->former, on_progress, r, &work->err);
        r->loading = NULL;
    }
    if (r->stage)
        esp_stage_info(r->stage, &work->info);
    if (as_it_is)
        work->info.loaded_bytes = 0;
    if (work->status || p->n_moves == 0)
        esp_stage_destroy(&r->former);
    r->spec = work->status ? (struct esp_stage_spec){0} : spec;
    memset(&r->intake, 0, sizeof r->intake);
    if (!work->status && p->carry)
        esp_intake_begin(&r->intake, p->dec_lo, p->dec_hi, had_lo, had_hi);
    work->load_seconds = 1e-9 * (double)(esp_now_ns() - start);
}

/* ---- a warm placement ---- */

static void warm_begin(struct esp_runner *r, struct esp_work *work)
{
    r->warm = work;
    r->warm_begun_ns = esp_now_ns();
    r->warm_after_ns = r->slice_ns = r->worked_ns = r->progress_ns = 0;
    r->slice_bytes = ESP_SHELF_SLICE;
    pthread_mutex_lock(&r->lock);
    r->n_works--; /* no step waits for it */
    pthread_mutex_unlock(&r->lock);
}

static void warm_end(struct esp_runner *r)
{
    struct esp_work *work = r->warm;

    if (!work)
        return;
    r->warm = NULL;
    work->load_seconds = 1e-9 * (double)(esp_now_ns() - r->warm_begun_ns);
    hand_back(r, work, false);
}

/* Another Place is here: what a warm one has read is its. */
static void warm_supersede(struct esp_runner *r)
{
    if (r->warm)
        r->warm->status = esp_fail(&r->warm->err, ESP_E_CANCELLED, "another placement came");
    warm_end(r);
}

static void warm_slice(struct esp_runner *r)
{
    struct esp_work *work = r->warm;
    const struct esp_stage_spec spec = spec_of(&work->msg.place);
    uint64_t start = esp_now_ns();
    struct esp_shelf_slice slice = {0};

    if (r->dead)
        work->status = esp_fail(&work->err, ESP_E_DEVICE, "the device is lost");
    else
        work->status = esp_shelf_load(r->shelf, &spec, r->slice_bytes, &slice, &work->err);
    work->info.loaded_bytes += slice.loaded_bytes;
    work->info.weight_bytes = slice.weight_bytes;
    r->slice_ns = esp_now_ns() - start;
    if (r->slice_ns > SLICE_NS && r->slice_bytes > SLICE_LEAST)
        r->slice_bytes /= 2;
    else if (r->slice_ns < SLICE_NS / 4 && r->slice_bytes < ESP_SHELF_SLICE)
        r->slice_bytes *= 2;
    r->worked_ns = 0;
    r->warm_after_ns = 0;
    if (work->status == ESP_E_TIMEOUT) { /* not yet */
        work->status = ESP_OK;
        r->warm_after_ns = esp_now_ns() + ASK_AGAIN_NS;
    } else if (work->status == ESP_E_DEVICE) {
        r->dead = true;
    }
    if (slice.lacking_bytes > 0)
        tell_loading(r, work, work->info.loaded_bytes, work->info.loaded_bytes + slice.lacking_bytes);
    if (work->status || slice.lacking_bytes == 0)
        warm_end(r);
}

/* Whether a slice is due, with work waiting or without. */
static bool warm_due(const struct esp_runner *r, bool work_waits)
{
    if (!r->warm || (r->warm_after_ns && esp_now_ns() < r->warm_after_ns))
        return false;
    return !work_waits || r->worked_ns >= WORK_A_SLICE * r->slice_ns;
}

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

/* ---- moving ---- */

static void run_export(struct esp_runner *r, struct esp_work *work)
{
    const uint32_t layer = work->msg.kv_blocks.layer;

    if (!r->former) {
        work->status = esp_fail(&work->err, ESP_E_PROTO, "nothing of an earlier placement is kept here");
    } else if (work->msg.kind == ESP_MSG_ENCODE) {
        work->status =
            r->spec.embed
                ? esp_fail(&work->err, ESP_E_PROTO, "picture features were not given away")
                : esp_stage_export_features(r->former, work->msg.encode.image, &work->out, &work->err);
    } else if (layer >= r->spec.dec_lo && layer < r->spec.dec_hi) {
        work->status = esp_fail(&work->err, ESP_E_PROTO, "decoder layer %u was not given away", layer);
    } else {
        work->status = esp_stage_export_kv(r->former, layer, work->msg.kv_blocks.first, ESP_MOVE_BYTES,
                                           &work->kv, &work->err);
    }
}

static void run_import(struct esp_runner *r, struct esp_work *work)
{
    const struct esp_msg_kv_blocks *m = &work->msg.kv_blocks;
    const void *data = work->msg.n_blobs > 0 ? work->msg.blob[0].data : NULL;

    work->status = esp_intake_check(&r->intake, m, &work->from, &work->err);
    if (!work->status)
        work->status = esp_stage_import_kv(r->stage, m, data, &work->err);
    if (!work->status)
        work->layer_done = esp_intake_took(&r->intake, m, frame_bytes(work), &work->from, &work->layer_bytes);
}

/* A release before the KV is whole would have it differ from what comes: it waits. */
static bool hold(struct esp_runner *r, struct esp_work *work)
{
    if (work->msg.kind != ESP_MSG_RELEASE || r->intake.n_left == 0)
        return false;
    pthread_mutex_lock(&r->lock);
    r->n_works--;
    pthread_mutex_unlock(&r->lock);
    queue_put(&r->held, work);
    return true;
}

static void let_go(struct esp_runner *r)
{
    struct esp_work *work;

    while (r->intake.n_left == 0 && (work = queue_get(&r->held))) {
        if (r->stage && !r->dead)
            esp_stage_release(r->stage, &work->msg.release);
        tell_info(r);
        hand_back(r, work, false);
    }
}

/* ---- another checkpoint ---- */

static void run_manifest(struct esp_runner *r, struct esp_work *work)
{
    struct esp_checkpoint *before = r->ck;

    esp_stage_destroy(&r->former);
    esp_stage_destroy(&r->stage);
    queue_clear(&r->held);
    memset(&r->intake, 0, sizeof r->intake);
    r->spec = (struct esp_stage_spec){0};
    if (r->ck)
        esp_shelf_destroy(&r->shelf);
    r->shelf = work->shelf;
    work->shelf = NULL;
    r->ck = work->ck;
    work->ck = before;
}

/* ---- other work ---- */

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
        run_place(r, work);
        break;
    case ESP_MSG_MANIFEST:
        run_manifest(r, work);
        break;
    case ESP_MSG_ENCODE:
        if (work->export) {
            run_export(r, work);
            break;
        }
        run_encode(r, work);
        add_times(work, r->name, begun, esp_now_ns());
        break;
    case ESP_MSG_KV_BLOCKS:
        if (work->export)
            run_export(r, work);
        else
            run_import(r, work);
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
        warm_supersede(r);
    if (r->dead) {
        work->status = esp_fail(&work->err, ESP_E_DEVICE, "the device is lost");
    } else if (work->msg.kind == ESP_MSG_PLACE && work->msg.place.warm) {
        warm_begin(r, work);
        return;
    } else {
        run(r, work);
    }
    hand_back(r, work, true);
    let_go(r);
    r->worked_ns += esp_now_ns() - start;
}

static void *thread_main(void *arg)
{
    struct esp_runner *r = arg;

    pthread_mutex_lock(&r->lock);
    while (!r->stop) {
        struct esp_work *work = NULL;
        bool slice = warm_due(r, r->todo.first != NULL);

        if (!slice && !(work = queue_get(&r->todo))) {
            wait_for_work(r);
            continue;
        }
        if (work)
            r->n_places -= places(work);
        pthread_mutex_unlock(&r->lock);
        if (slice)
            warm_slice(r);
        else
            take(r, work);
        pthread_mutex_lock(&r->lock);
    }
    pthread_mutex_unlock(&r->lock);
    warm_supersede(r);
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
    queue_init(&r->todo);
    queue_init(&r->done);
    queue_init(&r->held);
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
    queue_clear(&r->todo);
    queue_clear(&r->done);
    queue_clear(&r->held);
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
    queue_put(&r->todo, work);
    r->n_works++;
    r->n_places += places(work);
    r->n_bytes += frame_bytes(work);
    pthread_cond_broadcast(&r->wake);
    pthread_mutex_unlock(&r->lock);
}

void esp_runner_purge(struct esp_runner *r)
{
    struct queue all = {0}, old;
    struct esp_work *work;

    queue_init(&all);
    queue_init(&old);
    pthread_mutex_lock(&r->lock);
    while ((work = queue_get(&r->todo)))
        queue_put(&all, work);
    while ((work = queue_get(&all))) {
        if (work->msg.kind == ESP_MSG_MANIFEST) {
            queue_put(&r->todo, work);
            continue;
        }
        r->n_works--;
        r->n_places -= places(work);
        r->n_bytes -= frame_bytes(work);
        queue_put(&old, work);
    }
    pthread_mutex_unlock(&r->lock);
    queue_clear(&old);
}

void esp_runner_post(struct esp_runner *r, struct esp_work *work)
{
    hand_back(r, work, false);
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
    work = queue_get(&r->done);
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
