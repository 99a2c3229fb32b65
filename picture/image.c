#include "picture/image.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "picture/image_codec.h"

/* Files that people hand us in place of a picture we read. `at` is the offset of the mark. */
static const struct {
    const char *name;
    const char *mark;
    uint8_t at, n_mark;
} others[] = {
    {"GIF", "GIF8", 0, 4},
    {"WebP", "WEBP", 8, 4},
    {"BMP", "BM", 0, 2},
    {"TIFF", "II*\0", 0, 4},
    {"TIFF", "MM\0*", 0, 4},
    {"AVIF", "ftypavif", 4, 8},
    {"AVIF", "ftypavis", 4, 8},
    {"HEIC", "ftyphei", 4, 7},
    {"HEIC", "ftyphev", 4, 7},
    {"HEIF", "ftypmif1", 4, 8},
    {"HEIF", "ftypmsf1", 4, 8},
    {"MP4 video", "ftyp", 4, 4},
    {"PDF", "%PDF", 0, 4},
    {"JPEG XL", "\xff\x0a", 0, 2},
    {"JPEG XL", "\0\0\0\x0cJXL ", 0, 8},
    {"JPEG 2000", "\0\0\0\x0cjP  ", 0, 8},
    {"JPEG 2000", "\xff\x4f\xff\x51", 0, 4},
    {"Photoshop", "8BPS", 0, 4},
    {"Windows icon", "\0\0\1\0", 0, 4},
    {"Netpbm", "P6\n", 0, 3},
    {"Netpbm", "P5\n", 0, 3},
    {"SVG", "<svg", 0, 4},
    {"XML or SVG", "<?xml", 0, 5},
    {"HTML", "<!DOCTYPE html", 0, 14},
    {"HTML", "<!doctype html", 0, 14},
    {"HTML", "<html", 0, 5},
    {"Git LFS pointer", "version https://git-lfs", 0, 23},
    {"ZIP", "PK\3\4", 0, 4},
    {"gzip", "\x1f\x8b", 0, 2},
};

static const uint8_t png_signature[8] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};

static esp_status refuse_unknown(const uint8_t *bytes, size_t n_bytes, struct esp_err *err)
{
    if (n_bytes == 0)
        return esp_fail(err, ESP_E_FORMAT, "is empty");
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        const size_t end = (size_t)others[i].at + others[i].n_mark;
        if (n_bytes >= end && memcmp(bytes + others[i].at, others[i].mark, others[i].n_mark) == 0)
            return esp_fail(err, ESP_E_UNSUPPORTED,
                            "is a %s file; PNG and JPEG are supported: convert it first", others[i].name);
    }
    if (n_bytes < sizeof png_signature &&
        (memcmp(bytes, png_signature, n_bytes) == 0 || (n_bytes < 3 && bytes[0] == 0xff)))
        return esp_fail(err, ESP_E_FORMAT, "is cut off after %zu bytes", n_bytes);
    if (n_bytes >= 4 && memcmp(bytes, png_signature, 4) == 0)
        return esp_fail(err, ESP_E_FORMAT, "damaged PNG: its signature is altered, as by a transfer as text");
    return esp_fail(err, ESP_E_FORMAT, "is neither a PNG nor a JPEG file (it starts with byte %02x)",
                    bytes[0]);
}

static const uint8_t jpeg_signature[3] = {0xff, 0xd8, 0xff};

static bool starts_with(const uint8_t *bytes, size_t n_bytes, const uint8_t *mark, size_t n_mark)
{
    return n_bytes >= n_mark && memcmp(bytes, mark, n_mark) == 0;
}

esp_status esp_image_decode(struct esp_image *out, const void *bytes, size_t n_bytes,
                            const struct esp_image_limits *limits, struct esp_err *err)
{
    const struct esp_image_limits defaults = ESP_IMAGE_LIMITS_DEFAULT;
    esp_status st;

    memset(out, 0, sizeof *out);
    if (!limits)
        limits = &defaults;
    if (starts_with(bytes, n_bytes, png_signature, sizeof png_signature))
        st = esp_png_decode(out, bytes, n_bytes, limits, err);
    else if (starts_with(bytes, n_bytes, jpeg_signature, sizeof jpeg_signature))
        st = esp_jpeg_decode(out, bytes, n_bytes, limits, err);
    else
        st = refuse_unknown(bytes, n_bytes, err);
    if (st)
        esp_image_finish(out);
    return st;
}

