/* Two runs side by side (cli/compare_sum.h): divergences worked out by hand, the right rows, and what does not belong together. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "cli/compare_sum.h"

static void near(double got, double want)
{
    if (!(fabs(got - want) <= 1e-6 * fabs(want) + 1e-11))
        fail_msg("%.17g, expected %.17g", got, want);
}

static void test_kl(void **state)
{
    const float even[2] = {3, 3}, odd[2] = {0, 1.0986122887f}; /* 1/4, 3/4 */
    const float far[3] = {90, -90, 0}, other[3] = {-90, 90, 0}, shifted[2] = {-1e4f, -1e4f},
                none[2] = {NAN, 0};

    near(esp_compare_kl(even, odd, 2), 0.5 * log(0.5 / 0.25) + 0.5 * log(0.5 / 0.75));
    near(esp_compare_kl(odd, even, 2), 0.25 * log(0.25 / 0.5) + 0.75 * log(0.75 / 0.5));
    near(esp_compare_kl(far, other, 3), 180);
    near(esp_compare_kl(even, shifted, 2), 0);
    assert_true(esp_compare_kl(odd, odd, 2) == 0);
    assert_true(isnan(esp_compare_kl(none, even, 2)));
    assert_true(isnan(esp_compare_kl(even, none, 2)));
}

#define ROWS  6
#define VOCAB 4
#define WIDTH 3

/* A reply with two traces: four rows of prompt, of which one is a picture's, then two of the answer. */
struct made {
    float logits[ROWS][VOCAB], layer[ROWS][WIDTH];
    struct esp_msg accepted, done, trace[2], *traces[2];
    struct esp_reply reply;
};

static struct esp_reply *make(struct made *m)
{
    memset(m, 0, sizeof *m);
    for (int r = 0; r < ROWS; r++) {
        for (int i = 0; i < VOCAB; i++)
            m->logits[r][i] = (float)(r * i % 3);
        for (int i = 0; i < WIDTH; i++)
            m->layer[r][i] = 2;
    }
    m->accepted.accepted.image_tokens = 1;
    m->accepted.accepted.n_prompt_ids = 3;
    m->done.done.best.n_logprobs = 3;
    m->trace[0].trace = (struct esp_msg_trace){.name = "prefill.layer.0", .rows = ROWS, .width = WIDTH};
    m->trace[0].n_blobs = 1;
    m->trace[0].blob[0] = (struct esp_blob){.data = m->layer, .n_bytes = sizeof m->layer};
    m->trace[1].trace = (struct esp_msg_trace){.name = "prefill.logits", .rows = ROWS, .width = VOCAB};
    m->trace[1].n_blobs = 1;
    m->trace[1].blob[0] = (struct esp_blob){.data = m->logits, .n_bytes = sizeof m->logits};
    m->traces[0] = &m->trace[0];
    m->traces[1] = &m->trace[1];
    m->reply =
        (struct esp_reply){.accepted = &m->accepted, .done = &m->done, .traces = m->traces, .n_traces = 2};
    return &m->reply;
}

static double number(const json_t *o, const char *key)
{
    return json_number_value(json_object_get(o, key));
}

/* Differences before the prompt's last row are none of the answer's; traces may come in any order. */
static void test_sum(void **state)
{
    static struct made first, second;
    struct esp_compare_sum *sum = esp_compare_sum_create();
    FILE *file = tmpfile();
    struct esp_err err;
    json_t *o;

    assert_true(sum && file);
    make(&first);
    assert_int_equal(esp_compare_keep(&first.reply, file, &err), ESP_OK);
    assert_int_equal(esp_compare_keep(&first.reply, file, &err), ESP_OK);
    rewind(file);
    make(&second);
    second.logits[1][0] += 50; /* in the prompt */
    second.traces[0] = &second.trace[1];
    second.traces[1] = &second.trace[0];
    assert_int_equal(esp_compare_with(sum, &second.reply, file, &err), ESP_OK);
    make(&second);
    memset(second.logits[5], 0, sizeof second.logits[5]); /* the last one: was 0, 2, 1, 0 */
    second.layer[2][1] = 3;
    assert_int_equal(esp_compare_with(sum, &second.reply, file, &err), ESP_OK);
    o = esp_compare_sum_json(sum);
    assert_non_null(o);
    near(number(o, "examples"), 2);
    near(number(o, "tokens"), 6);
    near(number(o, "kl_median"), 0);
    near(number(o, "kl_max"), esp_compare_kl(first.logits[5], second.logits[5], VOCAB));
    near(number(o, "kl_mean"), number(o, "kl_max") / 6);
    near(number(o, "same_token"), 5.0 / 6);
    near(number(json_object_get(o, "layers"), "prefill.layer.0"), sqrt(1.0 / (2 * ROWS * WIDTH * 4)));
    json_decref(o);
    esp_compare_sum_destroy(&sum);
    fclose(file);
}

static void test_refused(void **state)
{
    static struct made first, second;
    struct esp_compare_sum *sum = esp_compare_sum_create();
    FILE *file = tmpfile();
    struct esp_err err;

    assert_true(sum && file);
    make(&first);
    first.reply.n_traces = 1; /* no logits */
    assert_int_equal(esp_compare_keep(&first.reply, file, &err), ESP_E_LIMIT);
    make(&first);
    assert_int_equal(esp_compare_keep(&first.reply, file, &err), ESP_OK);
    rewind(file);
    make(&second);
    second.trace[0].trace.width = WIDTH - 1;
    assert_int_equal(esp_compare_with(sum, &second.reply, file, &err), ESP_E_ARG);
    assert_non_null(strstr(err.text, "prefill.layer.0"));
    rewind(file);
    make(&second);
    second.done.done.best.n_logprobs = 4;
    assert_int_equal(esp_compare_with(sum, &second.reply, file, &err), ESP_E_LIMIT);
    assert_int_equal(esp_compare_with(sum, &second.reply, file, &err), ESP_E_IO); /* nothing is left */
    esp_compare_sum_destroy(&sum);
    fclose(file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_kl), cmocka_unit_test(test_sum),
                                       cmocka_unit_test(test_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
