/* What holds between the fields of a message, and between them and its raw frames: a check a kind. */
#include <string.h>

#include "proto/wire_table.h"

static esp_status no_frames(const struct esp_msg *msg, struct esp_err *err)
{
    return msg->n_blobs == 0 ? ESP_OK : esp_wire_bad(err, "%u raw frames, takes none", msg->n_blobs);
}

/* The one frame of a tensor of rows x width elements of 4 bytes (f32 or i32). */
static esp_status one_tensor(const struct esp_msg *msg, uint32_t rows, uint32_t width, struct esp_err *err)
{
    size_t want;

    if (msg->n_blobs != 1)
        return esp_wire_bad(err, "%u raw frames, takes 1", msg->n_blobs);
    if (!esp_mul(&want, rows, width) || !esp_mul(&want, want, 4) || msg->blob[0].n_bytes != want)
        return esp_wire_bad(err, "raw frame of %zu bytes for [%u,%u] of 4", msg->blob[0].n_bytes, rows,
                            width);
    return ESP_OK;
}

static bool is_set(const char *s)
{
    return s && *s;
}

esp_status esp_check_plain(const struct esp_msg *msg, struct esp_err *err)
{
    return no_frames(msg, err);
}

esp_status esp_check_welcome(const struct esp_msg *msg, struct esp_err *err)
{
    const struct esp_msg_welcome *m = &msg->welcome;

    if (m->timeout_ms <= m->heartbeat_ms)
        return esp_wire_bad(err, "timeout_ms: %u, not above heartbeat_ms %u", m->timeout_ms, m->heartbeat_ms);
    return no_frames(msg, err);
}

esp_status esp_check_place(const struct esp_msg *msg, struct esp_err *err)
{
    const struct esp_msg_place *m = &msg->place;
    bool enc = m->enc_lo < m->enc_hi, dec = m->dec_lo < m->dec_hi;

    if (m->enc_lo > m->enc_hi || m->dec_lo > m->dec_hi)
        return esp_wire_bad(err, "layers [%u,%u) and [%u,%u)", m->enc_lo, m->enc_hi, m->dec_lo, m->dec_hi);
    if (m->patch != (enc && m->enc_lo == 0))
        return esp_wire_bad(err, "patch %d with encoder layers [%u,%u)", m->patch, m->enc_lo, m->enc_hi);
    if (m->embed != (dec && m->dec_lo == 0))
        return esp_wire_bad(err, "embed %d with decoder layers [%u,%u)", m->embed, m->dec_lo, m->dec_hi);
    if (m->projector && !enc)
        return esp_wire_bad(err, "projector without encoder layers");
    if (m->head && !dec)
        return esp_wire_bad(err, "head without decoder layers");
    if (is_set(m->next_enc) != (enc && !m->projector))
        return esp_wire_bad(err, "next_enc: \"%s\" with encoder layers [%u,%u) and projector %d",
                            is_set(m->next_enc) ? m->next_enc : "", m->enc_lo, m->enc_hi, m->projector);
    /* Where the first decoder stage is this very worker, features need not travel. */
    if (is_set(m->features_to) ? !m->projector : m->projector && !m->embed)
        return esp_wire_bad(err, "features_to: \"%s\" with projector %d",
                            is_set(m->features_to) ? m->features_to : "", m->projector);
    if (is_set(m->next_dec) != (dec && !m->head))
        return esp_wire_bad(err, "next_dec: \"%s\" with decoder layers [%u,%u) and head %d",
                            is_set(m->next_dec) ? m->next_dec : "", m->dec_lo, m->dec_hi, m->head);
    if ((is_set(m->next_enc_key) && !is_set(m->next_enc)) ||
        (is_set(m->features_to_key) && !is_set(m->features_to)) ||
        (is_set(m->next_dec_key) && !is_set(m->next_dec)))
        return esp_wire_bad(err, "a key of a stage that is not named");
    if (dec && (m->max_rows == 0 || m->kv_tokens == 0 || m->max_seqs == 0))
        return esp_wire_bad(err, "decoder layers with max_rows %u, kv_tokens %u, max_seqs %u", m->max_rows,
                            m->kv_tokens, m->max_seqs);
    if (m->carry >= m->epoch)
        return esp_wire_bad(err, "carry: epoch %llu into epoch %llu", (unsigned long long)m->carry,
                            (unsigned long long)m->epoch);
    if (m->n_moves > 0 && (m->carry == 0 || m->warm))
        return esp_wire_bad(err, "n_moves: %u, but nothing is carried", m->n_moves);
    return no_frames(msg, err);
}

