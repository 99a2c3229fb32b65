#include "coordinator/server.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/server_state.h"
#include "model/shape.h"

#define HEARTBEAT_MS 300
#define TIMEOUT_MS   1600 /* so that a silent worker is found out about within 2 s */
#define LIVELY_MS                                                                                            \
    50 /* while sessions live: progress is told, and what a slow client did not take is tried again */
#define SEND_AGAIN_MS  5   /* nothing tells when a full queue has room */
#define HWM            512 /* messages queued a peer */
#define LINGER_MS      500 /* for the goodbyes */
#define NOISE_A_SECOND 20  /* log lines about peers that are none of ours */
#define BURST          256 /* messages taken before the rest has its turn */

static esp_status options_check(const struct esp_server_options *o, struct esp_err *err)
{
    if (o->n_workers < 1 || o->n_workers > ESP_MAX_STAGES)
        return esp_fail(err, ESP_E_ARG, "--workers %u: takes 1 to %d", o->n_workers, ESP_MAX_STAGES);
    if (o->timeout_ms <= o->heartbeat_ms)
        return esp_fail(err, ESP_E_ARG, "a timeout of %u ms with heartbeats every %u ms", o->timeout_ms,
                        o->heartbeat_ms);
    return ESP_OK;
}

static esp_status open_model(struct esp_server *sv, struct esp_err *err)
{
    char path[4096];
    esp_status st = esp_checkpoint_open(&sv->ck, sv->opt.model, err);

    if (st)
        return st;
    sv->config = esp_checkpoint_config(sv->ck);
    if (esp_shape_named(sv->opt.model))
        return esp_tokenizer_create_bytes(&sv->token, err);
    if (snprintf(path, sizeof path, "%s/tokenizer.model", sv->opt.model) >= (int)sizeof path)
        return esp_fail(err, ESP_E_ARG, "a path of more than %zu bytes", sizeof path);
    return esp_tokenizer_create(&sv->token, path, err);
}

static esp_status open_link(struct esp_server *sv, struct esp_err *err)
{
    const struct esp_link_options options = {
        .type = ESP_LINK_SERVE, .hwm = HWM, .linger_ms = LINGER_MS, .tell_drops = true};
    esp_status st = esp_net_create(&sv->net, err);

    if (!st && sv->opt.keys)
        st = esp_keys_open(&sv->keys, sv->opt.keys, ESP_MEMBER_COORDINATOR, err);
    if (!st && sv->keys)
        st = esp_net_secure(sv->net, sv->keys, sv->log, err);
    if (!st)
        st = esp_link_create(&sv->link, sv->net, &options, err);
    if (!st)
        st = esp_link_bind(sv->link, sv->opt.bind, sv->opt.insecure, sv->endpoint, err);
    return st;
}

esp_status esp_server_create(struct esp_server **out, const struct esp_server_options *options,
                             const struct esp_log *log, struct esp_err *err)
{
    struct esp_server *sv;
    esp_status st;

    *out = NULL;
    sv = calloc(1, sizeof *sv);
    if (!sv) {
        st = esp_fail(err, ESP_E_NOMEM, "the coordinator");
        goto done;
    }
    sv->opt = *options;
    sv->log = log;
    sv->waiting_since = sv->started_at = esp_now_seconds();
    if (!sv->opt.heartbeat_ms)
        sv->opt.heartbeat_ms = HEARTBEAT_MS;
    if (!sv->opt.timeout_ms)
        sv->opt.timeout_ms = TIMEOUT_MS;
    st = options_check(&sv->opt, err);
    if (!st)
        st = open_model(sv, err);
    if (st)
        goto done;
    sv->cluster_opt = (struct esp_cluster_options){.sizing = sv->opt.sizing,
                                                   .final_softcap = sv->opt.final_softcap,
                                                   .weights = sv->opt.weights,
                                                   .split = sv->opt.split};
    st = esp_sizing_fill(&sv->cluster_opt.sizing, sv->config, err);
    if (!st)
        st = esp_cluster_options_check(&sv->cluster_opt, sv->config, err);
    if (st)
        goto done;
    esp_checkpoint_fingerprint(sv->ck, sv->fingerprint);
    st = esp_roster_create(&sv->roster, sv->fingerprint, err);
    if (!st)
        st = esp_sched_create(&sv->sched, err);
    if (!st)
        st = esp_prepare_create(&sv->prepare, sv->config, sv->token, err);
    if (!st)
        st = esp_supply_create(&sv->supply, sv->ck, sv->fingerprint, &sv->opt.supply, log, err);
    if (!st)
        st = open_link(sv, err);
    if (!st)
        st = esp_server_open_journal(sv, err);
    if (st)
        goto done;
    esp_fail(&sv->why, ESP_E_CLOSED, "waiting for workers");
    *out = sv;
    sv = NULL;
done:
    esp_server_destroy(&sv);
    return st;
}

