/* Tokenizer models that nobody should load, each with its own answer. The good one is in
 * tests/golden/test_token.c. */
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "coordinator/token.h"
#include "coordinator/token_model.h"
#include "tests/support/file.h"
#include "tests/support/rand.h"

#define GOOD "tests/golden/data/tokenizer/tokenizer.model"

/* ---- a small writer of models ---- */

struct bytes {
    uint8_t at[200000];
    size_t n;
};

static void put(struct bytes *b, const void *from, size_t n)
{
    assert_true(b->n + n <= sizeof b->at);
    memcpy(b->at + b->n, from, n);
    b->n += n;
}

static void put_varint(struct bytes *b, uint64_t value)
{
    for (; value >= 0x80; value >>= 7)
        put(b, &(uint8_t){(uint8_t)(value | 0x80)}, 1);
    put(b, &(uint8_t){(uint8_t)value}, 1);
}

static void put_number(struct bytes *b, unsigned field, uint64_t value)
{
    put_varint(b, field << 3);
    put_varint(b, value);
}

static void put_bytes(struct bytes *b, unsigned field, const void *from, size_t n)
{
    put_varint(b, field << 3 | 2);
    put_varint(b, n);
    put(b, from, n);
}

static void put_piece_of(struct bytes *b, const char *name, size_t n_name, float score, unsigned type)
{
    struct bytes *piece = calloc(1, sizeof *piece);

    assert_non_null(piece);
    put_bytes(piece, 1, name, n_name);
    put_varint(piece, 2 << 3 | 5);
    put(piece, &score, sizeof score);
    put_number(piece, 3, type);
    put_bytes(b, 1, piece->at, piece->n);
    free(piece);
}

static void put_piece(struct bytes *b, const char *name, unsigned type)
{
    put_piece_of(b, name, strlen(name), -1, type);
}

/* BPE, identity normalisation, <unk>; what a case adds to it makes it bad. */
static void put_frame(struct bytes *b, unsigned model_type)
{
    struct bytes *part = calloc(1, sizeof *part);

    assert_non_null(part);
    put_number(part, 3, model_type);
    put_bytes(b, 2, part->at, part->n);
    part->n = 0;
    put_number(part, 3, 0);
    put_number(part, 4, 0);
    put_bytes(b, 3, part->at, part->n);
    free(part);
    put_piece(b, "<unk>", ESP_PIECE_UNKNOWN);
}

/* ---- the cases ---- */

static void make_small(struct bytes *b)
{
    put_frame(b, 2);
    put_piece(b, "a", ESP_PIECE_NORMAL);
    put_piece(b, "\n", ESP_PIECE_USER_DEFINED);
}

static void make_noise(struct bytes *b)
{
    put(b, "this is not a model", 19);
}

static void make_group(struct bytes *b)
{
    put_frame(b, 2);
    put(b, "\x0b\x0c", 2);
}

static void make_overlong_length(struct bytes *b)
{
    put_frame(b, 2);
    put_varint(b, 1 << 3 | 2);
    put_varint(b, UINT64_MAX);
}

