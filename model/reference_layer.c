#include "model/reference_layer.h"

#include <stdlib.h>
#include <string.h>

#include "model/quant.h"
#include "model/roles.h"

#define SLICE_WEIGHTS (1u << 20) /* widened at a time */
#define MAX_BLOCKS    96         /* of one layer's work, which takes about 60 */

/* A layer under way. The first failure stays, and nothing is done after it. */
struct work {
    const struct esp_ref_source *src;
    const struct esp_config *c;
    struct esp_err *err;
    esp_status st;
    void *block[MAX_BLOCKS]; /* all that was taken, until the end */
    size_t n_block;
};

static void begin(struct work *w, const struct esp_ref_source *src, struct esp_err *err)
{
    *w = (struct work){.src = src, .c = esp_checkpoint_config(src->ck), .err = err};
}

static esp_status end(struct work *w)
{
    for (size_t i = 0; i < w->n_block; i++)
        free(w->block[i]);
    return w->st;
}

static void *take(struct work *w, size_t n, size_t each)
{
    void *p = NULL;
    size_t n_bytes;

    if (w->st)
        return NULL;
    if (w->n_block < MAX_BLOCKS && esp_mul(&n_bytes, n, each))
        p = malloc(n_bytes ? n_bytes : 1);
    if (!p) {
        w->st = esp_fail(w->err, ESP_E_NOMEM, "the reference in float64: %zu x %zu bytes", n, each);
        return NULL;
    }
    w->block[w->n_block++] = p;
    return p;
}

/* What was taken last, before the end; NULL is fine. */
static void give(struct work *w, void *p)
{
    if (p && w->n_block && w->block[w->n_block - 1] == p) {
        free(p);
        w->n_block--;
    }
}

/* Whether there is nothing to go on with. */
static bool over(struct work *w)
{
    if (!w->st && w->src->stop && w->src->stop(w->src->arg))
        w->st = esp_fail(w->err, ESP_E_CANCELLED, "stopped");
    return w->st != ESP_OK;
}

/* Elements [at, at + n) of a tensor as float32. */
static void widen(float *out, const struct esp_tensor *t, size_t at, size_t n)
{
    esp_dtype_to_f32(out, (const char *)t->data + at * esp_dtype_n_bytes(t->dtype), t->dtype, n);
}

/* Rows [row0, row0 + n) of a weight matrix of n_in columns, as the source's weights are: of a type that its device holds. */
static void rows_of(struct work *w, float *out, enum esp_role role, uint32_t layer, size_t row0, size_t n,
                    size_t n_in)
{
    const struct esp_tensor *t = esp_checkpoint_tensor(w->src->ck, role, layer);
    const enum esp_wtype type = esp_role_wtype(w->c, role, w->src->weights);
    void *blocks;

    esp_tensor_rows_f32(out, t, row0, n);
    if (type == esp_wtype_of(t->dtype))
        return;
    if (type == ESP_W_BF16)
        for (size_t i = 0; i < n * n_in; i++)
            out[i] = esp_bf16_to_f32(esp_f32_to_bf16(out[i]));
    else if (type == ESP_W_F16)
        for (size_t i = 0; i < n * n_in; i++)
            out[i] = esp_f16_to_f32(esp_f32_to_f16(out[i]));
    if (!esp_wtype_quantised(type))
        return;
    blocks = take(w, (n_in + ESP_QUANT_BLOCK - 1) / ESP_QUANT_BLOCK,
                  sizeof(struct esp_q8_block)); /* or smaller ones */
    for (size_t i = 0; blocks && i < n; i++) {
        /* a row that cannot be quantised was refused when the device loaded it */
        esp_quant_row(blocks, type, out + i * n_in, n_in);
        esp_quant_values(out + i * n_in, type, blocks, n_in);
    }
    give(w, blocks);
}

static float *vector(struct work *w, enum esp_role role, uint32_t layer, size_t n)
{
    float *v = take(w, n, sizeof *v);

    if (v)
        widen(v, esp_checkpoint_tensor(w->src->ck, role, layer), 0, n);
    return v;
}

static float *narrowed(struct work *w, const double *x, size_t n)
{
    float *y = take(w, n, sizeof *y);

    if (y)
        esp_ref_narrow(y, x, n);
    return y;
}

