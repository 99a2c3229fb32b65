/* A decoder's state as records, and back. */
#include <math.h>
#include <stdlib.h>

#include "coordinator/decode_state.h"

#define VERSION 1

/* Numbers of an array that had `before` of them then and has `now`, if one came with each step. */
static uint32_t n_new(uint32_t now, uint32_t before)
{
    return now > before ? now - before : 0;
}

static void save_samples(const struct esp_decode *d, uint32_t before, struct esp_bytes *out)
{
    esp_put_u32(out, d->n_samples);
    for (uint32_t i = 0; i < d->n_samples; i++) {
        const struct esp_decode_sample *s = &d->sample[i];
        const uint32_t n_ids = n_new(s->n_ids, before), n_logprobs = n_new(s->n_logprobs, before);

        esp_put_u8(out, s->eos);
        esp_put_u32(out, n_ids);
        for (uint32_t j = s->n_ids - n_ids; j < s->n_ids; j++)
            esp_put_u32(out, s->ids[j]);
        esp_put_u32(out, n_logprobs);
        for (uint32_t j = s->n_logprobs - n_logprobs; j < s->n_logprobs; j++)
            esp_put_f64(out, s->logprobs[j]);
    }
}

esp_status esp_decode_save(const struct esp_decode *d, struct esp_decode_mark *mark, uint8_t **record,
                           size_t *n_bytes, struct esp_err *err)
{
    struct esp_bytes out = {0};
    struct esp_decode_mark next = {.n_steps = d->n_steps, .n_nodes = mark->n_nodes};

    *record = NULL;
    *n_bytes = 0;
    if (d->n_steps == mark->n_steps)
        return ESP_OK;
    esp_put_u8(&out, VERSION);
    esp_put_u8(&out, (uint8_t)d->mode);
    esp_put_u8(&out, d->done);
    esp_put_u32(&out, mark->n_steps);
    esp_put_u32(&out, d->n_steps);
    if (d->mode == ESP_DECODE_BEAM)
        esp_beam_save(d->beam, &next.n_nodes, &out);
    else
        save_samples(d, mark->n_steps, &out);
    if (out.failed) {
        free(out.at);
        return esp_fail(err, ESP_E_NOMEM, "a record of %u tokens", d->n_steps);
    }
    *mark = next;
    *record = out.at;
    *n_bytes = out.n;
    return ESP_OK;
}

/* ---- and back ---- */

static esp_status damaged(struct esp_err *err, const char *what)
{
    return esp_fail(err, ESP_E_FORMAT, "what was chosen so far: %s", what);
}

static esp_status load_sample(struct esp_decode *d, struct esp_decode_sample *s, struct esp_reader *in,
                              struct esp_err *err)
{
    const bool eos = esp_get_u8(in) != 0;
    struct esp_reader ids;
    uint32_t n_ids, n_logprobs;
    esp_status st = ESP_OK;

    n_ids = esp_get_count(in, 4);
    ids = (struct esp_reader){in->at, (size_t)4 * n_ids, false};
    in->at += ids.n;
    in->n -= ids.n;
    n_logprobs = esp_get_count(in, 8);
    if (in->failed || n_logprobs != n_ids + (eos && !s->eos) || (s->eos && (n_ids > 0 || !eos)))
        return damaged(err, "tokens that do not follow those before");
    for (uint32_t i = 0; !st && i < n_logprobs; i++) {
        const uint32_t id = i < n_ids ? esp_get_u32(&ids) : d->eos;
        const double logprob = esp_get_f64(in);

        if (id >= d->vocab || !isfinite(logprob) || logprob > 0)
            return damaged(err, "a token that cannot be");
        st = esp_decode_keep(s, i < n_ids, id, logprob, err);
    }
    s->eos = eos;
    return st;
}

