/* What client.c and client_ask.c share; nobody else includes it. */
#ifndef ESP_CLI_CLIENT_STATE_H
#define ESP_CLI_CLIENT_STATE_H

#include "cli/client.h"
#include "proto/keys.h"

#define ESP_CLIENT_ANSWER_MS                                                                                 \
    10000 /* a coordinator elsewhere that is asked for its status answers within this */
#define ESP_CLIENT_QUIET_MS 1000 /* silence after which it is reminded of us, again and again */

struct esp_client {
    struct esp_keys *keys; /* NULL: none */
    bool heard;            /* something came: the handshake is behind us */
    struct esp_net *net;
    struct esp_link *link;
    struct esp_embed *embed;  /* borrowed; NULL: a cluster elsewhere */
    struct esp_term *term;    /* borrowed */
    const char *endpoint;     /* borrowed */
    uint64_t last_id;         /* of requests, status queries and orders */
    struct esp_asking *first; /* requests that were begun and not taken, in that order */
    int answer_ms, patience_ms;
};

/** Sends; waits until `until` (esp_now_ms) for room where there is none: a link that is not connected yet may have none. */
esp_status esp_client_send_soon(struct esp_client *client, struct esp_msg *msg, int64_t until,
                                struct esp_err *err);

/**
 * The next message of any kind. @param until  esp_now_ms; -1: for ever
 * Errors: ESP_E_TIMEOUT at `until`, ESP_E_CANCELLED after a signal, ESP_E_CLOSED, ESP_E_PROTO.
 */
esp_status esp_client_recv(struct esp_client *client, struct esp_msg *msg, int64_t until,
                           struct esp_err *err);

/** Sleeps until there is something to look at, or `until`; signals end it or, without heed_signals, count for nothing. */
esp_status esp_client_nap(struct esp_client *client, int64_t until, bool heed_signals, struct esp_err *err);

/** Cancels a request or a verification, and gives the coordinator two seconds to say that it has ended. */
void esp_client_cancel(struct esp_client *client, uint64_t id);

#endif
