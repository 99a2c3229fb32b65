/* The coordinator among workers and clients that behave: what it makes of a request. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "coordinator/token.h"
#include "tests/cluster/coordinator_rig.h"

/* ---- the reference: what the fake model answers, computed here ---- */

struct answer {
    uint32_t ids[256], n;
    double logprobs[257];
    bool eos;
    double sum;
};

static double logprob(const float *logits, uint32_t id)
{
    double top = 0, sum = 0;

    for (uint32_t v = 0; v < RIG_VOCAB; v++)
        top = logits[v] > top ? logits[v] : top;
    for (uint32_t v = 0; v < RIG_VOCAB; v++)
        sum += exp(logits[v] - top);
    return logits[id] - (top + log(sum));
}

/* n_tok tokens of prompt in tok, which has room for more. */
static void greedy(struct answer *a, uint32_t *tok, uint32_t n_tok, const struct esp_msg_request *r)
{
    const uint32_t eos = r->sampling.has_eos ? r->sampling.eos : RIG_EOS;

    memset(a, 0, sizeof *a);
    for (uint32_t step = 0; step < r->max_tokens; step++) {
        float logits[RIG_VOCAB];
        uint32_t best = UINT32_MAX;

        rig_logits(logits, tok, n_tok);
        for (uint32_t v = 0; v < RIG_VOCAB; v++) {
            bool banned = false;
            for (uint32_t b = 0; b < r->sampling.n_ban; b++)
                banned |= r->sampling.ban[b] == v;
            if (!banned && (best == UINT32_MAX || logits[v] > logits[best]))
                best = v;
        }
        a->logprobs[step] = logprob(logits, best);
        a->sum += a->logprobs[step];
        if (best == eos && !r->sampling.ignore_eos) {
            a->eos = true;
            return;
        }
        a->ids[a->n++] = best;
        tok[n_tok++] = best;
    }
}

/* big_vision's beam search, written down plainly: every beam keeps its whole text and is computed anew. */
struct beam {
    uint32_t tok[RIG_SEQ_TOKENS], n;
    double sum;
};

struct option {
    double sum;
    uint32_t parent, token;
};

static int by_sum(const void *a, const void *b)
{
    const struct option *x = a, *y = b;

    if (x->sum != y->sum)
        return x->sum < y->sum ? 1 : -1;
    if (x->parent != y->parent)
        return x->parent < y->parent ? -1 : 1;
    return x->token < y->token ? -1 : x->token > y->token;
}

/* Fills best (n 0: nothing ended); its sum counts the end token. */
static void beam_search(struct answer *best, const uint32_t *prompt, uint32_t n_prompt, uint32_t n_beam,
                        uint32_t max)
{
    struct beam *live = calloc(n_beam, sizeof *live), *next = calloc(n_beam, sizeof *next);
    struct option *opt = calloc((size_t)n_beam * RIG_VOCAB, sizeof *opt);
    uint32_t n_live = 1;

    assert_true(live && next && opt);
    memset(best, 0, sizeof *best);
    best->sum = -INFINITY;
    memcpy(live[0].tok, prompt, n_prompt * sizeof *prompt);
    live[0].n = n_prompt;
    for (uint32_t step = 0; step < max && n_live > 0; step++) {
        uint32_t n_opt = 0;
        bool hope = false;

        for (uint32_t b = 0; b < n_live; b++) {
            float logits[RIG_VOCAB];
            double base;

            rig_logits(logits, live[b].tok, live[b].n);
            base = live[b].sum + logprob(logits, 0) - logits[0];
            if (base + logits[RIG_EOS] > best->sum) {
                best->sum = base + logits[RIG_EOS];
                best->n = live[b].n - n_prompt;
                best->eos = true;
                memcpy(best->ids, live[b].tok + n_prompt, best->n * sizeof *best->ids);
            }
            for (uint32_t v = 0; v < RIG_VOCAB; v++)
                if (v != RIG_EOS)
                    opt[n_opt++] = (struct option){base + logits[v], b, v};
        }
        qsort(opt, n_opt, sizeof *opt, by_sum);
        for (uint32_t b = 0; b < n_beam; b++) {
            next[b] = live[opt[b].parent];
            next[b].tok[next[b].n++] = opt[b].token;
            next[b].sum = opt[b].sum;
            hope |= next[b].sum > best->sum;
        }
        memcpy(live, next, n_beam * sizeof *live);
        n_live = hope ? n_beam : 0;
    }
    free(live);
    free(next);
    free(opt);
}

