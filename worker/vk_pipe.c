#include "worker/vk_pipe.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_PIPES       512
#define MAX_CACHE_BYTES (64u << 20)

struct pipe {
    const struct esp_kernel_code *code;
    uint32_t n_spec, spec[ESP_SPEC_MAX];
    VkPipeline pipeline;
};

struct esp_pipes {
    struct esp_vk *vk;
    VkDescriptorSetLayout set_layout;
    VkPipelineLayout layout;
    VkPipelineCache cache;
    bool dirty;
    char path[512]; /* "" when nothing is kept on disk */
    uint32_t n;
    struct pipe pipe[MAX_PIPES];
};

static bool make_dir(char *path)
{
    for (char *p = path + 1; *p; p++) {
        if (*p != '/')
            continue;
        *p = '\0';
        if (mkdir(path, 0700) && errno != EEXIST) {
            *p = '/';
            return false;
        }
        *p = '/';
    }
    return mkdir(path, 0700) == 0 || errno == EEXIST;
}

/* One file a device and driver version: the cache's own UUID changes with both. */
static void cache_path(struct esp_pipes *ps, const char *dir)
{
    const char *xdg = getenv("XDG_CACHE_HOME");
    const char *home = getenv("HOME");
    char base[400];
    int n;

    if (dir)
        n = snprintf(base, sizeof base, "%s", dir);
    else if (xdg && *xdg)
        n = snprintf(base, sizeof base, "%s/espalier", xdg);
    else
        n = snprintf(base, sizeof base, "%s/.cache/espalier", home ? home : "");
    if (n <= 0 || (size_t)n >= sizeof base || (dir && !*dir) || base[0] != '/' || !make_dir(base))
        return;
    n = snprintf(ps->path, sizeof ps->path, "%s/pipelines-", base);
    for (size_t i = 0; i < VK_UUID_SIZE; i++)
        n += snprintf(ps->path + n, sizeof ps->path - (size_t)n, "%02x", ps->vk->props.pipelineCacheUUID[i]);
    snprintf(ps->path + n, sizeof ps->path - (size_t)n, ".bin");
}

/* NULL when there is nothing usable. Drivers trust what follows the header, so only a file of our own user
 * will do. */
static void *cache_read(const struct esp_pipes *ps, size_t *n_bytes)
{
    const VkPhysicalDeviceProperties *props = &ps->vk->props;
    VkPipelineCacheHeaderVersionOne head;
    struct stat sb;
    void *data = NULL;
    FILE *f = ps->path[0] ? fopen(ps->path, "rb") : NULL;

    if (!f)
        return NULL;
    if (fstat(fileno(f), &sb) == 0 && S_ISREG(sb.st_mode) && sb.st_uid == geteuid() && !(sb.st_mode & 022) &&
        sb.st_size >= (off_t)sizeof head && sb.st_size <= (off_t)MAX_CACHE_BYTES)
        data = malloc((size_t)sb.st_size);
    if (data && fread(data, 1, (size_t)sb.st_size, f) == (size_t)sb.st_size) {
        memcpy(&head, data, sizeof head);
        *n_bytes = (size_t)sb.st_size;
        if (head.headerVersion == VK_PIPELINE_CACHE_HEADER_VERSION_ONE && head.vendorID == props->vendorID &&
            head.deviceID == props->deviceID &&
            memcmp(head.pipelineCacheUUID, props->pipelineCacheUUID, VK_UUID_SIZE) == 0) {
            fclose(f);
            return data;
        }
    }
    free(data);
    fclose(f);
    return NULL;
}

