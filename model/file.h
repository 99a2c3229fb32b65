/**
 * Reading files that someone else made: only regular ones, never larger than said, never waiting.
 */
#ifndef ESP_MODEL_FILE_H
#define ESP_MODEL_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/status.h"

/**
 * A whole file as a heap block, NUL-terminated beyond its n_bytes.
 *
 * @param out    the caller frees it; NULL on failure
 * @param n_max  a larger file is refused before memory is asked for
 * Errors, all naming the path: ESP_E_IO (cannot be opened or read, no regular file: a FIFO is not waited
 * for), ESP_E_FORMAT (too large), ESP_E_NOMEM.
 */
esp_status esp_file_read(char **out, size_t *n_bytes, const char *path, size_t n_max, struct esp_err *err);

/** Which file, and which state of it: as long as these are the same, so are its bytes. Times in ns since 1970. */
struct esp_file_id {
    uint64_t device, inode, n_bytes;
    int64_t modified, changed;
};

/**
 * A whole file mapped for reading; a file of no bytes gives NULL and 0. esp_file_unmap gives it back.
 * @param id  of what was mapped; may be NULL
 * Errors: as above.
 */
esp_status esp_file_map(const void **out, size_t *n_bytes, struct esp_file_id *id, const char *path,
                        struct esp_err *err);

/**
 * Has the pages of mapped bytes in memory before anyone touches them: what a disk cannot deliver, or a file that became
 * shorter, is an errno here and a SIGBUS later. 0, or the kernel's errno: EINVAL before Linux 5.14, EAGAIN if not now.
 */
int esp_file_populate(const void *data, size_t n_bytes);

/** Tolerates NULL. */
void esp_file_unmap(const void *data, size_t n_bytes);

/** Makes a directory and what is missing above it, for this user alone; one that is there is fine. ESP_E_IO. */
esp_status esp_file_make_dir(const char *path, struct esp_err *err);

/**
 * $XDG_CACHE_HOME/espalier/SUB, or the same in ~/.cache; nothing is made.
 * Errors: ESP_E_ARG (neither is set to an absolute path, or it does not fit).
 */
esp_status esp_file_cache_dir(char *out, size_t n_out, const char *sub, struct esp_err *err);

/** Whether the path leads to anything; dangling links do not. */
bool esp_file_exists(const char *path);

#endif
