/**
 * Requests to a coordinator over a DIAL link, and what comes back.
 *
 * One request at a time (esp_client_ask) or many at once on one connection (esp_client_begin and what follows it), not
 * both. Nothing blocks for good: a signal cancels, an ended child of an embedded cluster fails, and a coordinator
 * elsewhere that says nothing is reminded and, after a while, given up.
 *
 * That coordinator may be restarted under a request. The request carries a ticket that was drawn at random; a second
 * of silence, or a token that is missing, sends Resume with it and the number of tokens that have come. Either the
 * coordinator goes on from there, or it knows of nothing and is asked anew: then the tokens that we have come
 * again and are passed over. Each token is heard exactly once.
 */
#ifndef ESP_CLI_CLIENT_H
#define ESP_CLI_CLIENT_H

#include "cli/embed.h"
#include "cli/term.h"
#include "proto/link.h"
#include "proto/status.h"
#include "proto/wire.h"

struct esp_client;

/** What the asker hears while a request runs; any of them may be NULL. */
struct esp_client_hooks {
    void *self;
    void (*accepted)(void *self, const struct esp_msg_accepted *accepted);
    void (*waiting)(void *self, const struct esp_msg_waiting *waiting);
    /** A failure cancels the request. */
    esp_status (*token)(void *self, const struct esp_msg_token *token, struct esp_err *err);
};

/** A finished request; esp_reply_finish frees it. Messages as received, the traces in order of arrival. */
struct esp_reply {
    struct esp_msg *accepted, *done; /* not NULL after ESP_OK */
    struct esp_msg **traces;
    uint32_t n_traces;
};

void esp_reply_finish(struct esp_reply *reply);

/**
 * @param endpoint  where the coordinator serves; borrowed, as are the next two
 * @param embed     NULL: a cluster elsewhere, whose silence is an error
 * @param keys      the client's key directory; NULL: none
 * Errors: ESP_E_ARG (endpoint), ESP_E_IO, ESP_E_NOMEM; as esp_keys_open.
 */
esp_status esp_client_create(struct esp_client **out, const char *endpoint, const char *keys,
                             struct esp_embed *embed, struct esp_term *term, struct esp_err *err);
void esp_client_destroy(struct esp_client **client);

/** How long a coordinator elsewhere may say nothing: before a request (10 s) and during one (60 s). At most a day. */
void esp_client_set_patience(struct esp_client *client, uint32_t seconds);

/**
 * Sends a request (ESP_MSG_REQUEST, its blobs borrowed) and waits for its end.
 * Its id and ticket are set here.
 * Errors: what the coordinator's Error says; ESP_E_CANCELLED after a signal (the coordinator was told and
 * given up to 2 s); ESP_E_TIMEOUT, ESP_E_CLOSED, ESP_E_PROTO.
 */
esp_status esp_client_ask(struct esp_reply *out, struct esp_client *client, struct esp_msg *request,
                          const struct esp_client_hooks *hooks, struct esp_err *err);

/* ---- many at once ---- */

struct esp_asking; /* a request between esp_client_begin and esp_client_take; the client's own */

/**
 * Sends a request and does not wait for its end. A coordinator serves those of one client in their order, as room
 * allows, and refuses more than 1024 of them at once.
 *
 * @param out      names it until it is taken
 * @param request  as for esp_client_ask; borrowed, blobs and all, until it is taken: it may have to be sent again
 * @param hooks    copied; called from within esp_client_next. They begin and take nothing themselves
 * Errors: nothing was begun. As esp_client_ask.
 */
esp_status esp_client_begin(struct esp_asking **out, struct esp_client *client, struct esp_msg *request,
                            const struct esp_client_hooks *hooks, struct esp_err *err);

/**
 * Waits until one of those that were begun has ended, well or not; each is handed out once.
 * @param out  NULL when timeout_ms (-1: none) passed before
 * Errors are about all of them, which go on as they were: ESP_E_CANCELLED after a signal, ESP_E_CLOSED, ESP_E_PROTO,
 * ESP_E_NOMEM.
 */
esp_status esp_client_next(struct esp_asking **out, struct esp_client *client, int timeout_ms,
                           struct esp_err *err);

/**
 * What a request that has ended came to; clears *ask.
 * Errors: its own, *out is zeroed then: what the coordinator's Error says, what a hook said, ESP_E_TIMEOUT,
 * ESP_E_CLOSED, ESP_E_PROTO.
 */
esp_status esp_client_take(struct esp_reply *out, struct esp_asking **ask, struct esp_err *err);

/** Ends whatever is under way: the coordinator is told, and given up to 2 s to say that it has. Nothing is left to take. */
void esp_client_give_up(struct esp_client *client);

/** The same without telling anybody, for a cluster that broke. */
void esp_client_forget(struct esp_client *client);

/* ---- other questions ---- */

/**
 * The cluster's status; no request may be under way. @param out  esp_msg_finish it
 * Errors: ESP_E_TIMEOUT after timeout_ms, and as esp_client_ask.
 */
esp_status esp_client_status(struct esp_msg *out, struct esp_client *client, int timeout_ms,
                             struct esp_err *err);

/**
 * Sends an order (ESP_MSG_DRAIN or ESP_MSG_VERIFY_QUERY, whose id is set here) and hands every message about it to
 * `heard`, until that returns true: it was the last. Progress may be silent for long; that the coordinator is still the
 * same one is asked for meanwhile.
 * @param timeout_ms  for the first sign that somebody is there
 * Errors: what the coordinator's Error says; ESP_E_CANCELLED after a signal: a verification ends, a drain goes on
 * all the same; ESP_E_CLOSED if it was restarted; as esp_client_status.
 */
esp_status esp_client_order(struct esp_client *client, struct esp_msg *order, int timeout_ms,
                            bool (*heard)(void *self, const struct esp_msg *msg), void *self,
                            struct esp_err *err);

/** Sleeps for so long, or until a signal (ESP_E_CANCELLED) or a child's end (ESP_E_CLOSED). */
esp_status esp_client_sleep(struct esp_client *client, int ms, struct esp_err *err);

#endif
