/**
 * Chunks of weights on disk, each a file named by the hash of its bytes: DIR/ab/cdef... of BLAKE2b-256.
 *
 * So a chunk is the same whatever checkpoint or worker it was fetched for, and what is there after a crash is whole or is
 * found out: what is read is held against its name first; what does not stand that is removed. How files come and go is
 * the store's (worker/store.h).
 *
 * One thread.
 */
#ifndef ESP_WORKER_CACHE_H
#define ESP_WORKER_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/log.h"
#include "proto/status.h"

#define ESP_CACHE_HASH_BYTES 32

struct esp_cache;

/** Whether a chunk is in use by whom asks, and therefore stays. */
typedef bool (*esp_cache_keep)(void *arg, const uint8_t hash[ESP_CACHE_HASH_BYTES]);

/**
 * @param dir          made if it is missing
 * @param limit_bytes  of all files; 0: none
 * @param keep         borrowed with its arg until destroy; NULL keeps none
 * @param log          borrowed until destroy: broken files are told there
 * Errors: ESP_E_IO (it cannot be made or written to), ESP_E_NOMEM.
 */
esp_status esp_cache_open(struct esp_cache **out, const char *dir, uint64_t limit_bytes, esp_cache_keep keep,
                          void *keep_arg, const struct esp_log *log, struct esp_err *err);
void esp_cache_destroy(struct esp_cache **cache);

/**
 * A chunk's file, read once and found right.
 * @param out      descriptor for reading, the caller's; -1 on failure
 * @param scratch  n_bytes for the reading
 * Errors: ESP_E_CLOSED (it is not there), ESP_E_FORMAT (it was there and broken: logged, and removed), ESP_E_IO.
 */
esp_status esp_cache_get(int *out, struct esp_cache *cache, const uint8_t hash[ESP_CACHE_HASH_BYTES],
                         void *scratch, size_t n_bytes, struct esp_err *err);

/**
 * Keeps a chunk, whose hash the caller has checked.
 * @param out  descriptor for reading, the caller's; -1 on failure
 * Errors: ESP_E_IO (the disk is full or no longer writable), ESP_E_LIMIT (the limit is used up by what must stay).
 */
esp_status esp_cache_put(int *out, struct esp_cache *cache, const uint8_t hash[ESP_CACHE_HASH_BYTES],
                         const void *data, size_t n_bytes, struct esp_err *err);

/** BLAKE2b-256. */
void esp_cache_hash(uint8_t out[ESP_CACHE_HASH_BYTES], const void *data, size_t n_bytes);

#endif
