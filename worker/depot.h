/**
 * The weights of a worker that has no checkpoint: what it needs, what of it is here, what is on its way.
 *
 * A manifest names the tensors and the hash of each chunk. A placement says which tensors are wanted, in the order in
 * which they will be loaded. Chunks are looked for in the cache on disk (worker/cache.h) first and asked for from the
 * coordinator where they are not there, a window of them at a time; each is held against its hash before it is mapped
 * to its place in the checkpoint (model/remote.h). A chunk that the disk does not take is kept in memory.
 *
 * Three threads meet here. The net thread has the conversation: it asks which chunk to fetch next and hands over what
 * came. The loading thread asks for tensors. A thread of the depot's own reads, hashes and writes, so that neither
 * waits for the disk.
 */
#ifndef ESP_WORKER_DEPOT_H
#define ESP_WORKER_DEPOT_H

#include "model/remote.h"
#include "proto/log.h"
#include "proto/wire.h"
#include "worker/stage.h"

#define ESP_DEPOT_WINDOW     32         /* fetches out at most */
#define ESP_DEPOT_MAX_CHUNKS (1u << 20) /* of a manifest: 4 TiB in chunks of 4 MiB */

struct esp_depot;

/**
 * Starts the thread, without a checkpoint.
 * @param cache_dir    NULL: $XDG_CACHE_HOME/espalier/weights or ~/.cache/espalier/weights. Borrowed for the call. One that
 *                     cannot be used is logged, and everything kept in memory
 * @param limit_bytes  of the cache; 0: none
 * @param log          borrowed until destroy
 * Errors: ESP_E_NOMEM, ESP_E_IO, ESP_E_INTERNAL.
 */
esp_status esp_depot_create(struct esp_depot **out, const char *cache_dir, uint64_t limit_bytes,
                            const struct esp_log *log, struct esp_err *err);

/** Ends the thread after the chunk it is at. Nobody may use any of its checkpoints any more. */
void esp_depot_destroy(struct esp_depot **depot);

/* ---- the net thread ---- */

/**
 * Takes a manifest.
 * @param out     its checkpoint, the depot's until esp_depot_retire; NULL if it is the one that is here already
 * @param msg     a received Manifest, borrowed
 * @param origin  who sent it, for messages
 * Errors: as esp_checkpoint_open_remote, ESP_E_LIMIT. What was here before stays then.
 */
esp_status esp_depot_manifest(struct esp_depot *depot, struct esp_checkpoint **out, const struct esp_msg *msg,
                              const char *origin, struct esp_err *err);

/** The former checkpoint, which nobody uses any more, may go. Tolerates NULL. */
void esp_depot_retire(struct esp_depot *depot, struct esp_checkpoint *ck);

/** What a placement will need; replaces what an earlier one did. Chunks that had been given up are tried again. */
void esp_depot_want(struct esp_depot *depot, const struct esp_stage_spec *spec);

/** The next chunk to ask for; false: none, or the window is full. */
bool esp_depot_fetch(struct esp_depot *depot, struct esp_msg_fetch *out);

/** A Chunk has come; its frame is taken out of *msg. Errors: ESP_E_PROTO (it was not asked for). */
esp_status esp_depot_take(struct esp_depot *depot, struct esp_msg *msg, struct esp_err *err);

/** The conversation is over: what was asked for will not come, and is asked for again. */
void esp_depot_lost(struct esp_depot *depot);

/** Whether an answer is out, and how long one may take where a network of 1 Mbit/s carries it; 0: none is. */
uint64_t esp_depot_patience_ns(struct esp_depot *depot);

/** Readable when esp_depot_fetch may have something new; asking it empties this. */
int esp_depot_fd(const struct esp_depot *depot);

/* ---- the loading thread ---- */

/**
 * Whether the bytes of these tensors are here; if not, they are next. Never blocks.
 * @param tensors  of the checkpoint that esp_depot_manifest made last, else they will not come: ESP_E_CANCELLED
 * Errors: ESP_E_TIMEOUT (not yet), ESP_E_FORMAT or ESP_E_IO (the coordinator has tried some times, and has not the
 * chunk that the manifest names), ESP_E_NOMEM.
 */
esp_status esp_depot_need(void *depot, const struct esp_tensor *const *tensors, uint32_t n,
                          struct esp_err *err);

/* ---- anyone ---- */

/** Bytes of the placement's tensors that are here, and of all of them. */
void esp_depot_progress(struct esp_depot *depot, uint64_t *done, uint64_t *total);

/** Since the start. */
struct esp_depot_count {
    uint64_t fetched, fetched_bytes; /* chunks from the coordinator that were right */
    uint64_t cached, cached_bytes;   /* from the disk */
    uint64_t refused;                /* from the coordinator and wrong */
    uint64_t in_memory;              /* that the disk did not take */
};
void esp_depot_count(struct esp_depot *depot, struct esp_depot_count *out);

#endif
