/**
 * A stored tensor.
 */
#ifndef ESP_MODEL_TENSOR_H
#define ESP_MODEL_TENSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/dtype.h"

#define ESP_TENSOR_MAX_DIM 8

struct esp_file_id;

/** A stored tensor, borrowed from the mapped file: row-major, little-endian, of any alignment. */
struct esp_tensor {
    enum esp_dtype
        dtype; /* ESP_F32, ESP_F16, ESP_BF16, ESP_Q8 or ESP_Q4 in a checkpoint; unset for types we have no use for */
    uint32_t n_dim; /* 1 to 4 in a checkpoint; 0 for a scalar */
    uint64_t shape[ESP_TENSOR_MAX_DIM];
    const void *data; /* quantised: shape[0] rows of blocks, each row beginning with a block */
    size_t n_bytes;
    const char *name;                  /* as stored */
    const char *stored_dtype;          /* as stored: "BF16" */
    const char *file;                  /* path, for messages */
    const struct esp_file_id *file_id; /* of the mapped file; NULL: it is in none */
    uint64_t file_at;                  /* where it begins there */
    const uint8_t
        *content; /* its hash, as in model/content.h, where it is known without reading it; else NULL */
};

/** Columns of a matrix: the product of all dimensions but the first; 1 of a vector. The caller's tensor was checked. */
size_t esp_tensor_n_col(const struct esp_tensor *tensor);

/** Bytes of one row (of an element of a vector). */
size_t esp_tensor_row_bytes(const struct esp_tensor *tensor);

/** Rows [row0, row0 + n) as float32, f32[n, n_col]; exact. For dtypes of a checkpoint. */
void esp_tensor_rows_f32(float *out, const struct esp_tensor *tensor, size_t row0, size_t n);

/**
 * The tensor's bytes will not be read again soon: lets the kernel drop them from this process, so that loading 6 GB
 * does not leave 6 GB of file pages resident beside the copy. Reading them again is slower, never wrong; but only for
 * tensors of a mapped file, as esp_checkpoint_tensor's are: anonymous memory would be lost.
 */
void esp_tensor_done(const struct esp_tensor *tensor);

/** Whether the page of byte `at`, which is below n_bytes, is in memory; true too where the system does not say. */
bool esp_tensor_is_here(const struct esp_tensor *tensor, uint64_t at);

/** Bytes [at, at + n) of the tensor will be read in a moment: has the kernel bring them in meanwhile. A hint, no more. */
void esp_tensor_soon(const struct esp_tensor *tensor, uint64_t at, uint64_t n);

#endif
