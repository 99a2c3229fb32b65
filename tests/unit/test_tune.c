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

#include "worker/kernels.h"
#include "worker/tune.h"

#define KIB(n) ((n) << 10)

/* A device with NVIDIA's shapes, and so much shared memory. */
static struct esp_vk device(uint32_t shared_bytes)
{
    struct esp_vk vk = {.cls = ESP_VK_GPU, .n_coop = 2, .coop_wave = 32, .coop = {{16, 16, 16}, {16, 8, 16}}};

    vk.props.limits.maxComputeSharedMemorySize = shared_bytes;
    return vk;
}

/* What each type of weights can have in a build with cooperative matrices, and without. */
static bool built(enum esp_wtype type)
{
    return esp_kernel_find(ESP_K_MATMUL_COOP, ESP_VK_GPU, type) != NULL;
}

static void test_round_trip(void **state)
{
    const struct esp_vk vk = device(KIB(48));
    struct esp_vk_choice want[ESP_N_WTYPE] = {0}, got[ESP_N_WTYPE];
    char text[1024];

    for (int t = ESP_W_BF16; t < ESP_N_WTYPE; t++)
        want[t].matvec_threads = t % 2 ? 131072 : 32768;
    if (built(ESP_W_Q4)) {
        want[ESP_W_BF16] = (struct esp_vk_choice){{16, 16, 16}, 128, 128, 262144};
        want[ESP_W_Q4] = (struct esp_vk_choice){{16, 8, 16}, 64, 128, 65536};
    }
    esp_tune_format(text, sizeof text, want);
    assert_true(esp_tune_parse(got, &vk, text));
    assert_memory_equal(got, want, sizeof want);
}

/* What is taken before anything was measured can be kept and found again. */
static void test_default(void **state)
{
    struct esp_vk vk = device(KIB(48));
    struct esp_vk_choice got[ESP_N_WTYPE];
    char text[1024];

    esp_tune_default(&vk);
    for (int t = ESP_W_BF16; t < ESP_N_WTYPE; t++) {
        assert_int_equal(vk.choice[t].coop.m, built((enum esp_wtype)t) ? 16 : 0);
        assert_int_equal(vk.choice[t].tile_m, built((enum esp_wtype)t) ? 64 : 0);
    }
    esp_tune_format(text, sizeof text, vk.choice);
    assert_true(esp_tune_parse(got, &vk, text));
    assert_memory_equal(got, vk.choice, sizeof got);
}

#define NONE  " unit=0x0x0 tile=0x0 threads=131072\n"
#define FIRST "espalier-tuning 2\nbf16"
#define REST  "f16" NONE "f32" NONE "q8" NONE "q4" NONE

static void test_hostile(void **state)
{
    static const char *const bad[] = {
        "",
        "\n",
        "espalier-tuning 2\n",
        FIRST NONE "f16" NONE "f32" NONE "q8" NONE,
        FIRST " unit=0x0x0 tile=0x0 threads=131072" REST,
        FIRST NONE REST "\n",
        FIRST NONE REST "x",
        "espalier-tuning 1\nbf16" NONE REST,
        "espalier-tuning 2\nf16" NONE REST,
        "espalier-tuning 2\nbf16bf16bf16" NONE REST,
        FIRST " unit=16x16x16 tile=0x0 threads=131072\n" REST,
        FIRST " unit=0x0x0 tile=64x64 threads=131072\n" REST,
        FIRST " unit=16x16x8 tile=64x64 threads=131072\n" REST,
        FIRST " unit=16x16x16 tile=65x64 threads=131072\n" REST,
        FIRST " unit=16x16x16 tile=4294967360x64 threads=131072\n" REST,
        FIRST " unit=-16x16x16 tile=64x64 threads=131072\n" REST,
        FIRST " unit=00x0x0 tile=0x0 threads=131072\n" REST,
        FIRST " unit=0x0x0  tile=0x0 threads=131072\n" REST,
        FIRST " unit=0x0x0 tile=0x0 threads=0\n" REST,
        FIRST " unit=0x0x0 tile=0x0 threads=131073\n" REST,
        FIRST " unit=0x0x0 tile=0x0 threads=99999999999999999999\n" REST,
        FIRST NONE "f16" NONE "f32 unit=16x16x16 tile=64x64 threads=131072\nq8" NONE "q4" NONE,
    };
    const struct esp_vk vk = device(KIB(48));
    struct esp_vk_choice before[ESP_N_WTYPE], got[ESP_N_WTYPE];

    memset(before, 7, sizeof before);
    memcpy(got, before, sizeof got);
    assert_true(esp_tune_parse(got, &vk, FIRST NONE REST));
    memcpy(got, before, sizeof got);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        if (esp_tune_parse(got, &vk, bad[i]))
            fail_msg("taken: %s", bad[i]);
        assert_memory_equal(got, before, sizeof got);
    }
}

/* Tiles that the device's shared memory, or the shape of its products, does not allow. */
static void test_device(void **state)
{
    static const char large[] = FIRST " unit=16x16x16 tile=128x128 threads=131072\n" REST;
    static const char small[] = FIRST " unit=16x16x16 tile=64x64 threads=131072\n" REST;
    static const char none[] = FIRST NONE REST;
    struct esp_vk_choice got[ESP_N_WTYPE];
    struct esp_vk vk = device(KIB(32));

    assert_false(esp_tune_parse(got, &vk, large)); /* 36 KiB */
    assert_int_equal(esp_tune_parse(got, &vk, small), built(ESP_W_BF16));
    vk = device(KIB(16));
    assert_false(esp_tune_parse(got, &vk, small));
    assert_true(esp_tune_parse(got, &vk, none));
    vk = device(KIB(48));
    vk.n_coop = 0; /* no matrix units */
    assert_false(esp_tune_parse(got, &vk, small));
    assert_true(esp_tune_parse(got, &vk, none));
    vk = device(KIB(48));
    assert_true(esp_tune_tile_fits(&vk, &vk.coop[0], 32, 32));
    vk.coop_wave = 64; /* more threads than such a tile has anything to load for */
    assert_false(esp_tune_tile_fits(&vk, &vk.coop[0], 32, 32));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_round_trip), cmocka_unit_test(test_default),
                                       cmocka_unit_test(test_hostile), cmocka_unit_test(test_device)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
