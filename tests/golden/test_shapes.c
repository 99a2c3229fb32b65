/*
 * Models of many shapes: random checkpoints whose sizes avoid the round numbers of published ones, against the whole
 * model in float64 (tests/support/ref_model.h): prefill and decode, at a random split of the layers. First the
 * reference itself against the golden checkpoints. ESPALIER_TEST_SEEDS=N tries each shape N times.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/support/chain.h"
#include "tests/support/checkpoint_writer.h"
#include "tests/support/golden.h"
#include "tests/support/rand.h"
#include "tests/support/ref_model.h"
#include "tests/support/temp.h"

#define MAX_ROWS 160

static struct esp_vk *vk;

/* Sizes of a model; text is Gemma unless gemma2 names its parts. */
struct shape {
    const char *what;
    uint32_t image, patch, v_width, v_heads, v_layers, v_mlp;
    uint32_t width, heads, kv_heads, head_dim, layers, mlp, vocab;
    const char *gemma2; /* more of text_config, or NULL */
    enum esp_dtype dtype;
    uint32_t n_images, n_text; /* the prompt */
    double tol;                /* relative L2 of logits */
};

#define G2(cap, window, scalar)                                                                              \
    "\"model_type\":\"gemma2\",\"attn_logit_softcapping\":" cap ",\"final_logit_softcapping\":30.0,"         \
    "\"sliding_window\":" window ",\"query_pre_attn_scalar\":" scalar ","

static const struct shape shapes[] = {
    {"odd head dims, no multiple of 32 anywhere", 42, 14, 90, 5, 2, 77, 52, 3, 1, 18, 2, 61, 333, NULL,
     ESP_BF16, 1, 7, 2e-5},
    {"an image that patches do not fill", 47, 7, 64, 4, 1, 100, 40, 2, 2, 12, 3, 50, 301, NULL, ESP_F16, 1, 5,
     2e-5},
    {"many heads a KV head", 28, 14, 48, 3, 1, 48, 96, 12, 1, 8, 2, 96, 257, NULL, ESP_F32, 1, 9, 2e-5},
    {"three heads a KV head", 28, 14, 72, 1, 2, 36, 60, 6, 2, 20, 3, 44, 1000, NULL, ESP_BF16, 2, 11, 2e-5},
    {"head_dim 256, one layer", 28, 14, 72, 1, 1, 40, 64, 2, 1, 256, 1, 64, 300, NULL, ESP_BF16, 1, 6, 2e-5},
    {"Gemma 2, a window shorter than the suffix", 28, 14, 72, 1, 1, 40, 56, 4, 2, 36, 4, 70, 400,
     G2("20.0", "5", "30"), ESP_BF16, 1, 6, 4e-5},
    {"Gemma 2, five heads a KV head, f16", 42, 14, 40, 2, 1, 33, 50, 10, 2, 10, 2, 30, 290,
     G2("50.0", "40", "16"), ESP_F16, 1, 40, 4e-5},
    {"two pictures and long text", 56, 14, 144, 2, 2, 100, 64, 8, 1, 32, 2, 128, 700, NULL, ESP_BF16, 2, 60,
     2e-5},
};

/* Writes and opens the checkpoint of a shape in a temporary folder. */
static struct esp_checkpoint *checkpoint_of(const struct shape *s, char dir[64], uint64_t seed)
{
    char config[2048];
    struct esp_checkpoint_spec spec = {.dir = dir,
                                       .config_json = config,
                                       .seed = seed,
                                       .dtype = s->dtype,
                                       .layout = (enum esp_layout)(seed % 4),
                                       .n_shard = 1 + seed % 3};
    struct esp_checkpoint *ck = NULL;
    struct esp_err err = {0};

    snprintf(
        config, sizeof config,
        "{\"model_type\":\"paligemma\",\"image_token_index\":%u,\"projection_dim\":%u,\"bos_token_id\":2,"
        "\"eos_token_id\":1,\"pad_token_id\":0,\"vision_config\":{\"model_type\":\"siglip_vision_model\","
        "\"hidden_size\":%u,\"image_size\":%u,\"patch_size\":%u,\"num_attention_heads\":%u,"
        "\"num_hidden_layers\":%u,\"intermediate_size\":%u},\"text_config\":{%s\"hidden_size\":%u,"
        "\"num_attention_heads\":%u,\"num_key_value_heads\":%u,\"head_dim\":%u,\"num_hidden_layers\":%u,"
        "\"intermediate_size\":%u,\"vocab_size\":%u}}",
        s->vocab - 20, s->width, s->v_width, s->image, s->patch, s->v_heads, s->v_layers, s->v_mlp,
        s->gemma2 ? s->gemma2 : "\"model_type\":\"gemma\",", s->width, s->heads, s->kv_heads, s->head_dim,
        s->layers, s->mlp, s->vocab);
    spec.n_config = strlen(config);
    assert_int_equal(esp_temp_make(dir, 64), 0);
    esp_must(esp_checkpoint_write(&spec, &err), &err);
    esp_must(esp_checkpoint_open(&ck, dir, &err), &err);
    return ck;
}

static void remove_dir(const char *dir)
{
    assert_int_equal(esp_temp_remove(dir), 0);
}

/* Layers into up to three stages, cut anywhere. */
static void random_split(struct esp_rand *r, uint32_t n_layer, uint32_t out[3])
{
    uint32_t a = esp_rand_below(r, n_layer + 1), b = esp_rand_below(r, n_layer + 1);
    out[0] = a < b ? a : b;
    out[1] = (a < b ? b : a) - out[0];
    out[2] = n_layer - out[0] - out[1];
}

