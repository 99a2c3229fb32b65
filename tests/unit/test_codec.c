/* The mask codec against its float64 reference; files that are none; masks in their boxes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <math.h>

#include "objects/codec.h"
#include "tests/support/rand.h"
#include "tests/support/ref_codec.h"

#define SIDE   ESP_CODEC_SIDE
#define PIXELS ESP_CODEC_PIXELS

static const struct esp_ref_codec_dims small = {
    .down = {3, 17, 16, 20}, .in = 24, .up = {18, 16, 5, 7}, .code_dim = 19};

static struct esp_codec *codec_of(const struct esp_ref_codec *ref, bool half, bool deflated)
{
    struct esp_npz_out z;
    struct esp_codec *codec;
    struct esp_err err;

    esp_ref_codec_write(&z, ref, half, deflated);
    if (esp_codec_parse(&codec, z.bytes, z.n_bytes, "made", &err))
        fail_msg("%s", err.text);
    free(z.bytes);
    return codec;
}

/* Random codes: every pixel within 1e-5 of the float64 decoder. float32 sums of 1152 products round at about 1e-6. */
static void check_decode(const struct esp_codec *codec, struct esp_ref_codec *ref, struct esp_rand *r, int n)
{
    static double want[PIXELS];
    static float got[PIXELS];
    size_t n_inner = 0;
    double worst = 0.0;

    for (int round = 0; round < n; round++) {
        int32_t codes[ESP_CODEC_N_TOK];
        struct esp_err err;

        for (int i = 0; i < ESP_CODEC_N_TOK; i++)
            codes[i] = (int32_t)esp_rand_below(r, ESP_CODEC_N_CODES);
        if (esp_codec_decode(got, codec, codes, &err))
            fail_msg("%s", err.text);
        esp_ref_codec_decode(want, ref, codes);
        for (size_t i = 0; i < PIXELS; i++) {
            double w = fmin(fmax(0.5 * want[i] + 0.5, 0.0), 1.0), far = fabs(got[i] - w);

            n_inner += w > 0.0 && w < 1.0;
            worst = far > worst || isnan(far) ? far : worst;
        }
    }
    if (getenv("ESP_TEST_VERBOSE"))
        fprintf(stderr, "decode: worst %.2e, %zu of %d pixels not clipped\n", worst, n_inner, n * PIXELS);
    if (!(worst <= 1e-5))
        fail_msg("a pixel is off by %g", worst);
    assert_true(n_inner > (size_t)n * PIXELS / 50); /* clipped ones say little */
}

/* Masks: the code of the least distance, but for ties that float32 cannot see. Returns how many codes
 * were in use. */
static int check_encode(const struct esp_codec *codec, struct esp_ref_codec *ref, const uint8_t *masks, int n)
{
    static double far[ESP_CODEC_N_TOK * ESP_CODEC_N_CODES];
    bool used[ESP_CODEC_N_CODES] = {false};
    int n_used = 0;

    for (int m = 0; m < n; m++) {
        int32_t codes[ESP_CODEC_N_TOK];
        struct esp_err err;

        if (esp_codec_encode(codes, codec, masks + (size_t)m * PIXELS, &err))
            fail_msg("%s", err.text);
        esp_ref_codec_encode(NULL, far, ref, masks + (size_t)m * PIXELS);
        for (int i = 0; i < ESP_CODEC_N_TOK; i++) {
            const double *d = far + i * ESP_CODEC_N_CODES;
            int32_t best = 0;

            for (int32_t k = 1; k < ESP_CODEC_N_CODES; k++)
                if (d[k] < d[best])
                    best = k;
            assert_in_range(codes[i], 0, ESP_CODEC_N_CODES - 1);
            if (codes[i] != best && d[codes[i]] > d[best] * (1 + 1e-5))
                fail_msg("mask %d, code %d: %d at %.9g, expected %d at %.9g", m, i, codes[i], d[codes[i]],
                         best, d[best]);
            n_used += !used[codes[i]];
            used[codes[i]] = true;
        }
    }
    return n_used;
}

/* Blots: random, but with large areas as masks have. */
static void draw_blots(uint8_t *mask, struct esp_rand *r)
{
    memset(mask, 0, PIXELS);
    for (int i = 0; i < 4; i++) {
        double y = esp_rand_uniform(r) * SIDE, x = esp_rand_uniform(r) * SIDE,
               a = 8 + 20 * esp_rand_uniform(r);
        uint8_t value = i == 3 ? 0 : (uint8_t)(128 + esp_rand_below(r, 128));

        for (int p = 0; p < PIXELS; p++)
            if (hypot(p / SIDE - y, p % SIDE - x) < a)
                mask[p] = value;
    }
}

