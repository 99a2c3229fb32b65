/*
 * Products against float64: many rows (matmul) and a few (matvec), every epilogue, dtype and ragged size, the shapes
 * of the published models among them, with and without outliers.
 */
#include "tests/kernel/rig.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/compare.h"
#include "tests/support/ref.h"

struct product_case {
    uint32_t n, k;
    uint32_t rows;
    uint32_t few; /* as in esp_matmul_how */
    enum esp_dtype dtype;
    uint32_t epilogue;
    bool bias;
    uint32_t outliers; /* channels of x that are 1e4 times as large */
    uint32_t parts;    /* 0: 1 */
    double size;       /* of the weights, times 2 / sqrt(k) */
};

/*
 * A float32 sum of K terms in order takes K roundings of partial sums that grow like sqrt(k): the error is a random
 * walk of about 0.25 * 2^-24 * sqrt(K) of the result's scale; with outliers a few large terms rule and it is less.
 * Tolerated: three times that for all elements together, and 2^-24 * 8 for short sums, the epilogue's functions and
 * the last rounding. One element may be off by 8 times as much: the largest of millions of normal ones is at 5.5.
 * GEGLU multiplies two such numbers, so its products spread more: 40 times. All of it is measured by the scale of the
 * sums: where the soft-cap squeezes large ones into +-30, an error of a small one beside them looks larger by as much.
 */
static double tolerance(const struct product_case *c)
{
    return 0x1p-24 * (8 + 0.75 * sqrt(c->k));
}

static double one_row(const struct product_case *c)
{
    return c->epilogue == ESP_EPI_GEGLU ? 40 : 8;
}

#define NONE_ ESP_EPI_NONE
#define GELU_ ESP_EPI_GELU
#define ADD_  ESP_EPI_ADD
#define GEGLU ESP_EPI_GEGLU
#define CAP__ ESP_EPI_SOFTCAP

