/* The paged cache's books on their way to another worker: what a copy of them is, where it fits, and what a stranger's
 * must not do. Random histories that move in between are in test_kv.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "worker/kv.h"

#define B 8 /* block_tokens */

static struct esp_kv *make(uint32_t n_blocks, uint32_t max_seqs, uint32_t max_blocks)
{
    struct esp_kv *kv = NULL;
    struct esp_err err;

    assert_int_equal(esp_kv_create(&kv, n_blocks, B, max_seqs, max_blocks, &err), ESP_OK);
    return kv;
}

/** Plans and commits one append; the copies asked for. */
static uint32_t grow(struct esp_kv *kv, uint64_t seq, uint32_t n_tok, struct esp_kv_copy *copy)
{
    const struct esp_kv_copy *copies;
    uint32_t n_copies;
    struct esp_err err;

    assert_int_equal(esp_kv_plan(kv, &(struct esp_kv_append){seq, n_tok}, 1, &copies, &n_copies, &err),
                     ESP_OK);
    if (copy && n_copies > 0)
        *copy = copies[0];
    esp_kv_commit(kv);
    return n_copies;
}

static void fork_seq(struct esp_kv *kv, uint64_t to, uint64_t from)
{
    struct esp_err err;

    assert_int_equal(esp_kv_fork(kv, to, from, &err), ESP_OK);
}

static void take(struct esp_kv_books *books, const struct esp_kv *kv)
{
    struct esp_err err;

    assert_int_equal(esp_kv_export(books, kv, &err), ESP_OK);
}

/* Two beams of one prompt and a third of their own: what they share, they share over there. */
static void test_shared_blocks(void **state)
{
    struct esp_kv *kv = make(16, 6, 4), *to = make(9, 4, 5);
    struct esp_kv_books books;
    struct esp_kv_copy copy = {0};
    uint32_t own[16], n;
    struct esp_err err;

    grow(kv, 9, 5, NULL);
    grow(kv, 5, 2 * B + 3, NULL);
    fork_seq(kv, 6, 5);
    fork_seq(kv, 7, 5);
    esp_kv_free(kv, 9); /* so that own numbers have a gap */
    take(&books, kv);
    assert_int_equal(books.n_seqs, 3);
    assert_int_equal(books.n_blocks, 3);
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(books.seqs[i].seq, 5 + i);
        assert_int_equal(books.seqs[i].n_tok, 2 * B + 3);
        assert_int_equal(books.seqs[i].n_blocks, 3);
        for (uint32_t j = 0; j < 3; j++) {
            assert_int_equal(books.seqs[i].blocks[j], j);
            assert_int_equal(books.own[j], esp_kv_blocks(kv, 5, &n)[j]);
        }
    }
    assert_int_equal(esp_kv_adopt(to, books.seqs, 3, 3, own, &err), ESP_OK);
    esp_kv_books_finish(&books);
    assert_int_equal(esp_kv_used_blocks(to), 3);
    assert_int_equal(esp_kv_n_seqs(to), 3);

    /* Copy on write goes on as if nothing had happened: two of the three copy, the last one keeps. */
    assert_int_equal(grow(to, 6, 1, &copy), 1);
    assert_int_equal(copy.from, own[2]);
    assert_int_equal(copy.to, esp_kv_blocks(to, 6, &n)[2]);
    assert_int_equal(grow(to, 5, 1, &copy), 1);
    assert_int_equal(copy.from, own[2]);
    assert_int_equal(grow(to, 7, 1, NULL), 0);
    assert_int_equal(esp_kv_blocks(to, 7, &n)[2], own[2]);
    assert_int_equal(esp_kv_used_blocks(to), 5);
    for (uint64_t seq = 5; seq <= 7; seq++) {
        assert_int_equal(esp_kv_blocks(to, seq, &n)[0], own[0]);
        assert_int_equal(esp_kv_len(to, seq), 2 * B + 4);
        esp_kv_free(to, seq);
    }
    assert_int_equal(esp_kv_used_blocks(to), 0);
    assert_int_equal(esp_kv_free_blocks(to), 9);
    esp_kv_destroy(&to);
    esp_kv_destroy(&kv);
}

