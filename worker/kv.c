#include "worker/kv.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define NONE UINT32_MAX

struct seq {
    uint64_t id;
    uint32_t n_tok, n_blocks;
    uint32_t mark; /* the plan that named it last: finds a sequence named twice */
};

/** What one append of a plan did, to be undone. */
struct undo {
    uint32_t slot;
    uint32_t n_tok, n_blocks; /* before */
    uint32_t shared;          /* last block before it was copied on write, NONE: it was not */
    bool begun;
};

struct esp_kv {
    uint32_t n_blocks, block_tokens, max_seqs, max_blocks;
    uint32_t *n_ref;       /* [n_blocks] sequences that own a block */
    uint32_t *free_block;  /* stack of unowned blocks */
    uint32_t n_free_block; /* its height */
    struct seq *seq;       /* [max_seqs] slots */
    uint32_t *free_slot;   /* stack of unused slots */
    uint32_t n_free_slot;
    uint32_t *table;    /* [max_seqs, max_blocks] block lists, a row a slot */
    uint32_t *hash;     /* [hash_mask + 1] slot or NONE; linear probing, at most half full */
    uint32_t hash_mask; /* a power of two less one */
    struct undo *undo;  /* [max_seqs] the open plan's */
    struct esp_kv_copy *copy;
    uint32_t n_undo, n_copy, mark;
    bool planned;
};

esp_status esp_kv_create(struct esp_kv **out, uint32_t n_blocks, uint32_t block_tokens, uint32_t max_seqs,
                         uint32_t max_blocks_per_seq, struct esp_err *err)
{
    esp_status st = ESP_OK;
    struct esp_kv *kv = NULL;
    size_t n_table, n_tok, n_hash = 2;

    *out = NULL;
    if (n_blocks == 0 || block_tokens == 0 || block_tokens % 8 != 0 || max_seqs == 0 ||
        max_blocks_per_seq == 0) {
        st = esp_fail(err, ESP_E_ARG, "KV cache: %u blocks of %u tokens, %u sequences of %u blocks", n_blocks,
                      block_tokens, max_seqs, max_blocks_per_seq);
        goto done;
    }
    if (n_blocks == NONE || max_seqs > 1u << 30 || !esp_mul(&n_tok, max_blocks_per_seq, block_tokens) ||
        n_tok > UINT32_MAX || !esp_mul(&n_table, max_seqs, max_blocks_per_seq)) {
        st = esp_fail(err, ESP_E_ARG, "KV cache: %u blocks of %u tokens, %u sequences of %u blocks overflows",
                      n_blocks, block_tokens, max_seqs, max_blocks_per_seq);
        goto done;
    }
    while (n_hash < 2 * (size_t)max_seqs)
        n_hash *= 2;
    kv = calloc(1, sizeof *kv);
    if (kv) {
        kv->n_ref = calloc(n_blocks, sizeof *kv->n_ref);
        kv->free_block = calloc(n_blocks, sizeof *kv->free_block);
        kv->seq = calloc(max_seqs, sizeof *kv->seq);
        kv->free_slot = calloc(max_seqs, sizeof *kv->free_slot);
        kv->table = calloc(n_table, sizeof *kv->table);
        kv->hash = calloc(n_hash, sizeof *kv->hash);
        kv->undo = calloc(max_seqs, sizeof *kv->undo);
        kv->copy = calloc(max_seqs, sizeof *kv->copy);
    }
    if (!kv || !kv->n_ref || !kv->free_block || !kv->seq || !kv->free_slot || !kv->table || !kv->hash ||
        !kv->undo || !kv->copy) {
        st = esp_fail(err, ESP_E_NOMEM, "KV cache: tables of %u blocks and %u sequences of %u blocks",
                      n_blocks, max_seqs, max_blocks_per_seq);
        goto done;
    }
    kv->n_blocks = n_blocks;
    kv->block_tokens = block_tokens;
    kv->max_seqs = max_seqs;
    kv->max_blocks = max_blocks_per_seq;
    kv->hash_mask = (uint32_t)(n_hash - 1);
    memset(kv->hash, 0xff, n_hash * sizeof *kv->hash);
    for (uint32_t b = n_blocks; b-- > 0;) /* block 0 is taken first */
        kv->free_block[kv->n_free_block++] = b;
    for (uint32_t s = max_seqs; s-- > 0;)
        kv->free_slot[kv->n_free_slot++] = s;
    *out = kv;
    kv = NULL;
done:
    esp_kv_destroy(&kv);
    return st;
}

