#include "worker/packed_key.h"

#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#define PROBE_COLS 64u /* two blocks of any type */

bool esp_packed_key_possible(const struct esp_pack_spec *spec)
{
    for (uint32_t i = 0; i < spec->n_part; i++)
        if (!esp_known_possible(spec->part[i].tensor) ||
            esp_wtype_quantised(esp_wtype_of(spec->part[i].tensor->dtype)))
            return false;
    return true;
}

void esp_packed_key_init(struct esp_packed_key *k, const struct esp_pack_spec *spec, struct esp_known *known)
{
    memset(k, 0, sizeof *k);
    k->spec = spec;
    k->known = known;
}

void esp_packed_key_finish(struct esp_packed_key *k)
{
    free(k->chunk_hash);
    memset(k, 0, sizeof *k);
}

/* ---- contents ---- */

struct hashing {
    const struct esp_tensor *tensor;
    uint64_t chunk; /* item 0's */
    uint8_t *hash;
};

static uint64_t n_chunk(const struct esp_tensor *t)
{
    return t->n_bytes / ESP_CONTENT_CHUNK + (t->n_bytes % ESP_CONTENT_CHUNK != 0);
}

static esp_status hash_chunk(void *arg, uint32_t item, uint32_t thread, struct esp_err *err)
{
    const struct hashing *h = arg;
    const uint64_t chunk = h->chunk + item, at = chunk * ESP_CONTENT_CHUNK;
    const uint64_t left = h->tensor->n_bytes - at;

    (void)thread;
    (void)err;
    esp_content_chunk(h->hash + chunk * ESP_CONTENT_BYTES, (const char *)h->tensor->data + at,
                      left < ESP_CONTENT_CHUNK ? left : ESP_CONTENT_CHUNK);
    return ESP_OK;
}

esp_status esp_packed_key_step(bool *done, struct esp_packed_key *k, struct esp_pool *pool,
                               uint64_t max_bytes, uint64_t *spent, struct esp_err *err)
{
    *spent = 0;
    *done = false;
    for (; k->part < k->spec->n_part; k->part++) {
        const struct esp_tensor *t = k->spec->part[k->part].tensor;
        struct hashing h = {.tensor = t, .chunk = k->chunk};
        uint64_t n = n_chunk(t) - k->chunk, room;
        esp_status st;

        if (!k->chunk_hash && esp_known_get(k->content[k->part], k->known, t))
            continue;
        if (!k->chunk_hash)
            k->chunk_hash = malloc(n * ESP_CONTENT_BYTES + 1);
        if (!k->chunk_hash)
            return esp_fail(err, ESP_E_NOMEM, "%s: hashes of %llu chunks", t->name, (unsigned long long)n);
        room = max_bytes > *spent ? (max_bytes - *spent) / ESP_CONTENT_CHUNK : 0;
        if (room == 0 && *spent == 0)
            room = 1;
        n = n < room ? n : room;
        h.hash = k->chunk_hash;
        esp_tensor_soon(t, (k->chunk + n) * ESP_CONTENT_CHUNK, (uint64_t)64 << 20);
        st = esp_pool_run(pool, hash_chunk, &h, (uint32_t)n, err);
        if (st)
            return st;
        k->chunk += n;
        *spent += n * ESP_CONTENT_CHUNK;
        if (k->chunk < n_chunk(t))
            return ESP_OK;
        esp_content_tensor(k->content[k->part], t->n_bytes, ESP_CONTENT_CHUNK, k->chunk_hash);
        esp_known_put(k->known, t, k->content[k->part]);
        free(k->chunk_hash);
        k->chunk_hash = NULL;
        k->chunk = 0;
    }
    *done = true;
    return ESP_OK;
}

/* ---- the name ---- */

static void put(crypto_generichash_state *h, const void *data, size_t n_bytes)
{
    (void)crypto_generichash_update(h, data, n_bytes); /* fails for a finished state alone */
}

static void put_u64(crypto_generichash_state *h, uint64_t v)
{
    unsigned char b[8];

    for (int i = 0; i < 8; i++)
        b[i] = (unsigned char)(v >> 8 * i);
    put(h, b, sizeof b);
}

