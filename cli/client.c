#include "cli/client.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "cli/signals.h"

#define ANSWER_MS    10000 /* a coordinator elsewhere that is asked for its status answers within this */
#define PATIENCE_MS  60000 /* for one that has fallen silent, and may come back */
#define QUIET_MS     1000  /* silence after which it is reminded of us, again and again */
#define N_ANEW       8     /* times that a request is asked anew without a further token in between */
#define CANCEL_MS    2000  /* for a cancelled request to end */
#define HANDSHAKE_MS 200   /* between two looks whether our key was refused: no message tells */

struct esp_client {
    struct esp_keys *keys; /* NULL: none */
    bool heard;            /* something came: the handshake is behind us */
    struct esp_net *net;
    struct esp_link *link;
    struct esp_embed *embed; /* borrowed; NULL: a cluster elsewhere */
    struct esp_term *term;   /* borrowed */
    const char *endpoint;    /* borrowed */
    uint64_t last_id;        /* of requests and status queries */
    int answer_ms, patience_ms;
};

void esp_reply_finish(struct esp_reply *reply)
{
    struct esp_msg *kept[2] = {reply->accepted, reply->done};

    for (size_t i = 0; i < 2; i++) {
        if (kept[i])
            esp_msg_finish(kept[i]);
        free(kept[i]);
    }
    for (uint32_t i = 0; i < reply->n_traces; i++) {
        esp_msg_finish(reply->traces[i]);
        free(reply->traces[i]);
    }
    free(reply->traces);
    memset(reply, 0, sizeof *reply);
}

esp_status esp_client_create(struct esp_client **out, const char *endpoint, const char *keys,
                             struct esp_embed *embed, struct esp_term *term, struct esp_err *err)
{
    esp_status st = ESP_OK;
    struct esp_link_options options = {.type = ESP_LINK_DIAL, .hwm = 1024}; /* a trace is many messages */
    struct esp_client *client = calloc(1, sizeof *client);

    *out = NULL;
    if (!client)
        return esp_fail(err, ESP_E_NOMEM, "client: out of memory");
    client->embed = embed;
    client->term = term;
    client->endpoint = endpoint;
    client->answer_ms = ANSWER_MS;
    client->patience_ms = PATIENCE_MS;
    if (keys)
        st = esp_keys_open(&client->keys, keys, ESP_MEMBER_CLIENT, err);
    if (!st)
        st = esp_net_create(&client->net, err);
    if (!st && client->keys) {
        st = esp_net_secure(client->net, client->keys, NULL, err);
        options.server_key = client->keys->coordinator;
    }
    if (st)
        goto done;
    st = esp_link_create(&client->link, client->net, &options, err);
    if (st)
        goto done;
    st = esp_link_connect(client->link, endpoint, err);
    if (st)
        goto done;
    *out = client;
    client = NULL;
done:
    esp_client_destroy(&client);
    return st;
}

void esp_client_destroy(struct esp_client **client)
{
    if (!*client)
        return;
    esp_link_destroy(&(*client)->link);
    esp_net_destroy(&(*client)->net);
    esp_keys_destroy(&(*client)->keys);
    free(*client);
    *client = NULL;
}

void esp_client_set_patience(struct esp_client *client, uint32_t seconds)
{
    client->answer_ms = client->patience_ms = seconds < 86400 ? (int)seconds * 1000 : 86400000;
}

/* ---- waiting and sending ---- */

/* Sleeps until the link, a signal or a child has something, or `until` (esp_now_ms; -1: for ever) has come,
 * which is no failure. What the link holds is left for the caller. */
static esp_status nap(struct esp_client *client, int64_t until, bool heed_signals, struct esp_err *err)
{
    esp_status st;
    struct esp_wait waits[ESP_EMBED_MAX_WAITS + 2];
    uint32_t n = 0;
    int64_t left = until < 0 ? -1 : until - esp_now_ms();

    if (left > 60000)
        left = 60000;
    if (client->keys && !client->heard && (left < 0 || left > HANDSHAKE_MS))
        left = HANDSHAKE_MS;
    if (until >= 0 && left < 0)
        left = 0;
    waits[n++] = (struct esp_wait){.link = client->link, .fd = -1};
    waits[n++] = (struct esp_wait){.fd = esp_signals_fd()};
    n += esp_embed_waits(client->embed, waits + n);
    if (heed_signals && esp_signals_stop())
        return esp_fail(err, ESP_E_CANCELLED, "cancelled");
    st = esp_link_wait(waits, n, (int)left, err);
    if (st && st != ESP_E_TIMEOUT)
        return st;
    st = esp_link_check(client->link, err);
    if (st == ESP_E_CLOSED)
        return esp_err_prefix(err, "%s: ", client->endpoint);
    esp_signals_drain();
    if (heed_signals && esp_signals_stop())
        return esp_fail(err, ESP_E_CANCELLED, "cancelled");
    return esp_embed_pump(client->embed, err);
}

