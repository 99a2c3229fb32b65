/**
 * Which variants and tiles of the gpu class serve best on a device, for each type of weights: measured once, remembered beside
 * the pipeline cache (a file a device and driver version), read at every later opening.
 *
 * Sums may depend on the choice, so workers of one device and driver must have the same: the first to write the file
 * decides, and the others take what it says. Without a place to keep it everybody has the same defaults.
 *
 * Drivers' cooperative matrices are young, and some compute wrongly. So no GPU uses a variant of them that has not come to what
 * the plain kernels come to, on random rows of all magnitudes, here or when the file was written: such a one is refused with a
 * line in the log.
 */
#ifndef ESP_WORKER_TUNE_H
#define ESP_WORKER_TUNE_H

#include <stdio.h>

#include "worker/vk_device.h"

/** Sets what is taken before anything was measured. vk's class, limits and cooperative matrices are known. */
void esp_tune_default(struct esp_vk *vk);

/** Takes the remembered choice, if there is one that this device can run; else leaves the defaults. True if there was. */
bool esp_tune_recall(struct esp_vk *vk);

/**
 * Measures and remembers, unless that was done: some seconds on a GPU, most of them its compiler's. Where nothing can be
 * remembered it only checks the defaults. CPU drivers and other classes have no choice.
 * @param redo  although it was done; workers that run keep what they have, so they are to be started anew
 * @param out   NULL, or where to print what was measured
 * Errors: ESP_E_DEVICE, ESP_E_NOMEM.
 */
esp_status esp_vk_tune(struct esp_vk *vk, bool redo, FILE *out, struct esp_err *err);

/** Whether matmul_coop.comp can be made of such products and tiles: of what the device has, within its shared memory. */
bool esp_tune_tile_fits(const struct esp_vk *vk, const struct esp_vk_coop *coop, uint32_t tile_m,
                        uint32_t tile_n);

/** Choices (by enum esp_wtype) as the file holds them, into text of n bytes; and back, false for anything that this device
 * cannot run. */
void esp_tune_format(char *text, size_t n, const struct esp_vk_choice choice[ESP_N_WTYPE]);
bool esp_tune_parse(struct esp_vk_choice out[ESP_N_WTYPE], const struct esp_vk *vk, const char *text);

#endif
