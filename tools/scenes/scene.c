#include "tools/scenes/scene.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

const char *const esp_scene_shapes[ESP_SCENE_N_SHAPES] = {"circle", "square", "triangle", "star",
                                                          "cross",  "ring",   "diamond",  "heart"};
const char *const esp_scene_colours[ESP_SCENE_N_COLOURS] = {
    "red", "green", "blue", "yellow", "purple", "orange", "white", "black", "gray", "brown", "pink", "cyan"};
const char *const esp_scene_patterns[ESP_SCENE_N_PATTERNS] = {"plain", "striped", "dotted"};
const char *const esp_scene_sizes[ESP_SCENE_N_SIZES] = {"small", "large"};

/* The middle of each colour; scenes stray from it by `stray` levels. */
static const float middles[ESP_SCENE_N_COLOURS][3] = {
    {215, 35, 40},   {40, 155, 60}, {40, 75, 215},   {242, 215, 45}, {140, 55, 180},  {245, 135, 25},
    {245, 245, 245}, {25, 25, 28},  {130, 130, 130}, {120, 72, 35},  {250, 155, 195}, {60, 205, 215},
};
static const float stray = 13;

static const char *const words[] = {
    "STOP",  "EXIT",  "OPEN",  "CAFE",  "BANK",  "TAXI",  "BUS",   "HOTEL", "PARK", "SHOP", "SALE", "FOOD",
    "PIZZA", "MILK",  "BREAD", "FISH",  "CAKE",  "TEA",   "ZOO",   "GYM",   "BAR",  "PUB",  "INN",  "MALL",
    "POLO",  "JAZZ",  "ROCK",  "KING",  "QUEEN", "JOKER", "ACE",   "LUCK",  "WAVE", "WIND", "RAIN", "SNOW",
    "SUN",   "MOON",  "MARS",  "VENUS", "EARTH", "OCEAN", "RIVER", "LAKE",  "HILL", "ROAD", "LANE", "WAY",
    "NORTH", "SOUTH", "EAST",  "WEST",  "UP",    "DOWN",  "LEFT",  "RIGHT", "PUSH", "PULL", "ON",   "OFF",
    "HOT",   "COLD",  "WET",   "DRY",   "SLOW",  "FAST",  "GO",    "WAIT",  "YES",  "NO",   "FREE", "PAID",
    "NEW",   "OLD",   "BIG",   "TINY",  "HELP",  "INFO",  "DESK",  "GATE",  "DOCK", "PORT", "SHIP", "BOAT",
    "TRAIN", "PLANE", "BIKE",  "CAR",   "VAN",   "JEEP",  "BOX",   "FOX",   "CAT",  "DOG",  "BIRD", "HORSE",
    "ZEBRA", "QUIZ",  "XRAY",  "YARN",  "VOTE",  "MIX",   "JAM",   "FIZZ",
};

/* ---- choices ---- */

static float between(struct esp_rand *r, float lo, float hi)
{
    return lo + (float)esp_rand_uniform(r) * (hi - lo);
}

static bool chance(struct esp_rand *r, double p)
{
    return esp_rand_uniform(r) < p;
}

/* An index, each as likely as its weight says. */
static uint32_t weighted(struct esp_rand *r, const uint8_t *weights, uint32_t n)
{
    uint32_t i, sum = 0, at;

    for (i = 0; i < n; i++)
        sum += weights[i];
    at = esp_rand_below(r, sum);
    for (i = 0; at >= weights[i]; i++)
        at -= weights[i];
    return i;
}

static struct esp_scene_rgb tint(struct esp_rand *r, uint32_t colour)
{
    struct esp_scene_rgb ink;

    for (int i = 0; i < 3; i++)
        ink.c[i] = fminf(255, fmaxf(0, middles[colour][i] + between(r, -stray, stray)));
    return ink;
}

static float brightness(const struct esp_scene_rgb *ink)
{
    return 0.3f * ink->c[0] + 0.59f * ink->c[1] + 0.11f * ink->c[2];
}

static struct esp_scene_rgb mix(const struct esp_scene_rgb *a, float level, float share)
{
    struct esp_scene_rgb ink;

    for (int i = 0; i < 3; i++)
        ink.c[i] = a->c[i] * (1 - share) + level * share;
    return ink;
}

/* ---- parts of a scene ---- */

static void make_ground(struct esp_scene *scene)
{
    struct esp_rand *r = &scene->rand;
    float side = (float)(scene->width < scene->height ? scene->width : scene->height);
    static const uint8_t grounds[] = {40, 25, 17, 18};

    scene->ground_colour = (uint8_t)esp_rand_below(r, ESP_SCENE_N_COLOURS);
    scene->ground = (enum esp_scene_ground)weighted(r, grounds, 4);
    scene->ground_ink[0] = tint(r, scene->ground_colour);
    scene->ground_ink[1] = mix(&scene->ground_ink[0], brightness(&scene->ground_ink[0]) > 128 ? 0 : 255,
                               between(r, 0.06f, 0.15f));
    scene->ground_angle = between(r, 0, 3.14159f);
    scene->ground_period = side * between(r, 0.08f, 0.3f);
    scene->noise = chance(r, 0.5) ? between(r, 1, 11) : 0;
    scene->jpeg_quality = chance(r, 0.6) ? 45 + (int)esp_rand_below(r, 51) : 0;
}