static const struct product_case cases[] = {
    /* n, k, rows, few, dtype, epilogue, bias, outliers, parts, size */
    /* ragged rows around the tiles of 8 and 64 */
    {144, 304, 1, 0, ESP_BF16, NONE_, true, 0, 0, 1},
    {144, 304, 2, 0, ESP_BF16, NONE_, true, 0, 0, 1},
    {144, 304, 3, 0, ESP_BF16, NONE_, true, 0, 0, 1},
    {144, 304, 5, 0, ESP_BF16, NONE_, true, 0, 0, 1},
    {144, 304, 8, 0, ESP_BF16, NONE_, true, 0, 0, 1},
    {144, 304, 9, 0, ESP_BF16, NONE_, true, 0, 0, 1},
    {144, 304, 17, 0, ESP_BF16, NONE_, true, 0, 0, 1},
    {144, 304, 63, 0, ESP_BF16, NONE_, true, 0, 0, 1},
    {144, 304, 64, 0, ESP_BF16, NONE_, true, 0, 0, 1},
    {144, 304, 65, 0, ESP_BF16, NONE_, true, 0, 0, 1},
    {144, 304, 256, 0, ESP_BF16, NONE_, true, 0, 0, 1},
    {144, 304, 260, 0, ESP_BF16, NONE_, true, 0, 0, 1},
    /* ragged N and K, every dtype */
    {1, 1, 3, 0, ESP_BF16, NONE_, true, 0, 0, 1},
    {7, 31, 3, 0, ESP_F16, NONE_, true, 0, 0, 1},
    {33, 33, 9, 0, ESP_F32, NONE_, true, 0, 0, 1},
    {404, 144, 9, 0, ESP_F32, NONE_, true, 0, 0, 1},
    {144, 404, 9, 0, ESP_F16, NONE_, false, 0, 0, 1},
    {216, 404, 17, 0, ESP_BF16, NONE_, false, 0, 0, 1},
    {31, 216, 17, 0, ESP_F32, NONE_, false, 0, 0, 1},
    {216, 65, 17, 0, ESP_F16, NONE_, false, 0, 0, 1},
    {144, 588, 16, 0, ESP_BF16, NONE_, true, 0, 0, 1},
    /* every epilogue, every dtype */
    {304, 144, 65, 0, ESP_BF16, GELU_, true, 0, 0, 1},
    {304, 144, 65, 0, ESP_F16, GELU_, true, 0, 0, 1},
    {304, 144, 65, 0, ESP_F32, GELU_, true, 0, 0, 1},
    {144, 304, 65, 0, ESP_BF16, ADD_, true, 0, 0, 1},
    {144, 304, 65, 0, ESP_F16, ADD_, false, 0, 0, 1},
    {144, 304, 65, 0, ESP_F32, ADD_, true, 0, 0, 1},
    {404, 216, 65, 0, ESP_BF16, GEGLU, false, 0, 0, 1},
    {404, 216, 65, 0, ESP_F16, GEGLU, false, 0, 0, 1},
    {404, 216, 65, 0, ESP_F32, GEGLU, false, 0, 0, 1},
    {5, 216, 3, 0, ESP_BF16, GEGLU, false, 0, 0, 1},
    {404, 216, 9, 0, ESP_BF16, CAP__, false, 0, 0, 1},
    {404, 216, 9, 0, ESP_F32, CAP__, false, 0, 0, 1},
    /* outliers */
    {144, 304, 17, 0, ESP_BF16, NONE_, true, 3, 0, 1},
    {144, 304, 17, 0, ESP_F16, GELU_, true, 3, 0, 1},
    {144, 304, 17, 0, ESP_F32, ADD_, true, 3, 0, 1},
    {404, 216, 17, 0, ESP_BF16, GEGLU, false, 3, 0, 1},
    {404, 216, 17, 0, ESP_F16, CAP__, false, 3, 0, 1},
    /* in several pieces */
    {144, 304, 17, 0, ESP_BF16, ADD_, true, 0, 2, 1},
    {404, 216, 17, 0, ESP_F16, GELU_, true, 0, 5, 1},
    {404, 216, 17, 0, ESP_BF16, GEGLU, false, 0, 3, 1},
    {404, 216, 17, 0, ESP_F32, CAP__, false, 0, 8, 1},
    /* a few rows: below, at and above what one workgroup takes */
    {144, 304, 1, 1, ESP_BF16, NONE_, true, 0, 0, 1},
    {144, 304, 3, 1, ESP_F16, NONE_, true, 0, 0, 1},
    {144, 304, 1, 2, ESP_F32, NONE_, true, 0, 0, 1},
    {144, 304, 2, 2, ESP_BF16, NONE_, true, 0, 0, 1},
    {144, 304, 5, 2, ESP_BF16, NONE_, true, 0, 0, 1},
    {144, 304, 3, 4, ESP_BF16, NONE_, true, 0, 0, 1},
    {144, 304, 4, 4, ESP_F16, NONE_, true, 0, 0, 1},
    {144, 304, 9, 4, ESP_F32, NONE_, true, 0, 0, 1},
    {144, 304, 5, 8, ESP_BF16, NONE_, true, 0, 0, 1},
    {144, 304, 8, 8, ESP_F32, NONE_, true, 0, 0, 1},
    {144, 304, 17, 8, ESP_BF16, NONE_, true, 0, 0, 1},
    {1, 1, 2, 2, ESP_BF16, NONE_, true, 0, 0, 1},
    {31, 216, 2, 2, ESP_F32, NONE_, true, 0, 0, 1},
    {216, 404, 1, 1, ESP_F16, NONE_, false, 0, 0, 1},
    {216, 31, 1, 1, ESP_F16, NONE_, false, 0, 0, 1},
    {304, 144, 3, 4, ESP_BF16, GELU_, true, 0, 0, 1},
    {144, 404, 3, 4, ESP_BF16, ADD_, true, 0, 0, 1},
    {144, 404, 1, 1, ESP_F32, ADD_, true, 0, 0, 1},
    {404, 144, 1, 1, ESP_BF16, GEGLU, false, 0, 0, 1},
    {404, 144, 2, 2, ESP_F16, GEGLU, false, 0, 0, 1},
    {404, 144, 7, 4, ESP_F32, GEGLU, false, 0, 0, 1},
    {5, 144, 11, 8, ESP_BF16, GEGLU, false, 0, 0, 1},
    {404, 144, 7, 8, ESP_BF16, CAP__, false, 0, 0, 1},
    {144, 304, 5, 4, ESP_BF16, NONE_, true, 3, 0, 1},
    {404, 144, 3, 2, ESP_F16, GEGLU, false, 3, 0, 1},
    {404, 144, 1, 1, ESP_F32, CAP__, false, 3, 0, 1},
    {404, 144, 5, 4, ESP_BF16, GEGLU, false, 0, 3, 1},
    {404, 144, 5, 8, ESP_F16, ADD_, true, 0, 8, 1},
    /* SigLIP So400m: QKV in one, fc1, fc2, the projector, patches of 3*14*14 */
    {1152, 588, 32, 0, ESP_BF16, NONE_, true, 0, 0, 1},
    {3456, 1152, 17, 0, ESP_BF16, NONE_, true, 4, 0, 1},
    {4304, 1152, 65, 0, ESP_BF16, GELU_, true, 4, 0, 1},
    {1152, 4304, 64, 0, ESP_BF16, ADD_, true, 4, 0, 1},
    {2048, 1152, 9, 0, ESP_F16, NONE_, true, 0, 0, 1},
    /* Gemma 2B: QKV in one, O, gate and up, down */
    {2560, 2048, 33, 0, ESP_BF16, NONE_, false, 4, 0, 1},
    {2560, 2048, 1, 1, ESP_BF16, NONE_, false, 4, 0, 1},
    {2048, 2048, 2, 2, ESP_BF16, ADD_, false, 4, 0, 1},
    {16384, 2048, 9, 0, ESP_BF16, GEGLU, false, 4, 0, 1},
    {16384, 2048, 1, 1, ESP_BF16, GEGLU, false, 4, 0, 1},
    {2048, 16384, 9, 0, ESP_BF16, ADD_, false, 4, 0, 1},
    {2048, 16384, 3, 4, ESP_BF16, ADD_, false, 4, 0, 1},
};

