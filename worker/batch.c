#include "worker/batch.h"

#include <string.h>

#define REGIONS_AT (ESP_STEP_GRIDS + ESP_STEP_N_GRIDS * ESP_STEP_GRID)

size_t esp_batch_n_words(uint32_t max_rows, uint32_t max_copies, uint32_t max_table)
{
    /* in the worst case every row is a tile */
    return REGIONS_AT + (size_t)max_rows * (ESP_ROW + ESP_TILE) + ESP_HEAD_ROWS * ESP_WANT +
           2 * (size_t)max_copies + max_table;
}

void esp_batch_init(struct esp_batch *b, uint32_t *words, uint32_t max_rows, uint32_t max_copies)
{
    memset(b, 0, sizeof *b);
    b->words = words;
    b->rows = REGIONS_AT;
    b->tiles = b->rows + max_rows * ESP_ROW;
    b->wants = b->tiles + max_rows * ESP_TILE;
    b->copies = b->wants + ESP_HEAD_ROWS * ESP_WANT;
    b->tables = b->copies + 2 * max_copies;
}

void esp_batch_mirror(struct esp_batch *b, uint32_t *device)
{
    b->device = device;
}

void esp_batch_begin(struct esp_batch *b)
{
    memset(b->count, 0, sizeof b->count);
    b->count[ESP_COUNT_ONE] = 1;
    b->n_table = b->items = 0;
}

uint32_t esp_batch_table(struct esp_batch *b, const uint32_t *blocks, uint32_t n_blocks)
{
    uint32_t at = b->tables + b->n_table;
    memcpy(b->words + at, blocks, n_blocks * sizeof *blocks);
    b->n_table += n_blocks;
    return at;
}

void esp_batch_row(struct esp_batch *b, uint32_t src, uint32_t pos, uint32_t hi, uint32_t lo_win,
                   uint32_t slot)
{
    uint32_t *row = b->words + b->rows + b->count[ESP_COUNT_ROWS]++ * ESP_ROW;
    row[ESP_ROW_SRC] = src;
    row[ESP_ROW_POS] = pos;
    row[ESP_ROW_HI] = hi;
    row[ESP_ROW_LO] = 0;
    row[ESP_ROW_LO_WIN] = lo_win;
    row[ESP_ROW_SLOT] = slot;
}

void esp_batch_tiles(struct esp_batch *b, uint32_t row, uint32_t n, uint32_t table, uint32_t per_tile)
{
    for (uint32_t i = 0; i < n; i += per_tile) {
        const uint32_t m = n - i < per_tile ? n - i : per_tile;
        const uint32_t *rows = b->words + b->rows + (row + i) * ESP_ROW;
        uint32_t *tile = b->words + b->tiles + b->count[ESP_COUNT_TILES]++ * ESP_TILE;
        tile[ESP_TILE_ROW] = row + i;
        tile[ESP_TILE_N] = m;
        tile[ESP_TILE_TABLE] = table;
        tile[ESP_TILE_HI] = rows[ESP_ROW_HI];
        tile[ESP_TILE_LO] = rows[ESP_ROW_LO];
        tile[ESP_TILE_LO_WIN] = rows[ESP_ROW_LO_WIN];
        for (uint32_t j = 1; j < m; j++) {
            rows += ESP_ROW;
            if (rows[ESP_ROW_HI] > tile[ESP_TILE_HI])
                tile[ESP_TILE_HI] = rows[ESP_ROW_HI];
            if (rows[ESP_ROW_LO_WIN] < tile[ESP_TILE_LO_WIN])
                tile[ESP_TILE_LO_WIN] = rows[ESP_ROW_LO_WIN];
        }
    }
}

bool esp_batch_items(struct esp_batch *b, uint32_t max)
{
    uint32_t *tile = b->words + b->tiles, *item;
    uint64_t n = 0;

    for (uint32_t i = 0; i < b->count[ESP_COUNT_TILES]; i++)
        n += (tile[i * ESP_TILE + ESP_TILE_HI] + ESP_SLICE - 1) / ESP_SLICE;
    if (n > max)
        return false;
    b->items = b->tables + b->n_table;
    b->n_table += (uint32_t)n * ESP_ITEM;
    item = b->words + b->items;
    for (uint32_t i = 0; i < b->count[ESP_COUNT_TILES]; i++, tile += ESP_TILE) {
        tile[ESP_TILE_ITEM] = b->count[ESP_COUNT_ITEMS];
        for (uint32_t s = 0; s * ESP_SLICE < tile[ESP_TILE_HI]; s++, item += ESP_ITEM) {
            item[ESP_ITEM_TILE] = i;
            item[ESP_ITEM_SLICE] = s;
            b->count[ESP_COUNT_ITEMS]++;
        }
    }
    return true;
}

