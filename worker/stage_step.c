/* A step: sequences' rows through the decoder layers, and the candidates of those whose logits are wanted. */
#include "worker/stage_state.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Everything about one sequence's rows that can be wrong, before anything is reserved for them. */
static esp_status seq_check(const struct esp_stage *s, const struct esp_seq_rows *q, struct esp_err *err)
{
    const uint32_t have = esp_kv_len(s->kv, q->seq);
    const unsigned long long id = (unsigned long long)q->seq;

    if (q->pos != have)
        return esp_fail(err, ESP_E_PROTO, "sequence %llu: position %u, expected %u", id, q->pos, have);
    if (q->pos > 0 && !esp_kv_exists(s->kv, q->seq))
        return esp_fail(err, ESP_E_PROTO, "sequence %llu is unknown", id);
    if (q->n_prefix == 0 || (q->pos == 0 ? q->n_tok : q->pos) < q->n_prefix)
        return esp_fail(err, ESP_E_PROTO, "sequence %llu: a prefix of %u comes whole in the first step", id,
                        q->n_prefix);
    if (q->n_tok > s->spec.max_rows - q->pos) /* pos <= max_rows: the cache holds no longer sequence */
        return esp_fail(err, ESP_E_LIMIT, "sequence %llu: %u positions, this placement takes %u", id,
                        q->pos + q->n_tok, s->spec.max_rows);
    if (!s->spec.embed)
        return ESP_OK;
    if (q->n_images && (q->pos > 0 || q->n_images > q->n_prefix / s->c->vision.n_token))
        return esp_fail(err, ESP_E_PROTO, "sequence %llu: %u images in a prefix of %u at position %u", id,
                        q->n_images, q->n_prefix, q->pos);
    for (uint32_t i = 0; i < q->n_images; i++)
        if (q->images[i] == 0 || esp_stage_image_slot(s, q->images[i]) == ESP_NONE)
            return esp_fail(err, ESP_E_PROTO, "sequence %llu: image %llu is not here", id,
                            (unsigned long long)q->images[i]);
    return ESP_OK;
}

static esp_status step_check(const struct esp_stage *s, const struct esp_msg_step *m, const void *data,
                             struct esp_err *err)
{
    const enum esp_payload payload = s->spec.embed ? ESP_PAYLOAD_TOKENS : ESP_PAYLOAD_ROWS;
    const uint32_t width = s->spec.embed ? 1 : s->c->text.width;
    esp_status st = ESP_OK;

    if (m->payload != payload || m->width != width)
        return esp_fail(err, ESP_E_PROTO, "this stage takes %s of width %u, got width %u",
                        s->spec.embed ? "tokens" : "rows", width, m->width);
    if (m->rows > s->spec.max_rows)
        return esp_fail(err, ESP_E_LIMIT, "%u rows in a step, this placement takes %u", m->rows,
                        s->spec.max_rows);
    if (m->n_seqs > s->spec.max_seqs)
        return esp_fail(err, ESP_E_LIMIT, "%u sequences in a step, this placement takes %u", m->n_seqs,
                        s->spec.max_seqs);
    for (uint32_t i = 0; !st && i < m->n_seqs; i++)
        st = seq_check(s, &m->seqs[i], err);
    for (uint32_t i = 0; !st && s->spec.embed && i < m->rows; i++) {
        int32_t id;
        memcpy(&id, (const char *)data + (size_t)i * 4, 4);
        if (id < 0 || (uint32_t)id >= s->c->text.vocab)
            st = esp_fail(err, ESP_E_PROTO, "row %u: id %d is outside of the vocabulary of %u", i, id,
                          s->c->text.vocab);
    }
    for (uint32_t i = 0; !st && i < m->n_wants; i++)
        if (m->wants[i].has_target && m->wants[i].target >= s->c->text.vocab)
            st = esp_fail(err, ESP_E_PROTO, "target %u is outside of the vocabulary of %u",
                          m->wants[i].target, s->c->text.vocab);
    return st;
}

