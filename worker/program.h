/**
 * A stage's work as recorded command buffers, one a layer: recorded once, submitted step after step.
 *
 * The scratch that they share is planned here: residual stream x, normed rows h, and a region that first
 * holds QKV and attention output, then the MLP's hidden rows. Encoder and decoder never run at once and
 * overlap. Every region is linear in rows; no score matrix exists anywhere.
 */
#ifndef ESP_WORKER_PROGRAM_H
#define ESP_WORKER_PROGRAM_H

#include "worker/weights.h"

/** One command buffer, and what a trace would show after it: f32[rows, width] at `loc`. */
struct esp_segment {
    VkCommandBuffer cmd;
    char name[40]; /* "" where there is nothing to see */
    struct esp_rows loc;
    uint32_t width;
};

struct esp_program {
    uint32_t n, cap;
    struct esp_segment *seg;
};

/* Decode programs: rows that a kernel takes at once. WHOLE is 8 for steps of so many rows that split attention has no room
 * for them; its bits are the same. */
enum esp_decode_few { ESP_FEW_1, ESP_FEW_2, ESP_FEW_4, ESP_FEW_8, ESP_FEW_WHOLE, ESP_N_FEW };

/** Where everything lies in the buffers, and how large they must be. */
struct esp_layout {
    struct esp_rows x, h, qkv, attn, mlp, patches; /* encoder's while it runs */
    struct esp_rows tx, th, tqkv, tattn, tmlp;     /* decoder's */
    struct esp_rows squares;                       /* f32[., D / 8 or 64], where products halve norms */
    uint32_t scales;           /* a float for every row of either, where products need them; else 0 */
    uint32_t parts, max_items; /* split attention: scratch, and items it has room for; 0: none */
    struct esp_rows pick;      /* f32[ESP_HEAD_ROWS, D]: normed rows of the wants */
    struct esp_rows logits, slices;
    struct esp_rows features; /* f32[max_images * N, D] */
    uint64_t act_texels;
    uint32_t text_block, text_layer;  /* KV: texels of a block of one layer, of a layer */
    uint32_t vision_at, vision_block; /* KV: SigLIP's keys and values, first texel, texels of a block */
    uint32_t n_vision_blocks;
    uint64_t kv_texels;
    uint32_t full_at; /* floats into `out`: full logits */
    uint64_t in_bytes, out_bytes;
};

struct esp_programs {
    struct esp_layout at;
    struct esp_grids grids;
    struct esp_program encode, prefill, decode[ESP_N_FEW];
    struct esp_program head[ESP_N_FEW]; /* wants -> candidates */
    struct esp_program full;            /* logits of the wants into `out` */
    struct esp_program norm_all;        /* final norm of all rows, for traces */
    struct esp_program store_kv;        /* QKV as it stands into every layer's cache: zeros, to clean up */
};

/** Sizes and places for a spec. n_blocks: KV blocks of the decoder. Errors: ESP_E_NOMEM (indices would
 * overflow). */
esp_status esp_layout_plan(struct esp_layout *out, const struct esp_vk *vk, const struct esp_config *config,
                           const struct esp_stage_spec *spec, uint32_t n_blocks, struct esp_err *err);

/**
 * Records everything but the decode programs for more than one row, which esp_programs_few records at first
 * need. space's buffers exist and are bound.
 */
esp_status esp_programs_record(struct esp_programs *programs, struct esp_space *space,
                               const struct esp_weights *weights, const struct esp_config *config,
                               const struct esp_stage_spec *spec, struct esp_err *err);
esp_status esp_programs_few(struct esp_programs *programs, enum esp_decode_few few, struct esp_space *space,
                            const struct esp_weights *weights, const struct esp_config *config,
                            const struct esp_stage_spec *spec, struct esp_err *err);
/**
 * Makes the first pipeline that is missing of those that the programs of `spec` will ask for, and records nothing: a
 * compiler may take longer than all the rest. ps->at is planned; weights are planned, and need not be anywhere.
 * @param few  also those of programs that esp_programs_few would record
 * Errors: ESP_E_TIMEOUT (one was made: there may be more), else as esp_programs_record.
 */
esp_status esp_programs_prepare(struct esp_programs *programs, struct esp_vk *vk,
                                const struct esp_weights *weights, const struct esp_config *config,
                                const struct esp_stage_spec *spec, bool few, struct esp_err *err);
void esp_programs_finish(struct esp_programs *programs, struct esp_vk *vk);

/** Smallest variant that takes n rows at once; beyond 8 it goes round. */
enum esp_decode_few esp_few_for(uint32_t n_rows);

#endif
