/**
 * Decoding: how a request turns Result rows into its next rows, until it is done.
 *
 * One object a session, for all that a request can ask for: greedy, sampled, best of n, beams, and the score
 * of a given suffix. It knows the sequences (ids, forks, frees) and the rules of choice (sample.h, beam.h),
 * and neither sockets nor clocks nor other sessions: the caller puts its part into a step and brings the rows
 * back.
 *
 * The first part is the whole prompt, n_prefix rows that see each other, and behind them the given start of
 * the suffix, causally. Every later part is one row a living sequence. A sequence's first child takes over
 * its id and KV cache, further children are forks of it, and one without children is freed, all in the next
 * step. All living sequences are equally long.
 *
 * When the workers have lost its sequences, the decoder brings them back (decode_rebuild.c) and goes on with exactly
 * the tokens that it would have chosen: all that the choice depends on is here.
 */
#ifndef ESP_COORDINATOR_DECODE_H
#define ESP_COORDINATOR_DECODE_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/status.h"
#include "proto/wire.h"

#define ESP_DECODE_MAX_SEQS 128 /* beams, or samples of best-of-n */

struct esp_decode_params {
    const uint32_t *prefix; /* image rows (their id is the image token's), BOS, prefix, separator */
    uint32_t n_prefix;      /* at least 1 */
    const uint32_t *suffix; /* what decoding goes on from, or what is scored; without end token */
    uint32_t n_suffix;
    uint32_t n_images;                /* their features fill the first rows, in order: esp_decode_set_image */
    struct esp_msg_sampling sampling; /* ban is copied */
    uint32_t max_tokens;              /* to generate, the end token included; at least 1 */
    bool score, no_eos;
    bool full_first; /* ask for all logits of every row of the first step */
    uint32_t eos;    /* the model's; sampling.has_eos overrides it */
    uint32_t vocab;  /* V */
};

/** A session's share of a step: arrays are the decoder's, good until it takes the rows. Rows count from 0. */
struct esp_part {
    uint32_t n_free, n_forks, n_seqs, n_rows, n_wants;
    uint32_t n_full, vocab; /* wants with full, and how long those rows are */
    const uint64_t *free;
    const struct esp_fork *forks;
    const struct esp_seq_rows *seqs;
    const int32_t *ids; /* i32[n_rows] */
    const struct esp_want *wants;
};

/** A sequence of generated tokens; borrowed from the decoder. */
struct esp_decode_hyp {
    const uint32_t *ids; /* without the end token, without the given start */
    uint32_t n_ids;
    const double *logprobs; /* of each id under the full softmax, and of the end token if it came */
    uint32_t n_logprobs;
    bool eos;
    double sum, score; /* sum of logprobs; what the order is by (beams: their rule's; otherwise the mean) */
};

struct esp_decode;

/** Whether a request's sampling makes sense, before anything is spent on it. ESP_E_ARG names the option. */
esp_status esp_decode_check(const struct esp_msg_request *request, uint32_t vocab, struct esp_err *err);

/**
 * @param params    copied
 * @param next_seq  the counter that sequence ids come from; borrowed for the decoder's life
 * Errors: ESP_E_ARG as esp_decode_check, or nothing to score; ESP_E_NOMEM.
 */
esp_status esp_decode_create(struct esp_decode **out, const struct esp_decode_params *params,
                             uint64_t *next_seq, struct esp_err *err);
void esp_decode_destroy(struct esp_decode **d);

/** Names picture i, before the first part is asked for. */
void esp_decode_set_image(struct esp_decode *d, uint32_t i, uint64_t image);

/** Rows of the first part; tokens of the longest sequence; most sequences alive at once. */
uint32_t esp_decode_first_rows(const struct esp_decode *d);
uint64_t esp_decode_max_len(const struct esp_decode *d);
uint32_t esp_decode_max_seqs(const struct esp_decode *d);

/** KV blocks it may need at worst: full blocks of the first part once, the rest for each sequence. */
uint64_t esp_decode_max_blocks(const struct esp_decode *d, uint32_t block_tokens);

