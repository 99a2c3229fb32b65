/**
 * What a tensor's bytes are, in 32 of them: BLAKE2b-256 over its length, a chunk's length and the BLAKE2b-256 of each of its
 * chunks, so that chunks can be hashed side by side, and a manifest of chunks (model/remote.h) is enough to know it.
 */
#ifndef ESP_MODEL_CONTENT_H
#define ESP_MODEL_CONTENT_H

#include <stddef.h>
#include <stdint.h>

#define ESP_CONTENT_BYTES 32
#define ESP_CONTENT_CHUNK                                                                                    \
    (4u << 20) /* as a manifest's; another length gives another hash of the same bytes */

/** Of a chunk. */
void esp_content_chunk(uint8_t out[ESP_CONTENT_BYTES], const void *data, size_t n_bytes);

/** @param hashes  of all chunks of a tensor of n_bytes, ESP_CONTENT_BYTES each, in their order */
void esp_content_tensor(uint8_t out[ESP_CONTENT_BYTES], uint64_t n_bytes, uint32_t chunk_bytes,
                        const uint8_t *hashes);

#endif
