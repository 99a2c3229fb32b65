#include "worker/kv_state.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

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
    if (n_blocks == ESP_KV_NONE || max_seqs > 1u << 30 ||
        !esp_mul(&n_tok, max_blocks_per_seq, block_tokens) || n_tok > UINT32_MAX ||
        !esp_mul(&n_table, max_seqs, max_blocks_per_seq)) {
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

    while (kv->hash[at] != ESP_KV_NONE && kv->seq[kv->hash[at]].id != id)
        at = (at + 1) & kv->hash_mask;
    return at;
}

uint32_t esp_kv_find(const struct esp_kv *kv, uint64_t id)
{
    return kv->hash[probe(kv, id)];
}

uint32_t esp_kv_insert(struct esp_kv *kv, uint64_t id)
{
    uint32_t slot;

    if (kv->n_free_slot == 0)
        return ESP_KV_NONE;
    slot = kv->free_slot[--kv->n_free_slot];
    kv->seq[slot] = (struct esp_kv_entry){.id = id};
    kv->hash[probe(kv, id)] = slot;
    return slot;
}

/** Takes an id out of the hash: whatever probed past it moves up, so that no grave markers pile up. */
static void remove_slot(struct esp_kv *kv, uint32_t slot)
{
    uint32_t hole = probe(kv, kv->seq[slot].id), at = hole;

    for (;;) {
        at = (at + 1) & kv->hash_mask;
        if (kv->hash[at] == ESP_KV_NONE)
            break;
        /* The entry at `at` may move to the hole unless its home lies (cyclically) in (hole, at]. */
        if (((at - home(kv, kv->seq[kv->hash[at]].id)) & kv->hash_mask) >= ((at - hole) & kv->hash_mask)) {
            kv->hash[hole] = kv->hash[at];
            hole = at;
        }
    }
    kv->hash[hole] = ESP_KV_NONE;
    kv->free_slot[kv->n_free_slot++] = slot;
}

static void unref(struct esp_kv *kv, uint32_t block)
{
    assert(kv->n_ref[block] > 0);
    if (--kv->n_ref[block] == 0)
        kv->free_block[kv->n_free_block++] = block;
}

uint32_t esp_kv_take(struct esp_kv *kv)
{
    uint32_t block;

    assert(kv->n_free_block > 0); /* the plan has counted */
    block = kv->free_block[--kv->n_free_block];
    kv->n_ref[block] = 1;
    return block;
}

bool esp_kv_exists(const struct esp_kv *kv, uint64_t seq)
{
    return esp_kv_find(kv, seq) != ESP_KV_NONE;
}

uint32_t esp_kv_len(const struct esp_kv *kv, uint64_t seq)
{
    uint32_t slot = esp_kv_find(kv, seq);

    return slot == ESP_KV_NONE ? 0 : kv->seq[slot].n_tok;
}

const uint32_t *esp_kv_blocks(const struct esp_kv *kv, uint64_t seq, uint32_t *n_blocks)
{
    uint32_t slot = esp_kv_find(kv, seq);

    *n_blocks = slot == ESP_KV_NONE ? 0 : kv->seq[slot].n_blocks;
    return slot == ESP_KV_NONE ? NULL : esp_kv_list(kv, slot);
}

static esp_status fail_seqs(const struct esp_kv *kv, struct esp_err *err)
{
    return esp_fail(err, ESP_E_LIMIT, "KV cache: %u sequences live, takes no more", kv->max_seqs);
}

esp_status esp_kv_begin(struct esp_kv *kv, uint64_t seq, struct esp_err *err)
{
    assert(!kv->planned);
    if (esp_kv_find(kv, seq) != ESP_KV_NONE)
        return esp_fail(err, ESP_E_PROTO, "KV cache: sequence %" PRIu64 " exists already", seq);
    if (esp_kv_insert(kv, seq) == ESP_KV_NONE)
        return fail_seqs(kv, err);
    return ESP_OK;
}

