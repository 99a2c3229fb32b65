/* Masks as COCO's run lengths. The strings are what the C code behind pycocotools 2.0 makes of the same masks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "objects/rle.h"
#include "tests/support/rand.h"

static bool none(uint32_t y, uint32_t x)
{
    return false;
}

static bool all(uint32_t y, uint32_t x)
{
    return true;
}

static bool block(uint32_t y, uint32_t x)
{
    return y >= 1 && y < 4 && x >= 2 && x < 6;
}

static bool dots(uint32_t y, uint32_t x)
{
    return (y % 2 == 0 && x % 2 == 0) || (y == 8 && x == 5);
}

static bool weave(uint32_t y, uint32_t x)
{
    return (y * y * 3 + x * 7 + y * x) % 11 < 5;
}

static const struct {
    const char *name, *string;
    uint32_t height, width, area;
    bool (*inside)(uint32_t y, uint32_t x);
} golden[] = {
    {"none", "`0", 4, 4, 0, none},
    {"all", "0`0", 4, 4, 16, all},
    {"block", ";32000004", 5, 7, 12, block},
    {"dots", "011000000080H000000080H000000070", 9, 6, 16, dots},
    {"weave", "031N10O20N010O40M3O021201LK3100MO10O40M0O40M1OO000102001M", 12, 10, 60, weave},
};

static void fill(uint8_t *mask, size_t i)
{
    for (uint32_t y = 0; y < golden[i].height; y++)
        for (uint32_t x = 0; x < golden[i].width; x++)
            mask[y * golden[i].width + x] = golden[i].inside(y, x) ? 255 : 0;
}

static void test_golden(void **state)
{
    for (size_t i = 0; i < sizeof golden / sizeof golden[0]; i++) {
        const uint32_t h = golden[i].height, w = golden[i].width;
        uint8_t mask[128], back[128];
        struct esp_rle rle, read;
        char *string;

        fill(mask, i);
        assert_int_equal(esp_rle_encode(&rle, mask, h, w, NULL), ESP_OK);
        assert_int_equal(esp_rle_area(&rle), golden[i].area);
        assert_int_equal(esp_rle_to_string(&string, &rle, NULL), ESP_OK);
        assert_string_equal(string, golden[i].string);
        free(string);
        assert_int_equal(esp_rle_from_string(&read, golden[i].string, h, w, NULL), ESP_OK);
        assert_int_equal(read.n_counts, rle.n_counts);
        assert_memory_equal(read.counts, rle.counts, rle.n_counts * sizeof *rle.counts);
        memset(back, 7, sizeof back);
        esp_rle_decode(back, &read);
        for (uint32_t p = 0; p < h * w; p++)
            assert_int_equal(back[p], mask[p] ? 1 : 0);
        assert_int_equal(back[h * w], 7);
        esp_rle_finish(&rle);
        esp_rle_finish(&read);
        esp_rle_finish(&read);
    }
}

/* Runs of millions take groups to the last, and differences that are negative. */
static void test_long_runs(void **state)
{
    static const uint32_t counts[] = {3, 99999990, 2, 5};
    struct esp_rle rle, read;
    char *string;

    assert_int_equal(esp_rle_from_counts(&rle, counts, 4, 10000, 10000, NULL), ESP_OK);
    assert_int_equal(esp_rle_to_string(&string, &rle, NULL), ESP_OK);
    assert_string_equal(string, "3fWh[o22_hWdPM");
    assert_int_equal(esp_rle_from_string(&read, string, 10000, 10000, NULL), ESP_OK);
    assert_memory_equal(read.counts, counts, sizeof counts);
    free(string);
    esp_rle_finish(&rle);
    esp_rle_finish(&read);
}

/* A mask of random runs, and back; its area and the overlap with the last one are counted pixel by pixel. */
static void test_random(void **state)
{
    static uint8_t mask[2][64 * 64], back[64 * 64];
    struct esp_rand r;

    esp_rand_init(&r, 11);
    for (int round = 0; round < 500; round++) {
        const uint32_t h = 1 + esp_rand_below(&r, 64), w = 1 + esp_rand_below(&r, 64);
        uint32_t n_and = 0, n_or = 0, n_first = 0;
        struct esp_rle rle[2];
        double iou;

        for (int m = 0; m < 2; m++) {
            const uint32_t one_in = 1 + esp_rand_below(&r, 40);
            bool inside = esp_rand_below(&r, 2);
            char *string;

            for (uint32_t p = 0; p < h * w; p++) {
                inside ^= esp_rand_below(&r, one_in) == 0;
                mask[m][p] = inside;
            }
            assert_int_equal(esp_rle_encode(&rle[m], mask[m], h, w, NULL), ESP_OK);
            assert_int_equal(esp_rle_to_string(&string, &rle[m], NULL), ESP_OK);
            esp_rle_finish(&rle[m]);
            assert_int_equal(esp_rle_from_string(&rle[m], string, h, w, NULL), ESP_OK);
            free(string);
            esp_rle_decode(back, &rle[m]);
            assert_memory_equal(back, mask[m], h * w);
        }
        for (uint32_t p = 0; p < h * w; p++) {
            n_and += mask[0][p] & mask[1][p];
            n_or += mask[0][p] | mask[1][p];
            n_first += mask[0][p];
        }
        assert_int_equal(esp_rle_area(&rle[0]), n_first);
        assert_int_equal(esp_rle_iou(&iou, &rle[0], &rle[1], NULL), ESP_OK);
        assert_true(iou == (n_or ? (double)n_and / n_or : 0));
        esp_rle_finish(&rle[0]);
        esp_rle_finish(&rle[1]);
    }
}