static void check_random(const struct esp_ref_codec_dims *dims, bool half, bool deflated, int n,
                         uint64_t seed)
{
    static uint8_t masks[4 * PIXELS];
    struct esp_ref_codec ref;
    struct esp_codec *codec;
    struct esp_rand r;

    esp_ref_codec_random(&ref, dims, true, seed);
    codec = codec_of(&ref, half, deflated);
    assert_true(esp_codec_can_encode(codec));
    esp_rand_init(&r, seed + 1);
    check_decode(codec, &ref, &r, n);
    for (int i = 0; i < n; i++)
        draw_blots(masks + (size_t)i * PIXELS, &r);
    assert_true(check_encode(codec, &ref, masks, n) > 4);
    esp_codec_destroy(&codec);
    esp_ref_codec_finish(&ref);
}

static void test_published_shapes(void **state)
{
    check_random(&esp_ref_codec_published, false, false, 1, 1);
}

/* Widths that are no multiple of anything; every way of storing. */
static void test_odd_shapes(void **state)
{
    for (int i = 0; i < 4; i++)
        check_random(&small, i & 1, i & 2, 4, 10 + (uint64_t)i);
}

/* ---- files ---- */

static void test_without_encoder(void **state)
{
    struct esp_ref_codec ref;
    struct esp_codec *codec;
    struct esp_rand r;
    struct esp_err err;
    static const uint8_t mask[PIXELS];
    int32_t codes[ESP_CODEC_N_TOK];

    esp_ref_codec_random(&ref, &small, false, 5);
    codec = codec_of(&ref, false, true);
    assert_false(esp_codec_can_encode(codec));
    esp_rand_init(&r, 6);
    check_decode(codec, &ref, &r, 1);
    assert_int_equal(esp_codec_encode(codes, codec, mask, &err), ESP_E_UNSUPPORTED);
    assert_non_null(strstr(err.text, "no encoder"));
    esp_codec_destroy(&codec);
    assert_null(codec);
    esp_codec_destroy(&codec);
    esp_ref_codec_finish(&ref);
}

static void test_codes_out_of_range(void **state)
{
    struct esp_ref_codec ref;
    struct esp_codec *codec;
    int32_t codes[ESP_CODEC_N_TOK] = {0};
    static float mask[PIXELS];
    struct esp_err err;

    esp_ref_codec_random(&ref, &small, false, 7);
    codec = codec_of(&ref, false, true);
    codes[15] = 128;
    assert_int_equal(esp_codec_decode(mask, codec, codes, &err), ESP_E_ARG);
    assert_string_equal(err.text, "mask code 15 is 128, takes 0 to 127");
    codes[15] = -1;
    assert_int_equal(esp_codec_decode(mask, codec, codes, &err), ESP_E_ARG);
    esp_codec_destroy(&codec);
    esp_ref_codec_finish(&ref);
}

/* Every array missing, with one dimension more or less, and with a NaN: each is named. */
static void test_each_array(void **state)
{
    enum { MISSING, LONGER, FLAT, NUMBERLESS, N_WAYS };
    struct esp_ref_codec ref;

    esp_ref_codec_random(&ref, &small, true, 8);
    for (size_t i = 0; i < ref.n; i++)
        for (int way = 0; way < N_WAYS; way++) {
            struct esp_npz_array *a = &ref.array[i], kept = *a;
            struct esp_npz_out z;
            struct esp_codec *codec;
            struct esp_err err = {0};
            char kept_name[64], want[128];
            float first = a->values[0];
            esp_status st;

            memcpy(kept_name, ref.name[i], sizeof kept_name);
            snprintf(want, sizeof want, "%s %s%s", way == MISSING ? "no array" : "array", kept_name,
                     way == MISSING      ? ""
                     : way == NUMBERLESS ? ": element 0 is no finite number"
                                         : ": shape [");
            if (way == MISSING)
                snprintf(ref.name[i], sizeof ref.name[i], "encoder.other");
            else if (way == LONGER)
                a->shape[a->n_dim++] = 1;
            else if (way == FLAT)
                *a = (struct esp_npz_array){.n_dim = 1, .shape = {a->n_elem - 1}, .values = kept.values};
            else
                a->values[0] = NAN;
            esp_ref_codec_write(&z, &ref, false, false);
            st = esp_codec_parse(&codec, z.bytes, z.n_bytes, "made", &err);
            /* One bias has a single element, so that FLAT leaves it none. */
            if (st != ESP_E_FORMAT || codec || !strstr(err.text, want) || strncmp(err.text, "made: ", 6) != 0)
                fail_msg("%s, %d: %d \"%s\", expected \"%s\"", kept_name, way, st, err.text, want);
            free(z.bytes);
            *a = kept;
            a->values[0] = first;
            memcpy(ref.name[i], kept_name, sizeof kept_name);
        }
    esp_ref_codec_finish(&ref);
}

