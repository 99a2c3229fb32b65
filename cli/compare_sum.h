/**
 * Two runs of the same examples side by side: how far next-token distributions and layers' outputs are apart.
 *
 *   KL      sum over the vocabulary of p (log p - log q), in nats, at each token of the answers and at their end; p is the first
 *           run's distribution, q the second's, both the softmax of float32 logits in float64
 *   layers  sqrt(sum |second - first|^2 / sum |first|^2) of a traced value over all its rows in all examples; of the logits
 *           over the rows of the answers
 */
#ifndef ESP_CLI_COMPARE_SUM_H
#define ESP_CLI_COMPARE_SUM_H

#include <jansson.h>
#include <stdio.h>

#include "cli/client.h"
#include "proto/status.h"

struct esp_compare_sum;

/** NULL without memory. */
struct esp_compare_sum *esp_compare_sum_create(void);
void esp_compare_sum_destroy(struct esp_compare_sum **sum);

/**
 * Appends what the first run said of an example to a file: the reply of a score with traces. Of the logits only the answer's
 * rows are kept, since a row of a large vocabulary is a megabyte.
 * Errors: ESP_E_IO; ESP_E_LIMIT (logits of so many rows are not traced).
 */
esp_status esp_compare_keep(const struct esp_reply *reply, FILE *file, struct esp_err *err);

/**
 * Reads the next example from there and adds the second run's to the sum.
 * Errors: ESP_E_ARG (the two models have other layers, widths or tokens), ESP_E_IO, ESP_E_LIMIT, ESP_E_NOMEM.
 */
esp_status esp_compare_with(struct esp_compare_sum *sum, const struct esp_reply *reply, FILE *file,
                            struct esp_err *err);

/** KL of softmax(b) from softmax(a), f32[n], in nats; NaN where logits are no numbers. */
double esp_compare_kl(const float *a, const float *b, size_t n);

/** A table for people; an object for programs (NULL without memory). */
void esp_compare_sum_print(const struct esp_compare_sum *sum, FILE *out);
json_t *esp_compare_sum_json(const struct esp_compare_sum *sum);

#endif
