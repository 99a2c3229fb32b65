#include "tests/support/ref_model.h"

#include <stdlib.h>
#include <string.h>

#include "tests/support/ref.h"

static void *must_alloc(size_t n, size_t each)
{
    void *p = calloc(n ? n : 1, each);
    if (!p)
        abort();
    return p;
}

static float *values_of(const struct esp_checkpoint *ck, enum esp_role role, uint32_t layer)
{
    const struct esp_tensor *t = esp_checkpoint_tensor(ck, role, layer);
    size_t n = 1;
    float *v;

    for (uint32_t d = 0; d < t->n_dim; d++)
        n *= t->shape[d];
    v = must_alloc(n, sizeof *v);
    esp_dtype_to_f32(v, t->data, t->dtype, n);
    return v;
}

/* A result in float64 as the next operation's input; frees it. */
static float *narrowed(double *x, size_t n)
{
    float *y = must_alloc(n, sizeof *y);
    esp_ref_narrow(y, x, n);
    free(x);
    return y;
}

/* x[n_tok, n_in] times the weight of a role, plus the bias of another (ESP_N_ROLE: none). */
static float *linear(const struct esp_checkpoint *ck, const float *x, size_t n_tok, size_t n_out, size_t n_in,
                     enum esp_role weight, enum esp_role bias, uint32_t layer)
{
    double *y = must_alloc(n_tok * n_out, sizeof *y);
    float *w = values_of(ck, weight, layer);
    float *b = bias == ESP_N_ROLE ? NULL : values_of(ck, bias, layer);

    esp_ref_matmul(y, x, w, b, n_tok, n_out, n_in);
    free(w);
    free(b);
    return narrowed(y, n_tok * n_out);
}

static float *layer_norm(const struct esp_checkpoint *ck, const float *x, size_t n_tok, size_t width,
                         enum esp_role weight, enum esp_role bias, uint32_t layer, double eps)
{
    double *y = must_alloc(n_tok * width, sizeof *y);
    float *w = values_of(ck, weight, layer), *b = values_of(ck, bias, layer);

    esp_ref_layernorm(y, x, w, b, n_tok, width, eps);
    free(w);
    free(b);
    return narrowed(y, n_tok * width);
}

static float *rms_norm(const struct esp_checkpoint *ck, const float *x, size_t n_tok, enum esp_role weight,
                       uint32_t layer)
{
    const struct esp_text_config *t = &esp_checkpoint_config(ck)->text;
    double *y = must_alloc(n_tok * t->width, sizeof *y);
    float *w = values_of(ck, weight, layer);

    esp_ref_rmsnorm(y, x, w, n_tok, t->width, t->rms_eps);
    free(w);
    return narrowed(y, n_tok * t->width);
}

static void add(float *x, float *y, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = (float)((double)x[i] + y[i]);
    free(y);
}

static float *attend(float *q, float *k, float *v, const struct esp_ref_span *span, size_t n_tok,
                     size_t n_head, size_t n_kv, size_t head_dim, double scale, double softcap)
{
    double *y = must_alloc(n_tok * n_head * head_dim, sizeof *y);

    esp_ref_attention(y, q, k, v, span, n_tok, n_head, n_kv, head_dim, scale, softcap);
    free(q);
    free(k);
    free(v);
    return narrowed(y, n_tok * n_head * head_dim);
}

static void vision_layer(const struct esp_checkpoint *ck, float *x, const struct esp_ref_span *span,
                         uint32_t l)
{
    const struct esp_vision_config *v = &esp_checkpoint_config(ck)->vision;
    const size_t n = v->n_token, d = v->width, f = v->mlp_dim;
    float *h = layer_norm(ck, x, n, d, ESP_V_LN1_W, ESP_V_LN1_B, l, v->ln_eps);
    float *q = linear(ck, h, n, d, d, ESP_V_Q_W, ESP_V_Q_B, l);
    float *k = linear(ck, h, n, d, d, ESP_V_K_W, ESP_V_K_B, l);
    float *val = linear(ck, h, n, d, d, ESP_V_V_W, ESP_V_V_B, l);
    float *o =
        attend(q, k, val, span, n, v->n_head, v->n_head, v->head_dim, 1.0 / __builtin_sqrt(v->head_dim), 0);
    double *g = must_alloc(n * f, sizeof *g);

    free(h);
    add(x, linear(ck, o, n, d, d, ESP_V_O_W, ESP_V_O_B, l), n * d);
    free(o);
    h = layer_norm(ck, x, n, d, ESP_V_LN2_W, ESP_V_LN2_B, l, v->ln_eps);
    o = linear(ck, h, n, f, d, ESP_V_FC1_W, ESP_V_FC1_B, l);
    free(h);
    esp_ref_gelu_tanh(g, o, n * f);
    free(o);
    h = narrowed(g, n * f);
    add(x, linear(ck, h, n, d, f, ESP_V_FC2_W, ESP_V_FC2_B, l), n * d);
    free(h);
}

