#include "tools/scenes/ask.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* A scene as it is spoken of. */
struct view {
    struct esp_scene *scene;
    const struct esp_drawing *drawing;
    struct esp_rand *rand;
    uint32_t order[ESP_SCENE_MAX_OBJECTS]; /* from left to right */
    struct esp_asked *out;
    uint32_t n_out;
};

static const struct esp_scene_object *object(const struct view *view, uint32_t i)
{
    return &view->scene->objects[i];
}

/* The middle of what can be seen of object i, along an axis (0 down, 1 across), as a share of the picture. */
static float middle(const struct view *view, uint32_t i, int axis)
{
    const float *box = view->drawing->box[i];
    return (box[axis] + box[axis + 2]) / 2 / (float)(axis ? view->drawing->width : view->drawing->height);
}

static void sort(struct view *view)
{
    for (uint32_t i = 0; i < view->scene->n_objects; i++) {
        uint32_t at = i;

        for (; at > 0 && middle(view, view->order[at - 1], 1) > middle(view, i, 1); at--)
            view->order[at] = view->order[at - 1];
        view->order[at] = i;
    }
}

/* ---- text ---- */

static void __attribute__((format(printf, 3, 4))) append(char *text, size_t n, const char *fmt, ...)
{
    size_t at = strlen(text);
    va_list args;

    va_start(args, fmt);
    vsnprintf(text + at, n - at, fmt, args);
    va_end(args);
}

static const char *article(const char *word)
{
    return strchr("aeiou", word[0]) ? "an" : "a";
}

static struct esp_asked *next(struct view *view, enum esp_task task)
{
    struct esp_asked *asked;

    if (view->n_out == ESP_MAX_ASKED)
        return NULL;
    asked = &view->out[view->n_out++];
    memset(asked, 0, sizeof *asked);
    asked->task = task;
    return asked;
}

/* Whether the newest prompt asks what another one of the same scene does. */
static bool repeats(const struct view *view)
{
    for (uint32_t i = 0; i + 1 < view->n_out; i++)
        if (!strcmp(view->out[i].prompt, view->out[view->n_out - 1].prompt))
            return true;
    return false;
}

/* A question and its answer, once a scene. */
static void __attribute__((format(printf, 3, 4)))
question(struct view *view, const char *answer, const char *fmt, ...)
{
    struct esp_asked *asked = next(view, ESP_TASK_ANSWER);
    va_list args;

    if (!asked)
        return;
    append(asked->prompt, sizeof asked->prompt, "answer en ");
    va_start(args, fmt);
    vsnprintf(asked->prompt + strlen(asked->prompt), sizeof asked->prompt - strlen(asked->prompt), fmt, args);
    va_end(args);
    append(asked->answer, sizeof asked->answer, "%s", answer);
    if (repeats(view))
        view->n_out--;
}

/* A person ends a question with its mark or does not. */
static void mark_questions(struct view *view)
{
    for (uint32_t i = 0; i < view->n_out; i++)
        if (view->out[i].task == ESP_TASK_ANSWER && esp_rand_below(view->rand, 2))
            append(view->out[i].prompt, sizeof view->out[i].prompt, "?");
}

/* ---- who is meant ---- */

enum { ANY = 255 };

static bool is(const struct view *view, uint32_t i, uint32_t shape, uint32_t colour)
{
    const struct esp_scene_object *o = object(view, i);
    return (shape == ANY || o->shape == shape) && (colour == ANY || o->colour == colour);
}

static uint32_t count(const struct view *view, uint32_t shape, uint32_t colour)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < view->scene->n_objects; i++)
        n += is(view, i, shape, colour);
    return n;
}

/* "red circle", "circle", "red shape" or "shape". */
static void name(char *out, size_t n, uint32_t shape, uint32_t colour)
{
    out[0] = '\0';
    if (colour != ANY)
        append(out, n, "%s ", esp_scene_colours[colour]);
    append(out, n, "%s", shape == ANY ? "shape" : esp_scene_shapes[shape]);
}

/* Calls object i by the fewest words that mean it alone; false if shape and colour are not enough. */
static bool call(char *out, size_t n, const struct view *view, uint32_t i)
{
    const struct esp_scene_object *o = object(view, i);
    bool plainly = count(view, o->shape, ANY) == 1;

    if (!plainly && count(view, o->shape, o->colour) != 1)
        return false;
    name(out, n, o->shape, plainly && esp_rand_below(view->rand, 4) ? ANY : o->colour);
    return true;
}

static uint32_t any_object(const struct view *view)
{
    return esp_rand_below(view->rand, view->scene->n_objects);
}

/* A shape or colour (ANY at times) that some object has, or perhaps none has. */
static void something(const struct view *view, uint32_t *shape, uint32_t *colour)
{
    const struct esp_scene_object *o = object(view, any_object(view));

    *shape = o->shape;
    *colour = o->colour;
    switch (esp_rand_below(view->rand, 8)) {
    case 0: /* the colour of another object, or any at all */
        *colour = object(view, any_object(view))->colour;
        break;
    case 1:
        *colour = esp_rand_below(view->rand, ESP_SCENE_N_COLOURS);
        break;
    case 2:
        *shape = esp_rand_below(view->rand, ESP_SCENE_N_SHAPES);
        break;
    default:
        break;
    }
}

