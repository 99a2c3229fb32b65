/** The header of one array as NumPy stores it: what objects/npz.c reads of an entry before its numbers. */
#ifndef ESP_OBJECTS_NPY_H
#define ESP_OBJECTS_NPY_H

#include "model/dtype.h"
#include "objects/npz.h"

struct esp_npy_header {
    enum esp_dtype dtype; /* ESP_F32 or ESP_F16 */
    uint32_t n_dim;
    size_t shape[ESP_NPZ_MAX_DIM];
    size_t n_elem;
    size_t data_at; /* bytes before the numbers, which end with the entry */
};

#define ESP_NPY_MAX_HEADER 65536 /* bytes before the numbers; NumPy writes about 128 */

/**
 * The header is a Python dictionary of "descr", "fortran_order" and "shape", each once, and nothing else.
 *
 * @param what  "FILE: array NAME", for messages
 * Errors: ESP_E_FORMAT, ESP_E_UNSUPPORTED (another type; columns first).
 */
esp_status esp_npy_parse(struct esp_npy_header *out, const uint8_t *bytes, size_t n_bytes, const char *what,
                         struct esp_err *err);

#endif
