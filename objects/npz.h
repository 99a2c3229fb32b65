/**
 * Arrays of an .npz file: a zip archive whose entries NAME.npy are arrays as NumPy stores them.
 *
 * Read is what numpy.savez and savez_compressed write of float arrays: entries stored or deflated, in .npy versions 1 to 3,
 * little-endian float32 or float16, rows first. Sizes come from the central directory; an entry's own header only says
 * where its data begins. Zip64, encryption and archives in parts are refused, and so is an array of another type or
 * order, but only when it is asked for.
 *
 * Sources: PKWARE's APPNOTE.TXT 6.3; the .npy format, NumPy's NEP 1.
 */
#ifndef ESP_OBJECTS_NPZ_H
#define ESP_OBJECTS_NPZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/status.h"

#define ESP_NPZ_MAX_ENTRIES 4096
#define ESP_NPZ_MAX_NAME    255 /* bytes */
#define ESP_NPZ_MAX_DIM     8

struct esp_npz;

struct esp_npz_array {
    uint32_t n_dim; /* 0: a single number */
    size_t shape[ESP_NPZ_MAX_DIM];
    size_t n_elem;
    float *values; /* f32[n_elem], rows first, from malloc */
};

/**
 * Reads the directory; no array yet.
 *
 * @param out    esp_npz_destroy ends it; NULL on failure
 * @param bytes  the whole file, borrowed until then
 * @param file   its name for messages, copied
 * Errors: ESP_E_FORMAT, ESP_E_UNSUPPORTED (zip64, an encrypted entry, parts), ESP_E_NOMEM.
 */
esp_status esp_npz_parse(struct esp_npz **out, const void *bytes, size_t n_bytes, const char *file,
                         struct esp_err *err);

/** Clears the pointer; NULL is fine. */
void esp_npz_destroy(struct esp_npz **npz);

/** How many arrays, and the name of the i-th, without ".npy", as stored; borrowed. */
size_t esp_npz_n_arrays(const struct esp_npz *npz);
const char *esp_npz_name(const struct esp_npz *npz, size_t i);

bool esp_npz_has(const struct esp_npz *npz, const char *name);

/**
 * One array, its checksum checked.
 *
 * @param out    the caller's; filled on success (release with esp_npz_array_finish), zeroed on failure
 * @param n_max  more elements are refused before memory is asked for them
 * Errors, naming file and array: ESP_E_FORMAT (missing, damaged, larger than n_max), ESP_E_UNSUPPORTED (a type, order or
 * compression that is not read), ESP_E_NOMEM. Safe from any thread.
 */
esp_status esp_npz_read(struct esp_npz_array *out, const struct esp_npz *npz, const char *name, size_t n_max,
                        struct esp_err *err);

/** Frees the values and zeroes it; a zeroed one is fine. */
void esp_npz_array_finish(struct esp_npz_array *array);

#endif
