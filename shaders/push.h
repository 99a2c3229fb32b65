/*
 * What the host and the shaders share: push constants, and the layout of the step buffer.
 * Read by C (worker/) and by GLSL (ESP_GLSL defined). Addresses first, then 4-byte scalars, so that C and std430
 * agree; C asserts every size to be at most 128, which each device guarantees.
 *
 * Units: a "texel" is 16 bytes, the unit of every offset into activations, weights and KV; `at` is where
 * something starts and `stride` the distance of its rows, both in texels. Rows of activations are padded to 32
 * floats, and the padding is always zero: every kernel that writes a row writes its padding too.
 */
#ifndef ESP_SHADERS_PUSH_H
#define ESP_SHADERS_PUSH_H

#ifdef ESP_GLSL
#define ESP_ADDR(type) type
#define ESP_ADDR_ANY   uvec2 /* read as one type here, as another there: some drivers cannot cast references */
#define ESP_UINT       uint
#define ESP_FLOAT      float
#else
#include <stdint.h>
#define ESP_ADDR(type) uint64_t
#define ESP_ADDR_ANY   uint64_t
#define ESP_UINT       uint32_t
#define ESP_FLOAT      float
#endif

#define ESP_NONE 0xffffffffu /* no bias, no target */

/*
 * The step buffer: all that changes from step to step, as 32-bit words.
 *   [0, 16)    header: the counts, and where the tables below begin (in words)
 *   [16, ...)  arguments of indirect dispatches, ESP_STEP_GRID words each
 */
#define ESP_STEP_N_ROWS  0 /* rows of activations */
#define ESP_STEP_N_WANTS 1 /* rows whose logits are asked for, in the block at hand */
#define ESP_STEP_ROWS    2 /* where the row records begin */
#define ESP_STEP_TILES   3
#define ESP_STEP_WANTS   4
#define ESP_STEP_COPIES  5
#define ESP_STEP_ITEMS   6
#define ESP_STEP_N_TILES 7
#define ESP_STEP_GRIDS   16
#define ESP_STEP_GRID    4 /* words: x, y, z, unused */
#define ESP_STEP_N_GRIDS 60

/* A row record: ESP_ROW words. */
#define ESP_ROW         8
#define ESP_ROW_SRC     0 /* token id, or ESP_ROW_FEATURE | row of the features store */
#define ESP_ROW_POS     1 /* position in its sequence, from 0 */
#define ESP_ROW_HI      2 /* attends to positions below this ... */
#define ESP_ROW_LO      3 /* ... from this on, in layers without a window */
#define ESP_ROW_LO_WIN  4 /* ... and in layers with one */
#define ESP_ROW_SLOT    5 /* where its own K and V go: block * ESP_KV_BLOCK + token */
#define ESP_ROW_FEATURE 0x80000000u

/* A tile record: rows of one sequence that one attention workgroup takes together. ESP_TILE words. */
#define ESP_TILE        8
#define ESP_TILE_ROW    0 /* first row */
#define ESP_TILE_N      1 /* rows */
#define ESP_TILE_TABLE  2 /* word where the sequence's block table begins */
#define ESP_TILE_HI     3 /* largest HI of its rows */
#define ESP_TILE_LO     4 /* smallest LO */
#define ESP_TILE_LO_WIN 5 /* smallest LO_WIN */
#define ESP_TILE_ITEM   6 /* its first item, where the batch has items */

/*
 * An item record: the share of one workgroup where decoding attention is split over positions, ESP_SLICE of them from
 * SLICE * ESP_SLICE on. A tile's items stand together, slices rising from 0.
 */
#define ESP_ITEM       2 /* words */
#define ESP_ITEM_TILE  0
#define ESP_ITEM_SLICE 1
#define ESP_SLICE      64 /* positions: whole blocks */

/* A want record: ESP_WANT words. */
#define ESP_WANT        4
#define ESP_WANT_ROW    0
#define ESP_WANT_K      1
#define ESP_WANT_TARGET 2 /* id or ESP_NONE */

