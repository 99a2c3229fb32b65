/*
 * Every outline is a signed distance, so that an edge is as smooth as its pixel allows: coverage is half a pixel less
 * the distance. A pixel belongs to what covers at least half of it, the last drawn winning.
 */
#include "tools/scenes/draw.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tools/scenes/glyphs.h"

enum { MAX_POINTS = 40 };

struct outline {
    uint32_t n;
    float x[MAX_POINTS], y[MAX_POINTS];
};

struct canvas {
    uint32_t width, height;
    float *rgb; /* f32[height, width, 3], levels */
    struct esp_drawing *out;
    uint32_t n_full[ESP_SCENE_MAX_OBJECTS]; /* pixels of each object, before others hide some */
};

/* ---- shapes, of radius 1 around (0, 0) ---- */

static void add(struct outline *o, float x, float y)
{
    o->x[o->n] = x;
    o->y[o->n++] = y;
}

/* The corners of a shape that has them; none for those that are round. */
static void outline_of(struct outline *o, enum esp_scene_shape shape)
{
    o->n = 0;
    switch (shape) {
    case ESP_SHAPE_SQUARE:
        add(o, -0.76f, -0.76f), add(o, 0.76f, -0.76f), add(o, 0.76f, 0.76f), add(o, -0.76f, 0.76f);
        break;
    case ESP_SHAPE_TRIANGLE:
        add(o, 0, -0.98f), add(o, 0.92f, 0.7f), add(o, -0.92f, 0.7f);
        break;
    case ESP_SHAPE_STAR:
        for (int i = 0; i < 10; i++) {
            float r = i % 2 ? 0.42f : 1.0f, a = 0.6283185f * (float)i;
            add(o, r * sinf(a), -r * cosf(a));
        }
        break;
    case ESP_SHAPE_CROSS: {
        const float in = 0.3f, far = 0.92f;
        add(o, -in, -far), add(o, in, -far), add(o, in, -in), add(o, far, -in);
        add(o, far, in), add(o, in, in), add(o, in, far), add(o, -in, far);
        add(o, -in, in), add(o, -far, in), add(o, -far, -in), add(o, -in, -in);
        break;
    }
    case ESP_SHAPE_DIAMOND:
        add(o, 0, -1), add(o, 0.66f, 0), add(o, 0, 1), add(o, -0.66f, 0);
        break;
    case ESP_SHAPE_HEART:
        for (int i = 0; i < 36; i++) {
            float a = 6.2831853f * (float)i / 36, s = sinf(a);
            add(o, 0.94f * s * s * s,
                -(13 * cosf(a) - 5 * cosf(2 * a) - 2 * cosf(3 * a) - cosf(4 * a)) / 17.0f - 0.08f);
        }
        break;
    case ESP_SHAPE_CIRCLE:
    case ESP_SHAPE_RING:
        break;
    }
}

/* Distance to a segment, squared. */
static float to_segment(float px, float py, float ax, float ay, float bx, float by)
{
    float dx = bx - ax, dy = by - ay, len = dx * dx + dy * dy;
    float t = len > 0 ? ((px - ax) * dx + (py - ay) * dy) / len : 0;

    t = fminf(1, fmaxf(0, t));
    dx = px - ax - t * dx;
    dy = py - ay - t * dy;
    return dx * dx + dy * dy;
}

/* Distance to an outline: negative inside, by the even-odd rule. */
static float to_outline(const struct outline *o, float px, float py)
{
    float best = 1e30f;
    bool inside = false;

    for (uint32_t i = 0, j = o->n - 1; i < o->n; j = i++) {
        best = fminf(best, to_segment(px, py, o->x[j], o->y[j], o->x[i], o->y[i]));
        if ((o->y[i] > py) != (o->y[j] > py) &&
            px < (o->x[j] - o->x[i]) * (py - o->y[i]) / (o->y[j] - o->y[i]) + o->x[i])
            inside = !inside;
    }
    return inside ? -sqrtf(best) : sqrtf(best);
}