/* Prefill of the prompt, then the suffix one token a step; logits f32[1 + n_suffix, V]. */
static void run_chain(struct esp_chain *chain, const struct shape *s, const int32_t *ids, uint32_t n_prefix,
                      uint32_t n_suffix, float *logits)
{
    const uint64_t images[2] = {1, 2};
    struct esp_seq_rows seq = {
        .seq = 1, .n_tok = n_prefix, .n_prefix = n_prefix, .n_images = s->n_images, .images = images};
    struct esp_stage_out out;

    for (uint32_t i = 0; i <= n_suffix; i++) {
        esp_chain_seq(chain, &seq, ids + seq.pos, 3, 1, &out, NULL, NULL);
        memcpy(logits + (size_t)i * s->vocab, out.full, s->vocab * sizeof *logits);
        esp_stage_out_finish(&out);
        seq.pos += seq.n_tok;
        seq.n_tok = 1;
        seq.n_images = 0;
    }
}

static void check_shape(const struct shape *s, uint64_t seed)
{
    enum { SUFFIX = 12 };
    char dir[64];
    struct esp_checkpoint *ck = checkpoint_of(s, dir, seed);
    const struct esp_config *c = esp_checkpoint_config(ck);
    const uint32_t n_token = c->vision.n_token, n_prefix = s->n_images * n_token + s->n_text;
    const size_t n_pixel = (size_t)3 * s->image * s->image;
    float *pixels = malloc(n_pixel * sizeof *pixels);
    float *features = malloc((size_t)2 * n_token * s->width * sizeof *features);
    float *want = malloc((size_t)(n_prefix + SUFFIX) * s->vocab * sizeof *want);
    float *got = malloc((size_t)(SUFFIX + 1) * s->vocab * sizeof *got);
    int32_t ids[MAX_ROWS] = {0};
    uint32_t n_enc[3], n_dec[3];
    struct esp_chain chain;
    struct esp_rand r;

    assert_true(pixels && features && want && got && n_prefix + SUFFIX <= MAX_ROWS);
    esp_rand_init(&r, seed);
    random_split(&r, s->v_layers, n_enc);
    random_split(&r, s->layers, n_dec);
    for (uint32_t i = s->n_images * n_token; i < n_prefix + SUFFIX; i++)
        ids[i] = (int32_t)esp_rand_below(&r, s->vocab);
    esp_chain_open(&chain, vk, ck, 3, n_enc, n_dec, MAX_ROWS);
    for (uint32_t i = 0; i < s->n_images; i++) {
        esp_rand_fill_uniform(&r, pixels, n_pixel, -1.0, 1.0);
        esp_ref_features(features + (size_t)i * n_token * s->width, ck, pixels);
        esp_chain_encode(&chain, i + 1, pixels, NULL, NULL);
    }
    esp_ref_logits(want, ck, features, s->n_images, ids, n_prefix + SUFFIX, n_prefix);
    run_chain(&chain, s, ids, n_prefix, SUFFIX, got);
    if (!esp_close_f32(s->what, got, want + (size_t)(n_prefix - 1) * s->vocab,
                       (size_t)(SUFFIX + 1) * s->vocab, s->vocab, s->tol, 1e9))
        fail_msg("%s, seed %llu", s->what, (unsigned long long)seed);
    esp_chain_close(&chain);
    esp_checkpoint_destroy(&ck);
    remove_dir(dir);
    free(pixels);
    free(features);
    free(want);
    free(got);
}

static void test_shapes(void **state)
{
    const char *env = getenv("ESPALIER_TEST_SEEDS");
    const uint64_t n_seed = env ? strtoull(env, NULL, 10) : 1;

    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        for (uint64_t seed = 1; seed <= n_seed; seed++)
            check_shape(&shapes[i], 1000 * i + seed);
}

/* The reference deserves a reference: the golden logits. */
static void test_reference(void **state)
{
    static const char *const names[] = {"tiny", "odd", "tiny-pg2"};

    for (size_t f = 0; f < 3; f++) {
        char path[128];
        struct esp_checkpoint *ck = NULL;
        struct esp_golden *g;
        struct esp_err err = {0};
        size_t n_ids, n, n_logits;
        float *features, *logits;

        snprintf(path, sizeof path, "tests/golden/data/%s", names[f]);
        esp_must(esp_checkpoint_open(&ck, path, &err), &err);
        snprintf(path, sizeof path, "tests/golden/data/%s/golden.safetensors", names[f]);
        g = esp_golden_open(path);
        const struct esp_config *c = esp_checkpoint_config(ck);
        const int32_t *ids = esp_golden_i32(g, &n_ids, "prefill.0.ids");
        const float *want = esp_golden_f32(g, &n_logits, "prefill.0.logits");
        features = malloc((size_t)c->vision.n_token * c->text.width * sizeof *features);
        logits = malloc(n_logits * sizeof *logits);
        assert_true(features && logits);
        esp_ref_features(features, ck, esp_golden_f32(g, &n, "image.scene_a.pixel_values"));
        esp_ref_logits(logits, ck, features, 1, ids, (uint32_t)n_ids, (uint32_t)n_ids);
        assert_true(esp_close_f32(names[f], logits, want, n_logits, c->text.vocab, 2e-5, 1e9));
        free(features);
        free(logits);
        esp_golden_close(&g);
        esp_checkpoint_destroy(&ck);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_reference), cmocka_unit_test(test_shapes)};
    int failed;

    vk = esp_test_device_open();
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    return failed + esp_test_device_close(&vk);
}
