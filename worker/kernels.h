/**
 * The kernel table: which compiled shader serves an operation on a device class with a weight type.
 * A variant for another class of devices is a shader file, a line in shaders/CMakeLists.txt and a row in
 * kernels.c.
 */
#ifndef ESP_WORKER_KERNELS_H
#define ESP_WORKER_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/wtype.h"
#include "worker/vk_device.h"

enum esp_kernel {
    ESP_K_NORM,
    ESP_K_NORM_BEGIN,  /* gpu and direct class: half of one; products do the other (ESP_SPLIT_END) */
    ESP_K_MATMUL,      /* many rows: prefill, encoder */
    ESP_K_MATMUL_COOP, /* gpu class, where the compiler and the device have cooperative matrices */
    ESP_K_ROW_SCALE,   /* what it needs to know of x */
    ESP_K_MATVEC,      /* few rows: decode, logits */
    ESP_K_ROW_FIXED,   /* direct class: x before quantised weights, if it is floats */
    ESP_K_ROPE_KV,
    ESP_K_ATTENTION,
    ESP_K_ATTENTION_WIDE,   /* texel class: many rows */
    ESP_K_ATTENTION_FLASH,  /* gpu class: many rows */
    ESP_K_ATTENTION_SLICES, /* gpu class: decode rows ... */
    ESP_K_ATTENTION_JOIN,   /* ... and what puts slices together */
    ESP_K_EMBED,
    ESP_K_ROWS_IN,
    ESP_K_ROWS_OUT,
    ESP_K_IM2COL,
    ESP_K_ADD,
    ESP_K_KV_COPY,
    ESP_K_TOPK_SLICES,
    ESP_K_TOPK,
    ESP_N_KERNEL
};

/** How an operation is cut into workgroups; the same file that writes the shader decides it. */
struct esp_kernel_tile {
    uint32_t rows; /* a workgroup takes, in x for matmul, in y for matvec (there: ROWS) */
    uint32_t cols; /* groups of 8 columns a workgroup takes; in matvec with GEGLU so many pairs ... */
    bool panels;   /* ... unless it takes so many with GEGLU too */
};

struct esp_kernel_code {
    enum esp_kernel kernel;
    enum esp_vk_class cls;
    enum esp_wtype weights; /* ESP_W_NONE: reads none */
    const char *name;
    const uint32_t *spirv;
    size_t n_bytes;
    struct esp_kernel_tile tile;
};

/** NULL when there is none: a bug of ours, or a weight type no kernel reads. The gpu class takes what it has no kernel of
 * its own for from the plain class, whose packing it shares; the direct class from the texel class. */
const struct esp_kernel_code *esp_kernel_find(enum esp_kernel kernel, enum esp_vk_class cls,
                                              enum esp_wtype weights);

#endif
