#include "worker/vk_device.h"

#include <ctype.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "worker/tune.h"
#include "worker/vk_compat.h"
#include "worker/vk_pipe.h"

#define MAX_DEVICES 64
#define SUBMIT_MS   400.0 /* desktop drivers reset a device after 2 s; measured rates are not kept under load */

#ifdef ESP_COOP
#define COOP_BUILT true
#else
#define COOP_BUILT false /* the shader compiler did not know them */
#endif

/* What one physical device is and whether it reaches the baseline. */
struct candidate {
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

static bool has_name(const char *want, uint32_t n, const VkExtensionProperties *props)
{
    for (uint32_t i = 0; i < n; i++)
        if (strcmp(props[i].extensionName, want) == 0)
            return true;
    return false;
}

static VkBool32 VKAPI_CALL on_validation(VkDebugUtilsMessageSeverityFlagBitsEXT severity,
                                         VkDebugUtilsMessageTypeFlagsEXT types,
                                         const VkDebugUtilsMessengerCallbackDataEXT *data, void *arg)
{
    struct esp_vk *vk = arg;
    const char *fatal = getenv("ESPALIER_VALIDATE");

    if (!(types & VK_DEBUG_UTILS_MESSAGE_TYPE_VALIDATION_BIT_EXT))
        return VK_FALSE; /* the loader's own remarks */
    if (data->pMessageIdName &&
        strcmp(data->pMessageIdName, "UNASSIGNED-CoreValidation-Shader-MaxComputeSharedMemorySize") == 0)
        return VK_FALSE; /* layers before 1.3.224 miscount arrays sized by specialization; stage.c checks the limit */
    vk->n_validation++;
    esp_log(vk->log, ESP_LOG_ERROR, "vulkan_validation %s", data->pMessage ? data->pMessage : "(no message)");
    if (fatal && strcmp(fatal, "fatal") == 0)
        abort(); /* asked for by a test run: a message must not pass unseen */
    return VK_FALSE;
}

static esp_status instance_create(VkInstance *out, VkDebugUtilsMessengerEXT *messenger, bool validate,
                                  struct esp_vk *vk, struct esp_err *err)
{
    static const VkValidationFeatureEnableEXT sync[] = {
        VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT};
    const char *layer = "VK_LAYER_KHRONOS_validation";
    const char *exts[2];
    uint32_t n_ext = 0;
    VkApplicationInfo app = {.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO,
                             .pApplicationName = "espalier",
                             .apiVersion = VK_API_VERSION_1_2};
    VkDebugUtilsMessengerCreateInfoEXT dbg = {
        .sType = VK_STRUCTURE_TYPE_DEBUG_UTILS_MESSENGER_CREATE_INFO_EXT,
        .messageSeverity =
            VK_DEBUG_UTILS_MESSAGE_SEVERITY_WARNING_BIT_EXT | VK_DEBUG_UTILS_MESSAGE_SEVERITY_ERROR_BIT_EXT,
        .messageType =
            VK_DEBUG_UTILS_MESSAGE_TYPE_VALIDATION_BIT_EXT | VK_DEBUG_UTILS_MESSAGE_TYPE_GENERAL_BIT_EXT,
        .pfnUserCallback = on_validation,
        .pUserData = vk};
    VkValidationFeaturesEXT features = {.sType = VK_STRUCTURE_TYPE_VALIDATION_FEATURES_EXT,
                                        .pNext = &dbg,
                                        .enabledValidationFeatureCount = 1,
                                        .pEnabledValidationFeatures = sync};
    VkInstanceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO,
                                 .pApplicationInfo = &app,
                                 .ppEnabledExtensionNames = exts};
    esp_status st;

