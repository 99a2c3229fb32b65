/**
 * A BLAKE2b over several things, numbers among them in one byte order on every machine.
 */
#ifndef ESP_MODEL_HASH_H
#define ESP_MODEL_HASH_H

#include <assert.h>
#include <sodium.h>

static inline void esp_hash(crypto_generichash_state *h, const void *data, size_t n_bytes)
{
    int rc = crypto_generichash_update(h, data, n_bytes); /* fails for a finished state alone */

    assert(rc == 0);
    (void)rc;
}

/** Eight bytes, the lowest first. */
static inline void esp_hash_u64(crypto_generichash_state *h, uint64_t v)
{
    unsigned char b[8];

    for (int i = 0; i < 8; i++)
        b[i] = (unsigned char)(v >> 8 * i);
    esp_hash(h, b, sizeof b);
}

#endif
