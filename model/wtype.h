/**
 * Weight types: what a device holds of a matrix and kernels read. esp_dtype (model/dtype.h) is what files store.
 *
 *   bf16, f16, f32  as their names say
 *   q8, q4          blocks of 32 consecutive columns of a row with a scale (model/quant.h): 8.5 and 4.5 bits a weight
 */
#ifndef ESP_MODEL_WTYPE_H
#define ESP_MODEL_WTYPE_H

#include <stdbool.h>
#include <stddef.h>

#include "model/dtype.h"

enum esp_wtype {
    ESP_W_NONE = 0,            /* of a kernel: reads no weights */
    ESP_W_STORED = ESP_W_NONE, /* of a wish: each matrix as its file has it */
    ESP_W_BF16 = 1,
    ESP_W_F16 = 2,
    ESP_W_F32 = 3,
    ESP_W_Q8 = 4,
    ESP_W_Q4 = 5,
    ESP_N_WTYPE
};

/** "stored", "bf16", "f16", "f32", "q8", "q4"; "unset" for what is none. */
const char *esp_wtype_name(enum esp_wtype type);

/** Of a name of those; false for any other. */
bool esp_wtype_parse(enum esp_wtype *out, const char *name);

/** The type that holds f32, f16, bf16, q8 or q4 exactly as stored; ESP_W_NONE for others. */
enum esp_wtype esp_wtype_of(enum esp_dtype dtype);

/** Whether it comes in blocks of ESP_QUANT_BLOCK columns. */
bool esp_wtype_quantised(enum esp_wtype type);

/** Bytes of n weights of a row, scales included; n a multiple of 32. 0 for ESP_W_NONE. */
size_t esp_wtype_n_bytes(enum esp_wtype type, size_t n);

#endif
