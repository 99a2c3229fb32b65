/* What eval measures of texts, against cases that were counted by hand. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cli/eval_text.h"

static void test_same(void **state)
{
    assert_true(esp_same_text("a cat", "  a cat\n"));
    assert_true(esp_same_text("", " \t"));
    assert_false(esp_same_text("a cat", "a  cat"));
    assert_false(esp_same_text("a cat", "A cat"));
    assert_false(esp_same_text("a cat", "a cats"));
}

static void test_captions(void **state)
{
    static const struct {
        const char *got, *wanted;
        uint64_t n_both, n_got, n_wanted;
    } cases[] = {
        {"a large red striped circle and a small blue square on a gray background",
         "a large red striped circle and a small blue square on a gray background", 9, 9, 9},
        /* Nouns circle, background; pairs circle-red, background-gray. Of the wanted: circle, circle-red. */
        {"a red circle on a gray background", "a red circle and a blue square", 2, 4, 4},
        {"A Red circle", "the red CIRCLE", 2, 2, 2},
        {"a blue circle, a red square", "a red circle, a blue square", 2, 4, 4}, /* the nouns alone */
        {"two circles", "a circle", 0, 2, 1},
        {"a star, a star, a star", "a star, a star", 2, 3, 2}, /* as often as both have it */
        {"a red red star", "a red star", 2, 3, 2},
        {"a star with a hole", "a star , with a hole", 2, 2, 2},
        {"an android on sand", "an android and sand", 2, 2, 2}, /* "and" and "on" are words, not letters */
        {"", "a star", 0, 0, 1},
        {"a star", "", 0, 1, 0},
        {", and on,, with ", "", 0, 0, 0},
        {"a the", "the", 0, 1, 0}, /* only a leading article is one; nothing is left of the other */
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct esp_f1 f;

        assert_int_equal(esp_caption_f1(&f, cases[i].got, cases[i].wanted, NULL), ESP_OK);
        if (f.n_both != cases[i].n_both || f.n_got != cases[i].n_got || f.n_wanted != cases[i].n_wanted)
            fail_msg("\"%s\" for \"%s\": %d of %d and %d", cases[i].got, cases[i].wanted, (int)f.n_both,
                     (int)f.n_got, (int)f.n_wanted);
    }
}

static void test_f1(void **state)
{
    const struct esp_f1 some = {3, 4, 6}, none = {0, 0, 0}, missed = {0, 0, 2}, surplus = {0, 2, 0};

    assert_true(esp_f1_precision(&some) == 0.75 && esp_f1_recall(&some) == 0.5);
    assert_true(fabs(esp_f1_value(&some) - 0.6) < 1e-15);
    assert_true(esp_f1_precision(&none) == 1 && esp_f1_recall(&none) == 1 && esp_f1_value(&none) == 1);
    assert_true(esp_f1_precision(&missed) == 0 && esp_f1_recall(&missed) == 0 && esp_f1_value(&missed) == 0);
    assert_true(esp_f1_precision(&surplus) == 0 && esp_f1_recall(&surplus) == 0 &&
                esp_f1_value(&surplus) == 0);
}

static void test_normal(void **state)
{
    static const struct {
        const char *text, *normal;
    } cases[] = {
        {"Yes.", "yes"},
        {"  The  Red,   an apple ", "red apple"},
        {"a", ""},
        {"it's 1,000.5!", "its 1000.5"},
        {"left-hand side; top/bottom", "left hand side top bottom"},
        {"1. 2", "1 2"},
        {".5", "5"},
        {"theatre", "theatre"},
        {"\xc3\x9c"
         "ber \xe2\x82\xac",
         "\xc3\x9c"
         "ber \xe2\x82\xac"}, /* letters beyond ASCII as they are */
        {"", ""},
        {"...", ""},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char *normal;

        assert_int_equal(esp_answer_normal(&normal, cases[i].text, NULL), ESP_OK);
        assert_string_equal(normal, cases[i].normal);
        free(normal);
    }
}

/* The mean over all ways to leave one of ten out, done the long way. */
static double long_way(const char *got, char *const *wanted, uint32_t n)
{
    double sum = 0;

    for (uint32_t out = 0; out < n; out++) {
        uint32_t n_same = 0;

        for (uint32_t i = 0; i < n; i++)
            n_same += i != out && strcmp(got, wanted[i]) == 0;
        sum += n_same >= 3 ? 1 : n_same / 3.0;
    }
    return sum / n;
}

static void test_vqa(void **state)
{
    char red[] = "red", blue[] = "blue", *wanted[10];
    static const double by_hand[11] = {0, 0.3, 0.6, 0.9, 1, 1, 1, 1, 1, 1, 1};

    for (uint32_t n_same = 0; n_same <= 10; n_same++) {
        for (uint32_t i = 0; i < 10; i++)
            wanted[i] = i < n_same ? red : blue;
        assert_true(fabs(esp_vqa_accuracy("red", wanted, 10) - by_hand[n_same]) < 1e-12);
        assert_true(fabs(esp_vqa_accuracy("red", wanted, 10) - long_way("red", wanted, 10)) < 1e-12);
        assert_true(fabs(esp_vqa_accuracy("red", wanted, 5) - long_way("red", wanted, 5)) < 1e-12);
    }
}

static void test_distance(void **state)
{
    static const struct {
        const char *a, *b;
        uint64_t distance, n_b;
    } cases[] = {
        {"kitten", "sitting", 3, 7},
        {"", "abc", 3, 3},
        {"abc", "", 3, 0},
        {"STOP 24", "STOP 24", 0, 7},
        {"flaw", "lawn", 2, 4},
        {"\xc3\xa4", "a", 1, 1}, /* one character, not two */
        {"\xc3\xa4", "\xc3\xb6", 1, 1},
        {"\xe2\x82\xac"
         "5",
         "\xe2\x82\xac"
         "6",
         1, 2},
        {"\xf0\x9f\x98\x80", "", 1, 0},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint64_t distance, n;

        assert_int_equal(esp_edit_distance(&distance, &n, cases[i].a, cases[i].b, NULL), ESP_OK);
        assert_int_equal(distance, cases[i].distance);
        assert_int_equal(n, cases[i].n_b);
        assert_int_equal(esp_edit_distance(&distance, NULL, cases[i].b, cases[i].a, NULL), ESP_OK);
        assert_int_equal(distance, cases[i].distance);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same),   cmocka_unit_test(test_captions), cmocka_unit_test(test_f1),
        cmocka_unit_test(test_normal), cmocka_unit_test(test_vqa),      cmocka_unit_test(test_distance),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
