/**
 * What the runner's thread shares between its files: runner.c (queues, the thread, encodes and steps), runner_place.c
 * (placements and moving layers), runner_warm.c (placements that are yet to come) and work.c. Included by them alone.
 */
#ifndef ESP_WORKER_RUNNER_STATE_H
#define ESP_WORKER_RUNNER_STATE_H

#include <pthread.h>

#include "proto/clock.h"
#include "worker/intake.h"
#include "worker/runner.h"

struct esp_queue {
    struct esp_work *first, **end;
};

void esp_queue_init(struct esp_queue *queue);
void esp_queue_put(struct esp_queue *queue, struct esp_work *work);
/** NULL: it is empty. */
struct esp_work *esp_queue_get(struct esp_queue *queue);
/** Destroys all that is in it. */
void esp_queue_clear(struct esp_queue *queue);

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
    struct esp_queue todo, done;
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
    struct esp_queue held;      /* releases that came before it */
    bool dead;                  /* the device is: nothing more is run */
    const struct esp_work *loading;
    uint64_t progress_ns; /* of the last Loading */

    struct esp_work *warm;        /* a warm Place that has begun; it runs between other work */
    uint64_t warm_begun_ns;       /* when it began */
    uint64_t warm_after_ns;       /* not before: its bytes have yet to come; 0: now */
    bool warm_loaded;             /* its weights are here; kernels may be missing */
    uint64_t slice_bytes;         /* of its next slice */
    uint64_t slice_ns, worked_ns; /* what its last slice took, and other work since */
};

/* ---- runner.c ---- */

/** @param ran  it came out of `todo`: its load goes before its owner can wake up and ask whether there is room */
void esp_runner_hand_back(struct esp_runner *runner, struct esp_work *work, bool ran);

/** It has begun and will be handed back, but nothing need wait for that: it is no load any more. */
void esp_runner_set_aside(struct esp_runner *runner);

/** Hands Loading to the owner, but not too often. */
void esp_runner_tell_loading(struct esp_runner *runner, const struct esp_work *place, uint64_t done_bytes,
                             uint64_t total_bytes);

/* ---- runner_place.c ---- */

struct esp_stage_spec esp_runner_spec(const struct esp_msg_place *place);
void esp_runner_place(struct esp_runner *runner, struct esp_work *work);
void esp_runner_manifest(struct esp_runner *runner, struct esp_work *work);
void esp_runner_export(struct esp_runner *runner, struct esp_work *work);
void esp_runner_import(struct esp_runner *runner, struct esp_work *work);

/* ---- runner_warm.c ---- */

/** Takes a warm Place, which is handed back once it is over. There must be no other. */
void esp_runner_warm_begin(struct esp_runner *runner, struct esp_work *work);

/** Whether a slice is due, with work waiting or without. */
bool esp_runner_warm_due(const struct esp_runner *runner, bool work_waits);
void esp_runner_warm_slice(struct esp_runner *runner);

/** Ends it, if there is one, for another placement: what it has read is that one's. */
void esp_runner_warm_supersede(struct esp_runner *runner);

#endif
