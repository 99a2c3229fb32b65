/* What the files server*.c share; nobody else includes it. */
#ifndef ESP_COORDINATOR_SERVER_STATE_H
#define ESP_COORDINATOR_SERVER_STATE_H

#include "coordinator/cluster.h"
#include "coordinator/journal.h"
#include "coordinator/meter.h"
#include "coordinator/plan.h"
#include "coordinator/prepare.h"
#include "coordinator/released.h"
#include "coordinator/roster.h"
#include "coordinator/sched.h"
#include "coordinator/server.h"
#include "coordinator/supply.h"
#include "coordinator/token.h"
#include "model/checkpoint.h"
#include "proto/clock.h"
#include "proto/link.h"
#include "proto/log.h"

#define ESP_SERVER_MAX_SESSIONS 2048 /* that have not got their last message; half of one client */
#define ESP_SERVER_MAX_BYTES    ((size_t)1 << 30) /* of picture files waiting to be decoded */
#define ESP_SERVER_MAX_PIXEL_BYTES                                                                           \
    (UINT64_C(2) << 30) /* of decoded pictures of sessions that have not ended */

#define ESP_SERVER_MAX_PARKED 16

/** A Hello whose name is taken by somebody who may be gone. */
struct esp_parked_hello {
    struct esp_peer from;
    double since;
    struct esp_msg msg;
};

/** A check of the stages that a client asked for; zeros: none. */
struct esp_verification {
    uint64_t query; /* the client's number */
    struct esp_peer client;
    uint64_t id; /* ours; 0: it waits until the cluster is ready */
    uint64_t epoch;
    uint32_t n_workers, n_left, n_deviating;
    double told_at;
};

/** Since the start; what the scheduler does not count. */
struct esp_server_counts {
    uint64_t n_requests;
    uint64_t n_losses;       /* stages that were lost */
    uint64_t n_moves;        /* placements that carried on from the one before */
    uint64_t kv_moved_bytes; /* by them */
};

#define ESP_SERVER_MAX_DRAINS 16

/** Somebody wants a worker to leave. */
struct esp_drain_ask {
    char worker[ESP_MAX_NAME + 1];
    struct esp_peer who;
    uint64_t id; /* the client's */
    double since;
};

/** Layers [dec_lo, dec_hi) on their way from one worker to another. */
struct esp_move_leg {
    struct esp_worker *from, *to;
    uint32_t dec_lo, dec_hi;
    bool over; /* all of it is there */
};

/** The change of placement under way: server_move.c. */
struct esp_move {
    enum esp_move_state {
        ESP_MOVE_NONE,
        ESP_MOVE_WARMING,
        ESP_MOVE_QUIET,
        ESP_MOVE_PLACING, /* from here on the cluster is the new one */
        ESP_MOVE_COPYING
    } state;
    uint64_t epoch, carry; /* the new one, the old one */
    struct esp_plan *plan;
    bool is_drain;
    struct esp_drain_ask ask;
    double began, paused, progress, told; /* seconds */
    uint32_t n_legs, n_layers_due, n_images, n_images_due;
    struct esp_move_leg leg[ESP_MAX_LAYERS];
    bool layer_due[ESP_MAX_LAYERS];
    uint64_t image[ESP_MAX_SEQS]; /* those whose features go along, with leg 0; 0: arrived */
    uint32_t n_layers;            /* that the drained worker gave away */
    uint64_t kv_bytes;
};

#define ESP_SERVER_LIARS 32

/** What keeps strangers from filling the log: each is named once, and not too many a second. */
struct esp_server_noise {
    double since; /* start of the second that n counts in */
    uint32_t n, next;
    uint64_t n_unlogged;
    struct esp_peer named[ESP_SERVER_LIARS]; /* the last ones */
};

struct esp_server {
    struct esp_server_options opt;
    struct esp_cluster_options cluster_opt;
    const struct esp_log *log;
    char endpoint[ESP_MAX_ENDPOINT + 1];