esp_status esp_check_warmed(const struct esp_msg *msg, struct esp_err *err)
{
    const struct esp_msg_warmed *m = &msg->warmed;

    if (m->loaded_bytes > m->weight_bytes)
        return esp_wire_bad(err, "%llu bytes loaded of %llu", (unsigned long long)m->loaded_bytes,
                            (unsigned long long)m->weight_bytes);
    return no_frames(msg, err);
}

esp_status esp_check_move(const struct esp_msg *msg, struct esp_err *err)
{
    const struct esp_msg_move *m = &msg->move;

    if (m->dec_lo > m->dec_hi)
        return esp_wire_bad(err, "layers [%u,%u)", m->dec_lo, m->dec_hi);
    if (m->dec_lo == m->dec_hi && m->n_images == 0)
        return esp_wire_bad(err, "of nothing");
    return no_frames(msg, err);
}

/* ---- weights over the wire ---- */

esp_status esp_check_manifest(const struct esp_msg *msg, struct esp_err *err)
{
    const struct esp_msg_manifest *m = &msg->manifest;
    uint64_t n_chunk = 0;

    if (m->chunk_bytes & (m->chunk_bytes - 1))
        return esp_wire_bad(err, "chunk_bytes: %u is no power of two", m->chunk_bytes);
    if (m->n_tensors == 0)
        return esp_wire_bad(err, "no tensors");
    for (uint32_t i = 0; i < m->n_tensors; i++) {
        const struct esp_tensor_info *t = &m->tensors[i];
        const bool quantised = t->dtype == 6 || t->dtype == 7;
        size_t n = t->dtype == 1 ? 4 : quantised ? 1 : 2; /* bytes */

        if (t->n_dim == 0)
            return esp_wire_bad(err, "tensors[%u]: no shape", i);
        for (uint32_t d = 0; d < t->n_dim; d++)
            if (!esp_mul(&n, n, t->shape[d]) || n > (size_t)1 << 40)
                return esp_wire_bad(err, "tensors[%u]: too large", i);
        if (t->dtype == 4 || t->dtype == 5)
            return esp_wire_bad(err, "tensors[%u]: dtype %u", i, t->dtype);
        if (quantised) { /* rows of blocks; all dimensions but the first are columns */
            const size_t n_row = t->shape[0], n_col = n_row ? n / n_row : 0;
            n = n_row * ((n_col + 31) / 32) * (t->dtype == 6 ? 34 : 18); /* at most 34 times 2^40 */
        }
        n_chunk += (n + m->chunk_bytes - 1) / m->chunk_bytes; /* 2^16 tensors of 2^24 chunks at most */
    }
    if (msg->n_blobs != 2)
        return esp_wire_bad(err, "%u raw frames, takes 2", msg->n_blobs);
    if (msg->blob[0].n_bytes == 0 || msg->blob[0].n_bytes > ESP_MAX_HEADER)
        return esp_wire_bad(err, "a config of %zu bytes, takes 1 .. %u", msg->blob[0].n_bytes,
                            ESP_MAX_HEADER);
    if (msg->blob[1].n_bytes / ESP_HASH_BYTES != n_chunk || msg->blob[1].n_bytes % ESP_HASH_BYTES)
        return esp_wire_bad(err, "hashes of %zu bytes for %llu chunks", msg->blob[1].n_bytes,
                            (unsigned long long)n_chunk);
    return ESP_OK;
}

esp_status esp_check_chunk(const struct esp_msg *msg, struct esp_err *err)
{
    if (is_set(msg->chunk.why))
        return no_frames(msg, err);
    if (msg->n_blobs != 1 || msg->blob[0].n_bytes == 0 || msg->blob[0].n_bytes > ESP_MAX_CHUNK)
        return esp_wire_bad(err, "%u raw frames, takes 1 of 1 .. %u bytes", msg->n_blobs, ESP_MAX_CHUNK);
    return ESP_OK;
}

