#include "coordinator/flight.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void esp_flight_add(struct esp_flight_sum *sum, const struct esp_part *part)
{
    sum->rows += part->n_rows;
    sum->wants += part->n_wants;
    sum->seqs += part->n_seqs;
    sum->forks += part->n_forks;
    sum->free += part->n_free;
    for (uint32_t i = 0; i < part->n_seqs; i++)
        sum->images += part->seqs[i].n_images;
    sum->full_bytes += (size_t)part->n_full * part->vocab * sizeof(float);
}

esp_status esp_flight_limits(const struct esp_flight_sum *s, struct esp_err *err)
{
    if (s->rows > ESP_MAX_ROWS || s->seqs > ESP_MAX_SEQS || s->forks > ESP_MAX_SEQS || s->free > ESP_MAX_SEQS)
        return esp_fail(err, ESP_E_LIMIT, "a step of %zu rows, %zu sequences, %zu forks and %zu frees",
                        s->rows, s->seqs, s->forks, s->free);
    if (s->full_bytes > ESP_MAX_FRAME)
        return esp_fail(err, ESP_E_LIMIT, "a step that asks for %zu MiB of logits, %u at most",
                        s->full_bytes >> 20, ESP_MAX_FRAME >> 20);
    return ESP_OK;
}

static void *array(size_t n, size_t size)
{
    return calloc(n ? n : 1, size);
}

esp_status esp_flight_create(struct esp_flight **out, uint64_t epoch, uint64_t id,
                             const struct esp_flight_load *loads, uint32_t n, bool trace, struct esp_err *err)
{
    struct esp_flight *f = NULL;
    struct esp_seq_rows *seqs;
    struct esp_fork *forks;
    struct esp_want *wants;
    uint64_t *freed, *images;
    struct esp_flight_sum s = {0};
    struct esp_msg_step *step;
    esp_status st;

    *out = NULL;
    for (uint32_t i = 0; i < n; i++)
        esp_flight_add(&s, loads[i].part);
    st = esp_flight_limits(&s, err);
    if (st)
        goto done;
    f = calloc(1, sizeof *f);
    if (!f) {
        st = esp_fail(err, ESP_E_NOMEM, "a step");
        goto done;
    }
    step = &f->step;
    f->parts = array(n, sizeof *f->parts);
    f->ids = array(s.rows, sizeof *f->ids);
    step->seqs = seqs = array(s.seqs, sizeof *seqs);
    step->forks = forks = array(s.forks, sizeof *forks);
    step->wants = wants = array(s.wants, sizeof *wants);
    step->free = freed = array(s.free + s.images, sizeof *freed);
    if (!f->parts || !f->ids || !seqs || !forks || !wants || !freed) {
        st = esp_fail(err, ESP_E_NOMEM, "a step of %zu rows", s.rows);
        goto done;
    }
    images = freed + s.free; /* they share a block: both are ids */
    step->epoch = epoch;
    step->id = id;
    step->payload = ESP_PAYLOAD_TOKENS;
    step->width = 1;
    step->trace = trace;
    for (uint32_t i = 0; i < n; i++) {
        const struct esp_part *p = loads[i].part;

        f->parts[f->n_parts++] = (struct esp_flight_part){.session = loads[i].session,
                                                          .row = step->rows,
                                                          .n_rows = p->n_rows,
                                                          .want = step->n_wants,
                                                          .n_wants = p->n_wants,
                                                          .full = f->n_full};
        for (uint32_t j = 0; j < p->n_free; j++)
            freed[step->n_free++] = p->free[j];
        for (uint32_t j = 0; j < p->n_forks; j++)
            forks[step->n_forks++] = p->forks[j];
        for (uint32_t j = 0; j < p->n_seqs; j++) {
            struct esp_seq_rows *to = &seqs[step->n_seqs++];

            *to = p->seqs[j];
            to->images = images;
            for (uint32_t k = 0; k < to->n_images; k++)
                *images++ = p->seqs[j].images[k];
        }
        for (uint32_t j = 0; j < p->n_wants; j++) {
            struct esp_want *to = &wants[step->n_wants++];

            *to = p->wants[j];
            to->row += step->rows;
            f->n_full += to->full;
        }
        memcpy(f->ids + step->rows, p->ids, p->n_rows * sizeof *f->ids);
        step->rows += p->n_rows;
    }
    *out = f;
    f = NULL;
done:
    esp_flight_destroy(&f);
    return st;
}

void esp_flight_destroy(struct esp_flight **flight)
{
    struct esp_flight *f = *flight;

    if (!f)
        return;
    free((void *)f->step.seqs);
    free((void *)f->step.forks);
    free((void *)f->step.wants);
    free((void *)f->step.free);
    free(f->parts);
    free(f->ids);
    free(f);
    *flight = NULL;
}

/* Finite numbers, and candidates by falling logit, are esp_wire_unpack's to check. */
static esp_status row_check(const struct esp_row_result *row, const struct esp_want *want, uint32_t vocab,
                            struct esp_err *err)
{
    const uint32_t n = want->k < vocab ? want->k : vocab;

    if (row->row != want->row)
        return esp_fail(err, ESP_E_PROTO, "row %u where row %u was asked for", row->row, want->row);
    if (row->n != n)
        return esp_fail(err, ESP_E_PROTO, "row %u: %u candidates, asked for %u", row->row, row->n, n);
    for (uint32_t i = 0; i < n; i++) {
        if (row->ids[i] >= vocab)
            return esp_fail(err, ESP_E_PROTO, "row %u: id %u, the vocabulary has %u", row->row, row->ids[i],
                            vocab);
    }
    return ESP_OK;
}

esp_status esp_flight_check(const struct esp_flight *flight, const struct esp_msg_result *result,
                            const float *full, uint32_t vocab, struct esp_err *err)
{
    const struct esp_msg_step *step = &flight->step;

    if (result->n_rows != step->n_wants)
        return esp_fail(err, ESP_E_PROTO, "%u rows, asked for %u", result->n_rows, step->n_wants);
    if (result->n_full != flight->n_full)
        return esp_fail(err, ESP_E_PROTO, "%u full rows, asked for %u", result->n_full, flight->n_full);
    if (result->n_full > 0 && (result->vocab != vocab || !full))
        return esp_fail(err, ESP_E_PROTO, "a vocabulary of %u, it is %u", result->vocab, vocab);
    for (uint32_t i = 0; i < step->n_wants; i++) {
        esp_status st = row_check(&result->rows[i], &step->wants[i], vocab, err);

        if (st)
            return st;
    }
    for (size_t i = 0; i < (size_t)result->n_full * vocab; i++)
        if (!isfinite(full[i]))
            return esp_fail(err, ESP_E_PROTO, "full row %zu: a logit that is not finite", i / vocab);
    return ESP_OK;
}
