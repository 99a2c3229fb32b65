#include "coordinator/decode_state.h"

#include <stdlib.h>
#include <string.h>

static esp_status sampling_check(const struct esp_msg_sampling *s, bool score, uint32_t vocab,
                                 struct esp_err *err)
{
    const struct esp_sample_params params = {.temperature = s->temperature,
                                             .top_k = s->top_k,
                                             .top_p = s->top_p,
                                             .ban = s->ban,
                                             .n_ban = s->n_ban};

    if (s->beams > 1 && s->best_of > 1)
        return esp_fail(err, ESP_E_ARG, "--beams and --best-of exclude each other");
    if (s->beams > 1 && s->temperature > 0)
        return esp_fail(err, ESP_E_ARG, "--beams does not sample: leave out --temperature");
    if (score && (s->beams > 1 || s->best_of > 1))
        return esp_fail(err, ESP_E_ARG, "a score needs neither --beams nor --best-of");
    if (s->beams > ESP_DECODE_MAX_SEQS)
        return esp_fail(err, ESP_E_ARG, "--beams %u: %d at most", s->beams, ESP_DECODE_MAX_SEQS);
    if (s->best_of > ESP_DECODE_MAX_SEQS)
        return esp_fail(err, ESP_E_ARG, "--best-of %u: %d at most", s->best_of, ESP_DECODE_MAX_SEQS);
    if (s->has_length_penalty && s->beams <= 1)
        return esp_fail(err, ESP_E_ARG, "--length-penalty needs --beams");
    if (s->has_eos && s->eos >= vocab)
        return esp_fail(err, ESP_E_ARG, "--eos %u: the vocabulary has %u rows", s->eos, vocab);
    return esp_sample_params_check(&params, vocab, err);
}

esp_status esp_decode_check(const struct esp_msg_request *request, uint32_t vocab, struct esp_err *err)
{
    if (!request->score && request->max_tokens == 0)
        return esp_fail(err, ESP_E_ARG, "--max-tokens must be at least 1");
    return sampling_check(&request->sampling, request->score, vocab, err);
}

static void *copy_of(const void *src, size_t n_bytes)
{
    void *p = malloc(n_bytes ? n_bytes : 1);

    if (p && n_bytes)
        memcpy(p, src, n_bytes);
    return p;
}

/* The first part's ids: prefix, suffix and, when it is scored, the end token. */
static esp_status first_ids(struct esp_decode *d, const struct esp_decode_params *p, struct esp_err *err)
{
    const uint32_t n_end = p->score && !p->no_eos;
    size_t n;

    if (p->n_prefix == 0)
        return esp_fail(err, ESP_E_ARG, "an empty prompt");
    if (p->score && p->n_suffix + n_end == 0)
        return esp_fail(err, ESP_E_ARG,
                        "nothing to score: the suffix is empty and its end token is left out");
    if (!esp_add(&n, p->n_prefix, p->n_suffix) || !esp_add(&n, n, n_end) || n > ESP_MAX_ROWS)
        return esp_fail(err, ESP_E_LIMIT, "a prompt of more than %d tokens", ESP_MAX_ROWS);
    d->n_first = (uint32_t)n;
    d->first = malloc(n * sizeof *d->first);
    if (!d->first)
        return esp_fail(err, ESP_E_NOMEM, "a prompt of %zu tokens", n);
    for (uint32_t i = 0; i < p->n_prefix; i++)
        d->first[i] = (int32_t)p->prefix[i];
    for (uint32_t i = 0; i < p->n_suffix; i++)
        d->first[p->n_prefix + i] = (int32_t)p->suffix[i];
    if (n_end)
        d->first[n - 1] = (int32_t)d->eos;
    return ESP_OK;
}

static esp_status arrays(struct esp_decode *d, struct esp_err *err)
{
    const size_t n = d->n_max;
    const size_t n_wants = d->full_first || d->mode == ESP_DECODE_SCORE ? d->n_first : 1;

    d->live = calloc(n, sizeof *d->live);
    d->spare_live = calloc(n, sizeof *d->spare_live);
    d->free = calloc(n, sizeof *d->free);
    d->forks = calloc(n, sizeof *d->forks);
    d->held = calloc(2 * n, sizeof *d->held);
    d->parent = calloc(n, sizeof *d->parent);
    d->token = calloc(n, sizeof *d->token);
    d->beam_next = calloc(n, sizeof *d->beam_next);
    d->cand = calloc(n, sizeof *d->cand);
    d->seqs = calloc(n, sizeof *d->seqs);
    d->ids = calloc(n, sizeof *d->ids);
    d->wants = calloc(n > n_wants ? n : n_wants, sizeof *d->wants);
    d->sample = calloc(d->n_samples ? d->n_samples : 1, sizeof *d->sample);
    d->order = calloc(d->n_samples ? d->n_samples : 1, sizeof *d->order);
    if (!d->live || !d->spare_live || !d->free || !d->forks || !d->held || !d->parent || !d->token ||
        !d->beam_next || !d->cand || !d->seqs || !d->ids || !d->wants || !d->sample || !d->order)
        return esp_fail(err, ESP_E_NOMEM, "a session of %zu sequences", n);
    for (uint32_t i = 0; i < d->n_samples; i++)
        d->order[i] = i;
    return ESP_OK;
}