/* The prompt as the workers get it: image rows, then what Accepted named. */
static uint32_t prompt_of(uint32_t *tok, const struct esp_msg_accepted *a)
{
    uint32_t n = 0;

    while (n < a->image_tokens)
        tok[n++] = 5534;
    for (uint32_t i = 0; i < a->n_prompt_ids; i++)
        tok[n++] = a->prompt_ids[i];
    return n;
}

static void same_answer(const struct esp_hypothesis *h, const struct answer *a)
{
    assert_int_equal(h->n_ids, a->n);
    for (uint32_t i = 0; i < a->n; i++)
        assert_int_equal(h->ids[i], a->ids[i]);
    assert_string_equal(h->finish, a->eos ? "eos" : "length");
    assert_int_equal(h->n_logprobs, a->n + a->eos);
    assert_true(fabs(h->sum - a->sum) < 1e-4 * (1 + a->n));
}

static struct esp_msg_request request(uint64_t id, const char *prompt, uint32_t max_tokens)
{
    return (struct esp_msg_request){.id = id, .prompt = prompt, .max_tokens = max_tokens};
}

/* ---- greedy ---- */

static void test_greedy(void **state)
{
    struct rig *rig = *state;
    struct esp_msg_request r = request(7, "caption en", 20);
    const struct esp_msg *m;
    uint32_t tok[RIG_SEQ_TOKENS], n_tok, n = 0;
    char text[4096] = "";
    struct answer want;

    rig_start(rig, NULL);
    rig_join(rig, 1);
    rig_request(rig, 0, &r, "scene_a.png", NULL);
    m = rig_take(rig, 0, ESP_MSG_ACCEPTED);
    assert_int_equal(m->accepted.session, 7);
    assert_int_equal(m->accepted.image_tokens, RIG_IMAGE_ROWS);
    assert_int_equal(m->accepted.prompt_ids[0], 2); /* BOS */
    assert_int_equal(m->accepted.n_stages, 1);
    assert_string_equal(m->accepted.stages[0].worker, "w0");
    assert_int_equal(m->accepted.stages[0].enc_hi, 2);
    assert_int_equal(m->accepted.stages[0].dec_hi, 3);
    assert_true(m->accepted.stages[0].software);
    n_tok = prompt_of(tok, &m->accepted);
    greedy(&want, tok, n_tok, &r);
    m = rig_take(rig, 0, ESP_MSG_DONE);
    assert_int_equal(m->done.session, 7);
    same_answer(&m->done.best, &want);
    assert_int_equal(m->done.n_hypotheses, 0);
    assert_true(m->done.encode >= 0 && m->done.prefill >= 0 && m->done.decode >= 0);
    assert_true(m->done.n_times >= 1);
    assert_string_equal(m->done.times[0].worker, "w0");
    assert_true(m->done.times[0].compute_seconds >= 0.5); /* the encoder's share is in it */
    for (uint32_t i = 0; i < rig->c[0].n_inbox; i++) {
        const struct esp_msg *t = rig->c[0].inbox[i];
        if (t->kind != ESP_MSG_TOKEN)
            continue;
        assert_int_equal(t->token.index, n);
        assert_int_equal(t->token.id, want.ids[n]);
        assert_true(fabs(t->token.logprob - want.logprobs[n]) < 1e-5);
        strcat(text, t->token.text);
        n++;
    }
    assert_int_equal(n, want.n);
    assert_int_equal(strncmp(m->done.best.text, text, strlen(text)),
                     0); /* bytes of a character may be held back */
    rig_until_free(rig);
}

struct variant {
    const char *label, *suffix;
    uint32_t max_tokens;
    struct esp_msg_sampling sampling;
};

