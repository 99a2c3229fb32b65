/* The workers' side of the server: joining, placing, and who is still there. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/server_state.h"

#define DOUBT_S       0.1 /* how long after a Hello its name's holder may seem alive by what it sent before */
#define LOST_TIMEOUTS 1   /* after which work that nobody works on is lost ... */
#define PROBE_AGAIN_S 0.005
#define SLOW_NETWORK  125e3 /* ... and the time that a network of so many bytes/s takes for it */

static const double probe_after[] = {0.02, 0.1, 0.4}; /* seconds from one probe to the next */

/* ---- what they send ---- */

/* In, or told why not. */
static void admit_worker(struct esp_server *sv, const struct esp_peer *from,
                         const struct esp_msg_hello *hello)
{
    struct esp_msg msg = {.kind = ESP_MSG_WELCOME};
    struct esp_worker *w;
    struct esp_err err;

    if (esp_roster_join(&w, sv->roster, from, hello, esp_now_seconds(), &err)) {
        if (esp_server_may_log(sv, from))
            esp_log(sv->log, ESP_LOG_WARN, "worker=%s refused why=\"%s\"", hello->name ? hello->name : "",
                    err.text);
        esp_server_tell_error(sv, from, 0, err.code, err.text);
        return;
    }
    /* The coordinator before us has had epochs, too. Work of that time may still be between the stages, and must not be
     * taken for ours. */
    if (w->had_epoch > sv->cluster.last_epoch)
        sv->cluster.last_epoch = w->had_epoch;
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
        esp_server_consider_moving(sv);
    } else {
        esp_server_reconsider(sv);
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
        p->since = esp_now_seconds();
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

/* A message of the data path must be of the present epoch: 0 do it, 1 drop it silently, -1 impossible. */
static int epoch_check(const struct esp_server *sv, const struct esp_worker *w, uint64_t epoch)
{
    if (epoch > w->epoch || epoch == 0)
        return epoch > 0 && epoch <= w->had_epoch ? 1 : -1;
    return epoch < sv->cluster.epoch || !sv->cluster.placed;
}

/* Of a placement that it was told to warm for, and that is not to be any more. */
static bool is_given_up(const struct esp_server *sv, const struct esp_worker *w, uint64_t epoch)
{
    return epoch > w->epoch && epoch <= sv->cluster.last_epoch;
}

static void on_error(struct esp_server *sv, struct esp_worker *w, struct esp_msg *msg)
{
    const struct esp_msg_error *e = &msg->error;

    if (e->session != 0) { /* only that it could not check itself */
        esp_server_verify_failed(sv, w, e->session, e->text);
        return;
    }
    if (e->step == 0 && e->image == 0) {
        if (esp_server_is_warming(sv, w, e->epoch)) {
            esp_server_on_warm_error(sv, w, e);
            return;
        }
        if ((e->epoch != 0 && e->epoch < w->epoch) || is_given_up(sv, w, e->epoch))
            return; /* of a placement that is no more */
        esp_server_fail_worker(sv, w, e->code, e->text);
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
            sv->move.progress = esp_now_seconds();
        }
        break;
    case ESP_MSG_READY:
        esp_server_on_ready(sv, w, &msg->ready);
        break;
    case ESP_MSG_MOVED:
        esp_server_on_moved(sv, w, &msg->moved);
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
        if (esp_server_is_warming(sv, w, msg->loading.epoch))
            esp_server_on_warm_loading(sv, w, &msg->loading);
        else if (!is_given_up(sv, w, msg->loading.epoch))
            on_data(sv, w, msg, msg->loading.epoch);
        break;
    case ESP_MSG_WARMED:
        if (esp_server_is_warming(sv, w, msg->warmed.epoch))
            esp_server_on_warmed(sv, w, &msg->warmed);
        else if (msg->warmed.epoch > w->epoch && !is_given_up(sv, w, msg->warmed.epoch))
            esp_server_drop_worker(sv, w, ESP_E_PROTO, "it has warmed to what nobody has asked for", true);
        break;
    case ESP_MSG_MOVED:
        on_data(sv, w, msg, msg->moved.epoch);
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
    esp_server_lose_cluster(sv, err.code, err.text);
    esp_server_reconsider(sv);
}

static void beat(struct esp_server *sv)
{
    for (uint32_t i = 0; i < esp_roster_count(sv->roster); i++) {
        struct esp_msg msg = {.kind = ESP_MSG_HEARTBEAT};
        msg.heartbeat.epoch = sv->cluster.epoch;
        msg.heartbeat.stamp = esp_server_stamp();
        esp_server_tell_worker(sv, esp_roster_at(sv->roster, i), &msg);
    }
}

void esp_server_probe(struct esp_server *sv)
{
    const double soonest = esp_now_seconds() + PROBE_AGAIN_S;

    if (sv->n_probes == 0 || sv->next_probe > soonest)
        sv->next_probe = soonest;
    sv->n_probes = sizeof probe_after / sizeof probe_after[0];
}

/* The socket hears of a connection's end a moment after its monitor, so it is tried more than once. */
static void probe(struct esp_server *sv, double now)
{
    if (sv->n_probes == 0 || now < sv->next_probe)
        return;
    sv->next_probe = now + probe_after[sizeof probe_after / sizeof probe_after[0] - sv->n_probes];
    sv->n_probes--;
    beat(sv);
    esp_server_probe_clients(sv, now);
}

/* We were away ourselves (stopped, starved): what workers said meanwhile has not been read yet. */
static void forgive_silence(struct esp_server *sv, double now)
{
    if (now - sv->watched_at > 2 * sv->opt.heartbeat_ms / 1000.0)
        for (uint32_t i = 0; i < esp_roster_count(sv->roster); i++)
            esp_roster_at(sv->roster, i)->last_heard += now - sv->watched_at;
    sv->watched_at = now;
}

void esp_server_watch(struct esp_server *sv, double now)
{
    struct esp_worker *w;

    forgive_silence(sv, now);
    if (now >= sv->next_beat) {
        beat(sv);
        sv->next_beat = now + sv->opt.heartbeat_ms / 1000.0;
    }
    probe(sv, now);
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
    esp_server_move_watch(sv, now);
}
