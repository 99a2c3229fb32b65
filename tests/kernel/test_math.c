/*
 * The elementary functions of shaders/math.glsl through the kernels that use them: a product with the identity leaves
 * gelu(x) or cap * tanh(x / cap) of each x, a top-k leaves sums of exp. Measured element by element, relative to the
 * result, from the least numbers to the largest.
 */
#include "tests/kernel/rig.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/support/ref.h"

#define SIDE 64u /* of the identity */

/* y = epilogue(x) for n numbers, by way of rows of SIDE; few as in esp_matmul_how. */
static void through(float *y, const float *x, uint32_t n, uint32_t epilogue, float cap, uint32_t few)
{
    const struct esp_matmul_how how = {.epilogue = epilogue, .few = few, .count = ESP_COUNT_ROWS, .cap = cap};
    const uint32_t rows = n / SIDE;
    float *one = esp_rig_alloc(SIDE * SIDE, sizeof *one);
    struct esp_tensor t = {.dtype = ESP_F32, .n_dim = 2, .shape = {SIDE, SIDE}, .data = one};
    const struct esp_pack_spec spec = {.n_part = 1, .part = {{.tensor = &t}}, .cls = esp_rig.vk->cls};
    struct esp_rows rx, ry;
    struct esp_mat m;

    assert_int_equal(n % SIDE, 0);
    for (uint32_t i = 0; i < SIDE; i++)
        one[i * SIDE + i] = 1;
    esp_rig_begin(rows, 0, 0);
    rx = esp_rig_rows(rows, SIDE, x);
    ry = esp_rig_rows(rows, SIDE, NULL);
    m = esp_rig_mat(&spec, 1, 1);
    esp_rig_ready();
    esp_op_matmul(&esp_rig.rec, ry, rx, &m, &how);
    esp_rig.batch.count[ESP_COUNT_ROWS] = rows;
    esp_rig_run();
    esp_rig_get(y, ry, rows, SIDE);
    esp_rig_end();
    free(one);
}

/* The largest error relative to what tolerance(x) allows; more than 1 fails and says where. */
static void check(const char *what, const float *x, const float *y, uint32_t n, double (*want)(double),
                  double (*allowed)(double))
{
    double worst = 0;
    uint32_t at = 0;

    for (uint32_t i = 0; i < n; i++) {
        const double e = fabs((double)y[i] - want((double)x[i])) / allowed((double)x[i]);
        if (!(e <= worst)) { /* NaN too */
            worst = e;
            at = i;
        }
        if (isnan(e))
            break;
    }
    if (getenv("ESP_TEST_VERBOSE") || !(worst <= 1))
        fprintf(stderr, "%s: worst is %.3g of what is allowed, at x = %.9g: %.9g, want %.9g\n", what, worst,
                (double)x[at], (double)y[at], want((double)x[at]));
    assert_true(worst <= 1);
}

