/*
 * PNG layouts that the golden pictures lack, and files that nobody should decode, each with its own answer.
 * PNGs are put together here, chunk by chunk, so that any of it can be wrong.
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

#include <zlib.h>

#include "picture/image.h"
#include "tests/support/file.h"
#include "tests/support/rand.h"

#define IMAGES "tests/golden/data/tiny/images"

struct bytes {
    uint8_t at[1 << 18];
    size_t n;
};

static void put(struct bytes *b, const void *from, size_t n)
{
    assert_true(b->n + n <= sizeof b->at);
    memcpy(b->at + b->n, from, n);
    b->n += n;
}

static void put_be32(struct bytes *b, uint32_t value)
{
    put(b,
        (const uint8_t[]){(uint8_t)(value >> 24), (uint8_t)(value >> 16), (uint8_t)(value >> 8),
                          (uint8_t)value},
        4);
}

static void put_chunk(struct bytes *b, const char *type, const void *data, size_t n)
{
    put_be32(b, (uint32_t)n);
    put(b, type, 4);
    put(b, data, n);
    put_be32(b, (uint32_t)crc32(0, b->at + b->n - n - 4, (uInt)n + 4));
}

static void put_header(struct bytes *b, uint32_t width, uint32_t height, uint8_t depth, uint8_t type)
{
    struct bytes *ihdr = calloc(1, sizeof *ihdr);

    assert_non_null(ihdr);
    put(b, "\x89PNG\r\n\x1a\n", 8);
    put_be32(ihdr, width);
    put_be32(ihdr, height);
    put(ihdr, (const uint8_t[]){depth, type, 0, 0, 0}, 5);
    put_chunk(b, "IHDR", ihdr->at, ihdr->n);
    free(ihdr);
}

/* Filtered rows, deflated; `before` goes in front of the stream inside the chunk (zTXt and iCCP have a name
 * there). */
static void put_deflated(struct bytes *b, const char *type, const char *before, size_t n_before,
                         const void *raw, size_t n_raw)
{
    uLongf n = compressBound(n_raw);
    uint8_t *data = malloc(n_before + n);

    assert_non_null(data);
    if (n_before)
        memcpy(data, before, n_before);
    assert_int_equal(compress2(data + n_before, &n, raw, n_raw, 9), Z_OK);
    put_chunk(b, type, data, n_before + n);
    free(data);
}

static void put_zeros(struct bytes *b, const char *type, const char *before, size_t n_before, size_t n_raw)
{
    uint8_t *raw = calloc(n_raw, 1);

    assert_non_null(raw);
    put_deflated(b, type, before, n_before, raw, n_raw);
    free(raw);
}

static void put_end(struct bytes *b)
{
    put_chunk(b, "IEND", "", 0);
}

/* ---- one row of every layout ---- */

static const struct {
    const char *what;
    uint8_t depth, type, width;
    uint8_t n_raw;
    uint8_t raw[16]; /* without the filter byte */
    uint8_t grey[8]; /* what is expected: grey, or rgb if colour is set */
    uint8_t rgb[12];
} layouts[] = {
    {"grey 1", 1, 0, 4, 1, {0x50}, {0, 255, 0, 255}, {0}},
    {"grey 2", 2, 0, 4, 1, {0x1b}, {0, 85, 170, 255}, {0}},
    {"grey 4", 4, 0, 3, 2, {0x0f, 0x80}, {0, 255, 136}, {0}},
    {"grey 8", 8, 0, 2, 2, {7, 200}, {7, 200}, {0}},
    {"grey 16 is clipped", 16, 0, 3, 6, {0, 7, 0, 255, 1, 0}, {7, 255, 255}, {0}},
    {"grey 8 and alpha", 8, 4, 2, 4, {9, 0, 90, 128}, {9, 90}, {0}},
    {"grey 16 and alpha: high byte", 16, 4, 2, 8, {9, 200, 0, 0, 90, 1, 1, 1}, {9, 90}, {0}},
    {"rgb 16: high byte", 16, 2, 1, 6, {1, 255, 2, 255, 3, 255}, {0}, {1, 2, 3}},
    {"rgba 8", 8, 6, 1, 4, {1, 2, 3, 0}, {0}, {1, 2, 3}},
    {"rgba 16: high byte", 16, 6, 1, 8, {1, 255, 2, 0, 3, 9, 0, 0}, {0}, {1, 2, 3}},
    {"palette 1", 1, 3, 2, 1, {0x40}, {0}, {10, 11, 12, 20, 21, 22}},
    {"palette 2, with an entry that is not there",
     2,
     3,
     3,
     1,
     {0x18},
     {0},
     {10, 11, 12, 20, 21, 22, 0, 0, 0}},
    {"palette 8, with entries that are not there", 8, 3, 3, 3, {1, 2, 255}, {0}, {20, 21, 22}},
};

