/*
 * Resizing against a float64 reference written from the filters' definitions, and against cases done by hand.
 * The golden pictures settle the last bit of the bicubic filter (tests/golden/test_image.c).
 */
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "coordinator/resize.h"
#include "tests/support/rand.h"

static const double pi = 3.14159265358979323846;

static double sinc_pi(double x)
{
    return fabs(x) < 1e-12 ? 1.0 : sin(pi * x) / (pi * x);
}

/* The filters as textbooks have them: Keys' cubic with a = -1/2 spelt out, Lanczos with three lobes. */
static double filter_at(enum esp_resample filter, double x)
{
    const double d = fabs(x);

    switch (filter) {
    case ESP_RESAMPLE_BOX:
        return x > -0.5 && x <= 0.5;
    case ESP_RESAMPLE_BILINEAR:
        return d < 1 ? 1 - d : 0;
    case ESP_RESAMPLE_HAMMING:
        return d < 1 ? sinc_pi(x) * (0.54 + 0.46 * cos(pi * x)) : 0;
    case ESP_RESAMPLE_BICUBIC:
        return d < 1   ? 1.5 * d * d * d - 2.5 * d * d + 1
               : d < 2 ? -0.5 * d * d * d + 2.5 * d * d - 4 * d + 2
                       : 0;
    case ESP_RESAMPLE_LANCZOS:
        return d < 3 ? sinc_pi(x) * sinc_pi(x / 3) : 0;
    case ESP_RESAMPLE_NEAREST:
        break;
    }
    return 0;
}

/* One axis in float64, clipped to levels but not rounded: n_line lines of n_in values `step` apart. */
static void reference_axis(double *out, size_t n_out, const double *in, size_t n_in, enum esp_resample filter,
                           size_t n_line, size_t step_out, size_t step_in, size_t line_out, size_t line_in)
{
    const double ratio = (double)n_in / (double)n_out, widen = ratio > 1 ? ratio : 1;

    for (size_t o = 0; o < n_out; o++) {
        double total = 0;

        for (size_t i = 0; i < n_in; i++)
            total += filter_at(filter, ((double)i + 0.5 - ((double)o + 0.5) * ratio) / widen);
        for (size_t line = 0; line < n_line; line++) {
            double sum = 0;

            for (size_t i = 0; i < n_in; i++)
                sum += filter_at(filter, ((double)i + 0.5 - ((double)o + 0.5) * ratio) / widen) / total *
                       in[line * line_in + i * step_in];
            out[line * line_out + o * step_out] = sum < 0 ? 0 : sum > 255 ? 255 : sum;
        }
    }
}

/* Between the passes the reference clips but does not round: half a level there, widened by the negative
 * lobes to less than one, so the rounded results differ by one at most. */
static void check(uint32_t w, uint32_t h, uint32_t out_w, uint32_t out_h, enum esp_resample filter,
                  bool extremes)
{
    const size_t n_in = (size_t)w * h, n_out = (size_t)out_w * out_h,
                 n_mid = (size_t)(w > out_w ? w : out_w) * (h > out_h ? h : out_h);
    const bool down_first = h > 100 * w && out_h < h; /* where the clipping falls shows in extremes */
    struct esp_image in = {w, h, malloc(3 * n_in)};
    uint8_t *got = malloc(3 * n_out);
    double *exact = malloc(n_in * sizeof *exact), *mid = malloc(n_mid * sizeof *mid),
           *want = malloc(n_out * sizeof *want);
    struct esp_rand rand;
    struct esp_err err;

    assert_true(in.rgb && got && exact && mid && want);
    esp_rand_init(&rand, w * 1000u + h);
    for (size_t i = 0; i < 3 * n_in; i++)
        in.rgb[i] = (uint8_t)(extremes ? 255 * esp_rand_below(&rand, 2) : esp_rand_below(&rand, 256));
    assert_int_equal(esp_resize(got, out_w, out_h, &in, filter, &err), ESP_OK);
    for (size_t c = 0; c < 3; c++) {
        for (size_t i = 0; i < n_in; i++)
            exact[i] = in.rgb[3 * i + c];
        if (down_first) {
            reference_axis(mid, out_h, exact, h, filter, w, w, w, 1, 1);
            reference_axis(want, out_w, mid, w, filter, out_h, 1, 1, out_w, w);
        } else {
            reference_axis(mid, out_w, exact, w, filter, h, 1, 1, out_w, w);
            reference_axis(want, out_h, mid, h, filter, out_w, out_w, out_w, 1, 1);
        }
        for (size_t i = 0; i < n_out; i++)
            if (fabs(got[3 * i + c] - want[i]) > 1.5)
                fail_msg("filter %d, %ux%u to %ux%u: pixel %zu,%zu colour %zu is %u, must be %.3f",
                         (int)filter, w, h, out_w, out_h, i % out_w, i / out_w, c, got[3 * i + c], want[i]);
    }
    free(want);
    free(mid);
    free(exact);
    free(got);
    free(in.rgb);
}