/* x[n, n_in] times the weight of a role, plus the bias of another (ESP_N_ROLE: none), some output columns at a time. */
static void linear_into(struct work *w, double *out, const float *x, size_t n, size_t n_out, size_t n_in,
                        enum esp_role weight, enum esp_role bias, uint32_t layer)
{
    const size_t most = SLICE_WEIGHTS / n_in ? SLICE_WEIGHTS / n_in : 1, cols = most < n_out ? most : n_out;
    const float *b = bias == ESP_N_ROLE ? NULL : vector(w, bias, layer, n_out);
    float *slice = take(w, cols * n_in, sizeof *slice);
    double *y = take(w, n * cols, sizeof *y);

    for (size_t at = 0; at < n_out && !over(w); at += cols) {
        const size_t m = n_out - at < cols ? n_out - at : cols;

        rows_of(w, slice, weight, layer, at, m, n_in);
        if (w->st)
            return;
        esp_ref_matmul(y, x, slice, b ? b + at : NULL, n, m, n_in);
        for (size_t i = 0; i < n; i++)
            memcpy(out + i * n_out + at, y + i * m, m * sizeof *y);
    }
}

static float *linear(struct work *w, const float *x, size_t n, size_t n_out, size_t n_in,
                     enum esp_role weight, enum esp_role bias, uint32_t layer)
{
    double *y = take(w, n * n_out, sizeof *y);

    if (!y)
        return NULL;
    linear_into(w, y, x, n, n_out, n_in, weight, bias, layer);
    return w->st ? NULL : narrowed(w, y, n * n_out);
}

static void layer_norm_into(struct work *w, double *out, const float *x, size_t n, enum esp_role weight,
                            enum esp_role bias, uint32_t layer)
{
    const struct esp_vision_config *v = &w->c->vision;
    const float *g = vector(w, weight, layer, v->width), *b = vector(w, bias, layer, v->width);

    if (!w->st)
        esp_ref_layernorm(out, x, g, b, n, v->width, v->ln_eps);
}

static void rms_norm_into(struct work *w, double *out, const float *x, size_t n, enum esp_role weight,
                          uint32_t layer)
{
    const struct esp_text_config *t = &w->c->text;
    const float *g = vector(w, weight, layer, t->width);

    if (!w->st)
        esp_ref_rmsnorm(out, x, g, n, t->width, t->rms_eps);
}

static float *rms_norm(struct work *w, const float *x, size_t n, enum esp_role weight, uint32_t layer)
{
    double *y = take(w, n * w->c->text.width, sizeof *y);

    if (!y)
        return NULL;
    rms_norm_into(w, y, x, n, weight, layer);
    return w->st ? NULL : narrowed(w, y, n * w->c->text.width);
}

static float *layer_norm(struct work *w, const float *x, size_t n, enum esp_role weight, enum esp_role bias,
                         uint32_t layer)
{
    double *y = take(w, n * w->c->vision.width, sizeof *y);

    if (!y)
        return NULL;
    layer_norm_into(w, y, x, n, weight, bias, layer);
    return w->st ? NULL : narrowed(w, y, n * w->c->vision.width);
}

/* The sum of two, rounded to float32 as a residual stream is kept. */
static float *added(struct work *w, const float *x, const float *y, size_t n)
{
    float *sum = take(w, n, sizeof *sum);

    for (size_t i = 0; sum && i < n; i++)
        sum[i] = (float)((double)x[i] + y[i]);
    return sum;
}

static float *attend(struct work *w, const float *q, const float *k, const float *v,
                     const struct esp_ref_span *span, size_t n, size_t n_head, size_t n_kv, size_t head_dim,
                     double scale, double softcap)
{
    double *y = take(w, n * n_head * head_dim, sizeof *y);

    if (over(w))
        return NULL;
    esp_ref_attention(y, q, k, v, span, n, n_head, n_kv, head_dim, scale, softcap);
    return narrowed(w, y, n * n_head * head_dim);
}

/* ---- SigLIP ---- */

esp_status esp_ref_vision_patches(double *out, const struct esp_ref_source *src, const float *pixels,
                                  size_t n, struct esp_err *err)
{
    struct work w;
    float *patches;
    size_t n_in;

    begin(&w, src, err);
    const struct esp_vision_config *v = &w.c->vision;
    n_in = (size_t)v->n_channel * v->patch_size * v->patch_size;
    patches = take(&w, n * n_in, sizeof *patches);
    if (patches) {
        esp_ref_patches(patches, pixels, n, v->n_channel, v->image_size, v->patch_size);
        linear_into(&w, out, patches, n, v->width, n_in, ESP_V_PATCH_W, ESP_V_PATCH_B, 0);
    }
    return end(&w);
}

