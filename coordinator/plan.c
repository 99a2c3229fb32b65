#include "coordinator/plan.h"

#include <stdlib.h>
#include <string.h>

#include "coordinator/cost.h"
#include "coordinator/split.h"
#include "model/quant.h"
#include "model/roles.h"

/* What weights of some large roles take a number on a device, at most. */
static double bytes_per_weight(const struct esp_checkpoint *ck, const enum esp_role *roles, size_t n,
                               enum esp_wtype want)
{
    double most = 0;

    for (size_t i = 0; i < n; i++) {
        const struct esp_tensor *t = esp_checkpoint_tensor(ck, roles[i], 0);
        enum esp_wtype type = esp_role_wtype(esp_checkpoint_config(ck), roles[i], want);
        double bytes;

        if (type == ESP_W_STORED && t)
            type = esp_wtype_of(t->dtype);
        bytes = (double)esp_wtype_n_bytes(type, ESP_QUANT_BLOCK) / ESP_QUANT_BLOCK;
        most = bytes > most ? bytes : most;
    }
    return most > 0 ? most : 2;
}

/* The inputs of a placement, as placement.h wants them. */
struct work {
    const struct esp_plan_input *in;
    struct esp_model_cost cost;
    struct esp_place_options options;
    struct esp_split split;
    uint32_t n;
    struct esp_worker *who[ESP_PLACE_MAX_WORKERS];
    struct esp_place_worker report[ESP_PLACE_MAX_WORKERS];
    struct esp_placement placement, other;
    struct esp_place_share share[ESP_PLACE_MAX_WORKERS];
    bool taken[ESP_PLACE_MAX_WORKERS];
};

static esp_status work_create(struct work **out, const struct esp_plan_input *in, struct esp_err *err)
{
    const struct esp_config *config = esp_checkpoint_config(in->ck);
    const struct esp_cluster_options *o = in->options;
    static const enum esp_role text[] = {ESP_T_GATE_W, ESP_T_O_W}, careful[] = {ESP_T_EMBED, ESP_T_Q_W},
                               vision[] = {ESP_V_FC1_W, ESP_V_Q_W};
    const struct esp_cost_options cost_options = {
        .bytes_per_weight = bytes_per_weight(in->ck, text, 2, o->weights),
        .careful_bytes = bytes_per_weight(in->ck, careful, 2, o->weights),
        .vision_bytes = bytes_per_weight(in->ck, vision, 2, o->weights),
        .n_image = 1,
        .max_rows = o->sizing.context,
        .max_seqs = ESP_CLUSTER_LOGIT_ROWS};
    struct work *k = calloc(1, sizeof *k);
    esp_status st;

    *out = k;
    if (!k)
        return esp_fail(err, ESP_E_NOMEM, "a placement");
    k->in = in;
    for (uint32_t i = 0; i < esp_roster_count(in->roster) && k->n < ESP_PLACE_MAX_WORKERS; i++) {
        struct esp_worker *w = esp_roster_at(in->roster, i);

        if (w->state == ESP_WORKER_FAILED || w->lost || w->draining)
            continue;
        k->report[k->n] = (struct esp_place_worker){.name = w->name,
                                                    .device = w->device_name,
                                                    .memory_bytes = w->device.memory_bytes,
                                                    .max_alloc_bytes = w->device.max_alloc_bytes,
                                                    .bandwidth = w->device.bandwidth,
                                                    .matmul_rate = w->device.matmul_rate};
        k->who[k->n++] = w;
    }
    st = esp_model_cost_fill(&k->cost, config, &cost_options, err);
    esp_place_options_init(&k->options, o->sizing.kv_tokens);
    if (!st && o->split) {
        st = esp_split_parse(&k->split, o->split, config->vision.n_layer, config->text.n_layer, err);
        k->options.split = &k->split;
    }
    return st;
}

static void fill(struct esp_plan *out, const struct work *k, const struct esp_placement *p)
{
    const struct esp_cluster_options *o = k->in->options;

    memset(out, 0, sizeof *out);
    out->n_stages = p->n_stage;
    out->n_enc = p->n_enc_stage;
    out->n_dec = p->n_dec_stage;
    for (uint32_t i = 0; i < p->n_stage; i++) {
        const struct esp_place_stage *s = &p->stage[i];

        out->stage[i] =
            (struct esp_plan_stage){.worker = k->who[s->worker],
                                    .predicted = {.encode = s->encode_seconds,
                                                  .prefill = s->prefill_seconds,
                                                  .decode = s->decode_seconds},
                                    .weight_bytes = s->weight_bytes,
                                    .place = {.enc_lo = s->enc_lo,
                                              .enc_hi = s->enc_hi,
                                              .dec_lo = s->dec_lo,
                                              .dec_hi = s->dec_hi,
                                              .patch = s->patch,
                                              .projector = s->projector,
                                              .embed = s->embed,
                                              .head = s->head,
                                              .max_rows = o->sizing.context,
                                              .kv_tokens = o->sizing.kv_tokens,
                                              .max_seqs = ESP_CLUSTER_MAX_SEQS,
                                              .max_images = o->sizing.max_images + ESP_CLUSTER_ENCODES,
                                              .final_softcap = o->final_softcap,
                                              .weights = (uint32_t)o->weights}};
    }
    memcpy(out->enc, p->enc_order, sizeof out->enc);
    memcpy(out->dec, p->dec_order, sizeof out->dec);
    out->latency = p->latency_seconds;
    out->bottleneck = p->bottleneck_seconds;
    out->fewer = p->fewer;
    out->fewer_latency = p->fewer_seconds;
}