    struct esp_checkpoint *ck;
    const struct esp_config *config; /* ck's */
    uint8_t fingerprint[ESP_FINGERPRINT_BYTES];
    struct esp_tokenizer *token;
    struct esp_prepare *prepare;
    struct esp_supply *supply;
    struct esp_keys *keys; /* NULL: none */
    struct esp_net *net;
    struct esp_link *link;
    struct esp_roster *roster;
    struct esp_sched *sched;
    struct esp_cluster cluster;
    uint32_t n_parked;
    struct esp_parked_hello parked[ESP_SERVER_MAX_PARKED];

    struct esp_move move;
    uint32_t n_drains;
    struct esp_drain_ask drain[ESP_SERVER_MAX_DRAINS]; /* that wait for their turn */
    double rebalance_at; /* look then whether moving layers pays; 0: no need to */
    struct esp_released released;

    uint32_t n_probes; /* a connection has ended: ask everyone with a message, so often yet */
    double next_probe;
    double watched_at;    /* esp_server_watch was last there */
    bool was_ready;       /* once, since the start */
    double ready_at;      /* seconds; 0: not ready */
    double waiting_since; /* not ready since then: the start, or the loss of a stage */
    double next_beat;
    bool broken;        /* the workers are all there, and still the model cannot be placed */
    struct esp_err why; /* while not ready: what is missing, or broken */
    uint64_t last_session;
    size_t file_bytes; /* of requests with the preparation thread */

    struct esp_journal *journal; /* NULL: none */
    uint32_t n_unread;           /* sessions that were left and wait to be read back */
    bool reading;                /* one is being read */

    double started_at;
    struct esp_server_counts counts;
    struct esp_meter token_meter;
    struct esp_verification verify;
    uint64_t last_verify;
    struct esp_server_noise noise;
    char doing[96]; /* "" or what goes on, for people: "moving layers of w2" */
};

/** Sends; a worker that cannot be sent to is marked lost. */
void esp_server_tell_worker(struct esp_server *sv, struct esp_worker *w, struct esp_msg *msg);

/** An Error to anyone, as good as it goes. */
void esp_server_tell_error(struct esp_server *sv, const struct esp_peer *to, uint64_t session,
                           esp_status code, const char *text);

/** Whether a line about what is wrong with this peer, which is none of ours, may be logged. */
bool esp_server_may_log(struct esp_server *sv, const struct esp_peer *from);

/* ---- server_workers.c ---- */

/** A message of a worker kind; worker is NULL if the sender has not joined. */
void esp_server_from_worker(struct esp_server *sv, const struct esp_peer *from, struct esp_worker *worker,
                            struct esp_msg *msg);

/** Heartbeats, timeouts, workers lost in sending. */
void esp_server_watch(struct esp_server *sv, double now);

/** A connection has ended: whoever cannot be sent to any more is found out about at once. */
void esp_server_probe(struct esp_server *sv);

/* ---- server_place.c ---- */

/**
 * A worker is no longer one of us. What it was needed for is placed anew.
 * @param text  the cause: "left: ...", "said nothing for 2 s"; the log and clients get it behind the name
 * @param tell  send it an Error with the cause
 */
void esp_server_drop_worker(struct esp_server *sv, struct esp_worker *w, esp_status code, const char *text,
                            bool tell);

/** It is here, but cannot do its part. */
void esp_server_fail_worker(struct esp_server *sv, struct esp_worker *w, esp_status code, const char *text);

/** Makes a placement if there is none and there are workers enough. */
void esp_server_reconsider(struct esp_server *sv);

/** The placement is void, and with it all that its workers hold: sessions wait for the next one. */
void esp_server_lose_cluster(struct esp_server *sv, esp_status code, const char *text);

/** Tells every worker its place, and the log. */
void esp_server_tell_places(struct esp_server *sv);

struct esp_plan_input esp_server_plan_input(const struct esp_server *sv);

