/*
 * Quantised rows: the formulas of model/quant.h by a decoder of the test's own, the error that they promise on rows of several
 * kinds, and what is exact: zeros, whole steps, rows of any length, weights from tiny to huge.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/quant.h"
#include "tests/support/rand.h"

#define MAX_N 4096

static const enum esp_wtype types[] = {ESP_W_Q8, ESP_W_Q4};
#define N_TYPE (sizeof types / sizeof types[0])

/* A weight by the formulas as they are written, in float64. */
static double value_of(const void *blocks, enum esp_wtype type, size_t i)
{
    if (type == ESP_W_Q8) {
        const struct esp_q8_block *b = (const struct esp_q8_block *)blocks + i / 32;
        const int e = b->d >> 7 & 255;
        assert_true(b->d == 0 || (e > 0 && e < 255 && b->d < 0x8000));
        return b->d ? ldexp(1 + (b->d & 127) / 128.0, e - 127) * b->q[i % 32] : 0;
    }
    const struct esp_q4_block *b = (const struct esp_q4_block *)blocks + i / 32;
    const int e = b->side >> 10, m = b->side >> 6 & 15, z = b->side & 63,
              q = b->q[i % 32 / 2] >> i % 2 * 4 & 15;
    return (1 + m / 16.0) * ldexp(1, e - 40) * (q - z / 4.0);
}

/* Quantises and gives back; checks the values against the formulas. */
static void there_and_back(float *y, const float *x, enum esp_wtype type, size_t n)
{
    struct esp_q8_block *blocks = malloc((n + 31) / 32 * sizeof *blocks + 1); /* large enough for either */
    char *odd = malloc(esp_wtype_n_bytes(type, (n + 31) / 32 * 32) + 1);

    assert_true(blocks && odd);
    assert_int_equal(esp_quant_row(blocks, type, x, n), n);
    memcpy(odd + 1, blocks, esp_wtype_n_bytes(type, (n + 31) / 32 * 32)); /* of any alignment */
    esp_quant_values(y, type, odd + 1, n);
    for (size_t i = 0; i < n; i++)
        if ((double)y[i] != value_of(blocks, type, i))
            fail_msg("%s: weight %zu is %.9g, by the formula %.9g", esp_wtype_name(type), i, (double)y[i],
                     value_of(blocks, type, i));
    free(blocks);
    free(odd);
}

static double relative_error(const float *x, const float *y, size_t n)
{
    double off = 0, all = 0;

    for (size_t i = 0; i < n; i++) {
        off += ((double)y[i] - x[i]) * ((double)y[i] - x[i]);
        all += (double)x[i] * x[i];
    }
    return sqrt(off / all);
}

enum kind { NORMAL, UNIFORM, HEAVY, OUTLIERS, SHIFTED, POSITIVE };

static void fill(float *x, enum kind kind, size_t n, double std, uint64_t seed)
{
    struct esp_rand r;

    esp_rand_init(&r, seed);
    for (size_t i = 0; i < n; i++) {
        const double normal = esp_rand_normal(&r);
        double chi2 = 0;
        switch (kind) {
        case NORMAL:
            x[i] = (float)(std * normal);
            break;
        case UNIFORM:
            x[i] = (float)(std * (2 * esp_rand_uniform(&r) - 1));
            break;
        case HEAVY: /* Student's t, 4 degrees of freedom */
            for (int k = 0; k < 4; k++) {
                const double g = esp_rand_normal(&r);
                chi2 += g * g;
            }
            x[i] = (float)(std * normal / sqrt(chi2 / 4));
            break;
        case OUTLIERS:
            x[i] = (float)(std * normal * (esp_rand_below(&r, 100) ? 1 : 10));
            break;
        case SHIFTED:
            x[i] = (float)(std * (normal + 2));
            break;
        case POSITIVE:
            x[i] = (float)(std * fabs(normal));
            break;
        }
    }
}

/*
 * Relative L2 errors. q8 takes absmax / 127 steps of uniform rounding; q4 must be as good as model/quant.h says, which a
 * symmetric one or one without a search is not. Whatever the weights' scale: powers of two change no bit, others little.
 */
