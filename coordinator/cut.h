/**
 * How many layers each worker gets: the search behind placement, in plain numbers.
 *
 * Layers of a tower cost the same, so a cut is a count per worker: any counts that sum to the tower's layers
 * can be laid out as contiguous runs, whatever the order of the workers. Order matters only at the ends,
 * where four roles come on top: the first and the last encoder stage, the first and the last decoder stage. A
 * worker that is both first and last of a tower has all of it.
 *
 * Load of a worker: its seconds in one typical request, all phases together. With requests flowing, encoder
 * work, prefill and decoding of different requests overlap, so that the busiest worker sets the pace: that is
 * the stage to keep short. (Balancing each phase by itself instead wastes what another phase leaves idle; it
 * is the tie-break.)
 *
 * The search is exact in the largest load over all cuts, orders and roles: a bisection over the bound; for
 * each bound a dynamic program over the workers, states (roles given out, encoder layers given out) -> most
 * decoder layers that the bound and the memory allow. Then, no load rising above (1 + slack) times that
 * optimum, single moves and exchanges of layers and roles lower the sum over workers of squared shares: of
 * the whole request (twice), of the encoder, of the decoder. So work spreads over every worker that shortens
 * somebody else's queue, and each tower spreads too, which helps traffic of one kind (a second question about
 * a picture needs no encoder). Workers that stay empty are spares.
 */
#ifndef ESP_COORDINATOR_CUT_H
#define ESP_COORDINATOR_CUT_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/status.h"

enum esp_role_bit {
    ESP_ROLE_PATCH = 1,     /* first encoder stage */
    ESP_ROLE_PROJECTOR = 2, /* last encoder stage */
    ESP_ROLE_EMBED = 4,     /* first decoder stage */
    ESP_ROLE_HEAD = 8       /* last decoder stage */
};

struct esp_cut_worker {
    uint64_t memory_bytes;
    bool no_enc, no_dec, no_table;   /* a tensor of that kind does not fit into one of its allocations */
    double enc_seconds, dec_seconds; /* one layer, one request */
    double role_seconds[4];          /* by bit number */
};

struct esp_cut_problem {
    uint32_t n_worker, n_enc, n_dec; /* all at least 1 */
    const struct esp_cut_worker *worker;
    uint64_t enc_bytes, dec_bytes;             /* a layer; the decoder's with its KV cache */
    uint64_t role_bytes[4];                    /* what a role adds; embedding and head: without the table */
    uint64_t table_bytes;                      /* the embedding table: embedding or head, once */
    uint64_t enc_stage_bytes, dec_stage_bytes; /* a stage's scratch */
    double slack;                              /* 0: keep the exact optimum */
};

/** One worker's share. */
struct esp_cut {
    uint32_t n_enc, n_dec;
    uint32_t roles; /* of esp_role_bit */
};

/** Seconds and bytes of a share on worker w. */
double esp_cut_load(const struct esp_cut_problem *p, uint32_t w, const struct esp_cut *c);
uint64_t esp_cut_bytes(const struct esp_cut_problem *p, const struct esp_cut *c);

/** Whether the share respects worker w's memory and allocations. */
bool esp_cut_fits(const struct esp_cut_problem *p, uint32_t w, const struct esp_cut *c);

/**
 * @param out   one share a worker, the caller's
 * @param fits  false if no cut at all respects the memory; out is then unspecified
 * @param best  the smallest possible largest load; NULL if unwanted
 * Errors: ESP_E_NOMEM (the search's own). Deterministic; ties fall to the lower worker. Safe from any thread.
 */
esp_status esp_cut_search(struct esp_cut *out, bool *fits, double *best, const struct esp_cut_problem *p,
                          struct esp_err *err);

#endif
