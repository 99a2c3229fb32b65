/* espalier bench on the small shape: it completes, and what can be known beforehand is as known. Nothing here depends on how
 * long anything takes. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/cluster/cli_json.h"

/* model/preset.c: toy */
#define TOKENS    16 /* of the picture */
#define WIDTH     64
#define LAYERS    3
#define QKV       (192 * 64)
#define PRODUCTS  (QKV + 64 * 128 + 320 * 64 + 64 * 160) /* weights of a decoder layer */
#define TABLE     (1024 * 64)
#define HEAD_DIMS (4 * 32) /* query heads */
#define KV_FLOATS (2 * 32) /* of a position in a layer */
#define STEPS     6
#define PROMPT    5

static const json_t *at(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);

    if (!v)
        fail_msg("no %s", key);
    return v;
}

static double positive(const json_t *o, const char *key)
{
    const double v = json_number(o, key);

    if (!(v > 0))
        fail_msg("%s: %g", key, v);
    return v;
}

static void close_to(double got, double want, const char *what)
{
    if (!(fabs(got - want) <= 1e-6 * fabs(want)))
        fail_msg("%s: %.9g, expected %.9g", what, got, want);
}

static void check_stats(const json_t *s, size_t n)
{
    assert_int_equal(json_number(s, "n"), n);
    assert_true(positive(s, "min") <= json_number(s, "q1") &&
                json_number(s, "q1") <= json_number(s, "median"));
    assert_true(json_number(s, "median") <= json_number(s, "q3") &&
                json_number(s, "q3") <= json_number(s, "max"));
}

/* What n sequences must read and compute at least in a step of decoding, in the middle of the steps. */
static void check_decode_work(const json_t *p, uint32_t n)
{
    const double ctx = TOKENS + PROMPT + 1 + 2 + 0.5 * (STEPS + 1);
    const double bytes = 2.0 * (LAYERS * PRODUCTS + TABLE) + LAYERS * KV_FLOATS * 4.0 * ctx * n;
    const double flop = 2.0 * n * (LAYERS * PRODUCTS + TABLE) + 4.0 * HEAD_DIMS * LAYERS * ctx * n;

    close_to(json_number(p, "bytes"), bytes, "bytes");
    close_to(json_number(p, "flop"), flop, "flop");
}

/* Kernels of a decoding phase: every weight is read once a run, by whatever kernels there are. */
static void check_kernels(const json_t *p, uint32_t n)
{
    const json_t *kernels = at(p, "kernels"), *k;
    const double runs = positive(p, "profiled");
    double share = 0, bytes = 0, flop = 0;
    size_t i;

    assert_true(json_array_size(kernels) > 3);
    json_array_foreach(kernels, i, k)
    {
        positive(k, "calls");
        share += json_number(k, "share");
        if (json_number(k, "n") > 0) {
            bytes += json_number(k, "bytes") / runs;
            flop += json_number(k, "flop") / runs;
        }
    }
    close_to(share, 1, "shares");
    close_to(bytes, 2.0 * (LAYERS * PRODUCTS + TABLE), "bytes of weights");
    close_to(flop, 2.0 * n * (LAYERS * PRODUCTS + TABLE), "flop of products");
}

static void test_device(void **state)
{
    static const uint32_t batch[] = {1, 3};
    struct child c;
    json_t *o;
    const json_t *r, *phases, *p;

    child_run(&c, ESPALIER,
              (const char *[]){"bench", "--shape", "toy", "--prompt", "5", "--batch", "1,3", "--steps", "6",
                               "--repeats", "3", "--profile", "--json", NULL});
    child_expect(&c, "bench", 0, NULL, NULL);
    o = child_json(&c);
    assert_true(json_is_null(at(o, "cluster")));
    assert_int_equal(json_array_size(at(o, "devices")), 1);
    r = json_array_get(at(o, "devices"), 0);
    assert_string_equal(json_string_value(at(r, "model")), "shape:toy");
    assert_true(json_is_true(at(r, "made")));
    assert_int_equal(json_number(r, "prefix"), TOKENS + PROMPT);
    positive(at(r, "ceilings"), "read_rate");
    positive(at(r, "ceilings"), "flop_rate");
    positive(at(r, "load"), "seconds");
    positive(at(r, "load"), "bytes");
    phases = at(r, "phases");
    assert_int_equal(json_array_size(phases), 4);
    for (size_t i = 0; i < 4; i++) {
        static const char *const names[] = {"encode", "prefill", "decode", "decode"};
        p = json_array_get(phases, i);
        assert_string_equal(json_string_value(at(p, "phase")), names[i]);
        check_stats(at(p, "time"), i < 2 ? 3 : STEPS);
        positive(p, "rate");
        positive(p, "read_rate");
        positive(p, "roofline");
        if (i < 2)
            continue;
        assert_int_equal(json_number(p, "batch"), batch[i - 2]);
        check_decode_work(p, batch[i - 2]);
        check_kernels(p, batch[i - 2]);
    }
    close_to(json_number(r, "first_token"),
             json_number(at(json_array_get(phases, 0), "time"), "median") +
                 json_number(at(json_array_get(phases, 1), "time"), "median"),
             "first token");
    json_decref(o);
    child_finish(&c);
}

