/* The list of devices for people and for programs. */
#include <jansson.h>
#include <stdlib.h>

#include "worker/vk_instance.h"
#include "worker/vk_probe.h"

static const char *type_name(uint32_t type)
{
    static const char *const names[] = {"other", "integrated", "discrete", "virtual", "cpu"};
    return type < 5 ? names[type] : "other";
}

static json_t *candidate_json(uint32_t i, const struct esp_vk_candidate *c)
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

static esp_status list_json(FILE *out, const struct esp_vk_candidate *cands, uint32_t n, struct esp_err *err)
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
    struct esp_vk_candidate *cands = calloc(ESP_VK_DEVICES, sizeof *cands);
    const struct esp_vk_candidate *chosen = NULL;
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
    st = esp_vk_instance_create(&instance, &none, false, &dummy, err);
    if (!st)
        st = esp_vk_probe_all(instance, cands, &n, err);
    if (!st && json) {
        st = list_json(out, cands, n, err);
    } else if (!st) {
        (void)esp_vk_choose(&chosen, cands, n, NULL, &cause);
        for (uint32_t i = 0; i < n; i++) {
            const struct esp_vk_candidate *c = &cands[i];
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
                    chosen && esp_vk_rank(chosen) == 0 ? ": a software driver, the last resort" : "");
    }
    esp_vk_instance_destroy(instance, none);
    free(cands);
    return st;
}
