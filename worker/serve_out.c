/* The worker's conversation, what we say: to the coordinator, and to the stages after us. */
#include "worker/serve_state.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define HELLO_AGAIN_MS 3000 /* without an answer: dial anew and say Hello again */
#define LINGER_MS      500  /* for a last Error or Bye */

/* ---- sending ---- */

void esp_serve_post(struct esp_serve *s, struct esp_outbox *box, const struct esp_msg *msg,
                    struct esp_shared *blob, size_t n_bytes, struct esp_work *owner)
{
    struct esp_err err;
    esp_status st;
    uint64_t step = 0, image = 0;

    if (box == &s->control && !s->joined)
        return; /* whoever answers next starts the conversation anew */
    st = esp_outbox_put(box, msg, blob, n_bytes, owner, &err);
    if (!st)
        return;
    esp_log(s->log, ESP_LOG_ERROR, "epoch=%" PRIu64 " send_failed kind=%s cause=\"%s\"", s->epoch,
            esp_msg_name(msg->kind), err.text);
    if (msg->kind == ESP_MSG_ERROR)
        return;
    if (owner && owner->export) { /* a piece of a move: what it was for cannot come about */
        esp_serve_tell_error(s, st, err.text, 0, 0);
        return;
    }
    if (owner && owner->msg.kind == ESP_MSG_STEP)
        step = owner->msg.step.id;
    else if (owner && owner->msg.kind == ESP_MSG_ENCODE)
        image = owner->msg.encode.image;
    if (step || image)
        esp_serve_tell_error(s, st, err.text, step, image);
}

void esp_serve_tell_error_of(struct esp_serve *s, uint64_t epoch, esp_status code, const char *text,
                             uint64_t step, uint64_t image)
{
    struct esp_msg msg = {.kind = ESP_MSG_ERROR};
    struct esp_work *note;

    msg.error.code = code;
    msg.error.epoch = epoch;
    msg.error.step = step;
    msg.error.image = image;
    note = esp_work_create(&msg); /* holds the text while the message waits */
    if (!note) {
        esp_log(s->log, ESP_LOG_ERROR, "epoch=%" PRIu64 " step=%" PRIu64 " out_of_memory lost=\"%s\"", epoch,
                step, text);
        return;
    }
    esp_fail(&note->err, code, "%s", text);
    note->msg.error.text = note->err.text;
    esp_serve_tell(s, note);
}

void esp_serve_tell(struct esp_serve *s, struct esp_work *w)
{
    w->generation = s->generation;
    w->n_users = 1;
    esp_serve_post(s, &s->control, &w->msg, NULL, 0, w);
    esp_work_unref(&w);
}

void esp_serve_tell_error(struct esp_serve *s, esp_status code, const char *text, uint64_t step,
                          uint64_t image)
{
    esp_serve_tell_error_of(s, s->epoch, code, text, step, image);
}

void esp_serve_post_tensor(struct esp_serve *s, struct esp_outbox *box, const struct esp_msg *msg,
                           float **data, size_t n_floats, struct esp_work *owner)
{
    struct esp_shared *blob = esp_shared_create(*data);

    if (!blob) {
        esp_serve_tell_error(s, ESP_E_NOMEM, "out of memory", msg->kind == ESP_MSG_STEP ? msg->step.id : 0,
                             msg->kind == ESP_MSG_ENCODE && !owner->export ? msg->encode.image : 0);
        return;
    }
    *data = NULL;
    esp_serve_post(s, box, msg, blob, n_floats * sizeof(float), owner);
    esp_shared_unref(blob);
}

/* ---- the coordinator ---- */

/* What a handshake has come to is nothing that a message tells. */
void esp_serve_check_keys(struct esp_serve *s)
{
    struct esp_outbox *next[] = {&s->next_enc, &s->features, &s->next_dec};
    struct esp_err err;
    esp_status st;

    if (!s->opt->keys)
        return;
    st = s->control.link ? esp_link_check(s->control.link, &err) : ESP_OK;
    if (st)
        esp_err_prefix(&err, "coordinator at %s: ", s->opt->connect);
    if (st == ESP_E_CLOSED && !s->known) {
        esp_serve_end(s, ESP_E_ARG, err.text);
    } else if (st &&
               !s->key_trouble) { /* it may be another one for a while, or get its allow list put right */
        esp_log(s->log, ESP_LOG_WARN, "not_joined why=\"%s\" action=retry", err.text);
        s->key_trouble = true;
    } else if (!st && s->joined) {
        s->key_trouble = false;
    }
    for (size_t i = 0; i < sizeof next / sizeof next[0]; i++) {
        if (!next[i]->link || esp_link_check(next[i]->link, &err) != ESP_E_CLOSED)
            continue;
        esp_err_prefix(&err, "the next stage: ");
        esp_log(s->log, ESP_LOG_ERROR, "epoch=%" PRIu64 " next_stage_refuses why=\"%s\"", s->epoch, err.text);
        esp_outbox_close(next[i]);
        esp_serve_tell_error(s, ESP_E_ARG, err.text, 0, 0);
    }
    esp_serve_check_moves(s);
}

