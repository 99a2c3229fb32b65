#include "objects/annotate.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "objects/font.h"

#define GOLDEN      0.6180339887498949 /* of the circle of hues */
#define SATURATION  0.85
#define MASK_ALPHA  115 /* of 256 */
#define SEAM_ALPHA  150 /* of 256: how dark the seams of lines are */
#define LINE_PART   250 /* of the shorter side: a line's thickness */
#define LETTER_PART 220 /* of the shorter side: a font pixel */

/* [y0, y1) x [x0, x1) in pixels; may reach beyond the picture. */
struct rect {
    int64_t y0, x0, y1, x1;
};

struct plate {
    struct rect rect;
    size_t n_char; /* that are shown */
    bool cut;
};

struct drawing {
    struct esp_image *image;
    const struct esp_drawn *objects;
    size_t n;
    int64_t line, letter; /* pixels: thickness, and of a font's pixel */
    struct plate *plates; /* one an object; of no area: none */
    uint8_t *mask;        /* u8[height, width]: the one that is being drawn */
};

void esp_annotate_colour(uint8_t rgb[3], size_t i)
{
    const double hue = 6 * (GOLDEN * (double)i - floor(GOLDEN * (double)i));

    /* Each channel is the same trapezoid over the hue, a third of the circle apart. */
    for (int c = 0; c < 3; c++) {
        const double at = fabs(fmod(hue + 6 - 2 * c, 6) - 3), level = at < 1 ? 0 : at > 2 ? 1 : at - 1;

        rgb[c] = (uint8_t)lround(255 * (1 - SATURATION * (1 - level)));
    }
}

static uint8_t *pixel(const struct esp_image *image, int64_t y, int64_t x)
{
    return image->rgb + 3 * ((size_t)y * image->width + (size_t)x);
}

/* @param alpha  of 256 */
static void blend(uint8_t *p, const uint8_t rgb[3], int alpha)
{
    for (int c = 0; c < 3; c++)
        p[c] = (uint8_t)((p[c] * (256 - alpha) + rgb[c] * alpha + 128) / 256);
}

static void fill(const struct esp_image *image, struct rect r, const uint8_t rgb[3], int alpha)
{
    const int64_t y1 = r.y1 < image->height ? r.y1 : image->height,
                  x1 = r.x1 < image->width ? r.x1 : image->width;

    for (int64_t y = r.y0 > 0 ? r.y0 : 0; y < y1; y++)
        for (int64_t x = r.x0 > 0 ? r.x0 : 0; x < x1; x++)
            blend(pixel(image, y, x), rgb, alpha);
}

/* ---- masks ---- */

/* Whether a pixel of the mask has one outside of it within the line's thickness, up, down, left or right. The
 * picture's edge is no outside. */
static bool is_rim(const struct drawing *d, int64_t y, int64_t x)
{
    const uint8_t *mask = d->mask;
    const int64_t h = d->image->height, w = d->image->width;

    for (int64_t far = 1; far <= d->line; far++)
        if ((y >= far && !mask[(y - far) * w + x]) || (y + far < h && !mask[(y + far) * w + x]) ||
            (x >= far && !mask[y * w + x - far]) || (x + far < w && !mask[y * w + x + far]))
            return true;
    return false;
}

static void draw_mask(const struct drawing *d, size_t i)
{
    uint8_t rgb[3];

    esp_annotate_colour(rgb, i);
    esp_rle_decode(d->mask, d->objects[i].mask);
    for (int64_t y = 0; y < d->image->height; y++)
        for (int64_t x = 0; x < d->image->width; x++)
            if (d->mask[y * d->image->width + x])
                blend(pixel(d->image, y, x), rgb, is_rim(d, y, x) ? 256 : MASK_ALPHA);
}

/* ---- boxes ---- */

/* An edge as a whole pixel of [0, n]; what is not finite counts as 0. */
static int64_t to_pixel(double edge, uint32_t n)
{
    return !(edge > 0) ? 0 : edge >= n ? n : (int64_t)llround(edge);
}

/* The object's box, at least a pixel of the picture. */
static struct rect box_of(const struct drawing *d, size_t i)
{
    const double *b = d->objects[i].box;
    struct rect r = {to_pixel(b[0], d->image->height), to_pixel(b[1], d->image->width),
                     to_pixel(b[2], d->image->height), to_pixel(b[3], d->image->width)};