/*
 * KV cache. A block holds ESP_KV_BLOCK tokens of one layer, all KV heads (K of them, H padded to a multiple of 8):
 *   keys   [K][ESP_KV_BLOCK / 8][H / 4][8] texels: 8 neighbouring keys side by side, four dimensions each
 *   values [K][ESP_KV_BLOCK][H / 4] texels
 */
#define ESP_KV_BLOCK 32

/* What topk leaves for each want, in words: ESP_TOP_K candidates at most. */
#define ESP_TOP_K      256
#define ESP_TOP_MAX    0 /* largest logit m */
#define ESP_TOP_SUM    1 /* sum of exp(logit - m) */
#define ESP_TOP_TARGET 2 /* the target's logit */
#define ESP_TOP_IDS    4
#define ESP_TOP_LOGITS (ESP_TOP_IDS + ESP_TOP_K)
#define ESP_TOP        (ESP_TOP_LOGITS + ESP_TOP_K)
#define ESP_TOP_SLICE  256 /* logits a slice */

/* Epilogues of products. */
#define ESP_EPI_NONE    0 /* y = xW + b */
#define ESP_EPI_GELU    1 /* y = gelu(xW + b), tanh form */
#define ESP_EPI_ADD     2 /* y += xW + b */
#define ESP_EPI_GEGLU   3 /* groups of 8 columns alternate gate and up: y = gelu(gate) * up */
#define ESP_EPI_SOFTCAP 4 /* y = cap * tanh(xW / cap) */

/* Norms. */
#define ESP_NORM_LAYER   0 /* y = (x - mean) / sqrt(var + eps) * w + b */
#define ESP_NORM_RMS     1 /* y = x / sqrt(mean(x^2) + eps) * (1 + w) */
#define ESP_NORM_RMS_ADD 2 /* y += the same */

/*
 * An RMSNorm taken apart (few rows): W (x (1 + w) / rms) = (W (x (1 + w))) / rms. Who makes x leaves z = x (1 + w) too, and a sum of
 * squares for every 8 columns (direct class: 64); the product behind takes z for x and divides its sums by the root mean square.
 */
#define ESP_SPLIT_NONE  0
#define ESP_SPLIT_BEGIN 1 /* with ESP_EPI_ADD: also leaves z and squares */
#define ESP_SPLIT_END   2 /* x is such a z: the sums are divided by what its squares say */

#define ESP_PUSH_HEAD                                                                                        \
    ESP_ADDR(esp_words) step; /* the step buffer */                                                          \
    ESP_ADDR_ANY act;         /* activations, as floats or texels */                                         \
    ESP_ADDR(esp_quads) w;    /* the chunk of weights in use */                                              \
    ESP_ADDR(esp_floats) vec; /* small float32 vectors: biases, norm weights, position tables */             \
    ESP_ADDR_ANY kv;          /* KV cache, as texels */

/* fixed.glsl: blocks of 32 k that a workgroup of row_fixed.comp takes, and the largest of the integers: sums of 32 products must fit
 * into 31 bits, with q8's numbers of 8 bits and with q4's where they stand in their words, up to bit 12. */
#define ESP_FIXED_BLOCKS  16
#define ESP_FIXED_MOST_Q8 32767
#define ESP_FIXED_MOST_Q4 16383

struct esp_push_matmul {
    ESP_PUSH_HEAD
    ESP_UINT x_at, x_stride; /* f32[T, K] */
    ESP_UINT y_at, y_stride; /* f32[T, N] */
    ESP_UINT w_at;           /* packed, worker/pack.h */
    ESP_UINT k4;             /* padded K / 4 */
    ESP_UINT n_group;        /* groups of 8 columns here */
    ESP_UINT group0;         /* the first one's place among the columns of y */
    ESP_UINT bias;           /* index into vec of b[0], or ESP_NONE */
    ESP_UINT count;          /* which word of the step counts the rows */
    ESP_FLOAT cap;           /* ESP_EPI_SOFTCAP */
    ESP_UINT scale_at;       /* cooperative matrices: a scale for each row of x, f32[T] from this texel on */
    /* a norm taken apart */
    ESP_UINT squares_at, squares_stride; /* f32[T, D / 8], direct class: D / 64 */
    ESP_UINT z_at, z_stride;             /* begun: f32[T, D] ... */
    ESP_UINT weight;                     /* ... and index into vec of w */
    ESP_UINT width;                      /* ended: D */
    ESP_FLOAT eps;
};