static void make_endless_varint(struct bytes *b)
{
    put_frame(b, 2);
    put(b, "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 12);
}

static void make_no_pieces(struct bytes *b)
{
    put_bytes(b, 2, "\x18\x02", 2);
}

static void make_empty_piece(struct bytes *b)
{
    put_frame(b, 2);
    put_piece(b, "", ESP_PIECE_NORMAL);
}

static void make_long_piece(struct bytes *b)
{
    char name[ESP_TOKEN_MAX_NAME + 1];

    memset(name, 'a', sizeof name);
    put_frame(b, 2);
    put_piece_of(b, name, sizeof name, -1, ESP_PIECE_NORMAL);
}

static void make_nul_piece(struct bytes *b)
{
    put_frame(b, 2);
    put_piece_of(b, "a\0b", 3, -1, ESP_PIECE_USER_DEFINED);
}

static void make_latin1_piece(struct bytes *b)
{
    put_frame(b, 2);
    put_piece(b, "\xe9t\xe9", ESP_PIECE_NORMAL);
}

static void make_nan_score(struct bytes *b)
{
    put_frame(b, 2);
    put_piece_of(b, "a", 1, NAN, ESP_PIECE_NORMAL);
}

static void make_type_seven(struct bytes *b)
{
    put_frame(b, 2);
    put_piece(b, "a", 7);
}

static void make_same_twice(struct bytes *b)
{
    put_frame(b, 2);
    put_piece(b, "a", ESP_PIECE_NORMAL);
    put_piece(b, "a", ESP_PIECE_CONTROL);
}

static void make_two_unknown(struct bytes *b)
{
    put_frame(b, 2);
    put_piece(b, "<other>", ESP_PIECE_UNKNOWN);
}

static void make_misnamed_byte(struct bytes *b)
{
    put_frame(b, 2);
    put_piece(b, "<0xfg>", ESP_PIECE_BYTE);
}

static void make_one_byte(struct bytes *b)
{
    put_frame(b, 2);
    put_piece(b, "<0x41>", ESP_PIECE_BYTE);
}

static void make_unigram(struct bytes *b)
{
    put_frame(b, 1);
}

static void make_rules(struct bytes *b)
{
    put_frame(b, 2);
    put_bytes(b, 3, "\x12\x04\xff\xff\xff\xff", 6);
}

static void make_back_rules(struct bytes *b)
{
    put_frame(b, 2);
    put_bytes(b, 5, "\x12\x04\xff\xff\xff\xff", 6);
}

static void make_dummy_prefix(struct bytes *b)
{
    put_frame(b, 2);
    put_bytes(b, 3, "\x18\x01", 2);
}

/* 65 nested symbols overrun an array of the library's when they match. */
static void make_nested(struct bytes *b)
{
    char name[ESP_TOKEN_MAX_NEST + 1];

    memset(name, 'a', sizeof name);
    put_frame(b, 2);
    for (size_t n = 1; n <= sizeof name; n++)
        put_piece_of(b, name, n, -1, ESP_PIECE_USER_DEFINED);
}

static const struct {
    const char *what;
    void (*make)(struct bytes *b);
    esp_status status;
    const char *says;
} bad[] = {
    {"text", make_noise, ESP_E_FORMAT, "damaged or truncated SentencePiece model"},
    {"a group", make_group, ESP_E_FORMAT, "damaged or truncated SentencePiece model"},
    {"a length of 2^64-1", make_overlong_length, ESP_E_FORMAT, "damaged or truncated SentencePiece model"},
    {"an endless varint", make_endless_varint, ESP_E_FORMAT, "damaged or truncated SentencePiece model"},
    {"no pieces", make_no_pieces, ESP_E_FORMAT, "without pieces"},
    {"an empty piece", make_empty_piece, ESP_E_FORMAT, "piece 1 is empty"},
    {"a long piece", make_long_piece, ESP_E_LIMIT, "piece 1 has 1025 bytes, at most 1024"},
    {"a NUL in a piece", make_nul_piece, ESP_E_FORMAT, "piece 1 is not UTF-8 text"},
    {"Latin-1", make_latin1_piece, ESP_E_FORMAT, "piece 1 is not UTF-8 text"},
    {"a score that is no number", make_nan_score, ESP_E_FORMAT, "piece 1 has no finite score"},
    {"an unknown type", make_type_seven, ESP_E_FORMAT, "piece 1 is of no known type (7)"},
    {"a piece twice", make_same_twice, ESP_E_FORMAT, "are the same"},
    {"two for the unknown", make_two_unknown, ESP_E_FORMAT, "2 pieces for the unknown"},
    {"a byte by another name", make_misnamed_byte, ESP_E_FORMAT, "byte piece 1 is not called"},
    {"one byte of 256", make_one_byte, ESP_E_FORMAT, "1 byte pieces, must be 0"},
    {"a unigram model", make_unigram, ESP_E_UNSUPPORTED, "type 1; PaliGemma's is BPE"},
    {"normalisation rules", make_rules, ESP_E_UNSUPPORTED, "normalisation table"},
    {"rules for the way back", make_back_rules, ESP_E_UNSUPPORTED, "normalisation table"},
    {"a dummy prefix", make_dummy_prefix, ESP_E_UNSUPPORTED, "adds or removes white space"},
    {"65 nested symbols", make_nested, ESP_E_LIMIT, "begin with one another"},
};

static void refuses_bad_models(void **state)
{
    struct bytes *b = calloc(1, sizeof *b);

    assert_non_null(b);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct esp_tokenizer *tok;
        struct esp_err err = {0};
        esp_status st;

        b->n = 0;
        bad[i].make(b);
        st = esp_tokenizer_create_from(&tok, b->at, b->n, &err);
        if (st != bad[i].status || !strstr(err.text, bad[i].says))
            fail_msg("%s: status %d \"%s\", must be %d \"%s\"", bad[i].what, (int)st, err.text,
                     (int)bad[i].status, bad[i].says);
        assert_null(tok);
    }
    free(b);
}

