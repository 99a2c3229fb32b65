/* Objects drawn on pictures: what is to be seen where, on anything, and that nothing else is touched. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "objects/annotate.h"
#include "objects/font.h"
#include "tests/support/rand.h"

#define N_COLOURS 24

static struct esp_image flat(uint32_t width, uint32_t height, uint8_t level)
{
    struct esp_image image = {width, height, malloc((size_t)width * height * 3)};

    assert_non_null(image.rgb);
    memset(image.rgb, level, (size_t)width * height * 3);
    return image;
}

static const uint8_t *at(const struct esp_image *image, uint32_t y, uint32_t x)
{
    return image->rgb + 3 * ((size_t)y * image->width + x);
}

static bool is_colour(const struct esp_image *image, uint32_t y, uint32_t x, const uint8_t rgb[3])
{
    return memcmp(at(image, y, x), rgb, 3) == 0;
}

static int distance(const uint8_t *a, const uint8_t *b)
{
    return abs(a[0] - b[0]) + abs(a[1] - b[1]) + abs(a[2] - b[2]);
}

static void test_colours(void **state)
{
    uint8_t rgb[N_COLOURS][3], far[3];

    for (size_t i = 0; i < N_COLOURS; i++) {
        const uint8_t *c = rgb[i];

        esp_annotate_colour(rgb[i], i);
        assert_true(c[0] == 255 || c[1] == 255 || c[2] == 255); /* bright, */
        assert_true(c[0] < 64 || c[1] < 64 || c[2] < 64);       /* and no grey */
        for (size_t j = 0; j < i; j++)
            assert_true(distance(rgb[i], rgb[j]) > (i < 8 ? 100 : 16));
    }
    esp_annotate_colour(far, SIZE_MAX); /* any number has one */
}

/* A box: its outermost pixels in its colour all around, a seam darker than the ground on both sides, the rest as it was. */
static void test_box(void **state)
{
    static const uint8_t levels[] = {0, 90, 255};
    uint8_t rgb[3];

    esp_annotate_colour(rgb, 0);
    for (size_t l = 0; l < sizeof levels; l++) {
        struct esp_image image = flat(60, 50, levels[l]);
        const struct esp_drawn box = {{10, 20, 30, 45}, NULL, NULL};
        uint32_t n_line = 0, n_seam = 0, n_same = 0;

        assert_int_equal(esp_annotate(&image, &box, 1, NULL), ESP_OK);
        for (uint32_t y = 0; y < 50; y++) {
            for (uint32_t x = 0; x < 60; x++) {
                const bool in = y >= 10 && y < 30 && x >= 20 && x < 45,
                           inner = y >= 11 && y < 29 && x >= 21 && x < 44,
                           near = y >= 9 && y < 31 && x >= 19 && x < 46,
                           innermost = y >= 12 && y < 28 && x >= 22 && x < 43;
                if (in && !inner) {
                    assert_true(is_colour(&image, y, x, rgb));
                    n_line++;
                } else if (near && !innermost) {
                    assert_true(at(&image, y, x)[1] <= levels[l] / 2);
                    n_seam++;
                } else {
                    assert_int_equal(at(&image, y, x)[0], levels[l]);
                    n_same++;
                }
            }
        }
        assert_int_equal(n_line, 2 * 25 + 2 * 18);
        assert_int_equal(n_line + n_seam + n_same, 50 * 60);
        esp_image_finish(&image);
    }
}

/* Lines and letters grow with the picture. */
static void test_thickness(void **state)
{
    struct esp_image image = flat(1200, 1000, 200);
    const struct esp_drawn box = {{100, 100, 900, 1100}, NULL, NULL};
    uint8_t rgb[3];

    esp_annotate_colour(rgb, 0);
    assert_int_equal(esp_annotate(&image, &box, 1, NULL), ESP_OK);
    for (uint32_t i = 0; i < 4; i++) {
        assert_true(is_colour(&image, 500, 100 + i, rgb));
        assert_true(is_colour(&image, 899 - i, 500, rgb));
    }
    assert_false(is_colour(&image, 500, 99, rgb));
    assert_false(is_colour(&image, 500, 104, rgb));
    esp_image_finish(&image);
}

