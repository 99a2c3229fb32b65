/**
 * The weights that a device holds, from placement to placement.
 *
 * A shelf keeps pieces (worker/piece.h), each packed in device buffers of its own. A stage uses the pieces of its
 * placement; a new placement takes over those that are there and reads only what it lacks. The pieces of a coming
 * placement can be read in slices, while the present stage goes on working. A piece that nobody asks for any more is
 * dropped once no stage uses it.
 *
 * Memory: the shelf knows what its stages hold beside weights, so that everything on the device is counted against its
 * budget in one place. Pieces that no stage uses and no placement under way needs are idle: they stay while there is
 * room, and go first when there is not.
 *
 * The thread that owns the device owns the shelf. After ESP_E_DEVICE only leave and destroy are allowed.
 */
#ifndef ESP_WORKER_SHELF_H
#define ESP_WORKER_SHELF_H

#include "worker/stage.h"

struct esp_shelf;
struct esp_piece;
struct esp_buf;

/** Bytes of one slice at most: tens of milliseconds where the files are in memory, and enough to be worth setting off. */
#define ESP_SHELF_SLICE (UINT64_C(32) << 20)

/**
 * Called before a piece's tensors are read for the first time: makes sure that their bytes are there. Returns ESP_OK;
 * ESP_E_TIMEOUT if they are not yet, then it is asked again in a moment; another error ends the load. May block, but
 * who loads beside a working stage is blocked with it.
 */
typedef esp_status (*esp_shelf_need)(void *arg, const struct esp_tensor *const *tensors, uint32_t n,
                                     struct esp_err *err);

/**
 * An empty shelf; takes no device memory.
 * @param vk, ck, need_arg  borrowed until destroy
 * @param need  NULL: all bytes of the checkpoint are there
 * Errors: ESP_E_NOMEM (host memory).
 */
esp_status esp_shelf_create(struct esp_shelf **out, struct esp_vk *vk, const struct esp_checkpoint *ck,
                            esp_shelf_need need, void *need_arg, struct esp_err *err);
/** Frees all pieces. No stage may use one any more. */
void esp_shelf_destroy(struct esp_shelf **shelf);

/**
 * For measuring, before anything is loaded: each matrix becomes some of its packed rows over and over, which takes as long as
 * copying does, whatever it is packed as. Only the first rows of the checkpoint's tensors are read then.
 */
void esp_shelf_make_up(struct esp_shelf *shelf);

/** What a slice has come to. Bytes are those on the device. */
struct esp_shelf_slice {
    uint64_t loaded_bytes;  /* read by this call */
    uint64_t lacking_bytes; /* of the placement, still to be read; 0: done */
    uint64_t weight_bytes;  /* of the placement in all, small vectors not counted */
};

/**
 * Reads about max_bytes of what a coming placement will lack, or what 50 ms suffice for, and returns; it may also have found
 * out no more than whether something was packed before. A piece may be left in the middle: the next call goes on there, for
 * whatever placement.
 * @param out  set in any case; zeros where spec was refused
 * Errors: ESP_E_ARG (spec contradicts the model, or takes weights of another type than the present stage), ESP_E_NOMEM (it does not fit beside what the present stage holds,
 * with both numbers, or the driver has no more: idle pieces are dropped then), ESP_E_TIMEOUT (bytes are not there yet),
 * what `need` said, ESP_E_DEVICE. What was read stays on the shelf.
 */
esp_status esp_shelf_load(struct esp_shelf *shelf, const struct esp_stage_spec *spec, uint64_t max_bytes,
                          struct esp_shelf_slice *out, struct esp_err *err);

/* ---- for stages ---- */

struct esp_vk *esp_shelf_vk(const struct esp_shelf *shelf);
const struct esp_checkpoint *esp_shelf_checkpoint(const struct esp_shelf *shelf);

/**
 * What matrices are held as, from now on: pieces of another type are dropped. At first it is as they are stored.
 * esp_shelf_load does it for what it loads. Errors: ESP_E_ARG (a stage uses some).
 */
esp_status esp_shelf_hold_as(struct esp_shelf *shelf, enum esp_wtype want, struct esp_err *err);

/** How a piece is made up; borrowed until destroy. Errors: as esp_piece_plan. */
esp_status esp_shelf_piece(const struct esp_piece **out, struct esp_shelf *shelf, uint32_t piece,
                           struct esp_err *err);

/** Bytes on the device that a placement could not have: what stages in use hold that is not of it. */
uint64_t esp_shelf_beside(const struct esp_shelf *shelf, const struct esp_stage_spec *spec);

/**
 * A stage uses the pieces of `spec` from now on, there or not yet, and takes other_bytes of the device beside them.
 * Idle pieces that leave too little room for it are dropped. esp_shelf_piece must have gone well for all of spec.
 */
void esp_shelf_use(struct esp_shelf *shelf, const struct esp_stage_spec *spec, uint64_t other_bytes);
/** Ends that. The device must be done with the stage. */
void esp_shelf_leave(struct esp_shelf *shelf, const struct esp_stage_spec *spec, uint64_t other_bytes);

/**
 * Reads all that spec lacks; *loaded_bytes counts it, in case of failure too. Waits for bytes that `need` does not have
 * yet. Errors: as esp_shelf_load, and ESP_E_CANCELLED once progress returned false.
 */
esp_status esp_shelf_fill(struct esp_shelf *shelf, const struct esp_stage_spec *spec,
                          esp_load_progress progress, void *progress_arg, uint64_t *loaded_bytes,
                          struct esp_err *err);

/** Waits until the bytes of these tensors are there. Errors: what `need` said, ESP_E_CANCELLED. */
esp_status esp_shelf_await(struct esp_shelf *shelf, const struct esp_tensor *const *tensors, uint32_t n,
                           esp_load_progress progress, void *progress_arg, struct esp_err *err);

/** The buffers of a whole piece, as many as its plan has chunks; they stay while a stage uses it. */
const struct esp_buf *esp_shelf_chunks(const struct esp_shelf *shelf, uint32_t piece);

/** Drops every piece that is not of spec: at once, or when the stage that uses it leaves. NULL: all that are idle. */
void esp_shelf_settle(struct esp_shelf *shelf, const struct esp_stage_spec *spec);

#endif
