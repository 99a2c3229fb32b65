/*
 * What a stage leaves to the next one on this device, and KV blocks and features on their way between devices.
 *
 * On the wire a token's keys and values stand as the model has them: f32[2, K, H]. On the device heads are padded
 * (worker/pack.h) and keys are laid out for attention to read (shaders/push.h): both ways only places change, never bits.
 * A whole block travels. What lies behind its last token is nobody's, but it must be numbers, since attention multiplies
 * it by zero.
 */
#include "worker/stage_state.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "worker/shelf.h"
#include "worker/vk_cmd.h"

#define REGIONS     256        /* of one copy command */
#define GROUP_BYTES (4u << 20) /* of device blocks that are on the host at once */

/* ---- between stages of one device ---- */

void esp_stage_drop_rest(struct esp_stage *s)
{
    const struct esp_stage_spec none = {0};

    if (s->rest_bytes > 0)
        esp_shelf_leave(s->shelf, &none, s->rest_bytes);
    s->rest_bytes = 0;
}

/** Has the shelf count what is left of a retired stage. */
static void count_rest(struct esp_stage *s)
{
    const struct esp_stage_spec none = {0};

    esp_stage_drop_rest(s);
    s->rest_bytes = s->space.kv.n_bytes + s->space.act.n_bytes + s->space.out.n_bytes;
    esp_shelf_use(s->shelf, &none, s->rest_bytes);
}

void esp_stage_retire(struct esp_stage *s)
{
    struct esp_space *sp = &s->space;

    if (!s->vk || (!s->enc && !s->dec))
        return;
    vkDeviceWaitIdle(s->vk->dev);
    esp_profile_log(sp->profile, s->vk->log);
    esp_programs_finish(&s->ps, s->vk);
    esp_stage_leave_shelf(s); /* before the sizes by which it was counted are gone */
    esp_weights_finish(&s->weights);
    esp_space_retire(sp, s->spec.embed, s->kv != NULL);
    count_rest(s);
}

static bool has_layers(const struct esp_stage *s)
{
    return s->spec.dec_lo < s->spec.dec_hi;
}

void esp_stage_take_buffers(struct esp_stage *s, struct esp_stage *former)
{
    const struct esp_layout *a = &s->ps.at, *b;

    if (!former)
        return;
    b = &former->ps.at;
    if (has_layers(s) && former->kv && s->spec.dec_lo == former->spec.dec_lo &&
        s->spec.dec_hi == former->spec.dec_hi && s->spec.max_seqs == former->spec.max_seqs &&
        s->spec.max_rows == former->spec.max_rows && a->text_layer == b->text_layer &&
        a->kv_texels == b->kv_texels) {
        s->space.kv = former->space.kv;
        memset(&former->space.kv, 0, sizeof former->space.kv);
        s->kv = former->kv;
        former->kv = NULL;
        s->took_kv = s->has_books = true;
    }
    if (s->spec.embed && former->spec.embed && s->spec.max_images == former->spec.max_images &&
        a->features.at == b->features.at && a->act_texels == b->act_texels) {
        s->space.act = former->space.act;
        memset(&former->space.act, 0, sizeof former->space.act);
        s->images = former->images;
        former->images = NULL;
        s->took_act = true;
    }
    count_rest(former);
}

/** Copies between two buffers, handed in REGIONS at a time. */
struct copier {
    VkCommandBuffer cmd;
    VkBuffer from, to;
    uint32_t n;
    VkBufferCopy region[REGIONS];
};

static void copier_flush(struct copier *c)
{
    if (c->n > 0)
        vkCmdCopyBuffer(c->cmd, c->from, c->to, c->n, c->region);
    c->n = 0;
}

static void copier_add(struct copier *c, VkDeviceSize from, VkDeviceSize to, VkDeviceSize n_bytes)
{
    VkBufferCopy *last = c->n > 0 ? &c->region[c->n - 1] : NULL;

    if (last && last->srcOffset + last->size == from && last->dstOffset + last->size == to) {
        last->size += n_bytes;
        return;
    }
    if (c->n == REGIONS)
        copier_flush(c);
    c->region[c->n++] = (VkBufferCopy){.srcOffset = from, .dstOffset = to, .size = n_bytes};
}

