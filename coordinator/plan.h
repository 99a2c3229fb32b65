/**
 * A placement thought out, but not made: which worker would be which stage.
 *
 * Three ways to one: the best that the workers allow (placement.h), the one that stood with spares in the place of who
 * was lost, and whichever of the two is wiser. Moving layers costs time, and weights that a worker holds already
 * are worth something, so a placement that stood is kept while it is nearly as good.
 *
 * Pure: it reads the roster and says nothing to anybody.
 */
#ifndef ESP_COORDINATOR_PLAN_H
#define ESP_COORDINATOR_PLAN_H

#include <stdbool.h>
#include <stdint.h>

#include "coordinator/placement.h"
#include "coordinator/roster.h"
#include "coordinator/sizing.h"
#include "model/checkpoint.h"
#include "model/wtype.h"
#include "proto/status.h"
#include "proto/wire.h"

#define ESP_CLUSTER_MAX_SEQS   256 /* sequences alive at once: block tables are small */
#define ESP_CLUSTER_LOGIT_ROWS 16  /* held by the head: 8 at a time, and as many on their way out */
#define ESP_CLUSTER_ENCODES                                                                                  \
    2 /* pictures in the encoder at once; the first decoder stage has room to spare for them */

#define ESP_PLAN_KEEP                                                                                        \
    1.25 /* a placement that stood is kept if its busiest stage takes no longer than that times the
                              best one's ... */
#define ESP_PLAN_GAIN                                                                                        \
    0.8 /* ... and given up for a new worker's sake if the best one's takes no longer than that */

struct esp_cluster_options {
    struct esp_sizing sizing; /* filled */
    bool final_softcap;
    enum esp_wtype
        weights; /* what workers hold matrices as: all of them the same, or answers would depend on where layers are */
    const char *split; /* "V/T,V/T,...": layers a stage, by hand; NULL: placement decides */
};

/** Who held what, also of workers that are no more. */
struct esp_plan_share {
    char worker[ESP_MAX_NAME + 1];
    struct esp_place_share share;
};

struct esp_plan_stage {
    struct esp_worker *worker;  /* the roster's */
    struct esp_msg_place place; /* without epoch and strings */
    struct esp_stage_plan predicted;
    uint64_t weight_bytes;
};

struct esp_plan {
    uint32_t n_stages, n_enc, n_dec;
    struct esp_plan_stage stage[ESP_PLACE_MAX_WORKERS];              /* each once, encoder stages first */
    uint32_t enc[ESP_PLACE_MAX_WORKERS], dec[ESP_PLACE_MAX_WORKERS]; /* indices into stage[], in order */
    double latency, bottleneck, fewer_latency;                       /* seconds: as in struct esp_placement */
    uint32_t fewer;
};

/** What plans are made of; everything is borrowed. */
struct esp_plan_input {
    const struct esp_roster *roster; /* those FAILED, lost or draining take no part */
    const struct esp_checkpoint *ck;
    const struct esp_cluster_options *options;
};

/**
 * The best placement.
 * Errors: ESP_E_NOMEM (the model does not fit; the text says what is missing), ESP_E_ARG (the split does not suit).
 */
esp_status esp_plan_best(struct esp_plan *out, const struct esp_plan_input *in, struct esp_err *err);

/**
 * The best placement, or the one that stood, spares taking the shares of workers that are no more, if that is as good
 * up to ESP_PLAN_KEEP. With a split by hand it is the split's.
 * @param stood  n_stood shares that make up the model
 */
esp_status esp_plan_again(struct esp_plan *out, const struct esp_plan_input *in,
                          const struct esp_plan_share *stood, uint32_t n_stood, struct esp_err *err);

/**
 * Whether the best placement is so much better than what stands that moving layers pays.
 * @param out  then that placement; NULL if unwanted
 */
bool esp_plan_pays(struct esp_plan *out, const struct esp_plan_input *in, const struct esp_plan_share *stood,
                   uint32_t n_stood);

/** The Place message for stage i, epoch as given; strings are the roster's. */
void esp_plan_place(struct esp_msg *msg, const struct esp_plan *plan, uint32_t i, uint64_t epoch);

/** The stage of a worker; n_stages if it has none. */
uint32_t esp_plan_find(const struct esp_plan *plan, const struct esp_worker *worker);

#endif
