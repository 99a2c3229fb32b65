/**
 * Element types of stored tensors, and their values as float32.
 */
#ifndef ESP_MODEL_DTYPE_H
#define ESP_MODEL_DTYPE_H

#include <stddef.h>
#include <stdint.h>

/** ESP_Q8 and ESP_Q4: rows of blocks (model/quant.h). */
enum esp_dtype {
    ESP_DTYPE_UNSET = 0,
    ESP_F32 = 1,
    ESP_F16 = 2,
    ESP_BF16 = 3,
    ESP_I32 = 4,
    ESP_U8 = 5,
    ESP_Q8 = 6,
    ESP_Q4 = 7
};

/** Bytes of one element; 0 for ESP_DTYPE_UNSET, numbers that are no dtype, and quantised ones, which come in blocks. */
size_t esp_dtype_n_bytes(enum esp_dtype dtype);

/** "f32", "f16", "bf16", "i32", "u8", "q8", "q4"; "unset" for anything else. */
const char *esp_dtype_name(enum esp_dtype dtype);

/** One binary16 / bfloat16 number as float32. Exact, subnormals, infinities and NaN included. */
float esp_f16_to_f32(uint16_t h);
float esp_bf16_to_f32(uint16_t h);

/** The nearest bfloat16 / binary16 number, ties to even; an infinity beyond the largest, NaN for NaN. */
uint16_t esp_f32_to_bf16(float f);
uint16_t esp_f32_to_f16(float f);

/**
 * n elements of src (f32, f16 or bf16, of any alignment, little-endian) as float32 into out.
 * Exact. The caller knows that dtype is one of the three.
 */
void esp_dtype_to_f32(float *out, const void *src, enum esp_dtype dtype, size_t n);

#endif
