#include "tests/support/rand.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "tests/support/ref.h"

void esp_rand_init(struct esp_rand *r, uint64_t seed)
{
    for (int i = 0; i < 4; i++) { /* splitmix64, whose outputs are never all zero */
        uint64_t z = seed += 0x9e3779b97f4a7c15;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
        z = (z ^ z >> 27) * 0x94d049bb133111eb;
        r->s[i] = z ^ z >> 31;
    }
}

static uint64_t rotate(uint64_t x, unsigned n)
{
    return x << n | x >> (64 - n);
}

uint64_t esp_rand_u64(struct esp_rand *r)
{
    uint64_t *s = r->s;
    const uint64_t result = rotate(s[1] * 5, 7) * 9, t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotate(s[3], 45);
    return result;
}

uint32_t esp_rand_below(struct esp_rand *r, uint32_t n)
{
    const uint32_t surplus = (uint32_t)-n % n; /* 2^32 mod n: so many draws are turned down */
    uint32_t x;
    do
        x = (uint32_t)(esp_rand_u64(r) >> 32);
    while (x < surplus);
    return x % n;
}

double esp_rand_uniform(struct esp_rand *r)
{
    return (double)(esp_rand_u64(r) >> 11) * 0x1p-53;
}

double esp_rand_normal(struct esp_rand *r)
{
    const uint64_t even = 0x0000ffff0000ffff;
    uint64_t pair = 0; /* two sums, side by side, of six 16-bit numbers each */
    for (int i = 0; i < 3; i++) {
        const uint64_t u = esp_rand_u64(r);
        pair += (u & even) + (u >> 16 & even);
    }
    const uint32_t sum = (uint32_t)pair + (uint32_t)(pair >> 32); /* of twelve; their mean is 6 * 65535 */
    return ((double)sum - 6 * 65535.0) * 0x1p-16;
}

void esp_rand_fill(struct esp_rand *r, float *out, size_t n, double std)
{
    for (size_t i = 0; i < n; i++)
        out[i] = (float)(std * esp_rand_normal(r));
}

void esp_rand_fill_uniform(struct esp_rand *r, float *out, size_t n, double lo, double hi)
{
    for (size_t i = 0; i < n; i++)
        out[i] = (float)(lo + (hi - lo) * esp_rand_uniform(r));
}

void esp_rand_fill_outliers(struct esp_rand *r, float *out, size_t rows, size_t width, double std,
                            size_t n_channel, double factor)
{
    size_t left = n_channel < width ? n_channel : width;

    esp_rand_fill(r, out, rows * width, std);
    for (size_t d = 0; d < width;
         d++) { /* each channel with the chance that makes every choice equally likely */
        if (esp_rand_below(r, (uint32_t)(width - d)) >= left)
            continue;
        left--;
        for (size_t t = 0; t < rows; t++)
            out[t * width + d] = (float)(out[t * width + d] * factor);
    }
}

void esp_rand_weights_bf16(struct esp_rand *r, float *values, uint16_t *bits, size_t n, double std)
{
    for (size_t i = 0; i < n; i++) {
        const uint16_t b = esp_ref_f32_to_bf16((float)(std * esp_rand_normal(r)));
        if (bits)
            bits[i] = b;
        if (values)
            values[i] = esp_ref_bf16_to_f32(b);
    }
}

void esp_rand_weights_f16(struct esp_rand *r, float *values, uint16_t *bits, size_t n, double std)
{
    for (size_t i = 0; i < n; i++) {
        const uint16_t b = esp_ref_f32_to_f16((float)(std * esp_rand_normal(r)));
        if (bits)
            bits[i] = b;
        if (values)
            values[i] = esp_ref_f16_to_f32(b);
    }
}

void esp_rand_fill_u32(struct esp_rand *r, uint32_t *out, size_t n, uint32_t below)
{
    for (size_t i = 0; i < n; i++)
        out[i] = esp_rand_below(r, below);
}
