#include "tests/support/chain.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void esp_must(esp_status st, const struct esp_err *err)
{
    if (st == ESP_OK)
        return;
    fprintf(stderr, "%s: %s\n", esp_status_name(st), err->text);
    exit(1);
}

void esp_chain_open(struct esp_chain *c, struct esp_vk *vk, const struct esp_checkpoint *ck, uint32_t n,
                    const uint32_t *n_enc, const uint32_t *n_dec, uint32_t max_rows)
{
    const struct esp_config *config = esp_checkpoint_config(ck);
    struct esp_stage_spec spec;
    struct esp_err err = {0};
    uint32_t enc = 0, dec = 0;

    memset(c, 0, sizeof *c);
    c->ck = ck;
    c->n = n;
    c->next_id = 1;
    for (uint32_t i = 0; i < n; i++) {
        memset(&spec, 0, sizeof spec);
        spec.enc_lo = enc;
        spec.enc_hi = enc += n_enc[i];
        spec.dec_lo = dec;
        spec.dec_hi = dec += n_dec[i];
        spec.patch = n_enc[i] && spec.enc_lo == 0;
        spec.projector = n_enc[i] && enc == config->vision.n_layer;
        spec.embed = n_dec[i] && spec.dec_lo == 0;
        spec.head = n_dec[i] && dec == config->text.n_layer;
        spec.max_rows = max_rows;
        spec.kv_tokens = 4 * max_rows;
        spec.max_seqs = 16;
        spec.max_images = 4;
        esp_must(esp_shelf_create(&c->shelf[i], vk, ck, NULL, NULL, &err), &err);
        esp_must(esp_stage_create(&c->stage[i], c->shelf[i], &spec, NULL, NULL, NULL, &err), &err);
    }
}

void esp_chain_close(struct esp_chain *c)
{
    for (uint32_t i = 0; i < c->n; i++) {
        esp_stage_destroy(&c->stage[i]);
        esp_shelf_destroy(&c->shelf[i]);
    }
}

static void show(const struct esp_stage_out *out, esp_chain_seen seen, void *arg)
{
    for (uint32_t i = 0; seen && i < out->n_traces; i++)
        seen(arg, &out->traces[i]);
}

void esp_chain_encode(struct esp_chain *c, uint64_t image, const float *pixels, esp_chain_seen seen,
                      void *arg)
{
    const struct esp_vision_config *v = &esp_checkpoint_config(c->ck)->vision;
    struct esp_msg_encode msg = {.epoch = 1,
                                 .image = image,
                                 .payload = ESP_PAYLOAD_PIXELS,
                                 .rows = v->n_channel * v->image_size,
                                 .width = v->image_size,
                                 .trace = seen != NULL};
    struct esp_stage_out out = {0}, next;
    const float *data = pixels;
    struct esp_err err = {0};

    for (uint32_t i = 0; i < c->n && msg.payload != ESP_PAYLOAD_FEATURES; i++) {
        esp_status st = esp_stage_encode(c->stage[i], &msg, data, &next, &err);
        if (st == ESP_E_PROTO && strstr(err.text, "no encoder layers"))
            continue;
        esp_must(st, &err);
        show(&next, seen, arg);
        esp_stage_out_finish(&out);
        out = next;
        data = out.rows;
        msg.payload = out.payload;
        msg.rows = out.n_rows;
        msg.width = out.width;
    }
    for (uint32_t i = 0; i < c->n; i++) {
        esp_status st = esp_stage_store(c->stage[i], &msg, data, &err);
        if (st == ESP_E_PROTO && strstr(err.text, "first decoder stage"))
            continue;
        esp_must(st, &err);
    }
    esp_stage_out_finish(&out);
}

void esp_chain_step(struct esp_chain *c, const struct esp_msg_step *step, const int32_t *ids,
                    struct esp_stage_out *out, esp_chain_seen seen, void *arg)
{
    struct esp_msg_step msg = *step;
    struct esp_stage_out next;
    const void *data = ids;
    struct esp_err err = {0};

    memset(out, 0, sizeof *out);
    msg.payload = ESP_PAYLOAD_TOKENS;
    msg.width = 1;
    msg.trace = seen != NULL;
    for (uint32_t i = 0; i < c->n; i++) {
        esp_status st = esp_stage_step(c->stage[i], &msg, data, &next, &err);
        if (st == ESP_E_PROTO && strstr(err.text, "no decoder layers"))
            continue;
        esp_must(st, &err);
        show(&next, seen, arg);
        esp_stage_out_finish(out);
        *out = next;
        data = out->rows;
        msg.payload = ESP_PAYLOAD_ROWS;
        msg.width = out->width;
    }
}

void esp_chain_seq(struct esp_chain *c, const struct esp_seq_rows *seq, const int32_t *ids, uint32_t k,
                   uint32_t n_want, struct esp_stage_out *out, esp_chain_seen seen, void *arg)
{
    struct esp_want *wants = calloc(n_want + 1, sizeof *wants);
    struct esp_msg_step step = {.epoch = 1,
                                .id = c->next_id++,
                                .rows = seq->n_tok,
                                .n_seqs = 1,
                                .seqs = seq,
                                .n_wants = n_want,
                                .wants = wants};

    if (!wants)
        abort();
    for (uint32_t i = 0; i < n_want; i++)
        wants[i] = (struct esp_want){.row = seq->n_tok - n_want + i, .k = k, .full = true};
    esp_chain_step(c, &step, ids, out, seen, arg);
    free(wants);
}
