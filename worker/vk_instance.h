/**
 * The Vulkan instance, with or without the validation layer. For worker/vk_*.c alone.
 */
#ifndef ESP_WORKER_VK_INSTANCE_H
#define ESP_WORKER_VK_INSTANCE_H

#include "worker/vk_device.h"

/**
 * @param validate  with the validation layer, whose messages are logged to vk->log and counted in vk->n_validation
 * @param vk        what the messenger speaks to; outlives the instance
 * Errors: ESP_E_DEVICE, ESP_E_NOMEM; *out and *messenger may be set then, and are to be destroyed.
 */
esp_status esp_vk_instance_create(VkInstance *out, VkDebugUtilsMessengerEXT *messenger, bool validate,
                                  struct esp_vk *vk, struct esp_err *err);
/** VK_NULL_HANDLE is fine for both. */
void esp_vk_instance_destroy(VkInstance instance, VkDebugUtilsMessengerEXT messenger);

#endif
