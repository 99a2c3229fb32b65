/* espalier compare, with real clusters of one worker on a small model: what weights cost where something is known of it
 * beforehand, and what is said of arguments, files and models that do not do. */
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

#include "proto/clock.h"
#include "tests/cluster/cli_json.h"
#include "tests/support/temp.h"

#define TINY     "tests/golden/data/tiny"
#define OTHER    "models/tiny" /* of another shape */
#define N_VISION 2
#define N_TEXT   3

struct rig {
    char dir[32], set[64], made[64];
};

static int setup(void **state)
{
    static struct rig r;
    char cwd[4096];
    FILE *file;

    assert_true(esp_temp_make(r.dir, sizeof r.dir) == 0 && getcwd(cwd, sizeof cwd));
    snprintf(r.set, sizeof r.set, "%s/set.jsonl", r.dir);
    snprintf(r.made, sizeof r.made, "%s/q8", r.dir);
    file = fopen(r.set, "w");
    assert_non_null(file);
    for (int i = 0; i < 2; i++)
        fprintf(file,
                "{\"image\": \"%s/" TINY
                "/images/scene_%c.png\", \"prompt\": \"caption en\", \"answer\": \"%s\"}\n",
                cwd, "ab"[i], i ? "two cats" : "a red ball on the floor");
    assert_int_equal(fclose(file), 0);
    *state = &r;
    return setenv("XDG_RUNTIME_DIR", r.dir, 1) || setenv("ESPALIER_PACKED", "off", 1) ||
           setenv("TMPDIR", r.dir, 1);
}

static int teardown(void **state)
{
    struct rig *r = *state;

    return esp_temp_remove(r->dir);
}

static void compare(struct child *c, const struct rig *r, const char *const *args)
{
    const char *all[32] = {"compare", "--model", TINY, "--workers", "1", "--data", r->set};
    size_t n = 7;

    for (size_t i = 0; args[i]; i++)
        all[n++] = args[i];
    all[n] = NULL;
    child_run(c, ESPALIER, all);
}

/* ---- what is measured ---- */

/* The error of a layer, or of what comes before and behind them. */
static void check_layer(const json_t *layers, const char *name, double least, double most)
{
    const double error = json_number(layers, name);

    if (!(error >= least && error <= most))
        fail_msg("%s: %g, expected %g to %g", name, error, least, most);
}

static void check_layers(const json_t *o, double least, double most)
{
    const json_t *layers = json_object_get(o, "layers");
    char name[32];

    for (uint32_t i = 0; i < N_VISION; i++) {
        snprintf(name, sizeof name, "vision.layer.%u", i);
        check_layer(layers, name, least, most);
    }
    check_layer(layers, "vision.projector", least, most);
    for (uint32_t i = 0; i < N_TEXT; i++) {
        snprintf(name, sizeof name, "prefill.layer.%u", i);
        check_layer(layers, name, least, most);
    }
    check_layer(layers, "prefill.logits", least, most);
}

/* 8 bits are off by half a percent of a weight, and these weights are random: not nothing, and not much. */
static void test_q8(void **state)
{
    struct child c;
    json_t *o;

    compare(&c, *state, (const char *[]){"--base", "f32", "--weights", "q8", "--json", NULL});
    child_expect(&c, "q8", 0, NULL, NULL);
    assert_string_equal(ERR(&c), "");
    o = child_json(&c);
    assert_int_equal(json_number(o, "examples"), 2);
    assert_true(json_number(o, "tokens") > 4); /* of both answers, and their ends */
    assert_true(json_number(o, "kl_mean") > 0 && json_number(o, "kl_mean") < 0.05);
    assert_true(json_number(o, "kl_median") >= 0 && json_number(o, "kl_median") <= json_number(o, "kl_p99"));
    assert_true(json_number(o, "kl_p99") <= json_number(o, "kl_max") &&
                json_number(o, "kl_mean") <= json_number(o, "kl_max"));
    assert_true(json_number(o, "same_token") >= 0.5 && json_number(o, "same_token") <= 1);
    check_layers(o, 1e-5, 0.1);
    json_decref(o);
    child_finish(&c);
}

/* A model is no way from itself, to the last bit. */
static void test_itself(void **state)
{
    struct child c;

    compare(&c, *state, (const char *[]){"--weights", "bf16", "--limit", "1", NULL});
    child_expect(&c, "itself", 0, NULL, "prefill.layer.2              0.000000\n");
    child_expect(&c, "itself", 0, NULL,
                 "tokens of 1 answers: KL mean 0, median 0, 99 % below 0, largest 0 nats\n");
    child_expect(&c, "itself", 0, NULL, "same most likely token: 100.00 %\n");
    child_finish(&c);
}

/* What quantize writes is what --weights makes at load. */
static void test_other_model(void **state)
{
    struct rig *r = *state;
    struct child c;
    json_t *o;

    child_run(&c, ESPALIER,
              (const char *[]){"quantize", "--model", TINY, "--out", r->made, "--weights", "q8", NULL});
    child_expect(&c, "quantize", 0, NULL, NULL);
    child_finish(&c);
    compare(&c, r,
            (const char *[]){"--base", "q8", "--other-model", r->made, "--limit", "1", "--json", NULL});
    child_expect(&c, "quantised ahead", 0, NULL, NULL);
    o = child_json(&c);
    assert_true(json_number(o, "kl_max") == 0 && json_number(o, "same_token") == 1);
    check_layers(o, 0, 0);
    json_decref(o);
    child_finish(&c);
}