static esp_status copier_begin(struct copier *c, struct esp_stage *s, const struct esp_buf *from,
                               const struct esp_buf *to, struct esp_err *err)
{
    c->from = from->buf;
    c->to = to->buf;
    c->n = 0;
    return esp_cmd_once_begin(&c->cmd, s->vk, err);
}

static esp_status copier_run(struct copier *c, struct esp_stage *s, struct esp_err *err)
{
    copier_flush(c);
    esp_cmd_barrier_all(c->cmd); /* buffers that are mapped are read straight */
    return esp_cmd_once_run(&c->cmd, s->vk, err);
}

/** Byte in the KV buffer where a block of a layer begins; layer of the model. */
static VkDeviceSize block_at(const struct esp_stage *s, uint32_t layer, uint32_t block)
{
    const struct esp_layout *at = &s->ps.at;

    return 16 *
           ((VkDeviceSize)(layer - s->spec.dec_lo) * at->text_layer + (VkDeviceSize)block * at->text_block);
}

static esp_status inherit_kv(struct esp_stage *s, const struct esp_stage *former, struct esp_err *err)
{
    const uint32_t lo = s->spec.dec_lo > former->spec.dec_lo ? s->spec.dec_lo : former->spec.dec_lo;
    const uint32_t hi = s->spec.dec_hi < former->spec.dec_hi ? s->spec.dec_hi : former->spec.dec_hi;
    const VkDeviceSize n_bytes = (VkDeviceSize)s->ps.at.text_block * 16;
    struct esp_kv_books books;
    struct copier copier;
    uint32_t *own = NULL;
    esp_status st = esp_kv_export(&books, former->kv, err);

    if (st)
        return st;
    own = malloc((books.n_blocks + 1) * sizeof *own);
    st = own ? esp_kv_adopt(s->kv, books.seqs, books.n_seqs, books.n_blocks, own, err)
             : esp_fail(err, ESP_E_NOMEM, "the stage's books");
    if (!st && lo < hi && books.n_blocks > 0) {
        st = copier_begin(&copier, s, &former->space.kv, &s->space.kv, err);
        for (uint32_t l = lo; !st && l < hi; l++)
            for (uint32_t b = 0; b < books.n_blocks; b++)
                copier_add(&copier, block_at(former, l, books.own[b]), block_at(s, l, own[b]), n_bytes);
        if (!st)
            st = copier_run(&copier, s, err);
    }
    s->has_books = true;
    free(own);
    esp_kv_books_finish(&books);
    return st;
}

/** Byte in the scratch buffer where a picture's features begin. */
static VkDeviceSize features_at(const struct esp_stage *s, uint32_t slot)
{
    return 16 * ((VkDeviceSize)s->ps.at.features.at +
                 (VkDeviceSize)slot * s->c->vision.n_token * s->ps.at.features.stride);
}

static esp_status inherit_features(struct esp_stage *s, const struct esp_stage *former, struct esp_err *err)
{
    const VkDeviceSize n_bytes = (VkDeviceSize)s->c->vision.n_token * s->ps.at.features.stride * 16;
    struct copier copier;
    uint32_t n = 0;
    esp_status st = copier_begin(&copier, s, &former->space.act, &s->space.act, err);

    if (st)
        return st;
    for (uint32_t i = 0; i < former->spec.max_images; i++) {
        if (former->images[i] == 0)
            continue;
        if (n == s->spec.max_images) {
            esp_cmd_free(&copier.cmd, s->vk);
            return esp_fail(err, ESP_E_LIMIT, "features of more than %u images are to be carried on", n);
        }
        s->images[n] = former->images[i];
        copier_add(&copier, features_at(former, i), features_at(s, n++), n_bytes);
    }
    return copier_run(&copier, s, err);
}

