/**
 * Which variants and tiles of the gpu class serve best on a device: measured once, remembered beside the pipeline cache
 * (a file a device and driver version), read at every later opening.
 *
 * Sums may depend on the choice, so workers of one device and driver must have the same: the first to write the file
 * decides, and the others take what it says. Without a place to keep it nothing is measured, and everybody has the same
 * defaults. What is measured is checked too: a variant that computes wrongly on this driver is not taken.
 */
#ifndef ESP_WORKER_TUNE_H
#define ESP_WORKER_TUNE_H

#include <stdio.h>

#include "worker/vk_device.h"

/** Takes the remembered choice, if there is one that this device can run; else leaves the defaults. True if there was. */
bool esp_tune_recall(struct esp_vk *vk);

/**
 * Measures and remembers, unless that was done: about a second on a GPU. CPU drivers and other classes have no choice.
 * @param redo  although it was done; workers that run keep what they have, so they are to be started anew
 * @param out   NULL, or where to print what was measured
 * Errors: ESP_E_DEVICE, ESP_E_NOMEM.
 */
esp_status esp_vk_tune(struct esp_vk *vk, bool redo, FILE *out, struct esp_err *err);

/** Whether a tile of cooperative matrices can be chosen: made of the device's products, and no larger than its memory. */
bool esp_tune_tile_fits(const struct esp_vk *vk, uint32_t coop_m, uint32_t coop_n);

/** A choice as the file holds it, into text of n bytes; and back, false for anything that this device cannot run. */
void esp_tune_format(char *text, size_t n, const struct esp_vk_choice *choice);
bool esp_tune_parse(struct esp_vk_choice *out, const struct esp_vk *vk, const char *text);

#endif
