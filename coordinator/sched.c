#include "coordinator/sched.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/sched_state.h"

esp_status esp_sched_create(struct esp_sched **out, struct esp_err *err)
{
    struct esp_sched *s = calloc(1, sizeof *s);
    esp_status st;

    *out = NULL;
    if (!s)
        return esp_fail(err, ESP_E_NOMEM, "the table of sessions");
    s->last = &s->first;
    st = esp_features_create(&s->features, err);
    if (st)
        esp_sched_destroy(&s);
    *out = s;
    return st;
}

static void drop_features(struct esp_sched *sched, struct esp_session *s)
{
    for (uint32_t i = 0; i < s->n_images; i++)
        esp_features_drop(sched->features, &s->features[i]);
}

void esp_sched_destroy(struct esp_sched **sched)
{
    struct esp_sched *s = *sched;

    if (!s)
        return;
    esp_sched_drop_flights(s);
    while (s->first) {
        struct esp_session *gone = s->first;

        s->first = gone->next;
        if (s->features)
            drop_features(s, gone);
        esp_session_destroy(&gone);
    }
    esp_features_destroy(&s->features);
    esp_shares_finish(&s->shares);
    free(s->forget.id);
    free(s);
    *sched = NULL;
}

/* ---- placements ---- */

static void begin_epoch(struct esp_sched *sched, const struct esp_sched_room *room)
{
    sched->open = true;
    sched->paused = false;
    sched->room = *room;
    if (sched->room.n_stages == 0)
        sched->room.n_stages = 1;
    sched->last_step = sched->home_step = 0;
    sched->home_sent = 0;
    esp_features_open(sched->features, room->max_images);
}

void esp_sched_open(struct esp_sched *sched, const struct esp_sched_room *room)
{
    begin_epoch(sched, room);
}

void esp_sched_suspend(struct esp_sched *sched, double now)
{
    esp_sched_drop_flights(sched);
    for (struct esp_session *s = sched->first; s; s = s->next) {
        if (!s->admitted)
            continue;
        drop_features(sched, s);
        s->admitted = false;
        if (s->state == ESP_SESSION_ENDED)
            continue;
        if (s->state == ESP_SESSION_RUNNING)
            esp_sched_turn_leave(sched, s);
        s->state = ESP_SESSION_QUEUED;
        s->rebuild = true;
        s->n_rebuilds++;
        sched->counts.n_rebuilds++;
        if (s->lost_at == 0)
            s->lost_at = now;
    }
    esp_features_clear(sched->features);
    sched->forget.n = 0;
    sched->blocks_used = 0;
    sched->seqs_used = 0;
    sched->open = sched->paused = false;
}

void esp_sched_pause(struct esp_sched *sched, bool paused)
{
    sched->paused = paused;
}

uint32_t esp_sched_n_flights(const struct esp_sched *sched)
{
    return sched->n_flights;
}

uint32_t esp_sched_n_encoding(const struct esp_sched *sched)
{
    return esp_features_n_sent(sched->features);
}

void esp_sched_carry(struct esp_sched *sched, const struct esp_sched_room *room)
{
    assert(sched->n_flights == 0 && esp_features_n_sent(sched->features) == 0);
    begin_epoch(sched, room);
    sched->blocks_used = 0;
    for (struct esp_session *s = sched->first; s; s = s->next) {
        if (!s->admitted)
            continue;
        s->n_blocks = esp_decode_max_blocks(s->decode, room->block_tokens);
        sched->blocks_used += s->n_blocks;
    }
}

/* ---- the sessions ---- */

bool esp_sched_is_open(const struct esp_sched *sched)
{
    return sched->open;
}

void esp_sched_add(struct esp_sched *sched, struct esp_session **session)
{
    *sched->last = *session;
    sched->last = &(*session)->next;
    *session = NULL;
}

uint64_t *esp_sched_seqs(struct esp_sched *sched)
{
    return &sched->last_seq;
}

struct esp_session *esp_sched_first(const struct esp_sched *sched)
{
    return sched->first;
}

struct esp_session *esp_sched_find(const struct esp_sched *sched, const struct esp_peer *client,
                                   uint64_t request)
{
    for (struct esp_session *s = sched->first; s; s = s->next)
        if (s->request == request && !s->final_sent && !s->client_gone && esp_peer_equal(&s->client, client))
            return s;
    return NULL;
}

