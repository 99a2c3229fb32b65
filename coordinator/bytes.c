#include "coordinator/bytes.h"

#include <stdlib.h>
#include <string.h>

static void put(struct esp_bytes *b, uint64_t v, size_t n)
{
    if (!b->failed && b->cap - b->n < n) {
        const size_t cap = b->cap ? 2 * b->cap : 256;
        uint8_t *more = realloc(b->at, cap);

        if (more) {
            b->at = more;
            b->cap = cap;
        }
        b->failed = !more;
    }
    for (size_t i = 0; i < n && !b->failed; i++)
        b->at[b->n++] = (uint8_t)(v >> (8 * i));
}

void esp_put_u8(struct esp_bytes *b, uint8_t v)
{
    put(b, v, 1);
}

void esp_put_u32(struct esp_bytes *b, uint32_t v)
{
    put(b, v, 4);
}

void esp_put_f64(struct esp_bytes *b, double v)
{
    uint64_t bits;

    memcpy(&bits, &v, sizeof bits);
    put(b, bits, 8);
}

static uint64_t get(struct esp_reader *r, size_t n)
{
    uint64_t v = 0;

    if (r->n < n)
        r->failed = true;
    if (r->failed)
        return 0;
    for (size_t i = 0; i < n; i++)
        v |= (uint64_t)r->at[i] << (8 * i);
    r->at += n;
    r->n -= n;
    return v;
}

uint8_t esp_get_u8(struct esp_reader *r)
{
    return (uint8_t)get(r, 1);
}

uint32_t esp_get_u32(struct esp_reader *r)
{
    return (uint32_t)get(r, 4);
}

double esp_get_f64(struct esp_reader *r)
{
    const uint64_t bits = get(r, 8);
    double v;

    memcpy(&v, &bits, sizeof v);
    return v;
}

uint32_t esp_get_count(struct esp_reader *r, size_t n_bytes)
{
    const uint32_t n = esp_get_u32(r);

    if (n > r->n / n_bytes)
        r->failed = true;
    return r->failed ? 0 : n;
}
