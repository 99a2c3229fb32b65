/* The clients' side of the server: requests, and what clients are sent until they have their answer. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/server_state.h"

#define TELL_EVERY_S  0.1  /* progress, at most */
#define TELL_QUEUE_S  1.0  /* places in the queue, at most: many wait, and each is counted */
#define TELL_AT_ALL_S 2.0  /* something, at least: how we notice that a client is gone */
#define TRACES_WAIT_S 2.0  /* values of other stages may arrive behind the result of the last */
#define PATIENCE_S    60.0 /* for a client that does not take its answer */
#define TRACE_ROWS    1024 /* logits of every row are traced for prompts up to here */

/* ---- requests ---- */

static size_t file_bytes(const struct esp_msg *msg)
{
    size_t n = 0;

    for (uint32_t i = 0; i < msg->n_blobs; i++)
        n += msg->blob[i].n_bytes; /* each at most ESP_MAX_IMAGE_FILE */
    return n;
}

/* Bytes of the pixel values of n pictures. */
static uint64_t pixel_bytes(const struct esp_server *sv, uint64_t n)
{
    const uint64_t side = sv->config->vision.image_size;

    return n * 3 * side * side * sizeof(float);
}

static esp_status request_check(const struct esp_server *sv, const struct esp_peer *from,
                                const struct esp_msg *msg, struct esp_err *err)
{
    const uint64_t n_image_rows = (uint64_t)msg->request.n_images * sv->config->vision.n_token;
    uint64_t n_pictures = msg->request.n_images; /* whose pixels are or will be in memory */
    uint64_t n_own_pictures = msg->request.n_images;
    uint32_t n = 0, n_own = 0;

    for (const struct esp_session *s = esp_sched_first(sv->sched); s; s = s->next) {
        const bool own = esp_same_client(&s->client, from);

        n++;
        n_own += own;
        if (s->with_thread || (s->job && s->job->pixels)) {
            n_pictures += s->n_images;
            n_own_pictures += own ? s->n_images : 0;
        }
    }
    if (esp_sched_find(sv->sched, from, msg->request.id))
        return esp_fail(err, ESP_E_ARG, "request %" PRIu64 " is still being answered", msg->request.id);
    if (esp_server_ticket(sv, msg->request.ticket))
        return esp_fail(err, ESP_E_ARG, "a request with this ticket is still being answered");
    if (n >= ESP_SERVER_MAX_SESSIONS)
        return esp_fail(err, ESP_E_LIMIT, "%d requests are being served or wait already",
                        ESP_SERVER_MAX_SESSIONS);
    if (n_own >= ESP_SERVER_MAX_SESSIONS / 2) /* others want to be heard too */
        return esp_fail(err, ESP_E_LIMIT, "%u requests of yours are being served or wait already", n_own);
    if (n_image_rows > sv->cluster_opt.sizing.context)
        return esp_fail(err, ESP_E_LIMIT,
                        "%u pictures of %u tokens, the cluster's context is %u: raise --context",
                        msg->request.n_images, sv->config->vision.n_token, sv->cluster_opt.sizing.context);
    if (file_bytes(msg) > ESP_SERVER_MAX_BYTES ||
        pixel_bytes(sv, msg->request.n_images) > ESP_SERVER_MAX_PIXEL_BYTES)
        return esp_fail(err, ESP_E_LIMIT,
                        "%u pictures in files of %zu MiB: a request may hold %zu MiB of files, and %" PRIu64
                        " MiB of pixel values",
                        msg->request.n_images, file_bytes(msg) >> 20, ESP_SERVER_MAX_BYTES >> 20,
                        ESP_SERVER_MAX_PIXEL_BYTES >> 20);
    if (file_bytes(msg) > ESP_SERVER_MAX_BYTES - sv->file_bytes ||
        pixel_bytes(sv, n_pictures) > ESP_SERVER_MAX_PIXEL_BYTES)
        return esp_fail(err, ESP_E_LIMIT, "too many pictures wait already: try again later");
    if (n_own_pictures > msg->request.n_images &&
        pixel_bytes(sv, n_own_pictures) > ESP_SERVER_MAX_PIXEL_BYTES / 2)
        return esp_fail(err, ESP_E_LIMIT, "too many pictures of yours wait already: try again later");
    if (sv->broken)
        return esp_fail(err, sv->why.code, "%s", sv->why.text);
    return esp_decode_check(&msg->request, sv->config->text.vocab, err);
}

