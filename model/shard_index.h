/**
 * model.safetensors.index.json: which file of a sharded checkpoint has which tensor.
 */
#ifndef ESP_MODEL_SHARD_INDEX_H
#define ESP_MODEL_SHARD_INDEX_H

#include <stddef.h>

#include "proto/status.h"

#define ESP_MAX_SHARDS 1024u

struct esp_shard_index;

/** A tensor and the file it is in; strings borrowed from the index. */
struct esp_shard_entry {
    const char *tensor, *file;
};

/**
 * Reads the index. A file is named by a plain name, that of a file beside the index: nothing with a slash, no
 * "..".
 *
 * @param out   esp_shard_index_destroy frees it; NULL on failure
 * @param text  n_bytes of JSON, borrowed for the call
 * @param path  for messages
 * Errors: ESP_E_FORMAT, ESP_E_NOMEM. metadata.total_size is not looked at: published ones count shared
 * tensors.
 */
esp_status esp_shard_index_parse(struct esp_shard_index **out, const char *text, size_t n_bytes,
                                 const char *path, struct esp_err *err);
void esp_shard_index_destroy(struct esp_shard_index **index);

/** The different files, 1 to ESP_MAX_SHARDS, sorted; i below the count. */
size_t esp_shard_index_n_file(const struct esp_shard_index *index);
const char *esp_shard_index_file(const struct esp_shard_index *index, size_t i);

/** What the index says of each tensor, in no order; i below the count. */
size_t esp_shard_index_n_entry(const struct esp_shard_index *index);
struct esp_shard_entry esp_shard_index_entry(const struct esp_shard_index *index, size_t i);

#endif
