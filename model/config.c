/*
 * config.json as two generations of tools write it.
 *
 * The published files (transformers 4.41 and later) leave out what is a default; newer ones (transformers 5)
 * write everything and have renamed some fields: torch_dtype is dtype, image_token_index is image_token_id,
 * rope_theta lies in rope_parameters, and layer_types lists which layers slide. Both are read by the same
 * lines below. Where a family has its own default (Gemma, Gemma 2) the default stands in a table of families.
 *
 * Not read, since they say nothing that the tensors or the fields above do not say better: the hidden_size
 * and vocab_size at the top (the latter counts the tokenizer alone), num_image_tokens and num_positions (the
 * reference recomputes them), projector_hidden_act (there is no activation), dtype (each tensor has its own).
 */
#include "model/config.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/file.h"
#include "model/json.h"

/* Far above every published model, far below what would overflow a product of two in 64 bits. */
#define MAX_WIDTH      65536u
#define MAX_HEADS      1024u
#define MAX_HEAD_DIM   1024u
#define MAX_MLP        (1u << 20)
#define MAX_VOCAB      (1u << 24)
#define MAX_POSITION   (1u << 24)
#define MAX_IMAGE_SIZE 16384u
#define MAX_PATCH_SIZE 1024u
#define MAX_TOKENS     65536u /* of one picture; the published maximum is 4096 */
#define MAX_FILE_BYTES (1u << 20)

/* Defaults of the transformers classes GemmaConfig and Gemma2Config. */
struct family {
    const char *model_type;
    uint32_t width, mlp_dim, n_layer, n_head, n_kv_head;
    bool gemma2; /* has post norms, soft-caps, windows and query_pre_attn_scalar */
};

static const struct family families[] = {
    {"gemma", 3072, 24576, 28, 16, 16, false},
    {"gemma2", 2304, 9216, 26, 8, 4, true},
};

static struct esp_json_reader section(const struct esp_json_reader *top, const char *key, const char *prefix)
{
    struct esp_json_reader r = {NULL, top->file, prefix, top->st, top->err};
    char found[ESP_SHOWN];
    const json_t *value = esp_json_field(top, key);

    if (!value) {
        r.section = "";
        esp_json_fail(&r, ESP_E_FORMAT, key, "missing, expected an object");
    } else if (!json_is_object(value)) {
        r.section = "";
        esp_json_fail(&r, ESP_E_FORMAT, key, "found %s, expected an object", esp_json_describe(found, value));
    } else {
        r.object = value;
    }
    return r;
}

/* A field that says how to compute: only the given spellings are known. */
static void require_one_of(struct esp_json_reader *r, const char *key, const char *const *known)
{
    const char *value = esp_json_string(r, key, NULL);
    char shown[ESP_SHOWN];

    if (!value)
        return;
    for (const char *const *k = known; *k; k++) {
        if (strcmp(*k, value) == 0)
            return;
    }
    esp_json_fail(r, ESP_E_UNSUPPORTED, key, "\"%s\" is not supported, expected \"%s\"",
                  esp_shown(shown, value), known[0]);
}

static void require_bool(struct esp_json_reader *r, const char *key, bool want)
{
    if (esp_json_bool(r, key, want) != want)
        esp_json_fail(r, ESP_E_UNSUPPORTED, key, "%s is not supported", want ? "false" : "true");
}

/* Three names of one function, 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))). */
static const char *const tanh_gelu[] = {"gelu_pytorch_tanh", "gelu_new", "gelu_fast", NULL};
/* Early Gemma files say hidden_act "gelu" and mean the tanh form all the same; the reference reads them so.
 */
static const char *const tanh_gelu_legacy[] = {"gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu", NULL};

