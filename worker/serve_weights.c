/* The worker's conversation, weights: a worker without a checkpoint gets a manifest and fetches chunks. What is wanted and
 * what has come is depot.c's business. */
#include "worker/serve_state.h"

#include <inttypes.h>
#include <stdio.h>

esp_status esp_serve_weights_open(struct esp_serve *s, struct esp_err *err)
{
    if (!s->opt->streams)
        return ESP_OK;
    return esp_depot_create(&s->depot, s->opt->cache_dir, s->opt->cache_limit_bytes, s->log, err);
}

static void drop_held(struct esp_serve *s)
{
    for (int i = 0; i < 2; i++)
        esp_work_destroy(&s->held[i]);
}

void esp_serve_weights_close(struct esp_serve *s)
{
    drop_held(s);
    esp_depot_destroy(&s->depot);
}

static bool may_ask(const struct esp_serve *s)
{
    return s->depot && s->joined && s->supplied && s->control.n_pending == 0;
}

int esp_serve_weights_fd(const struct esp_serve *s)
{
    return may_ask(s) ? esp_depot_fd(s->depot) : esp_runner_fd(s->runner);
}

uint64_t esp_serve_weights_patience_ns(const struct esp_serve *s)
{
    return s->depot && s->joined ? esp_depot_patience_ns(s->depot) : 0;
}

void esp_serve_weights_ask(struct esp_serve *s)
{
    struct esp_msg msg = {.kind = ESP_MSG_FETCH};

    while (may_ask(s) && esp_depot_fetch(s->depot, &msg.fetch)) {
        struct esp_err err;

        if (!esp_outbox_put(&s->control, &msg, NULL, 0, NULL, &err))
            continue;
        esp_log(s->log, ESP_LOG_ERROR, "send_failed kind=fetch cause=\"%s\"", err.text);
        s->supplied = false; /* until it has said hello again */
        esp_serve_lose(s, "it cannot be asked for weights");
    }
}

void esp_serve_weights_lost(struct esp_serve *s)
{
    s->supplied = false;
    if (s->depot)
        esp_depot_lost(s->depot);
}

static void push(struct esp_serve *s, struct esp_work *work)
{
    const struct esp_msg_place *p = &work->msg.place;
    const struct esp_stage_spec spec = {.enc_lo = p->enc_lo,
                                        .enc_hi = p->enc_hi,
                                        .dec_lo = p->dec_lo,
                                        .dec_hi = p->dec_hi,
                                        .patch = p->patch,
                                        .projector = p->projector,
                                        .embed = p->embed,
                                        .head = p->head};

    if (s->depot)
        esp_depot_want(s->depot, &spec);
    esp_runner_push(s->runner, work);
}

void esp_serve_weights_place(struct esp_serve *s, struct esp_work *work)
{
    const struct esp_msg_place *p = &work->msg.place;
    const bool layers = p->enc_lo < p->enc_hi || p->dec_lo < p->dec_hi;

    if (!p->warm)
        drop_held(s);
    if (!s->depot || s->supplied || !layers) {
        push(s, work);
        return;
    }
    /* The coordinator is still at the manifest. */
    esp_work_destroy(&s->held[p->warm]);
    s->held[p->warm] = work;
}

void esp_serve_weights_progress(const struct esp_serve *s, struct esp_msg_loading *loading)
{
    uint64_t done, total;

    if (!s->depot)
        return;
    esp_depot_progress(s->depot, &done, &total);
    if (done < total) {
        loading->done_bytes = done;
        loading->total_bytes = total;
    }
}

/* The runner changes over to another checkpoint; it has everything of the former one destroyed by then. */
static esp_status change(struct esp_serve *s, struct esp_checkpoint *ck, struct esp_msg *msg,
                         struct esp_err *err)
{
    struct esp_work *work;
    struct esp_shelf *shelf;
    esp_status st = esp_shelf_create(&shelf, s->opt->vk, ck, esp_depot_need, s->depot, err);

    if (st)
        return st;
    esp_serve_verify_finish(s); /* it reads the former one's tensors */
    work = esp_work_create(msg);
    if (!work) {
        esp_shelf_destroy(&shelf);
        return esp_fail(err, ESP_E_NOMEM, "no memory for a checkpoint");
    }
    work->shelf = shelf;
    work->ck = ck;
    s->state = ESP_IDLE;
    esp_runner_push(s->runner, work);
    return ESP_OK;
}

esp_status esp_serve_on_manifest(struct esp_serve *s, enum esp_source from, struct esp_msg *msg,
                                 struct esp_err *err)
{
    const struct esp_msg_manifest *m = &msg->manifest;
    struct esp_checkpoint *ck;
    const enum esp_state state = s->state; /* as on_place left it, if it was there already */
    char mark[17];
    esp_status st;

    if (!s->depot)
        return esp_fail(err, ESP_E_PROTO, "a manifest, though there is a checkpoint here");
    st = esp_depot_manifest(s->depot, &ck, msg, s->opt->connect, err);
    if (st) {
        esp_serve_tell_error(s, st, err->text, 0, 0);
        return st;
    }
    for (int i = 0; i < 8; i++)
        snprintf(mark + 2 * i, 3, "%02x", m->fingerprint[i]);
    esp_log(s->log, ESP_LOG_INFO, "manifest fingerprint=%s tensors=%u chunk_kib=%u checkpoint=%s", mark,
            m->n_tensors, m->chunk_bytes >> 10, ck ? "new" : "same");
    if (ck && (st = change(s, ck, msg, err))) {
        esp_serve_end(s, st, err->text);
        return st;
    }
    s->supplied = true;
    for (int i = 0; i < 2; i++) {
        struct esp_work *held = s->held[i];

        s->held[i] = NULL;
        if (!held)
            continue;
        if (!held->msg.place.warm)
            s->state = state;
        push(s, held);
    }
    return ESP_OK;
}

esp_status esp_serve_on_chunk(struct esp_serve *s, enum esp_source from, struct esp_msg *msg,
                              struct esp_err *err)
{
    if (!s->depot)
        return esp_fail(err, ESP_E_PROTO, "a chunk of weights, though there is a checkpoint here");
    return esp_depot_take(s->depot, msg, err);
}

void esp_serve_weights_changed(struct esp_serve *s, struct esp_work *work)
{
    esp_serve_verify_finish(s); /* it may be reading the former one's tensors */
    if (!work->status)          /* else the device is lost, and nothing has changed */
        esp_depot_retire(s->depot, work->ck);
}
