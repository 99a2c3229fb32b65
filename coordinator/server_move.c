/*
 * Layers that go to other workers with all they hold: for a worker that is to leave (drain), and for one that came and
 * makes a better placement worth while. Nothing is computed twice and nobody's answer is cut off.
 *
 *   WARMING  those who will get layers load their weights, while the old placement works on
 *   QUIET    no step goes out any more; those under way come home
 *   PLACING  everybody has its new place, which carries the old one on
 *   COPYING  who gave layers away sends their KV cache, and the pictures' features, to who has them now
 *
 * Then steps go out again. Whatever goes wrong before PLACING leaves the old placement as it was; what goes wrong later
 * is the loss of a cluster like any other, and sessions are rebuilt.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/server_state.h"

#define REBALANCE_S  1.0    /* after the last worker has come: others may be on their way */
#define WARM_S       120.0  /* a worker may load for so long without any progress */
#define MOVE_S       10.0   /* so long may nothing happen while layers move ... */
#define SLOW_NETWORK 1.25e6 /* ... and what a network of so many bytes/s takes for a layer's KV cache */
#define TELL_S       0.5

/* ---- who asked ---- */

static void tell_asker(struct esp_server *sv, const struct esp_drain_ask *ask, const char *what,
                       uint64_t done, uint64_t total)
{
    struct esp_msg msg = {.kind = ESP_MSG_WAITING};

    msg.waiting = (struct esp_msg_waiting){.session = ask->id, .what = what, .done = done, .total = total};
    (void)esp_link_send(sv->link, &ask->who, &msg, NULL); /* who has gone does not wait */
}

static void drop_ask(struct esp_server *sv, uint32_t i)
{
    sv->n_drains--;
    memmove(&sv->drain[i], &sv->drain[i + 1], (sv->n_drains - i) * sizeof sv->drain[0]);
}

static void refuse_drain(struct esp_server *sv, const struct esp_drain_ask *ask, esp_status code,
                         const char *text)
{
    struct esp_worker *w = esp_roster_named(sv->roster, ask->worker);

    if (w)
        w->draining = false;
    esp_log(sv->log, ESP_LOG_WARN, "worker=%s drain_refused why=\"%s\"", ask->worker, text);
    esp_server_tell_error(sv, &ask->who, ask->id, code, text);
}

/* It holds nothing that anyone needs: it is told to go, and whoever asked what was done. */
static void let_go(struct esp_server *sv, const struct esp_drain_ask *ask, const struct esp_msg_drained *done)
{
    struct esp_worker *w = esp_roster_named(sv->roster, ask->worker);
    struct esp_msg msg = {.kind = ESP_MSG_DRAINED};

    esp_log(sv->log, ESP_LOG_INFO,
            "worker=%s drained epoch=%" PRIu64 " layers=%u kv_bytes=%" PRIu64
            " images=%u seconds=%.3f pause_s=%.3f",
            ask->worker, done->epoch, done->n_layers, done->kv_bytes, done->n_images, done->seconds,
            done->pause);
    msg.drained = *done;
    msg.drained.id = ask->id;
    msg.drained.worker = ask->worker;
    (void)esp_link_send(sv->link, &ask->who, &msg, NULL);
    if (w) {
        struct esp_msg bye = {.kind = ESP_MSG_BYE, .bye = {.why = "drained"}};

        esp_server_tell_worker(sv, w, &bye);
        esp_server_verify_lost(sv, w, "drained");
        esp_server_weights_leave(sv, w);
        esp_roster_remove(sv->roster, &w);
    }
}

void esp_server_forget_drain(struct esp_server *sv, const struct esp_worker *w, const struct esp_err *why)
{
    for (uint32_t i = 0; i < sv->n_drains; i++) {
        if (strcmp(sv->drain[i].worker, w->name) != 0)
            continue;
        refuse_drain(sv, &sv->drain[i], why->code, why->text);
        drop_ask(sv, i--);
    }
    if (sv->move.is_drain && strcmp(sv->move.ask.worker, w->name) == 0) {
        refuse_drain(sv, &sv->move.ask, why->code, why->text);
        sv->move.is_drain = false; /* who comes back under that name is wanted */
    }
}

