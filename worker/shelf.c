#include "worker/shelf_state.h"

#include <stdlib.h>

esp_status esp_shelf_create(struct esp_shelf **out, struct esp_vk *vk, const struct esp_checkpoint *ck,
                            esp_shelf_need need, void *need_arg, struct esp_err *err)
{
    struct esp_shelf *sh = calloc(1, sizeof *sh);

    *out = NULL;
    if (sh) {
        sh->vk = vk;
        sh->ck = ck;
        sh->c = esp_checkpoint_config(ck);
        sh->need = need;
        sh->need_arg = need_arg;
        sh->n_held = esp_piece_count(sh->c);
        sh->held = calloc(sh->n_held, sizeof *sh->held);
    }
    if (!sh || !sh->held) {
        free(sh);
        return esp_fail(err, ESP_E_NOMEM, "list of weights");
    }
    *out = sh;
    return ESP_OK;
}

void esp_held_leave_cache(struct esp_held *h, bool whole)
{
    esp_packed_key_finish(&h->key);
    esp_packed_close(&h->from, whole);
    esp_packed_close(&h->keep, whole);
    h->looked_up = false;
}

void esp_shelf_drop(struct esp_shelf *sh, struct esp_held *h)
{
    esp_held_leave_cache(h, false);
    for (uint32_t i = 0; h->chunk && i < h->plan->n_chunk; i++)
        esp_buf_destroy(&h->chunk[i], sh->vk);
    free(h->chunk);
    *h = (struct esp_held){.plan = h->plan, .n_user = h->n_user};
}

void esp_shelf_destroy(struct esp_shelf **shelf)
{
    struct esp_shelf *sh = *shelf;

    if (!sh)
        return;
    esp_feed_destroy(&sh->feed);
    for (uint32_t i = 0; i < sh->n_held; i++) {
        esp_shelf_drop(sh, &sh->held[i]);
        free(sh->held[i].plan);
    }
    free(sh->held);
    free(sh);
    *shelf = NULL;
}

void esp_shelf_make_up(struct esp_shelf *sh)
{
    sh->make_up = true;
}

struct esp_vk *esp_shelf_vk(const struct esp_shelf *sh)
{
    return sh->vk;
}

const struct esp_checkpoint *esp_shelf_checkpoint(const struct esp_shelf *sh)
{
    return sh->ck;
}

esp_status esp_shelf_piece(const struct esp_piece **out, struct esp_shelf *sh, uint32_t piece,
                           struct esp_err *err)
{
    struct esp_held *h = &sh->held[piece];
    struct esp_piece *plan;
    esp_status st;

    *out = h->plan;
    if (h->plan)
        return ESP_OK;
    plan = malloc(sizeof *plan);
    if (!plan)
        return esp_fail(err, ESP_E_NOMEM, "list of weights");
    st = esp_piece_plan(plan, sh->ck, piece, sh->vk->cls, sh->want, sh->vk->max_alloc_bytes, err);
    if (st) {
        free(plan);
        return st;
    }
    *out = h->plan = plan;
    return ESP_OK;
}

esp_status esp_shelf_hold_as(struct esp_shelf *sh, enum esp_wtype want, struct esp_err *err)
{
    if (want == sh->want)
        return ESP_OK;
    for (uint32_t i = 0; i < sh->n_held; i++)
        if (sh->held[i].n_user > 0)
            return esp_fail(err, ESP_E_ARG, "weights as %s beside a stage that has them as %s",
                            esp_wtype_name(want), esp_wtype_name(sh->want));
    for (uint32_t i = 0; i < sh->n_held; i++) {
        esp_shelf_drop(sh, &sh->held[i]);
        free(sh->held[i].plan);
        sh->held[i] = (struct esp_held){0};
    }
    sh->want = want;
    return ESP_OK;
}

const struct esp_buf *esp_shelf_chunks(const struct esp_shelf *sh, uint32_t piece)
{
    return sh->held[piece].chunk;
}

/* ---- room ---- */

bool esp_shelf_is_of(const struct esp_shelf *sh, uint32_t piece, const struct esp_stage_spec *spec)
{
    return spec && esp_piece_of(piece, sh->c, spec);
}

uint64_t esp_shelf_outside(const struct esp_shelf *sh, const struct esp_stage_spec *spec, bool in_use)
{
    uint64_t n = 0;

    for (uint32_t i = 0; i < sh->n_held; i++)
        if (sh->held[i].chunk && !esp_shelf_is_of(sh, i, spec) && (sh->held[i].n_user > 0) == in_use)
            n += sh->held[i].plan->n_bytes;
    return n;
}

uint64_t esp_shelf_beside(const struct esp_shelf *sh, const struct esp_stage_spec *spec)
{
    return sh->other_bytes + esp_shelf_outside(sh, spec, true);
}

void esp_shelf_drop_idle(struct esp_shelf *sh, const struct esp_stage_spec *but)
{
    for (uint32_t i = 0; i < sh->n_held; i++)
        if (sh->held[i].chunk && sh->held[i].n_user == 0 && !esp_shelf_is_of(sh, i, but))
            esp_shelf_drop(sh, &sh->held[i]);
}

esp_status esp_shelf_sum(struct esp_shelf *sh, const struct esp_stage_spec *spec, uint64_t *all,
                         uint64_t *done, struct esp_err *err)
{
    const struct esp_piece *plan;

    *all = *done = 0;
    for (uint32_t i = 0; i < sh->n_held; i++) {
        if (!esp_shelf_is_of(sh, i, spec))
            continue;
        esp_status st = esp_shelf_piece(&plan, sh, i, err);
        if (st)
            return st;
        *all += plan->n_bytes;
        *done += sh->held[i].n_done;
    }
    return ESP_OK;
}

void esp_shelf_use(struct esp_shelf *sh, const struct esp_stage_spec *spec, uint64_t other_bytes)
{
    uint64_t all = 0;

    sh->other_bytes += other_bytes;
    for (uint32_t i = 0; i < sh->n_held; i++) {
        if (!esp_shelf_is_of(sh, i, spec))
            continue;
        sh->held[i].n_user++;
        sh->held[i].unwanted = false;
        all += sh->held[i].plan->n_bytes;
    }
    if (all + esp_shelf_beside(sh, spec) + esp_shelf_outside(sh, spec, false) > sh->vk->report.memory_bytes)
        esp_shelf_drop_idle(sh, spec);
}

void esp_shelf_leave(struct esp_shelf *sh, const struct esp_stage_spec *spec, uint64_t other_bytes)
{
    sh->other_bytes -= other_bytes;
    for (uint32_t i = 0; i < sh->n_held; i++) {
        if (esp_shelf_is_of(sh, i, spec) && --sh->held[i].n_user == 0 && sh->held[i].unwanted)
            esp_shelf_drop(sh, &sh->held[i]);
    }
}

void esp_shelf_settle(struct esp_shelf *sh, const struct esp_stage_spec *spec)
{
    esp_shelf_drop_idle(sh, spec);
    for (uint32_t i = 0; spec && i < sh->n_held; i++)
        sh->held[i].unwanted = sh->held[i].n_user > 0 && !esp_shelf_is_of(sh, i, spec);
}
