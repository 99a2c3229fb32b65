/* Choosing tokens: what is drawn, how often, what is asked for, and what is refused. */
#include "coordinator/sample.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define V 600

struct rowbuf {
    float full[V];
    uint32_t ids[ESP_CAND_MAX];
    float logits[ESP_CAND_MAX];
};

static const float *sort_key;

static int by_rank(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    if (sort_key[x] != sort_key[y])
        return sort_key[x] > sort_key[y] ? -1 : 1;
    return x < y ? -1 : x > y;
}

/* Logits with plenty of ties; the row with k candidates, or full. */
static void make_row(struct esp_cand_row *cands, struct esp_cand_row *full, struct rowbuf *buf, uint32_t seed,
                     uint32_t n_vocab, uint32_t k)
{
    uint32_t order[V];
    double sum = 0;

    for (uint32_t i = 0; i < n_vocab; i++) {
        seed = seed * 1664525u + 1013904223u;
        buf->full[i] = (float)(seed >> 24) / 16.0f - 8.0f;
        sum += exp((double)buf->full[i]);
        order[i] = i;
    }
    sort_key = buf->full;
    qsort(order, n_vocab, sizeof *order, by_rank);
    if (k > n_vocab)
        k = n_vocab;
    for (uint32_t i = 0; i < k; i++) {
        buf->ids[i] = order[i];
        buf->logits[i] = buf->full[order[i]];
    }
    *cands = (struct esp_cand_row){
        .lse = (float)log(sum), .n = k, .ids = buf->ids, .logits = buf->logits, .vocab = n_vocab};
    *full = *cands;
    full->n = 0;
    full->full = buf->full;
}

static void test_known_answers(void **state)
{
    /* Random123's kat_vectors, philox4x32 with 10 rounds. */
    static const struct {
        uint32_t ctr[4], key[2], out[4];
    } cases[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint32_t out[4];
        esp_philox(out, cases[i].ctr, cases[i].key);
        assert_memory_equal(out, cases[i].out, sizeof out);
    }
    assert_true(esp_draw(1, 2, 3) == esp_draw(1, 2, 3));
    assert_true(esp_draw(1, 2, 3) != esp_draw(1, 3, 2));
    assert_true(esp_draw(1, 2, 3) != esp_draw(2, 2, 3));
    for (uint64_t i = 0; i < 1000; i++)
        assert_true(esp_draw(i << 33, i, i) >= 0.0 && esp_draw(i << 33, i, i) < 1.0);
}

