/* Seeded test data: the generators against published outputs, the arrays against what their headers promise.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>

#include "tests/support/rand.h"
#include "tests/support/ref.h"

static void random_numbers(void **state)
{
    enum { N = 100000 };
    struct esp_rand r, again;
    double sum = 0, square = 0, mean = 0;
    uint32_t seen[7] = {0};

    esp_rand_init(&r, 0); /* splitmix64's first outputs for seed 0, as published with it */
    assert_true(r.s[0] == 0xe220a8397b1dcdaf && r.s[1] == 0x6e789e6aa1b965f4);
    r = (struct esp_rand){{1, 2, 3, 4}}; /* xoshiro256**'s first outputs from there */
    assert_true(esp_rand_u64(&r) == 11520 && esp_rand_u64(&r) == 0 && esp_rand_u64(&r) == 1509978240);
    assert_true(esp_rand_u64(&r) == 1215971899390074240 && esp_rand_u64(&r) == 1216172134540287360);

    esp_rand_init(&r, 11);
    again = r;
    assert_true(esp_rand_u64(&r) == esp_rand_u64(&again));
    for (int i = 0; i < N; i++) {
        const double x = esp_rand_normal(&r), u = esp_rand_uniform(&r);
        assert_true(u >= 0 && u < 1);
        sum += x;
        square += x * x;
        mean += u;
        seen[esp_rand_below(&r, 7)]++;
    }
    assert_true(fabs(sum / N) < 0.015 && fabs(square / N - 1) < 0.02 && fabs(mean / N - 0.5) < 0.005);
    for (int i = 0; i < 7; i++)
        assert_true(seen[i] >= N / 7 - 600 && seen[i] <= N / 7 + 600);
    assert_int_equal(esp_rand_below(&r, 1), 0);
}

static void random_arrays(void **state)
{
    enum { T = 4, D = 96, OUTLIERS = 3 };
    struct esp_rand r, again;
    float x[T * D], w[D];
    uint16_t bits[D];
    size_t n_outlier = 0;

    esp_rand_init(&r, 12);
    esp_rand_fill_outliers(&r, x, T, D, 1, OUTLIERS, 1e4);
    for (size_t d = 0; d < D; d++) {
        size_t n_big = 0;
        for (size_t t = 0; t < T; t++)
            n_big += fabsf(x[t * D + d]) > 7;
        assert_true(n_big == 0 || n_big == T);
        n_outlier += n_big == T;
    }
    assert_int_equal(n_outlier, OUTLIERS);
    esp_rand_fill_outliers(&r, x, T, 2, 1, 5, 1e4); /* no more than there are */

    again = r;
    esp_rand_weights_bf16(&r, w, bits, D, 0.02);
    for (size_t d = 0; d < D; d++)
        assert_true(w[d] == esp_ref_bf16_to_f32(bits[d]) && fabsf(w[d]) <= 0.121f);
    esp_rand_weights_bf16(&again, NULL, NULL, D, 0.02);
    assert_memory_equal(&r, &again, sizeof r); /* as many draws whatever is wanted */
    esp_rand_weights_f16(&r, w, bits, D, 0.02);
    for (size_t d = 0; d < D; d++)
        assert_true(w[d] == esp_ref_f16_to_f32(bits[d]) && fabsf(w[d]) <= 0.121f);
    esp_rand_fill_uniform(&r, w, D, -3, -2);
    for (size_t d = 0; d < D; d++)
        assert_true(w[d] >= -3 && w[d] <= -2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_numbers),
        cmocka_unit_test(random_arrays),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
