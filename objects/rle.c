#include "objects/rle.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define GROUP_BITS 5
#define GROUP_MASK 0x1f
#define GROUP_SIGN 0x10
#define GROUP_MORE 0x20
#define MAX_GROUPS 7 /* 35 bits: a sign and the difference of two counts below 2^32 */

static esp_status check_size(uint32_t height, uint32_t width, struct esp_err *err)
{
    if (height == 0 || width == 0)
        return esp_fail(err, ESP_E_ARG, "mask of %u x %u pixels", width, height);
    if ((uint64_t)height * width > ESP_RLE_MAX_PIXELS)
        return esp_fail(err, ESP_E_LIMIT, "mask of %u x %u pixels: at most %u in all", width, height,
                        ESP_RLE_MAX_PIXELS);
    return ESP_OK;
}

/* How many runs, the first of them outside. Fills counts unless NULL. */
static size_t count_runs(uint32_t *counts, const uint8_t *mask, uint32_t height, uint32_t width)
{
    size_t n = 0;
    uint32_t run = 0;
    bool inside = false;

    for (uint32_t x = 0; x < width; x++) {
        for (uint32_t y = 0; y < height; y++) {
            if ((mask[(size_t)y * width + x] != 0) != inside) {
                if (counts)
                    counts[n] = run;
                n++;
                run = 0;
                inside = !inside;
            }
            run++;
        }
    }
    if (counts)
        counts[n] = run;
    return n + 1;
}

esp_status esp_rle_encode(struct esp_rle *out, const uint8_t *mask, uint32_t height, uint32_t width,
                          struct esp_err *err)
{
    const esp_status st = check_size(height, width, err);
    uint32_t *counts;
    size_t n;

    memset(out, 0, sizeof *out);
    if (st)
        return st;
    n = count_runs(NULL, mask, height, width); /* at most one more than pixels */
    counts = malloc(n * sizeof *counts);
    if (!counts)
        return esp_fail(err, ESP_E_NOMEM, "mask of %u x %u pixels: %zu runs", width, height, n);
    count_runs(counts, mask, height, width);
    *out = (struct esp_rle){height, width, counts, n};
    return ESP_OK;
}

static esp_status check_sum(const uint32_t *counts, size_t n, uint32_t height, uint32_t width,
                            struct esp_err *err)
{
    const uint64_t n_pixel = (uint64_t)height * width;
    uint64_t sum = 0;

    for (size_t i = 0; i < n && sum <= n_pixel; i++)
        sum += counts[i];
    if (sum != n_pixel)
        return esp_fail(err, ESP_E_FORMAT, "counts of %s%" PRIu64 " pixels for a mask of %u x %u",
                        sum > n_pixel ? "at least " : "", sum, width, height);
    return ESP_OK;
}

esp_status esp_rle_from_counts(struct esp_rle *out, const uint32_t *counts, size_t n_counts, uint32_t height,
                               uint32_t width, struct esp_err *err)
{
    esp_status st = check_size(height, width, err);
    uint32_t *copy;

    memset(out, 0, sizeof *out);
    if (st == ESP_OK)
        st = check_sum(counts, n_counts, height, width, err);
    if (st)
        return st;
    copy = calloc(n_counts, sizeof *copy);
    if (!copy)
        return esp_fail(err, ESP_E_NOMEM, "%zu counts of a mask", n_counts);
    memcpy(copy, counts, n_counts * sizeof *copy);
    *out = (struct esp_rle){height, width, copy, n_counts};
    return ESP_OK;
}

/* One number of the string at *p, which moves behind it. */
static esp_status take_number(int64_t *out, const char **p, const char *text, struct esp_err *err)
{
    const char *start = *p;
    int64_t value = 0;

    for (int group = 0;; group++) {
        const int bits = (unsigned char)**p - '0';

        if (bits < 0 || bits > (GROUP_MORE | GROUP_MASK))
            return **p ? esp_fail(err, ESP_E_FORMAT, "counts: byte %02x at %zu is none of '0' to 'o'",
                                  (unsigned char)**p, (size_t)(*p - text))
                       : esp_fail(err, ESP_E_FORMAT, "counts: the number at %zu is cut off",
                                  (size_t)(start - text));
        if (group == MAX_GROUPS)
            return esp_fail(err, ESP_E_FORMAT, "counts: the number at %zu is too large",
                            (size_t)(start - text));
        ++*p;
        value |= (int64_t)(bits & GROUP_MASK) << (GROUP_BITS * group);
        if (!(bits & GROUP_MORE)) {
            if (bits & GROUP_SIGN)
                value -= (int64_t)1 << (GROUP_BITS * (group + 1));
            *out = value;
            return ESP_OK;
        }
    }
}

