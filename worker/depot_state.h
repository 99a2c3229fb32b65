/** What a depot's files share: depot.c (for its owners) and depot_thread.c (its thread). Included by them alone. */
#ifndef ESP_WORKER_DEPOT_STATE_H
#define ESP_WORKER_DEPOT_STATE_H

#include <pthread.h>

#include "worker/cache.h"
#include "worker/depot.h"
#include "worker/depot_books.h"

/* A fetch. */
struct esp_depot_slot {
    bool used;
    uint32_t id; /* of the chunk */
    uint64_t asked_ns;
    struct esp_msg msg; /* once it CAME */
};

struct esp_depot {
    const struct esp_log *log;
    struct esp_cache *cache; /* the thread's once it runs; NULL: none */
    void *scratch;           /* the thread's: a chunk read from disk */
    int memory; /* the thread's: a file in memory, for chunks that the disk does not take; -1: none yet */
    uint64_t memory_of; /* the thread's: the generation that it belongs to */
    int fd;             /* readable when there may be something to fetch */
    bool have_lock, have_cond, started;
    pthread_t thread;
    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t come;  /* something to do for the thread, or stop */
    bool stop;

    struct esp_checkpoint **owned; /* all that are alive, and those that may go */
    struct esp_checkpoint **retired;
    uint32_t n_owned, n_retired, room;

    struct esp_depot_books books; /* of the present checkpoint */
    uint64_t generation;          /* counts checkpoints */
    struct esp_depot_cursor look, fetch;
    uint64_t begun_ns;             /* when what is wanted was */
    struct esp_depot_count before; /* at that time */

    uint32_t n_window, n_slots; /* may be out; are used */
    size_t slot_bytes;
    struct esp_depot_slot slot[ESP_DEPOT_WINDOW];
    uint32_t n_came;
    struct esp_depot_count count;
    struct esp_err why; /* of the last chunk that FAILED */
    bool told_memory;
};

/* ---- depot.c, under the lock ---- */

/** Chunks may have to be looked up or fetched that the cursors have passed. */
void esp_depot_rewind(struct esp_depot *depot);

/** A fetch is over; its chunk gets its next state from the caller. */
void esp_depot_free_slot(struct esp_depot *depot, struct esp_depot_slot *slot);

/** A chunk did not come as it should: it is asked for again, or given up with this code. */
void esp_depot_put_back(struct esp_depot *depot, uint32_t id, esp_status code, const char *why);

/* ---- depot_thread.c ---- */

/** Before the thread runs. A directory that cannot be used is logged: `cache` stays NULL. Arguments: esp_depot_create. */
void esp_depot_open_cache(struct esp_depot *depot, const char *dir, uint64_t limit_bytes);

/** The thread's whole life, until `stop`. */
void *esp_depot_thread(void *depot);

#endif
