/*
 * libsentencepiece for C: no C++ type and no exception comes through here.
 * Only token.c includes this, and the test that holds our detokenizer against the library's.
 */
#ifndef ESP_COORDINATOR_SPM_SHIM_H
#define ESP_COORDINATOR_SPM_SHIM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#include "proto/status.h"

struct esp_spm;

/** The model must have passed esp_token_model_parse; it is copied. Errors: ESP_E_FORMAT, ESP_E_NOMEM. */
esp_status esp_spm_create(struct esp_spm **out, const void *bytes, size_t n_bytes, struct esp_err *err);
void esp_spm_destroy(struct esp_spm **spm);

/** n_text bytes to ids; *ids from malloc, never NULL on success. Errors: ESP_E_NOMEM, ESP_E_INTERNAL. */
esp_status esp_spm_encode(const struct esp_spm *spm, uint32_t **ids, size_t *n_ids, const char *text,
                          size_t n_text, struct esp_err *err);

/** The library's own decoding, of ids that are all pieces; *text from malloc, with a NUL after it. */
esp_status esp_spm_decode(const struct esp_spm *spm, char **text, size_t *n_text, const uint32_t *ids,
                          size_t n_ids, struct esp_err *err);

#ifdef __cplusplus
}
#endif

#endif
