/**
 * What bench*.c share: `espalier bench` measures a device alone (bench_device.c) or a cluster (bench_cluster.c), each as one
 * JSON object of which tables (bench_report.c) and pictures (bench_plot.c) are made.
 */
#ifndef ESP_CLI_BENCH_H
#define ESP_CLI_BENCH_H

#include <jansson.h>

#include "cli/ask.h"
#include "cli/bench_stats.h"

struct esp_bench {
    struct esp_ask ask; /* where, output; where.model is never NULL unless it is a cluster elsewhere */
    const char *shape;  /* as given; NULL: none */
    const char *layers; /* as given; NULL: all */
    uint32_t n_layers[2];
    struct esp_texts phases; /* none: all */
    struct esp_ids batch;
    uint32_t prompt, repeats, warm_up, steps;
    bool encode, prefill, decode; /* what phases comes to */
    bool profile;
    const char *plot;
    char model[128]; /* where.model, when it is a shape */
};

/**
 * One device, alone: what espalier-worker --bench prints (worker/bench.h), and to each phase `time` (statistics of its
 * seconds), `rate` (pictures or tokens/s), `read_rate`, `flop_rate`, `roofline` (its least time by the ceilings as a share
 * of the median) and to each kernel `share`, `read_rate`, `flop_rate`, `roofline`; `first_token` (seconds) if it encodes and
 * prefills.
 * @param device  NULL: the best there is
 * Errors: the device or model (the worker has said why, on stderr), ESP_E_PROTO, ESP_E_NOMEM.
 */
esp_status esp_bench_device(json_t **out, struct esp_bench *bench, const char *device, struct esp_err *err);

/** What is added to a worker's results. Apart, so that it can be tested. Errors: ESP_E_PROTO (what it lacks). */
esp_status esp_bench_evaluate(json_t *results, struct esp_err *err);

/** A cluster: docs/cli.md has its fields. Errors: as esp_client_ask. */
esp_status esp_bench_cluster(json_t **out, struct esp_bench *bench, struct esp_err *err);

/** The tables, on stdout. */
esp_status esp_bench_print_device(const json_t *results, struct esp_err *err);
esp_status esp_bench_print_cluster(const json_t *results, struct esp_err *err);

/** Bars of all results: {"devices": [...], "cluster": {...} or null}. Errors: as esp_png_write, ESP_E_NOMEM. */
esp_status esp_bench_plot(const json_t *report, const char *path, struct esp_err *err);

#endif
