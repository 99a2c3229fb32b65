#include "tests/support/decode_world.h"

#include <math.h>
#include <string.h>

static const uint32_t prefix[] = {2, 10, 11, 12, 13}, start[] = {30, 31}, ban[] = {7, 20};

#define COMMON                                                                                               \
    .prefix = prefix, .n_prefix = sizeof prefix / sizeof prefix[0], .eos = WORLD_EOS, .vocab = WORLD_VOCAB,  \
    .max_tokens = 14

const struct world_case world_cases[] = {
    {"greedy", {COMMON}},
    {"greedy without end", {COMMON, .sampling = {.ignore_eos = true}}},
    {"one token", {.prefix = prefix, .n_prefix = 5, .eos = WORLD_EOS, .vocab = WORLD_VOCAB, .max_tokens = 1}},
    {"sampled",
     {COMMON, .sampling = {.temperature = 1, .top_k = 5, .seed = 3}, .suffix = start, .n_suffix = 2}},
    {"sampled from all", {COMMON, .sampling = {.temperature = 2, .top_p = 0.9, .seed = 4}}},
    {"best of 5", {COMMON, .sampling = {.temperature = 1.5, .seed = 9, .best_of = 5}}},
    {"big_vision's beams", {COMMON, .sampling = {.beams = 4, .ban = ban, .n_ban = 2}}},
    {"Hugging Face's beams",
     {COMMON, .sampling = {.beams = 4, .has_length_penalty = true, .length_penalty = 0.7}}},
    {"beams without end", {COMMON, .sampling = {.beams = 3, .ignore_eos = true}}},
    {"beams of few tokens",
     {.prefix = prefix,
      .n_prefix = 5,
      .eos = WORLD_EOS,
      .vocab = WORLD_VOCAB,
      .max_tokens = 3,
      .sampling = {.beams = 6, .has_length_penalty = true}}},
    {"a score", {COMMON, .suffix = start, .n_suffix = 2, .score = true}},
    {"a score without end", {COMMON, .suffix = start, .n_suffix = 2, .score = true, .no_eos = true}},
};
const size_t n_world_cases = sizeof world_cases / sizeof world_cases[0];

struct esp_decode *world_decoder(struct world *w, const struct world_case *c)
{
    struct esp_decode *d = NULL;

    return esp_decode_create(&d, &c->params, &w->next_seq, NULL) ? NULL : d;
}

static void logits_of(float *x, const uint32_t *tok, uint32_t n)
{
    uint32_t h = 12345;

    for (uint32_t i = 0; i < n; i++)
        h = (h ^ tok[i]) * 16777619u + 97;
    for (uint32_t v = 0; v < WORLD_VOCAB; v++) {
        h = h * 1664525u + 1013904223u;
        x[v] = (float)(h >> 16) / 65536.0f * 6.0f;
    }
    x[WORLD_EOS] += 1.5f; /* most sequences end before they must */
}

static struct world_seq *find(struct world *w, uint64_t id)
{
    for (int i = 0; i < WORLD_SEQS; i++)
        if (w->seq[i].id == id)
            return &w->seq[i];
    return NULL;
}

static struct world_seq *make(struct world *w, uint64_t id, const struct world_seq *from)
{
    struct world_seq *s = find(w, id) ? NULL : find(w, 0);

    if (!s) {
        w->wrong = "a sequence twice, or too many";
        return NULL;
    }
    if (from)
        *s = *from;
    else
        s->n = 0;
    s->id = id;
    return s;
}

/* Bookkeeping and rows, as every stage does them. @param seq, pos  of each row */
static void apply(struct world *w, const struct esp_part *p, struct world_seq **seq, uint32_t *pos)
{
    uint32_t row = 0;

    for (uint32_t i = 0; i < p->n_free && !w->wrong; i++) {
        struct world_seq *s = find(w, p->free[i]);
        if (s && p->free[i])
            s->id = 0;
        else
            w->wrong = "freed what was not there";
    }
    for (uint32_t i = 0; i < p->n_forks && !w->wrong; i++) {
        struct world_seq *from = find(w, p->forks[i].from);
        if (from && p->forks[i].from)
            make(w, p->forks[i].seq, from);
        else
            w->wrong = "forked what was not there";
    }
    for (uint32_t i = 0; i < p->n_seqs && !w->wrong; i++) {
        const struct esp_seq_rows *r = &p->seqs[i];
        struct world_seq *s = r->pos == 0 ? make(w, r->seq, NULL) : find(w, r->seq);

        if (!s || s->n != r->pos || r->pos + r->n_tok > WORLD_LEN || row + r->n_tok > WORLD_LEN)
            w->wrong = "rows of another position";
        for (uint32_t t = 0; t < r->n_tok && !w->wrong; t++, row++) {
            s->tok[s->n++] = (uint32_t)p->ids[row];
            seq[row] = s;
            pos[row] = s->n;
        }
    }
    if (!w->wrong && row != p->n_rows)
        w->wrong = "another number of rows";
}

esp_status world_step(struct world *w, struct esp_decode *d, bool *done, struct esp_err *err)
{
    static float all[WORLD_LEN][WORLD_VOCAB], top[WORLD_LEN][WORLD_VOCAB], full[WORLD_LEN][WORLD_VOCAB];
    static uint32_t ids[WORLD_LEN][WORLD_VOCAB];
    static struct esp_row_result rows[WORLD_LEN];
    struct world_seq *seq[WORLD_LEN];
    uint32_t pos[WORLD_LEN], n_full = 0;
    const struct esp_part *p = esp_decode_next(d);

    apply(w, p, seq, pos);
    if (w->wrong)
        return esp_fail(err, ESP_E_INTERNAL, "%s", w->wrong);
    for (uint32_t i = 0; i < p->n_wants; i++) {
        const struct esp_want *want = &p->wants[i];
        float *x = all[i];
        double sum = 0;

        logits_of(x, seq[want->row]->tok, pos[want->row]);
        for (uint32_t v = 0; v < WORLD_VOCAB; v++)
            sum += exp((double)x[v]);
        rows[i] = (struct esp_row_result){
            .row = want->row, .lse = (float)log(sum), .n = want->k, .ids = ids[i], .logits = top[i]};
        if (want->has_target)
            rows[i].target_logit = x[want->target];
        if (want->full)
            memcpy(full[n_full++], x, sizeof full[0]);
        for (uint32_t k = 0; k < want->k && k < WORLD_VOCAB; k++) {
            uint32_t best = 0;
            for (uint32_t v = 1; v < WORLD_VOCAB; v++)
                if (x[v] > x[best])
                    best = v;
            ids[i][k] = best;
            top[i][k] = x[best];
            x[best] = -INFINITY;
        }
    }
    return esp_decode_take(d, rows, full[0], done, err);
}
