/**
 * The file of results: JSON lines, appended to as answers come, so that an evaluation that was stopped goes on where it
 * was.
 *
 *   {"espalier_eval": 1, "data": HASH, "model": HASH, "weights": "stored", "decoding": {...}}
 *   {"line": 3, "image": "a.jpg", "prompt": "caption en", "answer": "a cat", "text": "a dog", "ids": [...],
 *    "logprobs": [...], "finish": "eos", "scores": {...}}
 *   {"line": 4, ..., "error": "worker w1: ..."}
 *
 * The first line says what they belong to; those of another set, model or way of decoding are refused. A line that was
 * not written to its end is dropped. An example with an error counts as not answered; if an example has several
 * answers, the last one counts. Scores are for readers: they are made again from text, ids and log-probabilities.
 */
#ifndef ESP_CLI_EVAL_RESULTS_H
#define ESP_CLI_EVAL_RESULTS_H

#include <jansson.h>

#include "cli/eval_data.h"
#include "cli/eval_score.h"
#include "model/wtype.h"
#include "proto/status.h"

/** What results belong to; borrowed. */
struct esp_eval_header {
    uint8_t data[ESP_EVAL_HASH_BYTES];
    uint8_t model[32];      /* the checkpoint's fingerprint */
    enum esp_wtype weights; /* what the model's are held as; a file that does not say has them as stored */
    json_t *decoding;       /* an object */
};

struct esp_eval_results;

/**
 * Opens a results file, or makes one, and locks it against others who would write to it.
 *
 * @param out    esp_eval_results_close ends it; NULL on failure
 * @param heard  called for each answer that is there already, in the file's order: `example` is its number in the data;
 *               `answer` is borrowed for the call. A failure is passed on
 * Errors, with file and line: ESP_E_IO, ESP_E_FORMAT (no results, or those of something else), ESP_E_ARG (somebody
 * writes to it), ESP_E_LIMIT, ESP_E_NOMEM. The file is as it was then.
 */
esp_status esp_eval_results_open(struct esp_eval_results **out, const char *path,
                                 const struct esp_eval_data *data, const struct esp_eval_header *header,
                                 esp_status (*heard)(void *self, uint32_t example,
                                                     const struct esp_eval_answer *answer,
                                                     struct esp_err *err),
                                 void *self, struct esp_err *err);

/** Appends an answer with its scores (taken; NULL is out of memory), or a cause of failure. Errors: ESP_E_IO, ESP_E_NOMEM. */
esp_status esp_eval_results_answer(struct esp_eval_results *results, uint32_t example,
                                   const struct esp_eval_answer *answer, json_t *scores, struct esp_err *err);
esp_status esp_eval_results_failure(struct esp_eval_results *results, uint32_t example, const char *why,
                                    struct esp_err *err);

/** NULL inside is fine. */
void esp_eval_results_close(struct esp_eval_results **results);

#endif