esp_status esp_ref_vision_positions(double *out, const struct esp_ref_source *src, const float *x, size_t n,
                                    struct esp_err *err)
{
    struct work w;
    const float *pos;

    begin(&w, src, err);
    pos = vector(&w, ESP_V_POS, 0, n * w.c->vision.width);
    for (size_t i = 0; pos && i < n * w.c->vision.width; i++)
        out[i] = (double)x[i] + pos[i];
    return end(&w);
}

esp_status esp_ref_vision_layer(double *out, const struct esp_ref_source *src, uint32_t l, const float *x,
                                size_t n, const uint32_t *rows, size_t n_rows, struct esp_err *err)
{
    struct work w;
    float *h, *some_h, *some_x, *q, *k, *v, *o, *y;
    struct esp_ref_span *span;
    double *g;

    begin(&w, src, err);
    const struct esp_vision_config *c = &w.c->vision;
    const size_t d = c->width, f = c->mlp_dim;
    span = take(&w, n_rows, sizeof *span);
    some_x = take(&w, n_rows * d, sizeof *some_x);
    some_h = take(&w, n_rows * d, sizeof *some_h);
    g = take(&w, n_rows * f, sizeof *g);
    h = layer_norm(&w, x, n, ESP_V_LN1_W, ESP_V_LN1_B, l);
    for (size_t i = 0; !w.st && i < n_rows; i++) {
        span[i] = (struct esp_ref_span){0, (uint32_t)n};
        memcpy(some_x + i * d, x + rows[i] * d, d * sizeof *x);
        memcpy(some_h + i * d, h + rows[i] * d, d * sizeof *h);
    }
    q = linear(&w, some_h, n_rows, d, d, ESP_V_Q_W, ESP_V_Q_B, l);
    k = linear(&w, h, n, d, d, ESP_V_K_W, ESP_V_K_B, l);
    v = linear(&w, h, n, d, d, ESP_V_V_W, ESP_V_V_B, l);
    o = attend(&w, q, k, v, span, n_rows, c->n_head, c->n_head, c->head_dim,
               1.0 / __builtin_sqrt(c->head_dim), 0);
    y = linear(&w, o, n_rows, d, d, ESP_V_O_W, ESP_V_O_B, l);
    y = added(&w, some_x, y, n_rows * d);
    h = layer_norm(&w, y, n_rows, ESP_V_LN2_W, ESP_V_LN2_B, l);
    o = linear(&w, h, n_rows, f, d, ESP_V_FC1_W, ESP_V_FC1_B, l);
    if (!w.st) {
        esp_ref_gelu_tanh(g, o, n_rows * f);
        h = narrowed(&w, g, n_rows * f);
    }
    if (!w.st)
        linear_into(&w, out, h, n_rows, d, f, ESP_V_FC2_W, ESP_V_FC2_B, l);
    for (size_t i = 0; !w.st && i < n_rows * d; i++)
        out[i] += y[i];
    return end(&w);
}

esp_status esp_ref_vision_post(double *out, const struct esp_ref_source *src, const float *x, size_t n,
                               struct esp_err *err)
{
    struct work w;

    begin(&w, src, err);
    layer_norm_into(&w, out, x, n, ESP_V_POST_W, ESP_V_POST_B, 0);
    return end(&w);
}

esp_status esp_ref_projector(double *out, const struct esp_ref_source *src, const float *x, size_t n,
                             struct esp_err *err)
{
    struct work w;

    begin(&w, src, err);
    linear_into(&w, out, x, n, w.c->text.width, w.c->vision.width, ESP_P_W, ESP_P_B, 0);
    return end(&w);
}

/* ---- Gemma ---- */

esp_status esp_ref_text_embed(double *out, const struct esp_ref_source *src, const int32_t *ids, size_t n,
                              struct esp_err *err)
{
    struct work w;
    uint32_t *in_order;
    float *table; /* those rows alone */

    begin(&w, src, err);
    const struct esp_text_config *t = &w.c->text;
    table = take(&w, n * t->width, sizeof *table);
    in_order = take(&w, n, sizeof *in_order);
    for (size_t i = 0; !w.st && i < n; i++) {
        rows_of(&w, table + i * t->width, ESP_T_EMBED, 0, (size_t)ids[i], 1, t->width);
        in_order[i] = (uint32_t)i;
    }
    if (!w.st)
        esp_ref_embed(out, table, in_order, n, t->width, t->embed_scale);
    return end(&w);
}