/* ---- what goes wrong ---- */

static void test_usage(void **state)
{
    static const struct {
        const char *args[12], *err;
    } cases[] = {
        {{"compare", "--model", TINY, "--weights", "q8"}, "give --data FILE"},
        {{"compare", "--data", "x", "--weights", "q8"}, "give --model DIR"},
        {{"compare", "--model", TINY, "--data", "x"}, "Give --weights TYPE, --other-model DIR, or both"},
        {{"compare", "--model", TINY, "--data", "x", "--weights", "q3"}, "--weights: 'q3'"},
        {{"compare", "--model", TINY, "--data", "x", "--weights", "q8", "--base", "int8"}, "--base: 'int8'"},
        {{"compare", "--model", TINY, "--data", "x", "--weights", "q8", "--limit", "0"}, "--limit 0"},
        {{"compare", "--model", TINY, "--data", "x", "--weights"}, "--weights needs a value"},
        {{"compare", "--connect", "ipc:///x", "--data", "x", "--weights", "q8"}, "no option --connect"},
        {{"compare", "--model", TINY, "--data", "x", "--weights", "q8", "--trace", "x"}, "no option --trace"},
        {{"compare", "--model", TINY, "--data", "x", "--weights", "q8", "y"}, "what is 'y'?"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct child c;

        child_run(&c, ESPALIER, cases[i].args);
        child_expect(&c, cases[i].err, 2, cases[i].err, "");
        child_expect(&c, cases[i].err, 2, "Try 'espalier compare --help'.", "");
        child_finish(&c);
    }
}

static void test_help(void **state)
{
    static const char *const options[] = {"--data FILE", "--limit N",      "--base TYPE", "--other-model DIR",
                                          "--json",      "--weights TYPE", "--model DIR", "--workers N"};
    struct child c;

    (void)state;
    child_run(&c, ESPALIER, (const char *[]){"compare", "--help", NULL});
    for (size_t i = 0; i < sizeof options / sizeof options[0]; i++)
        child_expect(&c, "help", 0, "", options[i]);
    assert_null(strstr(OUT(&c), "--connect"));
    child_finish(&c);
}

/* Files and models that do not do are told before anything is started. */
static void test_missing(void **state)
{
    static const struct {
        const char *args[6], *err;
    } cases[] = {
        {{"--weights", "q8", "--data", "none.jsonl"}, "none.jsonl: No such file or directory"},
        {{"--weights", "q8", "--model", "none"}, "--model none: No such file or directory"},
        {{"--other-model", "none"}, "--other-model none: No such file or directory"},
        {{"--other-model", OTHER}, "--other-model " OTHER ": not of the shape of " TINY},
    };
    struct rig *r = *state;
    struct child c;
    FILE *file;

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        compare(&c, r, cases[i].args);
        child_expect(&c, cases[i].err, 1, cases[i].err, "");
        child_finish(&c);
    }
    setenv("TMPDIR", "/proc/none", 1);
    compare(&c, r, (const char *[]){"--weights", "q8", NULL});
    child_expect(&c, "TMPDIR", 1, "a temporary file in /proc/none: No such file or directory", "");
    child_finish(&c);
    file = fopen(r->set, "a");
    assert_true(file && fputs("{\"image\": \"none.png\", \"prompt\": \"x\", \"answer\": \"\"}\n", file) >= 0);
    fclose(file);
    compare(&c, r, (const char *[]){"--weights", "q8", NULL});
    child_expect(&c, "no picture", 1, "set.jsonl:3: image: ", "");
    child_finish(&c);
}

static unsigned n_times(const char *text, const char *part)
{
    unsigned n = 0;

    while ((text = strstr(text, part)) != NULL) {
        n++;
        text += strlen(part);
    }
    return n;
}

/* Ctrl-C while the first cluster starts, and while the second one does: nothing of either is left. */
static void test_interrupted(void **state)
{
    const struct rig *r = *state;

    for (unsigned nth = 1; nth <= 2; nth++) {
        struct child c;

        child_start_on_terminal(&c, ESPALIER,
                                (const char *[]){"compare", "--model", TINY, "--workers", "1", "--data",
                                                 r->set, "--weights", "q8", "--limit", "1", NULL});
        while (!child_over(&c) && n_times(ERR(&c), "starting 1 worker") < nth) {
            if (esp_now_ms() - c.started_ms > ESP_PATIENCE_MS) {
                kill(c.pid, SIGKILL);
                fail_msg("start number %u does not come:\n%s", nth, ERR(&c));
            }
            usleep(2000);
        }
        if (c.pid == 0)
            fail_msg("it ended before start number %u:\n%s", nth, ERR(&c));
        kill(c.pid, SIGINT);
        child_wait(&c, NULL);
        child_expect(&c, "Ctrl-C", 130, "espalier compare: cancelled", "");
        assert_int_equal(n_times(ERR(&c), "KL mean"), 0);
        child_finish(&c);
        child_no_daemons(r->dir);
    }
}

#define TEST(t) cmocka_unit_test_setup_teardown(t, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_q8),   TEST(test_itself),  TEST(test_other_model), TEST(test_usage),
        TEST(test_help), TEST(test_missing), TEST(test_interrupted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
