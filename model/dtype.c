#include "model/dtype.h"

#include <string.h>

size_t esp_dtype_n_bytes(enum esp_dtype dtype)
{
    switch (dtype) {
    case ESP_F32:
    case ESP_I32:
        return 4;
    case ESP_F16:
    case ESP_BF16:
        return 2;
    case ESP_U8:
        return 1;
    case ESP_Q8:
    case ESP_Q4:
    case ESP_DTYPE_UNSET:
        break;
    }
    return 0;
}

const char *esp_dtype_name(enum esp_dtype dtype)
{
    switch (dtype) {
    case ESP_F32:
        return "f32";
    case ESP_F16:
        return "f16";
    case ESP_BF16:
        return "bf16";
    case ESP_I32:
        return "i32";
    case ESP_U8:
        return "u8";
    case ESP_Q8:
        return "q8";
    case ESP_Q4:
        return "q4";
    case ESP_DTYPE_UNSET:
        break;
    }
    return "unset";
}

static float from_bits(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

float esp_bf16_to_f32(uint16_t h)
{
    return from_bits((uint32_t)h << 16);
}

float esp_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t exponent = (h >> 10) & 0x1fu;
    uint32_t mantissa = h & 0x3ffu;

    if (exponent == 31) /* infinity, or NaN with its payload */
        return from_bits(sign | 0x7f800000u | mantissa << 13);
    if (exponent == 0) { /* zero, or a subnormal: mantissa * 2^-24, which float32 holds as a normal number */
        float magnitude = (float)mantissa * 0x1p-24f;
        return sign ? -magnitude : magnitude;
    }
    return from_bits(sign | (exponent + 127 - 15) << 23 | mantissa << 13);
}

static uint32_t to_bits(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

uint16_t esp_f32_to_bf16(float f)
{
    const uint32_t bits = to_bits(f);

    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(bits >> 16 | 0x40u); /* a NaN that stays one */
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

uint16_t esp_f32_to_f16(float f)
{
    const uint32_t sign = to_bits(f) >> 16 & 0x8000u, bits = to_bits(f) & 0x7fffffffu;

    if (bits > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u);
    if (bits >= 0x477ff000u) /* 65520: halfway to what would come after 65504 */
        return (uint16_t)(sign | 0x7c00u);
    if (bits <
        0x38800000u) /* below 2^-14, a whole number of 2^-24; adding 0.5 leaves just those bits, rounded */
        return (uint16_t)(sign | (to_bits(from_bits(bits) + 0.5f) - to_bits(0.5f)));
    return (uint16_t)(sign | (bits - 0x38000000u + 0xfffu + (bits >> 13 & 1)) >> 13);
}

void esp_dtype_to_f32(float *out, const void *src, enum esp_dtype dtype, size_t n)
{
    const unsigned char *p = src;

    if (dtype == ESP_F32) {
        if (n > 0)
            memcpy(out, src, n * sizeof *out);
        return;
    }
    for (size_t i = 0; i < n; i++) { /* src may lie at an odd address */
        uint16_t h;
        memcpy(&h, p + 2 * i, sizeof h);
        out[i] = dtype == ESP_F16 ? esp_f16_to_f32(h) : esp_bf16_to_f32(h);
    }
}
