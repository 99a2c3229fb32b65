#include "worker/profile.h"

#include <stdlib.h>
#include <string.h>

#include "worker/vk_cmd.h"

#define MAX_SPANS 8192 /* recorded dispatches; later ones go unmeasured */
#define MAX_NAMES 128

struct name {
    char text[64];
    uint64_t n_call;
    double seconds;
};

struct span {
    uint32_t name;
    uint64_t last_start; /* a command buffer that did not run again still shows its old values */
};

struct esp_profile {
    struct esp_vk *vk;
    VkQueryPool pool;
    uint64_t mask;
    uint32_t n_span, n_name;
    bool open;
    struct span span[MAX_SPANS];
    struct name name[MAX_NAMES];
};

/* A query must have been reset before it may be asked, even for whether it has anything to say. */
static esp_status reset_all(struct esp_profile *p, struct esp_err *err)
{
    VkCommandBuffer cmd;
    esp_status st = esp_cmd_once_begin(&cmd, p->vk, err);

    if (st)
        return st;
    vkCmdResetQueryPool(cmd, p->pool, 0, 2 * MAX_SPANS);
    return esp_cmd_once_run(&cmd, p->vk, err);
}

esp_status esp_profile_create(struct esp_profile **out, struct esp_vk *vk, struct esp_err *err)
{
    VkQueueFamilyProperties fam[16];
    uint32_t n = 16;
    VkQueryPoolCreateInfo info = {.sType = VK_STRUCTURE_TYPE_QUERY_POOL_CREATE_INFO,
                                  .queryType = VK_QUERY_TYPE_TIMESTAMP,
                                  .queryCount = 2 * MAX_SPANS};
    struct esp_profile *p;
    esp_status st;

    *out = NULL;
    vkGetPhysicalDeviceQueueFamilyProperties(vk->phys, &n, fam);
    if (vk->family >= n || fam[vk->family].timestampValidBits == 0)
        return esp_fail(err, ESP_E_UNSUPPORTED, "the device's compute queue has no timestamps");
    p = calloc(1, sizeof *p);
    if (!p)
        return esp_fail(err, ESP_E_NOMEM, "profile");
    p->vk = vk;
    n = fam[vk->family].timestampValidBits;
    p->mask = n >= 64 ? UINT64_MAX : (1ull << n) - 1;
    st = esp_vk_check(vkCreateQueryPool(vk->dev, &info, NULL, &p->pool), "vkCreateQueryPool", err);
    if (!st)
        st = reset_all(p, err);
    if (st)
        esp_profile_destroy(&p);
    *out = p;
    return st;
}

void esp_profile_destroy(struct esp_profile **pp)
{
    if (!*pp)
        return;
    vkDestroyQueryPool((*pp)->vk->dev, (*pp)->pool, NULL);
    free(*pp);
    *pp = NULL;
}

static uint32_t name_index(struct esp_profile *p, const char *what)
{
    for (uint32_t i = 0; i < p->n_name; i++)
        if (strcmp(p->name[i].text, what) == 0)
            return i;
    if (p->n_name == MAX_NAMES)
        return MAX_NAMES - 1;
    snprintf(p->name[p->n_name].text, sizeof p->name[0].text, "%s", what);
    return p->n_name++;
}

void esp_profile_begin(struct esp_profile *p, VkCommandBuffer cmd, const char *what)
{
    if (!p || p->n_span == MAX_SPANS)
        return;
    p->span[p->n_span].name = name_index(p, what);
    p->open = true;
    vkCmdResetQueryPool(cmd, p->pool, 2 * p->n_span, 2);
    vkCmdWriteTimestamp(cmd, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, p->pool, 2 * p->n_span);
}

void esp_profile_end(struct esp_profile *p, VkCommandBuffer cmd)
{
    if (!p || !p->open)
        return;
    p->open = false;
    vkCmdWriteTimestamp(cmd, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, p->pool, 2 * p->n_span + 1);
    p->n_span++;
}

void esp_profile_collect(struct esp_profile *p)
{
    if (!p)
        return;
    for (uint32_t i = 0; i < p->n_span; i++) {
        uint64_t v[2][2]; /* start and end, each with its availability */
        VkResult r = vkGetQueryPoolResults(p->vk->dev, p->pool, 2 * i, 2, sizeof v, v, sizeof v[0],
                                           VK_QUERY_RESULT_64_BIT | VK_QUERY_RESULT_WITH_AVAILABILITY_BIT);
        struct name *n = &p->name[p->span[i].name];
        if (r < 0 || !v[0][1] || !v[1][1] || v[0][0] == p->span[i].last_start)
            continue;
        p->span[i].last_start = v[0][0];
        n->n_call++;
        n->seconds += (double)((v[1][0] - v[0][0]) & p->mask) * p->vk->props.limits.timestampPeriod * 1e-9;
    }
}

static int slower_first(const void *a, const void *b)
{
    double x = ((const struct name *)a)->seconds, y = ((const struct name *)b)->seconds;
    return (x < y) - (x > y);
}

void esp_profile_log(const struct esp_profile *p, const struct esp_log *log)
{
    struct name sorted[MAX_NAMES];
    double total = 0;

    if (!p)
        return;
    memcpy(sorted, p->name, p->n_name * sizeof sorted[0]);
    qsort(sorted, p->n_name, sizeof sorted[0], slower_first);
    for (uint32_t i = 0; i < p->n_name; i++)
        total += sorted[i].seconds;
    for (uint32_t i = 0; i < p->n_name; i++)
        esp_log(log, ESP_LOG_INFO, "profile kernel=%s calls=%llu seconds=%.6f share=%.3f", sorted[i].text,
                (unsigned long long)sorted[i].n_call, sorted[i].seconds,
                total > 0 ? sorted[i].seconds / total : 0.0);
}
