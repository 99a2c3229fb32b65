/* config.json, preprocessor_config.json, generation_config.json: published and newer spellings, defaults, and
 * a table of what must be refused. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/config.h"
#include "model/file.h"

#define GOLDEN "tests/golden/data/"

static struct esp_config parse_good(const char *config, const char *preprocess, const char *generation)
{
    struct esp_config c;
    struct esp_err err = {0};

    if (esp_config_parse(&c, config, strlen(config), preprocess, preprocess ? strlen(preprocess) : 0,
                         generation, generation ? strlen(generation) : 0, &err))
        fail_msg("%s", err.text);
    return c;
}

static void test_goldens(void **state)
{
    static const struct {
        const char *dir;
        uint32_t v_width, v_layer, v_head, v_mlp, image, n_token;
        uint32_t width, n_layer, n_head, n_kv, head_dim, mlp;
        bool gemma2;
    } cases[] = {
        {GOLDEN "tiny", 144, 2, 2, 304, 56, 16, 192, 3, 8, 1, 32, 448, false},
        {GOLDEN "odd", 216, 3, 3, 404, 84, 36, 96, 4, 4, 1, 256, 320, false},
        {GOLDEN "tiny-pg2", 144, 2, 2, 336, 56, 16, 128, 4, 4, 2, 64, 288, true},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct esp_config c;
        struct esp_err err = {0};
        if (esp_config_load(&c, cases[i].dir, &err))
            fail_msg("%s", err.text);
        assert_string_equal(c.model_type, "paligemma");
        assert_int_equal(c.vision.width, cases[i].v_width);
        assert_int_equal(c.vision.n_layer, cases[i].v_layer);
        assert_int_equal(c.vision.n_head, cases[i].v_head);
        assert_int_equal(c.vision.head_dim, 72);
        assert_int_equal(c.vision.mlp_dim, cases[i].v_mlp);
        assert_int_equal(c.vision.image_size, cases[i].image);
        assert_int_equal(c.vision.patch_size, 14);
        assert_int_equal(c.vision.n_channel, 3);
        assert_int_equal(c.vision.n_token, cases[i].n_token);
        assert_true(c.vision.ln_eps == 1e-6f);
        assert_int_equal(c.text.width, cases[i].width);
        assert_int_equal(c.text.n_layer, cases[i].n_layer);
        assert_int_equal(c.text.n_head, cases[i].n_head);
        assert_int_equal(c.text.n_kv_head, cases[i].n_kv);
        assert_int_equal(c.text.head_dim, cases[i].head_dim);
        assert_int_equal(c.text.mlp_dim, cases[i].mlp);
        assert_int_equal(c.text.vocab, 5568);
        assert_int_equal(c.text.max_position, 8192);
        assert_true(c.text.rope_theta == 10000.0f);
        assert_true(c.text.rms_eps == 1e-6f);
        assert_true(c.text.embed_scale == (float)sqrt(cases[i].width));
        assert_true(c.text.query_scale == (float)(1 / sqrt(cases[i].gemma2 ? 48 : cases[i].head_dim)));
        assert_true(c.text.attn_softcap == (cases[i].gemma2 ? 50.0f : 0.0f));
        assert_true(c.text.final_softcap == (cases[i].gemma2 ? 30.0f : 0.0f));
        assert_int_equal(c.text.window, cases[i].gemma2 ? 24 : 0);
        assert_int_equal(c.text.post_norms, cases[i].gemma2);
        for (uint32_t l = 0; l < c.text.n_layer; l++)
            assert_int_equal(c.text.sliding[l], cases[i].gemma2 && l % 2 == 0);
        assert_int_equal(c.projection_dim, cases[i].width);
        assert_int_equal(c.image_token, 5534);
        assert_int_equal(c.bos, 2);
        assert_int_equal(c.eos, 1);
        assert_int_equal(c.pad, 0);
        assert_int_equal(c.preprocess.resample, ESP_RESAMPLE_BICUBIC);
        assert_true(c.preprocess.rescale_factor == 0.00392156862745098);
        for (int k = 0; k < 3; k++)
            assert_true(c.preprocess.mean[k] == 0.5f && c.preprocess.std[k] == 0.5f);
    }
}

/* As google/paligemma-3b-pt-224 has it: no head_dim, no image_size. */
static const char published_3b[] =
    "{\"architectures\":[\"PaliGemmaForConditionalGeneration\"],\"bos_token_id\":2,\"eos_token_id\":1,"
    "\"hidden_size\":2048,\"ignore_index\":-100,\"image_token_index\":257152,\"model_type\":\"paligemma\","
    "\"pad_token_id\":0,\"projection_dim\":2048,"
    "\"text_config\":{\"hidden_size\":2048,\"intermediate_size\":16384,\"model_type\":\"gemma\","
    "\"num_attention_heads\":8,\"num_hidden_layers\":18,\"num_image_tokens\":256,\"num_key_value_heads\":1,"
    "\"torch_dtype\":\"float32\",\"vocab_size\":257216},"
    "\"torch_dtype\":\"float32\",\"transformers_version\":\"4.41.0.dev0\","
    "\"vision_config\":{\"hidden_size\":1152,\"intermediate_size\":4304,\"model_type\":\"siglip_vision_"
    "model\","
    "\"num_attention_heads\":16,\"num_hidden_layers\":27,\"num_image_tokens\":256,\"patch_size\":14,"
    "\"projection_dim\":2048,\"projector_hidden_act\":\"gelu_fast\",\"torch_dtype\":\"float32\","
    "\"vision_use_head\":false},\"vocab_size\":257152}";

