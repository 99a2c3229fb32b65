#include "coordinator/session.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

esp_status esp_session_create(struct esp_session **out, uint64_t id, const struct esp_peer *client,
                              const struct esp_msg_request *request, double now, struct esp_err *err)
{
    struct esp_session *s = calloc(1, sizeof *s);

    *out = s;
    if (!s)
        return esp_fail(err, ESP_E_NOMEM, "a session");
    s->id = id;
    s->client = *client;
    s->request = request->id;
    s->trace = request->trace;
    s->max_tokens = request->max_tokens;
    s->n_images = request->n_images;
    memcpy(s->ticket, request->ticket, sizeof s->ticket);
    s->features = calloc(s->n_images ? s->n_images : 1, sizeof *s->features);
    s->images = calloc(s->n_images ? s->n_images : 1, sizeof *s->images);
    if (!s->features || !s->images) {
        esp_session_destroy(out);
        return esp_fail(err, ESP_E_NOMEM, "a session of %u pictures", request->n_images);
    }
    s->arrived = s->told_at = now;
    return ESP_OK;
}

void esp_session_destroy(struct esp_session **session)
{
    struct esp_session *s = *session;

    if (!s)
        return;
    esp_decode_destroy(&s->decode);
    esp_detok_destroy(&s->detok);
    esp_prepare_job_destroy(&s->job);
    free(s->features);
    free(s->images);
    free(s->times);
    free(s->token_text);
    free(s->records);
    free(s);
    *session = NULL;
}

void esp_session_add_times(struct esp_session *session, uint32_t n, const struct esp_stage_time *times,
                           bool decode)
{
    uint32_t next = 0; /* stages come in the same order every time: mostly it is the one behind the last */

    for (uint32_t i = 0; i < n; i++) {
        const char *name = times[i].worker ? times[i].worker : "";
        uint32_t at = 0;

        if (next < session->n_times && strcmp(session->times[next].worker, name) == 0)
            at = next;
        while (at < session->n_times && strcmp(session->times[at].worker, name) != 0)
            at++;
        if (at == session->n_times) {
            struct esp_time_sum *more;

            if (at == ESP_MAX_STAGES)
                continue; /* more names than workers can be: made up */
            more = realloc(session->times, (at + 1) * sizeof *more);
            if (!more)
                continue;
            session->times = more;
            memset(&more[at], 0, sizeof more[at]);
            snprintf(more[at].worker, sizeof more[at].worker, "%s", name);
            session->n_times++;
        }
        next = at + 1;
        session->times[at].queue_seconds += times[i].queue_seconds;
        session->times[at].compute_seconds += times[i].compute_seconds;
        session->times[at].received_bytes += times[i].received_bytes;
        if (!decode)
            continue;
        session->times[at].decode_queue_seconds += times[i].queue_seconds;
        session->times[at].decode_compute_seconds += times[i].compute_seconds;
        session->times[at].decode_received_bytes += times[i].received_bytes;
    }
}

char *esp_text_copy(const char *text, size_t n)
{
    char *out, *p;
    size_t n_nul = 0;

    for (size_t i = 0; i < n; i++)
        n_nul += text[i] == '\0';
    p = out = malloc(n + 2 * n_nul + 1);
    if (!out)
        return NULL;
    for (size_t i = 0; i < n; i++) {
        if (text[i]) {
            *p++ = text[i];
        } else {
            memcpy(p, "\xEF\xBF\xBD", 3);
            p += 3;
        }
    }
    *p = '\0';
    return out;
}

static esp_status hyp_fill(struct esp_hypothesis *out, const struct esp_decode_hyp *h,
                           const struct esp_tokenizer *token, struct esp_err *err)
{
    char *text = NULL;
    size_t n_text;
    esp_status st = esp_tokenizer_decode(token, &text, &n_text, h->ids, h->n_ids, err);

    if (st)
        return st;
    out->text = esp_text_copy(text, n_text);
    free(text);
    if (!out->text)
        return esp_fail(err, ESP_E_NOMEM, "the answer's text");
    out->finish = h->eos ? "eos" : "length";
    out->n_ids = h->n_ids;
    out->ids = h->ids;
    out->n_logprobs = h->n_logprobs;
    out->logprobs = h->logprobs;
    out->sum = h->sum;
    out->score = h->score;
    return ESP_OK;
}

static double span(double from, double to)
{
    return from > 0 && to > from ? to - from : 0;
}

esp_status esp_session_done(struct esp_msg *msg, struct esp_done_store *store,
                            const struct esp_session *session, const struct esp_tokenizer *token,
                            struct esp_err *err)
{
    const double encoded = session->encoded > 0 ? session->encoded : session->admitted_at;
    struct esp_decode_hyp h;
    uint32_t n = 0;
    esp_status st = ESP_OK;

    memset(store, 0, sizeof *store);
    while (esp_decode_hyp(session->decode, n, &h))
        n++;
    if (n == 0)
        return esp_fail(err, ESP_E_INTERNAL, "decoding ended without any answer");
    store->hyps = calloc(n, sizeof *store->hyps);
    store->times = calloc(session->n_times ? session->n_times : 1, sizeof *store->times);
    store->decode_times = calloc(session->n_times ? session->n_times : 1, sizeof *store->decode_times);
    if (!store->hyps || !store->times || !store->decode_times) {
        st = esp_fail(err, ESP_E_NOMEM, "the answer");
        goto done;
    }
    for (uint32_t i = 0; i < n; i++) {
        esp_decode_hyp(session->decode, i, &h);
        store->n_hyps = i + 1;
        st = hyp_fill(&store->hyps[i], &h, token, err);
        if (st)
            goto done;
    }
    for (uint32_t i = 0; i < session->n_times; i++) {
        const struct esp_time_sum *t = &session->times[i];
        store->times[i] = (struct esp_stage_time){.worker = t->worker,
                                                  .queue_seconds = t->queue_seconds,
                                                  .compute_seconds = t->compute_seconds,
                                                  .received_bytes = t->received_bytes};
        store->decode_times[i] = (struct esp_stage_time){.worker = t->worker,
                                                         .queue_seconds = t->decode_queue_seconds,
                                                         .compute_seconds = t->decode_compute_seconds,
                                                         .received_bytes = t->decode_received_bytes};
    }
    memset(msg, 0, sizeof *msg);
    msg->kind = ESP_MSG_DONE;
    msg->done = (struct esp_msg_done){.session = session->request,
                                      .best = store->hyps[0],
                                      .load = session->load,
                                      .encode = span(session->admitted_at, encoded),
                                      .prefill = span(encoded, session->first_result),
                                      .decode = span(session->first_result, session->ended),
                                      .queue = span(session->queued_from, session->admitted_at),
                                      .images_cached = session->n_cached,
                                      .rebuilds = session->n_rebuilds,
                                      .n_times = session->n_times,
                                      .times = store->times,
                                      .n_decode_times = session->n_times,
                                      .decode_times = store->decode_times,
                                      .decode_steps = session->n_decode_steps,
                                      .result_bytes = session->result_bytes};
    if (esp_decode_chooses(session->decode)) {
        msg->done.hypotheses = store->hyps;
        msg->done.n_hypotheses = n;
    }
done:
    if (st)
        esp_session_done_finish(store);
    return st;
}

void esp_session_done_finish(struct esp_done_store *store)
{
    for (uint32_t i = 0; i < store->n_hyps; i++)
        free((char *)store->hyps[i].text);
    free(store->hyps);
    free(store->times);
    free(store->decode_times);
    memset(store, 0, sizeof *store);
}
