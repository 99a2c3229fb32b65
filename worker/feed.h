/**
 * The way of weights onto the device: a matrix's groups of rows are packed (worker/pack.h) on all cores, into the
 * device's memory where the host can write to it, else into staging buffers from which the device copies meanwhile.
 *
 * The thread that owns the device owns the feed.
 */
#ifndef ESP_WORKER_FEED_H
#define ESP_WORKER_FEED_H

#include "worker/packed.h"
#include "worker/piece.h"
#include "worker/pool.h"
#include "worker/vk_mem.h"

struct esp_feed;

/** Threads and, where the host cannot write to the device, staging buffers. Errors: ESP_E_NOMEM, ESP_E_DEVICE. */
esp_status esp_feed_create(struct esp_feed **out, struct esp_vk *vk, struct esp_err *err);
/** Waits for copies under way. NULL is fine. */
void esp_feed_destroy(struct esp_feed **feed);

/** A run of groups of one part of a matrix. */
struct esp_feed_run {
    const struct esp_piece_mat *m;
    uint32_t part, group, n_group; /* groups of that part */
    struct esp_buf *to;            /* its chunk */
    struct esp_packed_file *from;  /* has it packed already; NULL: pack it */
    bool make_up;                  /* instead: some rows of its like over and over */
    struct esp_packed_file *keep;  /* where it is kept, packed; NULL: nowhere */
    void (*beside)(void *arg);     /* done by one thread while others pack; NULL: nothing */
    void *arg;
};

/** How many groups of 8 rows cannot be parted: what kernels take together. Parts are made of whole ones. */
uint32_t esp_feed_unit(const struct esp_piece_mat *m);

/**
 * The most groups that one run may have, whole units of them; 0: not even one unit fits. Runs of what takes long (quantise) are
 * shorter, so that a slice of loading can end in time.
 */
uint32_t esp_feed_most(const struct esp_piece_mat *m, bool packed);

/** Its threads, for other work between runs. */
struct esp_pool *esp_feed_pool(struct esp_feed *feed);

/**
 * Packs a run. The last of it may still be on its way at return. Errors: as esp_pack_groups, ESP_E_DEVICE, ESP_E_NOMEM; and
 * ESP_E_FORMAT, with *damaged set, if `from` is: then the run can be made again without it.
 */
esp_status esp_feed_pack(struct esp_feed *feed, const struct esp_feed_run *run, bool *damaged,
                         struct esp_err *err);

/** Sleeps until all that was packed is there. Errors: ESP_E_DEVICE. */
esp_status esp_feed_wait(struct esp_feed *feed, struct esp_err *err);

#endif