void esp_serve_hello(struct esp_serve *s)
{
    struct esp_msg msg = {.kind = ESP_MSG_HELLO};
    const struct esp_keys *keys = s->opt->keys;
    char identity[ESP_MAX_NAME + 18], key[ESP_KEY_TEXT + 1] = "";
    struct esp_err err;
    esp_status st;

    esp_serve_check_keys(s);
    if (s->end)
        return;
    if (keys) {
        esp_keys_identity(identity, keys, s->opt->name);
        esp_key_format(key, keys->public_key);
    }
    /* A new connection each time: it must not carry a second Hello, nor what was meant for an earlier
     * conversation. */
    esp_serve_weights_lost(s);
    s->hello_ns = esp_now_ns();
    s->hello_wait_ns = HELLO_AGAIN_MS * ESP_NS_A_MS;
    st = esp_outbox_open(&s->control, s->net, keys ? identity : s->opt->name, s->opt->connect,
                         keys ? keys->coordinator : NULL, 0, LINGER_MS, &err);
    if (st) {
        esp_serve_end(s, st, err.text);
        return;
    }
    msg.hello.name = s->opt->name;
    msg.hello.device = s->opt->device;
    msg.hello.endpoint = s->endpoint;
    memcpy(msg.hello.fingerprint, s->opt->fingerprint, sizeof msg.hello.fingerprint);
    msg.hello.software = ESP_VERSION;
    msg.hello.key = key;
    msg.hello.wants_weights = s->opt->streams;
    msg.hello.epoch = s->epoch;
    st = esp_outbox_try(&s->control, &msg, &err);
    if (st == ESP_E_PROTO || st == ESP_E_ARG)
        esp_serve_end(s, st, err.text); /* our own report makes no sense, and will not the next time */
    s->asked = !st;
}

/** The stage stays as it is. The clock says Hello again, at once if the last one was not just now. */
void esp_serve_lose(struct esp_serve *s, const char *why)
{
    esp_log(s->log, ESP_LOG_WARN, "epoch=%" PRIu64 " coordinator_lost why=\"%s\" action=hello", s->epoch,
            why);
    s->joined = s->asked = false;
    esp_serve_weights_lost(s);
}

void esp_serve_beat(struct esp_serve *s, uint64_t echo)
{
    struct esp_msg msg = {.kind = ESP_MSG_HEARTBEAT};
    struct esp_stage_info_out info;
    uint64_t n_bytes;

    msg.heartbeat.epoch =
        s->fresh ? 0 : s->epoch; /* an epoch of another conversation means nothing in this one */
    esp_runner_load(s->runner, &msg.heartbeat.n_queued, &n_bytes);
    esp_runner_info(s->runner, &info);
    msg.heartbeat.kv_used_blocks = info.kv_used_blocks;
    msg.heartbeat.n_seqs = info.n_seqs;
    msg.heartbeat.n_images = info.n_images;
    msg.heartbeat.echo = echo;
    s->beat_ns = esp_now_ns();
    esp_outbox_try(&s->control, &msg,
                   NULL); /* if its queue is full the coordinator has worse to care about */
}

/* ---- what the runner hands back ---- */

/** A placement to come, whose weights were loaded ahead. */
static void warmed(struct esp_serve *s, struct esp_work *w)
{
    const struct esp_msg_place *p = &w->msg.place;
    struct esp_msg msg = {.kind = ESP_MSG_WARMED};

    if (w->status == ESP_E_CANCELLED) { /* by the coordinator's next one: nobody waits for an answer */
        esp_log(s->log, ESP_LOG_DEBUG, "epoch=%" PRIu64 " warm_dropped", p->epoch);
        return;
    }
    if (w->status) {
        esp_log(s->log, ESP_LOG_WARN, "epoch=%" PRIu64 " warm_failed cause=\"%s\"", p->epoch, w->err.text);
        esp_serve_tell_error_of(s, p->epoch, w->status, w->err.text, 0, 0);
        return;
    }
    msg.warmed.epoch = p->epoch;
    msg.warmed.loaded_bytes = w->info.loaded_bytes;
    msg.warmed.weight_bytes = w->info.weight_bytes;
    msg.warmed.seconds = w->load_seconds;
    esp_log(s->log, ESP_LOG_INFO,
            "epoch=%" PRIu64 " warm encoder=[%u,%u) decoder=[%u,%u) loaded_mib=%" PRIu64 " seconds=%.2f",
            p->epoch, p->enc_lo, p->enc_hi, p->dec_lo, p->dec_hi, w->info.loaded_bytes >> 20,
            w->load_seconds);
    esp_serve_post(s, &s->control, &msg, NULL, 0, w);
}

