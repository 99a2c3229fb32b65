#include "model/roles.h"

#include <assert.h>
#include <stdio.h>

enum part { VISION, PROJECTOR, TEXT, N_PART };

static const struct {
    const char *name;
    const char *prefix[N_PART];
} layouts[ESP_N_LAYOUT] = {
    [ESP_LAYOUT_PUBLISHED] = {"published",
                              {"vision_tower.vision_model.", "multi_modal_projector.",
                               "language_model.model."}},
    [ESP_LAYOUT_V4_52] = {"v4.52",
                          {"model.vision_tower.vision_model.", "model.multi_modal_projector.",
                           "model.language_model."}},
    [ESP_LAYOUT_V5_MEMORY] = {"v5-memory",
                              {"model.vision_tower.", "model.multi_modal_projector.",
                               "model.language_model."}},
    [ESP_LAYOUT_V5_SAVED] = {"v5-saved",
                             {"vision_tower.", "multi_modal_projector.", "language_model.model."}},
};

/* One dimension, by what the config calls it. */
enum dim { NONE, V_D, V_F, V_C, V_P, V_N, T_D, T_F, T_QH, T_KH, T_V };

enum when { ONCE, LAYER, LAYER_POST /* per layer of a model with post norms */ };

static const struct role {
    enum part part;
    enum when when;
    const char *name; /* behind the prefix, and the layer where there is one */
    enum dim shape[4];
} roles[ESP_N_ROLE] = {
    [ESP_V_PATCH_W] = {VISION, ONCE, "embeddings.patch_embedding.weight", {V_D, V_C, V_P, V_P}},
    [ESP_V_PATCH_B] = {VISION, ONCE, "embeddings.patch_embedding.bias", {V_D}},
    [ESP_V_POS] = {VISION, ONCE, "embeddings.position_embedding.weight", {V_N, V_D}},
    [ESP_V_LN1_W] = {VISION, LAYER, "layer_norm1.weight", {V_D}},
    [ESP_V_LN1_B] = {VISION, LAYER, "layer_norm1.bias", {V_D}},
    [ESP_V_Q_W] = {VISION, LAYER, "self_attn.q_proj.weight", {V_D, V_D}},
    [ESP_V_Q_B] = {VISION, LAYER, "self_attn.q_proj.bias", {V_D}},
    [ESP_V_K_W] = {VISION, LAYER, "self_attn.k_proj.weight", {V_D, V_D}},
    [ESP_V_K_B] = {VISION, LAYER, "self_attn.k_proj.bias", {V_D}},
    [ESP_V_V_W] = {VISION, LAYER, "self_attn.v_proj.weight", {V_D, V_D}},
    [ESP_V_V_B] = {VISION, LAYER, "self_attn.v_proj.bias", {V_D}},
    [ESP_V_O_W] = {VISION, LAYER, "self_attn.out_proj.weight", {V_D, V_D}},
    [ESP_V_O_B] = {VISION, LAYER, "self_attn.out_proj.bias", {V_D}},
    [ESP_V_LN2_W] = {VISION, LAYER, "layer_norm2.weight", {V_D}},
    [ESP_V_LN2_B] = {VISION, LAYER, "layer_norm2.bias", {V_D}},
    [ESP_V_FC1_W] = {VISION, LAYER, "mlp.fc1.weight", {V_F, V_D}},
    [ESP_V_FC1_B] = {VISION, LAYER, "mlp.fc1.bias", {V_F}},
    [ESP_V_FC2_W] = {VISION, LAYER, "mlp.fc2.weight", {V_D, V_F}},
    [ESP_V_FC2_B] = {VISION, LAYER, "mlp.fc2.bias", {V_D}},
    [ESP_V_POST_W] = {VISION, ONCE, "post_layernorm.weight", {V_D}},
    [ESP_V_POST_B] = {VISION, ONCE, "post_layernorm.bias", {V_D}},
    [ESP_P_W] = {PROJECTOR, ONCE, "linear.weight", {T_D, V_D}},
    [ESP_P_B] = {PROJECTOR, ONCE, "linear.bias", {T_D}},
    [ESP_T_EMBED] = {TEXT, ONCE, "embed_tokens.weight", {T_V, T_D}},
    [ESP_T_NORM_ATTN] = {TEXT, LAYER, "input_layernorm.weight", {T_D}},
    [ESP_T_Q_W] = {TEXT, LAYER, "self_attn.q_proj.weight", {T_QH, T_D}},
    [ESP_T_K_W] = {TEXT, LAYER, "self_attn.k_proj.weight", {T_KH, T_D}},
    [ESP_T_V_W] = {TEXT, LAYER, "self_attn.v_proj.weight", {T_KH, T_D}},
    [ESP_T_O_W] = {TEXT, LAYER, "self_attn.o_proj.weight", {T_D, T_QH}},
    [ESP_T_NORM_POST_ATTN] = {TEXT, LAYER_POST, "post_attention_layernorm.weight", {T_D}},
    [ESP_T_NORM_MLP] = {TEXT, LAYER, NULL, {T_D}}, /* the one name that depends on the family */
    [ESP_T_GATE_W] = {TEXT, LAYER, "mlp.gate_proj.weight", {T_F, T_D}},
    [ESP_T_UP_W] = {TEXT, LAYER, "mlp.up_proj.weight", {T_F, T_D}},
    [ESP_T_DOWN_W] = {TEXT, LAYER, "mlp.down_proj.weight", {T_D, T_F}},
    [ESP_T_NORM_POST_MLP] = {TEXT, LAYER_POST, "post_feedforward_layernorm.weight", {T_D}},
    [ESP_T_NORM_FINAL] = {TEXT, ONCE, "norm.weight", {T_D}},
};