static const struct {
    const char *name;
    size_t n_dim, shape[4];
    const char *message;
} shapes[] = {
    {"_vq_vae._embedding", 2, {127, 19}, "shape [127, 19], expected [128, 1 to 512]"},
    {"_vq_vae._embedding",
     2,
     {128, 18},
     "array decoder.0.weight: shape [24, 19, 1, 1], expected [1 to 512, 18, 1, 1]"},
    {"_vq_vae._embedding", 2, {128, 0}, "shape [128, 0], expected"},
    {"decoder.0.weight", 4, {0, 19, 1, 1}, "shape [0, 19, 1, 1], expected [1 to 512, 19, 1, 1]"},
    {"decoder.0.weight", 4, {513, 19, 1, 1}, "shape [513, 19, 1, 1]"},
    {"decoder.0.weight", 4, {24, 19, 2, 2}, "shape [24, 19, 2, 2]"},
    {"decoder.2.net.0.weight", 4, {24, 24, 3, 1}, "shape [24, 24, 3, 1]"},
    {"decoder.4.weight", 4, {18, 24, 4, 4}, "shape [18, 24, 4, 4], expected [24, 1 to 512, 4, 4]"},
    {"decoder.8.weight", 4, {16, 6, 4, 4}, "array decoder.8.bias: shape [5], expected [6]"},
    {"decoder.12.weight", 4, {2, 7, 1, 1}, "shape [2, 7, 1, 1], expected [1, 7, 1, 1]"},
    {"encoder.0.weight", 4, {3, 3, 4, 4}, "shape [3, 3, 4, 4], expected [1 to 512, 1, 4, 4]"},
    {"encoder.10.weight", 4, {20, 20, 1, 1}, "shape [20, 20, 1, 1], expected [19, 20, 1, 1]"},
};

static void test_shapes(void **state)
{
    struct esp_ref_codec ref;

    esp_ref_codec_random(&ref, &small, true, 9);
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        struct esp_npz_array *a = esp_ref_codec_find(&ref, shapes[i].name), kept = *a;
        struct esp_npz_out z;
        struct esp_codec *codec;
        struct esp_err err = {0};
        esp_status st;

        a->n_elem = 1;
        for (size_t d = 0; d < shapes[i].n_dim; d++)
            a->n_elem *= a->shape[d] = shapes[i].shape[d];
        a->values = calloc(a->n_elem + 1, sizeof *a->values);
        assert_non_null(a->values);
        esp_ref_codec_write(&z, &ref, false, true);
        st = esp_codec_parse(&codec, z.bytes, z.n_bytes, "made", &err);
        if (st != ESP_E_FORMAT || codec || !strstr(err.text, shapes[i].message))
            fail_msg("%s: %d \"%s\", expected \"%s\"", shapes[i].name, st, err.text, shapes[i].message);
        free(z.bytes);
        esp_npz_array_finish(a);
        *a = kept;
    }
    esp_ref_codec_finish(&ref);
}

/* Finite weights may still be too much. */
static void test_overflow(void **state)
{
    struct esp_ref_codec ref;
    struct esp_codec *codec;
    struct esp_err err = {0};
    int32_t codes[ESP_CODEC_N_TOK] = {0};
    static float mask[PIXELS];
    static const uint8_t black[PIXELS];
    static const char *const large[] = {"decoder.0.weight", "decoder.4.weight", "decoder.0.bias",
                                        "encoder.0.weight", "encoder.2.weight"};

    esp_ref_codec_random(&ref, &small, true, 11);
    for (size_t i = 0; i < sizeof large / sizeof large[0]; i++) {
        struct esp_npz_array *a = esp_ref_codec_find(&ref, large[i]);

        for (size_t k = 0; k < a->n_elem; k++)
            a->values[k] = k % 3 ? -3e38f : 3e38f;
    }
    codec = codec_of(&ref, false, true);
    assert_int_equal(esp_codec_decode(mask, codec, codes, &err), ESP_E_NUMBERS);
    assert_non_null(strstr(err.text, "no finite number"));
    assert_int_equal(esp_codec_encode(codes, codec, black, &err), ESP_E_NUMBERS);
    esp_codec_destroy(&codec);
    esp_ref_codec_finish(&ref);
}

