/**
 * Choosing the next token from a row of candidates, and choosing among finished samples.
 *
 * The order is Hugging Face's (transformers, logits processors and warpers): forbidden tokens lose their
 * logit, then temperature, then top-k, then top-p, then the draw. What is reported as a token's
 * log-probability is something else: that of the model itself, under the full softmax at temperature 1 with
 * nothing forbidden,
 *
 *   logprob(id) = logit(id) - lse,   in double.
 *
 * Ties between equal logits fall to the lower id everywhere, so that top-k keeps exactly k tokens (Hugging
 * Face keeps every token that ties with the k-th). All of it is pure: no clock, no state, safe from any
 * thread.
 */
#ifndef ESP_COORDINATOR_SAMPLE_H
#define ESP_COORDINATOR_SAMPLE_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/status.h"

#define ESP_CAND_MAX 256 /* candidates of a row at most: what the protocol carries */

/** What the last stage says of one row of logits. Everything is borrowed. */
struct esp_cand_row {
    float lse;           /* natural log of the sum of exp of all V logits */
    uint32_t n;          /* candidates */
    const uint32_t *ids; /* u32[n], the n best: by logit, falling; ids rise where logits tie */
    const float *logits; /* f32[n] */
    const float *full;   /* f32[V], every logit, or NULL; if given, the candidates are not looked at */
    uint32_t vocab;      /* V */
    bool has_target;     /* one logit asked for by its id, wherever it ranks */
    uint32_t target;
    float target_logit;
};

struct esp_sample_params {
    double temperature;  /* 0: greedy, the best token that is not forbidden */
    uint32_t top_k;      /* 0: off */
    double top_p;        /* 0 and 1: off */
    uint64_t seed;       /* of the draws */
    const uint32_t *ban; /* u32[n_ban], forbidden ids, borrowed; repetitions are harmless */
    uint32_t n_ban;
};

/** ESP_E_ARG with the flag's name in the text if a value makes no sense for a vocabulary of `vocab` rows. */
esp_status esp_sample_params_check(const struct esp_sample_params *params, uint32_t vocab,
                                   struct esp_err *err);

/**
 * What a row must hold for esp_sample: *k candidates (1 .. ESP_CAND_MAX), or, with *need_full, every logit
 * (*k is then 0). Candidates suffice for greedy and for top-k, as long as they outnumber the forbidden
 * tokens; temperature and top-p alone need the mass of the whole row.
 */
void esp_sample_need(const struct esp_sample_params *params, uint32_t *k, bool *need_full);

/**
 * Draws the token at one position of one sequence.
 *
 * The random number depends on (seed, sequence, position) and nothing else (esp_draw), so a sequence that is
 * rebuilt elsewhere goes on as it would have. The draw walks the tokens that are left by falling logit; where
 * neither top-k nor top-p is on, by rising id. Candidates and full logits give the same token.
 *
 * @param id        the token
 * @param logprob   its log-probability as above, at most 0; NULL if unwanted
 * @param sequence  number of the sample within the request
 * @param position  of the token within the suffix
 * Errors: ESP_E_DEVICE (a logit or lse that is not finite, candidates out of order, an lse below the best
 * logit), ESP_E_ARG (every token forbidden, or fewer candidates than esp_sample_need asked for), ESP_E_NOMEM.
 */
esp_status esp_sample(uint32_t *id, double *logprob, const struct esp_cand_row *row,
                      const struct esp_sample_params *params, uint64_t sequence, uint64_t position,
                      struct esp_err *err);

/** Checks what esp_sample and beam search rely on: see ESP_E_DEVICE above. */
esp_status esp_cand_row_check(const struct esp_cand_row *row, struct esp_err *err);

/** logit - lse, cut at 0, which rounding of a float32 lse may pass by an ulp. */
double esp_cand_logprob(const struct esp_cand_row *row, float logit);

/**
 * A number in [0, 1) with 53 random bits: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
 * 1, 2, 3", SC 2011) with key = seed and counter = (position, sequence), low words first.
 */
double esp_draw(uint64_t seed, uint64_t sequence, uint64_t position);

/** The generator itself, for its known answers: out = Philox4x32-10(ctr; key). */
void esp_philox(uint32_t out[4], const uint32_t ctr[4], const uint32_t key[2]);

/** A finished sample: the log-probabilities of its tokens, the end token's included if it has one. */
struct esp_sampled {
    const double *logprobs; /* f64[n], borrowed */
    uint32_t n;
};

enum esp_best_by {
    ESP_BEST_MEAN, /* the highest mean log-probability: an answer is not punished for its length */
    ESP_BEST_SUM   /* the highest sum: the likeliest answer, as big_vision's _bon_select picks */
};

/** Index of the best of n >= 1 samples; the first of equals. An empty sample counts as minus infinity. */
uint32_t esp_best_of(const struct esp_sampled *samples, uint32_t n, enum esp_best_by by);

#endif
