/**
 * A model that has a published shape and no files: `shape:paligemma-3b-224`, or `shape:paligemma-3b-224,3/2` for its first 3
 * encoder and 2 decoder layers. Its weights are random, all of them views of one small block of memory, so that opening
 * takes no time and 6 GB of weights take none of the host's memory until a device has its copy. What such a model says is
 * noise; how fast it says it is what the real one's speed would be.
 */
#ifndef ESP_MODEL_SHAPE_H
#define ESP_MODEL_SHAPE_H

#include <stdbool.h>

#include "model/checkpoint.h"

#define ESP_SHAPE_PREFIX "shape:"

/** Whether a model's name is one of these. */
bool esp_shape_named(const char *model);

/** "3/2" as layers of encoder and decoder, each at least 1; false where it is something else. */
bool esp_shape_layers(uint32_t layers[2], const char *text);

/** Its config.json. @param out  the caller frees it; NULL on failure. Errors: ESP_E_ARG, as esp_shape_open. */
esp_status esp_shape_config(char **out, const char *model, struct esp_err *err);

/**
 * Weights are bfloat16 of mean 0 and standard deviation 0.02, the same ones each time and on every machine: with Gemma's
 * and SigLIP's norms all activations stay near one.
 *
 * Errors: ESP_E_ARG (no such shape: names those that there are; not so many layers), ESP_E_NOMEM, ESP_E_IO.
 */
esp_status esp_shape_open(struct esp_checkpoint **out, const char *model, struct esp_err *err);

#endif
