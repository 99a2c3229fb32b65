/**
 * Seeded numbers for tests: the same seed gives the same bits on every machine, for only integers and exact
 * float operations are involved. Not for sampling, and not for secrets.
 *
 * xoshiro256** of Blackman and Vigna (arXiv 1805.01407), its state filled by splitmix64. A generator belongs
 * to one thread at a time. Nothing here can fail.
 */
#ifndef ESP_TESTS_SUPPORT_RAND_H
#define ESP_TESTS_SUPPORT_RAND_H

#include <stddef.h>
#include <stdint.h>

struct esp_rand {
    uint64_t s[4];
};

/** Starts a generator; any seed will do, 0 included. */
void esp_rand_init(struct esp_rand *r, uint64_t seed);

/** 64 random bits. */
uint64_t esp_rand_u64(struct esp_rand *r);

/** A whole number of [0, n), each equally likely; n at least 1. */
uint32_t esp_rand_below(struct esp_rand *r, uint32_t n);

/** A number of [0, 1), a multiple of 2^-53. */
double esp_rand_uniform(struct esp_rand *r);

/**
 * A number of mean 0 and variance 1, near enough to normal: the sum of twelve uniform ones, less their mean.
 * Never beyond 6 (outliers are asked for by name, below), and unlike Box-Muller without a libm that might
 * differ.
 */
double esp_rand_normal(struct esp_rand *r);

/** out[i] = std * normal, rounded to float32. f32[n]. */
void esp_rand_fill(struct esp_rand *r, float *out, size_t n, double std);

/** out[i] uniform in [lo, hi), rounded to float32 (which may reach hi). f32[n]. */
void esp_rand_fill_uniform(struct esp_rand *r, float *out, size_t n, double lo, double hi);

/**
 * As esp_rand_fill, but with a few channels that are `factor` times as large, the same ones in every row:
 * what the residual streams of Gemma and SigLIP look like, and what f16 operands and naive sums break on
 * (factor 1e4).
 *
 * @param out           f32[rows, width]
 * @param n_channel     how many channels; at most width are taken
 */
void esp_rand_fill_outliers(struct esp_rand *r, float *out, size_t rows, size_t width, double std,
                            size_t n_channel, double factor);

/**
 * Weights: std * normal, rounded to bfloat16 or binary16.
 *
 * @param values  f32[n], the exact values of bits; NULL if unwanted
 * @param bits    u16[n]; NULL if unwanted
 */
void esp_rand_weights_bf16(struct esp_rand *r, float *values, uint16_t *bits, size_t n, double std);
void esp_rand_weights_f16(struct esp_rand *r, float *values, uint16_t *bits, size_t n, double std);

/** n positions or ids of [0, below). u32[n]. */
void esp_rand_fill_u32(struct esp_rand *r, uint32_t *out, size_t n, uint32_t below);

#endif
