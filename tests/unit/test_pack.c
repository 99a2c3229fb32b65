/*
 * Packed weights against a naive mapping, element by element: every dtype, ragged sizes, padded heads in rows and
 * columns, several parts, gate and up by turns, parts of different dtypes.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "proto/status.h"
#include "tests/support/rand.h"
#include "worker/pack.h"

/* A stored element that tells where it is: tensor, row and column, exact in every dtype's bits. */
static uint32_t bits_of(enum esp_dtype dtype, uint32_t tensor, uint32_t row, uint32_t col)
{
    const uint32_t mark = (tensor * 7919 + row * 911 + col * 13 + 1) % 0x7000;
    switch (dtype) {
    case ESP_F32:
        return 0x3f000000u + mark * 3;
    default:
        return 0x0400 + mark; /* 16 bits: any, but no NaN and no infinity, of bf16 as of f16 */
    }
}

static void *stored_make(struct esp_tensor *t, enum esp_dtype dtype, uint32_t tensor, uint32_t n, uint32_t k)
{
    const size_t b = esp_dtype_n_bytes(dtype);
    char *data = malloc((size_t)n * k * b + 1);

    assert_non_null(data);
    for (uint32_t r = 0; r < n; r++)
        for (uint32_t c = 0; c < k; c++) {
            const uint32_t bits = bits_of(dtype, tensor, r, c);
            memcpy(data + 1 + ((size_t)r * k + c) * b, &bits, b); /* little-endian, of odd alignment */
        }
    *t = (struct esp_tensor){.dtype = dtype,
                             .n_dim = 2,
                             .shape = {n, k},
                             .data = data + 1,
                             .n_bytes = (size_t)n * k * b,
                             .name = "stored",
                             .stored_dtype = "",
                             .file = ""};
    return data;
}

/* head_dim as documented: each half padded to a multiple of 4. */
static uint32_t padded_head(uint32_t h)
{
    return ((h + 1) / 2 + 3) / 4 * 8;
}

/* Place of stored entry i in a padded axis. */
static uint32_t place(uint32_t i, struct esp_pack_heads heads)
{
    const uint32_t h = heads.head_dim;
    uint32_t d;

    if (!heads.n)
        return i;
    d = i % h;
    return i / h * padded_head(h) + (d < (h + 1) / 2 ? d : padded_head(h) / 2 + d - (h + 1) / 2);
}

static uint32_t axis(uint32_t n, struct esp_pack_heads heads)
{
    return heads.n ? heads.n * padded_head(heads.head_dim) : n;
}

struct pack_case {
    const char *what;
    uint32_t n_part, k;
    struct {
        enum esp_dtype dtype;
        uint32_t n;
        struct esp_pack_heads heads;
    } part[ESP_PACK_PARTS];
    bool interleave;
    struct esp_pack_heads k_heads;
    uint32_t np, kp; /* expected */
    enum esp_wtype type;
};

