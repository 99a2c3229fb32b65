/**
 * What a model's pieces cost: bytes to hold, arithmetic and memory traffic to run. Placement knows a model
 * only by this.
 *
 * Costs are of one typical request: `n_image` pictures encoded, a prompt of T = image tokens + text tokens
 * prefilled, `n_answer` tokens decoded one by one behind it. D, F, N, K, H, V as in model/config.h; a product
 * of [m,k] by [k,n] is 2mkn flop; norms, softmax and activations are left out, being a few per cent.
 */
#ifndef ESP_COORDINATOR_COST_H
#define ESP_COORDINATOR_COST_H

#include <stdint.h>

#include "model/config.h"
#include "proto/status.h"

/** Arithmetic and memory traffic; a device spends max(flop / its rate, n_bytes / its bandwidth) seconds. */
struct esp_work {
    double flop, n_bytes;
};

/** A piece that one worker holds whole. */
struct esp_piece_cost {
    uint64_t weight_bytes;
    uint64_t alloc_bytes;                    /* of its largest tensor: must fit into one allocation */
    struct esp_work encode, prefill, decode; /* all pictures; the whole prompt; one token */
};

struct esp_model_cost {
    uint32_t n_enc, n_dec; /* layers */
    struct esp_piece_cost enc_layer, dec_layer;
    struct esp_piece_cost patch;             /* patch and position embedding */
    struct esp_piece_cost projector;         /* post norm and projector */
    struct esp_piece_cost embed;             /* token embedding: the table's bytes, next to no work */
    struct esp_piece_cost head;              /* final norm and logits: work; its bytes without the table's */
    uint64_t kv_token_bytes;                 /* of a token in a decoder layer: K and V, f32 */
    uint64_t enc_scratch_bytes;              /* activations of an encoder stage */
    uint64_t dec_scratch_bytes;              /* of a decoder stage */
    uint64_t head_scratch_bytes;             /* logits */
    double enc_hop_bytes, feature_hop_bytes; /* between encoder stages; last encoder to first decoder stage */
    double prefill_hop_bytes, decode_hop_bytes;
    uint32_t n_answer;
};

struct esp_cost_options {
    double bytes_per_weight;   /* 2 for bf16 and f16, 4 for f32, 1.0625 for 8 bit in blocks of 32 */
    double careful_bytes;      /* the same for the embedding table, Q, K and V; 0: as bytes_per_weight */
    double vision_bytes;       /* the same for the encoder and the projector; 0: as bytes_per_weight */
    uint32_t n_image;          /* pictures of a typical request, at least 1 */
    uint32_t n_text, n_answer; /* its prompt and answer in tokens; 0: 32 */
    uint32_t max_rows;         /* rows of one step: sizes the decoder's scratch */
    uint32_t max_seqs;         /* rows of logits kept at once; 0: 1 */
};

/**
 * Fills *out for a model.
 * Errors: ESP_E_ARG (bytes of a weight that are not in (0, 8], no image, no rows).
 */
esp_status esp_model_cost_fill(struct esp_model_cost *out, const struct esp_config *config,
                               const struct esp_cost_options *options, struct esp_err *err);

#endif