/* A link that is not connected yet may have no room. */
static esp_status send_soon(struct esp_client *client, struct esp_msg *msg, int64_t until,
                            struct esp_err *err)
{
    for (;;) {
        esp_status st = esp_link_send(client->link, NULL, msg, err);
        if (st != ESP_E_LIMIT || esp_now_ms() >= until)
            return st;
        st = nap(client, esp_now_ms() + 20, true, err);
        if (st)
            return st;
    }
}

/* The next message within `until`, of any kind. */
static esp_status next(struct esp_client *client, struct esp_msg *msg, int64_t until, struct esp_err *err)
{
    for (;;) {
        esp_status st = esp_link_recv(client->link, NULL, msg, err);
        client->heard |= st == ESP_OK;
        if (st == ESP_E_PROTO)
            return esp_err_prefix(err, "%s: bad message: ", client->endpoint);
        if (st != ESP_E_TIMEOUT)
            return st;
        if (until >= 0 && esp_now_ms() >= until)
            return esp_fail(err, ESP_E_TIMEOUT, "%s does not answer", client->endpoint);
        st = nap(client, until, true, err);
        if (st)
            return st;
    }
}

esp_status esp_client_sleep(struct esp_client *client, int ms, struct esp_err *err)
{
    int64_t until = esp_now_ms() + ms;

    while (esp_now_ms() < until) {
        struct esp_msg msg;
        esp_status st =
            esp_link_recv(client->link, NULL, &msg, NULL); /* late answers must not pile up, or wake us */
        if (st == ESP_OK)
            esp_msg_finish(&msg);
        if (st == ESP_OK)
            continue;
        st = nap(client, until, true, err);
        if (st)
            return st;
    }
    return ESP_OK;
}

static void no_answer(const struct esp_client *client, struct esp_err *err)
{
    if (client->keys && esp_link_check(client->link, err) != ESP_OK)
        esp_err_prefix(err, "%s: ", client->endpoint);
    else
        esp_fail(err, ESP_E_TIMEOUT, "%s: nothing answers there; is a coordinator running?%s",
                 client->endpoint, client->keys ? "" : " (one that has keys answers only to --keys DIR)");
}

esp_status esp_client_status(struct esp_msg *out, struct esp_client *client, int timeout_ms,
                             struct esp_err *err)
{
    esp_status st;
    int64_t until = esp_now_ms() + timeout_ms;
    struct esp_msg query;

    memset(out, 0, sizeof *out);
    memset(&query, 0, sizeof query);
    query.kind = ESP_MSG_STATUS_QUERY;
    query.status_query.id = ++client->last_id;
    st = send_soon(client, &query, until, err);
    while (st == ESP_OK) {
        st = next(client, out, until, err);
        if (st)
            break;
        if (out->kind == ESP_MSG_STATUS && out->status.id == query.status_query.id)
            return ESP_OK;
        if (out->kind == ESP_MSG_ERROR &&
            (out->error.session == 0 || out->error.session == query.status_query.id))
            st = esp_fail(err, out->error.code, "%s", out->error.text);
        esp_msg_finish(out);
    }
    memset(out, 0, sizeof *out);
    if (st == ESP_E_TIMEOUT)
        no_answer(client, err);
    return st;
}

/* ---- asking ---- */

struct asking {
    struct esp_client *client;
    const struct esp_client_hooks *hooks;
    struct esp_reply *reply;
    struct esp_msg *request;
    uint64_t id;
    uint32_t n_tokens;
    bool ended;

    /* A coordinator elsewhere may be restarted, or a connection to it break. */
    int64_t heard_at;  /* when something came that was ours and new */
    int64_t remind_at; /* when a Resume is due */
    bool reminded;     /* one has been sent since */
    bool resumed;      /* one has ever been sent: what came before may come again */
    uint32_t n_anew;   /* times that the request was sent again since the last new token */
    uint32_t
        gap; /* one more than the index of a token that came too early; 0: none did since the last new one */
};

