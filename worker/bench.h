/**
 * `espalier-worker --bench`: what one device takes for the phases of a model's work, alone, without a cluster. `espalier
 * bench` asks for it and makes tables of what comes.
 */
#ifndef ESP_WORKER_BENCH_H
#define ESP_WORKER_BENCH_H

#include <stdio.h>

#include "worker/vk_device.h"

struct esp_bench_options {
    const char *model;  /* as for esp_checkpoint_open */
    const char *device; /* as for esp_vk_open */
    uint64_t memory_bytes;
    struct esp_packed *packed; /* the cache of packed weights, as a worker has it; NULL: none */
    /**
     * What to run, a JSON object; what is left out has the value given here.
     *   encode, prefill (true)    whether to
     *   batch ([1, 2, 4, 8, 16])  sequences that decode at once, each 1 to 256; [] for no decoding
     *   weights ("stored")        what matrices are held as: as esp_wtype_name
     *   layers (all)              [encoder, decoder]: the first so many
     *   prompt (4)                tokens behind the picture's, 1 to 32768
     *   repeats (5), warm_up (1)  of encode and prefill, 1 to 1000 and 0 to 100
     *   steps (32)                of decoding for each batch, 1 to 10000; warm_up + 1 more come first
     *   profile (false)           each kernel's time in a second run, of fewer repeats where they take long
     */
    const char *what;
};

/**
 * Runs it and writes JSON objects to `out`, a line each: {"progress": "decode, 4 at once", "done": 2, "total": 7 (0: nothing to
 * count), "part": 5, "parts": 9 (of all there is to do)} as it goes, and at the end
 *
 *   {"model", "made" (it has a shape alone), "layers" [encoder, decoder], "of_layers" [as many as it has in all],
 *    "device" {name, driver, variant, type, memory_bytes}, "weights", "image_tokens", "prefix" (tokens of image and prompt),
 *    "ceilings" {read_rate, flop_rate, read_bytes}, "load" {seconds, bytes}, "weight_bytes", "kv_bytes", "scratch_bytes",
 *    "phases": [{"phase" ("encode", "prefill", "decode"), "batch", "rows", "bytes", "flop", "seconds" [each repeat],
 *                "kernels" [{name, n, k, calls, seconds, bytes, flop}], "profiled" (runs that those are of)}]}
 *
 * bytes and flop are what one repeat must at least read (weights once; keys and values that it attends to) and compute.
 * Seconds are of the host's clock around the call, rates per second.
 * Errors: ESP_E_ARG (what), as esp_checkpoint_open, esp_vk_open and esp_stage_create, ESP_E_IO (out).
 */
esp_status esp_bench_run(const struct esp_bench_options *options, FILE *out, const struct esp_log *log,
                         struct esp_err *err);

#endif