esp_status esp_stage_inherit(struct esp_stage *s, struct esp_stage *former, struct esp_err *err)
{
    esp_status st = ESP_OK;

    if (has_layers(s) && !s->took_kv && former->kv)
        st = inherit_kv(s, former, err);
    if (!st && s->spec.embed && former->spec.embed && !s->took_act)
        st = inherit_features(s, former, err);
    if (!st && s->spec.embed) { /* nobody will ask it for its pictures */
        esp_buf_destroy(&former->space.act, s->vk);
        count_rest(former);
    }
    return st;
}

/* ---- between devices ---- */

/**
 * n ranges of a device buffer, `each` bytes from at[i] on, to or from the host, where they stand one behind the other.
 * Straight where the buffer is mapped, else through the stage's buffer for rows.
 */
static esp_status haul(struct esp_stage *s, struct esp_buf *dev, const VkDeviceSize *at, uint32_t n,
                       VkDeviceSize each, char *host, bool to_host, struct esp_err *err)
{
    struct esp_buf *staging = to_host ? &s->space.out : &s->space.in;
    const VkDeviceSize total = n * each;
    struct copier copier;
    esp_status st = ESP_OK;

    for (uint32_t i = 0; dev->map && i < n; i++) {
        char *there = (char *)dev->map + at[i], *here = host + i * each;
        memcpy(to_host ? here : there, to_host ? there : here, each);
    }
    for (VkDeviceSize done = 0, filled = 0; !st && !dev->map && done < total; done += filled) {
        filled = 0;
        st = copier_begin(&copier, s, to_host ? dev : staging, to_host ? staging : dev, err);
        while (!st && filled < staging->n_bytes && done + filled < total) {
            const VkDeviceSize i = (done + filled) / each, part = (done + filled) % each;
            const VkDeviceSize room = staging->n_bytes - filled;
            const VkDeviceSize len = each - part < room ? each - part : room;

            copier_add(&copier, to_host ? at[i] + part : filled, to_host ? filled : at[i] + part, len);
            filled += len;
        }
        if (st)
            break;
        if (!to_host)
            memcpy(staging->map, host + done, filled);
        st = copier_run(&copier, s, err);
        if (!st && to_host)
            memcpy(host + done, staging->map, filled);
    }
    if (st == ESP_E_DEVICE)
        s->lost = true;
    return st;
}

/**
 * Between a block as the device has it and as it travels: every number of `wire`, f32[ESP_KV_BLOCK, 2, K, H], from its
 * place in `dev` (shaders/push.h) or there. Padding is left alone.
 */
static void reorder(const struct esp_text_config *t, float *dev, float *wire, bool to_wire)
{
    const uint32_t h = t->head_dim, hp = esp_pack_head_dim(h), low = (h + 1) / 2, n_kv = t->n_kv_head;
    float *at = wire;

    for (uint32_t token = 0; token < ESP_KV_BLOCK; token++) {
        for (uint32_t kind = 0; kind < 2; kind++) { /* keys, values */
            for (uint32_t k = 0; k < n_kv; k++) {
                for (uint32_t d = 0; d < h; d++, at++) {
                    const uint32_t j = d < low ? d : hp / 2 + (d - low); /* each half is padded on its own */
                    const size_t texel =
                        kind == 0
                            ? ((size_t)(k * (ESP_KV_BLOCK / 8) + token / 8) * (hp / 4) + j / 4) * 8 +
                                  token % 8
                            : ((size_t)n_kv * ESP_KV_BLOCK + k * ESP_KV_BLOCK + token) * (hp / 4) + j / 4;
                    float *there = dev + texel * 4 + j % 4;
                    memcpy(to_wire ? at : there, to_wire ? there : at,
                           sizeof *at); /* bits: not through a register */
                }
            }
        }
    }
}

/** Floats of a token on the wire. */
static uint32_t wire_width(const struct esp_stage *s)
{
    return 2 * s->c->text.n_kv_head * s->c->text.head_dim;
}