void esp_kv_destroy(struct esp_kv **kv)
{
    if (!*kv)
        return;
    free((*kv)->n_ref);
    free((*kv)->free_block);
    free((*kv)->seq);
    free((*kv)->free_slot);
    free((*kv)->table);
    free((*kv)->hash);
    free((*kv)->undo);
    free((*kv)->copy);
    free(*kv);
    *kv = NULL;
}

/** Where a sequence's probe starts: the high bits of a multiplicative hash (2^64 / golden ratio). */
static uint32_t home(const struct esp_kv *kv, uint64_t id)
{
    return (uint32_t)((id * UINT64_C(0x9e3779b97f4a7c15)) >> 32) & kv->hash_mask;
}

/** Place in the hash of a sequence, or of the hole that ends its probe. */
static uint32_t probe(const struct esp_kv *kv, uint64_t id)
{
    uint32_t at = home(kv, id);

    while (kv->hash[at] != NONE && kv->seq[kv->hash[at]].id != id)
        at = (at + 1) & kv->hash_mask;
    return at;
}

static uint32_t find(const struct esp_kv *kv, uint64_t id)
{
    return kv->hash[probe(kv, id)];
}

/** A new, empty sequence; the caller has looked that there is none of that id. NONE: no slot is left. */
static uint32_t insert(struct esp_kv *kv, uint64_t id)
{
    uint32_t slot;

    if (kv->n_free_slot == 0)
        return NONE;
    slot = kv->free_slot[--kv->n_free_slot];
    kv->seq[slot] = (struct seq){.id = id};
    kv->hash[probe(kv, id)] = slot;
    return slot;
}

/** Takes an id out of the hash: whatever probed past it moves up, so that no grave markers pile up. */
static void remove_slot(struct esp_kv *kv, uint32_t slot)
{
    uint32_t hole = probe(kv, kv->seq[slot].id), at = hole;

    for (;;) {
        at = (at + 1) & kv->hash_mask;
        if (kv->hash[at] == NONE)
            break;
        /* The entry at `at` may move to the hole unless its home lies (cyclically) in (hole, at]. */
        if (((at - home(kv, kv->seq[kv->hash[at]].id)) & kv->hash_mask) >= ((at - hole) & kv->hash_mask)) {
            kv->hash[hole] = kv->hash[at];
            hole = at;
        }
    }
    kv->hash[hole] = NONE;
    kv->free_slot[kv->n_free_slot++] = slot;
}

static uint32_t *blocks_of(const struct esp_kv *kv, uint32_t slot)
{
    return kv->table + (size_t)slot * kv->max_blocks;
}

static void unref(struct esp_kv *kv, uint32_t block)
{
    assert(kv->n_ref[block] > 0);
    if (--kv->n_ref[block] == 0)
        kv->free_block[kv->n_free_block++] = block;
}

static uint32_t take_block(struct esp_kv *kv)
{
    uint32_t block;

    assert(kv->n_free_block > 0); /* the plan has counted */
    block = kv->free_block[--kv->n_free_block];
    kv->n_ref[block] = 1;
    return block;
}

bool esp_kv_exists(const struct esp_kv *kv, uint64_t seq)
{
    return find(kv, seq) != NONE;
}

uint32_t esp_kv_len(const struct esp_kv *kv, uint64_t seq)
{
    uint32_t slot = find(kv, seq);

    return slot == NONE ? 0 : kv->seq[slot].n_tok;
}

const uint32_t *esp_kv_blocks(const struct esp_kv *kv, uint64_t seq, uint32_t *n_blocks)
{
    uint32_t slot = find(kv, seq);

    *n_blocks = slot == NONE ? 0 : kv->seq[slot].n_blocks;
    return slot == NONE ? NULL : blocks_of(kv, slot);
}

