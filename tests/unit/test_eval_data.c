/* Sets of examples: what is read, and that whatever is wrong is said with its line before anything else happens. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "cli/eval_data.h"
#include "tests/support/file.h"

#define IMAGES "tests/golden/data/tiny/images"

static char dir[32], path[64];

static int setup(void **state)
{
    strcpy(dir, "/tmp/espalier-test-XXXXXX");
    if (!mkdtemp(dir))
        return -1;
    snprintf(path, sizeof path, "%s/set.jsonl", dir);
    return 0;
}

static void put_file(const char *name, const void *bytes, size_t n)
{
    char full[96];
    FILE *f;

    snprintf(full, sizeof full, "%s/%s", dir, name);
    f = fopen(full, "wb");
    assert_true(f && fwrite(bytes, 1, n, f) == n && fclose(f) == 0);
}

static int teardown(void **state)
{
    static const char *const names[] = {"set.jsonl", "a.png", "b.jpg", "empty.png", "text.png"};
    char full[96];

    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        snprintf(full, sizeof full, "%s/%s", dir, names[i]);
        unlink(full);
    }
    return rmdir(dir);
}

static esp_status read_set(struct esp_eval_data *data, const char *text, struct esp_err *err)
{
    put_file("set.jsonl", text, strlen(text));
    return esp_eval_data_read(data, path, NULL, err);
}

/* a.png is 2 x 3 pixels (height x width), b.jpg some picture. */
static void put_pictures(void)
{
    static const uint8_t header[] = "\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\3\0\0\0\2\x08\2\0\0\0\0\0\0\0";
    size_t n;
    uint8_t *bytes = esp_slurp(&n, IMAGES "/jpeg_420.jpg");

    put_file("a.png", header, 33); /* its size is all that is looked at */
    put_file("b.jpg", bytes, n);
    put_file("empty.png", "", 0);
    put_file("text.png", "GIF89a", 6);
    free(bytes);
}

static void test_good(void **state)
{
    static const char set[] =
        "{\"image\": \"a.png\", \"prompt\": \"caption en\", \"answer\": \"a cat\", \"more\": {\"x\": [1]}}\n"
        "\n"
        "{\"image\": \"b.jpg\", \"prompt\": \"answer en what\", \"answer\": \"cat\", \"answers\": [\"a\", "
        "\"b\", "
        "\"c\", \"\"]}\r\n"
        "{\"image\": \"a.png\", \"prompt\": \"detect cat\", \"answer\": \"\", \"objects\": []}\n"
        "{\"image\": \"a.png\", \"prompt\": \"segment cat ; dog\", \"answer\": \"x\", \"objects\": "
        "[{\"label\": "
        "\"cat\", \"box\": [0, 0.5, 2, 3], \"mask\": {\"size\": [2, 3], \"counts\": [2, 1, 3]}}, {\"label\": "
        "\"dog\", "
        "\"box\": [1, 0, 2, 1], \"mask\": {\"size\": [2, 3], \"counts\": \"213\"}}]}\n"
        "{\"image\": \"./a.png\", \"prompt\": \"captioned\", \"answer\": \"\", \"objects\": 7}";
    struct esp_eval_data data;
    struct esp_err err;
    uint8_t hash[ESP_EVAL_HASH_BYTES];

    put_pictures();
    if (read_set(&data, set, &err))
        fail_msg("%s", err.text);
    assert_int_equal(data.n_examples, 5);
    assert_int_equal(data.n_pictures, 3);
    assert_string_equal(data.pictures[0].name, "a.png");
    assert_true(data.pictures[0].width == 3 && data.pictures[0].height == 2);
    assert_int_equal(data.examples[0].line, 1);
    assert_int_equal(data.examples[1].line, 3);
    assert_int_equal(data.examples[1].picture, 1);
    assert_int_equal(data.examples[2].picture, 0);
    assert_int_equal(data.examples[1].n_answers, 4);
    assert_int_equal(data.examples[0].task, ESP_EVAL_CAPTION);
    assert_int_equal(data.examples[1].task, ESP_EVAL_ANSWER);
    assert_int_equal(data.examples[2].task, ESP_EVAL_DETECT);
    assert_int_equal(data.examples[3].task, ESP_EVAL_SEGMENT);
    assert_int_equal(data.examples[4].task, ESP_EVAL_OTHER);
    assert_int_equal(data.examples[3].n_objects, 2);
    assert_string_equal(data.examples[3].objects[1].label, "dog");
    assert_true(data.examples[3].objects[0].box[1] == 0.5);
    assert_int_equal(esp_rle_area(&data.examples[3].objects[0].mask), 1);
    assert_int_equal(esp_rle_area(&data.examples[3].objects[1].mask), 1);
    memcpy(hash, data.hash, sizeof hash);
    esp_eval_data_finish(&data);

    assert_int_equal(esp_eval_data_read(&data, path, NULL, &err), ESP_OK);
    assert_memory_equal(hash, data.hash, sizeof hash);
    esp_eval_data_finish(&data);
    put_file("a.png", "\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\3\0\0\0\2\x08\2\0\0\1\0\0\0\0", 33);
    assert_int_equal(esp_eval_data_read(&data, path, NULL, &err), ESP_OK);
    assert_memory_not_equal(hash, data.hash, sizeof hash); /* a picture is part of the set */
    esp_eval_data_finish(&data);
}

