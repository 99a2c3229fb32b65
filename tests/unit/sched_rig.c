#include "tests/unit/sched_rig.h"

#include <math.h>
#include <stdio.h>

#include "coordinator/flight.h"

/* ---- the model ---- */

static uint64_t mix(uint64_t h, uint64_t v)
{
    h ^= v + 0x9e3779b97f4a7c15u + (h << 6) + (h >> 2);
    h *= 0xbf58476d1ce4e5b9u;
    return h ^ (h >> 29);
}

static void logits_of(float *out, uint64_t h)
{
    for (uint32_t v = 0; v < RIG_VOCAB; v++)
        out[v] = (float)(mix(h, v) >> 40) / (float)(1 << 24) * 8.0f;
    if (h % 11 == 0)
        out[RIG_EOS] = 9.0f;
}

static float lse_of(const float *logits)
{
    double sum = 0;

    for (uint32_t v = 0; v < RIG_VOCAB; v++)
        sum += exp(logits[v] - 9.0);
    return (float)(9.0 + log(sum));
}

static struct rig_seq *seq_of(struct rig_stage *stage, uint64_t id)
{
    for (uint32_t i = 0; i < RIG_SEQS; i++)
        if (stage->seq[i].id == id)
            return &stage->seq[i];
    return NULL;
}

static struct rig_seq *new_seq(struct rig_stage *stage, uint64_t id)
{
    struct rig_seq *s = seq_of(stage, 0);

    assert_null(seq_of(stage, id));
    assert_non_null(s);
    *s = (struct rig_seq){.id = id};
    return s;
}

static void forget(struct rig_stage *stage, uint64_t id)
{
    struct rig_seq *s = seq_of(stage, id);

    esp_kv_free(stage->kv, id);
    if (s)
        s->id = 0;
}

/* How far a step gets in a stage. */
enum reach { ALL, FORKS, FREES };

static void apply(struct rig_stage *stage, const struct esp_flight *f, enum reach reach)
{
    const struct esp_msg_step *m = &f->step;
    struct esp_kv_append appends[RIG_SEQS];
    const struct esp_kv_copy *copies;
    uint32_t n_copies, row = 0;
    bool prefill = false;
    struct esp_err err;

    for (uint32_t i = 0; i < m->n_free; i++)
        forget(stage, m->free[i]);
    if (reach == FREES)
        return;
    for (uint32_t i = 0; i < m->n_forks; i++) {
        struct rig_seq *to = new_seq(stage, m->forks[i].seq);

        assert_non_null(seq_of(stage, m->forks[i].from));
        assert_int_equal(esp_kv_fork(stage->kv, to->id, m->forks[i].from, NULL), ESP_OK);
        *to = *seq_of(stage, m->forks[i].from);
        to->id = m->forks[i].seq;
    }
    if (reach == FORKS)
        return;
    for (uint32_t i = 0; i < m->n_seqs; i++) {
        const struct esp_seq_rows *r = &m->seqs[i];

        if (r->pos == 0)
            new_seq(stage, r->seq);
        assert_non_null(seq_of(stage, r->seq));
        assert_int_equal(r->pos, esp_kv_len(stage->kv, r->seq));
        assert_true(r->pos == 0 ? r->n_tok >= r->n_prefix : r->pos >= r->n_prefix);
        appends[i] = (struct esp_kv_append){r->seq, r->n_tok};
        prefill |= r->pos < r->n_prefix;
    }
    if (esp_kv_plan(stage->kv, appends, m->n_seqs, &copies, &n_copies, &err))
        fail_msg("step %llu: %s", (unsigned long long)m->id, err.text);
    esp_kv_commit(stage->kv);
    for (uint32_t i = 0; i < m->n_seqs; i++) {
        struct rig_seq *s = seq_of(stage, m->seqs[i].seq);

        for (uint32_t j = 0; j < m->seqs[i].n_tok; j++, s->n++) {
            assert_true(s->n < RIG_TOKENS);
            s->past[s->n] = mix(s->n ? s->past[s->n - 1] : 7, 2 * (uint64_t)f->ids[row++] + prefill);
        }
    }
    assert_int_equal(row, m->rows);
}

/* The hash behind each row of a step that the stage has done. */
static void rows_of(uint64_t *out, struct rig_stage *stage, const struct esp_msg_step *m)
{
    for (uint32_t i = 0; i < m->n_seqs; i++)
        for (uint32_t j = 0; j < m->seqs[i].n_tok; j++)
            *out++ = seq_of(stage, m->seqs[i].seq)->past[m->seqs[i].pos + j];
}

