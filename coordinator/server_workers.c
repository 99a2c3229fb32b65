/* The workers' side of the server: joining, placing, and who is still there. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/server_state.h"

#define DOUBT_S       0.1 /* how long after a Hello its name's holder may seem alive by what it sent before */
#define LOST_TIMEOUTS 3   /* after which work that nobody works on is lost ... */
#define SLOW_NETWORK  125e3 /* ... and the time that a network of so many bytes/s takes for it */

/* ---- placing ---- */

static void not_ready(struct esp_server *sv, esp_status code, const char *text)
{
    esp_fail(&sv->why, code, "%s", text);
    if (sv->ready_at > 0)
        sv->waiting_since = esp_server_now();
    sv->ready_at = 0;
}

/* The placement is void, the cause is in sv->why. What was on it waits for the next one. */
static void lose_cluster(struct esp_server *sv, esp_status code, const char *text)
{
    not_ready(sv, code, text);
    esp_cluster_drop(&sv->cluster);
    esp_sched_suspend(sv->sched, esp_server_now());
}

static void log_stages(const struct esp_server *sv)
{
    for (uint32_t i = 0; i < sv->cluster.n_stages; i++) {
        const struct esp_worker *w = sv->cluster.stage[i];

        esp_log(sv->log, ESP_LOG_INFO,
                "placed epoch=%" PRIu64 " stage=%" PRIu32
                " worker=%s device=\"%s\" encoder=[%u,%u) decoder=[%u,%u)",
                sv->cluster.epoch, i, w->name, w->device_name, w->place.enc_lo, w->place.enc_hi,
                w->place.dec_lo, w->place.dec_hi);
    }
}

/*
 * Makes a placement if there is none and there are workers enough. The first one waits for --workers of them.
 * A later one, when a stage was lost, takes what is left, if the model fits. If all that were asked for are
 * here and it still cannot be, waiting would not help: requests are refused with the reason until someone
 * joins or leaves.
 */
static void reconsider(struct esp_server *sv)
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
        if (n_joined < sv->opt.n_workers) {
            not_ready(sv, ESP_E_CLOSED, "waiting for workers: none is left");
            return;
        }
    } else if (!esp_cluster_plan(&sv->cluster, sv->roster, sv->ck, &sv->cluster_opt, &err)) {
        log_stages(sv);
        for (uint32_t i = 0; i < esp_roster_count(sv->roster); i++) {
            struct esp_worker *w = esp_roster_at(sv->roster, i);
            struct esp_msg msg;

            if (w->state == ESP_WORKER_FAILED)
                continue;
            esp_cluster_place(&msg, &sv->cluster, w);
            esp_server_tell_worker(sv, w, &msg);
        }
        not_ready(sv, ESP_E_CLOSED, "loading weights");
        return;
    } else {
        esp_err_prefix(&err, "no placement: ");
        esp_log(sv->log, ESP_LOG_ERROR, "workers=%u %s", n_usable, err.text);
        not_ready(sv, err.code, err.text);
        if (n_joined < sv->opt.n_workers)
            return; /* one that comes back may bring what is missing */
    }
    sv->broken = true;
    esp_server_fail_queue(sv, &sv->why);
}

void esp_server_drop_worker(struct esp_server *sv, struct esp_worker *w, esp_status code, const char *text,
                            bool tell)
{
    const bool was_stage = esp_cluster_has(&sv->cluster, w);
    struct esp_err err;

    esp_fail(&err, code, "worker %s: %s", w->name, text);
    esp_log(sv->log, was_stage ? ESP_LOG_ERROR : ESP_LOG_WARN,
            "worker=%s epoch=%" PRIu64 " lost why=\"%s\" action=%s", w->name, sv->cluster.epoch, text,
            was_stage ? "replace" : "forget");
    if (tell)
        esp_server_tell_error(sv, &w->peer, 0, code, text);
    sv->counts.n_losses += was_stage;
    esp_server_verify_lost(sv, w, text);
    if (was_stage)
        lose_cluster(sv, err.code, err.text);
    esp_server_weights_leave(sv, w);
    esp_roster_remove(sv->roster, &w);
    reconsider(sv);
}

