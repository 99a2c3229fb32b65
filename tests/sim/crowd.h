/**
 * Scripted clients of a fleet, in the calling thread: each a connection of its own, each with any number of requests
 * out. Every answer is kept with the time of each token, and held against the model in one piece afterwards.
 */
#ifndef ESP_TEST_SIM_CROWD_H
#define ESP_TEST_SIM_CROWD_H

#include "tests/sim/fleet.h"

#define CROWD_CLIENTS  60
#define CROWD_PICTURES 8

struct crowd_ask {
    uint32_t client;
    uint32_t max_tokens;
    int picture; /* 0 .. CROWD_PICTURES-1; -1: none */
    bool encode_skipped, ended;
    uint64_t id;
    uint32_t n_prompt, *prompt; /* ids, as Accepted has them */
    uint32_t n_tok, *tok;
    double *at;                 /* of each token */
    double sent, ended_at;      /* seconds of fleet_now */
    struct esp_msg_done timing; /* its seconds alone */
};

struct crowd {
    struct fleet *f;
    uint32_t n_clients;
    struct esp_link *link[CROWD_CLIENTS];
    uint32_t n_asks, n_ended;
    struct crowd_ask **ask; /* ids are indices, from 1 */
    uint64_t n_tokens;      /* that came, in all */
    struct {
        char *bytes;
        size_t n_bytes;
        char name[32];
        uint64_t hash; /* sim_picture of its pixels */
    } picture[CROWD_PICTURES];
};

/** Dials n times, and returns when all are connected. */
void crowd_open(struct crowd *c, struct fleet *f, uint32_t n_clients);

/** One more request. Prompts differ, each from all others, in words and length. */
struct crowd_ask *crowd_ask(struct crowd *c, uint32_t client, int picture, uint32_t max_tokens);

/** Takes what has come, waiting at most ms for it. An Error fails the test. */
void crowd_pump(struct crowd *c, int ms);

/** Pumps until every request has its answer; fails the test when no token comes for FLEET_DEADLINE_S. */
void crowd_finish(struct crowd *c);

/** Fails the test unless every answer is the model's, token for token, each index once. */
void crowd_check(struct crowd *c);

/** Hangs up and forgets everything. */
void crowd_close(struct crowd *c);

/** Seconds from one token of an answer to the next: the quantile q of them, 1 the longest. 0 with fewer than two. */
double crowd_gap(const struct crowd_ask *a, double q);

/** Sorts n numbers and gives their quantile q: q 0 the least, 0.5 the median, 1 the largest. n at least 1. */
double crowd_quantile(double *of, size_t n, double q);

#endif