/* The same model as transformers 5 spells it: everything written out, some names new. */
static const char modern_3b[] =
    "{\"model_type\":\"paligemma\",\"dtype\":\"bfloat16\",\"image_token_id\":257152,\"projection_dim\":2048,"
    "\"bos_token_id\":2,\"eos_token_id\":[1,107],\"pad_token_id\":0,\"tie_word_embeddings\":true,"
    "\"text_config\":{\"model_type\":\"gemma\",\"attention_bias\":false,\"attention_dropout\":0.0,\"dtype\":"
    "\"bfloat16\","
    "\"head_dim\":256,\"hidden_act\":\"gelu_pytorch_tanh\",\"hidden_size\":2048,\"initializer_range\":0.02,"
    "\"intermediate_size\":16384,\"max_position_embeddings\":8192,\"num_attention_heads\":8,"
    "\"num_hidden_layers\":18,\"num_key_value_heads\":1,\"rms_norm_eps\":1e-06,"
    "\"rope_parameters\":{\"rope_theta\":10000.0,\"rope_type\":\"default\"},\"tie_word_embeddings\":true,"
    "\"use_bidirectional_attention\":null,\"use_cache\":true,\"vocab_size\":257216},"
    "\"vision_config\":{\"model_type\":\"siglip_vision_model\",\"attention_dropout\":0.0,\"hidden_act\":"
    "\"gelu_pytorch_tanh\",\"hidden_size\":1152,\"image_size\":224,\"intermediate_size\":4304,"
    "\"layer_norm_eps\":1e-06,\"num_attention_heads\":16,\"num_channels\":3,\"num_hidden_layers\":27,"
    "\"patch_size\":14,\"vision_use_head\":false}}";

static void test_two_spellings_of_one_model(void **state)
{
    struct esp_config a = parse_good(published_3b, NULL, NULL), b = parse_good(modern_3b, NULL, NULL);

    assert_int_equal(a.vision.head_dim, 72);
    assert_int_equal(a.vision.n_token, 256);
    assert_int_equal(a.vision.image_size, 224);
    assert_int_equal(a.text.head_dim, 256);
    assert_true(a.text.query_scale == 0.0625f);
    assert_int_equal(a.text.vocab, 257216);
    assert_int_equal(a.image_token, 257152);
    assert_memory_equal(&a, &b, sizeof a); /* both were zeroed before they were filled */
}

