/* The steps: which sessions go together, and what becomes of them. */
#include <string.h>

#include "coordinator/sched_state.h"

/*
 * Of a step with several first parts; one alone may have more. Stages keep the order: behind a step that takes each of
 * them long all others queue, and the pipeline before it is empty. Up to some such number a row costs a device little
 * beside reading the weights.
 */
#define PREFILL_ROWS  128
#define PREFILL_EVERY 2           /* steps of decoding for each prefill, if both are ready */
#define FULL_BYTES    (64u << 20) /* of the logits that a step of several sessions asks for */
#define REBUILD_ROWS  256         /* of a part that brings a session back: others decode meanwhile */

/* ---- turns ---- */

void esp_sched_turn_enter(struct esp_sched *sched, struct esp_session *s)
{
    s->turn_next = NULL;
    s->turn_prev = sched->turn_last;
    if (sched->turn_last)
        sched->turn_last->turn_next = s;
    else
        sched->turn_first = s;
    sched->turn_last = s;
}

void esp_sched_turn_leave(struct esp_sched *sched, struct esp_session *s)
{
    if (s->turn_prev)
        s->turn_prev->turn_next = s->turn_next;
    else
        sched->turn_first = s->turn_next;
    if (s->turn_next)
        s->turn_next->turn_prev = s->turn_prev;
    else
        sched->turn_last = s->turn_prev;
    s->turn_prev = s->turn_next = NULL;
}

static void take_turn(struct esp_sched *sched, struct esp_session *s)
{
    s->turn = sched->turn;
    s->step_out = true;
    esp_sched_turn_leave(sched, s);
    esp_sched_turn_enter(sched, s);
}

/* ---- what goes next ---- */

struct ready {                                  /* to be sent */
    const struct esp_session *prefill, *decode; /* who has waited longest for either; NULL: nobody */
    uint64_t rows, all_rows;                    /* of the decoding: ready, and all of them */
};

static struct ready look_around(const struct esp_sched *sched)
{
    struct ready r = {0};

    for (const struct esp_session *s = sched->turn_first; s; s = s->turn_next) {
        const bool start = esp_decode_at_start(s->decode);
        const uint32_t n = start ? 0 : esp_decode_next_rows(s->decode);

        r.all_rows += n;
        if (s->step_out)
            continue;
        r.rows += n;
        if (start && !r.prefill)
            r.prefill = s;
        else if (!start && !r.decode)
            r.decode = s;
    }
    return r;
}

enum kind { NOTHING, PREFILL, DECODE };

/* Steps of decoding sessions that are out and have so many rows or more. */
static uint32_t n_out(const struct esp_sched *sched, uint64_t rows)
{
    uint32_t n = 0;

    for (const struct esp_flight *f = sched->flights; f; f = f->next)
        n += f->step.rows >= rows && !esp_decode_at_start(f->parts[0].session->decode);
    return n;
}

/* See sched.h; *share is how many rows of the decoding make one step of theirs. Where they do not go up evenly some steps
 * have a row more, and not all: 9 rows on 4 stages are 3 + 2 + 2 + 2, while 3 + 3 + 3 would leave a stage without.
 * Of three steps at most one is a prefill while there is decoding to do, and no crowd of them goes beside a full
 * pipeline. */
static enum kind what_next(const struct esp_sched *sched, uint64_t *share)
{
    const struct ready r = look_around(sched);
    const uint32_t n_stages = sched->room.n_stages, n_decoding = n_out(sched, 1);
    const uint64_t even = r.all_rows / n_stages, rest = r.all_rows % n_stages;
    const bool due = sched->turn >= sched->prefill_turn + PREFILL_EVERY;

    *share = even + (rest > 0 && n_out(sched, even + 1) < rest);
    if (r.prefill && (!r.decode || r.decode->turn > sched->prefill_turn || due) &&
        (sched->n_flights <= n_stages || due))
        return PREFILL;
    if (r.decode && (n_decoding < n_stages || (n_decoding == n_stages && r.rows >= *share)))
        return DECODE;
    return NOTHING;
}

