/* What people are told of a running cluster: the bookkeeping for it, and the Status message. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/server_state.h"

#define MEAN_WEIGHT 0.125 /* of the newest value in a mean of them */

/* ---- keeping count ---- */

static void mean(double *of, double value)
{
    *of = *of > 0 ? *of + MEAN_WEIGHT * (value - *of) : value;
}

/* The worker's means of its present layers: those of others say nothing of these. */
static struct esp_stage_plan *measured(struct esp_worker *w)
{
    const struct esp_msg_place *p = &w->place;
    struct esp_worker_tally *t = &w->tally;

    if (t->enc_lo != p->enc_lo || t->enc_hi != p->enc_hi || t->dec_lo != p->dec_lo ||
        t->dec_hi != p->dec_hi) {
        t->measured = (struct esp_stage_plan){0};
        t->enc_lo = p->enc_lo;
        t->enc_hi = p->enc_hi;
        t->dec_lo = p->dec_lo;
        t->dec_hi = p->dec_hi;
    }
    return &t->measured;
}

/* Seconds that a worker computed, by its own words; a worker may be named twice. Its device is taken to have worked up
 * to now: the message that says so has just arrived. */
static double add_busy(struct esp_worker *w, uint32_t n, const struct esp_stage_time *times, double now)
{
    double seconds = 0;

    for (uint32_t i = 0; i < n; i++)
        if (strcmp(times[i].worker, w->name) == 0)
            seconds += times[i].compute_seconds;
    esp_meter_add(&w->tally.busy, seconds < now ? now - seconds : 0, now, seconds);
    return seconds;
}

void esp_server_count_stored(struct esp_server *sv, const struct esp_msg_stored *stored)
{
    const double now = esp_now_seconds();

    for (uint32_t i = 0; i < sv->cluster.n_stages; i++) {
        struct esp_worker *w = sv->cluster.stage[i];
        const double seconds = add_busy(w, stored->n_times, stored->times, now);

        if (seconds > 0 && w->place.enc_lo < w->place.enc_hi) /* storing features is no encoding */
            mean(&measured(w)->encode, seconds);
    }
}

void esp_server_count_result(struct esp_server *sv, const struct esp_msg_step *step,
                             const struct esp_msg_result *result)
{
    const double now = esp_now_seconds();
    uint32_t n_prefills = 0, n_tokens = 0;

    for (uint32_t i = 0; i < step->n_seqs; i++)
        n_prefills += step->seqs[i].pos == 0;
    for (uint32_t i = 0; i < step->n_wants; i++)
        n_tokens += step->wants[i].k > 0 || (step->wants[i].full && !step->trace);
    esp_meter_add(&sv->token_meter, now, now, n_tokens);
    for (uint32_t i = 0; i < sv->cluster.n_stages; i++) {
        struct esp_worker *w = sv->cluster.stage[i];
        const double seconds = add_busy(w, result->n_times, result->times, now);

        if (!(seconds > 0) || w->place.dec_lo == w->place.dec_hi)
            continue;
        if (n_prefills == 0 && step->rows == step->n_seqs) /* one token for each of its sequences */
            mean(&measured(w)->decode, seconds);
        else if (n_prefills == step->n_seqs)
            mean(&measured(w)->prefill, seconds / n_prefills);
    }
}

uint64_t esp_server_stamp(void)
{
    return (uint64_t)(esp_now_seconds() * 1e9);
}

void esp_server_take_beat(struct esp_server *sv, struct esp_worker *w, const struct esp_msg_heartbeat *beat)
{
    const uint64_t now = esp_server_stamp();

    w->beat = *beat;
    /* Anything else that a worker sends back cannot be the time of a heartbeat of ours. */
    if (beat->echo == 0 || beat->echo > now || now - beat->echo > sv->opt.timeout_ms * UINT64_C(1000000))
        return;
    mean(&w->tally.rtt, (double)(now - beat->echo) * 1e-9);
}

/* ---- telling ---- */

