/**
 * What a device can do at best, whatever the kernel: the ceilings that kernels are held against.
 */
#ifndef ESP_WORKER_CEILING_H
#define ESP_WORKER_CEILING_H

#include "worker/vk_device.h"

struct esp_ceilings {
    double read_rate;    /* bytes/s of a buffer read once, from memory: too large for any cache */
    double flop_rate;    /* flop/s of float32 multiply-and-add in registers, a fused one counting as two */
    uint64_t read_bytes; /* how large that buffer was */
};

/**
 * Measures them: the best of what fits into half a second each. Takes a buffer of the device's memory for that time, 256
 * MiB (512 on a GPU) or an eighth of what it may fill.
 * Errors: ESP_E_NOMEM, ESP_E_DEVICE.
 */
esp_status esp_vk_ceilings(struct esp_ceilings *out, struct esp_vk *vk, struct esp_err *err);

#endif