/* As q8 and as q4, of each stored type, against the quantised values. */
static const struct product_case quantised[] = {
    {144, 304, 65, 0, ESP_BF16, NONE_, true, 0, 0, 1},
    {1, 1, 3, 0, ESP_F32, NONE_, true, 0, 0, 1},
    {33, 65, 9, 0, ESP_F16, GELU_, true, 3, 0, 1},
    {144, 588, 16, 0, ESP_BF16, ADD_, true, 3, 2, 1},
    {404, 216, 17, 0, ESP_BF16, GEGLU, false, 3, 3, 1},
    {404, 216, 9, 0, ESP_F32, CAP__, false, 0, 8, 1},
    {144, 304, 1, 1, ESP_BF16, NONE_, true, 0, 0, 1},
    {1, 1, 2, 2, ESP_BF16, NONE_, true, 0, 0, 1},
    {31, 216, 2, 2, ESP_F32, NONE_, true, 0, 0, 1},
    {304, 144, 5, 4, ESP_BF16, GELU_, true, 3, 2, 1},
    {144, 404, 9, 8, ESP_F16, ADD_, true, 3, 0, 1},
    {404, 144, 1, 1, ESP_BF16, GEGLU, false, 0, 3, 1},
    {404, 144, 7, 8, ESP_F32, GEGLU, false, 3, 0, 1},
    {404, 144, 7, 8, ESP_BF16, CAP__, false, 0, 8, 1},
    {144, 304, 31, 0, ESP_BF16, NONE_, true, 0, 0, 1},
    {144, 304, 32, 0, ESP_BF16, ADD_, true, 0, 3, 1},
    {144, 304, 33, 0, ESP_F16, GELU_, false, 0, 0, 1},
    {24, 32, 260, 0, ESP_BF16, NONE_, true, 3, 0, 1},
    {1152, 4304, 17, 0, ESP_BF16, ADD_, true, 4, 0, 1},
    {16384, 2048, 9, 0, ESP_BF16, GEGLU, false, 4, 0, 1},
    /* weights that float16 alone would have as subnormals, or nearly overflow at */
    {.n = 144, .k = 304, .rows = 17, .dtype = ESP_BF16, .outliers = 3, .size = 0x1p-11},
    {.n = 144, .k = 304, .rows = 17, .dtype = ESP_F32, .size = 0x1p16},
    {16384, 2048, 1, 1, ESP_BF16, GEGLU, false, 4, 0, 1},
    {2048, 16384, 3, 4, ESP_BF16, ADD_, false, 4, 0, 1},
};

/* x W^T, f64[T, N], where W is the same n rows over and over. */
static void products(double *out, const struct product_case *c, uint32_t n, const float *x, const float *w,
                     const float *bias)
{
    double *some = esp_rig_alloc((size_t)c->rows * n, sizeof *some);

    esp_ref_matmul(some, x, w, NULL, c->rows, n, c->k);
    for (uint32_t t = 0; t < c->rows; t++)
        for (uint32_t i = 0; i < c->n; i++)
            out[(size_t)t * c->n + i] = some[(size_t)t * n + i % n] + (bias ? bias[i] : 0);
    free(some);
}

/*
 * What the kernel should have left, from the products of all columns, of which n_row differ: f64[T, N].
 * squeeze: how much smaller the soft-cap made it.
 */
