/* What image.c shares with the two decoders, which alone see png.h and jpeglib.h. */
#ifndef ESP_PICTURE_IMAGE_CODEC_H
#define ESP_PICTURE_IMAGE_CODEC_H

#include "picture/image.h"

/**
 * Both decoders: out is zeroed and the caller's, who finishes it if they fail; the signature has been seen
 * and limits is never NULL. Errors as esp_image_decode.
 */
esp_status esp_png_decode(struct esp_image *out, const uint8_t *bytes, size_t n_bytes,
                          const struct esp_image_limits *limits, struct esp_err *err);
esp_status esp_jpeg_decode(struct esp_image *out, const uint8_t *bytes, size_t n_bytes,
                           const struct esp_image_limits *limits, struct esp_err *err);

/**
 * Holds a header's dimensions against the limits, then allocates out->rgb, zeroed, and sets out's dimensions.
 *
 * @param kind  "PNG" or "JPEG", for messages
 * Errors: ESP_E_FORMAT (a zero side), ESP_E_LIMIT, ESP_E_NOMEM.
 */
esp_status esp_image_alloc(struct esp_image *out, const char *kind, uint64_t width, uint64_t height,
                           const struct esp_image_limits *limits, struct esp_err *err);

/** The checks of esp_image_alloc alone, before anything is decoded. */
esp_status esp_image_check(const char *kind, uint64_t width, uint64_t height,
                           const struct esp_image_limits *limits, struct esp_err *err);

/** n grey levels at the start of row to 3n bytes, in place, back to front so that none is overwritten unread.
 */
static inline void esp_image_spread_grey(uint8_t *row, uint32_t n)
{
    for (uint32_t x = n; x-- > 0;) {
        const uint8_t level = row[x];
        row[3 * (size_t)x] = row[3 * (size_t)x + 1] = row[3 * (size_t)x + 2] = level;
    }
}

#endif
