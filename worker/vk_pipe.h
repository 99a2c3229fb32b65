/**
 * Pipelines: made once a kernel and its specialization, kept for the device's life, remembered on disk.
 */
#ifndef ESP_WORKER_VK_PIPE_H
#define ESP_WORKER_VK_PIPE_H

#include "worker/kernels.h"
#include "worker/vk_device.h"

#define ESP_PUSH_MAX 128 /* bytes; what every device guarantees */
#define ESP_SPEC_MAX 8

struct esp_pipes;

/** @param cache_dir  as in struct esp_vk_options. An unreadable or foreign cache file is ignored. */
esp_status esp_pipes_create(struct esp_pipes **out, struct esp_vk *vk, const char *cache_dir,
                            struct esp_err *err);
/** Writes the cache file if pipelines were added, then frees all. */
void esp_pipes_destroy(struct esp_pipes **pipes);

/** Writes the cache file now, if pipelines were added since. Failure is not an error: it costs time next
 * start. */
void esp_pipes_save(struct esp_pipes *pipes);

/**
 * The pipeline of a kernel on this device, with specialization constants 0 .. n_spec-1 set. Borrowed.
 * Errors: ESP_E_UNSUPPORTED (no such kernel), ESP_E_DEVICE.
 */
esp_status esp_pipe_get(VkPipeline *out, struct esp_vk *vk, const struct esp_kernel_code *code,
                        const uint32_t *spec, uint32_t n_spec, struct esp_err *err);

/** Where the cache file is, a device and driver version in its name; "" where nothing is kept. */
const char *esp_pipes_path(const struct esp_pipes *pipes);

/** How many there are. */
uint32_t esp_pipes_count(const struct esp_pipes *pipes);

/** One layout for all kernels: the texel buffers (texel class) and ESP_PUSH_MAX bytes of push constants. */
VkPipelineLayout esp_pipe_layout(const struct esp_vk *vk);
/** Set layout of the texel class: weights, activations, KV; VK_NULL_HANDLE in the plain class. */
VkDescriptorSetLayout esp_pipe_set_layout(const struct esp_vk *vk);

#endif
