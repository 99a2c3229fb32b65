/* What beam.c and beam_save.c share; nobody else includes it. */
#ifndef ESP_COORDINATOR_BEAM_STATE_H
#define ESP_COORDINATOR_BEAM_STATE_H

#include "coordinator/beam.h"

/*
 * Sequences share their beginnings, so they are kept as a tree: a node is a token and its parent. A step
 * writes its nodes behind the last committed one and commits by moving n_node, so that a step that fails
 * leaves nothing behind.
 */
#define ESP_BEAM_NO_NODE UINT32_MAX

struct esp_beam_node {
    uint32_t parent, token;
    double logprob;
};

struct esp_beam_live {
    uint32_t node; /* ESP_BEAM_NO_NODE: nothing generated yet */
    double sum;
};

struct esp_beam_finished {
    uint32_t node, n_tok;
    bool has_eos;
    double sum, score;
};

struct esp_beam_cand {
    double sum, logprob;
    uint32_t parent, token;
};

struct esp_beam {
    struct esp_beam_params par; /* eos and ban point to our copies */
    uint32_t *eos, *ban;        /* ban: rising */
    uint32_t n_keep;            /* continuations ranked in a step */
    uint32_t n_step;            /* steps done: length of the living sequences */
    bool done;
    struct esp_beam_live *live;
    uint32_t n_live;
    struct esp_beam_finished *fin; /* by falling score */
    uint32_t n_fin;
    struct esp_beam_node *node;
    uint32_t n_node, cap_node;
    struct esp_beam_cand *cand;   /* [n_beam * n_keep] of a step, before they are ranked */
    uint32_t *row_id;             /* [n_keep]: a row's best */
    float *row_logit;             /* [n_keep] */
    struct esp_beam_live *t_live; /* a step's new state, until it is committed */
    struct esp_beam_finished *t_fin;
    uint32_t *out_id; /* once done: all hypotheses' tokens, one behind the other */
    double *out_logprob;
};

/** Makes room for n more nodes. */
esp_status esp_beam_reserve(struct esp_beam *beam, uint32_t n, struct esp_err *err);

/** The final hypotheses' tokens, unrolled from the tree. */
esp_status esp_beam_unroll(struct esp_beam *beam, const struct esp_beam_finished *fin, uint32_t n_fin,
                           struct esp_err *err);

double esp_beam_score(const struct esp_beam *beam, double sum, uint32_t n_tok);
bool esp_beam_is_eos(const struct esp_beam *beam, uint32_t id);

#endif