/* A config around three fragments of fields, the caller's to free. */
static char *with(const char *top, const char *text, const char *vision)
{
    char *s;

    if (asprintf(&s,
                 "{\"model_type\":\"paligemma\",\"text_config\":{\"vocab_size\":1000%s},"
                 "\"vision_config\":{\"patch_size\":14%s},\"image_token_index\":999%s}",
                 text, vision, top) < 0)
        abort();
    return s;
}

static void test_class_defaults(void **state)
{
    char *text = with("", "", "");
    struct esp_config c = parse_good(text, NULL, NULL);

    assert_int_equal(c.vision.width, 768);
    assert_int_equal(c.vision.n_layer, 12);
    assert_int_equal(c.vision.n_head, 12);
    assert_int_equal(c.vision.mlp_dim, 3072);
    assert_int_equal(c.vision.n_token, 256);
    assert_int_equal(c.text.width, 3072);
    assert_int_equal(c.text.mlp_dim, 24576);
    assert_int_equal(c.text.n_layer, 28);
    assert_int_equal(c.text.n_head, 16);
    assert_int_equal(c.text.n_kv_head, 16);
    assert_int_equal(c.text.head_dim, 256);
    assert_int_equal(c.projection_dim, 3072);
    free(text);
    text = with("", ",\"model_type\":\"gemma2\"", ",\"image_size\":30");
    c = parse_good(text, NULL, NULL);
    assert_int_equal(c.vision.n_token, 4); /* 30 / 14, rounded down, squared */
    assert_int_equal(c.text.width, 2304);
    assert_int_equal(c.text.mlp_dim, 9216);
    assert_int_equal(c.text.n_layer, 26);
    assert_int_equal(c.text.n_head, 8);
    assert_int_equal(c.text.n_kv_head, 4);
    assert_int_equal(c.text.window, 4096);
    assert_true(c.text.attn_softcap == 50.0f && c.text.final_softcap == 30.0f);
    assert_true(c.text.query_scale == 0.0625f);
    free(text);
}

static void test_gemma2_switches(void **state)
{
    char *text =
        with("",
             ",\"model_type\":\"gemma2\",\"num_hidden_layers\":3,\"sliding_window\":7,\"layer_types\":"
             "[\"full_attention\",\"sliding_attention\",\"sliding_attention\"],"
             "\"attn_logit_softcapping\":null,\"final_logit_softcapping\":null,"
             "\"query_pre_attn_scalar\":144,\"rope_theta\":5000",
             "");
    struct esp_config c = parse_good(text, NULL, NULL);

    assert_false(c.text.sliding[0]);
    assert_true(c.text.sliding[1]);
    assert_true(c.text.sliding[2]);
    assert_int_equal(c.text.window, 7);
    assert_true(c.text.attn_softcap == 0.0f && c.text.final_softcap == 0.0f);
    assert_true(c.text.query_scale == (float)(1.0 / 12.0));
    assert_true(c.text.rope_theta == 5000.0f);
    free(text);
    text = with("", ",\"model_type\":\"gemma2\",\"sliding_window\":null", "");
    c = parse_good(text, NULL, NULL);
    assert_int_equal(c.text.window, 0);
    assert_false(c.text.sliding[0]);
    free(text);
}

static void test_legacy_activation_and_tokens(void **state)
{
    char *text = with(",\"eos_token_id\":[5,6],\"bos_token_id\":null",
                      ",\"hidden_act\":\"gelu\",\"bos_token_id\":8,\"eos_token_id\":9,\"head_dim\":null",
                      ",\"hidden_act\":\"gelu_pytorch_tanh\"");
    struct esp_config c = parse_good(text, NULL, NULL);

    assert_int_equal(c.eos, 5); /* the top wins over text_config, the first of a list counts */
    assert_int_equal(c.bos, 8); /* null is absence */
    assert_int_equal(c.text.head_dim, 256);
    c = parse_good(text, NULL, "{\"eos_token_id\":7}");
    assert_int_equal(c.eos, 7);
    free(text);
}