static void row_result(struct esp_row_result *out, uint32_t *ids, float *tops, float *full,
                       const struct esp_want *w, uint64_t h)
{
    float l[RIG_VOCAB];

    logits_of(l, h);
    *out = (struct esp_row_result){.row = w->row, .lse = lse_of(l), .ids = ids, .logits = tops};
    out->n = w->k < RIG_VOCAB ? w->k : RIG_VOCAB;
    if (w->has_target)
        out->target_logit = l[w->target];
    if (full)
        memcpy(full, l, sizeof l);
    for (uint32_t k = 0; k < out->n; k++) {
        uint32_t best = 0;

        for (uint32_t v = 1; v < RIG_VOCAB; v++)
            if (l[v] > l[best])
                best = v;
        ids[k] = best;
        tops[k] = l[best];
        l[best] = -INFINITY;
    }
}

/* ---- the rig ---- */

struct esp_sched_room sched_rig_room(uint32_t n_stages)
{
    return (struct esp_sched_room){.epoch = 1,
                                   .kv_blocks = 10000,
                                   .block_tokens = 8,
                                   .max_rows = 2000,
                                   .max_seqs = RIG_SEQS,
                                   .max_images = 16,
                                   .n_stages = n_stages,
                                   .max_steps = n_stages + 1 + n_stages / 2,
                                   .max_encodes = 2};
}

static void books_open(struct sched_rig *rig)
{
    for (uint32_t i = 0; i < rig->room.n_stages; i++) {
        struct rig_stage *s = &rig->stage[i];

        s->seq = calloc(RIG_SEQS, sizeof *s->seq);
        assert_non_null(s->seq);
        assert_int_equal(esp_kv_create(&s->kv, (uint32_t)rig->room.kv_blocks, rig->room.block_tokens,
                                       rig->room.max_seqs, RIG_TOKENS / rig->room.block_tokens, NULL),
                         ESP_OK);
    }
}

static void books_close(struct sched_rig *rig)
{
    for (uint32_t i = 0; i < RIG_STAGES; i++) {
        esp_kv_destroy(&rig->stage[i].kv);
        free(rig->stage[i].seq);
        rig->stage[i].seq = NULL;
    }
}

void sched_rig_open(struct sched_rig *rig, const struct esp_sched_room *room)
{
    memset(rig, 0, sizeof *rig);
    rig->now = 1;
    rig->room = *room;
    assert_int_equal(esp_sched_create(&rig->sched, NULL), ESP_OK);
    esp_sched_open(rig->sched, room);
    books_open(rig);
}

void sched_rig_close(struct sched_rig *rig)
{
    struct esp_sched_counts counts;

    sched_rig_dispatch(rig);
    esp_sched_counts(rig->sched, &counts);
    if (counts.n_ended == rig->last_session) {
        assert_int_equal(counts.blocks_used, 0);
        for (uint32_t i = 0; i < rig->room.n_stages; i++) {
            assert_int_equal(esp_kv_n_seqs(rig->stage[i].kv), 0);
            assert_int_equal(esp_kv_used_blocks(rig->stage[i].kv), 0);
        }
    } else {
        fail_msg("%llu of %llu sessions have ended", (unsigned long long)counts.n_ended,
                 (unsigned long long)rig->last_session);
    }
    esp_sched_destroy(&rig->sched);
    books_close(rig);
}

struct esp_session *sched_rig_ask(struct sched_rig *rig, const struct sched_ask *ask)
{
    static const uint32_t suffix[] = {30, 31, 32, 33};
    struct esp_peer client = {.n = 1, .id = {ask->client}};
    const struct esp_msg_request r = {.id = ++rig->last_session,
                                      .max_tokens = ask->max_tokens,
                                      .n_images = ask->n_images,
                                      .trace = ask->trace};
    struct esp_decode_params p = {.n_prefix = ask->n_prefix ? ask->n_prefix : 10,
                                  .suffix = suffix,
                                  .n_suffix = ask->n_suffix,
                                  .n_images = ask->n_images,
                                  .sampling = ask->sampling,
                                  .max_tokens = ask->max_tokens,
                                  .score = ask->score,
                                  .full_first = ask->trace,
                                  .eos = RIG_EOS,
                                  .vocab = RIG_VOCAB};
    uint32_t prefix[RIG_TOKENS];
    struct esp_session *s, *out;
    struct esp_err err;

