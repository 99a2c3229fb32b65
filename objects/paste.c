/* A decoded mask into its box of the picture: objects/codec.h, esp_codec_paste. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "objects/codec.h"

/* Which of the mask's rows (or columns) a pixel of the box mixes, and how. */
struct mix {
    uint32_t first, n;
    float weight[ESP_CODEC_SIDE];
};

static void make_mix(struct mix *m, double centre, double support)
{
    double first = ceil(centre - support - 0.5), sum = 0.0, w[ESP_CODEC_SIDE];

    m->first = first < 0.0 ? 0 : first > ESP_CODEC_SIDE - 1 ? ESP_CODEC_SIDE - 1 : (uint32_t)first;
    for (m->n = 0; m->first + m->n < ESP_CODEC_SIDE; m->n++) {
        double far = fabs(m->first + m->n + 0.5 - centre) / support;

        if (far >= 1.0 && m->n > 0)
            break;
        w[m->n] = far < 1.0 ? 1.0 - far : 0.0;
        sum += w[m->n];
    }
    for (uint32_t i = 0; i < m->n; i++)
        m->weight[i] = (float)(w[i] / sum);
}

/* The pixels whose centres lie from lo to hi: the first, and how many; of 0 .. side - 1. */
static uint32_t pixels_within(uint32_t *first, double lo, double hi, uint32_t side)
{
    double from = fmax(0.0, ceil(lo - 0.5)), to = fmin(side, ceil(hi - 0.5));

    *first = from < to ? (uint32_t)from : 0;
    return from < to ? (uint32_t)(to - from) : 0; /* nothing either where lo or hi is NaN */
}

/* n mixes, for the pixels from first on of a box from lo to hi. */
static struct mix *make_mixes(uint32_t first, uint32_t n, double lo, double hi)
{
    double scale = ESP_CODEC_SIDE / (hi - lo);
    struct mix *m = calloc(n, sizeof *m);

    for (uint32_t i = 0; m && i < n; i++)
        make_mix(&m[i], (first + i + 0.5 - lo) * scale, fmax(scale, 1.0));
    return m;
}

esp_status esp_codec_paste(uint8_t *out, uint32_t height, uint32_t width, const float mask[ESP_CODEC_PIXELS],
                           const double box[4], struct esp_err *err)
{
    struct mix *down = NULL, *across = NULL;
    float *wide = NULL; /* f32[64, n_x]: the mask stretched across only */
    uint32_t x0, y0, n_y, n_x;
    esp_status st = ESP_OK;

    if (!isfinite(box[0]) || !isfinite(box[1]) || !isfinite(box[2]) || !isfinite(box[3]))
        return ESP_OK;
    n_y = pixels_within(&y0, box[0], box[2], height);
    n_x = pixels_within(&x0, box[1], box[3], width);
    if (n_y == 0 || n_x == 0)
        return ESP_OK;
    down = make_mixes(y0, n_y, box[0], box[2]);
    across = make_mixes(x0, n_x, box[1], box[3]);
    wide = calloc((size_t)ESP_CODEC_SIDE * n_x, sizeof *wide);
    if (!down || !across || !wide) {
        st = esp_fail(err, ESP_E_NOMEM, "mask of %u x %u pixels", n_x, n_y);
        goto done;
    }
    for (uint32_t row = 0; row < ESP_CODEC_SIDE; row++)
        for (uint32_t x = 0; x < n_x; x++)
            for (uint32_t i = 0; i < across[x].n; i++)
                wide[(size_t)row * n_x + x] +=
                    across[x].weight[i] * mask[row * ESP_CODEC_SIDE + across[x].first + i];
    for (uint32_t y = 0; y < n_y; y++)
        for (uint32_t x = 0; x < n_x; x++) {
            float sum = 0.0f;

            for (uint32_t i = 0; i < down[y].n; i++)
                sum += down[y].weight[i] * wide[(size_t)(down[y].first + i) * n_x + x];
            if (sum > 0.5f)
                out[(size_t)(y0 + y) * width + x0 + x] = 1;
        }
done:
    free(down);
    free(across);
    free(wide);
    return st;
}
