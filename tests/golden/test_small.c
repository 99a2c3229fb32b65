/*
 * The model that comes with Espalier, which is only right if every layer is: fixed scenes, asked of a coordinator and
 * two workers, against what Hugging Face transformers answers and how likely it finds that, and against what was drawn.
 * Then that this would be noticed: with a single weight of any one layer changed, an answer is off.
 *
 * tests/golden/data/scenes: scenes.jsonl and its pictures are `espalier-scenes --seed 4711 --count 14 --per-scene 3`;
 * reference.jsonl is what `tools/train/compare_transformers.py --write` made of its lines (transformers 5.12.1, float32),
 * less those where two tokens are so close that the order of a sum decides (margin below 1.5e-4).
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "model/file.h"
#include "tests/golden/run_rig.h"

#define MODEL  "models/tiny"
#define SCENES RIG_DATA "/scenes"

/* Of float32 sums in another order, natural logarithms; an answer that is not computed right is off by far more. */
#define LOGPROB_TOL 1e-4

static json_t *reference; /* array: the lines of reference.jsonl */

static json_t *read_lines(const char *path)
{
    json_t *all = json_array();
    FILE *f = fopen(path, "r");
    char *line = NULL;
    size_t n = 0;

    assert_non_null(f);
    while (getline(&line, &n, f) > 0) {
        json_t *one = json_loads(line, 0, NULL);

        assert_non_null(one);
        assert_int_equal(json_array_append_new(all, one), 0);
    }
    free(line);
    fclose(f);
    return all;
}

static const char *text(const json_t *o, const char *key)
{
    const char *t = json_string_value(json_object_get(o, key));

    assert_non_null(t);
    return t;
}

/* How far an answer is from the reference's: the largest difference of a log-probability, infinite where ids differ. */
static double distance(const json_t *got, const json_t *want)
{
    const json_t *a = json_object_get(got, "logprobs"), *b = json_object_get(want, "logprobs");
    double worst = fabs(json_number_value(json_object_get(got, "eos_logprob")) -
                        json_number_value(json_object_get(want, "eos_logprob")));

    if (!json_equal(json_object_get(got, "ids"), json_object_get(want, "ids")))
        return INFINITY;
    for (size_t i = 0; i < json_array_size(b); i++) {
        double d = fabs(json_number_value(json_array_get(a, i)) - json_number_value(json_array_get(b, i)));

        worst = d <= worst ? worst : d; /* a NaN counts */
    }
    return worst;
}

/* Asks for line i of the reference. */
static json_t *ask(const struct cluster *c, size_t i)
{
    const json_t *want = json_array_get(reference, i);
    char image[256];

    snprintf(image, sizeof image, SCENES "/%s", text(want, "image"));
    return rig_ask(c, "run", NULL, (const char *[]){"--image", image, text(want, "prompt"), NULL});
}

/* ---- as it is ---- */

/* Of those whose answers are words: right are those that say what was drawn. */
static void count_right(const json_t *got, const json_t *drawn, size_t *n_right, size_t *n)
{
    const char *prompt = text(drawn, "prompt");

    if (!strncmp(prompt, "detect", 6) || !strncmp(prompt, "segment", 7))
        return;
    ++*n;
    *n_right += !strcmp(text(got, "text"), text(drawn, "answer"));
}

static void test_answers(void **state)
{
    struct cluster c;
    json_t *drawn = read_lines(SCENES "/scenes.jsonl");
    size_t n = 0, n_right = 0;
    double worst = 0;

    assert_in_range(json_array_size(reference), 24, 1000);
    rig_up(&c, MODEL, 2, NULL);
    for (size_t i = 0; i < json_array_size(reference); i++) {
        const json_t *want = json_array_get(reference, i);
        const json_t *line =
            json_array_get(drawn, (size_t)json_integer_value(json_object_get(want, "line")) - 1);
        json_t *got = ask(&c, i);
        double d = distance(got, want);

        assert_string_equal(text(line, "prompt"), text(want, "prompt"));
        if (!(d <= LOGPROB_TOL)) {
            print_error("%s, %s: %s (%g off)\n  reference: %s\n", text(want, "image"), text(want, "prompt"),
                        text(got, "text"), d, text(want, "text"));
            fail();
        }
        worst = d > worst ? d : worst;
        count_right(got, line, &n_right, &n);
        json_decref(got);
    }
    rig_down(&c);
    print_message("%zu answers as the reference's, log-probabilities within %.2g; %zu of %zu as drawn\n",
                  json_array_size(reference), worst, n_right, n);
    assert_true(10 * n_right >= 9 * n);
    json_decref(drawn);
}

