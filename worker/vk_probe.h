/**
 * What physical devices there are, what each can do, and which of them is taken. For worker/vk_*.c alone.
 */
#ifndef ESP_WORKER_VK_PROBE_H
#define ESP_WORKER_VK_PROBE_H

#include "worker/vk_device.h"

#define ESP_VK_DEVICES 64 /* as many are looked at */

/* What one physical device is and whether it reaches the baseline. */
struct esp_vk_candidate {
    VkPhysicalDevice phys;
    VkPhysicalDeviceProperties props;
    VkPhysicalDeviceMemoryProperties mem;
    char driver[256];
    char lacks[256]; /* "" when it is good enough */
    uint32_t subgroup_size;
    VkSubgroupFeatureFlags subgroup_ops;
    uint32_t family;
    uint64_t max_alloc_bytes;
    uint64_t memory_bytes; /* free in the device's own heap, as far as it tells */
    bool has_budget, uma;
    uint64_t host_align;   /* of host memory that a CPU driver takes for its own; 0: it takes none */
    bool has_size_control; /* VK_EXT_subgroup_size_control with both its features */
    uint32_t wave, max_lanes;
    uint32_t n_coop, coop_wave;
    struct esp_vk_coop coop[ESP_VK_COOPS]; /* the largest first */
    bool can[ESP_VK_N_CLASS];
    enum esp_vk_class cls; /* the one that fits it */
};

/** Looks at every device: candidates[0 .. *n_out), of ESP_VK_DEVICES. Errors: ESP_E_DEVICE, ESP_E_NOMEM. */
esp_status esp_vk_probe_all(VkInstance instance, struct esp_vk_candidate *candidates, uint32_t *n_out,
                            struct esp_err *err);

/** How much one wants such a device: 4 discrete .. 0, a CPU driver. */
int esp_vk_rank(const struct esp_vk_candidate *candidate);

/** The one that `want` names, as in esp_vk_open, among n; borrowed. Errors: ESP_E_DEVICE, as there. */
esp_status esp_vk_choose(const struct esp_vk_candidate **out, const struct esp_vk_candidate *candidates,
                         uint32_t n, const char *want, struct esp_err *err);

#endif