/** What the next step must hold for this session; the same until that step is home. Not once done, nor while a part is
 * out. */
const struct esp_part *esp_decode_next(struct esp_decode *d);

/** Rows of the next part; and whether it is a first part, which the workers compute with the kernels of prefill. */
uint32_t esp_decode_next_rows(const struct esp_decode *d);
bool esp_decode_at_start(const struct esp_decode *d);

/**
 * The workers hold nothing of it any more, or what they hold is in doubt: under new ids its sequences are brought back
 * by the arithmetic that made them. That is the first part (prefill), then for every living sequence, forked from the
 * first, the tokens fed to it so far, many to a part (the kernels of decoding); rows of these parts want nothing and
 * choose nothing. Then the step that was next is next again. Without any result so far it begins anew.
 *
 * A part on its way is void. May be called again at any time, while rebuilding too. Never needs more blocks at once
 * than esp_decode_max_blocks.
 *
 * @param max_rows  of a part that brings back; one row a sequence at least is in it all the same
 * Errors: ESP_E_NOMEM, and nothing has changed.
 */
esp_status esp_decode_rebuild(struct esp_decode *d, uint32_t max_rows, struct esp_err *err);

/** Whether the next part only brings back, and tokens of each sequence that are back, of how many. */
bool esp_decode_rebuilding(const struct esp_decode *d, uint32_t *done, uint32_t *total);

/**
 * The part's rows have come back.
 *
 * @param rows  one a want, in order, already checked against them (esp_flight_check)
 * @param full  f32[wants with full, V], aligned; NULL if none
 * @param done  nothing further to compute
 * Errors: ESP_E_DEVICE, ESP_E_ARG (everything is forbidden), ESP_E_NOMEM: the session has failed.
 */
esp_status esp_decode_take(struct esp_decode *d, const struct esp_row_result *rows, const float *full,
                           bool *done, struct esp_err *err);

/** Steps whose rows have come back, without those that rebuild. */
uint32_t esp_decode_n_steps(const struct esp_decode *d);

/** Tokens chosen or scored so far, of all sequences. */
uint64_t esp_decode_n_chosen(const struct esp_decode *d);

/** Whether the answer is one of several: beams, or best of n. */
bool esp_decode_chooses(const struct esp_decode *d);

/** Whether tokens are final as they come: one sequence, neither beams nor a score. */
bool esp_decode_streams(const struct esp_decode *d);

/**
 * Sequence i, best first; false if there is none. With esp_decode_streams, number 0 may be looked at after
 * every step; otherwise only once done.
 */
bool esp_decode_hyp(const struct esp_decode *d, uint32_t i, struct esp_decode_hyp *out);

/** Sequences the workers may hold for it: what a Release must name. Borrowed. */
const uint64_t *esp_decode_held(const struct esp_decode *d, uint32_t *n);

/* ---- state as records (decode_save.c) ---- */

/** What of a decoder has been saved; zeros: nothing. */
struct esp_decode_mark {
    uint32_t n_steps, n_nodes;
};

/**
 * What has been chosen since *mark, as a record; moves *mark. A decoder that is given all records goes on as this one
 * would. What a rebuild brings back is no part of it.
 * @param record  malloc'ed, the caller's; NULL if there is nothing new
 * Errors: ESP_E_NOMEM, and *mark stays.
 */
esp_status esp_decode_save(const struct esp_decode *d, struct esp_decode_mark *mark, uint8_t **record,
                           size_t *n_bytes, struct esp_err *err);

/**
 * Takes the records of a decoder with the same parameters, one behind the other; *mark is where they end. The decoder
 * must be new. It has then chosen everything, and its sequences are nowhere: unless it is done (esp_decode_done)
 * esp_decode_rebuild comes next. The bytes may be anything.
 * Errors: ESP_E_FORMAT, ESP_E_NOMEM: the decoder is then good for nothing but esp_decode_destroy.
 */
esp_status esp_decode_load(struct esp_decode *d, const uint8_t *records, size_t n_bytes,
                           struct esp_decode_mark *mark, struct esp_err *err);
bool esp_decode_done(const struct esp_decode *d);

#endif