/* ---- with one weight changed ---- */

/* The first value of a bf16 tensor in a safetensors file: where it lies, in bytes. */
static size_t find_weight(const char *file, size_t n, const char *name)
{
    uint64_t n_header;
    json_t *header, *tensor;
    size_t at;

    memcpy(&n_header, file, sizeof n_header);
    assert_true(n_header < n - 8);
    header = json_loadb(file + 8, n_header, 0, NULL);
    assert_non_null(header);
    tensor = json_object_get(header, name);
    if (!tensor)
        fail_msg("%s has no %s", MODEL, name);
    assert_string_equal(text(tensor, "dtype"), "BF16");
    at =
        8 + n_header + (size_t)json_integer_value(json_array_get(json_object_get(tensor, "data_offsets"), 0));
    json_decref(header);
    assert_true(at + 2 <= n);
    return at;
}

static const char *const same[] = {"config.json", "generation_config.json", "preprocessor_config.json",
                                   "tokenizer.model"};

/* A copy of the model whose tensor starts with 4.0, where weights are hundredths. */
static void make_copy(const char *dir, const char *name)
{
    static const uint8_t four[] = {0x80, 0x40}; /* bf16, little-endian */
    char from[512], to[512], here[256];
    struct esp_err err;
    char *file;
    size_t n, at;
    FILE *f;

    assert_non_null(getcwd(here, sizeof here));
    assert_true(mkdir(dir, 0700) == 0 || access(dir, W_OK) == 0);
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
        snprintf(from, sizeof from, "%s/" MODEL "/%s", here, same[i]);
        snprintf(to, sizeof to, "%s/%s", dir, same[i]);
        unlink(to);
        assert_int_equal(symlink(from, to), 0);
    }
    assert_int_equal(esp_file_read(&file, &n, MODEL "/model.safetensors", 1 << 26, &err), ESP_OK);
    at = find_weight(file, n, name);
    assert_memory_not_equal(file + at, four, 2);
    memcpy(file + at, four, 2);
    snprintf(to, sizeof to, "%s/model.safetensors", dir);
    f = fopen(to, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(file, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
    free(file);
}

static void remove_copy(const char *dir)
{
    char path[512];

    for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, same[i]);
        unlink(path);
    }
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    unlink(path);
    assert_int_equal(rmdir(dir), 0);
}

/* One weight of the tensor is changed: of the first few answers, one is off. */
static void expect_noticed(const char *name)
{
    enum { N_ASKED = 3 };
    struct cluster c;
    char dir[64];
    double worst = 0;

    snprintf(dir, sizeof dir, "%s/changed", rig_dir);
    make_copy(dir, name);
    rig_up(&c, dir, 2, NULL);
    for (size_t i = 0; i < N_ASKED; i++) {
        json_t *got = ask(&c, i);

        worst = fmax(worst, distance(got, json_array_get(reference, i)));
        json_decref(got);
    }
    rig_down(&c);
    remove_copy(dir);
    print_message("%s: off by %g\n", name, worst);
    if (!(worst > 2 * LOGPROB_TOL))
        fail_msg("a changed weight of %s is not noticed", name);
}

static void test_every_layer_counts(void **state)
{
    json_t *config = json_load_file(MODEL "/config.json", 0, NULL);
    json_int_t n_enc, n_dec;
    char name[160];

    assert_non_null(config);
    n_enc =
        json_integer_value(json_object_get(json_object_get(config, "vision_config"), "num_hidden_layers"));
    n_dec = json_integer_value(json_object_get(json_object_get(config, "text_config"), "num_hidden_layers"));
    assert_true(n_enc > 0 && n_dec > 0);
    json_decref(config);
    for (json_int_t i = 0; i < n_enc; i++) {
        snprintf(name, sizeof name, "vision_tower.vision_model.encoder.layers.%d.mlp.fc2.weight", (int)i);
        expect_noticed(name);
    }
    expect_noticed("multi_modal_projector.linear.weight");
    for (json_int_t i = 0; i < n_dec; i++) {
        snprintf(name, sizeof name, "language_model.model.layers.%d.mlp.down_proj.weight", (int)i);
        expect_noticed(name);
    }
}

static int setup(void **state)
{
    reference = read_lines(SCENES "/reference.jsonl");
    return rig_setup(state);
}

static int teardown(void **state)
{
    json_decref(reference);
    return rig_teardown(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_answers),
        cmocka_unit_test(test_every_layer_counts),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
