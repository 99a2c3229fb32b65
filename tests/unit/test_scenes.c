/*
 * The drawer of scenes: the same numbers give the same scene, what it says of a scene is what it drew, and its
 * records hold what their layout promises.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tools/scenes/record.h"

enum { N_SCENES = 150, SIDE = 56 };

static struct esp_scene scene;
static struct esp_drawing drawing;
static struct esp_asked asked[ESP_MAX_ASKED];
static uint32_t n_asked;

static void make(uint64_t seed, uint64_t index)
{
    struct esp_err err;

    assert_int_equal(esp_scene_draw(&scene, &drawing, seed, index, &err), ESP_OK);
    n_asked = esp_ask_about(asked, &scene, &drawing);
}

static uint8_t *record(size_t *n)
{
    struct esp_err err;
    uint8_t *out;

    assert_int_equal(esp_record_make(&out, n, &scene, &drawing, drawing.rgb, asked, n_asked, SIDE, &err),
                     ESP_OK);
    return out;
}

static void test_repeats(void **state)
{
    uint8_t *one, *same, *other;
    size_t n_one, n_same, n_other;

    make(5, 17);
    one = record(&n_one);
    esp_drawing_finish(&drawing);
    make(5, 17);
    same = record(&n_same);
    esp_drawing_finish(&drawing);
    make(6, 17);
    other = record(&n_other);
    esp_drawing_finish(&drawing);
    assert_int_equal(n_one, n_same);
    assert_memory_equal(one, same, n_one);
    assert_true(n_other != n_one || memcmp(one, other, n_one) != 0);
    free(one);
    free(same);
    free(other);
}

/* The boxes hold every pixel of their object, and no row or column less would. */
static void check_boxes(void)
{
    for (uint32_t i = 0; i < scene.n_objects; i++) {
        uint32_t lo_y = UINT32_MAX, lo_x = UINT32_MAX, hi_y = 0, hi_x = 0;

        for (uint32_t y = 0; y < drawing.height; y++)
            for (uint32_t x = 0; x < drawing.width; x++)
                if (drawing.owner[(size_t)y * drawing.width + x] == i + 1) {
                    lo_y = y < lo_y ? y : lo_y;
                    lo_x = x < lo_x ? x : lo_x;
                    hi_y = y > hi_y ? y : hi_y;
                    hi_x = x > hi_x ? x : hi_x;
                }
        assert_true(drawing.seen[i] >= 0.6f && drawing.seen[i] <= 1);
        assert_int_equal((int)drawing.box[i][0], lo_y);
        assert_int_equal((int)drawing.box[i][1], lo_x);
        assert_int_equal((int)drawing.box[i][2], hi_y + 1);
        assert_int_equal((int)drawing.box[i][3], hi_x + 1);
    }
}

static const struct esp_asked *find(const char *prompt)
{
    for (uint32_t i = 0; i < n_asked; i++)
        if (!strncmp(asked[i].prompt, prompt, strlen(prompt)))
            return &asked[i];
    return NULL;
}

static void check_words(void)
{
    const struct esp_asked *caption = find("caption en"),
                           *count = find("answer en how many shapes are there"), *ocr = find("ocr"),
                           *ground = find("answer en what color is the background");
    char digits[4];

    assert_non_null(caption);
    for (uint32_t i = 0; i < scene.n_objects; i++) {
        const struct esp_scene_object *o = &scene.objects[i];
        char phrase[96];

        snprintf(phrase, sizeof phrase, "a %s %s %s%s%s", esp_scene_sizes[o->size],
                 esp_scene_colours[o->colour],
                 o->pattern == ESP_PATTERN_PLAIN ? "" : esp_scene_patterns[o->pattern],
                 o->pattern == ESP_PATTERN_PLAIN ? "" : " ", esp_scene_shapes[o->shape]);
        assert_non_null(strstr(caption->answer, phrase));
    }
    assert_non_null(ground);
    assert_string_equal(ground->answer, esp_scene_colours[scene.ground_colour]);
    snprintf(digits, sizeof digits, "%u", (unsigned)scene.n_objects % 100u);
    if (count)
        assert_string_equal(count->answer, digits);
    assert_true((ocr != NULL) == (scene.text.chars[0] != 0));
    if (ocr)
        assert_string_equal(ocr->answer, scene.text.chars);
}

