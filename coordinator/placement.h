/**
 * Placement: which worker holds which layers. A pure function of the model's cost, the workers' reports and
 * the options.
 *
 * The counts come from coordinator/cut.h: the busiest worker's seconds in one typical request (one picture
 * encoded, its prompt prefilled, the answer decoded; coordinator/cost.h) are the smallest possible, up to the
 * slack; then work spreads. Encoder and decoder layers are placed independently: a worker may have either or
 * both, and the two chains may visit workers in different orders.
 * Measured rates differ from run to run on machines that share cores, so workers that name the same device
 * count as equal where their rates lie within a factor of 2 (each then has the geometric mean), and all rates
 * are rounded to powers of 1.25: alike machines get alike shares and the answer does not wander.
 *
 * What is refused: balancing by arithmetic alone (decode is bound by bandwidth), counting the embedding table
 * as a layer (it is needed at both ends of the decoder, once where one worker has both ends).
 */
#ifndef ESP_COORDINATOR_PLACEMENT_H
#define ESP_COORDINATOR_PLACEMENT_H

#include <stdbool.h>
#include <stdint.h>

#include "coordinator/cost.h"
#include "coordinator/split.h"
#include "proto/status.h"

/** What a worker reports. Strings are borrowed. */
struct esp_place_worker {
    const char *name;         /* for messages; NULL: "worker INDEX" */
    const char *device;       /* model of device and driver; NULL: like no other */
    uint64_t memory_bytes;    /* free for us on its device */
    uint64_t max_alloc_bytes; /* of one allocation; 0: no limit */
    double bandwidth;         /* bytes/s, > 0 */
    double matmul_rate;       /* flop/s, > 0 */
};

struct esp_place_options {
    uint32_t kv_tokens;            /* tokens that every decoder stage holds K and V of, at least 1 */
    const struct esp_split *split; /* layers by hand, stage i on worker i; NULL: search */
    double slack;         /* how far the busiest worker may be above the optimum, for a better spread; 0.05 */
    double hop_seconds;   /* latency of one message between workers */
    double hop_bandwidth; /* bytes/s; 0: no limit */
};

/** One worker's part. */
struct esp_place_stage {
    uint32_t worker;         /* index into the workers given */
    uint32_t enc_lo, enc_hi; /* encoder layers [lo, hi); equal: none */
    uint32_t dec_lo, dec_hi; /* decoder layers [lo, hi) */
    bool patch, projector;   /* first, last encoder stage */
    bool embed, head;        /* first, last decoder stage */
    double encode_seconds;   /* of a request's pictures */
    double prefill_seconds;  /* of its prompt */
    double decode_seconds;   /* of one token */
    double busy_seconds;     /* encode + prefill + n_answer * decode */
    uint64_t weight_bytes, kv_bytes, scratch_bytes;
};

struct esp_placement {
    uint32_t n_stage; /* along the encoder chain first, then those of the decoder chain alone */
    struct esp_place_stage stage[ESP_PLACE_MAX_WORKERS];
    uint32_t n_enc_stage, enc_order[ESP_PLACE_MAX_WORKERS]; /* indices into stage[], first to last */
    uint32_t n_dec_stage, dec_order[ESP_PLACE_MAX_WORKERS];
    uint32_t n_spare, spare[ESP_PLACE_MAX_WORKERS];         /* indices of workers without layers */
    double bottleneck_seconds;                              /* the busiest stage's busy_seconds */
    double encode_seconds, prefill_seconds, decode_seconds; /* of one request alone, stages and hops summed */
    double latency_seconds;                                 /* encode + prefill + n_answer * decode */
    uint32_t fewer;       /* so many workers alone would answer a single request faster; 0: none would */
    double fewer_seconds; /* that request's latency_seconds */
};

/** A kv_tokens' worth of defaults: slack 5 %, hops of 100 us at 1 GB/s. */
void esp_place_options_init(struct esp_place_options *options, uint32_t kv_tokens);

/**
 * @param out      the caller's (some 30 KB); filled only on success
 * @param workers  n_worker reports, 1 .. ESP_PLACE_MAX_WORKERS; ties fall to the lower index
 * Errors: ESP_E_ARG (no workers, rates that are no rates, a split for more workers than there are or for
 * other layers), ESP_E_NOMEM (says what is needed, what each worker has, and the ways out), ESP_E_LIMIT (a
 * model beyond counting). Safe from any thread.
 */
esp_status esp_place(struct esp_placement *out, const struct esp_model_cost *cost,
                     const struct esp_place_worker *workers, uint32_t n_worker,
                     const struct esp_place_options *options, struct esp_err *err);

/** Layers of one worker, [lo, hi) of each tower. */
struct esp_place_share {
    uint32_t enc_lo, enc_hi, dec_lo, dec_hi;
};

/**
 * The placement that gives every worker its share: what one that stands, or was made in another way, is worth by the
 * same measure. `fewer` is not looked for.
 *
 * @param shares  n_worker of them; together each tower whole, no layer twice
 * Errors: as esp_place; ESP_E_ARG if the shares are not that, ESP_E_NOMEM if one does not fit its worker.
 */
esp_status esp_place_as(struct esp_placement *out, const struct esp_model_cost *cost,
                        const struct esp_place_worker *workers, uint32_t n_worker,
                        const struct esp_place_options *options, const struct esp_place_share *shares,
                        struct esp_err *err);

/** The power of 1.25 nearest to a rate > 0, on the logarithmic scale. */
double esp_place_round_rate(double rate);

#endif
