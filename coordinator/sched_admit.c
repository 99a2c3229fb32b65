/* The queue: who comes in next, and the pictures of those who are in. */
#include <string.h>

#include "coordinator/sched_state.h"

/* ---- room ---- */

esp_status esp_sched_check(const struct esp_sched *sched, const struct esp_session *session,
                           struct esp_err *err)
{
    const struct esp_sched_room *room = &sched->room;
    const uint64_t n_tok = esp_decode_max_len(session->decode);
    const uint64_t n_blocks = esp_decode_max_blocks(session->decode, room->block_tokens);
    const uint32_t n_seqs = esp_decode_max_seqs(session->decode);

    if (n_tok > room->max_rows || n_seqs > room->max_rows)
        return esp_fail(err, ESP_E_LIMIT,
                        "%u sequences of up to %llu tokens, the cluster's context is %u: raise --context",
                        n_seqs, (unsigned long long)n_tok, room->max_rows);
    if (n_seqs > room->max_seqs)
        return esp_fail(err, ESP_E_LIMIT, "%u sequences at once, the cluster holds %u", n_seqs,
                        room->max_seqs);
    if (session->n_images > room->max_images)
        return esp_fail(err, ESP_E_LIMIT, "%u pictures, the cluster holds %u at once: raise --max-images",
                        session->n_images, room->max_images);
    if (n_blocks > room->kv_blocks)
        return esp_fail(
            err, ESP_E_LIMIT,
            "the request may need %llu tokens of KV cache (%u sequences of up to %llu tokens), the cluster "
            "has %llu: raise --kv-tokens",
            (unsigned long long)(n_blocks * room->block_tokens), n_seqs, (unsigned long long)n_tok,
            (unsigned long long)(room->kv_blocks * room->block_tokens));
    return ESP_OK;
}

/* Whether there is room for it right now. After a carry more may be in use than there is. */
static bool fits(const struct esp_sched *sched, const struct esp_session *s)
{
    const struct esp_sched_room *room = &sched->room;

    return sched->blocks_used + esp_decode_max_blocks(s->decode, room->block_tokens) <= room->kv_blocks &&
           sched->seqs_used + esp_decode_max_seqs(s->decode) <= room->max_seqs &&
           esp_features_fits(sched->features, s->n_images);
}

/* ---- who is next ---- */

/* Those that have begun to wait get their place among the clients; those that never can come in end. False without
 * memory. */
static bool line_up(struct esp_sched *sched, double now)
{
    for (struct esp_session *s = sched->first; s; s = s->next) {
        struct esp_err err;

        if (s->state != ESP_SESSION_QUEUED || s->rebuild)
            continue;
        if (!s->fitted) {
            if (esp_sched_check(sched, s, &err)) {
                esp_sched_end(sched, s, &err, now);
                continue;
            }
            s->fitted = true;
        }
        if (!s->share)
            s->share = esp_shares_wait(&sched->shares, &s->client);
        if (!s->share)
            return false;
    }
    return true;
}

/* Whether a comes in before b; `older`: a has arrived before b. */
static bool goes_before(const struct esp_session *a, const struct esp_session *b, bool older)
{
    if (a->rebuild || b->rebuild)
        return a->rebuild && (!b->rebuild || a->admission < b->admission);
    if (!a->share || !b->share)
        return a->share || (!b->share && older);
    return a->share->spent < b->share->spent || (a->share->spent == b->share->spent && older);
}

uint32_t esp_sched_ahead(const struct esp_sched *sched, const struct esp_session *session)
{
    uint32_t n = 0;
    bool older = true;

    for (const struct esp_session *s = sched->first; s; s = s->next) {
        if (s == session)
            older = false;
        else if (s->state == ESP_SESSION_QUEUED)
            n += s == sched->chosen || (session != sched->chosen && goes_before(s, session, older));
    }
    return n;
}

/* The one that comes in next, as soon as there is room. One that is too big for this placement stands in nobody's way. */
static struct esp_session *pick(struct esp_sched *sched)
{
    struct esp_session *best = NULL;