/* The rows of one sequence into the batch; its KV room is reserved. few: they go through the kernels of decoding. */
static void seq_rows(struct esp_stage *s, const struct esp_seq_rows *q, const void *ids, uint32_t row0,
                     bool few)
{
    const struct esp_text_config *t = &s->c->text;
    const uint32_t n_feature = s->spec.embed ? q->n_images * s->c->vision.n_token : 0;
    uint32_t n_blocks = 0;
    const uint32_t *blocks = esp_kv_blocks(s->kv, q->seq, &n_blocks);
    const uint32_t table = esp_batch_table(&s->batch, blocks, n_blocks);

    for (uint32_t i = 0; i < (s->spec.embed ? q->n_images : 0); i++)
        s->slots[i] = esp_stage_image_slot(s, q->images[i]);
    for (uint32_t i = 0; i < q->n_tok; i++) {
        const uint32_t pos = q->pos + i;
        const bool prefix = pos < q->n_prefix;
        const uint32_t lo_win = !prefix && t->window && pos + 1 > t->window ? pos + 1 - t->window : 0;
        uint32_t src = 0;
        if (i < n_feature)
            src = ESP_ROW_FEATURE |
                  (s->slots[i / s->c->vision.n_token] * s->c->vision.n_token + i % s->c->vision.n_token);
        else if (s->spec.embed)
            memcpy(&src, (const char *)ids + (size_t)(row0 + i) * 4, 4);
        esp_batch_row(&s->batch, src, pos, prefix ? q->n_prefix : pos + 1, lo_win,
                      blocks[pos / ESP_KV_BLOCK] * ESP_KV_BLOCK + pos % ESP_KV_BLOCK);
    }
    esp_batch_tiles(&s->batch, row0, q->n_tok, table,
                    esp_attn_tile_rows(s->vk, few, t->n_head, t->n_kv_head, esp_pack_head_dim(t->head_dim)));
}

/* One want's candidates from the words that topk left. */
static esp_status result_take(struct esp_stage *s, const uint32_t *words, const struct esp_want *want,
                              struct esp_row_result *out, struct esp_err *err)
{
    const uint32_t k = want->k < s->c->text.vocab ? want->k : s->c->text.vocab;
    float top[3]; /* max, sum, target */
    uint32_t *ids = malloc((k + 1) * sizeof *ids);
    float *logits = malloc((k + 1) * sizeof *logits);

    out->row = want->row;
    out->ids = ids;
    out->logits = logits;
    if (!ids || !logits)
        return esp_fail(err, ESP_E_NOMEM, "candidates");
    memcpy(top, words, sizeof top);
    if (!isfinite(top[ESP_TOP_MAX]) || !isfinite(top[ESP_TOP_SUM]) || !isfinite(top[ESP_TOP_TARGET]))
        return esp_stage_no_number(s, err, "a logit of row %u", want->row);
    out->n = k;
    out->lse = (float)((double)top[ESP_TOP_MAX] + log((double)top[ESP_TOP_SUM]));
    out->target_logit = want->has_target ? top[ESP_TOP_TARGET] : 0.0f;
    memcpy(ids, words + ESP_TOP_IDS, k * sizeof *ids);
    memcpy(logits, words + ESP_TOP_LOGITS, k * sizeof *logits);
    return ESP_OK;
}

/* Candidates of all wants, ESP_HEAD_ROWS at a time. The layers have run. */
static esp_status head_run(struct esp_stage *s, const struct esp_msg_step *m, struct esp_stage_out *out,
                           struct esp_err *err)
{
    const uint32_t vocab = s->c->text.vocab;
    esp_status st = esp_stage_results_make(out, m, vocab, err);

    for (uint32_t i = 0; !st && i < m->n_wants; i += ESP_HEAD_ROWS) {
        const uint32_t n = m->n_wants - i < ESP_HEAD_ROWS ? m->n_wants - i : ESP_HEAD_ROWS;
        const enum esp_decode_few few = esp_few_for(n);
        const struct esp_program *programs[2] = {&s->ps.head[few], &s->ps.full};
        bool full = false;

        for (uint32_t j = 0; j < n; j++)
            full = full || m->wants[i + j].full;
        st = esp_programs_few(&s->ps, few, &s->space, &s->weights, s->c, &s->spec, err);
        if (st)
            break;
        esp_batch_wants(&s->batch, m->wants + i, n);
        esp_batch_seal(&s->batch, &s->ps.grids);
        st = esp_stage_run(s, programs, full ? 2 : 1, false, false, out, err);
        for (uint32_t j = 0; !st && j < n; j++) {
            const uint32_t *words = (const uint32_t *)s->space.out.map + (size_t)j * ESP_TOP;
            st = result_take(s, words, &m->wants[i + j], &out->results[i + j], err);
            out->n_results++;
            if (!st && m->wants[i + j].full)
                memcpy(out->full + (size_t)out->n_full++ * vocab,
                       (const float *)s->space.out.map + s->ps.at.full_at + (size_t)j * vocab,
                       vocab * sizeof *out->full);
        }
    }
    return st;
}

