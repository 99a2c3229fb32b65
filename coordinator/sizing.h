/**
 * How much room a cluster is asked to make: the defaults behind --context, --kv-tokens and --max-images.
 */
#ifndef ESP_COORDINATOR_SIZING_H
#define ESP_COORDINATOR_SIZING_H

#include <stdint.h>

#include "model/config.h"
#include "proto/status.h"

#define ESP_MAX_CONTEXT 65535 /* tokens: as many rows as Vulkan promises along an axis of a dispatch */

struct esp_sizing {
    uint32_t context;    /* tokens: the longest sequence and the largest step; 0: default */
    uint32_t kv_tokens;  /* tokens of KV cache; 0: default */
    uint32_t max_images; /* pictures whose features are held; 0: default */
};

/**
 * Fills in defaults and checks the rest.
 *
 *   context     four pictures (two of more than 1024 tokens, as at 896 pixels) and 1024 tokens of text
 *   kv_tokens   four times the context: four long sequences, or many short ones
 *   max_images  as many as fill the KV cache, but 4 to 64
 *
 * RoPE knows no last position, so max_position_embeddings of the config is no limit here.
 * Errors: ESP_E_ARG, naming the option.
 */
esp_status esp_sizing_fill(struct esp_sizing *sizing, const struct esp_config *config, struct esp_err *err);

#endif
