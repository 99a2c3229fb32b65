/**
 * The preparation thread: picture files to pixel values, text to ids.
 *
 * A big picture takes long enough to decode that heartbeats would be late, so it is done here. A job goes in
 * through a queue under a mutex and comes back through another, announced by an eventfd that the server's
 * loop sleeps on. A job belongs to whoever has it: the caller, then the thread, then the caller again.
 */
#ifndef ESP_COORDINATOR_PREPARE_H
#define ESP_COORDINATOR_PREPARE_H

#include <stdatomic.h>
#include <stdint.h>

#include "coordinator/features.h"
#include "coordinator/token.h"
#include "model/config.h"
#include "proto/status.h"
#include "proto/wire.h"

struct esp_prepare_job {
    struct esp_prepare_job *next;
    uint64_t session;       /* the caller's mark */
    struct esp_msg request; /* in: a received Request, taken whole */
    atomic_bool dropped;    /* nobody wants it any more: what is left of it is not done */

    /* Out. With st set, err tells why and the rest is empty. */
    esp_status st;
    struct esp_err err;
    uint32_t *prefix; /* u32[n_prefix]: image rows, BOS, text, separator */
    uint32_t n_prefix, n_image_rows;
    uint32_t *suffix; /* u32[n_suffix] */
    uint32_t n_suffix;
    float *pixels;                           /* f32[n_images, 3, S, S] */
    uint8_t (*hash)[ESP_PICTURE_HASH_BYTES]; /* [n_images], of the pixels */
};

/** Frees a job with everything in it, request included; clears *job. */
void esp_prepare_job_destroy(struct esp_prepare_job **job);

struct esp_prepare;

/** @param config, token  borrowed; token is used from the thread and from the caller's at once */
esp_status esp_prepare_create(struct esp_prepare **out, const struct esp_config *config,
                              const struct esp_tokenizer *token, struct esp_err *err);

/** Ends the thread after the picture it is at, and frees all jobs. */
void esp_prepare_destroy(struct esp_prepare **p);

/** Readable while finished jobs wait. */
int esp_prepare_fd(const struct esp_prepare *p);

/** Hands a job over; clears *job. */
void esp_prepare_submit(struct esp_prepare *p, struct esp_prepare_job **job);

/**
 * Nobody wants the job of this session any more. It comes back all the same, with ESP_E_CANCELLED unless it was
 * finished already, but those behind it do not wait for its pictures.
 */
void esp_prepare_drop(struct esp_prepare *p, uint64_t session);

/** The next finished job, the caller's from now on; NULL if there is none. */
struct esp_prepare_job *esp_prepare_take(struct esp_prepare *p);

/** What the thread does with a job, without a thread: for tests. */
void esp_prepare_run(struct esp_prepare_job *job, const struct esp_config *config,
                     const struct esp_tokenizer *token);

#endif