static float to_shape(const struct outline *o, enum esp_scene_shape shape, float px, float py)
{
    switch (shape) {
    case ESP_SHAPE_CIRCLE:
        return hypotf(px, py) - 0.95f;
    case ESP_SHAPE_RING:
        return fabsf(hypotf(px, py) - 0.74f) - 0.22f;
    default:
        return to_outline(o, px, py);
    }
}

/* ---- paint ---- */

static void blend(struct canvas *canvas, uint32_t x, uint32_t y, const struct esp_scene_rgb *ink, float cover)
{
    float *at = canvas->rgb + 3 * ((size_t)y * canvas->width + x);

    for (int i = 0; i < 3; i++)
        at[i] += (ink->c[i] - at[i]) * cover;
}

static float coverage(float distance)
{
    return fminf(1, fmaxf(0, 0.5f - distance));
}

/* 1 in the middle of a stripe of half width `half` of every `period`, pixels, soft at its edges. */
static float stripe(float along, float period, float half)
{
    float off = fabsf(along - period * roundf(along / period));
    return coverage(off - half);
}

static void draw_ground(struct canvas *canvas, const struct esp_scene *scene)
{
    float c = cosf(scene->ground_angle), s = sinf(scene->ground_angle), period = scene->ground_period;
    float span = fabsf(c) * (float)scene->width + fabsf(s) * (float)scene->height;

    for (uint32_t y = 0; y < scene->height; y++)
        for (uint32_t x = 0; x < scene->width; x++) {
            float u = c * ((float)x + 0.5f) + s * ((float)y + 0.5f);
            float v = c * ((float)y + 0.5f) - s * ((float)x + 0.5f), share = 0;

            if (scene->ground == ESP_GROUND_GRADIENT)
                share = 1.6f * fabsf(u) / span;
            else if (scene->ground == ESP_GROUND_STRIPED)
                share = stripe(u, period, period / 4);
            else if (scene->ground == ESP_GROUND_CHECKED)
                share = fabsf(stripe(u, period, period / 4) - stripe(v, period, period / 4));
            blend(canvas, x, y, &scene->ground_ink[0], 1);
            blend(canvas, x, y, &scene->ground_ink[1], share);
        }
}

/* How much of the second ink a point of an object shows; (px, py) in pixels from its centre. */
static float pattern_share(const struct esp_scene_object *o, float px, float py)
{
    float c = cosf(o->pattern_angle), s = sinf(o->pattern_angle), r = o->radius;
    float u = c * px + s * py, v = c * py - s * px;

    if (o->pattern == ESP_PATTERN_STRIPED)
        return stripe(u, 0.62f * r, 0.14f * r);
    if (o->pattern == ESP_PATTERN_DOTTED) {
        float step = 0.5f * r, du = u - step * roundf(u / step), dv = v - step * roundf(v / step);
        return coverage(hypotf(du, dv) - 0.155f * r);
    }
    return 0;
}

