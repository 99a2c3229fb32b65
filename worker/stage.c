/* A stage's making, end and description; what it does is in stage_encode.c, stage_step.c and stage_run.c. */
#include "worker/stage_state.h"

#include <stdlib.h>
#include <string.h>

#include "worker/vk_cmd.h"
#include "worker/vk_pipe.h"

/* What the kernels cannot do for this model, said before anything is loaded. */
static esp_status kernels_check(const struct esp_stage *s, struct esp_err *err)
{
    const uint32_t head_dim[2] = {s->enc ? esp_pack_head_dim(s->c->vision.head_dim) : 0,
                                  s->spec.dec_lo < s->spec.dec_hi ? esp_pack_head_dim(s->c->text.head_dim)
                                                                  : 0};
    const uint32_t has = s->vk->props.limits.maxComputeSharedMemorySize;

    for (uint32_t i = 0; i < 2; i++)
        if (head_dim[i] && esp_attn_shared_bytes(s->vk, head_dim[i]) > has)
            return esp_fail(err, ESP_E_UNSUPPORTED,
                            "attention heads of %u dimensions take %u bytes of workgroup memory; %s has %u",
                            head_dim[i], esp_attn_shared_bytes(s->vk, head_dim[i]), s->vk->report.name, has);
    if (s->c->vision.n_token > ESP_STAGE_MAX_ROWS)
        return esp_fail(err, ESP_E_UNSUPPORTED, "pictures of %u tokens; kernels take %u rows at once",
                        s->c->vision.n_token, ESP_STAGE_MAX_ROWS);
    return ESP_OK;
}

/* What the stage takes of the device beside the shelf's pieces. */
static uint64_t other_bytes(const struct esp_stage *s)
{
    return s->kv_bytes + s->scratch_bytes + s->weights.n_vec * sizeof(float);
}

/* Buffers but the weights, after checking the whole plan against the device's budget. */
static esp_status space_create(struct esp_stage *s, struct esp_stage *former, struct esp_err *err)
{
    const struct esp_layout *at = &s->ps.at;
    const uint32_t rows = s->spec.max_rows > s->c->vision.n_token ? s->spec.max_rows : s->c->vision.n_token;
    const uint32_t blocks_a_seq = (uint32_t)(esp_round_up(s->spec.max_rows, ESP_KV_BLOCK) / ESP_KV_BLOCK);
    const uint32_t max_table =
        s->spec.max_seqs * blocks_a_seq + at->n_vision_blocks + at->max_items * ESP_ITEM;
    const size_t step_bytes = esp_batch_n_words(rows, s->spec.max_seqs, max_table) * 4;
    struct esp_vk *vk = s->vk;
    uint64_t beside;
    esp_status st = ESP_OK;

    esp_stage_take_buffers(s, former);
    beside = esp_shelf_beside(s->shelf, &s->spec); /* what the former one keeps is there */
    s->kv_bytes = at->kv_texels * 16;
    s->scratch_bytes = at->act_texels * 16 + at->in_bytes + at->out_bytes + step_bytes;
    s->weight_bytes = s->weights.n_bytes;
    if (s->weight_bytes + s->kv_bytes + s->scratch_bytes + beside > vk->report.memory_bytes)
        return esp_fail(err, ESP_E_NOMEM,
                        "%s: needs %.1f MiB of weights, %.1f MiB of KV cache, %.1f MiB of scratch; it has "
                        "%.1f MiB, %.1f of them in use",
                        vk->report.name, (double)s->weight_bytes / (1 << 20), (double)s->kv_bytes / (1 << 20),
                        (double)s->scratch_bytes / (1 << 20), (double)vk->report.memory_bytes / (1 << 20),
                        (double)beside / (1 << 20));
    esp_shelf_use(s->shelf, &s->spec, other_bytes(s));
    s->on_shelf = true;
    if (!s->took_act)
        st = esp_buf_create(&s->space.act, vk, ESP_BUF_DEVICE, at->act_texels * 16,
                            VK_FORMAT_R32G32B32A32_SFLOAT, "scratch", err);
    if (!st && !s->took_kv)
        st = esp_buf_create(&s->space.kv, vk, ESP_BUF_DEVICE, at->kv_texels * 16,
                            VK_FORMAT_R32G32B32A32_SFLOAT, "KV cache", err);
    if (!st)
        st = esp_buf_create(&s->space.step, vk, ESP_BUF_STEP, step_bytes, VK_FORMAT_UNDEFINED, "step buffer",
                            err);
    if (!st)
        st = esp_buf_create(&s->space.in, vk, ESP_BUF_UPLOAD, at->in_bytes, VK_FORMAT_UNDEFINED, "input rows",
                            err);
    if (!st)
        st = esp_buf_create(&s->space.out, vk, ESP_BUF_READBACK, at->out_bytes, VK_FORMAT_UNDEFINED,
                            "output rows", err);
    if (!st && !vk->uma && !(s->step_words = calloc(1, step_bytes)))
        st = esp_fail(err, ESP_E_NOMEM, "step buffer");
    if (!st)
        esp_batch_init(&s->batch, s->step_words ? s->step_words : s->space.step.map, rows, s->spec.max_seqs);
    if (!st && s->step_words)
        esp_batch_mirror(&s->batch, s->space.step.map);
    return st;
}

