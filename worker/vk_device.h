/**
 * Vulkan devices: which there are, which are good enough, and one opened.
 *
 * Baseline: Vulkan 1.2 with timelineSemaphore and bufferDeviceAddress, nothing else. What a device offers
 * beyond that decides its class, and the class decides which kernels run (worker/kernels.h):
 *
 *   plain  weights and activations through buffer addresses, shared-memory tiles. Every device can.
 *   texel  weights and activations through storage texel buffers, register tiles, subgroups of 8. For CPU
 * drivers whose JIT turns texel loads into plain vector loads but buffer addresses into gathers (lavapipe).
 *   direct texel, but quantised weights through addresses that are the same for all lanes (shaders/direct.glsl). For
 * CPU drivers that load those once, without lanes: lavapipe of Mesa 26.
 *   gpu    plain, and where it pays kernels that exchange sums within full subgroups of one size. For GPUs whose driver
 * promises that size; CPU drivers that do run it in tests.
 */
#ifndef ESP_WORKER_VK_DEVICE_H
#define ESP_WORKER_VK_DEVICE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include <vulkan/vulkan.h>

#include "model/wtype.h"
#include "proto/log.h"
#include "proto/status.h"

enum esp_vk_class {
    ESP_VK_PLAIN = 0,
    ESP_VK_TEXEL = 1,
    ESP_VK_GPU = 2,
    ESP_VK_DIRECT = 3, /* takes texel's kernels where it has none of its own */
    ESP_VK_N_CLASS = 4
};

/** Whether kernels of a class read through storage texel buffers. */
static inline bool esp_vk_has_texels(enum esp_vk_class cls)
{
    return cls == ESP_VK_TEXEL || cls == ESP_VK_DIRECT;
}

/** "plain", "texel", "gpu", "direct". */
const char *esp_vk_class_name(enum esp_vk_class cls);

/** What a worker tells the coordinator of its device. */
struct esp_vk_report {
    char name[256], driver[256], variant[16];
    uint32_t type;                 /* VkPhysicalDeviceType */
    uint64_t memory_bytes;         /* we may fill */
    uint64_t max_alloc_bytes;      /* in one buffer */
    double bandwidth, matmul_rate; /* bytes/s, flop/s: measured by esp_vk_measure; 0 before */
};

struct esp_vk_options {
    uint64_t memory_limit_bytes; /* 0: what the device offers */
    bool validate;               /* turn the validation layer on, synchronization validation included */
    bool profile;                /* write timestamps around every dispatch */
    const char
        *cache_dir;  /* of pipeline caches; NULL: $XDG_CACHE_HOME/espalier or ~/.cache/espalier; "": none */
    int force_class; /* -1: choose; else an esp_vk_class, for tests */
};

/** A product that the device's matrix units do: float16 M x K by K x N, summed in float32, by a subgroup. */
struct esp_vk_coop {
    uint32_t m, n, k; /* 0: none */
};

#define ESP_VK_COOPS 4 /* of those that a device lists as many as are looked at */

/** Which variants and tiles serve a type of weights where the gpu class has a choice. One a device and driver: sums may
 * depend on it. */
struct esp_vk_choice {
    struct esp_vk_coop coop; /* what products of many rows are made of; m 0: of no cooperative matrices */
    uint32_t tile_m, tile_n; /* their workgroups' tiles; 0 without */
    uint32_t matvec_threads; /* matvec: a column is given to more threads until there are so many */
};

struct esp_pipes; /* worker/vk_pipe.h */

/** An opened device. Fields are read-only outside of worker/vk_*.c; one thread owns it. */
struct esp_vk {
    const struct esp_log *log;
    VkInstance instance;
    VkDebugUtilsMessengerEXT messenger;
    VkPhysicalDevice phys;
    VkDevice dev;
    VkQueue queue;
    uint32_t family;
    VkCommandPool pool;
    VkSemaphore timeline; /* counts submissions */
    uint64_t n_submitted; /* its last value handed out */
    VkPhysicalDeviceProperties props;
    VkPhysicalDeviceMemoryProperties mem_props;
    uint32_t subgroup_size;
    uint64_t max_alloc_bytes; /* of one buffer with memory of its own */
    bool uma;                 /* device memory is host memory: written through a mapping, no staging */
    uint64_t host_align;      /* of host memory that may become the device's own: CPU drivers; 0: none may */
    bool profile;
    double submit_s; /* no piece of work handed in should take longer, by what was measured; 0: no limit */
    enum esp_vk_class cls;
    bool can[ESP_VK_N_CLASS];   /* classes that it could have been opened as */
    uint32_t wave;              /* gpu class: the size that its kernels' subgroups have */
    uint32_t max_lanes;         /* gpu class: invocations of a workgroup made of such subgroups */
    uint32_t n_coop, coop_wave; /* products of matrix units, the largest first; the size of their subgroups */
    struct esp_vk_coop coop[ESP_VK_COOPS];
    struct esp_vk_choice choice[ESP_N_WTYPE]; /* gpu class: by enum esp_wtype */
    struct esp_vk_report report;
    struct esp_pipes *pipes;
    struct esp_packed
        *packed; /* its owner's: matrices that were packed before (worker/packed.h); NULL: none */
    volatile uint32_t n_validation; /* messages of the validation layer so far */
};

/**
 * Opens a device.
 *
 * @param device   NULL: the best there is (discrete, integrated, virtual, other, and a CPU driver last);
 *                 a number: its index in esp_vk_list; else a part of its name, case ignored
 * @param options  may be NULL. For tests, the environment may say more: ESPALIER_VALIDATE=1 turns the validation layer
 *                 on (=fatal: its first message ends the process), ESPALIER_KERNELS=plain, texel, direct or gpu chooses the kernel
 *                 class, ESPALIER_SUBMIT_MS=N sets submit_s, ESPALIER_STAGING=1 treats device memory as out of the host's reach, as on a discrete GPU.
 * Errors: ESP_E_DEVICE (no loader, no device, none of that name, below the baseline: says what it lacks).
 */
esp_status esp_vk_open(struct esp_vk **out, const char *device, const struct esp_vk_options *options,
                       const struct esp_log *log, struct esp_err *err);
void esp_vk_close(struct esp_vk **vk);

const struct esp_vk_report *esp_vk_report(const struct esp_vk *vk);

/** Measures memory bandwidth and product rate with the kernels that will run: about 0.2 s. */
esp_status esp_vk_measure(struct esp_vk *vk, struct esp_err *err);

/**
 * Whether stages made from here on write timestamps around every dispatch.
 * Errors: ESP_E_UNSUPPORTED (the device has none).
 */
esp_status esp_vk_set_profile(struct esp_vk *vk, bool profile, struct esp_err *err);

/** Prints every device, usable or not and why, as a table or as a JSON array. */
esp_status esp_vk_list(FILE *out, bool json, struct esp_err *err);

/** ESP_OK for VK_SUCCESS; else ESP_E_DEVICE (ESP_E_NOMEM for the out-of-memory codes) with the call's name
 * and the code's. */
esp_status esp_vk_check(VkResult result, const char *call, struct esp_err *err);

/** "VK_ERROR_DEVICE_LOST" and the like. */
const char *esp_vk_result_name(VkResult result);

#endif
