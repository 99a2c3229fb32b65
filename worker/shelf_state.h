/* What shelf.c (which pieces there are, who uses them, what room they take) and shelf_load.c (reading them) share; nobody else
 * includes it. */
#ifndef ESP_WORKER_SHELF_STATE_H
#define ESP_WORKER_SHELF_STATE_H

#include "worker/feed.h"
#include "worker/packed_key.h"
#include "worker/piece.h"
#include "worker/shelf.h"

/* A piece and how much of it the device has. */
struct esp_held {
    struct esp_piece *plan;    /* NULL: nobody asked yet */
    struct esp_buf *chunk;     /* plan->n_chunk; NULL: not on the device */
    uint32_t mat, part, group; /* what is packed next: a matrix, one of its parts, a group of that */
    uint64_t n_done;           /* bytes packed */
    bool looked_up;            /* for matrix `mat`, in the cache of packed ones; what came of it: */
    struct esp_packed_key key; /* its name, while that is being found out */
    struct esp_packed_file *from, *keep;
    uint32_t ahead_mat, ahead_group;
    uint64_t n_ahead; /* bytes, packed, of what the kernel was asked to read */
    bool asked;       /* `need` said that its bytes are there */
    uint32_t n_user;
    bool unwanted; /* goes with its last user */
};

struct esp_shelf {
    struct esp_vk *vk;
    const struct esp_checkpoint *ck;
    const struct esp_config *c;
    esp_shelf_need need;
    void *need_arg;
    enum esp_wtype want; /* what matrices are held as */
    uint32_t n_held;
    struct esp_held *held;
    bool make_up;                 /* see esp_shelf_make_up */
    uint64_t other_bytes;         /* of stages, beside weights */
    struct esp_feed *feed;        /* while something is being loaded */
    struct esp_packed_count told; /* of the cache, in the log */
};

/** Ends with the cache of packed matrices for the present one. */
void esp_held_leave_cache(struct esp_held *held, bool whole);

/** Takes a piece off the device; its plan and its users stay. */
void esp_shelf_drop(struct esp_shelf *shelf, struct esp_held *held);

/** Drops all that no stage uses, but for spec's (NULL: none). */
void esp_shelf_drop_idle(struct esp_shelf *shelf, const struct esp_stage_spec *but);

/** Whether a piece is of spec; nothing is of NULL. */
bool esp_shelf_is_of(const struct esp_shelf *shelf, uint32_t piece, const struct esp_stage_spec *spec);

/** Bytes of the device that pieces outside of spec take: those in use, or those that are idle. */
uint64_t esp_shelf_outside(const struct esp_shelf *shelf, const struct esp_stage_spec *spec, bool in_use);

/** Bytes of spec's pieces, whole and what of them is on the device. Errors: as esp_shelf_piece. */
esp_status esp_shelf_sum(struct esp_shelf *shelf, const struct esp_stage_spec *spec, uint64_t *all,
                         uint64_t *done, struct esp_err *err);

#endif
