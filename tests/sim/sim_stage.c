/*
 * worker/stage.h by the clock: a stage that keeps its books as strictly as the real one (with the real one's
 * worker/kv.c), computes tests/sim/sim_model.h in their blocks, and sleeps for as long as its profile says.
 *
 * Every call ends at its beginning plus its time, so that the arithmetic here costs nothing. Traces are not made.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "coordinator/cost.h"
#include "proto/clock.h"
#include "tests/sim/sim_device.h"
#include "tests/sim/sim_model.h"
#include "tests/sim/sim_shelf.h"
#include "tests/sim/sim_stage.h"

/* ---- time ---- */

static void sleep_until(uint64_t ns)
{
    const struct timespec at = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};

    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL) == EINTR)
        ;
}

/* Ends a call that began then and takes so long; the seconds it took. */
static double spend(struct sim_device *d, uint64_t begun_ns, double seconds)
{
    uint64_t asked, taken;

    d->draw = sim_mix(d->draw);
    seconds *= 1 + d->profile.jitter * (2 * (double)(d->draw >> 11) / (double)(UINT64_C(1) << 53) - 1);
    asked = (uint64_t)(seconds * 1e9);
    if (asked > 0)
        sleep_until(begun_ns + asked);
    taken = esp_now_ns() - begun_ns;
    atomic_fetch_add(&d->count.asked_ns, asked);
    atomic_fetch_add(&d->count.taken_ns, taken);
    return 1e-9 * (double)taken;
}

/* ---- making ---- */

static esp_status check(const struct esp_stage_spec *s, const struct esp_config *c, struct esp_err *err)
{
    const esp_status st = esp_stage_spec_check(s, c, err);

    if (st)
        return st;
    if (c->text.width < SIM_ROW_FLOATS || c->vision.width < SIM_ROW_FLOATS || c->text.vocab <= SIM_PEAK)
        return esp_fail(err, ESP_E_UNSUPPORTED,
                        "a model of width %u and %u, vocabulary %u: too small to simulate", c->vision.width,
                        c->text.width, c->text.vocab);
    return ESP_OK;
}

static esp_status plan(struct esp_stage *s, struct esp_err *err)
{
    const struct esp_cost_options options = {
        .bytes_per_weight = 2, .n_image = 1, .max_rows = s->spec.max_rows ? s->spec.max_rows : 1};
    const struct esp_stage_spec *p = &s->spec;
    struct esp_model_cost c;
    esp_status st = esp_model_cost_fill(&c, s->c, &options, err);

    if (st)
        return st;
    s->weight_bytes = sim_shelf_bytes(s->shelf, p);
    s->kv_bytes = (uint64_t)s->n_dec * esp_round_up(p->kv_tokens, SIM_BLOCK) * c.kv_token_bytes;
    s->scratch_bytes = (s->n_enc ? c.enc_scratch_bytes : 0) + (s->n_dec ? c.dec_scratch_bytes : 0);
    if (s->weight_bytes + s->kv_bytes + s->scratch_bytes + sim_shelf_beside(s->shelf, p) >
        s->device->vk.report.memory_bytes)
        return esp_fail(err, ESP_E_NOMEM, "%s: needs %" PRIu64 " MiB, it has %" PRIu64 " MiB",
                        s->device->profile.name, (s->weight_bytes + s->kv_bytes + s->scratch_bytes) >> 20,
                        s->device->vk.report.memory_bytes >> 20);
    return ESP_OK;
}

