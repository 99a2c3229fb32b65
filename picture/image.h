/**
 * Pictures: PNG and JPEG files in memory to 8-bit RGB, level for level what Pillow's
 * Image.open(...).convert("RGB") makes of them.
 *
 * Alpha and transparency are dropped and nothing is composited; EXIF orientation, gamma and colour profiles
 * are ignored; palettes are looked up; 1, 2 and 4 bit grey is widened to 0..255; 16-bit samples count by
 * their high byte, except in pure 16-bit grey, which is clipped at 255 (that is what Pillow does and the
 * reference sees); four-component JPEGs are taken as Adobe's inverted CMYK. Of an animated PNG it is the
 * still picture.
 *
 * The bytes are anyone's: what the header claims is held against the limits and against the size of the file
 * before memory is asked for, ancillary chunks are never inflated, and neither library prints, exits or
 * aborts.
 */
#ifndef ESP_PICTURE_IMAGE_H
#define ESP_PICTURE_IMAGE_H

#include <stddef.h>
#include <stdint.h>

#include "proto/status.h"

struct esp_image {
    uint32_t width, height; /* pixels, at least 1 each */
    uint8_t *rgb;           /* u8[height, width, 3], from malloc */
};

struct esp_image_limits {
    uint64_t max_pixels; /* width * height */
    uint32_t max_side;   /* of width and of height, pixels */
    size_t
        max_work_bytes; /* what a decoder may hold besides the result (a progressive JPEG's coefficients) */
    uint32_t max_scans; /* of a progressive JPEG; each costs a walk over the whole picture */
};

#define ESP_IMAGE_LIMITS_DEFAULT                                                                             \
    ((struct esp_image_limits){                                                                              \
        .max_pixels = 100000000, .max_side = 65535, .max_work_bytes = (size_t)1 << 30, .max_scans = 100})

/**
 * Decodes a PNG or JPEG file that lies in memory.
 *
 * @param out     the caller's; filled on success (release with esp_image_finish), zeroed on failure
 * @param bytes   borrowed, n_bytes of them
 * @param limits  borrowed; NULL stands for ESP_IMAGE_LIMITS_DEFAULT
 * Errors, all about the content (the caller puts the file's name in front): ESP_E_FORMAT (damaged, truncated,
 * not a picture), ESP_E_UNSUPPORTED (another known format, or a JPEG process that the library lacks),
 * ESP_E_LIMIT, ESP_E_NOMEM. A file must be complete up to its last pixel, a progressive JPEG up to its end
 * marker, as for Pillow. Safe from any thread.
 */
esp_status esp_image_decode(struct esp_image *out, const void *bytes, size_t n_bytes,
                            const struct esp_image_limits *limits, struct esp_err *err);

/**
 * The size of a picture by its header alone: nothing is decoded, and what follows may be damaged. Arguments and errors as
 * esp_image_decode.
 */
esp_status esp_image_size(uint32_t *width, uint32_t *height, const void *bytes, size_t n_bytes,
                          const struct esp_image_limits *limits, struct esp_err *err);

/** Frees the pixels and zeroes *image; NULL and a zeroed image are fine. */
void esp_image_finish(struct esp_image *image);

#endif