static void every_filter_against_float64(void **state)
{
    /* To an odd number of pixels: then no input lies just on the edge of the box, where rounding would
     * decide. */
    static const struct {
        uint32_t w, h, out_w, out_h;
    } sizes[] = {
        {1, 1, 7, 7},      {1, 1, 1, 1},     {2, 2, 57, 57},  {9, 7, 57, 57},    {133, 97, 57, 57},
        {71, 158, 85, 85}, {311, 3, 57, 57}, {3, 311, 21, 9}, {57, 200, 57, 57}, {200, 57, 57, 57},
        {640, 8, 13, 7},   {56, 54, 57, 57}, {500, 1, 1, 31}, {400, 300, 3, 1},  {2, 301, 5, 31},
    };
    static const enum esp_resample filters[] = {ESP_RESAMPLE_BOX, ESP_RESAMPLE_BILINEAR, ESP_RESAMPLE_HAMMING,
                                                ESP_RESAMPLE_BICUBIC, ESP_RESAMPLE_LANCZOS};

    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (size_t f = 0; f < sizeof filters / sizeof *filters; f++)
            for (int extremes = 0; extremes < 2; extremes++)
                check(sizes[s].w, sizes[s].h, sizes[s].out_w, sizes[s].out_h, filters[f], extremes);
}

/* One row of grey in, one out, worked out by hand. */
static void by_hand(void **state)
{
    static const struct {
        const char *what;
        enum esp_resample filter;
        uint32_t n_in, n_out;
        uint8_t in[8], out[8];
    } table[] = {
        {"nearest doubles", ESP_RESAMPLE_NEAREST, 2, 4, {10, 20}, {10, 10, 20, 20}},
        {"nearest takes the middle", ESP_RESAMPLE_NEAREST, 6, 2, {1, 2, 3, 4, 5, 6}, {2, 5}},
        {"box averages, halves up", ESP_RESAMPLE_BOX, 4, 2, {10, 21, 30, 40}, {16, 35}},
        {"box enlarges like nearest", ESP_RESAMPLE_BOX, 2, 6, {10, 20}, {10, 10, 10, 20, 20, 20}},
        {"bilinear doubles: 1/4 and 3/4", ESP_RESAMPLE_BILINEAR, 2, 4, {0, 255}, {0, 64, 191, 255}},
        /* weights at 5/4, 1/4, 3/4 and 7/4: -9, 111, 29, -3 of 128; 255 * 26/128 = 51.8 */
        {"bicubic overshoots",
         ESP_RESAMPLE_BICUBIC,
         4,
         8,
         {0, 0, 255, 255},
         {0, 0, 0, 52, 203, 255, 255, 255}},
        {"same size: untouched", ESP_RESAMPLE_LANCZOS, 3, 3, {0, 255, 7}, {0, 255, 7}},
    };

    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        for (int upright = 0; upright < 2; upright++) {
            uint8_t rgb[24], got[24];
            struct esp_image in = {upright ? 1 : table[i].n_in, upright ? table[i].n_in : 1, rgb};
            struct esp_err err;

            for (uint32_t x = 0; x < 3 * table[i].n_in; x++)
                rgb[x] = table[i].in[x / 3];
            assert_int_equal(esp_resize(got, upright ? 1 : table[i].n_out, upright ? table[i].n_out : 1, &in,
                                        table[i].filter, &err),
                             ESP_OK);
            for (uint32_t x = 0; x < 3 * table[i].n_out; x++)
                if (got[x] != table[i].out[x / 3])
                    fail_msg("%s: pixel %u is %u, must be %u", table[i].what, x / 3, got[x],
                             table[i].out[x / 3]);
        }
    }
}