static void test_empty_and_full(void **state)
{
    struct esp_kv *kv = make(6, 3, 4), *to = make(6, 3, 4), *small = make(5, 3, 4);
    const struct esp_kv_append more = {2, 1};
    const struct esp_kv_copy *copies;
    struct esp_kv_books books;
    uint32_t own[6], n;
    struct esp_err err;

    take(&books, kv);
    assert_int_equal(books.n_seqs, 0);
    assert_int_equal(books.n_blocks, 0);
    assert_int_equal(esp_kv_adopt(to, books.seqs, 0, 0, own, &err), ESP_OK);
    assert_int_equal(esp_kv_match(to, books.seqs, 0, 0, own, &err), ESP_OK);
    esp_kv_books_finish(&books);

    assert_int_equal(esp_kv_begin(kv, 7, &err), ESP_OK); /* nothing of it is worth telling */
    grow(kv, 1, 4 * B, NULL);
    grow(kv, 2, 2 * B, NULL);
    assert_int_equal(esp_kv_free_blocks(kv), 0);
    take(&books, kv);
    assert_int_equal(books.n_seqs, 2);
    assert_int_equal(esp_kv_adopt(small, books.seqs, books.n_seqs, books.n_blocks, own, &err), ESP_E_LIMIT);
    assert_int_equal(esp_kv_n_seqs(small), 0);
    assert_int_equal(esp_kv_free_blocks(small), 5);
    assert_int_equal(esp_kv_adopt(to, books.seqs, books.n_seqs, books.n_blocks, own, &err), ESP_OK);
    assert_int_equal(esp_kv_free_blocks(to), 0);
    assert_int_equal(esp_kv_plan(to, &more, 1, &copies, &n, &err), ESP_E_LIMIT);
    esp_kv_free(to, 1);
    assert_int_equal(esp_kv_plan(to, &more, 1, &copies, &n, &err), ESP_OK);
    esp_kv_commit(to);
    esp_kv_books_finish(&books);
    esp_kv_destroy(&kv);
    esp_kv_destroy(&to);
    esp_kv_destroy(&small);
}

/* Another layer's blocks find their places among sequences that are here already. */
static void test_match(void **state)
{
    struct esp_kv *kv = make(8, 4, 4), *here = make(12, 4, 4);
    struct esp_kv_books books;
    uint32_t own[8], n;
    struct esp_err err;

    grow(here, 77, B, NULL);
    for (int i = 0; i < 2; i++) { /* the same history, other numbers */
        struct esp_kv *k = i ? here : kv;
        grow(k, 1, B + 2, NULL);
        fork_seq(k, 2, 1);
        grow(k, 2, 3, NULL);
        grow(k, 3, 1, NULL);
    }
    esp_kv_free(here, 77);
    take(&books, kv);
    assert_int_equal(books.n_blocks, 4);
    assert_int_equal(esp_kv_match(here, books.seqs, books.n_seqs, books.n_blocks, own, &err), ESP_OK);
    for (uint32_t i = 0; i < books.n_seqs; i++)
        for (uint32_t j = 0; j < books.seqs[i].n_blocks; j++)
            assert_int_equal(own[books.seqs[i].blocks[j]], esp_kv_blocks(here, books.seqs[i].seq, &n)[j]);
    esp_kv_books_finish(&books);
    esp_kv_destroy(&kv);
    esp_kv_destroy(&here);
}

/* Books that contradict themselves: refused without a trace by a cache that would adopt them and by one that compares. */
static void test_hostile(void **state)
{
    static const uint32_t b01[] = {0, 1}, b00[] = {0, 0}, b10[] = {1, 0}, b09[] = {0, 9}, b2[] = {2},
                          many[] = {0, 1, 2, 3, 4};
    static const struct {
        const char *what;
        struct esp_kv_seq seqs[3];
        uint32_t n_seqs, n_blocks;
        esp_status code;
        const char *fragment;
    } bad[] = {
        {"no id", {{0, B, 1, b01}}, 1, 1, ESP_E_PROTO, "sequence 0"},
        {"no tokens", {{1, 0, 0, b01}}, 1, 0, ESP_E_PROTO, "for 0 tokens"},
        {"a block too few", {{1, B + 1, 1, b01}}, 1, 1, ESP_E_PROTO, "1 blocks of 8 for 9 tokens"},
        {"a block too many", {{1, B, 2, b01}}, 1, 2, ESP_E_PROTO, "2 blocks of 8 for 8 tokens"},
        {"the longest there is", {{1, UINT32_MAX, 2, b01}}, 1, 2, ESP_E_PROTO, "for 4294967295 tokens"},
        {"too long a sequence", {{1, 5 * B, 5, many}}, 1, 5, ESP_E_LIMIT, "limit 32"},
        {"a block beyond", {{1, 2 * B, 2, b09}}, 1, 2, ESP_E_PROTO, "block 9 of 2"},
        {"a block twice", {{1, 2 * B, 2, b00}}, 1, 1, ESP_E_PROTO, "in place 1, another one elsewhere"},
        {"a block at two places",
         {{1, 2 * B, 2, b01}, {2, 2 * B, 2, b10}},
         2,
         2,
         ESP_E_PROTO,
         "sequence 2 has block 1 of 2 in place 0"},
        {"nobody's block", {{1, B, 1, b01}}, 1, 2, ESP_E_PROTO, "block 1 of 2 is nobody's"},
        {"a hole in the numbers",
         {{1, 2 * B, 2, b01}, {2, B, 1, b2}},
         2,
         4,
         ESP_E_PROTO,
         "block 3 of 4 is nobody's"},
        {"a sequence twice", {{1, B, 1, b01}, {2, B, 1, b01}, {1, B, 1, b01}}, 3, 1, ESP_E_PROTO, "twice"},
    };
    struct esp_kv *empty = make(8, 3, 4);
    struct esp_err err;
    uint32_t own[16];

    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct esp_kv *here = make(8, 4, 4);

        err.text[0] = '\0';
        if (esp_kv_adopt(empty, bad[i].seqs, bad[i].n_seqs, bad[i].n_blocks, own, &err) != bad[i].code ||
            !strstr(err.text, bad[i].fragment))
            fail_msg("%s: %s", bad[i].what, err.text);
        assert_int_equal(esp_kv_n_seqs(empty), 0);
        assert_int_equal(esp_kv_free_blocks(empty), 8);
        /* As many sequences and blocks as they claim, so that it comes to looking at them. */
        for (uint32_t s = 0; s < bad[i].n_seqs; s++) {
            uint32_t spare = bad[i].n_blocks - esp_kv_used_blocks(here);
            if (s == 0 && bad[i].n_blocks > 0)
                grow(here, 1, B * (spare > 4 ? 4 : spare), NULL);
            else if (bad[i].n_blocks > 0)
                fork_seq(here, 1 + s, 1);
        }
        if (esp_kv_used_blocks(here) < bad[i].n_blocks)
            grow(here, 4, 1, NULL);
        assert_true(esp_kv_match(here, bad[i].seqs, bad[i].n_seqs, bad[i].n_blocks, own, &err) != ESP_OK);
        esp_kv_destroy(&here);
    }
    assert_int_equal(esp_kv_adopt(empty, bad[0].seqs, 4, 1, own, &err), ESP_E_LIMIT);
    assert_int_equal(esp_kv_adopt(empty, bad[0].seqs, 1, 9, own, &err), ESP_E_LIMIT);
    grow(empty, 1, 1, NULL);
    assert_int_equal(esp_kv_adopt(empty, &(struct esp_kv_seq){2, 1, 1, b01}, 1, 1, own, &err), ESP_E_PROTO);
    assert_non_null(strstr(err.text, "for an empty cache, but 1 sequences"));
    esp_kv_destroy(&empty);
}

