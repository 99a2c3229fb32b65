/**
 * The thread that runs the stage: work goes in at one end and comes out at the other, in order.
 *
 * A device call blocks for as long as the device takes, and loading takes seconds; sockets and heartbeats
 * must not wait for it. So one thread owns the device and the stage, another one (serve.c) the sockets, and
 * between them are two queues and a file descriptor. Order is the protocol's: what was queued first is run
 * and handed back first.
 *
 * create, destroy, push, purge, take and the questions are the owner's (one thread's).
 */
#ifndef ESP_WORKER_RUNNER_H
#define ESP_WORKER_RUNNER_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/link.h"
#include "proto/log.h"
#include "proto/wire.h"
#include "worker/shelf.h"

/** Bytes that several messages in flight may hold at once, ZeroMQ's threads among them. */
struct esp_shared;

/** Takes malloc'ed bytes; NULL when memory is out, with the bytes still the caller's. */
struct esp_shared *esp_shared_create(void *data);
void *esp_shared_data(struct esp_shared *shared);
void esp_shared_ref(struct esp_shared *shared);
void esp_shared_unref(struct esp_shared *shared); /* NULL is fine; the last one frees; safe from any thread */

/** A piece of work and, afterwards, what became of it. */
struct esp_work {
    struct esp_work *next;
    struct esp_msg
        msg; /* PLACE, ENCODE, STEP, RELEASE, KV_BLOCKS, VERIFY or MANIFEST as received, or what to export; MOVE: all of
                them are done; LOADING, VERIFIED and ERROR are answers alone */
    uint64_t generation; /* of the placement it belongs to, the owner's number */
    uint64_t arrived_ns; /* CLOCK_MONOTONIC */
    uint32_t n_users;    /* messages to be sent that borrow from it; the owner's alone */
    bool store_here;     /* ENCODE: features that come out stay on this worker */
    bool carry;          /* PLACE: the stage that is here is the one of the epoch it carries */
    bool export; /* KV_BLOCKS (layer, first) and ENCODE (image): of the placement before, to send on */
    struct esp_peer from;    /* who sent it, of what other workers send; n 0: the coordinator */
    struct esp_shelf *shelf; /* MANIFEST: of the new checkpoint; the runner's once it has run */
    struct esp_checkpoint
        *ck; /* MANIFEST: the new one, borrowed; afterwards the one before, which nobody uses; NULL: none */

    esp_status status;
    struct esp_err err;
    struct esp_stage_out out;
    bool stored;                    /* ENCODE: the features are kept here */
    struct esp_stage_info_out info; /* PLACE; of a warm one weight_bytes and loaded_bytes alone */
    double load_seconds;            /* PLACE */
    struct esp_stage_kv kv;         /* KV_BLOCKS exported */
    bool layer_done;                /* KV_BLOCKS that came: all of the layer is here now, ... */
    uint64_t layer_bytes;           /* ... so much of it */
    struct esp_verify *verify;      /* VERIFY: what the device is run for, the work's */
    bool more;                      /* VERIFY: the device is not done with it */
    uint32_t n_times;
    struct esp_stage_time *times; /* ENCODE, STEP: those it came with and this stage's own */
};

/** Bytes of a layer's KV that travel in one message, at most. */
#define ESP_MOVE_BYTES (4u << 20)

/** Zeroed but for the message, which it takes (clearing the caller's); NULL: out of memory, the message is
 * kept. */
struct esp_work *esp_work_create(struct esp_msg *msg);
void esp_work_destroy(struct esp_work **work);

/**
 * Carrying: a Place that carries another epoch takes the stage's KV over, and what it gives away of it is kept until MOVE
 * comes, or the next Place. Where it asks for the very stage that is here, that one goes on. Layers of which it has no KV
 * are waited for: steps are refused until the last block is here, and releases wait.
 */
struct esp_runner;

/**
 * Starts the thread, without a stage.
 *
 * A Place with `warm` is loaded in slices between other work, beside the stage that holds: nothing else waits longer
 * than for one slice. It ends when all of it is on the device, when it fails, or with ESP_E_CANCELLED when the next Place
 * comes to its turn; one without `warm` is given up with ESP_E_CANCELLED if another one without is queued while it loads.
 * What was read by then is not lost.
 *
 * A Manifest destroys the stage and the shelf that an earlier one brought, and goes on with its own.
 *
 * @param shelf  NULL: a Manifest will bring one
 * @param shelf, name  borrowed until destroy; the shelf and its device are the thread's until stop. name: in stage
 * times.
 * Errors: ESP_E_NOMEM, ESP_E_IO.
 */
esp_status esp_runner_create(struct esp_runner **out, struct esp_shelf *shelf, const char *name,
                             const struct esp_log *log, struct esp_err *err);

/**
 * Ends the thread after the call it is in, and destroys the stage. False if that call took longer than
 * timeout_ms: the thread still runs then, nothing may be freed, and the process should end by _exit.
 */
bool esp_runner_stop(struct esp_runner *runner, int timeout_ms);

/** After a stop that succeeded. */
void esp_runner_destroy(struct esp_runner **runner);

/** Queues work; it is the runner's until esp_runner_take hands it back. Sets arrived_ns. */
void esp_runner_push(struct esp_runner *runner, struct esp_work *work);

/** Drops all work that has not begun, but for a Manifest. */
void esp_runner_purge(struct esp_runner *runner);

/** Readable while finished work waits. */
int esp_runner_fd(const struct esp_runner *runner);

/** Hands the owner a piece that was not queued, as though it had been run. From any thread. */
void esp_runner_post(struct esp_runner *runner, struct esp_work *work);

/** The next finished work, the caller's; NULL: none. */
struct esp_work *esp_runner_take(struct esp_runner *runner);

/** Work queued or running, and the bytes of its raw frames. */
void esp_runner_load(struct esp_runner *runner, uint32_t *n_works, uint64_t *n_bytes);

/** What the stage held after the last call; zeros without one. */
void esp_runner_info(struct esp_runner *runner, struct esp_stage_info_out *out);

#endif
