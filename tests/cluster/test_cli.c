/* The command line by itself: usage, errors before anything starts, tokenize. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "tests/cluster/cli_child.h"

#define TINY   "tests/golden/data/tiny"
#define SCENE  TINY "/images/scene_a.png"
#define CASES  "tests/golden/data/tokenizer/tokenizer_cases.json"
#define RUN    "run", "--model", TINY
#define SCORED "score", "--model", TINY, "--prompt", "p"

struct usage_case {
    const char *args[16];
    int exit;
    const char *err; /* a part of stderr */
};

static const struct usage_case bad_usage[] = {
    /* what is asked for at all */
    {{NULL}, 2, "Usage: espalier COMMAND"},
    {{"frobnicate"}, 2, "there is no command 'frobnicate'"},
    {{"help", "frobnicate"}, 2, "there is no command 'frobnicate'"},
    {{"devices", "all"}, 2, "'all'"},
    {{"up", "now"}, 2, "'now'"},
    /* options */
    {{RUN, "--frob", "caption"}, 2, "there is no option --frob"},
    {{RUN, "--image"}, 2, "--image needs a value"},
    {{RUN, "-x", "caption"}, 2, "there is no option -x"},
    {{RUN, "--json=yes", "caption"}, 2, "--json takes no value"},
    {{RUN, "-n"}, 2, "-n needs a value"},
    /* values */
    {{RUN, "--top-p", "1.5", "caption"}, 2, "--top-p 1.5: expected a number from 0 to 1"},
    {{RUN, "--top-p=nan", "caption"}, 2, "--top-p nan: expected a number from 0 to 1"},
    {{RUN, "--temperature", "-1", "caption"}, 2, "--temperature -1: expected a number from 0 to 100"},
    {{RUN, "--temperature", "0x1", "caption"}, 2, "--temperature 0x1"},
    {{RUN, "--temperature", "1e999", "caption"}, 2, "--temperature 1e999"},
    {{RUN, "--temperature", "", "caption"}, 2, "--temperature"},
    {{RUN, "--max-tokens", "0", "caption"}, 2, "--max-tokens 0: expected a whole number from 1 to 1048576"},
    {{RUN, "--max-tokens", "3.5", "caption"}, 2, "--max-tokens 3.5"},
    {{RUN, "--max-tokens", "99999999999999999999", "caption"}, 2, "--max-tokens 99999999999999999999"},
    {{RUN, "--max-tokens", "+3", "caption"}, 2, "--max-tokens +3"},
    {{RUN, "--seed", "18446744073709551616", "caption"}, 2, "--seed 18446744073709551616: expected"},
    {{RUN, "--seed", "-1", "caption"}, 2, "--seed -1"},
    {{RUN, "--beams", "129", "caption"}, 2, "--beams 129: expected a whole number from 1 to 128"},
    {{RUN, "--ban", "1,,2", "caption"}, 2, "--ban: '' is not a whole number"},
    {{RUN, "--ban", "1,two", "caption"}, 2, "--ban: 'two' is not a whole number"},
    {{RUN, "--eos", "4294967296", "caption"}, 2, "--eos 4294967296"},
    {{RUN, "--workers", "0", "caption"}, 2, "--workers 0: expected a whole number from 1 to 64"},
    {{RUN, "--device", "0,,1", "caption"}, 2, "--device 0,,1: an item of the list is empty"},
    /* combinations */
    {{RUN, "--beams", "3", "--temperature", "1", "caption"}, 2, "--beams does not sample"},
    {{RUN, "--beams", "3", "--top-k", "5", "caption"}, 2, "leave out --top-k"},
    {{RUN, "--beams", "3", "--best-of", "2", "caption"}, 2, "exclude each other"},
    {{RUN, "--length-penalty", "1", "caption"}, 2, "--length-penalty is a rule of beam search"},
    {{RUN, "--top-p", "0.5", "caption"}, 2, "--top-p has no effect without --temperature"},
    {{RUN, "--best-of", "4", "caption"}, 2, "--best-of without --temperature"},
    {{RUN, "--eos", "1", "--ignore-eos", "caption"}, 2, "exclude each other"},
    {{"run", "--connect", "ipc:///x", "--workers", "2", "caption"},
     2,
     "--workers is for a cluster started here"},
    {{RUN, "--patience", "5", "caption"}, 2, "--patience goes with --connect"},
    {{"run", "--connect", "ipc:///x", "--device", "0", "caption"},
     2,
     "--device is for a cluster started here"},
    /* prompts, pictures, models */
    {{"run", "caption"}, 2, "no model: give --model DIR"},
    {{RUN}, 2, "no prompt"},
    {{RUN, "caption", "en"}, 2, "one prompt, not 2"},
    {{RUN, "--", "--json", "x"}, 2, "one prompt, not 2"},
    {{RUN, "--image", "-", "-"}, 2, "standard input (-) can be read once only"},
    {{"score", "--model", TINY, "--suffix", "s"}, 2, "one prompt is needed"},
    {{SCORED, "q", "--suffix", "s"}, 2, "one prompt is needed"},
    {{SCORED}, 2, "nothing to score: give --suffix"},
    {{SCORED, "--suffix", "", "--no-eos"}, 2, "nothing to score: --suffix is empty"},
    {{"tokenize", "--model", TINY}, 2, "one text is needed"},
    {{"tokenize", "--model", TINY, "--decode", "1", "text"}, 2, "--decode takes no text"},
    {{"tokenize", "text"}, 2, "no model"},
    {{"up"}, 2, "no model"},
    {{"up", "--model", TINY, "--connect", "x"}, 2, "there is no option --connect"},
    {{"up", "--model", TINY, "--bind", "tcp://0.0.0.0:5550"}, 2, "add --insecure"},
};

