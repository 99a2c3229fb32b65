/* Requests of every kind to clusters that live on: sampling is the same whatever the number of workers,
 * several clients at a time do not disturb each other, and nothing of a request stays. */
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/golden/run_rig.h"

#define TINY  RIG_DATA "/tiny"
#define SCENE TINY "/images/scene_a.png"

static struct cluster one, three; /* by workers */
static struct golden golden;

static int setup(void **state)
{
    if (rig_setup(state))
        return -1;
    rig_golden_open(&golden, &rig_fixtures[0]);
    rig_up(&one, TINY, 1, NULL);
    rig_up(&three, TINY, 3, NULL);
    return 0;
}

static int teardown(void **state)
{
    rig_down(&one);
    rig_down(&three);
    rig_golden_close(&golden);
    return rig_teardown(state);
}

/* What both clusters answer, which must be one answer to the last bit. */
static json_t *ask_both(const char *const *args)
{
    static const char *const same[] = {"text", "ids", "logprobs", "finish", "hypotheses"};
    json_t *a = rig_ask(&one, "run", NULL, args), *b = rig_ask(&three, "run", NULL, args);

    for (size_t i = 0; i < sizeof same / sizeof same[0]; i++) {
        const json_t *of_one = json_object_get(a, same[i]), *of_three = json_object_get(b, same[i]);
        if (of_one || of_three)
            assert_true(json_equal(of_one, of_three));
    }
    json_decref(b);
    return a;
}

static void test_sampling(void **state)
{
    static const struct {
        const char *name;
        const char *args[6];
    } cases[] = {
        {"temperature", {"--temperature", "1.2"}},
        {"top-k", {"--temperature", "1", "--top-k", "20"}},
        {"top-p", {"--temperature", "1", "--top-p", "0.9"}},
    };
    static const char *const seeds[] = {"1", "2", "18446744073709551615"};

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        json_t *by_seed[3];

        for (size_t s = 0; s < 3; s++) {
            const char *args[20] = {"--image", SCENE,    "--ignore-eos", "--max-tokens",
                                    "12",      "--seed", seeds[s],       "caption en"};
            for (size_t n = 0; n < 6 && cases[i].args[n]; n++)
                args[8 + n] = cases[i].args[n];
            by_seed[s] = ask_both(args);
            assert_int_equal(json_array_size(json_object_get(by_seed[s], "ids")), 12);
        }
        if (json_equal(json_object_get(by_seed[0], "ids"), json_object_get(by_seed[1], "ids")) &&
            json_equal(json_object_get(by_seed[0], "ids"), json_object_get(by_seed[2], "ids")))
            fail_msg("%s: every seed gives the same answer", cases[i].name);
        for (size_t s = 0; s < 3; s++)
            json_decref(by_seed[s]);
    }
}

static void test_best_of(void **state)
{
    json_t *o = ask_both((const char *[]){"--image", SCENE, "--temperature", "1", "--seed", "5", "--best-of",
                                          "4", "--max-tokens", "8", "caption en", NULL});
    const json_t *all = json_object_get(o, "hypotheses");
    double last = INFINITY;

    assert_int_equal(json_array_size(all), 4);
    for (size_t i = 0; i < 4; i++) {
        const json_t *h = json_array_get(all, i);
        const size_t n = json_array_size(json_object_get(h, "logprobs"));
        const json_t *eos = json_object_get(h, "eos_logprob");
        const double score = json_real_value(json_object_get(h, "score"));
        double sum = json_is_real(eos) ? json_real_value(eos) : 0;

        for (size_t t = 0; t < n; t++)
            sum += json_real_value(json_array_get(json_object_get(h, "logprobs"), t));
        assert_true(fabs(sum - json_real_value(json_object_get(h, "sum"))) < 1e-9);
        assert_true(fabs(sum / (double)(n + json_is_real(eos)) - score) < 1e-9);
        assert_true(score <= last);
        last = score;
    }
    assert_true(json_equal(json_object_get(o, "ids"), json_object_get(json_array_get(all, 0), "ids")));
    assert_false(json_equal(json_object_get(json_array_get(all, 0), "ids"),
                            json_object_get(json_array_get(all, 1), "ids")));
    json_decref(o);
}

/* Without its first choice the answer begins with the next; no beam holds it. */
static void test_ban(void **state)
{
    size_t n, second = 0;
    const float *logits = esp_golden_f32(golden.tensors, &n, "generate.0.logits");
    const size_t first = (size_t)*esp_golden_i32(golden.tensors, &n, "generate.0.tokens");
    char ban[64];
    json_t *o;

    for (size_t i = 1; i < 5568; i++) {
        if (i != first && logits[i] > logits[second])
            second = i;
    }
    snprintf(ban, sizeof ban, "%zu", first);
    o = ask_both((const char *[]){"--image", SCENE, "--ban", ban, "--max-tokens", "6", "caption en", NULL});
    assert_int_equal(json_integer_value(json_array_get(json_object_get(o, "ids"), 0)), second);
    json_decref(o);
    o = ask_both((const char *[]){"--image", SCENE, "--ban", ban, "--beams", "4", "--max-tokens", "6",
                                  "caption en", NULL});
    for (size_t i = 0; i < json_array_size(json_object_get(o, "hypotheses")); i++) {
        const json_t *ids = json_object_get(json_array_get(json_object_get(o, "hypotheses"), i), "ids");
        for (size_t t = 0; t < json_array_size(ids); t++)
            assert_int_not_equal(json_integer_value(json_array_get(ids, t)), first);
    }
    json_decref(o);
}

