/**
 * Npz files for tests, in memory: good ones, and with add_raw whatever else. Arithmetic of zip is done right; who wants it
 * wrong changes the bytes. What cannot go on prints why and exits.
 */
#ifndef ESP_TESTS_SUPPORT_NPZ_WRITER_H
#define ESP_TESTS_SUPPORT_NPZ_WRITER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct esp_npz_out {
    uint8_t *bytes; /* the file; the caller frees it after esp_npz_out_end */
    size_t n_bytes;
    uint8_t *dir; /* the directory as far as it has come */
    size_t n_dir;
    unsigned n_entries;
};

/** An entry of n bytes, stored or deflated, under exactly this name. Starts with a zeroed struct. */
void esp_npz_out_raw(struct esp_npz_out *z, const char *entry, const void *data, size_t n, bool deflated);

/**
 * An array of a shape, NAME.npy: as f4 or, with half, as f2; values must then be zero or
 * normal halves, and what they have more is cut.
 * @param values  f32, rows first, as many as the shape's product
 */
void esp_npz_out_array(struct esp_npz_out *z, const char *name, const float *values, const size_t *shape,
                       size_t n_dim, bool half, bool deflated);

/** Directory and end record; then bytes is the file, in a block of exactly n_bytes. */
void esp_npz_out_end(struct esp_npz_out *z);

#endif
