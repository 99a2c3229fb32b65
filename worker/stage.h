/**
 * A stage: a run of encoder and decoder layers with their weights on one device, the KV cache of every live
 * sequence for them, and what comes in and goes out of it. Knows nothing of sockets, prompts or sampling.
 *
 * One thread owns a stage (and the device under it): calls block until the device is done.
 * A failed call changes nothing that a later call depends on, except where said; after ESP_E_DEVICE the stage
 * is lost and only destroy is allowed.
 */
#ifndef ESP_WORKER_STAGE_H
#define ESP_WORKER_STAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "model/checkpoint.h"
#include "model/wtype.h"
#include "proto/status.h"
#include "proto/wire.h"
#include "worker/kv.h"

struct esp_vk;    /* an opened device: worker/vk_device.h */
struct esp_shelf; /* the weights it holds: worker/shelf.h */
struct esp_profile;
struct esp_stage;

/** What a placement gives this worker; meaning as in struct esp_msg_place. Both ranges empty: a spare. */
struct esp_stage_spec {
    uint32_t enc_lo, enc_hi, dec_lo, dec_hi;
    bool patch, projector, embed, head;
    uint32_t max_rows, kv_tokens, max_seqs, max_images;
    bool final_softcap;
    enum esp_wtype weights; /* what matrices are held as */
};

/**
 * Called from the loading thread, from time to time; bytes of weights read so far, and in all that are not on the
 * device yet. False: the load is given up.
 */
typedef bool (*esp_load_progress)(void *arg, uint64_t done_bytes, uint64_t total_bytes);

#define ESP_STAGE_MAX_ROWS 65535u /* at once: one axis of a dispatch */

/** Errors: ESP_E_ARG (spec contradicts the model). */
esp_status esp_stage_spec_check(const struct esp_stage_spec *spec, const struct esp_config *config,
                                struct esp_err *err);

/**
 * Loads the weights of `spec`'s layers from the checkpoint onto the device, but for those that the shelf has; plans and
 * allocates KV cache and scratch, creates pipelines. The plan is checked against the device's memory budget before
 * anything is taken. Afterwards the shelf holds what `spec` needs and no more. What a create that fails has read stays
 * on the shelf for the next one, unless memory was the cause. A spare leaves the shelf as it is.
 *
 * @param shelf  with its device and checkpoint borrowed for the stage's life
 * @param former  NULL, or a retired stage on the same shelf, whose sequences live on in this one: their
 *                KV of decoder layers that both have, and picture features where both have `embed`, are taken over. The
 *                KV of other layers comes by esp_stage_import_kv, before any step. After a failure the former one is good
 *                for nothing but destroy.
 * Errors: ESP_E_ARG (spec contradicts the model), ESP_E_NOMEM (names what was needed and what there is),
 * ESP_E_CANCELLED (progress returned false), what the shelf's `need` said, ESP_E_DEVICE.
 */
esp_status esp_stage_create(struct esp_stage **out, struct esp_shelf *shelf,
                            const struct esp_stage_spec *spec, struct esp_stage *former,
                            esp_load_progress progress, void *progress_arg, struct esp_err *err);
void esp_stage_destroy(struct esp_stage **stage);

/**
 * Compiles the first kernel that is missing of those that a stage of `spec` will run, so that making it need not wait for
 * that. Takes no memory of the device.
 * @param few  also those that a stage compiles when first several sequences are in a step
 * Errors: ESP_E_TIMEOUT (there may be more: call again), else as esp_stage_create; none but ESP_E_DEVICE does any harm.
 */
esp_status esp_stage_prepare(struct esp_shelf *shelf, const struct esp_stage_spec *spec, bool few,
                             struct esp_err *err);

/** What it was made for, and whose weights it has; borrowed. */
const struct esp_stage_spec *esp_stage_spec(const struct esp_stage *stage);
const struct esp_checkpoint *esp_stage_checkpoint(const struct esp_stage *stage);

struct esp_stage_info_out {
    uint64_t weight_bytes, kv_bytes, scratch_bytes; /* on the device */
    uint64_t loaded_bytes; /* of the weights, read when the stage was made; the rest was there */
    uint64_t kv_blocks, kv_used_blocks;
    uint32_t block_tokens;
    uint32_t n_seqs, n_images; /* live now */
    bool few_rounded;          /* products of a few rows round x to 15 or 16 bits: shaders/fixed.glsl */
};
void esp_stage_info(const struct esp_stage *stage, struct esp_stage_info_out *out);

/** Where its device time goes; NULL unless the device was opened to tell (worker/profile.h). Borrowed. */
struct esp_profile *esp_stage_profile(const struct esp_stage *stage);

/** An intermediate value, asked for by `trace`. Named as among the golden tensors. */
struct esp_stage_trace {
    char name[64];
    uint32_t rows, width;
    float *data; /* f32[rows, width], malloc'ed */
};

/** What a call produced. Everything is malloc'ed and freed by esp_stage_out_finish, or taken by setting it to
 * NULL. */
struct esp_stage_out {
    float *rows; /* f32[n_rows, width]: for the next stage; NULL on the last decoder stage */
    uint32_t n_rows, width;
    enum esp_payload payload; /* of rows: ROWS, or FEATURES from the projector */

