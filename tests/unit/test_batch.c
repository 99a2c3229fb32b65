/*
 * A step in words: row records, tiles, tables, wants, copies and workgroup counts where shaders/push.h says, within
 * the room asked for.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "worker/batch.h"

#define MAX_ROWS   20u
#define MAX_COPIES 3u
#define MAX_TABLE  9u
#define UNTOUCHED  0xeeeeeeeeu

struct step {
    struct esp_batch b;
    uint32_t *words;
    size_t n;
};

/* Exactly the room that it asks for: the address sanitizer sees what goes beyond. */
static void step_open(struct step *s)
{
    s->n = esp_batch_n_words(MAX_ROWS, MAX_COPIES, MAX_TABLE);
    s->words = malloc(s->n * sizeof *s->words);
    assert_non_null(s->words);
    memset(s->words, 0xee, s->n * sizeof *s->words);
    esp_batch_init(&s->b, s->words, MAX_ROWS, MAX_COPIES);
    esp_batch_begin(&s->b);
}

static const uint32_t *row_record(const struct step *s, uint32_t i)
{
    return s->words + s->words[ESP_STEP_ROWS] + i * ESP_ROW;
}

static const uint32_t *tile_record(const struct step *s, uint32_t i)
{
    return s->words + s->words[ESP_STEP_TILES] + i * ESP_TILE;
}

static void test_records(void **state)
{
    static const uint32_t table_a[3] = {7, 2, 9}, table_b[2] = {4, 1};
    const struct esp_grids none = {0};
    struct step s;
    uint32_t a, b;

    step_open(&s);
    a = esp_batch_table(&s.b, table_a, 3);
    b = esp_batch_table(&s.b, table_b, 2);
    for (uint32_t i = 0; i < 5; i++) /* five rows with a window that moves */
        esp_batch_row(&s.b, 100 + i, 64 + i, 65 + i, 50 + i, 9 * ESP_KV_BLOCK + i);
    esp_batch_row(&s.b, ESP_ROW_FEATURE | 3, 33, 40, 0, 1 * ESP_KV_BLOCK + 1);
    esp_batch_tiles(&s.b, 0, 5, a, 2);
    esp_batch_tiles(&s.b, 5, 1, b, 2);
    esp_batch_copy(&s.b, 8, 3);
    esp_batch_copy(&s.b, 8, 5);
    esp_batch_seal(&s.b, &none);

    assert_int_equal(s.words[ESP_STEP_N_ROWS], 6);
    assert_int_equal(s.words[ESP_STEP_N_WANTS], 0);
    for (uint32_t i = 0; i < 5; i++) {
        const uint32_t want[6] = {100 + i, 64 + i, 65 + i, 0, 50 + i, 9 * ESP_KV_BLOCK + i};
        const uint32_t *row = row_record(&s, i);
        const uint32_t got[6] = {row[ESP_ROW_SRC], row[ESP_ROW_POS],    row[ESP_ROW_HI],
                                 row[ESP_ROW_LO],  row[ESP_ROW_LO_WIN], row[ESP_ROW_SLOT]};
        assert_memory_equal(got, want, sizeof want);
    }
    assert_int_equal(row_record(&s, 5)[ESP_ROW_SRC], ESP_ROW_FEATURE | 3);
    assert_memory_equal(s.words + a, table_a, sizeof table_a);
    assert_memory_equal(s.words + b, table_b, sizeof table_b);

    /* tiles of two rows and the rest: what the widest of their rows reaches */
    assert_int_equal(s.b.count[ESP_COUNT_TILES], 4);
    {
        static const uint32_t want[4][5] = {/* row, n, hi, lo, lo_win */
                                            {0, 2, 66, 0, 50},
                                            {2, 2, 68, 0, 52},
                                            {4, 1, 69, 0, 54},
                                            {5, 1, 40, 0, 0}};
        for (uint32_t i = 0; i < 4; i++) {
            const uint32_t *tile = tile_record(&s, i);
            const uint32_t got[5] = {tile[ESP_TILE_ROW], tile[ESP_TILE_N], tile[ESP_TILE_HI],
                                     tile[ESP_TILE_LO], tile[ESP_TILE_LO_WIN]};
            assert_memory_equal(got, want[i], sizeof got);
            assert_int_equal(tile[ESP_TILE_TABLE], i < 3 ? a : b);
        }
    }
    {
        static const uint32_t want[4] = {8, 3, 8, 5};
        assert_memory_equal(s.words + s.words[ESP_STEP_COPIES], want, sizeof want);
    }
    free(s.words);
}