static void draw_object(struct canvas *canvas, const struct esp_scene_object *o, uint32_t index)
{
    struct outline outline;
    float c = cosf(o->angle), s = sinf(o->angle), edge = fmaxf(1, 0.07f * o->radius);
    uint32_t x0 = (uint32_t)fmaxf(0, floorf(o->cx - o->radius * 1.1f));
    uint32_t y0 = (uint32_t)fmaxf(0, floorf(o->cy - o->radius * 1.1f));
    uint32_t x1 = (uint32_t)fminf((float)canvas->width, ceilf(o->cx + o->radius * 1.1f));
    uint32_t y1 = (uint32_t)fminf((float)canvas->height, ceilf(o->cy + o->radius * 1.1f));
    struct esp_scene_rgb dark;

    for (int i = 0; i < 3; i++)
        dark.c[i] = 0.45f * o->ink[0].c[i];
    outline_of(&outline, (enum esp_scene_shape)o->shape);
    for (uint32_t y = y0; y < y1; y++)
        for (uint32_t x = x0; x < x1; x++) {
            float px = (float)x + 0.5f - o->cx, py = (float)y + 0.5f - o->cy;
            float u = (c * px + s * py) / o->radius, v = (c * py - s * px) / o->radius;
            float distance = o->radius * to_shape(&outline, (enum esp_scene_shape)o->shape, u, v);
            float cover = coverage(distance), share = pattern_share(o, px, py);
            struct esp_scene_rgb ink = o->ink[0];

            if (cover <= 0)
                continue;
            for (int i = 0; i < 3; i++) {
                ink.c[i] += share * (o->ink[1].c[i] - ink.c[i]);
                if (o->outlined)
                    ink.c[i] += (1 - coverage(distance + edge)) * (dark.c[i] - ink.c[i]);
            }
            blend(canvas, x, y, &ink, cover);
            if (cover >= 0.5f) {
                canvas->out->owner[(size_t)y * canvas->width + x] = (uint8_t)(index + 1);
                canvas->n_full[index]++;
            }
        }
}

/* One character into the cell whose left edge is at `left`. */
static void draw_glyph(struct canvas *canvas, const struct esp_scene_text *text, float left, char c)
{
    const char *strokes = esp_glyph_strokes(c);
    float unit = text->glyph_height / 6, wide = 0.68f * text->advance / 4;
    float top = text->y + (text->height - text->glyph_height) / 2, middle = top + text->glyph_height / 2;
    float start = left + 0.16f * text->advance;
    uint32_t x1 = (uint32_t)fminf((float)canvas->width, ceilf(left + 1.3f * text->advance));
    uint32_t y1 = (uint32_t)fminf((float)canvas->height, ceilf(text->y + text->height));

    for (uint32_t y = (uint32_t)fmaxf(0, floorf(text->y)); y < y1; y++)
        for (uint32_t x = (uint32_t)fmaxf(0, floorf(left - 0.3f * text->advance)); x < x1; x++) {
            float py = (float)y + 0.5f, px = (float)x + 0.5f - text->slant * (middle - py), best = 1e30f;
            const size_t at = (size_t)y * canvas->width + x;

            for (const char *s = strokes; *s; s += 2) {
                if (*s == ' ') {
                    s--; /* the step skips the space alone */
                    continue;
                }
                if (s[2] && s[2] != ' ')
                    best = fminf(best, to_segment(px, py, start + wide * (float)(s[0] - '0'),
                                                  top + unit * (float)(s[1] - '0'),
                                                  start + wide * (float)(s[2] - '0'),
                                                  top + unit * (float)(s[3] - '0')));
            }
            blend(canvas, x, y, &text->ink, coverage(sqrtf(best) - text->stroke));
            if (px >= left && px < left + text->advance)
                canvas->out->glyph[at] = (uint8_t)c;
        }
}

static void draw_text(struct canvas *canvas, const struct esp_scene_text *text)
{
    float left = text->x + (text->width - text->advance * (float)strlen(text->chars)) / 2;
    uint32_t x1 = (uint32_t)fminf((float)canvas->width, ceilf(text->x + text->width));
    uint32_t y1 = (uint32_t)fminf((float)canvas->height, ceilf(text->y + text->height));

    for (uint32_t y = (uint32_t)fmaxf(0, floorf(text->y)); y < y1; y++)
        for (uint32_t x = (uint32_t)fmaxf(0, floorf(text->x)); x < x1; x++) {
            if (text->plate)
                blend(canvas, x, y, &text->ground, 1);
            canvas->out->owner[(size_t)y * canvas->width + x] = ESP_OWNER_TEXT;
        }
    for (const char *c = text->chars; *c; c++, left += text->advance)
        draw_glyph(canvas, text, left, *c);
    canvas->out->text_box[0] = text->y;
    canvas->out->text_box[1] = text->x;
    canvas->out->text_box[2] = (float)y1;
    canvas->out->text_box[3] = (float)x1;
}