struct esp_push_norm {
    ESP_PUSH_HEAD
    ESP_UINT x_at, x_stride; /* f32[., D] */
    ESP_UINT y_at, y_stride; /* f32[T, D] */
    ESP_UINT width, n_quad;  /* D, and padded D / 4 */
    ESP_UINT weight, bias;   /* indices into vec */
    ESP_UINT count;          /* which word of the step counts the rows */
    ESP_UINT pick;           /* 1: row t of y comes of row WANT_ROW of want t of x */
    ESP_FLOAT eps;
    ESP_UINT squares_at, squares_stride; /* norm_begin*.comp: f32[T, D / 8], direct class: D / 64 */
};

struct esp_push_rope {
    ESP_PUSH_HEAD
    ESP_UINT x_at, x_stride;   /* f32[T, (N + 2K) * H]: q (changed in place), k, v */
    ESP_UINT n_head, n_kv;     /* N, K */
    ESP_UINT h8;               /* padded H / 8 */
    ESP_UINT table, table_sin; /* vec: cos and sin, f32[positions, H/2 padded] */
    ESP_UINT kv_at;            /* this layer's first texel */
    ESP_UINT block_stride;     /* texels of a block */
    ESP_FLOAT q_scale;
};

struct esp_push_attention {
    ESP_PUSH_HEAD
    ESP_UINT q_at, q_stride;
    ESP_UINT y_at, y_stride; /* f32[T, N * H] */
    ESP_UINT kv_at, block_stride;
    ESP_UINT n_kv;     /* K */
    ESP_FLOAT softcap; /* 0: none */
    ESP_UINT parts_at; /* scratch of split attention */
    ESP_UINT tile0,
        tile_by; /* many rows: workgroup x takes tile tile0 + x * tile_by, so that one of several pieces */
};

struct esp_push_embed {
    ESP_PUSH_HEAD
    ESP_UINT y_at, y_stride; /* f32[T, D] */
    ESP_UINT features_at;    /* the features store, rows of y_stride */
    ESP_UINT w_at, k4;       /* the embedding, packed; this part holds rows [row0, row0 + n_row) of it */
    ESP_UINT row0, n_row;
    ESP_FLOAT scale;
};

/* Rows between a host-visible buffer (tight, f32[T, D]) and activations (padded). */
struct esp_push_io {
    ESP_PUSH_HEAD
    ESP_ADDR(esp_floats) host;
    ESP_UINT y_at, y_stride; /* the activations' side */
    ESP_UINT width, n_quad;
    ESP_UINT host_at; /* floats into host */
    ESP_UINT count;
};

struct esp_push_im2col {
    ESP_PUSH_HEAD
    ESP_ADDR(esp_floats) host;              /* f32[C, S, S] */
    ESP_UINT y_at, y_stride;                /* f32[patches, C*P*P] */
    ESP_UINT channels, size, side_px, side; /* C, S, P, patches a side */
};

struct esp_push_add {
    ESP_PUSH_HEAD
    ESP_UINT y_at, y_stride;
    ESP_UINT n_quad;
    ESP_UINT vec_at; /* f32[T, padded D] */
    ESP_UINT count;
};

struct esp_push_ceiling {
    ESP_PUSH_HEAD
    ESP_UINT n_quad;  /* that are read */
    ESP_UINT magic;   /* not what they come to */
    ESP_UINT n_round; /* of arithmetic */
    ESP_FLOAT scale;  /* below one */
};

struct esp_push_topk {
    ESP_PUSH_HEAD
    ESP_ADDR(esp_words) dst;         /* ESP_TOP words a want */
    ESP_UINT x_at, x_stride;         /* logits f32[R, V] */
    ESP_UINT slice_at, slice_stride; /* per want and slice: head value, head id, max, sum: one texel */
    ESP_UINT vocab, n_slice;
};

struct esp_push_kv_copy {
    ESP_PUSH_HEAD
    ESP_UINT block_stride; /* texels of a block */
    ESP_UINT layer_stride; /* texels of all blocks of a layer */
};

#endif
