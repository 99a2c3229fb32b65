/**
 * worker/shelf.h by the clock: which weights a simulated device holds. Reading sleeps for as long as its profile says.
 */
#ifndef ESP_TEST_SIM_SHELF_H
#define ESP_TEST_SIM_SHELF_H

#include "tests/sim/sim_device.h"
#include "worker/shelf.h"

struct sim_device *sim_shelf_device(const struct esp_shelf *shelf);
const struct esp_config *sim_shelf_config(const struct esp_shelf *shelf);

/** Bytes of a placement's weights, and the memory that is in use beside them. */
uint64_t sim_shelf_bytes(const struct esp_shelf *shelf, const struct esp_stage_spec *spec);
uint64_t sim_shelf_beside(const struct esp_shelf *shelf, const struct esp_stage_spec *spec);

/** A stage uses the placement's weights, there or not yet, and so many bytes beside them; and ends that. */
void sim_shelf_use(struct esp_shelf *shelf, const struct esp_stage_spec *spec, uint64_t other_bytes);
void sim_shelf_leave(struct esp_shelf *shelf, const struct esp_stage_spec *spec, uint64_t other_bytes);

/** Reads what the placement lacks, then drops all that no stage uses. Errors: ESP_E_CANCELLED. */
esp_status sim_shelf_fill(struct esp_shelf *shelf, const struct esp_stage_spec *spec,
                          esp_load_progress progress, void *arg, uint64_t *loaded_bytes, struct esp_err *err);

#endif