/* It is here, but cannot do its part. */
static void fail_worker(struct esp_server *sv, struct esp_worker *w, esp_status code, const char *text)
{
    struct esp_err err;

    esp_fail(&err, code, "worker %s: %s", w->name, text);
    esp_log(sv->log, ESP_LOG_ERROR, "worker=%s epoch=%" PRIu64 " failed why=\"%s\"", w->name, w->epoch, text);
    snprintf(w->cause, sizeof w->cause, "%s", text);
    w->state = ESP_WORKER_FAILED;
    if (esp_cluster_has(&sv->cluster, w)) {
        lose_cluster(sv, err.code, err.text);
        reconsider(sv);
        if (sv->broken) { /* the cause is the worker's, not that too few are left */
            sv->why = err;
            esp_server_fail_queue(sv, &err);
        }
    }
}

/* ---- what they send ---- */

/* In, or told why not. */
static void admit_worker(struct esp_server *sv, const struct esp_peer *from,
                         const struct esp_msg_hello *hello)
{
    struct esp_msg msg = {.kind = ESP_MSG_WELCOME};
    struct esp_worker *w;
    struct esp_err err;

    if (esp_roster_join(&w, sv->roster, from, hello, esp_server_now(), &err)) {
        esp_log(sv->log, ESP_LOG_WARN, "worker=%s refused why=\"%s\"", hello->name ? hello->name : "",
                err.text);
        esp_server_tell_error(sv, from, 0, err.code, err.text);
        return;
    }
    esp_log(sv->log, ESP_LOG_INFO,
            "worker=%s joined device=\"%s\" driver=\"%s\" memory_mib=%" PRIu64 " endpoint=%s%s%s%s", w->name,
            w->device_name, w->device_driver, w->device.memory_bytes >> 20, w->endpoint,
            from->user[0] ? " key=" : "", from->user, w->streams ? " weights=streamed" : "");
    msg.welcome =
        (struct esp_msg_welcome){.heartbeat_ms = sv->opt.heartbeat_ms, .timeout_ms = sv->opt.timeout_ms};
    esp_server_tell_worker(sv, w, &msg);
    if (w->streams)
        esp_server_weights_join(sv, w);
    if (sv->cluster.placed) {
        esp_cluster_add_spare(&sv->cluster, w);
        esp_cluster_place(&msg, &sv->cluster, w);
        esp_server_tell_worker(sv, w, &msg);
    } else {
        reconsider(sv);
    }
}

/*
 * A worker that was killed and started again says hello before its old connection is known to be gone. So a name that
 * is taken is not refused at once: the Hello waits until the one who has the name is heard of again, or is not there
 * any more.
 */
static void on_hello(struct esp_server *sv, const struct esp_peer *from, struct esp_msg *msg)
{
    struct esp_worker *w = esp_roster_find(sv->roster, from);

    if (w) /* it took us for lost, and what it is told from here on starts with Welcome again */
        esp_server_drop_worker(sv, w, ESP_E_CLOSED, "it is joining again", false);
    for (uint32_t i = 0; i < sv->n_parked; i++)
        if (esp_peer_equal(&sv->parked[i].from, from))
            return; /* once is enough */
    if (esp_roster_named(sv->roster, msg->hello.name) && sv->n_parked < ESP_SERVER_MAX_PARKED) {
        struct esp_parked_hello *p = &sv->parked[sv->n_parked++];

        p->from = *from;
        p->since = esp_server_now();
        p->msg = *msg;
        memset(msg, 0, sizeof *msg);
        return;
    }
    admit_worker(sv, from, &msg->hello);
}

static void settle_parked(struct esp_server *sv)
{
    for (uint32_t i = 0; i < sv->n_parked;) {
        const struct esp_worker *w = esp_roster_named(sv->roster, sv->parked[i].msg.hello.name);
        struct esp_parked_hello p = sv->parked[i];

        if (w && w->last_heard < p.since + DOUBT_S) { /* what it had sent before may still be arriving */
            i++;
            continue;
        }
        sv->n_parked--;
        memmove(&sv->parked[i], &sv->parked[i + 1], (sv->n_parked - i) * sizeof p);
        admit_worker(sv, &p.from, &p.msg.hello);
        esp_msg_finish(&p.msg);
    }
}

