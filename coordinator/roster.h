/**
 * The workers that have joined: who they are, what they last said, when they were last heard of.
 *
 * Pure data: no socket, no clock (times are passed in), so its rules are unit-tested alone. Placing them is
 * cluster.h's business.
 */
#ifndef ESP_COORDINATOR_ROSTER_H
#define ESP_COORDINATOR_ROSTER_H

#include <stdbool.h>
#include <stdint.h>

#include "coordinator/meter.h"
#include "model/checkpoint.h"
#include "proto/link.h"
#include "proto/status.h"
#include "proto/wire.h"

enum esp_worker_state {
    ESP_WORKER_JOINED,  /* no placement has named it yet */
    ESP_WORKER_LOADING, /* a Place with layers went out, its Ready has not come */
    ESP_WORKER_READY,
    ESP_WORKER_SPARE, /* placed without layers */
    ESP_WORKER_FAILED /* could not do what it was placed for: stays in sight, takes no part */
};

#define ESP_DEVICE_TEXT_MAX 256 /* bytes of each string of a device report that we keep */

/** What a worker's messages tell of how it does; server_status.c keeps it. */
struct esp_worker_tally {
    double rtt;            /* seconds to it and back, a mean; 0: not known yet */
    struct esp_meter busy; /* seconds that its device computed */
    struct esp_stage_plan
        measured; /* means of a picture, a prefill, a decoding step of the layers below; 0: none yet */
    uint32_t enc_lo, enc_hi, dec_lo, dec_hi;
};

struct esp_worker {
    struct esp_peer peer;
    char name[ESP_MAX_NAME + 1];
    char endpoint[ESP_MAX_ENDPOINT + 1]; /* of its data socket */
    char key[ESP_KEY_TEXT + 1];          /* of its data socket; "" without keys */
    char software[64];
    char device_name[ESP_DEVICE_TEXT_MAX], device_driver[ESP_DEVICE_TEXT_MAX], device_variant[64];
    struct esp_msg_device device; /* its strings are the three above */

    enum esp_worker_state state;
    double last_heard;                /* seconds, the caller's clock */
    uint64_t epoch;                   /* of the last Place sent to it; 0: none */
    struct esp_msg_place place;       /* that Place; its strings are not kept (NULL) */
    uint64_t done_bytes, total_bytes; /* loading */
    struct esp_msg_ready ready;       /* of `epoch`, once READY */
    struct esp_msg_heartbeat beat;    /* the last one */
    struct esp_stage_plan predicted;  /* of its layers, by its rates; zeros for a spare */
    struct esp_worker_tally tally;
    uint64_t verify; /* the verification that it owes reports for; 0: none */
    uint32_t verify_done;
    bool verify_deviates;
    char cause[ESP_ERR_TEXT_MAX];                             /* FAILED or lost: why */
    bool lost;                                                /* a message could not be sent: to be removed */
    enum { ESP_WARM_NO, ESP_WARM_ASKED, ESP_WARM_DONE } warm; /* it loads weights for a placement to come */
    uint64_t warm_done, warm_total;
    uint64_t had_epoch; /* under an earlier coordinator: what may still come of that is stale */
    bool draining;      /* somebody wants it out: no placement takes it */

    bool streams;      /* it has no checkpoint, and fetches its weights from us */
    bool has_manifest; /* and has been sent what there is */
    uint64_t customer; /* its number with the supply */
};

struct esp_roster;

/** @param fingerprint  of our checkpoint; a worker with another one is refused */
esp_status esp_roster_create(struct esp_roster **out, const uint8_t fingerprint[ESP_FINGERPRINT_BYTES],
                             struct esp_err *err);
void esp_roster_destroy(struct esp_roster **roster);

/** Workers in the order of their names (w9 before w10), so that who joins first, which is chance, decides
 * nothing: a split by hand means its workers in this order. Pointers stay good until the worker is
 * removed. */
uint32_t esp_roster_count(const struct esp_roster *roster);
struct esp_worker *esp_roster_at(const struct esp_roster *roster, uint32_t i);
struct esp_worker *esp_roster_find(const struct esp_roster *roster, const struct esp_peer *peer);
struct esp_worker *esp_roster_named(const struct esp_roster *roster, const char *name);

/** How many are neither FAILED nor draining. */
uint32_t esp_roster_usable(const struct esp_roster *roster);

/**
 * Takes in a worker by its Hello.
 *
 * @param out    the new entry, the roster's
 * @param hello  borrowed; its strings are copied
 * Errors, each for the peer to read: ESP_E_ARG (the name is taken, or this peer has joined already),
 * ESP_E_FORMAT (it holds another checkpoint), ESP_E_PROTO (a device report that makes no sense), ESP_E_LIMIT,
 * ESP_E_NOMEM.
 */
esp_status esp_roster_join(struct esp_worker **out, struct esp_roster *roster, const struct esp_peer *peer,
                           const struct esp_msg_hello *hello, double now, struct esp_err *err);

/** Forgets a worker; clears *worker. */
void esp_roster_remove(struct esp_roster *roster, struct esp_worker **worker);

/** A worker not heard of for more than timeout seconds, or NULL. */
struct esp_worker *esp_roster_expired(const struct esp_roster *roster, double now, double timeout);

/** "joining", "loading", "ready", "spare", "failed". */
const char *esp_worker_state_name(enum esp_worker_state state);

#endif
