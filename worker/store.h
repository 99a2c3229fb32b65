/**
 * A directory of files that have 32 bytes for a name: DIR/ab/cdef..., for as long as there is room.
 *
 * A file gets its name only when all of it is written, so what a killed process was writing is never found, several
 * processes may fill one directory at once, and of two who write the same the later one wins. Nothing is fsynced: waiting
 * for the disk would cost more than what a power cut tears, so readers hold what they read against a hash or sum. A file
 * that is used gets a new modification time, by which the oldest go first where there is a limit.
 *
 * One thread, but for the descriptors it gives out.
 */
#ifndef ESP_WORKER_STORE_H
#define ESP_WORKER_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/status.h"

#define ESP_STORE_NAME_BYTES 32
#define ESP_STORE_PATH       (2 * ESP_STORE_NAME_BYTES + 2) /* "ab/cdef..." and its NUL */

struct esp_store;

/** Whether a file is in use by whom asks, and therefore stays. */
typedef bool (*esp_store_keep)(void *arg, const uint8_t name[ESP_STORE_NAME_BYTES]);

/**
 * @param dir          made if it is missing
 * @param limit_bytes  of all files; 0: none
 * @param keep         borrowed with its arg until destroy; NULL keeps none
 * Errors: ESP_E_IO (it cannot be made or written to), ESP_E_NOMEM.
 */
esp_status esp_store_open(struct esp_store **out, const char *dir, uint64_t limit_bytes, esp_store_keep keep,
                          void *keep_arg, struct esp_err *err);
void esp_store_destroy(struct esp_store **store);

const char *esp_store_dir(const struct esp_store *store);
/** A file's path from the directory on, for messages. */
void esp_store_path(char out[ESP_STORE_PATH], const uint8_t name[ESP_STORE_NAME_BYTES]);

/**
 * Opens a file for reading; what is in it is for the caller to check.
 * @param out  the caller's; -1 on failure
 * Errors: ESP_E_CLOSED (it is not there), ESP_E_FORMAT (no regular file), ESP_E_IO.
 */
esp_status esp_store_find(int *out, uint64_t *n_bytes, const struct esp_store *store,
                          const uint8_t name[ESP_STORE_NAME_BYTES], struct esp_err *err);
/** It is used now; where that cannot be said it counts as older. */
void esp_store_used(int fd);
/** Takes a file away, for what was found in it. Others may have it open. */
void esp_store_remove(struct esp_store *store, const uint8_t name[ESP_STORE_NAME_BYTES]);

/** A file that is being written. */
struct esp_store_draft {
    int fd; /* for writing and reading, the caller's to close */
    uint64_t mark;
};

/**
 * Begins a file of about n_bytes, for which others may go.
 * Errors: ESP_E_IO (the disk is full or no longer writable), ESP_E_LIMIT (what must stay leaves too little room).
 */
esp_status esp_store_begin(struct esp_store_draft *out, struct esp_store *store, uint64_t n_bytes,
                           struct esp_err *err);
/** Gives it its name, whatever had that. On failure it is gone. The descriptor stays the caller's. Errors: ESP_E_IO. */
esp_status esp_store_commit(struct esp_store *store, const struct esp_store_draft *draft, uint64_t n_bytes,
                            const uint8_t name[ESP_STORE_NAME_BYTES], struct esp_err *err);
/** It is not wanted any more. */
void esp_store_abandon(struct esp_store *store, const struct esp_store_draft *draft);

/** All of n_bytes at `at` of a file; false with errno, 0 for a file that ends before. Any thread. */
bool esp_store_read_at(int fd, void *to, size_t n_bytes, uint64_t at);
bool esp_store_write_at(int fd, const void *from, size_t n_bytes, uint64_t at);

#endif