/* One greedy answer a row, each against the reference. */
static void test_greedy_variants(void **state)
{
    static uint32_t ban[3] = {0};
    struct rig *rig = *state;
    static const uint32_t many[40] = {5,  6,  7,  8,  9,  10, 11, 12, 13, 14,
                                      15, 16, 17, 18, 19, 20, 21, 22, 23, 24};
    const struct variant cases[] = {
        {.label = "one token", .max_tokens = 1},
        {.label = "long", .max_tokens = 120},
        {.label = "eos counts for nothing", .max_tokens = 60, .sampling = {.ignore_eos = true}},
        {.label = "another eos", .max_tokens = 30, .sampling = {.has_eos = true, .eos = 77}},
        {.label = "with a start", .suffix = "a picture of", .max_tokens = 12},
        {.label = "banned", .max_tokens = 12, .sampling = {.ban = ban, .n_ban = 3}},
        {.label = "many banned", .max_tokens = 12, .sampling = {.ban = many, .n_ban = 40}},
    };
    struct esp_tokenizer *token;

    assert_int_equal(esp_tokenizer_create(&token, RIG_MODEL "/tokenizer.model", NULL), ESP_OK);
    rig_start(rig, "--split", "1/1,1/2", "--workers", "2", NULL);
    rig_join(rig, 2);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct esp_msg_request r = request(i + 1, "answer en", cases[i].max_tokens);
        const struct esp_msg *m;
        uint32_t tok[RIG_SEQ_TOKENS], n_tok, *suffix = NULL;
        size_t n_suffix = 0;
        struct answer want;

        r.suffix = cases[i].suffix;
        r.sampling = cases[i].sampling;
        rig_request(rig, 0, &r, NULL);
        m = rig_take(rig, 0, ESP_MSG_ACCEPTED);
        n_tok = prompt_of(tok, &m->accepted);
        if (r.suffix) {
            assert_int_equal(
                esp_tokenizer_encode(token, &suffix, &n_suffix, r.suffix, strlen(r.suffix), NULL), ESP_OK);
            memcpy(tok + n_tok, suffix, n_suffix * sizeof *tok);
            n_tok += (uint32_t)n_suffix;
            free(suffix);
        }
        greedy(&want, tok, n_tok, &r);
        if (i == 0)
            ban[0] = ban[1] = want.ids[0]; /* for the row that bans: what would have been chosen */
        m = rig_take(rig, 0, ESP_MSG_DONE);
        print_message("%s\n", cases[i].label);
        same_answer(&m->done.best, &want);
        rig_until_free(rig);
    }
    esp_tokenizer_destroy(&token);
}

/* ---- placing ---- */

static bool is_placed(struct rig *rig, void *worker)
{
    return ((struct rig_worker *)worker)->place.epoch != 0;
}

static void test_places_by_hand(void **state)
{
    struct rig *rig = *state;
    const struct esp_msg_place *p0 = &rig->w[0].place, *p1 = &rig->w[1].place, *p2 = &rig->w[2].place;

    rig_start(rig, "--split", "1/0,1/2,0/1", "--workers", "3", "--context", "100", "--kv-tokens", "300",
              NULL);
    rig_join(rig, 3);
    assert_int_equal(p0->epoch, 1);
    assert_true(p0->enc_lo == 0 && p0->enc_hi == 1 && p0->dec_lo == p0->dec_hi);
    assert_true(p0->patch && !p0->projector && !p0->embed && !p0->head);
    assert_string_equal(p0->next_enc, rig->w[1].endpoint);
    assert_true(p1->enc_lo == 1 && p1->enc_hi == 2 && p1->dec_lo == 0 && p1->dec_hi == 2);
    assert_true(!p1->patch && p1->projector && p1->embed && !p1->head);
    assert_string_equal(p1->features_to, ""); /* it has them already */
    assert_string_equal(p1->next_dec, rig->w[2].endpoint);
    assert_true(p2->enc_lo == p2->enc_hi && p2->dec_lo == 2 && p2->dec_hi == 3);
    assert_true(!p2->embed && p2->head);
    assert_string_equal(p2->next_dec, "");
    assert_int_equal(p2->max_rows, 100);
    assert_int_equal(p2->kv_tokens, 300);
    rig_hello(rig, 3); /* comes later: a spare of the same epoch */
    rig_until(rig, is_placed, &rig->w[3], "a Place for the spare");
    assert_int_equal(rig->w[3].place.epoch, 1);
    assert_true(rig->w[3].place.enc_lo == rig->w[3].place.enc_hi &&
                rig->w[3].place.dec_lo == rig->w[3].place.dec_hi);
}

