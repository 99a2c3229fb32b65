/**
 * A made-up model and the caches of its workers, for a decoder to live in: the logits of a sequence are a hash of its
 * tokens. Whatever a part does to the caches that it may not (a wrong position, a fork of the dead) is told.
 */
#ifndef ESP_TESTS_SUPPORT_DECODE_WORLD_H
#define ESP_TESTS_SUPPORT_DECODE_WORLD_H

#include "coordinator/decode.h"

#define WORLD_VOCAB 50
#define WORLD_EOS   1
#define WORLD_SEQS  64
#define WORLD_LEN   128

struct world_seq {
    uint64_t id; /* 0: none */
    uint32_t n, tok[WORLD_LEN];
};

struct world {
    struct world_seq seq[WORLD_SEQS];
    uint64_t next_seq;
    const char *wrong; /* what a part did that it may not; NULL: nothing */
};

/** A kind of request: greedy, sampled, best of n, beams by both rules, a score. */
struct world_case {
    const char *name;
    struct esp_decode_params params; /* complete but for nothing: prefix, eos and vocab are in it */
};
extern const struct world_case world_cases[];
extern const size_t n_world_cases;

/** A decoder for this case; NULL without memory. */
struct esp_decode *world_decoder(struct world *w, const struct world_case *c);

/** One part there and back. *done as esp_decode_take's. */
esp_status world_step(struct world *w, struct esp_decode *d, bool *done, struct esp_err *err);

#endif
