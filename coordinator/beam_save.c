/* A search's state as bytes, and back. What follows from the tree (lengths, sums, scores) is not stored but computed
 * again, in the order in which it was: the bits are the same, and nothing in a record can contradict itself. */
#include <math.h>
#include <stdlib.h>

#include "coordinator/beam_state.h"

#define NODE_BYTES 16
#define LIVE_BYTES 4
#define FIN_BYTES  5

void esp_beam_save(const struct esp_beam *beam, uint32_t *n_saved, struct esp_bytes *out)
{
    esp_put_u32(out, *n_saved);
    esp_put_u32(out, beam->n_node - *n_saved);
    for (uint32_t i = *n_saved; i < beam->n_node; i++) {
        esp_put_u32(out, beam->node[i].parent);
        esp_put_u32(out, beam->node[i].token);
        esp_put_f64(out, beam->node[i].logprob);
    }
    esp_put_u32(out, beam->n_live);
    for (uint32_t i = 0; i < beam->n_live; i++)
        esp_put_u32(out, beam->live[i].node);
    esp_put_u32(out, beam->n_fin);
    for (uint32_t i = 0; i < beam->n_fin; i++) {
        esp_put_u32(out, beam->fin[i].node);
        esp_put_u8(out, beam->fin[i].has_eos);
    }
    *n_saved = beam->n_node;
}

static esp_status damaged(struct esp_err *err, const char *what)
{
    return esp_fail(err, ESP_E_FORMAT, "beam search: %s", what);
}

static esp_status load_nodes(struct esp_beam *beam, struct esp_reader *in, struct esp_err *err)
{
    const uint32_t from = esp_get_u32(in), n = esp_get_count(in, NODE_BYTES);
    esp_status st;

    if (in->failed || from != beam->n_node)
        return damaged(err, "tokens that do not follow those before");
    st = esp_beam_reserve(beam, n, err);
    if (st)
        return st;
    for (uint32_t i = 0; i < n; i++) {
        struct esp_beam_node *node = &beam->node[beam->n_node];

        node->parent = esp_get_u32(in);
        node->token = esp_get_u32(in);
        node->logprob = esp_get_f64(in);
        if ((node->parent >= beam->n_node && node->parent != ESP_BEAM_NO_NODE) ||
            node->token >= beam->par.vocab || !isfinite(node->logprob) || node->logprob > 0)
            return damaged(err, "a token that cannot be");
        beam->n_node++;
    }
    return ESP_OK;
}

esp_status esp_beam_load(struct esp_beam *beam, struct esp_reader *in, struct esp_err *err)
{
    esp_status st = load_nodes(beam, in, err);

    if (st)
        return st;
    beam->n_live = esp_get_count(in, LIVE_BYTES);
    if (beam->n_live > beam->par.n_beam) {
        beam->n_live = 0;
        return damaged(err, "too many sequences");
    }
    for (uint32_t i = 0; i < beam->n_live; i++) {
        beam->live[i].node = esp_get_u32(in);
        if (beam->live[i].node >= beam->n_node)
            return damaged(err, "a sequence without a token");
    }
    beam->n_fin = esp_get_count(in, FIN_BYTES);
    if (beam->n_fin > beam->par.n_beam) {
        beam->n_fin = 0;
        return damaged(err, "too many finished sequences");
    }
    for (uint32_t i = 0; i < beam->n_fin; i++) {
        beam->fin[i].node = esp_get_u32(in);
        beam->fin[i].has_eos = esp_get_u8(in) != 0;
        if (beam->fin[i].node >= beam->n_node)
            return damaged(err, "a finished sequence without a token");
    }
    return in->failed ? damaged(err, "a record that ends too early") : ESP_OK;
}

/* Length and sum of the sequence that ends in a node; false if it is longer than `max`. */
static bool walk(const struct esp_beam *beam, uint32_t node, uint32_t max, double *scratch, uint32_t *n_tok,
                 double *sum)
{
    uint32_t n = 0;

    for (; node != ESP_BEAM_NO_NODE; node = beam->node[node].parent) { /* parents come before: it ends */
        if (n == max)
            return false;
        scratch[n++] = beam->node[node].logprob;
    }
    *n_tok = n;
    *sum = 0;
    while (n > 0)
        *sum += scratch[--n]; /* from the first on, as it was added up */
    return true;
}

static esp_status load_sums(struct esp_beam *beam, double *scratch, struct esp_err *err)
{
    uint32_t n_tok;

    for (uint32_t i = 0; i < beam->n_live; i++)
        if (!walk(beam, beam->live[i].node, beam->n_step, scratch, &n_tok, &beam->live[i].sum) ||
            n_tok != beam->n_step)
            return damaged(err, "a sequence of another length");
    for (uint32_t i = 0; i < beam->n_fin; i++) {
        struct esp_beam_finished *f = &beam->fin[i];

        if (!walk(beam, f->node, beam->n_step, scratch, &f->n_tok, &f->sum))
            return damaged(err, "a finished sequence that is too long");
        if (f->has_eos ? !esp_beam_is_eos(beam, beam->node[f->node].token) : f->n_tok != beam->par.max_tokens)
            return damaged(err, "a finished sequence without an end");
        f->score = esp_beam_score(beam, f->sum, f->n_tok);
        if (i > 0 && !(beam->fin[i - 1].score >= f->score))
            return damaged(err, "finished sequences out of order");
    }
    return ESP_OK;
}

esp_status esp_beam_load_end(struct esp_beam *beam, uint32_t n_step, bool done, struct esp_err *err)
{
    double *scratch;
    esp_status st;

    if (n_step == 0 || n_step > beam->par.max_tokens || (!done && n_step == beam->par.max_tokens) ||
        (done ? beam->n_fin == 0 : beam->n_live == 0))
        return damaged(err, "a state that cannot be");
    scratch = malloc(n_step * sizeof *scratch);
    if (!scratch)
        return esp_fail(err, ESP_E_NOMEM, "beam search: %u tokens", n_step);
    beam->n_step = n_step;
    st = load_sums(beam, scratch, err);
    free(scratch);
    if (!st && done)
        st = esp_beam_unroll(beam, beam->fin, beam->n_fin, err);
    beam->done = !st && done;
    return st;
}

uint32_t esp_beam_last(const struct esp_beam *beam, uint32_t i)
{
    return beam->node[beam->live[i].node].token;
}

uint32_t esp_beam_n_nodes(const struct esp_beam *beam)
{
    return beam->n_node;
}