esp_status esp_decode_create(struct esp_decode **out, const struct esp_decode_params *params,
                             uint64_t *next_seq, struct esp_err *err)
{
    const struct esp_msg_sampling *s = &params->sampling;
    struct esp_decode *d = NULL;
    esp_status st;

    *out = NULL;
    st = sampling_check(s, params->score, params->vocab, err);
    if (st)
        goto done;
    d = calloc(1, sizeof *d);
    if (!d) {
        st = esp_fail(err, ESP_E_NOMEM, "a session");
        goto done;
    }
    d->mode = params->score ? ESP_DECODE_SCORE : s->beams > 1 ? ESP_DECODE_BEAM : ESP_DECODE_SAMPLE;
    d->n_max = d->mode == ESP_DECODE_BEAM                       ? s->beams
               : d->mode == ESP_DECODE_SAMPLE && s->best_of > 1 ? s->best_of
                                                                : 1;
    d->n_samples = d->mode == ESP_DECODE_BEAM ? 0 : d->n_max;
    d->n_prefix = params->n_prefix;
    d->n_suffix = params->n_suffix;
    d->n_images = params->n_images;
    d->max_tokens = params->max_tokens;
    d->vocab = params->vocab;
    d->full_first = params->full_first;
    d->eos = s->has_eos ? s->eos : params->eos;
    d->has_eos = !s->ignore_eos;
    d->next_seq = next_seq;
    st = first_ids(d, params, err);
    if (st)
        goto done;
    d->images = calloc(params->n_images ? params->n_images : 1, sizeof *d->images);
    d->ban = copy_of(s->ban, s->n_ban * sizeof *d->ban);
    if (!d->images || !d->ban) {
        st = esp_fail(err, ESP_E_NOMEM, "a session");
        goto done;
    }
    d->sampling = (struct esp_sample_params){.temperature = s->temperature,
                                             .top_k = s->top_k,
                                             .top_p = s->top_p,
                                             .seed = s->seed,
                                             .ban = d->ban,
                                             .n_ban = s->n_ban};
    st = arrays(d, err);
    if (st)
        goto done;
    if (d->mode == ESP_DECODE_BEAM) {
        const struct esp_beam_params bp = {.rule = s->has_length_penalty ? ESP_BEAM_HF : ESP_BEAM_BIG_VISION,
                                           .n_beam = s->beams,
                                           .length_penalty = s->length_penalty,
                                           .max_tokens = d->max_tokens,
                                           .eos = &d->eos,
                                           .n_eos = d->has_eos,
                                           .ban = d->ban,
                                           .n_ban = s->n_ban,
                                           .vocab = d->vocab};
        st = esp_beam_create(&d->beam, &bp, err);
        if (st)
            goto done;
    }
    d->n_live = 1;
    d->live[0].seq = ++*next_seq;
    *out = d;
    d = NULL;
done:
    esp_decode_destroy(&d);
    return st;
}

void esp_decode_destroy(struct esp_decode **d)
{
    struct esp_decode *p = *d;

    if (!p)
        return;
    for (uint32_t i = 0; p->sample && i < p->n_samples; i++) {
        free(p->sample[i].ids);
        free(p->sample[i].logprobs);
    }
    esp_beam_destroy(&p->beam);
    free(p->first);
    free(p->images);
    free(p->ban);
    free(p->live);
    free(p->spare_live);
    free(p->free);
    free(p->forks);
    free(p->held);
    free(p->parent);
    free(p->token);
    free(p->beam_next);
    free(p->cand);
    free(p->seqs);
    free(p->ids);
    free(p->wants);
    free(p->sample);
    free(p->order);
    free(p->past);
    free(p);
    *d = NULL;
}

void esp_decode_set_image(struct esp_decode *d, uint32_t i, uint64_t image)
{
    if (i < d->n_images)
        d->images[i] = image;
}

