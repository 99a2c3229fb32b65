/*
 * Candidates and the log-sum-exp of logits against float64: every k, ties, targets, ragged and published vocabularies,
 * and logits that are no numbers, which must be seen in the sum.
 */
#include "tests/kernel/rig.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/ref.h"

enum kind {
    NORMAL,     /* of some std */
    TIES,       /* of nine different values */
    CONSTANT,   /* one value: ids in order */
    DESCENDING, /* the best ones all in one slice */
    SPREAD,     /* the best ones a slice each */
    NEGATIVE    /* all far below 0 */
};

struct topk_case {
    uint32_t vocab, n_wants;
    enum kind kind;
    double std;
    uint32_t k[ESP_HEAD_ROWS];
};

/*
 * The sum of exp(x - max) has only positive terms, each within 2 ulp, added four a lane and then by halves: relative
 * 2^-24 * 16 suffices, which is 1e-6 of the log-sum-exp, absolutely.
 */
#define LSE_TOLERANCE (0x1p-24 * 16)

static const struct topk_case cases[] = {
    /* vocab, wants, logits, std, k of each want */
    {1, 1, NORMAL, 1, {1}},
    {2, 2, NORMAL, 1, {2, 5}}, /* more than there are */
    {255, 1, NORMAL, 3, {256}},
    {256, 2, TIES, 1, {256, 0}},
    {257, 3, NORMAL, 3, {1, 2, 256}},
    {300, 8, NORMAL, 3, {1, 2, 3, 7, 64, 100, 255, 256}},
    {1000, 2, CONSTANT, 0, {256, 40}},
    {1000, 1, DESCENDING, 0, {256}},
    {16640, 8, NORMAL, 4, {0, 1, 2, 4, 8, 16, 64, 256}}, /* 65 slices: one more than lanes */
    {70000, 1, SPREAD, 0, {256}},
    {70000, 2, TIES, 1, {100, 256}},
    {5535, 1, NEGATIVE, 1, {64}},
    {5535, 1, NORMAL, 200, {64}}, /* exp of the least ones underflows */
    {257216, 1, NORMAL, 4, {1}},
    {257216, 2, NORMAL, 4, {256, 64}},
    {257152, 1, TIES, 4, {256}},
    {257216, 1, NORMAL, 0.01, {8}}, /* nearly uniform: 257216 terms of 1 */
};

static void fill(float *x, const struct topk_case *c, struct esp_rand *r)
{
    for (uint32_t i = 0; i < c->vocab; i++) {
        switch (c->kind) {
        case NORMAL:
            x[i] = (float)(c->std * esp_rand_normal(r));
            break;
        case TIES:
            x[i] = (float)esp_rand_below(r, 9) - 4;
            break;
        case CONSTANT:
            x[i] = -0.0f;
            break;
        case DESCENDING:
            x[i] = 1000 - (float)i;
            break;
        case SPREAD:
            x[i] = i % ESP_TOP_SLICE == 17 ? 10 + (float)(i / ESP_TOP_SLICE) : (float)esp_rand_normal(r);
            break;
        case NEGATIVE:
            x[i] = (float)(-1e6 + esp_rand_normal(r));
            break;
        }
    }
}