    for (uint32_t i = 0; i < p.n_prefix; i++)
        prefix[i] = (uint32_t)(mix(rig->last_session, i) % RIG_VOCAB);
    p.prefix = prefix;
    assert_int_equal(esp_session_create(&s, rig->last_session, &client, &r, rig->now, NULL), ESP_OK);
    if (esp_decode_create(&s->decode, &p, esp_sched_seqs(rig->sched), &err))
        fail_msg("%s", err.text);
    s->job = calloc(1, sizeof *s->job);
    assert_non_null(s->job);
    if (ask->n_images) {
        s->job->pixels = calloc(ask->n_images, sizeof *s->job->pixels);
        s->job->hash = calloc(ask->n_images, sizeof *s->job->hash);
        assert_true(s->job->pixels && s->job->hash);
        for (uint32_t i = 0; i < ask->n_images; i++)
            s->job->hash[i][0] = ask->picture[i];
    }
    s->state = ESP_SESSION_QUEUED;
    out = s;
    esp_sched_add(rig->sched, &s);
    return out;
}

static void check_step(struct sched_rig *rig, const struct esp_flight *f)
{
    const struct esp_msg_step *m = &f->step;

    assert_int_equal(m->epoch, rig->room.epoch);
    assert_int_equal(m->id, rig->last_step + 1);
    rig->last_step = m->id;
    assert_true(m->rows <= rig->room.max_rows && m->n_seqs <= rig->room.max_seqs);
    for (uint32_t i = 0; i < m->n_seqs; i++) {
        assert_int_equal(m->seqs[i].pos == 0, m->seqs[0].pos == 0); /* first parts, or later ones */
        for (uint32_t j = 0; j < m->seqs[i].n_images; j++) {
            bool here = false;

            for (uint32_t k = 0; k < rig->n_images; k++)
                here |= rig->image[k] == m->seqs[i].images[j];
            assert_true(here);
        }
    }
    for (uint32_t i = 0; i < f->n_parts; i++)
        for (uint32_t k = 0; k < rig->n_out; k++)
            for (uint32_t j = 0; j < rig->out[k]->n_parts; j++)
                assert_ptr_not_equal(rig->out[k]->parts[j].session, f->parts[i].session);
    if (f->n_parts > rig->most_sessions)
        rig->most_sessions = f->n_parts;
}

void sched_rig_dispatch(struct sched_rig *rig)
{
    uint64_t seqs[64], images[64];
    uint32_t n_seqs, n_images, index;
    struct esp_session *s;
    struct esp_flight *f;

    rig->now += 1;
    while (esp_sched_reap(rig->sched, seqs, &n_seqs, images, &n_images, 64)) {
        for (uint32_t i = 0; i < n_seqs; i++)
            for (uint32_t k = 0; k < rig->room.n_stages; k++)
                forget(&rig->stage[k], seqs[i]);
        for (uint32_t i = 0; i < n_images; i++)
            for (uint32_t k = 0; k < rig->n_images; k++)
                if (rig->image[k] == images[i])
                    rig->image[k--] = rig->image[--rig->n_images];
    }
    while (esp_sched_admit(rig->sched, rig->now))
        ;
    while (esp_sched_next_encode(rig->sched, &s, &index, rig->now)) {
        assert_non_null(s->job->pixels);
        assert_true(rig->n_encoding < rig->room.max_encodes);
        rig->encoding[rig->n_encoding++] = s->features[index]->image;
    }
    while ((f = esp_sched_next_step(rig->sched, rig->now))) {
        check_step(rig, f);
        assert_true(rig->n_out < rig->room.max_steps);
        rig->out[rig->n_out++] = f;
    }
}

static struct esp_flight *oldest(struct sched_rig *rig)
{
    struct esp_flight *f = rig->out[0];

    assert_true(rig->n_out > 0);
    memmove(rig->out, rig->out + 1, --rig->n_out * sizeof *rig->out);
    return f;
}

