#include "coordinator/beam_state.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static int by_id(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static int by_rank(const void *a, const void *b)
{
    const struct esp_beam_cand *x = a, *y = b;
    if (x->sum != y->sum)
        return x->sum > y->sum ? -1 : 1;
    if (x->parent != y->parent)
        return x->parent < y->parent ? -1 : 1;
    return x->token < y->token ? -1 : x->token > y->token;
}

bool esp_beam_is_eos(const struct esp_beam *beam, uint32_t id)
{
    for (uint32_t i = 0; i < beam->par.n_eos; i++)
        if (beam->eos[i] == id)
            return true;
    return false;
}

static bool is_banned(const struct esp_beam *beam, uint32_t id)
{
    return beam->par.n_ban && bsearch(&id, beam->ban, beam->par.n_ban, sizeof id, by_id);
}

/* Tokens that may not continue a living sequence: big_vision ends sequences apart from the ranking. */
static bool is_skipped(const struct esp_beam *beam, uint32_t id)
{
    return is_banned(beam, id) || (beam->par.rule == ESP_BEAM_BIG_VISION && esp_beam_is_eos(beam, id));
}

static esp_status params_check(const struct esp_beam_params *par, struct esp_err *err)
{
    if (par->n_beam == 0 || par->n_beam > ESP_BEAM_MAX)
        return esp_fail(err, ESP_E_ARG, "--beams must be from 1 to %d, not %" PRIu32, ESP_BEAM_MAX,
                        par->n_beam);
    if (par->max_tokens == 0 || par->max_tokens > ESP_BEAM_MAX_LEN)
        return esp_fail(err, ESP_E_ARG, "--max-tokens must be from 1 to %d, not %" PRIu32, ESP_BEAM_MAX_LEN,
                        par->max_tokens);
    if (par->rule == ESP_BEAM_HF && !(fabs(par->length_penalty) <= ESP_BEAM_MAX_PENALTY))
        return esp_fail(err, ESP_E_ARG, "--length-penalty must be from -%d to %d, not %g",
                        ESP_BEAM_MAX_PENALTY, ESP_BEAM_MAX_PENALTY, par->length_penalty);
    if (par->n_eos > ESP_BEAM_MAX_EOS)
        return esp_fail(err, ESP_E_ARG, "--eos: at most %d end tokens, not %" PRIu32, ESP_BEAM_MAX_EOS,
                        par->n_eos);
    if (par->vocab == 0)
        return esp_fail(err, ESP_E_ARG, "beam search over a vocabulary of nothing");
    for (uint32_t i = 0; i < par->n_eos; i++)
        if (par->eos[i] >= par->vocab)
            return esp_fail(err, ESP_E_ARG, "--eos: id %" PRIu32 " is outside of the vocabulary of %" PRIu32,
                            par->eos[i], par->vocab);
    for (uint32_t i = 0; i < par->n_ban; i++)
        if (par->ban[i] >= par->vocab)
            return esp_fail(err, ESP_E_ARG, "--ban: id %" PRIu32 " is outside of the vocabulary of %" PRIu32,
                            par->ban[i], par->vocab);
    return ESP_OK;
}

esp_status esp_beam_create(struct esp_beam **out, const struct esp_beam_params *params, struct esp_err *err)
{
    struct esp_beam *beam = NULL;
    uint32_t n = params->n_beam, n_kind;
    esp_status st;

    *out = NULL;
    st = params_check(params, err);
    if (st)
        goto done;
    beam = calloc(1, sizeof *beam);
    if (!beam)
        goto no_memory;
    beam->par = *params;
    n_kind = 1 + params->n_eos > 2 ? 1 + params->n_eos : 2;
    beam->n_keep = params->rule == ESP_BEAM_HF ? n * n_kind : n;
    beam->eos = calloc(params->n_eos + 1, sizeof *beam->eos);
    beam->ban = calloc((size_t)params->n_ban + 1, sizeof *beam->ban);
    beam->live = calloc(n, sizeof *beam->live);
    beam->t_live = calloc(n, sizeof *beam->t_live);
    beam->fin = calloc(n, sizeof *beam->fin);
    beam->t_fin = calloc(n, sizeof *beam->t_fin);
    beam->cand = calloc((size_t)n * beam->n_keep, sizeof *beam->cand);
    beam->row_id = calloc(beam->n_keep, sizeof *beam->row_id);
    beam->row_logit = calloc(beam->n_keep, sizeof *beam->row_logit);
    if (!beam->eos || !beam->ban || !beam->live || !beam->t_live || !beam->fin || !beam->t_fin ||
        !beam->cand || !beam->row_id || !beam->row_logit)
        goto no_memory;
    if (params->n_eos)
        memcpy(beam->eos, params->eos, params->n_eos * sizeof *beam->eos);
    if (params->n_ban)
        memcpy(beam->ban, params->ban, params->n_ban * sizeof *beam->ban);
    qsort(beam->ban, params->n_ban, sizeof *beam->ban, by_id);
    beam->par.eos = beam->eos;
    beam->par.ban = beam->ban;
    beam->live[0] = (struct esp_beam_live){.node = ESP_BEAM_NO_NODE};
    beam->n_live = 1;
    *out = beam;
    beam = NULL;
    goto done;
no_memory:
    st = esp_fail(err, ESP_E_NOMEM, "beam search with %" PRIu32 " beams", n);
done:
    esp_beam_destroy(&beam);
    return st;
}

