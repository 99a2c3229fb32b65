#include "worker/depot_books.h"

#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#include "model/roles.h"
#include "worker/depot.h"

static void hash_u64(crypto_generichash_state *h, uint64_t v)
{
    crypto_generichash_update(h, (const unsigned char *)&v, sizeof v);
}

void esp_depot_books_digest(uint8_t out[ESP_CACHE_HASH_BYTES], const struct esp_msg *msg)
{
    const struct esp_msg_manifest *m = &msg->manifest;
    crypto_generichash_state h;

    crypto_generichash_init(&h, NULL, 0, ESP_CACHE_HASH_BYTES);
    crypto_generichash_update(&h, m->fingerprint, sizeof m->fingerprint);
    hash_u64(&h, m->chunk_bytes);
    hash_u64(&h, m->n_tensors);
    for (uint32_t i = 0; i < m->n_tensors; i++) {
        const struct esp_tensor_info *t = &m->tensors[i];

        hash_u64(&h, t->role);
        hash_u64(&h, t->layer);
        hash_u64(&h, t->dtype);
        hash_u64(&h, t->n_dim);
        for (uint32_t k = 0; k < t->n_dim; k++)
            hash_u64(&h, t->shape[k]);
    }
    for (int i = 0; i < 2; i++) {
        hash_u64(&h, msg->blob[i].n_bytes);
        crypto_generichash_update(&h, msg->blob[i].data, msg->blob[i].n_bytes);
    }
    crypto_generichash_final(&h, out, ESP_CACHE_HASH_BYTES);
}

static esp_status open_claimed(struct esp_checkpoint **out, const struct esp_msg *msg, const char *origin,
                               struct esp_err *err)
{
    const struct esp_msg_manifest *m = &msg->manifest;
    struct esp_remote_tensor *tensors = calloc(m->n_tensors, sizeof *tensors);
    esp_status st;

    *out = NULL;
    if (!tensors)
        return esp_fail(err, ESP_E_NOMEM, "%u tensors", m->n_tensors);
    for (uint32_t i = 0; i < m->n_tensors; i++)
        tensors[i] = (struct esp_remote_tensor){.role = m->tensors[i].role,
                                                .layer = m->tensors[i].layer,
                                                .dtype = m->tensors[i].dtype,
                                                .n_dim = m->tensors[i].n_dim,
                                                .shape = m->tensors[i].shape};
    st = esp_checkpoint_open_remote(out, msg->blob[0].data, msg->blob[0].n_bytes, tensors, m->n_tensors,
                                    m->chunk_bytes, origin, err);
    free(tensors);
    return st;
}

static int compare_hashes(const void *a, const void *b, void *arg)
{
    uint8_t(*const hash)[ESP_CACHE_HASH_BYTES] = arg;
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    const int order = memcmp(hash[x], hash[y], ESP_CACHE_HASH_BYTES);

    return order ? order : (x > y) - (x < y);
}