    r.y0 -= r.y0 == d->image->height;
    r.x0 -= r.x0 == d->image->width;
    r.y1 = r.y1 > r.y0 ? r.y1 : r.y0 + 1;
    r.x1 = r.x1 > r.x0 ? r.x1 : r.x0 + 1;
    return r;
}

/* What lies between a rectangle and itself grown by n, or shrunk where n is negative. */
static void draw_frame(const struct esp_image *image, struct rect r, int64_t n, const uint8_t rgb[3],
                       int alpha)
{
    struct rect in = r, out = r, *grown = n > 0 ? &out : &in;

    grown->y0 -= n;
    grown->x0 -= n;
    grown->y1 += n;
    grown->x1 += n;
    if (in.y0 >= in.y1 || in.x0 >= in.x1) { /* too small to have an inside */
        fill(image, out, rgb, alpha);
        return;
    }
    fill(image, (struct rect){out.y0, out.x0, in.y0, out.x1}, rgb, alpha);
    fill(image, (struct rect){in.y1, out.x0, out.y1, out.x1}, rgb, alpha);
    fill(image, (struct rect){in.y0, out.x0, in.y1, in.x0}, rgb, alpha);
    fill(image, (struct rect){in.y0, in.x1, in.y1, out.x1}, rgb, alpha);
}

static void draw_box(const struct drawing *d, size_t i)
{
    static const uint8_t black[3] = {0, 0, 0};
    const int64_t seam = (d->line + 1) / 2;
    const struct rect r = box_of(d, i), in = {r.y0 + d->line, r.x0 + d->line, r.y1 - d->line, r.x1 - d->line};
    uint8_t rgb[3];

    esp_annotate_colour(rgb, i);
    draw_frame(d->image, r, seam, black, SEAM_ALPHA);
    if (in.y1 - in.y0 > 2 * seam && in.x1 - in.x0 > 2 * seam)
        draw_frame(d->image, in, -seam, black, SEAM_ALPHA);
    draw_frame(d->image, r, -d->line, rgb, 256);
}

/* ---- labels ---- */

static size_t n_characters(const char *text)
{
    size_t n = 0;

    while (esp_font_next(&text))
        n++;
    return n;
}

static bool overlap(const struct rect *a, const struct rect *b)
{
    return a->y0 < b->y1 && b->y0 < a->y1 && a->x0 < b->x1 && b->x0 < a->x1;
}

static struct rect moved_into(struct rect r, const struct esp_image *image)
{
    const int64_t h = r.y1 - r.y0, w = r.x1 - r.x0;

    r.y0 = r.y0 > image->height - h ? image->height - h : r.y0;
    r.x0 = r.x0 > image->width - w ? image->width - w : r.x0;
    r.y0 = r.y0 < 0 ? 0 : r.y0;
    r.x0 = r.x0 < 0 ? 0 : r.x0;
    return (struct rect){r.y0, r.x0, r.y0 + h, r.x0 + w};
}

/* Above the box, below it, in its upper or its lower part: the first of these that lies in the picture and hides no
 * label placed before; the first at all where there is none. */
static struct rect place(const struct drawing *d, size_t i, int64_t h, int64_t w)
{
    const struct rect box = box_of(d, i);
    const int64_t at[] = {box.y0 - h, box.y1, box.y0, box.y1 - h};
    struct rect first = {0};

    for (size_t c = 0; c < sizeof at / sizeof at[0]; c++) {
        const struct rect r = {at[c], box.x0, at[c] + h, box.x0 + w}, in = moved_into(r, d->image);
        bool is_free = in.y0 == r.y0;

        for (size_t j = 0; is_free && j < i; j++)
            is_free = !overlap(&in, &d->plates[j].rect);
        if (is_free)
            return in;
        if (c == 0)
            first = in;
    }
    return first;
}

/* Room for the label, a font pixel around it. */
static struct plate plate_of(const struct drawing *d, size_t i)
{
    const int64_t cell = ESP_FONT_WIDTH * d->letter;
    const size_t fit = (size_t)(d->image->width > d->letter ? (d->image->width - d->letter) / cell : 0);
    struct plate p = {.n_char = d->objects[i].label ? n_characters(d->objects[i].label) : 0};

