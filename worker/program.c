#include "worker/program.h"

#include <stdlib.h>
#include <string.h>

#include "worker/vk_cmd.h"

static const uint32_t few_rows[ESP_N_FEW] = {1, 2, 4, 8, 8};

#define MAX_ITEMS 4096u /* of split attention in a step; one takes 8 KiB with Gemma's heads */

enum esp_decode_few esp_few_for(uint32_t n_rows)
{
    return n_rows <= 1 ? ESP_FEW_1 : n_rows == 2 ? ESP_FEW_2 : n_rows <= 4 ? ESP_FEW_4 : ESP_FEW_8;
}

static uint32_t stride_of(uint32_t width)
{
    return (uint32_t)esp_round_up(width, 32) / 4;
}

static struct esp_rows place(uint64_t *at, uint64_t n_row, uint32_t width)
{
    struct esp_rows r = {(uint32_t)*at, stride_of(width)};
    *at += n_row * r.stride;
    return r;
}

static uint64_t plan_encoder(struct esp_layout *l, const struct esp_config *c)
{
    const struct esp_vision_config *v = &c->vision;
    const uint32_t heads = v->n_head * esp_pack_head_dim(v->head_dim);
    uint64_t at = 0, attn_end, mlp_end, patch_end;

    l->x = place(&at, v->n_token,
                 v->width > c->text.width ? v->width : c->text.width); /* the projector's rows too */
    l->x.stride = stride_of(v->width);
    l->h = place(&at, v->n_token, v->width);
    attn_end = mlp_end = patch_end = at;
    l->qkv = place(&attn_end, v->n_token, 3 * heads);
    l->attn = place(&attn_end, v->n_token, heads);
    l->mlp = place(&mlp_end, v->n_token, v->mlp_dim);
    l->patches = place(&patch_end, v->n_token, v->n_channel * v->patch_size * v->patch_size);
    at = attn_end > mlp_end ? attn_end : mlp_end;
    return at > patch_end ? at : patch_end;
}

/* Items of a step in which every sequence decodes a row at full length, within reason; one sequence always fits. */
static uint32_t plan_items(const struct esp_stage_spec *spec)
{
    const uint32_t a_seq = (spec->max_rows + ESP_SLICE - 1) / ESP_SLICE;
    const uint32_t all = a_seq * spec->max_seqs; /* at most 1024 * ESP_MAX_SEQS */
    const uint32_t most = a_seq > MAX_ITEMS ? a_seq : MAX_ITEMS;

    return all < most ? all : most;
}

static uint64_t plan_decoder(struct esp_layout *l, const struct esp_vk *vk, const struct esp_config *c,
                             const struct esp_stage_spec *spec)
{
    const struct esp_text_config *t = &c->text;
    const uint32_t max_rows = spec->max_rows;
    const uint32_t h = esp_pack_head_dim(t->head_dim);
    const uint32_t n_square = esp_norm_squares(vk, t->width);
    uint64_t at = 0, attn_end, mlp_end;

    l->tx = place(&at, max_rows, t->width);
    l->th = place(&at, max_rows, t->width);
    if (n_square && !t->post_norms)
        l->squares = place(&at, max_rows, n_square);
    attn_end = mlp_end = at;
    l->tqkv = place(&attn_end, max_rows, (t->n_head + 2 * t->n_kv_head) * h);
    l->tattn = place(&attn_end, max_rows, t->n_head * h);
    l->tmlp = place(&mlp_end, max_rows, t->mlp_dim);
    if (esp_attn_part_texels(vk, t->n_head, t->n_kv_head, h)) {
        l->parts = (uint32_t)attn_end;
        l->max_items = plan_items(spec);
        attn_end += (uint64_t)l->max_items * esp_attn_part_texels(vk, t->n_head, t->n_kv_head, h);
    }
    return attn_end > mlp_end ? attn_end : mlp_end;
}