static esp_status load_record(struct esp_decode *d, struct esp_reader *in, struct esp_err *err)
{
    const uint8_t version = esp_get_u8(in), mode = esp_get_u8(in);
    const bool done = esp_get_u8(in) != 0;
    const uint32_t before = esp_get_u32(in), n_steps = esp_get_u32(in);
    esp_status st = ESP_OK;

    if (in->failed || version != VERSION)
        return damaged(err, "no record, or another version's");
    if (mode != (uint8_t)d->mode || d->done || before != d->n_steps || n_steps <= before)
        return damaged(err, "a record that does not follow the one before");
    d->n_steps = n_steps;
    d->done = done;
    if (d->mode == ESP_DECODE_BEAM)
        return esp_beam_load(d->beam, in, err);
    if (esp_get_u32(in) != d->n_samples)
        return damaged(err, "another number of samples");
    for (uint32_t i = 0; !st && i < d->n_samples; i++)
        st = load_sample(d, &d->sample[i], in, err);
    return st;
}

/* The samples as they must be after so many steps; those that live go on in their order. */
static esp_status settle_samples(struct esp_decode *d, struct esp_err *err)
{
    d->n_live = 0;
    for (uint32_t i = 0; i < d->n_samples; i++) {
        const struct esp_decode_sample *s = &d->sample[i];

        if (s->n_logprobs > d->n_steps || (s->eos && !d->has_eos) || (!s->eos && s->n_logprobs != d->n_steps))
            return damaged(err, "a sample of another length");
        for (uint32_t j = 0; d->has_eos && j < s->n_ids; j++)
            if (s->ids[j] == d->eos)
                return damaged(err, "a sample that goes on behind its end");
        if (!s->eos && s->n_logprobs < d->max_tokens)
            d->live[d->n_live++] = (struct esp_decode_live){.sample = i, .token = s->ids[s->n_ids - 1]};
    }
    if (d->n_steps > d->max_tokens || d->done != (d->n_live == 0))
        return damaged(err, "a state that cannot be");
    if (d->done)
        esp_decode_rank(d);
    return ESP_OK;
}

static esp_status settle_score(struct esp_decode *d, struct esp_err *err)
{
    const struct esp_decode_sample *s = &d->sample[0];

    if (d->n_steps != 1 || !d->done || s->n_ids != d->n_suffix || s->n_logprobs != d->n_first - d->n_prefix)
        return damaged(err, "a score of another suffix");
    for (uint32_t i = 0; i < s->n_ids; i++)
        if (s->ids[i] != (uint32_t)d->first[d->n_prefix + i])
            return damaged(err, "a score of another suffix");
    d->n_live = 0;
    return ESP_OK;
}

static esp_status settle_beams(struct esp_decode *d, struct esp_err *err)
{
    esp_status st = esp_beam_load_end(d->beam, d->n_steps, d->done, err);

    d->n_live = st ? 0 : esp_beam_n_live(d->beam);
    for (uint32_t i = 0; i < d->n_live; i++)
        d->live[i] = (struct esp_decode_live){.token = esp_beam_last(d->beam, i)};
    return st;
}

esp_status esp_decode_load(struct esp_decode *d, const uint8_t *records, size_t n_bytes,
                           struct esp_decode_mark *mark, struct esp_err *err)
{
    struct esp_reader in = {records, n_bytes, false};
    esp_status st = ESP_OK;

    *mark = (struct esp_decode_mark){0};
    if (n_bytes == 0)
        return ESP_OK;
    while (!st && in.n > 0)
        st = load_record(d, &in, err);
    if (!st)
        st = d->mode == ESP_DECODE_BEAM    ? settle_beams(d, err)
             : d->mode == ESP_DECODE_SCORE ? settle_score(d, err)
                                           : settle_samples(d, err);
    if (st)
        return st;
    d->len = d->n_first + d->n_steps - 1;
    d->n_free = d->n_forks = d->n_held = 0;
    mark->n_steps = d->n_steps;
    if (d->mode == ESP_DECODE_BEAM)
        mark->n_nodes = esp_beam_n_nodes(d->beam);
    return ESP_OK;
}

bool esp_decode_done(const struct esp_decode *d)
{
    return d->done;
}
