/*
 * The whole way against the reference: the command line, a coordinator and 1, 2, 3 and 5 workers in processes
 * of their own. Every layer's output, logits, greedy and beam sequences and likelihoods of the golden
 * checkpoints, within the tolerances of their README; and the trace of several workers equal to that of one,
 * bit for bit.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/golden/run_rig.h"

enum { TRACE_FIRST, TRACE_SECOND, TRACE_SUFFIX, TRACE_PAIR, N_TRACES };

/* What the tests of one cluster see. */
static struct bench {
    struct golden golden;
    const struct fixture *f;
    unsigned n_workers;
    bool softcap; /* the final soft-cap, off in the reference unless a name says "softcapped" */
    struct cluster cluster;
    struct esp_golden *one[N_TRACES]; /* traces of the cluster with one worker */
    bool ok;
} b;

static const char *image_path(const char *image)
{
    static char path[2][128];
    static unsigned turn;
    char *out = path[turn++ % 2];

    snprintf(out, sizeof path[0], RIG_DATA "/%s/images/%s.png", b.f->name, image);
    return out;
}

/* "beam.0.scores" or "beam.0.scores_softcapped", as the cluster is. */
static const char *variant(const char *key)
{
    static char text[64];

    snprintf(text, sizeof text, "%s%s", key, b.softcap ? "_softcapped" : "");
    return text;
}

static void check_close(const char *what, double got, double want, double tol)
{
    if (!(fabs(got - want) <= tol)) {
        print_error("%s, %u workers: %s: %.9g, the reference has %.9g; tolerance %g\n", b.f->name,
                    b.n_workers, what, got, want, tol);
        b.ok = false;
    }
}

/* ---- traces ---- */

/* One tensor of a trace against the golden of another name. `row`: only the last row of what is traced. */
static void check_tensor(struct esp_golden *trace, const char *name, const char *golden, double tol,
                         bool last_row)
{
    size_t n_got, n_want;
    const float *got = esp_golden_f32(trace, &n_got, "%s", name);
    const float *want = esp_golden_f32(b.golden.tensors, &n_want, "%s", golden);
    const size_t n_col = (size_t)esp_golden_tensor(trace, "%s", name)->shape[1];
    char what[160];

    snprintf(what, sizeof what, "%s, %u workers: %s", b.f->name, b.n_workers, golden);
    if (last_row) {
        assert_true(n_got >= n_want);
        got += n_got - n_want;
        n_got = n_want;
    }
    assert_int_equal(n_got, n_want);
    b.ok = esp_close_f32(what, got, want, n_want, n_col, tol, INFINITY) && b.ok;
}

/* `k`: the picture's place in the request; `golden_k`: its golden case. */
static void check_vision(struct esp_golden *trace, unsigned k, unsigned golden_k)
{
    static const char *const ends[] = {"patch_embeddings", "embeddings", "post_layernorm", "projector"};
    char name[64], golden[64];

    for (unsigned i = 0; i < 4; i++) {
        snprintf(name, sizeof name, "vision.%u.%s", k, ends[i]);
        snprintf(golden, sizeof golden, "vision.%u.%s", golden_k, ends[i]);
        check_tensor(trace, name, golden, RIG_VISION_TOL, false);
    }
    for (unsigned i = 0; i < b.f->n_enc; i++) {
        snprintf(name, sizeof name, "vision.%u.layer.%u", k, i);
        snprintf(golden, sizeof golden, "vision.%u.layer.%u", golden_k, i);
        check_tensor(trace, name, golden, RIG_VISION_TOL, false);
    }
}

