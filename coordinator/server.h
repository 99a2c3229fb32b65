/**
 * The coordinator: one ROUTER socket that workers and clients speak to, and one loop that serves them.
 *
 * The loop sleeps until a message, a finished preparation, the stop descriptor or the next heartbeat. It
 * never computes for long: pictures are decoded on the preparation thread. What a peer sends is checked
 * against the state it is in; whoever says what cannot be is told so, once, and dropped, and nobody else
 * notices.
 *
 * In files: server.c the loop; server_workers.c joining, placing and what workers send; server_clients.c
 * requests and what clients are sent. What they decide by is pure and elsewhere: roster, cluster, sched,
 * decode.
 */
#ifndef ESP_COORDINATOR_SERVER_H
#define ESP_COORDINATOR_SERVER_H

#include <stdbool.h>
#include <stdint.h>

#include "coordinator/sizing.h"
#include "coordinator/supply.h"
#include "model/wtype.h"
#include "proto/log.h"
#include "proto/status.h"

struct esp_server_options {
    const char *model;  /* checkpoint directory */
    const char *bind;   /* endpoint */
    uint32_t n_workers; /* place once that many have joined; at least 1 */
    struct esp_sizing sizing;
    const char *split; /* "V/T,V/T,...", or NULL */
    bool final_softcap, insecure;
    enum esp_wtype weights; /* what workers hold matrices as */
    const char *keys;       /* the coordinator's key directory; NULL: none */
    const char *journal;    /* file; NULL: the default one of a tcp port (journal.h), else none */
    bool no_journal;
    uint32_t resume_within_s;          /* for clients of sessions that an earlier coordinator left; 0: 120 */
    uint32_t heartbeat_ms, timeout_ms; /* 0: 300 and 1600 */
    struct esp_supply_options supply;  /* weights for workers that have none */
};

struct esp_server;

/**
 * Opens the checkpoint and the socket.
 *
 * @param options  borrowed for the call; its strings and log for the server's life
 * Errors: as esp_checkpoint_open, esp_tokenizer_create, esp_link_bind; ESP_E_ARG for options that make no
 * sense.
 */
esp_status esp_server_create(struct esp_server **out, const struct esp_server_options *options,
                             const struct esp_log *log, struct esp_err *err);

/** Says goodbye to nobody: esp_server_run does. */
void esp_server_destroy(struct esp_server **server);

/** The endpoint really bound. */
const char *esp_server_endpoint(const struct esp_server *server);

/**
 * Serves until stop_fd is readable, then takes leave: Bye to the workers, Error to the clients that still
 * wait. Errors: ESP_E_IO if the sockets fail as such.
 */
esp_status esp_server_run(struct esp_server *server, int stop_fd, struct esp_err *err);

#endif
