/*
 * What moves rows about: the embedding with image features among the tokens, rows in and out, patches, the position
 * embedding, and the patch embedding of SigLIP put together.
 */
#include "tests/kernel/rig.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/compare.h"
#include "tests/support/ref.h"

struct embed_case {
    uint32_t vocab, width, rows, n_feature;
    enum esp_dtype dtype;
    uint32_t parts;
    enum esp_wtype want;
};

static const struct embed_case embeds[] = {
    /* vocab, width, rows, features, dtype, parts, as */
    {1, 1, 1, 0, ESP_F32, 1, ESP_W_STORED},
    {70, 33, 9, 3, ESP_BF16, 1, ESP_W_STORED},
    {70, 33, 9, 3, ESP_F16, 2, ESP_W_STORED},
    {70, 33, 9, 3, ESP_F32, 3, ESP_W_STORED},
    {5535, 144, 65, 16, ESP_BF16, 8, ESP_W_STORED},
    {300, 2048, 25, 8, ESP_BF16, 1, ESP_W_STORED},
    {300, 2304, 25, 8, ESP_F32, 2, ESP_W_STORED},
    {257216, 32, 40, 3, ESP_BF16, 3, ESP_W_STORED},
    {1, 1, 1, 0, ESP_BF16, 1, ESP_W_Q8},
    {1, 1, 1, 0, ESP_BF16, 1, ESP_W_Q4},
    {70, 33, 9, 3, ESP_F32, 3, ESP_W_Q8},
    {70, 33, 9, 3, ESP_F16, 3, ESP_W_Q4},
    {300, 2304, 25, 8, ESP_BF16, 2, ESP_W_Q8},
    {300, 2304, 25, 8, ESP_BF16, 2, ESP_W_Q4},
};

/* One rounding: exact weights times sqrt(D). Features are copied. */
static void test_embed(void **state)
{
    for (size_t i = 0; i < sizeof embeds / sizeof embeds[0]; i++) {
        const struct embed_case *c = &embeds[i];
        const float scale = sqrtf((float)c->width);
        const uint32_t n_store = c->n_feature + 2;
        const size_t n = (size_t)c->rows * c->width;
        struct esp_weights_made w;
        struct esp_pack_spec spec = {.n_part = 1, .want = c->want, .cls = esp_rig.vk->cls};
        struct esp_rows ry, rf;
        struct esp_mat m;
        struct esp_rand r;
        uint32_t *id = esp_rig_alloc(c->rows, sizeof *id), feature = 0;
        float *store = esp_rig_alloc((size_t)n_store * c->width, sizeof *store),
              *y = esp_rig_alloc(n, sizeof *y);
        double *want = esp_rig_alloc(n, sizeof *want);
        char what[96];

        esp_rand_init(&r, 6000 + i);
        esp_weights_make(&w, &r, c->dtype, c->vocab, c->width, 1);
        spec.part[0].tensor = &w.tensor;
        esp_rand_fill_outliers(&r, store, n_store, c->width, 1, 1, 1e4);
        esp_rand_fill_u32(&r, id, c->rows, c->vocab);
        id[0] = c->vocab - 1;
        esp_rig_begin(c->rows, 0, 0);
        rf = esp_rig_rows(n_store, c->width, store);
        ry = esp_rig_rows(c->rows + 1, c->width, NULL);
        m = esp_rig_mat(&spec, c->parts, 1);
        esp_rig_ready();
        esp_op_embed(&esp_rig.rec, ry, rf, &m, scale);
        esp_weights_want(&w, c->want);
        esp_ref_embed(want, w.values, id, c->rows, c->width, (double)scale);
        for (uint32_t t = 0; t < c->rows; t++) {
            const bool is_feature = t % 3 == 1 && feature < c->n_feature;
            const uint32_t f = n_store - 1 - feature; /* not in order */
            esp_batch_row(&esp_rig.batch, is_feature ? ESP_ROW_FEATURE | f : id[t], t, t + 1, 0, 0);
            for (uint32_t d = 0; is_feature && d < c->width; d++)
                want[(size_t)t * c->width + d] = store[(size_t)f * c->width + d];
            feature += is_feature;
        }
        assert_int_equal(feature, c->n_feature);
        esp_rig_run();
        esp_rig_get(y, ry, c->rows, c->width);
        esp_rig_check_unwritten(ry, c->rows, c->rows + 1);
        esp_rig_end();
        snprintf(what, sizeof what, "embedding %u x %u, %u rows, %s as %s", c->vocab, c->width, c->rows,
                 esp_dtype_name(c->dtype), esp_wtype_name(c->want));
        assert_true(esp_check_close(what, y, want, c->rows, c->width, 0x1p-24, 0x1p-20));
        esp_weights_free(&w);
        free(id);
        free(store);
        free(y);
        free(want);
    }
}

