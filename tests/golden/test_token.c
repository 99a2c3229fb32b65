/*
 * Every case of tokenizer_cases.json: encoding, prompts and decoding as the reference does them; and, on
 * random ids, the streaming detokenizer against the library's decoding of the whole.
 */
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include <jansson.h>

#include "coordinator/spm_shim.h"
#include "coordinator/token.h"
#include "coordinator/token_model.h"
#include "tests/support/file.h"
#include "tests/support/rand.h"

#define DATA "tests/golden/data/tokenizer"

static struct esp_tokenizer *tok;
static json_t *cases;

static int set_up(void **state)
{
    struct esp_err err;
    json_error_t error;

    if (esp_tokenizer_create(&tok, DATA "/tokenizer.model", &err)) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    cases = json_load_file(DATA "/tokenizer_cases.json", JSON_ALLOW_NUL, &error);
    if (!cases)
        fprintf(stderr, "tokenizer_cases.json: %s\n", error.text);
    return cases ? 0 : 1;
}

static int tear_down(void **state)
{
    esp_tokenizer_destroy(&tok);
    json_decref(cases);
    return 0;
}

static void expect_ids(const char *what, const json_t *want, const uint32_t *ids, size_t n_ids)
{
    if (json_array_size(want) != n_ids)
        fail_msg("%.200s: %zu ids, must be %zu", what, n_ids, json_array_size(want));
    for (size_t i = 0; i < n_ids; i++)
        if (json_integer_value(json_array_get(want, i)) != (json_int_t)ids[i])
            fail_msg("%.200s: id %zu is %u, must be %lld", what, i, ids[i],
                     (long long)json_integer_value(json_array_get(want, i)));
}

/* Decodes in one go and id by id, and expects the same text of both. */
static void expect_text(const char *what, const char *want, size_t n_want, const uint32_t *ids, size_t n_ids)
{
    struct esp_detok *detok;
    struct esp_err err;
    char *text, *streamed;
    size_t n_text, n_streamed = 0;

    assert_int_equal(esp_tokenizer_decode(tok, &text, &n_text, ids, n_ids, &err), ESP_OK);
    if (n_text != n_want || memcmp(text, want, n_want))
        fail_msg("%.200s: decodes to \"%.*s\", must be \"%.*s\"", what, (int)n_text, text, (int)n_want, want);
    assert_int_equal(text[n_text], 0);

    streamed = malloc(n_text + 1);
    assert_non_null(streamed);
    assert_int_equal(esp_detok_create(&detok, tok, &err), ESP_OK);
    for (size_t i = 0; i <= n_ids; i++) {
        size_t n;
        const char *more = i < n_ids ? esp_detok_feed(detok, ids[i], &n) : esp_detok_flush(detok, &n);

        assert_true(n <= n_text - n_streamed);
        memcpy(streamed + n_streamed, more, n);
        n_streamed += n;
        for (size_t at = 0; at < n;) { /* each piece is whole characters */
            const int len = esp_utf8_len((const uint8_t *)more + at, n - at);
            assert_true(len > 0);
            at += (size_t)len;
        }
    }
    assert_int_equal(n_streamed, n_text);
    assert_memory_equal(streamed, text, n_text);
    esp_detok_destroy(&detok);
    free(streamed);
    free(text);
}

static uint32_t *ids_of(const json_t *array, size_t *n_ids)
{
    uint32_t *ids = calloc(json_array_size(array) + 1, sizeof *ids);

    assert_non_null(ids);
    *n_ids = json_array_size(array);
    for (size_t i = 0; i < *n_ids; i++)
        ids[i] = (uint32_t)json_integer_value(json_array_get(array, i));
    return ids;
}

static void encodes_as_the_reference(void **state)
{
    const json_t *all = json_object_get(cases, "encode");

    assert_int_equal(json_array_size(all), 132);
    for (size_t i = 0; i < json_array_size(all); i++) {
        const json_t *one = json_array_get(all, i);
        const json_t *text = json_object_get(one, "text"), *back = json_object_get(one, "decoded");
        struct esp_err err;
        uint32_t *ids;
        size_t n_ids;

        assert_int_equal(
            esp_tokenizer_encode(tok, &ids, &n_ids, json_string_value(text), json_string_length(text), &err),
            ESP_OK);
        expect_ids(json_string_value(text), json_object_get(one, "ids"), ids, n_ids);
        expect_text(json_string_value(text), json_string_value(back), json_string_length(back), ids, n_ids);
        free(ids);
    }
}

