/*
 * The float64 reference operations, against numbers worked out by hand, against identities that hold for any
 * right implementation, and against the plainest loop. What the shaders are measured with must be right
 * itself.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/rand.h"
#include "tests/support/ref.h"

#define COUNT(a) (sizeof(a) / sizeof(a)[0])

static void *room(size_t n, size_t n_bytes)
{
    void *p = calloc(n, n_bytes);
    assert_non_null(p);
    return p;
}

static float *random_floats(struct esp_rand *r, size_t n, double std)
{
    float *p = room(n, sizeof *p);
    esp_rand_fill(r, p, n, std);
    return p;
}

static void expect_near(const double *got, const double *want, size_t n, double tol)
{
    for (size_t i = 0; i < n; i++) {
        if (!(fabs(got[i] - want[i]) <= tol)) /* so written that NaN fails */
            fail_msg("[%zu]: got %.17g, want %.17g", i, got[i], want[i]);
    }
}

static void layernorm_by_hand(void **state)
{
    /* mean 2, variance 1; without eps the normalised row is -1, 1 */
    const float x[] = {1, 3, 10, 10}, weight[] = {2, 3}, bias[] = {0.5f, -0.5f};
    const double exact[] = {-1.5, 2.5, 0.5, -0.5}; /* a constant row leaves the bias: 0 / sqrt(eps) */
    double out[4];
    esp_ref_layernorm(out, x, weight, bias, 1, 2, 0);
    expect_near(out, exact, 2, 1e-15);
    esp_ref_layernorm(out, x, weight, bias, 2, 2, 3); /* sqrt(1 + 3) = 2 */
    const double halved[] = {-0.5, 1.0, 0.5, -0.5};
    expect_near(out, halved, 4, 1e-15);
}

static void layernorm_ignores_shift_and_scale(void **state)
{
    enum { T = 3, D = 37 };
    struct esp_rand r;
    float x[T * D], y[T * D], one[D], zero[D] = {0};
    double a[T * D], b[T * D];
    esp_rand_init(&r, 1);
    for (size_t d = 0; d < D; d++)
        one[d] = 1;
    for (size_t i = 0; i < T * D; i++) { /* small whole numbers, so that 8x + 64 is exact */
        x[i] = (float)esp_rand_below(&r, 1000);
        y[i] = 8 * x[i] + 64;
    }
    esp_ref_layernorm(a, x, one, zero, T, D, 0);
    esp_ref_layernorm(b, y, one, zero, T, D, 0);
    expect_near(a, b, T * D, 1e-12);
}

static void rmsnorm_by_hand(void **state)
{
    const float x[] = {1, 7, -3, -3}, weight[] = {0, 1}; /* mean squares 25 and 9; 1 + weight is 1 and 2 */
    const double want[] = {0.2, 2.8, -1, -2}, with_eps[] = {1.0 / 13, 14.0 / 13};
    double out[4];
    esp_ref_rmsnorm(out, x, weight, 2, 2, 0);
    expect_near(out, want, 4, 1e-15);
    esp_ref_rmsnorm(out, x, weight, 1, 2, 144);
    expect_near(out, with_eps, 2, 1e-15);
}

static void matmul_by_hand(void **state)
{
    const float x[] = {1, 2, 3, -1, 0, 1}, w[] = {1, 1, 1, 0, 10, 100}, bias[] = {0.5f, -1};
    const double want[] = {6, 320, 0, 100}, with_bias[] = {6.5, 319, 0.5, 99};
    double out[4];
    esp_ref_matmul(out, x, w, NULL, 2, 2, 3);
    expect_near(out, want, 4, 0);
    esp_ref_matmul(out, x, w, bias, 2, 2, 3);
    expect_near(out, with_bias, 4, 0);
}

/* Both sides of every block and thread boundary, against the plain triple loop, bit for bit: the order of
 * every sum is the same. */