/* Tiles' positions in slices of 64: all of them, or none where there is no room. */
static void test_items(void **state)
{
    static const uint32_t want[4][2] = {{0, 0}, {0, 1}, {0, 2}, {1, 0}};
    const struct esp_grids none = {0};
    struct step s;
    const uint32_t *item;

    step_open(&s);
    esp_batch_row(&s.b, 0, 128, 129, 100, 0);
    esp_batch_row(&s.b, 0, 63, 64, 0, 0);
    esp_batch_tiles(&s.b, 0, 1, 0, 1);
    esp_batch_tiles(&s.b, 1, 1, 0, 1);
    assert_false(esp_batch_items(&s.b, 3));
    assert_int_equal(s.b.count[ESP_COUNT_ITEMS], 0);
    assert_true(esp_batch_items(&s.b, 4));
    esp_batch_seal(&s.b, &none);
    assert_int_equal(s.words[ESP_STEP_N_TILES], 2);
    assert_int_equal(s.b.count[ESP_COUNT_ITEMS], 4);
    item = s.words + s.words[ESP_STEP_ITEMS];
    for (uint32_t i = 0; i < 4; i++, item += ESP_ITEM) {
        assert_int_equal(item[ESP_ITEM_TILE], want[i][0]);
        assert_int_equal(item[ESP_ITEM_SLICE], want[i][1]);
    }
    assert_int_equal(tile_record(&s, 0)[ESP_TILE_ITEM], 0);
    assert_int_equal(tile_record(&s, 1)[ESP_TILE_ITEM], 3);
    free(s.words);
}

/* A device's own memory gets what the step uses, and nothing else is written there. */
static void test_mirror(void **state)
{
    static const uint32_t table[2] = {7, 2};
    static const struct esp_want want = {.row = 0, .k = 5};
    const struct esp_grids none = {0};
    uint32_t *device, at, n_written = 0;
    struct step s;

    step_open(&s);
    device = malloc(s.n * sizeof *device);
    assert_non_null(device);
    memset(device, 0xee, s.n * sizeof *device);
    esp_batch_mirror(&s.b, device);
    esp_batch_begin(&s.b);
    at = esp_batch_table(&s.b, table, 2);
    esp_batch_row(&s.b, 3, 40, 41, 0, 8);
    esp_batch_tiles(&s.b, 0, 1, at, 1);
    assert_true(esp_batch_items(&s.b, 1));
    esp_batch_copy(&s.b, 4, 6);
    esp_batch_wants(&s.b, &want, 1);
    assert_int_equal(device[0], UNTOUCHED); /* not before it is sealed */
    esp_batch_seal(&s.b, &none);
    assert_memory_equal(device, s.words, ESP_STEP_GRIDS * sizeof *device);
    assert_memory_equal(device + s.b.rows, s.words + s.b.rows, ESP_ROW * sizeof *device);
    assert_memory_equal(device + s.b.tiles, s.words + s.b.tiles, ESP_TILE * sizeof *device);
    assert_memory_equal(device + s.b.wants, s.words + s.b.wants, ESP_WANT * sizeof *device);
    assert_memory_equal(device + s.b.copies, s.words + s.b.copies, 2 * sizeof *device);
    assert_memory_equal(device + at, table, sizeof table);
    assert_memory_equal(device + s.b.items, s.words + s.b.items, ESP_ITEM * sizeof *device);
    for (size_t i = s.b.rows; i < s.n; i++)
        n_written += device[i] != UNTOUCHED;
    assert_true(n_written <= ESP_ROW + ESP_TILE + ESP_WANT + 2 + 2 + ESP_ITEM);
    free(device);
    free(s.words);
}