static const struct pack_case cases[] = {
    {"one element", 1, 1, {{ESP_BF16, 1, {0}}}, false, {0}, 32, 32, ESP_W_BF16},
    {"whole panels", 1, 64, {{ESP_BF16, 32, {0}}}, false, {0}, 32, 64, ESP_W_BF16},
    {"ragged, bf16", 1, 33, {{ESP_BF16, 31, {0}}}, false, {0}, 32, 64, ESP_W_BF16},
    {"ragged, f16", 1, 31, {{ESP_F16, 33, {0}}}, false, {0}, 64, 32, ESP_W_F16},
    {"ragged, f32", 1, 31, {{ESP_F32, 33, {0}}}, false, {0}, 64, 32, ESP_W_F32},
    {"4304 columns", 1, 4304, {{ESP_BF16, 9, {0}}}, false, {0}, 32, 4320, ESP_W_BF16},
    {"two parts", 2, 40, {{ESP_F16, 5, {0}}, {ESP_F16, 30, {0}}}, false, {0}, 64, 64, ESP_W_F16},
    {"mixed dtypes", 2, 40, {{ESP_F16, 5, {0}}, {ESP_BF16, 6, {0}}}, false, {0}, 32, 64, ESP_W_F32},
    {"mixed with f32",
     3,
     9,
     {{ESP_BF16, 5, {0}}, {ESP_BF16, 6, {0}}, {ESP_F32, 2, {0}}},
     false,
     {0},
     32,
     32,
     ESP_W_F32},
    {"heads of 72", 1, 40, {{ESP_BF16, 144, {2, 72}}}, false, {0}, 160, 64, ESP_W_BF16},
    {"heads of 20", 1, 40, {{ESP_F32, 60, {3, 20}}}, false, {0}, 96, 64, ESP_W_F32},
    {"odd heads", 1, 8, {{ESP_BF16, 21, {3, 7}}}, false, {0}, 32, 32, ESP_W_BF16},
    {"QKV",
     3,
     40,
     {{ESP_BF16, 144, {4, 36}}, {ESP_BF16, 72, {2, 36}}, {ESP_BF16, 72, {2, 36}}},
     false,
     {0},
     320,
     64,
     ESP_W_BF16},
    {"QKV, mixed",
     3,
     9,
     {{ESP_BF16, 40, {2, 20}}, {ESP_F32, 20, {1, 20}}, {ESP_F16, 20, {1, 20}}},
     false,
     {0},
     96,
     32,
     ESP_W_F32},
    {"O: heads in columns", 1, 144, {{ESP_BF16, 33, {0}}}, false, {4, 36}, 64, 160, ESP_W_BF16},
    {"O of f32", 1, 60, {{ESP_F32, 9, {0}}}, false, {3, 20}, 32, 96, ESP_W_F32},
    {"gate and up", 2, 40, {{ESP_BF16, 37, {0}}, {ESP_BF16, 37, {0}}}, true, {0}, 128, 64, ESP_W_BF16},
    {"gate and up, mixed", 2, 40, {{ESP_BF16, 40, {0}}, {ESP_F16, 40, {0}}}, true, {0}, 128, 64, ESP_W_F32},
    {"gate and up of 5", 2, 3, {{ESP_F32, 5, {0}}, {ESP_F32, 5, {0}}}, true, {0}, 64, 32, ESP_W_F32},
};

/* One element of the packed matrix, as the bits of its dtype. */
static uint32_t packed_at(const char *packed, const struct esp_pack_dims *d, uint32_t row, uint32_t col)
{
    const uint32_t b = (uint32_t)esp_wtype_n_bytes(d->wtype, 1), per = 16 / b, texels = d->kp / per;
    const size_t texel = ((size_t)(row / 8) * texels + col / per) * 8 + row % 8;
    uint32_t bits = 0;

    memcpy(&bits, packed + texel * 16 + col % per * b, b);
    return bits;
}

