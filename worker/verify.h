/**
 * Whether a stage's device computes rightly: a built-in input goes through its layers, and what each made of it is
 * computed again on the CPU in float64 (model/reference_layer.h), from the checkpoint's own tensors (quantised, where
 * that is what the device has of them: the same values) and the device's own input of that layer, so that errors do not add up and the first wrong layer is known.
 *
 * Input: the first encoder stage gets a drawn picture, the first decoder stage fixed token ids; stages in the middle get
 * pseudo-random rows with a few columns far larger than the others, as trained models have them. Of a picture at most
 * ESP_VERIFY_PATCHES patches are run, and 16 rows of each layer's output are computed again, spread over all. Of text
 * a short sequence: a prefix and two rows after it in one step (the prefill kernels), then 1, 2, 4 and 8 rows a step,
 * which go through the matrix-vector kernels of each width, with all logits and the candidates of the last stage.
 *
 * The error of an output row is |device - reference| over what the layer adds, |reference - input|, in the Euclidean
 * norm: a residual stream far larger than what is added to it must hide nothing. Where it is more than 1000 times
 * larger the stream over 1000 counts instead, since float32 cannot resolve more of it. Other operations have no such
 * input: |reference| counts. The worst row is the layer's error.
 *
 * The limit: a sum of K float32 terms in order is off by 0.2 sqrt(K) 2^-24 of itself where terms are random, which is
 * 2e-6 for the longest of published models, and norms, softmax and GELU add a few roundings. Measured on lavapipe: up to
 * 4e-6. Products in float16 or tf32 are off by 2e-4 and more, in bfloat16 by ten times that: 1e-4 tells one from the other.
 * Where a stage rounds x for quantised weights (esp_stage_info) a row is off by 2e-4 or so, and the limit is 1e-3.
 */
#ifndef ESP_WORKER_VERIFY_H
#define ESP_WORKER_VERIFY_H

#include "worker/stage.h"

#define ESP_VERIFY_LIMIT     1e-4
#define ESP_VERIFY_ROUNDED   1e-3
#define ESP_VERIFY_NO_NUMBER 1e9 /* the error of what is no finite number, or further off than that */
#define ESP_VERIFY_PATCHES   256

struct esp_verify;

/** A check that has not begun. Errors: ESP_E_NOMEM. */
esp_status esp_verify_create(struct esp_verify **out, struct esp_err *err);
void esp_verify_destroy(struct esp_verify **verify);

/**
 * The next piece of device work, on the thread that owns the stage: the encoder's layers, then the decoder's. Its
 * sequence (ESP_SEQ_VERIFY) is gone again when it returns, so that nothing else runs short; a failure leaves nothing.
 *
 * @param stage  its checkpoint is borrowed until destroy
 * @param more   whether there is another one to run
 * Errors: ESP_E_LIMIT (no free KV block or sequence at the moment), ESP_E_ARG (no layers), ESP_E_NOMEM, ESP_E_DEVICE.
 * Results that are no numbers are no error: they are what is looked for.
 */
esp_status esp_verify_run(struct esp_verify *verify, struct esp_stage *stage, bool *more,
                          struct esp_err *err);

/** What there is to compare; once all is run. */
uint32_t esp_verify_n_parts(const struct esp_verify *verify);

struct esp_verify_result {
    char layer[64]; /* as in a trace, "prefill.layer.7", and "decode.layer.7" for the matrix-vector kernels */
    double error, limit; /* error <= limit: right */
};

/**
 * Compares part i, on any one thread; of a 3B model up to a second or two each.
 *
 * @param stop  asked between slices of it, with arg; NULL: never
 * Errors: ESP_E_NOMEM, ESP_E_CANCELLED (stop said so).
 */
esp_status esp_verify_part(struct esp_verify *verify, uint32_t i, bool (*stop)(void *arg), void *arg,
                           struct esp_verify_result *out, struct esp_err *err);

#endif
