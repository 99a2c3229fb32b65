/* Bringing a decoder's sequences back after the workers have lost them. */
#include <stdlib.h>
#include <string.h>

#include "coordinator/decode_state.h"

/* Tokens of living sequence i that have been fed: n of them into out, which has room for one more, the pending one. */
static void fed_tokens(const struct esp_decode *d, uint32_t i, uint32_t n, uint32_t *out)
{
    if (d->mode == ESP_DECODE_BEAM)
        esp_beam_tokens(d->beam, i, out);
    else
        memcpy(out, d->sample[d->live[i].sample].ids, n * sizeof *out);
}

/* All of them, in the order in which the parts take them: so many of each sequence, then as many more of each. */
static int32_t *past_of(const struct esp_decode *d, uint32_t n_fed, uint32_t chunk)
{
    int32_t *past = malloc(((size_t)d->n_live * n_fed + 1) * sizeof *past);
    uint32_t *tokens = malloc(((size_t)n_fed + 1) * sizeof *tokens);

    for (uint32_t i = 0; past && tokens && i < d->n_live; i++) {
        fed_tokens(d, i, n_fed, tokens);
        for (uint32_t t0 = 0; t0 < n_fed; t0 += chunk) {
            const uint32_t n = n_fed - t0 < chunk ? n_fed - t0 : chunk;
            int32_t *to = past + (size_t)d->n_live * t0 + (size_t)i * n;

            for (uint32_t t = 0; t < n; t++)
                to[t] = (int32_t)tokens[t0 + t];
        }
    }
    if (!tokens) {
        free(past);
        past = NULL;
    }
    free(tokens);
    return past;
}

esp_status esp_decode_rebuild(struct esp_decode *d, uint32_t max_rows, struct esp_err *err)
{
    const uint32_t chunk = max_rows > d->n_live ? max_rows / d->n_live : 1;
    int32_t *past = NULL;

    if (d->n_steps > 0) {
        past = past_of(d, d->len - d->n_first, chunk);
        if (!past)
            return esp_fail(err, ESP_E_NOMEM, "rebuilding %u sequences of %u tokens", d->n_live, d->len);
    }
    free(d->past);
    d->past = past;
    d->rebuild = d->n_steps > 0;
    d->built = 0;
    d->chunk = chunk;
    for (uint32_t i = 0; i < d->n_live; i++)
        d->live[i].seq = ++*d->next_seq; /* the children of what was lost, whoever their parents were */
    d->n_free = d->n_forks = d->n_held = 0;
    return ESP_OK;
}

void esp_decode_rebuild_part(struct esp_decode *d)
{
    const uint32_t n = d->len - d->built < d->chunk ? d->len - d->built : d->chunk;

    if (d->built == 0) {
        esp_decode_first_part(d);
        return;
    }
    for (uint32_t i = 0; i < d->n_live; i++)
        d->seqs[i] = (struct esp_seq_rows){
            .seq = d->live[i].seq, .pos = d->built, .n_tok = n, .n_prefix = d->n_prefix};
    d->part.n_rows = d->n_live * n;
    d->part.ids = d->past + (size_t)d->n_live * (d->built - d->n_first);
}

void esp_decode_rebuild_took(struct esp_decode *d)
{
    d->n_forks = 0;
    if (d->built ==
        0) { /* the others begin as copies of the first, in the part that comes next, whichever that is */
        for (uint32_t i = 1; i < d->n_live; i++)
            d->forks[d->n_forks++] = (struct esp_fork){.seq = d->live[i].seq, .from = d->live[0].seq};
        d->built = d->n_first;
    } else {
        d->built += d->part.n_rows / d->n_live;
    }
    d->rebuild = d->built < d->len;
    if (!d->rebuild) {
        free(d->past);
        d->past = NULL;
    }
}

bool esp_decode_rebuilding(const struct esp_decode *d, uint32_t *done, uint32_t *total)
{
    *done = d->built;
    *total = d->len;
    return d->rebuild;
}
