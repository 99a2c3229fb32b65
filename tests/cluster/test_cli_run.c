/* The whole way: the command line, its coordinator and workers on Vulkan, against the golden answers. That
 * every number is right is the golden tests' business; here it is that an answer comes out, and how it ends.
 */
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/cluster/cli_json.h"

#define TINY  "tests/golden/data/tiny"
#define SCENE TINY "/images/scene_a.png" /* the picture of case 0 of every kind */

static char run_dir[32]; /* XDG_RUNTIME_DIR: what is left in it was not cleaned up */
static json_t *golden;

static int setup(void **state)
{
    json_error_t why;

    strcpy(run_dir, "/tmp/espalier-test-XXXXXX");
    assert_non_null(mkdtemp(run_dir));
    setenv("XDG_RUNTIME_DIR", run_dir, 1);
    golden = json_load_file(TINY "/golden.json", 0, &why);
    assert_non_null(golden);
    return 0;
}

static int teardown(void **state)
{
    json_decref(golden);
    return rmdir(run_dir); /* fails where something is left */
}

static json_t *golden_case(const char *kind)
{
    return json_array_get(json_object_get(golden, kind), 0);
}

static const char *prefix_of(const json_t *one)
{
    return json_string_value(json_object_get(one, "prefix"));
}

static void test_greedy(void **state)
{
    static const char *const workers[] = {"1", "2", "3"};
    const json_t *want = golden_case("generate");
    char text[4096];

    snprintf(text, sizeof text, "%s\n", json_string_value(json_object_get(want, "text")));
    for (size_t i = 0; i < sizeof workers / sizeof workers[0]; i++) {
        struct child c;

        child_run(&c, ESPALIER,
                  (const char *[]){"run", "--model", TINY, "--image", SCENE, "--workers", workers[i],
                                   "--max-tokens", "24", "--ignore-eos", prefix_of(want), NULL});
        child_expect(&c, workers[i], 0, ": encoder 0", NULL); /* on whichever worker */
        assert_string_equal(OUT(&c), text);
        child_finish(&c);
    }
}

static void test_json_and_stdin(void **state)
{
    const json_t *want = golden_case("generate");
    struct child c;
    json_t *o;

    child_start(&c, ESPALIER, SCENE,
                (const char *[]){"run", "--model", TINY, "--image", "-", "--json", "--max-tokens", "24",
                                 "--ignore-eos", prefix_of(want), NULL});
    child_wait(&c, NULL);
    child_expect(&c, "json", 0, NULL, NULL);
    o = child_json(&c);
    assert_true(json_equal(json_object_get(o, "ids"), json_object_get(want, "tokens")));
    assert_int_equal(json_array_size(json_object_get(o, "logprobs")), 24);
    assert_int_equal(json_array_size(json_object_get(o, "stages")), 2);
    assert_int_equal(json_integer_value(json_object_get(o, "image_tokens")), 16);
    assert_string_equal(json_string_value(json_object_get(o, "finish")), "length");
    json_decref(o);
    child_finish(&c);
}

/* An answer whose beginning is given holds an object whatever the model makes of the rest: boxes and files, the whole way. */
static void test_objects(void **state)
{
    struct child c;
    char drawn[64];
    json_t *o;
    const json_t *first, *box;

    snprintf(drawn, sizeof drawn, "%s/drawn.png", run_dir);
    child_run(&c, ESPALIER,
              (const char *[]){"run", "--model", TINY, "--image", SCENE, "--json", "-o", drawn,
                               "--max-tokens", "2", "--suffix", "<loc0256><loc0512><loc0768><loc1023> cat ;",
                               "detect cat", NULL});
    child_expect(&c, "objects", 0, NULL, NULL);
    o = child_json(&c);
    first = json_array_get(json_object_get(o, "objects"), 0);
    box = json_object_get(first, "box");
    assert_string_equal(json_string_value(json_object_get(first, "label")), "cat");
    assert_true(json_real_value(json_array_get(box, 0)) == 97 * 256 / 1024.0);
    assert_true(json_real_value(json_array_get(box, 1)) == 133 * 512 / 1024.0);
    assert_int_equal(unlink(drawn), 0);
    json_decref(o);
    child_finish(&c);
}

static void test_beams(void **state)
{
    const json_t *want = golden_case("beam"), *best = json_array_get(json_object_get(want, "hypotheses"), 0);
    struct child c;
    json_t *o;

    child_run(&c, ESPALIER,
              (const char *[]){"run", "--model", TINY, "--image", SCENE, "--json", "--beams", "3",
                               "--length-penalty", "1", "--max-tokens", "12", prefix_of(want), NULL});
    child_expect(&c, "beams", 0, NULL, NULL);
    o = child_json(&c);
    assert_true(json_equal(json_object_get(o, "ids"), json_object_get(best, "tokens")));
    assert_true(fabs(json_real_value(json_object_get(o, "score")) -
                     json_real_value(json_object_get(best, "score"))) < 1e-4);
    assert_int_equal(json_array_size(json_object_get(o, "hypotheses")), 3);
    json_decref(o);
    child_finish(&c);
}

