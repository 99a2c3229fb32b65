/**
 * A stage without a device: worker/stage.h over plain arithmetic, exact in f32, the same at every split of
 * the layers. Link it instead of the engine to test what is around a stage.
 *
 *   decoder layer l:  y = x + (l + 1) + h / 2,  h = the sum of this layer's x over the sequence's rows so far
 *   encoder layer l:  y = x + (l + 1) / 4;  the projector doubles
 *
 * A sequence's KV of a layer is that layer's h: it travels as the first FAKE_WIDTH floats of the sequence's last block, and
 * every other block tells whose it is. A piece holds FAKE_MOVE_BLOCKS blocks at most.
 *
 * Ids below make it misbehave, on the stage that holds the last decoder layer.
 */
#ifndef ESP_TEST_FAKE_STAGE_H
#define ESP_TEST_FAKE_STAGE_H

#include <stdatomic.h>

#define FAKE_WIDTH        4  /* of rows, both towers */
#define FAKE_PICTURE_ROWS 2  /* N */
#define FAKE_VOCAB        16 /* ids 0 .. 15 */
#define FAKE_LAYERS       8  /* of either tower at most */
#define FAKE_SEQS         16
#define FAKE_IMAGES       8
#define FAKE_BLOCK_TOKENS 8
#define FAKE_LAYER_BYTES  50 /* read for a layer that the shelf does not hold */
#define FAKE_MOVE_BLOCKS  2

#define FAKE_SEQ_LIMIT  1001 /* refused: ESP_E_LIMIT */
#define FAKE_SEQ_DEVICE 1002 /* ESP_E_DEVICE */
#define FAKE_SEQ_SLOW   1003 /* takes FAKE_SLOW_MS */
#define FAKE_SLOW_MS    20
#define FAKE_SEQ_STUCK  1004 /* takes 4 s */

/* kv_tokens of a placement */
#define FAKE_KV_NOMEM   1 /* creation fails */
#define FAKE_KV_SLOW    2 /* loads for 0.6 s, reporting every 10 ms */
#define FAKE_KV_WRONG   3 /* a check finds the stage's last layer off by 0.5 */
#define FAKE_KV_ENDLESS 4 /* a check finds one layer right and goes on until it is stopped */
#define FAKE_KV_CRAWL   5 /* a warm one: 64 MiB at 100 MB/s, in slices as asked for */

/** Bytes of the last slice of a warm placement that this process asked for. */
extern atomic_ullong fake_slice_bytes;

#endif