static void builds_prompts_as_the_reference(void **state)
{
    const json_t *all = json_object_get(cases, "prompts");

    assert_int_equal(json_array_size(all), 11);
    for (size_t i = 0; i < json_array_size(all); i++) {
        const json_t *one = json_array_get(all, i), *prefix = json_object_get(one, "prefix");
        struct esp_err err;
        uint32_t *ids;
        size_t n_ids;

        assert_int_equal(
            esp_prompt_ids(tok, &ids, &n_ids, 2, json_string_value(prefix), json_string_length(prefix), &err),
            ESP_OK);
        expect_ids(json_string_value(prefix), json_object_get(one, "ids"), ids, n_ids);
        free(ids);
    }
}

static void decodes_as_the_reference(void **state)
{
    const json_t *all = json_object_get(cases, "decode");

    assert_int_equal(json_array_size(all), 27);
    for (size_t i = 0; i < json_array_size(all); i++) {
        const json_t *one = json_array_get(all, i), *text = json_object_get(one, "text");
        size_t n_ids;
        uint32_t *ids = ids_of(json_object_get(one, "ids"), &n_ids);

        expect_text("decode case", json_string_value(text), json_string_length(text), ids, n_ids);
        free(ids);
    }
}

/* Mostly bytes, so that characters come whole, cut and broken; some pieces of every kind in between. */
static void streams_as_the_library_decodes(void **state)
{
    struct esp_err err;
    struct esp_spm *spm;
    struct esp_rand rand;
    size_t n_bytes;
    uint8_t *bytes = esp_slurp(&n_bytes, DATA "/tokenizer.model");
    static const uint8_t starts[] = {0x41, 0x80, 0xbf, 0xc1, 0xc3, 0xe0, 0xe2, 0xed, 0xf0, 0xf4, 0xf5, 0x98};

    assert_int_equal(esp_spm_create(&spm, bytes, n_bytes, &err), ESP_OK);
    esp_rand_init(&rand, 20240707);
    for (int round = 0; round < 2000; round++) {
        uint32_t ids[24];
        const size_t n_ids = esp_rand_below(&rand, 25);
        char *text;
        size_t n_text;

        for (size_t i = 0; i < n_ids; i++) {
            const uint32_t kind = esp_rand_below(&rand, 8);
            if (kind == 0)
                ids[i] = esp_rand_below(&rand, esp_tokenizer_n_piece(tok));
            else if (kind <= 3)
                ids[i] = 126 + starts[esp_rand_below(&rand, sizeof starts)];
            else
                ids[i] = 126 + 0x80 + esp_rand_below(&rand, 0x40);
        }
        assert_int_equal(esp_spm_decode(spm, &text, &n_text, ids, n_ids, &err), ESP_OK);
        expect_text("random ids", text, n_text, ids, n_ids);
        free(text);
    }
    esp_spm_destroy(&spm);
    free(bytes);
}

/* The argmax runs over the padded embedding, so such ids do come. They have no text, and end a run of bytes.
 */
