/* The worker's conversation, what others say: a table of who may say what in which state, and its handlers.
 */
#include "worker/serve_state.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define DATA_WORKS     64 /* work queued from other stages: more waits in ZeroMQ's queues, then at the sender */
#define DATA_BYTES     (256u << 20)
#define CONTROL_WORKS  1024 /* from the coordinator, which has its own count: more is refused */
#define CONTROL_BYTES  (UINT64_C(2) << 30)
#define NOISE_A_SECOND 20 /* log lines about bad data messages */

static const char *state_name(enum esp_state state)
{
    return state == ESP_LOADING ? "loading"
           : state == ESP_READY ? "ready"
           : state == ESP_SPARE ? "a spare"
                                : "not placed";
}

static esp_status on_welcome(struct esp_serve *s, enum esp_source from, struct esp_msg *msg,
                             struct esp_err *err)
{
    s->heartbeat_ns = msg->welcome.heartbeat_ms * ESP_NS_A_MS;
    s->timeout_ns = msg->welcome.timeout_ms * ESP_NS_A_MS;
    if (!s->joined) {
        esp_log(s->log, ESP_LOG_INFO, "joined coordinator=%s data=%s heartbeat_ms=%u timeout_ms=%u",
                s->opt->connect, s->endpoint, msg->welcome.heartbeat_ms, msg->welcome.timeout_ms);
        s->joined = s->known = s->fresh = true;
        s->asked = false;
        esp_serve_verify_stop(s);
        s->generation++; /* what an earlier conversation asked for is nothing to tell in this one */
    }
    esp_serve_beat(s, 0);
    return ESP_OK;
}

static esp_status on_heartbeat(struct esp_serve *s, enum esp_source from, struct esp_msg *msg,
                               struct esp_err *err)
{
    if (s->joined && msg->heartbeat.stamp > 0)
        esp_serve_beat(s, msg->heartbeat.stamp);
    return ESP_OK; /* that it came is all that it says besides */
}

static esp_status on_bye(struct esp_serve *s, enum esp_source from, struct esp_msg *msg, struct esp_err *err)
{
    esp_log(s->log, ESP_LOG_INFO, "bye from=coordinator why=\"%s\"", msg->bye.why);
    s->joined = false; /* no Bye back */
    esp_serve_end(s, ESP_OK, "");
    return ESP_OK;
}

static esp_status on_error(struct esp_serve *s, enum esp_source from, struct esp_msg *msg,
                           struct esp_err *err)
{
    const struct esp_msg_error *m = &msg->error;
    char text[ESP_ERR_TEXT_MAX];

    if (!s->joined && !s->asked) { /* the conversation it belongs to is over already */
        esp_log(s->log, ESP_LOG_DEBUG, "coordinator_error cause=\"%s\"", m->text);
    } else if (!s->joined && m->code == ESP_E_CLOSED) {
        /* To something said before this Hello, by us or by a process that had our name: its answer is to come. */
        esp_log(s->log, ESP_LOG_DEBUG, "coordinator_error cause=\"%s\" action=wait", m->text);
    } else if (!s->joined && s->known && m->code == ESP_E_ARG) {
        /* It takes us for joined still. It forgets us once it has not heard of us for its timeout. */
        esp_log(s->log, ESP_LOG_WARN, "hello_refused cause=\"%s\" action=retry", m->text);
        s->asked = false;
        if (s->hello_wait_ns < s->timeout_ns + s->heartbeat_ns)
            s->hello_wait_ns = s->timeout_ns + s->heartbeat_ns;
    } else if (!s->joined) {
        snprintf(text, sizeof text, "coordinator refuses: %s", m->text);
        esp_serve_end(s, m->code, text);
    } else if (m->epoch == 0) { /* about us, not about a piece of work */
        esp_serve_lose(s, m->text);
    } else {
        esp_log(s->log, ESP_LOG_WARN, "epoch=%" PRIu64 " coordinator_error code=%d cause=\"%s\"", m->epoch,
                (int)m->code, m->text);
    }
    return ESP_OK;
}