    if (validate) {
        info.enabledLayerCount = 1;
        info.ppEnabledLayerNames = &layer;
        info.pNext = &features;
        exts[n_ext++] = VK_EXT_DEBUG_UTILS_EXTENSION_NAME;
        exts[n_ext++] = VK_EXT_VALIDATION_FEATURES_EXTENSION_NAME;
    }
    info.enabledExtensionCount = n_ext;
    st = esp_vk_check(vkCreateInstance(&info, NULL, out), "vkCreateInstance", err);
    if (st) {
        *out = VK_NULL_HANDLE;
        esp_err_prefix(err, validate ? "with the validation layer (package vulkan-validationlayers): "
                                     : "is a Vulkan driver installed (package mesa-vulkan-drivers)? ");
        return st;
    }
    if (validate) {
        PFN_vkCreateDebugUtilsMessengerEXT create =
            (PFN_vkCreateDebugUtilsMessengerEXT)vkGetInstanceProcAddr(*out, "vkCreateDebugUtilsMessengerEXT");
        if (create)
            st = esp_vk_check(create(*out, &dbg, NULL, messenger), "vkCreateDebugUtilsMessengerEXT", err);
    }
    return st;
}

static void instance_destroy(VkInstance instance, VkDebugUtilsMessengerEXT messenger)
{
    if (messenger) {
        PFN_vkDestroyDebugUtilsMessengerEXT destroy =
            (PFN_vkDestroyDebugUtilsMessengerEXT)vkGetInstanceProcAddr(instance,
                                                                       "vkDestroyDebugUtilsMessengerEXT");
        if (destroy)
            destroy(instance, messenger, NULL);
    }
    if (instance)
        vkDestroyInstance(instance, NULL);
}

/* What the machine has to give right now; UINT64_MAX when it does not tell. */
static uint64_t host_available_bytes(void)
{
    FILE *f = fopen("/proc/meminfo", "r");
    char line[256];
    unsigned long long kib = 0;

    if (!f)
        return UINT64_MAX;
    while (fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1)
            break;
    fclose(f);
    return kib ? (uint64_t)kib * 1024 : UINT64_MAX;
}

static void note_lack(struct candidate *c, const char *what)
{
    size_t n = strlen(c->lacks);
    snprintf(c->lacks + n, sizeof c->lacks - n, "%s%s", n ? ", " : "", what);
}

static void probe_memory(struct candidate *c)
{
    VkPhysicalDeviceMemoryBudgetPropertiesEXT budget = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT};
    VkPhysicalDeviceMemoryProperties2 mem = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2,
                                             .pNext = c->has_budget ? &budget : NULL};
    uint64_t best = 0;

    vkGetPhysicalDeviceMemoryProperties2(c->phys, &mem);
    c->mem = mem.memoryProperties;
    for (uint32_t i = 0; i < c->mem.memoryHeapCount; i++) {
        uint64_t n = c->mem.memoryHeaps[i].size;
        if (!(c->mem.memoryHeaps[i].flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT))
            continue;
        if (c->has_budget && budget.heapBudget[i] > 0) { /* usage is this process's own */
            n = budget.heapBudget[i] < n ? budget.heapBudget[i] : n;
            n = n > budget.heapUsage[i] ? n - budget.heapUsage[i] : 0;
        }
        if (n > best)
            best = n;
    }
    if (c->props.deviceType == VK_PHYSICAL_DEVICE_TYPE_CPU) {
        /* its memory is the machine's, whatever heap it claims (Mesa 22.3's lavapipe: 2 GiB); leave some to others */
        uint64_t host = host_available_bytes();
        best = host == UINT64_MAX ? best : host / 10 * 9;
    }
    c->memory_bytes = best;
    c->uma = c->props.deviceType == VK_PHYSICAL_DEVICE_TYPE_CPU ||
             c->props.deviceType == VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU;
}

