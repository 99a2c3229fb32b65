/*
 * Beam search against a second, naive writing of both rules over a made-up model: the logits of a sequence
 * are a hash of it. The naive one keeps whole sequences, scores them from the start each time and sorts
 * everything it has.
 */
#include "coordinator/beam.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MAXV = 40, MAXLEN = 12, MAXSEQ = 4096 };

struct model {
    uint32_t vocab, seed;
    float spread;   /* of the logits: small makes near-ties, with a coarse step real ones */
    float eos_lift; /* added to token 1 */
};

static void logits_of(float *x, double *lse, const struct model *m, const uint32_t *ids, uint32_t n)
{
    uint32_t h = m->seed * 2654435761u + 12345;
    double sum = 0;

    for (uint32_t i = 0; i < n; i++)
        h = (h ^ ids[i]) * 16777619u + 97;
    for (uint32_t v = 0; v < m->vocab; v++) {
        h = h * 1664525u + 1013904223u;
        x[v] = (float)(h >> 28) / 15.0f * m->spread + (v == 1 ? m->eos_lift : 0.0f);
        sum += exp((double)x[v]);
    }
    *lse = (float)log(sum); /* float32, as a stage sends it */
}

/* ---- the naive reference ---- */

struct seq {
    uint32_t ids[MAXLEN + 1], n, parent;
    bool eos;
    double sum, score;
};

static bool in(const uint32_t *list, uint32_t n, uint32_t id)
{
    for (uint32_t i = 0; i < n; i++)
        if (list[i] == id)
            return true;
    return false;
}

static double sum_of(const struct model *m, const struct seq *s)
{
    double sum = 0;
    for (uint32_t t = 0; t < s->n; t++) {
        float x[MAXV];
        double lse, lp;
        logits_of(x, &lse, m, s->ids, t);
        lp = (double)x[s->ids[t]] - lse;
        sum += lp < 0 ? lp : 0;
    }
    return sum;
}

static int by_sum(const void *a, const void *b)
{
    const struct seq *x = a, *y = b;
    if (x->sum != y->sum)
        return x->sum > y->sum ? -1 : 1;
    if (x->parent != y->parent)
        return x->parent < y->parent ? -1 : 1;
    return x->ids[x->n - 1] < y->ids[y->n - 1] ? -1 : 1;
}

/* Stable: equals stay in the order they came. */
static void sort_scores(struct seq *s, uint32_t n)
{
    for (uint32_t i = 1; i < n; i++)
        for (uint32_t j = i; j > 0 && s[j - 1].score < s[j].score; j--) {
            struct seq t = s[j];
            s[j] = s[j - 1];
            s[j - 1] = t;
        }
}

static struct seq extend(const struct model *m, const struct seq *s, uint32_t parent, uint32_t token,
                         bool eos)
{
    struct seq e = *s;
    e.ids[e.n++] = token;
    e.parent = parent;
    e.eos = eos;
    e.sum = sum_of(m, &e);
    return e;
}

