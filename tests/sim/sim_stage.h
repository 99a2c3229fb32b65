/**
 * What sim_stage.c and sim_move.c share: a simulated stage's insides. Included by them alone.
 */
#ifndef ESP_TEST_SIM_STAGE_H
#define ESP_TEST_SIM_STAGE_H

#include "worker/kv.h"
#include "worker/stage.h"

#define SIM_BLOCK 32u /* tokens of a KV block */
#define SIM_NONE  UINT32_MAX

struct esp_stage {
    struct esp_shelf *shelf;
    bool on_shelf;
    struct sim_device *device;
    const struct esp_config *c;
    struct esp_stage_spec spec;
    uint32_t n_enc, n_dec; /* layers here */
    struct esp_kv *kv;     /* NULL without decoder layers */
    bool has_books;        /* kv holds the placement's sequences; false: it has yet to be told of them */
    uint64_t *cell;        /* [n_blocks, SIM_BLOCK, n_dec] */
    struct esp_kv_append *appends;
    uint64_t *images;   /* [max_images] ids; 0: free */
    uint64_t *features; /* [max_images, N] rows */
    uint64_t weight_bytes, kv_bytes, scratch_bytes, loaded_bytes;
};

/** Books, cells and features of a former stage, as far as the new one has room and use for them. */
esp_status sim_stage_inherit(struct esp_stage *s, const struct esp_stage *former, struct esp_err *err);

#endif
