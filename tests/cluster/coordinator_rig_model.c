/* The fake model of coordinator_rig.h, and the books of its sequences. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/cluster/coordinator_rig.h"

static uint64_t mix(uint64_t h, uint64_t v)
{
    h ^= v + 0x9e3779b97f4a7c15u + (h << 6) + (h >> 2);
    h *= 0xbf58476d1ce4e5b9u;
    return h ^ (h >> 29);
}

void rig_logits(float *out, const uint32_t *tok, uint32_t n_tok)
{
    uint64_t h = 7;

    for (uint32_t i = 0; i < n_tok; i++)
        h = mix(h, tok[i]);
    for (uint32_t v = 0; v < RIG_VOCAB; v++)
        out[v] = (float)(mix(h, v) >> 40) / (float)(1 << 24) * 8.0f;
    if (h % 7 == 0)
        out[RIG_EOS] = 9.0f; /* sooner or later every answer ends */
}

static float lse_of(const float *logits)
{
    double top = logits[0], sum = 0;

    for (uint32_t v = 1; v < RIG_VOCAB; v++)
        top = logits[v] > top ? logits[v] : top;
    for (uint32_t v = 0; v < RIG_VOCAB; v++)
        sum += exp(logits[v] - top);
    return (float)(top + log(sum));
}

static struct rig_seq **find_seq(struct rig *rig, uint64_t id)
{
    for (int i = 0; i < RIG_SEQS; i++)
        if (rig->seq[i] && rig->seq[i]->id == id)
            return &rig->seq[i];
    return NULL;
}

static struct rig_seq *new_seq(struct rig *rig, uint64_t id)
{
    assert_null(find_seq(rig, id));
    for (int i = 0; i < RIG_SEQS; i++) {
        if (rig->seq[i])
            continue;
        rig->seq[i] = calloc(1, sizeof *rig->seq[i]);
        assert_non_null(rig->seq[i]);
        rig->seq[i]->id = id;
        return rig->seq[i];
    }
    fail_msg("more sequences than a worker may hold");
    return NULL;
}

uint32_t rig_n_seqs(const struct rig *rig)
{
    uint32_t n = 0;

    for (int i = 0; i < RIG_SEQS; i++)
        n += rig->seq[i] != NULL;
    return n;
}

void rig_free_seq(struct rig *rig, uint64_t id)
{
    struct rig_seq **s = find_seq(rig, id);

    if (s) {
        free(*s);
        *s = NULL;
    }
}

/* Applies a step's frees, forks and rows, as every stage does, and says which sequence and place each row is.
 */
static void apply(struct rig *rig, const struct esp_msg *msg, struct rig_seq **row_seq, uint32_t *row_pos)
{
    const struct esp_msg_step *m = &msg->step;
    uint32_t row = 0;

    assert_int_equal(m->payload, ESP_PAYLOAD_TOKENS);
    assert_int_equal(m->id, rig->last_step + 1); /* grows by one */
    rig->last_step = m->id;
    rig->max_rows = m->rows > rig->max_rows ? m->rows : rig->max_rows;
    rig->max_seqs = m->n_seqs > rig->max_seqs ? m->n_seqs : rig->max_seqs;
    for (uint32_t i = 0; i < m->n_free; i++) {
        assert_non_null(find_seq(rig, m->free[i]));
        rig_free_seq(rig, m->free[i]);
    }
    for (uint32_t i = 0; i < m->n_forks; i++) {
        struct rig_seq **from = find_seq(rig, m->forks[i].from), *to;

        assert_non_null(from);
        to = new_seq(rig, m->forks[i].seq);
        to->n_tok = (*from)->n_tok;
        to->n_prefix = (*from)->n_prefix;
        memcpy(to->tok, (*from)->tok, sizeof to->tok);
    }
    for (uint32_t i = 0; i < m->n_seqs; i++) {
        const struct esp_seq_rows *r = &m->seqs[i];
        struct rig_seq *s;

        if (r->pos == 0) {
            s = new_seq(rig, r->seq);
            s->n_prefix = r->n_prefix;
            for (uint32_t j = 0; j < r->n_images; j++) {
                bool here = false;
                for (uint32_t k = 0; k < rig->n_images; k++)
                    here |= rig->image[k] == r->images[j];
                assert_true(here);
            }
        } else {
            assert_non_null(find_seq(rig, r->seq));
            s = *find_seq(rig, r->seq);
        }
        assert_int_equal(r->pos, s->n_tok);
        assert_int_equal(r->n_prefix, s->n_prefix);
        for (uint32_t j = 0; j < r->n_tok; j++, row++) {
            int32_t id;
            memcpy(&id, (const char *)msg->blob[0].data + row * sizeof id, sizeof id);
            assert_true(id >= 0 && id < RIG_VOCAB);
            assert_true(s->n_tok < RIG_SEQ_TOKENS);
            s->tok[s->n_tok++] = (uint32_t)id;
            row_seq[row] = s;
            row_pos[row] = s->n_tok;
        }
    }
    assert_int_equal(row, m->rows);
}