static void placed(struct esp_serve *s, struct esp_work *w)
{
    const struct esp_msg_place *p = &w->msg.place;
    struct esp_msg msg = {.kind = ESP_MSG_READY};

    if (w->status) {
        esp_log(s->log, ESP_LOG_ERROR, "epoch=%" PRIu64 " load_failed cause=\"%s\"", s->epoch, w->err.text);
        s->state = ESP_IDLE;
        esp_serve_tell_error(s, w->status, w->err.text, 0, 0);
        return;
    }
    if (s->state == ESP_LOADING)
        s->state = ESP_READY;
    msg.ready.epoch = p->epoch;
    msg.ready.weight_bytes = w->info.weight_bytes;
    msg.ready.kv_bytes = w->info.kv_bytes;
    msg.ready.scratch_bytes = w->info.scratch_bytes;
    msg.ready.load_seconds = w->load_seconds;
    msg.ready.kv_blocks = w->info.kv_blocks;
    msg.ready.block_tokens = w->info.block_tokens;
    msg.ready.loaded_bytes = w->info.loaded_bytes;
    esp_log(s->log, ESP_LOG_INFO,
            "epoch=%" PRIu64 " %s encoder=[%u,%u) decoder=[%u,%u) weights_mib=%" PRIu64 " loaded_mib=%" PRIu64
            " kept_mib=%" PRIu64 " kv_mib=%" PRIu64 " scratch_mib=%" PRIu64 " seconds=%.2f",
            s->epoch, s->state == ESP_SPARE ? "spare" : "ready", p->enc_lo, p->enc_hi, p->dec_lo, p->dec_hi,
            w->info.weight_bytes >> 20, w->info.loaded_bytes >> 20,
            (w->info.weight_bytes - w->info.loaded_bytes) >> 20, w->info.kv_bytes >> 20,
            w->info.scratch_bytes >> 20, w->load_seconds);
    esp_serve_post(s, &s->control, &msg, NULL, 0, w);
}

static void send_traces(struct esp_serve *s, struct esp_work *w, uint64_t step, uint64_t image)
{
    for (uint32_t i = 0; i < w->out.n_traces; i++) {
        struct esp_stage_trace *t = &w->out.traces[i];
        struct esp_msg msg = {.kind = ESP_MSG_TRACE};

        msg.trace.epoch = s->epoch;
        msg.trace.step = step;
        msg.trace.image = image;
        msg.trace.name = t->name;
        msg.trace.rows = t->rows;
        msg.trace.width = t->width;
        esp_serve_post_tensor(s, &s->control, &msg, &t->data, (size_t)t->rows * t->width, w);
    }
}

static void encoded(struct esp_serve *s, struct esp_work *w)
{
    const struct esp_msg_encode *m = &w->msg.encode;
    struct esp_msg msg = {0};

    if (w->status) {
        esp_log(s->log, ESP_LOG_WARN, "epoch=%" PRIu64 " image=%" PRIu64 " encode_failed cause=\"%s\"",
                s->epoch, m->image, w->err.text);
        esp_serve_tell_error(s, w->status, w->err.text, 0, m->image);
        return;
    }
    send_traces(s, w, 0, m->image);
    if (w->stored) {
        msg.kind = ESP_MSG_STORED;
        msg.stored.epoch = m->epoch;
        msg.stored.image = m->image;
        msg.stored.n_times = w->times ? w->n_times : m->n_times;
        msg.stored.times = w->times ? w->times : m->times;
        esp_serve_post(s, &s->control, &msg, NULL, 0, w);
        return;
    }
    msg.kind = ESP_MSG_ENCODE;
    msg.encode = *m;
    msg.encode.payload = w->out.payload;
    msg.encode.rows = w->out.n_rows;
    msg.encode.width = w->out.width;
    msg.encode.n_times = w->times ? w->n_times : m->n_times;
    msg.encode.times = w->times ? w->times : m->times;
    esp_serve_post_tensor(s, w->out.payload == ESP_PAYLOAD_FEATURES ? &s->features : &s->next_enc, &msg,
                          &w->out.rows, (size_t)w->out.n_rows * w->out.width, w);
}