/* Texel kernels want vector-wide storage texel buffers, subgroups of 8 and constant broadcasts. */
static bool texel_class(const struct candidate *c)
{
    const VkSubgroupFeatureFlags ops =
        VK_SUBGROUP_FEATURE_BASIC_BIT | VK_SUBGROUP_FEATURE_BALLOT_BIT | VK_SUBGROUP_FEATURE_ARITHMETIC_BIT;
    VkFormatProperties u, f;

    if (c->props.deviceType != VK_PHYSICAL_DEVICE_TYPE_CPU || c->subgroup_size != 8)
        return false;
    if ((c->subgroup_ops & ops) != ops)
        return false;
    if (c->props.limits.maxTexelBufferElements < 1u << 27)
        return false;
    vkGetPhysicalDeviceFormatProperties(c->phys, VK_FORMAT_R32G32B32A32_UINT, &u);
    vkGetPhysicalDeviceFormatProperties(c->phys, VK_FORMAT_R32G32B32A32_SFLOAT, &f);
    return (u.bufferFeatures & VK_FORMAT_FEATURE_STORAGE_TEXEL_BUFFER_BIT) &&
           (f.bufferFeatures & VK_FORMAT_FEATURE_STORAGE_TEXEL_BUFFER_BIT);
}

/* Nothing that a driver says of itself tells how it compiles a load; what was measured is which of its versions do it. */
static bool loads_directly(const VkPhysicalDeviceDriverProperties *drv)
{
    unsigned major;

    return drv->driverID == VK_DRIVER_ID_MESA_LLVMPIPE && sscanf(drv->driverInfo, "Mesa %u.", &major) == 1 &&
           major >= 26;
}

static void probe_host_memory(struct candidate *c)
{
    VkPhysicalDeviceExternalMemoryHostPropertiesEXT host = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_EXTERNAL_MEMORY_HOST_PROPERTIES_EXT};
    VkPhysicalDeviceProperties2 p2 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2,
                                      .pNext = &host};

    vkGetPhysicalDeviceProperties2(c->phys, &p2);
    c->host_align = host.minImportedHostPointerAlignment;
}

/* Kernels of the gpu class exchange values within subgroups that are full and all of one size: 32, or what is nearest. A
 * driver that may pick another size from kernel to kernel, or leave lanes idle, must let itself be told. */
static void probe_waves(struct candidate *c)
{
    VkPhysicalDeviceSubgroupSizeControlPropertiesEXT size = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_PROPERTIES_EXT};
    VkPhysicalDeviceProperties2 p2 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2,
                                      .pNext = &size};
    VkPhysicalDeviceSubgroupSizeControlFeaturesEXT control = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_FEATURES_EXT};
    VkPhysicalDeviceFeatures2 f2 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2, .pNext = &control};
    const VkSubgroupFeatureFlags ops = VK_SUBGROUP_FEATURE_BASIC_BIT | VK_SUBGROUP_FEATURE_SHUFFLE_BIT;
    uint64_t lanes;

    vkGetPhysicalDeviceProperties2(c->phys, &p2);
    vkGetPhysicalDeviceFeatures2(c->phys, &f2);
    c->has_size_control = control.subgroupSizeControl && control.computeFullSubgroups;
    if (!c->has_size_control || !(size.requiredSubgroupSizeStages & VK_SHADER_STAGE_COMPUTE_BIT) ||
        (c->subgroup_ops & ops) != ops)
        return;
    c->wave = size.maxSubgroupSize < 32   ? size.maxSubgroupSize
              : size.minSubgroupSize > 32 ? size.minSubgroupSize
                                          : 32;
    lanes = (uint64_t)c->wave * size.maxComputeWorkgroupSubgroups;
    c->max_lanes = c->props.limits.maxComputeWorkGroupInvocations;
    if (c->max_lanes > c->props.limits.maxComputeWorkGroupSize[0])
        c->max_lanes = c->props.limits.maxComputeWorkGroupSize[0];
    if (lanes < c->max_lanes)
        c->max_lanes = (uint32_t)lanes;
    c->can[ESP_VK_GPU] = c->wave >= 4 && c->wave <= 128 && c->max_lanes >= 128;
}

static uint32_t coop_volume(const struct esp_vk_coop *c)
{
    return c->m * c->n * c->k;
}

