/* The reader of golden tensors and the verdict on distances: a check that cannot fail would check nothing. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/support/golden.h"

#define FILE_NAME "tests/golden/data/tiny/golden.safetensors"

static void test_tensors_of_each_type(void **state)
{
    struct esp_golden *g = esp_golden_open(FILE_NAME);
    const struct esp_tensor *t = esp_golden_tensor(g, "vision.%d.layer.%d", 0, 1);
    size_t n;
    const float *x;

    assert_int_equal(t->n_dim, 2);
    assert_int_equal(t->shape[0], 16);
    assert_int_equal(t->shape[1], 144);
    assert_int_equal(esp_tensor_n_elem(t), 16 * 144);
    x = esp_golden_f32(g, &n, "vision.%d.layer.%d", 0, 1);
    assert_int_equal(n, 16 * 144);
    assert_memory_equal(x, t->data, t->n_bytes);
    assert_int_equal(esp_golden_i32(g, &n, "prefill.0.ids")[0], 5534); /* <image> */
    assert_int_equal(esp_golden_u8(g, &n, "prefill.0.mask")[0], 1);
    assert_true(esp_golden_has(g, "prefill.0.mask"));
    assert_false(esp_golden_has(g, "prefill.0.mask_sliding"));
    esp_golden_close(&g);
    assert_null(g);
    esp_golden_close(&g);
}

static void test_distances(void **state)
{
    static const struct {
        float got[3], want[3];
        double rel_l2, max_abs;
        size_t worst;
        bool finite;
    } cases[] = {
        {{1, 2, 3}, {1, 2, 3}, 0, 0, 0, true},
        {{0, 0, 0}, {0, 0, 0}, 0, 0, 0, true},
        {{3, 4, 5}, {3, 4, 0}, 1, 5, 2, true},
        {{1, 0, 0}, {0, 0, 0}, INFINITY, 1, 0, true},
        {{1, NAN, 3}, {1, 2, 3}, INFINITY, INFINITY, 1, false},
        {{1, 2, 3}, {1, 2, NAN}, INFINITY, INFINITY, 2, false},
        {{NAN, 0, 0}, {NAN, 0, 0}, INFINITY, INFINITY, 0, false},
        {{INFINITY, 0, 0}, {INFINITY, 0, 0}, INFINITY, INFINITY, 0, false},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct esp_distance d = esp_distance_f32(cases[i].got, cases[i].want, 3);
        if (d.rel_l2 != cases[i].rel_l2 || d.max_abs != cases[i].max_abs || d.worst != cases[i].worst ||
            d.finite != cases[i].finite)
            fail_msg("case %zu: relative L2 %g, max abs %g at %zu", i, d.rel_l2, d.max_abs, d.worst);
    }
    assert_true(esp_distance_f32(NULL, NULL, 0).finite);
}

static void test_verdicts(void **state)
{
    static const float want[3] = {3, 4, 0}, near[3] = {3, 4, 0.5f}, nan[3] = {3, 4, NAN};

    assert_true(esp_close_f32("equal", want, want, 3, 3, 0, 0));
    assert_true(esp_close_f32("near", near, want, 3, 3, 0.1, 0.5));
    assert_false(esp_close_f32("expected: beyond relative L2", near, want, 3, 3, 0.0999, INFINITY));
    assert_false(esp_close_f32("expected: beyond max abs", near, want, 3, 3, INFINITY, 0.499));
    assert_false(esp_close_f32("expected: not a number", nan, want, 3, 3, INFINITY, INFINITY));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tensors_of_each_type),
        cmocka_unit_test(test_distances),
        cmocka_unit_test(test_verdicts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