/* The client is told what it waits for, from before the first worker on. */
static void test_waits_for_workers(void **state)
{
    struct rig *rig = *state;
    struct esp_msg_request r = request(1, "caption en", 3);
    const struct esp_msg *m;

    rig_start(rig, "--workers", "2", NULL);
    rig_request(rig, 0, &r, "scene_a.png", NULL);
    m = rig_take(rig, 0, ESP_MSG_WAITING);
    assert_string_equal(m->waiting.what, "waiting for workers");
    assert_int_equal(m->waiting.done, 0);
    assert_int_equal(m->waiting.total, 2);
    rig_hello(rig, 0);
    do
        m = rig_take(rig, 0, ESP_MSG_WAITING);
    while (m->waiting.done == 0);
    assert_int_equal(m->waiting.done, 1);
    rig->w[1].hold_ready = true;
    rig_hello(rig, 1);
    do
        m = rig_take(rig, 0, ESP_MSG_WAITING);
    while (strcmp(m->waiting.what, "loading weights") != 0);
    assert_true(m->waiting.total > 0);
    rig->w[1].hold_ready = false;
    {
        struct esp_msg ready = {.kind = ESP_MSG_READY};
        ready.ready = (struct esp_msg_ready){.epoch = 1, .kv_blocks = 100, .block_tokens = RIG_BLOCK};
        rig_send(rig, 1, &ready);
    }
    m = rig_take(rig, 0, ESP_MSG_ACCEPTED);
    assert_int_equal(m->accepted.n_stages, 2);
    m = rig_take(rig, 0, ESP_MSG_DONE);
    assert_true(m->done.load > 0);
    rig_request(rig, 1, &r, NULL); /* the second one finds it ready */
    m = rig_take(rig, 1, ESP_MSG_DONE);
    assert_true(m->done.load == 0);
    rig_until_free(rig);
}

/* ---- several sequences ---- */

static void test_sampling(void **state)
{
    struct rig *rig = *state;
    struct esp_msg_request r = request(1, "caption en", 10);
    const struct esp_msg *m;
    uint32_t first[64], n_first;

    rig_start(rig, NULL);
    rig_join(rig, 1);
    r.sampling = (struct esp_msg_sampling){.temperature = 1, .seed = 5};
    rig_request(rig, 0, &r, NULL);
    m = rig_take(rig, 0, ESP_MSG_DONE);
    n_first = m->done.best.n_ids;
    memcpy(first, m->done.best.ids, n_first * sizeof *first);
    rig_request(rig, 0, &r, NULL); /* the same seed, the same answer */
    m = rig_take(rig, 0, ESP_MSG_DONE);
    assert_int_equal(m->done.best.n_ids, n_first);
    assert_memory_equal(m->done.best.ids, first, n_first * sizeof *first);
    r.sampling.seed = 6;
    rig_request(rig, 0, &r, NULL);
    m = rig_take(rig, 0, ESP_MSG_DONE);
    assert_true(m->done.best.n_ids != n_first ||
                memcmp(m->done.best.ids, first, n_first * sizeof *first) != 0);
    rig_until_free(rig);
}

static void test_best_of(void **state)
{
    struct rig *rig = *state;
    struct esp_msg_request r = request(1, "caption en", 40);
    const struct esp_msg *m;
    uint32_t tok[RIG_SEQ_TOKENS], n_tok;

    rig_start(rig, NULL);
    rig_join(rig, 1);
    r.sampling = (struct esp_msg_sampling){.temperature = 0.7, .top_k = 20, .seed = 11, .best_of = 5};
    rig_request(rig, 0, &r, "scene_b.png", NULL);
    m = rig_take(rig, 0, ESP_MSG_ACCEPTED);
    n_tok = prompt_of(tok, &m->accepted);
    m = rig_take(rig, 0, ESP_MSG_DONE);
    assert_int_equal(rig_count(rig, 0, ESP_MSG_TOKEN), 0);
    assert_int_equal(m->done.n_hypotheses, 5);
    for (uint32_t i = 0; i < 5; i++) {
        const struct esp_hypothesis *h = &m->done.hypotheses[i];
        double sum = 0;

        assert_int_equal(h->n_logprobs, h->n_ids + (strcmp(h->finish, "eos") == 0));
        for (uint32_t k = 0; k < h->n_logprobs; k++) {
            float logits[RIG_VOCAB];
            const uint32_t id = k < h->n_ids ? h->ids[k] : RIG_EOS;

            rig_logits(logits, tok, n_tok + k); /* so each was computed from its own text */
            assert_true(fabs(h->logprobs[k] - logprob(logits, id)) < 1e-5);
            tok[n_tok + k] = id;
            sum += h->logprobs[k];
        }
        assert_true(fabs(h->sum - sum) < 1e-9);
        assert_true(fabs(h->score - sum / h->n_logprobs) < 1e-9);
        if (i > 0)
            assert_true(h->score <= m->done.hypotheses[i - 1].score);
    }
    assert_memory_equal(m->done.best.ids, m->done.hypotheses[0].ids, m->done.best.n_ids * sizeof(uint32_t));
    rig_until_free(rig);
}

