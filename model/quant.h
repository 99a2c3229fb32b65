/**
 * Quantised rows of weights: what q8 and q4 are, for every device class and every file.
 *
 * A row is cut into blocks of 32 consecutive columns, the last one filled up with zeros.
 *
 *   q8  w = d * q            q in -127 .. 127, d a bfloat16
 *   q4  w = d * (q - z / 4)  q in 0 .. 15, z in 0 .. 63, d = (1 + m/16) * 2^(e - 40) with e in 0 .. 63, m in 0 .. 15
 *
 * A block of zero bytes is a block of zero weights, in both, and what fills up a row is exactly zero: z of such a block of q4 is a
 * multiple of 4. Devices may have anything in the columns of x there. Every weight is exactly a float32: significands of
 * 8 + 7 and of 5 + 7 bits.
 *
 * Why no float16 scales: those below 2^-14 are subnormal, which GPUs may take for zero, and q8 would need them
 * for all blocks whose largest weight is below 0.0078. A scale need not be exact, for q is chosen after it was rounded.
 *
 * Why q4 is so: relative L2 error of 16-bit side data that is spent in other ways, each with its best scale and zero point by
 * exhaustive search, on rows that are normal, Student t with 4 degrees of freedom, and normal with 1 % of outliers ten
 * times as large:
 *   float16 scale, z = 8, no search           0.0858  0.116  0.145
 *   float16 scale of either sign, z = 8       0.0808  0.111  0.142
 *   12 bits of scale, z in whole steps        0.0774  0.094  0.101
 *   11 bits of scale, z in half steps         0.0750  0.090  0.097
 *   10 bits of scale, z in quarter steps      0.0711  0.086  0.092   (this one)
 *   exact scale, z in eighths                 0.0692  0.084  0.090
 * The search here comes within half a percent of the exhaustive one: from the scale that spans the block it walks to the
 * better neighbour in steps of the scale and of z until there is none.
 */
#ifndef ESP_MODEL_QUANT_H
#define ESP_MODEL_QUANT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/wtype.h"

#define ESP_QUANT_BLOCK 32

/**
 * In files: a safetensors file whose __metadata__ has this key with this value may have matrices as U8 tensors
 * [rows, bytes of a row], each row its blocks one after the other, little-endian. 34 or 18 times ceil(columns / 32) bytes tell q8
 * from q4. All further dimensions of a tensor are columns.
 */
#define ESP_QUANT_MARK   "espalier_quantised"
#define ESP_QUANT_LAYOUT "1"

/** 34 bytes, of alignment 2. */
struct esp_q8_block {
    uint16_t d; /* bfloat16: zero, or positive and normal */
    int8_t q[ESP_QUANT_BLOCK];
};

/** 18 bytes, of alignment 2. */
struct esp_q4_block {
    uint16_t side;                  /* e << 10 | m << 6 | z */
    uint8_t q[ESP_QUANT_BLOCK / 2]; /* column 2i in the low half of byte i, column 2i + 1 in the high one */
};

/** Of a q4 block: the value of d, and z / 4. The bits of d are ((side & 0xffc0) << 13) + 0x2b800000. */
float esp_q4_scale(uint16_t side);
float esp_q4_zero(uint16_t side);

/**
 * Quantises a row: the same blocks on every machine. q8 takes the scale at which the largest weight is 127; q4 one of the
 * least squared error nearby. Weights below 2^-41 (q4) and 2^-127 (q8) in magnitude may become zero.
 *
 * @param out   ceil(n / 32) blocks
 * @param type  ESP_W_Q8 (struct esp_q8_block) or ESP_W_Q4 (struct esp_q4_block)
 * @param x     f32[n]
 * @return n; or the first column whose weight is no finite number, or whose magnitude is above 10^38 (q8) or 10^8
 *         (q4): out is undefined then. Safe from any thread.
 */
size_t esp_quant_row(void *out, enum esp_wtype type, const float *x, size_t n);

/** The weights of a quantised row, f32[n]; exact. `blocks` may be of any alignment. */
void esp_quant_values(float *out, enum esp_wtype type, const void *blocks, size_t n);

#endif
