/**
 * The present placement: which workers are stages, in which order, and how far they are.
 *
 * Pure: it decides what to say to whom; the server says it. A placement has an epoch; every new one is one
 * higher, also across failures, so that nothing of an old one can be mistaken for the new.
 */
#ifndef ESP_COORDINATOR_CLUSTER_H
#define ESP_COORDINATOR_CLUSTER_H

#include <stdbool.h>
#include <stdint.h>

#include "coordinator/plan.h"
#include "coordinator/roster.h"
#include "model/checkpoint.h"
#include "proto/status.h"
#include "proto/wire.h"

struct esp_cluster {
    uint64_t epoch;      /* of the placement made last; 0: none yet */
    uint64_t last_epoch; /* the highest that was given out, be it for one that only was to be */
    bool placed;         /* it stands: no worker of it was lost */
    bool ready;          /* and every stage has said so */
    struct esp_plan plan;
    uint32_t n_enc, n_dec, n_stages;
    struct esp_worker *enc[ESP_MAX_STAGES];   /* encoder stages in order */
    struct esp_worker *dec[ESP_MAX_STAGES];   /* decoder stages in order */
    struct esp_worker *stage[ESP_MAX_STAGES]; /* each once, encoder stages first */
    /* Who held what in the last placement that was made, also after it fell. */
    uint32_t n_stood;
    struct esp_plan_share stood[ESP_PLACE_MAX_WORKERS];
};

/** The number of a placement that is to be. */
uint64_t esp_cluster_next_epoch(struct esp_cluster *cluster);

/**
 * Makes a plan the placement, under an epoch of esp_cluster_next_epoch: sets every worker's `place` and `state` (FAILED
 * ones are left alone). The caller sends each its esp_cluster_place.
 * @param carry  0, or the epoch before, which lives on in this one
 */
void esp_cluster_apply(struct esp_cluster *cluster, struct esp_roster *roster, const struct esp_plan *plan,
                       uint64_t epoch, uint64_t carry);

/** Whether the options suit the model, before any worker is there: the split. ESP_E_ARG. */
esp_status esp_cluster_options_check(const struct esp_cluster_options *options,
                                     const struct esp_config *config, struct esp_err *err);

/** Makes one more worker a spare of the present placement. */
void esp_cluster_add_spare(const struct esp_cluster *cluster, struct esp_worker *worker);

/** The Place message for a worker; borrows from the roster. */
void esp_cluster_place(struct esp_msg *msg, const struct esp_cluster *cluster,
                       const struct esp_worker *worker);

/** The placement is void. The epoch stays: the next one is higher. */
void esp_cluster_drop(struct esp_cluster *cluster);

bool esp_cluster_has(const struct esp_cluster *cluster, const struct esp_worker *worker);

/**
 * A worker's Ready. Sets cluster->ready with the last one.
 * Errors: ESP_E_PROTO: it was not loading, or a decoder stage without KV blocks, or of another block size
 * than the rest.
 */
esp_status esp_cluster_ready(struct esp_cluster *cluster, struct esp_worker *worker,
                             const struct esp_msg_ready *ready, struct esp_err *err);

/** Bytes of weights read and to be read, over all stages. */
void esp_cluster_loading(const struct esp_cluster *cluster, uint64_t *done, uint64_t *total);

/** Of a ready placement: the least KV blocks of any decoder stage, and their size. */
void esp_cluster_kv(const struct esp_cluster *cluster, uint64_t *n_blocks, uint32_t *block_tokens);

/** What clients are told of a worker's part. Strings are the worker's. */
void esp_cluster_info(struct esp_stage_info *out, const struct esp_worker *worker);

#endif