bool esp_server_give_up_drains(struct esp_server *sv, const struct esp_err *why)
{
    const bool any = sv->n_drains > 0;

    while (sv->n_drains > 0) {
        refuse_drain(sv, &sv->drain[0], why->code, why->text);
        drop_ask(sv, 0);
    }
    return any;
}

void esp_server_on_drain(struct esp_server *sv, const struct esp_peer *from, const struct esp_msg_drain *msg)
{
    struct esp_worker *w = esp_roster_named(sv->roster, msg->worker);
    struct esp_drain_ask ask = {.who = *from, .id = msg->id, .since = esp_now_seconds()};
    char text[ESP_ERR_TEXT_MAX];
    int at;

    if (!w) {
        at = snprintf(text, sizeof text, "no worker is named %s; here are:", msg->worker);
        for (uint32_t i = 0; i < esp_roster_count(sv->roster) && at < (int)sizeof text; i++)
            at += snprintf(text + at, sizeof text - (size_t)at, " %s", esp_roster_at(sv->roster, i)->name);
        esp_server_tell_error(sv, from, msg->id, ESP_E_ARG, text);
        return;
    }
    if (w->draining || sv->n_drains == ESP_SERVER_MAX_DRAINS) {
        snprintf(text, sizeof text,
                 w->draining ? "%s is being drained already" : "too many workers to drain before %s",
                 w->name);
        esp_server_tell_error(sv, from, msg->id, ESP_E_LIMIT, text);
        return;
    }
    esp_log(sv->log, ESP_LOG_INFO, "worker=%s drain_asked", w->name);
    snprintf(ask.worker, sizeof ask.worker, "%s", w->name);
    w->draining = true;
    sv->drain[sv->n_drains++] = ask;
}

/* ---- the move ---- */

static void finish(struct esp_server *sv)
{
    free(sv->move.plan);
    sv->move = (struct esp_move){0};
    sv->doing[0] = '\0';
    for (uint32_t i = 0; i < esp_roster_count(sv->roster); i++)
        esp_roster_at(sv->roster, i)->warm = ESP_WARM_NO;
}

void esp_server_move_abort(struct esp_server *sv, const char *text)
{
    struct esp_move *m = &sv->move;

    if (m->state == ESP_MOVE_NONE)
        return;
    esp_log(sv->log, ESP_LOG_WARN, "epoch=%" PRIu64 " move_aborted why=\"%s\"", m->epoch, text);
    if (m->is_drain && sv->n_drains < ESP_SERVER_MAX_DRAINS) /* and again, once the cluster stands */
        sv->drain[sv->n_drains++] = m->ask;
    esp_sched_pause(sv->sched, false);
    finish(sv);
}

bool esp_server_move_needs(const struct esp_server *sv, const struct esp_worker *w)
{
    if (sv->move.state < ESP_MOVE_PLACING)
        return false;
    for (uint32_t i = 0; i < sv->move.n_legs; i++)
        if (sv->move.leg[i].from == w && !sv->move.leg[i].over)
            return true;
    return false;
}

void esp_server_move_without(struct esp_server *sv, const struct esp_worker *w)
{
    if (sv->move.state != ESP_MOVE_NONE && esp_plan_find(sv->move.plan, w) < sv->move.plan->n_stages) {
        char text[128];

        snprintf(text, sizeof text, "worker %s is gone", w->name);
        esp_server_move_abort(sv, text);
    }
}

/* Whether a place calls for weights that the worker's present one does not. */
static bool lacks(const struct esp_worker *w, const struct esp_msg_place *p)
{
    const struct esp_msg_place *has = &w->place;

    return (p->enc_lo < p->enc_hi && (p->enc_lo < has->enc_lo || p->enc_hi > has->enc_hi)) ||
           (p->dec_lo < p->dec_hi && (p->dec_lo < has->dec_lo || p->dec_hi > has->dec_hi)) ||
           (p->patch && !has->patch) || (p->projector && !has->projector) ||
           ((p->embed || p->head) && !has->embed && !has->head);
}