static void matmul_is_the_plain_loop(void **state)
{
    static const struct {
        size_t n_tok, n_out, n_in;
    } cases[] = {{0, 3, 5},   {1, 1, 1},   {3, 0, 5},     {2, 3, 0},      {1, 7, 511},
                 {2, 8, 512}, {3, 9, 513}, {5, 17, 1025}, {1, 999, 1201}, {37, 203, 700}};
    struct esp_rand r;
    esp_rand_init(&r, 2);
    for (size_t i = 0; i < COUNT(cases); i++) {
        const size_t T = cases[i].n_tok, N = cases[i].n_out, K = cases[i].n_in;
        float *x = room(T * K + 1, sizeof *x), *w = random_floats(&r, N * K + 1, 0.1);
        float *bias = random_floats(&r, N + 1, 1);
        double *got = room(T * N + 1, sizeof *got), *want = room(T * N + 1, sizeof *want);
        esp_rand_fill_outliers(&r, x, T, K, 1, 3, 1e4);
        got[T * N] = 42; /* stays */
        for (size_t t = 0; t < T; t++) {
            for (size_t n = 0; n < N; n++) {
                double sum = 0;
                for (size_t k = 0; k < K; k++)
                    sum += (double)x[t * K + k] * w[n * K + k];
                want[t * N + n] = sum + bias[n];
            }
        }
        esp_ref_matmul(got, x, w, bias, T, N, K);
        expect_near(got, want, T * N, 0);
        assert_true(got[T * N] == 42);
        free(x);
        free(w);
        free(bias);
        free(got);
        free(want);
    }
}

static void gelu_values(void **state)
{
    /* the tanh form, computed with 40 digits; the erf form has 0.841344746 at 1 and -0.045500264 at -2 */
    static const struct {
        float x;
        double want;
    } cases[] = {{0, 0},
                 {1, 0.841191990608276705},
                 {-1, -0.158808009391723295},
                 {-2, -0.0454023059122249812},
                 {3, 2.99636260791822698},
                 {0.5f, 0.345714009825143922},
                 {1e4f, 1e4},
                 {-1e4f, 0},
                 {1e30f, 1e30f}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        const float up = 2;
        double out;
        esp_ref_gelu_tanh(&out, &cases[i].x, 1);
        expect_near(&out, &cases[i].want, 1, 1e-13);
        assert_true(out == esp_ref_gelu(cases[i].x));
        esp_ref_geglu(&out, &cases[i].x, &up, 1);
        assert_true(out == 2 * esp_ref_gelu(cases[i].x));
    }
    for (float x = -6; x < 6; x += 0.37f) { /* gelu(x) - gelu(-x) = x in either form */
        const double difference = esp_ref_gelu(x) - esp_ref_gelu(-x), want = x;
        expect_near(&difference, &want, 1, 1e-14);
    }
}

static void rope_by_hand(void **state)
{
    /* H = 4, theta 100: angles pos and pos / 10; pairs (0, 2) and (1, 3) */
    const float x[] = {1, 0, 0, 2, 1, 0, 0, 2};
    const uint32_t pos[] = {0, 3};
    const double want[] = {1, 0, 0, 2, cos(3), -2 * sin(0.3), sin(3), 2 * cos(0.3)};
    double out[8];
    esp_ref_rope(out, x, pos, 2, 1, 4, 100);
    expect_near(out, want, 8, 1e-15);
}