static void on_request(struct esp_server *sv, const struct esp_peer *from, struct esp_msg *msg)
{
    const uint64_t id = msg->request.id;
    struct esp_session *s = NULL;
    struct esp_prepare_job *job = NULL;
    struct esp_err err;
    esp_status st = request_check(sv, from, msg, &err);

    if (!st)
        st = esp_session_create(&s, sv->last_session + 1, from, &msg->request, esp_now_seconds(), &err);
    if (!st) {
        job = calloc(1, sizeof *job);
        if (!job)
            st = esp_fail(&err, ESP_E_NOMEM, "a request");
    }
    if (st) {
        esp_log(sv->log, ESP_LOG_DEBUG, "request=%" PRIu64 " refused why=\"%s\"", id, err.text);
        esp_server_tell_error(sv, from, id, err.code, err.text);
        esp_session_destroy(&s);
        return;
    }
    esp_log(sv->log, ESP_LOG_DEBUG, "session=%" PRIu64 " asked request=%" PRIu64 " images=%u", s->id, id,
            s->n_images);
    sv->last_session = s->id;
    sv->counts.n_requests++;
    s->with_thread = true;
    job->session = s->id;
    job->request = *msg; /* taken whole: the files are not copied */
    memset(msg, 0, sizeof *msg);
    sv->file_bytes += file_bytes(&job->request);
    esp_prepare_submit(sv->prepare, &job);
    esp_sched_add(sv->sched, &s);
}

static void end_as_cancelled(struct esp_server *sv, struct esp_session *s)
{
    struct esp_err err;

    esp_fail(&err, ESP_E_CANCELLED, "cancelled");
    esp_log(sv->log, ESP_LOG_DEBUG, "session=%" PRIu64 " cancelled%s", s->id,
            s->client_gone ? " client_gone" : "");
    if (s->with_thread)
        esp_prepare_drop(sv->prepare, s->id);
    esp_sched_end(sv->sched, s, &err, esp_now_seconds());
}

static void client_gone(struct esp_server *sv, struct esp_session *s)
{
    s->client_gone = true;
    end_as_cancelled(sv, s);
}

void esp_server_give_up(struct esp_server *sv, struct esp_session *s, const char *why)
{
    esp_log(sv->log, ESP_LOG_WARN, "session=%" PRIu64 " given_up why=\"%s\"", s->id, why);
    client_gone(sv, s);
}

void esp_server_drop_client(struct esp_server *sv, const struct esp_peer *peer)
{
    for (struct esp_session *s = esp_sched_first(sv->sched); s; s = s->next)
        if (esp_peer_equal(&s->client, peer))
            client_gone(sv, s);
    esp_server_verify_client_gone(sv, peer);
}

void esp_server_from_client(struct esp_server *sv, const struct esp_peer *from, struct esp_msg *msg)
{
    struct esp_session *s;

    switch (msg->kind) {
    case ESP_MSG_REQUEST:
        on_request(sv, from, msg);
        break;
    case ESP_MSG_RESUME:
        esp_server_on_resume(sv, from, &msg->resume);
        break;
    case ESP_MSG_CANCEL:
        s = esp_sched_find(sv->sched, from, msg->cancel.session);
        if (s) /* otherwise its answer and the Cancel have crossed */
            end_as_cancelled(sv, s);
        else
            (void)esp_server_cancel_verify(sv, from, msg->cancel.session);
        break;
    case ESP_MSG_VERIFY_QUERY:
        esp_server_verify(sv, from, msg->verify_query.id);
        break;
    case ESP_MSG_DRAIN:
        esp_server_on_drain(sv, from, &msg->drain);
        break;
    default: /* ESP_MSG_STATUS_QUERY */
        esp_server_tell_status(sv, from, msg->status_query.id);
        break;
    }
}

void esp_server_fail_queue(struct esp_server *sv, const struct esp_err *why)
{
    for (struct esp_session *s = esp_sched_first(sv->sched); s; s = s->next)
        if (!s->admitted && !s->rebuild)
            esp_sched_end(sv->sched, s, why, esp_now_seconds());
}

/* ---- prepared ---- */