void esp_pipes_save(struct esp_pipes *ps)
{
    char tmp[560];
    size_t n = 0;
    void *data = NULL;
    FILE *f = NULL;
    bool ok = false;

    if (!ps->path[0] || !ps->dirty || !ps->cache)
        return;
    ps->dirty = false;
    if (vkGetPipelineCacheData(ps->vk->dev, ps->cache, &n, NULL) || n == 0 || n > MAX_CACHE_BYTES)
        return;
    snprintf(tmp, sizeof tmp, "%s.%ld", ps->path, (long)getpid());
    data = malloc(n);
    if (data && vkGetPipelineCacheData(ps->vk->dev, ps->cache, &n, data) == VK_SUCCESS)
        f = fopen(tmp, "wb");
    if (f) {
        ok = fwrite(data, 1, n, f) == n;
        ok = fclose(f) == 0 && ok;
        if (!ok ||
            rename(tmp, ps->path)) /* workers of one machine may write at once: the last whole file wins */
            unlink(tmp);
    }
    free(data);
}

esp_status esp_pipes_create(struct esp_pipes **out, struct esp_vk *vk, const char *cache_dir,
                            struct esp_err *err)
{
    VkDescriptorSetLayoutBinding bind[3];
    VkDescriptorSetLayoutCreateInfo set = {
        .sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_LAYOUT_CREATE_INFO, .bindingCount = 3, .pBindings = bind};
    VkPushConstantRange push = {.stageFlags = VK_SHADER_STAGE_COMPUTE_BIT, .size = ESP_PUSH_MAX};
    VkPipelineLayoutCreateInfo layout = {.sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO,
                                         .pushConstantRangeCount = 1,
                                         .pPushConstantRanges = &push};
    VkPipelineCacheCreateInfo cache = {.sType = VK_STRUCTURE_TYPE_PIPELINE_CACHE_CREATE_INFO};
    struct esp_pipes *ps = calloc(1, sizeof *ps);
    void *data = NULL;
    esp_status st = ESP_OK;

    *out = NULL;
    if (!ps)
        return esp_fail(err, ESP_E_NOMEM, "pipelines");
    ps->vk = vk;
    if (esp_vk_has_texels(vk->cls)) {
        for (uint32_t i = 0; i < 3; i++)
            bind[i] =
                (VkDescriptorSetLayoutBinding){.binding = i,
                                               .descriptorType = VK_DESCRIPTOR_TYPE_STORAGE_TEXEL_BUFFER,
                                               .descriptorCount = 1,
                                               .stageFlags = VK_SHADER_STAGE_COMPUTE_BIT};
        st = esp_vk_check(vkCreateDescriptorSetLayout(vk->dev, &set, NULL, &ps->set_layout),
                          "vkCreateDescriptorSetLayout", err);
        if (st)
            goto done;
        layout.setLayoutCount = 1;
        layout.pSetLayouts = &ps->set_layout;
    }
    st = esp_vk_check(vkCreatePipelineLayout(vk->dev, &layout, NULL, &ps->layout), "vkCreatePipelineLayout",
                      err);
    if (st)
        goto done;
    cache_path(ps, cache_dir);
    data = cache_read(ps, &cache.initialDataSize);
    cache.pInitialData = data;
    if (data && vkCreatePipelineCache(vk->dev, &cache, NULL, &ps->cache) == VK_SUCCESS)
        goto done;
    cache.initialDataSize = 0; /* there is none, or the driver does not like it */
    cache.pInitialData = NULL;
    st = esp_vk_check(vkCreatePipelineCache(vk->dev, &cache, NULL, &ps->cache), "vkCreatePipelineCache", err);
done:
    free(data);
    if (st)
        esp_pipes_destroy(&ps);
    *out = ps;
    return st;
}

void esp_pipes_destroy(struct esp_pipes **psp)
{
    struct esp_pipes *ps = *psp;

    if (!ps)
        return;
    esp_pipes_save(ps);
    for (uint32_t i = 0; i < ps->n; i++)
        vkDestroyPipeline(ps->vk->dev, ps->pipe[i].pipeline, NULL);
    vkDestroyPipelineCache(ps->vk->dev, ps->cache, NULL);
    vkDestroyPipelineLayout(ps->vk->dev, ps->layout, NULL);
    vkDestroyDescriptorSetLayout(ps->vk->dev, ps->set_layout, NULL);
    free(ps);
    *psp = NULL;
}