esp_status esp_serve_dial(struct esp_serve *s, struct esp_outbox *box, const char *kind, const char *endpoint,
                          const char *key_text, int hwm, struct esp_err *err)
{
    char identity[ESP_MAX_NAME + 64];
    uint8_t key[ESP_KEY_BYTES] = {0};

    esp_outbox_close(box);
    if (!*endpoint)
        return ESP_OK;
    if (!s->opt->keys != !*key_text)
        return esp_fail(err, ESP_E_PROTO, "the stage at %s has %s key, and we have %s", endpoint,
                        *key_text ? "a" : "no", *key_text ? "none" : "one");
    if (*key_text && !esp_key_parse(key, key_text, strlen(key_text)))
        return esp_fail(err, ESP_E_PROTO, "the key of the stage at %s is none", endpoint);
    /* Unlike any earlier one: what an older connection still carries must not pass for this one's. */
    snprintf(identity, sizeof identity, "%s/%s/%ld.%" PRIu64, s->opt->name, kind, (long)getpid(),
             s->generation);
    return esp_outbox_open(box, s->net, identity, endpoint, s->opt->keys ? key : NULL, hwm, 0, err);
}

/** Weights of a placement to come. What holds now stays as it is, so nothing of it changes here. */
static esp_status on_warm(struct esp_serve *s, struct esp_msg *msg, struct esp_err *err)
{
    struct esp_work *work = esp_work_create(msg);

    if (!work)
        return esp_fail(err, ESP_E_NOMEM, "no memory for a placement");
    work->generation = s->generation;
    esp_serve_weights_place(s, work);
    return ESP_OK;
}

/**
 * Whether what is here is what a placement carries on. A worker that has had no placement from this coordinator has
 * nothing to carry, which contradicts nobody.
 */
static esp_status check_carry(const struct esp_serve *s, const struct esp_msg_place *p, bool *carry,
                              struct esp_err *err)
{
    *carry = p->carry > 0 && !s->fresh && s->epoch > 0;
    if (*carry && p->carry != s->epoch)
        return esp_fail(err, ESP_E_PROTO, "epoch %" PRIu64 " is to be carried on, here is %" PRIu64, p->carry,
                        s->epoch);
    if (*carry && s->state != ESP_READY && s->state != ESP_SPARE)
        return esp_fail(err, ESP_E_PROTO, "epoch %" PRIu64 " is to be carried on, but this worker is %s",
                        p->carry, state_name(s->state));
    return ESP_OK;
}

static esp_status on_place(struct esp_serve *s, enum esp_source from, struct esp_msg *msg,
                           struct esp_err *err)
{
    const struct esp_msg_place *p = &msg->place;
    struct esp_work *work;
    bool layers = p->enc_lo < p->enc_hi || p->dec_lo < p->dec_hi, carry;
    esp_status st;

    if (!s->fresh && p->epoch <= s->epoch) {
        esp_log(s->log, ESP_LOG_WARN, "epoch=%" PRIu64 " place_ignored placed=%" PRIu64, p->epoch, s->epoch);
        return ESP_OK;
    }
    if (p->warm)
        return on_warm(s, msg, err);
    st = check_carry(s, p, &carry, err);
    s->fresh = false;
    s->epoch = p->epoch;
    esp_serve_verify_stop(s);
    s->generation++;
    s->last_step = 0;
    memset(s->sender, 0, sizeof s->sender);
    s->state = ESP_IDLE;
    s->place = *p;
    s->place.next_enc = s->place.features_to = s->place.next_dec = NULL;
    s->place.next_enc_key = s->place.features_to_key = s->place.next_dec_key = NULL;
    if (!carry || st) /* else what is queued belongs to what lives on */
        esp_runner_purge(s->runner);
    esp_outbox_purge(&s->control, s->generation);
    esp_serve_end_moves(s);
    s->store_here =
        p->projector && p->embed && (!*p->features_to || strcmp(p->features_to, s->endpoint) == 0);
    if (!st)
        st = esp_serve_dial(s, &s->next_enc, "enc", p->next_enc, p->next_enc_key, 0, err);
    if (!st)
        st = esp_serve_dial(s, &s->features, "features", s->store_here ? "" : p->features_to,
                            p->features_to_key, 0, err);
    if (!st)
        st = esp_serve_dial(s, &s->next_dec, "dec", p->next_dec, p->next_dec_key, 0, err);
    if (st)
        return st;
    work = esp_work_create(msg);
    if (!work)
        return esp_fail(err, ESP_E_NOMEM, "no memory for a placement");
    work->generation = s->generation;
    work->carry = carry;
    s->state = layers ? ESP_LOADING : ESP_SPARE;
    esp_serve_weights_place(s, work);
    return ESP_OK;
}

bool esp_serve_has_room(struct esp_serve *s, enum esp_source from)
{
    uint32_t n_works;
    uint64_t n_bytes;

    esp_runner_load(s->runner, &n_works, &n_bytes);
    if (from == ESP_FROM_DATA)
        return n_works < DATA_WORKS && n_bytes < DATA_BYTES;
    return n_works < CONTROL_WORKS && n_bytes < CONTROL_BYTES;
}