uint32_t esp_decode_first_rows(const struct esp_decode *d)
{
    return d->n_first;
}

uint64_t esp_decode_max_len(const struct esp_decode *d)
{
    /* The last token of all is chosen, but never fed. */
    return d->mode == ESP_DECODE_SCORE ? d->n_first : (uint64_t)d->n_first + d->max_tokens - 1;
}

uint32_t esp_decode_max_seqs(const struct esp_decode *d)
{
    return d->n_max;
}

uint64_t esp_decode_max_blocks(const struct esp_decode *d, uint32_t block_tokens)
{
    const uint64_t whole = (esp_decode_max_len(d) + block_tokens - 1) / block_tokens;
    const uint64_t shared = d->n_max > 1 ? d->n_first / block_tokens : 0;

    return shared + d->n_max * (whole - shared);
}

/* What a row must bring that the next choice is made from. */
static struct esp_want choice_want(const struct esp_decode *d, uint32_t row)
{
    struct esp_want w = {.row = row};

    if (d->mode == ESP_DECODE_BEAM)
        esp_beam_need(d->beam, &w.k, &w.full, &w.has_target, &w.target);
    else
        esp_sample_need(&d->sampling, &w.k, &w.full);
    return w;
}

static uint32_t first_wants(struct esp_decode *d)
{
    uint32_t n = 0;

    for (uint32_t r = d->full_first ? 0 : d->n_prefix - 1; r < d->n_first; r++) {
        struct esp_want w = {.row = r};

        if (d->mode == ESP_DECODE_SCORE && r >= d->n_prefix - 1 && r + 1 < d->n_first) {
            w.has_target = true; /* row r predicts the token of row r + 1 */
            w.target = (uint32_t)d->first[r + 1];
        } else if (d->mode != ESP_DECODE_SCORE && r + 1 == d->n_first) {
            w = choice_want(d, r);
        } else if (!d->full_first) {
            continue;
        }
        w.full |= d->full_first;
        d->wants[n++] = w;
    }
    return n;
}

void esp_decode_first_part(struct esp_decode *d)
{
    d->seqs[0] = (struct esp_seq_rows){.seq = d->live[0].seq,
                                       .n_tok = d->n_first,
                                       .n_prefix = d->n_prefix,
                                       .n_images = d->n_images,
                                       .images = d->images};
    d->part.n_seqs = 1;
    d->part.n_rows = d->n_first;
    d->part.ids = d->first;
}

const struct esp_part *esp_decode_next(struct esp_decode *d)
{
    d->part = (struct esp_part){.vocab = d->vocab,
                                .n_free = d->n_free,
                                .n_forks = d->n_forks,
                                .n_seqs = d->n_live,
                                .free = d->free,
                                .forks = d->forks,
                                .seqs = d->seqs,
                                .wants = d->wants};
    if (d->rebuild) {
        esp_decode_rebuild_part(d);
    } else if (d->n_steps == 0) {
        esp_decode_first_part(d);
        d->part.n_wants = first_wants(d);
    } else {
        for (uint32_t i = 0; i < d->n_live; i++) {
            d->seqs[i] = (struct esp_seq_rows){
                .seq = d->live[i].seq, .pos = d->len, .n_tok = 1, .n_prefix = d->n_prefix};
            d->ids[i] = (int32_t)d->live[i].token;
            d->wants[i] = choice_want(d, i);
        }
        d->part.n_rows = d->part.n_wants = d->n_live;
        d->part.ids = d->ids;
    }
    for (uint32_t i = 0; i < d->part.n_wants; i++)
        d->part.n_full += d->wants[i].full;
    /* What the workers may know from here. The freed go in the same step, if it arrives. */
    d->n_held = 0;
    for (uint32_t i = 0; i < d->part.n_seqs; i++)
        d->held[d->n_held++] = d->live[i].seq;
    for (uint32_t i = 0; i < d->part.n_free; i++)
        d->held[d->n_held++] = d->free[i];
    return &d->part;
}

uint32_t esp_decode_next_rows(const struct esp_decode *d)
{
    if (esp_decode_at_start(d))
        return d->n_first;
    if (d->rebuild && d->len - d->built > 0)
        return d->n_live * (d->len - d->built < d->chunk ? d->len - d->built : d->chunk);
    return d->n_live;
}

bool esp_decode_at_start(const struct esp_decode *d)
{
    return d->rebuild ? d->built == 0 : d->n_steps == 0;
}