/* A tile of rows inside and outside of a window: the prefix sees everything, whichever row comes first. */
static void test_tile_reach(void **state)
{
    const struct esp_grids none = {0};
    struct step s;

    step_open(&s);
    esp_batch_row(&s.b, 0, 9, 30, 0, 0); /* prefix */
    esp_batch_row(&s.b, 0, 40, 41, 33, 0);
    esp_batch_row(&s.b, 0, 41, 42, 34, 0);
    esp_batch_row(&s.b, 0, 10, 30, 0, 0);
    esp_batch_tiles(&s.b, 0, 2, 0, 8);
    esp_batch_tiles(&s.b, 2, 2, 0, 8);
    esp_batch_seal(&s.b, &none);
    assert_int_equal(tile_record(&s, 0)[ESP_TILE_HI], 41);
    assert_int_equal(tile_record(&s, 0)[ESP_TILE_LO_WIN], 0);
    assert_int_equal(tile_record(&s, 1)[ESP_TILE_HI], 42);
    assert_int_equal(tile_record(&s, 1)[ESP_TILE_LO_WIN], 0);
    free(s.words);
}

/* What a profile counts: a sequence's positions once, however many tiles it is cut into. */
static void test_counts(void **state)
{
    const struct esp_grids none = {0};
    const struct esp_want want = {.row = 5};
    struct esp_profile_counts counts;
    struct step s;

    step_open(&s);
    for (uint32_t i = 0; i < 5; i++) /* positions 10 to 14, behind each other, with a window of 4 */
        esp_batch_row(&s.b, 0, 10 + i, 11 + i, 7 + i, 0);
    esp_batch_row(&s.b, 0, 20, 21, 17, 0);
    esp_batch_tiles(&s.b, 0, 5, 700, 2);
    esp_batch_tiles(&s.b, 5, 1, 800, 2);
    esp_batch_wants(&s.b, &want, 1);
    esp_batch_seal(&s.b, &none);
    esp_batch_counts(&s.b, &counts);
    assert_int_equal(counts.rows, 6);
    assert_int_equal(counts.wants, 1);
    assert_true(counts.pairs[0] == 11 + 12 + 13 + 14 + 15 + 21);
    assert_true(counts.pairs[1] == 6 * 4);
    assert_true(counts.positions[0] == 15 + 21);
    assert_true(counts.positions[1] == 15 - 7 + 4);
    free(s.words);
}

static void test_wants(void **state)
{
    const struct esp_grids none = {0};
    struct esp_want wants[ESP_HEAD_ROWS] = {{0}};
    struct step s;

    step_open(&s);
    for (uint32_t i = 0; i < ESP_HEAD_ROWS; i++)
        wants[i] = (struct esp_want){.row = 2 * i, .k = i, .has_target = i % 2, .target = 77 + i};
    esp_batch_wants(&s.b, wants, ESP_HEAD_ROWS);
    esp_batch_wants(&s.b, wants + 4, 3); /* replaces them */
    esp_batch_seal(&s.b, &none);
    assert_int_equal(s.words[ESP_STEP_N_WANTS], 3);
    for (uint32_t i = 0; i < 3; i++) {
        const uint32_t *w = s.words + s.words[ESP_STEP_WANTS] + i * ESP_WANT;
        assert_int_equal(w[ESP_WANT_ROW], 2 * (i + 4));
        assert_int_equal(w[ESP_WANT_K], i + 4);
        assert_int_equal(w[ESP_WANT_TARGET], i % 2 ? 77 + i + 4 : ESP_NONE);
    }
    free(s.words);
}

