/*
 * Every golden picture: decoding against the reference's RGB, preprocessing against its pixel values.
 *
 * PNGs must agree in every level. So do JPEGs where the installed libjpeg-turbo computes as the reference's
 * did; it is allowed to be off by JPEG_LEVELS, and then the pixel values are compared only from the golden
 * RGB on.
 */
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include <jansson.h>

#include "picture/image.h"
#include "coordinator/resize.h"
#include "tests/support/file.h"
#include "tests/support/golden.h"

#define DATA        "tests/golden/data"
#define JPEG_LEVELS 2

/* What all fixtures' preprocessor_config.json say; reading that file is tested with the config. */
static struct esp_config config_of(uint32_t side)
{
    struct esp_config config = {.vision.image_size = side,
                                .preprocess = {.resample = ESP_RESAMPLE_BICUBIC,
                                               .rescale_factor = 0.00392156862745098,
                                               .mean = {0.5f, 0.5f, 0.5f},
                                               .std = {0.5f, 0.5f, 0.5f}}};

    return config;
}

static int worst_level(const uint8_t *a, const uint8_t *b, size_t n, size_t *n_off)
{
    int worst = 0;

    *n_off = 0;
    for (size_t i = 0; i < n; i++) {
        const int off = abs(a[i] - b[i]);
        *n_off += off != 0;
        worst = off > worst ? off : worst;
    }
    return worst;
}

static void expect_pixels(const char *what, const struct esp_image *image, const float *want, uint32_t side)
{
    const struct esp_config config = config_of(side);
    const size_t n = 3 * (size_t)side * side;
    float *got = malloc(n * sizeof *got);
    struct esp_err err;

    assert_non_null(got);
    if (esp_image_preprocess(got, image, &config, &err))
        fail_msg("%s: %s", what, err.text);
    for (size_t i = 0; i < n; i++)
        if (memcmp(&got[i], &want[i], sizeof *got))
            fail_msg("%s: value %zu is %a, must be %a", what, i, got[i], want[i]);
    free(got);
}

static void check_picture(struct esp_golden *golden, const char *fixture, const char *name, const char *file)
{
    const bool is_jpeg = strstr(file, ".jpg") != NULL;
    const struct esp_tensor *shape = esp_golden_tensor(golden, "image.%s.rgb", name);
    struct esp_image got, want = {.height = (uint32_t)shape->shape[0], .width = (uint32_t)shape->shape[1]};
    const uint32_t side = (uint32_t)esp_golden_tensor(golden, "image.%s.pixel_values", name)->shape[1];
    size_t n_file, n_rgb, n_pixel, n_off;
    uint8_t *bytes = esp_slurp(&n_file, DATA "/%s/images/%s", fixture, file);
    const uint8_t *rgb = esp_golden_u8(golden, &n_rgb, "image.%s.rgb", name);
    const float *pixels = esp_golden_f32(golden, &n_pixel, "image.%s.pixel_values", name);
    struct esp_err err;
    uint32_t width, height;
    int worst;

    if (esp_image_decode(&got, bytes, n_file, NULL, &err))
        fail_msg("%s/%s: %s", fixture, file, err.text);
    if (esp_image_size(&width, &height, bytes, n_file, NULL, &err))
        fail_msg("%s/%s: %s", fixture, file, err.text);
    assert_true(width == got.width && height == got.height);
    assert_int_equal(got.width, want.width);
    assert_int_equal(got.height, want.height);
    assert_int_equal(n_rgb, 3 * (size_t)got.width * got.height);
    assert_int_equal(n_pixel, 3 * (size_t)side * side);
    worst = worst_level(got.rgb, rgb, n_rgb, &n_off);
    if (is_jpeg && worst > 0)
        print_message("%s/%s: %zu of %zu levels differ from the reference's decoder, by at most %d\n",
                      fixture, file, n_off, n_rgb, worst);
    if (worst > (is_jpeg ? JPEG_LEVELS : 0))
        fail_msg("%s/%s: %zu of %zu levels differ, by at most %d", fixture, file, n_off, n_rgb, worst);
    if (worst == 0)
        expect_pixels(file, &got, pixels, side);

    want.rgb = malloc(n_rgb);
    assert_non_null(want.rgb);
    memcpy(want.rgb, rgb, n_rgb);
    expect_pixels(name, &want, pixels, side);
    esp_image_finish(&want);
    esp_image_finish(&got);
    free(bytes);
}

static void check_fixture(const char *fixture, size_t n_expected)
{
    char path[128];
    json_error_t error;
    json_t *root, *images;
    struct esp_golden *golden;

    snprintf(path, sizeof path, DATA "/%s/golden.json", fixture);
    root = json_load_file(path, 0, &error);
    if (!root)
        fail_msg("%s: %s", path, error.text);
    images = json_object_get(root, "images");
    assert_int_equal(json_array_size(images), n_expected);
    snprintf(path, sizeof path, DATA "/%s/golden.safetensors", fixture);
    golden = esp_golden_open(path);
    for (size_t i = 0; i < n_expected; i++) {
        const json_t *image = json_array_get(images, i);
        check_picture(golden, fixture, json_string_value(json_object_get(image, "name")),
                      json_string_value(json_object_get(image, "file")));
    }
    esp_golden_close(&golden);
    json_decref(root);
}

static void tiny(void **state)
{
    check_fixture("tiny", 24);
}

static void odd(void **state)
{
    check_fixture("odd", 24);
}

static void tiny_pg2(void **state)
{
    check_fixture("tiny-pg2", 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tiny),
        cmocka_unit_test(odd),
        cmocka_unit_test(tiny_pg2),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