static void test_beams(void **state)
{
    struct rig *rig = *state;
    const struct {
        const char *prompt;
        uint32_t n_beam, max_tokens;
    } cases[] = {{"caption en", 3, 30}, {"answer en what", 4, 40}, {"detect cat", 2, 60}, {"a", 8, 25}};

    rig_start(rig, NULL);
    rig_join(rig, 1);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct esp_msg_request r = request(i + 1, cases[i].prompt, cases[i].max_tokens);
        const struct esp_msg *m;
        uint32_t tok[RIG_SEQ_TOKENS], n_tok;
        struct answer want;

        r.sampling.beams = cases[i].n_beam;
        rig_request(rig, 0, &r, NULL);
        m = rig_take(rig, 0, ESP_MSG_ACCEPTED);
        n_tok = prompt_of(tok, &m->accepted);
        beam_search(&want, tok, n_tok, cases[i].n_beam, cases[i].max_tokens);
        m = rig_take(rig, 0, ESP_MSG_DONE);
        assert_int_equal(m->done.best.n_ids, want.n);
        assert_memory_equal(m->done.best.ids, want.ids, want.n * sizeof *want.ids);
        assert_true(fabs(m->done.best.sum - want.sum) < 1e-3);
        assert_true(m->done.n_hypotheses >= 1);
        rig_until_free(rig);
    }
}

/* Hugging Face's rule: as many hypotheses as beams, their sums those of their texts. */
static void test_beams_with_penalty(void **state)
{
    struct rig *rig = *state;
    struct esp_msg_request r = request(1, "caption en", 25);
    const struct esp_msg *m;
    uint32_t tok[RIG_SEQ_TOKENS], n_tok;

    rig_start(rig, NULL);
    rig_join(rig, 1);
    r.sampling = (struct esp_msg_sampling){.beams = 3, .has_length_penalty = true, .length_penalty = 1};
    rig_request(rig, 0, &r, "scene_a.png", NULL);
    m = rig_take(rig, 0, ESP_MSG_ACCEPTED);
    n_tok = prompt_of(tok, &m->accepted);
    m = rig_take(rig, 0, ESP_MSG_DONE);
    assert_int_equal(m->done.n_hypotheses, 3);
    for (uint32_t i = 0; i < 3; i++) {
        const struct esp_hypothesis *h = &m->done.hypotheses[i];
        double sum = 0;

        for (uint32_t k = 0; k < h->n_logprobs; k++) {
            float logits[RIG_VOCAB];
            const uint32_t id = k < h->n_ids ? h->ids[k] : RIG_EOS;

            rig_logits(logits, tok, n_tok + k);
            sum += logprob(logits, id);
            tok[n_tok + k] = id;
        }
        assert_true(fabs(h->sum - sum) < 1e-3);
        assert_true(fabs(h->score - h->sum / h->n_logprobs) < 1e-9);
    }
    rig_until_free(rig);
}

/* ---- scores, traces, pictures ---- */

static void test_score(void **state)
{
    struct rig *rig = *state;
    struct esp_msg_request r = request(1, "caption en", 0);

    rig_start(rig, NULL);
    rig_join(rig, 1);
    r.score = true;
    r.suffix = "a cow on a beach";
    for (int no_eos = 0; no_eos < 2; no_eos++) {
        const struct esp_msg *m;
        uint32_t tok[RIG_SEQ_TOKENS], n_tok;
        const struct esp_hypothesis *h;

        r.no_eos = no_eos;
        rig_request(rig, 0, &r, "scene_a.png", NULL);
        m = rig_take(rig, 0, ESP_MSG_ACCEPTED);
        n_tok = prompt_of(tok, &m->accepted);
        m = rig_take(rig, 0, ESP_MSG_DONE);
        h = &m->done.best;
        assert_true(h->n_ids >= 4);
        assert_int_equal(h->n_logprobs, h->n_ids + !no_eos);
        for (uint32_t k = 0; k < h->n_logprobs; k++) {
            const uint32_t id = k < h->n_ids ? h->ids[k] : RIG_EOS;
            float logits[RIG_VOCAB];

            rig_logits(logits, tok, n_tok + k);
            assert_true(fabs(h->logprobs[k] - logprob(logits, id)) < 1e-5);
            tok[n_tok + k] = id;
        }
        assert_string_equal(h->text, r.suffix);
        assert_int_equal(m->done.n_hypotheses, 0);
        rig_until_free(rig);
    }
}

