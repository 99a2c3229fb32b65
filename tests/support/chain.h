/**
 * A model cut into stages in one process, on one device: what the golden and engine tests drive.
 */
#ifndef ESP_TESTS_SUPPORT_CHAIN_H
#define ESP_TESTS_SUPPORT_CHAIN_H

#include "worker/shelf.h"
#include "worker/vk_device.h"

#define ESP_CHAIN_MAX 64

/** The device that ESPALIER_DEVICE names, else the best one, for a test program's run. Exits on failure. */
struct esp_vk *esp_test_device_open(void);
/** Closes it. 1 if the validation layer has said anything, else 0: to be added to the tests that failed. */
int esp_test_device_close(struct esp_vk **vk);

struct esp_chain {
    const struct esp_checkpoint *ck;
    enum esp_wtype weights; /* what stages hold matrices as */
    uint32_t n;
    struct esp_shelf *shelf[ESP_CHAIN_MAX]; /* one a stage, as if each were on a device of its own */
    struct esp_stage *stage[ESP_CHAIN_MAX];
    struct esp_stage_spec spec[ESP_CHAIN_MAX];
    uint64_t next_id;
};

/** Layers of each stage: n_enc[i] encoder and n_dec[i] decoder layers, in order; they sum to the model's.
 * Exits on failure. */
void esp_chain_open(struct esp_chain *out, struct esp_vk *vk, const struct esp_checkpoint *ck, uint32_t n,
                    const uint32_t *n_enc, const uint32_t *n_dec, uint32_t max_rows);
/** The same with weights of a type. */
void esp_chain_open_as(struct esp_chain *out, struct esp_vk *vk, const struct esp_checkpoint *ck,
                       enum esp_wtype weights, uint32_t n, const uint32_t *n_enc, const uint32_t *n_dec,
                       uint32_t max_rows);
void esp_chain_close(struct esp_chain *chain);

/** What has gone from stage to stage. */
struct esp_chain_moved {
    uint32_t n_layers, n_images;
    uint64_t n_blocks;
};

/**
 * Cuts the layers anew while sequences live: each stage takes over from the one before it, the rest goes from stage to stage
 * in pieces of piece_bytes, with these pictures where the first decoder layer moves. Exits on failure.
 */
struct esp_chain_moved esp_chain_move(struct esp_chain *chain, const uint32_t *n_enc, const uint32_t *n_dec,
                                      const uint64_t *images, uint32_t n_images, size_t piece_bytes);

/** Forgets sequences and images everywhere. */
void esp_chain_release(struct esp_chain *chain, const struct esp_msg_release *msg);

/** Called with every trace of every stage. NULL: no tracing. */
typedef void (*esp_chain_seen)(void *arg, const struct esp_stage_trace *trace);

/** Pixels f32[C,S,S] through the encoder; the features are stored as `image`. */
void esp_chain_encode(struct esp_chain *chain, uint64_t image, const float *pixels, esp_chain_seen seen,
                      void *arg);

/** A step through the decoder. `out` is the last stage's: finish it. */
void esp_chain_step(struct esp_chain *chain, const struct esp_msg_step *step, const int32_t *ids,
                    struct esp_stage_out *out, esp_chain_seen seen, void *arg);

/** One sequence's rows, candidates k and full logits wanted of the last n_want rows. */
void esp_chain_seq(struct esp_chain *chain, const struct esp_seq_rows *seq, const int32_t *ids, uint32_t k,
                   uint32_t n_want, struct esp_stage_out *out, esp_chain_seen seen, void *arg);

/** Exits with the message of a failed call. */
void esp_must(esp_status st, const struct esp_err *err);

#endif
