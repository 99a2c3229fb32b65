/* The work of the stages: the pictures and steps that go out, and what comes back of them. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/server_state.h"

/* ---- what comes back ---- */

static void on_stored(struct esp_server *sv, struct esp_worker *w, const struct esp_msg_stored *stored)
{
    struct esp_feature *f = esp_sched_feature(sv->sched, stored->image);

    if (esp_server_move_stored(sv, w, stored->image))
        return;
    if (sv->cluster.dec[0] != w || !f || f->state != ESP_FEATURE_SENT) {
        esp_server_drop_worker(sv, w, ESP_E_PROTO, "stored a picture that was not on its way to it", true);
        return;
    }
    for (struct esp_session *s = esp_sched_first(sv->sched); s; s = s->next)
        for (uint32_t i = 0; s->state == ESP_SESSION_ENCODING && i < s->n_images; i++)
            if (s->features[i] == f) {
                esp_session_add_times(s, stored->n_times, stored->times, false);
                break;
            }
    esp_server_count_stored(sv, stored);
    esp_sched_stored(sv->sched, f, NULL, esp_now_seconds());
}

static void relay_logits(struct esp_server *sv, struct esp_session *s, const struct esp_flight *f,
                         const float *full)
{
    const struct esp_msg_trace trace = {.epoch = f->step.epoch,
                                        .step = f->step.id,
                                        .name = "prefill.logits",
                                        .rows = f->n_full,
                                        .width = sv->config->text.vocab};
    const struct esp_blob blob = {.data = full,
                                  .n_bytes = (size_t)f->n_full * sv->config->text.vocab * sizeof *full};

    if (f->n_full > 0)
        esp_server_relay_trace(sv, s, &trace, &blob);
}

static void take_rows(struct esp_server *sv, const struct esp_worker *w, const struct esp_flight *f,
                      const struct esp_msg_result *result, const float *full, uint64_t n_bytes)
{
    const double now = esp_now_seconds();
    bool decode = true; /* a step is of one kind */

    for (uint32_t i = 0; i < f->step.n_seqs; i++)
        decode = decode && f->step.seqs[i].pos > 0;

    for (uint32_t i = 0; i < f->n_parts; i++) {
        const struct esp_flight_part *p = &f->parts[i];
        struct esp_session *s = p->session;
        struct esp_err err = {0};
        bool done = false;

        esp_session_add_times(s, result->n_times, result->times, decode);
        s->n_decode_steps += decode;
        s->result_bytes += decode ? n_bytes : 0;
        if (s->state != ESP_SESSION_RUNNING)
            continue; /* it has ended meanwhile */
        if (f->step.trace)
            relay_logits(sv, s, f, full);
        if (s->first_result == 0)
            s->first_result = now;
        if (s->lost_at > 0 && p->n_wants > 0) {
            esp_log(sv->log, ESP_LOG_INFO, "session=%" PRIu64 " recovered epoch=%" PRIu64 " seconds=%.3f",
                    s->id, f->step.epoch, now - s->lost_at);
            s->lost_at = 0;
        }
        if (esp_decode_take(s->decode, result->rows + p->want,
                            full ? full + (size_t)p->full * sv->config->text.vocab : NULL, &done, &err)) {
            esp_err_prefix(&err, "worker %s: ", w->name);
            esp_sched_end(sv->sched, s, &err, now);
        } else if (done) {
            esp_sched_end(sv->sched, s, NULL, now);
        }
    }
}

static void on_result(struct esp_server *sv, struct esp_worker *w, struct esp_msg *msg)
{
    struct esp_flight *f = esp_sched_flight(sv->sched, msg->result.step);
    float *copy = NULL;
    const float *full = NULL;
    struct esp_err err = {0};

    if (sv->cluster.n_dec == 0 || sv->cluster.dec[sv->cluster.n_dec - 1] != w || !f) {
        esp_server_drop_worker(sv, w, ESP_E_PROTO, "the result of a step that was not on its way to it",
                               true);
        return;
    }
    if (msg->n_blobs > 0) {
        full = msg->blob[0].data;
        if ((uintptr_t)full % _Alignof(float) != 0) {
            copy = malloc(msg->blob[0].n_bytes);
            if (!copy) {
                esp_fail(&err, ESP_E_NOMEM, "%zu bytes of logits", msg->blob[0].n_bytes);
                esp_sched_fail_step(sv->sched, &f, &err, esp_now_seconds());
                return;
            }
            memcpy(copy, full, msg->blob[0].n_bytes);
            full = copy;
        }
    }
    if (esp_flight_check(f, &msg->result, full, sv->config->text.vocab, &err)) {
        esp_err_prefix(&err, "a result that does not answer step %" PRIu64 ": ", f->step.id);
        esp_server_drop_worker(sv, w, err.code, err.text, true);
    } else {
        esp_server_count_result(sv, &f->step, &msg->result);
        esp_released_prove(&sv->released, f->step.id);
        take_rows(sv, w, f, &msg->result, full, msg->n_bytes);
        esp_sched_land(sv->sched, &f);
    }
    free(copy);
}