/* `prefix`: "prefill.0", "two_images"; `logits` is the golden tensor, of every row or of the last alone. */
static void check_prefill(struct esp_golden *trace, const char *prefix, const char *logits)
{
    char name[64], golden[64];
    size_t n_got, n_want;
    const int32_t *got = esp_golden_i32(trace, &n_got, "prefill.0.ids");
    const int32_t *want = esp_golden_i32(b.golden.tensors, &n_want, "%s.ids", prefix);

    assert_true(n_got <= n_want); /* the given suffix is not of the prompt */
    assert_memory_equal(got, want, n_got * sizeof *got);
    snprintf(golden, sizeof golden, "%s.inputs_embeds", prefix);
    check_tensor(trace, "prefill.0.inputs_embeds", golden, RIG_VISION_TOL, false);
    for (unsigned i = 0; i < b.f->n_dec; i++) {
        snprintf(name, sizeof name, "prefill.0.layer.%u", i);
        snprintf(golden, sizeof golden, "%s.layer.%u", prefix, i);
        check_tensor(trace, name, golden, b.f->decoder_tol, false);
    }
    snprintf(golden, sizeof golden, "%s.norm", prefix);
    check_tensor(trace, "prefill.0.norm", golden, b.f->decoder_tol, false);
    snprintf(golden, sizeof golden, "%s.%s", prefix, logits);
    check_tensor(trace, "prefill.0.logits", golden, b.f->decoder_tol, strcmp(logits, "logits") != 0);
}

/* Keeps the first trace of a kind, that of one worker, and holds the others against its bits. Takes
 * the trace. */
static void check_same(unsigned which, struct esp_golden *trace, unsigned n_images)
{
    if (b.one[which])
        b.ok = rig_same_trace(b.f, b.one[which], trace, n_images) && b.ok;
    else
        b.one[which] = trace;
    if (b.one[which] != trace)
        esp_golden_close(&trace);
}

/* ---- greedy ---- */

/* Natural logarithm of the softmax of logits f32[V] at an id. */
static double log_softmax(const float *logits, size_t vocab, size_t id)
{
    double max = logits[0], sum = 0;

    for (size_t i = 1; i < vocab; i++)
        max = logits[i] > max ? logits[i] : max;
    for (size_t i = 0; i < vocab; i++)
        sum += exp(logits[i] - max);
    return logits[id] - max - log(sum);
}

static void check_greedy(const json_t *o, unsigned k)
{
    size_t n, n_logits;
    const int32_t *want = esp_golden_i32(b.golden.tensors, &n, "generate.%u.tokens", k);
    const float *logits = esp_golden_f32(b.golden.tensors, &n_logits, "generate.%u.logits", k);
    const json_t *ids = json_object_get(o, "ids"), *logprobs = json_object_get(o, "logprobs");

    assert_true(json_equal(ids, json_object_get(rig_case(&b.golden, "generate", k), "tokens")));
    assert_string_equal(rig_text(o, "text"), rig_text(rig_case(&b.golden, "generate", k), "text"));
    assert_string_equal(rig_text(o, "finish"), "length");
    assert_int_equal(json_array_size(logprobs), n);
    for (size_t t = 0; t < n; t++)
        check_close("logprob of a greedy token", json_real_value(json_array_get(logprobs, t)),
                    log_softmax(logits + t * (n_logits / n), n_logits / n, (size_t)want[t]),
                    b.f->logprob_tol);
}

static void test_generate(void **state)
{
    b.ok = true;
    for (unsigned k = 0; rig_case(&b.golden, "generate", k); k++) {
        const json_t *one = rig_case(&b.golden, "generate", k);
        const char *image = rig_text(one, "image");
        struct esp_golden *trace = NULL;
        json_t *o = rig_ask(&b.cluster, "run", k < 2 ? &trace : NULL,
                            (const char *[]){"--image", image_path(image), "--max-tokens", "24",
                                             "--ignore-eos", "--", rig_text(one, "prefix"), NULL});

        check_greedy(o, k);
        json_decref(o);
        if (!trace)
            continue;
        assert_string_equal(image, rig_text(rig_case(&b.golden, "vision", k), "image"));
        check_vision(trace, 0, k);
        if (k == 0)
            check_prefill(trace, "prefill.0", "logits");
        check_same(k == 0 ? TRACE_FIRST : TRACE_SECOND, trace, 1);
    }
    assert_true(b.ok);
}

