/**
 * `espalier cluster`: what its subcommands share.
 */
#ifndef ESP_CLI_CLUSTER_H
#define ESP_CLI_CLUSTER_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "cli/client.h"
#include "cli/term.h"

struct esp_cluster_ask {
    const char *endpoint, *keys;
    const char *worker; /* drain: whose layers */
    uint32_t timeout_s; /* for the first answer */
    uint32_t watch_s;   /* status: again after so many; 0: once */
    bool json;
    struct esp_term term;
};

/**
 * What `status`, `placement` and `drain` do, over a client that has just been made.
 * Errors: as esp_client_status and esp_client_order; ESP_E_IO: standard output.
 */
esp_status esp_cluster_status(struct esp_cluster_ask *ask, struct esp_client *client, struct esp_err *err);
esp_status esp_cluster_placement(struct esp_cluster_ask *ask, struct esp_client *client, struct esp_err *err);
esp_status esp_cluster_drain(struct esp_cluster_ask *ask, struct esp_client *client, struct esp_err *err);

/** What `status` shows people. */
void esp_cluster_print_status(FILE *f, const struct esp_msg_status *status);

/**
 * The workers with encoder (or decoder) layers, in the order in which they follow each other.
 * @param out  room for status->n_workers; borrowed from the status
 * @return how many there are
 */
uint32_t esp_placement_chain(const struct esp_worker_status **out, const struct esp_msg_status *status,
                             bool decoder);

/** The worker whose stage sets the pace, by prediction; NULL where nothing is predicted. */
const struct esp_worker_status *esp_placement_busiest(const struct esp_msg_status *status);

#endif
