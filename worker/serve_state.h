/**
 * What the parts of a worker's conversation share: serve.c (loop and clock), serve_in.c (what others say),
 * serve_out.c (what we say), serve_move.c (layers that go and come with their KV), serve_verify.c (the check of our
 * device), serve_weights.c (weights that come from the coordinator). For these alone; everything here belongs to the net
 * thread.
 */
#ifndef ESP_WORKER_SERVE_STATE_H
#define ESP_WORKER_SERVE_STATE_H

#include "proto/clock.h"
#include "proto/link.h"
#include "worker/depot.h"
#include "worker/outbox.h"
#include "worker/runner.h"
#include "worker/serve.h"

#define ESP_NS_A_MS UINT64_C(1000000)

enum esp_source { ESP_FROM_CONTROL, ESP_FROM_DATA };

/** What comes from other stages in a placement, each from one of them; features also from the one that had them. */
enum esp_path { ESP_PATH_ROWS, ESP_PATH_STEPS, ESP_PATH_FEATURES, ESP_PATH_MOVED_FEATURES, ESP_N_PATH };

struct esp_move; /* serve_move.c */

enum esp_state {
    ESP_IDLE = 1,    /* nothing placed, or the placement failed */
    ESP_LOADING = 2, /* the runner is at it */
    ESP_READY = 4,
    ESP_SPARE = 8,
    ESP_ANY_STATE = 15
};

struct esp_check;

struct esp_serve {
    const struct esp_worker_options *opt;
    const struct esp_log *log;
    struct esp_net *net;
    struct esp_outbox control, next_enc, features, next_dec;
    struct esp_link *data;
    char endpoint[ESP_MAX_ENDPOINT + 1]; /* the data link's, as others see it */
    struct esp_runner *runner;

    bool asked;       /* a Hello is out and has no answer */
    bool joined;      /* welcomed, and the coordinator not silent since */
    bool known;       /* was joined once */
    bool fresh;       /* no Place since the Welcome: any epoch goes */
    bool key_trouble; /* and logged */
    uint64_t heartbeat_ns, timeout_ns;
    uint64_t heard_ns, hello_ns, beat_ns;
    uint64_t hello_wait_ns; /* from one Hello to the next, while there is no Welcome */

    enum esp_state state;
    uint64_t epoch, generation;
    uint64_t last_step;
    struct esp_msg_place place;         /* the present one; its strings are not kept (NULL) */
    bool store_here;                    /* features go to this very worker */
    struct esp_move *moves;             /* asked for in this placement, in order, those that are done too */
    uint32_t n_moves;                   /* of them */
    const struct esp_peer *peer;        /* whose message is being handled; NULL: the coordinator's */
    struct esp_peer sender[ESP_N_PATH]; /* whose each path of the placement is; n 0: nobody's yet */
    struct esp_check *check;            /* under way, or being stopped; NULL: none */

    struct esp_depot *depot;  /* NULL: there is a checkpoint here */
    bool supplied;            /* a Manifest has come since the Welcome */
    struct esp_work *held[2]; /* a Place with layers, and a warm one, that came before it */

    bool end;
    esp_status end_status;
    struct esp_err end_err;

    uint64_t noise_ns; /* start of the second that n_noise counts in */
    uint32_t n_noise;
};

/** The conversation ends with this status after the present round; the first call decides. */
void esp_serve_end(struct esp_serve *s, esp_status status, const char *text);

/* ---- serve_out.c ---- */

/** Whether a link with keys was refused: ends the conversation, or fails the placement. */
void esp_serve_check_keys(struct esp_serve *s);

/** Dials the coordinator, anew if need be, and says Hello. */
void esp_serve_hello(struct esp_serve *s);
/** Says that we are here, how we are, and when the coordinator sent the heartbeat that this one answers (0: none). */
void esp_serve_beat(struct esp_serve *s, uint64_t echo);

/** The coordinator is gone or knows us no more. The stage stays as it is; the clock says Hello again. */
void esp_serve_lose(struct esp_serve *s, const char *why);

/** Sends or keeps. What cannot even be kept fails its step or image, and that is told. */
void esp_serve_post(struct esp_serve *s, struct esp_outbox *box, const struct esp_msg *msg,
                    struct esp_shared *blob, size_t n_bytes, struct esp_work *owner);

/** Takes malloc'ed floats out of *data and sends them with the message. */
void esp_serve_post_tensor(struct esp_serve *s, struct esp_outbox *box, const struct esp_msg *msg,
                           float **data, size_t n_floats, struct esp_work *owner);