static void make_text(struct esp_scene *scene)
{
    struct esp_rand *r = &scene->rand;
    struct esp_scene_text *text = &scene->text;
    float side = (float)(scene->width < scene->height ? scene->width : scene->height), pad;
    uint32_t n, below = 10, colour;

    if (chance(r, 0.55)) {
        snprintf(text->chars, sizeof text->chars, "%s",
                 words[esp_rand_below(r, sizeof words / sizeof *words)]);
    } else {
        for (n = 1 + esp_rand_below(r, 3); n > 1; n--)
            below *= 10;
        snprintf(text->chars, sizeof text->chars, "%u", (unsigned)esp_rand_below(r, below));
    }
    n = (uint32_t)strlen(text->chars);
    text->glyph_height = side * between(r, 0.13f, 0.2f);
    text->advance = text->glyph_height * between(r, 0.8f, 0.95f);
    if (text->advance * (float)n > 0.88f * (float)scene->width) {
        text->glyph_height *= 0.88f * (float)scene->width / (text->advance * (float)n);
        text->advance = 0.88f * (float)scene->width / (float)n;
    }
    text->stroke = text->glyph_height * between(r, 0.055f, 0.09f);
    text->slant = chance(r, 0.3) ? between(r, -0.2f, 0.2f) : 0;
    pad = text->glyph_height * 0.28f;
    text->width = text->advance * (float)n + pad;
    text->height = text->glyph_height + 2 * pad;
    text->x = between(r, 0, fmaxf(0, (float)scene->width - text->width));
    text->y = between(r, 0, (float)scene->height - text->height);
    text->plate = chance(r, 0.5);
    text->ground = scene->ground_ink[0];
    if (text->plate) {
        colour = esp_rand_below(r, ESP_SCENE_N_COLOURS);
        text->ground = tint(r, colour);
    }
    do
        text->ink = tint(r, esp_rand_below(r, ESP_SCENE_N_COLOURS));
    while (fabsf(brightness(&text->ink) - brightness(&text->ground)) < 75);
}

/* How far an object's centre is from the text's area, in radii. */
static bool clear_of_text(const struct esp_scene *scene, const struct esp_scene_object *o)
{
    const struct esp_scene_text *text = &scene->text;
    float dx, dy;

    if (!text->chars[0])
        return true;
    dx = fmaxf(0, fmaxf(text->x - o->cx, o->cx - text->x - text->width));
    dy = fmaxf(0, fmaxf(text->y - o->cy, o->cy - text->y - text->height));
    return hypotf(dx, dy) > o->radius;
}

/* Objects may hide a part of each other, but not much of it. */
static bool clear_of_objects(const struct esp_scene *scene, const struct esp_scene_object *o)
{
    for (uint32_t i = 0; i < scene->n_objects; i++) {
        const struct esp_scene_object *other = &scene->objects[i];

        if (hypotf(other->cx - o->cx, other->cy - o->cy) < 0.78f * (other->radius + o->radius))
            return false;
    }
    return true;
}

static void make_object(struct esp_scene *scene)
{
    struct esp_rand *r = &scene->rand;
    struct esp_scene_object o = {0};
    float w = (float)scene->width, h = (float)scene->height, side = fminf(w, h);
    static const uint8_t patterns[] = {50, 25, 25};
    static const float turns[ESP_SCENE_N_SHAPES] = {3.14f, 0.3f, 0.4f, 0.63f, 0.3f, 3.14f, 0.2f, 0.3f};

    o.shape = (uint8_t)esp_rand_below(r, ESP_SCENE_N_SHAPES);
    do
        o.colour = (uint8_t)esp_rand_below(r, ESP_SCENE_N_COLOURS);
    while (o.colour == scene->ground_colour);
    o.pattern = (uint8_t)weighted(r, patterns, ESP_SCENE_N_PATTERNS);
    o.ink[0] = tint(r, o.colour);
    o.ink[1] = mix(&o.ink[0], brightness(&o.ink[0]) > 110 ? 0 : 255, between(r, 0.45f, 0.65f));
    o.outlined = chance(r, 0.3);
    o.angle = between(r, -turns[o.shape], turns[o.shape]);
    o.pattern_angle = between(r, 0, 3.14159f);
    for (int n_tried = 0; n_tried < 60; n_tried++) {
        /* What does not fit when large may when small. */
        o.size = n_tried < 30 ? (uint8_t)esp_rand_below(r, ESP_SCENE_N_SIZES) : ESP_SIZE_SMALL;
        o.radius = side * (o.size == ESP_SIZE_LARGE ? between(r, 0.175f, 0.24f) : between(r, 0.095f, 0.13f));
        o.cx = between(r, o.radius, w - o.radius);
        o.cy = between(r, o.radius, h - o.radius);
        if (clear_of_text(scene, &o) && clear_of_objects(scene, &o)) {
            scene->objects[scene->n_objects++] = o;
            return;
        }
    }
}

void esp_scene_make(struct esp_scene *out, uint64_t seed, uint64_t index, uint32_t attempt)
{
    struct esp_rand *r = &out->rand;
    static const uint8_t counts[] = {0, 20, 27, 26, 16, 11}, beside_text[] = {15, 35, 30, 20};
    uint32_t n;

    memset(out, 0, sizeof *out);
    out->index = index;
    esp_rand_init(r,
                  seed * 0x9E3779B97F4A7C15u + index * 0xD1B54A32D192ED03u + attempt * 0x8CB92BA72F3D8DD7u);
    out->width = 160 + esp_rand_below(r, 241);
    out->height = (uint32_t)((float)out->width * between(r, 0.78f, 1.28f));
    make_ground(out);
    if (chance(r, 0.4))
        make_text(out);
    n = out->text.chars[0] ? weighted(r, beside_text, sizeof beside_text)
                           : weighted(r, counts, sizeof counts);
    while (n-- > 0)
        make_object(out);
}