/** What the workers of the present placement, which is ready, have room for. */
void esp_server_room(const struct esp_server *sv, struct esp_sched_room *room);

void esp_server_on_ready(struct esp_server *sv, struct esp_worker *w, const struct esp_msg_ready *ready);

/* ---- server_move.c ---- */

void esp_server_on_drain(struct esp_server *sv, const struct esp_peer *from,
                         const struct esp_msg_drain *drain);

/** A worker that somebody wanted to drain is gone, or useless: the asker is told. */
void esp_server_forget_drain(struct esp_server *sv, const struct esp_worker *w, const struct esp_err *why);

/** The model does not fit without the workers that are to leave: they stay, and the askers are told. False: none are. */
bool esp_server_give_up_drains(struct esp_server *sv, const struct esp_err *why);

/** Workers may have come that make a better placement. */
void esp_server_consider_moving(struct esp_server *sv);

/** No layers are moved, and the old placement goes on, if it still stands. A drain is tried again later. */
void esp_server_move_abort(struct esp_server *sv, const char *text);

/** Whether a worker has something yet that others wait for, though it is no stage any more. */
bool esp_server_move_needs(const struct esp_server *sv, const struct esp_worker *w);

/** A worker that is no stage is gone: ends a move that counted on it. */
void esp_server_move_without(struct esp_server *sv, const struct esp_worker *w);

/** Whether a message of this epoch is about the weights that a worker loads for a placement to come. */
bool esp_server_is_warming(const struct esp_server *sv, const struct esp_worker *w, uint64_t epoch);
void esp_server_on_warm_loading(struct esp_server *sv, struct esp_worker *w,
                                const struct esp_msg_loading *loading);
void esp_server_on_warmed(struct esp_server *sv, struct esp_worker *w, const struct esp_msg_warmed *warmed);
void esp_server_on_warm_error(struct esp_server *sv, struct esp_worker *w, const struct esp_msg_error *error);

/** All are ready under the new placement. */
void esp_server_move_placed(struct esp_server *sv);
void esp_server_on_moved(struct esp_server *sv, struct esp_worker *w, const struct esp_msg_moved *moved);

/** A picture's features have come along; false: it is another one's Stored. */
bool esp_server_move_stored(struct esp_server *sv, const struct esp_worker *w, uint64_t image);

/** Goes on with what is under way, and begins what is due. */
void esp_server_move_watch(struct esp_server *sv, double now);

/* ---- server_weights.c ---- */

/** A worker without a checkpoint has been welcomed: it gets the manifest, now or as soon as there is one. */
void esp_server_weights_join(struct esp_server *sv, struct esp_worker *w);

/** It is gone. */
void esp_server_weights_leave(struct esp_server *sv, const struct esp_worker *w);

void esp_server_from_fetch(struct esp_server *sv, struct esp_worker *w, const struct esp_msg_fetch *fetch);

/** Sends the manifests and chunks that are ready; true: some wait for room in a queue. */
bool esp_server_weights(struct esp_server *sv);

/* ---- server_work.c ---- */

/** Tells the workers what to forget. */
void esp_server_release(struct esp_server *sv, const uint64_t *seqs, uint32_t n_seqs, const uint64_t *images,
                        uint32_t n_images);

/** Stored, Result, Trace, or an Error that names a step or a picture, of the present epoch. */
void esp_server_from_stage(struct esp_server *sv, struct esp_worker *worker, struct esp_msg *msg);

/** Sends whatever the scheduler has: pictures, steps, releases. */
void esp_server_dispatch(struct esp_server *sv);

/* ---- server_status.c ---- */

/** What a picture's or a step's way told of the stages. */
void esp_server_count_stored(struct esp_server *sv, const struct esp_msg_stored *stored);
void esp_server_count_result(struct esp_server *sv, const struct esp_msg_step *step,
                             const struct esp_msg_result *result);

/** Our clock as a Heartbeat carries it. */
uint64_t esp_server_stamp(void);

