/**
 * A scheduler with fake workers behind it, in one process and without a clock.
 *
 * Together the workers are a language model whose logits are a hash of a sequence's tokens and of the kind of
 * kernels that computed each (prefill or decode): whoever rebuilds a sequence by other arithmetic gets other tokens.
 * Every stage keeps the books of worker/kv.h, so that a wrong position, a fork of the dead, a leak or a block too
 * many fails the test. What is out comes home in order, when the test says so.
 */
#ifndef ESP_TESTS_UNIT_SCHED_RIG_H
#define ESP_TESTS_UNIT_SCHED_RIG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "coordinator/sched.h"
#include "worker/kv.h"

#define RIG_VOCAB  48
#define RIG_EOS    1
#define RIG_STAGES 3
#define RIG_TOKENS 128 /* of a sequence */
#define RIG_SEQS   300
#define RIG_OUT    64
#define RIG_ANSWER 1024

struct rig_seq {
    uint64_t id; /* 0: none */
    uint32_t n;
    uint64_t past[RIG_TOKENS]; /* hash of all tokens up to here, and how each was computed */
};

struct rig_stage {
    struct esp_kv *kv;
    struct rig_seq *seq; /* [RIG_SEQS] */
};

struct sched_rig {
    struct esp_sched *sched;
    struct esp_sched_room room;
    struct rig_stage stage[RIG_STAGES];
    uint64_t image[64], encoding[64]; /* stored, and on their way */
    uint32_t n_images, n_encoding;
    struct esp_flight *out[RIG_OUT]; /* oldest first */
    uint32_t n_out;
    uint64_t last_step, last_session;
    double now;
    /* What was seen. */
    uint32_t n_home;        /* pieces of work that came home */
    uint32_t most_sessions; /* in one step */
};

/** Room that is no limit to anything, in so many stages. */
struct esp_sched_room sched_rig_room(uint32_t n_stages);

/** A scheduler and workers that have room for so much. */
void sched_rig_open(struct sched_rig *rig, const struct esp_sched_room *room);

/** The workers must hold nothing any more: no sequence, no block. */
void sched_rig_close(struct sched_rig *rig);

struct sched_ask {
    uint8_t client;
    uint32_t max_tokens, n_suffix, n_images;
    uint8_t picture[4]; /* what is on them */
    struct esp_msg_sampling sampling;
    bool score, trace;
    uint32_t n_prefix; /* 0: 10 */
};

/** A prepared session in the queue. It lives until the rig is closed. */
struct esp_session *sched_rig_ask(struct sched_rig *rig, const struct sched_ask *ask);

/** Everything that the server would do now: releases, admissions, pictures, steps. */
void sched_rig_dispatch(struct sched_rig *rig);

/** The oldest piece of work comes home, pictures first; false: nothing is out. */
bool sched_rig_home(struct sched_rig *rig);

/** The oldest step fails in this stage. */
void sched_rig_fail(struct sched_rig *rig, uint32_t stage, esp_status code);

/** Dispatches and lets things come home until nothing is out any more, or so many have come home in all. */
void sched_rig_run(struct sched_rig *rig, uint32_t until);

/** All that the workers hold is gone, with what is out. */
void sched_rig_lose(struct sched_rig *rig);
/** The next placement. */
void sched_rig_reopen(struct sched_rig *rig, const struct esp_sched_room *room);

/** An ended session's answer as text: every hypothesis' ids and sum, or its error. */
void sched_rig_answer(char out[RIG_ANSWER], const struct esp_session *s);

#endif