static uint32_t expected_bits(enum esp_wtype to, enum esp_dtype from, uint32_t bits)
{
    float f;

    if (to == esp_wtype_of(from))
        return bits;
    f = from == ESP_BF16  ? esp_bf16_to_f32((uint16_t)bits)
        : from == ESP_F16 ? esp_f16_to_f32((uint16_t)bits)
                          : 0;
    if (from == ESP_F32)
        return bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

static void test_packed(void **state)
{
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const struct pack_case *c = &cases[i];
        struct esp_tensor t[ESP_PACK_PARTS];
        void *data[ESP_PACK_PARTS];
        struct esp_pack_spec spec = {.n_part = c->n_part, .interleave = c->interleave, .k_heads = c->k_heads};
        struct esp_pack_dims d;
        uint32_t *want, row0 = 0;
        char *packed, *pieces;
        void *row;

        for (uint32_t p = 0; p < c->n_part; p++) {
            data[p] = stored_make(&t[p], c->part[p].dtype, p, c->part[p].n, c->k);
            spec.part[p].tensor = &t[p];
            spec.part[p].heads = c->part[p].heads;
        }
        esp_pack_dims(&d, &spec);
        if (d.np != c->np || d.kp != c->kp || d.wtype != c->type)
            fail_msg("%s: packed %u x %u %s, want %u x %u %s", c->what, d.np, d.kp, esp_wtype_name(d.wtype),
                     c->np, c->kp, esp_wtype_name(c->type));
        assert_int_equal(d.group_bytes, 8 * esp_wtype_n_bytes(d.wtype, d.kp));
        assert_int_equal(d.k, axis(c->k, c->k_heads));
        want = calloc((size_t)d.np * d.kp, sizeof *want); /* padding is zero */
        packed = malloc((size_t)d.np / 8 * d.group_bytes);
        pieces = malloc((size_t)d.np / 8 * d.group_bytes);
        row = malloc(esp_pack_scratch_bytes(&d));
        assert_true(want && packed && pieces && row);
        for (uint32_t p = 0; p < c->n_part; p++) {
            for (uint32_t r = 0; r < c->part[p].n; r++)
                for (uint32_t k = 0; k < c->k; k++) {
                    const uint32_t at =
                        c->interleave ? (2 * (r / 8) + p) * 8 + r % 8 : row0 + place(r, c->part[p].heads);
                    want[(size_t)at * d.kp + place(k, c->k_heads)] =
                        expected_bits(d.wtype, c->part[p].dtype, bits_of(c->part[p].dtype, p, r, k));
                }
            row0 += axis(c->part[p].n, c->part[p].heads);
        }
        memset(packed, 0xee, (size_t)d.np / 8 * d.group_bytes);
        assert_int_equal(esp_pack_groups(packed, &spec, &d, 0, d.np / 8, row, NULL), ESP_OK);
        for (uint32_t r = 0; r < d.np; r++)
            for (uint32_t k = 0; k < d.kp; k++)
                if (packed_at(packed, &d, r, k) != want[(size_t)r * d.kp + k])
                    fail_msg("%s: packed row %u, column %u has bits %#x, want %#x", c->what, r, k,
                             packed_at(packed, &d, r, k), want[(size_t)r * d.kp + k]);
        for (uint32_t g = 0; g < d.np / 8; g++) /* a group at a time is the same */
            assert_int_equal(esp_pack_groups(pieces + (size_t)g * d.group_bytes, &spec, &d, g, 1, row, NULL),
                             ESP_OK);
        assert_memory_equal(packed, pieces, (size_t)d.np / 8 * d.group_bytes);
        free(want);
        free(packed);
        free(pieces);
        free(row);
        for (uint32_t p = 0; p < c->n_part; p++)
            free(data[p]);
    }
}

/* Any run of groups comes out the same with all stored bytes wiped but those said to be its source, and of those there
 * are not many more than it takes. */
static void test_sources(void **state)
{
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const struct pack_case *c = &cases[i];
        struct esp_tensor t[ESP_PACK_PARTS], wiped[ESP_PACK_PARTS];
        void *data[ESP_PACK_PARTS], *rest[ESP_PACK_PARTS];
        struct esp_pack_spec spec = {.n_part = c->n_part, .interleave = c->interleave, .k_heads = c->k_heads};
        struct esp_pack_spec less;
        struct esp_pack_dims d;
        char *want, *got;
        void *row;

        for (uint32_t p = 0; p < c->n_part; p++) {
            data[p] = stored_make(&t[p], c->part[p].dtype, p, c->part[p].n, c->k);
            rest[p] = malloc(t[p].n_bytes);
            assert_non_null(rest[p]);
            wiped[p] = t[p];
            wiped[p].data = rest[p];
            spec.part[p].tensor = &t[p];
            spec.part[p].heads = c->part[p].heads;
        }
        esp_pack_dims(&d, &spec);
        less = spec;
        for (uint32_t p = 0; p < c->n_part; p++)
            less.part[p].tensor = &wiped[p];
        want = malloc((size_t)d.np / 8 * d.group_bytes);
        got = malloc((size_t)d.np / 8 * d.group_bytes);
        row = malloc(esp_pack_scratch_bytes(&d));
        assert_true(want && got && row);
        for (uint32_t g = 0; g < d.np / 8; g++) {
            for (uint32_t n = 1; g + n <= d.np / 8; n++) {
                for (uint32_t p = 0; p < c->n_part; p++) {
                    const uint64_t row_bytes = c->k * esp_dtype_n_bytes(c->part[p].dtype);
                    uint64_t at, n_bytes;
                    esp_pack_source(&at, &n_bytes, &spec, p, g, n);
                    assert_true(at + n_bytes <= t[p].n_bytes && at % row_bytes == 0);
                    assert_true(n_bytes <= (8 * n + 2 * c->part[p].heads.head_dim) * row_bytes);
                    memset(rest[p], 0, t[p].n_bytes);
                    memcpy((char *)rest[p] + at, (const char *)t[p].data + at, n_bytes);
                }
                assert_int_equal(esp_pack_groups(want, &spec, &d, g, n, row, NULL), ESP_OK);
                assert_int_equal(esp_pack_groups(got, &less, &d, g, n, row, NULL), ESP_OK);
                if (memcmp(want, got, (size_t)n * d.group_bytes) != 0)
                    fail_msg("%s: groups %u to %u take more than was said", c->what, g, g + n);
            }
        }
        free(want);
        free(got);
        free(row);
        for (uint32_t p = 0; p < c->n_part; p++) {
            free(data[p]);
            free(rest[p]);
        }
    }
}