    p.cut = p.n_char > fit;
    if (p.cut)
        p.n_char = fit;
    if (p.n_char > 0)
        p.rect = place(d, i, (ESP_FONT_HEIGHT + 1) * d->letter, (int64_t)p.n_char * cell + d->letter);
    return p;
}

/* Whether black stands out from it more than white: by the relative luminance of sRGB, its curve taken as a power. */
static bool is_light(const uint8_t rgb[3])
{
    const double luminance = 0.2126 * pow(rgb[0] / 255.0, 2.2) + 0.7152 * pow(rgb[1] / 255.0, 2.2) +
                             0.0722 * pow(rgb[2] / 255.0, 2.2);

    return luminance > 0.179; /* (L + 0.05) / 0.05 = 1.05 / (L + 0.05) */
}

static void draw_character(const struct drawing *d, uint8_t character, int64_t y0, int64_t x0,
                           const uint8_t rgb[3])
{
    for (uint32_t y = 0; y < ESP_FONT_HEIGHT; y++)
        for (uint32_t x = 0; x < ESP_FONT_WIDTH; x++)
            if (esp_font_pixel(character, x, y))
                fill(d->image,
                     (struct rect){y0 + y * d->letter, x0 + x * d->letter, y0 + (y + 1) * d->letter,
                                   x0 + (x + 1) * d->letter},
                     rgb, 256);
}

static void draw_label(const struct drawing *d, size_t i)
{
    static const uint8_t black[3] = {0, 0, 0}, white[3] = {255, 255, 255};
    const struct plate *p = &d->plates[i];
    const char *text = d->objects[i].label;
    uint8_t rgb[3];

    if (p->n_char == 0)
        return;
    esp_annotate_colour(rgb, i);
    fill(d->image, p->rect, rgb, 256);
    for (size_t c = 0; c < p->n_char; c++) {
        uint8_t character = esp_font_next(&text);

        if (p->cut && c + 2 >= p->n_char)
            character = '.';
        draw_character(d, character, p->rect.y0 + d->letter,
                       p->rect.x0 + d->letter + (int64_t)c * ESP_FONT_WIDTH * d->letter,
                       is_light(rgb) ? black : white);
    }
}

/* Room for what drawing takes, all of it before anything is drawn. */
static esp_status prepare(struct drawing *d, struct esp_err *err)
{
    const struct esp_image *image = d->image;
    const int64_t side = image->width < image->height ? image->width : image->height;
    bool has_mask = false;

    for (size_t i = 0; i < d->n; i++) {
        const struct esp_rle *mask = d->objects[i].mask;

        if (mask && (mask->height != image->height || mask->width != image->width))
            return esp_fail(err, ESP_E_ARG, "object %zu: a mask of %u x %u pixels on a picture of %u x %u", i,
                            mask->width, mask->height, image->width, image->height);
        has_mask |= mask != NULL;
    }
    d->line = side / LINE_PART > 1 ? side / LINE_PART : 1;
    d->letter = side / LETTER_PART > 1 ? side / LETTER_PART : 1;
    d->plates = calloc(d->n, sizeof *d->plates);
    if (has_mask)
        d->mask = malloc((size_t)image->width * image->height);
    if (!d->plates || (has_mask && !d->mask))
        return esp_fail(err, ESP_E_NOMEM, "%zu objects to draw on %u x %u pixels: out of memory", d->n,
                        image->width, image->height);
    return ESP_OK;
}

esp_status esp_annotate(struct esp_image *image, const struct esp_drawn *objects, size_t n,
                        struct esp_err *err)
{
    struct drawing d = {.image = image, .objects = objects, .n = n};
    esp_status st;

    if (n == 0)
        return ESP_OK;
    st = prepare(&d, err);
    if (st)
        goto done;
    for (size_t i = 0; i < n; i++)
        if (objects[i].mask)
            draw_mask(&d, i);
    for (size_t i = 0; i < n; i++)
        draw_box(&d, i);
    for (size_t i = 0; i < n; i++)
        d.plates[i] = plate_of(&d, i);
    for (size_t i = 0; i < n; i++)
        draw_label(&d, i);
done:
    free(d.plates);
    free(d.mask);
    return st;
}
