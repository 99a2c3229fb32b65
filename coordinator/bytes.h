/**
 * Numbers as bytes, little-endian, one behind the other: what the journal's records are made of.
 *
 * Writing remembers a failure, and so does reading past the end: the caller looks once, at the end. Pure.
 */
#ifndef ESP_COORDINATOR_BYTES_H
#define ESP_COORDINATOR_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/** Bytes being written; zeros begin. `at` is malloc'ed, and the caller's to free, whatever `failed` says. */
struct esp_bytes {
    uint8_t *at;
    size_t n, cap;
    bool failed; /* without memory: what was written after that is not there */
};

void esp_put_u8(struct esp_bytes *b, uint8_t v);
void esp_put_u32(struct esp_bytes *b, uint32_t v);
void esp_put_f64(struct esp_bytes *b, double v); /* its bits */

/** Bytes being read. */
struct esp_reader {
    const uint8_t *at;
    size_t n; /* left */
    bool failed;
};

/** The next number; 0 past the end. */
uint8_t esp_get_u8(struct esp_reader *r);
uint32_t esp_get_u32(struct esp_reader *r);
double esp_get_f64(struct esp_reader *r);

/** The next number, of things that take at least n_bytes each: 0, and failed, if there cannot be so many. */
uint32_t esp_get_count(struct esp_reader *r, size_t n_bytes);

#endif
