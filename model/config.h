/**
 * The shape of a PaliGemma checkpoint, from config.json and preprocessor_config.json.
 *
 * Nothing here is hard-coded but the published defaults of fields that published files leave out
 * (arXiv 2407.07726; the transformers classes PaliGemmaConfig, GemmaConfig, Gemma2Config,
 * SiglipVisionConfig). Gemma and Gemma 2 differ by the data below alone; nothing downstream asks for the
 * family's name.
 */
#ifndef ESP_MODEL_CONFIG_H
#define ESP_MODEL_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/status.h"

#define ESP_MAX_LAYERS 256 /* of either tower: what we accept, far above the published 27, 18, 26, 42, 46 */

/** SigLIP. Pre-LN blocks: x += attn(LN(x)), x += MLP(LN(x)); tanh-GELU; biases everywhere. */
struct esp_vision_config {
    uint32_t width;                  /* D: hidden_size */
    uint32_t n_layer;                /* num_hidden_layers */
    uint32_t n_head;                 /* num_attention_heads; head_dim = width / n_head, must divide */
    uint32_t head_dim;               /* H */
    uint32_t mlp_dim;                /* F: intermediate_size */
    uint32_t image_size, patch_size; /* pixels; patches a side = image_size / patch_size, rounded down */
    uint32_t n_channel;              /* 3 */
    uint32_t n_token;                /* (image_size / patch_size)^2: image tokens of one picture */
    float ln_eps;                    /* layer_norm_eps, 1e-6 */
};

/** Gemma or Gemma 2. */
struct esp_text_config {
    uint32_t width;               /* D: hidden_size */
    uint32_t n_layer;             /* num_hidden_layers */
    uint32_t n_head, n_kv_head;   /* N, K; N % K == 0; query head n reads KV head n / (N/K) */
    uint32_t head_dim;            /* H, default 256, even; N*H need not equal D */
    uint32_t mlp_dim;             /* F */
    uint32_t vocab;               /* V: text_config.vocab_size, rows of the embedding */
    uint32_t max_position;        /* max_position_embeddings, default 8192 */
    float rope_theta;             /* 10000 */
    float rms_eps;                /* 1e-6 */
    float query_scale;            /* q is multiplied by this: query_pre_attn_scalar^-0.5, or head_dim^-0.5 */
    float embed_scale;            /* sqrt(hidden_size) */
    float attn_softcap;           /* cap * tanh(s / cap) before the mask; 0: none */
    float final_softcap;          /* of the logits, applied on request only; 0: none */
    uint32_t window;              /* sliding window in tokens, itself included; 0: none */
    bool post_norms;              /* Gemma 2: norms after attention and after the MLP too */
    bool sliding[ESP_MAX_LAYERS]; /* which layers have the window (Gemma 2: 0, 2, 4, ... or layer_types) */
};

/** PIL's numbers of its filters, as preprocessor_config.json stores them in "resample". */
enum esp_resample {
    ESP_RESAMPLE_NEAREST = 0,
    ESP_RESAMPLE_LANCZOS = 1,
    ESP_RESAMPLE_BILINEAR = 2,
    ESP_RESAMPLE_BICUBIC = 3,
    ESP_RESAMPLE_BOX = 4,
    ESP_RESAMPLE_HAMMING = 5
};

struct esp_preprocess_config {
    enum esp_resample resample; /* default bicubic */
    double rescale_factor;      /* 1/255 */
    float mean[3], std[3];      /* 0.5 each */
};

struct esp_config {
    char model_type[32]; /* "paligemma"; for messages only */
    struct esp_vision_config vision;
    struct esp_text_config text;
    struct esp_preprocess_config preprocess;
    uint32_t projection_dim; /* equals text.width */
    uint32_t image_token;    /* id of <image> */
    /* ids, of generation_config.json, config.json or its text_config, in this order; of a list the first */
    uint32_t bos, eos, pad;
};

/**
 * Reads DIR/config.json, DIR/preprocessor_config.json and DIR/generation_config.json (the latter two may be
 * missing) and checks every field: types, ranges, products that must fit, mutual agreement.
 *
 * @param out  the caller's; filled only on success
 * @param dir  borrowed
 * Errors: ESP_E_IO (no such file), ESP_E_FORMAT (names file, field, what was found and expected),
 * ESP_E_UNSUPPORTED (another architecture or activation). Safe from any thread.
 */
esp_status esp_config_load(struct esp_config *out, const char *dir, struct esp_err *err);

/** The same from text in memory (n_bytes each, no NUL needed); preprocess and generation may be NULL. */
esp_status esp_config_parse(struct esp_config *out, const char *config, size_t n_config,
                            const char *preprocess, size_t n_preprocess, const char *generation,
                            size_t n_generation, struct esp_err *err);

#endif