/*
 * Whoever finds the port can send what looks right: a Release of live sequences, rows of its own making. So in each
 * placement a path belongs to the first whose rows the stage could work with, and that is the stage before us as soon as
 * there is any work: its connection has an identity that no earlier placement had, and with keys only it has its key.
 */
static enum esp_path path_of(const struct esp_serve *s, const struct esp_msg *msg,
                             const struct esp_peer *from)
{
    const struct esp_peer *first = &s->sender[ESP_PATH_FEATURES];

    if (msg->kind != ESP_MSG_ENCODE)
        return ESP_PATH_STEPS;
    if (msg->encode.payload != ESP_PAYLOAD_FEATURES)
        return ESP_PATH_ROWS;
    if (s->place.carry > 0 && (s->store_here || (first->n > 0 && !esp_peer_equal(first, from))))
        return ESP_PATH_MOVED_FEATURES;
    return ESP_PATH_FEATURES;
}

static esp_status check_sender(const struct esp_serve *s, const struct esp_msg *msg, struct esp_err *err)
{
    const enum esp_path path = path_of(s, msg, s->peer);
    char who[64];

    if (path == ESP_PATH_FEATURES && s->store_here)
        return esp_fail(err, ESP_E_PROTO, "features of pictures, which are made here");
    if (s->sender[path].n > 0 && !esp_peer_equal(&s->sender[path], s->peer))
        return esp_fail(err, ESP_E_PROTO, "%s comes from %s in this placement", esp_msg_name(msg->kind),
                        esp_peer_text(&s->sender[path], who, sizeof who));
    return ESP_OK;
}

void esp_serve_claim(struct esp_serve *s, const struct esp_work *w)
{
    struct esp_peer *sender = &s->sender[path_of(s, &w->msg, &w->from)];

    if (w->from.n == 0 || w->status)
        return;
    if (sender->n == 0)
        *sender = w->from;
    if (w->msg.kind == ESP_MSG_STEP && esp_peer_equal(sender, &w->from) && w->msg.step.id > s->last_step)
        s->last_step = w->msg.step.id;
}

static esp_status push(struct esp_serve *s, enum esp_source from, struct esp_msg *msg, struct esp_err *err)
{
    struct esp_work *work;
    esp_status st = from == ESP_FROM_DATA ? check_sender(s, msg, err) : ESP_OK;

    if (st)
        return st;
    if (!esp_serve_has_room(s, from))
        return esp_fail(err, ESP_E_LIMIT, "too much work queued");
    work = esp_work_create(msg);
    if (!work)
        return esp_fail(err, ESP_E_NOMEM, "no memory to queue work");
    work->generation = s->generation;
    work->store_here = s->store_here;
    if (s->peer)
        work->from = *s->peer;
    esp_runner_push(s->runner, work);
    return ESP_OK;
}

static esp_status on_encode(struct esp_serve *s, enum esp_source from, struct esp_msg *msg,
                            struct esp_err *err)
{
    const struct esp_msg_place *p = &s->place;
    enum esp_payload payload = msg->encode.payload;

    if (from == ESP_FROM_CONTROL && !(payload == ESP_PAYLOAD_PIXELS && p->patch))
        return esp_fail(err, ESP_E_PROTO,
                        "the coordinator's encode goes to the first encoder stage, as pixels");
    if (from == ESP_FROM_DATA && !(payload == ESP_PAYLOAD_ROWS && p->enc_lo < p->enc_hi && !p->patch) &&
        !(payload == ESP_PAYLOAD_FEATURES && p->embed))
        return esp_fail(err, ESP_E_PROTO, "encode of payload %d, which this stage takes from no other",
                        (int)payload);
    return push(s, from, msg, err);
}

