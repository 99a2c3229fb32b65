/**
 * Steps on their way: made from the parts of one or more sessions, kept until their rows come home.
 *
 * Sessions know only their own rows, counted from 0; here they are laid one after the other, and what comes
 * back is held against what was asked and cut up again. Pure.
 */
#ifndef ESP_COORDINATOR_FLIGHT_H
#define ESP_COORDINATOR_FLIGHT_H

#include <stdint.h>

#include "coordinator/decode.h"
#include "proto/status.h"
#include "proto/wire.h"

struct esp_session;

struct esp_flight_part {
    struct esp_session *session;
    uint32_t row, n_rows;   /* its rows of the step */
    uint32_t want, n_wants; /* its wants */
    uint32_t full;          /* full rows before its first */
};

struct esp_flight {
    struct esp_flight *next;
    double sent;    /* seconds */
    double doubted; /* since when it should have been home; 0: it may well be on its way */
    uint32_t n_parts, n_full;
    struct esp_flight_part *parts;
    struct esp_msg_step step; /* its arrays are the flight's */
    int32_t *ids;             /* i32[step.rows]: the frame */
};

/** What a step holds of everything that is limited: zeros, then a part at a time. */
struct esp_flight_sum {
    size_t rows, wants, seqs, forks, free, images;
    size_t full_bytes; /* of the logits that come back */
};
void esp_flight_add(struct esp_flight_sum *sum, const struct esp_part *part);

/** Whether a step may hold it: ESP_E_LIMIT. */
esp_status esp_flight_limits(const struct esp_flight_sum *sum, struct esp_err *err);

/** What goes into a step: a session and its part. */
struct esp_flight_load {
    struct esp_session *session;
    const struct esp_part *part;
};

/**
 * @param loads  n >= 1 of them; everything in them is copied
 * Errors: ESP_E_NOMEM, ESP_E_LIMIT as esp_flight_limits.
 */
esp_status esp_flight_create(struct esp_flight **out, uint64_t epoch, uint64_t id,
                             const struct esp_flight_load *loads, uint32_t n, bool trace,
                             struct esp_err *err);
void esp_flight_destroy(struct esp_flight **flight);

/**
 * Holds a Result, which esp_wire_unpack has passed, against its step: the rows asked for in that order, as
 * many candidates as asked for, ids inside of the vocabulary, the full rows that were asked for, all of them
 * finite.
 *
 * @param full  f32[n_full, V], aligned, or NULL
 * Errors: ESP_E_PROTO, with what is wrong: the sender is broken or lying.
 */
esp_status esp_flight_check(const struct esp_flight *flight, const struct esp_msg_result *result,
                            const float *full, uint32_t vocab, struct esp_err *err);

#endif
