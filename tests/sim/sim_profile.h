/**
 * The speed of a simulated device, from a JSON object. All fields may be left out; what is not named here is refused.
 *
 *   {"name": "Sim A",                    of the device
 *    "memory_mib": 1024,
 *    "encode_layer_seconds": 0.002,      an encoder layer, a picture
 *    "step_layer_seconds": 0.001,        a decoder layer, a step, whatever is in it
 *    "decode_row_seconds": 0.0001,       on top, a decoder layer, a row behind its sequence's prefix
 *    "prefill_row_seconds": 0.00001,     on top, a decoder layer, a row of a prefix
 *    "head_seconds": 0.001,              logits, a step that wants some
 *    "head_row_seconds": 0.0001,         on top, a row that does
 *    "load_bytes_per_second": 1e9,       weights, and
 *    "kv_bytes_per_second": 1e9,         KV blocks on their way out or in; 0: no time at all
 *    "jitter": 0.05,                     each time is drawn from (1 - jitter .. 1 + jitter) times its length
 *    "seed": 1}                          of that draw
 */
#ifndef ESP_TEST_SIM_PROFILE_H
#define ESP_TEST_SIM_PROFILE_H

#include <stddef.h>

#include "model/config.h"
#include "proto/status.h"

struct sim_profile {
    char name[64];
    uint64_t memory_bytes;
    double encode_layer_s, step_layer_s, decode_row_s, prefill_row_s, head_s, head_row_s;
    double load_rate, kv_rate; /* bytes/s; 0: at once */
    double jitter;
    uint32_t seed;
};

/** No time at all, 1 GiB. */
extern const struct sim_profile sim_profile_default;

/** Errors: ESP_E_FORMAT: names file, field and what is wrong. */
esp_status sim_profile_parse(struct sim_profile *out, const char *text, size_t n_bytes, const char *file,
                             struct esp_err *err);
/** The same of a file, and ESP_E_IO. */
esp_status sim_profile_load(struct sim_profile *out, const char *path, struct esp_err *err);

/**
 * What such a device would measure of itself: the bandwidth at which a decoder layer's bytes of one token take the
 * profile's time, and the matmul rate at which both towers' products of a picture and its prompt do. Placement makes
 * the profile's times of them again, as far as two numbers can hold six.
 */
esp_status sim_profile_rates(double *bandwidth, double *matmul_rate, const struct sim_profile *profile,
                             const struct esp_config *config, struct esp_err *err);

/**
 * The other way round: the times that such a device takes by the cost model of the placement (coordinator/cost.h), nine
 * tenths of a decoding step being the same whatever its rows. Changes only times; sim_profile_rates gives both rates
 * back where products are bound by the matmul rate.
 */
esp_status sim_profile_device(struct sim_profile *profile, double bandwidth, double matmul_rate,
                              const struct esp_config *config, struct esp_err *err);

#endif