static void ids_behind_the_pieces_have_no_text(void **state)
{
    const uint32_t alone[] = {5534, 5567, UINT32_MAX};
    const uint32_t between[] = {352, 278, 5534, 312}; /* E2 98 | BA */

    expect_text("beyond", "", 0, alone, 3);
    expect_text("between", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd", 9, between, 4);
}

static void finds_pieces_by_name(void **state)
{
    static const struct {
        const char *name;
        uint32_t id;
    } known[] = {{"<pad>", 0},       {"<eos>", 1},       {"<bos>", 2},          {"<unk>", 3},
                 {"\n", 17},         {"<0xE2>", 352},    {"<loc0000>", 4382},   {"<loc1023>", 5405},
                 {"<seg000>", 5406}, {"<seg127>", 5533}, {"\xe2\x96\x81", 2877}};
    uint32_t id;
    size_t n;

    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        assert_true(esp_tokenizer_find(tok, &id, known[i].name));
        assert_int_equal(id, known[i].id);
    }
    assert_int_equal(esp_tokenizer_n_piece(tok), 5534);
    for (uint32_t want = 0; want < esp_tokenizer_n_piece(tok); want++) {
        char name[ESP_TOKEN_MAX_NAME + 1] = {0};
        const char *piece = esp_tokenizer_piece(tok, want, &n);

        assert_true(n < sizeof name);
        memcpy(name, piece, n);
        assert_true(esp_tokenizer_find(tok, &id, name));
        assert_int_equal(id, want);
    }
    assert_false(esp_tokenizer_find(tok, &id, "<image>"));
    assert_false(esp_tokenizer_find(tok, &id, ""));
    assert_false(esp_tokenizer_find(tok, &id, "<loc1024>"));
    assert_null(esp_tokenizer_piece(tok, 5534, &n));
}

/* Any bytes are a text. What comes back has U+FFFD where they were not UTF-8. */
static void takes_any_bytes(void **state)
{
    static const struct {
        const char *text;
        size_t n;
        const char *back;
        size_t n_back;
    } table[] = {
        {NULL, 0, "", 0},
        {"a\0b", 3, "a\0b", 3},
        {"\0", 1, "\0", 1},
        {"\xff", 1, "\xef\xbf\xbd", 3},
        {"x\xe2\x98", 3, "x\xef\xbf\xbd\xef\xbf\xbd", 7},
        {"\xed\xa0\x80", 3, "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd", 9},
        {"<eos><image>", 12, "<eos><image>", 12},
    };
    struct esp_err err;
    uint32_t *ids;
    size_t n_ids;

    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        assert_int_equal(esp_tokenizer_encode(tok, &ids, &n_ids, table[i].text, table[i].n, &err), ESP_OK);
        assert_non_null(ids);
        expect_text(table[i].text ? table[i].text : "nothing", table[i].back, table[i].n_back, ids, n_ids);
        for (size_t k = 0; k < n_ids; k++)
            assert_true(ids[k] > 3); /* no control piece from text */
        free(ids);
    }
    assert_int_equal(esp_tokenizer_encode(tok, &ids, &n_ids, "", ESP_TOKEN_MAX_TEXT + 1, &err), ESP_E_LIMIT);
    assert_non_null(strstr(err.text, "at most"));
    assert_null(ids);
}

/* What a model of a shape alone has instead of a vocabulary: every byte is an id, and comes back. */
static void bytes_alone(void **state)
{
    static const char text[] = "caption en\n\xc3\xa9 \x01";
    struct esp_tokenizer *bytes;
    struct esp_err err = {0};
    uint32_t *ids;
    size_t n_ids, n_back;
    char *back;

    assert_int_equal(esp_tokenizer_create_bytes(&bytes, &err), ESP_OK);
    assert_int_equal(esp_tokenizer_n_piece(bytes), 261);
    assert_int_equal(esp_prompt_ids(bytes, &ids, &n_ids, 2, "ab", 2, &err), ESP_OK);
    assert_int_equal(n_ids, 4);
    assert_true(ids[0] == 2 && ids[1] == 4 + 'a' && ids[2] == 4 + 'b' && ids[3] == 4 + '\n');
    free(ids);
    assert_int_equal(esp_tokenizer_encode(bytes, &ids, &n_ids, text, sizeof text - 1, &err), ESP_OK);
    assert_int_equal(esp_tokenizer_decode(bytes, &back, &n_back, ids, n_ids, &err), ESP_OK);
    assert_string_equal(back, text);
    free(ids);
    free(back);
    esp_tokenizer_destroy(&bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(encodes_as_the_reference),
        cmocka_unit_test(builds_prompts_as_the_reference),
        cmocka_unit_test(decodes_as_the_reference),
        cmocka_unit_test(streams_as_the_library_decodes),
        cmocka_unit_test(ids_behind_the_pieces_have_no_text),
        cmocka_unit_test(finds_pieces_by_name),
        cmocka_unit_test(takes_any_bytes),
        cmocka_unit_test(bytes_alone),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