void esp_server_destroy(struct esp_server **server)
{
    struct esp_server *sv = *server;

    if (!sv)
        return;
    esp_prepare_destroy(
        &sv->prepare); /* first: its jobs hold messages of the link, and so does the journal */
    esp_journal_close(&sv->journal);
    for (uint32_t i = 0; i < sv->n_parked; i++)
        esp_msg_finish(&sv->parked[i].msg);
    esp_sched_destroy(&sv->sched);
    esp_released_finish(&sv->released);
    free(sv->move.plan);
    esp_roster_destroy(&sv->roster);
    esp_link_destroy(&sv->link);
    esp_net_destroy(&sv->net);
    esp_keys_destroy(&sv->keys);
    esp_tokenizer_destroy(&sv->token);
    esp_supply_destroy(&sv->supply);
    esp_checkpoint_destroy(&sv->ck); /* after the net, whose messages point into its files */
    free(sv);
    *server = NULL;
}

const char *esp_server_endpoint(const struct esp_server *server)
{
    return server->endpoint;
}

void esp_server_tell_worker(struct esp_server *sv, struct esp_worker *w, struct esp_msg *msg)
{
    struct esp_err err;
    esp_status st;

    if (w->lost)
        return;
    st = esp_link_send(sv->link, &w->peer, msg, &err);
    if (!st)
        return;
    if (st == ESP_E_LIMIT && msg->kind == ESP_MSG_HEARTBEAT)
        return; /* it is busy reading; silence of its own is what decides */
    w->lost = true;
    snprintf(w->cause, sizeof w->cause, "cannot be sent a %s: %.400s", esp_msg_name(msg->kind),
             st == ESP_E_CLOSED ? "its connection is gone" : err.text);
}

void esp_server_tell_error(struct esp_server *sv, const struct esp_peer *to, uint64_t session,
                           esp_status code, const char *text)
{
    struct esp_msg msg = {.kind = ESP_MSG_ERROR};

    msg.error = (struct esp_msg_error){.code = code, .text = text, .session = session};
    (void)esp_link_send(sv->link, to, &msg, NULL); /* who cannot hear it does not need it */
}

static bool is_worker_kind(enum esp_msg_kind kind)
{
    switch (kind) {
    case ESP_MSG_HELLO:
    case ESP_MSG_LOADING:
    case ESP_MSG_READY:
    case ESP_MSG_HEARTBEAT:
    case ESP_MSG_BYE:
    case ESP_MSG_ERROR:
    case ESP_MSG_STORED:
    case ESP_MSG_RESULT:
    case ESP_MSG_TRACE:
    case ESP_MSG_VERIFIED:
    case ESP_MSG_FETCH:
    case ESP_MSG_WARMED:
    case ESP_MSG_MOVED:
        return true;
    default:
        return false;
    }
}

static bool is_client_kind(enum esp_msg_kind kind)
{
    switch (kind) {
    case ESP_MSG_REQUEST:
    case ESP_MSG_RESUME:
    case ESP_MSG_CANCEL:
    case ESP_MSG_STATUS_QUERY:
    case ESP_MSG_VERIFY_QUERY:
    case ESP_MSG_DRAIN:
        return true;
    default:
        return false;
    }
}

bool esp_server_may_log(struct esp_server *sv, const struct esp_peer *from)
{
    struct esp_server_noise *noise = &sv->noise;
    const double now = esp_now_seconds();

    for (uint32_t i = 0; i < ESP_SERVER_LIARS; i++) {
        if (noise->named[i].n > 0 && esp_peer_equal(&noise->named[i], from)) {
            noise->n_unlogged++;
            return false;
        }
    }
    if (now - noise->since >= 1) {
        noise->since = now;
        noise->n = 0;
        if (noise->n_unlogged > 0)
            esp_log(sv->log, ESP_LOG_WARN, "bad_messages_unlogged n=%" PRIu64, noise->n_unlogged);
        noise->n_unlogged = 0;
    }
    if (noise->n == NOISE_A_SECOND) {
        noise->n_unlogged++;
        return false;
    }
    noise->n++;
    noise->named[noise->next++ % ESP_SERVER_LIARS] = *from;
    return true;
}

/* Nonsense from someone: told, logged once, and dropped with all that is theirs. */
static void refuse(struct esp_server *sv, const struct esp_peer *from, struct esp_worker *worker,
                   const char *text)
{
    char name[64];

    if (worker) {
        esp_server_drop_worker(sv, worker, ESP_E_PROTO, text, true);
        return;
    }
    if (esp_server_may_log(sv, from))
        esp_log(sv->log, ESP_LOG_WARN, "peer=%s%s%s%s%s bad_message why=\"%s\" action=drop",
                esp_peer_text(from, name, sizeof name), from->member ? " " : "",
                from->member ? esp_member_name(from->member) : "", from->member ? "=" : "", from->user, text);
    esp_server_tell_error(sv, from, 0, ESP_E_PROTO, text);
    esp_server_drop_client(sv, from);
}

