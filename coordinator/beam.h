/**
 * Beam search, as a state machine over rows of candidates: it says which sequences live, the caller computes
 * them.
 *
 * Two rules, n beams and log-probabilities under the full softmax summed in double:
 *
 * ESP_BEAM_BIG_VISION, the rule of the published results (google-research/big_vision,
 * trainers/proj/paligemma/predict_fns.py, _beam_decode). In each step every living sequence is also
 * considered as ending right there, wherever the end token ranks; of all sequences ended so far the one with
 * the largest sum, end token included, wins. The n best continuations by other tokens live on. The search
 * stops when no living sum exceeds the winner's, or after max_tokens steps; what lives then is dropped, since
 * it has no end. Where the end token is forbidden or there is none, nothing ever ends, and the best living
 * sequences count at max_tokens.
 *
 * ESP_BEAM_HF, Hugging Face's (transformers GenerationMixin._beam_search, early_stopping false). In each step
 * the m = n * max(2, 1 + end tokens) best continuations are ranked by sum. An end token among the first n
 * finishes a hypothesis of score sum / length^penalty, length counting every generated token, the end token
 * included; the n best finished are kept. The first n others live on. The search stops when n are finished
 * and the best living sum / present length^penalty does not exceed the worst of them, or at max_tokens, when
 * the first n count as finished whatever their last token is.
 *
 * Ties fall to the older finished hypothesis, then to the lower parent, then to the lower token. Forbidden
 * tokens are left out and nothing is renormalised (as in Hugging Face, whose processors see
 * log-probabilities). Not thread-safe; separate searches are independent.
 */
#ifndef ESP_COORDINATOR_BEAM_H
#define ESP_COORDINATOR_BEAM_H

#include <stdbool.h>
#include <stdint.h>

#include "coordinator/bytes.h"
#include "coordinator/sample.h"
#include "proto/status.h"

#define ESP_BEAM_MAX         128   /* beams */
#define ESP_BEAM_MAX_EOS     8     /* end tokens */
#define ESP_BEAM_MAX_LEN     65536 /* tokens of a hypothesis */
#define ESP_BEAM_MAX_PENALTY 32    /* ESP_BEAM_MAX_LEN to this power is still a double */

enum esp_beam_rule { ESP_BEAM_BIG_VISION, ESP_BEAM_HF };

struct esp_beam_params {
    enum esp_beam_rule rule;
    uint32_t n_beam;       /* 1 .. ESP_BEAM_MAX */
    double length_penalty; /* ESP_BEAM_HF only; 1: mean log-probability, 0: sum */
    uint32_t max_tokens;   /* 1 .. ESP_BEAM_MAX_LEN, the end token included */
    const uint32_t *eos;   /* u32[n_eos], end tokens, distinct; none: sequences end by length alone */
    uint32_t n_eos;        /* 0 .. ESP_BEAM_MAX_EOS */
    const uint32_t *ban;   /* u32[n_ban], forbidden ids */
    uint32_t n_ban;
    uint32_t vocab; /* V, at least 1 */
};

struct esp_beam;

/**
 * @param out     a new search, about to take one row (that of the prompt's last position). NULL on failure.
 * @param params  copied, the arrays too
 * Errors: ESP_E_ARG (names the flag), ESP_E_NOMEM.
 */
esp_status esp_beam_create(struct esp_beam **out, const struct esp_beam_params *params, struct esp_err *err);
void esp_beam_destroy(struct esp_beam **beam);

/**
 * What every row of the next step must hold: *k candidates, or with *need_full every logit (*k is then 0).
 * With *need_target, also the logit of *target, as the row's target or among its full logits: big_vision's
 * rule needs the end token's whatever its rank. With several end tokens that rule needs full rows.
 */
void esp_beam_need(const struct esp_beam *beam, uint32_t *k, bool *need_full, bool *need_target,
                   uint32_t *target);

/** Rows that the next step takes: 1 at first, then as many as live; 0 once the search is done. */
uint32_t esp_beam_n_live(const struct esp_beam *beam);

/** Tokens that living sequence i has so far, as many as steps were taken, into out. i below esp_beam_n_live. */
void esp_beam_tokens(const struct esp_beam *beam, uint32_t i, uint32_t *out);

/** A living sequence after a step: the one at index `parent` before the step, plus `token`. */
struct esp_beam_next {
    uint32_t parent, token;
};

/**
 * One step.
 *
 * @param next    the living sequences in order, esp_beam_n_live of them; the caller's, n_beam long
 * @param n_next  how many; 0 when *done
 * @param done    the search is over: no further step is taken
 * @param rows    one a living sequence, in the order of the last `next`
 * @param n_rows  must be esp_beam_n_live
 * Errors: ESP_E_DEVICE (a row is nonsense), ESP_E_ARG (a row lacks what esp_beam_need asked for, wrong
 * n_rows, the search is done, or every continuation is forbidden), ESP_E_NOMEM. A failed step leaves the
 * search as it was.
 */
esp_status esp_beam_step(struct esp_beam *beam, struct esp_beam_next *next, uint32_t *n_next, bool *done,
                         const struct esp_cand_row *rows, uint32_t n_rows, struct esp_err *err);

/** A hypothesis. Its arrays belong to the search and live as long. */
struct esp_beam_hyp {
    const uint32_t *ids;    /* u32[n_tok], the end token included */
    const double *logprobs; /* f64[n_tok] */
    uint32_t n_tok;
    uint32_t n_text; /* tokens without the end token: n_tok, or n_tok - 1 if has_eos */
    bool has_eos;    /* ended by an end token; otherwise by max_tokens */
    double sum;      /* of the logprobs */
    double score;    /* big_vision: sum; Hugging Face: sum / n_tok^length_penalty */
};

/**
 * Hypothesis `i` by falling score, into *out; false if there is none, or the search is not done. Once it is
 * done there is at least one and there are at most n_beam. big_vision's rule knows one result, i = 0; the
 * others are the next best of those that ended before it stopped.
 */
bool esp_beam_result(const struct esp_beam *beam, uint32_t i, struct esp_beam_hyp *out);

/* ---- state as bytes (beam_save.c) ---- */

/**
 * Appends what has come since *n_saved nodes of the tree were saved (0: all), and the state at present; moves *n_saved.
 */
void esp_beam_save(const struct esp_beam *beam, uint32_t *n_saved, struct esp_bytes *out);

/**
 * Takes what one esp_beam_save has written; the search must be new, or have taken those before it. After the last one
 * comes esp_beam_load_end with the steps taken and whether the search was over: then it goes on as the saved one
 * would have. The bytes may be anything. Errors: ESP_E_FORMAT, ESP_E_NOMEM: the search is then good for
 * nothing but esp_beam_destroy.
 */
esp_status esp_beam_load(struct esp_beam *beam, struct esp_reader *in, struct esp_err *err);
esp_status esp_beam_load_end(struct esp_beam *beam, uint32_t n_step, bool done, struct esp_err *err);

/** Of a search that was loaded: the last token of living sequence i; nodes of the tree. */
uint32_t esp_beam_last(const struct esp_beam *beam, uint32_t i);
uint32_t esp_beam_n_nodes(const struct esp_beam *beam);

#endif
