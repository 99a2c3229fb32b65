#include "model/content.h"

#include <assert.h>
#include <sodium.h>

#include "model/hash.h"

void esp_content_chunk(uint8_t out[ESP_CONTENT_BYTES], const void *data, size_t n_bytes)
{
    (void)crypto_generichash(out, ESP_CONTENT_BYTES, data, n_bytes, NULL,
                             0); /* fails for bad lengths alone */
}

void esp_content_tensor(uint8_t out[ESP_CONTENT_BYTES], uint64_t n_bytes, uint32_t chunk_bytes,
                        const uint8_t *hashes)
{
    const uint64_t n_chunk = n_bytes / chunk_bytes + (n_bytes % chunk_bytes != 0);
    crypto_generichash_state h;
    int rc = crypto_generichash_init(&h, NULL, 0, ESP_CONTENT_BYTES);

    assert(rc == 0);
    esp_hash_u64(&h, n_bytes);
    esp_hash_u64(&h, chunk_bytes);
    esp_hash(&h, hashes, n_chunk * ESP_CONTENT_BYTES);
    rc = crypto_generichash_final(&h, out, ESP_CONTENT_BYTES);
    assert(rc == 0);
    (void)rc;
}
