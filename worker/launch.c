/* The buffers that operations work on, and their dispatches. */
#include "worker/launch.h"

#include <string.h>

#include "worker/vk_cmd.h"

#define MAX_GROUPS 65535u /* workgroups in one axis: what every device guarantees */

esp_status esp_space_bind(struct esp_space *sp, struct esp_err *err)
{
    const uint32_t n = sp->n_chunk;
    VkDescriptorPoolSize size = {.type = VK_DESCRIPTOR_TYPE_STORAGE_TEXEL_BUFFER, .descriptorCount = 3 * n};
    VkDescriptorPoolCreateInfo pool = {.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_POOL_CREATE_INFO,
                                       .maxSets = n,
                                       .poolSizeCount = 1,
                                       .pPoolSizes = &size};
    VkDescriptorSetLayout layout = esp_pipe_set_layout(sp->vk);
    VkDescriptorSetAllocateInfo alloc = {.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_ALLOCATE_INFO,
                                         .descriptorSetCount = 1,
                                         .pSetLayouts = &layout};
    esp_status st;

    if (!esp_vk_has_texels(sp->vk->cls))
        return ESP_OK;
    st = esp_vk_check(vkCreateDescriptorPool(sp->vk->dev, &pool, NULL, &sp->pool), "vkCreateDescriptorPool",
                      err);
    alloc.descriptorPool = sp->pool;
    for (uint32_t c = 0; !st && c < n; c++) {
        const VkBufferView views[3] = {sp->chunk[c]->view, sp->act.view, sp->kv.view};
        VkWriteDescriptorSet write = {.sType = VK_STRUCTURE_TYPE_WRITE_DESCRIPTOR_SET,
                                      .descriptorCount = 1,
                                      .descriptorType = VK_DESCRIPTOR_TYPE_STORAGE_TEXEL_BUFFER};
        st = esp_vk_check(vkAllocateDescriptorSets(sp->vk->dev, &alloc, &sp->set[c]),
                          "vkAllocateDescriptorSets", err);
        for (uint32_t i = 0; !st && i < 3; i++) {
            write.dstSet = sp->set[c];
            write.dstBinding = i;
            write.pTexelBufferView = &views[i];
            vkUpdateDescriptorSets(sp->vk->dev, 1, &write, 0, NULL);
        }
    }
    return st;
}

void esp_space_retire(struct esp_space *sp, bool keep_act, bool keep_kv)
{
    struct esp_vk *vk = sp->vk;

    esp_profile_destroy(&sp->profile);
    if (sp->pool)
        vkDestroyDescriptorPool(vk->dev, sp->pool, NULL);
    sp->pool = VK_NULL_HANDLE;
    sp->n_chunk = 0;
    esp_buf_destroy(&sp->vec, vk);
    esp_buf_destroy(&sp->step, vk);
    esp_buf_destroy(&sp->in, vk);
    if (!keep_act)
        esp_buf_destroy(&sp->act, vk);
    if (!keep_kv)
        esp_buf_destroy(&sp->kv, vk);
}

void esp_space_finish(struct esp_space *sp)
{
    if (!sp->vk)
        return;
    esp_space_retire(sp, false, false);
    esp_buf_destroy(&sp->out, sp->vk);
    memset(sp, 0, sizeof *sp);
}

void esp_grids_write(const struct esp_grids *grids, const uint32_t count[ESP_N_COUNT], uint32_t *words)
{
    for (uint32_t i = 0; i < grids->n; i++) {
        const struct esp_grid *g = &grids->grid[i];
        uint32_t *to = words + ESP_STEP_GRIDS + i * ESP_STEP_GRID;
        memcpy(to, g->dims, sizeof g->dims);
        to[g->axis] = esp_div_up(count[g->count], g->div);
    }
}

/* The step buffer's slot of a grid, shared by all dispatches that have the same. */
static uint32_t grid_slot(struct esp_rec *rec, const struct esp_grid *want)
{
    struct esp_grids *gs = rec->grids;

    for (uint32_t i = 0; i < gs->n; i++)
        if (memcmp(&gs->grid[i], want, sizeof *want) == 0)
            return i;
    if (gs->n == ESP_STEP_N_GRIDS) {
        rec->st = esp_fail(rec->err, ESP_E_INTERNAL, "more than %d kinds of dispatch", ESP_STEP_N_GRIDS);
        return 0;
    }
    gs->grid[gs->n] = *want;
    return gs->n++;
}

void esp_launch(struct esp_rec *rec, const struct esp_launch *l)
{
    struct esp_space *sp = rec->space;
    const uint32_t n_pipe = esp_pipes_count(sp->vk->pipes);
    VkPipeline pipe;
    uint32_t slot;

    if (rec->st)
        return;
    for (uint32_t i = 0; i < 3; i++) {
        if (i != l->grid.axis && (l->grid.dims[i] == 0 || l->grid.dims[i] > MAX_GROUPS)) {
            rec->st = esp_fail(rec->err, ESP_E_UNSUPPORTED,
                               "%u workgroups in one axis: the model is too wide", l->grid.dims[i]);
            return;
        }
    }
    rec->st = esp_pipe_get(&pipe, sp->vk, l->code, l->spec, l->n_spec, rec->err);
    if (rec->dry && !rec->st && esp_pipes_count(sp->vk->pipes) > n_pipe)
        rec->st = ESP_E_TIMEOUT;
    if (rec->st || rec->dry)
        return;
    slot = grid_slot(rec, &l->grid);
    if (rec->st)
        return;
    esp_cmd_barrier_shaders(rec->cmd); /* every operation reads what the one before wrote */
    vkCmdBindPipeline(rec->cmd, VK_PIPELINE_BIND_POINT_COMPUTE, pipe);
    if (esp_vk_has_texels(sp->vk->cls))
        vkCmdBindDescriptorSets(rec->cmd, VK_PIPELINE_BIND_POINT_COMPUTE, esp_pipe_layout(sp->vk), 0, 1,
                                &sp->set[l->chunk], 0, NULL);
    vkCmdPushConstants(rec->cmd, esp_pipe_layout(sp->vk), VK_SHADER_STAGE_COMPUTE_BIT, 0, l->push_bytes,
                       l->push);
    esp_profile_begin(sp->profile, rec->cmd, l->code->name, &l->work);
    vkCmdDispatchIndirect(rec->cmd, sp->step.buf, (ESP_STEP_GRIDS + (VkDeviceSize)slot * ESP_STEP_GRID) * 4);
    esp_profile_end(sp->profile, rec->cmd);
}