static esp_status fail_seqs(const struct esp_kv *kv, struct esp_err *err)
{
    return esp_fail(err, ESP_E_LIMIT, "KV cache: %u sequences live, takes no more", kv->max_seqs);
}

esp_status esp_kv_begin(struct esp_kv *kv, uint64_t seq, struct esp_err *err)
{
    assert(!kv->planned);
    if (find(kv, seq) != NONE)
        return esp_fail(err, ESP_E_PROTO, "KV cache: sequence %" PRIu64 " exists already", seq);
    if (insert(kv, seq) == NONE)
        return fail_seqs(kv, err);
    return ESP_OK;
}

esp_status esp_kv_fork(struct esp_kv *kv, uint64_t to, uint64_t from, struct esp_err *err)
{
    uint32_t src = find(kv, from), dst;

    assert(!kv->planned);
    if (src == NONE)
        return esp_fail(err, ESP_E_PROTO, "KV cache: fork of %" PRIu64 ", an unknown sequence", from);
    if (find(kv, to) != NONE)
        return esp_fail(err, ESP_E_PROTO, "KV cache: fork to %" PRIu64 ", which exists already", to);
    dst = insert(kv, to);
    if (dst == NONE)
        return fail_seqs(kv, err);
    kv->seq[dst].n_tok = kv->seq[src].n_tok;
    kv->seq[dst].n_blocks = kv->seq[src].n_blocks;
    for (uint32_t i = 0; i < kv->seq[src].n_blocks; i++) {
        uint32_t block = blocks_of(kv, src)[i];
        blocks_of(kv, dst)[i] = block;
        kv->n_ref[block]++;
    }
    return ESP_OK;
}

void esp_kv_free(struct esp_kv *kv, uint64_t seq)
{
    uint32_t slot = find(kv, seq);

    assert(!kv->planned);
    if (slot == NONE)
        return;
    for (uint32_t i = 0; i < kv->seq[slot].n_blocks; i++)
        unref(kv, blocks_of(kv, slot)[i]);
    remove_slot(kv, slot);
}

/** True if growing this sequence writes into a block that others own too. */
static bool shares_tail(const struct esp_kv *kv, uint32_t slot)
{
    const struct seq *s = &kv->seq[slot];

    return s->n_tok % kv->block_tokens != 0 && kv->n_ref[blocks_of(kv, slot)[s->n_blocks - 1]] > 1;
}

/** First phase of a plan: finds or begins every sequence, checks lengths; takes no block. */
static esp_status plan_seqs(struct esp_kv *kv, const struct esp_kv_append *appends, uint32_t n_appends,
                            struct esp_err *err)
{
    kv->mark++; /* after 2^32 plans an old mark might match: cleared then */
    if (kv->mark == 0) {
        for (uint32_t s = 0; s < kv->max_seqs; s++)
            kv->seq[s].mark = 0;
        kv->mark = 1;
    }
    for (uint32_t i = 0; i < n_appends; i++) {
        const struct esp_kv_append *a = &appends[i];
        struct undo *u = &kv->undo[kv->n_undo];
        uint32_t slot = find(kv, a->seq);
        struct seq *s;

        if (a->n_tok == 0)
            return esp_fail(err, ESP_E_PROTO, "KV cache: no rows for sequence %" PRIu64, a->seq);
        if (slot != NONE && kv->seq[slot].mark == kv->mark)
            return esp_fail(err, ESP_E_PROTO, "KV cache: sequence %" PRIu64 " twice in a step", a->seq);
        *u = (struct undo){.slot = slot, .shared = NONE, .begun = slot == NONE};
        if (slot == NONE)
            u->slot = slot = insert(kv, a->seq);
        if (slot == NONE)
            return fail_seqs(kv, err);
        kv->n_undo++;
        s = &kv->seq[slot];
        s->mark = kv->mark;
        u->n_tok = s->n_tok;
        u->n_blocks = s->n_blocks;
        if (a->n_tok > kv->max_blocks * kv->block_tokens - s->n_tok)
            return esp_fail(err, ESP_E_LIMIT,
                            "KV cache: sequence %" PRIu64 " of %u tokens takes no %u more, limit %u", a->seq,
                            s->n_tok, a->n_tok, kv->max_blocks * kv->block_tokens);
    }
    return ESP_OK;
}