/* Only what is asked for, of a part of the model, as a table and a picture. */
static void test_part(void **state)
{
    char plot[] = "/tmp/espalier-bench-XXXXXX.png", signature[8] = "";
    const int fd = mkstemps(plot, 4);
    struct child c;
    FILE *f;

    assert_true(fd >= 0);
    close(fd);
    child_run(&c, ESPALIER,
              (const char *[]){"bench", "--shape", "toy", "--layers", "2/1", "--phases", "decode", "--batch",
                               "2", "--steps", "2", "--plot", plot, NULL});
    child_expect(&c, "a part", 0, NULL, "0 of 2 encoder layers, 1 of 3 decoder layers");
    child_expect(&c, "a part", 0, NULL, "decode, 2 at once");
    assert_null(strstr(OUT(&c), "prefill"));
    f = fopen(plot, "rb");
    assert_non_null(f);
    assert_int_equal(fread(signature, 1, 8, f), 8);
    assert_memory_equal(signature, "\x89PNG\r\n\x1a\n", 8);
    fclose(f);
    unlink(plot);
    child_finish(&c);
}

/* A checkpoint with files, and a part of it. */
static void test_model(void **state)
{
    struct child c;
    json_t *o;
    const json_t *r;

    child_run(&c, ESPALIER,
              (const char *[]){"bench", "--model", "tests/golden/data/tiny", "--layers", "1/1", "--batch",
                               "1", "--steps", "2", "--repeats", "1", "--json", NULL});
    child_expect(&c, "a model", 0, NULL, NULL);
    o = child_json(&c);
    r = json_array_get(at(o, "devices"), 0);
    assert_true(json_is_false(at(r, "made")));
    assert_int_equal(json_integer_value(json_array_get(at(r, "layers"), 1)), 1);
    assert_true(json_integer_value(json_array_get(at(r, "of_layers"), 1)) > 1);
    json_decref(o);
    child_finish(&c);
}

/* Quantised: a block of 32 weights is 32 or 16 bytes and two of a scale; what must be read is counted as it is packed.
 * In q4, the table and Q, K and V are q8. */
static void test_weights(void **state)
{
    static const struct {
        const char *type;
        double bytes; /* a weight; the table's, and those of Q, K and V, in q8 */
    } cases[] = {{"q8", 34.0 / 32}, {"q4", 18.0 / 32}};
    const double q8 = 34.0 / 32;

    for (size_t i = 0; i < 2; i++) {
        const double ctx = TOKENS + PROMPT + 1 + 2 + 0.5 * (STEPS + 1);
        struct child c;
        json_t *o;
        const json_t *r;

        child_run(&c, ESPALIER,
                  (const char *[]){"bench", "--shape", "toy", "--weights", cases[i].type, "--phases",
                                   "decode", "--prompt", "5", "--batch", "1", "--steps", "6", "--json",
                                   NULL});
        child_expect(&c, cases[i].type, 0, NULL, NULL);
        o = child_json(&c);
        r = json_array_get(at(o, "devices"), 0);
        assert_string_equal(json_string_value(at(r, "weights")), cases[i].type);
        close_to(json_number(json_array_get(at(r, "phases"), 0), "bytes"),
                 q8 * (LAYERS * QKV + TABLE) + cases[i].bytes * LAYERS * (PRODUCTS - QKV) +
                     LAYERS * KV_FLOATS * 4.0 * ctx,
                 "bytes");
        json_decref(o);
        child_finish(&c);
    }
}

/* Two workers: what comes over the wire is counted to the byte, headers included. */
static void test_cluster(void **state)
{
    struct child c;
    json_t *o;
    const json_t *r, *hop, *stages, *decode;
    double bytes, compute = 0;

    child_run(&c, ESPALIER,
              (const char *[]){"bench", "--shape", "toy", "--workers", "2", "--split", "1/1,1/2", "--batch",
                               "1,3", "--steps", "6", "--repeats", "2", "--prompt", "5", "--json", NULL});
    child_expect(&c, "a cluster", 0, NULL, NULL);
    o = child_json(&c);
    assert_int_equal(json_array_size(at(o, "devices")), 0);
    r = at(o, "cluster");
    positive(r, "load");
    assert_int_equal(json_number(r, "image_tokens"), TOKENS);
    assert_int_equal(json_number(r, "prefix"),
                     TOKENS + 1 + PROMPT + 1); /* BOS, a byte a token, the separator */
    check_stats(at(at(r, "request"), "first_token"), 2);
    check_stats(at(at(r, "request"), "encode"), 2);
    check_stats(at(at(r, "request"), "prefill"), 2);
    decode = at(r, "decode");
    assert_int_equal(json_array_size(decode), 2);
    check_stats(at(json_array_get(decode, 0), "interval"), STEPS);
    assert_true(json_number(json_array_get(decode, 1), "tokens") >= 3);
    positive(json_array_get(decode, 1), "tokens_per_second");

    stages = at(r, "stages");
    assert_int_equal(json_array_size(stages), 2);
    hop = at(r, "hop");
    assert_int_equal(json_number(hop, "steps"), STEPS);
    assert_int_equal(json_number(hop, "hops"), 3); /* to the first, between them, and back */
    bytes = json_number(hop, "result_bytes");
    for (size_t i = 0; i < 2; i++) {
        const json_t *s = json_array_get(stages, i);
        const bool first = json_integer_value(json_array_get(at(s, "decoder"), 0)) == 0;
        /* a token, or a row of float32; the header around it is some dozens of bytes */
        const double payload = first ? 4 : 4 * WIDTH;

        assert_true(json_number(s, "decode_bytes") > payload + 10 &&
                    json_number(s, "decode_bytes") < payload + 200);
        bytes += json_number(s, "decode_bytes");
        compute += positive(s, "decode_compute");
    }
    close_to(json_number(hop, "bytes"), bytes, "bytes of a token");
    close_to(json_number(hop, "compute"), compute, "compute");
    assert_true(json_number(hop, "token") > compute);
    /* pixels, rows between encoder stages, features and the prompt's rows at least */
    assert_true(json_number(at(at(r, "request"), "bytes"), "median") > 4 * (3 * 56 * 56 + 16 * 48 + 23 * 64));
    json_decref(o);
    child_finish(&c);
}