esp_status esp_layout_plan(struct esp_layout *l, const struct esp_vk *vk, const struct esp_config *c,
                           const struct esp_stage_spec *spec, uint32_t n_blocks, struct esp_err *err)
{
    const bool enc = spec->enc_lo < spec->enc_hi || spec->patch || spec->projector;
    const bool dec = spec->dec_lo < spec->dec_hi || spec->embed || spec->head;
    const uint32_t n_dec = spec->dec_hi - spec->dec_lo;
    bool scales = false;
    uint64_t e = 0, d = 0, layer = 0, in = 4, out = 4, n;

    memset(l, 0, sizeof *l);
    if (enc)
        e = plan_encoder(l, c);
    if (dec)
        d = plan_decoder(l, vk, c, spec);
    l->act_texels = e > d ? e : d;
    for (uint32_t i = 0; i < ESP_N_WTYPE; i++)
        scales = scales || vk->choice[i].coop.m > 0;
    if (scales) {
        const uint32_t n_vision = enc ? c->vision.n_token : 0, n_text = dec ? spec->max_rows : 0;
        const uint32_t n_row = n_vision > n_text ? n_vision : n_text;
        l->scales = (uint32_t)l->act_texels;
        l->act_texels += ((n_row > ESP_HEAD_ROWS ? n_row : ESP_HEAD_ROWS) + 3) / 4;
    }
    if (spec->embed)
        l->features = place(&l->act_texels, (uint64_t)spec->max_images * c->vision.n_token, c->text.width);
    if (spec->head) {
        l->pick = place(&l->act_texels, ESP_HEAD_ROWS, c->text.width);
        l->logits = place(&l->act_texels, ESP_HEAD_ROWS, c->text.vocab);
        l->slices =
            (struct esp_rows){(uint32_t)l->act_texels, (c->text.vocab + ESP_TOP_SLICE - 1) / ESP_TOP_SLICE};
        l->act_texels += (uint64_t)ESP_HEAD_ROWS * l->slices.stride;
    }
    if (n_dec) {
        l->text_block = 2 * c->text.n_kv_head * ESP_KV_BLOCK * esp_pack_head_dim(c->text.head_dim) / 4;
        layer = (uint64_t)n_blocks * l->text_block;
        l->text_layer = (uint32_t)layer;
        l->kv_texels = n_dec * layer;
    }
    if (enc) {
        l->vision_at = (uint32_t)l->kv_texels;
        l->vision_block = 2 * c->vision.n_head * ESP_KV_BLOCK * esp_pack_head_dim(c->vision.head_dim) / 4;
        l->n_vision_blocks = (c->vision.n_token + ESP_KV_BLOCK - 1) / ESP_KV_BLOCK;
        l->kv_texels += (uint64_t)l->n_vision_blocks * l->vision_block;
    }
    /* indices are signed in SPIR-V, and kernels index activations by single floats too */
    if (l->act_texels > INT32_MAX / 4 || l->kv_texels > INT32_MAX)
        return esp_fail(err, ESP_E_NOMEM, "%u rows and %u KV tokens are more than kernels can address",
                        spec->max_rows, spec->kv_tokens);
    if (enc) {
        const uint32_t w = c->vision.width > c->text.width ? c->vision.width : c->text.width;
        n = (uint64_t)c->vision.n_channel * c->vision.image_size * c->vision.image_size * 4;
        in = n > in ? n : in;
        n = (uint64_t)c->vision.n_token * w * 4;
        in = n > in ? n : in;
        out = n > out ? n : out;
    }
    if (dec) {
        n = (uint64_t)spec->max_rows * c->text.width * 4;
        in = n > in ? n : in;
        out = n > out ? n : out;
        n = (uint64_t)c->vision.n_token * c->text.width * 4; /* features to store */
        in = n > in ? n : in;
    }
    if (spec->head) {
        l->full_at = ESP_HEAD_ROWS * ESP_TOP;
        n = ((uint64_t)l->full_at + (uint64_t)ESP_HEAD_ROWS * c->text.vocab) * 4;
        out = n > out ? n : out;
    }
    l->in_bytes = in;
    l->out_bytes = out;
    return ESP_OK;
}

