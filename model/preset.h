/**
 * The published models' dimensions, without their files.
 */
#ifndef ESP_MODEL_PRESET_H
#define ESP_MODEL_PRESET_H

#include <stddef.h>
#include <stdint.h>

/**
 * config.json of a published model ("paligemma-3b-224", "paligemma2-10b-448", ...), of the published shape: what is a
 * default is left out. "toy" is none of them, and small in everything. The caller frees it; NULL for other names and
 * without memory.
 */
char *esp_checkpoint_preset(const char *name);

/** The same with at most so many layers in either tower. */
char *esp_checkpoint_preset_cut(const char *name, uint32_t n_vision, uint32_t n_text);

/** The i-th preset's name, NULL past the last. */
const char *esp_checkpoint_preset_name(size_t i);

#endif