esp_status esp_kv_fork(struct esp_kv *kv, uint64_t to, uint64_t from, struct esp_err *err)
{
    uint32_t src = esp_kv_find(kv, from), dst;

    assert(!kv->planned);
    if (src == ESP_KV_NONE)
        return esp_fail(err, ESP_E_PROTO, "KV cache: fork of %" PRIu64 ", an unknown sequence", from);
    if (esp_kv_find(kv, to) != ESP_KV_NONE)
        return esp_fail(err, ESP_E_PROTO, "KV cache: fork to %" PRIu64 ", which exists already", to);
    dst = esp_kv_insert(kv, to);
    if (dst == ESP_KV_NONE)
        return fail_seqs(kv, err);
    kv->seq[dst].n_tok = kv->seq[src].n_tok;
    kv->seq[dst].n_blocks = kv->seq[src].n_blocks;
    for (uint32_t i = 0; i < kv->seq[src].n_blocks; i++) {
        uint32_t block = esp_kv_list(kv, src)[i];
        esp_kv_list(kv, dst)[i] = block;
        kv->n_ref[block]++;
    }
    return ESP_OK;
}

void esp_kv_free(struct esp_kv *kv, uint64_t seq)
{
    uint32_t slot = esp_kv_find(kv, seq);

    assert(!kv->planned);
    if (slot == ESP_KV_NONE)
        return;
    for (uint32_t i = 0; i < kv->seq[slot].n_blocks; i++)
        unref(kv, esp_kv_list(kv, slot)[i]);
    remove_slot(kv, slot);
}

/** True if growing this sequence writes into a block that others own too. */
static bool shares_tail(const struct esp_kv *kv, uint32_t slot)
{
    const struct esp_kv_entry *s = &kv->seq[slot];

    return s->n_tok % kv->block_tokens != 0 && kv->n_ref[esp_kv_list(kv, slot)[s->n_blocks - 1]] > 1;
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
        struct esp_kv_undo *u = &kv->undo[kv->n_undo];
        uint32_t slot = esp_kv_find(kv, a->seq);
        struct esp_kv_entry *s;

        if (a->n_tok == 0)
            return esp_fail(err, ESP_E_PROTO, "KV cache: no rows for sequence %" PRIu64, a->seq);
        if (slot != ESP_KV_NONE && kv->seq[slot].mark == kv->mark)
            return esp_fail(err, ESP_E_PROTO, "KV cache: sequence %" PRIu64 " twice in a step", a->seq);
        *u = (struct esp_kv_undo){.slot = slot, .shared = ESP_KV_NONE, .begun = slot == ESP_KV_NONE};
        if (slot == ESP_KV_NONE)
            u->slot = slot = esp_kv_insert(kv, a->seq);
        if (slot == ESP_KV_NONE)
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
        struct esp_kv_undo *u = &kv->undo[i];
        uint64_t n_tok = (uint64_t)u->n_tok + appends[i].n_tok;

        need += (n_tok + kv->block_tokens - 1) / kv->block_tokens - u->n_blocks;
        if (shares_tail(kv, u->slot)) { /* the last owner of a shared block keeps it and copies nothing */
            u->shared = esp_kv_list(kv, u->slot)[u->n_blocks - 1];
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
        struct esp_kv_undo *u = &kv->undo[i];
        struct esp_kv_entry *s = &kv->seq[u->slot];
        uint32_t *blocks = esp_kv_list(kv, u->slot);

        if (u->shared != ESP_KV_NONE) {
            blocks[s->n_blocks - 1] = esp_kv_take(kv);
            kv->copy[kv->n_copy++] = (struct esp_kv_copy){.from = u->shared, .to = blocks[s->n_blocks - 1]};
        }
        s->n_tok += appends[i].n_tok;
        while ((uint64_t)s->n_blocks * kv->block_tokens < s->n_tok)
            blocks[s->n_blocks++] = esp_kv_take(kv);
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
        struct esp_kv_undo *u = &kv->undo[--kv->n_undo];
        struct esp_kv_entry *s = &kv->seq[u->slot];
        uint32_t *blocks = esp_kv_list(kv, u->slot);

        while (s->n_blocks > u->n_blocks)
            unref(kv, blocks[--s->n_blocks]);
        if (u->shared != ESP_KV_NONE) {
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
