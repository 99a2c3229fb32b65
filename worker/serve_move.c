/*
 * The worker's conversation, layers that change hands with their KV cache and pictures: sent away on the coordinator's
 * word, taken from whoever brings what is waited for.
 *
 * A Move is done piece by piece: the net thread asks the runner for one, sends it, and asks for the next when the last
 * but one has left, so that no more than a few pieces wait anywhere, however large the cache is. Moves are done one after
 * the other. Their links stay until the next placement: what is on its way would be lost if they were closed.
 */
#include "worker/serve_state.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PIECES_WAITING 2 /* in the outbox, and as many in ZeroMQ's queue */

struct esp_move {
    struct esp_move *next;
    struct esp_outbox box;
    struct esp_work *order; /* holds the Move */
    uint32_t layer, block;  /* the next piece's first */
    uint32_t image;         /* the next picture, once the layers are through */
    bool asked;             /* the runner is at a piece */
    bool done;              /* all of it has been handed to the outbox, or it failed */
    uint64_t n_bytes, began_ns;
};

/* ---- sending ---- */

static void move_destroy(struct esp_move *m)
{
    esp_outbox_close(&m->box);
    esp_work_destroy(&m->order);
    free(m);
}

void esp_serve_end_moves(struct esp_serve *s)
{
    while (s->moves) {
        struct esp_move *m = s->moves;
        s->moves = m->next;
        move_destroy(m);
    }
    s->n_moves = 0;
}

esp_status esp_serve_on_move(struct esp_serve *s, enum esp_source from, struct esp_msg *msg,
                             struct esp_err *err)
{
    struct esp_move **at = &s->moves, *m;
    char kind[32];
    esp_status st;

    (void)from;
    if (s->n_moves >= s->place.n_moves)
        return esp_fail(err, ESP_E_PROTO, "a move more than the %u that were announced", s->place.n_moves);
    m = calloc(1, sizeof *m);
    if (!m)
        return esp_fail(err, ESP_E_NOMEM, "no memory for a move");
    snprintf(kind, sizeof kind, "move%u", s->n_moves);
    st = esp_serve_dial(s, &m->box, kind, msg->move.to, msg->move.to_key, PIECES_WAITING, err);
    if (!st && !(m->order = esp_work_create(msg)))
        st = esp_fail(err, ESP_E_NOMEM, "no memory for a move");
    if (st) {
        move_destroy(m);
        return st;
    }
    m->layer = m->order->msg.move.dec_lo;
    m->began_ns = esp_now_ns();
    while (*at)
        at = &(*at)->next;
    *at = m;
    s->n_moves++;
    return ESP_OK;
}

/** The move at hand: the first that is not done; NULL: none. */
static struct esp_move *current(const struct esp_serve *s)
{
    struct esp_move *m = s->moves;

    while (m && m->done)
        m = m->next;
    return m;
}

/** Everything of a move has been sent off, or it has failed. With the last one what was kept for them may go. */
static void end_move(struct esp_serve *s, struct esp_move *m)
{
    struct esp_msg msg = {.kind = ESP_MSG_MOVE};
    struct esp_work *work;

    m->done = true;
    if (s->n_moves < s->place.n_moves || current(s))
        return;
    work = esp_work_create(&msg);
    if (!work) { /* it goes with the next placement then */
        esp_log(s->log, ESP_LOG_ERROR, "epoch=%" PRIu64 " out_of_memory", s->epoch);
        return;
    }
    work->generation = s->generation;
    esp_runner_push(s->runner, work);
}

static void fail_move(struct esp_serve *s, struct esp_move *m, esp_status st, const char *text)
{
    esp_log(s->log, ESP_LOG_ERROR, "epoch=%" PRIu64 " move_failed to=%s cause=\"%s\"", s->epoch,
            m->order->msg.move.to, text);
    esp_serve_tell_error(s, st, text, 0, 0); /* so the placement is void, and the other moves with it */
    for (struct esp_move *i = s->moves; i; i = i->next)
        i->done = true;
    end_move(s, m);
}

/** Has the runner make the next piece. */
static void ask(struct esp_serve *s, struct esp_move *m)
{
    const struct esp_msg_move *order = &m->order->msg.move;
    struct esp_msg msg = {0};
    struct esp_work *work;

    if (m->layer < order->dec_hi) {
        msg.kind = ESP_MSG_KV_BLOCKS;
        msg.kv_blocks.epoch = s->epoch;
        msg.kv_blocks.layer = m->layer;
        msg.kv_blocks.first = m->block;
    } else {
        msg.kind = ESP_MSG_ENCODE;
        msg.encode.epoch = s->epoch;
        msg.encode.image = order->images[m->image];
    }
    work = esp_work_create(&msg);
    if (!work) {
        fail_move(s, m, ESP_E_NOMEM, "no memory for a move");
        return;
    }
    work->generation = s->generation;
    work->export = true;
    m->asked = true;
    esp_runner_push(s->runner, work);
}

bool esp_serve_pump_moves(struct esp_serve *s)
{
    struct esp_move *m;
    struct esp_err err;
    esp_status st;
    bool waiting = false;

    for (struct esp_move *i = s->moves; i; i = i->next) {
        while ((st = esp_outbox_flush(&i->box, &err)) != ESP_OK)
            fail_move(s, i, st, err.text);
        waiting |= i->box.n_pending > 0;
    }
    m = current(s);
    if (m && !m->asked && m->box.n_pending < PIECES_WAITING)
        ask(s, m);
    return waiting;
}