static esp_status keep_trace(struct esp_reply *reply, struct esp_msg *msg, struct esp_err *err)
{
    struct esp_msg **grown = realloc(reply->traces, (reply->n_traces + 1) * sizeof(struct esp_msg *));

    if (!grown)
        return esp_fail(err, ESP_E_NOMEM, "trace: out of memory");
    reply->traces = grown;
    grown[reply->n_traces++] = msg;
    return ESP_OK;
}

static bool is_ours(const struct asking *ask, const struct esp_msg *msg)
{
    switch (msg->kind) {
    case ESP_MSG_ACCEPTED:
        return msg->accepted.session == ask->id;
    case ESP_MSG_WAITING:
        return msg->waiting.session == ask->id;
    case ESP_MSG_TOKEN:
        return msg->token.session == ask->id;
    case ESP_MSG_TRACE:
        return msg->trace.session == ask->id;
    case ESP_MSG_DONE:
        return msg->done.session == ask->id;
    case ESP_MSG_ERROR: /* without a session: about the connection or an unreadable request */
        return msg->error.session == ask->id || msg->error.session == 0;
    default:
        return false;
    }
}

static esp_status out_of_order(const struct asking *ask, uint32_t index, struct esp_err *err)
{
    return esp_fail(err, ESP_E_PROTO, "the coordinator sent token %u where %u was expected", index,
                    ask->n_tokens);
}

/* Here we are, with so many tokens: go on from there. */
static esp_status remind(struct asking *ask, struct esp_err *err)
{
    struct esp_msg msg;
    esp_status st;

    memset(&msg, 0, sizeof msg);
    msg.kind = ESP_MSG_RESUME;
    memcpy(msg.resume.ticket, ask->request->request.ticket, sizeof msg.resume.ticket);
    msg.resume.id = ask->id;
    msg.resume.have = ask->n_tokens;
    st = esp_link_send(ask->client->link, NULL, &msg, err);
    ask->reminded = ask->resumed = true;
    ask->remind_at = esp_now_ms() + QUIET_MS;
    return st == ESP_E_LIMIT ? ESP_OK : st; /* enough of them wait for it already */
}

/* The coordinator knows of no such request: it was restarted without it, or took us for gone. Decoding depends on
 * nothing but the request, so what we have comes first again. Under a new number, so that late answers to the old one
 * are not taken for ours. */
static esp_status ask_anew(struct asking *ask, struct esp_err *err)
{
    if (ask->request->request.trace)
        return esp_fail(
            err, ESP_E_CLOSED,
            "%s no longer knows this request; was the coordinator restarted? What it had traced is lost",
            ask->client->endpoint);
    if (++ask->n_anew > N_ANEW)
        return esp_fail(err, ESP_E_CLOSED, "%s has lost this request %u times", ask->client->endpoint,
                        N_ANEW);
    ask->id = ask->request->request.id = ++ask->client->last_id;
    ask->reminded = false;
    ask->heard_at = esp_now_ms();
    ask->remind_at = ask->heard_at + QUIET_MS;
    return send_soon(ask->client, ask->request, ask->heard_at + ANSWER_MS, err);
}

static esp_status heed_token(struct asking *ask, const struct esp_msg_token *token, struct esp_err *err)
{
    if (token->index != ask->n_tokens && ask->client->embed)
        return out_of_order(ask, token->index, err);
    if (token->index < ask->n_tokens)
        return ask->resumed ? ESP_OK : out_of_order(ask, token->index, err);
    if (token->index > ask->n_tokens ||
        !ask->reply->accepted) { /* what comes before was lost with a connection */
        if (!ask->gap)
            ask->remind_at = esp_now_ms();
        ask->gap = token->index + 1;
        return ESP_OK;
    }
    ask->n_tokens++;
    ask->n_anew = ask->gap = 0;
    return ask->hooks->token ? ask->hooks->token(ask->hooks->self, token, err) : ESP_OK;
}