static void test_trace(void **state)
{
    struct rig *rig = *state;
    struct esp_msg_request r = request(4, "caption en", 2);
    const struct esp_msg *m;
    uint32_t tok[RIG_SEQ_TOKENS], n_tok;
    struct esp_msg trace = {.kind = ESP_MSG_TRACE, .n_blobs = 1};
    const float value[6] = {1, 2, 3, 4, 5, 6};

    rig_start(rig, NULL);
    rig->w[0].hold_work = true;
    rig_join(rig, 1);
    r.trace = true;
    rig_request(rig, 0, &r, "scene_a.png", NULL);
    m = rig_take(rig, 0, ESP_MSG_ACCEPTED);
    n_tok = prompt_of(tok, &m->accepted);
    while (rig->w[0].n_held == 0)
        rig_pump(rig, 20);
    assert_true(rig->w[0].held[0].encode.trace);
    trace.trace = (struct esp_msg_trace){
        .epoch = 1, .image = rig->w[0].held[0].encode.image, .name = "vision.layer.0", .rows = 2, .width = 3};
    trace.blob[0] = (struct esp_blob){.data = value, .n_bytes = sizeof value};
    rig_send(rig, 0, &trace);
    m = rig_take(rig, 0, ESP_MSG_TRACE);
    assert_string_equal(m->trace.name, "vision.layer.0");
    assert_int_equal(m->trace.session, 4);
    assert_int_equal(m->trace.image, 1); /* the first picture of the request */
    assert_memory_equal(m->blob[0].data, value, sizeof value);
    rig_resume(rig, 0);
    m = rig_take(rig, 0, ESP_MSG_TRACE);
    assert_string_equal(m->trace.name, "prefill.logits");
    assert_int_equal(m->trace.rows, n_tok);
    assert_int_equal(m->trace.width, RIG_VOCAB);
    for (uint32_t i = 0; i < n_tok; i++) {
        float logits[RIG_VOCAB];

        rig_logits(logits, tok, i + 1);
        assert_memory_equal((const char *)m->blob[0].data + i * sizeof logits, logits, sizeof logits);
    }
    m = rig_take(rig, 0, ESP_MSG_DONE);
    assert_int_equal(m->done.best.n_ids, 2);
    rig_until_free(rig);
}

/* A picture that was encoded once is not encoded again, whatever its place; the least recently used one goes.
 */
static void test_pictures_are_kept(void **state)
{
    struct rig *rig = *state;
    struct esp_msg_request r = request(1, "caption en", 2);
    const struct esp_msg *m;

    rig_start(rig, "--max-images", "2", NULL);
    rig_join(rig, 1);
    rig_request(rig, 0, &r, "scene_a.png", "scene_b.png", NULL);
    m = rig_take(rig, 0, ESP_MSG_ACCEPTED);
    assert_int_equal(m->accepted.image_tokens, 2 * RIG_IMAGE_ROWS);
    rig_take(rig, 0, ESP_MSG_DONE);
    assert_int_equal(rig->n_encodes, 2);
    rig_request(rig, 0, &r, "scene_b.png", "scene_b.png", NULL);
    rig_take(rig, 0, ESP_MSG_DONE);
    assert_int_equal(rig->n_encodes, 2);
    rig_request(rig, 0, &r, "one.png", NULL); /* scene_a's place */
    rig_take(rig, 0, ESP_MSG_DONE);
    assert_int_equal(rig->n_encodes, 3);
    rig_request(rig, 0, &r, "scene_b.png", NULL);
    rig_take(rig, 0, ESP_MSG_DONE);
    assert_int_equal(rig->n_encodes, 3);
    rig_request(rig, 0, &r, "scene_a.png", NULL);
    rig_take(rig, 0, ESP_MSG_DONE);
    assert_int_equal(rig->n_encodes, 4);
    rig_until_free(rig);
    assert_true(rig->n_images <= 2);
}

/* ---- several requests ---- */

/* Room for one at a time: first come, first served, and the others are told how many are before them. */
static void test_queue(void **state)
{
    struct rig *rig = *state;
    struct esp_msg_request r = request(1, "caption en", 100);
    const struct esp_msg *m;

    for (int i = 0; i < RIG_WORKERS; i++)
        rig->w[i].kv_blocks = 160 / RIG_BLOCK;
    rig_start(rig, "--context", "160", "--kv-tokens", "160", NULL);
    rig->w[0].hold_work = true;
    rig_join(rig, 1);
    rig_request(rig, 0, &r, NULL);
    while (rig->w[0].n_held == 0)
        rig_pump(rig, 20);
    rig_request(rig, 1, &r, NULL);
    do
        m = rig_take(rig, 1, ESP_MSG_WAITING);
    while (strcmp(m->waiting.what, "queued") != 0);
    assert_int_equal(rig->w[0].n_held, 1);
    rig_resume(rig, 0);
    rig_take(rig, 0, ESP_MSG_DONE);
    m = rig_take(rig, 1, ESP_MSG_DONE);
    assert_true(m->done.queue > 0);
    rig_until_free(rig);
}