static void test_bad(void **state)
{
    static const struct {
        const char *label, *args[10], *says;
        int exit;
    } cases[] = {
        {"shape", {"bench", "--shape", "tiny"}, "there are paligemma-3b-224", 1},
        {"phase", {"bench", "--phases", "encode,walk"}, "--phases walk: takes encode, prefill and decode", 2},
        {"layers", {"bench", "--layers", "3"}, "--layers 3: takes V/T", 2},
        {"none", {"bench", "--layers", "0/1"}, "--layers 0/1: takes V/T", 2},
        {"too many",
         {"bench", "--model", "tests/golden/data/tiny", "--layers", "99/1"},
         "of a model with",
         1},
        {"batch", {"bench", "--batch", "0"}, "--batch", 2},
        {"weights", {"bench", "--weights", "q5"}, "--weights: 'q5', takes stored", 2},
        {"two models", {"bench", "--shape", "toy", "--model", "x"}, "give one", 2},
        {"profile",
         {"bench", "--shape", "toy", "--workers", "2", "--profile"},
         "--profile is of a device alone",
         2},
        {"connect",
         {"bench", "--shape", "toy", "--connect", "ipc:///nowhere"},
         "--shape is for what is started here",
         2},
        {"cut",
         {"bench", "--model", "tests/golden/data/tiny", "--layers", "1/1", "--workers", "2"},
         "--layers cuts",
         2},
        {"device", {"bench", "--shape", "toy", "--device", "no such device"}, "could not be measured", 1},
        {"plot", {"bench", "--shape", "toy", "--plot", "/nowhere/a.png"}, "/nowhere/a.png", 1},
        {"memory", {"bench", "--shape", "paligemma-3b-224", "--memory", "8"}, "MiB", 1},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct child c;

        child_run(&c, ESPALIER, cases[i].args);
        child_expect(&c, cases[i].label, cases[i].exit, cases[i].says, NULL);
        child_finish(&c);
    }
}

/* What a worker is told to run is checked before anything is opened. */
static void test_bad_what(void **state)
{
    static const struct {
        const char *what, *says;
    } cases[] = {
        {"", "takes a JSON object"},
        {"[]", "takes a JSON object"},
        {"{\"batch\": [1], \"batch\": [2]}", "takes a JSON object"},
        {"{\"walk\": true}", "walk: no such field"},
        {"{\"encode\": 1}", "encode: takes true or false"},
        {"{\"batch\": 1}", "batch: takes a list"},
        {"{\"batch\": [0]}", "batch: takes a list"},
        {"{\"batch\": [257]}", "batch: takes a list"},
        {"{\"batch\": [1.5]}", "batch: takes a list"},
        {"{\"batch\": [1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]}", "batch: takes a list"},
        {"{\"layers\": [1]}", "layers: takes two numbers"},
        {"{\"layers\": [0, 1]}", "layers: takes two numbers"},
        {"{\"layers\": [9, 1]}", "layers of a model with"},
        {"{\"weights\": \"q5\"}", "weights: takes stored"},
        {"{\"prompt\": 0}", "prompt: takes 1 to 32768"},
        {"{\"repeats\": -1}", "repeats: takes 1 to 1000"},
        {"{\"steps\": 18446744073709551616}", "takes a JSON object"},
        {"{\"encode\": false, \"prefill\": false, \"batch\": []}", "nothing to run"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct child c;

        child_run(&c, WORKER, (const char *[]){"--bench", cases[i].what, "--model", "shape:toy", NULL});
        child_expect(&c, cases[i].what, 1, cases[i].says, NULL);
        child_finish(&c);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_device),   cmocka_unit_test(test_part),    cmocka_unit_test(test_model),
        cmocka_unit_test(test_weights),  cmocka_unit_test(test_cluster), cmocka_unit_test(test_bad),
        cmocka_unit_test(test_bad_what),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