/* What they take is bounded by the number of chunks. */
static esp_status write_books(struct esp_depot_books *b, const struct esp_msg *msg, struct esp_err *err)
{
    const struct esp_checkpoint *ck = b->ck;
    const uint32_t n_tensor = esp_remote_n_tensor(ck);
    uint64_t n = 0;

    b->chunk_bytes = msg->manifest.chunk_bytes;
    for (uint32_t i = 0; i < n_tensor; i++)
        n += esp_chunk_count(esp_remote_at(ck, i)->n_bytes, b->chunk_bytes);
    if (n > ESP_DEPOT_MAX_CHUNKS)
        return esp_fail(err, ESP_E_LIMIT, "%s: %llu chunks of %u bytes, takes %u", esp_checkpoint_dir(ck),
                        (unsigned long long)n, b->chunk_bytes, ESP_DEPOT_MAX_CHUNKS);
    if (msg->blob[1].n_bytes != n * ESP_CACHE_HASH_BYTES)
        return esp_fail(err, ESP_E_FORMAT, "%s: hashes of %zu bytes for %llu chunks", esp_checkpoint_dir(ck),
                        msg->blob[1].n_bytes, (unsigned long long)n);
    b->n_chunk = (uint32_t)n;
    b->base = calloc((size_t)n_tensor + 1, sizeof *b->base);
    b->wanted = calloc((size_t)n_tensor + 1, sizeof *b->wanted);
    b->urgent.id = calloc((size_t)n_tensor + 1, sizeof *b->urgent.id);
    b->ahead.id = calloc((size_t)n_tensor + 1, sizeof *b->ahead.id);
    b->by_hash = calloc(n + 1, sizeof *b->by_hash);
    b->hash = calloc(n + 1, sizeof *b->hash);
    b->chunk = calloc(n + 1, sizeof *b->chunk);
    if (!b->base || !b->wanted || !b->urgent.id || !b->ahead.id || !b->by_hash || !b->hash || !b->chunk)
        return esp_fail(err, ESP_E_NOMEM, "%s: books of %llu chunks", esp_checkpoint_dir(ck),
                        (unsigned long long)n);
    for (uint32_t i = 0; i < n_tensor; i++)
        b->base[i + 1] =
            b->base[i] + (uint32_t)esp_chunk_count(esp_remote_at(ck, i)->n_bytes, b->chunk_bytes);
    memcpy(b->hash, msg->blob[1].data, msg->blob[1].n_bytes);
    for (uint32_t i = 0; i < b->n_chunk; i++)
        b->by_hash[i] = i;
    qsort_r(b->by_hash, b->n_chunk, sizeof *b->by_hash, compare_hashes, b->hash);
    for (uint32_t i = 0; i < b->n_chunk; i++) {
        const uint32_t id = b->by_hash[i], last = i > 0 ? b->by_hash[i - 1] : id;
        const bool equal = i > 0 && memcmp(b->hash[last], b->hash[id], ESP_CACHE_HASH_BYTES) == 0;

        b->chunk[id].first = equal ? b->chunk[last].first : id;
        b->chunk[id].next = id;
        if (equal)
            b->chunk[last].next = id;
    }
    return ESP_OK;
}

esp_status esp_depot_books_open(struct esp_depot_books *b, const uint8_t digest[ESP_CACHE_HASH_BYTES],
                                const struct esp_msg *msg, const char *origin, struct esp_err *err)
{
    esp_status st;

    *b = (struct esp_depot_books){0};
    memcpy(b->digest, digest, sizeof b->digest);
    st = open_claimed(&b->ck, msg, origin, err);
    if (!st)
        st = write_books(b, msg, err);
    for (uint32_t i = 0; !st && i < esp_remote_n_tensor(b->ck); i++)
        esp_remote_set_content(b->ck, i, b->hash[b->base[i]]);
    if (st) {
        esp_checkpoint_destroy(&b->ck);
        esp_depot_books_drop(b);
    }
    return st;
}

void esp_depot_books_drop(struct esp_depot_books *b)
{
    free(b->base);
    free(b->by_hash);
    free(b->hash);
    free(b->chunk);
    free(b->wanted);
    free(b->urgent.id);
    free(b->ahead.id);
    *b = (struct esp_depot_books){0};
}

uint32_t esp_depot_books_tensor(const struct esp_depot_books *b, uint32_t id)
{
    uint32_t lo = 0, hi = esp_remote_n_tensor(b->ck); /* base[lo] <= id < base[hi] */

    while (hi - lo > 1) {
        const uint32_t mid = lo + (hi - lo) / 2;
        if (b->base[mid] <= id)
            lo = mid;
        else
            hi = mid;
    }
    return lo;
}

size_t esp_depot_books_bytes(const struct esp_depot_books *b, uint32_t id)
{
    const uint32_t t = esp_depot_books_tensor(b, id);

    return esp_chunk_bytes(esp_remote_at(b->ck, t)->n_bytes, b->chunk_bytes, id - b->base[t]);
}

static bool before(const struct esp_depot_cursor *a, const struct esp_depot_cursor *b)
{
    return a->at != b->at ? a->at < b->at : a->chunk < b->chunk;
}