static void test_no_file(void **state)
{
    struct esp_codec *codec;
    struct esp_err err = {0};

    assert_int_equal(esp_codec_open(&codec, "no/such/vae-oid.npz", &err), ESP_E_IO);
    assert_non_null(strstr(err.text, "no/such/vae-oid.npz"));
    assert_null(codec);
    assert_int_equal(esp_codec_open(&codec, "tests", &err), ESP_E_IO);
    assert_int_equal(esp_codec_open(&codec, "README.md", &err), ESP_E_FORMAT);
    assert_string_equal(err.text,
                        "README.md: no .npz file, or cut off: there is no zip directory at its end");
}

/* ---- the weights that ship ---- */

static const char *const shape_names[] = {"circle", "square", "triangle", "star",
                                          "cross",  "ring",   "diamond",  "heart"};

/* Whether x, y of -1 to 1 lies in a shape that fills that square; y points down. */
static bool inside(int shape, double x, double y)
{
    double r = hypot(x, y), turn, edge;

    switch (shape) {
    case 0:
        return r <= 1;
    case 1:
        return true;
    case 2:
        return fabs(x) <= (y + 1) / 2;
    case 3: /* a spoke every 72 degrees, the edge a line from radius 1 to 0.45 */
        x /= 1.05;
        y = (y - 0.0955 / 0.9045) * 0.9045;
        r = hypot(x, y);
        turn = fabs(remainder(atan2(x, -y), 2 * M_PI / 5));
        edge = 0.45 * sin(M_PI / 5) /
               (sin(turn) * (1 - 0.45 * cos(M_PI / 5)) + 0.45 * sin(M_PI / 5) * cos(turn));
        return r <= edge;
    case 4:
        return fabs(x) <= 0.33 || fabs(y) <= 0.33;
    case 5:
        return r <= 1 && r >= 0.55;
    case 6:
        return fabs(x) + fabs(y) <= 1;
    default: /* two lobes, and a point below */
        return hypot(fabs(x) - 0.5, y + 0.5) <= 0.5 || (y > -0.3 && fabs(x) <= (1 - y) * 0.72);
    }
}

/* The shape, with a round bite at its right edge or without. */
static void draw_shape(uint8_t *mask, int shape, bool bitten)
{
    for (int p = 0; p < PIXELS; p++) {
        double x = (p % SIDE + 0.5) / 32 - 1, y = (p / SIDE + 0.5) / 32 - 1;

        mask[p] = inside(shape, x, y) && !(bitten && hypot(x - 1.1, y - 0.5) < 0.7) ? 255 : 0;
    }
}

static double iou(const uint8_t *a, const float *b)
{
    size_t both = 0, any = 0;

    for (size_t i = 0; i < PIXELS; i++) {
        both += a[i] > 127 && b[i] > 0.5f;
        any += a[i] > 127 || b[i] > 0.5f;
    }
    return (double)both / (double)any;
}

static void test_shipped(void **state)
{
    static uint8_t masks[16 * PIXELS];
    static float back[PIXELS];
    struct esp_codec *codec;
    struct esp_ref_codec ref;
    struct esp_err err;
    struct esp_rand r;
    double sum = 0.0;

    if (esp_codec_open(&codec, "models/tiny/vae-oid.npz", &err))
        fail_msg("%s", err.text);
    for (int i = 0; i < 16; i++) {
        uint8_t *mask = masks + (size_t)i * PIXELS;
        int32_t codes[ESP_CODEC_N_TOK];
        double found;

        draw_shape(mask, i % 8, i >= 8);
        if (esp_codec_encode(codes, codec, mask, &err) || esp_codec_decode(back, codec, codes, &err))
            fail_msg("%s", err.text);
        found = iou(mask, back);
        if (getenv("ESP_TEST_VERBOSE"))
            fprintf(stderr, "%s%s: IoU %.4f\n", i >= 8 ? "bitten " : "", shape_names[i % 8], found);
        if (!(found >= 0.85))
            fail_msg("%s%s: IoU %.3f", i >= 8 ? "bitten " : "", shape_names[i % 8], found);
        sum += found;
    }
    if (!(sum / 16 >= 0.93))
        fail_msg("mean IoU %.3f", sum / 16);
    esp_ref_codec_read(&ref, "models/tiny/vae-oid.npz");
    esp_rand_init(&r, 3);
    check_decode(codec, &ref, &r, 1);
    check_encode(codec, &ref, masks + (size_t)11 * PIXELS, 2); /* star and cross, bitten */
    esp_ref_codec_finish(&ref);
    esp_codec_destroy(&codec);
}

