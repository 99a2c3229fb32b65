/* A simulated stage's KV on its way: cells travel as rows do (sim_model.h), one a token. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/sim_model.h"
#include "tests/sim/sim_shelf.h"
#include "tests/sim/sim_stage.h"

static uint64_t *cell_at(const struct esp_stage *s, uint32_t block, uint32_t token, uint32_t layer)
{
    return &s->cell[((size_t)block * SIM_BLOCK + token) * s->n_dec + (layer - s->spec.dec_lo)];
}

static bool has(const struct esp_stage *s, uint32_t layer)
{
    return layer >= s->spec.dec_lo && layer < s->spec.dec_hi;
}

esp_status sim_stage_inherit(struct esp_stage *s, const struct esp_stage *former, struct esp_err *err)
{
    const size_t n_token = s->c->vision.n_token;
    struct esp_kv_books books = {0};
    uint32_t *own = NULL, n = 0;
    esp_status st = ESP_OK;

    if (s->kv && former->kv) {
        st = esp_kv_export(&books, former->kv, err);
        own = malloc((books.n_blocks + 1) * sizeof *own);
        if (!st)
            st = own ? esp_kv_adopt(s->kv, books.seqs, books.n_seqs, books.n_blocks, own, err)
                     : esp_fail(err, ESP_E_NOMEM, "a simulated stage's books");
        for (uint32_t b = 0; !st && b < books.n_blocks; b++)
            for (uint32_t l = s->spec.dec_lo; l < s->spec.dec_hi; l++)
                for (uint32_t t = 0; has(former, l) && t < SIM_BLOCK; t++)
                    *cell_at(s, own[b], t, l) = *cell_at(former, books.own[b], t, l);
        s->has_books = true;
    }
    for (uint32_t i = 0; !st && s->spec.embed && former->spec.embed && i < former->spec.max_images; i++) {
        if (former->images[i] == 0)
            continue;
        if (n == s->spec.max_images) {
            st = esp_fail(err, ESP_E_LIMIT, "more than %u images are to be carried on", n);
            break;
        }
        s->images[n] = former->images[i];
        memcpy(s->features + n++ * n_token, former->features + i * n_token, n_token * sizeof *s->features);
    }
    free(own);
    esp_kv_books_finish(&books);
    return st;
}

esp_status esp_stage_prepare(struct esp_shelf *shelf, const struct esp_stage_spec *spec, bool few,
                             struct esp_err *err)
{
    (void)few;
    (void)shelf;
    (void)spec;
    (void)err;
    return ESP_OK;
}

void esp_stage_retire(struct esp_stage *s)
{
    if (s->on_shelf)
        sim_shelf_leave(s->shelf, &s->spec, s->kv_bytes + s->scratch_bytes);
    s->on_shelf = false;
}

/* What a device copies of its KV cache takes time. */
static void copied(struct esp_stage *s, size_t n_bytes)
{
    atomic_fetch_add(&s->device->count.kv_bytes, n_bytes);
    sim_device_copy(n_bytes, s->device->profile.kv_rate);
}

static uint32_t wire_width(const struct esp_stage *s)
{
    return 2 * s->c->text.n_kv_head * s->c->text.head_dim;
}

esp_status esp_stage_export_kv(struct esp_stage *s, uint32_t layer, uint32_t first, size_t max_bytes,
                               struct esp_stage_kv *out, struct esp_err *err)
{
    const uint32_t width = wire_width(s);
    const size_t block_bytes = (size_t)SIM_BLOCK * width * sizeof(float);
    uint32_t n;
    esp_status st;