/* From what the thread made, the decoder; the request's files are done with. */
static esp_status make_decoder(struct esp_server *sv, struct esp_session *s, struct esp_prepare_job *job,
                               struct esp_err *err)
{
    const struct esp_msg_request *r = &job->request.request;
    const uint64_t n_rows = (uint64_t)job->n_prefix + job->n_suffix + (r->score && !r->no_eos);
    const uint32_t vocab = sv->config->text.vocab, context = sv->cluster_opt.sizing.context;
    const struct esp_decode_params params = {.prefix = job->prefix,
                                             .n_prefix = job->n_prefix,
                                             .suffix = job->suffix,
                                             .n_suffix = job->n_suffix,
                                             .n_images = r->n_images,
                                             .sampling = r->sampling,
                                             .max_tokens = r->max_tokens,
                                             .score = r->score,
                                             .no_eos = r->no_eos,
                                             .full_first = r->trace && n_rows <= TRACE_ROWS &&
                                                           n_rows * vocab * sizeof(float) <= ESP_MAX_FRAME,
                                             .eos = sv->config->eos,
                                             .vocab = vocab};
    uint64_t n_tok;
    esp_status st;

    /* Before anything is sized by it. */
    n_tok = n_rows + (r->score ? 0 : (uint64_t)r->max_tokens - 1);
    if (n_tok > context)
        return esp_fail(
            err, ESP_E_LIMIT,
            "%" PRIu64 " tokens (%u of pictures, %" PRIu64 " of text, up to %u to generate), the cluster's "
            "context is %u: raise --context, or lower --max-tokens",
            n_tok, job->n_image_rows, n_rows - job->n_image_rows, r->score ? 0 : r->max_tokens, context);
    st = esp_decode_create(&s->decode, &params, esp_sched_seqs(sv->sched), err);
    if (st)
        return st;
    if (esp_decode_streams(s->decode)) {
        st = esp_detok_create(&s->detok, sv->token, err);
        if (st)
            return st;
    }
    if (s->trace)
        s->n_traces_due =
            sv->config->text.n_layer + 2 + params.full_first + s->n_images * (sv->config->vision.n_layer + 4);
    return ESP_OK;
}

/* The session's decoder, with what was chosen before a restart. */
static esp_status make_session(struct esp_server *sv, struct esp_session *s, struct esp_prepare_job *job,
                               double now, struct esp_err *err)
{
    esp_status st = make_decoder(sv, s, job, err);

    if (!st && s->records && !esp_server_restore(sv, s, now)) {
        esp_decode_destroy(&s->decode);
        esp_detok_destroy(&s->detok);
        st = make_decoder(sv, s, job, err);
    }
    if (!st && esp_sched_is_open(sv->sched) && s->state == ESP_SESSION_PREPARING && !s->rebuild)
        st = esp_sched_check(sv->sched, s, err);
    return st;
}

void esp_server_prepared(struct esp_server *sv)
{
    struct esp_prepare_job *job;

    while ((job = esp_prepare_take(sv->prepare))) {
        struct esp_session *s = esp_sched_by_id(sv->sched, job->session);
        const double now = esp_now_seconds();
        struct esp_err err = job->err;

        sv->file_bytes -= file_bytes(&job->request);
        if (s) {
            s->with_thread = false;
            if (s->state == ESP_SESSION_PREPARING) {
                if (job->st || make_session(sv, s, job, now, &err)) {
                    esp_sched_end(sv->sched, s, &err, now);
                } else {
                    if (s->state == ESP_SESSION_PREPARING) /* unless it was restored, and done */
                        s->state = ESP_SESSION_QUEUED;
                    s->prepared = now;
                    esp_server_journal_add(sv, s, &job->request);
                    s->job = job;
                    job = NULL;
                }
            }
        }
        esp_prepare_job_destroy(&job);
    }
}

/* ---- what clients are sent ---- */

/* False: not now, or never (then the client is marked as gone). */
static bool tell(struct esp_server *sv, struct esp_session *s, struct esp_msg *msg, double now)
{
    struct esp_err err;
    esp_status st = esp_link_send(sv->link, &s->client, msg, &err);

    if (!st) {
        s->told_at = now;
        return true;
    }
    if (st == ESP_E_LIMIT) { /* its queue is full: again in a moment */
        if (now - s->told_at > PATIENCE_S)
            client_gone(sv, s);
        return false;
    }
    if (st != ESP_E_CLOSED) {
        esp_log(sv->log, ESP_LOG_ERROR, "session=%" PRIu64 " cannot_be_told kind=%s why=\"%s\"", s->id,
                esp_msg_name(msg->kind), err.text);
        esp_server_tell_error(sv, &s->client, s->request, st, err.text);
    }
    client_gone(sv, s);
    return false;
}