/* In and out again: the same bits, padding zero, nothing beyond. */
static void test_in_and_out(void **state)
{
    static const struct {
        uint32_t rows, width, out_at;
        enum esp_count count;
    } moves[] = {{1, 1, 0, ESP_COUNT_ROWS},        {3, 31, 5, ESP_COUNT_ROWS},
                 {7, 33, 1, ESP_COUNT_WANTS},      {65, 144, 0, ESP_COUNT_ROWS},
                 {256, 1152, 3, ESP_COUNT_ROWS},   {2, 2048, 0, ESP_COUNT_ROWS},
                 {8, 5535, 4144, ESP_COUNT_WANTS}, {1, 257216, 0, ESP_COUNT_ROWS}};

    for (size_t i = 0; i < sizeof moves / sizeof moves[0]; i++) {
        const uint32_t rows = moves[i].rows, width = moves[i].width, at = moves[i].out_at;
        const size_t n = (size_t)rows * width;
        struct esp_want wants[ESP_HEAD_ROWS] = {0};
        float *x = esp_rig_alloc(n, sizeof *x), *y = esp_rig_alloc(n, sizeof *y);
        struct esp_rows r;
        struct esp_rand rand;
        esp_rand_init(&rand, 6100 + i);
        esp_rand_fill_outliers(&rand, x, rows, width, 1, 1, 1e4);
        esp_rig_begin(rows, 0, 0);
        r = esp_rig_rows(rows + 1, width, NULL);
        esp_rig_host(x, n, n + at + 9);
        esp_rig_ready();
        esp_op_rows_in(&esp_rig.rec, r, width);
        esp_op_rows_out(&esp_rig.rec, r, width, at, moves[i].count);
        esp_rig.batch.count[ESP_COUNT_ROWS] = rows;
        if (moves[i].count == ESP_COUNT_WANTS)
            esp_batch_wants(&esp_rig.batch, wants, rows);
        esp_rig_run();
        esp_rig_get(y, r, rows, width);
        esp_rig_check_unwritten(r, rows, rows + 1);
        assert_memory_equal(y, x, n * sizeof *x);
        assert_memory_equal(esp_rig.out.at + at, x, n * sizeof *x);
        for (uint32_t d = 0; d < at + 9; d++)
            assert_true(isnan(esp_rig.out.at[d < at ? d : n + d]));
        esp_rig_end();
        free(x);
        free(y);
    }
}