static void every_layout(void **state)
{
    static const uint8_t palette[] = {10, 11, 12, 20, 21, 22};
    struct bytes *b = calloc(1, sizeof *b);

    assert_non_null(b);
    for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++) {
        uint8_t row[17] = {0};
        struct esp_image image;
        struct esp_err err;

        b->n = 0;
        put_header(b, layouts[i].width, 1, layouts[i].depth, layouts[i].type);
        put_chunk(b, "gAMA", "\0\1\0\0", 4); /* a gamma that must not matter */
        if (layouts[i].type == 3) {
            put_chunk(b, "PLTE", palette, sizeof palette);
            put_chunk(b, "tRNS", "\0", 1);
        } else if (layouts[i].type == 0) {
            put_chunk(b, "tRNS", "\0\0", 2);
        }
        memcpy(row + 1, layouts[i].raw, layouts[i].n_raw);
        put_deflated(b, "IDAT", NULL, 0, row, 1u + layouts[i].n_raw);
        put_end(b);
        if (esp_image_decode(&image, b->at, b->n, NULL, &err))
            fail_msg("%s: %s", layouts[i].what, err.text);
        assert_int_equal(image.width, layouts[i].width);
        for (uint32_t x = 0; x < 3u * image.width; x++) {
            const bool colour = layouts[i].type != 0 && layouts[i].type != 4;
            const uint8_t want = colour ? layouts[i].rgb[x] : layouts[i].grey[x / 3];
            if (image.rgb[x] != want)
                fail_msg("%s: level %u is %u, must be %u", layouts[i].what, x, image.rgb[x], want);
        }
        esp_image_finish(&image);
    }
    free(b);
}

/* ---- hostile files ---- */

static void make_nothing(struct bytes *b)
{
}

static void make_signature(struct bytes *b)
{
    put(b, "\x89PNG\r\n\x1a\n", 8);
}

static void make_half_signature(struct bytes *b)
{
    put(b, "\x89PNG", 4);
}

static void make_text_mode(struct bytes *b)
{
    put(b, "\x89PNG\n\x1a\n\0\0\0\rIHDR", 15);
}

static void make_one_ff(struct bytes *b)
{
    put(b, "\xff", 1);
}

static void make_noise(struct bytes *b)
{
    put(b, "no picture at all", 17);
}

static void make_no_header(struct bytes *b)
{
    put(b, "\x89PNG\r\n\x1a\n", 8);
    put_zeros(b, "IDAT", NULL, 0, 4096);
}

static void make_zero_width(struct bytes *b)
{
    put_header(b, 0, 5, 8, 2);
    put_end(b);
}

static void make_wide(struct bytes *b)
{
    put_header(b, 65536, 1, 8, 2);
    put_end(b);
}

static void make_widest(struct bytes *b)
{
    put_header(b, UINT32_MAX, UINT32_MAX, 16, 6);
    put_end(b);
}

static void make_huge(struct bytes *b)
{
    put_header(b, 60000, 60000, 8, 2);
    put_end(b);
}

static void make_hollow(struct bytes *b)
{
    put_header(b, 10000, 10000, 8, 2);
    put_zeros(b, "IDAT", NULL, 0, 4096);
    put_end(b);
}

static void make_colour_5(struct bytes *b)
{
    put_header(b, 1, 1, 8, 5);
    put_end(b);
}