/* Full to the brim, every region of it: nothing overlaps, nothing goes beyond. */
static void test_full(void **state)
{
    struct esp_want wants[ESP_HEAD_ROWS] = {{0}};
    struct esp_grids grids = {.n = ESP_STEP_N_GRIDS};
    uint32_t table[MAX_TABLE];
    struct step s;

    for (uint32_t i = 0; i < ESP_STEP_N_GRIDS; i++)
        grids.grid[i] = (struct esp_grid){.count = ESP_COUNT_ONE, .div = 1, .axis = 0, .dims = {1, i, 1}};
    for (uint32_t i = 0; i < MAX_TABLE; i++)
        table[i] = 5000 + i;
    step_open(&s);
    for (uint32_t round = 0; round < 2; round++) { /* begin forgets the step before */
        esp_batch_begin(&s.b);
        for (uint32_t i = 0; i < MAX_ROWS; i++)
            esp_batch_row(&s.b, 1000 + i, i, i + 1, 0, i);
        esp_batch_tiles(&s.b, 0, MAX_ROWS, esp_batch_table(&s.b, table, MAX_TABLE), 1);
        for (uint32_t i = 0; i < MAX_COPIES; i++)
            esp_batch_copy(&s.b, 2000 + i, 3000 + i);
        for (uint32_t i = 0; i < ESP_HEAD_ROWS; i++)
            wants[i].row = 4000 + i;
        esp_batch_wants(&s.b, wants, ESP_HEAD_ROWS);
        esp_batch_seal(&s.b, &grids);
        assert_int_equal(s.words[ESP_STEP_N_ROWS], MAX_ROWS);
        for (uint32_t i = 0; i < MAX_ROWS; i++) {
            assert_int_equal(row_record(&s, i)[ESP_ROW_SRC], 1000 + i);
            assert_int_equal(tile_record(&s, i)[ESP_TILE_ROW], i);
            assert_memory_equal(s.words + tile_record(&s, i)[ESP_TILE_TABLE], table, sizeof table);
        }
        for (uint32_t i = 0; i < MAX_COPIES; i++)
            assert_int_equal(s.words[s.words[ESP_STEP_COPIES] + 2 * i], 2000 + i);
        for (uint32_t i = 0; i < ESP_HEAD_ROWS; i++)
            assert_int_equal(s.words[s.words[ESP_STEP_WANTS] + i * ESP_WANT], 4000 + i);
        for (uint32_t i = 0; i < ESP_STEP_N_GRIDS; i++)
            assert_int_equal(s.words[ESP_STEP_GRIDS + i * ESP_STEP_GRID + 1], i);
    }
    assert_int_equal(s.words[s.n - 1], 5000 + MAX_TABLE - 1); /* the last word asked for is used */
    free(s.words);
}

static void test_grids(void **state)
{
    const struct esp_grids grids = {
        .n = 3,
        .grid = {{.count = ESP_COUNT_ROWS, .div = 8, .axis = 0, .dims = {1, 5, 1}},
                 {.count = ESP_COUNT_WANTS, .div = 4, .axis = 1, .dims = {9, 1, 1}},
                 {.count = ESP_COUNT_COPIES, .div = 1, .axis = 2, .dims = {3, 2, 1}}}};
    static const uint32_t want[3][3] = {{3, 5, 1}, {9, 1, 1}, {3, 2, 0}};
    struct esp_want wants[1] = {{0}};
    struct step s;

    step_open(&s);
    for (uint32_t i = 0; i < 17; i++)
        esp_batch_row(&s.b, 0, 0, 0, 0, 0);
    esp_batch_wants(&s.b, wants, 1);
    esp_batch_seal(&s.b, &grids);
    for (uint32_t i = 0; i < 3; i++)
        assert_memory_equal(s.words + ESP_STEP_GRIDS + i * ESP_STEP_GRID, want[i], sizeof want[i]);
    assert_int_equal(s.words[ESP_STEP_GRIDS + 3 * ESP_STEP_GRID], UNTOUCHED);
    free(s.words);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_records), cmocka_unit_test(test_items),
                                       cmocka_unit_test(test_mirror),  cmocka_unit_test(test_tile_reach),
                                       cmocka_unit_test(test_counts),  cmocka_unit_test(test_wants),
                                       cmocka_unit_test(test_full),    cmocka_unit_test(test_grids)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