/* What is listed is in the answer, in that order, and nothing else; the labels fit the objects. */
static void check_lists(void)
{
    for (uint32_t i = 0; i < n_asked; i++) {
        const char *at = asked[i].answer;

        if (asked[i].task != ESP_TASK_DETECT && asked[i].task != ESP_TASK_SEGMENT)
            continue;
        for (uint32_t k = 0; k < asked[i].n_listed; k++) {
            const struct esp_listed *listed = &asked[i].listed[k];
            const float *box = drawing.box[listed->object];
            unsigned bins[4];
            int n = 0;

            if (k > 0) {
                assert_memory_equal(at, " ; ", 3);
                at += 3;
            }
            assert_int_equal(
                sscanf(at, "<loc%4u><loc%4u><loc%4u><loc%4u>%n", &bins[0], &bins[1], &bins[2], &bins[3], &n),
                4);
            at += n;
            for (int c = 0; c < 4; c++) {
                float side = (float)(c % 2 ? drawing.width : drawing.height);

                assert_true((float)bins[c] <= box[c] * 1024 / side);
                assert_true((float)(bins[c] + 1) >= box[c] * 1024 / side);
            }
            if (asked[i].task == ESP_TASK_SEGMENT) {
                assert_int_equal(sscanf(at, "<seg@%*u>%n", &n), 0);
                at += n;
            }
            assert_memory_equal(at + 1, listed->label, strlen(listed->label));
            at += 1 + strlen(listed->label);
            assert_true(strstr(listed->label, esp_scene_shapes[scene.objects[listed->object].shape]) ||
                        strstr(listed->label, "shape"));
        }
        assert_string_equal(at, "");
    }
}

static void test_says_what_it_drew(void **state)
{
    uint32_t n_objects = 0, n_texts = 0, n_questions = 0;

    for (uint64_t i = 0; i < N_SCENES; i++) {
        make(3, i);
        assert_true(scene.n_objects <= ESP_SCENE_MAX_OBJECTS);
        check_boxes();
        check_words();
        check_lists();
        n_objects += scene.n_objects;
        n_texts += scene.text.chars[0] != 0;
        n_questions += n_asked;
        esp_drawing_finish(&drawing);
    }
    assert_in_range(n_objects, 2 * N_SCENES, 4 * N_SCENES);
    assert_in_range(n_texts, N_SCENES / 5, 3 * N_SCENES / 5);
    assert_in_range(n_questions, 8 * N_SCENES, 14 * N_SCENES);
}

static uint32_t u16(const uint8_t *p)
{
    return p[0] | (uint32_t)p[1] << 8;
}

static void test_record(void **state)
{
    for (uint64_t i = 0; i < 12; i++) {
        uint8_t *out, *p;
        size_t n;

        make(9, i);
        out = record(&n);
        assert_memory_equal(out, "ESPS", 4);
        assert_int_equal(u16(out + 4) | u16(out + 6) << 16, n);
        assert_int_equal(u16(out + 16), SIDE);
        assert_int_equal(u16(out + 18), scene.n_objects);
        assert_int_equal(u16(out + 20), n_asked);
        assert_int_equal(out[22], scene.ground_colour);
        assert_int_equal(out[23], strlen(scene.text.chars));
        p = out + 24 + 5 * SIDE * SIDE + out[23] + 16;
        for (uint32_t k = 0; k < scene.n_objects; k++, p += 20 + 64 * 64) {
            size_t n_set = 0;

            assert_int_equal(p[0], scene.objects[k].shape);
            assert_int_equal(p[3], scene.objects[k].size);
            for (int c = 0; c < 64 * 64; c++)
                n_set += p[20 + c] == 255;
            assert_in_range(n_set, 64 * 64 / 8, 64 * 64); /* none of our shapes fills less of its box */
        }
        for (uint32_t k = 0; k < n_asked; k++) {
            assert_int_equal(p[0], asked[k].task);
            assert_int_equal(u16(p + 1), strlen(asked[k].prompt));
            assert_memory_equal(p + 3, asked[k].prompt, u16(p + 1));
            p += 3 + u16(p + 1);
            assert_memory_equal(p + 2, asked[k].answer, u16(p));
            p += 2 + u16(p);
        }
        assert_ptr_equal(p, out + n);
        free(out);
        esp_drawing_finish(&drawing);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_repeats),
        cmocka_unit_test(test_says_what_it_drew),
        cmocka_unit_test(test_record),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
