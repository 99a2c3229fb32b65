/* What a stage is told and what it gives: host code, whatever computes. */
#include "worker/stage.h"

#include <stdlib.h>
#include <string.h>

esp_status esp_stage_spec_check(const struct esp_stage_spec *s, const struct esp_config *c,
                                struct esp_err *err)
{
    if (s->enc_lo > s->enc_hi || s->enc_hi > c->vision.n_layer || s->dec_lo > s->dec_hi ||
        s->dec_hi > c->text.n_layer)
        return esp_fail(err, ESP_E_ARG, "layers [%u,%u) and [%u,%u) of a model with %u and %u", s->enc_lo,
                        s->enc_hi, s->dec_lo, s->dec_hi, c->vision.n_layer, c->text.n_layer);
    if ((s->patch && s->enc_lo != 0) || (s->projector && s->enc_hi != c->vision.n_layer) ||
        (s->embed && s->dec_lo != 0) || (s->head && s->dec_hi != c->text.n_layer))
        return esp_fail(err, ESP_E_ARG, "the towers' ends do not go with layers [%u,%u) and [%u,%u)",
                        s->enc_lo, s->enc_hi, s->dec_lo, s->dec_hi);
    if ((s->dec_lo < s->dec_hi || s->embed || s->head) &&
        (s->max_rows == 0 || s->max_rows > ESP_STAGE_MAX_ROWS || s->max_seqs == 0 ||
         s->max_seqs > ESP_MAX_SEQS || s->kv_tokens == 0))
        return esp_fail(err, ESP_E_ARG, "%u rows (1 to %u), %u sequences (1 to %d), %u KV tokens",
                        s->max_rows, ESP_STAGE_MAX_ROWS, s->max_seqs, ESP_MAX_SEQS, s->kv_tokens);
    if (s->embed && s->max_images == 0)
        return esp_fail(err, ESP_E_ARG, "no room for images");
    return ESP_OK;
}

esp_status esp_stage_results_make(struct esp_stage_out *out, const struct esp_msg_step *msg, uint32_t vocab,
                                  struct esp_err *err)
{
    size_t n_full = 0;

    for (uint32_t i = 0; i < msg->n_wants; i++)
        n_full += msg->wants[i].full;
    out->vocab = vocab;
    out->results = calloc((size_t)msg->n_wants + 1, sizeof *out->results);
    out->full = n_full ? malloc(n_full * vocab * sizeof *out->full) : NULL;
    if (!out->results || (n_full && !out->full))
        return esp_fail(err, ESP_E_NOMEM, "results of %u rows", msg->n_wants);
    return ESP_OK;
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

void esp_stage_kv_finish(struct esp_stage_kv *piece)
{
    free(piece->data);
    esp_kv_books_finish(&piece->books);
    memset(piece, 0, sizeof *piece);
}