static esp_status parse_vision(struct esp_vision_config *v, const struct esp_json_reader *top)
{
    static const char *const types[] = {"siglip_vision_model", NULL};
    struct esp_json_reader r = section(top, "vision_config", "vision_config.");
    uint32_t side;

    if (r.st)
        return r.st;
    require_one_of(&r, "model_type", types);
    require_one_of(&r, "hidden_act", tanh_gelu);
    /* defaults of the transformers class SiglipVisionConfig */
    v->width = esp_json_u32(&r, "hidden_size", 768, 1, MAX_WIDTH);
    v->mlp_dim = esp_json_u32(&r, "intermediate_size", 3072, 1, MAX_MLP);
    v->n_layer = esp_json_u32(&r, "num_hidden_layers", 12, 1, ESP_MAX_LAYERS);
    v->n_head = esp_json_u32(&r, "num_attention_heads", 12, 1, MAX_HEADS);
    v->n_channel = esp_json_u32(&r, "num_channels", 3, 3, 3);
    v->image_size = esp_json_u32(&r, "image_size", 224, 1, MAX_IMAGE_SIZE);
    v->patch_size = esp_json_u32(&r, "patch_size", 16, 1, MAX_PATCH_SIZE);
    v->ln_eps = (float)esp_json_real(&r, "layer_norm_eps", 1e-6, 1e-12, 1.0);
    if (r.st)
        return r.st;

    if (v->width % v->n_head != 0)
        esp_json_fail(&r, ESP_E_FORMAT, "hidden_size", "%u is not a multiple of the %u num_attention_heads",
                      v->width, v->n_head);
    v->head_dim = v->width / v->n_head;
    if (v->head_dim > MAX_HEAD_DIM)
        esp_json_fail(&r, ESP_E_FORMAT, "hidden_size", "%u over %u heads is %u each, expected at most %u",
                      v->width, v->n_head, v->head_dim, MAX_HEAD_DIM);
    if (v->patch_size > v->image_size)
        esp_json_fail(&r, ESP_E_FORMAT, "patch_size", "%u is larger than image_size %u", v->patch_size,
                      v->image_size);
    side = v->image_size / v->patch_size;
    if (side > 256)
        esp_json_fail(&r, ESP_E_FORMAT, "image_size",
                      "%u over %u are %u patches a side, expected at most 256", v->image_size, v->patch_size,
                      side);
    v->n_token = side * side;
    return r.st;
}

/* RoPE's base: rope_parameters.rope_theta (transformers 5) or rope_theta; scaled variants are not Gemma's. */
static float parse_rope(struct esp_json_reader *r)
{
    static const char *const known[] = {"default", NULL};
    static const char *const keys[] = {"rope_scaling", "rope_parameters"};
    double theta = esp_json_real(r, "rope_theta", 10000.0, 1.0, 1e9);
    char found[ESP_SHOWN];

    for (size_t i = 0; i < 2; i++) {
        const json_t *value = esp_json_field(r, keys[i]);
        struct esp_json_reader sub = {
            value, r->file, i ? "text_config.rope_parameters." : "text_config.rope_scaling.", r->st, r->err};
        if (!value)
            continue;
        if (!json_is_object(value)) {
            esp_json_fail(r, ESP_E_FORMAT, keys[i], "found %s, expected an object",
                          esp_json_describe(found, value));
            continue;
        }
        require_one_of(&sub, "rope_type", known);
        require_one_of(&sub, "type", known);
        theta = esp_json_real(&sub, "rope_theta", theta, 1.0, 1e9);
        r->st = sub.st;
    }
    return (float)theta;
}

/* Which layers slide: layer_types where given, else every other one from the first. */
static void parse_window(struct esp_text_config *t, struct esp_json_reader *r)
{
    const json_t *types = esp_json_field(r, "layer_types");
    bool any = false;
    char found[ESP_SHOWN];

    /* null is an answer here: no window */
    t->window = json_is_null(json_object_get(r->object, "sliding_window"))
                    ? 0
                    : esp_json_u32(r, "sliding_window", 4096, 1, MAX_POSITION);
    if (types && (!json_is_array(types) || json_array_size(types) != t->n_layer)) {
        esp_json_fail(r, ESP_E_FORMAT, "layer_types", "found %s, expected a list of %u, one for each layer",
                      esp_json_describe(found, types), t->n_layer);
        return;
    }
    for (uint32_t i = 0; i < t->n_layer && !r->st; i++) {
        bool sliding = i % 2 == 0;
        if (types) {
            const json_t *type = json_array_get(types, i);
            const char *text = json_is_string(type) ? json_string_value(type) : "";
            sliding = strcmp(text, "sliding_attention") == 0;
            if (!sliding && strcmp(text, "full_attention") != 0)
                esp_json_fail(r, ESP_E_FORMAT, "layer_types",
                              "found %s for layer %u, expected \"sliding_attention\" or \"full_attention\"",
                              esp_json_describe(found, type), i);
        }
        t->sliding[i] = sliding && t->window > 0;
        any |= t->sliding[i];
    }
    if (!any)
        t->window = 0;
}

static double real_or_off(struct esp_json_reader *r, const char *key, double absent)
{
    if (json_is_null(json_object_get(r->object, key))) /* null switches it off, absence does not */
        return 0.0;
    return esp_json_real(r, key, absent, 1e-3, 1e9);
}

