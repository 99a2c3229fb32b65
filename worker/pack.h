/**
 * Weights in the order kernels read them.
 *
 * A matrix W [N, K] (y = x W^T) is cut into groups of 8 rows; within a group, 16 bytes of each of the 8 rows
 * stand side by side: a texel is 8 (16-bit types) or 4 (float32) consecutive k of one row, texel (g, c, r) at
 * (g * C + c) * 8 + r with C texels a row. A subgroup that holds a row a lane reads 128 bytes in one piece,
 * whatever the device. N and K are padded to multiples of 32 with zeros, so kernels have no tails in either.
 *
 * Quantised rows (model/quant.h) lie the same way, 32 k of 8 rows after the other: first one texel of their scales
 * (struct esp_q8_block's d or struct esp_q4_block's side, row r's at 2r bytes), then q8: two texels a row, k 0..15 of all
 * rows, then k 16..31; q4: one texel a row.
 *
 * CPU drivers (texel class) have their quantised rows by panels of 4 (q8) or 8 (q4) groups, N padded to whole ones: a word
 * holds one k of a row of each group, so that one x serves them all. A block of 32 k of a panel is [k / 4][row % 8][k % 4] of
 * words, group j's number (q8: + 128) in bits 8j or 4j and up, and then [row % 8][group] of scales, 16 bits each. The direct
 * class has the same words as [k][row % 8], and scales as [group / 2][row % 8][group % 2]. A class or type that wants yet another layout packs its panels from esp_pack_row.
 *
 * Heads are padded too: head_dim H becomes 2 * round_up(ceil(H/2), 4), each half on its own, so that RoPE's
 * pairs (j, j + H/2) stay whole quads apart. Zero rows and columns change no result.
 */
#ifndef ESP_WORKER_PACK_H
#define ESP_WORKER_PACK_H

#include <stdint.h>

#include "model/checkpoint.h"
#include "model/quant.h"
#include "worker/vk_device.h"

/** head_dim as the kernels see it: a multiple of 8. */
uint32_t esp_pack_head_dim(uint32_t head_dim);

/** Heads in rows or columns of a matrix: n of them, head_dim each. n == 0: no heads, plain indices. */
struct esp_pack_heads {
    uint32_t n, head_dim;
};

/** A run of rows of the packed matrix, taken from a stored tensor [n_row, K] (further dimensions are part of
 * K). */
struct esp_pack_part {
    const struct esp_tensor *tensor;
    struct esp_pack_heads heads; /* of its rows */
};

#define ESP_PACK_PARTS 3

/** What to pack: its parts one after the other, or (interleave) two parts by turns, 8 rows each: GeGLU's gate
 * and up. */
struct esp_pack_spec {
    uint32_t n_part;
    struct esp_pack_part part[ESP_PACK_PARTS];
    bool interleave;
    struct esp_pack_heads k_heads; /* of the columns */
    /* ESP_W_STORED: as the parts are stored, float32 where they differ. What esp_role_wtype says, where heads in columns
     * would have to be padded amid blocks */
    enum esp_wtype want;
    enum esp_vk_class cls; /* whose kernels read it */
};

/** The packed shape. */
struct esp_pack_dims {
    enum esp_wtype wtype;
    uint32_t n, k; /* rows and columns in use, padded heads counted */
    uint32_t np,
        kp;         /* padded to 32, np to panels; np is twice the padded rows of one part when interleaved */
    uint32_t panel; /* groups of 8 rows that are packed and cut together; divides np / 8 */
    uint32_t group_bytes; /* of 8 rows, their share of a panel */
    bool by_k;            /* panels in the direct class's order */
};

void esp_pack_dims(struct esp_pack_dims *out, const struct esp_pack_spec *spec);

/** Whether packing quantises: a hundred times as long as packing weights that are quantised already, or never will be. */
bool esp_pack_quantises(const struct esp_pack_spec *spec, const struct esp_pack_dims *dims);

/** Bytes of scratch that packing takes. */
size_t esp_pack_scratch_bytes(const struct esp_pack_dims *dims);

/**
 * Packed row r (below np) by itself: its kp weights as dims->wtype, quantised ones as blocks (model/quant.h), padding as
 * zeros.
 *
 * @param out      esp_wtype_n_bytes(dims->wtype, dims->kp) bytes, aligned for its elements
 * @param scratch  f32[kp]
 * Errors: ESP_E_FORMAT (a weight that the wished type cannot hold: no finite number, or beyond its largest; names tensor,
 * row and column). Safe from any thread, as is esp_pack_groups.
 */
esp_status esp_pack_row(void *out, const struct esp_pack_spec *spec, const struct esp_pack_dims *dims,
                        uint32_t r, float *scratch, struct esp_err *err);

/**
 * Packs groups [group0, group0 + n_group) of 8 rows, whole panels, into out (n_group * group_bytes bytes). Padding is
 * zero.
 * @param scratch  esp_pack_scratch_bytes of the caller's, for one call at a time; aligned for float
 * Errors: as esp_pack_row; out is undefined then.
 */
esp_status esp_pack_groups(void *out, const struct esp_pack_spec *spec, const struct esp_pack_dims *dims,
                           uint32_t group0, uint32_t n_group, void *scratch, struct esp_err *err);

/** Which stored bytes of part i's tensor such groups are packed from: *n_bytes from *at on, rounded up to whole rows or
 * heads; 0: none. */
void esp_pack_source(uint64_t *at, uint64_t *n_bytes, const struct esp_pack_spec *spec, uint32_t i,
                     uint32_t group0, uint32_t n_group);

/** A stored vector [n] (or a matrix's rows, tight) as float32, with the heads of a row map: out f32[np],
 * zeros else. */
void esp_pack_vector(float *out, uint32_t np, const struct esp_pack_part *parts, uint32_t n_part);

#endif