#define P  "\"image\": \"a.png\", \"prompt\": "
#define D  "{" P "\"detect cat\", \"answer\": \"\", \"objects\": "
#define S  "{" P "\"segment cat\", \"answer\": \"\", \"objects\": [{\"label\": \"cat\", \"box\": [0, 0, 2, 3]"
#define OK "{" P "\"caption en\", \"answer\": \"a\"}\n"

static void test_bad(void **state)
{
    static const struct {
        const char *set, *what;
    } cases[] = {
        {"", "set.jsonl: no examples in it"},
        {"\n  \n", "set.jsonl: no examples in it"},
        {OK "nonsense", "set.jsonl:2: not JSON"},
        {OK "\n[1]", "set.jsonl:3: found a list of 1, expected a JSON object"},
        {OK "{" P "\"caption en\", \"answer\": \"a\"", "set.jsonl:2: not JSON"}, /* cut off */
        {"{\"image\": \"a.png\", \"image\": \"b.jpg\", \"prompt\": \"x\", \"answer\": \"a\"}",
         "set.jsonl:1: not JSON"},
        {"{" P "\"a\\u0000b\", \"answer\": \"a\"}", "set.jsonl:1: not JSON"},
        {"{" P "\"\xff\", \"answer\": \"a\"}", "set.jsonl:1: not JSON"},
        {"{\"prompt\": \"x\", \"answer\": \"a\"}", "set.jsonl:1: image is missing"},
        {"{" P "\"x\"}", "set.jsonl:1: answer is missing"},
        {"{" P "\"x\", \"answer\": null}", "set.jsonl:1: answer is missing"},
        {"{" P "7, \"answer\": \"a\"}", "set.jsonl:1: prompt: found 7, expected a string"},
        {"{" P "\"\", \"answer\": \"a\"}", "set.jsonl:1: prompt has 0 bytes, takes 1 to 65536"},
        {"{\"image\": \"none.png\", \"prompt\": \"x\", \"answer\": \"a\"}", "set.jsonl:1: image: "},
        {"{\"image\": \"none.png\", \"prompt\": \"x\", \"answer\": \"a\"}", "none.png: No such file"},
        {"{\"image\": \"empty.png\", \"prompt\": \"x\", \"answer\": \"a\"}", "empty.png: empty"},
        {"{\"image\": \"text.png\", \"prompt\": \"x\", \"answer\": \"a\"}", "text.png: is a GIF file"},
        {"{\"image\": \".\", \"prompt\": \"x\", \"answer\": \"a\"}", "not a regular file"},
        {"{" P "\"answer en x\", \"answer\": \"a\", \"answers\": \"a\"}",
         "answers: found \"a\", expected a list"},
        {"{" P "\"answer en x\", \"answer\": \"a\", \"answers\": [\"a\"]}",
         "answers: a list of 1, takes 4 to 100"},
        {"{" P "\"answer en x\", \"answer\": \"a\", \"answers\": [\"a\", \"b\", 3, \"d\"]}",
         "answers[2]: found 3, expected a string"},
        {"{" P "\"detect cat\", \"answer\": \"\"}", "set.jsonl:1: objects is missing"},
        {D "{}}", "objects: found an object, expected a list"},
        {D "[3]}", "objects[0]: found 3, expected an object"},
        {D "[{\"box\": [0, 0, 1, 1]}]}", "objects[0].label is missing"},
        {D "[{\"label\": \"\", \"box\": [0, 0, 1, 1]}]}", "objects[0].label has 0 bytes"},
        {D "[{\"label\": \"cat\"}]}", "objects[0].box is missing"},
        {D "[{\"label\": \"cat\", \"box\": [0, 0, 1]}]}", "objects[0].box: a list of 3, takes 4 to 4"},
        {D "[{\"label\": \"cat\", \"box\": [0, 0, 1, \"1\"]}]}",
         "objects[0].box: found \"1\", expected a number"},
        {D "[{\"label\": \"cat\", \"box\": [0, 0, 2.5, 1]}]}", "inside the picture's 2 x 3 pixels"},
        {D "[{\"label\": \"cat\", \"box\": [0, 0, 1, 3.5]}]}", "inside the picture's"},
        {D "[{\"label\": \"cat\", \"box\": [-0.1, 0, 1, 1]}]}", "inside the picture's"},
        {D "[{\"label\": \"cat\", \"box\": [1, 0, 1, 1]}]}", "y0 < y1"},
        {D "[{\"label\": \"cat\", \"box\": [0, 2, 1, 1]}]}", "x0 < x1"},
        {S "}]}", "objects[0].mask is missing: to segment, each object needs one"},
        {S ", \"mask\": []}]}", "objects[0].mask: found a list of 0, expected an object"},
        {S ", \"mask\": {\"counts\": [6]}}]}", "objects[0].mask.size is missing"},
        {S ", \"mask\": {\"size\": [3, 2], \"counts\": [6]}}]}",
         "objects[0].mask.size: must be the picture's [2, 3]"},
        {S ", \"mask\": {\"size\": [2, 3]}}]}", "objects[0].mask.counts is missing"},
        {S ", \"mask\": {\"size\": [2, 3], \"counts\": 6}}]}",
         "objects[0].mask.counts: found 6, expected a list"},
        {S ", \"mask\": {\"size\": [2, 3], \"counts\": [5]}}]}", "objects[0].mask.counts: "},
        {S ", \"mask\": {\"size\": [2, 3], \"counts\": [7, -1]}}]}",
         "objects[0].mask.counts[1]: no number of pixels"},
        {S ", \"mask\": {\"size\": [2, 3], \"counts\": [4294967296]}}]}", "counts[0]: no number of pixels"},
        {S ", \"mask\": {\"size\": [2, 3], \"counts\": \"7\"}}]}", "objects[0].mask.counts: "},
        {S ", \"mask\": {\"size\": [2, 3], \"counts\": \"~\"}}]}", "objects[0].mask.counts: "},
    };

    put_pictures();
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct esp_eval_data data;
        struct esp_err err = {0};

        if (read_set(&data, cases[i].set, &err) == ESP_OK || !strstr(err.text, cases[i].what))
            fail_msg("\"%s\": \"%s\", expected \"%s\"", cases[i].set, err.text, cases[i].what);
        assert_true(data.n_examples == 0 && !data.examples && !data.pictures);
    }
}

static void test_no_file(void **state)
{
    struct esp_eval_data data;
    struct esp_err err;

    assert_int_equal(esp_eval_data_read(&data, "/nonexistent/set.jsonl", NULL, &err), ESP_E_IO);
    assert_non_null(strstr(err.text, "/nonexistent/set.jsonl: No such file"));
    assert_int_equal(esp_eval_data_read(&data, dir, NULL, &err), ESP_E_IO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good),
        cmocka_unit_test(test_bad),
        cmocka_unit_test(test_no_file),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
