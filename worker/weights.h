/**
 * The weights a stage holds: which tensors a placement calls for, packed into device chunks.
 */
#ifndef ESP_WORKER_WEIGHTS_H
#define ESP_WORKER_WEIGHTS_H

#include "worker/ops.h"
#include "worker/stage.h"

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

    struct esp_weight_item *items; /* the plan, until loaded */
    uint32_t n_items, cap_items;
    uint64_t n_chunk_bytes[ESP_MAX_CHUNKS];
    uint32_t n_chunk;
    uint64_t n_vec;   /* floats */
    uint64_t n_bytes; /* of all chunks and vectors */
};

/**
 * Lists what `spec` needs and where each piece will lie; takes no device memory.
 * @param n_pos  positions the rotary tables must cover
 * Errors: ESP_E_NOMEM (host memory, or more pieces than the device's buffers can hold).
 */
esp_status esp_weights_plan(struct esp_weights *out, const struct esp_vk *vk, const struct esp_checkpoint *ck,
                            const struct esp_stage_spec *spec, uint32_t n_pos, struct esp_err *err);

/** Allocates space->chunk[] and space->vec as planned, and fills them from the mapped checkpoint. */
esp_status esp_weights_load(struct esp_weights *weights, struct esp_space *space,
                            const struct esp_checkpoint *ck, uint32_t n_pos, esp_load_progress progress,
                            void *progress_arg, struct esp_err *err);

void esp_weights_finish(struct esp_weights *weights);

#endif
