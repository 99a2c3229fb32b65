/* Models that have a shape and no files. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/shape.h"

static struct esp_checkpoint *open_shape(const char *name)
{
    struct esp_checkpoint *ck;
    struct esp_err err = {0};

    if (esp_checkpoint_open(&ck, name, &err))
        fail_msg("%s: %s", name, err.text);
    return ck;
}

/* Random, finite, of the deviation that is promised, and no two tensors alike. */
static void test_weights(void **state)
{
    struct esp_checkpoint *ck = open_shape("shape:toy");
    const struct esp_tensor *gate = esp_checkpoint_tensor(ck, ESP_T_GATE_W, 0);
    const struct esp_tensor *up = esp_checkpoint_tensor(ck, ESP_T_UP_W, 0);
    const struct esp_tensor *table = esp_checkpoint_tensor(ck, ESP_T_EMBED, 0);
    const size_t n = table->n_bytes / 2;
    float *v = malloc(n * sizeof *v);
    double sum = 0, squares = 0;

    assert_non_null(v);
    assert_int_equal(table->dtype, ESP_BF16);
    assert_int_equal(n, 1024 * 64);
    esp_dtype_to_f32(v, table->data, table->dtype, n);
    for (size_t i = 0; i < n; i++) {
        assert_true(isfinite(v[i]));
        sum += (double)v[i];
        squares += (double)v[i] * (double)v[i];
    }
    assert_true(fabs(sum / (double)n) < 0.001);
    assert_true(fabs(sqrt(squares / (double)n) - 0.02) < 0.001);
    assert_int_equal(gate->n_bytes, up->n_bytes);
    assert_memory_not_equal(gate->data, up->data, gate->n_bytes);
    free(v);
    esp_checkpoint_destroy(&ck);
}

/* Coordinator and workers open it each for themselves and must find the same model. */
static void test_same_everywhere(void **state)
{
    struct esp_checkpoint *a = open_shape("shape:toy"), *b = open_shape("shape:toy"),
                          *c = open_shape("shape:toy,1/2");
    uint8_t x[ESP_FINGERPRINT_BYTES], y[ESP_FINGERPRINT_BYTES], z[ESP_FINGERPRINT_BYTES];

    esp_checkpoint_fingerprint(a, x);
    esp_checkpoint_fingerprint(b, y);
    esp_checkpoint_fingerprint(c, z);
    assert_memory_equal(x, y, sizeof x);
    assert_memory_not_equal(x, z, sizeof x);
    assert_int_equal(esp_checkpoint_config(c)->vision.n_layer, 1);
    assert_int_equal(esp_checkpoint_config(c)->text.n_layer, 2);
    assert_null(esp_checkpoint_tensor(c, ESP_T_Q_W, 2));
    esp_checkpoint_destroy(&a);
    esp_checkpoint_destroy(&b);
    esp_checkpoint_destroy(&c);
}

/* A full-size one takes addresses, and memory for nothing but what is looked at. */
static void test_full_size(void **state)
{
    struct esp_checkpoint *ck = open_shape("shape:paligemma-3b-224");
    const struct esp_tensor *table = esp_checkpoint_tensor(ck, ESP_T_EMBED, 0);
    uint16_t last;

    assert_int_equal(esp_checkpoint_n_bytes(ck), 2 * UINT64_C(2923466480));
    memcpy(&last, (const char *)table->data + table->n_bytes - 2, 2);
    assert_int_not_equal(last & 0x7f80, 0x7f80); /* no NaN, no infinity */
    esp_checkpoint_destroy(&ck);
}

static void test_cut(void **state)
{
    struct esp_checkpoint *ck = open_shape("shape:toy");
    struct esp_err err = {0};

    assert_int_equal(esp_checkpoint_cut(ck, 3, 1, &err), ESP_E_ARG);
    assert_int_equal(esp_checkpoint_cut(ck, 0, 1, &err), ESP_E_ARG);
    assert_int_equal(esp_checkpoint_cut(ck, 1, 0, &err), ESP_E_ARG);
    assert_int_equal(esp_checkpoint_config(ck)->vision.n_layer, 2);
    assert_int_equal(esp_checkpoint_cut(ck, 1, 3, &err), ESP_OK);
    assert_int_equal(esp_checkpoint_config(ck)->vision.n_layer, 1);
    assert_int_equal(esp_checkpoint_config(ck)->text.n_layer, 3);
    assert_null(esp_checkpoint_tensor(ck, ESP_V_Q_W, 1));
    esp_checkpoint_destroy(&ck);
}

static void test_bad_names(void **state)
{
    static const char *const bad[] = {
        "shape:",
        "shape:tiny",
        "shape:toy,",
        "shape:toy,1",
        "shape:toy,0/1",
        "shape:toy,1/0",
        "shape:toy,1/1x",
        "shape:toy,1/1,",
        "shape:,1/1",
        "shape:toy,-1/1",
        "shape:toy,99999999999/1",
        "shape:xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"};

    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct esp_checkpoint *ck;
        struct esp_err err = {0};

        if (esp_checkpoint_open(&ck, bad[i], &err) != ESP_E_ARG || ck)
            fail_msg("%s: %s", bad[i], err.text);
        assert_non_null(strstr(err.text, "paligemma-3b-224")); /* the way out: what there is */
        assert_non_null(strstr(err.text, "toy"));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_weights),   cmocka_unit_test(test_same_everywhere),
        cmocka_unit_test(test_full_size), cmocka_unit_test(test_cut),
        cmocka_unit_test(test_bad_names),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
