/**
 * How right places are: which of the things found are which of those that are there, and the average precision of it.
 * Pure, and for masks as well as for boxes: what overlaps how much is the caller's.
 */
#ifndef ESP_CLI_EVAL_BOXES_H
#define ESP_CLI_EVAL_BOXES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/status.h"

/**
 * Pairs what is wanted with what was got, the largest overlap first, each at most once.
 *
 * @param best     f64[n_wanted], the caller's: the overlap that each has got; 0 where it has found nothing
 * @param overlap  f64[n_wanted, n_got], borrowed; 0 where the two cannot be a pair, as with different labels
 * Errors: ESP_E_NOMEM.
 */
esp_status esp_pair_up(double *best, const double *overlap, size_t n_wanted, size_t n_got,
                       struct esp_err *err);

/**
 * What of the found counts as right at a threshold, by COCO's rule: the highest score first, each takes the free one of
 * the wanted that it overlaps most, if that is as much as the threshold. Equal scores: in their order.
 *
 * @param hit    bool[n_got], the caller's
 * @param score  f64[n_got], borrowed, as is overlap (as above)
 * Errors: ESP_E_NOMEM.
 */
esp_status esp_claim(bool *hit, const double *overlap, const double *score, size_t n_wanted, size_t n_got,
                     double threshold, struct esp_err *err);

/** Something found, anywhere in a set. */
struct esp_found {
    const char *label;
    double score;
    bool hit;
};

struct esp_ap {
    double mean;  /* over the labels of what is wanted */
    double micro; /* of all labels as one */
};

/**
 * Average precision over a set: the area under the precision at each recall, where a precision counts as the best one
 * at that recall or a higher one. All points of the curve count, not COCO's 101 of them.
 *
 * @param found   n_found, borrowed; of equal scores the one that stands before the other comes first
 * @param wanted  the label of each thing that is there, n_wanted; sorted here
 * NaN where nothing is wanted. Errors: ESP_E_NOMEM.
 */
esp_status esp_average_precision(struct esp_ap *out, const struct esp_found *found, size_t n_found,
                                 const char **wanted, size_t n_wanted, struct esp_err *err);

/**
 * How sure a model was of the `<loc....>` tokens of its answer, from the ids and log-probabilities of all its tokens.
 * Where they stand among the ids follows from their codes: the ids of these tokens come one behind the other in every
 * vocabulary, so that one number added to the codes of the text, in their order, must give all ids of that range.
 *
 * @param logprob  f64[n_codes], the caller's
 * @param codes    of the tokens in the text, in order; n_codes, 0 to 1023 each
 * @param ids      n_ids, with as many log-probabilities
 * False where the ids are not those of the codes: then it is not known.
 */
bool esp_loc_logprobs(double *logprob, const uint16_t *codes, size_t n_codes, const uint32_t *ids,
                      const double *logprobs, size_t n_ids);

#endif