    for (struct esp_session *s = sched->first; s; s = s->next) {
        if (s->state != ESP_SESSION_QUEUED || esp_sched_check(sched, s, NULL))
            continue;
        if (!best || goes_before(s, best, false))
            best = s;
    }
    if (!best || best->rebuild)
        return best;
    if (!sched->chosen || esp_sched_check(sched, sched->chosen, NULL))
        sched->chosen = best;
    return sched->chosen;
}

/* ---- coming in ---- */

static esp_status acquire(struct esp_sched *sched, struct esp_session *s, struct esp_err *err)
{
    for (uint32_t i = 0; i < s->n_images; i++) {
        esp_status st =
            esp_features_acquire(&s->features[i], sched->features, s->job->hash[i], !s->trace, err);
        uint32_t own = 1; /* the same picture may be in a request twice */

        if (st)
            return st;
        for (uint32_t j = 0; j < i; j++)
            own += s->features[j] == s->features[i];
        if (!s->rebuild && (s->features[i]->state != ESP_FEATURE_NEW || s->features[i]->n_ref > own)) {
            s->n_cached++;
            sched->counts.n_cached++;
        }
        s->images[i] = s->features[i]->image;
        esp_decode_set_image(s->decode, i, s->images[i]);
    }
    return ESP_OK;
}

/* ENCODING ends when every picture is there. */
static void encoded(struct esp_sched *sched, struct esp_session *s, double now)
{
    for (uint32_t i = 0; i < s->n_images; i++)
        if (s->features[i]->state != ESP_FEATURE_STORED)
            return;
    s->state = ESP_SESSION_RUNNING;
    if (s->encoded == 0)
        s->encoded = now;
    esp_sched_turn_enter(sched, s);
}

static void come_in(struct esp_sched *sched, struct esp_session *s, double now)
{
    struct esp_err err = {0};
    esp_status st = ESP_OK;

    s->n_blocks = esp_decode_max_blocks(s->decode, sched->room.block_tokens);
    s->n_seqs = esp_decode_max_seqs(s->decode);
    s->admitted = true;
    sched->blocks_used += s->n_blocks;
    sched->seqs_used += s->n_seqs;
    s->state = ESP_SESSION_ENCODING;
    if (s->admission == 0) {
        s->admitted_at = now;
        s->admission = ++sched->last_admission;
        sched->counts.n_admitted++;
    }
    if (s->rebuild) {
        st = esp_sched_bring_back(sched, s, &err);
    } else {
        esp_shares_leave(&sched->shares, &s->share, s->n_blocks, true);
        sched->chosen = NULL;
    }
    if (!st)
        st = acquire(sched, s, &err);
    s->rebuild = false;
    if (st)
        esp_sched_end(sched, s, &err, now);
    else
        encoded(sched, s, now);
}

struct esp_session *esp_sched_admit(struct esp_sched *sched, double now)
{
    struct esp_session *s;

    if (!sched->open || sched->paused || !line_up(sched, now))
        return NULL;
    s = pick(sched);
    if (!s || !fits(sched, s))
        return NULL;
    come_in(sched, s, now);
    return s;
}

/* ---- pictures ---- */

bool esp_sched_next_encode(struct esp_sched *sched, struct esp_session **session, uint32_t *index, double now)
{
    if (!sched->open || sched->paused || esp_features_n_sent(sched->features) >= sched->room.max_encodes)
        return false;
    for (struct esp_session *s = sched->first; s; s = s->next) {
        if (s->state != ESP_SESSION_ENCODING)
            continue;
        for (uint32_t i = 0; i < s->n_images; i++) {
            if (s->features[i]->state != ESP_FEATURE_NEW)
                continue;
            s->features[i]->state = ESP_FEATURE_SENT;
            s->features[i]->sent = now;
            sched->counts.n_encodes++;
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
    if (!failed && feature->sent > sched->home_sent)
        sched->home_sent = feature->sent;
    for (struct esp_session *s = sched->first; s; s = s->next) {
        bool mine = false;

        for (uint32_t i = 0; s->state == ESP_SESSION_ENCODING && i < s->n_images; i++)
            mine |= s->features[i] == feature;
        if (mine && failed)
            esp_sched_end(sched, s, failed, now);
        else if (mine)
            encoded(sched, s, now);
    }
}