static bool tell_accepted(struct esp_server *sv, struct esp_session *s, double now)
{
    struct esp_stage_info *stages = calloc(sv->cluster.n_stages ? sv->cluster.n_stages : 1, sizeof *stages);
    struct esp_msg msg = {.kind = ESP_MSG_ACCEPTED};

    if (!stages)
        return false; /* again in a moment */
    for (uint32_t i = 0; i < sv->cluster.n_stages; i++)
        esp_cluster_info(&stages[i], sv->cluster.stage[i]);
    msg.accepted = (struct esp_msg_accepted){.session = s->request,
                                             .prompt_ids = s->job->prefix + s->job->n_image_rows,
                                             .n_prompt_ids = s->job->n_prefix - s->job->n_image_rows,
                                             .image_tokens = s->job->n_image_rows,
                                             .stages = stages,
                                             .n_stages = sv->cluster.n_stages};
    s->accepted_sent = tell(sv, s, &msg, now);
    free(stages);
    return s->accepted_sent;
}

/* The text that a token completes; with the last one, also what can no longer be completed. */
static char *token_text(struct esp_session *s, uint32_t id, bool last)
{
    size_t n, n_rest = 0;
    const char *text = esp_detok_feed(s->detok, id, &n);
    char *out = esp_text_copy(text, n), *more;

    if (!out || !last)
        return out;
    n = strlen(out);
    text = esp_detok_flush(s->detok, &n_rest);
    more = n_rest ? realloc(out, n + n_rest + 1) : NULL;
    if (more) {
        memcpy(more + n, text, n_rest);
        more[n + n_rest] = '\0';
        out = more;
    }
    return out;
}

static bool tell_tokens(struct esp_server *sv, struct esp_session *s, double now)
{
    struct esp_decode_hyp h;

    if (!esp_decode_streams(s->decode) || s->n_tokens_sent >= esp_decode_n_steps(s->decode) ||
        !esp_decode_hyp(s->decode, 0, &h))
        return true;
    while (s->n_tokens_sent < h.n_ids) {
        const uint32_t i = s->n_tokens_sent;
        struct esp_msg msg = {.kind = ESP_MSG_TOKEN};

        if (!s->token_text)
            s->token_text = token_text(s, h.ids[i], s->state == ESP_SESSION_ENDED && i + 1 == h.n_ids);
        if (!s->token_text)
            return false;
        if (i < s->n_have) { /* only the text behind it depends on it */
            free(s->token_text);
            s->token_text = NULL;
            s->n_tokens_sent++;
            continue;
        }
        msg.token = (struct esp_msg_token){.session = s->request,
                                           .index = i,
                                           .id = h.ids[i],
                                           .logprob = h.logprobs[i],
                                           .text = s->token_text};
        if (!tell(sv, s, &msg, now))
            return false;
        free(s->token_text);
        s->token_text = NULL;
        s->n_tokens_sent++;
    }
    return true;
}

static void tell_done(struct esp_server *sv, struct esp_session *s, double now)
{
    struct esp_done_store store;
    struct esp_msg msg;
    struct esp_err err;

    if (s->trace && s->n_traces < s->n_traces_due && now - s->ended < TRACES_WAIT_S)
        return;
    if (esp_session_done(&msg, &store, s, sv->token, &err)) {
        esp_server_tell_error(sv, &s->client, s->request, err.code, err.text);
        s->final_sent = true;
        return;
    }
    s->final_sent = tell(sv, s, &msg, now);
    if (s->final_sent)
        esp_log(sv->log, ESP_LOG_DEBUG,
                "session=%" PRIu64 " done encode_s=%.3f prefill_s=%.3f decode_s=%.3f queue_s=%.3f steps=%u",
                s->id, msg.done.encode, msg.done.prefill, msg.done.decode, msg.done.queue,
                esp_decode_n_steps(s->decode));
    esp_session_done_finish(&store);
}

#define QUEUED "queued"

/* What a session waits for now. */
static const char *phase(const struct esp_server *sv, const struct esp_session *s, uint64_t *done,
                         uint64_t *total)
{
    uint32_t n_back, n_all;

    *done = 0;
    *total = 0;
    switch (s->state) {
    case ESP_SESSION_PREPARING:
    case ESP_SESSION_QUEUED:
        if (!sv->cluster.placed) {
            *done = esp_roster_usable(sv->roster);
            *total = sv->opt.n_workers;
            return "waiting for workers";
        }
        if (!sv->cluster.ready) {
            esp_cluster_loading(&sv->cluster, done, total);
            return "loading weights";
        }
        if (s->state == ESP_SESSION_PREPARING) {
            *total = s->n_images;
            return "preparing";
        }
        *done = esp_sched_ahead(sv->sched, s);
        *total = esp_sched_n_queued(sv->sched);
        return s->rebuild || esp_sched_check(sv->sched, s, NULL) ? "waiting for memory" : QUEUED;
    case ESP_SESSION_ENCODING:
        for (uint32_t i = 0; i < s->n_images; i++)
            *done += s->features[i]->state == ESP_FEATURE_STORED;
        *total = s->n_images;
        return "encoding";
    case ESP_SESSION_RUNNING:
        if (esp_decode_rebuilding(s->decode, &n_back, &n_all)) {
            *done = n_back;
            *total = n_all;
            return "rebuilding";
        }
        *done = esp_decode_n_steps(s->decode);
        if (*done == 0) {
            *total = esp_decode_first_rows(s->decode);
            return "prefill";
        }
        *total = s->max_tokens;
        return "decoding";
    case ESP_SESSION_ENDED:
        break;
    }
    return NULL;
}