esp_status esp_check_loading(const struct esp_msg *msg, struct esp_err *err)
{
    const struct esp_msg_loading *m = &msg->loading;

    if (m->done_bytes > m->total_bytes)
        return esp_wire_bad(err, "%llu bytes done of %llu", (unsigned long long)m->done_bytes,
                            (unsigned long long)m->total_bytes);
    return no_frames(msg, err);
}

esp_status esp_check_ready(const struct esp_msg *msg, struct esp_err *err)
{
    const struct esp_msg_ready *m = &msg->ready;

    if (m->kv_blocks > 0 && m->block_tokens == 0)
        return esp_wire_bad(err, "KV blocks of no tokens");
    return no_frames(msg, err);
}

esp_status esp_check_encode(const struct esp_msg *msg, struct esp_err *err)
{
    const struct esp_msg_encode *m = &msg->encode;

    if (m->payload == ESP_PAYLOAD_TOKENS)
        return esp_wire_bad(err, "payload: tokens");
    if (m->payload == ESP_PAYLOAD_PIXELS && (m->rows % 3 != 0 || m->rows / 3 != m->width))
        return esp_wire_bad(err, "pixels of [%u,%u], not [3*S,S]", m->rows, m->width);
    return one_tensor(msg, m->rows, m->width, err);
}

/* Rows of the sequences: positions that fit, whole prefixes, images at their place, and the sum. */
static esp_status check_seqs(const struct esp_msg_step *m, struct esp_err *err)
{
    uint64_t sum = 0;

    for (uint32_t i = 0; i < m->n_seqs; i++) {
        const struct esp_seq_rows *s = &m->seqs[i];
        if (s->n_tok > UINT32_MAX - s->pos)
            return esp_wire_bad(err, "seqs[%u]: %u rows from position %u", i, s->n_tok, s->pos);
        /* The prefix attends both ways, so its keys and values must all be there before any row of it
         * attends. */
        if (s->pos < s->n_prefix && (s->pos > 0 || s->n_tok < s->n_prefix))
            return esp_wire_bad(err, "seqs[%u]: %u rows from position %u do not hold the whole prefix of %u",
                                i, s->n_tok, s->pos, s->n_prefix);
        if (s->n_images > 0 && s->pos > 0)
            return esp_wire_bad(err, "seqs[%u]: images at position %u", i, s->pos);
        for (uint32_t j = 0; j < i; j++) { /* at most 1024 of them */
            if (m->seqs[j].seq == s->seq)
                return esp_wire_bad(err, "seqs[%u]: sequence %llu twice", i, (unsigned long long)s->seq);
        }
        sum += s->n_tok; /* 1024 * 131072 at most */
    }
    if (sum != m->rows)
        return esp_wire_bad(err, "%u rows, but the sequences have %llu", m->rows, (unsigned long long)sum);
    return ESP_OK;
}

esp_status esp_check_step(const struct esp_msg *msg, struct esp_err *err)
{
    const struct esp_msg_step *m = &msg->step;
    esp_status st;

    if (m->payload != ESP_PAYLOAD_TOKENS && m->payload != ESP_PAYLOAD_ROWS)
        return esp_wire_bad(err, "payload: %u, takes tokens or rows", (unsigned)m->payload);
    if (m->payload == ESP_PAYLOAD_TOKENS && m->width != 1)
        return esp_wire_bad(err, "width: %u, is 1 for tokens", m->width);
    for (uint32_t i = 0; i < m->n_forks; i++) {
        if (m->forks[i].seq == m->forks[i].from)
            return esp_wire_bad(err, "forks[%u]: of itself", i);
    }
    st = check_seqs(m, err);
    if (st)
        return st;
    for (uint32_t i = 0; i < m->n_wants; i++) {
        const struct esp_want *w = &m->wants[i];
        if (w->row >= m->rows)
            return esp_wire_bad(err, "wants[%u]: row %u of %u", i, w->row, m->rows);
        if (i > 0 && w->row <= m->wants[i - 1].row)
            return esp_wire_bad(err, "wants[%u]: row %u after row %u", i, w->row, m->wants[i - 1].row);
    }
    return one_tensor(msg, m->rows, m->width, err);
}

