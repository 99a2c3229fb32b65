/* Running a stage's programs, and what comes out of them. */
#include "proto/clock.h"
#include "worker/stage_state.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/vk_cmd.h"

/* Rows that a segment left, into a new trace. */
static esp_status trace_take(struct esp_stage *s, const struct esp_segment *seg, uint32_t n_row,
                             struct esp_stage_out *out, struct esp_err *err)
{
    struct esp_rec rec = {.space = &s->space, .grids = &s->ps.grids, .err = err};
    struct esp_stage_trace *t;
    const size_t n = (size_t)n_row * seg->width;

    if (!seg->name[0])
        return ESP_OK;
    rec.st = esp_cmd_alloc(&rec.cmd, s->vk, err);
    if (rec.st)
        return rec.st;
    rec.st = esp_cmd_begin(rec.cmd, true, err);
    esp_op_rows_out(&rec, seg->loc, seg->width, 0, ESP_COUNT_ROWS);
    if (!rec.st) {
        esp_cmd_barrier_all(rec.cmd);
        rec.st = esp_cmd_end(rec.cmd, err);
    }
    if (!rec.st) {
        esp_batch_seal(&s->batch, &s->ps.grids); /* this may be a new kind of dispatch */
        rec.st = esp_submit_wait(s->vk, &rec.cmd, 1, false, err);
    }
    esp_cmd_free(&rec.cmd, s->vk);
    if (rec.st)
        return rec.st;
    t = realloc(out->traces, (out->n_traces + 1) * sizeof *t);
    if (!t)
        return esp_fail(err, ESP_E_NOMEM, "trace");
    out->traces = t;
    t += out->n_traces;
    memset(t, 0, sizeof *t);
    t->data = malloc(n * sizeof *t->data);
    if (!t->data)
        return esp_fail(err, ESP_E_NOMEM, "trace");
    out->n_traces++;
    memcpy(t->data, s->space.out.map, n * sizeof *t->data);
    snprintf(t->name, sizeof t->name, "%s", seg->name);
    t->rows = n_row;
    t->width = seg->width;
    return ESP_OK;
}

/* Runs programs one after the other on the sealed batch; with `trace`, one segment at a time, each looked at.
 */
esp_status esp_stage_run(struct esp_stage *s, const struct esp_program *const *programs, uint32_t n_program,
                         bool apart, bool trace, struct esp_stage_out *out, struct esp_err *err)
{
    VkCommandBuffer cmds[ESP_MAX_BATCH];
    uint32_t n = 0;
    const double t0 = esp_now_seconds();
    esp_status st = ESP_OK;

    for (uint32_t p = 0; !st && p < n_program; p++) {
        for (uint32_t i = 0; !st && i < programs[p]->n; i++) {
            const struct esp_segment *seg = &programs[p]->seg[i];
            if (n == ESP_MAX_BATCH) {
                st = esp_submit_wait(s->vk, cmds, n, apart, err);
                n = 0;
                if (st)
                    break;
            }
            cmds[n++] = seg->cmd;
            if (trace) {
                st = esp_submit_wait(s->vk, cmds, n, true, err);
                n = 0;
                if (!st)
                    st = trace_take(s, seg, s->batch.count[ESP_COUNT_ROWS], out, err);
            }
        }
    }
    if (!st)
        st = esp_submit_wait(s->vk, cmds, n, apart, err);
    if (st == ESP_E_DEVICE)
        s->lost = true;
    if (s->space.profile) {
        struct esp_profile_counts counts;
        esp_batch_counts(&s->batch, &counts);
        esp_profile_collect(s->space.profile, &counts);
    }
    out->compute_seconds += esp_now_seconds() - t0;
    return st;
}

esp_status esp_stage_take_rows(struct esp_stage *s, uint32_t n_row, uint32_t width, struct esp_stage_out *out,
                               struct esp_err *err)
{
    const size_t n = (size_t)n_row * width;

    out->rows = malloc(n * sizeof *out->rows);
    if (!out->rows)
        return esp_fail(err, ESP_E_NOMEM, "%u rows of output", n_row);
    memcpy(out->rows, s->space.out.map, n * sizeof *out->rows);
    out->n_rows = n_row;
    out->width = width;
    for (size_t i = 0; i < n; i++)
        if (!isfinite(out->rows[i]))
            return esp_stage_no_number(s, err, "row %zu of the output", i / width);
    return ESP_OK;
}

/* Zeros where numbers went wrong: activations (features apart), and with `kv` the keys and values that the sealed
 * batch's rows wrote. Both are multiplied by zero weights later, and zero times a NaN is a NaN. */
static esp_status cleanse(struct esp_stage *s, bool kv, struct esp_err *err)
{
    const VkDeviceSize all = s->ps.at.act_texels * 16;
    const VkDeviceSize kept = s->spec.embed ? (VkDeviceSize)s->ps.at.features.at * 16 : all;
    const VkDeviceSize resume =
        s->spec.embed
            ? kept + (VkDeviceSize)s->spec.max_images * s->c->vision.n_token * s->ps.at.features.stride * 16
            : all;
    VkCommandBuffer cmd;
    esp_status st = esp_cmd_once_begin(&cmd, s->vk, err);

    if (!st) {
        esp_cmd_barrier(cmd);
        if (kept)
            vkCmdFillBuffer(cmd, s->space.act.buf, 0, kept, 0);
        if (resume < all)
            vkCmdFillBuffer(cmd, s->space.act.buf, resume, all - resume, 0);
        st = esp_cmd_once_run(&cmd, s->vk, err);
    }
    for (uint32_t i = 0; !st && kv && i < s->ps.store_kv.n; i++)
        st = esp_submit_wait(s->vk, &s->ps.store_kv.seg[i].cmd, 1, false, err);
    if (st)
        s->lost = true;
    return st;
}

esp_status esp_stage_no_number(struct esp_stage *s, struct esp_err *err, const char *fmt, ...)
{
    struct esp_err why = {0};
    char where[128];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(where, sizeof where, fmt, ap);
    va_end(ap);
    if (cleanse(s, s->stepping, &why))
        return esp_fail(err, ESP_E_DEVICE, "%s", why.text);
    return esp_fail(err, ESP_E_NUMBERS,
                    "%s is no finite number: the weights overflow float32, or %s computes wrongly", where,
                    s->vk->report.name);
}
