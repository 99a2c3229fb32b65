/*
 * What a device can do, measured at join with the kernels that will run: one decode-like and one prefill-like
 * product, 2048 x 2048 in bfloat16. Placement needs ratios of devices, not absolutes, so a fraction of a
 * second does.
 */
#include <string.h>

#include "proto/clock.h"
#include "worker/batch.h"
#include "worker/tune.h"
#include "worker/vk_cmd.h"

#define SIDE     2048u
#define ROWS     64u
#define MIN_TIME 0.08 /* seconds of repeats each */
#define AT_ONCE  16   /* products in a submission, where handing it in takes as long as one of them */

/* Seconds of one run of the command buffer: the best of as many as fit into MIN_TIME, after one to warm up.
 */
static esp_status best_time(double *out, struct esp_vk *vk, VkCommandBuffer cmd, struct esp_err *err)
{
    esp_status st = esp_submit_wait(vk, &cmd, 1, false, err);
    double total = 0;

    *out = 1e9;
    while (!st && total < MIN_TIME) {
        double t0 = esp_now_seconds(), t;
        st = esp_submit_wait(vk, &cmd, 1, false, err);
        t = esp_now_seconds() - t0;
        total += t;
        if (t < *out)
            *out = t;
    }
    if (*out < 1e-6)
        *out = 1e-6;
    return st;
}

static esp_status space_make(struct esp_space *sp, struct esp_buf *weights, struct esp_batch *batch,
                             struct esp_err *err)
{
    struct esp_vk *vk = sp->vk;
    const size_t words = esp_batch_n_words(ROWS, 1, 1);
    VkCommandBuffer cmd;
    esp_status st = esp_buf_create(weights, vk, ESP_BUF_DEVICE, SIDE * SIDE * 2, VK_FORMAT_R32G32B32A32_UINT,
                                   "measurement", err);

    if (st)
        return st;
    sp->chunk[0] = weights;
    sp->n_chunk = 1;
    if ((st = esp_buf_create(&sp->vec, vk, ESP_BUF_DEVICE, 16, VK_FORMAT_UNDEFINED, "measurement", err)) ||
        (st = esp_buf_create(&sp->act, vk, ESP_BUF_DEVICE, (2 * SIDE + 1) * ROWS * 4,
                             VK_FORMAT_R32G32B32A32_SFLOAT, "measurement", err)) ||
        (st = esp_buf_create(&sp->kv, vk, ESP_BUF_DEVICE, 16, VK_FORMAT_R32G32B32A32_SFLOAT, "measurement",
                             err)) ||
        (st = esp_buf_create(&sp->step, vk, ESP_BUF_UPLOAD, words * 4, VK_FORMAT_UNDEFINED, "measurement",
                             err)) ||
        (st = esp_space_bind(sp, err)) || (st = esp_cmd_once_begin(&cmd, vk, err)))
        return st;
    esp_batch_init(batch, sp->step.map, ROWS, 1);
    /* ordinary numbers: zeros or subnormals would time something else */
    vkCmdFillBuffer(cmd, weights->buf, 0, VK_WHOLE_SIZE, 0x3c243c24u);
    vkCmdFillBuffer(cmd, sp->act.buf, 0, VK_WHOLE_SIZE, 0x3f000000u);
    return esp_cmd_once_run(&cmd, vk, err);
}

static esp_status time_product(double *out, struct esp_space *sp, struct esp_batch *batch, uint32_t few,
                               uint32_t rows, struct esp_err *err)
{
    const struct esp_rows x = {0, SIDE / 4}, y = {ROWS * SIDE / 4, SIDE / 4};
    const struct esp_mat w = {.n_part = 1,
                              .part = {{0, 0, 0, SIDE}},
                              .n = SIDE,
                              .np = SIDE,
                              .kp = SIDE,
                              .wtype = ESP_W_BF16,
                              .bias = ESP_NONE};
    const struct esp_matmul_how how = {
        .epilogue = ESP_EPI_NONE, .few = few, .count = ESP_COUNT_ROWS, .scale_at = 2 * ROWS * SIDE / 4};
    const uint32_t n = sp->vk->report.type == VK_PHYSICAL_DEVICE_TYPE_CPU ? 1 : AT_ONCE;
    struct esp_grids grids = {0};
    struct esp_rec rec = {.space = sp, .grids = &grids, .err = err};

    rec.st = esp_cmd_alloc(&rec.cmd, sp->vk, err);
    if (rec.st)
        return rec.st;
    rec.st = esp_cmd_begin(rec.cmd, false, err);
    for (uint32_t i = 0; i < n; i++)
        esp_op_matmul(&rec, y, x, &w, &how);
    if (!rec.st)
        rec.st = esp_cmd_end(rec.cmd, err);
    if (!rec.st) {
        esp_batch_begin(batch);
        batch->count[ESP_COUNT_ROWS] = rows;
        esp_batch_seal(batch, &grids);
        rec.st = best_time(out, sp->vk, rec.cmd, err);
    }
    *out /= n;
    esp_cmd_free(&rec.cmd, sp->vk);
    return rec.st;
}

esp_status esp_vk_measure(struct esp_vk *vk, struct esp_err *err)
{
    struct esp_space sp = {.vk = vk};
    struct esp_buf weights = {0};
    struct esp_batch batch;
    double vec = 0, mat = 0;
    esp_status st = esp_vk_tune(vk, false, NULL, err);

    if (st)
        return st;
    st = space_make(&sp, &weights, &batch, err);
    if (!st)
        st = time_product(&vec, &sp, &batch, 1, 1, err);
    if (!st)
        st = time_product(&mat, &sp, &batch, 0, ROWS, err);
    if (!st) {
        vk->report.bandwidth = (double)SIDE * SIDE * 2 / vec;
        vk->report.matmul_rate = 2.0 * SIDE * SIDE * ROWS / mat;
    } else {
        esp_err_prefix(err, "measuring the device: ");
    }
    esp_space_finish(&sp);
    esp_buf_destroy(&weights, vk);
    return st;
}
