/* Pairs, claims and average precision, against cases that were worked out by hand. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "cli/eval_boxes.h"

static void near(double got, double wanted)
{
    if (!(fabs(got - wanted) < 1e-12))
        fail_msg("%.17g, expected %.17g", got, wanted);
}

static void test_pairs(void **state)
{
    /* The largest of all goes first, though the first row would do better with its second best. */
    static const double overlap[3][3] = {{0.6, 0.7, 0}, {0.5, 0.9, 0.1}, {0, 0, 0}};
    double best[3];

    assert_int_equal(esp_pair_up(best, overlap[0], 3, 3, NULL), ESP_OK);
    near(best[0], 0.6);
    near(best[1], 0.9);
    near(best[2], 0);
    assert_int_equal(esp_pair_up(best, overlap[0], 1, 3, NULL), ESP_OK);
    near(best[0], 0.7);
    assert_int_equal(esp_pair_up(best, NULL, 2, 0, NULL), ESP_OK);
    near(best[0] + best[1], 0);
    assert_int_equal(esp_pair_up(best, NULL, 0, 2, NULL), ESP_OK);
}

static void test_one_of_two_is_left(void **state)
{
    static const double overlap[2] = {0.5, 0.5}; /* two wanted, one got: the first of equals */
    double best[2];

    assert_int_equal(esp_pair_up(best, overlap, 2, 1, NULL), ESP_OK);
    near(best[0], 0.5);
    near(best[1], 0);
}

static void test_claims(void **state)
{
    static const double overlap[2][4] = {{0.9, 0.8, 0.5, 0}, {0.55, 0.6, 0.49, 0}};
    static const double score[4] = {0.3, 0.8, 0.9, 1};
    bool hit[4];

    /* By score: number 3 overlaps nothing; 2 takes the first with just enough; 1 takes the second; nothing is left for 0. */
    assert_int_equal(esp_claim(hit, overlap[0], score, 2, 4, 0.5, NULL), ESP_OK);
    assert_true(!hit[0] && hit[1] && hit[2] && !hit[3]);
    assert_int_equal(esp_claim(hit, overlap[0], score, 2, 4, 0.51, NULL), ESP_OK);
    assert_true(hit[0] && hit[1] && !hit[2] && !hit[3]);
    assert_int_equal(esp_claim(hit, overlap[0], score, 0, 4, 0.5, NULL), ESP_OK);
    assert_true(!hit[0] && !hit[1] && !hit[2] && !hit[3]);
    assert_int_equal(esp_claim(hit, overlap[0], score, 2, 0, 0.5, NULL), ESP_OK);
}

static void test_average_precision(void **state)
{
    /* cat, 3 wanted: hit, miss, hit, miss in this order: precisions 1, 1/2, 2/3, 1/2; recall 1/3 at precision 1, 2/3 at 2/3:
     * (1 + 2/3) / 3 = 5/9. dog, 1 wanted, first a miss and then a hit: 1/2. fox, 1 wanted, not found: 0. An ant was
     * found that nobody wanted: no label of its own. */
    static const struct esp_found found[] = {
        {"dog", 0.4, true}, {"cat", 0.9, true},  {"cat", 0.8, false}, {"ant", 0.95, false},
        {"cat", 0.7, true}, {"dog", 0.5, false}, {"cat", 0.6, false},
    };
    const char *wanted[] = {"cat", "dog", "cat", "fox", "cat"};
    struct esp_ap ap;

    assert_int_equal(esp_average_precision(&ap, found, 7, wanted, 5, NULL), ESP_OK);
    near(ap.mean, (5.0 / 9 + 0.5 + 0) / 3);
    /* All as one: miss .95, hit .9, miss .8, hit .7, miss .6, miss .5, hit .4. Precisions at the hits 1/2, 1/2, 3/7, and
     * no higher one behind them. 5 are wanted. */
    near(ap.micro, (0.5 + 0.5 + 3.0 / 7) / 5);
}

static void test_envelope(void **state)
{
    /* miss, hit, hit: precision 1/2 at recall 1/2, but 2/3 at recall 1, which counts for both. */
    static const struct esp_found found[] = {{"x", 3, false}, {"x", 2, true}, {"x", 1, true}};
    const char *wanted[] = {"x", "x"};
    struct esp_ap ap;

    assert_int_equal(esp_average_precision(&ap, found, 3, wanted, 2, NULL), ESP_OK);
    near(ap.mean, 2.0 / 3);
    near(ap.micro, 2.0 / 3);
}

/* Of equal scores the one that stands before the other comes first. */
static void test_equal_scores(void **state)
{
    static const struct esp_found good[] = {{"x", 1, true}, {"x", 1, false}},
                                  bad[] = {{"x", 1, false}, {"x", 1, true}};
    const char *wanted[] = {"x"};
    struct esp_ap ap;

    assert_int_equal(esp_average_precision(&ap, good, 2, wanted, 1, NULL), ESP_OK);
    near(ap.mean, 1);
    assert_int_equal(esp_average_precision(&ap, bad, 2, wanted, 1, NULL), ESP_OK);
    near(ap.mean, 0.5);
}

static void test_nothing(void **state)
{
    static const struct esp_found found[] = {{"x", 1, false}};
    const char *wanted[] = {"x"};
    struct esp_ap ap;

    assert_int_equal(esp_average_precision(&ap, found, 1, wanted, 0, NULL), ESP_OK);
    assert_true(isnan(ap.mean) && isnan(ap.micro));
    assert_int_equal(esp_average_precision(&ap, NULL, 0, wanted, 1, NULL), ESP_OK);
    near(ap.mean, 0);
    near(ap.micro, 0);
}

static void test_loc_logprobs(void **state)
{
    /* <loc0000> is 4000 here; 17 and 9 are words. */
    static const uint32_t ids[] = {17, 4000, 5023, 9, 4512, 4100};
    static const double logprobs[] = {-9, -1, -2, -9, -3, -4};
    static const uint16_t codes[] = {0, 1023, 512, 100}, others[] = {0, 1023, 512, 101};
    double got[4];

    assert_true(esp_loc_logprobs(got, codes, 4, ids, logprobs, 6));
    for (int i = 0; i < 4; i++)
        near(got[i], -1 - i);
    assert_false(esp_loc_logprobs(got, others, 4, ids, logprobs, 6));
    assert_false(
        esp_loc_logprobs(got, codes, 3, ids, logprobs, 6)); /* a fourth of them, which the text lacks */
    assert_false(esp_loc_logprobs(got, codes, 4, ids, logprobs, 5));
    assert_true(esp_loc_logprobs(got, codes, 0, ids, logprobs, 0));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pairs),    cmocka_unit_test(test_one_of_two_is_left),
        cmocka_unit_test(test_claims),   cmocka_unit_test(test_average_precision),
        cmocka_unit_test(test_envelope), cmocka_unit_test(test_equal_scores),
        cmocka_unit_test(test_nothing),  cmocka_unit_test(test_loc_logprobs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
