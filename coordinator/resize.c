#include "coordinator/resize.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define WEIGHT_BITS 22 /* 8 of level and 2 to spare for overshoot make 32 */
#define PI          3.14159265358979323846

/* ---- filters, of a distance in (widened) input pixels ---- */

static double box(double x)
{
    return x > -0.5 && x <= 0.5 ? 1.0 : 0.0;
}

static double bilinear(double x)
{
    x = fabs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

static double hamming(double x)
{
    x = fabs(x);
    if (x == 0.0)
        return 1.0;
    if (x >= 1.0)
        return 0.0;
    x *= PI;
    return sin(x) / x * (0.54f + 0.46f * cos(x)); /* single-precision constants: Pillow has them so */
}

static double bicubic(double x)
{
    const double a = -0.5;

    x = fabs(x);
    if (x < 1.0)
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
    if (x < 2.0)
        return (((x - 5.0) * x + 8.0) * x - 4.0) * a;
    return 0.0;
}

static double sinc(double x)
{
    if (x == 0.0)
        return 1.0;
    x *= PI;
    return sin(x) / x;
}

static double lanczos(double x)
{
    return x >= -3.0 && x < 3.0 ? sinc(x) * sinc(x / 3.0) : 0.0;
}

static const struct kernel {
    double (*at)(double x);
    double support;
} kernels[] = {
    [ESP_RESAMPLE_NEAREST] = {NULL, 0.0},      [ESP_RESAMPLE_LANCZOS] = {lanczos, 3.0},
    [ESP_RESAMPLE_BILINEAR] = {bilinear, 1.0}, [ESP_RESAMPLE_BICUBIC] = {bicubic, 2.0},
    [ESP_RESAMPLE_BOX] = {box, 0.5},           [ESP_RESAMPLE_HAMMING] = {hamming, 1.0},
};

/* ---- one axis: which inputs make an output, and how much of each ---- */

struct axis {
    uint32_t n_out;
    uint32_t n_tap;   /* row stride of weight */
    uint32_t *first;  /* [n_out] first input */
    uint32_t *n_used; /* [n_out] inputs, at most n_tap */
    int32_t *weight;  /* [n_out, n_tap], in 2^-22 */
};

static void axis_finish(struct axis *axis)
{
    free(axis->first);
    free(axis->n_used);
    free(axis->weight);
}

static esp_status axis_init(struct axis *axis, uint32_t n_in, uint32_t n_out, const struct kernel *kernel,
                            struct esp_err *err)
{
    const double step = (double)n_in / n_out;
    const double widen = step < 1.0 ? 1.0 : step;
    const double support = kernel->support * widen;
    const double inverse = 1.0 / widen; /* multiplied by, not divided by: the last bit counts */
    double *exact = NULL;
    size_t n_weight;

    memset(axis, 0, sizeof *axis);
    axis->n_out = n_out;
    axis->n_tap = (uint32_t)ceil(support) * 2 + 1;
    if (esp_mul(&n_weight, n_out, axis->n_tap)) {
        axis->first = calloc(n_out, sizeof *axis->first);
        axis->n_used = calloc(n_out, sizeof *axis->n_used);
        axis->weight = calloc(n_weight, sizeof *axis->weight);
        exact = calloc(axis->n_tap, sizeof *exact);
    }
    if (!axis->first || !axis->n_used || !axis->weight || !exact) {
        free(exact);
        return esp_fail(err, ESP_E_NOMEM, "resize: weights of %u taps for %u pixels", axis->n_tap, n_out);
    }
    for (uint32_t o = 0; o < n_out; o++) {
        const double centre = (o + 0.5) * step;
        const double low = centre - support + 0.5, high = centre + support + 0.5;
        const uint32_t first = low < 0.0 ? 0 : (uint32_t)low;
        const uint32_t end = high > n_in ? n_in : (uint32_t)high;
        int32_t *weight = axis->weight + (size_t)o * axis->n_tap;
        double sum = 0.0;

        for (uint32_t i = first; i < end; i++) {
            exact[i - first] = kernel->at((i - centre + 0.5) * inverse);
            sum += exact[i - first];
        }
        for (uint32_t i = 0; i < end - first; i++) {
            const double w = sum != 0.0 ? exact[i] / sum : exact[i];
            weight[i] = (int32_t)(w * (1 << WEIGHT_BITS) + (w < 0.0 ? -0.5 : 0.5));
        }
        axis->first[o] = first;
        axis->n_used[o] = end - first;
    }
    free(exact);
    return ESP_OK;
}

static uint8_t clip8(int32_t sum)
{
    const int32_t level = sum >> WEIGHT_BITS; /* arithmetic: rounds down, below zero too */

    return level < 0 ? 0 : level > 255 ? 255 : (uint8_t)level;
}

/* u8[height, n_in, 3] to u8[height, n_out, 3] */
static void pass_across(uint8_t *out, const uint8_t *in, uint32_t n_in, uint32_t height,
                        const struct axis *axis)
{
    for (uint32_t y = 0; y < height; y++, in += 3 * (size_t)n_in) {
        for (uint32_t o = 0; o < axis->n_out; o++, out += 3) {
            const uint8_t *pixel = in + 3 * (size_t)axis->first[o];
            const int32_t *weight = axis->weight + (size_t)o * axis->n_tap;
            int32_t r = 1 << (WEIGHT_BITS - 1), g = r, b = r;

            for (uint32_t i = 0; i < axis->n_used[o]; i++, pixel += 3) {
                r += pixel[0] * weight[i];
                g += pixel[1] * weight[i];
                b += pixel[2] * weight[i];
            }
            out[0] = clip8(r);
            out[1] = clip8(g);
            out[2] = clip8(b);
        }
    }
}

/* u8[n_in, width, 3] to u8[n_out, width, 3]; sum is scratch, i32[width, 3] */
static void pass_down(uint8_t *out, const uint8_t *in, uint32_t width, const struct axis *axis, int32_t *sum)
{
    const size_t n = 3 * (size_t)width;

    for (uint32_t o = 0; o < axis->n_out; o++, out += n) {
        const int32_t *weight = axis->weight + (size_t)o * axis->n_tap;

        for (size_t x = 0; x < n; x++)
            sum[x] = 1 << (WEIGHT_BITS - 1);
        for (uint32_t i = 0; i < axis->n_used[o]; i++) { /* whole rows: in order through memory */
            const uint8_t *row = in + (axis->first[o] + (size_t)i) * n;
            const int32_t w = weight[i];

            for (size_t x = 0; x < n; x++)
                sum[x] += row[x] * w;
        }
        for (size_t x = 0; x < n; x++)
            out[x] = clip8(sum[x]);
    }
}

static void nearest(uint8_t *out, uint32_t out_width, uint32_t out_height, const struct esp_image *in)
{
    const double step_x = (double)in->width / out_width, step_y = (double)in->height / out_height;
    double at_y = step_y * 0.5;

    /* Positions are summed up, not multiplied out: so does Pillow, and the roundings decide ties. */
    for (uint32_t y = 0; y < out_height; y++, at_y += step_y) {
        const uint32_t iy = at_y < in->height ? (uint32_t)at_y : in->height - 1;
        const uint8_t *row = in->rgb + 3 * (size_t)in->width * iy;
        double at_x = step_x * 0.5;

        for (uint32_t x = 0; x < out_width; x++, at_x += step_x, out += 3) {
            const uint32_t ix = at_x < in->width ? (uint32_t)at_x : in->width - 1;
            memcpy(out, row + 3 * (size_t)ix, 3);
        }
    }
}

esp_status esp_resize(uint8_t *out, uint32_t out_width, uint32_t out_height, const struct esp_image *in,
                      enum esp_resample filter, struct esp_err *err)
{
    const bool across = in->width != out_width, down = in->height != out_height;
    const bool down_first = in->height > (uint64_t)in->width * 100 && out_height < in->height;
    esp_status st = ESP_OK;
    struct axis axis_x = {0}, axis_y = {0};
    uint8_t *between = NULL; /* after the first of two passes */
    int32_t *sum = NULL;
    size_t n_between;

    if (out_width == 0 || out_height == 0 || in->width == 0 || in->height == 0)
        return esp_fail(err, ESP_E_ARG, "resize %u x %u to %u x %u", in->width, in->height, out_width,
                        out_height);
    if ((unsigned)filter >= sizeof kernels / sizeof *kernels)
        return esp_fail(err, ESP_E_ARG, "resize: no filter %u", (unsigned)filter);
    if (!across && !down) {
        memcpy(out, in->rgb, 3 * (size_t)out_width * out_height);
        return ESP_OK;
    }
    if (filter == ESP_RESAMPLE_NEAREST) {
        nearest(out, out_width, out_height, in);
        return ESP_OK;
    }
    if (across)
        st = axis_init(&axis_x, in->width, out_width, &kernels[filter], err);
    if (!st && down)
        st = axis_init(&axis_y, in->height, out_height, &kernels[filter], err);
    if (st)
        goto done;
    if (down)
        sum = malloc(3 * sizeof *sum * (down_first || !across ? in->width : out_width));
    if (across && down) {
        if (esp_mul(&n_between, down_first ? in->width : out_width, down_first ? out_height : in->height) &&
            esp_mul(&n_between, n_between, 3))
            between = malloc(n_between);
    }
    if ((down && !sum) || (across && down && !between)) {
        st = esp_fail(err, ESP_E_NOMEM, "resize %u x %u to %u x %u", in->width, in->height, out_width,
                      out_height);
        goto done;
    }
    if (!down) {
        pass_across(out, in->rgb, in->width, in->height, &axis_x);
    } else if (!across) {
        pass_down(out, in->rgb, in->width, &axis_y, sum);
    } else if (down_first) {
        pass_down(between, in->rgb, in->width, &axis_y, sum);
        pass_across(out, between, in->width, out_height, &axis_x);
    } else {
        pass_across(between, in->rgb, in->width, in->height, &axis_x);
        pass_down(out, between, out_width, &axis_y, sum);
    }
done:
    free(between);
    free(sum);
    axis_finish(&axis_x);
    axis_finish(&axis_y);
    return st;
}

void esp_pixels_normalise(float *out, const uint8_t *rgb, uint32_t side,
                          const struct esp_preprocess_config *pre)
{
    const size_t n = (size_t)side * side;

    for (int c = 0; c < 3; c++) {
        float value[256];

        for (int level = 0; level < 256; level++)
            value[level] = ((float)(level * pre->rescale_factor) - pre->mean[c]) / pre->std[c];
        for (size_t i = 0; i < n; i++)
            out[c * n + i] = value[rgb[3 * i + c]];
    }
}

esp_status esp_image_preprocess(float *out, const struct esp_image *image, const struct esp_config *config,
                                struct esp_err *err)
{
    const uint32_t side = config->vision.image_size;
    esp_status st;
    uint8_t *rgb;
    size_t n;

    if (!esp_mul(&n, side, side) || !esp_mul(&n, n, 3) || n == 0)
        return esp_fail(err, ESP_E_ARG, "image size %u", side);
    rgb = malloc(n);
    if (!rgb)
        return esp_fail(err, ESP_E_NOMEM, "%u x %u pixels", side, side);
    st = esp_resize(rgb, side, side, image, config->preprocess.resample, err);
    if (!st)
        esp_pixels_normalise(out, rgb, side, &config->preprocess);
    free(rgb);
    return st;
}