/* Fills fin with every finished hypothesis, best first; returns how many. */
static uint32_t naive(struct seq *fin, const struct model *m, const struct esp_beam_params *p)
{
    static struct seq all[MAXSEQ], live[MAXV];
    uint32_t n_live = 1, n_fin = 0;
    uint32_t keep = p->n_beam * (p->n_eos + 1 > 2 ? p->n_eos + 1 : 2);
    bool hf = p->rule == ESP_BEAM_HF;

    live[0] = (struct seq){0};
    for (uint32_t len = 1; len <= p->max_tokens; len++) {
        uint32_t n_all = 0, n_next = 0;
        static struct seq next[MAXV];
        if (!hf) {
            for (uint32_t r = 0; r < n_live; r++)
                for (uint32_t e = 0; e < p->n_eos; e++)
                    if (!in(p->ban, p->n_ban, p->eos[e])) {
                        fin[n_fin] = extend(m, &live[r], r, p->eos[e], true);
                        fin[n_fin].score = fin[n_fin].sum;
                        n_fin++;
                    }
        }
        for (uint32_t r = 0; r < n_live; r++)
            for (uint32_t v = 0; v < m->vocab; v++)
                if (!in(p->ban, p->n_ban, v) && (hf || !in(p->eos, p->n_eos, v)))
                    all[n_all++] = extend(m, &live[r], r, v, in(p->eos, p->n_eos, v));
        qsort(all, n_all, sizeof *all, by_sum);
        for (uint32_t i = 0; i < n_all && i < (hf ? keep : p->n_beam); i++) {
            if (hf && i < p->n_beam && (all[i].eos || len == p->max_tokens)) {
                fin[n_fin] = all[i];
                fin[n_fin].score = all[i].sum / pow(len, p->length_penalty);
                n_fin++;
            }
            if (!all[i].eos && n_next < p->n_beam)
                next[n_next++] = all[i];
        }
        memcpy(live, next, n_next * sizeof *next);
        n_live = n_next;
        sort_scores(fin, n_fin);
        if (n_live == 0)
            break;
        if (hf && n_fin >= p->n_beam && live[0].sum / pow(len, p->length_penalty) <= fin[p->n_beam - 1].score)
            break;
        if (hf && n_fin > p->n_beam) /* HF forgets all but the n best */
            n_fin = p->n_beam;
        if (!hf && n_fin && live[0].sum <= fin[0].score)
            break;
    }
    if (!hf && n_fin == 0)
        for (uint32_t i = 0; i < n_live; i++) {
            fin[n_fin] = live[i];
            fin[n_fin].score = live[i].sum;
            n_fin++;
        }
    return n_fin < p->n_beam ? n_fin : p->n_beam;
}

/* ---- driving the search ---- */

static float *sort_key;

static int by_logit(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    if (sort_key[x] != sort_key[y])
        return sort_key[x] > sort_key[y] ? -1 : 1;
    return x < y ? -1 : 1;
}

static struct esp_beam *drive(const struct model *m, const struct esp_beam_params *p, bool force_full)
{
    static float x[MAXV][MAXV], logit[MAXV][MAXV];
    static uint32_t id[MAXV][MAXV];
    static struct seq live[MAXV], old[MAXV];
    struct esp_beam *beam;
    bool done = false;
    uint32_t n_live = 1, n_step = 0;

    assert_int_equal(esp_beam_create(&beam, p, NULL), ESP_OK);
    live[0] = (struct seq){0};
    while (!done) {
        struct esp_cand_row rows[MAXV];
        struct esp_beam_next next[MAXV];
        uint32_t k, target;
        bool full, need_target;
        esp_beam_need(beam, &k, &full, &need_target, &target);
        assert_int_equal(esp_beam_n_live(beam), n_live);
        for (uint32_t r = 0; r < n_live; r++) {
            double lse;
            logits_of(x[r], &lse, m, live[r].ids, live[r].n);
            for (uint32_t v = 0; v < m->vocab; v++)
                id[r][v] = v;
            sort_key = x[r];
            qsort(id[r], m->vocab, sizeof(uint32_t), by_logit);
            for (uint32_t v = 0; v < m->vocab; v++)
                logit[r][v] = x[r][id[r][v]];
            rows[r] = (struct esp_cand_row){.lse = (float)lse, .vocab = m->vocab};
            if (full || force_full) {
                rows[r].full = x[r];
            } else {
                rows[r].n = k;
                rows[r].ids = id[r];
                rows[r].logits = logit[r];
                rows[r].has_target = need_target;
                rows[r].target = target;
                rows[r].target_logit = need_target ? x[r][target] : 0.0f;
            }
        }
        memcpy(old, live, sizeof old);
        assert_int_equal(esp_beam_step(beam, next, &n_live, &done, rows, n_live, NULL), ESP_OK);
        assert_true(done ? n_live == 0 : n_live >= 1 && n_live <= p->n_beam);
        for (uint32_t i = 0; i < n_live; i++) {
            live[i] = old[next[i].parent];
            live[i].ids[live[i].n++] = next[i].token;
        }
        assert_true(++n_step <= p->max_tokens);
    }
    return beam;
}

