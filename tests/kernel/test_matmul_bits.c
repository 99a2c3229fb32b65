/*
 * Products in which the layout matters: the bits of a row are its own whatever else is in the step, heads are padded
 * and found, gate and up of a bias are where they belong, and the whole vocabulary of the published model is there.
 */
#include "tests/kernel/rig.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/compare.h"
#include "tests/support/ref.h"

/* y f32[rows, n] = epilogue(x W^T), for rows x[0 .. rows). */
static void product(float *y, const struct esp_pack_spec *spec, const float *x, uint32_t rows, uint32_t n,
                    uint32_t k, uint32_t epilogue, uint32_t few, uint32_t n_part)
{
    struct esp_matmul_how how = {.epilogue = epilogue, .few = few, .count = ESP_COUNT_ROWS, .cap = 30};
    struct esp_rows rx, ry;
    struct esp_mat m;
    float *zeros = esp_rig_alloc((size_t)rows * n, sizeof *zeros);

    esp_rig_begin(rows, 0, 0);
    rx = esp_rig_rows(rows, k, x);
    ry = esp_rig_rows(rows, n, zeros);
    m = esp_rig_mat(spec, n_part, 1);
    how.scale_at = esp_rig_rows(1, rows, NULL).at;
    esp_rig_ready();
    esp_op_matmul(&esp_rig.rec, ry, rx, &m, &how);
    esp_rig.batch.count[ESP_COUNT_ROWS] = rows;
    esp_rig_run();
    esp_rig_get(y, ry, rows, n);
    esp_rig_end();
    free(zeros);
}

/*
 * A row's bits do not depend on the other rows, on their number, on how many a workgroup takes (within matvec), or on
 * how the matrix is cut into chunks: the same sequence gets the same logits alone and in any batch.
 */
static void test_bits_of_a_row(void **state)
{
    static const struct {
        uint32_t n, k, epilogue;
        enum esp_dtype dtype;
        enum esp_wtype want;
    } shapes[] = {
        {144, 304, ESP_EPI_NONE, ESP_BF16, ESP_W_STORED}, {404, 216, ESP_EPI_GEGLU, ESP_BF16, ESP_W_STORED},
        {304, 1152, ESP_EPI_GELU, ESP_F16, ESP_W_STORED}, {144, 404, ESP_EPI_ADD, ESP_F32, ESP_W_STORED},
        {404, 216, ESP_EPI_GEGLU, ESP_BF16, ESP_W_Q8},    {144, 304, ESP_EPI_ADD, ESP_BF16, ESP_W_Q8},
        {404, 216, ESP_EPI_GEGLU, ESP_BF16, ESP_W_Q4},    {144, 304, ESP_EPI_ADD, ESP_BF16, ESP_W_Q4}};
    const uint32_t max = 67;

    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        const uint32_t n = shapes[i].n, k = shapes[i].k, epi = shapes[i].epilogue;
        struct esp_weights_made w, up;
        struct esp_rand r;
        float *x = esp_rig_alloc((size_t)max * k, sizeof *x),
              *other = esp_rig_alloc((size_t)max * k, sizeof *x);
        float *want = esp_rig_alloc((size_t)max * n, sizeof *want),
              *y = esp_rig_alloc((size_t)max * n, sizeof *y);
        struct esp_pack_spec spec = {.n_part = 1, .want = shapes[i].want, .cls = esp_rig.vk->cls};

        esp_rand_init(&r, 7000 + i);
        esp_rand_fill_outliers(&r, x, max, k, 1, 2, 1e4);
        esp_rand_fill_outliers(&r, other, max, k, 100, 2, 1e4);
        esp_weights_make(&w, &r, shapes[i].dtype, n, k, 1 / sqrt(k));
        esp_weights_make(&up, &r, shapes[i].dtype, n, k, 1 / sqrt(k));
        spec.part[0].tensor = &w.tensor;
        spec.part[1].tensor = &up.tensor;
        spec.interleave = epi == ESP_EPI_GEGLU;
        spec.n_part = spec.interleave ? 2 : 1;
        for (uint32_t mode = 0; mode < 2; mode++) { /* many rows; a few */
            static const uint32_t fews[2][5] = {{0, 0, 0, 0, 0}, {1, 2, 4, 8, 8}};
            static const uint32_t rows[2][5] = {{1, 9, 64, 65, 17}, {1, 5, 3, 8, 17}};
            product(want, &spec, x, mode ? 17 : max, n, k, epi, fews[mode][0], 1);
            for (uint32_t v = 0; v < 5; v++) { /* row `me` of x among other rows */
                const uint32_t me = rows[mode][v] - 1, n_part = v == 2 ? 3 : 1;
                memcpy(other + (size_t)me * k, x + (size_t)me * k, k * sizeof *x);
                product(y, &spec, other, rows[mode][v], n, k, epi, fews[mode][v], n_part);
                if (memcmp(y + (size_t)me * n, want + (size_t)me * n, n * sizeof *y) != 0)
                    fail_msg("shape %zu, few=%u, %u rows: the last row has other bits", i, fews[mode][v],
                             rows[mode][v]);
            }
        }
        esp_weights_free(&w);
        esp_weights_free(&up);
        free(x);
        free(other);
        free(want);
        free(y);
    }
}