/* Rows of random numbers, a few of them outliers. */
static float *random_rows(struct esp_tensor *t, uint32_t n, uint32_t k, uint64_t seed)
{
    float *x = malloc((size_t)n * k * sizeof *x);
    struct esp_rand r;

    assert_non_null(x);
    esp_rand_init(&r, seed);
    esp_rand_fill_outliers(&r, x, n, k, 0.03, 1, 20);
    *t = (struct esp_tensor){.dtype = ESP_F32,
                             .n_dim = 2,
                             .shape = {n, k},
                             .data = x,
                             .n_bytes = (size_t)n * k * sizeof *x,
                             .name = "stored",
                             .file = "here"};
    return x;
}

/* What the documented layout holds at a row and column: scales of eight rows, then their columns side by side. */
static float quantised_at(const char *packed, const struct esp_pack_dims *d, uint32_t row, uint32_t col)
{
    const uint32_t size = d->wtype == ESP_W_Q8 ? 17 * 16 : 9 * 16, r = row % 8, k = col % 32;
    const char *block = packed + ((size_t)(row / 8) * (d->kp / 32) + col / 32) * size;
    uint16_t side;

    memcpy(&side, block + 2 * r, sizeof side);
    if (d->wtype == ESP_W_Q8)
        return esp_bf16_to_f32(side) * (float)(int8_t)block[16 + 128 * (k / 16) + 16 * r + k % 16];
    return esp_q4_scale(side) *
           ((float)((uint8_t)block[16 + 16 * r + k / 2] >> k % 2 * 4 & 15) - esp_q4_zero(side));
}

/* The same in the texel and direct classes: a panel's words, a field a group; then its scales. */
static float field_at(const char *packed, const struct esp_pack_dims *d, uint32_t row, uint32_t col)
{
    const uint32_t groups = d->wtype == ESP_W_Q8 ? 4 : 8, bits = 32 / groups, k = col % 32;
    const uint32_t j = row / 8 % groups, l = row % 8;
    const char *block =
        packed + ((size_t)(row / 8 / groups) * (d->kp / 32) + col / 32) * (1024 + 16 * groups);
    uint32_t word, q;
    uint16_t side;

    memcpy(&word, block + (d->by_k ? k * 8 + l : (k / 4 * 8 + l) * 4 + k % 4) * 4, sizeof word);
    memcpy(&side, block + 1024 + (d->by_k ? (j / 2 * 8 + l) * 2 + j % 2 : l * groups + j) * 2, sizeof side);
    q = word >> bits * j & ((1u << bits) - 1);
    if (d->wtype == ESP_W_Q8)
        return esp_bf16_to_f32(side) * ((float)q - 128);
    return esp_q4_scale(side) * ((float)q - esp_q4_zero(side));
}

