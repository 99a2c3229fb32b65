#include "tests/sim/sim_model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define PEAK_LOGIT 8.0f
#define PEAK_FALL  0.25f
#define REST_LOGIT -8.0f

uint64_t sim_mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

uint64_t sim_picture(const void *pixels, size_t n)
{
    uint64_t h = 1;

    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, (const char *)pixels + i * sizeof bits, sizeof bits);
        h = sim_mix(h + bits);
    }
    return h;
}

uint64_t sim_patch(uint64_t picture, uint32_t row)
{
    return sim_mix(picture + row);
}

uint64_t sim_encode_layer(uint64_t x, uint32_t layer)
{
    return sim_mix(x + layer);
}

uint64_t sim_project(uint64_t x)
{
    return sim_mix(~x);
}

uint64_t sim_embed(int32_t id)
{
    return sim_mix((uint64_t)(uint32_t)id << 32);
}

uint64_t sim_cell(uint64_t x, uint32_t layer)
{
    return sim_mix(x + layer);
}

uint64_t sim_seen(uint64_t cell, uint32_t pos)
{
    return sim_mix(cell + pos);
}

uint64_t sim_decode_layer(uint64_t x, uint64_t seen, uint32_t layer)
{
    return sim_mix(x + seen + layer);
}

uint32_t sim_choice(uint64_t x, uint32_t vocab)
{
    return 2 + (uint32_t)(x % (vocab - 2));
}

float sim_logit(uint64_t x, uint32_t id, uint32_t vocab)
{
    const uint32_t behind = (id + vocab - sim_choice(x, vocab)) % vocab;

    return behind < SIM_PEAK ? PEAK_LOGIT - PEAK_FALL * (float)behind : REST_LOGIT;
}

float sim_lse(uint32_t vocab)
{
    double sum = (vocab - SIM_PEAK) * exp(REST_LOGIT);

    for (int i = 0; i < SIM_PEAK; i++)
        sum += exp(PEAK_LOGIT - PEAK_FALL * i);
    return (float)log(sum);
}

void sim_row_put(float *row, uint32_t width, uint64_t x)
{
    memset(row, 0, width * sizeof *row);
    for (int i = 0; i < SIM_ROW_FLOATS; i++)
        row[i] = (float)(x >> (16 * i) & 0xffff);
}

bool sim_row_get(uint64_t *x, const void *row, uint32_t width)
{
    *x = 0;
    for (uint32_t i = 0; i < width; i++) {
        float f;

        memcpy(&f, (const char *)row + i * sizeof f, sizeof f);
        if (i >= SIM_ROW_FLOATS ? f != 0 : !(f >= 0 && f <= 65535 && f == floorf(f)))
            return false;
        if (i < SIM_ROW_FLOATS)
            *x |= (uint64_t)f << (16 * i);
    }
    return true;
}

/* ---- in one piece ---- */

bool sim_expect(uint32_t *out, uint32_t n_out, const struct esp_config *config, const uint64_t *pictures,
                uint32_t n_picture, const uint32_t *ids, uint32_t n_id)
{
    const uint32_t n_layer = config->text.n_layer, n_token = config->vision.n_token;
    const uint32_t n_prefix = n_picture * n_token + n_id;
    uint64_t *sum = calloc(n_layer, sizeof *sum); /* what the next row sees of those before it */
    uint64_t *x = calloc(n_prefix ? n_prefix : 1, sizeof *x);
    uint64_t last;

    if (!sum || !x || n_prefix == 0) {
        free(sum);
        free(x);
        return false;
    }
    for (uint32_t p = 0; p < n_prefix; p++) {
        if (p >= n_picture * n_token) {
            x[p] = sim_embed((int32_t)ids[p - n_picture * n_token]);
            continue;
        }
        x[p] = sim_patch(pictures[p / n_token], p % n_token);
        for (uint32_t l = 0; l < config->vision.n_layer; l++)
            x[p] = sim_encode_layer(x[p], l);
        x[p] = sim_project(x[p]);
    }
    for (uint32_t l = 0; l < n_layer; l++) {
        for (uint32_t p = 0; p < n_prefix; p++)
            sum[l] += sim_seen(sim_cell(x[p], l), p);
        for (uint32_t p = 0; p < n_prefix; p++)
            x[p] = sim_decode_layer(x[p], sum[l], l);
    }
    last = x[n_prefix - 1];
    for (uint32_t i = 0; i < n_out; i++) {
        out[i] = sim_choice(last, config->text.vocab);
        last = sim_embed((int32_t)out[i]);
        for (uint32_t l = 0; l < n_layer; l++) {
            sum[l] += sim_seen(sim_cell(last, l), n_prefix + i);
            last = sim_decode_layer(last, sum[l], l);
        }
    }
    free(sum);
    free(x);
    return true;
}
