/*
 * Norms against float64: LayerNorm, RMSNorm, RMSNorm added, and the rows that somebody wants picked out; ragged and
 * published widths, with and without outliers.
 */
#include "tests/kernel/rig.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/support/compare.h"
#include "tests/support/ref.h"

struct norm_case {
    uint32_t rows, width, mode;
    uint32_t outliers; /* channels 1e4 times as large */
    float std, mean;   /* of the rest of x */
    uint32_t wants;    /* 0: all rows; else so many picked ones */
};

/*
 * A mean over a row is a sum of 64 lanes folded pairwise: its error is far below 2^-24 * sqrt(D); subtracting the mean,
 * root, quotient and product round once each. 2^-24 * 6 together; one element may be off by 2^-24 of itself six times,
 * and the largest element is up to sqrt(D) times its row's scale: that is what an outlier is. A mean of a thousand
 * deviations costs its digits when it is subtracted: LayerNorm answers for the scale of x - mean, and the rounding of
 * the mean itself stands at 2^-24 of the mean.
 */
static double tolerance(const struct norm_case *c)
{
    return 0x1p-24 * (6 + 2 * fabsf(c->mean) / c->std);
}

static double row_tolerance(const struct norm_case *c)
{
    return tolerance(c) * (c->outliers ? 4 * sqrt(c->width) : 10);
}

static const struct norm_case cases[] = {
    /* rows, width, mode, outliers, std, mean, wants */
    {1, 1, ESP_NORM_RMS, 0, 1, 0, 0},          {3, 3, ESP_NORM_LAYER, 0, 1, 0, 0},
    {2, 5, ESP_NORM_RMS, 0, 1, 0, 0},          {3, 31, ESP_NORM_LAYER, 0, 1, 0, 0},
    {3, 33, ESP_NORM_RMS_ADD, 0, 1, 0, 0},     {17, 144, ESP_NORM_LAYER, 0, 1, 0, 0},
    {17, 144, ESP_NORM_RMS, 0, 1, 0, 0},       {17, 144, ESP_NORM_RMS_ADD, 0, 1, 0, 0},
    {5, 255, ESP_NORM_LAYER, 0, 1, 0, 0},      {5, 257, ESP_NORM_RMS, 0, 1, 0, 0},
    {65, 1152, ESP_NORM_LAYER, 0, 1, 0, 0},    {65, 1152, ESP_NORM_LAYER, 4, 1, 0, 0},
    {9, 1152, ESP_NORM_LAYER, 0, 1, 1000, 0},  /* E[x^2] - E[x]^2 would lose every digit */
    {9, 1152, ESP_NORM_LAYER, 0, 1e-4f, 0, 0}, /* eps counts */
    {65, 2048, ESP_NORM_RMS, 0, 1, 0, 0},      {65, 2048, ESP_NORM_RMS, 4, 1, 0, 0},
    {65, 2048, ESP_NORM_RMS_ADD, 4, 1, 0, 0},  {9, 2048, ESP_NORM_RMS, 0, 1e-4f, 0, 0},
    {9, 2048, ESP_NORM_RMS, 4, 1e10f, 0, 0}, /* squares of 1e28: far, but in range */
    {2, 16384, ESP_NORM_RMS, 4, 1, 0, 0},      {9, 2304, ESP_NORM_RMS, 4, 1, 0, 3},
    {30, 2048, ESP_NORM_RMS, 4, 1, 0, 8},      {30, 144, ESP_NORM_RMS, 0, 1, 0, 1},
};

static bool run_case(const struct norm_case *c, uint64_t seed)
{
    const uint32_t n_out = c->wants ? c->wants : c->rows;
    const size_t n = (size_t)n_out * c->width;
    struct esp_want wants[ESP_HEAD_ROWS] = {0};
    struct esp_norm_how how = {
        .mode = c->mode, .width = c->width, .bias = ESP_NONE, .eps = 1e-6f, .pick = c->wants};
    float *x = esp_rig_alloc((size_t)c->rows * c->width, sizeof *x);
    float *picked = esp_rig_alloc(n, sizeof *picked), *y = esp_rig_alloc(n, sizeof *y);
    float *w = esp_rig_alloc(c->width, sizeof *w), *b = esp_rig_alloc(c->width, sizeof *b);
    float *y0 = esp_rig_alloc(n, sizeof *y0);
    double *want = esp_rig_alloc(n, sizeof *want);
    struct esp_rows rx, ry, spare;
    struct esp_rand r;
    char what[128];
    bool ok;

    esp_rand_init(&r, seed);
    esp_rand_fill_outliers(&r, x, c->rows, c->width, (double)c->std, c->outliers, 1e4);
    for (size_t i = 0; i < (size_t)c->rows * c->width; i++)
        x[i] += c->mean;
    esp_rand_fill(&r, w, c->width, 0.5);
    esp_rand_fill(&r, b, c->width, 0.5);
    esp_rand_fill(&r, y0, n, 2);
    for (uint32_t i = 0; i < n_out; i++) {
        const uint32_t row = c->wants ? c->rows - 1 - i * (c->rows / n_out) : i;
        if (c->wants)
            wants[i].row = row;
        for (uint32_t d = 0; d < c->width; d++)
            picked[(size_t)i * c->width + d] = x[(size_t)row * c->width + d];
    }
    esp_rig_begin(c->rows, 0, 0);
    rx = esp_rig_rows(c->rows, c->width, x);
    ry = esp_rig_rows(n_out, c->width, c->mode == ESP_NORM_RMS_ADD ? y0 : NULL);
    spare = esp_rig_rows(2, c->width, NULL); /* behind y: nobody's */
    how.weight = esp_rig_vec(w, c->width);
    if (c->mode == ESP_NORM_LAYER)
        how.bias = esp_rig_vec(b, c->width);
    esp_rig_ready();
    esp_op_norm(&esp_rig.rec, ry, rx, &how);
    esp_rig.batch.count[ESP_COUNT_ROWS] = c->rows;
    esp_batch_wants(&esp_rig.batch, wants, c->wants);
    esp_rig_run();
    esp_rig_get(y, ry, n_out, c->width);
    esp_rig_check_unwritten(spare, 0, 2);
    esp_rig_end();

    if (c->mode == ESP_NORM_LAYER)
        esp_ref_layernorm(want, picked, w, b, n_out, c->width, (double)how.eps);
    else
        esp_ref_rmsnorm(want, picked, w, n_out, c->width, (double)how.eps);
    for (size_t i = 0; c->mode == ESP_NORM_RMS_ADD && i < n; i++)
        want[i] += y0[i];
    snprintf(what, sizeof what, "rows=%u width=%u mode=%u outliers=%u std=%g mean=%g wants=%u", c->rows,
             c->width, c->mode, c->outliers, (double)c->std, (double)c->mean, c->wants);
    ok = esp_check_close(what, y, want, n_out, c->width, tolerance(c), row_tolerance(c));
    free(x);
    free(picked);
    free(y);
    free(w);
    free(b);
    free(y0);
    free(want);
    return ok;
}

static void test_norms(void **state)
{
    uint32_t n_bad = 0;

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        n_bad += !run_case(&cases[i], 2000 + i);
    assert_int_equal(n_bad, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_norms)};
    return esp_rig_main("norm", tests, sizeof tests / sizeof tests[0]);
}