/* Books that are sound, but not those of the sequences here. */
static void test_other_books(void **state)
{
    static const uint32_t b01[] = {0, 1}, b02[] = {0, 2}, b0[] = {0}, b1[] = {1};
    struct esp_kv *kv = make(8, 4, 4), *two = make(8, 4, 4);
    uint32_t own[8];
    struct esp_err err;
    const struct {
        const char *what;
        struct esp_kv_seq seqs[2];
        uint32_t n_seqs, n_blocks;
        const char *fragment;
    } bad[] = {
        {"another sequence",
         {{1, B + 2, 2, b01}, {3, B + 2, 2, b02}},
         2,
         3,
         "sequence 3 of 10 tokens, here it has 0"},
        {"another length",
         {{1, B + 2, 2, b01}, {2, B + 3, 2, b02}},
         2,
         3,
         "sequence 2 of 11 tokens, here it has 10"},
        {"one too few", {{1, B + 2, 2, b01}}, 1, 2, "1 sequences and 2 blocks, but 2 and 3 are here"},
        {"sharing all",
         {{1, B + 2, 2, b01}, {2, B + 2, 2, b01}},
         2,
         2,
         "2 sequences and 2 blocks, but 2 and 3"},
    };

    grow(kv, 1, B, NULL); /* a shared first block and two tails */
    fork_seq(kv, 2, 1);
    grow(kv, 1, 2, NULL);
    grow(kv, 2, 2, NULL);
    assert_int_equal(esp_kv_used_blocks(kv), 3);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        if (esp_kv_match(kv, bad[i].seqs, bad[i].n_seqs, bad[i].n_blocks, own, &err) != ESP_E_PROTO ||
            !strstr(err.text, bad[i].fragment))
            fail_msg("%s: %s", bad[i].what, err.text);
    }
    /* Two sequences of a block each where they share one here, and the other way round. */
    grow(two, 1, B, NULL);
    fork_seq(two, 2, 1);
    grow(two, 3, 1, NULL);
    {
        const struct esp_kv_seq apart[] = {{1, B, 1, b0}, {2, B, 1, b1}, {3, 1, 1, b0}};
        const struct esp_kv_seq twice[] = {{1, B, 1, b0}, {1, B, 1, b0}, {3, 1, 1, b1}};

        assert_int_equal(esp_kv_match(two, apart, 3, 2, own, &err), ESP_E_PROTO);
        assert_non_null(strstr(err.text, "sequence 2 shares its block 0 with others than here"));
        assert_int_equal(esp_kv_match(two, twice, 3, 2, own, &err), ESP_E_PROTO);
        assert_non_null(strstr(err.text, "twice"));
    }
    esp_kv_destroy(&kv);
    esp_kv_destroy(&two);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shared_blocks), cmocka_unit_test(test_empty_and_full),
        cmocka_unit_test(test_match),         cmocka_unit_test(test_hostile),
        cmocka_unit_test(test_other_books),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
