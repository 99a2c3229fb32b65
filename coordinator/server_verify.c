/* Checking the stages: a client asks, every stage computes the built-in input and says layer by layer how far it is
 * from the reference, and the client is told. One at a time. What ends early is told as a cause of each worker's. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "coordinator/server_state.h"

#define TELL_EVERY_S 2.0 /* while it waits for the cluster */

static void end(struct esp_server *sv)
{
    for (uint32_t i = 0; i < esp_roster_count(sv->roster); i++)
        esp_roster_at(sv->roster, i)->verify = 0;
    memset(&sv->verify, 0, sizeof sv->verify);
}

/* A client that cannot take a report is not asked for patience: a check with holes would mislead. */
static bool tell(struct esp_server *sv, struct esp_msg *msg)
{
    struct esp_err err;
    const esp_status st = esp_link_send(sv->link, &sv->verify.client, msg, &err);

    if (!st)
        return true;
    esp_log(sv->log, ESP_LOG_DEBUG, "verify=%" PRIu64 " given_up why=\"the client cannot be told: %s\"",
            sv->verify.id, err.text);
    if (st != ESP_E_CLOSED)
        esp_server_tell_error(sv, &sv->verify.client, sv->verify.query, st, err.text);
    end(sv);
    return false;
}

/* A worker's last report or not; `m` NULL: it could not, and that is why. */
static void report(struct esp_server *sv, struct esp_worker *w, const struct esp_msg_verified *m,
                   const char *why)
{
    struct esp_verification *v = &sv->verify;
    struct esp_msg msg = {.kind = ESP_MSG_VERIFY_REPORT};

    if (!m || m->done == m->total) {
        w->verify = 0;
        v->n_left--;
    }
    msg.verify_report = (struct esp_msg_verify_report){.id = v->query,
                                                       .worker = w->name,
                                                       .device = w->device_name,
                                                       .driver = w->device_driver,
                                                       .layer = m ? m->layer : "",
                                                       .error = m ? m->error : 0,
                                                       .limit = m ? m->limit : 0,
                                                       .done = m ? m->done : 0,
                                                       .total = m ? m->total : 0,
                                                       .n_workers = v->n_workers,
                                                       .n_left = v->n_left,
                                                       .why = why};
    if (!tell(sv, &msg) || v->n_left > 0)
        return;
    esp_log(sv->log, ESP_LOG_INFO, "verify=%" PRIu64 " done workers=%" PRIu32 " deviating=%" PRIu32, v->id,
            v->n_workers, v->n_deviating);
    end(sv);
}

static void begin(struct esp_server *sv)
{
    struct esp_verification *v = &sv->verify;
    struct esp_msg msg = {.kind = ESP_MSG_VERIFY};

    v->id = ++sv->last_verify;
    v->epoch = sv->cluster.epoch;
    v->n_workers = v->n_left = sv->cluster.n_stages;
    esp_log(sv->log, ESP_LOG_DEBUG, "verify=%" PRIu64 " begins epoch=%" PRIu64 " workers=%" PRIu32, v->id,
            v->epoch, v->n_workers);
    msg.verify = (struct esp_msg_verify){.id = v->id, .epoch = v->epoch};
    for (uint32_t i = 0; i < sv->cluster.n_stages; i++) {
        struct esp_worker *w = sv->cluster.stage[i];

        w->verify = v->id;
        w->verify_done = 0;
        w->verify_deviates = false;
        esp_server_tell_worker(sv, w, &msg);
    }
}

void esp_server_verify(struct esp_server *sv, const struct esp_peer *from, uint64_t query)
{
    if (sv->verify.query) {
        esp_server_tell_error(sv, from, query, ESP_E_LIMIT,
                              "another verification is under way: ask again when it is done");
        return;
    }
    sv->verify = (struct esp_verification){.query = query, .client = *from};
    esp_server_watch_verify(sv, esp_now_seconds());
}

bool esp_server_cancel_verify(struct esp_server *sv, const struct esp_peer *from, uint64_t query)
{
    if (!sv->verify.query || sv->verify.query != query || !esp_peer_equal(&sv->verify.client, from))
        return false;
    esp_log(sv->log, ESP_LOG_DEBUG, "verify=%" PRIu64 " cancelled", sv->verify.id);
    esp_server_tell_error(sv, from, query, ESP_E_CANCELLED, "cancelled");
    end(sv);
    return true;
}

void esp_server_verify_client_gone(struct esp_server *sv, const struct esp_peer *peer)
{
    if (sv->verify.query && esp_peer_equal(&sv->verify.client, peer))
        end(sv);
}

void esp_server_verified(struct esp_server *sv, struct esp_worker *w, const struct esp_msg_verified *m)
{
    const bool deviates = !(m->error <= m->limit);

    if (m->id > sv->last_verify || (w->verify == m->id && m->done != w->verify_done + 1)) {
        esp_server_drop_worker(sv, w, ESP_E_PROTO, "verified what it was not asked to", true);
        return;
    }
    if (w->verify != m->id)
        return; /* of one that nobody waits for any more */
    w->verify_done = m->done;
    if (deviates && !w->verify_deviates) {
        w->verify_deviates = true;
        sv->verify.n_deviating++;
        esp_log(sv->log, ESP_LOG_ERROR,
                "worker=%s verify=%" PRIu64
                " deviates layer=%s error=%.3g limit=%.3g device=\"%s\" driver=\"%s\"",
                w->name, m->id, m->layer, m->error, m->limit, w->device_name, w->device_driver);
    }
    report(sv, w, m, "");
}

void esp_server_verify_failed(struct esp_server *sv, struct esp_worker *w, uint64_t id, const char *why)
{
    if (id > sv->last_verify) {
        esp_server_drop_worker(sv, w, ESP_E_PROTO, "an error of a verification that has not been", true);
        return;
    }
    if (w->verify != id)
        return;
    esp_log(sv->log, ESP_LOG_WARN, "worker=%s verify=%" PRIu64 " failed why=\"%s\"", w->name, id, why);
    report(sv, w, NULL, why);
}

void esp_server_verify_lost(struct esp_server *sv, struct esp_worker *w, const char *why)
{
    if (w->verify)
        report(sv, w, NULL, why);
}

/* The layers that were to be checked are not where they were. */
static void fail_all(struct esp_server *sv, const char *why)
{
    const uint64_t id = sv->verify.id;

    for (uint32_t i = 0; sv->verify.id == id && i < esp_roster_count(sv->roster); i++)
        esp_server_verify_lost(sv, esp_roster_at(sv->roster, i), why);
}

void esp_server_watch_verify(struct esp_server *sv, double now)
{
    struct esp_verification *v = &sv->verify;
    struct esp_msg msg = {.kind = ESP_MSG_WAITING};

    if (!v->query)
        return;
    if (v->id) {
        if (!sv->cluster.placed || sv->cluster.epoch != v->epoch)
            fail_all(sv, "the model was placed anew meanwhile: ask again");
        return;
    }
    if (sv->broken) {
        esp_server_tell_error(sv, &v->client, v->query, sv->why.code, sv->why.text);
        end(sv);
    } else if (sv->cluster.ready) {
        begin(sv);
    } else if (now - v->told_at >= TELL_EVERY_S) {
        msg.waiting = (struct esp_msg_waiting){.session = v->query, .what = sv->why.text};
        v->told_at = now;
        (void)tell(sv, &msg);
    }
}
