/**
 * Replies as JSON, and as tables for people. Numbers with 17 digits: what is read back is what was computed;
 * what is not finite is null.
 */
#ifndef ESP_CLI_REPORT_H
#define ESP_CLI_REPORT_H

#include <jansson.h>

#include "cli/client.h"
#include "cli/findings.h"
#include "proto/status.h"

/**
 * What `run --json` prints.
 *
 *   text, ids (without the end token), logprobs (one an id), eos_logprob (null unless it ended so), finish,
 *   prompt_ids (without image tokens), image_tokens, objects [{label, box [y0, x0, y1, x1] in pixels, score, mask (a
 * file), rle {size, counts}, seg}], malformed [{text, at, why}], timing {load, encode, prefill, decode, queue in
 * seconds, images_cached, rebuilds}, stages [{worker, device, driver, variant, software, encoder [lo, hi), decoder [lo, hi),
 * weight_bytes, kv_bytes, scratch_bytes, compute_seconds, queue_seconds}]; with `several` (beams, best-of-n)
 * also score and hypotheses [{text, ids, logprobs, eos_logprob, finish, sum, score}].
 *
 * @param out  json_decref frees it
 */
esp_status esp_report_run(json_t **out, const struct esp_reply *reply, const struct esp_findings *found,
                          bool several, struct esp_err *err);

/**
 * What `score --json` prints: ids and logprobs, the end token's last where it was scored, sum, mean,
 * perplexity; then prompt_ids, image_tokens, timing, stages as above.
 *
 * @param has_eos  the end token's id is known; otherwise it is null in ids
 */
esp_status esp_report_score(json_t **out, const struct esp_reply *reply, bool has_eos, uint32_t eos,
                            struct esp_err *err);

/** What `cluster status`, `cluster placement` and `cluster drain` print with --json: docs/cli.md. What is not known
 * (yet) is null. */
esp_status esp_report_status(json_t **out, const struct esp_msg_status *status, struct esp_err *err);
esp_status esp_report_placement(json_t **out, const struct esp_msg_status *status, struct esp_err *err);
esp_status esp_report_drained(json_t **out, const struct esp_msg_drained *drained, struct esp_err *err);

/** A layer and how far it is from the reference. */
struct esp_verified_layer {
    char name[ESP_MAX_NAME + 1]; /* "": none */
    double error, limit;
};

/** What a verification has found of a worker. */
struct esp_verified {
    char worker[ESP_MAX_NAME + 1], device[256], driver[256];
    uint32_t n_done, n_total, n_wrong; /* checks: a layer is checked once for each way to run it */
    struct esp_verified_layer worst;   /* by error over limit */
    struct esp_verified_layer first_wrong;
    bool failed; /* it could not go on: why */
    struct esp_err why;
};

/** What `verify --json` prints: docs/cli.md. */
esp_status esp_report_verified(json_t **out, const struct esp_verified *workers, uint32_t n,
                               struct esp_err *err);

/** Prints and frees *json on stdout, with a newline. NULL is refused as out of memory. */
esp_status esp_report_print(json_t *json, struct esp_err *err);

/** An array of ids; NULL without memory. */
json_t *esp_json_ids(const uint32_t *ids, size_t n);

#endif