static void test_need(void **state)
{
    static const struct {
        double temperature, top_p;
        uint32_t top_k, n_ban, k;
        bool full;
    } cases[] = {
        {0.0, 0.0, 0, 0, 1, false},   {0.0, 0.9, 40, 3, 4, false},        {0.0, 0.0, 0, 255, 256, false},
        {0.0, 0.0, 0, 256, 0, true},  {1.0, 0.0, 0, 0, 0, true},          {1.0, 0.9, 0, 0, 0, true},
        {1.0, 0.9, 40, 2, 42, false}, {1.0, 0.0, 256, 0, 256, false},     {1.0, 0.0, 257, 0, 0, true},
        {1.0, 0.0, 200, 57, 0, true}, {1.0, 0.0, UINT32_MAX, 4, 0, true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct esp_sample_params p = {.temperature = cases[i].temperature,
                                      .top_p = cases[i].top_p,
                                      .top_k = cases[i].top_k,
                                      .n_ban = cases[i].n_ban};
        uint32_t k;
        bool full;
        esp_sample_need(&p, &k, &full);
        assert_int_equal(k, cases[i].k);
        assert_int_equal(full, cases[i].full);
    }
}

/* The distribution, computed another way: every probability, sorted by hand. */
static void exact(double *p, const float *x, uint32_t n_vocab, const struct esp_sample_params *par)
{
    uint32_t order[V], n = n_vocab;
    double total = 0, kept = 0;

    for (uint32_t i = 0; i < n_vocab; i++) {
        order[i] = i;
        p[i] = exp((double)x[i] / par->temperature);
        for (uint32_t b = 0; b < par->n_ban; b++)
            if (par->ban[b] == i)
                p[i] = 0;
    }
    for (uint32_t i = 0; i < n_vocab; i++) /* selection sort: slow, and unlike what is tested */
        for (uint32_t j = i + 1; j < n_vocab; j++)
            if (p[order[j]] > p[order[i]] || (p[order[j]] == p[order[i]] && order[j] < order[i])) {
                uint32_t t = order[i];
                order[i] = order[j];
                order[j] = t;
            }
    if (par->top_k && par->top_k < n)
        n = par->top_k;
    for (uint32_t i = n; i < n_vocab; i++)
        p[order[i]] = 0;
    for (uint32_t i = 0; i < n; i++)
        total += p[order[i]];
    for (uint32_t i = 0; i < n; i++) {
        bool over = par->top_p > 0 && i > 0 && kept >= par->top_p * total;
        kept += p[order[i]];
        if (over)
            p[order[i]] = 0;
    }
    total = 0;
    for (uint32_t i = 0; i < n_vocab; i++)
        total += p[i];
    for (uint32_t i = 0; i < n_vocab; i++)
        p[i] /= total;
}

static void test_frequencies(void **state)
{
    static const uint32_t ban[] = {3, 11, 3};
    static const struct esp_sample_params cases[] = {
        {.temperature = 1.0, .seed = 1},
        {.temperature = 3.0, .seed = 2, .ban = ban, .n_ban = 3},
        {.temperature = 2.0, .top_k = 7, .seed = 3},
        {.temperature = 4.0, .top_p = 0.8, .seed = 4},
        {.temperature = 4.0, .top_k = 12, .top_p = 0.7, .seed = 5, .ban = ban, .n_ban = 3},
        {.temperature = 5.0, .top_p = 1.0, .seed = 6},
    };
    enum { N = 40000, SMALL = 24 };
    struct rowbuf buf;
    struct esp_cand_row cands, full;

    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        double p[SMALL], chi2 = 0;
        uint32_t count[SMALL] = {0}, n_class = 0;
        make_row(&cands, &full, &buf, 77 + (uint32_t)c, SMALL, 0);
        exact(p, buf.full, SMALL, &cases[c]);
        for (uint32_t t = 0; t < N; t++) {
            uint32_t id;
            assert_int_equal(esp_sample(&id, NULL, &full, &cases[c], t % 5, t / 5, NULL), ESP_OK);
            count[id]++;
        }
        for (uint32_t i = 0; i < SMALL; i++) {
            if (p[i] == 0) {
                assert_int_equal(count[i], 0);
            } else if (p[i] * N >= 5) { /* the usual rule for cells of a chi-square test */
                chi2 += (count[i] - p[i] * N) * (count[i] - p[i] * N) / (p[i] * N);
                n_class++;
            }
        }
        /* Mean n-1, deviation sqrt(2(n-1)): four deviations; the seeds are fixed, so this cannot flicker. */
        assert_true(n_class >= 2);
        assert_true(chi2 < n_class - 1 + 4 * sqrt(2.0 * (n_class - 1)));
    }
}

