#include "tools/scenes/record.h"

#include <stdlib.h>
#include <string.h>

#include "coordinator/resize.h"

struct cursor {
    uint8_t *at;
};

static void put(struct cursor *c, const void *bytes, size_t n)
{
    memcpy(c->at, bytes, n);
    c->at += n;
}

static void put_u8(struct cursor *c, uint32_t v)
{
    *c->at++ = (uint8_t)v;
}

static void put_u16(struct cursor *c, uint32_t v)
{
    put_u8(c, v & 255);
    put_u8(c, v >> 8 & 255);
}

static void put_u32(struct cursor *c, uint32_t v)
{
    put_u16(c, v & 65535);
    put_u16(c, v >> 16);
}

static void put_box(struct cursor *c, const float *box, const struct esp_drawing *drawing)
{
    for (int i = 0; i < 4; i++) {
        float share = box[i] / (float)(i % 2 ? drawing->width : drawing->height);
        uint32_t bits;

        memcpy(&bits, &share, sizeof bits);
        put_u32(c, bits);
    }
}

static void put_text(struct cursor *c, const char *text)
{
    size_t n = strlen(text);

    put_u16(c, (uint32_t)n);
    put(c, text, n);
}

void esp_record_mask(uint8_t *out, const struct esp_drawing *drawing, uint32_t i)
{
    const float *box = drawing->box[i];
    const float h = box[2] - box[0], w = box[3] - box[1], side = ESP_RECORD_MASK_SIDE;

    for (uint32_t y = 0; y < ESP_RECORD_MASK_SIDE; y++)
        for (uint32_t x = 0; x < ESP_RECORD_MASK_SIDE; x++) {
            uint32_t py = (uint32_t)(box[0] + h * ((float)y + 0.5f) / side);
            uint32_t px = (uint32_t)(box[1] + w * ((float)x + 0.5f) / side);

            *out++ = drawing->owner[(size_t)py * drawing->width + px] == i + 1 ? 255 : 0;
        }
}

/* A map of what the pixels are, at another size: what lies at each pixel's centre. */
static void put_map(struct cursor *c, const uint8_t *map, const struct esp_drawing *drawing, uint32_t side)
{
    for (uint32_t y = 0; y < side; y++)
        for (uint32_t x = 0; x < side; x++) {
            size_t py = (size_t)(2 * y + 1) * drawing->height / (2 * side);
            size_t px = (size_t)(2 * x + 1) * drawing->width / (2 * side);

            put_u8(c, map[py * drawing->width + px]);
        }
}

esp_status esp_record_make(uint8_t **out, size_t *n_bytes, const struct esp_scene *scene,
                           const struct esp_drawing *drawing, uint8_t *picture, const struct esp_asked *asked,
                           uint32_t n_asked, uint32_t side, struct esp_err *err)
{
    const struct esp_image image = {drawing->width, drawing->height, picture};
    const size_t n_text = strlen(scene->text.chars), n_pixels = (size_t)side * side;
    size_t n = 40 + 5 * n_pixels + n_text +
               scene->n_objects * (20 + (size_t)ESP_RECORD_MASK_SIDE * ESP_RECORD_MASK_SIDE);
    struct cursor c;
    esp_status st;

    for (uint32_t i = 0; i < n_asked; i++)
        n += 5 + strlen(asked[i].prompt) + strlen(asked[i].answer);
    *out = c.at = malloc(n);
    if (!*out)
        return esp_fail(err, ESP_E_NOMEM, "a record of %zu bytes", n);
    *n_bytes = n;
    put(&c, "ESPS", 4);
    put_u32(&c, (uint32_t)n);
    put_u32(&c, (uint32_t)scene->index);
    put_u32(&c, (uint32_t)(scene->index >> 32));
    put_u16(&c, side);
    put_u16(&c, scene->n_objects);
    put_u16(&c, n_asked);
    put_u8(&c, scene->ground_colour);
    put_u8(&c, (uint32_t)n_text);
    st = esp_resize(c.at, side, side, &image, ESP_RESAMPLE_BICUBIC, err);
    if (st) {
        free(*out);
        *out = NULL;
        return st;
    }
    c.at += 3 * n_pixels;
    put_map(&c, drawing->owner, drawing, side);
    put_map(&c, drawing->glyph, drawing, side);
    put(&c, scene->text.chars, n_text);
    put_box(&c, drawing->text_box, drawing);
    for (uint32_t i = 0; i < scene->n_objects; i++) {
        const struct esp_scene_object *o = &scene->objects[i];

        put_u8(&c, o->shape);
        put_u8(&c, o->colour);
        put_u8(&c, o->pattern);
        put_u8(&c, o->size);
        put_box(&c, drawing->box[i], drawing);
        esp_record_mask(c.at, drawing, i);
        c.at += (size_t)ESP_RECORD_MASK_SIDE * ESP_RECORD_MASK_SIDE;
    }
    for (uint32_t i = 0; i < n_asked; i++) {
        put_u8(&c, asked[i].task);
        put_text(&c, asked[i].prompt);
        put_text(&c, asked[i].answer);
    }
    return ESP_OK;
}