const char *esp_pipes_path(const struct esp_pipes *ps)
{
    return ps->path;
}

uint32_t esp_pipes_count(const struct esp_pipes *ps)
{
    return ps->n;
}

esp_status esp_pipe_get(VkPipeline *out, struct esp_vk *vk, const struct esp_kernel_code *code,
                        const uint32_t *spec, uint32_t n_spec, struct esp_err *err)
{
    struct esp_pipes *ps = vk->pipes;
    VkSpecializationMapEntry entry[ESP_SPEC_MAX];
    VkSpecializationInfo special = {
        .mapEntryCount = n_spec, .pMapEntries = entry, .dataSize = n_spec * sizeof *spec, .pData = spec};
    VkShaderModuleCreateInfo module = {.sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO};
    VkComputePipelineCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO,
        .stage = {.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO,
                  .stage = VK_SHADER_STAGE_COMPUTE_BIT,
                  .pName = "main",
                  .pSpecializationInfo = &special},
        .layout = ps->layout};
    const VkPipelineShaderStageRequiredSubgroupSizeCreateInfoEXT wave = {
        .sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_REQUIRED_SUBGROUP_SIZE_CREATE_INFO_EXT,
        .requiredSubgroupSize = code && code->kernel == ESP_K_MATMUL_COOP ? vk->coop_wave : vk->wave};
    struct pipe *p;
    esp_status st;

    if (!code || n_spec > ESP_SPEC_MAX)
        return esp_fail(err, ESP_E_UNSUPPORTED, "no kernel for this operation, device class and weight type");
    for (uint32_t i = 0; i < ps->n; i++) {
        p = &ps->pipe[i];
        if (p->code == code && p->n_spec == n_spec &&
            (!n_spec || memcmp(p->spec, spec, n_spec * sizeof *spec) == 0)) {
            *out = p->pipeline;
            return ESP_OK;
        }
    }
    if (ps->n == MAX_PIPES)
        return esp_fail(err, ESP_E_INTERNAL, "more than %d pipelines", MAX_PIPES);
    for (uint32_t i = 0; i < n_spec; i++)
        entry[i] = (VkSpecializationMapEntry){.constantID = i, .offset = i * 4, .size = 4};
    if (code->cls == ESP_VK_GPU) {
        info.stage.pNext = &wave;
        info.stage.flags = VK_PIPELINE_SHADER_STAGE_CREATE_REQUIRE_FULL_SUBGROUPS_BIT_EXT;
    }
    module.codeSize = code->n_bytes;
    module.pCode = code->spirv;
    st = esp_vk_check(vkCreateShaderModule(vk->dev, &module, NULL, &info.stage.module),
                      "vkCreateShaderModule", err);
    if (!st) {
        p = &ps->pipe[ps->n];
        st = esp_vk_check(vkCreateComputePipelines(vk->dev, ps->cache, 1, &info, NULL, &p->pipeline),
                          "vkCreateComputePipelines", err);
        vkDestroyShaderModule(vk->dev, info.stage.module, NULL);
    }
    if (st) {
        esp_err_prefix(err, "kernel %s: ", code->name);
        return st;
    }
    p->code = code;
    p->n_spec = n_spec;
    if (n_spec)
        memcpy(p->spec, spec, n_spec * sizeof *spec);
    ps->n++;
    ps->dirty = true;
    *out = p->pipeline;
    return ESP_OK;
}

VkPipelineLayout esp_pipe_layout(const struct esp_vk *vk)
{
    return vk->pipes->layout;
}

VkDescriptorSetLayout esp_pipe_set_layout(const struct esp_vk *vk)
{
    return vk->pipes->set_layout;
}