static void test_error(void **state)
{
    static const struct {
        enum kind kind;
        double most[N_TYPE];
    } c[] = {{NORMAL, {0.0056, 0.0725}},   {UNIFORM, {0.0041, 0.057}}, {HEAVY, {0.0080, 0.0880}},
             {OUTLIERS, {0.0105, 0.0970}}, {SHIFTED, {0.0044, 0.035}}, {POSITIVE, {0.0056, 0.043}}};
    static const double scales[] = {1, 0.02, 0x1p-20, 3e-5, 1000};
    float *x = malloc(MAX_N * sizeof *x), *y = malloc(MAX_N * sizeof *y);

    assert_true(x && y);
    for (size_t i = 0; i < sizeof c / sizeof c[0]; i++) {
        for (size_t t = 0; t < N_TYPE; t++) {
            for (size_t s = 0; s < sizeof scales / sizeof scales[0]; s++) {
                double e;
                fill(x, c[i].kind, MAX_N, scales[s], 40 + i);
                there_and_back(y, x, types[t], MAX_N);
                e = relative_error(x, y, MAX_N);
                if (!(e <= c[i].most[t]))
                    fail_msg("%s, kind %zu, scale %g: error %.5f, want at most %.5f",
                             esp_wtype_name(types[t]), i, scales[s], e, c[i].most[t]);
                printf("%s kind %zu scale %-8.3g relative error %.5f\n", esp_wtype_name(types[t]), i,
                       scales[s], e);
            }
        }
    }
    free(x);
    free(y);
}

/* No weight is off by more than half a step of its block: for q8 of absmax / 127, rounded to a bfloat16. */
static void test_bound(void **state)
{
    float x[320], y[320];

    for (uint64_t seed = 0; seed < 50; seed++) {
        fill(x, OUTLIERS, 320, 0.02, seed);
        there_and_back(y, x, ESP_W_Q8, 320);
        for (size_t at = 0; at < 320; at += 32) {
            float most = 0;
            for (size_t i = at; i < at + 32; i++)
                most = fmaxf(most, fabsf(x[i]));
            for (size_t i = at; i < at + 32; i++)
                assert_true(fabs((double)x[i] - y[i]) <= most / 127 * 0.5 * (1 + 1.01 / 256));
        }
    }
}

/* What lies on a grid of the type comes back as it was, and so do zeros. */
static void test_exact(void **state)
{
    float x[96], y[96];

    for (size_t t = 0; t < N_TYPE; t++) {
        struct esp_q8_block blocks[3];
        memset(x, 0, sizeof x);
        x[40] = -0.0f;
        there_and_back(y, x, types[t], 96);
        for (size_t i = 0; i < 96; i++)
            assert_true(y[i] == 0);
        memset(blocks, 0xee, sizeof blocks);
        assert_int_equal(esp_quant_row(blocks, types[t], x, 96), 96);
        for (size_t i = 0; i < esp_wtype_n_bytes(types[t], 96); i++)
            assert_int_equal(((unsigned char *)blocks)[i], 0);
    }
    for (int e = -30; e <= 20; e += 5) {
        for (int i = 0; i < 96; i++)
            x[i] = (float)ldexp((i * 37 % 255) - 127, e);
        for (int b = 0; b < 96; b += 32)
            x[b] = (float)ldexp(127, e);
        there_and_back(y, x, ESP_W_Q8, 96);
        assert_memory_equal(y, x, sizeof x);
        for (int i = 0; i < 96; i++)
            x[i] = (float)ldexp(1.3125 * ((i * 7 % 16) - 4 - i / 32 * 3.25),
                                e); /* m = 5, z = 4, 7.25 and 10.5 */
        there_and_back(y, x, ESP_W_Q4, 96);
        assert_memory_equal(y, x, sizeof x);
    }
    for (int i = 0; i < 96; i++)
        x[i] = 0x1.8p-7f; /* all equal: on the grid as well */
    for (size_t t = 0; t < N_TYPE; t++) {
        there_and_back(y, x, types[t], 96);
        assert_true(relative_error(x, y, 96) < 0.004);
    }
}