static void test_preprocessing(void **state)
{
    char *text = with("", "", ",\"image_size\":56");
    struct esp_config c = parse_good(text,
                                     "{\"resample\":2,\"rescale_factor\":0.5,\"image_mean\":[0.1,0.2,0.3],"
                                     "\"image_std\":0.25,\"size\":{\"height\":56,\"width\":56},"
                                     "\"do_convert_rgb\":null}",
                                     NULL);

    assert_int_equal(c.preprocess.resample, ESP_RESAMPLE_BILINEAR);
    assert_true(c.preprocess.rescale_factor == 0.5);
    assert_true(c.preprocess.mean[1] == 0.2f && c.preprocess.std[2] == 0.25f);
    c = parse_good(text, "{\"size\":56}", NULL);
    assert_int_equal(c.preprocess.resample, ESP_RESAMPLE_BICUBIC);
    assert_true(c.preprocess.rescale_factor == 1.0 / 255.0);
    free(text);
}

enum place { TOP, TEXT, VISION, PREPROCESS, GENERATION, WHOLE };

#define BIG "99999999999999999999"

static const struct refused {
    enum place place;
    const char *fields; /* added there, or the whole config.json */
    esp_status st;
    const char *message; /* a part of it */
} refused[] = {
    {WHOLE, "", ESP_E_FORMAT, "config.json: not JSON"},
    {WHOLE, "[]", ESP_E_FORMAT, "config.json: found a list of 0, expected a JSON object"},
    {WHOLE, "{\"model_type\":\"paligemma\"", ESP_E_FORMAT, "not JSON: line 1"},
    {WHOLE, "{} trailing", ESP_E_FORMAT, "not JSON"},
    {WHOLE, "\xff\xfe{}", ESP_E_FORMAT, "not JSON"},
    {WHOLE, "{}", ESP_E_FORMAT, "model_type: missing, expected \"paligemma\""},
    {WHOLE, "{\"model_type\":\"llava\"}", ESP_E_UNSUPPORTED,
     "\"llava\" is not supported, expected \"paligemma\""},
    {WHOLE, "{\"model_type\":7}", ESP_E_FORMAT, "model_type: found 7, expected a string"},
    {WHOLE, "{\"model_type\":\"pali\\u0000gemma\"}", ESP_E_FORMAT, "not JSON"},
    {WHOLE, "{\"model_type\":\"paligemma\"}", ESP_E_FORMAT, "vision_config: missing, expected an object"},
    {WHOLE, "{\"model_type\":\"paligemma\",\"vision_config\":[1]}", ESP_E_FORMAT,
     "vision_config: found a list of 1"},
    {WHOLE, "{\"model_type\":\"paligemma\",\"vision_config\":{}}", ESP_E_FORMAT, "text_config: missing"},
    {WHOLE, "{\"model_type\":\"paligemma\",\"vision_config\":{},\"text_config\":{\"vocab_size\":5}}",
     ESP_E_FORMAT, "image_token_index: missing, and its default 256000 is not below vocab_size 5"},
    {TOP, ",\"model_type\":\"paligemma\"", ESP_E_FORMAT, "duplicate"},
    {TOP, ",\"quantization_config\":{}", ESP_E_UNSUPPORTED,
     "quantization_config: checkpoints quantised by other"},
    {TOP, ",\"tie_word_embeddings\":false", ESP_E_UNSUPPORTED, "tie_word_embeddings: false is not supported"},
    {TOP, ",\"projection_dim\":512", ESP_E_FORMAT,
     "projection_dim: found 512, expected text_config.hidden_size, 3072"},
    {TOP, ",\"image_token_id\":5", ESP_E_FORMAT, "image_token_id: found 5, but image_token_index is 999"},
    {TOP, ",\"image_token_id\":1000", ESP_E_FORMAT, "found 1000, expected a token id in 0..999"},
    {TOP, ",\"bos_token_id\":-1", ESP_E_FORMAT, "bos_token_id: found -1, expected a token id in 0..999"},
    {TOP, ",\"eos_token_id\":[]", ESP_E_FORMAT, "eos_token_id: found a list of 0"},
    {TOP, ",\"eos_token_id\":[\"a\"]", ESP_E_FORMAT, "eos_token_id: found \"a\""},
    {VISION, ",\"model_type\":\"clip_vision_model\"", ESP_E_UNSUPPORTED,
     "vision_config.model_type: \"clip_vision_model\""},
    {VISION, ",\"hidden_act\":\"gelu\"", ESP_E_UNSUPPORTED,
     "vision_config.hidden_act: \"gelu\" is not supported"},
    {VISION, ",\"hidden_size\":0", ESP_E_FORMAT,
     "vision_config.hidden_size: found 0, expected an integer in 1..65536"},
    {VISION, ",\"hidden_size\":-768", ESP_E_FORMAT, "found -768"},
    {VISION, ",\"hidden_size\":768.0", ESP_E_FORMAT, "found 768, expected an integer"},
    {VISION, ",\"hidden_size\":\"768\"", ESP_E_FORMAT, "found \"768\", expected an integer"},
    {VISION, ",\"hidden_size\":true", ESP_E_FORMAT, "found true, expected an integer"},
    {VISION, ",\"hidden_size\":4294967296", ESP_E_FORMAT, "found 4294967296"},
    {VISION, ",\"hidden_size\":" BIG, ESP_E_FORMAT, "not JSON"},
    {VISION, ",\"hidden_size\":770", ESP_E_FORMAT, "770 is not a multiple of the 12 num_attention_heads"},
    {VISION, ",\"hidden_size\":65536,\"num_attention_heads\":1", ESP_E_FORMAT,
     "is 65536 each, expected at most 1024"},
    {VISION, ",\"num_hidden_layers\":257", ESP_E_FORMAT,
     "num_hidden_layers: found 257, expected an integer in 1..256"},
    {VISION, ",\"num_channels\":1", ESP_E_FORMAT, "num_channels: found 1, expected an integer in 3..3"},
    {VISION, ",\"image_size\":10", ESP_E_FORMAT, "patch_size: 14 is larger than image_size 10"},
    {VISION, ",\"image_size\":16384", ESP_E_FORMAT, "are 1170 patches a side, expected at most 256"},
    {VISION, ",\"layer_norm_eps\":0", ESP_E_FORMAT, "layer_norm_eps: found 0, expected a number"},
    {VISION, ",\"layer_norm_eps\":1e999", ESP_E_FORMAT, "not JSON"},
    {VISION, ",\"layer_norm_eps\":NaN", ESP_E_FORMAT, "not JSON"},
    {TEXT, ",\"model_type\":\"llama\"", ESP_E_UNSUPPORTED,
     "\"llama\" is not supported, expected \"gemma\" or \"gemma2\""},
    {TEXT, ",\"hidden_act\":\"silu\"", ESP_E_UNSUPPORTED, "text_config.hidden_act: \"silu\""},
    {TEXT, ",\"hidden_activation\":\"gelu\"", ESP_E_UNSUPPORTED, "text_config.hidden_activation: \"gelu\""},
    {TEXT, ",\"attention_bias\":true", ESP_E_UNSUPPORTED, "attention_bias: true is not supported"},
    {TEXT, ",\"attention_bias\":1", ESP_E_FORMAT, "attention_bias: found 1, expected true or false"},
    {TEXT, ",\"tie_word_embeddings\":false", ESP_E_UNSUPPORTED, "text_config.tie_word_embeddings"},
    {TEXT, ",\"num_key_value_heads\":3", ESP_E_FORMAT, "16 is not a multiple of the 3 num_key_value_heads"},
    {TEXT, ",\"num_key_value_heads\":0", ESP_E_FORMAT, "num_key_value_heads: found 0"},
    {TEXT, ",\"head_dim\":33", ESP_E_FORMAT, "head_dim: 33 is odd"},
    {TEXT, ",\"intermediate_size\":1099511627776", ESP_E_FORMAT, "intermediate_size: found 1099511627776"},
    {TEXT, ",\"rope_theta\":0.5", ESP_E_FORMAT, "rope_theta: found 0.5"},
    {TEXT, ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":2}", ESP_E_UNSUPPORTED,
     "text_config.rope_scaling.type: \"linear\" is not supported, expected \"default\""},
    {TEXT, ",\"rope_parameters\":{\"rope_type\":\"yarn\"}", ESP_E_UNSUPPORTED,
     "rope_parameters.rope_type: \"yarn\""},
    {TEXT, ",\"rope_parameters\":5", ESP_E_FORMAT, "rope_parameters: found 5, expected an object"},
    {TEXT, ",\"model_type\":\"gemma2\",\"sliding_window\":0", ESP_E_FORMAT, "sliding_window: found 0"},
    {TEXT, ",\"model_type\":\"gemma2\",\"layer_types\":[]", ESP_E_FORMAT,
     "layer_types: found a list of 0, expected a list of 26, one for each layer"},
    {TEXT, ",\"model_type\":\"gemma2\",\"num_hidden_layers\":1,\"layer_types\":[\"chunked\"]", ESP_E_FORMAT,
     "layer_types: found \"chunked\" for layer 0"},
    {TEXT, ",\"model_type\":\"gemma2\",\"query_pre_attn_scalar\":-4", ESP_E_FORMAT,
     "query_pre_attn_scalar: found -4"},
    {TEXT, ",\"model_type\":\"gemma2\",\"attn_logit_softcapping\":0", ESP_E_FORMAT,
     "attn_logit_softcapping: found 0"},
    {PREPROCESS, "{", ESP_E_FORMAT, "preprocessor_config.json: not JSON"},
    {PREPROCESS, "{\"resample\":6}", ESP_E_FORMAT, "resample: found 6, expected an integer in 0..5"},
    {PREPROCESS, "{\"resample\":\"bicubic\"}", ESP_E_FORMAT, "resample: found \"bicubic\""},
    {PREPROCESS, "{\"do_resize\":false}", ESP_E_UNSUPPORTED, "do_resize: false is not supported"},
    {PREPROCESS, "{\"image_mean\":[0.5,0.5]}", ESP_E_FORMAT,
     "image_mean: found a list of 2, expected three numbers"},
    {PREPROCESS, "{\"image_std\":[0.5,0,0.5]}", ESP_E_FORMAT, "image_std: found 0, expected three numbers"},
    {PREPROCESS, "{\"size\":{\"height\":448,\"width\":448}}", ESP_E_FORMAT,
     "size: found 448 x 448, expected vision_config.image_size of config.json, 224"},
    {PREPROCESS, "{\"size\":{\"shortest_edge\":224}}", ESP_E_FORMAT,
     "size: found an object, expected {\"height\": 224"},
    {GENERATION, "7", ESP_E_FORMAT, "generation_config.json: not JSON"},
    {GENERATION, "{\"eos_token_id\":1000}", ESP_E_FORMAT, "generation_config.json: eos_token_id: found 1000"},
};