static esp_status best(struct work *k, struct esp_err *err)
{
    return esp_place(&k->placement, &k->cost, k->report, k->n, &k->options, err);
}

esp_status esp_plan_best(struct esp_plan *out, const struct esp_plan_input *in, struct esp_err *err)
{
    struct work *k;
    esp_status st = work_create(&k, in, err);

    if (!st)
        st = best(k, err);
    if (!st)
        fill(out, k, &k->placement);
    free(k);
    return st;
}

/* The worker of that name; n if none takes part. */
static uint32_t named(const struct work *k, const char *name)
{
    uint32_t w = 0;

    while (w < k->n && strcmp(k->who[w]->name, name) != 0)
        w++;
    return w;
}

static void give(struct work *k, uint32_t w, const struct esp_place_share *share)
{
    k->share[w] = *share;
    k->taken[w] = true;
}

/* What stood, as shares of the workers that are here. False if one of them is not. */
static bool resume(struct work *k, const struct esp_plan_share *stood, uint32_t n_stood)
{
    bool whole = true;

    for (uint32_t i = 0; i < n_stood; i++) {
        const uint32_t w = named(k, stood[i].worker);

        if (w < k->n)
            give(k, w, &stood[i].share);
        else
            whole = false;
    }
    return whole;
}

static esp_status weigh(struct work *k, struct esp_placement *out)
{
    return esp_place_as(out, &k->cost, k->report, k->n, &k->options, k->share, NULL);
}

/* Gives each share that has lost its worker to the spare that does best with it. False: there is none that could. */
static bool substitute(struct work *k, const struct esp_plan_share *stood, uint32_t n_stood)
{
    for (uint32_t i = 0; i < n_stood; i++) {
        uint32_t spare = UINT32_MAX;
        double most = 0;

        if (named(k, stood[i].worker) < k->n)
            continue;
        for (uint32_t w = 0; w < k->n; w++) { /* what counts is decoding, and that is bandwidth */
            if (k->taken[w] || k->report[w].bandwidth <= most)
                continue;
            most = k->report[w].bandwidth;
            spare = w;
        }
        if (spare == UINT32_MAX)
            return false;
        give(k, spare, &stood[i].share);
    }
    return weigh(k, &k->other) == ESP_OK;
}

esp_status esp_plan_again(struct esp_plan *out, const struct esp_plan_input *in,
                          const struct esp_plan_share *stood, uint32_t n_stood, struct esp_err *err)
{
    struct work *k;
    esp_status st = work_create(&k, in, err);

    if (!st)
        st = best(k, err);
    if (!st) {
        (void)resume(k, stood, n_stood);
        if (!in->options->split && n_stood > 0 && substitute(k, stood, n_stood) &&
            k->other.bottleneck_seconds <= ESP_PLAN_KEEP * k->placement.bottleneck_seconds) {
            k->other.fewer = k->placement.fewer;
            k->other.fewer_seconds = k->placement.fewer_seconds;
            fill(out, k, &k->other);
        } else {
            fill(out, k, &k->placement);
        }
    }
    free(k);
    return st;
}

bool esp_plan_pays(struct esp_plan *out, const struct esp_plan_input *in, const struct esp_plan_share *stood,
                   uint32_t n_stood)
{
    struct work *k;
    bool pays = work_create(&k, in, NULL) == ESP_OK && !in->options->split && resume(k, stood, n_stood) &&
                weigh(k, &k->other) == ESP_OK && best(k, NULL) == ESP_OK &&
                k->placement.bottleneck_seconds <= ESP_PLAN_GAIN * k->other.bottleneck_seconds;

    if (pays && out)
        fill(out, k, &k->placement);
    free(k);
    return pays;
}

uint32_t esp_plan_find(const struct esp_plan *plan, const struct esp_worker *worker)
{
    uint32_t i = 0;

    while (i < plan->n_stages && plan->stage[i].worker != worker)
        i++;
    return i;
}

/* The stage after stage i along a chain, or NULL. */
static const struct esp_worker *after(const struct esp_plan *plan, const uint32_t *chain, uint32_t n,
                                      uint32_t i)
{
    for (uint32_t j = 0; j + 1 < n; j++)
        if (chain[j] == i)
            return plan->stage[chain[j + 1]].worker;
    return NULL;
}

void esp_plan_place(struct esp_msg *msg, const struct esp_plan *plan, uint32_t i, uint64_t epoch)
{
    const struct esp_plan_stage *s = &plan->stage[i];
    const struct esp_worker *next_enc = after(plan, plan->enc, plan->n_enc, i);
    const struct esp_worker *next_dec = after(plan, plan->dec, plan->n_dec, i);
    const struct esp_worker *first_dec = plan->stage[plan->dec[0]].worker;

    memset(msg, 0, sizeof *msg);
    msg->kind = ESP_MSG_PLACE;
    msg->place = s->place;
    msg->place.epoch = epoch;
    msg->place.next_enc = next_enc ? next_enc->endpoint : "";
    msg->place.next_dec = next_dec ? next_dec->endpoint : "";
    msg->place.features_to = "";
    msg->place.next_enc_key = next_enc ? next_enc->key : "";
    msg->place.next_dec_key = next_dec ? next_dec->key : "";
    msg->place.features_to_key = "";
    if (s->place.projector && first_dec != s->worker) {
        msg->place.features_to = first_dec->endpoint;
        msg->place.features_to_key = first_dec->key;
    }
}
