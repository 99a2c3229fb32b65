/**
 * What kv.c and kv_books.c share: a cache's insides. Included by them alone.
 */
#ifndef ESP_WORKER_KV_STATE_H
#define ESP_WORKER_KV_STATE_H

#include <stdbool.h>
#include <stddef.h>

#include "worker/kv.h"

#define ESP_KV_NONE UINT32_MAX

/** A sequence in its slot. */
struct esp_kv_entry {
    uint64_t id;
    uint32_t n_tok, n_blocks;
    uint32_t mark; /* the plan that named it last: finds a sequence named twice */
};

/** What one append of a plan did, to be undone. */
struct esp_kv_undo {
    uint32_t slot;
    uint32_t n_tok, n_blocks; /* before */
    uint32_t shared;          /* last block before it was copied on write, ESP_KV_NONE: it was not */
    bool begun;
};

struct esp_kv {
    uint32_t n_blocks, block_tokens, max_seqs, max_blocks;
    uint32_t *n_ref;          /* [n_blocks] sequences that own a block */
    uint32_t *free_block;     /* stack of unowned blocks */
    uint32_t n_free_block;    /* its height */
    struct esp_kv_entry *seq; /* [max_seqs] slots */
    uint32_t *free_slot;      /* stack of unused slots */
    uint32_t n_free_slot;
    uint32_t *table;          /* [max_seqs, max_blocks] block lists, a row a slot */
    uint32_t *hash;           /* [hash_mask + 1] slot or ESP_KV_NONE; linear probing, at most half full */
    uint32_t hash_mask;       /* a power of two less one */
    struct esp_kv_undo *undo; /* [max_seqs] the open plan's */
    struct esp_kv_copy *copy;
    uint32_t n_undo, n_copy, mark;
    bool planned;
};

/** The block list of a slot. */
static inline uint32_t *esp_kv_list(const struct esp_kv *kv, uint32_t slot)
{
    return kv->table + (size_t)slot * kv->max_blocks;
}

/** The slot of a sequence, ESP_KV_NONE for an unknown one. */
uint32_t esp_kv_find(const struct esp_kv *kv, uint64_t id);

/** A new, empty sequence; the caller has looked that there is none of that id. ESP_KV_NONE: no slot is left. */
uint32_t esp_kv_insert(struct esp_kv *kv, uint64_t id);

/** A free block, owned once from now on; the caller knows that there is one. */
uint32_t esp_kv_take(struct esp_kv *kv);

#endif