/** Blocks that are on the host at once. */
static uint32_t group_of(const struct esp_stage *s)
{
    const uint32_t n = GROUP_BYTES / (s->ps.at.text_block * 16);

    return n > 0 ? n : 1;
}

/** n blocks of a layer, numbered `own` in the cache, between the device and `wire`. */
static esp_status haul_blocks(struct esp_stage *s, uint32_t layer, const uint32_t *own, uint32_t n,
                              char *wire, bool to_wire, struct esp_err *err)
{
    const size_t each = (size_t)s->ps.at.text_block * 16;
    const size_t wire_bytes = (size_t)ESP_KV_BLOCK * wire_width(s) * sizeof(float);
    const uint32_t group = n < group_of(s) ? n : group_of(s);
    char *dev = calloc(group, each); /* padding is zero */
    float *one = malloc(wire_bytes); /* aligned, which a received frame need not be */
    VkDeviceSize *at = malloc(group * sizeof *at);
    esp_status st = ESP_OK;

    if (!dev || !one || !at)
        st = esp_fail(err, ESP_E_NOMEM, "%u KV blocks on their way", n);
    for (uint32_t b = 0; !st && b < n; b += group) {
        const uint32_t m = n - b < group ? n - b : group;

        for (uint32_t i = 0; i < m; i++) {
            at[i] = block_at(s, layer, own[b + i]);
            if (to_wire)
                continue;
            memcpy(one, wire + (b + i) * wire_bytes, wire_bytes);
            reorder(&s->c->text, (float *)(void *)(dev + i * each), one, false);
        }
        st = haul(s, &s->space.kv, at, m, each, dev, to_wire, err);
        for (uint32_t i = 0; !st && to_wire && i < m; i++) {
            reorder(&s->c->text, (float *)(void *)(dev + i * each), one, true);
            memcpy(wire + (b + i) * wire_bytes, one, wire_bytes);
        }
    }
    free(dev);
    free(one);
    free(at);
    return st;
}

esp_status esp_stage_export_kv(struct esp_stage *s, uint32_t layer, uint32_t first, size_t max_bytes,
                               struct esp_stage_kv *out, struct esp_err *err)
{
    const uint32_t width = wire_width(s);
    const size_t block_bytes = (size_t)ESP_KV_BLOCK * width * sizeof(float);
    uint32_t n;
    esp_status st;

    memset(out, 0, sizeof *out);
    if (s->lost)
        return esp_fail(err, ESP_E_DEVICE, "the device is lost");
    if (!s->kv || !s->space.kv.buf || layer < s->spec.dec_lo || layer >= s->spec.dec_hi)
        return esp_fail(err, ESP_E_PROTO, "there is no KV of decoder layer %u here", layer);
    st = esp_kv_export(&out->books, s->kv, err);
    if (!st && first > out->books.n_blocks)
        st = esp_fail(err, ESP_E_PROTO, "KV of layer %u: block %u of %u", layer, first, out->books.n_blocks);
    if (st)
        goto done;
    n = out->books.n_blocks - first;
    if (n > max_bytes / block_bytes)
        n = max_bytes < block_bytes ? 1 : (uint32_t)(max_bytes / block_bytes);
    out->msg = (struct esp_msg_kv_blocks){.layer = layer,
                                          .first = first,
                                          .n_blocks = n,
                                          .total_blocks = out->books.n_blocks,
                                          .block_tokens = ESP_KV_BLOCK,
                                          .width = width,
                                          .n_seqs = out->books.n_seqs,
                                          .seqs = out->books.seqs};
    if (n == 0)
        return ESP_OK;
    out->data = malloc(n * block_bytes);
    if (!out->data)
        st = esp_fail(err, ESP_E_NOMEM, "%u KV blocks to send", n);
    else
        st = haul_blocks(s, layer, out->books.own + first, n, (char *)out->data, true, err);
done:
    if (st)
        esp_stage_kv_finish(out);
    return st;
}

/** What can be wrong with a message's sizes and contents. */
static esp_status import_check(const struct esp_stage *s, const struct esp_msg_kv_blocks *m, const char *data,
                               struct esp_err *err)
{
    const uint32_t width = wire_width(s);
    const size_t n = (size_t)m->n_blocks * ESP_KV_BLOCK * width;

