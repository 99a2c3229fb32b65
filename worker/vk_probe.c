#include "worker/vk_probe.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "worker/vk_compat.h"

#ifdef ESP_COOP
#define COOP_BUILT true
#else
#define COOP_BUILT false /* the shader compiler did not know them */
#endif

static bool has_name(const char *want, uint32_t n, const VkExtensionProperties *props)
{
    for (uint32_t i = 0; i < n; i++)
        if (strcmp(props[i].extensionName, want) == 0)
            return true;
    return false;
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

static void note_lack(struct esp_vk_candidate *c, const char *what)
{
    size_t n = strlen(c->lacks);
    snprintf(c->lacks + n, sizeof c->lacks - n, "%s%s", n ? ", " : "", what);
}

static void probe_memory(struct esp_vk_candidate *c)
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
static bool texel_class(const struct esp_vk_candidate *c)
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

/* Of lavapipe, Mesa's major version; 0: another driver. Nothing that a driver says of itself tells how it compiles a load: what
 * was measured is that 26 makes the direct class's loads fast, and that 22.3 computes its kernels wrongly. */
static unsigned lavapipe_version(const VkPhysicalDeviceDriverProperties *drv)
{
    unsigned major;

    return drv->driverID == VK_DRIVER_ID_MESA_LLVMPIPE && sscanf(drv->driverInfo, "Mesa %u.", &major) == 1
               ? major
               : 0;
}

static void probe_host_memory(struct esp_vk_candidate *c)
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
static void probe_waves(struct esp_vk_candidate *c)
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
static void coop_add(struct esp_vk_candidate *c, const struct esp_vk_coop *add)
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
static void probe_coop(struct esp_vk_candidate *c, VkInstance instance)
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

static void probe(struct esp_vk_candidate *c, VkInstance instance, VkPhysicalDevice phys)
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
    c->can[ESP_VK_DIRECT] = c->can[ESP_VK_TEXEL] && (c->subgroup_ops & VK_SUBGROUP_FEATURE_SHUFFLE_BIT) &&
                            lavapipe_version(&drv) >= 25;
    c->cls = c->can[ESP_VK_DIRECT] && lavapipe_version(&drv) >= 26                      ? ESP_VK_DIRECT
             : c->can[ESP_VK_TEXEL]                                                     ? ESP_VK_TEXEL
             : c->can[ESP_VK_GPU] && c->props.deviceType != VK_PHYSICAL_DEVICE_TYPE_CPU ? ESP_VK_GPU
                                                                                        : ESP_VK_PLAIN;
}

esp_status esp_vk_probe_all(VkInstance instance, struct esp_vk_candidate *cands, uint32_t *n_out,
                            struct esp_err *err)
{
    VkPhysicalDevice phys[ESP_VK_DEVICES];
    uint32_t n = ESP_VK_DEVICES;
    VkResult r = vkEnumeratePhysicalDevices(instance, &n, phys);

    if (r != VK_SUCCESS && r != VK_INCOMPLETE)
        return esp_vk_check(r, "vkEnumeratePhysicalDevices", err);
    for (uint32_t i = 0; i < n; i++)
        probe(&cands[i], instance, phys[i]);
    *n_out = n;
    return ESP_OK;
}

int esp_vk_rank(const struct esp_vk_candidate *c)
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

static bool contains_nocase(const char *hay, const char *needle)
{
    size_t n = strlen(needle);
    for (; *hay; hay++)
        if (strncasecmp(hay, needle, n) == 0)
            return true;
    return false;
}

esp_status esp_vk_choose(const struct esp_vk_candidate **out, const struct esp_vk_candidate *cands,
                         uint32_t n, const char *want, struct esp_err *err)
{
    const struct esp_vk_candidate *best = NULL;
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
        const struct esp_vk_candidate *c = &cands[i];
        if (by_index ? i != index : (want && *want && !contains_nocase(c->props.deviceName, want)))
            continue;
        if (c->lacks[0] && by_index)
            return esp_fail(err, ESP_E_DEVICE, "device %u, %s: lacks %s", i, c->props.deviceName, c->lacks);
        if (!c->lacks[0] && (!best || esp_vk_rank(c) > esp_vk_rank(best)))
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
