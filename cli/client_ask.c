/* Requests: what becomes of each of them between its first message and its last, however many are under way. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "cli/client_state.h"
#include "proto/clock.h"

#define N_ANEW    8    /* times that a request is asked anew without a further token in between */
#define CANCEL_MS 2000 /* for cancelled requests to end */

struct esp_asking {
    struct esp_asking *next;
    struct esp_client *client;
    struct esp_client_hooks hooks;
    struct esp_reply reply;
    struct esp_msg *request; /* borrowed: it may have to be sent again */
    uint64_t id;
    uint32_t n_tokens;
    bool ended;         /* the coordinator is done with it */
    bool told;          /* esp_client_next has handed it out */
    struct esp_err err; /* code ESP_OK: nothing has gone wrong */

    /* A coordinator elsewhere may be restarted, or a connection to it break. */
    int64_t heard_at;  /* when something came that was ours and new */
    int64_t remind_at; /* when a Resume is due */
    bool reminded;     /* one has been sent since */
    bool resumed;      /* one has ever been sent: what came before may come again */
    uint32_t n_anew;   /* times that the request was sent again since the last new token */
    uint32_t
        gap; /* one more than the index of a token that came too early; 0: none did since the last new one */
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

/* ---- one request ---- */

static esp_status keep_trace(struct esp_reply *reply, struct esp_msg *msg, struct esp_err *err)
{
    struct esp_msg **grown = realloc(reply->traces, (reply->n_traces + 1) * sizeof(struct esp_msg *));

    if (!grown)
        return esp_fail(err, ESP_E_NOMEM, "trace: out of memory");
    reply->traces = grown;
    grown[reply->n_traces++] = msg;
    return ESP_OK;
}

/* Which request a message is about; 0: none. */
static uint64_t session_of(const struct esp_msg *msg)
{
    switch (msg->kind) {
    case ESP_MSG_ACCEPTED:
        return msg->accepted.session;
    case ESP_MSG_WAITING:
        return msg->waiting.session;
    case ESP_MSG_TOKEN:
        return msg->token.session;
    case ESP_MSG_TRACE:
        return msg->trace.session;
    case ESP_MSG_DONE:
        return msg->done.session;
    case ESP_MSG_ERROR:
        return msg->error.session;
    default:
        return 0;
    }
}

static esp_status error_of(const struct esp_msg_error *e, struct esp_err *err)
{
    return esp_fail(err, e->code, "%s", e->text[0] ? e->text : esp_status_name(e->code));
}

static esp_status out_of_order(const struct esp_asking *ask, uint32_t index, struct esp_err *err)
{
    return esp_fail(err, ESP_E_PROTO, "the coordinator sent token %u where %u was expected", index,
                    ask->n_tokens);
}

/* Here we are, with so many tokens: go on from there. */
static esp_status remind(struct esp_asking *ask, struct esp_err *err)
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
    ask->remind_at = esp_now_ms() + ESP_CLIENT_QUIET_MS;
    return st == ESP_E_LIMIT ? ESP_OK : st; /* enough of them wait for it already */
}

/* The coordinator knows of no such request: it was restarted without it, or took us for gone. Decoding depends on
 * nothing but the request, so what we have comes first again. Under a new number, so that late answers to the old one
 * are not taken for ours. */
static esp_status ask_anew(struct esp_asking *ask, struct esp_err *err)
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
    ask->remind_at = ask->heard_at + ESP_CLIENT_QUIET_MS;
    return esp_client_send_soon(ask->client, ask->request, ask->heard_at + ESP_CLIENT_ANSWER_MS, err);
}

static esp_status heed_token(struct esp_asking *ask, const struct esp_msg_token *token, struct esp_err *err)
{
    if (token->index != ask->n_tokens && ask->client->embed)
        return out_of_order(ask, token->index, err);
    if (token->index < ask->n_tokens)
        return ask->resumed ? ESP_OK : out_of_order(ask, token->index, err);
    if (token->index > ask->n_tokens ||
        !ask->reply.accepted) { /* what comes before was lost with a connection */
        if (!ask->gap)
            ask->remind_at = esp_now_ms();
        ask->gap = token->index + 1;
        return ESP_OK;
    }
    ask->n_tokens++;
    ask->n_anew = ask->gap = 0;
    return ask->hooks.token ? ask->hooks.token(ask->hooks.self, token, err) : ESP_OK;
}

