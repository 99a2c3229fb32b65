#include "worker/ceiling.h"

#include <string.h>

#include "esp_spv_ceiling_fma_plain.h"
#include "esp_spv_ceiling_fma_texel.h"
#include "esp_spv_ceiling_read_direct.h"
#include "esp_spv_ceiling_read_plain.h"
#include "esp_spv_ceiling_read_texel.h"
#include "proto/clock.h"
#include "worker/ops.h"
#include "worker/vk_cmd.h"
#include "worker/vk_pipe.h"

#define MIN_TIME    0.5 /* seconds of repeats each */
#define MIN_REPEATS 5
#define CHUNK_QUADS 16384u /* 256 KiB a workgroup: a multiple of four rounds of any number of lanes */
#define FMA_GROUPS  4096u
#define FMA_ROUNDS  64u
#define FMA_SUMS    12 /* of a lane */

static const struct esp_kernel_code codes[2][ESP_VK_N_CLASS] = {
#define CODE(blob)                                                                                           \
    {                                                                                                        \
        .name = #blob, .spirv = esp_spv_##blob, .n_bytes = sizeof esp_spv_##blob                             \
    }
    {[ESP_VK_PLAIN] = CODE(ceiling_read_plain),
     [ESP_VK_TEXEL] = CODE(ceiling_read_texel),
     [ESP_VK_DIRECT] = CODE(ceiling_read_direct)},
    {[ESP_VK_PLAIN] = CODE(ceiling_fma_plain), [ESP_VK_TEXEL] = CODE(ceiling_fma_texel)}};
enum { READ, FMA };

/* Classes without one of their own read like texel's if they bind texel buffers, else like plain's. */
static const struct esp_kernel_code *code_of(const struct esp_vk *vk, int which)
{
    const struct esp_kernel_code *own = &codes[which][vk->cls];

    return own->spirv ? own : &codes[which][esp_vk_has_texels(vk->cls) ? ESP_VK_TEXEL : ESP_VK_PLAIN];
}

/* A GPU is done before the host has looked twice: it gets the same several times in one go. */
static uint32_t runs_a_submit(const struct esp_vk *vk)
{
    return vk->report.type == VK_PHYSICAL_DEVICE_TYPE_CPU ? 1 : 16;
}

static esp_status record(VkCommandBuffer cmd, const struct esp_space *sp, int which, uint32_t n_group,
                         uint32_t lanes, const struct esp_push_ceiling *push, struct esp_err *err)
{
    struct esp_vk *vk = sp->vk;
    VkPipeline pipe;
    esp_status st = esp_pipe_get(&pipe, vk, code_of(vk, which), &lanes, 1, err);

    if (!st)
        st = esp_cmd_begin(cmd, false, err);
    if (st)
        return st;
    vkCmdBindPipeline(cmd, VK_PIPELINE_BIND_POINT_COMPUTE, pipe);
    if (esp_vk_has_texels(vk->cls))
        vkCmdBindDescriptorSets(cmd, VK_PIPELINE_BIND_POINT_COMPUTE, esp_pipe_layout(vk), 0, 1, &sp->set[0],
                                0, NULL);
    vkCmdPushConstants(cmd, esp_pipe_layout(vk), VK_SHADER_STAGE_COMPUTE_BIT, 0, sizeof *push, push);
    for (uint32_t i = 0; i < runs_a_submit(vk); i++)
        vkCmdDispatch(cmd, n_group, 1, 1);
    return esp_cmd_end(cmd, err);
}

/* Seconds of a dispatch at best. */
static esp_status best_time(double *out, const struct esp_space *sp, int which, uint32_t n_group,
                            uint32_t lanes, const struct esp_push_ceiling *push, struct esp_err *err)
{
    struct esp_vk *vk = sp->vk;
    VkCommandBuffer cmd;
    double total = 0;
    esp_status st = esp_cmd_alloc(&cmd, vk, err);

    *out = 1e9;
    if (st)
        return st;
    st = record(cmd, sp, which, n_group, lanes, push, err);
    if (!st)
        st = esp_submit_wait(vk, &cmd, 1, false, err); /* the first one compiles */
    for (uint32_t i = 0; !st && (i < MIN_REPEATS || total < MIN_TIME); i++) {
        const double t0 = esp_now_seconds();
        st = esp_submit_wait(vk, &cmd, 1, false, err);
        const double t = esp_now_seconds() - t0;
        total += t;
        if (t < *out)
            *out = t;
    }
    *out /= runs_a_submit(vk);
    if (*out < 1e-7)
        *out = 1e-7;
    esp_cmd_free(&cmd, vk);
    return st;
}