static void test_refused(void **state)
{
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        const struct refused *r = &refused[i];
        struct esp_config c, before;
        struct esp_err err = {0};
        char *text = r->place == WHOLE
                         ? strdup(r->fields)
                         : with(r->place == TOP ? r->fields : "", r->place == TEXT ? r->fields : "",
                                r->place == VISION ? r->fields : "");
        const char *pre = r->place == PREPROCESS ? r->fields : NULL,
                   *gen = r->place == GENERATION ? r->fields : NULL;
        esp_status st;

        memset(&c, 0x5a, sizeof c);
        before = c;
        st = esp_config_parse(&c, text, strlen(text), pre, pre ? strlen(pre) : 0, gen, gen ? strlen(gen) : 0,
                              &err);
        if (st != r->st || err.code != st || !strstr(err.text, r->message))
            fail_msg("case %zu, %s: got %d \"%s\", expected %d \"%s\"", i, r->fields, st, err.text, r->st,
                     r->message);
        assert_memory_equal(&c, &before, sizeof c); /* filled only on success */
        st = esp_config_parse(&c, text, strlen(text), pre, pre ? strlen(pre) : 0, gen, gen ? strlen(gen) : 0,
                              NULL);
        assert_int_equal(st, r->st);
        free(text);
    }
}