/* One message of this request. @param msg  set to NULL when kept */
static esp_status heed(struct esp_asking *ask, struct esp_msg **msg, struct esp_err *err)
{
    esp_status st = ESP_OK;
    const struct esp_client_hooks *hooks = &ask->hooks;
    struct esp_msg *m = *msg;
    bool was_reminded = ask->reminded;

    if (m->kind != ESP_MSG_TOKEN || (m->token.index == ask->n_tokens && ask->reply.accepted)) {
        ask->heard_at = esp_now_ms();
        ask->remind_at = ask->heard_at + ESP_CLIENT_QUIET_MS;
        ask->reminded = false;
    }
    switch (m->kind) {
    case ESP_MSG_ACCEPTED:
        if (ask->reply.accepted)
            return ask->resumed ? ESP_OK
                                : esp_fail(err, ESP_E_PROTO, "the coordinator accepted the request twice");
        ask->reply.accepted = m;
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
        st = keep_trace(&ask->reply, m, err);
        if (st == ESP_OK)
            *msg = NULL;
        return st;
    case ESP_MSG_DONE:
        if (!ask->reply.accepted && ask->client->embed)
            return esp_fail(err, ESP_E_PROTO, "the coordinator finished a request that it never accepted");
        if (!ask->reply.accepted) { /* lost, as above; and as it has ended there, we are going to ask anew */
            ask->remind_at = ask->heard_at;
            return ESP_OK;
        }
        ask->reply.done = m;
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
        return error_of(&m->error, err);
    }
}

