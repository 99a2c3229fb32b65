/* Answers with places in them, good and bad ones, and boxes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "objects/parse.h"

#define L4    "<loc0256><loc0128><loc0768><loc1023>"
#define SEG4  "<seg000><seg001><seg126><seg127>"
#define SEG15 SEG4 SEG4 SEG4 "<seg005><seg006><seg007>"
#define SEG16 SEG15 "<seg008>"

/*
 * What a case becomes, in short: "label" for a box, "label#" for one with a mask, "!" and a part of the reason for what is
 * malformed, and the text outside behind a "|". Objects first, then malformed ones, each ended by ",".
 */
static void show(char *to, size_t n_to, const struct esp_objects *o)
{
    size_t n = 0;

    for (size_t i = 0; i < o->n_objects; i++)
        n += (size_t)snprintf(to + n, n_to - n, "%s%s,", o->object[i].label, o->object[i].has_seg ? "#" : "");
    for (size_t i = 0; i < o->n_malformed; i++)
        n += (size_t)snprintf(to + n, n_to - n, "!%s,", o->malformed[i].why);
    snprintf(to + n, n_to - n, "|%s", o->text);
}

static void test_answers(void **state)
{
    static const struct {
        const char *answer, *want;
    } cases[] = {
        {"", "|"},
        {"a cat ; on a mat", "|a cat ; on a mat"},
        {"  two  ", "|  two  "}, /* the answer itself, spaces and all */
        {"<location> <segment> <loc> <seg>", "|<location> <segment> <loc> <seg>"},
        {L4 " cat", "cat,|"},
        {L4 "cat", "cat,|"},
        {L4, ",|"},
        {L4 " ;", ",|"},
        {L4 "  black  cat \n", "black  cat,|"},
        {L4 " cat ; " L4 " dog", "cat,dog,|"},
        {L4 " cat;" L4 "dog;", "cat,dog,|"},
        {L4 " cat " L4 " dog", "cat,dog,|"}, /* the tokens tell where the next one begins */
        {"<loc0256> <loc0128>\t<loc0768>\n<loc1023>  cat", "cat,|"},
        {L4 " chat \xc3\xa0 l'\xc5\x93il", "chat \xc3\xa0 l'\xc5\x93il,|"},
        {L4 SEG16 " cat", "cat#,|"},
        {L4 " " SEG16 " cat ; " L4 SEG16 " dog", "cat#,dog#,|"},
        {L4 " a<b <loc> c", "a<b <loc> c,|"},
        {"here: " L4 " cat ; and nothing else", "cat,|here: ; and nothing else"},
        {"cat " L4, ",|cat"}, /* a label stands behind; what stands in front may be anything */
        {" ; ; " L4 " cat ; ;", "cat,|"},
        {"x;y;" L4 " cat;z", "cat,|x ; y ; z"},
        {"<loc0000><loc0000><loc1023><loc1023> all", "all,|"},

        {"<loc0001><loc0002><loc0003> cat", "!3 <loc>: a box has 4,|"},
        {L4 "<loc0000> cat", "!5 <loc>: a box has 4,|"},
        {L4 L4 " cat", "!8 <loc>: a box has 4,|"},
        {L4 SEG15 " cat", "!15 <seg>: a mask has 16,|"},
        {L4 SEG16 "<seg000> cat", "!17 <seg>: a mask has 16,|"},
        {SEG16 " cat", "!16 <seg> without a box in front,|"},
        {SEG16 L4 " cat", "!a <seg> in front of a <loc>,|"},
        {"<loc0001><loc0002><seg001><loc0003><loc0004> cat", "!a <seg> in front of a <loc>,|"},
        {"<loc0500><loc0100><loc0400><loc0200> cat", "!the box ends before it begins: y 500 to 400,|"},
        {"<loc0100><loc0500><loc0200><loc0400> cat", "!the box ends before it begins: x 500 to 400,|"},
        {"<loc0100><loc0100><loc0100><loc0200> cat", "!the box has no height: y 100 to 100,|"},
        {"<loc0100><loc0100><loc0200><loc0100> cat", "!the box has no width: x 100 to 100,|"},
        {"<loc0001><loc0002><loc0003><loc1024> cat",
         "!<loc1024> is no token: there are <loc0000> to <loc1023> and <seg000> to <seg127>,|"},
        {L4 SEG15 "<seg128> cat",
         "!<seg128> is no token: there are <loc0000> to <loc1023> and <seg000> to <seg127>,|"},
        {"<loc001><loc0002><loc0003><loc0004> cat",
         "!<loc001> is no token: there are <loc0000> to <loc1023> and <seg000> to <seg127>,|"},
        {"<loc00001>",
         "!<loc00001> is no token: there are <loc0000> to <loc1023> and <seg000> to <seg127>,|"},
        {"<loc12", "!<loc12 is no token: there are <loc0000> to <loc1023> and <seg000> to <seg127>,|"},
        {"<loc18446744073709551617>", "!<loc18446744073709551617... is no token: there are <loc0000> to "
                                      "<loc1023> and <seg000> to <seg127>,|"},
        {"<loc-001>", "|<loc-001>"},
        {L4 " cat ; <loc0001> dog ; " L4 " bird", "cat,bird,!1 <loc>: a box has 4,|"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct esp_objects o;
        char got[1024];

        assert_int_equal(esp_objects_parse(&o, cases[i].answer, NULL), ESP_OK);
        show(got, sizeof got, &o);
        if (strcmp(got, cases[i].want) != 0)
            fail_msg("%s\n  gives %s\n  not   %s", cases[i].answer, got, cases[i].want);
        esp_objects_finish(&o);
    }
}

static void test_values(void **state)
{
    static const uint16_t loc[4] = {256, 128, 768, 1023};
    static const int32_t seg4[4] = {0, 1, 126, 127};
    static const char answer[] = "so: " L4 SEG4 SEG4 SEG4 SEG4 " red cat ;" L4 "; <loc0001><loc0002> dog ";
    struct esp_objects o;

    assert_int_equal(esp_objects_parse(&o, answer, NULL), ESP_OK);
    assert_int_equal(o.n_objects, 2);
    assert_int_equal(o.n_malformed, 1);
    assert_memory_equal(o.object[0].loc, loc, sizeof loc);
    for (int i = 0; i < ESP_N_SEG; i++)
        assert_int_equal(o.object[0].seg[i], seg4[i % 4]);
    assert_int_equal(o.object[0].at, 4);
    assert_int_equal(o.object[0].n_bytes, strlen(L4 SEG4 SEG4 SEG4 SEG4 " red cat"));
    assert_false(o.object[1].has_seg);
    assert_string_equal(o.object[1].label, "");
    assert_int_equal(o.object[1].n_bytes, strlen(L4));
    assert_string_equal(o.malformed[0].text, "<loc0001><loc0002> dog");
    assert_int_equal(o.malformed[0].at, strstr(answer, "<loc0001>") - answer);
    esp_objects_finish(&o);
    assert_null(o.object);
    esp_objects_finish(&o);
}

/* Many, so that the lists grow. */
static void test_many(void **state)
{
    char answer[200 * 64] = "";
    struct esp_objects o;

    for (int i = 0; i < 100; i++)
        sprintf(answer + strlen(answer), "<loc%04d><loc0000><loc1023><loc0001> %d ; <loc%04d> ; ", i, i, i);
    assert_int_equal(esp_objects_parse(&o, answer, NULL), ESP_OK);
    assert_int_equal(o.n_objects, 100);
    assert_int_equal(o.n_malformed, 100);
    for (size_t i = 0; i < 100; i++) {
        assert_int_equal(o.object[i].loc[0], i);
        assert_int_equal(atoi(o.object[i].label), i);
        assert_int_equal(o.malformed[i].at, o.object[i].at + o.object[i].n_bytes + 3);
    }
    esp_objects_finish(&o);
}

static void test_boxes(void **state)
{
    static const struct {
        double a[4], b[4], iou;
    } cases[] = {
        {{0, 0, 2, 2}, {0, 0, 2, 2}, 1},    {{0, 0, 2, 2}, {1, 1, 3, 3}, 1.0 / 7},
        {{0, 0, 2, 2}, {2, 0, 4, 2}, 0}, /* they touch */
        {{0, 0, 4, 4}, {1, 1, 3, 3}, 0.25}, {{0, 0, 2, 2}, {5, 5, 6, 6}, 0},
        {{0, 0, 0, 0}, {0, 0, 0, 0}, 0},    {{2, 2, 0, 0}, {0, 0, 2, 2}, 0}, /* the wrong way round: empty */
    };
    double box[4];

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_true(esp_box_iou(cases[i].a, cases[i].b) == cases[i].iou);
        assert_true(esp_box_iou(cases[i].b, cases[i].a) == cases[i].iou);
    }
    esp_box_pixels(box, (const uint16_t[]){256, 512, 1023, 1}, 100, 4096);
    assert_true(box[0] == 25 && box[1] == 2048 && box[2] == 1023 * 100 / 1024.0 && box[3] == 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_answers),
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_many),
        cmocka_unit_test(test_boxes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