/* One message of this request. @param msg  set to NULL when kept */
static esp_status heed(struct asking *ask, struct esp_msg **msg, struct esp_err *err)
{
    esp_status st = ESP_OK;
    const struct esp_client_hooks *hooks = ask->hooks;
    struct esp_msg *m = *msg;
    bool was_reminded = ask->reminded;

    if (!is_ours(ask, m))
        return ESP_OK; /* other status answers, the tail of an earlier request */
    if (m->kind != ESP_MSG_TOKEN || (m->token.index == ask->n_tokens && ask->reply->accepted)) {
        ask->heard_at = esp_now_ms();
        ask->remind_at = ask->heard_at + QUIET_MS;
        ask->reminded = false;
    }
    switch (m->kind) {
    case ESP_MSG_ACCEPTED:
        if (ask->reply->accepted)
            return ask->resumed ? ESP_OK
                                : esp_fail(err, ESP_E_PROTO, "the coordinator accepted the request twice");
        ask->reply->accepted = m;
        *msg = NULL;
        if (hooks->accepted)
            hooks->accepted(hooks->self, &m->accepted);
        return ESP_OK;
    case ESP_MSG_WAITING:
        if (hooks->waiting)
            hooks->waiting(hooks->self, &m->waiting);
        return ESP_OK;
    case ESP_MSG_TOKEN:
        return heed_token(ask, &m->token, err);
    case ESP_MSG_TRACE:
        st = keep_trace(ask->reply, m, err);
        if (st == ESP_OK)
            *msg = NULL;
        return st;
    case ESP_MSG_DONE:
        if (!ask->reply->accepted && ask->client->embed)
            return esp_fail(err, ESP_E_PROTO, "the coordinator finished a request that it never accepted");
        if (!ask->reply->accepted) { /* lost, as above; and as it has ended there, we are going to ask anew */
            ask->remind_at = ask->heard_at;
            return ESP_OK;
        }
        ask->reply->done = m;
        *msg = NULL;
        ask->ended = true;
        return ESP_OK;
    default:
        if (m->error.code == ESP_E_CLOSED && m->error.session == ask->id && was_reminded) {
            st = ask_anew(ask, err);
            ask->ended = st == ESP_E_CLOSED;
            return st;
        }
        ask->ended = true;
        return esp_fail(err, m->error.code, "%s",
                        m->error.text[0] ? m->error.text : esp_status_name(m->error.code));
    }
}

/* Nothing came until a Resume was due. */
static esp_status silence(struct asking *ask, struct esp_err *err)
{
    static const struct esp_msg_waiting away = {.what = "waiting for the coordinator"};
    const int64_t quiet = esp_now_ms() - ask->heard_at;

    if (quiet >= ask->client->patience_ms)
        return ask->gap ? out_of_order(ask, ask->gap - 1, err)
                        : esp_fail(err, ESP_E_TIMEOUT, "%s has said nothing for %d s", ask->client->endpoint,
                                   (int)(quiet / 1000));
    if (ask->reminded && ask->hooks->waiting)
        ask->hooks->waiting(ask->hooks->self, &away);
    return remind(ask, err);
}

/* Tells the coordinator, and gives it CANCEL_MS to say that the request has ended. */
static void cancel(struct asking *ask)
{
    struct esp_client *client = ask->client;
    int64_t until = esp_now_ms() + CANCEL_MS;
    struct esp_msg msg;

    memset(&msg, 0, sizeof msg);
    msg.kind = ESP_MSG_CANCEL;
    msg.cancel.session = ask->id;
    if (esp_link_send(client->link, NULL, &msg, NULL) != ESP_OK)
        return;
    while (!ask->ended && esp_now_ms() < until) {
        esp_status st = esp_link_recv(client->link, NULL, &msg, NULL);
        if (st == ESP_OK) {
            ask->ended = is_ours(ask, &msg) && (msg.kind == ESP_MSG_DONE || msg.kind == ESP_MSG_ERROR);
            esp_msg_finish(&msg);
        } else if (st != ESP_E_TIMEOUT || nap(client, until, false, NULL) != ESP_OK) {
            return;
        }
    }
}

/* Who knows the ticket may resume the request, so nobody must be able to guess it. */
static esp_status draw_ticket(uint8_t *ticket, struct esp_err *err)
{
    size_t n = 0;

    while (n < ESP_TICKET_BYTES) {
        const ssize_t got = getrandom(ticket + n, ESP_TICKET_BYTES - n, 0);

        if (got < 0 && errno != EINTR)
            return esp_fail(err, ESP_E_INTERNAL, "getrandom: %s", strerror(errno));
        n += got > 0 ? (size_t)got : 0;
    }
    return ESP_OK;
}

