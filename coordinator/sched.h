/**
 * The sessions and who goes next: admission, encoder work, steps.
 *
 * Admission: of the sessions that queue, the next one is the first of the client that was given least so far
 * (shares.h). It waits until its worst case fits into what is left of the KV cache, the sequences and the picture
 * places, so that nothing admitted can ever run out, and nobody overtakes it meanwhile but sessions that were in
 * before and lost their workers.
 *
 * Steps: a session has at most one out. A step holds first parts (prefill) or later ones, never both: they are computed
 * by different kernels, and only within a kind is a row's result the same to the bit whatever rows stand beside it. The
 * sessions that decode are spread evenly over as many steps as there are decoder stages, so that each stage has one to
 * work on; one more is out only if it is as full as the others. Those who have waited longest go together. A prefill
 * goes once everyone who was ready to decode has had a turn since the last one, or two steps of decoding have gone:
 * neither waits for ever for the other, and there are soon enough who decode to make their steps worth while. So that
 * these steps do not keep prefills out, prefills have places of their own beside them (max_steps).
 *
 * Losses: with its workers everything that they held is gone, but nothing of a session is (decode.h). Sessions that
 * were in go to the head of the queue, and come in again under the next placement, with exactly the tokens that they
 * would have had.
 *
 * In files: sched.c the sessions and placements, sched_admit.c the queue and pictures, sched_steps.c the steps.
 *
 * Pure: the server sends what this decides and tells what came back. Owns the sessions.
 */
#ifndef ESP_COORDINATOR_SCHED_H
#define ESP_COORDINATOR_SCHED_H

#include <stdbool.h>
#include <stdint.h>

#include "coordinator/features.h"
#include "coordinator/flight.h"
#include "coordinator/session.h"
#include "proto/status.h"

/** What the workers of an epoch have room for. */
struct esp_sched_room {
    uint64_t epoch;
    uint64_t kv_blocks; /* the least of any stage */
    uint32_t block_tokens;
    uint32_t max_rows;   /* of a step, and tokens of a sequence */
    uint32_t max_seqs;   /* alive at once */
    uint32_t max_images; /* held at once */
    uint32_t n_stages;   /* of the decoder: into so many steps decoding is spread; at least 1 */
    uint32_t max_steps;  /* out at once; what is more than n_stages + 1 is for prefills alone */
    uint32_t max_encodes;
};

/** What has happened since the scheduler was made; all but the last grow only. */
struct esp_sched_counts {
    uint64_t n_admitted;        /* sessions, each once */
    uint64_t n_ended, n_failed; /* sessions; those of them that ended with an error, cancelled ones too */
    uint64_t n_rebuilds;        /* of sessions */
    uint64_t n_prefills;        /* first parts sent, those of rebuilds too */
    uint64_t n_rebuild_rows;    /* sent to bring back what was lost, prefills not counted */
    uint64_t n_steps, n_rows;   /* sent */
    uint64_t n_retries;         /* sessions sent alone because a step that they shared failed */
    uint64_t n_tokens;          /* chosen or scored */
    uint64_t n_encodes;         /* pictures sent to the encoder */
    uint64_t n_cached;          /* pictures that were spared it */
    uint64_t blocks_used;       /* now reserved */
};

/** Seconds that work may be on its way with nobody at it: slow networks take long for what is large. */
struct esp_sched_patience {
    double least;
    double a_row, a_picture; /* more, for each row of a step, and for a picture */
};

struct esp_sched;

esp_status esp_sched_create(struct esp_sched **out, struct esp_err *err);
void esp_sched_destroy(struct esp_sched **sched);

/** A placement is ready, and holds nothing yet: from here its steps are numbered from 1. */
void esp_sched_open(struct esp_sched *sched, const struct esp_sched_room *room);

/**
 * The placement is gone, and all that its workers held with it. Every session that was admitted goes back to the head
 * of the queue, to be rebuilt once esp_sched_open is called again. Steps and pictures that were out are void: what may
 * still come of them is of an old epoch. May be called at any time.
 */
void esp_sched_suspend(struct esp_sched *sched, double now);

/**
 * While paused, nothing is admitted, no step and no picture handed out; what is out comes home as always. When
 * nothing is out any more the workers stand still, and what they hold may be moved.
 */
void esp_sched_pause(struct esp_sched *sched, bool paused);
uint32_t esp_sched_n_flights(const struct esp_sched *sched);
uint32_t esp_sched_n_encoding(const struct esp_sched *sched); /* pictures on their way */

/** Ids of the pictures whose features the workers hold, at most n_max; how many. */
uint32_t esp_sched_images(const struct esp_sched *sched, uint64_t *ids, uint32_t n_max);