static void make_depth_3(struct bytes *b)
{
    put_header(b, 1, 1, 3, 2);
    put_end(b);
}

static void make_no_palette(struct bytes *b)
{
    put_header(b, 1, 1, 8, 3);
    put_zeros(b, "IDAT", NULL, 0, 2);
    put_end(b);
}

static void make_bad_checksum(struct bytes *b)
{
    put_header(b, 1, 1, 8, 2);
    b->at[b->n - 1] ^= 1;
    put_end(b);
}

static void make_bad_last_checksum(struct bytes *b)
{
    put_header(b, 1, 1, 8, 2);
    put_zeros(b, "IDAT", NULL, 0, 4);
    b->at[b->n - 1] ^= 1;
    put_end(b);
}

static void make_few_rows(struct bytes *b)
{
    put_header(b, 4, 4, 8, 2);
    put_zeros(b, "IDAT", NULL, 0, 2 * 13);
    put_end(b);
}

static void make_no_rows(struct bytes *b)
{
    put_header(b, 4, 4, 8, 2);
    put_end(b);
}

static void make_not_deflate(struct bytes *b)
{
    put_header(b, 4, 4, 8, 2);
    put_chunk(b, "IDAT", "not zlib at all, is it", 22);
    put_end(b);
}

static void make_filter_9(struct bytes *b)
{
    put_header(b, 1, 1, 8, 2);
    put_deflated(b, "IDAT", NULL, 0, "\x09\0\0\0", 4);
    put_end(b);
}

/* A start-of-frame segment behind the start marker, and no data. */
static void make_frame(struct bytes *b, uint8_t kind, uint8_t precision, uint16_t width, uint16_t height,
                       uint8_t n)
{
    put(b,
        (const uint8_t[]){0xff, 0xd8, 0xff, kind, 0, (uint8_t)(8 + 3 * n), precision, (uint8_t)(height >> 8),
                          (uint8_t)height, (uint8_t)(width >> 8), (uint8_t)width, n},
        12);
    for (uint8_t i = 0; i < n; i++)
        put(b, (const uint8_t[]){(uint8_t)(i + 1), 0x11, 0}, 3);
    put(b, (const uint8_t[]){0xff, 0xda, 0, (uint8_t)(6 + 2 * n), n}, 5);
    for (uint8_t i = 0; i < n; i++)
        put(b, (const uint8_t[]){(uint8_t)(i + 1), 0}, 2);
    put(b, (const uint8_t[]){0, 63, 0, 0xff, 0xd9}, 5);
}

static void make_jpeg_empty(struct bytes *b)
{
    make_frame(b, 0xc0, 8, 0, 5, 3);
}

static void make_jpeg_huge(struct bytes *b)
{
    make_frame(b, 0xc0, 8, 65000, 65000, 3);
}

static void make_jpeg_too_wide(struct bytes *b)
{
    make_frame(b, 0xc0, 8, 65535, 1, 3);
}

static void make_jpeg_hollow(struct bytes *b)
{
    make_frame(b, 0xc0, 8, 9000, 9000, 3);
}

static void make_jpeg_two(struct bytes *b)
{
    make_frame(b, 0xc0, 8, 8, 8, 2);
}

static void make_jpeg_12_bit(struct bytes *b)
{
    make_frame(b, 0xc1, 12, 8, 8, 3);
}

static void make_jpeg_differential(struct bytes *b)
{
    make_frame(b, 0xc5, 8, 8, 8, 3); /* of hierarchical JPEG; lossless, 0xc3, libjpeg-turbo 3 decodes */
}

static void make_jpeg_no_tables(struct bytes *b)
{
    make_frame(b, 0xc0, 8, 8, 8, 3);
}

static void make_jpeg_no_frame(struct bytes *b)
{
    put(b, "\xff\xd8\xff\xd9", 4);
}

static void make_jpeg_long_segment(struct bytes *b)
{
    put(b,
        "\xff\xd8\xff\xe1\xff\xff"
        "Exif",
        10);
}

