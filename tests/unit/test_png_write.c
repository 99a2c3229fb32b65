/* PNG files written and read back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "picture/image.h"
#include "picture/png_write.h"
#include "tests/support/file.h"
#include "tests/support/rand.h"

static void test_round_trip(void **state)
{
    static const struct {
        uint32_t width, height, n_channel;
    } cases[] = {{1, 1, 3}, {1, 1, 1}, {7, 3, 3}, {3, 7, 1}, {640, 1, 3}, {1, 480, 1}, {200, 150, 3}};
    struct esp_rand r;

    esp_rand_init(&r, 3);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const size_t n_pixel = (size_t)cases[i].width * cases[i].height, n = n_pixel * cases[i].n_channel;
        uint8_t *pixels = malloc(n), *file;
        struct esp_image image;
        size_t n_file;

        assert_non_null(pixels);
        for (size_t p = 0; p < n; p++)
            pixels[p] = (uint8_t)esp_rand_u64(&r);
        assert_int_equal(
            esp_png_encode(&file, &n_file, pixels, cases[i].width, cases[i].height, cases[i].n_channel, NULL),
            ESP_OK);
        assert_int_equal(esp_image_decode(&image, file, n_file, NULL, NULL), ESP_OK);
        assert_int_equal(image.width, cases[i].width);
        assert_int_equal(image.height, cases[i].height);
        for (size_t p = 0; p < n_pixel; p++)
            for (size_t c = 0; c < 3; c++)
                assert_int_equal(image.rgb[3 * p + c],
                                 cases[i].n_channel == 3 ? pixels[3 * p + c] : pixels[p]);
        esp_image_finish(&image);
        free(file);
        free(pixels);
    }
}

static void test_refusals(void **state)
{
    static const uint8_t pixel[4] = {0};
    uint8_t *file;
    size_t n;

    assert_int_equal(esp_png_encode(&file, &n, pixel, 0, 1, 3, NULL), ESP_E_ARG);
    assert_int_equal(esp_png_encode(&file, &n, pixel, 1, 0, 3, NULL), ESP_E_ARG);
    assert_int_equal(esp_png_encode(&file, &n, pixel, 1, 1, 2, NULL), ESP_E_ARG);
    assert_int_equal(esp_png_encode(&file, &n, pixel, 1, 1, 4, NULL), ESP_E_ARG);
    assert_int_equal(esp_png_encode(&file, &n, pixel, UINT32_MAX, 1, 1, NULL), ESP_E_LIMIT);
    assert_null(file);
}

/* Where libpng itself gets no memory. The sanitizer's allocator ends the process then, so it is not asked. */
static void test_no_memory(void **state)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    skip();
#else
    const uint32_t width = 64u << 20; /* libpng takes several buffers of a row */
    uint8_t *pixels = calloc(width, 1), *file;
    struct rlimit before, small;
    struct esp_err err;
    size_t n_pages, n;
    FILE *f = fopen("/proc/self/statm", "r");
    esp_status st;

    assert_true(pixels && f && fscanf(f, "%zu", &n_pages) == 1);
    fclose(f);
    assert_int_equal(getrlimit(RLIMIT_AS, &before), 0);
    small = before;
    small.rlim_cur = n_pages * (size_t)sysconf(_SC_PAGESIZE) + width / 2;
    assert_int_equal(setrlimit(RLIMIT_AS, &small), 0);
    st = esp_png_encode(&file, &n, pixels, width, 1, 1, &err);
    assert_int_equal(setrlimit(RLIMIT_AS, &before), 0);
    assert_int_not_equal(st, ESP_OK);
    assert_non_null(strstr(err.text, "PNG of 67108864 x 1 pixels"));
    assert_true(!file && n == 0);
    free(pixels);
#endif
}

static void test_files(void **state)
{
    static const uint8_t first[6] = {1, 2, 3, 4, 5, 6}, second[3] = {7, 8, 9};
    char dir[] = "/tmp/espalier-test-XXXXXX", path[64];
    struct esp_err err;
    struct esp_image image;
    struct stat info;
    size_t n;
    void *file;

    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/a.png", dir);
    assert_int_equal(esp_png_write(path, first, 2, 1, 3, NULL), ESP_OK);
    assert_int_equal(esp_png_write(path, second, 1, 1, 3, NULL), ESP_OK); /* in its place */
    file = esp_slurp(&n, "%s", path);
    assert_int_equal(esp_image_decode(&image, file, n, NULL, NULL), ESP_OK);
    assert_int_equal(image.width, 1);
    assert_memory_equal(image.rgb, second, 3);
    esp_image_finish(&image);
    free(file);
    unlink(path);

    assert_int_equal(esp_png_write(dir, first, 2, 1, 3, &err), ESP_E_IO);
    assert_non_null(strstr(err.text, dir));
    snprintf(path, sizeof path, "%s/no/a.png", dir);
    assert_int_equal(esp_png_write(path, first, 2, 1, 3, &err), ESP_E_IO);
    assert_non_null(strstr(err.text, "No such file"));
    assert_int_equal(esp_png_write("/dev/full", first, 2, 1, 3, &err), ESP_E_IO);
    assert_non_null(strstr(err.text, "/dev/full: No space left"));
    assert_int_equal(stat("/dev/full", &info), 0); /* it was not ours to remove */
    assert_int_equal(rmdir(dir), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_no_memory),
        cmocka_unit_test(test_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
