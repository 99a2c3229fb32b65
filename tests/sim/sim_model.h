/**
 * The model of the simulated fleet: arithmetic that is exact, cheap and the same at every split of the layers, but of
 * the shape of the real one, so that whatever is lost, doubled or led astray changes the tokens.
 *
 * A row is one number x of 64 bits. Layer l keeps a cell for each row, as a layer keeps K and V, and lets the row see
 * the cells of the positions that its row may see: the whole prefix from within it, [0, p] behind it.
 *
 *   cell[p,l] = mix(x + l)            a row's own, so that cells can be moved and made anew in any order
 *   y         = mix(x + sum over the p' that p sees of mix(cell[p',l] + p') + l)
 *
 * In the encoder there are no cells: y = mix(x + l). In frames a row is f32[D]: four numbers of 16 bits, then zeros.
 */
#ifndef ESP_TEST_SIM_MODEL_H
#define ESP_TEST_SIM_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/config.h"
#include "proto/wire.h"

#define SIM_ROW_FLOATS 4  /* a frame's rows have at least so many */
#define SIM_PEAK       16 /* ids that stand out in a row of logits */

/** A bijection of 64 bits that leaves no trace of order. */
uint64_t sim_mix(uint64_t x);

/** Row r of a picture before the first encoder layer. Pixels: f32[3,S,S], n floats, of any alignment. */
uint64_t sim_picture(const void *pixels, size_t n);
uint64_t sim_patch(uint64_t picture, uint32_t row);
uint64_t sim_encode_layer(uint64_t x, uint32_t layer);
uint64_t sim_project(uint64_t x);

/** A token before the first decoder layer. */
uint64_t sim_embed(int32_t id);
uint64_t sim_cell(uint64_t x, uint32_t layer);
/** What a cell adds to the sum of those who see it. */
uint64_t sim_seen(uint64_t cell, uint32_t pos);
uint64_t sim_decode_layer(uint64_t x, uint64_t seen, uint32_t layer);

/** The greedy choice behind a row that left the last layer: 2 .. vocab-1, so that no answer ends by itself. */
uint32_t sim_choice(uint64_t x, uint32_t vocab);
/** Its logits: SIM_PEAK ids from the choice on stand out, each less than the one before; vocab > SIM_PEAK. */
float sim_logit(uint64_t x, uint32_t id, uint32_t vocab);
float sim_lse(uint32_t vocab);

/** A row as f32[width] and back; false for floats that are no such row. `row` of any alignment. */
void sim_row_put(float *row, uint32_t width, uint64_t x);
bool sim_row_get(uint64_t *x, const void *row, uint32_t width);

/**
 * The tokens that a greedy request gets, from the model in one piece: what the cluster's must equal.
 *
 * @param out       u32[n_out]
 * @param pictures  n_picture of sim_picture
 * @param ids       n_id of the prompt, without the pictures' places
 * @return false without memory
 */
bool sim_expect(uint32_t *out, uint32_t n_out, const struct esp_config *config, const uint64_t *pictures,
                uint32_t n_picture, const uint32_t *ids, uint32_t n_id);

#endif
