/**
 * The model's operations as recorded dispatches, and the buffers they work on.
 *
 * An operation is recorded once, for any number of rows: how many workgroups run comes from the step buffer
 * (indirect dispatch), so one command buffer serves every step. Which kernel and how it is cut is looked up
 * in worker/kernels.h; formulas stand in the shaders.
 */
#ifndef ESP_WORKER_OPS_H
#define ESP_WORKER_OPS_H

#include "shaders/push.h"
#include "worker/kernels.h"
#include "worker/pack.h"
#include "worker/profile.h"
#include "worker/vk_mem.h"

#define ESP_MAX_CHUNKS    256 /* layers of the largest published model, each cut in three, and its table */
#define ESP_MAT_PARTS     8
#define ESP_TILE_QUERIES  8  /* query vectors an attention workgroup takes */
#define ESP_WIDE_QUERIES  16 /* and one of the texel class, where rows are many */
#define ESP_FLASH_QUERIES 32 /* and one of the gpu class, where rows are many */
#define ESP_HEAD_ROWS     8  /* wants whose logits are computed together */

/** All buffers of a stage. Zeroed: none. It owns all but the weights. */
struct esp_space {
    struct esp_vk *vk;
    uint32_t n_chunk;
    const struct esp_buf *chunk[ESP_MAX_CHUNKS]; /* packed weights, borrowed */
    struct esp_buf vec;                          /* float32 vectors */
    struct esp_buf act;                          /* activations, features, logits */
    struct esp_buf kv;
    struct esp_buf step; /* written by the host before each submission */
    struct esp_buf in;   /* rows or pixels from the host */
    struct esp_buf out;  /* rows, candidates, logits for the host */
    VkDescriptorPool pool;
    VkDescriptorSet set[ESP_MAX_CHUNKS]; /* texel class: one a chunk */
    struct esp_profile *profile;         /* NULL: none */
};

/** Texel class: descriptor sets over the buffers, once all of them exist. At least one chunk must. */
esp_status esp_space_bind(struct esp_space *space, struct esp_err *err);
void esp_space_finish(struct esp_space *space);

/** Lets go of all but what a retired stage keeps: `out`, and scratch and KV cache if asked for. */
void esp_space_retire(struct esp_space *space, bool keep_act, bool keep_kv);

/** A packed matrix: y = x W^T + bias. */
struct esp_mat {
    uint32_t n_part;
    struct {
        uint32_t chunk, at;   /* first texel */
        uint32_t row0, n_row; /* multiples of 8 */
    } part[ESP_MAT_PARTS];
    uint32_t n, np, kp;
    enum esp_wtype wtype;
    uint32_t bias; /* index into vec, or ESP_NONE */
};

/** Those of its panels of 32 rows that make up piece `piece` of `n_piece`, which together are all of it. */
void esp_mat_piece(struct esp_mat *out, const struct esp_mat *w, uint32_t piece, uint32_t n_piece);

/** Rows of activations: f32[., 4 * stride] from texel `at` on. */
struct esp_rows {
    uint32_t at, stride;
};

/** What a dispatch's size follows; the host counts them anew each step. */
enum esp_count {
    ESP_COUNT_ROWS,
    ESP_COUNT_WANTS,
    ESP_COUNT_TILES,
    ESP_COUNT_ITEMS,
    ESP_COUNT_COPIES,
    ESP_COUNT_ONE,
    ESP_N_COUNT
};

struct esp_grid {
    enum esp_count count;
    uint32_t div, axis;
    uint32_t dims[3]; /* of the other two axes */
};

/** The grids that recorded dispatches use; a slot of the step buffer each. */
struct esp_grids {
    uint32_t n;
    struct esp_grid grid[ESP_STEP_N_GRIDS];
};

/** Writes the workgroup counts of every grid into the step buffer's words. */
void esp_grids_write(const struct esp_grids *grids, const uint32_t count[ESP_N_COUNT], uint32_t *words);

/** A command buffer being recorded. After a failure everything is skipped; look at st in the end. */
struct esp_rec {
    struct esp_space *space;
    struct esp_grids *grids;
    VkCommandBuffer cmd;
    bool dry; /* nothing is recorded: the first pipeline that is missing is made, then st is ESP_E_TIMEOUT */
    esp_status st;
    struct esp_err *err;
};

/** A norm taken apart (ESP_SPLIT_* in shaders/push.h), where there are esp_norm_squares. `weight` is an index into vec. */
struct esp_split_norm {
    uint32_t how;               /* ESP_SPLIT_* */
    struct esp_rows z, squares; /* begun: f32[T, D] and f32[T, esp_norm_squares(D)]; ended: x is z */
    uint32_t weight;            /* begun */
    uint32_t width;             /* D */
    float eps;                  /* ended */
};
/** Where this device's products of a few rows can do half of a norm each, how many sums of squares the first half leaves of
 * a row of so many columns; else 0. In the direct class those can for which esp_mat_fixed says so; z is integers then. */