/* As many steps are out as there are stages and one, each session in at most one of them; those that are ready
 * together go together, and nobody's answer depends on it. */
static void test_pipeline(void **state)
{
    struct rig *rig = *state;
    struct esp_msg_request r;

    rig_start(rig, "--split", "2/1,0/2", "--workers", "2", NULL);
    rig->w[0].hold_work = true;
    rig_join(rig, 2);
    for (uint64_t id = 1; id <= 6; id++) {
        r = request(id, "caption en", 30);
        rig_request(rig, 0, &r, NULL);
        rig_take(rig, 0, ESP_MSG_ACCEPTED);
        while (rig->w[0].n_held < (id < 3 ? id : 3))
            rig_pump(rig, 20);
    }
    rig_pump(rig, 20);
    assert_int_equal(rig->w[0].n_held, 3);
    for (uint32_t i = 0; i < 3; i++)
        assert_int_equal(rig->w[0].held[i].step.n_seqs, 1);
    rig_resume(rig, 0);
    for (int i = 0; i < 6; i++)
        rig_take_greedy(rig, 0, 30);
    assert_int_equal(rig->max_seqs,
                     3); /* the three that had waited; and half of all, one step for each stage */
    rig_until_free(rig);
}

/* ---- what cannot be ---- */

static void test_refusals(void **state)
{
    static const uint32_t out_of_range[] = {RIG_VOCAB};
    struct rig *rig = *state;
    const struct {
        struct esp_msg_request r;
        const char *image;
        esp_status code;
        const char *fragment;
    } cases[] = {
        {{.max_tokens = 5, .sampling = {.beams = 2, .best_of = 2}}, NULL, ESP_E_ARG, "--beams and --best-of"},
        {{.max_tokens = 5, .sampling = {.beams = 500}}, NULL, ESP_E_ARG, "--beams 500"},
        {{.max_tokens = 5, .sampling = {.beams = 2, .temperature = 1}}, NULL, ESP_E_ARG, "--temperature"},
        {{.max_tokens = 5, .sampling = {.has_length_penalty = true}}, NULL, ESP_E_ARG, "--length-penalty"},
        {{.max_tokens = 5, .sampling = {.has_eos = true, .eos = 9999}}, NULL, ESP_E_ARG, "--eos 9999"},
        {{.max_tokens = 5, .sampling = {.ban = out_of_range, .n_ban = 1}}, NULL, ESP_E_ARG, "5568"},
        {{.score = true, .suffix = "", .no_eos = true}, NULL, ESP_E_ARG, "nothing to score"},
        {{.max_tokens = 5}, "tests/golden/data/tiny/config.json", ESP_E_FORMAT, "tiny/config.json"},
        {{.max_tokens = 5000}, "scene_a.png", ESP_E_LIMIT, "--context"},
        {{.max_tokens = 100, .sampling = {.beams = 8}}, NULL, ESP_E_LIMIT, "--kv-tokens"},
    };
    struct esp_msg_request good = request(99, "caption en", 3);

    for (int i = 0; i < RIG_WORKERS; i++)
        rig->w[i].kv_blocks = 320 / RIG_BLOCK;
    rig_start(rig, "--context", "200", "--kv-tokens", "320", NULL);
    rig_join(rig, 1);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct esp_msg_request r = cases[i].r;

        r.id = i + 1;
        r.prompt = "caption en";
        rig_request(rig, 0, &r, cases[i].image, NULL);
        rig_take_error(rig, 0, i + 1, cases[i].code, cases[i].fragment);
    }
    rig_request(rig, 0, &good, "scene_a.png", NULL);
    rig_take(rig, 0, ESP_MSG_DONE);
    rig_until_free(rig);
}

/* The error of any request to client i, if it has come. */
static const struct esp_msg *error_of(struct rig *rig, int i)
{
    struct rig_client *c = &rig->c[i];

    while (c->n_read < c->n_inbox) {
        const struct esp_msg *m = c->inbox[c->n_read++];

        if (m->kind == ESP_MSG_ERROR)
            return m;
    }
    return NULL;
}

