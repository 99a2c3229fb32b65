#include "tests/support/ref.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void esp_ref_patch_embed(double *out, const float *pixels, const float *weight, const float *bias,
                         const float *position, size_t n_channel, size_t image_size, size_t patch_size,
                         size_t width)
{
    const size_t grid = image_size / patch_size, n_in = n_channel * patch_size * patch_size;
    float *patches =
        calloc(grid * grid * n_in + 1, sizeof *patches); /* f32[g*g, C*P*P]: as weight's rows run */

    if (!patches) {
        fprintf(stderr, "float64 reference: no memory for %zu patches\n", grid * grid);
        abort();
    }
    esp_ref_patches(patches, pixels, grid * grid, n_channel, image_size, patch_size);
    esp_ref_matmul(out, patches, weight, bias, grid * grid, width, n_in);
    for (size_t i = 0; position && i < grid * grid * width; i++)
        out[i] += position[i];
    free(patches);
}

static uint32_t float_bits(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

/* u without its last n bits (1 to 31), to nearest. Ties go to even, for only an odd result gets a whole half.
 */
static uint32_t drop_bits(uint32_t u, unsigned n)
{
    return (u + (1u << (n - 1)) - 1 + (u >> n & 1)) >> n;
}

uint16_t esp_ref_f32_to_bf16(float x)
{
    const uint32_t u = float_bits(x);
    if (isnan(x)) /* the quiet bit is set, for a payload in the lower half alone would leave infinity */
        return (uint16_t)(u >> 16 | 0x40);
    return (uint16_t)drop_bits(u, 16); /* a carry into the exponent is right, up to infinity */
}

uint16_t esp_ref_f32_to_f16(float x)
{
    const uint32_t u = float_bits(x), sign = u >> 16 & 0x8000, rest = u & 0x7fffffff;
    if (isnan(x))
        return (uint16_t)(sign | 0x7e00);
    if (rest >= 0x477ff000) /* 65520, midway between the largest finite 65504 and 2^16 */
        return (uint16_t)(sign | 0x7c00);
    if (rest >= 0x38800000) /* 2^-14, the smallest normal one: rebias the exponent from 127 to 15 */
        return (uint16_t)(sign | drop_bits(rest - ((127 - 15) << 23), 13));
    if (rest < 0x33000000) /* below 2^-25, half the smallest subnormal one */
        return (uint16_t)sign;
    /* A subnormal one counts in units of 2^-24: the significand, its leading one written out, is shifted
     * there. */
    const unsigned exponent = rest >> 23; /* 102 to 112 */
    return (uint16_t)(sign | drop_bits((rest & 0x7fffff) | 0x800000, 126 - exponent));
}

float esp_ref_bf16_to_f32(uint16_t bits)
{
    const uint32_t u = (uint32_t)bits << 16;
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

float esp_ref_f16_to_f32(uint16_t bits)
{
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    float x;
    if (exponent == 31)
        x = fraction ? NAN : INFINITY;
    else if (exponent == 0)
        x = ldexpf((float)fraction, -24);
    else
        x = ldexpf((float)(1024 + fraction), exponent - 25);
    return bits & 0x8000 ? -x : x;
}
