/**
 * What a phase of a model must at least do: bytes it reads and operations it computes, whatever the kernels.
 */
#ifndef ESP_WORKER_BENCH_WORK_H
#define ESP_WORKER_BENCH_WORK_H

#include "worker/shelf.h"

enum esp_bench_phase { ESP_BENCH_ENCODE, ESP_BENCH_PREFILL, ESP_BENCH_DECODE };

struct esp_bench_work {
    double bytes; /* weights as they are packed, and keys and values that rows attend to, once each */
    double flop;  /* a multiplication and an addition are two; products and attention */
};

/**
 * @param spec   whole towers or none
 * @param n_seq  sequences at once; 1 but for decoding
 * @param n_ctx  positions that a row attends to: of the picture, of the prefix, or what decoding has come to
 * Errors: as esp_shelf_piece.
 */
esp_status esp_bench_work(struct esp_bench_work *out, struct esp_shelf *shelf,
                          const struct esp_stage_spec *spec, enum esp_bench_phase phase, uint32_t n_seq,
                          double n_ctx, struct esp_err *err);

#endif