/* A row of any length: nothing is read or written past its end, and what fills up the last block is exactly zero. */
static void test_lengths(void **state)
{
    for (size_t t = 0; t < N_TYPE; t++) {
        for (size_t n = 1; n <= 140; n++) {
            const size_t n_block = (n + 31) / 32, n_bytes = esp_wtype_n_bytes(types[t], n_block * 32);
            float *x = malloc(n * sizeof *x), whole[160], *y = malloc(n * sizeof *y);
            void *blocks = malloc(n_bytes);

            assert_true(x && y && blocks);
            fill(x, NORMAL, n, 1, n);
            assert_int_equal(esp_quant_row(blocks, types[t], x, n), n);
            esp_quant_values(y, types[t], blocks, n);
            esp_quant_values(whole, types[t], blocks, n_block * 32);
            assert_memory_equal(y, whole, n * sizeof *y);
            for (size_t i = n; i < n_block * 32; i++)
                assert_true(whole[i] == 0);
            assert_true(relative_error(x, y, n) < 0.12);
            free(x);
            free(y);
            free(blocks);
        }
    }
}

/* One weight far beyond the others, both of largest and smallest size: it is kept, and nothing turns into no number. */
static void test_extremes(void **state)
{
    static const float sizes[] = {1e-45f, 1e-38f, 1e-20f, 1e-12f, 1e-6f, 1e3f, 65504.0f, 1e8f, 1e30f, 1e38f};
    float x[64], y[64];

    for (size_t t = 0; t < N_TYPE; t++) {
        for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
            if (types[t] == ESP_W_Q4 && sizes[s] > 1e8f)
                continue;
            for (int sign = -1; sign <= 1; sign += 2) {
                fill(x, NORMAL, 64, fmin(1e-2 * (double)sizes[s], 0.02), 9);
                x[17] = (float)sign * sizes[s];
                there_and_back(y, x, types[t], 64);
                for (int i = 0; i < 64; i++)
                    assert_true(isfinite(y[i]));
                if (sizes[s] > 1e-11f) /* q4 has no smaller ones */
                    assert_true(fabs((double)y[17] - x[17]) <= 0.04 * (double)sizes[s]);
                for (int i = 0; i < 64; i++) /* and what has no room is small */
                    assert_true(fabs((double)y[i] - x[i]) <= fmax(0.04 * (double)sizes[s], 0x1p-40));
            }
        }
    }
}

/* The first weight that cannot be is named. */
static void test_refused(void **state)
{
    const float bad[] = {NAN, INFINITY, -INFINITY, 3e38f};
    struct esp_q8_block blocks[3];
    float x[96];

    for (size_t t = 0; t < N_TYPE; t++) {
        for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
            fill(x, NORMAL, 96, 1, 1);
            x[i * 29] = bad[i];
            x[95] = NAN;
            assert_int_equal(esp_quant_row(blocks, types[t], x, 96), i * 29);
        }
    }
    x[0] = x[29] = x[58] = x[87] = x[95] = 1;
    x[3] = -1.01e8f;
    assert_int_equal(esp_quant_row(blocks, ESP_W_Q4, x, 96), 3);
    assert_int_equal(esp_quant_row(blocks, ESP_W_Q8, x, 96), 96);
}

static void test_types(void **state)
{
    static const char *const names[] = {"stored", "bf16", "f16", "f32", "q8", "q4"};
    enum esp_wtype type = ESP_W_F32;

    for (int i = 0; i < ESP_N_WTYPE; i++) {
        assert_string_equal(esp_wtype_name((enum esp_wtype)i), names[i]);
        assert_true(esp_wtype_parse(&type, names[i]));
        assert_int_equal(type, i);
    }
    assert_false(esp_wtype_parse(&type, "Q8"));
    assert_false(esp_wtype_parse(&type, ""));
    assert_string_equal(esp_wtype_name((enum esp_wtype)77), "unset");
    assert_int_equal(esp_wtype_n_bytes(ESP_W_Q8, 64), 68);
    assert_int_equal(esp_wtype_n_bytes(ESP_W_Q4, 64), 36);
    assert_int_equal(esp_wtype_n_bytes(ESP_W_F16, 64), 128);
    assert_int_equal(esp_wtype_n_bytes(ESP_W_F32, 64), 256);
    assert_int_equal(esp_wtype_of(ESP_BF16), ESP_W_BF16);
    assert_int_equal(esp_wtype_of(ESP_I32), ESP_W_NONE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_error),    cmocka_unit_test(test_bound),
                                       cmocka_unit_test(test_exact),    cmocka_unit_test(test_lengths),
                                       cmocka_unit_test(test_extremes), cmocka_unit_test(test_refused),
                                       cmocka_unit_test(test_types)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