/* Numbers between 2^-7 and 2^-3 of either sign, as weights are. */
static void fill_probe(void *data, enum esp_dtype dtype, size_t n, uint32_t seed)
{
    for (size_t i = 0; i < n; i++) {
        const uint32_t x = ((uint32_t)i + seed) * UINT32_C(2654435761) ^ UINT32_C(0x5bd1e995) * seed;
        const uint32_t sign = x >> 31, exponent = x >> 28 & 3, mantissa = x >> 5 & 0x7fffff;
        const uint32_t f32 = sign << 31 | (120 + exponent) << 23 | mantissa;
        const uint16_t bf16 = (uint16_t)(f32 >> 16);
        const uint16_t f16 = (uint16_t)(sign << 15 | (8 + exponent) << 10 | mantissa >> 13);

        if (dtype == ESP_F32)
            memcpy((char *)data + 4 * i, &f32, 4);
        else
            memcpy((char *)data + 2 * i, dtype == ESP_F16 ? &f16 : &bf16, 2);
    }
}

/* Packs a small matrix that is put together as the real one is, and hashes what comes out. */
static esp_status put_probe(crypto_generichash_state *h, const struct esp_pack_spec *spec,
                            const struct esp_pack_dims *dims, struct esp_err *err)
{
    struct esp_pack_spec small = *spec;
    struct esp_tensor t[ESP_PACK_PARTS];
    struct esp_pack_dims d;
    void *data[ESP_PACK_PARTS] = {NULL}, *out = NULL, *scratch = NULL;
    const uint32_t least = 8 * (dims->panel > 4 ? dims->panel : 4); /* rows of a unit */
    uint32_t cols = PROBE_COLS;
    esp_status st = ESP_OK;

    if (small.k_heads.n) {
        small.k_heads.n = 1;
        cols = small.k_heads.head_dim;
    }
    for (uint32_t i = 0; i < spec->n_part; i++) {
        struct esp_pack_heads *rows = &small.part[i].heads;
        const enum esp_dtype dtype = spec->part[i].tensor->dtype;
        uint32_t n_row = least;

        if (rows->n) {
            rows->n = 1;
            n_row = rows->head_dim;
        }
        t[i] = (struct esp_tensor){.dtype = dtype,
                                   .n_dim = 2,
                                   .shape = {n_row, cols},
                                   .n_bytes = (size_t)n_row * cols * esp_dtype_n_bytes(dtype),
                                   .name = "probe",
                                   .file = "probe"};
        t[i].data = data[i] = malloc(t[i].n_bytes);
        small.part[i].tensor = &t[i];
        if (!data[i])
            st = ESP_E_NOMEM;
        else
            fill_probe(data[i], dtype, (size_t)n_row * cols, i + 1);
    }
    if (!st) {
        esp_pack_dims(&d, &small);
        out = malloc((size_t)d.np / 8 * d.group_bytes);
        scratch = malloc(esp_pack_scratch_bytes(&d));
        if (!out || !scratch)
            st = ESP_E_NOMEM;
    }
    if (st)
        (void)esp_fail(err, st, "packing a small matrix");
    else
        st = esp_pack_groups(out, &small, &d, 0, d.np / 8, scratch, err);
    if (!st)
        put(h, out, (size_t)d.np / 8 * d.group_bytes);
    for (uint32_t i = 0; i < spec->n_part; i++)
        free(data[i]);
    free(out);
    free(scratch);
    return st;
}

esp_status esp_packed_key_name(uint8_t out[ESP_CONTENT_BYTES], const struct esp_packed_key *k,
                               const struct esp_pack_dims *dims, struct esp_err *err)
{
    static const char domain[] = "espalier packed matrix 1";
    const struct esp_pack_spec *s = k->spec;
    const uint32_t whole[] = {s->n_part,
                              s->interleave,
                              s->k_heads.n,
                              s->k_heads.head_dim,
                              (uint32_t)s->want,
                              (uint32_t)s->cls,
                              (uint32_t)dims->wtype,
                              dims->n,
                              dims->k,
                              dims->np,
                              dims->kp,
                              dims->panel,
                              dims->group_bytes};
    crypto_generichash_state h;
    esp_status st;

    (void)crypto_generichash_init(&h, NULL, 0, ESP_CONTENT_BYTES); /* fails for bad lengths alone */
    put(&h, domain, sizeof domain);
    for (size_t i = 0; i < sizeof whole / sizeof *whole; i++)
        put_u64(&h, whole[i]);
    for (uint32_t i = 0; i < s->n_part; i++) {
        const struct esp_tensor *t = s->part[i].tensor;

        put_u64(&h, (uint64_t)t->dtype);
        put_u64(&h, t->n_dim);
        for (uint32_t d = 0; d < t->n_dim; d++)
            put_u64(&h, t->shape[d]);
        put_u64(&h, s->part[i].heads.n);
        put_u64(&h, s->part[i].heads.head_dim);
        put(&h, k->content[i], ESP_CONTENT_BYTES);
    }
    st = put_probe(&h, s, dims, err);
    (void)crypto_generichash_final(&h, out, ESP_CONTENT_BYTES);
    return st;
}