/** Second phase: blocks that the plan takes, copies of shared last blocks included. */
static uint64_t plan_count(struct esp_kv *kv, const struct esp_kv_append *appends)
{
    uint64_t need = 0;

    for (uint32_t i = 0; i < kv->n_undo; i++) {
        struct undo *u = &kv->undo[i];
        uint64_t n_tok = (uint64_t)u->n_tok + appends[i].n_tok;

        need += (n_tok + kv->block_tokens - 1) / kv->block_tokens - u->n_blocks;
        if (shares_tail(kv, u->slot)) { /* the last owner of a shared block keeps it and copies nothing */
            u->shared = blocks_of(kv, u->slot)[u->n_blocks - 1];
            kv->n_ref[u->shared]--;
            need++;
        }
    }
    return need;
}

esp_status esp_kv_plan(struct esp_kv *kv, const struct esp_kv_append *appends, uint32_t n_appends,
                       const struct esp_kv_copy **copies, uint32_t *n_copies, struct esp_err *err)
{
    esp_status st;
    uint64_t need;

    assert(!kv->planned);
    *copies = kv->copy;
    *n_copies = 0;
    if (n_appends > kv->max_seqs)
        return esp_fail(err, ESP_E_LIMIT, "KV cache: %u sequences in a step, takes %u", n_appends,
                        kv->max_seqs);
    kv->planned = true;
    st = plan_seqs(kv, appends, n_appends, err);
    if (st)
        goto done;
    need = plan_count(kv, appends);
    if (need > kv->n_free_block) {
        st = esp_fail(err, ESP_E_LIMIT, "KV cache: needs %" PRIu64 " block%s, %u of %u free", need,
                      need == 1 ? "" : "s", kv->n_free_block, kv->n_blocks);
        goto done;
    }
    for (uint32_t i = 0; i < n_appends; i++) { /* cannot fail from here */
        struct undo *u = &kv->undo[i];
        struct seq *s = &kv->seq[u->slot];
        uint32_t *blocks = blocks_of(kv, u->slot);

        if (u->shared != NONE) {
            blocks[s->n_blocks - 1] = take_block(kv);
            kv->copy[kv->n_copy++] = (struct esp_kv_copy){.from = u->shared, .to = blocks[s->n_blocks - 1]};
        }
        s->n_tok += appends[i].n_tok;
        while ((uint64_t)s->n_blocks * kv->block_tokens < s->n_tok)
            blocks[s->n_blocks++] = take_block(kv);
    }
    *n_copies = kv->n_copy;
done:
    if (st)
        esp_kv_rollback(kv);
    return st;
}

void esp_kv_commit(struct esp_kv *kv)
{
    assert(kv->planned);
    kv->n_undo = kv->n_copy = 0;
    kv->planned = false;
}

void esp_kv_rollback(struct esp_kv *kv)
{
    assert(kv->planned);
    while (kv->n_undo > 0) {
        struct undo *u = &kv->undo[--kv->n_undo];
        struct seq *s = &kv->seq[u->slot];
        uint32_t *blocks = blocks_of(kv, u->slot);

        while (s->n_blocks > u->n_blocks)
            unref(kv, blocks[--s->n_blocks]);
        if (u->shared != NONE) {
            if (blocks[s->n_blocks - 1] != u->shared) { /* else: counted, not yet copied */
                unref(kv, blocks[s->n_blocks - 1]);
                blocks[s->n_blocks - 1] = u->shared;
            }
            kv->n_ref[u->shared]++;
        }
        s->n_tok = u->n_tok;
        if (u->begun)
            remove_slot(kv, u->slot);
    }
    kv->n_copy = 0;
    kv->planned = false;
}

