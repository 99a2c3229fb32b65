/**
 * Command buffers and submission. One queue, one thread; a timeline semaphore counts what was handed in.
 */
#ifndef ESP_WORKER_VK_CMD_H
#define ESP_WORKER_VK_CMD_H

#include "worker/vk_device.h"

#define ESP_MAX_BATCH 512 /* command buffers in one call, where they go apart */

esp_status esp_cmd_alloc(VkCommandBuffer *out, struct esp_vk *vk, struct esp_err *err);
void esp_cmd_free(VkCommandBuffer *cmd, struct esp_vk *vk); /* NULL is fine */

/** Begins recording; `once`: submitted one time, else over and over (never twice at once). */
esp_status esp_cmd_begin(VkCommandBuffer cmd, bool once, struct esp_err *err);
esp_status esp_cmd_end(VkCommandBuffer cmd, struct esp_err *err);

/** Orders every earlier shader and copy access before every later one, indirect arguments included. */
void esp_cmd_barrier(VkCommandBuffer cmd);
/** Orders shaders alone: what stands between two dispatches of a command buffer. Whoever copies, or changes indirect arguments
 * on the device, has barriers of its own before and behind. */
void esp_cmd_barrier_shaders(VkCommandBuffer cmd);
/** As the first, and makes the results visible to the host. */
void esp_cmd_barrier_all(VkCommandBuffer cmd);

/**
 * Hands in command buffers in order, each in a batch of its own if `apart`; *out: the timeline's value once the device
 * is done with them. They may not be recorded, freed or handed in anew before.
 */
esp_status esp_submit(uint64_t *out, struct esp_vk *vk, const VkCommandBuffer *cmds, uint32_t n, bool apart,
                      struct esp_err *err);
/** Sleeps until the timeline has come to `value`; n: command buffers that may take their time. Errors: as below. */
esp_status esp_submit_done(struct esp_vk *vk, uint64_t value, uint32_t n, struct esp_err *err);

/**
 * Hands in command buffers in order and sleeps until the device is done with them.
 * @param apart  each in a batch of its own, so that no single piece of work runs into a driver's watchdog;
 *               false: all in one batch
 * Errors: ESP_E_DEVICE, also when nothing came back within two minutes a command buffer.
 */
esp_status esp_submit_wait(struct esp_vk *vk, const VkCommandBuffer *cmds, uint32_t n, bool apart,
                           struct esp_err *err);

/** A command buffer for work done once, while loading or cleaning up: begun, to be recorded into and handed to run. */
esp_status esp_cmd_once_begin(VkCommandBuffer *out, struct esp_vk *vk, struct esp_err *err);
/** Orders what was recorded before all that comes later, submits it, sleeps until it is done; frees it in any case. */
esp_status esp_cmd_once_run(VkCommandBuffer *cmd, struct esp_vk *vk, struct esp_err *err);

#endif
