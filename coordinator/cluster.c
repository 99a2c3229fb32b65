#include "coordinator/cluster.h"

#include <stdlib.h>
#include <string.h>

#include "coordinator/cost.h"
#include "coordinator/placement.h"
#include "coordinator/split.h"

#define VK_TYPE_CPU 4 /* VkPhysicalDeviceType */

bool esp_cluster_has(const struct esp_cluster *cluster, const struct esp_worker *worker)
{
    for (uint32_t i = 0; i < cluster->n_stages; i++)
        if (cluster->stage[i] == worker)
            return true;
    return false;
}

void esp_cluster_drop(struct esp_cluster *cluster)
{
    cluster->placed = cluster->ready = false;
    cluster->n_enc = cluster->n_dec = cluster->n_stages = 0;
}

static struct esp_worker *after(struct esp_worker *const *list, uint32_t n, const struct esp_worker *worker)
{
    for (uint32_t i = 0; i + 1 < n; i++)
        if (list[i] == worker)
            return list[i + 1];
    return NULL;
}

void esp_cluster_place(struct esp_msg *msg, const struct esp_cluster *cluster,
                       const struct esp_worker *worker)
{
    const struct esp_worker *next_enc = after(cluster->enc, cluster->n_enc, worker);
    const struct esp_worker *next_dec = after(cluster->dec, cluster->n_dec, worker);

    memset(msg, 0, sizeof *msg);
    msg->kind = ESP_MSG_PLACE;
    msg->place = worker->place;
    msg->place.next_enc = next_enc ? next_enc->endpoint : "";
    msg->place.next_dec = next_dec ? next_dec->endpoint : "";
    msg->place.features_to = "";
    msg->place.next_enc_key = next_enc ? next_enc->key : "";
    msg->place.next_dec_key = next_dec ? next_dec->key : "";
    msg->place.features_to_key = "";
    if (worker->place.projector && cluster->n_dec > 0 && cluster->dec[0] != worker) {
        msg->place.features_to = cluster->dec[0]->endpoint;
        msg->place.features_to_key = cluster->dec[0]->key;
    }
}

esp_status esp_cluster_ready(struct esp_cluster *cluster, struct esp_worker *worker,
                             const struct esp_msg_ready *ready, struct esp_err *err)
{
    const bool decodes = worker->place.dec_lo < worker->place.dec_hi;
    bool all = true;

    if (worker->state == ESP_WORKER_SPARE)
        return ESP_OK; /* it has nothing to be ready with */
    if (worker->state != ESP_WORKER_LOADING || !esp_cluster_has(cluster, worker))
        return esp_fail(err, ESP_E_PROTO, "ready, but it was not loading anything");
    if (decodes && (ready->kv_blocks == 0 || ready->block_tokens == 0))
        return esp_fail(err, ESP_E_PROTO, "ready as a decoder stage without any KV block");
    for (uint32_t i = 0; decodes && i < cluster->n_dec; i++) {
        const struct esp_worker *w = cluster->dec[i];

        if (w->state == ESP_WORKER_READY && w->ready.block_tokens != ready->block_tokens)
            return esp_fail(err, ESP_E_PROTO, "KV blocks of %u tokens, those of %s have %u",
                            ready->block_tokens, w->name, w->ready.block_tokens);
    }
    worker->ready = *ready;
    worker->state = ESP_WORKER_READY;
    worker->done_bytes = worker->total_bytes;
    for (uint32_t i = 0; i < cluster->n_stages; i++)
        all &= cluster->stage[i]->state == ESP_WORKER_READY;
    cluster->ready = cluster->placed && all;
    return ESP_OK;
}

void esp_cluster_loading(const struct esp_cluster *cluster, uint64_t *done, uint64_t *total)
{
    *done = *total = 0;
    for (uint32_t i = 0; i < cluster->n_stages; i++) {
        const uint64_t d = cluster->stage[i]->done_bytes, t = cluster->stage[i]->total_bytes;

        if (t <=
            UINT64_MAX - *total) { /* a peer's numbers: they only feed a progress bar, but must not wrap */
            *done += d;
            *total += t;
        }
    }
}