struct esp_session *esp_sched_by_id(const struct esp_sched *sched, uint64_t id)
{
    for (struct esp_session *s = sched->first; s; s = s->next)
        if (s->id == id)
            return s;
    return NULL;
}

uint32_t esp_sched_images(const struct esp_sched *sched, uint64_t *ids, uint32_t n_max)
{
    uint32_t n = 0;

    for (struct esp_feature *f = NULL; n < n_max && (f = esp_features_next(sched->features, f));)
        if (f->state == ESP_FEATURE_STORED)
            ids[n++] = f->image;
    return n;
}

struct esp_feature *esp_sched_feature(const struct esp_sched *sched, uint64_t image)
{
    return esp_features_find(sched->features, image);
}

uint32_t esp_sched_n_live(const struct esp_sched *sched)
{
    uint32_t n = 0;

    for (const struct esp_session *s = sched->first; s; s = s->next)
        n += s->state != ESP_SESSION_ENDED;
    return n;
}

uint32_t esp_sched_n_queued(const struct esp_sched *sched)
{
    uint32_t n = 0;

    for (const struct esp_session *s = sched->first; s; s = s->next)
        n += s->state == ESP_SESSION_PREPARING || s->state == ESP_SESSION_QUEUED;
    return n;
}

void esp_sched_counts(const struct esp_sched *sched, struct esp_sched_counts *out)
{
    *out = sched->counts;
    out->blocks_used = sched->blocks_used;
}

void esp_sched_end(struct esp_sched *sched, struct esp_session *session, const struct esp_err *how,
                   double now)
{
    if (session->state == ESP_SESSION_ENDED)
        return;
    if (session->state == ESP_SESSION_RUNNING)
        esp_sched_turn_leave(sched, session);
    if (session->share)
        esp_shares_leave(&sched->shares, &session->share, 0, false);
    if (sched->chosen == session)
        sched->chosen = NULL;
    if (session->job) { /* nobody will rebuild it */
        free(session->job->pixels);
        session->job->pixels = NULL;
    }
    sched->counts.n_ended++;
    sched->counts.n_failed += how != NULL;
    session->state = ESP_SESSION_ENDED;
    session->ended = now;
    session->st = how ? how->code : ESP_OK;
    if (how)
        session->err = *how;
}

bool esp_sched_forget(struct esp_sched *sched, const struct esp_session *s)
{
    struct esp_sched_ids *to = &sched->forget;
    uint32_t n;
    const uint64_t *held = esp_decode_held(s->decode, &n);

    if (to->n_cap - to->n < n) {
        const uint32_t n_cap = 2 * (to->n_cap + n);
        uint64_t *more = realloc(to->id, n_cap * sizeof *more);

        if (!more)
            return false;
        to->id = more;
        to->n_cap = n_cap;
    }
    if (n)
        memcpy(to->id + to->n, held, n * sizeof *held);
    to->n += n;
    return true;
}

/* Its room is free, and its sequences are to be forgotten. Without memory for that, the next call tries again. */
static void give_back(struct esp_sched *sched, struct esp_session *s)
{
    if (!esp_sched_forget(sched, s))
        return;
    sched->blocks_used -= s->n_blocks;
    sched->seqs_used -= s->n_seqs;
    drop_features(sched, s);
    s->admitted = false;
}

bool esp_sched_reap(struct esp_sched *sched, uint64_t *seqs, uint32_t *n_seqs, uint64_t *images,
                    uint32_t *n_images, uint32_t n_max)
{
    struct esp_session **p = &sched->first;
    uint64_t image;

    *n_seqs = *n_images = 0;
    while (*p) {
        struct esp_session *s = *p;

        if (s->state == ESP_SESSION_ENDED && !s->step_out && s->admitted)
            give_back(sched, s);
        if (s->state == ESP_SESSION_ENDED && !s->step_out && !s->admitted && !s->with_thread &&
            (s->final_sent || s->client_gone)) {
            *p = s->next;
            esp_session_destroy(&s);
        } else {
            p = &s->next;
        }
    }
    sched->last = p;
    if (!sched->open)
        return false;
    while (*n_seqs < n_max && sched->forget.n > 0)
        seqs[(*n_seqs)++] = sched->forget.id[--sched->forget.n];
    while (*n_images < n_max && (image = esp_features_evict(sched->features)) != 0)
        images[(*n_images)++] = image;
    return *n_seqs > 0 || *n_images > 0;
}
