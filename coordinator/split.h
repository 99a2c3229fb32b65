/**
 * A split of the layers written by hand: "14/0,13/9,0/9" gives three stages 14, 13 and 0 encoder layers and
 * 0, 9 and 9 decoder layers, in the order of the stages.
 */
#ifndef ESP_COORDINATOR_SPLIT_H
#define ESP_COORDINATOR_SPLIT_H

#include <stdint.h>

#include "proto/status.h"

#define ESP_PLACE_MAX_WORKERS 256 /* stages of a split, workers of a placement */

struct esp_split {
    uint32_t n_stage; /* 1 .. ESP_PLACE_MAX_WORKERS */
    struct {
        uint32_t n_enc, n_dec; /* layers; not both 0 */
    } stage[ESP_PLACE_MAX_WORKERS];
};

/**
 * Parses `text` ("ENC/DEC,ENC/DEC,...", decimal digits only, no spaces) for a model of n_enc encoder and
 * n_dec decoder layers.
 *
 * @param out  the caller's; filled only on success
 * Errors: ESP_E_ARG, saying where the text is wrong, or what the numbers must sum to. Safe from any thread.
 */
esp_status esp_split_parse(struct esp_split *out, const char *text, uint32_t n_enc, uint32_t n_dec,
                           struct esp_err *err);

#endif