/**
 * A new placement has taken over all that the old one held: sequences and pictures, under the same ids. Steps are
 * numbered from 1 again, and the pause is over. Nothing may be out.
 */
void esp_sched_carry(struct esp_sched *sched, const struct esp_sched_room *room);

bool esp_sched_is_open(const struct esp_sched *sched);

/** Takes a session over; clears *session. Ids of sequences come from *esp_sched_seqs. */
void esp_sched_add(struct esp_sched *sched, struct esp_session **session);
uint64_t *esp_sched_seqs(struct esp_sched *sched);

struct esp_session *esp_sched_first(const struct esp_sched *sched); /* then ->next: in the order of arrival */
struct esp_session *esp_sched_find(const struct esp_sched *sched, const struct esp_peer *client,
                                   uint64_t request);
struct esp_session *esp_sched_by_id(const struct esp_sched *sched, uint64_t id);
struct esp_feature *esp_sched_feature(const struct esp_sched *sched, uint64_t image);

/** Live sessions (not ENDED), and how many of them are not admitted yet. */
uint32_t esp_sched_n_live(const struct esp_sched *sched);
uint32_t esp_sched_n_queued(const struct esp_sched *sched);
/** How many QUEUED sessions would come in before this one, as things stand. */
uint32_t esp_sched_ahead(const struct esp_sched *sched, const struct esp_session *session);

void esp_sched_counts(const struct esp_sched *sched, struct esp_sched_counts *out);

/** Whether a prepared session could ever be admitted under this placement. ESP_E_LIMIT names what is too small and the option that
 * raises it. */
esp_status esp_sched_check(const struct esp_sched *sched, const struct esp_session *session,
                           struct esp_err *err);

/**
 * The next session to come in, already ENCODING or RUNNING; NULL if none may. A session that could never come in ends,
 * unless it once could have, under an earlier placement: then it waits for a better one.
 */
struct esp_session *esp_sched_admit(struct esp_sched *sched, double now);

/** A picture to send, marked as sent; false if there is none. Its pixels are session->job's, number *index.
 */
bool esp_sched_next_encode(struct esp_sched *sched, struct esp_session **session, uint32_t *index,
                           double now);

/** A picture has arrived, or (st) could not be encoded: its sessions go on, or end. */
void esp_sched_stored(struct esp_sched *sched, struct esp_feature *feature, const struct esp_err *failed,
                      double now);

/** The next step to send, kept until esp_sched_land; NULL if none may go. A session that cannot be put in a
 * step ends. */
struct esp_flight *esp_sched_next_step(struct esp_sched *sched, double now);
uint64_t esp_sched_last_step(const struct esp_sched *sched);
struct esp_flight *esp_sched_flight(const struct esp_sched *sched, uint64_t step);

/** A step is home, and its sessions have taken their rows: they may have another, it is destroyed. Clears *flight. */
void esp_sched_land(struct esp_sched *sched, struct esp_flight **flight);

/**
 * A step has failed; it is destroyed, *flight cleared. A session that was alone in it ends with the cause. Of several,
 * one may be at fault and the others not, and stages may or may not have done what the step asked of the sequences: so
 * each is rebuilt under new ids and goes on in steps of its own until the rows that failed have come through, or
 * have failed again. Call esp_sched_reap before the next esp_sched_next_step: the old ids make room first. Not for the
 * loss of a device, which is the loss of a worker.
 */
void esp_sched_fail_step(struct esp_sched *sched, struct esp_flight **flight, const struct esp_err *cause,
                         double now);

/**
 * Finds work that was lost on its way, which nobody else can tell: a connection between two stages broke with
 * a step in it, and both are alive and well. A step or picture is in doubt while no stage has anything to do, and
 * once the result of a later one has come home (stages keep the order; an error may overtake).
 *
 * @param idle      all stages have said that nothing waits or runs there
 * @param patience  how long unbroken doubt may last
 * @return ESP_E_TIMEOUT, with what was lost; ESP_OK
 */
esp_status esp_sched_watch(struct esp_sched *sched, bool idle, double now,
                           const struct esp_sched_patience *patience, struct esp_err *err);

/** Ends a session, unless it has ended before. */
void esp_sched_end(struct esp_sched *sched, struct esp_session *session, const struct esp_err *how,
                   double now);

/**
 * Takes back the room of ended sessions with nothing on its way, frees those with nothing left to say, and
 * names what the workers may forget: at most n_max ids in each array. True if there is anything to release;
 * call until false.
 */
bool esp_sched_reap(struct esp_sched *sched, uint64_t *seqs, uint32_t *n_seqs, uint64_t *images,
                    uint32_t *n_images, uint32_t n_max);

#endif