/* Whether matmul_coop.comp can be made of such products: of float16, summed in float32, by a subgroup. */
static bool coop_serves(const VkCooperativeMatrixPropertiesKHR *p)
{
    return p->AType == VK_COMPONENT_TYPE_FLOAT16_KHR && p->BType == VK_COMPONENT_TYPE_FLOAT16_KHR &&
           p->CType == VK_COMPONENT_TYPE_FLOAT32_KHR && p->ResultType == VK_COMPONENT_TYPE_FLOAT32_KHR &&
           !p->saturatingAccumulation && p->scope == VK_SCOPE_SUBGROUP_KHR && p->MSize >= 8 &&
           p->NSize >= 8 && p->KSize >= 8 && 32 % p->MSize == 0 && 32 % p->NSize == 0 && 32 % p->KSize == 0;
}

/* Among the others by size, the largest first: less of a unit's time goes into bringing operands along. Those that there is
 * no room for are dropped. */
static void coop_add(struct candidate *c, const struct esp_vk_coop *add)
{
    uint32_t at = c->n_coop;

    for (uint32_t i = 0; i < c->n_coop; i++)
        if (memcmp(&c->coop[i], add, sizeof *add) == 0)
            return;
    while (at > 0 && coop_volume(&c->coop[at - 1]) < coop_volume(add))
        at--;
    if (at == ESP_VK_COOPS)
        return;
    c->n_coop += c->n_coop < ESP_VK_COOPS;
    memmove(&c->coop[at + 1], &c->coop[at], (c->n_coop - at - 1) * sizeof *add);
    c->coop[at] = *add;
}

/* Their subgroups are the smallest that there are: so NVIDIA's (32), AMD's (32 of 32 to 64) and Intel's (8 or 16 of up to 32)
 * units are made. */
static void probe_coop(struct candidate *c, VkInstance instance)
{
    VkCooperativeMatrixPropertiesKHR props[128];
    VkPhysicalDeviceCooperativeMatrixFeaturesKHR coop = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR};
    VkPhysicalDeviceVulkan12Features f12 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES,
                                            .pNext = &coop};
    VkPhysicalDeviceFeatures2 f2 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2, .pNext = &f12};
    VkPhysicalDeviceCooperativeMatrixPropertiesKHR stages = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_PROPERTIES_KHR};
    VkPhysicalDeviceSubgroupSizeControlPropertiesEXT size = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_PROPERTIES_EXT, .pNext = &stages};
    VkPhysicalDeviceProperties2 p2 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2,
                                      .pNext = &size};
    PFN_vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR get =
        (PFN_vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR)vkGetInstanceProcAddr(
            instance, "vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR");
    uint32_t n = 128;
    VkResult r;

    vkGetPhysicalDeviceFeatures2(c->phys, &f2);
    vkGetPhysicalDeviceProperties2(c->phys, &p2);
    if (!COOP_BUILT || !get || !coop.cooperativeMatrix || !f12.shaderFloat16 || !f12.vulkanMemoryModel ||
        !f12.vulkanMemoryModelDeviceScope || size.minSubgroupSize < 4 ||
        4 * size.minSubgroupSize > c->max_lanes ||
        !(stages.cooperativeMatrixSupportedStages & VK_SHADER_STAGE_COMPUTE_BIT))
        return;
    for (uint32_t i = 0; i < n; i++)
        props[i] =
            (VkCooperativeMatrixPropertiesKHR){.sType = VK_STRUCTURE_TYPE_COOPERATIVE_MATRIX_PROPERTIES_KHR};
    r = get(c->phys, &n, props);
    c->coop_wave = size.minSubgroupSize;
    for (uint32_t i = 0; (r == VK_SUCCESS || r == VK_INCOMPLETE) && i < n; i++)
        if (coop_serves(&props[i]))
            coop_add(c, &(struct esp_vk_coop){props[i].MSize, props[i].NSize, props[i].KSize});
}

