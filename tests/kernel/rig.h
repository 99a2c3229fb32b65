/**
 * One operation on the device, between host arrays: what the kernel tests stand on.
 *
 * A program runs its whole list of tests once for every class of kernels that the device can run. A test lays out
 * activations, vectors, weights and KV, records operations through worker/ops.h, runs them and looks at everything
 * afterwards. What no operation may write is filled with a number that is not one, and looked after.
 *
 * There is one rig a process. Any failure here ends the test at hand (cmocka's fail_msg).
 */
#ifndef ESP_TESTS_KERNEL_RIG_H
#define ESP_TESTS_KERNEL_RIG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/support/rand.h"
#include "worker/batch.h"
#include "worker/ops.h"

/** Memory of the device as the host sees it: what goes up before the first run, what came back after the last. */
struct esp_image {
    float *at;
    size_t n, cap; /* floats */
};

struct esp_rig {
    struct esp_vk *vk;
    bool slow; /* a CPU driver with the kernels made for GPUs: tests give it fewer rows */
    struct esp_space space;
    struct esp_buf weights[ESP_MAX_CHUNKS]; /* space's chunks */
    struct esp_batch batch;
    struct esp_rec rec; /* what operations are recorded into, between ready and run */
    struct esp_image act, vec, kv, in, out;

    struct esp_grids grids;
    struct esp_err err;
    struct esp_upload up;
    struct esp_image guard; /* pairs: first float and number of floats of act, as u32 bits */
    uint32_t max_rows, max_copies, max_table;
    bool recording;
};

extern struct esp_rig esp_rig;

/**
 * Opens the device that ESPALIER_DEVICE names (else the best), runs the tests for each class, says how many messages
 * the validation layer had and fails if there was one.
 */
int esp_rig_main(const char *name, const struct CMUnitTest *tests, size_t n_tests);

/** Begins a case: empty buffers, and a step buffer for so much. */
void esp_rig_begin(uint32_t max_rows, uint32_t max_copies, uint32_t max_table);

/**
 * Activations f32[n_row, width], padded as the engine pads.
 * @param x  f32[n_row, width]; NULL: no numbers, padding included, for what an operation has yet to write
 */
struct esp_rows esp_rig_rows(uint32_t n_row, uint32_t width, const float *x);

/** A vector f32[n] padded with zeros to 32. Returns its index. */
uint32_t esp_rig_vec(const float *v, uint32_t n);

/** KV memory: n texels of `fill`. Returns the first one's index. */
uint32_t esp_rig_kv(uint32_t n_texel, float fill);

/** What `in` holds, f32[n] (NULL: nothing), and floats of room in `out`, filled with NaN. */
void esp_rig_host(const float *in, size_t n, size_t n_out);

/**
 * Packs a matrix and brings it to the device.
 * @param n_part   cut it in so many chunks of the device (fewer if it has not so many panels), between panels of 32 rows or more
 * @param n_times  the same rows so many times over: large matrices without large references
 */
struct esp_mat esp_rig_mat(const struct esp_pack_spec *spec, uint32_t n_part, uint32_t n_times);

/** Everything is laid out: makes the buffers and begins recording into rec. */
void esp_rig_ready(void);

/** Ends recording (the first time), submits with the batch as it stands, and reads everything back. */
void esp_rig_run(void);

/** Rows as they came back, tight: f32[n_row, width]. Their padding must be zero, and is looked at. */
void esp_rig_get(float *out, struct esp_rows rows, uint32_t n_row, uint32_t width);

/** Rows that must have stayed without numbers: [from, to). */
void esp_rig_check_unwritten(struct esp_rows rows, uint32_t from, uint32_t to);

/** Ends the case. Between regions of activations there is room that nobody may have written: looks at it. */
void esp_rig_end(void);

/** ESP_OK, or the test fails with the cause in esp_rig.err. */
void esp_rig_must(esp_status st);

/** malloc that fails the test; free() it. */
void *esp_rig_alloc(size_t n, size_t size);

/** A stored matrix with random elements of a dtype. */
struct esp_weights_made {
    struct esp_tensor tensor;
    float *values; /* f32[n, k], exactly what is stored */
    void *bits;
};
void esp_weights_make(struct esp_weights_made *w, struct esp_rand *r, enum esp_dtype dtype, uint32_t n,
                      uint32_t k, double std);
/** From now on, values are what such weights are on the device: those of the quantised rows. ESP_W_STORED: no change. */
void esp_weights_want(struct esp_weights_made *w, enum esp_wtype want);
void esp_weights_free(struct esp_weights_made *w);

/** Place of dimension h of a head among its padded ones: each half is padded on its own. */
uint32_t esp_head_place(uint32_t h, uint32_t head_dim);

/**
 * x, f32[n_row, k], as the direct class's few rows take it for quantised weights (shaders/fixed.glsl): each block of 32 in steps of a
 * 32767th of its largest, or a 16383rd. Where a driver divides in another way a few elements come out a step apart: what that does to
 * sums of products is returned, to be tolerated.
 */
double esp_rig_round_blocks(float *x, uint32_t n_row, uint32_t k, enum esp_wtype as);

#endif
