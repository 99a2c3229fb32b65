/**
 * The whole model in float64, one layer of model/reference_layer.h after the other: what runs of any config are held
 * against where there are no golden numbers. Between layers values are rounded to float32, as between operations.
 */
#ifndef ESP_TESTS_SUPPORT_REF_MODEL_H
#define ESP_TESTS_SUPPORT_REF_MODEL_H

#include <stddef.h>
#include <stdint.h>

#include "model/checkpoint.h"

/**
 * Features of a picture: SigLIP, post norm, projector.
 * @param out     f32[N, text D]
 * @param pixels  f32[C, S, S]
 */
void esp_ref_features(float *out, const struct esp_checkpoint *ck, const float *pixels);

/**
 * Logits of every row of one sequence, without KV cache: all rows at once.
 * @param out       f32[n, V], before any final soft-cap
 * @param features  f32[n_images * N, text D]: the first rows
 * @param ids       i32[n]; those of image rows are not looked at
 * @param n_prefix  rows that see each other both ways
 */
void esp_ref_logits(float *out, const struct esp_checkpoint *ck, const float *features, uint32_t n_images,
                    const int32_t *ids, uint32_t n, uint32_t n_prefix);

#endif
