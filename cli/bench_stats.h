/**
 * What many measurements of one thing say of it.
 */
#ifndef ESP_CLI_BENCH_STATS_H
#define ESP_CLI_BENCH_STATS_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

struct esp_bench_stats {
    size_t n;
    double median, q1, q3; /* quartiles: between neighbours in proportion, as numpy.percentile does */
    double min, max;
};

/** @param v  n of them, sorted by the call; n 0 gives zeros */
struct esp_bench_stats esp_bench_stats(double *v, size_t n);

/** Of a list of numbers; false where it is none, is empty or is no list. Without memory: false too. */
bool esp_bench_stats_of(struct esp_bench_stats *out, const json_t *list);

/** {n, median, q1, q3, min, max}; NULL without memory. */
json_t *esp_bench_stats_json(const struct esp_bench_stats *stats);

/**
 * The least time that a device of these ceilings takes for so much: the longer of reading and computing, which overlap at
 * best. A ceiling that is not above 0 is left out; 0 when neither is known.
 */
double esp_bench_floor(double bytes, double flop, double read_rate, double flop_rate);

#endif