static void probe(struct candidate *c, VkInstance instance, VkPhysicalDevice phys)
{
    VkPhysicalDeviceVulkan12Features f12 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES};
    VkPhysicalDeviceFeatures2 f2 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2, .pNext = &f12};
    VkPhysicalDeviceDriverProperties drv = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_DRIVER_PROPERTIES};
    VkPhysicalDeviceSubgroupProperties sub = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_PROPERTIES,
                                              .pNext = &drv};
    VkPhysicalDeviceMaintenance3Properties m3 = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_3_PROPERTIES, .pNext = &sub};
    VkPhysicalDeviceProperties2 p2 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2, .pNext = &m3};
    VkQueueFamilyProperties fam[16];
    VkExtensionProperties ext[512];
    uint32_t n = 16;

    memset(c, 0, sizeof *c);
    c->phys = phys;
    vkGetPhysicalDeviceProperties(phys, &c->props);
    if (c->props.apiVersion < VK_API_VERSION_1_2) {
        snprintf(c->lacks, sizeof c->lacks, "Vulkan 1.2 (it has %u.%u)",
                 VK_API_VERSION_MAJOR(c->props.apiVersion), VK_API_VERSION_MINOR(c->props.apiVersion));
        return; /* the structures below are 1.2's */
    }
    vkGetPhysicalDeviceProperties2(phys, &p2);
    vkGetPhysicalDeviceFeatures2(phys, &f2);
    snprintf(c->driver, sizeof c->driver, "%.120s %.120s", drv.driverName, drv.driverInfo);
    c->subgroup_size = sub.subgroupSize;
    c->subgroup_ops = sub.supportedStages & VK_SHADER_STAGE_COMPUTE_BIT ? sub.supportedOperations : 0;
    c->max_alloc_bytes = m3.maxMemoryAllocationSize;
    if (!f12.timelineSemaphore)
        note_lack(c, "timelineSemaphore");
    if (!f12.bufferDeviceAddress)
        note_lack(c, "bufferDeviceAddress");
    vkGetPhysicalDeviceQueueFamilyProperties(phys, &n, fam);
    c->family = UINT32_MAX;
    for (uint32_t i = 0; i < n && c->family == UINT32_MAX; i++)
        if (fam[i].queueFlags & VK_QUEUE_COMPUTE_BIT)
            c->family = i;
    if (c->family == UINT32_MAX)
        note_lack(c, "a compute queue");
    n = 512;
    if (vkEnumerateDeviceExtensionProperties(phys, NULL, &n, ext) < 0)
        n = 0;
    c->has_budget = has_name(VK_EXT_MEMORY_BUDGET_EXTENSION_NAME, n, ext);
    probe_memory(c);
    if (c->props.deviceType == VK_PHYSICAL_DEVICE_TYPE_CPU &&
        has_name(VK_EXT_EXTERNAL_MEMORY_HOST_EXTENSION_NAME, n, ext))
        probe_host_memory(c);
    if (has_name(VK_EXT_SUBGROUP_SIZE_CONTROL_EXTENSION_NAME, n, ext))
        probe_waves(c);
    if (c->can[ESP_VK_GPU] && has_name(VK_KHR_COOPERATIVE_MATRIX_EXTENSION_NAME, n, ext))
        probe_coop(c, instance);
    c->can[ESP_VK_PLAIN] = true;
    c->can[ESP_VK_TEXEL] = texel_class(c);
    c->can[ESP_VK_DIRECT] = c->can[ESP_VK_TEXEL] && (c->subgroup_ops & VK_SUBGROUP_FEATURE_SHUFFLE_BIT);
    c->cls = c->can[ESP_VK_DIRECT] && loads_directly(&drv)                              ? ESP_VK_DIRECT
             : c->can[ESP_VK_TEXEL]                                                     ? ESP_VK_TEXEL
             : c->can[ESP_VK_GPU] && c->props.deviceType != VK_PHYSICAL_DEVICE_TYPE_CPU ? ESP_VK_GPU
                                                                                        : ESP_VK_PLAIN;
}

static esp_status probe_all(VkInstance instance, struct candidate *cands, uint32_t *n_out,
                            struct esp_err *err)
{
    VkPhysicalDevice phys[MAX_DEVICES];
    uint32_t n = MAX_DEVICES;
    VkResult r = vkEnumeratePhysicalDevices(instance, &n, phys);