/* A mask: the ground shines through, its rim is solid; nothing outside. */
static void test_mask(void **state)
{
    static const uint8_t levels[] = {0, 128, 255};
    static uint8_t mask[40 * 40];
    struct esp_rle rle;
    uint8_t rgb[2][3];

    esp_annotate_colour(rgb[0], 0);
    esp_annotate_colour(rgb[1], 1);
    for (int y = 0; y < 40; y++)
        for (int x = 0; x < 40; x++)
            mask[y * 40 + x] = (y - 20) * (y - 20) + (x - 20) * (x - 20) < 100;
    assert_int_equal(esp_rle_encode(&rle, mask, 40, 40, NULL), ESP_OK);
    for (size_t l = 0; l < sizeof levels; l++) {
        struct esp_image image = flat(40, 40, levels[l]);
        const struct esp_drawn two[] = {{{0, 0, 1, 1}, NULL, NULL}, {{0, 0, 1, 1}, NULL, &rle}};
        const uint8_t ground[3] = {levels[l], levels[l], levels[l]};

        assert_int_equal(esp_annotate(&image, two, 2, NULL), ESP_OK);
        for (uint32_t y = 4; y < 40; y++)
            for (uint32_t x = 4; x < 40; x++)
                if (!mask[y * 40 + x])
                    assert_memory_equal(at(&image, y, x), ground, 3);
        assert_true(is_colour(&image, 20, 11, rgb[1]));
        for (int c = 0; c < 3; c++) { /* between the two, nearer the ground */
            const int want = (ground[c] * 141 + rgb[1][c] * 115) / 256;
            assert_true(abs(at(&image, 20, 20)[c] - want) <= 1);
        }
        esp_image_finish(&image);
    }
    esp_rle_finish(&rle);
}

static double luminance(const uint8_t rgb[3])
{
    double l[3];

    for (int c = 0; c < 3; c++)
        l[c] = rgb[c] <= 10 ? rgb[c] / 255.0 / 12.92 : pow((rgb[c] / 255.0 + 0.055) / 1.055, 2.4);
    return 0.2126 * l[0] + 0.7152 * l[1] + 0.0722 * l[2];
}

/* The text can be read off its plate: two tones with the contrast that is asked of text on screens, the font's pixels. */
static void test_label(void **state)
{
    static const char label[] = "Cat 7";

    for (size_t i = 0; i < N_COLOURS; i++) {
        struct esp_image image = flat(100, 100, 128);
        struct esp_drawn objects[N_COLOURS] = {{{0}, NULL, NULL}};
        uint8_t rgb[3], ink[3];
        bool has_ink = false;

        for (size_t j = 0; j <= i; j++)
            objects[j] = (struct esp_drawn){{50, 10, 90, 90}, j == i ? label : "", NULL};
        assert_int_equal(esp_annotate(&image, objects, i + 1, NULL), ESP_OK);
        esp_annotate_colour(rgb, i);
        for (uint32_t c = 0; label[c]; c++) {
            for (uint32_t y = 0; y < ESP_FONT_HEIGHT; y++) {
                for (uint32_t x = 0; x < ESP_FONT_WIDTH; x++) {
                    const uint8_t *p = at(&image, 41 + y, 11 + c * ESP_FONT_WIDTH + x);

                    if (!esp_font_pixel((uint8_t)label[c], x, y)) {
                        assert_memory_equal(p, rgb, 3);
                    } else {
                        if (has_ink)
                            assert_memory_equal(p, ink, 3);
                        memcpy(ink, p, 3);
                        has_ink = true;
                    }
                }
            }
        }
        assert_true(has_ink);
        assert_true((fmax(luminance(ink), luminance(rgb)) + 0.05) /
                        (fmin(luminance(ink), luminance(rgb)) + 0.05) >
                    4.5);
        assert_int_equal(at(&image, 41, 9)[0], 128); /* the plate begins where the box does */
        esp_image_finish(&image);
    }
}

/* How many pixels have that very colour. */
static uint32_t count(const struct esp_image *image, const uint8_t rgb[3])
{
    uint32_t n = 0;

    for (uint32_t y = 0; y < image->height; y++)
        for (uint32_t x = 0; x < image->width; x++)
            n += is_colour(image, y, x, rgb);
    return n;
}

/* Three with the same box: three plates, none upon another. */
static void test_labels_apart(void **state)
{
    struct esp_image one = flat(100, 100, 128), all = flat(100, 100, 128);
    struct esp_drawn objects[3];
    uint32_t n_before[3];
    uint8_t rgb[3][3];

    for (size_t i = 0; i < 3; i++) {
        objects[i] = (struct esp_drawn){{40, 20, 80, 80}, "a label", NULL};
        esp_annotate_colour(rgb[i], i);
    }
    assert_int_equal(esp_annotate(&one, objects, 1, NULL), ESP_OK);
    assert_int_equal(esp_annotate(&all, objects, 3, NULL), ESP_OK);
    for (uint32_t y = 30; y < 40; y++) /* the first is where it is alone: above */
        assert_memory_equal(at(&all, y, 20), at(&one, y, 20), 3 * 43);
    for (size_t i = 0; i < 3; i++)
        n_before[i] = count(&all, rgb[i]);
    assert_true(n_before[1] > 43 * 10 / 2); /* below the box */
    assert_true(n_before[2] > 43 * 10 / 2); /* within it */
    esp_image_finish(&one);
    esp_image_finish(&all);
}

