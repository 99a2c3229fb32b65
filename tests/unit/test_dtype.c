/* Element types: sizes, names, and every half and bfloat16 number against its definition. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "model/dtype.h"

/* The value by definition, from sign, exponent and mantissa, in float64: independent of bit tricks. */
static double value_of(uint16_t h, int n_exponent, int n_mantissa)
{
    int bias = (1 << (n_exponent - 1)) - 1;
    int exponent = h >> n_mantissa & ((1 << n_exponent) - 1);
    int mantissa = h & ((1 << n_mantissa) - 1);
    double sign = h & 0x8000 ? -1.0 : 1.0;

    if (exponent == (1 << n_exponent) - 1)
        return mantissa ? (double)NAN : sign * (double)INFINITY;
    if (exponent == 0)
        return sign * ldexp(mantissa, 1 - bias - n_mantissa);
    return sign * ldexp(1.0 + ldexp(mantissa, -n_mantissa), exponent - bias);
}

static void check_value(uint16_t h, float got, double want)
{
    if (isnan(want) ? !isnan(got) : (double)got != want || !signbit(got) != !signbit(want))
        fail_msg("0x%04x: got %.9g, expected %.9g", h, (double)got, want);
}

static void test_every_f16(void **state)
{
    for (uint32_t h = 0; h <= 0xffff; h++)
        check_value((uint16_t)h, esp_f16_to_f32((uint16_t)h), value_of((uint16_t)h, 5, 10));
}

static void test_every_bf16(void **state)
{
    for (uint32_t h = 0; h <= 0xffff; h++)
        check_value((uint16_t)h, esp_bf16_to_f32((uint16_t)h), value_of((uint16_t)h, 8, 7));
}

static void test_nan_keeps_its_payload(void **state)
{
    static const struct {
        uint16_t h;
        uint32_t f16, bf16;
    } cases[] = {
        {0x7e01, 0x7fc02000u, 0x7e010000u},
        {0xfc01, 0xff802000u, 0xfc010000u},
        {0x7fff, 0x7fffe000u, 0x7fff0000u},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        float a = esp_f16_to_f32(cases[i].h), b = esp_bf16_to_f32(cases[i].h);
        uint32_t bits[2];
        memcpy(&bits[0], &a, 4);
        memcpy(&bits[1], &b, 4);
        assert_int_equal(bits[0], cases[i].f16);
        assert_int_equal(bits[1], cases[i].bf16);
    }
}

/* Every type from every alignment: what lies in a mapped file begins anywhere. */
static void test_arrays_of_any_alignment(void **state)
{
    static const uint16_t halves[5] = {0x3c00, 0xc000, 0x0001, 0x7bff, 0x8000};
    static const uint16_t brains[5] = {0x3f80, 0xc000, 0x0001, 0x7f7f, 0x8000};
    static const float want16[5] = {1.0f, -2.0f, 0x1p-24f, 65504.0f, -0.0f};
    static const float want_b[5] = {1.0f, -2.0f, 0x1p-133f, 0x1.fep127f, -0.0f};
    unsigned char raw[5 * 4 + 4];
    float out[5];

    for (size_t shift = 0; shift < 4; shift++) {
        memcpy(raw + shift, halves, sizeof halves);
        esp_dtype_to_f32(out, raw + shift, ESP_F16, 5);
        assert_memory_equal(out, want16, sizeof out);
        memcpy(raw + shift, brains, sizeof brains);
        esp_dtype_to_f32(out, raw + shift, ESP_BF16, 5);
        assert_memory_equal(out, want_b, sizeof out);
        memcpy(raw + shift, want16, sizeof want16);
        esp_dtype_to_f32(out, raw + shift, ESP_F32, 5);
        assert_memory_equal(out, want16, sizeof out);
    }
    out[0] = 42.0f;
    esp_dtype_to_f32(out, raw, ESP_F16, 0);
    esp_dtype_to_f32(out, raw, ESP_F32, 0);
    assert_true(out[0] == 42.0f);
}

static void test_sizes_and_names(void **state)
{
    static const struct {
        int dtype;
        size_t n_bytes;
        const char *name;
    } cases[] = {{ESP_F32, 4, "f32"}, {ESP_F16, 2, "f16"}, {ESP_BF16, 2, "bf16"},
                 {ESP_I32, 4, "i32"}, {ESP_U8, 1, "u8"},   {6, 0, "q8"},
                 {7, 0, "q4"},        {8, 0, "unset"},     {ESP_DTYPE_UNSET, 0, "unset"},
                 {250, 0, "unset"}};

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_int_equal(esp_dtype_n_bytes((enum esp_dtype)cases[i].dtype), cases[i].n_bytes);
        assert_string_equal(esp_dtype_name((enum esp_dtype)cases[i].dtype), cases[i].name);
    }
}

/* Narrowing: each number to itself, what lies between two to the nearer one, ties to even, and past the ends. */
static void check_narrow(uint16_t (*narrow)(float), float (*widen)(uint16_t), uint16_t infinity)
{
    for (uint32_t h = 0; h < infinity; h++) {
        const float x = widen((uint16_t)h);
        const double next =
            h + 1 < infinity ? widen((uint16_t)(h + 1)) : 2 * (double)x - widen((uint16_t)(h - 1));
        const double middle = ((double)x + next) / 2;
        const uint16_t even = (uint16_t)(h % 2 ? h + 1 : h);

        assert_int_equal(narrow(x), h);
        assert_int_equal(narrow(-x), h | 0x8000);
        assert_int_equal(narrow((float)middle), even); /* exact in float32 */
        assert_int_equal(narrow(-(float)middle), even | 0x8000);
        assert_int_equal(narrow(nextafterf((float)middle, 0)), h);
        assert_int_equal(narrow(nextafterf((float)middle, INFINITY)), h + 1);
    }
    assert_int_equal(narrow(INFINITY), infinity);
    assert_int_equal(narrow(-INFINITY), infinity | 0x8000);
    assert_true(isnan(widen(narrow(NAN))));
    assert_true(isnan(widen(narrow(-NAN))));
}

static void test_narrow(void **state)
{
    const uint32_t low_nan = 0x7f800001u; /* whose upper half alone would be an infinity */
    float f;

    check_narrow(esp_f32_to_f16, esp_f16_to_f32, 0x7c00);
    check_narrow(esp_f32_to_bf16, esp_bf16_to_f32, 0x7f80);
    memcpy(&f, &low_nan, sizeof f);
    assert_true(isnan(esp_bf16_to_f32(esp_f32_to_bf16(f))));
    assert_true(isnan(esp_f16_to_f32(esp_f32_to_f16(f))));
    assert_int_equal(esp_f32_to_f16(1e30f), 0x7c00);
    assert_int_equal(esp_f32_to_f16(0x1p-25f), 0);
    assert_int_equal(esp_f32_to_f16(1e-30f), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_f16),
        cmocka_unit_test(test_every_bf16),
        cmocka_unit_test(test_nan_keeps_its_payload),
        cmocka_unit_test(test_arrays_of_any_alignment),
        cmocka_unit_test(test_sizes_and_names),
        cmocka_unit_test(test_narrow),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
