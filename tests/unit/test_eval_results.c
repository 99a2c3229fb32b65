/* The file of results: what is kept comes back, what was torn is dropped, what belongs to something else is refused. */
#include <fcntl.h>
#include <math.h>
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

#include "cli/eval_results.h"
#include "tests/support/file.h"

static char dir[32], path[64];
static char prompt0[] = "caption en", prompt1[] = "ocr", prompt2[] = "answer en \"what\"",
            answer_text[] = "a cat", name[] = "a.png";
static struct esp_eval_picture picture = {.name = name, .width = 3, .height = 2};
static struct esp_eval_example examples[] = {{.line = 1, .prompt = prompt0, .answer = answer_text},
                                             {.line = 2, .prompt = prompt1, .answer = answer_text},
                                             {.line = 7, .prompt = prompt2, .answer = answer_text}};
static const struct esp_eval_data data = {
    .examples = examples, .n_examples = 3, .pictures = &picture, .n_pictures = 1};
static struct esp_eval_header header;

/* What was heard at the opening. */
static struct {
    uint32_t n, example[8], n_ids[8];
    char text[8][32];
    double last[8];
} got;

static esp_status heard(void *self, uint32_t example, const struct esp_eval_answer *answer,
                        struct esp_err *err)
{
    assert_ptr_equal(self, &got);
    assert_true(got.n < 8);
    got.example[got.n] = example;
    got.n_ids[got.n] = answer->n_ids;
    got.last[got.n] = answer->n_ids ? answer->logprobs[answer->n_ids - 1] : 0;
    snprintf(got.text[got.n++], sizeof got.text[0], "%s", answer->text);
    return ESP_OK;
}

static esp_status open_it(struct esp_eval_results **results, struct esp_err *err)
{
    memset(&got, 0, sizeof got);
    return esp_eval_results_open(results, path, &data, &header, heard, &got, err);
}

static int setup(void **state)
{
    strcpy(dir, "/tmp/espalier-test-XXXXXX");
    if (!mkdtemp(dir))
        return -1;
    snprintf(path, sizeof path, "%s/results.jsonl", dir);
    memset(&header, 0, sizeof header);
    header.data[0] = 0xab;
    header.model[31] = 0xcd;
    header.decoding = json_pack("{s:i, s:f}", "max_tokens", 12, "temperature", 0.1);
    return header.decoding ? 0 : -1;
}

static int teardown(void **state)
{
    json_decref(header.decoding);
    unlink(path);
    return rmdir(dir);
}

static void put(const void *bytes, size_t n)
{
    FILE *f = fopen(path, "wb");

    assert_true(f && fwrite(bytes, 1, n, f) == n && fclose(f) == 0);
}

static off_t n_bytes(void)
{
    struct stat info;

    assert_int_equal(stat(path, &info), 0);
    return info.st_size;
}

static void add_answer(struct esp_eval_results *results, uint32_t example, char *text)
{
    static char finish[] = "eos";
    static uint32_t ids[] = {5, UINT32_MAX};
    static double logprobs[] = {-0.1000000000000000055, -1.0 / 3};
    const struct esp_eval_answer answer = {text, finish, ids, logprobs, 2};

    assert_int_equal(esp_eval_results_answer(results, example, &answer, json_object(), NULL), ESP_OK);
}

/* Three lines: an answer, a failure, an answer. */
static void write_some(void)
{
    static char one[] = "a \"dog\"\n\xc3\xa4", two[] = "";
    struct esp_eval_results *results;
    struct esp_err err;

    if (open_it(&results, &err))
        fail_msg("%s", err.text);
    add_answer(results, 2, one);
    assert_int_equal(esp_eval_results_failure(results, 1, "worker \"w1\" is gone", NULL), ESP_OK);
    add_answer(results, 0, two);
    esp_eval_results_close(&results);
    assert_null(results);
}

static void test_comes_back(void **state)
{
    struct esp_eval_results *results;
    static char late[] = "late";
    off_t before;

    write_some();
    before = n_bytes();
    assert_int_equal(open_it(&results, NULL), ESP_OK);
    assert_int_equal(got.n, 2); /* the failure is asked again */
    assert_true(got.example[0] == 2 && got.example[1] == 0);
    assert_string_equal(got.text[0], "a \"dog\"\n\xc3\xa4");
    assert_string_equal(got.text[1], "");
    assert_true(got.n_ids[0] == 2 && got.last[0] == -1.0 / 3); /* to the bit */
    assert_int_equal(n_bytes(), before);
    add_answer(results, 1, late);
    esp_eval_results_close(&results);
    assert_int_equal(open_it(&results, NULL), ESP_OK);
    assert_int_equal(got.n, 3);
    assert_int_equal(got.example[2], 1);
    esp_eval_results_close(&results);
}

/* Cut anywhere, as a kill in the middle of a write or a full disk leaves it: whole lines count, the rest is cut off. */
static void test_torn(void **state)
{
    size_t n, ends[4], n_ends = 0;
    uint8_t *whole;

    write_some();
    whole = esp_slurp(&n, "%s", path);
    for (size_t i = 0; i < n; i++)
        if (whole[i] == '\n')
            ends[n_ends++] = i + 1;
    assert_int_equal(n_ends, 4);
    for (size_t cut = 0; cut < n; cut++) {
        struct esp_eval_results *results;
        struct esp_err err;
        size_t n_whole = 0;

        put(whole, cut);
        if (open_it(&results, &err))
            fail_msg("cut at %zu: %s", cut, err.text);
        for (size_t i = 0; i < 4; i++)
            n_whole += ends[i] <= cut;
        assert_int_equal(got.n, n_whole < 2 ? 0 : 1); /* the second line behind the header is the failure */
        assert_int_equal(n_bytes(), n_whole > 0 ? ends[n_whole - 1] : ends[0]);
        esp_eval_results_close(&results);
    }
    free(whole);
}