void esp_batch_copy(struct esp_batch *b, uint32_t from, uint32_t to)
{
    uint32_t *pair = b->words + b->copies + 2 * b->count[ESP_COUNT_COPIES]++;
    pair[0] = from;
    pair[1] = to;
}

void esp_batch_wants(struct esp_batch *b, const struct esp_want *wants, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t *to = b->words + b->wants + i * ESP_WANT;
        to[ESP_WANT_ROW] = wants[i].row;
        to[ESP_WANT_K] = wants[i].k;
        to[ESP_WANT_TARGET] = wants[i].has_target ? wants[i].target : ESP_NONE;
    }
    b->count[ESP_COUNT_WANTS] = n;
}

void esp_batch_counts(const struct esp_batch *b, struct esp_profile_counts *out)
{
    const uint32_t *tile = b->words + b->tiles, *row = b->words + b->rows;
    uint32_t n;

    memset(out, 0, sizeof *out);
    out->rows = b->count[ESP_COUNT_ROWS];
    out->wants = b->count[ESP_COUNT_WANTS];
    for (uint32_t i = 0; i < b->count[ESP_COUNT_ROWS]; i++, row += ESP_ROW) {
        out->pairs[0] += row[ESP_ROW_HI] - row[ESP_ROW_LO];
        out->pairs[1] += row[ESP_ROW_HI] - row[ESP_ROW_LO_WIN];
    }
    for (uint32_t i = 0; i < b->count[ESP_COUNT_TILES]; i += n) { /* a sequence's tiles lie together */
        uint32_t hi = 0, lo[2] = {UINT32_MAX, UINT32_MAX};
        for (n = 0;
             i + n < b->count[ESP_COUNT_TILES] && tile[n * ESP_TILE + ESP_TILE_TABLE] == tile[ESP_TILE_TABLE];
             n++) {
            const uint32_t *t = tile + n * ESP_TILE;
            hi = t[ESP_TILE_HI] > hi ? t[ESP_TILE_HI] : hi;
            lo[0] = t[ESP_TILE_LO] < lo[0] ? t[ESP_TILE_LO] : lo[0];
            lo[1] = t[ESP_TILE_LO_WIN] < lo[1] ? t[ESP_TILE_LO_WIN] : lo[1];
        }
        tile += n * ESP_TILE;
        out->positions[0] += hi - lo[0];
        out->positions[1] += hi - lo[1];
    }
}

static void write_out(struct esp_batch *b, uint32_t at, uint32_t n)
{
    memcpy(b->device + at, b->words + at, n * sizeof *b->words);
}

void esp_batch_seal(struct esp_batch *b, const struct esp_grids *grids)
{
    b->words[ESP_STEP_N_ROWS] = b->count[ESP_COUNT_ROWS];
    b->words[ESP_STEP_N_WANTS] = b->count[ESP_COUNT_WANTS];
    b->words[ESP_STEP_ROWS] = b->rows;
    b->words[ESP_STEP_TILES] = b->tiles;
    b->words[ESP_STEP_WANTS] = b->wants;
    b->words[ESP_STEP_COPIES] = b->copies;
    b->words[ESP_STEP_ITEMS] = b->items;
    b->words[ESP_STEP_N_TILES] = b->count[ESP_COUNT_TILES];
    esp_grids_write(grids, b->count, b->words);
    if (b->device) {
        write_out(b, 0, REGIONS_AT);
        write_out(b, b->rows, b->count[ESP_COUNT_ROWS] * ESP_ROW);
        write_out(b, b->tiles, b->count[ESP_COUNT_TILES] * ESP_TILE);
        write_out(b, b->wants, b->count[ESP_COUNT_WANTS] * ESP_WANT);
        write_out(b, b->copies, b->count[ESP_COUNT_COPIES] * 2);
        write_out(b, b->tables, b->n_table);
    }
}
