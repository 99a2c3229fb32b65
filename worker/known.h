/**
 * Contents of tensors (model/content.h) by the file that they are in, so that gigabytes are hashed once: a table for each
 * file, kept on disk for as long as the file has the same place, size and times. A table that is damaged or another
 * file's is as good as none.
 *
 * One thread.
 */
#ifndef ESP_WORKER_KNOWN_H
#define ESP_WORKER_KNOWN_H

#include <stdbool.h>

#include "model/content.h"
#include "model/tensor.h"
#include "proto/log.h"
#include "proto/status.h"

struct esp_known;

/** @param dir  where tables are kept; made when there is one. Errors: ESP_E_NOMEM. */
esp_status esp_known_create(struct esp_known **out, const char *dir, const struct esp_log *log,
                            struct esp_err *err);
/** Saves first. NULL is fine. */
void esp_known_destroy(struct esp_known **known);

/** Whether it can be known at all what a tensor's bytes are: by its file, or since it says so itself. */
bool esp_known_possible(const struct esp_tensor *tensor);

/** What is known of a tensor; false: nothing. */
bool esp_known_get(uint8_t out[ESP_CONTENT_BYTES], struct esp_known *known, const struct esp_tensor *tensor);

/**
 * Remembers it. A file that was changed in the last seconds is not trusted to have a new time after its next change: of
 * such nothing is kept on disk. Running out of memory costs the memory of it, no more.
 */
void esp_known_put(struct esp_known *known, const struct esp_tensor *tensor,
                   const uint8_t content[ESP_CONTENT_BYTES]);

/** Writes what is new to disk; what cannot be written is logged. */
void esp_known_save(struct esp_known *known);

#endif