void esp_beam_destroy(struct esp_beam **beam)
{
    struct esp_beam *b = *beam;

    if (!b)
        return;
    free(b->eos);
    free(b->ban);
    free(b->live);
    free(b->t_live);
    free(b->fin);
    free(b->t_fin);
    free(b->node);
    free(b->cand);
    free(b->row_id);
    free(b->row_logit);
    free(b->out_id);
    free(b->out_logprob);
    free(b);
    *beam = NULL;
}

void esp_beam_need(const struct esp_beam *beam, uint32_t *k, bool *need_full, bool *need_target,
                   uint32_t *target)
{
    const struct esp_beam_params *par = &beam->par;
    bool apart = par->rule == ESP_BEAM_BIG_VISION && par->n_eos > 0; /* end tokens that are not ranked */
    uint64_t want = (uint64_t)beam->n_keep + par->n_ban + (apart ? par->n_eos : 0);

    if (want > par->vocab)
        want = par->vocab;
    *need_target = apart;
    *target = apart ? par->eos[0] : 0;
    *need_full = want > ESP_CAND_MAX || (apart && par->n_eos > 1);
    *k = *need_full ? 0 : (uint32_t)want;
}

uint32_t esp_beam_n_live(const struct esp_beam *beam)
{
    return beam->done ? 0 : beam->n_live;
}

void esp_beam_tokens(const struct esp_beam *beam, uint32_t i, uint32_t *out)
{
    uint32_t at = beam->live[i].node;

    for (uint32_t t = beam->n_step; t-- > 0; at = beam->node[at].parent)
        out[t] = beam->node[at].token;
}

/* The row's n_keep best tokens that may continue a sequence, into row_id and row_logit. Returns how many. */
static uint32_t row_best(struct esp_beam *beam, const struct esp_cand_row *row)
{
    uint32_t n = 0;

    if (!row->full) {
        for (uint32_t i = 0; i < row->n && n < beam->n_keep; i++) {
            if (is_skipped(beam, row->ids[i]))
                continue;
            beam->row_id[n] = row->ids[i];
            beam->row_logit[n++] = row->logits[i];
        }
        return n;
    }
    for (uint32_t id = 0; id < row->vocab; id++) { /* insertion: rising ids, so equals keep their order */
        float x = row->full[id];
        uint32_t at;
        if ((n == beam->n_keep && x <= beam->row_logit[n - 1]) || is_skipped(beam, id))
            continue;
        at = n < beam->n_keep ? n++ : n - 1;
        for (; at > 0 && beam->row_logit[at - 1] < x; at--) {
            beam->row_id[at] = beam->row_id[at - 1];
            beam->row_logit[at] = beam->row_logit[at - 1];
        }
        beam->row_id[at] = id;
        beam->row_logit[at] = x;
    }
    return n;
}

static esp_status rows_check(const struct esp_beam *beam, const struct esp_cand_row *rows, uint32_t n_rows,
                             struct esp_err *err)
{
    bool need_full, need_target;
    uint32_t k, target;

    if (beam->done)
        return esp_fail(err, ESP_E_ARG, "the beam search is over");
    if (n_rows != beam->n_live)
        return esp_fail(err, ESP_E_ARG, "%" PRIu32 " rows for %" PRIu32 " living beams", n_rows,
                        beam->n_live);
    esp_beam_need(beam, &k, &need_full, &need_target, &target);
    for (uint32_t r = 0; r < n_rows; r++) {
        const struct esp_cand_row *row = &rows[r];
        esp_status st = esp_cand_row_check(row, err);
        if (st)
            return st;
        if (row->vocab != beam->par.vocab)
            return esp_fail(err, ESP_E_ARG, "beam %" PRIu32 ": a row of %" PRIu32 " logits, not %" PRIu32, r,
                            row->vocab, beam->par.vocab);
        if (row->full)
            continue;
        if (need_full)
            return esp_fail(err, ESP_E_ARG, "beam %" PRIu32 ": all %" PRIu32 " logits are needed", r,
                            row->vocab);
        if (row->n < k)
            return esp_fail(err, ESP_E_ARG,
                            "beam %" PRIu32 ": %" PRIu32 " candidates, %" PRIu32 " are needed", r, row->n, k);
        if (need_target && !(row->has_target && row->target == target))
            return esp_fail(err, ESP_E_ARG, "beam %" PRIu32 ": the logit of token %" PRIu32 " is needed", r,
                            target);
    }
    return ESP_OK;
}

