/**
 * Paged KV cache bookkeeping: which block of the device's cache holds which tokens of which sequence. Host
 * memory only, no device: the caller makes the copies asked for and writes the rows.
 *
 * A block holds block_tokens consecutive tokens, of every layer of the stage. A sequence is a list of blocks,
 * all full but the last. Blocks are reference-counted: a fork shares all of them, and a shared, partly filled
 * last block is copied when one of its owners grows (copy on write), so that beams and best-of-n hold their
 * prefix once. Only the last block of a sequence is ever written, and only while nobody else owns it.
 *
 * Appending has two phases. esp_kv_plan makes room for all rows of a step or for none; the device then runs;
 * then esp_kv_commit keeps what was planned or esp_kv_rollback leaves no trace of it. In between esp_kv_len
 * and esp_kv_blocks show the sequences as planned, and nothing else may be called.
 *
 * A cache can be told to another worker: esp_kv_export numbers the blocks that are owned, and esp_kv_adopt makes the
 * same books of that elsewhere, or esp_kv_match finds the places for it in books that hold the same sequences already.
 *
 * Nothing allocates after create but those three. One thread owns a cache.
 */
#ifndef ESP_WORKER_KV_H
#define ESP_WORKER_KV_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/status.h"
#include "proto/wire.h"

struct esp_kv;

/** Rows to make room for. A sequence that does not exist begins here, empty. */
struct esp_kv_append {
    uint64_t seq;
    uint32_t n_tok; /* 1 .. */
};

/** The whole of block `from`, in every layer, goes to block `to` before the step writes. */
struct esp_kv_copy {
    uint32_t from, to;
};

/**
 * @param n_blocks            1 .., blocks of the device's cache, numbered from 0
 * @param block_tokens        a multiple of 8
 * @param max_seqs            1 .., live sequences
 * @param max_blocks_per_seq  1 .., so a sequence holds up to max_blocks_per_seq * block_tokens tokens
 * Errors: ESP_E_ARG, ESP_E_NOMEM.
 */
esp_status esp_kv_create(struct esp_kv **out, uint32_t n_blocks, uint32_t block_tokens, uint32_t max_seqs,
                         uint32_t max_blocks_per_seq, struct esp_err *err);
void esp_kv_destroy(struct esp_kv **kv);

bool esp_kv_exists(const struct esp_kv *kv, uint64_t seq);

/** Tokens of the sequence: the position of its next row. 0 for an unknown one. */
uint32_t esp_kv_len(const struct esp_kv *kv, uint64_t seq);

/**
 * The block list of a sequence, borrowed until the next call that changes the cache: block i holds the tokens
 * from i * block_tokens on. NULL and *n_blocks 0 for an unknown sequence.
 */
const uint32_t *esp_kv_blocks(const struct esp_kv *kv, uint64_t seq, uint32_t *n_blocks);

/**
 * An empty sequence. esp_kv_plan does it by itself for those it does not know.
 * Errors: ESP_E_PROTO (it exists), ESP_E_LIMIT (too many sequences).
 */
esp_status esp_kv_begin(struct esp_kv *kv, uint64_t seq, struct esp_err *err);

/**
 * Makes `to` a copy of `from`, all blocks shared. Takes no block; a later append may take one for the copy.
 * Errors: ESP_E_PROTO (`from` is unknown or `to` exists), ESP_E_LIMIT (too many sequences).
 */
esp_status esp_kv_fork(struct esp_kv *kv, uint64_t to, uint64_t from, struct esp_err *err);

/** Forgets a sequence and frees the blocks that only it owned; an unknown one is fine. */
void esp_kv_free(struct esp_kv *kv, uint64_t seq);

/**
 * Makes room for the rows of a step, for all of them or none. Commit or roll back before anything else.
 *
 * @param appends   every sequence once
 * @param copies    out: block copies the device must do, in any order, before it writes rows; borrowed until
 * commit or rollback Errors, nothing changed and nothing to roll back then: ESP_E_LIMIT (blocks, sequences,
 * length of a sequence), ESP_E_PROTO (a sequence twice, no rows).
 */
esp_status esp_kv_plan(struct esp_kv *kv, const struct esp_kv_append *appends, uint32_t n_appends,
                       const struct esp_kv_copy **copies, uint32_t *n_copies, struct esp_err *err);
void esp_kv_commit(struct esp_kv *kv);
void esp_kv_rollback(struct esp_kv *kv);

/** What a cache holds, with its blocks numbered anew and without gaps, in the order in which sequences name them. */
struct esp_kv_books {
    uint32_t n_seqs, n_blocks;
    struct esp_kv_seq *seqs; /* by id; blocks: numbers 0 .. n_blocks-1 */
    uint32_t *own;           /* [n_blocks] the cache's own block of each number */
    uint32_t *lists;         /* what seqs' blocks point into */
};

/** Sequences without tokens are left out. *out is finished by esp_kv_books_finish. Errors: ESP_E_NOMEM. */
esp_status esp_kv_export(struct esp_kv_books *out, const struct esp_kv *kv, struct esp_err *err);
void esp_kv_books_finish(struct esp_kv_books *books); /* zeroed ones are fine */

/**
 * Makes an empty cache hold these sequences; blocks that they share are shared here too.
 *
 * @param seqs      a stranger's: everything about them is checked, nothing is changed unless all of it holds
 * @param n_blocks  what they number their blocks by: 0 .. n_blocks-1, each owned, and at one place of a sequence
 * @param own       u32[n_blocks] out: the block of this cache that each became
 * Errors: ESP_E_PROTO (contradictions; the cache is not empty), ESP_E_LIMIT (more than the cache takes), ESP_E_NOMEM.
 */
esp_status esp_kv_adopt(struct esp_kv *kv, const struct esp_kv_seq *seqs, uint32_t n_seqs, uint32_t n_blocks,
                        uint32_t *own, struct esp_err *err);

/**
 * The same for a cache that holds the same sequences, no more and no fewer, of the same lengths and sharing the same
 * blocks: own gets where each block lies here. Changes nothing. Errors: ESP_E_PROTO, ESP_E_NOMEM.
 */
esp_status esp_kv_match(const struct esp_kv *kv, const struct esp_kv_seq *seqs, uint32_t n_seqs,
                        uint32_t n_blocks, uint32_t *own, struct esp_err *err);

uint32_t esp_kv_block_tokens(const struct esp_kv *kv);
uint32_t esp_kv_n_blocks(const struct esp_kv *kv);
uint32_t esp_kv_used_blocks(const struct esp_kv *kv);
uint32_t esp_kv_free_blocks(const struct esp_kv *kv);
uint32_t esp_kv_n_seqs(const struct esp_kv *kv);

#endif