/* ---- what came out ---- */

static void find_boxes(struct canvas *canvas, uint32_t n_objects)
{
    struct esp_drawing *out = canvas->out;
    uint32_t n_seen[ESP_SCENE_MAX_OBJECTS] = {0};

    for (uint32_t y = 0; y < canvas->height; y++)
        for (uint32_t x = 0; x < canvas->width; x++) {
            uint32_t k = out->owner[(size_t)y * canvas->width + x];
            float *box;

            if (k == 0 || k > n_objects)
                continue;
            box = out->box[k - 1];
            if (n_seen[k - 1]++ == 0) {
                box[0] = (float)y, box[1] = (float)x, box[3] = 0;
            }
            box[1] = fminf(box[1], (float)x);
            box[2] = (float)(y + 1);
            box[3] = fmaxf(box[3], (float)(x + 1));
        }
    for (uint32_t i = 0; i < n_objects; i++)
        out->seen[i] = canvas->n_full[i] ? (float)n_seen[i] / (float)canvas->n_full[i] : 0;
}

static void to_levels(const struct canvas *canvas, struct esp_scene *scene)
{
    size_t n = (size_t)canvas->width * canvas->height * 3;

    for (size_t i = 0; i < n; i++) {
        float level = canvas->rgb[i];

        if (scene->noise > 0) /* of triangular shape: enough like a normal one, and cheap */
            level += scene->noise * 2.45f *
                     (float)(esp_rand_uniform(&scene->rand) + esp_rand_uniform(&scene->rand) - 1);
        canvas->out->rgb[i] = (uint8_t)lrintf(fminf(255, fmaxf(0, level)));
    }
}

esp_status esp_draw(struct esp_drawing *out, struct esp_scene *scene, struct esp_err *err)
{
    size_t n = (size_t)scene->width * scene->height;
    struct canvas canvas = {.width = scene->width, .height = scene->height, .out = out};

    memset(out, 0, sizeof *out);
    canvas.rgb = calloc(n, 3 * sizeof *canvas.rgb);
    out->rgb = malloc(3 * n);
    out->owner = calloc(n, 1);
    out->glyph = calloc(n, 1);
    if (!canvas.rgb || !out->rgb || !out->owner || !out->glyph) {
        free(canvas.rgb);
        esp_drawing_finish(out);
        return esp_fail(err, ESP_E_NOMEM, "a picture of %u x %u", scene->width, scene->height);
    }
    out->width = scene->width;
    out->height = scene->height;
    draw_ground(&canvas, scene);
    if (scene->text.chars[0])
        draw_text(&canvas, &scene->text);
    for (uint32_t i = 0; i < scene->n_objects; i++)
        draw_object(&canvas, &scene->objects[i], i);
    find_boxes(&canvas, scene->n_objects);
    to_levels(&canvas, scene);
    free(canvas.rgb);
    return ESP_OK;
}

void esp_drawing_finish(struct esp_drawing *drawing)
{
    free(drawing->rgb);
    free(drawing->owner);
    free(drawing->glyph);
    memset(drawing, 0, sizeof *drawing);
}

esp_status esp_scene_draw(struct esp_scene *scene, struct esp_drawing *drawing, uint64_t seed, uint64_t index,
                          struct esp_err *err)
{
    for (uint32_t attempt = 0;; attempt++) {
        bool good = true;
        esp_status st;

        esp_scene_make(scene, seed, index, attempt);
        st = esp_draw(drawing, scene, err);
        if (st)
            return st;
        for (uint32_t i = 0; i < scene->n_objects; i++)
            good = good && drawing->seen[i] >= 0.6f;
        if (good)
            return ESP_OK;
        esp_drawing_finish(drawing);
    }
}
