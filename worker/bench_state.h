/**
 * What bench*.c share: bench.c (the model, the stage, the results), bench_what.c (what is asked for) and bench_phase.c (what
 * is timed). Included by them alone.
 */
#ifndef ESP_WORKER_BENCH_STATE_H
#define ESP_WORKER_BENCH_STATE_H

#include <jansson.h>

#include "worker/bench.h"
#include "worker/bench_work.h"
#include "worker/ceiling.h"
#include "worker/shelf.h"
#include "worker/stage.h"

#define ESP_BENCH_BATCHES 16
#define ESP_BENCH_IMAGE   1u /* the one picture's id */

/* json_object_set_new takes a NULL value for an error, so a chain of these needs one look at the end. */
#define SET(object, key, value) (ok &= json_object_set_new((object), (key), (value)) == 0)

struct esp_bench_what {
    bool encode, prefill, profile;
    uint32_t n_batch, batch[ESP_BENCH_BATCHES];
    uint32_t layers[2]; /* 0: all */
    enum esp_wtype weights;
    uint32_t prompt, repeats, warm_up, steps;
};

struct esp_bench {
    struct esp_bench_what what;
    FILE *out;
    struct esp_checkpoint *ck;
    const struct esp_config *c;
    struct esp_vk *vk;
    struct esp_shelf *shelf;
    struct esp_stage *stage;
    struct esp_stage_spec spec;
    uint32_t of_layers[2], prefix;
    float *pixels, *features;
    int32_t *ids;
    uint64_t last_seq, last_step, random;
    uint64_t prompt; /* the sequence that has been prefilled and no more, for others to go on from; 0: none */
    uint32_t part, n_part; /* of all that is to be done, for progress */
    bool made;             /* the weights are */
    double load_seconds;
    uint64_t load_bytes;
    struct esp_ceilings ceilings;
    json_t *phases;
};

/** Reads what to run (worker/bench.h). Errors: ESP_E_ARG (names the field). */
esp_status esp_bench_what(struct esp_bench_what *out, const char *text, struct esp_err *err);

/** Steps of decoding that come before the measured ones of a batch: the first of them records its program. */
uint32_t esp_bench_warm_steps(const struct esp_bench_what *what);

/** A line of progress: total 0 where there is nothing to count. Errors: ESP_E_IO (out), ESP_E_NOMEM. */
esp_status esp_bench_tell(const struct esp_bench *bench, const char *what, uint64_t done, uint64_t total,
                          struct esp_err *err);

/** A number below `below`, from bench->random. */
uint32_t esp_bench_draw(struct esp_bench *bench, uint32_t below);

/** How many phases are to be run. */
uint32_t esp_bench_n_phase(const struct esp_bench_what *what);

/**
 * Runs them all on bench->stage: measured, each a new object in bench->phases; then profiled, its kernels put into those.
 * Errors: as esp_stage_encode and esp_stage_step, ESP_E_IO (out), ESP_E_NOMEM.
 */
esp_status esp_bench_phases(struct esp_bench *bench, bool profile, struct esp_err *err);

#endif
