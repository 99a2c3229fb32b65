#include "worker/vk_cmd.h"

/* Software drivers take minutes for what a GPU does in milliseconds; a hang is far beyond this. */
#define WAIT_NS_EACH  (120ull * 1000 * 1000 * 1000)
#define WAIT_NS_SLICE (1ull * 1000 * 1000 * 1000)

esp_status esp_cmd_alloc(VkCommandBuffer *out, struct esp_vk *vk, struct esp_err *err)
{
    VkCommandBufferAllocateInfo info = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                        .commandPool = vk->pool,
                                        .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
                                        .commandBufferCount = 1};
    esp_status st =
        esp_vk_check(vkAllocateCommandBuffers(vk->dev, &info, out), "vkAllocateCommandBuffers", err);
    if (st)
        *out = VK_NULL_HANDLE;
    return st;
}

void esp_cmd_free(VkCommandBuffer *cmd, struct esp_vk *vk)
{
    if (*cmd)
        vkFreeCommandBuffers(vk->dev, vk->pool, 1, cmd);
    *cmd = VK_NULL_HANDLE;
}

esp_status esp_cmd_begin(VkCommandBuffer cmd, bool once, struct esp_err *err)
{
    VkCommandBufferBeginInfo info = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO,
                                     .flags = once ? VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT : 0};
    return esp_vk_check(vkBeginCommandBuffer(cmd, &info), "vkBeginCommandBuffer", err);
}

esp_status esp_cmd_end(VkCommandBuffer cmd, struct esp_err *err)
{
    return esp_vk_check(vkEndCommandBuffer(cmd), "vkEndCommandBuffer", err);
}

static void barrier(VkCommandBuffer cmd, VkPipelineStageFlags to, VkAccessFlags access)
{
    VkMemoryBarrier b = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                         .srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_WRITE_BIT,
                         .dstAccessMask = access | VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT |
                                          VK_ACCESS_TRANSFER_READ_BIT | VK_ACCESS_TRANSFER_WRITE_BIT};
    vkCmdPipelineBarrier(cmd, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT,
                         to | VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT, 0, 1, &b,
                         0, NULL, 0, NULL);
}

void esp_cmd_barrier(VkCommandBuffer cmd)
{
    barrier(cmd, VK_PIPELINE_STAGE_DRAW_INDIRECT_BIT, VK_ACCESS_INDIRECT_COMMAND_READ_BIT);
}

void esp_cmd_barrier_shaders(VkCommandBuffer cmd)
{
    const VkMemoryBarrier b = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                               .srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT,
                               .dstAccessMask = VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT};
    vkCmdPipelineBarrier(cmd, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, 0,
                         1, &b, 0, NULL, 0, NULL);
}

void esp_cmd_barrier_all(VkCommandBuffer cmd)
{
    barrier(cmd, VK_PIPELINE_STAGE_HOST_BIT, VK_ACCESS_HOST_READ_BIT);
}

esp_status esp_submit(uint64_t *out, struct esp_vk *vk, const VkCommandBuffer *cmds, uint32_t n, bool apart,
                      struct esp_err *err)
{
    VkSubmitInfo batch[ESP_MAX_BATCH];
    VkTimelineSemaphoreSubmitInfo timeline[ESP_MAX_BATCH];
    uint64_t value[ESP_MAX_BATCH];
    uint32_t n_batch = apart ? n : 1;
    esp_status st;

    *out = vk->n_submitted;
    if (n == 0)
        return ESP_OK;
    if (n_batch > ESP_MAX_BATCH)
        return esp_fail(err, ESP_E_INTERNAL, "%u command buffers in one submission", n);
    /* every batch signals: drivers join those that do not with the next one, and a watchdog counts them as one */
    for (uint32_t i = 0; i < n_batch; i++) {
        value[i] = vk->n_submitted + i + 1;
        timeline[i] =
            (VkTimelineSemaphoreSubmitInfo){.sType = VK_STRUCTURE_TYPE_TIMELINE_SEMAPHORE_SUBMIT_INFO,
                                            .signalSemaphoreValueCount = 1,
                                            .pSignalSemaphoreValues = &value[i]};
        batch[i] = (VkSubmitInfo){.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO,
                                  .pNext = &timeline[i],
                                  .commandBufferCount = apart ? 1 : n,
                                  .pCommandBuffers = cmds + i,
                                  .signalSemaphoreCount = 1,
                                  .pSignalSemaphores = &vk->timeline};
    }
    st = esp_vk_check(vkQueueSubmit(vk->queue, n_batch, batch, VK_NULL_HANDLE), "vkQueueSubmit", err);
    if (!st)
        *out = vk->n_submitted = value[n_batch - 1];
    return st;
}

esp_status esp_submit_done(struct esp_vk *vk, uint64_t value, uint32_t n, struct esp_err *err)
{
    VkSemaphoreWaitInfo wait = {.sType = VK_STRUCTURE_TYPE_SEMAPHORE_WAIT_INFO,
                                .semaphoreCount = 1,
                                .pSemaphores = &vk->timeline,
                                .pValues = &value};
    VkResult r = VK_TIMEOUT;

    /* In slices: a driver that misses its wake-up costs a second, not the stage. */
    for (uint64_t waited = 0; r == VK_TIMEOUT && waited < WAIT_NS_EACH * n; waited += WAIT_NS_SLICE)
        r = vkWaitSemaphores(vk->dev, &wait, WAIT_NS_SLICE);
    if (r == VK_TIMEOUT)
        return esp_fail(err, ESP_E_DEVICE, "the device did not finish %u command buffers in %llu s", n,
                        WAIT_NS_EACH * n / 1000000000ull);
    return esp_vk_check(r, "vkWaitSemaphores", err);
}

esp_status esp_submit_wait(struct esp_vk *vk, const VkCommandBuffer *cmds, uint32_t n, bool apart,
                           struct esp_err *err)
{
    uint64_t value;
    esp_status st = esp_submit(&value, vk, cmds, n, apart, err);

    return st || n == 0 ? st : esp_submit_done(vk, value, n, err);
}

esp_status esp_cmd_once_begin(VkCommandBuffer *out, struct esp_vk *vk, struct esp_err *err)
{
    esp_status st = esp_cmd_alloc(out, vk, err);

    if (!st)
        st = esp_cmd_begin(*out, true, err);
    if (st)
        esp_cmd_free(out, vk);
    return st;
}

esp_status esp_cmd_once_run(VkCommandBuffer *cmd, struct esp_vk *vk, struct esp_err *err)
{
    esp_status st;

    esp_cmd_barrier(*cmd);
    st = esp_cmd_end(*cmd, err);
    if (!st)
        st = esp_submit_wait(vk, cmd, 1, false, err);
    esp_cmd_free(cmd, vk);
    return st;
}
