/**
 * The name of a packed matrix: a hash of all that its bytes follow from. That is what its tensors' bytes are
 * (model/content.h), their shapes and types, how they are put together, the packed shape, and what packing does: a small
 * matrix of fixed pseudo-random numbers is packed in the same way, and the result is part of the name. So another layout, or
 * another way to quantise, gives other names by itself.
 */
#ifndef ESP_WORKER_PACKED_KEY_H
#define ESP_WORKER_PACKED_KEY_H

#include "worker/known.h"
#include "worker/pack.h"
#include "worker/pool.h"

/** A name that is being found out. Zeros: none. */
struct esp_packed_key {
    const struct esp_pack_spec *spec;
    struct esp_known *known;
    uint32_t part;       /* the first whose content is not known yet */
    uint64_t chunk;      /* of it, the next to be hashed */
    uint8_t *chunk_hash; /* of its chunks */
    uint8_t content[ESP_PACK_PARTS][ESP_CONTENT_BYTES];
};

/** Whether a matrix can have one: its tensors are in files or say what they are, and are not quantised as stored. */
bool esp_packed_key_possible(const struct esp_pack_spec *spec);

/** @param spec, known  borrowed until finish */
void esp_packed_key_init(struct esp_packed_key *out, const struct esp_pack_spec *spec,
                         struct esp_known *known);
void esp_packed_key_finish(struct esp_packed_key *key);

/**
 * Hashes about max_bytes of what has to be hashed yet, on all cores.
 * @param spent  bytes that were
 * @return true: all is known. Errors: ESP_E_NOMEM; ESP_E_FORMAT (packing the small matrix failed).
 */
esp_status esp_packed_key_step(bool *done, struct esp_packed_key *key, struct esp_pool *pool,
                               uint64_t max_bytes, uint64_t *spent, struct esp_err *err);

/** Once all is known. Errors: ESP_E_NOMEM. */
esp_status esp_packed_key_name(uint8_t out[ESP_CONTENT_BYTES], const struct esp_packed_key *key,
                               const struct esp_pack_dims *dims, struct esp_err *err);

#endif
