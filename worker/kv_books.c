/* The cache's books on their way to another worker, and what comes of a stranger's. */
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "worker/kv_state.h"

static int by_id(const void *a, const void *b)
{
    const struct esp_kv_seq *x = a, *y = b;

    return x->seq < y->seq ? -1 : x->seq > y->seq;
}

esp_status esp_kv_export(struct esp_kv_books *out, const struct esp_kv *kv, struct esp_err *err)
{
    const uint32_t n_seqs = esp_kv_n_seqs(kv);
    size_t n_list = 0, at = 0;
    uint32_t *number = malloc((size_t)kv->n_blocks * sizeof *number);
    esp_status st = ESP_OK;

    assert(!kv->planned);
    memset(out, 0, sizeof *out);
    for (uint32_t i = 0; i <= kv->hash_mask; i++)
        n_list += kv->hash[i] != ESP_KV_NONE ? kv->seq[kv->hash[i]].n_blocks : 0;
    out->seqs = calloc((size_t)n_seqs + 1, sizeof *out->seqs);
    out->own = calloc((size_t)esp_kv_used_blocks(kv) + 1, sizeof *out->own);
    out->lists = calloc(n_list + 1, sizeof *out->lists);
    if (!number || !out->seqs || !out->own || !out->lists) {
        st = esp_fail(err, ESP_E_NOMEM, "KV cache: a copy of its books, %u sequences", n_seqs);
        goto done;
    }
    memset(number, 0xff, (size_t)kv->n_blocks * sizeof *number);
    for (uint32_t i = 0; i <= kv->hash_mask; i++) {
        const struct esp_kv_entry *s = kv->hash[i] != ESP_KV_NONE ? &kv->seq[kv->hash[i]] : NULL;

        if (s && s->n_tok > 0)
            out->seqs[out->n_seqs++] =
                (struct esp_kv_seq){s->id, s->n_tok, s->n_blocks, esp_kv_list(kv, kv->hash[i])};
    }
    qsort(out->seqs, out->n_seqs, sizeof *out->seqs, by_id);
    for (uint32_t i = 0; i < out->n_seqs; i++) {
        struct esp_kv_seq *s = &out->seqs[i];
        uint32_t *list = out->lists + at;

        for (uint32_t j = 0; j < s->n_blocks; j++) {
            uint32_t block = s->blocks[j];
            if (number[block] == ESP_KV_NONE) {
                number[block] = out->n_blocks;
                out->own[out->n_blocks++] = block;
            }
            list[j] = number[block];
        }
        s->blocks = list;
        at += s->n_blocks;
    }
done:
    free(number);
    if (st)
        esp_kv_books_finish(out);
    return st;
}

void esp_kv_books_finish(struct esp_kv_books *books)
{
    free(books->seqs);
    free(books->own);
    free(books->lists);
    memset(books, 0, sizeof *books);
}

/** What can be said of books without looking at a cache's own. place: u32[n_blocks], where in its sequences a block is. */
static esp_status books_check(const struct esp_kv *kv, const struct esp_kv_seq *seqs, uint32_t n_seqs,
                              uint32_t n_blocks, uint32_t *place, struct esp_err *err)
{
    memset(place, 0xff, (size_t)n_blocks * sizeof *place);
    for (uint32_t i = 0; i < n_seqs; i++) {
        const struct esp_kv_seq *s = &seqs[i];

        if (s->seq == 0 || s->n_tok == 0 ||
            s->n_blocks != ((uint64_t)s->n_tok + kv->block_tokens - 1) / kv->block_tokens)
            return esp_fail(err, ESP_E_PROTO, "KV books: sequence %" PRIu64 ": %u blocks of %u for %u tokens",
                            s->seq, s->n_blocks, kv->block_tokens, s->n_tok);
        if (s->n_blocks > kv->max_blocks)
            return esp_fail(err, ESP_E_LIMIT, "KV books: sequence %" PRIu64 " of %u tokens, limit %u", s->seq,
                            s->n_tok, kv->max_blocks * kv->block_tokens);
        for (uint32_t j = 0; j < s->n_blocks; j++) {
            uint32_t block = s->blocks[j];
            if (block >= n_blocks || (place[block] != ESP_KV_NONE && place[block] != j))
                return esp_fail(err, ESP_E_PROTO,
                                "KV books: sequence %" PRIu64 " has block %u of %u in place %u%s", s->seq,
                                block, n_blocks, j, block < n_blocks ? ", another one elsewhere" : "");
            place[block] = j;
        }
    }
    for (uint32_t b = 0; b < n_blocks; b++)
        if (place[b] == ESP_KV_NONE)
            return esp_fail(err, ESP_E_PROTO, "KV books: block %u of %u is nobody's", b, n_blocks);
    return ESP_OK;
}

