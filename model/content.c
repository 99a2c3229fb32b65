#include "model/content.h"

#include <assert.h>
#include <sodium.h>

static void update(crypto_generichash_state *h, const void *data, size_t n_bytes)
{
    int rc = crypto_generichash_update(h, data, n_bytes); /* fails for a finished state alone */

    assert(rc == 0);
    (void)rc;
}

static void update_u64(crypto_generichash_state *h, uint64_t v)
{
    unsigned char b[8];

    for (int i = 0; i < 8; i++)
        b[i] = (unsigned char)(v >> 8 * i);
    update(h, b, sizeof b);
}

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
    update_u64(&h, n_bytes);
    update_u64(&h, chunk_bytes);
    update(&h, hashes, n_chunk * ESP_CONTENT_BYTES);
    rc = crypto_generichash_final(&h, out, ESP_CONTENT_BYTES);
    assert(rc == 0);
    (void)rc;
}