/* Q, K and V of padded heads in one product with their biases; then O, whose columns are such heads. */
static void test_heads(void **state)
{
    static const struct {
        uint32_t width, n_head, n_kv, head_dim, few;
    } shapes[] = {
        {144, 4, 4, 36, 0}, {144, 4, 2, 20, 0}, {216, 3, 1, 6, 2}, {64, 6, 2, 32, 4}, {1152, 16, 16, 72, 0}};
    const uint32_t rows = 5;

    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        const uint32_t d = shapes[i].width, h = shapes[i].head_dim, hp = esp_pack_head_dim(h);
        const uint32_t nq = shapes[i].n_head, nk = shapes[i].n_kv, n_all = nq + 2 * nk, n = n_all * h;
        const uint32_t count[3] = {nq, nk, nk};
        const struct esp_matmul_how how = {
            .epilogue = ESP_EPI_NONE, .few = shapes[i].few, .count = ESP_COUNT_ROWS};
        const double tol = 0x1p-24 * (8 + 0.75 * sqrt(d > nq * h ? d : nq * h));
        struct esp_weights_made w[3], b[3], o;
        struct esp_pack_spec qkv = {.n_part = 3, .cls = esp_rig.vk->cls},
                             out = {.n_part = 1, .k_heads = {nq, h}, .cls = esp_rig.vk->cls};
        struct esp_rows rx, rqkv, ry, rattn;
        struct esp_mat mqkv, mo;
        struct esp_rand r;
        float *x = esp_rig_alloc(rows * d, sizeof *x), *got = esp_rig_alloc(rows * n_all * hp, sizeof *got);
        float *tight = esp_rig_alloc(rows * n, sizeof *tight), *y = esp_rig_alloc(rows * d, sizeof *y);
        float *bias = esp_rig_alloc(n_all * hp + 32, sizeof *bias);
        float *attn = esp_rig_alloc(rows * nq * h, sizeof *attn),
              *spread = esp_rig_alloc(rows * nq * hp, sizeof *x);
        double *want = esp_rig_alloc(rows * n, sizeof *want),
               *part = esp_rig_alloc(rows * nq * h, sizeof *part);
        double *want_y = esp_rig_alloc(rows * d, sizeof *want_y);
        uint32_t head0 = 0;

        esp_rand_init(&r, 7100 + i);
        esp_rand_fill(&r, x, rows * d, 1);
        esp_rand_fill(&r, attn, rows * nq * h, 1);
        for (uint32_t t = 0; t < rows; t++)
            for (uint32_t e = 0; e < nq * h; e++)
                spread[t * nq * hp + e / h * hp + esp_head_place(e % h, h)] = attn[t * nq * h + e];
        for (uint32_t p = 0; p < 3; p++) {
            esp_weights_make(&w[p], &r, ESP_BF16, count[p] * h, d, 1 / sqrt(d));
            esp_weights_make(&b[p], &r, ESP_BF16, count[p] * h, 1, 1);
            b[p].tensor.n_dim = 1;
            qkv.part[p].tensor = &w[p].tensor;
            qkv.part[p].heads = (struct esp_pack_heads){count[p], h};
            esp_ref_matmul(part, x, w[p].values, b[p].values, rows, count[p] * h, d);
            for (uint32_t t = 0; t < rows; t++)
                memcpy(want + (size_t)t * n + head0 * h, part + (size_t)t * count[p] * h,
                       count[p] * h * sizeof *want);
            head0 += count[p];
        }
        esp_weights_make(&o, &r, ESP_BF16, d, nq * h, 1 / sqrt(nq * h));
        out.part[0].tensor = &o.tensor;
        esp_rig_begin(rows, 0, 0);
        rx = esp_rig_rows(rows, d, x);
        rattn = esp_rig_rows(rows, nq * hp, spread);
        rqkv = esp_rig_rows(rows, n_all * hp, NULL);
        ry = esp_rig_rows(rows, d, NULL);
        mqkv = esp_rig_mat(&qkv, 1, 1);
        mo = esp_rig_mat(&out, 1, 1);
        {
            const struct esp_pack_part parts[3] = {{&b[0].tensor, qkv.part[0].heads},
                                                   {&b[1].tensor, qkv.part[1].heads},
                                                   {&b[2].tensor, qkv.part[2].heads}};
            esp_pack_vector(bias, (uint32_t)esp_round_up(n_all * hp, 32), parts, 3);
            mqkv.bias = esp_rig_vec(bias, n_all * hp);
        }
        esp_rig_ready();
        esp_op_matmul(&esp_rig.rec, rqkv, rx, &mqkv, &how);
        esp_op_matmul(&esp_rig.rec, ry, rattn, &mo, &how);
        esp_rig.batch.count[ESP_COUNT_ROWS] = rows;
        esp_rig_run();
        esp_rig_get(got, rqkv, rows, n_all * hp);
        esp_rig_get(y, ry, rows, d);
        esp_rig_end();
        for (uint32_t t = 0; t < rows; t++)
            for (uint32_t e = 0; e < n; e++) {
                float *from = &got[((size_t)t * n_all + e / h) * hp + esp_head_place(e % h, h)];
                tight[(size_t)t * n + e] = *from;
                *from = 0;
            }
        for (size_t e = 0; e < (size_t)rows * n_all * hp; e++)
            if (got[e] != 0)
                fail_msg("shape %zu: padding of a head is %g", i, (double)got[e]);
        esp_ref_matmul(want_y, attn, o.values, NULL, rows, d, nq * h);
        assert_true(esp_check_close("QKV", tight, want, rows, n, tol, 8 * tol));
        assert_true(esp_check_close("O", y, want_y, rows, d, tol, 8 * tol));
        for (uint32_t p = 0; p < 3; p++) {
            esp_weights_free(&w[p]);
            esp_weights_free(&b[p]);
        }
        esp_weights_free(&o);
        free(x);
        free(got);
        free(tight);
        free(y);
        free(bias);
        free(attn);
        free(spread);
        free(want);
        free(part);
        free(want_y);
    }
}