static const struct usage_case failures[] = {
    {{RUN, "--image", "no/such.png", "caption"}, 1, "espalier run: no/such.png: No such file"},
    {{RUN, "--image", "tests", "caption"}, 1, "tests: not a regular file"},
    {{RUN, "--image", "/dev/null", "caption"}, 1, "/dev/null: not a regular file"},
    {{"run", "--model", "no/such", "caption"}, 1, "no/such"},
    {{"run", "--model", "tests", "caption"}, 1, "tests/config.json"},
    {{RUN, "\xff"}, 1, "the prompt is not UTF-8"},
    {{RUN, "--suffix", "\xc0\x80", "caption"}, 1, "the suffix is not UTF-8"},
    {{"tokenize", "--model", "tests", "x"}, 1, "tests/tokenizer.model"},
    {{"up", "--model", TINY, "--bind", "tcp://127.0.0.1:*"}, 1, "a port from 1 to 65535"},
    {{"cluster", "status", "--connect", "ipc:///nowhere/at/all", "--timeout", "1"},
     1,
     "is a coordinator running"},
    {{"cluster", "status", "--connect", "carrier-pigeon://x"}, 1, "carrier-pigeon://x"},
};

static void check_table(const struct usage_case *cases, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        struct child c;
        char label[256] = "espalier";

        for (size_t k = 0; cases[i].args[k] && strlen(label) < 200; k++)
            snprintf(label + strlen(label), sizeof label - strlen(label), " %.30s", cases[i].args[k]);
        child_run(&c, ESPALIER, cases[i].args);
        child_expect(&c, label, cases[i].exit, cases[i].err, NULL);
        assert_string_equal(OUT(&c), "");
        child_finish(&c);
    }
}

static void test_bad_usage(void **state)
{
    check_table(bad_usage, sizeof bad_usage / sizeof bad_usage[0]);
}

static void test_failures(void **state)
{
    check_table(failures, sizeof failures / sizeof failures[0]);
}

static void test_picture_files(void **state)
{
    char dir[] = "/tmp/espalier-test-XXXXXX", path[64];
    struct child c;
    FILE *f;

    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/picture.png", dir);
    f = fopen(path, "wb");
    assert_non_null(f);
    child_run(&c, ESPALIER, (const char *[]){RUN, "--image", path, "caption", NULL});
    child_expect(&c, "an empty picture", 1, "picture.png: empty", NULL);
    child_finish(&c);
    assert_int_equal(ftruncate(fileno(f), (off_t)ESP_MAX_IMAGE_FILE + 1), 0);
    child_run(&c, ESPALIER, (const char *[]){RUN, "--image", path, "caption", NULL});
    child_expect(&c, "a huge picture", 1, "picture.png: 67108865 bytes; a picture may have 67108864", NULL);
    child_finish(&c);
    fclose(f);
    unlink(path);
    assert_int_equal(mkfifo(path, 0600), 0);
    child_run(&c, ESPALIER, (const char *[]){RUN, "--image", path, "caption", NULL});
    child_expect(&c, "a FIFO without a writer", 1, "picture.png: not a regular file", NULL);
    child_finish(&c);
    unlink(path);
    rmdir(dir);
}

