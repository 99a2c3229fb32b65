/* Checkpoint directories: the goldens, every naming layout, random ones of any config, and a table of broken
 * ones. */
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "model/checkpoint.h"
#include "model/file.h"
#include "model/preset.h"
#include "model/roles.h"
#include "tests/support/checkpoint_writer.h"

#define GOLDEN "tests/golden/data/"

/* ---- a temporary folder ---- */

static char dir[64];

static int make_dir(void **state)
{
    strcpy(dir, "/tmp/esp-checkpoint-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    DIR *d = opendir(dir);
    struct dirent *e;
    char path[512];

    while (d && (e = readdir(d))) {
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        unlink(path);
    }
    if (d)
        closedir(d);
    return rmdir(dir);
}

static const char *in_dir(const char *name)
{
    static char path[512];

    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

static void put(const char *name, const void *data, size_t n_bytes)
{
    FILE *f;

    unlink(in_dir(name)); /* ext4 waits for the disk where a file is truncated and written anew */
    f = fopen(in_dir(name), "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n_bytes, f), n_bytes);
    assert_int_equal(fclose(f), 0);
}

static char *get(size_t *n_bytes, const char *path)
{
    char *data;
    struct esp_err err;

    if (esp_file_read(&data, n_bytes, path, (size_t)1 << 30, &err))
        fail_msg("%s", err.text);
    return data;
}

static void copy(const char *from, const char *name)
{
    size_t n;
    char *data = get(&n, from);

    put(name, data, n);
    free(data);
}

/* ---- good ones ---- */

static struct esp_checkpoint *open_good(const char *path)
{
    struct esp_checkpoint *ck;
    struct esp_err err = {0};

    if (esp_checkpoint_open(&ck, path, &err))
        fail_msg("%s", err.text);
    return ck;
}

static void assert_same_tensors(const struct esp_checkpoint *a, const struct esp_checkpoint *b)
{
    uint8_t fa[ESP_FINGERPRINT_BYTES], fb[ESP_FINGERPRINT_BYTES];

    for (int role = 0; role < ESP_N_ROLE; role++) {
        uint32_t n = esp_role_count(esp_checkpoint_config(a), (enum esp_role)role);
        for (uint32_t i = 0; i < n; i++) {
            const struct esp_tensor *x = esp_checkpoint_tensor(a, (enum esp_role)role, i);
            const struct esp_tensor *y = esp_checkpoint_tensor(b, (enum esp_role)role, i);
            assert_non_null(x);
            assert_non_null(y);
            assert_int_equal(x->dtype, y->dtype);
            assert_int_equal(x->n_bytes, y->n_bytes);
            assert_memory_equal(x->data, y->data, x->n_bytes);
        }
    }
    esp_checkpoint_fingerprint(a, fa);
    esp_checkpoint_fingerprint(b, fb);
    assert_memory_equal(fa, fb, sizeof fa);
}

static void test_goldens(void **state)
{
    static const struct {
        const char *dir;
        enum esp_dtype dtype;
        uint64_t n_bytes;
        const char *query; /* name of the first query projection of the decoder */
    } cases[] = {
        {GOLDEN "tiny", ESP_BF16, 5271520, "language_model.model.layers.0.self_attn.q_proj.weight"},
        {GOLDEN "odd", ESP_F32, 12535344, "model.language_model.layers.0.self_attn.q_proj.weight"},
        {GOLDEN "tiny-pg2", ESP_BF16, 4038240, "language_model.model.layers.0.self_attn.q_proj.weight"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct esp_checkpoint *ck = open_good(cases[i].dir);
        const struct esp_config *c = esp_checkpoint_config(ck);
        const struct esp_tensor *t = esp_checkpoint_tensor(ck, ESP_T_Q_W, 0);

        assert_string_equal(esp_checkpoint_dir(ck), cases[i].dir);
        assert_int_equal(esp_checkpoint_n_bytes(ck), cases[i].n_bytes);
        assert_int_equal(t->dtype, cases[i].dtype);
        assert_string_equal(t->name, cases[i].query);
        assert_int_equal(t->shape[0], c->text.n_head * c->text.head_dim);
        assert_int_equal(t->shape[1], c->text.width);
        assert_int_equal(t->n_bytes, t->shape[0] * t->shape[1] * esp_dtype_n_bytes(t->dtype));
        assert_null(esp_checkpoint_tensor(ck, ESP_T_Q_W, c->text.n_layer));
        assert_null(esp_checkpoint_tensor(ck, ESP_V_Q_W, c->vision.n_layer));
        assert_null(esp_checkpoint_tensor(ck, ESP_N_ROLE, 0));
        assert_ptr_equal(esp_checkpoint_tensor(ck, ESP_T_EMBED, 7),
                         esp_checkpoint_tensor(ck, ESP_T_EMBED, 0));
        t = esp_checkpoint_tensor(ck, ESP_T_NORM_MLP, 1);
        if (c->text.post_norms) { /* the same name is another tensor in the two families */
            assert_non_null(strstr(t->name, "layers.1.pre_feedforward_layernorm"));
            t = esp_checkpoint_tensor(ck, ESP_T_NORM_POST_ATTN, 1);
            assert_non_null(strstr(t->name, "layers.1.post_attention_layernorm"));
        } else {
            assert_non_null(strstr(t->name, "layers.1.post_attention_layernorm"));
            assert_null(esp_checkpoint_tensor(ck, ESP_T_NORM_POST_ATTN, 1));
            assert_null(esp_checkpoint_tensor(ck, ESP_T_NORM_POST_MLP, 0));
        }
        esp_checkpoint_destroy(&ck);
        assert_null(ck);
        esp_checkpoint_destroy(&ck);
    }
}

static void test_names_of_other_layouts(void **state)
{
    static const char *const files[] = {GOLDEN "names/v4.52.safetensors",
                                        GOLDEN "names/v5-saved.safetensors"};
    struct esp_checkpoint *tiny = open_good(GOLDEN "tiny"), *odd = open_good(GOLDEN "odd");
    uint8_t a[ESP_FINGERPRINT_BYTES], b[ESP_FINGERPRINT_BYTES];

    for (size_t i = 0; i < 2; i++) {
        struct esp_checkpoint *ck;
        copy(GOLDEN "tiny/config.json", "config.json");
        copy(files[i], "model.safetensors");
        ck = open_good(dir);
        assert_same_tensors(tiny, ck);
        esp_checkpoint_destroy(&ck);
    }
    esp_checkpoint_fingerprint(tiny, a);
    esp_checkpoint_fingerprint(odd, b);
    assert_memory_not_equal(a, b, sizeof a);
    esp_checkpoint_destroy(&tiny);
    esp_checkpoint_destroy(&odd);
}

/* ---- random ones ---- */

/* The smallest PaliGemma that still has every kind of tensor. */
#define SMALL(family)                                                                                        \
    "{\"model_type\":\"paligemma\",\"image_token_index\":7,\"vision_config\":{\"hidden_size\":4,"            \
    "\"num_attention_heads\":2,\"intermediate_size\":6,\"num_hidden_layers\":2,\"image_size\":4,"            \
    "\"patch_size\":2},\"text_config\":{\"model_type\":\"" family "\",\"hidden_size\":10,"                   \
    "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"head_dim\":2,\"intermediate_size\":6,"            \
    "\"num_hidden_layers\":2,\"vocab_size\":8}}"

static void write_small(const char *config, enum esp_layout layout, enum esp_dtype dtype, uint32_t n_shard,
                        uint64_t seed)
{
    struct esp_checkpoint_spec spec = {
        .dir = dir,
        .config_json = config,
        .n_config = strlen(config),
        .seed = seed,
        .dtype = dtype,
        .layout = layout,
        .n_shard = n_shard,
    };
    struct esp_err err = {0};

    if (esp_checkpoint_write(&spec, &err))
        fail_msg("%s", err.text);
}

static void test_every_layout_and_sharding(void **state)
{
    static const char *const configs[] = {SMALL("gemma"), SMALL("gemma2")};

    for (size_t i = 0; i < 2; i++) {
        uint8_t first[ESP_FINGERPRINT_BYTES], f[ESP_FINGERPRINT_BYTES];
        for (int layout = 0; layout < ESP_N_LAYOUT; layout++) {
            for (uint32_t n_shard = 1; n_shard <= 7; n_shard += 3) {
                struct esp_checkpoint *ck;
                write_small(configs[i], (enum esp_layout)layout, ESP_BF16, n_shard, 5);
                ck = open_good(dir);
                assert_int_equal(esp_file_exists(in_dir("model.safetensors")), n_shard == 1);
                esp_checkpoint_fingerprint(ck, f);
                if (layout == 0 && n_shard == 1)
                    memcpy(first, f, sizeof first);
                assert_memory_equal(f, first, sizeof f);
                esp_checkpoint_destroy(&ck);
            }
        }
        for (uint64_t seed = 6; seed < 8; seed++) { /* what must change it */
            struct esp_checkpoint *ck;
            write_small(configs[i], ESP_LAYOUT_PUBLISHED, seed == 6 ? ESP_BF16 : ESP_F16, 1,
                        seed == 6 ? 6 : 5);
            ck = open_good(dir);
            esp_checkpoint_fingerprint(ck, f);
            assert_memory_not_equal(f, first, sizeof f);
            esp_checkpoint_destroy(&ck);
        }
    }
}

/* The same seed gives the same numbers in each dtype; norms and weights are about as large as they should be.
 */
static void test_random_numbers(void **state)
{
    static const enum esp_dtype dtypes[] = {ESP_F32, ESP_BF16, ESP_F16};
    size_t n_config;
    char *config = get(&n_config, GOLDEN "tiny/config.json");
    float *first = NULL;

    for (size_t i = 0; i < 3; i++) {
        struct esp_checkpoint *ck;
        const struct esp_tensor *t;
        size_t n;
        float *x;
        double sum = 0, square = 0;

        write_small(config, ESP_LAYOUT_PUBLISHED, dtypes[i], 1, 1);
        ck = open_good(dir);
        t = esp_checkpoint_tensor(ck, ESP_T_DOWN_W, 2); /* [192, 448] */
        n = t->n_bytes / esp_dtype_n_bytes(t->dtype);
        x = calloc(n, sizeof *x);
        assert_non_null(x);
        esp_dtype_to_f32(x, t->data, t->dtype, n);
        for (size_t k = 0; k < n; k++) {
            sum += x[k];
            square += (double)x[k] * x[k];
            if (first && (x[k] > first[k] + 4e-8f || x[k] < first[k] - 4e-8f)) /* half's subnormals: 2^-25 */
                fail_msg("%s: element %zu: %.9g, as f32 %.9g", esp_dtype_name(t->dtype), k, (double)x[k],
                         (double)first[k]);
        }
        assert_true(sum / (double)n < 5e-4 && sum / (double)n > -5e-4);
        assert_true(square / (double)n > 0.98 / 448 && square / (double)n < 1.02 / 448);
        if (first)
            free(x);
        else
            first = x;
        esp_checkpoint_destroy(&ck);
    }
    free(first);
    free(config);
}

static void test_presets(void **state)
{
    static const struct {
        const char *name;
        uint32_t image_size, n_token, width, n_layer, n_head, n_kv, head_dim, mlp;
        float scalar;
    } cases[] = {
        {"paligemma-3b-224", 224, 256, 2048, 18, 8, 1, 256, 16384, 256},
        {"paligemma-3b-896", 896, 4096, 2048, 18, 8, 1, 256, 16384, 256},
        {"paligemma2-3b-448", 448, 1024, 2304, 26, 8, 4, 256, 9216, 256},
        {"paligemma2-10b-224", 224, 256, 3584, 42, 16, 8, 256, 14336, 256},
        {"paligemma2-28b-224", 224, 256, 4608, 46, 32, 16, 128, 36864, 144},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char *text = esp_checkpoint_preset(cases[i].name);
        struct esp_config c;
        struct esp_err err = {0};
        assert_non_null(text);
        if (esp_config_parse(&c, text, strlen(text), NULL, 0, NULL, 0, &err))
            fail_msg("%s", err.text);
        assert_int_equal(c.vision.image_size, cases[i].image_size);
        assert_int_equal(c.vision.n_token, cases[i].n_token);
        assert_int_equal(c.vision.head_dim, 72);
        assert_int_equal(c.vision.n_layer, 27);
        assert_int_equal(c.text.width, cases[i].width);
        assert_int_equal(c.text.n_layer, cases[i].n_layer);
        assert_int_equal(c.text.n_head, cases[i].n_head);
        assert_int_equal(c.text.n_kv_head, cases[i].n_kv);
        assert_int_equal(c.text.head_dim, cases[i].head_dim);
        assert_int_equal(c.text.mlp_dim, cases[i].mlp);
        assert_int_equal(c.text.vocab, 257216);
        assert_int_equal(c.image_token, 257152);
        assert_true(c.text.query_scale > 0.999f / __builtin_sqrtf(cases[i].scalar));
        assert_true(c.text.query_scale < 1.001f / __builtin_sqrtf(cases[i].scalar));
        free(text);
    }
    for (size_t i = 0; esp_checkpoint_preset_name(i); i++) {
        char *text = esp_checkpoint_preset(esp_checkpoint_preset_name(i));
        assert_non_null(text);
        free(text);
    }
    assert_null(esp_checkpoint_preset("paligemma-4b-224"));
}

/* ---- broken ones ---- */

/* One occurrence of `find` in a text replaced; the caller frees. */
static char *replaced(const char *text, const char *find, const char *replace)
{
    const char *at = strstr(text, find);
    char *out;

    if (!at)
        fail_msg("\"%s\" is not there to be replaced", find);
    if (asprintf(&out, "%.*s%s%s", (int)(at - text), text, replace, at + strlen(find)) < 0)
        fail_msg("out of memory");
    return out;
}

/* Rewrites a safetensors file with a header in which `find` became `replace`. */
static void edit_header(const char *name, const char *find, const char *replace)
{
    size_t n, n_header = 0;
    char *file = get(&n, in_dir(name)), *header, *edited, *whole;

    for (int i = 7; i >= 0; i--)
        n_header = n_header << 8 | (unsigned char)file[i];
    header = strndup(file + 8, n_header);
    assert_non_null(header);
    edited = replaced(header, find, replace);
    whole = malloc(n + strlen(edited));
    assert_non_null(whole);
    for (int i = 0; i < 8; i++)
        whole[i] = (char)(strlen(edited) >> 8 * i);
    memcpy(whole + 8, edited, strlen(edited));
    memcpy(whole + 8 + strlen(edited), file + 8 + n_header, n - 8 - n_header);
    put(name, whole, n - n_header + strlen(edited));
    free(whole);
    free(edited);
    free(header);
    free(file);
}

static void edit_text(const char *name, const char *find, const char *replace)
{
    size_t n;
    char *text = get(&n, in_dir(name)), *edited = replaced(text, find, replace);

    put(name, edited, strlen(edited));
    free(edited);
    free(text);
}

static void expect_refused(esp_status want, const char *message, const char *what)
{
    struct esp_checkpoint *ck = (void *)dir;
    struct esp_err err = {0};
    esp_status st = esp_checkpoint_open(&ck, dir, &err);

    if (st != want || ck || !strstr(err.text, message))
        fail_msg("%s: got %d \"%s\", expected %d \"%s\"", what, st, err.text, want, message);
}

#define Q0 "language_model.model.layers.0.self_attn.q_proj.weight"

/* Edits of model.safetensors' header, data untouched. */
static const struct {
    const char *find, *replace, *message; /* message NULL: still good */
} headers[] = {
    {Q0, "language_model.model.layers.0.self_attn.Q_proj.weight",
     ": tensor " Q0 " [8, 10] is missing (published names)"},
    {"language_model.model.embed_tokens.weight", "lm_head.weight",
     "tensor language_model.model.embed_tokens.weight [8, 10] is missing"},
    {"\"vision_tower.vision_model.post_layernorm.bias\"", "\"vision_tower.post_layernorm.bias\"",
     "tensor vision_tower.vision_model.post_layernorm.bias [4] is missing"},
    {Q0 "\":{\"dtype\":\"BF16\"", Q0 "\":{\"dtype\":\"I16\"",
     "/model.safetensors: tensor " Q0 ": dtype I16, expected F32, F16 or BF16"},
    {Q0 "\":{\"dtype\":\"BF16\"", Q0 "\":{\"dtype\":\"F8_E4M3\"",
     "bytes, expected 80 for 80 elements of F8_E4M3"},
    {Q0 "\":{\"dtype\":\"BF16\"", Q0 "\":{\"dtype\":\"F42\"", "dtype F42, expected F32, F16 or BF16"},
    {Q0 "\":{\"dtype\":\"BF16\",\"shape\":[8,10]", Q0 "\":{\"dtype\":\"BF16\",\"shape\":[10,8]",
     "tensor " Q0 ": shape [10, 8], expected [8, 10] by config.json"},
    {Q0 "\":{\"dtype\":\"BF16\",\"shape\":[8,10]", Q0 "\":{\"dtype\":\"BF16\",\"shape\":[80]",
     "shape [80], expected [8, 10]"},
    {Q0 "\":{\"dtype\":\"BF16\",\"shape\":[8,10]", Q0 "\":{\"dtype\":\"BF16\",\"shape\":[8,10,1]",
     "shape [8, 10, 1], expected [8, 10]"},
    {Q0 "\":{\"dtype\":\"BF16\",\"shape\":[8,10]", Q0 "\":{\"dtype\":\"F32\",\"shape\":[4,10]",
     "shape [4, 10], expected [8, 10]"},
    {"{\"__metadata__\"",
     "{\"vision_tower.vision_model.head.probe\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":"
     "[0,0]},\"x\":{\"dtype\":\"WEIRD\",\"shape\":[3],\"data_offsets\":[0,0]},\"__metadata__\"",
     NULL},
    {"{\"__metadata__\"",
     "{\"x\":{\"dtype\":\"WEIRD\",\"shape\":[3],\"data_offsets\":[0,2]},\"__metadata__\"", "overlaps"},
};

static void test_broken_headers(void **state)
{
    for (size_t i = 0; i < sizeof headers / sizeof headers[0]; i++) {
        write_small(SMALL("gemma"), ESP_LAYOUT_PUBLISHED, ESP_BF16, 1, 0);
        edit_header("model.safetensors", headers[i].find, headers[i].replace);
        if (headers[i].message) {
            expect_refused(ESP_E_FORMAT, headers[i].message, headers[i].replace);
        } else {
            struct esp_checkpoint *ck = open_good(dir);
            esp_checkpoint_destroy(&ck);
        }
    }
}

/* Edits of the index of four shards. */
static const struct {
    const char *find, *replace;
    esp_status st;
    const char *message;
} indices[] = {
    {"{", "", ESP_E_FORMAT, "model.safetensors.index.json: not JSON"},
    {"\"weight_map\"", "\"weights\"", ESP_E_FORMAT, "weight_map: found nothing, expected an object"},
    {"\"weight_map\": {", "\"weight_map\": [], \"x\": {", ESP_E_FORMAT, "weight_map: found a list of 0"},
    {"\"weight_map\": {", "\"weight_map\": {}, \"x\": {", ESP_E_FORMAT, "weight_map: names 0 files"},
    {"\"weight_map\": {", "\"weight_map\": {\"a\": 7,", ESP_E_FORMAT, "weight_map: a: found 7"},
    {"\"weight_map\": {", "\"weight_map\": {\"a\": \"../model-00001-of-00004.safetensors\",", ESP_E_FORMAT,
     "weight_map: a: found \"../model-00001-of-00004.safetensors\", expected the name of a file beside it"},
    {"\"weight_map\": {", "\"weight_map\": {\"a\": \"/etc/passwd\",", ESP_E_FORMAT, "found \"/etc/passwd\""},
    {"\"weight_map\": {", "\"weight_map\": {\"a\": \"..\",", ESP_E_FORMAT, "found \"..\""},
    {"\"weight_map\": {", "\"weight_map\": {\"a\": \"\",", ESP_E_FORMAT, "found \"\""},
    {"\"weight_map\": {", "\"weight_map\": {\"a\": \"gone.safetensors\",", ESP_E_IO,
     "/gone.safetensors: No such file or directory"},
    {"\"weight_map\": {", "\"weight_map\": {\"a\": \"config.json\",", ESP_E_FORMAT,
     "/config.json: a header of"},
    {"\"weight_map\": {", "\"weight_map\": {\"a\": \"model-00001-of-00004.safetensors\",", ESP_E_FORMAT,
     "tensor a is not in model-00001-of-00004.safetensors, where it should be"},
    {"\"vision_tower.vision_model.embeddings.patch_embedding.bias\": \"model-00001",
     "\"vision_tower.vision_model.embeddings.patch_embedding.bias\": \"model-00002", ESP_E_FORMAT,
     "patch_embedding.bias is not in model-00002-of-00004.safetensors"},
    {"\"weight_map\": {", "\"weight_map\": {\"" Q0 "\": \"model-00001-of-00004.safetensors\",", ESP_E_FORMAT,
     "duplicate"},
};

static void test_broken_indices(void **state)
{
    for (size_t i = 0; i < sizeof indices / sizeof indices[0]; i++) {
        write_small(SMALL("gemma"), ESP_LAYOUT_PUBLISHED, ESP_BF16, 4, 0);
        edit_text("model.safetensors.index.json", indices[i].find, indices[i].replace);
        expect_refused(indices[i].st, indices[i].message, indices[i].replace);
    }
}

static void test_broken_folders(void **state)
{
    struct esp_checkpoint *ck;
    char to[512];

    write_small(SMALL("gemma"), ESP_LAYOUT_PUBLISHED, ESP_BF16, 4, 0);
    assert_int_equal(truncate(in_dir("model-00003-of-00004.safetensors"), 100), 0);
    expect_refused(ESP_E_FORMAT, "/model-00003-of-00004.safetensors: a header of", "a cut shard");
    copy(in_dir("model-00002-of-00004.safetensors"), "model-00003-of-00004.safetensors");
    expect_refused(ESP_E_FORMAT, "is also in", "a shard twice");
    assert_int_equal(unlink(in_dir("model-00003-of-00004.safetensors")), 0);
    expect_refused(ESP_E_IO, "/model-00003-of-00004.safetensors: No such file", "a missing shard");

    write_small(SMALL("gemma"), ESP_LAYOUT_PUBLISHED, ESP_BF16, 1, 0);
    snprintf(to, sizeof to, "%s", in_dir("blob"));
    assert_int_equal(rename(in_dir("model.safetensors"), to), 0);
    assert_int_equal(symlink("blob", in_dir("model.safetensors")), 0); /* as download caches lay files out */
    ck = open_good(dir);
    esp_checkpoint_destroy(&ck);
    assert_int_equal(unlink(to), 0);
    expect_refused(ESP_E_IO, "neither model.safetensors nor model.safetensors.index.json is there",
                   "a dead link");
    assert_int_equal(unlink(in_dir("model.safetensors")), 0);
    assert_int_equal(mkfifo(in_dir("model.safetensors"), 0600), 0);
    expect_refused(ESP_E_IO, "/model.safetensors: not a regular file", "a FIFO");
    assert_int_equal(unlink(in_dir("model.safetensors")), 0);

    copy(GOLDEN "tiny/golden.safetensors", "model.safetensors");
    expect_refused(
        ESP_E_FORMAT,
        "no tensor of a PaliGemma in its 111 tensors; expected "
        "vision_tower.vision_model.embeddings.patch_embedding.weight or the like, found beam.0.ids",
        "another kind of file");
    assert_int_equal(unlink(in_dir("config.json")), 0);
    expect_refused(ESP_E_IO, "/config.json: No such file or directory", "no config");
}

static void test_every_truncation_of_a_config_and_a_header(void **state)
{
    size_t n, n_header = 0;
    char *file;

    write_small(SMALL("gemma2"), ESP_LAYOUT_V5_SAVED, ESP_F16, 1, 0);
    for (size_t k = 0; k < strlen(SMALL("gemma2")); k++) {
        put("config.json", SMALL("gemma2"), k);
        expect_refused(ESP_E_FORMAT, "/config.json: ", "a cut config.json");
    }
    put("config.json", SMALL("gemma2"), strlen(SMALL("gemma2")));
    file = get(&n, in_dir("model.safetensors"));
    for (int i = 7; i >= 0; i--)
        n_header = n_header << 8 | (unsigned char)file[i];
    for (size_t k = 0; k < n; k += k < n_header + 8 ? 1 : 97) {
        put("model.safetensors", file, k);
        expect_refused(ESP_E_FORMAT, "/model.safetensors: ", "a cut model.safetensors");
    }
    free(file);
}

static void test_writer_refuses(void **state)
{
    struct esp_checkpoint_spec spec = {.dir = dir, .config_json = "{}", .n_config = 2, .dtype = ESP_BF16};
    struct esp_err err = {0};

    assert_int_equal(esp_checkpoint_write(&spec, &err), ESP_E_FORMAT);
    spec.config_json = SMALL("gemma");
    spec.n_config = strlen(spec.config_json);
    spec.dtype = ESP_I32;
    assert_int_equal(esp_checkpoint_write(&spec, &err), ESP_E_ARG);
    spec.dtype = ESP_BF16;
    spec.dir = "/no/such/folder";
    assert_int_equal(esp_checkpoint_write(&spec, &err), ESP_E_IO);
    assert_non_null(strstr(err.text, "/no/such/folder: No such file"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_goldens),
        cmocka_unit_test_setup_teardown(test_names_of_other_layouts, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_every_layout_and_sharding, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_random_numbers, make_dir, remove_dir),
        cmocka_unit_test(test_presets),
        cmocka_unit_test_setup_teardown(test_broken_headers, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_broken_indices, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_broken_folders, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_every_truncation_of_a_config_and_a_header, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_writer_refuses, make_dir, remove_dir),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
