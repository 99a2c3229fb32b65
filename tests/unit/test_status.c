/*
 * Codes, causes and checked sizes.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "proto/status.h"

/* The numbers are part of the protocol, so they stand here once more. */
static const struct {
    esp_status code;
    int number;
    const char *name;
} codes[] = {
    {ESP_OK, 0, "ok"},
    {ESP_E_ARG, 1, "bad argument"},
    {ESP_E_NOMEM, 2, "out of memory"},
    {ESP_E_IO, 3, "input/output error"},
    {ESP_E_FORMAT, 4, "bad file"},
    {ESP_E_PROTO, 5, "bad message"},
    {ESP_E_DEVICE, 6, "device error"},
    {ESP_E_TIMEOUT, 7, "timed out"},
    {ESP_E_CLOSED, 8, "connection closed"},
    {ESP_E_CANCELLED, 9, "cancelled"},
    {ESP_E_UNSUPPORTED, 10, "not supported"},
    {ESP_E_LIMIT, 11, "limit exceeded"},
    {ESP_E_INTERNAL, 12, "internal error"},
    {ESP_E_NUMBERS, 13, "no finite result"},
};

static void test_codes(void **state)
{
    for (size_t i = 0; i < sizeof codes / sizeof codes[0]; i++) {
        assert_int_equal(codes[i].code, codes[i].number);
        assert_string_equal(esp_status_name(codes[i].code), codes[i].name);
    }
    assert_string_equal(esp_status_name((esp_status)14), "no such code");
    assert_string_equal(esp_status_name((esp_status)4000000000u), "no such code");
}

static void test_fail(void **state)
{
    struct esp_err err = {0};
    char long_text[2 * ESP_ERR_TEXT_MAX];

    assert_int_equal(esp_fail(&err, ESP_E_IO, "%s: %d", "a", 7), ESP_E_IO);
    assert_int_equal(err.code, ESP_E_IO);
    assert_string_equal(err.text, "a: 7");
    assert_int_equal(esp_fail(NULL, ESP_E_IO, "%s", "nobody asks"), ESP_E_IO);
    memset(long_text, 'x', sizeof long_text - 1);
    long_text[sizeof long_text - 1] = '\0';
    esp_fail(&err, ESP_E_ARG, "%s", long_text);
    assert_int_equal(strlen(err.text), ESP_ERR_TEXT_MAX - 1);
}

static void test_prefix(void **state)
{
    struct esp_err err = {0};
    char long_text[ESP_ERR_TEXT_MAX];

    esp_fail(&err, ESP_E_DEVICE, "lost");
    assert_int_equal(esp_err_prefix(&err, "layer %d: ", 7), ESP_E_DEVICE);
    assert_int_equal(esp_err_prefix(&err, "w2: "), ESP_E_DEVICE);
    assert_string_equal(err.text, "w2: layer 7: lost");
    assert_int_equal(esp_err_prefix(NULL, "w2: "), ESP_E_INTERNAL);

    /* No room: the tail goes, the head stays. */
    memset(long_text, 'x', sizeof long_text - 1);
    long_text[sizeof long_text - 1] = '\0';
    esp_fail(&err, ESP_E_DEVICE, "%s", long_text);
    esp_err_prefix(&err, "w2: ");
    assert_int_equal(strlen(err.text), ESP_ERR_TEXT_MAX - 1);
    assert_true(strncmp(err.text, "w2: xxx", 7) == 0);
    esp_err_prefix(&err, "%s", long_text);
    assert_string_equal(err.text, long_text);
}

static void test_sizes(void **state)
{
    static const struct {
        size_t a, b;
        bool mul, add; /* fits */
    } cases[] = {
        {0, 0, true, true},
        {0, SIZE_MAX, true, true},
        {1, SIZE_MAX, true, false},
        {2, SIZE_MAX / 2, true, true},
        {2, SIZE_MAX / 2 + 1, false, true},
        {SIZE_MAX, SIZE_MAX, false, false},
        {(size_t)1 << 32, (size_t)1 << 32, false, true},
        {0xffffffff, 0xffffffff, true, true},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        for (int swap = 0; swap < 2; swap++) {
            size_t a = swap ? cases[i].b : cases[i].a, b = swap ? cases[i].a : cases[i].b, out = 77;
            assert_int_equal(esp_mul(&out, a, b), cases[i].mul);
            assert_true(out == (cases[i].mul ? a * b : 77)); /* untouched when it does not fit */
            out = 77;
            assert_int_equal(esp_add(&out, a, b), cases[i].add);
            assert_true(out == (cases[i].add ? a + b : 77));
        }
    }
    assert_int_equal(esp_round_up(0, 16), 0);
    assert_int_equal(esp_round_up(1, 16), 16);
    assert_int_equal(esp_round_up(16, 16), 16);
    assert_int_equal(esp_round_up(17, 3), 18);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_codes),
        cmocka_unit_test(test_fail),
        cmocka_unit_test(test_prefix),
        cmocka_unit_test(test_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
