/**
 * What the workers were told to forget, until it is certain that all of them have heard.
 *
 * A Release goes from stage to stage behind the steps, and nobody answers it. A step that was sent after it and has come
 * home proves that it has been everywhere. What is not proven when a placement is carried on is told again: a
 * stage that forgets nothing would take what nobody needs along. Pure.
 */
#ifndef ESP_COORDINATOR_RELEASED_H
#define ESP_COORDINATOR_RELEASED_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/status.h"

struct esp_released_id {
    uint64_t id, step;
    bool image;
};

/** Zeroed: none. */
struct esp_released {
    struct esp_released_id *entry;
    uint32_t n, n_cap;
};

void esp_released_finish(struct esp_released *r);

/** n ids were released behind step number `step`. Without memory they are forgotten, which costs room at worst. */
void esp_released_add(struct esp_released *r, const uint64_t *ids, uint32_t n, bool image, uint64_t step);

/** A step has come home: what was released before it was sent has been everywhere. */
void esp_released_prove(struct esp_released *r, uint64_t step);

/** Takes up to n_max ids out, of one kind; how many. */
uint32_t esp_released_take(struct esp_released *r, uint64_t *ids, uint32_t n_max, bool image);

#endif