static void on_ready(struct esp_server *sv, struct esp_worker *w, const struct esp_msg_ready *ready)
{
    struct esp_sched_room room = {0};
    struct esp_err err;

    if (esp_cluster_ready(&sv->cluster, w, ready, &err)) {
        esp_server_drop_worker(sv, w, err.code, err.text, true);
        return;
    }
    if (w->state == ESP_WORKER_SPARE)
        return;
    esp_log(sv->log, ESP_LOG_INFO,
            "worker=%s epoch=%" PRIu64 " ready weights_mib=%" PRIu64 " kv_mib=%" PRIu64
            " scratch_mib=%" PRIu64 " kv_blocks=%" PRIu64 "x%u load_s=%.2f",
            w->name, w->epoch, ready->weight_bytes >> 20, ready->kv_bytes >> 20, ready->scratch_bytes >> 20,
            ready->kv_blocks, ready->block_tokens, ready->load_seconds);
    if (!sv->cluster.ready || esp_sched_is_open(sv->sched))
        return;
    sv->ready_at = esp_server_now();
    room.epoch = sv->cluster.epoch;
    esp_cluster_kv(&sv->cluster, &room.kv_blocks, &room.block_tokens);
    room.max_rows = sv->cluster_opt.sizing.context;
    room.max_seqs = ESP_CLUSTER_MAX_SEQS;
    room.max_images = sv->cluster_opt.sizing.max_images;
    room.n_stages = sv->cluster.n_dec;
    room.max_steps = sv->cluster.n_dec + 1;
    room.max_encodes = ESP_CLUSTER_ENCODES;
    esp_sched_open(sv->sched, &room);
    esp_log(sv->log, ESP_LOG_INFO, "ready epoch=%" PRIu64 " stages=%u seconds=%.2f", sv->cluster.epoch,
            sv->cluster.n_stages, sv->ready_at - sv->waiting_since);
}

/* A message of the data path must be of the present epoch: 0 do it, 1 drop it silently, -1 impossible. */
static int epoch_check(const struct esp_server *sv, const struct esp_worker *w, uint64_t epoch)
{
    if (epoch > w->epoch || epoch == 0)
        return -1;
    return epoch < sv->cluster.epoch || !sv->cluster.placed;
}

static void on_error(struct esp_server *sv, struct esp_worker *w, struct esp_msg *msg)
{
    const struct esp_msg_error *e = &msg->error;

    if (e->session != 0) { /* only that it could not check itself */
        esp_server_verify_failed(sv, w, e->session, e->text);
        return;
    }
    if ((e->step == 0 && e->image == 0) || e->code == ESP_E_DEVICE) { /* a lost device is a lost worker */
        if (e->epoch != 0 && e->epoch < w->epoch)
            return; /* of a placement that is no more */
        fail_worker(sv, w, e->code, e->text);
        return;
    }
    switch (epoch_check(sv, w, e->epoch)) {
    case 1:
        return;
    case -1:
        esp_server_drop_worker(sv, w, ESP_E_PROTO, "an error of an epoch that has not been", true);
        return;
    default:
        esp_server_from_stage(sv, w, msg);
        break;
    }
}

static void on_data(struct esp_server *sv, struct esp_worker *w, struct esp_msg *msg, uint64_t epoch)
{
    char text[96];

    switch (epoch_check(sv, w, epoch)) {
    case 1:
        return;
    case -1:
        snprintf(text, sizeof text, "a %s of epoch %" PRIu64 ", the present one is %" PRIu64,
                 esp_msg_name(msg->kind), epoch, w->epoch);
        esp_server_drop_worker(sv, w, ESP_E_PROTO, text, true);
        return;
    default:
        break;
    }
    switch (msg->kind) {
    case ESP_MSG_LOADING:
        if (w->state == ESP_WORKER_LOADING) {
            w->done_bytes = msg->loading.done_bytes;
            w->total_bytes = msg->loading.total_bytes;
        }
        break;
    case ESP_MSG_READY:
        on_ready(sv, w, &msg->ready);
        break;
    case ESP_MSG_VERIFIED:
        esp_server_verified(sv, w, &msg->verified);
        break;
    default: /* ESP_MSG_STORED, ESP_MSG_RESULT, ESP_MSG_TRACE */
        esp_server_from_stage(sv, w, msg);
        break;
    }
}

void esp_server_from_worker(struct esp_server *sv, const struct esp_peer *from, struct esp_worker *w,
                            struct esp_msg *msg)
{
    char text[ESP_ERR_TEXT_MAX];