/* What recording needs at hand. */
struct recorder {
    struct esp_programs *ps;
    struct esp_space *space;
    const struct esp_weights *w;
    const struct esp_config *c;
    const struct esp_stage_spec *spec;
    struct esp_rec rec;
    double seg_s; /* what the segment at hand may take when rows are as many as there can be */
    uint32_t rows;
};

#define RATE_UNKNOWN   1e11 /* flop/s of a device that was not measured */
#define ATTENTION_RATE 0.25 /* of the measured rate: what attention reaches at least */

/* The time that something may take, and how many pieces of no more than vk->submit_s make it up. */
static double may_take(const struct recorder *r, double flop)
{
    const double rate = r->space->vk->report.matmul_rate;
    return flop / (rate > 0 ? rate : RATE_UNKNOWN);
}

static uint32_t n_pieces(const struct recorder *r, double seconds)
{
    const struct esp_vk *vk = r->space->vk;
    double n;

    if (!(vk->submit_s > 0) || esp_vk_has_texels(vk->cls)) /* CPU drivers have no watchdog */
        return 1;
    n = __builtin_ceil(seconds / vk->submit_s);
    return n < 1 ? 1 : n > 64 ? 64 : (uint32_t)n;
}

/* Begins a segment of a program. After a failure nothing happens any more. */
static void begin(struct recorder *r, struct esp_program *p)
{
    struct esp_segment *seg;

    if (r->rec.st || r->rec.dry)
        return;
    if (p->n == p->cap) {
        uint32_t cap = p->cap ? 2 * p->cap : 8;
        seg = realloc(p->seg, cap * sizeof *seg);
        if (!seg) {
            r->rec.st = esp_fail(r->rec.err, ESP_E_NOMEM, "command buffers");
            return;
        }
        p->seg = seg;
        p->cap = cap;
    }
    seg = &p->seg[p->n];
    memset(seg, 0, sizeof *seg);
    r->rec.st = esp_cmd_alloc(&seg->cmd, r->space->vk, r->rec.err);
    if (r->rec.st)
        return;
    p->n++;
    r->seg_s = 0;
    r->rec.cmd = seg->cmd;
    r->rec.st = esp_cmd_begin(seg->cmd, false, r->rec.err);
}

static void end(struct recorder *r, struct esp_program *p, const char *name, int layer, struct esp_rows loc,
                uint32_t width)
{
    struct esp_segment *seg;

    if (r->rec.st || r->rec.dry)
        return;
    seg = &p->seg[p->n - 1];
    if (layer >= 0)
        snprintf(seg->name, sizeof seg->name, "%s.layer.%d", name, layer);
    else
        snprintf(seg->name, sizeof seg->name, "%s", name);
    seg->loc = loc;
    seg->width = width;
    esp_cmd_barrier_all(seg->cmd);
    r->rec.st = esp_cmd_end(seg->cmd, r->rec.err);
}

/* Before something that may take so long: begins another segment if both together would be too much for one. */
static void make_room(struct recorder *r, struct esp_program *p, double seconds)
{
    const double most = r->space->vk->submit_s;

    if (most > 0 && !esp_vk_has_texels(r->space->vk->cls) && r->seg_s > 0 && r->seg_s + seconds > most) {
        end(r, p, "", -1, (struct esp_rows){0}, 0);
        begin(r, p);
    }
    r->seg_s += seconds;
}

