/**
 * Pixels to a PNG file: 8-bit RGB for pictures, 8-bit grey for masks.
 */
#ifndef ESP_PICTURE_PNG_WRITE_H
#define ESP_PICTURE_PNG_WRITE_H

#include <stddef.h>
#include <stdint.h>

#include "proto/status.h"

/**
 * A PNG file in memory.
 *
 * @param out        malloc'ed, the caller's, *n_bytes of them; NULL on failure
 * @param pixels     u8[height, width, n_channel], borrowed
 * @param n_channel  1 (grey) or 3 (RGB)
 * Errors: ESP_E_ARG (a zero side, another number of channels), ESP_E_LIMIT (more than libpng writes), ESP_E_NOMEM.
 * Safe from any thread.
 */
esp_status esp_png_encode(uint8_t **out, size_t *n_bytes, const uint8_t *pixels, uint32_t width,
                          uint32_t height, uint32_t n_channel, struct esp_err *err);

/**
 * The same as a file; what was there is replaced. One that could not be written whole is removed again, unless it is
 * no regular file.
 * Errors, with the path in front: ESP_E_IO, and as esp_png_encode.
 */
esp_status esp_png_write(const char *path, const uint8_t *pixels, uint32_t width, uint32_t height,
                         uint32_t n_channel, struct esp_err *err);

#endif