static void test_bad_strings(void **state)
{
    static const struct {
        const char *string;
        uint32_t height, width;
        esp_status code;
        const char *why;
    } cases[] = {
        {"", 4, 4, ESP_E_FORMAT, "counts of 0 pixels for a mask of 4 x 4"},
        {"?0", 4, 4, ESP_E_FORMAT, "counts of 15 pixels"},
        {"`00", 4, 4, ESP_OK, NULL}, /* a run of none changes nothing */
        {"a0", 4, 4, ESP_E_FORMAT, "counts of at least 17 pixels"},
        {"`", 4, 4, ESP_E_FORMAT, "the number at 0 is cut off"},
        {"0`", 4, 4, ESP_E_FORMAT, "the number at 1 is cut off"},
        {"0 `0", 4, 4, ESP_E_FORMAT, "byte 20 at 1"},
        {"p0", 4, 4, ESP_E_FORMAT, "byte 70 at 0"},
        {"\xff", 4, 4, ESP_E_FORMAT, "byte ff at 0"},
        {"O`0", 4, 4, ESP_E_FORMAT, "makes a run of -1 pixels"},
        {"111O", 1, 3, ESP_OK, NULL}, /* the fourth is one less than the second: 1 1 1 0 */
        {"1111N", 1, 4, ESP_E_FORMAT, "makes a run of -1 pixels"},
        {"oooooooooooooooooooooooo0", 4, 4, ESP_E_FORMAT, "the number at 0 is too large"},
        {"ooooooo", 4, 4, ESP_E_FORMAT, "the number at 0 is cut off"},
        {"oooooo?", 4, 4, ESP_E_FORMAT, "makes a run of"},
        {"`0", 0, 4, ESP_E_ARG, "mask of 4 x 0"},
        {"`0", 4, 0, ESP_E_ARG, "mask of 0 x 4"},
        {"`0", 20000, 20000, ESP_E_LIMIT, "20000 x 20000"},
        {"`0", UINT32_MAX, UINT32_MAX, ESP_E_LIMIT, "at most"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct esp_rle rle;
        struct esp_err err = {.text = ""};
        const esp_status st =
            esp_rle_from_string(&rle, cases[i].string, cases[i].height, cases[i].width, &err);

        if (st != cases[i].code || (cases[i].why && !strstr(err.text, cases[i].why)))
            fail_msg("'%s': status %d, %s", cases[i].string, st, err.text);
        assert_true((st == ESP_OK) == (rle.counts != NULL));
        esp_rle_finish(&rle);
    }
}

static void test_bad_arguments(void **state)
{
    static const uint32_t counts[] = {UINT32_MAX, UINT32_MAX, 18};
    struct esp_rle a, b;
    double iou;

    /* 2^32 - 1 twice and 18 wrap to 16 in 32 bits */
    assert_int_equal(esp_rle_from_counts(&a, counts, 3, 4, 4, NULL), ESP_E_FORMAT);
    assert_int_equal(esp_rle_from_counts(&a, counts, 0, 4, 4, NULL), ESP_E_FORMAT);
    assert_int_equal(esp_rle_encode(&a, NULL, 0, 5, NULL), ESP_E_ARG);
    assert_int_equal(esp_rle_encode(&a, NULL, 100000, 1001, NULL), ESP_E_LIMIT);
    assert_int_equal(esp_rle_from_string(&a, "`0", 4, 4, NULL), ESP_OK);
    assert_int_equal(esp_rle_from_string(&b, "`0", 2, 8, NULL), ESP_OK);
    assert_int_equal(esp_rle_iou(&iou, &a, &b, NULL), ESP_E_ARG);
    esp_rle_finish(&a);
    esp_rle_finish(&b);
    esp_rle_finish(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),        cmocka_unit_test(test_long_runs),
        cmocka_unit_test(test_random),        cmocka_unit_test(test_bad_strings),
        cmocka_unit_test(test_bad_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