static void product_how(struct recorder *r, struct esp_program *p, struct esp_rows y, struct esp_rows x,
                        const struct esp_mat *w, const struct esp_matmul_how *how)
{
    const double seconds = how->few ? 0 : may_take(r, 2.0 * r->rows * w->np * w->kp);
    uint32_t n = n_pieces(r, seconds);

    n = n < w->np / 32 ? n : w->np / 32;
    for (uint32_t i = 0; i < n; i++) {
        struct esp_mat piece;
        esp_mat_piece(&piece, w, i, n);
        make_room(r, p, seconds / n);
        esp_op_matmul(&r->rec, y, x, &piece, how);
    }
}

static void product(struct recorder *r, struct esp_program *p, struct esp_rows y, struct esp_rows x,
                    const struct esp_mat *w, uint32_t epilogue, uint32_t few)
{
    const struct esp_matmul_how how = {
        .epilogue = epilogue, .few = few, .count = ESP_COUNT_ROWS, .scale_at = r->ps->at.scales};
    product_how(r, p, y, x, w, &how);
}

/* span: positions that a row may look at */
static void attention(struct recorder *r, struct esp_program *p, struct esp_rows y, struct esp_rows qkv,
                      const struct esp_attn_how *how, uint32_t span)
{
    const double seconds =
        how->few ? 0 : may_take(r, 4.0 * r->rows * span * how->n_head * how->head_dim) / ATTENTION_RATE;
    const uint32_t n = n_pieces(r, seconds);

    for (uint32_t i = 0; i < n; i++) {
        make_room(r, p, seconds / n);
        esp_op_attention_piece(&r->rec, y, qkv, how, i, n);
    }
}

static void norm(struct recorder *r, struct esp_rows y, struct esp_rows x, uint32_t mode, uint32_t width,
                 uint32_t weight, uint32_t bias, float eps)
{
    const struct esp_norm_how how = {
        .mode = mode, .width = width, .weight = weight, .bias = bias, .eps = eps};
    esp_op_norm(&r->rec, y, x, &how);
}

/* x += attn(LN(x)); x += MLP(LN(x)). arXiv 2303.15343 (SigLIP's tower is a pre-LN ViT, arXiv 2010.11929). */
static void encoder_layer(struct recorder *r, uint32_t i)
{
    const struct esp_vision_config *v = &r->c->vision;
    const struct esp_layout *at = &r->ps->at;
    const struct esp_enc_layer *l = &r->w->enc[i];
    const struct esp_attn_how attn = {.n_head = v->n_head,
                                      .n_kv = v->n_head,
                                      .head_dim = esp_pack_head_dim(v->head_dim),
                                      .kv_at = at->vision_at,
                                      .block_stride = at->vision_block,
                                      .q_scale = 1.0f / __builtin_sqrtf((float)v->head_dim)};

    begin(r, &r->ps->encode);
    norm(r, at->h, at->x, ESP_NORM_LAYER, v->width, l->norm1_w, l->norm1_b, v->ln_eps);
    product(r, &r->ps->encode, at->qkv, at->h, &l->qkv, ESP_EPI_NONE, 0);
    esp_op_rope_kv(&r->rec, at->qkv, &attn);
    attention(r, &r->ps->encode, at->attn, at->qkv, &attn, v->n_token);
    product(r, &r->ps->encode, at->x, at->attn, &l->o, ESP_EPI_ADD, 0);
    norm(r, at->h, at->x, ESP_NORM_LAYER, v->width, l->norm2_w, l->norm2_b, v->ln_eps);
    product(r, &r->ps->encode, at->mlp, at->h, &l->fc1, ESP_EPI_GELU, 0);
    product(r, &r->ps->encode, at->x, at->mlp, &l->fc2, ESP_EPI_ADD, 0);
    end(r, &r->ps->encode, "vision", (int)(r->spec->enc_lo + i), at->x, v->width);
}

