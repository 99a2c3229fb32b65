/* Rates over the last seconds. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "coordinator/meter.h"

#define NEAR(a, b) assert_true(fabs((a) - (b)) < 1e-9)

/* The window that ends at 100.25 begins at 95.5, nine whole slots before the one that 100.25 is in. */
static void test_moments(void **state)
{
    struct esp_meter m = {0};

    assert_true(esp_meter_rate(&m, 100.25) == 0);
    esp_meter_add(&m, 100.25, 100.25, 3);
    NEAR(esp_meter_rate(&m, 100.25), 3 / 4.75);
    NEAR(esp_meter_rate(&m, 100.5), 3 / 4.5);
    esp_meter_add(&m, 104.9, 104.9, 1);
    NEAR(esp_meter_rate(&m, 104.9), 4 / 4.9);
    NEAR(esp_meter_rate(&m, 105.1), 1 / 4.6); /* the slot from 100 to 100.5 has left */
    assert_true(esp_meter_rate(&m, 1e6) == 0);
    esp_meter_add(&m, 1e6, 1e6, 2);
    NEAR(esp_meter_rate(&m, 1e6 + 0.25), 2 / 4.75);
}

static void test_steady(void **state)
{
    struct esp_meter m = {0};

    for (int i = 0; i < 4000; i++)
        esp_meter_add(&m, 10 + i * 0.01, 10 + i * 0.01, 1);
    assert_true(fabs(esp_meter_rate(&m, 50) - 100) < 0.5); /* of 45.5 .. 50, give or take one at its ends */
}

static void test_spans(void **state)
{
    struct esp_meter m = {0};

    /* Work that takes all the time is a rate of 1, however it is cut. */
    for (int i = 0; i < 100; i++)
        esp_meter_add(&m, 20 + i * 0.3, 20.3 + i * 0.3, 0.3);
    NEAR(esp_meter_rate(&m, 50), 1);
    /* What lies before the window is left out, and only that. */
    memset(&m, 0, sizeof m);
    esp_meter_add(&m, 0, 60.25, 60.25);
    NEAR(esp_meter_rate(&m, 60.25), 1);
    NEAR(esp_meter_rate(&m, 62.25), 2.75 / 4.75);
    memset(&m, 0, sizeof m);
    esp_meter_add(&m, 1, 50, 49);
    NEAR(esp_meter_rate(&m, 50), 1);
}

static void test_nonsense(void **state)
{
    struct esp_meter m = {0};

    esp_meter_add(&m, 100, 100, NAN);
    esp_meter_add(&m, 100, 100, INFINITY);
    esp_meter_add(&m, 100, 100, -1);
    esp_meter_add(&m, 101, 100, 1);
    esp_meter_add(&m, NAN, 100, 1);
    esp_meter_add(&m, -5, 100, 1);
    assert_true(esp_meter_rate(&m, 100) == 0);
    /* Late news of a time that is behind the newest slot, and of one behind the window. */
    esp_meter_add(&m, 100, 100, 1);
    esp_meter_add(&m, 98, 98, 1);
    esp_meter_add(&m, 50, 50, 1);
    NEAR(esp_meter_rate(&m, 100.25), 2 / 4.75);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_moments), cmocka_unit_test(test_steady),
                                       cmocka_unit_test(test_spans), cmocka_unit_test(test_nonsense)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