static void test_deep_nesting(void **state)
{
    size_t n = 500000;
    char *text = malloc(n + 1);
    struct esp_config c;
    struct esp_err err;

    assert_non_null(text);
    memset(text, '[', n);
    memcpy(text, "{\"a\":", 5);
    text[n] = '\0';
    assert_int_equal(esp_config_parse(&c, text, n, NULL, 0, NULL, 0, &err), ESP_E_FORMAT);
    assert_non_null(strstr(err.text, "depth"));
    free(text);
}

static void test_load_names_the_file(void **state)
{
    struct esp_config c;
    struct esp_err err;

    assert_int_equal(esp_config_load(&c, "no/such/folder", &err), ESP_E_IO);
    assert_string_equal(err.text, "no/such/folder/config.json: No such file or directory");
    assert_int_equal(esp_config_load(&c, GOLDEN "tokenizer", &err), ESP_E_IO);
    assert_non_null(strstr(err.text, "tokenizer/config.json"));
}

/* A block of exactly the bytes, so that ASan sees the first one read too many. */
static void parse_exactly(const char *bytes, size_t n_bytes, size_t *n_good)
{
    char *copy = malloc(n_bytes ? n_bytes : 1);
    struct esp_config c;
    struct esp_err err = {0};
    esp_status st;

    assert_non_null(copy);
    memcpy(copy, bytes, n_bytes);
    st = esp_config_parse(&c, copy, n_bytes, copy, n_bytes, copy, n_bytes, &err);
    if (st)
        assert_true(err.code == st && err.text[0]);
    else
        ++*n_good;
    free(copy);
}

