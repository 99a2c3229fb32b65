#include "model/quant.h"

#include <string.h>

#define B        ESP_QUANT_BLOCK
#define LANES    8           /* partial sums side by side, as compilers vectorise them */
#define Q4_BASE  0x2b800000u /* bits of 2^-40 */
#define Q4_MAX   1e8f        /* 15.75 times the largest scale is 2.6e8 */
#define Q8_MAX   1e38f
#define N_SCALE  1024
#define N_ZERO   64
#define MAX_WALK 16
#define WHOLE    12582912.0f /* 1.5 * 2^23: added and taken away, it rounds to a whole number, ties to even */

_Static_assert(sizeof(struct esp_q8_block) == 34, "8.5 bits a weight");
_Static_assert(sizeof(struct esp_q4_block) == 18, "4.5 bits a weight");

static float from_bits(uint32_t bits)
{
    float f;

    memcpy(&f, &bits, sizeof f);
    return f;
}

static uint32_t to_bits(float f)
{
    uint32_t bits;

    memcpy(&bits, &f, sizeof bits);
    return bits;
}

static float scale_of(uint32_t index)
{
    return from_bits((index << 19) + Q4_BASE);
}

float esp_q4_scale(uint16_t side)
{
    return scale_of(side >> 6);
}

float esp_q4_zero(uint16_t side)
{
    return (float)(side % N_ZERO) * 0.25f;
}

/* A block's weights, as numbers of -127 .. 127. */
static void q8_block(struct esp_q8_block *out, const float *x)
{
    float most = 0, d;

    for (int i = 0; i < B; i++) {
        const float a = x[i] < 0 ? -x[i] : x[i];
        most = a > most ? a : most;
    }
    /* to the nearest bfloat16; the largest weight may then come to 127.25 steps, which 127 is near enough to */
    out->d = (uint16_t)((to_bits(most / 127) + 0x8000u) >> 16);
    if (out->d < 0x0080u) /* subnormal */
        out->d = 0;
    d = from_bits((uint32_t)out->d << 16);
    for (int i = 0; i < B; i++) {
        float q = d > 0 ? x[i] / d : 0;
        q = q < -127 ? -127 : q > 127 ? 127 : q;
        out->q[i] = (int8_t)((q + WHOLE) - WHOLE);
    }
}

/* What is stored for weight x, a whole number of 0 .. 15. */
static inline float q4_of(float x, float inverse, float zero)
{
    float q = (x * inverse + zero + WHOLE) - WHOLE;

    q = q < 0 ? 0 : q;
    return q > 15 ? 15 : q;
}

/* The squared error of a block with such a scale and zero point. */
static float q4_error(const float *x, uint32_t scale, uint32_t zero)
{
    const float d = scale_of(scale), z = (float)zero * 0.25f, inverse = 1 / d;
    float sum[LANES] = {0};

    for (int i = 0; i < B; i += LANES) {
        for (int l = 0; l < LANES; l++) {
            const float off = x[i + l] - d * (q4_of(x[i + l], inverse, z) - z);
            sum[l] += off * off;
        }
    }
    return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

/* The scale that is nearest to d in steps of a sixteenth. */
static uint32_t nearest_scale(float d)
{
    const uint32_t bits = to_bits(d);
    uint32_t i;

    if (bits < Q4_BASE)
        return 0;
    i = (bits - Q4_BASE + (1u << 18)) >> 19;
    return i < N_SCALE ? i : N_SCALE - 1;
}

/* @param pace  steps of z that are taken at once: 4 keeps zeros exact */
static void q4_block(struct esp_q4_block *out, const float *x, uint32_t pace)
{
    float least = 0, most = 0, best, d, z;
    uint32_t scale, zero;

    memset(out, 0, sizeof *out);
    for (int i = 0; i < B; i++) {
        least = x[i] < least ? x[i] : least;
        most = x[i] > most ? x[i] : most;
    }
    scale = nearest_scale((most - least) / 15);
    if (scale == 0 && most - least <= scale_of(0))
        return; /* all of it would be rounded to zero, or nearly so */
    z = 4 * (7.5f - (least + most) / (2 * scale_of(scale))) / (float)pace;
    zero = z < 0 ? 0 : z > N_ZERO ? N_ZERO : (uint32_t)(z + 0.5f) * pace;
    zero = zero < N_ZERO ? zero : N_ZERO - pace;
    best = q4_error(x, scale, zero);
    for (int walked = 0; walked < MAX_WALK; walked++) {
        const uint32_t at_scale = scale, at_zero = zero;
        for (int step = 0; step < 9; step++) {
            const uint32_t s = at_scale + (uint32_t)(step / 3) - 1,
                           n = at_zero + ((uint32_t)(step % 3) - 1) * pace;
            float error;
            if (step == 4 || s >= N_SCALE ||
                n >= N_ZERO) /* here, or past an end: unsigned ones wrap around */
                continue;
            error = q4_error(x, s, n);
            if (error < best) {
                best = error;
                scale = s;
                zero = n;
            }
        }
        if (scale == at_scale && zero == at_zero)
            break;
    }
    out->side = (uint16_t)(scale << 6 | zero);
    d = 1 / scale_of(scale);
    z = (float)zero * 0.25f;
    for (int i = 0; i < B / 2; i++)
        out->q[i] = (uint8_t)((unsigned)q4_of(x[2 * i], d, z) | (unsigned)q4_of(x[2 * i + 1], d, z) << 4);
}

size_t esp_quant_row(void *out, enum esp_wtype type, const float *x, size_t n)
{
    const float limit = type == ESP_W_Q4 ? Q4_MAX : Q8_MAX;

    for (size_t i = 0; i < n; i++)
        if (!(x[i] >= -limit && x[i] <= limit)) /* NaN too */
            return i;
    for (size_t at = 0, block = 0; at < n; at += B, block++) {
        float last[B] = {0};
        const float *from = x + at;
        if (n - at < B) {
            memcpy(last, from, (n - at) * sizeof *last);
            from = last;
        }
        if (type == ESP_W_Q4)
            q4_block((struct esp_q4_block *)out + block, from, from == last ? 4 : 1);
        else
            q8_block((struct esp_q8_block *)out + block, from);
    }
    return n;
}

void esp_quant_values(float *out, enum esp_wtype type, const void *blocks, size_t n)
{
    const unsigned char *p = blocks;

    for (size_t at = 0; at < n; at += B) {
        const size_t some = n - at < B ? n - at : B;
        if (type == ESP_W_Q4) {
            struct esp_q4_block b;
            memcpy(&b, p, sizeof b);
            p += sizeof b;
            const float d = esp_q4_scale(b.side), z = esp_q4_zero(b.side);
            for (size_t i = 0; i < some; i++)
                out[at + i] = d * ((float)(b.q[i / 2] >> i % 2 * 4 & 15) - z);
        } else {
            struct esp_q8_block b;
            memcpy(&b, p, sizeof b);
            p += sizeof b;
            const float d = from_bits((uint32_t)b.d << 16);
            for (size_t i = 0; i < some; i++)
                out[at + i] = d * (float)b.q[i];
        }
    }
}
