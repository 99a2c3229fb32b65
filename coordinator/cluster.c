#include "coordinator/cluster.h"

#include <stdio.h>
#include <string.h>

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

void esp_cluster_place(struct esp_msg *msg, const struct esp_cluster *cluster,
                       const struct esp_worker *worker)
{
    const uint32_t i = esp_plan_find(&cluster->plan, worker);

    if (cluster->placed && i < cluster->plan.n_stages)
        esp_plan_place(msg, &cluster->plan, i, cluster->epoch);
    else
        *msg = (struct esp_msg){.kind = ESP_MSG_PLACE, .place = {.epoch = cluster->epoch}};
    msg->place.carry = worker->place.carry;
    msg->place.n_moves = worker->place.n_moves;
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

uint64_t esp_cluster_next_epoch(struct esp_cluster *cluster)
{
    return ++cluster->last_epoch;
}

static void place_stage(struct esp_worker *w, const struct esp_plan_stage *s, uint64_t epoch, uint64_t carry)
{
    w->epoch = epoch;
    w->state = ESP_WORKER_LOADING;
    w->done_bytes = 0;
    w->total_bytes = s->weight_bytes; /* until it tells better */
    memset(&w->ready, 0, sizeof w->ready);
    w->predicted = s->predicted;
    w->place = s->place;
    w->place.epoch = epoch;
    w->place.carry = carry;
}

void esp_cluster_apply(struct esp_cluster *cluster, struct esp_roster *roster, const struct esp_plan *plan,
                       uint64_t epoch, uint64_t carry)
{
    esp_cluster_drop(cluster);
    cluster->epoch = epoch;
    cluster->plan = *plan;
    for (uint32_t i = 0; i < esp_roster_count(roster); i++) {
        struct esp_worker *w = esp_roster_at(roster, i);

        if (w->state == ESP_WORKER_FAILED)
            continue;
        place_spare(cluster, w); /* those with layers are named next */
        w->place.carry = carry;
    }
    cluster->n_stages = cluster->n_stood = plan->n_stages;
    cluster->n_enc = plan->n_enc;
    cluster->n_dec = plan->n_dec;
    for (uint32_t i = 0; i < plan->n_stages; i++) {
        const struct esp_plan_stage *s = &plan->stage[i];

        place_stage(s->worker, s, epoch, carry);
        cluster->stage[i] = s->worker;
        snprintf(cluster->stood[i].worker, sizeof cluster->stood[i].worker, "%s", s->worker->name);
        cluster->stood[i].share = (struct esp_place_share){.enc_lo = s->place.enc_lo,
                                                           .enc_hi = s->place.enc_hi,
                                                           .dec_lo = s->place.dec_lo,
                                                           .dec_hi = s->place.dec_hi};
    }
    for (uint32_t i = 0; i < plan->n_enc; i++)
        cluster->enc[i] = cluster->stage[plan->enc[i]];
    for (uint32_t i = 0; i < plan->n_dec; i++)
        cluster->dec[i] = cluster->stage[plan->dec[i]];
    cluster->placed = true;
}

void esp_cluster_add_spare(const struct esp_cluster *cluster, struct esp_worker *worker)
{
    place_spare(cluster, worker);
}