static esp_status parse_text(struct esp_text_config *t, const struct esp_json_reader *top)
{
    struct esp_json_reader r = section(top, "text_config", "text_config.");
    const struct family *family = NULL;
    const char *type;
    double scalar;
    char shown[ESP_SHOWN];

    if (r.st)
        return r.st;
    type = esp_json_string(&r, "model_type", "gemma");
    for (size_t i = 0; i < sizeof families / sizeof families[0]; i++) {
        if (strcmp(type, families[i].model_type) == 0)
            family = &families[i];
    }
    if (!family) {
        esp_json_fail(&r, ESP_E_UNSUPPORTED, "model_type",
                      "\"%s\" is not supported, expected \"gemma\" or \"gemma2\"", esp_shown(shown, type));
        return r.st;
    }
    if (esp_json_field(&r, "hidden_activation"))
        require_one_of(&r, "hidden_activation", tanh_gelu); /* it wins over hidden_act */
    else
        require_one_of(&r, "hidden_act", tanh_gelu_legacy);
    require_bool(&r, "attention_bias", false);
    require_bool(&r, "tie_word_embeddings", true);
    t->width = esp_json_u32(&r, "hidden_size", family->width, 1, MAX_WIDTH);
    t->mlp_dim = esp_json_u32(&r, "intermediate_size", family->mlp_dim, 1, MAX_MLP);
    t->n_layer = esp_json_u32(&r, "num_hidden_layers", family->n_layer, 1, ESP_MAX_LAYERS);
    t->n_head = esp_json_u32(&r, "num_attention_heads", family->n_head, 1, MAX_HEADS);
    t->n_kv_head = esp_json_u32(&r, "num_key_value_heads", family->n_kv_head, 1, MAX_HEADS);
    t->head_dim = esp_json_u32(&r, "head_dim", 256, 2, MAX_HEAD_DIM);
    t->vocab = esp_json_u32(&r, "vocab_size", 256000, 1, MAX_VOCAB);
    t->max_position = esp_json_u32(&r, "max_position_embeddings", 8192, 1, MAX_POSITION);
    t->rms_eps = (float)esp_json_real(&r, "rms_norm_eps", 1e-6, 1e-12, 1.0);
    t->rope_theta = parse_rope(&r);
    scalar = t->head_dim;
    if (family->gemma2) {
        t->post_norms = true;
        t->attn_softcap = (float)real_or_off(&r, "attn_logit_softcapping", 50.0);
        t->final_softcap = (float)real_or_off(&r, "final_logit_softcapping", 30.0);
        scalar = esp_json_real(&r, "query_pre_attn_scalar", 256.0, 1e-3, 1e9);
        parse_window(t, &r);
    }
    if (r.st)
        return r.st;
    t->query_scale = (float)(1.0 / sqrt(scalar));
    t->embed_scale = (float)sqrt((double)t->width);
    if (t->n_head % t->n_kv_head != 0)
        esp_json_fail(&r, ESP_E_FORMAT, "num_attention_heads",
                      "%u is not a multiple of the %u num_key_value_heads", t->n_head, t->n_kv_head);
    if (t->head_dim % 2 != 0)
        esp_json_fail(&r, ESP_E_FORMAT, "head_dim", "%u is odd; rotary positions turn pairs", t->head_dim);
    return r.st;
}

/* A token id. Where a list is given, the first counts: in the published lists it is the model's own end
 * token, the others are those of chat templates that PaliGemma does not have. */
static uint32_t parse_token(struct esp_json_reader *r, const char *key, uint32_t absent, uint32_t vocab)
{
    const json_t *value = esp_json_field(r, key);
    char found[ESP_SHOWN];

    if (!value)
        return absent;
    if (json_is_array(value) && json_array_size(value) > 0)
        value = json_array_get(value, 0);
    if (!json_is_integer(value) || json_integer_value(value) < 0 || json_integer_value(value) >= vocab) {
        esp_json_fail(r, ESP_E_FORMAT, key, "found %s, expected a token id in 0..%u",
                      esp_json_describe(found, value), vocab - 1);
        return absent;
    }
    return (uint32_t)json_integer_value(value);
}

