/* Placing: when there are workers enough, when one of them is lost, and when all are ready. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/server_state.h"

/* Why there are no answers now. */
static void not_ready(struct esp_server *sv, esp_status code, const char *text)
{
    esp_fail(&sv->why, code, "%s", text);
    if (sv->ready_at > 0)
        sv->waiting_since = esp_now_seconds();
    sv->ready_at = 0;
}

void esp_server_lose_cluster(struct esp_server *sv, esp_status code, const char *text)
{
    esp_server_move_abort(sv, text);
    not_ready(sv, code, text);
    esp_cluster_drop(&sv->cluster);
    esp_sched_suspend(sv->sched, esp_now_seconds());
    esp_released_finish(&sv->released);
}

struct esp_plan_input esp_server_plan_input(const struct esp_server *sv)
{
    return (struct esp_plan_input){.roster = sv->roster, .ck = sv->ck, .options = &sv->cluster_opt};
}

void esp_server_tell_places(struct esp_server *sv)
{
    for (uint32_t i = 0; i < sv->cluster.n_stages; i++) {
        const struct esp_worker *w = sv->cluster.stage[i];

        esp_log(sv->log, ESP_LOG_INFO,
                "placed epoch=%" PRIu64 " stage=%" PRIu32
                " worker=%s device=\"%s\" encoder=[%u,%u) decoder=[%u,%u)",
                sv->cluster.epoch, i, w->name, w->device_name, w->place.enc_lo, w->place.enc_hi,
                w->place.dec_lo, w->place.dec_hi);
    }
    for (uint32_t i = 0; i < esp_roster_count(sv->roster); i++) {
        struct esp_worker *w = esp_roster_at(sv->roster, i);
        struct esp_msg msg;

        if (w->state == ESP_WORKER_FAILED)
            continue;
        esp_cluster_place(&msg, &sv->cluster, w);
        esp_server_tell_worker(sv, w, &msg);
    }
}

static esp_status place(struct esp_server *sv, struct esp_err *err)
{
    const struct esp_plan_input in = esp_server_plan_input(sv);
    struct esp_plan *plan = malloc(sizeof *plan);
    esp_status st;

    if (!plan)
        return esp_fail(err, ESP_E_NOMEM, "a placement");
    st = esp_plan_again(plan, &in, sv->cluster.stood, sv->cluster.n_stood, err);
    if (!st) {
        esp_cluster_apply(&sv->cluster, sv->roster, plan, esp_cluster_next_epoch(&sv->cluster), 0);
        esp_server_tell_places(sv);
        not_ready(sv, ESP_E_CLOSED, "loading weights");
    }
    free(plan);
    return st;
}

/*
 * The first placement waits for --workers of them. A later one, when a stage was lost, takes what is left, if the model
 * fits; if not, who was being answered waits for a worker to join. A cluster that has never been ready, though all
 * that were asked for are here, is another matter: waiting would not help, so requests are refused with the reason.
 */
void esp_server_reconsider(struct esp_server *sv)
{
    const uint32_t n_joined = esp_roster_count(sv->roster), n_usable = esp_roster_usable(sv->roster);
    struct esp_err err;

    sv->broken = false;
    if (sv->cluster.placed)
        return;
    if (sv->cluster.epoch == 0 && n_joined < sv->opt.n_workers) {
        char text[96];
        snprintf(text, sizeof text, "waiting for workers: %u of %u are here", n_joined, sv->opt.n_workers);
        not_ready(sv, ESP_E_CLOSED, text);
        return;
    }
    if (n_usable == 0) {
        esp_fail(&err, ESP_E_CLOSED, "waiting for workers: none is left");
        if (esp_server_give_up_drains(sv, &err)) {
            esp_server_reconsider(sv);
            return;
        }
        if (n_joined == 0) /* otherwise those who are here have failed: sv->why says how */
            not_ready(sv, err.code, err.text);
    } else if (!place(sv, &err)) {
        return;
    } else if (esp_server_give_up_drains(sv, &err)) { /* rather those than nobody */
        esp_server_reconsider(sv);
        return;
    } else {
        esp_err_prefix(&err, "no placement: ");
        esp_log(sv->log, ESP_LOG_ERROR, "no_placement workers=%u why=\"%s\"", n_usable, err.text);
        not_ready(sv, err.code, err.text);
    }
    if (n_joined < sv->opt.n_workers || sv->was_ready)
        return; /* one that comes (back) may bring what is missing */
    sv->broken = true;
    esp_server_fail_queue(sv, &sv->why);
}

