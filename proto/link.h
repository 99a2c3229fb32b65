/**
 * Sockets: the one place that sees zmq.h.
 *
 * A link is one ZeroMQ socket with our limits set (maximum message size, high-water marks, linger) that
 * sends and receives whole checked messages. One thread owns a link. Nothing here blocks but esp_link_wait, and
 * esp_net_destroy for as long as its links were told to linger.
 *
 * A routing id proves nothing: any peer that can connect may claim any, and takes over from a living one that has it (so
 * that a worker can come back before its old connection is known to be dead). What a peer may do follows from what it
 * said hello with, and who can connect from the endpoint: this machine only, unless keys are used.
 *
 * A net with keys (esp_net_secure) has none that are not CURVE: both sides prove their keys, everything is
 * encrypted, a serving link lets in whom its allow lists name, and each message comes with its sender's proven place
 * and key (struct esp_peer). Two peers with the same routing id and different keys are different peers.
 */
#ifndef ESP_PROTO_LINK_H
#define ESP_PROTO_LINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/keys.h"
#include "proto/log.h"
#include "proto/status.h"
#include "proto/wire.h"

struct esp_net;  /* a ZeroMQ context; safe from any thread */
struct esp_link; /* a socket */

esp_status esp_net_create(struct esp_net **out, struct esp_err *err);
void esp_net_destroy(struct esp_net **net); /* after its links; waits for what they linger */

/**
 * Gives the net keys, before it has any link.
 * @param keys  borrowed for the net's life, as is log (NULL is silent): refused connections are told there
 * Errors: ESP_E_IO, ESP_E_NOMEM, ESP_E_UNSUPPORTED (a libzmq without CURVE).
 */
esp_status esp_net_secure(struct esp_net *net, const struct esp_keys *keys, const struct esp_log *log,
                          struct esp_err *err);

enum esp_link_type {
    ESP_LINK_SERVE, /* ROUTER: many peers, each named by an esp_peer; what cannot be delivered is an error, not lost */
    ESP_LINK_DIAL /* DEALER: one peer; reconnects by itself for ever */
};

struct esp_link_options {
    enum esp_link_type type;
    const char
        *identity; /* DIAL: our routing id, 1 .. 255 bytes; NULL: the peer invents one a connection or, with
                             keys, we do, one that nobody can guess */
    size_t max_frame;          /* bytes of any frame received; 0: ESP_MAX_FRAME */
    int hwm;                   /* messages queued a peer, each way; 0: 64 */
    int linger_ms;             /* how long destroy lets queued messages leave; 0: none */
    const uint8_t *server_key; /* DIAL with keys: the other side's public key, borrowed for the call */
    bool tell_drops;           /* SERVE: count the connections that end, for esp_link_drops */
};

/** A peer of a SERVE link: its routing id and, in a net with keys, who it has proven to be. */
struct esp_peer {
    uint8_t n;
    uint8_t id[255];
    enum esp_member member;      /* ESP_MEMBER_NONE without keys */
    uint8_t key[ESP_KEY_BYTES];  /* its public key; zeros without keys */
    char user[ESP_MAX_NAME + 1]; /* what our allow list calls that key; "" without keys */
};

/** The same routing id, and the same key. */
bool esp_peer_equal(const struct esp_peer *a, const struct esp_peer *b);
/** Printable form for log lines: its text if printable, else hex, cut to fit. out holds at least 64 bytes. */
const char *esp_peer_text(const struct esp_peer *peer, char *out, size_t n_out);

esp_status esp_link_create(struct esp_link **out, struct esp_net *net, const struct esp_link_options *options,
                           struct esp_err *err);
void esp_link_destroy(struct esp_link **link);

/** True for ipc://, inproc:// and tcp:// on 127.0.0.0/8, [::1] or localhost. */
bool esp_endpoint_is_local(const char *endpoint);

/**
 * Binds. A tcp port of * or 0 is chosen by the system; `bound` (ESP_MAX_ENDPOINT + 1 bytes, may be NULL) gets the real endpoint.
 * The file of an ipc:// endpoint stays behind; binding takes over a file that is there.
 * An endpoint that is not local is refused with ESP_E_ARG unless the net has keys or `insecure`: without keys anyone who
 * reaches the port may use it.
 */
esp_status esp_link_bind(struct esp_link *link, const char *endpoint, bool insecure, char *bound,
                         struct esp_err *err);

/**
 * Starts connecting, and reconnects by itself for ever (every 100 ms to 2 s). Messages sent meanwhile wait in the queue, up to
 * its hwm; those that were on their way when a connection broke are lost.
 * Errors: ESP_E_ARG (no such form of endpoint), ESP_E_IO.
 */
esp_status esp_link_connect(struct esp_link *link, const char *endpoint, struct esp_err *err);

/**
 * What the last handshake of a DIAL link with keys came to; ESP_OK if it went well, there was none, or the net has no
 * keys. ESP_E_CLOSED: refused for good, and this link will not try again. ESP_E_TIMEOUT: broken off; it goes on trying.
 */
esp_status esp_link_check(const struct esp_link *link, struct esp_err *err);

/**
 * Sends a message with its blobs; never blocks. `to` is required for SERVE and NULL for DIAL.
 * Blobs with a release are consumed in every case (and zeroed in *msg); the others are copied.
 * Errors: ESP_E_LIMIT (the peer's queue is full), ESP_E_CLOSED (no such peer any more), ESP_E_PROTO (we made nonsense), ESP_E_NOMEM.
 */
esp_status esp_link_send(struct esp_link *link, const struct esp_peer *to, struct esp_msg *msg,
                         struct esp_err *err);

/**
 * Takes the next message, if any; never blocks.
 * @param from  SERVE: who sent it, also when the message was bad; may be NULL for DIAL
 * @param msg   esp_msg_finish it; zeroed on failure
 * Errors: ESP_E_TIMEOUT (nothing there), ESP_E_PROTO (a bad message, dropped whole: *from says whose), ESP_E_NOMEM
 * (likewise). After a bad message there may be more: only ESP_E_TIMEOUT says that the queue is empty.
 */
esp_status esp_link_recv(struct esp_link *link, struct esp_peer *from, struct esp_msg *msg,
                         struct esp_err *err);

/**
 * How many connections of a SERVE link have ended since the last call; esp_link_wait wakes for them too. Whose they were
 * nobody knows: ask everyone with a message, and esp_link_send says ESP_E_CLOSED of those that are gone, if not at once
 * then some milliseconds later. Always 0 without tell_drops.
 */
uint32_t esp_link_drops(struct esp_link *link);

/** What esp_link_wait waits for: a link or, where link is NULL, a file descriptor's readability. */
struct esp_wait {
    struct esp_link *link;
    int fd;
    bool ready; /* out: readable */
};

/**
 * Sleeps until something is ready, timeout_ms passes (-1: for ever; then ESP_E_TIMEOUT) or a signal comes
 * (ESP_OK with nothing ready). At most 64 things.
 */
esp_status esp_link_wait(struct esp_wait *waits, uint32_t n, int timeout_ms, struct esp_err *err);

#endif