/* The same draw from candidates as from all logits. */
static void test_candidates_equal_full(void **state)
{
    struct rowbuf buf;
    struct esp_cand_row cands, full;

    for (uint32_t c = 0; c < 2000; c++) {
        uint32_t ban[3] = {c % V, (c * 7) % V, (c * 31) % V}, a, b;
        struct esp_sample_params p = {.temperature = c % 4 ? 0.25 * (c % 13) + 0.1 : 0.0,
                                      .top_k = 1 + c % 60,
                                      .top_p = c % 3 ? 0.1 * (c % 10) : 0.0,
                                      .seed = c,
                                      .ban = ban,
                                      .n_ban = c % 4};
        double lp_a, lp_b;
        uint32_t k;
        bool need_full;
        if (p.n_ban && c % 2)
            p.n_ban = 1;
        esp_sample_need(&p, &k, &need_full);
        assert_false(need_full);
        make_row(&cands, &full, &buf, c, V, k);
        if (p.n_ban) /* forbid the best for certain */
            ban[0] = buf.ids[0];
        assert_int_equal(esp_sample(&a, &lp_a, &cands, &p, 3, c, NULL), ESP_OK);
        assert_int_equal(esp_sample(&b, &lp_b, &full, &p, 3, c, NULL), ESP_OK);
        assert_int_equal(a, b);
        assert_true(lp_a == lp_b && lp_a <= 0);
        assert_true(fabs(lp_a - ((double)buf.full[a] - (double)cands.lse)) < 1e-12);
        if (p.n_ban)
            assert_int_not_equal(a, ban[0]);
        if (p.temperature == 0.0)
            assert_int_equal(a, buf.ids[p.n_ban && k > 1 ? 1 + (p.n_ban > 1 && buf.ids[1] == ban[1]) : 0]);
    }
}

static void test_extremes(void **state)
{
    struct rowbuf buf;
    struct esp_cand_row cands, full;
    struct esp_sample_params p = {.temperature = 1e-300, .seed = 9};
    uint32_t id;

    make_row(&cands, &full, &buf, 5, V, 256);
    for (uint32_t i = 0; i < V; i++)
        buf.full[i] = i == 417 ? 3.0e38f : -3.0e38f;
    full.lse = 3.0e38f;
    assert_int_equal(esp_sample(&id, NULL, &full, &p, 0, 0, NULL), ESP_OK);
    assert_int_equal(id, 417);
    p.temperature = 1e300; /* flat: everything can come, nothing breaks */
    p.top_k = UINT32_MAX;
    assert_int_equal(esp_sample(&id, NULL, &full, &p, 0, 0, NULL), ESP_OK);
    assert_true(id < V);
    p = (struct esp_sample_params){.temperature = 1.0, .top_p = 1e-12};
    assert_int_equal(esp_sample(&id, NULL, &full, &p, 0, 0, NULL), ESP_OK);
    assert_int_equal(id, 417);
}