/* The same number as esp_ref_gelu, which loses it to 1 + tanh(u) = 0 where x is far below 0, even in float64. */
static double gelu(double x)
{
    return x / (1 + exp(-2 * sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

/*
 * gelu(x) = x / (1 + e^(-2u)), u within 2^-24 * 3 of itself; where e^(-2u) rules, that error counts |2u| times, which is
 * how far float32 knows x^3. Below, the result falls under the smallest normal number (flushed or not: within it).
 */
static double gelu_allowed(double x)
{
    const double u = sqrt(2 / M_PI) * (x + 0.044715 * x * x * x);
    return fabs(gelu(x)) * 0x1p-24 * (8 + (x < 0 ? 6 * fabs(u) : 0)) + 2 * fabs(x) * (double)FLT_MIN +
           (double)FLT_MIN;
}

static double cap_of;

static double capped(double x)
{
    return cap_of * tanh(x / cap_of);
}

/* A few units in the last place, everywhere. */
static double capped_allowed(double x)
{
    return fabs(capped(x)) * 0x1p-24 * 10 + (double)FLT_MIN;
}

static void fill(float *x, uint32_t n, double reach)
{
    uint32_t i = 0;

    static const double odd[] = {0.0,  -0.0, 1e-30, -1e-30, 1e-10, -1e-10, 0.3,
                                 -0.3, 1,    -1,    1e4,    -1e4,  1e30,   -1e30};
    for (; i < sizeof odd / sizeof odd[0]; i++)
        x[i] = (float)odd[i];
    for (; i < n / 2; i++) /* evenly ... */
        x[i] = (float)(reach * (4.0 * i / n - 1));
    for (; i < n; i++) /* ... and by magnitude, down to 1e-8 */
        x[i] = (float)((i % 2 ? -reach : reach) * pow(10, -16.0 * (i - n / 2) / n));
}

#define N 32768u

static void test_gelu(void **state)
{
    float *x = esp_rig_alloc(N, sizeof *x), *y = esp_rig_alloc(N, sizeof *y);

    for (double v = -4; v < 100; v += 0.1)
        assert_true(fabs(gelu(v) - esp_ref_gelu(v)) <= 1e-13 * (1 + fabs(v)));
    fill(x, N, 100);
    through(y, x, N, ESP_EPI_GELU, 0, 0);
    check("gelu", x, y, N, gelu, gelu_allowed);
    through(y, x, 512, ESP_EPI_GELU, 0, 8);
    check("gelu of a few rows", x, y, 512, gelu, gelu_allowed);
    fill(x, N, 6); /* where it bends */
    through(y, x, N, ESP_EPI_GELU, 0, 0);
    check("gelu near 0", x, y, N, gelu, gelu_allowed);
    free(x);
    free(y);
}

static void test_softcap(void **state)
{
    float *x = esp_rig_alloc(N, sizeof *x), *y = esp_rig_alloc(N, sizeof *y);

    cap_of = 30;
    fill(x, N, 300);
    through(y, x, N, ESP_EPI_SOFTCAP, 30, 0);
    check("soft-cap 30", x, y, N, capped, capped_allowed);
    through(y, x, 512, ESP_EPI_SOFTCAP, 30, 8);
    check("soft-cap 30 of a few rows", x, y, 512, capped, capped_allowed);
    cap_of = 1; /* tanh itself */
    fill(x, N, 2);
    through(y, x, N, ESP_EPI_SOFTCAP, 1, 0);
    check("tanh", x, y, N, capped, capped_allowed);
    free(x);
    free(y);
}

/* exp(0) is 1 exactly, whatever a driver's own exp would say: n equal logits sum to n. */
static void test_exp(void **state)
{
    static const uint32_t ns[] = {1, 5, 64, 256, 4096, 65536};
    const struct esp_want want = {.k = 1};

    for (size_t i = 0; i < sizeof ns / sizeof ns[0]; i++) {
        const uint32_t n_slice = (ns[i] + ESP_TOP_SLICE - 1) / ESP_TOP_SLICE;
        float *x = esp_rig_alloc(ns[i], sizeof *x), *room = esp_rig_alloc((size_t)n_slice * 4, sizeof *room);
        struct esp_rows rx, slices;
        for (uint32_t j = 0; j < ns[i]; j++)
            x[j] = -7.3f;
        esp_rig_begin(1, 0, 0);
        rx = esp_rig_rows(1, ns[i], x);
        slices = esp_rig_rows(1, n_slice * 4, room);
        slices.stride = n_slice;
        esp_rig_host(NULL, 0, ESP_TOP);
        esp_rig_ready();
        esp_op_topk(&esp_rig.rec, rx, slices, ns[i]);
        esp_batch_wants(&esp_rig.batch, &want, 1);
        esp_rig_run();
        assert_true(esp_rig.out.at[ESP_TOP_MAX] == -7.3f);
        assert_true(esp_rig.out.at[ESP_TOP_SUM] == (float)ns[i]);
        esp_rig_end();
        free(x);
        free(room);
    }
}

/* A number that is none stays none, in its own row: a broken activation must be seen at the end. */
static void test_no_number(void **state)
{
    static const uint32_t epilogues[] = {ESP_EPI_NONE, ESP_EPI_GELU, ESP_EPI_SOFTCAP};
    const uint32_t rows = 5, bad = 2;
    float *x = esp_rig_alloc(rows * SIDE, sizeof *x), *y = esp_rig_alloc(rows * SIDE, sizeof *y);

    for (uint32_t few = 0; few <= 8; few += 8)
        for (size_t e = 0; e < sizeof epilogues / sizeof epilogues[0]; e++) {
            for (uint32_t i = 0; i < rows * SIDE; i++)
                x[i] = 0.5f;
            x[bad * SIDE + 7] = NAN;
            through(y, x, rows * SIDE, epilogues[e], 30, few);
            for (uint32_t i = 0; i < rows * SIDE; i++)
                if (isnan(y[i]) != (i / SIDE == bad))
                    fail_msg("epilogue %u, few=%u: row %u, column %u is %g", epilogues[e], few, i / SIDE,
                             i % SIDE, (double)y[i]);
        }
    free(x);
    free(y);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_no_number), cmocka_unit_test(test_gelu),
                                       cmocka_unit_test(test_softcap), cmocka_unit_test(test_exp)};
    return esp_rig_main("math", tests, sizeof tests / sizeof tests[0]);
}