bool esp_depot_books_seek(uint32_t *id, const struct esp_depot_books *b, struct esp_depot_cursor *c,
                          const struct esp_depot_cursor *end, enum esp_chunk_state state)
{
    while (c->at < b->urgent.n + b->ahead.n) {
        const uint32_t t = c->at < b->urgent.n ? b->urgent.id[c->at] : b->ahead.id[c->at - b->urgent.n];

        for (; c->chunk < b->base[t + 1] - b->base[t]; c->chunk++) {
            *id = b->base[t] + c->chunk;
            if (end && !before(c, end) && (before(end, c) || b->chunk[*id].state == ESP_CHUNK_UNKNOWN))
                return false;
            if (b->chunk[*id].state == state &&
                !(state == ESP_CHUNK_MISSING && b->chunk[b->chunk[*id].first].busy))
                return true;
        }
        c->at++;
        c->chunk = 0;
    }
    return false;
}

bool esp_depot_books_find(uint32_t *id, const struct esp_depot_books *b, const uint8_t *hash)
{
    for (uint32_t lo = 0, hi = b->n_chunk; lo < hi;) {
        const uint32_t mid = lo + (hi - lo) / 2;
        const int order = memcmp(hash, b->hash[b->by_hash[mid]], ESP_CACHE_HASH_BYTES);

        if (order == 0) {
            *id = b->chunk[b->by_hash[mid]].first;
            return true;
        }
        if (order < 0)
            hi = mid;
        else
            lo = mid + 1;
    }
    return false;
}

static void want_role(struct esp_depot_books *b, enum esp_role role, uint32_t layer)
{
    const struct esp_tensor *t = esp_checkpoint_tensor(b->ck, role, layer);
    uint32_t i;

    if (t && esp_remote_index(&i, b->ck, t) && !b->wanted[i]) { /* a model without post norms has none */
        b->wanted[i] = true;
        b->ahead.id[b->ahead.n++] = i;
    }
}

static void want_layers(struct esp_depot_books *b, enum esp_role first, enum esp_role last, uint32_t lo,
                        uint32_t hi)
{
    for (uint32_t layer = lo; layer < hi; layer++)
        for (enum esp_role role = first; role <= last; role++)
            want_role(b, role, layer);
}

void esp_depot_books_want(struct esp_depot_books *b, const struct esp_stage_spec *spec)
{
    memset(b->wanted, 0, esp_remote_n_tensor(b->ck) * sizeof *b->wanted);
    b->urgent.n = b->ahead.n = 0;
    /* In the order in which they are loaded: the ends, then layer by layer. */
    for (enum esp_role r = ESP_V_PATCH_W; spec->patch && r <= ESP_V_POS; r++)
        want_role(b, r, 0);
    for (enum esp_role r = ESP_V_POST_W; spec->projector && r <= ESP_P_B; r++)
        want_role(b, r, 0);
    if (spec->embed || spec->head) {
        want_role(b, ESP_T_EMBED, 0);
        want_role(b, ESP_T_NORM_FINAL, 0);
    }
    want_layers(b, ESP_V_LN1_W, ESP_V_FC2_B, spec->enc_lo, spec->enc_hi);
    want_layers(b, ESP_T_NORM_ATTN, ESP_T_NORM_POST_MLP, spec->dec_lo, spec->dec_hi);
    b->total_bytes = b->lacking_bytes = 0;
    for (uint32_t i = 0; i < b->ahead.n; i++) {
        const uint32_t t = b->ahead.id[i];

        b->total_bytes += esp_remote_at(b->ck, t)->n_bytes;
        for (uint32_t id = b->base[t]; id < b->base[t + 1]; id++) {
            if (b->chunk[id].state == ESP_CHUNK_FAILED) {
                b->chunk[id].state = ESP_CHUNK_UNKNOWN;
                b->chunk[id].tries = 0;
            }
            if (b->chunk[id].state != ESP_CHUNK_PRESENT)
                b->lacking_bytes += esp_depot_books_bytes(b, id);
        }
    }
}