static esp_status on_step(struct esp_serve *s, enum esp_source from, struct esp_msg *msg, struct esp_err *err)
{
    const struct esp_msg_place *p = &s->place;
    const struct esp_msg_step *m = &msg->step;
    uint64_t id = m->id;
    esp_status st;

    if (from == ESP_FROM_CONTROL && !(m->payload == ESP_PAYLOAD_TOKENS && p->embed))
        return esp_fail(err, ESP_E_PROTO, "the coordinator's steps go to the first decoder stage, as tokens");
    if (from == ESP_FROM_DATA && !(m->payload == ESP_PAYLOAD_ROWS && p->dec_lo < p->dec_hi && !p->embed))
        return esp_fail(err, ESP_E_PROTO, "step of payload %d, which this stage takes from no other",
                        (int)m->payload);
    if (m->rows > p->max_rows)
        return esp_fail(err, ESP_E_PROTO, "%u rows, takes 1..%u", m->rows, p->max_rows);
    if (id <= s->last_step) /* may skip: a stage before us refused one */
        return esp_fail(err, ESP_E_PROTO, "step %" PRIu64 " after step %" PRIu64, id, s->last_step);
    st = push(s, from, msg, err);
    if (!st &&
        (from == ESP_FROM_CONTROL || s->sender[ESP_PATH_STEPS].n > 0)) /* a stranger's numbers bind nobody */
        s->last_step = id;
    return st;
}

static esp_status on_release(struct esp_serve *s, enum esp_source from, struct esp_msg *msg,
                             struct esp_err *err)
{
    const struct esp_msg_place *p = &s->place;

    if (p->dec_lo == p->dec_hi || p->embed != (from == ESP_FROM_CONTROL))
        return esp_fail(err, ESP_E_PROTO, "releases come from the coordinator, then down the decoder stages");
    return push(s, from, msg, err);
}

/** The conversation. What is not here is refused with ESP_E_PROTO. */
static const struct rule {
    enum esp_source from;
    enum esp_msg_kind kind;
    unsigned states;
    bool joined; /* only in a conversation that a Welcome has opened */
    bool work;   /* of an epoch: an older one is dropped without a word */
    esp_status (*handle)(struct esp_serve *s, enum esp_source from, struct esp_msg *msg, struct esp_err *err);
} rules[] = {
    {ESP_FROM_CONTROL, ESP_MSG_WELCOME, ESP_ANY_STATE, false, false, on_welcome},
    {ESP_FROM_CONTROL, ESP_MSG_ERROR, ESP_ANY_STATE, false, false, on_error},
    {ESP_FROM_CONTROL, ESP_MSG_HEARTBEAT, ESP_ANY_STATE, false, false, on_heartbeat},
    {ESP_FROM_CONTROL, ESP_MSG_BYE, ESP_ANY_STATE, false, false, on_bye},
    {ESP_FROM_CONTROL, ESP_MSG_PLACE, ESP_ANY_STATE, true, false, on_place},
    {ESP_FROM_CONTROL, ESP_MSG_MOVE, ESP_READY | ESP_SPARE, true, true, esp_serve_on_move},
    {ESP_FROM_CONTROL, ESP_MSG_MANIFEST, ESP_ANY_STATE, true, false, esp_serve_on_manifest},
    {ESP_FROM_CONTROL, ESP_MSG_CHUNK, ESP_ANY_STATE, true, false, esp_serve_on_chunk},
    {ESP_FROM_CONTROL, ESP_MSG_ENCODE, ESP_READY, true, true, on_encode},
    {ESP_FROM_CONTROL, ESP_MSG_STEP, ESP_READY, true, true, on_step},
    {ESP_FROM_CONTROL, ESP_MSG_RELEASE, ESP_READY, true, true, on_release},
    {ESP_FROM_CONTROL, ESP_MSG_VERIFY, ESP_ANY_STATE, true, false, esp_serve_verify},
    {ESP_FROM_DATA, ESP_MSG_ENCODE, ESP_READY, false, true, on_encode},
    {ESP_FROM_DATA, ESP_MSG_STEP, ESP_READY, false, true, on_step},
    {ESP_FROM_DATA, ESP_MSG_RELEASE, ESP_READY, false, true, on_release},
    {ESP_FROM_DATA, ESP_MSG_KV_BLOCKS, ESP_READY, false, true, esp_serve_on_kv_blocks},
};

/** What a message is about; zeros if it is about no piece of work. */
static void subject(const struct esp_msg *msg, uint64_t *epoch, uint64_t *step, uint64_t *image)
{
    *epoch = *step = *image = 0;
    if (msg->kind == ESP_MSG_PLACE) {
        *epoch = msg->place.epoch;
    } else if (msg->kind == ESP_MSG_ENCODE) {
        *epoch = msg->encode.epoch;
        *image = msg->encode.image;
    } else if (msg->kind == ESP_MSG_STEP) {
        *epoch = msg->step.epoch;
        *step = msg->step.id;
    } else if (msg->kind == ESP_MSG_RELEASE) {
        *epoch = msg->release.epoch;
    } else if (msg->kind == ESP_MSG_MOVE) {
        *epoch = msg->move.epoch;
    } else if (msg->kind == ESP_MSG_KV_BLOCKS) {
        *epoch = msg->kv_blocks.epoch;
    }
}