static void encode_program(struct recorder *r)
{
    const struct esp_vision_config *v = &r->c->vision;
    const struct esp_layout *at = &r->ps->at;
    struct esp_program *p = &r->ps->encode;
    struct esp_rows last = at->x;
    uint32_t width = v->width;

    r->rows = v->n_token;
    begin(r, p);
    if (r->spec->patch) {
        esp_op_im2col(&r->rec, at->patches, v->n_channel, v->image_size, v->patch_size);
        product(r, p, at->x, at->patches, &r->w->patch, ESP_EPI_NONE, 0);
        end(r, p, "vision.patch_embeddings", -1, at->x, v->width);
        begin(r, p);
        esp_op_add_vec(&r->rec, at->x, r->w->pos);
        end(r, p, "vision.embeddings", -1, at->x, v->width);
    } else {
        esp_op_rows_in(&r->rec, at->x, v->width);
        end(r, p, "", -1, at->x, v->width);
    }
    for (uint32_t i = 0; i < r->spec->enc_hi - r->spec->enc_lo; i++)
        encoder_layer(r, i);
    if (r->spec->projector) {
        begin(r, p);
        norm(r, at->h, at->x, ESP_NORM_LAYER, v->width, r->w->post_w, r->w->post_b, v->ln_eps);
        end(r, p, "vision.post_layernorm", -1, at->h, v->width);
        last.stride = stride_of(r->c->text.width); /* over x, which nobody needs any more */
        width = r->c->text.width;
        begin(r, p);
        product(r, p, last, at->h, &r->w->proj, ESP_EPI_NONE, 0);
        end(r, p, "vision.projector", -1, last, width);
    }
    begin(r, p);
    esp_op_rows_out(&r->rec, last, width, 0, ESP_COUNT_ROWS);
    end(r, p, "", -1, last, width);
}

static struct esp_attn_how decoder_attn(const struct recorder *r, uint32_t i)
{
    const struct esp_text_config *t = &r->c->text;
    const struct esp_layout *at = &r->ps->at;

    return (struct esp_attn_how){.n_head = t->n_head,
                                 .n_kv = t->n_kv_head,
                                 .head_dim = esp_pack_head_dim(t->head_dim),
                                 .kv_at = i * at->text_layer,
                                 .block_stride = at->text_block,
                                 .rotate = true,
                                 .table = r->w->rope_cos,
                                 .table_sin = r->w->rope_sin,
                                 .q_scale = t->query_scale,
                                 .softcap = t->attn_softcap,
                                 .window = t->window && t->sliding[r->spec->dec_lo + i]};
}

/*
 * Gemma (arXiv 2403.08295): x += attn(N(x)); x += MLP(N(x)), N = RMSNorm, MLP = GeGLU.
 * Gemma 2 (arXiv 2408.00118) norms what is added as well: x += N(attn(N(x))); x += N(MLP(N(x))).
 */
static void whole_layer(struct recorder *r, struct esp_program *p, uint32_t i, uint32_t few)
{
    const struct esp_text_config *t = &r->c->text;
    const struct esp_layout *at = &r->ps->at;
    const struct esp_dec_layer *l = &r->w->dec[i];
    struct esp_attn_how attn = decoder_attn(r, i);

    attn.few = few > 0;
    attn.whole = p == &r->ps->decode[ESP_FEW_WHOLE];
    attn.parts_at = at->parts;
    begin(r, p);
    norm(r, at->th, at->tx, ESP_NORM_RMS, t->width, l->norm_attn, ESP_NONE, t->rms_eps);
    product(r, p, at->tqkv, at->th, &l->qkv, ESP_EPI_NONE, few);
    esp_op_rope_kv(&r->rec, at->tqkv, &attn);
    attention(r, p, at->tattn, at->tqkv, &attn, r->rows);
    if (t->post_norms) {
        product(r, p, at->th, at->tattn, &l->o, ESP_EPI_NONE, few);
        norm(r, at->tx, at->th, ESP_NORM_RMS_ADD, t->width, l->norm_post_attn, ESP_NONE, t->rms_eps);
    } else {
        product(r, p, at->tx, at->tattn, &l->o, ESP_EPI_ADD, few);
    }
    norm(r, at->th, at->tx, ESP_NORM_RMS, t->width, l->norm_mlp, ESP_NONE, t->rms_eps);
    product(r, p, at->tmlp, at->th, &l->gate_up, ESP_EPI_GEGLU, few);
    if (t->post_norms) {
        product(r, p, at->th, at->tmlp, &l->down, ESP_EPI_NONE, few);
        norm(r, at->tx, at->th, ESP_NORM_RMS_ADD, t->width, l->norm_post_mlp, ESP_NONE, t->rms_eps);
    } else {
        product(r, p, at->tx, at->tmlp, &l->down, ESP_EPI_ADD, few);
    }
    end(r, p, "prefill", (int)(r->spec->dec_lo + i), at->tx, t->width);
}

