/**
 * A dialled link and what waits to be sent on it.
 *
 * A link refuses a message when the peer's queue is full. Rows that took a device seconds to compute must not
 * be lost for that, nor may a later message overtake: so what is refused is kept here, in order, and tried
 * again. That something waits is the sign to take no new data (back-pressure). The owner's thread alone.
 */
#ifndef ESP_WORKER_OUTBOX_H
#define ESP_WORKER_OUTBOX_H

#include "proto/link.h"
#include "worker/runner.h"

struct esp_pending;

/** Zeroed: closed and empty. */
struct esp_outbox {
    struct esp_link *link;
    struct esp_pending *first, *last;
    uint32_t n_pending;
};

/** Dials; what waited for the former peer is dropped. server_key, hwm, linger_ms: as in struct esp_link_options. */
esp_status esp_outbox_open(struct esp_outbox *box, struct esp_net *net, const char *identity,
                           const char *endpoint, const uint8_t *server_key, int hwm, int linger_ms,
                           struct esp_err *err);

/** Hangs up and drops what waits. */
void esp_outbox_close(struct esp_outbox *box);

/**
 * Sends a message, now or later.
 *
 * @param msg      without blobs; it is copied, what it points to is not
 * @param blob     its raw frame of n_bytes, or NULL; a reference is taken
 * @param owner    what msg points into, kept until it is sent; NULL if msg points to nothing that goes away.
 * Its n_users is counted here, and the last one destroys it Errors: as esp_link_send but ESP_E_LIMIT, and
 * ESP_E_CLOSED if there is no peer: the message is lost then.
 */
esp_status esp_outbox_put(struct esp_outbox *box, const struct esp_msg *msg, struct esp_shared *blob,
                          size_t n_bytes, struct esp_work *owner, struct esp_err *err);

/** The same, but a message that cannot go at once is dropped (ESP_E_LIMIT): for what the next one replaces.
 */
esp_status esp_outbox_try(struct esp_outbox *box, const struct esp_msg *msg, struct esp_err *err);

/** Tries again what waits. ESP_OK also if it still does; an error is about one message, which is lost: call
 * again. */
esp_status esp_outbox_flush(struct esp_outbox *box, struct esp_err *err);

/** Drops what waits and belongs to another placement than this generation. Work of no placement has 0 and
 * stays. */
void esp_outbox_purge(struct esp_outbox *box, uint64_t generation);

/** One user less; the last one destroys. */
void esp_work_unref(struct esp_work **work);

#endif