const char *esp_layout_name(enum esp_layout layout)
{
    return layouts[layout].name;
}

uint32_t esp_role_count(const struct esp_config *config, enum esp_role role)
{
    const struct role *r = &roles[role];

    if (r->when == ONCE)
        return 1;
    if (r->when == LAYER_POST && !config->text.post_norms)
        return 0;
    return r->part == VISION ? config->vision.n_layer : config->text.n_layer;
}

bool esp_role_has_layers(enum esp_role role)
{
    return roles[role].when != ONCE;
}

enum esp_wtype esp_role_wtype(const struct esp_config *c, enum esp_role role, enum esp_wtype want)
{
    const enum esp_wtype careful = want == ESP_W_Q4 ? ESP_W_Q8 : want;

    switch (role) {
    case ESP_V_PATCH_W:
    case ESP_V_Q_W:
    case ESP_V_K_W:
    case ESP_V_V_W:
    case ESP_V_FC1_W:
    case ESP_V_FC2_W:
    case ESP_P_W:
    case ESP_T_EMBED: /* the output head, too */
    case ESP_T_Q_W:
    case ESP_T_K_W:
    case ESP_T_V_W:
        return careful;
    case ESP_T_GATE_W:
    case ESP_T_UP_W:
    case ESP_T_DOWN_W:
        return want;
    case ESP_V_O_W:
        return esp_wtype_quantised(want) && c->vision.head_dim % 8 ? ESP_W_STORED : careful;
    case ESP_T_O_W:
        return esp_wtype_quantised(want) && c->text.head_dim % 8 ? ESP_W_STORED : want;
    default:
        return ESP_W_STORED;
    }
}

static uint64_t dim_value(const struct esp_config *c, enum dim dim)
{
    switch (dim) {
    case V_D:
        return c->vision.width;
    case V_F:
        return c->vision.mlp_dim;
    case V_C:
        return c->vision.n_channel;
    case V_P:
        return c->vision.patch_size;
    case V_N:
        return c->vision.n_token;
    case T_D:
        return c->text.width;
    case T_F:
        return c->text.mlp_dim;
    case T_QH:
        return (uint64_t)c->text.n_head * c->text.head_dim;
    case T_KH:
        return (uint64_t)c->text.n_kv_head * c->text.head_dim;
    case T_V:
        return c->text.vocab;
    case NONE:
        break;
    }
    return 0;
}

uint32_t esp_role_shape(uint64_t shape[4], const struct esp_config *config, enum esp_role role)
{
    uint32_t n = 0;

    for (; n < 4 && roles[role].shape[n] != NONE; n++)
        shape[n] = dim_value(config, roles[role].shape[n]);
    return n;
}

const char *esp_role_name(char buf[ESP_TENSOR_NAME_MAX], enum esp_layout layout,
                          const struct esp_config *config, enum esp_role role, uint32_t layer)
{
    const struct role *r = &roles[role];
    const char *prefix = layouts[layout].prefix[r->part];
    const char *name = r->name;
    int n;

    if (!name) /* Gemma norms before the MLP what Gemma 2 norms after attention: the same name, another tensor
                */
        name =
            config->text.post_norms ? "pre_feedforward_layernorm.weight" : "post_attention_layernorm.weight";
    if (r->when == ONCE)
        n = snprintf(buf, ESP_TENSOR_NAME_MAX, "%s%s", prefix, name);
    else
        n = snprintf(buf, ESP_TENSOR_NAME_MAX, "%s%slayers.%u.%s", prefix,
                     r->part == VISION ? "encoder." : "", layer, name);
    assert(n > 0 && n < ESP_TENSOR_NAME_MAX);
    (void)n;
    return buf;
}
