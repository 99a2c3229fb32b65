/**
 * A few threads that do the same thing to many items: packing weights on all cores.
 *
 * The caller works along, so a pool of one has no thread of its own, and a system that grants no more threads only makes
 * it slower. Items are claimed one by one: a slow core gets fewer of them. Between runs the threads sleep.
 */
#ifndef ESP_WORKER_POOL_H
#define ESP_WORKER_POOL_H

#include <stdint.h>

#include "proto/status.h"

struct esp_pool;

#define ESP_POOL_MAX 16 /* threads: more than that saturate any memory */

/** One item; `thread` is below esp_pool_threads and nobody else's while this runs. */
typedef esp_status (*esp_pool_fn)(void *arg, uint32_t item, uint32_t thread, struct esp_err *err);

/** Cores that this process may use, 1 to ESP_POOL_MAX. */
uint32_t esp_pool_cores(void);

/** @param n_thread  with the caller's; 1 to ESP_POOL_MAX. Errors: ESP_E_NOMEM. */
esp_status esp_pool_create(struct esp_pool **out, uint32_t n_thread, struct esp_err *err);
/** Nothing may be running. NULL is fine. */
void esp_pool_destroy(struct esp_pool **pool);

uint32_t esp_pool_threads(const struct esp_pool *pool);

/**
 * Runs fn for items 0 to n_item - 1 and returns when all that were begun are done; what they wrote is visible then. After
 * one has failed no more are begun. Errors: the one of the lowest item that failed. One caller at a time.
 */
esp_status esp_pool_run(struct esp_pool *pool, esp_pool_fn fn, void *arg, uint32_t n_item,
                        struct esp_err *err);

#endif