/** Error to the coordinator, of an epoch; step and image 0: the placement failed. */
void esp_serve_tell_error_of(struct esp_serve *s, uint64_t epoch, esp_status code, const char *text,
                             uint64_t step, uint64_t image);

/** The same of the present epoch. */
void esp_serve_tell_error(struct esp_serve *s, esp_status code, const char *text, uint64_t step,
                          uint64_t image);

/** Sends a work's own message to the coordinator, and destroys the work once that has left. */
void esp_serve_tell(struct esp_serve *s, struct esp_work *w);

/** Sends on what the runner hands back, and destroys it once that has left. */
void esp_serve_finish(struct esp_serve *s, struct esp_work *work);

/* ---- serve_verify.c ---- */

/** A Verify. Always ESP_OK: what is wrong is told there. */
esp_status esp_serve_verify(struct esp_serve *s, enum esp_source from, struct esp_msg *msg,
                            struct esp_err *err);

/** A work of kind VERIFY has come back, of whatever placement. The caller destroys it. */
void esp_serve_verify_ran(struct esp_serve *s, struct esp_work *w);

/** Ends a check without waiting for it: what it finds has no one to be told to. */
void esp_serve_verify_stop(struct esp_serve *s);

/** Ends it and waits: at the end of the conversation, while the runner still exists. */
void esp_serve_verify_finish(struct esp_serve *s);

/* ---- serve_weights.c: all of it does nothing where there is a checkpoint ---- */

esp_status esp_serve_weights_open(struct esp_serve *s, struct esp_err *err);
void esp_serve_weights_close(struct esp_serve *s);

/** Readable when there may be something to ask for; never, as far as that goes, while nothing can be asked. */
int esp_serve_weights_fd(const struct esp_serve *s);

/** How much longer than usual the coordinator may seem silent: a chunk on a slow network counts when all of it is here. */
uint64_t esp_serve_weights_patience_ns(const struct esp_serve *s);

/** Sends what fetches the window allows. */
void esp_serve_weights_ask(struct esp_serve *s);

/** The conversation is over. */
void esp_serve_weights_lost(struct esp_serve *s);

/** Has the runner do a Place, at once or when the manifest is here. */
void esp_serve_weights_place(struct esp_serve *s, struct esp_work *work);

/** A Loading counts what has come, as long as not all has. */
void esp_serve_weights_progress(const struct esp_serve *s, struct esp_msg_loading *loading);

esp_status esp_serve_on_manifest(struct esp_serve *s, enum esp_source from, struct esp_msg *msg,
                                 struct esp_err *err);
esp_status esp_serve_on_chunk(struct esp_serve *s, enum esp_source from, struct esp_msg *msg,
                              struct esp_err *err);

/** The runner has changed over. */
void esp_serve_weights_changed(struct esp_serve *s, struct esp_work *work);

/* ---- serve_in.c ---- */

/** Dials another stage's data socket, unless the endpoint is "". kind: what for; hwm as in struct esp_link_options. */
esp_status esp_serve_dial(struct esp_serve *s, struct esp_outbox *box, const char *kind, const char *endpoint,
                          const char *key_text, int hwm, struct esp_err *err);

/** True if a line about bad data may still be logged in this second: who can connect could fill the disk otherwise. */
bool esp_serve_may_log(struct esp_serve *s);

/** A Step or Encode of the placement has been run: if it came from another stage, its path is that stage's from now on. */
void esp_serve_claim(struct esp_serve *s, const struct esp_work *w);

/** Whether work from there may be queued. */
bool esp_serve_has_room(struct esp_serve *s, enum esp_source from);

/** Takes one message; false: there was none. */
bool esp_serve_read_control(struct esp_serve *s);
bool esp_serve_read_data(struct esp_serve *s);

/* ---- serve_move.c ---- */

esp_status esp_serve_on_move(struct esp_serve *s, enum esp_source from, struct esp_msg *msg,
                             struct esp_err *err);
esp_status esp_serve_on_kv_blocks(struct esp_serve *s, enum esp_source from, struct esp_msg *msg,
                                  struct esp_err *err);

/** What the runner hands back of them: a piece to send on, or what became of one that came. */
void esp_serve_exported(struct esp_serve *s, struct esp_work *work);
void esp_serve_imported(struct esp_serve *s, struct esp_work *work);

/** Sends what waits, and asks the runner for the next piece. True: call again soon. */
bool esp_serve_pump_moves(struct esp_serve *s);

/** Links that a key was refused on end in an Error; no keys: nothing. */
void esp_serve_check_moves(struct esp_serve *s);

/** Drops all moves and hangs up. */
void esp_serve_end_moves(struct esp_serve *s);

#endif
