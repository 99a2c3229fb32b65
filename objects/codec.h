/**
 * The mask codec: a mask of 64x64 pixels as 16 codes out of 128 (the tokens <seg000> to <seg127>), and back.
 *
 * A VQ-VAE after "All in Tokens" (arXiv 2301.02229). The names and layout of its parameters are those of vae-oid.npz as
 * big_vision's PaliGemma code reads it (pp/proj/paligemma/segmentation.py for the encoder,
 * evaluators/proj/paligemma/transfers/segmentation.py for the decoder). E and every C come from the arrays' shapes:
 *
 *   _vq_vae._embedding                   [128, E]           the codebook
 *   decoder.0                            [C, E, 1, 1]       relu
 *   decoder.2.net, decoder.3.net         residual blocks: x + .4 [C, C, 1, 1] of relu .2 [C, C, 3, 3] of relu .0 [C, C, 3, 3]
 *   decoder.4, .6, .8, .10               [C, C', 4, 4]      transposed convolutions, stride 2, padding 1; relu
 *   decoder.12                           [1, C, 1, 1]       -1 outside to 1 inside, not bounded
 *   encoder.0, .2, .4, .6                [C', C, 4, 4]      stride 2, padding 1; relu; the first C is 1
 *   encoder.8.net, encoder.9.net         residual blocks
 *   encoder.10                           [E, C, 1, 1]
 *
 * each with .weight and .bias, weights as PyTorch has them ([out, in, y, x]; transposed ones [in, out, y, x]). A kernel
 * of stride 1 may be 1x1 where this says 3x3 and the other way round; no C exceeds 512. The codes stand for a 4x4 grid,
 * row by row. All arithmetic is float32.
 */
#ifndef ESP_OBJECTS_CODEC_H
#define ESP_OBJECTS_CODEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/status.h"

#define ESP_CODEC_SIDE    64 /* of a mask, pixels */
#define ESP_CODEC_PIXELS  (ESP_CODEC_SIDE * ESP_CODEC_SIDE)
#define ESP_CODEC_GRID    4 /* codes a side */
#define ESP_CODEC_N_TOK   (ESP_CODEC_GRID * ESP_CODEC_GRID)
#define ESP_CODEC_N_CODES 128

struct esp_codec;

/**
 * Reads a vae-oid.npz. The encoder may be missing from it as a whole.
 *
 * @param out   esp_codec_destroy ends it; NULL on failure
 * @param path  a regular file of at most 64 MiB
 * Errors, all naming the file and the array: ESP_E_IO, ESP_E_FORMAT (no npz, an array missing, of a wrong or oversized
 * shape, not finite), ESP_E_UNSUPPORTED (what objects/npz.h does not read), ESP_E_NOMEM.
 */
esp_status esp_codec_open(struct esp_codec **out, const char *path, struct esp_err *err);

/** The same of a file's bytes, which are borrowed for the call. */
esp_status esp_codec_parse(struct esp_codec **out, const void *bytes, size_t n_bytes, const char *file,
                           struct esp_err *err);

/** Clears the pointer; NULL is fine. */
void esp_codec_destroy(struct esp_codec **codec);

bool esp_codec_can_encode(const struct esp_codec *codec);

/**
 * Codes to a mask.
 *
 * @param mask   f32[64, 64], the caller's: 0 to 1, inside where it exceeds 0.5. 0.5 x + 0.5 of the decoder's x, clipped
 * @param codes  each 0 to 127
 * Errors: ESP_E_ARG (a code out of range), ESP_E_NUMBERS (the weights overflow float32), ESP_E_NOMEM. Safe from any
 * thread.
 */
esp_status esp_codec_decode(float mask[ESP_CODEC_PIXELS], const struct esp_codec *codec,
                            const int32_t codes[ESP_CODEC_N_TOK], struct esp_err *err);

/**
 * A mask to codes: for each feature of the encoder the code of the least squared distance, the lowest one of equals.
 *
 * @param codes  the caller's
 * @param mask   u8[64, 64]: 0 outside to 255 inside, 2 m / 255 - 1 for the encoder
 * Errors: ESP_E_UNSUPPORTED (the file has no encoder), ESP_E_NUMBERS, ESP_E_NOMEM. Safe from any thread.
 */
esp_status esp_codec_encode(int32_t codes[ESP_CODEC_N_TOK], const struct esp_codec *codec,
                            const uint8_t mask[ESP_CODEC_PIXELS], struct esp_err *err);

/**
 * Stretches a decoded mask over a box of a picture and marks what exceeds 0.5.
 *
 * Resampled with a triangle of support max(1, 64 / side of the box) around pixel centres, which is bilinear where the box
 * has more than 64 pixels and smooths where it has fewer: Pillow's BILINEAR, as big_vision's evaluator uses it. A pixel
 * belongs to the box when its centre does. Pixels outside the picture are left out; a box without area marks nothing.
 *
 * @param out     u8[height, width], the caller's; 1 where the object is, and untouched everywhere else
 * @param mask    f32[64, 64] of esp_codec_decode
 * @param box     y0, x0, y1, x1 in pixels, edges not centres; may reach beyond the picture
 * Errors: ESP_E_NOMEM. Safe from any thread.
 */
esp_status esp_codec_paste(uint8_t *out, uint32_t height, uint32_t width, const float mask[ESP_CODEC_PIXELS],
                           const double box[4], struct esp_err *err);

#endif