esp_status esp_check_result(const struct esp_msg *msg, struct esp_err *err)
{
    const struct esp_msg_result *m = &msg->result;

    for (uint32_t i = 0; i < m->n_rows; i++) {
        const struct esp_row_result *r = &m->rows[i];
        if (i > 0 && r->row <= m->rows[i - 1].row)
            return esp_wire_bad(err, "rows[%u]: row %u after row %u", i, r->row, m->rows[i - 1].row);
        if (r->n > 0 && (!r->ids || !r->logits))
            return esp_wire_bad(err, "rows[%u]: %u candidates and no array", i, r->n);
        for (uint32_t j = 1; j < r->n; j++) {
            if (r->logits[j] > r->logits[j - 1] ||
                (r->logits[j] == r->logits[j - 1] && r->ids[j] <= r->ids[j - 1]))
                return esp_wire_bad(err, "rows[%u]: candidate %u (id %u, %g) after (id %u, %g)", i, j,
                                    r->ids[j], (double)r->logits[j], r->ids[j - 1], (double)r->logits[j - 1]);
        }
    }
    if (m->n_full > m->n_rows)
        return esp_wire_bad(err, "n_full: %u of %u rows", m->n_full, m->n_rows);
    if (m->n_full == 0)
        return no_frames(msg, err);
    if (m->vocab == 0)
        return esp_wire_bad(err, "vocab: 0 with full logits");
    return one_tensor(msg, m->n_full, m->vocab, err);
}

esp_status esp_check_kv_blocks(const struct esp_msg *msg, struct esp_err *err)
{
    const struct esp_msg_kv_blocks *m = &msg->kv_blocks;
    size_t row;

    if (m->first > m->total_blocks || m->n_blocks > m->total_blocks - m->first)
        return esp_wire_bad(err, "blocks [%u,%llu) of %u", m->first,
                            (unsigned long long)m->first + m->n_blocks, m->total_blocks);
    if (m->n_blocks == 0 && m->total_blocks > 0)
        return esp_wire_bad(err, "no blocks of %u", m->total_blocks);
    for (uint32_t i = 0; i < m->n_seqs; i++) {
        const struct esp_kv_seq *s = &m->seqs[i];

        if (((uint64_t)s->n_tok + m->block_tokens - 1) / m->block_tokens != s->n_blocks)
            return esp_wire_bad(err, "seqs[%u]: %u blocks of %u for %u tokens", i, s->n_blocks,
                                m->block_tokens, s->n_tok);
        for (uint32_t j = 0; j < s->n_blocks; j++)
            if (s->blocks[j] >= m->total_blocks)
                return esp_wire_bad(err, "seqs[%u]: block %u of %u", i, s->blocks[j], m->total_blocks);
        for (uint32_t j = 0; j < i; j++) /* at most 1024 of them */
            if (m->seqs[j].seq == s->seq)
                return esp_wire_bad(err, "seqs[%u]: sequence %llu twice", i, (unsigned long long)s->seq);
    }
    if (m->n_blocks == 0)
        return no_frames(msg, err);
    if (!esp_mul(&row, m->block_tokens, m->width) || row > UINT32_MAX)
        return esp_wire_bad(err, "blocks of [%u,%u]", m->block_tokens, m->width);
    return one_tensor(msg, m->n_blocks, (uint32_t)row, err);
}

esp_status esp_check_trace(const struct esp_msg *msg, struct esp_err *err)
{
    const struct esp_msg_trace *m = &msg->trace;

    if (m->step != 0 && m->image != 0)
        return esp_wire_bad(err, "of a step and of an image");
    if (m->session == 0 && (m->epoch == 0 || (m->step == 0 && m->image == 0)))
        return esp_wire_bad(err, "of no session, step or image");
    return one_tensor(msg, m->rows, m->width, err);
}

esp_status esp_check_request(const struct esp_msg *msg, struct esp_err *err)
{
    const struct esp_msg_request *m = &msg->request;

    if (m->max_tokens == 0 && !m->score)
        return esp_wire_bad(err, "max_tokens: 0");
    if (m->sampling.top_p > 1)
        return esp_wire_bad(err, "sampling.top_p: %g, takes 0 .. 1", m->sampling.top_p);
    if (msg->n_blobs != m->n_images)
        return esp_wire_bad(err, "%u raw frames for %u images", msg->n_blobs, m->n_images);
    for (uint32_t i = 0; i < msg->n_blobs; i++) {
        if (msg->blob[i].n_bytes == 0 || msg->blob[i].n_bytes > ESP_MAX_IMAGE_FILE)
            return esp_wire_bad(err, "image %u: a file of %zu bytes, takes 1 .. %u", i, msg->blob[i].n_bytes,
                                ESP_MAX_IMAGE_FILE);
    }
    return ESP_OK;
}