static esp_status parse_main(struct esp_config *c, const char *text, size_t n_bytes, struct esp_err *err)
{
    static const char *const types[] = {"paligemma", NULL};
    struct esp_json_reader r = {NULL, "config.json", "", ESP_OK, err};
    json_t *root = NULL;
    uint32_t old_name;

    r.st = esp_json_parse(&root, text, n_bytes, r.file, err);
    if (r.st)
        goto done;
    r.object = root;
    if (!esp_json_field(&r, "model_type"))
        esp_json_fail(&r, ESP_E_FORMAT, "model_type", "missing, expected \"paligemma\"");
    require_one_of(&r, "model_type", types);
    if (esp_json_field(&r, "quantization_config"))
        esp_json_fail(&r, ESP_E_UNSUPPORTED, "quantization_config",
                      "checkpoints quantised by other tools are not supported");
    require_bool(&r, "tie_word_embeddings", true);
    if (r.st)
        goto done;
    snprintf(c->model_type, sizeof c->model_type, "%s", types[0]);
    r.st = parse_vision(&c->vision, &r);
    if (r.st)
        goto done;
    r.st = parse_text(&c->text, &r);
    if (r.st)
        goto done;

    /* the width that image embeddings enter the decoder with; when absent, the only one that fits */
    c->projection_dim = esp_json_u32(&r, "projection_dim", c->text.width, 1, MAX_WIDTH);
    if (c->projection_dim != c->text.width)
        esp_json_fail(&r, ESP_E_FORMAT, "projection_dim", "found %u, expected text_config.hidden_size, %u",
                      c->projection_dim, c->text.width);
    /* default of the transformers class PaliGemmaConfig; the published files all say 257152 */
    old_name = parse_token(&r, "image_token_index", 256000, c->text.vocab);
    c->image_token = parse_token(&r, "image_token_id", old_name, c->text.vocab);
    if (esp_json_field(&r, "image_token_index") && c->image_token != old_name)
        esp_json_fail(&r, ESP_E_FORMAT, "image_token_id", "found %u, but image_token_index is %u",
                      c->image_token, old_name);
    if (c->image_token >= c->text.vocab)
        esp_json_fail(&r, ESP_E_FORMAT, "image_token_index",
                      "missing, and its default %u is not below vocab_size %u", c->image_token,
                      c->text.vocab);
    {
        struct esp_json_reader t = {esp_json_field(&r, "text_config"), r.file, "text_config.", r.st, err};
        c->bos = parse_token(&t, "bos_token_id", 2, c->text.vocab);
        c->eos = parse_token(&t, "eos_token_id", 1, c->text.vocab);
        c->pad = parse_token(&t, "pad_token_id", 0, c->text.vocab);
        r.st = t.st;
    }
    c->bos = parse_token(&r, "bos_token_id", c->bos, c->text.vocab);
    c->eos = parse_token(&r, "eos_token_id", c->eos, c->text.vocab);
    c->pad = parse_token(&r, "pad_token_id", c->pad, c->text.vocab);
    if (c->text.vocab < 3)
        esp_json_fail(&r, ESP_E_FORMAT, "text_config.vocab_size", "found %u, expected at least 3",
                      c->text.vocab);
done:
    json_decref(root);
    return r.st;
}

/* image_mean or image_std: one number for each channel, or one for all. */
static void parse_channels(float out[3], struct esp_json_reader *r, const char *key, double min, double max)
{
    const json_t *value = esp_json_field(r, key);
    char found[ESP_SHOWN];

    for (size_t i = 0; i < 3; i++) {
        const json_t *item = json_is_array(value) ? json_array_get(value, i) : value;
        out[i] = 0.5f;
        if (!value)
            continue;
        if (!item || !json_is_number(item) || (json_is_array(value) && json_array_size(value) != 3) ||
            !(json_number_value(item) >= min && json_number_value(item) <= max)) {
            esp_json_fail(r, ESP_E_FORMAT, key, "found %s, expected three numbers in %g..%g",
                          esp_json_describe(found, item && json_is_array(value) && json_array_size(value) == 3
                                                       ? item
                                                       : value),
                          min, max);
            return;
        }
        out[i] = (float)json_number_value(item);
    }
}

