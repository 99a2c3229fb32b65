/**
 * Weights for workers that have no checkpoint: the manifest, and the chunks that they fetch.
 *
 * Hashing a checkpoint takes seconds, and so may reading one chunk from a cold disk: both are done by a thread of its
 * own, the first when somebody wants it. Hashes are kept in a file of the user's cache directory, for the checkpoint's
 * files as they were. A customer is a worker that fetches; each has a queue of bounded length, and customers are served in turn.
 * A chunk is bytes of the mapped checkpoint, sent without a copy.
 *
 * All but the thread's work is the owner's, one thread.
 */
#ifndef ESP_COORDINATOR_SUPPLY_H
#define ESP_COORDINATOR_SUPPLY_H

#include <stdbool.h>
#include <stdint.h>

#include "model/checkpoint.h"
#include "proto/log.h"
#include "proto/wire.h"

#define ESP_SUPPLY_CHUNK_BYTES (4u << 20)
#define ESP_SUPPLY_MAX_FETCHES 64 /* of one customer, not answered yet */

struct esp_supply;

struct esp_supply_options {
    uint32_t chunk_bytes;  /* a power of two, ESP_MIN_CHUNK .. ESP_MAX_CHUNK; 0: ESP_SUPPLY_CHUNK_BYTES */
    uint64_t stop_after;   /* for tests: chunks that go out, none after them; 0: no end */
    const char *cache_dir; /* for hashes; NULL: espalier/manifests in the user's cache directory; "": none */
};

/**
 * @param ck       borrowed for longer than any link that a chunk was sent on: sent messages point into its files
 * @param options  borrowed for the call
 * @param log      borrowed until destroy
 * Errors: ESP_E_ARG (chunk_bytes), ESP_E_LIMIT (a checkpoint of too many tensors), ESP_E_IO (config.json, a thread),
 * ESP_E_NOMEM.
 */
esp_status esp_supply_create(struct esp_supply **out, const struct esp_checkpoint *ck,
                             const uint8_t fingerprint[ESP_FINGERPRINT_BYTES],
                             const struct esp_supply_options *options, const struct esp_log *log,
                             struct esp_err *err);

/** Ends the thread after the chunk it is at. */
void esp_supply_destroy(struct esp_supply **supply);

/** Readable when something has been done: the manifest is there, or chunks can be sent. */
int esp_supply_fd(const struct esp_supply *supply);

/** Empties the descriptor. */
void esp_supply_heard(struct esp_supply *supply);

/** A new customer, who wants the manifest: its number, 1 .. . Errors: ESP_E_NOMEM. */
esp_status esp_supply_join(uint64_t *out, struct esp_supply *supply, struct esp_err *err);

/** It is gone, with all it has asked for. 0 and unknown numbers are fine. */
void esp_supply_leave(struct esp_supply *supply, uint64_t customer);

/**
 * The Manifest.
 * @param msg  borrows from the supply
 * Errors: ESP_E_TIMEOUT (the thread is at it), or why it cannot be made.
 */
esp_status esp_supply_manifest(struct esp_supply *supply, struct esp_msg *msg, struct esp_err *err);

/** A customer's Fetch. Errors, all its own: ESP_E_PROTO (no such chunk, no manifest yet), ESP_E_LIMIT (too many at once). */
esp_status esp_supply_fetch(struct esp_supply *supply, uint64_t customer, const struct esp_msg_fetch *fetch,
                            struct esp_err *err);

/** The next Chunk for a customer, if one is ready; it stays so until esp_supply_sent. */
bool esp_supply_next(struct esp_supply *supply, uint64_t customer, struct esp_msg *msg);
void esp_supply_sent(struct esp_supply *supply, uint64_t customer);

#endif