/* The writer above makes models that load, so the table refuses what it means to refuse. */
static void takes_the_small_model(void **state)
{
    struct bytes *b = calloc(1, sizeof *b);
    struct esp_tokenizer *tok;
    struct esp_err err;
    uint32_t *ids;
    size_t n_ids, n_text;
    char *text;

    assert_non_null(b);
    make_small(b);
    put_bytes(b, 4,
              "\x0a\x06\x0a\x01"
              "b\x12\x01"
              "c",
              8); /* a self-test that fails is left out */
    if (esp_tokenizer_create_from(&tok, b->at, b->n, &err))
        fail_msg("%s", err.text);
    assert_int_equal(esp_tokenizer_encode(tok, &ids, &n_ids, "aa\nz", 4, &err), ESP_OK);
    assert_int_equal(n_ids, 4);
    assert_true(ids[0] == 1 && ids[1] == 1 && ids[2] == 2 && ids[3] == 0);
    assert_int_equal(esp_tokenizer_decode(tok, &text, &n_text, ids, n_ids, &err), ESP_OK);
    assert_string_equal(text, "aa\n \xe2\x81\x87 ");
    free(text);
    free(ids);
    esp_tokenizer_destroy(&tok);
    free(b);
}

/* 64 are as many as the library takes, and take part in a text that matches them all. */
static void takes_64_nested_symbols(void **state)
{
    struct bytes *b = calloc(1, sizeof *b);
    struct esp_tokenizer *tok;
    struct esp_err err;
    char name[ESP_TOKEN_MAX_NEST + 1];
    uint32_t *ids;
    size_t n_ids;

    assert_non_null(b);
    memset(name, 'a', sizeof name);
    put_frame(b, 2);
    for (size_t n = 1; n <= ESP_TOKEN_MAX_NEST; n++)
        put_piece_of(b, name, n, -1, ESP_PIECE_USER_DEFINED);
    if (esp_tokenizer_create_from(&tok, b->at, b->n, &err))
        fail_msg("%s", err.text);
    assert_int_equal(esp_tokenizer_encode(tok, &ids, &n_ids, name, sizeof name, &err), ESP_OK);
    assert_int_equal(n_ids, 2);
    assert_true(ids[0] == ESP_TOKEN_MAX_NEST && ids[1] == 1);
    free(ids);
    esp_tokenizer_destroy(&tok);
    free(b);
}

/* Cut anywhere, a model is refused: here because byte pieces are missing or a piece is cut. */
static void refuses_every_cut(void **state)
{
    size_t n;
    uint8_t *good = esp_slurp(&n, GOOD);

    for (size_t cut = 0; cut < n; cut += cut < 200 || cut + 200 > n ? 1 : 977) {
        struct esp_tokenizer *tok;
        struct esp_err err = {0};

        if (esp_tokenizer_create_from(&tok, good, cut, &err) == ESP_OK)
            fail_msg("cut at %zu of %zu: taken", cut, n);
        assert_true(err.text[0] != 0);
    }
    free(good);
}