/* ---- questions ---- */

static void ask_count(struct view *view)
{
    uint32_t shape = ANY, colour = ANY, kind = esp_rand_below(view->rand, 3);
    char called[32], digits[4];

    if (kind > 0)
        something(view, &shape, &colour);
    if (kind == 1)
        shape = ANY;
    else if (kind == 2)
        colour = ANY;
    name(called, sizeof called, shape, colour);
    snprintf(digits, sizeof digits, "%u", (unsigned)count(view, shape, colour) % 100u);
    question(view, digits, "how many %s%s are there", called, shape == ESP_SHAPE_CROSS ? "es" : "s");
}

static void ask_there(struct view *view)
{
    uint32_t shape, colour;
    char called[32];

    if (esp_rand_below(view->rand, 8) == 0) {
        question(view, view->scene->text.chars[0] ? "yes" : "no", "is there any text");
        return;
    }
    something(view, &shape, &colour);
    if (esp_rand_below(view->rand, 2)) { /* two answers, equally likely */
        if (esp_rand_below(view->rand, 2))
            colour = esp_rand_below(view->rand, ESP_SCENE_N_COLOURS);
        else
            shape = esp_rand_below(view->rand, ESP_SCENE_N_SHAPES);
    }
    if (esp_rand_below(view->rand, 3) == 0)
        colour = ANY;
    name(called, sizeof called, shape, colour);
    question(view, count(view, shape, colour) ? "yes" : "no", "is there %s %s", article(called), called);
}

static void ask_attribute(struct view *view)
{
    uint32_t i = any_object(view);
    const struct esp_scene_object *o = object(view, i);
    char called[32];

    switch (esp_rand_below(view->rand, 5)) {
    case 0:
    case 1:
        if (count(view, o->shape, ANY) == 1)
            question(view, esp_scene_colours[o->colour], "what color is the %s", esp_scene_shapes[o->shape]);
        break;
    case 2:
        if (count(view, ANY, o->colour) == 1)
            question(view, esp_scene_shapes[o->shape], "what shape is %s", esp_scene_colours[o->colour]);
        break;
    case 3:
        if (call(called, sizeof called, view, i))
            question(view, esp_scene_patterns[o->pattern], "is the %s plain, striped or dotted", called);
        break;
    default:
        if (call(called, sizeof called, view, i))
            question(view, esp_scene_sizes[o->size], "is the %s small or large", called);
    }
}

static void ask_relation(struct view *view)
{
    static const char *const where[2][2] = {{"above", "below"}, {"left of", "right of"}};
    uint32_t a = any_object(view), b = any_object(view), side = esp_rand_below(view->rand, 2);
    int axis = (int)esp_rand_below(view->rand, 2);
    char first[32], second[32];
    float gap;

    if (a == b || !call(first, sizeof first, view, a) || !call(second, sizeof second, view, b))
        return;
    if (esp_rand_below(view->rand, 4) == 0) {
        if (object(view, a)->size != object(view, b)->size)
            question(view, object(view, a)->size == ESP_SIZE_LARGE ? "yes" : "no",
                     "is the %s bigger than the %s", first, second);
        return;
    }
    gap = middle(view, b, axis) - middle(view, a, axis);
    if (fabsf(gap) < 0.09f)
        return; /* a person would hesitate too */
    question(view, (gap > 0) == (side == 0) ? "yes" : "no", "is the %s %s the %s", first, where[axis][side],
             second);
}

static void ask_extreme(struct view *view)
{
    static const char *const where[2][2] = {{"at the top", "at the bottom"}, {"on the left", "on the right"}};
    uint32_t best = 0, side = esp_rand_below(view->rand, 2), n = view->scene->n_objects;
    int axis = (int)esp_rand_below(view->rand, 2);

    for (uint32_t i = 1; i < n; i++)
        if ((middle(view, i, axis) > middle(view, best, axis)) == (side == 1))
            best = i;
    for (uint32_t i = 0; i < n; i++)
        if (i != best && fabsf(middle(view, i, axis) - middle(view, best, axis)) < 0.06f)
            return;
    if (n > 1)
        question(view, esp_scene_shapes[object(view, best)->shape], "what shape is %s", where[axis][side]);
}

static void ask_questions(struct view *view)
{
    uint32_t before = view->n_out;

    question(view, esp_scene_colours[view->scene->ground_colour], "what color is the background");
    if (view->scene->n_objects == 0) {
        question(view, view->scene->text.chars[0] ? "yes" : "no", "is there any text");
        question(view, "0", "how many shapes are there");
        return;
    }
    for (int n_tried = 0; n_tried < 16 && view->n_out < before + 7; n_tried++) {
        switch (esp_rand_below(view->rand, 8)) {
        case 0:
        case 1:
            ask_count(view);
            break;
        case 2:
            ask_there(view);
            break;
        case 3:
        case 4:
            ask_attribute(view);
            break;
        case 5:
        case 6:
            ask_relation(view);
            break;
        default:
            ask_extreme(view);
        }
    }
}

