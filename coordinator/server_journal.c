/*
 * The journal's side of the server: what is written of sessions, and what becomes of those that an earlier
 * coordinator left.
 *
 * A session is journalled once it is prepared (before, there is nothing that its client could not ask anew), and
 * forgotten when its client has been told the end. What was left is read back one after the other, as far as the
 * limits on pictures in memory allow, prepared again like a new request, given its records, and then it is like a
 * session whose workers were lost: it goes on at once, and its client has some time to come and hear the rest.
 */
#include <inttypes.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/server_state.h"

#define RESUME_WITHIN_S 120 /* for the clients of sessions that were left */

/* ---- opening ---- */

/* What must be the same for a session to go on with the same tokens. */
static void model_id(const struct esp_server *sv, uint8_t id[ESP_JOURNAL_MODEL_BYTES])
{
    uint8_t what[ESP_FINGERPRINT_BYTES + 1];

    memcpy(what, sv->fingerprint, sizeof sv->fingerprint);
    what[ESP_FINGERPRINT_BYTES] = (uint8_t)(sv->opt.final_softcap | sv->opt.weights << 1);
    crypto_generichash(id, ESP_JOURNAL_MODEL_BYTES, what, sizeof what, NULL, 0);
}

/* A port that the system chooses is another one at the next start: nobody could come back to it. */
static bool has_own_port(const char *bind)
{
    const char *port = strrchr(bind, ':');

    return strncmp(bind, "tcp://", 6) == 0 && port && strcmp(port, ":*") != 0 && strcmp(port, ":0") != 0;
}

/* Takes a session that was left over, as far as it is known without its files. */
static esp_status adopt(struct esp_server *sv, const struct esp_journal_left *left, struct esp_err *err)
{
    const double now = esp_now_seconds();
    struct esp_session *s;
    esp_status st = esp_session_create(&s, left->session, &left->owner, &left->request.request, now, err);

    if (st)
        return st;
    s->away = s->unread = s->journalled = true;
    s->with_thread = true; /* as good as: it stays until it has been read */
    s->file_bytes = left->file_bytes;
    s->gone_at = now + (sv->opt.resume_within_s ? sv->opt.resume_within_s : RESUME_WITHIN_S);
    sv->n_unread++;
    esp_sched_add(sv->sched, &s);
    return ESP_OK;
}

static esp_status adopt_all(struct esp_server *sv, const char *path, struct esp_err *err)
{
    const struct esp_journal_left *left;
    uint32_t n = 0, n_other, n_bad;
    esp_status st = ESP_OK;

    for (; !st && (left = esp_journal_left(sv->journal, n)); n++) {
        sv->last_session = left->session;
        if (n < ESP_SERVER_MAX_SESSIONS)
            st = adopt(sv, left, err);
        else
            esp_journal_forget(sv->journal, left->session);
    }
    esp_journal_dropped(sv->journal, &n_other, &n_bad);
    esp_journal_forget_left(sv->journal);
    if (n_other + n_bad > 0)
        esp_log(sv->log, ESP_LOG_WARN, "journal=%s dropped other_model=%u unreadable=%u", path, n_other,
                n_bad);
    esp_log(sv->log, ESP_LOG_INFO, "journal=%s sessions=%u", path, n);
    return st;
}

esp_status esp_server_open_journal(struct esp_server *sv, struct esp_err *err)
{
    uint8_t id[ESP_JOURNAL_MODEL_BYTES];
    char made[1024];
    const char *path = sv->opt.journal;
    esp_status st = ESP_OK;

    if (sv->opt.no_journal || (!path && !has_own_port(sv->opt.bind)))
        return ESP_OK;
    model_id(sv, id);
    if (!path) {
        st = esp_journal_default_path(made, sizeof made, sv->endpoint, err);
        path = made;
    }
    if (!st)
        st = esp_journal_open(&sv->journal, path, id, 0, err);
    if (!st)
        return adopt_all(sv, path, err);
    if (sv->opt.journal)
        return st;
    esp_log(sv->log, ESP_LOG_WARN, "journal=none why=\"%s\"", err->text); /* nobody has asked for one */
    return ESP_OK;
}

/* ---- writing ---- */

/* It is not, or no longer, journalled: it lives on all the same. */
static void lose(struct esp_server *sv, struct esp_session *s, const char *why)
{
    s->journalled = false;
    esp_log(sv->log, ESP_LOG_WARN, "session=%" PRIu64 " journal=lost why=\"%s\" action=go_on", s->id, why);
}

void esp_server_journal_add(struct esp_server *sv, struct esp_session *s, struct esp_msg *request)
{
    struct esp_err err;

    if (!sv->journal || s->journalled || s->trace || sodium_is_zero(s->ticket, sizeof s->ticket)) {
        esp_msg_finish(request);
        return;
    }
    s->journalled = true;
    if (esp_journal_add(sv->journal, s->id, &s->client, request, &err))
        lose(sv, s, err.text);
}

