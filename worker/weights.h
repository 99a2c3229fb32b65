/**
 * The weights of one stage: matrices, which the shelf's pieces hold, and the small vectors beside them, which the stage
 * makes for itself.
 */
#ifndef ESP_WORKER_WEIGHTS_H
#define ESP_WORKER_WEIGHTS_H

#include "worker/ops.h"
#include "worker/shelf.h"

/** Vectors are indices into the space's vec buffer, ESP_NONE where the model has none. */
struct esp_enc_layer {
    uint32_t norm1_w, norm1_b, norm2_w, norm2_b;
    struct esp_mat qkv, o, fc1, fc2;
};

struct esp_dec_layer {
    uint32_t norm_attn, norm_post_attn, norm_mlp, norm_post_mlp;
    struct esp_mat qkv, o, gate_up, down;
};

struct esp_weights {
    struct esp_mat patch;      /* first encoder stage */
    uint32_t pos;              /* vec: f32[N, padded D] */
    struct esp_enc_layer *enc; /* of layers enc_lo .. */
    uint32_t post_w, post_b;   /* last encoder stage */
    struct esp_mat proj;
    struct esp_mat embed; /* first and last decoder stage: input rows and output head */
    struct esp_dec_layer *dec;
    uint32_t norm_final;
    uint32_t rope_cos, rope_sin; /* vec: f32[positions, padded H/2] */

    struct esp_vec_item *items; /* vectors to be made, until loaded */
    uint32_t n_items, cap_items;
    uint32_t n_chunk;    /* buffers of all pieces */
    uint64_t n_vec;      /* floats */
    uint64_t n_bytes;    /* of all pieces and vectors */
    uint64_t read_bytes; /* of pieces that were not on the shelf */
};

/**
 * Lists what `spec` needs and where each of it will lie; takes no device memory.
 * @param n_pos  positions the rotary tables must cover
 * Errors: ESP_E_ARG (the shelf is in use with weights of another type), ESP_E_NOMEM (host memory, or more pieces than the device's buffers can hold).
 */
esp_status esp_weights_plan(struct esp_weights *out, struct esp_shelf *shelf,
                            const struct esp_stage_spec *spec, uint32_t n_pos, struct esp_err *err);

/**
 * Has the shelf read what it lacks, sets space->chunk[] to its pieces, and makes space->vec. The stage must be using
 * the shelf (esp_shelf_use). Errors: as esp_shelf_fill.
 */
esp_status esp_weights_load(struct esp_weights *weights, struct esp_space *space, struct esp_shelf *shelf,
                            const struct esp_stage_spec *spec, uint32_t n_pos, esp_load_progress progress,
                            void *progress_arg, struct esp_err *err);

void esp_weights_finish(struct esp_weights *weights);

#endif