static void one_colour_stays_one_colour(void **state)
{
    for (unsigned filter = 0; filter <= ESP_RESAMPLE_HAMMING; filter++) {
        for (unsigned level = 0; level < 256; level += 51) {
            uint8_t rgb[3 * 37 * 11], got[3 * 16 * 16];
            struct esp_image in = {37, 11, rgb};
            struct esp_err err;

            memset(rgb, (int)level, sizeof rgb);
            assert_int_equal(esp_resize(got, 16, 16, &in, (enum esp_resample)filter, &err), ESP_OK);
            for (size_t i = 0; i < sizeof got; i++)
                assert_int_equal(got[i], level);
        }
    }
}

/* 65535 pixels a side are allowed, so the extremes must work, quickly and without overflow. */
static void extremes_of_shape(void **state)
{
    static const struct {
        uint32_t w, h;
    } sizes[] = {{65535, 1}, {1, 65535}, {65535, 3}, {2, 65535}};

    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const size_t n = 3 * (size_t)sizes[i].w * sizes[i].h;
        struct esp_image in = {sizes[i].w, sizes[i].h, malloc(n)};
        uint8_t *got = malloc(3 * 896 * 896);
        struct esp_err err;

        assert_true(in.rgb && got);
        for (size_t k = 0; k < n; k++)
            in.rgb[k] = (uint8_t)(200 + k % 3);
        for (unsigned filter = 0; filter <= ESP_RESAMPLE_HAMMING; filter++) {
            assert_int_equal(esp_resize(got, 896, 896, &in, (enum esp_resample)filter, &err), ESP_OK);
            for (size_t k = 0; k < 3 * 896 * 896; k++)
                if (got[k] != 200 + k % 3)
                    fail_msg("%ux%u, filter %u: level %u at %zu", sizes[i].w, sizes[i].h, filter, got[k], k);
        }
        free(got);
        free(in.rgb);
    }
}

static void refuses_nonsense(void **state)
{
    uint8_t rgb[3] = {0}, got[3];
    const struct esp_image one = {1, 1, rgb}, none = {0, 0, rgb};
    struct esp_err err;

    assert_int_equal(esp_resize(got, 0, 1, &one, ESP_RESAMPLE_BOX, &err), ESP_E_ARG);
    assert_int_equal(esp_resize(got, 1, 1, &none, ESP_RESAMPLE_BOX, &err), ESP_E_ARG);
    assert_int_equal(esp_resize(got, 1, 1, &one, (enum esp_resample)6, &err), ESP_E_ARG);
    assert_string_equal(err.text, "resize: no filter 6");
}

static void normalises_each_plane(void **state)
{
    const struct esp_preprocess_config pre = {
        .rescale_factor = 1.0 / 255, .mean = {0.5f, 0.25f, 0.0f}, .std = {0.5f, 0.25f, 2.0f}};
    const uint8_t rgb[2 * 2 * 3] = {0, 0, 0, 255, 255, 255, 51, 51, 51, 1, 2, 3};
    float got[3 * 2 * 2];

    esp_pixels_normalise(got, rgb, 2, &pre);
    assert_true(got[0] == -1.0f && got[1] == 1.0f);
    assert_true(got[4] == -1.0f && got[5] == 3.0f);
    assert_true(got[8] == 0.0f && got[9] == 0.5f);
    assert_true(got[2] == (0.2f - 0.5f) / 0.5f);
    assert_true(got[3] == ((float)(1 * (1.0 / 255)) - 0.5f) / 0.5f);
    assert_true(got[11] == (float)(3 * (1.0 / 255)) / 2.0f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_filter_against_float64),
        cmocka_unit_test(by_hand),
        cmocka_unit_test(one_colour_stays_one_colour),
        cmocka_unit_test(extremes_of_shape),
        cmocka_unit_test(refuses_nonsense),
        cmocka_unit_test(normalises_each_plane),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