static void expect(double *want, double *squeeze, const struct product_case *c, uint32_t n_row,
                   const float *x, const float *w, const float *up, const float *bias, const float *y0)
{
    const size_t n = (size_t)c->rows * c->n;
    double before = 0, after = 0;
    double *other;

    *squeeze = 1;
    products(want, c, n_row, x, w, bias);
    switch (c->epilogue) {
    case ESP_EPI_GELU:
        for (size_t i = 0; i < n; i++)
            want[i] = esp_ref_gelu(want[i]);
        break;
    case ESP_EPI_ADD:
        for (size_t i = 0; i < n; i++)
            want[i] += y0[i];
        break;
    case ESP_EPI_SOFTCAP:
        for (size_t i = 0; i < n; i++) {
            before += want[i] * want[i];
            want[i] = 30 * tanh(want[i] / 30);
            after += want[i] * want[i];
        }
        *squeeze = sqrt(before / after);
        break;
    case ESP_EPI_GEGLU:
        other = esp_rig_alloc(n, sizeof *other);
        products(other, c, n_row, x, up, NULL);
        for (size_t i = 0; i < n; i++)
            want[i] = esp_ref_gelu(want[i]) * other[i];
        free(other);
        break;
    default:
        break;
    }
}

/* How often a quantised matrix has the same rows: to quantise a large one, twice, takes longer than all else here. */
static uint32_t n_times(const struct product_case *c, enum esp_wtype as)
{
    uint32_t times = 1;

    while (esp_wtype_quantised(as) && (uint64_t)c->n / times * c->k > 2000000 && c->n % (64 * 2 * times) == 0)
        times *= 2;
    return times;
}

static bool run_case(const struct product_case *c, enum esp_wtype as, uint64_t seed)
{
    const bool pairs = c->epilogue == ESP_EPI_GEGLU;
    const double std = c->size * 2 / sqrt(c->k);
    struct esp_matmul_how how = {.epilogue = c->epilogue, .few = c->few, .count = ESP_COUNT_ROWS, .cap = 30};
    const uint32_t spare = 3; /* rows of x and y beyond those of the step */
    const uint32_t times = n_times(c, as);
    const size_t n_y = (size_t)c->rows * c->n;
    struct esp_pack_spec spec = {.n_part = 1, .want = as, .cls = esp_rig.vk->cls};
    struct esp_weights_made w, up = {0};
    struct esp_rand r;
    struct esp_rows rx, ry;
    struct esp_mat m;
    float *x = esp_rig_alloc((size_t)(c->rows + spare) * c->k, sizeof *x);
    float *y = esp_rig_alloc(n_y, sizeof *y),
          *y0 = esp_rig_alloc((size_t)(c->rows + spare) * c->n, sizeof *y0);
    float *bias = esp_rig_alloc(c->n, sizeof *bias);
    double *want = esp_rig_alloc(n_y, sizeof *want);
    char what[128];
    double squeeze, tol = tolerance(c);
    bool ok;

    esp_rand_init(&r, seed);
    esp_rand_fill_outliers(&r, x, c->rows, c->k, 1, c->outliers, 1e4);
    for (size_t i = (size_t)c->rows * c->k; i < (size_t)(c->rows + spare) * c->k; i++)
        x[i] = NAN; /* rows that are not there */
    esp_rand_fill(&r, y0, (size_t)(c->rows + spare) * c->n, 10);
    esp_rand_fill(&r, bias, c->n, 1);
    esp_weights_make(&w, &r, c->dtype, c->n / times, c->k, std);
    spec.part[0].tensor = &w.tensor;
    if (pairs) {
        esp_weights_make(&up, &r, c->dtype, c->n / times, c->k, std);
        spec.n_part = 2;
        spec.part[1].tensor = &up.tensor;
        spec.interleave = true;
    }
    esp_rig_begin(c->rows, 0, 0);
    rx = esp_rig_rows(c->rows + spare, c->k, x);
    ry = esp_rig_rows(c->rows + spare, c->n, c->epilogue == ESP_EPI_ADD ? y0 : NULL);
    m = esp_rig_mat(&spec, c->parts ? c->parts : 1, times);
    if (c->bias)
        m.bias = esp_rig_vec(bias, c->n);
    how.scale_at = esp_rig_rows(1, c->rows, NULL).at;
    esp_rig_ready();
    esp_op_matmul(&esp_rig.rec, ry, rx, &m, &how);
    esp_rig.batch.count[ESP_COUNT_ROWS] = c->rows;
    esp_rig_run();
    esp_rig_get(y, ry, c->rows, c->n);
    if (c->epilogue == ESP_EPI_ADD)
        assert_memory_equal(esp_rig.act.at + ((size_t)ry.at + (size_t)c->rows * ry.stride) * 4, y0 + n_y,
                            c->n * sizeof *y0);
    else
        esp_rig_check_unwritten(ry, c->rows, c->rows + spare);
    esp_rig_end();

    esp_weights_want(&w, as);
    if (pairs)
        esp_weights_want(&up, as);
    if (esp_rig.vk->cls == ESP_VK_DIRECT && c->few && esp_wtype_quantised(as))
        tol += esp_rig_round_blocks(x, c->rows, c->k, as);
    expect(want, &squeeze, c, c->n / times, x, w.values, up.values, c->bias ? bias : NULL, y0);
    snprintf(what, sizeof what, "n=%u k=%u rows=%u few=%u %s as %s epilogue=%u outliers=%u parts=%u", c->n,
             c->k, c->rows, c->few, esp_dtype_name(c->dtype), esp_wtype_name(as), c->epilogue, c->outliers,
             c->parts);
    ok = esp_check_close(what, y, want, c->rows, c->n, squeeze * tol, squeeze * tol * one_row(c));
    esp_weights_free(&w);
    esp_weights_free(&up);
    free(x);
    free(y);
    free(y0);
    free(bias);
    free(want);
    return ok;
}

