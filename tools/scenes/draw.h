/**
 * Draws scenes, and says of each pixel what it shows.
 */
#ifndef ESP_TOOLS_SCENES_DRAW_H
#define ESP_TOOLS_SCENES_DRAW_H

#include "proto/status.h"
#include "tools/scenes/scene.h"

enum { ESP_OWNER_TEXT = 254 };

struct esp_drawing {
    uint32_t width, height; /* pixels */
    uint8_t *rgb;           /* u8[height, width, 3], from malloc */
    uint8_t *owner; /* u8[height, width]: 0 background, 1 + the object's index, ESP_OWNER_TEXT; from malloc */
    uint8_t *glyph; /* u8[height, width]: 0, or the character in whose cell the pixel lies; from malloc */
    /* Of each object: [y0, x0, y1, x1] of what can be seen of it, pixels, and how much of it that is, 0..1. */
    float box[ESP_SCENE_MAX_OBJECTS][4], seen[ESP_SCENE_MAX_OBJECTS];
    float text_box[4];
};

/**
 * Draws a scene, noise included; JPEG comes later, if it does.
 *
 * @param out    the caller's; release with esp_drawing_finish, zeroed on failure
 * @param scene  its random numbers are drawn from
 * Errors: ESP_E_NOMEM.
 */
esp_status esp_draw(struct esp_drawing *out, struct esp_scene *scene, struct esp_err *err);

/** Frees what a drawing holds; a zeroed one is fine. */
void esp_drawing_finish(struct esp_drawing *drawing);

/**
 * Makes scene `index` of the set `seed` and draws it, over and over until at least 6 tenths of every object can be
 * seen.
 *
 * Errors: ESP_E_NOMEM; *drawing is zeroed then.
 */
esp_status esp_scene_draw(struct esp_scene *scene, struct esp_drawing *drawing, uint64_t seed, uint64_t index,
                          struct esp_err *err);

#endif