static uint32_t be(const uint8_t *p, uint32_t n)
{
    uint32_t v = 0;

    while (n-- > 0)
        v = v << 8 | *p++;
    return v;
}

/* Where a JPEG's frame header begins (its precision), of at least 5 bytes; 0: nowhere. Segments before it are passed over. */
static size_t find_frame(const uint8_t *bytes, size_t n_bytes)
{
    size_t at = 2;

    for (;;) {
        uint32_t mark;

        while (at < n_bytes && bytes[at] != 0xff)
            at++;
        while (at < n_bytes && bytes[at] == 0xff)
            at++;
        if (n_bytes - at < 8)
            return 0;
        mark = bytes[at++];
        if (mark == 0 || mark == 1 || (mark >= 0xd0 && mark <= 0xd7)) /* stands alone */
            continue;
        if (mark >= 0xc0 && mark <= 0xcf && mark != 0xc4 && mark != 0xc8 && mark != 0xcc)
            return at + 2;
        if (mark >= 0xd8 && mark <= 0xda) /* another picture, an end, pixels */
            return 0;
        if (be(bytes + at, 2) < 2 || be(bytes + at, 2) > n_bytes - at)
            return 0;
        at += be(bytes + at, 2);
    }
}

esp_status esp_image_size(uint32_t *width, uint32_t *height, const void *bytes, size_t n_bytes,
                          const struct esp_image_limits *limits, struct esp_err *err)
{
    const struct esp_image_limits defaults = ESP_IMAGE_LIMITS_DEFAULT;
    const uint8_t *b = bytes;
    const char *kind;
    esp_status st;
    size_t at;

    *width = *height = 0;
    if (starts_with(b, n_bytes, png_signature, sizeof png_signature)) {
        kind = "PNG";
        if (n_bytes < 33 || memcmp(b + 8, "\0\0\0\rIHDR", 8) != 0)
            return esp_fail(err, ESP_E_FORMAT, "damaged PNG: the file does not begin with a header");
        *width = be(b + 16, 4);
        *height = be(b + 20, 4);
    } else if (starts_with(b, n_bytes, jpeg_signature, sizeof jpeg_signature)) {
        kind = "JPEG";
        at = find_frame(b, n_bytes);
        if (at == 0)
            return esp_fail(err, ESP_E_FORMAT, "damaged JPEG: it has no frame header");
        *height = be(b + at + 1, 2);
        *width = be(b + at + 3, 2);
    } else {
        return refuse_unknown(b, n_bytes, err);
    }
    st = esp_image_check(kind, *width, *height, limits ? limits : &defaults, err);
    if (st)
        *width = *height = 0;
    return st;
}

void esp_image_finish(struct esp_image *image)
{
    if (!image)
        return;
    free(image->rgb);
    memset(image, 0, sizeof *image);
}

esp_status esp_image_check(const char *kind, uint64_t width, uint64_t height,
                           const struct esp_image_limits *limits, struct esp_err *err)
{
    if (width == 0 || height == 0)
        return esp_fail(err, ESP_E_FORMAT, "%s of %" PRIu64 " x %" PRIu64 " pixels: nothing to see", kind,
                        width, height);
    if (width > limits->max_side || height > limits->max_side)
        return esp_fail(err, ESP_E_LIMIT, "%s of %" PRIu64 " x %" PRIu64 " pixels: a side may have %u", kind,
                        width, height, limits->max_side);
    /* Sides below 2^32 each, so the product fits. */
    if (width * height > limits->max_pixels)
        return esp_fail(err, ESP_E_LIMIT,
                        "%s of %" PRIu64 " x %" PRIu64 " pixels: at most %" PRIu64 " in all", kind, width,
                        height, limits->max_pixels);
    return ESP_OK;
}

esp_status esp_image_alloc(struct esp_image *out, const char *kind, uint64_t width, uint64_t height,
                           const struct esp_image_limits *limits, struct esp_err *err)
{
    const esp_status st = esp_image_check(kind, width, height, limits, err);
    size_t n;

    if (st)
        return st;
    if (!esp_mul(&n, (size_t)width, (size_t)height) || !esp_mul(&n, n, 3))
        return esp_fail(err, ESP_E_LIMIT, "%s: the pixels do not fit this machine's addresses", kind);
    out->rgb = calloc(n, 1);
    if (!out->rgb)
        return esp_fail(err, ESP_E_NOMEM, "%s: %zu bytes of pixels", kind, n);
    out->width = (uint32_t)width;
    out->height = (uint32_t)height;
    return ESP_OK;
}
