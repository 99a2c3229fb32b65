/**
 * What tests add to the operations in float64 of model/reference.h. Where scratch memory runs out the program aborts
 * with a line on stderr.
 */
#ifndef ESP_TESTS_SUPPORT_REF_H
#define ESP_TESTS_SUPPORT_REF_H

#include "model/reference.h"

/**
 * SigLIP's patch embedding: a convolution of P x P with stride P, plus the position embedding.
 *
 *   g = image_size / P, rounded down; patch i stands at row i / g, column i % g
 *   out[i,d] = sum_{c,y,x}(pixels[c, (i/g)P + y, (i%g)P + x] * weight[d,c,y,x]) + bias[d] + position[i,d]
 *
 * Source: arXiv 2010.11929; Conv2d without padding, so that a rest of image_size % P pixels is left out.
 *
 * @param out         f64[g*g, D]
 * @param pixels      f32[C,S,S], S = image_size
 * @param weight      f32[D,C,P,P]
 * @param bias        f32[D] or NULL
 * @param position    f32[g*g, D] or NULL
 * @param patch_size  P, at least 1
 */
void esp_ref_patch_embed(double *out, const float *pixels, const float *weight, const float *bias,
                         const float *position, size_t n_channel, size_t image_size, size_t patch_size,
                         size_t width);

/**
 * The nearest bfloat16 or binary16 number, ties to even, as its bits. Beyond the largest finite number by
 * half a step or more: infinity. NaN stays a (quiet) NaN; subnormals and the sign of zero are kept.
 */
uint16_t esp_ref_f32_to_bf16(float x);
uint16_t esp_ref_f32_to_f16(float x);

/** The values of such bits, exact; written apart from model/dtype.h, so that the two can be held together. */
float esp_ref_bf16_to_f32(uint16_t bits);
float esp_ref_f16_to_f32(uint16_t bits);

#endif
