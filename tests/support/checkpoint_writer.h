/**
 * Writes checkpoints with random weights: any config, any of the four naming layouts, any dtype, any number
 * of shards. For full-size runs and tests without a download.
 *
 * The weights are those of no model, but scaled like a trained one's, so that activations stay finite and
 * near one through all layers: linear layers have standard deviation 1/sqrt(fan_in), LayerNorm scales are
 * near 1, Gemma's (which are offsets from one) near 0, biases small. The embedding is small and the final
 * norm large, since the table is the output head too: otherwise each token would predict itself.
 *
 * Every number depends on the seed, its tensor's role and layer and its own index alone: not on layout,
 * shards or threads. All numbers are bfloat16's whatever the dtype, so that the three dtypes hold the same
 * model (float16 up to its subnormals).
 */
#ifndef ESP_TESTS_SUPPORT_CHECKPOINT_WRITER_H
#define ESP_TESTS_SUPPORT_CHECKPOINT_WRITER_H

#include <stddef.h>
#include <stdint.h>

#include "model/roles.h"
#include "proto/status.h"

struct esp_checkpoint_spec {
    const char *dir;         /* made if missing (one level); files of a former checkpoint are replaced */
    const char *config_json; /* text of config.json, from which all shapes come */
    size_t n_config;
    uint64_t seed;
    enum esp_dtype dtype; /* ESP_BF16, ESP_F16 or ESP_F32 */
    enum esp_layout layout;
    uint32_t n_shard; /* 1: model.safetensors; more: that many at most, and an index; 0: one each 2.5 GB */
    const char *tokenizer; /* file copied as tokenizer.model, or NULL */
    /* called about five times a second and once at the end, or NULL; in the caller's thread */
    void (*progress)(void *user, uint64_t n_done, uint64_t n_total);
    void *user;
};

/**
 * Writes config.json, preprocessor_config.json, generation_config.json, tokenizer.model and the weights.
 *
 * Errors: as esp_config_parse; ESP_E_ARG; ESP_E_IO, also when the file system has no room, before anything
 * large is written.
 */
esp_status esp_checkpoint_write(const struct esp_checkpoint_spec *spec, struct esp_err *err);

#endif
