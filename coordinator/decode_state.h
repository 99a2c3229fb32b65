/* What decode.c, decode_rebuild.c and decode_save.c share; nobody else includes it. */
#ifndef ESP_COORDINATOR_DECODE_STATE_H
#define ESP_COORDINATOR_DECODE_STATE_H

#include "coordinator/beam.h"
#include "coordinator/decode.h"
#include "coordinator/sample.h"

enum esp_decode_mode { ESP_DECODE_SAMPLE, ESP_DECODE_BEAM, ESP_DECODE_SCORE };

struct esp_decode_live { /* a sequence that goes on */
    uint64_t seq;
    uint32_t sample; /* ESP_DECODE_SAMPLE: which one of best-of-n */
    uint32_t token;  /* chosen, not yet fed */
};

struct esp_decode_sample { /* ESP_DECODE_SAMPLE and ESP_DECODE_SCORE: what came out so far */
    uint32_t *ids;
    double *logprobs;
    uint32_t n_ids, n_logprobs, n_cap;
    bool eos;
};

struct esp_decode {
    enum esp_decode_mode mode;
    uint32_t n_max;    /* sequences at most */
    uint32_t n_prefix; /* rows that see each other */
    uint32_t n_first;  /* rows of the first part */
    int32_t *first;    /* i32[n_first]: their ids */
    uint32_t n_suffix, n_images, max_tokens, vocab;
    uint64_t *images;
    uint32_t *ban;
    struct esp_sample_params sampling;
    bool full_first, has_eos;
    uint32_t eos;
    struct esp_beam *beam;
    uint64_t *next_seq;

    uint32_t len; /* tokens of every living sequence in the KV caches */
    uint32_t n_steps;
    bool done;
    uint32_t n_live;
    struct esp_decode_live *live, *spare_live; /* n_max each */
    uint32_t n_free, n_forks;                  /* of the next part */
    uint64_t *free;                            /* n_max */
    struct esp_fork *forks;                    /* n_max */
    uint32_t n_held;
    uint64_t *held;                  /* 2 * n_max: the living, then those that the part on its way frees */
    uint32_t *parent, *token;        /* n_max each: scratch */
    struct esp_beam_next *beam_next; /* n_max */
    struct esp_cand_row *cand;       /* n_max */

    struct esp_part part;
    struct esp_seq_rows *seqs; /* n_max */
    int32_t *ids;              /* n_max: one row a sequence */
    struct esp_want *wants;    /* as many as rows may be wanted */

    bool rebuild;          /* the caches lack what is not `built` yet: the next parts only bring it back */
    uint32_t built, chunk; /* tokens a sequence: back in the caches; in one part */
    int32_t *past;         /* i32[n_live, len - n_first] in the order of the parts: tokens fed before */
    uint64_t n_chosen;

    uint32_t n_samples;
    struct esp_decode_sample *sample;
    uint32_t *order; /* n_samples: best first, once done */
};

/* ---- decode.c ---- */

/** Adds a token, or (is_id false) an end, to what came out. */
esp_status esp_decode_keep(struct esp_decode_sample *s, bool is_id, uint32_t id, double logprob,
                           struct esp_err *err);

/** Once done: the samples' order, best first, by the mean log-probability. */
void esp_decode_rank(struct esp_decode *d);

/* ---- decode_rebuild.c ---- */

/** Fills d->part with what is to be brought back next. Only while d->rebuild. */
void esp_decode_rebuild_part(struct esp_decode *d);

/** That part is in the caches. */
void esp_decode_rebuild_took(struct esp_decode *d);

/** The first part's one sequence, and no wants. */
void esp_decode_first_part(struct esp_decode *d);

#endif