/* Must have a step of its own: one that shared a step which failed; and traces go by the step. */
static bool is_alone(const struct esp_session *s)
{
    return s->alone || (s->trace && esp_decode_n_steps(s->decode) == 0);
}

/* Those who have waited longest into sched->load, as many as go together; how many. */
static uint32_t gather(struct esp_sched *sched, enum kind kind, uint64_t share)
{
    const uint64_t want = kind == PREFILL ? PREFILL_ROWS : share;
    const uint64_t max_rows = want < sched->room.max_rows ? want : sched->room.max_rows;
    struct esp_flight_sum sum = {0};
    uint32_t n = 0;

    for (struct esp_session *s = sched->turn_first; s && n < ESP_MAX_SEQS; s = s->turn_next) {
        struct esp_flight_sum with = sum;
        const struct esp_part *part;

        if (s->step_out || esp_decode_at_start(s->decode) != (kind == PREFILL) || (n > 0 && is_alone(s)))
            continue;
        part = esp_decode_next(s->decode);
        esp_flight_add(&with, part);
        if (n > 0 && (with.rows > max_rows || with.full_bytes > FULL_BYTES || esp_flight_limits(&with, NULL)))
            break; /* it is next: who stands behind it does not overtake it */
        sched->load[n++] = (struct esp_flight_load){.session = s, .part = part};
        sum = with;
        if (is_alone(s))
            break;
    }
    return n;
}

/* Makes the step; of several sessions, if there is no memory for that, of the first one alone. */
static esp_status make(struct esp_flight **out, struct esp_sched *sched, uint32_t n, struct esp_err *err)
{
    const struct esp_session *first = sched->load[0].session;
    const bool trace = first->trace && esp_decode_n_steps(first->decode) == 0;
    esp_status st =
        esp_flight_create(out, sched->room.epoch, sched->last_step + 1, sched->load, n, trace, err);

    if (st && n > 1)
        st = esp_flight_create(out, sched->room.epoch, sched->last_step + 1, sched->load, 1, trace, err);
    return st;
}

struct esp_flight *esp_sched_next_step(struct esp_sched *sched, double now)
{
    while (sched->open && !sched->paused && sched->n_flights < sched->room.max_steps) {
        struct esp_sched_counts *counts = &sched->counts;
        struct esp_flight *f;
        struct esp_err err = {0};
        uint64_t share;
        const enum kind kind = what_next(sched, &share);

        if (kind == NOTHING)
            return NULL;
        if (make(&f, sched, gather(sched, kind, share), &err)) {
            esp_sched_end(sched, sched->load[0].session, &err, now);
            continue;
        }
        sched->last_step++;
        sched->turn++;
        if (kind == PREFILL)
            sched->prefill_turn = sched->turn;
        f->sent = now;
        f->next = sched->flights;
        sched->flights = f;
        sched->n_flights++;
        counts->n_steps++;
        counts->n_rows += f->step.rows;
        for (uint32_t i = 0; i < f->n_parts; i++) {
            take_turn(sched, f->parts[i].session);
            counts->n_prefills += kind == PREFILL;
            counts->n_rebuild_rows += kind == DECODE && f->parts[i].n_wants == 0 ? f->parts[i].n_rows : 0;
        }
        if (f->step.trace) {
            f->parts[0].session->trace_step = f->step.id;
            f->parts[0].session->trace_epoch = f->step.epoch;
        }
        return f;
    }
    return NULL;
}

uint64_t esp_sched_last_step(const struct esp_sched *sched)
{
    return sched->last_step;
}

struct esp_flight *esp_sched_flight(const struct esp_sched *sched, uint64_t step)
{
    for (struct esp_flight *f = sched->flights; f; f = f->next)
        if (f->step.id == step)
            return f;
    return NULL;
}

/* ---- what comes back ---- */

