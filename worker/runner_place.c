/* What the runner's thread does for placements: the stage's making, and layers that move. */
#include <stdlib.h>
#include <string.h>

#include "worker/runner_state.h"

static bool on_progress(void *arg, uint64_t done_bytes, uint64_t total_bytes)
{
    struct esp_runner *r = arg;
    bool go_on;

    esp_runner_tell_loading(r, r->loading, done_bytes, total_bytes);
    pthread_mutex_lock(&r->lock);
    go_on = !r->stop && r->n_places == 0;
    pthread_mutex_unlock(&r->lock);
    return go_on;
}

struct esp_stage_spec esp_runner_spec(const struct esp_msg_place *p)
{
    return (struct esp_stage_spec){
        .enc_lo = p->enc_lo,
        .enc_hi = p->enc_hi,
        .dec_lo = p->dec_lo,
        .dec_hi = p->dec_hi,
        .patch = p->patch,
        .projector = p->projector,
        .embed = p->embed,
        .head = p->head,
        .max_rows = p->max_rows,
        .kv_tokens = p->kv_tokens,
        .max_seqs = p->max_seqs,
        .max_images = p->max_images,
        .final_softcap = p->final_softcap,
        .weights = (enum esp_wtype)p->weights,
    };
}

static bool same_spec(const struct esp_stage_spec *a, const struct esp_stage_spec *b)
{
    return a->enc_lo == b->enc_lo && a->enc_hi == b->enc_hi && a->dec_lo == b->dec_lo &&
           a->dec_hi == b->dec_hi && a->patch == b->patch && a->projector == b->projector &&
           a->embed == b->embed && a->head == b->head && a->max_rows == b->max_rows &&
           a->kv_tokens == b->kv_tokens && a->max_seqs == b->max_seqs && a->max_images == b->max_images &&
           a->final_softcap == b->final_softcap && a->weights == b->weights;
}

void esp_runner_place(struct esp_runner *r, struct esp_work *work)
{
    const struct esp_msg_place *p = &work->msg.place;
    const struct esp_stage_spec spec = esp_runner_spec(p);
    uint64_t start = esp_now_ns();
    uint32_t had_lo = 0, had_hi = 0;
    bool as_it_is = false;

    esp_stage_destroy(&r->former);
    esp_queue_clear(&r->held);
    if (work->carry && r->intake.n_left > 0) {
        work->status = esp_fail(&work->err, ESP_E_PROTO, "KV of %u layers of epoch %llu has not come",
                                r->intake.n_left, (unsigned long long)p->carry);
    } else if (work->carry) {
        had_lo = r->spec.dec_lo;
        had_hi = r->spec.dec_hi;
        as_it_is = r->stage && same_spec(&r->spec, &spec);
        if (r->stage && !as_it_is) {
            esp_stage_retire(r->stage);
            r->former = r->stage;
            r->stage = NULL;
        }
    }
    if (!as_it_is) /* first, so that both need not fit into the device's memory at once */
        esp_stage_destroy(&r->stage);
    if (!as_it_is && !work->status && (p->enc_lo < p->enc_hi || p->dec_lo < p->dec_hi)) {
        r->loading = work;
        r->progress_ns = 0;
        work->status = esp_stage_create(&r->stage, r->shelf, &spec, r->former, on_progress, r, &work->err);
        r->loading = NULL;
    }
    if (r->stage)
        esp_stage_info(r->stage, &work->info);
    if (as_it_is)
        work->info.loaded_bytes = 0;
    if (work->status || p->n_moves == 0)
        esp_stage_destroy(&r->former);
    r->spec = work->status ? (struct esp_stage_spec){0} : spec;
    memset(&r->intake, 0, sizeof r->intake);
    if (!work->status && p->carry)
        esp_intake_begin(&r->intake, p->dec_lo, p->dec_hi, had_lo, had_hi);
    work->load_seconds = 1e-9 * (double)(esp_now_ns() - start);
}

/* ---- moving ---- */

void esp_runner_export(struct esp_runner *r, struct esp_work *work)
{
    const uint32_t layer = work->msg.kv_blocks.layer;

    if (!r->former) {
        work->status = esp_fail(&work->err, ESP_E_PROTO, "nothing of an earlier placement is kept here");
    } else if (work->msg.kind == ESP_MSG_ENCODE) {
        work->status =
            r->spec.embed
                ? esp_fail(&work->err, ESP_E_PROTO, "picture features were not given away")
                : esp_stage_export_features(r->former, work->msg.encode.image, &work->out, &work->err);
    } else if (layer >= r->spec.dec_lo && layer < r->spec.dec_hi) {
        work->status = esp_fail(&work->err, ESP_E_PROTO, "decoder layer %u was not given away", layer);
    } else {
        work->status = esp_stage_export_kv(r->former, layer, work->msg.kv_blocks.first, ESP_MOVE_BYTES,
                                           &work->kv, &work->err);
    }
}

void esp_runner_import(struct esp_runner *r, struct esp_work *work)
{
    const struct esp_msg_kv_blocks *m = &work->msg.kv_blocks;
    const struct esp_blob none = {0}, *blob = work->msg.n_blobs > 0 ? &work->msg.blob[0] : &none;

    work->status = esp_intake_check(&r->intake, m, &work->from, &work->err);
    if (!work->status)
        work->status = esp_stage_import_kv(r->stage, m, blob->data, &work->err);
    if (!work->status)
        work->layer_done = esp_intake_took(&r->intake, m, blob->n_bytes, &work->from, &work->layer_bytes);
}

/* ---- another checkpoint ---- */

void esp_runner_manifest(struct esp_runner *r, struct esp_work *work)
{
    struct esp_checkpoint *before = r->ck;

    esp_stage_destroy(&r->former);
    esp_stage_destroy(&r->stage);
    esp_queue_clear(&r->held);
    memset(&r->intake, 0, sizeof r->intake);
    r->spec = (struct esp_stage_spec){0};
    if (r->ck)
        esp_shelf_destroy(&r->shelf);
    r->shelf = work->shelf;
    work->shelf = NULL;
    r->ck = work->ck;
    work->ck = before;
}
