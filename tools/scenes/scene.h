/**
 * Scenes of simple things: what is in a picture, before it is drawn.
 *
 * A scene holds up to five shapes, each with a colour, a pattern and a size class, in front of a background, and
 * perhaps a short printed text. Everything about it follows from two numbers, the seed of the set and the index in
 * it: the same two give the same scene, and sets of different seeds share nothing but the grammar. The model in
 * models/tiny was trained on such scenes and is measured on others.
 */
#ifndef ESP_TOOLS_SCENES_SCENE_H
#define ESP_TOOLS_SCENES_SCENE_H

#include <stdbool.h>
#include <stdint.h>

#include "tests/support/rand.h"

enum {
    ESP_SCENE_MAX_OBJECTS = 5,
    ESP_SCENE_MAX_TEXT = 8, /* characters */
    ESP_SCENE_N_SHAPES = 8,
    ESP_SCENE_N_COLOURS = 12,
    ESP_SCENE_N_PATTERNS = 3,
    ESP_SCENE_N_SIZES = 2,
};

extern const char *const esp_scene_shapes[ESP_SCENE_N_SHAPES];
extern const char *const esp_scene_colours[ESP_SCENE_N_COLOURS];
extern const char *const esp_scene_patterns[ESP_SCENE_N_PATTERNS];
extern const char *const esp_scene_sizes[ESP_SCENE_N_SIZES];

enum esp_scene_shape {
    ESP_SHAPE_CIRCLE,
    ESP_SHAPE_SQUARE,
    ESP_SHAPE_TRIANGLE,
    ESP_SHAPE_STAR,
    ESP_SHAPE_CROSS,
    ESP_SHAPE_RING,
    ESP_SHAPE_DIAMOND,
    ESP_SHAPE_HEART,
};

enum esp_scene_pattern { ESP_PATTERN_PLAIN, ESP_PATTERN_STRIPED, ESP_PATTERN_DOTTED };
enum esp_scene_size { ESP_SIZE_SMALL, ESP_SIZE_LARGE };
enum esp_scene_ground { ESP_GROUND_PLAIN, ESP_GROUND_GRADIENT, ESP_GROUND_STRIPED, ESP_GROUND_CHECKED };

struct esp_scene_rgb {
    float c[3]; /* 0..255 */
};

struct esp_scene_object {
    uint8_t shape, colour, pattern, size;
    float cx, cy, radius;        /* pixels */
    float angle;                 /* radians, clockwise as seen */
    float pattern_angle;         /* radians */
    bool outlined;               /* a thin darker edge */
    struct esp_scene_rgb ink[2]; /* the colour, and that of stripes and dots */
};

struct esp_scene_text {
    char chars[ESP_SCENE_MAX_TEXT + 1]; /* empty: none */
    float x, y, width, height;          /* pixels: the plate, or the same area without one */
    float glyph_height, advance;        /* pixels: of a capital, and from one character to the next */
    float stroke;                       /* half the thickness of a line, pixels */
    float slant;                        /* x moved per y */
    bool plate;
    struct esp_scene_rgb ink, ground;
};

struct esp_scene {
    uint64_t index;
    uint32_t width, height; /* pixels */
    uint32_t n_objects;
    struct esp_scene_object objects[ESP_SCENE_MAX_OBJECTS]; /* back to front */
    struct esp_scene_text text;
    uint8_t ground_colour;
    enum esp_scene_ground ground;
    struct esp_scene_rgb ground_ink[2];
    float ground_angle, ground_period; /* radians, pixels */
    float noise;                       /* standard deviation, levels */
    int jpeg_quality;                  /* 0: kept as it is */
    struct esp_rand rand;              /* for what follows: noise, questions */
};

/**
 * Makes scene `index` of the set `seed`. It is not drawn yet: whether enough of each object can be seen is
 * for esp_draw to find out, and another `attempt` at the same scene, counted from 0, gives another arrangement.
 *
 * @param out  the caller's
 * Cannot fail.
 */
void esp_scene_make(struct esp_scene *out, uint64_t seed, uint64_t index, uint32_t attempt);

#endif
