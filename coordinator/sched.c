#include "coordinator/sched.h"

#include <stdlib.h>
#include <string.h>

struct ids { /* a growing list */
    uint64_t *id;
    uint32_t n, n_cap;
};

struct esp_sched {
    bool open;
    struct esp_sched_room room;
    struct esp_session *first, **last;
    struct esp_features *features;
    struct esp_flight *flights;
    uint32_t n_flights;
    uint64_t blocks_used;
    uint32_t seqs_used;
    uint64_t last_step, last_seq, turn;
    uint64_t home_step; /* the last step that came home */
    double home_sent;   /* when the last picture to arrive was sent */
    struct ids forget;  /* sequences to be released */
};

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

static void land_all(struct esp_sched *sched)
{
    while (sched->flights) {
        struct esp_flight *f = sched->flights;
        esp_sched_land(sched, &f);
    }
}

void esp_sched_destroy(struct esp_sched **sched)
{
    struct esp_sched *s = *sched;

    if (!s)
        return;
    land_all(s);
    while (s->first) {
        struct esp_session *gone = s->first;

        s->first = gone->next;
        if (s->features)
            drop_features(s, gone);
        esp_session_destroy(&gone);
    }
    esp_features_destroy(&s->features);
    free(s->forget.id);
    free(s);
    *sched = NULL;
}

void esp_sched_open(struct esp_sched *sched, const struct esp_sched_room *room)
{
    sched->open = true;
    sched->room = *room;
    sched->last_step = sched->home_step = 0;
    sched->home_sent = 0;
    esp_features_open(sched->features, room->max_images);
}

void esp_sched_close(struct esp_sched *sched, const struct esp_err *why, double now)
{
    land_all(sched);
    for (struct esp_session *s = sched->first; s; s = s->next) {
        if (!s->admitted)
            continue;
        esp_sched_end(sched, s, why, now);
        drop_features(sched, s);
        s->admitted = false;
    }
    esp_features_clear(sched->features);
    sched->forget.n = 0;
    sched->blocks_used = 0;
    sched->seqs_used = 0;
    sched->open = false;
}

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

uint32_t esp_sched_ahead(const struct esp_sched *sched, const struct esp_session *session)
{
    uint32_t n = 0;

    for (const struct esp_session *s = sched->first; s && s != session; s = s->next)
        n += s->state == ESP_SESSION_QUEUED;
    return n;
}

esp_status esp_sched_check(const struct esp_sched *sched, const struct esp_session *session,
                           struct esp_err *err)
{
    const struct esp_sched_room *room = &sched->room;
    const uint64_t n_tok = esp_decode_max_len(session->decode);
    const uint64_t n_blocks = esp_decode_max_blocks(session->decode, room->block_tokens);

    if (esp_decode_max_seqs(session->decode) > room->max_seqs)
        return esp_fail(err, ESP_E_LIMIT, "%u sequences at once, the cluster holds %u",
                        esp_decode_max_seqs(session->decode), room->max_seqs);
    if (session->n_images > room->max_images)
        return esp_fail(err, ESP_E_LIMIT, "%u pictures, the cluster holds %u at once: raise --max-images",
                        session->n_images, room->max_images);
    if (n_blocks > room->kv_blocks)
        return esp_fail(
            err, ESP_E_LIMIT,
            "the request may need %llu tokens of KV cache (%u sequences of up to %llu tokens), the cluster "
            "has %llu: raise --kv-tokens",
            (unsigned long long)(n_blocks * room->block_tokens), esp_decode_max_seqs(session->decode),
            (unsigned long long)n_tok, (unsigned long long)(room->kv_blocks * room->block_tokens));
    return ESP_OK;
}

static esp_status acquire(struct esp_sched *sched, struct esp_session *s, struct esp_err *err)
{
    for (uint32_t i = 0; i < s->n_images; i++) {
        esp_status st =
            esp_features_acquire(&s->features[i], sched->features, s->job->hash[i], !s->trace, err);

        if (st)
            return st;
        s->images[i] = s->features[i]->image;
        esp_decode_set_image(s->decode, i, s->images[i]);
    }
    return ESP_OK;
}

/* ENCODING ends when every picture is there. */
static void encoded(struct esp_session *s, double now)
{
    for (uint32_t i = 0; i < s->n_images; i++)
        if (s->features[i]->state != ESP_FEATURE_STORED)
            return;
    s->state = ESP_SESSION_RUNNING;
    s->encoded = now;
    free(s->job->pixels); /* a rebuilt cluster would need them; until there is rebuilding, they only cost */
    s->job->pixels = NULL;
}

