/**
 * One safetensors file: header length (u64, little-endian), a JSON header, then the tensors' bytes.
 *
 * Opening checks everything the format demands: the header's length and JSON, each tensor's dtype, shape and
 * byte range, that a range has exactly the bytes its shape needs, and that the ranges cover the data without
 * overlap, gap or rest (so that a file cut short, or grown, is noticed even where nothing of ours lies).
 */
#ifndef ESP_MODEL_SAFETENSORS_H
#define ESP_MODEL_SAFETENSORS_H

#include "model/tensor.h"
#include "proto/status.h"

/* The format allows 100 MB. The headers of published models have 0.2 MB, and parsed JSON takes 40 times its
 * text. */
#define ESP_SAFETENSORS_MAX_HEADER ((size_t)4 << 20)

struct esp_safetensors;

/**
 * Maps and checks a file.
 *
 * @param out  a new object that holds the mapping; NULL on failure
 * Errors: ESP_E_IO, ESP_E_FORMAT naming file, tensor, what was found and what was expected, ESP_E_NOMEM.
 */
esp_status esp_safetensors_open(struct esp_safetensors **out, const char *path, struct esp_err *err);

/** The same over memory that stays the caller's and must outlive *out; file is copied, for messages. */
esp_status esp_safetensors_parse(struct esp_safetensors **out, const void *data, size_t n_bytes,
                                 const char *file, struct esp_err *err);

/** Unmaps; views of its tensors end here. Tolerates NULL. */
void esp_safetensors_destroy(struct esp_safetensors **st);

/** Tensors in the order of their names (bytewise); i below the count. Views, valid until destroy. */
size_t esp_safetensors_n_tensor(const struct esp_safetensors *st);
const struct esp_tensor *esp_safetensors_tensor(const struct esp_safetensors *st, size_t i);

/** What the file says of itself under a key of its __metadata__; NULL: nothing. */
const char *esp_safetensors_metadata(const struct esp_safetensors *st, const char *key);

/** The tensor of that name, or NULL. */
const struct esp_tensor *esp_safetensors_find(const struct esp_safetensors *st, const char *name);

#endif
