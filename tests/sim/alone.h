/**
 * One session alone in a fleet of equal stages: what a token takes, and what its stages and wires take of that.
 */
#ifndef ESP_TEST_SIM_ALONE_H
#define ESP_TEST_SIM_ALONE_H

#include "tests/sim/fleet.h"

/** Seconds a token; medians but for `stages`, a mean. */
struct alone {
    double token;    /* from one to the next, at the client */
    double p10, p90; /* of the same */
    double stages;   /* in all stages together, sleeps that end late included */
    double wire;     /* a hop, measured at the same time (wire.h) */
    double late;     /* that sleepers were woken, a mean */
    bool starved;    /* fleet_starved */
    double bound;    /* stages, and n_stages + 1 wires: from the coordinator, between stages, and back */
};

/** One request's tokens, checked against the model's; how long they took. */
struct alone alone_measure(struct fleet *f, uint32_t n_tokens);

#endif