/* Whether a peer's key is of the kind that may say this; true for everybody where there are no keys. */
static bool may_say(const struct esp_peer *from, enum esp_msg_kind kind, char *text, size_t n_text)
{
    if (from->member == ESP_MEMBER_NONE || (from->member == ESP_MEMBER_WORKER && !is_client_kind(kind)) ||
        (from->member == ESP_MEMBER_CLIENT && !is_worker_kind(kind)))
        return true;
    snprintf(text, n_text, "a %s takes a %s's key, and %s's is a %s's", esp_msg_name(kind),
             from->member == ESP_MEMBER_WORKER ? "client" : "worker", from->user,
             esp_member_name(from->member));
    return false;
}

static void take_messages(struct esp_server *sv)
{
    for (int i = 0; i < BURST; i++) {
        struct esp_peer from = {0};
        struct esp_msg msg = {0};
        struct esp_err err = {0};
        struct esp_worker *worker;
        char text[192];
        esp_status st = esp_link_recv(sv->link, &from, &msg, &err);

        if (st == ESP_E_TIMEOUT)
            return;
        worker = from.n ? esp_roster_find(sv->roster, &from) : NULL;
        if (st == ESP_E_PROTO) {
            refuse(sv, &from, worker, err.text);
        } else if (st) {
            esp_log(sv->log, ESP_LOG_ERROR, "receive_failed why=\"%s\"", err.text);
        } else if (!may_say(&from, msg.kind, text, sizeof text)) {
            refuse(sv, &from, worker, text);
        } else if (is_client_kind(msg.kind) && !worker) {
            esp_server_from_client(sv, &from, &msg);
        } else if (is_worker_kind(msg.kind)) {
            if (worker)
                worker->last_heard = esp_now_seconds();
            esp_server_from_worker(sv, &from, worker, &msg);
        } else {
            snprintf(text, sizeof text, "a %s is nothing to send to a coordinator%s", esp_msg_name(msg.kind),
                     worker ? " as a worker" : "");
            refuse(sv, &from, worker, text);
        }
        esp_msg_finish(&msg);
    }
}

static void take_leave(struct esp_server *sv)
{
    struct esp_err why;

    esp_fail(&why, ESP_E_CLOSED, "the coordinator is shutting down");
    for (uint32_t i = 0; i < esp_roster_count(sv->roster); i++) {
        struct esp_msg msg = {.kind = ESP_MSG_BYE};
        msg.bye.why = why.text;
        esp_server_tell_worker(sv, esp_roster_at(sv->roster, i), &msg);
    }
    for (struct esp_session *s = esp_sched_first(sv->sched); s; s = s->next)
        if (!s->final_sent && !s->client_gone && !s->away)
            esp_server_tell_error(sv, &s->client, s->request, why.code, why.text);
    esp_server_journal_farewell(sv);
}

esp_status esp_server_run(struct esp_server *sv, int stop_fd, struct esp_err *err)
{
    esp_log(sv->log, ESP_LOG_INFO, "listening endpoint=%s workers=%u context=%u kv_tokens=%u max_images=%u",
            sv->endpoint, sv->opt.n_workers, sv->cluster_opt.sizing.context, sv->cluster_opt.sizing.kv_tokens,
            sv->cluster_opt.sizing.max_images);
    sv->next_beat = sv->watched_at = esp_now_seconds();
    for (;;) {
        struct esp_wait waits[5] = {{.link = sv->link},
                                    {.fd = esp_prepare_fd(sv->prepare)},
                                    {.fd = stop_fd},
                                    {.fd = esp_supply_fd(sv->supply)}};
        uint32_t n_waits = 4;
        double wait_s;
        esp_status st;
        double now = esp_now_seconds();

        if (sv->journal)
            waits[n_waits++].fd = esp_journal_fd(sv->journal);
        esp_server_watch(sv, now);
        esp_server_watch_verify(sv, now);
        esp_server_journal(sv, now);
        esp_server_dispatch(sv);
        esp_server_deliver(sv, now);
        wait_s = sv->next_beat - esp_now_seconds();
        if (esp_server_weights(sv) && wait_s > SEND_AGAIN_MS / 1000.0)
            wait_s = SEND_AGAIN_MS / 1000.0;
        if (sv->n_probes > 0 && wait_s > sv->next_probe - esp_now_seconds())
            wait_s = sv->next_probe - esp_now_seconds();
        if (esp_sched_first(sv->sched) && wait_s > LIVELY_MS / 1000.0)
            wait_s = LIVELY_MS / 1000.0;
        st = esp_link_wait(waits, n_waits, wait_s > 0 ? (int)ceil(wait_s * 1000) : 0, err);
        if (st && st != ESP_E_TIMEOUT)
            return st;
        if (waits[2].ready) {
            take_leave(sv);
            return ESP_OK;
        }
        if (esp_link_drops(sv->link) > 0)
            esp_server_probe(sv);
        take_messages(sv);
        esp_server_prepared(sv);
    }
}