void rig_result(struct rig *rig, struct esp_msg *out, const struct esp_msg *step)
{
    const struct esp_msg_step *m = &step->step;
    struct rig_seq **row_seq = calloc(m->rows, sizeof *row_seq);
    uint32_t *row_pos = calloc(m->rows, sizeof *row_pos);
    struct esp_row_result *rows = calloc(m->n_wants + 1, sizeof *rows);
    static const struct esp_stage_time times[] = {{"w0", 0.001, 0.002, 100}, {"w1", 0.003, 0.004, 200}};
    float *full;
    uint32_t n_full = 0;

    assert_true(row_seq && row_pos && rows);
    apply(rig, step, row_seq, row_pos);
    for (uint32_t i = 0; i < m->n_wants; i++)
        n_full += m->wants[i].full;
    full = calloc((size_t)n_full * RIG_VOCAB + 1, sizeof *full);
    assert_non_null(full);
    memset(out, 0, sizeof *out);
    out->kind = ESP_MSG_RESULT;
    out->result = (struct esp_msg_result){
        .epoch = m->epoch, .step = m->id, .n_rows = m->n_wants, .rows = rows, .times = times, .n_times = 2};
    for (uint32_t i = 0; i < m->n_wants; i++) {
        const struct esp_want *w = &m->wants[i];
        float logits[RIG_VOCAB], *l = logits;
        uint32_t *ids = calloc(w->k + 1, sizeof *ids);
        float *tops = calloc(w->k + 1, sizeof *tops);

        assert_true(ids && tops);
        rig_logits(l, row_seq[w->row]->tok, row_pos[w->row]);
        rows[i] =
            (struct esp_row_result){.row = w->row, .lse = lse_of(l), .n = w->k, .ids = ids, .logits = tops};
        if (w->has_target)
            rows[i].target_logit = l[w->target];
        if (w->full)
            memcpy(full + (size_t)out->result.n_full++ * RIG_VOCAB, l, sizeof logits);
        for (uint32_t k = 0; k < w->k; k++) {
            uint32_t best = 0;
            for (uint32_t v = 1; v < RIG_VOCAB; v++)
                if (l[v] > l[best])
                    best = v;
            ids[k] = best;
            tops[k] = l[best];
            l[best] = -INFINITY;
        }
    }
    if (n_full) {
        out->result.vocab = RIG_VOCAB;
        out->n_blobs = 1;
        out->blob[0] = (struct esp_blob){.data = full, .n_bytes = (size_t)n_full * RIG_VOCAB * sizeof *full};
    } else {
        free(full);
    }
    free(row_seq);
    free(row_pos);
}

void rig_result_finish(struct esp_msg *out)
{
    for (uint32_t i = 0; i < out->result.n_rows; i++) {
        free((void *)out->result.rows[i].ids);
        free((void *)out->result.rows[i].logits);
    }
    free((void *)out->result.rows);
    if (out->n_blobs)
        free((void *)out->blob[0].data);
    memset(out, 0, sizeof *out);
}

void rig_drop_seqs(struct rig *rig)
{
    for (int i = 0; i < RIG_SEQS; i++) {
        free(rig->seq[i]);
        rig->seq[i] = NULL;
    }
    rig->n_images = 0;
    rig->last_step = 0;
}
