/**
 * The model's layers in float64, from a checkpoint's own tensors: operations of model/reference.h one after the other.
 * What a device made of a layer's input is held against them, a layer at a time, so that errors do not add up.
 *
 * Between operations values are rounded to float32, as those take them. Weights are widened a few megabytes at a time:
 * memory is what a layer's rows take, whatever the size of its matrices. Layers are the model's own, counted from 0.
 *
 * Common to all: x is f32[n, D of the tower], out f64 and the caller's, apart from x. Safe from any thread. Errors:
 * ESP_E_NOMEM; ESP_E_CANCELLED once the source's `stop` has said so; out is undefined then.
 */
#ifndef ESP_MODEL_REFERENCE_LAYER_H
#define ESP_MODEL_REFERENCE_LAYER_H

#include "model/checkpoint.h"
#include "model/reference.h"
#include "model/wtype.h"

/** Whose tensors, and whether to go on. */
struct esp_ref_source {
    const struct esp_checkpoint *ck;
    bool (*stop)(void *arg); /* asked every few milliseconds; NULL: never */
    void *arg;
    enum esp_wtype
        weights; /* what matrices are: as they are stored, or as rows of that type would be on a device */
};

/** The first n patches of a picture through SigLIP's patch embedding, without positions. out: f64[n, D]. */
esp_status esp_ref_vision_patches(double *out, const struct esp_ref_source *src, const float *pixels,
                                  size_t n, struct esp_err *err);

/** Their positions added. out: f64[n, D]. */
esp_status esp_ref_vision_positions(double *out, const struct esp_ref_source *src, const float *x, size_t n,
                                    struct esp_err *err);

/**
 * A layer of SigLIP over n rows that all see each other.
 * @param rows  which rows to compute, [n_rows]: keys and values take all, the rest is done for these alone
 * @param out   f64[n_rows, D]
 */
esp_status esp_ref_vision_layer(double *out, const struct esp_ref_source *src, uint32_t layer, const float *x,
                                size_t n, const uint32_t *rows, size_t n_rows, struct esp_err *err);

/** SigLIP's last norm. out: f64[n, D]. */
esp_status esp_ref_vision_post(double *out, const struct esp_ref_source *src, const float *x, size_t n,
                               struct esp_err *err);

/** From SigLIP's width to Gemma's. out: f64[n, text D]. */
esp_status esp_ref_projector(double *out, const struct esp_ref_source *src, const float *x, size_t n,
                             struct esp_err *err);

/** Token embeddings times their scale; every id is below the vocabulary. out: f64[n, D]. */
esp_status esp_ref_text_embed(double *out, const struct esp_ref_source *src, const int32_t *ids, size_t n,
                              struct esp_err *err);

/** A layer of Gemma over the n rows of one sequence, from position 0; the first n_prefix see each other both ways. */
esp_status esp_ref_text_layer(double *out, const struct esp_ref_source *src, uint32_t layer, const float *x,
                              size_t n, uint32_t n_prefix, struct esp_err *err);

/** Gemma's last norm. out: f64[n, D]. */
esp_status esp_ref_text_norm(double *out, const struct esp_ref_source *src, const float *x, size_t n,
                             struct esp_err *err);

/** Logits of normed rows, before any soft-cap. out: f64[n, V]. */
esp_status esp_ref_text_logits(double *out, const struct esp_ref_source *src, const float *x, size_t n,
                               struct esp_err *err);

#endif
