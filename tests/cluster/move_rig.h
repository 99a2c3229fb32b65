/**
 * A coordinator in small for worker_rig.h: cuts a model's layers over the workers, and moves them while sequences live.
 */
#ifndef ESP_TEST_MOVE_RIG_H
#define ESP_TEST_MOVE_RIG_H

#include "tests/cluster/worker_rig.h"

/** How many layers the model has, and which of them each worker; lo == hi: none. */
struct rig_cut {
    uint32_t n_enc, n_dec;
    uint32_t enc_lo[RIG_WORKERS], enc_hi[RIG_WORKERS], dec_lo[RIG_WORKERS], dec_hi[RIG_WORKERS];
};

struct rig_moved {
    uint32_t n_layers, n_images;
    uint64_t kv_blocks, n_bytes;
    uint64_t loaded_bytes; /* of weights, for the placement */
};

/** Seeded: the same in every run. */
uint32_t rig_below(uint32_t n);

/** Both towers over one to three workers, each in an order of its own. */
struct rig_cut rig_random_cut(uint32_t n_enc, uint32_t n_dec);

bool rig_has_dec(const struct rig_cut *cut, int i);

/** The worker whose layers begin there; -1: nobody's. */
int rig_at_dec(const struct rig_cut *cut, uint32_t lo);
int rig_at_enc(const struct rig_cut *cut, uint32_t lo);
int rig_last_dec(const struct rig_cut *cut);

/** What of worker i's decoder layers worker j has then; false: none. */
bool rig_passes(const struct rig_cut *from, const struct rig_cut *to, int i, int j, uint32_t *lo,
                uint32_t *hi);

/** Sends worker i its Place. */
void rig_put(struct rig *rig, int i, const struct rig_cut *cut, uint64_t epoch, uint64_t carry,
             uint32_t n_moves, bool warm);

/** So many Readys; the bytes that were read for them. */
uint64_t rig_take_ready(struct rig *rig, uint64_t epoch, int n);

/** Has worker i send layers [lo, hi) and pictures to worker `to`. */
void rig_send_move(struct rig *rig, int i, uint64_t epoch, uint32_t lo, uint32_t hi, int to,
                   const uint64_t *images, uint32_t n_images);

/** Takes Moved and Stored, in whatever order, until so many of each have come. */
void rig_take_moved(struct rig *rig, uint64_t epoch, uint32_t n_layers, uint32_t n_images,
                    struct rig_moved *moved);

/** From one cut to another with all that lives: Place to everybody, then the Moves. The former epoch is one less. */
struct rig_moved rig_replace(struct rig *rig, uint64_t epoch, const struct rig_cut *from,
                             const struct rig_cut *to, const uint64_t *images, uint32_t n_images);

/** Waits until a worker says that it holds so much. */
void rig_expect_held(struct rig *rig, int i, uint64_t epoch, uint32_t n_seqs, uint32_t n_images);

#endif