static void test_help(void **state)
{
    static const char *const commands[] = {"run",     "chat",   "score",    "up",
                                           "cluster", "verify", "tokenize", "devices"};
    struct child c, d;
    char usage[64];

    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
        snprintf(usage, sizeof usage, "Usage: espalier %s ", commands[i]);
        child_run(&c, ESPALIER, (const char *[]){commands[i], "--help", NULL});
        child_expect(&c, commands[i], 0, NULL, usage);
        child_expect(&c, commands[i], 0, NULL, "\nExamples\n  espalier ");
        child_run(&d, ESPALIER, (const char *[]){"help", commands[i], NULL});
        assert_string_equal(OUT(&c), OUT(&d));
        child_finish(&c);
        child_finish(&d);
        child_run(&c, ESPALIER, (const char *[]){"--help", NULL});
        child_expect(&c, "--help", 0, NULL, commands[i]);
        child_finish(&c);
    }
    child_run(&c, ESPALIER, (const char *[]){"--version", NULL});
    child_expect(&c, "--version", 0, NULL, "espalier " ESP_VERSION "\n");
    child_finish(&c);
}

/* ---- tokenize ---- */

static json_t *cases(const char *key)
{
    static json_t *root;
    json_error_t why;

    if (!root)
        root = json_load_file(CASES, JSON_ALLOW_NUL, &why);
    assert_non_null(root);
    return json_object_get(root, key);
}

static void expect_json(const char *const *args, const json_t *want)
{
    struct child c;
    json_error_t why;
    json_t *got;

    child_run(&c, ESPALIER, args);
    child_expect(&c, args[4], 0, NULL, NULL);
    got = json_loads(OUT(&c), JSON_DECODE_ANY, &why);
    if (!json_equal(got, want))
        fail_msg("tokenize %s %s: %s", args[4], args[5] ? args[5] : "", OUT(&c));
    json_decref(got);
    child_finish(&c);
}

/* Every ninth case: all of them are the tokenizer's own test, here it is the way in and out. */
static void test_tokenize(void **state)
{
    json_t *one;
    size_t i;

    json_array_foreach(cases("encode"), i, one)
    {
        const json_t *text = json_object_get(one, "text");
        if (i % 9 == 0 && strlen(json_string_value(text)) == json_string_length(text))
            expect_json(
                (const char *[]){"tokenize", "--model", TINY, "--json", "--", json_string_value(text), NULL},
                json_object_get(one, "ids"));
    }
    json_array_foreach(cases("prompts"), i, one)
        expect_json((const char *[]){"tokenize", "--model", TINY, "--json", "--prompt",
                                     json_string_value(json_object_get(one, "prefix")), NULL},
                    json_object_get(one, "ids"));
    json_array_foreach(cases("decode"), i, one)
    {
        const json_t *ids = json_object_get(one, "ids");
        char list[1024] = "";
        size_t k;
        json_t *id;

        json_array_foreach(ids, k, id) snprintf(list + strlen(list), sizeof list - strlen(list), "%s%lld",
                                                k ? "," : "", (long long)json_integer_value(id));
        if (i % 3 == 0 && list[0])
            expect_json((const char *[]){"tokenize", "--model", TINY, "--json", "--decode", list, NULL},
                        json_object_get(one, "text"));
    }
}

static void test_tokenize_plain(void **state)
{
    struct child c;

    child_run(&c, ESPALIER, (const char *[]){"tokenize", "--model", TINY, "--prompt", "caption en", NULL});
    child_expect(&c, "plain", 0, NULL,
                 "2\t<bos>\n1105\tca\n1359\tption\n527\t\xe2\x96\x81"
                 "en\n17\t\\n\n");
    child_finish(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bad_usage),     cmocka_unit_test(test_failures),
        cmocka_unit_test(test_picture_files), cmocka_unit_test(test_help),
        cmocka_unit_test(test_tokenize),      cmocka_unit_test(test_tokenize_plain),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