/*
 * Logits over 257216 tokens of width 2048, 1 GiB of weights in two chunks, for one want and for two. The embedding is
 * 2048 rows over and over, so that float64 can keep up.
 */
static void test_vocabulary(void **state)
{
    static const uint32_t fews[2] = {1, 2};
    const uint32_t base = 2048 - 32, d = 2048, times = 128,
                   rows = 2; /* 258048: a little more than the model's */
    const struct esp_matmul_how how = {.epilogue = ESP_EPI_NONE, .few = 1, .count = ESP_COUNT_WANTS};
    const double tol = 0x1p-24 * (8 + 0.75 * sqrt(d));
    struct esp_want wants[2] = {{0}, {0}};
    struct esp_weights_made w;
    struct esp_pack_spec spec = {.n_part = 1, .cls = esp_rig.vk->cls};
    struct esp_rand r;
    float *x = esp_rig_alloc(rows * d, sizeof *x), *y;
    double *want = esp_rig_alloc((size_t)rows * base, sizeof *want);

    esp_rand_init(&r, 7200);
    esp_rand_fill_outliers(&r, x, rows, d, 1, 3, 1e4);
    esp_weights_make(&w, &r, ESP_BF16, base, d, 0.02);
    spec.part[0].tensor = &w.tensor;
    esp_ref_matmul(want, x, w.values, NULL, rows, base, d);
    for (uint32_t v = 0; v < 2; v++) {
        struct esp_matmul_how mine = how;
        struct esp_rows rx, ry;
        struct esp_mat m;
        mine.few = fews[v];
        esp_rig_begin(1, 0, 0);
        rx = esp_rig_rows(rows, d, x);
        ry = esp_rig_rows(rows, base * times, NULL);
        m = esp_rig_mat(&spec, 2, times);
        esp_rig_ready();
        esp_op_matmul(&esp_rig.rec, ry, rx, &m, &mine);
        esp_batch_wants(&esp_rig.batch, wants, fews[v]);
        esp_rig_run();
        esp_rig_check_unwritten(ry, fews[v], rows);
        y = esp_rig.act.at + (size_t)ry.at * 4;
        for (uint32_t t = 0; t < fews[v]; t++) {
            const float *row = y + (size_t)t * base * times;
            assert_true(esp_check_close("logits", row, want + (size_t)t * base, 1, base, tol, 8 * tol));
            for (uint32_t i = 1; i < times; i++)
                if (memcmp(row, row + (size_t)i * base, base * sizeof *row) != 0)
                    fail_msg("want %u: ids from %u on have other logits than the same rows before", t,
                             i * base);
        }
        esp_rig_end();
    }
    esp_weights_free(&w);
    free(x);
    free(want);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_bits_of_a_row), cmocka_unit_test(test_heads),
                                       cmocka_unit_test(test_vocabulary)};
    return esp_rig_main("matmul_bits", tests, sizeof tests / sizeof tests[0]);
}