/* Patches by the formula, and the whole patch embedding, in float64; also where the last pixels fit no patch. */
static void test_patches(void **state)
{
    static const struct {
        uint32_t channels, size, patch, width;
    } pictures[] = {{3, 56, 14, 144}, {3, 59, 14, 33}, {1, 8, 8, 5},
                    {3, 9, 3, 1},     {4, 10, 2, 64},  {3, 224, 14, 1152}};

    for (size_t i = 0; i < sizeof pictures / sizeof pictures[0]; i++) {
        const uint32_t c = pictures[i].channels, s = pictures[i].size, p = pictures[i].patch;
        const uint32_t side = s / p, rows = side * side, k = c * p * p, width = pictures[i].width;
        const uint32_t stride = (uint32_t)esp_round_up(width, 32);
        const struct esp_matmul_how how = {.epilogue = ESP_EPI_NONE, .count = ESP_COUNT_ROWS};
        struct esp_weights_made w;
        struct esp_pack_spec spec = {.n_part = 1, .cls = esp_rig.vk->cls};
        struct esp_rand r;
        struct esp_rows patches, y;
        struct esp_mat m;
        uint32_t pos_at;
        float *pixels = esp_rig_alloc((size_t)c * s * s, sizeof *pixels),
              *bias = esp_rig_alloc(width, sizeof *bias);
        float *pos = esp_rig_alloc((size_t)rows * width, sizeof *pos);
        float *padded = esp_rig_alloc((size_t)rows * stride, sizeof *padded);
        float *got = esp_rig_alloc((size_t)rows * (k > width ? k : width), sizeof *got);
        double *want = esp_rig_alloc((size_t)rows * width, sizeof *want);

        esp_rand_init(&r, 6200 + i);
        esp_rand_fill_uniform(&r, pixels, (size_t)c * s * s, -1, 1);
        esp_rand_fill(&r, bias, width, 1);
        esp_rand_fill(&r, pos, (size_t)rows * width, 1);
        esp_weights_make(&w, &r, ESP_BF16, width, k, 1 / sqrt(k));
        w.tensor.n_dim = 4; /* [D, C, P, P], as stored */
        w.tensor.shape[1] = c;
        w.tensor.shape[2] = w.tensor.shape[3] = p;
        spec.part[0].tensor = &w.tensor;
        for (uint32_t t = 0; t < rows; t++)
            memcpy(padded + (size_t)t * stride, pos + (size_t)t * width, width * sizeof *pos);
        esp_rig_begin(rows, 0, 0);
        patches = esp_rig_rows(rows + 1, k, NULL);
        y = esp_rig_rows(rows + 1, width, NULL);
        m = esp_rig_mat(&spec, 1, 1);
        m.bias = esp_rig_vec(bias, width);
        pos_at = esp_rig_vec(padded, rows * stride);
        esp_rig_host(pixels, (size_t)c * s * s, 0);
        esp_rig_ready();
        esp_op_im2col(&esp_rig.rec, patches, c, s, p);
        esp_op_matmul(&esp_rig.rec, y, patches, &m, &how);
        esp_op_add_vec(&esp_rig.rec, y, pos_at);
        esp_rig.batch.count[ESP_COUNT_ROWS] = rows;
        esp_rig_run();
        esp_rig_get(got, patches, rows, k);
        esp_rig_check_unwritten(patches, rows, rows + 1);
        for (uint32_t t = 0; t < rows; t++)
            for (uint32_t j = 0; j < k; j++) {
                const uint32_t row = t / side * p + j / p % p, col = t % side * p + j % p;
                assert_true(got[(size_t)t * k + j] == pixels[((size_t)(j / p / p) * s + row) * s + col]);
            }
        esp_rig_get(got, y, rows, width);
        esp_rig_check_unwritten(y, rows, rows + 1);
        esp_rig_end();
        esp_ref_patch_embed(want, pixels, w.values, bias, pos, c, s, p, width);
        assert_true(esp_check_close("patch embedding", got, want, rows, width, 0x1p-24 * (8 + 0.75 * sqrt(k)),
                                    0x1p-24 * 8 * (8 + 0.75 * sqrt(k))));
        esp_weights_free(&w);
        free(pixels);
        free(bias);
        free(pos);
        free(padded);
        free(got);
        free(want);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_embed), cmocka_unit_test(test_in_and_out),
                                       cmocka_unit_test(test_patches)};
    return esp_rig_main("rows", tests, sizeof tests / sizeof tests[0]);
}