/* The living sequences become children: child i continues sequence parent[i] with token[i]. */
static void go_on(struct esp_decode *d, uint32_t n, const uint32_t *sample)
{
    struct esp_decode_live *const old = d->live, *const new = d->spare_live;
    const uint32_t n_old = d->n_live;

    d->n_free = d->n_forks = 0;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t p = d->parent[i];
        bool taken = false;

        for (uint32_t j = 0; j < i; j++)
            taken |= d->parent[j] == p;
        new[i] = (struct esp_decode_live){
            .seq = old[p].seq, .token = d->token[i], .sample = sample ? sample[i] : 0};
        if (taken) {
            new[i].seq = ++*d->next_seq;
            d->forks[d->n_forks++] = (struct esp_fork){.seq = new[i].seq, .from = old[p].seq};
        }
    }
    for (uint32_t p = 0; p < n_old; p++) {
        bool taken = false;

        for (uint32_t i = 0; i < n; i++)
            taken |= d->parent[i] == p;
        if (!taken)
            d->free[d->n_free++] = old[p].seq;
    }
    d->live = new;
    d->spare_live = old;
    d->n_live = n;
}

esp_status esp_decode_keep(struct esp_decode_sample *s, bool is_id, uint32_t id, double logprob,
                           struct esp_err *err)
{
    if (s->n_logprobs == s->n_cap) {
        const uint32_t n_cap = s->n_cap ? 2 * s->n_cap : 64;
        uint32_t *ids = realloc(s->ids, n_cap * sizeof *ids);
        double *logprobs;

        if (!ids)
            return esp_fail(err, ESP_E_NOMEM, "%u generated tokens", n_cap);
        s->ids = ids;
        logprobs = realloc(s->logprobs, n_cap * sizeof *logprobs);
        if (!logprobs)
            return esp_fail(err, ESP_E_NOMEM, "%u generated tokens", n_cap);
        s->logprobs = logprobs;
        s->n_cap = n_cap;
    }
    if (is_id)
        s->ids[s->n_ids++] = id;
    s->logprobs[s->n_logprobs++] = logprob;
    return ESP_OK;
}

static esp_status take_score(struct esp_decode *d, const struct esp_cand_row *cand, uint32_t n,
                             struct esp_err *err)
{
    esp_status st = ESP_OK;

    for (uint32_t i = 0; !st && i < n; i++)
        st = esp_decode_keep(&d->sample[0], i < d->n_suffix, cand[i].target,
                             esp_cand_logprob(&cand[i], cand[i].target_logit), err);
    d->sample[0].eos = n > d->n_suffix;
    d->n_chosen += n;
    d->done = true;
    return st;
}

void esp_decode_rank(struct esp_decode *d)
{
    struct esp_sampled s[ESP_DECODE_MAX_SEQS];

    for (uint32_t i = 0; i < d->n_samples; i++) {
        uint32_t best;

        for (uint32_t j = i; j < d->n_samples; j++)
            s[j] = (struct esp_sampled){d->sample[d->order[j]].logprobs, d->sample[d->order[j]].n_logprobs};
        best = i + esp_best_of(s + i, d->n_samples - i, ESP_BEST_MEAN);
        for (uint32_t j = best; j > i; j--) { /* the others keep their order */
            const uint32_t t = d->order[j];
            d->order[j] = d->order[j - 1];
            d->order[j - 1] = t;
        }
    }
}

static esp_status take_samples(struct esp_decode *d, const struct esp_cand_row *cand, struct esp_err *err)
{
    const bool first = d->n_steps == 0;
    const uint32_t n_draw = first ? d->n_samples : d->n_live; /* all samples start from the one first row */
    uint32_t sample[ESP_DECODE_MAX_SEQS];
    uint32_t n = 0;

    d->n_chosen += n_draw;
    for (uint32_t i = 0; i < n_draw; i++) {
        const uint32_t parent = first ? 0 : i;
        const uint32_t which = first ? i : d->live[i].sample;
        struct esp_decode_sample *s = &d->sample[which];
        double logprob;
        uint32_t id;
        esp_status st = esp_sample(&id, &logprob, &cand[parent], &d->sampling, which, s->n_logprobs, err);

        if (st)
            return st;
        s->eos = d->has_eos && id == d->eos;
        st = esp_decode_keep(s, !s->eos, id, logprob, err);
        if (st)
            return st;
        if (s->eos || s->n_logprobs == d->max_tokens)
            continue;
        d->parent[n] = parent;
        d->token[n] = id;
        sample[n++] = which;
    }
    d->done = n == 0;
    if (d->done)
        esp_decode_rank(d);
    else
        go_on(d, n, sample);
    return ESP_OK;
}