/* Gate and up, heads in rows, ragged sizes: every weight is the one that its own row gives when quantised alone. */
static void test_quantised(void **state)
{
    static const enum esp_wtype types[] = {ESP_W_Q8, ESP_W_Q4};
    static const struct {
        uint32_t n, k, np;
        struct esp_pack_heads heads;
        bool interleave;
    } shapes[] = {{1, 1, 32, {0}, false},
                  {33, 100, 64, {0}, false},
                  {60, 65, 96, {3, 20}, false},
                  {37, 64, 128, {0}, true}};

    for (size_t v = 0; v < sizeof shapes / sizeof shapes[0] * 6; v++) {
        static const enum esp_vk_class classes[] = {ESP_VK_PLAIN, ESP_VK_TEXEL, ESP_VK_DIRECT};
        const size_t i = v / 3;
        const enum esp_vk_class cls = classes[v % 3];
        const bool texel = esp_vk_has_texels(cls);
        const uint32_t n = shapes[i / 2].n, k = shapes[i / 2].k;
        const uint32_t panel = !texel ? 1 : i % 2 ? 8 : 4;
        struct esp_tensor t[2];
        float *x[2] = {random_rows(&t[0], n, k, 100 + i), random_rows(&t[1], n, k, 200 + i)};
        const struct esp_pack_spec spec = {
            .n_part = shapes[i / 2].interleave ? 2 : 1,
            .part = {{&t[0], shapes[i / 2].heads}, {&t[1], shapes[i / 2].heads}},
            .interleave = shapes[i / 2].interleave,
            .want = types[i % 2],
            .cls = cls};
        struct esp_pack_dims d;
        float *want, row[128];
        char *packed, blocks[4 * sizeof(struct esp_q8_block)];
        void *scratch;

        esp_pack_dims(&d, &spec);
        assert_int_equal(d.wtype, types[i % 2]);
        assert_int_equal(d.panel, panel);
        assert_int_equal(d.np, (shapes[i / 2].np + 8 * panel - 1) / (8 * panel) * (8 * panel));
        assert_int_equal(d.group_bytes, 8 * d.kp / 32 * (d.wtype == ESP_W_Q8 ? 34 : 18));
        want = calloc((size_t)d.np * d.kp, sizeof *want);
        packed = malloc((size_t)d.np / 8 * d.group_bytes);
        scratch = malloc(esp_pack_scratch_bytes(&d));
        assert_true(want && packed && scratch);
        for (uint32_t p = 0; p < spec.n_part; p++) {
            for (uint32_t r = 0; r < n; r++) {
                const uint32_t at =
                    spec.interleave ? (2 * (r / 8) + p) * 8 + r % 8 : place(r, shapes[i / 2].heads);
                assert_int_equal(esp_quant_row(blocks, d.wtype, x[p] + (size_t)r * k, k), k);
                esp_quant_values(row, d.wtype, blocks, k);
                memcpy(want + (size_t)at * d.kp, row, k * sizeof *row);
            }
        }
        memset(packed, 0xee, (size_t)d.np / 8 * d.group_bytes);
        assert_int_equal(esp_pack_groups(packed, &spec, &d, 0, d.np / 8, scratch, NULL), ESP_OK);
        for (uint32_t r = 0; r < d.np; r++)
            for (uint32_t c = 0; c < k; c++) {
                const float is = texel ? field_at(packed, &d, r, c) : quantised_at(packed, &d, r, c);
                if (is != want[(size_t)r * d.kp + c])
                    fail_msg("shape %zu, %s, %s: row %u, column %u is %g, want %g", i / 2,
                             esp_wtype_name(d.wtype), esp_vk_class_name(cls), r, c, (double)is,
                             (double)want[(size_t)r * d.kp + c]);
            }
        free(want);
        free(packed);
        free(scratch);
        free(x[0]);
        free(x[1]);
    }
}

/* Any stored type as any other. */
static void test_wishes(void **state)
{
    struct esp_tensor t;
    float *x = random_rows(&t, 8, 40, 3), scratch[64];
    struct esp_pack_spec spec = {.n_part = 1, .part = {{.tensor = &t}}, .want = ESP_W_F16};
    struct esp_pack_dims d;
    struct esp_err err;
    uint16_t narrow[64];

    esp_pack_dims(&d, &spec);
    assert_int_equal(d.wtype, ESP_W_F16);
    assert_int_equal(esp_pack_row(narrow, &spec, &d, 5, scratch, &err), ESP_OK);
    for (uint32_t c = 0; c < 40; c++)
        assert_int_equal(narrow[c], esp_f32_to_f16(x[5 * 40 + c]));
    for (uint32_t c = 40; c < 64; c++)
        assert_int_equal(narrow[c], 0);
    spec.want = ESP_W_BF16;
    esp_pack_dims(&d, &spec);
    assert_int_equal(d.wtype, ESP_W_BF16);
    assert_int_equal(esp_pack_row(narrow, &spec, &d, 5, scratch, &err), ESP_OK);
    for (uint32_t c = 0; c < 40; c++)
        assert_int_equal(narrow[c], esp_f32_to_bf16(x[5 * 40 + c]));

    free(x);
}