/* ---- books that travel ---- */

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
        n_list += kv->hash[i] != NONE ? kv->seq[kv->hash[i]].n_blocks : 0;
    out->seqs = calloc((size_t)n_seqs + 1, sizeof *out->seqs);
    out->own = calloc((size_t)esp_kv_used_blocks(kv) + 1, sizeof *out->own);
    out->lists = calloc(n_list + 1, sizeof *out->lists);
    if (!number || !out->seqs || !out->own || !out->lists) {
        st = esp_fail(err, ESP_E_NOMEM, "KV cache: a copy of its books, %u sequences", n_seqs);
        goto done;
    }
    memset(number, 0xff, (size_t)kv->n_blocks * sizeof *number);
    for (uint32_t i = 0; i <= kv->hash_mask; i++) {
        const struct seq *s = kv->hash[i] != NONE ? &kv->seq[kv->hash[i]] : NULL;

        if (s && s->n_tok > 0)
            out->seqs[out->n_seqs++] =
                (struct esp_kv_seq){s->id, s->n_tok, s->n_blocks, blocks_of(kv, kv->hash[i])};
    }
    qsort(out->seqs, out->n_seqs, sizeof *out->seqs, by_id);
    for (uint32_t i = 0; i < out->n_seqs; i++) {
        struct esp_kv_seq *s = &out->seqs[i];
        uint32_t *list = out->lists + at;

        for (uint32_t j = 0; j < s->n_blocks; j++) {
            uint32_t block = s->blocks[j];
            if (number[block] == NONE) {
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
            if (block >= n_blocks || (place[block] != NONE && place[block] != j))
                return esp_fail(err, ESP_E_PROTO,
                                "KV books: sequence %" PRIu64 " has block %u of %u in place %u%s", s->seq,
                                block, n_blocks, j, block < n_blocks ? ", another one elsewhere" : "");
            place[block] = j;
        }
    }
    for (uint32_t b = 0; b < n_blocks; b++)
        if (place[b] == NONE)
            return esp_fail(err, ESP_E_PROTO, "KV books: block %u of %u is nobody's", b, n_blocks);
    return ESP_OK;
}

/** Places for the sequences, empty still; all or none. */
static esp_status adopt_seqs(struct esp_kv *kv, const struct esp_kv_seq *seqs, uint32_t n_seqs,
                             struct esp_err *err)
{
    for (uint32_t i = 0; i < n_seqs; i++) {
        if (find(kv, seqs[i].seq) == NONE) {
            insert(kv, seqs[i].seq);
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
        own[b] = take_block(kv);
        kv->n_ref[own[b]] = 0;
    }
    for (uint32_t i = 0; i < n_seqs; i++) {
        const uint32_t slot = find(kv, seqs[i].seq);

        kv->seq[slot].n_tok = seqs[i].n_tok;
        kv->seq[slot].n_blocks = seqs[i].n_blocks;
        for (uint32_t j = 0; j < seqs[i].n_blocks; j++) {
            blocks_of(kv, slot)[j] = own[seqs[i].blocks[j]];
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
        const uint32_t slot = find(kv, s->seq);

        if (slot == NONE || seen[slot] || kv->seq[slot].n_tok != s->n_tok) {
            st = esp_fail(err, ESP_E_PROTO, "KV books: sequence %" PRIu64 " of %u tokens, here it has %u%s",
                          s->seq, s->n_tok, slot == NONE ? 0 : kv->seq[slot].n_tok,
                          slot != NONE && seen[slot] ? ", and it is there twice" : "");
            goto done;
        }
        seen[slot] = true;
        for (uint32_t j = 0; j < s->n_blocks; j++) {
            const uint32_t theirs = s->blocks[j], ours = blocks_of(kv, slot)[j];

            if (own[theirs] == NONE && number[ours] == NONE) {
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

/* ---- questions ---- */

uint32_t esp_kv_block_tokens(const struct esp_kv *kv)
{
    return kv->block_tokens;
}

uint32_t esp_kv_n_blocks(const struct esp_kv *kv)
{
    return kv->n_blocks;
}

uint32_t esp_kv_used_blocks(const struct esp_kv *kv)
{
    return kv->n_blocks - kv->n_free_block;
}

uint32_t esp_kv_free_blocks(const struct esp_kv *kv)
{
    return kv->n_free_block;
}

uint32_t esp_kv_n_seqs(const struct esp_kv *kv)
{
    return kv->max_seqs - kv->n_free_slot;
}