/** Places for the sequences, empty still; all or none. */
static esp_status adopt_seqs(struct esp_kv *kv, const struct esp_kv_seq *seqs, uint32_t n_seqs,
                             struct esp_err *err)
{
    for (uint32_t i = 0; i < n_seqs; i++) {
        if (esp_kv_find(kv, seqs[i].seq) == ESP_KV_NONE) {
            esp_kv_insert(kv, seqs[i].seq);
            continue;
        }
        while (i-- > 0)
            esp_kv_free(kv, seqs[i].seq);
        return esp_fail(err, ESP_E_PROTO, "KV books: a sequence twice");
    }
    return ESP_OK;
}

esp_status esp_kv_adopt(struct esp_kv *kv, const struct esp_kv_seq *seqs, uint32_t n_seqs, uint32_t n_blocks,
                        uint32_t *own, struct esp_err *err)
{
    esp_status st;

    assert(!kv->planned);
    if (kv->n_free_slot != kv->max_seqs)
        return esp_fail(err, ESP_E_PROTO, "KV books: for an empty cache, but %u sequences are here",
                        esp_kv_n_seqs(kv));
    if (n_seqs > kv->max_seqs || n_blocks > kv->n_blocks)
        return esp_fail(err, ESP_E_LIMIT, "KV books: %u sequences and %u blocks, takes %u and %u", n_seqs,
                        n_blocks, kv->max_seqs, kv->n_blocks);
    st = books_check(kv, seqs, n_seqs, n_blocks, own, err);
    if (!st)
        st = adopt_seqs(kv, seqs, n_seqs, err);
    if (st)
        return st;
    for (uint32_t b = 0; b < n_blocks; b++) { /* cannot fail from here */
        own[b] = esp_kv_take(kv);
        kv->n_ref[own[b]] = 0;
    }
    for (uint32_t i = 0; i < n_seqs; i++) {
        const uint32_t slot = esp_kv_find(kv, seqs[i].seq);

        kv->seq[slot].n_tok = seqs[i].n_tok;
        kv->seq[slot].n_blocks = seqs[i].n_blocks;
        for (uint32_t j = 0; j < seqs[i].n_blocks; j++) {
            esp_kv_list(kv, slot)[j] = own[seqs[i].blocks[j]];
            kv->n_ref[own[seqs[i].blocks[j]]]++;
        }
    }
    return ESP_OK;
}

esp_status esp_kv_match(const struct esp_kv *kv, const struct esp_kv_seq *seqs, uint32_t n_seqs,
                        uint32_t n_blocks, uint32_t *own, struct esp_err *err)
{
    uint32_t *number = NULL; /* [n_blocks of the cache] */
    bool *seen = NULL;       /* [max_seqs] slots */
    esp_status st;

    assert(!kv->planned);
    if (n_seqs != esp_kv_n_seqs(kv) || n_blocks != esp_kv_used_blocks(kv))
        return esp_fail(err, ESP_E_PROTO, "KV books: %u sequences and %u blocks, but %u and %u are here",
                        n_seqs, n_blocks, esp_kv_n_seqs(kv), esp_kv_used_blocks(kv));
    st = books_check(kv, seqs, n_seqs, n_blocks, own, err);
    if (st)
        return st;
    number = malloc((size_t)kv->n_blocks * sizeof *number);
    seen = calloc(kv->max_seqs, sizeof *seen);
    if (!number || !seen) {
        st = esp_fail(err, ESP_E_NOMEM, "KV cache: comparing the books of %u sequences", n_seqs);
        goto done;
    }
    memset(number, 0xff, (size_t)kv->n_blocks * sizeof *number);
    memset(own, 0xff, (size_t)n_blocks * sizeof *own);
    for (uint32_t i = 0; i < n_seqs; i++) {
        const struct esp_kv_seq *s = &seqs[i];
        const uint32_t slot = esp_kv_find(kv, s->seq);

        if (slot == ESP_KV_NONE || seen[slot] || kv->seq[slot].n_tok != s->n_tok) {
            st = esp_fail(err, ESP_E_PROTO, "KV books: sequence %" PRIu64 " of %u tokens, here it has %u%s",
                          s->seq, s->n_tok, slot == ESP_KV_NONE ? 0 : kv->seq[slot].n_tok,
                          slot != ESP_KV_NONE && seen[slot] ? ", and it is there twice" : "");
            goto done;
        }
        seen[slot] = true;
        for (uint32_t j = 0; j < s->n_blocks; j++) {
            const uint32_t theirs = s->blocks[j], ours = esp_kv_list(kv, slot)[j];

            if (own[theirs] == ESP_KV_NONE && number[ours] == ESP_KV_NONE) {
                own[theirs] = ours;
                number[ours] = theirs;
            } else if (own[theirs] != ours) {
                st = esp_fail(err, ESP_E_PROTO,
                              "KV books: sequence %" PRIu64 " shares its block %u with others than here",
                              s->seq, j);
                goto done;
            }
        }
    }
done:
    free(number);
    free(seen);
    return st;
}