/* What a type cannot hold is refused, and it is said where that is. */
static void test_no_such_weight(void **state)
{
    static const struct {
        enum esp_wtype want;
        float weight;
        bool ok;
    } c[] = {{ESP_W_F16, 65519.0f, true},   {ESP_W_F16, 65520.0f, false}, {ESP_W_F16, -1e9f, false},
             {ESP_W_F16, 1e-30f, true},     {ESP_W_BF16, 3.38e38f, true}, {ESP_W_BF16, 3.4e38f, false},
             {ESP_W_BF16, INFINITY, false}, {ESP_W_BF16, NAN, false},     {ESP_W_F16, NAN, false},
             {ESP_W_Q8, 1e38f, true},       {ESP_W_Q8, 2e38f, false},     {ESP_W_Q8, -INFINITY, false},
             {ESP_W_Q8, NAN, false},        {ESP_W_Q4, 1e8f, true},       {ESP_W_Q4, -1.1e8f, false},
             {ESP_W_Q4, NAN, false},        {ESP_W_STORED, NAN, true},    {ESP_W_STORED, INFINITY, true}};

    for (size_t i = 0; i < sizeof c / sizeof c[0]; i++) {
        struct esp_tensor t;
        float *x = random_rows(&t, 9, 70, 5);
        const struct esp_pack_spec spec = {.n_part = 1, .part = {{.tensor = &t}}, .want = c[i].want};
        struct esp_pack_dims d;
        struct esp_err err = {0};
        char *packed;
        void *scratch;
        esp_status st;

        x[8 * 70 + 66] = c[i].weight;
        esp_pack_dims(&d, &spec);
        packed = malloc((size_t)d.np / 8 * d.group_bytes);
        scratch = malloc(esp_pack_scratch_bytes(&d));
        assert_true(packed && scratch);
        st = esp_pack_groups(packed, &spec, &d, 0, d.np / 8, scratch, &err);
        if (st != (c[i].ok ? ESP_OK : ESP_E_FORMAT))
            fail_msg("%g as %s: %s", (double)c[i].weight, esp_wtype_name(c[i].want), esp_status_name(st));
        if (!c[i].ok &&
            (!strstr(err.text, "here: tensor stored: row 8, column 66") || !strstr(err.text, "--weights")))
            fail_msg("%s", err.text);
        free(packed);
        free(scratch);
        free(x);
    }
}

static void test_head_dim(void **state)
{
    static const uint32_t of[][2] = {{1, 8},   {2, 8},   {8, 8},   {10, 16},  {20, 24},
                                     {32, 32}, {36, 40}, {72, 72}, {256, 256}};

    for (size_t i = 0; i < sizeof of / sizeof of[0]; i++)
        assert_int_equal(esp_pack_head_dim(of[i][0]), of[i][1]);
}

/* Biases of Q, K and V, one after the other, with padded heads; shorter vectors are filled up with zeros. */
static void test_vectors(void **state)
{
    struct esp_tensor q, k;
    void *data_q = stored_make(&q, ESP_BF16, 0, 40, 1), *data_k = stored_make(&k, ESP_F32, 1, 20, 1);
    const struct esp_pack_part parts[2] = {{&q, {2, 20}}, {&k, {1, 20}}};
    const struct esp_pack_part plain[1] = {{&k, {0, 0}}};
    float out[96], want[96] = {0};

    for (uint32_t i = 0; i < 40; i++)
        want[place(i, parts[0].heads)] = esp_bf16_to_f32((uint16_t)bits_of(ESP_BF16, 0, i, 0));
    for (uint32_t i = 0; i < 20; i++) {
        const uint32_t bits = bits_of(ESP_F32, 1, i, 0);
        memcpy(&want[48 + place(i, parts[1].heads)], &bits, sizeof bits);
    }
    memset(out, 0xee, sizeof out);
    esp_pack_vector(out, 96, parts, 2);
    assert_memory_equal(out, want, sizeof out);

    memset(out, 0xee, sizeof out);
    esp_pack_vector(out, 32, plain, 1);
    assert_memory_equal(out, k.data, 20 * sizeof *out);
    for (uint32_t i = 20; i < 32; i++)
        assert_true(out[i] == 0);
    free(data_q);
    free(data_k);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_packed),         cmocka_unit_test(test_sources),
                                       cmocka_unit_test(test_quantised),      cmocka_unit_test(test_wishes),
                                       cmocka_unit_test(test_no_such_weight), cmocka_unit_test(test_head_dim),
                                       cmocka_unit_test(test_vectors)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