static void save(struct esp_server *sv, struct esp_session *s)
{
    struct esp_err err;
    uint8_t *record;
    size_t n;

    if (esp_decode_save(s->decode, &s->saved, &record, &n, &err) ||
        (record && esp_journal_progress(sv->journal, s->id, record, n, &err))) {
        esp_journal_forget(sv->journal, s->id); /* records behind a missing one are worth nothing */
        lose(sv, s, err.text);
    }
}

static void write_sessions(struct esp_server *sv, double now)
{
    const bool busy = esp_journal_busy(sv->journal); /* then later, more at once */

    for (struct esp_session *s = esp_sched_first(sv->sched); s; s = s->next) {
        if (s->away && !s->client_gone && now > s->gone_at)
            esp_server_give_up(sv, s, "its client has not come back in time");
        if (!s->journalled)
            continue;
        if (s->client_gone || s->final_sent) {
            esp_journal_forget(sv->journal, s->id);
            s->journalled = false;
        } else if (!busy && s->decode && esp_decode_n_steps(s->decode) != s->saved.n_steps &&
                   (s->state != ESP_SESSION_ENDED || !s->st)) {
            save(sv, s);
        }
    }
}

/* ---- reading back ---- */

static void read_next(struct esp_server *sv)
{
    struct esp_session *s = esp_sched_first(sv->sched);
    struct esp_err err;

    if (sv->n_unread == 0 || sv->reading)
        return;
    while (s && !s->unread)
        s = s->next;
    if (!s || (sv->file_bytes > 0 && s->file_bytes > ESP_SERVER_MAX_BYTES - sv->file_bytes))
        return;
    if (esp_journal_load(sv->journal, s->id, &err))
        return; /* without memory: again in a moment */
    s->unread = false;
    sv->n_unread--;
    sv->reading = true;
}

static void on_read(struct esp_server *sv, struct esp_session *s, struct esp_journal_event *event)
{
    struct esp_prepare_job *job = NULL;
    struct esp_err err = event->err;

    s->with_thread = false;
    if (s->state != ESP_SESSION_PREPARING)
        return; /* it has ended meanwhile */
    if (!event->st) {
        job = calloc(1, sizeof *job);
        if (!job)
            esp_fail(&err, ESP_E_NOMEM, "a request");
    }
    if (!job) {
        esp_server_give_up(sv, s, err.text);
        return;
    }
    job->session = s->id;
    job->request = event->request;
    memset(&event->request, 0, sizeof event->request);
    s->records = event->records;
    s->n_records = event->n_records;
    event->records = NULL;
    for (uint32_t i = 0; i < job->request.n_blobs; i++)
        sv->file_bytes += job->request.blob[i].n_bytes;
    s->with_thread = true;
    esp_prepare_submit(sv->prepare, &job);
}

static void take_events(struct esp_server *sv)
{
    struct esp_journal_event event;

    while (esp_journal_take(sv->journal, &event)) {
        struct esp_session *s = esp_sched_by_id(sv->sched, event.session);

        switch (event.what) {
        case ESP_JOURNAL_WRITTEN:
            esp_log(sv->log, ESP_LOG_DEBUG, "session=%" PRIu64 " journalled", event.session);
            break;
        case ESP_JOURNAL_LOST:
            if (s && s->journalled) {
                esp_journal_forget(sv->journal, s->id);
                lose(sv, s, event.err.text);
            }
            break;
        case ESP_JOURNAL_LOADED:
            sv->reading = false;
            if (s)
                on_read(sv, s, &event);
            esp_msg_finish(&event.request);
            free(event.records);
            break;
        }
    }
}

void esp_server_journal(struct esp_server *sv, double now)
{
    if (!sv->journal)
        return;
    take_events(sv);
    read_next(sv);
    write_sessions(sv, now);
}

void esp_server_journal_farewell(struct esp_server *sv)
{
    for (struct esp_session *s = esp_sched_first(sv->sched); sv->journal && s; s = s->next)
        if (s->journalled && !s->away)
            esp_journal_forget(sv->journal, s->id);
}

bool esp_server_restore(struct esp_server *sv, struct esp_session *s, double now)
{
    struct esp_err err;
    esp_status st = esp_decode_load(s->decode, s->records, s->n_records, &s->saved, &err);

    free(s->records);
    s->records = NULL;
    if (st) {
        esp_journal_forget(sv->journal, s->id);
        lose(sv, s, err.text);
        memset(&s->saved, 0, sizeof s->saved);
        return false;
    }
    esp_log(sv->log, ESP_LOG_INFO, "session=%" PRIu64 " restored steps=%u%s", s->id,
            esp_decode_n_steps(s->decode), esp_decode_done(s->decode) ? " done" : "");
    if (esp_decode_done(s->decode)) {
        s->admitted_at = s->encoded = s->first_result = now; /* all of that was before our time */
        esp_sched_end(sv->sched, s, NULL, now);
    } else if (esp_decode_n_steps(s->decode) > 0) {
        s->rebuild = s->fitted = true;
        s->n_rebuilds++;
        s->lost_at = now;
    }
    return true;
}