void esp_cluster_kv(const struct esp_cluster *cluster, uint64_t *n_blocks, uint32_t *block_tokens)
{
    *n_blocks = UINT64_MAX;
    *block_tokens = 1;
    for (uint32_t i = 0; i < cluster->n_dec; i++) {
        const struct esp_msg_ready *r = &cluster->dec[i]->ready;

        if (r->kv_blocks < *n_blocks)
            *n_blocks = r->kv_blocks;
        *block_tokens = r->block_tokens;
    }
    if (*n_blocks > UINT32_MAX)
        *n_blocks = UINT32_MAX; /* far beyond memory: keeps products of it in range */
}

void esp_cluster_info(struct esp_stage_info *out, const struct esp_worker *worker)
{
    const bool ready = worker->state == ESP_WORKER_READY;

    *out = (struct esp_stage_info){.worker = worker->name,
                                   .device = worker->device_name,
                                   .driver = worker->device_driver,
                                   .variant = worker->device_variant,
                                   .enc_lo = worker->place.enc_lo,
                                   .enc_hi = worker->place.enc_hi,
                                   .dec_lo = worker->place.dec_lo,
                                   .dec_hi = worker->place.dec_hi,
                                   .weight_bytes = ready ? worker->ready.weight_bytes : 0,
                                   .kv_bytes = ready ? worker->ready.kv_bytes : 0,
                                   .scratch_bytes = ready ? worker->ready.scratch_bytes : 0,
                                   .software = worker->device.type == VK_TYPE_CPU};
}

/* A worker with nothing to do yet in this epoch. */
static void place_spare(const struct esp_cluster *cluster, struct esp_worker *w)
{
    w->epoch = cluster->epoch;
    w->place = (struct esp_msg_place){.epoch = cluster->epoch};
    w->state = ESP_WORKER_SPARE;
    w->done_bytes = w->total_bytes = 0;
    memset(&w->ready, 0, sizeof w->ready);
    w->predicted = (struct esp_stage_plan){0};
}

/* What the model's weights take a number on a device: the widest type of its large tensors, as stored. */
static double bytes_per_weight(const struct esp_checkpoint *ck)
{
    static const enum esp_role large[] = {ESP_T_EMBED, ESP_T_GATE_W, ESP_T_Q_W, ESP_V_FC1_W, ESP_V_Q_W};
    size_t most = 0;

    for (size_t i = 0; i < sizeof large / sizeof large[0]; i++) {
        const struct esp_tensor *t = esp_checkpoint_tensor(ck, large[i], 0);
        const size_t n = t ? esp_dtype_n_bytes(t->dtype) : 0;

        most = n > most ? n : most;
    }
    return most ? (double)most : 2;
}

esp_status esp_cluster_options_check(const struct esp_cluster_options *options,
                                     const struct esp_config *config, struct esp_err *err)
{
    struct esp_split split;

    if (!options->split)
        return ESP_OK;
    if (esp_split_parse(&split, options->split, config->vision.n_layer, config->text.n_layer, err))
        return esp_err_prefix(err, "--split: ");
    return ESP_OK;
}

static esp_status search(struct esp_placement *out, const struct esp_place_worker *reports, uint32_t n,
                         const struct esp_checkpoint *ck, const struct esp_cluster_options *o,
                         struct esp_err *err)
{
    const struct esp_config *config = esp_checkpoint_config(ck);
    const struct esp_cost_options cost_options = {.bytes_per_weight = bytes_per_weight(ck),
                                                  .n_image = 1,
                                                  .max_rows = o->sizing.context,
                                                  .max_seqs = ESP_CLUSTER_LOGIT_ROWS};
    struct esp_place_options place_options;
    struct esp_model_cost cost;
    struct esp_split split;
    esp_status st = esp_model_cost_fill(&cost, config, &cost_options, err);

    esp_place_options_init(&place_options, o->sizing.kv_tokens);
    if (!st && o->split) {
        st = esp_split_parse(&split, o->split, config->vision.n_layer, config->text.n_layer, err);
        place_options.split = &split;
    }
    return st ? st : esp_place(out, &cost, reports, n, &place_options, err);
}

