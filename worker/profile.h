/**
 * Where device time goes: timestamps around dispatches, summed by kernel and by the shape of what it multiplies, with the
 * work that it had.
 */
#ifndef ESP_WORKER_PROFILE_H
#define ESP_WORKER_PROFILE_H

#include "worker/vk_device.h"

struct esp_profile;

/** What a recorded dispatch does each time, to be multiplied by what stands in the step. Zeros: not counted. */
struct esp_profile_work {
    uint32_t n, k;       /* of a product y[., n] = x[., k] W^T */
    uint64_t pass_bytes; /* of weights, read once a pass ... */
    uint32_t pass_rows;  /* ... over so many rows; 0: over all of them */
    bool wants;          /* its rows are the wants of the step */
    double row_flop;     /* for each row */
    bool window;         /* attention: of a layer with a sliding window */
    double pair_flop;    /* attention: for each row and position that it attends to */
    double
        position_bytes; /* attention: of keys and values, for each position that a sequence's rows attend to */
};

/** What stands in a step. Index 1: in layers with a sliding window. */
struct esp_profile_counts {
    uint32_t rows, wants;
    double pairs[2];     /* of rows and the positions that they attend to */
    double positions[2]; /* that rows of a sequence attend to, summed over sequences */
};

/** A kernel's sum. Bytes are those of weights, keys and values that it had to read, each once a pass. */
struct esp_profile_sum {
    char name[64];
    uint32_t n, k;
    uint64_t n_call;
    double seconds, bytes, flop;
};

/** Errors: ESP_E_UNSUPPORTED where the queue has no timestamps. */
esp_status esp_profile_create(struct esp_profile **out, struct esp_vk *vk, struct esp_err *err);
void esp_profile_destroy(struct esp_profile **profile);

/** While recording: a pair of timestamps around what is recorded between the calls. NULL profile: nothing. */
void esp_profile_begin(struct esp_profile *profile, VkCommandBuffer cmd, const char *what,
                       const struct esp_profile_work *work);
void esp_profile_end(struct esp_profile *profile, VkCommandBuffer cmd);

/** After a submission is done: adds what its dispatches took. */
void esp_profile_collect(struct esp_profile *profile, const struct esp_profile_counts *counts);

/** Forgets the sums, not what is recorded. */
void esp_profile_clear(struct esp_profile *profile);

/** The i-th sum, in no order; false past the last. Those without a call since clear are there too. */
bool esp_profile_at(const struct esp_profile *profile, uint32_t i, struct esp_profile_sum *out);

/** Logs a line a kernel, the slowest first: calls, seconds, share. */
void esp_profile_log(const struct esp_profile *profile, const struct esp_log *log);

#endif