    if (r != VK_SUCCESS && r != VK_INCOMPLETE)
        return esp_vk_check(r, "vkEnumeratePhysicalDevices", err);
    for (uint32_t i = 0; i < n; i++)
        probe(&cands[i], instance, phys[i]);
    *n_out = n;
    return ESP_OK;
}

static int rank(const struct candidate *c)
{
    switch (c->props.deviceType) {
    case VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU:
        return 4;
    case VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU:
        return 3;
    case VK_PHYSICAL_DEVICE_TYPE_VIRTUAL_GPU:
        return 2;
    case VK_PHYSICAL_DEVICE_TYPE_OTHER:
        return 1;
    default:
        return 0; /* a CPU pretending: the last resort */
    }
}

static const char *type_name(uint32_t type)
{
    static const char *const names[] = {"other", "integrated", "discrete", "virtual", "cpu"};
    return type < 5 ? names[type] : "other";
}

static bool contains_nocase(const char *hay, const char *needle)
{
    size_t n = strlen(needle);
    for (; *hay; hay++)
        if (strncasecmp(hay, needle, n) == 0)
            return true;
    return false;
}

static esp_status choose(const struct candidate **out, const struct candidate *cands, uint32_t n,
                         const char *want, struct esp_err *err)
{
    const struct candidate *best = NULL;
    char *end = NULL;
    unsigned long index = want && *want ? strtoul(want, &end, 10) : 0;
    bool by_index = want && *want && isdigit((unsigned char)*want) && *end == '\0';

    if (n == 0)
        return esp_fail(
            err, ESP_E_DEVICE,
            "no Vulkan device: install a driver (package mesa-vulkan-drivers has one for every CPU)");
    if (by_index && index >= n)
        return esp_fail(err, ESP_E_DEVICE, "--device %s: there are devices 0 to %u; see 'espalier devices'",
                        want, n - 1);
    for (uint32_t i = 0; i < n; i++) {
        const struct candidate *c = &cands[i];
        if (by_index ? i != index : (want && *want && !contains_nocase(c->props.deviceName, want)))
            continue;
        if (c->lacks[0] && by_index)
            return esp_fail(err, ESP_E_DEVICE, "device %u, %s: lacks %s", i, c->props.deviceName, c->lacks);
        if (!c->lacks[0] && (!best || rank(c) > rank(best)))
            best = c;
        else if (c->lacks[0] && !best)
            esp_fail(err, ESP_E_DEVICE, "device %u, %s: lacks %s", i, c->props.deviceName, c->lacks);
    }
    if (!best && want && *want && (!err || err->code == ESP_OK))
        return esp_fail(err, ESP_E_DEVICE, "--device %s: no device of that name; see 'espalier devices'",
                        want);
    if (!best)
        return err && err->code ? err->code : esp_fail(err, ESP_E_DEVICE, "no usable Vulkan device");
    *out = best;
    return ESP_OK;
}

