/**
 * The books of a depot about one manifest: its checkpoint, the chunks of the tensors and where each of them stands, and
 * what is wanted. Plain data without a thread or a lock; the depot's guards them.
 *
 * A chunk goes UNKNOWN -> (lookup in the cache) -> PRESENT, or MISSING -> OUT (asked for) -> CAME -> PRESENT; back to
 * MISSING when the conversation broke or its bytes were wrong, and FAILED after some tries.
 *
 * Chunks of equal bytes (biases of zeros, tied tables) have one file: while one of them is on its way the others wait, and
 * are looked for in the cache again afterwards.
 */
#ifndef ESP_WORKER_DEPOT_BOOKS_H
#define ESP_WORKER_DEPOT_BOOKS_H

#include <stdbool.h>

#include "model/remote.h"
#include "proto/wire.h"
#include "worker/cache.h"
#include "worker/stage.h"

enum esp_chunk_state {
    ESP_CHUNK_UNKNOWN,
    ESP_CHUNK_MISSING,
    ESP_CHUNK_OUT,
    ESP_CHUNK_CAME,
    ESP_CHUNK_PRESENT,
    ESP_CHUNK_FAILED
};

struct esp_depot_chunk {
    uint8_t state, tries;
    bool busy;      /* of the first of equal ones: one of them is OUT or CAME */
    uint32_t first; /* of those with equal bytes: the one with the lowest number */
    uint32_t next;  /* with equal bytes; its own number: none */
};

struct esp_depot_ids {
    uint32_t n, *id; /* tensors; room for all of them */
};

/** A place in the list of what is wanted: `urgent`, then `ahead`. */
struct esp_depot_cursor {
    uint32_t at, chunk;
};

struct esp_depot_books {
    struct esp_checkpoint *ck;            /* NULL: no manifest yet, and all else is 0 */
    uint8_t digest[ESP_CACHE_HASH_BYTES]; /* of its manifest */
    uint32_t chunk_bytes, n_chunk;
    uint32_t *base;    /* [n_tensor + 1] number of a tensor's first chunk */
    uint32_t *by_hash; /* [n_chunk] numbers in the order of their hashes */
    uint8_t (*hash)[ESP_CACHE_HASH_BYTES];
    struct esp_depot_chunk *chunk;
    bool *wanted; /* [n_tensor] in `ahead` */
    struct esp_depot_ids urgent, ahead;
    uint64_t total_bytes, lacking_bytes; /* of `ahead` */
};

/** Of all that a Manifest says, to know it again. */
void esp_depot_books_digest(uint8_t out[ESP_CACHE_HASH_BYTES], const struct esp_msg *msg);

/**
 * Opens a manifest's checkpoint and books for it; nothing is wanted yet. The checkpoint is the caller's.
 * @param digest  esp_depot_books_digest of msg
 * @param msg     a received Manifest, borrowed
 * @param origin  who sent it, for messages
 * Errors: as esp_checkpoint_open_remote, ESP_E_LIMIT, ESP_E_FORMAT, ESP_E_NOMEM; the books are empty then.
 */
esp_status esp_depot_books_open(struct esp_depot_books *books, const uint8_t digest[ESP_CACHE_HASH_BYTES],
                                const struct esp_msg *msg, const char *origin, struct esp_err *err);

/** Frees the books, which are empty then; the checkpoint stays. */
void esp_depot_books_drop(struct esp_depot_books *books);

/** The tensor whose chunk this is, and how many bytes it has. */
uint32_t esp_depot_books_tensor(const struct esp_depot_books *books, uint32_t id);
size_t esp_depot_books_bytes(const struct esp_depot_books *books, uint32_t id);

/** The first of the chunks with this hash. */
bool esp_depot_books_find(uint32_t *id, const struct esp_depot_books *books, const uint8_t *hash);

/** Moves a cursor to the next chunk that is in this state, not past `end` if there is one; false: none. */
bool esp_depot_books_seek(uint32_t *id, const struct esp_depot_books *books, struct esp_depot_cursor *cursor,
                          const struct esp_depot_cursor *end, enum esp_chunk_state state);

/** What a placement will need, in the order of loading; replaces what an earlier one did. FAILED chunks get a new try. */
void esp_depot_books_want(struct esp_depot_books *books, const struct esp_stage_spec *spec);

#endif