static void quiet(struct esp_server *sv)
{
    sv->move.state = ESP_MOVE_QUIET;
    sv->move.paused = sv->move.progress = esp_now_seconds();
    esp_sched_pause(sv->sched, true);
}

/* Takes the plan over. */
static void begin(struct esp_server *sv, struct esp_plan *plan, const struct esp_drain_ask *ask)
{
    struct esp_move *m = &sv->move;
    uint32_t n_warming = 0;

    *m = (struct esp_move){.state = ESP_MOVE_WARMING,
                           .epoch = esp_cluster_next_epoch(&sv->cluster),
                           .carry = sv->cluster.epoch,
                           .plan = plan,
                           .is_drain = ask != NULL,
                           .began = esp_now_seconds(),
                           .progress = esp_now_seconds()};
    if (ask)
        m->ask = *ask;
    snprintf(sv->doing, sizeof sv->doing, ask ? "moving layers of %s" : "moving layers to a better placement",
             ask ? ask->worker : "");
    for (uint32_t i = 0; i < plan->n_stages; i++) {
        struct esp_worker *w = plan->stage[i].worker;
        struct esp_msg msg;

        if (!lacks(w, &plan->stage[i].place))
            continue;
        esp_plan_place(&msg, plan, i, m->epoch);
        msg.place.warm = true;
        w->warm = ESP_WARM_ASKED;
        w->warm_done = 0;
        w->warm_total = plan->stage[i].weight_bytes;
        esp_server_tell_worker(sv, w, &msg);
        n_warming++;
    }
    esp_log(sv->log, ESP_LOG_INFO, "epoch=%" PRIu64 " move_begun from_epoch=%" PRIu64 " %s%s warming=%u",
            m->epoch, m->carry, ask ? "drain=" : "why=better_placement", ask ? ask->worker : "", n_warming);
    if (n_warming == 0)
        quiet(sv);
}

bool esp_server_is_warming(const struct esp_server *sv, const struct esp_worker *w, uint64_t epoch)
{
    return sv->move.state == ESP_MOVE_WARMING && w->warm == ESP_WARM_ASKED && epoch == sv->move.epoch;
}

static void warm(struct esp_server *sv, struct esp_worker *w)
{
    w->warm = ESP_WARM_DONE;
    sv->move.progress = esp_now_seconds();
    for (uint32_t i = 0; i < esp_roster_count(sv->roster); i++)
        if (esp_roster_at(sv->roster, i)->warm == ESP_WARM_ASKED)
            return;
    quiet(sv);
}

void esp_server_on_warm_loading(struct esp_server *sv, struct esp_worker *w,
                                const struct esp_msg_loading *loading)
{
    w->warm_done = loading->done_bytes;
    w->warm_total = loading->total_bytes;
    sv->move.progress = esp_now_seconds();
}

void esp_server_on_warmed(struct esp_server *sv, struct esp_worker *w, const struct esp_msg_warmed *warmed)
{
    esp_log(sv->log, ESP_LOG_INFO,
            "worker=%s epoch=%" PRIu64 " warmed loaded_mib=%" PRIu64 " weights_mib=%" PRIu64 " load_s=%.2f",
            w->name, warmed->epoch, warmed->loaded_bytes >> 20, warmed->weight_bytes >> 20, warmed->seconds);
    w->warm_done = w->warm_total;
    warm(sv, w);
}

void esp_server_on_warm_error(struct esp_server *sv, struct esp_worker *w, const struct esp_msg_error *e)
{
    struct esp_move *m = &sv->move;
    char text[ESP_ERR_TEXT_MAX];

    esp_log(sv->log, ESP_LOG_WARN, "worker=%s epoch=%" PRIu64 " not_warmed why=\"%s\"", w->name, m->epoch,
            e->text);
    if (e->code ==
        ESP_E_NOMEM) { /* both placements at once are too much for it: it loads once the old one is gone */
        warm(sv, w);
        return;
    }
    snprintf(text, sizeof text, "worker %s: %.400s", w->name, e->text);
    if (m->is_drain) {
        refuse_drain(sv, &m->ask, e->code, text);
        m->is_drain = false;
    }
    esp_server_move_abort(sv, text);
}

