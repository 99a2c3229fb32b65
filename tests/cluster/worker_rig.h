/**
 * Workers as threads of the test, on a fake stage, and the test as their coordinator and neighbours, over
 * real sockets. Waits have a deadline of ESP_PATIENCE_MS; a wait that runs out, or an answer nobody asked
 * for, fails the test.
 */
#ifndef ESP_TEST_WORKER_RIG_H
#define ESP_TEST_WORKER_RIG_H

#include <pthread.h>
#include <stdatomic.h>

#include "proto/link.h"
#include "tests/support/patience.h"
#include "worker/serve.h"

#define RIG_WORKERS 3

struct rig_worker {
    char name[16], bind[128];
    char endpoint[ESP_MAX_ENDPOINT + 1]; /* as its Hello said */
    struct esp_peer peer;
    const char *cache; /* set before rig_start: it has no checkpoint, and keeps what it fetches there */
    struct esp_worker_options options;
    struct esp_vk *vk; /* what its stage runs on, if it is no fake one: borrowed, set before it starts */
    const struct esp_checkpoint *ck;
    pthread_t thread;
    int stop_fd;
    bool started;
    atomic_bool ended;
    esp_status status;
    struct esp_err err;
};

struct rig {
    char dir[64], at[ESP_MAX_ENDPOINT + 1];
    struct esp_net *net;
    struct esp_link *link; /* the coordinator's */
    struct esp_log log;    /* the workers', into a file without a name */
    struct rig_worker w[RIG_WORKERS];
    uint32_t heartbeat_ms, timeout_ms; /* of Welcome */
};

int rig_setup(void **state);
int rig_teardown(void **state);

/** Binds the coordinator's socket, as at the start and after rig_close. */
void rig_open(struct rig *rig);
void rig_close(struct rig *rig);

/** Starts worker i, without answering it. */
void rig_start(struct rig *rig, int i);

/** Takes its Hello and answers with Welcome. */
void rig_welcome(struct rig *rig, int i);

/** Both, for workers 0 .. n-1. */
void rig_join(struct rig *rig, int n);

/** Tells it to stop, as a signal would. */
void rig_stop(struct rig *rig, int i);

/** Waits for its end; the status it ended with. */
esp_status rig_wait(struct rig *rig, int i);

/** Sends to worker i as the coordinator. Retries while its queue is full. The message's blobs are not
 * consumed. */
void rig_send(struct rig *rig, int i, const struct esp_msg *msg);

/**
 * The next message of a worker (any if i < 0), which must be of this kind; Heartbeat and Loading are skipped
 * unless asked for. Finish it.
 */
void rig_take(struct rig *rig, int i, enum esp_msg_kind kind, struct esp_msg *msg);

/** Takes an Error and checks it. */
void rig_take_error(struct rig *rig, int i, esp_status code, const char *fragment, uint64_t epoch,
                    uint64_t step, uint64_t image);

/** Fails if within ms anything but Heartbeat and Loading comes. */
void rig_expect_silence(struct rig *rig, int ms);

/** Sends a Place to one worker, cut to ranges, with next stages named by worker index (-1: none). */
struct rig_place {
    uint64_t epoch;
    uint32_t enc_lo, enc_hi, dec_lo, dec_hi, n_enc,
        n_dec; /* the model's layers decide patch, projector, embed, head */
    int next_enc, features_to, next_dec;
    uint32_t kv_tokens; /* 0: 256 */
};
void rig_place(struct rig *rig, int i, const struct rig_place *place);

/** The same for a placement that carries another epoch on, or is loaded ahead. */
void rig_place_on(struct rig *rig, int i, const struct rig_place *place, uint64_t carry, uint32_t n_moves,
                  bool warm);

/** Splits 4 encoder and 6 decoder layers over workers 0 .. n-1 and waits for every Ready. */
void rig_place_all(struct rig *rig, int n, uint64_t epoch);

/** A link that dials a worker's data endpoint; the caller destroys it. */
struct esp_link *rig_dial(struct rig *rig, int i, const char *identity);

/** Waits until the workers' log holds this text n times. */
void rig_expect_log(struct rig *rig, const char *fragment, int n);
int rig_count_log(struct rig *rig, const char *fragment);

/** Sends a Step(TOKENS); payload and width are filled in. ids: i32[step.rows]. */
void rig_send_step(struct rig *rig, int i, struct esp_msg_step step, const int32_t *ids);

/** One sequence, rows of `ids`, the last row wanted. */
void rig_send_rows(struct rig *rig, int i, uint64_t epoch, uint64_t id, uint64_t seq, uint32_t pos,
                   const int32_t *ids, uint32_t n);

/** Encode of a picture of 4 x 4 pixels, zeros but for the first. */
void rig_send_pixels(struct rig *rig, int i, uint64_t epoch, uint64_t image, float first, bool trace);

/** Takes a Result of one row; its lse. */
float rig_take_result(struct rig *rig, int i, uint64_t epoch, uint64_t step);

/** Column 0 of a sequence's last row by fake_stage.h's formula, 6 decoder layers. */
float rig_expected(const int32_t *ids, uint32_t n);

#endif