void esp_server_drop_worker(struct esp_server *sv, struct esp_worker *w, esp_status code, const char *text,
                            bool tell)
{
    const bool was_stage = esp_cluster_has(&sv->cluster, w) || esp_server_move_needs(sv, w);
    struct esp_err err;

    esp_fail(&err, code, "worker %s: %s", w->name, text);
    esp_log(sv->log, was_stage ? ESP_LOG_ERROR : ESP_LOG_WARN,
            "worker=%s epoch=%" PRIu64 " lost why=\"%s\" silent_ms=%.0f action=%s", w->name,
            sv->cluster.epoch, text, 1000 * (esp_now_seconds() - w->last_heard),
            was_stage ? "replace" : "forget");
    if (tell)
        esp_server_tell_error(sv, &w->peer, 0, code, text);
    esp_server_forget_drain(sv, w, &err);
    sv->counts.n_losses += was_stage;
    esp_server_verify_lost(sv, w, text);
    esp_server_weights_leave(sv, w);
    if (was_stage)
        esp_server_lose_cluster(sv, err.code, err.text);
    else
        esp_server_move_without(sv, w);
    esp_roster_remove(sv->roster, &w);
    esp_server_reconsider(sv);
}

void esp_server_fail_worker(struct esp_server *sv, struct esp_worker *w, esp_status code, const char *text)
{
    struct esp_err err;

    esp_fail(&err, code, "worker %s: %s", w->name, text);
    if (sv->move.state >= ESP_MOVE_PLACING && sv->cluster.placed) {
        /* It could not take over what was there; that says nothing of its beginning anew. */
        esp_log(sv->log, ESP_LOG_WARN, "worker=%s epoch=%" PRIu64 " carry_failed why=\"%s\" action=recompute",
                w->name, w->epoch, text);
        esp_server_lose_cluster(sv, err.code, err.text);
        esp_server_reconsider(sv);
        return;
    }
    esp_log(sv->log, ESP_LOG_ERROR, "worker=%s epoch=%" PRIu64 " failed why=\"%s\"", w->name, w->epoch, text);
    snprintf(w->cause, sizeof w->cause, "%s", text);
    w->state = ESP_WORKER_FAILED;
    esp_server_forget_drain(sv, w, &err);
    if (esp_cluster_has(&sv->cluster, w)) {
        esp_server_lose_cluster(sv, err.code, err.text);
        esp_server_reconsider(sv);
        if (sv->broken) { /* the cause is the worker's, not that too few are left */
            sv->why = err;
            esp_server_fail_queue(sv, &err);
        }
    } else {
        esp_server_move_without(sv, w);
    }
}

void esp_server_room(const struct esp_server *sv, struct esp_sched_room *room)
{
    *room = (struct esp_sched_room){.epoch = sv->cluster.epoch,
                                    .max_rows = sv->cluster_opt.sizing.context,
                                    .max_seqs = ESP_CLUSTER_MAX_SEQS,
                                    .max_images = sv->cluster_opt.sizing.max_images,
                                    .max_steps = sv->cluster.n_dec + 1 + sv->cluster.n_dec / 2,
                                    .max_encodes = ESP_CLUSTER_ENCODES,
                                    .n_stages = sv->cluster.n_dec};
    esp_cluster_kv(&sv->cluster, &room->kv_blocks, &room->block_tokens);
}

void esp_server_on_ready(struct esp_server *sv, struct esp_worker *w, const struct esp_msg_ready *ready)
{
    struct esp_sched_room room;
    struct esp_err err;

    if (esp_cluster_ready(&sv->cluster, w, ready, &err)) {
        esp_server_drop_worker(sv, w, err.code, err.text, true);
        return;
    }
    if (w->state == ESP_WORKER_SPARE)
        return;
    esp_log(sv->log, ESP_LOG_INFO,
            "worker=%s epoch=%" PRIu64 " ready weights_mib=%" PRIu64 " loaded_bytes=%" PRIu64
            " kv_mib=%" PRIu64 " scratch_mib=%" PRIu64 " kv_blocks=%" PRIu64 "x%u load_s=%.2f",
            w->name, w->epoch, ready->weight_bytes >> 20, ready->loaded_bytes, ready->kv_bytes >> 20,
            ready->scratch_bytes >> 20, ready->kv_blocks, ready->block_tokens, ready->load_seconds);
    if (!sv->cluster.ready)
        return;
    if (sv->move.state == ESP_MOVE_PLACING) {
        esp_server_move_placed(sv);
        return;
    }
    if (esp_sched_is_open(sv->sched))
        return;
    sv->ready_at = esp_now_seconds();
    sv->was_ready = true;
    esp_server_room(sv, &room);
    esp_sched_open(sv->sched, &room);
    esp_server_consider_moving(sv);
    esp_log(sv->log, ESP_LOG_INFO, "ready epoch=%" PRIu64 " stages=%u seconds=%.2f", sv->cluster.epoch,
            sv->cluster.n_stages, sv->ready_at - sv->waiting_since);
}