uint32_t esp_norm_squares(const struct esp_vk *vk, uint32_t width);
/** The first half, of rows that no product made. @param most  as in struct esp_matmul_how */
void esp_op_norm_begin(struct esp_rec *rec, struct esp_rows x, const struct esp_split_norm *norm,
                       uint32_t most);

/** The direct class multiplies a few rows by quantised weights as integers (shaders/fixed.glsl). The largest that this matrix takes,
 * and 0 if it takes floats, or its parts do not begin where blocks of integers do. */
uint32_t esp_mat_fixed(const struct esp_vk *vk, const struct esp_mat *w);

/** @param few  0: many rows (prefill, encoder); 1, 2, 4, 8: a few, that many at a time (decode). Where the direct class
 *              multiplies integers (esp_mat_fixed) it leaves such in the place of an x that is floats. */
struct esp_matmul_how {
    uint32_t epilogue; /* ESP_EPI_* */
    uint32_t few;
    enum esp_count count; /* ROWS or WANTS */
    float cap;
    uint32_t scale_at; /* scratch, a float a row, from this texel on; 0: none, and no cooperative matrices */
    /* a few rows, ESP_EPI_ADD to begin one; direct class: where w has esp_mat_fixed; zeroed: none */
    struct esp_split_norm norm;
    bool fixed; /* x is integers already */
    /* leaves integers up to it, z or with ESP_EPI_GEGLU y: esp_mat_fixed of the reader, where w has it too; 0: floats */
    uint32_t most;
};
void esp_op_matmul(struct esp_rec *rec, struct esp_rows y, struct esp_rows x, const struct esp_mat *w,
                   const struct esp_matmul_how *how);

struct esp_norm_how {
    uint32_t mode;         /* ESP_NORM_* */
    uint32_t width;        /* D */
    uint32_t weight, bias; /* into vec; bias of ESP_NORM_LAYER only */
    float eps;
    bool pick; /* rows of x are those wanted: y f32[wants, D] */
};
void esp_op_norm(struct esp_rec *rec, struct esp_rows y, struct esp_rows x, const struct esp_norm_how *how);

/** A tower's attention: shapes and where a layer's keys and values are. */
struct esp_attn_how {
    uint32_t n_head, n_kv, head_dim; /* head_dim padded */
    uint32_t kv_at, block_stride;    /* texels */
    bool rotate;
    uint32_t table, table_sin; /* into vec */
    float q_scale, softcap;    /* softcap 0: none */
    bool window;
    bool few;          /* decode rows */
    bool whole;        /* decode rows whose batch has no items: the same bits, less at once */
    uint32_t parts_at; /* few, where the device splits: scratch of esp_attn_part_texels for every item */
};
void esp_op_rope_kv(struct esp_rec *rec, struct esp_rows qkv, const struct esp_attn_how *how);
/** Its piece `piece` of `n_piece` that together are all of it; more than one only for many rows. */
void esp_op_attention_piece(struct esp_rec *rec, struct esp_rows y, struct esp_rows qkv,
                            const struct esp_attn_how *how, uint32_t piece, uint32_t n_piece);
void esp_op_attention(struct esp_rec *rec, struct esp_rows y, struct esp_rows qkv,
                      const struct esp_attn_how *how);
/** Rows of one sequence that one attention tile takes; head_dim padded. */
uint32_t esp_attn_tile_rows(const struct esp_vk *vk, bool few, uint32_t n_head, uint32_t n_kv,
                            uint32_t head_dim);
/** Texels of scratch an item takes where attention of decode rows is split over positions; 0: this device does not. */
uint32_t esp_attn_part_texels(const struct esp_vk *vk, uint32_t n_head, uint32_t n_kv, uint32_t head_dim);
/** Workgroup memory that attention takes on this device, in bytes; head_dim padded. */
uint32_t esp_attn_shared_bytes(const struct esp_vk *vk, uint32_t head_dim);

void esp_op_embed(struct esp_rec *rec, struct esp_rows y, struct esp_rows features, const struct esp_mat *w,
                  float scale);
void esp_op_im2col(struct esp_rec *rec, struct esp_rows y, uint32_t channels, uint32_t size, uint32_t patch);
void esp_op_add_vec(struct esp_rec *rec, struct esp_rows y, uint32_t vec_at);
/** From `in` / into `out`, at an offset in floats. */
void esp_op_rows_in(struct esp_rec *rec, struct esp_rows y, uint32_t width);
void esp_op_rows_out(struct esp_rec *rec, struct esp_rows x, uint32_t width, uint32_t out_at,
                     enum esp_count count);
void esp_op_kv_copy(struct esp_rec *rec, uint32_t block_stride, uint32_t layer_stride, uint32_t n_layer);
/** Candidates of logits f32[wants, vocab] into `out`, ESP_TOP words a want from word 0 on. `slices`: scratch.
 */
void esp_op_topk(struct esp_rec *rec, struct esp_rows logits, struct esp_rows slices, uint32_t vocab);

#endif