/* A flipped bit may leave a model that is as good as any; but it must not do anything worse. */
static void survives_flipped_bits(void **state)
{
    size_t n, n_refused = 0;
    uint8_t *bytes = esp_slurp(&n, GOOD);
    struct esp_rand rand;

    esp_rand_init(&rand, 7);
    for (int round = 0; round < 150; round++) {
        struct esp_tokenizer *tok;
        struct esp_err err;
        const uint32_t at = esp_rand_below(&rand, round % 2 ? (uint32_t)n : 4096);
        const uint8_t bit = (uint8_t)(1u << esp_rand_below(&rand, 8));
        uint32_t *ids;
        size_t n_ids;

        bytes[at] ^= bit;
        if (esp_tokenizer_create_from(&tok, bytes, n, &err)) {
            n_refused++;
        } else {
            assert_int_equal(esp_tokenizer_encode(tok, &ids, &n_ids, "caption en <loc0001>\n\n", 22, &err),
                             ESP_OK);
            free(ids);
            esp_tokenizer_destroy(&tok);
        }
        bytes[at] ^= bit;
    }
    assert_true(n_refused > 0);
    free(bytes);
}

static void names_the_file(void **state)
{
    static const struct {
        const char *path;
        esp_status status;
        const char *says;
    } table[] = {
        {"tests/no-such.model", ESP_E_IO, "tests/no-such.model: No such file"},
        {"tests", ESP_E_IO, "tests: is not a regular file"},
        {"/dev/null", ESP_E_IO, "/dev/null: is not a regular file"},
        {"tests/CMakeLists.txt", ESP_E_FORMAT, "tests/CMakeLists.txt: damaged"},
    };
    char path[] = "/tmp/espalier-model-XXXXXX";
    const int fd = mkstemp(path);
    struct esp_tokenizer *tok;
    struct esp_err err;

    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        assert_int_equal(esp_tokenizer_create(&tok, table[i].path, &err), table[i].status);
        if (!strstr(err.text, table[i].says))
            fail_msg("\"%s\", must say \"%s\"", err.text, table[i].says);
        assert_null(tok);
    }
    assert_true(fd >= 0);
    assert_int_equal(esp_tokenizer_create(&tok, path, &err), ESP_E_FORMAT);
    assert_non_null(strstr(err.text, "is empty"));
    assert_int_equal(ftruncate(fd, (off_t)ESP_TOKEN_MAX_FILE + 1), 0); /* sparse */
    assert_int_equal(esp_tokenizer_create(&tok, path, &err), ESP_E_LIMIT);
    close(fd);
    unlink(path);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(esp_tokenizer_create(&tok, path, &err), ESP_E_IO);
    unlink(path);
}

static void tells_characters_from_bytes(void **state)
{
    static const struct {
        const char *bytes;
        size_t n;
        int len;
    } table[] = {
        {"", 0, 0},
        {"\0", 1, 1},
        {"a\xff", 2, 1},
        {"\x7f", 1, 1},
        {"\x80", 1, -1},
        {"\xc1\xbf", 2, -1}, /* overlong */
        {"\xc2", 1, 0},
        {"\xc2\x80", 2, 2},
        {"\xc2\x41", 2, -1},
        {"\xe0\x9f\xbf", 3, -1}, /* overlong */
        {"\xe0\xa0", 2, 0},
        {"\xe0\xa0\x80", 3, 3},
        {"\xed\x9f\xbf", 3, 3},
        {"\xed\xa0", 2, -1}, /* surrogate */
        {"\xef\xbf\xbf", 3, 3},
        {"\xf0\x8f\xbf\xbf", 4, -1}, /* overlong */
        {"\xf0\x90\x80", 3, 0},
        {"\xf0\x90\x80\x80", 4, 4},
        {"\xf4\x8f\xbf\xbf", 4, 4},
        {"\xf4\x90", 2, -1}, /* above U+10FFFF */
        {"\xf5", 1, -1},
    };

    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (esp_utf8_len((const uint8_t *)table[i].bytes, table[i].n) != table[i].len)
            fail_msg("row %zu", i);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refuses_bad_models),          cmocka_unit_test(takes_the_small_model),
        cmocka_unit_test(takes_64_nested_symbols),     cmocka_unit_test(refuses_every_cut),
        cmocka_unit_test(survives_flipped_bits),       cmocka_unit_test(names_the_file),
        cmocka_unit_test(tells_characters_from_bytes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