/* Labels that are long, empty or beyond ASCII; boxes of every kind; pictures of a few pixels. For the sanitizers, and
 * for the picture's own bytes: the block is exactly as large as it must be. */
static void test_anything(void **state)
{
    static const char *const labels[] = {
        NULL,
        "",
        "x",
        "caf\xc3\xa9",
        "\xe7\x8c\xab \xf0\x9f\x90\x88",
        "\xff\xc3",
        "\xe7\x8c",
        "a label that is longer than any of these pictures is wide, and then some more of it"};
    static const double edges[] = {-INFINITY, -1e30, -5,    0,  0.4,  0.5,      3,
                                   7.5,       12,    12.49, 40, 1e30, INFINITY, NAN};
    static const uint32_t sides[] = {1, 2, 5, 12, 40};
    struct esp_rand r;

    esp_rand_init(&r, 5);
    for (int round = 0; round < 3000; round++) {
        struct esp_image image = flat(sides[esp_rand_below(&r, 5)], sides[esp_rand_below(&r, 5)], 100);
        const size_t n_pixel = (size_t)image.width * image.height;
        uint8_t *mask = malloc(n_pixel);
        struct esp_drawn objects[4];
        struct esp_rle rle;

        assert_non_null(mask);
        for (size_t i = 0; i < n_pixel; i++)
            mask[i] = esp_rand_below(&r, 3) > 0;
        assert_int_equal(esp_rle_encode(&rle, mask, image.height, image.width, NULL), ESP_OK);
        for (int i = 0; i < 4; i++) {
            objects[i].label = labels[esp_rand_below(&r, sizeof labels / sizeof labels[0])];
            objects[i].mask = esp_rand_below(&r, 2) ? &rle : NULL;
            for (int e = 0; e < 4; e++)
                objects[i].box[e] = edges[esp_rand_below(&r, sizeof edges / sizeof edges[0])];
        }
        assert_int_equal(esp_annotate(&image, objects, esp_rand_below(&r, 5), NULL), ESP_OK);
        free(mask);
        esp_rle_finish(&rle);
        esp_image_finish(&image);
    }
}

static void test_wrong_mask(void **state)
{
    struct esp_image image = flat(8, 6, 50);
    const struct esp_rle rle = {8, 6, (uint32_t[]){48}, 1}; /* as high as the picture is wide */
    const struct esp_drawn one = {{0, 0, 6, 8}, "x", &rle};
    struct esp_err err;

    assert_int_equal(esp_annotate(&image, &one, 1, &err), ESP_E_ARG);
    assert_non_null(strstr(err.text, "a mask of 6 x 8 pixels on a picture of 8 x 6"));
    for (size_t i = 0; i < 8 * 6 * 3; i++)
        assert_int_equal(image.rgb[i], 50);
    esp_image_finish(&image);
}

static void test_font(void **state)
{
    static const char text[] = "a\xc3\xa9~\xf0\x9f\x90\x88\xff\x01"
                               "b\xe7\x8c";
    static const uint8_t want[] = {'a',
                                   ESP_FONT_OTHER,
                                   '~',
                                   ESP_FONT_OTHER,
                                   ESP_FONT_OTHER,
                                   ESP_FONT_OTHER,
                                   'b',
                                   ESP_FONT_OTHER,
                                   ESP_FONT_OTHER,
                                   0};
    uint64_t shape[128] = {0};
    const char *p = text;

    for (size_t i = 0; i < sizeof want; i++)
        assert_int_equal(esp_font_next(&p), want[i]);
    assert_ptr_equal(p, text + sizeof text - 1);
    for (uint32_t c = ' '; c <= ESP_FONT_OTHER; c++) {
        for (uint32_t y = 0; y < ESP_FONT_HEIGHT; y++)
            for (uint32_t x = 0; x < ESP_FONT_WIDTH; x++)
                shape[c] = shape[c] << 1 | (uint64_t)esp_font_pixel((uint8_t)c, x, y);
        assert_true((shape[c] != 0) == (c != ' '));
        for (uint32_t other = ' '; other < c; other++)
            assert_true(shape[c] != shape[other]);
    }
    assert_false(esp_font_pixel('A', ESP_FONT_WIDTH, 3));
    assert_false(esp_font_pixel('A', 0, ESP_FONT_HEIGHT));
    assert_false(esp_font_pixel(200, 0, 0));
    assert_false(esp_font_pixel(0, 0, 0));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_colours),   cmocka_unit_test(test_box),
        cmocka_unit_test(test_thickness), cmocka_unit_test(test_mask),
        cmocka_unit_test(test_label),     cmocka_unit_test(test_labels_apart),
        cmocka_unit_test(test_anything),  cmocka_unit_test(test_wrong_mask),
        cmocka_unit_test(test_font),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
