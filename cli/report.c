#include "cli/report.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "cli/report_json.h"

json_t *esp_json_number(double v)
{
    return isfinite(v) ? json_real(v) : json_null();
}

json_t *esp_json_numbers(const double *v, size_t n)
{
    json_t *array = json_array();
    for (size_t i = 0; array && i < n; i++) {
        if (json_array_append_new(array, esp_json_number(v[i])) != 0) {
            json_decref(array);
            return NULL;
        }
    }
    return array;
}

json_t *esp_json_ids(const uint32_t *ids, size_t n)
{
    json_t *array = json_array();
    for (size_t i = 0; array && i < n; i++) {
        if (json_array_append_new(array, json_integer(ids[i])) != 0) {
            json_decref(array);
            return NULL;
        }
    }
    return array;
}

static bool set_hypothesis(json_t *o, const struct esp_hypothesis *h)
{
    bool ok = true;

    SET(o, "text", json_string(h->text));
    SET(o, "ids", esp_json_ids(h->ids, h->n_ids));
    SET(o, "logprobs", esp_json_numbers(h->logprobs, h->n_ids < h->n_logprobs ? h->n_ids : h->n_logprobs));
    SET(o, "eos_logprob", h->n_logprobs > h->n_ids ? esp_json_number(h->logprobs[h->n_ids]) : json_null());
    SET(o, "finish", json_string(h->finish));
    return ok;
}

static json_t *layers(uint32_t lo, uint32_t hi)
{
    return json_pack("[I,I]", (json_int_t)lo, (json_int_t)(hi > lo ? hi : lo));
}

bool esp_json_set_stage(json_t *o, const struct esp_stage_info *s)
{
    bool ok = true;

    SET(o, "worker", json_string(s->worker));
    SET(o, "device", json_string(s->device));
    SET(o, "driver", json_string(s->driver));
    SET(o, "variant", json_string(s->variant));
    SET(o, "software", json_boolean(s->software));
    SET(o, "encoder", layers(s->enc_lo, s->enc_hi));
    SET(o, "decoder", layers(s->dec_lo, s->dec_hi));
    SET(o, "weight_bytes", json_integer((json_int_t)s->weight_bytes));
    SET(o, "kv_bytes", json_integer((json_int_t)s->kv_bytes));
    SET(o, "scratch_bytes", json_integer((json_int_t)s->scratch_bytes));
    return ok;
}

static bool set_common(json_t *o, const struct esp_reply *reply)
{
    const struct esp_msg_accepted *a = &reply->accepted->accepted;
    const struct esp_msg_done *d = &reply->done->done;
    json_t *timing = json_object(), *stages = json_array();
    bool ok = timing && stages;

    SET(o, "prompt_ids", esp_json_ids(a->prompt_ids, a->n_prompt_ids));
    SET(o, "image_tokens", json_integer(a->image_tokens));
    SET(timing, "load", esp_json_number(d->load));
    SET(timing, "encode", esp_json_number(d->encode));
    SET(timing, "prefill", esp_json_number(d->prefill));
    SET(timing, "decode", esp_json_number(d->decode));
    SET(timing, "queue", esp_json_number(d->queue));
    SET(timing, "images_cached", json_integer(d->images_cached));
    SET(timing, "rebuilds", json_integer(d->rebuilds));
    SET(o, "timing", timing);
    for (uint32_t i = 0; ok && i < a->n_stages; i++) {
        json_t *stage = json_object();
        ok = stage && esp_json_set_stage(stage, &a->stages[i]);
        for (uint32_t t = 0; ok && t < d->n_times; t++) {
            if (strcmp(d->times[t].worker, a->stages[i].worker) == 0) {
                SET(stage, "compute_seconds", esp_json_number(d->times[t].compute_seconds));
                SET(stage, "queue_seconds", esp_json_number(d->times[t].queue_seconds));
            }
        }
        ok &= json_array_append_new(stages, stage) == 0;
    }
    SET(o, "stages", stages);
    return ok;
}

esp_status esp_json_hand_over(json_t **out, json_t *o, bool ok, struct esp_err *err)
{
    *out = o;
    if (o && ok)
        return ESP_OK;
    json_decref(o);
    *out = NULL;
    return esp_fail(err, ESP_E_NOMEM, "JSON: out of memory");
}

esp_status esp_report_run(json_t **out, const struct esp_reply *reply, const struct esp_findings *found,
                          bool several, struct esp_err *err)
{
    const struct esp_msg_done *d = &reply->done->done;
    json_t *o = json_object();
    bool ok = o && set_hypothesis(o, &d->best) && esp_json_set_findings(o, found) && set_common(o, reply);

    if (ok && several) {
        json_t *all = json_array();
        SET(o, "score", esp_json_number(d->best.score));
        for (uint32_t i = 0; ok && all && i < d->n_hypotheses; i++) {
            json_t *h = json_object();
            ok = h && set_hypothesis(h, &d->hypotheses[i]);
            SET(h, "sum", esp_json_number(d->hypotheses[i].sum));
            SET(h, "score", esp_json_number(d->hypotheses[i].score));
            ok &= json_array_append_new(all, h) == 0;
        }
        SET(o, "hypotheses", all);
    }
    return esp_json_hand_over(out, o, ok, err);
}

esp_status esp_report_score(json_t **out, const struct esp_reply *reply, bool has_eos, uint32_t eos,
                            struct esp_err *err)
{
    const struct esp_hypothesis *h = &reply->done->done.best;
    json_t *o = json_object(), *ids = esp_json_ids(h->ids, h->n_ids);
    bool ok = o && ids;
    double mean = h->n_logprobs ? h->sum / h->n_logprobs : 0;

    if (ok && h->n_logprobs > h->n_ids)
        ok = json_array_append_new(ids, has_eos ? json_integer(eos) : json_null()) == 0;
    SET(o, "ids", ids);
    SET(o, "logprobs", esp_json_numbers(h->logprobs, h->n_logprobs));
    SET(o, "sum", esp_json_number(h->sum));
    SET(o, "mean", esp_json_number(mean));
    SET(o, "perplexity", esp_json_number(exp(-mean)));
    ok = ok && set_common(o, reply);
    return esp_json_hand_over(out, o, ok, err);
}

esp_status esp_report_print(json_t *json, struct esp_err *err)
{
    int r;

    if (!json)
        return esp_fail(err, ESP_E_NOMEM, "JSON: out of memory");
    errno = 0;
    r = json_dumpf(json, stdout, JSON_REAL_PRECISION(17) | JSON_ENCODE_ANY);
    json_decref(json);
    if (r != 0 || putchar('\n') == EOF || fflush(stdout) != 0)
        return esp_fail(err, ESP_E_IO, "standard output: %s",
                        errno ? strerror(errno) : "JSON cannot be written");
    return ESP_OK;
}
