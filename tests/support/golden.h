/**
 * Golden tensors: what the reference computed (tests/golden/data/README.md), by name, and float32 arrays held
 * against them. For tests: what cannot go on prints why and exits.
 */
#ifndef ESP_TESTS_SUPPORT_GOLDEN_H
#define ESP_TESTS_SUPPORT_GOLDEN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/tensor.h"

struct esp_golden;

/** Opens a safetensors file, such as "tests/golden/data/tiny/golden.safetensors". Never NULL: exits instead.
 */
struct esp_golden *esp_golden_open(const char *path);
void esp_golden_close(struct esp_golden **g);

/** Whether a tensor is there ("prefill.0.mask_sliding" is not, in a Gemma). */
bool esp_golden_has(const struct esp_golden *g, const char *name);

/** The tensor, whatever its dtype; exits when there is none. The name is a printf format. */
const struct esp_tensor *esp_golden_tensor(const struct esp_golden *g, const char *name, ...)
    __attribute__((format(printf, 2, 3)));

/** Its elements, checked to be of the type; aligned copies that live until the file is closed. */
const float *esp_golden_f32(struct esp_golden *g, size_t *n_elem, const char *name, ...)
    __attribute__((format(printf, 3, 4)));
const int32_t *esp_golden_i32(struct esp_golden *g, size_t *n_elem, const char *name, ...)
    __attribute__((format(printf, 3, 4)));
const uint8_t *esp_golden_u8(struct esp_golden *g, size_t *n_elem, const char *name, ...)
    __attribute__((format(printf, 3, 4)));

/** Elements of a tensor: the product of its shape. */
size_t esp_tensor_n_elem(const struct esp_tensor *t);

struct esp_distance {
    double rel_l2;  /* |got - want| / |want| over everything, as in the tolerance table of the README */
    double max_abs; /* of got - want */
    size_t worst;   /* index of the largest difference, or of the first NaN or infinity */
    bool finite;    /* no NaN nor infinity anywhere, on either side */
};

/** Measures n_elem floats in float64; 0 elements and 0/0 are no distance at all. */
struct esp_distance esp_distance_f32(const float *got, const float *want, size_t n_elem);

/**
 * Whether got is finite and within both bounds (INFINITY switches one off). If not, a line on stderr names
 * the case, both distances, both bounds, and the worst element with its index, as a position in [.., n_col]
 * rows.
 */
bool esp_close_f32(const char *what, const float *got, const float *want, size_t n_elem, size_t n_col,
                   double rel_l2_max, double max_abs_max);

#endif