    if (!w && msg->kind != ESP_MSG_HELLO) {
        /* Dropped earlier, or the coordinator was restarted. Who only wants to leave needs no answer. */
        if (msg->kind != ESP_MSG_BYE && msg->kind != ESP_MSG_ERROR)
            esp_server_tell_error(sv, from, 0, ESP_E_CLOSED, "you have not joined: say hello first");
        return;
    }
    if (w && w->state == ESP_WORKER_FAILED && msg->kind != ESP_MSG_BYE && msg->kind != ESP_MSG_HELLO)
        return; /* it takes no part any more, unless it begins anew: it may have been restarted with what it lacked */
    switch (msg->kind) {
    case ESP_MSG_HELLO:
        on_hello(sv, from, msg);
        break;
    case ESP_MSG_HEARTBEAT:
        if (msg->heartbeat.epoch > w->epoch)
            esp_server_drop_worker(sv, w, ESP_E_PROTO, "a heartbeat of an epoch that has not been", true);
        else
            esp_server_take_beat(sv, w, &msg->heartbeat);
        break;
    case ESP_MSG_BYE:
        snprintf(text, sizeof text, "left: %s", msg->bye.why[0] ? msg->bye.why : "it said no reason");
        esp_server_drop_worker(sv, w, ESP_E_CLOSED, text, false);
        break;
    case ESP_MSG_ERROR:
        on_error(sv, w, msg);
        break;
    case ESP_MSG_FETCH:
        esp_server_from_fetch(sv, w, &msg->fetch);
        break;
    case ESP_MSG_LOADING:
        on_data(sv, w, msg, msg->loading.epoch);
        break;
    case ESP_MSG_READY:
        on_data(sv, w, msg, msg->ready.epoch);
        break;
    case ESP_MSG_VERIFIED:
        on_data(sv, w, msg, msg->verified.epoch);
        break;
    case ESP_MSG_STORED:
        on_data(sv, w, msg, msg->stored.epoch);
        break;
    case ESP_MSG_RESULT:
        on_data(sv, w, msg, msg->result.epoch);
        break;
    default: /* ESP_MSG_TRACE */
        on_data(sv, w, msg, msg->trace.epoch);
        break;
    }
}

/* ---- the clock ---- */

/*
 * Steps and pictures travel from stage to stage, unseen by us: if a connection between two of them breaks, what
 * was in it is lost, while both go on beating. Placing anew makes them dial each other again, and the new epoch
 * keeps out what may still arrive.
 */
static void watch_work(struct esp_server *sv, double now)
{
    const struct esp_config *c = sv->config;
    const double side = c->vision.image_size,
                 width = c->text.width > c->vision.width ? c->text.width : c->vision.width;
    const struct esp_sched_patience patience = {.least = LOST_TIMEOUTS * sv->opt.timeout_ms / 1000.0,
                                                .a_row = c->text.width * sizeof(float) / SLOW_NETWORK,
                                                .a_picture = (3 * side * side + c->vision.n_token * width) *
                                                             sizeof(float) / SLOW_NETWORK};
    bool idle = true;
    struct esp_err err;

    for (uint32_t i = 0; i < sv->cluster.n_stages; i++)
        idle &= sv->cluster.stage[i]->beat.n_queued == 0;
    if (!esp_sched_watch(sv->sched, idle, now, &patience, &err))
        return;
    esp_log(sv->log, ESP_LOG_ERROR, "epoch=%" PRIu64 " stalled why=\"%s\" action=replace", sv->cluster.epoch,
            err.text);
    lose_cluster(sv, err.code, err.text);
    reconsider(sv);
}

void esp_server_watch(struct esp_server *sv, double now)
{
    struct esp_worker *w;

    if (now >= sv->next_beat) {
        for (uint32_t i = 0; i < esp_roster_count(sv->roster); i++) {
            struct esp_msg msg = {.kind = ESP_MSG_HEARTBEAT};
            msg.heartbeat.epoch = sv->cluster.epoch;
            msg.heartbeat.stamp = esp_server_stamp();
            esp_server_tell_worker(sv, esp_roster_at(sv->roster, i), &msg);
        }
        sv->next_beat = now + sv->opt.heartbeat_ms / 1000.0;
    }
    for (uint32_t i = 0; i < esp_roster_count(sv->roster);) {
        w = esp_roster_at(sv->roster, i);
        if (w->lost) {
            char text[ESP_ERR_TEXT_MAX];
            snprintf(text, sizeof text, "%s", w->cause);
            esp_server_drop_worker(sv, w, ESP_E_CLOSED, text, false);
            i = 0; /* dropping may have marked others */
        } else {
            i++;
        }
    }
    while ((w = esp_roster_expired(sv->roster, now, sv->opt.timeout_ms / 1000.0))) {
        char text[96];
        snprintf(text, sizeof text, "said nothing for %.1f s", now - w->last_heard);
        esp_server_drop_worker(sv, w, ESP_E_TIMEOUT, text, true);
    }
    watch_work(sv, now);
    settle_parked(sv);
}