static void test_two_images(void **state)
{
    const json_t *one = json_object_get(b.golden.cases, "two_images");
    struct esp_golden *trace;
    json_t *o;

    b.ok = true;
    o = rig_ask(&b.cluster, "run", &trace,
                (const char *[]){"--image", image_path("scene_a"), "--image", image_path("scene_b"),
                                 "--max-tokens", "8", "--ignore-eos", "--", rig_text(one, "prefix"), NULL});
    assert_true(json_equal(json_object_get(o, "ids"), json_object_get(one, "tokens")));
    check_vision(trace, 0, 0);
    check_vision(trace, 1, 1);
    check_prefill(trace, "two_images", "logits_last");
    check_same(TRACE_PAIR, trace, 2);
    json_decref(o);
    assert_true(b.ok);
}

/* ---- beams ---- */

/* A hypothesis against its golden one, whose tokens may end with the end token. */
static void check_hypothesis(const json_t *got, const json_t *want, json_int_t eos)
{
    const json_t *ids = json_object_get(got, "ids"), *tokens = json_object_get(want, "tokens");
    size_t n = json_array_size(tokens);
    const bool ended = n > 0 && json_integer_value(json_array_get(tokens, n - 1)) == eos;

    n -= ended;
    assert_string_equal(rig_text(got, "finish"), ended ? "eos" : "length");
    assert_int_equal(json_array_size(ids), n);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(json_integer_value(json_array_get(ids, i)),
                         json_integer_value(json_array_get(tokens, i)));
}

static void test_beams(void **state)
{
    b.ok = true;
    for (unsigned k = 0; rig_case(&b.golden, "beam", k); k++) {
        const json_t *one = rig_case(&b.golden, "beam", k),
                     *hyps = json_object_get(one, variant("hypotheses"));
        const json_int_t eos = json_integer_value(json_object_get(one, "eos_token_id"));
        const json_t *rule = json_object_get(one, variant("big_vision_rule")), *all;
        size_t n;
        const float *scores = esp_golden_f32(b.golden.tensors, &n, "beam.%u.%s", k, variant("scores"));
        char id[16];
        json_t *o;

        snprintf(id, sizeof id, "%d", (int)eos);
        o = rig_ask(&b.cluster, "run", NULL,
                    (const char *[]){"--image", image_path(rig_text(one, "image")), "--beams", "3",
                                     "--length-penalty", "1", "--max-tokens", "12", "--eos", id, "--",
                                     rig_text(one, "prefix"), NULL});
        all = json_object_get(o, "hypotheses");
        assert_int_equal(json_array_size(all), json_array_size(hyps));
        check_hypothesis(o, json_array_get(hyps, 0), eos);
        check_close("score of the best beam", json_real_value(json_object_get(o, "score")), scores[0],
                    RIG_SCORE_TOL);
        for (size_t i = 0; i < json_array_size(hyps); i++) {
            const json_t *got = json_array_get(all, i), *want = json_array_get(hyps, i);
            check_hypothesis(got, want, eos);
            check_close("score of a beam", json_real_value(json_object_get(got, "score")), scores[i],
                        RIG_SCORE_TOL);
            check_close("sum of a beam", json_real_value(json_object_get(got, "sum")),
                        json_real_value(json_object_get(want, "sum_logprob")), 12 * RIG_SCORE_TOL);
        }
        json_decref(o);

        o = rig_ask(&b.cluster, "run", NULL,
                    (const char *[]){"--image", image_path(rig_text(one, "image")), "--beams", "3",
                                     "--max-tokens", "12", "--eos", id, "--", rig_text(one, "prefix"), NULL});
        check_hypothesis(o, rule, eos);
        check_close("score by big_vision's rule", json_real_value(json_object_get(o, "score")),
                    json_real_value(json_object_get(rule, "sum_logprob")), 12 * RIG_SCORE_TOL);
        json_decref(o);
    }
    assert_true(b.ok);
}

/* ---- likelihoods ---- */