static void test_every_truncation(void **state)
{
    size_t n_good = 0;

    for (size_t n = 0; n < sizeof published_3b - 1; n++)
        parse_exactly(published_3b, n, &n_good);
    assert_int_equal(n_good, 0);
    parse_exactly(published_3b, sizeof published_3b - 1, &n_good);
    assert_int_equal(n_good, 1);
}

static void test_flipped_bits(void **state)
{
    uint64_t x = 20240707;
    size_t n_good = 0;

    for (int i = 0; i < 5000; i++) {
        char text[sizeof modern_3b];
        memcpy(text, modern_3b, sizeof text);
        for (int k = 0; k <= i % 3; k++) {
            x ^= x << 13, x ^= x >> 7, x ^= x << 17; /* xorshift64 */
            text[x % (sizeof text - 1)] ^= (char)(1 << (x >> 32) % 8);
        }
        parse_exactly(text, sizeof text - 1, &n_good);
    }
    assert_true(n_good > 0); /* a changed name of a field that is a default, for instance */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_goldens),
        cmocka_unit_test(test_two_spellings_of_one_model),
        cmocka_unit_test(test_class_defaults),
        cmocka_unit_test(test_gemma2_switches),
        cmocka_unit_test(test_legacy_activation_and_tokens),
        cmocka_unit_test(test_preprocessing),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_deep_nesting),
        cmocka_unit_test(test_load_names_the_file),
        cmocka_unit_test(test_every_truncation),
        cmocka_unit_test(test_flipped_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
