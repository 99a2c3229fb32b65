/* What verify.c, which runs the input on the device, and verify_parts.c, which compares what came out, share; nobody else
 * includes it. */
#ifndef ESP_WORKER_VERIFY_STATE_H
#define ESP_WORKER_VERIFY_STATE_H

#include "worker/verify.h"

#define ESP_VERIFY_PREFIX   4  /* rows that see each other both ways */
#define ESP_VERIFY_PREFILL  6  /* rows of the first step */
#define ESP_VERIFY_MAX_ROWS 21 /* of the sequence: within one KV block of the engine's */
#define ESP_VERIFY_STEPS    5
#define ESP_VERIFY_TOP_K    8 /* candidates asked for */

enum esp_part_kind {
    ESP_PART_PATCHES,
    ESP_PART_POSITIONS,
    ESP_PART_VISION_LAYER,
    ESP_PART_POST,
    ESP_PART_PROJECTOR,
    ESP_PART_EMBED,
    ESP_PART_TEXT_LAYER,
    ESP_PART_NORM,
    ESP_PART_LOGITS,
    ESP_PART_CANDIDATES
};

struct esp_part {
    enum esp_part_kind kind;
    uint32_t layer;
    bool decode; /* rows of the later steps */
};

struct esp_verify {
    const struct esp_checkpoint *ck;
    const struct esp_config *c;
    struct esp_stage_spec spec;
    bool planned, encoded;
    bool few_rounded; /* as in esp_stage_info_out */

    uint32_t n_patch;
    float *patches; /* input: f32[C,S,S], or f32[n_patch,D] */
    struct esp_stage_out vision;

    uint32_t n_row; /* of all steps that ran */
    int32_t ids[ESP_VERIFY_MAX_ROWS];
    float *rows;     /* input of a stage in the middle, f32[ESP_VERIFY_MAX_ROWS,D] */
    uint32_t n_step; /* that ran: the last one may have had results that are no numbers */
    struct esp_stage_out step[ESP_VERIFY_STEPS];

    double *want; /* of the last part with rows of the decoder: f64[n_row,D] */
    bool wanted;  /* it is this layer's: */
    uint32_t wanted_layer;

    uint32_t n_part;
    struct esp_part part[2 * ESP_MAX_LAYERS + ESP_MAX_LAYERS + 16];
};

#endif