static float f32_of(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* Runs the two kernels over logits f32[n_wants, vocab]; the words of want i at returned + i * ESP_TOP. */
static const uint32_t *run(const float *x, uint32_t vocab, uint32_t n_wants, const struct esp_want *wants)
{
    const uint32_t n_slice = (vocab + ESP_TOP_SLICE - 1) / ESP_TOP_SLICE;
    struct esp_rows rx, slices;
    float *spread = esp_rig_alloc((size_t)n_wants * n_slice * 4, sizeof *spread);

    esp_rig_begin(1, 0, 0);
    rx = esp_rig_rows(n_wants, vocab, x);
    slices = esp_rig_rows(1, n_wants * n_slice * 4, spread); /* a texel a slice */
    slices.stride = n_slice;
    esp_rig_host(NULL, 0, (size_t)n_wants * ESP_TOP);
    esp_rig_ready();
    esp_op_topk(&esp_rig.rec, rx, slices, vocab);
    esp_batch_wants(&esp_rig.batch, wants, n_wants);
    esp_rig_run();
    esp_rig_end();
    free(spread);
    return (const uint32_t *)(const void *)esp_rig.out.at;
}

static void check_want(const char *what, const uint32_t *got, const float *x, uint32_t vocab,
                       const struct esp_want *w)
{
    struct esp_ref_top *top = esp_rig_alloc(ESP_TOP_K, sizeof *top);
    const size_t n = esp_ref_topk(top, x, vocab, w->k < ESP_TOP_K ? w->k : ESP_TOP_K);
    const double lse = esp_ref_logsumexp(x, vocab);
    const double got_lse = (double)f32_of(got[ESP_TOP_MAX]) + log((double)f32_of(got[ESP_TOP_SUM]));

    if (!(fabs(got_lse - lse) <= LSE_TOLERANCE))
        fail_msg("%s: log-sum-exp %.9g, want %.9g", what, got_lse, lse);
    if (w->has_target && !(f32_of(got[ESP_TOP_TARGET]) == x[w->target]))
        fail_msg("%s: target %u has %.9g, want %.9g", what, w->target, (double)f32_of(got[ESP_TOP_TARGET]),
                 (double)x[w->target]);
    for (size_t i = 0; i < n; i++)
        if (got[ESP_TOP_IDS + i] != top[i].id || !(f32_of(got[ESP_TOP_LOGITS + i]) == top[i].logit))
            fail_msg("%s: candidate %zu is %u with %.9g, want %u with %.9g", what, i, got[ESP_TOP_IDS + i],
                     (double)f32_of(got[ESP_TOP_LOGITS + i]), top[i].id, (double)top[i].logit);
    free(top);
}

static void test_topk(void **state)
{
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const struct topk_case *c = &cases[i];
        struct esp_want wants[ESP_HEAD_ROWS] = {0};
        float *x = esp_rig_alloc((size_t)c->n_wants * c->vocab, sizeof *x);
        const uint32_t *got;
        struct esp_rand r;
        esp_rand_init(&r, 5000 + i);
        for (uint32_t w = 0; w < c->n_wants; w++) {
            fill(x + (size_t)w * c->vocab, c, &r);
            wants[w].k = c->k[w];
            wants[w].has_target = w % 2 == 0;
            wants[w].target = w == 0 ? c->vocab - 1 : esp_rand_below(&r, c->vocab);
        }
        got = run(x, c->vocab, c->n_wants, wants);
        for (uint32_t w = 0; w < c->n_wants; w++) {
            char what[64];
            snprintf(what, sizeof what, "case %zu, want %u, vocabulary %u, k %u", i, w, c->vocab, c->k[w]);
            check_want(what, got + (size_t)w * ESP_TOP, x + (size_t)w * c->vocab, c->vocab, &wants[w]);
        }
        free(x);
    }
}

/* One logit that is not finite, anywhere: the sum is no number (or infinite), never an ordinary one. */
static void test_not_finite(void **state)
{
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    static const uint32_t at[] = {0, 63, 64, 255, 256, 700, 999};
    const uint32_t vocab = 1000, n_at = sizeof at / sizeof at[0];
    struct esp_want wants[ESP_HEAD_ROWS] = {0};
    float *x = esp_rig_alloc((size_t)ESP_HEAD_ROWS * vocab, sizeof *x);

    for (size_t b = 0; b < sizeof bad / sizeof bad[0]; b++) {
        const uint32_t *got;
        struct esp_rand r;
        esp_rand_init(&r, 5100 + b);
        esp_rand_fill(&r, x, (size_t)ESP_HEAD_ROWS * vocab, 1);
        for (uint32_t w = 0; w < ESP_HEAD_ROWS; w++) {
            wants[w].k = 256;
            if (w < n_at)
                x[w * vocab + at[w]] = bad[b];
        }
        got = run(x, vocab, ESP_HEAD_ROWS, wants);
        for (uint32_t w = 0; w < n_at; w++)
            if (isfinite(f32_of(got[w * ESP_TOP + ESP_TOP_SUM])))
                fail_msg("%g at %u: the sum is %g", (double)bad[b], at[w],
                         (double)f32_of(got[w * ESP_TOP + ESP_TOP_SUM]));
        check_want("the row beside them", got + (size_t)n_at * ESP_TOP, x + (size_t)n_at * vocab, vocab,
                   &wants[n_at]);
    }
    /* nothing but NaN */
    for (uint32_t i = 0; i < vocab; i++)
        x[i] = NAN;
    assert_false(isfinite(f32_of(run(x, vocab, 1, wants)[ESP_TOP_SUM])));
    free(x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_topk), cmocka_unit_test(test_not_finite)};
    return esp_rig_main("topk", tests, sizeof tests / sizeof tests[0]);
}
