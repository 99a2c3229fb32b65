/**
 * Intermediate values of a request as a safetensors file.
 */
#ifndef ESP_CLI_TRACE_H
#define ESP_CLI_TRACE_H

#include "cli/client.h"
#include "proto/status.h"

/**
 * Writes the traces of a reply. Names get the number that the golden files have: "vision.layer.3" of the
 * picture that was encoded as number J (from 0) becomes "vision.J.layer.3", "prefill.norm" becomes
 * "prefill.0.norm". Every tensor is f32[rows, width]; prefill.0.ids, i32, are the ids of the prompt, image
 * tokens included. Of two tensors of one name the first is kept.
 *
 * @param image_token  its id; has_image_token false: not known, prefill.0.ids is left out
 * Errors: ESP_E_IO with the file's name, ESP_E_NOMEM.
 */
esp_status esp_trace_write(const char *path, const struct esp_reply *reply, bool has_image_token,
                           uint32_t image_token, struct esp_err *err);

#endif