esp_status esp_stage_create(struct esp_stage **out, struct esp_shelf *shelf,
                            const struct esp_stage_spec *spec, struct esp_stage *former,
                            esp_load_progress progress, void *progress_arg, struct esp_err *err)
{
    struct esp_stage *s = calloc(1, sizeof *s);
    const uint32_t n_blocks = (uint32_t)(esp_round_up(spec->kv_tokens, SIM_BLOCK) / SIM_BLOCK);
    esp_status st = ESP_OK;

    *out = NULL;
    if (!s)
        return esp_fail(err, ESP_E_NOMEM, "a simulated stage");
    s->shelf = shelf;
    s->device = sim_shelf_device(shelf);
    s->c = sim_shelf_config(shelf);
    s->spec = *spec;
    st = check(spec, s->c, err);
    if (st)
        goto done;
    s->n_enc = spec->enc_hi - spec->enc_lo;
    s->n_dec = spec->dec_hi - spec->dec_lo;
    st = plan(s, err);
    if (st)
        goto done;
    s->images = calloc(spec->max_images + 1, sizeof *s->images);
    s->features = calloc((size_t)spec->max_images * s->c->vision.n_token + 1, sizeof *s->features);
    s->appends = calloc(spec->max_seqs + 1, sizeof *s->appends);
    s->cell = calloc((size_t)n_blocks * SIM_BLOCK * s->n_dec + 1, sizeof *s->cell);
    if (!s->images || !s->features || !s->appends || !s->cell) {
        st = esp_fail(err, ESP_E_NOMEM, "a simulated stage's books");
        goto done;
    }
    if (s->n_dec)
        st = esp_kv_create(&s->kv, n_blocks, SIM_BLOCK, spec->max_seqs,
                           (uint32_t)(esp_round_up(spec->max_rows, SIM_BLOCK) / SIM_BLOCK), err);
    if (st)
        goto done;
    st = former ? sim_stage_inherit(s, former, err) : ESP_OK;
    if (st)
        goto done;
    sim_shelf_use(shelf, spec, s->kv_bytes + s->scratch_bytes);
    s->on_shelf = true;
    st = sim_shelf_fill(shelf, spec, progress, progress_arg, &s->loaded_bytes, err);
    if (st)
        goto done;
    atomic_fetch_add(&s->device->count.n_loads, 1);
    *out = s;
    s = NULL;
done:
    esp_stage_destroy(&s);
    return st;
}

void esp_stage_destroy(struct esp_stage **stage)
{
    struct esp_stage *s = *stage;

    if (!s)
        return;
    if (s->on_shelf)
        sim_shelf_leave(s->shelf, &s->spec, s->kv_bytes + s->scratch_bytes);
    esp_kv_destroy(&s->kv);
    free(s->cell);
    free(s->appends);
    free(s->images);
    free(s->features);
    free(s);
    *stage = NULL;
}

void esp_stage_info(const struct esp_stage *s, struct esp_stage_info_out *out)
{
    memset(out, 0, sizeof *out);
    out->weight_bytes = s->weight_bytes;
    out->kv_bytes = s->kv_bytes;
    out->scratch_bytes = s->scratch_bytes;
    out->loaded_bytes = s->loaded_bytes;
    out->block_tokens = SIM_BLOCK;
    if (s->kv) {
        out->kv_blocks = esp_kv_n_blocks(s->kv);
        out->kv_used_blocks = esp_kv_used_blocks(s->kv);
        out->n_seqs = esp_kv_n_seqs(s->kv);
    }
    for (uint32_t i = 0; i < s->spec.max_images; i++)
        out->n_images += s->images[i] != 0;
}

/* ---- pictures ---- */

static esp_status rows_take(uint64_t *x, const void *data, uint32_t n, uint32_t width, struct esp_err *err)
{
    for (uint32_t i = 0; i < n; i++)
        if (!sim_row_get(&x[i], (const char *)data + (size_t)i * width * sizeof(float), width))
            return esp_fail(err, ESP_E_PROTO, "row %u is none that a simulated stage makes", i);
    return ESP_OK;
}

static esp_status rows_give(struct esp_stage_out *out, const uint64_t *x, uint32_t n, uint32_t width,
                            enum esp_payload payload, struct esp_err *err)
{
    out->rows = malloc((size_t)n * width * sizeof *out->rows);
    if (!out->rows)
        return esp_fail(err, ESP_E_NOMEM, "%u rows", n);
    for (uint32_t i = 0; i < n; i++)
        sim_row_put(out->rows + (size_t)i * width, width, x[i]);
    out->n_rows = n;
    out->width = width;
    out->payload = payload;
    return ESP_OK;
}

esp_status esp_stage_encode(struct esp_stage *s, const struct esp_msg_encode *m, const void *data,
                            struct esp_stage_out *out, struct esp_err *err)
{
    const struct esp_vision_config *v = &s->c->vision;
    const uint64_t begun = esp_now_ns();
    uint64_t *x = NULL;
    esp_status st = ESP_OK;

