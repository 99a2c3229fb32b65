/* The published models' dimensions, spelt as their config.json spells them. */
#include "model/preset.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct preset {
    const char *name;
    uint32_t image_size;
    uint32_t width, mlp_dim, n_layer, n_head, n_kv_head; /* of the decoder */
    uint32_t head_dim;                                   /* 0: left out, 256 */
    uint32_t query_pre_attn_scalar;                      /* 0: Gemma; else Gemma 2 */
    bool toy; /* none of the published models: all of it is small */
} presets[] = {
    {"paligemma-3b-224", 224, 2048, 16384, 18, 8, 1, 0, 0, false},
    {"paligemma-3b-448", 448, 2048, 16384, 18, 8, 1, 0, 0, false},
    {"paligemma-3b-896", 896, 2048, 16384, 18, 8, 1, 0, 0, false},
    {"paligemma2-3b-224", 224, 2304, 9216, 26, 8, 4, 0, 256, false},
    {"paligemma2-3b-448", 448, 2304, 9216, 26, 8, 4, 0, 256, false},
    {"paligemma2-3b-896", 896, 2304, 9216, 26, 8, 4, 0, 256, false},
    {"paligemma2-10b-224", 224, 3584, 14336, 42, 16, 8, 0, 256, false},
    {"paligemma2-10b-448", 448, 3584, 14336, 42, 16, 8, 0, 256, false},
    {"paligemma2-10b-896", 896, 3584, 14336, 42, 16, 8, 0, 256, false},
    {"paligemma2-28b-224", 224, 4608, 36864, 46, 32, 16, 128, 144, false},
    {"paligemma2-28b-448", 448, 4608, 36864, 46, 32, 16, 128, 144, false},
    {"paligemma2-28b-896", 896, 4608, 36864, 46, 32, 16, 128, 144, false},
    {"toy", 56, 64, 160, 3, 4, 1, 32, 0, true},
};

/* The encoder is the same in all published models. */
struct tower {
    uint32_t width, mlp_dim, n_layer, n_head, vocab;
};
static const struct tower published = {1152, 4304, 27, 16, 257216}, toy = {48, 96, 2, 2, 1024};

const char *esp_checkpoint_preset_name(size_t i)
{
    return i < sizeof presets / sizeof presets[0] ? presets[i].name : NULL;
}

static void write_text_config(FILE *f, const struct preset *p, uint32_t n_layer, uint32_t vocab,
                              uint32_t n_token)
{
    fprintf(f, " \"text_config\": {\n");
    if (p->query_pre_attn_scalar)
        fprintf(f,
                "  \"attn_logit_softcapping\": 50.0,\n  \"final_logit_softcapping\": 30.0,\n"
                "  \"hidden_act\": \"gelu_pytorch_tanh\",\n  \"hidden_activation\": \"gelu_pytorch_tanh\",\n"
                "  \"query_pre_attn_scalar\": %u,\n  \"sliding_window\": 4096,\n",
                p->query_pre_attn_scalar);
    if (p->head_dim)
        fprintf(f, "  \"head_dim\": %u,\n", p->head_dim);
    fprintf(f,
            "  \"hidden_size\": %u,\n  \"intermediate_size\": %u,\n  \"model_type\": \"%s\",\n"
            "  \"num_attention_heads\": %u,\n  \"num_hidden_layers\": %u,\n  \"num_image_tokens\": %u,\n"
            "  \"num_key_value_heads\": %u,\n  \"vocab_size\": %u\n },\n",
            p->width, p->mlp_dim, p->query_pre_attn_scalar ? "gemma2" : "gemma", p->n_head, n_layer, n_token,
            p->n_kv_head, vocab);
}

char *esp_checkpoint_preset(const char *name)
{
    return esp_checkpoint_preset_cut(name, UINT32_MAX, UINT32_MAX);
}

char *esp_checkpoint_preset_cut(const char *name, uint32_t n_vision, uint32_t n_text)
{
    const struct preset *p = NULL;
    const struct tower *v;
    char *text = NULL;
    size_t n_text_bytes;
    FILE *f;
    uint32_t n_token;

    for (size_t i = 0; i < sizeof presets / sizeof presets[0]; i++) {
        if (strcmp(presets[i].name, name) == 0)
            p = &presets[i];
    }
    f = p ? open_memstream(&text, &n_text_bytes) : NULL;
    if (!f)
        return NULL;
    v = p->toy ? &toy : &published;
    n_token = (p->image_size / 14) * (p->image_size / 14);
    fprintf(f,
            "{\n \"architectures\": [\"PaliGemmaForConditionalGeneration\"],\n \"bos_token_id\": 2,\n"
            " \"eos_token_id\": 1,\n \"hidden_size\": %u,\n \"image_token_index\": %u,\n"
            " \"model_type\": \"paligemma\",\n \"pad_token_id\": 0,\n \"projection_dim\": %u,\n",
            p->width, v->vocab - 64, p->width);
    write_text_config(f, p, n_text < p->n_layer ? n_text : p->n_layer, v->vocab, n_token);
    fprintf(f, " \"vision_config\": {\n  \"hidden_size\": %u,\n", v->width);
    if (p->image_size != 224) /* a default, and left out as in the published file */
        fprintf(f, "  \"image_size\": %u,\n", p->image_size);
    fprintf(f,
            "  \"intermediate_size\": %u,\n  \"model_type\": \"siglip_vision_model\",\n"
            "  \"num_attention_heads\": %u,\n  \"num_hidden_layers\": %u,\n  \"num_image_tokens\": %u,\n"
            "  \"patch_size\": 14,\n  \"projection_dim\": %u,\n  \"vision_use_head\": false\n },\n"
            " \"vocab_size\": %u\n}\n",
            v->mlp_dim, v->n_head, n_vision < v->n_layer ? n_vision : v->n_layer, n_token, p->width,
            v->vocab - 64);
    if (fclose(f) != 0) {
        free(text);
        return NULL;
    }
    return text;
}