/* The last scan of a progressive picture again and again. */
static void make_jpeg_scans(struct bytes *b)
{
    size_t n, last = 0;
    uint8_t *good = esp_slurp(&n, IMAGES "/jpeg_progressive.jpg");

    for (size_t i = 0; i + 1 < n; i++)
        if (good[i] == 0xff && good[i + 1] == 0xda)
            last = i;
    assert_true(last > 0);
    put(b, good, n - 2);
    for (int i = 0; i < 110; i++)
        put(b, good + last, n - 2 - last);
    put(b, "\xff\xd9", 2);
    free(good);
}

static const struct {
    const char *what;
    void (*make)(struct bytes *b);
    esp_status status;
    const char *says;
} bad[] = {
    {"no bytes", make_nothing, ESP_E_FORMAT, "is empty"},
    {"noise", make_noise, ESP_E_FORMAT, "is neither a PNG nor a JPEG file"},
    {"half a signature", make_half_signature, ESP_E_FORMAT, "is cut off after 4 bytes"},
    {"one byte of a JPEG", make_one_ff, ESP_E_FORMAT, "is cut off after 1 bytes"},
    {"PNG: line ends changed", make_text_mode, ESP_E_FORMAT, "its signature is altered"},
    {"PNG: a signature", make_signature, ESP_E_FORMAT, "truncated PNG: 8 bytes"},
    {"PNG: no header", make_no_header, ESP_E_FORMAT, "the first chunk is not a header"},
    {"PNG: zero width", make_zero_width, ESP_E_FORMAT, "PNG of 0 x 5 pixels"},
    {"PNG: too wide", make_wide, ESP_E_LIMIT, "a side may have 65535"},
    {"PNG: 2^32-1 squared", make_widest, ESP_E_LIMIT, "a side may have 65535"},
    {"PNG: too many pixels", make_huge, ESP_E_LIMIT, "at most 100000000 in all"},
    {"PNG: hollow", make_hollow, ESP_E_FORMAT, "cannot hold 10000 x 10000 pixels"},
    {"PNG: colour type 5", make_colour_5, ESP_E_FORMAT, "no such colour type and depth (5, 8)"},
    {"PNG: depth 3", make_depth_3, ESP_E_FORMAT, "damaged PNG"},
    {"PNG: no palette", make_no_palette, ESP_E_FORMAT, "Missing PLTE before IDAT"},
    {"PNG: header's checksum", make_bad_checksum, ESP_E_FORMAT, "CRC error"},
    {"PNG: last checksum", make_bad_last_checksum, ESP_E_FORMAT, "CRC error"},
    {"PNG: too few rows", make_few_rows, ESP_E_FORMAT, "damaged PNG: Not enough image data"},
    {"PNG: no rows", make_no_rows, ESP_E_FORMAT, "damaged PNG"},
    {"PNG: not deflated", make_not_deflate, ESP_E_FORMAT, "damaged PNG"},
    {"PNG: filter 9", make_filter_9, ESP_E_FORMAT, "bad adaptive filter value"},
    {"JPEG: zero width", make_jpeg_empty, ESP_E_FORMAT, "nothing to see"},
    {"JPEG: too many pixels", make_jpeg_huge, ESP_E_LIMIT, "at most 100000000 in all"},
    {"JPEG: wider than the library takes", make_jpeg_too_wide, ESP_E_LIMIT, "65500"},
    {"JPEG: hollow", make_jpeg_hollow, ESP_E_FORMAT, "cannot hold 9000 x 9000 pixels"},
    {"JPEG: two components", make_jpeg_two, ESP_E_UNSUPPORTED, "JPEG of 2 components"},
    {"JPEG: 12 bit", make_jpeg_12_bit, ESP_E_UNSUPPORTED, "precision 12"},
    {"JPEG: differential", make_jpeg_differential, ESP_E_UNSUPPORTED, "cannot decode"},
    {"JPEG: no tables", make_jpeg_no_tables, ESP_E_FORMAT, "damaged JPEG: Quantization table"},
    {"JPEG: no frame", make_jpeg_no_frame, ESP_E_FORMAT, "damaged JPEG: JPEG datastream contains no image"},
    {"JPEG: a segment beyond the end", make_jpeg_long_segment, ESP_E_FORMAT, "truncated JPEG"},
    {"JPEG: 110 scans more", make_jpeg_scans, ESP_E_LIMIT, "more than 100 scans"},
};

