/*
 * What is remembered of a device's tuning: only what we write ourselves, and what the device can run, is taken.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "worker/tune.h"

#define KIB(n) ((n) << 10)

/* A device with NVIDIA's and AMD's shape, and so much shared memory. */
static struct esp_vk device(uint32_t shared_bytes)
{
    struct esp_vk vk = {.cls = ESP_VK_GPU, .coop = {16, 16, 16, 32}};

    vk.props.limits.maxComputeSharedMemorySize = shared_bytes;
    return vk;
}

static void test_round_trip(void **state)
{
    const struct esp_vk vk = device(KIB(48));
    const struct esp_vk_choice choices[] = {
        {true, 64, 64, 131072}, {true, 128, 128, 32768}, {false, 64, 64, 262144}};
    char text[256];

    for (size_t i = 0; i < sizeof choices / sizeof choices[0]; i++) {
        struct esp_vk_choice got = {0};
        esp_tune_format(text, sizeof text, &choices[i]);
        assert_true(esp_tune_parse(&got, &vk, text));
        assert_int_equal(got.coop, choices[i].coop);
        assert_int_equal(got.coop_m, choices[i].coop_m);
        assert_int_equal(got.coop_n, choices[i].coop_n);
        assert_int_equal(got.matvec_threads, choices[i].matvec_threads);
    }
}

static void test_hostile(void **state)
{
    static const char *const bad[] = {
        "",
        "\n",
        "espalier-tuning 1 coop=1 coop_m=64 coop_n=64 matvec_threads=131072",
        "espalier-tuning 1 coop=1 coop_m=64 coop_n=64 matvec_threads=131072\n\n",
        "espalier-tuning 1 coop=1 coop_m=64 coop_n=64 matvec_threads=131072\nx",
        "espalier-tuning 2 coop=1 coop_m=64 coop_n=64 matvec_threads=131072\n",
        "espalier-tuning 1 coop=2 coop_m=64 coop_n=64 matvec_threads=131072\n",
        "espalier-tuning 1 coop=-1 coop_m=64 coop_n=64 matvec_threads=131072\n",
        "espalier-tuning 1 coop=01 coop_m=64 coop_n=64 matvec_threads=131072\n",
        "espalier-tuning 1  coop=1 coop_m=64 coop_n=64 matvec_threads=131072\n",
        "espalier-tuning 1 coop=1 coop_m=0 coop_n=64 matvec_threads=131072\n",
        "espalier-tuning 1 coop=1 coop_m=65 coop_n=64 matvec_threads=131072\n",
        "espalier-tuning 1 coop=1 coop_m=4294967360 coop_n=64 matvec_threads=131072\n",
        "espalier-tuning 1 coop=1 coop_m=64 coop_n=64 matvec_threads=0\n",
        "espalier-tuning 1 coop=1 coop_m=64 coop_n=64 matvec_threads=131073\n",
        "espalier-tuning 1 coop=1 coop_m=64 coop_n=64 matvec_threads=99999999999999999999\n",
        "espalier-tuning 1 coop=0 coop_m=0 coop_n=0 matvec_threads=131072\n",
    };
    const struct esp_vk vk = device(KIB(48));
    const struct esp_vk_choice before = {false, 7, 8, 9};

    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct esp_vk_choice got = before;
        if (esp_tune_parse(&got, &vk, bad[i]))
            fail_msg("taken: %s", bad[i]);
        assert_int_equal(got.coop_m, before.coop_m);
        assert_int_equal(got.matvec_threads, before.matvec_threads);
    }
}

/* Tiles that the device's shared memory, or the shape of its products, does not allow. */
static void test_device(void **state)
{
    static const char large[] = "espalier-tuning 1 coop=1 coop_m=128 coop_n=128 matvec_threads=131072\n";
    static const char small[] = "espalier-tuning 1 coop=1 coop_m=64 coop_n=64 matvec_threads=131072\n";
    static const char none[] = "espalier-tuning 1 coop=0 coop_m=64 coop_n=64 matvec_threads=131072\n";
    struct esp_vk_choice got;
    struct esp_vk vk = device(KIB(32));

    assert_false(esp_tune_parse(&got, &vk, large)); /* 35 KiB */
    assert_true(esp_tune_parse(&got, &vk, small));
    vk = device(KIB(16));
    assert_false(esp_tune_parse(&got, &vk, small));
    assert_true(esp_tune_parse(&got, &vk, none));
    vk = device(KIB(48));
    vk.coop.m = 0; /* no matrix units */
    assert_false(esp_tune_parse(&got, &vk, small));
    assert_true(esp_tune_parse(&got, &vk, none));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_round_trip), cmocka_unit_test(test_hostile),
                                       cmocka_unit_test(test_device)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
