/* Scores of single answers and of sets, against cases that were worked out by hand. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cli/eval_score.h"

static const struct esp_eval_picture picture = {.width = 64, .height = 32};

static void near(double got, double wanted)
{
    if (!(fabs(got - wanted) < 1e-12))
        fail_msg("%.17g, expected %.17g", got, wanted);
}

/* Ids and log-probabilities of an answer: <loc0000> is 1000, every other character of the text is a token of its own. */
struct made {
    struct esp_eval_answer answer;
    uint32_t ids[512];
    double logprobs[512];
};

/* @param p  probabilities of the loc tokens, in order */
static const struct esp_eval_answer *make(struct made *m, char *text, const double *p)
{
    static char finish[] = "eos";
    uint32_t n = 0;

    for (const char *at = text; *at; n++) {
        assert_true(n < 512);
        if (strncmp(at, "<loc", 4) == 0 && at[8] == '>') {
            m->ids[n] = 1000 + (uint32_t)strtoul(at + 4, NULL, 10);
            m->logprobs[n] = log(p ? *p++ : 0.5);
            at += 9;
        } else {
            m->ids[n] = (uint8_t)*at++;
            m->logprobs[n] = -1;
        }
    }
    m->answer = (struct esp_eval_answer){text, finish, m->ids, m->logprobs, n};
    return &m->answer;
}

static struct esp_eval_score score(const struct esp_eval_example *e, const char *text, const double *p,
                                   const struct esp_eval_masks *masks)
{
    struct esp_eval_score s;
    struct esp_err err;
    struct made m;
    char copy[512];

    strcpy(copy, text);
    if (esp_eval_score_make(&s, e, &picture, make(&m, copy, p), masks, &err))
        fail_msg("%s", err.text);
    assert_int_equal(s.state, ESP_EVAL_DONE);
    return s;
}

static void test_texts(void **state)
{
    static char answer[] = "a red star on a gray background", yes[] = "yes", maybe[] = "Maybe",
                word[] = "STOP";
    char *people[10] = {yes, yes, yes, yes, yes, yes, yes, yes, maybe, maybe};
    const struct esp_eval_example caption = {.task = ESP_EVAL_CAPTION, .answer = answer},
                                  question = {.task = ESP_EVAL_ANSWER, .answer = yes},
                                  asked = {.task = ESP_EVAL_ANSWER,
                                           .answer = yes,
                                           .answers = people,
                                           .n_answers = 10},
                                  reading = {.task = ESP_EVAL_OCR, .answer = word},
                                  other = {.task = ESP_EVAL_OTHER, .answer = word};
    struct esp_eval_score s;

    s = score(&caption, "a red star on a gray background", NULL, NULL);
    assert_true(s.exact && s.f1.n_both == 4 && s.f1.n_got == 4 && s.f1.n_wanted == 4);
    s = score(&caption, "a blue star", NULL, NULL);
    assert_true(!s.exact && s.f1.n_both == 1 && s.f1.n_got == 2 && s.f1.n_wanted == 4);
    s = score(&question, " Yes. ", NULL, NULL);
    assert_true(s.exact && !s.has_vqa);
    s = score(&asked, "maybe", NULL, NULL);
    assert_true(!s.exact && s.has_vqa);
    near(s.vqa, 0.6);
    s = score(&reading, "SHOP", NULL, NULL);
    assert_true(!s.exact && s.distance == 1 && s.n_chars == 4);
    s = score(&reading, "stop", NULL, NULL);
    assert_true(!s.exact && s.distance == 4);
    s = score(&other, "STOP\n", NULL, NULL);
    assert_true(s.exact);
}

/* A cat in the left half, a dog in the right upper quarter: bins are 1024ths, the picture 32 pixels high and 64 wide. */
static struct esp_eval_object cat_and_dog[2] = {{.label = NULL, .box = {0, 0, 32, 32}},
                                                {.label = NULL, .box = {0, 32, 16, 64}}};
static char cat_label[] = "cat", dog_label[] = "dog";

static struct esp_eval_example places(enum esp_eval_task task)
{
    static char answer[] = "<loc0000><loc0000><loc1023><loc0512> cat";

    cat_and_dog[0].label = cat_label;
    cat_and_dog[1].label = dog_label;
    return (struct esp_eval_example){.task = task, .answer = answer, .objects = cat_and_dog, .n_objects = 2};
}