/* ---- from the old placement to the new one ---- */

static struct esp_worker *holder(const struct esp_worker *const *stage, uint32_t n, uint32_t layer)
{
    for (uint32_t i = 0; i < n; i++)
        if (stage[i]->place.dec_lo <= layer && layer < stage[i]->place.dec_hi)
            return (struct esp_worker *)stage[i];
    return NULL; /* cannot be: they have all of them */
}

static void add_leg(struct esp_move *m, struct esp_worker *from, struct esp_worker *to, uint32_t layer)
{
    struct esp_move_leg *last = m->n_legs ? &m->leg[m->n_legs - 1] : NULL;

    if (last && last->from == from && last->to == to && last->dec_hi == layer) {
        last->dec_hi++;
        return;
    }
    m->leg[m->n_legs++] = (struct esp_move_leg){.from = from, .to = to, .dec_lo = layer, .dec_hi = layer + 1};
}

static void place(struct esp_server *sv)
{
    struct esp_move *m = &sv->move;
    const uint32_t n_layer = sv->config->text.n_layer;
    const struct esp_worker *old_first = sv->cluster.dec[0];
    const struct esp_worker *drained = m->is_drain ? esp_roster_named(sv->roster, m->ask.worker) : NULL;
    struct esp_worker *old[ESP_MAX_LAYERS];

    for (uint32_t l = 0; l < n_layer; l++)
        old[l] = holder((const struct esp_worker *const *)sv->cluster.dec, sv->cluster.n_dec, l);
    if (drained)
        m->n_layers =
            drained->place.enc_hi - drained->place.enc_lo + drained->place.dec_hi - drained->place.dec_lo;
    m->n_images = esp_sched_images(sv->sched, m->image, ESP_MAX_SEQS);
    esp_cluster_apply(&sv->cluster, sv->roster, m->plan, m->epoch, m->carry);
    for (uint32_t l = 0; l < n_layer; l++) {
        struct esp_worker *to =
            holder((const struct esp_worker *const *)sv->cluster.dec, sv->cluster.n_dec, l);

        if (to == old[l])
            continue;
        add_leg(m, old[l], to, l);
        m->layer_due[l] = true;
        m->n_layers_due++;
    }
    if (sv->cluster.dec[0] != old_first && m->n_images > 0)
        m->n_images_due = m->n_images; /* the first layer went the same way: leg 0 */
    else
        m->n_images = 0;
    for (uint32_t i = 0; i < m->n_legs; i++)
        m->leg[i].from->place.n_moves++;
    m->state = ESP_MOVE_PLACING;
    m->progress = esp_now_seconds();
    esp_server_tell_places(sv);
}

static void done(struct esp_server *sv)
{
    struct esp_move *m = &sv->move;
    const double now = esp_now_seconds();
    const struct esp_msg_drained drained = {.epoch = m->epoch,
                                            .n_layers = m->n_layers,
                                            .kv_bytes = m->kv_bytes,
                                            .n_images = m->n_images,
                                            .seconds = now - (m->is_drain ? m->ask.since : m->began),
                                            .pause = now - m->paused};
    struct esp_released again = sv->released;
    struct esp_sched_room room;
    uint64_t ids[ESP_MAX_SEQS];
    uint32_t n;

    sv->counts.n_moves++;
    sv->counts.kv_moved_bytes += m->kv_bytes;
    esp_server_room(sv, &room);
    esp_sched_carry(sv->sched, &room);
    sv->released = (struct esp_released){0};
    for (int image = 0; image < 2; image++)
        while ((n = esp_released_take(&again, ids, ESP_MAX_SEQS, image)) > 0)
            esp_server_release(sv, ids, image ? 0 : n, ids, image ? n : 0);
    esp_released_finish(&again);
    esp_log(sv->log, ESP_LOG_INFO,
            "epoch=%" PRIu64 " moved from_epoch=%" PRIu64 " legs=%u kv_bytes=%" PRIu64
            " images=%u seconds=%.3f pause_s=%.3f",
            m->epoch, m->carry, m->n_legs, m->kv_bytes, m->n_images, now - m->began, drained.pause);
    if (m->is_drain)
        let_go(sv, &m->ask, &drained);
    finish(sv);
    sv->ready_at = now;
}