static esp_status dispatch(struct esp_serve *s, enum esp_source from, struct esp_msg *msg,
                           struct esp_err *err)
{
    const struct rule *rule = NULL;
    uint64_t epoch, step, image;

    for (size_t i = 0; i < sizeof rules / sizeof rules[0] && !rule; i++) {
        if (rules[i].from == from && rules[i].kind == msg->kind)
            rule = &rules[i];
    }
    if (!rule)
        return esp_fail(err, ESP_E_PROTO, "a worker takes no %s from %s", esp_msg_name(msg->kind),
                        from == ESP_FROM_CONTROL ? "the coordinator" : "another stage");
    subject(msg, &epoch, &step, &image);
    if (rule->work && epoch < s->epoch)
        return ESP_OK;
    if (rule->work && epoch > s->epoch) /* work of an epoch begins only when all of its workers are ready */
        return esp_fail(err, ESP_E_PROTO, "%s of epoch %" PRIu64 ", placed is %" PRIu64,
                        esp_msg_name(msg->kind), epoch, s->epoch);
    if (rule->joined && !s->joined)
        return esp_fail(err, ESP_E_PROTO, "%s before Welcome", esp_msg_name(msg->kind));
    if (!(rule->states & s->state))
        return esp_fail(err, ESP_E_PROTO, "%s while %s", esp_msg_name(msg->kind), state_name(s->state));
    return rule->handle(s, from, msg, err);
}

/* ---- reading ---- */

bool esp_serve_may_log(struct esp_serve *s)
{
    uint64_t now = esp_now_ns();

    if (now - s->noise_ns >= 1000 * ESP_NS_A_MS) {
        if (s->n_noise > NOISE_A_SECOND)
            esp_log(s->log, ESP_LOG_WARN, "bad_messages_unlogged n=%u", s->n_noise - NOISE_A_SECOND);
        s->noise_ns = now;
        s->n_noise = 0;
    }
    return s->n_noise++ < NOISE_A_SECOND;
}

/** Takes one message of the coordinator; false: there was none. */
bool esp_serve_read_control(struct esp_serve *s)
{
    struct esp_msg msg;
    struct esp_err err;
    uint64_t epoch, step, image;
    bool warm;
    esp_status st = esp_link_recv(s->control.link, NULL, &msg, &err);

    if (st == ESP_E_TIMEOUT)
        return false;
    s->heard_ns = esp_now_ns();
    if (st) {
        if (esp_serve_may_log(s))
            esp_log(s->log, ESP_LOG_WARN, "bad_message from=coordinator cause=\"%s\"", err.text);
        return true;
    }
    subject(&msg, &epoch, &step, &image);
    warm = msg.kind == ESP_MSG_PLACE && msg.place.warm;
    s->peer = NULL;
    st = dispatch(s, ESP_FROM_CONTROL, &msg, &err);
    if (st) {
        if (esp_serve_may_log(s))
            esp_log(s->log, ESP_LOG_WARN,
                    "refused from=coordinator epoch=%" PRIu64 " step=%" PRIu64 " cause=\"%s\"", epoch, step,
                    err.text);
        if ((epoch == s->epoch && epoch > 0 && msg.kind != ESP_MSG_RELEASE) || warm)
            esp_serve_tell_error_of(s, epoch, st, err.text, step, image);
    }
    esp_msg_finish(&msg);
    return true;
}

/** Takes one message of another stage, or of whoever found the port; false: there was none. */
bool esp_serve_read_data(struct esp_serve *s)
{
    struct esp_msg msg;
    struct esp_peer peer;
    struct esp_err err;
    char who[64];
    esp_status st = esp_link_recv(s->data, &peer, &msg, &err);

    if (st == ESP_E_TIMEOUT)
        return false;
    s->peer = &peer;
    if (!st)
        st = dispatch(s, ESP_FROM_DATA, &msg, &err);
    /* Logged, not told: a stranger's message must not be able to fail a session by naming its step. */
    if (st && esp_serve_may_log(s))
        esp_log(s->log, ESP_LOG_WARN, "refused from=%s epoch=%" PRIu64 " cause=\"%s\"",
                esp_peer_text(&peer, who, sizeof who), s->epoch, err.text);
    esp_msg_finish(&msg);
    return true;
}