/** A piece of a layer's KV, on its way. */
static void send_kv(struct esp_serve *s, struct esp_move *m, struct esp_work *w)
{
    struct esp_msg msg = {.kind = ESP_MSG_KV_BLOCKS, .kv_blocks = w->kv.msg};
    const struct esp_msg_kv_blocks *b = &msg.kv_blocks;
    const size_t n_floats = (size_t)b->n_blocks * b->block_tokens * b->width;

    msg.kv_blocks.epoch = s->epoch;
    if (b->n_blocks > 0)
        esp_serve_post_tensor(s, &m->box, &msg, &w->kv.data, n_floats, w);
    else
        esp_serve_post(s, &m->box, &msg, NULL, 0, w);
    m->n_bytes += n_floats * sizeof(float);
    m->block += b->n_blocks;
    if (m->block >= b->total_blocks) {
        m->layer++;
        m->block = 0;
    }
}

static void send_features(struct esp_serve *s, struct esp_move *m, struct esp_work *w)
{
    struct esp_msg msg = {.kind = ESP_MSG_ENCODE};

    msg.encode.epoch = s->epoch;
    msg.encode.image = w->msg.encode.image;
    msg.encode.payload = ESP_PAYLOAD_FEATURES;
    msg.encode.rows = w->out.n_rows;
    msg.encode.width = w->out.width;
    m->n_bytes += (uint64_t)w->out.n_rows * w->out.width * sizeof(float);
    esp_serve_post_tensor(s, &m->box, &msg, &w->out.rows, (size_t)w->out.n_rows * w->out.width, w);
    m->image++;
}

/** Whether a piece is the one that a move has asked for, and not of one that was given up. */
static bool is_of(const struct esp_move *m, const struct esp_work *w)
{
    const struct esp_msg_move *order = &m->order->msg.move;

    if (!m->asked)
        return false;
    if (w->msg.kind == ESP_MSG_KV_BLOCKS)
        return w->msg.kv_blocks.layer == m->layer && w->msg.kv_blocks.first == m->block;
    return m->layer == order->dec_hi && w->msg.encode.image == order->images[m->image];
}

void esp_serve_exported(struct esp_serve *s, struct esp_work *w)
{
    struct esp_move *m = current(s);
    const struct esp_msg_move *order;

    if (!m || !is_of(m, w))
        return;
    m->asked = false;
    if (w->status) {
        fail_move(s, m, w->status, w->err.text);
        return;
    }
    if (w->msg.kind == ESP_MSG_KV_BLOCKS)
        send_kv(s, m, w);
    else
        send_features(s, m, w);
    order = &m->order->msg.move;
    if (m->layer < order->dec_hi || m->image < order->n_images)
        return;
    esp_log(s->log, ESP_LOG_INFO,
            "epoch=%" PRIu64 " moved to=%s decoder=[%u,%u) images=%u mib=%" PRIu64 " seconds=%.2f", s->epoch,
            order->to, order->dec_lo, order->dec_hi, order->n_images, m->n_bytes >> 20,
            1e-9 * (double)(esp_now_ns() - m->began_ns));
    end_move(s, m);
}

void esp_serve_check_moves(struct esp_serve *s)
{
    struct esp_err err;

    for (struct esp_move *m = s->moves; m; m = m->next) {
        if (!m->box.link || esp_link_check(m->box.link, &err) != ESP_E_CLOSED)
            continue;
        esp_err_prefix(&err, "the worker that layers go to: ");
        esp_outbox_close(&m->box);
        m->asked = false;
        fail_move(s, m, ESP_E_ARG, err.text); /* also if all had been handed over: none of it arrived */
    }
}

/* ---- taking ---- */

esp_status esp_serve_on_kv_blocks(struct esp_serve *s, enum esp_source from, struct esp_msg *msg,
                                  struct esp_err *err)
{
    const struct esp_msg_kv_blocks *m = &msg->kv_blocks;
    struct esp_work *work;

    if (s->place.carry == 0 || m->layer < s->place.dec_lo || m->layer >= s->place.dec_hi)
        return esp_fail(err, ESP_E_PROTO, "KV of layer %u, which is not waited for", m->layer);
    if (!esp_serve_has_room(s, from))
        return esp_fail(err, ESP_E_LIMIT, "too much work queued");
    work = esp_work_create(msg);
    if (!work)
        return esp_fail(err, ESP_E_NOMEM, "no memory to queue work");
    work->generation = s->generation;
    work->from = *s->peer;
    esp_runner_push(s->runner, work);
    return ESP_OK;
}

void esp_serve_imported(struct esp_serve *s, struct esp_work *w)
{
    struct esp_msg msg = {.kind = ESP_MSG_MOVED};
    char who[64];

    if (w->status) {
        /* Logged, not told, as with all that comes on that socket; a coordinator that misses a layer will not wait for
         * ever. Memory is our own affair. */
        if (esp_serve_may_log(s))
            esp_log(s->log, ESP_LOG_WARN, "refused from=%s epoch=%" PRIu64 " cause=\"%s\"",
                    esp_peer_text(&w->from, who, sizeof who), s->epoch, w->err.text);
        if (w->status == ESP_E_NOMEM)
            esp_serve_tell_error(s, w->status, w->err.text, 0, 0);
        return;
    }
    if (!w->layer_done)
        return;
    msg.moved.epoch = s->epoch;
    msg.moved.layer = w->msg.kv_blocks.layer;
    msg.moved.kv_blocks = w->msg.kv_blocks.total_blocks;
    msg.moved.n_bytes = w->layer_bytes;
    esp_log(s->log, ESP_LOG_DEBUG, "epoch=%" PRIu64 " layer=%u moved_here blocks=%u bytes=%" PRIu64, s->epoch,
            msg.moved.layer, w->msg.kv_blocks.total_blocks, w->layer_bytes);
    esp_serve_post(s, &s->control, &msg, NULL, 0, w);
}