/* The buffer to read, with ordinary bytes in it, and the little that kernels want bound beside it. */
static esp_status space_make(struct esp_space *sp, struct esp_buf *buf, uint64_t n_bytes, struct esp_err *err)
{
    struct esp_vk *vk = sp->vk;
    VkCommandBuffer cmd;
    esp_status st = esp_buf_create(buf, vk, ESP_BUF_DEVICE, n_bytes, VK_FORMAT_R32G32B32A32_UINT,
                                   "buffer to measure reading with", err);

    if (st)
        return st;
    sp->chunk[0] = buf;
    sp->n_chunk = 1;
    if ((st = esp_buf_create(&sp->act, vk, ESP_BUF_DEVICE, 4096 * 16, VK_FORMAT_R32G32B32A32_SFLOAT,
                             "measurement", err)) ||
        (st = esp_buf_create(&sp->kv, vk, ESP_BUF_DEVICE, 16, VK_FORMAT_R32G32B32A32_SFLOAT, "measurement",
                             err)) ||
        (st = esp_space_bind(sp, err)) || (st = esp_cmd_once_begin(&cmd, vk, err)))
        return st;
    vkCmdFillBuffer(cmd, buf->buf, 0, VK_WHOLE_SIZE, 0x3c243c24u);
    return esp_cmd_once_run(&cmd, vk, err);
}

static uint64_t read_bytes(const struct esp_vk *vk)
{
    const uint64_t chunk = (uint64_t)CHUNK_QUADS * 16;
    uint64_t n = (uint64_t)(vk->report.type == VK_PHYSICAL_DEVICE_TYPE_CPU ? 256 : 512) << 20;

    if (n > vk->report.memory_bytes / 8)
        n = vk->report.memory_bytes / 8;
    if (n > vk->max_alloc_bytes)
        n = vk->max_alloc_bytes;
    return n < chunk ? chunk : n / chunk * chunk;
}

esp_status esp_vk_ceilings(struct esp_ceilings *out, struct esp_vk *vk, struct esp_err *err)
{
    struct esp_space sp = {.vk = vk};
    struct esp_buf buf = {0};
    const uint64_t n_bytes = read_bytes(vk);
    /* CPU drivers take a workgroup's subgroups one after the other, each through all of the workgroup's piece: with
     * several it would be fetched several times, in small bits. */
    const uint32_t lanes = esp_vk_has_texels(vk->cls)                              ? 8
                           : vk->props.limits.maxComputeWorkGroupInvocations < 256 ? 64
                                                                                   : 256;
    const uint32_t n_group = (uint32_t)(n_bytes / 16 / CHUNK_QUADS);
    struct esp_push_ceiling push = {
        .n_quad = (uint32_t)(n_bytes / 16), .magic = 1, .n_round = FMA_ROUNDS, .scale = 0.75f};
    double read = 1, fma = 1;
    esp_status st = space_make(&sp, &buf, n_bytes, err);

    memset(out, 0, sizeof *out);
    push.act = sp.act.addr;
    push.kv = sp.kv.addr;
    push.w = buf.addr;
    if (!st)
        st = best_time(&read, &sp, READ, n_group, lanes, &push, err);
    if (!st)
        st = best_time(&fma, &sp, FMA, FMA_GROUPS, lanes, &push, err);
    if (!st) {
        out->read_bytes = n_bytes;
        out->read_rate = (double)n_bytes / read;
        out->flop_rate = 2.0 * FMA_SUMS * 8 * FMA_ROUNDS * FMA_GROUPS * lanes / fma;
    } else {
        esp_err_prefix(err, "measuring the device's ceilings: ");
    }
    esp_space_finish(&sp);
    esp_buf_destroy(&buf, vk);
    return st;
}
