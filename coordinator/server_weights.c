/* The server's part in streaming weights: who gets the manifest, and what the supply has ready for whom. */
#include <stdio.h>

#include "coordinator/server_state.h"

/* Once there is one; whoever cannot get one is told why. */
static void send_manifest(struct esp_server *sv, struct esp_worker *w)
{
    struct esp_msg msg;
    struct esp_err err;
    esp_status st = esp_supply_manifest(sv->supply, &msg, &err);

    if (st == ESP_E_TIMEOUT)
        return;
    if (!st) {
        w->has_manifest = true;
        esp_server_tell_worker(sv, w, &msg);
        return;
    }
    esp_server_tell_error(sv, &w->peer, 0, st, err.text);
    snprintf(w->cause, sizeof w->cause, "no weights for it: %.400s", err.text);
    w->lost = true;
}

void esp_server_weights_join(struct esp_server *sv, struct esp_worker *w)
{
    struct esp_err err;

    if (esp_supply_join(&w->customer, sv->supply, &err)) {
        snprintf(w->cause, sizeof w->cause, "no weights for it: %.400s", err.text);
        w->lost = true;
        return;
    }
    send_manifest(sv, w);
}

void esp_server_weights_leave(struct esp_server *sv, const struct esp_worker *w)
{
    esp_supply_leave(sv->supply, w->customer);
}

void esp_server_from_fetch(struct esp_server *sv, struct esp_worker *w, const struct esp_msg_fetch *fetch)
{
    struct esp_err err;
    esp_status st;

    if (w->streams && !w->has_manifest)
        return; /* of its former conversation with us: it was on its way when the worker said hello again */
    st = w->streams ? esp_supply_fetch(sv->supply, w->customer, fetch, &err)
                    : esp_fail(&err, ESP_E_PROTO, "a fetch, though it has a checkpoint");
    if (st)
        esp_server_drop_worker(sv, w, ESP_E_PROTO, err.text, true);
}

bool esp_server_weights(struct esp_server *sv)
{
    bool stuck = false;

    esp_supply_heard(sv->supply);
    for (uint32_t i = 0; i < esp_roster_count(sv->roster); i++) {
        struct esp_worker *w = esp_roster_at(sv->roster, i);
        struct esp_msg msg;

        if (!w->streams || w->lost)
            continue;
        if (!w->has_manifest)
            send_manifest(sv, w);
        while (!w->lost && esp_supply_next(sv->supply, w->customer, &msg)) {
            struct esp_err err;
            esp_status st = esp_link_send(sv->link, &w->peer, &msg, &err);

            if (st == ESP_E_LIMIT) { /* kept for the next round */
                stuck = true;
                break;
            }
            esp_supply_sent(sv->supply, w->customer);
            if (!st)
                continue;
            w->lost = true;
            snprintf(w->cause, sizeof w->cause, "cannot be sent a chunk of weights: %.400s",
                     st == ESP_E_CLOSED ? "its connection is gone" : err.text);
        }
    }
    return stuck;
}
