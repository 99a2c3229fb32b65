/**
 * The real programs as processes of the test, on one machine or on several (tests/fault/machines.h), and a client in the
 * test that asks a request of every kind and looks at the status. What cannot go on fails the test.
 */
#ifndef ESP_TEST_REAL_CLUSTER_H
#define ESP_TEST_REAL_CLUSTER_H

#include <sys/types.h>

#include "proto/link.h"
#include "tests/fault/all_kinds.h"
#include "tests/support/patience.h"

#define REAL_WORKERS 5

struct real_cluster {
    char dir[64], at[128];
    bool far; /* over TCP between machines: the coordinator on 0, worker i on i + 1; the test on 0 */
    pid_t coordinator, worker[REAL_WORKERS];
    int n_workers;
    bool leaves[REAL_WORKERS]; /* it was asked to drain: its end is a good one */
    struct esp_net *net;
    struct esp_link *link;
    uint64_t last_id;

    /* What was asked last. */
    uint64_t first;
    uint32_t n_tok[N];
    char got[N][TEXT];
    bool done[N];
    double token_at; /* seconds: when the last token or answer came */
};

/** Starts the coordinator for n workers, and them, and waits until all are ready. */
void real_start(struct real_cluster *c, int n, bool far);

/** Ends everything, and checks that it ends well. */
void real_stop(struct real_cluster *c);

/** Starts worker i again. */
void real_worker(struct real_cluster *c, int i);

/** SIGKILL for worker i, and waits for its end. */
void real_kill(struct real_cluster *c, int i);

/** Fails unless all that should run does. */
void real_check_alive(struct real_cluster *c);

/** The status; good until the next call. Takes what else has come meanwhile. */
const struct esp_msg_status *real_status(struct real_cluster *c);
const struct esp_worker_status *real_worker_status(const struct esp_msg_status *s, int i);

/** Asks a request of every kind, max_tokens as given. */
void real_ask_all(struct real_cluster *c, uint32_t max_tokens);

/** Takes what has come; true once all answers are there. Each token must have come once and in order. */
bool real_take(struct real_cluster *c, int ms);
void real_take_all(struct real_cluster *c);

/** Sends a Drain; its answer is skipped unless taken. worker[i] is 0 once it has left. */
uint64_t real_drain(struct real_cluster *c, int i);
struct esp_msg_drained real_drained(struct real_cluster *c, uint64_t id);

/** Waits until n workers are there, the cluster is ready and nothing is held: no sequence, no block. */
void real_settle(struct real_cluster *c, uint32_t n);

/** Resident memory of a process in KiB. */
long real_rss_kib(pid_t pid);

#endif
