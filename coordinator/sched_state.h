/* What sched.c, sched_admit.c and sched_steps.c share; nobody else includes it. */
#ifndef ESP_COORDINATOR_SCHED_STATE_H
#define ESP_COORDINATOR_SCHED_STATE_H

#include "coordinator/sched.h"
#include "coordinator/shares.h"

struct esp_sched_ids { /* a growing list */
    uint64_t *id;
    uint32_t n, n_cap;
};

struct esp_sched {
    bool open, paused;
    struct esp_sched_room room;
    struct esp_session *first, **last;
    struct esp_session *turn_first, *turn_last; /* the RUNNING, who has waited longest first */
    struct esp_session *chosen;                 /* whose turn to be admitted it is: nobody overtakes it */
    struct esp_features *features;
    struct esp_shares shares;
    struct esp_flight *flights;
    uint32_t n_flights;
    uint64_t blocks_used;
    uint32_t seqs_used;
    uint64_t last_step, last_seq, last_admission;
    uint64_t turn, prefill_turn; /* the last one given, and the last that was a prefill's */
    uint64_t home_step;          /* the last step whose result came home */
    double home_sent;            /* when the last picture to arrive was sent */
    struct esp_sched_ids forget; /* sequences to be released */
    struct esp_sched_counts counts;
    struct esp_flight_load load[ESP_MAX_SEQS]; /* scratch: of the step being made */
};

/* ---- sched.c ---- */

/** Puts what the workers may hold of the session's sequences among those to be released. False without memory. */
bool esp_sched_forget(struct esp_sched *sched, const struct esp_session *s);

/* ---- sched_steps.c ---- */

/** A session begins RUNNING, behind those that do; or stops. */
void esp_sched_turn_enter(struct esp_sched *sched, struct esp_session *s);
void esp_sched_turn_leave(struct esp_sched *sched, struct esp_session *s);

/** Its sequences are to be made anew by the workers: esp_decode_rebuild, in parts that leave others their turns. */
esp_status esp_sched_bring_back(struct esp_sched *sched, struct esp_session *s, struct esp_err *err);

/** Every step that is out is void. */
void esp_sched_drop_flights(struct esp_sched *sched);

#endif
