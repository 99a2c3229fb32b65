/**
 * Whose request is admitted next: stride scheduling over clients, so that who asks for much waits for his own
 * requests and not others for them.
 *
 * A client is a key where there are keys, otherwise a connection. It has spent what was given to its requests; of those
 * that wait, the one of the client that has spent least is next. Who comes, or comes back, has spent as much as the
 * last one that was given something, so that nobody saves up for later by asking for nothing (the start tags of Goyal,
 * Vin and Cheng, "Start-time Fair Queueing", SIGCOMM 1996). While nobody waits nothing is counted: room that nobody
 * else wanted is no debt. Pure.
 */
#ifndef ESP_COORDINATOR_SHARES_H
#define ESP_COORDINATOR_SHARES_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/link.h"

/** The same key, or without keys the same connection. */
bool esp_same_client(const struct esp_peer *a, const struct esp_peer *b);

struct esp_share {
    struct esp_share *next;
    struct esp_peer peer;
    uint64_t spent;
    uint32_t n_waiting; /* requests; only while there are any may somebody hold on to this */
};

struct esp_shares { /* zeros: nobody */
    struct esp_share *first;
    uint32_t n_waiting;
    uint64_t now; /* what the last one that was given something had spent before */
};

/** A request of this client begins to wait; NULL without memory, and it does not. */
struct esp_share *esp_shares_wait(struct esp_shares *shares, const struct esp_peer *peer);

/** A request that waited is given something that costs so much, or goes away (0, false). Clears *share. */
void esp_shares_leave(struct esp_shares *shares, struct esp_share **share, uint64_t cost, bool given);

void esp_shares_finish(struct esp_shares *shares);

#endif