/* Nothing came until a Resume was due. */
static esp_status silence(struct esp_asking *ask, struct esp_err *err)
{
    static const struct esp_msg_waiting away = {.what = "waiting for the coordinator"};
    const int64_t quiet = esp_now_ms() - ask->heard_at;

    if (quiet >= ask->client->patience_ms)
        return ask->gap ? out_of_order(ask, ask->gap - 1, err)
                        : esp_fail(err, ESP_E_TIMEOUT, "%s has said nothing for %d s", ask->client->endpoint,
                                   (int)(quiet / 1000));
    if (ask->reminded && ask->hooks.waiting)
        ask->hooks.waiting(ask->hooks.self, &away);
    return remind(ask, err);
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

/* ---- all of them ---- */

static struct esp_asking *find(const struct esp_client *client, uint64_t id)
{
    struct esp_asking *ask = client->first;

    while (ask && ask->id != id)
        ask = ask->next;
    return ask;
}

static bool under_way(const struct esp_asking *ask)
{
    return !ask->ended && ask->err.code == ESP_OK;
}

static void destroy(struct esp_client *client, struct esp_asking *ask)
{
    struct esp_asking **at = &client->first;

    while (*at != ask)
        at = &(*at)->next;
    *at = ask->next;
    esp_reply_finish(&ask->reply);
    free(ask);
}

void esp_client_forget(struct esp_client *client)
{
    while (client->first)
        destroy(client, client->first);
}

static void tell_cancel(struct esp_asking *ask)
{
    struct esp_msg msg;

    memset(&msg, 0, sizeof msg);
    msg.kind = ESP_MSG_CANCEL;
    msg.cancel.session = ask->id;
    if (esp_link_send(ask->client->link, NULL, &msg, NULL) != ESP_OK)
        ask->ended = true; /* nobody will say so */
}

/* Tells the coordinator of every request that has not ended there, and gives it CANCEL_MS to say that they have. */
static void cancel_all(struct esp_client *client)
{
    int64_t until = esp_now_ms() + CANCEL_MS;

    for (struct esp_asking *ask = client->first; ask; ask = ask->next)
        if (!ask->ended)
            tell_cancel(ask);
    while (esp_now_ms() < until) {
        struct esp_asking *left = client->first;
        struct esp_msg msg;
        esp_status st;

        while (left && left->ended)
            left = left->next;
        if (!left)
            return;
        st = esp_link_recv(client->link, NULL, &msg, NULL);
        if (st == ESP_OK) {
            struct esp_asking *ask = find(client, session_of(&msg));

            if (ask && (msg.kind == ESP_MSG_DONE || msg.kind == ESP_MSG_ERROR))
                ask->ended = true;
            esp_msg_finish(&msg);
        } else if (st != ESP_E_TIMEOUT || esp_client_nap(client, until, false, NULL) != ESP_OK) {
            return;
        }
    }
}

void esp_client_cancel(struct esp_client *client, uint64_t id)
{
    struct esp_asking ask = {.client = client, .id = id, .next = client->first};

    client->first = &ask;
    cancel_all(client);
    client->first = ask.next;
}

void esp_client_give_up(struct esp_client *client)
{
    cancel_all(client);
    esp_client_forget(client);
}

/* One message, whichever request it is about. Of a request that has gone wrong no more is heard than its end. */
static esp_status hear(struct esp_client *client, struct esp_msg **msg, struct esp_err *err)
{
    const uint64_t session = session_of(*msg);
    struct esp_asking *ask = session ? find(client, session) : NULL;
    struct esp_err e;

    if ((*msg)->kind == ESP_MSG_ERROR && session == 0) /* about the connection or an unreadable request */
        return error_of(&(*msg)->error, err);
    if (!ask || ask->ended) /* other status answers, the tail of an earlier request */
        return ESP_OK;
    if (ask->err.code) {
        ask->ended = (*msg)->kind == ESP_MSG_DONE || (*msg)->kind == ESP_MSG_ERROR;
        return ESP_OK;
    }
    if (heed(ask, msg, &e))
        ask->err = e;
    return ESP_OK;
}

/* Waits for the next message until a Resume is due or `until` (-1: for ever), and heeds it. What goes wrong with one
 * request is its own; what is returned is about all of them. */
static esp_status turn(struct esp_client *client, int64_t until, struct esp_err *err)
{
    struct esp_msg *msg;
    esp_status st;

    for (struct esp_asking *ask = client->first; ask && !client->embed; ask = ask->next)
        if (under_way(ask) && (until < 0 || ask->remind_at < until))
            until = ask->remind_at;
    msg = calloc(1, sizeof *msg);
    if (!msg)
        return esp_fail(err, ESP_E_NOMEM, "client: out of memory");
    st = esp_client_recv(client, msg, until, err);
    if (st == ESP_OK) {
        st = hear(client, &msg, err);
        if (msg)
            esp_msg_finish(msg);
    } else if (st == ESP_E_TIMEOUT) {
        const int64_t now = esp_now_ms();

        st = ESP_OK;
        for (struct esp_asking *ask = client->first; ask && !client->embed; ask = ask->next) {
            struct esp_err e;

            if (under_way(ask) && ask->remind_at <= now && silence(ask, &e))
                ask->err = e;
        }
    }
    free(msg);
    return st;
}

esp_status esp_client_begin(struct esp_asking **out, struct esp_client *client, struct esp_msg *request,
                            const struct esp_client_hooks *hooks, struct esp_err *err)
{
    struct esp_asking *ask, **at = &client->first;
    struct esp_msg query;
    esp_status st;

    *out = NULL;
    if (!client->embed) {
        if (!client->first) { /* before a request of many megabytes is sent to nobody */
            st = esp_client_status(&query, client, client->answer_ms, err);
            if (st)
                return st;
            esp_msg_finish(&query);
        }
        st = draw_ticket(request->request.ticket, err);
        if (st)
            return st;
    }
    ask = calloc(1, sizeof *ask);
    if (!ask)
        return esp_fail(err, ESP_E_NOMEM, "client: out of memory");
    ask->client = client;
    ask->hooks = *hooks;
    ask->request = request;
    ask->id = request->request.id = ++client->last_id;
    ask->heard_at = esp_now_ms();
    ask->remind_at = ask->heard_at + ESP_CLIENT_QUIET_MS;
    while (*at)
        at = &(*at)->next;
    *at = ask;
    st = esp_client_send_soon(client, request, ask->heard_at + ESP_CLIENT_ANSWER_MS, err);
    if (st)
        destroy(client, ask);
    else
        *out = ask;
    return st;
}

esp_status esp_client_next(struct esp_asking **out, struct esp_client *client, int timeout_ms,
                           struct esp_err *err)
{
    const int64_t until = timeout_ms < 0 ? -1 : esp_now_ms() + timeout_ms;

    *out = NULL;
    for (;;) {
        esp_status st;

        for (struct esp_asking *ask = client->first; ask; ask = ask->next) {
            if (under_way(ask) || ask->told)
                continue;
            if (!ask->ended)
                tell_cancel(ask);
            ask->told = true;
            *out = ask;
            return ESP_OK;
        }
        if (until >= 0 && esp_now_ms() >= until)
            return ESP_OK;
        st = turn(client, until, err);
        if (st)
            return st;
    }
}

esp_status esp_client_take(struct esp_reply *out, struct esp_asking **ask, struct esp_err *err)
{
    struct esp_asking *a = *ask;
    const esp_status st = a->err.code;

    memset(out, 0, sizeof *out);
    if (st && err)
        *err = a->err;
    if (st == ESP_OK) {
        *out = a->reply;
        memset(&a->reply, 0, sizeof a->reply);
    }
    destroy(a->client, a);
    *ask = NULL;
    return st;
}

esp_status esp_client_ask(struct esp_reply *out, struct esp_client *client, struct esp_msg *request,
                          const struct esp_client_hooks *hooks, struct esp_err *err)
{
    struct esp_asking *ask;
    esp_status st = esp_client_begin(&ask, client, request, hooks, err);
    bool broken; /* a cluster that broke is stopped, not asked */

    memset(out, 0, sizeof *out);
    if (st)
        return st;
    while (st == ESP_OK && under_way(ask))
        st = turn(client, -1, err);
    broken = client->embed && (st ? st : ask->err.code) == ESP_E_CLOSED;
    if ((st || ask->err.code) && !ask->ended && !broken)
        cancel_all(client);
    if (st)
        destroy(client, ask);
    else
        st = esp_client_take(out, &ask, err);
    return st;
}