struct esp_session *esp_sched_admit(struct esp_sched *sched, double now)
{
    for (struct esp_session *s = sched->first; sched->open && s; s = s->next) {
        struct esp_err err = {0};
        uint64_t n_blocks;

        if (s->state != ESP_SESSION_QUEUED)
            continue;
        if (esp_sched_check(sched, s, &err)) {
            esp_sched_end(sched, s, &err, now);
            continue;
        }
        n_blocks = esp_decode_max_blocks(s->decode, sched->room.block_tokens);
        if (n_blocks > sched->room.kv_blocks - sched->blocks_used ||
            esp_decode_max_seqs(s->decode) > sched->room.max_seqs - sched->seqs_used ||
            !esp_features_fits(sched->features, s->n_images))
            return NULL; /* those behind it wait too: no request is overtaken for ever */
        s->n_blocks = n_blocks;
        s->n_seqs = esp_decode_max_seqs(s->decode);
        s->admitted = true;
        s->admitted_at = now;
        sched->blocks_used += s->n_blocks;
        sched->seqs_used += s->n_seqs;
        s->turn = ++sched->turn;
        s->state = ESP_SESSION_ENCODING;
        if (acquire(sched, s, &err))
            esp_sched_end(sched, s, &err, now);
        else
            encoded(s, now);
        return s;
    }
    return NULL;
}

bool esp_sched_next_encode(struct esp_sched *sched, struct esp_session **session, uint32_t *index, double now)
{
    if (!sched->open || esp_features_n_sent(sched->features) >= sched->room.max_encodes)
        return false;
    for (struct esp_session *s = sched->first; s; s = s->next) {
        if (s->state != ESP_SESSION_ENCODING)
            continue;
        for (uint32_t i = 0; i < s->n_images; i++) {
            if (s->features[i]->state != ESP_FEATURE_NEW)
                continue;
            s->features[i]->state = ESP_FEATURE_SENT;
            s->features[i]->sent = now;
            *session = s;
            *index = i;
            return true;
        }
    }
    return false;
}

void esp_sched_stored(struct esp_sched *sched, struct esp_feature *feature, const struct esp_err *failed,
                      double now)
{
    feature->state = failed ? ESP_FEATURE_LOST : ESP_FEATURE_STORED;
    if (feature->sent > sched->home_sent)
        sched->home_sent = feature->sent;
    for (struct esp_session *s = sched->first; s; s = s->next) {
        bool mine = false;

        for (uint32_t i = 0; s->state == ESP_SESSION_ENCODING && i < s->n_images; i++)
            mine |= s->features[i] == feature;
        if (mine && failed)
            esp_sched_end(sched, s, failed, now);
        else if (mine)
            encoded(s, now);
    }
}

struct esp_flight *esp_sched_next_step(struct esp_sched *sched, double now)
{
    while (sched->open && sched->n_flights < sched->room.max_steps) {
        struct esp_session *next = NULL;
        struct esp_flight_load load;
        struct esp_flight *f;
        struct esp_err err = {0};

        for (struct esp_session *s = sched->first; s; s = s->next)
            if (s->state == ESP_SESSION_RUNNING && !s->step_out && (!next || s->turn < next->turn))
                next = s;
        if (!next)
            return NULL;
        next->turn = ++sched->turn;
        load = (struct esp_flight_load){.session = next, .part = esp_decode_next(next->decode)};
        if (esp_flight_create(&f, sched->room.epoch, sched->last_step + 1, &load, 1,
                              next->trace && esp_decode_n_steps(next->decode) == 0, &err)) {
            esp_sched_end(sched, next, &err, now);
            continue;
        }
        sched->last_step++;
        f->sent = now;
        f->next = sched->flights;
        sched->flights = f;
        sched->n_flights++;
        next->step_out = true;
        if (f->step.trace) {
            next->trace_step = f->step.id;
            next->trace_epoch = f->step.epoch;
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

void esp_sched_land(struct esp_sched *sched, struct esp_flight **flight)
{
    for (struct esp_flight **p = &sched->flights; *p; p = &(*p)->next) {
        if (*p != *flight)
            continue;
        *p = (*flight)->next;
        sched->n_flights--;
        break;
    }
    if ((*flight)->step.id > sched->home_step)
        sched->home_step = (*flight)->step.id;
    for (uint32_t i = 0; i < (*flight)->n_parts; i++)
        (*flight)->parts[i].session->step_out = false;
    esp_flight_destroy(flight);
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

void esp_sched_end(struct esp_sched *sched, struct esp_session *session, const struct esp_err *how,
                   double now)
{
    if (session->state == ESP_SESSION_ENDED)
        return;
    session->state = ESP_SESSION_ENDED;
    session->ended = now;
    session->st = how ? how->code : ESP_OK;
    if (how)
        session->err = *how;
}

/* Its room is free, and its sequences are to be forgotten. False without memory: the next call tries again.
 */
static bool give_back(struct esp_sched *sched, struct esp_session *s)
{
    struct ids *to = &sched->forget;
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
    sched->blocks_used -= s->n_blocks;
    sched->seqs_used -= s->n_seqs;
    drop_features(sched, s);
    s->admitted = false;
    return true;
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