void esp_server_move_placed(struct esp_server *sv)
{
    struct esp_move *m = &sv->move;

    m->state = ESP_MOVE_COPYING;
    m->progress = esp_now_seconds();
    for (uint32_t i = 0; i < m->n_legs; i++) {
        const struct esp_move_leg *leg = &m->leg[i];
        struct esp_msg msg = {.kind = ESP_MSG_MOVE};

        msg.move = (struct esp_msg_move){.epoch = m->epoch,
                                         .dec_lo = leg->dec_lo,
                                         .dec_hi = leg->dec_hi,
                                         .n_images = i == 0 ? m->n_images_due : 0,
                                         .images = m->image,
                                         .to = leg->to->endpoint,
                                         .to_key = leg->to->key};
        esp_server_tell_worker(sv, leg->from, &msg);
    }
    if (m->n_legs == 0)
        done(sv);
}

static void arrived(struct esp_server *sv)
{
    sv->move.progress = esp_now_seconds();
    if (sv->move.n_layers_due == 0 && sv->move.n_images_due == 0)
        done(sv);
}

void esp_server_on_moved(struct esp_server *sv, struct esp_worker *w, const struct esp_msg_moved *moved)
{
    struct esp_move *m = &sv->move;

    if (m->state != ESP_MOVE_COPYING || moved->layer >= sv->config->text.n_layer ||
        !m->layer_due[moved->layer] || moved->layer < w->place.dec_lo || moved->layer >= w->place.dec_hi) {
        esp_server_drop_worker(sv, w, ESP_E_PROTO, "a layer has moved to it that nobody has sent", true);
        return;
    }
    m->layer_due[moved->layer] = false;
    m->n_layers_due--;
    m->kv_bytes += moved->n_bytes;
    for (uint32_t i = 0; i < m->n_legs; i++) {
        struct esp_move_leg *leg = &m->leg[i];

        leg->over = true;
        for (uint32_t l = leg->dec_lo; l < leg->dec_hi; l++)
            leg->over &= !m->layer_due[l];
        if (i == 0)
            leg->over &= m->n_images_due == 0;
    }
    arrived(sv);
}

bool esp_server_move_stored(struct esp_server *sv, const struct esp_worker *w, uint64_t image)
{
    struct esp_move *m = &sv->move;

    if (m->state != ESP_MOVE_COPYING || sv->cluster.dec[0] != w)
        return false;
    for (uint32_t i = 0; i < m->n_images; i++) {
        if (m->image[i] != image)
            continue;
        m->image[i] = 0; /* once */
        m->n_images_due--;
        arrived(sv);
        return true;
    }
    return false;
}

/* ---- the clock ---- */

void esp_server_consider_moving(struct esp_server *sv)
{
    sv->rebalance_at = esp_now_seconds() + REBALANCE_S;
}

static void next_drain(struct esp_server *sv)
{
    const struct esp_plan_input in = esp_server_plan_input(sv);
    struct esp_drain_ask ask = sv->drain[0];
    const struct esp_worker *w = esp_roster_named(sv->roster, ask.worker);
    struct esp_plan *plan;
    struct esp_err err;

    drop_ask(sv, 0);
    if (!w || !esp_cluster_has(&sv->cluster, w)) {
        const struct esp_msg_drained nothing = {.epoch = sv->cluster.epoch,
                                                .seconds = esp_now_seconds() - ask.since};

        let_go(sv, &ask, &nothing);
        return;
    }
    plan = malloc(sizeof *plan);
    if (!plan) {
        refuse_drain(sv, &ask, ESP_E_NOMEM, "a placement: out of memory");
    } else if (esp_plan_again(plan, &in, sv->cluster.stood, sv->cluster.n_stood, &err)) {
        char text[ESP_ERR_TEXT_MAX + ESP_MAX_NAME + 16];

        snprintf(text, sizeof text, "without %s: %.*s", ask.worker, ESP_ERR_TEXT_MAX - 1, err.text);
        refuse_drain(sv, &ask, err.code, text);
        free(plan);
    } else {
        begin(sv, plan, &ask);
    }
}