/* ---- into the box ---- */

#define PASTE_SIDE 300

/* Of one axis: the part of pixel i of a box from lo to hi that mask row k has, by the definition. */
static double part_of(int i, double lo, double hi, int k)
{
    double scale = SIDE / (hi - lo), support = fmax(scale, 1.0), sum = 0.0, w[SIDE];

    for (int j = 0; j < SIDE; j++) {
        w[j] = fmax(0.0, 1.0 - fabs(j + 0.5 - (i + 0.5 - lo) * scale) / support);
        sum += w[j];
    }
    return w[k] / sum;
}

static void check_paste(const float *mask, uint32_t height, uint32_t width, const double box[4])
{
    static uint8_t got[PASTE_SIDE * PASTE_SIDE];
    static double across[PASTE_SIDE][SIDE], wide[SIDE][PASTE_SIDE];
    struct esp_err err;

    memset(got, 7, sizeof got);
    if (esp_codec_paste(got, height, width, mask, box, &err))
        fail_msg("%s", err.text);
    memset(wide, 0, sizeof wide);
    for (uint32_t x = 0; x < width; x++)
        for (int k = 0; k < SIDE; k++)
            across[x][k] = part_of((int)x, box[1], box[3], k);
    for (int row = 0; row < SIDE; row++)
        for (uint32_t x = 0; x < width; x++)
            for (int k = 0; k < SIDE; k++)
                wide[row][x] += across[x][k] * mask[row * SIDE + k];
    for (uint32_t y = 0; y < height; y++) {
        double down[SIDE];

        for (int k = 0; k < SIDE; k++)
            down[k] = part_of((int)y, box[0], box[2], k);
        for (uint32_t x = 0; x < width; x++) {
            bool in = y + 0.5 >= box[0] && y + 0.5 < box[2] && x + 0.5 >= box[1] && x + 0.5 < box[3];
            double sum = 0.0;

            for (int k = 0; in && k < SIDE; k++)
                sum += down[k] * wide[k][x];
            if (in && fabs(sum - 0.5) < 1e-5)
                continue; /* too close to call in float32 */
            if (got[y * width + x] != (in && sum > 0.5 ? 1 : 7))
                fail_msg("box %g %g %g %g, pixel %u %u: %u, the mask is %g there", box[0], box[1], box[2],
                         box[3], y, x, got[y * width + x], sum);
        }
    }
    for (size_t i = (size_t)height * width; i < sizeof got; i++)
        assert_int_equal(got[i], 7);
}

static void test_paste(void **state)
{
    static const double boxes[][4] = {
        {0, 0, 64, 64},           {10, 20, 74, 84},
        {3.3, 7.7, 20.1, 31.9},   {0, 0, 200, 290},
        {-50, -30, 60.5, 400},    {100, 100, 100.9, 100.9},
        {100.4, 100, 100.6, 140}, {17, 5, 18, 250},
        {190, 280, 1000, 2e9},    {-1e300, -1e300, 1e300, 1e300},
    };
    static float mask[PIXELS];
    static uint8_t blots[PIXELS], untouched[400];
    struct esp_rand r;

    esp_rand_init(&r, 4);
    for (size_t i = 0; i < sizeof boxes / sizeof boxes[0]; i++) {
        draw_blots(blots, &r);
        for (size_t p = 0; p < PIXELS; p++)
            mask[p] = (float)blots[p] / 255.0f * (float)(0.8 + 0.2 * esp_rand_uniform(&r));
        check_paste(mask, 200, PASTE_SIDE, boxes[i]);
    }
    /* Nothing to mark, and nothing marked. */
    for (size_t p = 0; p < PIXELS; p++)
        mask[p] = 1.0f;
    for (int i = 0; i < 6; i++) {
        static const double none[][4] = {{5, 5, 5, 9},     {9, 5, 5, 9},     {-9, -9, -1, -1},
                                         {21, 21, 30, 30}, {NAN, 0, 20, 20}, {0, 0, 20, INFINITY}};

        assert_int_equal(esp_codec_paste(untouched, 20, 20, mask, none[i], NULL), ESP_OK);
        for (size_t p = 0; p < sizeof untouched; p++)
            assert_int_equal(untouched[p], 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_published_shapes), cmocka_unit_test(test_odd_shapes),
        cmocka_unit_test(test_without_encoder),  cmocka_unit_test(test_codes_out_of_range),
        cmocka_unit_test(test_each_array),       cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_overflow),         cmocka_unit_test(test_no_file),
        cmocka_unit_test(test_shipped),          cmocka_unit_test(test_paste),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