/* Decodes a copy in a block of the exact size, so that ASan sees an overread. */
static esp_status decode(struct esp_image *image, const struct bytes *b, struct esp_err *err)
{
    uint8_t *exact = malloc(b->n ? b->n : 1);
    esp_status st;

    assert_non_null(exact);
    memcpy(exact, b->at, b->n);
    st = esp_image_decode(image, exact, b->n, NULL, err);
    free(exact);
    return st;
}

static void refuses_bad_files(void **state)
{
    struct bytes *b = calloc(1, sizeof *b);

    assert_non_null(b);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct esp_image image;
        struct esp_err err = {0};
        esp_status st;

        b->n = 0;
        bad[i].make(b);
        st = decode(&image, b, &err);
        if (st != bad[i].status || !strstr(err.text, bad[i].says))
            fail_msg("%s: status %d \"%s\", must be %d \"%s\"", bad[i].what, (int)st, err.text,
                     (int)bad[i].status, bad[i].says);
        assert_null(image.rgb);
    }
    free(b);
}

static void names_other_formats(void **state)
{
    static const struct {
        const char *bytes;
        size_t n;
        const char *name;
    } table[] = {
        {"GIF89a\1\0\1\0", 10, "GIF"},
        {"RIFF\x24\0\0\0WEBPVP8 ", 16, "WebP"},
        {"BM\x46\0\0\0", 6, "BMP"},
        {"II*\0\x08\0\0\0", 8, "TIFF"},
        {"MM\0*\0\0\0\x08", 8, "TIFF"},
        {"\0\0\0\x18"
         "ftypheic",
         12, "HEIC"},
        {"\0\0\0\x18"
         "ftypmif1",
         12, "HEIF"},
        {"\0\0\0\x1c"
         "ftypavif",
         12, "AVIF"},
        {"\0\0\0\x1c"
         "ftypisom",
         12, "MP4 video"},
        {"%PDF-1.7", 8, "PDF"},
        {"\xff\x0a\0", 3, "JPEG XL"},
        {"<svg xmlns", 10, "SVG"},
        {"<!DOCTYPE html>", 15, "HTML"},
        {"version https://git-lfs.github.com/spec/v1", 42, "Git LFS pointer"},
    };

    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        struct esp_image image;
        struct esp_err err;
        char want[96];

        snprintf(want, sizeof want, "is a %s file; PNG and JPEG are supported: convert it first",
                 table[i].name);
        assert_int_equal(esp_image_decode(&image, table[i].bytes, table[i].n, NULL, &err), ESP_E_UNSUPPORTED);
        assert_string_equal(err.text, want);
    }
}

/* 64 MiB of zeros in a profile, a text and behind the picture: none of it is inflated, the picture is fine.
 */
static void bombs_do_not_go_off(void **state)
{
    const size_t n_bomb = (size_t)64 << 20;
    struct bytes *b = calloc(1, sizeof *b);
    struct esp_image image;
    struct esp_err err;

    assert_non_null(b);
    put_header(b, 1, 1, 8, 2);
    put_zeros(b, "iCCP", "p\0\0", 3, n_bomb);
    put_zeros(b, "zTXt", "t\0\0", 3, n_bomb);
    put_zeros(b, "IDAT", NULL, 0, n_bomb);
    put_end(b);
    if (decode(&image, b, &err))
        fail_msg("%s", err.text);
    assert_int_equal(image.width, 1);
    esp_image_finish(&image);
    free(b);
}

static const char *const files[] = {"scene_b.png",  "interlaced.png",       "palette.png",   "grey16.png",
                                    "jpeg_444.jpg", "jpeg_progressive.jpg", "jpeg_cmyk.jpg", "jpeg_grey.jpg"};

/* A file cut short is refused and called truncated, or, when only its end is missing, decodes to the same
 * picture. */