static void place_stage(const struct esp_cluster *cluster, struct esp_worker *w,
                        const struct esp_place_stage *stage, const struct esp_cluster_options *o)
{
    w->epoch = cluster->epoch;
    w->state = ESP_WORKER_LOADING;
    w->done_bytes = 0;
    w->total_bytes = stage->weight_bytes; /* until it tells better */
    memset(&w->ready, 0, sizeof w->ready);
    w->predicted = (struct esp_stage_plan){
        .encode = stage->encode_seconds, .prefill = stage->prefill_seconds, .decode = stage->decode_seconds};
    w->place = (struct esp_msg_place){.epoch = cluster->epoch,
                                      .enc_lo = stage->enc_lo,
                                      .enc_hi = stage->enc_hi,
                                      .dec_lo = stage->dec_lo,
                                      .dec_hi = stage->dec_hi,
                                      .patch = stage->patch,
                                      .projector = stage->projector,
                                      .embed = stage->embed,
                                      .head = stage->head,
                                      .max_rows = o->sizing.context,
                                      .kv_tokens = o->sizing.kv_tokens,
                                      .max_seqs = ESP_CLUSTER_MAX_SEQS,
                                      .max_images = o->sizing.max_images + ESP_CLUSTER_ENCODES,
                                      .final_softcap = o->final_softcap};
}

esp_status esp_cluster_plan(struct esp_cluster *cluster, struct esp_roster *roster,
                            const struct esp_checkpoint *ck, const struct esp_cluster_options *options,
                            struct esp_err *err)
{
    struct esp_worker *who[ESP_PLACE_MAX_WORKERS];
    struct esp_place_worker reports[ESP_PLACE_MAX_WORKERS];
    struct esp_placement *p = NULL;
    uint32_t n = 0;
    esp_status st = ESP_OK;

    esp_cluster_drop(cluster);
    for (uint32_t i = 0; i < esp_roster_count(roster) && n < ESP_PLACE_MAX_WORKERS; i++) {
        struct esp_worker *w = esp_roster_at(roster, i);

        if (w->state == ESP_WORKER_FAILED || w->lost)
            continue;
        reports[n] = (struct esp_place_worker){.name = w->name,
                                               .device = w->device_name,
                                               .memory_bytes = w->device.memory_bytes,
                                               .max_alloc_bytes = w->device.max_alloc_bytes,
                                               .bandwidth = w->device.bandwidth,
                                               .matmul_rate = w->device.matmul_rate};
        who[n++] = w;
    }
    p = calloc(1, sizeof *p);
    if (!p) {
        st = esp_fail(err, ESP_E_NOMEM, "a placement");
        goto done;
    }
    st = search(p, reports, n, ck, options, err);
    if (st)
        goto done;
    cluster->epoch++;
    for (uint32_t i = 0; i < esp_roster_count(roster); i++)
        if (esp_roster_at(roster, i)->state != ESP_WORKER_FAILED)
            place_spare(cluster, esp_roster_at(roster, i)); /* those with layers are named next */
    for (uint32_t i = 0; i < p->n_stage; i++) {
        cluster->stage[i] = who[p->stage[i].worker];
        place_stage(cluster, cluster->stage[i], &p->stage[i], options);
    }
    for (uint32_t i = 0; i < p->n_enc_stage; i++)
        cluster->enc[i] = cluster->stage[p->enc_order[i]];
    for (uint32_t i = 0; i < p->n_dec_stage; i++)
        cluster->dec[i] = cluster->stage[p->dec_order[i]];
    cluster->n_stages = p->n_stage;
    cluster->n_enc = p->n_enc_stage;
    cluster->n_dec = p->n_dec_stage;
    cluster->latency = p->latency_seconds;
    cluster->bottleneck = p->bottleneck_seconds;
    cluster->fewer = p->fewer;
    cluster->fewer_latency = p->fewer_seconds;
    cluster->placed = true;
done:
    free(p);
    return st;
}

void esp_cluster_add_spare(const struct esp_cluster *cluster, struct esp_worker *worker)
{
    place_spare(cluster, worker);
}