/* Pictures become what the encoder takes, so "size" can only repeat vision_config.image_size. */
static void parse_size(struct esp_json_reader *r, uint32_t image_size)
{
    const json_t *value = esp_json_field(r, "size");
    const json_t *height = value, *width = value;
    char found[ESP_SHOWN];

    if (!value)
        return;
    if (json_is_object(value)) {
        height = json_object_get(value, "height");
        width = json_object_get(value, "width");
    }
    if (!height || !width || !json_is_integer(height) || !json_is_integer(width))
        esp_json_fail(r, ESP_E_FORMAT, "size", "found %s, expected {\"height\": %u, \"width\": %u}",
                      esp_json_describe(found, value), image_size, image_size);
    else if (json_integer_value(height) != image_size || json_integer_value(width) != image_size)
        esp_json_fail(r, ESP_E_FORMAT, "size",
                      "found %" JSON_INTEGER_FORMAT " x %" JSON_INTEGER_FORMAT
                      ", expected vision_config.image_size of config.json, %u",
                      json_integer_value(height), json_integer_value(width), image_size);
}

static esp_status parse_preprocess(struct esp_config *c, const char *text, size_t n_bytes,
                                   struct esp_err *err)
{
    struct esp_preprocess_config *p = &c->preprocess;
    struct esp_json_reader r = {NULL, "preprocessor_config.json", "", ESP_OK, err};
    json_t *root = NULL;

    /* defaults of the transformers class SiglipImageProcessor, also where there is no such file */
    if (text) {
        r.st = esp_json_parse(&root, text, n_bytes, r.file, err);
        if (r.st)
            return r.st;
    }
    r.object = root;
    p->resample = (enum esp_resample)esp_json_u32(&r, "resample", ESP_RESAMPLE_BICUBIC, ESP_RESAMPLE_NEAREST,
                                                  ESP_RESAMPLE_HAMMING);
    p->rescale_factor = esp_json_real(&r, "rescale_factor", 1.0 / 255.0, 1e-9, 1e9);
    require_bool(&r, "do_resize", true);
    require_bool(&r, "do_rescale", true);
    require_bool(&r, "do_normalize", true);
    parse_channels(p->mean, &r, "image_mean", -1e6, 1e6);
    parse_channels(p->std, &r, "image_std", 1e-6, 1e6);
    parse_size(&r, c->vision.image_size);
    json_decref(root);
    return r.st;
}

static esp_status parse_generation(struct esp_config *c, const char *text, size_t n_bytes,
                                   struct esp_err *err)
{
    struct esp_json_reader r = {NULL, "generation_config.json", "", ESP_OK, err};
    json_t *root = NULL;

    r.st = esp_json_parse(&root, text, n_bytes, r.file, err);
    if (r.st)
        return r.st;
    r.object = root;
    c->bos = parse_token(&r, "bos_token_id", c->bos, c->text.vocab);
    c->eos = parse_token(&r, "eos_token_id", c->eos, c->text.vocab);
    c->pad = parse_token(&r, "pad_token_id", c->pad, c->text.vocab);
    json_decref(root);
    return r.st;
}

esp_status esp_config_parse(struct esp_config *out, const char *config, size_t n_config,
                            const char *preprocess, size_t n_preprocess, const char *generation,
                            size_t n_generation, struct esp_err *err)
{
    struct esp_config c;
    esp_status st;

    memset(&c, 0, sizeof c);
    st = parse_main(&c, config, n_config, err);
    if (st)
        return st;
    st = parse_preprocess(&c, preprocess, n_preprocess, err);
    if (st)
        return st;
    if (generation) {
        st = parse_generation(&c, generation, n_generation, err);
        if (st)
            return st;
    }
    *out = c;
    return ESP_OK;
}

esp_status esp_config_load(struct esp_config *out, const char *dir, struct esp_err *err)
{
    static const char *const names[3] = {"config.json", "preprocessor_config.json", "generation_config.json"};
    esp_status st = ESP_OK;
    char *text[3] = {NULL, NULL, NULL};
    size_t n_bytes[3] = {0, 0, 0};
    char *path = NULL;

    for (size_t i = 0; i < 3; i++) {
        if (asprintf(&path, "%s/%s", dir, names[i]) < 0) {
            path = NULL;
            st = esp_fail(err, ESP_E_NOMEM, "%s: path of %s", dir, names[i]);
            goto done;
        }
        if (i == 0 || esp_file_exists(path)) {
            st = esp_file_read(&text[i], &n_bytes[i], path, MAX_FILE_BYTES, err);
            if (st)
                goto done;
        }
        free(path);
        path = NULL;
    }
    st = esp_config_parse(out, text[0], n_bytes[0], text[1], n_bytes[1], text[2], n_bytes[2], err);
    if (st)
        esp_err_prefix(err, "%s/", dir);
done:
    free(path);
    for (size_t i = 0; i < 3; i++)
        free(text[i]);
    return st;
}
