/**
 * Which layers' KV a placement waits for, and how far each has come. Host memory only.
 *
 * A layer's blocks come in order, in one or more messages, and from one peer: who began a layer with a message that was
 * good is the one it is taken from. Checking and noting are apart, so that a message counts only if it could be used.
 */
#ifndef ESP_WORKER_INTAKE_H
#define ESP_WORKER_INTAKE_H

#include "model/config.h"
#include "proto/link.h"

/** Zeroed: nothing is waited for. */
struct esp_intake {
    uint32_t lo, hi; /* the placement's decoder layers */
    uint32_t n_left; /* layers of them that are not complete */
    struct esp_intake_layer {
        bool open;            /* waited for */
        uint32_t next, total; /* blocks that came, and how many there are; next 0: it has not begun */
        uint64_t n_bytes;     /* that came */
        struct esp_peer from;
    } layer[ESP_MAX_LAYERS]; /* of layers lo .. */
};

/** Waits for the decoder layers [lo, hi) but those of [had_lo, had_hi). hi - lo <= ESP_MAX_LAYERS. */
void esp_intake_begin(struct esp_intake *in, uint32_t lo, uint32_t hi, uint32_t had_lo, uint32_t had_hi);

/** Whether this is what comes next of its layer. Errors: ESP_E_PROTO. */
esp_status esp_intake_check(const struct esp_intake *in, const struct esp_msg_kv_blocks *msg,
                            const struct esp_peer *from, struct esp_err *err);

/** Notes a message that passed the check and was used. True: its layer is complete, with *n_bytes in all. */
bool esp_intake_took(struct esp_intake *in, const struct esp_msg_kv_blocks *msg, uint64_t n_bytes_here,
                     const struct esp_peer *from, uint64_t *n_bytes);

#endif
