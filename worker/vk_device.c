#include "worker/vk_device.h"

#include <stdlib.h>
#include <string.h>

#include "worker/tune.h"
#include "worker/vk_compat.h"
#include "worker/vk_instance.h"
#include "worker/vk_pipe.h"
#include "worker/vk_probe.h"

#define SUBMIT_MS 400.0 /* desktop drivers reset a device after 2 s; measured rates are not kept under load */

const char *esp_vk_class_name(enum esp_vk_class cls)
{
    static const char *const names[ESP_VK_N_CLASS] = {"plain", "texel", "gpu", "direct"};
    return names[cls];
}

const char *esp_vk_result_name(VkResult r)
{
    switch (r) {
    case VK_SUCCESS:
        return "VK_SUCCESS";
    case VK_NOT_READY:
        return "VK_NOT_READY";
    case VK_TIMEOUT:
        return "VK_TIMEOUT";
    case VK_INCOMPLETE:
        return "VK_INCOMPLETE";
    case VK_ERROR_OUT_OF_HOST_MEMORY:
        return "VK_ERROR_OUT_OF_HOST_MEMORY";
    case VK_ERROR_OUT_OF_DEVICE_MEMORY:
        return "VK_ERROR_OUT_OF_DEVICE_MEMORY";
    case VK_ERROR_INITIALIZATION_FAILED:
        return "VK_ERROR_INITIALIZATION_FAILED";
    case VK_ERROR_DEVICE_LOST:
        return "VK_ERROR_DEVICE_LOST";
    case VK_ERROR_MEMORY_MAP_FAILED:
        return "VK_ERROR_MEMORY_MAP_FAILED";
    case VK_ERROR_LAYER_NOT_PRESENT:
        return "VK_ERROR_LAYER_NOT_PRESENT";
    case VK_ERROR_EXTENSION_NOT_PRESENT:
        return "VK_ERROR_EXTENSION_NOT_PRESENT";
    case VK_ERROR_FEATURE_NOT_PRESENT:
        return "VK_ERROR_FEATURE_NOT_PRESENT";
    case VK_ERROR_INCOMPATIBLE_DRIVER:
        return "VK_ERROR_INCOMPATIBLE_DRIVER";
    case VK_ERROR_TOO_MANY_OBJECTS:
        return "VK_ERROR_TOO_MANY_OBJECTS";
    case VK_ERROR_FORMAT_NOT_SUPPORTED:
        return "VK_ERROR_FORMAT_NOT_SUPPORTED";
    case VK_ERROR_FRAGMENTED_POOL:
        return "VK_ERROR_FRAGMENTED_POOL";
    case VK_ERROR_OUT_OF_POOL_MEMORY:
        return "VK_ERROR_OUT_OF_POOL_MEMORY";
    default:
        return "VkResult";
    }
}

esp_status esp_vk_check(VkResult r, const char *call, struct esp_err *err)
{
    if (r == VK_SUCCESS)
        return ESP_OK;
    return esp_fail(err,
                    r == VK_ERROR_OUT_OF_HOST_MEMORY || r == VK_ERROR_OUT_OF_DEVICE_MEMORY ? ESP_E_NOMEM
                                                                                           : ESP_E_DEVICE,
                    "%s: %s (%d)", call, esp_vk_result_name(r), (int)r);
}

