#include "cli/client.h"

#include <stdlib.h>
#include <string.h>

#include "cli/client_state.h"
#include "cli/signals.h"
#include "proto/clock.h"

#define PATIENCE_MS  60000 /* for one that has fallen silent, and may come back */
#define HANDSHAKE_MS 200   /* between two looks whether our key was refused: no message tells */

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
    client->answer_ms = ESP_CLIENT_ANSWER_MS;
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
    esp_client_forget(*client);
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

/* What the link holds is left for the caller; that `until` has come is no failure. */
esp_status esp_client_nap(struct esp_client *client, int64_t until, bool heed_signals, struct esp_err *err)
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

esp_status esp_client_send_soon(struct esp_client *client, struct esp_msg *msg, int64_t until,
                                struct esp_err *err)
{
    for (;;) {
        esp_status st = esp_link_send(client->link, NULL, msg, err);
        if (st != ESP_E_LIMIT || esp_now_ms() >= until)
            return st;
        st = esp_client_nap(client, esp_now_ms() + 20, true, err);
        if (st)
            return st;
    }
}

esp_status esp_client_recv(struct esp_client *client, struct esp_msg *msg, int64_t until, struct esp_err *err)
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
        st = esp_client_nap(client, until, true, err);
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
        st = esp_client_nap(client, until, true, err);
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
    st = esp_client_send_soon(client, &query, until, err);
    while (st == ESP_OK) {
        st = esp_client_recv(client, out, until, err);
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
    st = esp_client_send_soon(client, order, esp_now_ms() + ESP_CLIENT_ANSWER_MS, err);
    while (st == ESP_OK && !last) {
        st = esp_client_recv(client, &msg,
                             esp_now_ms() + (probe ? ESP_CLIENT_ANSWER_MS : ESP_CLIENT_QUIET_MS), err);
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
    if (st == ESP_E_CANCELLED && order->kind == ESP_MSG_VERIFY_QUERY) /* half a drain would help nobody */
        esp_client_cancel(client, id);
    return st;
}
