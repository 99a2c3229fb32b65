#include "worker/stage.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "worker/batch.h"
#include "worker/kv.h"
#include "worker/program.h"
#include "worker/vk_cmd.h"
#include "worker/vk_pipe.h"

#define MAX_ROWS_AT_ONCE 65535u /* one axis of a dispatch */

struct esp_stage {
    struct esp_vk *vk;
    const struct esp_checkpoint *ck;
    const struct esp_config *c;
    struct esp_stage_spec spec;
    bool enc, dec;
    struct esp_space space;
    struct esp_weights weights;
    struct esp_programs ps;
    struct esp_batch batch;
    struct esp_kv *kv;             /* NULL without decoder layers */
    uint64_t *images;              /* id of each features slot; 0: free */
    uint32_t *vision_table;        /* 0, 1, 2, ...: SigLIP's keys lie in order */
    struct esp_kv_append *appends; /* a step's, max_seqs of them */
    uint32_t *slots;               /* features slots of the images of one sequence */
    uint64_t weight_bytes, kv_bytes, scratch_bytes;
    bool lost;
};

static double seconds(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

static esp_status spec_check(const struct esp_stage_spec *s, const struct esp_config *c, struct esp_err *err)
{
    if (s->enc_lo > s->enc_hi || s->enc_hi > c->vision.n_layer || s->dec_lo > s->dec_hi ||
        s->dec_hi > c->text.n_layer)
        return esp_fail(err, ESP_E_ARG, "layers [%u,%u) and [%u,%u) of a model with %u and %u", s->enc_lo,
                        s->enc_hi, s->dec_lo, s->dec_hi, c->vision.n_layer, c->text.n_layer);
    if ((s->patch && s->enc_lo != 0) || (s->projector && s->enc_hi != c->vision.n_layer) ||
        (s->embed && s->dec_lo != 0) || (s->head && s->dec_hi != c->text.n_layer))
        return esp_fail(err, ESP_E_ARG, "the towers' ends do not go with layers [%u,%u) and [%u,%u)",
                        s->enc_lo, s->enc_hi, s->dec_lo, s->dec_hi);
    if (s->dec_lo < s->dec_hi && (s->max_rows == 0 || s->max_rows > MAX_ROWS_AT_ONCE || s->max_seqs == 0 ||
                                  s->max_seqs > ESP_MAX_SEQS || s->kv_tokens == 0))
        return esp_fail(err, ESP_E_ARG, "%u rows (1 to %u), %u sequences (1 to %d), %u KV tokens",
                        s->max_rows, MAX_ROWS_AT_ONCE, s->max_seqs, ESP_MAX_SEQS, s->kv_tokens);
    if (s->embed && s->max_images == 0)
        return esp_fail(err, ESP_E_ARG, "no room for images");
    return ESP_OK;
}

/* Buffers but the weights, after checking the whole plan against the device's budget. */
static esp_status space_create(struct esp_stage *s, struct esp_err *err)
{
    const struct esp_layout *at = &s->ps.at;
    const uint32_t rows = s->spec.max_rows > s->c->vision.n_token ? s->spec.max_rows : s->c->vision.n_token;
    const uint32_t blocks_a_seq = (uint32_t)(esp_round_up(s->spec.max_rows, ESP_KV_BLOCK) / ESP_KV_BLOCK);
    const uint32_t max_table = s->spec.max_seqs * blocks_a_seq + at->n_vision_blocks;
    const size_t step_bytes = esp_batch_n_words(rows, s->spec.max_seqs, max_table) * 4;
    struct esp_vk *vk = s->vk;
    esp_status st;

    s->kv_bytes = at->kv_texels * 16;
    s->scratch_bytes = at->act_texels * 16 + at->in_bytes + at->out_bytes + step_bytes;
    s->weight_bytes = s->weights.n_bytes;
    if (s->weight_bytes + s->kv_bytes + s->scratch_bytes > vk->report.memory_bytes)
        return esp_fail(
            err, ESP_E_NOMEM,
            "%s: needs %.1f MiB of weights, %.1f MiB of KV cache, %.1f MiB of scratch; it has %.1f MiB",
            vk->report.name, (double)s->weight_bytes / (1 << 20), (double)s->kv_bytes / (1 << 20),
            (double)s->scratch_bytes / (1 << 20), (double)vk->report.memory_bytes / (1 << 20));
    st = esp_buf_create(&s->space.act, vk, ESP_BUF_DEVICE, at->act_texels * 16, VK_FORMAT_R32G32B32A32_SFLOAT,
                        "scratch", err);
    if (!st)
        st = esp_buf_create(&s->space.kv, vk, ESP_BUF_DEVICE, at->kv_texels * 16,
                            VK_FORMAT_R32G32B32A32_SFLOAT, "KV cache", err);
    if (!st)
        st = esp_buf_create(&s->space.step, vk, ESP_BUF_UPLOAD, step_bytes, VK_FORMAT_UNDEFINED,
                            "step buffer", err);
    if (!st)
        st = esp_buf_create(&s->space.in, vk, ESP_BUF_UPLOAD, at->in_bytes, VK_FORMAT_UNDEFINED, "input rows",
                            err);
    if (!st)
        st = esp_buf_create(&s->space.out, vk, ESP_BUF_READBACK, at->out_bytes, VK_FORMAT_UNDEFINED,
                            "output rows", err);
    if (!st)
        esp_batch_init(&s->batch, s->space.step.map, rows, s->spec.max_seqs);
    return st;
}

/* Masked keys and padding are multiplied by zero, so what lies there must be a number: everything starts as
 * zero. */
static esp_status space_clear(struct esp_stage *s, struct esp_err *err)
{
    VkCommandBuffer cmd = VK_NULL_HANDLE;
    esp_status st = esp_cmd_alloc(&cmd, s->vk, err);

    if (!st)
        st = esp_cmd_begin(cmd, true, err);
    if (!st) {
        vkCmdFillBuffer(cmd, s->space.act.buf, 0, VK_WHOLE_SIZE, 0);
        vkCmdFillBuffer(cmd, s->space.kv.buf, 0, VK_WHOLE_SIZE, 0);
        esp_cmd_barrier(cmd);
        st = esp_cmd_end(cmd, err);
    }
    if (!st)
        st = esp_submit_wait(s->vk, &cmd, 1, false, err);
    esp_cmd_free(&cmd, s->vk);
    return st;
}

static esp_status books_create(struct esp_stage *s, uint32_t n_blocks, struct esp_err *err)
{
    esp_status st = ESP_OK;

    s->images = calloc(s->spec.max_images + 1, sizeof *s->images);
    s->slots = calloc(s->spec.max_images + 1, sizeof *s->slots);
    s->vision_table = calloc(s->ps.at.n_vision_blocks + 1, sizeof *s->vision_table);
    s->appends = calloc(s->spec.max_seqs + 1, sizeof *s->appends);
    if (!s->images || !s->slots || !s->vision_table || !s->appends)
        return esp_fail(err, ESP_E_NOMEM, "the stage's books");
    for (uint32_t i = 0; i < s->ps.at.n_vision_blocks; i++)
        s->vision_table[i] = i;
    if (n_blocks)
        st = esp_kv_create(&s->kv, n_blocks, ESP_KV_BLOCK, s->spec.max_seqs,
                           (uint32_t)(esp_round_up(s->spec.max_rows, ESP_KV_BLOCK) / ESP_KV_BLOCK), err);
    return st;
}

esp_status esp_stage_create(struct esp_stage **out, struct esp_vk *vk, const struct esp_checkpoint *ck,
                            const struct esp_stage_spec *spec, esp_load_progress progress, void *progress_arg,
                            struct esp_err *err)
{
    struct esp_stage *s = calloc(1, sizeof *s);
    uint32_t n_blocks = 0;
    esp_status st;

    *out = NULL;
    if (!s)
        return esp_fail(err, ESP_E_NOMEM, "stage");
    s->vk = s->space.vk = vk;
    s->ck = ck;
    s->c = esp_checkpoint_config(ck);
    s->spec = *spec;
    s->enc = spec->enc_lo < spec->enc_hi || spec->patch || spec->projector;
    s->dec = spec->dec_lo < spec->dec_hi || spec->embed || spec->head;
    if ((st = spec_check(spec, s->c, err)))
        goto done;
    if (!s->enc && !s->dec) { /* a spare: nothing to hold */
        *out = s;
        return ESP_OK;
    }
    if (spec->dec_lo < spec->dec_hi)
        n_blocks = (uint32_t)(esp_round_up(spec->kv_tokens, ESP_KV_BLOCK) / ESP_KV_BLOCK);
    if ((st = esp_layout_plan(&s->ps.at, s->c, spec, n_blocks, err)) ||
        (st = esp_weights_plan(&s->weights, vk, ck, spec, spec->max_rows, err)) ||
        (st = space_create(s, err)) ||
        (st = esp_weights_load(&s->weights, &s->space, ck, spec->max_rows, progress, progress_arg, err)) ||
        (st = space_clear(s, err)) || (st = books_create(s, n_blocks, err)) ||
        (st = esp_space_bind(&s->space, err)))
        goto done;
    if (vk->profile && (st = esp_profile_create(&s->space.profile, vk, err)))
        goto done;
    st = esp_programs_record(&s->ps, &s->space, &s->weights, s->c, spec, err);
    if (st)
        goto done;
    esp_pipes_save(vk->pipes);
    *out = s;
    s = NULL;
done:
    esp_stage_destroy(&s);
    return st;
}

void esp_stage_destroy(struct esp_stage **sp)
{
    struct esp_stage *s = *sp;

    if (!s)
        return;
    vkDeviceWaitIdle(s->vk->dev);
    esp_profile_log(s->space.profile, s->vk->log);
    esp_programs_finish(&s->ps, s->vk);
    esp_weights_finish(&s->weights);
    esp_space_finish(&s->space);
    esp_kv_destroy(&s->kv);
    free(s->images);
    free(s->slots);
    free(s->vision_table);
    free(s->appends);
    free(s);
    *sp = NULL;
}

void esp_stage_info(const struct esp_stage *s, struct esp_stage_info_out *out)
{
    memset(out, 0, sizeof *out);
    out->weight_bytes = s->weight_bytes;
    out->kv_bytes = s->kv_bytes;
    out->scratch_bytes = s->scratch_bytes;
    out->block_tokens = ESP_KV_BLOCK;
    if (s->kv) {
        out->kv_blocks = esp_kv_n_blocks(s->kv);
        out->kv_used_blocks = esp_kv_used_blocks(s->kv);
        out->n_seqs = esp_kv_n_seqs(s->kv);
    }
    for (uint32_t i = 0; s->images && i < s->spec.max_images; i++)
        out->n_images += s->images[i] != 0;
}

void esp_stage_out_finish(struct esp_stage_out *out)
{
    free(out->rows);
    for (uint32_t i = 0; out->results && i < out->n_results; i++) {
        free((void *)(uintptr_t)out->results[i].ids);
        free((void *)(uintptr_t)out->results[i].logits);
    }
    free(out->results);
    free(out->full);
    for (uint32_t i = 0; i < out->n_traces; i++)
        free(out->traces[i].data);
    free(out->traces);
    memset(out, 0, sizeof *out);
}

static esp_status finite_check(const float *v, size_t n, const char *what, struct esp_err *err)
{
    for (size_t i = 0; i < n; i++)
        if (!isfinite(v[i]))
            return esp_fail(err, ESP_E_DEVICE,
                            "%s: element %zu is %s: the weights overflow float32 or the device "
                            "computes wrongly",
                            what, i, isnan(v[i]) ? "not a number" : "infinite");
    return ESP_OK;
}

/* Rows that a segment left, into a new trace. */
static esp_status trace_take(struct esp_stage *s, const struct esp_segment *seg, uint32_t n_row,
                             struct esp_stage_out *out, struct esp_err *err)
{
    struct esp_rec rec = {.space = &s->space, .grids = &s->ps.grids, .err = err};
    struct esp_stage_trace *t;
    const size_t n = (size_t)n_row * seg->width;

    if (!seg->name[0])
        return ESP_OK;
    rec.st = esp_cmd_alloc(&rec.cmd, s->vk, err);
    if (rec.st)
        return rec.st;
    rec.st = esp_cmd_begin(rec.cmd, true, err);
    esp_op_rows_out(&rec, seg->loc, seg->width, 0, ESP_COUNT_ROWS);
    if (!rec.st) {
        esp_cmd_barrier_all(rec.cmd);
        rec.st = esp_cmd_end(rec.cmd, err);
    }
    if (!rec.st) {
        esp_batch_seal(&s->batch, &s->ps.grids); /* this may be a new kind of dispatch */
        rec.st = esp_submit_wait(s->vk, &rec.cmd, 1, false, err);
    }
    esp_cmd_free(&rec.cmd, s->vk);
    if (rec.st)
        return rec.st;
    t = realloc(out->traces, (out->n_traces + 1) * sizeof *t);
    if (!t)
        return esp_fail(err, ESP_E_NOMEM, "trace");
    out->traces = t;
    t += out->n_traces;
    memset(t, 0, sizeof *t);
    t->data = malloc(n * sizeof *t->data);
    if (!t->data)
        return esp_fail(err, ESP_E_NOMEM, "trace");
    out->n_traces++;
    memcpy(t->data, s->space.out.map, n * sizeof *t->data);
    snprintf(t->name, sizeof t->name, "%s", seg->name);
    t->rows = n_row;
    t->width = seg->width;
    return ESP_OK;
}

/* Runs programs one after the other on the sealed batch; with `trace`, one segment at a time, each looked at.
 */
static esp_status run(struct esp_stage *s, const struct esp_program *const *programs, uint32_t n_program,
                      bool apart, bool trace, struct esp_stage_out *out, struct esp_err *err)
{
    VkCommandBuffer cmds[2 * ESP_MAX_LAYERS];
    uint32_t n = 0;
    const double t0 = seconds();
    esp_status st = ESP_OK;

    for (uint32_t p = 0; !st && p < n_program; p++) {
        for (uint32_t i = 0; !st && i < programs[p]->n; i++) {
            const struct esp_segment *seg = &programs[p]->seg[i];
            if (n == 2 * ESP_MAX_LAYERS)
                return esp_fail(err, ESP_E_INTERNAL, "too many segments");
            cmds[n++] = seg->cmd;
            if (trace) {
                st = esp_submit_wait(s->vk, cmds, n, true, err);
                n = 0;
                if (!st)
                    st = trace_take(s, seg, s->batch.count[ESP_COUNT_ROWS], out, err);
            }
        }
    }
    if (!st)
        st = esp_submit_wait(s->vk, cmds, n, apart, err);
    if (st == ESP_E_DEVICE)
        s->lost = true;
    esp_profile_collect(s->space.profile);
    out->compute_seconds += seconds() - t0;
    return st;
}

static esp_status rows_take(struct esp_stage *s, uint32_t n_row, uint32_t width, struct esp_stage_out *out,
                            struct esp_err *err)
{
    const size_t n = (size_t)n_row * width;

    out->rows = malloc(n * sizeof *out->rows);
    if (!out->rows)
        return esp_fail(err, ESP_E_NOMEM, "%u rows of output", n_row);
    memcpy(out->rows, s->space.out.map, n * sizeof *out->rows);
    out->n_rows = n_row;
    out->width = width;
    return finite_check(out->rows, n, "output rows", err);
}

esp_status esp_stage_encode(struct esp_stage *s, const struct esp_msg_encode *msg, const void *data,
                            struct esp_stage_out *out, struct esp_err *err)
{
    const struct esp_vision_config *v = &s->c->vision;
    const struct esp_program *program = &s->ps.encode;
    const uint32_t n = v->n_token;
    uint32_t table;
    esp_status st;

    memset(out, 0, sizeof *out);
    if (s->lost)
        return esp_fail(err, ESP_E_DEVICE, "the device is lost");
    if (!s->enc)
        return esp_fail(err, ESP_E_PROTO, "this stage has no encoder layers");
    if (s->spec.patch) {
        if (msg->payload != ESP_PAYLOAD_PIXELS || msg->rows != v->n_channel * v->image_size ||
            msg->width != v->image_size)
            return esp_fail(err, ESP_E_PROTO,
                            "the first encoder stage takes pixels f32[%u,%u,%u], got f32[%u,%u]",
                            v->n_channel, v->image_size, v->image_size, msg->rows, msg->width);
    } else if (msg->payload != ESP_PAYLOAD_ROWS || msg->rows != n || msg->width != v->width) {
        return esp_fail(err, ESP_E_PROTO, "encoder rows f32[%u,%u] expected, got f32[%u,%u]", n, v->width,
                        msg->rows, msg->width);
    }
    memcpy(s->space.in.map, data, (size_t)msg->rows * msg->width * sizeof(float));
    esp_batch_begin(&s->batch);
    table = esp_batch_table(&s->batch, s->vision_table, s->ps.at.n_vision_blocks);
    for (uint32_t i = 0; i < n; i++)
        esp_batch_row(&s->batch, 0, i, n, 0, i);
    esp_batch_tiles(&s->batch, 0, n, table, esp_attn_tile_rows(v->n_head, v->n_head));
    esp_batch_seal(&s->batch, &s->ps.grids);
    st = run(s, &program, 1, true, msg->trace, out, err);
    if (!st)
        st = rows_take(s, n, s->spec.projector ? s->c->text.width : v->width, out, err);
    out->payload = s->spec.projector ? ESP_PAYLOAD_FEATURES : ESP_PAYLOAD_ROWS;
    if (st)
        esp_stage_out_finish(out);
    return st;
}

static uint32_t image_slot(const struct esp_stage *s, uint64_t image)
{
    for (uint32_t i = 0; i < s->spec.max_images; i++)
        if (s->images[i] == image)
            return i;
    return ESP_NONE;
}

static struct esp_rows features_of(const struct esp_stage *s, uint32_t slot)
{
    struct esp_rows r = s->ps.at.features;
    r.at += slot * s->c->vision.n_token * r.stride;
    return r;
}

esp_status esp_stage_store(struct esp_stage *s, const struct esp_msg_encode *msg, const void *data,
                           struct esp_err *err)
{
    const uint32_t n = s->c->vision.n_token, width = s->c->text.width;
    struct esp_rec rec = {.space = &s->space, .grids = &s->ps.grids, .err = err};
    uint32_t slot;

    if (s->lost)
        return esp_fail(err, ESP_E_DEVICE, "the device is lost");
    if (!s->spec.embed)
        return esp_fail(err, ESP_E_PROTO, "image features belong to the first decoder stage");
    if (msg->payload != ESP_PAYLOAD_FEATURES || msg->rows != n || msg->width != width || msg->image == 0)
        return esp_fail(err, ESP_E_PROTO, "image features f32[%u,%u] expected, got f32[%u,%u]", n, width,
                        msg->rows, msg->width);
    slot = image_slot(s, msg->image);
    if (slot == ESP_NONE)
        slot = image_slot(s, 0);
    if (slot == ESP_NONE)
        return esp_fail(err, ESP_E_LIMIT, "features of %u images are held already", s->spec.max_images);
    memcpy(s->space.in.map, data, (size_t)n * width * sizeof(float));
    rec.st = esp_cmd_alloc(&rec.cmd, s->vk, err);
    if (rec.st)
        return rec.st;
    rec.st = esp_cmd_begin(rec.cmd, true, err);
    esp_op_rows_in(&rec, features_of(s, slot), width);
    if (!rec.st)
        rec.st = esp_cmd_end(rec.cmd, err);
    if (!rec.st) {
        esp_batch_begin(&s->batch);
        s->batch.count[ESP_COUNT_ROWS] = n;
        esp_batch_seal(&s->batch, &s->ps.grids);
        rec.st = esp_submit_wait(s->vk, &rec.cmd, 1, false, err);
        if (rec.st == ESP_E_DEVICE)
            s->lost = true;
    }
    esp_cmd_free(&rec.cmd, s->vk);
    if (!rec.st)
        s->images[slot] = msg->image;
    return rec.st;
}

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
        if (q->images[i] == 0 || image_slot(s, q->images[i]) == ESP_NONE)
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

/* The rows of one sequence into the batch; its KV room is reserved. */
static void seq_rows(struct esp_stage *s, const struct esp_seq_rows *q, const void *ids, uint32_t row0)
{
    const struct esp_text_config *t = &s->c->text;
    const uint32_t n_feature = s->spec.embed ? q->n_images * s->c->vision.n_token : 0;
    uint32_t n_blocks = 0;
    const uint32_t *blocks = esp_kv_blocks(s->kv, q->seq, &n_blocks);
    const uint32_t table = esp_batch_table(&s->batch, blocks, n_blocks);

    for (uint32_t i = 0; i < (s->spec.embed ? q->n_images : 0); i++)
        s->slots[i] = image_slot(s, q->images[i]);
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
    esp_batch_tiles(&s->batch, row0, q->n_tok, table, esp_attn_tile_rows(t->n_head, t->n_kv_head));
}

/* One want's candidates from the words that topk left. */
static esp_status result_take(const struct esp_stage *s, const uint32_t *words, const struct esp_want *want,
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
        return esp_fail(err, ESP_E_DEVICE,
                        "row %u: the logits are no finite numbers: the weights overflow float32 "
                        "or the device computes wrongly",
                        want->row);
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
    uint32_t n_full = 0;
    esp_status st = ESP_OK;

    for (uint32_t i = 0; i < m->n_wants; i++)
        n_full += m->wants[i].full;
    out->vocab = vocab;
    out->results = calloc(m->n_wants + 1, sizeof *out->results);
    out->full = n_full ? malloc((size_t)n_full * vocab * sizeof *out->full) : NULL;
    if (!out->results || (n_full && !out->full))
        return esp_fail(err, ESP_E_NOMEM, "results of %u rows", m->n_wants);
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
        st = run(s, programs, full ? 2 : 1, false, false, out, err);
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

    for (uint32_t i = 0; i < m->n_seqs; i++) {
        seq_rows(s, &m->seqs[i], data, row);
        row += m->seqs[i].n_tok;
        prefix = prefix || m->seqs[i].pos < m->seqs[i].n_prefix;
    }
    if (!prefix) { /* a few rows a sequence: matrix-vector kernels, whatever the number of sequences */
        const enum esp_decode_few few = esp_few_for(m->rows);
        st = esp_programs_few(&s->ps, few, &s->space, &s->weights, s->c, &s->spec, err);
        program = &s->ps.decode[few];
    }
    if (st)
        return st;
    if (!s->spec.embed)
        memcpy(s->space.in.map, data, (size_t)m->rows * m->width * sizeof(float));
    esp_batch_seal(&s->batch, &s->ps.grids);
    st = run(s, &program, 1, prefix, m->trace, out, err);
    if (!st && s->spec.head && m->trace) {
        program = &s->ps.norm_all;
        st = run(s, &program, 1, false, true, out, err);
    }
    if (!st && s->spec.head)
        return head_run(s, m, out, err);
    if (!st)
        st = rows_take(s, m->rows, s->c->text.width, out, err);
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
    st = step_run(s, m, data, out, err);
    if (st) {
        esp_kv_rollback(s->kv);
        esp_stage_out_finish(out);
    } else {
        esp_kv_commit(s->kv);
    }
    return st;
}

void esp_stage_release(struct esp_stage *s, const struct esp_msg_release *m)
{
    for (uint32_t i = 0; s->kv && i < m->n_seqs; i++)
        esp_kv_free(s->kv, m->seqs[i]);
    for (uint32_t i = 0; s->images && i < m->n_images; i++) {
        uint32_t slot = m->images[i] ? image_slot(s, m->images[i]) : ESP_NONE;
        if (slot != ESP_NONE)
            s->images[slot] = 0;
    }
}
