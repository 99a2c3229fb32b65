/** Pictures to JPEG files. */
#ifndef ESP_TOOLS_SCENES_JPEG_H
#define ESP_TOOLS_SCENES_JPEG_H

#include <stddef.h>
#include <stdint.h>

#include "proto/status.h"

/**
 * Compresses a picture as JPEG, chroma at half the resolution.
 *
 * @param out      the file's bytes, from malloc; n_bytes of them
 * @param rgb      u8[height, width, 3], borrowed
 * @param quality  1..100
 * Errors: ESP_E_NOMEM, ESP_E_ARG (more than a JPEG can hold).
 */
esp_status esp_jpeg_encode(uint8_t **out, size_t *n_bytes, const uint8_t *rgb, uint32_t width,
                           uint32_t height, int quality, struct esp_err *err);

#endif