esp_status esp_beam_reserve(struct esp_beam *beam, uint32_t n, struct esp_err *err)
{
    uint32_t cap = beam->cap_node ? beam->cap_node : 256;
    struct esp_beam_node *grown;

    if (beam->cap_node - beam->n_node >= n)
        return ESP_OK;
    while (cap - beam->n_node < n)
        cap *= 2; /* at most 10 * ESP_BEAM_MAX nodes a step, ESP_BEAM_MAX_LEN steps: below 2^31 */
    grown = realloc(beam->node, cap * sizeof *grown);
    if (!grown)
        return esp_fail(err, ESP_E_NOMEM, "beam search: %" PRIu32 " tokens", cap);
    beam->node = grown;
    beam->cap_node = cap;
    return ESP_OK;
}

static uint32_t node_add(struct esp_beam *beam, uint32_t *n_node, uint32_t parent, uint32_t token,
                         double logprob)
{
    beam->node[*n_node] = (struct esp_beam_node){.parent = parent, .token = token, .logprob = logprob};
    return (*n_node)++;
}

/* Puts f behind all that score at least as much; what falls off the end of the n_beam best is forgotten. */
static void fin_insert(const struct esp_beam *beam, struct esp_beam_finished *fin, uint32_t *n_fin,
                       struct esp_beam_finished f)
{
    uint32_t at = *n_fin;

    while (at > 0 && fin[at - 1].score < f.score)
        at--;
    if (at == beam->par.n_beam)
        return;
    if (*n_fin < beam->par.n_beam)
        (*n_fin)++;
    memmove(&fin[at + 1], &fin[at], (*n_fin - 1 - at) * sizeof *fin);
    fin[at] = f;
}

double esp_beam_score(const struct esp_beam *beam, double sum, uint32_t n_tok)
{
    return beam->par.rule == ESP_BEAM_HF ? sum / pow(n_tok, beam->par.length_penalty) : sum;
}

esp_status esp_beam_unroll(struct esp_beam *beam, const struct esp_beam_finished *fin, uint32_t n_fin,
                           struct esp_err *err)
{
    size_t n = 0;

    for (uint32_t i = 0; i < n_fin; i++)
        n += fin[i].n_tok;
    beam->out_id = calloc(n + 1, sizeof *beam->out_id);
    beam->out_logprob = calloc(n + 1, sizeof *beam->out_logprob);
    if (!beam->out_id || !beam->out_logprob) {
        free(beam->out_id);
        free(beam->out_logprob);
        beam->out_id = NULL;
        beam->out_logprob = NULL;
        return esp_fail(err, ESP_E_NOMEM, "beam search: %zu tokens", n);
    }
    n = 0;
    for (uint32_t i = 0; i < n_fin; i++) {
        uint32_t at = fin[i].node;
        for (uint32_t t = fin[i].n_tok; t-- > 0; at = beam->node[at].parent) {
            beam->out_id[n + t] = beam->node[at].token;
            beam->out_logprob[n + t] = beam->node[at].logprob;
        }
        n += fin[i].n_tok;
    }
    return ESP_OK;
}

/* big_vision: every living sequence ends right here, by every end token. */
static void end_here(struct esp_beam *beam, const struct esp_cand_row *rows, uint32_t n_tok, uint32_t *n_node,
                     uint32_t *n_fin)
{
    for (uint32_t r = 0; r < beam->n_live; r++) {
        for (uint32_t i = 0; i < beam->par.n_eos; i++) {
            uint32_t id = beam->eos[i];
            double lp, sum;
            if (is_banned(beam, id))
                continue;
            lp = esp_cand_logprob(&rows[r], rows[r].full ? rows[r].full[id] : rows[r].target_logit);
            sum = beam->live[r].sum + lp;
            fin_insert(beam, beam->t_fin, n_fin,
                       (struct esp_beam_finished){.node = node_add(beam, n_node, beam->live[r].node, id, lp),
                                                  .n_tok = n_tok,
                                                  .has_eos = true,
                                                  .sum = sum,
                                                  .score = sum});
        }
    }
}

