/* Layers cut by hand over processes: not a bit of any layer, of the logits or of the log-probabilities
 * differs from the uncut run. Every cut of two stages is tried in one process by test_stage; here are the
 * kinds of cut that processes can have between them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/golden/run_rig.h"

/* Layers of the vision tower / of the decoder, a pair a worker. */
static const char *const tiny[] = {
    "2/3",                 /* uncut: what the others are held against */
    "2/0,0/3",             /* between the towers */
    "1/1,1/2",             /* each tower in both workers */
    "1/0,1/0,0/1,0/1,0/1", /* a layer a worker */
    "0/2,2/1",             /* the decoder begins before the encoder: pictures go backwards */
    NULL,
};
static const char *const odd[] = {
    "3/4", "2/0,1/1,0/3", "0/1,1/1,1/1,1/1", "1/0,0/4,2/0", /* the encoder's end behind the decoder's */ NULL,
};
static const char *const pg2[] = {
    "2/4", "2/3,0/1", "1/2,1/2", "0/1,0/1,1/1,1/1", NULL,
};

static json_t *ask_split(const struct fixture *f, const char *split, struct esp_golden **trace)
{
    char model[64], image[128], path[64], workers[16];
    unsigned n = 1;
    json_t *o;

    for (const char *p = split; *p; p++)
        n += *p == ',';
    snprintf(model, sizeof model, RIG_DATA "/%s", f->name);
    snprintf(image, sizeof image, "%s/images/scene_a.png", model);
    snprintf(path, sizeof path, "%s/trace", rig_dir);
    snprintf(workers, sizeof workers, "%u", n);
    o = rig_run(split, (const char *[]){"run", "--json", "--model", model, "--image", image, "--workers",
                                        workers, "--split", split, "--trace", path, "--max-tokens", "24",
                                        "--ignore-eos", "caption en", NULL});
    *trace = rig_trace(path);
    return o;
}

static const json_t *stage_of(const json_t *o, size_t worker)
{
    const json_t *stages = json_object_get(o, "stages");
    char name[16];

    snprintf(name, sizeof name, "w%zu", worker);
    for (size_t i = 0; i < json_array_size(stages); i++) {
        const json_t *stage = json_array_get(stages, i);
        if (strcmp(rig_text(stage, "worker"), name) == 0)
            return stage;
    }
    fail_msg("no stage on %s", name);
    return NULL;
}

/* [lo, hi) of a stage's tower is n layers from lo on, or nothing. */
static void check_range(const json_t *range, int lo, int n)
{
    const json_int_t from = json_integer_value(json_array_get(range, 0)),
                     to = json_integer_value(json_array_get(range, 1));

    assert_int_equal(to - from, n);
    assert_true(n == 0 || from == lo);
}

/* The first worker has the first pair of layers, and so on. */
static void check_stages(const json_t *o, const char *split)
{
    int enc = 0, dec = 0;
    size_t i = 0;

    for (const char *p = split; *p; i++) {
        const json_t *stage = stage_of(o, i);
        int n_enc, n_dec, n_read;

        assert_int_equal(sscanf(p, "%d/%d%n", &n_enc, &n_dec, &n_read), 2);
        p += n_read + (p[n_read] == ',');
        check_range(json_object_get(stage, "encoder"), enc, n_enc);
        check_range(json_object_get(stage, "decoder"), dec, n_dec);
        enc += n_enc;
        dec += n_dec;
    }
    assert_int_equal(json_array_size(json_object_get(o, "stages")), i);
}

static void check_splits(const struct fixture *f, const char *const *splits)
{
    struct golden golden;
    struct esp_golden *whole = NULL;
    json_t *logprobs = NULL;
    bool ok = true;

    rig_golden_open(&golden, f);
    for (; *splits; splits++) {
        struct esp_golden *trace;
        json_t *o = ask_split(f, *splits, &trace);

        check_stages(o, *splits);
        if (!json_equal(json_object_get(o, "ids"),
                        json_object_get(rig_case(&golden, "generate", 0), "tokens")))
            fail_msg("%s, %s: other tokens than the reference's", f->name, *splits);
        if (!whole) {
            whole = trace;
            logprobs = json_incref(json_object_get(o, "logprobs"));
        } else {
            if (!json_equal(json_object_get(o, "logprobs"), logprobs) ||
                !rig_same_trace(f, whole, trace, 1)) {
                print_error("%s at split %s: not the bits of the uncut run\n", f->name, *splits);
                ok = false;
            }
            esp_golden_close(&trace);
        }
        json_decref(o);
    }
    json_decref(logprobs);
    esp_golden_close(&whole);
    rig_golden_close(&golden);
    assert_true(ok);
}

static void test_tiny(void **state)
{
    check_splits(&rig_fixtures[0], tiny);
}

static void test_odd(void **state)
{
    check_splits(&rig_fixtures[1], odd);
}

static void test_pg2(void **state)
{
    check_splits(&rig_fixtures[2], pg2);
}

/* ---- tensor names ---- */

/* The other files of tiny beside the tensors of another naming layout: the same answer. */
static void test_names(void **state)
{
    static const char *const layouts[] = {"v4.52", "v5-saved"};
    static const char *const files[] = {"config.json", "generation_config.json", "preprocessor_config.json",
                                        "tokenizer.model"};
    struct golden golden;
    char model[64], from[512], to[512];
    char *here = realpath(RIG_DATA, NULL);

    assert_non_null(here);
    rig_golden_open(&golden, &rig_fixtures[0]);
    snprintf(model, sizeof model, "%s/model", rig_dir);
    for (size_t i = 0; i < sizeof layouts / sizeof layouts[0]; i++) {
        json_t *o;

        assert_int_equal(mkdir(model, 0700), 0);
        for (size_t k = 0; k < sizeof files / sizeof files[0]; k++) {
            snprintf(from, sizeof from, "%s/tiny/%s", here, files[k]);
            snprintf(to, sizeof to, "%s/%s", model, files[k]);
            assert_int_equal(symlink(from, to), 0);
        }
        snprintf(from, sizeof from, "%s/names/%s.safetensors", here, layouts[i]);
        snprintf(to, sizeof to, "%s/model.safetensors", model);
        assert_int_equal(symlink(from, to), 0);
        o = rig_run(layouts[i], (const char *[]){"run", "--json", "--model", model, "--image",
                                                 RIG_DATA "/tiny/images/scene_a.png", "--max-tokens", "24",
                                                 "--ignore-eos", "caption en", NULL});
        assert_true(json_equal(json_object_get(o, "ids"),
                               json_object_get(rig_case(&golden, "generate", 0), "tokens")));
        json_decref(o);
        for (size_t k = 0; k < sizeof files / sizeof files[0]; k++) {
            snprintf(to, sizeof to, "%s/%s", model, files[k]);
            unlink(to);
        }
        snprintf(to, sizeof to, "%s/model.safetensors", model);
        unlink(to);
        rmdir(model);
    }
    rig_golden_close(&golden);
    free(here);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tiny),
        cmocka_unit_test(test_odd),
        cmocka_unit_test(test_pg2),
        cmocka_unit_test(test_names),
    };
    return cmocka_run_group_tests(tests, rig_setup, rig_teardown);
}