/* Whether a layer of few rows takes its norms apart; in the direct class integers go from product to product then. It follows
 * from the layer alone, so its bits do not depend on where layers are cut. */
static bool splits(const struct recorder *r, uint32_t i)
{
    const struct esp_vk *vk = r->space->vk;
    const struct esp_dec_layer *l = &r->w->dec[i];

    if (!r->ps->at.squares.stride || i >= r->spec->dec_hi - r->spec->dec_lo)
        return false;
    return vk->cls != ESP_VK_DIRECT || (esp_mat_fixed(vk, &l->qkv) && esp_mat_fixed(vk, &l->o) &&
                                        esp_mat_fixed(vk, &l->gate_up) && esp_mat_fixed(vk, &l->down));
}

/* The same of few rows with its norms taken apart: on GPUs seven dispatches instead of nine. x goes on to the layer behind with the
 * first half of that one's norm, within a stage; where a stage begins, or layers that do so, that is done anew, to the same bits. */
static void few_layer(struct recorder *r, struct esp_program *p, uint32_t i, uint32_t few)
{
    const struct esp_text_config *t = &r->c->text;
    const struct esp_layout *at = &r->ps->at;
    const struct esp_vk *vk = r->space->vk;
    const struct esp_dec_layer *l = &r->w->dec[i];
    const struct esp_dec_layer *next = splits(r, i + 1) ? l + 1 : NULL;
    const struct esp_split_norm second = {
        .how = ESP_SPLIT_END, .squares = at->squares, .width = t->width, .eps = t->rms_eps};
    struct esp_split_norm first = {.how = ESP_SPLIT_BEGIN,
                                   .z = at->th,
                                   .squares = at->squares,
                                   .weight = l->norm_attn,
                                   .width = t->width};
    struct esp_matmul_how add = {.epilogue = ESP_EPI_ADD, .few = few, .count = ESP_COUNT_ROWS};
    struct esp_matmul_how qkv = {
        .few = few, .count = ESP_COUNT_ROWS, .norm = second, .fixed = esp_mat_fixed(vk, &l->qkv)};
    struct esp_matmul_how up = {.epilogue = ESP_EPI_GEGLU,
                                .few = few,
                                .count = ESP_COUNT_ROWS,
                                .norm = second,
                                .fixed = esp_mat_fixed(vk, &l->gate_up),
                                .most = esp_mat_fixed(vk, &l->down)};
    struct esp_attn_how attn = decoder_attn(r, i);

    attn.few = true;
    attn.whole = p == &r->ps->decode[ESP_FEW_WHOLE];
    attn.parts_at = at->parts;
    begin(r, p);
    if (i == 0 || !splits(r, i - 1))
        esp_op_norm_begin(&r->rec, at->tx, &first, esp_mat_fixed(vk, &l->qkv));
    product_how(r, p, at->tqkv, at->th, &l->qkv, &qkv);
    esp_op_rope_kv(&r->rec, at->tqkv, &attn);
    attention(r, p, at->tattn, at->tqkv, &attn, r->rows);
    first.weight = l->norm_mlp;
    add.norm = first;
    add.most = esp_mat_fixed(vk, &l->gate_up);
    product_how(r, p, at->tx, at->tattn, &l->o, &add);
    product_how(r, p, at->tmlp, at->th, &l->gate_up, &up);
    first.weight = next ? next->norm_attn : 0;
    add.norm = next ? first : (struct esp_split_norm){0};
    add.fixed = esp_mat_fixed(vk, &l->down);
    add.most = next ? esp_mat_fixed(vk, &next->qkv) : 0;
    product_how(r, p, at->tx, at->tmlp, &l->down, &add);
    end(r, p, "prefill", (int)(r->spec->dec_lo + i), at->tx, t->width);
}