esp_status esp_check_resume(const struct esp_msg *msg, struct esp_err *err)
{
    static const uint8_t none[ESP_TICKET_BYTES];

    if (memcmp(msg->resume.ticket, none, sizeof none) == 0)
        return esp_wire_bad(err, "ticket: zeros");
    return no_frames(msg, err);
}

static esp_status check_stage_info(const struct esp_stage_info *s, struct esp_err *err)
{
    if (s->enc_lo > s->enc_hi || s->dec_lo > s->dec_hi)
        return esp_wire_bad(err, "layers [%u,%u) and [%u,%u)", s->enc_lo, s->enc_hi, s->dec_lo, s->dec_hi);
    return ESP_OK;
}

esp_status esp_check_accepted(const struct esp_msg *msg, struct esp_err *err)
{
    const struct esp_msg_accepted *m = &msg->accepted;

    for (uint32_t i = 0; i < m->n_stages; i++) {
        esp_status st = check_stage_info(&m->stages[i], err);
        if (!st && !is_set(m->stages[i].worker))
            st = esp_wire_bad(err, "no worker's name");
        if (st) {
            esp_err_prefix(err, "stages[%u]: ", i);
            return st;
        }
    }
    return no_frames(msg, err);
}

static esp_status check_hypothesis(const struct esp_hypothesis *h, struct esp_err *err)
{
    if (h->n_logprobs != h->n_ids && h->n_logprobs != h->n_ids + 1)
        return esp_wire_bad(err, "%u logprobs for %u ids", h->n_logprobs, h->n_ids);
    if (is_set(h->finish) && strcmp(h->finish, "eos") != 0 && strcmp(h->finish, "length") != 0)
        return esp_wire_bad(err, "finish: \"%s\"", h->finish);
    return ESP_OK;
}

esp_status esp_check_done(const struct esp_msg *msg, struct esp_err *err)
{
    const struct esp_msg_done *m = &msg->done;
    esp_status st = check_hypothesis(&m->best, err);

    if (st) {
        esp_err_prefix(err, "best: ");
        return st;
    }
    for (uint32_t i = 0; i < m->n_hypotheses; i++) {
        st = check_hypothesis(&m->hypotheses[i], err);
        if (st) {
            esp_err_prefix(err, "hypotheses[%u]: ", i);
            return st;
        }
    }
    return no_frames(msg, err);
}

esp_status esp_check_status(const struct esp_msg *msg, struct esp_err *err)
{
    static const char *const states[] = {"joining", "loading", "ready", "spare", "draining", "failed"};
    const struct esp_msg_status *m = &msg->status;

    for (uint32_t i = 0; i < m->n_workers; i++) {
        const struct esp_worker_status *w = &m->workers[i];
        esp_status st = check_stage_info(&w->stage, err);
        bool known = false;
        for (size_t j = 0; j < sizeof states / sizeof states[0]; j++)
            known |= strcmp(w->state, states[j]) == 0;
        if (!st && !known)
            st = esp_wire_bad(err, "state: \"%s\"", w->state);
        if (!st && w->done_bytes > w->total_bytes)
            st = esp_wire_bad(err, "%llu bytes done of %llu", (unsigned long long)w->done_bytes,
                              (unsigned long long)w->total_bytes);
        if (st) {
            esp_err_prefix(err, "workers[%u]: ", i);
            return st;
        }
    }
    return no_frames(msg, err);
}

esp_status esp_check_verified(const struct esp_msg *msg, struct esp_err *err)
{
    if (msg->verified.done > msg->verified.total)
        return esp_wire_bad(err, "%u done of %u", msg->verified.done, msg->verified.total);
    return no_frames(msg, err);
}

esp_status esp_check_verify_report(const struct esp_msg *msg, struct esp_err *err)
{
    const struct esp_msg_verify_report *m = &msg->verify_report;

    if (m->done > m->total || m->n_left > m->n_workers)
        return esp_wire_bad(err, "%u done of %u, %u left of %u workers", m->done, m->total, m->n_left,
                            m->n_workers);
    return no_frames(msg, err);
}
