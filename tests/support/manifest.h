/** What a coordinator would say of a checkpoint, made without one. What cannot go on fails the test. */
#ifndef ESP_TESTS_SUPPORT_MANIFEST_H
#define ESP_TESTS_SUPPORT_MANIFEST_H

#include "model/remote.h"
#include "proto/wire.h"

struct esp_test_manifest {
    struct esp_checkpoint *ck; /* the one that it tells of */
    struct esp_msg msg;        /* a Manifest, borrowing from here */
    uint32_t n_tensor, n_chunk;
    const struct esp_tensor **tensor;
    struct esp_tensor_info *info;
    uint32_t *base; /* [n_tensor + 1] a tensor's first chunk */
    uint8_t (*hash)[ESP_HASH_BYTES];
    char *config;
};

/** Opens a checkpoint directory and hashes it; by role, then layer. */
void esp_test_manifest_make(struct esp_test_manifest *out, const char *dir, uint32_t chunk_bytes);
void esp_test_manifest_free(struct esp_test_manifest *m);

/** The bytes of a chunk; borrowed. */
const void *esp_test_chunk(const struct esp_test_manifest *m, uint32_t tensor, uint32_t chunk,
                           size_t *n_bytes);

/** How many different chunks the tensors of a placement have: layers [lo, hi) of each tower and the ends named. */
struct esp_test_part {
    uint32_t enc_lo, enc_hi, dec_lo, dec_hi;
    bool patch, projector, table; /* table: the embedding and the final norm */
};
uint32_t esp_test_part_chunks(const struct esp_test_manifest *m, const struct esp_test_part *part,
                              uint64_t *n_bytes);

#endif
