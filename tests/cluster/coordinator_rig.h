/**
 * A real espalier-coordinator as a child process, and scripted workers and clients in the test, over real
 * sockets.
 *
 * The workers compute nothing: together they are one fake language model, whose logits are a hash of the
 * tokens of a sequence, and they keep books of sequences and pictures as stages do, so that a wrong position,
 * a fork of the dead or a leak fails the test. Everything is driven by rig_pump from the test's one thread;
 * waits have a deadline of ESP_PATIENCE_MS and look at conditions, never at time alone.
 */
#ifndef ESP_TEST_COORDINATOR_RIG_H
#define ESP_TEST_COORDINATOR_RIG_H

#include <sys/types.h>

#include "model/checkpoint.h"
#include "proto/link.h"
#include "tests/support/patience.h"

#define RIG_MODEL      "tests/golden/data/tiny"
#define RIG_VOCAB      5568
#define RIG_EOS        1
#define RIG_IMAGE_ROWS 16
#define RIG_WORKERS    4
#define RIG_CLIENTS    4
#define RIG_HELD       16
#define RIG_SEQS       256
#define RIG_SEQ_TOKENS 2048
#define RIG_INBOX      4096
#define RIG_BLOCK      16 /* tokens of a KV block */

struct rig_worker {
    struct esp_link *link;
    char name[16], endpoint[128];
    bool welcome, bye;
    struct esp_msg_place place; /* the last one; epoch 0: none yet */
    char next_enc[128], features_to[128], next_dec[128];
    uint32_t n_places, n_warm,
        n_moves;      /* Moves done since the last Place; it was told to expect place.n_moves */
    esp_status error; /* the first Error it was sent */
    char error_text[ESP_ERR_TEXT_MAX];
    bool streams;                   /* says that it has no checkpoint */
    uint32_t n_manifests, n_chunks; /* that it was sent */
    /* What it does not do: the test does it, or nobody. */
    uint64_t had_epoch;           /* what its Hello says of an earlier coordinator */
    bool mute;                    /* sends no heartbeat */
    bool hold_ready;              /* leaves a Place unanswered */
    bool hold_warm;               /* leaves a Place(warm) unanswered */
    bool hold_moves;              /* sends nothing of what it is told to move */
    esp_status refuse_warm;       /* answers a Place(warm) so */
    bool hold_work;               /* keeps Encode and Step in `held` */
    bool till_place;              /* but only until it is placed anew: then it forgets them */
    uint32_t n_does;              /* the how manieth piece of work from now it begins that with; 0: none */
    struct esp_msg_verify verify; /* the last one; the test answers it */
    uint32_t kv_blocks;
    struct esp_msg held[RIG_HELD];
    uint32_t n_held;
};

struct rig_client {
    struct esp_link *link;
    bool asleep;                      /* takes nothing from its socket */
    struct esp_msg *inbox[RIG_INBOX]; /* all that came, in order */
    uint32_t n_inbox, n_read;
};

struct rig_seq {
    uint64_t id;
    uint32_t n_tok, n_prefix;
    uint32_t tok[RIG_SEQ_TOKENS];
};

struct rig {
    char dir[64], at[ESP_MAX_ENDPOINT + 1];
    pid_t pid; /* of the coordinator; 0: it has ended */
    int exit;
    struct esp_net *net;
    uint8_t fingerprint[ESP_FINGERPRINT_BYTES];
    struct rig_worker w[RIG_WORKERS];
    struct rig_client c[RIG_CLIENTS];
    struct rig_seq *seq[RIG_SEQS];
    uint64_t image[256];
    uint32_t n_images, n_encodes;
    uint64_t last_step;
    uint32_t max_rows, max_seqs; /* of any step */
    long beat_at;
};

int rig_setup(void **state);
int rig_teardown(void **state);

/** Starts the coordinator with more arguments, up to a NULL. */
void rig_start(struct rig *rig, const char *arg, ...);

/** Sends it SIGTERM and waits; its exit status. */
int rig_stop(struct rig *rig);

/** Waits for its end, killing it past the deadline; rig->exit is its status. */
void rig_reap(struct rig *rig);

/** Kills it at once; it may be started again. Workers must say hello again. */
void rig_kill(struct rig *rig);

/** True when its log holds the text. */
bool rig_logged(const struct rig *rig, const char *text);

/** Dials as worker i, "wI", and says hello. */
void rig_hello(struct rig *rig, int i);

/** Says hello over the connection that there is. */
void rig_hello_again(struct rig *rig, int i);
/** Hello, and waits until the whole cluster of n workers is placed. */
void rig_join(struct rig *rig, int n);
/** Leaves without a word. */
void rig_vanish(struct rig *rig, int i);

/** Forgets the work that worker i has held; hold_work is off from here. */
void rig_drop_held(struct rig *rig, int i);

/** Serves every socket once, waiting at most ms. */
void rig_pump(struct rig *rig, int ms);

/** Pumps until cond(rig, arg) holds. */
void rig_until(struct rig *rig, bool (*cond)(struct rig *rig, void *arg), void *arg, const char *what);

/** Worker i sends a message. */
void rig_send(struct rig *rig, int i, struct esp_msg *msg);

/** Does the work that worker i has held: all of it, in order; hold_work is off from here. */
void rig_resume(struct rig *rig, int i);

/** What the model says after these tokens: f32[RIG_VOCAB]. */
void rig_logits(float *out, const uint32_t *tok, uint32_t n_tok);

/** Takes the Done of a request that was greedy and without a start, and checks it against the model, text and number of
 * tokens. Its Accepted is in the client's inbox. */
const struct esp_msg *rig_take_greedy(struct rig *rig, int i, uint32_t max_tokens);

/** The Result for a step, as the model has it; allocated, free with rig_result_finish. */
void rig_result(struct rig *rig, struct esp_msg *out, const struct esp_msg *step);
void rig_result_finish(struct esp_msg *out);

/** Forgets a sequence, if there is one of that number. */
void rig_free_seq(struct rig *rig, uint64_t id);

/** Forgets all sequences and pictures, as workers do that lose their coordinator. */
void rig_drop_seqs(struct rig *rig);

/** Client i dials, if it has not yet. */
void rig_dial(struct rig *rig, int i);
void rig_hang_up(struct rig *rig, int i);

/** Forgets all that has come for client i. */
void rig_forget(struct rig *rig, int i);

/** Sends a Request with these pictures of the golden data ("scene_a.png"), up to a NULL. */
void rig_request(struct rig *rig, int i, struct esp_msg_request *request, ...);
void rig_cancel(struct rig *rig, int i, uint64_t session);

/** Client i, which dials if it has not yet, asks for the rest of the request with this ticket. */
void rig_come_back(struct rig *rig, int i, const uint8_t *ticket, uint64_t id, uint32_t have);

/**
 * The next message of this kind to client i; others of `session`... are skipped if they are Waiting,
 * Accepted, Token or Trace, otherwise they fail the test. Kept by the rig.
 */
const struct esp_msg *rig_take(struct rig *rig, int i, enum esp_msg_kind kind);

/** Takes an Error for a session and checks code and a part of the text. */
void rig_take_error(struct rig *rig, int i, uint64_t session, esp_status code, const char *fragment);

/** How many messages of a kind client i has got. */
uint32_t rig_count(const struct rig *rig, int i, enum esp_msg_kind kind);

/** Pumps until the workers hold no sequence. */
void rig_until_free(struct rig *rig);
uint32_t rig_n_seqs(const struct rig *rig);

#endif