static void test_loglik(void **state)
{
    b.ok = true;
    for (unsigned k = 0; rig_case(&b.golden, "loglik", k); k++) {
        const json_t *one = rig_case(&b.golden, "loglik", k), *ids, *logprobs;
        const bool traced = k == 0 && !b.softcap;
        struct esp_golden *trace;
        size_t n, n_ids;
        const float *want = esp_golden_f32(b.golden.tensors, &n, "loglik.%u.%s", k, variant("logprobs"));
        const int32_t *all = esp_golden_i32(b.golden.tensors, &n_ids, "loglik.%u.ids", k);
        json_t *o =
            rig_ask(&b.cluster, "score", traced ? &trace : NULL,
                    (const char *[]){"--image", image_path(rig_text(one, "image")), "--prompt",
                                     rig_text(one, "prefix"), "--suffix", rig_text(one, "suffix"), NULL});
        const double sum = json_real_value(json_object_get(one, variant("sum")));

        ids = json_object_get(o, "ids");
        logprobs = json_object_get(o, "logprobs");
        assert_int_equal(json_array_size(ids), n);
        assert_int_equal(json_array_size(logprobs), n);
        for (size_t i = 0; i < n; i++) {
            assert_int_equal(json_integer_value(json_array_get(ids, i)), all[n_ids - n + i]);
            check_close("logprob of a given token", json_real_value(json_array_get(logprobs, i)), want[i],
                        b.f->logprob_tol);
        }
        check_close("sum", json_real_value(json_object_get(o, "sum")), sum, (double)n * b.f->logprob_tol);
        check_close("mean", json_real_value(json_object_get(o, "mean")),
                    json_real_value(json_object_get(one, variant("mean"))), b.f->logprob_tol);
        check_close("perplexity", log(json_real_value(json_object_get(o, "perplexity"))), -sum / (double)n,
                    b.f->logprob_tol);
        json_decref(o);
        if (traced) {
            check_prefill(trace, "prefill.1", "logits_last");
            check_same(TRACE_SUFFIX, trace, 1);
        }
    }
    assert_true(b.ok);
}

/* ---- clusters ---- */

static int up(void **state)
{
    char model[64];

    snprintf(model, sizeof model, RIG_DATA "/%s", b.f->name);
    rig_up(&b.cluster, model, b.n_workers, b.softcap ? "--final-softcap" : NULL);
    return 0;
}

static int down(void **state)
{
    rig_down(&b.cluster);
    return 0;
}

static int run_cluster(const struct fixture *f, unsigned n_workers, bool softcap)
{
    const struct CMUnitTest all[] = {
        cmocka_unit_test(test_generate),
        cmocka_unit_test(test_two_images),
        cmocka_unit_test(test_beams),
        cmocka_unit_test(test_loglik),
    };
    const struct CMUnitTest capped[] = {cmocka_unit_test(test_beams), cmocka_unit_test(test_loglik)};

    b.f = f;
    b.n_workers = n_workers;
    b.softcap = softcap;
    printf("%s, %u workers%s\n", f->name, n_workers, softcap ? ", final soft-cap" : "");
    return softcap ? cmocka_run_group_tests(capped, up, down) : cmocka_run_group_tests(all, up, down);
}

/* Arguments: the fixtures to take; none: all. */
int main(int argc, char **argv)
{
    static const unsigned n_workers[] = {1, 2, 3, 5};
    int failed = rig_setup(NULL);

    for (size_t i = 0; i < RIG_N_FIXTURES; i++) {
        const struct fixture *f = &rig_fixtures[i];
        bool wanted = argc < 2;

        for (int a = 1; a < argc; a++)
            wanted |= strcmp(argv[a], f->name) == 0;
        if (!wanted)
            continue;
        rig_golden_open(&b.golden, f);
        for (size_t w = 0; w < sizeof n_workers / sizeof n_workers[0]; w++) {
            failed += run_cluster(f, n_workers[w], false);
            if (esp_golden_has(b.golden.tensors, "beam.0.scores_softcapped"))
                failed += run_cluster(f, n_workers[w], true);
        }
        for (size_t t = 0; t < N_TRACES; t++)
            esp_golden_close(&b.one[t]);
        rig_golden_close(&b.golden);
    }
    failed += rig_teardown(NULL) != 0;
    return failed != 0;
}