static esp_status device_create(struct esp_vk *vk, const struct esp_vk_candidate *c, struct esp_err *err)
{
    static const float priority = 1.0f;
    const char *exts[4];
    uint32_t n_ext = 0;
    VkPhysicalDeviceCooperativeMatrixFeaturesKHR coop = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR,
        .cooperativeMatrix = VK_TRUE};
    VkPhysicalDeviceSubgroupSizeControlFeaturesEXT waves = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_FEATURES_EXT,
        .subgroupSizeControl = VK_TRUE,
        .computeFullSubgroups = VK_TRUE};
    VkDeviceQueueCreateInfo queue = {.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
                                     .queueFamilyIndex = c->family,
                                     .queueCount = 1,
                                     .pQueuePriorities = &priority};
    VkPhysicalDeviceVulkan12Features f12 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES,
                                            .timelineSemaphore = VK_TRUE,
                                            .bufferDeviceAddress = VK_TRUE};
    VkDeviceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
                               .pNext = &f12,
                               .queueCreateInfoCount = 1,
                               .pQueueCreateInfos = &queue,
                               .ppEnabledExtensionNames = exts};
    VkCommandPoolCreateInfo pool = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
                                    .flags = VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT,
                                    .queueFamilyIndex = c->family};
    VkSemaphoreTypeCreateInfo type = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_TYPE_CREATE_INFO,
                                      .semaphoreType = VK_SEMAPHORE_TYPE_TIMELINE};
    VkSemaphoreCreateInfo sem = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_CREATE_INFO, .pNext = &type};
    esp_status st;

    if (c->has_budget)
        exts[n_ext++] = VK_EXT_MEMORY_BUDGET_EXTENSION_NAME;
    if (vk->host_align)
        exts[n_ext++] = VK_EXT_EXTERNAL_MEMORY_HOST_EXTENSION_NAME;
    if (vk->cls == ESP_VK_GPU) {
        exts[n_ext++] = VK_EXT_SUBGROUP_SIZE_CONTROL_EXTENSION_NAME;
        f12.pNext = &waves;
    }
    if (vk->n_coop) {
        exts[n_ext++] = VK_KHR_COOPERATIVE_MATRIX_EXTENSION_NAME;
        f12.shaderFloat16 = VK_TRUE;
        /* the model is every kernel's then, and topk has barriers of device scope */
        f12.vulkanMemoryModel = f12.vulkanMemoryModelDeviceScope = VK_TRUE;
        waves.pNext = &coop;
    }
    info.enabledExtensionCount = n_ext;
    st = esp_vk_check(vkCreateDevice(c->phys, &info, NULL, &vk->dev), "vkCreateDevice", err);
    if (st) {
        vk->dev = VK_NULL_HANDLE;
        return st;
    }
    vkGetDeviceQueue(vk->dev, c->family, 0, &vk->queue);
    st = esp_vk_check(vkCreateCommandPool(vk->dev, &pool, NULL, &vk->pool), "vkCreateCommandPool", err);
    if (!st)
        st = esp_vk_check(vkCreateSemaphore(vk->dev, &sem, NULL, &vk->timeline), "vkCreateSemaphore", err);
    return st;
}

/* The kernel class: the option's, else what ESPALIER_KERNELS names, else what fits the device. */
static esp_status class_choose(enum esp_vk_class *out, const struct esp_vk_candidate *c,
                               const struct esp_vk_options *opt, struct esp_err *err)
{
    const char *env = getenv("ESPALIER_KERNELS");

    *out = c->cls;
    if (opt && opt->force_class >= 0)
        *out = (enum esp_vk_class)opt->force_class;
    else if (env && strcmp(env, "plain") == 0)
        *out = ESP_VK_PLAIN;
    else if (env && strcmp(env, "texel") == 0)
        *out = ESP_VK_TEXEL;
    else if (env && strcmp(env, "direct") == 0)
        *out = ESP_VK_DIRECT;
    else if (env && strcmp(env, "gpu") == 0)
        *out = ESP_VK_GPU;
    else if (env && *env)
        return esp_fail(err, ESP_E_ARG, "ESPALIER_KERNELS=%s: plain, texel, direct or gpu", env);
    if (!c->can[*out])
        return esp_fail(err, ESP_E_DEVICE, "this device cannot run the %s kernels", esp_vk_class_name(*out));
    return ESP_OK;
}

static void report_fill(struct esp_vk *vk, const struct esp_vk_candidate *c, const struct esp_vk_options *opt)
{
    struct esp_vk_report *r = &vk->report;

    snprintf(r->name, sizeof r->name, "%s", c->props.deviceName);
    snprintf(r->driver, sizeof r->driver, "%s", c->driver);
    snprintf(r->variant, sizeof r->variant, "%s", esp_vk_class_name(vk->cls));
    r->type = (uint32_t)c->props.deviceType;
    r->memory_bytes = c->memory_bytes;
    if (opt && opt->memory_limit_bytes && opt->memory_limit_bytes < r->memory_bytes)
        r->memory_bytes = opt->memory_limit_bytes;
    r->max_alloc_bytes = vk->max_alloc_bytes;
}

