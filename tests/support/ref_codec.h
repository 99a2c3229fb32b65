/**
 * The mask codec in float64, straight from the arrays of the published layout (objects/codec.h): what objects/codec.c is
 * held against. Nothing is packed, padded or passed over here. What cannot go on prints why and exits.
 */
#ifndef ESP_TESTS_SUPPORT_REF_CODEC_H
#define ESP_TESTS_SUPPORT_REF_CODEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "objects/npz.h"
#include "tests/support/npz_writer.h"

#define ESP_REF_CODEC_MAX 48 /* arrays; with both halves there are 47 */

struct esp_ref_codec {
    size_t n;
    char name[ESP_REF_CODEC_MAX][64];
    struct esp_npz_array array[ESP_REF_CODEC_MAX];
};

/** Widths of a codec: after encoder.0 to .6; of decoder.0 and after decoder.4 to .10; E. */
struct esp_ref_codec_dims {
    size_t down[4], in, up[4], code_dim;
};

extern const struct esp_ref_codec_dims esp_ref_codec_published;

/** Random weights, scaled so that activations keep their size and the decoder stays mostly within -1 to 1. All are
 * normal halves. Release with esp_ref_codec_finish. */
void esp_ref_codec_random(struct esp_ref_codec *c, const struct esp_ref_codec_dims *dims, bool encoder,
                          uint64_t seed);

/** All arrays of a file that is known to be good. */
void esp_ref_codec_read(struct esp_ref_codec *c, const char *path);

void esp_ref_codec_finish(struct esp_ref_codec *c);

/** NULL where there is none. */
struct esp_npz_array *esp_ref_codec_find(struct esp_ref_codec *c, const char *name);

/** As a file: z as after esp_npz_out_end. */
void esp_ref_codec_write(struct esp_npz_out *z, const struct esp_ref_codec *c, bool half, bool deflated);

/** f64[64, 64] of the decoder, before 0.5 x + 0.5 and clipping. */
void esp_ref_codec_decode(double *out, struct esp_ref_codec *c, const int32_t codes[16]);

/** Features f64[16, E], and for each the squared distances f64[16, 128] to the codes. NULL if unwanted. */
void esp_ref_codec_encode(double *features, double *distances, struct esp_ref_codec *c,
                          const uint8_t mask[64 * 64]);

#endif
