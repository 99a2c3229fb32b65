/**
 * Masks as COCO has them: run lengths down the columns.
 *
 * The pixels are taken column by column, from the top of the leftmost one on. counts[0] of them are outside, the next
 * counts[1] inside, and so on in turn; together they are height * width. As a string, each count becomes groups of
 * five bits, the lowest first, as bytes of '0' + 0..63: bit 5 says that more groups follow, bit 4 of the last one is the
 * sign. From the fourth on it is not the count that is written but what it differs by from the last but one.
 * That is the "counts" of pycocotools' encode and of COCO's annotation files; the numbers alone are its "uncompressed"
 * form.
 */
#ifndef ESP_OBJECTS_RLE_H
#define ESP_OBJECTS_RLE_H

#include <stddef.h>
#include <stdint.h>

#include "proto/status.h"

#define ESP_RLE_MAX_PIXELS 100000000u /* of height * width, as for pictures */

struct esp_rle {
    uint32_t height, width; /* pixels, at least 1 each */
    uint32_t *counts;       /* n_counts of them, from malloc; their sum is height * width */
    size_t n_counts;
};

/**
 * @param out   the caller's; filled on success (release with esp_rle_finish), zeroed on failure. So for all of these
 * @param mask  u8[height, width], borrowed; what is not zero is inside
 * Errors: ESP_E_ARG (a zero side), ESP_E_LIMIT (too many pixels), ESP_E_NOMEM.
 */
esp_status esp_rle_encode(struct esp_rle *out, const uint8_t *mask, uint32_t height, uint32_t width,
                          struct esp_err *err);

/**
 * Counts from outside, which need not be good ones.
 * @param counts  borrowed
 * Errors: ESP_E_FORMAT (their sum is not height * width), and as esp_rle_encode.
 */
esp_status esp_rle_from_counts(struct esp_rle *out, const uint32_t *counts, size_t n_counts, uint32_t height,
                               uint32_t width, struct esp_err *err);

/**
 * A string from outside.
 * @param text  borrowed
 * Errors: ESP_E_FORMAT (a byte that is none of these, a count cut off, negative or too large, a wrong sum), and as
 * esp_rle_encode.
 */
esp_status esp_rle_from_string(struct esp_rle *out, const char *text, uint32_t height, uint32_t width,
                               struct esp_err *err);

/** @param out  malloc'ed, the caller's; NULL on failure. ESP_E_NOMEM. */
esp_status esp_rle_to_string(char **out, const struct esp_rle *rle, struct esp_err *err);

/** @param mask  u8[height, width] of rle, the caller's: 1 inside, 0 outside. Cannot fail. */
void esp_rle_decode(uint8_t *mask, const struct esp_rle *rle);

/** Pixels inside. */
uint64_t esp_rle_area(const struct esp_rle *rle);

/**
 * Intersection over union of two masks of one size; 0 where both are empty.
 * Errors: ESP_E_ARG (their sizes differ).
 */
esp_status esp_rle_iou(double *out, const struct esp_rle *a, const struct esp_rle *b, struct esp_err *err);

/** Frees the counts and zeroes it; NULL and a zeroed one are fine. */
void esp_rle_finish(struct esp_rle *rle);

#endif