static void test_score(void **state)
{
    const json_t *want = golden_case("loglik");
    struct child c;
    json_t *o;

    child_run(&c, ESPALIER,
              (const char *[]){"score", "--model", TINY, "--image", SCENE, "--json", "--prompt",
                               prefix_of(want), "--suffix",
                               json_string_value(json_object_get(want, "suffix")), NULL});
    child_expect(&c, "score", 0, NULL, NULL);
    o = child_json(&c);
    assert_int_equal(json_array_size(json_object_get(o, "ids")),
                     json_integer_value(json_object_get(want, "suffix_tokens_with_eos")));
    assert_true(fabs(json_real_value(json_object_get(o, "sum")) -
                     json_real_value(json_object_get(want, "sum"))) < 4e-3); /* 18 tokens, 2e-4 each */
    json_decref(o);
    child_finish(&c);
}

/* Pictures that need more context than usual: nobody has to say so. */
static void test_many_pictures(void **state)
{
    const char *args[160] = {"run",          "--model", TINY,           "--json",
                             "--max-tokens", "3",       "--ignore-eos", "answer en what happens"};
    char suffix[1501] = "";
    size_t n = 8;
    struct child c;
    json_t *o;

    for (int i = 0; i < 60; i++) {
        args[n++] = "--image";
        args[n++] = i % 2 ? SCENE : TINY "/images/scene_b.png";
    }
    memset(suffix, '7', sizeof suffix - 1); /* each digit is a token: more than 2048 in all */
    args[n++] = "--suffix";
    args[n++] = suffix;
    child_run(&c, ESPALIER, args);
    child_expect(&c, "sixty pictures", 0, NULL, NULL);
    o = child_json(&c);
    assert_int_equal(json_integer_value(json_object_get(o, "image_tokens")), 960);
    assert_int_equal(json_array_size(json_object_get(o, "ids")), 3);
    json_decref(o);
    child_finish(&c);
}

static void test_failures(void **state)
{
    static const struct {
        const char *args[12], *err;
    } cases[] = {
        {{"run", "--model", TINY, "--device", "Voodoo", "--image", SCENE, "x"},
         "w0 ended with status 1; its last words"},
        {{"run", "--model", TINY, "--image", TINY "/config.json", "x"},
         TINY "/config.json: is neither a PNG nor"},
        {{"run", "--model", TINY, "--context", "20", "--image", SCENE, "x"}, "raise --context"},
        {{"run", "--model", TINY, "--split", "1/2,5/1", "--image", SCENE, "x"}, "must sum to 2/3"},
        {{"run", "--model", TINY, "--ban", "99999", "--image", SCENE, "x"}, "--ban: id 99999"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct child c;
        child_run(&c, ESPALIER, cases[i].args);
        child_expect(&c, cases[i].err, 1, cases[i].err, NULL);
        assert_string_equal(OUT(&c), "");
        child_finish(&c);
    }
}

/* ---- Ctrl-C ---- */

static void interrupt_when_told(struct script *s, struct child *c)
{
    bool *done = s->self;

    if (*done || c->n[0] == 0)
        return;
    assert_int_equal(child_n_daemons(run_dir), 3);
    *done = true;
    kill(c->pid, SIGINT);
}

static void test_interrupt(void **state)
{
    bool done = false;
    struct script script = {.self = &done, .printed = interrupt_when_told};
    struct child c;

    child_start(&c, ESPALIER, NULL,
                (const char *[]){"run", "--model", TINY, "--image", SCENE, "--ignore-eos", "--max-tokens",
                                 "20000", "caption en", NULL});
    child_wait(&c, &script);
    child_expect(&c, "Ctrl-C", 130, "espalier run: cancelled\n", NULL);
    assert_int_equal(child_n_daemons(run_dir), 0);
    child_finish(&c);
}

/* `up` says how to connect; a client does; Ctrl-C ends it well. */
static void connect_when_ready(struct script *s, struct child *c)
{
    const json_t *want = golden_case("generate");
    bool *done = s->self;
    struct child client;
    char endpoint[64];

    if (*done || sscanf(OUT(c), "ready: espalier run --connect %63s --image FILE PROMPT\n", endpoint) != 1)
        return;
    *done = true;
    child_run(&client, ESPALIER, (const char *[]){"cluster", "status", "--connect", endpoint, NULL});
    child_expect(&client, "status", 0, NULL, "ready, placement 1");
    child_finish(&client);
    child_run(&client, ESPALIER,
              (const char *[]){"run", "--connect", endpoint, "--image", SCENE, "--max-tokens", "2",
                               prefix_of(want), NULL});
    child_expect(&client, "run --connect", 0, "w1: ", " address");
    child_finish(&client);
    kill(c->pid, SIGINT);
}

static void test_up(void **state)
{
    bool done = false;
    struct script script = {.self = &done, .printed = connect_when_ready};
    char bind[64];
    struct child c;

    snprintf(bind, sizeof bind, "ipc://%s/up", run_dir);
    child_start(&c, ESPALIER, NULL, (const char *[]){"up", "--model", TINY, "--bind", bind, NULL});
    child_wait(&c, &script);
    child_expect(&c, "up", 0, NULL, NULL);
    assert_true(done);
    assert_int_equal(child_n_daemons(run_dir), 0);
    unlink(bind + strlen("ipc://"));
    child_finish(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_greedy),   cmocka_unit_test(test_json_and_stdin),
        cmocka_unit_test(test_objects),  cmocka_unit_test(test_beams),
        cmocka_unit_test(test_score),    cmocka_unit_test(test_many_pictures),
        cmocka_unit_test(test_failures), cmocka_unit_test(test_interrupt),
        cmocka_unit_test(test_up),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