static void compare(const struct model *m, const struct esp_beam_params *p, const struct seq *want,
                    uint32_t n_want, bool force_full, uint32_t case_no)
{
    struct esp_beam *beam = drive(m, p, force_full);
    struct esp_beam_hyp h;

    for (uint32_t i = 0; i < n_want; i++) {
        double sum = 0;
        assert_true(esp_beam_result(beam, i, &h));
        if (h.n_tok != want[i].n || memcmp(h.ids, want[i].ids, h.n_tok * sizeof *h.ids))
            fail_msg("case %u: hypothesis %u differs", case_no, i);
        assert_true(h.has_eos == want[i].eos);
        assert_int_equal(h.n_text, h.n_tok - (h.has_eos ? 1 : 0));
        assert_true(fabs(h.sum - want[i].sum) < 1e-12 && fabs(h.score - want[i].score) < 1e-12);
        for (uint32_t t = 0; t < h.n_tok; t++)
            sum += h.logprobs[t];
        assert_true(fabs(sum - h.sum) < 1e-12);
    }
    assert_false(esp_beam_result(beam, n_want, &h));
    esp_beam_destroy(&beam);
    assert_null(beam);
}

static void test_against_naive(void **state)
{
    static struct seq fin[MAXSEQ];
    uint32_t n_eos_end = 0, n_length_end = 0, n_early = 0;

    for (uint32_t c = 0; c < 1500; c++) {
        static const uint32_t eos[] = {1, 4};
        static const double penalty[] = {1.0, 0.0, 0.6, 2.0, -0.5};
        uint32_t ban[3] = {2, 5, c % 2 ? 1 : 3};
        struct model m = {.vocab = 8 + c % 30,
                          .seed = c,
                          .spread = c % 5 ? 1.0f + (float)(c % 7) : 0.0f,
                          .eos_lift = (float)(c % 11) - 4.0f};
        struct esp_beam_params p = {.rule = c % 2 ? ESP_BEAM_HF : ESP_BEAM_BIG_VISION,
                                    .n_beam = 1 + c % 4,
                                    .length_penalty = penalty[c % 5],
                                    .max_tokens = 1 + (c / 3) % MAXLEN,
                                    .eos = eos,
                                    .n_eos = c % 13 == 0  ? 0
                                             : c % 6 == 0 ? 2
                                                          : 1,
                                    .ban = ban,
                                    .n_ban = c % 4 == 3   ? 3
                                             : c % 4 == 2 ? 1
                                                          : 0,
                                    .vocab = m.vocab};
        uint32_t n = naive(fin, &m, &p);
        assert_true(n >= 1);
        n_eos_end += fin[0].eos;
        n_length_end += !fin[0].eos;
        n_early += fin[0].n < p.max_tokens;
        compare(&m, &p, fin, n, false, c);
        compare(&m, &p, fin, n, true, c);
    }
    /* The cases reach all endings, or they prove little. */
    assert_true(n_eos_end > 200 && n_length_end > 200 && n_early > 200);
}

/* One beam by Hugging Face's rule without end tokens is greedy. */
static void test_greedy(void **state)
{
    struct model m = {.vocab = 30, .seed = 4, .spread = 5};
    struct esp_beam_params p = {
        .rule = ESP_BEAM_HF, .n_beam = 1, .length_penalty = 1, .max_tokens = 10, .vocab = 30};
    struct esp_beam *beam = drive(&m, &p, false);
    struct esp_beam_hyp h;
    struct seq s = {0};

    assert_true(esp_beam_result(beam, 0, &h));
    assert_int_equal(h.n_tok, 10);
    for (uint32_t t = 0; t < 10; t++) {
        float x[MAXV];
        double lse;
        uint32_t best = 0;
        logits_of(x, &lse, &m, s.ids, t);
        for (uint32_t v = 1; v < m.vocab; v++)
            if (x[v] > x[best])
                best = v;
        assert_int_equal(h.ids[t], best);
        s.ids[t] = best;
    }
    esp_beam_destroy(&beam);
}

