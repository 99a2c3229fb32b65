/* What an opened checkpoint is made of: for checkpoint.c and checkpoint_remote.c alone. */
#ifndef ESP_MODEL_CHECKPOINT_STATE_H
#define ESP_MODEL_CHECKPOINT_STATE_H

#include "model/checkpoint.h"
#include "model/content.h"
#include "model/json.h"
#include "model/safetensors.h"
#include "model/shard_index.h"

/** Of a checkpoint that is somewhere else: its tensors lie in one reserved range, each at a page of its own. */
struct esp_remote {
    uint32_t chunk_bytes, n_tensor;
    struct esp_tensor *tensor;
    char *names;                           /* ESP_TENSOR_NAME_MAX bytes each */
    uint8_t (*content)[ESP_CONTENT_BYTES]; /* [n_tensor], for those that have one */
    void *base;                            /* NULL: not reserved */
    size_t n_bytes;
};

struct esp_checkpoint {
    char *dir;
    struct esp_config config;
    size_t n_shard;
    struct esp_safetensors *shard[ESP_MAX_SHARDS];
    size_t n_tensor;
    const struct esp_tensor **by_name; /* of all shards, sorted */
    const struct esp_tensor *role[ESP_N_ROLE][ESP_MAX_LAYERS];
    struct esp_tensor *quantised; /* of n_quantised tensors that files hold as bytes: what they are to us */
    size_t n_quantised;
    bool marked;              /* the files say that there may be some */
    struct esp_remote remote; /* zeros: the files are here */
};

/** "[2048, 1152]" in buf, cut to fit. */
const char *esp_shape_text(char buf[ESP_SHOWN], const uint64_t *shape, uint32_t n_dim);

/** Unmaps and frees. */
void esp_remote_finish(struct esp_remote *remote);

#endif