static void tells_truncation(void **state)
{
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        size_t n, n_taken = 0;
        uint8_t *good = esp_slurp(&n, IMAGES "/%s", files[i]);
        struct esp_image whole, part;
        struct esp_err err;
        uint32_t width, height;

        assert_int_equal(esp_image_decode(&whole, good, n, NULL, &err), ESP_OK);
        for (size_t cut = 12; cut < n; cut += cut < 200 || cut + 100 > n ? 1 : 251) {
            uint8_t *exact = malloc(cut);
            esp_status st;

            assert_non_null(exact);
            memcpy(exact, good, cut);
            st = esp_image_size(&width, &height, exact, cut, NULL, &err); /* the whole one's, or none */
            assert_true(st ? st == ESP_E_FORMAT && width == 0 && height == 0
                           : width == whole.width && height == whole.height);
            st = esp_image_decode(&part, exact, cut, NULL, &err);
            assert_true(st != ESP_OK || width == whole.width);
            if (st == ESP_OK) {
                n_taken++;
                assert_memory_equal(part.rgb, whole.rgb, 3 * (size_t)whole.width * whole.height);
                esp_image_finish(&part);
            } else if (st != ESP_E_FORMAT || !strstr(err.text, "truncated")) {
                fail_msg("%s cut at %zu of %zu: status %d \"%s\"", files[i], cut, n, (int)st, err.text);
            }
            free(exact);
        }
        assert_true(n_taken < 40); /* checksums, end chunk, end marker */
        esp_image_finish(&whole);
        free(good);
    }
}

static void survives_flipped_bits(void **state)
{
    struct esp_rand rand;

    esp_rand_init(&rand, 11);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        size_t n;
        uint8_t *bytes = esp_slurp(&n, IMAGES "/%s", files[i]);

        for (int round = 0; round < 150; round++) {
            const uint32_t at = esp_rand_below(&rand, round % 2 ? (uint32_t)n : 256);
            const uint8_t bit = (uint8_t)(1u << esp_rand_below(&rand, 8));
            struct esp_image image;
            struct esp_err err = {0};

            bytes[at] ^= bit;
            if (esp_image_decode(&image, bytes, n, NULL, &err) == ESP_OK)
                esp_image_finish(&image);
            else
                assert_true(err.text[0] != 0 && !image.rgb);
            bytes[at] ^= bit;
        }
        free(bytes);
    }
}

static void keeps_to_the_given_limits(void **state)
{
    size_t n;
    uint8_t *jpeg = esp_slurp(&n, IMAGES "/jpeg_progressive.jpg");
    struct esp_image_limits limits = ESP_IMAGE_LIMITS_DEFAULT;
    struct esp_image image;
    struct esp_err err;

    assert_int_equal(esp_image_decode(&image, jpeg, n, &limits, &err), ESP_OK);
    limits.max_pixels = (uint64_t)image.width * image.height - 1;
    esp_image_finish(&image);
    assert_int_equal(esp_image_decode(&image, jpeg, n, &limits, &err), ESP_E_LIMIT);
    limits = ESP_IMAGE_LIMITS_DEFAULT;
    limits.max_side = 16;
    assert_int_equal(esp_image_decode(&image, jpeg, n, &limits, &err), ESP_E_LIMIT);
    limits = ESP_IMAGE_LIMITS_DEFAULT;
    limits.max_work_bytes = 100000;
    assert_int_equal(esp_image_decode(&image, jpeg, n, &limits, &err), ESP_E_LIMIT);
    assert_non_null(strstr(err.text, "decoding it takes more than 100000 bytes"));
    limits = ESP_IMAGE_LIMITS_DEFAULT;
    limits.max_scans = 2;
    assert_int_equal(esp_image_decode(&image, jpeg, n, &limits, &err), ESP_E_LIMIT);
    assert_non_null(strstr(err.text, "more than 2 scans"));
    free(jpeg);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_layout),
        cmocka_unit_test(refuses_bad_files),
        cmocka_unit_test(names_other_formats),
        cmocka_unit_test(bombs_do_not_go_off),
        cmocka_unit_test(tells_truncation),
        cmocka_unit_test(survives_flipped_bits),
        cmocka_unit_test(keeps_to_the_given_limits),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