static void test_need(void **state)
{
    static const uint32_t eos[] = {1, 2}, ban[300] = {0};
    static const struct {
        enum esp_beam_rule rule;
        uint32_t n_beam, n_eos, n_ban, vocab, k;
        bool full, target;
    } cases[] = {
        {ESP_BEAM_HF, 3, 1, 0, 1000, 6, false, false},
        {ESP_BEAM_HF, 3, 2, 5, 1000, 14, false, false},
        {ESP_BEAM_HF, 3, 0, 0, 1000, 6, false, false},
        {ESP_BEAM_HF, 128, 1, 0, 1000, 256, false, false},
        {ESP_BEAM_HF, 128, 1, 1, 1000, 0, true, false},
        {ESP_BEAM_HF, 4, 1, 0, 5, 5, false, false},
        {ESP_BEAM_BIG_VISION, 3, 1, 2, 1000, 6, false, true},
        {ESP_BEAM_BIG_VISION, 3, 0, 2, 1000, 5, false, false},
        {ESP_BEAM_BIG_VISION, 3, 2, 0, 1000, 0, true, true},
        {ESP_BEAM_BIG_VISION, 3, 1, 300, 1000, 0, true, true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct esp_beam_params p = {.rule = cases[i].rule,
                                    .n_beam = cases[i].n_beam,
                                    .max_tokens = 4,
                                    .eos = eos,
                                    .n_eos = cases[i].n_eos,
                                    .ban = ban,
                                    .n_ban = cases[i].n_ban,
                                    .vocab = cases[i].vocab};
        struct esp_beam *beam;
        uint32_t k, target;
        bool full, need_target;
        assert_int_equal(esp_beam_create(&beam, &p, NULL), ESP_OK);
        esp_beam_need(beam, &k, &full, &need_target, &target);
        assert_int_equal(k, cases[i].k);
        assert_int_equal(full, cases[i].full);
        assert_int_equal(need_target, cases[i].target);
        esp_beam_destroy(&beam);
    }
}

static void test_refused(void **state)
{
    static const uint32_t eos[] = {1, 99}, id3[] = {0, 1, 2}, id_desc[] = {2, 1, 0};
    static const float logit[] = {2, 1, 0}, bad[] = {NAN, 0, 0};
    static const struct {
        const char *want;
        struct esp_beam_params p;
    } cases[] = {
        {"--beams must be from 1 to 128, not 0", {.max_tokens = 1, .vocab = 3}},
        {"--beams", {.n_beam = 129, .max_tokens = 1, .vocab = 3}},
        {"--max-tokens must be from 1", {.n_beam = 1, .vocab = 3}},
        {"--length-penalty",
         {.rule = ESP_BEAM_HF, .length_penalty = NAN, .n_beam = 1, .max_tokens = 1, .vocab = 3}},
        {"--length-penalty must be from -32 to 32, not 33",
         {.rule = ESP_BEAM_HF, .length_penalty = 33, .n_beam = 1, .max_tokens = 1, .vocab = 3}},
        {"vocabulary of nothing", {.n_beam = 1, .max_tokens = 1}},
        {"--eos: id 99 is outside", {.n_beam = 1, .max_tokens = 1, .vocab = 3, .eos = eos, .n_eos = 2}},
        {"--eos: at most 8", {.n_beam = 1, .max_tokens = 1, .vocab = 3, .eos = eos, .n_eos = 9}},
        {"--ban: id 99 is outside", {.n_beam = 1, .max_tokens = 1, .vocab = 3, .ban = eos, .n_ban = 2}},
    };
    static const struct {
        const char *want;
        esp_status st;
        uint32_t n_rows;
        struct esp_cand_row row;
    } rows[] = {
        {"2 rows for 1 living beams",
         ESP_E_ARG,
         2,
         {.lse = 3, .n = 3, .ids = id3, .logits = logit, .vocab = 3}},
        {"2 candidates, 3 are needed",
         ESP_E_ARG,
         1,
         {.lse = 3, .n = 2, .ids = id3, .logits = logit, .vocab = 3}},
        {"a row of 4 logits, not 3",
         ESP_E_ARG,
         1,
         {.lse = 3, .n = 3, .ids = id3, .logits = logit, .vocab = 4}},
        {"the logit of token 1 is needed",
         ESP_E_ARG,
         1,
         {.lse = 3, .n = 3, .ids = id3, .logits = logit, .vocab = 3}},
        {"logit of token 0 is", ESP_E_DEVICE, 1, {.lse = 3, .n = 3, .ids = id3, .logits = bad, .vocab = 3}},
        {"below the best logit",
         ESP_E_DEVICE,
         1,
         {.lse = 1, .n = 3, .ids = id_desc, .logits = logit, .vocab = 3}},
    };
    struct esp_beam_params p = {.n_beam = 2, .max_tokens = 2, .vocab = 3, .eos = eos, .n_eos = 1};
    struct esp_beam *beam = NULL;
    struct esp_beam_next next[2];
    struct esp_beam_hyp h;
    struct esp_err err;
    uint32_t n_next;
    bool done;

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(esp_beam_create(&beam, &cases[i].p, &err), ESP_E_ARG);
        assert_null(beam);
        if (!strstr(err.text, cases[i].want))
            fail_msg("\"%s\" lacks \"%s\"", err.text, cases[i].want);
    }
    assert_int_equal(esp_beam_create(&beam, &p, &err), ESP_OK);
    assert_false(esp_beam_result(beam, 0, &h));
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct esp_cand_row two[2] = {rows[i].row, rows[i].row};
        assert_int_equal(esp_beam_step(beam, next, &n_next, &done, two, rows[i].n_rows, &err), rows[i].st);
        if (!strstr(err.text, rows[i].want))
            fail_msg("\"%s\" lacks \"%s\"", err.text, rows[i].want);
        assert_int_equal(esp_beam_n_live(beam), 1);
    }
    /* A refused step left it usable. */
    struct esp_cand_row good = {.lse = 3,
                                .n = 3,
                                .ids = id3,
                                .logits = logit,
                                .vocab = 3,
                                .has_target = true,
                                .target = 1,
                                .target_logit = 1};
    assert_int_equal(esp_beam_step(beam, next, &n_next, &done, &good, 1, &err), ESP_OK);
    assert_int_equal(n_next, 2);
    assert_int_equal(next[0].token, 0);
    assert_int_equal(next[1].token, 2);
    struct esp_cand_row goods[2] = {good, good};
    assert_int_equal(esp_beam_step(beam, next, &n_next, &done, goods, 2, &err), ESP_OK);
    assert_true(done);
    assert_int_equal(esp_beam_step(beam, next, &n_next, &done, goods, 0, &err), ESP_E_ARG);
    assert_non_null(strstr(err.text, "is over"));
    esp_beam_destroy(&beam);

    p.ban = id3;
    p.n_ban = 3;
    assert_int_equal(esp_beam_create(&beam, &p, &err), ESP_OK);
    assert_int_equal(esp_beam_step(beam, next, &n_next, &done, &good, 1, &err), ESP_E_ARG);
    assert_non_null(strstr(err.text, "--ban: every token that could come next is forbidden"));
    esp_beam_destroy(&beam);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_naive),
        cmocka_unit_test(test_greedy),
        cmocka_unit_test(test_need),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