static void rebalance(struct esp_server *sv)
{
    const struct esp_plan_input in = esp_server_plan_input(sv);
    struct esp_plan *plan = malloc(sizeof *plan);

    sv->rebalance_at = 0;
    if (plan && esp_plan_pays(plan, &in, sv->cluster.stood, sv->cluster.n_stood))
        begin(sv, plan, NULL);
    else
        free(plan);
}

/* What the asker of a drain sees. */
static void tell_progress(struct esp_server *sv, double now)
{
    struct esp_move *m = &sv->move;
    uint64_t done_bytes = 0, total = 0;

    if (now - m->told < TELL_S)
        return;
    m->told = now;
    for (uint32_t i = 0; i < sv->n_drains; i++)
        tell_asker(sv, &sv->drain[i], "waiting for its turn", 0, 0);
    if (!m->is_drain)
        return;
    switch (m->state) {
    case ESP_MOVE_WARMING:
        for (uint32_t i = 0; i < esp_roster_count(sv->roster); i++) {
            const struct esp_worker *w = esp_roster_at(sv->roster, i);

            if (w->warm != ESP_WARM_NO && w->warm_total <= UINT64_MAX - total) {
                done_bytes += w->warm_done < w->warm_total ? w->warm_done : w->warm_total;
                total += w->warm_total;
            }
        }
        tell_asker(sv, &m->ask, "loading weights", done_bytes, total);
        break;
    case ESP_MOVE_QUIET:
        tell_asker(sv, &m->ask, "waiting for steps under way", 0, esp_sched_n_flights(sv->sched));
        break;
    default:
        for (uint32_t i = 0; i < m->n_legs; i++)
            total += m->leg[i].dec_hi - m->leg[i].dec_lo;
        tell_asker(sv, &m->ask, "moving the KV cache", total - m->n_layers_due, total);
        break;
    }
}

static void watch_progress(struct esp_server *sv, double now)
{
    struct esp_move *m = &sv->move;
    double patience = WARM_S;
    char text[96];

    if (m->state >= ESP_MOVE_PLACING) {
        const struct esp_text_config *t = &sv->config->text;
        bool loading = false;

        for (uint32_t i = 0; i < sv->cluster.n_stages; i++)
            loading |= sv->cluster.stage[i]->state == ESP_WORKER_LOADING;
        if (!loading)
            patience = MOVE_S + 2.0 * t->n_kv_head * t->head_dim * sizeof(float) *
                                    sv->cluster_opt.sizing.kv_tokens / SLOW_NETWORK;
    } else if (m->state == ESP_MOVE_QUIET) {
        return; /* lost steps are the scheduler's watch */
    }
    if (now - m->progress <= patience)
        return;
    snprintf(text, sizeof text, "nothing has happened for %.0f s", now - m->progress);
    if (m->state >= ESP_MOVE_PLACING) {
        esp_server_lose_cluster(sv, ESP_E_TIMEOUT, text);
        esp_server_reconsider(sv);
        return;
    }
    if (m->is_drain) {
        refuse_drain(sv, &m->ask, ESP_E_TIMEOUT, text);
        m->is_drain = false;
    }
    esp_server_move_abort(sv, text);
}

void esp_server_move_watch(struct esp_server *sv, double now)
{
    if (sv->move.state == ESP_MOVE_NONE && sv->cluster.ready) {
        if (sv->n_drains > 0)
            next_drain(sv);
        else if (sv->rebalance_at > 0 && now >= sv->rebalance_at)
            rebalance(sv);
    }
    if (sv->n_drains > 0 || sv->move.state != ESP_MOVE_NONE)
        tell_progress(sv, now);
    if (sv->move.state == ESP_MOVE_QUIET && esp_sched_n_flights(sv->sched) == 0 &&
        esp_sched_n_encoding(sv->sched) == 0)
        place(sv);
    if (sv->move.state != ESP_MOVE_NONE)
        watch_progress(sv, now);
}
