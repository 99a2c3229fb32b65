/* What operating a cluster tells, as JSON. */
#include <stdlib.h>

#include "cli/cluster.h"
#include "cli/report.h"
#include "cli/report_json.h"
#include "model/wtype.h"

static json_t *plan(const struct esp_stage_plan *p)
{
    return json_pack("{s:f,s:f,s:f}", "encode", p->encode, "prefill", p->prefill, "decode", p->decode);
}

/* Seconds that are not known are null, not 0. */
static json_t *seconds(double v)
{
    return v > 0 ? esp_json_number(v) : json_null();
}

static json_t *measured(const struct esp_stage_plan *p)
{
    json_t *o = json_object();
    bool ok = o != NULL;

    SET(o, "encode", seconds(p->encode));
    SET(o, "prefill", seconds(p->prefill));
    SET(o, "decode", seconds(p->decode));
    if (!ok)
        json_decref(o);
    return ok ? o : NULL;
}

static json_t *count(uint64_t n)
{
    return json_integer(n <= INT64_MAX ? (json_int_t)n : INT64_MAX);
}

static bool set_worker(json_t *o, const struct esp_worker_status *w)
{
    bool ok = esp_json_set_stage(o, &w->stage);

    SET(o, "worker", json_string(w->name)); /* those without a stage have a name and a device, too */
    SET(o, "state", json_string(w->state));
    SET(o, "cause", w->cause[0] ? json_string(w->cause) : json_null());
    SET(o, "device", json_string(w->device.name));
    SET(o, "driver", json_string(w->device.driver));
    SET(o, "variant", json_string(w->device.variant));
    SET(o, "memory_bytes", count(w->device.memory_bytes));
    SET(o, "bandwidth", esp_json_number(w->device.bandwidth));
    SET(o, "matmul_rate", esp_json_number(w->device.matmul_rate));
    SET(o, "done_bytes", count(w->done_bytes));
    SET(o, "total_bytes", count(w->total_bytes));
    SET(o, "streams", json_boolean(w->streams));
    SET(o, "predicted", plan(&w->predicted));
    SET(o, "measured", measured(&w->measured));
    SET(o, "rtt", seconds(w->rtt));
    SET(o, "busy", esp_json_number(w->busy));
    SET(o, "queued", json_integer(w->n_queued));
    SET(o, "kv_blocks", count(w->kv_blocks));
    SET(o, "kv_used_blocks", count(w->kv_used_blocks));
    SET(o, "sequences", json_integer(w->n_seqs));
    SET(o, "images", json_integer(w->n_images));
    return ok;
}

static bool set_totals(json_t *o, const struct esp_msg_status *s)
{
    bool ok = true;

    SET(o, "ready", json_boolean(s->ready));
    SET(o, "why", json_string(s->why));
    SET(o, "doing", json_string(s->doing));
    SET(o, "weights", json_string(esp_wtype_name((enum esp_wtype)s->weights)));
    SET(o, "epoch", count(s->epoch));
    SET(o, "uptime", esp_json_number(s->uptime));
    SET(o, "sessions", json_integer(s->n_sessions));
    SET(o, "queued", json_integer(s->n_queued));
    SET(o, "waiting", json_integer(s->n_waiting));
    SET(o, "tokens_per_second", esp_json_number(s->tokens_per_second));
    SET(o, "kv_blocks", count(s->kv_blocks));
    SET(o, "kv_used_blocks", count(s->kv_used_blocks));
    SET(o, "requests", count(s->n_requests));
    SET(o, "tokens", count(s->n_tokens));
    SET(o, "steps", count(s->n_steps));
    SET(o, "prefills", count(s->n_prefills));
    SET(o, "rebuilds", count(s->n_rebuilds));
    SET(o, "images_encoded", count(s->n_encodes));
    SET(o, "images_cached", count(s->n_cached));
    SET(o, "losses", count(s->n_losses));
    SET(o, "moves", count(s->n_moves));
    SET(o, "kv_moved_bytes", count(s->kv_moved_bytes));
    return ok;
}

static bool set_prediction(json_t *o, const struct esp_msg_status *s)
{
    bool ok = true;

    SET(o, "latency", seconds(s->latency));
    SET(o, "bottleneck", seconds(s->bottleneck));
    SET(o, "fewer", json_integer(s->fewer));
    SET(o, "fewer_latency", s->fewer > 0 ? seconds(s->fewer_latency) : json_null());
    return ok;
}