/* One client may fill half of the queue; then he is told so, and others are heard all the same. */
static void test_flood(void **state)
{
    enum { HALF = 1024 };
    struct rig *rig = *state;
    struct esp_msg_request r = request(1, "a", 1), bad = request(1, "b", 1);
    const struct esp_msg *m = NULL;

    bad.sampling = (struct esp_msg_sampling){.beams = 2, .best_of = 2};
    rig_start(rig, NULL);
    for (uint64_t id = 1; id <= HALF; id++) {
        r.id = bad.id = id;
        rig_request(rig, 0, &r, NULL);
        if (id == 1)
            rig_take(rig, 0, ESP_MSG_WAITING); /* connected */
        if (id % 8)
            continue;
        rig_forget(rig, 0); /* what he is told while he waits */
        rig_request(rig, 1, &bad, NULL);
        rig_take_error(rig, 1, id, ESP_E_ARG, "--best-of"); /* it is being read at the other end */
    }
    r.id = HALF + 1;
    rig_request(rig, 0, &r, NULL);
    while (!(m = error_of(rig, 0)))
        rig_pump(rig, 20);
    assert_int_equal(m->error.session, HALF + 1);
    assert_non_null(strstr(m->error.text, "1024 requests of yours"));
    rig_request(rig, 1, &r, NULL);
    rig_take(rig, 1, ESP_MSG_WAITING);
}

static void test_status(void **state)
{
    struct rig *rig = *state;
    struct esp_msg msg = {.kind = ESP_MSG_STATUS_QUERY};
    const struct esp_msg *m;
    struct esp_err err;

    rig_start(rig, "--workers", "2", "--split", "2/3", NULL);
    rig_dial(rig, 0);
    msg.status_query.id = 3;
    assert_int_equal(esp_link_send(rig->c[0].link, NULL, &msg, &err), ESP_OK);
    m = rig_take(rig, 0, ESP_MSG_STATUS);
    assert_int_equal(m->status.id, 3);
    assert_false(m->status.ready);
    assert_non_null(strstr(m->status.why, "workers"));
    rig_join(rig, 2);
    do {
        assert_int_equal(esp_link_send(rig->c[0].link, NULL, &msg, &err), ESP_OK);
        m = rig_take(rig, 0, ESP_MSG_STATUS);
    } while (!m->status.ready);
    assert_int_equal(m->status.n_workers, 2);
    assert_int_equal(m->status.epoch, 1);
    assert_string_equal(m->status.workers[0].state, "ready");
    assert_string_equal(m->status.workers[0].stage.worker, "w0");
    assert_int_equal(m->status.workers[0].stage.dec_hi, 3);
    assert_string_equal(m->status.workers[1].state, "spare");
    assert_string_equal(m->status.workers[1].stage.worker, "");
}

/* Workers that an earlier coordinator has placed: what is still on its way of that time is nobody's any more. */
static void test_epochs_go_on(void **state)
{
    struct rig *rig = *state;
    struct esp_msg_request r = request(1, "caption en", 3);
    struct esp_msg old = {.kind = ESP_MSG_RESULT};

    rig->w[0].had_epoch = 7;
    rig->w[1].had_epoch = 41;
    rig_start(rig, "--workers", "2", NULL);
    rig_join(rig, 2);
    assert_int_equal(rig->w[0].place.epoch, 42);
    assert_int_equal(rig->w[1].place.epoch, 42);
    old.result = (struct esp_msg_result){.epoch = 41, .step = 12};
    rig_send(rig, 1, &old);
    rig_request(rig, 0, &r, "scene_a.png", NULL);
    rig_take(rig, 0, ESP_MSG_DONE);
    assert_int_equal(rig->w[1].error, ESP_OK);
    rig_until_free(rig);
}

int main(void)
{
#define CASE(f) cmocka_unit_test_setup_teardown(f, rig_setup, rig_teardown)
    const struct CMUnitTest tests[] = {
        CASE(test_greedy),
        CASE(test_greedy_variants),
        CASE(test_places_by_hand),
        CASE(test_waits_for_workers),
        CASE(test_sampling),
        CASE(test_best_of),
        CASE(test_beams),
        CASE(test_beams_with_penalty),
        CASE(test_score),
        CASE(test_trace),
        CASE(test_pictures_are_kept),
        CASE(test_queue),
        CASE(test_pipeline),
        CASE(test_refusals),
        CASE(test_flood),
        CASE(test_status),
        CASE(test_epochs_go_on),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