esp_status esp_vk_open(struct esp_vk **out, const char *device, const struct esp_vk_options *opt,
                       const struct esp_log *log, struct esp_err *err)
{
    struct esp_vk_candidate *cands = calloc(ESP_VK_DEVICES, sizeof *cands);
    struct esp_vk *vk = calloc(1, sizeof *vk);
    const struct esp_vk_candidate *c = NULL;
    const char *env = getenv("ESPALIER_VALIDATE"), *staging = getenv("ESPALIER_STAGING"),
               *submit = getenv("ESPALIER_SUBMIT_MS");
    bool validate = (opt && opt->validate) || (env && *env && strcmp(env, "0") != 0);
    struct esp_err why = {0};
    uint32_t n = 0;
    esp_status st;

    *out = NULL;
    if (!cands || !vk) {
        st = esp_fail(err, ESP_E_NOMEM, "Vulkan device");
        goto done;
    }
    vk->log = log;
    if ((st = esp_vk_instance_create(&vk->instance, &vk->messenger, validate, vk, err)))
        goto done;
    if ((st = esp_vk_probe_all(vk->instance, cands, &n, err)))
        goto done;
    if ((st = esp_vk_choose(&c, cands, n, device, &why))) {
        esp_fail(err, st, "%s", why.text);
        goto done;
    }
    vk->phys = c->phys;
    vk->family = c->family;
    vk->props = c->props;
    vk->mem_props = c->mem;
    vk->subgroup_size = c->subgroup_size;
    vk->uma = c->uma && !(staging && *staging && strcmp(staging, "0") != 0);
    if ((st = class_choose(&vk->cls, c, opt, err)))
        goto done;
    vk->host_align = vk->uma ? c->host_align : 0;
    memcpy(vk->can, c->can, sizeof vk->can);
    vk->wave = c->wave;
    vk->max_lanes = c->max_lanes;
    if (vk->cls == ESP_VK_GPU) {
        vk->n_coop = c->n_coop;
        vk->coop_wave = c->coop_wave;
        memcpy(vk->coop, c->coop, sizeof vk->coop);
        esp_tune_default(vk);
    }
    /* nobody watches over a CPU driver */
    vk->submit_s = c->props.deviceType == VK_PHYSICAL_DEVICE_TYPE_CPU ? 0 : SUBMIT_MS / 1000;
    if (submit && strtod(submit, NULL) > 0)
        vk->submit_s = strtod(submit, NULL) / 1000;
    vk->profile = opt && opt->profile && c->props.limits.timestampComputeAndGraphics;
    vk->max_alloc_bytes = c->max_alloc_bytes;
    if (vk->max_alloc_bytes > (uint64_t)INT32_MAX * 16) /* SPIR-V's indices, here of texels, are signed */
        vk->max_alloc_bytes = (uint64_t)INT32_MAX * 16;
    if (esp_vk_has_texels(vk->cls)) { /* all must be reachable through one view, in signed byte offsets */
        uint64_t reach = (uint64_t)c->props.limits.maxTexelBufferElements * 16;
        if (reach > INT32_MAX)
            reach = INT32_MAX;
        if (vk->max_alloc_bytes > reach)
            vk->max_alloc_bytes = reach;
    }
    vk->max_alloc_bytes &= ~(uint64_t)0xffff;
    if ((st = device_create(vk, c, err)))
        goto done;
    report_fill(vk, c, opt);
    if ((st = esp_pipes_create(&vk->pipes, vk, opt ? opt->cache_dir : NULL, err)))
        goto done;
    (void)esp_tune_recall(vk);
    *out = vk;
    vk = NULL;
done:
    if (st && c)
        esp_err_prefix(err, "%s: ", c->props.deviceName);
    esp_vk_close(&vk);
    free(cands);
    return st;
}

void esp_vk_close(struct esp_vk **vkp)
{
    struct esp_vk *vk = *vkp;

    if (!vk)
        return;
    if (vk->dev) {
        vkDeviceWaitIdle(vk->dev);
        esp_pipes_destroy(&vk->pipes);
        vkDestroySemaphore(vk->dev, vk->timeline, NULL);
        vkDestroyCommandPool(vk->dev, vk->pool, NULL);
        vkDestroyDevice(vk->dev, NULL);
    }
    esp_vk_instance_destroy(vk->instance, vk->messenger);
    free(vk);
    *vkp = NULL;
}

esp_status esp_vk_set_profile(struct esp_vk *vk, bool profile, struct esp_err *err)
{
    if (profile && !vk->props.limits.timestampComputeAndGraphics)
        return esp_fail(err, ESP_E_UNSUPPORTED, "%s has no timestamps: it cannot be profiled",
                        vk->report.name);
    vk->profile = profile;
    return ESP_OK;
}

const struct esp_vk_report *esp_vk_report(const struct esp_vk *vk)
{
    return &vk->report;
}