    memset(out, 0, sizeof *out);
    if (!s->kv || !has(s, layer) || width < SIM_ROW_FLOATS)
        return esp_fail(err, ESP_E_PROTO, "there is no KV of decoder layer %u here", layer);
    st = esp_kv_export(&out->books, s->kv, err);
    if (!st && first > out->books.n_blocks)
        st = esp_fail(err, ESP_E_PROTO, "KV of layer %u: block %u of %u", layer, first, out->books.n_blocks);
    n = st ? 0 : out->books.n_blocks - first;
    if (n > max_bytes / block_bytes)
        n = max_bytes < block_bytes ? 1 : (uint32_t)(max_bytes / block_bytes);
    out->data = n > 0 ? malloc(n * block_bytes) : NULL;
    if (n > 0 && !out->data)
        st = esp_fail(err, ESP_E_NOMEM, "%u KV blocks to send", n);
    for (uint32_t t = 0; !st && t < n * SIM_BLOCK; t++)
        sim_row_put(out->data + (size_t)t * width, width,
                    *cell_at(s, out->books.own[first + t / SIM_BLOCK], t % SIM_BLOCK, layer));
    out->msg = (struct esp_msg_kv_blocks){.layer = layer,
                                          .first = first,
                                          .n_blocks = n,
                                          .total_blocks = out->books.n_blocks,
                                          .block_tokens = SIM_BLOCK,
                                          .width = width,
                                          .n_seqs = out->books.n_seqs,
                                          .seqs = out->books.seqs};
    if (st)
        esp_stage_kv_finish(out);
    else
        copied(s, n * block_bytes);
    return st;
}

esp_status esp_stage_import_kv(struct esp_stage *s, const struct esp_msg_kv_blocks *m, const void *data,
                               struct esp_err *err)
{
    const uint32_t width = wire_width(s);
    uint32_t *own;
    esp_status st;

    if (!s->kv || !has(s, m->layer) || m->block_tokens != SIM_BLOCK || m->width != width ||
        width < SIM_ROW_FLOATS)
        return esp_fail(err, ESP_E_PROTO, "KV of layer %u as f32[%u,%u]", m->layer, m->block_tokens,
                        m->width);
    own = malloc(((size_t)m->total_blocks + 1) * sizeof *own);
    if (!own)
        return esp_fail(err, ESP_E_NOMEM, "the books of %u KV blocks", m->total_blocks);
    st = s->has_books ? esp_kv_match(s->kv, m->seqs, m->n_seqs, m->total_blocks, own, err)
                      : esp_kv_adopt(s->kv, m->seqs, m->n_seqs, m->total_blocks, own, err);
    if (!st)
        s->has_books = true;
    for (uint32_t t = 0; !st && t < m->n_blocks * SIM_BLOCK; t++)
        if (!sim_row_get(cell_at(s, own[m->first + t / SIM_BLOCK], t % SIM_BLOCK, m->layer),
                         (const char *)data + (size_t)t * width * sizeof(float), width))
            st = esp_fail(err, ESP_E_PROTO, "KV of layer %u is none that a simulated stage makes", m->layer);
    free(own);
    if (!st)
        copied(s, (size_t)m->n_blocks * SIM_BLOCK * width * sizeof(float));
    return st;
}

esp_status esp_stage_export_features(struct esp_stage *s, uint64_t image, struct esp_stage_out *out,
                                     struct esp_err *err)
{
    const uint32_t n_row = s->c->vision.n_token, width = s->c->text.width;
    uint32_t slot = 0;

    memset(out, 0, sizeof *out);
    while (slot < s->spec.max_images && s->images[slot] != image)
        slot++;
    if (image == 0 || !s->spec.embed || slot == s->spec.max_images)
        return esp_fail(err, ESP_E_PROTO, "image %" PRIu64 " is not here", image);
    out->rows = malloc((size_t)n_row * width * sizeof *out->rows);
    if (!out->rows)
        return esp_fail(err, ESP_E_NOMEM, "features of image %" PRIu64, image);
    for (uint32_t i = 0; i < n_row; i++)
        sim_row_put(out->rows + (size_t)i * width, width, s->features[(size_t)slot * n_row + i]);
    out->n_rows = n_row;
    out->width = width;
    out->payload = ESP_PAYLOAD_FEATURES;
    return ESP_OK;
}