/* As server_work.c does. */
static void take(struct sched_rig *rig, struct esp_flight *f)
{
    const uint32_t n = f->step.n_wants + 1;
    struct esp_row_result *rows = calloc(n, sizeof *rows);
    uint32_t *ids = calloc((size_t)n * RIG_VOCAB, sizeof *ids);
    float *tops = calloc((size_t)n * RIG_VOCAB, sizeof *tops),
          *full = calloc((size_t)n * RIG_VOCAB, sizeof *full);
    uint64_t *past = calloc(f->step.rows, sizeof *past);
    struct esp_msg_result result = {.n_rows = f->step.n_wants, .rows = rows, .vocab = RIG_VOCAB};
    struct esp_err err = {0};

    assert_true(rows && ids && tops && full && past);
    rows_of(past, &rig->stage[rig->room.n_stages - 1], &f->step);
    for (uint32_t i = 0; i < f->step.n_wants; i++) {
        const struct esp_want *w = &f->step.wants[i];
        const size_t at = (size_t)i * RIG_VOCAB;

        row_result(&rows[i], ids + at, tops + at, w->full ? full + (size_t)result.n_full++ * RIG_VOCAB : NULL,
                   w, past[w->row]);
    }
    if (esp_flight_check(f, &result, full, RIG_VOCAB, &err))
        fail_msg("%s", err.text);
    for (uint32_t i = 0; i < f->n_parts; i++) {
        const struct esp_flight_part *p = &f->parts[i];
        bool done = false;

        if (p->session->state != ESP_SESSION_RUNNING)
            continue;
        if (esp_decode_take(p->session->decode, rows + p->want, full + (size_t)p->full * RIG_VOCAB, &done,
                            &err))
            esp_sched_end(rig->sched, p->session, &err, rig->now);
        else if (done)
            esp_sched_end(rig->sched, p->session, NULL, rig->now);
    }
    free(rows);
    free(ids);
    free(tops);
    free(full);
    free(past);
    esp_sched_land(rig->sched, &f);
}

bool sched_rig_home(struct sched_rig *rig)
{
    if (rig->n_encoding > 0) {
        rig->image[rig->n_images++] = rig->encoding[0];
        esp_sched_stored(rig->sched, esp_sched_feature(rig->sched, rig->encoding[0]), NULL, rig->now);
        memmove(rig->encoding, rig->encoding + 1, --rig->n_encoding * sizeof *rig->encoding);
    } else if (rig->n_out > 0) {
        struct esp_flight *f = oldest(rig);

        for (uint32_t k = 0; k < rig->room.n_stages; k++)
            apply(&rig->stage[k], f, ALL);
        take(rig, f);
    } else {
        return false;
    }
    rig->n_home++;
    return true;
}

void sched_rig_fail(struct sched_rig *rig, uint32_t stage, esp_status code)
{
    struct esp_flight *f = oldest(rig);
    struct esp_err err;

    for (uint32_t k = 0; k < rig->room.n_stages; k++)
        apply(&rig->stage[k], f, k < stage ? ALL : k == stage ? FORKS : FREES);
    esp_fail(&err, code, "stage %u failed", stage);
    esp_sched_fail_step(rig->sched, &f, &err, rig->now);
}

void sched_rig_run(struct sched_rig *rig, uint32_t until)
{
    do
        sched_rig_dispatch(rig);
    while (rig->n_home < until && sched_rig_home(rig));
}

void sched_rig_lose(struct sched_rig *rig)
{
    esp_sched_suspend(rig->sched, rig->now);
    rig->n_out = rig->n_encoding = rig->n_images = 0;
    books_close(rig);
}

void sched_rig_reopen(struct sched_rig *rig, const struct esp_sched_room *room)
{
    const uint64_t epoch = rig->room.epoch + 1;

    rig->room = *room;
    rig->room.epoch = epoch;
    rig->last_step = 0;
    books_open(rig);
    esp_sched_open(rig->sched, &rig->room);
}

void sched_rig_answer(char out[RIG_ANSWER], const struct esp_session *s)
{
    struct esp_decode_hyp h;
    size_t n = 0;

    assert_int_equal(s->state, ESP_SESSION_ENDED);
    if (s->st) {
        snprintf(out, RIG_ANSWER, "%s: %s", esp_status_name(s->st), s->err.text);
        return;
    }
    for (uint32_t i = 0; esp_decode_hyp(s->decode, i, &h); i++) {
        for (uint32_t k = 0; k < h.n_ids && n < RIG_ANSWER - 64; k++)
            n += (size_t)snprintf(out + n, RIG_ANSWER - n, "%u ", h.ids[k]);
        n += (size_t)snprintf(out + n, RIG_ANSWER - n, "%s%.17g|", h.eos ? "eos " : "", h.sum);
        assert_true(n < RIG_ANSWER - 32);
    }
}