static float *rotated(struct work *w, const float *x, const uint32_t *pos, size_t n, size_t n_head)
{
    const struct esp_text_config *t = &w->c->text;
    double *y = take(w, n * n_head * t->head_dim, sizeof *y);

    if (!y)
        return NULL;
    esp_ref_rope(y, x, pos, n, n_head, t->head_dim, t->rope_theta);
    return narrowed(w, y, n * n_head * t->head_dim);
}

/* Gemma 2 norms what is added as well. */
static float *post_normed(struct work *w, const float *y, size_t n, enum esp_role weight, uint32_t l)
{
    return w->c->text.post_norms && !w->st ? rms_norm(w, y, n, weight, l) : (float *)(uintptr_t)y;
}

/* x + attn(N(x)), f32[n, D]. */
static float *text_attention(struct work *w, uint32_t l, const float *x, size_t n, uint32_t n_prefix)
{
    const struct esp_text_config *t = &w->c->text;
    const size_t d = t->width, nh = (size_t)t->n_head * t->head_dim, kh = (size_t)t->n_kv_head * t->head_dim;
    struct esp_ref_span *span = take(w, n, sizeof *span);
    uint32_t *pos = take(w, n, sizeof *pos);
    float *h = rms_norm(w, x, n, ESP_T_NORM_ATTN, l);
    float *q = linear(w, h, n, nh, d, ESP_T_Q_W, ESP_N_ROLE, l);
    float *k = linear(w, h, n, kh, d, ESP_T_K_W, ESP_N_ROLE, l);
    float *v = linear(w, h, n, kh, d, ESP_T_V_W, ESP_N_ROLE, l);
    float *o, *y;

    if (w->st)
        return NULL;
    for (size_t i = 0; i < n; i++)
        pos[i] = (uint32_t)i;
    esp_ref_prefix_lm(span, n, 0, n_prefix, t->sliding[l] ? t->window : 0);
    q = rotated(w, q, pos, n, t->n_head);
    k = rotated(w, k, pos, n, t->n_kv_head);
    o = attend(w, q, k, v, span, n, t->n_head, t->n_kv_head, t->head_dim, t->query_scale, t->attn_softcap);
    y = linear(w, o, n, d, nh, ESP_T_O_W, ESP_N_ROLE, l);
    y = post_normed(w, y, n, ESP_T_NORM_POST_ATTN, l);
    return added(w, x, y, n * d);
}

esp_status esp_ref_text_layer(double *out, const struct esp_ref_source *src, uint32_t l, const float *x,
                              size_t n, uint32_t n_prefix, struct esp_err *err)
{
    struct work w;
    float *y, *h, *gate, *up;
    double *g;

    begin(&w, src, err);
    const struct esp_text_config *t = &w.c->text;
    const size_t d = t->width, f = t->mlp_dim;
    g = take(&w, n * f, sizeof *g);
    y = text_attention(&w, l, x, n, n_prefix);
    h = w.st ? NULL : rms_norm(&w, y, n, ESP_T_NORM_MLP, l);
    gate = linear(&w, h, n, f, d, ESP_T_GATE_W, ESP_N_ROLE, l);
    up = linear(&w, h, n, f, d, ESP_T_UP_W, ESP_N_ROLE, l);
    if (!w.st) {
        esp_ref_geglu(g, gate, up, n * f);
        h = narrowed(&w, g, n * f);
    }
    if (!w.st)
        linear_into(&w, out, h, n, d, f, ESP_T_DOWN_W, ESP_N_ROLE, l);
    if (!w.st && t->post_norms) {
        h = narrowed(&w, out, n * d);
        if (h)
            rms_norm_into(&w, out, h, n, ESP_T_NORM_POST_MLP, l);
    }
    for (size_t i = 0; !w.st && i < n * d; i++)
        out[i] += y[i];
    return end(&w);
}

esp_status esp_ref_text_norm(double *out, const struct esp_ref_source *src, const float *x, size_t n,
                             struct esp_err *err)
{
    struct work w;

    begin(&w, src, err);
    rms_norm_into(&w, out, x, n, ESP_T_NORM_FINAL, 0);
    return end(&w);
}

esp_status esp_ref_text_logits(double *out, const struct esp_ref_source *src, const float *x, size_t n,
                               struct esp_err *err)
{
    struct work w;

    begin(&w, src, err);
    linear_into(&w, out, x, n, w.c->text.vocab, w.c->text.width, ESP_T_EMBED, ESP_N_ROLE, 0);
    return end(&w);
}