    if (!s->kv || m->layer < s->spec.dec_lo || m->layer >= s->spec.dec_hi)
        return esp_fail(err, ESP_E_PROTO, "decoder layer %u is not this stage's", m->layer);
    if (m->block_tokens != ESP_KV_BLOCK || m->width != width)
        return esp_fail(err, ESP_E_PROTO, "KV blocks f32[%u,%u], takes f32[%u,%u]", m->block_tokens, m->width,
                        ESP_KV_BLOCK, width);
    if (m->total_blocks > esp_kv_n_blocks(s->kv))
        return esp_fail(err, ESP_E_LIMIT, "%u KV blocks, takes %u", m->total_blocks, esp_kv_n_blocks(s->kv));
    for (size_t i = 0; i < n; i++) {
        float x;
        memcpy(&x, data + i * sizeof x, sizeof x);
        if (!isfinite(x))
            return esp_fail(err, ESP_E_NUMBERS, "KV of layer %u, block %zu: no finite numbers", m->layer,
                            m->first + i / ((size_t)ESP_KV_BLOCK * width));
    }
    return ESP_OK;
}

esp_status esp_stage_import_kv(struct esp_stage *s, const struct esp_msg_kv_blocks *m, const void *data,
                               struct esp_err *err)
{
    uint32_t *own = NULL;
    esp_status st;

    if (s->lost)
        return esp_fail(err, ESP_E_DEVICE, "the device is lost");
    st = import_check(s, m, data, err);
    if (st)
        return st;
    own = malloc(((size_t)m->total_blocks + 1) * sizeof *own);
    if (!own)
        return esp_fail(err, ESP_E_NOMEM, "the books of %u KV blocks", m->total_blocks);
    st = s->has_books ? esp_kv_match(s->kv, m->seqs, m->n_seqs, m->total_blocks, own, err)
                      : esp_kv_adopt(s->kv, m->seqs, m->n_seqs, m->total_blocks, own, err);
    if (!st)
        s->has_books = true;
    if (!st && m->n_blocks > 0) /* in the other direction nothing is written here */
        st = haul_blocks(s, m->layer, own + m->first, m->n_blocks, (char *)(uintptr_t)data, false, err);
    free(own);
    return st;
}

esp_status esp_stage_export_features(struct esp_stage *s, uint64_t image, struct esp_stage_out *out,
                                     struct esp_err *err)
{
    const uint32_t n_row = s->c->vision.n_token, width = s->c->text.width, stride = s->ps.at.features.stride;
    const VkDeviceSize n_bytes = (VkDeviceSize)n_row * stride * 16;
    uint32_t slot = ESP_NONE;
    VkDeviceSize at;
    char *padded;
    esp_status st;

    memset(out, 0, sizeof *out);
    if (s->lost)
        return esp_fail(err, ESP_E_DEVICE, "the device is lost");
    if (image && s->spec.embed && s->images && s->space.act.buf)
        slot = esp_stage_image_slot(s, image);
    if (slot == ESP_NONE)
        return esp_fail(err, ESP_E_PROTO, "image %llu is not here", (unsigned long long)image);
    at = features_at(s, slot);
    padded = malloc(n_bytes);
    out->rows = malloc((size_t)n_row * width * sizeof *out->rows);
    st = padded && out->rows
             ? haul(s, &s->space.act, &at, 1, n_bytes, padded, true, err)
             : esp_fail(err, ESP_E_NOMEM, "features of image %llu", (unsigned long long)image);
    for (uint32_t i = 0; !st && i < n_row; i++)
        memcpy(out->rows + (size_t)i * width, padded + (size_t)i * stride * 16, width * sizeof *out->rows);
    free(padded);
    out->n_rows = n_row;
    out->width = width;
    out->payload = ESP_PAYLOAD_FEATURES;
    if (st)
        esp_stage_out_finish(out);
    return st;
}