void esp_ref_features(float *out, const struct esp_checkpoint *ck, const float *pixels)
{
    const struct esp_config *c = esp_checkpoint_config(ck);
    const struct esp_vision_config *v = &c->vision;
    const size_t n = v->n_token;
    struct esp_ref_span *span = must_alloc(n, sizeof *span);
    double *e = must_alloc(n * v->width, sizeof *e);
    float *w = values_of(ck, ESP_V_PATCH_W, 0), *b = values_of(ck, ESP_V_PATCH_B, 0);
    float *pos = values_of(ck, ESP_V_POS, 0);
    float *x, *h, *y;

    for (size_t i = 0; i < n; i++)
        span[i] = (struct esp_ref_span){0, (uint32_t)n};
    esp_ref_patch_embed(e, pixels, w, b, pos, v->n_channel, v->image_size, v->patch_size, v->width);
    x = narrowed(e, n * v->width);
    for (uint32_t l = 0; l < v->n_layer; l++)
        vision_layer(ck, x, span, l);
    h = layer_norm(ck, x, n, v->width, ESP_V_POST_W, ESP_V_POST_B, 0, v->ln_eps);
    y = linear(ck, h, n, c->text.width, v->width, ESP_P_W, ESP_P_B, 0);
    memcpy(out, y, n * c->text.width * sizeof *out);
    free(span);
    free(w);
    free(b);
    free(pos);
    free(x);
    free(h);
    free(y);
}

static float *rotated(float *x, const uint32_t *pos, size_t n, size_t n_head, const struct esp_text_config *t)
{
    double *y = must_alloc(n * n_head * t->head_dim, sizeof *y);

    esp_ref_rope(y, x, pos, n, n_head, t->head_dim, t->rope_theta);
    free(x);
    return narrowed(y, n * n_head * t->head_dim);
}

static void text_layer(const struct esp_checkpoint *ck, float *x, const uint32_t *pos,
                       const struct esp_ref_span *span, size_t n, uint32_t l)
{
    const struct esp_text_config *t = &esp_checkpoint_config(ck)->text;
    const size_t d = t->width, f = t->mlp_dim, nh = t->n_head * t->head_dim, kh = t->n_kv_head * t->head_dim;
    float *h = rms_norm(ck, x, n, ESP_T_NORM_ATTN, l);
    float *q = rotated(linear(ck, h, n, nh, d, ESP_T_Q_W, ESP_N_ROLE, l), pos, n, t->n_head, t);
    float *k = rotated(linear(ck, h, n, kh, d, ESP_T_K_W, ESP_N_ROLE, l), pos, n, t->n_kv_head, t);
    float *v = linear(ck, h, n, kh, d, ESP_T_V_W, ESP_N_ROLE, l);
    float *o =
        attend(q, k, v, span, n, t->n_head, t->n_kv_head, t->head_dim, t->query_scale, t->attn_softcap);
    float *y = linear(ck, o, n, d, nh, ESP_T_O_W, ESP_N_ROLE, l);
    float *gate, *up;
    double *g = must_alloc(n * f, sizeof *g);

    free(o);
    free(h);
    if (t->post_norms) {
        h = y;
        y = rms_norm(ck, h, n, ESP_T_NORM_POST_ATTN, l);
        free(h);
    }
    add(x, y, n * d);
    h = rms_norm(ck, x, n, ESP_T_NORM_MLP, l);
    gate = linear(ck, h, n, f, d, ESP_T_GATE_W, ESP_N_ROLE, l);
    up = linear(ck, h, n, f, d, ESP_T_UP_W, ESP_N_ROLE, l);
    esp_ref_geglu(g, gate, up, n * f);
    free(gate);
    free(up);
    free(h);
    h = narrowed(g, n * f);
    y = linear(ck, h, n, d, f, ESP_T_DOWN_W, ESP_N_ROLE, l);
    free(h);
    if (t->post_norms) {
        h = y;
        y = rms_norm(ck, h, n, ESP_T_NORM_POST_MLP, l);
        free(h);
    }
    add(x, y, n * d);
}

void esp_ref_logits(float *out, const struct esp_checkpoint *ck, const float *features, uint32_t n_images,
                    const int32_t *ids, uint32_t n, uint32_t n_prefix)
{
    const struct esp_config *c = esp_checkpoint_config(ck);
    const struct esp_text_config *t = &c->text;
    const size_t n_feature = (size_t)n_images * c->vision.n_token;
    struct esp_ref_span *all = must_alloc(n, sizeof *all), *near = must_alloc(n, sizeof *near);
    uint32_t *pos = must_alloc(n, sizeof *pos), *id = must_alloc(n, sizeof *id);
    double *e = must_alloc(n * t->width, sizeof *e);
    float *table = values_of(ck, ESP_T_EMBED, 0);
    float *x, *h, *y;

    for (uint32_t i = 0; i < n; i++) {
        pos[i] = i;
        id[i] = i < n_feature ? 0 : (uint32_t)ids[i];
    }
    esp_ref_prefix_lm(all, n, 0, n_prefix, 0);
    esp_ref_prefix_lm(near, n, 0, n_prefix, t->window);
    esp_ref_embed(e, table, id, n, t->width, t->embed_scale);
    x = narrowed(e, n * t->width);
    memcpy(x, features, n_feature * t->width * sizeof *x);
    for (uint32_t l = 0; l < t->n_layer; l++)
        text_layer(ck, x, pos, t->window && t->sliding[l] ? near : all, n, l);
    h = rms_norm(ck, x, n, ESP_T_NORM_FINAL, 0);
    y = linear(ck, h, n, t->vocab, t->width, ESP_T_EMBED, ESP_N_ROLE, 0);
    memcpy(out, y, (size_t)n * t->vocab * sizeof *out);
    free(all);
    free(near);
    free(pos);
    free(id);
    free(table);
    free(x);
    free(h);
    free(y);
}
