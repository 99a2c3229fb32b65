/**
 * The sessions and who goes next: admission, encoder work, steps.
 *
 * Admission is first come, first served: the head of the queue waits until its worst case fits into what is
 * left of the KV cache, the sequences and the picture places, so that nothing admitted can ever run out.
 * Several sessions live at once, each with at most one step out; their steps follow each other through the
 * stages. At most max_steps are out, one more than there are stages: enough to keep all busy, few enough that
 * no queue grows at a worker. Turns go to whoever has waited longest, so prefills do not starve decoding. A
 * step is built from a list of sessions; today the list has one.
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
    uint32_t max_steps;  /* out at once */
    uint32_t max_encodes;
};

/** Seconds that work may be on its way with nobody at it: slow networks take long for what is large. */
struct esp_sched_patience {
    double least;
    double a_row, a_picture; /* more, for each row of a step, and for a picture */
};

struct esp_sched;

esp_status esp_sched_create(struct esp_sched **out, struct esp_err *err);
void esp_sched_destroy(struct esp_sched **sched);

/** A placement is ready: from here its steps are numbered from 1. */
void esp_sched_open(struct esp_sched *sched, const struct esp_sched_room *room);

/**
 * The placement is gone, and all that its workers held with it. Every session that was admitted ends with
 * *why; those that still queue stay.
 */
void esp_sched_close(struct esp_sched *sched, const struct esp_err *why, double now);
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
/** How many QUEUED sessions stand before this one. */
uint32_t esp_sched_ahead(const struct esp_sched *sched, const struct esp_session *session);

/** Whether a prepared session could ever be admitted. ESP_E_LIMIT names what is too small and the option that
 * raises it. */
esp_status esp_sched_check(const struct esp_sched *sched, const struct esp_session *session,
                           struct esp_err *err);

/** The next session to come in, already ENCODING or RUNNING; NULL if none may. */
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

/** A step is home, or lost: its sessions may have another, it is destroyed. Clears *flight. */
void esp_sched_land(struct esp_sched *sched, struct esp_flight **flight);

/**
 * Finds work that was lost on its way, which nobody else can tell: a connection between two stages broke with
 * a step in it, and both are alive and well. A step or picture is in doubt while no stage has anything to do, and
 * once a later one has come home (stages keep the order).
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
