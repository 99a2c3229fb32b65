/**
 * Files and texts that a user names: read whole, within limits, before anything is started for them.
 */
#ifndef ESP_CLI_INPUT_H
#define ESP_CLI_INPUT_H

#include <stdbool.h>
#include <stddef.h>

#include "proto/status.h"

bool esp_input_is_utf8(const char *text, size_t n);

/**
 * Everything that can be read from fd, at most max bytes, with a NUL behind it.
 * @param out     malloc'ed, the caller's; NULL on failure
 * @param n_hint  bytes expected
 * Errors, with the name in front: ESP_E_IO, ESP_E_LIMIT (more than max), ESP_E_NOMEM.
 */
esp_status esp_input_read(void **out, size_t *n_out, int fd, const char *name, size_t n_hint, size_t max,
                          struct esp_err *err);

/**
 * A picture's file, undecoded; - is standard input.
 * Errors: ESP_E_IO (not there, no regular file), ESP_E_LIMIT, ESP_E_FORMAT (empty), ESP_E_NOMEM.
 */
esp_status esp_input_picture(void **out, size_t *n_out, const char *path, struct esp_err *err);

/**
 * A file's name for messages that cross the wire: the part after the last '/' where they go elsewhere or the path is
 * long; what is not printable UTF-8 as '?'. malloc'ed; NULL without memory.
 */
char *esp_input_wire_name(const char *path, bool elsewhere);

#endif
