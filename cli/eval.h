/* What eval.c and eval_run.c share: an evaluation from its options to its metrics. */
#ifndef ESP_CLI_EVAL_H
#define ESP_CLI_EVAL_H

#include "cli/ask.h"
#include "cli/decoding.h"
#include "cli/eval_data.h"
#include "cli/eval_results.h"
#include "cli/eval_score.h"

struct esp_eval {
    struct esp_ask ask; /* the cluster; its pictures and prompt are not used */
    struct esp_decoding decoding;
    uint32_t in_flight; /* requests under way at once, at most */

    struct esp_eval_data data;
    struct esp_eval_score *scores; /* of each of the data's examples */
    uint32_t *which;               /* the examples that count, in the data's order */
    uint32_t n_which;
    uint32_t *todo; /* those of them that have no answer yet, those about one picture together */
    uint32_t n_todo;
    struct esp_eval_results *results; /* NULL: not kept */
    struct esp_eval_masks masks;      /* draw NULL: none */

    /* This run. */
    uint32_t n_done, n_failed;
    double seconds; /* from the first request that was taken on to the last answer */
};

/**
 * Asks all that is to do, many at once, and keeps scores and results. Pictures are sent with each request about them, but
 * those about one stand together, so that the cluster encodes it once.
 *
 * An example may fail; the others go on. Errors: ESP_E_CANCELLED after a signal, ESP_E_CLOSED or ESP_E_TIMEOUT when the
 * coordinator is gone, ESP_E_IO (results cannot be written), what the first twenty failed with if none of them went well.
 */
esp_status esp_eval_run(struct esp_eval *eval, struct esp_err *err);

#endif