/* ---- the other tasks ---- */

static void caption(struct view *view)
{
    struct esp_asked *asked = next(view, ESP_TASK_CAPTION);
    char *text;
    const size_t n = sizeof asked->answer;
    uint32_t n_objects = view->scene->n_objects;

    if (!asked)
        return;
    text = asked->answer;
    append(asked->prompt, sizeof asked->prompt, "caption en");
    for (uint32_t i = 0; i < n_objects; i++) {
        const struct esp_scene_object *o = object(view, view->order[i]);

        append(text, n, "%sa %s %s ",
               i == 0              ? ""
               : i + 1 < n_objects ? ", "
                                   : " and ",
               esp_scene_sizes[o->size], esp_scene_colours[o->colour]);
        if (o->pattern != ESP_PATTERN_PLAIN)
            append(text, n, "%s ", esp_scene_patterns[o->pattern]);
        append(text, n, "%s", esp_scene_shapes[o->shape]);
    }
    if (view->scene->text.chars[0])
        append(text, n, "%sthe text %s", n_objects ? " with " : "", view->scene->text.chars);
    append(text, n, " on %s %s background", article(esp_scene_colours[view->scene->ground_colour]),
           esp_scene_colours[view->scene->ground_colour]);
}

static uint32_t bin(float at, float side)
{
    float b = floorf(at / side * 1024);
    return (uint32_t)fminf(1023, fmaxf(0, b));
}

/* Adds the objects that are meant by a label to an answer, from left to right. */
static void list(struct view *view, struct esp_asked *asked, uint32_t shape, uint32_t colour)
{
    const size_t n = sizeof asked->answer;
    float h = (float)view->drawing->height, w = (float)view->drawing->width;

    for (uint32_t k = 0; k < view->scene->n_objects; k++) {
        uint32_t i = view->order[k];
        const float *box = view->drawing->box[i];
        struct esp_listed *listed;

        if (!is(view, i, shape, colour) || asked->n_listed == ESP_MAX_LISTED)
            continue;
        listed = &asked->listed[asked->n_listed++];
        listed->object = i;
        name(listed->label, sizeof listed->label, shape, colour);
        append(asked->answer, n, "%s<loc%04u><loc%04u><loc%04u><loc%04u>", asked->n_listed > 1 ? " ; " : "",
               bin(box[0], h), bin(box[1], w), bin(box[2], h), bin(box[3], w));
        if (asked->task == ESP_TASK_SEGMENT)
            append(asked->answer, n, "<seg@%u>", i);
        append(asked->answer, n, " %s", listed->label);
    }
}

static void detect(struct view *view)
{
    struct esp_asked *asked = next(view, ESP_TASK_DETECT);
    uint32_t shape[2], colour[2], n_labels = 1 + (esp_rand_below(view->rand, 3) == 0);
    char label[2][24];

    if (!asked)
        return;
    for (uint32_t i = 0; i < n_labels; i++) {
        something(view, &shape[i], &colour[i]);
        if (esp_rand_below(view->rand, 2))
            colour[i] = ANY;
        if (n_labels == 1 && esp_rand_below(view->rand, 6) == 0)
            shape[i] = colour[i] = ANY;
        name(label[i], sizeof label[i], shape[i], colour[i]);
    }
    if (n_labels == 2 && !strcmp(label[0], label[1]))
        n_labels = 1;
    append(asked->prompt, sizeof asked->prompt, "detect %s", label[0]);
    if (n_labels == 2)
        append(asked->prompt, sizeof asked->prompt, " ; %s", label[1]);
    for (uint32_t i = 0; i < n_labels; i++)
        list(view, asked, shape[i], colour[i]);
    if (repeats(view))
        view->n_out--;
}

static void segment(struct view *view)
{
    struct esp_asked *asked = next(view, ESP_TASK_SEGMENT);
    const struct esp_scene_object *o = object(view, any_object(view));
    bool plainly = count(view, o->shape, ANY) <= 2 && esp_rand_below(view->rand, 2);
    char label[24];

    if (!asked)
        return;
    name(label, sizeof label, o->shape, plainly ? ANY : o->colour);
    append(asked->prompt, sizeof asked->prompt, "segment %s", label);
    list(view, asked, o->shape, plainly ? ANY : o->colour);
    if (repeats(view))
        view->n_out--;
}

uint32_t esp_ask_about(struct esp_asked *out, struct esp_scene *scene, const struct esp_drawing *drawing)
{
    struct view view = {.scene = scene, .drawing = drawing, .rand = &scene->rand, .out = out};
    struct esp_asked *asked;

    sort(&view);
    caption(&view);
    ask_questions(&view);
    if (scene->n_objects > 0) {
        detect(&view);
        detect(&view);
        segment(&view);
        if (scene->n_objects > 1)
            segment(&view);
    }
    if (scene->text.chars[0] && (asked = next(&view, ESP_TASK_OCR))) {
        append(asked->prompt, sizeof asked->prompt, "ocr");
        append(asked->answer, sizeof asked->answer, "%s", scene->text.chars);
    }
    mark_questions(&view);
    return view.n_out;
}