/* Masked keys and padding are multiplied by zero, so what lies there must be a number: everything starts as
 * zero. */
static esp_status space_clear(struct esp_stage *s, struct esp_err *err)
{
    VkCommandBuffer cmd;
    esp_status st = esp_cmd_once_begin(&cmd, s->vk, err);

    if (st)
        return st;
    if (!s->took_act)
        vkCmdFillBuffer(cmd, s->space.act.buf, 0, VK_WHOLE_SIZE, 0);
    if (!s->took_kv)
        vkCmdFillBuffer(cmd, s->space.kv.buf, 0, VK_WHOLE_SIZE, 0);
    return esp_cmd_once_run(&cmd, s->vk, err);
}

static esp_status books_create(struct esp_stage *s, uint32_t n_blocks, struct esp_err *err)
{
    esp_status st = ESP_OK;

    if (!s->images) /* or they came with their buffer */
        s->images = calloc(s->spec.max_images + 1, sizeof *s->images);
    s->slots = calloc(s->spec.max_rows / s->c->vision.n_token + 1, sizeof *s->slots);
    s->vision_table = calloc(s->ps.at.n_vision_blocks + 1, sizeof *s->vision_table);
    s->appends = calloc(s->spec.max_seqs + 1, sizeof *s->appends);
    if (!s->images || !s->slots || !s->vision_table || !s->appends)
        return esp_fail(err, ESP_E_NOMEM, "the stage's books");
    for (uint32_t i = 0; i < s->ps.at.n_vision_blocks; i++)
        s->vision_table[i] = i;
    if (n_blocks && !s->kv)
        st = esp_kv_create(&s->kv, n_blocks, ESP_KV_BLOCK, s->spec.max_seqs,
                           (uint32_t)(esp_round_up(s->spec.max_rows, ESP_KV_BLOCK) / ESP_KV_BLOCK), err);
    return st;
}

esp_status esp_stage_create(struct esp_stage **out, struct esp_shelf *shelf,
                            const struct esp_stage_spec *spec, struct esp_stage *former,
                            esp_load_progress progress, void *progress_arg, struct esp_err *err)
{
    struct esp_stage *s = calloc(1, sizeof *s);
    uint32_t n_blocks = 0;
    bool short_of_memory;
    esp_status st;

    *out = NULL;
    if (!s)
        return esp_fail(err, ESP_E_NOMEM, "stage");
    s->shelf = shelf;
    s->vk = s->space.vk = esp_shelf_vk(shelf);
    s->ck = esp_shelf_checkpoint(shelf);
    s->c = esp_checkpoint_config(s->ck);
    s->spec = *spec;
    s->enc = spec->enc_lo < spec->enc_hi || spec->patch || spec->projector;
    s->dec = spec->dec_lo < spec->dec_hi || spec->embed || spec->head;
    if ((st = esp_stage_spec_check(spec, s->c, err)))
        goto done;
    if (!s->enc && !s->dec) { /* a spare: nothing to hold */
        *out = s;
        return ESP_OK;
    }
    if ((st = kernels_check(s, err)))
        goto done;
    if (spec->dec_lo < spec->dec_hi)
        n_blocks = (uint32_t)(esp_round_up(spec->kv_tokens, ESP_KV_BLOCK) / ESP_KV_BLOCK);
    if ((st = esp_layout_plan(&s->ps.at, s->vk, s->c, spec, n_blocks, err)) ||
        (st = esp_weights_plan(&s->weights, shelf, spec, spec->max_rows, err)) ||
        (st = space_create(s, former, err)) ||
        (st = esp_weights_load(&s->weights, &s->space, shelf, spec, spec->max_rows, progress, progress_arg,
                               err)) ||
        (st = space_clear(s, err)) || (st = books_create(s, n_blocks, err)) ||
        (former && (st = esp_stage_inherit(s, former, err))) || (st = esp_space_bind(&s->space, err)))
        goto done;
    if (s->vk->profile && (st = esp_profile_create(&s->space.profile, s->vk, err)))
        goto done;
    st = esp_programs_record(&s->ps, &s->space, &s->weights, s->c, spec, err);
    if (st)
        goto done;
    esp_pipes_save(s->vk->pipes);
    esp_shelf_settle(shelf, spec);
    *out = s;
    s = NULL;
done:
    short_of_memory = st == ESP_E_NOMEM && s->on_shelf;
    esp_stage_destroy(&s);
    if (short_of_memory) /* the plan fitted, the device did not keep its word */
        esp_shelf_settle(shelf, NULL);
    return st;
}