static void stepped(struct esp_serve *s, struct esp_work *w)
{
    const struct esp_msg_step *m = &w->msg.step;
    const struct esp_stage_time *times = w->times ? w->times : m->times;
    uint32_t n_times = w->times ? w->n_times : m->n_times;
    struct esp_msg msg = {0};

    if (w->status) {
        esp_log(s->log, ESP_LOG_WARN, "epoch=%" PRIu64 " step=%" PRIu64 " step_failed cause=\"%s\"", s->epoch,
                m->id, w->err.text);
        esp_serve_tell_error(s, w->status, w->err.text, m->id, 0);
        if (m->n_free > 0 &&
            s->next_dec.link) { /* the step ends here, but others are to forget what we forgot */
            msg.kind = ESP_MSG_RELEASE;
            msg.release.epoch = m->epoch;
            msg.release.n_seqs = m->n_free;
            msg.release.seqs = m->free;
            esp_serve_post(s, &s->next_dec, &msg, NULL, 0, w);
        }
        return;
    }
    send_traces(s, w, m->id, 0);
    if (s->place.head) {
        msg.kind = ESP_MSG_RESULT;
        msg.result.epoch = m->epoch;
        msg.result.step = m->id;
        msg.result.n_rows = w->out.n_results;
        msg.result.rows = w->out.results;
        msg.result.n_full = w->out.n_full;
        msg.result.vocab = w->out.vocab;
        msg.result.n_times = n_times;
        msg.result.times = times;
        if (w->out.n_full > 0)
            esp_serve_post_tensor(s, &s->control, &msg, &w->out.full, (size_t)w->out.n_full * w->out.vocab,
                                  w);
        else
            esp_serve_post(s, &s->control, &msg, NULL, 0, w);
        return;
    }
    msg.kind = ESP_MSG_STEP;
    msg.step = *m;
    msg.step.payload = ESP_PAYLOAD_ROWS;
    msg.step.rows = w->out.n_rows;
    msg.step.width = w->out.width;
    msg.step.n_times = n_times;
    msg.step.times = times;
    esp_serve_post_tensor(s, &s->next_dec, &msg, &w->out.rows, (size_t)w->out.n_rows * w->out.width, w);
}

static void released(struct esp_serve *s, struct esp_work *w)
{
    struct esp_msg msg = {.kind = ESP_MSG_RELEASE};

    if (!s->next_dec.link)
        return;
    msg.release = w->msg.release;
    esp_serve_post(s, &s->next_dec, &msg, NULL, 0, w);
}

void esp_serve_finish(struct esp_serve *s, struct esp_work *w)
{
    w->n_users = 1;
    if (w->msg.kind == ESP_MSG_MANIFEST) {
        esp_serve_weights_changed(s, w);
    } else if (w->msg.kind == ESP_MSG_VERIFY) {
        esp_serve_verify_ran(s, w);
    } else if (w->generation != s->generation) {
        esp_log(s->log, ESP_LOG_DEBUG, "epoch=%" PRIu64 " stale kind=%s", s->epoch,
                esp_msg_name(w->msg.kind));
        if (w->status == ESP_E_DEVICE)
            esp_serve_tell_error(s, w->status, w->err.text, 0, 0);
    } else if (w->msg.kind == ESP_MSG_PLACE) {
        if (w->msg.place.warm)
            warmed(s, w);
        else
            placed(s, w);
    } else if (w->export) {
        esp_serve_exported(s, w);
    } else if (w->msg.kind == ESP_MSG_KV_BLOCKS) {
        esp_serve_imported(s, w);
    } else if (w->msg.kind == ESP_MSG_ENCODE) {
        esp_serve_claim(s, w);
        encoded(s, w);
    } else if (w->msg.kind == ESP_MSG_STEP) {
        esp_serve_claim(s, w);
        stepped(s, w);
    } else if (w->msg.kind == ESP_MSG_RELEASE) {
        released(s, w);
    } else if (w->msg.kind == ESP_MSG_VERIFIED) {
        esp_serve_post(s, &s->control, &w->msg, NULL, 0, w);
    } else if (w->msg.kind == ESP_MSG_LOADING && s->joined) {
        esp_serve_weights_progress(s, &w->msg.loading);
        esp_outbox_try(&s->control, &w->msg, NULL); /* another one follows */
    }
    if (w->status == ESP_E_DEVICE) /* nothing this process computes from here on could be trusted */
        esp_serve_end(s, ESP_E_DEVICE, w->err.text);
    esp_work_unref(&w);
}