esp_status esp_rle_from_string(struct esp_rle *out, const char *text, uint32_t height, uint32_t width,
                               struct esp_err *err)
{
    esp_status st = check_size(height, width, err);
    const size_t n_bytes = strlen(text);
    const char *p = text;
    uint32_t *counts, *fitting;
    size_t n = 0;

    memset(out, 0, sizeof *out);
    if (st)
        return st;
    counts = calloc(n_bytes + 1, sizeof *counts); /* a count has a byte at least */
    if (!counts)
        return esp_fail(err, ESP_E_NOMEM, "counts of %zu bytes", n_bytes);
    while (st == ESP_OK && *p) {
        const size_t at = (size_t)(p - text);
        int64_t v = 0;

        st = take_number(&v, &p, text, err);
        if (st)
            break;
        if (n > 2)
            v += counts[n - 2];
        if (v < 0 || v > (int64_t)ESP_RLE_MAX_PIXELS)
            st = esp_fail(err, ESP_E_FORMAT, "counts: the number at %zu makes a run of %" PRId64 " pixels",
                          at, v);
        else
            counts[n++] = (uint32_t)v;
    }
    if (st == ESP_OK)
        st = check_sum(counts, n, height, width, err);
    if (st) {
        free(counts);
        return st;
    }
    fitting = realloc(counts, n * sizeof *counts);
    *out = (struct esp_rle){height, width, fitting ? fitting : counts, n};
    return ESP_OK;
}

static size_t put_number(char *to, int64_t v)
{
    size_t n = 0;
    bool more;

    do {
        int bits = (int)(v & GROUP_MASK);

        v = v >= 0 ? v >> GROUP_BITS
                   : -((-v + GROUP_MASK) >> GROUP_BITS); /* rounds down, signs are not shifted */
        more = bits & GROUP_SIGN ? v != -1 : v != 0;
        to[n++] = (char)('0' + (bits | (more ? GROUP_MORE : 0)));
    } while (more);
    return n;
}

esp_status esp_rle_to_string(char **out, const struct esp_rle *rle, struct esp_err *err)
{
    size_t n_room, n = 0;

    *out = NULL;
    if (esp_mul(&n_room, rle->n_counts, MAX_GROUPS) && esp_add(&n_room, n_room, 1))
        *out = malloc(n_room);
    if (!*out)
        return esp_fail(err, ESP_E_NOMEM, "%zu counts of a mask", rle->n_counts);
    for (size_t i = 0; i < rle->n_counts; i++)
        n += put_number(*out + n, (int64_t)rle->counts[i] - (i > 2 ? (int64_t)rle->counts[i - 2] : 0));
    (*out)[n] = '\0';
    return ESP_OK;
}

void esp_rle_decode(uint8_t *mask, const struct esp_rle *rle)
{
    uint32_t x = 0, y = 0;

    for (size_t i = 0; i < rle->n_counts; i++) {
        for (uint32_t left = rle->counts[i]; left > 0; left--) {
            mask[(size_t)y * rle->width + x] = i % 2;
            if (++y == rle->height) {
                y = 0;
                x++;
            }
        }
    }
}

uint64_t esp_rle_area(const struct esp_rle *rle)
{
    uint64_t area = 0;

    for (size_t i = 1; i < rle->n_counts; i += 2)
        area += rle->counts[i];
    return area;
}

esp_status esp_rle_iou(double *out, const struct esp_rle *a, const struct esp_rle *b, struct esp_err *err)
{
    uint64_t common = 0, all;
    size_t i = 0, j = 0;
    uint32_t left_a, left_b;

    *out = 0;
    if (a->height != b->height || a->width != b->width)
        return esp_fail(err, ESP_E_ARG, "masks of %u x %u and %u x %u pixels cannot be compared", a->width,
                        a->height, b->width, b->height);
    left_a = a->n_counts ? a->counts[0] : 0;
    left_b = b->n_counts ? b->counts[0] : 0;
    while (i < a->n_counts && j < b->n_counts) {
        const uint32_t step = left_a < left_b ? left_a : left_b;

        if (i % 2 && j % 2)
            common += step;
        left_a -= step;
        left_b -= step;
        if (left_a == 0 && ++i < a->n_counts)
            left_a = a->counts[i];
        if (left_b == 0 && ++j < b->n_counts)
            left_b = b->counts[j];
    }
    all = esp_rle_area(a) + esp_rle_area(b) - common;
    *out = all ? (double)common / (double)all : 0;
    return ESP_OK;
}

void esp_rle_finish(struct esp_rle *rle)
{
    if (!rle)
        return;
    free(rle->counts);
    memset(rle, 0, sizeof *rle);
}