static double dot(const double *a, const double *b, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

static void rope_keeps_norms_and_distances(void **state)
{
    enum { N = 3, H = 64 };
    struct esp_rand r;
    float q[N * H], k[N * H];
    double q_a[N * H], k_a[N * H], q_b[N * H], k_b[N * H], q_0[N * H];
    const uint32_t zero = 0, at_q = 5, at_k = 2, far_q = 4005, far_k = 4002;
    esp_rand_init(&r, 3);
    esp_rand_fill(&r, q, N * H, 1);
    esp_rand_fill(&r, k, N * H, 1);
    esp_ref_rope(q_0, q, &zero, 1, N, H, 10000);
    esp_ref_rope(q_a, q, &at_q, 1, N, H, 10000);
    esp_ref_rope(k_a, k, &at_k, 1, N, H, 10000);
    esp_ref_rope(q_b, q, &far_q, 1, N, H, 10000);
    esp_ref_rope(k_b, k, &far_k, 1, N, H, 10000);
    for (size_t i = 0; i < N * H; i++)
        assert_true(q_0[i] == q[i]); /* position 0 turns nothing */
    for (size_t n = 0; n < N; n++) {
        const double norm = dot(q_a + n * H, q_a + n * H, H), norm_0 = dot(q_0 + n * H, q_0 + n * H, H);
        const double near = dot(q_a + n * H, k_a + n * H, H), far = dot(q_b + n * H, k_b + n * H, H);
        expect_near(&norm, &norm_0, 1, 1e-12);
        expect_near(&near, &far, 1, 1e-10); /* only the distance, 3, counts */
        assert_true(fabs(near - dot(q_b + n * H, k_a + n * H, H)) > 1e-3);
    }
    esp_ref_rope_f64(q_a, &far_k, 1, N, H, 10000); /* 5 and then 4002: as 4007 at once */
    const uint32_t sum = at_q + far_k;
    esp_ref_rope(q_b, q, &sum, 1, N, H, 10000);
    expect_near(q_a, q_b, N * H, 1e-10);
}

static void attention_by_hand(void **state)
{
    /* H = 1; scores are ln 1, ln 2, ln 5 after a scale of 0.5: weights 1/8, 2/8, 5/8 */
    const float q[] = {1}, k[] = {0, (float)(2 * M_LN2), (float)(2 * log(5))}, v[] = {8, 16, 80};
    const struct esp_ref_span all = {0, 3}, two = {1, 3}, none = {2, 2};
    const double want = 55, want_two = (2 * 16 + 5 * 80) / 7.0;
    double out;
    esp_ref_attention(&out, q, k, v, &all, 1, 1, 1, 1, 0.5, 0);
    expect_near(&out, &want, 1, 1e-5);
    esp_ref_attention(&out, q, k, v, &two, 1, 1, 1, 1, 0.5, 0);
    expect_near(&out, &want_two, 1, 1e-5);
    esp_ref_attention(&out, q, k, v, &none, 1, 1, 1, 1, 0.5, 0);
    assert_true(out == 0);

    const float big[] = {0, 1e6f}, values[] = {0, 1}; /* capped: scores 0 and 3, weights 1 and e^3 */
    const struct esp_ref_span pair = {0, 2};
    const double capped = exp(3) / (1 + exp(3));
    esp_ref_attention(&out, q, big, values, &pair, 1, 1, 1, 1, 1, 3);
    expect_near(&out, &capped, 1, 1e-15);
}

static void attention_identities(void **state)
{
    enum { T = 5, S = 9, N = 6, K = 2, H = 10 };
    struct esp_rand r;
    float q[T * N * H], k[S * K * H], v[S * K * H], ones[S * K * H];
    struct esp_ref_span span[T] = {{0, 9}, {3, 4}, {0, 5}, {8, 9}, {2, 9}};
    double out[T * N * H], one = 1;
    esp_rand_init(&r, 4);
    esp_rand_fill(&r, q, COUNT(q), 30); /* scores of hundreds: exp of them as they are would overflow */
    esp_rand_fill(&r, k, COUNT(k), 30);
    esp_rand_fill(&r, v, COUNT(v), 1);
    for (size_t i = 0; i < COUNT(ones); i++)
        ones[i] = 1;

    esp_ref_attention(out, q, k, ones, span, T, N, K, H, 1, 0); /* the weights sum to one */
    for (size_t i = 0; i < COUNT(out); i++)
        expect_near(out + i, &one, 1, 1e-14);

    esp_ref_attention(out, q, k, v, span, T, N, K, H, 1,
                      0); /* a single position: its value, of the group's head */
    for (size_t n = 0; n < N; n++) {
        for (size_t h = 0; h < H; h++) {
            assert_true(out[(1 * N + n) * H + h] == v[(3 * K + n / 3) * H + h]);
            assert_true(out[(3 * N + n) * H + h] == v[(8 * K + n / 3) * H + h]);
        }
    }

    double mean[K * H] = {0};
    for (size_t j = 0; j < S; j++) {
        for (size_t i = 0; i < K * H; i++)
            mean[i] += v[j * K * H + i] / 9.0;
    }
    esp_ref_attention(out, q, k, v, span, 1, N, K, H, 0, 0); /* equal scores: the mean */
    for (size_t n = 0; n < N; n++)
        expect_near(out + n * H, mean + n / 3 * H, H, 1e-14);
}

/* Query head n sees KV head n / (N/K) and nothing of the others: as that head's own arrays alone would have
 * it. */
static void attention_groups_heads(void **state)
{
    enum { T = 3, S = 7, N = 6, K = 2, H = 5 };
    struct esp_rand r;
    float q[T * N * H], k[S * K * H], v[S * K * H], q_n[T * H], k_n[S * H], v_n[S * H];
    const struct esp_ref_span span[T] = {{0, 7}, {2, 6}, {0, 3}};
    double out[T * N * H], out_n[T * H];
    esp_rand_init(&r, 8);
    esp_rand_fill(&r, q, COUNT(q), 1);
    esp_rand_fill(&r, k, COUNT(k), 1);
    esp_rand_fill(&r, v, COUNT(v), 1);
    esp_ref_attention(out, q, k, v, span, T, N, K, H, 0.5, 2);
    for (size_t n = 0; n < N; n++) {
        for (size_t t = 0; t < T; t++)
            memcpy(q_n + t * H, q + (t * N + n) * H, H * sizeof *q);
        for (size_t j = 0; j < S; j++) {
            memcpy(k_n + j * H, k + (j * K + n / 3) * H, H * sizeof *k);
            memcpy(v_n + j * H, v + (j * K + n / 3) * H, H * sizeof *v);
        }
        esp_ref_attention(out_n, q_n, k_n, v_n, span, T, 1, 1, H, 0.5, 2);
        for (size_t t = 0; t < T; t++)
            expect_near(out + (t * N + n) * H, out_n + t * H, H, 0);
    }
}

/* Enough work for two threads: rows must not depend on which of them computed them. */
static void attention_is_the_same_row_by_row(void **state)
{
    enum { T = 67, N = 4, K = 1, H = 64 };
    struct esp_rand r;
    float *q, *k, *v;
    double *whole = room(T * N * H, sizeof *whole), row[N * H];
    struct esp_ref_span span[T];
    esp_rand_init(&r, 5);
    q = random_floats(&r, T * N * H, 1);
    k = random_floats(&r, T * K * H, 1);
    v = random_floats(&r, T * K * H, 1);
    esp_ref_prefix_lm(span, T, 0, 40, 8);
    esp_ref_attention(whole, q, k, v, span, T, N, K, H, 0.125, 50);
    for (size_t t = 0; t < T; t++) {
        esp_ref_attention(row, q + t * N * H, k, v, span + t, 1, N, K, H, 0.125, 50);
        expect_near(row, whole + t * N * H, N * H, 0);
    }
    free(q);
    free(k);
    free(v);
    free(whole);
}

static void prefix_lm_intervals(void **state)
{
    static const struct {
        uint32_t pos, n_prefix, window, lo, hi;
    } cases[] = {{0, 5, 0, 0, 5}, {4, 5, 0, 0, 5},  {5, 5, 0, 0, 6}, {9, 5, 0, 0, 10}, {4, 5, 2, 0, 5},
                 {5, 5, 2, 4, 6}, {9, 5, 1, 9, 10}, {3, 0, 4, 0, 4}, {4, 0, 4, 1, 5},  {0, 0, 0, 0, 1}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct esp_ref_span span;
        esp_ref_prefix_lm(&span, 1, cases[i].pos, cases[i].n_prefix, cases[i].window);
        if (span.lo != cases[i].lo || span.hi != cases[i].hi)
            fail_msg("case %zu: [%u, %u)", i, span.lo, span.hi);
    }
    struct esp_ref_span run[3];
    esp_ref_prefix_lm(run, 3, 4, 5, 0);
    assert_int_equal(run[0].hi, 5);
    assert_int_equal(run[1].hi, 6);
    assert_int_equal(run[2].hi, 7);
}

static void patch_embed_is_the_plain_convolution(void **state)
{
    enum { C = 3, S = 17, P = 5, G = 3, D = 7 }; /* two rows and columns of pixels are left out */
    struct esp_rand r;
    float pixels[C * S * S], weight[D * C * P * P], bias[D], position[G * G * D];
    double got[G * G * D], want[G * G * D];
    esp_rand_init(&r, 6);
    esp_rand_fill(&r, pixels, COUNT(pixels), 1);
    esp_rand_fill(&r, weight, COUNT(weight), 1);
    esp_rand_fill(&r, bias, COUNT(bias), 1);
    esp_rand_fill(&r, position, COUNT(position), 1);
    for (int with = 0; with < 2; with++) {
        for (size_t gy = 0; gy < G; gy++) {
            for (size_t gx = 0; gx < G; gx++) {
                for (size_t d = 0; d < D; d++) {
                    double sum = 0;
                    for (size_t c = 0; c < C; c++) {
                        for (size_t y = 0; y < P; y++) {
                            for (size_t x = 0; x < P; x++)
                                sum += (double)pixels[c * S * S + (gy * P + y) * S + gx * P + x] *
                                       weight[((d * C + c) * P + y) * P + x];
                        }
                    }
                    const size_t i = (gy * G + gx) * D + d;
                    want[i] = with ? sum + bias[d] + position[i] : sum;
                }
            }
        }
        esp_ref_patch_embed(got, pixels, weight, with ? bias : NULL, with ? position : NULL, C, S, P, D);
        expect_near(got, want, COUNT(got), 1e-13);
    }
}

static void embed_and_softcap(void **state)
{
    const float table[] = {1, 2, 3, 4, 5, 6}, x[] = {0, 30, -1e6f};
    const uint32_t id[] = {2, 0};
    const double rows[] = {10, 12, 2, 4}, capped[] = {0, 30 * tanh(1), -30}, same[] = {0, 30, -1e6};
    double out[4];
    esp_ref_embed(out, table, id, 2, 2, 2);
    expect_near(out, rows, 4, 0);
    esp_ref_softcap(out, x, 3, 30);
    expect_near(out, capped, 3, 1e-14);
    esp_ref_softcap(out, x, 3, 0);
    expect_near(out, same, 3, 0);
}

static void logsumexp_values(void **state)
{
    static const struct {
        float x[3];
        size_t n;
        double want;
    } cases[] = {{{0}, 1, 0},
                 {{0, 0, 0}, 3, 1.0986122886681098},
                 {{1e4f, 1e4f}, 2, 1e4 + 0.6931471805599453}, /* exp(1e4) overflows */
                 {{-1e4f, -1e4f}, 2, -1e4 + 0.6931471805599453},
                 {{5, -INFINITY, -INFINITY}, 3, 5},
                 {{-INFINITY, -INFINITY}, 2, -INFINITY},
                 {{0, INFINITY}, 2, INFINITY},
                 {{0}, 0, -INFINITY}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        const double got = esp_ref_logsumexp(cases[i].x, cases[i].n);
        if (got != cases[i].want && !(fabs(got - cases[i].want) < 1e-11))
            fail_msg("case %zu: got %.17g, want %.17g", i, got, cases[i].want);
    }
    const float nan_in[] = {1, NAN, INFINITY};
    assert_true(isnan(esp_ref_logsumexp(nan_in, 3)));
}

static int by_logit_then_id(const void *pa, const void *pb)
{
    const struct esp_ref_top *a = pa, *b = pb;
    if (a->logit != b->logit)
        return a->logit < b->logit ? 1 : -1;
    return a->id < b->id ? -1 : 1;
}

static void topk_is_a_sort(void **state)
{
    enum { V = 1000 };
    static const size_t ks[] = {0, 1, 7, 64, V - 1, V, V + 5};
    struct esp_rand r;
    float x[V];
    struct esp_ref_top all[V], got[V + 5];
    esp_rand_init(&r, 7);
    for (uint32_t i = 0; i < V; i++) {
        x[i] = (float)esp_rand_below(&r, 50); /* many ties */
        all[i] = (struct esp_ref_top){i, x[i]};
    }
    qsort(all, V, sizeof *all, by_logit_then_id);
    for (size_t i = 0; i < COUNT(ks); i++) {
        const size_t n = esp_ref_topk(got, x, V, ks[i]);
        assert_int_equal(n, ks[i] < V ? ks[i] : V);
        for (size_t j = 0; j < n; j++) {
            assert_int_equal(got[j].id, all[j].id);
            assert_true(got[j].logit == all[j].logit);
        }
    }
}

static void topk_of_odd_numbers(void **state)
{
    const float x[] = {NAN, -0.0f, -INFINITY, 0.0f, INFINITY, NAN};
    const uint32_t want[] = {4, 1, 3, 2, 0, 5};
    struct esp_ref_top got[6];
    assert_int_equal(esp_ref_topk(got, x, 6, 6), 6);
    for (size_t i = 0; i < 6; i++)
        assert_int_equal(got[i].id, want[i]);
    assert_int_equal(esp_ref_topk(got, x, 0, 6), 0);
}

/* The value of 16 bits by the definition of the format, apart from the code under test. */
static double value_of(uint16_t bits, int n_fraction, int bias)
{
    const int fraction = bits & ((1 << n_fraction) - 1), exponent = (bits & 0x7fff) >> n_fraction;
    const double magnitude = exponent ? ldexp(1 + ldexp(fraction, -n_fraction), exponent - bias)
                                      : ldexp(fraction, 1 - bias - n_fraction);
    return bits & 0x8000 ? -magnitude : magnitude;
}

/* Every finite number stays itself, and between it and the next one the nearer is taken, the even one midway.
 */
static void every_number_rounds(uint16_t (*to)(float), float (*from)(uint16_t), int n_fraction, int bias)
{
    const uint16_t infinity = (uint16_t)(0x7fff >> n_fraction << n_fraction);
    for (uint32_t b = 0; b < infinity; b++) {
        const double x = value_of((uint16_t)b, n_fraction, bias),
                     next = value_of((uint16_t)(b + 1), n_fraction, bias);
        const float mid = (float)((x + next) / 2); /* exact: float32 has bits enough */
        const uint16_t even = (uint16_t)(b & 1 ? b + 1 : b);
        assert_true(from((uint16_t)b) == (float)x && from((uint16_t)(b | 0x8000)) == -(float)x);
        if (to((float)x) != b || to(-(float)x) != (b | 0x8000))
            fail_msg("%#x is not itself", b);
        if (to(mid) != even || to(-mid) != (even | 0x8000))
            fail_msg("midway after %#x: %#x", b, to(mid));
        if (to(nextafterf(mid, 0)) != b || to(nextafterf(mid, INFINITY)) != b + 1)
            fail_msg("about midway after %#x: %#x, %#x", b, to(nextafterf(mid, 0)),
                     to(nextafterf(mid, INFINITY)));
    }
    assert_int_equal(to(INFINITY), infinity);
    assert_int_equal(to(-INFINITY), infinity | 0x8000);
    assert_int_equal(to(FLT_MAX), infinity);
    assert_true(isinf(from(infinity)) && from(infinity | 0x8000) < 0);
    assert_true(isnan(from(infinity + 1)) && isnan(from(0xffff)));
    for (uint32_t payload = 1; payload < 0x800000;
         payload = payload * 2 + 1) { /* NaN, the least payload included */
        const uint32_t u = 0x7f800000 | payload;
        float nan_in;
        memcpy(&nan_in, &u, sizeof nan_in);
        assert_true(isnan(from(to(nan_in))));
    }
}

static void bf16_rounding(void **state)
{
    every_number_rounds(esp_ref_f32_to_bf16, esp_ref_bf16_to_f32, 7, 127);
}

static void f16_rounding(void **state)
{
    every_number_rounds(esp_ref_f32_to_f16, esp_ref_f16_to_f32, 10, 15);
    assert_int_equal(esp_ref_f32_to_f16(FLT_TRUE_MIN), 0);
    assert_int_equal(esp_ref_f32_to_f16(-FLT_TRUE_MIN), 0x8000);
}

static void narrow_rounds_to_nearest(void **state)
{
    const double x[] = {1 + 0x1p-24, 1 + 0x1.8p-23, 1e300};
    float out[3];
    esp_ref_narrow(out, x, 3);
    assert_true(out[0] == 1 && out[1] == 1 + 0x1p-22f && isinf(out[2]));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layernorm_by_hand),
        cmocka_unit_test(layernorm_ignores_shift_and_scale),
        cmocka_unit_test(rmsnorm_by_hand),
        cmocka_unit_test(matmul_by_hand),
        cmocka_unit_test(matmul_is_the_plain_loop),
        cmocka_unit_test(gelu_values),
        cmocka_unit_test(rope_by_hand),
        cmocka_unit_test(rope_keeps_norms_and_distances),
        cmocka_unit_test(attention_by_hand),
        cmocka_unit_test(attention_identities),
        cmocka_unit_test(attention_groups_heads),
        cmocka_unit_test(attention_is_the_same_row_by_row),
        cmocka_unit_test(prefix_lm_intervals),
        cmocka_unit_test(patch_embed_is_the_plain_convolution),
        cmocka_unit_test(embed_and_softcap),
        cmocka_unit_test(logsumexp_values),
        cmocka_unit_test(topk_is_a_sort),
        cmocka_unit_test(topk_of_odd_numbers),
        cmocka_unit_test(bf16_rounding),
        cmocka_unit_test(f16_rounding),
        cmocka_unit_test(narrow_rounds_to_nearest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