esp_status esp_client_ask(struct esp_reply *out, struct esp_client *client, struct esp_msg *request,
                          const struct esp_client_hooks *hooks, struct esp_err *err)
{
    esp_status st = ESP_OK;
    struct asking ask = {.client = client, .hooks = hooks, .reply = out, .request = request};
    struct esp_msg query;

    memset(out, 0, sizeof *out);
    if (!client->embed) { /* before a request of many megabytes is sent to nobody */
        st = esp_client_status(&query, client, client->answer_ms, err);
        if (st)
            return st;
        esp_msg_finish(&query);
        st = draw_ticket(request->request.ticket, err);
        if (st)
            return st;
    }
    ask.id = request->request.id = ++client->last_id;
    ask.heard_at = esp_now_ms();
    ask.remind_at = ask.heard_at + QUIET_MS;
    st = send_soon(client, request, ask.heard_at + ANSWER_MS, err);
    while (st == ESP_OK && !ask.ended) {
        struct esp_msg *msg = calloc(1, sizeof *msg);

        if (!msg) {
            st = esp_fail(err, ESP_E_NOMEM, "client: out of memory");
            break;
        }
        st = next(client, msg, client->embed ? -1 : ask.remind_at, err);
        if (st == ESP_OK) {
            st = heed(&ask, &msg, err);
            if (msg)
                esp_msg_finish(msg);
        } else if (st == ESP_E_TIMEOUT) {
            st = silence(&ask, err);
        }
        free(msg);
    }
    if (st && !ask.ended &&
        !(client->embed && st == ESP_E_CLOSED)) /* a cluster that broke is stopped, not asked */
        cancel(&ask);
    if (st)
        esp_reply_finish(out);
    return st;
}

/* ---- orders ---- */

/* Which order a message is about; 0: none. */
static uint64_t about(const struct esp_msg *msg)
{
    switch (msg->kind) {
    case ESP_MSG_WAITING:
        return msg->waiting.session;
    case ESP_MSG_DRAINED:
        return msg->drained.id;
    case ESP_MSG_VERIFY_REPORT:
        return msg->verify_report.id;
    case ESP_MSG_ERROR:
        return msg->error.session;
    default:
        return 0;
    }
}

static void set_order_id(struct esp_msg *order, uint64_t id)
{
    if (order->kind == ESP_MSG_DRAIN)
        order->drain.id = id;
    else
        order->verify_query.id = id;
}

esp_status esp_client_order(struct esp_client *client, struct esp_msg *order, int timeout_ms,
                            bool (*heard)(void *self, const struct esp_msg *msg), void *self,
                            struct esp_err *err)
{
    struct esp_msg msg;
    esp_status st = esp_client_status(&msg, client, timeout_ms, err); /* a sign, and since when it is there */
    double uptime = st ? 0 : msg.status.uptime;
    uint64_t id, probe = 0;
    bool last = false;

    if (st)
        return st;
    esp_msg_finish(&msg);
    id = ++client->last_id;
    set_order_id(order, id);
    st = send_soon(client, order, esp_now_ms() + ANSWER_MS, err);
    while (st == ESP_OK && !last) {
        st = next(client, &msg, esp_now_ms() + (probe ? ANSWER_MS : QUIET_MS), err);
        if (st == ESP_E_TIMEOUT && !probe) {
            struct esp_msg query = {.kind = ESP_MSG_STATUS_QUERY};

            query.status_query.id = probe = ++client->last_id;
            st = esp_link_send(client->link, NULL, &query, err);
            continue;
        }
        if (st)
            break;
        if (msg.kind == ESP_MSG_STATUS && msg.status.id == probe) {
            if (msg.status.uptime < uptime)
                st = esp_fail(err, ESP_E_CLOSED, "%s was restarted, and knows nothing of this any more",
                              client->endpoint);
            uptime = msg.status.uptime;
            probe = 0;
        } else if (msg.kind == ESP_MSG_ERROR && (about(&msg) == id || about(&msg) == 0)) {
            st = esp_fail(err, msg.error.code, "%s",
                          msg.error.text[0] ? msg.error.text : esp_status_name(msg.error.code));
        } else if (about(&msg) == id) {
            last = heard(self, &msg);
        }
        esp_msg_finish(&msg);
    }
    if (st == ESP_E_CANCELLED && order->kind == ESP_MSG_VERIFY_QUERY) { /* half a drain would help nobody */
        struct esp_reply none = {0};
        struct asking ask = {.client = client, .reply = &none, .id = id};

        cancel(&ask);
    }
    return st;
}