    uint32_t n_results; /* last decoder stage: one a want, in order */
    struct esp_row_result *results;
    uint32_t n_full, vocab;
    float *full; /* f32[n_full, vocab]: of the wants with full set, in order */

    uint32_t n_traces;
    struct esp_stage_trace *traces;

    double compute_seconds; /* host clock, submit to fence */
};
void esp_stage_out_finish(struct esp_stage_out *out);

/** Room for the results of a step's wants; there are none of them yet. Errors: ESP_E_NOMEM, some of it may be there. */
esp_status esp_stage_results_make(struct esp_stage_out *out, const struct esp_msg_step *msg, uint32_t vocab,
                                  struct esp_err *err);

/**
 * Runs this stage's encoder layers over one picture.
 *
 * @param msg   payload PIXELS (f32[3,S,S], if this is the first encoder stage) or ROWS (f32[N,D])
 * @param data  msg's frame, of any alignment; its size was checked against msg's rows and width
 * Errors: ESP_E_PROTO (not what this stage takes), ESP_E_NUMBERS (results that are no finite numbers:
 * nothing of them stays but, in out, the traces asked for), ESP_E_DEVICE.
 */
esp_status esp_stage_encode(struct esp_stage *stage, const struct esp_msg_encode *msg, const void *data,
                            struct esp_stage_out *out, struct esp_err *err);

/**
 * The same, traced, for the first n_row patches as though the picture had no others: what a device's check of itself
 * needs of a large picture. data: f32[C,S,S] on the first encoder stage, else f32[n_row,D]. Errors: ESP_E_ARG too.
 */
esp_status esp_stage_encode_part(struct esp_stage *stage, uint32_t n_row, const float *data,
                                 struct esp_stage_out *out, struct esp_err *err);

/** First decoder stage: keeps a picture's features, f32[N, D], until released. Replaces an older one of that
 * id. */
esp_status esp_stage_store(struct esp_stage *stage, const struct esp_msg_encode *msg, const void *data,
                           struct esp_err *err);

/**
 * Runs this stage's decoder layers over a step's rows: frees, forks, then appends every row's K and V to its
 * sequence and attends. Row r of a sequence at position p attends to [0, n_prefix) if p < n_prefix, else to
 * [0, p] (less what a sliding window cuts off). A prefix therefore comes whole, in the step with pos 0.
 *
 * A sequence is born by its first rows at pos 0 or by a fork.
 * Errors: ESP_E_PROTO (unknown sequence, wrong position, a prefix in parts, missing image, rows over the
 * limit, id outside of the vocabulary), ESP_E_LIMIT (KV cache full), ESP_E_NUMBERS (as above), ESP_E_DEVICE. Frees and forks of a
 * refused step are still done; none of its rows is.
 */
esp_status esp_stage_step(struct esp_stage *stage, const struct esp_msg_step *msg, const void *data,
                          struct esp_stage_out *out, struct esp_err *err);

/** Forgets sequences and images; unknown ids are fine. */
void esp_stage_release(struct esp_stage *stage, const struct esp_msg_release *msg);

/* ---- moving (stage_move.c) ---- */

/**
 * Lets go of all but what the next placement may take over or another worker be sent: books, KV cache, features. From
 * here on it may be a former stage in esp_stage_create, exported from and destroyed, no more.
 */
void esp_stage_retire(struct esp_stage *stage);

/** A piece of one layer's KV cache on its way. */
struct esp_stage_kv {
    struct esp_msg_kv_blocks msg; /* but for the epoch; seqs are of `books` */
    float *data; /* f32[n_blocks, block_tokens, width], malloc'ed; NULL where n_blocks is 0 */
    struct esp_kv_books books;
};
void esp_stage_kv_finish(struct esp_stage_kv *piece); /* a zeroed one is fine */

/**
 * Blocks of a layer as they are stored, bit for bit, from number `first` on: as many as max_bytes hold, at least one if
 * there is one.
 * @param layer  of the model
 * Errors: ESP_E_PROTO (the stage has no such layer or block, or its KV was handed on), ESP_E_NOMEM, ESP_E_DEVICE.
 */
esp_status esp_stage_export_kv(struct esp_stage *stage, uint32_t layer, uint32_t first, size_t max_bytes,
                               struct esp_stage_kv *out, struct esp_err *err);

/**
 * Puts such blocks into a layer. A stage that took no decoder layers over makes its sequences from the first message;
 * all others must tell of the same ones.
 * @param data  msg's frame, of any alignment; its size was checked against msg
 * Errors: ESP_E_PROTO (not this stage's layers, sizes or sequences), ESP_E_LIMIT (more than the cache takes),
 * ESP_E_NUMBERS (no finite numbers), all with nothing changed; ESP_E_NOMEM, ESP_E_DEVICE.
 */
esp_status esp_stage_import_kv(struct esp_stage *stage, const struct esp_msg_kv_blocks *msg, const void *data,
                               struct esp_err *err);

/** A picture's features as they were stored: rows of out, payload FEATURES. Errors: as esp_stage_export_kv. */
esp_status esp_stage_export_features(struct esp_stage *stage, uint64_t image, struct esp_stage_out *out,
                                     struct esp_err *err);

#endif