static esp_status take_beams(struct esp_decode *d, const struct esp_cand_row *cand, struct esp_err *err)
{
    uint32_t n_next = 0;
    bool done = false;
    esp_status st = esp_beam_step(d->beam, d->beam_next, &n_next, &done, cand, d->n_live, err);

    if (st)
        return st;
    d->done = done || n_next == 0;
    d->n_chosen += d->n_live;
    if (!d->done) {
        for (uint32_t i = 0; i < n_next; i++) {
            d->parent[i] = d->beam_next[i].parent;
            d->token[i] = d->beam_next[i].token;
        }
        go_on(d, n_next, NULL);
    }
    return ESP_OK;
}

esp_status esp_decode_take(struct esp_decode *d, const struct esp_row_result *rows, const float *full,
                           bool *done, struct esp_err *err)
{
    struct esp_cand_row *cand = d->cand, *many = NULL;
    uint32_t n_cand = 0, n_full = 0;
    esp_status st = ESP_OK;

    d->n_held = d->part.n_seqs; /* it has been everywhere, and what it freed is forgotten */
    if (d->rebuild) {
        esp_decode_rebuild_took(d);
        *done = false;
        return ESP_OK;
    }
    if (d->part.n_wants > d->n_max) { /* the first part of a score */
        many = calloc(d->part.n_wants, sizeof *many);
        if (!many)
            return esp_fail(err, ESP_E_NOMEM, "%u rows of a result", d->part.n_wants);
        cand = many;
    }
    for (uint32_t i = 0; i < d->part.n_wants; i++) {
        const struct esp_want *w = &d->part.wants[i];
        const float *mine = w->full && full ? full + (size_t)n_full * d->vocab : NULL;

        n_full += w->full;
        /* Rows that only the trace asked for take no part. */
        if (d->n_steps == 0 && (d->mode == ESP_DECODE_SCORE ? !w->has_target : w->row + 1 != d->n_first))
            continue;
        cand[n_cand++] = (struct esp_cand_row){.lse = rows[i].lse,
                                               .n = rows[i].n,
                                               .ids = rows[i].ids,
                                               .logits = rows[i].logits,
                                               .full = mine,
                                               .vocab = d->vocab,
                                               .has_target = w->has_target,
                                               .target = w->target,
                                               .target_logit = rows[i].target_logit};
    }
    if (d->mode == ESP_DECODE_SCORE)
        st = take_score(d, cand, n_cand, err);
    else if (d->mode == ESP_DECODE_BEAM)
        st = take_beams(d, cand, err);
    else
        st = take_samples(d, cand, err);
    d->len += d->n_steps == 0 ? d->n_first : 1;
    d->n_steps++;
    *done = d->done;
    free(many);
    return st;
}

uint32_t esp_decode_n_steps(const struct esp_decode *d)
{
    return d->n_steps;
}

uint64_t esp_decode_n_chosen(const struct esp_decode *d)
{
    return d->n_chosen;
}

bool esp_decode_chooses(const struct esp_decode *d)
{
    return d->n_max > 1;
}

bool esp_decode_streams(const struct esp_decode *d)
{
    return d->mode == ESP_DECODE_SAMPLE && d->n_max == 1;
}

bool esp_decode_hyp(const struct esp_decode *d, uint32_t i, struct esp_decode_hyp *out)
{
    const struct esp_decode_sample *s;

    if (d->mode == ESP_DECODE_BEAM) {
        struct esp_beam_hyp h;

        if (!esp_beam_result(d->beam, i, &h))
            return false;
        *out = (struct esp_decode_hyp){.ids = h.ids,
                                       .n_ids = h.n_text,
                                       .logprobs = h.logprobs,
                                       .n_logprobs = h.n_tok,
                                       .eos = h.has_eos,
                                       .sum = h.sum,
                                       .score = h.score};
        return true;
    }
    if (i >= d->n_samples)
        return false;
    s = &d->sample[d->order[i]];
    *out = (struct esp_decode_hyp){.ids = s->ids,
                                   .n_ids = s->n_ids,
                                   .logprobs = s->logprobs,
                                   .n_logprobs = s->n_logprobs,
                                   .eos = s->eos};
    for (uint32_t j = 0; j < s->n_logprobs; j++)
        out->sum += s->logprobs[j];
    out->score = s->n_logprobs ? out->sum / s->n_logprobs : 0;
    return true;
}

const uint64_t *esp_decode_held(const struct esp_decode *d, uint32_t *n)
{
    *n = d->n_held;
    return d->held;
}