/* The answer's own beginning, given: it goes on as it did. */
static void test_suffix_start(void **state)
{
    const json_t *want = json_object_get(rig_case(&golden, "generate", 0), "tokens");
    json_t *o =
        ask_both((const char *[]){"--image", SCENE, "--suffix", " address\u1ed1ar", "--ignore-eos",
                                  "--max-tokens", "21", "caption en", NULL}); /* its first three tokens */
    const json_t *ids = json_object_get(o, "ids");

    assert_int_equal(json_array_size(ids), 21);
    for (size_t i = 0; i < 21; i++)
        assert_true(json_equal(json_array_get(ids, i), json_array_get(want, i + 3)));
    json_decref(o);
}

/* As many pictures as a video has: no flag is needed. */
static void test_sixteen_pictures(void **state)
{
    const char *args[40] = {"--max-tokens", "4", "--ignore-eos", "answer en what happens"};
    json_t *o;

    for (size_t i = 0; i < 16; i++) {
        args[4 + 2 * i] = "--image";
        args[5 + 2 * i] = i % 2 ? SCENE : TINY "/images/scene_b.png";
    }
    o = ask_both(args);
    assert_int_equal(json_integer_value(json_object_get(o, "image_tokens")), 256);
    assert_int_equal(json_array_size(json_object_get(o, "ids")), 4);
    json_decref(o);
}

/* Three greedy requests, a beam search, samples and a likelihood at a time, twice over; one is cut short.
 * Each gets what it gets alone. */
static void test_at_a_time(void **state)
{
    static const struct {
        const char *command;
        const char *args[14];
    } asks[] = {
        {"run", {"--image", SCENE, "--ignore-eos", "--max-tokens", "24", "caption en"}},
        {"run",
         {"--image", TINY "/images/scene_b.png", "--ignore-eos", "--max-tokens", "24",
          "answer en what is on the wooden table?"}},
        {"run", {"--image", SCENE, "--ignore-eos", "--max-tokens", "24", "detect coffee cup ; spoon"}},
        {"run",
         {"--image", SCENE, "--beams", "3", "--length-penalty", "1", "--max-tokens", "12", "caption en"}},
        {"run",
         {"--image", SCENE, "--temperature", "1", "--seed", "9", "--best-of", "3", "--max-tokens", "12",
          "caption en"}},
        {"score",
         {"--image", SCENE, "--prompt", "caption en", "--suffix", "two cups of coffee on a wooden table"}},
    };
    enum { N = sizeof asks / sizeof asks[0], ROUNDS = 2 };
    struct child asker[N * ROUNDS], cut;
    json_t *alone[N];

    for (size_t i = 0; i < N; i++)
        alone[i] = rig_ask(&three, asks[i].command, NULL, asks[i].args);
    child_start(&cut, ESPALIER, NULL,
                (const char *[]){"run", "--connect", three.endpoint, "--image", SCENE, "--ignore-eos",
                                 "--max-tokens", "1000", "caption en", NULL});
    child_wait_for(&cut, 0, NULL);
    for (size_t i = 0; i < N * ROUNDS; i++)
        rig_ask_start(&asker[i], &three, asks[i % N].command, asks[i % N].args);
    kill(cut.pid, SIGINT);
    child_wait(&cut, NULL);
    child_expect(&cut, "cut short", 130, "espalier run: cancelled", NULL);
    child_finish(&cut);
    for (size_t i = 0; i < N * ROUNDS; i++) {
        static const char *const same[] = {"ids", "logprobs", "hypotheses", "sum"};
        json_t *o = rig_answer(&asker[i], asks[i % N].args[1]);

        for (size_t k = 0; k < sizeof same / sizeof same[0]; k++) {
            const json_t *got = json_object_get(o, same[k]), *want = json_object_get(alone[i % N], same[k]);
            if ((got || want) && !json_equal(got, want)) {
                char *texts[2] = {json_dumps(got, JSON_ENCODE_ANY), json_dumps(want, JSON_ENCODE_ANY)};
                fail_msg("request %zu: %s is %s, alone it is %s", i, same[k], texts[0], texts[1]);
            }
        }
        json_decref(o);
    }
    for (size_t i = 0; i < N; i++)
        json_decref(alone[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sampling),
        cmocka_unit_test(test_best_of),
        cmocka_unit_test(test_ban),
        cmocka_unit_test(test_suffix_start),
        cmocka_unit_test(test_sixteen_pictures),
        cmocka_unit_test(test_at_a_time),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
