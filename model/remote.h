/**
 * A checkpoint whose files are on another machine: its config and what tensors it has are known, their bytes come chunk
 * by chunk.
 *
 * It looks like any other (model/checkpoint.h). Behind each tensor's `data` is reserved address space, without memory:
 * a chunk of it can be read once it is mapped there, from a file of its own, and whoever touches it before that ends
 * the process. So its user asks for what it needs first. A mapped chunk is a file's pages, like those of a local
 * checkpoint: the kernel may drop them and read them again (esp_tensor_done holds).
 */
#ifndef ESP_MODEL_REMOTE_H
#define ESP_MODEL_REMOTE_H

#include "model/checkpoint.h"

#define ESP_REMOTE_MAX_BYTES                                                                                 \
    (UINT64_C(1) << 40) /* of all tensors: far above any model, far below address space */

/** What somebody claims of a tensor. */
struct esp_remote_tensor {
    uint32_t role, layer, dtype, n_dim;
    const uint64_t *shape;
};

/**
 * Opens a checkpoint by what its owner says of it, checked as a directory's files would be: config.json gives all
 * dimensions, and there must be every tensor that it calls for, once, of that shape and a float type, and no other.
 *
 * @param out          a new checkpoint; esp_checkpoint_destroy frees it. NULL on failure
 * @param config       text of config.json, n_config bytes, borrowed for the call
 * @param tensors      n_tensors of them, borrowed for the call; their order is kept
 * @param chunk_bytes  a power of two, a multiple of the page size
 * @param origin       who says so, for messages; esp_checkpoint_dir gives it back
 * Errors: as esp_config_parse; ESP_E_FORMAT naming the tensor; ESP_E_LIMIT (more than ESP_REMOTE_MAX_BYTES);
 * ESP_E_ARG (chunk_bytes), ESP_E_NOMEM.
 */
esp_status esp_checkpoint_open_remote(struct esp_checkpoint **out, const char *config, size_t n_config,
                                      const struct esp_remote_tensor *tensors, uint32_t n_tensors,
                                      uint32_t chunk_bytes, const char *origin, struct esp_err *err);

/** Its tensors in the order they were given in, and which one a tensor of esp_checkpoint_tensor is; false: none of them. */
uint32_t esp_remote_n_tensor(const struct esp_checkpoint *ck);
const struct esp_tensor *esp_remote_at(const struct esp_checkpoint *ck, uint32_t i);
bool esp_remote_index(uint32_t *out, const struct esp_checkpoint *ck, const struct esp_tensor *tensor);

/** Tells what a tensor's bytes are, by the hashes of its chunks. */
void esp_remote_set_content(struct esp_checkpoint *ck, uint32_t i, const uint8_t *chunk_hashes);

/** Chunks of a tensor of n_bytes, and bytes of one of them. */
uint64_t esp_chunk_count(uint64_t n_bytes, uint32_t chunk_bytes);
size_t esp_chunk_bytes(uint64_t n_bytes, uint32_t chunk_bytes, uint64_t chunk);

/**
 * Maps a chunk to its place, read-only.
 * @param tensor, chunk  below their counts
 * @param fd, at         a file that has the chunk's bytes from `at` on, a multiple of the page size; fd may be closed
 *                       then
 * Errors: ESP_E_NOMEM (more mappings than the system grants), ESP_E_IO.
 */
esp_status esp_remote_map(struct esp_checkpoint *ck, uint32_t tensor, uint64_t chunk, int fd, uint64_t at,
                          struct esp_err *err);

/** Where a chunk lies in the range of all tensors: the offset that a file as large as the whole would have it at. */
uint64_t esp_remote_offset(const struct esp_checkpoint *ck, uint32_t tensor, uint64_t chunk);

#endif