/* Its sessions may have another step. */
static void take_out(struct esp_sched *sched, struct esp_flight *flight)
{
    struct esp_flight **p = &sched->flights;

    while (*p != flight)
        p = &(*p)->next;
    *p = flight->next;
    sched->n_flights--;
    for (uint32_t i = 0; i < flight->n_parts; i++)
        flight->parts[i].session->step_out = false;
}

void esp_sched_land(struct esp_sched *sched, struct esp_flight **flight)
{
    struct esp_flight *f = *flight;

    take_out(sched, f);
    if (f->step.id > sched->home_step)
        sched->home_step = f->step.id;
    for (uint32_t i = 0; i < f->n_parts; i++) {
        struct esp_session *s = f->parts[i].session;
        const uint64_t n = esp_decode_n_chosen(s->decode);

        sched->counts.n_tokens += n - s->n_counted;
        s->n_counted = n;
        if (f->parts[i].n_wants > 0) /* what it was alone for has come through */
            s->alone = false;
    }
    esp_flight_destroy(flight);
}

esp_status esp_sched_bring_back(struct esp_sched *sched, struct esp_session *s, struct esp_err *err)
{
    const uint32_t most = sched->room.max_rows;

    if (esp_decode_n_steps(s->decode) == 0)
        s->n_traces = 0; /* it begins anew, and so does its trace */
    return esp_decode_rebuild(s->decode, REBUILD_ROWS < most ? REBUILD_ROWS : most, err);
}

/* New sequences in the place of the old ones, of which nobody can say how many stages have them. */
static esp_status begin_again(struct esp_sched *sched, struct esp_session *s, struct esp_err *err)
{
    esp_status st;

    if (!esp_sched_forget(sched, s))
        return esp_fail(err, ESP_E_NOMEM, "the list of what workers may forget");
    st = esp_sched_bring_back(sched, s, err);
    if (st)
        return st;
    s->alone = true;
    s->n_rebuilds++;
    sched->counts.n_rebuilds++;
    sched->counts.n_retries++;
    return ESP_OK;
}

void esp_sched_fail_step(struct esp_sched *sched, struct esp_flight **flight, const struct esp_err *cause,
                         double now)
{
    struct esp_flight *f = *flight;
    struct esp_err err;

    take_out(sched, f);
    for (uint32_t i = 0; i < f->n_parts; i++) {
        struct esp_session *s = f->parts[i].session;

        if (f->n_parts == 1)
            esp_sched_end(sched, s, cause, now);
        else if (s->state == ESP_SESSION_RUNNING && begin_again(sched, s, &err))
            esp_sched_end(sched, s, &err, now);
    }
    esp_flight_destroy(flight);
}

void esp_sched_drop_flights(struct esp_sched *sched)
{
    while (sched->flights) {
        struct esp_flight *f = sched->flights;

        take_out(sched, f);
        esp_flight_destroy(&f);
    }
}

/* True once it has been in doubt for too long. */
static bool doubt(double *since, bool doubtful, double now, double limit)
{
    if (!doubtful)
        *since = 0;
    else if (*since == 0)
        *since = now;
    return doubtful && now - *since > limit;
}

esp_status esp_sched_watch(struct esp_sched *sched, bool idle, double now,
                           const struct esp_sched_patience *patience, struct esp_err *err)
{
    for (struct esp_flight *f = sched->flights; sched->open && f; f = f->next)
        if (doubt(&f->doubted, idle || f->step.id < sched->home_step, now,
                  patience->least + f->step.rows * patience->a_row))
            return esp_fail(err, ESP_E_TIMEOUT, "step %llu was lost between the workers",
                            (unsigned long long)f->step.id);
    for (struct esp_feature *f = NULL; sched->open && (f = esp_features_next(sched->features, f));)
        if (f->state == ESP_FEATURE_SENT && doubt(&f->doubted, idle || f->sent < sched->home_sent, now,
                                                  patience->least + patience->a_picture))
            return esp_fail(err, ESP_E_TIMEOUT, "a picture was lost between the workers");
    return ESP_OK;
}