static esp_status device_create(struct esp_vk *vk, const struct candidate *c, struct esp_err *err)
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
static esp_status class_choose(enum esp_vk_class *out, const struct candidate *c,
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

static void report_fill(struct esp_vk *vk, const struct candidate *c, const struct esp_vk_options *opt)
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
    struct candidate *cands = calloc(MAX_DEVICES, sizeof *cands);
    struct esp_vk *vk = calloc(1, sizeof *vk);
    const struct candidate *c = NULL;
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
    if ((st = instance_create(&vk->instance, &vk->messenger, validate, vk, err)))
        goto done;
    if ((st = probe_all(vk->instance, cands, &n, err)))
        goto done;
    if ((st = choose(&c, cands, n, device, &why))) {
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
    if (esp_vk_has_texels(
            vk->cls)) { /* everything must be reachable through one view, in signed byte offsets */
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
    instance_destroy(vk->instance, vk->messenger);
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

static json_t *candidate_json(uint32_t i, const struct candidate *c)
{
    return json_pack("{s:i s:s s:s s:s s:s s:I s:I s:i s:b s:s s:s}", "index", (int)i, "name",
                     c->props.deviceName, "type", type_name((uint32_t)c->props.deviceType), "driver",
                     c->driver, "vulkan",
                     c->props.apiVersion >= VK_API_VERSION_1_3   ? "1.3"
                     : c->props.apiVersion >= VK_API_VERSION_1_2 ? "1.2"
                                                                 : "older",
                     "memory_bytes", (json_int_t)c->memory_bytes, "max_alloc_bytes",
                     (json_int_t)c->max_alloc_bytes, "subgroup_size", (int)c->subgroup_size, "usable",
                     c->lacks[0] == '\0', "lacks", c->lacks, "kernels", esp_vk_class_name(c->cls));
}

static esp_status list_json(FILE *out, const struct candidate *cands, uint32_t n, struct esp_err *err)
{
    json_t *all = json_array();
    esp_status st = ESP_OK;

    for (uint32_t i = 0; all && i < n; i++)
        if (json_array_append_new(all, candidate_json(i, &cands[i])))
            st = ESP_E_NOMEM;
    if (!all || st || json_dumpf(all, out, JSON_INDENT(2)))
        st = esp_fail(err, ESP_E_NOMEM, "list of devices");
    else
        fputc('\n', out);
    json_decref(all);
    return st;
}

esp_status esp_vk_list(FILE *out, bool json, struct esp_err *err)
{
    struct candidate *cands = calloc(MAX_DEVICES, sizeof *cands);
    const struct candidate *chosen = NULL;
    struct esp_vk dummy = {0};
    VkDebugUtilsMessengerEXT none = VK_NULL_HANDLE;
    VkInstance instance = VK_NULL_HANDLE;
    static const char *const why[ESP_VK_N_CLASS] = {
        "buffer addresses, shared-memory tiles",
        "a CPU driver whose texel loads are vector loads, subgroups of 8",
        "a GPU whose subgroups are full and of one size",
        "a CPU driver whose texel loads are vector loads, and loads from one address too"};
    struct esp_err cause = {0};
    uint32_t n = 0;
    esp_status st;

    if (!cands)
        return esp_fail(err, ESP_E_NOMEM, "list of devices");
    st = instance_create(&instance, &none, false, &dummy, err);
    if (!st)
        st = probe_all(instance, cands, &n, err);
    if (!st && json) {
        st = list_json(out, cands, n, err);
    } else if (!st) {
        (void)choose(&chosen, cands, n, NULL, &cause);
        for (uint32_t i = 0; i < n; i++) {
            const struct candidate *c = &cands[i];
            fprintf(out, "%c %u  %s\n", c == chosen ? '*' : ' ', i, c->props.deviceName);
            fprintf(out, "      %s, %s, Vulkan %u.%u, %.1f GiB, largest buffer %.1f GiB, subgroups of %u\n",
                    type_name((uint32_t)c->props.deviceType), c->driver[0] ? c->driver : "driver unknown",
                    VK_API_VERSION_MAJOR(c->props.apiVersion), VK_API_VERSION_MINOR(c->props.apiVersion),
                    (double)c->memory_bytes / (1u << 30), (double)c->max_alloc_bytes / (1u << 30),
                    c->subgroup_size);
            if (c->lacks[0])
                fprintf(out, "      not usable: lacks %s\n", c->lacks);
            else
                fprintf(out, "      kernels: %s (%s)\n", esp_vk_class_name(c->cls), why[c->cls]);
        }
        if (n == 0)
            fprintf(
                out,
                "no Vulkan device: install a driver (package mesa-vulkan-drivers has one for every CPU)\n");
        else
            fprintf(out, "* is what a worker takes without --device%s\n",
                    chosen && rank(chosen) == 0 ? ": a software driver, the last resort" : "");
    }
    instance_destroy(instance, none);
    free(cands);
    return st;
}
