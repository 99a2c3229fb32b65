#include "worker/bench_work.h"

#include <string.h>

#include "worker/piece.h"

/* Elements of a piece's matrices, without padding. */
static double elements(const struct esp_piece *p)
{
    double sum = 0;

    for (uint32_t i = 0; i < p->n_mat; i++) {
        for (uint32_t j = 0; j < p->mat[i].spec.n_part; j++) {
            const struct esp_tensor *t = p->mat[i].spec.part[j].tensor;
            double n = 1;
            for (uint32_t d = 0; d < t->n_dim; d++)
                n *= (double)t->shape[d];
            sum += n;
        }
    }
    return sum;
}

esp_status esp_bench_work(struct esp_bench_work *out, struct esp_shelf *shelf,
                          const struct esp_stage_spec *spec, enum esp_bench_phase phase, uint32_t n_seq,
                          double n_ctx, struct esp_err *err)
{
    const struct esp_config *c = esp_checkpoint_config(esp_shelf_checkpoint(shelf));
    const struct esp_vision_config *v = &c->vision;
    const struct esp_text_config *t = &c->text;
    const uint32_t first_dec = ESP_N_PIECE_END + v->n_layer;
    const double rows = phase == ESP_BENCH_DECODE ? n_seq : n_ctx;

    memset(out, 0, sizeof *out);
    for (uint32_t i = 0; i < esp_piece_count(c); i++) {
        const bool head = i == ESP_PIECE_EMBED;
        const bool decoder = head || i >= first_dec;
        const struct esp_piece *p;
        esp_status st;

        if (!esp_piece_of(i, c, spec) || decoder != (phase != ESP_BENCH_ENCODE))
            continue;
        st = esp_shelf_piece(&p, shelf, i, err);
        if (st)
            return st;
        out->bytes += (double)p->n_bytes;
        out->flop += 2.0 * elements(p) * (head ? n_seq : rows); /* a prompt has one row of logits */
        if (i < ESP_N_PIECE_END)
            continue;
        if (decoder) {
            const double ctx =
                t->window && t->sliding[i - first_dec] && n_ctx > t->window && phase == ESP_BENCH_DECODE
                    ? t->window
                    : n_ctx;
            out->bytes += 2.0 * t->n_kv_head * t->head_dim * sizeof(float) * ctx * n_seq;
            out->flop += 4.0 * t->n_head * t->head_dim * ctx * rows;
        } else {
            out->bytes += 2.0 * v->width * sizeof(float) * n_ctx;
            out->flop += 4.0 * v->width * n_ctx * rows;
        }
    }
    return ESP_OK;
}
