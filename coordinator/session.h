/**
 * A request's life at the coordinator.
 *
 *   PREPARING --pictures decoded, text tokenised--> QUEUED --admitted: the KV cache has room--> ENCODING
 *   --its pictures' features are stored--> RUNNING: prefill, then decode, one step out at a time --> ENDED
 *
 * When the workers lose what they held, an admitted session goes back to QUEUED, marked `rebuild`: it comes in again
 * before all others, its pictures are encoded again, its sequences are brought back (decode.h), and it goes on.
 *
 * Any state goes to ENDED on a failure or a Cancel. An ENDED session stays until the client has taken its
 * last message, the preparation thread has given its job back, and a step that is still out has come home:
 * only then may its sequences be released. Data only; sched.c moves it on and server.c talks.
 */
#ifndef ESP_COORDINATOR_SESSION_H
#define ESP_COORDINATOR_SESSION_H

#include <stdbool.h>
#include <stdint.h>

#include "coordinator/decode.h"
#include "coordinator/features.h"
#include "coordinator/prepare.h"
#include "coordinator/shares.h"
#include "coordinator/token.h"
#include "proto/link.h"
#include "proto/wire.h"

enum esp_session_state {
    ESP_SESSION_PREPARING,
    ESP_SESSION_QUEUED,
    ESP_SESSION_ENCODING,
    ESP_SESSION_RUNNING,
    ESP_SESSION_ENDED
};

/** A stage's times, summed over a request. */
struct esp_time_sum {
    char worker[ESP_MAX_NAME + 1];
    double queue_seconds, compute_seconds;
    double decode_queue_seconds, decode_compute_seconds; /* of decoding steps */
    uint64_t received_bytes, decode_received_bytes;
};

struct esp_session {
    struct esp_session *next; /* in the order of arrival */
    uint64_t id;              /* ours */
    struct esp_peer client;
    uint64_t request; /* the client's number for it */
    enum esp_session_state state;
    bool with_thread; /* its job is with the preparation thread */
    bool step_out;    /* a step of it is on its way; no other may be sent */
    bool alone;       /* in its steps: one that it shared has failed, for the fault of nobody knows whom */
    bool rebuild;     /* QUEUED again: the workers have lost what they held of it */
    bool fitted;      /* the cluster once had room enough: it waits for that, and does not fail */
    uint32_t max_tokens;
    bool trace;
    uint32_t n_traces, n_traces_due; /* relayed; until they are all there, the last message waits a little */
    uint64_t trace_step;             /* whose traces are this session's; 0: none */
    uint64_t trace_epoch;

    /* From preparation on. */
    struct esp_prepare_job *job; /* prefix, pixels, hashes */
    struct esp_decode *decode;
    uint32_t n_images;
    struct esp_feature **features; /* [n_images], referenced from admission on */
    uint64_t *images;              /* [n_images], their ids from admission on */

    /* Admitted: what it holds of the workers' room. */
    bool admitted;
    uint64_t n_blocks;
    uint32_t n_seqs;
    struct esp_share *share;                   /* while it waits for that */
    uint64_t admission;                        /* the how manieth it was, at first; 0: never yet */
    uint64_t turn;                             /* when it last had one */
    struct esp_session *turn_prev, *turn_next; /* RUNNING: by turn, who has waited longest first */

    /* What is told of it. */
    uint32_t n_cached;   /* pictures whose features were there or on their way when it was admitted */
    uint32_t n_rebuilds; /* how often its sequences had to be brought back */
    uint64_t n_counted;  /* of its tokens, in the scheduler's counts */
    double lost_at;      /* since when it has been kept from going on, seconds; 0: it is going on */

    /* In the journal (server_journal.c). */
    bool journalled;
    struct esp_decode_mark saved; /* what of its progress */
    bool unread;                  /* an earlier coordinator left it, and its files are not read back yet */
    uint64_t file_bytes;          /* of those */
    uint8_t *records;             /* read back, until it is prepared again */
    size_t n_records;

    /* Towards the client. */
    bool away;                        /* not here since the coordinator was restarted ... */
    double gone_at;                   /* ... and given up then */
    uint8_t ticket[ESP_TICKET_BYTES]; /* who knows it may resume; zeros: nobody */
    bool client_gone;
    bool accepted_sent, final_sent;
    struct esp_detok *detok;
    uint32_t n_have;        /* tokens that the client had when it resumed: they are not sent again */
    uint32_t n_tokens_sent; /* or passed over for that */
    char *token_text;       /* of the next token, when the client's queue was full */
    esp_status st;          /* ENDED: how */
    struct esp_err err;
    char what[32]; /* the last Waiting */
    uint64_t what_done, what_total;
    double told_at; /* when it was last sent anything */

    /* Seconds on the server's clock. */
    double arrived, prepared, admitted_at, encoded, first_result, ended;
    double queued_from; /* prepared, and the cluster ready */
    double load;        /* from the cluster's start until it was ready, if the request had to wait for that */
    uint32_t n_times;
    struct esp_time_sum *times;
    uint32_t n_decode_steps;
    uint64_t result_bytes; /* of those steps */
};

esp_status esp_session_create(struct esp_session **out, uint64_t id, const struct esp_peer *client,
                              const struct esp_msg_request *request, double now, struct esp_err *err);

/** Frees it; its features must have been dropped and no step be out. Clears *session. */
void esp_session_destroy(struct esp_session **session);

/**
 * Adds a message's stage times to the session's. Without memory they are lost, which harms nobody.
 * @param decode  they are of a decoding step
 */
void esp_session_add_times(struct esp_session *session, uint32_t n, const struct esp_stage_time *times,
                           bool decode);

/** The Done message of a session that ended well. Everything in *msg lives in *store, which
 * esp_session_done_finish frees. */
struct esp_done_store {
    struct esp_hypothesis *hyps;
    struct esp_stage_time *times, *decode_times;
    uint32_t n_hyps;
};
esp_status esp_session_done(struct esp_msg *msg, struct esp_done_store *store,
                            const struct esp_session *session, const struct esp_tokenizer *token,
                            struct esp_err *err);
void esp_session_done_finish(struct esp_done_store *store);

/** A copy of n bytes as a C string: a NUL among them becomes U+FFFD. malloc'ed; NULL without memory. */
char *esp_text_copy(const char *text, size_t n);

#endif