esp_status esp_stage_prepare(struct esp_shelf *shelf, const struct esp_stage_spec *spec, bool few,
                             struct esp_err *err)
{
    struct esp_vk *vk = esp_shelf_vk(shelf);
    const struct esp_config *c = esp_checkpoint_config(esp_shelf_checkpoint(shelf));
    const uint32_t n_blocks = (uint32_t)(esp_round_up(spec->kv_tokens, ESP_KV_BLOCK) / ESP_KV_BLOCK);
    struct esp_programs ps = {0};
    struct esp_weights weights = {0};
    esp_status st = esp_stage_spec_check(spec, c, err);

    if (!st)
        st = esp_layout_plan(&ps.at, vk, c, spec, n_blocks, err);
    if (!st)
        st = esp_weights_plan(&weights, shelf, spec, spec->max_rows, err);
    if (!st)
        st = esp_programs_prepare(&ps, vk, &weights, c, spec, few, err);
    if (!st)
        esp_pipes_save(vk->pipes);
    esp_weights_finish(&weights);
    return st;
}

void esp_stage_leave_shelf(struct esp_stage *s)
{
    if (s->on_shelf)
        esp_shelf_leave(s->shelf, &s->spec, other_bytes(s));
    s->on_shelf = false;
}

void esp_stage_destroy(struct esp_stage **sp)
{
    struct esp_stage *s = *sp;

    if (!s)
        return;
    vkDeviceWaitIdle(s->vk->dev);
    esp_profile_log(s->space.profile, s->vk->log);
    esp_programs_finish(&s->ps, s->vk);
    esp_stage_leave_shelf(s);
    esp_stage_drop_rest(s);
    esp_weights_finish(&s->weights);
    esp_space_finish(&s->space);
    esp_kv_destroy(&s->kv);
    free(s->step_words);
    free(s->images);
    free(s->slots);
    free(s->vision_table);
    free(s->appends);
    free(s);
    *sp = NULL;
}

const struct esp_stage_spec *esp_stage_spec(const struct esp_stage *s)
{
    return &s->spec;
}

const struct esp_checkpoint *esp_stage_checkpoint(const struct esp_stage *s)
{
    return s->ck;
}

struct esp_profile *esp_stage_profile(const struct esp_stage *s)
{
    return s->space.profile;
}

/* Whether a product of a few rows is one of integers (worker/ops_matmul.c): by what the matrices are held as, stored or asked
 * for. */
static bool rounds_few(const struct esp_stage *s)
{
    bool quantised = (s->spec.embed || s->spec.head) && esp_wtype_quantised(s->weights.embed.wtype);

    for (uint32_t i = 0; i < s->spec.dec_hi - s->spec.dec_lo; i++) {
        const struct esp_dec_layer *l = &s->weights.dec[i];
        quantised = quantised || esp_wtype_quantised(l->qkv.wtype) || esp_wtype_quantised(l->o.wtype) ||
                    esp_wtype_quantised(l->gate_up.wtype) || esp_wtype_quantised(l->down.wtype);
    }
    return s->vk->cls == ESP_VK_DIRECT && quantised;
}

void esp_stage_info(const struct esp_stage *s, struct esp_stage_info_out *out)
{
    memset(out, 0, sizeof *out);
    out->weight_bytes = s->weight_bytes;
    out->kv_bytes = s->kv_bytes;
    out->scratch_bytes = s->scratch_bytes;
    out->loaded_bytes = s->weights.read_bytes;
    out->block_tokens = ESP_KV_BLOCK;
    out->few_rounded = rounds_few(s);
    if (s->kv) {
        out->kv_blocks = esp_kv_n_blocks(s->kv);
        out->kv_used_blocks = esp_kv_used_blocks(s->kv);
        out->n_seqs = esp_kv_n_seqs(s->kv);
    }
    for (uint32_t i = 0; s->images && i < s->spec.max_images; i++)
        out->n_images += s->images[i] != 0;
}
