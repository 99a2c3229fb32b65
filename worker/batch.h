/**
 * A step as the words that kernels read: row records, attention tiles, block tables, wants, block copies and
 * workgroup counts (layout: shaders/push.h). Pure host code over a mapped buffer; the caller knows that the
 * counts fit what the batch was made for.
 */
#ifndef ESP_WORKER_BATCH_H
#define ESP_WORKER_BATCH_H

#include "proto/wire.h"
#include "worker/ops.h"

struct esp_batch {
    uint32_t *words;                             /* the step buffer, or what is written to it by seal */
    uint32_t rows, tiles, wants, copies, tables; /* where each region begins */
    uint32_t n_table;                            /* table words used so far, those of items too */
    uint32_t items;                              /* where they begin; 0: none */
    uint32_t *device;                            /* NULL, or the step buffer where it is not to be read */
    uint32_t count[ESP_N_COUNT];
};

/** Words that a step buffer for so much at once must have. */
size_t esp_batch_n_words(uint32_t max_rows, uint32_t max_copies, uint32_t max_table);

/** Lays the regions out over `words`; once a buffer. */
void esp_batch_init(struct esp_batch *b, uint32_t *words, uint32_t max_rows, uint32_t max_copies);

/**
 * From now on `words` are the host's own, and seal writes what is in use of them to `device`: memory that the host
 * reaches over a bus is written in one go, and never read.
 */
void esp_batch_mirror(struct esp_batch *b, uint32_t *device);

/** Forgets the last step. */
void esp_batch_begin(struct esp_batch *b);

/** A sequence's block table; returns the word it begins at. */
uint32_t esp_batch_table(struct esp_batch *b, const uint32_t *blocks, uint32_t n_blocks);

/** Next row. Row i of a sequence at position pos goes to slot blocks[pos / ESP_KV_BLOCK] and sees [lo, hi).
 */
void esp_batch_row(struct esp_batch *b, uint32_t src, uint32_t pos, uint32_t hi, uint32_t lo_win,
                   uint32_t slot);

/** Cuts rows [row, row + n) of one sequence into tiles of up to per_tile. */
void esp_batch_tiles(struct esp_batch *b, uint32_t row, uint32_t n, uint32_t table, uint32_t per_tile);

/**
 * Cuts every tile's positions into slices of ESP_SLICE, an item each; after the last tile and table. An item takes
 * ESP_ITEM words of the tables' room.
 * @param max  items there is room for
 * False, and there are none, if there would be more.
 */
bool esp_batch_items(struct esp_batch *b, uint32_t max);

void esp_batch_copy(struct esp_batch *b, uint32_t from, uint32_t to);

/** Replaces the wants: n <= ESP_HEAD_ROWS. */
void esp_batch_wants(struct esp_batch *b, const struct esp_want *wants, uint32_t n);

/** What stands in it, for the profile. */
void esp_batch_counts(const struct esp_batch *b, struct esp_profile_counts *out);

/** Writes header and workgroup counts: after this the device may look. */
void esp_batch_seal(struct esp_batch *b, const struct esp_grids *grids);

#endif
