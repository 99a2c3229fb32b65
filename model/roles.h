/**
 * Names and shapes of a PaliGemma's tensors: what a checkpoint must hold, given its config.
 *
 * Four naming layouts are in circulation; they differ in the prefixes of the towers alone:
 *
 *   layout     vision tower                       decoder                  projector
 *   published  vision_tower.vision_model.         language_model.model.    multi_modal_projector.
 *   v4.52      model.vision_tower.vision_model.   model.language_model.    model.multi_modal_projector.
 *   v5-memory  model.vision_tower.                model.language_model.    model.multi_modal_projector.
 *   v5-saved   vision_tower.                      language_model.model.    multi_modal_projector.
 */
#ifndef ESP_MODEL_ROLES_H
#define ESP_MODEL_ROLES_H

#include <stdbool.h>

#include "model/checkpoint.h"
#include "model/config.h"
#include "model/wtype.h"

enum esp_layout {
    ESP_LAYOUT_PUBLISHED, /* google/paligemma-*; transformers up to 4.51 */
    ESP_LAYOUT_V4_52,     /* transformers 4.52 to 4.57 in memory */
    ESP_LAYOUT_V5_MEMORY, /* transformers 5 in memory */
    ESP_LAYOUT_V5_SAVED,  /* what transformers 5 saves */
    ESP_N_LAYOUT
};

#define ESP_TENSOR_NAME_MAX 128

/** "published", "v4.52", "v5-memory", "v5-saved". */
const char *esp_layout_name(enum esp_layout layout);

/** How many tensors of a role the config calls for: 0, 1, or one for each layer of its tower. */
uint32_t esp_role_count(const struct esp_config *config, enum esp_role role);

/** Whether there is one for each layer, rather than one in all. */
bool esp_role_has_layers(enum esp_role role);

/** The stored shape of such a tensor; returns its rank, 1 to 4. */
uint32_t esp_role_shape(uint64_t shape[4], const struct esp_config *config, enum esp_role role);

/**
 * What a wish comes to for a role: `want` for matrices that rows are multiplied by, the embedding table included;
 * ESP_W_STORED for all else. q4 is for the MLPs and output projections of Gemma alone; the rest is q8 then. Of models/tiny's KL
 * of 0.013 nats with q4 everywhere, 0.004 come from SigLIP and the projector, which cost nothing at decoding, 0.004 from the embedding
 * table (the output head, too) and 0.002 from Q, K and V, a 27th of a decoder layer; boxes and masks lose 1 point in place of 2.5
 * then, and Gemma 2B is 5.5 bits a weight in all. Quantised columns are not cut by heads that need padding on a device (a head_dim that is no
 * multiple of 8, as no published model has it): such an output projection stays as stored.
 */
enum esp_wtype esp_role_wtype(const struct esp_config *config, enum esp_role role, enum esp_wtype want);

/** The stored name; layer is ignored for roles without layers. Returns buf. */
const char *esp_role_name(char buf[ESP_TENSOR_NAME_MAX], enum esp_layout layout,
                          const struct esp_config *config, enum esp_role role, uint32_t layer);

#endif