static void test_boxes(void **state)
{
    const struct esp_eval_example e = places(ESP_EVAL_DETECT);
    /* The cat is found half as high: IoU 1/2. What is taken for a dog is where the cat is. One is broken. */
    static const double p[] = {0.9, 0.7, 0.5, 0.3, 0.2, 0.2, 0.2, 0.6, 0.8};
    struct esp_eval_score s = score(&e,
                                    "<loc0000><loc0000><loc0512><loc0512> cat ; <loc0001> dog ; "
                                    "<loc0000><loc0000><loc1000><loc0512> dog",
                                    p, NULL);

    assert_int_equal(s.n_got, 2);
    assert_int_equal(s.n_malformed, 1);
    assert_int_equal(s.n_right, 1);
    near(s.box_iou[0], 0.5);
    near(s.box_iou[1], 0);
    near(s.got[0].score, 0.6);
    near(s.got[1].score, (0.2 + 0.2 + 0.6 + 0.8) / 4); /* not those of the broken one */
    assert_true(s.got[0].hit && !s.got[1].hit);
    near(s.got[0].box[2], 16);
    near(s.got[0].box[3], 32);
    esp_eval_score_finish(&s);

    s = score(&e, "", NULL, NULL); /* nothing found */
    assert_true(s.n_got == 0 && s.n_right == 0 && s.n_malformed == 0);
    near(s.box_iou[0] + s.box_iou[1], 0);
    esp_eval_score_finish(&s);

    s = score(&e, "<loc0000><loc0000><loc1023><loc0512> cat", NULL, NULL);
    assert_true(s.exact);
    near(s.box_iou[0], 1023.0 / 1024);
    esp_eval_score_finish(&s);
}

/* Where the ids are not those of the text nobody knows how sure it was. */
static void test_unknown_scores(void **state)
{
    const struct esp_eval_example e = places(ESP_EVAL_DETECT);
    char text[] = "<loc0000><loc0000><loc1023><loc0512> cat";
    struct esp_eval_score s;
    struct made m;

    make(&m, text, NULL);
    m.ids[2] = 7;
    assert_int_equal(esp_eval_score_make(&s, &e, &picture, &m.answer, NULL, NULL), ESP_OK);
    assert_int_equal(s.n_got, 1);
    near(s.got[0].score, 0);
    near(s.box_iou[0], 1023.0 / 1024);
    esp_eval_score_finish(&s);
}

/* The first code says what share of the box is inside, in 128ths of its width from the left. */
static esp_status draw(void *self, uint8_t *out, uint32_t height, uint32_t width,
                       const int32_t seg[ESP_N_SEG], const double box[4], struct esp_err *err)
{
    ++*(int *)self;
    for (uint32_t y = (uint32_t)box[0]; y < (uint32_t)box[2]; y++)
        for (uint32_t x = (uint32_t)box[1]; x < (uint32_t)(box[1] + (box[3] - box[1]) * seg[0] / 128); x++)
            out[y * width + x] = 1;
    return seg[15] == 127 ? esp_fail(err, ESP_E_NUMBERS, "cannot draw this") : ESP_OK;
}

#define SEGS15                                                                                               \
    "<seg000><seg000><seg000><seg000><seg000><seg000><seg000><seg000><seg000><seg000><seg000><seg000><"      \
    "seg000><seg000>"

static void test_masks(void **state)
{
    struct esp_eval_example e = places(ESP_EVAL_SEGMENT);
    int n_drawn = 0;
    const struct esp_eval_masks masks = {&n_drawn, draw};
    uint8_t mask[32 * 64];
    struct esp_eval_score s;
    struct esp_err err;
    struct made m;
    char bad[] = "<loc0000><loc0000><loc0512><loc0512><seg001>" SEGS15 "<seg127> cat";

    for (uint32_t i = 0; i < 2; i++) { /* the whole of each box */
        memset(mask, 0, sizeof mask);
        for (uint32_t y = 0; y < 32; y++)
            for (uint32_t x = 0; x < 64; x++)
                mask[y * 64 + x] = y >= cat_and_dog[i].box[0] && y < cat_and_dog[i].box[2] &&
                                   x >= cat_and_dog[i].box[1] && x < cat_and_dog[i].box[3];
        assert_int_equal(esp_rle_encode(&cat_and_dog[i].mask, mask, 32, 64, NULL), ESP_OK);
    }
    /* The cat's box whole but for a bin, its mask in the left three quarters of it (31 of 32 rows are covered: the box
     * ends in the last one); the dog without a mask. */
    s = score(&e,
              "<loc0000><loc0000><loc1023><loc0512><seg096>" SEGS15 "<seg000> cat ; "
              "<loc0000><loc0512><loc0512><loc1023> dog",
              NULL, &masks);
    assert_int_equal(n_drawn, 1);
    assert_int_equal(s.n_got, 2);
    assert_int_equal(s.n_malformed, 1);
    near(s.box_iou[0], 1023.0 / 1024);
    near(s.box_iou[1], 511.0 / 512);
    near(s.mask_iou[0], 0.75 * 31 / 32);
    near(s.mask_iou[1], 0);
    esp_eval_score_finish(&s);

    assert_int_equal(esp_eval_score_make(&s, &e, &picture, make(&m, bad, NULL), &masks, &err), ESP_E_NUMBERS);
    assert_string_equal(err.text, "cannot draw this");
    for (uint32_t i = 0; i < 2; i++)
        esp_rle_finish(&cat_and_dog[i].mask);
}