static void fill_worker(struct esp_worker_status *out, const struct esp_server *sv, struct esp_worker *w,
                        double now)
{
    const bool placed = esp_cluster_has(&sv->cluster, w);

    *out = (struct esp_worker_status){.name = w->name,
                                      .state = w->draining ? "draining" : esp_worker_state_name(w->state),
                                      .cause = w->state == ESP_WORKER_FAILED ? w->cause : "",
                                      .device = w->device,
                                      .streams = w->streams,
                                      .done_bytes = w->done_bytes,
                                      .total_bytes = w->total_bytes,
                                      .rtt = w->tally.rtt,
                                      .busy = esp_meter_rate(&w->tally.busy, now),
                                      .n_queued = w->beat.n_queued,
                                      .n_seqs = w->beat.n_seqs,
                                      .n_images = w->beat.n_images};
    if (out->busy > 1)
        out->busy = 1; /* two messages may tell of the same time */
    if (out->total_bytes < out->done_bytes)
        out->total_bytes = out->done_bytes; /* it was an estimate, until the worker told better */
    if (!placed)
        return;
    esp_cluster_info(&out->stage, w);
    out->predicted = w->predicted;
    out->measured = *measured(w);
    if (w->state == ESP_WORKER_READY) {
        out->kv_blocks = w->ready.kv_blocks;
        out->kv_used_blocks = w->beat.kv_used_blocks;
    }
}

/* Blocks of the KV cache that sessions may take. */
static void fill_kv(struct esp_msg_status *status, const struct esp_server *sv)
{
    uint32_t block_tokens;

    if (!sv->cluster.ready)
        return;
    esp_cluster_kv(&sv->cluster, &status->kv_blocks, &block_tokens);
}

void esp_server_tell_status(struct esp_server *sv, const struct esp_peer *to, uint64_t id)
{
    const uint32_t n = esp_roster_count(sv->roster);
    const double now = esp_now_seconds();
    struct esp_worker_status *workers = calloc(n ? n : 1, sizeof *workers);
    struct esp_msg msg = {.kind = ESP_MSG_STATUS};
    struct esp_sched_counts counts;
    struct esp_err err;
    esp_status st;

    esp_sched_counts(sv->sched, &counts);
    if (!workers) {
        esp_server_tell_error(sv, to, id, ESP_E_NOMEM, "the list of workers");
        return;
    }
    for (uint32_t i = 0; i < n; i++)
        fill_worker(&workers[i], sv, esp_roster_at(sv->roster, i), now);
    msg.status = (struct esp_msg_status){.id = id,
                                         .epoch = sv->cluster.epoch,
                                         .ready = sv->cluster.ready,
                                         .n_sessions = esp_sched_n_live(sv->sched),
                                         .n_queued = esp_sched_n_queued(sv->sched),
                                         .n_workers = n,
                                         .workers = workers,
                                         .why = sv->cluster.ready ? "" : sv->why.text,
                                         .tokens_per_second = esp_meter_rate(&sv->token_meter, now),
                                         .uptime = now - sv->started_at,
                                         .n_tokens = counts.n_tokens,
                                         .n_steps = counts.n_steps,
                                         .n_prefills = counts.n_prefills,
                                         .n_rebuilds = counts.n_rebuilds,
                                         .n_encodes = counts.n_encodes,
                                         .n_cached = counts.n_cached,
                                         .kv_used_blocks = counts.blocks_used,
                                         .n_losses = sv->counts.n_losses,
                                         .n_moves = sv->counts.n_moves,
                                         .kv_moved_bytes = sv->counts.kv_moved_bytes,
                                         .n_requests = sv->counts.n_requests,
                                         .doing = sv->doing};
    for (const struct esp_session *s = esp_sched_first(sv->sched); s; s = s->next)
        msg.status.n_waiting += s->state == ESP_SESSION_QUEUED && s->rebuild;
    msg.status.n_queued -= msg.status.n_waiting; /* told apart */
    fill_kv(&msg.status, sv);
    if (sv->cluster.placed) {
        msg.status.latency = sv->cluster.plan.latency;
        msg.status.bottleneck = sv->cluster.plan.bottleneck;
        msg.status.fewer = sv->cluster.plan.fewer;
        msg.status.fewer_latency = sv->cluster.plan.fewer_latency;
    }
    msg.status.weights = (uint32_t)sv->opt.weights;
    memcpy(msg.status.fingerprint, sv->fingerprint, sizeof msg.status.fingerprint);
    st = esp_link_send(sv->link, to, &msg, &err);
    if (st && st != ESP_E_CLOSED) { /* who asked and went needs no answer */
        esp_log(sv->log, ESP_LOG_ERROR, "status_not_told why=\"%s\"", err.text);
        esp_server_tell_error(sv, to, id, st, err.text);
    }
    free(workers);
}