/** Keeps a worker's heartbeat, and how long the one that it echoes was on its way. */
void esp_server_take_beat(struct esp_server *sv, struct esp_worker *w, const struct esp_msg_heartbeat *beat);

void esp_server_tell_status(struct esp_server *sv, const struct esp_peer *to, uint64_t id);

/* ---- server_verify.c ---- */

/** A client's VerifyQuery: begun now or when the cluster is ready, or refused. */
void esp_server_verify(struct esp_server *sv, const struct esp_peer *from, uint64_t query);

/** A client's Cancel; false if it was of no verification. */
bool esp_server_cancel_verify(struct esp_server *sv, const struct esp_peer *from, uint64_t query);
void esp_server_verify_client_gone(struct esp_server *sv, const struct esp_peer *peer);

/** What a worker says: how a layer did, of the present epoch; or why it cannot. */
void esp_server_verified(struct esp_server *sv, struct esp_worker *w, const struct esp_msg_verified *m);
void esp_server_verify_failed(struct esp_server *sv, struct esp_worker *w, uint64_t id, const char *why);

/** A worker that is about to be forgotten. */
void esp_server_verify_lost(struct esp_server *sv, struct esp_worker *w, const char *why);

/** Begins what waited, ends what a new placement has overtaken. */
void esp_server_watch_verify(struct esp_server *sv, double now);

/* ---- server_clients.c ---- */

void esp_server_from_client(struct esp_server *sv, const struct esp_peer *from, struct esp_msg *msg);

/** A peer that sent nonsense: whatever it asked for ends. */
void esp_server_drop_client(struct esp_server *sv, const struct esp_peer *peer);

/** Finished preparations. */
void esp_server_prepared(struct esp_server *sv);

/** Every session that has never been admitted ends with this cause. */
void esp_server_fail_queue(struct esp_server *sv, const struct esp_err *why);

/** Sends something to every client with a session, to find out who is gone. */
void esp_server_probe_clients(struct esp_server *sv, double now);

/** Sends sessions' clients what is new for them. */
void esp_server_deliver(struct esp_server *sv, double now);

/** Something is to be said to this session's client at the next esp_server_deliver, whether it is new or not. */
void esp_server_tell_soon(struct esp_session *s, double now);

/** A session that was left ends and nobody is told: its client, if it comes, finds it unknown and asks anew. */
void esp_server_give_up(struct esp_server *sv, struct esp_session *s, const char *why);

/** A value asked for by a session's trace. */
void esp_server_relay_trace(struct esp_server *sv, struct esp_session *s, const struct esp_msg_trace *trace,
                            const struct esp_blob *blob);

/* ---- server_resume.c ---- */

/** The living session of a ticket, or NULL. */
struct esp_session *esp_server_ticket(const struct esp_server *sv, const uint8_t ticket[ESP_TICKET_BYTES]);

/** A client asks for the rest of its answer. */
void esp_server_on_resume(struct esp_server *sv, const struct esp_peer *from,
                          const struct esp_msg_resume *resume);

/* ---- server_journal.c ---- */

/** Opens the journal that the options call for and takes over what is in it; after the link is bound. */
esp_status esp_server_open_journal(struct esp_server *sv, struct esp_err *err);

/** Journals what is new, forgets what is over, goes on reading back. Before esp_server_dispatch, which frees sessions. */
void esp_server_journal(struct esp_server *sv, double now);

/** A session has been prepared: journals it, if it can be resumed at all. @param request  taken */
void esp_server_journal_add(struct esp_server *sv, struct esp_session *s, struct esp_msg *request);

/**
 * A session that was left has been prepared again, and its decoder made: it gets its records. The session is then done,
 * or about to be rebuilt, or as new. False, with the reason logged: the decoder is spoilt, and it must begin anew.
 */
bool esp_server_restore(struct esp_server *sv, struct esp_session *s, double now);

/** The clients that are here have been told that all ends. */
void esp_server_journal_farewell(struct esp_server *sv);

#endif
