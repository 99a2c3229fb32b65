/* Pictures: through the encoder layers, and their features kept for the decoder. */
#include "worker/stage_state.h"

#include <string.h>

#include "worker/vk_cmd.h"

/* The first n patches, as though there were no others. data: pixels f32[C,S,S], or rows f32[n,D]. */
static esp_status encode(struct esp_stage *s, uint32_t n, const void *data, bool trace,
                         struct esp_stage_out *out, struct esp_err *err)
{
    const struct esp_vision_config *v = &s->c->vision;
    const struct esp_program *program = &s->ps.encode;
    const size_t n_in =
        s->spec.patch ? (size_t)v->n_channel * v->image_size * v->image_size : (size_t)n * v->width;
    uint32_t table;
    esp_status st;

    memcpy(s->space.in.map, data, n_in * sizeof(float));
    esp_batch_begin(&s->batch);
    table = esp_batch_table(&s->batch, s->vision_table, s->ps.at.n_vision_blocks);
    for (uint32_t i = 0; i < n; i++)
        esp_batch_row(&s->batch, 0, i, n, 0, i);
    esp_batch_tiles(&s->batch, 0, n, table,
                    esp_attn_tile_rows(s->vk, false, v->n_head, v->n_head, esp_pack_head_dim(v->head_dim)));
    esp_batch_seal(&s->batch, &s->ps.grids);
    st = esp_stage_run(s, &program, 1, true, trace, out, err);
    if (!st)
        st = esp_stage_take_rows(s, n, s->spec.projector ? s->c->text.width : v->width, out, err);
    out->payload = s->spec.projector ? ESP_PAYLOAD_FEATURES : ESP_PAYLOAD_ROWS;
    if (st && st != ESP_E_NUMBERS) /* of those, traces tell where they began */
        esp_stage_out_finish(out);
    return st;
}

static esp_status encoder_check(const struct esp_stage *s, struct esp_err *err)
{
    if (s->lost)
        return esp_fail(err, ESP_E_DEVICE, "the device is lost");
    if (!s->enc)
        return esp_fail(err, ESP_E_PROTO, "this stage has no encoder layers");
    return ESP_OK;
}

esp_status esp_stage_encode(struct esp_stage *s, const struct esp_msg_encode *msg, const void *data,
                            struct esp_stage_out *out, struct esp_err *err)
{
    const struct esp_vision_config *v = &s->c->vision;
    const uint32_t n = v->n_token;
    esp_status st = encoder_check(s, err);

    memset(out, 0, sizeof *out);
    if (st)
        return st;
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
    return encode(s, n, data, msg->trace, out, err);
}

esp_status esp_stage_encode_part(struct esp_stage *s, uint32_t n_row, const float *data,
                                 struct esp_stage_out *out, struct esp_err *err)
{
    esp_status st = encoder_check(s, err);

    memset(out, 0, sizeof *out);
    if (!st && (n_row == 0 || n_row > s->c->vision.n_token))
        st = esp_fail(err, ESP_E_ARG, "%u patches of %u", n_row, s->c->vision.n_token);
    return st ? st : encode(s, n_row, data, true, out, err);
}

uint32_t esp_stage_image_slot(const struct esp_stage *s, uint64_t image)
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
    slot = esp_stage_image_slot(s, msg->image);
    if (slot == ESP_NONE)
        slot = esp_stage_image_slot(s, 0);
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
