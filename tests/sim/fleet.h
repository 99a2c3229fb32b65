/**
 * A simulated fleet: a real espalier-coordinator as a child process and workers that are real but for their compute,
 * on one machine over real sockets. A worker is a thread here (the conversation of worker/serve.h on a device of
 * sim_device.h, whose counters the test can read) or a child process, which can be killed and frozen.
 *
 * Whatever goes wrong fails the test; waits have a deadline of FLEET_DEADLINE_S and look at conditions.
 */
#ifndef ESP_TEST_SIM_FLEET_H
#define ESP_TEST_SIM_FLEET_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#include "model/checkpoint.h"
#include "proto/link.h"
#include "tests/sim/sim_device.h"
#include "worker/serve.h"

#define FLEET_MAX        96
#define FLEET_DEADLINE_S 120.0
#define FLEET_ENC_LAYERS 27
#define FLEET_DEC_LAYERS 64

enum fleet_kind { FLEET_THREAD, FLEET_PROCESS };

struct fleet;

struct fleet_worker {
    struct fleet *fleet;
    char name[16], bind[128];
    enum fleet_kind kind;
    struct sim_profile profile;
    bool running;

    /* FLEET_THREAD */
    struct sim_device device;
    struct esp_shelf *shelf;
    struct esp_worker_options options;
    pthread_t thread;
    int stop_fd;
    atomic_bool ended;
    esp_status status;
    struct esp_err err;

    /* FLEET_PROCESS */
    pid_t pid;
    bool frozen;
};

struct fleet {
    char dir[64], model[80], at[ESP_MAX_ENDPOINT + 1];
    bool tcp; /* rather than ipc, for all links */
    pid_t coordinator;
    struct esp_checkpoint *ck;
    struct esp_net *net; /* the clients' */
    struct esp_link *control;
    uint64_t n_query;
    struct esp_log log; /* of the workers that are threads */
    struct fleet_worker w[FLEET_MAX];
    uint32_t n;
};

/** Writes the model (tiny rows, FLEET_*_LAYERS layers) and starts the coordinator, with more arguments up to a NULL. */
void fleet_start(struct fleet *f, bool tcp, const char *const *args);

/** One more worker, "wNN". */
void fleet_add(struct fleet *f, enum fleet_kind kind, const struct sim_profile *profile);

/** Kills, stops (SIGSTOP) or continues worker i, a process. fleet_again starts a killed one anew. */
void fleet_kill(struct fleet *f, uint32_t i);
void fleet_freeze(struct fleet *f, uint32_t i);
void fleet_thaw(struct fleet *f, uint32_t i);
void fleet_again(struct fleet *f, uint32_t i);

/** Has worker i, a process, drained, and waits for its end. What it came to: numbers alone. */
struct esp_msg_drained fleet_drain(struct fleet *f, uint32_t i, void (*meanwhile)(void *), void *arg);

/** What the coordinator says of itself now; the caller finishes it. */
void fleet_status(struct fleet *f, struct esp_msg *status);

/** Until n workers have joined and the model is placed and loaded. */
void fleet_until_ready(struct fleet *f, uint32_t n);

/**
 * A fleet of n threads with this profile on tcp, ready: the decoder's layers shared evenly, the encoder the first one's;
 * room for 32768 tokens in sequences of at most 512.
 */
void fleet_start_even(struct fleet *f, uint32_t n, const struct sim_profile *profile);

/** Ends everything, in order, and removes the files; fails the test if anyone ended badly. */
void fleet_stop(struct fleet *f);

/** All calls of all stages that are threads here: their times by the profiles, as they were, and how many. */
struct fleet_time {
    double asked, taken, calls;
};
void fleet_time(struct fleet *f, struct fleet_time *out);

/**
 * Whether the machine is too busy with something else to say anything about a pipeline: since then sleepers were woken
 * more than FLEET_LATE_S late on average. A test that then misses its bound says so aloud and is skipped.
 */
bool fleet_starved(struct fleet *f, const struct fleet_time *since, double *late);
#define FLEET_LATE_S 0.00025

/** Says so, and skips the test. */
void fleet_not_judged(double late);

/** Processor time that the coordinator has taken, in seconds. */
double fleet_cpu(const struct fleet *f);

/** Lines of the coordinator's log that hold this. */
uint32_t fleet_count_log(const struct fleet *f, const char *fragment);

/** Seconds of a clock that only goes forward. */
double fleet_now(void);

/** True where the long versions of tests are asked for (ESPALIER_SOAK=1). */
bool fleet_soak(void);

#endif