static void on_error(struct esp_server *sv, struct esp_worker *w, const struct esp_msg_error *e)
{
    struct esp_err err;

    esp_fail(&err, e->code, "worker %s: %s", w->name, e->text);
    if (e->step) {
        struct esp_flight *f = esp_sched_flight(sv->sched, e->step);

        if (!f) { /* told twice, or by two stages: fine, if there ever was such a step */
            if (e->step > esp_sched_last_step(sv->sched))
                esp_server_drop_worker(sv, w, ESP_E_PROTO, "an error of a step that has not been", true);
            return;
        }
        esp_log(sv->log, ESP_LOG_ERROR,
                "worker=%s epoch=%" PRIu64 " step=%" PRIu64 " failed sessions=%u why=\"%s\"", w->name,
                e->epoch, e->step, f->n_parts, e->text);
        esp_sched_fail_step(sv->sched, &f, &err, esp_now_seconds());
    } else {
        struct esp_feature *f = esp_sched_feature(sv->sched, e->image);

        if (!f || f->state != ESP_FEATURE_SENT)
            return; /* told twice */
        esp_log(sv->log, ESP_LOG_ERROR, "worker=%s epoch=%" PRIu64 " image=%" PRIu64 " failed why=\"%s\"",
                w->name, e->epoch, e->image, e->text);
        esp_sched_stored(sv->sched, f, &err, esp_now_seconds());
    }
}

static void on_trace(struct esp_server *sv, const struct esp_msg *msg)
{
    const struct esp_msg_trace *t = &msg->trace;

    for (struct esp_session *s = esp_sched_first(sv->sched); s; s = s->next) {
        struct esp_msg_trace out = *t;

        if (!s->trace || s->client_gone || s->final_sent)
            continue;
        if (t->step && s->trace_step == t->step && s->trace_epoch == t->epoch) {
            esp_server_relay_trace(sv, s, &out, &msg->blob[0]);
            return;
        }
        for (uint32_t i = 0; t->image && i < s->n_images; i++) {
            if (s->images[i] != t->image)
                continue;
            out.image = i + 1; /* the client knows its pictures by their place in the request */
            esp_server_relay_trace(sv, s, &out, &msg->blob[0]);
            return;
        }
    }
}

void esp_server_from_stage(struct esp_server *sv, struct esp_worker *w, struct esp_msg *msg)
{
    switch (msg->kind) {
    case ESP_MSG_STORED:
        on_stored(sv, w, &msg->stored);
        break;
    case ESP_MSG_RESULT:
        on_result(sv, w, msg);
        break;
    case ESP_MSG_ERROR:
        on_error(sv, w, &msg->error);
        break;
    default: /* ESP_MSG_TRACE */
        on_trace(sv, msg);
        break;
    }
}

/* ---- what goes out ---- */

static void send_picture(struct esp_server *sv, struct esp_session *s, uint32_t i)
{
    const uint32_t side = sv->config->vision.image_size;
    const size_t n = (size_t)3 * side * side; /* floats */
    struct esp_msg msg = {.kind = ESP_MSG_ENCODE, .n_blobs = 1};

    msg.encode = (struct esp_msg_encode){.epoch = sv->cluster.epoch,
                                         .image = s->features[i]->image,
                                         .payload = ESP_PAYLOAD_PIXELS,
                                         .rows = 3 * side,
                                         .width = side,
                                         .trace = s->trace && esp_decode_n_steps(s->decode) == 0};
    msg.blob[0] = (struct esp_blob){.data = s->job->pixels + i * n, .n_bytes = n * sizeof(float)};
    esp_server_tell_worker(sv, sv->cluster.enc[0], &msg);
}

void esp_server_release(struct esp_server *sv, const uint64_t *seqs, uint32_t n_seqs, const uint64_t *images,
                        uint32_t n_images)
{
    struct esp_msg msg = {.kind = ESP_MSG_RELEASE};
    const uint64_t step = esp_sched_last_step(sv->sched);

    msg.release = (struct esp_msg_release){
        .epoch = sv->cluster.epoch, .n_seqs = n_seqs, .seqs = seqs, .n_images = n_images, .images = images};
    esp_server_tell_worker(sv, sv->cluster.dec[0], &msg);
    esp_released_add(&sv->released, seqs, n_seqs, false, step);
    esp_released_add(&sv->released, images, n_images, true, step);
}

void esp_server_dispatch(struct esp_server *sv)
{
    uint64_t seqs[ESP_MAX_SEQS], images[ESP_MAX_SEQS];
    uint32_t n_seqs, n_images, index;
    struct esp_session *s;
    struct esp_flight *f;
    const double now = esp_now_seconds();

    if (sv->move.state >= ESP_MOVE_QUIET)
        return; /* what the workers hold must not change */
    /* What is over first: it makes room. */
    while (esp_sched_reap(sv->sched, seqs, &n_seqs, images, &n_images, ESP_MAX_SEQS))
        esp_server_release(sv, seqs, n_seqs, images, n_images);
    while ((s = esp_sched_admit(sv->sched, now))) {
        if (s->queued_from == 0) {
            s->queued_from = s->prepared > sv->ready_at ? s->prepared : sv->ready_at;
            s->load = s->arrived < sv->ready_at ? sv->ready_at - sv->waiting_since : 0;
        }
        esp_log(sv->log, ESP_LOG_DEBUG,
                "session=%" PRIu64 " admitted rows=%u seqs=%u blocks=%" PRIu64 " cached=%u rebuilds=%u",
                s->id, esp_decode_first_rows(s->decode), s->n_seqs, s->n_blocks, s->n_cached, s->n_rebuilds);
    }
    while (esp_sched_next_encode(sv->sched, &s, &index, now))
        send_picture(sv, s, index);
    while ((f = esp_sched_next_step(sv->sched, now))) {
        struct esp_msg msg = {.kind = ESP_MSG_STEP, .n_blobs = 1};
        msg.step = f->step;
        msg.blob[0] = (struct esp_blob){.data = f->ids, .n_bytes = f->step.rows * sizeof *f->ids};
        esp_log(sv->log, ESP_LOG_TRACE, "step=%" PRIu64 " sessions=%u rows=%u seqs=%u", f->step.id,
                f->n_parts, f->step.rows, f->step.n_seqs);
        esp_server_tell_worker(sv, sv->cluster.dec[0], &msg);
    }
}