    memset(out, 0, sizeof *out);
    if (s->n_enc == 0 || s->spec.patch != (m->payload == ESP_PAYLOAD_PIXELS))
        return esp_fail(err, ESP_E_PROTO, "not what this stage encodes");
    if (s->spec.patch ? m->rows != 3 * v->image_size || m->width != v->image_size
                      : m->payload != ESP_PAYLOAD_ROWS || m->rows != v->n_token || m->width != v->width)
        return esp_fail(err, ESP_E_PROTO, "a picture as f32[%u,%u]", m->rows, m->width);
    x = calloc(v->n_token, sizeof *x);
    if (!x)
        return esp_fail(err, ESP_E_NOMEM, "a picture");
    if (s->spec.patch) {
        const uint64_t picture = sim_picture(data, (size_t)m->rows * m->width);

        for (uint32_t i = 0; i < v->n_token; i++)
            x[i] = sim_patch(picture, i);
    } else {
        st = rows_take(x, data, v->n_token, v->width, err);
    }
    for (uint32_t i = 0; i < v->n_token; i++) {
        for (uint32_t l = s->spec.enc_lo; l < s->spec.enc_hi; l++)
            x[i] = sim_encode_layer(x[i], l);
        if (s->spec.projector)
            x[i] = sim_project(x[i]);
    }
    if (!st)
        st = rows_give(out, x, v->n_token, s->spec.projector ? s->c->text.width : v->width,
                       s->spec.projector ? ESP_PAYLOAD_FEATURES : ESP_PAYLOAD_ROWS, err);
    free(x);
    if (st)
        return st;
    atomic_fetch_add(&s->device->count.n_pictures, 1);
    out->compute_seconds = spend(s->device, begun, s->n_enc * s->device->profile.encode_layer_s);
    return ESP_OK;
}

static uint32_t image_slot(const struct esp_stage *s, uint64_t image)
{
    for (uint32_t i = 0; i < s->spec.max_images; i++)
        if (s->images[i] == image)
            return i;
    return SIM_NONE;
}

esp_status esp_stage_store(struct esp_stage *s, const struct esp_msg_encode *m, const void *data,
                           struct esp_err *err)
{
    uint32_t slot = image_slot(s, m->image);
    esp_status st;

    if (!s->spec.embed)
        return esp_fail(err, ESP_E_PROTO, "features go to the first decoder stage");
    if (m->rows != s->c->vision.n_token || m->width != s->c->text.width)
        return esp_fail(err, ESP_E_PROTO, "features as f32[%u,%u]", m->rows, m->width);
    if (slot == SIM_NONE)
        slot = image_slot(s, 0);
    if (slot == SIM_NONE)
        return esp_fail(err, ESP_E_LIMIT, "%u images are stored, takes no more", s->spec.max_images);
    st = rows_take(s->features + (size_t)slot * m->rows, data, m->rows, m->width, err);
    if (!st)
        s->images[slot] = m->image;
    return st;
}

/* ---- steps ---- */

/* As strict as the engine's. */
static esp_status seq_check(const struct esp_stage *s, const struct esp_seq_rows *q, struct esp_err *err)
{
    const uint32_t have = esp_kv_len(s->kv, q->seq);

    if (q->pos != have)
        return esp_fail(err, ESP_E_PROTO, "sequence %" PRIu64 ": position %u, expected %u", q->seq, q->pos,
                        have);
    if (q->pos > 0 && !esp_kv_exists(s->kv, q->seq))
        return esp_fail(err, ESP_E_PROTO, "sequence %" PRIu64 " is unknown", q->seq);
    if (q->n_prefix == 0 || (q->pos == 0 ? q->n_tok : q->pos) < q->n_prefix)
        return esp_fail(err, ESP_E_PROTO,
                        "sequence %" PRIu64 ": a prefix of %u comes whole in the first step", q->seq,
                        q->n_prefix);
    if (q->n_tok > s->spec.max_rows - q->pos)
        return esp_fail(err, ESP_E_LIMIT, "sequence %" PRIu64 ": %u positions, this placement takes %u",
                        q->seq, q->pos + q->n_tok, s->spec.max_rows);
    if (!s->spec.embed)
        return ESP_OK;
    if (q->n_images && (q->pos > 0 || q->n_images > q->n_prefix / s->c->vision.n_token))
        return esp_fail(err, ESP_E_PROTO, "sequence %" PRIu64 ": %u images in a prefix of %u at position %u",
                        q->seq, q->n_images, q->n_prefix, q->pos);
    for (uint32_t i = 0; i < q->n_images; i++)
        if (q->images[i] == 0 || image_slot(s, q->images[i]) == SIM_NONE)
            return esp_fail(err, ESP_E_PROTO, "sequence %" PRIu64 ": image %" PRIu64 " is not here", q->seq,
                            q->images[i]);
    return ESP_OK;
}

static esp_status step_check(const struct esp_stage *s, const struct esp_msg_step *m, const void *data,
                             struct esp_err *err)
{
    const uint32_t width = s->spec.embed ? 1 : s->c->text.width;
    esp_status st = ESP_OK;

