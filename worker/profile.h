/**
 * Where device time goes: timestamps around dispatches, summed by kernel.
 */
#ifndef ESP_WORKER_PROFILE_H
#define ESP_WORKER_PROFILE_H

#include "worker/vk_device.h"

struct esp_profile;

/** Errors: ESP_E_UNSUPPORTED where the queue has no timestamps. */
esp_status esp_profile_create(struct esp_profile **out, struct esp_vk *vk, struct esp_err *err);
void esp_profile_destroy(struct esp_profile **profile);

/** While recording: a pair of timestamps around what is recorded between the calls. NULL profile: nothing. */
void esp_profile_begin(struct esp_profile *profile, VkCommandBuffer cmd, const char *what);
void esp_profile_end(struct esp_profile *profile, VkCommandBuffer cmd);

/** After a submission is done: adds what its dispatches took. */
void esp_profile_collect(struct esp_profile *profile);

/** Logs a line a kernel, the slowest first: calls, seconds, share. */
void esp_profile_log(const struct esp_profile *profile, const struct esp_log *log);

#endif