static void test_refused(void **state)
{
    static const uint32_t ids[] = {5, 6, 7}, twice[] = {5, 5, 7}, high[] = {5, 6, 10}, ban[] = {5, 6, 7};
    static const uint32_t all[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, outside[] = {10};
    static const float good[] = {3, 2, 2}, rising[] = {2, 3, 1}, tied[] = {2, 2, 2};
    static const float nan_at[] = {3, NAN, 1}, inf_at[] = {INFINITY, 2, 1};
    static const float full_nan[10] = {0, 0, 0, 0, NAN}, full_ok[10] = {0, 0, 1};
    const struct {
        const char *want;
        esp_status st;
        struct esp_cand_row row;
        struct esp_sample_params par;
    } cases[] = {
        {"logit of token 6 is",
         ESP_E_DEVICE,
         {.lse = 4, .n = 3, .ids = ids, .logits = nan_at, .vocab = 10},
         {.seed = 0}},
        {"logit of token 5 is inf",
         ESP_E_DEVICE,
         {.lse = 4, .n = 3, .ids = ids, .logits = inf_at, .vocab = 10},
         {.seed = 0}},
        {"log-sum-exp of the logits is",
         ESP_E_DEVICE,
         {.lse = NAN, .n = 3, .ids = ids, .logits = good, .vocab = 10},
         {.seed = 0}},
        {"log-sum-exp 1 is below the best logit 3",
         ESP_E_DEVICE,
         {.lse = 1, .n = 3, .ids = ids, .logits = good, .vocab = 10},
         {.seed = 0}},
        {"out of order: token 5 (2) before 6 (3)",
         ESP_E_DEVICE,
         {.lse = 4, .n = 3, .ids = ids, .logits = rising, .vocab = 10},
         {.seed = 0}},
        {"out of order: token 5",
         ESP_E_DEVICE,
         {.lse = 4, .n = 3, .ids = twice, .logits = tied, .vocab = 10},
         {.seed = 0}},
        {"candidate 2 is token 10, the vocabulary has 10",
         ESP_E_DEVICE,
         {.lse = 4, .n = 3, .ids = high, .logits = good, .vocab = 10},
         {.seed = 0}},
        {"logit of token 4 is", ESP_E_DEVICE, {.lse = 4, .full = full_nan, .vocab = 10}, {.seed = 0}},
        {"logit of token 3 is",
         ESP_E_DEVICE,
         {.lse = 4, .full = full_ok, .vocab = 10, .has_target = true, .target = 3, .target_logit = INFINITY},
         {.seed = 0}},
        {"all of the 10 tokens to choose from are forbidden",
         ESP_E_ARG,
         {.lse = 4, .full = full_ok, .vocab = 10},
         {.ban = all, .n_ban = 10}},
        {"all of the 3 tokens",
         ESP_E_ARG,
         {.lse = 4, .n = 3, .ids = all, .logits = good, .vocab = 3},
         {.temperature = 1, .top_k = 2, .ban = all, .n_ban = 3}},
        {"3 candidates given, 4 are needed",
         ESP_E_ARG,
         {.lse = 4, .n = 3, .ids = ids, .logits = good, .vocab = 10},
         {.ban = ban, .n_ban = 3}},
        {"where all 10 logits are needed",
         ESP_E_ARG,
         {.lse = 4, .n = 3, .ids = ids, .logits = good, .vocab = 10},
         {.temperature = 1}},
        {"--temperature must be a number >= 0 (0: greedy), not -1",
         ESP_E_ARG,
         {.vocab = 10},
         {.temperature = -1}},
        {"--temperature", ESP_E_ARG, {.vocab = 10}, {.temperature = NAN}},
        {"--top-p must be from 0 to 1", ESP_E_ARG, {.vocab = 10}, {.top_p = 1.5}},
        {"--top-p", ESP_E_ARG, {.vocab = 10}, {.top_p = NAN}},
        {"--ban: id 10 is outside of the vocabulary of 10",
         ESP_E_ARG,
         {.vocab = 10},
         {.ban = outside, .n_ban = 1}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct esp_err err = {0};
        uint32_t id;
        struct esp_sample_params par = cases[i].par;
        assert_int_equal(esp_sample(&id, NULL, &cases[i].row, &par, 0, 0, &err), cases[i].st);
        if (!strstr(err.text, cases[i].want))
            fail_msg("case %zu: \"%s\" lacks \"%s\"", i, err.text, cases[i].want);
    }
}

static void test_best_of(void **state)
{
    static const double a[] = {-1, -1, -1, -1}, b[] = {-1.5, -1.5}, c[] = {-2};
    const struct esp_sampled s[] = {{b, 2}, {a, 4}, {c, 1}, {NULL, 0}};

    assert_int_equal(esp_best_of(s, 4, ESP_BEST_MEAN), 1);
    assert_int_equal(esp_best_of(s, 4, ESP_BEST_SUM), 2);
    assert_int_equal(esp_best_of(s, 1, ESP_BEST_MEAN), 0);
    assert_int_equal(esp_best_of(s + 3, 1, ESP_BEST_SUM), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_answers), cmocka_unit_test(test_need),
        cmocka_unit_test(test_frequencies),   cmocka_unit_test(test_candidates_equal_full),
        cmocka_unit_test(test_extremes),      cmocka_unit_test(test_refused),
        cmocka_unit_test(test_best_of),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