static void tell_waiting(struct esp_server *sv, struct esp_session *s, double now, bool anyway)
{
    struct esp_msg msg = {.kind = ESP_MSG_WAITING};
    uint64_t done, total;
    const char *what;
    bool new_what, due;

    if (!anyway &&
        now - s->told_at <
            (s->state == ESP_SESSION_QUEUED && strcmp(s->what, QUEUED) == 0 ? TELL_QUEUE_S : TELL_EVERY_S))
        return;
    what = phase(sv, s, &done, &total);
    if (!what)
        return;
    new_what = strcmp(what, s->what) != 0;
    if (s->state == ESP_SESSION_RUNNING && done > 0 && esp_decode_streams(s->decode))
        due = false; /* its tokens are news enough */
    else
        due = new_what || done != s->what_done || total != s->what_total;
    if (!anyway && !due && now - s->told_at < TELL_AT_ALL_S)
        return;
    msg.waiting = (struct esp_msg_waiting){.session = s->request, .what = what, .done = done, .total = total};
    if (tell(sv, s, &msg, now)) {
        snprintf(s->what, sizeof s->what, "%s", what);
        s->what_done = done;
        s->what_total = total;
    }
}

void esp_server_tell_soon(struct esp_session *s, double now)
{
    s->what[0] = '\0';
    if (s->told_at > now - TELL_AT_ALL_S)
        s->told_at = now - TELL_AT_ALL_S;
}

static void deliver(struct esp_server *sv, struct esp_session *s, double now)
{
    if (s->state == ESP_SESSION_ENDED && s->st) {
        struct esp_msg msg = {.kind = ESP_MSG_ERROR};
        msg.error = (struct esp_msg_error){.code = s->st, .text = s->err.text, .session = s->request};
        s->final_sent = tell(sv, s, &msg, now);
        if (s->final_sent && s->st != ESP_E_CANCELLED)
            esp_log(sv->log, ESP_LOG_DEBUG, "session=%" PRIu64 " failed why=\"%s\"", s->id, s->err.text);
        return;
    }
    if (s->admitted_at > 0) {
        if (!s->accepted_sent && !tell_accepted(sv, s, now))
            return;
        if (!tell_tokens(sv, s, now))
            return;
    }
    if (s->state == ESP_SESSION_ENDED)
        tell_done(sv, s, now);
    else
        tell_waiting(sv, s, now, false);
}

void esp_server_probe_clients(struct esp_server *sv, double now)
{
    for (struct esp_session *s = esp_sched_first(sv->sched); s; s = s->next)
        if (!s->client_gone && !s->final_sent && !s->away)
            tell_waiting(sv, s, now, true);
}

void esp_server_deliver(struct esp_server *sv, double now)
{
    for (struct esp_session *s = esp_sched_first(sv->sched); s; s = s->next)
        if (!s->client_gone && !s->final_sent && !s->away)
            deliver(sv, s, now);
}

void esp_server_relay_trace(struct esp_server *sv, struct esp_session *s, const struct esp_msg_trace *trace,
                            const struct esp_blob *blob)
{
    struct esp_msg msg = {.kind = ESP_MSG_TRACE, .n_blobs = 1};
    struct esp_err err;

    msg.trace = *trace;
    msg.trace.session = s->request;
    msg.blob[0] = (struct esp_blob){.data = blob->data, .n_bytes = blob->n_bytes};
    s->n_traces++;
    switch (esp_link_send(sv->link, &s->client, &msg, &err)) {
    case ESP_OK:
        break;
    case ESP_E_CLOSED:
        client_gone(sv, s);
        break;
    default: /* a trace with holes would mislead */
        esp_err_prefix(&err, "trace %s: ", trace->name);
        esp_sched_end(sv->sched, s, &err, esp_now_seconds());
        break;
    }
}