esp_status esp_report_status(json_t **out, const struct esp_msg_status *status, struct esp_err *err)
{
    json_t *o = json_object(), *workers = json_array();
    bool ok = o && workers && set_totals(o, status) && set_prediction(o, status);

    for (uint32_t i = 0; ok && i < status->n_workers; i++) {
        json_t *one = json_object();

        ok = one && set_worker(one, &status->workers[i]);
        ok &= json_array_append_new(workers, one) == 0;
    }
    SET(o, "workers", workers);
    return esp_json_hand_over(out, o, ok, err);
}

static json_t *chain(const struct esp_msg_status *s, bool decoder)
{
    const struct esp_worker_status **workers = calloc(s->n_workers ? s->n_workers : 1, sizeof *workers);
    const uint32_t n = workers ? esp_placement_chain(workers, s, decoder) : 0;
    json_t *array = json_array();
    bool ok = workers && array;

    for (uint32_t i = 0; ok && i < n; i++) {
        const struct esp_stage_info *g = &workers[i]->stage;
        json_t *one = json_pack("{s:s,s:[I,I]}", "worker", workers[i]->name, "layers",
                                (json_int_t)(decoder ? g->dec_lo : g->enc_lo),
                                (json_int_t)(decoder ? g->dec_hi : g->enc_hi));
        const struct esp_stage_plan *p = &workers[i]->predicted, *m = &workers[i]->measured;

        if (decoder) {
            SET(one, "prefill", esp_json_number(p->prefill));
            SET(one, "prefill_measured", seconds(m->prefill));
            SET(one, "decode", esp_json_number(p->decode));
            SET(one, "decode_measured", seconds(m->decode));
        } else {
            SET(one, "encode", esp_json_number(p->encode));
            SET(one, "encode_measured", seconds(m->encode));
        }
        ok &= json_array_append_new(array, one) == 0;
    }
    free(workers);
    if (ok)
        return array;
    json_decref(array);
    return NULL;
}

esp_status esp_report_placement(json_t **out, const struct esp_msg_status *status, struct esp_err *err)
{
    const struct esp_worker_status *busiest = esp_placement_busiest(status);
    json_t *o = json_object();
    bool ok = o && set_prediction(o, status);

    SET(o, "epoch", count(status->epoch));
    SET(o, "ready", json_boolean(status->ready));
    SET(o, "encoder", chain(status, false));
    SET(o, "decoder", chain(status, true));
    SET(o, "busiest", busiest ? json_string(busiest->name) : json_null());
    return esp_json_hand_over(out, o, ok, err);
}

esp_status esp_report_drained(json_t **out, const struct esp_msg_drained *drained, struct esp_err *err)
{
    json_t *o = json_object();
    bool ok = o != NULL;

    SET(o, "worker", json_string(drained->worker));
    SET(o, "epoch", count(drained->epoch));
    SET(o, "layers", json_integer(drained->n_layers));
    SET(o, "kv_bytes", count(drained->kv_bytes));
    SET(o, "images", json_integer(drained->n_images));
    SET(o, "seconds", esp_json_number(drained->seconds));
    SET(o, "pause", esp_json_number(drained->pause));
    return esp_json_hand_over(out, o, ok, err);
}

static json_t *verified_layer(const struct esp_verified_layer *l)
{
    if (!l->name[0])
        return json_null();
    return json_pack("{s:s,s:f,s:f}", "layer", l->name, "error", l->error, "limit", l->limit);
}

esp_status esp_report_verified(json_t **out, const struct esp_verified *workers, uint32_t n,
                               struct esp_err *err)
{
    json_t *o = json_object(), *array = json_array();
    bool ok = o && array, right = n > 0;

    for (uint32_t i = 0; ok && i < n; i++) {
        const struct esp_verified *w = &workers[i];
        const bool whole = !w->failed && w->n_done == w->n_total;
        json_t *one = json_object();

        right &= whole && w->n_wrong == 0;
        SET(one, "worker", json_string(w->worker));
        SET(one, "device", json_string(w->device));
        SET(one, "driver", json_string(w->driver));
        SET(one, "right", w->n_wrong > 0 ? json_false() : whole ? json_true() : json_null());
        SET(one, "checks", json_integer(w->n_done));
        SET(one, "wrong", json_integer(w->n_wrong));
        SET(one, "worst", verified_layer(&w->worst));
        SET(one, "first_wrong", verified_layer(&w->first_wrong));
        SET(one, "why", w->failed ? json_string(w->why.text) : json_null());
        ok &= json_array_append_new(array, one) == 0;
    }
    SET(o, "right", json_boolean(right));
    SET(o, "workers", array);
    return esp_json_hand_over(out, o, ok, err);
}
