/**
 * The hashes of a checkpoint's chunks, kept on disk: they take as long as reading all of it.
 *
 * A file holds a key, a seal over the hashes under that key, and the hashes. The key is made of what the hashes depend on: the
 * fingerprint, the chunks' size, and which bytes of which files, by the files' size, time and place on disk. So the file of a
 * checkpoint that was changed is not believed, and neither is one that was cut or damaged; it is written anew.
 */
#ifndef ESP_COORDINATOR_HASH_FILE_H
#define ESP_COORDINATOR_HASH_FILE_H

#include <stdbool.h>
#include <stdint.h>

#include "model/checkpoint.h"
#include "proto/log.h"
#include "proto/wire.h"

#define ESP_HASH_FILE_KEY 32

struct esp_hash_file {
    char dir[4000], path[4096]; /* "": there is no place for one */
    uint8_t key[ESP_HASH_FILE_KEY];
};

/**
 * Where the hashes of these tensors belong, and their key. Makes nothing on disk; sodium_init comes first.
 * @param cache_dir    NULL: espalier/manifests in the user's cache directory; "": nowhere
 * @param tensor, info n_tensor each, in the manifest's order
 */
void esp_hash_file_init(struct esp_hash_file *file, const char *cache_dir,
                        const uint8_t fingerprint[ESP_FINGERPRINT_BYTES], uint32_t chunk_bytes,
                        const struct esp_tensor *const *tensor, const struct esp_tensor_info *info,
                        uint32_t n_tensor);

/** Fills hashes, n_chunk of ESP_HASH_BYTES, if they are there; they are undefined otherwise. */
bool esp_hash_file_read(uint8_t *hashes, const struct esp_hash_file *file, uint32_t n_chunk);

/** Keeps them, if that can be: what is in the way is logged. */
void esp_hash_file_write(const struct esp_hash_file *file, const uint8_t *hashes, uint32_t n_chunk,
                         const struct esp_log *log);

#endif
