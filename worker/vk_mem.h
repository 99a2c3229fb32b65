/**
 * Device memory: buffers with memory of their own, and the way of bytes into them at load.
 */
#ifndef ESP_WORKER_VK_MEM_H
#define ESP_WORKER_VK_MEM_H

#include "worker/vk_device.h"

enum esp_buf_kind {
    ESP_BUF_DEVICE, /* the device's own memory; mapped where that is host memory */
    ESP_BUF_UPLOAD, /* host memory the device reads: mapped, coherent */
    ESP_BUF_STEP, /* written by the host, read by every workgroup: mapped, the device's own memory if the host reaches it */
    ESP_BUF_READBACK /* host memory the device writes: mapped, coherent, cached where there is such */
};

struct esp_buf {
    VkBuffer buf;
    VkDeviceMemory mem;
    VkDeviceSize n_bytes;
    VkDeviceAddress addr;
    VkBufferView view; /* of all of it, in `format`; texel class only */
    void *map;         /* NULL where the host cannot see it */
    void *own;         /* the memory, where it is ours that the driver uses; NULL: the driver's */
    size_t n_own;
};

/**
 * A buffer for storage, indirect, copy and (with a format) storage-texel use, zeroed if mapped.
 * @param n_bytes  rounded up to 16; 0 is taken as 16
 * @param format   VK_FORMAT_UNDEFINED, or the texel view's; ignored outside of the texel class
 * Errors: ESP_E_NOMEM naming `what` and the size; ESP_E_DEVICE.
 */
esp_status esp_buf_create(struct esp_buf *out, struct esp_vk *vk, enum esp_buf_kind kind,
                          VkDeviceSize n_bytes, VkFormat format, const char *what, struct esp_err *err);
/** NULL-safe for half-built and zeroed buffers. The device must be done with it. */
void esp_buf_destroy(struct esp_buf *buf, struct esp_vk *vk);

/**
 * Brings bytes into device buffers at load. Where there is no mapping they go through two staging buffers by turns: the
 * host fills one while the device copies from the other.
 */
struct esp_upload {
    struct esp_vk *vk;
    struct esp_upload_lane {
        struct esp_buf staging;
        VkCommandBuffer cmd;
        uint64_t busy_until; /* the timeline's value once its copy is done; 0: it is */
    } lane[2];
    uint32_t turn;
    struct esp_buf *to;
    VkDeviceSize at, n_bytes;
};

#define ESP_UPLOAD_BYTES (16u << 20) /* at most this much between map and commit */

esp_status esp_upload_init(struct esp_upload *up, struct esp_vk *vk, struct esp_err *err);
/** Waits for copies under way. Fine for a zeroed and a half-made one. */
void esp_upload_finish(struct esp_upload *up);
/**
 * Where to write n_bytes (<= ESP_UPLOAD_BYTES) that shall land at `at` of `to`; write only, and commit next. May sleep
 * for the copy before the last. Errors: ESP_E_DEVICE.
 */
esp_status esp_upload_map(void **out, struct esp_upload *up, struct esp_buf *to, VkDeviceSize at,
                          VkDeviceSize n_bytes, struct esp_err *err);
/** Sets off the copy, ordered before all that is submitted later. The staging buffer is the device's now. */
esp_status esp_upload_commit(struct esp_upload *up, struct esp_err *err);
/** Sleeps until everything committed is there. */
esp_status esp_upload_wait(struct esp_upload *up, struct esp_err *err);

#endif