static void decoder_program(struct recorder *r, struct esp_program *p, uint32_t few)
{
    const struct esp_text_config *t = &r->c->text;
    const struct esp_layout *at = &r->ps->at;
    const uint32_t n_layer = r->spec->dec_hi - r->spec->dec_lo;

    r->rows = r->spec->max_rows;
    begin(r, p);
    if (n_layer)
        esp_op_kv_copy(&r->rec, at->text_block, at->text_layer, n_layer);
    if (r->spec->embed)
        esp_op_embed(&r->rec, at->tx, at->features, &r->w->embed, t->embed_scale);
    else
        esp_op_rows_in(&r->rec, at->tx, t->width);
    end(r, p, r->spec->embed ? "prefill.inputs_embeds" : "", -1, at->tx, t->width);
    for (uint32_t i = 0; i < n_layer; i++) {
        if (few && splits(r, i))
            few_layer(r, p, i, few);
        else
            whole_layer(r, p, i, few);
    }
    if (!r->spec->head) {
        begin(r, p);
        esp_op_rows_out(&r->rec, at->tx, t->width, 0, ESP_COUNT_ROWS);
        end(r, p, "", -1, at->tx, t->width);
    }
}

static void head_program(struct recorder *r, struct esp_program *p, uint32_t few)
{
    const struct esp_text_config *t = &r->c->text;
    const struct esp_layout *at = &r->ps->at;
    const bool cap = r->spec->final_softcap && t->final_softcap > 0;
    const struct esp_norm_how final = {.mode = ESP_NORM_RMS,
                                       .width = t->width,
                                       .weight = r->w->norm_final,
                                       .bias = ESP_NONE,
                                       .eps = t->rms_eps,
                                       .pick = true};
    const struct esp_matmul_how how = {.epilogue = cap ? ESP_EPI_SOFTCAP : ESP_EPI_NONE,
                                       .few = few,
                                       .count = ESP_COUNT_WANTS,
                                       .cap = t->final_softcap,
                                       .scale_at = at->scales};

    begin(r, p);
    esp_op_norm(&r->rec, at->pick, at->tx, &final);
    esp_op_matmul(&r->rec, at->logits, at->pick, &r->w->embed, &how);
    esp_op_topk(&r->rec, at->logits, at->slices, t->vocab);
    end(r, p, "", -1, at->logits, t->vocab);
}

static bool has_decoder(const struct esp_stage_spec *spec)
{
    return spec->dec_lo < spec->dec_hi || spec->embed || spec->head;
}

static void recorder_init(struct recorder *r, struct esp_programs *ps, struct esp_space *space,
                          const struct esp_weights *w, const struct esp_config *c,
                          const struct esp_stage_spec *spec, struct esp_err *err)
{
    *r = (struct recorder){.ps = ps, .space = space, .w = w, .c = c, .spec = spec};
    r->rec.space = space;
    r->rec.grids = &ps->grids;
    r->rec.err = err;
}

esp_status esp_programs_few(struct esp_programs *ps, enum esp_decode_few few, struct esp_space *space,
                            const struct esp_weights *w, const struct esp_config *c,
                            const struct esp_stage_spec *spec, struct esp_err *err)
{
    struct recorder r;

    recorder_init(&r, ps, space, w, c, spec, err);
    if (ps->decode[few].n == 0)
        decoder_program(&r, &ps->decode[few], few_rows[few]);
    if (spec->head && few != ESP_FEW_WHOLE && ps->head[few].n == 0)
        head_program(&r, &ps->head[few], few_rows[few]);
    return r.rec.st;
}