static void refused(const char *what)
{
    struct esp_eval_results *results;
    struct esp_err err = {0};
    const off_t before = n_bytes();

    if (open_it(&results, &err) == ESP_OK || !strstr(err.text, what))
        fail_msg("\"%s\", expected \"%s\"", err.text, what);
    assert_null(results);
    assert_int_equal(n_bytes(), before); /* nothing is cut off what is not ours */
}

static void test_other_things(void **state)
{
    write_some();
    header.data[5] ^= 1;
    refused("results.jsonl:1: these are results of another set of examples");
    header.data[5] ^= 1;
    header.model[0] ^= 1;
    refused("results of another model");
    header.model[0] ^= 1;
    header.weights = ESP_W_Q8;
    refused("results of weights held as another type");
    header.weights = ESP_W_STORED;
    json_object_set_new(header.decoding, "max_tokens", json_integer(13));
    refused("results of other options of decoding");
    json_object_set_new(header.decoding, "max_tokens", json_integer(12));
    json_object_set_new(header.decoding, "temperature", json_real(0.1000001));
    refused("other options");
}

#define HEADER                                                                                               \
    "{\"espalier_eval\":1,\"data\":\"ab00000000000000000000000000000000000000000000000000000000000000\","    \
    "\"model\":"                                                                                             \
    "\"00000000000000000000000000000000000000000000000000000000000000cd\",\"decoding\":{\"max_tokens\":12,"  \
    "\"temperature\":0.10000000000000001}}\n"
#define LINE1 "{\"line\": 1, \"prompt\": \"caption en\", "

static void test_bad(void **state)
{
    static const struct {
        const char *text, *what;
    } cases[] = {
        {"precious notes", "results.jsonl: no results of 'espalier eval'"},
        {"precious notes\n", "results.jsonl:1: not JSON"},
        {"{\"line\": 1}\n", "results.jsonl:1: no results of 'espalier eval'"},
        {"{\"espalier_eval\": 2}\n", "results.jsonl:1: results in format 2, this program has format 1"},
        {HEADER "{}\n", "results.jsonl:2: about no example"},
        {HEADER "\n", "results.jsonl:2: not JSON"},
        {HEADER "{\"line\": 3, \"prompt\": \"caption en\"}\n", "about no example"},
        {HEADER "{\"line\": -1, \"prompt\": \"caption en\"}\n", "about no example"},
        {HEADER "{\"line\": 1, \"prompt\": \"ocr\"}\n", "about no example"},
        {HEADER LINE1 "\"text\": \"x\"}\n", "results.jsonl:2: neither an answer nor an error"},
        {HEADER LINE1 "\"text\": \"x\", \"finish\": \"eos\"}\n", "lists of one length"},
        {HEADER LINE1 "\"text\": \"x\", \"finish\": \"eos\", \"ids\": [1], \"logprobs\": []}\n",
         "lists of one length"},
        {HEADER LINE1 "\"text\": \"x\", \"finish\": \"eos\", \"ids\": [-1], \"logprobs\": [-1]}\n",
         "token 0 has no id"},
        {HEADER LINE1 "\"text\": \"x\", \"finish\": \"eos\", \"ids\": [4294967296], \"logprobs\": [-1]}\n",
         "token 0"},
        {HEADER LINE1 "\"text\": \"x\", \"finish\": \"eos\", \"ids\": [1], \"logprobs\": [\"a\"]}\n",
         "token 0"},
        {HEADER LINE1 "\"text\": \"x\", \"finish\": \"eos\", \"ids\": [1], \"logprobs\": [0.5]}\n",
         "token 0"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        put(cases[i].text, strlen(cases[i].text));
        refused(cases[i].what);
    }
    /* What is not finite comes back as the least probable there is. */
    put(HEADER LINE1 "\"text\": \"x\", \"finish\": \"eos\", \"ids\": [1], \"logprobs\": [null]}\n",
        strlen(HEADER LINE1 "\"text\": \"x\", \"finish\": \"eos\", \"ids\": [1], \"logprobs\": [null]}\n"));
    {
        struct esp_eval_results *results;

        assert_int_equal(open_it(&results, NULL), ESP_OK);
        assert_true(got.n == 1 && isinf(got.last[0]));
        esp_eval_results_close(&results);
    }
}

static void test_one_writer(void **state)
{
    struct esp_eval_results *one, *two;
    struct esp_err err;

    assert_int_equal(open_it(&one, NULL), ESP_OK);
    assert_int_equal(open_it(&two, &err), ESP_E_ARG);
    assert_non_null(strstr(err.text, "another evaluation is writing to it"));
    esp_eval_results_close(&one);
    assert_int_equal(open_it(&two, NULL), ESP_OK);
    esp_eval_results_close(&two);
}

static void test_no_file(void **state)
{
    struct esp_eval_results *results;
    struct esp_err err;

    assert_int_equal(esp_eval_results_open(&results, dir, &data, &header, heard, &got, &err), ESP_E_IO);
    assert_int_equal(esp_eval_results_open(&results, "/dev/full", &data, &header, heard, &got, &err),
                     ESP_E_IO);
    assert_non_null(strstr(err.text, "/dev/full: not a regular file"));
    put("", 0);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_comes_back), TEST(test_torn),       TEST(test_other_things),
        TEST(test_bad),        TEST(test_one_writer), TEST(test_no_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
