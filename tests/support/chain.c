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

struct esp_vk *esp_test_device_open(void)
{
    static struct esp_log log; /* the device's, for as long as it is open */
    struct esp_err err = {0};
    struct esp_vk *vk;

    esp_log_init(&log, "test");
    esp_must(esp_vk_open(&vk, getenv("ESPALIER_DEVICE"), NULL, &log, &err), &err);
    return vk;
}

int esp_test_device_close(struct esp_vk **vk)
{
    const int failed = (*vk)->n_validation != 0;

    esp_vk_close(vk);
    return failed;
}

/** Layers of every stage, and what goes with them. */
static void cut(struct esp_stage_spec *specs, const struct esp_chain *c, const uint32_t *n_enc,
                const uint32_t *n_dec, uint32_t max_rows)
{
    const struct esp_config *config = esp_checkpoint_config(c->ck);
    uint32_t enc = 0, dec = 0;

    for (uint32_t i = 0; i < c->n; i++) {
        struct esp_stage_spec *spec = &specs[i];

        memset(spec, 0, sizeof *spec);
        spec->enc_lo = enc;
        spec->enc_hi = enc += n_enc[i];
        spec->dec_lo = dec;
        spec->dec_hi = dec += n_dec[i];
        spec->patch = n_enc[i] && spec->enc_lo == 0;
        spec->projector = n_enc[i] && enc == config->vision.n_layer;
        spec->embed = n_dec[i] && spec->dec_lo == 0;
        spec->head = n_dec[i] && dec == config->text.n_layer;
        spec->max_rows = max_rows;
        spec->kv_tokens = 4 * max_rows;
        spec->max_seqs = 16;
        spec->max_images = 4;
        spec->weights = c->weights;
    }
}

void esp_chain_open(struct esp_chain *c, struct esp_vk *vk, const struct esp_checkpoint *ck, uint32_t n,
                    const uint32_t *n_enc, const uint32_t *n_dec, uint32_t max_rows)
{
    esp_chain_open_as(c, vk, ck, ESP_W_STORED, n, n_enc, n_dec, max_rows);
}

void esp_chain_open_as(struct esp_chain *c, struct esp_vk *vk, const struct esp_checkpoint *ck,
                       enum esp_wtype weights, uint32_t n, const uint32_t *n_enc, const uint32_t *n_dec,
                       uint32_t max_rows)
{
    struct esp_err err = {0};

    memset(c, 0, sizeof *c);
    c->ck = ck;
    c->weights = weights;
    c->n = n;
    c->next_id = 1;
    cut(c->spec, c, n_enc, n_dec, max_rows);
    for (uint32_t i = 0; i < n; i++) {
        esp_must(esp_shelf_create(&c->shelf[i], vk, ck, NULL, NULL, &err), &err);
        esp_must(esp_stage_create(&c->stage[i], c->shelf[i], &c->spec[i], NULL, NULL, NULL, &err), &err);
    }
}

void esp_chain_close(struct esp_chain *c)
{
    for (uint32_t i = 0; i < c->n; i++) {
        esp_stage_destroy(&c->stage[i]);
        esp_shelf_destroy(&c->shelf[i]);
    }
}

static bool has(const struct esp_stage_spec *spec, uint32_t layer)
{
    return layer >= spec->dec_lo && layer < spec->dec_hi;
}

/** All of a layer's blocks, in pieces. */
static uint32_t move_layer(struct esp_stage *from, struct esp_stage *to, uint32_t layer, size_t piece_bytes)
{
    struct esp_stage_kv piece;
    struct esp_err err = {0};
    uint32_t at = 0, total;

    do {
        esp_must(esp_stage_export_kv(from, layer, at, piece_bytes, &piece, &err), &err);
        esp_must(esp_stage_import_kv(to, &piece.msg, piece.data, &err), &err);
        at += piece.msg.n_blocks;
        total = piece.msg.total_blocks;
        esp_stage_kv_finish(&piece);
    } while (at < total);
    return total;
}

static void move_picture(struct esp_stage *from, struct esp_stage *to, uint64_t image)
{
    struct esp_msg_encode msg = {.epoch = 1, .image = image, .payload = ESP_PAYLOAD_FEATURES};
    struct esp_stage_out out;
    struct esp_err err = {0};

    esp_must(esp_stage_export_features(from, image, &out, &err), &err);
    msg.rows = out.n_rows;
    msg.width = out.width;
    esp_must(esp_stage_store(to, &msg, out.rows, &err), &err);
    esp_stage_out_finish(&out);
}

struct esp_chain_moved esp_chain_move(struct esp_chain *c, const uint32_t *n_enc, const uint32_t *n_dec,
                                      const uint64_t *images, uint32_t n_images, size_t piece_bytes)
{
    struct esp_stage *former[ESP_CHAIN_MAX];
    struct esp_stage_spec old[ESP_CHAIN_MAX];
    struct esp_chain_moved moved = {0};
    struct esp_err err = {0};

    memcpy(old, c->spec, sizeof old);
    cut(c->spec, c, n_enc, n_dec, old[0].max_rows);
    for (uint32_t i = 0; i < c->n; i++) {
        former[i] = c->stage[i];
        esp_stage_retire(former[i]);
        esp_must(esp_stage_create(&c->stage[i], c->shelf[i], &c->spec[i], former[i], NULL, NULL, &err), &err);
    }
    for (uint32_t i = 0; i < c->n; i++) {
        for (uint32_t j = 0; j < c->n; j++) {
            if (i == j)
                continue;
            for (uint32_t l = old[i].dec_lo; l < old[i].dec_hi; l++) {
                if (!has(&c->spec[j], l))
                    continue;
                moved.n_blocks += move_layer(former[i], c->stage[j], l, piece_bytes);
                moved.n_layers++;
            }
            for (uint32_t k = 0; old[i].embed && c->spec[j].embed && k < n_images; k++, moved.n_images++)
                move_picture(former[i], c->stage[j], images[k]);
        }
    }
    for (uint32_t i = 0; i < c->n; i++)
        esp_stage_destroy(&former[i]);
    return moved;
}

void esp_chain_release(struct esp_chain *c, const struct esp_msg_release *msg)
{
    for (uint32_t i = 0; i < c->n; i++)
        esp_stage_release(c->stage[i], msg);
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