/* All but the decode programs and the head's. */
static void record(struct recorder *r)
{
    const struct esp_stage_spec *spec = r->spec;
    const struct esp_config *c = r->c;
    struct esp_programs *ps = r->ps;

    if (spec->enc_lo < spec->enc_hi || spec->patch || spec->projector)
        encode_program(r);
    if (has_decoder(spec))
        decoder_program(r, &ps->prefill, 0);
    for (uint32_t i = 0; i < spec->dec_hi - spec->dec_lo; i++) {
        const struct esp_attn_how attn = decoder_attn(r, i);
        begin(r, &ps->store_kv);
        esp_op_rope_kv(&r->rec, ps->at.tqkv, &attn);
        end(r, &ps->store_kv, "", -1, ps->at.tqkv, 0);
    }
    if (spec->head) {
        begin(r, &ps->full);
        esp_op_rows_out(&r->rec, ps->at.logits, c->text.vocab, ps->at.full_at, ESP_COUNT_WANTS);
        end(r, &ps->full, "", -1, ps->at.logits, c->text.vocab);
        begin(r, &ps->norm_all);
        norm(r, ps->at.th, ps->at.tx, ESP_NORM_RMS, c->text.width, r->w->norm_final, ESP_NONE,
             c->text.rms_eps);
        end(r, &ps->norm_all, "prefill.norm", -1, ps->at.th, c->text.width);
    }
}

esp_status esp_programs_record(struct esp_programs *ps, struct esp_space *space, const struct esp_weights *w,
                               const struct esp_config *c, const struct esp_stage_spec *spec,
                               struct esp_err *err)
{
    struct recorder r;

    recorder_init(&r, ps, space, w, c, spec, err);
    record(&r);
    if (!r.rec.st && has_decoder(spec))
        r.rec.st = esp_programs_few(ps, ESP_FEW_1, space, w, c, spec, err);
    return r.rec.st;
}

esp_status esp_programs_prepare(struct esp_programs *ps, struct esp_vk *vk, const struct esp_weights *w,
                                const struct esp_config *c, const struct esp_stage_spec *spec, bool few,
                                struct esp_err *err)
{
    const struct esp_buf none = {0};
    struct esp_space space = {.vk = vk, .n_chunk = w->n_chunk};
    struct recorder r;

    for (uint32_t i = 0; i < w->n_chunk; i++)
        space.chunk[i] = &none;
    recorder_init(&r, ps, &space, w, c, spec, err);
    r.rec.dry = true;
    record(&r);
    for (uint32_t i = 0; i < (few ? ESP_N_FEW : ESP_FEW_1 + 1); i++) {
        if (has_decoder(spec))
            decoder_program(&r, &ps->decode[i], few_rows[i]);
        if (spec->head)
            head_program(&r, &ps->head[i], few_rows[i]);
    }
    return r.rec.st;
}

static void program_finish(struct esp_program *p, struct esp_vk *vk)
{
    for (uint32_t i = 0; i < p->n; i++)
        esp_cmd_free(&p->seg[i].cmd, vk);
    free(p->seg);
    memset(p, 0, sizeof *p);
}

void esp_programs_finish(struct esp_programs *ps, struct esp_vk *vk)
{
    program_finish(&ps->encode, vk);
    program_finish(&ps->prefill, vk);
    program_finish(&ps->full, vk);
    program_finish(&ps->norm_all, vk);
    program_finish(&ps->store_kv, vk);
    for (uint32_t i = 0; i < ESP_N_FEW; i++) {
        program_finish(&ps->decode[i], vk);
        program_finish(&ps->head[i], vk);
    }
}