static esp_status step_run(struct esp_stage *s, const struct esp_msg_step *m, const void *data,
                           struct esp_stage_out *out, struct esp_err *err)
{
    const struct esp_program *program = &s->ps.prefill;
    bool prefix = false;
    uint32_t row = 0;
    esp_status st = ESP_OK;

    for (uint32_t i = 0; i < m->n_seqs; i++)
        prefix = prefix || m->seqs[i].pos < m->seqs[i].n_prefix;
    for (uint32_t i = 0; i < m->n_seqs; i++) {
        seq_rows(s, &m->seqs[i], data, row, !prefix);
        row += m->seqs[i].n_tok;
    }
    if (!prefix) { /* a few rows a sequence: matrix-vector kernels, whatever the number of sequences */
        enum esp_decode_few few = esp_few_for(m->rows);
        if (s->ps.at.max_items && !esp_batch_items(&s->batch, s->ps.at.max_items))
            few = ESP_FEW_WHOLE;
        st = esp_programs_few(&s->ps, few, &s->space, &s->weights, s->c, &s->spec, err);
        program = &s->ps.decode[few];
    }
    if (st)
        return st;
    if (!s->spec.embed)
        memcpy(s->space.in.map, data, (size_t)m->rows * m->width * sizeof(float));
    esp_batch_seal(&s->batch, &s->ps.grids);
    /* a step of decoding that goes round and round is no short piece of work either */
    st = esp_stage_run(s, &program, 1, prefix || m->rows > 64, m->trace, out, err);
    if (!st && s->spec.head && m->trace) {
        program = &s->ps.norm_all;
        st = esp_stage_run(s, &program, 1, false, true, out, err);
    }
    if (!st && s->spec.head)
        return head_run(s, m, out, err);
    if (!st)
        st = esp_stage_take_rows(s, m->rows, s->c->text.width, out, err);
    out->payload = ESP_PAYLOAD_ROWS;
    return st;
}

esp_status esp_stage_step(struct esp_stage *s, const struct esp_msg_step *m, const void *data,
                          struct esp_stage_out *out, struct esp_err *err)
{
    const struct esp_kv_copy *copies = NULL;
    uint32_t n_copies = 0;
    esp_status st = ESP_OK;

    memset(out, 0, sizeof *out);
    if (s->lost)
        return esp_fail(err, ESP_E_DEVICE, "the device is lost");
    if (!s->kv)
        return esp_fail(err, ESP_E_PROTO, "this stage has no decoder layers");
    for (uint32_t i = 0; i < m->n_free; i++)
        esp_kv_free(s->kv, m->free[i]);
    for (uint32_t i = 0; i < m->n_forks; i++) {
        esp_status forked = esp_kv_fork(s->kv, m->forks[i].seq, m->forks[i].from, st ? NULL : err);
        st = st ? st : forked;
    }
    if (st || (st = step_check(s, m, data, err)))
        return st;
    for (uint32_t i = 0; i < m->n_seqs; i++)
        s->appends[i] = (struct esp_kv_append){m->seqs[i].seq, m->seqs[i].n_tok};
    st = esp_kv_plan(s->kv, s->appends, m->n_seqs, &copies, &n_copies, err);
    if (st)
        return st;
    esp_batch_begin(&s->batch);
    for (uint32_t i = 0; i < n_copies; i++)
        esp_batch_copy(&s->batch, copies[i].from, copies[i].to);
    s->stepping = true;
    st = step_run(s, m, data, out, err);
    s->stepping = false;
    if (st)
        esp_kv_rollback(s->kv);
    else
        esp_kv_commit(s->kv);
    if (st && st != ESP_E_NUMBERS) /* of those, traces tell where they began */
        esp_stage_out_finish(out);
    return st;
}

void esp_stage_release(struct esp_stage *s, const struct esp_msg_release *m)
{
    for (uint32_t i = 0; s->kv && i < m->n_seqs; i++)
        esp_kv_free(s->kv, m->seqs[i]);
    for (uint32_t i = 0; s->images && i < m->n_images; i++) {
        uint32_t slot = m->images[i] ? esp_stage_image_slot(s, m->images[i]) : ESP_NONE;
        if (slot != ESP_NONE)
            s->images[slot] = 0;
    }
}