static uint32_t run_cases(const struct product_case *list, size_t n, enum esp_wtype as)
{
    uint32_t n_bad = 0;

    for (size_t i = 0; i < n; i++) {
        struct product_case c = list[i];
        if (esp_rig.slow && (uint64_t)c.n * c.k > 1000000 && c.rows > 9)
            c.rows = 9;
        n_bad += !run_case(&c, as, 1000 + i);
    }
    return n_bad;
}

/* Rows of which one element is no finite number, between rows of numbers: all of what comes of them is none, and none of the
 * others. */
static void test_no_numbers(void **state)
{
    static const enum esp_wtype types[] = {ESP_W_STORED, ESP_W_Q8, ESP_W_Q4};
    const uint32_t n = 144, k = 304, rows = 4;

    for (size_t i = 0; i < 2 * sizeof types / sizeof types[0]; i++) {
        struct esp_pack_spec spec = {.n_part = 1, .want = types[i / 2], .cls = esp_rig.vk->cls};
        struct esp_matmul_how how = {.few = i % 2 ? 2 : 0, .count = ESP_COUNT_ROWS};
        float *x = esp_rig_alloc((size_t)rows * k, sizeof *x),
              *y = esp_rig_alloc((size_t)rows * n, sizeof *y);
        struct esp_weights_made w;
        struct esp_rows rx, ry;
        struct esp_rand r;
        struct esp_mat m;

        esp_rand_init(&r, 77);
        esp_rand_fill(&r, x, (size_t)rows * k, 1);
        x[1 * k + 37] = NAN;
        x[3 * k + k - 1] = -INFINITY;
        esp_weights_make(&w, &r, ESP_BF16, n, k, 0.1);
        spec.part[0].tensor = &w.tensor;
        esp_rig_begin(rows, 0, 0);
        rx = esp_rig_rows(rows, k, x);
        ry = esp_rig_rows(rows, n, NULL);
        m = esp_rig_mat(&spec, 1, 1);
        esp_rig_ready();
        esp_op_matmul(&esp_rig.rec, ry, rx, &m, &how);
        esp_rig.batch.count[ESP_COUNT_ROWS] = rows;
        esp_rig_run();
        for (uint32_t t = 0; t < rows; t++) /* the padding is no number either */
            memcpy(y + (size_t)t * n, esp_rig.act.at + ((size_t)ry.at + (size_t)t * ry.stride) * 4,
                   n * sizeof *y);
        esp_rig_end();
        for (uint32_t t = 0; t < rows; t++)
            for (uint32_t c = 0; c < n; c++)
                if ((isfinite(y[t * n + c]) != 0) != (t % 2 == 0))
                    fail_msg("%s, few=%u: row %u column %u is %g", esp_wtype_name(types[i / 2]), how.few, t,
                             c, (double)y[t * n + c]);
        esp_weights_free(&w);
        free(x);
        free(y);
    }
}

static void test_products(void **state)
{
    assert_int_equal(run_cases(cases, sizeof cases / sizeof cases[0], ESP_W_STORED), 0);
}

static void test_q8(void **state)
{
    assert_int_equal(run_cases(quantised, sizeof quantised / sizeof quantised[0], ESP_W_Q8), 0);
}

static void test_q4(void **state)
{
    assert_int_equal(run_cases(quantised, sizeof quantised / sizeof quantised[0], ESP_W_Q4), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_products), cmocka_unit_test(test_q8),
                                       cmocka_unit_test(test_q4), cmocka_unit_test(test_no_numbers)};
    return esp_rig_main("matmul", tests, sizeof tests / sizeof tests[0]);
}