/* ---- sets ---- */

static void test_add_up(void **state)
{
    static char stop[] = "STOP", empty[] = "";
    const struct esp_eval_example detect = places(ESP_EVAL_DETECT);
    struct esp_eval_example examples[] = {
        {.task = ESP_EVAL_OCR, .answer = stop},    detect,
        {.task = ESP_EVAL_OCR, .answer = stop},    {.task = ESP_EVAL_OCR, .answer = stop},
        {.task = ESP_EVAL_OCR, .answer = stop},    {.task = ESP_EVAL_DETECT, .answer = empty},
        {.task = ESP_EVAL_OTHER, .answer = empty},
    };
    const struct esp_eval_data data = {.examples = examples, .n_examples = 7};
    static const uint32_t which[] = {0, 1, 2, 3, 4, 5}; /* not the last one */
    static const double low[] = {0.1, 0.1, 0.1, 0.1}, high[] = {0.9, 0.9, 0.9, 0.9};
    struct esp_eval_score scores[7] = {0};
    struct esp_eval_metrics m;
    const struct esp_eval_sum *ocr = &m.task[ESP_EVAL_OCR], *boxes = &m.task[ESP_EVAL_DETECT];
    json_t *json;

    scores[0] = score(&examples[0], "STOP", NULL, NULL);
    scores[1] = score(&examples[1], "<loc0000><loc0000><loc1023><loc0512> cat", high, NULL);
    scores[2] = score(&examples[2], "SHOP", NULL, NULL);
    scores[3].state = ESP_EVAL_FAILED;
    scores[5] =
        score(&examples[5], "<loc0000><loc0000><loc1023><loc0512> cat", low, NULL); /* nothing is there */
    assert_int_equal(esp_eval_add_up(&m, &data, scores, which, 6, NULL), ESP_OK);
    assert_true(m.n == 6 && m.n_done == 4 && m.n_failed == 1 && m.n_malformed == 0);
    assert_true(ocr->n == 4 && ocr->n_done == 2 && ocr->n_failed == 1 && ocr->n_exact == 1);
    assert_true(ocr->distance == 1 && ocr->n_chars == 8);
    assert_true(boxes->n_objects == 2 && boxes->n_got == 2 && boxes->n_right == 1);
    near(boxes->box_iou, 1023.0 / 1024);
    near(boxes->ap.mean, 0.5); /* cat 1: the false one has the lower score; dog 0 */
    near(boxes->ap.micro, 0.5);
    assert_int_equal(m.task[ESP_EVAL_OTHER].n, 0);

    json = esp_eval_metrics_json(&m);
    assert_non_null(json);
    near(json_number_value(json_object_get(json_object_get(json_object_get(json, "tasks"), "ocr"), "cer")),
         0.125);
    near(json_number_value(json_object_get(json_object_get(json_object_get(json, "tasks"), "ocr"), "exact")),
         0.5);
    near(json_number_value(
             json_object_get(json_object_get(json_object_get(json, "tasks"), "detect"), "box_iou")),
         1023.0 / 2048);
    assert_null(json_object_get(json_object_get(json, "tasks"), "other"));
    json_decref(json);
    for (int i = 0; i < 7; i++)
        esp_eval_score_finish(&scores[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_texts), cmocka_unit_test(test_boxes),  cmocka_unit_test(test_unknown_scores),
        cmocka_unit_test(test_masks), cmocka_unit_test(test_add_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