    if (m->payload != (s->spec.embed ? ESP_PAYLOAD_TOKENS : ESP_PAYLOAD_ROWS) || m->width != width)
        return esp_fail(err, ESP_E_PROTO, "this stage takes %s of width %u, got width %u",
                        s->spec.embed ? "tokens" : "rows", width, m->width);
    if (m->rows > s->spec.max_rows || m->n_seqs > s->spec.max_seqs)
        return esp_fail(err, ESP_E_LIMIT, "%u rows of %u sequences in a step, this placement takes %u of %u",
                        m->rows, m->n_seqs, s->spec.max_rows, s->spec.max_seqs);
    for (uint32_t i = 0; !st && i < m->n_seqs; i++)
        st = seq_check(s, &m->seqs[i], err);
    for (uint32_t i = 0; !st && s->spec.embed && i < m->rows; i++) {
        int32_t id;

        memcpy(&id, (const char *)data + (size_t)i * sizeof id, sizeof id);
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

/* The rows before this stage's first layer. */
static esp_status rows_in(const struct esp_stage *s, const struct esp_msg_step *m, const void *data,
                          uint64_t *x, struct esp_err *err)
{
    const uint32_t n_token = s->c->vision.n_token;
    uint32_t row = 0;

    if (!s->spec.embed)
        return rows_take(x, data, m->rows, m->width, err);
    for (uint32_t i = 0; i < m->rows; i++) {
        int32_t id;

        memcpy(&id, (const char *)data + (size_t)i * sizeof id, sizeof id);
        x[i] = sim_embed(id);
    }
    for (uint32_t i = 0; i < m->n_seqs; row += m->seqs[i++].n_tok)
        for (uint32_t k = 0; k < m->seqs[i].n_images; k++)
            memcpy(x + row + k * n_token, s->features + (size_t)image_slot(s, m->seqs[i].images[k]) * n_token,
                   n_token * sizeof *x);
    return ESP_OK;
}

/* One sequence's rows through one layer: their cells, then what each sees. */
static void layer(struct esp_stage *s, const struct esp_seq_rows *q, uint64_t *x, uint32_t l)
{
    const uint32_t end = q->pos + q->n_tok;
    uint32_t n_blocks;
    const uint32_t *blocks = esp_kv_blocks(s->kv, q->seq, &n_blocks);
    uint64_t seen = 0, prefix = 0; /* of positions below p, and of the whole prefix */

    for (uint32_t p = 0; p < end; p++) {
        uint64_t *cell = &s->cell[((size_t)blocks[p / SIM_BLOCK] * SIM_BLOCK + p % SIM_BLOCK) * s->n_dec + l];

        if (p >= q->pos)
            *cell = sim_cell(x[p - q->pos], s->spec.dec_lo + l);
        seen += sim_seen(*cell, p);
        if (p + 1 == q->n_prefix)
            prefix = seen;
        if (p >= q->pos && p >= q->n_prefix)
            x[p - q->pos] = sim_decode_layer(x[p - q->pos], seen, s->spec.dec_lo + l);
    }
    for (uint32_t p = q->pos; p < q->n_prefix; p++)
        x[p - q->pos] = sim_decode_layer(x[p - q->pos], prefix, s->spec.dec_lo + l);
}

static esp_status result(struct esp_row_result *out, const struct esp_want *w, uint64_t x, uint32_t vocab,
                         struct esp_err *err)
{
    const uint32_t first = sim_choice(x, vocab), n = w->k < vocab ? w->k : vocab;
    uint32_t *ids = malloc((n + 1) * sizeof *ids), next = 0;
    float *logits = malloc((n + 1) * sizeof *logits);

    *out =
        (struct esp_row_result){.row = w->row, .n = n, .ids = ids, .logits = logits, .lse = sim_lse(vocab)};
    if (!ids || !logits)
        return esp_fail(err, ESP_E_NOMEM, "candidates");
    for (uint32_t i = 0; i < n; i++) { /* those that stand out, then the rest, alike and so by id */
        if (i < SIM_PEAK) {
            ids[i] = (first + i) % vocab;
        } else {
            while ((next + vocab - first) % vocab < SIM_PEAK)
                next++;
            ids[i] = next++;
        }
        logits[i] = sim_logit(x, ids[i], vocab);
    }
    out->target_logit = w->has_target ? sim_logit(x, w->target, vocab) : 0;
    return ESP_OK;
}

static esp_status results(const struct esp_stage *s, const struct esp_msg_step *m, const uint64_t *x,
                          struct esp_stage_out *out, struct esp_err *err)
{
    const uint32_t vocab = s->c->text.vocab;
    esp_status st = esp_stage_results_make(out, m, vocab, err);

    for (uint32_t i = 0; !st && i < m->n_wants; i++) {
        st = result(&out->results[out->n_results++], &m->wants[i], x[m->wants[i].row], vocab, err);
        if (st || !m->wants[i].full)
            continue;
        for (uint32_t v = 0; v < vocab; v++)
            out->full[(size_t)out->n_full * vocab + v] = sim_logit(x[m->wants[i].row], v, vocab);
        out->n_full++;
    }
    return st;
}

/* What is planned for is there; seconds: what it takes. */
static esp_status step_run(struct esp_stage *s, const struct esp_msg_step *m, const void *data,
                           struct esp_stage_out *out, double *seconds, struct esp_err *err)
{
    const struct sim_profile *p = &s->device->profile;
    uint64_t *x = calloc(m->rows, sizeof *x);
    uint32_t row = 0, n_prefix = 0;
    esp_status st;

    if (!x)
        return esp_fail(err, ESP_E_NOMEM, "%u rows", m->rows);
    st = rows_in(s, m, data, x, err);
    for (uint32_t i = 0; !st && i < m->n_seqs; row += m->seqs[i++].n_tok) {
        const struct esp_seq_rows *q = &m->seqs[i];

        for (uint32_t l = 0; l < s->n_dec; l++)
            layer(s, q, x + row, l);
        n_prefix += q->pos < q->n_prefix ? q->n_prefix - q->pos : 0;
    }
    if (!st)
        st = s->spec.head ? results(s, m, x, out, err)
                          : rows_give(out, x, m->rows, s->c->text.width, ESP_PAYLOAD_ROWS, err);
    free(x);
    *seconds =
        s->n_dec * (p->step_layer_s + (m->rows - n_prefix) * p->decode_row_s + n_prefix * p->prefill_row_s);
    if (s->spec.head && m->n_wants > 0)
        *seconds += p->head_s + m->n_wants * p->head_row_s;
    atomic_fetch_add(&s->device->count.n_steps, 1);
    atomic_fetch_add(&s->device->count.n_decode_rows, m->rows - n_prefix);
    atomic_fetch_add(&s->device->count.n_prefill_rows, n_prefix);
    return st;
}

esp_status esp_stage_step(struct esp_stage *s, const struct esp_msg_step *m, const void *data,
                          struct esp_stage_out *out, struct esp_err *err)
{
    const uint64_t begun = esp_now_ns();
    const struct esp_kv_copy *copies = NULL;
    uint32_t n_copies = 0;
    double seconds = 0;
    esp_status st = ESP_OK;

    memset(out, 0, sizeof *out);
    if (!s->kv)
        return esp_fail(err, ESP_E_PROTO, "this stage has no decoder layers");
    for (uint32_t i = 0; i < m->n_free; i++)
        esp_kv_free(s->kv, m->free[i]);
    for (uint32_t i = 0; i < m->n_forks; i++) {
        const esp_status forked = esp_kv_fork(s->kv, m->forks[i].seq, m->forks[i].from, st ? NULL : err);

        st = st ? st : forked;
    }
    if (!st)
        st = step_check(s, m, data, err);
    if (st)
        return st;
    for (uint32_t i = 0; i < m->n_seqs; i++)
        s->appends[i] = (struct esp_kv_append){m->seqs[i].seq, m->seqs[i].n_tok};
    st = esp_kv_plan(s->kv, s->appends, m->n_seqs, &copies, &n_copies, err);
    if (st)
        return st;
    for (uint32_t i = 0; i < n_copies; i++)
        memcpy(s->cell + (size_t)copies[i].to * SIM_BLOCK * s->n_dec,
               s->cell + (size_t)copies[i].from * SIM_BLOCK * s->n_dec,
               (size_t)SIM_BLOCK * s->n_dec * sizeof *s->cell);
    st = step_run(s, m, data, out, &seconds, err);
    if (st) {
        esp_kv_rollback(s->kv);
        esp_stage_out_finish(out);
        return st;
    }
    esp_kv_commit(s->kv);
    out->compute_seconds = spend(s->device, begun, seconds);
    return ESP_OK;
}

void esp_stage_release(struct esp_stage *s, const struct esp_msg_release *m)
{
    for (uint32_t i = 0; s->kv && i < m->n_seqs; i++)
        esp_kv_free(s->kv, m->seqs[i]);
    for (uint32_t i = 0; i < m->n_images; i++) {
        const uint32_t slot = m->images[i] ? image_slot(s, m->images[i]) : SIM_NONE;

        if (slot != SIM_NONE)
            s->images[slot] = 0;
    }
}