esp_status esp_beam_step(struct esp_beam *beam, struct esp_beam_next *next, uint32_t *n_next, bool *done,
                         const struct esp_cand_row *rows, uint32_t n_rows, struct esp_err *err)
{
    const uint32_t n_beam = beam->par.n_beam, n_tok = beam->n_step + 1;
    const bool hf = beam->par.rule == ESP_BEAM_HF, last = n_tok == beam->par.max_tokens;
    uint32_t n_cand = 0, n_live = 0, n_fin = beam->n_fin, n_node = beam->n_node;
    bool over = last;
    esp_status st;

    *n_next = 0;
    *done = false;
    st = rows_check(beam, rows, n_rows, err);
    if (!st)
        st = esp_beam_reserve(beam, n_beam * (2 + ESP_BEAM_MAX_EOS), err);
    if (st)
        return st;

    for (uint32_t r = 0; r < n_rows; r++) {
        uint32_t n = row_best(beam, &rows[r]);
        for (uint32_t i = 0; i < n; i++) {
            double lp = esp_cand_logprob(&rows[r], beam->row_logit[i]);
            beam->cand[n_cand++] = (struct esp_beam_cand){
                .sum = beam->live[r].sum + lp, .logprob = lp, .parent = r, .token = beam->row_id[i]};
        }
    }
    qsort(beam->cand, n_cand, sizeof *beam->cand, by_rank);
    if (n_cand > beam->n_keep)
        n_cand = beam->n_keep;

    memcpy(beam->t_fin, beam->fin, n_fin * sizeof *beam->fin);
    if (!hf)
        end_here(beam, rows, n_tok, &n_node, &n_fin);
    for (uint32_t i = 0; i < n_cand; i++) {
        const struct esp_beam_cand *c = &beam->cand[i];
        bool eos = hf && esp_beam_is_eos(beam, c->token);
        if (hf && (eos || last) && i < n_beam)
            fin_insert(beam, beam->t_fin, &n_fin,
                       (struct esp_beam_finished){
                           .node = node_add(beam, &n_node, beam->live[c->parent].node, c->token, c->logprob),
                           .n_tok = n_tok,
                           .has_eos = eos,
                           .sum = c->sum,
                           .score = esp_beam_score(beam, c->sum, n_tok)});
        if (eos || n_live == n_beam)
            continue;
        next[n_live] = (struct esp_beam_next){.parent = c->parent, .token = c->token};
        beam->t_live[n_live++] = (struct esp_beam_live){
            .node = node_add(beam, &n_node, beam->live[c->parent].node, c->token, c->logprob), .sum = c->sum};
    }
    if (n_live == 0 && n_fin == 0)
        return esp_fail(err, ESP_E_ARG, "--ban: every token that could come next is forbidden");
    if (!hf && last && n_fin == 0) /* nothing may end: what lives is the answer */
        for (uint32_t i = 0; i < n_live; i++)
            fin_insert(beam, beam->t_fin, &n_fin,
                       (struct esp_beam_finished){.node = beam->t_live[i].node,
                                                  .n_tok = n_tok,
                                                  .sum = beam->t_live[i].sum,
                                                  .score = beam->t_live[i].sum});
    if (n_live == 0)
        over = true;
    else if (hf && n_fin == n_beam)
        over = over || !(esp_beam_score(beam, beam->t_live[0].sum, n_tok) > beam->t_fin[n_fin - 1].score);
    else if (!hf && n_fin > 0)
        over = over || !(beam->t_live[0].sum > beam->t_fin[0].sum);
    if (over) {
        st = esp_beam_unroll(beam, beam->t_fin, n_fin, err);
        if (st)
            return st;
    }

    memcpy(beam->fin, beam->t_fin, n_fin * sizeof *beam->fin);
    memcpy(beam->live, beam->t_live, n_live * sizeof *beam->live);
    beam->n_fin = n_fin;
    beam->n_live = n_live;
    beam->n_node = n_node;
    beam->n_step = n_tok;
    beam->done = over;
    *done = over;
    *n_next = over ? 0 : n_live;
    return ESP_OK;
}

bool esp_beam_result(const struct esp_beam *beam, uint32_t i, struct esp_beam_hyp *out)
{
    size_t at = 0;

    if (!beam->done || i >= beam->n_fin)
        return false;
    for (uint32_t j = 0; j < i; j++)
        at += beam->fin[j].n_tok;
    *out = (struct esp_beam_hyp){.ids = beam->out_id + at,
                                 .logprobs = beam->out_logprob + at,
                                 .n_tok = beam->fin[i].n_tok,
                                 .n_text = beam->fin[i].n_tok - (beam->fin[i].has_eos ? 1 : 0),
                                 .has_eos = beam->fin[i].has_eos,
                                 .sum = beam->fin[i].sum,
                                 .score = beam->fin[i].score};
    return true;
}
