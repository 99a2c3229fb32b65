/**
 * Pillow's resizing of 8-bit RGB, and a model's pixel values.
 *
 * The encoder was trained on pictures that went through Pillow, whose filters work in fixed point: weights
 * rounded to 22 fractional bits, every pass rounded and clipped to 8 bits. Doing it in floating point is
 * nicer and different. Here the levels are Pillow's, bit for bit (src/libImaging/Resample.c of Pillow 12 is
 * the definition).
 */
#ifndef ESP_COORDINATOR_RESIZE_H
#define ESP_COORDINATOR_RESIZE_H

#include <stdint.h>

#include "picture/image.h"
#include "model/config.h"
#include "proto/status.h"

/**
 * Resizes a picture without regard to its aspect ratio.
 *
 * Per axis, with s = max(in / out, 1) and the filter f of support r: output x is the sum over inputs i of
 * f((i + 0.5 - (x + 0.5) * in / out) / s), normalised, over |.| <= r * s; across first, then down, or the
 * other way round for a picture more than 100 times as tall as wide that shrinks in height. An axis that
 * keeps its size is left alone. ESP_RESAMPLE_NEAREST takes the pixel that contains the output's centre.
 *
 * @param out            u8[out_height, out_width, 3], the caller's, apart from in
 * @param out_width, out_height  pixels, at least 1 each
 * @param in             borrowed, at least 1 x 1
 * Errors: ESP_E_ARG (a zero size, no such filter), ESP_E_NOMEM. Safe from any thread.
 */
esp_status esp_resize(uint8_t *out, uint32_t out_width, uint32_t out_height, const struct esp_image *in,
                      enum esp_resample filter, struct esp_err *err);

/**
 * Levels to what the encoder receives, planes apart:
 *
 *   out[c,y,x] = ((float)(rgb[y,x,c] * rescale_factor) - mean[c]) / std[c]
 *
 * the product in double, the rest in float, as the reference's image processor computes it.
 *
 * @param out   f32[3, side, side], the caller's
 * @param rgb   u8[side, side, 3], borrowed
 * @param side  pixels
 * @param pre   borrowed; std is not zero
 * Cannot fail. Safe from any thread.
 */
void esp_pixels_normalise(float *out, const uint8_t *rgb, uint32_t side,
                          const struct esp_preprocess_config *pre);

/**
 * A decoded picture to pixel values: esp_resize to the model's square with its filter, then
 * esp_pixels_normalise.
 *
 * @param out     f32[3, S, S] with S = config->vision.image_size, the caller's
 * @param image   borrowed
 * @param config  borrowed
 * Errors: as esp_resize. Safe from any thread.
 */
esp_status esp_image_preprocess(float *out, const struct esp_image *image, const struct esp_config *config,
                                struct esp_err *err);

#endif
