#include "worker/profile.h"

#include <stdlib.h>
#include <string.h>

#include "worker/vk_cmd.h"

#define MAX_SPANS 8192 /* recorded dispatches; later ones go unmeasured */
#define MAX_SUMS  256

struct span {
    uint32_t sum;
    struct esp_profile_work work;
    uint64_t last_start; /* a command buffer that did not run again still shows its old values */
};

struct esp_profile {
    struct esp_vk *vk;
    VkQueryPool pool;
    uint64_t mask;
    uint32_t n_span, n_sum;
    bool open;
    struct span span[MAX_SPANS];
    struct esp_profile_sum sum[MAX_SUMS];
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

static uint32_t sum_index(struct esp_profile *p, const char *what, uint32_t n, uint32_t k)
{
    for (uint32_t i = 0; i < p->n_sum; i++)
        if (strcmp(p->sum[i].name, what) == 0 && p->sum[i].n == n && p->sum[i].k == k)
            return i;
    if (p->n_sum == MAX_SUMS)
        return MAX_SUMS - 1;
    snprintf(p->sum[p->n_sum].name, sizeof p->sum[0].name, "%s", what);
    p->sum[p->n_sum].n = n;
    p->sum[p->n_sum].k = k;
    return p->n_sum++;
}

void esp_profile_begin(struct esp_profile *p, VkCommandBuffer cmd, const char *what,
                       const struct esp_profile_work *work)
{
    if (!p || p->n_span == MAX_SPANS)
        return;
    p->span[p->n_span].work = *work;
    p->span[p->n_span].sum = sum_index(p, what, work->n, work->k);
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

static void add_work(struct esp_profile_sum *sum, const struct esp_profile_work *w,
                     const struct esp_profile_counts *c)
{
    const uint32_t rows = w->wants ? c->wants : c->rows;
    const uint32_t passes = w->pass_rows ? (rows + w->pass_rows - 1) / w->pass_rows : rows > 0;

    sum->bytes += (double)w->pass_bytes * passes + w->position_bytes * c->positions[w->window];
    sum->flop += w->row_flop * rows + w->pair_flop * c->pairs[w->window];
}

void esp_profile_collect(struct esp_profile *p, const struct esp_profile_counts *counts)
{
    if (!p)
        return;
    for (uint32_t i = 0; i < p->n_span; i++) {
        uint64_t v[2][2]; /* start and end, each with its availability */
        VkResult r = vkGetQueryPoolResults(p->vk->dev, p->pool, 2 * i, 2, sizeof v, v, sizeof v[0],
                                           VK_QUERY_RESULT_64_BIT | VK_QUERY_RESULT_WITH_AVAILABILITY_BIT);
        struct esp_profile_sum *sum = &p->sum[p->span[i].sum];
        if (r < 0 || !v[0][1] || !v[1][1] || v[0][0] == p->span[i].last_start)
            continue;
        p->span[i].last_start = v[0][0];
        sum->n_call++;
        add_work(sum, &p->span[i].work, counts);
        sum->seconds += (double)((v[1][0] - v[0][0]) & p->mask) * p->vk->props.limits.timestampPeriod * 1e-9;
    }
}

void esp_profile_clear(struct esp_profile *p)
{
    for (uint32_t i = 0; p && i < p->n_sum; i++) {
        p->sum[i].n_call = 0;
        p->sum[i].seconds = p->sum[i].bytes = p->sum[i].flop = 0;
    }
}

bool esp_profile_at(const struct esp_profile *p, uint32_t i, struct esp_profile_sum *out)
{
    if (!p || i >= p->n_sum)
        return false;
    *out = p->sum[i];
    return true;
}

static int slower_first(const void *a, const void *b)
{
    double x = ((const struct esp_profile_sum *)a)->seconds, y = ((const struct esp_profile_sum *)b)->seconds;
    return (x < y) - (x > y);
}

/* Sums of one kernel's shapes, added up. */
static uint32_t by_name(struct esp_profile_sum out[MAX_SUMS], const struct esp_profile *p)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < p->n_sum; i++) {
        uint32_t at = 0;
        while (at < n && strcmp(out[at].name, p->sum[i].name) != 0)
            at++;
        if (at == n) {
            out[n++] = p->sum[i];
        } else {
            out[at].n_call += p->sum[i].n_call;
            out[at].seconds += p->sum[i].seconds;
        }
    }
    return n;
}

void esp_profile_log(const struct esp_profile *p, const struct esp_log *log)
{
    struct esp_profile_sum sorted[MAX_SUMS];
    double total = 0;
    uint32_t n;

    if (!p)
        return;
    n = by_name(sorted, p);
    qsort(sorted, n, sizeof sorted[0], slower_first);
    for (uint32_t i = 0; i < n; i++)
        total += sorted[i].seconds;
    for (uint32_t i = 0; i < n && sorted[i].n_call > 0; i++)
        esp_log(log, ESP_LOG_INFO, "profile kernel=%s calls=%llu seconds=%.6f share=%.3f", sorted[i].name,
                (unsigned long long)sorted[i].n_call, sorted[i].seconds,
                total > 0 ? sorted[i].seconds / total : 0.0);
}
